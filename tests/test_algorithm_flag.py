"""Train, evaluate, resume and export a small run of every algorithm through the command."""

import json
import shlex
from typing import get_args

import pytest
import torch

import fdqn
from fdqn import cli
from fdqn.experiment.settings import AlgorithmName

SMALL = "--no-compile --seeds 2 --steps 60 --hidden 8 --report-every 20 --evaluate-episodes 1 --evaluate-steps 10"
REPLAY = "--learning-starts 20 --batch-size 4 --num-envs 4"
FLAGS = {
    "dqn": f"{REPLAY} --dueling --noisy --prioritized --n-step 2 --learning-rate-schedule cosine",
    "munchausen": f"{REPLAY} --dueling --learning-rate-schedule exponential --learning-rate-decay-every 5",
    "c51": f"{REPLAY} --atoms 5 --no-double --optimizer radam --adam-eps 1e-3",
    "qr-dqn": f"{REPLAY} --quantiles 5 --noisy --orthogonal",
    "iqn": f"{REPLAY} --fractions 4 --cosines 4 --dueling --prioritized",
    "rainbow": f"{REPLAY} --atoms 5 --no-dueling",
    "pqn": "--num-envs 2 --steps-per-cycle 5 --updates-per-cycle 4 --batch-size 5",
    "stream-q": "--q-lambda 0.5",
}


@pytest.mark.usefixtures("light_runs")
@pytest.mark.parametrize("algorithm", get_args(AlgorithmName))
def test_every_algorithm_runs_from_start_to_export(tmp_path, capsys, algorithm):
    out = tmp_path / "run"
    words = shlex.split(f"train --algorithm {algorithm} {SMALL} {FLAGS[algorithm]} --json")
    assert cli.main([*words, "--out", str(out)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["failed_seeds"] == []
    run = fdqn.Run.load(out)
    assert run.settings.algorithm == algorithm
    assert all(bool(x.isfinite().all()) for x in run.params.values())

    assert cli.main(["eval", str(out), "--episodes", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["per_seed"] == summary["final_return"]["per_seed"]

    assert cli.main(["export", str(out), "--seed", "1", "--out", str(tmp_path / "policy.pt2"), "--json"]) == 0
    capsys.readouterr()
    obs = torch.linspace(-1, 1, 12).reshape(3, 4)
    exported = torch.export.load(tmp_path / "policy.pt2").module()(obs)
    expected = run.network.apply({name: x[1] for name, x in run.params.items()}, obs)
    torch.testing.assert_close(exported, expected)

    assert cli.main(["resume", str(out), "--steps", "80", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["steps"] == 80
    # The replay buffer, if there is one, keeps its capacity of 60 rows.
    kept = "the capacity of the replay buffer stays at 60 rows" in printed.err
    assert kept == ("replay buffer" in printed.err) == (algorithm not in ("pqn", "stream-q"))
