"""Power: the differences between two arms that a number of seeds can show, and the seeds that a difference needs; and
tolerance intervals, which contain a fraction of further seeds.

Power is that of the two-sided t test of two means with equal variances, by the noncentral t distribution (Cohen 1988,
"Statistical power analysis for the behavioral sciences"; for reinforcement learning, Colas et al. 2018,
https://arxiv.org/abs/1806.08295). It is exact for normal returns, and approximate for skewed or bounded ones.
"""

import math
from typing import NamedTuple

from numpy.typing import ArrayLike

from fdqn.report import samples

LEVEL = 0.05
"""Significance level of the two-sided test."""

POWER = 0.8
"""Probability of finding a difference for which `detectable` and `seeds_needed` plan, by default."""

_MANY_SEEDS = 1_000_000
"""Above this number, `seeds_needed` uses the normal distribution instead of the noncentral t distribution, with which
it agrees there."""

_SMALLEST_EFFECT = 1e-100

SMALLEST_FRACTION = 0.5
"""Smallest fraction of further seeds for which `tolerance` returns an interval."""


class Tolerance(NamedTuple):
    """Range of an arm's returns, and the fraction of further seeds whose returns it contains."""

    low: float
    high: float
    fraction: float
    """At least this fraction of further seeds is within the range, with the given confidence."""


def t_test_power(
    effect: float, seeds: int, others: int | None = None, paired: bool = False, level: float = LEVEL
) -> float:
    """Compute the probability that a two-sided t test finds a difference of `effect` standard deviations.

    With the noncentral t distribution T of `n + m - 2` degrees of freedom and noncentrality
    `effect / sqrt(1 / n + 1 / m)`, it is `P(|T| > t)`, where t is the critical value at `level`. With `paired`,
    `effect` is in standard deviations of the differences between the arms; there are `n - 1` degrees of freedom and the
    noncentrality is `effect sqrt(n)`.

    Args:
        effect: difference of the means in standard deviations, at least 0.
        seeds: number n of seeds of the first arm, or of pairs.
        others: number m of seeds of the second arm, by default n.
        paired: both arms use the same seeds.
        level: level of the test.

    Returns NaN for one seed per arm, where the variance cannot be estimated. Raises ValueError for a negative effect,
    fewer than one seed, or a level outside (0, 1).
    """
    from scipy.stats import nct, t

    _check("effect", effect, 0.0)
    _check_level("level", level)
    for name, n in (("seeds", seeds), ("others", seeds if others is None else others)):
        _check(name, n, 1)
    m = seeds if others is None else others
    freedom = seeds - 1 if paired else seeds + m - 2
    if freedom < 1:
        return math.nan
    shift = effect * math.sqrt(seeds) if paired else effect / math.sqrt(1 / seeds + 1 / m)
    critical = float(t.isf(level / 2, freedom))
    if effect == 0:
        return level
    lower = float(nct.cdf(-critical, freedom, shift))
    return min(1.0, float(nct.sf(critical, freedom, shift)) + (lower if math.isfinite(lower) else 0.0))


def detectable(
    spread: float,
    seeds: int,
    others: int | None = None,
    paired: bool = False,
    level: float = LEVEL,
    power: float = POWER,
) -> float:
    """Compute the smallest difference of means that a two-sided t test finds with probability `power`.

    Args:
        spread: standard deviation of the returns of an arm over seeds; with `paired`, of the differences.
        seeds: number of seeds of the first arm, or of pairs.
        others: number of seeds of the second arm, by default the same.
        paired: both arms use the same seeds.
        level: level of the test.
        power: probability with which the difference is found.

    Returns 0 if the spread is 0, and NaN for one seed per arm. Raises ValueError for a negative spread, fewer than one
    seed, or a level or power outside (0, 1).
    """
    from scipy.optimize import brentq

    _check("spread", spread, 0.0)
    _check_level("power", power)
    if math.isnan(t_test_power(1.0, seeds, others, paired, level)):
        return math.nan
    if power <= level:
        return 0.0
    highest = 1.0
    while t_test_power(highest, seeds, others, paired, level) < power:
        highest *= 2
    effect = brentq(lambda x: t_test_power(x, seeds, others, paired, level) - power, 0, highest, xtol=1e-9)
    return float(effect) * spread


