"""The command line: arguments, output and files."""

import contextlib
import csv
import io
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import forks
import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from fdqn import cli, compile, envs, networks, random
from fdqn.cli import commands, parse
from fdqn.experiment import process, progress, results, run_folder
from fdqn.report import video

TINY = shlex.split(
    "--seeds 2 --steps 300 --n-step 1 --learning-starts 100 --report-every 100 --batch-size 8 --hidden 8 --no-compile"
)
FILES = {"checkpoints", "config.json", "metrics.csv", "params.safetensors", "summary.json", "curve.png"}
ROOT = Path(cli.__file__).resolve().parents[2]
LONGEST = 300  # most characters of an error message


def environment(**more):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


def fdqn(*words, **more):
    return [sys.executable, "-m", "fdqn", *words], {"env": environment(**more), "text": True}


def tree(path):
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


def strict(text):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a small run with the command; return its folder, standard output and standard error."""
    path = tmp_path_factory.mktemp("cli") / "run"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.main(["train", *TINY, "--seed", "5", "--evaluate-every", "150", "--out", str(path)]) == 0
    return path, out.getvalue(), err.getvalue()


@pytest.fixture
def workdir(trained, tmp_path, monkeypatch):
    """Change to a folder with `run`, a copy of the trained run, and `file`, a file."""
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "file").write_text("mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


# Output and files


def test_train_writes_all_files_and_prints_the_folder(trained):
    path, out, err = trained
    assert {p.name for p in path.iterdir()} == FILES | {"evaluations.csv"}
    assert str(path) in out
    assert str(path / "curve.png") in out
    assert "seed-updates/s" in out
    assert "CartPole-v1" in out
    assert "\x1b" not in out + err, "colours without a terminal"
    assert "\r" not in out + err


def test_train_prints_the_required_memory_before_it_starts(trained):
    """Check the printed memory: rows of two observations of 16 B, a mask of 2 B, action, reward and discount."""
    first = trained[2].splitlines()[0]
    expected = r"cartpole: 2 seeds x 300 steps on \w+; [\d.,]+ \wB, replay 2 x 300 rows of 50 B: "
    assert re.fullmatch(expected + "15.0 kB per seed, 30.0 kB in total", first)


def test_progress_in_a_pipe_is_one_line_per_report(trained):
    steps = [line for line in trained[2].splitlines() if line.startswith("step ")]
    # Every 100 steps, and at evaluations.
    assert [line.split()[1] for line in steps] == ["100", "150", "200", "300"]
    assert all("return" in line for line in steps[1:])
    assert "loss" in steps[-1]


def test_the_table_equals_the_summary(trained):
    path, out, _ = trained
    summary = strict((path / "summary.json").read_text())
    records = [summary["final_return"], summary["train_return"], summary["gymnasium_return"]]
    for i, seed in enumerate((5, 6)):
        row = next(line for line in out.splitlines() if line.split()[:1] == [str(seed)])
        assert [float(x) for x in row.split()[1:]] == pytest.approx([r["per_seed"][i] for r in records], abs=0.051)
    total = next(line for line in out.splitlines() if "IQM [range]" in line)  # of two seeds
    for record in records:
        assert f"{record['iqm']:.1f} [range {record['low']:.1f}, {record['high']:.1f}]" in total
    assert "95%" not in out


def test_requested_evaluations_are_reported(trained):
    """Check that the results of `--evaluate-every` are printed or stored."""
    path, _, err = trained
    files = (path / "metrics.csv").read_text() + (path / "summary.json").read_text()
    assert re.search(r"greedy|evaluat", err) or "evaluat" in files


def test_json_prints_only_the_summary_on_standard_output(workdir, capsys):
    assert cli.main(["train", *TINY, "--json", "--out", "new"]) == 0
    out = capsys.readouterr().out
    assert strict(out) == strict(Path("new/summary.json").read_text())
    assert out.count("\n") == 1


def test_train_without_out_creates_a_folder(workdir, capsys):
    before = set(os.listdir("."))
    assert cli.main(["train", *TINY, "--env", "catch"]) == 0
    assert set(os.listdir(".")) - before == {"runs"}
    (path,) = Path("runs").iterdir()
    assert path.name.startswith("catch-")
    assert {p.name for p in path.iterdir()} == FILES
    summary = strict((path / "summary.json").read_text())
    assert "gymnasium_return" not in summary, "catch is not in gymnasium"
    assert str(path) in capsys.readouterr().out


@pytest.mark.usefixtures("light_runs")
def test_the_same_command_gives_the_same_run(workdir, trained):
    assert cli.main(["train", *TINY, "--seed", "5", "--evaluate-every", "150", "--out", "again"]) == 0
    assert (workdir / "again/params.safetensors").read_bytes() == (workdir / "run/params.safetensors").read_bytes()
    tables = [(workdir / name / "metrics.csv").read_text().splitlines() for name in ("again", "run")]
    timeless = [[row.rsplit(",", 1)[0] for row in table] for table in tables]
    assert timeless[0] == timeless[1]
    assert cli.main(["train", *TINY, "--seed", "6", "--out", "other"]) == 0
    assert (workdir / "other/params.safetensors").read_bytes() != (workdir / "run/params.safetensors").read_bytes()


def test_eval_equals_the_final_return_of_the_summary(workdir, capsys):
    assert cli.main(["eval", "run", "--json"]) == 0
    out = capsys.readouterr().out
    assert strict(out) == strict(Path("run/summary.json").read_text())["final_return"]
    assert set(strict(out)) == {"iqm", "low", "high", "per_seed", "kind", "unfinished", "step_limit"}
    before = tree(workdir)
    assert cli.main(["eval", "run", "--episodes", "3"]) == 0
    out = capsys.readouterr().out
    assert "cartpole" in out
    assert "3 greedy episodes" in out
    assert tree(workdir) == before, "eval must not write files"


def test_eval_in_gymnasium_equals_the_gymnasium_return_of_the_summary(workdir, capsys):
    assert cli.main(["eval", "run", "--env", "gym:CartPole-v1", "--json"]) == 0
    record = strict(Path("run/summary.json").read_text())["gymnasium_return"]
    assert {"env": "CartPole-v1", **strict(capsys.readouterr().out)} == record


def test_eval_of_a_failed_seed(workdir, capsys):
    summary = json.loads(Path("run/summary.json").read_text())
    Path("run/summary.json").write_text(json.dumps({**summary, "failed_seeds": [6]}))
    assert cli.main(["eval", "run", "--json"]) == 0
    record = strict(capsys.readouterr().out)
    assert record["per_seed"] == [summary["final_return"]["per_seed"][0], None]
    assert record["low"] is record["high"] is None
    assert cli.main(["eval", "run"]) == 0
    assert re.search(r"^ *6 +failed", capsys.readouterr().out, re.MULTILINE)


def test_eval_writes_a_video(workdir, capsys):
    before = tree(workdir)
    assert cli.main(["eval", "run", "--episodes", "3", "--json", "--video", "seeds.GIF"]) == 0
    out, err = capsys.readouterr()
    plain = strict(out)
    assert re.fullmatch(r"video seeds\.GIF: \d+ frames, one every step, [\d.,]+ kB\n", err)
    assert {**before, "seeds.GIF": Path("seeds.GIF").read_bytes()} == tree(workdir)
    with Image.open("seeds.GIF") as image:
        assert (image.format, image.is_animated) == ("GIF", True)
    assert cli.main(["eval", "run", "--episodes", "3", "--json"]) == 0
    assert strict(capsys.readouterr().out) == plain, "recording must not change the returns"
    Path("seeds.GIF").write_bytes(b"mine")
    assert cli.main(["eval", "run", "--episodes", "1", "--video", "seeds.GIF"]) == 0
    assert Path("seeds.GIF").read_bytes().startswith(b"GIF89a"), "the file is replaced"


def test_videos_omit_failed_seeds(workdir, capsys, monkeypatch):
    titles, original = [], video.gif
    monkeypatch.setattr(video, "gif", lambda lines, frames: titles.extend(lines) or original(lines, frames))
    summary = json.loads(Path("run/summary.json").read_text())
    Path("run/summary.json").write_text(json.dumps({**summary, "failed_seeds": [5]}))
    assert cli.main(["eval", "run", "--episodes", "2", "--video", "seeds.gif"]) == 0
    assert [title.split(",")[0] for title in titles] == ["best: seed 6"]
    Path("run/summary.json").write_text(json.dumps({**summary, "failed_seeds": [5, 6]}))
    capsys.readouterr()
    assert cli.main(["eval", "run", "--episodes", "2", "--video", "none.gif"]) == 1
    assert capsys.readouterr().err == "fdqn: video: expected a seed that has not failed, got none\n"
    assert not Path("none.gif").exists()


def test_a_video_that_cannot_be_written_is_reported_in_one_line(workdir, capsys, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    before = tree(workdir)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        code = cli.main(["eval", "run", "--episodes", "1", "--video", "a.gif"])
    assert code == 1
    assert "video: a.gif: expected to write it, got No space left on device" in capsys.readouterr().err
    assert tree(workdir) == before


CLIFF = shlex.split(
    "--env gym:CliffWalking-v1 --seeds 2 --steps 200 --learning-starts 100 --report-every 100 --hidden 8 --no-compile"
)
"""An environment whose episodes end only at the goal."""


@pytest.mark.usefixtures("light_runs")
def test_episodes_at_the_step_limit_are_cut_and_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_FIRST_LINE", 0.0)
    path = tmp_path / "run"
    assert cli.main(["train", *CLIFF, "--evaluate-episodes", "2", "--out", str(path)]) == 0
    out, err = capsys.readouterr()
    final = strict((path / "summary.json").read_text())["final_return"]
    assert (final["unfinished"], final["step_limit"]) == (4, 1_000)
    assert -100_000 <= final["iqm"] <= -1_000
    assert "evaluating 2 greedy episodes per seed in gym:CliffWalking-v1, at most 1,000 steps each" in err
    assert re.search(r"0 of 4 episodes finished, step [\d,]+ of at most 1,000, at most \d+:\d\d left", err)
    assert "cut" in out
    assert "4 at 1,000 steps" in out
    assert "raise it with --evaluate-steps" in out
    assert cli.main(["eval", str(path), "--json"]) == 0
    assert strict(capsys.readouterr().out) == final
    assert cli.main(["eval", str(path), "--json", "--episodes", "3", "--evaluate-steps", "10"]) == 0
    shorter = strict(capsys.readouterr().out)
    assert (shorter["unfinished"], shorter["step_limit"]) == (6, 10)
    assert shorter["iqm"] >= -1_000
    assert cli.main(["report", str(path)]) == 0
    assert "4 at 1,000 steps" in capsys.readouterr().out


@pytest.mark.usefixtures("light_runs")
def test_evaluate_steps_limits_evaluations_during_training_and_can_be_changed_by_resume(tmp_path, capsys):
    path, flags = tmp_path / "run", ["--evaluate-every", "100", "--evaluate-steps", "7", "--evaluate-episodes", "2"]
    assert cli.main(["train", *CLIFF, *flags, "--json", "--out", str(path)]) == 0
    final = strict(capsys.readouterr().out)["final_return"]
    assert (final["unfinished"], final["step_limit"]) == (4, 7)
    with open(path / "evaluations.csv") as file:
        assert all(-700 <= float(row["return"]) <= -7 for row in csv.DictReader(file))
    more = ["--steps", "300", "--evaluate-steps", "5", "--evaluate-episodes", "3", "--json"]
    assert cli.main(["resume", str(path), *more]) == 0
    final = strict(capsys.readouterr().out)["final_return"]
    assert (final["unfinished"], final["step_limit"]) == (6, 5)


def test_the_time_limit_of_an_environment_is_not_counted_as_a_cut(trained):
    summary = strict((trained[0] / "summary.json").read_text())
    for name in ("final_return", "gymnasium_return"):
        assert (summary[name]["unfinished"], summary[name]["step_limit"]) == (0, 500)
    assert "unfinished" not in summary["train_return"]
    assert "cut" not in trained[1].split()


def test_a_step_limit_below_the_time_limit_cuts_episodes(workdir, capsys):
    assert cli.main(["eval", "run", "--json", "--episodes", "2", "--evaluate-steps", "5"]) == 0
    record = strict(capsys.readouterr().out)
    assert (record["per_seed"], record["unfinished"], record["step_limit"]) == ([5.0, 5.0], 4, 5)


def test_eval_compiles_long_episodes_if_the_run_was_compiled(workdir, monkeypatch, capsys):
    """Check that a compiled player is requested, except with `--no-compile` or for a run without compilation."""
    requested = []
    monkeypatch.setattr(compile, "player", lambda *given: requested.append(given))
    config = json.loads(Path("run/config.json").read_text())
    for compiled, flag, expected in ((False, [], 0), (True, ["--no-compile"], 0), (True, [], 1)):
        config["settings"]["compile"] = compiled
        Path("run/config.json").write_text(json.dumps(config))
        assert cli.main(["eval", "run", "--episodes", "1", *flag]) == 0
        assert len(requested) == expected


def test_report_of_one_run(workdir, capsys):
    Path("run/curve.png").unlink()
    assert cli.main(["report", "run"]) == 0
    assert "IQM [range]" in capsys.readouterr().out
    assert imread("run/curve.png").shape[1] > 500
    assert {p.name for p in Path("run").iterdir()} == FILES | {"evaluations.csv"}


def test_report_of_several_runs(workdir, capsys):
    shutil.copytree("run", "other")
    assert cli.main(["report", "run", "other", "--out", "both.png"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["run", "other"]
    assert "both.png" in out
    assert imread("both.png").shape[1] > 500
    assert cli.main(["report", "run", "other", "--json"]) == 0
    summaries = strict(capsys.readouterr().out)
    assert [s["run"] for s in summaries] == ["run", "other"]
    assert summaries[0] == {"run": "run", **strict(Path("run/summary.json").read_text())}
    assert Path("comparison.png").exists()


def test_compare_of_two_runs(workdir, capsys):
    shutil.copytree("run", "other")
    assert cli.main(["compare", "run", "other", "--json"]) == 0
    found = strict(capsys.readouterr().out)
    summary = strict(Path("run/summary.json").read_text())
    assert [arm["per_seed"] for arm in found["arms"]] == [summary["final_return"]["per_seed"]] * 2
    assert found["comparisons"][0]["mean"] == {"value": 0.0, "low": None, "high": None}
    assert cli.main(["compare", "run", "other", "--measure", "gymnasium", "--out", "both.png"]) == 0
    out = capsys.readouterr().out
    assert "returns: gymnasium return" in out
    assert "other against run: power is not available, because the differences do not vary over seeds" in out
    assert imread("both.png").shape[1] > 500
    assert Path("compare.png").exists()


def of_seed(seed):
    """Return the parameters of a seed of `run`."""
    return {name: x[seed - 5] for name, x in results.read_params(Path("run")).items()}


@pytest.mark.parametrize("seed", [5, 6])
def test_export_writes_a_state_dict_for_a_torch_module(workdir, capsys, seed):
    assert cli.main(["export", "run", "--seed", str(seed), "--out", "checkpoint.pt"]) == 0
    assert "checkpoint.pt" in capsys.readouterr().out
    state = torch.load("checkpoint.pt", weights_only=True)
    assert type(state) is dict
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    module.load_state_dict(state, strict=True)
    for name, x in of_seed(seed).items():
        assert torch.equal(module.state_dict()[name], x)
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in state.values()), (
        "the file must not contain other seeds"
    )


def test_export_under_a_prefix(workdir):
    words = ["export", "run", "--seed", "6", "--out", "checkpoint.pt", "--prefix", "linear_relu_stack."]
    assert cli.main(words) == 0

    class Page(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear_relu_stack = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))

    module = Page()
    module.load_state_dict(torch.load("checkpoint.pt", weights_only=True), strict=True)
    assert torch.equal(module.linear_relu_stack[0].weight, of_seed(6)["0.weight"])
    loaded = networks.load(networks.mlp(4, (8,), 2), module.state_dict(), "linear_relu_stack.")
    assert all(torch.equal(x, loaded[name]) for name, x in of_seed(6).items())


def test_json_of_export_describes_the_file(workdir, capsys):
    assert cli.main(["export", "run", "--seed", "6", "--out", "a.pt", "--json"]) == 0
    assert strict(capsys.readouterr().out) == {
        "run": "run", "seed": 6, "out": "a.pt", "what": "state_dict", "bytes": Path("a.pt").stat().st_size,
        "read": "torch.load('a.pt', weights_only=True)",
    }  # fmt: skip


def test_an_exported_policy_runs_without_fdqn(workdir, capsys):
    assert cli.main(["export", "run", "--seed", "6", "--out", "policy.pt2"]) == 0
    assert "torch.export.load('policy.pt2').module()" in capsys.readouterr().out
    with zipfile.ZipFile("policy.pt2") as archive:
        assert not any(str(ROOT).encode() in archive.read(name) for name in archive.namelist()), (
            "the archive contains a path of this machine"
        )
    obs = random.normal(random.key(3), (7, 4))
    torch.save(obs, "obs.pt")
    code = (
        "import sys, torch\n"
        "policy = torch.export.load('policy.pt2').module()\n"
        "obs = torch.load('obs.pt', weights_only=True)\n"
        "torch.save([policy(obs), policy(obs[:1]), policy(obs[:0])], 'q.pt')\n"
        "assert not any(name.split('.')[0] == 'fdqn' for name in sys.modules)"
    )
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], env=alone, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    network = networks.mlp(4, (8,), 2)
    for q, given in zip(torch.load("q.pt", weights_only=True), (obs, obs[:1], obs[:0]), strict=True):
        assert not q.requires_grad
        torch.testing.assert_close(q, network.apply(of_seed(6), given))


def test_export_of_a_failed_seed(workdir, capsys):
    summary = json.loads(Path("run/summary.json").read_text())
    Path("run/summary.json").write_text(json.dumps({**summary, "failed_seeds": [6]}))
    assert cli.main(["export", "run", "--seed", "6", "--out", "a.pt"]) == 1
    assert re.search("seed: .*got 6; see failures in summary.json", capsys.readouterr().err)
    assert not Path("a.pt").exists()


@pytest.mark.parametrize("where", ["write", "replace"])
def test_a_failed_export_leaves_no_partial_file(workdir, capsys, monkeypatch, where):
    def full(*given):
        raise OSError(28, "No space left on device")

    before = tree(workdir)
    with monkeypatch.context() as patched:
        patched.setattr(os, where, full)
        code = cli.main(["export", "run", "--seed", "6", "--out", "a.pt"])
    assert code == 1
    assert "out: a.pt: expected to write it, got No space left on device" in capsys.readouterr().err
    assert tree(workdir) == before


@pytest.mark.usefixtures("light_runs")
def test_export_keeps_the_order_of_the_network(workdir):
    wide = shlex.split("--seeds 2 --steps 40 --learning-starts 20 --batch-size 4 --hidden 4 --dueling --env catch")
    assert cli.main(["train", *wide, "--no-compile", "--out", "wide"]) == 0
    assert cli.main(["export", "wide", "--seed", "0", "--out", "wide.pt"]) == 0
    expected = list(networks.dueling_mlp(1, (4,), 2).init(random.key(0)))
    assert expected != sorted(expected)
    assert list(torch.load("wide.pt", weights_only=True)) == list(results.read_params(Path("wide"))) == expected


@pytest.mark.parametrize("failing", [False, True])
def test_export_keeps_other_files_that_end_in_part(workdir, monkeypatch, failing):
    Path("keep.pt.part").write_text("mine")
    if failing:
        monkeypatch.setattr(os, "replace", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert cli.main(["export", "run", "--seed", "6", "--out", "keep.pt"]) == int(failing)
    assert Path("keep.pt.part").read_text() == "mine"
    assert [p.name for p in Path().glob("*.part")] == ["keep.pt.part"]
    assert Path("keep.pt").exists() is not failing


@pytest.mark.parametrize("out", ["a.safetensors", "a", "a.pt3", ".pt"])
def test_export_refuses_other_file_extensions(workdir, capsys, out):
    before = tree(workdir)
    assert cli.main(["export", "run", "--seed", "6", "--out", out]) == 1
    assert "out: expected a name that ends in .pt or .pth for the state_dict, or" in capsys.readouterr().err
    assert tree(workdir) == before


def test_export_accepts_upper_case_extensions(workdir):
    assert cli.main(["export", "run", "--seed", "6", "--out", "X.PT2"]) == 0
    obs = random.normal(random.key(3), (7, 4))
    q = torch.export.load("X.PT2").module()(obs)
    torch.testing.assert_close(q, networks.mlp(4, (8,), 2).apply(of_seed(6), obs))
    assert cli.main(["export", "run", "--seed", "6", "--out", "x.PTH"]) == 0
    assert list(torch.load("x.PTH", weights_only=True)) == list(of_seed(6))


def test_envs_lists_all_environments(capsys):
    assert cli.main(["envs"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^ *{name} ", out, re.MULTILINE) for name in envs.names())
    assert cli.main(["envs", "--json"]) == 0
    assert set(strict(capsys.readouterr().out)) == set(envs.names())


@pytest.mark.usefixtures("light_runs")
def test_warnings_of_fdqn_are_one_line(workdir, capsys, monkeypatch):
    """Check that warnings of `fdqn` are printed as plain lines, and those of other packages as usual."""
    functions = run_folder.functions

    def warning(*given):
        warnings.warn_explicit("CUDA graph: expected to capture 3 steps", UserWarning, compile.__file__, 1)
        warnings.warn_explicit("something else", UserWarning, torch.__file__, 1)
        return functions(*given)

    monkeypatch.setattr(run_folder, "functions", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, category, *rest: print(f"shown: {message}", file=sys.stderr)
        assert cli.main(["train", *TINY, "--out", "warned"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "CUDA graph: expected to capture 3 steps" in lines
    assert "shown: something else" in lines


def test_a_device_mismatch_is_reported_in_one_line(workdir, capsys, monkeypatch):
    """Mix devices in a step, as an environment does that creates constants on the CPU in a CUDA run."""

    def mixed(*given):
        with FakeTensorMode():
            return torch.zeros(3, device="meta") + torch.zeros(3)

    monkeypatch.setattr(run_folder, "functions", mixed)
    assert cli.main(["train", *TINY, "--out", "mixed"]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("fdqn: device: expected every tensor of a step on one device, got several; create constants")


@pytest.mark.usefixtures("light_runs")
@pytest.mark.parametrize("flags", [[], ["--tf32"]])
def test_tf32_is_only_for_cuda(workdir, monkeypatch, flags):
    """Check that TF32 is disabled on the CPU, also for convolutions, for which torch enables it by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    assert cli.main(["train", *TINY, *flags, "--out", "precise"]) == 0
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cudnn.deterministic is True


