"""Tests of replay: equality with a deque, uniform sampling, cost of adding a row, packed booleans and dtypes."""

import time
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.func import vmap

from fdqn import check, random, replay, tree
from fdqn import compile as edge
from fdqn.replay import frames, packing, ring
from fdqn.storage import checkpoint
from fdqn.testing import asserts, laws, programs, strategies
from fdqn.types import Step, Transition

EXAMPLE = Transition(
    torch.zeros(2),
    torch.tensor(0),
    torch.tensor(0.0),
    torch.tensor(0.0),
    torch.zeros(2),
    torch.zeros(3, dtype=torch.bool),
)

RING = ring.buffer(1)
"""Its `add` and `sample` work on states of any capacity."""
PACKED = packing.wrap(RING)

# Keys are fixed, so tests of distributions are deterministic; their bounds would fail by chance once in 10,000.
CHANCE = 1e-4


def rows(*numbers):
    n = torch.tensor(numbers)
    pair = torch.stack([n, -n], -1).float()
    return Transition(pair, n, n.float(), torch.ones(len(n)), pair + 0.5, torch.stack([n % 2 == 0] * 3, -1))


def add(state, batch, valid=None, buffer=RING):
    """Return the state after adding the rows of a batch."""
    return buffer.add(state, batch, torch.zeros(batch.reward.shape, dtype=torch.bool), valid, torch.tensor(0.9))[0]


def sample(state, bits, buffer=RING):
    """Return the sampled rows."""
    return buffer.sample(state, bits, 0).batch


@given(st.integers(1, 7).flatmap(lambda c: st.tuples(st.just(c), strategies.replay_operations(c))))
def test_any_history_equals_a_deque(history):
    capacity, operations = history
    laws.replay_like_deque(operations, capacity)


@given(st.integers(1, 7).flatmap(lambda c: st.tuples(st.just(c), strategies.replay_operations(c))))
def test_any_history_of_booleans_equals_a_deque(history):
    capacity, operations = history
    laws.replay_like_deque(operations, capacity, obs_dtype=torch.bool)


@pytest.mark.parametrize("obs_dtype", [torch.float32, torch.bool, torch.uint8], ids=str)
@pytest.mark.parametrize("operations", [[3, 3], [1] * 9, [4], [3, 4, 1, 2], [4, 4, 4]])
def test_wrap_around(operations, obs_dtype):
    laws.replay_like_deque(operations, 4, obs_dtype=obs_dtype)


@pytest.mark.parametrize(("filled", "capacity"), [(37, 37), (20, 37), (37, 50)])
def test_sampling_is_uniform(filled, capacity):
    memory = ring.init(EXAMPLE, capacity)
    for first in range(0, filled, 5):
        memory = add(memory, rows(*range(first, min(first + 5, filled))))
    sampled = sample(memory, random.bits(random.key(8), (20_000,)))
    counts = torch.bincount(sampled.action, minlength=filled)
    assert len(counts) == filled
    assert stats.chisquare(counts.numpy()).pvalue > CHANCE


def test_sampling_after_a_wrap_is_uniform_over_the_last():
    memory = ring.init(EXAMPLE, 10)
    for first in range(0, 24, 4):
        memory = add(memory, rows(*range(first, first + 4)))
    counts = torch.bincount(sample(memory, random.bits(random.key(9), (20_000,))).action, minlength=24)
    assert counts[:14].sum() == 0
    assert stats.chisquare(counts[14:].numpy()).pvalue > CHANCE


@pytest.mark.parametrize(
    ("terminated", "truncated", "discount"),
    [(False, False, 1.0), (True, False, 0.0), (False, True, 1.0), (True, True, 0.0)],
)
def test_discount_is_0_only_after_termination(terminated, truncated, discount):
    obs, next_obs, legal = torch.zeros(2), torch.ones(2), torch.tensor([True, False, True])
    step = Step(
        obs + 5, legal, next_obs, ~legal, torch.tensor(2.0, dtype=torch.float64), torch.tensor(terminated),
        torch.tensor(truncated),
    )  # fmt: skip
    stored = replay.transition(obs, torch.tensor(1), step)
    assert stored.discount.item() == discount
    assert stored.discount.dtype == torch.float64
    assert (int(stored.action), float(stored.reward)) == (1, 2.0)
    asserts.assert_trees_equal((obs, next_obs, ~legal), (stored.obs, stored.next_obs, stored.next_legal))


