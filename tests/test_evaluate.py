"""Greedy episodes of many seeds at once, compared with a loop over seeds and episodes."""

import contextlib
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import vmap

from fdqn import compile, envs, networks, random, tree
from fdqn.compile import graph
from fdqn.envs import episode
from fdqn.envs.host import gymnasium as gym
from fdqn.experiment import assemble
from fdqn.experiment.settings import Settings
from fdqn.ops import exploration, masking
from fdqn.testing import probes
from fdqn.training import evaluate, streams
from fdqn.types import Env, EnvSpec, HostEnv, Network, Step

KEYS = random.fold_in(random.key(torch.arange(3)), 99)
ACTIONS = 3


class State(NamedTuple):
    x: Tensor
    time: Tensor


def noisy(time_limit: int = 150) -> Env:
    """Make an environment whose observations, rewards and legal actions all depend on the noise.

    Rewards counted after the end, reused noise and illegal actions change the returns.
    """
    spec = EnvSpec((1,), torch.float64, actions=ACTIONS, noise=2, time_limit=time_limit)

    def observe(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.unsqueeze(-1), torch.stack([x < 0.7, x >= 0.4, x < 2.0], -1)

    def reset(u: Tensor) -> tuple[State, Step]:
        x = u[..., 0].double()
        state = State(x, torch.zeros_like(x, dtype=torch.int64))
        return episode.begin(state, *observe(x))

    def step(state: State, action: Tensor, u: Tensor) -> tuple[State, Step]:
        x = u[..., 0].double()
        reward = x + 10.0 * action + state.x
        after = State(x, state.time + 1)
        return episode.advance(after, *observe(x), reward, u[..., 1] < 0.015, reset(u.flip(-1)), spec.time_limit)

    return Env(reset, step, spec)


def wide(seed: int, seeds: int = 3) -> tuple[Network, dict]:
    network = networks.mlp((1,), (8,), ACTIONS)
    params = network.init(random.key(torch.arange(seed, seed + seeds)))
    return network, {name: 3 * x.double() for name, x in params.items()}


def balancing(seeds: int = 3) -> tuple[Network, dict]:
    """Make parameters for CartPole: seed 0 balances the pole, seed 1 does the opposite, others are untrained."""
    network = networks.mlp((4,), (2,), 2)
    params = {name: x.double() for name, x in network.init(random.key(torch.arange(seeds))).items()}
    lean = torch.tensor([0.02, 0.1, 1.0, 0.4], dtype=torch.float64)
    for i, sign in ((0, 1.0), (1, -1.0)):
        params["0.weight"][i] = sign * torch.stack([lean, -lean])
        params["0.bias"][i] = 0
        params["2.weight"][i] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        params["2.bias"][i] = 0
    return network, params


def reference(env: Env, network: Network, params: dict, keys: Tensor, episodes: int, epsilon=0.0) -> np.ndarray:
    """Play one seed and one episode at a time, with noise drawn in chunks of 64 steps and separate bits for choices."""
    spec, returns = env.spec, np.zeros((len(keys), episodes))
    for i, key in enumerate(keys):
        stream = random.fold_in(key, streams.EVALUATION)
        first = random.uniform(random.fold_in(stream, 0), (episodes, spec.noise))
        own = {name: x[i] for name, x in params.items()}
        for n in range(episodes):
            state, step = env.reset(first[n])
            for t in range(spec.time_limit):
                if t % 64 == 0:
                    u = random.uniform(random.fold_in(stream, 1 + t), (64, episodes, spec.noise))
                    choice = random.uniform(random.fold_in(stream, 2**31 + t), (64, episodes, 2))
                q, legal = network.apply(own, step.obs).tolist(), step.legal.tolist()
                best = max((a for a in range(spec.actions) if legal[a]), key=lambda a: q[a])
                if (draw := choice[t % 64, n])[0] < epsilon:
                    able = [a for a in range(spec.actions) if legal[a]]
                    best = able[int(draw[1] * len(able))]
                state, step = env.step(state, torch.tensor(best), u[t % 64, n])
                returns[i, n] += float(step.reward)
                if step.terminated or step.truncated:
                    break
    return returns


def test_evaluation_equals_a_loop_over_seeds_and_episodes():
    network, params = wide(0)
    expected = reference(noisy(), network, params, KEYS, 6)
    np.testing.assert_allclose(
        evaluate.greedy_on_device(noisy(), network, params, KEYS, 6).returns, expected, rtol=1e-12
    )
    assert len(np.unique(expected)) == expected.size, "all returns are different"


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_a_fraction_of_actions_is_random(epsilon):
    network, params = wide(0)
    expected = reference(noisy(), network, params, KEYS, 6, epsilon)
    np.testing.assert_allclose(
        evaluate.greedy_on_device(noisy(), network, params, KEYS, 6, epsilon=epsilon).returns, expected, rtol=1e-12
    )
    assert not np.array_equal(expected, reference(noisy(), network, params, KEYS, 6))


def test_evaluation_equals_a_loop_in_cartpole():
    env = envs.make("cartpole", dtype=torch.float64)
    network, params = balancing()
    returns = evaluate.greedy_on_device(env, network, params, KEYS, 4).returns
    assert (returns[0] == 500).all(), "a seed that balances reaches the time limit"
    assert (returns[1] < 15).all()
    short = env._replace(spec=env.spec._replace(time_limit=70))  # the loop is slow, so compare a shorter limit
    limited = envs.make("cartpole", dtype=torch.float64, time_limit=70)
    np.testing.assert_array_equal(
        evaluate.greedy_on_device(limited, network, params, KEYS, 4).returns, reference(short, network, params, KEYS, 4)
    )


def test_evaluation_equals_a_loop_in_catch():
    env = envs.make("catch")
    network = networks.mlp((10, 5), (16,), 3)
    params = {name: 2 * x.double() for name, x in network.init(random.key(torch.arange(3))).items()}
    returns = evaluate.greedy_on_device(env, network, params, KEYS, 8).returns
    np.testing.assert_array_equal(returns, reference(env, network, params, KEYS, 8))
    assert set(np.unique(returns)) == {-1.0, 1.0}


@pytest.mark.parametrize("limit", [1, 63, 64, 65, 128])
def test_episodes_end_at_the_time_limit(limit):
    env = probes.endless_reward(torch.float64).env
    step = partial(env.step.func, **{**env.step.keywords, "spec": env.spec._replace(time_limit=limit)})
    env = Env(env.reset, step, env.spec._replace(time_limit=limit))
    network = networks.mlp((1,), (2,), 2)
    returns = evaluate.greedy_on_device(env, network, network.init(random.key(torch.arange(2))), KEYS[:2], 3).returns
    assert (returns == limit).all(), "a reward of 1 per step until the limit"


def counting_after_the_end(env, network, epsilon, params, states, u):
    """Plant a bug: count rewards after the end of an episode."""
    after = evaluate_play(env, network, epsilon, params, states._replace(ended=torch.zeros_like(states.ended)), u)
    return after._replace(ended=states.ended | after.ended)


def ignoring_masks(env, network, epsilon, params, states, u):
    """Plant a bug: select among all actions, legal or not."""
    return evaluate_play(env, network, epsilon, params, states._replace(legal=torch.ones_like(states.legal)), u)


def sharing_noise(env, network, epsilon, params, states, u):
    """Plant a bug: all episodes of a seed use the noise of the first."""
    return evaluate_play(env, network, epsilon, params, states, u[:1].expand_as(u))


evaluate_play = evaluate.play


@pytest.mark.parametrize("plant", [counting_after_the_end, ignoring_masks, sharing_noise])
def test_comparison_with_the_loop_rejects_planted_bugs(monkeypatch, plant):
    network, params = wide(0)
    monkeypatch.setattr(evaluate, "play", plant)
    wrong = evaluate.greedy_on_device(noisy(), network, params, KEYS, 6).returns
    assert not np.allclose(wrong, reference(noisy(), network, params, KEYS, 6))


def test_evaluation_selects_only_legal_actions():
    probe = probes.masked_reward()
    network = Network(lambda key: {}, lambda params, obs: params["q"].expand(*obs.shape[:-1], 3))
    params = {"q": torch.tensor([[0.0, -1.0, 9.0], [-1.0, 0.0, 9.0]])}
    returns = evaluate.greedy_on_device(probe.env, network, params, KEYS[:2], 5).returns
    np.testing.assert_array_equal(returns, [[-1.0] * 5, [-2.0] * 5])  # action 2 would pay 1


def test_a_seed_does_not_depend_on_other_seeds():
    network, params = wide(4)
    together = evaluate.greedy_on_device(noisy(), network, params, KEYS, 6).returns
    for i in range(3):
        alone = evaluate.greedy_on_device(
            noisy(), network, tree.map(lambda x: x[i : i + 1], params), KEYS[i:][:1], 6
        ).returns
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-12)
    other = KEYS.clone()
    other[1] += 1
    changed = evaluate.greedy_on_device(noisy(), network, params, other, 6).returns
    np.testing.assert_array_equal(changed[[0, 2]], together[[0, 2]])
    assert (changed[1] != together[1]).all()


