"""Run folder: record the settings and the circumstances of a run, and write its results.

config.json           settings, versions, git, device, engine choices
settings.csv          only of a sweep: a row per learner, with its setting, seed and the values that differ
metrics.csv           a row per seed and report (`history`)
population.csv        only of population based training: a row per learner and step of it (`population`)
evaluations.csv       a row per seed and evaluation during training, if there are any (`history`)
checkpoints/STEP/     state at a step, from which a run is resumed (`history`)
params.safetensors    trained parameters [S, ...] under the names of the network
summary.json          results: returns, failures, speed
curve.png             learning curve over seeds
tracking.json         only of a tracked run: its trackers (`tracking`)

`results` reads these files.
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

import fdqn
from fdqn import compile, envs, training
from fdqn.compile import processor
from fdqn.experiment import assemble, history, population, results
from fdqn.experiment.settings import Settings, Sweep, to_json, to_json_values, with_defaults
from fdqn.storage import checkpoint, files
from fdqn.training import evaluate, host
from fdqn.types import Params


def folder(settings: Settings, base: Path = Path()) -> Path:
    """Return the path of the new run folder in `base`, by default a new name under `runs/`.

    Raises ValueError if the path exists already or the folder cannot be created.
    """
    if settings.out is not None:
        path = base / settings.out
        if not settings.out or os.path.lexists(path):
            raise ValueError(
                f"out: expected a folder that does not exist yet, got {settings.out!r}; choose another --out"
            )
    else:
        path = next(name for name in _names(settings, base) if not os.path.lexists(name))
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK):
        name = settings.out or str(path)
        raise ValueError(
            f"out: expected a folder that can be created, got {name!r}, but {above} is not a writable folder"
        )
    if any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise ValueError("out: expected names of at most 255 bytes, got a longer one")
    return path


def _names(settings: Settings, base: Path) -> Iterator[Path]:
    """Yield default names of a run folder: environment and time, then the same with -2, -3, ... appended."""
    env = re.sub("[^A-Za-z0-9_.-]+", "-", settings.env)
    name = base / "runs" / f"{env}-{time.strftime('%Y%m%d-%H%M%S')}"
    yield name
    yield from (name.with_name(f"{name.name}-{number}") for number in itertools.count(2))


def _make_folder(settings: Settings, base: Path) -> Path:
    """Create the run folder. If several processes choose the same default name, one gets it and the others the next."""
    first = folder(settings, base)
    for path in [first] if settings.out is not None else _names(settings, base):
        try:
            path.mkdir(parents=True)
            return path
        except OSError as error:
            taken = isinstance(error, FileExistsError) and path.parent.is_dir()
            if not taken or settings.out is not None:
                reason = f"got {str(path)!r}: {error.strerror}"
                raise ValueError(f"out: expected a folder that can be created, {reason}") from None
    raise AssertionError("unreachable: there are infinitely many names")


def create(
    settings: Settings,
    base: Path = Path(),
    until: int | None = None,
    pinned: compile.ThreadPartition | None = None,
) -> Path:
    """Create the run folder in `base` with its `config.json`. Raises ValueError if it cannot be created.

    `until` is the planned number of environment steps per seed, by default that of the settings. `pinned` is
    a partition of the seeds whose groups the run keeps on any machine; by default each process chooses its own.
    """
    path = _make_folder(settings, base)
    out = settings.out or str(path.relative_to(base))
    config = {
        "settings": to_json(dataclasses.replace(settings, out=out)),
        "plan": plan_record(settings, until or settings.steps, pinned),
        **provenance(settings, pinned),
    }
    if isinstance(settings, Sweep):
        files.write(path / "settings.csv", settings_table(settings).encode())
    write_config(path, config)
    files.sync(path.parent)
    return path


def remove_incomplete(path: Path) -> None:
    """Remove a run folder without `config.json`, which a process left that was killed while it created the folder.

    A folder with other files is kept.
    """
    with contextlib.suppress(OSError):
        for file in (path / "settings.csv", *path.glob("*.part")):
            file.unlink(missing_ok=True)
        path.rmdir()


def plan_record(settings: Settings, steps: int, pinned: compile.ThreadPartition | None = None) -> dict[str, Any]:
    """Return the plan in `config.json`: the steps, `on_nan` and the pinned partition."""
    kept = {} if pinned is None else {"partition": partition_record(pinned)}
    return {"steps": steps, "on_nan": settings.on_nan, **kept}


def create_sweep(settings: Sweep) -> Path:
    """Create the folder of a sweep of several runs with its `settings.csv`, and return its absolute path.

    Raises ValueError if the path exists already or the folder cannot be created.
    """
    path = folder(settings).absolute()  # an environment may change the current folder
    path.mkdir(parents=True)
    files.write(path / "settings.csv", settings_table(settings).encode())
    return path


def settings_table(settings: Sweep) -> str:
    """Format `settings.csv`: a row for each learner, with its setting, its seed and the values that differ."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("learner", "setting", "seed", *settings.varied[0]))
    for lane in range(settings.learners):
        setting, seed = divmod(lane, settings.seeds)
        writer.writerow((lane, setting, settings.seed + seed, *map(cell, settings.varied[setting].values())))
    return text.getvalue()


