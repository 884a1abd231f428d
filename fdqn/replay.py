"""The memory of the last `capacity` transitions, as a value: `init`, `add`, `sample`.

Rows live in a ring. One counter says everything: the next row to write is `added % capacity`, and `min(added,
capacity)` rows are filled.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import check, random, tree
from fdqn.types import Step, Transition


class Replay(NamedTuple):
    """Rows and how many were ever added."""

    rows: Transition
    """Leaves [C, ...]."""
    added: Tensor
    """[] int64."""


def transition(obs: Tensor, action: Tensor, step: Step) -> Transition:
    """What is stored of acting with `action` at `obs` and the world's answer.

        discount = 0 if terminated else 1

    A truncated episode goes on as far as values are concerned, so it keeps its discount of 1 (Pardo et al. 2018,
    https://arxiv.org/abs/1712.00378). Shapes: obs [..., *O], action [...], the step's own.
    """
    discount = torch.where(step.terminated, 0.0, 1.0).to(step.reward.dtype)
    return Transition(obs, action, step.reward, discount, step.next_obs, step.next_legal)


def init(example: Transition, capacity: int) -> Replay:
    """An empty replay for rows like `example`, a transition without leading axes.

    Raises ValueError for a capacity below 1.
    """
    if capacity < 1:
        raise ValueError(f"capacity: expected at least 1 row, got {capacity}")
    rows = tree.map(lambda x: x.new_zeros((capacity, *x.shape)), example)
    return Replay(rows, torch.zeros((), dtype=torch.int64, device=example.reward.device))


def add(replay: Replay, batch: Transition) -> Replay:
    """The replay with the rows of `batch` [B, ...] written over its oldest ones.

    Raises ValueError where the batch does not fit in or its rows differ in shape, TypeError where they do in dtype.
    """
    capacity, count = _capacity(replay), batch.reward.shape[0]
    if count > capacity:
        raise ValueError(f"batch: expected at most capacity = {capacity} rows, got {count}")
    check.same("batch", tree.index(replay.rows, slice(count)), batch)
    at = (replay.added + torch.arange(count, device=replay.added.device)) % capacity
    # index_put alone is done in place under donation; index_copy and scatter copy the whole ring.
    rows = tree.map(lambda ring, new: ring.index_put((at,), new), replay.rows, batch)
    return Replay(rows, replay.added + count)


def add_where(replay: Replay, batch: Transition, valid: Tensor) -> Replay:
    """`add` of those rows of `batch` [B, ...] for which `valid` [B] holds; the others leave no trace."""
    capacity, count = _capacity(replay), batch.reward.shape[0]
    if count > capacity:
        raise ValueError(f"batch: expected at most capacity = {capacity} rows, got {count}")
    check.same("batch", tree.index(replay.rows, slice(count)), batch)
    check.shapes("valid[B] batch.reward[B]", valid, batch.reward)
    # Behind the rows that are added come the others, which are written over by what is there.
    taken = valid.sum()
    place = torch.where(valid, valid.cumsum(0) - 1, taken + (~valid).cumsum(0) - 1)
    at = (replay.added + place) % capacity
    rows = tree.map(
        lambda ring, new: ring.index_put((at,), torch.where(_beside(valid, new), new, ring[at])), replay.rows, batch
    )
    return Replay(rows, replay.added + taken)


def sample(replay: Replay, words: Tensor) -> Transition:
    """Rows drawn uniformly with replacement, one for each 32-bit word: row `(word * filled) >> 32`.

    Shapes: words [B] int64 in [0, 2**32); result leaves [B, ...]. At least one row must have been added.
    """
    check.shapes("words[B]", words)
    check.integer("words", words)
    at = random.index(words, filled(replay))
    return tree.index(replay.rows, at)


def filled(replay: Replay) -> Tensor:
    """The number of rows [] that hold a transition."""
    return replay.added.clamp_max(_capacity(replay))


def _beside(flags: Tensor, x: Tensor) -> Tensor:
    """Flags [B] over the leading axis of x [B, ...]."""
    return flags.reshape(-1, *[1] * (x.ndim - 1))


def _capacity(replay: Replay) -> int:
    return replay.rows.reward.shape[0]
