"""What a run writes down as it goes, and how it goes on from there: rows, and checkpoints that count on them.

metrics.csv           a row per seed and report
evaluations.csv       a row per seed and evaluation on the way, where they were asked for
checkpoints/STEP/     everything at a step
"""

import contextlib
import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fdqn import training, tree
from fdqn.experiment import assemble, memory
from fdqn.experiment.settings import Settings, to_json, with_defaults
from fdqn.report import statistics
from fdqn.storage import checkpoint, files
from fdqn.types import Params

COLUMNS = ("step", "seed", "updates", "episodes", "return", "loss", "q", "grad_norm", "epsilon", "seconds")

ROWS = ("metrics.csv", "evaluations.csv")
"""Files that grow."""


class Restored(NamedTuple):
    """Where a run goes on from."""

    state: training.TrainState
    since: training.MetricsSnapshot | None
    """What the next report's means are counted from; nothing at the start."""
    step: int
    steps: int
    """Planned environment steps a seed."""
    seconds: float
    """That the run took until here."""
    passed: tuple[Path, ...] = ()
    """Damaged checkpoints that were passed over."""


class Moment(NamedTuple):
    """What a checkpoint says beside its tensors, as JSON has it."""

    settings: dict[str, Any]
    step: int
    seconds: float
    rows: dict[str, Any]
    """Of each of ROWS how many bytes count, and their SHA-256."""
    failed: int
    """Seeds that have failed."""
    score: float | None
    """Training return of the others; nothing where no episode has ended."""


def moment(place: Path) -> Moment:
    """What a checkpoint says. Raises CheckpointError where it is damaged or says something else."""
    record = checkpoint.record(place)
    types = {"settings": dict, "step": int, "seconds": float, "rows": dict, "failed": int, "score": float | None}
    if (
        set(record) != set(types)
        or any(not isinstance(record[name], of) or isinstance(record[name], bool) for name, of in types.items())
        or set(record["rows"]) != set(ROWS)
        or not all(_counts(rows) for rows in record["rows"].values())
        or not all(math.isfinite(record[name] or 0) for name in ("seconds", "score"))
        or place.name.removesuffix(".old") != str(record["step"])
    ):
        raise checkpoint.CheckpointError(f"{place}: expected what a run says of a checkpoint, got something else")
    return Moment(**record)


def _counts(rows: Any) -> bool:
    return (
        isinstance(rows, dict)
        and set(rows) == {"bytes", "sha256"}
        and type(rows["bytes"]) is int
        and 0 <= rows["bytes"] < 2**63
        and isinstance(rows["sha256"], str)
    )


def restored(
    path: Path, settings: Settings, program: training.Program, start: training.TrainState, fallback: bool = False
) -> Restored:
    """The run of a folder as its newest checkpoint has it, or, where there is none, `start`: the lanes before their
    first step, which are written over. When all is checked, rows that were written after that moment are taken back.

    Raises CheckpointError for a damaged checkpoint, unless `fallback` and an older one is whole: then those passed over
    are set aside; for rows that a checkpoint counts on and that are not as they were; and where there is a summary and
    no checkpoint. Raises ValueError for a checkpoint of other settings, naming those.
    """
    found = checkpoint.newest(path / "checkpoints")
    like, own = _kept(settings, start, training.snapshot(program, start)), tree.clone((start.key, start.hyper))
    for i, place in enumerate(found):
        try:
            at = moment(place)
            _check_same(place, at.settings, json.loads(json.dumps(to_json(settings))))
            _check_rows(path, at)
            read, _ = checkpoint.load(place, like)
            _check_counters(place, program, at, read["lanes"], own)
        except checkpoint.CheckpointError as error:
            if fallback and i + 1 < len(found):
                continue
            hint = "; --fallback goes on from the one before" if i + 1 < len(found) else ""
            raise checkpoint.CheckpointError(f"{error}{hint}") from None
        for damaged in found[:i]:
            checkpoint.set_aside(damaged)
        for name in ROWS:
            files.cut(path / name, at.rows[name]["bytes"])
        since = training.MetricsSnapshot(*tree.to_numpy(read["since"]))
        lanes = read["lanes"]
        if not settings.save_replay:
            lanes = lanes._replace(buffer=start.buffer, emptied=lanes.cycle.clone())
        return Restored(lanes, since, at.step, settings.steps, at.seconds, tuple(found[:i]))
    if (path / "summary.json").exists():
        raise checkpoint.CheckpointError(
            f"{path}: expected a checkpoint to go on from, got a summary and none; put its folder back or train anew"
        )
    for name in ROWS:
        files.cut(path / name, 0)
    return Restored(start, None, 0, settings.steps, 0.0)


