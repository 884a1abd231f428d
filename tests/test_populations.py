"""Tests of successive halving and population based training of the members of one state, with planted bugs."""

import math
from functools import partial

import pytest
import test_algorithms
import torch
from hypothesis import given
from hypothesis import strategies as st
from plants import rejects

from fdqn import compile as edge
from fdqn import random, training, tree
from fdqn.compile import aot, cpu_groups
from fdqn.storage import checkpoint
from fdqn.testing import asserts, examples, programs
from fdqn.training import populations

PROGRAM = examples.program()
BOUNDS = {"learning_rate": (1e-4, 1e-1), "gamma": (0.8, 0.999), "period": (1, 50)}
SETTINGS, SEEDS = 3, 2
advance = partial(programs.advance, PROGRAM)


def initialized(settings=SETTINGS, seeds=SEEDS):
    """Make the state of a sweep: different hyper-parameters, and the same keys for every setting."""
    hyper, _ = examples.seeds(settings * seeds)
    hyper = hyper._replace(numbers={"period": torch.arange(settings * seeds) + 4})
    return training.init(PROGRAM, hyper, random.key(list(range(seeds)) * settings))


@pytest.fixture(scope="module")
def trained():
    """Train the state for some iterations. Tests do not write to it."""
    return advance(initialized(), 15)


@pytest.fixture(scope="module")
def later(trained):
    return advance(trained, 15)


# Compaction


def compaction(keep, before, after, members):
    """Check that kept members are unchanged, own their memory, and learn as if all were still trained."""
    kept = keep(before, members)
    asserts.assert_trees_equal(tree.index(before, members), kept, "kept: ")
    storages = [x.untyped_storage().data_ptr() for x in tree.leaves((kept, before)) if x.numel()]
    assert len(set(storages)) == len(storages), "expected separate memory"
    asserts.assert_trees_equal(tree.index(after, members), advance(kept, 15), "trained on: ")


@pytest.mark.parametrize("members", [[0, 2, 5], [4, 1], [5, 4, 3, 2, 1, 0], [3]])
def test_kept_members_learn_as_if_all_were_still_trained(trained, later, members):
    compaction(populations.keep, trained, later, torch.tensor(members))


@pytest.mark.slow
@pytest.mark.skipif(not cpu_groups.supported(torch.device("cpu")), reason="the engine aot needs Linux")
def test_kept_members_keep_their_bits_on_the_default_engine(monkeypatch):
    """Check that the partition stays fixed, because groups of another size may sum in another order."""
    edge.prepare_cpu()
    fixed, built = edge.partition(PROGRAM, 6, 2, unit=SEEDS), []
    monkeypatch.setattr(aot, "library", counted(aot.library, built))
    functions = edge.compiled(PROGRAM, check_compile=False, engine="aot", fixed=fixed)
    state = advance(initialized(), 10, functions)
    saved, compiled = tree.clone(state), len(built)
    after = advance(state, 10, functions)
    for members in ([2, 3], [4, 5, 0, 1]):
        kept = populations.keep(saved, torch.tensor(members))
        asserts.assert_trees_equal(tree.index(after, members), advance(kept, 10, functions), f"{members}: ")
    assert compiled == len(built) == 2, "`collect` and `cycle` are compiled once each"


def counted(f, calls):
    def call(*args):
        calls.append(1)
        return f(*args)

    return call


def buffer_of_others(state, members):
    return populations.keep(state, members)._replace(buffer=populations.keep(state.buffer, members.roll(1)))


def shared(state, members):
    return tree.index(state, slice(0, 2))


@pytest.mark.parametrize(("keep", "match"), [(buffer_of_others, "kept: .buffer"), (shared, "separate memory")])
def test_wrong_compaction_is_detected(trained, later, keep, match):
    with rejects(match):
        compaction(keep, trained, later, torch.tensor([0, 1]))


@pytest.mark.parametrize("make", [test_algorithms.ranked, test_algorithms.rollouts, test_algorithms.stream])
def test_members_of_other_algorithms_are_kept_and_copied(make):
    program = make()
    state = programs.advance(program, training.init(program, *examples.seeds(3)), 8)
    copied = populations.copy(state, torch.tensor([2, 1, 2]))
    asserts.assert_trees_equal(state, populations.copy(state, torch.arange(3)))
    after = programs.advance(program, tree.clone(state), 4), programs.advance(program, copied, 4)
    asserts.assert_trees_equal(*(tree.index(each, slice(1, 3)) for each in after))
    kept = populations.keep(state, torch.tensor([2, 0]))
    asserts.assert_trees_equal(tree.index(after[0], [2, 0]), programs.advance(program, kept, 4))


