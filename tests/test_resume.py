"""A run that was stopped or killed goes on as if nothing had happened: every leaf and every line, bit for bit."""

import csv
import dataclasses
import json
import multiprocessing
import os
import random as chance
import shutil
import tempfile
import time

import forks
import pytest
import torch

from fdqn import cli, compile, training, tree
from fdqn.experiment import assemble, history, results, run_folder
from fdqn.experiment.settings import Settings, defaults, make
from fdqn.storage import checkpoint
from fdqn.testing import asserts
from fdqn.training import loop

# Warm-up ends with cycle 4, the replay of 40 rows wraps in cycle 14, the target is copied every 4 updates, reports come
# every 5 cycles and evaluations every 10.
SETTINGS = Settings(
    env="cartpole", seeds=2, steps=90, num_envs=3, batch_size=8, capacity=40, learning_starts=12, target_period=4,
    n_step=1, hidden=(8,), report_every=15, evaluate_every=30, checkpoint_every=0, compile=False,
)  # fmt: skip
CYCLES = 30
BOUNDARIES = (1, 3, 4, 5, 7, 8, 9, 10, 12, 13, 14, 15, 16, 19, 20, 21, 25, 27, 29, 30)


def begun(settings):
    program = assemble.program(settings)
    return program, training.init(program, assemble.hyper(settings), assemble.keys(settings))


def gone_on(path, settings, functions, where, stop_after=None):
    """The run from there, stopped after so many cycles; its last report."""
    program, asked = assemble.program(settings), 0

    def stop():
        nonlocal asked
        asked += 1
        return asked == stop_after

    reports = training.run(
        program, where.state, where.steps, functions, settings.report_every, evaluate=lambda s: s.obs[:, :, 0].numpy(),
        evaluate_every=settings.evaluate_every, stop=stop, since=where.since,
    )  # fmt: skip
    *_, last = history.record(path, settings, reports, where)
    return last


def started(path, settings, functions, stop_after=None):
    _, state = begun(settings)
    run_folder.create(dataclasses.replace(settings, out=str(path)))
    return gone_on(path, settings, functions, history.Restored(state, None, 0, settings.steps, 0.0), stop_after)


def rows(file):
    """Without the column of seconds."""
    with open(file, newline="") as lines:
        return [{name: x for name, x in row.items() if name != "seconds"} for row in csv.DictReader(lines)]


def assert_same_run(expected, got, states):
    asserts.assert_trees_equal(*states)
    for name in history.ROWS:
        assert rows(expected / name) == rows(got / name)


ENGINES = {"eager": training.vmapped, "compiled": compile.compiled}


@pytest.fixture(scope="module", params=ENGINES)
def functions(request):
    return ENGINES[request.param](assemble.program(SETTINGS))


@pytest.fixture(scope="module")
def undisturbed(functions, tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    return path, tree.clone(started(path, SETTINGS, functions).state)


@pytest.mark.parametrize("stopped", BOUNDARIES)
def test_a_run_stopped_at_any_cycle_goes_on(functions, undisturbed, tmp_path, monkeypatch, stopped):
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)  # so that it may stop after any
    path = tmp_path / "run"
    started(path, SETTINGS, functions, stop_after=stopped)
    program, state = begun(SETTINGS)
    where = history.restored(path, SETTINGS, program, state)
    assert where.step == 3 * stopped
    last = gone_on(path, SETTINGS, functions, where)
    assert_same_run(undisturbed[0], path, (undisturbed[1], last.state))


@pytest.fixture(scope="module")
def over_several_steps(tmp_path_factory):
    """Settings of a run over several steps, its functions, and the undisturbed run."""
    path, settings = tmp_path_factory.mktemp("undisturbed") / "run", dataclasses.replace(SETTINGS, n_step=3)
    functions = training.vmapped(assemble.program(settings))
    return settings, functions, path, tree.clone(started(path, settings, functions).state)


