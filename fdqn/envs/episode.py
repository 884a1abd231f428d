"""The frame of an episode, once for all environments: how it starts, ends and starts again.

An environment file is physics. It hands the state and the observation that an action led to, and those of a fresh
start, to `advance`, which counts the time limit and chooses between the two with `where`.

Sizes come as constants of the environment's file, not out of an EnvSpec: torch.compile turns an integer that differs
between two compiled calls into a symbol, and a shape or a message made of a symbol does not compile.
"""

from typing import Protocol, TypeVar

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.types import EnvSpec, Step


class Timed(Protocol):
    """A state that knows its `time` [...] int64: steps since the episode started."""

    @property
    def time(self) -> Tensor: ...  # noqa: D102


S = TypeVar("S", bound=Timed)


def spec(obs_shape: tuple[int, ...], dtype: torch.dtype, actions: int, noise: int, time_limit: int) -> EnvSpec:
    """An EnvSpec whose fields hold. Raises ValueError for a time limit below 1, TypeError for what is no such type."""
    check.count("time_limit", time_limit, 1)
    check.kind("dtype", dtype, torch.dtype)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype}")
    return EnvSpec(obs_shape, dtype, actions, noise, time_limit)


def check_reset(u: Tensor, noise: int) -> None:
    """Raise ValueError or TypeError unless `u` is floating [..., K]; numbers that can be read lie in [0, 1)."""
    check.shapes(f"u[... {noise}]", u)
    check.uniforms("u", u)


def check_step(kind: type, state: Timed, action: Tensor, u: Tensor, noise: int) -> None:
    """Raise ValueError or TypeError unless `action` is integer [...] and `u` floating [..., K] beside a state [...] of
    that kind.
    """
    if not isinstance(state, kind):
        raise TypeError(
            f"state: expected that of {kind.__module__}, got {type(state).__module__}.{type(state).__name__}"
        )
    check.shapes(f"state.time[...] action[...] u[... {noise}]", state.time, action, u)
    check.integer("action", action)
    check.uniforms("u", u)


def all_legal(time: Tensor, actions: int) -> Tensor:
    """The mask [..., A] of an environment that forbids nothing, for a time [...]."""
    return time.new_ones((*time.shape, actions), dtype=torch.bool)


def begin(state: S, obs: Tensor, legal: Tensor, dtype: torch.dtype | None = None) -> tuple[S, Step]:
    """What `reset` answers: `next_obs` is `obs`, `reward` is 0, in `dtype` or else that of `obs`, nothing has ended.

    Shapes: obs [..., *O]; legal [..., A].
    """
    reward = torch.zeros_like(state.time, dtype=dtype or obs.dtype)
    terminated = torch.zeros_like(state.time, dtype=torch.bool)
    return state, Step(obs, legal, obs, legal, reward, terminated, torch.zeros_like(terminated))


def advance(
    state: S, obs: Tensor, legal: Tensor, reward: Tensor, terminated: Tensor, fresh: tuple[S, Step], time_limit: int
) -> tuple[S, Step]:
    """What `step` answers: the given state goes on, or `fresh`, the answer of `reset`, where the episode ended.

        truncated = state.time >= time_limit        also where the task terminated, as gymnasium's TimeLimit flags it
        ended = terminated or truncated
        obs = fresh.obs where ended else obs,       next_obs = obs

    Shapes: obs [..., *O]; legal [..., A]; reward and terminated [...].
    """
    truncated = state.time >= time_limit
    ended = terminated | truncated

    start, first = fresh
    shown, able = tree.where(ended, (first.obs, first.legal), (obs, legal))
    return tree.where(ended, start, state), Step(shown, able, obs, legal, reward, terminated, truncated)
