"""Pictures of comparisons: intervals of each arm, differences from the first, learning curves, performance profiles."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from fdqn.report import aggregates, plots
from fdqn.report.plots import Curve
from fdqn.report.samples import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROFILE_SEEDS = 8
"""Minimum number of seeds per arm for performance profiles."""

MOST_ROWS = 40
"""Maximum number of arms that are drawn: the first one and those with the highest interquartile means."""

MOST_CURVES = 7
"""Maximum number of arms for which curves and profiles are drawn, one for each colour."""


NAME_WIDTH = 40
"""Maximum number of characters in a line of an arm's name."""


class Ends(NamedTuple):
    """An estimate and the ends of its interval, or of the range of the seeds; None for missing numbers."""

    value: float | None
    low: float | None
    high: float | None
    is_range: bool = False


class DrawnArm(NamedTuple):
    """An arm with its estimates and those of its difference from the first arm."""

    name: str
    returns: Array
    """[S], with NaN for failed seeds."""
    iqm: Ends
    mean: Ends
    iqm_difference: Ends | None = None
    """None for the first arm."""
    mean_difference: Ends | None = None
    curve: Curve | None = None


def comparison(
    file: Path | BinaryIO,
    arms: Sequence[DrawnArm],
    label: str = "return",
    curve_label: str = "training return",
    title: str = "",
    percent: str = "95%",
) -> None:
    """Write a PNG of `figure`.

    Args:
        file: file to write.
        arms, label, curve_label, title, percent: as in `figure`.

    Raises ValueError as `figure` does.
    """
    figure(arms, label, curve_label, title, percent).savefig(file, format="png")