def test_evaluation_is_pure():
    network, params = wide(0)
    before, keys = tree.clone(params), KEYS.clone()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = (evaluate.greedy_on_device(noisy(), network, params, keys, 3).returns for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.float64
    assert tree.equal(params, before)
    assert torch.equal(keys, KEYS)
    assert torch.equal(state, torch.get_rng_state())


def test_a_seed_of_nan_does_not_change_the_others():
    network, params = balancing()
    healthy = evaluate.greedy_on_device(envs.make("cartpole"), network, params, KEYS, 2).returns
    params["2.weight"][1] = torch.nan
    returns = evaluate.greedy_on_device(envs.make("cartpole"), network, params, KEYS, 2).returns
    np.testing.assert_array_equal(returns[[0, 2]], healthy[[0, 2]])


@pytest.mark.parametrize("episodes", [0, -3])
def test_fewer_than_one_episode_is_refused(episodes):
    network, params = wide(0)
    with pytest.raises(ValueError, match=f"episodes: expected at least 1, got {episodes}"):
        evaluate.greedy_on_device(noisy(), network, params, KEYS, episodes)
    with pytest.raises(ValueError, match=f"episodes: expected at least 1, got {episodes}"):
        evaluate.greedy_on_host(
            HostEnv(lambda *_: pytest.fail("an environment was opened"), None), network, params, KEYS, episodes
        )


def numpy_apply(params: dict, i: int, obs: np.ndarray) -> np.ndarray:
    w0, b0, w2, b2 = (params[name][i].numpy() for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
    return w2 @ np.maximum(w0 @ obs.astype(np.float64) + b0, 0) + b2


def test_host_evaluation_equals_a_loop_over_gymnasium():
    network, params = balancing()
    returns = evaluate.greedy_on_host(gym.named("CartPole-v1"), network, params, KEYS, 3).returns
    seeds = random.bits(random.fold_in(KEYS, streams.HOST_EVALUATION), (3,)).tolist()
    expected = np.zeros((3, 3))
    env = gymnasium.make("CartPole-v1")
    for i in range(3):
        for n in range(3):
            obs, _ = env.reset(seed=seeds[i][n])
            done = False
            while not done:
                obs, reward, terminated, truncated, _ = env.step(int(numpy_apply(params, i, obs).argmax()))
                expected[i, n] += reward
                done = terminated or truncated
    env.close()
    np.testing.assert_array_equal(returns, expected)
    assert (returns[0] == 500).all()
    assert (returns[1] < 15).all()


class Counter(gymnasium.Env):
    """Environment with actions `start` and `start + 1`, the action as reward, and episodes of 3 steps."""

    made = 0
    closed = 0

    def __init__(self, start=1, shape=(1,), fails_at=None):
        self.action_space = gymnasium.spaces.Discrete(2, start=start)
        self.observation_space = gymnasium.spaces.Box(-1, 1, shape)
        self.shape, self.fails_at, self.over, self.obs = shape, fails_at, True, np.zeros(shape, np.float32)
        Counter.made += 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.over = 0, False
        return self.obs, {}  # the same array at every step, as in some environments

    def step(self, action):
        assert not self.over, "step was called after the end"
        assert self.action_space.contains(action), action
        self.time += 1
        if self.time == self.fails_at:
            raise RuntimeError("the environment broke")
        self.over = self.time == 3
        self.obs += 0.1
        return self.obs, float(action), self.over, False, {}

    def close(self):
        Counter.closed += 1


@pytest.fixture
def counter():
    Counter.made = Counter.closed = 0
    return Counter


def constant(*values: tuple[float, float]) -> tuple[Network, dict]:
    apply = lambda params, obs: params["q"].expand(*obs.shape[:-1], 2)  # noqa: E731
    return Network(lambda key: {}, apply), {"q": torch.tensor(values)}


@pytest.mark.parametrize("start", [0, 1, 5])
def test_actions_start_at_the_start_of_the_space(counter, start):
    network, params = constant((1.0, 0.0), (0.0, 1.0))
    returns = evaluate.greedy_on_host(
        gym.from_factory("counter", partial(counter, start)), network, params, KEYS[:2], 4
    ).returns
    np.testing.assert_array_equal(returns, [[3.0 * start] * 4, [3.0 * (start + 1)] * 4])


def test_a_fraction_of_actions_is_random_in_host_environments(counter):
    """Check that the choices of an episode depend only on its seed, not on the number of episodes."""
    network, params = constant((1.0, 0.0), (0.0, 1.0))
    host_env = gym.from_factory("counter", partial(counter, 0))

    def played(seeds, epsilon):
        with contextlib.closing(host_env.open(*seeds.shape)) as states:
            some = {"q": params["q"][: len(seeds)]}
            each = evaluate.host_steps(states, host_env.spec, network, some, seeds, epsilon=epsilon)
            return next(played.returns for played in each if played.ended.all())

    seeds = evaluate.host_seeds(KEYS[:2], 200)
    fractions = played(seeds, 0.5).mean(1) / 3
    assert fractions.tolist() == pytest.approx([0.25, 0.75], abs=0.08)
    assert torch.equal(played(seeds[:, 7:9], 0.5), played(seeds, 0.5)[:, 7:9])
    assert torch.equal(played(seeds, 0.0), torch.tensor([[0.0], [3.0]]).expand(2, 200).double())
    everything = evaluate.greedy_on_host(host_env, network, params, KEYS[:2], 200, epsilon=0.5).returns
    np.testing.assert_array_equal(everything, played(seeds, 0.5))


def test_evaluation_closes_its_environments(counter):
    network, params = constant((1.0, 0.0), (0.0, 1.0))
    evaluate.greedy_on_host(gym.from_factory("counter", counter), network, params, KEYS[:2], 4)
    assert (counter.made, counter.closed) == (9, 9), "one for the spec"


def test_evaluation_closes_environments_that_fail(counter):
    network, params = constant((1.0, 0.0), (0.0, 1.0))
    with pytest.raises(ValueError, match="to their end, got RuntimeError: the environment broke"):
        evaluate.greedy_on_host(gym.from_factory("counter", partial(counter, fails_at=2)), network, params, KEYS[:2], 4)
    assert (counter.made, counter.closed) == (9, 9)


def test_host_evaluation_refuses_other_observations(counter):
    network = networks.mlp((4,), (2,), 2)
    params = network.init(random.key(torch.arange(2)))
    with pytest.raises(ValueError, match=r"env: expected observations that the network takes, got shape \[3, 2\]"):
        evaluate.greedy_on_host(
            gym.from_factory("counter", partial(counter, shape=(3, 2))), network, params, KEYS[:2], 2
        )
    assert counter.made == counter.closed == 5


def test_host_evaluation_refuses_another_number_of_actions(counter):
    network = networks.mlp((1,), (2,), 5)
    params = network.init(random.key(torch.arange(2)))
    with pytest.raises(ValueError, match="env: expected 5 actions, the number of outputs of the network, got 2"):
        evaluate.greedy_on_host(gym.from_factory("counter", counter), network, params, KEYS[:2], 2)
    assert counter.made == counter.closed == 5


def test_returns_in_cartpole_equal_those_in_gymnasium():
    network, params = balancing()
    inside = evaluate.greedy_on_device(envs.make("cartpole"), network, params, KEYS, 20).returns.mean(1)
    outside = evaluate.greedy_on_host(gym.named("CartPole-v1"), network, params, KEYS, 20).returns.mean(1)
    np.testing.assert_allclose(inside, outside, rtol=0.15)


def test_play_keeps_the_returns_of_ended_episodes():
    env, (network, params) = noisy(), wide(0, seeds=1)
    own = {name: x[0] for name, x in params.items()}
    state, step = env.reset(torch.full((2, 2), 0.5))
    returns, ended = torch.tensor([3.0, 4.0]).double(), torch.tensor([True, False])
    states = evaluate.Episodes(state, step.obs, step.legal, returns, ended, step.next_obs)
    after = evaluate.play(env, network, 0.0, own, states, torch.full((2, 4), 0.5))
    assert after.returns[0] == 3.0
    assert after.returns[1] == 4.0 + 1.0 + 10.0 * masking.greedy(network.apply(own, step.obs), step.legal)[1]
    assert after.ended.tolist() == [True, False]


def test_device_steps_yields_the_start_and_every_step():
    """Check the number of yielded states, and that `next_obs` at the end of an episode is not the reset observation."""
    network, params = wide(0)
    states = list(evaluate.device_steps(noisy(100), network, params, KEYS, 4))
    assert len(states) == 101
    np.testing.assert_array_equal(
        states[-1].returns, evaluate.greedy_on_device(noisy(100), network, params, KEYS, 4).returns
    )
    assert torch.equal(states[0].obs, states[0].next_obs)
    for before, after in pairwise(states):
        assert (before.ended <= after.ended).all()
        assert torch.equal(before.returns[before.ended], after.returns[before.ended])
        ends = after.ended & ~before.ended
        assert (after.obs[ends] != after.next_obs[ends]).all(), "first observation of the next episode"
    assert states[-1].ended.all()


def test_host_steps_equals_greedy_on_host():
    network, params = balancing()
    host_env, seeds = gym.named("CartPole-v1"), evaluate.host_seeds(KEYS, 2)
    assert seeds.shape == (3, 2)
    with contextlib.closing(host_env.open(3, 2)) as states:
        *_, last = evaluate.host_steps(states, host_env.spec, network, params, seeds)
    np.testing.assert_array_equal(last.returns, evaluate.greedy_on_host(host_env, network, params, KEYS, 2).returns)
    assert last.ended.all()


@pytest.mark.parametrize("name", ["cartpole", "gym:CartPole-v1"])
def test_progress_is_reported(name):
    network, params = balancing()
    reported = []
    returns = evaluate.greedy(
        envs.find(name), network, params, KEYS, 4, progress=lambda *now: reported.append(now)
    ).returns
    np.testing.assert_array_equal(returns, evaluate.greedy(envs.find(name), network, params, KEYS, 4).returns)
    ended, steps = zip(*reported, strict=True)
    assert reported[0] == (0, 0)
    assert ended[-1] == 12
    assert list(ended) == sorted(ended)
    assert all(a < b for a, b in pairwise(steps))
    assert steps[-1] >= returns.max() == 500
    for count, step in reported:
        assert count >= (returns < step).sum(), "the return is the length of the episode"
        assert count <= (returns <= step).sum()


ENDLESS = EnvSpec((1,), torch.float32, actions=2, noise=0, time_limit=gym.EPISODE_STEPS, endless=True)


@pytest.mark.parametrize(("steps", "episodes", "expected"), [
    ([], [], 1_000),  # before the first report
    ([200], [[0, 0]], 1_000),  # nothing has ended
    ([50_000, 100_000], [[0, 0], [0, 9]], 10_000),  # a seed without ended episodes: steps of one environment
    ([500_000, 1_000_000], [[0], [0]], 27_000),
    ([50_000, 100_000], [[9, 9], [5_000, 5_000]], 1_000),  # 10 steps each
    ([50_000, 100_000], [[9, 9], [409, 259]], 2_000),  # 125 and 200 steps each
    ([50_000, 100_000], [[2_500], [2_600]], 5_000),  # 20 steps each before, 500 now
    ([4_000], [[2]], 1_000),  # two of 2,000, but each environment took only 400 steps
    ([40_000, 80_000, 90_000], [[0], [10], [250]], 2_000),  # 200 steps each from 40,000 on
    ([100_000], [[500]], 2_000),  # one report
])  # fmt: skip
def test_step_limit_of_an_endless_environment_depends_on_training(steps, episodes, expected):
    steps, episodes = np.array(steps, dtype=np.int64), np.array(episodes, dtype=np.int64)
    assert evaluate.step_limit(ENDLESS, 10, steps, episodes) == expected
    own = ENDLESS._replace(endless=False, time_limit=500)
    assert evaluate.step_limit(own, 10, steps, episodes) == 500
    assert evaluate.step_limit(ENDLESS._replace(time_limit=600), 10, steps, episodes) == 600


@pytest.mark.parametrize("name", ["CartPole-v1", "FrozenLake-v1", "MountainCar-v0", "Taxi-v4"])
def test_time_limits_of_gymnasium_are_kept(name):
    spec = gym.named(name).spec
    assert (spec.time_limit, spec.endless) == (gymnasium.spec(name).max_episode_steps, False)


class Endless(gymnasium.Env):
    """Environment whose episodes do not end, with a reward of 1 per step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    ends: int | None = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), 1.0, self.time == (action + 1) * (self.ends or np.inf), False, {}


class Finite(Endless):
    """Environment that ends after 30 steps of action 0, or 60 steps of action 1."""

    ends = 30


@pytest.mark.parametrize(
    "made", [gym.named("CliffWalking-v1"), gym.from_factory("forever", Endless)], ids=["cliff", "own"]
)
def test_environments_without_a_time_limit_are_endless(made):
    assert (made.spec.time_limit, made.spec.endless) == (27_000, True)


def test_a_limit_marks_unfinished_episodes_of_host_environments():
    network, params = constant((1.0, 0.0), (0.0, 1.0))
    reported = []
    played = evaluate.greedy(
        gym.from_factory("ends", Finite),
        network,
        params,
        KEYS[:2],
        3,
        limit=50,
        progress=lambda *now: reported.append(now),
    )
    np.testing.assert_array_equal(played.returns, [[30.0] * 3, [50.0] * 3])
    assert (played.unfinished.tolist(), played.limit) == ([[False] * 3, [True] * 3], 50)
    assert played.failures == {}
    assert reported[-1] == (3, 50)
    played = evaluate.greedy(gym.from_factory("ends", Finite), network, params, KEYS[:2], 3, limit=60)
    assert not played.unfinished.any(), "an episode that ends at the limit is finished"


@pytest.mark.parametrize("limit", [1, 63, 64, 70])
def test_a_limit_marks_unfinished_episodes_of_pure_environments(limit):
    env, (network, params) = envs.make("cartpole", dtype=torch.float64), balancing()
    whole = evaluate.greedy_on_device(env, network, params, KEYS, 4).returns
    played = evaluate.greedy_on_device(env, network, params, KEYS, 4, limit=limit)
    np.testing.assert_array_equal(played.returns, np.minimum(whole, limit))
    assert played.limit == limit
    np.testing.assert_array_equal(played.unfinished, whole > limit)
    assert played.unfinished.any()


def test_a_limit_beyond_the_time_limit_changes_nothing():
    env, (network, params) = envs.make("cartpole"), balancing()
    played = evaluate.greedy_on_device(env, network, params, KEYS, 2, limit=10**6)
    np.testing.assert_array_equal(played.returns, evaluate.greedy_on_device(env, network, params, KEYS, 2).returns)
    assert (played.unfinished.any(), played.limit) == (False, 500)
    for limit, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="limit: expected "):
            evaluate.greedy_on_device(env, network, params, KEYS, 2, limit=limit)


@pytest.mark.parametrize("soon", [64, 192])
def test_fast_is_used_for_long_episodes(monkeypatch, soon):
    """Check that `fast` takes all steps after the first `soon`, with the same returns."""
    monkeypatch.setattr(evaluate, "_COMPILE_AFTER", soon)
    env, (network, params) = envs.make("cartpole", time_limit=300), balancing()
    slow, calls = vmap(partial(evaluate.play, env, network, 0.0)), []
    returns = evaluate.greedy_on_device(
        env, network, params, KEYS, 4, fast=lambda *given: calls.append(1) or slow(*given)
    ).returns
    assert len(calls) == 320 - soon - 20
    np.testing.assert_array_equal(returns, evaluate.greedy_on_device(env, network, params, KEYS, 4).returns)
    calls.clear()
    falling = {name: x[1:2] for name, x in params.items()}
    evaluate.greedy_on_device(
        env, network, falling, KEYS[1:2], 4, fast=lambda *given: pytest.fail("called for short episodes")
    )


def test_compiled_steps_equal_eager_steps(monkeypatch):
    """Compare every step of episodes long enough to be compiled."""
    monkeypatch.setattr(evaluate, "_COMPILE_AFTER", 0)
    env = envs.make("minatar:breakout", time_limit=150)
    network = networks.minatar(env.spec.obs_shape, env.spec.actions)
    params = network.init(random.fold_in(KEYS, streams.NETWORK))
    states = [
        evaluate.device_steps(env, network, params, KEYS, 4, fast=fast) for fast in (None, compile.player(env, network))
    ]
    for plain, quick in zip(*states, strict=True):
        assert tree.equal(plain, quick)


@pytest.mark.parametrize("name", envs.names())
def test_evaluation_compiles_one_step(monkeypatch, name):
    """Check that the first step, which is compiled on CUDA, has the signature of all others."""
    made = []

    def eager(f, args):
        traced, output = graph.trace(f, args)
        made.append(name)
        return graph.Graph(lambda *tensors: traced(*tensors), output)

    monkeypatch.setattr(evaluate, "_COMPILE_AFTER", 0)
    monkeypatch.setattr(graph, "compile_graph", eager)
    program = assemble.program(Settings(env=name))
    params = program.network.init(random.fold_in(KEYS, streams.NETWORK))
    player = compile.player(program.env, program.network)
    states = evaluate.device_steps(program.env, program.network, params, KEYS, 4, fast=player)
    for _ in range(4):
        next(states)
    assert len(made) == 1


def test_evaluation_epsilon_as_number_equals_tensor():
    """Check that a Python number is compared like a tensor of the dtype of the values."""
    q, legal = torch.randn(500, 3), torch.ones(500, 3, dtype=torch.bool)
    u = torch.stack([torch.arange(500) * 2.0**-23, torch.rand(500)], -1)
    epsilon = 250 * 2.0**-23 * (1 + 1e-9)  # rounds to the uniform of a row
    expected = exploration.epsilon_greedy(q, legal, torch.tensor(epsilon), u)
    assert torch.equal(evaluate._choose(q, legal, epsilon, u), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_parameters_on_a_gpu_are_evaluated_in_host_environments():
    network, params = balancing()
    on_gpu = {name: x.cuda() for name, x in params.items()}
    host_env = gym.named("CartPole-v1")
    returns = evaluate.greedy_on_host(host_env, network, on_gpu, KEYS.cuda(), 2).returns
    np.testing.assert_array_equal(returns[0], evaluate.greedy_on_host(host_env, network, params, KEYS, 2).returns[0])


def test_evaluation_uses_no_key_of_training():
    """Compare the keys that are used, because users pass the same keys to training and evaluation."""
    drawn, original = [], random.uniform

    def spy(key, shape=(), dtype=torch.float32):
        drawn.append(key.reshape(-1, 2))
        return original(key, shape, dtype)

    env, network = cartpole_and_network()
    params = network.init(random.fold_in(KEYS, streams.NETWORK))
    random.uniform = spy
    try:
        evaluate.greedy_on_device(env, network, params, KEYS, episodes=2)
    finally:
        random.uniform = original
    used = {tuple(k) for keys in drawn for k in keys.tolist()}
    for purpose in (streams.NETWORK, streams.RESET, streams.CYCLES, streams.HOST_EVALUATION):
        assert not used & {tuple(k) for k in random.fold_in(KEYS, purpose).tolist()}
    assert len(used) == len(drawn) * len(KEYS)


def cartpole_and_network():
    env = envs.make("cartpole")
    return env, networks.mlp(env.spec.obs_shape, (8,), env.spec.actions)
