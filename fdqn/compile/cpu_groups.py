"""Run a compiled step on a CPU for groups of a few lanes, one thread per group.

Lanes are independent, so a thread can run all n steps of one group before it takes the next. A step compiled for a few
lanes finds the results of its previous step in the core's cache, and threads that work on different groups need no
barriers, which take a fifth of the time where two threads share each step of all lanes. Threads take groups from a
shared queue, so a thread whose core is busy does less of the work. The loop is in C++ (`cpu_groups.cpp`) and runs
without the GIL.
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

# Most weights in a group: four lanes of a small network, one lane of a large one. With gradients, optimizer state,
# target network and the activations of a batch, a group then about fills the second-level cache of a core.
WEIGHTS_PER_GROUP = 50_000

# Weights times rows of a batch below which a step is too small to be split among threads.
SMALL_WORK = 2_000_000


class ThreadPartition(NamedTuple):
    """Partition of the lanes into groups and of the threads among groups."""

    lanes: int
    """Lanes in a group."""
    workers: int
    """Groups computed at the same time."""
    threads: int
    """Threads that compute one group together."""


def partition(weights: int, batch_size: int, lanes: int, threads: int, unit: int | None = None) -> ThreadPartition:
    """Choose the group size, a divisor of `lanes`, that is estimated to finish first on `threads` threads.

    Args:
        weights: Number of weights of one lane's network.
        batch_size: Rows of a batch.
        lanes: Number of lanes.
        threads: Number of threads.
        unit: Number that the group size must divide, a divisor of `lanes`; by default `lanes`.

    Raises ValueError for a number below 1, and for a unit that does not divide `lanes`.
    """
    unit = lanes if unit is None else unit
    given = (("weights", weights), ("batch_size", batch_size), ("lanes", lanes), ("threads", threads), ("unit", unit))
    for name, value in given:
        check.count(name, value, 1)
    if lanes % unit:
        raise ValueError(f"unit: expected a divisor of the number of lanes, {lanes}, got {unit}")
    sizes = [size for size in range(1, unit + 1) if unit % size == 0 and size <= max(1, WEIGHTS_PER_GROUP // weights)]
    # A call of a step has a fixed cost, about that of a quarter of a lane.
    size = min(sizes, key=lambda size: (math.ceil(lanes / size / threads) * (size + 0.25), -size))
    workers = min(threads, lanes // size)
    return ThreadPartition(size, workers, 1 if is_small(weights, batch_size, size) else threads // workers)


def is_small(weights: int, batch_size: int, lanes: int) -> bool:
    """Return True if an update of `lanes` lanes is too small to be split among threads."""
    return weights * lanes * batch_size < SMALL_WORK


class _Input(ctypes.Structure):
    """The struct `Input` of cpu_groups.cpp."""

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
    """Return True if `device` is a CPU under Linux, for which the C++ loop exists."""
    return device.type == "cpu" and sys.platform == "linux"


@contextlib.contextmanager
def sharing(threads: int) -> Iterator[None]:
    """Set the number of threads that torch uses inside the block, on this thread.

    1 keeps OpenMP from starting other threads. These spin for up to 10 ms after their work, on the cores that compute
    groups of lanes: a target copy that started them would cost a quarter of the speed at 8 lanes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def flushes_denormals() -> bool:
    """Return True if this thread treats denormal numbers as 0."""
    return bool(torch.tensor(1e-40) * 1 == 0)


Wait = Callable[[], None]


def loop(library: Path, state: list[Tensor], parts: ThreadPartition) -> Callable[[list[Tensor]], None]:
    """Return `run(noise)`, which runs n steps for each group of lanes and updates `state` in place.

    `library` is the step in torch's ahead-of-time format, compiled for the state and noise of one group of `parts`.
    Raises RuntimeError if a step fails.

    Shapes: leaves of `state` [S, ...], of `noise` [n, S, ...].
    """
    start = _start(library, state, parts)

    def run(noise: list[Tensor]) -> None:
        start(noise, True)()

    return run


def loop_async(library: Path, state: list[Tensor], parts: ThreadPartition) -> Callable[[list[Tensor]], Wait]:
    """Like `loop`, but `run(noise)` starts the work on other threads and returns a function that waits for them."""
    start = _start(library, state, parts)
    return lambda noise: start(noise, False)


def _start(library: Path, state: list[Tensor], parts: ThreadPartition) -> Callable[[list[Tensor], bool], Wait]:
    """Return `start(noise, takes_part) -> wait`. With `takes_part` the calling thread computes groups too."""
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
            # The closure keeps `state` and `noise` alive, whose memory the C++ loop uses.
            counts = len(state), len(noise), parts.workers, groups, len(noise[0])
            if driver.fdqn_groups(model.step, model.handle, inputs, progress, *map(ctypes.c_int64, counts)):
                raise RuntimeError(f"aot: a compiled step failed: {model.reason()}")

        def finish() -> None:
            try:
                errors = [each.exception() for each in others]
            finally:
                if not all(each.done() for each in others):
                    wait(others)  # on an interrupt too, so that all lanes have done the same number of steps
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
    """Describe the first group's slice of an input; the strides to the next group and iteration are in elements."""
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
    """A loaded library."""

    step: ctypes.c_void_p
    handle: ctypes.c_void_p
    reason: Callable[[], str]
    """Returns the error message of this thread's last step."""


@functools.cache
def _model(library: Path, workers: int) -> _Model:
    """Load a library as a model that `workers` threads may call at the same time."""
    handle, error = ctypes.c_void_p(), None
    try:
        loaded = ctypes.CDLL(str(library))
        create, step = (_function(loaded, f"AOTInductorModelContainer{x}") for x in ("CreateWithDevice", "Run"))
        error = create(ctypes.byref(handle), ctypes.c_size_t(workers), b"cpu", None)
    except OSError as broken:
        error = broken
    if error:
        raise RuntimeError(f"aot: a compiled library does not load; delete {library} ({error})")
    last_error = getattr(loaded, "AOTInductorGetLastError", None)  # not in every version

    def reason() -> str:
        message = ctypes.c_char_p()
        if last_error is not None:
            last_error(ctypes.byref(message))
        return (message.value or b"torch printed the reason to standard error").decode(errors="replace")

    return _Model(ctypes.cast(step, ctypes.c_void_p), handle, reason)


def _function(library: ctypes.CDLL, name: str) -> Any:
    """Return a C function of torch's ahead-of-time interface. Raises UnavailableError if it is missing."""
    try:
        return getattr(library, name)
    except AttributeError:
        raise private.UnavailableError(f"torch {torch.__version__} has no C function {name}") from None


@functools.cache
def _driver(folder: Path) -> ctypes.CDLL:
    """Compile cpu_groups.cpp, cache it in `folder` and load it.

    Raises UnavailableError if torch lacks a function that it calls.
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
    """Return a pool of `count` threads, each with `threads` threads for torch and the caller's denormal mode."""

    def start() -> None:
        # The first read of the number resets it to the global one, so read it before setting it.
        torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flush_denormal)

    return ThreadPoolExecutor(count, "fdqn-lanes", start)


# A forked process has the pool object but none of its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)


@functools.cache
def _dtype(dtype: torch.dtype) -> int:
    """Return the number of a dtype in torch's C interface."""
    name = str(dtype).removeprefix("torch.")
    return _function(ctypes.CDLL(str(_LIBRARIES / "libtorch_cpu.so")), f"aoti_torch_dtype_{name}")()


_LIBRARIES = Path(torch.__file__).parent / "lib"
