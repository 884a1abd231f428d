"""One thread traces and compiles at a time."""

import contextlib
import threading
import warnings
from collections.abc import Iterator

import torch

from fdqn.compile import toolchain

# Tracing and compiling replace functions and settings of the whole process, so one thread does it at a time.
LOCK = threading.RLock()

# How deep this thread is in `compiling`.
_depth = threading.local()


def is_compiling() -> bool:
    """Return True while this thread compiles a step function; the state that it is for is not written then."""
    return getattr(_depth, "value", 0) > 0


@contextlib.contextmanager
def compiling(writes: bool = False) -> Iterator[None]:
    """Let only this thread trace and compile, record no gradients, hide torch's warnings about itself, and end the
    compilers that were started if there is an interrupt.

    With `writes` the compiled function is also called inside: `is_compiling` stays False, so that nobody interrupts it.
    """
    with (
        LOCK,
        torch.no_grad(),
        warnings.catch_warnings(action="ignore", category=FutureWarning),
        toolchain.compiler_guard(),
    ):
        _depth.value = getattr(_depth, "value", 0) + (not writes)
        try:
            yield
        except KeyboardInterrupt:
            toolchain.end_background()
            raise
        finally:
            _depth.value -= not writes
