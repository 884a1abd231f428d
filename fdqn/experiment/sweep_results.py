"""Results of sweeps: read the folder of a sweep, rank and draw its settings, and select the best to train again."""

import dataclasses
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fdqn.experiment import halving_plan, population, results, sweep_plan
from fdqn.experiment.halving_plan import Halving
from fdqn.experiment.settings import Settings, Sweep, task, to_json_values
from fdqn.experiment.sweep_plan import Program
from fdqn.report import comparisons, plots, sweeps
from fdqn.storage import files


class Results(NamedTuple):
    """Results of a sweep of K settings with S seeds each."""

    path: Path
    names: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    scales: dict[str, Literal["log", "linear"]]
    settings: tuple[Settings, ...]
    measure: str
    """Returns by which settings are ranked: "greedy", or the name of the Gymnasium environment of the evaluation."""
    records: tuple[dict[str, Any], ...]
    """Returns of each setting, as in `settings` of `summary.json`."""
    curves: tuple[plots.Curve, ...]
    halving: Halving | None = None
    """Rungs of successive halving; None without halving."""

    @property
    def returns(self) -> Any:
        """Returns [K, S]; NaN for seeds that failed or have no evaluation, and for settings that halving dropped."""
        key = "final_return" if self.measure == "greedy" else "gymnasium_return"
        rows = [record[key]["per_seed"] if key in record else [None] * len(record["seeds"]) for record in self.records]
        return np.array([[math.nan if x is None else x for x in row] for row in rows], dtype=np.float64)

    def ranking(self) -> tuple[sweeps.Row, ...]:
        """Return the settings, the best first; after halving, those of the last rung, then the dropped ones.

        Dropped settings are sorted by the rung in which they were dropped, the last first, then by training return.
        """
        last = list(range(len(self.values)) if self.halving is None else self.halving.setting_numbers[-1])
        found = sweeps.ranking(self.names, [self.values[k] for k in last], self.returns[last], self.selection())
        rows = [
            row._replace(setting=last[row.setting], failed=len(self.records[last[row.setting]]["failed_seeds"]))
            for row in found
        ]
        if self.halving is None:
            return tuple(rows)
        return (*rows, *_dropped_rows(self, self.halving))

    def selection(self) -> comparisons.Selection:
        """Return the settings that are indistinguishable from the best; after halving, among those of the last rung."""
        last = slice(None) if self.halving is None else list(self.halving.setting_numbers[-1])
        return comparisons.selection(self.returns[last])

    def record(self) -> dict[str, Any]:
        """Return the ranking as a record for JSON, the best setting first."""
        rows = self.ranking()
        settings = [
            {
                **self.records[row.setting],
                "setting": row.setting,
                "values": to_json_values(dict(zip(self.names, row.values, strict=True))),
                "rank": row.rank,
                "in_best_set": row.in_best_set,
                "selected": None if row.frequency is None or math.isnan(row.frequency) else row.frequency,
                **({} if self.halving is None else {"dropped": row.dropped}),
            }
            for row in rows
        ]
        rungs = {} if self.halving is None else {"halving": halving_plan.record(self.halving)}
        mark = {"selected_on_these_seeds": sweeps.is_selected(rows)}
        return {"sweep": str(self.path), "measure": self.measure, **mark, **rungs, "settings": settings}

    def picture(self) -> bytes:
        """Draw the sweep as a PNG."""
        if self.halving is not None:
            return _halving_picture(self, self.halving)
        from fdqn.report import sweep_plots

        given = sweeps.sweep(self.names, self.values, self.returns, self.selection(), self.scales, self.curves)
        drawn = io.BytesIO()
        first = self.settings[0]
        sizes = (
            f"{sweep_plan.counted(len(self.values), 'setting')} x {sweep_plan.counted(first.seeds, 'seed')}"
            f"{_steps_text(self.curves)}"
        )
        sweep_plots.write(drawn, given, task(first), sizes + _mark(self.ranking()), f"{self.measure} return")
        return drawn.getvalue()


def _mark(rows: Sequence[sweeps.Row]) -> str:
    """Return a line of a caption that marks a return as biased by selection; empty if it is not."""
    return f"\n{sweeps.SELECTED}" if sweeps.is_selected(rows) else ""


def _steps_text(curves: Sequence[plots.Curve]) -> str:
    """Format the environment steps per seed of the settings, or their range; empty without reports."""
    steps = sorted({int(curve.steps[-1]) for curve in curves if len(curve.steps)})
    if not steps:
        return ""
    return f", {steps[0]:,} steps" if len(steps) == 1 else f", {steps[0]:,} to {steps[-1]:,} steps"


