"""Environments outside torch: what a learner is told of them is what they did, however they restart."""

import dataclasses
import itertools
import json
import math
import re
import shlex
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest import mock

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from fdqn import cli, compile, envs, random, replay, training, tree
from fdqn.envs.host import gymnasium as gym
from fdqn.envs.host import vector, watchdog
from fdqn.envs.host.spaces import encoding
from fdqn.experiment import assemble, history, results, run_folder
from fdqn.experiment.settings import Settings
from fdqn.ops import exploration
from fdqn.storage import checkpoint
from fdqn.testing import asserts
from fdqn.training import evaluate, host, streams, transfer
from fdqn.types import HostEnv, Transition

pytestmark = pytest.mark.usefixtures("light_runs")
MODES = list(AutoresetMode)


class Told(gymnasium.Env):
    """Shows its seed, episode and step; an episode lasts as long as a draw says; nothing is legal once a task ended.

    Odd episodes are truncated, even ones terminate. `where` says how it tells what may be done.
    """

    def __init__(self, where="obs", actions=3, start=2):
        self.where, self.action_space = where, spaces.Discrete(actions, start=start)
        told = spaces.Box(-np.inf, np.inf, (4,), np.float64)
        mask = spaces.Box(0, 1, (actions,), np.int8)
        self.observation_space = spaces.Dict({"told": told, "action_mask": mask}) if where == "obs" else told
        self.seed, self.episode, self.over = 0, -1, True

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.seed, self.episode = seed % 1000, -1
        self.episode, self.time, self.over = self.episode + 1, 0, False
        self.length = int(self.np_random.integers(1, 6))
        return self.shown(-1), self.info()

    def mask(self):
        """Everything but what the step says; nothing at all once the task has ended."""
        mask = np.ones(self.action_space.n, np.int8)
        mask[(self.time + self.episode) % self.action_space.n] = 0
        return mask * (not (self.over and self.episode % 2 == 0))

    def info(self):
        return {"action_mask": self.mask()} if self.where == "info" else {}

    def shown(self, action):
        told = np.array([self.seed, self.episode, self.time, action], np.float64)
        return {"told": told, "action_mask": self.mask()} if self.where == "obs" else told

    def step(self, action):
        assert not self.over, "nobody may act after the end"
        assert self.action_space.contains(action)
        if self.where != "nowhere":
            assert self.mask()[action - self.action_space.start], "an illegal action was chosen"
        self.time += 1
        self.over = self.time == self.length
        ended = self.over and self.episode % 2 == 0, self.over and self.episode % 2 == 1
        return self.shown(action), 10.0 * self.episode + self.time, *ended, self.info()


def told(mode, where="obs"):
    return gym.from_vector("told", lambda count: SyncVectorEnv([partial(Told, where)] * count, autoreset_mode=mode))


def transitions(world, lanes=2, num_envs=3, steps=60):
    """What a learner is told of every step; actions follow from what is seen, so they are alike in any mode."""
    games = world.open(lanes, num_envs)
    step = games.reset([[7 * lane + i for i in range(num_envs)] for lane in range(lanes)])
    seen = []
    for _ in range(steps):
        obs, legal = step.obs, step.legal
        wish = (obs[..., 2].long() + 1).unsqueeze(-1) % world.spec.actions
        action = torch.where(legal.gather(-1, wish), wish, legal.long().argmax(-1, keepdim=True)).squeeze(-1)
        answer = games.step(action.numpy())
        step = answer.step
        row = replay.transition(obs, action, step)
        for lane, i in np.argwhere(answer.valid.numpy()):
            seen.append(tuple(tuple(np.ravel(x).tolist()) for x in tree.leaves(tree.index(row, (lane, i)))))
    games.close()
    return seen


def of_first_episodes(seen, count):
    """Transitions of the first episodes of each environment, by seed and episode."""
    return Counter(row for row in seen if row[0][1] < count)


@pytest.mark.parametrize("where", ["obs", "info", "nowhere"])
def test_the_three_autoreset_modes_tell_the_same(where):
    expected, *others = (transitions(told(mode, where)) for mode in MODES)
    fewest = 6
    assert len(of_first_episodes(expected, fewest)) > 60
    for other in others:
        assert of_first_episodes(other, fewest) == of_first_episodes(expected, fewest)


@pytest.mark.parametrize("where", ["obs", "info", "nowhere"])
@pytest.mark.parametrize("mode", MODES)
def test_no_transition_crosses_an_episode(mode, where):
    seen = [Transition(*row) for row in transitions(told(mode, where))]
    lengths = {}
    for row in seen:
        (seed, episode, time_, _), (seed_after, episode_after, time_after, done) = row.obs, row.next_obs
        assert (seed, episode, time_ + 1) == (seed_after, episode_after, time_after)
        assert row.reward == (10 * episode + time_after,)
        assert done == row.action[0] + 2, "what the environment saw is what was chosen, counted from its start"
        place = seed, episode
        lengths[place] = max(lengths.get(place, 0), time_after)
    ends = [row for row in seen if row.discount == (0.0,)]
    assert ends
    assert all(row.obs[1] % 2 == 0 and row.next_obs[2] == lengths[row.obs[0], row.obs[1]] for row in ends)
    if where != "nowhere":
        assert all(not any(row.next_legal) for row in ends), "nothing may be done once the task has ended"
        rest = [row for row in seen if row.discount == (1.0,)]
        assert all(
            sum(row.next_legal) == 2 and not row.next_legal[int(row.next_obs[2] + row.next_obs[1]) % 3] for row in rest
        )


