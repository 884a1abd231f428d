"""Transitions over n steps, made of the last n of each environment. Sutton 1988; Mnih et al. 2016, arXiv:1602.01783.

    reward   = w_0 r_0 + w_1 r_1 + ... + w_(m-1) r_(m-1)
    discount = w_(m-1) discount_(m-1)                  the loss brings the last gamma
    w_i      = gamma^i discount_0 ... discount_(i-1)   gamma^i where discounts are 0 or 1
    m        = n, or fewer where the episode ends or a discount is 0: none crosses an end

Every step starts exactly one transition, which comes out n - 1 steps later, also those just before an end.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.types import Transition


class Recent(NamedTuple):
    """The last n transitions of each of E environments, in a ring of its own."""

    rows: Transition
    """Leaves [E, n, ...]."""
    ended: Tensor
    """[E, n] bool, whether an episode ended with it."""
    taken: Tensor
    """[E] int64, transitions ever taken in; the next goes to `taken % n`."""
    since: Tensor
    """[E] int64, those of them before which nothing belongs to what is played now."""


def init(example: Transition, num_envs: int, steps: int) -> Recent:
    """Nothing yet, for rows like `example`, a transition without leading axes."""
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
    """What is recent after one step of every environment; the transitions [E] that it completes, and whether it does.

    `batch` [E, ...] are those of the step alone; where `valid` [E] does not hold, there was none. A discount of 0 ends
    a transition as `ended` [E] does, even if the episode continues. `gamma` [].
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
    before = ends[env.unsqueeze(-1), order[:, :-1]].cumsum(-1) == 0  # no end up to there
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
    )
    return Recent(rows, ends, taken, recent.since), row, valid & (taken - recent.since >= steps)


def cut(recent: Recent) -> Recent:
    """The same where what is played from now on has nothing to do with what came before."""
    return recent._replace(since=recent.taken.clone())


def _weights(discount: Tensor, gamma: Tensor) -> Tensor:
    """`gamma**i` times the discounts before i, for discounts [E, n] of steps in turn."""
    place = torch.arange(discount.shape[-1], device=discount.device)
    before = torch.where(place < place.unsqueeze(-1), discount.unsqueeze(-2), 1.0)
    return gamma**place * before.prod(-1)
