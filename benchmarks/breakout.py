"""Train DQN, PQN and Rainbow on Atari's Breakout for the same time, two of them at once, each on one core.

    python benchmarks/breakout.py [--minutes 45] [--seeds 2] [--arms dqn pqn rainbow] [--out runs/breakout]
    python benchmarks/breakout.py --table

DQN has the settings that learn fastest here: double DQN with three-step returns and Adam. Rainbow has the same sizes
and learning rate. PQN has the settings of its paper, with 16 environments instead of 128, so that it updates more
often. The schedules end when the time is over: the number of environment steps is planned from the speed on one core
of the machine of `benchmarks/README.md`. Each arm is then evaluated in 20 games per seed, with 5% random actions. A
finished arm in `--out` is only evaluated.

Prints its table, draws `pictures/breakout.png` (training returns against minutes) and appends a record to
`records/breakout.jsonl`; --table prints the newest one.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import work

import fdqn
from fdqn.experiment import evaluation, results

ROOT, PICTURE = Path(__file__).parents[1], Path(__file__).parent / "pictures" / "breakout.png"

COMMON: dict[str, Any] = {
    "env": "ale:Breakout",
    "clip_rewards": True,
    "terminal_on_life_loss": True,
    "gamma": 0.99,
    "evaluate_epsilon": 0.05,
    "evaluate_episodes": 20,
}
REPLAY: dict[str, Any] = {
    "num_envs": 4, "batch_size": 32, "capacity": 60_000, "learning_starts": 2_000, "random_warmup": True,
    "target_period": 500, "n_step": 3, "double": True, "optimizer": "adam", "learning_rate": 1e-4,
    "learning_rate_schedule": "constant", "max_grad_norm": math.inf, "save_replay": False,
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "dqn": {"algorithm": "dqn", "epsilon_fraction": 0.3, "epsilon_end": 0.05, "loss": "huber", **REPLAY},
    "rainbow": {"algorithm": "rainbow", "v_min": -10.0, "v_max": 10.0, "atoms": 51, **REPLAY},
    "pqn": {
        "algorithm": "pqn", "num_envs": 16, "steps_per_cycle": 32, "updates_per_cycle": 32, "batch_size": 32,
        "q_lambda": 0.65, "epsilon_fraction": 0.1, "epsilon_end": 0.01, "optimizer": "radam", "learning_rate": 2.5e-4,
        "learning_rate_schedule": "linear", "learning_rate_end": 0.0, "max_grad_norm": 10.0,
    },
}  # fmt: skip
LABELS = {"dqn": "DQN", "rainbow": "Rainbow", "pqn": "PQN"}
RATES = {"dqn": 45.0, "rainbow": 33.0, "pqn": 180.0}
"""Environment steps per second of each of two seeds, on one core."""


def train(name: str, minutes: float, seeds: int, out: Path) -> None:
    """Train one arm on the core that this process is bound to, until its last step or until the time is over."""
    if (out / "summary.json").exists():
        return
    start = time.perf_counter()
    steps = int(RATES[name] * 60 * minutes * 2 / seeds)
    fdqn.train(
        out=out,
        seeds=seeds,
        steps=steps,
        report_every=steps // 40,
        checkpoint_every=steps,
        stop=lambda: time.perf_counter() - start > 60 * minutes,
        **COMMON,
        **ARMS[name],
    )


def start(name: str, core: int, given: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start a process that trains one arm on one core."""
    flags = ["--arm", name, "--minutes", str(given.minutes), "--seeds", str(given.seeds), "--out", str(given.out)]
    return subprocess.Popen(
        [sys.executable, __file__, *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def result(name: str, out: Path) -> dict[str, Any]:
    """Evaluate the last parameters of an arm."""
    run = fdqn.Run.load(out / name)
    played = evaluation.play(evaluation.load(out / name, checkpoint="last", episodes=COMMON["evaluate_episodes"]))
    rows = np.genfromtxt(out / name / "metrics.csv", delimiter=",", names=True)
    return {
        "arm": name,
        "steps": int(run.curve.steps[-1]),
        "updates": int(rows["updates"].max()),
        "seconds": float(rows["seconds"].max()),
        "training": run.curve.values[-1].tolist(),
        "greedy": played.returns.mean(1).tolist(),
    }


def picture(out: Path) -> None:
    """Draw the training returns of each seed against minutes of wall-clock time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(ARMS, ("#7f7f7f", "#d62728", "#1f77b4"), strict=True):
        if not (out / name).exists():
            continue
        rows = np.genfromtxt(out / name / "metrics.csv", delimiter=",", names=True)
        for seed in np.unique(rows["seed"]):
            own = rows[rows["seed"] == seed]
            axes.plot(own["seconds"] / 60, own["return_"], color=colour, label=LABELS[name] if seed == 0 else None)
    axes.set(xlabel="minutes on one core", ylabel="training return between two reports")
    axes.set_title("Breakout: DQN, Rainbow and PQN", loc="left", fontweight="bold")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=110)


def table(record: dict[str, Any]) -> str:
    """Format a record as a Markdown table."""
    lines = [
        "| algorithm | minutes | environment steps per seed | updates per seed | training return | evaluation |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for arm in record["arms"]:
        cells = [results.interval_text(results.seeds_record(arm[key])) for key in ("training", "greedy")]
        sizes = f"{arm['seconds'] / 60:.0f} | {arm['steps']:,} | {arm['updates']:,}"
        lines.append(f"| `{arm['arm']}` | {sizes} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train both arms, evaluate, record and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/breakout"))
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--arm", choices=tuple(ARMS), help="train only this arm, in this process")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        print(table(work.newest("breakout")))
        return
    if given.arm:
        train(given.arm, given.minutes, given.seeds, given.out / given.arm)
        return
    for pair in (given.arms[i : i + 2] for i in range(0, len(given.arms), 2)):
        processes = [start(name, core, given) for core, name in enumerate(pair)]
        if any([process.wait() for process in processes]):
            raise SystemExit("an arm failed; see its message above")
    record = {**work.machine("cpu"), "minutes": given.minutes, "arms": [result(name, given.out) for name in given.arms]}
    work.append("breakout", record)
    picture(given.out)
    print(table(record))


if __name__ == "__main__":
    main()
