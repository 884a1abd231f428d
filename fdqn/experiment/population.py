"""Population based training of the settings of a sweep: its steps during a run, and its results.

Each seed has its own population, so that seeds stay independent. A member is a learner of the run, and each member of a
population starts with one of the settings. Every `pbt_every` environment steps the worst members of a population copy
the parameters and hyper-parameters of one of the best, and the copied hyper-parameters are perturbed; see
`training.populations`. population.csv has a row for each member and step.

The hyper-parameters of a member over time are a schedule that was found during training. So settings are not ranked:
the result is the best member of each seed.
"""

import csv
import io
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fdqn import compile, training, tree
from fdqn.experiment import history, results
from fdqn.experiment.settings import Sweep, task
from fdqn.report import plots
from fdqn.storage import files
from fdqn.training import populations
from fdqn.types import Hyper

FROM_ONE = ("gamma", "adam_beta1", "adam_beta2", "rmsprop_decay", "learning_rate_decay")
"""Hyper-parameters close to 1, whose distance to 1 is perturbed."""


def evolution(
    path: Path, settings: Sweep, program: training.Program
) -> Callable[[training.TrainState, int], training.TrainState]:
    """Return the argument `between` of `training.run` that takes the steps of population based training.

    A step is due at the first report after each multiple of `pbt_every` environment steps. Members are ranked by the
    mean return of their last 100 episodes, or of all since their last copy. A step depends only on the state, so a
    resumed run repeats it exactly.
    """

    def evolved(state: training.TrainState, step: int) -> training.TrainState:
        if not step or not is_due(step, settings.pbt_every, program.config.env_steps):
            return state
        new, source = populations.evolve(
            state,
            populations.scores(state, state.metrics.returns[:, :-1].double().nanmean(-1)),
            populations.noise(state.key, step // program.config.env_steps, len(settings.bounds), settings.seeds),
            settings.bounds,
            groups=settings.seeds,
            from_one=FROM_ONE,
        )
        history.add_evolution(path, settings, step, source, _numbers(settings, new.hyper))
        # Compiled functions are bound to the memory of the state.
        return compile.donate(lambda _: new)(state) if settings.compiles else new

    return evolved


def is_due(step: int, every: int, env_steps: int) -> bool:
    """Return True if a multiple of `every` lies in the last training iteration, which took `env_steps` steps."""
    return step // every > (step - env_steps) // every


def _numbers(settings: Sweep, hyper: Hyper) -> dict[str, Tensor]:
    """Return the varied hyper-parameters [M] of all members by name, in the order of the sweep."""
    known = {**hyper._asdict(), **hyper.numbers}
    return {name: known[name] for name in settings.varied[0]}


def record(settings: Sweep, hyper: Hyper, summary: dict[str, Any]) -> dict[str, Any]:
    """Return `population` of summary.json: the best member of each seed, its final hyper-parameters, and its returns.

    The best member has the highest mean return of its last 100 episodes, or of all since its last copy. Its greedy
    returns come from other episodes, which did not select it. `learner` is None if all members of a seed have failed.
    """
    columns = {name: x.tolist() for name, x in _numbers(settings, hyper).items()}
    learners = [_best(settings, seed, summary) for seed in range(settings.seeds)]
    best = [
        {
            "seed": settings.seed + seed,
            "learner": learner,
            "setting": None if learner is None else learner // settings.seeds,
            "values": None if learner is None else {name: _rounded(x[learner]) for name, x in columns.items()},
        }
        for seed, learner in enumerate(learners)
    ]
    return with_returns(best, summary)


def with_returns(best: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    """Return the best members together with their returns in the summary, as in `record`."""
    learners = [member["learner"] for member in best]
    returns: dict[str, Any] = {
        name: results.seeds_record([None if i is None else summary[name]["per_seed"][i] for i in learners])
        for name in ("final_return", "train_return", "gymnasium_return")
        if name in summary
    }
    return {"best": best, **returns}


def _best(settings: Sweep, seed: int, summary: dict[str, Any]) -> int | None:
    """Return the learner of one seed with the highest training return; None if all have failed."""
    returns, failed = summary["train_return"]["per_seed"], summary["failed_seeds"]
    known = [i for i in range(seed, settings.learners, settings.seeds) if i not in failed]
    return max(known, key=lambda i: -math.inf if returns[i] is None else returns[i], default=None)


def _rounded(x: float) -> float:
    """Round a number to the digits of single precision."""
    return x if isinstance(x, int) else float(f"{x:.7g}")


class Population(NamedTuple):
    """Results of population based training.

    Learner `k * seeds + s` is a member of the population of seed s, counted from 0. It starts with setting k.
    """

    path: Path
    settings: Sweep
    summary: dict[str, Any]
    """Content of `summary.json`."""
    curve: plots.Curve
    """Training returns [P, M] of the M learners at the P reports."""
    steps: NDArray[np.int64]
    """[N], environment steps per seed at which the steps of population based training were taken."""
    sources: NDArray[np.int64]
    """[N, M], the learner that each learner copied; itself if it did not copy."""
    values: dict[str, NDArray[np.float64]]
    """[N + 1, M] by name, the hyper-parameters of the learners at the start and after each step."""

    @property
    def measure(self) -> str:
        """Name of the reported returns: "greedy", or the name of the Gymnasium environment of the evaluation."""
        return self.summary["gymnasium_return"]["env"] if "gymnasium_return" in self.summary else "greedy"

    @property
    def copies(self) -> int:
        """Number of copies that were made."""
        return int((self.sources != np.arange(self.settings.learners)).sum())

    def best(self) -> list[dict[str, Any]]:
        """Return the best member of each seed by training return, with its final hyper-parameters and its returns.

        `learner` is its position in `Run.params`, so that `fdqn.Run.load(path).policy(learner)` is its policy.
        """
        found = self.summary["population"]
        returns, trained = found[self._key]["per_seed"], found["train_return"]["per_seed"]
        return [
            {**member, "return": returns[seed], "train_return": trained[seed]}
            for seed, member in enumerate(found["best"])
        ]

    def estimate(self) -> dict[str, Any]:
        """Return the interquartile mean over seeds of the returns of the best members, with its interval."""
        return self.summary["population"][self._key]

    def record(self) -> dict[str, Any]:
        """Return the best members and the interquartile mean of their returns as a record for JSON."""
        own = {"pbt_every": self.settings.pbt_every, "pbt_steps": len(self.steps), "copies": self.copies}
        found = {"measure": self.measure, "best": self.best(), "return": self.estimate()}
        return {"sweep": str(self.path), **own, **found}

    def lineage(self) -> plots.Curve:
        """Return the training returns [P, S] of the ancestors of the best member of each seed.

        The ancestor at a report is the learner that held the parameters from which those of the best member were
        trained. Seeds whose members have all failed are left out.
        """
        return _lineage(self.curve, self.steps, self.sources, self.summary["population"])

    def schedules(self) -> dict[str, plots.Curve]:
        """Return by name the numbers [P, S] of these ancestors in the time before each report."""
        before = np.searchsorted(self.steps, self.curve.steps, side="left")
        own = {name: self.curve._replace(values=values[before]) for name, values in self.values.items()}
        return {name: _lineage(x, self.steps, self.sources, self.summary["population"]) for name, x in own.items()}

    def picture(self) -> bytes:
        """Draw the hyper-parameters of all learners over time, and which learner copied which, as a PNG."""
        from fdqn.report import population_plots

        drawn, given = io.BytesIO(), self.settings
        last = [x["learner"] for x in self.best()]
        seeds = range(given.seed, given.seed + given.seeds)
        history = population_plots.History(self.curve, self.steps, self.sources, self.values, last, seeds)
        text = f"{len(given.varied)} members x {given.seeds} seeds, {self.summary['steps']:,} steps"
        found = results.interval_text(self.estimate())
        subtitle = f"{text}; {self.measure} return of the best members: {found}"
        population_plots.write(drawn, history, task(given), subtitle)
        return drawn.getvalue()

    @property
    def _key(self) -> str:
        return "gymnasium_return" if "gymnasium_return" in self.summary else "final_return"


def _lineage(
    curve: plots.Curve, steps: NDArray[np.int64], sources: NDArray[np.int64], found: dict[str, Any]
) -> plots.Curve:
    from fdqn.report import population_plots

    learners = [x["learner"] for x in found["best"] if x["learner"] is not None]
    held = [population_plots.ancestors(curve.steps, steps, sources, learner) for learner in learners]
    rows = np.arange(len(curve.steps))
    values = [curve.values[rows, own] for own in held]
    return curve._replace(values=np.stack(values, 1) if values else np.zeros((len(rows), 0)))


def draw_curve(file: BinaryIO, path: Path, settings: Sweep, summary: dict[str, Any]) -> None:
    """Draw the training returns of the ancestors of the best member of each seed as a PNG."""
    curve, found = results.read_curve(path), summary["population"]
    steps, sources = _steps_and_sources(_table(path, settings))
    text = (
        f"{settings.seeds} seeds: ancestors of the best of {len(settings.varied)} members by training return; greedy "
        f"return of the best members: {results.interval_text(found['final_return'])}"
    )
    plots.learning_curves(file, {task(settings): {"": _lineage(curve, steps, sources, found)}}, text)


def is_population(path: Path) -> bool:
    """Return True if a folder is a run with population based training."""
    try:
        return bool(results.read_config(path)["settings"].get("pbt_every"))
    except ValueError:
        return False


def read(path: Path) -> Population:
    """Read the results of population based training. Raises ValueError, naming the file, if there are none."""
    run = results.read(path)
    given = run.settings
    if not isinstance(given, Sweep) or not given.pbt_every:
        raise ValueError(f"population: expected a run with population based training, got {path}")
    _check_summary(path, run.summary, given)
    table = _table(path, given)
    _check_steps(path, table[:, :, 0], run.curve.steps, given.pbt_every)
    values = {
        name: np.concatenate([_at_start(given, name)[None], table[:, :, 3 + i]])
        for i, name in enumerate(given.varied[0])
    }
    return Population(path, given, run.summary, run.curve, *_steps_and_sources(table), values)


def _steps_and_sources(table: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return table[:, 0, 0].astype(np.int64), table[:, :, 2].astype(np.int64)


def _table(path: Path, settings: Sweep) -> NDArray[np.float64]:
    """Read population.csv as [N, M, 3 + names]: step, learner, source, hyper-parameters. No file means no steps.

    Raises ValueError for numbers that are not finite, and for sources that are not among the learners of a seed.
    """
    file, columns = path / history.POPULATION, 3 + len(settings.varied[0])
    try:
        text = files.read(file).decode() if file.exists() else ""
        rows = list(csv.reader(io.StringIO(text, newline="")))[1:]
        table = np.array(rows, dtype=np.float64).reshape(-1, settings.learners, columns)
        if not np.isfinite(table).all():
            raise ValueError("expected finite numbers")
    except (OSError, ValueError, csv.Error):
        raise ValueError(
            f"population: expected {columns} numbers in rows of {settings.learners} learners in {file}, got others"
        ) from None
    seeds = np.arange(settings.learners) % settings.seeds
    inside = (table[:, :, 2] >= 0) & (table[:, :, 2] < settings.learners)
    if not (inside & (table[:, :, 2] % settings.seeds == seeds)).all():
        raise ValueError(f"population: expected sources among the learners of the same seed in {file}, got others")
    return table


def _check_steps(path: Path, steps: NDArray[np.float64], reports: NDArray[np.int64], every: int) -> None:
    """Raise ValueError unless the steps [N, M] of population.csv are those due at the reports [P].

    A run that was stopped at its last report may have taken the step that was due there.
    """
    found, due = steps[:, 0].tolist(), _due(reports, every)
    if (steps != steps[:, :1]).any() or found not in (due, [step for step in due if step < reports[-1]]):
        file = path / history.POPULATION
        raise ValueError(f"population: expected the steps {_listed(due)} in {file}, got {_listed(found)}")


def _due(reports: NDArray[np.int64], every: int) -> list[int]:
    """Return the reports at which a step of population based training is due: the first after each multiple."""
    before = [0, *reports.tolist()]
    return [step for last, step in itertools.pairwise(before) if step // every > last // every]


def _listed(steps: Sequence[float]) -> str:
    return ", ".join(f"{step:.0f}" for step in steps)[:60] or "none"


def _check_summary(path: Path, summary: dict[str, Any], settings: Sweep) -> None:
    """Raise ValueError unless a summary has a learner or None for each seed."""
    found = summary.get("population")
    best = found.get("best") if isinstance(found, dict) else None
    learners = [x.get("learner", -1) if isinstance(x, dict) else -1 for x in best] if isinstance(best, list) else []
    own = [i is None or (type(i) is int and 0 <= i < settings.learners) for i in learners]
    if len(own) != settings.seeds or not all(own):
        raise ValueError(
            f"population: expected a learner for each of {settings.seeds} seeds in summary.json of {path}, got others"
        )
    names = set(settings.varied[0])
    if not all(_is_member(member, names) for member in best or ()):
        raise ValueError(
            f"population: expected seed and values of each best member in summary.json of {path}, got others"
        )
    for name in ("train_return", "gymnasium_return" if "gymnasium_return" in summary else "final_return"):
        if not _are_returns(record := summary["population"].get(name), settings.seeds):
            raise ValueError(
                f"population.{name}: expected {settings.seeds} returns in summary.json of {path}, got {record!r:.60}"
            )


def _is_member(member: dict[str, Any], names: set[str]) -> bool:
    """Return True if a best member has a seed and, unless all members have failed, the values of the varied names."""
    values = member.get("values")
    known = values is None if member["learner"] is None else isinstance(values, dict) and set(values) == names
    return type(member.get("seed")) is int and known


def _are_returns(record: Any, seeds: int) -> bool:
    """Return True if a record has the fields of `results.seeds_record`."""
    if not isinstance(record, dict) or not {"iqm", "low", "high", "per_seed"} <= record.keys():
        return False
    values = record["per_seed"]
    if not isinstance(values, list) or len(values) != seeds:
        return False
    numbers = [record["iqm"], record["low"], record["high"], *values]
    return all(x is None or (type(x) in (int, float) and math.isfinite(x)) for x in numbers)


def _at_start(settings: Sweep, name: str) -> NDArray[np.float64]:
    return np.repeat([float(own[name]) for own in settings.varied], settings.seeds)


def best_members(found: results.Trained, population: Population) -> results.Trained:
    """Return the trained parameters of the best members, one for each seed."""
    given = population.settings
    learners = [x["learner"] for x in population.best()]
    failed = [given.seed + seed for seed, learner in enumerate(learners) if learner is None]
    rows = [seed if learner is None else learner for seed, learner in enumerate(learners)]
    return results.Trained(given.at(0), found.step, tree.index(found.params, rows), failed, failed)


def write_picture(found: Population, file: Path | None = None) -> Path:
    """Write the picture of a population, by default into its folder, and return its file."""
    file = found.path / "population.png" if file is None else file
    files.write(file, found.picture())
    return file
