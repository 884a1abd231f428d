"""The C++ compiler that inductor runs: paths that need quoting, and failures as one sentence."""

import contextlib
import os
import re
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

_INTERRUPTS = {-signal.SIGINT, -signal.SIGTERM}


class CompilerError(RuntimeError):
    """The C++ compiler is missing or fails."""


class CompilerInterrupted(RuntimeError):
    """The C++ compiler was stopped from outside, as by Ctrl-C, which reaches all processes of a terminal."""


@contextlib.contextmanager
def used() -> Iterator[None]:
    """Around code that runs the C++ compiler: paths may hold spaces.

    Raises CompilerError where the compiler is missing or fails, and CompilerInterrupted where it was stopped.
    """
    with _quoted_paths():
        try:
            yield
        except Exception as error:
            if (failed := failure(error)) is None:
                raise
            raise failed from error


def failure(error: BaseException | None) -> RuntimeError | None:
    """The error of the C++ compiler if that is what failed, however deep it is nested; else None."""
    while error is not None:
        if isinstance(error, CompilerError | CompilerInterrupted):
            return error
        if isinstance(error, torch._inductor.exc.CppCompileError):
            return failed(error.cmd[0], error.output, getattr(error.__cause__, "returncode", None))
        if isinstance(error, torch._inductor.exc.InvalidCxxCompiler):
            return failed(os.environ.get("CXX", "none"), "")
        if isinstance(error, OSError) and error.filename and error.filename == os.environ.get("CXX"):
            return failed(error.filename, f"error: {error.strerror}")
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return None


def failed(compiler: str, output: str, code: int | None = None) -> RuntimeError:
    """The error of a compiler that printed `output` and exited with `code`; negative for a signal."""
    if code in _INTERRUPTS:
        return CompilerInterrupted(f"compiler: {compiler} was interrupted")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    if code is not None and code < 0:
        first = f"killed by signal {-code}" + (f", {first}" if first else "")
    said = f"{compiler}: {first[:300]}" if first else compiler
    return CompilerError(
        f"compiler: expected a working C++ compiler, got {said}; install g++, set CXX to a compiler that works, or "
        "train without compiling (--no-compile)"
    )


@contextlib.contextmanager
def _quoted_paths() -> Iterator[None]:
    """Inductor joins its command line from paths, of which it quotes some, and splits it as a shell would (2.13)."""
    if not (roots := _roots()):
        yield
        return
    from torch._inductor import cpp_builder

    builder: Any = cpp_builder.CppBuilder
    original = builder.get_command_line
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
    folders = {cache_dir(), tempfile.gettempdir(), os.environ.get("CXX", ""), str(Path(torch.__file__).parent)}
    folders |= {*sysconfig.get_paths().values(), sysconfig.get_config_var("LIBDIR") or ""}
    return sorted((folder for folder in folders if _escaped(folder) != folder), key=len, reverse=True)


def _escaped(path: str) -> str:
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", path)


def run(command: list[str]) -> None:
    """Run a compiler. Raises CompilerError where it is missing or fails, CompilerInterrupted where it was stopped."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as error:
        raise failed(command[0], f"error: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise failed(command[0], error.stderr, error.returncode) from error
