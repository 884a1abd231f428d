"""Sweeps: plan the programs of several settings, train them, and read their results.

A sweep is a folder with `settings.csv`, a row for each lane. Settings that one program can train are one run, in which
each of them has its own lanes; see `settings.Sweep`. If they need several programs, each is a run in a folder of
its own, `0`, `1`, ..., and `sweep.json` lists them.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fdqn import check, envs, random
from fdqn.experiment import assemble, cost, events, memory, results, run_folder, session
from fdqn.experiment.events import OnEvent
from fdqn.experiment.settings import (
    EvaluationSettings,
    ExecutionSettings,
    Settings,
    Sweep,
    from_json,
    make,
    to_json,
    to_json_values,
)
from fdqn.report import comparisons, plots, sweeps
from fdqn.storage import files

STREAM = 0x5357
"""Folded into the key of the first seed for the values that are drawn."""

MOST_LANES = 2**20
"""Most lanes of a sweep."""


class Draw(NamedTuple):
    """A range from which values are drawn uniformly, or uniformly in their logarithm."""

    low: float
    high: float
    scale: Literal["log", "linear"]


class Program(NamedTuple):
    """Settings that one program trains."""

    settings: Sweep
    numbers: tuple[int, ...]
    """Number of each of its settings in the whole sweep."""


class Plan(NamedTuple):
    """Settings of a sweep, and the programs that train them."""

    names: tuple[str, ...]
    """Names of the settings that differ."""
    values: tuple[tuple[Any, ...], ...]
    """Values of these names, a row for each setting."""
    scales: dict[str, Literal["log", "linear"]]
    """Scales of the names whose values were drawn."""
    programs: tuple[Program, ...]

    @property
    def lanes(self) -> int:
        """Number of independent learners."""
        return sum(program.settings.lanes for program in self.programs)


def plan(
    given: Mapping[str, Any],
    values: Mapping[str, Sequence[Any]],
    draws: Mapping[str, Draw] | None = None,
    samples: int = 1,
    published: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan a sweep over the product of values and over drawn ones.

    Args:
        given: settings that all have in common, by field of `Settings`, as for `settings.make`.
        values: several values by field; the settings are their product, in which the last name changes fastest.
        draws: ranges by field, from which `samples` settings are drawn; each is combined with each of the product.
        samples: number of drawn settings.
        published: values of a preset.

    Drawn settings that are equal, as whole numbers may be, are trained once.

    Raises ValueError for a value out of range, naming it, a value that occurs twice, settings that differ in what all
    must have in common, such as the seeds and the environment, and more than `MOST_LANES` lanes; TypeError for values
    that are no list.
    """
    values, draws = {name: _options(name, options) for name, options in values.items()}, dict(draws or {})
    names = (*values, *draws)
    if not names:
        raise ValueError("values: expected at least one setting with several values or a range, got none")
    check.count("samples", samples, 1)
    seeds = given.get("seeds", Settings.seeds)
    count = math.prod(map(len, values.values())) * (samples if draws else 1)
    if isinstance(seeds, int) and count * seeds > MOST_LANES:
        raise ValueError(f"seeds: expected at most 2**20 lanes, got {count:,} settings x {seeds:,} seeds")
    drawn = _drawn(draws, samples, given.get("seed", Settings.seed))
    rows = [(*row, *own) for own in drawn for row in itertools.product(*values.values())]
    made = [_make(given, dict(zip(names, row, strict=True)), published) for row in rows]
    groups: dict[Any, list[int]] = {}
    for number, one in enumerate(made):
        groups.setdefault(assemble.in_one_program(one), []).append(number)
    programs = [_program(names, rows, made, numbers) for numbers in groups.values()]
    return Plan(names, tuple(rows), {name: draw.scale for name, draw in draws.items()}, tuple(programs))


_SHARED = (
    *("env", "seeds", "seed", "out", "save_replay"),
    *(field.name for group in (EvaluationSettings, ExecutionSettings) for field in dataclasses.fields(group)),
)
"""Settings that all have in common: returns in different environments have no common scale, and neither the results nor
the way to compute them should differ. Returns are neither discounted nor clipped, so that `gamma` may differ."""


def _options(name: str, options: Sequence[Any]) -> list[Any]:
    """Return the values of a setting. Raises TypeError or ValueError if it may not have these."""
    _check_varies(name)
    if isinstance(options, str) or not isinstance(options, Iterable):
        raise TypeError(f"{name}: expected a list of values or a range, got {options!r}")
    found = [tuple(option) if isinstance(option, list) else option for option in options]
    if not found:
        raise ValueError(f"{name}: expected at least one value, got none")
    for option in found:
        if (count := found.count(option)) > 1:
            raise ValueError(f"{name}: expected each value once, got {run_folder.cell(option)} {count} times")
    return found


