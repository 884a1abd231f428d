"""Compile the step functions of a program."""

import functools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from fdqn import check, random, training, tree
from fdqn.compile import cpu_groups, engines, verify
from fdqn.compile.cpu_groups import ThreadPartition
from fdqn.training import evaluate, host
from fdqn.types import Env, Network

# A training iteration with at most this many steps plus updates is compiled as one graph. For a longer one, one step
# and one update are compiled.
UNROLLED = 16


def compiled(
    program: training.Program,
    check_compile: bool = True,
    engine: str = "auto",
    fixed: ThreadPartition | None = None,
) -> training.Functions:
    """Return the compiled step functions of a program, vmapped over seeds. They update their state in place.

    Call `prepare_cpu` or `prepare_cuda` first. The engine `eager` returns `training.vmapped(program)`.

    Args:
        program: Program to compile.
        check_compile: Compare the first training iteration with eager execution; it raises `verify.MismatchError` if
            they differ.
        engine: One of `ENGINES`, or `auto` for the default of the device.
        fixed: Partition for all states, whose lanes must be a multiple of its group; by default that of `partition` for
            each number of lanes. If a run drops lanes, `partition(program, lanes, threads, unit=seeds)` of its first
            state lets the engine `aot` compile once, and the other lanes keep the bits that they would have had.

    Raises ValueError for an unknown engine.
    """
    check.kind("program", program, training.Program)
    if engine == "eager":
        return training.vmapped(program)
    if _is_long(program):
        return _looped(program, check_compile, engine, fixed)
    scan = partial(engines.scan_vmapped, partition=_partition(program, fixed), engine=engine)
    collect, cycle = partial(training.collect, program), partial(training.cycle, program)
    fast = scan(cycle)
    return training.Functions(
        noise=_noise(program, engine),
        collect=scan(collect, precompile=cycle),
        cycle=verify.with_comparison(fast, cycle) if check_compile else fast,
        sync=_sync,
    )


def _is_long(program: training.Program) -> bool:
    """Return True if a training iteration has too many steps and updates for one graph; each adds compile time."""
    return program.config.steps_per_cycle + program.config.updates_per_cycle > UNROLLED


def _looped(
    program: training.Program, check_compile: bool, engine: str, fixed: ThreadPartition | None
) -> training.Functions:
    """Return `compiled` for long training iterations: one compiled step and one compiled update, each in a scan."""
    step, update = partial(training.interact, program), partial(training.update, program)
    scan = partial(engines.scan_vmapped, partition=_partition(program, fixed), engine=engine)
    interact = scan(step, precompile=update, precompile_xs=lambda xs: training.example_update(program, len(xs.act)))
    learn = scan(update)
    if check_compile:
        interact, learn = verify.with_comparison(interact, step), verify.with_comparison(learn, update)

    def collect(state: training.TrainState, noise: training.Noise) -> training.TrainState:
        interact(state, training.interactions(noise))
        state.cycle.copy_(state.cycle + 1)
        return state

    def cycle(state: training.TrainState, noise: training.Noise) -> training.TrainState:
        return learn(collect(state, noise), training.updates(noise))

    return training.Functions(_noise(program, engine), training.scan(collect), training.scan(cycle), _sync)


def compiled_parts(
    program: training.Program,
    check_compile: bool = True,
    engine: str = "auto",
    fixed: ThreadPartition | None = None,
) -> host.Parts:
    """Return the compiled parts of a training iteration with host environments.

    Arguments and errors are those of `compiled`; only the updates are compared with eager execution. All parts but
    `learn` run on one thread. If an update is small, `learn` leaves one thread to the host environments.
    """
    if engine == "eager":
        return host.vmapped(program)

    def alone(count: int) -> ThreadPartition:
        return ThreadPartition(count if fixed is None else fixed.lanes, 1, 1)

    scan = partial(engines.scan_vmapped, partition=alone, engine=engine)
    return host.Parts(
        noise=_noise(program, engine),
        choose=scan(partial(host.choose, program)),
        store=scan(partial(host.store, program)),
        finish=scan(partial(host.finish, program)),
        learn=_learn_async(program, check_compile, engine, fixed),
        sync=_sync,
    )


