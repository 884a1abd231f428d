"""The C++ compiler that inductor runs: quoting of paths, and one-line messages for its failures."""

import contextlib
import getpass
import os
import re
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fdqn.compile import private

_INTERRUPTS = {-signal.SIGINT, -signal.SIGTERM}


class CompilerError(RuntimeError):
    """The C++ compiler is missing or fails."""


class CompilerInterrupted(RuntimeError):
    """The C++ compiler was stopped by a signal, such as Ctrl-C, which reaches all processes of a terminal."""


@contextlib.contextmanager
def compiler_guard() -> Iterator[None]:
    """Guard code that runs the C++ compiler, and allow paths with spaces.

    Raises CompilerError if the compiler is missing or fails, and CompilerInterrupted if it was stopped. On a
    KeyboardInterrupt the compilers that were started inside the block are stopped.
    """
    before = _descendants()
    with _quoted_paths():
        try:
            yield
        except KeyboardInterrupt:
            _end_compilers(before)
            raise
        except Exception as error:
            if (failed := find_compiler_error(error)) is None:
                raise
            raise failed from error


def find_compiler_error(error: BaseException) -> RuntimeError | None:
    """Return the C++ compiler's error among the causes of `error`, however deep, else None."""
    return next(filter(None, map(_failure, reversed([*_causes(error)]))), None)


def compiler_error(reason: str) -> CompilerError:
    """Make the error for a compiler that does not work."""
    return CompilerError(
        f"compiler: expected a working C++ compiler, got {reason}; set CXX to another compiler, or use --no-compile"
    )


def version() -> str:
    """Return the first line of the version of the C++ compiler, such as `g++ (Debian 12.2.0-14) 12.2.0`.

    Raises CompilerError if it is missing or fails.
    """
    find = private.lookup("torch._inductor.cpp_builder.get_cpp_compiler")
    with compiler_guard():
        name = str(find())
    try:
        done = subprocess.run([name, "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise compiler_error(f"{name}: {error}") from error
    return next(iter(done.stdout.decode("utf-8", "replace").splitlines()), name)


def run(command: list[str]) -> None:
    """Run a compiler. Raises CompilerError if it is missing or fails, CompilerInterrupted if it was stopped."""
    try:
        subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace")
    except (OSError, subprocess.CalledProcessError) as error:
        raise find_compiler_error(error) or error from error


background: dict[Path, subprocess.Popen[bytes]] = {}
"""Background processes that build libraries, by the path of the library."""


def end(builder: subprocess.Popen[bytes]) -> None:
    """Kill a background process that builds a library, together with the compilers that it has started."""
    if builder.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(builder.pid, signal.SIGKILL)
        builder.wait()


def end_background() -> None:
    """Kill all background processes that build libraries."""
    while background:
        end(background.popitem()[1])


def cache_dir() -> Path:
    """Return inductor's cache folder, which also holds the libraries of `aot`.

    Falls back to the default of torch 2.13 if inductor's `cache_dir` is missing.
    """
    try:
        return Path(private.lookup("torch._inductor.runtime.cache_dir_utils.cache_dir")())
    except private.UnavailableError:
        default = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
        return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default)


def is_failure(error: Exception) -> bool:
    """Return True for an error after which another engine may work: one of the C++ compiler, inductor or Dynamo, or an
    UnavailableError.

    These are raised before anything is written to a state.
    """
    if isinstance(error, CompilerError | private.UnavailableError):
        return True
    return any(x.__module__.startswith(("torch._inductor.", "torch._dynamo.")) for x in type(error).__mro__)


class _Missing(Exception):
    """Placeholder for an exception class that this version of torch does not have. Never raised."""


def _exception(name: str) -> Any:
    try:
        return private.lookup(name)
    except private.UnavailableError:
        return _Missing


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and, breadth first, its causes and contexts."""
    todo, seen = [error], set[int]()
    while todo:
        error = todo.pop(0)
        if id(error) not in seen:
            seen.add(id(error))
            yield error
            others = (error.__cause__, error.__context__, getattr(error, "inner_exception", None))
            todo += [x for x in others if isinstance(x, BaseException)]


def _failure(error: Any) -> RuntimeError | None:
    """Convert `error` to a CompilerError or CompilerInterrupted if it comes from the C++ compiler, else return None."""
    compiler = os.environ.get("CXX", "g++")
    if isinstance(error, CompilerError | CompilerInterrupted):
        return error
    if isinstance(error, _exception("torch._inductor.exc.CppCompileError")):
        return _ended(error.cmd[0], error.output, error.__cause__)
    if isinstance(error, subprocess.CalledProcessError) and [*error.cmd][:1] == [compiler]:
        return _ended(compiler, error.stderr or error.stdout or "", error)
    if isinstance(error, _exception("torch._inductor.exc.InvalidCxxCompiler")):
        return compiler_error(f"{compiler}, which does not run")
    if isinstance(error, OSError) and error.filename == compiler:
        return compiler_error(f"{compiler}, which does not run: {error.strerror}")
    return None


def _ended(compiler: str, output: str | bytes, ended: BaseException | None) -> RuntimeError:
    """Make the error for a compiler that ran and printed `output`."""
    if getattr(ended, "returncode", None) in _INTERRUPTS:
        return CompilerInterrupted(f"compiler: {compiler} was interrupted")
    return compiler_error(f"{compiler}, which says: {_first_error(output, ended)}")


def _first_error(output: str | bytes, ended: BaseException | None = None) -> str:
    """Return the first line with an error in a compiler's output, else its first line, else its exit status."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output
    lines = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).strip() for line in text.splitlines()]
    lines = ["".join(c if c.isprintable() else "?" for c in line) for line in lines if line]
    errors = [line for line in lines if re.search(r"\berror\b", line, re.I)]
    if found := (errors or lines)[:1]:
        return found[0][:200]
    code = getattr(ended, "returncode", None)
    if isinstance(code, int) and code < 0:
        return f"nothing, as {signal.Signals(-code).name} ended it"
    return "nothing" if code is None else f"nothing, with exit code {code}"


