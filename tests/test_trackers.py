"""Check that trackers show each row of a run once, also after a kill, and that failing trackers do not stop a run."""

import contextlib
import csv
import functools
import importlib
import json
import math
import os
import signal
import struct
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

import fdqn
from fdqn import cli
from fdqn.experiment import events, session, sweep, sweep_plan, sweep_results, tracked_rows, trackers, tracking
from fdqn.experiment.settings import Settings, Sweep
from fdqn.report import plots, statistics
from fdqn.training import iteration, loop

TINY = dict(
    env="catch", seeds=3, steps=300, learning_starts=100, report_every=50, checkpoint_every=100, batch_size=8,
    hidden=(8,), evaluate_episodes=2, evaluate_every=100, compile=False,
)  # fmt: skip


IMPORT = tracking._import


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, light_runs):
    """Change to an empty folder, in which the trackers keep their files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(iteration, "check_cycle", lambda *given: None)  # other tests call it
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true", "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("WANDB_PROJECT", "WANDB_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def rows(path):
    """Read the rows of a CSV file as numbers, NaN where a field is empty."""
    with open(path, newline="") as file:
        return [{name: float(x or "nan") for name, x in row.items()} for row in csv.DictReader(file)]


def columns(path):
    """Read the columns of both files of a run folder: steps [P], and values [P, S] by name."""
    metrics = rows(path / "metrics.csv")
    steps = sorted({int(row["step"]) for row in metrics})
    found = {name: np.array([row[name] for row in metrics]).reshape(len(steps), -1) for name in metrics[0]}
    found["speed"] = found["step"] / found["seconds"]
    found["evaluation"] = np.full_like(found["speed"], np.nan)
    if (path / "evaluations.csv").exists():
        for row in rows(path / "evaluations.csv"):
            at = steps.index(int(row["step"]))
            found["evaluation"][at, list(metrics[0]).index("step") + int(row["seed"])] = row["return"]
    return steps, found


def expected(path, tags="cleanrl"):
    """Return the points [(step, value), ...] that a tracker should hold, by curve and tag, computed from the files."""
    steps, found = columns(path)
    points = {}
    for name, tag in tracked_rows.TAGS[tags].items():
        x = found[name]
        for seed in range(x.shape[1]):
            points[f"seed-{seed}", tag] = list(zip(steps, x[:, seed], strict=True))
        filled = plots.filled(x)
        for at, step in enumerate(steps):
            if name == "evaluation" and np.isnan(x[at]).all():
                continue
            alive = filled[at][np.isfinite(filled[at])]
            if len(alive):
                points.setdefault(("aggregate", tag), []).append((step, float(statistics.iqm(alive))))
            if len(alive) > 1 and name in ("return", "evaluation"):
                points.setdefault(("aggregate", f"{tag}_low"), []).append((step, alive.min()))
                points.setdefault(("aggregate", f"{tag}_high"), []).append((step, alive.max()))
    points = {key: [(step, x) for step, x in values if math.isfinite(x)] for key, values in points.items()}
    return {key: values for key, values in points.items() if values}


def assert_shows(path, held, speed=True, rtol=1e-12):
    """Check that a tracker holds the points of the files, each once. `speed`: also compare steps per second."""
    wanted = expected(path)
    assert set(held) == set(wanted)
    for key, points in wanted.items():
        assert [step for step, _ in held[key]] == [step for step, _ in points], key
        if speed or key[1] != "charts/SPS":
            np.testing.assert_allclose([x for _, x in held[key]], [x for _, x in points], rtol=rtol, err_msg=str(key))


# A tracker in memory


class Memory:
    """A tracker that keeps its points, and raises an error in `fails` or waits in `blocks`."""

    def __init__(self, fails="", blocks="", deletes=True):
        self.fails, self.blocks, self.deletes = fails, blocks, deletes
        self.points, self.runs, self.closed, self.release = {}, [], [], threading.Event()

    def at(self, stage):
        if self.blocks == stage:
            self.release.wait()
        if self.fails == stage:
            raise OSError(28, "No space left on device")

    def __call__(self, run):
        self.at("open")
        self.runs.append(run)
        if self.deletes:
            self.points.clear()
        held = {}
        for (curve, _), points in self.points.items():
            held[curve] = max(held.get(curve, -1), points[-1][0])
        return trackers.Sink(self.write, self.close, held, "in memory")

    def write(self, points):
        for at in points:
            if at.step >= 150:
                self.at("write")
            for curve, values in at.values.items():
                for tag, value in values.items():
                    self.points.setdefault((curve, tag), []).append((at.step, value))

    def close(self, finished):
        self.at("close")
        self.closed.append(finished)


@pytest.fixture
def using(monkeypatch):
    """Return a function that replaces a tracker, by default TensorBoard, by one in memory."""
    made = []

    def use(name="tensorboard", **how):
        made.append(Memory(**how))
        monkeypatch.setitem(trackers.ADAPTERS, name, made[-1])
        monkeypatch.setattr(tracking, "_import", lambda name: None)
        return made[-1]

    yield use
    for memory in made:
        memory.release.set()


def train(**changes):
    """Train with the tracker in memory, and return the run and the texts of its notices."""
    notices = []
    given = {**TINY, "out": "run", "track": "tensorboard", "progress": False, **changes}
    run = fdqn.train(
        **given, on_event=lambda event: notices.append(event.text) if isinstance(event, events.Notice) else 0
    )
    return run, notices


def test_a_tracker_shows_the_rows(using):
    memory = using()
    run, notices = train()
    assert_shows(run.path, memory.points)
    assert notices == ["tensorboard: in memory"]
    assert memory.closed == [True]
    (tracked,) = memory.runs
    assert [curve.name for curve in tracked.curves] == ["seed-0", "seed-1", "seed-2", "aggregate"]
    assert [curve.config["seed"] for curve in tracked.curves] == [0, 1, 2, 0]
    assert tracked.curves[0].config["gamma"] == run.settings.gamma


@pytest.mark.parametrize("plant", ["twice", "missing", "value"])
def test_wrong_points_are_detected(alone, plant):
    held = expected(alone.path)
    assert_shows(alone.path, held)
    points = held["seed-1", "charts/episodic_return"]
    if plant == "twice":
        points.insert(1, points[0])
    elif plant == "missing":
        points.pop(2)
    else:
        points[2] = (points[2][0], points[2][1] + 0.01)
    with pytest.raises(AssertionError):
        assert_shows(alone.path, held)


def test_tags_of_stable_baselines3(using):
    memory = using()
    run, _ = train(tags="sb3")
    assert {tag for curve, tag in memory.points if curve == "seed-0"} == {
        "rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/exploration_rate", "time/fps", "train/learning_rate",
        "train/loss", "eval/mean_reward",
    }  # fmt: skip
    wanted = expected(run.path, "sb3")
    assert memory.points["seed-2", "train/loss"] == wanted["seed-2", "train/loss"]


def test_an_untracked_run_has_no_record(alone):
    assert not (alone.path / "tracking.json").exists()


def test_many_seeds_show_their_aggregate(using):
    memory = using()
    run, notices = train(seeds=tracked_rows.MAX_SEEDS + 1, evaluate_every=0, steps=150)
    assert {curve for curve, _ in memory.points} == {"aggregate"}
    assert "trackers show only the aggregate of the seeds, as there are more than 32" in notices
    estimate = statistics.interval(plots.filled(run.curve.values)[-1], resamples=500)
    assert memory.points["aggregate", "charts/episodic_return_low"][-1][1] == pytest.approx(float(estimate.low))
    curves = tracked_rows.curves(Settings(seeds=tracked_rows.MAX_SEEDS))
    assert len(curves) == tracked_rows.MAX_SEEDS + 1
    assert [curve.name for curve in tracked_rows.curves(Settings(seeds=1, seed=7))] == ["seed-7"]


# Failures


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return fdqn.train(**TINY, out=tmp_path_factory.mktemp("alone") / "run", progress=False)


def assert_same_run(run, alone):
    assert (run.path / "params.safetensors").read_bytes() == (alone.path / "params.safetensors").read_bytes()
    (steps, found), (other, wanted) = columns(run.path), columns(alone.path)
    assert steps == other
    for name in set(found) - {"seconds", "speed"}:
        np.testing.assert_array_equal(found[name], wanted[name])


STAGES = {"tensorboard": "open", "wandb": "write", "trackio": "close"}


def test_trackers_that_fail_are_reported_once_and_do_not_change_the_run(using, alone):
    memories = {name: using(name, fails=stage) for name, stage in STAGES.items()}
    run, notices = train(track=[*STAGES])
    reason = "OSError: [Errno 28] No space left on device; fdqn resume adds the missing points"
    assert sorted(text for text in notices if "failed" in text) == sorted(
        f"{name} failed, and the run continues without it: {reason}" for name in STAGES
    )
    assert_same_run(run, alone)
    assert memories["wandb"].points, "the points before the failure are kept"
    for memory in memories.values():
        memory.fails = ""
    fdqn.resume("run", steps=350, progress=False)
    for memory in memories.values():
        assert_shows(run.path, memory.points)


def test_trackers_that_block_do_not_delay_the_end(using, alone):
    for name, stage in STAGES.items():
        using(name, blocks=stage)
    notices, at, settings = [], [], Settings(**TINY, out="run")
    with tracking.tracked(tracking.Choice(tuple(STAGES)), notices.append, timeout=0.2) as receive:
        run = session.train(settings, receive)
        at.append(time.monotonic())
    assert time.monotonic() - at[0] < 5
    assert notices[-3:] == [
        events.Notice(
            f"{name} has not responded for 0.2 s; fdqn does not wait for it any longer; fdqn resume adds the "
            "missing points"
        )
        for name in STAGES
    ]
    assert_same_run(run, alone)


def test_a_slow_tracker_is_waited_for(using):
    memory = using()
    slow = functools.partial(lambda write, points: (time.sleep(0.1), write(points)), memory.write)
    memory.write = slow
    settings = Settings(**TINY, out="run")
    with tracking.tracked(tracking.Choice(("tensorboard",)), events.ignore, timeout=5) as receive:
        run = session.train(settings, receive)
    assert_shows(run.path, memory.points)


@pytest.mark.parametrize("kind", ["rewritten", "continued", "planted"])
def test_a_run_interrupted_after_a_checkpoint_continues(using, monkeypatch, kind):
    """Resume without duplicate points. Without `held`, a tracker that cannot delete points would have duplicates."""
    memory = using(deletes=kind == "rewritten")
    monkeypatch.setattr(tracking, "_CPU_FRACTION", math.inf)

    def fail(event):
        if isinstance(event, events.Reported) and event.step == 250:
            raise KeyError("mine")

    with pytest.raises(KeyError):
        fdqn.train(**TINY, out="run", track="tensorboard", progress=False, on_event=fail)
    assert memory.closed == [False]
    assert memory.points["seed-0", "charts/epsilon"][-1][0] == 250
    if kind == "planted":
        monkeypatch.setitem(trackers.ADAPTERS, "tensorboard", lambda run: memory(run)._replace(held={}))
    fdqn.resume("run", progress=False)
    with pytest.raises(AssertionError) if kind == "planted" else contextlib.nullcontext():
        assert_shows(Path("run"), memory.points, speed=kind == "rewritten")


# Resume


@pytest.mark.parametrize("deletes", [True, False])
def test_a_stopped_run_continues_without_the_report_of_the_stop(using, alone, monkeypatch, deletes):
    memory, seen, calls = using(deletes=deletes), [], []
    monkeypatch.setattr(loop, "CYCLES_PER_CALL", 1)  # allow a stop after every iteration
    fdqn.train(
        **TINY, out="run", track="tensorboard", progress=False, on_event=seen.append,
        stop=lambda: calls.append(0) or len(calls) > 17,
    )  # fmt: skip
    reports = [event for event in seen if isinstance(event, events.Reported)]
    assert not reports[-1].planned
    assert reports[-1].step not in [step for step, _ in memory.points["seed-0", "charts/epsilon"]]
    run = fdqn.resume("run", progress=False)
    assert memory.closed == [False, True]
    assert_shows(run.path, memory.points)
    assert_same_run(run, alone)
    assert len({tracked.id for tracked in memory.runs}) == 1


def test_resume_changes_trackers(using):
    memory = using()
    fdqn.train(**TINY, out="run", progress=False)
    fdqn.resume("run", steps=350, track="tensorboard", tags="cleanrl", progress=False)
    assert_shows(Path("run"), memory.points)
    assert abs(memory.runs[0].started - time.time()) < 60
    memory.points.clear()
    fdqn.resume("run", steps=400, track=(), progress=False)
    assert not memory.points
    assert json.loads(Path("run/tracking.json").read_text())["trackers"] == ["tensorboard"], (
        "the last call was not tracked"
    )
    fdqn.resume("run", steps=450, progress=False)
    assert_shows(Path("run"), memory.points)


@pytest.mark.parametrize("deletes", [True, False])
def test_a_finished_run_is_shown_from_its_start(using, capsys, deletes):
    memory = using(fails="write", deletes=deletes)
    run, notices = train()
    assert any("failed" in text for text in notices)
    files = {file.name: file.read_bytes() for file in run.path.iterdir() if file.is_file()}
    memory.fails = ""
    fdqn.resume("run", progress=False)
    assert_shows(run.path, memory.points)
    other = using("mlflow", deletes=deletes)
    command("resume run --track tensorboard mlflow")
    assert "mlflow: in memory" in capsys.readouterr().err
    for shown in (memory, other):
        assert_shows(run.path, shown.points)
        assert shown.closed[-1] is True
    assert json.loads(Path("run/tracking.json").read_text())["trackers"] == ["tensorboard", "mlflow"]
    assert {name: Path("run", name).read_bytes() for name in files if name != "tracking.json"} == {
        name: content for name, content in files.items() if name != "tracking.json"
    }


def test_a_damaged_record_is_refused(here):
    record = {"id": "0123abcd", "started": 1.5, "trackers": [], "tags": "sb3"}
    file = here / "tracking.json"
    file.write_text(json.dumps(record))
    assert tracking.choose_for_resume(here) == tracking.Choice((), "sb3")
    for change in ({"id": "../x"}, {"trackers": ["excel"]}, {"tags": 3}, {"started": math.inf}, {"trackers": 3}):
        file.write_text(json.dumps({**record, **change}))
        with pytest.raises(ValueError, match=r"tracking\.json: expected the record of trackers, got another; delete"):
            tracking.choose_for_resume(here)


def test_a_tracker_that_is_no_longer_installed(using, monkeypatch):
    using()
    train(steps=150)
    monkeypatch.setattr(tracking, "_import", IMPORT)
    monkeypatch.setattr(tracking, "_MODULES", {"tensorboard": ("no_such_module",)})
    with pytest.raises(ValueError, match=r"pip install 'fdqn\[tensorboard\]'; or resume without .*--track none"):
        fdqn.resume("run", steps=200, progress=False)


# Sweeps


def test_a_sweep_shows_the_aggregate_of_each_setting(using):
    memory = using()
    shared = {name: x for name, x in TINY.items() if name != "evaluate_every"} | {"steps": 150}
    fdqn.sweep(
        {"learning_rate": [1e-3, 1e-2], "gamma": [0.9, 0.99]}, **shared, out="sweep", track="tensorboard",
        progress=False,
    )  # fmt: skip
    assert {curve for curve, _ in memory.points} == {f"setting-{k}" for k in range(4)}
    assert [curve.config["gamma"] for curve in memory.runs[0].curves] == [0.9, 0.99, 0.9, 0.99]
    found = np.array([row["return"] for row in rows("sweep/metrics.csv")]).reshape(3, 12)
    returns = plots.filled(found)[-1, 3:6]
    assert memory.points["setting-1", "charts/episodic_return"][-1][1] == float(statistics.iqm(returns))


def test_a_sweep_of_several_programs(using):
    memory, notices = using(deletes=False), []
    shared = {name: x for name, x in TINY.items() if name not in ("evaluate_every", "hidden")} | {"steps": 150}
    found = fdqn.sweep(
        {"gamma": [0.9, 0.99], "hidden": [(8,), (4,)]}, **shared, out="sweep", track="tensorboard", progress=False,
        on_event=lambda event: notices.append(event.text) if isinstance(event, events.Notice) else 0,
    )  # fmt: skip
    assert {curve for curve, _ in memory.points} == {f"setting-{k}" for k in range(4)}
    for run in memory.runs:
        for curve in run.curves:
            number = int(curve.name.split("-")[1])
            assert tuple(curve.config["hidden"]) == found.settings[number].hidden
            assert curve.config["gamma"] == found.settings[number].gamma
            assert memory.points[curve.name, "charts/episodic_return"][-1][1] == pytest.approx(
                float(statistics.iqm(plots.filled(found.curves[number].values)[-1]))
            )
    assert notices.count("tensorboard: in memory") == 1
    assert sweep_results.is_sweep(Path("sweep"))
    assert tracking.choose_for_resume(Path("sweep")) == tracking.Choice(("tensorboard",), "cleanrl")


SEVERAL = {"gamma": [0.9, 0.99], "hidden": [(8,), (4,)]}
IN_PROGRAMS = {name: x for name, x in TINY.items() if name not in ("evaluate_every", "hidden")} | {"steps": 150}


@pytest.mark.parametrize("stage", ["open", "write", "close"])
def test_a_tracker_that_fails_is_reported_once_for_all_programs(using, stage):
    memory, notices = using(fails=stage, deletes=False), []
    fdqn.sweep(
        SEVERAL, **IN_PROGRAMS, out="sweep", track="tensorboard", progress=False,
        on_event=lambda event: notices.append(event.text) if isinstance(event, events.Notice) else 0,
    )  # fmt: skip
    assert len([text for text in notices if "failed" in text]) == 1
    memory.fails = ""
    fdqn.resume_sweep("sweep", progress=False)
    assert_settings_are_shown(memory)
    assert memory.closed == [True, True]


def assert_settings_are_shown(memory):
    steps = [50, 100, 150]
    for k in range(4):
        assert [step for step, _ in memory.points[f"setting-{k}", "charts/epsilon"]] == steps


@pytest.mark.parametrize("at", ["start", "end"])
def test_a_new_tracker_shows_the_programs_that_had_finished(using, at):
    memory, calls = using(deletes=False), []
    with contextlib.suppress(ValueError):
        fdqn.sweep(
            SEVERAL, **IN_PROGRAMS, out="sweep", progress=False,
            on_event=lambda event: calls.append(event) if isinstance(event, events.Started) else 0,
            stop=lambda: at == "start" and len(calls) > 1,
        )  # fmt: skip
    fdqn.resume_sweep("sweep", track="tensorboard", progress=False)
    assert_settings_are_shown(memory)


def test_a_blocked_tracker_is_waited_for_once_for_all_programs(using):
    using(blocks="open")
    notices, plan = [], sweep_plan.plan({**IN_PROGRAMS, "out": "sweep"}, SEVERAL)
    with tracking.tracked(tracking.Choice(("tensorboard",)), notices.append, timeout=0.5) as receive:
        sweep.train(plan, receive)
        at = time.monotonic()
    assert time.monotonic() - at < 0.9
    assert len([event for event in notices if "has not responded" in getattr(event, "text", "")]) == 1


def test_a_sweep_of_too_many_settings_is_refused_before_it_starts(using, here):
    using()
    with pytest.raises(ValueError, match="track: expected a sweep of at most 128 settings, got 129; omit track"):
        fdqn.sweep({"gamma": np.linspace(0.9, 0.99, 129).tolist()}, env="catch", track="tensorboard", progress=False)
    assert not list(here.iterdir())


# The command


def command(line):
    assert cli.main(line.split()) == 0


def test_the_command_tracks_and_resumes(using, capsys):
    memory = using()
    small = "--env catch --seeds 3 --steps 150 --learning-starts 100 --report-every 50 --batch-size 8 --no-compile"
    command(f"train {small} --out run --track tensorboard --tags cleanrl --json")
    out, err = capsys.readouterr()
    assert json.loads(out)["steps"] == 150
    assert "tensorboard: in memory" in err
    assert_shows(Path("run"), memory.points)
    command("resume run --steps 200")
    assert_shows(Path("run"), memory.points)
    command("resume run --steps 250 --track none")
    assert max(step for step, _ in memory.points["seed-0", "charts/epsilon"]) == 200


def test_the_command_tracks_and_resumes_a_sweep(using):
    memory = using()
    small = "--env catch --seeds 2 --steps 150 --learning-starts 100 --report-every 50 --batch-size 8 --no-compile"
    command(f"train {small} --gamma 0.9 0.99 --out sweep --track tensorboard")
    command("resume sweep --steps 200")
    assert {curve for curve, _ in memory.points} == {"setting-0", "setting-1"}
    assert max(step for step, _ in memory.points["setting-0", "charts/epsilon"]) == 200


@pytest.mark.parametrize("name", trackers.ADAPTERS)
def test_a_missing_package_is_refused_before_anything_is_written(here, capsys, monkeypatch, name):
    missing = dict.fromkeys(tracking._MODULES, ("no_such_module",))
    monkeypatch.setattr(tracking, "_MODULES", missing)
    assert cli.main(["train", "--track", name, "--out", "run"]) == 1
    message = f"fdqn: track: expected the packages of {name}, got none; pip install 'fdqn[{name}]'"
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert not (here / "run").exists()


def test_names_are_checked():
    assert tracking.check_names(["wandb", "mlflow"], "sb3") == tracking.Choice(("wandb", "mlflow"), "sb3")
    assert tracking.choose(()) == tracking.Choice()
    with pytest.raises(ValueError, match=r"track: expected one of .*, got 'tensorbord'; did you mean 'tensorboard'"):
        tracking.choose("tensorbord")
    tracking.check_settings(tracking.Choice(), 10**6)


# Rows of files


def test_rows_are_read_once_they_are_complete(tmp_path):
    file = tmp_path / "metrics.csv"
    text = "step,seed,return,seconds\r\n10,0,1,0.5\r\n10,1,,0.5\r\n20,0,3,1\r\n20,1,4,1\r\n30,0,5,2\r\n30,1,6"
    read = tracked_rows.reader(tmp_path, 2)
    assert list(read(50)) == []
    file.write_bytes(text.encode())
    (first,) = read(10)
    np.testing.assert_array_equal(first.columns["return"], [1.0, np.nan])
    assert (first.step, first.seconds) == (10, 0.5)
    assert [report.step for report in read(50)] == [20], "the row of step 30 is incomplete"
    file.write_bytes(f"{text},2\r\n".encode())
    assert [report.step for report in read(50)] == [30]
    assert list(read(50)) == []


def test_points_are_a_function_of_rows():
    """Count a seed without a value with its previous one in the aggregate, and give it no point."""
    curves = tracked_rows.curves(Settings(seeds=2))
    tags = {"return": "return"}
    last, points = tracked_rows.points(
        {}, tracked_rows.Report(1, 1.0, {"return": np.array([1.0, np.nan])}), curves, tags
    )
    assert points.values == {"seed-0": {"return": 1.0}, "seed-1": {}, "aggregate": {"return": 1.0}}
    _, points = tracked_rows.points(
        last, tracked_rows.Report(2, 2.0, {"return": np.array([np.nan, 3.0])}), curves, tags
    )
    assert points.values["aggregate"] == {"return": 2.0, "return_low": 1.0, "return_high": 3.0}
    assert points.values["seed-0"] == {}
    assert set(tracked_rows.drop_held(points, {"aggregate": 2, "seed-1": 1}).values) == {"seed-1"}
    sweep = Sweep(seeds=2, varied=({"gamma": 0.9}, {"gamma": 0.99}))
    assert [curve.name for curve in tracked_rows.curves(sweep, (5, 7))] == ["setting-5", "setting-7"]


def test_records_of_a_wandb_file():
    """Join records that span blocks, and end at a record that a kill has cut off."""
    contents = [b"a" * 10, b"b" * 70_000, b"c" * (2**15 - 20), b"d"]
    log = b":W&B\x00\x00\x00"
    for content in contents:
        first = True
        while content or first:
            if (left := 2**15 - len(log) % 2**15) < 7:
                log += bytes(left)
                continue
            part, content = content[: left - 7], content[left - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not content]
            log += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
    assert list(trackers._records(log)) == contents
    assert list(trackers._records(log[:-1])) == contents[:-1]
    assert list(trackers._records(b"")) == []


# The packages of the trackers, after a kill


def kill_after(step, names, path):
    """Train in this process, wait until the trackers have written the report of a step, and kill the process."""
    written = dict.fromkeys(names, -1)

    def noted(name, adapter, run):
        sink = adapter(run)

        def write(points):
            sink.write(points)
            written[name] = points[-1].step

        return sink._replace(write=write)

    tracking._CPU_FRACTION = math.inf
    for name in names:
        trackers.ADAPTERS[name] = functools.partial(noted, name, trackers.ADAPTERS[name])

    def on_event(event):
        if isinstance(event, events.Reported) and event.step == step:
            deadline = time.monotonic() + 100
            while min(written.values()) < step and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    fdqn.train(**TINY, out=path, track=names, progress=False, on_event=on_event)


def killed(names, path):
    """Train in a child that is killed 50 steps after a checkpoint."""
    if not (child := os.fork()):
        with contextlib.suppress(BaseException):
            kill_after(250, names, path)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert max(row["step"] for row in rows(Path(path) / "metrics.csv")) == 250
    assert (
        sorted(int(stage.name) for stage in (Path(path) / "checkpoints").iterdir() if stage.name.isdigit())[-1] == 200
    )


def event_files(path):
    """Read the scalars of TensorBoard's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for folder in (path / "tensorboard").iterdir():
        accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            found[folder.name, tag] = [(event.step, event.value) for event in accumulator.Scalars(tag)]
    return found


