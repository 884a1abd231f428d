"""Compare the speed of fdqn with other libraries on the same work, alternating in one run.

    pip install -e '.[peers]'
    python benchmarks/peers.py [--device cpu] [--seeds 1 8 32] [--networks small large] [--repeats 7]
                               [--jax PYTHON ...] [--only NAME ...] [--tf32]

Each peer is a separate process that sets up, compiles and waits for its turn; a turn is about a second of work. The
peers take turns `--repeats` times, so that drift of the machine affects all of them. The measure is seed-updates per
second, the median of the turns; a ratio is the median over rounds. Prints a table and appends a record to
`benchmarks/records/peers.jsonl`.

`--jax` names interpreters of other environments, to time other versions of jaxlib. A peer that is not installed is
skipped with a message. All compute in float32; with `--tf32` all may use TF32 on a GPU. The peers:

    fdqn          `training.run`, as `fdqn train` runs it, reports included
    jax           `jax_dqn.py`: the same work in plain JAX, donated, scanned, vmapped
    rejax         rejax's DQN, its `train_iteration` scanned, vmapped over seeds
    sb3           Stable-Baselines3's DQN, one seed
    torch         an imperative loop in PyTorch, as in CleanRL, one seed
    one by one    fdqn with a program of one seed, for each seed in turn
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from fdqn.training import host

TURN = 1.0  # s

# Package that a peer requires, whether it runs several seeds at once, and its networks.
PEERS = {
    "fdqn": ("torch", True, ("small", "large")),
    "fdqn in gymnasium": ("gymnasium", True, ("small",)),
    "jax": ("jax", True, ("small", "large")),
    "rejax": ("rejax", True, ("small",)),
    "sb3": ("stable_baselines3", False, ("small",)),
    "torch": ("gymnasium", False, ("small",)),
    "one by one": ("torch", True, ("small", "large")),
}
VERSIONS = ("torch", "jax", "jaxlib", "optax", "rejax", "stable-baselines3", "gymnasium")


def fdqn(network: str, seeds: int, device: str) -> Callable[[int], int]:
    """Run fdqn as `fdqn train` does."""
    import work

    from fdqn import compile

    program = work.program(network)
    work.prepare()
    return _turns(program, work.initial_state(program, seeds, device), compile.compiled(program))


def fdqn_in_gymnasium(network: str, seeds: int, device: str) -> Callable[[int], int]:
    """Run fdqn with Gymnasium's CartPole, which is stepped on the host while the device learns."""
    import work

    from fdqn import compile, envs

    env = envs.find("gym:CartPole-v1")
    program = work.program(network)._replace(env=env)
    work.prepare()
    vector = env.open(seeds, work.ENVS)
    state = host.start(program, vector, work.initial_state(program, seeds, device))
    functions = host.functions(program, vector, compile.compiled_parts(program))
    return _turns(program, state, functions, at_once=1)


