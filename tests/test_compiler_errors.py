"""A C++ compiler that is missing or fails is reported in one line with its name, its first error and a remedy."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

from fdqn import cli
from fdqn.cli import commands
from fdqn.compile import cpu_groups

ROOT = Path(cli.__file__).resolve().parents[2]
REMEDY = "; set CXX to another compiler, or use --no-compile"
OUTPUT = (
    "In file included from a.h:1\na.cpp:1:2: warning: so\na.cpp:3:4: \x1b[31merror: no such thing\x1b[0m\nmore\n" * 30
)


def with_cause(error, cause):
    error.__cause__ = cause
    return error


def wrapped_error(error):
    """Return the error wrapped as by `torch.compile`."""
    try:
        try:
            raise error
        except Exception as cause:
            raise InductorError(cause, None) from None
    except InductorError as wrapped:
        return BackendCompilerFailed(lambda: None, wrapped, None)


ERRORS = [
    (CppCompileError(["/opt/cc", "a.cpp"], OUTPUT), "/opt/cc, which says: a.cpp:3:4: error: no such thing"),
    (CppCompileError(["cc"], "cc: it is Sunday\n"), "cc, which says: cc: it is Sunday"),
    (with_cause(CppCompileError(["cc"], ""), subprocess.CalledProcessError(-signal.SIGKILL, ["cc"])),
     "cc, which says: nothing, as SIGKILL ended it"),
    (with_cause(CppCompileError(["cc"], ""), subprocess.CalledProcessError(3, ["cc"])),
     "cc, which says: nothing, with exit code 3"),
    (CppCompileError(["cc"], "cc: fatal error: " + "x" * 10_000), "cc, which says: cc: fatal error: " + "x" * 183),
    (CppCompileError(["cc"], "\udcff error: \x1b[2J\x07"), "cc, which says: ? error: ?"),
    (InvalidCxxCompiler(), "mine, which does not run"),
    (subprocess.CalledProcessError(1, ["mine", "-v"], stderr=b"\xff error: no"), "mine, which says: \ufffd error: no"),
    (PermissionError(13, "Permission denied", "mine"), "mine, which does not run: Permission denied"),
    (FileNotFoundError(2, "No such file or directory", "mine"), "mine, which does not run: No such file or directory"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message"), ERRORS, ids=range(len(ERRORS)))
@pytest.mark.parametrize("wrap", [lambda error: error, wrapped_error], ids=["plain", "wrapped"])
def test_a_failing_compiler_is_reported_in_one_line(monkeypatch, capsys, error, message, wrap):
    monkeypatch.setenv("CXX", "mine")
    monkeypatch.setattr(commands, "_run", lambda *given: (_ for _ in ()).throw(wrap(error)))
    assert cli.main(["envs"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fdqn: compiler: expected a working C++ compiler, got " + message)
    assert err.endswith(REMEDY + "\n")
    assert err.count("\n") == 1
    assert len(err) < 400
    assert "\x1b" not in err


@pytest.mark.parametrize("error", [OSError(2, "No such file", "other"), subprocess.CalledProcessError(1, ["other"])])
def test_other_errors_are_not_attributed_to_the_compiler(monkeypatch, error):
    monkeypatch.setenv("CXX", "mine")
    assert commands._known_error(error) is None


def fake(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def compilers(folder):
    """Make compilers that fail; return the expected message for each path."""
    version = 'case "$*" in *--version*) echo "mine 1.0"; exit 0;; esac'
    (folder / "folder").mkdir()
    return {
        str(
            fake(folder / "fails", f"{version}\necho 'a.cpp:3: error: no' >&2\nexit 1")
        ): "which says: a.cpp:3: error: no",
        str(fake(folder / "dies", f"{version}\nkill -SEGV $$")): "which says: nothing, as SIGSEGV ended it",
        str(folder / "folder"): "which does not run: Permission denied",
    }


def test_message_of_the_compiler_of_cpu_groups(tmp_path, monkeypatch):
    for compiler, message in compilers(tmp_path).items():
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(RuntimeError) as raised:
            cpu_groups._driver(tmp_path / "cache")
        assert commands._known_error(raised.value) == (
            f"compiler: expected a working C++ compiler, got {compiler}, {message}{REMEDY}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", range(3))
def test_the_command_trains_eagerly_with_a_failing_compiler(tmp_path, kind):
    compiler, message = [*compilers(tmp_path).items()][kind]
    sizes = "--seeds 2 --steps 300 --learning-starts 100 --batch-size 8 --hidden 8 --out"
    done = subprocess.run(
        [sys.executable, "-m", "fdqn", "train", *shlex.split(sizes), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    sentence = f"compiler: expected a working C++ compiler, got {compiler}, {message}{REMEDY}; falling back to eager"
    assert done.stderr.count(sentence) == 1
    assert "Traceback" not in done.stderr
