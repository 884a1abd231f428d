"""Engines that compile a function, a scan of a step, or a scan of a vmapped step.

| engine          | implementation                                                | default for            |
|-----------------|---------------------------------------------------------------|------------------------|
| `eager`         | no compilation                                                |                        |
| `torch.compile` | one graph, by public functions; captured in CUDA graphs       | CUDA                   |
| `inductor`      | one graph, traced by `make_fx`, without guards                | other CPUs             |
| `aot`           | the same, ahead of time; a C++ loop over groups of lanes      | CPUs under Linux       |

If an engine does not work, the nearest row above it that works is used, with a UserWarning that gives the reason. The
last two rows are built on private functions of torch; `torch.compile` uses a few for its settings and for a workaround.
All are looked up when they are used (`private.lookup`).
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from fdqn import check, training, tree
from fdqn.compile import aot, cpu_groups, cuda_graphs, dynamo, graph, private, toolchain
from fdqn.compile.cpu_groups import ThreadPartition
from fdqn.compile.donation import donate
from fdqn.compile.lock import LOCK, compiling
from fdqn.compile.signature import Run, once_per_signature, once_per_state, tensors

State = TypeVar("State")
T = TypeVar("T")

ENGINES = ("aot", "inductor", "torch.compile", "eager")
"""Engines in the order of fallback."""

Prepare = Callable[[Any, Any], Run]
"""`prepare(state, xs) -> run`. It may compile and does not write to the state."""


def resolve(engine: str, device: torch.device) -> str:
    """Return the default engine of a device for `auto`, and any other engine unchanged.

    Raises ValueError for an unknown engine.
    """
    check.kind("engine", engine, str)
    check.kind("device", device, torch.device)
    if engine not in ("auto", *ENGINES):
        raise ValueError(f"engine: expected one of {('auto', *ENGINES)}, got {engine!r}")
    if engine != "auto":
        return engine
    if device.type != "cpu":
        return "torch.compile"
    return "aot" if cpu_groups.supported(device) else "inductor"


def compile(f: Callable[..., Any], engine: str = "auto") -> Callable[..., Any]:
    """Compile `f` into one graph per signature: structure, shapes, dtypes and devices of the arguments.

    Arguments that are not tensors are constants of the graph. No gradients are recorded. A call raises CompilerError if
    the C++ compiler fails, and UnavailableError if this version of torch cannot compile `f`.
    """
    check.function("f", f)
    if engine == "eager":
        return f
    return _first_working(engine, {"inductor": _inductor(f), "torch.compile": _torch_compile(f)})


def compile_or_eager(f: Callable[..., Any], engine: str = "auto") -> Callable[..., Any]:
    """Like `compile`, but fall back to `f` itself if no engine can compile it."""
    return _first_working(engine, {"inductor": _inductor(f), "torch.compile": _torch_compile(f), "eager": f})


def scan(step: Callable[[State, Any], State], engine: str = "auto") -> Callable[[State, Any], State]:
    """Return a compiled `training.scan(step)` that donates its state: `step(state, x) -> state` for each x of `xs`,
    leaves [n, ...].

    On CUDA, a second call with the same state and n captures the n steps in one CUDA graph, which is replayed from then
    on. If the capture fails, a UserWarning gives the reason and kernels are launched one by one.
    """
    return _first_working(engine, _scans(donate(step)), once_per_state)


def scan_vmapped(
    step: Callable[[State, Any], State],
    partition: Callable[[int], ThreadPartition],
    precompile: Callable[[State, Any], State] | None = None,
    precompile_xs: Callable[[Any], Any] = lambda xs: xs,
    engine: str = "auto",
) -> Callable[[State, Any], State]:
    """Return a compiled `scan(vmap(step))`. The engine `aot` runs all n steps of one group of lanes after another.

    A step with an operator that only Python can call, such as a custom one, runs on the engine `inductor` instead.

    Args:
        step: Step of one lane.
        partition: Maps the number of lanes to a partition of lanes and threads.
        precompile: Step that will be called later on the same state; a background process compiles it.
        precompile_xs: Maps the xs of `step` to example xs of `precompile`.
        engine: Name of an engine, or `auto`.
    """
    scans = _scans(donate(vmap(step)))
    rows = {"aot": _groups(step, partition, cpu_groups.loop, scans["inductor"], precompile, precompile_xs), **scans}
    return _first_working(engine, rows, once_per_state)


def scan_vmapped_async(
    step: Callable[[State, Any], State], partition: Callable[[int], ThreadPartition], engine: str = "auto"
) -> Callable[[State, Any], Callable[[], State]]:
    """Like `scan_vmapped`, but start the steps on other threads and return a function that waits for the new state.

    Engines other than `aot` run the steps before they return.
    """
    scans = {name: _synchronous(prepare) for name, prepare in _scans(donate(vmap(step))).items()}
    rows = {"aot": _groups(step, partition, cpu_groups.loop_async, scans["inductor"]), **scans}
    return _first_working(engine, rows, once_per_state)


# Engines for functions


def _inductor(f: Callable[..., Any]) -> Callable[..., Any]:
    graph_of = once_per_signature(lambda f, args: graph.compile_graph(f, args), f)

    def call(*args: Any) -> Any:
        compiled, inputs = graph_of(*args), tensors(args)
        with torch.no_grad():
            values = [*inputs, *compiled.run(*inputs)]
        return tree.map(lambda leaf: values[leaf] if isinstance(leaf, graph.TensorSlot) else leaf, compiled.result)

    return call


def _torch_compile(f: Callable[..., Any]) -> Callable[..., Any]:
    compiled_of = once_per_signature(dynamo.compile_function, f)
    return lambda *args: compiled_of(*args)(*args)


# Engines for scans


def _scans(step: Callable[[State, Any], State]) -> dict[str, Prepare]:
    """Return the engines except `aot` for a donated step."""
    loop = cuda_graphs.replayed()

    def prepare(step_of: Callable[..., Callable[..., Any]], state: State, xs: Any) -> Run:
        compiled, leaves = step_of(state, tree.index(xs, 0)), tree.leaves(state)

        def run(xs: Any, each: list[Tensor]) -> State:
            with torch.no_grad():
                (loop if cuda_graphs.captures(each) else cuda_graphs.in_turn)(compiled, leaves, each)
            return state

        return run

    def eager(state: State, xs: Any) -> Run:
        return lambda xs, each: training.scan(step)(state, xs)

    return {
        "inductor": partial(prepare, once_per_signature(lambda f, args: graph.compile_graph(f, args).run, step)),
        "torch.compile": partial(prepare, once_per_signature(dynamo.compile_step, step)),
        "eager": eager,
    }


def _groups(
    step: Callable[[State, Any], State],
    partition: Callable[[int], ThreadPartition],
    loop: Callable[[Path, list[Tensor], ThreadPartition], Callable[[list[Tensor]], Any]],
    fallback: Prepare,
    precompile: Callable[[State, Any], State] | None = None,
    precompile_xs: Callable[[Any], Any] = lambda xs: xs,
) -> Prepare:
    """Return the engine `aot`. `loop` is `cpu_groups.loop` or `loop_async`; `fallback` runs steps that need Python."""
    check.function("partition", partition)

    def build(f: Callable[..., Any], args: Any) -> Path | None:
        threads, state, xs = args
        if precompile is not None:
            aot.build_in_background(donate(vmap(precompile)), (state, precompile_xs(xs)), threads)
        return aot.library(f, (state, xs), threads)

    library_of = once_per_signature(build, donate(vmap(step)))

    def prepare(state: State, xs: Any) -> Run:
        leaves = tree.leaves(state)
        if not cpu_groups.supported(leaves[0].device):
            raise private.UnavailableError(f"engine aot: expected a CPU under Linux, got {leaves[0].device}")
        parts = partition(len(leaves[0]))
        if len(leaves[0]) % parts.lanes:
            raise ValueError(f"partition: expected groups of a size that divides {len(leaves[0])} lanes, got {parts}")
        group = slice(parts.lanes)
        library = library_of(parts.threads, tree.index(state, group), tree.index(tree.index(xs, 0), group))
        if library is None:
            return fallback(state, xs)
        with compiling():  # the first load compiles the C++ loop
            start = loop(library, leaves, parts)

        def run(xs: Any, each: list[Tensor]) -> Any:
            wait = start(each)
            return state if wait is None else partial(_waited, wait, state)

        return run

    return prepare


def _waited(wait: Callable[[], None], state: State) -> State:
    wait()
    return state


def _synchronous(prepare: Prepare) -> Prepare:
    """Adapt an engine to `scan_vmapped_async`: run the steps, then return a function that returns the state."""

    def prepared(state: State, xs: Any) -> Run:
        run = prepare(state, xs)

        def start(xs: Any, each: list[Tensor]) -> Callable[[], State]:
            done = run(xs, each)
            return lambda: done

        return start

    return prepared


# Fallback


class _FailedError(Exception):
    """An engine does not work. Raised before anything is written to the state."""

    def __init__(self, engine: str, reason: Exception) -> None:
        super().__init__(engine, reason)
        self.engine, self.reason = engine, reason


def _attempt(engine: str, f: Callable[..., T], *args: Any) -> T:
    try:
        return f(*args)
    except Exception as error:
        if toolchain.is_failure(error):
            raise _FailedError(engine, error) from error
        raise


def _first_working(
    engine: str,
    rows: dict[str, Callable[..., Any]],
    cached: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda start: start,
) -> Callable[..., Any]:
    """Return a function that runs on `engine` or, if that fails, on the next of `ENGINES` that works, with a warning.

    `cached` caches the result of an engine's `prepare`. The remaining engines are stored per device type.
    """
    resolve(engine, torch.device("cpu"))
    left: dict[str, list[str]] = {}

    def names(args: Any) -> list[str]:
        device = next((x.device for x in tensors(args)), torch.device("cpu"))
        if device.type not in left:
            wanted = ENGINES[ENGINES.index(resolve(engine, device)) :]
            left[device.type] = [name for name in wanted if name in rows]
        return left[device.type]

    def start(*args: Any) -> Any:
        name = names(args)[0]
        made = _attempt(name, rows[name], *args)
        if name != "torch.compile" or cached is not once_per_state:
            return made
        return partial(_attempt, name, made)  # torch.compile compiles at the first run

    call = cached(start)

    def run(*args: Any) -> Any:
        nonlocal call
        reason = None
        while True:
            try:
                result = call(*args)
                break
            except _FailedError as failed:
                reason = reason or failed
                with LOCK:  # another thread may have had the same failure
                    _drop(names(args), failed)
                    call = cached(start)
        if reason is not None:
            _warn(reason, names(args)[0])
        return result

    return run


def _drop(names: list[str], failed: _FailedError) -> None:
    """Remove the failed engine from the list. Raises its error if no engine is left.

    If the compiler fails for `inductor`, `torch.compile` is removed as well, since it uses the same compiler.
    """
    compiles = not isinstance(failed.reason, private.UnavailableError)
    gone = {failed.engine} | ({"torch.compile"} if compiles and failed.engine == "inductor" else set())
    if not (rest := [name for name in names if name not in gone]):
        raise failed.reason
    names[:] = rest


def _warn(failed: _FailedError, engine: str) -> None:
    explained = isinstance(failed.reason, toolchain.CompilerError | private.UnavailableError)
    prefix = "" if explained else f"the engine {failed.engine} failed: "
    sentence = prefix + str(failed.reason).strip().splitlines()[0]
    slower = "eager execution, many times slower" if engine == "eager" else f"the engine {engine}"
    warnings.warn(f"{sentence}; falling back to {slower}", stacklevel=1)