@pytest.mark.parametrize("stopped", [1, 3, 5, 8, 14, 19])
def test_a_run_over_several_steps_goes_on(over_several_steps, tmp_path, monkeypatch, stopped):
    """What was not complete is completed, and target copies come when they would have come."""
    settings, functions, path, undisturbed = over_several_steps
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)
    started(tmp_path / "run", settings, functions, stop_after=stopped)
    where = history.restored(tmp_path / "run", settings, *begun(settings))
    last = gone_on(tmp_path / "run", settings, functions, where)
    assert_same_run(path, tmp_path / "run", (undisturbed, last.state))


ROWS_OF_REPLAY = {"num_envs": 3, "batch_size": 4, "learning_starts": 6, "capacity": 12, "target_period": 2}
ALGORITHMS = {
    "munchausen": {"prioritized": True, **ROWS_OF_REPLAY},
    "c51": {"atoms": 5, **ROWS_OF_REPLAY},
    "qr-dqn": {"quantiles": 3, **ROWS_OF_REPLAY},
    "iqn": {"fractions": 3, "cosines": 4, "noisy": True, **ROWS_OF_REPLAY},
    "rainbow": {"atoms": 5, "n_step": 2, **ROWS_OF_REPLAY},
    "pqn": {"num_envs": 2, "steps_per_cycle": 3, "updates_per_cycle": 2, "batch_size": 3},
    "stream-q": {},
}


ALIKE = ("munchausen", "c51", "qr-dqn")
"""Algorithms whose states have the same parts as those of `rainbow` and `iqn`."""


