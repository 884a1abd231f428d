"""Measure how much of ale-py's speed remains while seeds learn.

    python benchmarks/atari.py [--game Breakout] [--seeds 2] [--envs 4] [--repeats 5]

Measures three rates of environment steps (four frames each) in turn: ale-py's own vector environment with random
actions and one thread per core; fdqn's host environments with random actions and without learning, on one thread; and a
training run with the Nature preset, with one update every `--envs` steps of a seed. Prints medians and ranges over the
repeats and appends a record to `benchmarks/records/atari.jsonl`.
"""

import argparse
import math
import time

import numpy as np
import torch
import work

from fdqn import compile, envs, training
from fdqn.experiment import assemble, run_folder
from fdqn.experiment.presets import PRESETS
from fdqn.experiment.settings import Settings
from fdqn.training import host

SECONDS = 5.0


def alone(game: str, envs: int):
    """Make a function that steps ale-py's vector environment with random actions and returns the number of steps."""
    from ale_py.vector_env import AtariVectorEnv

    vector = AtariVectorEnv(game.lower(), envs, num_threads=torch.get_num_threads())
    vector.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, vector.single_action_space.n, (256, envs))

    def play() -> int:
        for row in actions:
            vector.step(row)
        return len(actions) * envs

    return play


def stepping(game: str, seeds: int, num_envs: int):
    """Make a function that steps fdqn's host environments with random actions and returns the number of steps."""
    env = envs.find(f"ale:{game}")
    vector = env.open(seeds, num_envs)
    vector.reset(np.arange(seeds * num_envs).reshape(seeds, num_envs).tolist())
    actions = np.random.default_rng(0).integers(0, env.spec.actions, (64, seeds, num_envs))

    def play() -> int:
        for row in actions:
            vector.step(row)
        return actions.size

    return play


def learning(game: str, seeds: int, num_envs: int):
    """Make a function that trains until the next report and returns the number of environment steps."""
    sizes = {"seeds": seeds, "num_envs": num_envs, "capacity": 5_000, "learning_starts": 400}
    settings = Settings(**{**PRESETS["nature"].settings, **sizes, "env": f"ale:{game}"})
    program = assemble.program(settings)
    vector = envs.find(settings.env).open(seeds, num_envs)
    state = training.init(program, assemble.hyper(settings), assemble.keys(settings))
    functions = run_folder.functions(program, settings, vector)
    every = 20 * num_envs
    reports = training.run(program, host.start(program, vector, state), 10**9, functions, every, at_once=1)
    while not next(reports).learning_updates:
        pass

    def play() -> int:
        next(reports)
        return seeds * every

    return play


def rate(play) -> float:
    """Measure steps per second over SECONDS."""
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        steps += play()
    return steps / (time.perf_counter() - start)


def main() -> None:
    """Measure, print and append a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="Breakout")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--envs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    compile.prepare_cpu()
    work.say("compiling")
    sizes = arguments.game, arguments.seeds, arguments.envs
    plays = {
        "ale-py": alone(arguments.game, arguments.seeds * arguments.envs),
        "stepping": stepping(*sizes),
        "learning": learning(*sizes),
    }
    rates: dict[str, list[float]] = {name: [] for name in plays}
    for i in range(arguments.repeats):
        work.say(f"round {i + 1} of {arguments.repeats}")
        for name, play in plays.items():
            rates[name].append(rate(play))
    fractions = [a / b for a, b in zip(rates["learning"], rates["ale-py"], strict=True)]
    results = {name: work.spread(values) for name, values in rates.items()}
    for name, found in results.items():
        print(f"{name:9s} {found['median']:9,.0f} steps/s [range {found['low']:,.0f}, {found['high']:,.0f}]")
    fraction = work.spread(fractions)
    low, high = 100 * fraction["low"], 100 * fraction["high"]
    print(f"fraction  {100 * fraction['median']:9.1f} % [range {low:.1f}, {high:.1f}]")
    updates = math.floor(results["learning"]["median"] / arguments.envs)
    print(f"updates   {updates:9,} seed-updates/s")
    work.append("atari", {**work.machine("cpu"), **vars(arguments), "results": results, "fraction": fraction})


if __name__ == "__main__":
    main()
