"""Tests of videos: they show the evaluated episodes, in a GIF that other programs can read."""

import contextlib
import io
import itertools
import sys

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

from fdqn import envs, networks, random
from fdqn.envs import render
from fdqn.envs.host import gymnasium as gym
from fdqn.report import video
from fdqn.training import evaluate, streams
from fdqn.types import HostEnv

KEYS = random.fold_in(random.key(torch.arange(4)), 99)


def policy(name):
    env = envs.find(name)
    network = networks.mlp(env.spec.obs_shape, (8,), env.spec.actions)
    return env, network, network.init(random.fold_in(KEYS, streams.NETWORK))


def scene(frames, returns=(0.0,), ended=(False,)):
    return video.Scene(list(frames), np.array(returns), np.array(ended))


def grey(value, height=4, width=6):
    return np.full((height, width, 3), value, np.uint8)


# Which seeds and episodes are shown


@pytest.mark.parametrize(
    ("means", "places"),
    [
        ([3.0, 1.0, 2.0], {"best": 0, "median": 2, "worst": 1}),
        ([1.0, 5.0, 2.0, 4.0], {"best": 1, "median": 3, "worst": 0}),
        ([1.0, 2.0], {"best": 1, "worst": 0}),
        ([7.0], {"best": 0}),
        ([np.nan, 1.0, np.nan, 3.0, 2.0], {"best": 3, "median": 4, "worst": 1}),
        ([np.nan, -2.0], {"best": 1}),
        ([1.0, 1.0, 1.0], {"best": 0, "median": 1, "worst": 2}),
    ],
)
def test_representatives(means, places):
    assert video.representatives(np.array(means)) == places


def test_typical():
    assert video.typical(np.array([0.0, 10.0, 4.0, 5.0])) == 3
    assert video.typical(np.array([1.0, 3.0])) == 0, "the first of several equally close returns"


# Scenes


@pytest.mark.parametrize(
    "name", ["catch", "cartpole", pytest.param("acrobot", marks=pytest.mark.slow), "mountain_car", "gym:CartPole-v1"]
)
def test_a_video_shows_the_evaluated_episodes(name):
    """Compare returns with those of the evaluation, and check that the pictures change."""
    env, network, params = policy(name)
    returns = evaluate.greedy(env, network, params, KEYS, 3).returns
    some, chosen = [2, 0], [1, 2]
    scenes = video.scenes(name, env, network, {n: x[some] for n, x in params.items()}, KEYS[some], 3, chosen)
    recording = video.thinned(scenes)
    np.testing.assert_array_equal(recording.scenes[-1].returns, returns[some, chosen])
    assert recording.scenes[-1].ended.all()
    assert not recording.scenes[-2].ended.all()
    first, last = recording.scenes[0], recording.scenes[-1]
    assert all((a != b).any() for a, b in zip(first.frames, last.frames, strict=True))


@pytest.mark.parametrize("name", ["cartpole", "gym:CartPole-v1"])
def test_a_limit_applies_to_videos_and_evaluation(name):
    env, network, params = policy(name)
    returns = evaluate.greedy(env, network, params, KEYS, 3, limit=5).returns
    assert (returns == 5).all()
    _, recording = video.draw(name, env, network, params, KEYS, range(4), returns, limit=5)
    assert len(recording.scenes) == 6
    np.testing.assert_array_equal(recording.scenes[-1].returns, [5.0] * 3)


def test_the_last_picture_is_of_the_final_state():
    """Check that the ball of Catch is in the last row at the end; in a new episode it would be in the first."""
    env, network, params = policy("catch")
    recording = video.thinned(video.device_scenes("catch", env, network, params, KEYS, 1, [0] * 4))
    assert len(recording.scenes) == 10
    for t, now in enumerate(recording.scenes):
        assert all(frame.shape == (10, 5, 3) and frame[t].any() for frame in now.frames)
    assert not any(frame[0].any() for frame in recording.scenes[-1].frames)


def test_frames_of_gymnasium_equal_its_rendering():
    env, network, params = policy("gym:CartPole-v1")
    shown = list(video.host_scenes("gym:CartPole-v1", env, network, params, KEYS, 2, [1] * 4))
    plain = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    seeds = evaluate.host_seeds(KEYS, 2).tolist()
    for seed in range(4):
        obs, _ = plain.reset(seed=seeds[seed][1])
        for now in shown:
            np.testing.assert_array_equal(now.frames[seed], plain.render())
            if now.ended[seed]:
                break
            seed_params = {name: x[seed] for name, x in params.items()}
            obs, *_ = plain.step(int(network.apply(seed_params, torch.from_numpy(obs)).argmax()))
        assert now.ended[seed]
    plain.close()


