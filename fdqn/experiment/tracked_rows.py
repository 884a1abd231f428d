"""Convert rows of a run folder to points of a tracker: a curve for each seed and one for their aggregate.

Points depend only on the rows of `metrics.csv` and `evaluations.csv`. Their tags are those of CleanRL
(https://docs.cleanrl.dev) or of Stable-Baselines3 (https://stable-baselines3.readthedocs.io/en/master/common/logger.html).
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fdqn.experiment.settings import Settings, Sweep, to_json
from fdqn.report import statistics
from fdqn.storage import files

TAGS: dict[str, dict[str, str]] = {
    "cleanrl": {
        "return": "charts/episodic_return",
        "length": "charts/episodic_length",
        "speed": "charts/SPS",
        "learning_rate": "charts/learning_rate",
        "epsilon": "charts/epsilon",
        "loss": "losses/td_loss",
        "q": "losses/q_values",
        "evaluation": "eval/episodic_return",
    },
    "sb3": {
        "return": "rollout/ep_rew_mean",
        "length": "rollout/ep_len_mean",
        "speed": "time/fps",
        "learning_rate": "train/learning_rate",
        "epsilon": "rollout/exploration_rate",
        "loss": "train/loss",
        "evaluation": "eval/mean_reward",
    },
}
"""Tags of the columns of `metrics.csv`, by set of tags. Stable-Baselines3 has no tag for the mean Q-value.

