"""Laws of a whole program: independence of seeds, noise, metrics, resumed runs and donation.

Each raises AssertionError with the leaf, the index in it, the expected value and the value found. Tolerances apply to
floats; integers and booleans must always be equal.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fdqn import compile as edge
from fdqn import envs, random, training, tree
from fdqn.testing.asserts import assert_trees_close, assert_trees_equal
from fdqn.testing.leaves import copied
from fdqn.types import Hyper, Step

__all__ = ["advance", "chunks", "donated", "metrics", "resumed", "seeds", "trained"]


def advance(
    program: training.Program, state: training.TrainState, cycles: int, functions: training.Functions | None = None
) -> training.TrainState:
    """Run `cycles` more training iterations, including warm-up and target updates; return the state."""
    steps = (int(state.cycle.max()) + cycles) * program.config.env_steps
    *_, last = training.run(program, state, steps, functions or training.vmapped(program), report_every=steps)
    return last.state


def trained(
    program: training.Program, hyper: Hyper, keys: Tensor, cycles: int = 50, dtype: torch.dtype = torch.float64
) -> training.TrainState:
    """Initialize seeds with floats in `dtype` and train them for `cycles` iterations.

    This is the usual function to pass to `seeds`. If the state of the environment has a fixed floating-point dtype,
    pass that dtype.
    """
    return advance(program, tree.cast(training.init(program, hyper, keys), dtype), cycles)


def seeds(
    f: Callable[[Hyper, Tensor], Any],
    hyper: Hyper,
    keys: Tensor,
    distinct: Callable[[Any], Any] = lambda result: result,
    atol: float = 1e-10,
    rtol: float = 1e-10,
) -> None:
    """Check that seeds are independent.

    Seed i of many must equal seed i alone. A change of one key must change that seed and no other, bit for bit. No two
    seeds may be equal.

        programs.seeds(partial(programs.trained, program), hyper, keys, distinct=lambda state: state.learner.params)

    Args:
        f: `f(hyper [S], keys [S, 2]) -> tree`, leaves [S, ...].
        hyper: hyper-parameters, [S] each.
        keys: keys of the seeds, [S, 2].
        distinct: selects the leaves of the result that must differ between any two seeds.
        atol: absolute tolerance of the comparison with a single seed.
        rtol: relative tolerance of the comparison with a single seed.
    """
    together, count = copied(f(hyper, keys)), keys.shape[0]
    for i in range(count):
        alone = f(tree.index(hyper, slice(i, i + 1)), keys[i : i + 1])
        assert_trees_close(copied(alone), tree.index(together, slice(i, i + 1)), atol, rtol, f"seed {i} of {count}: ")
    others = [i for i in range(count) if i != count // 2]
    changed = keys.clone()
    changed[count // 2] = random.fold_in(keys[count // 2], 2**31)
    result = copied(f(hyper, changed))
    assert_trees_equal(tree.index(together, others), tree.index(result, others), "seeds whose key did not change: ")
    chosen = distinct(together)
    for path, leaf, new in zip(tree.paths(chosen), tree.leaves(chosen), tree.leaves(distinct(result)), strict=True):
        different = not torch.equal(leaf[count // 2], new[count // 2])
        assert different, f"seed {count // 2}{path}: expected a change with its key, got none"
        for i in range(count):
            for j in range(i):
                assert not torch.equal(leaf[i], leaf[j]), (
                    f"seeds {j} and {i}{path}: expected them to differ, got the same"
                )


def chunks(
    program: training.Program,
    keys: Tensor,
    first: int = 3,
    cycles: int = 7,
    noise: Callable[[training.Program, Tensor, int, int], training.Noise] = training.noise,
) -> None:
    """Check that noise does not depend on how many iterations are drawn at once, and differs between iterations.

    The noise of `cycles` iterations from `first` on must equal that of single draws, bit for bit.
    """
    at_once = noise(program, keys, first, cycles)
    one_by_one = tree.stack(tree.index(noise(program, keys, first + i, 1), 0) for i in range(cycles))
    assert_trees_equal(one_by_one, at_once, "noise drawn at once: ")
    for path, leaf in zip(tree.paths(at_once), tree.leaves(at_once), strict=True):
        for i in range(1, cycles if leaf.numel() else 0):
            assert not torch.equal(leaf[i], leaf[i - 1]), (
                f"iterations {i - 1} and {i}{path}: expected new noise, got the same"
            )


def metrics(program: training.Program, hyper: Hyper, keys: Tensor, cycles: int = 50) -> None:
    """Check the metrics of episodes against a Python loop that steps the environment, sums rewards and counts steps.

    The capacity of the buffer must be at least the number of transitions of one iteration.
    """
    functions, state = training.vmapped(program), training.init(program, hyper, keys)
    running = [[0.0] * program.config.num_envs for _ in range(keys.shape[0])]
    elapsed = [[0] * program.config.num_envs for _ in running]
    ended: list[list[float]] = [[] for _ in running]
    lengths = [0 for _ in running]
    for number in range(cycles):
        noises = training.noise(program, keys, number, 1)
        before, state = state, functions.collect(state, noises)
        for step in _played_by_hand(program, before, state, tree.index(noises, 0)):
            ends = (step.terminated | step.truncated).tolist()
            for seed, rewards in enumerate(step.reward.tolist()):
                for e, reward in enumerate(rewards):
                    running[seed][e] += reward
                    elapsed[seed][e] += 1
                    if ends[seed][e]:
                        ended[seed].append(running[seed][e])
                        lengths[seed] += elapsed[seed][e]
                        running[seed][e], elapsed[seed][e] = 0.0, 0
    for seed, log in enumerate(ended):
        counted, name = tree.index(state.metrics, seed), f"seed {seed}, "
        ring = counted.returns[:-1][~counted.returns[:-1].isnan()].double().sort().values
        last = torch.tensor(sorted(log[-(counted.returns.shape[0] - 1) :]), dtype=torch.float64)
        assert int(counted.episodes) == len(log), f"{name}episodes: expected {len(log)}, got {int(counted.episodes)}"
        assert_trees_close(last, ring, 1e-6, 1e-6, f"{name}last returns: ")
        assert_trees_close(torch.tensor(sum(log)).double(), counted.returned.double(), 1e-6, 1e-6, f"{name}returned: ")
        assert_trees_close(torch.tensor(running[seed]), counted.running.float(), 1e-6, 1e-6, f"{name}running: ")
        assert_trees_equal(torch.tensor(lengths[seed]), counted.lengths, f"{name}lengths: ")
        assert_trees_equal(torch.tensor(elapsed[seed]), counted.elapsed, f"{name}elapsed: ")


def _played_by_hand(
    program: training.Program, before: training.TrainState, after: training.TrainState, noises: training.Noise
) -> Iterator[Step]:
    """Yield the steps [S, E] of one iteration, recomputed with the actions stored in the buffer."""
    assert not envs.on_host(program.env), "program.env: expected Env, got HostEnv"
    config, env_state = program.config, before.env_state
    for i in range(config.steps_per_cycle):
        first = int(before.buffer.added[0]) + i * config.num_envs
        at = (first + torch.arange(config.num_envs)) % config.capacity
        env_state, step = vmap(program.env.step)(env_state, after.buffer.rows.action[:, at], noises.env[:, i])
        assert_trees_equal(step.reward, after.buffer.rows.reward[:, at], f"reward of stored rows from {first}: ")
        yield step


def resumed(
    run: Callable[[Any, int], Any], state: Any, first: int, then: int, through: Callable[[Any], Any] = tree.clone
) -> None:
    """Check that a run that is saved and resumed equals the uninterrupted run, bit for bit.

    Args:
        run: `run(state, cycles) -> state`.
        state: initial state.
        first: number of iterations before the stop.
        then: number of iterations after it.
        through: saves and loads a state; the default only copies it.
    """
    uninterrupted = copied(run(copied(state), first + then))
    stopped = through(run(copied(state), first))
    assert_trees_equal(uninterrupted, run(stopped, then), f"resumed after {first} of {first + then}: ")


def donated(
    f: Callable[..., Any],
    state: Any,
    *args: Any,
    transform: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda f: f,
    donate: Callable[[Callable[..., Any]], Callable[..., Any]] = edge.donate,
    calls: int = 3,
    atol: float = 0.0,
) -> None:
    """Check that `transform(donate(f))` equals `f` and writes its results into the storage of its argument.

    Args:
        f: `f(state, *args) -> state`.
        state: initial state.
        args: further arguments of `f`.
        transform: compiles the function with donation.
        donate: donation under test.
        calls: number of consecutive calls.
        atol: absolute and relative tolerance.
    """
    fast, expected, given = transform(donate(f)), copied(state), copied(state)
    addresses = [x.data_ptr() for x in tree.leaves(given)]
    for call in range(1, calls + 1):
        expected = copied(f(expected, *args))
        result = fast(given, *args)
        assert_trees_close(expected, result, atol, atol, f"call {call}: ")
        assert_trees_equal(result, given, f"call {call}, the donated state: ")
        for path, x, address in zip(tree.paths(given), tree.leaves(result), addresses, strict=True):
            assert x.data_ptr() == address, f"call {call}{path}: expected the old storage, got other storage"