def figure(
    arms: Sequence[DrawnArm],
    label: str = "return",
    curve_label: str = "training return",
    title: str = "",
    percent: str = "95%",
) -> "Figure":
    """Draw the arms of a comparison, each in one colour.

    The upper panels have a row per arm. The left one shows its seeds, its interquartile mean and its mean with their
    intervals; the right one shows the differences of both means from the first arm. Below are the learning curves, if
    every arm has one, and the performance profiles, if every arm has at least 8 seeds; both for at most 7 arms.

    Args:
        arms: the arms; at most 40 are drawn.
        label: name of the returns, on the axes.
        curve_label: name of the returns of the learning curves.
        title: title of the picture.
        percent: nominal coverage of the intervals of means and differences, for the captions.

    Raises ValueError for fewer than two arms.
    """
    if len(arms) < 2:
        raise ValueError(f"arms: expected at least two, got {len(arms)}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = _shown(arms)
    names = short_names([arm.name for arm in shown])
    lower = _lower_panels(shown)
    height = 1.5 + 0.55 * max(2, len(shown))
    drawn = Figure(figsize=(12, height + 4.2 * bool(lower)), dpi=150, layout="constrained")
    FigureCanvasAgg(drawn)
    left_out = "" if len(shown) == len(arms) else f"the first and the best {len(shown) - 1} of {len(arms)} arms"
    drawn.suptitle(plots.plain_text(", ".join(filter(None, (title, left_out)))), x=0.01, ha="left", fontweight="bold")
    rows = drawn.subfigures(2, 1, height_ratios=(height, 4.2), squeeze=False)[:, 0] if lower else [drawn]
    own, difference = rows[0].subplots(1, 2, width_ratios=(1.35, 1), sharey=True)
    _draw_arms(own, shown, names, label, percent)
    _draw_differences(difference, shown, label, percent)
    if lower:
        for axes, panel in zip(rows[1].subplots(1, len(lower), squeeze=False)[0], lower, strict=True):
            if panel == "curves":
                _draw_curves(axes, shown, names, curve_label)
            else:
                _draw_profiles(axes, shown, names, label)
    return drawn


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names without the folders common to all of them."""
    parts = [name.encode(errors="backslashreplace").decode().split("/") for name in names]
    common = 0
    while all(len(part) > common + 1 and part[: common + 1] == parts[0][: common + 1] for part in parts):
        common += 1
    return ["/".join(part[common:]) for part in parts]


def _shown(arms: Sequence[DrawnArm]) -> list[DrawnArm]:
    """Return the first arm and those with the highest interquartile means, in their order."""
    values = np.array([np.nan if arm.iqm.value is None else arm.iqm.value for arm in arms[1:]])
    best = 1 + np.argsort(-values, kind="stable")[: MOST_ROWS - 1]
    return [arms[0], *(arms[i] for i in sorted(best))]


def _lower_panels(arms: Sequence[DrawnArm]) -> list[str]:
    if len(arms) > MOST_CURVES:
        return []
    curves = ["curves"] if all(arm.curve is not None and arm.curve.values.size for arm in arms) else []
    profiles = all(np.isfinite(arm.returns).sum() >= PROFILE_SEEDS for arm in arms)
    return [*curves, *(["profiles"] if profiles else [])]


def _draw_arms(axes: "Axes", arms: Sequence[DrawnArm], names: Sequence[str], label: str, percent: str) -> None:
    """Draw a row for each arm, with its estimates and its seeds."""
    for row, arm in enumerate(arms):
        colour = plots.look(row)[0]
        seeds = arm.returns[np.isfinite(arm.returns)]
        axes.plot(seeds, np.full(len(seeds), row + 0.32), "|", color=colour, alpha=0.45, markersize=6, zorder=1)
        _draw_estimates(axes, row, colour, arm.iqm, arm.mean)
    lines = [textwrap.fill(name.replace(" ", "\n", 1), NAME_WIDTH, replace_whitespace=False) for name in names]
    rows = [plots.plain_text(line) for line in lines]
    for row, text in enumerate(axes.set_yticks(range(len(arms)), rows, fontsize=9)):
        text.label1.set_color(plots.look(row)[0])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.set_xlabel(plots.plain_text(label))
    ranges = "\ndashed: range of fewer than 5 seeds; ticks: seeds" if any(arm.iqm.is_range for arm in arms) else ""
    bars = "" if all(arm.iqm.is_range for arm in arms) else f"; bars: {percent} intervals"
    _caption(axes, f"dot: interquartile mean, diamond: mean{bars}{ranges or '; ticks: seeds'}")


def _draw_differences(axes: "Axes", arms: Sequence[DrawnArm], label: str, percent: str) -> None:
    """Draw the differences of each arm from the first."""
    axes.axvline(0, color="#888888", linewidth=1, zorder=0)
    for row, arm in enumerate(arms):
        if arm.iqm_difference is None or arm.mean_difference is None:
            axes.text(0, row, "  baseline", va="center", ha="left", fontsize=8, color="#555555")
        else:
            _draw_estimates(axes, row, plots.look(row)[0], arm.iqm_difference, arm.mean_difference)
    axes.set_xlabel(plots.plain_text(f"difference of {label}"))
    axes.tick_params(axis="y", labelleft=False)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -0.05 * (high - low)), max(high, 0.25 * (high - low)))
    intervals = any(arm.iqm_difference is not None and arm.iqm_difference.low is not None for arm in arms)
    _caption(axes, f"difference from the first arm, {percent if intervals else 'without'} intervals")


def _draw_estimates(axes: "Axes", row: int, colour: str, iqm: Ends, mean: Ends) -> None:
    """Draw the interquartile mean above the mean."""
    for offset, ends, marker, width in ((-0.12, iqm, "o", 3.0), (0.1, mean, "D", 1.5)):
        if ends.value is None:
            continue
        if ends.low is not None and ends.high is not None:
            style = (0, (1.5, 1)) if ends.is_range else "-"
            axes.plot([ends.low, ends.high], [row + offset] * 2, color=colour, linewidth=width, linestyle=style)
        face = colour if marker == "o" else "white"
        axes.plot(
            ends.value, row + offset, marker, color=colour, markerfacecolor=face, markersize=7 if marker == "o" else 5
        )


def _draw_curves(axes: "Axes", arms: Sequence[DrawnArm], names: Sequence[str], label: str) -> None:
    """Draw the learning curves."""
    curves = {name: arm.curve for name, arm in zip(names, arms, strict=True) if arm.curve is not None}
    note = plots.BANDS[frozenset(plots.draw_curves(axes, curves, label))]
    _caption(axes, f"learning curves, line: interquartile mean{note}")


def _draw_profiles(axes: "Axes", arms: Sequence[DrawnArm], names: Sequence[str], label: str) -> None:
    """Draw the fraction of seeds of each arm above each return."""
    everything = np.concatenate([arm.returns[np.isfinite(arm.returns)] for arm in arms])
    margin = 0.03 * float(np.ptp(everything)) or 1.0
    thresholds = np.linspace(everything.min() - margin, everything.max() + margin, 400)
    for number, (name, arm) in enumerate(zip(names, arms, strict=True)):
        colour, style = plots.look(number)
        found = aggregates.profile(arm.returns, thresholds)
        axes.fill_between(thresholds, found.low, found.high, color=colour, alpha=0.15, linewidth=0, step="post")
        axes.plot(
            thresholds,
            found.fraction,
            color=colour,
            linestyle=style,
            linewidth=2,
            label=plots.plain_text(name),
            drawstyle="steps-post",
        )
    axes.set_xlabel(plots.plain_text(f"{label} r"))
    axes.set_ylabel("fraction of seeds above r")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(thresholds[0], thresholds[-1])
    axes.legend(frameon=False, loc="lower left", fontsize=8)
    _caption(axes, "performance profiles, band: pointwise 95% intervals")


def _caption(axes: "Axes", text: str) -> None:
    axes.set_title(text, loc="left", fontsize=8, color="#555555")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
