"""Compare arms with the first one, as a record for JSON and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fdqn.experiment.arms import Arm, are_paired
from fdqn.experiment.comparison_text import percent_text, range_text
from fdqn.experiment.returns_csv import LARGEST
from fdqn.report import aggregates, comparison_plots, comparisons, permutation, power, statistics
from fdqn.report.comparison_plots import DrawnArm, Ends
from fdqn.report.comparisons import Comparison, Estimate
from fdqn.report.samples import Array


def compare(
    arms: Sequence[Arm], paired: bool | None = None, confidence: float = 0.95, optimum: float | None = None
) -> dict[str, Any]:
    """Summarise each arm and compare it with the first.

    Args:
        arms: at least two arms.
        paired: compare seed by seed; by default True if all arms have the same seeds.
        confidence: nominal coverage of the intervals.
        optimum: lowest return that counts as optimal; adds the optimality gap of each arm.

    Returns a record for JSON: "arms" has a summary of each arm, "comparisons" a comparison of each other arm with the
    first (see `comparisons.Comparison`). p-values of several comparisons are adjusted by Holm's method. Missing numbers
    are None.

    Raises ValueError for fewer than two arms, for paired arms with different seeds, and for an invalid confidence or
    optimum.
    """
    if len(arms) < 2:
        raise ValueError(f"arms: expected at least two, got {len(arms)}")
    if optimum is not None and math.isfinite(optimum) and abs(optimum) > LARGEST:
        raise ValueError(f"optimum: expected a number up to {LARGEST:g}, got {optimum!r}")
    paired = are_paired(arms) if paired is None else paired
    aligned = _aligned(arms) if paired else [arm.returns for arm in arms]
    compared = [comparisons.compare(aligned[0], x, paired, confidence) for x in aligned[1:]]
    adjusted = permutation.holm([found.p for found in compared])
    return {
        "paired": paired,
        "confidence": confidence,
        "arms": [_summary(arm, confidence, optimum) for arm in arms],
        "comparisons": [
            {"arm": arm.name, "baseline": arms[0].name, **_comparison(found, aligned[0], x, p)}
            for arm, found, x, p in zip(arms[1:], compared, aligned[1:], adjusted, strict=True)
        ],
    }


def with_short_names(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms with names that omit the folders common to all of them."""
    names = comparison_plots.short_names([arm.name for arm in arms])
    return [arm._replace(name=name) for arm, name in zip(arms, names, strict=True)]


def picture(file: Path | BinaryIO, arms: Sequence[Arm], record: dict[str, Any]) -> None:
    """Draw a comparison as a PNG: intervals, differences, learning curves and performance profiles."""
    compared: list[Any] = [None, *record["comparisons"]]
    drawn = [
        DrawnArm(
            arm.name,
            arm.returns,
            _ends(summary["iqm"]),
            _ends(summary["mean"]),
            None if found is None else _ends(found["iqm"]),
            None if found is None else _ends(found["mean"]),
            arm.curve,
        )
        for arm, summary, found in zip(arms, record["arms"], compared, strict=True)
    ]
    envs, measures = ({getattr(arm, key): None for arm in arms} for key in ("env", "measure"))
    from_runs = all(arm.env is not None for arm in arms)
    label = arms[0].measure if len(measures) == 1 and from_runs else "return"
    known = ", ".join(env for env in envs if env is not None)
    count = range_text([summary["seeds"] for summary in record["arms"]])
    how = "paired" if record["paired"] else "unpaired"
    title = f"{known}{': ' if known else ''}{len(arms)} arms of {count}, {how}"
    curve_label = "training return" if from_runs else "return"
    comparison_plots.comparison(file, drawn, label, curve_label, title, percent_text(record["confidence"]))


def _aligned(arms: Sequence[Arm]) -> list[Array]:
    """Return the returns of all arms in the order of the seeds of the first."""
    if any(arm.seeds is None for arm in arms):
        for arm in arms:
            if len(arm.returns) != len(arms[0].returns):
                raise ValueError(
                    f"paired: expected {len(arms[0].returns)} seeds as in {arms[0].name}, got {len(arm.returns)} in "
                    f"{arm.name}; pass --unpaired"
                )
        return [arm.returns for arm in arms]
    found = []
    for arm in arms:
        index = {seed: i for i, seed in enumerate(arm.seeds or ())}
        if index.keys() != set(arms[0].seeds or ()):
            raise ValueError(f"paired: expected the seeds of {arms[0].name}, got others in {arm.name}; pass --unpaired")
        found.append(arm.returns[[index[seed] for seed in arms[0].seeds or ()]])
    return found


def _summary(arm: Arm, confidence: float, optimum: float | None) -> dict[str, Any]:
    alive = arm.returns[np.isfinite(arm.returns)]
    middle = statistics.interval(alive, confidence)
    range_ = power.tolerance(alive)
    gap = None if optimum is None else aggregates.optimality_gap(alive, optimum, confidence)
    return {
        "name": arm.name,
        "measure": arm.measure,
        "env": arm.env,
        "steps": arm.steps,
        "seeds": len(alive),
        "failed": len(arm.returns) - len(alive),
        "iqm": {"value": _number(middle.iqm), "low": _number(middle.low), "high": _number(middle.high),
                "kind": middle.kind},
        "mean": _estimate(comparisons.mean_interval(alive, confidence)),
        **({} if gap is None else {"optimality_gap": _estimate(gap)}),
        "tolerance": None if range_ is None else range_._asdict(),
        "per_seed": [_number(x) for x in arm.returns],
    }  # fmt: skip


def _comparison(found: Comparison, first: Array, second: Array, adjusted: float) -> dict[str, Any]:
    spread = power.spread(first, second, found.paired)
    # Equal returns have a small spread, because their mean is rounded.
    if spread < 1e-12 * max(np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in (first, second)):
        spread = 0.0
    usable = math.isfinite(spread)
    least = power.detectable(spread, *found.seeds, paired=found.paired) if usable else math.nan
    half = power.seeds_needed(spread, least / 2, found.paired) if least > 0 else None
    return {
        "paired": found.paired,
        "seeds": list(found.seeds),
        "failed": list(found.failed),
        "iqm": _estimate(found.iqm),
        "mean": _estimate(found.mean),
        "improvement": _estimate(found.improvement),
        "p": _number(found.p),
        "p_adjusted": _number(adjusted),
        "spread": _number(spread),
        "detectable": _number(least),
        "half": _number(least / 2),
        "seeds_for_half": half,
    }


def _ends(x: dict[str, Any]) -> Ends:
    return Ends(x["value"], x["low"], x["high"], x.get("kind") == "range")


def _estimate(x: Estimate) -> dict[str, float | None]:
    return {"value": _number(x.value), "low": _number(x.low), "high": _number(x.high)}


def _number(x: Any) -> float | None:
    return float(x) if math.isfinite(x) else None
