"""Pictures of a sweep: all settings, the sensitivity to each varied name, and learning curves of a few settings."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fdqn.report import plots, statistics, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.patches import Rectangle

BLUE, ACCENT, GREY = plots.COLOURS[0], plots.COLOURS[1], "#777777"
"""Colours of estimates, of settings that are indistinguishable from the best, and of failed settings."""

CURVES = 3
"""Number of best settings whose learning curves are drawn, in addition to the median and the worst."""

_WIDTH = 10.0  # inches
_PANELS = 3  # in a row
_TICKS = 8  # an axis with more values has ticks at round numbers
_CROWDED = 0.12  # and so has one with values that are closer than this fraction of it, whose labels would overlap
_LARGE_CELLS = 7  # cells of heat maps with more columns have smaller text


class Axis(NamedTuple):
    """A varied name on an axis."""

    name: str
    column: list[sweeps.Value]
    values: list[sweeps.Value]
    """The distinct values in ascending order."""
    scale: sweeps.Scale

    def places(self, values: Sequence[sweeps.Value]) -> NDArray[np.float64]:
        """Return the coordinates of values: numbers as they are, categories by their order."""
        if self.scale == "category":
            return np.array([self.values.index(value) for value in values], dtype=np.float64)
        return np.array(values, dtype=np.float64)

    def fractions(self, places: ArrayLike) -> NDArray[np.float64]:
        """Return coordinates as fractions of the axis, from the lowest value at 0 to the highest at 1."""
        ends = self.places([self.values[0], self.values[-1]])
        each, (low, high) = (np.log(x) if self.scale == "log" else np.asarray(x) for x in (places, ends))
        return np.asarray((each - low) / ((high - low) or 1.0))

    def limits(self) -> tuple[float, float]:
        """Return the ends of an axis with a margin around the values."""
        low, high = self.places([self.values[0], self.values[-1]])
        if low == high:
            return (low / 2, high * 2) if self.scale == "log" else (low - 0.5, high + 0.5)
        if self.scale == "log":
            room = (high / low) ** 0.07
            return low / room, high * room
        room = (0.07 if self.scale == "linear" else 0.07 + 0.25 / len(self.values)) * (high - low)
        return low - room, high + room

    def ticks(self) -> tuple[NDArray[np.float64], list[str]]:
        """Return coordinates and labels of ticks: each value if few are far apart, else round numbers."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        gaps = np.diff(self.fractions(self.places(self.values)))
        few = len(self.values) <= _TICKS and gaps.min(initial=1.0) >= _CROWDED
        if self.scale == "category" or few:
            return self.places(self.values), [plain_text(value) for value in self.values]
        low, high = self.places([self.values[0], self.values[-1]])
        locator = MaxNLocator(5) if self.scale == "linear" else LogLocator(subs=(1, 3) if high / low < 1e4 else (1,))
        ticks = np.array([tick for tick in locator.tick_values(low, high) if low <= tick <= high])
        if len(ticks) < 2:  # a logarithmic axis of less than a decade
            ticks = np.array([tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high])
        return ticks, [sweeps.text(float(f"{tick:.6g}")) for tick in ticks]


class _View(NamedTuple):
    """A sweep with the values that its pictures share; arrays are in the order of the settings."""

    data: sweeps.Sweep
    subtitle: str
    measure: str
    axes: tuple[Axis, ...]
    ranking: tuple[sweeps.Row, ...]
    estimates: tuple[statistics.Interval, ...]
    means: NDArray[np.float64]
    members: NDArray[np.bool_]
    low: float
    """Lowest mean on axes and colour bars; lower means are clipped to it."""
    high: float

    @property
    def clipped(self) -> bool:
        """True if the mean of a setting is below `low`."""
        return bool((self.means < self.low).any())

    def best_set(self, mark: str) -> str:
        """Explain the mark of the best set; empty without a best set."""
        few = f" (may be too few: under {statistics.MIN_SEEDS} seeds)" if sweeps.few_seeds(self.ranking) else ""
        return f"{mark}: indistinguishable from the best{few}" if self.members.any() else ""


