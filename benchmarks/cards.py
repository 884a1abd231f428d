"""Compare two networks on the card game Cuttle (`cuttle.py`), with 16 seeds each, and measure the time that it takes.

    python benchmarks/cards.py [--seeds 16] [--steps 100000] [--out runs/cuttle]
    python benchmarks/cards.py --table

The networks have hidden layers 512 and 256, or 256 and 128. `fdqn train` trains and evaluates both, one after the
other; `fdqn compare` compares them. Baselines are a random player and the strategy of the opponent, in the place of the
learner. Results are training games per learner, minutes, the mean score of a greedy game (from -1 to 1), and the
comparison.

Prints its table and appends a record to `records/cards.jsonl`; --table prints the newest one.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuttle
import torch
import work
from torch import Tensor

from fdqn import random
from fdqn.experiment import comparison_text
from fdqn.ops import exploration

ROOT = Path(__file__).parents[1]
FLAGS = shlex.split(
    "--env benchmarks.cuttle:make --hidden 512,256 256,128 --n-step 1 --gamma 0.95 --loss huber --learning-rate 3e-4 "
    "--learning-rate-schedule constant --capacity 20000 --target-period 200 --evaluate-episodes 500 "
    "--report-every 5000"
)


def command(*arguments: str, folder: Path = ROOT) -> str:
    """Run `fdqn` in a folder, by default the root of the repository, which `--env` imports from. Return its output."""
    return subprocess.run(
        [sys.executable, "-m", "fdqn", *arguments], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def baseline(player: Callable[[cuttle.State, Tensor, Tensor], Tensor], games: int = 2_000) -> float:
    """Return the mean score of `player(state, legal, u) -> action` in the place of the learner."""
    env, key = cuttle.make(), random.key(1)

    def uniforms(number: int) -> Tensor:
        return random.uniform(random.fold_in(key, number), (games, cuttle.NOISE + 1))

    state, step = env.reset(uniforms(0)[:, 1:])
    score, running, number = torch.zeros(games), torch.ones(games, dtype=torch.bool), 0
    while running.any():
        number += 1
        u = uniforms(number)
        state, step = env.step(state, player(state, step.legal, u[:, 0]), u[:, 1:])
        score += torch.where(running, step.reward, 0.0)
        running &= ~(step.terminated | step.truncated)
    return float(score.mean())


def games(folder: Path) -> dict[str, float]:
    """Return the mean number of games that a learner of each network has finished in training."""
    found = {}
    for part in sorted(folder.glob("[0-9]*")):
        config = json.loads((part / "config.json").read_text())
        with (part / "metrics.csv").open() as file:
            counts = [
                int(row["episodes"]) for row in csv.DictReader(file) if int(row["step"]) == config["settings"]["steps"]
            ]
        found["-".join(map(str, config["settings"]["hidden"]))] = sum(counts) / len(counts)
    return found


def run(seeds: int, steps: int, out: Path) -> dict[str, Any]:
    """Train and compare the networks, and measure the time of both commands."""
    players = {
        "random": lambda state, legal, u: exploration.uniform(legal, u),
        "opponent": lambda state, legal, u: cuttle.greedy(state),
    }
    baselines = {name: baseline(player) for name, player in players.items()}
    start = time.perf_counter()
    command("train", *FLAGS, "--seeds", str(seeds), "--steps", str(steps), "--out", str(out))
    trained = time.perf_counter()
    compared = json.loads(command("compare", out.name, "--json", folder=ROOT / out.parent))
    end = time.perf_counter()
    return {
        **work.machine("cpu"), "seeds": seeds, "steps": steps, "train_seconds": round(trained - start, 1),
        "compare_seconds": round(end - trained, 1), "games": games(out), "baselines": baselines,
        "arms": compared["arms"], "comparisons": compared["comparisons"],
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """Format a record as a Markdown table and a sentence."""
    lines = ["| player | mean score of a game, IQM | games in training |", "|---|--:|--:|"]
    lines += [f"| {name} | {score:.3f} | - |" for name, score in record["baselines"].items()]
    for arm, (name, count) in zip(record["arms"], record["games"].items(), strict=True):
        lines.append(f"| {name} | {comparison_text.estimate_text(arm['iqm'], 3)} | {count:,.0f} |")
    found, minutes = record["comparisons"][0], record["train_seconds"] / 60
    return "\n".join(lines) + (
        f"\n\n{record['seeds']} seeds of each network: {minutes:.1f} minutes of training and evaluation, "
        f"{record['compare_seconds']:.0f} s to compare. Difference of the means "
        f"{comparison_text.estimate_text(found['mean'], 3, signed=True)}, "
        f"P(better) {found['improvement']['value']:.2f}, p = {comparison_text.p_text(found['p'])}; "
        f"detectable difference: {found['detectable']:.3f}."
    )


def main() -> None:
    """Run, record and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("runs/cuttle"))
    parser.add_argument("--table", action="store_true")
    given = vars(parser.parse_args())
    if given.pop("table"):
        print(table(work.newest("cards")))
        return
    record = run(**given)
    work.append("cards", record)
    print(table(record))


if __name__ == "__main__":
    main()
