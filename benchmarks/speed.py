"""Measure speed, compile time and memory of fdqn; `peers.py` compares it with others.

    python benchmarks/speed.py [--device cpu] [--seeds 1 8 32 128] [--networks small large] [--repeats 5] [--tf32]

Each size of the work runs in a separate process. Measured are:

- seed-updates and environment steps per second, medians of repeats of one second;
- the fraction of the machine's matrix product speed that the updates reach;
- seconds from process start to the end of the first update, with filled compiler caches and, for each network's first
  size, with empty ones;
- memory growth after the import of fdqn, as a fraction of an allowance: 1.2 times the state, a batch's activations, and
  the growth of a run of one seed beyond its state;
- the time of an iteration at a capacity of a million rows, relative to ten thousand.

Prints a table and appends a record to `benchmarks/records/speed.jsonl`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

STARTED = time.perf_counter()


def measure(network: str, seeds: int, device: str, capacity: int, repeats: int) -> dict:
    """Measure one size of the work in this process."""
    import torch
    import work

    from fdqn import compile, tree

    imported = _resident()
    program = work.program(network, capacity)
    work.prepare()
    state = work.initial_state(program, seeds, device)
    state_bytes = tree.nbytes(state)
    first, reports, chunk = work.steady(program, state, compile.compiled(program))
    rates = []
    for _ in range(repeats):
        start, updates = time.perf_counter(), 0
        while time.perf_counter() - start < 1.0:
            next(reports)
            updates += chunk * seeds
        rates.append(updates / (time.perf_counter() - start))
    return {
        "rates": rates,
        "first_update_seconds": first.first_update - STARTED,
        "compile_seconds": first.compile_seconds,
        "state_bytes": state_bytes,
        "grown_bytes": _most_resident() - imported if device == "cpu" else torch.cuda.max_memory_allocated(),
    }


def size(network: str, seeds: int, device: str, repeats: int, first: dict | None, alone: dict) -> dict:
    """Measure one size of the work with filled compiler caches.

    Args:
        network: Size of the network, "small" or "large".
        seeds: Number of seeds.
        device: Device.
        repeats: Number of repeats.
        first: Result of a run with empty caches, if there is one.
        alone: Result of a run of one seed.
    """
    import work

    _process(network, seeds, device, 10_000, 1, None)
    warm = _process(network, seeds, device, 10_000, repeats, None)
    rate = work.spread(warm.pop("rates"))
    other = alone["grown_bytes"] - alone["state_bytes"]
    allowed = 1.2 * warm["state_bytes"] + work.activation_bytes(network, seeds) + other
    return {
        "network": network,
        "seeds": seeds,
        "seed_updates_per_second": rate,
        "env_steps_per_second": rate["median"] * work.ENVS,
        "flop_per_second": rate["median"] * work.flop(network),
        "cold": first and {name: first[name] for name in ("first_update_seconds", "compile_seconds")},
        "warm": warm,
        "grown_of_allowed": warm["grown_bytes"] / allowed,
    }


def capacities(device: str, repeats: int) -> dict:
    """Measure the time of an iteration of one seed at a million rows relative to ten thousand, alternating."""
    import work

    rates = {10_000: [], 1_000_000: []}
    for _ in range(repeats):
        for capacity, seen in rates.items():
            seen.append(max(_process("small", 1, device, capacity, 3, None)["rates"]))
    return work.spread([small / large for small, large in zip(*rates.values(), strict=True)])


def main() -> None:
    """Measure, print and append a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--networks", nargs="+", choices=("small", "large"), default=["small", "large"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tf32", action="store_true", help="allow TF32 on a GPU")
    parser.add_argument("--capacity", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.capacity:
        given = arguments.networks[0], arguments.seeds[0], arguments.device, arguments.capacity, arguments.repeats
        print(json.dumps(measure(*given)))
        return
    import work

    work.allow_tf32(arguments.tf32)
    peak, results = work.peak(arguments.device), []
    work.say(f"matrix product: {peak / 1e9:,.0f} GFLOP/s")
    print(
        "network  seeds  seed-updates/s [lowest, highest]  env-steps/s  of peak  first update cold, warm"
        "  growth, state, growth/allowance"
    )
    for network in arguments.networks:
        with tempfile.TemporaryDirectory() as caches:
            cold = _process(network, arguments.seeds[0], arguments.device, 10_000, 1, caches)
            alone = [_process(network, 1, arguments.device, 10_000, 1, None) for _ in range(2)][1]  # caches filled
        for seeds in arguments.seeds:
            first = cold if seeds == arguments.seeds[0] else None
            empty = f"{first['first_update_seconds']:.1f} s" if first else ""
            result = size(network, seeds, arguments.device, arguments.repeats, first, alone)
            rate, warm = result["seed_updates_per_second"], result["warm"]
            print(
                f"{network:7s} {seeds:6d} {rate['median']:12,.0f} [{rate['low']:,.0f}, {rate['high']:,.0f}]"
                f" {result['env_steps_per_second']:12,.0f} {result['flop_per_second'] / peak:8.0%}"
                f" {empty:>9s}"
                f" {warm['first_update_seconds']:6.1f} s {warm['grown_bytes'] / 1e6:8,.0f} MB"
                f" {warm['state_bytes'] / 1e6:6,.0f} MB {result['grown_of_allowed']:6.2f}",
                flush=True,
            )
            results.append(result)
    ratio = capacities(arguments.device, arguments.repeats)
    print(
        f"iteration at 1,000,000 rows over 10,000 rows: {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    )
    record = {
        **work.machine(arguments.device),
        "tf32": arguments.tf32,
        "peak_flop_per_second": peak,
        "results": results,
        "capacities": ratio,
    }
    work.append("speed", record)


def _process(network: str, seeds: int, device: str, capacity: int, repeats: int, caches: str | None) -> dict:
    flags = ["--networks", network, "--seeds", str(seeds), "--device", device, "--repeats", str(repeats)]
    environment = os.environ | ({"TORCHINDUCTOR_CACHE_DIR": caches} if caches else {})
    done = subprocess.run(
        [sys.executable, __file__, *flags, "--capacity", str(capacity)],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _most_resident() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    main()
