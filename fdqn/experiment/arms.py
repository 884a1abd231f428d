"""Arms of a comparison: the returns of the seeds of a run, of a setting of a sweep, or of a CSV file.

CSV files are read without torch.
"""

import json
import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fdqn.experiment import returns_csv
from fdqn.experiment.settings import Sweep, task
from fdqn.report.plots import Curve
from fdqn.report.samples import Array
from fdqn.storage import files

Measure = Literal["greedy", "training", "gymnasium"]

RECORDS = {"greedy": "final_return", "training": "train_return", "gymnasium": "gymnasium_return"}
"""Keys of `summary.json` by measure."""

STEP_TOLERANCE = 0.01
"""Largest relative difference between the numbers of steps of two arms; runs end with a whole training iteration."""


_COLUMNS = (["learner", "setting", "seed"], ["lane", "setting", "seed"])
"""First columns of `settings.csv`, and those of older versions."""


class Arm(NamedTuple):
    """Returns of the seeds of one arm."""

    name: str
    returns: Array
    """[S]; NaN for a failed seed."""
    seeds: tuple[int | str, ...] | None
    """Names of the seeds; None if unknown."""
    measure: str
    """Name of the returns, such as "greedy return" or "column score"."""
    env: str | None = None
    steps: int | None = None
    """Environment steps per seed."""
    curve: Curve | None = None
    settings: int = 1
    """Number of settings of the sweep that the arm belongs to; 1 for other arms."""


def read(paths: Sequence[Path], measure: Measure | None = None, names: Sequence[str] | None = None) -> list[Arm]:
    """Read the arms of a comparison, in the given order.

    A path is a run folder; `SWEEP:K` for setting K of a sweep, or the sweep's folder for all of its settings; or a CSV
    file, or `FILE:NAME` for one of its arms. For population based training, the best members of all seeds are one arm.

    Args:
        paths: paths of the arms.
        measure: returns of runs: of greedy evaluation episodes, of the last training episodes, or in Gymnasium's
            environment. By default greedy returns, or training returns if a run has no greedy ones.
        names: prefixes of the names of the arms, one for each path; by default the paths.

    Raises ValueError for fewer than two arms, an arm that is given twice, a path of another kind, a measure that a run
    does not have, and a damaged file.
    """
    if measure is not None and measure not in RECORDS:
        raise ValueError(f"measure: expected one of {', '.join(RECORDS)}, got {measure!r}")
    names = [str(path) for path in paths] if names is None else names
    parts = [_located(path) for path in paths]
    summaries = {path: _read_summary(path) for path, _ in parts if path.is_dir()}
    greedy = all(any(x is not None for x in _record(summary, "greedy")) for summary in summaries.values())
    chosen = measure or ("greedy" if greedy else "training")
    arms: list[Arm] = []
    where: list[str] = []  # of each arm: its name, with the resolved path
    for (path, part), name in zip(parts, names, strict=True):
        name = name if part is None else name.rsplit(":", 1)[0]
        if path not in summaries:
            arms += _csv(path, part, name, alone=len(parts) == 1)
        elif "population" in summaries[path]:
            arms.append(_population(path, part, name, summaries[path], chosen))
        elif (path / "settings.csv").exists():
            arms += _sweep(path, part, name, summaries[path], chosen)
        elif part is None:
            arms.append(_run(path, name, summaries[path], chosen))
        else:
            raise ValueError(f"arms: expected a sweep or a CSV file before :{part}, got the run {name}")
        where += [f"{path.resolve()}:{arm.name.removeprefix(name)}" for arm in arms[len(where) :]]
    for i, arm in enumerate(arms):
        if any(where[i] == other or arm.name == arms[j].name for j, other in enumerate(where[:i])):
            raise ValueError(f"arms: expected each arm once, got {arm.name} twice")
    if len(arms) < 2:
        raise ValueError(f"arms: expected at least two, got {len(arms)}; fdqn report summarises one run")
    return arms


def check_comparable(arms: Sequence[Arm]) -> None:
    """Raise ValueError, naming two arms, if arms differ in their environment or number of steps."""
    if text := mismatch(arms):
        raise ValueError(f"arms: expected {text}; pass --anyway to compare them")


