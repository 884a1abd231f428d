"""Compare the interquartile mean and its interval with plain Python and a hand-written bootstrap."""

import time
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from fdqn.report import samples, statistics

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def by_hand(values):
    """Sort, remove a quarter of the values (rounded down) at each end, and take the mean."""
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    return sum(middle) / len(middle)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([8, 1, 7, 2, 6, 3, 5, 4], 4.5),
        ([0, 0, 10, 1000], 5.0),
        ([3], 3.0),
        ([1, 2, 6], 3.0),
        ([-100, 1, 2, 3, 100], 2.0),
        ([9, 0, 1, 2, 3, 4, 5, 6, 7, 1000], 4.5),
    ],
)
def test_iqm_of_known_values(values, expected):
    assert statistics.iqm(values) == pytest.approx(expected)


@given(NUMBERS)
def test_iqm_equals_the_definition_and_scipy(values):
    assert statistics.iqm(values) == pytest.approx(by_hand(values), rel=1e-9, abs=1e-6)
    assert statistics.iqm(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25), rel=1e-9, abs=1e-6)


def test_iqm_is_neither_the_mean_nor_the_median():
    values = [0.0, 1.0, 2.0, 6.0, 7.0, 8.0, 500.0, 500.0]
    assert statistics.iqm(values) == pytest.approx(5.75)
    assert abs(statistics.iqm(values) - np.mean(values)) > 10
    assert abs(statistics.iqm(values) - np.median(values)) > 0.5


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_iqm_along_an_axis(axis):
    values = np.random.default_rng(0).normal(size=(9, 13))
    rows = values.T if axis == 0 else values
    np.testing.assert_allclose(statistics.iqm(values, axis=axis), [by_hand(list(row)) for row in rows], atol=1e-12)


def bootstrapped(values, confidence, resamples, seed):
    """Compute the textbook percentile bootstrap."""
    rng = np.random.default_rng(seed)
    means = [by_hand(list(rng.choice(values, len(values)))) for _ in range(resamples)]
    return np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_interval_equals_a_hand_written_bootstrap(confidence):
    values = np.random.default_rng(3).normal(100, 10, size=24)
    estimate = statistics.interval(values, confidence, resamples=4_000, method="percentile")
    low, high = bootstrapped(values, confidence, 4_000, seed=11)
    width = high - low
    assert estimate.iqm == pytest.approx(by_hand(list(values)))
    assert estimate.low == pytest.approx(low, abs=0.1 * width)
    assert estimate.high == pytest.approx(high, abs=0.1 * width)
    other_low, _ = bootstrapped(values, 0.8, 4_000, seed=11)
    assert abs(other_low - low) > 0.1 * width, "the interval of another confidence differs"


@pytest.mark.parametrize("seeds", [5, 8, 24])
def test_interval_by_default_is_expanded(seeds):
    """Compare with the textbook bootstrap at the level whose normal quantile is `sqrt(n / (n - 1)) t`."""
    values = np.random.default_rng(3).normal(100, 10, size=seeds)
    reach = np.sqrt(seeds / (seeds - 1)) * scipy.stats.t.ppf(0.975, seeds - 1)
    low, high = bootstrapped(values, 1 - 2 * scipy.stats.norm.cdf(-reach), 4_000, seed=11)
    assert samples.expanded_tail(0.95, seeds, seeds - 1) == pytest.approx(scipy.stats.norm.cdf(-reach))
    estimate = statistics.interval(values, resamples=4_000)
    assert estimate.low == pytest.approx(low, abs=0.1 * (high - low))
    assert estimate.high == pytest.approx(high, abs=0.1 * (high - low))
    narrow = statistics.interval(values, resamples=4_000, method="percentile")
    assert estimate.high - estimate.low > 1.02 * (narrow.high - narrow.low)


@pytest.mark.parametrize(("confidence", "least", "most"), [(0.95, 0.86, 0.98), (0.5, 0.38, 0.6)])
def test_coverage_of_the_interval(confidence, least, most):
    rng = np.random.default_rng(7)
    samples = rng.normal(5.0, 2.0, size=(300, 16))
    estimates = [statistics.interval(row, confidence, resamples=400) for row in samples]
    covered = np.mean([e.low <= 5.0 <= e.high for e in estimates])
    assert least <= covered <= most


@pytest.mark.parametrize("seeds", [2, 3, 4])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99])
def test_fewer_than_five_seeds_have_a_range_for_any_confidence(seeds, confidence):
    values = np.random.default_rng(seeds).normal(size=(20, seeds))
    estimate = statistics.interval(values, confidence)
    assert estimate.kind == "range"
    np.testing.assert_array_equal(estimate.low, values.min(1))
    np.testing.assert_array_equal(estimate.high, values.max(1))
    np.testing.assert_allclose(estimate.iqm, statistics.iqm(values))


def test_kind_depends_on_the_finite_seeds():
    values = np.random.default_rng(0).normal(size=(3, 7))
    kinds = []
    for failed in range(8):
        values[failed % 3, :failed] = np.nan
        kinds.append(statistics.interval(values).kind)
    assert kinds == ["interval"] * 3 + ["range"] * 3 + [None] * 2
    assert statistics.interval([3.0, np.nan]).kind is None, "one of two seeds failed"


def test_range_of_equal_seeds_has_zero_width():
    assert statistics.interval([200.0] * 3) == (200.0, 200.0, 200.0, "range")
    assert statistics.interval([200.0] * 3, method="t") == (200.0, 200.0, 200.0, "interval")


def covered(method, seeds, draw=np.random.Generator.normal, truth=0.0, experiments=1_000):
    values = draw(np.random.default_rng(seeds), size=(experiments, seeds))
    estimate = statistics.interval(values, resamples=400, method=method)
    return estimate, np.mean((estimate.low <= truth) & (truth <= estimate.high))