@pytest.mark.parametrize("name", sorted(envs.GYMNASIUM))
def test_rendered_observations_equal_gymnasium_s_frames(name):
    """Compare the picture of an observation with that of Gymnasium's environment in the same state."""
    plain = gymnasium.make(envs.GYMNASIUM[name], render_mode="rgb_array")
    with render.renderer(name, envs.make(name).spec, envs.GYMNASIUM[name]) as draw_obs:
        obs, _ = plain.reset(seed=3)
        for t in range(30):
            np.testing.assert_array_equal(draw_obs(obs.astype(np.float64)), plain.render())
            obs, _, ended, *_ = plain.step(t % 2)
            if ended:
                break
        assert t > 5
        # The compared pictures change during an episode.
        assert (draw_obs(obs) != draw_obs(plain.reset(seed=3)[0])).any()
    plain.close()


def test_board():
    obs = np.zeros((3, 2, 2), bool)
    obs[0, 0, 0] = obs[0, 0, 1] = obs[2, 0, 1] = True
    frame = render.board(obs)
    assert frame.dtype == np.uint8
    assert frame[0].tolist() == [list(render.COLOURS[0]), list(render.COLOURS[2])], "the last plane is in front"
    assert not frame[1].any()
    many = render.board(np.ones((11, 1, 1)))
    assert many.tolist() == [[list(render.COLOURS[0])]]
    assert len(set(render.COLOURS)) == len(render.COLOURS) == 10
    assert render.board(np.ones((1, 2))).shape == (1, 2, 3)


def test_atari_is_rendered_in_colour():
    """Check that the grey observation is the scaled colour picture."""
    pytest.importorskip("ale_py")
    env = envs.find("ale:Breakout")
    vector_env = env.record(2)
    step, actions = vector_env.reset([[5], [77]]), np.array([[1], [3]])
    for _ in range(20):
        frames = vector_env.frames()
        assert [frame.shape for frame in frames] == [(210, 160, 3)] * 2
        for frame, obs in zip(frames, step.obs[:, 0, -1], strict=True):
            video.check_frame("ale:Breakout", frame)
            small = Image.fromarray(frame).convert("L").resize((84, 84), Image.Resampling.BOX)
            assert np.abs(np.asarray(small, float) - obs.numpy()).mean() < 8
        step = vector_env.step(actions).step
    assert np.abs(frames[0].astype(int) - frames[1]).max() > 0, "the two seeds play different episodes"
    vector_env.close()


