"""Merge the shards of a run into the files that one process would have written.

Learners are in the order of one process, and so are the rows of `metrics.csv` and `evaluations.csv`: by step, then by
learner. Shards that are missing, unfinished, damaged or of other settings are left out: their seeds count as failed
with the cause "missing", have NaN as parameters, and have rows without values. A merge can be repeated, also by several
processes at once.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from fdqn.experiment import assemble, history, results, run_folder, shard_folders, shard_plan, sweep_results
from fdqn.experiment.settings import to_json
from fdqn.experiment.shard_plan import ShardPlan
from fdqn.storage import checkpoint, files
from fdqn.types import Params

MISSING = "missing"
"""Cause of failure of the seeds of shards that were left out."""

RETURNS = ("final_return", "train_return", "gymnasium_return")


class Shard(NamedTuple):
    """Results of one shard."""

    summary: dict[str, Any]
    params: Params
    """[B, ...]"""
    tables: dict[str, tuple[list[str], list[list[str]]]]
    """Columns and rows of each CSV file, by its name."""


class Merged(NamedTuple):
    """Result of a merge."""

    path: Path
    summary: dict[str, Any]
    notes: tuple[str, ...]
    """Sentences about shards that were left out, and about machines that differ from the plan."""


def merge(path: Path) -> Merged:
    """Merge the finished shards of a run and write the results into its folder.

    Raises ValueError for a folder that is not a sharded run, or if no shard has finished.
    """
    planned = shard_plan.read(path)
    found: dict[int, Shard] = {}
    reasons: dict[int, str] = {}
    for number in range(planned.shards):
        try:
            found[number] = read_shard(path, planned, number, next(iter(found.values()), None))
        except (OSError, ValueError, SafetensorError, checkpoint.CheckpointError) as error:
            reasons[number] = f"shard {number} ({shard_folders.learners_text(planned, number)}) is left out: {error}"
    if not found:
        raise ValueError(
            f"shards: expected at least one finished shard in {path}, got none of {planned.shards}: {reasons[0]}"
        )
    settings = planned.settings
    names = [name for name in history.ROWS if any(name in shard.tables for shard in found.values())]
    for name in names:
        files.write(path / name, history.rows_text(_rows(planned, name, found)))
    run_folder.save_params(path, settings, _params(planned, found))
    differing = {str(i): record for i in range(planned.shards) if (record := shard_folders.differing_machines(path, i))}
    said = [*reasons.values(), *_machine_notes(differing)]
    config = {
        "settings": to_json(settings),
        "plan": run_folder.plan_record(settings, settings.steps, planned.pinned),
        **planned.provenance,
        "shards": {"count": planned.shards, "missing": list(reasons), "machines": differing, "notes": said},
    }
    summary = _summary(planned, found)
    seconds = sum(shard.summary["wall_seconds"] for shard in found.values())
    run_folder.write_summary(path, settings, summary, lambda: seconds)
    run_folder.write_config(path, config)  # last, since `is_merged` reads it
    return Merged(path, summary, tuple(said))


def is_merged(path: Path) -> bool:
    """Return True if a sharded run was merged with all of its shards."""
    try:
        return not results.read_config(path)["shards"]["missing"] and (path / "summary.json").exists()
    except (KeyError, TypeError, ValueError):
        return False


def refresh(path: Path) -> list[str]:
    """Merge a sharded run unless it was merged with all of its shards, and return the notes of the merge.

    Raises the errors of `merge`.
    """
    if not is_merged(path):
        merge(path)
    return notes(path)


def notes(path: Path) -> list[str]:
    """Return the notes of the last merge. Raises ValueError if there was none or `config.json` is damaged."""
    record = results.read_config(path).get("shards")
    return [str(note) for note in record["notes"]] if isinstance(record, dict) and record.get("notes") else []


def _machine_notes(differing: dict[str, dict[str, list[str]]]) -> list[str]:
    """Name each machine that differs from the plan, with its shards."""
    shards: dict[tuple[str, str], list[str]] = {}
    for number, record in differing.items():
        for host, lines in record.items():
            shards.setdefault((host, ", ".join(lines)), []).append(number)
    return [
        f"shard{'s' * (len(numbers) > 1)} {', '.join(numbers)} may differ in rounding: on {host}, {lines}"
        for (host, lines), numbers in shards.items()
    ]


# Results of a shard


def read_shard(path: Path, planned: ShardPlan, number: int, like: Shard | None = None) -> Shard:
    """Read the results of a finished shard.

    Raises ValueError, CheckpointError, OSError or SafetensorError if the shard is missing, unfinished or damaged, has
    other settings, or has parameters of other shapes than those of the shard `like`.
    """
    own = shard_plan.folder(path, number)
    if not (own / "config.json").exists():
        raise ValueError(f"expected the run {own}, got none")
    shard_folders.check_shard(path, planned, number)
    if not sweep_results.is_over(own.parent, own.name, planned.settings):
        raise ValueError(f"expected a finished run, got {own} at step {results.finished(own):,} or later")
    history.check_rows(own)
    run = results.read(own)
    params = dict(load(files.read(own / "params.safetensors")))
    _check_params(own, planned, params, like)
    tables = {name: history.read_rows(own / name) for name in history.ROWS if (own / name).exists()}
    for name, (header, rows) in tables.items():
        if any(len(row) != len(header) or not row[0].isdecimal() for row in rows):
            raise ValueError(f"expected rows of {len(header)} values after a step, got others in {own / name}")
    return Shard(run.summary, params, tables)


def _check_params(own: Path, planned: ShardPlan, params: Params, like: Shard | None) -> None:
    """Raise ValueError unless parameters have the shapes of those of a shard and, if given, of the shard `like`."""
    expected = None if like is None else {name: (x.dtype, x.shape) for name, x in like.params.items()}
    got = {name: (x.dtype, x.shape) for name, x in params.items()}
    if not got or any(x.ndim == 0 or len(x) != planned.size for x in params.values()) or expected not in (None, got):
        raise ValueError(f"expected parameters of {planned.size} seeds, as in other shards, got others in {own}")


# Joining


def _rows(planned: ShardPlan, name: str, found: dict[int, Shard]) -> list[Sequence[Any]]:
    """Return the columns and rows of all learners, by step, then by learner."""
    header = next(shard.tables[name][0] for shard in found.values() if name in shard.tables)
    by_step = {number: _by_step(shard.tables.get(name, (header, []))[1]) for number, shard in found.items()}
    longest = max(by_step.values(), key=lambda steps: max(map(int, steps), default=0))
    rows: list[Sequence[Any]] = [header]
    for step in longest:
        seconds = longest[step][0][-1] if "seconds" in header else ""
        for number in range(planned.shards):
            own = by_step.get(number, {}).get(step, [])
            if len(own) != planned.size:
                own = [_blank(header, step, seconds) for _ in range(planned.size)]
            rows += [[step, _learner(planned, number, i), *row[2:]] for i, row in enumerate(own)]
    return rows


def _by_step(rows: Sequence[Sequence[str]]) -> dict[str, list[Sequence[str]]]:
    found: dict[str, list[Sequence[str]]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(row)
    return found


def _blank(header: Sequence[str], step: str, seconds: str) -> list[str]:
    """Return a row without values."""
    values = {"step": step, "updates": "0", "episodes": "0", "seconds": seconds}
    return [values.get(name, "") for name in header]


def _learner(planned: ShardPlan, number: int, index: int) -> int:
    """Return the number of a learner in files: its seed or, in a sweep, its row in `settings.csv`."""
    return assemble.seeds(planned.settings)[number * planned.size + index]


def _params(planned: ShardPlan, found: dict[int, Shard]) -> Params:
    """Return the parameters [L, ...] of all learners, NaN for those of missing shards."""
    first = next(iter(found.values())).params
    blank = {name: torch.full_like(x, math.nan) if x.is_floating_point() else x * 0 for name, x in first.items()}
    parts = [found[number].params if number in found else blank for number in range(planned.shards)]
    return {name: torch.cat([part[name] for part in parts]) for name in first}


def _summary(planned: ShardPlan, found: dict[int, Shard]) -> dict[str, Any]:
    """Return the summary of all learners. Speeds are those of one process; durations are summed over the shards."""
    shards, settings = [shard.summary for shard in found.values()], planned.settings
    learners = assemble.seeds(settings)
    failures, failed = [], []
    for number in range(planned.shards):
        own = [_learner(planned, number, i) for i in range(planned.size)]
        if number not in found:
            failed += own
            failures += [{"seed": seed, "step": 0, "cause": MISSING} for seed in own]
            continue
        summary = found[number].summary
        renamed = dict(zip(summary["seeds"], own, strict=True))
        failed += [renamed[seed] for seed in summary["failed_seeds"]]
        failures += [{**failure, "seed": renamed[failure["seed"]]} for failure in summary["failures"]]
    measured = [name for name in RETURNS if all(name in summary for summary in shards)]
    rates = [summary["seed_updates_per_second"] for summary in shards]
    rate = None if None in rates else len(rates) / sum(1 / x for x in rates) if all(rates) else 0.0
    steps_an_update = settings.num_envs * settings.steps_per_cycle / settings.updates_per_cycle
    starts = [x for summary in shards if (x := summary["first_update_seconds"]) is not None]
    return {
        "env": settings.env,
        **{name: list(x) for name in ("env_kwargs", "wrappers") if (x := getattr(settings, name))},
        "seeds": list(learners),
        "steps": max(summary["steps"] for summary in shards),  # a shard whose seeds have all failed stops earlier
        "failed_seeds": failed,
        "failures": failures,
        **{name: _returns(planned, name, found) for name in measured},
        "env_steps_per_second": None if rate is None else rate * steps_an_update,
        "seed_updates_per_second": rate,
        "compile_seconds": round(sum(summary["compile_seconds"] for summary in shards), 3),
        "first_update_seconds": min(starts, default=None),
    }


def _returns(planned: ShardPlan, name: str, found: dict[int, Shard]) -> dict[str, Any]:
    """Return the record of the returns of all learners; None for those of missing shards."""
    records = {number: shard.summary[name] for number, shard in found.items()}
    none = [None] * planned.size
    per_seed = [x for i in range(planned.shards) for x in (records[i]["per_seed"] if i in records else none)]
    first = next(iter(records.values()))
    env = {"env": first["env"]} if "env" in first else {}
    cut = {}
    if all("unfinished" in record for record in records.values()):
        limits = [x for record in records.values() if (x := record["step_limit"]) is not None]
        cut = {
            "unfinished": sum(record["unfinished"] for record in records.values()),
            "step_limit": max(limits, default=None),
        }
    return {**env, **results.seeds_record(per_seed), **cut}
