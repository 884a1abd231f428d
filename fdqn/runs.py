"""The run folder: settings in, reports consumed, files out, and read again.

config.json           settings, versions, git, device, engine choices
metrics.csv           a row per seed and report
params.safetensors    the trained lanes, [S, ...] under the names of the network
summary.json          what came of it
curve.png             the learning curve over seeds
"""

import csv
import dataclasses
import io
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

import fdqn
from fdqn import compile, dqn, envs, evaluate, losses, networks, optim, plots, random, statistics, train
from fdqn.settings import Settings
from fdqn.types import Hyper, Network, Params

COLUMNS = ("step", "seed", "updates", "episodes", "return", "loss", "q", "grad_norm", "epsilon", "seconds")


class Run(NamedTuple):
    """A run folder, read."""

    path: Path
    settings: Settings
    summary: dict[str, Any]
    curve: plots.Curve
    """Training returns at every report."""


def program(settings: Settings) -> train.Program:
    """The program that the settings ask for. Raises ValueError or TypeError for settings that cannot work."""
    env = envs.make(settings.env)
    _checked(settings)
    network = network_of(settings)
    # No lane fills more rows than it takes steps.
    rows = min(settings.capacity, max(settings.steps, settings.batch_size, settings.num_envs))
    config = dqn.Config(
        num_envs=settings.num_envs,
        steps_per_cycle=settings.steps_per_cycle,
        updates_per_cycle=settings.updates_per_cycle,
        batch_size=settings.batch_size,
        capacity=rows,
        learning_starts=settings.learning_starts,
        target_period=settings.target_period if settings.tau == 1 else 0,
    )
    loss = dqn.double_q_learning if settings.double else dqn.q_learning
    penalty = {"mse": losses.squared, "huber": losses.huber}[settings.loss]
    clips = math.isfinite(settings.max_grad_norm)
    return train.Program(
        config, env, network, partial(loss, network.apply, penalty), clipped_adam if clips else plain_adam
    )


def network_of(settings: Settings) -> Network:
    """The network that the settings ask for."""
    spec = envs.make(settings.env).spec
    mlp = networks.dueling_mlp if settings.dueling else networks.mlp
    return mlp(spec.obs_shape, settings.hidden, spec.actions)


def clipped_adam(hyper: Hyper) -> optim.Optimizer:
    """Adam on gradients clipped by their global norm."""
    return optim.chain(clip=optim.clip_by_global_norm(hyper.max_grad_norm), adam=optim.adam(hyper.learning_rate))


def plain_adam(hyper: Hyper) -> optim.Optimizer:
    """Adam."""
    return optim.adam(hyper.learning_rate)


def hyper(settings: Settings) -> Hyper:
    """The hyper-parameters [S]; epsilon's share of the run becomes steps here, once."""
    return dqn.hyper(
        settings.seeds,
        learning_rate=settings.learning_rate,
        gamma=settings.gamma,
        epsilon_start=settings.epsilon_start,
        epsilon_end=settings.epsilon_end,
        epsilon_steps=settings.epsilon_fraction * settings.steps,
        tau=settings.tau,
        max_grad_norm=settings.max_grad_norm,
    )


def device(settings: Settings) -> torch.device:
    """The device that the settings ask for. Raises ValueError for CUDA where there is none."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device: expected one that is there, got cuda, but torch sees no CUDA device; use --device cpu"
        )
    use_cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def keys(settings: Settings) -> torch.Tensor:
    """The lanes' keys [S, 2], on the CPU."""
    return random.key(torch.arange(settings.seed, settings.seed + settings.seeds))


def replay_bytes(program: train.Program, lanes: int) -> int:
    """Bytes that replay will hold for `lanes` lanes: two observations, a mask, action, reward and discount a row."""
    spec = program.env.spec
    obs = math.prod(spec.obs_shape) * spec.obs_dtype.itemsize
    return lanes * program.config.capacity * (2 * obs + spec.actions + 8 + 4 + 4)