def best_step(path: Path) -> str | None:
    """Return the step of the checkpoint with the best training return; None where no checkpoint has one."""
    return _best(path / "checkpoints")


def trained(place: Path, settings: Settings, program: training.Program) -> tuple[Params, Tensor, Tensor]:
    """Read the parameters [S, ...] of a checkpoint, and in which cycle [S] each seed had failed, if any, and why.

    Raises CheckpointError for a damaged checkpoint, ValueError for one of other settings.
    """
    _check_same(place, moment(place).settings, json.loads(json.dumps(to_json(settings))))
    lanes = memory.fake_state(program, settings.seeds)
    counts, kept = ("episodes", "updates", "failed", "cause"), lanes.metrics.returns.shape[-1] - 1
    numbers: dict[str, Any] = {
        name: np.zeros(settings.seeds, np.int64 if name in counts else np.float64)
        for name in training.MetricsSnapshot._fields
    }
    numbers["last_returns"] = np.zeros((settings.seeds, kept), np.float32)
    since = training.MetricsSnapshot(**numbers)
    part = lanes.learner.params, lanes.metrics.failed, lanes.metrics.cause
    params, failed, cause = checkpoint.load_part(place, _kept(settings, lanes, since), part)
    if not ((failed >= -1) & (cause >= 0) & (cause < len(training.CAUSES))).all():
        raise checkpoint.CheckpointError(f"{place}: expected known failure causes, got others; use another checkpoint")
    return params, failed, cause


def _kept(settings: Settings, lanes: training.TrainState, since: training.MetricsSnapshot) -> dict[str, Any]:
    """What a checkpoint holds."""
    kept = lanes if settings.save_replay else lanes._replace(buffer=())
    return {"lanes": kept, "since": tree.from_numpy(since)}


