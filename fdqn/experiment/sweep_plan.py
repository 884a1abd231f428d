"""Plans of sweeps: the settings to train, combined from values or drawn from ranges, and the programs that train them.

The settings that one program trains are one run, a `settings.Sweep`. A sweep of several programs lists them in
`sweep.json`.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fdqn import check, random
from fdqn.experiment import assemble, events, results, run_folder
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
from fdqn.storage import files

STREAM = 0x5357
"""Folded into the key of the first seed to draw values."""

MOST_LEARNERS = 2**20
"""Maximum number of learners of a sweep, settings times seeds."""


class Draw(NamedTuple):
    """A range from which values are drawn uniformly, on a linear or a logarithmic scale."""

    low: float
    high: float
    scale: Literal["log", "linear"]


class Program(NamedTuple):
    """The settings that one program trains."""

    settings: Sweep
    setting_numbers: tuple[int, ...]
    """Numbers of these settings in the whole sweep."""


class Plan(NamedTuple):
    """Settings of a sweep, and the programs that train them."""

    names: tuple[str, ...]
    """Fields of `Settings` that vary."""
    values: tuple[tuple[Any, ...], ...]
    """Values of these fields, one row per setting."""
    scales: dict[str, Literal["log", "linear"]]
    """Scales of the fields whose values were drawn."""
    programs: tuple[Program, ...]
    drawn: tuple[int, int] = (0, 0)
    """Numbers of rows of values that were drawn, and of different ones among them."""

    @property
    def learners(self) -> int:
        """Number of independent learners."""
        return sum(program.settings.learners for program in self.programs)


def plan(
    given: Mapping[str, Any],
    values: Mapping[str, Sequence[Any]],
    draws: Mapping[str, Draw] | None = None,
    samples: int = 1,
    published: Mapping[str, Any] | None = None,
    pbt_every: int = 0,
) -> Plan:
    """Plan a sweep over all combinations of values, and over values that are drawn from ranges.

    Args:
        given: values that all settings have in common, by field of `Settings`, as for `settings.make`.
        values: several values by field; the settings are their product, in which the last field changes fastest.
        draws: ranges by field, from which `samples` rows of values are drawn. Each row is combined with each
            combination of `values`.
        samples: number of rows to draw.
        published: values of a preset.
        pbt_every: environment steps per seed between steps of population based training; 0 for none. Its bounds are the
            lowest and the highest value of each field, or the range from which values are drawn.

    Drawn rows that are equal, which can happen with whole numbers, are trained once.

    Raises ValueError for a value that is out of range or occurs twice, several values of a field that all settings must
    have in common, such as the seeds and the environment, and more than `MOST_LEARNERS` learners; TypeError for values
    that are not a list.
    """
    values, draws = {name: _options(name, options) for name, options in values.items()}, dict(draws or {})
    names = (*values, *draws)
    if not names:
        raise ValueError("values: expected at least one setting with several values or a range, got none")
    check.count("samples", samples, 1)
    check.count("pbt_every", pbt_every)
    if pbt_every:
        assemble.check_evolves(names)
    seeds = given.get("seeds", Settings.seeds)
    count = math.prod(map(len, values.values())) * (samples if draws else 1)
    if isinstance(seeds, int) and count * seeds > MOST_LEARNERS:
        raise ValueError(f"seeds: expected at most 2**20 learners, got {count:,} settings x {seeds:,} seeds")
    drawn = _drawn(draws, samples, given.get("seed", Settings.seed))
    rows = [(*row, *own) for own in drawn for row in itertools.product(*values.values())]
    made = [_make(given, dict(zip(names, row, strict=True)), published) for row in rows]
    groups: dict[Any, list[int]] = {}
    for number, one in enumerate(made):
        groups.setdefault(assemble.in_one_program(one), []).append(number)
    scales = {name: draw.scale for name, draw in draws.items()}
    programs = [_program(names, rows, made, numbers, scales) for numbers in groups.values()]
    if pbt_every:
        bounds = {name: (min(options), max(options)) for name, options in values.items()}
        bounds |= {name: (draw.low, draw.high) for name, draw in draws.items()}
        programs = [_evolving(programs, pbt_every, bounds)]
    return Plan(names, tuple(rows), scales, tuple(programs), (samples, len(drawn)) if draws else (0, 0))


def _evolving(programs: list[Program], pbt_every: int, bounds: dict[str, tuple[float, float]]) -> Program:
    """Return the only program with population based training. Raises ValueError if there are others."""
    first, *others = programs
    if others:
        one, two = first.settings.varied[0], others[0].settings.varied[0]
        name = next(x for x in one if assemble.in_one_program(first.settings) != _key_with(first.settings, x, two[x]))
        raise ValueError(
            f"{name}: expected values of one program with pbt_every, got {run_folder.cell(one[name])} and "
            f"{run_folder.cell(two[name])}, which need two; omit one of them"
        )
    made = dataclasses.replace(first.settings, pbt_every=pbt_every, bounds=bounds)
    assemble.program(made)
    return Program(made, first.setting_numbers)


def _key_with(settings: Sweep, name: str, value: Any) -> tuple[Any, ...]:
    return assemble.in_one_program(dataclasses.replace(settings.at(0), **{name: value}))


_SHARED = (
    *("env", "env_kwargs", "wrappers", "seeds", "seed", "out", "save_replay"),
    *(field.name for group in (EvaluationSettings, ExecutionSettings) for field in dataclasses.fields(group)),
)
"""Fields that cannot vary in a sweep: returns in different environments have no common scale, and all settings are
evaluated and executed in the same way. Reported returns are neither discounted nor clipped, so `gamma` may vary."""


def _options(name: str, options: Sequence[Any]) -> list[Any]:
    """Return the values of a field. Raises TypeError or ValueError if it cannot have these in a sweep."""
    _check_varies(name)
    if isinstance(options, str) or not isinstance(options, Iterable):
        raise TypeError(f"{name}: expected a list of values or a range, got {options!r}")
    found = [tuple(option) if isinstance(option, list) else option for option in options]
    if not found:
        raise ValueError(f"{name}: expected at least one value, got none")
    trained = [np.float32(option) if isinstance(option, float) else option for option in found]  # as learners hold them
    for option, value in zip(found, trained, strict=True):
        if (count := trained.count(value)) > 1:
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
    """Draw `samples` rows of values, whole numbers for fields that are whole numbers."""
    if not draws:
        return [()]
    for name, draw in draws.items():
        _check_varies(name)
        if not isinstance(getattr(Settings, name), int | float) or isinstance(getattr(Settings, name), bool):
            raise ValueError(f"{name}: expected a list of values, got a range; only numbers can be drawn from one")
        for end in (draw.low, draw.high):
            if isinstance(end, bool) or not isinstance(end, int | float):
                raise TypeError(f"{name}: expected a range of two numbers, got {end!r}")
        if draw.scale not in ("log", "linear"):
            raise ValueError(f"{name}: expected the scale 'log' or 'linear', got {draw.scale!r}")
        if not draw.low < draw.high or not math.isfinite(draw.low) or not math.isfinite(draw.high):
            raise ValueError(
                f"{name}: expected a range from a lower to a higher number, got {draw.low:g}:{draw.high:g}"
            )
        if draw.scale == "log" and draw.low <= 0:
            raise ValueError(f"{name}: expected a range above 0 for log:, got {draw.low:g}:{draw.high:g}; use lin:")
        if isinstance(getattr(Settings, name), int) and math.ceil(draw.low) > math.floor(draw.high):
            raise ValueError(f"{name}: expected a range with a whole number, got {draw.low:g}:{draw.high:g}")
    u = random.uniform(random.fold_in(random.key(seed), STREAM), (samples, len(draws))).double().numpy()
    columns = [_scaled(name, draw, u[:, i]) for i, (name, draw) in enumerate(draws.items())]
    return list(dict.fromkeys(zip(*columns, strict=True)))


def _scaled(name: str, draw: Draw, u: Any) -> list[Any]:
    whole = isinstance(getattr(Settings, name), int)
    if whole:  # up to the number after the last, so that rounding down makes the ends as likely as others
        first, last = math.ceil(draw.low), math.floor(draw.high)
        draw = Draw(first, last + 1, draw.scale)
    if draw.scale == "log":
        drawn = np.exp(math.log(draw.low) + (math.log(draw.high) - math.log(draw.low)) * u)
    else:
        drawn = draw.low + (draw.high - draw.low) * u
    if whole:
        return [min(max(math.floor(x), first), last) for x in drawn.tolist()]
    return [min(max(float(f"{x:.6g}"), draw.low), draw.high) for x in drawn.tolist()]  # digits that a table can show


def _program(
    names: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
    made: Sequence[Settings],
    numbers: list[int],
    scales: dict[str, Literal["log", "linear"]],
) -> Program:
    """Return the program of the settings `numbers`, which are equal in all values that change the program."""
    varied = tuple(dict(zip(names, rows[number], strict=True)) for number in numbers)
    first = {field.name: getattr(made[numbers[0]], field.name) for field in dataclasses.fields(Settings)}
    return Program(Sweep(**first, varied=varied, scales=scales), tuple(numbers))


def described(settings: Sweep) -> str:
    """Describe a program: values that all of its settings share, and the numbers of settings, seeds and learners."""
    first, *others = settings.varied
    shared = [f"{name} = {run_folder.cell(x)}" for name, x in first.items() if all(own[name] == x for own in others)]
    count = f"{counted(len(settings.varied), 'setting')} x {counted(settings.seeds, 'seed')}"
    return f"{', '.join(shared)}{': ' * bool(shared)}{count} = {counted(settings.learners, 'learner')}"


def counted(count: int, word: str) -> str:
    """Return a number of things, such as `1 seed` or `2 seeds`."""
    return f"{count:,} {word}{'s' * (count != 1)}"


def check_code(path: Path, settings: Settings, env: str | None, wrappers: Sequence[str] = ()) -> None:
    """Raise ValueError for another environment than the one trained on, and for user code that is not passed."""
    if env is not None and env != settings.env:
        raise ValueError(f"env: expected {settings.env!r}, the environment trained on, got {env!r}")
    if message := results.unnamed_code(path, settings, env, wrappers):
        raise ValueError(message)


def of_sweep(event: events.Event, path: Path, program: Program, before: int, steps: int) -> events.Event:
    """Return an event of a program with the folder, the steps and the numbers of settings of the whole sweep.

    `before` are the steps of the programs before, `steps` those of all.
    """
    match event:
        case events.Stopped():
            return event._replace(path=path, step=before + event.step, steps=steps)
        case events.Started():
            return event._replace(path=path)
        case events.SeedFailed():
            setting, seed = divmod(event.seed, program.settings.seeds)
            return event._replace(
                name=f"setting {program.setting_numbers[setting]}, seed {program.settings.seed + seed}"
            )
    return event


# The file of a plan


def write(plan: Plan, path: Path) -> None:
    """Write `sweep.json` of a plan of several programs, each in a folder of its own."""
    listed = [
        {"numbers": program.setting_numbers, "settings": to_json(_in_folder(program.settings, path, i))}
        for i, program in enumerate(plan.programs)
    ]
    values = [list(to_json_values(dict(zip(plan.names, row, strict=True))).values()) for row in plan.values]
    record = {"names": plan.names, "values": values, "scales": plan.scales, "programs": listed}
    files.write(path / "sweep.json", (json.dumps(record, indent=1) + "\n").encode())


def read(path: Path) -> Plan:
    """Read `sweep.json` of the folder of a sweep. Raises ValueError if it is damaged."""
    try:
        record = json.loads(files.read(path / "sweep.json", 2**26))
        plan = _parse(record)
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"sweep: expected a sweep, got {path} with a sweep.json that is invalid: {reason}") from None
    here = tuple(
        Program(_in_folder(program.settings, path, i), program.setting_numbers)
        for i, program in enumerate(plan.programs)
    )
    return plan._replace(programs=here)


def _parse(record: Mapping[str, Any]) -> Plan:
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
    scales = record["scales"]
    if not isinstance(scales, dict) or any(x not in names or scales[x] not in ("log", "linear") for x in scales):
        raise ValueError(f"expected the scales 'log' or 'linear' of drawn values, got {scales!r:.80}")
    return Plan(names, tuple(rows), record["scales"], tuple(Program(x, own) for x, own in programs))  # type: ignore[arg-type]


def _in_folder(settings: Sweep, path: Path, number: int) -> Sweep:
    return dataclasses.replace(settings, out=str(path / str(number)))