def write(
    file: Path | BinaryIO, data: sweeps.Sweep, title: str = "", subtitle: str = "", measure: str = "return"
) -> None:
    """Write a PNG of `figure`."""
    figure(data, title, subtitle, measure).savefig(file, format="png")


def figure(data: sweeps.Sweep, title: str = "", subtitle: str = "", measure: str = "return") -> "Figure":
    """Draw the pictures that apply to a sweep, from top to bottom.

    - All settings: a heat map of two varied names on a grid, a scatter plot of two that were drawn, parallel
      coordinates of three or more, as `sweeps.overview` selects.
    - Sensitivity: one panel for each varied name, with the interquartile mean and its interval against the value.
    - Learning curves of the best settings, the median and the worst, if the sweep has curves.

    Settings that are indistinguishable from the best are marked in orange. `measure` is the name of the returns. Means
    far below those of nine tenths of the settings are clipped.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    view = _view(data, subtitle, measure)
    parts = _parts(view)
    heights = [height for height, _ in parts]
    drawn = Figure(figsize=(_WIDTH, sum(heights) + 0.3), dpi=150, layout="constrained")
    FigureCanvasAgg(drawn)
    drawn.suptitle(plain_text(title), x=0.01, ha="left", fontweight="bold")
    subfigures = drawn.subfigures(len(parts), 1, squeeze=False, height_ratios=heights, hspace=0.03)
    for i, (part, (_, draw)) in enumerate(zip(subfigures.flat, parts, strict=True)):
        draw(part, view if i == 0 else view._replace(subtitle=""))
    return drawn


def _view(data: sweeps.Sweep, subtitle: str, measure: str) -> _View:
    ranking = sweeps.ranking(data.names, data.values, data.returns, data.selection)
    rows = sorted(ranking, key=lambda row: row.setting)
    axes = axes_of(data)
    means = np.array([float(row.estimate.iqm) for row in rows])
    members = np.array([bool(row.in_best_set) for row in rows])
    estimates = tuple(row.estimate for row in rows)
    return _View(data, subtitle, measure, axes, ranking, estimates, means, members, *_ends(means))


def axes_of(data: sweeps.Sweep) -> tuple[Axis, ...]:
    """Return the axes of the names that differ, or of the first name if none does."""
    used = sweeps.varied(data.names, data.values) or data.names[:1]
    columns = zip(data.names, zip(*data.values, strict=True), data.scales, strict=True)
    return tuple(
        Axis(name, list(column), sweeps.distinct(column), scale) for name, column, scale in columns if name in used
    )


def _ends(means: NDArray[np.float64]) -> tuple[float, float]:
    """Return the lowest and the highest mean, excluding means far below those of nine tenths of the settings."""
    finite = means[np.isfinite(means)]
    if not len(finite):
        return 0.0, 1.0
    low, usual, high = finite.min(), np.quantile(finite, 0.1, method="higher"), finite.max()
    if high > usual and low < usual - 5 * (high - usual):
        low = finite[finite >= usual - 5 * (high - usual)].min()
    return (float(low), float(high)) if low < high else (low - 0.5, high + 0.5)


def _parts(view: _View) -> list[tuple[float, Callable[["SubFigure", _View], None]]]:
    """Return the heights in inches and the functions of the pictures that apply."""
    overview = sweeps.overview(view.data.names, view.data.values)
    parts: list[tuple[float, Callable[[SubFigure, _View], None]]] = []
    if overview == "heat map":
        rows = min(len(axis.values) for axis in view.axes)
        parts.append((1.5 + max(1.8, 0.65 * rows if rows <= _LARGE_CELLS else 0.36 * rows), _heat_map))
    elif overview == "scatter":
        parts.append((4.8, _scatter))
    elif overview == "parallel coordinates":
        parts.append((5.0, _parallel_coordinates))
    finished = np.isfinite(view.means).any()
    if finished or not parts:
        rows = math.ceil(len(view.axes) / _PANELS)
        parts.append((0.7 + 2.9 * rows if len(view.axes) > 1 else 4.2, _sensitivity))
    if finished and view.data.curves is not None:
        parts.append((4.6, _learning_curves))
    return parts


def _sensitivity(part: "SubFigure", view: _View) -> None:
    """Draw one panel per varied name: the interquartile mean and its interval against the value."""
    alone, columns = len(view.axes) == 1, min(_PANELS, len(view.axes))
    panels = part.subplots(math.ceil(len(view.axes) / columns), columns, squeeze=False, sharey=True)
    groups = [sweeps.marginal(view.data.names, view.data.values, view.data.returns, axis.name) for axis in view.axes]
    bars = [end for levels in groups for level in levels for end in (level.estimate.low, level.estimate.high)]
    shown = np.array([*bars, *(view.data.returns.ravel() if alone else view.means)], dtype=np.float64)
    shown = shown[np.isfinite(shown)]
    high = max([view.high, *shown])
    low = min([view.low, *shown[shown >= view.low - 5 * (high - view.low)]]) if not view.clipped else view.low
    panels[0, 0].set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    for panel, axis, levels in zip(panels.flat, view.axes, groups, strict=False):
        _draw_sensitivity(panel, view, axis, levels)
        set_axis(panel, axis, "x", inches=_WIDTH / columns - 0.8)
    for panel in panels.flat[len(view.axes) :]:
        panel.set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel(plain_text(view.measure))
    kinds = {level.estimate.kind for levels in groups for level in levels}
    binned = any(len(levels) < len(axis.values) for axis, levels in zip(view.axes, groups, strict=True))
    notes = (
        f"blue: interquartile mean of all seeds with this value{' or neighbouring ones' * binned}",
        "interval" in kinds and "thick bar: its 95% bootstrap interval",
        "range" in kinds and "thin bar: range of the seeds",
        "points: single seeds" if alone else "points: single settings",
        not alone and "dashed: best setting with this value",
        view.best_set("orange"),
        (shown < low).any() and "triangles: below the axis",
        np.isnan(view.means).all() and "all seeds failed",
    )
    caption(part, "Sensitivity", notes, view.subtitle)


def _draw_sensitivity(panel: "Axes", view: _View, axis: Axis, levels: Sequence[sweeps.Level]) -> None:
    """Draw the panel of one name."""
    at = axis.places(axis.column)
    x = axis.places([level.value for level in levels])
    middle = [float(level.estimate.iqm) for level in levels]
    # Points at a value are moved to the right of its bar, which would hide them.
    shift = 7 if len(levels) == len(axis.values) else 0
    if len(view.axes) == 1:
        _points(panel, np.repeat(at, view.data.returns.shape[1]), view.data.returns.ravel(), BLUE, shift)
        ring: dict[str, Any] = {"facecolor": "none", "edgecolor": ACCENT, "linewidth": 2, "zorder": 5}
        panel.scatter(at[view.members], view.means[view.members], s=130 if shift else 40, **ring)
    else:
        _points(panel, at[~view.members], view.means[~view.members], BLUE, shift)
        _points(panel, at[view.members], view.means[view.members], ACCENT, shift)
    for place, level in zip(x, levels, strict=True):
        if level.estimate.kind is not None:
            ends = [float(level.estimate.low), float(level.estimate.high)]
            panel.plot([place, place], ends, color=BLUE, linewidth=2.5 if level.estimate.kind == "interval" else 0.8)
    ordered = all(isinstance(value, float | int) and not isinstance(value, bool) for value in axis.values)
    if len(view.axes) > 1:
        best = [np.nan if level.best is None else view.means[level.best] for level in levels]
        look: dict[str, Any] = {"linestyle": "--"} if ordered else {"linestyle": "", "marker": "_", "markersize": 16}
        panel.plot(x, best, color=BLUE, linewidth=1, alpha=0.7, label="best", **look)
    panel.plot(x, middle, "o", linestyle="-" if ordered else "", color=BLUE, linewidth=1.5, markersize=5, label="IQM")
    panel.set_xlabel(plain_text(axis.name))
    panel.grid(alpha=0.2)
    panel.spines[["top", "right"]].set_visible(False)


def _points(panel: "Axes", x: NDArray[np.float64], y: NDArray[np.float64], colour: str, shift: float) -> None:
    """Draw points, shifted right by `shift` / 72 inch; those below the axis are triangles at its lower end."""
    from matplotlib.transforms import ScaledTranslation

    moved = ScaledTranslation(shift / 72, 0, panel.figure.dpi_scale_trans)
    floor = panel.get_ylim()[0]
    look: dict[str, Any] = {"color": colour, "linewidth": 0}
    look |= {"alpha": 0.3, "zorder": 1} if colour == BLUE else {"alpha": 0.9, "zorder": 4}
    inside, below = y >= floor, y < floor
    # The layout fails on collections without points.
    if inside.any():
        panel.scatter(x[inside], y[inside], s=16, transform=panel.transData + moved, **look)
    if below.any():
        transform = panel.get_xaxis_transform() + moved
        panel.scatter(x[below], np.full(below.sum(), 0.02), s=24, marker="v", transform=transform, **look)


def _heat_map(part: "SubFigure", view: _View) -> None:
    """Draw a grid of two names with the interquartile mean in each cell."""
    horizontal, vertical = (
        axis._replace(scale="category") for axis in sorted(view.axes, key=lambda axis: -len(axis.values))
    )
    axes = part.subplots()
    colours, norm = _colours(view)
    columns, rows = (axis.places(axis.column).astype(int) for axis in (horizontal, vertical))
    cells = np.full((len(vertical.values), len(horizontal.values)), np.nan)
    cells[rows, columns] = view.means
    axes.set_facecolor("#e4e4e4")
    image = axes.pcolormesh(
        np.arange(cells.shape[1] + 1) - 0.5, np.arange(cells.shape[0] + 1) - 0.5, np.ma.masked_invalid(cells),
        cmap=colours, norm=norm, edgecolors="white", linewidth=1.5,
    )  # fmt: skip
    large = len(horizontal.values) <= _LARGE_CELLS
    widest = max([float(x.high - x.low) for x in view.estimates if x.kind], default=0.0) or 1.0
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        mean = view.means[i]
        ink = "white" if np.isfinite(mean) and _is_dark(colours(norm(mean))) else "#222222"
        _draw_cell(axes, column, row, view.estimates[i], (ink, sweeps.decimals(view.means), 0 if large else widest))
        if view.members[i]:
            axes.add_patch(_rectangle(column - 0.47, row - 0.46, 0.94, 0.92, ACCENT, fill=False, linewidth=2.5))
    for of, which in ((horizontal, "x"), (vertical, "y")):
        set_axis(axes, of, which, inches=_WIDTH - 2.5)
    axes.set(xlabel=plain_text(horizontal.name), ylabel=plain_text(vertical.name))
    axes.set_xlim(-0.5, len(horizontal.values) - 0.5)
    axes.set_ylim(-0.5, len(vertical.values) - 0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _colour_bar(part, axes, image, view)
    kinds = {estimate.kind for estimate in view.estimates}
    digits = sweeps.decimals([widest, 0])
    notes = (
        "number: interquartile mean of the seeds",
        large and "interval" in kinds and "small: its 95% bootstrap interval",
        large and "range" in kinds and "range: lowest and highest of fewer than 5 seeds",
        not large and kinds - {None} and f"bar: width of its interval or range, up to {widest:.{digits}f}",
        view.best_set("orange frame"),
    )
    caption(part, "All settings", notes, view.subtitle)


def _draw_cell(
    axes: "Axes", column: int, row: int, estimate: statistics.Interval, look: tuple[str, int, float]
) -> None:
    """Write an interquartile mean in a cell, and its interval: as text, or as a bar relative to the widest one."""
    ink, digits, widest = look
    words = "failed" if np.isnan(estimate.iqm) else f"{float(estimate.iqm):.{digits}f}"
    size, height = (11, 0.1 if estimate.kind else 0.0) if not widest else (7, 0.05)
    axes.text(column, row + height, words, ha="center", va="center", color=ink, fontsize=size)
    if estimate.kind and widest:
        width = 0.8 * float(estimate.high - estimate.low) / widest
        axes.add_patch(_rectangle(column - 0.4, row - 0.36, width, 0.08, ink, linewidth=0))
    elif estimate.kind:
        ends = sweeps.interval_text(estimate, digits)
        axes.text(column, row - 0.25, ends, ha="center", va="center", color=ink, fontsize=7)


def _rectangle(x: float, y: float, width: float, height: float, colour: str, **look: Any) -> "Rectangle":
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, edgecolor=colour, facecolor=colour, **look)


def _scatter(part: "SubFigure", view: _View) -> None:
    """Draw each setting of two varied names as a point, coloured by its interquartile mean."""
    axes = part.subplots()
    colours, norm = _colours(view)
    x, y = (axis.places(axis.column) for axis in view.axes)
    failed = np.isnan(view.means)
    order = np.lexsort((view.means, view.members, failed))[: (~failed).sum()]  # the best set on top
    points = axes.scatter(
        x[order], y[order], c=view.means[order], cmap=colours, norm=norm, s=70,
        edgecolors=[ACCENT if view.members[i] else GREY for i in order],
        linewidths=[2.2 if view.members[i] else 0.4 for i in order],
    )  # fmt: skip
    axes.scatter(x[failed], y[failed], s=40, marker="x", color=GREY)
    for of, which in zip(view.axes, "xy", strict=True):
        set_axis(axes, of, which, inches=_WIDTH - 2.5)
    axes.set(xlabel=plain_text(view.axes[0].name), ylabel=plain_text(view.axes[1].name))
    axes.grid(alpha=0.2)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _colour_bar(part, axes, points, view)
    notes = (
        "one point per setting",
        view.best_set("orange ring"),
        failed.any() and "cross: all seeds failed",
    )
    caption(part, "All settings", notes, view.subtitle)


def _parallel_coordinates(part: "SubFigure", view: _View) -> None:
    """Draw each setting as a line through its values and its interquartile mean, each on a vertical axis."""
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import MaxNLocator

    axes, last = part.subplots(), len(view.axes)
    colours, norm = _colours(view)
    failed = np.isnan(view.means)
    order = np.argsort(np.where(failed, -np.inf, view.means), kind="stable")
    lines = np.stack([*(_spread(axis, order) for axis in view.axes), _end(view, view.means)], axis=1)
    looks: tuple[tuple[str, NDArray[np.bool_], dict[str, Any]], ...] = (
        ("failed", failed, {"colors": GREY, "linestyles": ":", "linewidths": 1.0}),
        ("others", ~failed & ~view.members, {"linewidths": 1.0, "alpha": 0.7 if len(order) <= 100 else 0.5}),
        ("outline", view.members, {"colors": ACCENT, "linewidths": 4.5}),
        ("members", view.members, {"linewidths": 2.2}),
    )
    for label, chosen, look in looks:
        ends = last if label == "failed" else last + 1
        paths = [np.stack([np.arange(ends), lines[i, :ends]], axis=1) for i in order[chosen[order]]]
        drawn = LineCollection(paths, label=label, **look)
        if "colors" not in look:
            drawn.set(array=view.means[order[chosen[order]]], cmap=colours, norm=norm)
        axes.add_collection(drawn)
    gradient = np.linspace(0, 1, 256)[:, None]
    axes.imshow(gradient, cmap=colours, extent=(last, last + 0.05, 0, 1), origin="lower", aspect="auto")
    for i, axis in enumerate(view.axes):
        places, labels = axis.ticks()
        band = _band(axis)
        axes.plot([i, i], [0, 1], color="#222222", linewidth=0 if band else 1, zorder=3)
        for height, label in zip(_inset(axis, axis.fractions(places)), labels, strict=True):
            axes.plot([i, i], [height - band, height + band], color="#222222", linewidth=2 if band else 0, zorder=3)
            _tick(axes, i, height, label)
    ticks = [tick for tick in MaxNLocator(6).tick_values(view.low, view.high) if view.low <= tick <= view.high]
    for tick in ticks:
        _tick(axes, last, float(_end(view, np.array(tick))), sweeps.text(float(f"{tick:.6g}")), right=True)
    axes.set_xlim(-0.3, last + 0.3)
    axes.set_ylim(-0.03, 1.03)
    width = int(_WIDTH / (last + 0.6) / 0.1)  # in letters
    names = [_broken(plain_text(name), width) for name in (*(axis.name for axis in view.axes), view.measure)]
    axes.set_xticks(range(last + 1), names, fontweight="bold")
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    notes = (
        "one line per setting, coloured by the interquartile mean of its seeds",
        any(map(_band, view.axes)) and "lines at equal values are spread",
        view.best_set("orange outline"),
        failed.any() and "dotted: all seeds failed",
        view.clipped and f"some means are below {sweeps.text(float(f'{view.low:.3g}'))}",
    )
    caption(part, "All settings", notes, view.subtitle)


def _broken(name: str, width: int) -> str:
    """Break a name longer than a width in letters into lines, at its underscores and spaces."""
    if len(name) <= width:
        return name
    return "\n".join(textwrap.wrap(name.replace("_", "_ "), width, break_long_words=False)).replace("_ ", "_")


def _end(view: _View, means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the heights of means on the last axis."""
    return np.asarray(np.clip((means - view.low) / (view.high - view.low), 0, 1))


