"""Tests of host environments: autoreset modes, observation spaces, training, and environments that fail."""

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

pytestmark = pytest.mark.usefixtures("unchecked_iterations")

pytestmark = pytest.mark.usefixtures("light_runs")
MODES = list(AutoresetMode)


class LabeledEnv(gymnasium.Env):
    """Observes its seed, episode, step and last action. Episodes have random lengths: odd ones are truncated, even ones
    terminate in a state without legal actions. `where` selects where the action mask is: "obs", "info" or "nowhere".
    """

    def __init__(self, where="obs", actions=3, start=2):
        self.where, self.action_space = where, spaces.Discrete(actions, start=start)
        label = spaces.Box(-np.inf, np.inf, (4,), np.float64)
        mask = spaces.Box(0, 1, (actions,), np.int8)
        self.observation_space = spaces.Dict({"label": label, "action_mask": mask}) if where == "obs" else label
        self.seed, self.episode, self.over = 0, -1, True

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.seed, self.episode = seed % 1000, -1
        self.episode, self.time, self.over = self.episode + 1, 0, False
        self.length = int(self.np_random.integers(1, 6))
        return self.shown(-1), self.info()

    def mask(self):
        """Forbid one action, which depends on the step; forbid all of them after termination."""
        mask = np.ones(self.action_space.n, np.int8)
        mask[(self.time + self.episode) % self.action_space.n] = 0
        return mask * (not (self.over and self.episode % 2 == 0))

    def info(self):
        return {"action_mask": self.mask()} if self.where == "info" else {}

    def shown(self, action):
        label = np.array([self.seed, self.episode, self.time, action], np.float64)
        return {"label": label, "action_mask": self.mask()} if self.where == "obs" else label

    def step(self, action):
        assert not self.over, "step() was called after the end of the episode"
        assert self.action_space.contains(action)
        if self.where != "nowhere":
            assert self.mask()[action - self.action_space.start], "an illegal action was chosen"
        self.time += 1
        self.over = self.time == self.length
        ended = self.over and self.episode % 2 == 0, self.over and self.episode % 2 == 1
        return self.shown(action), 10.0 * self.episode + self.time, *ended, self.info()


def labeled_env(mode, where="obs"):
    return gym.from_vector("labeled", lambda n: SyncVectorEnv([partial(LabeledEnv, where)] * n, autoreset_mode=mode))


def transitions(env, seeds=2, num_envs=3, steps=60):
    """Return the transitions that a learner stores. Actions depend on observations alone: all modes choose the same."""
    vector_env = env.open(seeds, num_envs)
    step = vector_env.reset([[7 * seed + i for i in range(num_envs)] for seed in range(seeds)])
    seen = []
    for _ in range(steps):
        obs, legal = step.obs, step.legal
        wanted = (obs[..., 2].long() + 1).unsqueeze(-1) % env.spec.actions
        action = torch.where(legal.gather(-1, wanted), wanted, legal.long().argmax(-1, keepdim=True)).squeeze(-1)
        output = vector_env.step(action.numpy())
        step = output.step
        row = replay.transition(obs, action, step)
        for seed, i in np.argwhere(output.valid.numpy()):
            seen.append(tuple(tuple(np.ravel(x).tolist()) for x in tree.leaves(tree.index(row, (seed, i)))))
    vector_env.close()
    return seen


def first_episodes(seen, count):
    """Count the transitions of the first `count` episodes of each environment."""
    return Counter(row for row in seen if row[0][1] < count)


@pytest.mark.parametrize("where", ["obs", "info", "nowhere"])
def test_autoreset_modes_give_the_same_transitions(where):
    expected, *others = (transitions(labeled_env(mode, where)) for mode in MODES)
    fewest = 6
    assert len(first_episodes(expected, fewest)) > 60
    for other in others:
        assert first_episodes(other, fewest) == first_episodes(expected, fewest)


@pytest.mark.parametrize("where", ["obs", "info", "nowhere"])
@pytest.mark.parametrize("mode", MODES)
def test_no_transition_crosses_an_episode_end(mode, where):
    seen = [Transition(*row) for row in transitions(labeled_env(mode, where))]
    lengths = {}
    for row in seen:
        (seed, episode, time_, _), (seed_after, episode_after, time_after, done) = row.obs, row.next_obs
        assert (seed, episode, time_ + 1) == (seed_after, episode_after, time_after)
        assert row.reward == (10 * episode + time_after,)
        assert done == row.action[0] + 2, "the environment gets the chosen action plus the start of its action space"
        key = seed, episode
        lengths[key] = max(lengths.get(key, 0), time_after)
    ends = [row for row in seen if row.discount == (0.0,)]
    assert ends
    assert all(row.obs[1] % 2 == 0 and row.next_obs[2] == lengths[row.obs[0], row.obs[1]] for row in ends)
    if where != "nowhere":
        assert all(not any(row.next_legal) for row in ends), "no action is legal after termination"
        rest = [row for row in seen if row.discount == (1.0,)]
        assert all(
            sum(row.next_legal) == 2 and not row.next_legal[int(row.next_obs[2] + row.next_obs[1]) % 3] for row in rest
        )