def cell(value: Any) -> str:
    """Format a value of a setting for `settings.csv`: the sizes of layers as words, numbers without loss."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def replan(path: Path, steps: int, settings: Settings) -> None:
    """Update the plan in `config.json`: the number of steps and the settings that `resume` may change."""
    config = results.read_config(path)
    before = with_defaults(config["settings"])
    changed = {
        name: getattr(settings, name) for name in results.REPLANNED if getattr(settings, name) != before.get(name)
    }
    kept = {name: x for name, x in config["plan"].items() if name == "partition"}
    plan = {"steps": steps, "on_nan": settings.on_nan, **kept, **changed}
    write_config(path, config | {"plan": plan})


def differences(path: Path, settings: Settings) -> list[str]:
    """List differences from the process that started the run that may change the rounding of results."""
    then, now = results.read_config(path), provenance(settings, pinned_partition(path, settings))
    return differences_of(then, now)


def differences_of(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List differences between two records of `provenance`."""
    flat = [
        {
            **x["versions"],
            **x["engine"],
            "engine": _recorded_engine(x["engine"]),
            **{name: x.get(name) for name in ("git", "device", "processor")},
        }
        for x in (now, then)
    ]
    return [
        f"{name} is {value} and was {was if (was := str(flat[1].get(name))).isprintable() else ascii(was)}"
        for name, value in flat[0].items()
        if value != flat[1].get(name)
    ]