def test_size_is_at_most_the_capacity():
    memory = ring.init(EXAMPLE, 5)
    counts = []
    for _ in range(3):
        counts.append(int(ring.size(memory)))
        memory = add(memory, rows(1, 2, 3))
    assert counts == [0, 3, 5]
    assert int(memory.added) == 9


def test_laws_of_a_function():
    memory = add(ring.init(EXAMPLE, 5), rows(1, 2, 3))
    bits = torch.tensor([0, 2**31, 2**32 - 1])
    laws.pure(add, memory, rows(4, 5, 6))
    laws.pure(sample, memory, bits)
    stacked = tree.stack([memory, add(memory, rows(7))])
    laws.vmapped(add, stacked, tree.stack([rows(4, 5, 6), rows(7, 8, 9)]))
    laws.vmapped(sample, stacked, torch.stack([bits, bits + 0]))
    laws.compiled(add, memory, rows(4, 5, 6), again=[(add(memory, rows(8)), rows(1, 2, 3))])
    laws.compiled(sample, memory, bits)


def test_donated_add_overwrites_the_old_ring():
    memory = add(ring.init(EXAMPLE, 5), rows(1, 2, 3))
    programs.donated(add, memory, rows(4, 5, 6))


def test_sample_shares_no_memory_with_the_ring():
    memory = add(ring.init(EXAMPLE, 5), rows(1, 2, 3))
    sampled = sample(memory, torch.tensor([0]))
    assert not {x.data_ptr() for x in tree.leaves(sampled)} & {x.data_ptr() for x in tree.leaves(memory)}


# Booleans


SHAPES = [(), (0,), (1,), (7,), (8,), (9,), (3, 5), (468,)]


def boolean_rows(shape, *numbers):
    """Make rows with boolean observations of the given shape, derived from the row's number."""
    key = random.fold_in(random.key(1), torch.tensor(numbers))
    obs, next_obs = (random.bits(k, shape) % 2 == 1 for k in random.split(key).unbind(-2))
    return rows(*numbers)._replace(obs=obs, next_obs=next_obs)


def empty(shape, capacity):
    """Return an empty packed buffer and an empty unpacked one."""
    example = tree.index(boolean_rows(shape, 0), 0)
    return packing.wrap(ring.buffer(capacity)).init(example), ring.init(example, capacity)


add_packed, sample_packed = partial(add, buffer=PACKED), partial(sample, buffer=PACKED)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_equals_unpacked(shape):
    """Compare samples bit for bit, for any shape, after the ring has wrapped around, for one seed and several."""
    packed, plain = empty(shape, 5)
    stacked = [tree.stack([memory] * 2) for memory in (packed, plain)]
    bits = random.bits(random.key(2), (7,))
    for first in range(0, 16, 4):
        batch = boolean_rows(shape, *range(first, first + 4))
        packed, plain = add_packed(packed, batch), add(plain, batch)
        asserts.assert_trees_equal(sample(plain, bits), sample_packed(packed, bits))
        both = tree.stack([batch, boolean_rows(shape, *range(first + 40, first + 44))])
        stacked = [vmap(f)(memory, both) for f, memory in zip((add_packed, add), stacked, strict=True)]
        got, expected = (
            vmap(f, (0, None))(memory, bits) for f, memory in zip((sample_packed, sample), stacked, strict=True)
        )
        asserts.assert_trees_equal(expected, got)


def test_a_boolean_takes_one_bit():
    packed, plain = empty((468,), 1000)
    rows = packed.buffer.rows
    assert rows.obs.shape == rows.next_obs.shape == (1000, 59)
    assert rows.obs.dtype == torch.uint8
    assert (tree.nbytes(rows), tree.nbytes(plain.rows)) == (1000 * (2 * 59 + 19), 1000 * (2 * 468 + 19))
    assert tree.nbytes(packed) == tree.nbytes(rows) + 8