def wandb_files(path):
    """Read the histories of all files of each W&B run, once its process has written the end of the last one."""
    from wandb.proto.wandb_internal_pb2 import Record

    found, places = {}, sorted((path / "wandb").glob("offline-run-*/run-*.wandb"))
    newest = {file.stem: file for file in places}
    for file in places:
        deadline = time.monotonic() + 60
        while True:
            records = [Record.FromString(content) for content in trackers._records(file.read_bytes())]
            if (
                file != newest[file.stem]
                or any(record.HasField("exit") for record in records)
                or time.monotonic() > deadline
            ):
                break
            time.sleep(0.05)
        for record in records:
            if not record.HasField("history"):
                continue
            values = {(x.key or "/".join(x.nested_key)): json.loads(x.value_json) for x in record.history.item}
            assert values.pop("global_step") == record.history.step.num
            for tag, value in values.items():
                if not tag.startswith("_"):
                    found.setdefault((file.stem.split("-", 2)[2], tag), []).append((record.history.step.num, value))
    return found


def trackio_store(path):
    from trackio.sqlite_storage import SQLiteStorage

    found, uid = {}, json.loads((path / "tracking.json").read_text())["id"]
    for record in SQLiteStorage.get_run_records("fdqn"):
        if not record["id"].startswith(uid):
            continue
        for row in SQLiteStorage.get_logs("fdqn", record["name"], run_id=record["id"]):
            for tag, value in row.items():
                if tag not in ("step", "timestamp"):
                    found.setdefault((record["id"].split("-", 1)[1], tag), []).append((row["step"], value))
    return {key: sorted(points) for key, points in found.items()}  # the store sorts by time


