"""Sentences and numbers that describe the record of `comparing.compare`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fdqn.experiment.arms import Arm, are_paired, mismatch
from fdqn.report import power

FRACTIONS = (0.5, 0.75, 0.8, 0.9, 0.95)
"""Fractions of further seeds for which the seeds that a tolerance interval needs are listed."""


MOST_SENTENCES = 6
"""Maximum number of arms that are described in a sentence each."""


def notes(arms: Sequence[Arm], record: dict[str, Any]) -> list[str]:
    """Describe the data of a comparison in sentences: pairing, returns, failed seeds, settings of sweeps."""
    found = []
    if record["paired"]:
        how = "all arms have the same seeds" if are_paired(arms) else "seeds are paired in their order"
        found.append(f"paired: {how}; --unpaired compares them as independent samples")
    elif are_paired(arms):
        found.append("unpaired, although all arms have the same seeds")
    else:
        found.append("unpaired: the seeds of the arms are different or unknown")
    measures = list(dict.fromkeys(arm.measure for arm in arms))
    found.append("returns: " + "; ".join(
        measure if len(measures) == 1 else f"{measure} ({', '.join(a.name for a in arms if a.measure == measure)})"
        for measure in measures
    ))  # fmt: skip
    if text := mismatch(arms):
        found.append(f"compared anyway: expected {text}")
    if failed := [f"{arm['failed']} of {arm['name']}" for arm in record["arms"] if arm["failed"]]:
        pairs = ", in paired comparisons with their counterparts" if record["paired"] else ""
        found.append(f"failed seeds, excluded from all numbers{pairs}: {', '.join(failed)}")
    if any(arm.settings > 1 for arm in arms):
        found.append(
            "settings of a sweep: the returns that selected a setting are biased upwards; train it again on fresh seeds"
        )
    return found


def conclusions(record: dict[str, Any]) -> list[str]:
    """Describe the tolerance intervals of the arms and the power of the comparisons in sentences."""
    return [*_tolerance_texts(record["arms"]), *_power_texts(record["comparisons"])]


def _tolerance_texts(arms: list[dict[str, Any]]) -> list[str]:
    """Describe the tolerance interval of each arm, or the number of seeds that it needs."""
    texts = [_tolerance_text(arm) for arm in arms if arm["tolerance"] is not None]
    if len(texts) > MOST_SENTENCES:
        texts = [f"tolerance intervals of {len(texts)} arms: see --json"]
    if few := [arm for arm in arms if arm["tolerance"] is None]:
        needs = ", ".join(f"{power.tolerance_seeds(x)} to cover {x:.0%}" for x in FRACTIONS)
        names = ", ".join(arm["name"] for arm in few) if len(few) <= MOST_SENTENCES else f"{len(few)} arms"
        count = range_text([arm["seeds"] for arm in few])
        texts.append(f"tolerance interval: not available with {count} ({names}); it needs {needs} of further seeds")
    return texts


def _tolerance_text(arm: dict[str, Any]) -> str:
    found, digits = arm["tolerance"], decimals([x for x in arm["per_seed"] if x is not None])
    low, high = (number_text(found[key], digits) for key in ("low", "high"))
    returns = f"between {low} and {high}" if low != high else f"of {low}"
    fraction = f"at least {math.floor(100 * found['fraction'])}% of further seeds have returns {returns}"
    return f"{arm['name']}: {fraction} (tolerance interval of {range_text([arm['seeds']])}, 95% confidence)"


def _power_texts(compared: list[dict[str, Any]]) -> list[str]:
    """Describe the differences that the numbers of seeds can show, and the seeds that half of each needs."""
    if len(compared) <= MOST_SENTENCES:
        return [_power_text(found) for found in compared]
    known = [found for found in compared if found["detectable"]]
    if not known:
        return ["power: not available for these seeds"]
    least, most = (f([x["detectable"] for x in known]) for f in (min, max))
    digits = decimals([least], 3)
    seeds = range_text([n for found in known for n in found["seeds"]])
    half = range_text([found["seeds_for_half"] for found in known])
    return [
        f"with their spreads {seeds} per arm show differences of the mean from the first arm above "
        f"{number_text(least, digits)} (smallest) to {number_text(most, digits)} (largest; 80% power at the 5% level); "
        f"half of these differences need {half} per arm"
    ]


def _power_text(compared: dict[str, Any]) -> str:
    seeds, paired = compared["seeds"], compared["paired"]
    start = f"{compared['arm']} against {compared['baseline']}: "
    if compared["detectable"] is None:
        return f"{start}power is not available with fewer than two seeds in an arm"
    if compared["detectable"] == 0:
        what = "the differences do" if paired else "the returns do"
        return f"{start}power is not available, because {what} not vary over seeds"
    count, per_arm = " and ".join(map(str, dict.fromkeys(seeds))) + " seeds", "" if paired else " per arm"
    digits = decimals([compared["spread"]], 3)
    spread, least, half = (number_text(compared[x], digits) for x in ("spread", "detectable", "half"))
    return (
        f"{start}with this spread (standard deviation{' of the differences' if paired else ''} {spread}) "
        f"{count}{per_arm} show differences of the mean above {least} (80% power at the 5% level); a difference of "
        f"{half} needs {range_text([compared['seeds_for_half']])}{per_arm}"
    )


def range_text(seeds: Sequence[int]) -> str:
    """Format numbers of seeds as `1 seed`, `5 seeds` or `2 to 4 seeds`."""
    low, high = min(seeds), max(seeds)
    return f"{low:,} to {high:,} seeds" if low < high else f"{low:,} seed{'' if low == 1 else 's'}"


def percent_text(confidence: float) -> str:
    """Format a confidence such as 95%. One below 1 is never 100%."""
    text = f"{100 * confidence:.10g}%"
    return f"{100 * confidence:.16g}%" if text == "100%" else text


def decimals(values: Sequence[float], significant: int = 2) -> int:
    """Return the number of decimals that distinguishes the values: one, or more for a small spread."""
    spread = float(np.ptp(values)) if len(values) > 1 else abs(float(values[0])) if values else 0.0
    return 1 if not spread > 0 else min(6, max(1, significant - 1 - math.floor(math.log10(spread))))


def number_text(x: float | None, digits: int) -> str:
    """Format a number; "-" if it is missing."""
    if x is None:
        return "-"
    text = f"{x:.{digits}f}"
    return text if float(text) else text.removeprefix("-")


def estimate_text(x: dict[str, Any], digits: int, signed: bool = False) -> str:
    """Format an estimate as `12.0 [10.0, 14.0]`, with `range` before the ends for fewer than 5 seeds."""
    value, low, high = (number_text(x[key], digits) for key in ("value", "low", "high"))
    sign = "+" if signed and x["value"] is not None and x["value"] > 0 and float(value) else ""
    ends = "" if x["low"] is None else f" [{'range ' if x.get('kind') == 'range' else ''}{low}, {high}]"
    return f"{sign}{value}{ends}"


def p_text(p: float | None) -> str:
    """Format a p-value."""
    return "-" if p is None else f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"
