"""The table of engines, and what runs on one: a function, a scan of a step, a scan of a vmapped step.

| engine          | what it is                                                    | default                |
|-----------------|---------------------------------------------------------------|------------------------|
| `eager`         | the functions as they are                                     |                        |
| `torch.compile` | one graph, by public functions; captured in CUDA graphs       | CUDA                   |
| `inductor`      | one graph, traced by `make_fx`, without guards                | other CPUs             |
| `aot`           | the same ahead of time, groups of lanes in a loop in C++      | CPUs under Linux       |

An engine that does not work here steps down one row, with one UserWarning that gives the reason. Private functions of
torch are used by the last two rows and looked up where they are used (`private.lookup`).
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
"""Each steps down to the next."""

Prepare = Callable[[Any, Any], Run]
"""`prepare(state, xs) -> run`, which may compile and writes nothing."""


def resolve(engine: str, device: torch.device) -> str:
    """Return the engine that `auto` stands for on a device; another engine stands for itself.

    Raises ValueError for an engine that is not in the table.
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
    """`f` as one compiled graph for each signature that it is called with: structure, shapes, dtypes, devices.

    Arguments that are no tensors are constants of the graph. No gradients are recorded. Raises CompilerError where the
    C++ compiler fails, and UnavailableError where this version of torch cannot compile it.
    """
    check.function("f", f)
    if engine == "eager":
        return f
    return _first_working(engine, {"inductor": _inductor(f), "torch.compile": _torch_compile(f)})


def compile_or_eager(f: Callable[..., Any], engine: str = "auto") -> Callable[..., Any]:
    """`compile`, but `f` as it is where nothing can be compiled."""
    return _first_working(engine, {"inductor": _inductor(f), "torch.compile": _torch_compile(f), "eager": f})


def scan(step: Callable[[State, Any], State], engine: str = "auto") -> Callable[[State, Any], State]:
    """`training.scan(step)`, donated and compiled: `step(state, x) -> state` for each x of a tree with leaves [n, ...].

    On a CUDA device, what comes a second time (n steps of this very state) is captured in one CUDA graph and replayed.
    Where that fails, a UserWarning gives the reason and the steps are launched one by one.
    """
    return _first_working(engine, _scans(donate(step)), once_per_state)


def scan_vmapped(
    step: Callable[[State, Any], State],
    partition: Callable[[int], ThreadPartition],
    soon: Callable[[State, Any], State] | None = None,
    soon_xs: Callable[[Any], Any] = lambda xs: xs,
    engine: str = "auto",
) -> Callable[[State, Any], State]:
    """`scan(vmap(step))`; with the engine `aot` in groups of lanes, each all of its n steps in turn.

    A step with an operator that only Python can call (one of the user's own) goes through the engine `inductor`.

    Args:
        step: a step of one lane.
        partition: how threads share so many lanes.
        soon: another step that will soon be called on the same state; it is compiled meanwhile in a process of its own.
        soon_xs: for the xs of a group, those of `soon`.
        engine: a row of the table.
    """
    scans = _scans(donate(vmap(step)))
    rows = {"aot": _groups(step, partition, cpu_groups.loop, scans["inductor"], soon, soon_xs), **scans}
    return _first_working(engine, rows, once_per_state)


def scan_vmapped_async(
    step: Callable[[State, Any], State], partition: Callable[[int], ThreadPartition], engine: str = "auto"
) -> Callable[[State, Any], Callable[[], State]]:
    """`scan_vmapped` on other threads than the caller's, who gets a function that waits for the state.

    Engines other than `aot` do all at once.
    """
    scans = {name: _at_once(prepare) for name, prepare in _scans(donate(vmap(step))).items()}
    rows = {"aot": _groups(step, partition, cpu_groups.loop_beside, scans["inductor"]), **scans}
    return _first_working(engine, rows, once_per_state)


# Rows of functions


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


# Rows of scans


def _scans(step: Callable[[State, Any], State]) -> dict[str, Prepare]:
    """The rows of the table for a donated step, but for `aot`."""
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
    together: Prepare,
    soon: Callable[[State, Any], State] | None = None,
    soon_xs: Callable[[Any], Any] = lambda xs: xs,
) -> Prepare:
    """The row `aot`: a loop that returns None, or a function that waits for it."""
    check.function("partition", partition)

    def made(f: Callable[..., Any], args: Any) -> Path | None:
        threads, state, xs = args
        if soon is not None:
            aot.build_in_background(donate(vmap(soon)), (state, soon_xs(xs)), threads)
        return aot.library(f, (state, xs), threads)

    library_of = once_per_signature(made, donate(vmap(step)))

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
            return together(state, xs)
        with compiling():  # loading compiles the loop itself when it is first needed
            start = loop(library, leaves, parts)

        def run(xs: Any, each: list[Tensor]) -> Any:
            wait = start(each)
            return state if wait is None else partial(_waited, wait, state)

        return run

    return prepare


def _waited(wait: Callable[[], None], state: State) -> State:
    wait()
    return state


def _at_once(prepare: Prepare) -> Prepare:
    """The row with a function that waits for what is done already."""

    def prepared(state: State, xs: Any) -> Run:
        run = prepare(state, xs)

        def start(xs: Any, each: list[Tensor]) -> Callable[[], State]:
            done = run(xs, each)
            return lambda: done

        return start

    return prepared


# One row after the other


class _FailedError(Exception):
    """An engine that does not work, and why; raised before anything is written."""

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
    """Return the function of the row `engine`, or of the first below it that works; a warning says why others do not.

    `cached` keeps what a row has prepared. Which rows are left is known for each type of device.
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
        return partial(_attempt, name, made)  # it compiles when it first runs

    call = cached(start)

    def run(*args: Any) -> Any:
        nonlocal call
        reason = None
        while True:
            try:
                result = call(*args)
                break
            except _FailedError as failed:
                reason = reason or failed.reason
                with LOCK:  # another thread may have found out too
                    _drop(names(args), failed)
                    call = cached(start)
        if reason is not None:
            _warn(reason, names(args)[0])
        return result

    return run


def _drop(names: list[str], failed: _FailedError) -> None:
    """Strike the engine that failed off the list. Raises the reason where nothing is left.

    What inductor cannot compile, it cannot compile for `torch.compile` either.
    """
    compiles = not isinstance(failed.reason, private.UnavailableError)
    gone = {failed.engine} | ({"torch.compile"} if compiles and failed.engine == "inductor" else set())
    if not (rest := [name for name in names if name not in gone]):
        raise failed.reason
    names[:] = rest


def _warn(reason: Exception, engine: str) -> None:
    ours = isinstance(reason, toolchain.CompilerError | private.UnavailableError)
    sentence = ("" if ours else "inductor failed: ") + str(reason).strip().splitlines()[0]
    slower = "eager execution, many times slower" if engine == "eager" else f"the engine {engine}"
    warnings.warn(f"{sentence}; falling back to {slower}", stacklevel=1)