def mlflow_store(path):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{path.absolute().parent / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'fdqn'")
    found = client.search_runs([experiment.experiment_id])
    curves = {run.info.run_id: run.data.tags["fdqn.curve"] for run in found}
    assert sorted(curves.values()) == ["aggregate", "seed-0", "seed-1", "seed-2"]
    parents = {curves[run.data.tags["mlflow.parentRunId"]] for run in found if "mlflow.parentRunId" in run.data.tags}
    assert parents == {"aggregate"}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.data.params["env"] for run in found} == {"catch"}
    return {
        (curves[run.info.run_id], tag): [
            (metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, tag)
        ]
        for run in found
        for tag in run.data.metrics
    }


def test_each_name_has_its_tracker():
    opened = (trackers.tensorboard, trackers.wandb, trackers.trackio, trackers.mlflow)
    assert {name: adapter for name, adapter in zip(READERS, opened, strict=True)} == trackers.ADAPTERS
    assert tuple(READERS) == get_args(tracking.TrackerName)
    assert set(tracked_rows.TAGS) == set(get_args(tracking.TagSet))


READERS = {"tensorboard": event_files, "wandb": wandb_files, "trackio": trackio_store, "mlflow": mlflow_store}


def interrupted(names, path):
    """Train until an exception 50 steps after a checkpoint, with time for the trackers to write everything."""

    def fail(event):
        if isinstance(event, events.Reported) and event.step == 250:
            raise KeyError("mine")

    with pytest.raises(KeyError):
        fdqn.train(**TINY, out=path, track=names, progress=False, on_event=fail)


