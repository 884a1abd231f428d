"""Seven tiny environments with known optimal action values: the first thing to run a new agent on.

Each probe tests one component of an agent, so the first probe that fails shows which one is broken. The values are
those of the optimal policy, exact: `q(gamma)` [N, A] at the N observations `obs`, and NaN for illegal actions, so that
a value that leaks through the mask is detected.

Jones 2021, "Debugging RL, without the agonizing pain", https://andyljones.com/posts/rl-debugging.html

.. include:: ../docs/debugging.md
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn.envs import episode
from fdqn.types import Env, EnvSpec, Scalar, Step

__all__ = [
    "ALL", "NOISE", "TIME_LIMIT", "Probe", "Rules", "State", "constant_reward", "delayed_reward", "endless_reward",
    "masked_reward", "reward_of_action", "reward_of_both", "reward_of_obs",
]  # fmt: skip

NOISE = 1
TIME_LIMIT = 5


class Probe(NamedTuple):
    """An environment and its optimal action values."""

    env: Env
    obs: Tensor
    """[N, 1], all of its observations."""
    legal: Tensor
    """[N, A] bool, mask of legal actions at each observation."""
    q: Callable[[Scalar], Tensor]
    """gamma [] -> optimal action values [N, A]; NaN where illegal."""


class State(NamedTuple):
    """State shared by all probes."""

    place: Tensor
    """[...] int64, 0 or 1: the position of the agent, which is also the observation."""
    time: Tensor
    """[...] int64, steps since the episode started."""


class Rules(NamedTuple):
    """A probe as tables over place (2 rows) and action; unused places have a row too."""

    places: int
    """Number of places used, 1 or 2."""
    starts: int
    """Number of places where an episode can start, equally likely."""
    reward: tuple[tuple[float, ...], ...]
    """[2][A], reward of each action."""
    ends: tuple[bool, bool]
    """True for a place where every action terminates; elsewhere every action leads to the last place."""
    legal: tuple[tuple[bool, ...], ...] = ((True, True), (True, True))


def constant_reward(dtype: torch.dtype = torch.float32) -> Probe:
    """One step that pays 1. Tests the loss and the optimizer.

    q = 1
    """
    rules = Rules(1, 1, ((1.0, 1.0),) * 2, (True, True))
    return _probe(rules, lambda gamma: [[1.0, 1.0]], dtype)


def reward_of_obs(dtype: torch.dtype = torch.float32) -> Probe:
    """One step that pays -1 at observation 0 and 1 at observation 1. Tests that gradients reach the observation.

    q = 2 obs - 1
    """
    rules = Rules(2, 2, ((-1.0, -1.0), (1.0, 1.0)), (True, True))
    return _probe(rules, lambda gamma: [[-1.0, -1.0], [1.0, 1.0]], dtype)


def delayed_reward(dtype: torch.dtype = torch.float32) -> Probe:
    """Two steps, observations 0 and 1; the second pays 1. Tests the bootstrap and the discount.

    q = gamma at 0, 1 at 1
    """
    rules = Rules(2, 1, ((0.0, 0.0), (1.0, 1.0)), (False, True))
    return _probe(rules, lambda gamma: [[gamma, gamma], [1.0, 1.0]], dtype)


def reward_of_action(dtype: torch.dtype = torch.float32) -> Probe:
    """One step that pays -1 for action 0 and 1 for action 1. Tests that the value of the chosen action is learned.

    q = 2 action - 1
    """
    rules = Rules(1, 1, ((-1.0, 1.0),) * 2, (True, True))
    return _probe(rules, lambda gamma: [[-1.0, 1.0]], dtype)


def reward_of_both(dtype: torch.dtype = torch.float32) -> Probe:
    """One step that pays 1 if the action differs from the observation, else -1. Tests that the rows of a batch are
    aligned.

    q = 2 (obs xor action) - 1
    """
    rules = Rules(2, 2, ((-1.0, 1.0), (1.0, -1.0)), (True, True))
    return _probe(rules, lambda gamma: [[-1.0, 1.0], [1.0, -1.0]], dtype)


def endless_reward(dtype: torch.dtype = torch.float32) -> Probe:
    """A continuing task that pays 1 a step and is truncated every 5 steps. Tests that truncation bootstraps.

    q = 1 / (1 - gamma);    an agent that treats truncation as termination finds at most (1 - gamma^5) / (1 - gamma)
    """
    rules = Rules(1, 1, ((1.0, 1.0),) * 2, (False, False))
    return _probe(rules, lambda gamma: [[1.0 / (1.0 - gamma)] * 2], dtype)


def masked_reward(dtype: torch.dtype = torch.float32) -> Probe:
    """Two steps; at the second, action 0 pays -1, action 1 pays -2 and action 2, which is illegal, would pay 1.

    q = -gamma at 0;    -1, -2, none at 1

    Tests the mask, in acting (an illegal action pays best) and in the target: all legal values are negative, so a
    target without the mask bootstraps from the illegal action, whose value stays at its initialization near 0.
    """
    legal = ((True, True, True), (True, True, False))
    rules = Rules(2, 1, ((0.0, 0.0, 0.0), (-1.0, -2.0, 1.0)), (False, True), legal)
    return _probe(rules, lambda gamma: [[-gamma, -gamma, -gamma], [-1.0, -2.0, float("nan")]], dtype)


ALL: dict[str, Callable[..., Probe]] = {
    "constant_reward": constant_reward,
    "reward_of_obs": reward_of_obs,
    "delayed_reward": delayed_reward,
    "reward_of_action": reward_of_action,
    "reward_of_both": reward_of_both,
    "endless_reward": endless_reward,
    "masked_reward": masked_reward,
}
"""Constructors `(dtype) -> Probe` by name; each probe requires the components that earlier ones test."""


def _probe(rules: Rules, q: Callable[[float], list[list[float]]], dtype: torch.dtype) -> Probe:
    spec = episode.spec((1,), dtype, actions=len(rules.legal[0]), noise=NOISE, time_limit=TIME_LIMIT)
    env = Env(partial(_reset, rules=rules, spec=spec), partial(_step, rules=rules, spec=spec), spec)
    obs = torch.arange(rules.places, dtype=dtype).unsqueeze(-1)
    legal = torch.tensor(rules.legal[: rules.places])
    return Probe(env, obs, legal, lambda gamma: torch.tensor(q(float(gamma)), dtype=dtype))


def _reset(u: Tensor, rules: Rules, spec: EnvSpec) -> tuple[State, Step]:
    episode.check_reset(u, NOISE)
    place = (u[..., 0] * rules.starts).to(torch.int64)
    state = State(place, torch.zeros_like(place))
    return episode.begin(state, _observe(state, spec), _at(place, rules.legal))


def _step(state: State, action: Tensor, u: Tensor, rules: Rules, spec: EnvSpec) -> tuple[State, Step]:
    """Apply the tables; an illegal action gets its tabulated reward, so that the mistake becomes visible."""
    episode.check_step(State, state, action, u, NOISE)
    rewards = _at(state.place, rules.reward).to(spec.obs_dtype)
    actions = torch.arange(len(rules.legal[0]), device=action.device)
    reward = torch.where(action.unsqueeze(-1) == actions, rewards, 0.0).sum(-1)
    terminated = torch.where(state.place == 1, rules.ends[1], rules.ends[0])
    state = State(torch.full_like(state.place, rules.places - 1), state.time + 1)
    obs, legal = _observe(state, spec), _at(state.place, rules.legal)
    return episode.advance(state, obs, legal, reward, terminated, _reset(u, rules, spec), spec.time_limit)


def _observe(state: State, spec: EnvSpec) -> Tensor:
    return state.place.to(spec.obs_dtype).unsqueeze(-1)


def _at(place: Tensor, table: tuple[tuple[float, ...], ...]) -> Tensor:
    """Return the row [..., A] of a table of two rows for each place [...]."""
    first, second = (torch.tensor(row, device=place.device) for row in table)
    return torch.where(place.unsqueeze(-1) == 1, second, first)
