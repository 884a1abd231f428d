"""Comparisons of arms: laws with planted bugs, and scipy and hand-written bootstraps as oracles."""

import warnings
from functools import partial

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fdqn.report import aggregates, comparisons, permutation, power, samples, statistics
from fdqn.report.comparisons import compare, difference, improvement, mean_interval, selection
from fdqn.report.permutation import holm, permutation_test

KINDS = pytest.mark.parametrize(("name", "paired"), [(n, p) for n in ("iqm", "mean") for p in (False, True)])
RETURNS = st.lists(st.integers(-20, 20).map(float), min_size=5, max_size=9)
quick = partial(difference, resamples=400)


def arms(first=8, second=8, shift=0.5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=first), rng.normal(shift, size=second)


def ends(estimate):
    return [estimate.low, estimate.high]


# Laws that hold for every difference with an interval


def is_antisymmetric(compared, a, b):
    one, other = compared(a, b), compared(b, a)
    np.testing.assert_allclose([one.value, one.low, one.high], [-other.value, -other.high, -other.low], atol=1e-9)


def is_invariant_to_shift(compared, a, b):
    np.testing.assert_allclose(compared(a, b)[:3], compared(a + 3.25, b + 3.25)[:3], atol=1e-9)
    moved = compared(a, b + 2.5)
    np.testing.assert_allclose(np.array(compared(a, b)[:3]) + 2.5, moved[:3], atol=1e-9)


def is_invariant_to_order(compared, a, b, paired):
    order = np.random.default_rng(1).permutation(len(a))
    other = order if paired else np.random.default_rng(2).permutation(len(b))
    np.testing.assert_allclose(compared(a, b)[:3], compared(a[order], b[other])[:3], atol=1e-9)


def resamples_arms_separately(compared):
    """Check that the width of an interval does not depend on a correlation of the arms."""
    a, b = arms(12, 12, 0.0)
    alike, unlike = (np.ptp(ends(compared(a, other))) for other in (a + 0.01 * b, np.sort(a)[::-1] + 0.01 * b))
    assert alike == pytest.approx(unlike, rel=0.2)


@KINDS
def test_differences_obey_the_laws(name, paired):
    compared = partial(quick, statistic=name, paired=paired)
    a, b = arms()
    is_antisymmetric(compared, a, b)
    is_invariant_to_shift(compared, a, b)
    is_invariant_to_order(compared, a, b, paired)
    if not paired:
        is_antisymmetric(compared, *arms(6, 11))
        resamples_arms_separately(compared)


@settings(max_examples=20, deadline=None)
@given(RETURNS, RETURNS, st.booleans())
def test_comparisons_of_integers_with_ties_are_antisymmetric(a, b, paired):
    if paired:
        a, b = a[: len(b)], b[: len(a)]
    compared = partial(compare, paired=paired, resamples=50)
    one, other = compared(a, b), compared(b, a)
    for name in ("iqm", "mean"):
        is_antisymmetric(lambda x, y, name=name: getattr(compared(x, y), name), np.array(a), np.array(b))
    assert one.improvement.value == pytest.approx(1 - other.improvement.value)
    np.testing.assert_allclose(ends(one.improvement), 1 - np.array(ends(other.improvement))[::-1], atol=1e-9)
    assert one.p == pytest.approx(other.p)


def naive(a, b, paired=False, flip=False):
    """Estimate by a percentile bootstrap that draws indices for the first arm before those for the second."""
    rng = np.random.default_rng(0)
    index, other = rng.integers(0, len(a), (400, len(a))), rng.integers(0, len(b), (400, len(b)))
    draws = samples.iqm(b[index if paired else other]) - samples.iqm(a[index])
    low, high = np.quantile(draws, [0.025, 0.975])
    value = float(samples.iqm(b) - samples.iqm(a))
    return comparisons.Estimate(abs(value) if flip else value, low, high, (), ())


def test_the_laws_reject_planted_bugs():
    a, b = arms()
    with pytest.raises(AssertionError):
        resamples_arms_separately(partial(naive, paired=True))
    with pytest.raises(AssertionError):
        resamples_arms_separately(partial(quick, paired=True))
    with pytest.raises(AssertionError):
        is_antisymmetric(naive, a, b)
    with pytest.raises(AssertionError):
        is_antisymmetric(partial(naive, flip=True), b, a)
    with pytest.raises(AssertionError):
        is_invariant_to_order(naive, a, b, False)
    with pytest.raises(AssertionError):
        is_invariant_to_order(partial(quick, paired=True), a, b, False)
    with pytest.raises(AssertionError):
        is_invariant_to_shift(lambda a, b: quick(np.log(a + 9), np.log(b + 9)), a, b)