def test_a_world_that_forgot_the_last_observation_would_be_seen():
    """The bug that most have: after an end, the first observation of the next episode as the last of this one."""
    world = told(AutoresetMode.DISABLED)

    def opened(lanes, num_envs):
        games = world.open(lanes, num_envs)
        right = games.step
        games.step = lambda actions: (a := right(actions))._replace(step=a.step._replace(next_obs=a.step.obs))
        return games

    wrong = [Transition(*row) for row in transitions(HostEnv(opened, world.spec))]
    assert any(row.obs[1] != row.next_obs[1] for row in wrong)


def test_what_a_lane_does_does_not_depend_on_how_many_there_are():
    alone, many = transitions(told(MODES[0]), lanes=1), transitions(told(MODES[0]), lanes=3)
    assert alone == [row for row in many if row[0][0] < 7]
    assert len(many) > 2 * len(alone)


SPACES = [
    spaces.Box(-1, 1, (2, 3), np.float32),
    spaces.Box(-1, 1, (), np.float64),
    spaces.Box(0, 255, (4, 5), np.uint8),
    spaces.Box(-9, 9, (2,), np.int64),
    spaces.Discrete(5, start=-2),
    spaces.MultiBinary((2, 3)),
    spaces.MultiDiscrete([2, 3]),
    spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(3))),
    spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3), "action_mask": spaces.MultiBinary(7)}),
    spaces.Dict({"only": spaces.Box(0, 255, (3, 2), np.uint8), "action_mask": spaces.MultiBinary(7)}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
@given(seed=st.integers(0, 2**16), count=st.integers(1, 5))
@hypothesis(max_examples=20, deadline=None)
def test_encoded_observations_are_gymnasium_s_flattened_ones(space, seed, count):
    space.seed(seed)
    samples = [space.sample() for _ in range(count)]
    batch = gymnasium.vector.utils.concatenate(space, samples, gymnasium.vector.utils.create_empty_array(space, count))
    how = encoding(space)
    encoded = how.encode(batch)
    assert (encoded.dtype, encoded.shape) == (how.dtype, (count, *how.shape))
    plain = space
    if isinstance(space, spaces.Dict):
        plain = spaces.Dict({k: v for k, v in space.items() if k != "action_mask"})
        samples = [{k: v for k, v in x.items() if k != "action_mask"} for x in samples]
    expected = np.stack([spaces.flatten(plain, x) for x in samples]).astype(np.float32)
    np.testing.assert_array_equal(encoded.reshape(count, -1).astype(np.float32), expected)
    encoded[:] = 0  # memory of its own
    np.testing.assert_array_equal(how.encode(batch).reshape(count, -1).astype(np.float32), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("height", "width", "channels"), [(84, 84, 1), (84, 84, 9), (210, 160, 3), (10, 10, 4), (10, 10, 7), (17, 18, 16)]
)
def test_pictures_have_their_channels_first(height, width, channels, dtype):
    space = spaces.Box(0, 1 if dtype == np.bool_ else 255, (height, width, channels), dtype)
    batch = np.stack([space.sample() for _ in range(3)])
    how = encoding(space)
    assert how.shape == (channels, height, width)
    assert how.dtype == (dtype if dtype in (np.uint8, np.bool_) else np.float32)
    encoded = how.encode(batch)
    assert encoded.flags.c_contiguous
    assert encoded.dtype == how.dtype
    for c in range(channels):
        np.testing.assert_array_equal(encoded[:, c], batch[..., c].astype(how.dtype))
    stacked = spaces.Box(0, 1, (channels, height, width), dtype)
    assert encoding(stacked).shape == (channels, height, width), "they are first already"


@pytest.mark.parametrize("shape", [(7, 7, 3), (2, 3, 4), (9, 84, 3), (84, 84, 17), (20, 10, 10), (9, 9, 9), (12, 11)])
def test_what_are_no_pictures_stays_as_it_is(shape):
    batch = np.arange(2 * np.prod(shape), dtype=np.float32).reshape(2, *shape)
    how = encoding(spaces.Box(0, np.inf, shape, np.float32))
    assert how.shape == shape
    np.testing.assert_array_equal(how.encode(batch), batch)


@pytest.mark.parametrize("name", ["asterix", "breakout", "freeway", "seaquest", "space_invaders"])
def test_boards_of_the_minatar_package_become_ours(name):
    """It has the channels last: of Seaquest, which has ten, no size says so."""
    channels, height, width = shape = envs.make(f"minatar:{name}").spec.obs_shape
    space = spaces.Box(0, 1, (height, width, channels), np.bool_)
    how, board = encoding(space), space.sample()
    assert how.shape == shape
    np.testing.assert_array_equal(how.encode(board[None])[0], np.moveaxis(board, 2, 0))


@pytest.mark.parametrize(
    ("space", "batch", "got"),
    [
        (spaces.Discrete(3), [0, 5], "5"),
        (spaces.Discrete(3), [-1], "-1"),
        (spaces.Discrete(3, start=2), [2, 4, 1], "1"),
        (spaces.MultiDiscrete([2, 3]), [[1, 2], [2, 1]], "[2 1]"),
        (spaces.MultiDiscrete([2, 3]), [[-1, 3]], "[-1  3]"),
        (spaces.MultiBinary(3), [[0, 1, 1], [0, 2, 1]], "2"),
        (spaces.MultiBinary((1, 2)), [[[0, -1]]], "-1"),
    ],
)
def test_observations_outside_of_their_space_are_refused(space, batch, got):
    says = f"^env: expected observations in {re.escape(f'{space}, got {got}')}$"
    with pytest.raises(ValueError, match=says):
        encoding(space).encode(np.array(batch))
    with pytest.raises(ValueError, match=says):
        encoding(spaces.Dict({"a": spaces.Discrete(4), "b": space})).encode(
            {"a": np.arange(len(batch)), "b": np.array(batch)}
        )


class Leaving(gymnasium.Env):
    """Counts its steps, beyond what its space has."""

    observation_space, action_space = spaces.Discrete(3), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.time, {}

    def step(self, action):
        self.time += int(action)
        return self.time, 0.0, False, False, {}


def test_an_environment_that_leaves_its_space_ends_its_lane():
    games = gym.from_factory("leaving", Leaving).open(2, 1)
    games.reset([[1], [2]])
    for _ in range(3):
        games.step(np.array([[1], [0]]))
    games.close()
    assert games.broken == {0: "env: expected observations in Discrete(3), got 3"}


class Looking(gymnasium.Env):
    """Shows noise of a given space."""

    action_space = spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, bool(self.np_random.random() < 0.3), {}


@pytest.mark.parametrize(
    ("space", "first"),
    [
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), (8, 147)),
        (spaces.Box(-1, 1, (2, 3, 4), np.float32), (8, 24)),
        (spaces.Box(0, 1, (84, 84, 3), np.float32), (32, 3, 8, 8)),
        (spaces.Box(0, 255, (40, 36, 9), np.uint8), (32, 9, 8, 8)),
        (spaces.Box(0, 1, (10, 10, 4), np.bool_), (16, 4, 3, 3)),
        (spaces.Box(0, 1, (10, 10, 4), np.float64), (16, 4, 3, 3)),
        (spaces.Box(0, 255, (4, 40, 40), np.uint8), (32, 4, 8, 8)),
    ],
    ids=str,
)
def test_any_three_axes_are_trained_on(monkeypatch, space, first):
    """With a convolution where one fits, else with the layers asked for."""
    world = gym.from_factory("looking", partial(Looking, space))
    monkeypatch.setattr(envs, "find", lambda name: world)
    layers = (8,) if len(first) == 2 else Settings.hidden
    last = trained(dataclasses.replace(SETTINGS, env="looking", hidden=layers, steps=24))
    assert tuple(last.state.learner.params["0.weight"].shape) == (2, *first)
    assert last.state.metrics.failed.tolist() == [-1, -1]
    assert (last.state.learner.updates > 0).all()


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Sequence(spaces.Discrete(2)), spaces.Dict({})], ids=str)
def test_other_spaces_are_refused(space):
    with pytest.raises(ValueError, match="env: expected observations of a Box, Discrete"):
        encoding(space)


