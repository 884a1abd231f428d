"""Run folder: record the settings and the circumstances of a run, and write its results.

config.json           settings, versions, git, device, engine choices
metrics.csv           a row per seed and report (`history`)
evaluations.csv       a row per seed and evaluation during training, if there are any (`history`)
checkpoints/STEP/     state at a step, from which a run is resumed (`history`)
params.safetensors    trained parameters [S, ...] under the names of the network
summary.json          results: returns, failures, speed
curve.png             learning curve over seeds

`results` reads these files.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

import fdqn
from fdqn import compile, envs, training
from fdqn.compile import processor
from fdqn.experiment import assemble, history, results
from fdqn.experiment.settings import Settings, to_json, with_defaults
from fdqn.storage import checkpoint, files
from fdqn.training import evaluate, host
from fdqn.types import Params


def folder(settings: Settings, base: Path = Path()) -> Path:
    """Return the path of the new run folder in `base`, by default a new name under `runs/`.

    Raises ValueError where something is there already or no folder can be made.
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
        raise ValueError(f"out: expected a folder that can be made, got {name!r}, but {above} is not a writable folder")
    if any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise ValueError("out: expected names of at most 255 bytes, got a longer one")
    return path


def _names(settings: Settings, base: Path) -> Iterator[Path]:
    """The names for a run without one: of environment and time, then with -2, -3, ... behind them."""
    env = re.sub("[^A-Za-z0-9_.-]+", "-", settings.env)
    name = base / "runs" / f"{env}-{time.strftime('%Y%m%d-%H%M%S')}"
    yield name
    yield from (name.with_name(f"{name.name}-{number}") for number in itertools.count(2))


def _made(settings: Settings, base: Path) -> Path:
    """Make the run folder; of several processes that want one name, one gets it and the others the next."""
    first = folder(settings, base)
    for path in [first] if settings.out is not None else _names(settings, base):
        try:
            path.mkdir(parents=True)
            return path
        except OSError as error:
            taken = isinstance(error, FileExistsError) and path.parent.is_dir()
            if not taken or settings.out is not None:
                reason = f"got {str(path)!r}: {error.strerror}"
                raise ValueError(f"out: expected a folder that can be made, {reason}") from None
    raise AssertionError("there are always more names")


def create(settings: Settings, base: Path = Path()) -> Path:
    """Make the run folder in `base` with its `config.json`. Raises ValueError where that cannot be done."""
    path = _made(settings, base)
    out = settings.out or str(path.relative_to(base))
    config = {
        "settings": to_json(dataclasses.replace(settings, out=out)),
        "plan": {"steps": settings.steps, "on_nan": settings.on_nan},
        **_circumstances(settings),
    }
    files.write(path / "config.json", _json(config))
    files.sync(path.parent)
    return path


def replan(path: Path, steps: int, settings: Settings) -> None:
    """Write down how many steps a run is to take, and what else `resume` may change of its settings, for later ones."""
    config = results.read_config(path)
    before = with_defaults(config["settings"])
    changed = {
        name: getattr(settings, name) for name in results.REPLANNED if getattr(settings, name) != before.get(name)
    }
    plan = {"steps": steps, "on_nan": settings.on_nan, **changed}
    files.write(path / "config.json", _json(config | {"plan": plan}))


def differences(path: Path, settings: Settings) -> list[str]:
    """In what this process differs from the one that began the run, where that may change how results are rounded."""
    then, now = results.read_config(path), _circumstances(settings)
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


def _circumstances(settings: Settings) -> dict[str, Any]:
    """What results depend on beside the settings."""
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
        "engine": _engine(settings),
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = processor.line("model name").partition(":")[2].strip()
    return model or platform.processor() or platform.machine()


def _engine(settings: Settings) -> dict[str, Any]:
    return {
        "compile": settings.compiles,
        "engine": _engine_name(settings),
        "cuda_graphs": settings.compiles and assemble.device(settings).type == "cuda",
        "threads": torch.get_num_threads(),
        "lanes": _partition(settings),
        "flush_denormal": compile.flushes_denormals(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _engine_name(settings: Settings) -> str:
    """The row of the table of engines that the settings stand for."""
    return compile.resolve(settings.engine if settings.compile else "eager", assemble.device(settings))


def _recorded_engine(engine: dict[str, Any]) -> str:
    """The engine that a config.json tells of; before there was a choice, by what it says of compiling and lanes."""
    if "engine" in engine:
        return engine["engine"]
    if not engine.get("compile", True):
        return "eager"
    return "aot" if engine.get("lanes") else "inductor"


def _partition(settings: Settings) -> dict[str, int] | None:
    """How threads share the lanes; None where they go all together."""
    if _engine_name(settings) != "aot":
        return None
    return compile.partition(assemble.program(settings), settings.seeds, torch.get_num_threads())._asdict()


def functions(program: training.Program, settings: Settings, games: Any = None) -> training.Functions:
    """The step functions on the engine of the settings; in a world that is open, those that step it."""
    engine = _engine_name(settings)
    if games is None:
        return compile.compiled(program, settings.check_compile, engine)
    return host.functions(program, games, compile.compiled_parts(program, settings.check_compile, engine))


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
        settings: the run's.
        report: the last one.
        started: `time.perf_counter()` at the start of the run in this process.
        final: episodes of the trained seeds in the environment trained on.
        gymnasium: those in Gymnasium's version of the environment, if there is one.
        before: seconds that earlier processes spent on the run.
    """
    params, seeds = report.state.learner.params, assemble.seeds(settings)
    save_params(path, settings, params)
    failures = history.failed_seeds(settings, report)
    causes = {seed: cause for seed, (_, cause) in failures.items()}
    failed, _ = results.failed_seeds(settings, causes, results.finite(params))
    rate = report.learning_updates * settings.seeds / report.learning_seconds if report.learning_seconds else None
    steps_an_update = settings.num_envs * settings.steps_per_cycle / settings.updates_per_cycle
    summary: dict[str, Any] = {
        "env": settings.env,
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
        cut = None if gymnasium.limit is None else (gymnasium.unfinished, gymnasium.limit)
        played = results.returns_record(gymnasium.returns, failed, seeds, cut)
        summary["gymnasium_return"] = {"env": envs.GYMNASIUM[settings.env], **played}
    drawn = io.BytesIO()
    results.picture(drawn, results.read_curve(path), summary)
    files.write(path / "curve.png", drawn.getvalue())
    summary["wall_seconds"] = round(before + time.perf_counter() - started, 3)
    files.write(path / "summary.json", _json(summary))
    return summary


def writing(path: Path) -> contextlib.AbstractContextManager[None]:
    """Keeps other writers out of a run folder. Raises CheckpointError where there is one."""
    if (path / "checkpoints").is_symlink():
        raise checkpoint.CheckpointError(f"{path / 'checkpoints'}: expected a folder of this run, got a link")
    if path.is_dir():
        (path / "checkpoints").mkdir(exist_ok=True)
    return checkpoint.lock(path / "checkpoints")


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def git_commit() -> str | None:
    """The commit of the code that runs, `+` where it was changed since; nothing where it is no checkout."""
    here = Path(__file__).resolve().parent
    try:
        git = partial(subprocess.run, cwd=here, capture_output=True, encoding="utf-8", errors="replace", check=True)
        git(["git", "ls-files", "--error-unmatch", Path(__file__).name])  # fails inside a checkout of something else
        commit = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no", "."]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed)
