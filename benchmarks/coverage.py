"""Measure coverage and width of 95% intervals of the interquartile mean over a few seeds.

    python benchmarks/coverage.py [--experiments 2000] [--resamples 1000] [--seeds 2 3 4 5 6 8 16 32]

Draws seeds from four distributions of returns and computes each method's interval of every draw. Prints one row per
method: the percentage of intervals that contain the true interquartile mean (lowest and highest of the distributions)
and the median width in standard deviations (mean of the distributions). Takes less than a minute.
"""

import argparse
import warnings

import numpy as np
from scipy.stats import norm, t

from fdqn.report import statistics

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2

DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed": lambda rng, shape: rng.lognormal(sigma=0.8, size=shape),
    # Two of five seeds fail to find the reward.
    "bimodal": lambda rng, shape: rng.normal(size=shape) + 6 * (rng.uniform(size=shape) < 0.6),
    # A third of the seeds reach the maximal return.
    "ceiling": lambda rng, shape: np.minimum(rng.normal(size=shape), 0.4),
}


def percentile(x, means, rng):
    """Percentile bootstrap: quantiles of the bootstrapped means."""
    return np.quantile(means, [TAIL, 1 - TAIL], axis=0)


def expanded(x, means, rng):
    """Percentile bootstrap, expanded by the ratio of a t interval to a normal one. Hesterberg 2015, arXiv 1411.5279."""
    n = x.shape[-1]
    tail = norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(TAIL, n - 1))
    return np.quantile(means, [tail, 1 - tail], axis=0)


def accelerated(x, means, rng):
    """Bias-corrected and accelerated bootstrap (BCa). Efron 1987."""
    n = x.shape[-1]
    middle = iqm(x)
    below = ((means < middle).mean(0) + (means <= middle).mean(0)) / 2
    bias = norm.ppf(np.clip(below, 0.5 / len(means), 1 - 0.5 / len(means)))
    left_out = np.stack([iqm(np.delete(x, i, -1)) for i in range(n)], -1)
    d = left_out.mean(-1, keepdims=True) - left_out
    squares = (d**2).sum(-1) ** 1.5
    skew = np.divide((d**3).sum(-1), 6 * squares, out=np.zeros_like(middle), where=squares > 0)
    shifted = [bias + (bias + z) / (1 - skew * (bias + z)) for z in (norm.ppf(TAIL), norm.ppf(1 - TAIL))]
    places = np.rint(norm.cdf(shifted) * (len(means) - 1)).astype(int)
    return np.take_along_axis(np.sort(means, 0), places, 0)


def trimmed_t(x, means, rng):
    """Student's t with the winsorized deviation. Tukey and McLaughlin 1963."""
    middle, error, freedom = trimmed(x)
    return middle + np.array([[-1], [1]]) * t.ppf(1 - TAIL, freedom) * error


def plain_t(x, means, rng):
    """Student's t of the mean."""
    n = x.shape[-1]
    return x.mean(-1) + np.array([[-1], [1]]) * t.ppf(1 - TAIL, n - 1) * x.std(-1, ddof=1) / np.sqrt(n)


def bootstrap_t(x, means, rng):
    """Bootstrap-t of the trimmed mean; draws of equal values are left out."""
    middle, error, _ = trimmed(x)
    ratios = []
    for index in rng.integers(0, x.shape[-1], (len(means), x.shape[-1])):
        other, spread, _ = trimmed(x[:, index])
        ratios.append(np.divide(other - middle, spread, out=np.full_like(middle, np.nan), where=spread > 1e-9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experiments in which every draw has equal values
        low, high = np.nanquantile(ratios, [TAIL, 1 - TAIL], axis=0)
    return middle - high * error, middle - low * error


def whole_range(x, means, rng):
    """Lowest to highest seed."""
    return x.min(-1), x.max(-1)


METHODS = {
    "percentile bootstrap": percentile,
    "expanded percentile": expanded,
    "BCa": accelerated,
    "bootstrap-t": bootstrap_t,
    "t, trimmed mean": trimmed_t,
    "t, mean": plain_t,
    "range": whole_range,
}


def iqm(x):
    """Compute the interquartile mean along the last axis, as `statistics.iqm` does."""
    cut, n = x.shape[-1] // 4, x.shape[-1]
    return np.sort(x, -1)[..., cut : n - cut].mean(-1)


def trimmed(x):
    """Compute the interquartile mean [E] of x [E, n], its standard error and its degrees of freedom."""
    n = x.shape[-1]
    cut = n // 4
    ordered = np.sort(x, -1)
    winsorized = np.clip(ordered, ordered[:, cut, None], ordered[:, n - 1 - cut, None])
    kept = n - 2 * cut
    return ordered[:, cut : n - cut].mean(-1), winsorized.std(-1, ddof=1) * np.sqrt(n) / kept, kept - 1


def bootstrapped(x, resamples, rng):
    """Compute the interquartile means [B, E] of `resamples` draws from x [E, n]."""
    n = x.shape[-1]
    return np.stack([iqm(x[:, index]) for index in rng.integers(0, n, (resamples, n))])


def measure(draw, seeds, experiments, resamples):
    """Measure coverage and width of each method."""
    rng = np.random.default_rng(seeds)
    large = draw(np.random.default_rng(0), 4_000_000)
    truth, deviation = iqm(large), large.std()
    x = draw(rng, (experiments, seeds))
    means = bootstrapped(x, resamples, rng)
    found = {}
    for name, method in METHODS.items():
        low, high = method(x, means, rng)
        with np.errstate(invalid="ignore"):
            covered = ((low <= truth + 1e-9) & (truth - 1e-9 <= high)).mean()
        found[name] = covered, np.nanmedian(high - low) / deviation
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=2_000)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8, 16, 32])
    arguments = parser.parse_args()
    assert iqm(np.arange(11.0)) == statistics.iqm(np.arange(11.0))
    print(f"| covered, width | {' | '.join(f'{n} seeds' for n in arguments.seeds)} |")
    print("|---|" + "--:|" * len(arguments.seeds))
    cells: dict[str, list[str]] = {name: [] for name in METHODS}
    for seeds in arguments.seeds:
        each = [measure(draw, seeds, arguments.experiments, arguments.resamples) for draw in DISTRIBUTIONS.values()]
        for name, row in cells.items():
            covered, widths = zip(*(found[name] for found in each), strict=True)
            row.append(f"{100 * min(covered):.0f}-{100 * max(covered):.0f}%, {np.mean(widths):.2f}")
    for name, row in cells.items():
        print(f"| {name} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
