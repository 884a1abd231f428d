"""Tests of resuming: a run that was stopped or killed continues bit for bit, in all leaves and all rows."""

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

pytestmark = pytest.mark.usefixtures("unchecked_iterations")

# Warm-up ends with iteration 4, the replay of 40 rows wraps in iteration 14, the target is copied every 4 updates,
# reports come every 5 iterations and evaluations every 10.
SETTINGS = Settings(
    env="cartpole", seeds=2, steps=90, num_envs=3, batch_size=8, capacity=40, learning_starts=12, target_period=4,
    n_step=1, hidden=(8,), report_every=15, evaluate_every=30, checkpoint_every=0, compile=False,
)  # fmt: skip
CYCLES = 30
BOUNDARIES = (1, 3, 4, 5, 7, 8, 9, 10, 12, 13, 14, 15, 16, 19, 20, 21, 25, 27, 29, 30)


def initialized(settings):
    program = assemble.program(settings)
    return program, training.init(program, assemble.hyper(settings), assemble.keys(settings))


def continue_run(path, settings, functions, where, stop_after=None):
    """Continue a run, stop it after the given number of iterations, and return its last report."""
    program, calls = assemble.program(settings), 0

    def stop():
        nonlocal calls
        calls += 1
        return calls == stop_after

    reports = training.run(
        program, where.state, where.steps, functions, settings.report_every, evaluate=lambda s: s.obs[:, :, 0].numpy(),
        evaluate_every=settings.evaluate_every, stop=stop, since=where.since,
    )  # fmt: skip
    *_, last = history.record(path, settings, reports, where)
    return last


def start_run(path, settings, functions, stop_after=None):
    _, state = initialized(settings)
    run_folder.create(dataclasses.replace(settings, out=str(path)))
    return continue_run(path, settings, functions, history.Restored(state, None, 0, settings.steps, 0.0), stop_after)


def rows(file):
    """Return the rows of a CSV file without the column of seconds."""
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
def uninterrupted(functions, tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    return path, tree.clone(start_run(path, SETTINGS, functions).state)


@pytest.mark.parametrize("stopped", BOUNDARIES)
def test_a_run_stopped_at_any_iteration_continues_exactly(functions, uninterrupted, tmp_path, monkeypatch, stopped):
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)  # allow a stop after every iteration
    path = tmp_path / "run"
    start_run(path, SETTINGS, functions, stop_after=stopped)
    program, state = initialized(SETTINGS)
    where = history.restored(path, SETTINGS, program, state)
    assert where.step == 3 * stopped
    last = continue_run(path, SETTINGS, functions, where)
    assert_same_run(uninterrupted[0], path, (uninterrupted[1], last.state))


@pytest.fixture(scope="module")
def n_step_run(tmp_path_factory):
    """Return settings with n-step returns, their step functions, and the path and state of an uninterrupted run."""
    path, settings = tmp_path_factory.mktemp("uninterrupted") / "run", dataclasses.replace(SETTINGS, n_step=3)
    functions = training.vmapped(assemble.program(settings))
    return settings, functions, path, tree.clone(start_run(path, settings, functions).state)


