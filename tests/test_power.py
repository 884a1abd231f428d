"""Compare power and tolerance intervals with published numbers and simulation."""

import math

import numpy as np
import pytest
import scipy.stats

from fdqn.report import power
from fdqn.report.power import detectable, seeds_needed, spread, t_test_power, tolerance_fraction, tolerance_seeds

PUBLISHED = [(0.5, 64), (0.75, 29), (1.0, 17), (1.25, 12), (1.5, 9), (2.0, 6)]


def test_small_differences_need_many_seeds(monkeypatch):
    assert 1.5e11 < seeds_needed(1.0, 1e-5) < 1.6e11
    assert seeds_needed(1.0, 1e-5, power=0.01) == 2
    for paired in (False, True):
        expected = [seeds_needed(1.0, effect, paired) for effect in (0.05, 0.01)]
        with monkeypatch.context() as patched:
            patched.setattr("fdqn.report.power._MANY_SEEDS", 100)
            assert [seeds_needed(1.0, effect, paired) for effect in (0.05, 0.01)] == expected
    with pytest.raises(ValueError, match="difference: expected at least 1e-100 of the spread, got 1e-200"):
        seeds_needed(1.0, 1e-200)


def test_seeds_needed_equal_published_numbers():
    assert [seeds_needed(1.0, d) for d, _ in PUBLISHED] == [n for _, n in PUBLISHED]
    assert [seeds_needed(7.0, 7.0 * d) for d, _ in PUBLISHED] == [n for _, n in PUBLISHED]


def simulated(effect, seeds, others, paired, experiments=1_000):
    """Simulate experiments and return the fraction of t tests with p below 5%."""
    rng = np.random.default_rng(seeds)
    a, b = rng.normal(size=(experiments, seeds)), rng.normal(size=(experiments, others)) + effect
    if paired:
        return np.mean(scipy.stats.ttest_1samp(b, 0, axis=1).pvalue < 0.05)
    return np.mean(scipy.stats.ttest_ind(a, b, axis=1).pvalue < 0.05)


def agrees_with_simulation(needed, paired=False):
    """Check the power of the number of seeds that a function returns, within three standard errors (4 points)."""
    for effect in (0.75, 1.0, 1.5, 2.0):
        n = needed(effect)
        found = simulated(effect, n, n, paired)
        assert found == pytest.approx(t_test_power(effect, n, paired=paired), abs=0.04), effect
        assert found > 0.76, effect
        assert simulated(effect, n - 1, n - 1, paired) < 0.84, effect


@pytest.mark.parametrize("paired", [False, True])
def test_power_agrees_with_simulation(paired):
    agrees_with_simulation(lambda effect: seeds_needed(1.0, effect, paired), paired)


def test_a_normal_quantile_or_one_side_are_rejected():
    z = scipy.stats.norm.isf
    with pytest.raises(AssertionError):
        agrees_with_simulation(lambda effect: math.ceil(2 * ((z(0.025) + z(0.2)) / effect) ** 2))
    with pytest.raises(AssertionError):
        agrees_with_simulation(lambda effect: seeds_needed(1.0, effect, level=0.1))
    with pytest.raises(AssertionError):
        agrees_with_simulation(lambda effect: seeds_needed(1.0, effect, paired=True))


def test_power_of_arms_of_different_sizes_agrees_with_simulation():
    assert simulated(1.0, 8, 24, False) == pytest.approx(t_test_power(1.0, 8, 24), abs=0.04)
    assert t_test_power(1.0, 8, 24) == pytest.approx(t_test_power(1.0, 24, 8))
    assert t_test_power(0.0, 8) == 0.05


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("seeds", [2, 3, 16, 500])
def test_detectable_is_the_inverse_of_power(seeds, paired):
    found = detectable(3.0, seeds, paired=paired)
    assert t_test_power(found / 3.0, seeds, paired=paired) == pytest.approx(0.8)
    assert seeds_needed(3.0, found * 1.0001, paired) == seeds
    assert seeds_needed(3.0, found * 0.9999, paired) == seeds + 1
    assert detectable(6.0, seeds, paired=paired) == pytest.approx(2 * found)


