"""Hypothesis strategies for the arguments of fdqn's functions: small tensors rich in corner cases, which shrink well.

This is the only module that imports hypothesis.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from fdqn import check, random, training, tree
from fdqn.ops.schedules import (
    constant,
    cosine,
    cosine_restarts,
    exponential,
    linear,
    milestones,
    one_cycle,
    polynomial,
    staircase,
)
from fdqn.types import Params, Schedule, Transition

__all__ = [
    "configs", "keys", "labels", "masks", "params", "q_batches", "replay_operations", "schedules", "tensors",
    "transitions", "trees", "twin_trees", "uniforms", "words",
]  # fmt: skip

_CORNERS = (0.0, 1.0, -1.0, 0.5, 2.0**-23, -1e-6, 100.0)


def tensors(
    shape: Sequence[int],
    low: float = -100.0,
    high: float = 100.0,
    dtype: torch.dtype = torch.float32,
) -> st.SearchStrategy[Tensor]:
    """Generate finite floating-point tensors of a shape with numbers in [low, high]; corner cases and repeats are
    frequent.

    The bounds are rounded inwards to numbers of `dtype`. Raises TypeError for a dtype that is not floating-point and
    ValueError if no number of `dtype` is between the bounds.
    """
    check.floating("dtype", torch.empty(0, dtype=dtype))
    least, most = _inwards(low, high, dtype)
    if not least <= most:
        raise ValueError(f"low, high: expected a number of {dtype} between them, got {low} and {high}")
    numbers = st.sampled_from([x for x in (*_CORNERS, least, most) if least <= x <= most])
    first, last = _inwards(least, most, torch.float32)
    return _of(numbers | st.floats(first, last, width=32) if first <= last else numbers, shape, dtype)


@st.composite
def uniforms(draw: st.DrawFn, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Generate outputs of `random.uniform`: multiples of 2**-23 in [0, 1), with both ends frequent."""
    steps = st.one_of(st.sampled_from([0, 1, 2**22, 2**23 - 1]), st.integers(0, 2**23 - 1))
    return _filled(draw, steps, shape, torch.int64).to(dtype) * 2.0**-23


@st.composite
def words(draw: st.DrawFn, shape: Sequence[int]) -> Tensor:
    """Generate random bits: int64 in [0, 2**32), with both ends frequent."""
    return _filled(
        draw, st.one_of(st.sampled_from([0, 1, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1)), shape, torch.int64
    )


@st.composite
def keys(draw: st.DrawFn, shape: Sequence[int] = ()) -> Tensor:
    """Generate keys [*shape, 2], made from seeds or derived by `fold_in`."""
    derived = draw(st.booleans())
    key = random.key(draw(words(shape)))
    return random.fold_in(key, draw(st.integers(0, 2**32 - 1))) if derived else key


@st.composite
def masks(draw: st.DrawFn, shape: Sequence[int], at_least_one: bool = True) -> Tensor:
    """Generate masks of legal actions, bool `shape` = [..., A]. Rows where every action is legal are frequent.

    Every row has a legal action if `at_least_one`; otherwise rows without any are frequent too.
    """
    legal = _filled(draw, st.booleans(), shape, torch.bool)
    legal |= _filled(draw, st.sampled_from([False, False, True]), (*shape[:-1], 1), torch.bool)
    if at_least_one:
        one = _filled(draw, st.integers(0, shape[-1] - 1), shape[:-1], torch.int64)
        return legal | (one.unsqueeze(-1) == torch.arange(shape[-1]))
    return legal & _filled(draw, st.sampled_from([True, True, False]), (*shape[:-1], 1), torch.bool)


@st.composite
def q_batches(
    draw: st.DrawFn,
    max_batch: int = 4,
    max_actions: int = 5,
    at_least_one: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Generate `(q, legal)` [B, A]; half of the batches have ties."""
    shape = (draw(st.integers(1, max_batch)), draw(st.integers(1, max_actions)))
    ties = draw(st.booleans())
    numbers = st.sampled_from([-1.0, 0.0, 1.0]) if ties else st.floats(-1e4, 1e4, width=32)
    return _filled(draw, numbers, shape, dtype), draw(masks(shape, at_least_one))


@st.composite
def transitions(
    draw: st.DrawFn,
    batch: Sequence[int] = (3,),
    obs_shape: Sequence[int] = (2,),
    actions: int = 3,
    dtype: torch.dtype = torch.float32,
) -> Transition:
    """Generate transitions with leading axes `batch`; discounts are 0 or 1, and the next state may have no legal
    action.
    """
    batch, obs_shape = tuple(batch), tuple(obs_shape)
    return Transition(
        obs=draw(tensors((*batch, *obs_shape), dtype=dtype)),
        action=_filled(draw, st.integers(0, actions - 1), batch, torch.int64),
        reward=draw(tensors(batch, -10.0, 10.0, dtype)),
        discount=_filled(draw, st.sampled_from([0.0, 1.0]), batch, dtype),
        next_obs=draw(tensors((*batch, *obs_shape), dtype=dtype)),
        next_legal=draw(masks((*batch, actions), at_least_one=draw(st.booleans()))),
    )


@st.composite
def labels(
    draw: st.DrawFn, max_batch: int = 4, max_classes: int = 5, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Generate `(logits [B, K], labels [B])`, labels int64 in [0, K); ties, and logits whose `exp` overflows, are
    frequent.
    """
    batch, classes = draw(st.integers(1, max_batch)), draw(st.integers(1, max_classes))
    numbers = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1e4, -1e4]), st.floats(-10.0, 10.0, width=32))
    logits = _filled(draw, numbers, (batch, classes), dtype)
    return logits, _filled(draw, st.integers(0, classes - 1), (batch,), torch.int64)


