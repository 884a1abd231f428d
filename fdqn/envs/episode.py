"""Episode handling shared by all environments: reset, time limit and automatic restart.

An environment's module holds its dynamics. Its `step` passes the next state and observation, and those of a new
episode, to `advance`, which applies the time limit and selects between the two with `where`.

Sizes are constants of the environment's module and not fields of an EnvSpec: torch.compile turns an integer that
differs between two compiled calls into a symbol, and a shape or message built from a symbol does not compile.
"""

from typing import Protocol, TypeVar

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.types import EnvSpec, Step


class Timed(Protocol):
    """A state with a `time` [...] int64: steps since the episode started."""

    @property
    def time(self) -> Tensor: ...  # noqa: D102


S = TypeVar("S", bound=Timed)


def spec(obs_shape: tuple[int, ...], dtype: torch.dtype, actions: int, noise: int, time_limit: int) -> EnvSpec:
    """Make an EnvSpec from checked fields.

    Raises ValueError for a time limit below 1 and TypeError unless `dtype` is a floating-point dtype.
    """
    check.count("time_limit", time_limit, 1)
    check.kind("dtype", dtype, torch.dtype)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype}")
    return EnvSpec(obs_shape, dtype, actions, noise, time_limit)


def check_reset(u: Tensor, noise: int) -> None:
    """Raise ValueError or TypeError unless `u` is floating [..., K] and its readable numbers are in [0, 1)."""
    check.shapes(f"u[... {noise}]", u)
    check.uniforms("u", u)


def check_step(kind: type, state: Timed, action: Tensor, u: Tensor, noise: int) -> None:
    """Raise ValueError or TypeError unless `state` [...] is of type `kind`, `action` is integer [...] and `u` is
    floating [..., K].
    """
    if not isinstance(state, kind):
        raise TypeError(
            f"state: expected a state of {kind.__module__}, got {type(state).__module__}.{type(state).__name__}"
        )
    check.shapes(f"state.time[...] action[...] u[... {noise}]", state.time, action, u)
    check.integer("action", action)
    check.uniforms("u", u)


def all_legal(time: Tensor, actions: int) -> Tensor:
    """Return the mask [..., A] in which every action is legal, for a time [...]."""
    return time.new_ones((*time.shape, actions), dtype=torch.bool)


def begin(state: S, obs: Tensor, legal: Tensor, dtype: torch.dtype | None = None) -> tuple[S, Step]:
    """Return the state and Step of a reset: `next_obs` is `obs`, `reward` is 0 and nothing has ended.

    `dtype` is that of `reward`, by default that of `obs`. Shapes: obs [..., *O]; legal [..., A].
    """
    reward = torch.zeros_like(state.time, dtype=dtype or obs.dtype)
    terminated = torch.zeros_like(state.time, dtype=torch.bool)
    return state, Step(obs, legal, obs, legal, reward, terminated, torch.zeros_like(terminated))


def advance(
    state: S, obs: Tensor, legal: Tensor, reward: Tensor, terminated: Tensor, fresh: tuple[S, Step], time_limit: int
) -> tuple[S, Step]:
    """Return the state and Step of a step: the given state, or the `fresh` one of a reset where the episode ended.

        truncated = state.time >= time_limit        also if the task terminated, as in gymnasium's TimeLimit
        ended = terminated or truncated
        obs = fresh.obs where ended else obs,       next_obs = obs

    Args:
        state: State after the action.
        obs: Observation of that state, [..., *O].
        legal: Mask of legal actions at `obs`, bool [..., A].
        reward: Reward of the action, [...].
        terminated: True where the task ended, bool [...].
        fresh: State and Step of a new episode, as `begin` returns them.
        time_limit: Steps after which an episode is truncated.
    """
    truncated = state.time >= time_limit
    ended = terminated | truncated

    start, first = fresh
    shown, able = tree.where(ended, (first.obs, first.legal), (obs, legal))
    return tree.where(ended, start, state), Step(shown, able, obs, legal, reward, terminated, truncated)
