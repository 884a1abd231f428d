"""Eval, export and resume of a run at other moments than its end, of some of its seeds, on a device of choice."""

import dataclasses
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from test_checkpoint import reseal

from fdqn import cli, training, tree
from fdqn.experiment import assemble, export, history, memory, results, run_folder
from fdqn.experiment.settings import Settings
from fdqn.report import video
from fdqn.storage import checkpoint
from fdqn.testing import asserts
from fdqn.training import evaluate

SIZES = shlex.split(
    "--seeds 3 --seed 5 --steps 400 --learning-starts 100 --report-every 100 --checkpoint-every 100 --batch-size 8 "
    "--hidden 8 --keep-checkpoints 9 --no-compile --num-envs 2"
)
STEPS = [100, 200, 300, 400]
pytestmark = pytest.mark.usefixtures("light_runs")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, and the parameters of its seeds at every checkpoint, as its reports had them."""
    path, params = tmp_path_factory.mktemp("moments") / "run", {}

    def keeping(*given):
        for report in original(*given):
            params[report.step] = tree.clone(report.state.learner.params)
            yield report

    original = history.record
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(history, "record", keeping)
        patched.setattr(results, "picture", lambda *given: None)
        assert cli.main(["train", *SIZES, "--out", str(path)]) == 0
    return path, params


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """A copy of the run, in the folder that is stood in."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(made[0], tmp_path / "run")


def score(step, value):
    """Let a checkpoint say another training return."""
    place = Path("run/checkpoints") / str(step)
    reseal(place, record=checkpoint.record(place) | {"score": value})


def printed(capsys, *words):
    capsys.readouterr()
    assert cli.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_each_checkpoint_holds_its_own_parameters(made, run):
    for step in STEPS:
        trained = results.trained(run, str(step))
        assert trained.step == step
        asserts.assert_trees_equal(trained.params, made[1][step])
        assert list(trained.params) == list(made[1][step]), "in the network's order"
    last = results.trained(run)
    asserts.assert_trees_equal(last.params, made[1][400])
    assert last.step == 400
    assert not tree.equal(made[1][100], made[1][400]), "they differ"


def test_the_state_without_memory_has_every_leaf(run):
    """A read follows our own layout, never that of the file."""
    settings = results.plan(run)[0]
    program = assemble.program(settings)
    lanes = memory.fake_state(program, settings.seeds)
    real = training.init(program, assemble.hyper(settings), assemble.keys(settings))
    assert tree.paths(lanes) == tree.paths(real)
    assert [(x.shape, x.dtype) for x in tree.leaves(lanes)] == [(x.shape, x.dtype) for x in tree.leaves(real)]


def test_a_part_of_a_checkpoint(tmp_path):
    state = {"a": torch.arange(3.0), "b": [torch.arange(4), torch.ones(2, 2).bool()], "c": torch.zeros(0)}
    place = checkpoint.save(tmp_path, "1", state, {})
    like = tree.map(torch.zeros_like, state)
    part = checkpoint.load_part(place, like, (like["b"][1], like["a"], like["c"]))
    asserts.assert_trees_equal(part, (state["b"][1], state["a"], state["c"]))
    assert not like["a"].any(), "nothing is written to what it is like"
    for position in (0, 200, -1):
        content = bytearray((place / "state.safetensors").read_bytes())
        content[position] ^= 1
        (tmp_path / "spoiled").mkdir(exist_ok=True)
        shutil.copy(place / "manifest.json", tmp_path / "spoiled")
        (tmp_path / "spoiled/state.safetensors").write_bytes(content)
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load_part(tmp_path / "spoiled", like, like["a"])


def test_best_is_that_of_the_best_training_return(made, run, capsys):
    for step in STEPS:
        score(step, 1.0)
    score(300, 2.0)
    asserts.assert_trees_equal(results.trained(run, "best").params, made[1][300])
    assert history.best_step(run) == "300"
    best = printed(capsys, "eval", "run", "--checkpoint", "best")
    assert best == printed(capsys, "eval", "run", "--checkpoint", "300")
    assert best["checkpoint"] == 300
    score(300, None)
    assert results.trained(run, "best").step != 300