def _check_varies(name: str) -> None:
    if name not in {field.name for field in dataclasses.fields(Settings)}:
        raise ValueError(f"{name}: expected the name of a setting; see fdqn.experiment.settings.Settings")
    if name == "env":
        raise ValueError(
            "env: expected one environment for all settings of a sweep, got several; returns in different "
            "environments cannot be ranked"
        )
    if name in _SHARED:
        raise ValueError(f"{name}: expected one value for all settings of a sweep, got several")


def _make(given: Mapping[str, Any], own: Mapping[str, Any], published: Mapping[str, Any] | None) -> Settings:
    try:
        made = make({**given, **own}, published)
        assemble.program(made)
    except ValueError as error:
        shown = ", ".join(f"{name} = {run_folder.cell(value)}" for name, value in own.items())
        raise ValueError(f"{error} (in the setting {shown})") from None
    return made


def _drawn(draws: Mapping[str, Draw], samples: int, seed: int) -> list[tuple[Any, ...]]:
    """Draw `samples` rows of values, whole numbers for settings that are whole numbers."""
    if not draws:
        return [()]
    for name, draw in draws.items():
        _check_varies(name)
        if draw.scale not in ("log", "linear"):
            raise ValueError(f"{name}: expected the scale 'log' or 'linear', got {draw.scale!r}")
        if not draw.low < draw.high or not math.isfinite(draw.low) or not math.isfinite(draw.high):
            raise ValueError(
                f"{name}: expected a range from a lower to a higher number, got {draw.low:g}:{draw.high:g}"
            )
        if draw.scale == "log" and draw.low <= 0:
            raise ValueError(f"{name}: expected a range above 0 for log:, got {draw.low:g}:{draw.high:g}; use lin:")
        if not isinstance(getattr(Settings, name), int | float) or isinstance(getattr(Settings, name), bool):
            raise ValueError(f"{name}: expected values, got a range, from which only numbers can be drawn")
        if isinstance(getattr(Settings, name), int) and math.ceil(draw.low) > math.floor(draw.high):
            raise ValueError(f"{name}: expected a range with a whole number, got {draw.low:g}:{draw.high:g}")
    u = random.uniform(random.fold_in(random.key(seed), STREAM), (samples, len(draws))).double().numpy()
    columns = [_scaled(name, draw, u[:, i]) for i, (name, draw) in enumerate(draws.items())]
    return list(dict.fromkeys(zip(*columns, strict=True)))


def _scaled(name: str, draw: Draw, u: Any) -> list[Any]:
    if draw.scale == "log":
        drawn = np.exp(math.log(draw.low) + (math.log(draw.high) - math.log(draw.low)) * u)
    else:
        drawn = draw.low + (draw.high - draw.low) * u
    if isinstance(getattr(Settings, name), int):
        return [min(max(round(x), math.ceil(draw.low)), math.floor(draw.high)) for x in drawn.tolist()]
    return [min(max(float(f"{x:.6g}"), draw.low), draw.high) for x in drawn.tolist()]  # digits that a table can show


def _program(
    names: Sequence[str], rows: Sequence[tuple[Any, ...]], made: Sequence[Settings], numbers: list[int]
) -> Program:
    """Return the sweep of the settings `numbers`. The values that shape the program are equal in all of them."""
    varied = tuple(dict(zip(names, rows[number], strict=True)) for number in numbers)
    first = {field.name: getattr(made[numbers[0]], field.name) for field in dataclasses.fields(Settings)}
    return Program(Sweep(**first, varied=varied), tuple(numbers))


# Training


def train(
    plan: Plan, on_event: OnEvent = events.ignore, stop: session.Stop = bool, started: float | None = None
) -> Path:
    """Train the programs of a plan one after the other, and return the folder of the sweep.

    Raises the errors of `session.train`. A sweep that was stopped is continued by `resume`.
    """
    shared = plan.programs[0].settings
    if len(plan.programs) == 1:
        return session.train(shared, on_event, stop, started).path
    sizes(plan)  # before the first one starts
    path = run_folder.folder(shared).absolute()  # an environment may change the current folder
    path.mkdir(parents=True)
    whole = tuple(dict(zip(plan.names, row, strict=True)) for row in plan.values)
    table = run_folder.settings_table(dataclasses.replace(shared, varied=whole))
    files.write(path / "settings.csv", table.encode())
    listed = [
        {"numbers": program.numbers, "settings": to_json(_in_folder(program.settings, path, i))}
        for i, program in enumerate(plan.programs)
    ]
    values = [list(to_json_values(dict(zip(plan.names, row, strict=True))).values()) for row in plan.values]
    record = {"names": plan.names, "values": values, "scales": plan.scales, "programs": listed}
    files.write(path / "sweep.json", (json.dumps(record, indent=1) + "\n").encode())
    return _continue(path, on_event, stop, started, new=True)


