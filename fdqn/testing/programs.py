"""Laws of a whole program: lanes that do not know of each other, chunks, metrics, checkpoints, donated state.

Each raises AssertionError with the leaf, the place in it, what was expected and what came. Tolerances are arguments and
begin where the law says; integers and flags are always exact.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fdqn import compile as edge
from fdqn import random, training, tree
from fdqn.testing.asserts import assert_trees_close, assert_trees_equal
from fdqn.testing.leaves import copied
from fdqn.types import Hyper, Step

__all__ = ["advance", "chunks", "donated", "lanes", "metrics", "resumed", "trained"]


def advance(
    program: training.Program, state: training.TrainState, cycles: int, functions: training.Functions | None = None
) -> training.TrainState:
    """The lanes after `cycles` more cycles of `training.run`: warm-up, learning, target copies."""
    steps = (int(state.cycle.max()) + cycles) * program.config.env_steps
    *_, last = training.run(program, state, steps, functions or training.vmapped(program), report_every=steps)
    return last.state


def trained(
    program: training.Program, hyper: Hyper, keys: Tensor, cycles: int = 50, dtype: torch.dtype = torch.float64
) -> training.TrainState:
    """Fresh lanes with floats in `dtype`, after `cycles` cycles. What `lanes` is usually asked of.

    The environment answers in `dtype` when its state is; of one that has a dtype of its own, ask for that.
    """
    return advance(program, tree.cast(training.init(program, hyper, keys), dtype), cycles)


def lanes(
    f: Callable[[Hyper, Tensor], Any],
    hyper: Hyper,
    keys: Tensor,
    distinct: Callable[[Any], Any] = lambda result: result,
    atol: float = 1e-10,
    rtol: float = 1e-10,
) -> None:
    """Lane i of `f(hyper [S], keys [S, 2]) -> tree [S]` equals lane i alone; a changed key changes its own lane only,
    bit for bit; no two lanes are alike in any leaf of `distinct(result)`.

        programs.lanes(partial(programs.trained, program), hyper, keys, distinct=lambda state: state.learner.params)
    """
    together, count = copied(f(hyper, keys)), keys.shape[0]
    for i in range(count):
        alone = f(tree.index(hyper, slice(i, i + 1)), keys[i : i + 1])
        assert_trees_close(copied(alone), tree.index(together, slice(i, i + 1)), atol, rtol, f"lane {i} of {count}: ")
    others = [i for i in range(count) if i != count // 2]
    changed = keys.clone()
    changed[count // 2] = random.fold_in(keys[count // 2], 2**31)
    result = copied(f(hyper, changed))
    assert_trees_equal(tree.index(together, others), tree.index(result, others), "lanes whose key did not change: ")
    chosen = distinct(together)
    for path, leaf, new in zip(tree.paths(chosen), tree.leaves(chosen), tree.leaves(distinct(result)), strict=True):
        different = not torch.equal(leaf[count // 2], new[count // 2])
        assert different, f"lane {count // 2}{path}: expected a change with its key, got none"
        for i in range(count):
            for j in range(i):
                assert not torch.equal(leaf[i], leaf[j]), f"lanes {j} and {i}{path}: expected them to differ, got one"


def chunks(
    program: training.Program,
    keys: Tensor,
    first: int = 3,
    cycles: int = 7,
    noise: Callable[[training.Program, Tensor, int, int], training.Noise] = training.noise,
) -> None:
    """Noise of `cycles` cycles drawn at once equals as many draws, bit for bit, and no cycle's equals another's."""
    at_once = noise(program, keys, first, cycles)
    one_by_one = tree.stack(tree.index(noise(program, keys, first + i, 1), 0) for i in range(cycles))
    assert_trees_equal(one_by_one, at_once, "noise drawn at once: ")
    for path, leaf in zip(tree.paths(at_once), tree.leaves(at_once), strict=True):
        for i in range(1, cycles if leaf.numel() else 0):
            assert not torch.equal(leaf[i], leaf[i - 1]), (
                f"cycles {i - 1} and {i}{path}: expected new noise, got the same"
            )


def metrics(program: training.Program, hyper: Hyper, keys: Tensor, cycles: int = 50) -> None:
    """What the metrics say of the episodes equals a Python loop over a log that steps the environment by hand.

    A return is the sum of the rewards of its episode. The replay must hold one cycle's transitions.
    """
    functions, state = training.vmapped(program), training.init(program, hyper, keys)
    running = [[0.0] * program.config.num_envs for _ in range(keys.shape[0])]
    ended: list[list[float]] = [[] for _ in running]
    for number in range(cycles):
        noises = training.noise(program, keys, number, 1)
        before, state = state, functions.collect(state, noises)
        for step in _played_by_hand(program, before, state, tree.index(noises, 0)):
            ends = (step.terminated | step.truncated).tolist()
            for lane, rewards in enumerate(step.reward.tolist()):
                for e, reward in enumerate(rewards):
                    running[lane][e] += reward
                    if ends[lane][e]:
                        ended[lane].append(running[lane][e])
                        running[lane][e] = 0.0
    for lane, log in enumerate(ended):
        counted, name = tree.index(state.metrics, lane), f"lane {lane}, "
        ring = counted.returns[:-1][~counted.returns[:-1].isnan()].double().sort().values
        last = torch.tensor(sorted(log[-(counted.returns.shape[0] - 1) :]), dtype=torch.float64)
        assert int(counted.episodes) == len(log), f"{name}episodes: expected {len(log)}, got {int(counted.episodes)}"
        assert_trees_close(last, ring, 1e-6, 1e-6, f"{name}last returns: ")
        assert_trees_close(torch.tensor(sum(log)).double(), counted.returned.double(), 1e-6, 1e-6, f"{name}returned: ")
        assert_trees_close(torch.tensor(running[lane]), counted.running.float(), 1e-6, 1e-6, f"{name}running: ")


def _played_by_hand(
    program: training.Program, before: training.TrainState, after: training.TrainState, noises: training.Noise
) -> Iterator[Step]:
    """The steps [S, E] of one cycle, from the actions that replay remembers."""
    config, world = program.config, before.env_state
    for i in range(config.steps_per_cycle):
        first = int(before.buffer.added[0]) + i * config.num_envs
        at = (first + torch.arange(config.num_envs)) % config.capacity
        world, step = vmap(program.env.step)(world, after.buffer.rows.action[:, at], noises.env[:, i])
        assert_trees_equal(step.reward, after.buffer.rows.reward[:, at], f"reward of stored rows from {first}: ")
        yield step


def resumed(
    run: Callable[[Any, int], Any], state: Any, first: int, then: int, through: Callable[[Any], Any] = tree.clone
) -> None:
    """`run(state, cycles)` stopped after `first` cycles, put `through` a checkpoint and run on for `then` equals the
    undisturbed run, bit for bit.
    """
    undisturbed = copied(run(copied(state), first + then))
    stopped = through(run(copied(state), first))
    assert_trees_equal(undisturbed, run(stopped, then), f"resumed after {first} of {first + then}: ")


def donated(
    f: Callable[..., Any],
    state: Any,
    *args: Any,
    transform: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda f: f,
    donate: Callable[[Callable[..., Any]], Callable[..., Any]] = edge.donate,
    calls: int = 3,
    atol: float = 0.0,
) -> None:
    """`transform(donate(f))` equals `f`, call after call, and its answers stand where the state stood."""
    fast, expected, given = transform(donate(f)), copied(state), copied(state)
    addresses = [x.data_ptr() for x in tree.leaves(given)]
    for call in range(1, calls + 1):
        expected = copied(f(expected, *args))
        answer = fast(given, *args)
        assert_trees_close(expected, answer, atol, atol, f"call {call}: ")
        assert_trees_equal(answer, given, f"call {call}, the donated state: ")
        for path, x, address in zip(tree.paths(given), tree.leaves(answer), addresses, strict=True):
            assert x.data_ptr() == address, f"call {call}{path}: expected the old storage, got other storage"
