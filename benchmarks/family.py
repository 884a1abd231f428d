"""Measure the algorithms: their speed, their returns on MinAtar from the same seeds, and those of PQN on MinAtar.

    python benchmarks/family.py speed [--algorithms dqn c51 ...] [--seeds 8 32] [--turns 7]
    python benchmarks/family.py paired [--games breakout asterix] [--steps 1000000] [--seeds 8]
    python benchmarks/family.py pqn [--games asterix ...] [--seeds 8]
    python benchmarks/family.py table

speed measures the default settings of `fdqn train --algorithm NAME` on CartPole. The algorithms take turns of a second
in one process. Results are the updates per second over all seeds, the time of an update relative to DQN's, and its
arithmetic relative to DQN's. The arithmetic of an update is counted on fake tensors for one seed: floating-point
operations of matrix products and convolutions, and elements that all other operations write.

paired trains DQN and the algorithms that change its learning rule on MinAtar, from the same seeds and with common
settings. Results are the differences from DQN, seed by seed, in the mean return of the last 100 training episodes: mean
and 95% bootstrap interval.

pqn trains the preset pqn-minatar. Its scores are also added to those that `fdqn presets` lists.

Runs are stored in `--out`. A finished run is read instead of trained, and a stopped one is continued. Every part prints
its table and appends a record to `records/family.jsonl`; paired and pqn also draw a picture. table prints the tables of
the newest records.
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import presets
import work

import fdqn
from fdqn import training
from fdqn.experiment import assemble, cost
from fdqn.experiment.settings import AlgorithmName, make
from fdqn.report import plots

ALGORITHMS: tuple[AlgorithmName, ...] = get_args(AlgorithmName)
GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
PICTURES = Path(__file__).parent / "pictures"

PAIRED: dict[str, dict[str, Any]] = {
    "dqn": {"loss": "mse", "double": False},
    "munchausen": {"loss": "mse"},
    "c51": {"double": False},
    "qr-dqn": {"double": False, "quantiles": 51},
    "rainbow": {"priority_alpha": 0.5, "sigma_zero": 0.1},
}
SUPPORT = {"v_min": 0.0, "v_max": 50.0, "atoms": 51}  # no reward of MinAtar is negative
EXPLORATION = {"epsilon_end": 0.01, "epsilon_fraction": 0.1}
# Settings of Revisiting Rainbow on MinAtar (https://arxiv.org/abs/2011.14826), with one learning rate for all.
MINATAR = {
    "num_envs": 4,
    "steps_per_cycle": 1,
    "updates_per_cycle": 1,
    "batch_size": 32,
    "capacity": 100_000,
    "learning_starts": 1_000,
    "target_period": 250,
    "tau": 1.0,
    "gamma": 0.99,
    "optimizer": "adam",
    "adam_eps": 3.125e-4,
    "learning_rate": 2.5e-4,
    "learning_rate_schedule": "constant",
    "max_grad_norm": math.inf,
}


# Arithmetic and speed.


def program(algorithm: AlgorithmName, seeds: int) -> tuple[training.Program, training.TrainState]:
    """Make the program of an algorithm and its initial state."""
    settings = make({"algorithm": algorithm, "env": "cartpole", "seeds": seeds, "steps": 10**8})
    made = assemble.program(settings)
    return made, training.init(made, assemble.hyper(settings), assemble.keys(settings))


def arithmetic(algorithm: AlgorithmName) -> cost.Cost:
    """Count the arithmetic per update, environment steps included."""
    work.say(f"{algorithm}: counting")
    return cost.count(program(algorithm, 1)[0])


def prepared(algorithm: AlgorithmName, seeds: int) -> Callable[[], float]:
    """Compile an algorithm and return a function that trains for a second and returns seed-updates per second."""
    return work.prepared(f"{algorithm}, {seeds} seeds", *program(algorithm, seeds))


def speed(algorithms: list[AlgorithmName], seeds: list[int], turns: int) -> dict[str, Any]:
    """Count the arithmetic of the algorithms, and measure their speed in turns."""
    work.prepare()
    names = list(dict.fromkeys(["dqn", *algorithms]))
    counts, results = {name: arithmetic(name) for name in names}, []
    for count in seeds:
        measures = {name: prepared(name, count) for name in names}
        rates: dict[str, list[float]] = {name: [] for name in names}
        for _, (name, measure) in itertools.product(range(turns), measures.items()):
            rates[name].append(measure())
        for name in names:
            slower = [dqn / other for dqn, other in zip(rates["dqn"], rates[name], strict=True)]
            results.append(
                {
                    "algorithm": name,
                    "seeds": count,
                    "rates": rates[name],
                    "time_ratio": work.spread(slower),
                    **counts[name]._asdict(),
                    "products_ratio": counts[name].products / counts["dqn"].products,
                    "elements_ratio": counts[name].elements / counts["dqn"].elements,
                }
            )
    return {"part": "speed", **work.machine("cpu"), "turns": turns, "results": results}


def speed_table(record: dict[str, Any]) -> str:
    """Format a record of speeds as a Markdown table."""
    seeds = list(dict.fromkeys(result["seeds"] for result in record["results"]))
    heads = "".join(f" {count} seeds: seed-updates/s | time of an update |" for count in seeds)
    lines = [f"| algorithm | products | other elements |{heads}", f"|---|--:|--:|{'--:|--:|' * len(seeds)}"]
    for name in dict.fromkeys(result["algorithm"] for result in record["results"]):
        rows = [result for result in record["results"] if result["algorithm"] == name]
        cells = ""
        for row in rows:
            ratio = row["time_ratio"]
            cells += f" {statistics.median(row['rates']):,.0f} |"
            cells += f" {ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}] |"
        first = rows[0]
        lines.append(
            f"| `{name}` | {first['products'] / 1e6:.1f} M ({first['products_ratio']:.2f}x) "
            f"| {first['elements'] / 1e6:.2f} M ({first['elements_ratio']:.2f}x) |{cells}"
        )
    return "\n".join(lines)


# Returns.


def paired_settings(algorithm: AlgorithmName, steps: int) -> dict[str, Any]:
    """Return the settings of an algorithm in the comparison with DQN, as keywords of `fdqn.train`."""
    cadence = {"steps": steps, "report_every": max(steps // 50, 1), "checkpoint_every": steps // 4}
    support = SUPPORT if algorithm in ("c51", "rainbow") else {}
    exploration = {} if algorithm == "rainbow" else EXPLORATION  # its noisy layers explore
    return {**MINATAR, **cadence, **support, **exploration, **PAIRED[algorithm], "algorithm": algorithm}


def paired(games: list[str], seeds: int, steps: int, out: Path) -> dict[str, Any]:
    """Train every algorithm on every game from the same seeds, draw the curves and compare returns with DQN's."""
    results, panels = [], {}
    for game in games:
        runs = {
            name: work.trained(
                out / f"{game}-{name}", env=f"minatar:{game}", seeds=seeds, **paired_settings(name, steps)
            )
            for name in PAIRED
        }
        panels[game] = {name: run.curve for name, run in runs.items()}
        dqn = returns(runs["dqn"])
        for name, run in runs.items():
            ours = returns(run)
            both = np.isfinite(ours) & np.isfinite(dqn)
            result = {"game": game, "algorithm": name, "mean": float(np.nanmean(ours)), "returns": ours.tolist()}
            result |= {"difference": float((ours - dqn)[both].mean())}
            result |= dict(zip(("low", "high"), presets.interval((ours - dqn)[both]), strict=True))
            results.append(result | {"hours": run.summary["wall_seconds"] / 3600})
    plots.learning_curves(PICTURES / "family.png", panels, f"{seeds} seeds from the same keys, Adam, one learning rate")
    return {"part": "paired", **work.machine("cpu"), "seeds": seeds, "steps": steps, "results": results}