def test_half_the_difference_needs_four_times_the_seeds():
    assert seeds_needed(1.0, 0.05) / seeds_needed(1.0, 0.1) == pytest.approx(4, rel=0.01)
    assert seeds_needed(1.0, 1e-3) == pytest.approx(1.57e7, rel=0.01)
    assert seeds_needed(1.0, 1e6) == 2


def test_without_spread_or_seeds():
    assert detectable(0.0, 5) == 0.0
    assert math.isnan(detectable(1.0, 1))
    assert math.isnan(t_test_power(1.0, 1))
    assert seeds_needed(0.0, 0.1) == 2


def is_unbiased(spread):
    """Check that the squared spread of few seeds has the variance of the returns as its mean."""
    arms = np.random.default_rng(0).normal(size=(3_000, 2, 3))
    assert np.mean([spread(a, b) ** 2 for a, b in arms]) == pytest.approx(1, abs=0.05)


def test_spread_is_the_pooled_deviation():
    is_unbiased(spread)
    with pytest.raises(AssertionError):
        is_unbiased(lambda a, b: math.sqrt((a.var() + b.var()) / 2))  # divided by n
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=9), rng.normal(size=9) * 3
    assert spread(a, b) == pytest.approx(math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2))
    assert spread(a, b, paired=True) == pytest.approx((b - a).std(ddof=1))
    assert spread([*a, np.nan], b) == pytest.approx(spread(a, b))
    assert spread([1.0], [2.0, 4.0]) == pytest.approx(math.sqrt(2))
    for arms in (([1.0], [2.0]), ([], [1.0, 2.0]), ([], [])):
        assert math.isnan(spread(*arms))
    assert math.isnan(spread([1.0], [2.0], paired=True))


# Tolerance intervals


def covers_as_promised(seeds_of):
    """Check that the range of n seeds covers the fraction in 95% of 4,000 experiments, and that of n - 1 does not."""
    rng = np.random.default_rng(0)
    for fraction in (0.5, 0.75, 0.9):
        n = seeds_of(fraction)
        covered = [(np.ptp(rng.random((4_000, m)), axis=1) >= fraction).mean() for m in (n, n - 1)]
        assert covered[0] > 0.94, fraction
        assert covered[1] < 0.957, fraction


def test_tolerance_agrees_with_simulation_and_published_numbers():
    covers_as_promised(tolerance_seeds)
    assert [tolerance_seeds(f) for f in (0.5, 0.75, 0.8, 0.9, 0.95)] == [8, 18, 22, 46, 93]


@pytest.mark.parametrize("wrong", [
    lambda fraction: math.ceil(math.log(0.05) / math.log(fraction)),  # one limit instead of two
    lambda fraction: tolerance_seeds(fraction, 0.9),
    lambda fraction: tolerance_seeds(fraction) + 2,
])  # fmt: skip
def test_wrong_numbers_of_seeds_are_rejected(wrong):
    with pytest.raises(AssertionError):
        covers_as_promised(wrong)


@pytest.mark.parametrize("seeds", [2, 8, 40])
def test_fraction_is_the_inverse_of_seeds(seeds):
    fraction = tolerance_fraction(seeds)
    assert seeds * fraction ** (seeds - 1) - (seeds - 1) * fraction**seeds == pytest.approx(0.05)
    assert tolerance_seeds(fraction * 0.9999) == seeds
    assert tolerance_seeds(fraction * 1.0001) == seeds + 1
    assert tolerance_fraction(1) == 0.0


def test_tolerance_interval_is_the_range_from_eight_seeds_on():
    values = np.arange(8.0)
    found = power.tolerance([*values, np.nan])
    assert found[:2] == (0.0, 7.0)
    assert found.fraction == pytest.approx(0.529, abs=1e-3)
    assert power.tolerance(values[:7]) is None
    assert power.tolerance([]) is None
    assert power.tolerance(values[:7], confidence=0.9) is not None
