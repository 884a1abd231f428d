"""Measure sharded runs: weak scaling, the overhead of shards, and a simulation of a run on many machines.

    python benchmarks/scale.py weak [--turns 9] [--seeds 16]
    python benchmarks/scale.py overhead [--shards 64] [--seeds 128] [--steps 20000]
    python benchmarks/scale.py simulate [--learners 10000] [--machines 128] [--cores 16]
    python benchmarks/scale.py table

weak trains in one process with one thread, then in two at the same time, on different cores, in turns. The
result is the speed of both divided by twice that of one: median and range.

overhead trains the same seeds in one process and in shards, one after the other in one process, all with one thread. It
measures the start of a process, the compilation with an empty cache and with that of another shard, the time of a
checkpoint, and the merge.

simulate computes the time of a run from the newest record of overhead. A core trains one shard at a time: it starts a
process, compiles or, once its machine has compiled, loads the library, trains, and writes checkpoints to a file system
that all machines use and that writes one checkpoint at a time. Machines differ in speed. Some are lost, always just
before a checkpoint; their claims expire, and their shards continue from the previous checkpoint. Another machine takes
the place of a lost one.

weak and overhead append a record to `records/scale.jsonl`. table prints the newest records.
"""

import argparse
import heapq
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import work

from fdqn.experiment import claims, merging, session, shard_plan, shards
from fdqn.experiment.settings import make

ROOT = Path(__file__).parents[1]


# Weak scaling


def worker(seeds: int, core: int) -> None:
    """Prepare a program on one core; for each line on standard input, train for a second and print the speed."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    work.prepare()
    program = work.program("small")
    measure = work.prepared(f"core {core}", program, work.initial_state(program, seeds, "cpu"))
    print("ready", flush=True)
    for _ in sys.stdin:
        print(measure(), flush=True)


def weak(turns: int, seeds: int) -> dict[str, Any]:
    """Measure one process and two, in turns."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("weak: expected two cores, got one")
    command = [sys.executable, __file__, "worker", "--seeds", str(seeds), "--core"]
    pipes: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    processes = []
    for core in cores:  # the second one loads the library of the first
        processes.append(subprocess.Popen([*command, str(core)], env=_one_thread(), **pipes))
        assert processes[-1].stdout.readline() == "ready\n"

    def measured(chosen: list[Any]) -> list[float]:
        for process in chosen:
            process.stdin.write("\n")
            process.stdin.flush()
        return [float(process.stdout.readline()) for process in chosen]

    rows = []
    for turn in range(turns):
        alone, both = measured([processes[turn % 2]])[0], measured(processes)
        rows.append({"alone": alone, "both": both})
    for process in processes:
        process.stdin.close()
        process.wait()
    ratios = [sum(row["both"]) / (2 * row["alone"]) for row in rows]
    return {"part": "weak", **work.machine("cpu"), "seeds": seeds, "rows": rows, "ratio": work.spread(ratios)}


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def weak_table(record: dict[str, Any]) -> str:
    """Format a record of weak scaling as a Markdown table."""
    alone = sorted(row["alone"] for row in record["rows"])
    ratio = record["ratio"]
    return (
        "| seeds of a process | updates/s of one process | speed of two, divided by twice that of one |\n"
        "|--:|--:|--:|\n"
        f"| {record['seeds']} | {alone[len(alone) // 2]:,.0f} "
        f"| {ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] |"
    )


# Overhead