def mismatch(arms: Sequence[Arm]) -> str:
    """Describe a difference in environment or number of steps between two arms; empty if there is none.

    The numbers of steps may differ by 1%, because a run ends with a whole training iteration.
    """
    envs = [(arm.name, arm.env) for arm in arms if arm.env is not None]
    for name, env in envs:
        if env != envs[0][1]:
            return f"one environment, got {envs[0][1]} in {envs[0][0]} and {env} in {name}"
    known = [(arm.name, arm.steps) for arm in arms if arm.steps is not None]
    for name, steps in known:
        if abs(steps - known[0][1]) > STEP_TOLERANCE * max(steps, known[0][1]):
            return f"one number of steps per seed, got {known[0][1]:,} in {known[0][0]} and {steps:,} in {name}"
    return ""


def are_paired(arms: Sequence[Arm]) -> bool:
    """Return True if all arms have seeds of the same names."""
    first = arms[0].seeds
    return first is not None and all(arm.seeds is not None and set(arm.seeds) == set(first) for arm in arms)


def _located(path: Path) -> tuple[Path, str | None]:
    """Split `PATH:PART`, unless a file has this whole name."""
    text, _, part = str(path).rpartition(":")
    return (path, None) if path.exists() or not text or not Path(text).exists() else (Path(text), part)


def _csv(file: Path, part: str | None, name: str, alone: bool) -> list[Arm]:
    """Read all arms of a CSV file, or the one named `part`. If the file is `alone`, names of arms omit its name."""
    read = returns_csv.read(file)
    if part is not None and part not in [found.arm for found in read]:
        known = ", ".join(found.arm for found in read)[:100] or "which has one arm"
        raise ValueError(f"arms: expected an arm of {name} ({known}), got {part!r}")
    return [
        Arm(
            (x.arm if alone else f"{name}:{x.arm}") if x.arm else name,
            x.values,
            x.seeds,
            x.column,
            None,
            x.steps,
            x.curve,
        )
        for x in read
        if part in (None, x.arm)
    ]


def _read_summary(path: Path) -> dict[str, Any]:
    """Read the summary of a run or a sweep, of any version. Raises ValueError, naming the file."""
    if (path / "halving.json").exists():
        return _merged_rungs(path)
    if (path / "sweep.json").exists():
        return _merged(path)
    expected = f"arms: expected a finished run or sweep, got {path}"
    try:
        summary = json.loads(files.read(path / "summary.json", 2**28))
    except FileNotFoundError:
        raise ValueError(f"{expected} without summary.json") from None
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{expected} with a summary.json that cannot be read") from None
    kinds = {"env": str, "steps": int, "seeds": list, "failed_seeds": list, "final_return": dict}
    wrong = [x for x, kind in kinds.items() if not isinstance(summary, dict) or type(summary.get(x)) is not kind]
    wrong = wrong or [x for x in ("env_kwargs", "wrappers") if not _are_strings(summary.get(x, []))]
    if wrong:
        raise ValueError(f"{expected} with a summary.json without {', '.join(wrong)}")
    return summary


def _are_strings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(x, str) for x in values)


def _record(summary: dict[str, Any], measure: str) -> list[Any]:
    """Return the returns per seed in a summary; an empty list if it does not have the measure."""
    record = summary.get(RECORDS[measure])
    values = record.get("per_seed") if isinstance(record, dict) else None
    return values if isinstance(values, list) else []


def _per_seed(path: Path, summary: dict[str, Any], measure: str, count: int) -> Array:
    """Return the returns of all seeds in a summary; NaN for a failed one."""
    values = _record(summary, measure)
    if not values:
        raise ValueError(f"measure: expected {measure} returns in every run, got none in {path}")
    largest = returns_csv.LARGEST
    if len(values) != count or not all(x is None or (type(x) in (int, float) and abs(x) <= largest) for x in values):
        raise ValueError(f"arms: expected {count} numbers under {RECORDS[measure]}.per_seed of {path}, got others")
    return np.array([math.nan if x is None else x for x in values], dtype=np.float64)


