"""The run folder: settings in, reports consumed, files out, and read again.

config.json           settings, versions, git, device, engine choices
metrics.csv           a row per seed and report
checkpoints/STEP/     everything at a step, to go on from
evaluations.csv       a row per seed and evaluation on the way, where they were asked for
params.safetensors    the trained lanes, [S, ...] under the names of the network
summary.json          what came of it
curve.png             the learning curve over seeds
"""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import platform
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

import fdqn
from fdqn import build, checkpoint, compile, envs, evaluate, lanes, plots, statistics, train, tree
from fdqn.settings import Settings, from_json, to_json
from fdqn.types import Params

COLUMNS = ("step", "seed", "updates", "episodes", "return", "loss", "q", "grad_norm", "epsilon", "seconds")

ROWS = ("metrics.csv", "evaluations.csv")
"""Files that grow."""

SUMMARY = {
    *("env", "seeds", "steps", "failed_seeds", "failures", "final_return", "train_return", "env_steps_per_second"),
    *("seed_updates_per_second", "compile_seconds", "first_update_seconds", "wall_seconds"),
}


class Run(NamedTuple):
    """A run folder, read."""

    path: Path
    settings: Settings
    summary: dict[str, Any]
    curve: plots.Curve
    """Training returns at every report."""


def folder(settings: Settings) -> Path:
    """Where the run will be written; by default a new name under `runs/`.

    Raises ValueError where something is there already or no folder can be made.
    """
    new = f"runs/{settings.env.replace(':', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    name = new if settings.out is None else settings.out
    path = Path(name)
    if not name or os.path.lexists(path):
        raise ValueError(f"out: expected a folder that does not exist yet, got {name!r}; choose another --out")
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"out: expected a folder that can be made, got {name!r}, but {above} is not a writable folder")
    if any(len(part.encode()) > 255 for part in path.parts):
        raise ValueError("out: expected names of at most 255 bytes, got a longer one")
    return path


