"""Measure the time that trackers add to a run of 32 seeds.

    python benchmarks/trackers.py [--seeds 32] [--steps 100000] [--rounds 5] [--only tensorboard wandb trackio mlflow]
    python benchmarks/trackers.py --table

Runs of the default settings without a tracker and with each tracker take turns in one process, without evaluation
episodes. A first round, which compiles and imports, is not counted. W&B logs offline; the others write to a temporary
folder.
The results are the wall-clock time and the CPU time of all processes, relative to the run without a tracker in
the same round.

Needs `pip install 'fdqn[tensorboard,wandb,trackio,mlflow]'`. Prints its table and appends a record to
`records/trackers.jsonl`; --table prints the newest one.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import work

import fdqn


def timed(seeds: int, steps: int, track: tuple[str, ...], out: Path) -> tuple[float, float]:
    """Train a run and return its wall-clock and CPU seconds."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    fdqn.train(seeds=seeds, steps=steps, out=out, evaluate_episodes=1, evaluate_steps=1, track=track, progress=False)
    return time.perf_counter() - wall, cpu_seconds() - cpu


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in used)


def measure(seeds: int, steps: int, rounds: int, only: list[str]) -> dict[str, Any]:
    """Run all trackers in turn and return the times of each round."""
    arms = {"none": (), **{name: (name,) for name in only}}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        os.environ |= {
            "WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(out / "trackio"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{out / 'mlflow.db'}",
        }  # fmt: skip
        for i in range(rounds + 1):
            for name, track in arms.items():
                taken = timed(seeds, steps, track, out / f"{name}-{i}")
                work.say(f"round {i} of {rounds}, {name}: {taken[0]:.1f} s, {taken[1]:.1f} s of CPU time")
                if i:
                    times[name].append(taken)
    return {**work.machine("cpu"), "seeds": seeds, "steps": steps, "times": times}


def table(record: dict[str, Any]) -> str:
    """Format a record as a Markdown table."""
    base = record["times"]["none"]
    lines = ["| tracker | wall-clock time | CPU time |", "|---|--:|--:|"]
    for name, times in record["times"].items():
        cells = []
        for part in range(2):
            ratio = work.spread([own[part] / plain[part] for own, plain in zip(times, base, strict=True)])
            cells.append(f"{ratio['median']:.3f}x [{ratio['low']:.3f}, {ratio['high']:.3f}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seconds = work.spread([wall for wall, _ in base])
    return "\n".join(lines) + f"\n\nA run without a tracker takes {seconds['median']:.1f} s."


def main() -> None:
    """Run, record and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=["tensorboard", "wandb", "trackio", "mlflow"])
    parser.add_argument("--table", action="store_true")
    given = vars(parser.parse_args())
    if given.pop("table"):
        print(table(work.newest("trackers")))
        return
    record = measure(**given)
    work.append("trackers", record)
    print(table(record))


if __name__ == "__main__":
    main()
