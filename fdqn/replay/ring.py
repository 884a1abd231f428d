"""Uniform replay: a ring of the last `capacity` transitions.

The next row goes to position `added % capacity`; `min(added, capacity)` positions are filled.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import check, random, tree
from fdqn.types import Added, Buffer, Sample, Step, Transition


class Ring(NamedTuple):
    """State of a ring buffer."""

    rows: Transition
    """Leaves [C, ...]."""
    added: Tensor
    """[] int64, number of rows ever added."""


def transition(obs: Tensor, action: Tensor, step: Step, legal: Tensor | tuple[()] = ()) -> Transition:
    """Make a transition from an observation, the action taken there, and the resulting step.

        discount = 0 if terminated else 1

    Truncation does not change the discount, so that the loss bootstraps from the last observation (Pardo et al. 2018,
    https://arxiv.org/abs/1712.00378).

    Shapes: obs [..., *O]; action [...]; step as in `Step`; legal [..., A] bool, the legal actions at `obs`, for agents
    with `needs_legal`.
    """
    discount = torch.where(step.terminated, 0.0, 1.0).to(step.reward.dtype)
    return Transition(obs, action, step.reward, discount, step.next_obs, step.next_legal, legal)


def buffer(capacity: int) -> Buffer:
    """Make a buffer of `capacity` rows that samples uniformly with replacement.

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
    """Write the rows of `batch` [E, ...] over the oldest ones, where `valid` [E] is True; None means everywhere.

    `ended` and `gamma` are not used.

    Raises ValueError if the batch has more rows than the ring or rows of another shape, and TypeError for another
    dtype.
    """
    if valid is not None:
        check.shapes("valid[E] batch.reward[E]", valid, batch.reward)
        check.boolean("valid", valid)
    _check_fits(ring, batch)
    return _add_all(ring, batch) if valid is None else _add_valid(ring, batch, valid)


def sample(ring: Ring, bits: Tensor, oldest: Tensor | int = 0) -> Sample:
    """Sample rows with serial number >= `oldest` uniformly with replacement. All weights are 1.

        index = (bits * rows) >> 32          `rows` is the number of these rows

    Shapes: bits [B] int64, random integers in [0, 2**32).

    Raises TypeError for bits of another dtype, and ValueError for bits out of range or an empty buffer if values can be
    read: on a CPU, outside of transforms and compilers. Otherwise an empty buffer returns rows of zeros.
    """
    check.shapes("bits[B]", bits)
    check.bits("bits", bits)
    count = size(ring, oldest)
    if check.seen(count < 1):
        raise ValueError("buffer: expected at least one row to sample from, got none; add rows first")
    at = random.index(bits, count)
    if not _is_zero(oldest):
        at = (ring.added - count + at) % _capacity(ring)
    batch = tree.index(ring.rows, at)
    return Sample(batch, at, torch.ones_like(batch.reward))


def size(ring: Ring, oldest: Tensor | int = 0) -> Tensor:
    """Count the rows [] with serial number >= `oldest`."""
    return (ring.added if _is_zero(oldest) else ring.added - oldest).clamp_max(_capacity(ring))


def bounds(ring: Ring, steps: int) -> dict[str, tuple[Tensor, int]]:
    """Return the number of rows added and its bound, `steps`."""
    return {"added": (ring.added, steps)}


def _unchanged(ring: Ring, *others: Tensor) -> Ring:
    return ring


def _add_all(ring: Ring, batch: Transition) -> tuple[Ring, Added]:
    count = batch.reward.shape[0]
    number = ring.added + torch.arange(count, device=ring.added.device)
    at = number % _capacity(ring)
    # Only index_put runs in place on donated storage; index_copy and scatter copy the whole ring.
    rows = tree.map(lambda old, new: old.index_put((at,), new), ring.rows, batch)
    written = torch.ones(count, dtype=torch.bool, device=number.device)
    return Ring(rows, ring.added + count), Added(batch, number, written)


def _add_valid(ring: Ring, batch: Transition, valid: Tensor) -> tuple[Ring, Added]:
    # Invalid rows are ordered after the valid ones and replaced by the current content of the ring.
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
    """Return True for the Python number 0, for which a compiled graph needs no extra operations."""
    return not isinstance(oldest, Tensor) and oldest == 0