def resume(
    path: Path,
    on_event: OnEvent = events.ignore,
    stop: session.Stop = bool,
    started: float | None = None,
    **changes: Any,
) -> Path:
    """Continue a sweep that was stopped, and return its folder.

    Args:
        path: folder of the sweep.
        on_event, stop, started: as for `session.train`.
        **changes: arguments of `session.resume`, such as `env` and `on_nan`. `steps` only if one program trains the
            sweep.

    Raises ValueError for a folder that is no sweep, and the errors of `session.resume`.
    """
    if not is_sweep(path):
        raise ValueError(f"sweep: expected the folder of a sweep, got {path}")
    if (path / "sweep.json").exists():
        return _continue(path, on_event, stop, started, **changes)
    session.resume(path, on_event=on_event, stop=stop, started=started, **changes)
    return path


def _continue(
    path: Path, on_event: OnEvent, stop: session.Stop, started: float | None, new: bool = False, **changes: Any
) -> Path:
    """Train or resume every program that has not finished. A program whose seeds all fail does not end the sweep."""
    programs = _read_plan(path).programs
    lengths, failed = [program.settings.steps for program in programs], 0
    if changes.get("steps") is not None:
        raise ValueError("steps: expected none for a sweep of several programs, got a number; omit it")
    if not new:
        _check_env(path, programs[0].settings.env, changes.get("env"))
    for i, program in enumerate(programs):
        if _is_over(path, i, program.settings):
            continue
        on_event(events.Notice(f"program {i + 1} of {len(programs)}: {described(program.settings)}"))
        emit = partial(_as_sweep, on_event, path, sum(lengths[:i]), sum(lengths))
        try:
            _continue_program(path / str(i), program.settings, emit, stop, started, changes)
        except session.AllFailedError as error:
            failed += 1
            on_event(events.Notice(str(error)))
        if stop():
            return path
        started = time.perf_counter()
    if failed == len(programs):
        raise session.AllFailedError(
            f"stopped, because all seeds of all settings have failed; the files in {path} are complete"
        )
    return path


def _check_env(path: Path, trained: str, env: str | None) -> None:
    """Raise ValueError for another environment than the one trained on, and for user code that was not named."""
    if env is not None and env != trained:
        raise ValueError(f"env: expected {trained!r}, the environment trained on, got {env!r}")
    if env is None and envs.is_code(trained):
        raise ValueError(f"env: expected the environment of {path}, which is user code, got none; pass --env {trained}")


def _continue_program(
    path: Path, settings: Sweep, emit: OnEvent, stop: session.Stop, started: float | None, changes: Mapping[str, Any]
) -> None:
    if (path / "config.json").exists():
        session.resume(path, on_event=emit, stop=stop, started=started, **changes)
        return
    with contextlib.suppress(OSError):  # left by a process that was killed before it wrote config.json
        (path / "settings.csv").unlink(missing_ok=True)
        path.rmdir()
    own = ("on_nan", "device", "evaluate_episodes", "evaluate_steps")
    kept = {name: changes[name] for name in own if changes.get(name) is not None}
    session.train(dataclasses.replace(settings, **kept), emit, stop, started)


def _as_sweep(on_event: OnEvent, path: Path, before: int, steps: int, event: events.Event) -> None:
    """Emit an event of a program; where it names what to continue, that is the sweep."""
    if isinstance(event, events.Stopped):
        event = event._replace(path=path, step=before + event.step, steps=steps)
    elif isinstance(event, events.Started):
        event = event._replace(path=path)
    on_event(event)


def _is_over(path: Path, number: int, settings: Settings) -> bool:
    """Return True if a program was trained to its last step, or all of its seeds have failed."""
    own = path / str(number)
    return results.finished(own) >= settings.steps or _all_failed(own)


def _all_failed(path: Path) -> bool:
    try:
        summary = results.read(path).summary
    except ValueError:
        return False
    return len(summary["failed_seeds"]) == len(summary["seeds"])


def sizes(plan: Plan) -> tuple[int, ...]:
    """Return the bytes that each program needs. Raises ValueError if clearly less is available."""
    return tuple(
        memory.check_memory(assemble.program(one.settings), one.settings.lanes, assemble.device(one.settings))
        for one in plan.programs
    )


