"""`eval`, `export` and `resume` with a selected checkpoint, selected seeds or a selected device."""

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
    """Return a run and the parameters at each checkpoint, copied during training."""
    path, params = tmp_path_factory.mktemp("checkpoints") / "run", {}

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
    """Copy the run to the working directory."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(made[0], tmp_path / "run")


def score(step, value):
    """Change the training return in a checkpoint."""
    path = Path("run/checkpoints") / str(step)
    reseal(path, record=checkpoint.record(path) | {"score": value})


def printed(capsys, *arguments):
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_each_checkpoint_has_the_parameters_of_its_step(made, run):
    for step in STEPS:
        trained = results.trained(run, str(step))
        assert trained.step == step
        asserts.assert_trees_equal(trained.params, made[1][step])
        assert list(trained.params) == list(made[1][step]), "order of the parameters"
    last = results.trained(run)
    asserts.assert_trees_equal(last.params, made[1][400])
    assert last.step == 400
    assert not tree.equal(made[1][100], made[1][400]), "checkpoints must differ"


def test_the_fake_state_has_every_leaf(run):
    """Check the state on fake tensors, whose layout readers follow instead of that of the file."""
    settings = results.plan(run)[0]
    program = assemble.program(settings)
    fake = memory.fake_state(program, settings.seeds)
    real = training.init(program, assemble.hyper(settings), assemble.keys(settings))
    assert tree.paths(fake) == tree.paths(real)
    assert [(x.shape, x.dtype) for x in tree.leaves(fake)] == [(x.shape, x.dtype) for x in tree.leaves(real)]


def test_load_part_of_a_checkpoint(tmp_path):
    state = {"a": torch.arange(3.0), "b": [torch.arange(4), torch.ones(2, 2).bool()], "c": torch.zeros(0)}
    path = checkpoint.save(tmp_path, "1", state, {})
    like = tree.map(torch.zeros_like, state)
    part = checkpoint.load_part(path, like, (like["b"][1], like["a"], like["c"]))
    asserts.assert_trees_equal(part, (state["b"][1], state["a"], state["c"]))
    assert not like["a"].any(), "the template is unchanged"
    for position in (0, 200, -1):
        content = bytearray((path / "state.safetensors").read_bytes())
        content[position] ^= 1
        (tmp_path / "spoiled").mkdir(exist_ok=True)
        shutil.copy(path / "manifest.json", tmp_path / "spoiled")
        (tmp_path / "spoiled/state.safetensors").write_bytes(content)
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load_part(tmp_path / "spoiled", like, like["a"])


def test_best_selects_the_best_training_return(made, run, capsys):
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


def test_eval_of_a_checkpoint(made, run, capsys):
    record = printed(capsys, "eval", "run", "--checkpoint", "100", "--episodes", "3")
    settings = results.plan(run)[0]
    env, network = assemble.program(settings).env, assemble.network(settings)
    returns = evaluate.greedy_on_device(env, network, made[1][100], assemble.keys(settings), 3).returns
    assert record["per_seed"] == returns.mean(1).tolist()
    last = printed(capsys, "eval", "run", "--checkpoint", "last")
    assert last == {**printed(capsys, "eval", "run"), "checkpoint": 400}
    assert cli.main(["eval", "run", "--checkpoint", "100", "--episodes", "3"]) == 0
    assert "3 greedy episodes per seed, checkpoint of step 100" in " ".join(capsys.readouterr().out.split())


def test_video_of_a_checkpoint(made, run, monkeypatch):
    drawn = []
    monkeypatch.setattr(video, "draw", lambda *given, **how: drawn.append(given) or pytest.skip("drawn"))
    with pytest.raises(pytest.skip.Exception):
        cli.main(["eval", "run", "--checkpoint", "200", "--seed", "7", "5", "--episodes", "2", "--video", "a.gif"])
    _, _, _, params, _, seeds, returns, *_ = drawn[0]
    asserts.assert_trees_equal(params, tree.index(made[1][200], [2, 0]))
    assert seeds == [7, 5]
    assert returns.shape == (2, 2)


@pytest.mark.parametrize("arguments", [["--checkpoint", "200"], ["--checkpoint", "best"], ["--checkpoint", "last"], []])
def test_export_of_a_checkpoint(made, run, capsys, arguments):
    for step in STEPS:
        score(step, float(step == 200))
    record = printed(capsys, "export", "run", "--seed", "6", "--out", "a.pt", *arguments)
    step = 200 if {"200", "best"} & {*arguments} else 400
    assert record.get("checkpoint") == (step if arguments else None)
    asserts.assert_trees_equal(torch.load("a.pt", weights_only=True), tree.index(made[1][step], 1))
    written = export.write(results.read(run), 6, Path("b.pt"), checkpoint=arguments[1] if arguments else None)
    assert written["bytes"] == record["bytes"]
    assert Path("b.pt").read_bytes() != b""


def test_checkpoints_of_a_killed_run_can_be_used(made, run, capsys):
    """Remove the summary, which a killed process does not write."""
    for name in ("summary.json", "params.safetensors", "curve.png"):
        Path("run", name).unlink()
    assert printed(capsys, "eval", "run", "--checkpoint", "300", "--episodes", "1")["checkpoint"] == 300
    assert printed(capsys, "export", "run", "--checkpoint", "best", "--seed", "5", "--out", "a.pt")["seed"] == 5
    assert cli.main(["eval", "run"]) == 1
    assert "without summary.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_invalid_selections_are_refused_in_one_line(run, capsys, arguments, message):
    before = sorted(os.walk("."))
    assert cli.main(arguments.split(" ")) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert len(err) < 300

    assert re.search(message, err), err
    assert sorted(os.walk(".")) == before


def test_missing_checkpoints_are_refused(run, capsys):
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


def test_failed_seeds_are_those_of_the_checkpoint(tmp_path, monkeypatch, capsys):
    """Check that a seed counts as failed only after its failure, and is usable after one of its environment."""
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
    arguments = ["export", str(path), "--checkpoint", "200", "--out", str(tmp_path / "a.pt"), "--seed"]
    assert cli.main([*arguments, "0"]) == 1
    assert "seed: expected a seed that has not failed, got 0" in capsys.readouterr().err
    assert cli.main([*arguments, "2"]) == 0
    record = printed(capsys, "eval", str(path), "--checkpoint", "200", "--episodes", "1", "--seed", "0", "1")
    assert record["per_seed"][0] is None
    assert record["per_seed"][1] > 0


# Seeds


@pytest.mark.parametrize("seeds", [["6"], ["7", "5"]])
def test_eval_of_selected_seeds(run, capsys, seeds):
    whole = printed(capsys, "eval", "run", "--episodes", "4")["per_seed"]
    some = printed(capsys, "eval", "run", "--episodes", "4", "--seed", *seeds)
    assert some["seeds"] == [int(seed) for seed in seeds]
    assert some["per_seed"] == [whole[int(seed) - 5] for seed in seeds]
    assert cli.main(["eval", "run", "--episodes", "4", "--seed", *seeds]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows[-1 - len(seeds) :] == [*seeds, "IQM"]
    assert rows[-2 - len(seeds)] == "seed"  # the header; a narrow title may end in this word too


def test_eval_of_selected_seeds_in_gymnasium(run, capsys):
    arguments = ["eval", "run", "--env", "gym:CartPole-v1", "--episodes", "2"]
    whole = printed(capsys, *arguments)["per_seed"]
    assert printed(capsys, *arguments, "--seed", "7")["per_seed"] == whole[2:]


# Devices: the requested device is recorded, so no CUDA device is needed


@pytest.fixture
def requested(monkeypatch):
    """Return the list of requested devices, all of which are replaced by the CPU."""
    devices = []
    monkeypatch.setattr(assemble, "device", lambda settings: devices.append(settings.device) or torch.device("cpu"))
    return devices


def test_resume_on_another_device(run, requested, capsys):
    assert cli.main(["resume", "run", "--steps", "500", "--device", "cuda"]) == 0
    config = json.loads(Path("run/config.json").read_text())
    assert (config["plan"]["device"], config["settings"]["device"]) == ("cuda", "auto")
    assert set(requested) <= {"cuda", "auto"}
    assert requested.count("cuda") >= 2
    requested.clear()
    assert cli.main(["resume", "run", "--steps", "600"]) == 0, "on the device of the last run"
    assert "cuda" in requested
    assert cli.main(["resume", "run", "--steps", "700", "--device", "auto"]) == 0
    assert "device" not in json.loads(Path("run/config.json").read_text())["plan"]


def test_evaluation_settings_of_a_resumed_run_are_kept(run, capsys):
    """Check later resumptions and `eval`."""
    arguments = ["--evaluate-episodes", "3", "--evaluate-steps", "5"]
    assert cli.main(["resume", "run", "--steps", "500", *arguments]) == 0
    assert cli.main(["resume", "run", "--steps", "600"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["final_return"]["step_limit"] == 5
    capsys.readouterr()
    assert printed(capsys, "eval", "run")["step_limit"] == 5


def test_resume_on_another_device_prints_a_warning(run, capsys):
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
def test_eval_on_a_device(run, requested, own, given, expected):
    config = json.loads(Path("run/config.json").read_text())
    config["settings"]["device"] = own
    Path("run/config.json").write_text(json.dumps(config))
    assert cli.main(["eval", "run", "--episodes", "1", *given]) == 0
    assert requested == [expected]


def test_a_plan_with_another_device_is_refused(run, capsys):
    config = json.loads(Path("run/config.json").read_text())
    config["plan"]["device"] = "tpu"
    Path("run/config.json").write_text(json.dumps(config))
    assert cli.main(["resume", "run", "--steps", "500"]) == 1
    assert "config.json that is invalid" in capsys.readouterr().err