def test_a_lost_final_observation_is_detected():
    """Plant a common bug: use the first observation of the next episode as the final one of this episode."""
    env = labeled_env(AutoresetMode.DISABLED)

    def opened(seeds, num_envs):
        vector_env = env.open(seeds, num_envs)
        correct = vector_env.step
        vector_env.step = lambda actions: (a := correct(actions))._replace(step=a.step._replace(next_obs=a.step.obs))
        return vector_env

    wrong = [Transition(*row) for row in transitions(HostEnv(opened, env.spec))]
    assert any(row.obs[1] != row.next_obs[1] for row in wrong)


def test_transitions_do_not_depend_on_the_number_of_seeds():
    alone, many = transitions(labeled_env(MODES[0]), seeds=1), transitions(labeled_env(MODES[0]), seeds=3)
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
def test_encoding_equals_gymnasium_flatten(space, seed, count):
    space.seed(seed)
    samples = [space.sample() for _ in range(count)]
    batch = gymnasium.vector.utils.concatenate(space, samples, gymnasium.vector.utils.create_empty_array(space, count))
    encoder = encoding(space)
    encoded = encoder.encode(batch)
    assert (encoded.dtype, encoded.shape) == (encoder.dtype, (count, *encoder.shape))
    plain = space
    if isinstance(space, spaces.Dict):
        plain = spaces.Dict({k: v for k, v in space.items() if k != "action_mask"})
        samples = [{k: v for k, v in x.items() if k != "action_mask"} for x in samples]
    expected = np.stack([spaces.flatten(plain, x) for x in samples]).astype(np.float32)
    np.testing.assert_array_equal(encoded.reshape(count, -1).astype(np.float32), expected)
    encoded[:] = 0  # the encoder must return a copy
    np.testing.assert_array_equal(encoder.encode(batch).reshape(count, -1).astype(np.float32), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("height", "width", "channels"), [(84, 84, 1), (84, 84, 9), (210, 160, 3), (10, 10, 4), (10, 10, 7), (17, 18, 16)]
)
def test_images_become_channels_first(height, width, channels, dtype):
    space = spaces.Box(0, 1 if dtype == np.bool_ else 255, (height, width, channels), dtype)
    batch = np.stack([space.sample() for _ in range(3)])
    encoder = encoding(space)
    assert encoder.shape == (channels, height, width)
    assert encoder.dtype == (dtype if dtype in (np.uint8, np.bool_) else np.float32)
    encoded = encoder.encode(batch)
    assert encoded.flags.c_contiguous
    assert encoded.dtype == encoder.dtype
    for c in range(channels):
        np.testing.assert_array_equal(encoded[:, c], batch[..., c].astype(encoder.dtype))
    stacked = spaces.Box(0, 1, (channels, height, width), dtype)
    assert encoding(stacked).shape == (channels, height, width), "channels are first already"


@pytest.mark.parametrize("shape", [(7, 7, 3), (2, 3, 4), (9, 84, 3), (84, 84, 17), (20, 10, 10), (9, 9, 9), (12, 11)])
def test_shapes_that_are_not_images_are_unchanged(shape):
    batch = np.arange(2 * np.prod(shape), dtype=np.float32).reshape(2, *shape)
    encoder = encoding(spaces.Box(0, np.inf, shape, np.float32))
    assert encoder.shape == shape
    np.testing.assert_array_equal(encoder.encode(batch), batch)


@pytest.mark.parametrize("name", ["asterix", "breakout", "freeway", "seaquest", "space_invaders"])
def test_minatar_package_observations_become_channels_first(name):
    """Include Seaquest, whose ten channels cannot be told from its ten rows and columns by size."""
    channels, height, width = shape = envs.make(f"minatar:{name}").spec.obs_shape
    space = spaces.Box(0, 1, (height, width, channels), np.bool_)
    encoder, board = encoding(space), space.sample()
    assert encoder.shape == shape
    np.testing.assert_array_equal(encoder.encode(board[None])[0], np.moveaxis(board, 2, 0))


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
    message = f"^env: expected observations in {re.escape(f'{space}, got {got}')}$"
    with pytest.raises(ValueError, match=message):
        encoding(space).encode(np.array(batch))
    with pytest.raises(ValueError, match=message):
        encoding(spaces.Dict({"a": spaces.Discrete(4), "b": space})).encode(
            {"a": np.arange(len(batch)), "b": np.array(batch)}
        )


class OutOfSpaceEnv(gymnasium.Env):
    """Observes a counter that exceeds its observation space."""

    observation_space, action_space = spaces.Discrete(3), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.time, {}

    def step(self, action):
        self.time += int(action)
        return self.time, 0.0, False, False, {}


def test_an_observation_outside_of_its_space_ends_its_seed():
    vector_env = gym.from_factory("out-of-space", OutOfSpaceEnv).open(2, 1)
    vector_env.reset([[1], [2]])
    for _ in range(3):
        vector_env.step(np.array([[1], [0]]))
    vector_env.close()
    assert vector_env.broken == {0: "env: expected observations in Discrete(3), got 3"}


class NoiseEnv(gymnasium.Env):
    """Observes samples of a given space."""

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
def test_observations_of_any_three_axes_can_be_trained_on(monkeypatch, space, first):
    """Expect a convolution where one fits, else the given hidden layers."""
    env = gym.from_factory("noise", partial(NoiseEnv, space))
    monkeypatch.setattr(envs, "find", lambda name: env)
    layers = (8,) if len(first) == 2 else Settings.hidden
    last = trained(dataclasses.replace(SETTINGS, env="noise", hidden=layers, steps=24))
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