def _band(axis: Axis) -> float:
    """Return half of the height over which the lines at one value are spread; 0 for an axis of drawn numbers."""
    few = axis.scale == "category" or len(axis.values) <= sweeps.LEVELS
    if not few or len(axis.values) == len(axis.column):
        return 0.0
    gap = np.diff(axis.fractions(axis.places(axis.values))).min(initial=1.0)
    return float(min(0.08, 0.35 * gap))


def _inset(axis: Axis, fractions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return fractions of an axis as heights, with room for the bands of the outer values."""
    return _band(axis) + (1 - 2 * _band(axis)) * fractions


def _spread(axis: Axis, order: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the heights [K] of the settings, in the given order from bottom to top within the band of a value."""
    heights = _inset(axis, axis.fractions(axis.places(axis.column)))
    for value in np.unique(heights):
        here = order[heights[order] == value]
        heights[here] += _band(axis) * np.linspace(-1, 1, len(here)) if len(here) > 1 else 0
    return heights


def _tick(axes: "Axes", x: float, height: float, label: str, right: bool = False) -> None:
    """Draw a tick and its label on the left of a vertical axis, or on the right of the colours."""
    side = 1 if right else -1
    axes.plot([x, x - 0.015], [height, height], color="#222222", linewidth=1, zorder=3)
    axes.annotate(
        label, (x + 0.05 * right, height), (7 * side, 0), textcoords="offset points", ha="left" if right else "right",
        va="center", fontsize=8, bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.8}, zorder=4,
    )  # fmt: skip