def test_other_dtypes_are_stored_unchanged():
    for dtype in (torch.float32, torch.float64, torch.uint8, torch.int64):
        example = EXAMPLE._replace(obs=EXAMPLE.obs.to(dtype), next_obs=EXAMPLE.next_obs.to(dtype))
        memory = packing.wrap(ring.buffer(5)).init(example)
        assert memory.unpacked == {}
        assert (memory.buffer.rows.obs.shape, memory.buffer.rows.obs.dtype) == ((5, 2), dtype)
        assert memory.buffer.rows.next_legal.dtype == torch.bool
        assert len(tree.leaves(memory)) == len(tree.leaves(EXAMPLE)) + 1


def test_laws_of_a_function_of_booleans():
    memory = add_packed(empty((11,), 5)[0], boolean_rows((11,), 1, 2, 3))
    batch, bits = boolean_rows((11,), 4, 5, 6), torch.tensor([0, 2**31, 2**32 - 1])
    laws.pure(add_packed, memory, batch)
    laws.pure(sample_packed, memory, bits)
    laws.compiled(add_packed, memory, batch)
    laws.compiled(sample_packed, memory, bits)
    programs.donated(add_packed, memory, batch)
    stacked, batches = tree.stack([memory] * 2), tree.stack([batch, boolean_rows((11,), 7, 8, 9)])
    programs.donated(vmap(add_packed), stacked, batches)


def test_another_number_of_booleans_with_as_many_bytes_is_refused():
    memory, _ = empty((468,), 5)
    for count in (465, 469, 472):
        with pytest.raises(ValueError, match=rf"batch\.obs: expected shape \[2, 468\], got \[2, {count}\]"):
            add_packed(memory, boolean_rows((count,), 1, 2))
    batch = boolean_rows((468,), 1, 2)
    with pytest.raises(TypeError, match=r"batch\.next_obs: expected torch.bool, got torch.uint8"):
        add_packed(memory, batch._replace(next_obs=batch.next_obs.to(torch.uint8)))


# Time


