"""Write the rows and checkpoints of a run while it trains, and restore a run from its newest checkpoint.

metrics.csv           a row per seed and report
evaluations.csv       a row per seed and evaluation during training, if there are any
population.csv        a row per learner and step of population based training, if there are any
checkpoints/STEP/     state at a step, and the sizes and hashes of these files at that step
"""

import contextlib
import csv
import io
import json
import math
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fdqn import training, tree
from fdqn.experiment import assemble, memory
from fdqn.experiment.settings import Settings, Sweep, to_json, with_defaults
from fdqn.replay import prioritized
from fdqn.report import statistics
from fdqn.storage import checkpoint, files
from fdqn.training import populations
from fdqn.types import Hyper, Params

COLUMNS = (
    *("step", "seed", "updates", "episodes", "return", "length", "loss", "q", "grad_norm", "epsilon"),
    *("learning_rate", "seconds"),
)
"""Columns of metrics.csv. A sweep has the number of a learner in place of the seed; its settings.csv has both."""

ROWS = ("metrics.csv", "evaluations.csv")
"""Files to which rows are appended."""

POPULATION = "population.csv"
"""File to which rows are appended in population based training; a checkpoint records it if it exists."""


class Restored(NamedTuple):
    """Point from which a run continues."""

    state: training.TrainState
    since: training.MetricsSnapshot | None
    """Metrics at the previous report, from which the next means are computed; None at the start."""
    step: int
    steps: int
    """Planned environment steps per seed."""
    seconds: float
    """Wall-clock seconds that the run has taken so far."""
    skipped: tuple[Path, ...] = ()
    """Damaged checkpoints that were skipped and renamed."""


class CheckpointInfo(NamedTuple):
    """Record of a checkpoint, stored as JSON next to its tensors."""

    settings: dict[str, Any]
    step: int
    seconds: float
    rows: dict[str, Any]
    """Size in bytes and SHA-256 of each file of `ROWS` at the checkpoint."""
    failed: int
    """Seeds that have failed."""
    score: float | None
    """IQM of the training returns of the seeds that have not failed; None if no episode has ended."""


def checkpoint_info(place: Path) -> CheckpointInfo:
    """Read and validate the record of a checkpoint. Raises CheckpointError if it is damaged or has other fields."""
    record = checkpoint.record(place)
    types = {"settings": dict, "step": int, "seconds": float, "rows": dict, "failed": int, "score": float | None}
    if (
        set(record) != set(types)
        or any(not isinstance(record[name], of) or isinstance(record[name], bool) for name, of in types.items())
        or set(record["rows"]) - {POPULATION} != set(ROWS)
        or not all(_counts(rows) for rows in record["rows"].values())
        or not all(math.isfinite(record[name] or 0) for name in ("seconds", "score"))
        or place.name.removesuffix(".old") != str(record["step"])
    ):
        raise checkpoint.CheckpointError(f"{place}: expected the record of a run's checkpoint, got other fields")
    return CheckpointInfo(**record)


def _counts(rows: Any) -> bool:
    return (
        isinstance(rows, dict)
        and set(rows) == {"bytes", "sha256"}
        and type(rows["bytes"]) is int
        and 0 <= rows["bytes"] < 2**63
        and isinstance(rows["sha256"], str)
    )


