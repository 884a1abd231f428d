"""Hypothesis strategies for what fdqn's functions take: small tensors full of corner cases, that shrink.

The only file that imports hypothesis.
"""

import itertools
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from fdqn import random
from fdqn.types import Params, Transition

_CORNERS = (0.0, 1.0, -1.0, 0.5, 2.0**-23, -1e-6, 100.0)


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: Sequence[int],
    low: float = -100.0,
    high: float = 100.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Finite floating tensors of that shape with numbers in [low, high]; corner cases and repeats are common."""
    corners = [x for x in (*_CORNERS, low, high) if low <= x <= high]
    numbers = st.one_of(st.sampled_from(corners), st.floats(low, high, width=32))
    return _filled(draw, numbers, shape, dtype)


@st.composite
def uniforms(draw: st.DrawFn, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """What `random.uniform` gives: multiples of 2**-23 in [0, 1), both ends included often."""
    steps = st.one_of(st.sampled_from([0, 1, 2**22, 2**23 - 1]), st.integers(0, 2**23 - 1))
    return _filled(draw, steps, shape, torch.int64).to(dtype) * 2.0**-23


@st.composite
def words(draw: st.DrawFn, shape: Sequence[int]) -> Tensor:
    """32-bit words, int64 in [0, 2**32), both ends included often."""
    return _filled(
        draw, st.one_of(st.sampled_from([0, 1, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1)), shape, torch.int64
    )


@st.composite
def keys(draw: st.DrawFn, shape: Sequence[int] = ()) -> Tensor:
    """Keys [*shape, 2], of seeds or derived from them."""
    derived = draw(st.booleans())
    key = random.key(draw(words(shape)))
    return random.fold_in(key, draw(st.integers(0, 2**32 - 1))) if derived else key


@st.composite
def masks(draw: st.DrawFn, shape: Sequence[int], at_least_one: bool = True) -> Tensor:
    """Masks of legal actions, bool `shape` = [..., A], with at least one legal in every row unless told otherwise."""
    legal = _filled(draw, st.booleans(), shape, torch.bool)
    if at_least_one:
        one = _filled(draw, st.integers(0, shape[-1] - 1), shape[:-1], torch.int64)
        legal = legal | (one.unsqueeze(-1) == torch.arange(shape[-1]))
    return legal


@st.composite
def q_batches(
    draw: st.DrawFn,
    max_batch: int = 4,
    max_actions: int = 5,
    at_least_one: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """`(q, legal)` [B, A], with ties in every second one."""
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
    """Transitions with leading axes `batch`; discounts are 0 or 1, after an end nothing need be legal."""
    batch, obs_shape = tuple(batch), tuple(obs_shape)
    return Transition(
        obs=draw(tensors((*batch, *obs_shape), dtype=dtype)),
        action=_filled(draw, st.integers(0, actions - 1), batch, torch.int64),
        reward=draw(tensors(batch, -10.0, 10.0, dtype)),
        discount=_filled(draw, st.sampled_from([0.0, 1.0]), batch, dtype),
        next_obs=draw(tensors((*batch, *obs_shape), dtype=dtype)),
        next_legal=draw(masks((*batch, actions), at_least_one=draw(st.booleans()))),
    )


def replay_operations(capacity: int, max_operations: int = 12) -> st.SearchStrategy[list[int | Tensor]]:
    """What `laws.replay_like_deque` performs: a number of rows to add, at most `capacity`, or words [B] to sample."""
    adds = st.one_of(st.just(1), st.just(capacity), st.integers(1, capacity))
    samples = st.integers(1, 5).flatmap(lambda size: words((size,)))
    return st.lists(st.one_of(adds, adds, samples), min_size=1, max_size=max_operations)


@st.composite
def params(draw: st.DrawFn, max_layers: int = 2, max_size: int = 3, dtype: torch.dtype = torch.float64) -> Params:
    """Params trees: weights and biases of one to `max_layers` linear layers, named as a Sequential's."""
    sizes = draw(st.lists(st.integers(1, max_size), min_size=2, max_size=max_layers + 1))
    result = {}
    for i, (m, n) in enumerate(itertools.pairwise(sizes)):
        result[f"{2 * i}.weight"] = draw(tensors((n, m), -2.0, 2.0, dtype))
        result[f"{2 * i}.bias"] = draw(tensors((n,), -2.0, 2.0, dtype))
    return result


def _filled(draw: st.DrawFn, numbers: st.SearchStrategy, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.tensor(draw(st.lists(numbers, min_size=count, max_size=count)), dtype=dtype).reshape(tuple(shape))
