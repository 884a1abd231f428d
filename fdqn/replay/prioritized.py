"""Prioritized experience replay. Schaul et al. 2016, https://arxiv.org/abs/1511.05952.

    P(i) = p_i**alpha / sum over j of p_j**alpha
    w_i  = (N P(i))**-beta / max over the batch of (N P(j))**-beta = (min over the batch of P(j) / P(i))**beta

The masses p**alpha are the leaves of a sum tree with eight children per node, so adding, sampling or updating a row
takes O(log C) operations: seven levels for a capacity C of a million. Masses are fixed-point integers, whose sums are
exact. Sums therefore do not drift or depend on the order of additions, every device draws the same rows, and rounding
never selects a row of mass 0.

Optionally, a fraction u of the draws is uniform over the N rows, as in dqn_zoo:

    P(i) = (1 - u) p_i**alpha / sum over j of p_j**alpha + u / N
"""

import itertools
import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import check, random, tree
from fdqn.replay import ring
from fdqn.replay.ring import Ring
from fdqn.types import Added, Buffer, Sample, Scalar, Schedule, Transition

LARGEST = 2**16
"""Largest mass; larger ones are clamped to it."""

CHILDREN = 8
"""Children per node. With 10,000 rows, two children take 2 times as long as eight, four 1.3 and sixteen 1.1 times."""


class Prioritized(NamedTuple):
    """Rows and the sum tree of their masses p**alpha, integers in units of 1 / `_unit(C)`; unused entries are 0.

    The levels of the tree have C, ceil(C / 8), ceil(C / 64), ... entries, each padded to a multiple of 8, down to one.
    """

    ring: Ring
    mass: Tensor
    """[C, padded] int64, mass of the row at each position."""
    sums: tuple[Tensor, ...]
    """int64, sums of each eight entries of the level before, starting with `mass`; the last level is the total [1]."""
    highest: Tensor
    """[] int64, largest mass so far, at least that of priority 1; new rows get this mass."""
    updates: Tensor
    """[] int64, number of calls of `update`."""


def buffer(
    capacity: int,
    alpha: Scalar = 0.5,
    beta: Scalar | Schedule = 0.4,
    epsilon: float = 0.0,
    uniform: float = 0.0,
) -> Buffer:
    """Make a buffer of `capacity` rows that are sampled in proportion to `(priority + epsilon)**alpha`.

    New rows get the largest priority so far, at least 1. Unless `uniform` is above 0, rows of priority 0 are only
    sampled if all rows have priority 0, and then uniformly.

    Args:
        capacity: number of rows.
        alpha: exponent of priorities, in [0, 1]; with 0, all rows of a priority above 0 are equally likely.
        beta: exponent of the importance-sampling weights, in [0, 1]; 1 is the full correction. A schedule is called
            with the number of updates.
        epsilon: added to the priorities passed to `update`. Above 0, every row can be sampled again.
        uniform: fraction of draws that are uniform over all rows, in [0, 1]; 1e-3 in dqn_zoo.

    Raises ValueError for a capacity below 1 or above 2**30 and for numbers out of range.
    """
    check.count("capacity", capacity, 1)
    if capacity > 2**30:
        raise ValueError(f"capacity: expected at most 2**30, got {capacity}")
    check.fraction("alpha", alpha)
    if not callable(beta):
        check.fraction("beta", beta)
    check.number("epsilon", epsilon, below=math.inf)
    check.fraction("uniform", uniform)
    return Buffer(
        init=partial(init, capacity=capacity),
        add=add,
        sample=partial(sample, beta=beta, uniform=uniform),
        update=partial(update, alpha=alpha, epsilon=epsilon),
        size=size,
        cut=_unchanged,
        bounds=bounds,
    )


def init(example: Transition, capacity: int) -> Prioritized:
    """Return an empty buffer for rows like `example`, a transition without leading axes.

    Raises TypeError for a dtype that cannot be stored.
    """
    rows = ring.init(example, capacity)
    mass, *sums = (rows.added.new_zeros(entries) for entries in _levels(capacity))
    return Prioritized(rows, mass, tuple(sums), rows.added + _unit(capacity), torch.zeros_like(rows.added))


def add(
    state: Prioritized, batch: Transition, ended: Tensor, valid: Tensor | None, gamma: Tensor | None = None
) -> tuple[Prioritized, Added]:
    """Write the rows of `batch` [E, ...] over the oldest ones, as `ring.add` does, with the largest priority so far."""
    rows, added = ring.add(state.ring, batch, ended, valid, gamma)
    at = added.number % _capacity(state)
    mass = torch.where(added.valid, state.highest, state.mass[at])
    return _with_mass(state._replace(ring=rows), at, mass), added