def provenance(settings: Settings, pinned: compile.ThreadPartition | None = None) -> dict[str, Any]:
    """Return everything other than the settings that results may depend on: versions, commit, device and engine.

    `pinned` is the partition of the seeds if one is pinned; by default that of this process.
    """
    return {
        "versions": {
            "fdqn": fdqn.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "git": git_commit(),
        "device": str(assemble.device(settings)),
        "processor": _processor(assemble.device(settings)),
        "engine": _engine(settings, pinned),
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = processor.line("model name").partition(":")[2].strip()
    return model or platform.processor() or platform.machine()


def _engine(settings: Settings, pinned: compile.ThreadPartition | None = None) -> dict[str, Any]:
    return {
        "compile": settings.compiles,
        "engine": _engine_name(settings),
        "cuda_graphs": settings.compiles and assemble.device(settings).type == "cuda",
        "threads": torch.get_num_threads(),
        "lanes": _partition(settings, pinned),
        "flush_denormal": compile.flushes_denormals(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _engine_name(settings: Settings) -> str:
    """Return the name of the engine that the settings select."""
    return compile.resolve(settings.engine if settings.compile else "eager", assemble.device(settings))


def _recorded_engine(engine: dict[str, Any]) -> str:
    """Return the engine recorded in `config.json`; for a file of version 0.1, infer it from other fields."""
    if "engine" in engine:
        return engine["engine"]
    if not engine.get("compile", True):
        return "eager"
    return "aot" if engine.get("lanes") else "inductor"


def _partition(settings: Settings, pinned: compile.ThreadPartition | None = None) -> dict[str, int] | None:
    """Return the partition of the seeds over threads; None if all seeds run in one group."""
    if _engine_name(settings) != "aot":
        return None
    if pinned is not None:
        return partition_record(pinned)
    return compile.partition(assemble.program(settings), settings.learners, torch.get_num_threads())._asdict()


def partition_record(pinned: compile.ThreadPartition) -> dict[str, int]:
    """Return the pinned fields of a partition. The number of groups computed at once changes no bits."""
    return {"lanes": pinned.lanes, "threads": pinned.threads}


def partition_to_pin(settings: Settings, unit: int) -> compile.ThreadPartition | None:
    """Return the partition to pin in runs of parts of the learners; None for engines without groups.

    Results have the same bits in groups of the same size. The size divides `unit`, such as the number of learners of
    the smallest part.
    """
    if _engine_name(settings) != "aot":
        return None
    return compile.partition(assemble.program(settings), settings.learners, torch.get_num_threads(), unit)


def pinned_partition(path: Path, settings: Settings) -> compile.ThreadPartition | None:
    """Return the pinned partition of a run, with all of its groups at once; None if it has none."""
    kept = results.read_config(path)["plan"].get("partition")
    return kept and compile.ThreadPartition(kept["lanes"], settings.learners // kept["lanes"], kept["threads"])


def functions(
    program: training.Program,
    settings: Settings,
    vector: Any = None,
    pinned: compile.ThreadPartition | None = None,
) -> training.Functions:
    """Return the step functions on the engine of the settings; they step the host environments `vector`, if given.

    `pinned` is the partition of `pinned_partition`.
    """
    engine = _engine_name(settings)
    if vector is None:
        return compile.compiled(program, settings.check_compile, engine, pinned)
    return host.functions(program, vector, compile.compiled_parts(program, settings.check_compile, engine, pinned))


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write `config.json`."""
    files.write(path / "config.json", _json(config))


def save_params(path: Path, settings: Settings, params: Params) -> None:
    """Write `params.safetensors`."""
    tensors = {name: x.detach().cpu().contiguous() for name, x in params.items()}
    files.write(
        path / "params.safetensors", save(tensors, metadata={"seeds": json.dumps(list(assemble.seeds(settings)))})
    )


def finish(
    path: Path,
    settings: Settings,
    report: training.Report,
    started: float,
    final: evaluate.Evaluation,
    gymnasium: evaluate.Evaluation | None = None,
    before: float = 0.0,
) -> dict[str, Any]:
    """Write `params.safetensors`, `curve.png` and `summary.json`, and return the summary.

    Args:
        path: run folder.
        settings: settings of the run.
        report: the last report.
        started: `time.perf_counter()` at the start of the run in this process.
        final: evaluation of the trained seeds in the environment trained on.
        gymnasium: evaluation in Gymnasium's version of the environment, if there is one.
        before: seconds that earlier processes took for the run.
    """
    params, seeds = report.state.learner.params, assemble.seeds(settings)
    save_params(path, settings, params)
    failures = history.failed_seeds(settings, report)
    causes = {seed: cause for seed, (_, cause) in failures.items()}
    failed, _ = results.failed_seeds(settings, causes, results.finite(params))
    rate = report.learning_updates * settings.learners / report.learning_seconds if report.learning_seconds else None
    steps_an_update = settings.num_envs * settings.steps_per_cycle / settings.updates_per_cycle
    summary: dict[str, Any] = {
        "env": settings.env,
        **{name: list(x) for name in ("env_kwargs", "wrappers") if (x := getattr(settings, name))},
        "seeds": list(seeds),
        "steps": report.step,
        "failed_seeds": failed,
        "failures": [{"seed": seed, "step": step, "cause": cause} for seed, (step, cause) in failures.items()],
        "final_return": results.returns_record(final.returns, failed, seeds, (final.unfinished, final.limit)),
        "train_return": results.returns_record(report.last_returns, failed, seeds),
        "env_steps_per_second": None if rate is None else rate * steps_an_update,
        "seed_updates_per_second": rate,
        "compile_seconds": round(report.compile_seconds, 3) if settings.compiles else 0.0,
        "first_update_seconds": None if report.first_update is None else round(report.first_update - started, 3),
    }
    if gymnasium is not None:
        summary["gymnasium_return"] = _gymnasium_record(settings, gymnasium, summary)
    if isinstance(settings, Sweep) and settings.pbt_every:
        summary["population"] = population.record(settings, report.state.hyper, summary)
    return write_summary(path, settings, summary, lambda: before + time.perf_counter() - started)


def write_summary(
    path: Path, settings: Settings, summary: dict[str, Any], seconds: Callable[[], float]
) -> dict[str, Any]:
    """Add the returns of each setting of a sweep to a summary, write `curve.png` and `summary.json`, and return the
    summary.

    `seconds` is called after the picture is drawn and returns the duration of the run.
    """
    if isinstance(settings, Sweep) and not settings.pbt_every:
        summary["settings"] = _per_setting(settings, summary)
    _draw_curve(path, settings, summary)
    summary["wall_seconds"] = round(seconds(), 3)
    files.write(path / "summary.json", _json(summary))
    return summary


def add_evaluation(
    path: Path,
    settings: Settings,
    final: evaluate.Evaluation | None,
    gymnasium: evaluate.Evaluation | None,
    seconds: float,
) -> dict[str, Any]:
    """Add evaluations to the `summary.json` of a trained run, draw `curve.png` again, and return the summary.

    An evaluation that is None stays as it is. `seconds` is the time that the evaluations took.
    """
    summary = dict(results.read(path).summary)
    if final is not None:
        cut = (final.unfinished, final.limit)
        summary["final_return"] = results.returns_record(final.returns, summary["failed_seeds"], summary["seeds"], cut)
    if gymnasium is not None:
        summary["gymnasium_return"] = _gymnasium_record(settings, gymnasium, summary)
    if isinstance(settings, Sweep) and settings.pbt_every:
        summary["population"] = population.with_returns(summary["population"]["best"], summary)
    return write_summary(path, settings, summary, lambda: summary["wall_seconds"] + seconds)


def _gymnasium_record(settings: Settings, played: evaluate.Evaluation, summary: dict[str, Any]) -> dict[str, Any]:
    cut = None if played.limit is None else (played.unfinished, played.limit)
    record = results.returns_record(played.returns, summary["failed_seeds"], summary["seeds"], cut)
    return {"env": envs.GYMNASIUM[settings.env], **record}


def _draw_curve(path: Path, settings: Settings, summary: dict[str, Any]) -> None:
    """Write `curve.png`."""
    drawn = io.BytesIO()
    if isinstance(settings, Sweep) and settings.pbt_every:
        population.draw_curve(drawn, path, settings, summary)
    else:
        results.picture(drawn, results.read_curve(path), summary)
    files.write(path / "curve.png", drawn.getvalue())


def _per_setting(settings: Sweep, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the varied values, the seeds and the returns of each setting of a sweep."""
    seeds = list(range(settings.seed, settings.seed + settings.seeds))
    found = []
    for number, values in enumerate(settings.varied):
        part = slice(number * settings.seeds, (number + 1) * settings.seeds)
        lanes = range(*part.indices(settings.learners))
        failed = [settings.seed + lane - part.start for lane in lanes if lane in summary["failed_seeds"]]
        returns = {
            name: results.seeds_record([record["per_seed"][lane] for lane in lanes])
            for name, record in summary.items()
            if name in ("final_return", "train_return", "gymnasium_return")
        }
        found.append(
            {"setting": number, "values": to_json_values(values), "seeds": seeds, "failed_seeds": failed, **returns}
        )
    return found


def writing(path: Path) -> contextlib.AbstractContextManager[None]:
    """Lock a run folder against other writers. Raises CheckpointError if there is one."""
    if (path / "checkpoints").is_symlink():
        raise checkpoint.CheckpointError(f"{path / 'checkpoints'}: expected a folder of this run, got a link")
    if path.is_dir():
        (path / "checkpoints").mkdir(exist_ok=True)
    return checkpoint.lock(path / "checkpoints")


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def git_commit() -> str | None:
    """Return the Git commit of the running code, with `+` if files were changed; None outside of a checkout."""
    here = Path(__file__).resolve().parent
    try:
        git = partial(subprocess.run, cwd=here, capture_output=True, encoding="utf-8", errors="replace", check=True)
        git(["git", "ls-files", "--error-unmatch", Path(__file__).name])  # fails in a checkout of another project
        commit = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        code = (".", ":(exclude)scores.jsonl")  # not code; a benchmark appends to it between runs
        changed = git(["git", "status", "--porcelain", "--untracked-files=no", *code]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed)