def test_halving_of_a_run_keeps_the_best_setting_and_its_bits(trained, later):
    scores = torch.tensor([10.0, 30.0, 20.0])
    settings = populations.successive_halving(scores, 3)
    kept = populations.keep(trained, populations.members_of(settings, SEEDS))
    asserts.assert_trees_equal(tree.index(later, slice(2, 4)), advance(kept, 15))


@pytest.mark.parametrize(
    ("scores", "eta", "expected"),
    [
        ([1.0, 3.0, 2.0, 0.0], 2, [1, 2]),
        ([1.0, 3.0, 2.0, 0.0, 5.0], 2, [1, 2, 4]),
        ([1.0, 3.0, 2.0, 0.0], 4, [1]),
        ([math.nan, -math.inf, math.nan], 2, [0, 1]),
        ([math.nan, -math.inf, 2.0, math.inf], 2, [2, 3]),
        ([2.0, 2.0, 2.0, 2.0], 2, [0, 1]),
        ([1.0], 2, [0]),
    ],
)
def test_successive_halving_keeps_the_best(scores, eta, expected):
    assert populations.successive_halving(torch.tensor(scores), eta).tolist() == expected


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=20), st.integers(2, 5))
def test_no_dropped_setting_is_better_than_a_kept_one(scores, eta):
    kept = populations.successive_halving(torch.tensor(scores, dtype=torch.float64), eta).tolist()
    assert len(kept) == -(-len(scores) // eta)
    dropped = [score for i, score in enumerate(scores) if i not in kept]
    assert not dropped or max(dropped) <= min(scores[i] for i in kept)


def test_members_of_settings_are_all_of_their_seeds():
    assert populations.members_of(torch.tensor([2, 0]), 3).tolist() == [6, 7, 8, 0, 1, 2]


@given(st.integers(1, 200), st.integers(2, 5))
def test_rungs_take_equal_budgets(settings, eta):
    plan = populations.rungs(settings, 10**7, eta)
    assert plan[0].settings == settings
    assert plan[-1].end == 10**7
    assert plan[-1].settings <= eta
    starts = [0, *(rung.end for rung in plan)]
    budgets = [rung.settings * (rung.end - start) for rung, start in zip(plan, starts, strict=False)]
    assert max(budgets) - min(budgets) <= 2 * settings, budgets  # ends are rounded
    sizes = [rung.settings for rung in plan]
    assert sizes[1:] == [-(-size // eta) for size in sizes[:-1]]


def test_rungs_of_the_paper():
    """Compare with n = 8 arms and B = 8 * 3 * 7 pulls: rounds of 7, 14 and 28 pulls for each remaining arm."""
    assert populations.rungs(8, 49, 2) == [(8, 7), (4, 21), (2, 49)]


# Copies


def copying(copy, state, source):
    """Check that members take the learner and hyper-parameters of their source, and keep everything else."""
    old, new = tree.clone(state), copy(tree.clone(state), source)
    copies = (source != torch.arange(len(source))).unsqueeze(-1)
    mine = dict(learner=None, hyper=None, metrics=new.metrics._replace(failed=None, cause=None))
    expected = old.metrics._replace(returns=torch.where(copies, torch.nan, old.metrics.returns))
    theirs = {**mine, "metrics": expected._replace(failed=None, cause=None)}
    asserts.assert_trees_equal(tree.index(old.learner, source), new.learner, "learner: ")
    asserts.assert_trees_equal(tree.index(old.hyper, source), new.hyper, "hyper: ")
    asserts.assert_trees_equal(old._replace(**theirs), new._replace(**mine), "own: ")


SOURCE = torch.tensor([1, 2, 2, 3, 3, 5])  # member 0 copies the old learner of 1, which copies that of 2


def test_members_take_the_learner_of_their_source_and_keep_everything_else(trained):
    copying(populations.copy, trained, SOURCE)
    copying(edge.donate(populations.copy), trained, SOURCE)


def one_after_the_other(state, source):
    for i in reversed(range(len(source))):
        at = torch.arange(len(source))
        at[i] = source[i]
        state = populations.copy(state, at)
    return state


COPIES = {
    "in turn": (one_after_the_other, "learner: "),
    "the wrong way": (lambda state, source: populations.copy(state, source.flip(0)), "learner: "),
    "without the optimizer": (
        lambda state, source: populations.copy(state, source)._replace(
            learner=populations.copy(state, source).learner._replace(opt_state=state.learner.opt_state)
        ),
        "learner: .opt_state",
    ),
    "without the settings": (
        lambda state, source: populations.copy(state, source)._replace(hyper=state.hyper),
        "hyper: .learning_rate",
    ),
    "with the key": (
        lambda state, source: populations.copy(state, source)._replace(key=state.key[source]),
        "own: .key",
    ),
    "with the returns of other episodes": (
        lambda state, source: populations.copy(state, source)._replace(metrics=state.metrics),
        "own: .metrics.returns",
    ),
    "with the buffer": (
        lambda state, source: populations.copy(state, source)._replace(buffer=tree.index(state.buffer, source)),
        "own: .buffer",
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_wrong_copies_are_detected(trained, name):
    copy, match = COPIES[name]
    with rejects(match):
        copying(copy, trained, SOURCE)


def test_copies_change_no_other_member_then_or_later(trained, later):
    """Check that members 2, 3 and 5, which keep their learner, continue as if no other member had copied."""
    after, own = advance(populations.copy(trained, SOURCE), 15), torch.tensor([2, 3, 5])
    asserts.assert_trees_equal(tree.index(later, own), tree.index(after, own))
    for member in (0, 1, 4):
        one = tree.index(after.learner.params, member), tree.index(later.learner.params, member)
        assert not tree.equal(*one), "a member that copied should learn from there"


def test_a_copy_and_its_source_do_not_stay_equal(trained):
    """Copy between members 1 and 3, which have the same key, as the same seed with another setting."""
    after = advance(populations.copy(trained, torch.tensor([0, 3, 2, 3, 4, 5])), 15)
    assert torch.equal(trained.key[1], trained.key[3])
    assert not tree.equal(tree.index(after.learner.params, 1), tree.index(after.learner.params, 3))


def failed(state, member, cause):
    metrics = state.metrics
    failures = metrics.failed.clone(), metrics.cause.clone()
    failures[0][member], failures[1][member] = 7, training.CAUSES.index(cause)
    return state._replace(metrics=metrics._replace(failed=failures[0], cause=failures[1]))


def test_a_copy_clears_a_failure_unless_the_environment_failed(trained):
    source = torch.tensor([1, 1, 2, 2, 4, 5])
    state = failed(failed(failed(trained, 0, "loss"), 3, "environment"), 5, "gradient")
    copied = populations.copy(state, source)
    assert copied.metrics.failed.tolist() == [-1, -1, -1, 7, -1, 7]
    assert copied.metrics.cause.tolist() == [0, 0, 0, training.CAUSES.index("environment"), 0, 2]
    updates = advance(copied, 5).learner.updates - copied.learner.updates
    assert updates.tolist() == [5, 5, 5, 0, 5, 0]


# Exploit


def test_scores_of_failed_members(trained):
    state = failed(failed(trained, 0, "loss"), 3, "environment")
    returns = torch.tensor([5.0, 1.0, torch.nan, 2.0, 3.0, 4.0])
    expected = torch.tensor([-torch.inf, 1.0, torch.nan, torch.nan, 3.0, 4.0])
    asserts.assert_trees_equal(expected, populations.scores(state, returns))


@pytest.mark.parametrize(
    ("scores", "fraction", "groups", "expected"),
    [
        ([5.0, 1.0, 4.0, 3.0, 2.0], 0.2, 1, [0, 0, 2, 3, 4]),
        ([5.0, 1.0, 4.0, 3.0, 2.0], 0.0, 1, [0, 1, 2, 3, 4]),
        ([5.0, 1.0, 4.0, 3.0, 2.0], 0.5, 1, [0, 0, 2, 3, 0]),  # at most half, rounded down
        ([3.0, 3.0, 3.0, 3.0], 0.5, 1, [0, 1, 2, 3]),  # equal members do not copy
        ([1.0], 0.5, 1, [0]),
        ([math.nan, math.nan], 0.5, 1, [0, 1]),
        ([math.nan, 2.0, 1.0, math.nan], 0.5, 1, [0, 1, 1, 3]),
        ([-math.inf, -math.inf, 1.0, 2.0], 0.5, 1, [3, 3, 2, 3]),
        ([1.0, 9.0, 2.0, 8.0], 0.5, 2, [2, 1, 2, 1]),  # members 0 and 2, and 1 and 3
    ],
)
def test_the_worst_copy_the_best(scores, fraction, groups, expected):
    source = populations.exploit(torch.tensor(scores), torch.zeros(len(scores)), fraction, groups)
    assert source.tolist() == expected


def test_the_best_are_drawn_uniformly():
    scores, u = torch.arange(10.0), random.uniform(random.key(range(1000)), (10,))
    drawn = torch.stack([populations.exploit(scores, x, 0.3) for x in u])[:, :3]
    assert drawn.unique().tolist() == [7, 8, 9]
    counts = drawn.flatten().bincount()[7:]
    assert (counts - 1000).abs().max() < 5 * math.sqrt(3000 * 2 / 9)
    last = populations.exploit(scores, torch.full((10,), 1 - 2.0**-23), 0.3)
    assert last.tolist() == [7, 7, 7, 3, 4, 5, 6, 7, 8, 9]


def selection(exploit, scores, u, fraction, groups):
    """Check that members copy only better members of their population, and that few of them copy."""
    source, own = exploit(scores, u, fraction, groups), torch.arange(len(scores))
    moved = source != own
    assert (source % groups == own % groups).all(), "a member copies from another population"
    assert (scores[source] > scores)[moved].all(), "a member copies from a worse one"
    assert (moved.reshape(-1, groups).sum(0) <= len(scores) // groups // 2).all(), "too many copies"
    kept = moved[source[moved]]
    assert not kept.any(), "a source copies from another member"
    order = torch.arange(len(scores)).reshape(-1, groups).flip(0).flatten()  # other positions, the same populations
    if len(scores[~scores.isnan()].unique()) == len(scores):  # the first of several equal members is the best
        asserts.assert_trees_equal(order[source], exploit(scores[order], u[order], fraction, groups)[order], "order: ")


def of_one_population(scores, u, fraction, groups):
    return populations.exploit(scores, u, fraction)


def from_the_worst(scores, u, fraction, groups):
    return populations.exploit(-scores, u, fraction, groups)


def from_any_member(scores, u, fraction, groups):
    size = len(scores) // groups
    return (u * size).long().clamp(0, size - 1) * groups + torch.arange(len(scores)) % groups


def from_the_member_above(scores, u, fraction, groups):
    rank = scores.argsort(stable=True)
    return torch.where(scores < scores.max(), rank[(rank.argsort() + groups) % len(rank)], torch.arange(len(rank)))


SCORES = st.sampled_from([-1.0, 0.5, 2.0, 3.0, 7.0, -math.inf, math.nan])


def tables(groups):
    """Make scores of several settings for each of `groups` seeds."""
    row = st.lists(SCORES, min_size=groups, max_size=groups)
    return st.tuples(st.just(groups), st.lists(row, min_size=1, max_size=8))


@given(st.integers(1, 3).flatmap(tables), st.sampled_from([0.0, 0.2, 0.34, 0.5]), st.integers(0, 2**32 - 1))
def test_exploit_copies_only_better_members(table, fraction, seed):
    groups, rows = table
    scores = torch.tensor(rows).flatten()
    selection(populations.exploit, scores, random.uniform(random.key(seed), scores.shape), fraction, groups)


@pytest.mark.parametrize(
    ("exploit", "match"),
    [
        (of_one_population, "a member copies from another population"),
        (from_the_worst, "a member copies from a worse one"),
        (from_any_member, "a member copies from a worse one"),
        (from_the_member_above, "too many copies|a source copies|another population"),
        (lambda *given: populations.exploit(*given[:1], given[1].roll(2), *given[2:]), "order: "),
    ],
)
def test_wrong_selection_is_detected(exploit, match):
    scores, u = random.normal(random.key(1), (12,)), random.uniform(random.key(2), (12,))
    with rejects(match):
        selection(exploit, scores, u, 0.5, 2)


# Explore

CHANGED = torch.tensor([True, False, True, False, False, True])


def exploration(explore, hyper, changed, u, bounds):
    """Check that only changed members and names with bounds change, within bounds, by one of the factors."""
    new = explore(hyper, changed, u, bounds)
    before, after = ({**x._asdict(), **x.numbers} for x in (hyper, new))
    for name in before.keys() - {"numbers"}:
        x, y = before[name], after[name]
        assert torch.equal(x[~changed], y[~changed]), f"{name}: another member"
        assert y.dtype == x.dtype, f"{name}: another dtype"
        if name not in bounds:
            assert torch.equal(x, y), f"{name}: without bounds"
            continue
        low, high = torch.tensor(bounds[name], dtype=y.dtype)
        assert ((low <= y) & (y <= high))[changed].all(), f"{name}: outside of its bounds"
        factor = ((1 - y) / (1 - x) if name == "gamma" else y / x)[changed]
        inside = (y != low) & (y != high) & x.is_floating_point()
        close = torch.minimum((factor - 0.8).abs(), (factor - 1.2).abs()) < 1e-4
        assert (close | ~inside[changed]).all(), f"{name}: another factor"


def test_explore_changes_members_that_copied_within_bounds(trained):
    for number in range(20):
        u = random.uniform(random.key(number), (6, 3))
        exploration(populations.explore, trained.hyper, CHANGED, u, BOUNDS)
        hyper = trained.hyper
        for _ in range(30):
            hyper = populations.explore(hyper, CHANGED, u, BOUNDS)
        low, high = torch.tensor(BOUNDS["learning_rate"])
        assert torch.isin(hyper.learning_rate[CHANGED], torch.stack([low, high])).all()


def test_explore_draws_every_factor_for_every_member_and_name(trained):
    u = torch.tensor([[0.0, 0.0, 0.9], [0.1, 0.1, 0.1], [0.9, 0.4, 0.5], *[[0.0] * 3] * 3])
    new, old = populations.explore(trained.hyper, CHANGED, u, BOUNDS), trained.hyper
    asserts.assert_trees_close(old.learning_rate[[0, 2]] * torch.tensor([0.8, 1.2]), new.learning_rate[[0, 2]], 0, 1e-6)
    asserts.assert_trees_close(1 - (1 - old.gamma[[0, 2]]) * 0.8, new.gamma[[0, 2]], 0, 1e-6)
    assert old.numbers["period"].tolist() == [4, 5, 6, 7, 8, 9]
    assert new.numbers["period"].tolist() == [5, 5, 7, 7, 8, 7]  # 4.8, 7.2 and 7.2


def test_small_integers_move_within_their_bounds(trained):
    period, u = torch.tensor([0, 1, 2, 1, 2, 3]), torch.tensor([[0.0], [0.9], [0.9], [0.0], [0.0], [0.9]])
    hyper = trained.hyper._replace(numbers={**trained.hyper.numbers, "period": period})
    new = populations.explore(hyper, torch.ones(6, dtype=torch.bool), u, {"period": (0, 9)})
    assert new.numbers["period"].tolist() == [0, 2, 3, 0, 1, 4], "0 times a factor is 0"
    new = populations.explore(hyper, torch.ones(6, dtype=torch.bool), u, {"period": (0.6, 2.4)})
    assert new.numbers["period"].tolist() == [1, 2, 2, 1, 1, 2]


EXPLORES = {
    "everybody": (lambda hyper, changed, *given: populations.explore(hyper, changed | True, *given), "another member"),
    "no bounds": (
        lambda hyper, changed, u, bounds: populations.explore(hyper, changed, u, dict.fromkeys(bounds, (0.0, 9.0))),
        "outside of its bounds",
    ),
    "other names": (
        lambda hyper, changed, u, bounds: populations.explore(hyper, changed, u, {**bounds, "tau": (0.0, 0.01)}),
        "tau: without bounds",
    ),
    "other factors": (partial(populations.explore, factors=(0.8, 1.3)), "another factor"),
    "gamma as the others": (partial(populations.explore, from_one=()), "gamma: another factor"),
}


@pytest.mark.parametrize("name", EXPLORES)
def test_wrong_exploration_is_detected(trained, name):
    explore, match = EXPLORES[name]
    hyper = trained.hyper._replace(gamma=torch.full((6,), 0.9))
    narrow = {"learning_rate": (1e-4, 2e-3), "gamma": (0.5, 0.95)}
    u = torch.tensor([0.9, 0.1, 0.9]).expand(6, 3)
    with rejects(match):
        exploration(explore, hyper, CHANGED, u if name == "other names" else u[:, :2], narrow)


# Runs


def noise_of(state, number, groups=SEEDS):
    return populations.noise(state.key, number, len(BOUNDS), groups)


def run(state, iterations, since=None, every=8, groups=SEEDS, noise=noise_of):
    """Train with a step of population based training after every 8 iterations; return the state and its metrics at
    the last step."""
    since, number = since or training.snapshot(PROGRAM, state), int(state.cycle[0])
    last = number + iterations
    while number < last:
        then = min(last, (number // every + 1) * every)
        state, number = advance(state, then - number), then
        if number % every == 0:
            returned, episodes = (
                torch.from_numpy(getattr(training.snapshot(PROGRAM, state), name) - getattr(since, name))
                for name in ("returned", "episodes")
            )
            known = populations.scores(state, returned / episodes)
            state, _ = populations.evolve(state, known, noise(state, number, groups), BOUNDS, 0.5, groups)
            since = training.snapshot(PROGRAM, state)
    return state, since


@pytest.fixture(scope="module")
def evolved():
    return run(initialized(), 24)[0]


def test_a_run_is_a_function_of_its_keys(evolved):
    asserts.assert_trees_equal(evolved, run(initialized(), 24)[0])
    plain = advance(initialized(), 24)
    assert not torch.equal(evolved.hyper.learning_rate, plain.hyper.learning_rate), "no member copied another one"


def test_a_run_with_global_random_numbers_is_detected(evolved):
    calls = []

    def noise(state, number, groups):
        calls.append(1)
        return noise_of(state, number + len(calls), groups)

    first = run(initialized(), 16, noise=noise)[0]
    with rejects("again"):
        asserts.assert_trees_equal(first, run(initialized(), 16, noise=noise)[0], "again: ")


@pytest.mark.parametrize("stop", [16, 19])
def test_a_run_resumed_from_saved_tensors_repeats_every_bit(evolved, tmp_path, stop):
    """Stop at a step of population based training, and between two of them."""
    state, since = run(initialized(), stop)
    saved = {"lanes": state, "since": tree.from_numpy(since)}
    checkpoint.save(tmp_path, str(stop), saved, {})
    read, _ = checkpoint.load(tmp_path / str(stop), tree.map(torch.zeros_like, saved))
    since = training.MetricsSnapshot(*tree.to_numpy(read["since"]))
    asserts.assert_trees_equal(evolved, run(read["lanes"], 24 - stop, since)[0])


def test_the_population_of_a_seed_does_not_depend_on_other_seeds(evolved):
    for seed in range(SEEDS):
        members = torch.arange(seed, SETTINGS * SEEDS, SEEDS)
        alone = run(populations.keep(initialized(), members), 24, groups=1)[0]
        asserts.assert_trees_equal(tree.index(evolved, members), alone, f"seed {seed}: ")


def test_one_population_of_all_members_depends_on_all_seeds(evolved):
    members = torch.arange(0, SETTINGS * SEEDS, SEEDS)
    with rejects("alone"):
        alone = run(populations.keep(initialized(), members), 16, groups=1)[0]
        asserts.assert_trees_equal(tree.index(run(initialized(), 16, groups=1)[0], members), alone, "alone: ")


def test_noise_differs_between_members_steps_and_uses():
    keys = random.key([3, 4] * 3)
    each = [populations.noise(keys, number, 2, groups=2) for number in range(3)]
    u = torch.cat([torch.cat([x.exploit, x.explore.flatten()]) for x in each])
    assert len(u.unique()) == len(u) == 3 * 6 * 3
    training_noise = training.noise(PROGRAM, keys, 0, 3)
    assert not torch.isin(u, torch.cat([training_noise.act.flatten(), training_noise.env.flatten()])).any()
    few = populations.noise(keys[:4], 1, 2, groups=2)
    asserts.assert_trees_equal(few, tree.index(each[1], slice(4)))
