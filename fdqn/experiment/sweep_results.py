"""Results of sweeps: read the folder of a sweep, rank its settings, draw them, and choose the best for fresh seeds."""

import dataclasses
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fdqn.experiment import population, results, sweep_plan
from fdqn.experiment.settings import Settings, Sweep, to_json_values
from fdqn.experiment.sweep_plan import Program
from fdqn.report import comparisons, plots, sweeps
from fdqn.storage import files


class Results(NamedTuple):
    """Results of a sweep, a row for each of its K settings."""

    path: Path
    names: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    scales: dict[str, Literal["log", "linear"]]
    settings: tuple[Settings, ...]
    measure: str
    """Returns that rank the settings: "greedy", or the name of Gymnasium's environment in which they were evaluated."""
    records: tuple[dict[str, Any], ...]
    """Returns of each setting, as in `settings` of `summary.json`."""
    curves: tuple[plots.Curve, ...]

    @property
    def returns(self) -> Any:
        """Returns [K, S]; NaN for failed seeds."""
        rows = [record[_key(record)]["per_seed"] for record in self.records]
        return np.array([[math.nan if x is None else x for x in row] for row in rows], dtype=np.float64)

    def ranking(self) -> tuple[sweeps.Row, ...]:
        """Return the settings, the best first."""
        return sweeps.ranking(self.names, self.values, self.returns, self.selection())

    def selection(self) -> comparisons.Selection:
        """Return the set of settings that cannot be told from the best."""
        return comparisons.selection(self.returns)

    def record(self) -> dict[str, Any]:
        """Return the ranking as a record for JSON, the best setting first."""
        rows = self.ranking()
        settings = [
            {
                **self.records[row.setting],
                "setting": row.setting,
                "values": to_json_values(dict(zip(self.names, row.values, strict=True))),
                "rank": row.rank,
                "in_best_set": row.member,
                "selected": None if row.frequency is None or math.isnan(row.frequency) else row.frequency,
            }
            for row in rows
        ]
        return {"sweep": str(self.path), "measure": self.measure, "settings": settings}

    def picture(self) -> bytes:
        """Draw the sweep as a PNG."""
        from fdqn.report import sweep_plots

        given = sweeps.sweep(self.names, self.values, self.returns, self.selection(), self.scales, self.curves)
        drawn = io.BytesIO()
        first = self.settings[0]
        subtitle = f"{len(self.values)} settings x {first.seeds} seeds, {first.steps:,} steps"
        sweep_plots.write(drawn, given, first.env, subtitle, f"{self.measure} return")
        return drawn.getvalue()


def _key(record: Mapping[str, Any]) -> str:
    return "gymnasium_return" if "gymnasium_return" in record else "final_return"


def is_sweep(path: Path) -> bool:
    """Return True if a folder is a sweep."""
    return (path / "settings.csv").is_file()


def read(path: Path) -> Results:
    """Read the results of a sweep. Raises ValueError, naming the file, if it is not one or has not finished, and for
    population based training, which leaves no settings to rank."""
    if population.is_population(path):
        raise ValueError(
            f"sweep: expected a sweep of fixed settings, got {path} with population based training, which changes the "
            f"settings while they train; see its best members with: fdqn report {path}"
        )
    if not (path / "sweep.json").exists():
        return _read_program(path)
    plan = sweep_plan.read(path)
    for i, program in enumerate(plan.programs):
        if not is_over(path, i, program.settings):
            raise ValueError(
                f"sweep: expected a finished sweep, got {path}, whose program {i + 1} of {len(plan.programs)} has not "
                f"finished; continue with: fdqn resume {path}"
            )
    parts = {i: _read_program(path / str(i)) for i in range(len(plan.programs))}
    at = {number: (i, k) for i, program in enumerate(plan.programs) for k, number in enumerate(program.numbers)}
    places = [at[number] for number in range(len(plan.values))]
    return Results(
        path,
        plan.names,
        plan.values,
        plan.scales,
        tuple(parts[i].settings[k] for i, k in places),
        parts[0].measure,
        tuple({**parts[i].records[k], "setting": number} for number, (i, k) in enumerate(places)),
        tuple(parts[i].curves[k] for i, k in places),
    )


def _read_program(path: Path) -> Results:
    run = results.read(path)
    if not isinstance(run.settings, Sweep):
        raise ValueError(f"sweep: expected the folder of a sweep, got {path}, a run of one setting")
    given, seeds = run.settings, run.settings.seeds
    records = tuple(run.summary["settings"])
    curves = [run.curve._replace(values=run.curve.values[:, k * seeds : (k + 1) * seeds]) for k in range(len(records))]
    gymnasium = run.summary.get("gymnasium_return")
    return Results(
        path,
        tuple(given.varied[0]),
        tuple(tuple(values.values()) for values in given.varied),
        given.scales,
        tuple(given.at(k) for k in range(len(records))),
        "greedy" if gymnasium is None else gymnasium["env"],
        records,
        tuple(curves),
    )


