"""Records of runs and resumption from them, also from damaged or changed folders."""

import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal

import numpy as np
import pytest
from test_checkpoint import reseal
from test_resume import LONGER, SETTINGS, continue_run, flags, initialized, rows, start_run

from fdqn import cli, training, tree
from fdqn.experiment import assemble, history, results, run_folder
from fdqn.experiment.settings import to_json
from fdqn.report import statistics
from fdqn.storage import checkpoint
from fdqn.testing import asserts
from fdqn.training import loop

OFTEN = dataclasses.replace(SETTINGS, checkpoint_every=15, keep_checkpoints=3, evaluate_every=0)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Return a run that was stopped at step 60 of 90, with at least three checkpoints."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "CYCLES_PER_CALL", 1)
        start_run(path, OFTEN, training.vmapped(assemble.program(OFTEN)), stop_after=20)
    assert len(checkpoint.newest(path / "checkpoints")) >= 3
    return path


@pytest.fixture
def run(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def restore(path, settings=OFTEN, **given):
    return history.restored(path, settings, *initialized(settings), **given)


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def newest(path):
    return checkpoint.newest(path / "checkpoints")[0]


def change_record(path, **changes):
    """Change the record of the newest checkpoint and its checksum; None removes an entry."""
    record = checkpoint.record(newest(path)) | changes
    reseal(newest(path), record={name: x for name, x in record.items() if changes.get(name, ...) is not None})


def test_checkpoint_info(run):
    at = history.checkpoint_info(newest(run))
    assert (at.step, at.failed) == (int(newest(run).name), 0)
    text = (run / "metrics.csv").read_bytes()[: at.rows["metrics.csv"]["bytes"]]
    assert at.rows["metrics.csv"]["sha256"] == hashlib.sha256(text).hexdigest()
    assert at.rows["evaluations.csv"] == {"bytes": 0, "sha256": ""}


INVALID_RECORDS = {
    "nothing": dict.fromkeys(history.CheckpointInfo._fields),
    "no score": {"score": None} | {"failed": None},
    "a string for a step": {"step": "x"},
    "another step": {"step": 7},
    "True for a step": {"step": True},
    "settings as a list": {"settings": ["env"]},
    "rows as a list": {"rows": [1]},
    "rows of other files": {"rows": {"../victim": {"bytes": 0, "sha256": ""}}},
    "rows of one more file": {
        "rows": {name: {"bytes": 0, "sha256": ""} for name in (*history.ROWS, "../../victim", "/tmp/victim")}
    },
    "negative rows": {"rows": {name: {"bytes": -1, "sha256": ""} for name in history.ROWS}},
    "giant rows": {"rows": {name: {"bytes": 10**400, "sha256": ""} for name in history.ROWS}},
    "a string for a score": {"score": "high"},
    "a string for failed": {"failed": "none"},
}


@pytest.mark.parametrize("name", INVALID_RECORDS)
def test_a_checkpoint_with_an_invalid_record_is_refused(run, name):
    victim = run.parent / "victim"
    victim.write_text("not yours")
    change_record(run, **INVALID_RECORDS[name])
    before = content(run.parent)
    with pytest.raises(checkpoint.CheckpointError, match="expected the record of a run's checkpoint"):
        restore(run)
    assert content(run.parent) == before


def test_a_skipped_checkpoint_is_renamed(run):
    """Check that a damaged checkpoint is renamed, so that later saves are not affected by it."""
    damaged, before = newest(run), checkpoint.newest(run / "checkpoints")[1]
    (damaged / "manifest.json").write_text("{}")
    where = restore(run, fallback=True)
    assert where.step == int(before.name)
    assert where.skipped == (damaged,)
    assert [p.name for p in (run / "checkpoints").glob("*.damaged")] == [f"{damaged.name}.damaged"]
    settings = dataclasses.replace(OFTEN, keep_checkpoints=1)
    last = continue_run(run, settings, training.vmapped(assemble.program(OFTEN)), where)
    assert newest(run).name == "90"
    assert last.step == 90
    with pytest.raises(checkpoint.CheckpointError, match="no such"):
        checkpoint.mark_damaged(run / "checkpoints" / "no such")


INVALID = {
    "metrics.cause": 99,
    "metrics.failed": -9,
    "metrics.episodes": 10**9,
    "learner.updates": 10**9,
    "buffer.added": 2**63 - 2,
    "cycle": 1,
    "emptied": 10**9,
    "key": 5,
    "hyper.learning_rate": 9.0,
}


def test_a_state_with_wrong_counters_is_refused(run):
    folder, settings = newest(run), OFTEN
    program, state = initialized(settings)
    like = {"lanes": state, "since": tree.from_numpy(training.snapshot(program, state))}
    read, record = checkpoint.load(folder, like)
    for path, value in INVALID.items():
        changed = tree.clone(read["lanes"])
        leaf = changed
        for name in path.split("."):
            leaf = getattr(leaf, name)
        leaf.fill_(value)
        checkpoint.save(run / "checkpoints", folder.name, read | {"lanes": changed}, record)
        with pytest.raises(checkpoint.CheckpointError, match="expected counters of step"):
            restore(run)


def test_a_checkpoint_of_version_0_1_matches_its_settings(tmp_path):
    now = to_json(OFTEN)
    before = {name: value for name, value in now.items() if name != "random_warmup"}
    history._check_same(tmp_path, before, now)
    with pytest.raises(ValueError, match="got random_warmup = False and not True"):
        history._check_same(tmp_path, before, {**now, "random_warmup": True})


def test_changed_lines_are_refused(run):
    text = (run / "metrics.csv").read_bytes()
    (run / "metrics.csv").write_bytes(text.replace(b"0", b"1", 1))
    before = content(run)
    with pytest.raises(checkpoint.CheckpointError, match=r"bytes as at .* of step \d+, got others; restore the file"):
        restore(run)
    assert content(run) == before


def test_rows_behind_a_link_are_refused(run, tmp_path):
    victim = tmp_path / "victim"
    shutil.move(run / "metrics.csv", victim)
    (run / "metrics.csv").symlink_to(victim)
    before = victim.read_bytes()
    with pytest.raises(ValueError, match=r"metrics\.csv: expected a plain file, got a link"):
        restore(run)
    assert victim.read_bytes() == before


def test_a_run_with_a_summary_but_no_checkpoint_is_not_restarted(run):
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").write_text("{}")
    before = content(run)
    with pytest.raises(checkpoint.CheckpointError, match="a checkpoint to continue from, got a summary but no"):
        restore(run)
    assert content(run) == before


def report(step, returns, failed):
    count = len(failed)
    blank = {
        name: np.zeros(count)
        for name in ("episodes", "returns", "lengths", "loss", "q", "grad_norm", "epsilon", "updates")
    }
    program, state = initialized(OFTEN)
    state = state._replace(cycle=state.cycle + step // 3)
    return training.Report(
        step=step, **blank, last_returns=np.array(returns, np.float32), failed=np.array(failed),
        cause=np.zeros(count, np.int64), evaluation=None, state=state, planned=True,
        since=training.snapshot(program, state), compile_seconds=0.0, learning_seconds=0.0, learning_updates=0,
        first_update=None,
    )  # fmt: skip


def test_the_best_checkpoint_is_kept_and_failed_seeds_are_excluded(tmp_path):
    settings = dataclasses.replace(OFTEN, keep_checkpoints=1, out=str(tmp_path / "run"))
    run_folder.create(settings)
    nan = np.nan
    course = [
        (15, [[nan], [nan]], [-1, -1], ["15"]),
        (30, [[1.0], [nan]], [-1, -1], ["30"]),
        (45, [[5.0], [7.0]], [-1, -1], ["45"]),
        (60, [[2.0], [3.0]], [-1, -1], ["60", "45"]),
        (75, [[99.0], [5.5]], [9, -1], ["75", "45"]),
        (90, [[0.0], [6.5]], [9, -1], ["90"]),
    ]
    reports = history.record(tmp_path / "run", settings, (report(*x[:3]) for x in course))
    scores = []
    for (step, _, _, kept), _ in zip(course, reports, strict=True):
        there = [p.name for p in checkpoint.newest(tmp_path / "run" / "checkpoints")]
        assert there == kept, step
        scores.append(history.checkpoint_info(tmp_path / "run" / "checkpoints" / str(step)).score)
    assert scores == [None, 1.0, 6.0, 2.5, 5.5, 6.5]


def test_seconds_continue_after_resumption(run):
    where = restore(run)
    assert where.seconds == history.checkpoint_info(newest(run)).seconds > 0
    continue_run(run, OFTEN, training.vmapped(assemble.program(OFTEN)), where._replace(seconds=1000.0))
    assert float(rows_with_seconds(run)[-1]["seconds"]) > 1000
    assert history.checkpoint_info(newest(run)).seconds > 1000


def rows_with_seconds(path):
    import csv

    with open(path / "metrics.csv", newline="") as lines:
        return list(csv.DictReader(lines))


def test_rows_are_synced_before_a_checkpoint_is_saved(tmp_path, monkeypatch):
    order, sync, save = [], os.fsync, checkpoint.save
    inode = lambda: (tmp_path / "run" / "metrics.csv").stat().st_ino  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.fstat(file).st_ino), sync(file)))
    monkeypatch.setattr(checkpoint, "save", lambda *given: (order.append("save"), save(*given))[1])
    start_run(tmp_path / "run", OFTEN, training.vmapped(assemble.program(OFTEN)), stop_after=1)
    assert inode() in order[: order.index("save")]


