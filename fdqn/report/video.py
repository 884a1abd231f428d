"""Videos of greedy episodes of a few seeds side by side, as an animated GIF.

    returns -> representatives -> scenes, one a step -> thinned -> gif

A video shows episodes of the evaluation. They are played again with the same seeds and random numbers, so they have the
same returns.
"""

import contextlib
import io
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from fdqn import check, envs
from fdqn.envs import render
from fdqn.envs.render import Frame
from fdqn.training import evaluate
from fdqn.types import Env, HostEnv, Network, Params, RecordingEnv

if TYPE_CHECKING:
    from PIL import Image

FRAMES = 600
"""Maximum number of frames."""
PER_SECOND = 20
LAST = 2.0  # s that the last frame is shown

# Pixels: the longer side of a picture; the margin; the height of a title; the font size.
SIDE, EDGE, TITLE, LETTERS = 320, 8, 26, 14
PAPER, INK, FRAME = "white", "black", "#999999"


class Scene(NamedTuple):
    """One time step of P episodes."""

    frames: list[Frame]
    """P pictures [H, W, 3]. An ended episode keeps its last picture."""
    returns: NDArray[np.float64]
    """[P] so far."""
    ended: NDArray[np.bool_]
    """[P]."""


class Recording(NamedTuple):
    """The scenes of a video."""

    scenes: list[Scene]
    every: int
    """Environment steps between two scenes. The last scene may follow sooner."""


def representatives(means: NDArray[Any]) -> dict[str, int]:
    """Choose the best, the median and the worst seed by mean return.

    Two seeds have no median, a single seed is the best. A seed with a mean of NaN is not chosen. Raises ValueError if
    no seed has a finite mean.

    Shapes: means [S]; the result maps the title to the position in [0, S).
    """
    ranked = np.argsort(-means, kind="stable")[: np.isfinite(means).sum()].tolist()
    if not ranked:
        raise ValueError("video: expected a seed that has not failed, got none")
    places = {"best": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[-1]}
    return {place: seed for i, (place, seed) in enumerate(places.items()) if seed not in list(places.values())[:i]}


def typical(returns: NDArray[Any]) -> int:
    """Return the index of the episode whose return is nearest to the mean, the first on a tie. Shapes: returns [N]."""
    return int(np.abs(returns - returns.mean()).argmin())


def scenes(
    name: str,
    env: Env | HostEnv,
    network: Network,
    params: Params,
    keys: torch.Tensor,
    episodes: int,
    chosen: Sequence[int],
    *,
    epsilon: float = 0.0,
    limit: int | None = None,
    fast: evaluate.Play | None = None,
) -> Generator[Scene]:
    """Yield one episode of each of P seeds, step by step, until the longest has ended.

    A host environment repeats the evaluated episode only if it is deterministic given its seed. Raises ValueError if
    the environment does not render.

    Args:
        name: Name of the environment, by which the counterpart in Gymnasium is found that renders a pure one.
        env, network, epsilon, limit, fast: As in `evaluate.greedy`.
        params: Parameters of the P seeds, leaves [P, ...].
        keys: Keys of the P seeds, [P, 2].
        episodes: Number of episodes that were evaluated.
        chosen: Index in [0, episodes) of the episode to show, for each of the P seeds.
    """
    if envs.on_host(env):
        return host_scenes(name, env, network, params, keys, episodes, chosen, epsilon=epsilon, limit=limit)
    return device_scenes(name, env, network, params, keys, episodes, chosen, epsilon=epsilon, limit=limit, fast=fast)


def device_scenes(
    name: str,
    env: Env,
    network: Network,
    params: Params,
    keys: torch.Tensor,
    episodes: int,
    chosen: Sequence[int],
    *,
    epsilon: float = 0.0,
    limit: int | None = None,
    fast: evaluate.Play | None = None,
) -> Generator[Scene]:
    """Yield the scenes of a pure environment, rendered from its observations.

    Args:
        name, env, network, params, keys, episodes, chosen, epsilon, limit, fast: as in `scenes`.
    """
    shown = torch.arange(len(chosen)), torch.tensor(chosen)
    steps = evaluate.device_steps(env, network, params, keys, episodes, epsilon=epsilon, limit=limit, fast=fast)
    with render.renderer(name, env.spec, envs.GYMNASIUM.get(name)) as draw_obs:
        for now in steps:
            obs, returns, ended = (x[shown].cpu().numpy() for x in (now.next_obs, now.returns, now.ended))
            yield Scene([draw_obs(each) for each in obs], returns, ended)


