"""The C++ compiler that inductor runs: paths that need quoting, and failures as one sentence."""

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
    """The C++ compiler was stopped from outside, as by Ctrl-C, which reaches all processes of a terminal."""


@contextlib.contextmanager
def compiler_guard() -> Iterator[None]:
    """Around code that runs the C++ compiler: paths may hold spaces.

    Raises CompilerError where the compiler is missing or fails, and CompilerInterrupted where it was stopped. An
    interrupt of this process ends the compilers that it has started.
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
    """The error of the C++ compiler if that is what failed, however deep it is nested; else None."""
    return next(filter(None, map(_failure, reversed([*_causes(error)]))), None)


def compiler_error(reason: str) -> CompilerError:
    """The error of a compiler, named with what is wrong with it."""
    return CompilerError(
        f"compiler: expected a working C++ compiler, got {reason}; set CXX to another compiler, or use --no-compile"
    )


def run(command: list[str]) -> None:
    """Run a compiler. Raises CompilerError where it is missing or fails, CompilerInterrupted where it was stopped."""
    try:
        subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace")
    except (OSError, subprocess.CalledProcessError) as error:
        raise find_compiler_error(error) or error from error


background: dict[Path, subprocess.Popen[bytes]] = {}
"""Processes that build libraries, by the path of the library."""


def end(builder: subprocess.Popen[bytes]) -> None:
    """End a process that builds a library, and the compilers that it has started."""
    if builder.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(builder.pid, signal.SIGKILL)
        builder.wait()


def end_background() -> None:
    """End all processes that build libraries."""
    while background:
        end(background.popitem()[1])


def cache_dir() -> Path:
    """Return inductor's folder of compiled code, beside which libraries are kept.

    `cache_dir` of inductor knows it. Without that function it is the folder that torch 2.13 takes.
    """
    try:
        return Path(private.lookup("torch._inductor.runtime.cache_dir_utils.cache_dir")())
    except private.UnavailableError:
        default = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
        return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default)


def is_failure(error: Exception) -> bool:
    """Return True for an exception after which another engine may work: of the C++ compiler, inductor or Dynamo, or for
    want of a private function.

    They are raised before anything is written to a state.
    """
    if isinstance(error, CompilerError | private.UnavailableError):
        return True
    return any(x.__module__.startswith(("torch._inductor.", "torch._dynamo.")) for x in type(error).__mro__)


class _Missing(Exception):
    """In the place of an exception that this version of torch does not have: nobody raises it."""


def _exception(name: str) -> Any:
    try:
        return private.lookup(name)
    except private.UnavailableError:
        return _Missing


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from or in place of."""
    todo, seen = [error], set[int]()
    while todo:
        error = todo.pop(0)
        if id(error) not in seen:
            seen.add(id(error))
            yield error
            others = (error.__cause__, error.__context__, getattr(error, "inner_exception", None))
            todo += [x for x in others if isinstance(x, BaseException)]


def _failure(error: Any) -> RuntimeError | None:
    """The error of the C++ compiler if `error` itself is one of a compiler."""
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
    """The error of a compiler that ran and printed `output`."""
    if getattr(ended, "returncode", None) in _INTERRUPTS:
        return CompilerInterrupted(f"compiler: {compiler} was interrupted")
    return compiler_error(f"{compiler}, which says: {_first_error(output, ended)}")


def _first_error(output: str | bytes, ended: BaseException | None = None) -> str:
    """The first line of a compiler's output that is an error; without one its first line, or how it ended."""
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
    """Inductor joins its command line from paths, of which it quotes some, and splits it as a shell would (2.13)."""
    if not (roots := _roots()):
        yield
        return
    try:
        builder: Any = private.lookup("torch._inductor.cpp_builder.CppBuilder")
        original = private.lookup("torch._inductor.cpp_builder.CppBuilder.get_command_line")
    except private.UnavailableError:  # paths with spaces then fail to compile, and the steps run without a compiler
        yield
        return
    builder.get_command_line = lambda self: quoted(original(self), roots)
    try:
        yield
    finally:
        builder.get_command_line = original


def quoted(command: str, roots: list[str]) -> str:
    """The command line with backslashes before what a shell would split or drop in these paths.

    A path that begins after an apostrophe is quoted already.
    """
    for root in roots:
        command = re.sub(f"(?<!'){re.escape(root)}", lambda found: _escaped(found[0]), command)
    return command


def _roots() -> list[str]:
    """Folders whose paths a shell would split and from which the command line takes paths, the longest first."""
    folders = {str(cache_dir()), tempfile.gettempdir(), os.environ.get("CXX", ""), str(Path(torch.__file__).parent)}
    folders |= {*sysconfig.get_paths().values(), sysconfig.get_config_var("LIBDIR") or ""}
    return sorted((folder for folder in folders if _escaped(folder) != folder), key=len, reverse=True)


def _escaped(path: str) -> str:
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", path)


def _end_compilers(before: set[int]) -> None:
    """End the processes that were started since `before`, but for Python's, which torch keeps as a pool of its own."""
    for number, seconds in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 0.5)):  # at the first, g++ removes half a library
        until = time.monotonic() + seconds
        running = [pid for pid in _descendants() - before if not _is_python(pid)]
        for pid in running:
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        while time.monotonic() < until and (running := [pid for pid in running if _is_running(pid)]):
            time.sleep(0.01)


def _descendants() -> set[int]:
    """The processes that this one started, and those that they started in turn; none where there is no /proc."""
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