@pytest.mark.parametrize("stopped", [1, 3, 5, 8, 14, 19])
def test_a_run_with_n_step_returns_continues_exactly(n_step_run, tmp_path, monkeypatch, stopped):
    """Check that pending n-step transitions are completed and that target copies keep their schedule."""
    settings, functions, path, uninterrupted = n_step_run
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)
    start_run(tmp_path / "run", settings, functions, stop_after=stopped)
    where = history.restored(tmp_path / "run", settings, *initialized(settings))
    last = continue_run(tmp_path / "run", settings, functions, where)
    assert_same_run(path, tmp_path / "run", (uninterrupted, last.state))


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
def test_a_run_of_every_algorithm_continues_exactly(tmp_path, monkeypatch, algorithm):
    """Stop a run in the middle, and compare its state and rows with those of an uninterrupted run."""
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)
    given = {"algorithm": algorithm, "seeds": 2, "hidden": (6,), "steps": 24, "report_every": 6, "evaluate_every": 12}
    settings = make({**given, "compile": False, **ALGORITHMS[algorithm]})
    program = assemble.program(settings)
    functions, cycles = training.vmapped(program), settings.steps // program.config.env_steps
    uninterrupted = tree.clone(start_run(tmp_path / "whole", settings, functions).state)
    assert (uninterrupted.learner.updates > 1).all()
    start_run(tmp_path / "run", settings, functions, stop_after=cycles // 2 + 1)
    where = history.restored(tmp_path / "run", settings, *initialized(settings))
    assert where.step == (cycles // 2 + 1) * program.config.env_steps
    last = continue_run(tmp_path / "run", settings, functions, where)
    assert_same_run(tmp_path / "whole", tmp_path / "run", (uninterrupted, last.state))


OTHERS = {
    "three-step returns": {"n_step": 3},
    "soft copies": {"tau": 0.1},
    "plain, dueling, huber": {"double": False, "dueling": True, "loss": "huber"},
    "two updates per iteration": {"updates_per_cycle": 2},
    "two steps per iteration": {"steps_per_cycle": 2, "num_envs": 2, "steps": 120, "report_every": 7},
    "no clipping": {"max_grad_norm": float("inf"), "env": "acrobot"},
    "catch": {"env": "catch", "gamma": 0.9, "hidden": (), "seed": 9},
    "one environment": {"env": "mountain_car", "num_envs": 1, "steps": 30, "learning_starts": 10, "capacity": 9},
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("other", OTHERS)
def test_a_run_with_other_settings_continues_exactly(tmp_path, monkeypatch, engine, other):
    """Resume after every iteration, 420 runs in all."""
    settings = dataclasses.replace(SETTINGS, **OTHERS[other])
    program = assemble.program(settings)
    functions = ENGINES[engine](program)
    expected = tree.clone(start_run(tmp_path / "whole", settings, functions).state)
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)
    for stopped in range(1, CYCLES + 1):
        path = tmp_path / str(stopped)
        assert start_run(path, settings, functions, stop_after=stopped).step == stopped * program.config.env_steps
        where = history.restored(path, settings, *initialized(settings))
        last = continue_run(path, settings, functions, where)
        assert_same_run(tmp_path / "whole", path, (expected, last.state))


@pytest.fixture(scope="module")
def healthy(functions):
    """Return the states after 60 and after 90 steps."""
    program, start = initialized(SETTINGS)
    *_, last = training.run(program, start, 60, functions, 60)
    before = tree.clone(last.state)
    *_, after = training.run(program, last.state, 90, functions, 90)
    return before, tree.clone(after.state)


@pytest.mark.parametrize(
    ("tensor", "value", "cause"),
    [
        ("reward", torch.nan, "loss"),
        ("reward", -torch.inf, "loss"),
        ("bias", torch.nan, "loss"),
        ("bias", -torch.inf, "parameter"),  # a ReLU hides it from the loss
    ],
)
def test_a_seed_that_fails_is_frozen_in_every_engine(functions, healthy, tensor, value, cause):
    program, spoiled = assemble.program(SETTINGS), tree.clone(healthy[0])
    {"reward": spoiled.buffer.rows.reward, "bias": spoiled.learner.params["0.bias"]}[tensor][1] = value
    before = tree.clone(spoiled)
    *_, got = training.run(program, spoiled, 90, functions, 90)
    assert got.failed.tolist() == [-1, 21]
    assert [training.CAUSES[i] for i in got.cause] == ["nothing", cause]
    asserts.assert_trees_equal(tree.index(healthy[1], 0), tree.index(got.state, 0))
    kept, given = tree.index(got.state.learner.params, 1), tree.index(before.learner.params, 1)
    asserts.assert_trees_equal(tree.map(torch.nan_to_num, given), tree.map(torch.nan_to_num, kept))
    assert not tree.equal(before.learner.params["0.weight"][0], got.state.learner.params["0.weight"][0])


def test_a_run_stopped_many_times_continues_exactly(functions, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)
    path = tmp_path / "run"
    last = start_run(path, SETTINGS, functions, stop_after=2)
    while last.step < SETTINGS.steps:
        program, state = initialized(SETTINGS)
        last = continue_run(path, SETTINGS, functions, history.restored(path, SETTINGS, program, state), stop_after=4)
    assert_same_run(uninterrupted[0], path, (uninterrupted[1], last.state))


def test_rows_after_the_last_checkpoint_are_removed(tmp_path):
    """Write half a line, as a killed process may leave it."""
    path, functions = tmp_path / "run", training.vmapped(assemble.program(SETTINGS))
    start_run(path, SETTINGS, functions, stop_after=15)
    for name in history.ROWS:
        with open(path / name, "a") as file:
            file.write("45,0,1")
    program, state = initialized(SETTINGS)
    continue_run(path, SETTINGS, functions, history.restored(path, SETTINGS, program, state))
    assert [int(row["step"]) for row in rows(path / "metrics.csv")] == [s for s in range(15, 91, 15) for _ in range(2)]


def test_missing_rows_before_the_last_checkpoint_are_refused(tmp_path):
    path, functions = tmp_path / "run", training.vmapped(assemble.program(SETTINGS))
    start_run(path, SETTINGS, functions, stop_after=15)
    (path / "metrics.csv").write_text("step\n")
    with pytest.raises(checkpoint.CheckpointError, match=r"metrics\.csv: expected at least \d+ bytes"):
        history.restored(path, SETTINGS, *initialized(SETTINGS))


def test_checkpoints_are_scheduled_and_the_best_is_kept(tmp_path):
    settings = dataclasses.replace(SETTINGS, checkpoint_every=30, keep_checkpoints=1)
    path, saved = tmp_path / "run", []
    _, state = initialized(settings)
    run_folder.create(dataclasses.replace(settings, out=str(path)))
    functions = training.vmapped(assemble.program(settings))
    reports = training.run(assemble.program(settings), state, 90, functions, 15)
    for report in history.record(path, settings, reports, history.Restored(state, None, 0, 90, 0.0)):
        steps = [int(folder.name) for folder in checkpoint.newest(path / "checkpoints")]
        saved.append((report.step, steps))
    assert [steps[0] if steps else None for _, steps in saved] == [None, 30, 30, 60, 60, 90]
    scores = {s: checkpoint.record(path / "checkpoints" / str(s))["score"] for s in saved[-1][1]}
    assert len(scores) <= 2
    assert all(score is None or score <= max(filter(None, scores.values())) for score in scores.values())


def test_without_a_saved_replay_it_is_refilled_before_learning_continues(tmp_path, monkeypatch):
    """Stop after 20 iterations with 16 updates, and expect four iterations of collecting before the 17th update."""
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)
    settings = dataclasses.replace(SETTINGS, save_replay=False, report_every=3, evaluate_every=0)
    path, functions = tmp_path / "run", training.vmapped(assemble.program(SETTINGS))
    stopped = start_run(path, settings, functions, stop_after=20).state
    (folder,) = checkpoint.newest(path / "checkpoints")
    assert not any("replay" in leaf for leaf in json.loads((folder / "manifest.json").read_text())["tree"])
    program, state = initialized(settings)
    where = history.restored(path, settings, program, state)
    assert where.state.buffer.added.tolist() == [0, 0]
    assert where.state.emptied.tolist() == [20, 20]
    restored = where.state._replace(buffer=(), emptied=stopped.emptied)
    asserts.assert_trees_equal(stopped._replace(buffer=()), restored)
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


def test_without_a_saved_replay_importance_weights_keep_annealing(tmp_path, monkeypatch):
    """Stop after 20 iterations with 16 updates, and compare the numbers of updates of the buffers."""
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)
    settings = dataclasses.replace(SETTINGS, save_replay=False, prioritized=True, n_step=2)
    path, functions = tmp_path / "run", training.vmapped(assemble.program(settings))
    stopped = start_run(path, settings, functions, stop_after=20).state
    assert stopped.buffer.buffer.updates.tolist() == [16, 16]
    where = history.restored(path, settings, *initialized(settings))
    buffer = where.state.buffer.buffer
    assert buffer.updates.tolist() == [16, 16]
    assert buffer.ring.added.tolist() == [0, 0]
    last = continue_run(path, settings, functions, where)
    assert last.state.buffer.buffer.updates.tolist() == last.state.learner.updates.tolist() == [22, 22]