def host_scenes(
    name: str,
    env: HostEnv,
    network: Network,
    params: Params,
    keys: torch.Tensor,
    episodes: int,
    chosen: Sequence[int],
    *,
    epsilon: float = 0.0,
    limit: int | None = None,
) -> Generator[Scene]:
    """Yield the scenes of a host environment, rendered by itself.

    Args:
        name, env, network, params, keys, episodes, chosen, epsilon, limit: as in `scenes`.
    """
    seeds = evaluate.host_seeds(keys, episodes)[torch.arange(len(chosen)), torch.tensor(chosen)].unsqueeze(-1)
    first = True
    with _recording(name, env, len(chosen)) as vector:
        steps = evaluate.host_steps(vector, env.spec, network, params, seeds, epsilon=epsilon, limit=limit)
        for now in steps:
            for frame in (frames := vector.frames()):
                if frame is not None:
                    check_frame(name, frame)
                elif first:
                    raise ValueError(f"video: expected {name} to start, got {[*vector.broken.values()]}")
            first = False
            yield Scene(frames, now.returns[:, 0].numpy(), now.ended[:, 0].numpy())


def thinned(scenes: Iterable[Scene], most: int = FRAMES) -> Recording:
    """Keep at most `most` evenly spaced scenes, and the last.

    The spacing is the least power of 2 that suffices. Scenes after the end of the longest episode are dropped. Pictures
    longer than SIDE are made smaller. Raises ValueError unless `most` is an even number above 0.
    """
    check.count("most", most, 2)
    if most % 2:
        raise ValueError(f"most: expected an even number, got {most}")
    kept: list[Scene] = []
    rest: list[Scene] = []
    every = 1
    for i, scene in enumerate(_until_ended(scenes)):
        rest = [scene] if i % every else []
        if not rest:
            if len(kept) == most:
                kept, every = kept[::2], 2 * every
            kept.append(_small(scene))
    return Recording([*kept, *map(_small, rest)], every)


