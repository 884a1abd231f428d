"""The memory of the last `capacity` transitions, as a value: `init`, `add`, `sample`.

Rows live in a ring. One counter says everything: the next row to write is `added % capacity`, and `min(added,
capacity)` rows are filled.

Boolean observations lie in it packed, eight to a byte: 468 of them are 59 bytes. Their dtype alone says so; what goes
in by `add` comes out of `sample` as it was.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import bits, check, random, tree
from fdqn.types import Step, Transition


class Replay(NamedTuple):
    """Rows and how many were ever added."""

    rows: Transition
    """Leaves [C, ...]; of observations that lie packed uint8 [C, bytes]."""
    added: Tensor
    """[] int64."""
    unpacked: dict[str, Tensor]
    """Fields of the rows that lie packed, as they are outside: bool [0, *O], no rows but their shape.

    A tensor, so that it goes wherever the rows go: a checkpoint of 465 booleans does not pass for one of 468.
    """


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
    row = tree.map(lambda x: x.unsqueeze(0), example)
    observations = {"obs": row.obs, "next_obs": row.next_obs}
    unpacked = {name: x[:0].clone() for name, x in observations.items() if x.dtype == torch.bool}
    rows = tree.map(lambda x: x.new_zeros((capacity, *x.shape[1:])), _pack(unpacked, row))
    return Replay(rows, torch.zeros((), dtype=torch.int64, device=example.reward.device), unpacked)


def add(replay: Replay, batch: Transition) -> Replay:
    """The replay with the rows of `batch` [B, ...] written over its oldest ones.

    Raises ValueError where the batch does not fit in or its rows differ in shape, TypeError where they do in dtype.
    """
    packed, count = _fitting(replay, batch), batch.reward.shape[0]
    at = (replay.added + torch.arange(count, device=replay.added.device)) % _capacity(replay)
    # index_put alone is done in place under donation; index_copy and scatter copy the whole ring.
    rows = tree.map(lambda ring, new: ring.index_put((at,), new), replay.rows, packed)
    return Replay(rows, replay.added + count, replay.unpacked)


def add_where(replay: Replay, batch: Transition, valid: Tensor) -> Replay:
    """`add` of those rows of `batch` [B, ...] for which `valid` [B] holds; the others leave no trace."""
    check.shapes("valid[B] batch.reward[B]", valid, batch.reward)
    check.boolean("valid", valid)
    packed = _fitting(replay, batch)
    # Behind the rows that are added come the others, which are written over by what is there.
    taken = valid.sum()
    place = torch.where(valid, valid.cumsum(0) - 1, taken + (~valid).cumsum(0) - 1)
    at = (replay.added + place) % _capacity(replay)

    def write(ring: Tensor, new: Tensor) -> Tensor:
        chosen = valid.reshape(-1, *[1] * (new.ndim - 1))
        return ring.index_put((at,), torch.where(chosen, new, ring[at]))

    return Replay(tree.map(write, replay.rows, packed), replay.added + taken, replay.unpacked)


def sample(replay: Replay, words: Tensor) -> Transition:
    """Rows drawn uniformly with replacement, one for each 32-bit word: row `(word * filled) >> 32`.

    Shapes: words [B] int64 in [0, 2**32); result leaves [B, ...]. At least one row must have been added.
    """
    check.shapes("words[B]", words)
    check.integer("words", words)
    at = random.index(words, filled(replay))
    return _unpack(replay.unpacked, tree.index(replay.rows, at))


def filled(replay: Replay) -> Tensor:
    """The number of rows [] that hold a transition."""
    return replay.added.clamp_max(_capacity(replay))


def _fitting(replay: Replay, batch: Transition) -> Transition:
    """The rows of a batch as they lie in the ring, when it is seen that they may."""
    capacity, count = _capacity(replay), batch.reward.shape[0]
    if count > capacity:
        raise ValueError(f"batch: expected at most capacity = {capacity} rows, got {count}")
    check.same("batch", _unpack(replay.unpacked, tree.index(replay.rows, slice(count))), batch)
    return _pack(replay.unpacked, batch)


def _capacity(replay: Replay) -> int:
    return replay.rows.reward.shape[0]


def _pack(unpacked: dict[str, Tensor], rows: Transition) -> Transition:
    """Rows [B, ...] as they lie in the ring."""

    def packed(name: str) -> Tensor:
        flags = getattr(rows, name)
        return bits.pack(flags.reshape(flags.shape[0], math.prod(flags.shape[1:])))

    return rows._replace(**{name: packed(name) for name in unpacked})


def _unpack(unpacked: dict[str, Tensor], rows: Transition) -> Transition:
    """Rows [B, ...] of the ring as they were added."""

    def flags(name: str) -> Tensor:
        packed, shape = getattr(rows, name), unpacked[name].shape[1:]
        return bits.unpack(packed, math.prod(shape)).reshape(packed.shape[0], *shape)

    return rows._replace(**{name: flags(name) for name in unpacked})