def restored(
    path: Path,
    settings: Settings,
    program: training.Program,
    start: training.TrainState,
    fallback: bool = False,
    before_write: Callable[[], None] = lambda: None,
) -> Restored:
    """Restore the run of a folder from its newest checkpoint, or from `start` if there is none.

    The tensors of `start`, the state before the first step, are overwritten in place. After all checks have passed,
    rows that were written later than the checkpoint are removed.

    Args:
        path: run folder.
        settings: settings of the run.
        program: program of these settings.
        start: initial state of all seeds.
        fallback: if the newest checkpoint is damaged, use the newest intact one, and rename the damaged ones.
        before_write: called before files are changed.

    Raises CheckpointError if a checkpoint is damaged, if rows that it refers to were changed or removed, or if there is
    a summary but no checkpoint; ValueError, naming the fields, if the checkpoint has other settings.
    """
    found = checkpoint.newest(path / "checkpoints")
    like, own = _kept(settings, start, training.snapshot(program, start)), tree.clone((start.key, start.hyper))
    for i, place in enumerate(found):
        try:
            at = checkpoint_info(place)
            _check_same(place, at.settings, json.loads(json.dumps(to_json(settings))))
            _check_rows(path, at)
            read, _ = checkpoint.load(place, like)
            _check_counters(place, program, at, read["lanes"], own, settings)
        except checkpoint.CheckpointError as error:
            if fallback and i + 1 < len(found):
                continue
            hint = "; use --fallback to continue from an older checkpoint" if i + 1 < len(found) else ""
            raise checkpoint.CheckpointError(f"{error}{hint}") from None
        before_write()
        for damaged in found[:i]:
            checkpoint.mark_damaged(damaged)
        for name in (*ROWS, POPULATION):
            files.cut(path / name, at.rows[name]["bytes"] if name in at.rows else 0)
        since = training.MetricsSnapshot(*tree.to_numpy(read["since"]))
        lanes = read["lanes"]
        if not settings.save_replay:
            buffer = _with_updates(start.buffer, lanes.learner.updates)
            lanes = lanes._replace(buffer=buffer, emptied=lanes.cycle.clone())
        return Restored(lanes, since, at.step, settings.steps, at.seconds, tuple(found[:i]))
    if (path / "summary.json").exists():
        raise checkpoint.CheckpointError(
            f"{path}: expected a checkpoint to continue from, got a summary but no checkpoint; restore its folder "
            "checkpoints or train in a new folder"
        )
    before_write()
    for name in (*ROWS, POPULATION):
        files.cut(path / name, 0)
    return Restored(start, None, 0, settings.steps, 0.0)


def best_step(path: Path) -> str | None:
    """Return the step of the checkpoint with the best training return; None where no checkpoint has one."""
    return _best(path / "checkpoints")


def trained(place: Path, settings: Settings, program: training.Program) -> tuple[Params, Tensor, Tensor]:
    """Read the parameters [S, ...] of a checkpoint, the training iteration [S] at which each seed failed (or -1)
    and the cause [S].

    Raises CheckpointError for a damaged checkpoint, ValueError for one of other settings.
    """
    _check_same(place, checkpoint_info(place).settings, json.loads(json.dumps(to_json(settings))))
    lanes = memory.fake_state(program, settings.learners)
    counts, kept = ("episodes", "updates", "failed", "cause"), lanes.metrics.returns.shape[-1] - 1
    numbers: dict[str, Any] = {
        name: np.zeros(settings.learners, np.int64 if name in counts else np.float64)
        for name in training.MetricsSnapshot._fields
    }
    numbers["last_returns"] = np.zeros((settings.learners, kept), np.float32)
    since = training.MetricsSnapshot(**numbers)
    part = lanes.learner.params, lanes.metrics.failed, lanes.metrics.cause
    params, failed, cause = checkpoint.load_part(place, _kept(settings, lanes, since), part)
    if not ((failed >= -1) & (cause >= 0) & (cause < len(training.CAUSES))).all():
        raise checkpoint.CheckpointError(f"{place}: expected known failure causes, got others; use another checkpoint")
    return params, failed, cause


def _with_updates(buffer: Any, updates: Tensor) -> Any:
    """Set the number of updates in an empty buffer, on which the exponent of importance-sampling weights depends."""
    if isinstance(buffer, prioritized.Prioritized):
        return buffer._replace(updates=updates.clone())
    if isinstance(buffer, tuple) and hasattr(buffer, "_fields"):  # the state of a wrapper
        return type(buffer)(*(_with_updates(part, updates) for part in buffer))
    return buffer


def _kept(settings: Settings, lanes: training.TrainState, since: training.MetricsSnapshot) -> dict[str, Any]:
    """Return the tree of tensors that a checkpoint stores."""
    kept = lanes if settings.save_replay else lanes._replace(buffer=())
    return {"lanes": kept, "since": tree.from_numpy(since)}