def sample(
    state: Prioritized,
    bits: Tensor,
    oldest: Tensor | int = 0,
    *,
    beta: Scalar | Schedule = 0.4,
    uniform: float = 0.0,
) -> Sample:
    """Sample rows with serial number >= `oldest`, with replacement, in proportion to their masses.

    `bits * 2**-32`, as a fraction of the total mass, is a point of the cumulative mass. It selects the row whose
    interval contains it. The lowest `uniform * 2**32` bits select a row uniformly instead.

    Shapes: bits [B] int64, integers in [0, 2**32). Raises as `ring.sample` does.
    """
    check.shapes("bits[B]", bits)
    check.bits("bits", bits)
    count = size(state, oldest)
    if check.seen(count < 1):
        raise ValueError("buffer: expected at least one row to sample from, got none; add rows first")
    skipped, drawable = _range(state, count, oldest)
    total, threshold = state.sums[-1][0], round(uniform * 2**32)
    point = skipped + _fraction(_stretch(bits - threshold, 2**32 - threshold), drawable)
    # If the total mass is 0, the point -1 leads to the first row.
    found = _find(state, torch.where(drawable > 0, torch.where(point >= total, point - total, point), -1))
    is_by_mass = (bits >= threshold) & (drawable > 0)
    drawn = torch.where(bits >= threshold, bits, _stretch(bits, threshold))
    at = torch.where(is_by_mass, found, (state.ring.added - count + random.index(drawn, count)) % _capacity(state))

    batch, mass, rows = tree.index(state.ring.rows, at), state.mass[at].double(), count.double()
    chance = torch.where(drawable > 0, mass / drawable.double(), 1.0 / rows)
    chance = (1.0 - uniform) * chance + uniform / rows
    weight = (chance.amin() / chance) ** (beta(state.updates) if callable(beta) else beta)
    return Sample(batch, at, weight.to(batch.reward.dtype))


def update(
    state: Prioritized, indices: Tensor, priority: Tensor, *, alpha: Scalar = 0.5, epsilon: float = 0.0
) -> Prioritized:
    """Set the priorities [B] of the rows at `indices` [B].

    A row that occurs several times gets the largest of its priorities. Masses are rounded to a multiple of
    2**(ceil(log2(C)) - 42), about 2e-7 for a million rows, and clamped to `LARGEST`; a priority above 0 never becomes
    0.

    Raises ValueError for priorities that are negative or NaN and IndexError for indices outside [0, C), if values can
    be read; otherwise these rows keep their priorities.
    """
    check.shapes("indices[B] priority[B]", indices, priority)
    check.integer("indices", indices)
    check.floating("priority", priority)
    check.within("indices", indices, _capacity(state))
    if check.seen(~(priority >= 0)):
        raise ValueError("priority: expected numbers of at least 0, got a negative one or NaN")
    # A position without a row keeps mass 0.
    is_given = (priority >= 0) & (indices >= 0) & (indices < size(state))
    at = indices.clamp(0, _capacity(state) - 1)
    largest = _largest_of_duplicates(at, torch.where(is_given, priority, -1.0))
    mass = _mass(largest.double() + epsilon, alpha, _capacity(state))
    # Duplicate indices write the same value, so the order of writes does not matter.
    highest = torch.maximum(state.highest, torch.where(largest >= 0, mass, 0).amax())
    state = _with_mass(state, at, torch.where(largest >= 0, mass, state.mass[at]))
    return state._replace(highest=highest, updates=state.updates + 1)


def size(state: Prioritized, oldest: Tensor | int = 0) -> Tensor:
    """Count the rows [] with serial number >= `oldest`, including those of priority 0."""
    return ring.size(state.ring, oldest)


def bounds(state: Prioritized, steps: int) -> dict[str, tuple[Tensor, int]]:
    """Return entries of the state with their largest permitted values.

    Sums must be exact, so the largest error of a sum is 0.
    """
    capacity = state.ring.rows.reward.shape[-1]
    filled = state.ring.added.clamp_max(capacity).unsqueeze(-1)
    is_empty = torch.arange(state.mass.shape[-1], device=filled.device) >= filled
    errors = [_sum_errors(below, above) for below, above in itertools.pairwise((state.mass, *state.sums))]
    return {
        **ring.bounds(state.ring, steps),
        "priorities": (state.mass, LARGEST * _unit(capacity)),
        "priorities without rows": (torch.where(is_empty, state.mass, 0), 0),
        "sums of priorities": (torch.cat(errors, -1), 0),
        "highest priority": (state.highest, LARGEST * _unit(capacity)),
        "updates": (state.updates, 2**62),
    }


def _unchanged(state: Prioritized) -> Prioritized:
    return state


def _with_mass(state: Prioritized, at: Tensor, mass: Tensor) -> Prioritized:
    """Set the masses [B] at positions [B] and recompute the sums that contain them."""
    masses = below = state.mass.index_put((at,), mass)
    sums = []
    for level in state.sums:
        at = at // CHILDREN
        below = level.index_put((at,), _sum_of_children(below, at))
        sums.append(below)
    return state._replace(mass=masses, sums=tuple(sums))


def _sum_of_children(level: Tensor, node: Tensor) -> Tensor:
    """Sum the children of the nodes [B], entries of `level`. Unrolled, because inductor's loop over eight is slow."""
    total = level[node * CHILDREN]
    for i in range(1, CHILDREN):
        total = total + level[node * CHILDREN + i]
    return total


