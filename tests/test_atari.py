"""Atari: replay stores the transitions that were played; clipped rewards and lost lives affect only learning."""

import dataclasses
import functools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv

from fdqn import envs, networks, replay, training, tree
from fdqn.agents import dqn
from fdqn.envs.host import gymnasium as gym
from fdqn.experiment import assemble, memory, run_folder
from fdqn.experiment.settings import Settings
from fdqn.ops import losses
from fdqn.testing import asserts
from fdqn.training import host, off_policy
from fdqn.types import HostEnv

SETTINGS = Settings(
    env="ale:Breakout", seeds=2, num_envs=3, steps=3 * 160, learning_starts=3 * 160 - 3, capacity=500, batch_size=2,
    n_step=1, report_every=3_000, terminal_on_life_loss=True, clip_rewards=True, compile=False, epsilon_end=1.0,
)  # fmt: skip


class Recorder:
    """Vector environment that records its actions and outputs."""

    def __init__(self, vector_env, recorded):
        self.vector_env, self.recorded = vector_env, recorded

    def __getattr__(self, name):
        return getattr(self.vector_env, name)

    def reset(self, seeds):
        self.recorded.append(self.vector_env.reset(seeds))
        return self.recorded[-1]

    def step(self, actions):
        self.recorded += [actions.copy(), self.vector_env.step(actions)]
        return self.recorded[-1]


def small(settings):
    """Return the program with a tiny network."""
    program = assemble.program(settings)
    spec = program.env.spec
    network = networks.mlp(spec.obs_shape, (1,), spec.actions)
    agent, buffer = dqn.agent(network, double=False, loss=losses.huber), assemble.buffer(program.config, spec)
    return program._replace(algorithm=off_policy.algorithm(program.config, agent, buffer, assemble.optimizer(settings)))


@functools.cache
def played(settings):
    """Train in the last iteration only; return the state, and the recorded actions and outputs of the environment."""
    host_env, recorded = envs.find(settings.env), []
    program = small(settings)
    state = training.init(program, assemble.hyper(settings), assemble.keys(settings))
    vector_env = Recorder(host_env.open(settings.seeds, settings.num_envs), recorded)
    state = host.start(program, vector_env, state)
    functions = host.functions(program, vector_env, host.vmapped(program))
    *_, last = training.run(program, state, settings.steps, functions, settings.report_every, at_once=1)
    vector_env.close()
    return last.state, recorded


def stored(state, seed, settings):
    memory = tree.index(state.buffer, seed)
    program = assemble.program(settings)
    buffer = assemble.buffer(program.config, program.env.spec)
    count = int(buffer.size(memory))
    return buffer.sample(memory, (torch.arange(count) * 2**32).div(count, rounding_mode="floor") + 1, 0).batch


def test_replay_equals_the_recorded_transitions():
    """Compare every frame across episode ends and lost lives, with clipped rewards and lives lost as terminations."""
    pytest.importorskip("ale_py")
    state, (first, *rest) = played(SETTINGS)
    lost, ends, points = 0, 0, 0.0
    for seed in range(2):
        rows, at, obs = stored(state, seed, SETTINGS), 0, first.obs[seed]
        for actions, result in zip(rest[::2], rest[1::2], strict=True):
            step = tree.index(result.step, seed)
            terminated = step.terminated | result.life_lost[seed]
            step = step._replace(terminated=terminated, reward=step.reward.clamp(-1, 1))
            expected = replay.transition(obs, torch.from_numpy(actions[seed]), step)
            asserts.assert_trees_equal(expected, tree.index(rows, slice(at, at + 3)))
            at, obs = at + 3, step.obs
            lost, ends = lost + int(result.life_lost[seed].sum()), ends + int(result.step.terminated[seed].sum())
            points += float(result.step.reward[seed].sum())
    assert lost > 10
    assert ends >= 2
    assert int(state.metrics.episodes.sum()) == ends, "a lost life does not end an episode"
    running = state.metrics.running.sum() + state.metrics.returned.sum()
    assert running.item() == points, "returns sum the unclipped rewards"


def test_replay_stores_raw_rewards_and_terminations_without_the_flags():
    """Check that without the flags replay stores the rewards and terminations of the game."""
    pytest.importorskip("ale_py")
    settings = dataclasses.replace(SETTINGS, env="ale:SpaceInvaders", terminal_on_life_loss=False, clip_rewards=False)
    state, (_, *rest) = played(settings)
    rows = stored(state, 0, settings)
    reward = torch.stack([result.step.reward[0] for result in rest[1::2]])
    assert torch.equal(rows.reward, reward.flatten())
    assert reward.max() > 1
    assert torch.equal(rows.discount == 0, torch.stack([result.step.terminated[0] for result in rest[1::2]]).flatten())


def test_n_step_returns_end_at_a_lost_life():
    """Check that a three-step return sums the rewards until a life is lost, and does not bootstrap after it."""
    pytest.importorskip("ale_py")
    settings = dataclasses.replace(SETTINGS, n_step=3)
    state, (_, *rest) = played(settings)
    rows, gamma, found = stored(state, 0, settings), 0.99, 0
    lost = torch.stack([(a.life_lost | a.step.terminated)[0] for a in rest[1::2]])
    reward = torch.stack([a.step.reward[0] for a in rest[1::2]]).clamp(-1, 1)
    for t in range(len(lost) - 2):
        for env in range(3):
            span = lost[t : t + 3, env].tolist()
            m = span.index(True) if True in span else 2
            row = tree.index(rows, 3 * t + env)
            expected = sum(gamma**k * reward[t + k, env].item() for k in range(m + 1))
            assert row.reward.item() == pytest.approx(expected, abs=1e-6)
            assert row.discount.item() == pytest.approx(0.0 if span[m] else gamma**2)
            found += span[m]
    assert found > 10


