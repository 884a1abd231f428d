"""Measure coverage and width of 95% intervals over few seeds: of one arm, and of the difference between two.

    python benchmarks/coverage.py [--experiments 2000] [--resamples 1000] [--seeds 2 3 4 5 6 8 16 32]

Draws the seeds of arms from four distributions of returns and computes the interval of each method in every experiment.
Prints the percentage of intervals that contain the true value, and their median width in standard deviations (averaged
over the distributions), for the interquartile mean and the mean of one arm, for differences between two arms, and for
the probability of improvement. Also prints the percentage of sets of `comparisons.selection` that contain the best of
12 settings.

For one arm, or two arms of the same distribution, a cell has the lowest and the highest percentage over the four
distributions; rows of "other shapes" have those over the six pairs of different distributions. In paired arms the
latent normal variables of a seed have a correlation of one half. Takes two minutes on one core.
"""

import argparse
import itertools
import warnings

import numpy as np
from scipy.stats import norm, t

from fdqn.report import comparisons, statistics

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2

DISTRIBUTIONS = {
    "normal": lambda z, other: z,
    "skewed": lambda z, other: np.exp(0.8 * z),
    # Two of five seeds fail to find the reward.
    "bimodal": lambda z, other: z + 6 * (other > norm.ppf(0.4)),
    # A third of the seeds reach the maximal return.
    "ceiling": lambda z, other: np.minimum(z, 0.4),
}
"""Returns as functions of two independent standard normal variables."""

SHIFTS = (0.0, 0.5, 1.0, 2.0)
"""Differences between two arms, in standard deviations, for which the probability of improvement is estimated."""


def expanded_tail(n, freedom):
    """Compute the quantile of a percentile bootstrap that is expanded like a t interval. Hesterberg 2015."""
    return norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(TAIL, freedom))


def percentile(x, means, rng):
    """Percentile bootstrap: quantiles of the bootstrapped means."""
    return np.quantile(means, [TAIL, 1 - TAIL], axis=0)


def expanded(x, means, rng):
    """Percentile bootstrap, expanded by the ratio of a t interval to a normal one. Hesterberg 2015, arXiv 1411.5279."""
    n = x.shape[-1]
    tail = expanded_tail(n, n - 1)
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
    """Bootstrap-t of the trimmed mean; resamples of equal values are left out."""
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
"""Intervals of the interquartile mean of one arm."""

METHODS_OF_MEAN = {"percentile bootstrap": percentile, "expanded percentile": expanded, "t": plain_t}
"""Intervals of the mean of one arm."""


def iqm(x):
    """Compute the interquartile mean along the last axis, as `statistics.iqm` does."""
    cut, n = x.shape[-1] // 4, x.shape[-1]
    return np.sort(x, -1)[..., cut : n - cut].mean(-1)


def mean(x):
    """Compute the mean along the last axis."""
    return x.mean(-1)


def trimmed(x):
    """Compute the interquartile mean [E] of x [E, n], its standard error and its degrees of freedom."""
    n = x.shape[-1]
    cut = n // 4
    ordered = np.sort(x, -1)
    winsorized = np.clip(ordered, ordered[:, cut, None], ordered[:, n - 1 - cut, None])
    kept = n - 2 * cut
    return ordered[:, cut : n - cut].mean(-1), winsorized.std(-1, ddof=1) * np.sqrt(n) / kept, kept - 1


def bootstrapped(x, of, indices):
    """Compute a statistic [B, E] of the draws `indices` [B, n] from x [E, n]."""
    return np.stack([of(x[:, index]) for index in indices])


def welch(a, b):
    """Compute the variance of the difference of the means of arms [E, n] and its degrees of freedom."""
    n = a.shape[-1]
    first, second = a.var(-1, ddof=1) / n, b.var(-1, ddof=1) / n
    parts = (first**2 + second**2) / (n - 1)
    total = first + second
    return total, np.divide(total**2, parts, out=np.ones_like(total), where=parts > 0)


