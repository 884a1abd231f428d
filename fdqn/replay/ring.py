"""Store the last `capacity` transitions in a ring and draw them uniformly.

One counter is enough: the next row goes to position `added % capacity`, and `min(added, capacity)` rows are filled.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import check, random, tree
from fdqn.types import Added, Buffer, Sample, Step, Transition


class Ring(NamedTuple):
    """Rows and the number of rows ever added."""

    rows: Transition
    """Leaves [C, ...]."""
    added: Tensor
    """[] int64."""


def transition(obs: Tensor, action: Tensor, step: Step) -> Transition:
    """Make the transition of `action`, taken at `obs`, and of the environment's answer.

        discount = 0 if terminated else 1

    A truncated episode keeps its discount of 1, since its value continues (Pardo et al. 2018,
    https://arxiv.org/abs/1712.00378). Shapes: obs [..., *O], action [...], those of `Step`.
    """
    discount = torch.where(step.terminated, 0.0, 1.0).to(step.reward.dtype)
    return Transition(obs, action, step.reward, discount, step.next_obs, step.next_legal)


def buffer(capacity: int) -> Buffer:
    """Make a buffer of `capacity` rows that are drawn uniformly, with replacement.

    Raises ValueError for a capacity below 1.
    """
    check.count("capacity", capacity, 1)
    return Buffer(
        init=partial(init, capacity=capacity),
        add=add,
        sample=sample,
        update=_unchanged,
        size=size,
        cut=_unchanged,
        bounds=bounds,
    )


def init(example: Transition, capacity: int) -> Ring:
    """Return an empty ring for rows like `example`, a transition without leading axes.

    Raises TypeError for a dtype that cannot be stored; `check.STORED` lists those that can.
    """
    check.stored("example", example)
    rows = tree.map(lambda x: x.new_zeros((capacity, *x.shape)), example)
    return Ring(rows, torch.zeros((), dtype=torch.int64, device=example.reward.device))


def add(
    ring: Ring, batch: Transition, ended: Tensor, valid: Tensor | None, gamma: Tensor | None = None
) -> tuple[Ring, Added]:
    """Write the rows of `batch` [E, ...] over the oldest ones: those for which `valid` [E] holds, or all for None.

    `ended` and `gamma` are not used. Raises ValueError if the batch has more rows than the ring or rows of another
    shape, TypeError for another dtype.
    """
    if valid is not None:
        check.shapes("valid[E] batch.reward[E]", valid, batch.reward)
        check.boolean("valid", valid)
    _check_fits(ring, batch)
    return _add_all(ring, batch) if valid is None else _add_valid(ring, batch, valid)


def sample(ring: Ring, bits: Tensor, oldest: Tensor | int = 0) -> Sample:
    """Draw rows uniformly, with replacement, from those with a number of at least `oldest`.

        position = (bits * rows) >> 32          for each of the random integers `bits` [B] in [0, 2**32)

    All weights are 1. Raises TypeError for bits of another dtype than int64, and ValueError for bits out of range and
    for an empty buffer, if values can be read: on a CPU, outside of transforms and compilers. Elsewhere the rows of an
    empty buffer are zeros.
    """
    check.shapes("bits[B]", bits)
    check.words("bits", bits)
    count = size(ring, oldest)
    if check.seen(count < 1):
        raise ValueError("buffer: expected at least one row to sample from, got none; add rows first")
    at = random.index(bits, count)
    if not _is_zero(oldest):
        at = (ring.added - count + at) % _capacity(ring)
    batch = tree.index(ring.rows, at)
    return Sample(batch, at, torch.ones_like(batch.reward))


def size(ring: Ring, oldest: Tensor | int = 0) -> Tensor:
    """Count the rows [] with a number of at least `oldest`."""
    return (ring.added if _is_zero(oldest) else ring.added - oldest).clamp_max(_capacity(ring))


def bounds(ring: Ring, steps: int) -> dict[str, tuple[Tensor, int]]:
    """Return the number of rows added, and `steps`, which it cannot exceed."""
    return {"added": (ring.added, steps)}


def _unchanged(ring: Ring, *others: Tensor) -> Ring:
    return ring


def _add_all(ring: Ring, batch: Transition) -> tuple[Ring, Added]:
    count = batch.reward.shape[0]
    number = ring.added + torch.arange(count, device=ring.added.device)
    at = number % _capacity(ring)
    # Only index_put is done in place under donation; index_copy and scatter copy the whole ring.
    rows = tree.map(lambda old, new: old.index_put((at,), new), ring.rows, batch)
    written = torch.ones(count, dtype=torch.bool, device=number.device)
    return Ring(rows, ring.added + count), Added(batch, number, written)


def _add_valid(ring: Ring, batch: Transition, valid: Tensor) -> tuple[Ring, Added]:
    # The rows that are not added come behind those that are, and are replaced by what the ring has there.
    taken = valid.sum()
    place = torch.where(valid, valid.cumsum(0) - 1, taken + (~valid).cumsum(0) - 1)
    number = ring.added + place
    at = number % _capacity(ring)

    new = tree.where(valid, batch, tree.index(ring.rows, at))
    rows = tree.map(lambda old, x: old.index_put((at,), x), ring.rows, new)
    return Ring(rows, ring.added + taken), Added(batch, number, valid)


def _check_fits(ring: Ring, batch: Transition) -> None:
    capacity, count = _capacity(ring), batch.reward.shape[0]
    if count > capacity:
        raise ValueError(f"batch: expected at most capacity = {capacity} rows, got {count}")
    check.same("batch", tree.index(ring.rows, slice(count)), batch)


def _capacity(ring: Ring) -> int:
    return ring.rows.reward.shape[0]


def _is_zero(oldest: Tensor | int) -> bool:
    """Return True for the number 0, which adds nothing to a compiled graph."""
    return not isinstance(oldest, Tensor) and oldest == 0
