"""Process state of a command: signals, standard output, warnings and the working directory."""

import contextlib
import ctypes
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

Command = TypeVar("Command")

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]
"""Signals that end a command: Ctrl-C, `kill`, a closed terminal, and the warnings of batch systems."""


def interrupt(number: int, frame: Any = None) -> None:
    """Handle a signal: raise KeyboardInterrupt with its number."""
    raise KeyboardInterrupt(signal.Signals(number))


def signal_of(error: KeyboardInterrupt) -> signal.Signals:
    """Return the signal that raised an interrupt."""
    return error.args[0] if error.args and isinstance(error.args[0], signal.Signals) else signal.SIGINT


# Handlers of the signals before `handling`.
_before: dict[int, Any] = {}


@contextlib.contextmanager
def handling(handler: Callable[[int, Any], None], signals: Sequence[int] = SIGNALS) -> Iterator[None]:
    """Install `handler` for `signals` in this context, except those that are ignored (nohup) or have another handler.

    Does nothing outside of the main thread, where Python cannot handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    replaceable = (signal.SIG_DFL, interrupt)
    numbers = [x for x in signals if x == signal.SIGINT or signal.getsignal(x) in replaceable]
    before = {x: signal.signal(x, handler) for x in numbers if signal.getsignal(x) is not None}
    outermost = not _before
    _before.update(before if outermost else {})
    try:
        yield
    finally:
        if outermost:
            _before.clear()
        for number, old in before.items():
            signal.signal(number, old)


def _as_before() -> None:
    """Restore the original handlers in a forked child, such as an environment's worker."""
    while _before:
        signal.signal(*_before.popitem())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_as_before)