def replay_operations(capacity: int, max_operations: int = 12) -> st.SearchStrategy[list[int | Tensor]]:
    """Generate operations for `laws.replay_like_deque`: a number of rows to add, at most `capacity`, or bits [B] to
    sample with.
    """
    adds = st.one_of(st.just(1), st.just(capacity), st.integers(1, capacity))
    samples = st.integers(1, 5).flatmap(lambda size: words((size,)))
    return st.lists(st.one_of(adds, adds, samples), min_size=1, max_size=max_operations)


@st.composite
def params(draw: st.DrawFn, max_layers: int = 2, max_size: int = 3, dtype: torch.dtype = torch.float64) -> Params:
    """Generate params trees: weights and biases of one to `max_layers` linear layers, with the names of an
    nn.Sequential.
    """
    sizes = draw(st.lists(st.integers(1, max_size), min_size=2, max_size=max_layers + 1))
    result = {}
    for i, (m, n) in enumerate(itertools.pairwise(sizes)):
        result[f"{2 * i}.weight"] = draw(tensors((n, m), -2.0, 2.0, dtype))
        result[f"{2 * i}.bias"] = draw(tensors((n,), -2.0, 2.0, dtype))
    return result


class Pair(NamedTuple):
    """A NamedTuple used by `trees`."""

    first: Any
    second: Any


def trees(
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64, torch.int64, torch.bool), max_leaves: int = 5
) -> st.SearchStrategy[Any]:
    """Generate nested dicts, lists, tuples and NamedTuples, including empty ones and bare leaves.

    Leaves are tensors of `dtypes` with shapes [], [0], [1], [3] and [2, 3]; floats are finite.
    """
    kinds = st.tuples(st.sampled_from([(), (0,), (1,), (3,), (2, 3)]), st.sampled_from(dtypes))
    return st.recursive(kinds.flatmap(lambda kind: _leaf(*kind)), _nested, max_leaves=max_leaves)


@st.composite
def twin_trees(
    draw: st.DrawFn,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64, torch.int64, torch.bool),
    max_leaves: int = 5,
) -> tuple[Any, Any]:
    """Generate two trees of equal structure, shapes and dtypes, with independent numbers."""
    first = draw(trees(dtypes, max_leaves))
    return first, tree.map(lambda x: draw(_leaf(x.shape, x.dtype)), first)


