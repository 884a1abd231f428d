"""Comparisons of arms: differences with intervals, the probability of improvement, and the settings that are
indistinguishable from the best.

An arm is an array of returns, one for each seed. A seed whose return is NaN or infinite has failed: it is left out and
counted, and in paired comparisons the same seed of the other arm is left out too. Results are deterministic and depend
neither on the order of the seeds nor on a global generator; exchanging the arms negates differences up to rounding.
Intervals need `statistics.MIN_SEEDS` seeds in each arm; for fewer, their ends are NaN.

Measured coverage of the 95% intervals (`benchmarks/coverage.py`) is in the docstrings of `difference`, `improvement`
and `mean_interval`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fdqn.report import permutation, samples
from fdqn.report.samples import Array, Statistic
from fdqn.report.statistics import MIN_SEEDS


class Estimate(NamedTuple):
    """An estimate with its confidence interval; the ends are NaN for fewer than 5 seeds in an arm."""

    value: float
    low: float
    high: float
    seeds: tuple[int, ...]
    """Number of seeds used of each arm."""
    failed: tuple[int, ...]
    """Number of failed seeds of each arm."""


class Comparison(NamedTuple):
    """Comparison of a second arm with a first; differences are second minus first."""

    iqm: Estimate
    """Difference of the interquartile means."""
    mean: Estimate
    """Difference of the means."""
    improvement: Estimate
    """Probability that a seed of the second arm has a higher return than one of the first."""
    p: float
    """p-value of the permutation test of the difference of the means."""
    paired: bool
    seeds: tuple[int, int]
    """Number of seeds used of each arm."""
    failed: tuple[int, int]
    """Number of failed seeds of each arm."""


class Selection(NamedTuple):
    """Frequencies with which a bootstrap selects each of K settings as the best; see `selection`."""

    frequency: Array
    """Fraction of the resamples [K] in which the setting has the highest statistic."""
    members: NDArray[np.bool_]
    """Bool [K], True for the settings of the smallest set that contains 95% of the selections."""
    failed: NDArray[np.int64]
    """Number of failed seeds of each setting, [K]."""


def compare(
    first: ArrayLike, second: ArrayLike, paired: bool = False, confidence: float = 0.95, resamples: int = 10_000
) -> Comparison:
    """Compare a second arm with a first: differences, probability of improvement and permutation test.

    Shapes: first [S1], second [S2]; with `paired`, seed i of one arm is paired with seed i of the other, and S1 = S2.
    Raises as `difference` does.
    """
    iqm, mean = (difference(first, second, name, paired, confidence, resamples) for name in ("iqm", "mean"))
    a, b, failed = samples.pair(first, second, paired)
    better = improvement(a, b, confidence)._replace(failed=failed)
    return Comparison(iqm, mean, better, permutation.permutation_test(a, b, paired), paired, (len(a), len(b)), failed)


def difference(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Statistic = "iqm",
    paired: bool = False,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Estimate:
    """Estimate the difference `statistic(second) - statistic(first)` with its confidence interval.

    "iqm": bootstrap interval of the difference of interquartile means. Seeds are resampled in each arm separately,
    or jointly with `paired`. The quantiles are expanded by the ratio of a t interval to a normal one (Hesterberg 2015,
    https://arxiv.org/abs/1411.5279), because a plain percentile interval is too narrow for few seeds.
    "mean": Welch's t interval, or Student's t interval of the differences with `paired`. With few seeds its coverage is
    better than that of a bootstrap interval.

    Measured coverage of 95% intervals in percent (`benchmarks/coverage.py`, 2,000 experiments each): lowest and highest
    for arms of one shape (normal, skewed, bimodal or bounded), and in parentheses for arms of different shapes:

        seeds per arm         5              6              8             16             32
        iqm              97-98 (91-97)  97-98 (94-97)  97-98 (97-98)  96-97 (95-96)  95-96 (95-96)
        iqm, paired      93-96 (87-93)  95-96 (91-96)  96-98 (93-97)  95-96 (95-96)  95-96 (94-96)
        mean             95-97 (90-96)  95-97 (92-95)  95-97 (92-94)  94-95 (92-95)  94-96 (93-95)
        mean, paired     95-98 (90-95)  94-98 (93-95)  95-97 (93-95)  94-96 (93-95)  94-96 (92-95)

    Args:
        first: returns [S1] of the baseline.
        second: returns [S2] of the arm compared with it.
        statistic: "iqm" for the interquartile mean, or "mean".
        paired: seed i of one arm is paired with seed i of the other, because both runs used the same seeds.
        confidence: nominal coverage, in (0, 1).
        resamples: number of bootstrap resamples.

    Raises ValueError for arms that are not 1-D, for paired arms of different lengths, and for an invalid statistic,
    confidence or number of resamples; TypeError for values that are not numbers.
    """
    samples.check_confidence(confidence)
    of = samples.statistic(statistic)
    samples.check_resamples(resamples)
    a, b, failed = samples.pair(first, second, paired)
    sizes = (len(a), len(b))
    if not min(sizes):
        return Estimate(math.nan, math.nan, math.nan, sizes, failed)
    low, high, value = math.nan, math.nan, float(of(b) - of(a))
    if min(sizes) >= MIN_SEEDS and statistic == "iqm":
        low, high = _quantiles(_resampled_differences(a, b, paired, resamples), confidence, a, b, paired)
    elif min(sizes) >= MIN_SEEDS:
        half = _t_half_width(a, b, paired, confidence)
        low, high = value - half, value + half
    return Estimate(value, low, high, sizes, failed)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Estimate the mean of the returns [S] of one arm with Student's t interval, `mean -+ t s / sqrt(S)`.

    Of 95% intervals 89 to 96% cover the mean with 5 seeds, 87 to 95% with 8 and 91 to 96% with 32; the lowest
    percentages are those of skewed returns, for which a bootstrap does not cover better (`benchmarks/coverage.py`).

    Raises ValueError for returns that are not 1-D and an invalid confidence; TypeError for values that are not numbers.
    """
    from scipy.stats import t

    samples.check_confidence(confidence)
    x, failed = samples.finite("values", values)
    n = len(x)
    mean = float(samples.mean(x)) if n else math.nan
    half = float(t.isf((1 - confidence) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n)) if n >= MIN_SEEDS else math.nan
    return Estimate(mean, mean - half, mean + half, (n,), (failed,))


def improvement(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Estimate the probability that a random seed of the second arm has a higher return than one of the first.

    `P = (#{second > first} + #{second = first} / 2) / (S1 S2)`, the Mann-Whitney statistic, as in rliable. The interval
    consists of the probabilities P' that a score test does not reject, `(P - P')**2 <= z**2 V(P')`, with the variance V
    of Hanley and McNeil at P' (Newcombe 2006, "Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic", method 5, doi 10.1002/sim.2324). Of 95% intervals 91 to 100% cover the probability for 5
    to 32 seeds. A percentile bootstrap interval, as in rliable, has no width where the arms do not overlap: for arms
    that differ by two standard deviations it may cover in no experiment (`benchmarks/coverage.py`).

    Shapes: first [S1], second [S2]. Seeds are not paired. Raises as `difference` does.
    """
    samples.check_confidence(confidence)
    a, b, failed = samples.pair(first, second, False)
    sizes = (len(a), len(b))
    if not min(sizes):
        return Estimate(math.nan, math.nan, math.nan, sizes, failed)
    ordered = np.sort(a)
    wins = np.searchsorted(ordered, b, "left") + np.searchsorted(ordered, b, "right")
    value = float(wins.sum() / (2 * len(a) * len(b)))
    low, high = _score_interval(value, sizes, confidence) if min(sizes) >= MIN_SEEDS else (math.nan, math.nan)
    return Estimate(value, low, high, sizes, failed)


def selection(
    returns: ArrayLike, paired: bool = True, resamples: int = 2_000, statistic: Statistic = "iqm"
) -> Selection:
    """Bootstrap the selection of the best of K settings, to see which others could have been selected.

    Each resample of the seeds selects the setting with the highest interquartile mean; a tie is divided equally. The
    settings of the smallest set that contains 95% of the selections are indistinguishable from the best (Patterson
    et al. 2023, "Empirical design in reinforcement learning", https://arxiv.org/abs/2304.01315). If settings are
    selected equally often, either all or none of them are in the set. With `paired`, all settings used the same seeds,
    and seeds are resampled jointly.

    The set is not a 95% confidence set for the best setting. In simulations with normal returns where one of 12
    settings is better by half a standard deviation, it contained that setting in 81, 89, 96 and 100% of the experiments
    with 5, 8, 16 and 32 seeds. The better setting was the one selected most often in 28, 39, 59 and 81%
    (`benchmarks/coverage.py`).

    Failed seeds do not contribute to the statistic of their setting, and a resample in which all seeds of a setting
    have failed does not select it. `failed` counts them: the returns of the other seeds are not a reason to prefer a
    setting whose seeds often fail. If no setting has a finite return, the frequencies are NaN and the set is empty.

    Shapes: returns [K, S]. Raises ValueError for another shape, no settings, no seeds, or an invalid `resamples` or
    `statistic`; TypeError for values that are not numbers.
    """
    samples.check_resamples(resamples)
    of = samples.statistic(statistic)
    values = samples.numbers("returns", returns)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"returns: expected shape [settings, seeds], each at least 1, got {list(values.shape)}")
    values = np.where(np.isfinite(values), values, np.nan)
    failed = np.isnan(values).sum(1)
    if (failed == values.shape[1]).all():
        nothing = np.full(len(values), np.nan)
        return Selection(nothing, np.zeros(len(values), dtype=bool), failed)
    # The result does not depend on the order of the seeds.
    values = values[:, np.lexsort(np.sort(values, axis=0))] if paired else np.sort(values, axis=1)
    frequency = _selected(values, paired, resamples, of)
    ordered = np.sort(frequency)[::-1]
    last = ordered[np.searchsorted(np.cumsum(ordered), 0.95 - 1e-9)]
    return Selection(frequency, frequency >= last - 1e-9, failed)


def _selected(values: Array, paired: bool, resamples: int, of: Callable[[Array], Array]) -> Array:
    """Compute the fraction of the resamples [K] that select each setting of values [K, S]."""
    rng, (settings, seeds) = np.random.default_rng(0), values.shape
    wins, drawn = np.zeros(settings), 0
    at_once = max(1, samples.VALUES_AT_ONCE // values.size)
    for size in (min(at_once, resamples - start) for start in range(0, resamples, at_once)):
        rows = (size, seeds) if paired else (size, settings, seeds)
        index = rng.integers(0, seeds, rows)
        sampled = values[:, index].swapaxes(0, 1) if paired else np.take_along_axis(values[None], index, -1)
        estimates = of(sampled)  # [size, K]
        best = np.max(estimates, axis=1, initial=-np.inf, where=~np.isnan(estimates), keepdims=True)
        selected = estimates == best
        some = selected.any(1)
        wins += (selected[some] / selected[some].sum(1, keepdims=True)).sum(0)
        drawn += int(some.sum())
    return wins / drawn


def _resampled_differences(a: Array, b: Array, paired: bool, resamples: int) -> Array:
    """Compute differences of interquartile means of resampled arms, half of them with the arms exchanged.

    Both arms use different random numbers; with both orders, exchanging the arms negates the set of differences.
    """
    half = (resamples + 1) // 2
    return np.concatenate([_one_way(a, b, paired, half), -_one_way(b, a, paired, half)])


def _one_way(a: Array, b: Array, paired: bool, resamples: int) -> Array:
    rng = np.random.default_rng(0)
    order = np.lexsort((b, a)) if paired else None
    a, b = (a[order], b[order]) if paired else (np.sort(a), np.sort(b))
    found: list[Array] = []
    at_once = max(1, samples.VALUES_AT_ONCE // (len(a) + len(b)))
    for size in (min(at_once, resamples - start) for start in range(0, resamples, at_once)):
        index = rng.integers(0, len(a), (size, len(a)))
        other = index if paired else rng.integers(0, len(b), (size, len(b)))
        found.append(samples.iqm(b[other]) - samples.iqm(a[index]))
    return np.concatenate(found)


def _quantiles(draws: Array, confidence: float, a: Array, b: Array, paired: bool) -> tuple[float, float]:
    """Compute the ends of the expanded percentile interval."""
    tail = samples.expanded_tail(confidence, min(len(a), len(b)), _freedom(a, b, paired)[1])
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _t_half_width(a: Array, b: Array, paired: bool, confidence: float) -> float:
    """Compute half the width of Welch's interval of the difference of means, or of Student's with `paired`."""
    from scipy.stats import t

    variance, freedom = _freedom(a, b, paired)
    return float(t.isf((1 - confidence) / 2, freedom) * math.sqrt(variance))


def _freedom(a: Array, b: Array, paired: bool) -> tuple[float, float]:
    """Compute the variance of the difference of means, and its degrees of freedom (Welch and Satterthwaite)."""
    if paired:
        return float((b - a).var(ddof=1) / len(a)), len(a) - 1
    first, second = (float(x.var(ddof=1) / len(x)) for x in (a, b))
    parts = first**2 / (len(a) - 1) + second**2 / (len(b) - 1)
    # Arms without spread have an interval without width for any number of degrees of freedom.
    return first + second, (first + second) ** 2 / parts if parts > 0 else 1.0


def _score_interval(value: float, seeds: tuple[int, int], confidence: float) -> tuple[float, float]:
    """Compute the lowest and highest probability that the score test of `improvement` does not reject."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z, (m, n) = float(norm.isf((1 - confidence) / 2)), seeds

    def excess(p: float) -> float:
        more = (m + n) / 2 - 1
        variance = p * (1 - p) * (1 + more * ((1 - p) / (2 - p) + p / (1 + p))) / (m * n)
        return (value - p) ** 2 - z**2 * variance

    # At 0 and 1 the variance is 0, and so is the excess of an estimate there.
    low = brentq(excess, 0, min(value, 1 - 1e-12)) if value > 0 else 0.0
    high = brentq(excess, max(value, 1e-12), 1) if value < 1 else 1.0
    return float(low), float(high)