@contextlib.contextmanager
def _quoted_paths() -> Iterator[None]:
    """Quote paths in inductor's command line, which it assembles as a string and splits like a shell (2.13)."""
    if not (roots := _roots()):
        yield
        return
    try:
        builder: Any = private.lookup("torch._inductor.cpp_builder.CppBuilder")
        original = private.lookup("torch._inductor.cpp_builder.CppBuilder.get_command_line")
    except private.UnavailableError:  # paths with spaces then fail to compile, and the engine falls back to eager
        yield
        return
    builder.get_command_line = lambda self: quoted(original(self), roots)
    try:
        yield
    finally:
        builder.get_command_line = original


def quoted(command: str, roots: list[str]) -> str:
    """Escape in a command line the characters of the paths `roots` that a shell would interpret.

    A path after an apostrophe is already quoted.
    """
    for root in roots:
        command = re.sub(f"(?<!'){re.escape(root)}", lambda found: _escaped(found[0]), command)
    return command


def _roots() -> list[str]:
    """Return the folders on the command line whose paths need escaping, longest first."""
    folders = {str(cache_dir()), tempfile.gettempdir(), os.environ.get("CXX", ""), str(Path(torch.__file__).parent)}
    folders |= {*sysconfig.get_paths().values(), sysconfig.get_config_var("LIBDIR") or ""}
    return sorted((folder for folder in folders if _escaped(folder) != folder), key=len, reverse=True)


def _escaped(path: str) -> str:
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", path)


def _end_compilers(before: set[int]) -> None:
    """Stop the processes started since `before`, except Python processes, which are torch's worker pool."""
    for number, seconds in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 0.5)):  # on SIGTERM, g++ removes its partial output
        until = time.monotonic() + seconds
        running = [pid for pid in _descendants() - before if not _is_python(pid)]
        for pid in running:
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        while time.monotonic() < until and (running := [pid for pid in running if _is_running(pid)]):
            time.sleep(0.01)


def _descendants() -> set[int]:
    """Return the ids of this process's children and their descendants; an empty set without /proc."""
    children, found, todo = defaultdict[int, list[int]](list), set[int](), [os.getpid()]
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children[int(file.read_bytes().rpartition(b")")[2].split()[1])].append(int(file.parent.name))
    while todo:
        new = children[todo.pop()]
        found.update(new)
        todo.extend(new)
    return found


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def _is_python(pid: int) -> bool:
    try:
        return os.path.samefile(f"/proc/{pid}/exe", "/proc/self/exe")
    except OSError:
        return False
