"""Measure the time that prioritized replay takes per environment step and per update, by size of the buffer.

    python benchmarks/replay.py [--seeds 32 4] [--capacities 10000 1000000] [--repeats 200] [--threads 1]

`add` writes 10 rows; `sample + update` draws a batch of 128 and sets its priorities. Both run vmapped, donated and
compiled on the default engine, on full buffers of CartPole's rows. The sizes take turns of four steps. The script
prints microseconds of processor time per seed and step, median and lowest of the turns, and appends a record to
`benchmarks/records/replay.jsonl`.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import work
from torch import Tensor

from fdqn import compile, random, replay, tree
from fdqn.compile.cpu_groups import ThreadPartition
from fdqn.types import Transition

STEPS = 4
"""Steps per turn."""


def rows(key: Tensor, shape: tuple[int, ...]) -> Transition:
    """Make random rows of CartPole's shapes, leaves [*shape, ...]."""
    obs = random.normal(key, (*shape, 4))
    action, ones = torch.zeros(shape, dtype=torch.int64), torch.ones(shape)
    return Transition(obs, action, random.uniform(key, shape), ones, obs, torch.ones(*shape, 2, dtype=torch.bool))


def full(seeds: int, capacity: int, key: Tensor) -> Any:
    """Make full buffers of `seeds` seeds with random priorities."""
    state = replay.prioritized.init(tree.index(rows(key, (1,)), 0), capacity)
    # Adding rows eagerly would copy the buffer at each call.
    ring = state.ring._replace(rows=rows(key, (capacity,)), added=state.ring.added + capacity)
    levels = [torch.cat([random.randint(key, (capacity,), 1, 2**20), state.mass[capacity:]])]
    for above in state.sums:
        sums = levels[-1].unflatten(0, (-1, replay.prioritized.CHILDREN)).sum(-1)
        levels.append(torch.cat([sums, above[len(sums) :]]))
    state = state._replace(ring=ring, mass=levels[0], sums=tuple(levels[1:]))
    return tree.map(lambda x: x.expand(seeds, *x.shape).clone(), state)


def turns(seeds: int, capacity: int) -> dict[str, Callable[[], float]]:
    """Compile both functions. Return functions that run a turn and return its microseconds per seed and step."""
    buffer, key = replay.prioritized.buffer(capacity, uniform=1e-3), random.key(0)

    def add(carried: Any, batch: Transition) -> Any:
        state, weight = carried
        return buffer.add(state, batch, batch.discount == 0, None, None)[0], weight

    def sample_and_update(carried: Any, bits: Tensor) -> Any:
        state, _ = carried
        sample = buffer.sample(state, bits, 0)
        batch = sample.batch
        priority = (batch.reward + batch.obs.sum(-1) - batch.next_obs.sum(-1) + batch.action * batch.discount).abs()
        return buffer.update(state, sample.indices, priority), sample.weight

    given = {
        "add": (add, rows(key, (STEPS, seeds, work.ENVS))),
        "sample + update": (sample_and_update, random.bits(key, (STEPS, seeds, work.BATCH))),
    }
    held = [(full(seeds, capacity, key), torch.zeros(seeds, work.BATCH))]
    return {name: _turn(compile.scan_vmapped(f, _partition), held, xs) for name, (f, xs) in given.items()}


def _partition(lanes: int) -> ThreadPartition:
    return ThreadPartition(lanes=8 if lanes % 8 == 0 else lanes, workers=1, threads=torch.get_num_threads())


def _turn(f: Callable[..., Any], held: list[Any], xs: Any) -> Callable[[], float]:
    def turn() -> float:
        before = time.process_time()
        held[0] = f(held[0], xs)
        return (time.process_time() - before) / STEPS / len(held[0][1]) * 1e6

    turn()
    return turn


@torch.no_grad()
def main() -> None:
    """Measure, print and append a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[32, 4], help="one number for each capacity")
    parser.add_argument("--capacities", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    work.prepare()
    torch.set_num_threads(arguments.threads)
    sizes = list(zip(arguments.seeds, arguments.capacities, strict=True))
    cases = {(*size, name): turn for size in sizes for name, turn in turns(*size).items()}
    times: dict[Any, list[float]] = {case: [] for case in cases}
    for _ in range(arguments.repeats):
        for case, turn in cases.items():
            times[case].append(turn())
    print(f"{'seeds':>5s} {'rows':>9s} {'us per seed and step':24s} {'median':>8s} {'lowest':>8s}")
    for (seeds, capacity, name), values in times.items():
        spread = work.spread(values)
        print(f"{seeds:5d} {capacity:9,d} {name:24s} {spread['median']:8.1f} {spread['low']:8.1f}")
    record = [{"seeds": s, "rows": c, "function": name, **work.spread(x)} for (s, c, name), x in times.items()]
    work.append("replay", {**work.machine("cpu"), "repeats": arguments.repeats, "microseconds": record})


if __name__ == "__main__":
    main()