def _common_measure(measures: Sequence[str]) -> str:
    """Return the measure of all programs; "greedy", which all have, if they differ."""
    return measures[0] if len(set(measures)) == 1 else "greedy"


def _dropped_rows(found: Results, halving: Halving) -> list[sweeps.Row]:
    """Return the rows of the dropped settings, sorted by rung and training return.

    In each rung, settings whose seeds have all failed come last, without a rank.
    """
    rows: list[sweeps.Row] = []
    for i in reversed(range(len(halving.setting_numbers) - 1)):
        numbers = [k for k in halving.setting_numbers[i] if halving.rung_of(k)[0] == i]
        returns = np.array([_last_returns(found.curves[k]) for k in numbers])
        failed = [len(found.records[k]["failed_seeds"]) for k in numbers]
        lost = [count == len(found.records[k]["seeds"]) for k, count in zip(numbers, failed, strict=True)]
        returns[lost] = math.nan  # those before the failure
        rung: list[sweeps.Row] = []
        for at in halving_plan.ranking(returns, [count > 0 for count in failed]):
            rank, k = (
                len(halving.setting_numbers[-1]) + sum(row.rank is not None for row in [*rows, *rung]) + 1,
                numbers[at],
            )
            row = sweeps.dropped(k, found.values[k], returns[at].tolist(), rank, halving.rungs[i].end)
            rung.append(_tied(row._replace(failed=failed[at]), rung))
        rows += rung
    return rows


def _tied(row: sweeps.Row, before: Sequence[sweeps.Row]) -> sweeps.Row:
    """Return a row with the rank of the row before it if their returns are equal."""
    if not before or row.rank is None:
        return row
    last = before[-1]
    equal = bool(last.estimate.iqm == row.estimate.iqm) and bool(last.failed) == bool(row.failed)
    return row._replace(rank=last.rank) if equal else row


def _last_returns(curve: plots.Curve) -> Any:
    """Return the training returns [S] at the last report; a seed without one there has its most recent one."""
    return plots.filled(curve.values)[-1]


def _halving_picture(found: Results, halving: Halving) -> bytes:
    """Draw the learning curves of all settings up to the steps at which they were dropped."""
    from fdqn.report import halving_plots

    drawn, first = io.BytesIO(), found.settings[0]
    first_rung = np.array([_last_returns(curve) for curve in _read_program(found.path / "0").curves])
    scores = [float(estimate.iqm) for estimate in sweeps.estimates(first_rung)]
    given = halving_plots.Halving(
        sweeps.sweep(found.names, found.values, found.returns, None, found.scales, found.curves),
        tuple(halving.dropped(k) for k in range(len(found.values))),
        found.ranking(),
        tuple(scores),
    )
    sizes = ", then ".join(f"{rung.settings} settings to step {rung.end:,}" for rung in halving.rungs)
    subtitle = f"successive halving, {first.seeds} seeds: {sizes}{_mark(given.ranking)}"
    halving_plots.write(drawn, given, task(first), subtitle, f"{found.measure} return")
    return drawn.getvalue()


def is_sweep(path: Path) -> bool:
    """Return True if a folder is a sweep."""
    return (path / "settings.csv").is_file()


def read(path: Path) -> Results:
    """Read the results of a sweep.

    Raises ValueError, naming the file, for a folder that is not a sweep, a sweep that has not finished, and population
    based training, which does not keep settings to rank.
    """
    if population.is_population(path):
        raise ValueError(
            f"sweep: expected a sweep of fixed settings, got {path} with population based training, which changes the "
            f"settings while they train; see its best members with: fdqn report {shlex.quote(str(path))}"
        )
    if (path / halving_plan.FILE).exists():
        return _read_halving(path)
    if not (path / "sweep.json").exists():
        return _read_evaluated(path)
    plan = sweep_plan.read(path)
    for i, program in enumerate(plan.programs):
        if not is_over(path, i, program.settings):
            raise ValueError(
                f"sweep: expected a finished sweep, got {path}, whose program {i + 1} of {len(plan.programs)} has not "
                f"finished; continue with: fdqn resume {shlex.quote(str(path))}"
            )
    parts = {i: _read_program(path / str(i)) for i in range(len(plan.programs))}
    at = {number: (i, k) for i, program in enumerate(plan.programs) for k, number in enumerate(program.setting_numbers)}
    places = [at[number] for number in range(len(plan.values))]
    return Results(
        path,
        plan.names,
        plan.values,
        plan.scales,
        tuple(parts[i].settings[k] for i, k in places),
        _common_measure([part.measure for part in parts.values()]),
        tuple({**parts[i].records[k], "setting": number} for number, (i, k) in enumerate(places)),
        tuple(parts[i].curves[k] for i, k in places),
    )