def _learning_curves(part: "SubFigure", view: _View) -> None:
    """Draw learning curves of the best settings, the median and the worst, without failed seeds."""
    axes = part.subplots()
    alive = [row for row in view.ranking if row.rank is not None]
    chosen = sorted({*range(min(CURVES, len(alive))), len(alive) // 2, len(alive) - 1})
    curves = {}
    for i in chosen:
        setting = alive[i].setting
        curve = (view.data.curves or ())[setting]
        words = ", ".join(sweeps.text(axis.column[setting]) for axis in view.axes)
        kept = np.isfinite(view.data.returns[setting])
        curves[f"{alive[i].rank}: {words}"] = curve._replace(values=curve.values[:, kept])
    kinds = plots.draw_curves(axes, curves)
    heading = "rank: " + ", ".join(plain_text(axis.name) for axis in view.axes)
    axes.legend(title=heading, title_fontsize=8, fontsize=8, framealpha=0.9, edgecolor="none", alignment="left")
    notes = ("line: interquartile mean of the seeds" + plots.BANDS[frozenset(kinds)],)
    caption(part, "Learning curves of the best settings, the median and the worst", notes, view.subtitle)


def _colours(view: _View) -> tuple["Colormap", "Normalize"]:
    """Return a colour map from light for the lowest to dark for the highest mean, so that good settings stand out."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("returns", colormaps["YlGnBu"](np.linspace(0.18, 1, 256)))
    return colours, Normalize(view.low, view.high, clip=True)


def _is_dark(rgba: Sequence[float]) -> bool:
    red, green, blue, _ = rgba
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.55


def _colour_bar(part: "SubFigure", axes: "Axes", drawn: "ScalarMappable", view: _View) -> None:
    """Draw a colour bar, with an arrow if some means are below its end; none if all seeds failed."""
    if np.isnan(view.means).all():
        return
    inches = part.bbox.height / part.get_dpi()
    bar = part.colorbar(drawn, ax=axes, extend="min" if view.clipped else "neither", pad=0.02, aspect=inches / 0.15)
    bar.set_label(f"interquartile mean of the {plain_text(view.measure)}", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def set_axis(axes: "Axes", of: Axis, which: str, inches: float) -> None:
    """Set scale, ticks and limits of the x- or y-axis; labels that do not fit a width in inches are rotated."""
    if of.scale == "log":
        getattr(axes, f"set_{which}scale")("log")
    ticks, labels = of.ticks()
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axis.set_ticks(ticks, labels)
    axis.set_ticks([], minor=True)
    axis.set_tick_params(labelsize=9)
    getattr(axes, f"set_{which}lim")(of.limits())
    low, high = of.fractions(of.limits())
    gaps = np.diff(of.fractions(ticks)) / (high - low) * inches
    lengths = np.array(list(map(len, labels)))
    if which == "x" and (gaps < 0.07 * (lengths[1:] + lengths[:-1]) / 2 + 0.06).any():
        for label in axis.get_ticklabels():
            label.set(rotation=35, horizontalalignment="right", rotation_mode="anchor")


def caption(part: "SubFigure", title: str, notes: Sequence[Any], subtitle: str) -> None:
    """Write the title of a picture and, below it, the subtitle and the notes that apply."""
    from matplotlib.transforms import ScaledTranslation

    words = textwrap.wrap(", ".join(note for note in notes if note), 175)
    lines = [plain_text(line) for line in (*subtitle.splitlines(), *words)]
    # The title reserves the height of the caption, because the layout ignores other text of a figure.
    part.suptitle(title + "\n" * len(lines), x=0.01, ha="left", fontsize=10, fontweight="bold")
    below = part.transSubfigure + ScaledTranslation(0, -21 / 72, part.dpi_scale_trans)
    part.text(0.01, 1, "\n".join(lines), va="top", fontsize=8, color="#555555", transform=below)


def plain_text(value: Any) -> str:
    """Format a name or value as text that matplotlib draws as it is; see `plots.plain_text`."""
    return plots.plain_text(sweeps.text(value))