# Oracles


@pytest.mark.parametrize("sizes", [(8, 8), (5, 30)])
def test_mean_intervals_equal_scipy(sizes):
    a, b = arms(*sizes)
    expected = scipy.stats.ttest_ind(b, a, equal_var=False).confidence_interval()
    assert ends(difference(a, b, "mean")) == pytest.approx([expected.low, expected.high])
    expected = scipy.stats.ttest_1samp(b, 0).confidence_interval(0.9)
    assert ends(mean_interval(b, 0.9)) == pytest.approx([expected.low, expected.high])
    assert mean_interval(b).value == pytest.approx(b.mean())


def test_paired_mean_interval_equals_scipy():
    a, b = arms()
    expected = scipy.stats.ttest_rel(b, a).confidence_interval()
    assert ends(difference(a, b, "mean", paired=True)) == pytest.approx([expected.low, expected.high])
    assert ends(difference(a, b, "mean")) != pytest.approx([expected.low, expected.high])


@pytest.mark.parametrize("paired", [False, True])
def test_the_bootstrap_equals_scipy_at_the_expanded_level(paired):
    a, b = arms(20, 20)
    freedom = 19 if paired else scipy.stats.ttest_ind(a, b, equal_var=False).df
    tail = scipy.stats.norm.sf(np.sqrt(20 / 19) * scipy.stats.t.isf(0.025, freedom))
    expected = scipy.stats.bootstrap(
        (a, b),
        lambda x, y, axis: statistics.iqm(y, axis) - statistics.iqm(x, axis),
        confidence_level=1 - 2 * tail,
        paired=paired,
        n_resamples=5_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = difference(a, b, paired=paired)
    width = found.high - found.low
    np.testing.assert_allclose(ends(found), [expected.low, expected.high], atol=0.08 * width)
    assert abs(difference(a, b, paired=paired, confidence=0.8).low - expected.low) > 0.08 * width, (
        "another level is outside of the tolerance"
    )


def draw(name, rng, shape):
    z = rng.normal(size=shape)
    return {"normal": z, "ceiling": np.minimum(z, 0.4), "skewed": np.exp(0.8 * z)}[name]


@pytest.mark.parametrize("name", ["normal", "ceiling", "skewed"])
def test_intervals_of_five_seeds_cover_no_difference(name):
    """Check coverage: `benchmarks/coverage.py` measures at least 93%; 3 standard errors of 300 experiments are 4%."""
    rng = np.random.default_rng(5)
    found = [compare(*draw(name, rng, (2, 5)), resamples=400) for _ in range(300)]
    for part, truth in (("iqm", 0), ("mean", 0), ("improvement", 0.5)):
        covered = np.mean([getattr(x, part).low <= truth <= getattr(x, part).high for x in found])
        assert covered >= 0.89, part
    assert np.mean([x.p <= 0.05 for x in found]) <= 0.09, "the test is exact"


def test_improvement_equals_mann_whitney():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 6, 9), rng.integers(2, 8, 7)
    found, z = improvement(a, b), 1.959964
    assert found.value == pytest.approx(scipy.stats.mannwhitneyu(b, a).statistic / 63)
    for p in ends(found):  # Newcombe's equation
        v = p * (1 - p) * (1 + 7 * ((1 - p) / (2 - p) + p / (1 + p))) / 63
        assert abs(found.value - p) == pytest.approx(z * np.sqrt(v), rel=1e-5)


@pytest.mark.parametrize(("a", "b", "value"), [(0, 1, 1.0), (1, 0, 0.0), (1, 1, 0.5)])
def test_improvement_of_separate_arms_has_an_interval(a, b, value):
    found = improvement([float(a)] * 8, [float(b)] * 8)
    assert found.value == value
    assert 0.2 < found.high - found.low < 0.6
    assert found.low <= value <= found.high