def test_other_settings_are_refused(tmp_path):
    path, functions = tmp_path / "run", training.vmapped(assemble.program(SETTINGS))
    start_run(path, SETTINGS, functions, stop_after=15)
    other = dataclasses.replace(SETTINGS, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"of config.json, got learning_rate = 0.002 and not 0.1"):
        history.restored(path, other, *initialized(other), fallback=True)
    other = dataclasses.replace(SETTINGS, hidden=(9,))
    with pytest.raises(ValueError, match=r"of config.json, got hidden = \[8\] and not \[9\]"):
        history.restored(path, other, *initialized(other))


def test_a_damaged_checkpoint_is_refused_or_skipped(tmp_path):
    settings = dataclasses.replace(SETTINGS, checkpoint_every=30)
    path, functions = tmp_path / "run", training.vmapped(assemble.program(SETTINGS))
    expected = start_run(path, settings, functions)
    newest, before = checkpoint.newest(path / "checkpoints")[:2]
    file = newest / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(checkpoint.CheckpointError, match="use --fallback to continue from an older checkpoint"):
        history.restored(path, settings, *initialized(settings))
    where = history.restored(path, settings, *initialized(settings), fallback=True)
    assert where.step == int(before.name)
    asserts.assert_trees_equal(expected.state, continue_run(path, settings, functions, where).state)
    for folder in checkpoint.newest(path / "checkpoints"):
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(checkpoint.CheckpointError):
        history.restored(path, settings, *initialized(settings), fallback=True)