def test_frames_take_an_eighth_of_the_memory():
    pytest.importorskip("ale_py")
    settings = Settings(env="ale:Pong", capacity=10_000, seeds=1)
    program = assemble.program(settings)
    assert memory.replay_bytes(program, 1) < 10_000 * 7_056 * 1.09
    agent, rows = program.algorithm.agent, replay.ring.buffer(10_000)
    plain = program._replace(algorithm=off_policy.algorithm(program.config, agent, rows, assemble.adam))
    assert memory.replay_bytes(plain, 1) > 10_000 * 7_056 * 8


class Shifts(VectorEnv):
    """Show the last frames of a counter, in the wrong order from step `wrong`."""

    def __init__(self, num_envs, wrong, mode):
        self.num_envs, self.wrong, self.metadata = num_envs, wrong, {"autoreset_mode": mode}
        self.single_observation_space = Box(0, 255, (3, 2, 2), np.uint8)
        self.single_action_space = Discrete(2)
        self.time = np.zeros(num_envs, int)

    def shown(self):
        frames = self.time[:, None] + np.arange(-2, 1)
        if self.wrong <= self.time.max():
            frames = frames[:, ::-1]
        shown = np.where(frames < 0, 0, frames + 1)[..., None, None] * np.ones((2, 2))
        return shown.astype(np.uint8)

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self.time[mask] = 0
        return self.shown(), {}

    def step(self, actions):
        self.time += 1
        none = np.zeros(self.num_envs, bool)
        return self.shown(), np.ones(self.num_envs), none, self.time >= 5, {}


def test_observations_that_are_not_stacked_frames_fail_their_seed():
    """Check that a seed fails if replay, which stores one frame per step, could not restore its observations."""
    for wrong, breaks in ((99, False), (4, True)):
        host_env = gym.from_vector("shifts", lambda n, wrong=wrong: Shifts(n, wrong, AutoresetMode.DISABLED), stack=3)
        vector_env = host_env.open(2, 2)
        vector_env.reset([[1, 2], [3, 4]])
        for _ in range(12):
            vector_env.step(np.zeros((2, 2), int))
        assert len(vector_env.broken) == 2 * breaks
        assert all("expected observations of the last 3 frames, oldest first" in x for x in vector_env.broken.values())
    with pytest.raises(ValueError, match=r"expected shifts to start an episode, got env: expected observations of the"):
        gym.from_vector("shifts", lambda n: Shifts(n, 0, AutoresetMode.DISABLED), stack=3).open(1, 1).reset([[1]])


def test_the_gymnasium_name_of_a_game_is_refused_with_its_ale_name(monkeypatch):
    monkeypatch.setattr(gymnasium, "registry", {})
    with pytest.raises(ValueError, match=r"^env: gym:ALE/Pong-v5 is registered by .*; use ale:Pong .*gym:ale_py:"):
        envs.find("gym:ALE/Pong-v5")


@pytest.mark.parametrize("env", ["cartpole", "gym:CartPole-v1"])
def test_terminal_on_life_loss_requires_an_environment_that_counts_lives(env):
    message = rf"^terminal_on_life_loss: expected an environment that counts lives, .* got {env}"
    with pytest.raises(ValueError, match=message):
        assemble.program(Settings(env=env, terminal_on_life_loss=True))


def test_no_transition_spans_the_point_of_resumption():
    """Check that resuming starts new episodes, so that no row has frames or steps from before and after."""
    pytest.importorskip("ale_py")
    settings = dataclasses.replace(SETTINGS, n_step=3)
    program = small(settings)
    state, _ = played(settings)
    vector_env = Recorder(envs.find(settings.env).open(2, 3), again := [])
    state = host.start(program, vector_env, tree.clone(state))
    functions = run_folder.functions(program, settings, vector_env)
    *_, last = training.run(program, state, settings.steps + 3 * 4, functions, 3_000, at_once=1)
    vector_env.close()
    assert int(last.state.buffer.buffer.buffer.added[0]) == int(state.buffer.buffer.buffer.added[0]) + 3 * 2, (
        "two steps are not complete yet"
    )
    rows = stored(last.state, 0, settings)
    newest = tree.index(rows, slice(-6, -3))
    assert torch.equal(newest.obs, again[0].obs[0])
    assert torch.equal(newest.next_obs, again[6].step.next_obs[0])


def test_frames_of_a_seed_do_not_depend_on_other_seeds():
    pytest.importorskip("ale_py")
    both, _ = played(SETTINGS)
    alone, _ = played(dataclasses.replace(SETTINGS, seeds=1))
    asserts.assert_trees_equal(tree.index(alone.buffer, 0), tree.index(both.buffer, 0))
    assert isinstance(envs.find(SETTINGS.env), HostEnv)


def test_recording_environments_restart_and_leave_others_unchanged():
    """Open several environments of ale-py at once, because they share their metadata with the autoreset mode."""
    pytest.importorskip("ale_py")
    host_env, rng = envs.find("ale:Breakout"), np.random.default_rng(0)
    for vector_env in (host_env.open(2, 1), host_env.record(2)):
        other = host_env.record(1)
        first, ended = vector_env.reset([[5], [6]]), 0
        for _ in range(400):
            result = vector_env.step(rng.integers(0, 4, (2, 1)))
            assert vector_env.broken == {}
            assert result.valid.all()
            ended += int(result.step.terminated.sum())
        assert ended >= 2
        assert first.obs.shape == (2, 1, 4, 84, 84)
        for opened in (vector_env, other):
            opened.close()