@pytest.mark.parametrize(
    "algorithm", [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in ALGORITHMS]
)
def test_a_run_of_every_algorithm_goes_on(tmp_path, monkeypatch, algorithm):
    """Stop a run in the middle, and compare its state and rows with those of an undisturbed one."""
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)
    given = {"algorithm": algorithm, "seeds": 2, "hidden": (6,), "steps": 24, "report_every": 6, "evaluate_every": 12}
    settings = make({**given, "compile": False, **ALGORITHMS[algorithm]})
    program = assemble.program(settings)
    functions, cycles = training.vmapped(program), settings.steps // program.config.env_steps
    undisturbed = tree.clone(started(tmp_path / "whole", settings, functions).state)
    assert (undisturbed.learner.updates > 1).all()
    started(tmp_path / "run", settings, functions, stop_after=cycles // 2 + 1)
    where = history.restored(tmp_path / "run", settings, *begun(settings))
    assert where.step == (cycles // 2 + 1) * program.config.env_steps
    last = gone_on(tmp_path / "run", settings, functions, where)
    assert_same_run(tmp_path / "whole", tmp_path / "run", (undisturbed, last.state))


OTHERS = {
    "three steps in a transition": {"n_step": 3},
    "soft copies": {"tau": 0.1},
    "plain, dueling, huber": {"double": False, "dueling": True, "loss": "huber"},
    "two updates a cycle": {"updates_per_cycle": 2},
    "two steps a cycle": {"steps_per_cycle": 2, "num_envs": 2, "steps": 120, "report_every": 7},
    "no clipping": {"max_grad_norm": float("inf"), "env": "acrobot"},
    "catch": {"env": "catch", "gamma": 0.9, "hidden": (), "seed": 9},
    "one environment": {"env": "mountain_car", "num_envs": 1, "steps": 30, "learning_starts": 10, "capacity": 9},
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("other", OTHERS)
def test_a_run_of_any_kind_stopped_at_any_cycle_goes_on(tmp_path, monkeypatch, engine, other):
    """420 resumed runs in all."""
    settings = dataclasses.replace(SETTINGS, **OTHERS[other])
    program = assemble.program(settings)
    functions = ENGINES[engine](program)
    expected = tree.clone(started(tmp_path / "whole", settings, functions).state)
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)
    for stopped in range(1, CYCLES + 1):
        path = tmp_path / str(stopped)
        assert started(path, settings, functions, stop_after=stopped).step == stopped * program.config.env_steps
        where = history.restored(path, settings, *begun(settings))
        last = gone_on(path, settings, functions, where)
        assert_same_run(tmp_path / "whole", path, (expected, last.state))


@pytest.fixture(scope="module")
def healthy(functions):
    """The states after 60 steps and after 90."""
    program, start = begun(SETTINGS)
    *_, last = training.run(program, start, 60, functions, 60)
    before = tree.clone(last.state)
    *_, after = training.run(program, last.state, 90, functions, 90)
    return before, tree.clone(after.state)


@pytest.mark.parametrize(
    ("place", "value", "cause"),
    [
        ("reward", torch.nan, "loss"),
        ("reward", -torch.inf, "loss"),
        ("bias", torch.nan, "loss"),
        ("bias", -torch.inf, "parameter"),  # behind a ReLU no loss shows it
    ],
)
def test_a_lane_that_goes_wrong_is_frozen_also_where_compiled(functions, healthy, place, value, cause):
    program, spoiled = assemble.program(SETTINGS), tree.clone(healthy[0])
    {"reward": spoiled.buffer.rows.reward, "bias": spoiled.learner.params["0.bias"]}[place][1] = value
    before = tree.clone(spoiled)
    *_, got = training.run(program, spoiled, 90, functions, 90)
    assert got.failed.tolist() == [-1, 21]
    assert [training.CAUSES[i] for i in got.cause] == ["nothing", cause]
    asserts.assert_trees_equal(tree.index(healthy[1], 0), tree.index(got.state, 0))
    kept, given = tree.index(got.state.learner.params, 1), tree.index(before.learner.params, 1)
    asserts.assert_trees_equal(tree.map(torch.nan_to_num, given), tree.map(torch.nan_to_num, kept))
    assert not tree.equal(before.learner.params["0.weight"][0], got.state.learner.params["0.weight"][0])


def test_a_run_stopped_again_and_again_goes_on(functions, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)
    path = tmp_path / "run"
    last = started(path, SETTINGS, functions, stop_after=2)
    while last.step < SETTINGS.steps:
        program, state = begun(SETTINGS)
        last = gone_on(path, SETTINGS, functions, history.restored(path, SETTINGS, program, state), stop_after=4)
    assert_same_run(undisturbed[0], path, (undisturbed[1], last.state))


def test_rows_that_a_checkpoint_does_not_count_on_are_taken_back(tmp_path):
    """As a process that was killed leaves them: half a line."""
    path, functions = tmp_path / "run", training.vmapped(assemble.program(SETTINGS))
    started(path, SETTINGS, functions, stop_after=15)
    for name in history.ROWS:
        with open(path / name, "a") as file:
            file.write("45,0,1")
    program, state = begun(SETTINGS)
    gone_on(path, SETTINGS, functions, history.restored(path, SETTINGS, program, state))
    assert [int(row["step"]) for row in rows(path / "metrics.csv")] == [s for s in range(15, 91, 15) for _ in range(2)]


def test_rows_that_a_checkpoint_counts_on_and_are_not_there_are_named(tmp_path):
    path, functions = tmp_path / "run", training.vmapped(assemble.program(SETTINGS))
    started(path, SETTINGS, functions, stop_after=15)
    (path / "metrics.csv").write_text("step\n")
    with pytest.raises(checkpoint.CheckpointError, match=r"metrics\.csv: expected at least \d+ bytes"):
        history.restored(path, SETTINGS, *begun(SETTINGS))


def test_checkpoints_come_when_they_are_due_and_the_best_stays(tmp_path):
    settings = dataclasses.replace(SETTINGS, checkpoint_every=30, keep_checkpoints=1)
    path, seen = tmp_path / "run", []
    _, state = begun(settings)
    run_folder.create(dataclasses.replace(settings, out=str(path)))
    functions = training.vmapped(assemble.program(settings))
    reports = training.run(assemble.program(settings), state, 90, functions, 15)
    for report in history.record(path, settings, reports, history.Restored(state, None, 0, 90, 0.0)):
        there = [int(place.name) for place in checkpoint.newest(path / "checkpoints")]
        seen.append((report.step, there))
    assert [there[0] if there else None for _, there in seen] == [None, 30, 30, 60, 60, 90]
    scores = {s: checkpoint.record(path / "checkpoints" / str(s))["score"] for s in seen[-1][1]}
    assert len(scores) <= 2
    assert all(score is None or score <= max(filter(None, scores.values())) for score in scores.values())


def test_without_its_replay_a_run_fills_it_anew_before_it_learns_on(tmp_path, monkeypatch):
    """Stopped after 20 cycles, 16 of which learned; four are collected before the seventeenth."""
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)
    settings = dataclasses.replace(SETTINGS, save_replay=False, report_every=3, evaluate_every=0)
    path, functions = tmp_path / "run", training.vmapped(assemble.program(SETTINGS))
    stopped = started(path, settings, functions, stop_after=20).state
    (place,) = checkpoint.newest(path / "checkpoints")
    assert not any("replay" in leaf for leaf in json.loads((place / "manifest.json").read_text())["tree"])
    program, state = begun(settings)
    where = history.restored(path, settings, program, state)
    assert where.state.buffer.added.tolist() == [0, 0]
    assert where.state.emptied.tolist() == [20, 20]
    own = where.state._replace(buffer=(), emptied=stopped.emptied)
    asserts.assert_trees_equal(stopped._replace(buffer=()), own)
    states = []
    reports = training.run(program, where.state, 90, functions, 3, since=where.since)
    for report in history.record(path, settings, reports, where):
        states.append((report.updates.tolist(), tree.clone(report.state)))
    assert [updates for updates, _ in states] == [[n, n] for n in (16, 16, 16, 16, 17, 18, 19, 20, 21, 22)]
    for _, filling in states[:4]:
        asserts.assert_trees_equal(stopped.learner, filling.learner)
    assert states[4][1].buffer.added.tolist() == [15, 15]
    copied = [tree.equal(s.learner.params, s.learner.target_params) for _, s in states[4:]]
    assert copied == [False, False, False, True, False, False], "every fourth update"
    assert [int(row["updates"]) for row in rows(path / "metrics.csv")[:: SETTINGS.seeds]] == [
        *([0] * 4), *range(1, 17), *([16] * 4), *range(17, 23)
    ]  # fmt: skip


def test_without_its_replay_a_run_goes_on_annealing_importance_weights(tmp_path, monkeypatch):
    """Stop after 20 cycles, 16 of which learned, and compare the numbers of updates of the buffers."""
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)
    settings = dataclasses.replace(SETTINGS, save_replay=False, prioritized=True, n_step=2)
    path, functions = tmp_path / "run", training.vmapped(assemble.program(settings))
    stopped = started(path, settings, functions, stop_after=20).state
    assert stopped.buffer.buffer.updates.tolist() == [16, 16]
    where = history.restored(path, settings, *begun(settings))
    buffer = where.state.buffer.buffer
    assert buffer.updates.tolist() == [16, 16]
    assert buffer.ring.added.tolist() == [0, 0]
    last = gone_on(path, settings, functions, where)
    assert last.state.buffer.buffer.updates.tolist() == last.state.learner.updates.tolist() == [22, 22]


