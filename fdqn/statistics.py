"""What many seeds say together: the interquartile mean and its bootstrap interval.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice",
https://arxiv.org/abs/2108.13264
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Resampled values held at once, so that a thousand seeds need no gigabytes.
_VALUES_AT_ONCE = 5_000_000


class Interval(NamedTuple):
    """The interquartile mean and the ends of its interval, arrays of one shape [...]."""

    iqm: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def iqm(values: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """The mean of the middle half of values along `axis`: a quarter is cut from either end.

    Raises TypeError for what are no numbers, ValueError for an axis that is not there or has none.
    """
    from scipy.stats import trim_mean

    numbers = _numbers(values)
    if not -numbers.ndim <= axis < numbers.ndim or not numbers.shape[axis]:
        raise ValueError(f"values: expected at least one number along axis {axis}, got shape {list(numbers.shape)}")
    return np.asarray(trim_mean(numbers, 0.25, axis=axis))


def row_means(values: NDArray[Any]) -> NDArray[np.float64]:
    """The mean [S] of each row's finite numbers, values [S, N]; NaN where there is none."""
    finite = np.isfinite(values)
    counts = finite.sum(axis=1)
    return np.where(counts > 0, np.where(finite, values, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def interval(values: ArrayLike, confidence: float = 0.95, resamples: int = 2_000) -> Interval:
    """The interquartile mean [...] of values [..., S] and its percentile bootstrap interval over the S seeds.

    The same values give the same answer. Seeds that hold a NaN anywhere (failed ones) are left out; with fewer than two
    left the ends are NaN, with none the mean is too. Raises ValueError for a confidence outside (0, 1) and
    for fewer than one resample, TypeError for what are no numbers.
    """
    from scipy.stats import bootstrap

    if not isinstance(confidence, float | int) or not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence!r}")
    if not isinstance(resamples, int) or resamples < 1:
        raise ValueError(f"resamples: expected a whole number of at least 1, got {resamples!r}")
    values = _numbers(values)
    if not values.ndim:
        raise ValueError(f"values: expected an axis of seeds, got the single number {values}")
    values = values[..., np.isfinite(values).all(axis=tuple(range(values.ndim - 1)))]
    seeds, missing = values.shape[-1], np.full(values.shape[:-1], np.nan)
    if seeds < 2:
        return Interval(iqm(values) if seeds else missing, missing, missing)
    ends = bootstrap(
        (values,),
        iqm,
        axis=-1,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, _VALUES_AT_ONCE // values.size),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(iqm(values), np.asarray(ends.low), np.asarray(ends.high))


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"values: expected an array of numbers, got {str(values)[:60]}") from None