def locate(path: Path, setting: int | None) -> tuple[Path, int | None]:
    """Return the run folder of a setting of a sweep and its number there; a run of one setting is returned as it is,
    and so is one with population based training.

    Raises ValueError for a setting that does not exist, for none in a sweep, and for one in another run.
    """
    if population.is_population(path):
        if setting is not None:
            raise ValueError(
                f"setting: expected none for {path} with population based training, got {setting}; omit it to use the "
                "best member of each seed"
            )
        return path, None
    if not is_sweep(path):
        if setting is not None:
            raise ValueError(f"setting: expected none for a run of one setting, got {setting}")
        return path, None
    several = (path / "sweep.json").exists()
    programs = sweep_plan.read(path).programs if several else (_only_program(path),)
    for i, program in enumerate(programs):
        if setting in program.numbers:
            return (path / str(i) if several else path), program.numbers.index(setting)
    last = sum(len(program.numbers) for program in programs) - 1
    got = "none" if setting is None else setting
    raise ValueError(f"setting: expected one from 0 to {last}, as settings.csv lists them, got {got}; pass --setting")


def trained(
    path: Path, setting: int | None = None, checkpoint: str | None = None, env: str | None = None
) -> tuple[Path, results.Trained]:
    """Return the run folder and the trained seeds of a run, of a setting of a sweep, or of the best member of each seed
    of population based training.

    Raises the errors of `locate` and `results.trained`, and ValueError for a checkpoint of population based training,
    whose best members are those at the end.
    """
    own, number = locate(path, setting)
    evolves = population.is_population(path)
    if evolves and checkpoint not in (None, "last"):
        raise ValueError(
            f"checkpoint: expected last for {path} with population based training, whose best members are those at the "
            f"end, got {checkpoint!r}; omit it"
        )
    found = results.trained(own, checkpoint, env)
    if evolves:
        return own, population.best_members(found, population.read(path))
    return own, found if number is None else results.of_setting(found, number)


def _only_program(path: Path) -> Program:
    settings, _ = results.plan(path)
    if not isinstance(settings, Sweep):
        raise ValueError(f"sweep: expected the folder of a sweep, got {path}, a run of one setting")
    return Program(settings, tuple(range(len(settings.varied))))


def write_picture(found: Results, file: Path | None = None) -> Path:
    """Write the picture of a sweep, by default into its folder, and return its file."""
    file = found.path / "sweep.png" if file is None else file
    files.write(file, found.picture())
    return file


def winner(path: Path) -> tuple[int, Settings]:
    """Return the number and the settings of the best setting of a sweep.

    Raises ValueError if it has not finished, or all seeds of all settings have failed.
    """
    if population.is_population(path):
        raise ValueError(
            f"best_of: expected a sweep of fixed settings, got {path} with population based training, which changes "
            "the settings while they train; to repeat it on fresh seeds, train it again with another --seed"
        )
    found = read(path)
    if not (path / "sweep.json").exists():
        _, planned = results.plan(path, found.settings[0].env)
        if (done := results.finished(path)) < planned and not _all_failed(path):
            raise ValueError(
                f"best_of: expected a finished sweep, got {path}, which has trained {done:,} of {planned:,} steps; "
                f"continue with: fdqn resume {path}"
            )
    best = found.ranking()[0]
    if best.rank is None:
        raise ValueError(f"best_of: expected a setting whose seeds did not all fail, got {path}")
    return best.setting, found.settings[best.setting]


def on_fresh_seeds(path: Path, given: Mapping[str, Any]) -> Settings:
    """Return the settings of the winner of a sweep with seeds that the sweep did not use.

    `given` replaces fields, such as `seeds` or `out`. Raises ValueError if its seeds overlap with those of the sweep.
    """
    _, best = winner(path)
    used = range(best.seed, best.seed + best.seeds)
    made = dataclasses.replace(best, **{"seed": used.stop, "out": None, **given})
    if made.seed < used.stop and used.start < made.seed + made.seeds:
        raise ValueError(
            f"seed: expected seeds that the sweep did not use, {used.stop} or higher, got {made.seed} to "
            f"{made.seed + made.seeds - 1}"
        )
    return made


def is_over(path: Path, number: int, settings: Settings) -> bool:
    """Return True if a program was trained to its last step, or all of its seeds have failed."""
    own = path / str(number)
    return results.finished(own) >= settings.steps or _all_failed(own)


def _all_failed(path: Path) -> bool:
    try:
        summary = results.read(path).summary
    except ValueError:
        return False
    return len(summary["failed_seeds"]) == len(summary["seeds"])
