"""Functions of the state alone, as before the Buffer record. Deleted when their last caller is."""

from typing import Any

import torch
from torch import Tensor

from fdqn.replay import frames, n_step, packing, ring
from fdqn.types import Buffer, Transition


def init(example: Transition, capacity: int, num_envs: int = 1, steps: int = 1, stack: int = 1) -> Any:
    """Return an empty state."""
    buffer = ring.buffer(capacity)
    if example.obs.dtype == torch.bool and stack == 1:
        buffer = packing.wrap(buffer)
    buffer = n_step.wrap(buffer, num_envs, steps)
    if stack > 1:
        buffer = frames.wrap(buffer, num_envs, stack, capacity, steps)
    return buffer.init(example)


def of(state: Any) -> Buffer:
    """Return the buffer of a state."""
    if isinstance(state, ring.Ring):
        return ring.buffer(state.rows.reward.shape[0])
    inner = of(state.buffer)
    if isinstance(state, packing.Packed):
        return packing.wrap(inner)
    if isinstance(state, n_step.NStep):
        return n_step.wrap(inner, state.recent.ended.shape[0], state.recent.ended.shape[1])
    return frames.wrap(inner, 1, 1, 1)


def remember(state: Any, batch: Transition, ended: Tensor, gamma: Tensor, valid: Tensor | None = None) -> Any:
    """Return the state after one step."""
    return of(state).add(state, batch, ended, valid, gamma)[0]


def sample(state: Any, words: Tensor) -> Transition:
    """Draw rows."""
    return of(state).sample(state, words, 0).batch


def filled(state: Any) -> Tensor:
    """Count the rows."""
    return of(state).size(state)


def cut(state: Any) -> Any:
    """Start new episodes."""
    return of(state).cut(state)


def bounds(state: Any, steps: int) -> dict[str, tuple[Tensor, int]]:
    """Return the bounds of a state that may have an axis of seeds."""
    return of(state).bounds(state, steps)