@pytest.mark.usefixtures("light_runs")
def test_a_seed_without_a_finished_episode_has_not_failed(workdir, capsys):
    few = shlex.split("--seeds 2 --steps 40 --learning-starts 20 --batch-size 4 --hidden 4 --env mountain_car")
    assert cli.main(["train", *few, "--no-compile", "--out", "short"]) == 0
    assert strict(Path("short/summary.json").read_text())["failed_seeds"] == []
    assert "failed" not in capsys.readouterr().out


@pytest.mark.usefixtures("light_runs")
def test_train_on_minatar(workdir):
    few = shlex.split("--seeds 2 --steps 40 --learning-starts 20 --batch-size 4 --env minatar:breakout --no-compile")
    assert cli.main(["train", *few]) == 0
    (run,) = Path("runs").iterdir()
    assert re.fullmatch(r"minatar-breakout-\d+-\d+", run.name)
    assert "0.weight" in results.read_params(run)


@pytest.mark.usefixtures("light_runs")
def test_no_hidden_layers_give_a_linear_network(workdir):
    few = shlex.split("--seeds 2 --steps 40 --learning-starts 20 --batch-size 4 --env catch --no-compile --hidden")
    assert cli.main(["train", *few, "--out", "linear"]) == 0
    assert {name: x.shape for name, x in results.read_params(Path("linear")).items()} == {
        "0.weight": (2, 3, 50), "0.bias": (2, 3),
    }  # fmt: skip


