"""Prioritized experience replay. Schaul et al. 2016, https://arxiv.org/abs/1511.05952.

    P(i) = p_i**alpha / sum over j of p_j**alpha
    w_i  = (N P(i))**-beta / max over the batch of (N P(j))**-beta = (min over the batch of P(j) / P(i))**beta

The masses p**alpha are the leaves of a sum tree of three levels with F = ceil(C**(1/3)) children per node, so adding,
updating or sampling a row takes O(F) operations: sums over 100 numbers for a capacity C of a million. All masses are
float64 multiples of one power of two that is large enough for every sum to be exact. Sums therefore do not depend on
the order of additions, and rounding never selects a row of mass 0.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import check, random, tree
from fdqn.replay import ring
from fdqn.replay.ring import Ring
from fdqn.types import Added, Buffer, Sample, Schedule, Transition

LARGEST = 2**16
"""Largest mass; larger ones are clamped to it."""


class Prioritized(NamedTuple):
    """Rows and the sum tree of their masses p**alpha, with F**3 >= C leaves; unused leaves are 0."""

    ring: Ring
    mass: Tensor
    """[F * F * F] float64, mass of the row at each position."""
    pages: Tensor
    """[F * F] float64, sums over groups of F positions."""
    books: Tensor
    """[F] float64, sums over groups of F pages."""
    highest: Tensor
    """[] float64, largest mass so far, at least 1; new rows get this mass."""
    updates: Tensor
    """[] int64, number of calls of `update`."""


def buffer(capacity: int, alpha: float = 0.5, beta: float | Schedule = 0.4, epsilon: float = 0.0) -> Buffer:
    """Make a buffer of `capacity` rows that are sampled in proportion to `(priority + epsilon)**alpha`.

    New rows get the largest priority so far, at least 1. Rows of priority 0 are only sampled if all rows have priority
    0, and then uniformly.

    Args:
        capacity: number of rows.
        alpha: exponent of priorities, in [0, 1]; 0 samples uniformly.
        beta: exponent of the importance-sampling weights, in [0, 1]; 1 is the full correction. A schedule is called
            with the number of updates.
        epsilon: added to the priorities passed to `update`. Above 0, every row can be sampled again.

    Raises ValueError for a capacity below 1 or above 2**30 and for numbers out of range.
    """
    check.count("capacity", capacity, 1)
    if capacity > 2**30:
        raise ValueError(f"capacity: expected at most 2**30, got {capacity}")
    check.fraction("alpha", alpha)
    if not callable(beta):
        check.fraction("beta", beta)
    check.number("epsilon", epsilon, below=math.inf)
    return Buffer(
        init=partial(init, capacity=capacity),
        add=add,
        sample=partial(sample, beta=beta),
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
    width = _width(capacity)
    zero = torch.zeros((), dtype=torch.float64, device=rows.added.device)
    mass, pages, books = (zero.new_zeros(width**levels) for levels in (3, 2, 1))
    return Prioritized(rows, mass, pages, books, zero + 1.0, torch.zeros_like(rows.added))


def add(
    state: Prioritized, batch: Transition, ended: Tensor, valid: Tensor | None, gamma: Tensor | None = None
) -> tuple[Prioritized, Added]:
    """Write the rows of `batch` [E, ...] over the oldest ones, as `ring.add` does, with the largest priority so far."""
    rows, added = ring.add(state.ring, batch, ended, valid, gamma)
    at = added.number % _capacity(state)
    mass = torch.where(added.valid, state.highest, state.mass[at])
    return _with_mass(state._replace(ring=rows), at, mass), added


def sample(state: Prioritized, bits: Tensor, oldest: Tensor | int = 0, *, beta: float | Schedule = 0.4) -> Sample:
    """Sample rows with serial number >= `oldest`, with replacement, in proportion to their masses.

    `bits * 2**-32`, as a fraction of the total mass, is a point of the cumulative mass. It selects the row whose
    interval contains it.

    Shapes: bits [B] int64, integers in [0, 2**32). Raises as `ring.sample` does.
    """
    check.shapes("bits[B]", bits)
    check.bits("bits", bits)
    count = size(state, oldest)
    if check.seen(count < 1):
        raise ValueError("buffer: expected at least one row to sample from, got none; add rows first")
    skipped, drawable = _range(state, count, oldest)
    point = skipped + _round(torch.floor, bits.double() * 2.0**-32 * drawable, _capacity(state))
    total = state.books.sum()
    found = _find(state, torch.where(point >= total, point - total, point))
    uniform = (state.ring.added - count + random.index(bits, count)) % _capacity(state)
    at = torch.where(drawable > 0, found, uniform)

    batch, mass = tree.index(state.ring.rows, at), state.mass[at]
    weight = torch.where(drawable > 0, mass.amin() / mass, 1.0) ** (beta(state.updates) if callable(beta) else beta)
    return Sample(batch, at, weight.to(batch.reward.dtype))


def update(
    state: Prioritized, indices: Tensor, priority: Tensor, *, alpha: float = 0.5, epsilon: float = 0.0
) -> Prioritized:
    """Set the priorities [B] of the rows at `indices` [B]. A row that occurs several times gets the largest
    of its priorities.

    Masses are rounded to a multiple of 2**(ceil(log2(C)) - 36), about 1e-5 for a million rows, and clamped to
    `LARGEST`; a priority above 0 never becomes 0.

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
    given = torch.where(is_given, _mass(priority.double() + epsilon, alpha, _capacity(state)), -1.0)
    at = indices.clamp(0, _capacity(state) - 1)
    # Duplicate indices write the same value, so the order of writes does not matter.
    largest = torch.where(at.unsqueeze(-1) == at, given, -1.0).amax(-1)
    mass = torch.where(largest >= 0, largest, state.mass[at])
    highest = torch.maximum(state.highest, given.amax())
    return _with_mass(state, at, mass)._replace(highest=highest, updates=state.updates + 1)


