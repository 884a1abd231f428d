"""Start, end and restart of an episode, shared by all pure environments.

An environment's file holds its physics. It passes the state and observation after an action, and those of a fresh
start, to `advance`, which applies the time limit and selects between the two with `where`.

Sizes are constants of the environment's file instead of fields of an EnvSpec: torch.compile turns an integer that
differs between two compiled calls into a symbol, and a shape or message made of a symbol does not compile.
"""

from typing import Protocol, TypeVar

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.types import EnvSpec, Step


class Timed(Protocol):
    """A state with `time` [...] int64, the number of steps since the episode started."""

    @property
    def time(self) -> Tensor: ...  # noqa: D102


S = TypeVar("S", bound=Timed)


def spec(obs_shape: tuple[int, ...], dtype: torch.dtype, actions: int, noise: int, time_limit: int) -> EnvSpec:
    """Make an EnvSpec. Raises ValueError for a time limit below 1, TypeError for a dtype that is not floating-point."""
    check.count("time_limit", time_limit, 1)
    check.kind("dtype", dtype, torch.dtype)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype}")
    return EnvSpec(obs_shape, dtype, actions, noise, time_limit)


def check_reset(u: Tensor, noise: int) -> None:
    """Raise ValueError or TypeError unless `u` is floating [..., K] in [0, 1). A transform hides the values."""
    check.shapes(f"u[... {noise}]", u)
    check.uniforms("u", u)


def check_step(kind: type, state: Timed, action: Tensor, u: Tensor, noise: int) -> None:
    """Raise ValueError or TypeError for a state of another `kind`, or wrong dtypes or shapes.

    Shapes: state and action [...]; u [..., K].
    """
    if not isinstance(state, kind):
        raise TypeError(
            f"state: expected that of {kind.__module__}, got {type(state).__module__}.{type(state).__name__}"
        )
    check.shapes(f"state.time[...] action[...] u[... {noise}]", state.time, action, u)
    check.integer("action", action)
    check.uniforms("u", u)


def all_legal(time: Tensor, actions: int) -> Tensor:
    """Make a mask [..., A] in which all actions are legal. Shapes: time [...]."""
    return time.new_ones((*time.shape, actions), dtype=torch.bool)


def begin(state: S, obs: Tensor, legal: Tensor, dtype: torch.dtype | None = None) -> tuple[S, Step]:
    """Return the result of `reset`: `next_obs` equals `obs`, `reward` is 0, and no episode has ended.

    The reward has `dtype`, by default that of `obs`. Shapes: obs [..., *O]; legal [..., A].
    """
    reward = torch.zeros_like(state.time, dtype=dtype or obs.dtype)
    terminated = torch.zeros_like(state.time, dtype=torch.bool)
    return state, Step(obs, legal, obs, legal, reward, terminated, torch.zeros_like(terminated))


def advance(
    state: S, obs: Tensor, legal: Tensor, reward: Tensor, terminated: Tensor, fresh: tuple[S, Step], time_limit: int
) -> tuple[S, Step]:
    """Return the result of `step`: the given state continues, except that `fresh` replaces it where the episode ended.

        truncated = state.time >= time_limit        also where the task terminated, as gymnasium's TimeLimit flags it
        ended = terminated or truncated
        obs = fresh.obs where ended else obs,       next_obs = obs

    Args:
        state: after the action.
        obs: after the action [..., *O].
        legal: legal actions at `obs` [..., A].
        reward: [...].
        terminated: [...] bool, True where the task ended.
        fresh: the result of `reset`.
        time_limit: steps after which an episode is truncated.
    """
    truncated = state.time >= time_limit
    ended = terminated | truncated

    start, first = fresh
    shown, able = tree.where(ended, (first.obs, first.legal), (obs, legal))
    return tree.where(ended, start, state), Step(shown, able, obs, legal, reward, terminated, truncated)