def _turns(program: Any, state: Any, functions: Any, **given: Any) -> Callable[[int], int]:
    import work

    _, reports, chunk = work.steady(program, state, functions, **given)

    def turn(cycles: int) -> int:
        for _ in range(max(1, cycles // chunk)):
            next(reports)
        return max(1, cycles // chunk) * chunk

    return turn


def one_by_one(network: str, seeds: int, device: str) -> Callable[[int], int]:
    """Run a program of one seed for each seed in turn, twenty iterations at a time."""
    import work

    from fdqn import compile, random, tree

    program = work.program(network)
    work.prepare()
    functions = compile.compiled(program)
    keys = [random.key([seed]).to(device) for seed in range(seeds)]
    states = [tree.clone(work.initial_state(program, 1, device)._replace(key=key)) for key in keys]
    done = 0

    def turn(cycles: int) -> int:
        nonlocal done
        for first in range(done, done + cycles, 20):
            for i, key in enumerate(keys):
                noise = functions.noise(key, first, 20)
                states[i] = functions.sync(functions.cycle(states[i], noise))
        done += -(-cycles // 20) * 20
        float(states[-1].metrics.totals.loss)  # synchronizes a GPU
        return -(-cycles // 20) * 20

    turn(20)
    return turn


def scans(advance_by: Callable[[int], Callable], state: object) -> Callable[[int], int]:
    """Make turns of jitted, donated scans whose length is the number of iterations between two of fdqn's reports.

    `advance_by(cycles)` makes a scan; its length is static.
    """
    import jax
    from cadence import TARGET_PERIOD, iterations_per_report

    seconds, advance = [], advance_by(TARGET_PERIOD)
    for _ in range(6):
        before = time.perf_counter()
        state = jax.block_until_ready(advance(state))
        seconds.append(time.perf_counter() - before)
    chunk = iterations_per_report(min(seconds[1:]) / TARGET_PERIOD)
    advance = advance_by(chunk)
    state = jax.block_until_ready(advance(state))

    def turn(cycles: int) -> int:
        nonlocal state
        for _ in range(max(1, cycles // chunk)):
            state = advance(state)
        jax.block_until_ready(state)
        return max(1, cycles // chunk) * chunk

    return turn


def jax(network: str, seeds: int, device: str) -> Callable[[int], int]:
    """Run plain JAX, `jax_dqn.py`."""
    import jax
    import jax_dqn

    jax.config.update("jax_platforms", device)
    small = network == "small"
    work = jax_dqn.Work(cartpole=small) if small else jax_dqn.Work(sizes=(468, 512, 256, 18), cartpole=False)
    return scans(partial(jax_dqn.advance, work), jax_dqn.states(work, seeds))


def rejax(network: str, seeds: int, device: str) -> Callable[[int], int]:
    """Run rejax's DQN with the same sizes. It uses `l2_loss` and no gradient clipping."""
    import jax
    import rejax as library
    from flax import linen
    from rejax.networks import DiscreteQNetwork, EpsilonGreedyPolicy

    jax.config.update("jax_platforms", device)
    settings = {"num_envs": 10, "num_epochs": 1, "batch_size": 128, "buffer_size": 10_000, "fill_buffer": 1_000}
    algorithm = library.get_algo("dqn").create(
        env="CartPole-v1", target_update_freq=200, learning_rate=2.5e-4, ddqn=False, **settings
    )
    agent = EpsilonGreedyPolicy(DiscreteQNetwork)(hidden_layer_sizes=(120, 84), action_dim=2, activation=linen.relu)
    algorithm = algorithm.replace(agent=agent)

    def advance_by(cycles):
        def scan(state):
            return jax.lax.scan(lambda s, _: (algorithm.train_iteration(s), None), state, None, length=cycles)[0]

        return jax.jit(jax.vmap(scan), donate_argnums=0)

    state = jax.vmap(algorithm.init_state)(jax.random.split(jax.random.key(0), seeds))
    state = jax.tree.map(jax.numpy.copy, state)  # target and parameters share a buffer, which can be donated once
    return scans(advance_by, state)


def sb3(network: str, seeds: int, device: str) -> Callable[[int], int]:
    """Run Stable-Baselines3 with ten environments in one process and one gradient step after each of their steps."""
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)  # with two it is slower
    model = DQN(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=10),
        learning_rate=2.5e-4,
        buffer_size=10_000,
        learning_starts=1_000,
        batch_size=128,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=200,
        max_grad_norm=float("inf"),
        exploration_initial_eps=0.05,
        policy_kwargs={"net_arch": [120, 84]},
        device=device,
    )
    model.learn(2_000)

    def turn(cycles: int) -> int:
        before = model._n_updates
        model.learn(10 * cycles, reset_num_timesteps=False)
        return model._n_updates - before

    return turn


def torch(network: str, seeds: int, device: str) -> Callable[[int], int]:
    """Run a hand-written loop: a module, an optimizer, NumPy ring buffers and Gymnasium's vectorized CartPole."""
    import gymnasium
    import numpy as np
    import torch
    from torch import nn

    torch.set_num_threads(1)  # with two it is slower
    torch.set_flush_denormal(True)
    envs = gymnasium.make_vec("CartPole-v1", num_envs=10, vectorization_mode="vector_entry_point")

    def net():
        layers = nn.Linear(4, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 2)
        return nn.Sequential(*layers).to(device)

    online, target = net(), net()
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=2.5e-4, fused=True)
    capacity, rng = 10_000, np.random.default_rng(0)
    rows = np.zeros((capacity, 4), np.float32), np.zeros((capacity, 4), np.float32)
    actions, rewards, discounts = np.zeros(capacity, np.int64), *np.zeros((2, capacity), np.float32)
    obs, _ = envs.reset(seed=0)
    added = 0

    def cycle(learn):
        nonlocal obs, added
        with torch.no_grad():
            greedy = online(torch.from_numpy(obs).to(device)).argmax(-1).cpu().numpy()
        action = np.where(rng.random(10) < 0.05, rng.integers(2, size=10), greedy)
        next_obs, reward, terminated, _, _ = envs.step(action)
        at = np.arange(added, added + 10) % capacity
        rows[0][at], rows[1][at] = obs, next_obs
        actions[at], rewards[at], discounts[at] = action, reward, 1.0 - terminated
        obs, added = next_obs.astype(np.float32), added + 10
        if not learn:
            return
        at = rng.integers(min(added, capacity), size=128)
        batch = [torch.from_numpy(x[at]).to(device) for x in (*rows, actions, rewards, discounts)]
        with torch.no_grad():
            value = batch[3] + 0.99 * batch[4] * target(batch[1]).amax(-1)
        q = online(batch[0]).gather(-1, batch[2].unsqueeze(-1)).squeeze(-1)
        loss = nn.functional.mse_loss(q, value)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (added // 10) % 20 == 0:
            target.load_state_dict(online.state_dict())

    for i in range(150):
        cycle(learn=i >= 100)

    def turn(cycles: int) -> int:
        for _ in range(cycles):
            cycle(learn=True)
        return cycles

    return turn


MAKERS = {
    "fdqn": fdqn,
    "fdqn in gymnasium": fdqn_in_gymnasium,
    "jax": jax,
    "rejax": rejax,
    "sb3": sb3,
    "torch": torch,
    "one by one": one_by_one,
}


def serve(name: str, network: str, seeds: int, device: str) -> None:
    """Run one peer: set up, then write a line of JSON for every line of standard input."""
    turn, cycles = MAKERS[name](network, seeds, device), 20
    while True:  # find the number of iterations that fills a turn
        before = time.perf_counter()
        done = turn(cycles)
        if (seconds := time.perf_counter() - before) > TURN / 4:
            break
        cycles *= 2
    cycles = max(1, int(done * TURN / seconds))
    versions = {package: importlib.metadata.version(package) for package in VERSIONS if _installed(package)}
    print(json.dumps(versions), flush=True)
    for _ in sys.stdin:
        before = time.perf_counter()
        done = turn(cycles)
        print(json.dumps(done * seeds / (time.perf_counter() - before)), flush=True)


def start(python: str, name: str, network: str, seeds: int, device: str) -> subprocess.Popen:
    """Start the process of a peer."""
    command = [python, __file__, "--serve", name, "--networks", network, "--seeds", str(seeds), "--device", device]
    # The peers share the GPU's memory.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def compare(network: str, seeds: int, device: str, repeats: int, jaxes: list[str], only: list[str]) -> dict[str, dict]:
    """Run all peers on one size of the work; return `{peer: {"versions", "rates"}}`.

    Args:
        network: Size of the network, "small" or "large".
        seeds: Number of seeds.
        device: Device of all peers.
        repeats: Rounds of turns.
        jaxes: Further Python interpreters with JAX.
        only: Names of the peers to run; all if empty.
    """
    running = {}
    for name, (package, many, networks) in PEERS.items():
        if network not in networks or (only and name not in only):
            continue
        for python in [sys.executable, *jaxes] if name == "jax" else [sys.executable]:
            if python == sys.executable and not importlib.util.find_spec(package):
                print(f"{name}: skipped, {package} is not installed", file=sys.stderr, flush=True)
                continue
            process = start(python, name, network, seeds if many else 1, device)
            line = process.stdout.readline()
            if not line:
                print(f"{name}: skipped, it exited during setup ({python})", file=sys.stderr, flush=True)
                continue
            versions = json.loads(line)
            label = f"jax, jaxlib {versions['jaxlib']}" if name == "jax" else name
            running[label] = process, versions
            print(f"{network}, {seeds} seeds: {label} is ready", file=sys.stderr, flush=True)
    rates = {name: [] for name in running}
    for _ in range(repeats):
        for name, (process, _) in list(running.items()):
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write("\n")
                process.stdin.flush()
            if line := process.stdout.readline():
                rates[name].append(json.loads(line))
            else:
                print(f"{name}: skipped, it exited during its turn", file=sys.stderr, flush=True)
                del running[name]
    for process, _ in running.values():
        process.stdin.close()
        process.wait()
    return {name: {"versions": versions, "rates": rates[name]} for name, (_, versions) in running.items()}


def table(results: list[dict]) -> None:
    """Print the results of each peer and the ratio of fdqn to it."""
    for result in results:
        print(f"\n{result['network']} network, {result['seeds']} seeds: seed-updates/s, and the ratio of fdqn to each")
        ours = result["peers"].get("fdqn", {"rates": []})["rates"]
        for name, peer in result["peers"].items():
            rates = peer["rates"]
            line = f"  {name:24s} {statistics.median(rates):10,.0f}  [{min(rates):,.0f}, {max(rates):,.0f}]"
            ratios = [a / b for a, b in zip(ours, rates, strict=False)]
            if ratios and name != "fdqn":
                line += f"   {statistics.median(ratios):.2f}x  [{min(ratios):.2f}, {max(ratios):.2f}]"
            print(line)


def main() -> None:
    """Compare, print and append a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--networks", nargs="+", choices=("small", "large"), default=["small"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--jax", nargs="*", default=[], help="interpreters with other versions of jax")
    parser.add_argument("--only", nargs="*", default=[], choices=tuple(PEERS), help="peers; all by default")
    parser.add_argument("--tf32", action="store_true", help="let all of them use TF32 on a GPU")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.networks[0], arguments.seeds[0], arguments.device)
        return
    import work

    work.allow_tf32(arguments.tf32)
    chosen = arguments.device, arguments.repeats, arguments.jax, arguments.only
    machine = work.machine(arguments.device)  # before the run: the commit that is measured
    results = [
        {"network": network, "seeds": seeds, "peers": compare(network, seeds, *chosen)}
        for network in arguments.networks
        for seeds in arguments.seeds
    ]
    table(results)
    work.append(
        "peers",
        {**machine, "tf32": arguments.tf32, "turn_seconds": TURN, "repeats": arguments.repeats, "results": results},
    )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None


if __name__ == "__main__":
    main()
