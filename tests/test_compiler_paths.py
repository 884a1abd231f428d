"""The C++ compiler: its paths may hold what a shell would split, and it may be missing or fail."""

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
    if "'" in root:  # an apostrophe is quoted by closing and opening the quotation
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
    """A cache with a space and an apostrophe in its path, which holds nothing."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "it's a cache"))
    cpu_groups._driver.cache_clear()
    yield
    cpu_groups._driver.cache_clear()


@pytest.mark.usefixtures("cold")
def test_compiling_in_a_folder_with_a_space():
    state, xs = start()
    expected = training.scan(vmap(step))(state, xs)
    torch.testing.assert_close(edge.scan_vmapped(step, lambda count: ThreadPartition(1, 2, 1))(state, xs), expected)
    assert os.path.isdir(os.environ["TORCHINDUCTOR_CACHE_DIR"])


@pytest.mark.slow
def test_an_environment_with_a_space(tmp_path):
    """All of torch lies under such a path."""
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
    "says no": ('echo "x.cpp:1: note"; echo "x: error: unknown option -std=c++20" >&2; exit 1', "unknown option"),
    "is killed": ("kill -9 $$", "SIGKILL ended it"),
    "says nothing": ("exit 3", "got {cxx}, which says: nothing, with exit code 3"),
}


@pytest.fixture(params=[*FAILING, "is no compiler", "is a folder", "is not there"])
def broken(request, monkeypatch, tmp_path, cold):
    """A compiler that does not work, with what is said about it."""
    name = "my c++" if torch.__version__ < "2.14" else "my-c++"  # from there on inductor splits CXX at spaces
    cxx, said = tmp_path / name, name
    if request.param in FAILING:
        body, said = FAILING[request.param]
        cxx.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo a compiler && exit 0\n{body}\n')
        cxx.chmod(cxx.stat().st_mode | stat.S_IXUSR)
    elif request.param == "is no compiler":
        cxx.write_text("#!/bin/sh\nexit 1\n")
        cxx.chmod(cxx.stat().st_mode | stat.S_IXUSR)
    elif request.param == "is a folder":
        cxx.mkdir()
    monkeypatch.setenv("CXX", str(cxx))
    with torch._inductor.config.patch({"cpp.cxx": (None, str(cxx))}):
        yield said.format(cxx=cxx)


def test_a_broken_compiler_is_named_and_the_steps_run_without_it(broken):
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


def test_a_compiler_that_was_interrupted_is_not_blamed(monkeypatch):
    """Nor do the steps run without it: whoever pressed Ctrl-C wants them to stop."""

    def interrupted(*given, **settings):
        error = torch._inductor.exc.CppCompileError(["g++"], "")
        raise error from subprocess.CalledProcessError(-signal.SIGINT, "g++")

    for name in ("compile", "aot_compile"):
        monkeypatch.setattr(torch._inductor, name, interrupted)
    with pytest.raises(toolchain.CompilerInterrupted):
        edge.scan_vmapped(lambda s, x: s + x.cosh(), lambda count: ThreadPartition(1, 2, 1))(*start())
