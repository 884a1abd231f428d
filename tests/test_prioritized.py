"""Tests of prioritized replay: exact sums, sampling in proportion to priorities, corner cases. See `laws.buffer`."""

import bisect
import functools
import itertools
import math

import pytest
import torch
from scipy import stats
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fdqn import compile, random, replay, tree
from fdqn.ops import schedules
from fdqn.replay import prioritized
from fdqn.testing import asserts, laws, programs
from fdqn.types import Transition

LEGAL, GAMMA = torch.ones(2, dtype=torch.bool), torch.tensor(0.9)
EXAMPLE = Transition(torch.zeros(1), torch.tensor(0), torch.tensor(0.0), torch.tensor(0.0), torch.zeros(1), LEGAL)
CHANCE = 1e-4
LAST = torch.tensor([2**32 - 1])


def rows(*numbers):
    n = torch.tensor(numbers)
    obs = n.float().unsqueeze(-1)
    return Transition(obs, n, n.float(), torch.ones(len(n)), obs, LEGAL.expand(len(n), 2))


def filled(capacity, count, priorities=None, **settings):
    """Make a buffer and its state with rows 0 to count - 1, and `priorities` of the first positions."""
    buffer = prioritized.buffer(capacity, **settings)
    state = buffer.init(EXAMPLE)
    for first in range(0, count, capacity):
        batch = rows(*range(first, min(first + capacity, count)))
        state, _ = buffer.add(state, batch, batch.discount == 0, None, GAMMA)
    if priorities is not None:
        state = buffer.update(state, torch.arange(len(priorities)), torch.tensor(priorities))
    return buffer, state


def masses(state):
    """Return the masses in units of priority 1."""
    return state.mass / prioritized._unit(state.ring.rows.reward.shape[0])


def invariants(buffer, state, steps=10**6):
    return {n: bool(((x >= 0) & (x <= most)).all()) for n, (x, most) in buffer.bounds(state, steps).items()}


def spread(count):
    """Return evenly spaced bits."""
    return (torch.arange(count) * 2**32).div(count, rounding_mode="floor") + 2**31 // count


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("capacity", [1, 2, 8, 9, 27, 100])
def test_frequencies_are_those_of_the_paper(capacity, alpha):
    """Compare with p**alpha / sum of p**alpha: to one draw for evenly spaced bits, statistically for random bits."""
    priority = 0.1 + 5 * random.uniform(random.key(0), (capacity,))
    buffer, state = filled(capacity, capacity, priority.tolist(), alpha=alpha)
    expected = priority.double() ** alpha / (priority.double() ** alpha).sum()
    counts = torch.bincount(buffer.sample(state, spread(10_000), 0).indices, minlength=capacity)
    assert ((counts - 10_000 * expected).abs() <= 1 + 1e-3).all()
    counts = torch.bincount(buffer.sample(state, random.bits(random.key(1), (10_000,)), 0).indices, minlength=capacity)
    assert capacity == 1 or stats.chisquare(counts.numpy(), 10_000 * expected.numpy()).pvalue > CHANCE


@pytest.mark.parametrize("oldest", [0, torch.tensor(80)])
def test_alpha_0_draws_the_rows_of_uniform_replay(oldest):
    buffer, state = filled(96, 150, (0.1 + 9 * random.uniform(random.key(0), (96,))).tolist(), alpha=0.0)
    bits = torch.cat([random.bits(random.key(1), (500,)), LAST, LAST * 0])
    drawn, expected = buffer.sample(state, bits, oldest), replay.ring.sample(state.ring, bits, oldest)
    asserts.assert_trees_equal(expected, drawn)


def test_weights_are_those_of_the_paper():
    buffer, state = filled(10, 10, [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10], alpha=1.0, beta=0.5)
    drawn = buffer.sample(state, spread(20), 0)
    probability = (drawn.indices + 1.0) / 55
    weight = (10 * probability) ** -0.5
    torch.testing.assert_close(drawn.weight, weight / weight.max())
    assert drawn.weight.max() == 1


def test_beta_follows_a_schedule_of_updates():
    beta = functools.partial(schedules.linear, start=0.0, end=1.0, steps=4)
    buffer, state = filled(2, 2, [1.0, 4.0], alpha=1.0, beta=beta)
    seen = []
    for _ in range(5):
        drawn = buffer.sample(state, torch.tensor([0, 2**32 - 1]), 0)
        assert drawn.indices.tolist() == [0, 1]
        seen.append(drawn.weight[1].item())
        state = buffer.update(state, drawn.indices, torch.tensor([1.0, 4.0]))
    assert seen == pytest.approx([4.0**-b for b in (0.25, 0.5, 0.75, 1.0, 1.0)])


