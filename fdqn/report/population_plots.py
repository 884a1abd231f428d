"""Picture of population based training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fdqn.report import plots, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

SEEDS = 4
"""Maximum number of seeds whose copies are drawn."""

_WIDTH = 10.0  # inches
_PANELS = 3  # in a row
_MAP = "viridis"
_GREY = "#bbbbbb"
_STEPS = "environment steps per seed"


class History(NamedTuple):
    """Members of population based training over time. Of M columns, `k * seeds + s` is member k of seed s."""

    curve: plots.Curve
    """Training returns [P, M] at P reports."""
    steps: NDArray[np.int64]
    """[N], environment steps at which the steps of population based training were taken."""
    sources: NDArray[np.int64]
    """[N, M], the column that each member copied; its own if it did not copy."""
    values: Mapping[str, NDArray[np.float64]]
    """[N + 1, M] by name, the hyper-parameters of the members at the start and after each step."""
    best: Sequence[int | None]
    """Column of the best member of each seed at the end; None if all members have failed."""
    seeds: Sequence[int]
    """[S], names of the seeds."""


def ancestors(
    reports: NDArray[np.int64], steps: NDArray[np.int64], sources: NDArray[np.int64], column: int
) -> NDArray[np.int64]:
    """Return the column [P] that held the ancestor of a final member before each report, at the steps `reports` [P]."""
    held = [column]
    for source in sources[::-1]:
        held.append(int(source[held[-1]]))
    return np.array(held[::-1])[_interval(reports, steps)]


def write(file: Path | BinaryIO, given: History, title: str = "", subtitle: str = "") -> None:
    """Write the PNG of `figure`."""
    figure(given, title, subtitle).savefig(file, format="png")


def figure(given: History, title: str = "", subtitle: str = "") -> "Figure":
    """Draw training returns and hyper-parameters over time, and below them which member copied which.

    The ancestors of the best member of each seed are highlighted. In the lower panel, each member of the first `SEEDS`
    seeds has a row, coloured by its training return. A member without a return at a report keeps its previous one.
    """
    panels, seeds = 1 + len(given.values), min(len(given.seeds), SEEDS)
    given = given._replace(curve=given.curve._replace(values=plots.filled(given.curve.values)))
    columns = min(panels, _PANELS)
    rows, members = -(-panels // columns), given.sources.shape[1] // len(given.seeds)
    heights = [2.6 * rows, 1.0 + max(0.12 * (members + 1), 0.35) * seeds]
    drawn = _empty(sum(heights) + 0.7)
    top, bottom = drawn.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    axes = list(top.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.remove()
    _draw_returns(axes[0], given)
    for own, (name, values) in zip(axes[1:], given.values.items(), strict=False):
        _draw_values(own, given, name, values)
    handles, labels = axes[0].get_legend_handles_labels()
    if labels:
        top.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    drawn.suptitle(plots.plain_text(title), x=0.01, ha="left", fontweight="bold")
    note = "coloured: ancestors of the best member of each seed; grey: all members"
    top.suptitle(plots.plain_text(f"{subtitle}\n{note}"), x=0.01, ha="left", fontsize=8, color="#555555")
    _draw_copies(bottom, given, seeds)
    return drawn


def _draw_returns(axes: "Axes", given: History) -> None:
    axes.plot(given.curve.steps, given.curve.values, color=_GREY, linewidth=0.5)
    for label, colour, held in _lineages(given):
        path = given.curve.values[np.arange(len(held)), held]
        axes.plot(given.curve.steps, path, color=colour, label=label, **_line(given))
    _finish(axes, given, "training return")


def _draw_values(axes: "Axes", given: History, name: str, values: NDArray[np.float64]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    before = _interval(given.curve.steps, given.steps)
    steps = [0, *given.curve.steps]
    height = values[before]
    axes.step(steps, np.concatenate([height[:1], height]), where="pre", color=_GREY, linewidth=0.5)
    for _, colour, held in _lineages(given):
        path = values[before, held]
        axes.step(steps, [path[0], *path], where="pre", color=colour, **_line(given))
    if values.min() > 0 and values.max() >= 10 * values.min():
        axes.set_yscale("log")
        decades = np.log10(values.max() / values.min())
        subs = (1, 2, 5) if decades < 2 else (1, 3) if decades < 4 else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: sweeps.text(float(f"{tick:.6g}"))))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.08)
    _finish(axes, given, name.replace("_", " "))


def _lineages(given: History) -> list[tuple[str, str, NDArray[np.int64]]]:
    """Return the label, the colour and the columns [P] of the ancestors of the best member of each seed.

    If there are more seeds than colours, all share one colour and one label.
    """
    many = _are_many(given)
    found: list[tuple[str, str, NDArray[np.int64]]] = []
    for seed, column in enumerate(given.best):
        if column is not None:
            held = ancestors(given.curve.steps, given.steps, given.sources, column)
            label = ("" if found else "seeds") if many else f"seed {given.seeds[seed]}"
            found.append((label, plots.COLOURS[0 if many else seed], held))
    return found


def _line(given: History) -> dict[str, Any]:
    """Return the look of the line of one seed."""
    return {"linewidth": 0.7, "alpha": 0.6} if _are_many(given) else {"linewidth": 1.5}


def _are_many(given: History) -> bool:
    """Return True for more seeds than colours."""
    return len(given.seeds) > len(plots.COLOURS)


def _draw_copies(part: Any, given: History, seeds: int) -> None:
    """Draw a row for each member, grouped by seed, and for each copy an arrow from the source to the member."""
    from matplotlib.collections import LineCollection

    axes, members, end = part.subplots(), given.sources.shape[1] // len(given.seeds), given.curve.steps
    starts, colours = np.concatenate([[0], end[:-1]]), _colours(given.curve.values)
    gap = members + 1
    place = {
        member * len(given.seeds) + seed: -seed * gap - member for seed in range(seeds) for member in range(members)
    }
    held = [
        ancestors(end, given.steps, given.sources, column)
        for column in given.best
        if column in place and column is not None
    ]
    for column, y in place.items():
        thick = np.any([own == column for own in held], axis=0) if held else np.zeros(len(end), bool)
        segments = [[(a, y), (b, y)] for a, b in zip(starts, end, strict=True)]
        lines = LineCollection(
            segments, cmap=_MAP, norm=colours, linewidths=np.where(thick, 5.0, 1.5), antialiaseds=False
        )
        lines.set_array(given.curve.values[:, column])
        axes.add_collection(lines)
    arrow: dict[str, Any] = dict(arrowstyle="->", color="#333333", linewidth=0.7, shrinkA=0, shrinkB=0)
    for step, sources in zip(given.steps, given.sources, strict=True):
        for seed in range(seeds):
            copies = [column for column in place if column % len(given.seeds) == seed and sources[column] != column]
            for number, column in enumerate(copies):  # side by side
                x = step + (number - (len(copies) - 1) / 2) * 0.006 * end[-1]
                axes.annotate("", xy=(x, place[column]), xytext=(x, place[int(sources[column])]), arrowprops=arrow)
    axes.set_ylim(min(place.values()) - 1, 1)
    axes.set_yticks(
        [-seed * gap - (members - 1) / 2 for seed in range(seeds)], [f"seed {name}" for name in given.seeds[:seeds]]
    )
    axes.tick_params(axis="y", length=0)
    _finish(axes, given, "")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    shown = f" of the first {seeds} of {len(given.seeds)} seeds" if seeds < len(given.seeds) else ""
    axes.set_title(
        f"rows: members{shown}, setting 0 at the top; thick: ancestors of the best member; arrows: copies",
        loc="left",
        fontsize=8,
        color="#555555",
    )
    bar = part.colorbar(_mappable(colours), ax=axes, pad=0.01, aspect=40)
    bar.set_label("training return", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _interval(reports: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of steps of population based training before each report [P]."""
    return np.searchsorted(steps, reports, side="left")


def _empty(height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(_WIDTH, height), dpi=150, layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def _finish(axes: "Axes", given: History, label: str) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel(_STEPS, fontsize=8)
    axes.set_ylabel(plots.plain_text(label), fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_xlim(0, max(given.curve.steps[-1], 1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def _colours(values: NDArray[np.float64]) -> "Normalize":
    """Return a scale of colours from the lowest to the highest value."""
    from matplotlib.colors import Normalize

    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    return Normalize(low, high if high > low else low + 1.0)


def _mappable(colours: "Normalize") -> Any:
    from matplotlib.cm import ScalarMappable

    return ScalarMappable(colours, _MAP)