@pytest.mark.usefixtures("light_runs")
def test_the_table_of_many_seeds_is_shortened(workdir, capsys):
    few = shlex.split("--seeds 40 --steps 40 --learning-starts 20 --batch-size 4 --hidden 4 --env catch --no-compile")
    assert cli.main(["train", *few, "--out", "many"]) == 0
    out = capsys.readouterr().out
    assert "and 8 more" in out
    assert len(strict(Path("many/summary.json").read_text())["seeds"]) == 40


# Invalid input: one line that names the argument, no standard output, no files


def spoiled(name, content):
    """Return a function that removes a file of the run or replaces its content."""

    def act():
        if content is None:
            Path("run", name).unlink()
        else:
            Path("run", name).write_bytes(content)

    return act


BAD = [
    # invalid arguments
    ("trian", "'trian'.*'train'"),
    ("evl run", "'evl'.*'eval'"),
    ("resum run", "'resum'"),
    ("--nonsense", "--nonsense"),
    ("--nonsense train", "--nonsense"),
    ("train --evn cartpole", "'--evn'.*'--env'"),
    ("train --learning_rat 1", "--learning_rat.*'--learning-rate'"),
    ("train --lr 1", "'--lr'"),
    ("train extra", "'extra'"),
    ("eval run more", "'more'"),
    ("envs --jsn", "'--jsn'.*'--json'"),
    ("report run --output x.png", "'--output'.*'--out'"),
    ("train --seeds", "--seeds"),
    ("train --seeds two", "--seeds.*'two'"),
    ("train --seeds 1.5", "--seeds.*'1.5'"),
    ("train --gamma high", "--gamma.*'high'"),
    ("train --hidden 8 x", "--hidden.*'x'|'x'"),
    ("train --loss l1", "'l1'.*--loss.*mse.*huber"),
    ("train --evaluate-epsilon 1.5", "evaluate_epsilon: .*got 1.5"),
    ("train --n-step 0", "n_step: .*got 0"),
    ("train --terminal-on-life-loss", "terminal_on_life_loss: .*ale:Breakout.*got cartpole"),
    ("train --preset nature", "--preset nature: .*--env ale:Breakout, got none"),
    ("train --preset=minatar --steps 900", "--preset minatar: .*--env minatar:breakout, got none"),
    ("train --preset atari", "--preset: expected a preset, got 'atari'; "),
    ("train --preset cleanrl-dnq --env cartpole", "--preset: .*got 'cleanrl-dnq'; did you mean 'cleanrl-dqn'"),
    (
        "train --preset zoo-dqn --env catch",
        r"--env: expected an environment of preset 'zoo-dqn' \(cartpole, .*\), got catch",
    ),
    ("train --preset", "--preset"),
    ("train --optimizer lamb", "'lamb'.*--optimizer.*adam.*rmsprop"),
    ("train --algorithm sac", "'sac'.*--algorithm.*dqn.*stream-q"),
    ("train --atoms 51", "flag --atoms: expected algorithm c51 or rainbow, .*got dqn; omit atoms"),
    ("train --algorithm stream-q --n-step 3", "flag --n-step: expected algorithm dqn, .*got stream-q; omit n-step"),
    ("train --algorithm pqn --no-double", "flag --double: expected .*got pqn; omit double"),
    ("train --priority-beta 0.5", "flag --priority-beta: expected prioritized = True with it, got False"),
    ("train --algorithm c51 --v-min 3 --v-max 3", "v_min: expected a number below v_max = 3.0, got 3.0"),
    ("train --device tpu", "--device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
    ("train --no-compile=3", "compile"),
    ("eval", "eval.*[Rr]un folder|run"),
    ("eval run --episodes few", "--episodes.*'few'"),
    # invalid values
    ("train --env cartpol", "'cartpol'.*'cartpole'"),
    ("train --env=", "environment ''"),
    ("train --seeds 0", "seeds: .*got 0"),
    ("train --seeds -3", "seeds: .*got -3"),
    ("train --seed -1", "seed: .*got -1"),
    ("train --seed 4294967296", "seed: .*4294967296"),
    ("train --seed 4294967295 --seeds 2", "seed: .*4294967295"),
    ("train --steps 0", "steps: .*got 0"),
    ("train --steps -5", "steps: .*got -5"),
    ("train --num-envs 0", "num_envs: .*got 0"),
    ("train --steps-per-cycle 0", "steps_per_cycle: .*got 0"),
    ("train --updates-per-cycle 0", "updates_per_cycle: .*got 0"),
    ("train --updates-per-cycle 3", "target_period: expected a multiple of updates_per_cycle = 3, got 20"),
    ("train --batch-size 0", "batch_size: .*got 0"),
    ("train --batch-size 20000", "batch_size: expected at most capacity = 10000, got 20000"),
    ("train --capacity 0 --batch-size 8", "capacity: .*got 0"),
    ("train --num-envs 300 --capacity 200", "num_envs: expected at most capacity = 200, got 300"),
    ("train --learning-starts -1", "learning_starts: .*got -1"),
    ("train --target-period 0", "target_period: .*got 0"),
    ("train --target-period -20", "target_period: .*got -20"),
    ("train --tau 0", "tau: .*got 0"),
    ("train --tau 1.1", "tau: .*got 1.1"),
    ("train --tau nan", "tau: .*got nan"),
    ("train --learning-rate -0.1", "learning_rate: .*got -0.1"),
    ("train --learning-rate nan", "learning_rate: .*got nan"),
    ("train --learning-rate inf", "learning_rate: .*got inf"),
    ("train --gamma 1.01", "gamma: .*got 1.01"),
    ("train --gamma -0.1", "gamma: .*got -0.1"),
    ("train --gamma nan", "gamma: .*got nan"),
    ("train --max-grad-norm -1", "max_grad_norm: .*got -1"),
    ("train --max-grad-norm nan", "max_grad_norm: .*got nan"),
    ("train --epsilon-start 1.5", "epsilon_start: .*got 1.5"),
    ("train --epsilon-end -0.5", "epsilon_end: .*got -0.5"),
    ("train --epsilon-fraction 2", "epsilon_fraction: .*got 2"),
    ("train --epsilon-fraction nan", "epsilon_fraction: .*got nan"),
    ("train --hidden 0", "hidden.*got .*0"),
    ("train --hidden 8 -4", "hidden.*-4|'-4'"),
    ("train --report-every 0", "report_every: .*got 0"),
    ("train --evaluate-every -1", "evaluate_every: .*got -1"),
    ("train --checkpoint-every -1", "checkpoint_every: .*got -1"),
    ("train --keep-checkpoints 0", "keep_checkpoints: .*got 0"),
    ("train --on-nan ignore", "--on-nan"),
    ("resume nowhere", "nowhere"),
    ("resume file", "file"),
    ("resume run --steps 1", "steps: expected at least"),
    ("resume run --step", "--step"),
    ("resume", "fdqn resume: PATH"),
    ("train --device cuda", "device: .*got cuda"),
    ("train --device cuda:1", "device: .*got cuda:1"),
    # too much memory
    ("train --steps 1000000000000000 --capacity 1000000000000000", "capacity|memory"),
    # paths
    ("train --out run", "out: .*got 'run'"),
    ("train --out file", "out: .*got 'file'"),
    ("train --out .", r"out: .*got '\.'"),
    ("train --out=", "out: "),
    ("train --out file/run", "out: .*file"),
    ("train --out run/config.json/deeper", "out: .*config.json"),
    ("train --out " + "x" * 300, "out: "),
    ("eval nowhere", "nowhere"),
    ("eval file", "file"),
    ("eval .", "config.json"),
    ("eval run --episodes 0", "episodes: .*got 0"),
    ("eval run --env cartpol", "'cartpol'.*'cartpole'"),
    ("eval run --env catch", "env: .*catch"),
    ("eval run --env acrobot", "env: .*acrobot"),
    ("eval run --video", "--video"),
    ("eval run --video x.mp4", r"video: expected a name that ends in \.gif, got 'x\.mp4'"),
    ("eval run --video=", "video: .*got"),
    ("eval run --video file/x.gif", "video: .*create file first"),
    ("eval run --video run --episodes 1", "video: .*got 'run'"),
    ("eval run --vidoe x.gif", "'--vidoe'.*'--video'"),
    ("eval run --env gym:Nonsense-v7", "env: .*Nonsense-v7"),
    ("eval run --env gym:", "env: "),
    ("eval run --env gym:nomodule:Thing-v0", "env: .*nomodule"),
    ("eval run --env gym:Pendulum-v1", "env: expected discrete actions.*Pendulum-v1"),
    ("eval run --env gym:Acrobot-v1", "env: .*[Aa]crobot|env: .*6"),
    ("eval run --env gym:FrozenLake-v1", "env: "),
    ("eval run --env ale:Pong", "env: expected observations .* ale:Pong"),
    ("report", "run"),
    ("report nowhere", "nowhere"),
    ("report run nowhere", "nowhere"),
    ("report file", "file"),
    ("report run --out missing/x.png", "out: .*missing"),
    ("report run --out .", "out: "),
    ("report run --out file/x.png", "out: .*file"),
    ("compare", "arms: expected at least two, got none"),
    ("compare run", "arms: expected at least two, got 1"),
    ("compare run nowhere", "nowhere"),
    ("compare run file", "file: expected a column return"),
    ("compare run run", "arms: .*got run twice"),
    ("compare run file --measur greedy", "'--measur'.*'--measure'"),
    ("compare run file --measure best", "'best'.*--measure.*greedy"),
    ("export", "[Rr]un|run"),
    ("export run --out a.pt", "--seed"),
    ("export run --seed 5", "--out"),
    ("export run --seed x --out a.pt", "--seed.*'x'"),
    ("export run --seed 5 --out a.pt --prefx s.", "'--prefx'.*'--prefix'"),
    ("export run --seed 3 --out a.pt", "seed: expected a trained seed, 5 to 6, got 3"),
    ("export run --seed 7 --out a.pt", "seed: .*got 7"),
    ("export run --seed -1 --out a.pt", "seed: .*got -1"),
    ("export run --seed 5 --out file", "out: expected a file that does not exist yet, got 'file'"),
    ("export run --seed 5 --out run", "out: .*got 'run'"),
    ("export run --seed 5 --out=", "out: "),
    ("export run --seed 5 --out missing/a.pt", "out: .*got 'missing/a.pt'; create missing first"),
    ("export run --seed 5 --out file/a.pt", "out: .*file"),
    ("export run --seed 5 --out " + "x" * 300, "out: |too long"),
    ("export run --seed 5 --out a.pt --prefix stack", r"prefix: .*ends in a dot, got 'stack'; use 'stack\.'"),
    ("export run --seed 5 --out a.pt2 --prefix stack.", "prefix: expected none .*'stack.'"),
    ("export nowhere --seed 5 --out a.pt", "nowhere"),
    ("export file --seed 5 --out a.pt", "file"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line[:60] for line, _ in BAD])
def test_invalid_input_is_refused_in_one_line(workdir, capsys, monkeypatch, line, message):
    if line.startswith("train --device cuda"):
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = tree(workdir)
    words = line.split(" ")
    # Input that is not refused must not start a long training.
    if words[0] == "train" and len(words) > 1:
        monkeypatch.setattr(run_folder, "functions", lambda *given: pytest.fail(f"not refused: {line}"))
    code = cli.main(words)
    out, err = capsys.readouterr()
    assert code in (1, 2)
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("fdqn: ")
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert "Error:" not in err, "names of exceptions are not shown to users"
    assert len(err) <= LONGEST + len(line), err
    assert tree(workdir) == before, "no file is created"


SPOILED = [
    (spoiled("config.json", b"{"), "config.json"),
    (spoiled("summary.json", None), "summary.json"),
    (spoiled("summary.json", b"{}"), "summary.json"),
    (spoiled("summary.json", b"[]"), "summary.json"),
    (spoiled("metrics.csv", b"a,b\n1,2\n"), "metrics.csv"),
]


@pytest.mark.parametrize("command", ["eval run", "report run", "export run --seed 5 --out a.pt"])
@pytest.mark.parametrize(("act", "file"), SPOILED)
def test_a_damaged_run_is_refused_with_the_file_name(workdir, capsys, command, act, file):
    act()
    assert cli.main(command.split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert file in err


@pytest.mark.parametrize("command", ["eval run", "export run --seed 5 --out a.pt"])
@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_damaged_parameters_are_refused_in_one_line(workdir, capsys, command, content):
    spoiled("params.safetensors", content)()
    assert cli.main(command.split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "params.safetensors" in err


def test_parameters_of_another_run_are_refused_in_one_line(workdir, capsys):
    config = json.loads(Path("run/config.json").read_text())
    config["settings"]["hidden"] = [9]
    Path("run/config.json").write_text(json.dumps(config))
    assert cli.main(["eval", "run"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "params.safetensors" in err


def test_errors_list_only_flags(workdir, capsys):
    cli.main(["train", "--zzzzzz", "1"])
    train = capsys.readouterr().err
    cli.main(["eval", "run", "--zzzzzz", "1"])
    assert "--settings" not in train
    assert "--run" not in capsys.readouterr().err


# The command in a process


def test_help_is_quick_and_does_not_import_torch():
    code = (
        "import sys, fdqn.cli\n"
        "code = fdqn.cli.main(sys.argv[1:])\n"
        "heavy = {'torch', 'numpy', 'scipy', 'matplotlib', 'gymnasium'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    for words in ([], ["--help"], ["train", "--help"]):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=environment(), text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert time.perf_counter() - start < 1.5
        assert done.stderr == ""
    assert all(flag in done.stdout for flag in ("--seeds", "--epsilon-fraction", "--no-compile", "--out"))


@pytest.mark.parametrize("command", list(parse.COMMANDS))
def test_every_command_has_help(capsys, command):
    assert cli.main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"fdqn {command}" in out
    assert "--json" in out
    assert err == ""


def test_help_can_be_piped_to_head():
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m fdqn train --help | head -1"],
        env=environment(), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


def test_a_closed_pipe_is_not_an_error():
    reader, writer = os.pipe()
    os.close(reader)
    command, given = fdqn("envs", "--json")
    done = subprocess.run(command, **given, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert done.stderr == ""


def interrupted(tmp_path):
    """Interrupt training after the second report; return the exit code, both outputs and the folder."""
    sizes = "--seeds 2 --learning-starts 100 --report-every 100 --batch-size 8 --hidden 8 --evaluate-episodes 2"
    words = shlex.split(f"{sizes} --no-compile")
    command, given = fdqn("train", *words, "--steps", "100000000", "--json", "--out", str(tmp_path / "run"))
    process = subprocess.Popen(command, **given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        lines = []
        while not lines or not lines[-1].startswith("step 200 "):
            lines.append(process.stderr.readline())
            assert lines[-1], "".join(lines)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, out, "".join(lines) + err, tmp_path / "run"


def assert_whole_rows(path):
    text = (path / "metrics.csv").read_text()
    assert text.endswith("\n")
    table = list(csv.reader(text.splitlines()))
    assert all(len(row) == 12 for row in table)
    assert len(table) % 2 == 1, "a row for each of the two seeds, or none"
    assert len(table) >= 5
    return table


def test_ctrl_c_writes_complete_files_and_a_message(tmp_path, capsys):
    code, out, err, path = interrupted(tmp_path)
    assert code == 130
    assert "Traceback" not in err
    assert {p.name for p in path.iterdir()} == FILES
    table = assert_whole_rows(path)
    summary = strict((path / "summary.json").read_text())
    assert summary["steps"] == int(table[-1][0]) < 100_000_000
    assert summary["seeds"] == [0, 1]
    assert results.read_params(path)["0.weight"].shape == (2, 8, 4)
    assert f"stopped at {summary['steps']:,} of 100,000,000 steps" in err
    assert str(path) in err
    assert strict(out) == summary
    assert cli.main(["eval", str(path), "--json"]) == 0
    assert strict(capsys.readouterr().out) == summary["final_return"]


@pytest.mark.usefixtures("light_runs")
def test_ctrl_c_during_evaluation_in_gymnasium(tmp_path, monkeypatch, capsys):
    """Check that an interrupt after training, during evaluation, ends the command."""
    from fdqn.training import evaluate

    def slow(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return original(*args, **kwargs)

    original = evaluate.greedy_on_host
    monkeypatch.setattr(evaluate, "greedy_on_host", slow)
    code = cli.main(["train", *TINY, "--out", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert code == 130
    assert "Traceback" not in err


@pytest.mark.usefixtures("light_runs")
def test_an_interrupted_run_in_a_host_environment_is_not_evaluated(tmp_path, monkeypatch, capsys):
    """Check that an interrupted run skips the final evaluation and prints the commands to evaluate and to continue."""
    from fdqn.experiment import history
    from fdqn.training import evaluate

    def stopping(*given):
        for i, report in enumerate(original(*given)):
            if i == 0:
                os.kill(os.getpid(), signal.SIGINT)
            yield report

    original = history.record
    monkeypatch.setattr(history, "record", stopping)
    monkeypatch.setattr(evaluate, "greedy_on_host", lambda *given, **more: pytest.fail("evaluated after an interrupt"))
    path = tmp_path / "run"
    words = ["--env", "gym:CartPole-v1", "--steps", "300", "--report-every", "40", "--learning-starts", "60"]
    assert cli.main(["train", *words, "--seeds", "2", "--hidden", "8", "--no-compile", "--out", str(path)]) == 130
    err = capsys.readouterr().err
    assert f"evaluation skipped; run it with: fdqn eval {path}" in err
    assert f"; continue with: fdqn resume {path}" in err
    assert strict((path / "summary.json").read_text())["final_return"]["iqm"] is None
    monkeypatch.undo()
    assert cli.main(["eval", str(path), "--episodes", "1", "--json"]) == 0
    assert strict(capsys.readouterr().out)["iqm"] > 0


def test_ctrl_c_twice_stops_at_once(tmp_path, monkeypatch):
    words = shlex.split("train --seeds 2 --steps 100000000 --report-every 100 --hidden 8 --no-compile --out")
    original = run_folder.functions

    def slow(*given):
        """Make a long training iteration: the first Ctrl-C waits for its end, the second does not."""
        functions = original(*given)

        def collect(*state):
            print("sleeping", file=sys.stderr, flush=True)
            for _ in range(100):
                time.sleep(0.1)
            return functions.collect(*state)

        return functions._replace(collect=collect)

    monkeypatch.setattr(run_folder, "functions", slow)
    reader, writer = os.pipe()
    pid = forks.start([*words, str(tmp_path / "run")], stdout=writer, stderr=writer)
    os.close(writer)
    with open(reader) as stderr:
        try:
            while "sleeping" not in (line := stderr.readline()):
                assert line
            os.kill(pid, signal.SIGINT)
            assert "Ctrl-C again" in stderr.readline()
            start = time.perf_counter()
            os.kill(pid, signal.SIGINT)
            err = stderr.read()
        finally:
            os.kill(pid, signal.SIGKILL)
            code = forks.exit_code(pid)
    assert time.perf_counter() - start < 5
    assert code == 130
    assert "Traceback" not in err
    assert "interrupted" in err
    assert not list((tmp_path / "run").glob("*.part"))
    assert len((tmp_path / "run/metrics.csv").read_text().splitlines()) in (0, 1)


def on_a_terminal(words, columns, **more):
    """Return the output of the command on a terminal of the given width, in a process that has loaded torch already."""
    pid, master = pty.fork()
    if not pid:
        forks.main(words, COLUMNS=str(columns), LINES="40", TERM="xterm-256color", **more)
    text = b""
    with contextlib.suppress(OSError):  # raised at the end of the output
        while select.select([master], [], [], 60)[0] and (read := os.read(master, 65536)):
            text += read
    os.close(master)
    assert forks.exit_code(pid) == 0, text.decode()
    return text.decode()


def test_numbers_are_not_truncated_on_a_narrow_terminal(trained):
    summary = strict((trained[0] / "summary.json").read_text())
    text = on_a_terminal(["report", str(trained[0])], 40, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text), "colours despite NO_COLOR"
    words = set(re.findall(r"-?\d+\.\d+", re.sub(r"\x1b\[[0-9;]*m", "", text)))
    for name in ("final_return", "train_return", "gymnasium_return"):
        assert {f"{x:.1f}" for x in summary[name]["per_seed"]} <= words, text
        assert f"{summary[name]['iqm']:.1f}" in words, text
    assert not re.search(r"\d…", text), "a number was truncated"


def test_progress_line_on_a_terminal(tmp_path):
    text = on_a_terminal(["train", *TINY, "--env", "catch", "--out", str(tmp_path / "run")], 100)
    assert "100%" in text
    assert "return" in text
    assert "seed-updates/s" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("words", ["eval", "eval --env gym:CartPole-v1"])
def test_episodes_are_counted_on_a_terminal(trained, words):
    command, *rest = words.split()
    text = on_a_terminal([command, str(trained[0]), *rest, "--episodes", "30"], 100)
    assert re.search(r"\d+/60", text), "30 episodes of each of 2 seeds"
    assert re.search(r"episodes, step [\d,]+ of at most 500, at most \d+:\d\d left", text)
    assert "Traceback" not in text


@pytest.mark.usefixtures("light_runs")
def test_denormals_are_flushed_and_the_flag_is_recorded(tmp_path, capsys):
    assert cli.main(["train", *TINY, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["engine"]["flush_denormal"] is True
    assert torch.tensor(1e-40) * 1 == 0
    torch.set_flush_denormal(False)
    assert torch.tensor(1e-40) * 1 != 0, "denormals are not flushed without the flag"


@pytest.mark.usefixtures("light_runs")
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "out of memory; lower --seeds"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory; lower --seeds"),
    ],
)
def test_out_of_memory_is_reported_in_one_line(monkeypatch, capsys, tmp_path, error, sentence):
    """Raise the error during training: expect one line, an exit code and readable files."""
    from fdqn.experiment import run_folder

    original = run_folder.functions

    def failing(*given):
        functions, calls = original(*given), []

        def cycle(state, noise):
            calls.append(1)
            if len(calls) > 3:
                raise error
            return functions.cycle(state, noise)

        return functions._replace(cycle=cycle)

    monkeypatch.setattr(run_folder, "functions", failing)
    sizes = "--seeds 2 --steps 3000 --learning-starts 100 --report-every 100 --hidden 8 --no-compile"
    assert cli.main(["train", *shlex.split(sizes), "--out", str(tmp_path / "run")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"fdqn: {sentence}" in err
    assert "Traceback" not in err
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len({row.count(",") for row in rows}) == 1
    assert len(rows) > 2
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoints", "config.json", "metrics.csv"]


def test_other_errors_keep_their_traceback(monkeypatch):
    def broken(*args):
        raise RuntimeError("a bug")

    monkeypatch.setattr(commands, "_run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["envs"])


@pytest.mark.parametrize(("interrupted", "error"), [(True, KeyboardInterrupt), (False, RuntimeError)])
def test_a_compiler_error_after_ctrl_c_is_an_interrupt(interrupted, error):
    from rich.console import Console

    def compiling():
        say = Console(stderr=True).print
        with process.stopping(say):
            if interrupted:
                os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("C++ compile error")

    with pytest.raises(error):
        compiling()


def test_system_exit_is_reported_in_one_line(monkeypatch, capsys):
    def leaves(*given):
        raise SystemExit("no licence")

    monkeypatch.setattr(commands, "_run", leaves)
    assert cli.main(["envs"]) == 1
    assert capsys.readouterr().err == "fdqn: no licence\n"