class FrameEnv(gymnasium.Env):
    """Renders its time as a grey level; its step raises an error at time `broken_at`."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Discrete(9)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode=None, broken_at=None, frame=grey):
        self.render_mode, self.broken_at, self.frame = render_mode, broken_at, frame

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return 0, {}

    def step(self, action):
        self.time += 1
        if self.time == self.broken_at:
            raise RuntimeError("out of order")
        return self.time, 1.0, self.time == 5, False, {}

    def render(self):
        return self.frame(self.time)


def frame_env(**how):
    return gym.from_factory("mine:FrameEnv", lambda render_mode=None: FrameEnv(render_mode, **how))


def test_failing_and_invalid_frames_are_refused():
    """Let the frames of one seed fail, or all frames from a later step on."""
    network, params = small_network()
    made = itertools.count()

    def third_has_no_frame(render_mode=None):
        number = next(made)  # the first environment is made to check that it renders
        return FrameEnv(render_mode, frame=lambda t: 1 / 0 if number == 2 else grey(t))

    def wrong_later(t):
        return grey(t) if t < 3 else np.zeros((2, 2, 3))

    fails = gym.from_factory("mine", third_has_no_frame)
    late = gym.from_factory("late", lambda render_mode=None: FrameEnv(render_mode, frame=wrong_later))
    for env, message in (
        (fails, r"expected mine to start, got \['ZeroDivisionError: division by zero'\]"),
        (late, r"expected pictures \[H, W, 3\] of uint8 of mine, got \[2, 2, 3\] of float64"),
    ):
        with pytest.raises(ValueError, match=f"^video: {message}"):
            list(video.host_scenes("mine", env, network, params, KEYS, 1, [0] * 4))


def small_network():
    network = networks.mlp((9,), (4,), 2)
    return network, network.init(random.fold_in(KEYS, streams.NETWORK))


def test_a_user_environment_has_a_picture_of_each_step_and_the_end():
    network, params = small_network()
    with contextlib.closing(
        video.host_scenes("mine:FrameEnv", frame_env(), network, params, KEYS, 2, [0] * 4)
    ) as shown:
        scenes = list(itertools.islice(shown, 6))
    assert [now.frames[0][0, 0, 0] for now in scenes] == [0, 1, 2, 3, 4, 5]
    assert [now.ended.all() for now in scenes] == [False] * 5 + [True]
    assert scenes[5].returns.tolist() == [5.0] * 4


def test_a_failed_seed_keeps_its_last_picture():
    network, params = small_network()
    made = []

    def make(render_mode=None):
        made.append(
            FrameEnv(render_mode, broken_at=3 if len(made) == 2 else None)
        )  # one to check, one of seed 0, one of seed 1
        return made[-1]

    scenes = video.host_scenes(
        "mine:FrameEnv", gym.from_factory("mine:FrameEnv", make), network, params, KEYS, 1, [0] * 4
    )
    recording = video.thinned(scenes)
    assert [now.frames[1][0, 0, 0] for now in recording.scenes] == [0, 1, 2, 2, 2, 2]
    assert [now.frames[0][0, 0, 0] for now in recording.scenes] == [0, 1, 2, 3, 4, 5]
    assert np.isnan(recording.scenes[-1].returns).tolist() == [False, True, False, False]


# Thinning and encoding


def test_thinned_keeps_all_of_few_steps():
    scenes = [scene([grey(t)], [t], [t == 9]) for t in range(10)]
    recording = video.thinned(scenes, 10)
    assert recording.every == 1
    assert [now.frames[0][0, 0, 0] for now in recording.scenes] == list(range(10))


@pytest.mark.parametrize(("count", "every", "kept"), [(11, 2, 6), (12, 2, 7), (20, 2, 11), (21, 4, 6), (200, 32, 8)])
def test_thinned_keeps_each_nth_step_and_the_last(count, every, kept):
    recording = video.thinned((scene([grey(t % 256)], [t], [t == count - 1]) for t in range(count)), 10)
    assert (recording.every, len(recording.scenes)) == (every, kept)
    times = [int(now.returns[0]) for now in recording.scenes]
    assert times[:-1] == list(range(0, count - 1, every))
    assert times[-1] == count - 1


def test_thinned_ends_with_the_longest_episode_and_repeats_last_frames():
    def scenes():
        for t in range(8):
            yield scene([grey(t), grey(10 + t)], [t, t], [t >= 2, t >= 5])

    recording = video.thinned(scenes())
    assert [now.frames[0][0, 0, 0] for now in recording.scenes] == [0, 1, 2, 2, 2, 2]
    assert [now.frames[1][0, 0, 0] for now in recording.scenes] == [10, 11, 12, 13, 14, 15]


def test_thinned_copies_frames_that_are_drawn_in_place():
    canvas = grey(0)

    def scenes():
        for t in range(3):
            canvas[:] = t
            yield scene([canvas], [t], [t == 2])

    assert [now.frames[0][0, 0, 0] for now in video.thinned(scenes()).scenes] == [0, 1, 2]


def test_thinned_shrinks_large_pictures():
    recording = video.thinned([scene([grey(1, 400, 600)], [0.0], [True])])
    assert recording.scenes[0].frames[0].shape == (213, 320, 3)


def frames_of(content):
    image, pages, durations = Image.open(io.BytesIO(content)), [], []
    for i in range(image.n_frames):
        image.seek(i)
        pages.append(np.asarray(image.convert("RGB")).astype(int))
        durations.append(image.info["duration"])
    return image, pages, durations


def test_gif_holds_the_drawn_frames():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    recording = [scene([np.full((2, 4, 3), c, np.uint8), grey(9 * t, 2, 4)], [0.0] * 2) for t, c in enumerate(colours)]
    image, pages, durations = frames_of(video.gif(["left", "right"], video.Recording(recording, 1)))
    assert image.info["loop"] == 0, "the GIF repeats forever"
    assert durations == [50, 50, 2000]
    assert len({page.shape for page in pages}) == 1
    for page, colour in zip(pages, colours, strict=True):
        cells = np.abs(page - colour).max(-1) < 8
        assert cells.sum() == 320 * 160, "a cell covers whole pixels, and no other pixel has its colour"
        rows, columns = np.nonzero(cells)
        assert (np.ptp(rows), np.ptp(columns)) == (159, 319)


def test_gif_does_not_cut_titles():
    """Draw a title that is much wider than the picture; no letter may touch the margin."""
    title = "median: seed 4294967295, -12345.6 (mean -12345.6)"
    _, pages, _ = frames_of(video.gif([title, title], video.Recording([scene([grey(9, 8, 2)] * 2, [0.0] * 2)], 1)))
    above = pages[0][: video.TITLE - 2].max(-1) < 128
    assert above.sum() > 500, "the title is drawn"
    columns = np.flatnonzero(above.any(0))
    assert columns[0] >= video.EDGE / 2
    assert columns[-1] < above.shape[1] - video.EDGE / 2
    gap = np.diff(columns).max()
    assert gap > video.EDGE, "titles do not touch"
    assert not pages[0][:2].min() < 128, "titles are not cut off at the top"


def test_size_of_a_gif():
    """Check that unchanged pixels of 600 frames take almost no space."""
    noise = (random.uniform(random.key(1), (600, 20, 20, 3)) * 255).to(torch.uint8).numpy()
    still = grey(200, 160, 320)
    scenes = [scene([np.concatenate([np.concatenate([x, still[:20, 20:]], 1), still[20:]])]) for x in noise]
    assert len(video.gif(["noise"], video.Recording(scenes, 1))) < 1_000_000


@pytest.mark.parametrize("name", ["catch", "gym:CartPole-v1"])
def test_draw_titles_name_seed_and_return(name, monkeypatch):
    env, network, params = policy(name)
    returns = evaluate.greedy(env, network, params, KEYS, 3).returns
    returns[2] = np.nan
    titles, calls, original = [], [], video.gif
    monkeypatch.setattr(video, "gif", lambda given, recording: titles.extend(given) or original(given, recording))
    content, recording = video.draw(
        name, env, network, params, KEYS, range(7, 11), returns, progress=lambda *x: calls.append(x)
    )
    assert len(frames_of(content)[1]) <= len(recording.scenes)
    places = video.representatives(returns.mean(1))
    assert 2 not in places.values()
    for title, (place, seed) in zip(titles, places.items(), strict=True):
        shown = returns[seed][video.typical(returns[seed])]
        assert title == f"{place}: seed {7 + seed}, {shown:.1f} (mean {returns[seed].mean():.1f})"
    assert calls[-1] == (3, len(calls) - 1)


# Environments that do not render


@pytest.mark.parametrize("name", ["catch", "cartpole", "minatar:seaquest", "gym:CartPole-v1"])
def test_check_renders_accepts_environments_that_render(name):
    video.check_renders(name, envs.find(name))


@pytest.mark.parametrize("name", ["cartpole", "gym:CartPole-v1"])
def test_a_missing_renderer_is_refused(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "pygame", None)
    message = rf"expected the packages that render {name}, got: pygame is not installed; pip install 'fdqn\[video\]'"
    with pytest.raises(ValueError, match=message):
        video.check_renders(name, envs.find(name))


NOT_RENDERED = {
    "no mode": (
        gym.from_factory("name", lambda: FrameEnv()),
        "an environment that renders, got name: render_mode: expected 'rgb_array', got None",
    ),
    "no frame": (frame_env(frame=lambda t: None), r"pictures \[H, W, 3\] of uint8 of name, got \[\] of NoneType"),
    "floats": (frame_env(frame=lambda t: np.zeros((2, 2, 3))), r"got \[2, 2, 3\] of float64"),
    "grey": (frame_env(frame=lambda t: np.zeros((2, 2), np.uint8)), r"got \[2, 2\] of uint8"),
    "raises": (frame_env(frame=lambda t: 1 / 0), "an environment that renders, got name: division by zero"),
    "no recording": (HostEnv(None, envs.make("catch").spec), "got name, a HostEnv without record"),
    "no board": (
        envs.make("cartpole"),
        r"got name, whose observations are \[4\] of torch.float32; of pure environments, boards are drawn",
    ),
}


@pytest.mark.parametrize("name", NOT_RENDERED)
def test_environments_that_do_not_render_are_refused(name):
    env, message = NOT_RENDERED[name]
    with pytest.raises(ValueError, match=f"^video: expected .*{message}"):
        video.check_renders("name", env)
