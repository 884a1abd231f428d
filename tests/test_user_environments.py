"""Environments of one's own, from the folder that a command is started in, wherever they go from there."""

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

OWN = """
import os

import gymnasium
import numpy as np

{module}


class Own(gymnasium.Env):
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
def place(tmp_path, monkeypatch):
    """A folder to stand in, another one, and what writes `own.py` in the first."""

    def write(module="", reset="pass", file="own.py"):
        (tmp_path / "here" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "here" / file).write_text(OWN.format(module=module, reset=reset))

    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield write
    for name in {name for name in sys.modules if name.partition(".")[0] in ("own", "beside", "mypkg")} - before:
        del sys.modules[name]
    envs.find.cache_clear()


def script(*words):
    """Run the command as the script that pip installs: in a folder of its own, which comes first on the path."""
    path = Path("../bin/fdqn")
    path.parent.mkdir(exist_ok=True)
    path.write_text("import sys\nfrom fdqn.cli import main\nsys.exit(main())\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, path, *words], env=environment, capture_output=True, text=True, check=False)


def test_the_script_finds_what_python_m_finds(place):
    """A module beside the environment's that is imported late, while the environment goes elsewhere."""
    place(reset="os.chdir('../there'); import beside; assert beside.found")
    Path("beside.py").write_text("found = True\n")
    done = script("train", *TINY, "--env", "own:Own", "--out", "runs/a", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failed_seeds"] == []
    assert {p.name for p in Path("runs/a").iterdir()} == FILES
    assert os.listdir("../there") == []


def test_a_late_import_of_a_neighbour(place, capsys):
    place(reset="import beside; assert beside.found")
    Path("beside.py").write_text("found = True\n")
    assert cli.main(["train", *TINY, "--env", "own:Own", "--out", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed_seeds"] == []


MOVES = [("os.chdir('../there')", "pass"), ("", "os.chdir('../there')")]


@pytest.mark.parametrize(("module", "reset"), MOVES, ids=["import", "reset"])
def test_an_environment_that_goes_elsewhere(place, capsys, monkeypatch, module, reset):
    """Every path of every command is where it was typed, and shown as it was."""
    here = Path.cwd()
    place(module, f"{reset}" if reset == "pass" else "os.path.exists('../there') and os.chdir('../there')")
    own = ["--env", "own:Own"]
    for words in (
        ["train", *TINY, *own, "--out", "runs/a"],
        ["resume", "runs/a", *own, "--steps", "60"],
        ["eval", "runs/a", *own, "--episodes", "1", "--video", "a.gif"],
        ["export", "runs/a", *own, "--seed", "1", "--out", "a.pt"],
        ["train", *TINY, *own],
        ["report", "runs/a", "runs/a", "--out", "both.png"],
    ):
        monkeypatch.chdir(here)
        envs.find.cache_clear()
        sys.modules.pop("own", None)
        assert cli.main(words) == 0, capsys.readouterr().err
    monkeypatch.chdir(here)
    out, err = capsys.readouterr()
    assert os.listdir("../there") == []
    assert {"a.gif", "a.pt", "both.png", "runs"} <= set(os.listdir("."))
    assert {p.name for p in Path("runs/a").iterdir()} == FILES
    assert len(os.listdir("runs")) == 2
    assert str(here) not in out + err
    assert all(words in out for words in ("run folder runs/a, picture runs/a/curve.png", "run folder runs/own-Own-"))
    assert "in a.pt" in out
    assert "torch.load('a.pt'" in out
    assert "video a.gif: " in err
    assert json.loads(Path("runs/a/config.json").read_text())["settings"]["out"] == "runs/a"


def test_a_failure_of_an_environment_that_goes_elsewhere(place, capsys):
    place("os.chdir('../there')")
    here = Path.cwd()
    assert cli.main(["train", *TINY, "--env", "own:Own", "--out", "nowhere\0"]) == 1
    assert cli.main(["eval", "nowhere/a", "--env", "own:Own"]) == 1
    err = capsys.readouterr().err
    assert "got nowhere/a without config.json" in err
    assert str(here) not in err


@pytest.mark.parametrize("command", ["train", "eval", "resume"])
def test_a_registered_environment_of_a_package_here(place, command):
    place(file="mypkg/own.py")
    Path("mypkg/__init__.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v0', entry_point='mypkg.own:Own')\n"
    )
    name = "gym:mypkg:Mine-v0"
    assert cli.main(["train", *TINY, "--env", name, "--out", "run"]) == 0
    if command == "train":
        return
    sys.modules.pop("mypkg")
    envs.find.cache_clear()
    sys.path[:] = [path for path in sys.path if path != os.getcwd()]
    words = [command, "run", *(["--steps", "60"] if command == "resume" else ["--episodes", "1"])]
    assert cli.main(words) == 1, "a folder from elsewhere must not say what is imported"
    assert "mypkg" not in sys.modules
    assert cli.main(["report", "run"]) == 0
    assert "mypkg" not in sys.modules
    assert cli.main([*words, "--env", name]) == 0


def test_the_library_finds_it_too(place, monkeypatch):
    place(reset="import beside")
    Path("beside.py").write_text("")
    world = envs.find("own:Own")
    monkeypatch.chdir("../there")
    world.open(1, 1).reset([[0]])
    assert sys.path.count(str(Path("../here").resolve())) == 1


def test_a_relative_cache_stays_where_it_is(place, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "cache")
    process.placed(parse.Envs())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(Path("cache").absolute())


def test_paths_are_shown_as_they_were_typed(place):
    here = Path.cwd()
    command = process.placed(parse.Report((Path("a/b"), Path("../c"), here / "d")))
    assert command.runs == (here / "a/b", here / "../c", here / "d")
    assert process.shown(f"{here}/a/b, {here}/a: '{here}/../c' x{here}/a {here}/d") == (
        f"a/b, a: '../c' x{here}/a {here}/d"
    )
