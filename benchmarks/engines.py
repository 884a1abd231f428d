"""Measure the time of a training iteration on each engine.

    python benchmarks/engines.py [--seeds 1 8 32] [--engines aot inductor torch.compile eager] [--repeats 7]

The work is that of `fdqn train` with its defaults: CartPole, 4-120-84-2, batch 128, an update after ten environment
steps. The engines take turns; a turn is about a second of calls of 20 iterations each. Prints microseconds per
iteration, the median and the range of the turns, and appends a record to `benchmarks/records/engines.jsonl`.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import work

from fdqn import compile, training
from fdqn.experiment import assemble
from fdqn.experiment.settings import Settings

ITERATIONS = 20
"""Iterations per call: the number between two target copies."""


def prepared(engine: str, seeds: int, device: str) -> Callable[[], Any]:
    """Compile the program for an engine; return a function that runs ITERATIONS iterations, called three times."""
    settings = Settings(seeds=seeds, device=device)  # type: ignore[arg-type]
    program, there = assemble.program(settings), assemble.device(settings)
    state = training.init(program, assemble.hyper(settings, there), assemble.keys(settings).to(there))
    functions = compile.compiled(program, check_compile=False, engine=engine)
    warm = program.config.warmup_steps // program.config.env_steps
    state = functions.collect(state, training.noise(program, state.key, 0, warm))
    noise = training.noise(program, state.key, warm, ITERATIONS)
    held = [state]

    def call() -> None:
        held[0] = functions.cycle(held[0], noise)  # the engine eager returns a new state

    call(), call(), call()
    return call


def microseconds(call: Callable[[], Any], seconds: float) -> float:
    """Measure microseconds per iteration, over about `seconds`."""
    calls, start = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        if (now := time.perf_counter()) - start >= seconds:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                now = time.perf_counter()
            return 1e6 * (now - start) / (calls * ITERATIONS)


def measure(engines: list[str], seeds: int, device: str, repeats: int, seconds: float) -> dict[str, list[float]]:
    """Measure microseconds per iteration of each engine that works on this machine, one number per turn."""
    calls = {}
    for engine in engines:
        show(f"{seeds} seeds: compiling for {engine}")
        with warnings.catch_warnings(record=True, action="always", category=UserWarning) as caught:
            calls[engine] = prepared(engine, seeds, device)
        for warning in caught:
            if "falling back" in str(warning.message):
                print(f"{engine} left out: {warning.message}", flush=True)
                calls.pop(engine, None)
    turns: dict[str, list[float]] = {engine: [] for engine in calls}
    for turn in range(repeats):
        for engine, call in calls.items():
            show(f"{seeds} seeds: turn {turn + 1} of {repeats}, {engine}")
            turns[engine].append(microseconds(call, seconds))
    return turns


def show(progress: str) -> None:
    """Show progress on standard error, on one line of a terminal."""
    print(f"\r{progress:60s}" if sys.stderr.isatty() else progress, end="" if sys.stderr.isatty() else "\n",
          file=sys.stderr, flush=True)  # fmt: skip


def main() -> None:
    """Measure, print a table and append a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--engines", nargs="+", default=list(compile.ENGINES), choices=compile.ENGINES)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    compile.prepare_cpu()
    compile.prepare_cuda()
    results = {
        seeds: measure(arguments.engines, seeds, arguments.device, arguments.repeats, arguments.seconds)
        for seeds in arguments.seeds
    }
    show("")
    print("us per iteration" + "".join(f"{f'{seeds} seeds':>24s}" for seeds in results))
    for engine in arguments.engines:
        columns = [results[seeds].get(engine) for seeds in results]
        print(f"{engine:16s}" + "".join(f"{text(turns) if turns else '-':>24s}" for turns in columns))
    work.append("engines", {**work.machine(arguments.device), "results": results})


def text(turns: list[float]) -> str:
    """Format the median with its range, such as `205 [201, 219]`."""
    return f"{statistics.median(turns):,.0f} [{min(turns):,.0f}, {max(turns):,.0f}]"


if __name__ == "__main__":
    main()
