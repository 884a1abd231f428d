"""Pictures of behaviour: greedy episodes of a few lanes side by side, as an animated GIF.

    returns -> cast -> scenes, a step each -> thinned -> gif

What is shown is what `evaluate` played: the same lanes, noise and seeds again, and so the same returns.
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

from fdqn import check, envs, evaluate
from fdqn.envs import paint
from fdqn.envs.paint import Frame
from fdqn.types import Env, Network, Params, World

if TYPE_CHECKING:
    from PIL import Image

FRAMES = 600
"""Shown at most, of the longest of the episodes."""
PER_SECOND = 20
LAST = 2.0  # s that the last frame stands

# Pixels: the longer side of a picture, what is around it, above it and between lanes, and the size of letters.
SIDE, EDGE, TITLE, LETTERS = 320, 8, 26, 14
PAPER, INK, FRAME = "white", "black", "#999999"


class Scene(NamedTuple):
    """One moment of P lanes."""

    frames: list[Frame]
    """P pictures [H, W, 3]; of an episode that has ended the last one stays."""
    returns: NDArray[np.float64]
    """[P] so far."""
    ended: NDArray[np.bool_]
    """[P]."""


class Film(NamedTuple):
    """What is shown of the scenes."""

    scenes: list[Scene]
    every: int
    """Steps from one to the next, but perhaps to the last."""


def cast(means: NDArray[Any]) -> dict[str, int]:
    """The best, the median and the worst lane by their mean returns [S], those that are there: of two lanes there is
    no median, and one is the best. A lane whose mean is NaN has no place. Raises ValueError where no lane has one.
    """
    ranked = np.argsort(-means, kind="stable")[: np.isfinite(means).sum()].tolist()
    if not ranked:
        raise ValueError("video: expected a seed that has not failed, got none")
    places = {"best": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[-1]}
    return {place: lane for i, (place, lane) in enumerate(places.items()) if lane not in list(places.values())[:i]}


def typical(returns: NDArray[Any]) -> int:
    """Which of the episodes, returns [N], came nearest to their mean: the first that did."""
    return int(np.abs(returns - returns.mean()).argmin())


def native(
    name: str, env: Env, network: Network, params: Params, keys: torch.Tensor, episodes: int, chosen: Sequence[int],
    fast: evaluate.Play | None = None, epsilon: float = 0.0, limit: int | None = None,
) -> Generator[Scene]:  # fmt: skip
    """Of lane i of `params` [P, ...] with keys [P, 2], episode `chosen[i]` of those that `evaluate.native` plays, from
    its start to its end, for as long as one lasts. Raises ValueError where `name` does not render.
    """
    lanes = torch.arange(len(chosen)), torch.tensor(chosen)
    with paint.painter(name, env.spec, envs.GYMNASIUM.get(name)) as painted:
        for games in evaluate.steps(env, network, params, keys, episodes, fast, epsilon, limit):
            now = [x[lanes].cpu().numpy() for x in (games.next_obs, games.returns, games.ended)]
            yield Scene([painted(obs) for obs in now[0]], *now[1:])


def outside(
    name: str, world: World, network: Network, params: Params, keys: torch.Tensor, episodes: int, chosen: Sequence[int],
    epsilon: float = 0.0, limit: int | None = None,
) -> Generator[Scene]:  # fmt: skip
    """`native` for what `evaluate.outside` plays; what a world does twice with one seed is up to the world."""
    seeds = evaluate.seeds_outside(keys, episodes)[torch.arange(len(chosen)), torch.tensor(chosen)].unsqueeze(-1)
    shown = False
    with _opened(name, world, len(chosen)) as games:
        for played in evaluate.steps_outside(games, world.spec, network, params, seeds, epsilon, limit):
            for frame in (frames := games.frames()):
                if frame is not None:
                    check_frame(name, frame)
                elif not shown:
                    raise ValueError(f"video: expected {name} to begin, got {[*games.broken.values()]}")
            shown = True
            yield Scene(frames, played.returns[:, 0].numpy(), played.ended[:, 0].numpy())


def thinned(scenes: Iterable[Scene], most: int = FRAMES) -> Film:
    """Each `every`th of the scenes, as many as `most`, and the last, with which all episodes have ended; `every` is the
    least power of 2. Pictures are made smaller where they are too large to stand side by side.

    Raises ValueError unless `most` is an even number above 0.
    """
    check.count("most", most, 2)
    if most % 2:
        raise ValueError(f"most: expected an even number, got {most}")
    kept: list[Scene] = []
    rest: list[Scene] = []
    every = 1
    for i, scene in enumerate(_standing(scenes)):
        rest = [scene] if i % every else []
        if not rest:
            if len(kept) == most:
                kept, every = kept[::2], 2 * every
            kept.append(_small(scene))
    return Film([*kept, *map(_small, rest)], every)


def gif(titles: Sequence[str], film: Film) -> bytes:
    """The film as an animated GIF that begins again and again, each of the P lanes under its title.

    All frames have one palette, so that what does not move does not flicker. Raises ValueError where there is nothing
    to show, for as many titles as there are not lanes, and for what is no picture.
    """
    if not film.scenes:
        raise ValueError("film: expected at least one scene, got none")
    for frame in film.scenes[0].frames:
        check_frame("film", frame)
    if len(titles) != len(film.scenes[0].frames):
        raise ValueError(f"titles: expected one for each of {len(film.scenes[0].frames)} lanes, got {len(titles)}")
    from PIL import Image

    shown = [scene.frames for scene in film.scenes]
    some = [np.asarray(_page(titles, frames)) for frames in shown[:: 1 + len(shown) // 12]]
    palette = Image.fromarray(np.concatenate(some)).quantize(256)
    pages = [_page(titles, frames).quantize(palette=palette, dither=Image.Dither.NONE) for frames in shown]
    last, file = int(1000 * LAST), io.BytesIO()
    durations = [1000 // PER_SECOND] * (len(pages) - 1) + [last]
    pages[0].save(file, "GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0)
    return file.getvalue()


def draw(
    name: str, env: Env | World, network: Network, params: Params, keys: torch.Tensor, seeds: Sequence[int],
    returns: NDArray[np.float64], progress: evaluate.Progress | None = None, fast: evaluate.Play | None = None,
    epsilon: float = 0.0, limit: int | None = None,
) -> tuple[bytes, Film]:  # fmt: skip
    """A GIF of an episode of the best, the median and the worst lane, which have played returns [S, N], NaN where they
    have failed: of each the typical one, as far as `limit` steps where that is given.

    `name` is that of the environment; params [S, ...], keys [S, 2] and seeds [S] are the lanes'. Raises ValueError
    where it does not render and where all lanes have failed.
    """
    means = returns.mean(1)
    parts = cast(means)
    lanes = list(parts.values())
    some, chosen = {name: x[lanes] for name, x in params.items()}, [typical(returns[lane]) for lane in lanes]
    if isinstance(env, World):
        scenes = outside(name, env, network, some, keys[lanes], returns.shape[1], chosen, epsilon, limit)
    else:
        scenes = native(name, env, network, some, keys[lanes], returns.shape[1], chosen, fast, epsilon, limit)
    with contextlib.closing(scenes):
        film = thinned(scenes if progress is None else _told(scenes, progress))
    each = zip(parts, lanes, film.scenes[-1].returns, strict=True)
    titles = [f"{part}: seed {seeds[i]}, {shown:.1f} (mean {means[i]:.1f})" for part, i, shown in each]
    return gif(titles, film), film


def check_renders(name: str, env: Env | World) -> None:
    """Raise ValueError where `name` does not render, with what to do about it."""
    check.kind("env", env, Env, World)
    try:
        if isinstance(env, Env):
            with paint.painter(name, env.spec, envs.GYMNASIUM.get(name)) as painted:
                check_frame(name, painted(np.zeros(env.spec.obs_shape)))
            return
        with _opened(name, env, 1) as games:
            games.reset([[0]])
            check_frame(name, games.frames()[0])
    except Exception as error:  # whatever somebody's code may raise
        lacks = ImportError, gymnasium.error.DependencyNotInstalled
        cause = error if isinstance(error, lacks) else error.__cause__ or error  # a world's sentence is of something
        words = " ".join(str(cause).split()) or type(cause).__name__
        if words.startswith("video: "):
            raise
        if isinstance(cause, lacks):
            lacking = words.partition(", run ")[0]
            raise ValueError(
                f"video: expected what {name} is drawn with, got: {lacking}; pip install 'fdqn[video]'"
            ) from error
        raise ValueError(f"video: expected an environment that renders, got {name}: {words}") from error


def check_frame(name: str, frame: Any) -> None:
    """Raise ValueError unless it is a picture, uint8 [H, W, 3]; `name` is for the message."""
    shape, dtype = np.shape(frame), getattr(frame, "dtype", type(frame).__name__)
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"video: expected pictures [H, W, 3] of uint8 of {name}, got {list(shape)} of {dtype}")


def _opened(name: str, world: World, lanes: int) -> contextlib.closing:
    if world.film is None:
        raise ValueError(f"video: expected an environment that renders, got {name}, a World without film")
    return contextlib.closing(world.film(lanes))


def _told(scenes: Iterable[Scene], progress: evaluate.Progress) -> Iterator[Scene]:
    for i, scene in enumerate(scenes):
        progress(int(scene.ended.sum()), i)
        yield scene


def _standing(scenes: Iterable[Scene]) -> Iterator[Scene]:
    """The same, until all have ended; where one has, or broke, its last picture and its return stand."""
    before = None
    for scene in scenes:
        if before is not None:
            pictures = zip(before.frames, scene.frames, before.ended, strict=True)
            scene = scene._replace(frames=[old if over or new is None else new for old, new, over in pictures])
        yield scene
        before = scene
        if scene.ended.all():
            return


def _small(scene: Scene) -> Scene:
    """With pictures that are no larger than `SIDE`."""
    from PIL import Image

    def small(frame: Frame) -> Frame:
        if max(frame.shape[:2]) <= SIDE:
            return np.array(frame)  # whoever drew it may draw over it
        picture = Image.fromarray(frame)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(picture)

    return scene._replace(frames=[small(frame) for frame in scene.frames])


def _page(titles: Sequence[str], frames: Sequence[Frame]) -> "Image.Image":
    """The lanes side by side, each a picture in the middle of its column, under its title."""
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
    """As large as whole pixels become in `SIDE`."""
    from PIL import Image

    times = max(1, SIDE // max(frame.shape[:2]))
    return Image.fromarray(np.repeat(np.repeat(frame, times, 0), times, 1))
