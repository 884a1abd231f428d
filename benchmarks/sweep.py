"""Measure sweeps: their speed relative to as many seeds of one setting, and the time of a whole sweep.

    python benchmarks/sweep.py speed [--turns 9] [--algorithms dqn c51]
    python benchmarks/sweep.py run [--seeds 16] [--out runs/sweep]
    python benchmarks/sweep.py table

speed trains 96 learners on CartPole, as 12 settings with 8 seeds each and as 96 seeds of one setting, which take turns
of a second in one process. The result is the time of an update of the sweep divided by that of the seeds: median and
range.

run trains a sweep of 16 settings with 16 seeds each, 256 learners, for the default number of steps, and measures the
whole run, compilation and evaluation included. Set TORCHINDUCTOR_CACHE_DIR to an empty folder for a cold cache.

Every part prints its table and appends a record to `records/sweep.jsonl`. table prints the newest records.
"""

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import work

import fdqn
from fdqn import training
from fdqn.experiment import assemble
from fdqn.experiment.settings import Settings, Sweep, make

SETTINGS, SEEDS = 12, 8
VARIED: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "learning rate, gamma": ("dqn", {"learning_rate": (1e-4, 3e-4, 1e-3, 2e-3), "gamma": (0.97, 0.98, 0.99)}),
    "Adam's betas and eps": (
        "dqn",
        {"adam_beta1": (0.8, 0.9), "adam_beta2": (0.99, 0.999), "adam_eps": (1e-8, 1e-5, 1e-3)},
    ),
    "target period": ("dqn", {"target_period": tuple(range(10, 130, 10))}),
    "support": ("c51", {"v_min": (-100.0, -50.0, -10.0), "v_max": (20.0, 50.0, 100.0, 200.0)}),
}
"""Algorithm and varied settings of each measurement; 12 combinations each."""


def sweep(base: Settings, values: dict[str, tuple[Any, ...]]) -> Sweep:
    """Return the sweep over the product of values."""
    varied = tuple(dict(zip(values, row, strict=True)) for row in itertools.product(*values.values()))
    own = {field.name: getattr(base, field.name) for field in dataclasses.fields(Settings)}
    return Sweep(**{**own, "seeds": SEEDS}, varied=varied)


def prepared(name: str, settings: Settings) -> Callable[[], float]:
    """Compile a program. Return a function that trains for a second and returns updates per second of all learners."""
    program = assemble.program(settings)
    return work.prepared(name, program, training.init(program, assemble.hyper(settings), assemble.keys(settings)))


def speed(turns: int, algorithms: list[str]) -> dict[str, Any]:
    """Measure in turns the sweeps of `VARIED` and as many seeds of one setting."""
    work.prepare()
    results = []
    for name, (algorithm, values) in VARIED.items():
        if algorithm not in algorithms:
            continue
        base = make({"algorithm": algorithm, "env": "cartpole", "seeds": SETTINGS * SEEDS, "steps": 10**8})
        measures = [prepared("seeds", base), prepared(name, sweep(base, values))]
        rates: list[list[float]] = [[], []]
        for _, (own, measure) in itertools.product(range(turns), zip(rates, measures, strict=True)):
            own.append(measure())
        slower = [alike / swept for alike, swept in zip(*rates, strict=True)]
        results.append({"varied": name, "algorithm": algorithm, "rates": rates, "time_ratio": work.spread(slower)})
    return {"part": "speed", **work.machine("cpu"), "turns": turns, "lanes": SETTINGS * SEEDS, "results": results}


def speed_table(record: dict[str, Any]) -> str:
    """Format a record of speeds as a Markdown table."""
    lines = ["| varied | algorithm | updates/s of the sweep | time of an update |", "|---|---|--:|--:|"]
    for row in record["results"]:
        ratio, rates = row["time_ratio"], sorted(row["rates"][1])
        lines.append(
            f"| {row['varied']} | `{row['algorithm']}` | {rates[len(rates) // 2]:,.0f} "
            f"| {ratio['median']:.3f}x [{ratio['low']:.3f}, {ratio['high']:.3f}] |"
        )
    return "\n".join(lines)


def run(seeds: int, out: Path) -> dict[str, Any]:
    """Train a sweep of 16 settings and measure the whole run."""
    start = time.perf_counter()
    varied = {"learning_rate": [3e-4, 1e-3, 2e-3, 5e-3], "gamma": [0.97, 0.98, 0.99, 0.995]}
    found = fdqn.sweep(varied, seeds=seeds, out=out)
    seconds, ranking = time.perf_counter() - start, found.ranking()
    best = [
        {"values": dict(zip(found.names, row.values, strict=True)), "iqm": float(row.estimate.iqm)} for row in ranking
    ]
    members = sum(bool(row.in_best_set) for row in ranking)
    return {
        "part": "run", **work.machine("cpu"), "lanes": len(ranking) * seeds, "settings": len(ranking),
        "seconds": round(seconds, 1), "best_set": members, "ranking": best,
    }  # fmt: skip


def run_table(record: dict[str, Any]) -> str:
    """Format a record of a whole sweep as a Markdown table."""
    return (
        "| settings | learners | time | settings that are indistinguishable from the best |\n|--:|--:|--:|--:|\n"
        f"| {record['settings']} | {record['lanes']} | {record['seconds']:.0f} s | {record['best_set']} |"
    )


TABLES = {"speed": speed_table, "run": run_table}


def main() -> None:
    """Run a part, record and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    flags = parts.add_parser("speed")
    flags.add_argument("--turns", type=int, default=9)
    flags.add_argument("--algorithms", nargs="+", default=["dqn", "c51"])
    flags = parts.add_parser("run")
    flags.add_argument("--seeds", type=int, default=16)
    flags.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parts.add_parser("table")
    given = vars(parser.parse_args())
    part = given.pop("part")
    if part == "table":
        records = map(json.loads, (work.RECORDS / "sweep.jsonl").read_text().splitlines())
        newest = {record["part"]: record for record in records}
        print("\n\n".join(f"{name}\n\n{TABLES[name](record)}" for name, record in newest.items()))
        return
    record = {"speed": speed, "run": run}[part](**given)
    work.append("sweep", record)
    print(TABLES[part](record))


if __name__ == "__main__":
    main()
