"""The step functions of a program on an engine."""

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

# Most steps plus updates of a training iteration compiled as one graph; beyond, one step and one update are compiled.
UNROLLED = 16


def compiled(program: training.Program, check_compile: bool = True, engine: str = "auto") -> training.Functions:
    """Return the step functions over lanes, which write over their state; all but `sync` run on an engine.

    On a CPU call `prepare_cpu` first, on CUDA `prepare_cuda`. Unless `check_compile` is False, the first training
    iteration is compared with the same one run eagerly: it raises `verify.MismatchError` where they differ. With the
    engine `eager` they are `training.vmapped`. Raises ValueError for an engine that is not in `ENGINES`.
    """
    check.kind("program", program, training.Program)
    if engine == "eager":
        return training.vmapped(program)
    if _is_long(program):
        return _looped(program, check_compile, engine)
    scan = partial(engines.scan_vmapped, partition=_partition(program), engine=engine)
    collect, cycle = partial(training.collect, program), partial(training.cycle, program)
    fast = scan(cycle)
    return training.Functions(
        noise=_noise(program, engine),
        collect=scan(collect, soon=cycle),
        cycle=verify.with_comparison(fast, cycle) if check_compile else fast,
        sync=_sync,
    )


def _is_long(program: training.Program) -> bool:
    """Return True if a training iteration has too many steps and updates for one graph: each adds to compile time."""
    return program.config.steps_per_cycle + program.config.updates_per_cycle > UNROLLED


def _looped(program: training.Program, check_compile: bool, engine: str) -> training.Functions:
    """`compiled` for long cycles: one compiled step and one compiled update, repeated by a loop on the host."""
    step, update = partial(training.interact, program), partial(training.update, program)
    scan = partial(engines.scan_vmapped, partition=_partition(program), engine=engine)
    interact = scan(step, soon=update, soon_xs=lambda xs: training.example_update(program, len(xs.act)))
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


def compiled_parts(program: training.Program, check_compile: bool = True, engine: str = "auto") -> host.Parts:
    """Return the parts of a training iteration with host environments, as `compiled`; the first updates are compared.

    What is little work is done by one thread, for all lanes; learning that is little leaves one thread to the host
    environments.
    """
    if engine == "eager":
        return host.vmapped(program)

    def alone(count: int) -> ThreadPartition:
        return ThreadPartition(count, 1, 1)

    scan = partial(engines.scan_vmapped, partition=alone, engine=engine)
    return host.Parts(
        noise=_noise(program, engine),
        choose=scan(partial(host.choose, program)),
        store=scan(partial(host.store, program)),
        finish=scan(partial(host.finish, program)),
        learn=_learn_beside(program, check_compile, engine),
        sync=_sync,
    )


def _learn_beside(
    program: training.Program, check_compile: bool, engine: str
) -> Callable[[training.TrainState, training.Noise], Callable[[], training.TrainState]]:
    """Make a function that starts the updates of one training iteration on other threads, for noise [1, S, ...]."""
    compare = verify.comparison(partial(training.learn, program))
    is_long = _is_long(program)
    step = partial(training.update if is_long else training.learn, program)
    start = engines.scan_vmapped_async(step, _partition(program, beside=True), engine)

    def started(state: training.TrainState, noise: training.Noise) -> Callable[[], training.TrainState]:
        expected = compare.begin(state, noise) if check_compile else None
        wait = start(state, training.updates(tree.index(noise, 0)) if is_long else noise)

        def finished() -> training.TrainState:
            learned = wait()
            compare.end(expected, learned)
            return learned

        return finished

    return started


def player(env: Env, network: Network, epsilon: float = 0.0, engine: str = "auto") -> evaluate.Play:
    """Return `evaluate.play` over lanes as one graph, compiled when it is first called."""
    return engines.compile_or_eager(vmap(partial(evaluate.play, env, network, epsilon)), engine)


def partition(program: training.Program, lanes: int, threads: int) -> ThreadPartition:
    """Return how threads share the lanes of a program with the engine `aot`.

    Raises ValueError for less than one lane or thread.
    """
    return cpu_groups.partition(_weights(program), program.config.batch_size, lanes, threads)


def _partition(program: training.Program, beside: bool = False) -> Callable[[int], ThreadPartition]:
    """`partition` by the number of lanes; `beside` others' work, one thread less where the work is little."""
    known = functools.cache(partial(partition, program))

    def chosen(count: int) -> ThreadPartition:
        threads = torch.get_num_threads()
        fewer = known(count, max(1, threads - 1))
        is_little = cpu_groups.is_little(_weights(program), program.config.batch_size, fewer.lanes)
        return fewer if beside and is_little else known(count, threads)

    return chosen


def _weights(program: training.Program) -> int:
    return max(1, sum(x.numel() for x in program.network.init(random.key(0)).values()))


def _noise(program: training.Program, engine: str) -> Callable[[Tensor, int, int], training.Noise]:
    draw, draw_numbered = (
        engines.compile_or_eager(partial(f, program), engine) for f in (training.draw, training.draw_numbered)
    )

    def noise(keys: Tensor, first_cycle: int, cycles: int) -> training.Noise:
        if _compiles_keys(keys):
            return draw_numbered(keys, training.cycle_numbers(keys, first_cycle, cycles))
        # The few keys are made outside: a compiler takes four seconds for each of these ciphers.
        with cpu_groups.sharing(1):
            return draw(training.cycle_keys(keys, first_cycle, cycles))

    return noise


def _compiles_keys(keys: Tensor) -> bool:
    """Compile the ciphers of keys too: on CUDA they are 309 launches a draw."""
    return keys.is_cuda


def _sync(state: training.TrainState) -> training.TrainState:
    # One call for all leaves: there is nothing to fuse, so a graph would only take its time to compile.
    learner = state.learner
    with cpu_groups.sharing(1):
        _copy(tree.leaves(learner.target_params), tree.leaves(learner.params))
    return state


def _copy(to: list[Tensor], given: list[Tensor]) -> None:
    """Copy tensors in one call, as `torch._foreach_copy_` does: on CUDA in one launch; without it, one by one."""
    if hasattr(torch, "_foreach_copy_"):
        torch._foreach_copy_(to, given)
    else:
        for a, b in zip(to, given, strict=True):
            a.copy_(b)