def test_coverage_equals_the_table_of_the_docstring():
    """Check normal returns to 4 percentage points, four standard errors. See `benchmarks/coverage.py` for others."""
    kinds = {}
    for method, seeds, expected in [
        ("percentile", 2, 0.50), ("percentile", 4, 0.87), ("percentile", 5, 0.90), ("percentile", 16, 0.94),
        ("expanded", 5, 0.935), ("expanded", 8, 0.965), ("expanded", 16, 0.96),
        ("t", 2, 0.95), ("t", 3, 0.95), ("t", 5, 0.95),
    ]:  # fmt: skip
        estimate, share = covered(method, seeds)
        assert share == pytest.approx(expected, abs=0.04), (method, seeds)
        kinds[method, seeds] = estimate.kind
    assert [seed for seed, kind in kinds.items() if kind == "range"] == [("percentile", 2), ("percentile", 4)]


def test_t_interval_equals_scipy():
    values = np.random.default_rng(1).normal(size=(6, 4))
    estimate = statistics.interval(values, 0.9, method="t")
    for row, low, high in zip(values, estimate.low, estimate.high, strict=True):
        expected = scipy.stats.ttest_1samp(row, 0).confidence_interval(0.9)
        assert (low, high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("method", ["BCa", "Percentile", None, ""])
def test_an_unknown_method_is_refused(method):
    with pytest.raises(ValueError, match="method: expected 'expanded', 'percentile' or 't', got"):
        statistics.interval([1.0, 2.0], method=method)


def test_more_seeds_give_a_narrower_interval():
    rng = np.random.default_rng(0)
    widths = []
    for seeds in (8, 32, 128, 512):
        estimate = statistics.interval(rng.normal(size=(20, seeds)))
        widths.append((estimate.high - estimate.low).mean())
    ratios = [a / b for a, b in pairwise(widths)]
    assert all(1.6 < ratio < 2.6 for ratio in ratios), f"four times the seeds should halve the width: {ratios}"


def test_interval_is_deterministic_and_uses_no_global_generator():
    values = np.random.default_rng(1).normal(size=(4, 12))
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = statistics.interval(values), statistics.interval(values.copy())
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_the_order_of_seeds_hardly_matters():
    values = np.random.default_rng(1).normal(size=30)
    one, other = statistics.interval(values), statistics.interval(values[::-1])
    assert one.iqm == pytest.approx(other.iqm)
    assert one.low == pytest.approx(other.low, abs=0.15 * float(one.high - one.low))


@given(st.integers(2, 20), st.floats(-50, 50), st.floats(0.1, 20), st.integers(0, 1000))
def test_interval_is_equivariant_to_shift_and_scale(seeds, shift, scale, seed):
    values = np.random.default_rng(seed).normal(size=seeds)
    plain = statistics.interval(values, resamples=100)
    moved = statistics.interval(scale * values + shift, resamples=100)
    for a, b in zip(plain[:3], moved[:3], strict=True):
        assert b == pytest.approx(scale * a + shift, abs=1e-9)
    assert plain.low <= plain.high


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_seeds_with_a_missing_value_are_left_out(missing):
    values = np.random.default_rng(2).normal(size=(5, 10))
    spoiled = values.copy()
    spoiled[3, 4] = spoiled[0, 9] = missing
    left = np.delete(values, [4, 9], axis=1)
    for a, b in zip(statistics.interval(spoiled), statistics.interval(left), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(statistics.interval(spoiled).iqm, statistics.interval(values).iqm)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_one_seed_has_a_mean_but_no_interval(shape):
    values = np.arange(np.prod(shape, dtype=int), dtype=float).reshape(*shape, 1)
    estimate = statistics.interval(values)
    np.testing.assert_array_equal(estimate.iqm, values[..., 0])
    for end in (estimate.low, estimate.high):
        assert end.shape == shape
        assert np.isnan(end).all()
    assert estimate.kind is None


@pytest.mark.parametrize("values", [np.zeros((3, 0)), np.full((3, 4), np.nan)])
def test_no_seeds_give_nan(values):
    for x in statistics.interval(values)[:3]:
        assert x.shape == (3,)
        assert np.isnan(x).all()


def test_no_seeds_and_no_rows_do_not_raise():
    assert all(x.shape == () and np.isnan(x) for x in statistics.interval([])[:3])


def test_interval_of_equal_seeds_has_zero_width():
    assert statistics.interval([500.0] * 16) == (500.0, 500.0, 500.0, "interval")


def test_each_row_equals_the_row_alone():
    values = np.random.default_rng(4).normal(size=(3, 6, 11))
    whole = statistics.interval(values)
    for i in range(3):
        for j in range(6):
            for a, b in zip(whole[:3], statistics.interval(values[i, j])[:3], strict=True):
                assert a[i, j] == pytest.approx(b, abs=1e-12)


@pytest.mark.parametrize("at_once", [1, 7 * 20, 10_000])
def test_interval_does_not_depend_on_the_batch_size(monkeypatch, at_once):
    values = np.random.default_rng(5).normal(size=(4, 13))
    whole = statistics.interval(values, resamples=301)
    monkeypatch.setattr(samples, "VALUES_AT_ONCE", at_once)
    for a, b in zip(whole, statistics.interval(values, resamples=301), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, 95, float("nan")])
def test_invalid_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match=r"confidence: expected a number in \(0, 1\), got"):
        statistics.interval([1.0, 2.0], confidence)


def test_a_thousand_seeds_take_seconds():
    began = time.perf_counter()
    statistics.interval(np.random.default_rng(0).normal(size=(50, 1000)), resamples=500)
    assert time.perf_counter() - began < 5