@st.composite
def configs(draw: st.DrawFn) -> training.Config:
    """Generate small configurations: at most 4 environments, batches of 8 rows and 24 rows of replay.

    A replay that one batch or one step fills, no warm-up, and soft target updates are frequent.
    """
    num_envs, batch_size = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    updates, least = draw(st.integers(1, 3)), max(num_envs, batch_size)
    return training.Config(
        num_envs=num_envs,
        steps_per_cycle=draw(st.integers(1, 3)),
        updates_per_cycle=updates,
        batch_size=batch_size,
        capacity=draw(st.one_of(st.just(least), st.integers(least, 24))),
        learning_starts=draw(st.one_of(st.just(0), st.integers(0, 20))),
        target_period=updates * draw(st.one_of(st.just(0), st.integers(0, 3))),
    )


_VALUES = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0, width=32))
_DECAYS = st.one_of(st.just(1.0), st.floats(0.5, 1.0, width=32))
_STEPS = st.one_of(st.just(1), st.integers(1, 1000))
_SCHEDULES: dict[Callable[..., Any], dict[str, st.SearchStrategy[Any]]] = {
    constant: {"value": _VALUES},
    linear: {"start": _VALUES, "end": _VALUES, "steps": st.one_of(st.just(0), _STEPS)},
    polynomial: {"start": _VALUES, "steps": _STEPS, "power": st.sampled_from([0.5, 1.0, 2.0]), "end": _VALUES},
    exponential: {"start": _VALUES, "decay": _DECAYS},
    staircase: {"start": _VALUES, "decay": _DECAYS, "every": _STEPS},
    milestones: {"start": _VALUES, "decay": _DECAYS, "milestones": st.lists(_STEPS, max_size=3)},
    cosine: {"start": _VALUES, "end": _VALUES, "steps": _STEPS},
    cosine_restarts: {"start": _VALUES, "end": _VALUES, "steps": _STEPS, "growth": st.integers(1, 3)},
    one_cycle: {"peak": _VALUES, "steps": st.integers(10, 1000)},
}
"""Strategies for the constants of each schedule."""


def schedules() -> st.SearchStrategy[Schedule]:
    """Generate schedules of `fdqn.ops.schedules` with their constants bound; their values are in [0, 1].

    Schedules of a single step are frequent, and for `linear` of none.
    """
    return st.one_of([st.builds(partial, st.just(f), **constants) for f, constants in _SCHEDULES.items()])


@st.composite
def _leaf(draw: st.DrawFn, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Generate finite floats, integers in [0, 100] or booleans."""
    if dtype.is_floating_point:
        return draw(tensors(shape, dtype=dtype))
    return _filled(draw, st.one_of(st.booleans(), st.integers(0, 100)), shape, dtype)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Wrap the trees of `inner` in one more container."""
    several = st.lists(inner, max_size=3)
    return st.one_of(
        several,
        several.map(tuple),
        st.dictionaries(st.sampled_from(["a", "b", "0.weight"]), inner, max_size=3),
        st.builds(Pair, inner, inner),
    )


def _inwards(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the least and the greatest finite number of `dtype` in [low, high]; unordered or not finite if there is
    none.
    """
    range, infinity = torch.finfo(dtype), torch.tensor(torch.inf, dtype=dtype)
    low, high = max(low, range.min), min(high, range.max)
    least, most = torch.tensor(low, dtype=dtype), torch.tensor(high, dtype=dtype)
    least = least if least.item() >= low else least.nextafter(infinity)
    most = most if most.item() <= high else most.nextafter(-infinity)
    return least.item(), most.item()


@st.composite
def _of(draw: st.DrawFn, numbers: st.SearchStrategy, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return _filled(draw, numbers, shape, dtype)


def _filled(draw: st.DrawFn, numbers: st.SearchStrategy, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.tensor(draw(st.lists(numbers, min_size=count, max_size=count)), dtype=dtype).reshape(tuple(shape))