def seeds_needed(
    spread: float, difference: float, paired: bool = False, level: float = LEVEL, power: float = POWER
) -> int:
    """Compute the number of seeds per arm with which a two-sided t test finds a difference with probability `power`.

    `spread` is the standard deviation of the returns of an arm over seeds; with `paired`, of the differences between
    the arms, and the number is that of pairs. For differences of 0.5, 1 and 2 standard deviations it is 64, 17 and 6.

    Above 1,000,000 the number is that of the normal distribution, corrected for the unknown variance.

    Raises ValueError for a negative spread, a difference that is not above 0 or negligible, or a level or power outside
    (0, 1).
    """
    from scipy.stats import norm

    _check("spread", spread, 0.0)
    if not isinstance(difference, float | int) or not 0 < difference < math.inf:
        raise ValueError(f"difference: expected a number above 0, got {difference!r}")
    _check_level("level", level)
    _check_level("power", power)
    if spread == 0:
        return 2
    effect = difference / spread
    if effect < _SMALLEST_EFFECT:
        raise ValueError(f"difference: expected at least {_SMALLEST_EFFECT:g} of the spread, got {difference!r}")
    # Start from the number for a known variance, which is a lower bound.
    z = float(norm.isf(level / 2))
    arms = 1 if paired else 2
    least = arms * (max(0.0, z + float(norm.ppf(power))) / effect) ** 2
    if least > _MANY_SEEDS:
        return math.ceil(least + z**2 / (2 * arms))
    n = max(2, math.floor(least) - 1)
    while n > 2 and t_test_power(effect, n - 1, None, paired, level) >= power:
        n -= 1
    while t_test_power(effect, n, None, paired, level) < power:
        n += 1
    return n


def tolerance_fraction(seeds: int, confidence: float = 0.95) -> float:
    """Compute the least fraction of further seeds within the range of `seeds` seeds, with a given confidence.

    The fraction of any continuous distribution between the lowest and the highest of n values has the distribution
    Beta(n - 1, 2), so that `P(fraction < p) = n p**(n - 1) - (n - 1) p**n`; the result is the p at which this is
    `1 - confidence` (Wilks 1941; Patterson et al. 2023, https://arxiv.org/abs/2304.01315). For one seed it is 0.

    Raises ValueError for fewer than one seed and for a confidence outside (0, 1).
    """
    from scipy.stats import beta

    _check("seeds", seeds, 1)
    samples.check_confidence(confidence)
    return float(beta.ppf(1 - confidence, seeds - 1, 2)) if seeds > 1 else 0.0


def tolerance_seeds(fraction: float, confidence: float = 0.95) -> int:
    """Compute the fewest seeds whose range contains a fraction of further seeds with the given confidence.

    With 95% confidence, fractions of 50, 75, 80, 90 and 95% need 8, 18, 22, 46 and 93 seeds. Raises ValueError for a
    fraction or a confidence outside (0, 1).
    """
    _check_level("fraction", fraction)
    samples.check_confidence(confidence)

    def missed(n: int) -> float:
        return n * fraction ** (n - 1) - (n - 1) * fraction**n

    high = 2
    while missed(high) > 1 - confidence:
        high *= 2
    low = high // 2  # too few seeds, or 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if missed(middle) > 1 - confidence else (low, middle)
    return high


def tolerance(values: ArrayLike, confidence: float = 0.95) -> Tolerance | None:
    """Return the range of the returns [S] and the fraction of further seeds within it, as `tolerance_fraction` does.

    Returns None if the fraction is below one half: at 95% confidence, for fewer than 8 seeds. Failed seeds are left
    out. Raises ValueError for returns that are not 1-D and for an invalid confidence; TypeError for values that are not
    numbers.
    """
    samples.check_confidence(confidence)
    x, _ = samples.finite("values", values)
    if not len(x) or tolerance_fraction(len(x), confidence) < SMALLEST_FRACTION:
        return None
    return Tolerance(float(x.min()), float(x.max()), tolerance_fraction(len(x), confidence))


def spread(first: ArrayLike, second: ArrayLike, paired: bool = False) -> float:
    """Compute the standard deviation that `detectable` takes: pooled over both arms or, with `paired`, of the
    differences.

    Shapes: first [S1], second [S2]. Failed seeds are left out. Returns NaN if there are too few seeds to estimate it.
    Raises as `samples.pair` does.
    """
    a, b, _ = samples.pair(first, second, paired)
    if paired:
        return float((b - a).std(ddof=1)) if len(a) > 1 else math.nan
    freedom = len(a) + len(b) - 2
    if freedom < 1 or not min(len(a), len(b)):
        return math.nan
    return math.sqrt((a.var() * len(a) + b.var() * len(b)) / freedom)


def _check(name: str, x: float, least: float) -> None:
    if isinstance(x, bool) or not isinstance(x, float | int) or not least <= x < math.inf:
        raise ValueError(f"{name}: expected a number of at least {least:g}, got {x!r}")


def _check_level(name: str, x: float) -> None:
    if not isinstance(x, float | int) or not 0 < x < 1:
        raise ValueError(f"{name}: expected a number in (0, 1), got {x!r}")