def test_eval_plays_a_checkpoint(made, run, capsys):
    record = printed(capsys, "eval", "run", "--checkpoint", "100", "--episodes", "3")
    settings = results.plan(run)[0]
    env, network = assemble.program(settings).env, assemble.network(settings)
    returns = evaluate.greedy_on_device(env, network, made[1][100], assemble.keys(settings), 3).returns
    assert record["per_seed"] == returns.mean(1).tolist()
    last = printed(capsys, "eval", "run", "--checkpoint", "last")
    assert last == {**printed(capsys, "eval", "run"), "checkpoint": 400}
    assert cli.main(["eval", "run", "--checkpoint", "100", "--episodes", "3"]) == 0
    assert "3 greedy episodes per seed, checkpoint of step 100" in " ".join(capsys.readouterr().out.split())


def test_a_video_is_of_the_checkpoint(made, run, monkeypatch):
    drawn = []
    monkeypatch.setattr(video, "draw", lambda *given, **how: drawn.append(given) or pytest.skip("drawn"))
    with pytest.raises(pytest.skip.Exception):
        cli.main(["eval", "run", "--checkpoint", "200", "--seed", "7", "5", "--episodes", "2", "--video", "a.gif"])
    _, _, _, params, _, seeds, returns, *_ = drawn[0]
    asserts.assert_trees_equal(params, tree.index(made[1][200], [2, 0]))
    assert seeds == [7, 5]
    assert returns.shape == (2, 2)


@pytest.mark.parametrize("words", [["--checkpoint", "200"], ["--checkpoint", "best"], ["--checkpoint", "last"], []])
def test_export_writes_a_checkpoint(made, run, capsys, words):
    for step in STEPS:
        score(step, float(step == 200))
    said = printed(capsys, "export", "run", "--seed", "6", "--out", "a.pt", *words)
    step = 200 if {"200", "best"} & {*words} else 400
    assert said.get("checkpoint") == (step if words else None)
    asserts.assert_trees_equal(torch.load("a.pt", weights_only=True), tree.index(made[1][step], 1))
    written = export.write(results.read(run), 6, Path("b.pt"), checkpoint=words[1] if words else None)
    assert written["bytes"] == said["bytes"]
    assert Path("b.pt").read_bytes() != b""


def test_a_run_that_died_has_its_checkpoints(made, run, capsys):
    """Without a summary, as a process leaves it that was killed."""
    for name in ("summary.json", "params.safetensors", "curve.png"):
        Path("run", name).unlink()
    assert printed(capsys, "eval", "run", "--checkpoint", "300", "--episodes", "1")["checkpoint"] == 300
    assert printed(capsys, "export", "run", "--checkpoint", "best", "--seed", "5", "--out", "a.pt")["seed"] == 5
    assert cli.main(["eval", "run"]) == 1
    assert "without summary.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "eval run --checkpoint 150",
            "best, last or the step of a checkpoint, got '150'; run/checkpoints has steps 100, 200, 300",
        ),
        ("export run --seed 5 --out a.pt --checkpoint 0", "checkpoint: expected best, last or .* got '0'"),
        ("eval run --checkpoint -100", "checkpoint: expected best.*got '-100'|--checkpoint"),
        ("eval run --checkpoint 0100", "got '0100'"),
        ("eval run --checkpoint ../run/checkpoints/100", "got '../run/checkpoints/100'"),
        ("eval run --checkpoint=", "got ''"),
        ("eval run --checkpoint Best", "got 'Best'"),
        ("eval nowhere --checkpoint best", "got nowhere without config.json"),
        ("eval run --seed 4", "seed: expected trained seeds, 5 to 7, got 4"),
        ("eval run --seed 5 8", "seed: expected trained seeds, .* got 8"),
        ("eval run --seed 5 6 5", "seed: expected distinct seeds, got 5 2 times; give it once"),
        ("eval run --seed five", "--seed.*'five'"),
        ("eval run --device tpu", "'tpu'"),
        ("resume run --device tpu", "'tpu'"),
    ],
)
def test_what_is_not_there_is_one_line(run, capsys, words, says):
    before = sorted(os.walk("."))
    assert cli.main(words.split(" ")) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert len(err) < 300

    assert re.search(says, err), err
    assert sorted(os.walk(".")) == before


