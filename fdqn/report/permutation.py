"""Permutation tests of the difference of two arms, and the adjustment of several p-values."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fdqn.report import samples
from fdqn.report.samples import Array

# The permutation test enumerates the splits of the seeds into two arms if there are at most this many, as for 8 seeds
# per arm or 14 pairs. Otherwise it draws this number of random splits.
_SPLITS = 20_000


def permutation_test(first: ArrayLike, second: ArrayLike, paired: bool = False) -> float:
    """Compute the two-sided p-value of the difference of the means under the hypothesis that the arms are exchangeable.

    It is the fraction of the splits of all seeds into two arms whose difference is at least as large in absolute value
    as the observed one; with `paired`, of the exchanges within pairs. All splits are used if there are at most 20,000.
    Otherwise as many random ones are drawn, and the p-value is `(1 + count) / (1 + 20,000)`, which is never too small
    (Phipson and Smyth 2010, https://arxiv.org/abs/1603.05766).

    Shapes: first [S1], second [S2]. Returns NaN for an arm without seeds. Raises as `difference` does.
    """
    a, b, _ = samples.pair(first, second, paired)
    if not min(len(a), len(b)):
        return math.nan
    permuted, exact = _sign_flips(np.sort(np.abs(b - a))) if paired else _splits(a, b)
    observed = abs((b - a).mean() if paired else b.mean() - a.mean())
    # Sums of the same numbers in a different order differ by rounding.
    rounding = 1e-12 * float(np.abs(np.concatenate([a, b])).max())
    count = int((np.abs(permuted) >= observed - rounding).sum())
    return count / len(permuted) if exact else (1 + count) / (1 + len(permuted))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several comparisons by Holm's method; NaN stays NaN and is not counted.

    The k-th smallest of m is multiplied by `m - k + 1`, raised to the adjusted one before it, and limited to 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    adjusted = p.copy()
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return [float(x) for x in adjusted]


def _sign_flips(differences: Array) -> tuple[Array, bool]:
    """Compute the means of the differences [S] under exchanges within pairs, and True if these are all exchanges.

    The absolute differences are in ascending order, so that exchanging the arms does not change the result.
    """
    n = len(differences)
    if 2**n <= _SPLITS:
        signs = np.array(list(itertools.product([-1.0, 1.0], repeat=n)))
        return signs @ differences / n, True
    rng = np.random.default_rng(0)
    return np.concatenate([
        np.where(rng.random((min(_rows(n), _SPLITS - start), n)) < 0.5, -1.0, 1.0) @ differences / n
        for start in range(0, _SPLITS, _rows(n))
    ]), False  # fmt: skip


def _splits(a: Array, b: Array) -> tuple[Array, bool]:
    """Compute differences of means of splits of all seeds into two arms, and True if these are all splits."""
    pooled = np.sort(np.concatenate([a, b]))
    n, size = len(pooled), min(len(a), len(b))
    if math.comb(n, size) <= _SPLITS:
        index = np.array(list(itertools.combinations(range(n), size)))
        sums, exact = pooled[index].sum(1), True
    else:
        rng, exact = np.random.default_rng(0), False
        sums = np.concatenate([
            pooled[np.argpartition(rng.random((min(_rows(n), _SPLITS - start), n)), size - 1)[:, :size]].sum(1)
            for start in range(0, _SPLITS, _rows(n))
        ])  # fmt: skip
    return sums / size - (pooled.sum() - sums) / (n - size), exact


def _rows(columns: int) -> int:
    return max(1, samples.VALUES_AT_ONCE // columns)