def _run(path: Path, name: str, summary: dict[str, Any], measure: str) -> Arm:
    """Return the arm of a run folder. Failed seeds have no curve."""
    seeds = tuple(summary["seeds"])
    returns = _per_seed(path, summary, measure, len(seeds))
    curve = _curve(path, "run")
    if curve.values.shape[1] != len(seeds):
        raise ValueError(f"arms: expected {len(seeds)} seeds in metrics.csv of {path}, got {curve.values.shape[1]}")
    alive = curve._replace(values=curve.values[:, [seed not in summary["failed_seeds"] for seed in seeds]])
    return Arm(name, returns, seeds, f"{measure} return", task(summary), summary["steps"], alive)


def _population(path: Path, part: str | None, name: str, summary: dict[str, Any], measure: str) -> Arm:
    """Return the best members of population based training as an arm. They were selected by their training returns."""
    if part is not None:
        raise ValueError(
            f"arms: expected {name} without a setting, got {part!r}; population based training changes its settings "
            "while they train, and the best member of each seed is compared"
        )
    if measure == "training":
        raise ValueError(
            f"measure: expected greedy or gymnasium for {name} with population based training, got training, by which "
            "its best members were selected"
        )
    found = summary["population"]
    best = found.get("best") if isinstance(found, dict) else None
    if not isinstance(best, list) or not all(isinstance(x, dict) and type(x.get("seed")) is int for x in best):
        raise ValueError(f"arms: expected the best member of each seed in summary.json of {path}, got others")
    returns = _per_seed(path, found, measure, len(best))
    return Arm(name, returns, tuple(x["seed"] for x in best), f"{measure} return", task(summary), summary["steps"])


def _sweep(path: Path, part: str | None, name: str, summary: dict[str, Any], measure: str) -> list[Arm]:
    """Read the arms of one setting of a sweep, or of all."""
    file = path / "settings.csv"
    (_, header), *rows = returns_csv.table(file)
    if header[:3] not in _COLUMNS or not rows:
        raise ValueError(
            f"arms: expected rows under learner, setting and seed in {file}, got {', '.join(header)[:100]}"
        )
    dropped: dict[str, int] = summary.get("dropped", {})
    returns, curve = _per_seed(path, summary, measure, len(rows)), _curves(path, len(rows))
    rows_of: dict[str, list[int]] = {}
    for i, (line, cells) in enumerate(rows):
        if len(cells) != len(header):
            raise ValueError(f"{file}: expected {len(header)} columns in line {line}, got {len(cells)}")
        rows_of.setdefault(cells[1], []).append(i)
    if "learners" in summary and [cells[1:3] for _, cells in rows] != summary["learners"]:
        raise ValueError(
            f"arms: expected the settings and the seeds of the programs of the sweep in {file}, got others"
        )
    if part is not None and part not in rows_of:
        raise ValueError(f"arms: expected a setting of {name}, {rows[0][1][1]} to {rows[-1][1][1]}, got {part!r}")
    if part in dropped and measure != "training":
        raise ValueError(
            f"arms: expected a setting of the last rung, got {name}:{part}, which was dropped at step "
            f"{dropped[part]:,}; compare its training returns with --measure training --anyway"
        )
    varied = [i for i in range(3, len(header)) if len({cells[i] for _, cells in rows}) > 1]
    arms = []
    for setting in [x for x in rows_of if x not in dropped] if part is None else [part]:
        own = rows_of[setting]
        chosen = [rows[i][1] for i in own]
        values = "".join(f" {header[i]}={chosen[0][i]}" for i in varied)
        seeds = tuple(returns_csv.seed_name(cells[2]) for cells in chosen)
        arm = Arm(f"{name}:{setting}{values}", returns[own], seeds, f"{measure} return")
        alive = None if curve is None else curve._replace(values=curve.values[:, own][:, np.isfinite(returns[own])])
        steps = summary["setting_steps"][int(setting)] if "setting_steps" in summary else summary["steps"]
        arms.append(arm._replace(env=task(summary), steps=steps, curve=alive, settings=len(rows_of)))
    return arms


def _curve(path: Path, what: str) -> Curve:
    """Read the learning curves of a run or a sweep."""
    from fdqn.experiment import results

    try:
        return results.read_curve(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"arms: expected a finished {what}, got {path} with a metrics.csv that is invalid: {error}"
        ) from None