def _find(state: Prioritized, point: Tensor) -> Tensor:
    """Find the positions [B] whose intervals of cumulative mass contain the points [B], which are below the total."""
    at = torch.zeros_like(point)
    for level in reversed((state.mass, *state.sums[:-1])):
        child, point = _descend(level, at * CHILDREN, point)
        at = at * CHILDREN + child
    return at


def _descend(level: Tensor, first: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Find the child [B] whose interval contains each point [B], and the offset [B] of the point in it.

    `first` [B] are the positions of the first children in their level.
    """
    child = before = end = torch.zeros_like(point)
    # If children are loaded one at a time, inductor fuses all levels into one kernel. cumsum, or a copy of the
    # children, would split it.
    for i in range(CHILDREN - 1):
        end = end + level[first + i]
        is_before = end <= point
        child, before = child + is_before, torch.where(is_before, end, before)
    return child, point - before


def _largest_of_duplicates(at: Tensor, priority: Tensor) -> Tensor:
    """Return for each row the largest of the priorities [B] with the same position [B]."""
    at, priority = _stored(at.to(torch.int32)), _stored(priority)
    return _stored(torch.where(at.unsqueeze(-1) == at, priority, -1.0).amax(-1))


def _stored(x: Tensor) -> Tensor:
    """Copy x [B] in a way that inductor computes once, instead of once for each pair of rows: twice as fast overall."""
    return torch.zeros_like(x).index_put((torch.arange(x.shape[0], device=x.device),), x)


def _range(state: Prioritized, count: Tensor, oldest: Tensor | int) -> tuple[Tensor | int, Tensor]:
    """Return the mass [] at positions before the oldest of the newest `count` rows, and the mass [] of these rows.

    These rows are consecutive in the ring, so their masses are one interval of the cumulative mass, which may wrap
    around.
    """
    total = state.sums[-1][0]
    if not isinstance(oldest, Tensor) and oldest == 0:
        return 0, total
    added, capacity = state.ring.added, _capacity(state)
    stored, drawn = first = torch.stack([(added - capacity).clamp_min(0), added - count]) % capacity
    before_stored, before_drawn = _mass_before(state, first)
    # If drawn < stored, the newest rows are those between the two positions, else the older rows are.
    between = before_stored - before_drawn
    drawable = torch.where(drawn < stored, between, total + between)
    return before_drawn, torch.where(count > 0, drawable, 0)


def _mass_before(state: Prioritized, at: Tensor) -> Tensor:
    """Return the total mass [N] of the positions before each of `at` [N]."""
    before, child = torch.zeros_like(at), torch.arange(CHILDREN, device=at.device)
    for level in (state.mass, *state.sums[:-1]):
        node = at // CHILDREN
        is_left = child < (at - node * CHILDREN).unsqueeze(-1)
        before, at = before + torch.where(is_left, _children(level)[node], 0).sum(-1), node
    return before


def _sum_errors(below: Tensor, above: Tensor) -> Tensor:
    """Return the absolute errors [..., entries] of the sums in the level `above`."""
    sums = below.unflatten(-1, (-1, CHILDREN)).sum(-1)
    return (above - torch.nn.functional.pad(sums, (0, above.shape[-1] - sums.shape[-1]))).abs()


def _children(level: Tensor) -> Tensor:
    """View a level as the children [N, 8] of the nodes above it."""
    return level.unflatten(0, (-1, CHILDREN))


def _levels(capacity: int) -> list[int]:
    """Return the number of entries of each level, from masses to the total."""
    entries = [capacity]
    while entries[-1] > 1 or len(entries) == 1:
        entries.append(-(-entries[-1] // CHILDREN))
    return [*(-(-count // CHILDREN) * CHILDREN for count in entries[:-1]), 1]


def _mass(priority: Tensor, alpha: Scalar, capacity: int) -> Tensor:
    """Compute the masses [B] of priorities [B]: p**alpha in units, rounded, and 0 only for priority 0."""
    # Engines may differ in the last bit of the power. In float64 this changes the rounded mass once in 1e9.
    mass = ((priority**alpha).clamp_max(LARGEST) * _unit(capacity)).round().to(torch.int64).clamp_min(1)
    return torch.where(priority > 0, mass, 0)


def _fraction(bits: Tensor, total: Tensor) -> Tensor:
    """Compute floor(bits * total / 2**32) for a total below 2**58; the product itself would overflow."""
    high, low = total >> 29, total & (2**29 - 1)
    return (bits * high + ((bits * low) >> 29)) >> 3


def _stretch(bits: Tensor, count: int) -> Tensor:
    """Scale bits in [0, count) to [0, 2**32), after clamping them. A count of 2**32 leaves them unchanged."""
    count = max(count, 1)
    return (bits.clamp(0, count - 1) * (2**62 // count)) >> 30


def _unit(capacity: int) -> int:
    """Return the number of units in a mass of 1, so that the sum of `capacity` masses is at most 2**58."""
    return 2 ** (42 - math.ceil(math.log2(capacity)))


def _capacity(state: Prioritized) -> int:
    return state.ring.rows.reward.shape[0]