def returns(run: fdqn.Run) -> np.ndarray:
    """Return the training return of each seed, NaN for a failed one."""
    return np.array([math.nan if x is None else x for x in run.summary["train_return"]["per_seed"]], dtype=float)


def paired_table(record: dict[str, Any]) -> str:
    """Format a record of paired differences as a Markdown table."""
    games = list(dict.fromkeys(result["game"] for result in record["results"]))
    heads = "".join(f" {game} | minus DQN |" for game in games)
    lines = [f"| algorithm |{heads}", f"|---|{'--:|--:|' * len(games)}"]
    for name in dict.fromkeys(result["algorithm"] for result in record["results"]):
        cells = ""
        for row in (result for result in record["results"] if result["algorithm"] == name):
            difference = f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]" if name != "dqn" else ""
            cells += f" {row['mean']:.2f} | {difference} |"
        lines.append(f"| `{name}` |{cells}")
    return "\n".join(lines)


def pqn(games: list[str], seeds: int, out: Path) -> dict[str, Any]:
    """Train the preset pqn-minatar on every game, record the scores and draw the curves."""
    results, panels = [], {}
    for game in games:
        folder = out / f"pqn-minatar-{game}"
        score = presets.train("pqn-minatar", f"minatar:{game}", seeds, folder)
        presets.append(score)
        run = fdqn.Run.load(folder)
        greedy = run.summary["final_return"]
        results.append({"game": game, **score, "greedy": {key: greedy[key] for key in ("iqm", "low", "high")}})
        panels[game] = {"": run.curve}
    plots.learning_curves(PICTURES / "pqn.png", panels, f"PQN, {seeds} seeds")
    return {"part": "pqn", **work.machine("cpu"), "seeds": seeds, "results": results}