def _read_evaluated(path: Path) -> Results:
    run = results.read(path)
    found = _of_run(path, run)
    if (above := path.absolute().parent / halving_plan.FILE).exists() and _is_early_rung(path):
        raise ValueError(
            f"sweep: expected the folder of a whole sweep, got {path}, a rung of successive halving; use {above.parent}"
        )
    if not results.is_evaluated(run.summary):
        raise ValueError(
            f"sweep: expected returns after training, got {path}, which was not evaluated; continue with: fdqn resume "
            f"{shlex.quote(str(path))}, or evaluate one setting with: fdqn eval {shlex.quote(str(path))} --setting K"
        )
    return found


def _is_early_rung(path: Path) -> bool:
    """Return True for a rung of successive halving other than the last."""
    return bool(results.read_config(path)["plan"]["steps"] < results.read_settings(path).steps)


def _read_program(path: Path) -> Results:
    return _of_run(path, results.read(path))


def _of_run(path: Path, run: results.Run) -> Results:
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


def _read_halving(path: Path) -> Results:
    """Read the results of a sweep with halving. Each setting has those of the last rung in which it was trained."""
    found = halving_plan.read(path)
    current, count = len(found.setting_numbers) - 1, len(found.rungs)
    if not (is_over(path, current, found.settings) if current + 1 == count else _all_failed(path / str(current))):
        raise ValueError(
            f"sweep: expected a finished sweep, got {path}, whose rung {current + 1} of {count} has not finished; "
            f"continue with: fdqn resume {shlex.quote(str(path))}"
        )
    parts = [_read_program(path / str(i)) for i in range(current + 1)]
    places = [found.rung_of(k) for k in range(len(found.settings.varied))]
    return Results(
        path,
        found.names,
        tuple(tuple(values.values()) for values in found.settings.varied),
        found.settings.scales,
        tuple(found.settings.at(k) for k in range(len(places))),
        parts[-1].measure,
        tuple({**parts[i].records[local], "setting": k} for k, (i, local) in enumerate(places)),
        tuple(parts[i].curves[local] for i, local in places),
        found,
    )