def overhead(count: int, seeds: int, steps: int) -> dict[str, Any]:
    """Measure a run in one process and in shards, from an empty compiler cache."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")
    before = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import fdqn.experiment.session"], env=_one_thread(), check=True)
    start = time.perf_counter() - before
    given = {"env": "cartpole", "seeds": seeds, "steps": steps, "evaluate_episodes": 1, "check_compile": False}
    plan = shard_plan.plan(make({**given, "out": str(folder / "run")}), count)
    path, times = shard_plan.create(plan), []
    for number in range(count):
        before = time.perf_counter()
        shards.train(path, numbers=[number])
        times.append(time.perf_counter() - before)
    before = time.perf_counter()
    merging.merge(path)
    merge = time.perf_counter() - before
    before = time.perf_counter()
    one = session.train(make({**given, "out": str(folder / "one")}), pinned=plan.pinned)
    whole = time.perf_counter() - before
    state = next((path / "shards" / "00000" / "checkpoints").glob("*/state.safetensors"))
    equal = (path / "params.safetensors").read_bytes() == (one.path / "params.safetensors").read_bytes()
    record = {
        "part": "overhead", **work.machine("cpu"), "shards": count, "seeds": seeds, "steps": steps,
        "start_seconds": start, "first_seconds": times[0], "shard_seconds": times[1:], "whole_seconds": whole,
        "whole_compile_seconds": one.summary["compile_seconds"], "merge_seconds": merge, "equal_bits": equal,
        "checkpoint_bytes": state.stat().st_size * count // seeds,
        "learner_seconds": one.summary["wall_seconds"] / seeds,
    }  # fmt: skip
    shutil.rmtree(folder)
    return record


def overhead_table(record: dict[str, Any]) -> str:
    """Format a record of the overhead as a Markdown table."""
    count, later = record["shards"], record["shard_seconds"]
    total = record["first_seconds"] + sum(later) + record["merge_seconds"]
    each = (sum(later) - record["whole_seconds"] * (count - 1) / count) / max(1, count - 1)
    rows = {
        "one process": f"{record['whole_seconds']:.1f} s",
        f"{count} shards, one after the other, and the merge": f"{total:.1f} s",
        "start of a process": f"{record['start_seconds']:.2f} s",
        "first shard, with an empty compiler cache": f"{record['first_seconds']:.1f} s",
        "overhead of each later shard": f"{each:.2f} s",
        "merge": f"{record['merge_seconds']:.2f} s",
        "same parameters as one process": "yes" if record["equal_bits"] else "no",
    }
    return "\n".join(["| | |", "|---|--:|", *(f"| {name} | {value} |" for name, value in rows.items())])


# Simulation


class Costs(NamedTuple):
    """Costs of a run, in seconds and bytes."""

    start: float
    """Start of a process, with imports."""
    compile: float
    """Compilation, once on each machine."""
    load: float
    """Setting up a shard whose library is compiled."""
    train: float
    """Training of a learner on one core."""
    checkpoint: float
    """Bytes of a checkpoint of a learner."""
    merge: float
    """Merging a learner."""


class Cluster(NamedTuple):
    """Machines, and the file system that all of them use."""

    machines: int
    cores: int
    bandwidth: float
    """Bytes per second of the file system."""
    spread: float = 0.05
    """Standard deviation of the speed of a machine, relative to the mean."""
    loss: float = 0.0
    """Probability that a machine is lost per hour."""


class Times(NamedTuple):
    """Simulated times of a run, in seconds."""

    total: float
    bound: float
    """Time of training alone, divided evenly among all cores."""
    waiting: float
    """Time for which cores waited for the file system, per core."""
    redone: float
    """Training that was lost with machines, per core."""
    merge: float


def simulate(
    costs: Costs, cluster: Cluster, learners: int, size: int, checkpoints: int, rng: np.random.Generator
) -> Times:
    """Simulate a run.

    Args:
        costs: costs of its parts.
        cluster: machines that train it.
        learners: number of learners.
        size: learners of a shard.
        checkpoints: checkpoints of each shard.
        rng: generator of the speeds of the machines and of their losses.
    """
    speed = np.maximum(0.1, 1 + cluster.spread * rng.standard_normal(cluster.machines))
    per_step = costs.train * size / checkpoints  # seconds between two checkpoints at the mean speed
    queue = [(0.0, machine, core) for machine in range(cluster.machines) for core in range(cluster.cores)]
    heapq.heapify(queue)
    compiled = [0.0] * cluster.machines
    waiting = redone = disk = end = 0.0
    left = [(0.0, 0, number) for number in range(-(-learners // size))]  # free from, checkpoints so far
    active: list[Any] = []
    order = 0  # of entries with the same time
    while left or active:
        while left and queue:
            now, machine, core = heapq.heappop(queue)
            free, done, number = heapq.heappop(left)
            ready = max(now, free) + costs.start
            if not compiled[machine]:
                compiled[machine] = ready + costs.compile
            ready = max(ready, compiled[machine]) + costs.load
            order += 1
            heapq.heappush(active, (ready + per_step / speed[machine], order, machine, core, done, number))
        now, _, machine, core, done, number = heapq.heappop(active)
        seconds = per_step / speed[machine]
        if rng.random() < 1 - (1 - cluster.loss) ** (seconds / 3600):
            redone += seconds
            heapq.heappush(left, (now + claims.STALE, done, number))
            heapq.heappush(queue, (now, machine, core))
            continue
        written = max(now, disk) + costs.checkpoint * size / cluster.bandwidth
        waiting, disk = waiting + written - now, written
        order += 1
        if done + 1 < checkpoints:
            heapq.heappush(active, (written + seconds, order, machine, core, done + 1, number))
        else:
            end = max(end, written)
            heapq.heappush(queue, (written, machine, core))
    slots, merge = cluster.machines * cluster.cores, costs.merge * learners
    return Times(end + merge, costs.train * learners / slots, waiting / slots, redone / slots, merge)


def costs_of(record: dict[str, Any], steps: int) -> Costs:
    """Return the costs in a record of the overhead, for a run of `steps` environment steps per seed."""
    later = np.median(record["shard_seconds"])
    size = record["seeds"] // record["shards"]
    train = (record["whole_seconds"] - record["whole_compile_seconds"]) / record["seeds"]
    load = max(0.0, later - train * size)
    return Costs(
        record["start_seconds"],
        max(0.0, record["first_seconds"] - later),
        load,
        train * steps / record["steps"],
        record["checkpoint_bytes"],
        record["merge_seconds"] / record["seeds"],
    )


def simulation_table(costs: Costs, learners: int, machines: int, cores: int) -> str:
    """Format the simulated times of a run with shards of several sizes as a Markdown table."""
    lines = [
        "| learners of a shard | shards | file system | lost machines | time | training alone | waiting for files "
        "| redone | merge |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    slots = machines * cores
    sizes = sorted({1, 2, max(1, learners // slots), max(1, -(-learners // slots)), 16, 64})
    for size, bandwidth, loss in [
        *((size, 1e9, 0.0) for size in sizes),
        *((max(1, -(-learners // slots)), other, 0.0) for other in (1e8, 1e10)),
        (max(1, -(-learners // slots)), 1e9, 0.1),
    ]:
        cluster = Cluster(machines, cores, bandwidth, loss=loss)
        found = simulate(costs, cluster, learners, size, 5, np.random.default_rng(0))
        lines.append(
            f"| {size} | {-(-learners // size):,} | {bandwidth / 1e9:g} GB/s | {loss:.0%} per hour "
            f"| {found.total:,.0f} s | {found.bound:,.0f} s | {found.waiting:,.1f} s "
            f"| {found.redone:,.1f} s | {found.merge:,.1f} s |"
        )
    return "\n".join(lines)


# The command


def newest(part: str) -> dict[str, Any]:
    """Return the newest record of a part."""
    file = work.RECORDS / "scale.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    found = [record for record in records if record["part"] == part]
    if not found:
        raise SystemExit(f"scale: expected a record of {part}, got none; run python benchmarks/scale.py {part}")
    return found[-1]


def main() -> None:
    """Run a part, record and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    flags: dict[str, dict[str, int]] = {
        "worker": {"seeds": 16, "core": 0},
        "weak": {"turns": 9, "seeds": 16},
        "overhead": {"shards": 64, "seeds": 128, "steps": 20_000},
        "simulate": {"learners": 10_000, "machines": 128, "cores": 16, "steps": 100_000},
        "table": {},
    }
    for part, own in flags.items():
        added = parts.add_parser(part)
        for name, default in own.items():
            added.add_argument(f"--{name}", type=int, default=default)
    given = vars(parser.parse_args())
    match given.pop("part"):
        case "worker":
            worker(**given)
        case "weak":
            record = weak(**given)
            work.append("scale", record)
            print(weak_table(record))
        case "overhead":
            record = overhead(given["shards"], given["seeds"], given["steps"])
            work.append("scale", record)
            print(overhead_table(record))
        case "simulate":
            steps = given.pop("steps")
            print(simulation_table(costs_of(newest("overhead"), steps), **given))
        case "table":
            print(f"{weak_table(newest('weak'))}\n\n{overhead_table(newest('overhead'))}")


if __name__ == "__main__":
    main()
