"""Masks of legal actions: no illegal action is taken or used in a target, and a state without legal actions has
value 0.

The masks come from an environment, native or on the host, and go through replay.
"""

from typing import NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from plants import rejects
from test_host_environments import LabeledEnv

from fdqn import cli, networks, random, replay, training, tree
from fdqn.agents import dqn
from fdqn.envs import episode
from fdqn.envs.host import gymnasium as gym
from fdqn.experiment import assemble
from fdqn.ops import exploration, losses, masking
from fdqn.testing import asserts, examples, laws
from fdqn.training import host, off_policy
from fdqn.types import Env, HostEnv

DOORS = 5
SEEDS, ENVS, STEPS = 2, 500, 100
POISONS = (1e30, -1e30, torch.inf, -torch.inf, torch.nan)


# An environment with a random mask at every step; after termination no action is legal


class State(NamedTuple):
    time: torch.Tensor


def shown(legal, reward):
    """Observe the mask and the reward."""
    return torch.cat([legal.float(), reward.unsqueeze(-1)], -1)


def opened(u):
    return (u[..., :DOORS] < 0.3) | ((u[..., DOORS : DOORS + 1] * DOORS).long() == torch.arange(DOORS))


def reset(u):
    time = torch.zeros(u.shape[:-1], dtype=torch.int64)
    return episode.begin(State(time), shown(opened(u), 0.0 * u[..., 0]), opened(u))


def step(state, action, u):
    terminated, reward = u[..., DOORS + 1] < 0.2, u[..., DOORS + 2] - 0.5
    legal = opened(u) & ~terminated.unsqueeze(-1)
    return episode.advance(State(state.time + 1), shown(legal, reward), legal, reward, terminated, reset(u), 8)


ENV = Env(reset, step, episode.spec((DOORS + 1,), torch.float32, DOORS, noise=DOORS + 3, time_limit=8))


class Doors(VectorEnv):
    """The same environment on the host. It counts its actions and the illegal ones among them."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    single_action_space, single_observation_space = spaces.Discrete(DOORS), spaces.Box(-1, 1, (DOORS + 1,))
    actions_taken = illegal = 0

    def __init__(self, num_envs):
        self.num_envs = num_envs

    def draw(self):
        return torch.from_numpy(self.dice.random((self.num_envs, ENV.spec.noise), np.float32))

    def reset(self, *, seed=None, options=None):
        self.dice = np.random.default_rng(seed)
        self.state, first = ENV.reset(self.draw())
        self.legal = first.legal.numpy()
        return first.obs.numpy(), {"action_mask": self.legal}

    def step(self, actions):
        Doors.actions_taken += len(actions)
        Doors.illegal += int((~self.legal[np.arange(self.num_envs), actions]).sum())
        self.state, step = ENV.step(self.state, torch.from_numpy(actions), self.draw())
        self.legal = step.legal.numpy()
        last = {"final_obs": step.next_obs.numpy(), "final_info": {"action_mask": step.next_legal.numpy()}}
        ends = step.terminated.numpy(), step.truncated.numpy()
        return step.obs.numpy(), step.reward.numpy(), *ends, {"action_mask": self.legal, **last}


HOST_ENV = gym.from_vector("doors", Doors)


def poisoned(network, value):
    """Return the network with `value` for illegal actions."""
    return lambda params, obs: torch.where(obs[..., :DOORS] > 0, network.apply(params, obs), value)


def collected(where, epsilon=1.0, host_env=HOST_ENV, poison=1e30, steps=STEPS, needs_legal=False):
    """Collect a replay [S] with a network to which illegal actions look best."""
    network = networks.mlp((DOORS + 1,), (8,), DOORS)
    network = network._replace(apply=poisoned(network, poison))
    env = ENV if where == "native" else host_env
    program = examples.program(env, network=network, num_envs=ENVS, capacity=ENVS * steps)
    agent = program.algorithm.agent._replace(needs_legal=needs_legal)
    program = program._replace(algorithm=program.algorithm._replace(agent=agent))
    hyper = training.hyper(SEEDS, epsilon_start=epsilon, epsilon_end=epsilon)
    state = training.init(program, hyper, random.key(range(SEEDS)))
    noise = training.noise(program, state.key, 0, steps)
    if where == "native":
        return training.vmapped(program).collect(state, noise).buffer
    vector_env = host_env.open(SEEDS, ENVS)
    functions = host.functions(program, vector_env, host.vmapped(program))
    state = functions.collect(host.start(program, vector_env, state), noise)
    assert not vector_env.broken
    return state.buffer


def test_the_environment_satisfies_the_law():
    laws.env(ENV)


# Acting


def illegal(rows):
    """Count the rows with an illegal action."""
    return int((rows.obs[..., :DOORS].gather(-1, rows.action.unsqueeze(-1)) == 0).sum())


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("where", ["native", "host"])
def test_an_illegal_action_is_never_chosen_in_100_000_draws(monkeypatch, where, epsilon):
    monkeypatch.setattr(Doors, "actions_taken", 0)
    rows = collected(where, epsilon).rows
    assert rows.action.numel() == SEEDS * ENVS * STEPS == 100_000
    assert illegal(rows) == Doors.illegal == 0
    assert Doors.actions_taken == (100_000 if where == "host" else 0)
    assert (torch.bincount(rows.action.flatten()) > 1_000).all(), "every action was chosen somewhere"


def stale(vector_env):
    """Use the mask of the final state for the first observation of the next episode."""
    correct = vector_env.step
    vector_env.step = lambda actions: (a := correct(actions))._replace(step=a.step._replace(legal=a.step.next_legal))
    return vector_env


CHOICES = {
    "greedy over all": (masking, "greedy", lambda q, legal: q.argmax(-1), (0.0, 0.5)),
    "uniform over all": (exploration, "uniform", lambda legal, u: (u * legal.shape[-1]).long(), (0.5, 1.0)),
}


@pytest.mark.parametrize("plant", CHOICES)
@pytest.mark.parametrize("where", ["native", "host"])
def test_policies_that_ignore_the_mask_are_detected(monkeypatch, where, plant):
    module, name, wrong, rates = CHOICES[plant]
    monkeypatch.setattr(module, name, wrong)
    monkeypatch.setattr(Doors, "illegal", 0)
    for epsilon in rates:
        rows = collected(where, epsilon, steps=3).rows
        assert illegal(rows) > 100
        if where == "host":
            assert Doors.illegal >= illegal(rows)


def test_a_stale_mask_is_detected(monkeypatch):
    monkeypatch.setattr(Doors, "illegal", 0)
    wrong = HostEnv(lambda *sizes: stale(HOST_ENV.open(*sizes)), HOST_ENV.spec)
    assert illegal(collected("host", host_env=wrong, steps=3).rows) == Doors.illegal > 100


# Learning


def batch(where):
    """Return rows of one seed's replay that include both kinds of ends."""
    rows = tree.index(collected(where, steps=3), 0)
    rows = replay.ring.sample(rows, random.bits(random.key(1), (256,))).batch
    ends = rows.discount == 0
    assert 20 < ends.sum() < 100
    assert torch.equal(rows.next_legal.any(-1), ~ends)
    assert torch.equal(rows.next_obs[:, :DOORS] > 0, rows.next_legal), "the mask of the next state"
    return rows