def seconds(plan: Plan) -> tuple[float, ...] | None:
    """Estimate the seconds of each program on a CPU, as `cost.seconds` does; None if they are not compiled for one."""
    shared = plan.programs[0].settings
    if not shared.compiles or assemble.device(shared).type != "cpu":
        return None
    return tuple(cost.seconds(program.settings) for program in plan.programs)


def described(settings: Sweep) -> str:
    """Describe a program: the values that all of its settings share, and its numbers of settings, seeds and lanes."""
    first, *others = settings.varied
    shared = [f"{name} = {run_folder.cell(x)}" for name, x in first.items() if all(own[name] == x for own in others)]
    count = f"{_counted(len(settings.varied), 'setting')} x {_counted(settings.seeds, 'seed')}"
    return f"{', '.join(shared)}{': ' * bool(shared)}{count} = {_counted(settings.lanes, 'lane')}"


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' * (count != 1)}"


def _in_folder(settings: Sweep, path: Path, number: int) -> Sweep:
    return dataclasses.replace(settings, out=str(path / str(number)))


# Results


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
    """Read the results of a sweep. Raises ValueError, naming the file, if it is not one or has not finished."""
    if not (path / "sweep.json").exists():
        return _read_program(path)
    plan = _read_plan(path)
    for i, program in enumerate(plan.programs):
        if not _is_over(path, i, program.settings):
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
        {},
        tuple(given.at(k) for k in range(len(records))),
        "greedy" if gymnasium is None else gymnasium["env"],
        records,
        tuple(curves),
    )


def _read_plan(path: Path) -> Plan:
    """Read `sweep.json`. Raises ValueError if it is damaged."""
    try:
        record = json.loads(files.read(path / "sweep.json", 2**26))
        plan = _parse_plan(record)
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"sweep: expected a sweep, got {path} with a sweep.json that is invalid: {reason}") from None
    here = tuple(
        Program(_in_folder(program.settings, path, i), program.numbers) for i, program in enumerate(plan.programs)
    )
    return plan._replace(programs=here)


def _parse_plan(record: Mapping[str, Any]) -> Plan:
    """Return the plan from its record. Raises ValueError for settings that do not fit the programs."""
    programs = [(from_json(one["settings"]), tuple(one["numbers"])) for one in record["programs"]]
    names, count = tuple(record["names"]), len(record["values"])
    rows: list[tuple[Any, ...]] = [()] * count
    for settings, numbers in programs:
        if not isinstance(settings, Sweep) or len(numbers) != len(settings.varied):
            raise ValueError(f"expected programs with a number for each of their settings, got {list(numbers)}")
        for number, own in zip(numbers, settings.varied, strict=True):
            if type(number) is not int or not 0 <= number < count or rows[number] or tuple(own) != names:
                raise ValueError(f"expected each setting from 0 to {count - 1} once, got {number!r} with {list(own)}")
            rows[number] = tuple(own.values())
    if not programs or not all(rows):
        raise ValueError(f"expected {count} settings, got {sum(map(bool, rows))}")
    if not isinstance(record["scales"], dict):
        raise ValueError(f"expected the scales of drawn values, got {record['scales']!r}")
    return Plan(names, tuple(rows), record["scales"], tuple(Program(x, own) for x, own in programs))  # type: ignore[arg-type]


def locate(path: Path, setting: int | None) -> tuple[Path, int | None]:
    """Return the run folder of a setting of a sweep and its number there; a run of one setting is returned as it is.

    Raises ValueError for a setting that does not exist, for none in a sweep, and for one in another run.
    """
    if not is_sweep(path):
        if setting is not None:
            raise ValueError(f"setting: expected none for a run of one setting, got {setting}")
        return path, None
    several = (path / "sweep.json").exists()
    programs = _read_plan(path).programs if several else (_only_program(path),)
    for i, program in enumerate(programs):
        if setting in program.numbers:
            return (path / str(i) if several else path), program.numbers.index(setting)
    last = sum(len(program.numbers) for program in programs) - 1
    got = "none" if setting is None else setting
    raise ValueError(f"setting: expected one from 0 to {last}, as settings.csv lists them, got {got}; pass --setting")


def _only_program(path: Path) -> Program:
    settings, _ = results.plan(path)
    if not isinstance(settings, Sweep):
        raise ValueError(f"sweep: expected the folder of a sweep, got {path}, a run of one setting")
    return Program(settings, tuple(range(len(settings.varied))))


def write_picture(path: Path) -> Path:
    """Draw the picture of a finished sweep in its folder and return its file."""
    files.write(path / "sweep.png", read(path).picture())
    return path / "sweep.png"


def winner(path: Path) -> tuple[int, Settings]:
    """Return the number and the settings of the best setting of a sweep.

    Raises ValueError if it has not finished, or all seeds of all settings have failed.
    """
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