def _check_same(place: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError, naming the fields, unless a checkpoint has the settings of the run."""
    if lines := differing_settings(saved, now):
        raise ValueError(f"{place}: expected the settings of config.json, got {lines}")


FREE = frozenset({"out", "on_nan", "device", "evaluate_episodes", "evaluate_steps"})
"""Settings that `resume` may change, and the folder."""


def differing_settings(saved: dict[str, Any], now: dict[str, Any], free: Collection[str] = FREE) -> str:
    """Describe the settings that differ between two records of `settings.to_json`, such as `seeds = 2 and not 4`.

    Empty if none differ. The names in `free` are left out.
    """
    saved, now = (json.loads(json.dumps(settings)) for settings in (with_defaults(saved), now))  # tuples become lists
    others = {name for name in {*saved, *now} if saved.get(name) != now.get(name)}.difference(free)
    lines = ", ".join(f"{name} = {saved.get(name)!r} and not {now.get(name)!r}" for name in sorted(others))
    return lines if lines.isprintable() else ascii(lines)


def _check_rows(path: Path, at: CheckpointInfo) -> None:
    """Raise CheckpointError unless the files of rows still start with the bytes that they had at the checkpoint."""
    for name, counted in at.rows.items():
        file = path / name
        if not counted["bytes"]:
            continue
        if not file.exists() or file.stat().st_size < counted["bytes"]:
            difference = f"at least {counted['bytes']} bytes, as at the checkpoint of step {at.step}"
        elif files.digest(file, counted["bytes"]) != counted["sha256"]:
            difference = f"its first {counted['bytes']} bytes as at the checkpoint of step {at.step}"
        else:
            continue
        raise checkpoint.CheckpointError(f"{file}: expected {difference}, got others; restore the file")


def _check_counters(
    place: Path,
    program: training.Program,
    at: CheckpointInfo,
    lanes: training.TrainState,
    own: tuple[Tensor, Hyper],
    settings: Settings,
) -> None:
    """Raise CheckpointError unless counters are in range and keys and hyper-parameters are those of the run."""
    metrics, config = lanes.metrics, program.config
    cycles = at.step // config.env_steps
    highest = {
        "learner.updates": (lanes.learner.updates, cycles * config.updates_per_cycle),
        "metrics.episodes": (metrics.episodes, at.step),
        "metrics.cause": (metrics.cause, len(training.CAUSES) - 1),
        "metrics.failed": (metrics.failed + 1, cycles + 1),
        "emptied": (lanes.emptied, cycles),
        **(program.algorithm.bounds(lanes.buffer, at.step) if lanes.buffer else {}),
    }
    sound = all(bool(((x >= 0) & (x <= most)).all()) for x, most in highest.values())
    bounds = settings.bounds if isinstance(settings, Sweep) else {}
    sound = sound and tree.equal(lanes.key, own[0]) and _are_own(lanes.hyper, own[1], bounds)
    if not (sound and (lanes.cycle * config.env_steps == at.step).all()):
        raise checkpoint.CheckpointError(f"{place}: expected counters of step {at.step}, got others; use another one")


def _are_own(hyper: Hyper, own: Hyper, bounds: dict[str, tuple[float, float]]) -> bool:
    """Return True if all hyper-parameters are those of the settings, or within bounds that population based training
    has for them."""
    given, expected = ({**x._asdict(), **x.numbers, "numbers": ()} for x in (hyper, own))

    def is_own(name: str) -> bool:
        if name not in bounds:
            return tree.equal(given[name], expected[name])
        low, high = torch.tensor(bounds[name], dtype=given[name].dtype, device=given[name].device)
        return bool(((given[name] >= low) & (given[name] <= high)).all())

    return all(map(is_own, given))


def add_evolution(path: Path, settings: Settings, step: int, source: Tensor, columns: dict[str, Tensor]) -> None:
    """Append a step of population based training to population.csv: for each learner, the one whose parameters it
    continues with, and its numbers from then on, `columns` [S]."""
    values = zip(*(x.tolist() for x in columns.values()), strict=True)
    rows = [
        (step, learner, came, *map(_number, own))
        for learner, came, own in zip(assemble.seeds(settings), source.tolist(), values, strict=True)
    ]
    _append(path / POPULATION, ("step", "learner", "source", *columns), rows)


def record(
    path: Path,
    settings: Settings,
    reports: Iterator[training.Report],
    where: Restored | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
    before_write: Callable[[], None] = lambda: None,
) -> Iterator[training.Report]:
    """Write and yield each report of a run: the rows of all seeds in one write, then a checkpoint if one is due.

    Args:
        path: run folder.
        settings: settings of the run.
        reports: reports of the run.
        where: point from which the run was resumed.
        on_checkpoint: called with the folder and the step of each checkpoint after it is written.
        before_write: called before rows or a checkpoint are written.

    Raises FloatingPointError when a report has a failed seed and the settings have `on_nan="stop"`.
    """
    step, steps, seconds = (where.step, where.steps, where.seconds) if where else (0, settings.steps, 0.0)
    started, kept = time.perf_counter() - seconds, step

    def keep(report: training.Report, rows: dict[str, Any]) -> None:
        before_write()
        place = _keep(path, settings, report, seconds, rows)
        if on_checkpoint is not None:
            on_checkpoint(place, report.step)

    if not (path / "metrics.csv").exists():
        _append(path / "metrics.csv", _columns(settings), [])
    for report in reports:
        if settings.on_nan == "stop" and (failures := failed_seeds(settings, report)):
            raise FloatingPointError(_failures(path, settings, failures))
        seconds = round(time.perf_counter() - started, 3)
        # The last report of a stopped run is not part of the uninterrupted run, so the checkpoint excludes its rows.
        rows = None if report.planned else _rows(path)
        if report.step > step:
            before_write()
            _write_rows(path, settings, report, seconds)
        last = not report.planned or report.step >= steps
        due = settings.checkpoint_every and report.step // settings.checkpoint_every > kept // settings.checkpoint_every
        if report.step > kept and (last or due):
            keep(report, rows or _rows(path))
            kept = report.step
        yield report
    if report.step > kept:  # stopped at a report
        keep(report, _rows(path))


def _keep(path: Path, settings: Settings, report: training.Report, seconds: float, rows: dict[str, Any]) -> Path:
    """Write a checkpoint and return its folder. Keep the newest ones and the one with the best training return."""
    point = Restored(report.state, report.since, report.step, settings.steps, seconds)
    _save(path, settings, point, report, rows)
    folder = path / "checkpoints"
    checkpoint.prune(folder, settings.keep_checkpoints, also=[best] if (best := _best(folder)) else [])
    return folder / str(report.step)


def _save(
    path: Path,
    settings: Settings,
    point: Restored,
    now: training.Report | training.MetricsSnapshot,
    rows: dict[str, Any],
) -> None:
    """Write the checkpoint of a point of a run, with the failures and the last returns in `now`."""
    alive = now.failed < 0
    means = statistics.row_means(now.last_returns[alive])
    ended = means[np.isfinite(means)]
    at = CheckpointInfo(
        settings=to_json(settings),
        step=point.step,
        seconds=point.seconds,
        rows=rows,
        failed=int((~alive).sum()),
        score=float(statistics.iqm(ended)) if len(ended) else None,
    )
    assert point.since is not None
    checkpoint.save(path / "checkpoints", str(point.step), _kept(settings, point.state, point.since), at._asdict())


def read_rows(file: Path) -> tuple[list[str], list[list[str]]]:
    """Read the columns and rows of a CSV file, as text. Raises ValueError if it is empty, OSError if it is missing."""
    with io.StringIO(files.read(file).decode(), newline="") as text:
        rows = list(csv.reader(text))
    if not rows:
        raise ValueError(f"{file}: expected rows, got an empty file")
    return rows[0], rows[1:]


def rows_text(rows: Sequence[Sequence[Any]]) -> bytes:
    """Format rows as the content of a CSV file. The first row holds the columns."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def check_rows(path: Path) -> None:
    """Raise CheckpointError unless the CSV files of a run folder start with the rows of its newest checkpoint."""
    for place in checkpoint.newest(path / "checkpoints")[:1]:
        _check_rows(path, checkpoint_info(place))


def copy(source: Path, at: Restored, path: Path, settings: Settings, learners: Sequence[int]) -> None:
    """Write the rows and the checkpoint from which a run of some learners of another run starts.

    Args:
        source: folder of the other run.
        at: point of the other run, after a planned report.
        path: folder of the new run, without rows and checkpoints.
        settings: settings of the new run.
        learners: numbers of its learners in the other run, in increasing order.
    """
    numbers = {str(learner): number for number, learner in enumerate(learners)}
    for name in ROWS:
        if (source / name).exists():
            header, rows = read_rows(source / name)
            kept = [[step, numbers[learner], *rest] for step, learner, *rest in rows if learner in numbers]
            _append(path / name, header, kept)
    assert at.since is not None
    members = torch.tensor(learners)
    since = training.MetricsSnapshot._make(x[learners] for x in at.since)
    point = at._replace(state=populations.keep(at.state, members.to(at.state.key.device)), since=since)
    _save(path, settings, point, since, _rows(path))


def _best(folder: Path) -> str | None:
    """Return the step of the readable checkpoint with the highest score; None if there is none."""
    scores = {str(at.step): at.score for at in _readable(folder) if at.score is not None}
    return max(scores, key=lambda step: scores[step], default=None)


def _readable(folder: Path) -> list[CheckpointInfo]:
    """Return the records of the undamaged checkpoints of a folder, newest first."""
    found = []
    for place in checkpoint.newest(folder):
        with contextlib.suppress(checkpoint.CheckpointError):
            found.append(checkpoint_info(place))
    return found


def _rows(path: Path) -> dict[str, Any]:
    """Return the size in bytes and the SHA-256 of each file of rows."""
    sizes = {name: (path / name).stat().st_size if (path / name).exists() else 0 for name in (*ROWS, POPULATION)}
    digests = {name: files.digest(path / name, size) if size else "" for name, size in sizes.items()}
    return {name: {"bytes": size, "sha256": digests[name]} for name, size in sizes.items() if size or name in ROWS}


def failed_seeds(settings: Settings, report: training.Report) -> dict[int, tuple[int, str]]:
    """Return the environment step and the cause of each failure, by seed."""
    steps = settings.num_envs * settings.steps_per_cycle
    return {
        seed: (int(cycle) * steps, training.CAUSES[cause])
        for seed, cycle, cause in zip(assemble.seeds(settings), report.failed, report.cause, strict=True)
        if cycle >= 0
    }


def why(cause: str) -> str:
    """Describe one of `training.CAUSES`."""
    return "its environment failed" if cause == "environment" else f"its {cause} is not finite"


def _failures(path: Path, settings: Settings, failures: dict[int, tuple[int, str]]) -> str:
    seed, (step, cause) = next(iter(failures.items()))
    name = assemble.name(settings, assemble.seeds(settings).index(seed))
    others = f", and {len(failures) - 1} other seeds" if len(failures) > 1 else ""
    good = [at.step for at in _readable(path / "checkpoints") if not at.failed]
    last = f"the last good checkpoint is at step {good[0]:,}" if good else "there is no good checkpoint"
    return (
        f"stopped: {name} failed at step {step:,}, {why(cause)}{others}; {last}; "
        f"continue without the seed: fdqn resume {shlex.quote(str(path))} --on-nan freeze"
    )


def _write_rows(path: Path, settings: Settings, report: training.Report, seconds: float) -> None:
    rates = learning_rates(settings, report)
    columns = (report.returns, report.lengths, report.loss, report.q, report.grad_norm, report.epsilon, rates)
    rows = [
        (report.step, seed, report.updates[i], report.episodes[i], *(_number(x[i]) for x in columns), seconds)
        for i, seed in enumerate(assemble.seeds(settings))
    ]
    _append(path / "metrics.csv", _columns(settings), rows)
    if report.evaluation is not None:
        scores = [
            (report.step, seed, _number(report.evaluation[i].mean())) for i, seed in enumerate(assemble.seeds(settings))
        ]
        _append(path / "evaluations.csv", ("step", _columns(settings)[1], "return"), scores)


def learning_rates(settings: Settings, report: training.Report) -> NDArray[np.float64]:
    """Return the learning rate [S] of the next update of each seed."""
    state = report.state
    return assemble.learning_rates(settings, state.hyper, state.learner.updates).double().cpu().numpy()


def _columns(settings: Settings) -> tuple[str, ...]:
    return tuple("learner" if isinstance(settings, Sweep) and name == "seed" else name for name in COLUMNS)


def _append(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    files.append(path, rows_text(rows if path.exists() else [columns, *rows]))


def _number(x: Any) -> str:
    """Format a number for a CSV file; NaN becomes an empty field."""
    return "" if math.isnan(x) else f"{x:.7g}"