def _check_same(place: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """A program of other shapes, or another run, would go on from what it did not do."""
    saved = with_defaults(saved)
    free = {"out", "on_nan", "device", "evaluate_episodes", "evaluate_steps"}
    others = {name for name in {*saved, *now} if saved.get(name) != now.get(name)} - free
    if others:
        lines = ", ".join(f"{name} = {saved.get(name)!r} and not {now.get(name)!r}" for name in sorted(others))
        lines = lines if lines.isprintable() else ascii(lines)
        raise ValueError(f"{place}: expected the settings of config.json, got {lines}")


def _check_rows(path: Path, at: Moment) -> None:
    """Lines are neither lost nor changed without a word."""
    for name in ROWS:
        file, counted = path / name, at.rows[name]
        if not counted["bytes"]:
            continue
        if not file.exists() or file.stat().st_size < counted["bytes"]:
            difference = f"at least the {counted['bytes']} bytes that the checkpoint of step {at.step} counts on"
        elif files.digest(file, counted["bytes"]) != counted["sha256"]:
            difference = f"its first {counted['bytes']} bytes as the checkpoint of step {at.step} counts on them"
        else:
            continue
        raise checkpoint.CheckpointError(f"{file}: expected {difference}, got others; put the file back as it was")


def _check_counters(place: Path, program: training.Program, at: Moment, lanes: training.TrainState, own: Any) -> None:
    """What numbers out of a file are used for places and ends; keys and hyper-parameters are the run's own."""
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
    sound = sound and tree.equal((lanes.key, lanes.hyper), own)
    if not (sound and (lanes.cycle * config.env_steps == at.step).all()):
        raise checkpoint.CheckpointError(f"{place}: expected counters of step {at.step}, got others; use another one")


def record(
    path: Path,
    settings: Settings,
    reports: Iterator[training.Report],
    where: Restored | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
) -> Iterator[training.Report]:
    """Write the reports of a run and pass them on: the rows of all seeds in one write, then a checkpoint if one is due.

    `where` is the point from which the run was resumed. `on_checkpoint` is called with the folder and the step of each
    checkpoint after it is written.

    Raises FloatingPointError at a report of a seed that has failed, where the settings say so.
    """
    step, steps, seconds = (where.step, where.steps, where.seconds) if where else (0, settings.steps, 0.0)
    began, kept = time.perf_counter() - seconds, step

    def keep(report: training.Report, rows: dict[str, Any]) -> None:
        place = _keep(path, settings, report, seconds, rows)
        if on_checkpoint is not None:
            on_checkpoint(place, report.step)

    if not (path / "metrics.csv").exists():
        _append(path / "metrics.csv", COLUMNS, [])
    for report in reports:
        if settings.on_nan == "stop" and (failures := failed_seeds(settings, report)):
            raise FloatingPointError(_failures(path, failures))
        seconds = round(time.perf_counter() - began, 3)
        # What a stopped run says of its last moment is no line of the undisturbed one.
        rows = None if report.planned else _rows(path)
        if report.step > step:
            _write_rows(path, settings, report, seconds)
        last = not report.planned or report.step >= steps
        due = settings.checkpoint_every and report.step // settings.checkpoint_every > kept // settings.checkpoint_every
        if report.step > kept and (last or due):
            keep(report, rows or _rows(path))
            kept = report.step
        yield report
    if report.step > kept:  # stopped where a report was due
        keep(report, _rows(path))


def _keep(path: Path, settings: Settings, report: training.Report, seconds: float, rows: dict[str, Any]) -> Path:
    """Write a checkpoint and return its folder. Of the others, keep the newest and that of the best training return."""
    alive = report.failed < 0
    means = statistics.row_means(report.last_returns[alive])
    ended = means[np.isfinite(means)]
    at = Moment(
        settings=to_json(settings),
        step=report.step,
        seconds=seconds,
        rows=rows,
        failed=int((~alive).sum()),
        score=float(statistics.iqm(ended)) if len(ended) else None,
    )
    folder = path / "checkpoints"
    checkpoint.save(folder, str(report.step), _kept(settings, report.state, report.since), at._asdict())
    checkpoint.prune(folder, settings.keep_checkpoints, also=[best] if (best := _best(folder)) else [])
    return folder / str(report.step)


def _best(folder: Path) -> str | None:
    """The step whose checkpoint has the highest score; one that cannot be read has none."""
    scores = {str(at.step): at.score for at in _readable(folder) if at.score is not None}
    return max(scores, key=lambda step: scores[step], default=None)


def _readable(folder: Path) -> list[Moment]:
    """What the checkpoints of a folder say, newest first, those that are damaged left out."""
    found = []
    for place in checkpoint.newest(folder):
        with contextlib.suppress(checkpoint.CheckpointError):
            found.append(moment(place))
    return found


def _rows(path: Path) -> dict[str, Any]:
    """Of each file of rows how many bytes are on disk, and their SHA-256."""
    sizes = {name: (path / name).stat().st_size if (path / name).exists() else 0 for name in ROWS}
    digests = {name: files.digest(path / name, size) if size else "" for name, size in sizes.items()}
    return {name: {"bytes": sizes[name], "sha256": digests[name]} for name in ROWS}


def failed_seeds(settings: Settings, report: training.Report) -> dict[int, tuple[int, str]]:
    """The seeds whose learning has stopped because something was not finite: the environment step and what it was."""
    steps = settings.num_envs * settings.steps_per_cycle
    return {
        seed: (int(cycle) * steps, training.CAUSES[cause])
        for seed, cycle, cause in zip(assemble.seeds(settings), report.failed, report.cause, strict=True)
        if cycle >= 0
    }


def why(cause: str) -> str:
    """One of `training.CAUSES` in words."""
    return "its environment broke" if cause == "environment" else f"its {cause} is not finite"


def _failures(path: Path, failures: dict[int, tuple[int, str]]) -> str:
    seed, (step, cause) = next(iter(failures.items()))
    others = f", and {len(failures) - 1} other seeds" if len(failures) > 1 else ""
    good = [at.step for at in _readable(path / "checkpoints") if not at.failed]
    last = f"the last good checkpoint is at step {good[0]:,}" if good else "there is no good checkpoint"
    return (
        f"stopped: seed {seed} failed at step {step:,}, {why(cause)}{others}; {last}; "
        f"fdqn resume {path} --on-nan freeze goes on without the seed"
    )


def _write_rows(path: Path, settings: Settings, report: training.Report, seconds: float) -> None:
    columns = (report.returns, report.loss, report.q, report.grad_norm, report.epsilon)
    rows = [
        (report.step, seed, report.updates[i], report.episodes[i], *(_number(x[i]) for x in columns), seconds)
        for i, seed in enumerate(assemble.seeds(settings))
    ]
    _append(path / "metrics.csv", COLUMNS, rows)
    if report.evaluation is not None:
        scores = [
            (report.step, seed, _number(report.evaluation[i].mean())) for i, seed in enumerate(assemble.seeds(settings))
        ]
        _append(path / "evaluations.csv", ("step", "seed", "return"), scores)


def _append(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows if path.exists() else [columns, *rows])
    files.append(path, text.getvalue().encode())


def _number(x: Any) -> str:
    """A number for a table; nothing for NaN, which stands for no number."""
    return "" if math.isnan(x) else f"{x:.7g}"