def difference_methods(a, b, of, draws, paired):
    """Compute the intervals of the difference of a statistic of arms [E, n] by each method."""
    n = a.shape[-1]
    variance, freedom = ((b - a).var(-1, ddof=1) / n, np.full(len(a), n - 1)) if paired else welch(a, b)
    tails = expanded_tail(n, freedom)
    ordered = np.sort(draws, 0)
    places = np.stack([tails, 1 - tails]) * (len(draws) - 1)
    found = {
        "percentile bootstrap": np.quantile(draws, [TAIL, 1 - TAIL], axis=0),
        "expanded percentile": np.take_along_axis(ordered, np.rint(places).astype(int), 0),
    }
    if of is mean:
        half = t.ppf(1 - TAIL, freedom) * np.sqrt(variance)
        found["t"] = b.mean(-1) - a.mean(-1) + np.array([[-1], [1]]) * half
    return found


def improvement_methods(a, b, indices, others):
    """Compute the probability of improvement of arms [E, n] and its intervals by each method."""
    n = a.shape[-1]
    wins = (b[:, None, :] > a[:, :, None]) + 0.5 * (b[:, None, :] == a[:, :, None])
    value = wins.mean((1, 2))
    draws = np.stack([wins[:, index][:, :, other].mean((1, 2)) for index, other in zip(indices, others, strict=True)])
    tail = expanded_tail(n, 2 * n - 2)
    p = np.linspace(0, 1, 2_001)[:, None]
    variance = p * (1 - p) * (1 + (n - 1) * ((1 - p) / (2 - p) + p / (1 + p))) / n**2
    inside = (value - p) ** 2 <= norm.isf(TAIL) ** 2 * variance + 1e-12
    # Rounded outwards by less than half a step of p.
    score = p[inside.argmax(0), 0] - 2.5e-4, p[len(p) - 1 - inside[::-1].argmax(0), 0] + 2.5e-4
    return value, {
        "percentile bootstrap": np.quantile(draws, [TAIL, 1 - TAIL], axis=0),
        "expanded percentile": np.quantile(draws, [tail, 1 - tail], axis=0),
        "score": score,
    }


class Table:
    """Rows of coverages and widths by the name of the method, one column per number of seeds."""

    def __init__(self, title):
        self.title, self.rows = title, {}

    def add(self, name, seeds, ends, truth, deviation):
        """Add the intervals of all experiments, whose width is divided by the deviation."""
        low, high = ends
        with np.errstate(invalid="ignore"):
            covered = ((low <= truth + 1e-9) & (truth - 1e-9 <= high)).mean()
        cells = self.rows.setdefault(name, {}).setdefault(seeds, [])
        cells.append((covered, np.nanmedian(high - low) / deviation))

    def print(self, seeds):
        """Print in Markdown."""
        print(f"\n| {self.title} | {' | '.join(f'{n} seeds' for n in seeds)} |")
        print("|---|" + "--:|" * len(seeds))
        for name, cells in self.rows.items():
            texts = []
            for n in seeds:
                covered, widths = zip(*cells[n], strict=True)
                texts.append(f"{100 * min(covered):.0f}-{100 * max(covered):.0f}%, {np.mean(widths):.2f}")
            print(f"| {name} | {' | '.join(texts)} |")