# The command


def flags(settings):
    """Yield the command-line flags of settings that differ from the defaults."""
    usual_values = run_folder.to_json(defaults(settings.algorithm))
    for name, value in run_folder.to_json(settings).items():
        if name == "out" or isinstance(value, bool) or value == usual_values[name]:
            continue
        yield f"--{name.replace('_', '-')}"
        yield from map(str, value if isinstance(value, list | tuple) else [value])


LONGER = dataclasses.replace(SETTINGS, steps=1_500, checkpoint_every=75, report_every=75, evaluate_every=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(["train", *flags(LONGER), "--no-compile", "--out", str(path)]) == 0
    return path


def run_silently(command):
    """Run the command in this process without output."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    cli.main(command)


@pytest.fixture(scope="module")
def processes():
    """Return a multiprocessing context whose processes start with torch imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fdqn.cli", "fdqn.compile", "fdqn.experiment.run_folder"])
    return context


def partial_files(path):
    """Return the partial files, which exist only while a checkpoint is being saved."""
    return list((path / "checkpoints").glob(".*.part"))


def kill_and_resume(processes, path, seed, kills=5):
    """Kill the command at random times, every second time during a save, and resume it; at last let it finish.

    Return the number of kills during a save.
    """
    delays, inside = chance.Random(seed), 0
    command = ["train", *flags(LONGER), "--no-compile", "--out", str(path)]
    for kill in range(kills):
        process = processes.Process(target=run_silently, args=(command,))
        process.start()
        while kill % 2 and process.is_alive() and not partial_files(path):
            pass
        time.sleep(delays.uniform(0.0, 0.002 if kill % 2 else 2.0))
        process.kill()
        process.join()
        inside += bool(partial_files(path))
        command = ["resume", str(path)] if (path / "config.json").exists() else command
    assert cli.main(["resume", str(path)]) == 0
    return inside


def assert_equals_uninterrupted(whole, path):
    assert rows(path / "metrics.csv") == rows(whole / "metrics.csv")
    asserts.assert_trees_equal(results.read_params(whole), results.read_params(path))
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, path)]
    for name in ("final_return", "train_return", "gymnasium_return", "failed_seeds", "steps"):
        assert summaries[0][name] == summaries[1][name]