def create(settings: Settings) -> Path:
    """Make the run folder with its `config.json`. Raises ValueError where that cannot be done."""
    path = folder(settings)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"out: expected a folder that can be made, got {str(path)!r}: {error.strerror}") from None
    config = {
        "settings": to_json(dataclasses.replace(settings, out=str(path))),
        "versions": {
            "fdqn": fdqn.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "git": git_commit(),
        "device": str(build.device(settings)),
        "engine": _engine(settings),
    }
    _write_json(path / "config.json", config)
    return path


def differences(path: Path, settings: Settings) -> list[str]:
    """In what this process differs from the one that began the run, where that may change how results are rounded."""
    began = json.loads((path / "config.json").read_text())
    now = {"device": str(build.device(settings)), "torch": torch.__version__, **_engine(settings)}
    then = {"device": began["device"], "torch": began["versions"]["torch"], **began["engine"]}
    return [f"{name} is {now[name]} and was {then.get(name)}" for name in now if now[name] != then.get(name)]


def _engine(settings: Settings) -> dict[str, Any]:
    return {
        "compile": settings.compile,
        "cuda_graphs": settings.compile and build.device(settings).type == "cuda",
        "threads": torch.get_num_threads(),
        "lanes": _split(settings),
        "flush_denormal": lanes.flushes_denormals(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _split(settings: Settings) -> dict[str, int] | None:
    """How the lanes share a CPU; nothing where they go all together."""
    if not settings.compile or not lanes.known_here(build.device(settings)):
        return None
    return lanes.split(build.program(settings), settings.seeds, torch.get_num_threads())._asdict()


def functions(program: train.Program, settings: Settings) -> train.Functions:
    """The step functions, compiled or not."""
    return compile.compiled(program) if settings.compile else train.vmapped(program)


class Restored(NamedTuple):
    """Where a run goes on from."""

    state: train.TrainState
    since: train.Reading | None
    """What the next report's means are counted from; nothing at the start."""
    step: int
    steps: int
    """Planned environment steps a seed."""
    seconds: float
    """That the run took until here."""


def restored(
    path: Path, settings: Settings, program: train.Program, start: train.TrainState, fallback: bool = False
) -> Restored:
    """The run of a folder as its newest checkpoint has it, or, where there is none, `start`: the lanes before their
    first step, which are written over. Rows that were written after that moment are taken back.

    Raises CheckpointError for a damaged checkpoint, unless `fallback` and an older one is whole, and ValueError for one
    of other settings, naming those.
    """
    found = checkpoint.newest(path / "checkpoints")
    like = {"lanes": start, "since": tree.from_numpy(train.reading(program, start))}
    for i, place in enumerate(found):
        try:
            record = checkpoint.record(place)
            _check_same(place, record["settings"], json.loads(json.dumps(to_json(settings))))
            read, _ = checkpoint.load(place, like)
        except checkpoint.CheckpointError as error:
            if fallback and i + 1 < len(found):
                continue
            hint = "; --fallback goes on from the one before" if i + 1 < len(found) else ""
            raise checkpoint.CheckpointError(f"{error}{hint}") from None
        for name, size in record["bytes"].items():
            _take_back(path / name, size)
        since = train.Reading(*tree.to_numpy(read["since"]))
        return Restored(read["lanes"], since, record["step"], record["steps"], record["seconds"])
    for name in ROWS:
        _take_back(path / name, 0)
    return Restored(start, None, 0, settings.steps, 0.0)


def _check_same(place: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """A program of other shapes, or another run, would go on from what it did not do."""
    others = {name for name in {*saved, *now} if saved.get(name) != now.get(name)} - {"out", "on_nan"}
    if others:
        lines = ", ".join(f"{name} = {saved.get(name)!r} and not {now.get(name)!r}" for name in sorted(others))
        raise ValueError(f"{place}: expected the settings of config.json, got {lines}")


def _take_back(file: Path, size: int) -> None:
    """Leave the first `size` bytes."""
    if size == 0:
        file.unlink(missing_ok=True)
    elif not file.exists() or file.stat().st_size < size:
        raise checkpoint.CheckpointError(f"{file}: expected at least the {size} bytes that a checkpoint counts on")
    else:
        os.truncate(file, size)


def _keep(path: Path, settings: Settings, report: train.Report, steps: int, seconds: float, sizes: dict) -> None:
    """Write a checkpoint; of the others, the newest and that of the best training return stay."""
    for name in sizes:
        if (path / name).exists():
            with open(path / name, "rb") as file:
                os.fsync(file)  # the checkpoint counts on these rows
    record = {
        "settings": to_json(settings),
        "step": report.step,
        "steps": steps,
        "seconds": seconds,
        "bytes": sizes,
        "score": _json_number(statistics.iqm(_means(report.last_returns))),
    }
    state = {"lanes": report.state, "since": tree.from_numpy(report.since)}
    checkpoint.save(path / "checkpoints", str(report.step), state, record)
    scores = {place.name: checkpoint.record(place)["score"] for place in checkpoint.newest(path / "checkpoints")}
    best = max(scores, key=lambda name: -math.inf if scores[name] is None else scores[name])
    checkpoint.prune(path / "checkpoints", settings.keep_checkpoints, also=[best])


def record(
    path: Path,
    settings: Settings,
    reports: Iterator[train.Report],
    where: Restored | None = None,
) -> Iterator[train.Report]:
    """Pass on the reports of a run, each written first, all of its seeds in one write, with a checkpoint where one is
    due. `where` is from where the run went on.

    Raises FloatingPointError at a report of a seed that has failed, where the settings say so.
    """
    step, steps, seconds = (where.step, where.steps, where.seconds) if where else (0, settings.steps, 0.0)
    began, kept = time.perf_counter() - seconds, step
    if not (path / "metrics.csv").exists():
        _append(path / "metrics.csv", COLUMNS, [])
    for report in reports:
        if settings.on_nan == "stop" and (failures := failed_seeds(settings, report)):
            raise FloatingPointError(_failures(path, failures))
        seconds = round(time.perf_counter() - began, 3)
        sizes = {} if report.planned else _sizes(path)
        if report.step > step:
            _write_rows(path, settings, report, seconds)
        last = not report.planned or report.step >= steps
        due = settings.checkpoint_every and report.step // settings.checkpoint_every > kept // settings.checkpoint_every
        if report.step > kept and (last or due):
            _keep(path, settings, report, steps, seconds, sizes or _sizes(path))
            kept = report.step
        yield report
    if report.step > kept:  # stopped where a report was due
        _keep(path, settings, report, steps, seconds, _sizes(path))


def _failures(path: Path, failures: dict[int, tuple[int, str]]) -> str:
    seed, (step, cause) = next(iter(failures.items()))
    others = f", and {len(failures) - 1} other seeds" if len(failures) > 1 else ""
    found = checkpoint.newest(path / "checkpoints")
    last = (
        f"the last good checkpoint is at step {checkpoint.record(found[0])['step']:,}"
        if found
        else "there is no checkpoint yet"
    )
    return (
        f"stopped: seed {seed} failed at step {step:,}, its {cause} is not finite{others}; {last}; "
        f"fdqn resume {path} --on-nan freeze goes on from there without the seed"
    )


def _sizes(path: Path) -> dict[str, int]:
    return {name: (path / name).stat().st_size if (path / name).exists() else 0 for name in ROWS}


def _write_rows(path: Path, settings: Settings, report: train.Report, seconds: float) -> None:
    columns = (report.returns, report.loss, report.q, report.grad_norm, report.epsilon)
    rows = [
        (report.step, seed, report.updates, report.episodes[i], *(_number(x[i]) for x in columns), seconds)
        for i, seed in enumerate(build.seeds(settings))
    ]
    _append(path / "metrics.csv", COLUMNS, rows)
    if report.evaluation is not None:
        scores = [
            (report.step, seed, _number(report.evaluation[i].mean())) for i, seed in enumerate(build.seeds(settings))
        ]
        _append(path / "evaluations.csv", ("step", "seed", "return"), scores)


def save_params(path: Path, settings: Settings, params: Params) -> None:
    """Write `params.safetensors`."""
    tensors = {name: x.detach().cpu().contiguous() for name, x in params.items()}
    write_whole(path / "params.safetensors", save(tensors, metadata={"seeds": json.dumps(list(build.seeds(settings)))}))


def finish(
    path: Path, settings: Settings, report: train.Report, started: float, outside: NDArray[np.float64] | None = None
) -> dict[str, Any]:
    """Write `params.safetensors`, `curve.png` and `summary.json`; answer with the summary.

    `started` is the `time.perf_counter()` of the command's start, `outside` the returns [S, episodes] of trained lanes
    in Gymnasium's twin of the environment.
    """
    params, seeds = report.state.learner.params, build.seeds(settings)
    save_params(path, settings, params)
    failures = failed_seeds(settings, report)
    failed = sorted({*failures, *(seed for seed, finite in zip(seeds, _finite(params), strict=True) if not finite)})
    final = evaluate.native(envs.make(settings.env), build.network(settings), params, report.state.key)
    rate = report.learning_updates * settings.seeds / report.learning_seconds if report.learning_seconds else math.nan
    steps_an_update = settings.num_envs * settings.steps_per_cycle / settings.updates_per_cycle
    summary: dict[str, Any] = {
        "env": settings.env,
        "seeds": list(seeds),
        "steps": report.step,
        "failed_seeds": failed,
        "failures": [{"seed": seed, "step": step, "cause": cause} for seed, (step, cause) in failures.items()],
        "final_return": returns_record(final, failed, seeds),
        "train_return": returns_record(report.last_returns, failed, seeds),
        "env_steps_per_second": _json_number(rate * steps_an_update),
        "seed_updates_per_second": _json_number(rate),
        "compile_seconds": round(report.compile_seconds, 3) if settings.compile else 0.0,
        "first_update_seconds": None if report.first_update is None else round(report.first_update - started, 3),
    }
    if outside is not None:
        played = returns_record(outside, failed, seeds)
        summary["gymnasium_return"] = {"env": envs.GYMNASIUM[settings.env], **played}
    part = path / "curve.png.part"
    picture(part, read_curve(path), summary)
    os.replace(part, path / "curve.png")
    summary["wall_seconds"] = round(time.perf_counter() - started, 3)
    _write_json(path / "summary.json", summary)
    return summary


def failed_seeds(settings: Settings, report: train.Report) -> dict[int, tuple[int, str]]:
    """The seeds whose learning has stopped because something was not finite: the environment step and what it was."""
    steps = settings.num_envs * settings.steps_per_cycle
    return {
        seed: (int(cycle) * steps, train.CAUSES[cause])
        for seed, cycle, cause in zip(build.seeds(settings), report.failed, report.cause, strict=True)
        if cycle >= 0
    }


def returns_record(returns: NDArray[Any], failed: list[int], seeds: range) -> dict[str, Any]:
    """Mean returns of seeds [S, episodes] as the contract has them; failed seeds stay in sight as null."""
    per_seed = _means(returns)
    per_seed[[seeds.index(seed) for seed in failed]] = np.nan
    estimate = statistics.interval(per_seed)
    return {
        **{name: _json_number(x) for name, x in estimate._asdict().items()},
        "per_seed": [_json_number(x) for x in per_seed],
    }


def _means(returns: NDArray[Any]) -> NDArray[np.float64]:
    """The mean of each row's finite numbers, NaN where there is none."""
    counts = np.isfinite(returns).sum(axis=1)
    return np.where(counts > 0, np.nansum(returns, axis=1) / np.maximum(counts, 1), np.nan)


def writing(path: Path) -> contextlib.AbstractContextManager[None]:
    """Keeps other writers out of a run folder. Raises CheckpointError where there is one."""
    if path.is_dir():
        (path / "checkpoints").mkdir(exist_ok=True)
    return checkpoint.lock(path / "checkpoints")


def plan(path: Path) -> Settings:
    """The settings of a run folder, finished or not. Raises ValueError, naming the file, where it is none."""
    return _read(path, "config.json", _read_settings)


def finished(path: Path) -> int:
    """Environment steps a seed of the last summary; 0 where there is none."""
    return _read(path, "summary.json", _read_summary)["steps"] if (path / "summary.json").exists() else 0


def read(path: Path) -> Run:
    """A finished run's folder. Raises ValueError, naming the file, where it is not one."""
    settings = _read(path, "config.json", _read_settings)
    summary = _read(path, "summary.json", _read_summary)
    return Run(path, settings, summary, _read(path, "metrics.csv", lambda file: read_curve(file.parent)))


def read_params(path: Path) -> Params:
    """The trained lanes [S, ...] of a run folder, in the network's order: the file's is the alphabet's.

    Raises ValueError where they are not those of the run's settings.
    """
    settings = _read(path, "config.json", _read_settings)
    params = _read(path, "params.safetensors", lambda file: dict(load_file(file)))
    expected = build.network(settings).init(build.keys(settings))
    shapes, given = ({name: list(x.shape) for name, x in tree.items()} for tree in (expected, params))
    if shapes != given:
        raise ValueError(f"params.safetensors: expected {shapes}, got {given}")
    return {name: params[name] for name in expected}


def read_curve(path: Path) -> plots.Curve:
    """Training returns at every report, from `metrics.csv`."""
    with open(path / "metrics.csv", newline="") as file:
        rows = [(int(row["step"]), int(row["seed"]), float(row["return"] or "nan")) for row in csv.DictReader(file)]
    if not rows:
        raise ValueError("expected rows, got none")
    steps, seeds = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    row_of, column_of = ({x: i for i, x in enumerate(axis)} for axis in (steps, seeds))
    values = np.full((len(steps), len(seeds)), np.nan)
    for step, seed, value in rows:
        values[row_of[step], column_of[seed]] = value
    return plots.Curve(np.asarray(steps, dtype=np.int64), values)


def picture(path: Path, curve: plots.Curve, summary: dict[str, Any]) -> None:
    """The learning curve of one run, failed seeds left out, its result under the title."""
    failed, seeds = summary["failed_seeds"], summary["seeds"]
    result = f"{len(seeds)} seeds; trained, played greedily: {interval_text(summary['final_return'])}"
    alive = curve._replace(values=curve.values[:, [seed not in failed for seed in seeds]])
    left_out = f"; {len(failed)} failed seeds left out" if failed else ""
    plots.learning_curves(path, {summary["env"]: {"": alive}}, result + left_out)


def comparison(path: Path, read: Sequence[Run]) -> None:
    """The learning curves of several runs, a panel for each environment: returns of two do not share a scale."""
    panels: dict[str, dict[str, plots.Curve]] = {}
    for run in read:
        panels.setdefault(run.settings.env, {})[str(run.path)] = run.curve
    plots.learning_curves(path, panels)


def interval_text(record: dict[str, Any]) -> str:
    """A record of returns as `496.1 [489.0, 500.0]`, or without an interval where one seed gives none."""
    if record["iqm"] is None:
        return "none"
    ends = f" [{record['low']:.1f}, {record['high']:.1f}]" if record["low"] is not None else ""
    return f"{record['iqm']:.1f}{ends}"


Read = TypeVar("Read")


def _read(path: Path, name: str, reader: Callable[[Path], Read]) -> Read:
    """One file of a run folder; whatever is wrong with it becomes one sentence that names it."""
    try:
        return reader(path / name)
    except FileNotFoundError:
        raise ValueError(f"run: expected a finished run folder, got {path} without {name}") from None
    except json.JSONDecodeError:
        reason = "which is not JSON"
    except (OSError, UnicodeDecodeError, SafetensorError) as error:
        reason = f"which cannot be read: {error}"
    except (KeyError, TypeError, ValueError) as error:
        reason = f"in which something is wrong: {error}"
    raise ValueError(f"run: expected a finished run folder, got {path} with a {name} {reason}")


def _read_settings(file: Path) -> Settings:
    config = json.loads(file.read_text())
    if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
        raise ValueError("expected a record of settings")
    settings = from_json(config["settings"])
    build.program(settings)
    return settings


def _read_summary(file: Path) -> dict[str, Any]:
    summary = json.loads(file.read_text())
    missing = SUMMARY - set(summary) if isinstance(summary, dict) else SUMMARY
    if missing:
        raise ValueError(f"expected {', '.join(sorted(missing))} too")
    return summary


def _append(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows if path.exists() else [columns, *rows])
    with open(path, "a", newline="") as file:
        file.write(text.getvalue())


def _finite(params: Params) -> NDArray[np.bool_]:
    """Which lanes [S] have only finite parameters."""
    return torch.stack([x.isfinite().flatten(1).all(1) for x in params.values()]).all(0).cpu().numpy()


def _number(x: Any) -> str:
    """A number for a table; nothing for NaN, which stands for no number."""
    return "" if math.isnan(x) else f"{x:.7g}"


def _json_number(x: Any) -> float | None:
    return float(x) if math.isfinite(x) else None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """All of it or nothing: under another name first, then renamed."""
    part = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def git_commit() -> str | None:
    """The commit of the code that runs, `+` where it was changed since; nothing where it is no checkout."""
    here = Path(__file__).resolve().parent
    try:
        git = partial(subprocess.run, cwd=here, capture_output=True, text=True, check=True)
        git(["git", "ls-files", "--error-unmatch", Path(__file__).name])  # fails inside a checkout of something else
        commit = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no", "."]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed)
