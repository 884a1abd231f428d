"""Tests of user environments that are imported from the working directory of a command, even if they change it."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fdqn import cli, envs
from fdqn.cli import parse
from fdqn.experiment import process

TINY = shlex.split(
    "--seeds 2 --steps 40 --learning-starts 20 --report-every 20 --batch-size 4 --hidden 4 --num-envs 2 --no-compile"
)
ROOT = Path(cli.__file__).resolve().parents[2]
FILES = {"checkpoints", "config.json", "metrics.csv", "params.safetensors", "summary.json", "curve.png"}

SOURCE = """
import os

import gymnasium
import numpy as np

{module}


class UserEnv(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {{"render_modes": ["rgb_array"]}}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.time = 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        {reset}
        self.time = 0
        return np.zeros(2, np.float32), {{}}

    def step(self, action):
        self.time += 1
        return np.zeros(2, np.float32), 1.0, self.time == 2, False, {{}}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)
"""


@pytest.fixture
def write_env(tmp_path, monkeypatch):
    """Make a working directory and another one; yield a function that writes `userenv.py` into the first."""

    def write(module="", reset="pass", file="userenv.py"):
        (tmp_path / "here" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "here" / file).write_text(SOURCE.format(module=module, reset=reset))

    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield write
    for name in {name for name in sys.modules if name.partition(".")[0] in ("userenv", "neighbor", "mypkg")} - before:
        del sys.modules[name]
    envs.find.cache_clear()


def script(*command):
    """Run the command as the script that pip installs, whose own folder comes first on the module path."""
    path = Path("../bin/fdqn")
    path.parent.mkdir(exist_ok=True)
    path.write_text("import sys\nfrom fdqn.cli import main\nsys.exit(main())\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, path, *command], env=environment, capture_output=True, text=True, check=False
    )


def test_the_script_imports_from_the_working_directory(write_env):
    """Import a neighboring module in `reset`, after the environment has changed the working directory."""
    write_env(reset="os.chdir('../there'); import neighbor; assert neighbor.found")
    Path("neighbor.py").write_text("found = True\n")
    done = script("train", *TINY, "--env", "userenv:UserEnv", "--out", "runs/a", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failed_seeds"] == []
    assert {p.name for p in Path("runs/a").iterdir()} == FILES
    assert os.listdir("../there") == []


def test_a_late_import_of_a_neighboring_module(write_env, capsys):
    write_env(reset="import neighbor; assert neighbor.found")
    Path("neighbor.py").write_text("found = True\n")
    assert cli.main(["train", *TINY, "--env", "userenv:UserEnv", "--out", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed_seeds"] == []


CHANGES_OF_DIRECTORY = [("os.chdir('../there')", "pass"), ("", "os.chdir('../there')")]


@pytest.mark.parametrize(("module", "reset"), CHANGES_OF_DIRECTORY, ids=["import", "reset"])
def test_an_environment_that_changes_the_working_directory(write_env, capsys, monkeypatch, module, reset):
    """Check that all paths of all commands are relative to the original directory, and are printed as given."""
    here = Path.cwd()
    write_env(module, f"{reset}" if reset == "pass" else "os.path.exists('../there') and os.chdir('../there')")
    env_flags = ["--env", "userenv:UserEnv"]
    for command in (
        ["train", *TINY, *env_flags, "--out", "runs/a"],
        ["resume", "runs/a", *env_flags, "--steps", "60"],
        ["eval", "runs/a", *env_flags, "--episodes", "1", "--video", "a.gif"],
        ["export", "runs/a", *env_flags, "--seed", "1", "--out", "a.pt"],
        ["train", *TINY, *env_flags],
        ["report", "runs/a", "runs/a", "--out", "both.png"],
    ):
        monkeypatch.chdir(here)
        envs.find.cache_clear()
        sys.modules.pop("userenv", None)
        assert cli.main(command) == 0, capsys.readouterr().err
    monkeypatch.chdir(here)
    out, err = capsys.readouterr()
    assert os.listdir("../there") == []
    assert {"a.gif", "a.pt", "both.png", "runs"} <= set(os.listdir("."))
    assert {p.name for p in Path("runs/a").iterdir()} == FILES
    assert len(os.listdir("runs")) == 2
    assert str(here) not in out + err
    assert all(
        text in out for text in ("run folder runs/a, picture runs/a/curve.png", "run folder runs/userenv-UserEnv-")
    )
    assert "in a.pt" in out
    assert "torch.load('a.pt'" in out
    assert "video a.gif: " in err
    assert json.loads(Path("runs/a/config.json").read_text())["settings"]["out"] == "runs/a"


def test_errors_after_a_change_of_directory_show_paths_as_given(write_env, capsys):
    write_env("os.chdir('../there')")
    here = Path.cwd()
    assert cli.main(["train", *TINY, "--env", "userenv:UserEnv", "--out", "nowhere\0"]) == 1
    assert cli.main(["eval", "nowhere/a", "--env", "userenv:UserEnv"]) == 1
    err = capsys.readouterr().err
    assert "got nowhere/a without config.json" in err
    assert str(here) not in err


@pytest.mark.parametrize("command", ["train", "eval", "resume"])
def test_a_registered_environment_of_a_package_in_the_working_directory(write_env, command):
    write_env(file="mypkg/userenv.py")
    Path("mypkg/__init__.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v0', entry_point='mypkg.userenv:UserEnv')\n"
    )
    name = "gym:mypkg:Mine-v0"
    assert cli.main(["train", *TINY, "--env", name, "--out", "run"]) == 0
    if command == "train":
        return
    sys.modules.pop("mypkg")
    envs.find.cache_clear()
    sys.path[:] = [path for path in sys.path if path != os.getcwd()]
    flags = [command, "run", *(["--steps", "60"] if command == "resume" else ["--episodes", "1"])]
    assert cli.main(flags) == 1, "a run folder alone must not cause imports"
    assert "mypkg" not in sys.modules
    assert cli.main(["report", "run"]) == 0
    assert "mypkg" not in sys.modules
    assert cli.main([*flags, "--env", name]) == 0


def test_find_imports_from_the_working_directory(write_env, monkeypatch):
    write_env(reset="import neighbor")
    Path("neighbor.py").write_text("")
    env = envs.find("userenv:UserEnv")
    monkeypatch.chdir("../there")
    env.open(1, 1).reset([[0]])
    assert sys.path.count(str(Path("../here").resolve())) == 1


def test_a_relative_cache_directory_becomes_absolute(write_env, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "cache")
    process.placed(parse.Envs())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(Path("cache").absolute())


def test_paths_are_printed_as_given(write_env):
    here = Path.cwd()
    command = process.placed(parse.Report((Path("a/b"), Path("../c"), here / "d")))
    assert command.runs == (here / "a/b", here / "../c", here / "d")
    assert process.shown(f"{here}/a/b, {here}/a: '{here}/../c' x{here}/a {here}/d") == (
        f"a/b, a: '../c' x{here}/a {here}/d"
    )