def measure(seeds, experiments, resamples, tables, large):
    """Measure all methods with this number of seeds and add them to the tables."""
    rng = np.random.default_rng(seeds)
    shape = (2, experiments, seeds)
    separate, shared = rng.normal(size=(2, *shape)), rng.normal(size=shape)
    together = np.sqrt(0.5) * (separate + shared)
    first, second = ({name: draw(*z) for name, draw in DISTRIBUTIONS.items()} for z in separate)
    paired = [{name: draw(*z) for name, draw in DISTRIBUTIONS.items()} for z in together]
    indices, others = rng.integers(0, seeds, (2, resamples, seeds))
    for of, title in ((iqm, "IQM"), (mean, "mean")):
        truths = {name: of(x) for name, x in large.items()}
        draws = [
            {name: bootstrapped(x, of, index) for name, x in arm.items()}
            for arm, index in ((first, indices), (second, others), (paired[0], indices), (paired[1], indices))
        ]
        for name, x in first.items():
            for method, interval in (METHODS if of is iqm else METHODS_OF_MEAN).items():
                ends = interval(x, draws[0][name], rng)
                tables[title].add(method, seeds, ends, truths[name], large[name].std())
        for a, b in itertools.combinations_with_replacement(DISTRIBUTIONS, 2):
            truth, deviation = truths[b] - truths[a], np.sqrt((large[a].var() + large[b].var()) / 2)
            suffix = "" if a == b else ", other shapes"
            for kind, (one, two), (i, j) in (
                ("unpaired", (first, second), (0, 1)),
                ("paired", (paired[0], paired[1]), (2, 3)),
            ):
                found = difference_methods(one[a], two[b], of, draws[j][b] - draws[i][a], kind == "paired")
                for method, ends in found.items():
                    tables[f"difference, {title}"].add(f"{kind}{suffix}: {method}", seeds, ends, truth, deviation)
    few = slice(max(1, experiments // 2))
    for a, b in itertools.product(DISTRIBUTIONS, repeat=2):
        scale = large[a].std() / large[b].std()
        for shift in SHIFTS:
            moved = shift * large[a].std()
            y = scale * large[b][::-1] + moved
            truth = (y > large[a]).mean() + 0.5 * (y == large[a]).mean()
            # Numbers of one distribution are equal only at the ceiling.
            _, found = improvement_methods(first[a][few], scale * second[b][few] + moved, indices[:200], others[:200])
            for method, ends in found.items():
                tables["improvement"].add(f"shift {shift:g}: {method}", seeds, ends, truth, 1.0)


def select(seeds, experiments, settings=12, better=0.5):
    """Measure the selection of the best of several settings, of which one is better by half a standard deviation.

    Returns the fraction of experiments in which the set of `comparisons.selection` contains the better setting, the
    fraction in which the better setting is selected most often, and the mean size of the set.
    """
    rng, found = np.random.default_rng(seeds), []
    for _ in range(experiments):
        returns = rng.normal(size=(settings, seeds))
        returns[0] += better
        chosen = comparisons.selection(returns, paired=False, resamples=500)
        found.append((chosen.members[0], chosen.frequency.argmax() == 0, chosen.members.sum()))
    return np.mean(found, axis=0)


def check_methods():
    """Check that the methods equal those of the package."""
    rng = np.random.default_rng(0)
    assert iqm(np.arange(11.0)) == statistics.iqm(np.arange(11.0))
    a, b = rng.normal(size=(2, 1, 9))
    indices, others = rng.integers(0, 9, (2, 40_000, 9))
    draws = bootstrapped(b, iqm, others) - bootstrapped(a, iqm, indices)
    for of, name, method in ((iqm, "iqm", "expanded percentile"), (mean, "mean", "t")):
        low, high = difference_methods(a, b, of, draws, False)[method]
        estimate = comparisons.difference(a[0], b[0], name, resamples=40_000)
        np.testing.assert_allclose([low[0], high[0]], estimate[1:3], atol=0.05)
    value, found = improvement_methods(a, b, indices[:10], others[:10])
    estimate = comparisons.improvement(a[0], b[0])
    np.testing.assert_allclose([value[0], *(end[0] for end in found["score"])], estimate[:3], atol=1e-3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=2_000)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8, 16, 32])
    arguments = parser.parse_args()
    check_methods()
    large = {name: draw(*np.random.default_rng(0).normal(size=(2, 4_000_000))) for name, draw in DISTRIBUTIONS.items()}
    tables = {name: Table(name) for name in ("IQM", "mean", "difference, IQM", "difference, mean", "improvement")}
    for seeds in arguments.seeds:
        measure(seeds, arguments.experiments, arguments.resamples, tables, large)
    for table in tables.values():
        table.print(arguments.seeds)
    selected = [select(seeds, max(1, arguments.experiments // 4)) for seeds in arguments.seeds]
    print(f"\n| selection | {' | '.join(f'{n} seeds' for n in arguments.seeds)} |")
    print("|---|" + "--:|" * len(arguments.seeds))
    for row, name in enumerate(("the set contains the best of 12", "selected most often is the best")):
        print(f"| {name} | {' | '.join(f'{100 * found[row]:.0f}%' for found in selected)} |")
    print(f"| settings in the set | {' | '.join(f'{found[2]:.1f}' for found in selected)} |")


if __name__ == "__main__":
    main()