def trained(settings, env=None, parts=None, iterations=None):
    """Return the last report of a run."""
    program = assemble.program(settings)
    vector_env = (env or envs.find(settings.env)).open(settings.seeds, settings.num_envs)
    state = host.start(program, vector_env, training.init(program, assemble.hyper(settings), assemble.keys(settings)))
    functions = host.functions(program, vector_env, (parts or host.vmapped)(program))
    steps = settings.steps if iterations is None else iterations * program.config.env_steps
    *_, last = training.run(program, state, steps, functions, settings.report_every, at_once=1)
    vector_env.close()
    return last


def test_warmup_in_host_environments_is_uniformly_random():
    """Compare actions with the drawn random ones until the first training iteration that learns."""
    settings = dataclasses.replace(SETTINGS, random_warmup=True, epsilon_start=0.0, epsilon_end=0.0, capacity=120)
    program, keys = assemble.program(settings), assemble.keys(settings)
    actions = trained(settings).state.buffer.rows.action
    warm = math.ceil(settings.learning_starts / 3)
    drawn = [(training.noise(program, keys, i, 1).act[0, :, 0, :, 1] * 2).long() for i in range(warm + 3)]
    same = [torch.equal(actions[:, 3 * i : 3 * i + 3], drawn[i]) for i in range(warm + 3)]
    assert same[:warm] == [True] * warm
    assert not all(same[warm:])