def gif(titles: Sequence[str], recording: Recording) -> bytes:
    """Encode a recording as an animated GIF that repeats forever, each of the P episodes under its title.

    All frames share one palette, so that still parts do not flicker. Raises ValueError for a recording without scenes,
    for a number of titles other than P and for frames that are not pictures.
    """
    if not recording.scenes:
        raise ValueError("recording: expected at least one scene, got none")
    for frame in recording.scenes[0].frames:
        check_frame("recording", frame)
    if len(titles) != len(recording.scenes[0].frames):
        raise ValueError(f"titles: expected one for each of {len(recording.scenes[0].frames)} seeds, got {len(titles)}")
    from PIL import Image

    shown = [scene.frames for scene in recording.scenes]
    some = [np.asarray(_page(titles, frames)) for frames in shown[:: 1 + len(shown) // 12]]
    palette = Image.fromarray(np.concatenate(some)).quantize(256)
    pages = [_page(titles, frames).quantize(palette=palette, dither=Image.Dither.NONE) for frames in shown]
    last, file = int(1000 * LAST), io.BytesIO()
    durations = [1000 // PER_SECOND] * (len(pages) - 1) + [last]
    pages[0].save(file, "GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0)
    return file.getvalue()


def draw(
    name: str,
    env: Env | HostEnv,
    network: Network,
    params: Params,
    keys: torch.Tensor,
    seeds: Sequence[int],
    returns: NDArray[np.float64],
    *,
    epsilon: float = 0.0,
    limit: int | None = None,
    fast: evaluate.Play | None = None,
    progress: evaluate.Progress | None = None,
) -> tuple[bytes, Recording]:
    """Make a GIF of a typical episode of the best, the median and the worst seed.

    Args:
        name: Name of the environment, as in `scenes`.
        env, network, params, keys: As in `evaluate.greedy`, for all S seeds.
        seeds: Numbers of the S seeds, for titles.
        returns: Returns of the evaluation, [S, N]; NaN for a failed seed.
        epsilon, limit, fast, progress: As in `evaluate.greedy`.

    Raises:
        ValueError: the environment does not render, or all seeds have failed.
    """
    means = returns.mean(1)
    parts = representatives(means)
    places = list(parts.values())
    some, chosen = {name: x[places] for name, x in params.items()}, [typical(returns[i]) for i in places]
    made = scenes(
        name, env, network, some, keys[places], returns.shape[1], chosen, epsilon=epsilon, limit=limit, fast=fast
    )
    with contextlib.closing(made):
        recording = thinned(made if progress is None else _reporting(made, progress))
    each = zip(parts, places, recording.scenes[-1].returns, strict=True)
    titles = [f"{part}: seed {seeds[i]}, {shown:.1f} (mean {means[i]:.1f})" for part, i, shown in each]
    return gif(titles, recording), recording


def check_renders(name: str, env: Env | HostEnv) -> None:
    """Raise ValueError with a remedy unless the environment called `name` renders."""
    check.kind("env", env, Env, HostEnv)
    try:
        check_frame(name, _host_frame(name, env) if envs.on_host(env) else _device_frame(name, env))
    except Exception as error:  # a user's environment may raise anything
        missing = ImportError, gymnasium.error.DependencyNotInstalled
        # A host environment raises its own ValueError from the original error.
        cause = error if isinstance(error, missing) else error.__cause__ or error
        message = " ".join(str(cause).split()) or type(cause).__name__
        if message.startswith("video: "):
            raise
        if isinstance(cause, missing):
            package = message.partition(", run ")[0]
            raise ValueError(
                f"video: expected the packages that render {name}, got: {package}; pip install 'fdqn[video]'"
            ) from error
        raise ValueError(f"video: expected an environment that renders, got {name}: {message}") from error


def check_frame(name: str, frame: Any) -> None:
    """Raise ValueError unless `frame` is a picture, uint8 [H, W, 3]. `name` is for the message."""
    shape, dtype = np.shape(frame), getattr(frame, "dtype", type(frame).__name__)
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"video: expected pictures [H, W, 3] of uint8 of {name}, got {list(shape)} of {dtype}")


def _device_frame(name: str, env: Env) -> Frame:
    with render.renderer(name, env.spec, envs.GYMNASIUM.get(name)) as draw_obs:
        return draw_obs(np.zeros(env.spec.obs_shape))


def _host_frame(name: str, env: HostEnv) -> Any:
    with _recording(name, env, 1) as vector:
        vector.reset([[0]])
        return vector.frames()[0]


def _recording(name: str, env: HostEnv, seeds: int) -> contextlib.closing[RecordingEnv]:
    if env.record is None:
        raise ValueError(f"video: expected an environment that renders, got {name}, a HostEnv without record")
    return contextlib.closing(envs.record_host(env, seeds))


def _reporting(scenes: Iterable[Scene], progress: evaluate.Progress) -> Iterator[Scene]:
    for i, scene in enumerate(scenes):
        progress(int(scene.ended.sum()), i)
        yield scene


def _until_ended(scenes: Iterable[Scene]) -> Iterator[Scene]:
    """Yield scenes until all episodes have ended; an ended or failed episode keeps its last picture."""
    before = None
    for scene in scenes:
        if before is not None:
            pictures = zip(before.frames, scene.frames, before.ended, strict=True)
            scene = scene._replace(frames=[old if ended or new is None else new for old, new, ended in pictures])
        yield scene
        before = scene
        if scene.ended.all():
            return


def _small(scene: Scene) -> Scene:
    """Shrink pictures whose longer side is above SIDE."""
    from PIL import Image

    def small(frame: Frame) -> Frame:
        if max(frame.shape[:2]) <= SIDE:
            return np.array(frame)  # a copy: an environment may render into the same array again
        picture = Image.fromarray(frame)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(picture)

    return scene._replace(frames=[small(frame) for frame in scene.frames])


def _page(titles: Sequence[str], frames: Sequence[Frame]) -> "Image.Image":
    """Draw pictures side by side, each centred in its column under its title."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(LETTERS)
    pictures = [_large(frame) for frame in frames]
    widths = [max(x.width, math.ceil(font.getlength(title)) + EDGE) for x, title in zip(pictures, titles, strict=True)]
    height = max(x.height for x in pictures)
    page = Image.new("RGB", (sum(widths) + EDGE * (len(widths) + 1), TITLE + height + EDGE), PAPER)
    draw, left = ImageDraw.Draw(page), EDGE
    for title, picture, width in zip(titles, pictures, widths, strict=True):
        x = left + (width - picture.width) // 2
        draw.text((left + width // 2, TITLE // 2), title, INK, font, anchor="mm")
        draw.rectangle((x - 1, TITLE - 1, x + picture.width, TITLE + picture.height), outline=FRAME)
        page.paste(picture, (x, TITLE))
        left += width + EDGE
    return page


def _large(frame: Frame) -> "Image.Image":
    """Enlarge a picture by the largest whole factor that keeps it within SIDE."""
    from PIL import Image

    times = max(1, SIDE // max(frame.shape[:2]))
    return Image.fromarray(np.repeat(np.repeat(frame, times, 0), times, 1))