def test_checkpoints_that_were_not_kept(run, capsys):
    shutil.rmtree("run/checkpoints/200")
    assert cli.main(["eval", "run", "--checkpoint", "200"]) == 1
    assert "got '200'; run/checkpoints has steps 100, 300, 400" in capsys.readouterr().err
    for step in (100, 300, 400):
        score(step, None)
    assert cli.main(["eval", "run", "--checkpoint", "best"]) == 1
    assert "one with a finished training episode, got 'best'" in capsys.readouterr().err
    shutil.rmtree("run/checkpoints")
    assert cli.main(["eval", "run", "--checkpoint", "best"]) == 1
    assert "run/checkpoints has none" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused(run, capsys):
    file = Path("run/checkpoints/200/state.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert cli.main(["eval", "run", "--checkpoint", "200"]) == 1
    assert "run/checkpoints/200/state.safetensors: expected the SHA-256" in capsys.readouterr().err


def test_a_checkpoint_of_other_settings_is_refused(run, capsys):
    config = json.loads(Path("run/config.json").read_text())
    config["settings"]["hidden"] = [9]
    Path("run/config.json").write_text(json.dumps(config))
    assert cli.main(["eval", "run", "--checkpoint", "200"]) == 1
    assert "expected the settings of config.json, got hidden = [8] and not [9]" in capsys.readouterr().err


def test_seeds_fail_as_of_the_checkpoint(tmp_path, monkeypatch, capsys):
    """A seed that breaks later has not failed before; one of a broken environment is sound."""
    settings = Settings(seeds=3, steps=400, learning_starts=100, batch_size=8, hidden=(8,), num_envs=2, compile=False)
    program = assemble.program(settings)
    state = training.init(program, assemble.hyper(settings), assemble.keys(settings))
    path = run_folder.create(dataclasses.replace(settings, out=str(tmp_path / "run")))
    for step, failed, cause in ((100, [-1, -1, -1], [0, 0, 0]), (200, [40, -1, 90], [1, 0, 4])):
        state.metrics.failed.copy_(torch.tensor(failed))
        state.metrics.cause.copy_(torch.tensor(cause))
        at = history.CheckpointInfo(run_folder.to_json(settings), step, 1.0, {}, 0, 1.0)
        nothing = {"bytes": 0, "sha256": ""}
        at = at._replace(rows={name: nothing for name in history.ROWS})
        kept = history._kept(settings, state, training.snapshot(program, state))
        checkpoint.save(path / "checkpoints", str(step), kept, at._asdict())
    assert [results.trained(path, step).failed for step in ("100", "200")] == [[], [0, 2]]
    assert results.trained(path, "200").unusable == [0]
    words = ["export", str(path), "--checkpoint", "200", "--out", str(tmp_path / "a.pt"), "--seed"]
    assert cli.main([*words, "0"]) == 1
    assert "seed: expected a seed that has not failed, got 0" in capsys.readouterr().err
    assert cli.main([*words, "2"]) == 0
    record = printed(capsys, "eval", str(path), "--checkpoint", "200", "--episodes", "1", "--seed", "0", "1")
    assert record["per_seed"][0] is None
    assert record["per_seed"][1] > 0


# Seeds


@pytest.mark.parametrize("seeds", [["6"], ["7", "5"]])
def test_eval_plays_some_seeds(run, capsys, seeds):
    whole = printed(capsys, "eval", "run", "--episodes", "4")["per_seed"]
    some = printed(capsys, "eval", "run", "--episodes", "4", "--seed", *seeds)
    assert some["seeds"] == [int(seed) for seed in seeds]
    assert some["per_seed"] == [whole[int(seed) - 5] for seed in seeds]
    assert cli.main(["eval", "run", "--episodes", "4", "--seed", *seeds]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows[-1 - len(seeds) :] == [*seeds, "IQM"]
    assert rows[-2 - len(seeds)] == "seed"  # of the heading; a narrow title may end in this word too


def test_some_seeds_in_gymnasium(run, capsys):
    words = ["eval", "run", "--env", "gym:CartPole-v1", "--episodes", "2"]
    whole = printed(capsys, *words)["per_seed"]
    assert printed(capsys, *words, "--seed", "7")["per_seed"] == whole[2:]


# Devices: no CUDA device is needed to see which one is asked for


@pytest.fixture
def asked(monkeypatch):
    """The devices that are asked for; all of them are the CPU."""
    devices = []
    monkeypatch.setattr(assemble, "device", lambda settings: devices.append(settings.device) or torch.device("cpu"))
    return devices


def test_resume_on_another_device(run, asked, capsys):
    assert cli.main(["resume", "run", "--steps", "500", "--device", "cuda"]) == 0
    config = json.loads(Path("run/config.json").read_text())
    assert (config["plan"]["device"], config["settings"]["device"]) == ("cuda", "auto")
    assert set(asked) <= {"cuda", "auto"}
    assert asked.count("cuda") >= 2
    asked.clear()
    assert cli.main(["resume", "run", "--steps", "600"]) == 0, "where it ran before"
    assert "cuda" in asked
    assert cli.main(["resume", "run", "--steps", "700", "--device", "auto"]) == 0
    assert "device" not in json.loads(Path("run/config.json").read_text())["plan"]


def test_how_a_resumed_run_is_evaluated_stays(run, capsys):
    """Also when it is resumed again, and in eval."""
    words = ["--evaluate-episodes", "3", "--evaluate-steps", "5"]
    assert cli.main(["resume", "run", "--steps", "500", *words]) == 0
    assert cli.main(["resume", "run", "--steps", "600"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["final_return"]["step_limit"] == 5
    capsys.readouterr()
    assert printed(capsys, "eval", "run")["step_limit"] == 5


def test_another_device_is_a_difference(run, capsys):
    config = json.loads(Path("run/config.json").read_text())
    config["device"] = "cuda"
    config["settings"]["device"] = "cuda"
    Path("run/config.json").write_text(json.dumps(config))
    if not torch.cuda.is_available():
        assert cli.main(["resume", "run", "--steps", "500"]) == 1
        assert "got cuda, but torch finds no CUDA device; use --device cpu" in capsys.readouterr().err
    assert cli.main(["resume", "run", "--steps", "500", "--device", "cpu"]) == 0
    assert "results may differ from an uninterrupted run: device is cpu and was cuda" in capsys.readouterr().err


@pytest.mark.parametrize(("own", "given", "expected"), [
    ("auto", [], "auto"), ("cpu", [], "cpu"), ("cuda", [], "auto"), ("cuda", ["--device", "cpu"], "cpu"),
    ("cpu", ["--device", "cuda"], "cuda"), ("cpu", ["--device", "auto"], "auto"),
])  # fmt: skip
def test_eval_on_a_device(run, asked, own, given, expected):
    config = json.loads(Path("run/config.json").read_text())
    config["settings"]["device"] = own
    Path("run/config.json").write_text(json.dumps(config))
    assert cli.main(["eval", "run", "--episodes", "1", *given]) == 0
    assert asked == [expected]


def test_a_plan_with_another_device_is_refused(run, capsys):
    config = json.loads(Path("run/config.json").read_text())
    config["plan"]["device"] = "tpu"
    Path("run/config.json").write_text(json.dumps(config))
    assert cli.main(["resume", "run", "--steps", "500"]) == 1
    assert "config.json that is invalid" in capsys.readouterr().err