def pqn_table(record: dict[str, Any]) -> str:
    """Format a record of PQN's returns as a Markdown table."""
    lines = [
        f"| {record['results'][0]['steps']:,} frames, {record['seeds']} seeds | training | greedy, IQM | hours |",
        "|---|--:|--:|--:|",
    ]
    for row in record["results"]:
        greedy = row["greedy"]
        lines.append(
            f"| {row['game']} | {row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}] "
            f"| {greedy['iqm']:.2f} [{greedy['low']:.2f}, {greedy['high']:.2f}] | {row['seconds'] / 3600:.2f} |"
        )
    return "\n".join(lines)


TABLES = {"speed": speed_table, "paired": paired_table, "pqn": pqn_table}


def tables() -> str:
    """Format the newest record of each part."""
    lines = (work.RECORDS / "family.jsonl").read_text().splitlines()
    newest = {record["part"]: record for record in map(json.loads, lines)}
    return "\n\n".join(f"{part}\n\n{TABLES[part](record)}" for part, record in newest.items())


def main() -> None:
    """Run a part, record and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    flags = parts.add_parser("speed")
    flags.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    flags.add_argument("--seeds", nargs="+", type=int, default=[8, 32])
    flags.add_argument("--turns", type=int, default=7)
    flags = parts.add_parser("paired")
    flags.add_argument("--games", nargs="+", choices=GAMES, default=["breakout", "asterix"])
    flags.add_argument("--seeds", type=int, default=8)
    flags.add_argument("--steps", type=int, default=1_000_000)
    flags.add_argument("--out", type=Path, default=Path("runs/family"))
    flags = parts.add_parser("pqn")
    flags.add_argument("--games", nargs="+", choices=GAMES, default=list(GAMES))
    flags.add_argument("--seeds", type=int, default=8)
    flags.add_argument("--out", type=Path, default=Path("runs/family"))
    parts.add_parser("table")
    given = vars(parser.parse_args())
    part = given.pop("part")
    if part == "table":
        print(tables())
        return
    record = {"speed": speed, "paired": paired, "pqn": pqn}[part](**given)
    work.append("family", record)
    print(TABLES[part](record))


if __name__ == "__main__":
    main()