def _learn_async(
    program: training.Program, check_compile: bool, engine: str, fixed: ThreadPartition | None
) -> Callable[[training.TrainState, training.Noise], Callable[[], training.TrainState]]:
    """Return a function that starts the updates of one training iteration on other threads, for noise [1, S, ...]."""
    is_long = _is_long(program)
    step = partial(training.update if is_long else training.learn, program)
    compare = verify.comparison(step)
    start = engines.scan_vmapped_async(step, _partition(program, fixed, spare_thread=True), engine)

    def started(state: training.TrainState, noise: training.Noise) -> Callable[[], training.TrainState]:
        xs = training.updates(tree.index(noise, 0)) if is_long else noise
        expected = compare.start(state, xs) if check_compile else None
        if is_long and expected is not None:
            # Only the first update is compared: Adam amplifies differences in rounding from update to update.
            state = start(state, tree.index(xs, slice(1)))()
            compare.finish(expected, state)
            expected, xs = None, tree.index(xs, slice(1, None))
        wait = start(state, xs)

        def finished() -> training.TrainState:
            learned = wait()
            compare.finish(expected, learned)
            return learned

        return finished

    return started


def player(env: Env, network: Network, epsilon: float = 0.0, engine: str = "auto") -> evaluate.Play:
    """Return `evaluate.play`, vmapped over seeds and compiled into one graph at its first call."""
    return engines.compile_or_eager(vmap(partial(evaluate.play, env, network, epsilon)), engine)


def partition(program: training.Program, lanes: int, threads: int, unit: int | None = None) -> ThreadPartition:
    """Return the partition of lanes and threads that the engine `aot` uses for a program.

    With `unit`, a divisor of `lanes`, the lanes of a group divide it.

    Raises ValueError for fewer than one lane or thread, and for a unit that does not divide `lanes`.
    """
    return cpu_groups.partition(_weights(program), program.config.batch_size, lanes, threads, unit)


def _partition(
    program: training.Program, fixed: ThreadPartition | None, spare_thread: bool = False
) -> Callable[[int], ThreadPartition]:
    """Return `partition`, or the fixed one with fewer workers, as a function of the number of lanes.

    With `spare_thread`, small work gets one thread less.
    """
    known = functools.cache(partial(partition, program))

    def chosen(count: int) -> ThreadPartition:
        threads = torch.get_num_threads()
        fewer = known(count, max(1, threads - 1)) if fixed is None else _with_workers(fixed, count, threads - 1)
        is_small = cpu_groups.is_small(_weights(program), program.config.batch_size, fewer.lanes)
        if spare_thread and is_small:
            return fewer
        return known(count, threads) if fixed is None else _with_workers(fixed, count, threads)

    return chosen


def _with_workers(fixed: ThreadPartition, count: int, threads: int) -> ThreadPartition:
    """Return a partition with as many workers as its threads and the groups of `count` lanes allow."""
    return fixed._replace(workers=max(1, min(fixed.workers, count // fixed.lanes, threads // fixed.threads)))


def _weights(program: training.Program) -> int:
    return max(1, sum(x.numel() for x in program.network.init(random.key(0)).values()))


def _noise(program: training.Program, engine: str) -> Callable[[Tensor, int, int], training.Noise]:
    draw, draw_numbered = (
        engines.compile_or_eager(partial(f, program), engine) for f in (training.draw, training.draw_numbered)
    )

    def noise(keys: Tensor, first_cycle: int, cycles: int) -> training.Noise:
        if _compiles_keys(keys):
            return draw_numbered(keys, training.cycle_numbers(keys, first_cycle, cycles))
        # Keys are few and are derived outside of the graph: each cipher would add four seconds of compile time.
        with cpu_groups.sharing(1):
            return draw(training.cycle_keys(keys, first_cycle, cycles))

    return noise


def _compiles_keys(keys: Tensor) -> bool:
    """Return True on CUDA, where deriving the keys outside of the graph would be 309 kernel launches a draw."""
    return keys.is_cuda


def _sync(state: training.TrainState) -> training.TrainState:
    # Not compiled, since there is nothing to fuse in a copy.
    learner = state.learner
    with cpu_groups.sharing(1):
        _copy(tree.leaves(learner.target_params), tree.leaves(learner.params))
    return state


def _copy(to: list[Tensor], given: list[Tensor]) -> None:
    """Copy tensors with `torch._foreach_copy_`, one launch on CUDA, or one by one if torch does not have it."""
    if hasattr(torch, "_foreach_copy_"):
        torch._foreach_copy_(to, given)
    else:
        for a, b in zip(to, given, strict=True):
            a.copy_(b)
