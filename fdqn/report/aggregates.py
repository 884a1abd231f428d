"""Returns aggregated over tasks: stratified bootstrap intervals, performance profiles and the optimality gap.

Returns of several tasks must be on one scale, such as human-normalized scores. A seed whose return is NaN or infinite
has failed; it is left out of its task and counted. Agarwal et al. 2021, "Deep reinforcement learning at the edge
of the statistical precipice", https://arxiv.org/abs/2108.13264.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fdqn.report import samples
from fdqn.report.comparisons import Estimate
from fdqn.report.samples import Array, Statistic
from fdqn.report.statistics import MIN_SEEDS


class Profile(NamedTuple):
    """Performance profile at thresholds [T]; NaN ends for fewer than 5 seeds."""

    thresholds: Array
    fraction: Array
    """Fraction [T] of the runs with a return above each threshold."""
    low: Array
    high: Array
    seeds: int
    """Number of runs used."""
    failed: int
    """Failed runs."""


def stratified(
    values: ArrayLike, statistic: Statistic = "iqm", confidence: float = 0.95, resamples: int = 10_000
) -> Estimate:
    """Estimate a statistic of all runs of several tasks, with a stratified bootstrap interval.

    Seeds are resampled in each task separately, as in rliable. `values` are normalized returns [tasks, S]. The ends are
    NaN for a task with fewer than 5 seeds. `seeds` and `failed` of the result have an entry per task.

    Raises ValueError for another shape, no tasks, or an invalid statistic, confidence or number of resamples; TypeError
    for values that are not numbers.
    """
    return _aggregate(values, samples.statistic(statistic), confidence, resamples)


def optimality_gap(
    values: ArrayLike, optimum: float = 1.0, confidence: float = 0.95, resamples: int = 10_000
) -> Estimate:
    """Estimate the optimality gap, the mean of `max(0, optimum - return)`, with a stratified bootstrap interval.

    `values` are the returns [S] of one task, or normalized returns [tasks, S]. Raises ValueError for an optimum that is
    not finite, and otherwise as `stratified` does.
    """
    if not isinstance(optimum, float | int) or not math.isfinite(optimum):
        raise ValueError(f"optimum: expected a finite number, got {optimum!r}")
    x = np.atleast_2d(samples.numbers("values", values))
    gaps = np.where(np.isfinite(x), np.maximum(0.0, optimum - x), np.nan)
    return _aggregate(gaps, samples.mean, confidence, resamples)


def profile(values: ArrayLike, thresholds: ArrayLike, confidence: float = 0.95) -> Profile:
    """Compute the fraction of runs with a return above each threshold [T], with pointwise intervals.

    `values` are the returns [S] of one task, or normalized returns [tasks, S]. The intervals are Wilson's for a
    binomial proportion. Unlike bootstrap intervals, they have a positive width where the fraction is 0 or 1. For
    several tasks they are conservative, because the variance within tasks is at most that of all runs.

    Raises ValueError for another shape, thresholds that are not finite or not 1-D, and an invalid confidence; TypeError
    for values that are not numbers.
    """
    from scipy.stats import norm

    samples.check_confidence(confidence)
    x, at = samples.numbers("values", values), samples.numbers("thresholds", thresholds)
    if x.ndim not in (1, 2):
        raise ValueError(f"values: expected shape [seeds] or [tasks, seeds], got {list(x.shape)}")
    if at.ndim != 1 or not np.isfinite(at).all():
        raise ValueError(f"thresholds: expected finite numbers [T], got {str(thresholds)[:60]}")
    runs = np.sort(x[np.isfinite(x)])
    n, missing = len(runs), np.full(len(at), np.nan)
    fraction = 1 - np.searchsorted(runs, at, "right") / n if n else missing
    if n < MIN_SEEDS:
        return Profile(at, fraction, missing, missing, n, x.size - n)
    z = float(norm.isf((1 - confidence) / 2))
    middle = (fraction + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(fraction * (1 - fraction) / n + z**2 / (4 * n**2))
    return Profile(at, fraction, np.maximum(0, middle - half), np.minimum(1, middle + half), n, x.size - n)


def _aggregate(values: ArrayLike, of: Callable[[Array], Array], confidence: float, resamples: int) -> Estimate:
    """Compute a statistic of all runs [tasks, S], and the quantiles of those of runs resampled in each task."""
    samples.check_confidence(confidence)
    samples.check_resamples(resamples)
    x = samples.numbers("values", values)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"values: expected shape [tasks, seeds] with at least one task, got {list(x.shape)}")
    tasks = [np.sort(row[np.isfinite(row)]) for row in x]
    seeds = tuple(len(task) for task in tasks)
    failed = tuple(x.shape[1] - n for n in seeds)
    runs = np.concatenate(tasks)
    value = float(of(runs)) if len(runs) else math.nan
    if min(seeds) < MIN_SEEDS:
        return Estimate(value, math.nan, math.nan, seeds, failed)
    rng, found = np.random.default_rng(0), []
    at_once = max(1, samples.VALUES_AT_ONCE // len(runs))
    for size in (min(at_once, resamples - start) for start in range(0, resamples, at_once)):
        drawn = [task[rng.integers(0, len(task), (size, len(task)))] for task in tasks]
        found.append(of(np.concatenate(drawn, axis=1)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return Estimate(value, float(low), float(high), seeds, failed)