"speed" is the number of environment steps per seed and second since the start of the run. "evaluation" is the mean
return of the greedy episodes in `evaluations.csv`.
"""

WITH_INTERVAL = ("return", "evaluation")
"""Columns of returns, whose aggregate also has the ends of its interval: `TAG_low` and `TAG_high`."""

MAX_SEEDS = 32
"""Maximum number of seeds with a curve for each. A curve is a run in W&B or MLflow, and the curves of more seeds would
hide the interval."""

_RESAMPLES = 500
"""Bootstrap resamples of an interval, as in `curve.png`."""


class Curve(NamedTuple):
    """A curve of a tracker."""

    name: str
    """`seed-3`, `aggregate` or, in a sweep, `setting-2`."""
    learners: tuple[int, ...]
    """Learners of which the curve is the interquartile mean."""
    aggregate: bool
    """True if its returns have an interval."""
    config: dict[str, Any]
    """Settings; those of the curve of one seed name this seed."""


class Report(NamedTuple):
    """Rows of all learners at one step."""

    step: int
    """Environment steps of a seed."""
    seconds: float
    """Seconds since the start of the run."""
    columns: dict[str, NDArray[np.float64]]
    """Columns of `metrics.csv` and "evaluation", [S] each; NaN where a learner has no value."""


class Points(NamedTuple):
    """Values of all curves at one step."""

    step: int
    seconds: float
    values: dict[str, dict[str, float]]
    """Finite values, by name of the curve and by tag."""


def curves(settings: Settings, numbers: Sequence[int] | None = None) -> tuple[Curve, ...]:
    """Return the curves of a run: one for each seed, unless there are more than `MAX_SEEDS`, and their aggregate.

    A sweep has one aggregate for each setting instead; `numbers` are the numbers of these settings in the whole sweep.
    """
    if isinstance(settings, Sweep):
        numbers = range(len(settings.varied)) if numbers is None else numbers
        return tuple(
            Curve(f"setting-{number}", tuple(_learners(settings, k)), True, to_json(settings.at(k)))
            for k, number in enumerate(numbers)
        )
    config, learners = to_json(settings), range(settings.seeds)
    each = [Curve(f"seed-{settings.seed + i}", (i,), False, {**config, "seed": settings.seed + i}) for i in learners]
    whole = Curve("aggregate", tuple(learners), True, config)
    return (*(each if settings.seeds <= MAX_SEEDS else ()), *((whole,) if settings.seeds > 1 else ()))


def _learners(settings: Sweep, number: int) -> range:
    return range(number * settings.seeds, (number + 1) * settings.seeds)


def points(
    last: Mapping[str, NDArray[np.float64]], report: Report, curves: Sequence[Curve], tags: Mapping[str, str]
) -> tuple[dict[str, NDArray[np.float64]], Points]:
    """Return the last values of all columns, to be passed with the next report, and the points of this report.

    The point of a seed is its value in the report. The point of an aggregate is the interquartile mean over its seeds,
    where a seed without a value counts with its previous one. So does a failed seed, which `curve.png` excludes. NaN
    and infinite values are omitted.

    Args:
        last: last values of the previous reports, [S] by column; {} for the first report.
        report: rows of all learners at one step.
        curves: curves of the run.
        tags: one of the sets in `TAGS`.
    """
    speed = report.step / report.seconds if report.seconds else math.nan
    given = {"speed": np.full_like(report.columns["return"], speed), **report.columns}
    given = {name: given[name] for name in tags if name in given}
    filled = {name: np.where(np.isfinite(x), x, last.get(name, np.nan)) for name, x in given.items()}
    values = {
        curve.name: _aggregate(curve, filled, tags)
        if curve.aggregate
        else {tags[name]: float(x[curve.learners[0]]) for name, x in given.items()}
        for curve in curves
    }
    finite = {name: {tag: x for tag, x in each.items() if math.isfinite(x)} for name, each in values.items()}
    return {**last, **filled}, Points(report.step, report.seconds, finite)


def drop_held(points: Points, held: Mapping[str, int]) -> Points:
    """Remove the curves of which the tracker holds this step. `held` has the last step of each curve in the tracker."""
    values = {name: x for name, x in points.values.items() if x and points.step > held.get(name, -1)}
    return points._replace(values=values)


def _aggregate(curve: Curve, given: dict[str, NDArray[np.float64]], tags: Mapping[str, str]) -> dict[str, float]:
    """Return the interquartile mean of each column, and the ends of the intervals of returns."""
    values = {}
    for name, column in given.items():
        own = column[list(curve.learners)]
        own = own[np.isfinite(own)]
        if not len(own):
            continue
        if name in WITH_INTERVAL:
            estimate = statistics.interval(own, resamples=_RESAMPLES)
            values[f"{tags[name]}_low"], values[f"{tags[name]}_high"] = float(estimate.low), float(estimate.high)
        values[tags[name]] = float(statistics.iqm(own))
    return values


def reader(path: Path, learners: int) -> Callable[[int], Iterator[Report]]:
    """Return a function `read(step)` that yields the reports up to `step` that it has not yielded before.

    The rows up to `step` must be complete. Later rows may be incomplete.
    """
    metrics, evaluations = _blocks(path / "metrics.csv", learners), _blocks(path / "evaluations.csv", learners)

    def read(step: int) -> Iterator[Report]:
        evaluated = dict(evaluations(step))
        for at, columns in metrics(step):
            seconds = float(columns.pop("seconds")[0])
            more = {"evaluation": evaluated[at]["return"]} if at in evaluated else {}
            yield Report(at, seconds, {**columns, **more})

    return read


def _blocks(file: Path, learners: int) -> Callable[[int], list[tuple[int, dict[str, NDArray[np.float64]]]]]:
    """Return a function `read(step)` that returns the new rows of a CSV file up to `step`, as pairs (step, columns)."""
    offset, names = 0, list[str]()

    def read(step: int) -> list[tuple[int, dict[str, NDArray[np.float64]]]]:
        nonlocal offset, names
        found: list[tuple[int, dict[str, NDArray[np.float64]]]] = []
        lines = _lines(file, offset)
        if lines and not names:
            names, offset = lines[0].decode().strip().split(","), len(lines[0])
            lines = lines[1:]
        for i in range(0, len(lines) - learners + 1, learners):
            block = lines[i : i + learners]
            rows = [[float(cell or "nan") for cell in line.decode().strip().split(",")] for line in block]
            columns = dict(zip(names, np.array(rows).T, strict=True))
            at = int(columns.pop("step")[0])
            if at > step:
                break
            found.append((at, columns))
            offset += sum(map(len, block))
        return found

    return read


def _lines(file: Path, offset: int) -> list[bytes]:
    """Return the complete lines of a file after an offset, with their line breaks; [] if the file does not exist."""
    try:
        with files.opened(file, os.O_RDONLY) as descriptor, open(descriptor, "rb", closefd=False) as lines:
            lines.seek(offset)
            return [line for line in lines.read().splitlines(keepends=True) if line.endswith(b"\n")]
    except FileNotFoundError:
        return []