@pytest.mark.parametrize("sizes", [(6, 6), (4, 9), (20, 22)])
def test_permutation_test_equals_scipy(sizes):
    a, b = arms(*sizes, shift=0.7)
    expected = scipy.stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.abs(y.mean(axis) - x.mean(axis)),
        vectorized=True,
        alternative="greater",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).pvalue
    assert permutation_test(a, b) == pytest.approx(expected, abs=1e-12 if sum(sizes) < 15 else 0.01)
    assert permutation_test(a, b) == pytest.approx(permutation_test(b, a)), "two-sided"


@pytest.mark.parametrize("seeds", [5, 9, 25])
def test_paired_permutation_test_equals_scipy(seeds):
    a, b = arms(seeds, seeds, shift=0.7)
    expected = scipy.stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.abs((y - x).mean(axis)),
        permutation_type="samples",
        vectorized=True,
        alternative="greater",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).pvalue
    assert permutation_test(a, b, paired=True) == pytest.approx(expected, abs=1e-12 if seeds < 14 else 0.01)
    assert permutation_test(a, b, True) == permutation_test(b, a, True) == permutation_test(a[::-1], b[::-1], True)


def test_a_one_sided_p_value_is_rejected():
    a, b = arms(6, 6, shift=0.7)
    one_sided = lambda x, y: float((permutation._splits(x, y)[0] >= y.mean() - x.mean() - 1e-12).mean())  # noqa: E731
    assert one_sided(a, b) != pytest.approx(one_sided(b, a))
    assert permutation_test(a, b) != pytest.approx(one_sided(a, b))


@pytest.mark.parametrize("paired", [False, True])
def test_random_splits_give_the_exact_p_value_and_never_zero(monkeypatch, paired):
    a, b = arms(9, 9, shift=1.0)
    monkeypatch.setattr(permutation, "_SPLITS", 100_000)
    exact = permutation_test(a, b, paired)
    monkeypatch.setattr(permutation, "_SPLITS", 400)
    assert permutation_test(a, b, paired) == pytest.approx(exact, abs=0.03)
    assert permutation_test(a, b + 100, paired) >= 1 / 401
    assert permutation_test(a, a, paired) == 1.0


def test_holm_of_known_values():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    with_missing = holm([np.nan, 0.01, 0.04])
    assert np.isnan(with_missing[0])
    assert with_missing[1:] == pytest.approx([0.02, 0.04])
    assert holm([]) == []


# Failed, few and equal seeds


