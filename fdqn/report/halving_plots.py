"""Picture of successive halving: learning curves until settings were dropped, and returns against their values."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fdqn.report import plots, statistics, sweep_plots, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

LEGEND = 10
"""Maximum number of settings of the last rung in the legend."""

_WIDTH = 10.0  # inches
_PANELS = 3  # in a row
_DROPPED = ("#b8b8b8", "#888888", "#5c5c5c")
"""Greys of dropped settings by rung, from light to dark; the last grey is that of all later rungs."""


class Halving(NamedTuple):
    """A sweep with successive halving. Its learning curves end where settings were dropped."""

    data: sweeps.Sweep
    dropped: tuple[int | None, ...]
    """Environment step [K] at which each setting was dropped; None for those of the last rung."""
    ranking: tuple[sweeps.Row, ...]
    """All settings, the best first."""
    scores: tuple[float, ...]
    """Interquartile means [K] of the training returns at the end of the first rung; NaN without a finished episode."""

    @property
    def ends(self) -> list[int]:
        """Steps at which settings were dropped, in increasing order."""
        return sorted({step for step in self.dropped if step is not None})

    @property
    def last(self) -> list[int]:
        """Settings of the last rung, the best first."""
        return [row.setting for row in self.ranking if row.dropped is None]


def write(file: Path | BinaryIO, given: Halving, title: str = "", subtitle: str = "", measure: str = "return") -> None:
    """Write a PNG of `figure`."""
    figure(given, title, subtitle, measure).savefig(file, format="png")


def figure(given: Halving, title: str = "", subtitle: str = "", measure: str = "return") -> "Figure":
    """Draw the learning curves of all settings, and below them a panel for each varied name.

    The panels show the scores at the end of the first rung, the last at which all settings were trained, against the
    value. `measure` is the name of the returns by which the settings of the last rung are ranked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = sweep_plots.axes_of(given.data)
    heights = [4.8, 0.7 + 2.7 * math.ceil(len(axes) / _PANELS)]
    drawn = Figure(figsize=(_WIDTH, sum(heights) + 0.3), dpi=150, layout="constrained")
    FigureCanvasAgg(drawn)
    drawn.suptitle(sweep_plots.plain_text(title), x=0.01, ha="left", fontweight="bold")
    top, bottom = drawn.subfigures(2, 1, squeeze=False, height_ratios=heights, hspace=0.03).flat
    _draw_curves(top, given, axes, subtitle, measure)
    _draw_values(bottom, given, axes)
    return drawn


def _draw_curves(
    part: "SubFigure", given: Halving, names: Sequence[sweep_plots.Axis], subtitle: str, measure: str
) -> None:
    """Draw the learning curves: dropped settings in grey up to a cross, those of the last rung in colours."""
    from matplotlib.ticker import EngFormatter

    axes, curves = part.subplots(), given.data.curves or ()
    for row in reversed(given.ranking):
        _draw_setting(axes, given, row, curves[row.setting], names)
    last = max((int(curve.steps[-1]) for curve in curves if len(curve.steps)), default=1)
    kept = len(given.dropped)
    for end in given.ends:
        axes.axvline(end, color="#444444", linewidth=0.8, linestyle=":")
        kept -= given.dropped.count(end)
        place = (end, 1.0)
        axes.annotate(
            f"{kept} kept", place, (3, 3), xycoords=axes.get_xaxis_transform(), textcoords="offset points", fontsize=8
        )
    axes.set_xlim(0, last)
    axes.set_xlabel("environment steps per seed")
    axes.set_ylabel("training return")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    heading = f"rank by {sweep_plots.plain_text(measure)}: " + ", ".join(
        sweep_plots.plain_text(axis.name) for axis in names
    )
    handles, labels = axes.get_legend_handles_labels()
    legend: dict[str, Any] = {"title": heading, "title_fontsize": 8, "fontsize": 8, "alignment": "left"}
    axes.legend(handles[::-1], labels[::-1], framealpha=0.9, edgecolor="none", **legend)
    notes = (
        "line: interquartile mean of the seeds of a setting",
        "grey: dropped at the cross, lighter if earlier" if len(given.ends) > 1 else "grey: dropped at the cross",
        "dotted: end of a rung",
    )
    sweep_plots.caption(part, "Learning curves", notes, subtitle)


def _draw_setting(
    axes: "Axes", given: Halving, row: sweeps.Row, curve: plots.Curve, names: Sequence[sweep_plots.Axis]
) -> None:
    """Draw the learning curve of one setting."""
    steps, middle = _means(curve)
    if not len(steps):
        return
    if row.dropped is not None:
        colour = _grey(given, row.dropped)
        axes.plot(steps, middle, color=colour, linewidth=1.0, zorder=1)
        axes.plot(steps[-1], middle[-1], "x", color=colour, markersize=5, zorder=1)
        return
    place = given.last.index(row.setting)
    colour, style = plots.look(place)
    words = ", ".join(sweep_plots.plain_text(axis.column[row.setting]) for axis in names)
    label = f"{'-' if row.rank is None else row.rank}: {words}" if place < LEGEND else None
    look: dict[str, Any] = {"linewidth": 2.2 if place == 0 else 1.4, "zorder": 4 if place == 0 else 3}
    axes.plot(steps, middle, color=colour, linestyle=style, label=label, **look)


def _means(curve: plots.Curve) -> tuple[NDArray[np.int64], list[float]]:
    """Return the steps at which a seed has a return, and the interquartile means there."""
    seen = np.isfinite(curve.values).any(axis=1)
    rows = [row[np.isfinite(row)] for row in curve.values[seen]]
    return curve.steps[seen], [float(statistics.iqm(row)) for row in rows]


def _grey(given: Halving, dropped: int) -> str:
    return _DROPPED[min(given.ends.index(dropped), len(_DROPPED) - 1)]


def _draw_values(part: "SubFigure", given: Halving, names: Sequence[sweep_plots.Axis]) -> None:
    """Draw the score of each setting at the end of the first rung against its value of each name."""
    columns = min(_PANELS, len(names))
    panels = part.subplots(math.ceil(len(names) / columns), columns, squeeze=False, sharey=True)
    for panel, axis in zip(panels.flat, names, strict=False):
        at = axis.places(axis.column)
        for row in sorted(given.ranking, key=lambda row: (row.dropped is None, row.dropped or 0)):
            place = at[row.setting], given.scores[row.setting]
            if row.dropped is None:
                panel.plot(*place, "o", color=plots.look(given.last.index(row.setting))[0], markersize=6)
            else:
                panel.plot(*place, "x", color=_grey(given, row.dropped), markersize=5)
        panel.set_xlabel(sweep_plots.plain_text(axis.name))
        panel.grid(alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
        sweep_plots.set_axis(panel, axis, "x", inches=_WIDTH / columns - 0.8)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("training return")
    title = (
        f"All settings after {given.ends[0]:,} steps, at the end of the first rung" if given.ends else "All settings"
    )
    notes = (
        "point: interquartile mean of the seeds of a setting, by which settings are dropped",
        "colours as above",
    )
    sweep_plots.caption(part, title, notes, "")