# Training


SETTINGS = Settings(
    env="gym:CartPole-v1", seeds=2, steps=120, num_envs=3, batch_size=8, capacity=40, learning_starts=12, n_step=1,
    target_period=4, hidden=(8,), report_every=30, checkpoint_every=0, compile=False,
)  # fmt: skip


def trained(settings, world=None, parts=None, cycles=None):
    """The lanes after a run."""
    program = assemble.program(settings)
    games = (world or envs.find(settings.env)).open(settings.seeds, settings.num_envs)
    state = host.start(program, games, training.init(program, assemble.hyper(settings), assemble.keys(settings)))
    functions = host.functions(program, games, (parts or host.vmapped)(program))
    steps = settings.steps if cycles is None else cycles * program.config.env_steps
    *_, last = training.run(program, state, steps, functions, settings.report_every, at_once=1)
    games.close()
    return last


def test_a_warmup_in_a_world_is_uniformly_random():
    """Actions are the drawn ones until the first cycle that learns."""
    settings = dataclasses.replace(SETTINGS, random_warmup=True, epsilon_start=0.0, epsilon_end=0.0, capacity=120)
    program, keys = assemble.program(settings), assemble.keys(settings)
    actions = trained(settings).state.buffer.rows.action
    warm = math.ceil(settings.learning_starts / 3)
    drawn = [(training.noise(program, keys, i, 1).act[0, :, 0, :, 1] * 2).long() for i in range(warm + 3)]
    same = [torch.equal(actions[:, 3 * i : 3 * i + 3], drawn[i]) for i in range(warm + 3)]
    assert same[:warm] == [True] * warm
    assert not all(same[warm:])


