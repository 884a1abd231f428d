"""The memory of the last `capacity` transitions, as a value: `init`, `add`, `sample`.

Rows live in a ring. One counter says everything: the next row to write is `added % capacity`, and `min(added,
capacity)` rows are filled.

Boolean observations lie in it packed, eight to a byte: 468 of them are 59 bytes. Their dtype alone says so. Of stacked
observations it holds places among `frames`. Either way what goes in comes out of `sample` as it was.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import check, random, tree
from fdqn.replay import frames, n_step, packing
from fdqn.replay.frames import Frames
from fdqn.replay.n_step import Recent
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
    frames: Frames | tuple[()] = ()
    """Of stacked observations, the frames; the rows have places [C, 2] for them."""
    recent: Recent | tuple[()] = ()
    """For transitions over several steps, those that are not complete."""


def transition(obs: Tensor, action: Tensor, step: Step) -> Transition:
    """What is stored of acting with `action` at `obs` and the world's answer.

        discount = 0 if terminated else 1

    A truncated episode goes on as far as values are concerned, so it keeps its discount of 1 (Pardo et al. 2018,
    https://arxiv.org/abs/1712.00378). Shapes: obs [..., *O], action [...], the step's own.
    """
    discount = torch.where(step.terminated, 0.0, 1.0).to(step.reward.dtype)
    return Transition(obs, action, step.reward, discount, step.next_obs, step.next_legal)


def init(example: Transition, capacity: int, num_envs: int = 1, steps: int = 1, stack: int = 1) -> Replay:
    """An empty replay for rows like `example`, a transition without leading axes.

    With `steps` above 1 or stacked observations, of `stack` frames, it is one for `remember` and so many environments.
    Raises ValueError for a capacity below 1, and TypeError for a dtype that cannot be stored: `check.STORED` can.
    """
    if capacity < 1:
        raise ValueError(f"capacity: expected at least 1 row, got {capacity}")
    check.stored("example", example)
    check.count("num_envs", num_envs, 1)
    check.count("steps", steps, 1)
    check.count("stack", stack, 1)
    shown: Frames | tuple[()] = ()
    zero = torch.zeros((), dtype=torch.int64, device=example.reward.device)
    if stack > 1:
        sizes = " ".join(map(str, (stack, *example.obs.shape[1:])))
        check.shapes(f"example.obs[{sizes}] example.next_obs[{sizes}]", example.obs, example.next_obs)
        shown = frames.init(example.obs, num_envs, frames.capacity(capacity, num_envs, stack, steps))
        example = example._replace(obs=zero.new_zeros(2), next_obs=zero.new_zeros(2))
    row = tree.map(lambda x: x.unsqueeze(0), example)
    observations = {"obs": row.obs, "next_obs": row.next_obs}
    unpacked = {name: x[:0].clone() for name, x in observations.items() if x.dtype == torch.bool}
    rows = tree.map(lambda x: x.new_zeros((capacity, *x.shape[1:])), _pack(unpacked, row))
    recent = n_step.init(example, num_envs, steps) if steps > 1 else ()
    return Replay(rows, zero, unpacked, shown, recent)


def remember(replay: Replay, batch: Transition, ended: Tensor, gamma: Tensor, valid: Tensor | None = None) -> Replay:
    """The replay after one step of every environment, whose transitions are `batch` [E, ...].

    `ended` [E] says that an episode ended with it, `valid` [E], if given, where a step was taken at all; `gamma` [] is
    the discount between steps, where rows are over several.
    """
    if not replay.frames and not replay.recent:
        return add(replay, batch) if valid is None else add_where(replay, batch, valid)
    if valid is None:
        valid = torch.ones_like(ended)
    check.boolean("ended", ended)
    if isinstance(replay.frames, Frames):
        shown, obs, next_obs = frames.add(replay.frames, batch.obs, batch.next_obs, ended, valid)
        replay, batch = replay._replace(frames=shown), batch._replace(obs=obs, next_obs=next_obs)
    if isinstance(replay.recent, Recent):
        recent, batch, valid = n_step.add(replay.recent, batch, ended, valid, gamma)
        replay = replay._replace(recent=recent)
    if isinstance(replay.frames, Frames):
        numbers = replay.added + valid.cumsum(0) - 1
        replay = replay._replace(frames=frames.number(replay.frames, batch.obs, numbers, valid))
    return add_where(replay, batch, valid)


def add(replay: Replay, batch: Transition) -> Replay:
    """The replay with the rows of `batch` [B, ...] written over its oldest ones.

    Raises ValueError where the batch does not fit in or its rows differ in shape, TypeError where they do in dtype.
    """
    packed, count = _fitting(replay, batch), batch.reward.shape[0]
    at = (replay.added + torch.arange(count, device=replay.added.device)) % _capacity(replay)
    # index_put alone is done in place under donation; index_copy and scatter copy the whole ring.
    rows = tree.map(lambda ring, new: ring.index_put((at,), new), replay.rows, packed)
    return replay._replace(rows=rows, added=replay.added + count)


def add_where(replay: Replay, batch: Transition, valid: Tensor) -> Replay:
    """`add` of those rows of `batch` [B, ...] for which `valid` [B] holds; the others leave no trace."""
    check.shapes("valid[B] batch.reward[B]", valid, batch.reward)
    check.boolean("valid", valid)
    packed = _fitting(replay, batch)
    # Behind the rows that are added come the others, which are written over by what is there.
    taken = valid.sum()
    place = torch.where(valid, valid.cumsum(0) - 1, taken + (~valid).cumsum(0) - 1)
    at = (replay.added + place) % _capacity(replay)

    new = tree.where(valid, packed, tree.index(replay.rows, at))
    rows = tree.map(lambda ring, x: ring.index_put((at,), x), replay.rows, new)
    return replay._replace(rows=rows, added=replay.added + taken)


def sample(replay: Replay, words: Tensor) -> Transition:
    """Rows drawn uniformly with replacement, one for each 32-bit word: row `(word * filled) >> 32`.

    Shapes: words [B] int64 in [0, 2**32); result leaves [B, ...]. Raises TypeError for words of another dtype, and
    ValueError for numbers that are no words and for an empty replay, where they can be read: outside of transforms and
    compilers, on a CPU. Elsewhere rows of an empty replay are zeros.
    """
    check.shapes("words[B]", words)
    check.words("words", words)
    count = filled(replay)
    if check.seen(count < 1):
        raise ValueError("replay: expected at least one row to sample from, got none; add rows first")
    at = random.index(words, count)
    if not isinstance(replay.frames, Frames):
        return _unpack(replay.unpacked, tree.index(replay.rows, at))
    rows = tree.index(replay.rows, (replay.added - count + at) % _capacity(replay))
    return rows._replace(obs=frames.stack(replay.frames, rows.obs), next_obs=frames.stack(replay.frames, rows.next_obs))


def filled(replay: Replay) -> Tensor:
    """The number of rows [] that hold a transition, whole."""
    count = replay.added - replay.frames.oldest if isinstance(replay.frames, Frames) else replay.added
    return count.clamp_max(_capacity(replay))


def cut(replay: Replay) -> Replay:
    """The same where new episodes begin in all environments although the last ones have not ended."""
    if isinstance(replay.recent, Recent):
        replay = replay._replace(recent=n_step.cut(replay.recent))
    if isinstance(replay.frames, Frames):
        replay = replay._replace(frames=replay.frames._replace(fresh=torch.ones_like(replay.frames.fresh)))
    return replay


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
        return packing.pack(flags.reshape(flags.shape[0], math.prod(flags.shape[1:])))

    return rows._replace(**{name: packed(name) for name in unpacked})


def _unpack(unpacked: dict[str, Tensor], rows: Transition) -> Transition:
    """Rows [B, ...] of the ring as they were added."""

    def flags(name: str) -> Tensor:
        packed, shape = getattr(rows, name), unpacked[name].shape[1:]
        return packing.unpack(packed, math.prod(shape)).reshape(packed.shape[0], *shape)

    return rows._replace(**{name: flags(name) for name in unpacked})
