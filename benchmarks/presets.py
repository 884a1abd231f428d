"""Train presets and record their scores, which `fdqn presets` prints.

    python benchmarks/presets.py --presets cleanrl-dqn cleanrl-c51 [--envs cartpole] [--seeds 32] [--out runs/presets]
    python benchmarks/presets.py --table

The script trains with the settings of each preset, by default in all of its environments. A finished run in `--out` is
read and not repeated, and a stopped one is continued. The score is a mean over seeds with its 95% percentile bootstrap
interval, or with the range of fewer than 5 seeds. It is that of the last 100 training episodes or, for presets whose
authors evaluate after training, of greedy episodes, in Gymnasium's own environment where there is one. Scores are
appended to `fdqn/experiment/scores.jsonl`. The script prints the Markdown table of README.md; with `--table` it only
prints this table.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fdqn import envs
from fdqn.experiment import presets
from fdqn.report import statistics


def train(name: presets.PresetName, env: str, seeds: int, out: Path) -> dict[str, Any]:
    """Train a preset in an environment, or read its finished run, and return its score."""
    import work

    run = work.trained(out, preset=name, env=env, seeds=seeds)
    summary = run.summary
    greedy = summary.get("gymnasium_return", summary["final_return"])
    record = greedy if presets.measure(name) == "greedy" else summary["train_return"]
    returns = np.array([x for x in record["per_seed"] if x is not None], dtype=float)
    if not len(returns):
        raise SystemExit(f"{out}: expected seeds with returns, got none; train for more steps")
    low, high = interval(returns)
    return {
        "preset": name,
        "env": env,
        "mean": round(float(returns.mean()), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "deviation": round(float(returns.std(ddof=1)), 4) if len(returns) > 1 else None,
        "seeds": run.settings.seeds,
        "failed": len(summary["failed_seeds"]),
        "steps": summary["steps"],
        "seconds": summary["wall_seconds"],
        "commit": json.loads((out / "config.json").read_text())["git"],
        "torch": torch.__version__,
        "processor": work.machine("cpu")["device"],
        "date": time.strftime("%Y-%m-%d"),
    }


def interval(returns: np.ndarray) -> tuple[float, float]:
    """Return the ends of the 95% percentile bootstrap interval of the mean, or of the range of fewer than 5 seeds."""
    if len(returns) < statistics.MIN_SEEDS or returns.min() == returns.max():
        return float(returns.min()), float(returns.max())
    from scipy.stats import bootstrap

    rng = np.random.default_rng(0)
    low, high = bootstrap((returns,), np.mean, method="percentile", rng=rng).confidence_interval
    return float(low), float(high)


def append(score: dict[str, Any]) -> None:
    """Append a score to the package's records, unless it is there already."""
    known = presets.scores().get((score["preset"], score["env"]), {})
    if {**known, "date": None} != {**score, "date": None}:
        with presets.SCORES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(score) + "\n")


def table() -> str:
    """Format the presets that have a score as a Markdown table."""
    lines = [
        "| preset | environment | steps | published | fdqn, mean [95% interval] | seeds | returns | time | commit |",
        "|---|---|--:|--:|--:|--:|---|--:|---|",
    ]
    for row in presets.rows():
        if ours := row["ours"]:
            env = envs.GYMNASIUM.get(row["env"], row["env"])
            lines.append(
                f"| [`{row['preset']}`]({row['source']}) | {env} | {row['steps']:,} | {presets.published_text(row)} | "
                f"{presets.ours_text(row)} | {ours['seeds']} | {row['measure']} | {presets.seconds_text(row)} | "
                f"{ours['commit']} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Train, record and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["cleanrl-dqn"], choices=list(presets.PRESETS))
    parser.add_argument("--envs", nargs="+", help="environments, by default all of each preset")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/presets"))
    parser.add_argument("--table", action="store_true", help="print the table of the records only")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    import work

    for name in arguments.presets:
        for env in presets.PRESETS[name].envs:
            if arguments.envs is None or env in arguments.envs:
                score = train(name, env, arguments.seeds, arguments.out / f"{name}-{env.replace(':', '-')}")
                append(score)
                work.say(f"{name}, {env}: {score['mean']:.2f} [{score['low']:.2f}, {score['high']:.2f}]")
    print(table())


if __name__ == "__main__":
    main()
