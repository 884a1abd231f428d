"""Statistics over seeds: the interquartile mean with its bootstrap interval, or the range of fewer than 5 seeds.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice",
https://arxiv.org/abs/2108.13264
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fdqn.report import samples

MIN_SEEDS = 5
"""Minimum number of seeds for a bootstrap interval; for fewer, the range of the seeds is returned."""

Kind = Literal["interval", "range"]

_Ends = tuple[NDArray[np.float64], NDArray[np.float64]]


class Interval(NamedTuple):
    """Interquartile mean and the ends of its interval or range; arrays of one shape [...]."""

    iqm: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    kind: Kind | None
    """"interval" for a confidence interval, "range" for the range of the seeds, None if the ends are NaN."""


def iqm(values: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """Compute the interquartile mean along `axis`: the mean of the values without the lowest and the highest quarter.

    Raises TypeError for values that are not numbers and ValueError for an axis that does not exist or is empty.
    """
    from scipy.stats import trim_mean

    numbers = samples.numbers("values", values)
    if not -numbers.ndim <= axis < numbers.ndim or not numbers.shape[axis]:
        raise ValueError(f"values: expected at least one number along axis {axis}, got shape {list(numbers.shape)}")
    return np.asarray(trim_mean(numbers, 0.25, axis=axis))


def row_means(values: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the mean [S] of the finite numbers of each row of values [S, N]; NaN for a row without any."""
    finite = np.isfinite(values)
    counts = finite.sum(axis=1)
    return np.where(counts > 0, np.where(finite, values, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def interval(
    values: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 2_000,
    method: Literal["expanded", "percentile", "t"] = "expanded",
) -> Interval:
    """Compute the interquartile mean [...] of values [..., S] with a confidence interval over the S seeds, or their
    range.

    Methods:

    - "expanded" is the percentile bootstrap with quantiles further out, by the ratio of a t interval to a normal one
      (Hesterberg 2015, https://arxiv.org/abs/1411.5279). For fewer than 5 seeds it would still be too narrow; then the
      ends are the lowest and the highest return, and `kind` is "range".
    - "percentile" is the percentile bootstrap of rliable. It also needs 5 seeds, and is too narrow for 5 and 6.
    - "t" is Student's t interval of the mean, the only method with nearly nominal coverage for 2 to 4 seeds. Do not
      use it for more than 8 seeds: it is centred at the mean, which for skewed returns is not the interquartile mean.

    Measured coverage of 95% intervals (percent of intervals that contain the true interquartile mean; lowest and
    highest of normal, skewed, bimodal and bounded returns) and their width in standard deviations
    (`benchmarks/coverage.py`, 2,000 experiments each):

        seeds               2          3          4          5          6          8         16         32
        expanded         range      range      range 91-94 2.0  94-95 1.9  96-97 1.8  95-96 1.2  95-96 0.8
        percentile       range      range      range 89-91 1.7  89-90 1.5  92-93 1.4     93 1.1  94-95 0.8
        t           85-95 10.3  85-95 4.0  87-95 2.6 90-96 2.2  92-95 1.9  93-95 1.5          -          -
        the range    47-51 0.8  74-75 1.5  84-87 1.8 92-94 2.1          -          -          -          -

    The bootstrap is seeded, so equal values give equal intervals. Seeds with a NaN anywhere (failed seeds) are left out
    and not counted. With fewer than two seeds left, the ends are NaN; with none, the interquartile mean is NaN too.

    Raises ValueError for a confidence outside (0, 1), for fewer than one resample and for an unknown method, and
    TypeError for values that are not numbers.
    """
    samples.check_confidence(confidence)
    samples.check_resamples(resamples)
    if method not in ("expanded", "percentile", "t"):
        raise ValueError(f"method: expected 'expanded', 'percentile' or 't', got {method!r}")
    values = samples.numbers("values", values)
    if not values.ndim:
        raise ValueError(f"values: expected an axis of seeds, got the single number {values}")
    values = values[..., np.isfinite(values).all(axis=tuple(range(values.ndim - 1)))]
    seeds, missing = values.shape[-1], np.full(values.shape[:-1], np.nan)
    if seeds < 2:
        return Interval(iqm(values) if seeds else missing, missing, missing, None)
    if method == "t":
        return Interval(iqm(values), *_student(values, confidence), "interval")
    if seeds < MIN_SEEDS:
        return Interval(iqm(values), values.min(-1), values.max(-1), "range")
    level = confidence if method == "percentile" else 1 - 2 * samples.expanded_tail(confidence, seeds, seeds - 1)
    return Interval(iqm(values), *_bootstrapped(values, level, resamples), "interval")


def _bootstrapped(values: NDArray[np.float64], confidence: float, resamples: int) -> _Ends:
    """Compute quantiles of the interquartile means of seeds drawn with replacement."""
    from scipy.stats import bootstrap

    ends = bootstrap(
        (values,),
        iqm,
        axis=-1,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, samples.VALUES_AT_ONCE // values.size),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return np.asarray(ends.low), np.asarray(ends.high)


def _student(values: NDArray[np.float64], confidence: float) -> _Ends:
    """Compute `mean -+ t s / sqrt(n)`."""
    from scipy.stats import t

    seeds, mean = values.shape[-1], values.mean(-1)
    half = t.isf((1 - confidence) / 2, seeds - 1) * values.std(-1, ddof=1) / np.sqrt(seeds)
    return mean - half, mean + half
