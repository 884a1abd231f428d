"""Compare the speed of the compiled MinAtar games with that of the `minatar` package in a Python loop.

    python benchmarks/games.py [--seeds 32] [--envs 128] [--threads 1] [--repeats 5] [--games asterix ...]

Each game runs in a separate process with empty compiler caches. Measures the seconds to compile `vmap(step)` and, in
turn, environment steps per second with random actions: of fdqn, including all observations, and of the package (`act`,
`state`, and `reset` after the last step of an episode).

Install the package with `pip install --no-deps minatar`. Prints a table and appends a record to
`benchmarks/records/minatar.jsonl`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
STEPS = 64  # steps per call; their noise is drawn in advance


def measure(game: str, seeds: int, envs: int, threads: int, repeats: int) -> dict:
    """Measure one game in this process."""
    import torch
    import work
    from torch.func import vmap

    from fdqn import compile, random
    from fdqn.envs import make

    torch.set_num_threads(threads)
    compile.prepare_cpu()
    env = make(f"minatar:{game}")
    u = random.uniform(random.key(0), (STEPS, seeds, envs, env.spec.noise))
    actions = random.randint(random.key(1), (STEPS, seeds, envs), 0, env.spec.actions)
    state, _ = vmap(env.reset)(u[0])
    start = time.perf_counter()
    step = compile.compile(vmap(env.step))
    step(state, actions[0], u[0])
    seconds = time.perf_counter() - start

    def run_compiled() -> int:
        nonlocal state
        for i in range(STEPS):
            state, _ = step(state, actions[i], u[i])
        return STEPS * seeds * envs

    run_package, compiled, package = _package(game), [], []
    for _ in range(repeats):
        compiled.append(_rate(run_compiled))
        package.append(_rate(run_package))
    ratios = [a / b for a, b in zip(compiled, package, strict=True)]
    return {
        "game": game,
        "compile_seconds": seconds,
        "env_steps_per_second": work.spread(compiled),
        "package": work.spread(package),
        "ratio": work.spread(ratios),
    }


def _package(game: str):
    """Make a function that plays the package's game and returns the number of steps."""
    import logging

    import numpy as np

    logging.disable(logging.WARNING)  # the package warns if seaborn is missing
    try:
        from minatar import Environment
    except ImportError:
        sys.exit("benchmarks/games.py requires the minatar package: pip install --no-deps minatar")
    env = Environment(game)
    env.seed(0)
    env.reset()
    actions = np.random.default_rng(0).integers(0, 6, 2_000).tolist()

    def play() -> int:
        for action in actions:
            _, ended = env.act(action)
            env.state()
            if ended:
                env.reset()
        return len(actions)

    return play


def _rate(play) -> float:
    """Measure steps per second: the best of the calls within half a second."""
    best, until = 0.0, time.perf_counter() + 0.5
    while (start := time.perf_counter()) < until:
        steps = play()
        best = max(best, steps / (time.perf_counter() - start))
    return best


def main() -> None:
    """Measure, print and append a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--envs", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--games", nargs="+", choices=GAMES, default=GAMES)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = arguments.seeds, arguments.envs, arguments.threads, arguments.repeats
    if arguments.one:
        print(json.dumps(measure(arguments.games[0], *sizes)))
        return
    import work

    print("game            env-steps/s      package  ratio [lowest, highest]  compiled in")
    results = []
    for game in arguments.games:
        with tempfile.TemporaryDirectory() as caches:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--games", game, "--one"],
                env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": caches}, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
        result = json.loads(done.stdout)
        rate, package, ratio = (result[name]["median"] for name in ("env_steps_per_second", "package", "ratio"))
        print(
            f"{game:15s} {rate:11,.0f} {package:12,.0f} {ratio:6.1f} [{result['ratio']['low']:.1f},"
            f" {result['ratio']['high']:.1f}] {result['compile_seconds']:10.1f} s",
            flush=True,
        )
        results.append(result)
    seeds, envs, threads, _ = sizes
    work.append(
        "minatar", {**work.machine("cpu"), "seeds": seeds, "envs": envs, "threads": threads, "results": results}
    )


if __name__ == "__main__":
    main()
