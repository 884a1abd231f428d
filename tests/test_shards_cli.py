"""Sharded runs from the command line and from Python: output, shards that launchers assign, torchrun."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_shards import RATES, SMALL, law_equal, quick, spoil  # noqa: F401

import fdqn
from fdqn import cli
from fdqn.cli import parse
from fdqn.experiment import claims, ray_shards, session, settings, shard_folders, shard_plan, sweep, sweep_plan
from fdqn.experiment.sweep_results import Results

PAGE = Path(fdqn.__file__).parent / "docs" / "machines.md"
README = Path(fdqn.__file__).parents[1] / "README.md"


def flags(out, **given):
    """Return the flags of a run with the settings `SMALL`."""
    chosen = {**SMALL, **given, "out": out}
    line = [x for name, x in chosen.items() if name != "compile" for x in (f"--{name.replace('_', '-')}", x)]
    return [*(str(x[0] if isinstance(x, tuple) else x) for x in line), "--no-compile"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return session.train(settings.make({**SMALL, "out": str(tmp_path_factory.mktemp("whole") / "run")})).path


def test_train_plans_trains_and_merges_all_shards(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "")
    assert cli.main(["train", *flags("run"), "--shards", "2"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == (
        "2 shards of 2 learners (shard 0: seeds 5 to 6) in run; to train them in more processes, run this command "
        "with --out run in each; fdqn resume run trains those that are left"
    )
    assert "shard 1 of 2: seeds 7 to 8" in err
    assert "run folder run, picture run/curve.png" in out
    law_equal(tmp_path / "run", whole)
    assert cli.main(["report", "run", "--json"]) == 0
    assert [x["seeds"] for x in json.loads(capsys.readouterr().out)] == [[5, 6, 7, 8]]


def test_commands_of_the_readme(whole, tmp_path, monkeypatch):
    """Run the first and the last command with smaller sizes, and parse the others, which slow tests run."""
    section = README.read_text().split("## More than one machine")[1].split("```")[1]
    train, torchrun, ray, merge = (line.split() for line in section.strip().splitlines()[1:])
    assert " ".join(torchrun) in PAGE.read_text()
    assert torchrun[torchrun.index("fdqn") :] == train == ray[: len(train)]
    parsed = parse.parse(ray[1:])
    assert (parsed.shards.count, parsed.shards.ray, parsed.shards.cpus) == (16, "local", 1.0)
    monkeypatch.chdir(tmp_path)
    assert train[-2:] == ["--out", merge[-1]]
    assert cli.main([train[1], *flags(merge[-1]), "--shards", "2"]) == 0
    (tmp_path / merge[-1] / "summary.json").unlink()
    assert cli.main(merge[1:]) == 0
    assert json.loads((tmp_path / merge[-1] / "summary.json").read_text())["failed_seeds"] == []
    law_equal(tmp_path / merge[-1], whole)


def test_launchers_assign_shards_and_the_last_process_merges(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["train", *flags("run"), "--shards", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == "RANK=1: shard 1 of 2"
    assert (
        "1 of 2 shards have not finished: 0; other processes work on 0 of them; continue with: fdqn resume run" in err
    )
    assert json.loads(out) == {"run": "run", "merged": False}
    assert cli.main(["merge", "run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "shard 0 (seeds 5 to 6) is left out: expected the run run/shards/00000, got none"
    assert json.loads(out)["failed_seeds"] == [5, 6]
    assert cli.main(["eval", "run", "--seed", "7", "--json"]) == 0
    assert "shard 0 (seeds 5 to 6) is left out: expected the run" in capsys.readouterr().err
    assert cli.main(["train", *flags("run"), "--shards", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": "run", "merged": False}, "not the results of the merge before"
    assert cli.main(["train", *flags("run"), "--shards", "2", "--shard", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed_seeds"] == []
    law_equal(tmp_path / "run", whole)
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert cli.main(["train", *flags("x")[:-3], "--no-compile", "--shards", "2"]) == 1
    assert "fdqn: out: expected the folder that all processes share, such as --out runs/a, got none" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()


def test_python_continues_runs(whole, tmp_path):
    path = shard_plan.create(shard_plan.plan(settings.make({**SMALL, "out": str(tmp_path / "run")}), 2))
    run = fdqn.resume(path, progress=False)
    assert run.summary["seeds"] == [5, 6, 7, 8]
    law_equal(path, whole)
    with pytest.raises(ValueError, match="steps: expected none for a sharded run"):
        fdqn.resume(path, steps=1_000, progress=False)


@pytest.mark.slow
def test_python_continues_sweeps(tmp_path):
    given = {**SMALL, "seeds": 1, "out": str(tmp_path / "sweep")}
    path = shard_plan.create(shard_plan.plan_sweep(sweep_plan.plan(given, RATES), 3))
    found = fdqn.resume_sweep(path, progress=False)
    assert isinstance(found, Results)
    assert len(found.ranking()) == 3
    assert sweep.resume(path) == path


def test_an_interrupt_leaves_all_shards_resumable(whole, tmp_path, monkeypatch, capsys):
    """Send SIGINT when the second shard starts to train."""
    monkeypatch.chdir(tmp_path)
    check = claims.Claim.check

    def interrupted(claim):
        check(claim)
        if claim.folder.name.startswith("00001") and not (tmp_path / "sent").exists():
            (tmp_path / "sent").touch()
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(claims.Claim, "check", interrupted)
    assert cli.main(["train", *flags("run"), "--shards", "2"]) == 130
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == (
        "stopped at 62 of 120 steps; the files in run are complete; continue with: fdqn resume run"
    )
    assert not claims.is_held(shard_folders.claim_folder(tmp_path / "run", 1))
    assert cli.main(["resume", "run"]) == 0
    law_equal(tmp_path / "run", whole)


def test_the_command_trains_shards_with_ray(tmp_path, monkeypatch, capsys):
    given = []
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}]
    fake = SimpleNamespace(is_initialized=lambda: True, nodes=lambda: nodes)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(ray_shards, "train", lambda *args, **more: given.append((*args[1:4], more["env"])))
    monkeypatch.chdir(tmp_path)
    line = ["--shards", "4", "--ray", "10.0.0.1:6379", "--shard-cpus", "2", "--shard-gpus", "0.25", "--json"]
    assert cli.main(["train", *flags("run"), *line]) == 0
    assert given == [("10.0.0.1:6379", 2.0, 0.25, "catch")]
    assert json.loads(capsys.readouterr().out) == {"run": "run", "merged": False}
    assert cli.main(["train", *flags("other"), "--shards", "4", "--ray", "auto", "--shard-cpus", "5"]) == 1
    assert "shard_cpus: expected at most 4, the most that a node of the cluster has, got 5" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["train", *flags("other"), "--shards", "4", "--ray", "local"]) == 1
    _, err = capsys.readouterr()
    assert err == "fdqn: ray: expected the package ray, got none; pip install 'fdqn[ray]'\n"
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_torchrun_trains_the_shards_of_two_processes(whole, tmp_path):
    """Run the command of `machines.md` with smaller sizes."""
    (command,) = re.findall(r"^torchrun --nproc-per-node 2 .*$", PAGE.read_text(), re.M)
    launcher, ours = command.split(" -m fdqn train ")
    own = dict(zip(*[iter(shlex.split(ours))] * 2, strict=True))
    assert own.keys() == {"--env", "--seeds", "--shards", "--out"}
    line = [*launcher.split()[1:], "-m", "fdqn", "train", *flags(own["--out"]), "--shards", "4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(fdqn.__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *line],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "RANK=0: shards 0, 2 of 4" in ran.stderr
    assert "RANK=1: shards 1, 3 of 4" in ran.stderr
    law_equal(tmp_path / own["--out"], whole)
