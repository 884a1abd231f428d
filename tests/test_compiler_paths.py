"""The C++ compiler: its paths may contain spaces and quotes, and it may be missing or fail."""

import os
import shlex
import signal
import stat
import subprocess
import sys

import pytest
import torch
from torch.func import vmap

from fdqn import compile as edge
from fdqn import training, tree
from fdqn.compile import ThreadPartition, cpu_groups, toolchain

ROOTS = ["/a b/c", "/it's (here)", "/plain/$x"]


@pytest.mark.parametrize("root", ROOTS)
def test_a_command_line_keeps_its_paths(root):
    line = f"g++ {root}/x.cpp -I{shlex.quote(root + '/include')} -L{root}/lib -o {root}/x.so"
    expected = ["g++", f"{root}/x.cpp", f"-I{root}/include", f"-L{root}/lib", "-o", f"{root}/x.so"]
    if "'" in root:  # an apostrophe ends the quotation
        line, expected = line.replace(f"-I{shlex.quote(root + '/include')} ", ""), [*expected[:2], *expected[3:]]
    assert shlex.split(toolchain.quoted(line, [root])) == expected


def test_a_path_inside_another_is_quoted_once():
    assert shlex.split(toolchain.quoted("g++ /a b/c d/x /a b/y", ["/a b/c d", "/a b"])) == [
        "g++",
        "/a b/c d/x",
        "/a b/y",
    ]


def step(state, x):
    return state + x.sin()


def start():
    return torch.ones(2, 40), torch.ones(3, 2, 40)


@pytest.fixture
def cold(monkeypatch, tmp_path):
    """Use an empty cache whose path has a space and an apostrophe."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "it's a cache"))
    cpu_groups._driver.cache_clear()
    yield
    cpu_groups._driver.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("cold")
def test_compiling_with_a_cache_with_a_space_in_its_path():
    state, xs = start()
    expected = training.scan(vmap(step))(state, xs)
    torch.testing.assert_close(edge.scan_vmapped(step, lambda count: ThreadPartition(1, 2, 1))(state, xs), expected)
    assert os.path.isdir(os.environ["TORCHINDUCTOR_CACHE_DIR"])


@pytest.mark.slow
def test_training_in_an_environment_with_a_space_in_its_path(tmp_path):
    """Run from a virtual environment whose path has a space."""
    (tmp_path / "an env").symlink_to(sys.prefix)
    words = [
        str(tmp_path / "an env" / "bin" / "python"),
        *("-m", "fdqn", "train", "--seeds=2", "--steps=300", "--learning-starts=100", "--num-envs=2", "--hidden", "4"),
        *("--batch-size=4", "--out", str(tmp_path / "run")),
    ]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "a cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()


FAILING = {
    "fails with an error": (
        'echo "x.cpp:1: note"; echo "x: error: unknown option -std=c++20" >&2; exit 1',
        "unknown option",
    ),
    "killed": ("kill -9 $$", "SIGKILL ended it"),
    "fails without output": ("exit 3", "got {cxx}, which says: nothing, with exit code 3"),
}


@pytest.fixture(params=[*FAILING, "not a compiler", "a folder", "missing"])
def broken(request, monkeypatch, tmp_path, cold):
    """Set a compiler that does not work; yield a part of the expected message."""
    name = "my c++" if torch.__version__ < "2.14" else "my-c++"  # inductor splits CXX at spaces since 2.14
    cxx, message = tmp_path / name, name
    if request.param in FAILING:
        body, message = FAILING[request.param]
        cxx.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo a compiler && exit 0\n{body}\n')
        cxx.chmod(cxx.stat().st_mode | stat.S_IXUSR)
    elif request.param == "not a compiler":
        cxx.write_text("#!/bin/sh\nexit 1\n")
        cxx.chmod(cxx.stat().st_mode | stat.S_IXUSR)
    elif request.param == "a folder":
        cxx.mkdir()
    monkeypatch.setenv("CXX", str(cxx))
    with torch._inductor.config.patch({"cpp.cxx": (None, str(cxx))}):
        yield message.format(cxx=cxx)


def test_a_broken_compiler_is_named_and_steps_run_eagerly(broken):
    state, xs = start()
    expected = training.scan(vmap(step))(state, xs)
    with pytest.warns(UserWarning, match="falling back to eager execution") as warned:
        result = edge.scan_vmapped(step, lambda count: ThreadPartition(1, 2, 1))(state, xs)
    assert result is state
    assert tree.equal(expected, result)
    (sentence,) = [str(each.message) for each in warned]
    assert "\n" not in sentence
    assert broken in sentence
    assert "set CXX" in sentence
    with pytest.raises(toolchain.CompilerError, match="compiler: expected a working C\\+\\+ compiler, got"):
        edge.compile(lambda x: x.sin() + 2)(state)


def test_an_interrupted_compiler_raises(monkeypatch):
    """Check that an interrupted compiler raises, and does not fall back to eager execution."""

    def interrupted(*given, **settings):
        error = torch._inductor.exc.CppCompileError(["g++"], "")
        raise error from subprocess.CalledProcessError(-signal.SIGINT, "g++")

    for name in ("compile", "aot_compile"):
        monkeypatch.setattr(torch._inductor, name, interrupted)
    with pytest.raises(toolchain.CompilerInterrupted):
        edge.scan_vmapped(lambda s, x: s + x.cosh(), lambda count: ThreadPartition(1, 2, 1))(*start())