def size(state: Prioritized, oldest: Tensor | int = 0) -> Tensor:
    """Count the rows [] with serial number >= `oldest`, including those of priority 0."""
    return ring.size(state.ring, oldest)


def bounds(state: Prioritized, steps: int) -> dict[str, tuple[Tensor, int]]:
    """Return entries of the state with their largest values. Sums must be exact: their errors have the bound 0."""
    width = state.books.shape[-1]
    filled = state.ring.added.clamp_max(state.ring.rows.reward.shape[-1]).unsqueeze(-1)
    is_empty = torch.arange(state.mass.shape[-1], device=filled.device) >= filled
    pages = state.mass.unflatten(-1, (width * width, width)).sum(-1)
    books = state.pages.unflatten(-1, (width, width)).sum(-1)
    return {
        **ring.bounds(state.ring, steps),
        "priorities": (state.mass, LARGEST),
        "priorities without rows": (torch.where(is_empty, state.mass, 0.0), 0),
        "sums of priorities": ((pages - state.pages).abs(), 0),
        "sums of sums": ((books - state.books).abs(), 0),
        "highest priority": (state.highest, LARGEST),
        "updates": (state.updates, 2**62),
    }


def _unchanged(state: Prioritized) -> Prioritized:
    return state


def _with_mass(state: Prioritized, at: Tensor, mass: Tensor) -> Prioritized:
    """Set the masses [B] at positions [B] and recompute the sums that contain them."""
    width = state.books.shape[0]
    masses = state.mass.index_put((at,), mass)
    page = at // width
    pages = state.pages.index_put((page,), masses.unflatten(0, (width * width, width))[page].sum(-1))
    book = page // width
    books = state.books.index_put((book,), pages.unflatten(0, (width, width))[book].sum(-1))
    return state._replace(mass=masses, pages=pages, books=books)


def _find(state: Prioritized, point: Tensor) -> Tensor:
    """Find the positions [B] whose intervals of cumulative mass contain the points [B], which are below the total."""
    width = state.books.shape[0]
    book, rest = _descend(state.books, point)
    page, rest = _descend(state.pages.unflatten(0, (width, width))[book], rest)
    page = book * width + page
    row, _ = _descend(state.mass.unflatten(0, (width * width, width))[page], rest)
    return (page * width + row).clamp_max(_capacity(state) - 1)


def _descend(masses: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Find the child [B] whose interval contains each point [B], and the offset [B] of the point in it.

    Shapes: masses of the children [B, F] or [F].
    """
    is_before = masses.cumsum(-1) <= point.unsqueeze(-1)
    # If all masses are 0, every child is before the point.
    child = is_before.sum(-1).clamp_max(masses.shape[-1] - 1)
    return child, point - torch.where(is_before, masses, 0.0).sum(-1)


def _range(state: Prioritized, count: Tensor, oldest: Tensor | int) -> tuple[Tensor | float, Tensor]:
    """Return the mass [] at positions before the oldest of the newest `count` rows, and the mass [] of these rows.

    In the order of the ring that starts at the oldest of these rows, they come first and all others follow.
    """
    total = state.books.sum()
    if not isinstance(oldest, Tensor) and oldest == 0:
        return 0.0, total
    added, capacity = state.ring.added, _capacity(state)
    stored, drawn = first = torch.stack([(added - capacity).clamp_min(0), added - count]) % capacity
    before_stored, before_drawn = _mass_before(state, first)
    # If drawn < stored, the newest rows are those between the two positions, else the older rows are.
    between = before_stored - before_drawn
    drawable = torch.where(drawn < stored, between, total + between)
    return before_drawn, torch.where(count > 0, drawable, 0.0)


def _mass_before(state: Prioritized, at: Tensor) -> Tensor:
    """Return the total mass [N] of the positions before each of `at` [N]."""
    width = state.books.shape[0]
    page = at // width
    book, child = page // width, torch.arange(width, device=at.device)

    def left(masses: Tensor, until: Tensor) -> Tensor:
        return torch.where(child < until.unsqueeze(-1), masses, 0.0).sum(-1)

    books = left(state.books, book)
    pages = left(state.pages.unflatten(0, (width, width))[book], page - book * width)
    return books + pages + left(state.mass.unflatten(0, (width * width, width))[page], at - page * width)


def _mass(priority: Tensor, alpha: float, capacity: int) -> Tensor:
    """Compute the masses [B] of priorities [B]: p**alpha rounded to the grid, and 0 only for priority 0."""
    mass = _round(torch.round, (priority**alpha).clamp_max(LARGEST), capacity).clamp_min(_grid(capacity))
    return torch.where(priority > 0, mass, 0.0)


def _round(rounded: Callable[[Tensor], Tensor], mass: Tensor, capacity: int) -> Tensor:
    return rounded(mass / _grid(capacity)) * _grid(capacity)


def _grid(capacity: int) -> float:
    """Return the power of two that divides all masses, so that sums of `capacity` masses fit in 52 bits."""
    return LARGEST * 2.0 ** (math.ceil(math.log2(capacity)) - 52)


def _capacity(state: Prioritized) -> int:
    return state.ring.rows.reward.shape[0]


def _width(capacity: int) -> int:
    """Return the smallest integer whose cube is at least `capacity`."""
    return next(width for width in itertools.count(1) if width**3 >= capacity)