# The command


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run"
    settings = dataclasses.replace(LONGER, steps=300)
    assert cli.main(["train", *flags(settings), "--no-compile", "--out", str(path)]) == 0
    return path


@pytest.fixture
def done(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def interrupted(monkeypatch, after):
    """Interrupt the run at the report of the given step."""
    original = history.record

    def record(*given):
        for each in original(*given):
            if each.step == after:
                os.kill(os.getpid(), signal.SIGINT)
            yield each

    monkeypatch.setattr(history, "record", record)


def test_an_interrupted_extension_is_resumed_to_its_end(done, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        interrupted(patched, after=375)
        assert cli.main(["resume", str(done), "--steps", "600"]) == 130
    assert f"; continue with: fdqn resume {done}" in capsys.readouterr().err
    assert results.plan(done)[1] == 600
    assert cli.main(["resume", str(done), "--steps", "450"]) == 1
    assert "expected at least the planned 600, got 450" in capsys.readouterr().err
    assert cli.main(["resume", str(done)]) == 0
    assert "of 600" in capsys.readouterr().err
    assert json.loads((done / "summary.json").read_text())["steps"] == 600
    assert [int(row["step"]) for row in rows(done / "metrics.csv")[::2]] == list(range(75, 601, 75))


def test_on_nan_is_kept_by_a_resumed_run(done, monkeypatch):
    with monkeypatch.context() as patched:
        interrupted(patched, after=375)
        assert cli.main(["resume", str(done), "--steps", "600", "--on-nan", "stop"]) == 130
    assert results.plan(done)[0].on_nan == "stop"
    run_folder.replan(done, 600, dataclasses.replace(results.plan(done)[0], on_nan="freeze"))
    assert results.plan(done)[0].on_nan == "freeze"


def test_a_full_disk_after_ctrl_c_is_reported(done, monkeypatch, capfd):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        interrupted(monkeypatch, after=375)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))
        assert cli.main(["resume", str(done), "--steps", "600"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "expected to write a checkpoint, got File too large" in capfd.readouterr().err
    assert newest(done).name == "300"


def test_changes_of_the_machine_are_reported(done, capsys):
    config = json.loads((done / "config.json").read_text())
    config["processor"], config["git"], config["versions"]["numpy"] = "an abacus", "c0ffee", "0.1"
    (done / "config.json").write_text(json.dumps(config))
    assert cli.main(["resume", str(done), "--steps", "375"]) == 0
    err = capsys.readouterr().err
    for words in ("and was an abacus", "and was c0ffee", "numpy is"):
        assert words in err


def spoil(name, change):
    def spoiled(path):
        value = json.loads((path / name).read_text())
        change(value)
        (path / name).write_text(json.dumps(value))

    return spoiled


MALICIOUS = {
    "no versions": spoil("config.json", lambda x: x.pop("versions")),
    "no plan": spoil("config.json", lambda x: x.pop("plan")),
    "a giant plan": spoil("config.json", lambda x: x["plan"].update(steps=10**400)),
    "giant steps": spoil("config.json", lambda x: x["settings"].update(steps=10**400)),
    "an engine that is a list": spoil("config.json", lambda x: x.update(engine=[1])),
    "a plan with a string": spoil("config.json", lambda x: x["plan"].update(steps="many")),
    "deep JSON": lambda path: (path / "config.json").write_text("[" * 200_000),
    "a pipe": lambda path: ((path / "config.json").unlink(), os.mkfifo(path / "config.json")),
    "a link to checkpoints": lambda path: (
        shutil.move(path / "checkpoints", path.parent / "elsewhere"),
        (path / "checkpoints").symlink_to(path.parent / "elsewhere"),
    ),
    "another header": lambda path: (path / "metrics.csv").write_text("a,b\n" + (path / "metrics.csv").read_text()),
    "links": lambda path: (shutil.move(path / "metrics.csv", path / "m"), (path / "metrics.csv").symlink_to("m")),
}


def test_too_many_steps_are_refused(done, capsys):
    before = content(done)
    assert cli.main(["resume", str(done), "--steps", str(10**17)]) == 1
    assert "steps: expected at most 2**53, got a number of 18 digits" in capsys.readouterr().err
    assert content(done) == before


def test_an_unreadable_summary_is_ignored(done):
    (done / "summary.json").write_text("[" * 200_000)
    assert results.finished(done) == 0
    assert cli.main(["resume", str(done)]) == 0
    assert results.finished(done) == 300


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_folder_is_refused_in_one_line(done, capsys, name):
    victim = done.parent / "victim"
    victim.write_text("not yours")
    MALICIOUS[name](done)
    before = {name: x for name, x in content(done.parent).items() if not name.endswith((".lock", ".saving"))}
    assert cli.main(["resume", str(done), "--steps", "375"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("fdqn: ")
    assert {name: x for name, x in content(done.parent).items() if not name.endswith((".lock", ".saving"))} == before


def test_links_in_the_folder_are_not_followed(done):
    victim = done.parent / "victim"
    victim.write_text("not yours")
    for name in ("curve.png", "params.safetensors", "summary.json"):
        original = (done / name).read_bytes()
        (done / name).unlink()
        (done / name).symlink_to(victim)
        if name != "curve.png":  # only written, never read
            assert cli.main(["report", str(done)]) in (0, 1)
            (done / name).unlink()
            (done / name).write_bytes(original)
    assert cli.main(["report", str(done)]) == 0
    assert victim.read_text() == "not yours"
    assert not (done / "curve.png").is_symlink()


@pytest.mark.parametrize("name", ["[/a]", "[bold]x"])
def test_names_with_markup_are_printed_unchanged(tmp_path, capsys, name):
    path = tmp_path / name
    settings = dataclasses.replace(LONGER, steps=75)
    assert cli.main(["train", *flags(settings), "--no-compile", "--out", str(path)]) == 0
    assert cli.main(["resume", str(path)]) == 0
    assert f"{path} is finished" in capsys.readouterr().err


def test_a_run_of_one_seed_is_resumed(tmp_path):
    settings = dataclasses.replace(LONGER, steps=150, seeds=1)
    assert cli.main(["train", *flags(settings), "--no-compile", "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["resume", str(tmp_path / "run"), "--steps", "225"]) == 0


def test_row_means():
    given = np.array([[1.0, np.nan, 3.0], [np.nan] * 3, [np.inf, 2.0, 4.0]])
    np.testing.assert_array_equal(statistics.row_means(given), [2.0, np.nan, 3.0])


def test_failed_seeds_are_named(run):
    _, state = initialized(OFTEN)
    one = report(30, [[1.0], [2.0]], [-1, 4])._replace(cause=np.array([0, 2]))
    assert history.failed_seeds(OFTEN, one) == {1: (12, "gradient")}
    asserts.assert_trees_equal(restore(run).state.key, state.key)