def _curves(path: Path, learners: int) -> Curve | None:
    """Return the learning curves of all learners of a sweep; None for a sweep of several programs."""
    if not (path / "metrics.csv").exists():
        return None
    curve = _curve(path, "sweep")
    return curve if curve.values.shape[1] == learners else None


def _merged(path: Path) -> dict[str, Any]:
    """Merge the summaries of the programs of a sweep into one, with a return for each learner of the whole sweep."""
    from fdqn.experiment import sweep_plan

    plan = _plan(sweep_plan.read, path)
    numbers = [program.setting_numbers for program in plan.programs]
    parts = [_read_summary(path / str(i)) for i in range(len(numbers))]
    merged: dict[str, Any] = {**_shared(parts[0]), "seeds": [], "failed_seeds": []}
    merged["learners"] = _learners(len(plan.values), plan.programs[0].settings)
    steps = {setting: part["steps"] for part, own in zip(parts, numbers, strict=True) for setting in own}
    merged["setting_steps"] = [steps[setting] for setting in sorted(steps)]
    for measure, name in RECORDS.items():
        if all(_record(part, measure) for part in parts):
            rows = {
                setting: values
                for part, own in zip(parts, numbers, strict=True)
                for setting, values in zip(own, np.array_split(_record(part, measure), len(own)), strict=True)
            }
            merged[name] = {"per_seed": [x for setting in sorted(rows) for x in rows[setting].tolist()]}
    return merged


def _shared(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what the summaries of the parts of a sweep have in common: the environment and the steps."""
    return {name: summary[name] for name in ("env", "env_kwargs", "wrappers", "steps") if name in summary}


def _merged_rungs(path: Path) -> dict[str, Any]:
    """Merge the summaries of the rungs of a sweep with halving into one, with the steps at which settings were dropped.

    Each setting has the returns of the last rung in which it was trained.
    """
    from fdqn.experiment import halving_plan

    plan = _plan(halving_plan.read, path)
    numbers, settings = plan.setting_numbers, range(len(plan.settings.varied))
    last = {setting: plan.rung_of(setting)[0] for setting in settings}
    parts = [_read_summary(path / str(i)) for i in range(len(numbers))]
    merged: dict[str, Any] = {**_shared(parts[-1]), "seeds": [], "failed_seeds": []}
    if len(numbers) < len(plan.rungs) and len(parts[-1]["failed_seeds"]) < len(parts[-1]["seeds"]):
        raise ValueError(
            f"arms: expected a finished sweep, got {path}, whose rung {len(numbers)} of {len(plan.rungs)} is the last "
            f"one that was trained; continue with: fdqn resume {shlex.quote(str(path))}"
        )
    merged["learners"] = _learners(len(settings), plan.settings)
    merged["setting_steps"] = [parts[i]["steps"] for i in last.values()]
    merged["dropped"] = {str(k): plan.dropped(k) for k in settings if plan.dropped(k) is not None}
    for measure, name in RECORDS.items():
        if _record(parts[-1], measure):
            values = [_of_settings(part, measure, len(own)) for part, own in zip(parts, numbers, strict=True)]
            of_setting = [values[i][numbers[i].index(setting)] for setting, i in last.items()]
            merged[name] = {"per_seed": [x for own in of_setting for x in own]}
    return merged


def _plan(read: Callable[[Path], Any], path: Path) -> Any:
    """Read the plan of a sweep. Raises ValueError, naming the file, if it is damaged."""
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(str(error).replace("sweep:", "arms:", 1)) from None


def _learners(settings: int, shared: Sweep) -> list[list[str]]:
    """Return the setting and the seed of each learner, as in `settings.csv`."""
    seeds = range(shared.seed, shared.seed + shared.seeds)
    return [[str(setting), str(seed)] for setting in range(settings) for seed in seeds]


def _of_settings(part: dict[str, Any], measure: str, count: int) -> list[list[Any]]:
    """Return the returns of each of `count` settings; None for each seed of a rung without the measure."""
    values = _record(part, measure) or [None] * len(_record(part, "greedy"))
    return [own.tolist() for own in np.array_split(np.array(values, dtype=object), count)]
