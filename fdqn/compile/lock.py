"""A lock that lets one thread at a time trace and compile."""

import contextlib
import threading
import warnings
from collections.abc import Iterator

import torch

from fdqn.compile import toolchain

# Tracing and compiling patch functions and settings of the whole process.
LOCK = threading.RLock()

# Nesting depth of `compiling` on this thread.
_depth = threading.local()


def is_compiling() -> bool:
    """Return True while this thread compiles a step function. No state is written during that time."""
    return getattr(_depth, "value", 0) > 0


@contextlib.contextmanager
def compiling(writes: bool = False) -> Iterator[None]:
    """Hold the lock, record no gradients, ignore torch's FutureWarnings, and stop started compilers on an interrupt.

    Pass `writes=True` if the compiled function is also called inside, which must not be interrupted: `is_compiling`
    then stays False.
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