# The end of the mass


@pytest.mark.parametrize("capacity", [5, 27, 1000])
@pytest.mark.parametrize("tail", [1, 3])
def test_the_largest_bits_draw_a_row(capacity, tail):
    """Check draws that would miss all rows with rounded sums, where u * total can reach the total."""
    priority = random.uniform(random.key(2), (capacity,)) + 1e-3
    priority[-tail:] = 0.0
    buffer, state = filled(capacity, capacity, priority.tolist(), alpha=0.6)
    assert buffer.sample(state, LAST, 0).indices.item() == capacity - tail - 1
    half, partly = filled(capacity, capacity // 2, None)
    assert half.sample(partly, LAST, 0).indices.item() == capacity // 2 - 1
    assert half.sample(partly, LAST * 0, 0).indices.item() == 0


def test_sums_of_priorities_of_very_different_sizes_are_exact():
    """Check that 1e-9, 1e30 and infinity are clamped, none to 0, and that sums lose no small priority."""
    buffer, state = filled(1000, 1000, alpha=1.0)
    for i in range(20):
        key = random.fold_in(random.key(3), i)
        indices = random.randint(key, (64,), 0, 1000)
        priority = 10.0 ** (40 * random.uniform(key, (64,)) - 10)
        priority[0] = torch.inf
        state = buffer.update(state, indices, priority)
        assert all(invariants(buffer, state).values())
    assert masses(state).max() == prioritized.LARGEST
    assert state.mass[:1000].min() > 0
    state = buffer.update(state, torch.arange(1000), torch.where(torch.arange(1000) == 500, 1e-9, 0.0))
    assert (buffer.sample(state, spread(100), 0).indices == 500).all()
    assert state.sums[-1] == state.mass[500] > 0


def test_sums_do_not_depend_on_the_order_of_updates():
    buffer, state = filled(300, 300)
    priority = random.uniform(random.key(4), (300,)) * 10
    order = random.bits(random.key(5), (300,)).argsort()
    together = buffer.update(state, torch.arange(300), priority)
    shuffled = buffer.update(state, order, priority[order])
    one_by_one = state
    for i in order.split(7):
        one_by_one = buffer.update(one_by_one, i, priority[i])
    for other in (shuffled, one_by_one._replace(updates=together.updates)):
        asserts.assert_trees_equal(together, other)


def priorities_with_zeros(count):
    """Return `count` priorities, of which every other and the last thousand are 0."""
    priority = 0.01 + 10 * random.uniform(random.key(7), (count,))
    priority[::2] = priority[-1000:] = 0.0
    return priority


def test_no_row_of_priority_0_is_drawn_among_a_million():
    buffer, state = filled(10**6, 10**6)
    mass = prioritized._mass(priorities_with_zeros(10**6).double(), 0.5, 10**6)
    levels = [mass]
    for above in state.sums:
        sums = levels[-1].unflatten(0, (-1, 8)).sum(-1)
        levels.append(torch.cat([sums, sums.new_zeros(len(above) - len(sums))]))
    state = state._replace(mass=mass, sums=tuple(levels[1:]))
    for i, first in enumerate(range(0, 10**6, 10**5)):
        indices = torch.arange(first, first + 10**5, 100)
        state = buffer.update(state, indices, random.uniform(random.fold_in(random.key(8), i), (1_000,)) * (i % 3))
    state = buffer.update(state, torch.arange(10**6 - 1000, 10**6), torch.zeros(1000))
    drawn = buffer.sample(state, torch.cat([random.bits(random.key(9), (2**16,)), LAST]), 0).indices
    assert (state.mass[drawn] > 0).all()
    assert all(invariants(buffer, state).values())


def test_rounded_prefix_sums_draw_rows_of_priority_0():
    """Plant the bug that the test above guards against: float32 prefix sums, and a total in another order."""
    mass = priorities_with_zeros(10**6)
    total, ends = mass.sum(), mass.cumsum(0, dtype=torch.float32)
    one_by_one = torch.from_numpy(mass.numpy().cumsum(dtype="float32"))
    assert total != one_by_one[-1]
    u = torch.cat([spread(2**16), LAST]).double() * 2.0**-32
    found = torch.searchsorted(one_by_one, (u * total).float(), right=True).clamp_max(10**6 - 1)
    kept = torch.searchsorted(ends.double(), u * ends[-1].double(), right=True).clamp_max(10**6 - 1)
    assert (mass[found] == 0).any()
    assert not (mass[kept] == 0).any()


def test_a_total_updated_by_differences_drifts_and_draws_a_row_of_priority_0():
    """Plant the bug that the next test guards against: a float32 total to which each update adds new - old."""
    rows, rounds = 1000, 200
    priority = 7 * random.uniform(random.key(15), (rounds, rows))
    priority[:, ::2] = priority[:, -1] = 0.0
    buffer, state = filled(rows, rows, [0.0] * rows, alpha=1.0)
    for own in priority:
        state = buffer.update(state, torch.arange(rows), own)
    assert all(invariants(buffer, state).values())
    assert (state.mass[buffer.sample(state, torch.cat([spread(2**16), LAST]), 0).indices] > 0).all()

    differences = priority.diff(dim=0, prepend=torch.zeros(1, rows))
    total = differences.flatten().numpy().cumsum(dtype="float32")[-1]
    ends = priority[-1].double().cumsum(0)
    assert total > ends[-1]
    drawn = torch.searchsorted(ends, LAST.double() * 2.0**-32 * float(total), right=True).clamp_max(rows - 1)
    assert priority[-1][drawn] == 0


@pytest.mark.slow
def test_no_row_of_priority_0_is_drawn_after_a_million_updates():
    """Call update a million times on a million rows: sums stay exact, and no row of priority 0 is drawn."""
    buffer, state = filled(10**6, 10**6)
    priority = priorities_with_zeros(10**6)
    for indices in torch.arange(10**6).split(1000):
        state = compile.donate(buffer.update)(state, indices, priority[indices])

    def step(carried, bits):
        state, zeros = carried
        drawn = buffer.sample(state, bits[0], 0).indices
        # Read the masses before the update. If they are read afterwards, every step copies all of them.
        zeros = zeros + (state.mass[drawn] == 0).sum()
        at = random.index(bits[1], 10**6)
        priority = torch.where(at % 2 == 0, 0.0, random.unit(bits[2]) * 7)
        return buffer.update(state, at, priority), zeros

    carried, run = (state, torch.tensor(0)), compile.scan(step)
    for i in range(1000):
        carried = run(carried, random.bits(random.fold_in(random.key(10), i), (1000, 3, 16)))
    state, zeros = carried
    assert state.updates >= 10**6
    assert zeros == 0
    assert all(invariants(buffer, state).values())


# A fraction of uniform draws


@pytest.mark.parametrize("fraction", [0.001, 0.25, 1.0])
def test_a_fraction_of_the_draws_is_uniform(fraction):
    """Check frequencies and weights against (1 - u) p**alpha / sum + u / N."""
    priority = torch.tensor([0.0, 1.0, 2.0, 4.0, 0.0, 3.0])
    buffer, state = filled(8, 6, priority.tolist(), alpha=1.0, beta=0.5, uniform=fraction)
    expected = (1 - fraction) * priority / 10 + fraction / 6
    drawn = buffer.sample(state, spread(60_000), 0)
    counts = torch.bincount(drawn.indices, minlength=6)
    assert ((counts - 60_000 * expected).abs() <= 2).all()
    weight = expected[drawn.indices] ** -0.5
    torch.testing.assert_close(drawn.weight, weight / weight.max())
    newest = buffer.sample(state, spread(60_000), torch.tensor(3)).indices
    expected = (1 - fraction) * priority[3:] / 7 + fraction / 3
    assert ((torch.bincount(newest, minlength=6)[3:] - 60_000 * expected).abs() <= 2).all()


def test_without_uniform_draws_all_bits_select_by_mass():
    priority = (random.uniform(random.key(11), (100,)) * 9).tolist()
    bits = torch.cat([random.bits(random.key(12), (500,)), LAST, LAST * 0])
    plain, none = ((b.sample(s, bits, 0)) for b, s in (filled(100, 100, priority, uniform=u) for u in (0.0, 1e-12)))
    asserts.assert_trees_equal(plain._replace(weight=()), none._replace(weight=()))
    total = sum(masses := filled(100, 100, priority)[1].mass.tolist())
    points = [b * total >> 32 for b in bits.tolist()]
    ends = list(itertools.accumulate(masses))
    assert plain.indices.tolist() == [bisect.bisect_right(ends, point) for point in points]


@pytest.mark.parametrize("engine", ["aot_eager", "inductor"])
def test_every_engine_draws_the_same_rows(engine):
    """Run 32 seeds for several steps and compare the rows drawn and every integer of the state."""
    buffer, state = filled(40, 40, alpha=0.6, uniform=0.05)
    priority = 5 * random.uniform(random.split(random.key(13), 32), (40,))
    stacked = vmap(buffer.update)(tree.stack([state] * 32), torch.arange(40).expand(32, 40), priority)

    def step(state, bits):
        drawn = buffer.sample(state, bits, 0)
        return buffer.update(state, drawn.indices, drawn.batch.reward * random.unit(bits)), drawn.indices

    f = vmap(step)
    other = torch.compile(f, backend="aot_eager", fullgraph=True) if engine == "aot_eager" else compile.compile(f)
    expected = got = stacked
    for i in range(5):
        bits = random.bits(random.fold_in(random.key(14), i), (32, 64))
        (expected, rows), (got, others) = f(expected, bits), other(got, bits)
        assert torch.equal(rows, others)
        asserts.assert_trees_equal(expected, got)


# Rows that are drawn


def test_the_largest_priority_counts_for_a_row_drawn_twice():
    buffer, state = filled(8, 8, alpha=1.0)
    state = buffer.update(state, torch.tensor([3, 5, 3, 3]), torch.tensor([2.0, 0.5, 7.0, 4.0]))
    assert masses(state)[:8].tolist() == [1, 1, 1, 7, 1, 0.5, 1, 1]
    assert all(invariants(buffer, state).values())


def test_new_rows_have_the_largest_priority_seen():
    buffer, state = filled(4, 4, [0.5, 9.0, 0.1, 0.2], alpha=1.0)
    state = buffer.update(state, torch.tensor([1]), torch.tensor([0.3]))
    state, added = buffer.add(state, rows(4, 5), torch.zeros(2, dtype=torch.bool), torch.tensor([False, True]), GAMMA)
    assert added.number[1] == 4
    assert masses(state)[:4].tolist() == pytest.approx([9.0, 0.3, 0.1, 0.2])
    assert state.ring.rows.action.tolist() == [5, 1, 2, 3]


def test_rows_of_priority_0_are_drawn_only_if_all_priorities_are_0():
    buffer, state = filled(6, 4, [0.0, 0.0, 2.0, 0.0])
    assert set(buffer.sample(state, spread(50), 0).indices.tolist()) == {2}
    state = buffer.update(state, torch.tensor([2]), torch.tensor([0.0]))
    drawn = buffer.sample(state, spread(400), 0)
    assert torch.bincount(drawn.indices).tolist() == [100] * 4
    assert (drawn.weight == 1).all()
    _, kept = filled(6, 4, [0.0, 0.0, 2.0, 0.0], epsilon=0.1)
    assert (kept.mass[:4] > 0).all()


@pytest.mark.parametrize("added", [3, 5, 7, 13])
@pytest.mark.parametrize("age", [1, 2, 4, 5])
def test_rows_before_the_oldest_are_not_drawn(added, age):
    """Include ranges that wrap around, ranges without any priority, and an oldest row that was overwritten."""
    priority = [1.0, 0.0, 3.0, 0.5, 2.0][:added]
    buffer, state = filled(5, added, priority, alpha=1.0)
    oldest = max(added - age, 0)
    expected = torch.zeros(5, dtype=torch.float64)
    for number in range(max(oldest, added - 5), added):
        expected[number % 5] = state.mass[number % 5]
    if not expected.any():  # then rows are drawn uniformly
        expected[[number % 5 for number in range(max(oldest, added - 5), added)]] = 1
    counts = torch.bincount(buffer.sample(state, spread(6_000), torch.tensor(oldest)).indices, minlength=5)
    assert ((counts - 6_000 * expected / expected.sum()).abs() <= 2).all()
    drawn = [buffer.sample(state, spread(60), limit) for limit in (oldest, torch.tensor(oldest))]
    asserts.assert_trees_equal(*drawn)


def test_invalid_updates_under_transforms_are_ignored():
    """Pass negative priorities, NaN and invalid positions under vmap, where no error can be raised."""
    buffer, state = filled(8, 5, [1.0, 2.0, 3.0, 4.0, 5.0])
    indices = torch.tensor([[0, 1, 6, 9, -1, 2]])
    priority = torch.tensor([[torch.nan, -1.0, 5.0, 5.0, 5.0, 0.0]])
    after = tree.index(vmap(buffer.update)(tree.stack([state]), indices, priority), 0)
    expected = buffer.update(state, torch.tensor([2]), torch.tensor([0.0]))
    asserts.assert_trees_equal(expected, after)
    empty = buffer.init(EXAMPLE)
    drawn = vmap(functools.partial(buffer.sample, oldest=0))(tree.stack([empty]), spread(4).unsqueeze(0))
    assert not drawn.batch.reward.any()


# Laws of a function


def steps(buffer):
    """Make one step and update, as in a training iteration."""

    def step(state, batch, bits):
        state, _ = buffer.add(state, batch, batch.discount == 0, batch.action % 2 == 0, GAMMA)
        drawn = buffer.sample(state, bits, state.ring.added - 3)
        return buffer.update(state, drawn.indices, drawn.batch.reward.abs() * drawn.weight), drawn

    return step


def test_laws_of_a_function():
    buffer, state = filled(10, 14, [0.5, 2.0, 0.0])
    step, batch, bits = steps(buffer), rows(14, 15, 16), random.bits(random.key(6), (2, 8))
    laws.pure(step, state, batch, bits[0])
    other = step(state, rows(20, 21, 22), bits[1])[0]
    stacked, batches = tree.stack([state, other]), tree.stack([batch, rows(2, 4, 7)])
    laws.vmapped(step, stacked, batches, bits, dtype=None)
    programs.donated(lambda *args: step(*args)[0], state, batch, bits[0])
    programs.donated(vmap(lambda *args: step(*args)[0]), stacked, batches, bits)


def test_the_cost_of_a_row_does_not_depend_on_the_capacity():
    """Check that only operators that write in place have outputs larger than a level of sums."""
    capacity = 10**6
    buffer, state = filled(capacity, 3)
    graph = make_fx(lambda state, batch, bits: steps(buffer)(state, batch, bits), tracing_mode="fake")
    nodes = graph(state, rows(3, 4, 5), spread(32)).graph.nodes
    found = [set(), set()]
    for node in (node for node in nodes if node.op == "call_function"):
        for names, tensors in zip(found, ([node], node.all_input_nodes), strict=True):
            if any(math.prod(getattr(x.meta.get("val"), "shape", ())) > 10**4 for x in tensors):
                names.add(str(node.target).split(".")[1])
    assert found[0] == {"index_put", "view"}, "operators with outputs as large as the buffer"
    assert found[1] == {"index_put", "view", "index", "slice"}, "operators with inputs as large as the buffer"


def test_float64_rows_have_float64_weights():
    buffer = prioritized.buffer(4)
    batch = tree.cast(rows(0, 1), torch.float64)
    state, _ = buffer.add(buffer.init(tree.index(batch, 0)), batch, batch.discount == 0, None, GAMMA)
    assert buffer.sample(state, spread(3), 0).weight.dtype == torch.float64
    assert prioritized.buffer(4).sample(filled(4, 2)[1], spread(3), 0).weight.dtype == torch.float32


INVALID_STATES = {
    "priorities": lambda s: s._replace(mass=s.mass - 3),
    "priorities of others": lambda s: s._replace(mass=s.mass * 2**20),
    "priorities without rows": lambda s: s._replace(mass=torch.ones_like(s.mass)),
    "sums of priorities": lambda s: s._replace(sums=(s.sums[0].roll(1, -1), *s.sums[1:])),
    "the total": lambda s: s._replace(sums=(*s.sums[:-1], s.sums[-1] * 0)),
    "sums off by one": lambda s: s._replace(sums=(s.sums[0] - 1, *s.sums[1:])),
    "highest priority": lambda s: s._replace(highest=s.highest * 2**17),
    "updates": lambda s: s._replace(updates=s.updates - 9),
    "added": lambda s: s._replace(ring=s.ring._replace(added=s.ring.added + 10**7)),
}


@pytest.mark.parametrize("name", INVALID_STATES)
def test_an_invalid_state_is_refused(name):
    buffer, state = filled(10, 8, [1.0, 2.0, 0.0])
    stacked = tree.stack([state, state])
    assert all(invariants(buffer, stacked).values())
    assert not all(invariants(buffer, INVALID_STATES[name](stacked)).values())


def test_prioritized_rows_without_frames_are_not_drawn():
    """Check that rows whose frames were overwritten are not drawn, although they are still in the tree."""
    buffer = replay.frames.wrap(prioritized.buffer(40), 1, 2, 40)
    obs = torch.zeros(1, 2, 3)
    batch = rows(0)._replace(obs=obs, next_obs=obs)
    state = buffer.init(tree.index(batch, 0))
    for number in range(120):  # each step is an episode, which takes two frames
        batch = batch._replace(action=torch.tensor([number]))
        state, _ = buffer.add(state, batch, torch.tensor([True]), None, GAMMA)
    size = int(buffer.size(state))
    assert 0 < size < 40
    drawn = buffer.sample(state, spread(500), 0).batch.action
    assert set(drawn.tolist()) == set(range(120 - size, 120))
