"""Pictures: learning curves over seeds, the interquartile mean with its interval."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fdqn import statistics

# Okabe and Ito's colours, which every kind of colour vision tells apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# Above this many seeds single curves are a smear that hides the interval.
SINGLE_CURVES = 64


class Curve(NamedTuple):
    """Values [P, S] of S seeds at P steps; NaN where a seed has none."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def learning_curves(path: Path, curves: Mapping[str, Curve], title: str = "", subtitle: str = "") -> None:
    """Write a PNG with one line a curve: the mean of the middle half of its seeds, in its 95% bootstrap interval.

    Single seeds are drawn thinly where there is only one curve. A missing value is taken from the step before.
    Raises ValueError where there is no curve.
    """
    if not curves:
        raise ValueError("curves: expected at least one, got none")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, (label, curve) in enumerate(curves.items()):
        colour, values = COLOURS[i % len(COLOURS)], _filled(curve.values)
        seen = np.isfinite(values).any(axis=1)
        steps, values = curve.steps[seen], values[seen]
        if not len(steps):
            continue
        estimate = statistics.interval(values, resamples=500)
        if len(curves) == 1 and values.shape[1] <= SINGLE_CURVES:
            axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.3)
        axes.fill_between(steps, estimate.low, estimate.high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(steps, estimate.iqm, color=colour, linewidth=2, label=label)
    axes.set_xlabel("environment steps a seed")
    axes.set_ylabel("training return")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlim(left=0)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1 or "" not in curves:
        axes.legend(frameon=False, loc="best")
    figure.suptitle(title, x=0.02, ha="left", fontweight="bold")
    axes.set_title(subtitle, loc="left", fontsize=9, color="#555555")
    figure.savefig(path, format="png")


def _filled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each NaN replaced by the value before it in its column; leading ones stay."""
    row = np.where(np.isfinite(values), np.arange(len(values))[:, None], 0)
    return np.take_along_axis(values, np.maximum.accumulate(row, axis=0), axis=0)
