"""Compare learning with published results: CleanRL's DQN settings on its three classic tasks, 32 seeds each.

    python benchmarks/learn.py [--envs cartpole acrobot mountain_car] [--seeds 32] [--steps 500000]

Trains with `fdqn.train`, prints the training returns next to CleanRL's and appends a JSON record to
`benchmarks/records/learn.jsonl`. A finished run in `--out` is read and not repeated. Both numbers are
means of the last 100 training episodes, with exploration.

CleanRL steps one environment ten times between updates. On CartPole and Acrobot this benchmark steps ten environments
once, which compiles in a fifth of the time. On MountainCar this changes the result: with ten environments there are ten
times as many updates in one episode, and 2 of 32 seeds reach the goal in their last 100 episodes instead of 16. There
the benchmark steps as CleanRL does.
"""

import argparse
import json
import math
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap

import fdqn
from fdqn import envs
from fdqn.report import statistics

# Mean and standard deviation over 3 seeds after 500,000 steps, from CleanRL's documentation of dqn.py and dqn_jax.py.
PUBLISHED = {
    "cartpole": ("488.69 +- 16.11", "498.38 +- 2.29"),
    "acrobot": ("-91.54 +- 7.20", "-88.89 +- 1.56"),
    "mountain_car": ("-194.95 +- 8.48", "-188.90 +- 11.78"),
}

# Lowest acceptable mean of each task.
FLOOR = {"cartpole": 485.0, "acrobot": -92.0, "mountain_car": -195.0}

STEPPING = {
    "cartpole": {"num_envs": 10, "steps_per_cycle": 1},
    "acrobot": {"num_envs": 10, "steps_per_cycle": 1},
    "mountain_car": {"num_envs": 1, "steps_per_cycle": 10},
}

CLEANRL = {
    "hidden": (120, 84),
    "updates_per_cycle": 1,
    "batch_size": 128,
    "capacity": 10_000,
    "learning_starts": 10_000,
    "target_period": 50,
    "learning_rate": 2.5e-4,
    "gamma": 0.99,
    "max_grad_norm": math.inf,
    "epsilon_start": 1.0,
    "epsilon_end": 0.05,
    "epsilon_fraction": 0.5,
    "double": False,
    "loss": "mse",
    "report_every": 10_000,
}

RECORDS = Path(__file__).parent / "records" / "learn.jsonl"


def main() -> int:
    """Run the tasks. The exit code is 1 if a task stays below its floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--steps", type=int, default=500_000)
    parser.add_argument("--out", type=Path, default=Path("runs") / f"learn-{time.strftime('%Y%m%d-%H%M%S')}")
    arguments = parser.parse_args()

    results = {env: train(env, arguments.seeds, arguments.steps, arguments.out / env) for env in arguments.envs}
    print(table(results, arguments.seeds, arguments.steps))
    RECORDS.parent.mkdir(exist_ok=True)
    with open(RECORDS, "a") as file:
        file.write(
            json.dumps(
                {
                    "machine": machine(),
                    "settings": CLEANRL | {"max_grad_norm": "inf"},
                    "stepping": STEPPING,
                    "results": results,
                }
            )
            + "\n"
        )
    return int(any(not result["mean"] >= FLOOR[env] for env, result in results.items()))


def train(env: str, seeds: int, steps: int, out: Path) -> dict[str, object]:
    """Train and summarize: mean of the seeds' training returns, as CleanRL reports it, with a 95% bootstrap interval,
    or with the range of fewer than 5 seeds.
    """
    if (out / "summary.json").exists():
        run = fdqn.Run.load(out)
    else:
        run = fdqn.train(env=env, seeds=seeds, steps=steps, out=out, **STEPPING[env], **CLEANRL)
    returns = np.array(run.summary["train_return"]["per_seed"], dtype=float)
    low, high = returns.min(), returns.max()
    if len(returns) >= statistics.MIN_SEEDS:
        rng = np.random.default_rng(0)
        low, high = bootstrap((returns,), np.mean, method="percentile", rng=rng).confidence_interval
    return {
        "mean": float(np.mean(returns)),
        "low": float(low),
        "high": float(high),
        "deviation": float(np.std(returns, ddof=1)),
        "stepping": f"{run.settings.num_envs} x {run.settings.steps_per_cycle}",
        "git": json.loads((out / "config.json").read_text())["git"],
        **{key: run.summary[key] for key in ("failed_seeds", "train_return", "final_return", "gymnasium_return")},
        **{key: run.summary[key] for key in ("seed_updates_per_second", "compile_seconds", "wall_seconds")},
    }


def table(results: dict[str, dict[str, object]], seeds: int, steps: int) -> str:
    """Format the results as a Markdown table."""
    ends = "95% interval" if seeds >= statistics.MIN_SEEDS else "range"
    lines = [
        f"Training return after {steps:,} steps, last 100 episodes, mean. fdqn: {seeds} seeds, {ends}; CleanRL: "
        "3 seeds, standard deviation. Stepping: environments x steps of each between updates; CleanRL's is 1 x 10.",
        "",
        "| | fdqn | CleanRL dqn.py | CleanRL dqn_jax.py | fdqn, greedy in Gymnasium, IQM | stepping | commit |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for env, result in results.items():
        played = results.interval_text(result["gymnasium_return"])  # type: ignore[arg-type]
        lines.append(
            f"| {envs.GYMNASIUM[env]} | {result['mean']:.2f} [{result['low']:.2f}, {result['high']:.2f}] "
            f"| {' | '.join(PUBLISHED[env])} | {played} | {result['stepping']} | {result['git']} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """Describe the machine and versions."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    sys.exit(main())