def updated(loss, rows, poison=None):
    """Return the learner after one update; all values of illegal actions are poisoned."""
    network = networks.mlp((DOORS + 1,), (8,), DOORS)
    apply = network.apply if poison is None else poisoned(network, poison)
    optimizer = assemble.clipped(assemble.adam)(hyper := tree.index(training.hyper(1), 0))
    learner = off_policy.init(optimizer, network.init(random.key(3)))
    learner = learner._replace(target_params=network.init(random.key(4)))
    agent = dqn.agent(network._replace(apply=apply), double=loss is dqn.double_q_learning)
    return off_policy.update(agent, optimizer, learner, examples.sample(rows), hyper)[:2]


def assert_illegal_values_do_not_matter(loss, rows):
    """Compare loss, gradient norm and all parameters after the update, bit for bit."""
    expected = updated(loss, rows)
    asserts.assert_finite(expected)
    for poison in POISONS:
        asserts.assert_trees_equal(expected, updated(loss, rows, poison), f"illegal values {poison}: ")


LOSSES = pytest.mark.parametrize("loss", [dqn.q_learning, dqn.double_q_learning])


@LOSSES
@pytest.mark.parametrize("where", ["native", "host"])
def test_targets_do_not_depend_on_illegal_values(where, loss):
    assert_illegal_values_do_not_matter(loss, batch(where))


def product(q, action):
    return (q * losses.one_hot(action, q.shape[-1])).sum(-1)


TARGETS = {
    "a product with a one-hot vector": ("pick", product),
    "a subtracted constant instead of a mask": ("best", lambda q, legal: (q - 1e9 * ~legal).amax(-1)),
    "greedy over all": ("best", lambda q, legal: q.amax(-1)),
    "greedy choice over all": ("greedy", lambda q, legal: q.argmax(-1)),
}


