"""Replay: any history equals a deque, sampling is uniform, adding costs a row, booleans lie packed and come out."""

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
"""Functions of the state alone, but for `init`."""
PACKED = packing.wrap(RING)

# Keys are fixed, so a test of a distribution fails always or never; by chance one in ten thousand would.
CHANCE = 1e-4


def rows(*numbers):
    n = torch.tensor(numbers)
    pair = torch.stack([n, -n], -1).float()
    return Transition(pair, n, n.float(), torch.ones(len(n)), pair + 0.5, torch.stack([n % 2 == 0] * 3, -1))


def add(state, batch, valid=None, buffer=RING):
    """The state after the rows of a batch."""
    return buffer.add(state, batch, torch.zeros(batch.reward.shape, dtype=torch.bool), valid, torch.tensor(0.9))[0]


def sample(state, bits, buffer=RING):
    """The rows that were drawn."""
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
def test_discount_is_0_only_where_the_task_ended(terminated, truncated, discount):
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


def test_filled_counts_up_to_the_capacity():
    memory = ring.init(EXAMPLE, 5)
    counts = []
    for _ in range(3):
        counts.append(int(ring.size(memory)))
        memory = add(memory, rows(1, 2, 3))
    assert counts == [0, 3, 5]
    assert int(memory.added) == 9


def test_laws_of_a_function():
    memory = add(ring.init(EXAMPLE, 5), rows(1, 2, 3))
    words = torch.tensor([0, 2**31, 2**32 - 1])
    laws.pure(add, memory, rows(4, 5, 6))
    laws.pure(sample, memory, words)
    lanes = tree.stack([memory, add(memory, rows(7))])
    laws.vmapped(add, lanes, tree.stack([rows(4, 5, 6), rows(7, 8, 9)]))
    laws.vmapped(sample, lanes, torch.stack([words, words + 0]))
    laws.compiled(add, memory, rows(4, 5, 6), again=[(add(memory, rows(8)), rows(1, 2, 3))])
    laws.compiled(sample, memory, words)


def test_donated_add_writes_over_the_old_ring():
    memory = add(ring.init(EXAMPLE, 5), rows(1, 2, 3))
    programs.donated(add, memory, rows(4, 5, 6))


def test_sample_shares_nothing_with_the_ring():
    memory = add(ring.init(EXAMPLE, 5), rows(1, 2, 3))
    sampled = sample(memory, torch.tensor([0]))
    assert not {x.data_ptr() for x in tree.leaves(sampled)} & {x.data_ptr() for x in tree.leaves(memory)}


# Booleans


SHAPES = [(), (0,), (1,), (7,), (8,), (9,), (3, 5), (468,)]


def flagged(shape, *numbers):
    """Rows whose observations are booleans of that shape, made of the row's number."""
    key = random.fold_in(random.key(1), torch.tensor(numbers))
    obs, next_obs = (random.bits(k, shape) % 2 == 1 for k in random.split(key).unbind(-2))
    return rows(*numbers)._replace(obs=obs, next_obs=next_obs)


def empty(shape, capacity):
    """An empty buffer of such rows packed, and one that holds them as they are."""
    example = tree.index(flagged(shape, 0), 0)
    return packing.wrap(ring.buffer(capacity)).init(example), ring.init(example, capacity)


add_packed, sample_packed = partial(add, buffer=PACKED), partial(sample, buffer=PACKED)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_equals_unpacked(shape):
    """Bit for bit what is sampled, for any shape, around the end of the ring, one lane or several."""
    packed, plain = empty(shape, 5)
    lanes = [tree.stack([memory] * 2) for memory in (packed, plain)]
    words = random.bits(random.key(2), (7,))
    for first in range(0, 16, 4):
        batch = flagged(shape, *range(first, first + 4))
        packed, plain = add_packed(packed, batch), add(plain, batch)
        asserts.assert_trees_equal(sample(plain, words), sample_packed(packed, words))
        both = tree.stack([batch, flagged(shape, *range(first + 40, first + 44))])
        lanes = [vmap(f)(memory, both) for f, memory in zip((add_packed, add), lanes, strict=True)]
        got, expected = (
            vmap(f, (0, None))(memory, words) for f, memory in zip((sample_packed, sample), lanes, strict=True)
        )
        asserts.assert_trees_equal(expected, got)


def test_booleans_take_a_bit_each():
    packed, plain = empty((468,), 1000)
    rows = packed.buffer.rows
    assert rows.obs.shape == rows.next_obs.shape == (1000, 59)
    assert rows.obs.dtype == torch.uint8
    assert (tree.nbytes(rows), tree.nbytes(plain.rows)) == (1000 * (2 * 59 + 19), 1000 * (2 * 468 + 19))
    assert tree.nbytes(packed) == tree.nbytes(rows) + 8


def test_what_is_not_boolean_lies_as_it_is():
    for dtype in (torch.float32, torch.float64, torch.uint8, torch.int64):
        example = EXAMPLE._replace(obs=EXAMPLE.obs.to(dtype), next_obs=EXAMPLE.next_obs.to(dtype))
        memory = packing.wrap(ring.buffer(5)).init(example)
        assert memory.unpacked == {}
        assert (memory.buffer.rows.obs.shape, memory.buffer.rows.obs.dtype) == ((5, 2), dtype)
        assert memory.buffer.rows.next_legal.dtype == torch.bool
        assert len(tree.leaves(memory)) == len(tree.leaves(EXAMPLE)) + 1


