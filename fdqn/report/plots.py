"""Learning curves over seeds: the interquartile mean with its interval, or with the range of the seeds."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fdqn.report import statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for colour-blind readers. The line style changes once the colours are used up.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")

# Caption of the bands by the kinds that a panel contains.
BANDS = {
    frozenset[str](): "",
    frozenset({"interval"}): ", band: its 95% bootstrap interval",
    frozenset({"range"}): ", band: range of the seeds",
    frozenset({"interval", "range"}): ", band: its 95% bootstrap interval, hatched: range of fewer than 5 seeds",
}

# With more seeds, their single curves would hide the interval.
SINGLE_CURVES = 64


class Curve(NamedTuple):
    """Values [P, S] of S seeds at P steps; NaN where a seed has no value."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def learning_curves(file: Path | BinaryIO, panels: Mapping[str, Mapping[str, Curve]], subtitle: str = "") -> None:
    """Write a PNG of `figure`. Raises ValueError as it does."""
    figure(panels, subtitle).savefig(file, format="png")


def figure(panels: Mapping[str, Mapping[str, Curve]], subtitle: str = "") -> "Figure":
    """Draw one panel per title and, in each panel, one line per curve.

    A line is the interquartile mean over seeds. Its band is the 95% bootstrap interval or, hatched, the range of the
    seeds where fewer than 5 have a value. Single seeds are drawn as thin lines if a panel has one curve. A seed without
    a value at a step keeps its previous value, and is left out before its first. More than three panels are laid out in
    two columns. Raises ValueError for a panel without curves and for curves of wrong shapes.
    """
    if not panels or not all(panels.values()):
        raise ValueError("panels: expected at least one curve in each, got none")
    for curves in panels.values():
        for label, curve in curves.items():
            steps, values = np.shape(curve.steps), np.shape(curve.values)
            if len(steps) != 1 or len(values) != 2 or steps != values[:1]:
                raise ValueError(
                    f"panels: expected curves of steps [P] and values [P, S], got {list(steps)} and {list(values)} "
                    f"in {label!r}"
                )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 if len(panels) <= 3 else 2
    rows = math.ceil(len(panels) / columns)
    drawn = Figure(figsize=(8 * columns, 4.5 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(drawn)
    parts = drawn.subfigures(rows, columns, squeeze=False).flat
    for part, (title, curves) in zip(parts, panels.items(), strict=False):
        axes = part.subplots()
        note = "line: interquartile mean of the seeds" + BANDS[frozenset(draw_curves(axes, curves))]
        thin = ", thin: single seeds" if _shows_seeds(curves) else ""
        axes.set_title(
            "\n".join(filter(None, (plain_text(subtitle), note + thin))), loc="left", fontsize=8, color="#555555"
        )
        part.suptitle(plain_text(title), x=0.01, ha="left", fontweight="bold")
    return drawn


def draw_curves(axes: "Axes", curves: Mapping[str, Curve], label: str = "training return") -> set[str]:
    """Draw the curves with their bands, on an axis with this label. Return the kinds of bands drawn."""
    from matplotlib.ticker import EngFormatter

    kinds: set[str] = set()
    for i, (name, curve) in enumerate(curves.items()):
        colour, style = look(i)
        (steps, values), estimates = summarised(curve)
        if not len(steps):
            continue
        marker = "o" if len(steps) == 1 else None
        if _shows_seeds(curves):
            axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.3, marker=marker, markersize=2)
        kinds |= _draw_band(axes, steps, estimates, colour)
        middle = [float(e.iqm) for e in estimates]
        axes.plot(steps, middle, color=colour, linestyle=style, linewidth=2, marker=marker, label=plain_text(name))
    axes.set_xlabel("environment steps per seed")
    axes.set_ylabel(plain_text(label))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    if set(curves) != {""}:
        axes.legend(frameon=False, loc="best", fontsize=8)
    return kinds


def summarised(curve: Curve) -> tuple[Curve, list[statistics.Interval]]:
    """Return the part of a curve that is drawn, and the interquartile mean over the seeds at each of its steps.

    A seed without a value at a step keeps its previous value. Steps before the first value are left out.
    """
    values = filled(curve.values)
    seen = np.isfinite(values).any(axis=1)
    drawn = Curve(curve.steps[seen], values[seen])
    return drawn, [statistics.interval(row, resamples=500) for row in drawn.values]


def plain_text(text: str) -> str:
    """Escape the dollar signs of a name, so that they do not start mathematics."""
    return text.replace("$", r"\$")


def look(number: int) -> tuple[str, str]:
    """Return the colour and the line style of a curve by its number."""
    return COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]


def _draw_band(axes: "Axes", steps: NDArray[np.int64], estimates: list[statistics.Interval], colour: str) -> set[str]:
    """Fill intervals and hatch ranges; a segment between the two kinds is hatched."""
    low, high = [float(e.low) for e in estimates], [float(e.high) for e in estimates]
    kinds = np.array([e.kind or "" for e in estimates])
    looks: dict[str, dict[str, Any]] = {
        "interval": {"color": colour, "alpha": 0.25},
        "range": {"facecolor": (colour, 0.1), "edgecolor": (colour, 0.4), "hatch": "///"},
    }
    for kind, look in looks.items():
        here = kinds == kind
        if kind == "range":
            here = here | np.append(False, here[:-1]) | np.append(here[1:], False)
        if here.any():
            axes.fill_between(steps, low, high, where=here, linewidth=0, **look)
    return {kind for kind in looks if kind in kinds}


def _shows_seeds(curves: Mapping[str, Curve]) -> bool:
    return len(curves) == 1 and all(curve.values.shape[1] <= SINGLE_CURVES for curve in curves.values())


def filled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace each NaN by the previous value of its column; leading NaNs remain."""
    row = np.where(np.isfinite(values), np.arange(len(values))[:, None], 0)
    return np.take_along_axis(values, np.maximum.accumulate(row, axis=0), axis=0)
