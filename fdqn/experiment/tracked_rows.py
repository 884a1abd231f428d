"""Rows of a run folder as points of a tracker: a curve for each seed and one for all, under the names of CleanRL or of
Stable-Baselines3.

A tracker shows what `metrics.csv` and `evaluations.csv` have, and nothing else: a point is a function of their rows.
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
"""Names of the columns of `metrics.csv` in each set of tags. Stable-Baselines3 has none for the mean Q-value.

"speed" is environment steps of a seed per second since the start of the run, "evaluation" the mean return of greedy
episodes in `evaluations.csv`.
"""

ENDS = ("return", "evaluation")
"""Columns whose aggregate has the ends of its interval, as `TAG_low` and `TAG_high`."""

MOST_SEEDS = 32
"""Most seeds that have a curve each. Every curve is a run of W&B or MLflow, a browser shows all at once, and single
curves hide the interval if there are more."""

_RESAMPLES = 500
"""Bootstrap resamples of an interval, as in `curve.png`."""


class Curve(NamedTuple):
    """A curve of a tracker."""

    name: str
    """Such as `seed-3`, `aggregate` or, in a sweep, `setting-2`."""
    learners: tuple[int, ...]
    """Learners whose interquartile mean it is."""
    aggregate: bool
    """True if its returns have an interval."""
    config: dict[str, Any]
    """Settings, and the seed of a single one."""


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
    """Finite values by tag, by name of the curve."""


def curves(settings: Settings, numbers: Sequence[int] | None = None) -> tuple[Curve, ...]:
    """Return the curves of a run: each seed, up to `MOST_SEEDS` of them, and the aggregate of all.

    A sweep has one aggregate for each setting instead; `numbers` are those of its settings in the whole sweep.
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
    return (*(each if settings.seeds <= MOST_SEEDS else ()), *((whole,) if settings.seeds > 1 else ()))


def _learners(settings: Sweep, number: int) -> range:
    return range(number * settings.seeds, (number + 1) * settings.seeds)


def points(
    last: Mapping[str, NDArray[np.float64]], report: Report, curves: Sequence[Curve], tags: Mapping[str, str]
) -> tuple[dict[str, NDArray[np.float64]], Points]:
    """Return the points of a report, and the last values of all columns, which are those to pass with the next report.

    The point of a seed is its value in the report. The point of an aggregate is the interquartile mean; where a seed
    has no value, its previous one counts, as in `curve.png`. Values that are not finite are left out.
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


def without(points: Points, held: Mapping[str, int]) -> Points:
    """Leave out the curves whose last step, in `held`, is not earlier than the points."""
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
        if name in ENDS:
            estimate = statistics.interval(own, resamples=_RESAMPLES)
            values[f"{tags[name]}_low"], values[f"{tags[name]}_high"] = float(estimate.low), float(estimate.high)
        values[tags[name]] = float(statistics.iqm(own))
    return values


def reader(path: Path, learners: int) -> Callable[[int], Iterator[Report]]:
    """Make a function `read(step)` that yields the reports up to a step which it has not yielded before.

    The rows up to that step must be written completely; later ones may still be written meanwhile.
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
    """Make a function of a step that returns the rows of a CSV file up to that step, by step, without those that it has
    returned before."""
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
    """Return the complete lines of a file from an offset on, with their ends; none if there is no file."""
    try:
        with files.opened(file, os.O_RDONLY) as descriptor, open(descriptor, "rb", closefd=False) as lines:
            lines.seek(offset)
            return [line for line in lines.read().splitlines(keepends=True) if line.endswith(b"\n")]
    except FileNotFoundError:
        return []