def test_transfer_through_pinned_memory_does_not_change_a_run(monkeypatch):
    """Use the transfers of CUDA with mocked streams; the eager state holds observations of the previous step."""
    plain = trained(SETTINGS)
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    monkeypatch.setattr(transfer, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(transfer, "uploads", transfer._through_pinned_memory)
    monkeypatch.setattr(transfer, "downloads", transfer._through_pinned_array)
    asserts.assert_trees_equal(plain.state, trained(SETTINGS).state)


def test_a_run_equals_a_plain_loop_over_gymnasium():
    """Write the algorithm again as a loop for one seed and plain Gymnasium environments."""
    settings = SETTINGS
    program, hyper, keys = assemble.program(settings), assemble.hyper(settings), assemble.keys(settings)
    last = trained(settings)
    for seed in range(2):
        own, key = tree.index(hyper, seed), keys[seed]
        state = tree.index(training.init(program, hyper, keys), seed)
        seeds = random.bits(random.fold_in(random.fold_in(key, streams.HOST_RESET), 0), (3,)).tolist()
        plain_envs = [gymnasium.make("CartPole-v1") for _ in seeds]
        obs = np.stack([e.reset(seed=s)[0] for e, s in zip(plain_envs, seeds, strict=True)])
        legal = torch.ones((3, 2), dtype=torch.bool)
        for number in range(settings.steps // 3):
            noise = tree.index(tree.index(training.noise(program, keys, number, 1), 0), seed)
            epsilon = training.epsilon(own, torch.tensor(3 * number))
            state = state._replace(obs=torch.from_numpy(obs), legal=legal, hyper=own)
            chosen = exploration.epsilon_greedy(
                program.network.apply(state.learner.params, state.obs), legal, epsilon, noise.act[0]
            )
            if number >= 4:
                state = training.learn(program, state, noise)
            rows = []
            for i, (env, action) in enumerate(zip(plain_envs, chosen.tolist(), strict=True)):
                after, reward, terminated, truncated, _ = env.step(action)
                rows.append(
                    (obs[i].copy(), action, np.float32(reward), np.float32(not terminated), after, np.ones(2, bool))
                )
                obs[i] = env.reset()[0] if terminated or truncated else after
            batch = Transition(*(torch.as_tensor(np.stack(x)) for x in zip(*rows, strict=True)))
            state = state._replace(buffer=replay.ring.add(state.buffer, batch, batch.discount == 0, None)[0])
            if number >= 4 and (number - 3) % 4 == 0:
                state = training.sync(state)
        got = tree.index(last.state, seed)
        asserts.assert_trees_equal(got.buffer, state.buffer)
        asserts.assert_trees_close(got.learner, state.learner, rtol=1e-5, atol=1e-6)


def test_seeds_differ_and_the_same_key_gives_the_same_run():
    a, b = trained(SETTINGS).state, trained(SETTINGS).state
    asserts.assert_trees_equal(a, b)
    assert not torch.equal(a.obs[0], a.obs[1])
    alone = trained(dataclasses.replace(SETTINGS, seeds=1, seed=1)).state
    asserts.assert_trees_equal(tree.index(a.buffer, 1), tree.index(alone.buffer, 0))


def test_learning_during_an_environment_step_gives_the_same_numbers():
    """Slow down both a learner in another thread and the host environment."""
    env, pool = envs.find(SETTINGS.env), ThreadPoolExecutor(1)

    def opened(seeds, num_envs):
        vector_env = env.open(seeds, num_envs)
        step = vector_env.step
        vector_env.step = lambda actions: (time.sleep(0.002), step(actions))[1]
        return vector_env

    def threaded(program):
        parts = host.vmapped(program)

        @torch.no_grad()
        def learn(state, noise):
            time.sleep(0.001)
            return parts.learn(state, noise)()

        return parts._replace(learn=lambda *given: pool.submit(learn, *given).result)

    expected = trained(SETTINGS)
    asserts.assert_trees_equal(expected.state, trained(SETTINGS, HostEnv(opened, env.spec), threaded).state)


def test_parts_of_an_iteration_for_many_seeds_equal_those_for_one():
    """Compare bit for bit, and check that the state is not modified in place."""
    program, parts = assemble.program(SETTINGS), host.vmapped(assemble.program(SETTINGS))
    state = trained(SETTINGS, iterations=20).state
    before = tree.clone(state)
    u = host.interaction(training.noise(program, state.key, 20, 1), 0)
    vector_env = envs.find(SETTINGS.env).open(2, 3)
    vector_env.reset([[1, 2, 3], [4, 5, 6]])
    chosen = parts.choose(state, u)
    output = vector_env.step(chosen.env_state.numpy())
    vector_env.close()
    outputs = tree.map(lambda x: x.unsqueeze(0), output)
    after = parts.finish(chosen, outputs)
    assert after.cycle.tolist() == [21, 21]
    asserts.assert_trees_equal(after._replace(cycle=state.cycle), parts.store(chosen, outputs))
    for i in range(2):
        alone = host.choose(program, tree.index(state, i), tree.index(u, (0, i)))
        asserts.assert_trees_equal(tree.index(chosen, i), alone)
        asserts.assert_trees_equal(tree.index(after, i), host.finish(program, alone, tree.index(output, i)))
        asserts.assert_trees_equal(
            tree.index(after, i)._replace(cycle=alone.cycle), host.store(program, alone, tree.index(output, i))
        )
    asserts.assert_trees_equal(before, state)


@pytest.mark.slow
def test_compiled_parts_equal_eager():
    compile.prepare_cpu()
    expected, got = trained(SETTINGS), trained(SETTINGS, parts=compile.compiled_parts)
    asserts.assert_trees_equal(expected.state.buffer, got.state.buffer)
    asserts.assert_trees_close(expected.state.learner, got.state.learner, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_starts_new_episodes(tmp_path, capsys):
    flags = shlex.split("--env gym:CartPole-v1 --no-compile --seeds 2 --hidden 8 --report-every 100 --n-step 1")
    flags += ["--steps", "1200", "--learning-starts", "600", "--out", str(tmp_path / "run")]
    assert cli.main(["train", *flags]) == 0
    kept = checkpoint.newest(tmp_path / "run" / "checkpoints")[0]
    assert cli.main(["resume", str(tmp_path / "run"), "--steps", "1300"]) == 0
    assert "results differ from an uninterrupted run: gym:CartPole-v1 starts new episodes" in capsys.readouterr().err
    settings = results.plan(tmp_path / "run")[0]
    program = assemble.program(settings)
    like = {name: training.init(program, assemble.hyper(settings), assemble.keys(settings)) for name in ("lanes",)}
    since = tree.from_numpy(training.snapshot(program, like["lanes"]))
    read, _ = checkpoint.load(kept, like | {"since": since})
    vector_env = envs.find(settings.env).open(2, settings.num_envs)
    restarted = host.start(program, vector_env, read["lanes"])
    vector_env.close()
    for name in ("learner", "buffer", "hyper", "key", "cycle"):
        asserts.assert_trees_equal(getattr(read["lanes"], name), getattr(restarted, name))
    assert restarted.obs.abs().max() <= 0.05, "first observations"
    assert restarted.metrics.running.eq(0).all()
    assert restarted.metrics.elapsed.eq(0).all()


def test_greedy_selects_the_loop_by_the_kind_of_environment():
    program = assemble.program(SETTINGS)
    keys, params = assemble.keys(SETTINGS), program.network.init(assemble.keys(SETTINGS))
    pairs = (
        (envs.make("cartpole"), evaluate.greedy_on_device),
        (envs.find("gym:CartPole-v1"), evaluate.greedy_on_host),
    )
    for env, plain in pairs:
        got = evaluate.greedy(env, program.network, params, keys, 3).returns
        np.testing.assert_array_equal(got, plain(env, program.network, params, keys, 3).returns)


def test_is_code_and_causes_of_failure():
    assert [envs.is_code(name) for name in ("cartpole", "gym:X", "minatar:x", "ale:x", "a.b:c")] == [False] * 4 + [True]
    assert history.why("environment") == "its environment failed"
    assert history.why("loss") == "its loss is not finite"


def test_several_steps_per_iteration():
    settings = dataclasses.replace(SETTINGS, steps_per_cycle=4, steps=240)
    last = trained(settings)
    assert last.updates.tolist() == [19, 19]
    assert last.state.buffer.added.tolist() == [240, 240]


@pytest.mark.parametrize("valid", [[1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]])
def test_invalid_rows_do_not_change_the_buffer(valid):
    example = Transition(*(torch.zeros(()) for _ in range(5)), torch.zeros(2, dtype=torch.bool))
    one = two = replay.ring.init(example, 4)
    for i in range(5):
        batch = Transition(*(torch.arange(3.0) + 3 * i for _ in range(5)), torch.ones(3, 2, dtype=torch.bool))
        ended = torch.zeros(3, dtype=torch.bool)
        one, _ = replay.ring.add(one, batch, ended, torch.tensor(valid, dtype=torch.bool))
        kept = tree.index(batch, torch.tensor(valid, dtype=torch.bool))
        two = replay.ring.add(two, kept, ended[: sum(valid)], None)[0] if sum(valid) else two
        asserts.assert_trees_equal(two, one)


class LivesEnv(gymnasium.Env):
    """Loses one of three lives at each action 1, and reports the lives left in `info`."""

    observation_space, action_space = spaces.Box(0, 9, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 3
        return np.zeros(1, np.float32), {"lives": self.left}

    def step(self, action):
        self.left -= int(action)
        return np.full(1, self.left, np.float32), 5.0 * action, self.left == 0, False, {"lives": self.left}


@pytest.mark.parametrize("mode", MODES)
def test_a_lost_life_is_reported_once_and_does_not_end_the_episode(mode):
    """Check each environment alone: losing the last life terminates, and a new episode starts with three lives."""
    env = gym.from_vector("lives", lambda n: SyncVectorEnv([LivesEnv] * n, autoreset_mode=mode))
    vector_env = env.open(1, 2)
    vector_env.reset([[1, 2]])
    left, over = [3, 3], [False, False]
    actions = np.random.default_rng(0).integers(0, 2, (60, 1, 2))
    for action in actions:
        output = vector_env.step(action)
        for i in range(2):
            if over[i]:  # this step only resets
                assert not output.valid[0, i]
                assert not output.life_lost[0, i]
                left[i], over[i] = 3, False
                continue
            left[i] -= int(action[0, i])
            assert bool(output.life_lost[0, i]) == bool(action[0, i] and left[i] > 0)
            assert bool(output.step.terminated[0, i]) == (left[i] == 0)
            if left[i] == 0:
                left[i], over[i] = (3, False) if mode != AutoresetMode.NEXT_STEP else (0, True)
    assert (actions == 1).sum() > 40


def test_lost_lives_and_clipped_rewards_affect_replay_only(monkeypatch):
    """Check that reported returns are of whole episodes and unclipped rewards."""
    env = gym.from_factory("lives", LivesEnv)
    monkeypatch.setattr(envs, "find", lambda name: env)
    given = dataclasses.replace(SETTINGS, terminal_on_life_loss=True, clip_rewards=True, epsilon_end=1.0)
    for settings, least, most in ((given, 0.0, 1.0), (dataclasses.replace(given, clip_rewards=False), 0.0, 5.0)):
        state = trained(settings, env).state
        rows, count = state.buffer.rows, int(state.buffer.added[0])
        lost, reward = rows.obs[0, :count, 0] > rows.next_obs[0, :count, 0], rows.reward[0, :count]
        first = rows.obs[0, :count, 0] == 0  # the first observation is 0 until a life is lost
        lost |= first & (rows.next_obs[0, :count, 0] < 3)
        assert torch.equal(rows.discount[0, :count] == 0, lost), "every lost life has discount 0"
        assert (reward.min(), reward.max()) == (least, most)
        kept = state.metrics.returns[0, :-1]  # the last slot takes returns that are dropped
        ended = kept[~kept.isnan()]
        assert ended.numel() > 5
        assert ended.unique().tolist() == [15.0], "three lives, five points each"
    whole = trained(dataclasses.replace(given, terminal_on_life_loss=False), env).state.buffer
    assert (whole.rows.discount[0] == 0).sum() < lost.sum()


def test_steps_that_only_reset_do_not_stop_learning_after_resuming(monkeypatch):
    """Check that a resumed run does not take rows missing because of NEXT_STEP autoreset for an emptied replay."""
    env = gym.from_vector("lives", lambda n: SyncVectorEnv([LivesEnv] * n, autoreset_mode=AutoresetMode.NEXT_STEP))
    monkeypatch.setattr(envs, "find", lambda name: env)
    settings = dataclasses.replace(SETTINGS, learning_starts=90, epsilon_end=1.0, capacity=200)
    before = trained(settings, env)
    assert before.state.buffer.added.max() < settings.steps - 10
    program, vector_env = assemble.program(settings), env.open(2, 3)
    state = host.start(program, vector_env, before.state)
    functions = host.functions(program, vector_env, host.vmapped(program))
    *_, last = training.run(program, state, settings.steps + 30, functions, 30, at_once=1)
    vector_env.close()
    assert (last.updates - before.updates).tolist() == [10, 10]


def ring_of(state):
    """Return the ring buffer inside its wrappers."""
    rows = state.buffer
    while hasattr(rows, "buffer"):
        rows = rows.buffer
    return rows


def test_updates_start_after_enough_rows():
    """Cover host environments, whose last step is stored in the next iteration, and n-step rows, which are delayed."""
    small = {"seeds": 2, "hidden": (8,), "batch_size": 8}
    on_host = {"env": "gym:CartPole-v1", "num_envs": 4, "steps": 400, **small}
    for settings, least in (
        (Settings(n_step=3, learning_starts=5, num_envs=4, **small), None),
        (Settings(n_step=3, learning_starts=4, num_envs=4, **small), 5),
        (Settings(n_step=3, learning_starts=17, **on_host), None),
        (Settings(n_step=3, learning_starts=16, **on_host), 17),
        (Settings(n_step=1, learning_starts=1, **on_host), None),
        (Settings(n_step=3, steps_per_cycle=4, learning_starts=0, num_envs=4, **small), None),
        (Settings(n_step=2, steps_per_cycle=4, learning_starts=0, **on_host), None),
        (Settings(n_step=3, steps_per_cycle=4, learning_starts=0, **on_host), 1),
    ):
        if least is not None:
            with pytest.raises(ValueError, match=f"^learning_starts: expected at least {least} "):
                assemble.program(settings)
            continue
        program = assemble.program(settings)
        state = training.init(program, assemble.hyper(settings), assemble.keys(settings))
        hosted = settings.env != "cartpole"
        vector_env = envs.find(settings.env).open(settings.seeds, settings.num_envs) if hosted else None
        functions = run_folder.functions(program, dataclasses.replace(settings, compile=False), vector_env)
        first = next(
            report
            for report in training.run(
                program, host.start(program, vector_env, state) if hosted else state, 400, functions,
                settings.num_envs * settings.steps_per_cycle, at_once=1,
            )
            if report.updates.max() > 0
        )  # fmt: skip
        assert ring_of(first.state).added.min() >= settings.num_envs * (2 if hosted else 1)
        if vector_env is not None:
            vector_env.close()


class LivesInStepsOnlyEnv(LivesEnv):
    """Reports its lives in `step` only."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], {}


@pytest.mark.parametrize(
    ("factory", "expected"),
    [(LivesEnv, True), (LivesInStepsOnlyEnv, True), (lambda: gymnasium.make("CartPole-v1"), False)],
)
def test_counts_lives(factory, expected):
    assert gym.from_factory("it", factory).counts_lives() == expected


class OneStepEnv(gymnasium.Env):
    """Ends its episode at every step."""

    observation_space, action_space = spaces.Box(0, 9, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), 1.0, True, False, {}


def test_updates_start_after_enough_rows_if_every_second_step_only_resets(monkeypatch):
    """Check that with the smallest allowed `learning_starts` the first update has a row of each environment."""
    env = gym.from_vector("short", lambda n: SyncVectorEnv([OneStepEnv] * n, autoreset_mode=AutoresetMode.NEXT_STEP))
    monkeypatch.setattr(envs, "find", lambda name: env)
    for n_step in (1, 3):
        least = (2 * n_step - 2) * 4 + 1
        settings = Settings(seeds=2, num_envs=4, steps=400, hidden=(8,), batch_size=8, n_step=n_step)
        if least > 1:
            with pytest.raises(ValueError, match=f"^learning_starts: expected at least {least} in a host environment"):
                assemble.program(dataclasses.replace(settings, learning_starts=least - 1))
        program = assemble.program(dataclasses.replace(settings, learning_starts=least))
        vector_env = env.open(2, 4)
        state = host.start(
            program, vector_env, training.init(program, assemble.hyper(settings), assemble.keys(settings))
        )
        functions = host.functions(program, vector_env, host.vmapped(program))
        reports = training.run(program, state, 400, functions, 4, at_once=1)
        before = None
        for report in reports:
            if report.updates.max() > 0:
                break
            before = ring_of(report.state).added.tolist()
        assert before == [4, 4], "exactly one row of each environment, before the update"


def test_atari_episodes_depend_on_their_seeds_alone():
    """Compare one and two seeds with equal reset seeds, and check the observation's shape and the clipped rewards."""
    pytest.importorskip("ale_py")
    env, played = envs.find("ale:Pong"), []
    assert (env.spec.obs_shape, env.spec.obs_dtype, env.spec.actions) == ((4, 84, 84), torch.uint8, 6)
    for seeds in (1, 2):
        vector_env = env.open(seeds, 2)
        step = vector_env.reset([[3, 5], [7, 9]][:seeds])
        seen = [step.obs[0]]
        for t in range(60):
            step = vector_env.step(np.full((seeds, 2), t % 6)).step
            seen.append(step.obs[0])
            assert step.reward.abs().max() <= 1
        vector_env.close()
        played.append(torch.stack(seen))
    assert torch.equal(*played)
    assert not torch.equal(played[0][:, 0], played[0][:, 1])


@pytest.mark.parametrize(("name", "message"), [("ale:Pogn", "did you mean pong"), ("ale:", "ale-py has 1")])
def test_unknown_atari_games_are_refused(name, message):
    pytest.importorskip("ale_py")
    with pytest.raises(ValueError, match=f"env: expected a game of ale-py, got .*{message}"):
        envs.find(name)


def test_atari_without_ale_py_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ValueError, match=r"expected ale-py for ale:Enduro, got none; pip install 'fdqn\[atari\]'"):
        envs.find("ale:Enduro")


# Failing environments


class FailingEnv(LabeledEnv):
    """Fails in the environments of `seeds` for three steps, since one alone may be hidden by the end of an episode."""

    how, at, seeds = "raises", 20, ()
    made, most = 0, 10**9
    """Number of instances, and how many of them can be reset."""

    def __init__(self):
        super().__init__()
        self.steps, FailingEnv.made = 0, FailingEnv.made + 1
        self.late = FailingEnv.made > self.most

    def reset(self, *, seed=None, options=None):
        output = super().reset(seed=seed)
        if self.late or (self.seed in self.seeds and self.how.startswith("reset") and self.steps >= self.at):
            raise OSError("the server is gone")
        return output

    def step(self, action):
        self.steps += 1
        if self.seed in self.seeds and self.at <= self.steps < self.at + 3 and not self.how.startswith("reset"):
            if self.how == "raises":
                raise KeyError("the key is gone")
            if self.how == "exits":
                sys.exit("no licence")
            if self.how == "hangs":
                time.sleep(60)
            obs, *rest = super().step(action)
            if self.how.endswith("reward"):
                return obs, {"infinite reward": np.inf, "huge reward": 1e300}[self.how], *rest[1:]
            spoiled = {"NaN": ("label", np.nan), "no legal action": ("action_mask", 0)}
            key, factor = spoiled[self.how]
            return {**obs, key: obs[key] * factor}, *rest
        return super().step(action)


def reset_seed(settings, seed):
    keys = random.fold_in(
        random.fold_in(assemble.keys(settings), streams.HOST_RESET), torch.zeros(settings.seeds, dtype=torch.int64)
    )
    return random.bits(keys, (settings.num_envs,))[seed, 0].item() % 1000


FAILURES = {
    "raises": ("environment", "the key is gone"),
    "hangs": ("environment", "no response for"),
    "no legal action": ("environment", "action_mask: expected a legal action before the end, got none"),
    "NaN": ("environment", "expected finite observations, got nan"),
    "infinite reward": ("environment", "expected finite rewards, got inf"),
    "huge reward": ("environment", "expected finite rewards, got inf"),
    "exits": ("environment", "SystemExit: no licence"),
    "reset raises": ("environment", "OSError: the server is gone"),
}
FAILING = f"{__name__}:FailingEnv"


def train_failing(path, *more):
    """Train two seeds in environments that may fail, and return the parameters."""
    FailingEnv.made = 0
    flags = ["--no-compile", "--seeds", "2", "--steps", "300", "--num-envs", "3", "--batch-size", "8", "--hidden", "8"]
    flags = [
        *flags,
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
    assert cli.main(["train", "--env", FAILING, *flags, *more]) == 0
    return results.read_params(path, FAILING)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Return the parameters of a run in which nothing fails."""
    return train_failing(tmp_path_factory.mktemp("runs") / "healthy")


@pytest.mark.parametrize("how", FAILURES)
def test_an_environment_that_fails_ends_its_seed_alone(tmp_path, monkeypatch, capsys, healthy, how):
    cause, message = FAILURES[how]
    monkeypatch.setattr(vector, "TIMEOUT", 0.5)
    monkeypatch.setattr(FailingEnv, "how", how)
    monkeypatch.setattr(FailingEnv, "seeds", (reset_seed(SETTINGS, 1),))
    params = train_failing(tmp_path / "run")
    stderr = capsys.readouterr().err
    assert "seed 1 failed at step" in stderr
    assert message in stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["failed_seeds"] == [1]
    assert [(x["seed"], x["cause"]) for x in summary["failures"]] == [(1, cause)]
    asserts.assert_trees_equal(tree.index(healthy, 0), tree.index(params, 0))
    out = tmp_path / "broken.pt"  # its parameters before the failure are valid
    assert cli.main(["export", str(tmp_path / "run"), "--env", FAILING, "--seed", "1", "--out", str(out)]) == 0
    asserts.assert_trees_equal(tree.index(params, 1), torch.load(out, weights_only=True))


@pytest.mark.parametrize("how", ["reset raises", "constructor raises"])
def test_an_environment_that_does_not_start_ends_its_seed_alone(tmp_path, monkeypatch, capsys, healthy, how):
    """Let the constructor or the first reset of one seed's environments fail."""
    if how == "reset raises":
        monkeypatch.setattr(FailingEnv, "seeds", (reset_seed(SETTINGS, 1),))
        monkeypatch.setattr(FailingEnv, "how", how)
        monkeypatch.setattr(FailingEnv, "at", 0)
    else:
        opened = vector.SeedEnvs

        def failing(*given):
            calls.append(given)
            if len(calls) == 2:
                raise OSError("the server is gone")
            return opened(*given)

        calls = []
        monkeypatch.setattr(vector, "SeedEnvs", failing)
    params = train_failing(tmp_path / "run")
    assert "seed 1 failed at step 0: its environment failed, OSError: the server is gone" in capsys.readouterr().err
    asserts.assert_trees_equal(tree.index(healthy, 0), tree.index(params, 0))


def test_a_run_whose_seeds_all_fail_keeps_their_parameters(tmp_path, monkeypatch, capsys):
    """Check that it stops early with exit code 1, a message and complete files."""
    monkeypatch.setattr(FailingEnv, "seeds", range(1000))
    monkeypatch.setattr(FailingEnv, "at", 60)
    path = tmp_path / "run"
    flags = ["--no-compile", "--seeds", "2", "--steps", "600", "--num-envs", "3", "--batch-size", "8", "--hidden", "8"]
    assert (
        cli.main(["train", "--env", FAILING, *flags, "--n-step", "1", "--learning-starts", "12", "--out", str(path)])
        == 1
    )
    stderr = capsys.readouterr().err
    assert "stopped at 180 of 600 steps, because all seeds have failed" in stderr
    assert "seed 1 failed at step 177: its environment failed, KeyError: 'the key is gone'" in stderr
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["steps"], summary["failed_seeds"]) == (180, [0, 1])
    assert [x["step"] for x in summary["failures"]] == [177, 177]
    program = assemble.program(results.plan(path, FAILING)[0])
    first = training.init(
        program, assemble.hyper(results.plan(path, FAILING)[0]), assemble.keys(results.plan(path, FAILING)[0])
    )
    learned = results.read_params(path, FAILING)
    assert not any(torch.equal(learned[name], x) for name, x in first.learner.params.items())
    monkeypatch.setattr(FailingEnv, "seeds", ())  # no seed is left, even though the environments work again
    assert cli.main(["resume", str(path), "--env", FAILING]) == 1
    assert "run: expected a seed that has not failed, got " in capsys.readouterr().err


def test_a_run_stops_after_its_last_seed_failed(tmp_path, monkeypatch, capsys):
    """Let one seed fail in the first process and the other one after resuming."""
    monkeypatch.setattr(FailingEnv, "seeds", (reset_seed(SETTINGS, 1),))
    path = tmp_path / "run"
    train_failing(path)
    assert json.loads((path / "summary.json").read_text())["failed_seeds"] == [1]
    capsys.readouterr()
    monkeypatch.setattr(FailingEnv, "seeds", range(1000))
    assert cli.main(["resume", str(path), "--env", FAILING, "--steps", "600"]) == 1
    stderr = capsys.readouterr().err
    assert re.search(r"stopped at 36\d of 600 steps, because all seeds have failed", stderr)
    assert re.search(r"seed 1 failed at step \d+: its environment failed; it stops learning", stderr)
    assert re.search(r"seed 0 failed at step 3\d\d: its environment failed, KeyError: 'the key is gone'", stderr)


class ExitsOnCloseEnv(LabeledEnv):
    """Calls `sys.exit` when it is closed."""

    def close(self):
        sys.exit("licence returned")


def test_an_environment_that_exits_on_close_does_not_end_the_run(tmp_path):
    path, flags = tmp_path / "run", ["--no-compile", "--seeds", "1", "--steps", "90", "--learning-starts", "60"]
    assert (
        cli.main(["train", "--env", f"{__name__}:ExitsOnCloseEnv", *flags, "--batch-size", "8", "--out", str(path)])
        == 0
    )
    assert (path / "curve.png").exists()


def test_a_run_is_not_resumed_if_an_environment_does_not_start(tmp_path, monkeypatch, capsys):
    """Check that a temporary failure loses no seed: no file changes until all environments start."""
    path = tmp_path / "run"
    train_failing(path)
    rows, saved = (path / "metrics.csv").read_bytes(), sorted((path / "checkpoints").iterdir())
    monkeypatch.setattr(FailingEnv, "most", FailingEnv.made + 4)
    capsys.readouterr()
    assert cli.main(["resume", str(path), "--env", FAILING, "--steps", "400"]) == 1
    stderr = capsys.readouterr().err
    assert "to start for all remaining seeds, got an error for seed 1: OSError: the server is gone" in stderr
    assert (rows, saved) == ((path / "metrics.csv").read_bytes(), sorted((path / "checkpoints").iterdir()))
    monkeypatch.setattr(FailingEnv, "most", 10**9)
    assert cli.main(["resume", str(path), "--env", FAILING, "--steps", "400"]) == 0
    assert json.loads((path / "summary.json").read_text())["failed_seeds"] == []


@pytest.mark.parametrize(("most", "flags"), [(9, []), (29, []), (9, ["--evaluate-every", "150"])])
def test_failed_evaluations_keep_the_trained_parameters(tmp_path, monkeypatch, capsys, healthy, most, flags):
    """Let the environments of the final or periodic evaluation fail, of all seeds or of one."""
    monkeypatch.setattr(FailingEnv, "most", most)
    path = tmp_path / "run"
    params = train_failing(path, *flags)
    stderr = capsys.readouterr().err
    asserts.assert_trees_equal(healthy, params)
    final = json.loads((path / "summary.json").read_text())["final_return"]
    if most == 9:
        assert "evaluation failed: env: expected" in stderr
        assert final["per_seed"] == [None, None]
    else:
        assert "seed 1 did not finish its evaluation: OSError: the server is gone" in stderr
        FailingEnv.made = 9  # and again with `fdqn eval`
        assert cli.main(["eval", str(path), "--env", FAILING]) == 0
        assert "seed 1 did not finish its evaluation: OSError: the server is gone" in capsys.readouterr().err
        assert final["per_seed"][0] is not None
        assert final["per_seed"][1] is None


def stuck():
    """Run native code that holds the GIL."""
    max(itertools.repeat(0, 10**8))


def test_the_stack_of_a_hang_is_printed_even_if_it_cannot_be_interrupted(capfd):
    with pytest.raises(TimeoutError, match="no response for 0 s"), watchdog.timeout(0.1):
        stuck()
    assert re.search(rf'File "{__file__}", line \d+ in stuck$', capfd.readouterr().err, re.M)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_timeout_outside_of_the_main_thread_only_waits(capfd):
    def wait():
        with watchdog.timeout(0.01):
            time.sleep(0.1)
        return "returned"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(wait).result() == "returned"
    assert capfd.readouterr().err == ""