def seconds(f, *args):
    """Return the time of ten calls, the minimum of seven measurements."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(10):
            f(*args)
        times.append(time.perf_counter() - start)
    return min(times)


def slowdown(add, seeds, large=1_000_000, small=10_000):
    """Return the time of a compiled, donated add to a large ring, relative to a small ring."""
    batch, taken = tree.stack([rows(1, 2, 3)] * seeds), []
    for capacity in (small, large):
        memory = tree.stack([ring.init(EXAMPLE, capacity // seeds)] * seeds)
        fast = edge.compile(edge.donate(vmap(add)))
        fast(memory, batch)
        assert int(memory.added[0]) == 3
        taken.append(seconds(fast, memory, batch))
    return taken[1] / taken[0]


@pytest.mark.parametrize("seeds", [1, 4])
def test_time_of_adding_does_not_depend_on_the_capacity(seeds):
    """Compare rings of a million and of ten thousand rows."""
    ratio = slowdown(add, seeds)
    assert ratio <= 3, f"expected at most 3 times the time of the small ring, got {ratio:.1f}"


def test_the_time_of_index_copy_depends_on_the_capacity():
    """Plant a bug: write the rows with `index_copy`, which copies the ring."""

    def add(memory, batch):
        count = batch.reward.shape[0]
        at = (memory.added + torch.arange(count)) % memory.rows.reward.shape[0]
        rows = tree.map(lambda x, new: x.index_copy(0, at, new), memory.rows, batch)
        return memory._replace(rows=rows, added=memory.added + count)

    assert slowdown(add, 1, large=300_000) > 3


DTYPES = sorted({x for x in vars(torch).values() if isinstance(x, torch.dtype)}, key=str)


@pytest.mark.filterwarnings("ignore")  # warnings of PyTorch about unusual dtypes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_dtype_is_stored_or_refused(dtype):
    """Check that dtypes that `add` cannot store, such as uint16, are refused by `init`."""
    fits = dtype in check.STORED
    try:
        obs = torch.zeros(2, 2).to(dtype) if fits else torch.empty(2, 2, dtype=dtype)
    except (RuntimeError, NotImplementedError):
        assert not fits
        return  # PyTorch has no tensors of this dtype
    for stack in (1, 2):
        buffer = ring.buffer(8) if stack == 1 else frames.wrap(ring.buffer(8), 1, stack, 8)
        example = EXAMPLE._replace(obs=obs, next_obs=obs)
        if not fits:
            with pytest.raises(
                TypeError, match=rf"^example\.obs: expected a dtype that replay stores, .*, got {dtype}"
            ):
                buffer.init(example)
            with pytest.raises(
                TypeError, match=f"^example: expected a dtype that replay stores, .*, got {dtype}; cast"
            ):
                frames.init(obs, 1, 9)
            continue
        batch = tree.map(lambda x: x.unsqueeze(0), example)
        ended, gamma = torch.tensor([False]), torch.tensor(0.9)
        state, _ = buffer.add(buffer.init(example), batch, ended, None, gamma)
        state, _ = buffer.add(state, batch, ended, ~ended, gamma)
        asserts.assert_trees_equal(batch.obs, sample(state, torch.tensor([2**32 - 1]), buffer).obs)


@pytest.mark.parametrize("field", ["action", "reward", "discount", "next_legal"])
def test_dtypes_of_all_fields_are_checked(field):
    """Check fields other than observations, with and without vmap."""
    wrong = EXAMPLE._replace(**{field: getattr(EXAMPLE, field).to(torch.uint16)})
    init = ring.buffer(8).init
    for call in (lambda: init(wrong), lambda: vmap(init)(tree.stack([wrong, wrong]))):
        with pytest.raises(
            TypeError, match=rf"^example\.{field}: expected a dtype that replay stores, .*, got torch.uint16"
        ):
            call()


def test_stored_dtypes_can_be_saved_in_checkpoints():
    assert set(check.STORED) == set(checkpoint.DTYPES)


@pytest.mark.parametrize("stack", [1, 2])
def test_sampling_an_empty_replay_is_refused_outside_of_transforms(stack):
    """Check that sampling raises an error in eager mode. Under a transform it returns zeros."""
    example = EXAMPLE._replace(obs=torch.zeros(2, 3), next_obs=torch.zeros(2, 3))
    buffer = ring.buffer(4) if stack == 1 else frames.wrap(ring.buffer(4), 1, stack, 4)
    empty, bits, draw = buffer.init(example), torch.tensor([0, 2**32 - 1]), partial(sample, buffer=buffer)
    for call in (draw, torch.no_grad()(draw)):
        with pytest.raises(ValueError, match=r"^buffer: expected at least one row to sample from, got none; add rows"):
            call(empty, bits)
    many = tree.stack([empty, empty])
    assert not vmap(draw)(many, torch.stack([bits, bits])).reward.any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_bits_of_another_dtype_are_refused(dtype):
    memory = add(ring.init(EXAMPLE, 4), rows(1, 2))
    for call in (sample, vmap(sample, (None, 0))):
        bits = torch.tensor([3, 4] if call is sample else [[3, 4]], dtype=dtype)
        with pytest.raises(TypeError, match=f"^bits: expected torch.int64, got {dtype}"):
            call(memory, bits)


def test_messages():
    with pytest.raises(ValueError, match="capacity: expected at least 1, got 0"):
        ring.buffer(0)
    memory = ring.init(EXAMPLE, 2)
    with pytest.raises(ValueError, match="batch: expected at most capacity = 2 rows, got 3"):
        add(memory, rows(1, 2, 3))
    with pytest.raises(TypeError, match=r"batch\.obs: expected torch.float32, got torch.float64"):
        add(memory, rows(1, 2)._replace(obs=torch.zeros(2, 2).double()))
    with pytest.raises(ValueError, match=r"batch\.obs: expected shape \[2, 2\], got \[2, 3\]"):
        add(memory, rows(1, 2)._replace(obs=torch.zeros(2, 3)))
    with pytest.raises(ValueError, match=r"batch\.discount: expected shape \[2\], got \[2, 1\]"):
        add(memory, rows(1, 2)._replace(discount=torch.zeros(2, 1)))
    with pytest.raises(TypeError, match=r"bits: expected an integer dtype, got torch.float32"):
        sample(memory, torch.rand(2, generator=torch.Generator()))
    with pytest.raises(ValueError, match=r"^bits: expected shape \[B\], got \[1, 2\]"):
        sample(memory, torch.zeros(1, 2, dtype=torch.int64))