@pytest.mark.parametrize("plant", TARGETS)
def test_targets_that_ignore_the_mask_are_detected(monkeypatch, plant):
    name, wrong = TARGETS[plant]
    rows = batch("host")
    monkeypatch.setattr(masking, name, wrong)
    with rejects("illegal values"):
        assert_illegal_values_do_not_matter(dqn.double_q_learning if name == "greedy" else dqn.q_learning, rows)


@pytest.mark.parametrize("where", ["native", "host"])
def test_legal_actions_at_the_observation_are_stored_for_agents_that_need_them(where):
    rows = collected(where, steps=20, needs_legal=True).rows
    assert torch.equal(rows.legal, rows.obs[..., :DOORS] != 0)
    assert not torch.equal(rows.legal, rows.next_legal)
    assert collected(where, steps=2).rows.legal == ()


@LOSSES
def test_a_replay_that_drops_the_mask_is_detected(loss):
    rows = batch("host")
    with rejects("illegal values"):
        assert_illegal_values_do_not_matter(loss, rows._replace(next_legal=torch.ones_like(rows.next_legal)))


def targets(loss, rows, value):
    """Return TD targets for an online network of zeros and a target network that gives `value` everywhere."""

    def apply(params, obs):
        return params["q"].expand(*obs.shape[:-1], DOORS)

    seen, hyper = [], tree.index(training.hyper(1), 0)
    online, target = ({"q": torch.tensor(x)} for x in (0.0, value))
    loss(apply, lambda delta: seen.append(delta) or delta, online, target, rows, hyper)
    return seen[0]


@LOSSES
@pytest.mark.parametrize("where", ["native", "host"])
def test_target_without_legal_actions_is_the_reward(where, loss):
    """Compare bit for bit, for any values of the target network."""
    rows = batch(where)
    end = ~rows.next_legal.any(-1)
    assert torch.equal(rows.reward, rows.next_obs[:, DOORS]), "the reward is that of the same step"
    for value in (3.0, *POISONS):
        target = targets(loss, rows, value)
        assert torch.equal(target[end], rows.reward[end])
        assert (target != rows.reward)[~end].all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("best", lambda q, legal: torch.where(legal, q, -torch.inf).amax(-1)),  # -inf times a discount of 0 is NaN
        ("best", lambda q, legal: q.amax(-1)),
    ],
)
def test_bootstrapping_after_the_end_is_detected(monkeypatch, name, wrong):
    rows = batch("host")
    monkeypatch.setattr(masking, name, wrong)
    end = ~rows.next_legal.any(-1)
    assert any(not torch.equal(targets(dqn.q_learning, rows, x)[end], rows.reward[end]) for x in (3.0, *POISONS))


# Invalid masks


class InvalidMasks(gymnasium.Wrapper):
    """Returns masks with a wrong number of actions or without legal actions."""

    mask, since = (1, 1, 1, 1), 0

    def __init__(self):
        super().__init__(LabeledEnv("nowhere"))

    def info(self):
        return {"action_mask": np.array(self.mask if self.env.time >= self.since else (1, 1, 1), np.int8)}

    def reset(self, **given):
        obs, _ = self.env.reset(**given)
        return obs, self.info()

    def step(self, action):
        *output, _ = self.env.step(action)
        return *output, self.info()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ((1, 1, 1, 1), "action_mask: expected 3 entries, one an action, got [4]"),
        ((1,), "action_mask: expected 3 entries, one an action, got [1]"),
        ((0, 0, 0), "action_mask: expected a legal action before the end, got none in environment 0"),
    ],
)
def test_invalid_masks_are_refused_at_the_start(tmp_path, monkeypatch, capsys, mask, message):
    monkeypatch.setattr(InvalidMasks, "mask", mask)
    command = [
        "train",
        "--env",
        f"{__name__}:InvalidMasks",
        "--seeds",
        "2",
        "--no-compile",
        "--out",
        str(tmp_path / "run"),
    ]
    assert cli.main(command) == 1
    expected = f"fdqn: env: expected {__name__}:InvalidMasks to start an episode, got {message}\n"
    assert capsys.readouterr().err.endswith(expected)


def test_no_legal_action_before_the_end_stops_a_seed(monkeypatch):
    monkeypatch.setattr(InvalidMasks, "mask", (0, 0, 0))
    monkeypatch.setattr(InvalidMasks, "since", 1)
    vector_env = gym.from_factory("invalid-masks", InvalidMasks).open(1, 2)
    vector_env.reset([[1, 2]])
    output = vector_env.step(np.zeros((1, 2), np.int64))
    vector_env.close()
    assert output.alive.tolist() == [False]
    assert vector_env.broken == {0: "action_mask: expected a legal action before the end, got none in environment 0"}