@pytest.mark.filterwarnings("ignore")  # warnings of the packages
@pytest.mark.parametrize("end", [killed, interrupted])
@pytest.mark.parametrize("name", READERS)
def test_a_resumed_run_has_each_point_once_in_its_tracker(here, name, end):
    pytest.importorskip(name)
    if name == "mlflow":
        pytest.importorskip("alembic")
    for module in tracking._MODULES[name]:
        importlib.import_module(module)  # import here, not in the child process
    if name == "trackio":
        importlib.import_module("trackio.utils").TRACKIO_DIR = here / "trackio"
    end([name], "run")
    run = fdqn.resume("run", progress=False)
    read = READERS[name](run.path)
    float32 = name == "tensorboard"
    assert_shows(run.path, read, speed=float32, rtol=1e-6 if float32 else 1e-12)


@pytest.mark.parametrize("name", ["tensorboard"])
def test_the_settings_and_the_band_are_in_the_event_files(name):
    pytest.importorskip(name)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fdqn.train(**TINY | {"steps": 150}, out="run", track=name, progress=False)
    accumulator = EventAccumulator(str(run.path / "tensorboard" / "aggregate"))
    accumulator.Reload()
    assert "custom_scalars__config__" in accumulator.Tags()["tensors"]
    (text,) = accumulator.Tensors("hyperparameters/text_summary")
    assert b"|gamma|0.99|" in text.tensor_proto.string_val[0]
    first = accumulator.Scalars("charts/epsilon")[0]
    (row, *_) = rows(run.path / "metrics.csv")
    started = json.loads((run.path / "tracking.json").read_text())["started"]
    assert first.wall_time == pytest.approx(started + row["seconds"])


def test_the_parent_run_has_the_common_settings():
    sweep = Sweep(varied=({"gamma": 0.9}, {"gamma": 0.99}), learning_rate=0.5)
    found = trackers._common(tracked_rows.curves(sweep))
    assert "gamma" not in found
    assert (found["learning_rate"], found["seed"]) == (0.5, 0)
    for seeds in (1, 3):
        assert trackers._common(tracked_rows.curves(Settings(seeds=seeds, seed=4)))["seed"] == 4


def test_wandb_without_a_login_is_refused(here, monkeypatch):
    pytest.importorskip("wandb")
    wandb = importlib.import_module("wandb")
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(mode="online")))
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: False)
    with pytest.raises(ValueError, match="track: expected a login to W&B, got none; run wandb login"):
        fdqn.train(**TINY, out="run", track="wandb", progress=False)
    assert not (here / "run").exists()