@pytest.mark.parametrize("failed", [np.nan, np.inf, -np.inf])
def test_failed_seeds_are_left_out_and_counted(failed):
    a, b = arms(9, 9)
    spoiled, also = a.copy(), b.copy()
    spoiled[2], also[[5, 6]] = failed, failed
    found = compare(spoiled, also, resamples=50)
    assert (found.seeds, found.failed) == ((8, 7), (1, 2))
    expected = compare(np.delete(a, 2), np.delete(b, [5, 6]), resamples=50)
    assert [x[:3] for x in found[:3]] == [x[:3] for x in expected[:3]]
    assert found.p == expected.p
    assert found.iqm.failed == found.mean.failed == found.improvement.failed == (1, 2)
    paired = compare(spoiled, also, paired=True, resamples=50)
    assert (paired.seeds, paired.failed) == ((6, 6), (1, 2)), "a failed seed is left out of both arms"
    expected = compare(np.delete(a, [2, 5, 6]), np.delete(b, [2, 5, 6]), paired=True, resamples=50)
    assert paired[:3] == tuple(x._replace(failed=(1, 2)) for x in expected[:3])


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("seeds", [0, 1, 2, 4, 5])
def test_few_seeds_have_no_interval_and_no_warning(seeds, paired):
    a, b = arms(seeds, seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(a, b, paired, resamples=50)
    for estimate in found[:3]:
        assert np.isfinite(estimate.value) == (seeds > 0)
        assert np.isfinite(ends(estimate)).all() == (seeds >= 5)
    assert np.isnan(found.p) == (seeds == 0)
    assert np.isnan(mean_interval(a).low) == (seeds < 5)


@pytest.mark.parametrize("paired", [False, True])
def test_equal_arms(paired):
    found = compare([5.1] * 6, [5.1] * 6, paired, resamples=50)
    assert [*found.iqm[:3], *found.mean[:3]] == pytest.approx([0] * 6, abs=1e-12)
    assert found.p == 1
    moved = compare([5.0] * 6, [6.0] * 6, paired, resamples=50)
    assert moved.iqm[:3] == moved.mean[:3] == (1, 1, 1)
    assert moved.p == pytest.approx(2 / 2**6 if paired else 2 / 924)


def test_results_do_not_depend_on_chunks_or_a_global_generator(monkeypatch):
    a, b = arms(11, 7)
    whole, chosen = compare(a, b, resamples=301), selection([a, a + 1], resamples=301)
    np.random.seed(3)  # noqa: NPY002
    monkeypatch.setattr(samples, "VALUES_AT_ONCE", 100)
    again = compare(a, b, resamples=301)
    np.testing.assert_allclose(again.iqm.value, whole.iqm.value)
    assert again.p == pytest.approx(whole.p, abs=0.02)
    assert selection([a, a + 1], resamples=301)[0].tolist() == chosen[0].tolist()


# Selection


def select_with_loops(returns, resamples, paired):
    """Resample with Python loops, and select by the IQM of scipy."""
    rng, wins = np.random.default_rng(7), np.zeros(len(returns))
    for _ in range(resamples):
        index = rng.integers(0, returns.shape[1], returns.shape if not paired else returns.shape[1])
        drawn = np.take_along_axis(returns, np.broadcast_to(index, returns.shape), 1)
        wins[np.argmax(scipy.stats.trim_mean(drawn, 0.25, axis=1))] += 1
    return wins / resamples


@pytest.mark.parametrize("paired", [False, True])
def test_selection_equals_loops(paired):
    returns = np.random.default_rng(0).normal(size=(4, 9)) + np.array([[0.0], [0.4], [0.8], [-3.0]])
    found = selection(returns, paired)
    np.testing.assert_allclose(found.frequency, select_with_loops(returns, 1_000, paired), atol=0.06)
    assert found.frequency.sum() == pytest.approx(1)
    assert not found.members[3]
    assert found.frequency[found.members].sum() >= 0.95
    least = found.frequency[found.members].min()
    assert found.frequency[found.members].sum() - least < 0.95, "the set is the smallest"


def test_joint_resampling_distinguishes_correlated_settings():
    a = np.random.default_rng(0).normal(size=10)
    returns = np.stack([a, a + 0.01])
    assert selection(returns).members.tolist() == [False, True]
    assert selection(returns, paired=False).members.tolist() == [True, True]


def test_selection_permutes_with_the_settings_and_ignores_the_order_of_seeds():
    returns = np.random.default_rng(0).normal(size=(5, 8))
    settings, seeds = [3, 0, 4, 1, 2], np.random.default_rng(1).permutation(8)
    whole = selection(returns)
    permuted = selection(returns[settings][:, seeds])
    np.testing.assert_allclose(permuted.frequency, whole.frequency[settings])
    assert permuted.members.tolist() == whole.members[settings].tolist()
    assert selection(returns, statistic="mean").frequency.tolist() != whole.frequency.tolist()


def test_ties_are_divided_equally():
    returns = np.stack([np.arange(6.0)] * 3 + [np.arange(6.0) - 9])
    found = selection(returns)
    np.testing.assert_allclose(found.frequency, [1 / 3] * 3 + [0])
    assert found.members.tolist() == [True] * 3 + [False]


def test_selection_counts_failed_seeds_and_never_selects_a_failed_setting():
    returns = np.arange(24.0).reshape(4, 6)
    returns[3] = np.nan
    returns[2, :2] = np.inf
    found = selection(returns)
    assert found.failed.tolist() == [0, 0, 2, 6]
    # Only a resample of both failed seeds alone selects another setting.
    assert found.frequency[2] > 0.99
    assert found.frequency[3] == 0
    nothing = selection(np.full((2, 3), np.nan))
    assert np.isnan(nothing.frequency).all()
    assert not nothing.members.any()
    assert selection([[1.0]]).members.tolist() == [True]


def test_the_set_contains_the_best_setting_more_often_than_it_is_selected():
    """Check the rates in the docstring of `selection`, for 16 seeds and one of 6 settings better by 0.5."""
    rng, contained, won = np.random.default_rng(4), [], []
    for _ in range(120):
        returns = rng.normal(size=(6, 16))
        returns[0] += 0.5
        found = selection(returns, paired=False, resamples=200)
        contained.append(found.members[0])
        won.append(found.frequency.argmax() == 0)
    assert np.mean(contained) > 0.9
    assert np.mean(won) < 0.85


# Aggregates over tasks


def test_stratified_intervals_equal_rliable():
    """Resample each task separately and take the IQM of all runs, as `rliable` does with scipy's trim_mean."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 10)) * [[1.0], [0.1], [2.0]] + [[0.0], [5.0], [1.0]]
    draws = []
    for _ in range(1_500):
        drawn = [row[rng.integers(0, 10, 10)] for row in values]
        draws.append(scipy.stats.trim_mean(np.concatenate(drawn), 0.25))
    found = aggregates.stratified(values)
    assert found.value == pytest.approx(scipy.stats.trim_mean(values, 0.25, axis=None))
    np.testing.assert_allclose(ends(found), np.quantile(draws, [0.025, 0.975]), atol=0.08)
    pooled = aggregates.stratified(values.reshape(1, -1))
    assert np.ptp(ends(pooled)) > 1.2 * np.ptp(ends(found)), "resampling across tasks is wider"


def test_stratified_leaves_out_failed_seeds_of_their_task():
    values = np.random.default_rng(0).normal(size=(2, 8))
    values[1, 3] = np.nan
    found = aggregates.stratified(values, "mean", resamples=100)
    assert (found.seeds, found.failed) == ((8, 7), (0, 1))
    assert found.value == pytest.approx(np.nanmean(values))
    values[1, 3:7] = np.nan
    assert np.isnan(aggregates.stratified(values).low), "four seeds in a task"


def test_optimality_gap():
    values = [0.5, 0.75, 2.0, np.nan, 1.0, 0.25]
    found = aggregates.optimality_gap(values, resamples=200)
    assert found.value == pytest.approx(0.3)
    assert (found.seeds, found.failed) == ((5,), (1,))
    assert found.low <= 0.3 <= found.high
    assert aggregates.optimality_gap([2.0] * 5, resamples=20)[:3] == (0, 0, 0)


def test_profile_equals_the_wilson_interval():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, 12).astype(float)
    found = aggregates.profile([*values, np.nan], [-1.0, 2.0, 4.0])
    assert (found.seeds, found.failed) == (12, 1)
    for at, fraction, low, high in zip(*found[:4], strict=True):
        above = int((values > at).sum())
        expected = scipy.stats.binomtest(above, 12).proportion_ci(method="wilson")
        assert (fraction, low, high) == pytest.approx((above / 12, expected.low, expected.high))
    assert np.isnan(aggregates.profile(values[:4], [0.0]).low).all()
    assert np.isnan(aggregates.profile([], [0.0]).fraction).all()


def test_statistics_of_samples_equal_those_of_the_package():
    values = np.random.default_rng(0).normal(size=(30, 11))
    np.testing.assert_allclose(samples.iqm(values), statistics.iqm(values))
    values[np.random.default_rng(1).random(values.shape) < 0.3] = np.nan
    values[4] = np.nan
    for row, middle, mean in zip(values, samples.iqm(values), samples.mean(values), strict=True):
        kept = row[np.isfinite(row)]
        expected = (statistics.iqm(kept), kept.mean()) if len(kept) else (np.nan, np.nan)
        np.testing.assert_allclose([middle, mean], expected)


@pytest.mark.parametrize("paired", [False, True])
def test_results_are_bit_equal_for_any_order_of_seeds(paired):
    rng = np.random.default_rng(3)
    for seeds in range(5, 13):
        a, b = rng.normal(300, 100, seeds), rng.normal(330, 100, seeds)
        order = rng.permutation(seeds)
        other = order if paired else rng.permutation(seeds)
        found, shuffled = (comparisons.compare(*x, paired, resamples=50) for x in ((a, b), (a[order], b[other])))
        assert found == shuffled
        assert comparisons.mean_interval(a) == comparisons.mean_interval(a[order])
        assert power.spread(a, b, paired) == power.spread(a[order], b[other], paired)
        exchanged = comparisons.compare(b, a, paired, resamples=50)
        for one, two in ((found.iqm, exchanged.iqm), (found.mean, exchanged.mean)):
            assert (two.value, two.low, two.high) == pytest.approx(
                (-one.value, -one.high, -one.low), rel=1e-12, abs=1e-9
            )