def test_a_run_whose_steps_go_through_one_buffer_is_the_same(monkeypatch):
    """As on CUDA, but for the streams; an eager state keeps observations of the step before."""
    plain = trained(SETTINGS)
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    monkeypatch.setattr(transfer, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(transfer, "uploads", transfer._through_pinned_memory)
    monkeypatch.setattr(transfer, "downloads", transfer._through_pinned_array)
    asserts.assert_trees_equal(plain.state, trained(SETTINGS).state)


def test_a_run_in_a_world_is_a_plain_loop_over_gymnasium():
    """The whole of it, written down once more for one lane and plain environments."""
    settings = SETTINGS
    program, hyper, keys = assemble.program(settings), assemble.hyper(settings), assemble.keys(settings)
    last = trained(settings)
    for lane in range(2):
        own, key = tree.index(hyper, lane), keys[lane]
        state = tree.index(training.init(program, hyper, keys), lane)
        seeds = random.bits(random.fold_in(random.fold_in(key, streams.HOST_RESET), 0), (3,)).tolist()
        games = [gymnasium.make("CartPole-v1") for _ in seeds]
        obs = np.stack([g.reset(seed=s)[0] for g, s in zip(games, seeds, strict=True)])
        every = torch.ones((3, 2), dtype=torch.bool)
        for number in range(settings.steps // 3):
            noise = tree.index(tree.index(training.noise(program, keys, number, 1), 0), lane)
            share = training.epsilon(own, torch.tensor(3 * number))
            state = state._replace(obs=torch.from_numpy(obs), legal=every, hyper=own)
            chosen = exploration.epsilon_greedy(
                program.network.apply(state.learner.params, state.obs), every, share, noise.act[0]
            )
            if number >= 4:
                state = training.learn(program, state, noise)
            rows = []
            for i, (game, action) in enumerate(zip(games, chosen.tolist(), strict=True)):
                after, reward, terminated, truncated, _ = game.step(action)
                rows.append(
                    (obs[i].copy(), action, np.float32(reward), np.float32(not terminated), after, np.ones(2, bool))
                )
                obs[i] = game.reset()[0] if terminated or truncated else after
            batch = Transition(*(torch.as_tensor(np.stack(x)) for x in zip(*rows, strict=True)))
            state = state._replace(buffer=replay.ring.add(state.buffer, batch, batch.discount == 0, None)[0])
            if number >= 4 and (number - 3) % 4 == 0:
                state = training.sync(state)
        mine = tree.index(last.state, lane)
        asserts.assert_trees_equal(mine.buffer, state.buffer)
        asserts.assert_trees_close(mine.learner, state.learner, rtol=1e-5, atol=1e-6)


def test_lanes_differ_and_the_same_key_gives_the_same_run():
    a, b = trained(SETTINGS).state, trained(SETTINGS).state
    asserts.assert_trees_equal(a, b)
    assert not torch.equal(a.obs[0], a.obs[1])
    alone = trained(dataclasses.replace(SETTINGS, seeds=1, seed=1)).state
    asserts.assert_trees_equal(tree.index(a.buffer, 1), tree.index(alone.buffer, 0))


def test_learning_beside_a_step_gives_the_same_numbers():
    """A learner that takes its time in a thread of its own, and a world that takes as long."""
    world, pool = envs.find(SETTINGS.env), ThreadPoolExecutor(1)

    def opened(lanes, num_envs):
        games = world.open(lanes, num_envs)
        step = games.step
        games.step = lambda actions: (time.sleep(0.002), step(actions))[1]
        return games

    def threaded(program):
        parts = host.vmapped(program)

        @torch.no_grad()
        def learn(state, noise):
            time.sleep(0.001)
            return parts.learn(state, noise)()

        return parts._replace(learn=lambda *given: pool.submit(learn, *given).result)

    expected = trained(SETTINGS)
    asserts.assert_trees_equal(expected.state, trained(SETTINGS, HostEnv(opened, world.spec), threaded).state)


def test_parts_of_a_cycle_are_functions_of_one_lane():
    """Of many they are the same for each, bit for bit, and nothing is written in place."""
    program, parts = assemble.program(SETTINGS), host.vmapped(assemble.program(SETTINGS))
    state = trained(SETTINGS, cycles=20).state
    before = tree.clone(state)
    u = host.interaction(training.noise(program, state.key, 20, 1), 0)
    games = envs.find(SETTINGS.env).open(2, 3)
    games.reset([[1, 2, 3], [4, 5, 6]])
    asked = parts.choose(state, u)
    answer = games.step(asked.env_state.numpy())
    games.close()
    lots = tree.map(lambda x: x.unsqueeze(0), answer)
    after = parts.finish(asked, lots)
    assert after.cycle.tolist() == [21, 21]
    asserts.assert_trees_equal(after._replace(cycle=state.cycle), parts.store(asked, lots))
    for i in range(2):
        alone = host.choose(program, tree.index(state, i), tree.index(u, (0, i)))
        asserts.assert_trees_equal(tree.index(asked, i), alone)
        asserts.assert_trees_equal(tree.index(after, i), host.finish(program, alone, tree.index(answer, i)))
        asserts.assert_trees_equal(
            tree.index(after, i)._replace(cycle=alone.cycle), host.store(program, alone, tree.index(answer, i))
        )
    asserts.assert_trees_equal(before, state)


@pytest.mark.slow
def test_compiled_and_beside_equals_eager():
    compile.prepare_cpu()
    expected, got = trained(SETTINGS), trained(SETTINGS, parts=compile.compiled_parts)
    asserts.assert_trees_equal(expected.state.buffer, got.state.buffer)
    asserts.assert_trees_close(expected.state.learner, got.state.learner, rtol=1e-4, atol=1e-5)


def test_a_run_that_is_resumed_starts_new_episodes(tmp_path, capsys):
    words = shlex.split("--env gym:CartPole-v1 --no-compile --seeds 2 --hidden 8 --report-every 100 --n-step 1")
    words += ["--steps", "1200", "--learning-starts", "600", "--out", str(tmp_path / "run")]
    assert cli.main(["train", *words]) == 0
    kept = checkpoint.newest(tmp_path / "run" / "checkpoints")[0]
    assert cli.main(["resume", str(tmp_path / "run"), "--steps", "1300"]) == 0
    assert "results differ from an uninterrupted run: gym:CartPole-v1 starts new episodes" in capsys.readouterr().err
    settings = results.plan(tmp_path / "run")[0]
    program = assemble.program(settings)
    like = {name: training.init(program, assemble.hyper(settings), assemble.keys(settings)) for name in ("lanes",)}
    since = tree.from_numpy(training.snapshot(program, like["lanes"]))
    read, _ = checkpoint.load(kept, like | {"since": since})
    games = envs.find(settings.env).open(2, settings.num_envs)
    begun = host.start(program, games, read["lanes"])
    games.close()
    for name in ("learner", "buffer", "hyper", "key", "cycle"):
        asserts.assert_trees_equal(getattr(read["lanes"], name), getattr(begun, name))
    assert begun.obs.abs().max() <= 0.05, "first observations"
    assert begun.metrics.running.eq(0).all()
    assert begun.metrics.elapsed.eq(0).all()


def test_greedy_chooses_the_loop_by_the_environment():
    program = assemble.program(SETTINGS)
    keys, params = assemble.keys(SETTINGS), program.network.init(assemble.keys(SETTINGS))
    pairs = (
        (envs.make("cartpole"), evaluate.greedy_on_device),
        (envs.find("gym:CartPole-v1"), evaluate.greedy_on_host),
    )
    for env, plain in pairs:
        ours = evaluate.greedy(env, program.network, params, keys, 3).returns
        np.testing.assert_array_equal(ours, plain(env, program.network, params, keys, 3).returns)


def test_names_of_code():
    assert [envs.is_code(name) for name in ("cartpole", "gym:X", "minatar:x", "ale:x", "a.b:c")] == [False] * 4 + [True]
    assert history.why("environment") == "its environment failed"
    assert history.why("loss") == "its loss is not finite"


def test_several_steps_a_cycle():
    settings = dataclasses.replace(SETTINGS, steps_per_cycle=4, steps=240)
    last = trained(settings)
    assert last.updates.tolist() == [19, 19]
    assert last.state.buffer.added.tolist() == [240, 240]


@pytest.mark.parametrize("valid", [[1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]])
def test_rows_that_are_none_leave_no_trace(valid):
    example = Transition(*(torch.zeros(()) for _ in range(5)), torch.zeros(2, dtype=torch.bool))
    one = two = replay.ring.init(example, 4)
    for i in range(5):
        batch = Transition(*(torch.arange(3.0) + 3 * i for _ in range(5)), torch.ones(3, 2, dtype=torch.bool))
        ended = torch.zeros(3, dtype=torch.bool)
        one, _ = replay.ring.add(one, batch, ended, torch.tensor(valid, dtype=torch.bool))
        kept = tree.index(batch, torch.tensor(valid, dtype=torch.bool))
        two = replay.ring.add(two, kept, ended[: sum(valid)], None)[0] if sum(valid) else two
        asserts.assert_trees_equal(two, one)


class Lives(gymnasium.Env):
    """Loses a life whenever it is told to, three in all, and says how many are left."""

    observation_space, action_space = spaces.Box(0, 9, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 3
        return np.zeros(1, np.float32), {"lives": self.left}

    def step(self, action):
        self.left -= int(action)
        return np.full(1, self.left, np.float32), 5.0 * action, self.left == 0, False, {"lives": self.left}


@pytest.mark.parametrize("mode", MODES)
def test_a_lost_life_is_said_once_and_is_no_end(mode):
    """In every mode, of each environment by itself; the last life is an end, and a new episode has lost none."""
    world = gym.from_vector("lives", lambda n: SyncVectorEnv([Lives] * n, autoreset_mode=mode))
    games = world.open(1, 2)
    games.reset([[1, 2]])
    left, over = [3, 3], [False, False]
    actions = np.random.default_rng(0).integers(0, 2, (60, 1, 2))
    for action in actions:
        answer = games.step(action)
        for i in range(2):
            if over[i]:  # the step that only begins an episode
                assert not answer.valid[0, i]
                assert not answer.life_lost[0, i]
                left[i], over[i] = 3, False
                continue
            left[i] -= int(action[0, i])
            assert bool(answer.life_lost[0, i]) == bool(action[0, i] and left[i] > 0)
            assert bool(answer.step.terminated[0, i]) == (left[i] == 0)
            if left[i] == 0:
                left[i], over[i] = (3, False) if mode != AutoresetMode.NEXT_STEP else (0, True)
    assert (actions == 1).sum() > 40


def test_lost_lives_are_ends_and_rewards_are_clipped_for_learning_alone(monkeypatch):
    """Beside replay, returns are of whole episodes and their own rewards."""
    world = gym.from_factory("lives", Lives)
    monkeypatch.setattr(envs, "find", lambda name: world)
    given = dataclasses.replace(SETTINGS, terminal_on_life_loss=True, clip_rewards=True, epsilon_end=1.0)
    for settings, least, most in ((given, 0.0, 1.0), (dataclasses.replace(given, clip_rewards=False), 0.0, 5.0)):
        state = trained(settings, world).state
        rows, count = state.buffer.rows, int(state.buffer.added[0])
        lost, reward = rows.obs[0, :count, 0] > rows.next_obs[0, :count, 0], rows.reward[0, :count]
        first = rows.obs[0, :count, 0] == 0  # of an episode, before a life was lost, it shows nothing yet
        lost |= first & (rows.next_obs[0, :count, 0] < 3)
        assert torch.equal(rows.discount[0, :count] == 0, lost), "every lost life is an end of learning"
        assert (reward.min(), reward.max()) == (least, most)
        kept = state.metrics.returns[0, :-1]  # the last place takes what is not kept
        ended = kept[~kept.isnan()]
        assert ended.numel() > 5
        assert ended.unique().tolist() == [15.0], "three lives of five points each"
    whole = trained(dataclasses.replace(given, terminal_on_life_loss=False), world).state.buffer
    assert (whole.rows.discount[0] == 0).sum() < lost.sum()


def test_a_world_that_stands_still_between_episodes_goes_on_learning(monkeypatch):
    """Steps that only begin an episode give no rows; a run that goes on does not take that for a replay emptied."""
    world = gym.from_vector("lives", lambda n: SyncVectorEnv([Lives] * n, autoreset_mode=AutoresetMode.NEXT_STEP))
    monkeypatch.setattr(envs, "find", lambda name: world)
    settings = dataclasses.replace(SETTINGS, learning_starts=90, epsilon_end=1.0, capacity=200)
    before = trained(settings, world)
    assert before.state.buffer.added.max() < settings.steps - 10
    program, games = assemble.program(settings), world.open(2, 3)
    state = host.start(program, games, before.state)
    functions = host.functions(program, games, host.vmapped(program))
    *_, last = training.run(program, state, settings.steps + 30, functions, 30, at_once=1)
    games.close()
    assert (last.updates - before.updates).tolist() == [10, 10]


def stored(state):
    """The ring inside of what wraps it."""
    rows = state.buffer
    while hasattr(rows, "buffer"):
        rows = rows.buffer
    return rows


def test_updates_wait_for_rows():
    """In a world the last step of a cycle is learned from in the next, and over several steps rows come later."""
    small = {"seeds": 2, "hidden": (8,), "batch_size": 8}
    world = {"env": "gym:CartPole-v1", "num_envs": 4, "steps": 400, **small}
    for settings, least in (
        (Settings(n_step=3, learning_starts=5, num_envs=4, **small), None),
        (Settings(n_step=3, learning_starts=4, num_envs=4, **small), 5),
        (Settings(n_step=3, learning_starts=17, **world), None),
        (Settings(n_step=3, learning_starts=16, **world), 17),
        (Settings(n_step=1, learning_starts=1, **world), None),
        (Settings(n_step=3, steps_per_cycle=4, learning_starts=0, num_envs=4, **small), None),
        (Settings(n_step=2, steps_per_cycle=4, learning_starts=0, **world), None),
        (Settings(n_step=3, steps_per_cycle=4, learning_starts=0, **world), 1),
    ):
        if least is not None:
            with pytest.raises(ValueError, match=f"^learning_starts: expected at least {least} "):
                assemble.program(settings)
            continue
        program = assemble.program(settings)
        state = training.init(program, assemble.hyper(settings), assemble.keys(settings))
        outside = settings.env != "cartpole"
        games = envs.find(settings.env).open(settings.seeds, settings.num_envs) if outside else None
        functions = run_folder.functions(program, dataclasses.replace(settings, compile=False), games)
        first = next(
            report
            for report in training.run(
                program, host.start(program, games, state) if outside else state, 400, functions,
                settings.num_envs * settings.steps_per_cycle, at_once=1,
            )
            if report.updates.max() > 0
        )  # fmt: skip
        assert stored(first.state).added.min() >= settings.num_envs * (2 if outside else 1)
        if games is not None:
            games.close()


class Worn(Lives):
    """Says its lives after steps only."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], {}


@pytest.mark.parametrize(
    ("made", "counts"), [(Lives, True), (Worn, True), (lambda: gymnasium.make("CartPole-v1"), False)]
)
def test_whether_lives_are_counted(made, counts):
    assert gym.from_factory("it", made).counts_lives() == counts


class Short(gymnasium.Env):
    """Every step ends an episode."""

    observation_space, action_space = spaces.Box(0, 9, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), 1.0, True, False, {}


def test_updates_wait_for_rows_where_every_second_step_begins_an_episode(monkeypatch):
    """With the fewest first steps that are allowed the first update still has a row of every environment."""
    world = gym.from_vector("short", lambda n: SyncVectorEnv([Short] * n, autoreset_mode=AutoresetMode.NEXT_STEP))
    monkeypatch.setattr(envs, "find", lambda name: world)
    for n_step in (1, 3):
        least = (2 * n_step - 2) * 4 + 1
        settings = Settings(seeds=2, num_envs=4, steps=400, hidden=(8,), batch_size=8, n_step=n_step)
        if least > 1:
            with pytest.raises(ValueError, match=f"^learning_starts: expected at least {least} in a host environment"):
                assemble.program(dataclasses.replace(settings, learning_starts=least - 1))
        program = assemble.program(dataclasses.replace(settings, learning_starts=least))
        games = world.open(2, 4)
        state = host.start(program, games, training.init(program, assemble.hyper(settings), assemble.keys(settings)))
        functions = host.functions(program, games, host.vmapped(program))
        reports = training.run(program, state, 400, functions, 4, at_once=1)
        before = None
        for report in reports:
            if report.updates.max() > 0:
                break
            before = stored(report.state).added.tolist()
        assert before == [4, 4], "exactly one row of each environment, before the update"


def test_atari_is_seeded_and_whole():
    """The same seeds give the same game; an end shows its own last frames, and rewards are clipped."""
    pytest.importorskip("ale_py")
    world, played = envs.find("ale:Pong"), []
    assert (world.spec.obs_shape, world.spec.obs_dtype, world.spec.actions) == ((4, 84, 84), torch.uint8, 6)
    for lanes in (1, 2):
        games = world.open(lanes, 2)
        step = games.reset([[3, 5], [7, 9]][:lanes])
        seen = [step.obs[0]]
        for t in range(60):
            step = games.step(np.full((lanes, 2), t % 6)).step
            seen.append(step.obs[0])
            assert step.reward.abs().max() <= 1
        games.close()
        played.append(torch.stack(seen))
    assert torch.equal(*played)
    assert not torch.equal(played[0][:, 0], played[0][:, 1])


@pytest.mark.parametrize(("name", "says"), [("ale:Pogn", "did you mean pong"), ("ale:", "ale-py has 1")])
def test_no_game_of_atari(name, says):
    pytest.importorskip("ale_py")
    with pytest.raises(ValueError, match=f"env: expected a game of ale-py, got .*{says}"):
        envs.find(name)


def test_atari_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ValueError, match=r"expected ale-py for ale:Enduro, got none; pip install 'fdqn\[atari\]'"):
        envs.find("ale:Enduro")


# What breaks


class Breaks(Told):
    """In the environment of one seed, for three steps: of an end one alone would not be seen."""

    how, at, seeds = "raises", 20, ()
    made, most = 0, 10**9
    """Instances, and how many of them can start an episode."""

    def __init__(self):
        super().__init__()
        self.steps, Breaks.made = 0, Breaks.made + 1
        self.late = Breaks.made > self.most

    def reset(self, *, seed=None, options=None):
        answer = super().reset(seed=seed)
        if self.late or (self.seed in self.seeds and self.how.startswith("starts") and self.steps >= self.at):
            raise OSError("the server is gone")
        return answer

    def step(self, action):
        self.steps += 1
        if self.seed in self.seeds and self.at <= self.steps < self.at + 3 and not self.how.startswith("starts"):
            if self.how == "raises":
                raise KeyError("the key is gone")
            if self.how == "leaves":
                sys.exit("no licence")
            if self.how == "hangs":
                time.sleep(60)
            obs, *rest = super().step(action)
            if self.how.startswith("pays"):
                return obs, {"pays no number": np.inf, "pays too much": 1e300}[self.how], *rest[1:]
            spoiled = {"NaN": ("told", np.nan), "leaves nothing to do": ("action_mask", 0)}
            key, factor = spoiled[self.how]
            return {**obs, key: obs[key] * factor}, *rest
        return super().step(action)


def seed_of(settings, lane):
    keys = random.fold_in(
        random.fold_in(assemble.keys(settings), streams.HOST_RESET), torch.zeros(settings.seeds, dtype=torch.int64)
    )
    return random.bits(keys, (settings.num_envs,))[lane, 0].item() % 1000


SAID = {
    "raises": ("environment", "the key is gone"),
    "hangs": ("environment", "no response for"),
    "leaves nothing to do": ("environment", "action_mask: expected a legal action before the end, got none"),
    "NaN": ("environment", "expected finite observations, got nan"),
    "pays no number": ("environment", "expected finite rewards, got inf"),
    "pays too much": ("environment", "expected finite rewards, got inf"),
    "leaves": ("environment", "SystemExit: no licence"),
    "starts no other episode": ("environment", "OSError: the server is gone"),
}
BREAKS = f"{__name__}:Breaks"


def break_in(path, *more):
    """Train two lanes in environments that may break, into a run folder."""
    Breaks.made = 0
    words = ["--no-compile", "--seeds", "2", "--steps", "300", "--num-envs", "3", "--batch-size", "8", "--hidden", "8"]
    words = [
        *words,
        "--n-step",
        "1",
        "--learning-starts",
        "12",
        "--capacity",
        "400",
        "--report-every",
        "30",
        "--out",
        str(path),
    ]
    assert cli.main(["train", "--env", BREAKS, *words, *more]) == 0
    return results.read_params(path, BREAKS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the lanes learn where nothing breaks."""
    return break_in(tmp_path_factory.mktemp("runs") / "whole")


@pytest.mark.parametrize("how", SAID)
def test_a_lane_whose_environment_breaks_ends_alone(tmp_path, monkeypatch, capsys, whole, how):
    cause, words = SAID[how]
    monkeypatch.setattr(vector, "TIMEOUT", 0.5)
    monkeypatch.setattr(Breaks, "how", how)
    monkeypatch.setattr(Breaks, "seeds", (seed_of(SETTINGS, 1),))
    params = break_in(tmp_path / "run")
    said = capsys.readouterr().err
    assert "seed 1 failed at step" in said
    assert words in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["failed_seeds"] == [1]
    assert [(x["seed"], x["cause"]) for x in summary["failures"]] == [(1, cause)]
    asserts.assert_trees_equal(tree.index(whole, 0), tree.index(params, 0))
    out = tmp_path / "broken.pt"  # what it learned until then is sound
    assert cli.main(["export", str(tmp_path / "run"), "--env", BREAKS, "--seed", "1", "--out", str(out)]) == 0
    asserts.assert_trees_equal(tree.index(params, 1), torch.load(out, weights_only=True))


@pytest.mark.parametrize("how", ["starts", "cannot be made"])
def test_a_lane_whose_environment_does_not_begin_ends_alone(tmp_path, monkeypatch, capsys, whole, how):
    """Neither one that cannot be made, nor one that cannot start its first episode, is more than its own lane's."""
    if how == "starts":
        monkeypatch.setattr(Breaks, "seeds", (seed_of(SETTINGS, 1),))
        monkeypatch.setattr(Breaks, "how", how)
        monkeypatch.setattr(Breaks, "at", 0)
    else:
        opened = vector.SeedEnvs

        def fails(*given):
            counted.append(given)
            if len(counted) == 2:
                raise OSError("the server is gone")
            return opened(*given)

        counted = []
        monkeypatch.setattr(vector, "SeedEnvs", fails)
    params = break_in(tmp_path / "run")
    assert "seed 1 failed at step 0: its environment failed, OSError: the server is gone" in capsys.readouterr().err
    asserts.assert_trees_equal(tree.index(whole, 0), tree.index(params, 0))


def test_a_run_whose_lanes_all_break_keeps_what_they_learned(tmp_path, monkeypatch, capsys):
    """It ends there, with its files whole and another exit code, and says so."""
    monkeypatch.setattr(Breaks, "seeds", range(1000))
    monkeypatch.setattr(Breaks, "at", 60)
    path = tmp_path / "run"
    words = ["--no-compile", "--seeds", "2", "--steps", "600", "--num-envs", "3", "--batch-size", "8", "--hidden", "8"]
    assert (
        cli.main(["train", "--env", BREAKS, *words, "--n-step", "1", "--learning-starts", "12", "--out", str(path)])
        == 1
    )
    said = capsys.readouterr().err
    assert "stopped at 180 of 600 steps, because all seeds have failed" in said
    assert "seed 1 failed at step 177: its environment failed, KeyError: 'the key is gone'" in said
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["steps"], summary["failed_seeds"]) == (180, [0, 1])
    assert [x["step"] for x in summary["failures"]] == [177, 177]
    program = assemble.program(results.plan(path, BREAKS)[0])
    first = training.init(
        program, assemble.hyper(results.plan(path, BREAKS)[0]), assemble.keys(results.plan(path, BREAKS)[0])
    )
    learned = results.read_params(path, BREAKS)
    assert not any(torch.equal(learned[name], x) for name, x in first.learner.params.items())
    monkeypatch.setattr(Breaks, "seeds", ())  # there is nobody to go on, however sound the environments are now
    assert cli.main(["resume", str(path), "--env", BREAKS]) == 1
    assert "run: expected a seed that has not failed, got " in capsys.readouterr().err


def test_seeds_that_fail_one_after_the_other_end_a_run(tmp_path, monkeypatch, capsys):
    """Also where one did in an earlier process."""
    monkeypatch.setattr(Breaks, "seeds", (seed_of(SETTINGS, 1),))
    path = tmp_path / "run"
    break_in(path)
    assert json.loads((path / "summary.json").read_text())["failed_seeds"] == [1]
    capsys.readouterr()
    monkeypatch.setattr(Breaks, "seeds", range(1000))
    assert cli.main(["resume", str(path), "--env", BREAKS, "--steps", "600"]) == 1
    said = capsys.readouterr().err
    assert re.search(r"stopped at 36\d of 600 steps, because all seeds have failed", said)
    assert re.search(r"seed 1 failed at step \d+: its environment failed; it stops learning", said)
    assert re.search(r"seed 0 failed at step 3\d\d: its environment failed, KeyError: 'the key is gone'", said)


class Leaves(Told):
    """Wants to end the process when it is closed."""

    def close(self):
        sys.exit("licence returned")


def test_what_an_environment_says_at_its_end_is_of_no_use(tmp_path):
    path, words = tmp_path / "run", ["--no-compile", "--seeds", "1", "--steps", "90", "--learning-starts", "60"]
    assert cli.main(["train", "--env", f"{__name__}:Leaves", *words, "--batch-size", "8", "--out", str(path)]) == 0
    assert (path / "curve.png").exists()


def test_a_run_is_not_resumed_where_an_environment_does_not_begin(tmp_path, monkeypatch, capsys):
    """What fails for a while costs no seed: nothing is changed until all can go on."""
    path = tmp_path / "run"
    break_in(path)
    rows, saved = (path / "metrics.csv").read_bytes(), sorted((path / "checkpoints").iterdir())
    monkeypatch.setattr(Breaks, "most", Breaks.made + 4)
    capsys.readouterr()
    assert cli.main(["resume", str(path), "--env", BREAKS, "--steps", "400"]) == 1
    said = capsys.readouterr().err
    assert "to start for all remaining seeds, got an error for seed 1: OSError: the server is gone" in said
    assert (rows, saved) == ((path / "metrics.csv").read_bytes(), sorted((path / "checkpoints").iterdir()))
    monkeypatch.setattr(Breaks, "most", 10**9)
    assert cli.main(["resume", str(path), "--env", BREAKS, "--steps", "400"]) == 0
    assert json.loads((path / "summary.json").read_text())["failed_seeds"] == []


@pytest.mark.parametrize(("most", "words"), [(9, []), (29, []), (9, ["--evaluate-every", "150"])])
def test_what_was_trained_stays_where_it_cannot_be_played(tmp_path, monkeypatch, capsys, whole, most, words):
    """Of the closing episodes, or those on the way, none can begin, or those of one lane."""
    monkeypatch.setattr(Breaks, "most", most)
    path = tmp_path / "run"
    params = break_in(path, *words)
    said = capsys.readouterr().err
    asserts.assert_trees_equal(whole, params)
    final = json.loads((path / "summary.json").read_text())["final_return"]
    if most == 9:
        assert "evaluation failed: env: expected" in said
        assert final["per_seed"] == [None, None]
    else:
        assert "seed 1 did not finish its evaluation: OSError: the server is gone" in said
        Breaks.made = 9  # and again by the command that plays
        assert cli.main(["eval", str(path), "--env", BREAKS]) == 0
        assert "seed 1 did not finish its evaluation: OSError: the server is gone" in capsys.readouterr().err
        assert final["per_seed"][0] is not None
        assert final["per_seed"][1] is None


def stuck():
    """Native code that keeps the interpreter to itself."""
    max(itertools.repeat(0, 10**8))


def test_where_it_hangs_is_shown_also_where_it_cannot_be_interrupted(capfd):
    with pytest.raises(TimeoutError, match="no response for 0 s"), watchdog.timeout(0.1):
        stuck()
    assert re.search(rf'File "{__file__}", line \d+ in stuck$', capfd.readouterr().err, re.M)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_patience_outside_of_the_main_thread_waits(capfd):
    def waited():
        with watchdog.timeout(0.01):
            time.sleep(0.1)
        return "came back"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(waited).result() == "came back"
    assert capfd.readouterr().err == ""
