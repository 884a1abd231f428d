"""n-step transitions. Sutton 1988; Mnih et al. 2016, https://arxiv.org/abs/1602.01783.

    reward   = w_0 r_0 + w_1 r_1 + ... + w_(m-1) r_(m-1)
    discount = w_(m-1) discount_(m-1)                  the loss applies the last gamma
    w_i      = gamma^i discount_0 ... discount_(i-1)   gamma^i where discounts are 0 or 1
    m        = n, or fewer if the episode ends or a discount is 0

Every step starts exactly one transition, which is complete n - 1 steps later. This includes the last steps of an
episode, whose transitions are stored during the next episode.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.types import Added, Buffer, Sample, Transition


class Recent(NamedTuple):
    """The last n single-step transitions of E environments, in one ring for each."""

    rows: Transition
    """Leaves [E, n, ...]."""
    ended: Tensor
    """[E, n] bool, True if the episode ended with this transition."""
    taken: Tensor
    """[E] int64, transitions ever added; the next goes to position `taken % n`."""
    since: Tensor
    """[E] int64, value of `taken` at the last `cut`; no n-step transition starts before it."""


class NStep(NamedTuple):
    """State of a buffer of n-step transitions."""

    recent: Recent
    buffer: Any
    """State of the wrapped buffer."""


def wrap(buffer: Buffer, num_envs: int, steps: int) -> Buffer:
    """Wrap `buffer` so that it stores transitions over `steps` steps; with `steps=1`, return it unchanged.

    `num_envs` is the number of environments, the rows of each `add`.

    Raises ValueError for a buffer that requires single-step transitions, such as one made by `n_step.wrap` or
    `frames.wrap`; wrap in the order `frames.wrap(n_step.wrap(ring.buffer(...)))`.
    """
    check.count("num_envs", num_envs, 1)
    check.count("steps", steps, 1)
    if "steps" in buffer.needs:
        raise ValueError(
            "buffer: expected one that stores any transitions, such as ring, got one that needs single steps; wrap it "
            "in n_step before n_step and frames"
        )
    if steps == 1:
        return buffer
    return Buffer(
        init=partial(_init, buffer, num_envs, steps),
        add=partial(_add, buffer),
        sample=partial(_sample, buffer),
        update=partial(_update, buffer),
        size=partial(_size, buffer),
        cut=partial(_cut, buffer),
        bounds=partial(_bounds, buffer),
        needs=(*buffer.needs, "steps"),
    )


def init(example: Transition, num_envs: int, steps: int) -> Recent:
    """Return empty rings for rows like `example`, a transition without leading axes."""
    check.count("num_envs", num_envs, 1)
    check.count("steps", steps, 1)
    taken = torch.zeros(num_envs, dtype=torch.int64, device=example.reward.device)
    return Recent(
        rows=tree.map(lambda x: x.new_zeros((num_envs, steps, *x.shape)), example),
        ended=torch.zeros((num_envs, steps), dtype=torch.bool, device=taken.device),
        taken=taken,
        since=taken.clone(),
    )


def add(
    recent: Recent, batch: Transition, ended: Tensor, valid: Tensor, gamma: Tensor
) -> tuple[Recent, Transition, Tensor]:
    """Add one step of every environment; return the rings, n-step transitions and flags for complete ones.

    A discount of 0 ends a transition as `ended` does, even if the episode continues.

    Shapes: batch [E, ...]; ended [E] bool, True where the episode ended with this step; valid [E] bool, False where no
    step was taken; gamma []; transitions [E, ...]; flags [E] bool.
    """
    check.shapes("batch.reward[E] ended[E] valid[E] gamma[]", batch.reward, ended, valid, gamma)
    check.boolean("ended", ended)
    check.boolean("valid", valid)
    steps = recent.ended.shape[1]
    env = torch.arange(recent.taken.shape[0], device=recent.taken.device)
    at = env, recent.taken % steps

    def write(ring: Tensor, new: Tensor) -> Tensor:
        return ring.index_put(at, tree.where(valid, new, ring[at]))

    rows, taken = tree.map(write, recent.rows, batch), recent.taken + valid
    ends = write(recent.ended, ended | (batch.discount == 0))
    order = (taken.unsqueeze(-1) + torch.arange(steps, device=env.device)) % steps  # oldest first
    before = ends[env.unsqueeze(-1), order[:, :-1]].cumsum(-1) == 0  # no end before this step
    weights = _weights(rows.discount[env.unsqueeze(-1), order], gamma)
    rewards = rows.reward[env.unsqueeze(-1), order] * weights
    last = before.sum(-1)
    completed, final = (tree.index(rows, (env, order.gather(-1, i.unsqueeze(-1))[:, 0])) for i in (last * 0, last))
    row = Transition(
        obs=completed.obs,
        action=completed.action,
        reward=(rewards[:, 0] + torch.where(before, rewards[:, 1:], 0.0).sum(-1)).to(batch.reward.dtype),
        discount=(final.discount * weights.gather(-1, last.unsqueeze(-1))[:, 0]).to(batch.discount.dtype),
        next_obs=final.next_obs,
        next_legal=final.next_legal,
        legal=completed.legal,
    )
    return Recent(rows, ends, taken, recent.since), row, valid & (taken - recent.since >= steps)


def cut(recent: Recent) -> Recent:
    """Start new episodes: no transition will contain steps from both sides of the cut."""
    return recent._replace(since=recent.taken.clone())


def _weights(discount: Tensor, gamma: Tensor) -> Tensor:
    """Return the weights w_i [E, n] of the rewards for discounts [E, n], oldest first."""
    place = torch.arange(discount.shape[-1], device=discount.device)
    before = torch.where(place < place.unsqueeze(-1), discount.unsqueeze(-2), 1.0)
    return gamma**place * before.prod(-1)


def _init(buffer: Buffer, num_envs: int, steps: int, example: Transition) -> NStep:
    return NStep(init(example, num_envs, steps), buffer.init(example))


def _add(
    buffer: Buffer, state: NStep, batch: Transition, ended: Tensor, valid: Tensor | None, gamma: Tensor
) -> tuple[NStep, Added]:
    valid = torch.ones_like(ended) if valid is None else valid
    recent, rows, complete = add(state.recent, batch, ended, valid, gamma)
    inner, added = buffer.add(state.buffer, rows, ended, complete, gamma)
    return NStep(recent, inner), added


def _sample(buffer: Buffer, state: NStep, bits: Tensor, oldest: Tensor | int = 0) -> Sample:
    return buffer.sample(state.buffer, bits, oldest)


def _update(buffer: Buffer, state: NStep, indices: Tensor, priority: Tensor) -> NStep:
    return state._replace(buffer=buffer.update(state.buffer, indices, priority))


def _size(buffer: Buffer, state: NStep, oldest: Tensor | int = 0) -> Tensor:
    return buffer.size(state.buffer, oldest)


def _cut(buffer: Buffer, state: NStep) -> NStep:
    return NStep(cut(state.recent), buffer.cut(state.buffer))


def _bounds(buffer: Buffer, state: NStep, steps: int) -> dict[str, tuple[Tensor, int]]:
    recent = torch.stack([state.recent.taken, state.recent.since])
    return {**buffer.bounds(state.buffer, steps), "recent": (recent, steps)}