def test_other_settings_are_refused_by_name(tmp_path):
    path, functions = tmp_path / "run", training.vmapped(assemble.program(SETTINGS))
    started(path, SETTINGS, functions, stop_after=15)
    other = dataclasses.replace(SETTINGS, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"of config.json, got learning_rate = 0.002 and not 0.1"):
        history.restored(path, other, *begun(other), fallback=True)
    other = dataclasses.replace(SETTINGS, hidden=(9,))
    with pytest.raises(ValueError, match=r"of config.json, got hidden = \[8\] and not \[9\]"):
        history.restored(path, other, *begun(other))


def test_a_damaged_checkpoint_is_refused_or_passed_over(tmp_path):
    settings = dataclasses.replace(SETTINGS, checkpoint_every=30)
    path, functions = tmp_path / "run", training.vmapped(assemble.program(SETTINGS))
    expected = started(path, settings, functions)
    newest, before = checkpoint.newest(path / "checkpoints")[:2]
    file = newest / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(checkpoint.CheckpointError, match="use --fallback to continue from an older checkpoint"):
        history.restored(path, settings, *begun(settings))
    where = history.restored(path, settings, *begun(settings), fallback=True)
    assert where.step == int(before.name)
    asserts.assert_trees_equal(expected.state, gone_on(path, settings, functions, where).state)
    for place in checkpoint.newest(path / "checkpoints"):
        (place / "manifest.json").write_text("{}")
    with pytest.raises(checkpoint.CheckpointError):
        history.restored(path, settings, *begun(settings), fallback=True)