def locate(path: Path, setting: int | None) -> tuple[Path, int | None]:
    """Return the run folder that has a setting of a sweep, and the number of the setting in it.

    The number is None for a run of one setting and for population based training. Raises ValueError for a sweep
    without `setting`, for a setting that it does not have, and for `setting` with any other run.
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
    if (path / halving_plan.FILE).exists():
        return _locate_in_rungs(path, setting)
    several = (path / "sweep.json").exists()
    programs = sweep_plan.read(path).programs if several else (_only_program(path),)
    for i, program in enumerate(programs):
        if setting in program.setting_numbers:
            return (path / str(i) if several else path), program.setting_numbers.index(setting)
    raise _unknown_setting(setting, sum(len(program.setting_numbers) for program in programs))


def described(path: Path, setting: int | None) -> dict[str, Any]:
    """Return the number and the values of a setting of a sweep as a record for JSON; empty without a setting.

    `selected_on_these_seeds` is True for the best of several settings, whose return on the seeds of the sweep is biased
    upwards, and None for a sweep that has not finished.
    """
    if setting is None:
        return {}
    own, number = locate(path, setting)
    given = results.read_settings(own)
    assert isinstance(given, Sweep)
    assert number is not None
    try:
        rows = read(path).ranking()
        selected: bool | None = sweeps.is_selected(rows) and rows[0].setting == setting
    except ValueError:
        selected = None
    values = to_json_values(given.varied[number])
    return {"setting": setting, "values": values, "selected_on_these_seeds": selected}


def described_text(record: Mapping[str, Any]) -> str:
    """Format a record of `described`, such as `setting 3: gamma = 0.99`, with a second line for the best setting."""
    values = ", ".join(f"{name} = {sweeps.text(value)}" for name, value in record["values"].items())
    mark = "\nit is the best setting of the sweep, selected on these seeds, so its return is biased upwards"
    return f"setting {record['setting']}: {values}{mark if record['selected_on_these_seeds'] else ''}"


def _unknown_setting(setting: int | None, count: int) -> ValueError:
    got = "none" if setting is None else setting
    return ValueError(
        f"setting: expected a number from 0 to {count - 1}, as listed in settings.csv, got {got}; pass --setting"
    )


def _locate_in_rungs(path: Path, setting: int | None) -> tuple[Path, int]:
    """Return the folder of the last rung in which a setting was trained, and its number there."""
    found = halving_plan.read(path)
    if setting not in found.setting_numbers[0]:
        raise _unknown_setting(setting, len(found.setting_numbers[0]))
    i, number = found.rung_of(setting)
    return path / str(i), number


def trained(
    path: Path,
    setting: int | None = None,
    checkpoint: str | None = None,
    env: str | None = None,
    wrappers: Sequence[str] = (),
) -> tuple[Path, results.Trained]:
    """Return the run folder and the trained parameters of a run or of a setting of a sweep.

    Of population based training these are the best member of each seed, which is known only at the end. Raises the
    errors of `locate` and `results.trained`, and ValueError for an earlier checkpoint of population based training.
    """
    own, number = locate(path, setting)
    evolves = population.is_population(path)
    if evolves and checkpoint not in (None, "last"):
        raise ValueError(
            f"checkpoint: expected last for {path} with population based training, whose best members are those at the "
            f"end, got {checkpoint!r}; omit it"
        )
    found = results.trained(own, checkpoint, env, wrappers)
    if evolves:
        return own, population.best_members(found, population.read(path))
    return own, found if number is None else results.of_setting(found, number)


def _only_program(path: Path) -> Program:
    settings = results.read_settings(path)
    if not isinstance(settings, Sweep):
        raise ValueError(f"sweep: expected the folder of a sweep, got {path}, a run of one setting")
    return Program(settings, tuple(range(len(settings.varied))))


def write_picture(found: Results, file: Path | None = None) -> Path:
    """Write the picture of a sweep, by default into its folder, and return its file."""
    file = found.path / "sweep.png" if file is None else file
    files.write(file, found.picture())
    return file


def best_setting(path: Path) -> tuple[int, Settings]:
    """Return the number and the settings of the best setting of a sweep.

    Raises ValueError if the sweep has not finished, or if all seeds of all settings have failed.
    """
    if population.is_population(path):
        raise ValueError(
            f"best_of: expected a sweep of fixed settings, got {path} with population based training, which changes "
            "the settings while they train; to repeat it on fresh seeds, train it again with another --seed"
        )
    found = read(path)
    if found.halving is None and not (path / "sweep.json").exists():
        _, planned = results.plan(path, found.settings[0].env, found.settings[0].wrappers)
        if (done := results.finished(path)) < planned and not _all_failed(path):
            raise ValueError(
                f"best_of: expected a finished sweep, got {path}, which has trained {done:,} of {planned:,} steps; "
                f"continue with: fdqn resume {shlex.quote(str(path))}"
            )
    best = found.ranking()[0]
    if best.rank is None:
        raise ValueError(f"best_of: expected a setting whose seeds did not all fail, got {path}")
    return best.setting, found.settings[best.setting]


def on_fresh_seeds(path: Path, given: Mapping[str, Any]) -> Settings:
    """Return the best setting of a sweep with seeds that the sweep did not use.

    `given` replaces fields, such as `seeds` or `out`. Raises ValueError if the seeds overlap with those of the sweep.
    The settings of a sweep that was extended keep the steps before, which determine its schedules; see `extended_to`.
    """
    _, best = best_setting(path)
    used = range(best.seed, best.seed + best.seeds)
    made = dataclasses.replace(best, **{"seed": used.stop, "out": None, **given})
    if made.seed < used.stop and used.start < made.seed + made.seeds:
        raise ValueError(
            f"seed: expected seeds that the sweep did not use, {used.stop} or higher, got {made.seed} to "
            f"{made.seed + made.seeds - 1}"
        )
    return made


def extended_to(path: Path) -> int | None:
    """Return the environment steps per seed to which a finished sweep was extended; None if it was not."""
    if not (path / "config.json").exists():  # a sweep of several programs, or with halving, which cannot be extended
        return None
    planned = results.read_config(path)["plan"]["steps"]
    return planned if planned > results.read_settings(path).steps else None


def is_over(path: Path, number: int | str, settings: Settings) -> bool:
    """Return True if a run in a folder of its own was trained to its last step and evaluated, or all of its seeds have
    failed."""
    own = path / str(number)
    return (results.finished(own) >= settings.steps and not results.lacks_evaluation(own)) or _all_failed(own)


def _all_failed(path: Path) -> bool:
    try:
        summary = results.read(path).summary
    except ValueError:
        return False
    return len(summary["failed_seeds"]) == len(summary["seeds"])
