"""Store each frame of stacked observations once.

A stacked observation [K, *frame] holds the last K frames of its episode, oldest first, with zeros before the first one.
It is stored as the place [2] of its newest frame: the index of the environment, and the serial number of the frame in
the ring of that environment.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.types import Added, Buffer, Sample, Transition


class Frames(NamedTuple):
    """The last F frames of E environments, in one ring for each."""

    ring: Tensor
    """[E, F, *frame]."""
    age: Tensor
    """[E, F] int64, number of earlier frames in the episode, at most K - 1."""
    written: Tensor
    """[E] int64, frames ever written; the next goes to position `written % F`."""
    row: Tensor
    """[E, F] int64, serial number of the row whose `obs` has this frame as its newest; -1 for none."""
    oldest: Tensor
    """[] int64, serial number of the oldest row whose frames are all stored."""
    fresh: Tensor
    """[E] bool, True if the next step is the first of an episode."""
    stacked: Tensor
    """[0, K, *frame], an empty tensor that records the shape of a stacked observation."""


class Stacked(NamedTuple):
    """State of a wrapped buffer, whose rows hold places [2] in `frames` instead of observations."""

    frames: Frames
    buffer: Any
    """State of the wrapped buffer."""


def wrap(buffer: Buffer, num_envs: int, stack: int, capacity: int, steps: int = 1) -> Buffer:
    """Wrap `buffer` so that each frame of stacked observations [stack, *frame] is stored once.

    Rows whose frames were overwritten are no longer sampled. This happens before they leave `buffer` only if episodes
    are shorter than 16 steps on average.

    Args:
        buffer: stores the rows, with int64 places [2] as observations.
        num_envs: number of environments E, the rows of each `add`.
        stack: frames per observation.
        capacity: capacity of `buffer` in rows, which determines the number of frames to keep.
        steps: steps per row if `buffer` is wrapped in `n_step`.

    Raises ValueError for a count below 1 or a buffer that requires unchanged observations, such as one made by
    `frames.wrap`, and TypeError for a count that is not an integer.
    """
    for name, count in (("num_envs", num_envs), ("stack", stack), ("capacity", capacity), ("steps", steps)):
        check.count(name, count, 1)
    if "observations" in buffer.needs:
        raise ValueError(
            "buffer: expected one that stores any observations, such as ring or n_step, got one that needs them "
            "unchanged; wrap it in frames once, and last"
        )
    return Buffer(
        init=partial(_init, buffer, num_envs, stack, capacity, steps),
        add=partial(_add, buffer),
        sample=partial(_sample, buffer),
        update=partial(_update, buffer),
        size=partial(_size, buffer),
        cut=partial(_cut, buffer),
        bounds=partial(_bounds, buffer),
        needs=("steps", "observations"),
    )


def init(example: Tensor, num_envs: int, capacity: int) -> Frames:
    """Return empty rings of `capacity` frames for observations like `example` [K, *frame].

    Raises ValueError for a capacity of fewer than two stacks or an example without axes, and TypeError for a dtype that
    cannot be stored.
    """
    check.stored("example", example)
    if example.ndim < 1:
        raise ValueError("example: expected a stack of frames [K, *frame], got a number")
    check.count("num_envs", num_envs, 1)
    check.count("capacity", capacity, 2 * example.shape[0])
    none = torch.zeros((num_envs, capacity), dtype=torch.int64, device=example.device)
    return Frames(
        ring=example.new_zeros((num_envs, capacity, *example.shape[1:])),
        age=none,
        written=none[:, 0].clone(),
        row=none - 1,
        oldest=none.new_zeros(()),
        fresh=torch.ones(num_envs, dtype=torch.bool, device=example.device),
        stacked=example.unsqueeze(0)[:0].clone(),
    )


def add(frames: Frames, obs: Tensor, next_obs: Tensor, ended: Tensor, valid: Tensor) -> tuple[Frames, Tensor, Tensor]:
    """Add one step of every environment; return the frames and the places [E, 2] of `obs` and of `next_obs`.

    Shapes: obs and next_obs [E, K, *frame]; ended [E] bool, True where the episode ended with this step; valid [E]
    bool, False where nothing is to be written.
    """
    stacks, capacity = frames.stacked.shape[1:], frames.ring.shape[1]
    sizes = " ".join(map(str, stacks))
    check.shapes(f"obs[E {sizes}] next_obs[E {sizes}] ended[E] valid[E]", obs, next_obs, ended, valid)
    for name, x in (("obs", obs), ("next_obs", next_obs)):
        if x.dtype != frames.ring.dtype:
            raise TypeError(f"{name}: expected {frames.ring.dtype}, got {x.dtype}")
    check.boolean("ended", ended)
    check.boolean("valid", valid)
    env = torch.arange(frames.written.shape[0], device=frames.written.device)
    first = frames.fresh.long()
    # Two positions are written at every step. Only the first step of an episode has two new frames; any other step
    # rewrites the second position with its old content.
    at = (frames.written.unsqueeze(-1) + torch.arange(2, device=env.device)) % capacity
    before = frames.age[env, (frames.written - 1) % capacity]
    age = torch.where(frames.fresh, 0, before)
    next_age = (age + 1).clamp_max(stacks[0] - 1)
    writes = valid.unsqueeze(-1) & torch.stack([torch.ones_like(frames.fresh), frames.fresh], -1)
    new = torch.stack([tree.where(frames.fresh, obs[:, -1], next_obs[:, -1]), next_obs[:, -1]], 1)
    ages = torch.stack([torch.where(frames.fresh, age, next_age), next_age], -1)
    rows = env.unsqueeze(-1)
    place = frames.written + first - 1
    after = frames._replace(
        ring=frames.ring.index_put((rows, at), tree.where(writes, new, frames.ring[rows, at])),
        age=frames.age.index_put((rows, at), torch.where(writes, ages, frames.age[rows, at])),
        written=frames.written + torch.where(valid, 1 + first, 0),
        fresh=torch.where(valid, ended, frames.fresh),
    )
    after = after._replace(oldest=torch.maximum(frames.oldest, lost(frames, after) + 1))
    return after, torch.stack([env, place], -1), torch.stack([env, place + 1], -1)


def stack(frames: Frames, at: Tensor) -> Tensor:
    """Return the observations [B, K, *frame] at places [B, 2]; their frames must still be stored."""
    check.shapes("at[B 2]", at)
    depth, capacity = frames.stacked.shape[1], frames.ring.shape[1]
    env, place = at.unbind(-1)
    back = torch.arange(depth - 1, -1, -1, device=at.device)
    seen = back <= frames.age[env, place % capacity].unsqueeze(-1)
    shown = frames.ring[env.unsqueeze(-1), (place.unsqueeze(-1) - back) % capacity]
    return tree.where(seen, shown, torch.zeros_like(shown))


def number(frames: Frames, at: Tensor, numbers: Tensor, valid: Tensor) -> Frames:
    """Record the serial numbers [B] of rows whose `obs` are at places [B, 2], where `valid` [B] is True."""
    where = at[:, 0], at[:, 1] % frames.ring.shape[1]
    return frames._replace(row=frames.row.index_put(where, torch.where(valid, numbers, frames.row[where])))


def lost(before: Frames, after: Frames) -> Tensor:
    """Return the serial number [] of the newest row that lost a frame in the `add` from `before` to `after`, or -1."""
    depth, capacity = after.stacked.shape[1], after.ring.shape[1]
    env = torch.arange(after.written.shape[0], device=after.written.device).unsqueeze(-1)
    # An observation is lost with its oldest frame; one `add` overwrites at most two frames.
    place = before.written.unsqueeze(-1) - capacity + depth - 1 + torch.arange(2, device=env.device)
    goes = (place >= 0) & (place < after.written.unsqueeze(-1) - capacity + depth - 1)
    return torch.where(goes, after.row[env, place % capacity], -1).amax()


def capacity(rows: int, num_envs: int, stack: int, steps: int) -> int:
    """Return the number of frames to keep per environment for `rows` rows of `steps` steps each.

    It suffices for episodes of 16 steps or more on average. Incomplete n-step transitions keep their frames for
    episodes of any length, since two frames per step are reserved for them.
    """
    each = math.ceil(rows / num_envs)
    return each + math.ceil(each / 16) + 2 * (steps + 1) + 2 * stack


def _init(buffer: Buffer, num_envs: int, stack: int, rows: int, steps: int, example: Transition) -> Stacked:
    check.stored("example", example)
    sizes = " ".join(map(str, (stack, *example.obs.shape[1:])))
    check.shapes(f"example.obs[{sizes}] example.next_obs[{sizes}]", example.obs, example.next_obs)
    place = torch.zeros(2, dtype=torch.int64, device=example.reward.device)
    inner = buffer.init(example._replace(obs=place, next_obs=place))
    return Stacked(init(example.obs, num_envs, capacity(rows, num_envs, stack, steps)), inner)


def _add(
    buffer: Buffer, state: Stacked, batch: Transition, ended: Tensor, valid: Tensor | None, gamma: Tensor
) -> tuple[Stacked, Added]:
    valid = torch.ones_like(ended) if valid is None else valid
    frames, obs, next_obs = add(state.frames, batch.obs, batch.next_obs, ended, valid)
    inner, added = buffer.add(state.buffer, batch._replace(obs=obs, next_obs=next_obs), ended, valid, gamma)
    frames = number(frames, added.batch.obs, added.number, added.valid)
    return Stacked(frames, inner), added._replace(batch=_shown(frames, added.batch))


def _sample(buffer: Buffer, state: Stacked, bits: Tensor, oldest: Tensor | int = 0) -> Sample:
    rows = buffer.sample(state.buffer, bits, _oldest(state, oldest))
    return rows._replace(batch=_shown(state.frames, rows.batch))


def _update(buffer: Buffer, state: Stacked, indices: Tensor, priority: Tensor) -> Stacked:
    return state._replace(buffer=buffer.update(state.buffer, indices, priority))


def _size(buffer: Buffer, state: Stacked, oldest: Tensor | int = 0) -> Tensor:
    return buffer.size(state.buffer, _oldest(state, oldest))


def _cut(buffer: Buffer, state: Stacked) -> Stacked:
    frames = state.frames._replace(fresh=torch.ones_like(state.frames.fresh))
    return Stacked(frames, buffer.cut(state.buffer))


def _bounds(buffer: Buffer, state: Stacked, steps: int) -> dict[str, tuple[Tensor, int]]:
    frames, at = state.frames, _places(state.buffer)
    return {
        **buffer.bounds(state.buffer, steps),
        "frames.env": (at[:, 0], frames.written.shape[-1] - 1),
        "frames.place": (at[:, 1], 2 * steps),
        "frames.written": (frames.written, 2 * steps),
        "frames.row": (frames.row + 1, steps),
        "frames.oldest": (frames.oldest, steps),
    }


def _places(state: Any) -> Tensor:
    """Collect all places [N, 2] in the state of a wrapped buffer: its leaves named `obs` and `next_obs`."""
    found = zip(tree.paths(state), tree.leaves(state), strict=True)
    return torch.cat([x.flatten(0, -2) for path, x in found if path.endswith((".obs", ".next_obs"))])


def _shown(frames: Frames, rows: Transition) -> Transition:
    """Replace the places in rows [B, ...] by observations [B, K, *frame]."""
    return rows._replace(obs=stack(frames, rows.obs), next_obs=stack(frames, rows.next_obs))


def _oldest(state: Stacked, oldest: Tensor | int) -> Tensor:
    """Return the serial number [] of the oldest row that may be sampled and whose frames are all stored."""
    if isinstance(oldest, Tensor):
        return torch.maximum(state.frames.oldest, oldest)
    return state.frames.oldest.clamp_min(oldest) if oldest else state.frames.oldest