def create(settings: Settings) -> Path:
    """Make the run folder with its `config.json`. Raises ValueError where something is there already."""
    path = folder(settings)
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise ValueError(f"out: expected a folder that does not exist yet, got {path}; choose another --out") from None
    config = {
        "settings": dataclasses.asdict(dataclasses.replace(settings, out=str(path))),
        "versions": {
            "fdqn": fdqn.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "git": _git_commit(),
        "device": str(device(settings)),
        "engine": {
            "compile": settings.compile,
            "threads": torch.get_num_threads(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
    }
    _write_json(path / "config.json", config)
    return path


def folder(settings: Settings) -> Path:
    """Where the run will be written; by default a new name under `runs/`."""
    return Path(settings.out or f"runs/{settings.env}-{time.strftime('%Y%m%d-%H%M%S')}")


def functions(program: train.Program, settings: Settings) -> train.Functions:
    """The step functions, compiled or not."""
    return compile.compiled(program) if settings.compile else train.vmapped(program)


def record(path: Path, settings: Settings, reports: Iterator[train.Report]) -> Iterator[train.Report]:
    """Pass reports on, each written to `metrics.csv` first, all of its seeds in one write."""
    began = time.perf_counter()
    with open(path / "metrics.csv", "w", newline="") as file:
        csv.writer(file).writerow(COLUMNS)
        for report in reports:
            seconds = round(time.perf_counter() - began, 3)
            columns = (report.returns, report.loss, report.q, report.grad_norm, report.epsilon)
            rows = io.StringIO()
            for i in range(settings.seeds):
                counts = (report.step, settings.seed + i, report.updates, report.episodes[i])
                csv.writer(rows).writerow((*counts, *(_number(column[i]) for column in columns), seconds))
            file.write(rows.getvalue())
            file.flush()
            yield report


def finish(
    path: Path, settings: Settings, report: train.Report, started: float, outside: NDArray[np.float64] | None = None
) -> dict[str, Any]:
    """Write `params.safetensors`, `curve.png` and `summary.json`; answer with the summary.

    `started` is the `time.perf_counter()` of the command's start, `outside` the returns [S, episodes] of trained lanes
    in Gymnasium's twin of the environment.
    """
    params, seeds = report.state.learner.params, range(settings.seed, settings.seed + settings.seeds)
    failed = [seed for seed, alive in zip(seeds, _finite(params), strict=True) if not alive]
    env = envs.make(settings.env)
    final = evaluate.native(env, network_of(settings), params, evaluation_keys(settings).to(report.state.key.device))
    tensors = {name: x.detach().cpu().contiguous() for name, x in params.items()}
    _write(path / "params.safetensors", save(tensors, metadata={"seeds": json.dumps(list(seeds))}))
    rate = report.learning_updates * settings.seeds / report.learning_seconds if report.learning_seconds else math.nan
    steps_an_update = settings.num_envs * settings.steps_per_cycle / settings.updates_per_cycle
    summary: dict[str, Any] = {
        "env": settings.env,
        "seeds": list(seeds),
        "steps": report.step,
        "failed_seeds": failed,
        "final_return": returns_record(final, failed, seeds),
        "train_return": returns_record(report.last_returns, failed, seeds),
        "env_steps_per_second": _json_number(rate * steps_an_update),
        "seed_updates_per_second": _json_number(rate),
        "compile_seconds": round(report.compile_seconds, 3),
        "first_update_seconds": None if report.first_update is None else round(report.first_update - started, 3),
    }
    if outside is not None:
        summary["gymnasium_return"] = {
            "env": envs.GYMNASIUM[settings.env],
            **returns_record(outside, failed, seeds),
        }
    picture(path / "curve.png", {"": read_curve(path)}, settings.env, summary)
    summary["wall_seconds"] = round(time.perf_counter() - started, 3)
    _write_json(path / "summary.json", summary)
    return summary


def evaluation_keys(settings: Settings) -> torch.Tensor:
    """Keys [S, 2] that no training used."""
    return random.fold_in(keys(settings), train.EVALUATION)


def returns_record(returns: NDArray[Any], failed: list[int], seeds: range) -> dict[str, Any]:
    """Mean returns of seeds [S, episodes] as the contract has them; failed seeds stay in sight as null."""
    counts = np.isfinite(returns).sum(axis=1)
    per_seed = np.where(counts > 0, np.nansum(returns, axis=1) / np.maximum(counts, 1), np.nan)
    per_seed[[seeds.index(seed) for seed in failed]] = np.nan
    estimate = statistics.interval(per_seed)
    return {
        **{name: _json_number(x) for name, x in estimate._asdict().items()},
        "per_seed": [_json_number(x) for x in per_seed],
    }


def read(path: Path) -> Run:
    """A finished run's folder. Raises ValueError, naming the file, where it is not one."""
    try:
        config = json.loads((path / "config.json").read_text())
        given = config["settings"]
        settings = Settings(**{**given, "hidden": tuple(given["hidden"])})
        summary = json.loads((path / "summary.json").read_text())
        return Run(path, settings, summary, read_curve(path))
    except FileNotFoundError as error:
        raise ValueError(
            f"run: expected a finished run folder, got {path} without {Path(error.filename).name}"
        ) from None
    except (KeyError, TypeError, ValueError, NotADirectoryError) as error:
        raise ValueError(f"run: expected a finished run folder, got {path}: {type(error).__name__}: {error}") from None


def read_params(path: Path) -> Params:
    """The trained lanes [S, ...] of a run folder."""
    return dict(load_file(path / "params.safetensors"))


def read_curve(path: Path) -> plots.Curve:
    """Training returns at every report, from `metrics.csv`."""
    with open(path / "metrics.csv", newline="") as file:
        rows = [(int(row["step"]), int(row["seed"]), float(row["return"] or "nan")) for row in csv.DictReader(file)]
    steps, seeds = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    values = np.full((len(steps), len(seeds)), np.nan)
    for step, seed, value in rows:
        values[steps.index(step), seeds.index(seed)] = value
    return plots.Curve(np.asarray(steps, dtype=np.int64), values)


def picture(path: Path, curves: dict[str, plots.Curve], env: str, summary: dict[str, Any]) -> None:
    """The learning curve of one run, its result under the title."""
    final, failed = summary["final_return"], summary["failed_seeds"]
    seeds = len(summary["seeds"])
    subtitle = (
        f"{seeds} seeds, line: interquartile mean, band: 95% bootstrap interval; "
        f"trained, played greedily: {interval_text(final)}" + (f"; {len(failed)} failed" if failed else "")
    )
    plots.learning_curves(path, curves, env, subtitle)


def interval_text(record: dict[str, Any]) -> str:
    """A record of returns as `496.1 [489.0, 500.0]`, or without an interval where one seed gives none."""
    if record["iqm"] is None:
        return "none"
    ends = f" [{record['low']:.1f}, {record['high']:.1f}]" if record["low"] is not None else ""
    return f"{record['iqm']:.1f}{ends}"


def _checked(settings: Settings) -> None:
    for name, least in (("seeds", 1), ("seed", 0), ("steps", 1), ("report_every", 1), ("evaluate_every", 0)):
        if getattr(settings, name) < least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(settings, name)}")
    if settings.seed + settings.seeds > 2**32:
        raise ValueError(
            f"seed: expected seeds below 2**32, got {settings.seed} to {settings.seed + settings.seeds - 1}"
        )
    if not 0 <= settings.epsilon_fraction <= 1:
        raise ValueError(f"epsilon_fraction: expected a number in [0, 1], got {settings.epsilon_fraction}")
    if not 0 < settings.tau <= 1:
        raise ValueError(f"tau: expected a number in (0, 1], got {settings.tau}")
    if settings.tau == 1 and settings.target_period < 1:
        raise ValueError(f"target_period: expected at least 1 with tau 1, got {settings.target_period}")


def _finite(params: Params) -> NDArray[np.bool_]:
    """Which lanes [S] have only finite parameters."""
    return torch.stack([x.isfinite().flatten(1).all(1) for x in params.values()]).all(0).cpu().numpy()


def _number(x: Any) -> str:
    """A number for a table; nothing for NaN, which stands for no number."""
    return "" if math.isnan(x) else f"{x:.7g}"


def _json_number(x: Any) -> float | None:
    return float(x) if math.isfinite(x) else None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    _write(path, (json.dumps(value, indent=2) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing: under another name first, then renamed."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def _git_commit() -> str | None:
    """The commit of the code that runs, `+` where it was changed since; nothing where it is no checkout."""
    here = Path(__file__).resolve().parent
    try:
        git = partial(subprocess.run, cwd=here, capture_output=True, text=True, check=True)
        commit = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no", "."]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed)