def test_laws_of_a_function_of_booleans():
    memory = add_packed(empty((11,), 5)[0], flagged((11,), 1, 2, 3))
    batch, words = flagged((11,), 4, 5, 6), torch.tensor([0, 2**31, 2**32 - 1])
    laws.pure(add_packed, memory, batch)
    laws.pure(sample_packed, memory, words)
    laws.compiled(add_packed, memory, batch)
    laws.compiled(sample_packed, memory, words)
    programs.donated(add_packed, memory, batch)
    lanes, batches = tree.stack([memory] * 2), tree.stack([batch, flagged((11,), 7, 8, 9)])
    programs.donated(vmap(add_packed), lanes, batches)


def test_booleans_of_another_number_that_fill_as_many_bytes():
    memory, _ = empty((468,), 5)
    for count in (465, 469, 472):
        with pytest.raises(ValueError, match=rf"batch\.obs: expected shape \[2, 468\], got \[2, {count}\]"):
            add_packed(memory, flagged((count,), 1, 2))
    batch = flagged((468,), 1, 2)
    with pytest.raises(TypeError, match=r"batch\.next_obs: expected torch.bool, got torch.uint8"):
        add_packed(memory, batch._replace(next_obs=batch.next_obs.to(torch.uint8)))


# Time


def seconds(f, *args):
    """Of ten calls, in the best of seven tries: what else the machine does only adds."""
    times = []
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(10):
            f(*args)
        times.append(time.perf_counter() - began)
    return min(times)


def times_slower(add, lanes, large=1_000_000, small=10_000):
    """How much longer a compiled, donated add takes into a large ring than into a small one."""
    batch, taken = tree.stack([rows(1, 2, 3)] * lanes), []
    for capacity in (small, large):
        memory = tree.stack([ring.init(EXAMPLE, capacity // lanes)] * lanes)
        fast = edge.compile(edge.donate(vmap(add)))
        fast(memory, batch)
        assert int(memory.added[0]) == 3
        taken.append(seconds(fast, memory, batch))
    return taken[1] / taken[0]


@pytest.mark.parametrize("lanes", [1, 4])
def test_adding_costs_the_row_not_the_ring(lanes):
    """As fast into a ring of a million rows as into one of ten thousand."""
    ratio = times_slower(add, lanes)
    assert ratio <= 3, f"expected at most 3 times the time of the small ring, got {ratio:.1f}"


def test_index_copy_would_cost_the_ring():
    """Planted: the same rows, written with `index_copy`, which copies."""

    def add(memory, batch):
        count = batch.reward.shape[0]
        at = (memory.added + torch.arange(count)) % memory.rows.reward.shape[0]
        rows = tree.map(lambda x, new: x.index_copy(0, at, new), memory.rows, batch)
        return memory._replace(rows=rows, added=memory.added + count)

    assert times_slower(add, 1, large=300_000) > 3


DTYPES = sorted({x for x in vars(torch).values() if isinstance(x, torch.dtype)}, key=str)


@pytest.mark.filterwarnings("ignore")  # of PyTorch, about the tensors that are made here
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_replay_stores_a_dtype_or_refuses_it_by_name(dtype):
    """uint16 passed `init` and failed in `add`, in words of PyTorch."""
    fits = dtype in check.STORED
    try:
        obs = torch.zeros(2, 2).to(dtype) if fits else torch.empty(2, 2, dtype=dtype)
    except (RuntimeError, NotImplementedError):
        assert not fits
        return  # there is no such tensor
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
def test_other_fields_of_a_dtype_that_cannot_be_stored(field):
    """Not observations alone, and not in eager mode alone."""
    wrong = EXAMPLE._replace(**{field: getattr(EXAMPLE, field).to(torch.uint16)})
    init = ring.buffer(8).init
    for call in (lambda: init(wrong), lambda: vmap(init)(tree.stack([wrong, wrong]))):
        with pytest.raises(
            TypeError, match=rf"^example\.{field}: expected a dtype that replay stores, .*, got torch.uint16"
        ):
            call()


def test_what_replay_stores_checkpoints_save():
    assert set(check.STORED) == set(checkpoint.DTYPES)


@pytest.mark.parametrize("stack", [1, 2])
def test_an_empty_replay_is_refused_where_it_can_be_seen(stack):
    """Rows that were never added came out; inside of a transform they still do, as zeros."""
    example = EXAMPLE._replace(obs=torch.zeros(2, 3), next_obs=torch.zeros(2, 3))
    buffer = ring.buffer(4) if stack == 1 else frames.wrap(ring.buffer(4), 1, stack, 4)
    empty, words, draw = buffer.init(example), torch.tensor([0, 2**32 - 1]), partial(sample, buffer=buffer)
    for call in (draw, torch.no_grad()(draw)):
        with pytest.raises(ValueError, match=r"^buffer: expected at least one row to sample from, got none; add rows"):
            call(empty, words)
    many = tree.stack([empty, empty])
    assert not vmap(draw)(many, torch.stack([words, words])).reward.any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_words_of_another_dtype_are_refused(dtype):
    memory = add(ring.init(EXAMPLE, 4), rows(1, 2))
    for call in (sample, vmap(sample, (None, 0))):
        words = torch.tensor([3, 4] if call is sample else [[3, 4]], dtype=dtype)
        with pytest.raises(TypeError, match=f"^bits: expected torch.int64, got {dtype}"):
            call(memory, words)


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
