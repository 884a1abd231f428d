"""Train 16 seeds of LunarLander-v3 through Gymnasium, and evaluate the last and the best parameters of each seed.

    python benchmarks/lunar.py [--seeds 16] [--seed 7000] [--steps 600000] [--out runs/lunar]
    python benchmarks/lunar.py --table

The best parameters of a seed are those of the checkpoint with the highest mean training return. Checkpoints are 20,000
steps apart. Both are evaluated in the same 100 greedy episodes, which training did not use. A mean return of
200 counts as solved.

A stopped run is continued, and a finished one only evaluated. Prints its table and appends a record to
`records/lunar.jsonl`; --table prints the newest one.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import work

from fdqn.experiment import evaluation

SETTINGS: dict[str, Any] = {
    "env": "gym:LunarLander-v3",
    "num_envs": 4,
    "updates_per_cycle": 2,
    "capacity": 100_000,
    "learning_starts": 5_000,
    "hidden": (128, 128),
    "loss": "huber",
    "learning_rate": 1e-3,
    "learning_rate_end": 2e-5,
    "tau": 0.005,
    "epsilon_fraction": 0.2,
    "epsilon_end": 0.02,
    "report_every": 20_000,
    "checkpoint_every": 20_000,
    "keep_checkpoints": 10_000,
    "save_replay": False,
    "evaluate_episodes": 1,
}
"""Double DQN with three-step returns, as by default, and a learning rate that is annealed further."""

SOLVED, EPISODES = 200.0, 100


def best_steps(folder: Path) -> dict[int, int]:
    """Return the step of the checkpoint with the highest mean training return, by seed."""
    kept = {int(place.name) for place in (folder / "checkpoints").iterdir() if place.name.isdigit()}
    found: dict[int, tuple[float, int]] = {}
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            seed, step, value = int(row["seed"]), int(row["step"]), float(row["return"] or "nan")
            if step in kept and value > found.get(seed, (-np.inf, 0))[0]:
                found[seed] = value, step
    return {seed: step for seed, (_, step) in found.items()}


def played(folder: Path, checkpoint: str, seeds: list[int]) -> dict[int, float]:
    """Play greedy episodes and return the mean return of each seed."""
    trained = evaluation.load(folder, checkpoint=checkpoint, seeds=seeds, episodes=EPISODES)
    return dict(zip(trained.seeds, evaluation.play(trained).returns.mean(1).tolist(), strict=True))


def run(seeds: int, seed: int, steps: int, out: Path) -> dict[str, Any]:
    """Train or continue a run, and evaluate it."""
    start = time.perf_counter()
    work.trained(out, seeds=seeds, seed=seed, steps=steps, **SETTINGS)
    trained = time.perf_counter()
    chosen = best_steps(out)
    last, best = played(out, "last", list(chosen)), {}
    for step in sorted(set(chosen.values())):
        work.say(f"checkpoint {step:,}")
        best |= played(out, str(step), [own for own, its in chosen.items() if its == step])
    return {
        **work.machine("cpu"), "seeds": seeds, "first": seed, "steps": steps,
        "train_seconds": round(trained - start), "evaluate_seconds": round(time.perf_counter() - trained),
        "last": list(last.values()), "best": [best[own] for own in chosen], "best_steps": list(chosen.values()),
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """Format a record as a Markdown table."""
    lines = ["| parameters | seeds that solve it | mean | lowest | highest |", "|---|--:|--:|--:|--:|"]
    for name in ("last", "best"):
        means = np.array(record[name])
        solved = f"{(means >= SOLVED).sum()} of {len(means)}"
        lines.append(f"| {name} | {solved} | {means.mean():.1f} | {means.min():.1f} | {means.max():.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run, record and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--seed", type=int, default=7000)
    parser.add_argument("--steps", type=int, default=600_000)
    parser.add_argument("--out", type=Path, default=Path("runs/lunar"))
    parser.add_argument("--table", action="store_true")
    given = vars(parser.parse_args())
    if given.pop("table"):
        print(table(work.newest("lunar")))
        return
    record = run(**given)
    work.append("lunar", record)
    print(table(record))


if __name__ == "__main__":
    main()