def test_a_run_killed_at_any_time_continues_exactly(processes, whole, tmp_path):
    kill_and_resume(processes, tmp_path / "run", 0)
    assert_equals_uninterrupted(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_run_killed_a_hundred_times_continues_exactly(processes, whole, tmp_path):
    inside = 0
    for seed in range(1, 21):
        inside += kill_and_resume(processes, tmp_path / str(seed), seed)
        assert_equals_uninterrupted(whole, tmp_path / str(seed))
    print(f"{inside} of 100 kills during a save")
    assert inside >= 30


def test_resuming_a_finished_run_prints_a_notice(whole, capsys):
    assert cli.main(["resume", str(whole)]) == 0
    assert "is finished" in capsys.readouterr().err
    assert cli.main(["resume", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((whole / "summary.json").read_text())
    assert cli.main(["resume", str(whole), "--steps", "100"]) == 1
    assert "steps: expected at least the planned 1,500, got 100" in capsys.readouterr().err


def test_a_finished_run_can_be_extended(whole, tmp_path, capsys):
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
def test_resuming_without_a_replay_prints_that_results_differ(tmp_path, capsys):
    command = ["train", *flags(dataclasses.replace(LONGER, steps=300)), "--no-compile", "--no-save-replay"]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["resume", str(tmp_path / "run"), "--steps", "450"]) == 0
    stderr = capsys.readouterr().err
    assert "results differ from an uninterrupted run: the replay buffer was not saved" in stderr
    assert "learning continues after it is refilled with 12 steps per seed" in stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 450
    spent = checkpoint.record(tmp_path / "run" / "checkpoints" / "450")["seconds"]
    assert summary["wall_seconds"] > spent, "the seconds of both processes"


@pytest.mark.usefixtures("light_runs")
def test_resuming_without_a_checkpoint_restarts(tmp_path, capsys):
    path, command = tmp_path / "run", flags(dataclasses.replace(LONGER, steps=300))
    assert cli.main(["train", *command, "--no-compile", "--out", str(path)]) == 0
    before = rows(path / "metrics.csv")
    shutil.rmtree(path / "checkpoints")
    (path / "summary.json").unlink()
    assert cli.main(["resume", str(path)]) == 0
    assert "no checkpoint found; restarting at step 0" in capsys.readouterr().err
    assert rows(path / "metrics.csv") == before


def test_a_second_writer_is_refused(whole):
    with run_folder.writing(whole), tempfile.TemporaryFile("w+") as stderr, open(os.devnull, "w") as nowhere:
        pid = forks.start(["resume", str(whole), "--steps", "9000"], nowhere.fileno(), stderr.fileno())
        code = forks.exit_code(pid)
        stderr.seek(0)
        output = stderr.read()
    assert code == 1
    assert "in use" in output
    assert "Traceback" not in output


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert cli.main(["resume", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err


def test_resuming_with_other_versions_prints_that_results_may_differ(whole, tmp_path, capsys):
    path = shutil.copytree(whole, tmp_path / "run")
    config = json.loads((path / "config.json").read_text())
    config["versions"]["torch"] = "1.0"
    config["engine"]["threads"] = 64
    (path / "config.json").write_text(json.dumps(config))
    assert cli.main(["resume", str(path), "--steps", "1575"]) == 0
    stderr = capsys.readouterr().err
    assert f"results may differ from an uninterrupted run: torch is {torch.__version__} and was 1.0" in stderr
    assert f"results may differ from an uninterrupted run: threads is {torch.get_num_threads()} and was 64" in stderr


def test_plan_and_finished_steps_of_a_run(whole, tmp_path):
    assert results.plan(whole) == (dataclasses.replace(LONGER, out=str(whole)), 1_500)
    assert results.finished(whole) == 1_500
    assert results.finished(tmp_path) == 0
    compile.prepare_cpu()
    assert run_folder.differences(whole, LONGER) == []
