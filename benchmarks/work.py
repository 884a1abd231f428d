"""The workload of the benchmarks, and their records.

All benchmarks use the same work: 10 environments stepped once, then one update of Q-learning on a batch of 128 from a
replay of 10,000 rows, Adam, a target copy every 20 updates, epsilon 0.05. There are two networks: CartPole's
4-120-84-2, and 468-512-256-18 on a stand-in for a wide observation.
"""

import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cadence import TARGET_PERIOD, iterations_per_report
from torch import Tensor

import fdqn
from fdqn import compile, networks, random, training
from fdqn.agents import dqn
from fdqn.envs import episode
from fdqn.envs.classic import cartpole
from fdqn.experiment import assemble, run_folder
from fdqn.training import off_policy
from fdqn.types import Env, EnvSpec, Step

RECORDS = Path(__file__).parent / "records"
BATCH, ENVS, LEARNING_RATE = 128, 10, 2.5e-4
SIZES = {"small": (4, 120, 84, 2), "large": (468, 512, 256, 18)}


class Walk(NamedTuple):
    """State of the stand-in environment."""

    time: Tensor


def walk(inputs: int, actions: int) -> Env:
    """Make an environment with random observations and a reward of 1 for action 0; one in a hundred steps ends."""
    spec = episode.spec((inputs,), torch.float32, actions=actions, noise=inputs, time_limit=500)
    return Env(partial(_reset, spec=spec), partial(_step, spec=spec), spec)


def _reset(u: Tensor, spec: EnvSpec) -> tuple[Walk, Step]:
    state = Walk(torch.zeros_like(u[..., 0], dtype=torch.int64))
    return episode.begin(state, u, episode.all_legal(state.time, spec.actions))


def _step(state: Walk, action: Tensor, u: Tensor, spec: EnvSpec) -> tuple[Walk, Step]:
    legal, reward = episode.all_legal(state.time, spec.actions), (action == 0).to(u.dtype)
    new = Walk(state.time + 1)
    return episode.advance(new, u, legal, reward, u[..., 0] < 0.01, _reset(u, spec), spec.time_limit)


def program(network: str, capacity: int = 10_000) -> training.Program:
    """Make the program of the workload."""
    inputs, *hidden, actions = SIZES[network]
    env = cartpole.make() if network == "small" else walk(inputs, actions)
    net = networks.mlp(env.spec.obs_shape, hidden, actions)
    sizes = {"num_envs": ENVS, "batch_size": BATCH, "capacity": capacity}
    config = training.Config(**sizes, learning_starts=1_000, target_period=TARGET_PERIOD)
    agent, buffer = dqn.agent(net, double=False), assemble.buffer(config, env.spec)
    return training.Program(env, off_policy.algorithm(config, agent, buffer, assemble.adam))


def initial_state(program: training.Program, seeds: int, device: str) -> training.TrainState:
    """Initialize `seeds` seeds of a program."""
    hyper = training.hyper(
        seeds, learning_rate=LEARNING_RATE, epsilon_start=0.05, max_grad_norm=math.inf, device=torch.device(device)
    )
    return training.init(program, hyper, random.key(range(seeds)).to(device))


def steady(
    program: training.Program, state: training.TrainState, functions: training.Functions, **given: Any
) -> tuple[training.Report, Iterator[training.Report], int]:
    """Return the report of a run's first update, then reports about every REPORT_SECONDS and the iterations between
    them.

    With a report every 20 iterations, a GPU with few seeds would report every 2 ms, which would add to the time.
    """
    steps = program.config.env_steps
    reports = training.run(program, state, 10**12, functions, report_every=TARGET_PERIOD * steps, **given)
    first = next(report for report in reports if report.first_update is not None)
    seconds = []
    for _ in range(8):
        before = time.perf_counter()
        report = next(reports)
        seconds.append(time.perf_counter() - before)
    cycles = iterations_per_report(min(seconds[3:]) / TARGET_PERIOD)
    rest = training.run(program, report.state, 10**12, functions, report_every=cycles * steps, **given)
    for _ in range(2):
        next(rest)  # each call length has been compiled and run
    return first, rest, cycles


def prepared(name: str, program: training.Program, state: training.TrainState) -> Callable[[], float]:
    """Compile a program and return a function that trains for a second and returns the updates per second of all seeds.

    Compilation is part of this call. It is reported under `name`.
    """
    start, seeds = time.perf_counter(), len(state.key)
    _, reports, iterations = steady(program, state, compile.compiled(program))
    say(f"{name}: prepared in {time.perf_counter() - start:.0f} s")
    updates = iterations * program.config.updates_per_cycle * seeds

    def measure() -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < 1.0:
            next(reports)
            done += updates
        return done / (time.perf_counter() - start)

    return measure


def flop(network: str) -> int:
    """Return the floating-point operations of one update: `6 B W + 2 B (W - W_first)` for W weights.

    These are the forward passes of both networks and the gradients; the input of the first layer needs no gradient.
    """
    sizes = SIZES[network]
    layers = [m * n for m, n in itertools.pairwise(sizes)]
    return 6 * BATCH * sum(layers) + 2 * BATCH * sum(layers[1:])


def peak(device: str) -> float:
    """Measure FLOP/s of a float32 matrix product of 2048 (CPU) or 8192 (CUDA): the best of ten."""
    size = 2048 if device == "cpu" else 8192
    x, best = torch.rand(size, size, device=device), math.inf
    for _ in range(10):
        before = time.perf_counter()
        x @ x
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best


def machine(device: str) -> dict[str, Any]:
    """Describe machine, commit and versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": run_folder.git_commit(),
        "kind": device,
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def allow_tf32(allowed: bool) -> None:
    """Set whether PyTorch and JAX may use TF32 on a GPU, here and in child processes."""
    os.environ[TF32] = str(int(allowed))
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "tensorfloat32" if allowed else "highest"
    compile.allow_tf32(allowed)


TF32 = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
"""Environment variable for child processes; torch itself reads it only for matrix products."""


def prepare() -> None:
    """Set up the process as `fdqn train` does."""
    compile.prepare_cpu()
    compile.prepare_cuda(tf32=os.environ.get(TF32) == "1")


def activation_bytes(network: str, seeds: int) -> int:
    """Return the bytes of one batch's activations in float32: outputs before and after ReLU, for all seeds."""
    return seeds * BATCH * 2 * 4 * sum(SIZES[network][1:])


def append(name: str, record: dict[str, Any]) -> None:
    """Append the record as a line of `records/NAME.jsonl`."""
    RECORDS.mkdir(exist_ok=True)
    with (RECORDS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def newest(name: str) -> dict[str, Any]:
    """Return the last record of `records/NAME.jsonl`."""
    return json.loads((RECORDS / f"{name}.jsonl").read_text().splitlines()[-1])


def trained(out: Path, **given: Any) -> fdqn.Run:
    """Return a run: train in a new folder, continue a stopped run, or read a finished one."""
    return fdqn.resume(out) if (out / "config.json").exists() else fdqn.train(out=out, **given)


def spread(values: list[float]) -> dict[str, float]:
    """Return median, lowest and highest value."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def say(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()
