"""A time limit for calls into users' environments."""

import contextlib
import faulthandler
import signal
import threading
from collections.abc import Iterator
from typing import Any

TIMEOUT = 120.0
"""Time limit, in seconds, of one step of a seed's environments, and of making one environment."""


@contextlib.contextmanager
def timeout(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`, and print the stack to standard error.

    Native code that does not return cannot be interrupted: kill the process, whose printed stack shows the call, and
    resume the run from its last checkpoint. There is no limit outside of the main thread and on systems without
    `setitimer`.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(signum: int, frame: Any) -> None:
        raise TimeoutError(f"no response for {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    # Unlike `late` this does not wait for the interpreter. File 2 is standard error even if Python has replaced it.
    faulthandler.register(signal.SIGALRM, file=2, all_threads=False, chain=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)
        signal.signal(signal.SIGALRM, before)
