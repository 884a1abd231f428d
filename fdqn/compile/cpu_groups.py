"""Share a CPU among lanes: in groups of a few, each on one thread at a time, through all of its steps in turn.

Lanes never meet, so a group waits for no other. A step compiled for a few lanes finds in its core's own cache what it
wrote a moment ago, and threads that work on groups of their own need no barriers, which take a fifth of the time where
two threads go through all lanes together. Threads take groups as they come, so that one whose core is busy with
something else does less of the work. The loop is in C++ (`cpu_groups.cpp`), without the interpreter's lock.
"""

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdqn import check
from fdqn.compile import private, toolchain

SOURCE = Path(__file__).with_name("cpu_groups.cpp")

# Weights in a group: four lanes of a small network, one of a large one. What they take, five times for optimizer and
# target, and a batch's activations, is then about the second-level cache of a core.
WEIGHTS_PER_GROUP = 50_000

# Weights read, once for each row of a batch, below which threads that share a step only wait for each other.
LITTLE_WORK = 2_000_000


class ThreadPartition(NamedTuple):
    """How threads share the lanes."""

    lanes: int
    """Lanes of a group."""
    workers: int
    """Groups that are worked on at once."""
    threads: int
    """Threads that share the work on a group."""


def partition(weights: int, batch_size: int, lanes: int, threads: int) -> ThreadPartition:
    """Partition `lanes` over so many threads: the groups of one size that are done first.

    Args:
        weights: the number of weights of one lane's network.
        batch_size: the rows of a batch.
        lanes: the number of lanes.
        threads: the number of threads.

    Raises ValueError for numbers below 1.
    """
    for name, value in (("weights", weights), ("batch_size", batch_size), ("lanes", lanes), ("threads", threads)):
        check.count(name, value, 1)
    sizes = [size for size in range(1, lanes + 1) if lanes % size == 0 and size <= max(1, WEIGHTS_PER_GROUP // weights)]
    # A call of a step costs as much as a quarter of a lane.
    size = min(sizes, key=lambda size: (math.ceil(lanes / size / threads) * (size + 0.25), -size))
    workers = min(threads, lanes // size)
    return ThreadPartition(size, workers, 1 if is_little(weights, batch_size, size) else threads // workers)


def is_little(weights: int, batch_size: int, lanes: int) -> bool:
    """Return True if threads that shared an update of so many lanes would only wait for each other."""
    return weights * lanes * batch_size < LITTLE_WORK


class _Input(ctypes.Structure):
    """`Input` of cpu_groups.cpp."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dims", ctypes.c_int64),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("dtype", ctypes.c_int64),
        ("to_next_group", ctypes.c_int64),
        ("to_next_cycle", ctypes.c_int64),
    ]


def supported(device: torch.device) -> bool:
    """Return True if there is such a loop for lanes on `device`: on CPUs under Linux."""
    return device.type == "cpu" and sys.platform == "linux"


@contextlib.contextmanager
def sharing(threads: int) -> Iterator[None]:
    """Share what this thread computes inside among so many threads.

    By itself alone if it is one: threads of OpenMP go on spinning for up to ten milliseconds after their work, on the
    cores that groups of lanes are computed on. A target copy that starts them costs a quarter of the speed at 8 lanes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def flushes_denormals() -> bool:
    """Return True if this thread computes with denormal numbers as 0."""
    return bool(torch.tensor(1e-40) * 1 == 0)


Wait = Callable[[], None]


def loop(library: Path, state: list[Tensor], parts: ThreadPartition) -> Callable[[list[Tensor]], None]:
    """Return `run(noise)`, leaves [n, S, ...]: n steps for each group of lanes of `state`, leaves [S, ...], which is
    written over.

    `library` is such a step in torch's ahead-of-time format, compiled for state and noise of one group of this parts.
    Raises RuntimeError where a step fails.
    """
    start = _start(library, state, parts)

    def run(noise: list[Tensor]) -> None:
        start(noise, True)()

    return run


def loop_beside(library: Path, state: list[Tensor], parts: ThreadPartition) -> Callable[[list[Tensor]], Wait]:
    """`loop` on other threads than the caller's, who gets a function that waits until they are done."""
    start = _start(library, state, parts)
    return lambda noise: start(noise, False)


def _start(library: Path, state: list[Tensor], parts: ThreadPartition) -> Callable[[list[Tensor], bool], Wait]:
    """Return what starts a loop. With True the caller's thread does a part of it, then gets the function that waits."""
    driver, model = _driver(library.parent), _model(library, parts.workers)
    flushes = flushes_denormals()
    groups = len(state[0]) // parts.lanes
    staying = [_input(x[: parts.lanes], x.stride(0) * parts.lanes, 0) for x in state]

    def start(noise: list[Tensor], takes_part: bool) -> Wait:
        changing = [_input(x[0, : parts.lanes], x.stride(1) * parts.lanes, x.stride(0)) for x in noise]
        inputs = (_Input * (len(staying) + len(changing)))(*staying, *changing)
        others: list[Any] = []
        progress = (ctypes.c_int64 * (1 + groups))()

        def take_groups() -> None:
            # It holds on to `state` and `noise`, whose memory it works on.
            counts = len(state), len(noise), parts.workers, groups, len(noise[0])
            if driver.fdqn_groups(model.step, model.handle, inputs, progress, *map(ctypes.c_int64, counts)):
                raise RuntimeError(f"lanes: a compiled step failed: {model.reason()}")

        def finish() -> None:
            try:
                errors = [each.exception() for each in others]
            finally:
                if not all(each.done() for each in others):
                    wait(others)  # an interrupt must not leave some lanes behind the others
            for error in filter(None, errors):
                raise error

        try:
            if mine := parts.workers - takes_part:
                helpers = _helpers(mine, parts.threads, flushes)
                others = [helpers.submit(take_groups) for _ in range(mine)]
            if takes_part:
                with sharing(parts.threads):
                    take_groups()
        except BaseException:
            wait(others)
            raise
        return finish

    return start


def _input(group: Tensor, to_next_group: int, to_next_cycle: int) -> _Input:
    """The first group's part of an input; distances in elements."""
    numbers, size = ctypes.c_int64 * group.ndim, group.element_size()
    return _Input(
        group.data_ptr(),
        group.ndim,
        numbers(*group.shape),
        numbers(*group.stride()),
        _dtype(group.dtype),
        to_next_group * size,
        to_next_cycle * size,
    )


class _Model(NamedTuple):
    """A library, loaded."""

    step: ctypes.c_void_p
    handle: ctypes.c_void_p
    reason: Callable[[], str]
    """Why the last step of this thread failed."""


@functools.cache
def _model(library: Path, workers: int) -> _Model:
    """The library for so many threads at once."""
    handle, error = ctypes.c_void_p(), None
    try:
        loaded = ctypes.CDLL(str(library))
        create, step = (_function(loaded, f"AOTInductorModelContainer{x}") for x in ("CreateWithDevice", "Run"))
        error = create(ctypes.byref(handle), ctypes.c_size_t(workers), b"cpu", None)
    except OSError as broken:
        error = broken
    if error:
        raise RuntimeError(f"lanes: a compiled library does not load; delete {library} ({error})")
    last_error = getattr(loaded, "AOTInductorGetLastError", None)  # not in every version

    def reason() -> str:
        words = ctypes.c_char_p()
        if last_error is not None:
            last_error(ctypes.byref(words))
        return (words.value or b"torch wrote why to standard error").decode(errors="replace")

    return _Model(ctypes.cast(step, ctypes.c_void_p), handle, reason)


def _function(library: ctypes.CDLL, name: str) -> Any:
    """Return a C function of torch's ahead-of-time format, which `aot` is made of. Without it, UnavailableError."""
    try:
        return getattr(library, name)
    except AttributeError:
        raise private.UnavailableError(f"torch {torch.__version__} has no C function {name}") from None


@functools.cache
def _driver(folder: Path) -> ctypes.CDLL:
    """Return cpu_groups.cpp, compiled and kept in `folder`.

    Where torch lacks a function that it calls, UnavailableError: the engine `inductor` is next.
    """
    digest = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()
    path = folder / f"cpu_groups-{digest}.so"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        command = [os.environ.get("CXX", "g++"), "-std=c++17", "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(part)]
        toolchain.run([*command, f"-L{_LIBRARIES}", "-ltorch_cpu"])
        os.replace(part, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise private.UnavailableError(f"torch {torch.__version__} has another C interface: {error}") from error


@functools.cache
def _helpers(count: int, threads: int, flush_denormal: bool) -> ThreadPoolExecutor:
    """Threads beside the caller's own, which compute as it does, each sharing its work with so many."""

    def start() -> None:
        # A thread takes over the number of all the first time it looks at it, also when that is after its own was set.
        torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flush_denormal)

    return ThreadPoolExecutor(count, "fdqn-lanes", start)


# A fork copies the pool and none of its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)


@functools.cache
def _dtype(dtype: torch.dtype) -> int:
    """Its number in torch's C interface."""
    name = str(dtype).removeprefix("torch.")
    return _function(ctypes.CDLL(str(_LIBRARIES / "libtorch_cpu.so")), f"aoti_torch_dtype_{name}")()


_LIBRARIES = Path(torch.__file__).parent / "lib"
