"""Tests of standard output with --json, and of text that the locale cannot encode."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fdqn import cli, envs

TINY = shlex.split(
    "--seeds 2 --steps 40 --learning-starts 20 --report-every 20 --batch-size 4 --hidden 4 --num-envs 2 --no-compile"
)
ROOT = Path(cli.__file__).resolve().parents[2]

LOUD = """
import atexit, ctypes, os, subprocess, sys
import gymnasium
import numpy as np

kept, libc = sys.stdout, ctypes.CDLL(None)
print("import")
atexit.register(print, "exit")


class Loud(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.time = 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        print("reset")
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        os.write(1, b"descriptor\\n")
        libc.puts(b"C")
        kept.write("kept\\n")
        if self.time == 0:
            subprocess.run(["echo", "subprocess"])
        self.time += 1
        return np.zeros(2, np.float32), 1.0, self.time == 2, False, {}

    def render(self):
        print("render")
        return np.zeros((8, 8, 3), np.uint8)
"""


def fdqn(*flags, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, "-m", "fdqn", *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Change to a folder with an environment that prints in all ways."""
    (tmp_path / "loud.py").write_text(LOUD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("loud", None)
    envs.find.cache_clear()


def test_standard_output_of_a_process_is_only_json(folder):
    done = fdqn("train", *TINY, "--env", "loud:Loud", "--json", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(Path("run/summary.json").read_text())
    assert done.stdout.count("\n") == 1
    assert all(f"{word}\n" in done.stderr for word in ("import", "reset", "descriptor", "C", "kept", "subprocess"))
    assert done.stderr.endswith("exit\n")


@pytest.mark.usefixtures("light_runs")
@pytest.mark.parametrize("command", ["eval run --episodes 1 --video a.gif", "resume run --steps 60", "report run"])
def test_standard_output_of_every_command_is_only_json(folder, capfd, command):
    """Call each command twice in this process, and check that later output of the process is not redirected."""
    assert cli.main(["train", *TINY, "--env", "loud:Loud", "--out", "run"]) == 0
    name = [] if command.startswith("report") else ["--env", "loud:Loud"]
    for _ in range(2):
        capfd.readouterr()
        assert cli.main([*command.split(), *name, "--json"]) == 0
        out, err = capfd.readouterr()
        assert json.loads(out)
        assert out.count("\n") == 1
        assert "reset" in err or command.startswith("report") or "is finished" in err
        os.write(1, b"mine\n")
        print("mine too")
        assert capfd.readouterr().out == "mine\nmine too\n"


@pytest.mark.usefixtures("light_runs")
def test_json_is_written_to_a_redirected_stream(folder):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["train", *TINY, "--env", "loud:Loud", "--json", "--out", "run"]) == 0
        assert sys.stdout is out
    assert json.loads(out.getvalue()) == json.loads(Path("run/summary.json").read_text())


def test_a_failure_prints_no_json(folder, capfd):
    assert cli.main(["eval", "nowhere", "--json"]) == 1
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_is_not_an_error(closed):
    command = f"{shlex.quote(sys.executable)} -m fdqn envs --json {closed}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert bool(done.stdout) == (closed == "2>&-")


def test_calling_main_twice_in_a_process():
    code = "import sys; sys.argv = ['fdqn', 'envs', '--json']; from fdqn.cli import main; main(); main(); print('mine')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0]) == json.loads(lines[1])
    assert done.stderr == "mine\n"


# Text that the locale cannot encode

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


@pytest.mark.slow
def test_a_folder_that_the_locale_cannot_encode(tmp_path):
    done = fdqn("train", *TINY, "--env", "catch", "--out", str(tmp_path / "läuft"), **ASCII)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "run folder" in done.stdout
    assert (tmp_path / "läuft" / "summary.json").exists()
    assert json.loads((tmp_path / "läuft" / "config.json").read_text("utf-8"))["settings"]["out"]


@pytest.mark.usefixtures("light_runs")
@pytest.mark.parametrize(
    ("name", "encoding", "printed"),
    [("läuft", "ascii", rb"l\xe4uft"), (os.fsdecode(b"l\xe4uft"), "utf-8", rb"l\udce4uft")],
    ids=["stream", "bytes"],
)
def test_a_folder_that_cannot_be_printed(tmp_path, monkeypatch, name, encoding, printed):
    monkeypatch.chdir(tmp_path)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.main(["train", *TINY, "--env", "catch", "--out", name]) == 0
        assert cli.main(["train", *TINY, "--env", "catch", "--out", name]) == 1
        assert (out.errors, err.errors) == ("strict", "strict")
    assert b"run folder " + printed in out.buffer.getvalue()
    assert b"got '" + printed in err.buffer.getvalue()
    assert json.loads((tmp_path / name / "config.json").read_text("utf-8"))["settings"]["out"] == name


@pytest.mark.usefixtures("light_runs")
def test_pictures_of_folders_whose_names_are_not_unicode(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ["a", os.fsdecode(b"l\xe4uft")]
    for name in names:
        assert cli.main(["train", *TINY, "--env", "catch", "--out", name]) == 0
    capsys.readouterr()
    assert cli.main(["report", *names, "--json"]) == 0
    assert [read["run"] for read in json.loads(capsys.readouterr().out)] == names
    assert Path("comparison.png").stat().st_size > 0


def test_files_are_read_in_an_explicit_encoding():
    """Check that no module reads or writes text in the encoding of the locale."""
    readers = re.compile(r"\b(read_text|write_text)\(\)|text=True|\bopen\([^)]*\"[rw]\"\)|\.open\(\)")
    found = [path.name for path in (ROOT / "fdqn").rglob("*.py") if readers.search(path.read_text("utf-8"))]
    assert found == []
    assert readers.search("file.read_text()")