# The command


def flags(settings):
    usual = run_folder.to_json(defaults(settings.algorithm))
    for name, value in run_folder.to_json(settings).items():
        if name == "out" or isinstance(value, bool) or value == usual[name]:
            continue
        yield f"--{name.replace('_', '-')}"
        yield from map(str, value if isinstance(value, list | tuple) else [value])


LONGER = dataclasses.replace(SETTINGS, steps=1_500, checkpoint_every=75, report_every=75, evaluate_every=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(["train", *flags(LONGER), "--no-compile", "--out", str(path)]) == 0
    return path


def quietly(words):
    """The command, in a process of its own that says nothing."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    cli.main(words)


@pytest.fixture(scope="module")
def processes():
    """Where new processes have torch loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fdqn.cli", "fdqn.compile", "fdqn.experiment.run_folder"])
    return context


def saving(path):
    """What lies there only while a checkpoint is saved."""
    return list((path / "checkpoints").glob(".*.part"))


def killed_and_resumed(processes, path, seed, kills=5):
    """Killed at random moments of the whole command, every second time while it saves, and resumed each time, at last
    to the end. Answers how often a save was under way.
    """
    delays, inside = chance.Random(seed), 0
    words = ["train", *flags(LONGER), "--no-compile", "--out", str(path)]
    for kill in range(kills):
        process = processes.Process(target=quietly, args=(words,))
        process.start()
        while kill % 2 and process.is_alive() and not saving(path):
            pass
        time.sleep(delays.uniform(0.0, 0.002 if kill % 2 else 2.0))
        process.kill()
        process.join()
        inside += bool(saving(path))
        words = ["resume", str(path)] if (path / "config.json").exists() else words
    assert cli.main(["resume", str(path)]) == 0
    return inside


def assert_undisturbed(whole, path):
    assert rows(path / "metrics.csv") == rows(whole / "metrics.csv")
    asserts.assert_trees_equal(results.read_params(whole), results.read_params(path))
    summaries = [json.loads((place / "summary.json").read_text()) for place in (whole, path)]
    for name in ("final_return", "train_return", "gymnasium_return", "failed_seeds", "steps"):
        assert summaries[0][name] == summaries[1][name]


def test_kill_9_at_any_moment(processes, whole, tmp_path):
    killed_and_resumed(processes, tmp_path / "run", 0)
    assert_undisturbed(whole, tmp_path / "run")


@pytest.mark.slow
def test_kill_9_a_hundred_times(processes, whole, tmp_path):
    inside = 0
    for seed in range(1, 21):
        inside += killed_and_resumed(processes, tmp_path / str(seed), seed)
        assert_undisturbed(whole, tmp_path / str(seed))
    print(f"{inside} of 100 inside a save")
    assert inside >= 30


def test_resume_of_a_finished_run_says_so(whole, capsys):
    assert cli.main(["resume", str(whole)]) == 0
    assert "is finished" in capsys.readouterr().err
    assert cli.main(["resume", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((whole / "summary.json").read_text())
    assert cli.main(["resume", str(whole), "--steps", "100"]) == 1
    assert "steps: expected at least the planned 1,500, got 100" in capsys.readouterr().err


def test_more_steps_than_planned(whole, tmp_path, capsys):
    path = shutil.copytree(whole, tmp_path / "run")
    assert cli.main(["resume", str(path), "--steps", "1800"]) == 0
    assert "resuming at step 1,500 of 1,800" in capsys.readouterr().err
    longer, before = rows(path / "metrics.csv"), rows(whole / "metrics.csv")
    assert longer[: len(before)] == before
    assert [int(row["step"]) for row in longer[len(before) :: 2]] == [1575, 1650, 1725, 1800]
    assert {row["epsilon"] for row in longer[len(before) :]} == {"0.05"}
    assert json.loads((path / "summary.json").read_text())["steps"] == 1800
    assert cli.main(["resume", str(path)]) == 0
    assert "is finished" in capsys.readouterr().err


@pytest.mark.usefixtures("light_runs")
def test_resume_without_the_replay_says_that_it_is_not_exact(tmp_path, capsys):
    words = ["train", *flags(dataclasses.replace(LONGER, steps=300)), "--no-compile", "--no-save-replay"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["resume", str(tmp_path / "run"), "--steps", "450"]) == 0
    said = capsys.readouterr().err
    assert "results differ from an uninterrupted run: the replay buffer was not saved" in said
    assert "learning continues after it is refilled with 12 steps per seed" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 450
    spent = checkpoint.record(tmp_path / "run" / "checkpoints" / "450")["seconds"]
    assert summary["wall_seconds"] > spent, "of both processes"


@pytest.mark.usefixtures("light_runs")
def test_resume_without_a_checkpoint_starts_over(tmp_path, capsys):
    path, words = tmp_path / "run", flags(dataclasses.replace(LONGER, steps=300))
    assert cli.main(["train", *words, "--no-compile", "--out", str(path)]) == 0
    before = rows(path / "metrics.csv")
    shutil.rmtree(path / "checkpoints")
    (path / "summary.json").unlink()
    assert cli.main(["resume", str(path)]) == 0
    assert "no checkpoint found; restarting at step 0" in capsys.readouterr().err
    assert rows(path / "metrics.csv") == before


def test_two_writers_are_kept_apart(whole):
    with run_folder.writing(whole), tempfile.TemporaryFile("w+") as stderr, open(os.devnull, "w") as nowhere:
        pid = forks.start(["resume", str(whole), "--steps", "9000"], nowhere.fileno(), stderr.fileno())
        code = forks.exit_code(pid)
        stderr.seek(0)
        said = stderr.read()
    assert code == 1
    assert "in use" in said
    assert "Traceback" not in said


def test_what_is_no_run_folder(tmp_path, capsys):
    assert cli.main(["resume", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err


def test_a_run_under_other_provenance_is_said_not_to_be_exact(whole, tmp_path, capsys):
    path = shutil.copytree(whole, tmp_path / "run")
    config = json.loads((path / "config.json").read_text())
    config["versions"]["torch"] = "1.0"
    config["engine"]["threads"] = 64
    (path / "config.json").write_text(json.dumps(config))
    assert cli.main(["resume", str(path), "--steps", "1575"]) == 0
    said = capsys.readouterr().err
    assert f"results may differ from an uninterrupted run: torch is {torch.__version__} and was 1.0" in said
    assert f"results may differ from an uninterrupted run: threads is {torch.get_num_threads()} and was 64" in said


def test_the_plan_of_a_run_and_how_far_it_is(whole, tmp_path):
    assert results.plan(whole) == (dataclasses.replace(LONGER, out=str(whole)), 1_500)
    assert results.finished(whole) == 1_500
    assert results.finished(tmp_path) == 0
    compile.prepare_cpu()
    assert run_folder.differences(whole, LONGER) == []