class Stop:
    """Stop request of a run, and the signal that caused it."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.at_once = False
        """True if the first signal raises KeyboardInterrupt, too."""

    def __call__(self) -> bool:
        """Return True when a run is to stop."""
        return self.signal is not None

    @property
    def code(self) -> int:
        """Return the exit code of the signal."""
        return 128 + (self.signal or signal.SIGINT)


@contextlib.contextmanager
def stopping(
    say: Callable[[str], None],
    is_compiling: Callable[[], bool] = bool,
    stopped: type[KeyboardInterrupt] = KeyboardInterrupt,
    signals: Sequence[int] = SIGNALS,
) -> Iterator[Stop]:
    """Turn the first of `signals` into a stop request, which a run checks every few iterations; the second raises
    KeyboardInterrupt, and so does the first where `Stop.at_once` is set.

    Interrupting a compiled step could leave its state half overwritten. Compiling writes no state and takes long, so
    there the first signal raises `stopped`. A C++ compiler may receive the signal too: its failure after a stop request
    becomes KeyboardInterrupt.
    """
    stop = Stop()

    def request_stop(number: int, frame: Any) -> None:
        if stop():
            interrupt(number)
        stop.signal = signal.Signals(number)
        if stop.at_once:
            interrupt(number)
        if is_compiling():
            raise stopped(stop.signal)
        if number == signal.SIGINT:
            say("stopping within a few training iterations; press Ctrl-C again to stop immediately")
        else:
            say(f"{stop.signal.name}: stopping within a few training iterations; a second signal stops immediately")

    with handling(request_stop, signals):
        try:
            yield stop
        except (RuntimeError, subprocess.SubprocessError):
            if stop():
                raise KeyboardInterrupt(stop.signal) from None
            raise


REDIRECTING = threading.RLock()
"""Held while a thread redirects a standard stream, which all threads share."""


@contextlib.contextmanager
def only_json(enabled: bool, ends: bool) -> Iterator[Callable[[Any], None]]:
    """If `enabled`, reserve standard output for JSON; yield a function that prints a value there as JSON.

    All other output, including that of C code and child processes, goes to standard error. With `ends` it stays
    redirected, because the process is about to end and may still print. Commands with --json in several threads run one
    after the other.
    """
    out = sys.stdout
    if not enabled or out is None:  # as under `>&-`
        yield lambda value: print(json.dumps(value), flush=True)
        return
    with REDIRECTING, _redirected(ends) as emit:
        yield emit


@contextlib.contextmanager
def _redirected(ends: bool) -> Iterator[Callable[[Any], None]]:
    global _output
    out = sys.stdout
    if not _is_output(out):  # in a notebook or a test
        with contextlib.redirect_stdout(sys.stderr):
            yield lambda value: print(json.dumps(value), file=out, flush=True)
        return
    _flush(out)
    kept = {number: _copy(number) for number in {1, out.fileno()}}
    output, _output = _output or kept[1], (_output or kept[1]) if ends else None
    try:
        for number in kept:
            _to_standard_error(number)
        with contextlib.redirect_stdout(sys.stderr):
            yield lambda value: _write(output, json.dumps(value).encode() + b"\n")
    finally:
        _flush(out)
        for number, copy in kept.items():
            if not ends:
                os.dup2(output if number == 1 else copy, number)
            if not ends or copy != output:
                os.close(copy)


# Standard output, if an earlier command of this process left it redirected.
_output: int | None = None


def _is_output(stream: Any) -> bool:
    """Return whether a stream writes to the file of descriptor 1."""
    try:
        return os.path.sameopenfile(stream.fileno(), 1)
    except (OSError, ValueError, AttributeError):
        return False


def _copy(descriptor: int) -> int:
    """Duplicate a descriptor to a number above 2: a closed standard error must not become standard output."""
    return os.dup(descriptor) if fcntl is None else fcntl.fcntl(descriptor, fcntl.F_DUPFD, 3)


def _to_standard_error(number: int) -> None:
    try:
        os.dup2(2, number)
    except OSError:  # standard error is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _flush(stream: Any) -> None:
    """Flush a Python stream and the streams of C."""
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


@contextlib.contextmanager
def saying_warnings(say: Callable[[str], None]) -> Iterator[None]:
    """Pass each warning of fdqn to `say` once, as one line, also if warnings are errors; leave other warnings as they
    are."""
    package, seen = Path(__file__).parents[1], set[str]()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def line(message: Any, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
            if package not in Path(filename).parents:
                show(message, category, filename, *rest, **more)
            elif str(message) not in seen:  # each compiled function may give the same reason
                seen.add(str(message))
                say(str(message))

        warnings.filterwarnings("always", category=UserWarning, module=r"fdqn\.")
        warnings.showwarning = line
        yield


@contextlib.contextmanager
def printable() -> Iterator[None]:
    """Print characters that the locale cannot encode as escapes instead of raising an error."""
    strict = [x for x in (sys.stdout, sys.stderr) if getattr(x, "errors", "") == "strict"]
    streams: list[Any] = [x for x in strict if hasattr(x, "reconfigure")]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream in streams:
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="strict")


# Absolute paths and the paths that the user typed, longest first.
_typed: ContextVar[list[tuple[str, str]] | None] = ContextVar("typed", default=None)

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def placed(command: Command) -> Command:
    """Make the command's paths absolute, so that they survive a change of directory; `shown` restores them."""
    for name in CACHES:
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.environ[name])
    typed: dict[str, str] = {}
    fields: dict[str, Any] = {}
    settings, sweep = getattr(command, "settings", None), getattr(command, "sweep", None)
    out = settings.out if settings is not None else sweep["given"].get("out") if sweep is not None else "/"
    if not os.path.isabs(out or ""):
        typed[f"{Path.cwd()}/"] = ""  # for a folder that is named later
    for field in dataclasses.fields(command):  # type: ignore[arg-type]
        value = getattr(command, field.name)
        if isinstance(value, Path):
            fields[field.name] = _absolute(value, typed)
        elif isinstance(value, tuple) and any(isinstance(x, Path) for x in value):
            fields[field.name] = tuple(_absolute(x, typed) for x in value)
    _typed.set(sorted(typed.items(), key=lambda item: -len(item[0])))
    return dataclasses.replace(command, **fields)  # type: ignore[type-var]


def _absolute(path: Path, typed: dict[str, str]) -> Path:
    if path.is_absolute():
        return path
    for part in (path, *path.parents[:-1]):
        typed[str(part.absolute())] = str(part)
    return path.absolute()


def shown(text: Any) -> str:
    """Return a text in which absolute paths are replaced by the paths that the user typed."""
    text = str(text)
    for absolute, typed in _typed.get() or ():
        text = re.sub(rf"(?<![\w/]){re.escape(absolute)}", typed.replace("\\", r"\\"), text)
    return text
