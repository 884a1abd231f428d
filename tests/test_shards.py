"""Shards have the bits of one process, with any number of processes and after any kill; missing ones are reported."""

import contextlib
import csv
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from plants import rejects
from safetensors.torch import load

import fdqn
from fdqn.compile import cpu_groups
from fdqn.experiment import (
    claims,
    events,
    history,
    merging,
    results,
    run_folder,
    session,
    settings,
    shard_folders,
    shard_plan,
    shards,
    sweep,
    sweep_plan,
    sweep_results,
)
from fdqn.storage import checkpoint, files

SMALL = {"env": "catch", "seeds": 4, "seed": 5, "steps": 60, "hidden": (4,), "num_envs": 2, "batch_size": 4}
SMALL |= {"capacity": 32, "learning_starts": 16, "target_period": 4, "compile": False, "report_every": 20}
SMALL |= {"checkpoint_every": 20, "evaluate_episodes": 2, "evaluate_every": 40}
RATES = {"learning_rate": [1e-3, 1e-2, 3e-3]}
HERE = os.uname().nodename
RUN = Path("run")


def planned(out, count=2, **given):
    return shard_plan.plan(settings.make({**SMALL, "out": str(out), **given}), count)


def planned_sweep(out, count=3, **given):
    return shard_plan.plan_sweep(sweep_plan.plan({**SMALL, "seeds": 2, "out": str(out), **given}, RATES), count)


@pytest.fixture(scope="module", autouse=True)
def quick(light):
    """Wait less for other processes, and leave out the slow parts of small runs."""
    light.setattr(shards, "PAUSE", 0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Train 4 seeds in one process."""
    return session.train(settings.make({**SMALL, "out": str(tmp_path_factory.mktemp("whole") / "run")})).path


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Train the same seeds in 2 shards."""
    return shards.train(shard_plan.create(planned(tmp_path_factory.mktemp("merged") / "run")))


@pytest.fixture(scope="module")
def whole_sweep(tmp_path_factory):
    return sweep.train(
        sweep_plan.plan({**SMALL, "seeds": 2, "out": str(tmp_path_factory.mktemp("whole") / "sweep")}, RATES)
    )


def rows(path, name="metrics.csv"):
    """Return the rows of a file in order, without the seconds."""
    with (path / name).open(newline="") as file:
        return [{**row, "seconds": None} for row in csv.DictReader(file)]


def law_equal(path, whole):
    """Compare a merged run with one process: bytes of the parameters, rows, and summary without durations."""
    assert (path / "params.safetensors").read_bytes() == (whole / "params.safetensors").read_bytes(), "params"
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(path, name) == rows(whole, name), f"rows of {name}"
    own, other = (dict(json.loads((x / "summary.json").read_text())) for x in (path, whole))
    seconds = ("env_steps_per_second", "seed_updates_per_second", "first_update_seconds")
    for name in (*seconds, "compile_seconds", "wall_seconds"):
        del own[name], other[name]
    assert own == other, "summary"


def remove_merge(path):
    """Remove the files of a merge."""
    for name in ("config.json", "summary.json", "metrics.csv", "evaluations.csv", "params.safetensors", "curve.png"):
        (path / name).unlink(missing_ok=True)


def copied(merged, path):
    """Copy a merged run without the files of the merge."""
    shutil.copytree(merged, path)
    remove_merge(path)
    return path


# Bits


def test_shards_have_the_bits_of_one_process(whole, merged):
    law_equal(merged, whole)
    run = fdqn.Run.load(merged)
    assert run.settings == dataclasses.replace(results.read_settings(whole), out=run.settings.out)
    assert run.policy(7)(np.zeros((10, 5), np.float32)) in (0, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_any_number_of_shards_has_the_same_bits(whole, tmp_path, count):
    law_equal(shards.train(shard_plan.create(planned(tmp_path / "run", count))), whole)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_64_seeds_have_the_same_bits_in_shards(tmp_path, count, workers):
    path = shard_plan.create(planned(tmp_path / "run", count, seeds=64))
    pids = [forked(shards.train, path) for _ in range(workers - 1)]
    shards.train(path)
    assert [wait(pid) for pid in pids] == [0] * len(pids)
    shards.train(path)
    one = session.train(settings.make({**SMALL, "seeds": 64, "out": str(tmp_path / "one")}))
    law_equal(path, one.path)


@pytest.mark.slow
@pytest.mark.skipif(not cpu_groups.supported(torch.device("cpu")), reason="seeds are not grouped here")
def test_compiled_shards_have_the_same_bits_and_compile_once(tmp_path, monkeypatch):
    """Compare 8 seeds in 4 shards with one process of the same groups, with an empty compiler cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    given = {"compile": True, "engine": "aot", "check_compile": False, "seeds": 8}
    plan, libraries = planned(tmp_path / "run", 4, **given), []

    def seen(event):
        if isinstance(event, events.Finished):
            libraries.append({str(x) for x in (tmp_path / "cache").rglob("*.so")})

    path = shards.train(shard_plan.create(plan), seen)
    assert plan.pinned.lanes in (1, 2)
    assert libraries[0]
    assert libraries == libraries[:1] * 4
    one = dataclasses.replace(plan.settings, out=str(tmp_path / "one"))
    law_equal(path, session.train(one, pinned=plan.pinned).path)


@pytest.mark.parametrize("count", [3, pytest.param(6, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)])
def test_sweeps_have_the_bits_of_one_process(whole_sweep, tmp_path, count):
    """Compare shards of one setting, of a part of one, and of all."""
    path = shards.train(shard_plan.create(planned_sweep(tmp_path / "run", count)))
    law_equal(path, whole_sweep)
    assert (path / "settings.csv").read_text() == (whole_sweep / "settings.csv").read_text()
    own, other = sweep_results.read(path), sweep_results.read(whole_sweep)
    assert own.records == other.records
    assert [row.setting for row in own.ranking()] == [row.setting for row in other.ranking()]


def with_local_seeds(planned, number, path):
    """Return the settings of a shard with a common bug: its seeds start at the first seed of the whole run."""
    return dataclasses.replace(planned.settings, seeds=planned.size, out=str(shard_plan.folder(path, number)))


def in_the_order_of_shards(planned, name, found):
    """Return rows with a common bug: those of each shard follow those of the previous one."""
    tables = [shard.tables[name] for shard in found.values()]
    return [tables[0][0], *(row for _, own in tables for row in own)]


def test_planted_bugs_are_detected(monkeypatch, whole, merged, tmp_path):
    with monkeypatch.context() as patched:
        patched.setattr(merging, "_rows", in_the_order_of_shards)
        path = copied(merged, tmp_path / "a")
        merging.merge(path)
        with rejects("rows of metrics"):
            law_equal(path, whole)
    with monkeypatch.context() as patched:
        patched.setattr(shard_plan.ShardPlan, "shard_settings", with_local_seeds)
        with contextlib.suppress(ValueError):
            shards.train(shard_plan.create(planned(tmp_path / "b")))
        with rejects("params"):
            law_equal(tmp_path / "b", whole)


# Plans


def test_learners_are_numbered_as_in_one_process():
    given = planned("x", 2)
    assert [(own.seed, own.seeds) for own in (given.shard_settings(i, RUN) for i in range(2))] == [(5, 2), (7, 2)]
    assert [shard_folders.learners_text(given, i) for i in range(2)] == ["seeds 5 to 6", "seeds 7 to 8"]
    by_setting, by_seed = planned_sweep("x", 3), planned_sweep("x", 6)
    assert [shard_folders.learners_text(by_setting, i) for i in (0, 2)] == [
        "setting 0, seeds 5 to 6",
        "setting 2, seeds 5 to 6",
    ]
    assert [shard_folders.learners_text(by_seed, i) for i in (1, 4)] == ["setting 0, seed 6", "setting 2, seed 5"]
    assert shard_folders.learners_text(planned_sweep("x", 1), 0) == "settings 0 to 2, seeds 5 to 6"
    for given in (by_setting, by_seed):
        cut = [given.shard_settings(i, RUN) for i in range(given.shards)]
        pairs = [(x.varied[k], x.seed + j) for x in cut for k in range(len(x.varied)) for j in range(x.seeds)]
        assert pairs == [(x, seed) for x in given.settings.varied for seed in (5, 6)]


@pytest.mark.parametrize(
    ("given", "count", "message"),
    [
        (planned, 3, "shards: expected a number that divides 4 seeds such as 1, 2, 4, got 3"),
        (planned, 8, "shards: expected a number that divides 4 seeds such as 1, 2, 4, got 8"),
        (planned, 0, "shards: expected at least 1, got 0"),
        (
            planned_sweep,
            2,
            "shards: expected a number that divides 3 settings x 2 seeds, by settings or parts of one setting, such as "
            "1, 3, 6, got 2",
        ),
    ],
)
def test_shards_that_do_not_divide_the_learners_are_refused(given, count, message):
    with pytest.raises(ValueError, match=message):
        given("x", count)


def test_a_second_launch_of_other_settings_is_refused(merged):
    assert shard_plan.create(planned(merged)) == merged, "the same run again"
    with pytest.raises(
        ValueError, match=r"out: expected the settings of .*shards\.json, got gamma = 0\.5 and not 0\.99"
    ):
        shard_plan.create(planned(merged, gamma=0.5))
    with pytest.raises(ValueError, match=r"got evaluate_episodes = 9 and not 2; choose another --out"):
        shard_plan.create(planned(merged, evaluate_episodes=9))
    assert shard_plan.create(planned(merged, device="cpu")) == merged, "each process has its own device"
    with pytest.raises(ValueError, match=r"shards: expected 2, as in .*shards\.json, got 4"):
        shard_plan.create(planned(merged, 4))
    with pytest.raises(ValueError, match="out: expected a folder that does not exist yet"):
        shard_plan.create(planned(merged / "shards"))


def test_only_one_of_many_processes_creates_the_plan(tmp_path):
    pids = [forked(shard_plan.create, planned(tmp_path / "run")) for _ in range(6)]
    assert [wait(pid) for pid in pids] == [0] * 6
    assert [x.name for x in tmp_path.iterdir()] == ["run"]
    assert shard_plan.read(tmp_path / "run").shards == 2


@pytest.mark.skipif(not cpu_groups.supported(torch.device("cpu")), reason="seeds are not grouped here")
def test_groups_are_those_of_the_plan_on_a_machine_with_other_threads(monkeypatch, tmp_path):
    given = {"compile": True, "engine": "aot", "seeds": 24}
    plan = planned(tmp_path / "run", 3, **given)
    assert 8 % plan.pinned.lanes == 0
    assert run_folder.partition_to_pin(plan.settings, 24).lanes != plan.pinned.lanes or plan.pinned.lanes <= 8
    path = shard_plan.create(plan)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    found = shard_plan.read(path)
    assert (found.pinned.lanes, found.pinned.threads) == (plan.pinned.lanes, plan.pinned.threads)
    assert shard_plan.differences(found) == [], "threads change no bit"
    own = run_folder.create(found.shard_settings(1, path), pinned=found.pinned)
    assert run_folder.pinned_partition(own, found.shard_settings(1, path)).lanes == plan.pinned.lanes


@pytest.mark.parametrize(
    ("variables", "expected", "sentence"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_ARRAY_TASK_ID": "3"}, [1, 3, 5], "RANK=1: shards 1, 3, 5 of 6"),
        ({"RANK": "5", "WORLD_SIZE": "6"}, [5], "RANK=5: shard 5 of 6"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, [3], "SLURM_ARRAY_TASK_ID=3: shard 3 of 6"),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MAX": "2"}, [1, 4], "SLURM_ARRAY_TASK_ID=1: shards 1, 4 of 6"),
        ({"JOB_COMPLETION_INDEX": "0"}, [0], "JOB_COMPLETION_INDEX=0: shard 0 of 6"),
        ({"RANK": "", "WORLD_SIZE": "2"}, None, None),
    ],
)
def test_a_launcher_assigns_the_shards(variables, expected, sentence):
    found = shards.assigned(6, variables)
    assert (None if found is None else (list(found[0]), found[1])) == (
        None if expected is None else (expected, sentence)
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK: expected a number below 2, .*, got 2"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK: expected a number, got 'x'"),
        ({"RANK": "0"}, "WORLD_SIZE: expected a number, got 'none'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE: expected a number, got '0'"),
        ({"SLURM_ARRAY_TASK_ID": "6"}, "SLURM_ARRAY_TASK_ID: expected a number below 6, .*, got 6"),
        ({"JOB_COMPLETION_INDEX": "-1"}, "JOB_COMPLETION_INDEX: expected a number, got '-1'"),
    ],
)
def test_numbers_of_launchers_out_of_range_are_refused(variables, message):
    with pytest.raises(ValueError, match=message):
        shards.assigned(6, variables)


# Interruptions


class KilledError(Exception):
    """Error that ends a shard like a signal would."""


def forked(f, *args):
    """Call a function in a forked process, which exits with 1 after an exception, and return its number."""
    if pid := os.fork():
        return pid
    with contextlib.suppress(BaseException):
        f(*args)
        os._exit(0)
    os._exit(1)


def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.slow
def test_a_stopped_run_continues(whole, tmp_path):
    seen = []
    path = shard_plan.create(planned(tmp_path / "run"))
    shards.train(path, seen.append, lambda: any(isinstance(x, events.Reported) for x in seen))
    assert seen[-1] == events.Stopped(path, 0, 120)
    assert not (path / "summary.json").exists()
    assert [x.path for x in seen if isinstance(x, events.Started)] == [path]
    with pytest.raises(
        ValueError, match=r"shards: expected at least one finished shard in .*, got none of 2: .* at step 2\d or later"
    ):
        merging.merge(path)
    assert shards.train(path, numbers=[1]) == path
    assert not (path / "summary.json").exists()
    shards.train(path)
    law_equal(path, whole)
    before = (path / "summary.json").stat().st_mtime_ns
    shards.train(path)
    assert (path / "summary.json").stat().st_mtime_ns >= before


def is_waiting(event):
    return isinstance(event, events.Notice) and event.text.startswith("waiting for shards")


def test_a_shard_that_another_process_trains_comes_last(whole, tmp_path):
    """Hold the claim on one of two shards. Stop a call that waits for it, and release it while another one waits."""
    path, seen = shard_plan.create(planned(tmp_path / "run")), []
    claim = claims.take(shard_folders.claim_folder(path, 0))
    shards.train(path, seen.append, lambda: any(map(is_waiting, seen)))
    said = [x.text for x in seen if isinstance(x, events.Notice)]
    assert said[-1] == (
        f"waiting for shards that other processes train: 0 (the first: process {os.getpid()} on {HERE})"
    )
    assert seen[-1] == events.Stopped(path, 60, 120)
    assert not (path / "shards" / "00000").exists()
    assert shard_folders.is_finished(path, shard_plan.read(path), 1)
    shards.train(path, lambda event: is_waiting(event) and claim.release(), numbers=[0])
    law_equal(path, whole)


class Clock:
    """A clock that a test sets."""

    now = 1_000.0

    def __call__(self, folder):
        return self.now


def test_a_shard_of_a_lost_machine_is_taken_over(tmp_path):
    """Let a launcher restart a process on another machine, before the claim of the lost one is stale."""
    path, clock = shard_plan.create(planned(tmp_path / "run", 1, seeds=1)), Clock()
    claim = claims.take(shard_folders.claim_folder(path, 0), clock)
    record = json.loads((claim.path / "owner.json").read_text())
    (claim.path / "owner.json").write_text(json.dumps({**record, "machine": "another"}))
    claim.beat(clock)

    def lost(event):
        if is_waiting(event):
            clock.now += claims.STALE + 1

    shards.train(path, lost, clock=clock, numbers=[0])
    assert merging.is_merged(path)


def test_a_process_that_lost_its_claim_does_not_write(whole, tmp_path):
    """Let another process take over a shard after its first report, as if this one had been suspended."""
    path, seen = shard_plan.create(planned(tmp_path / "run", 1)), []
    own, folder = path / "shards" / "00000", shard_folders.claim_folder(path, 0)

    def suspended(event):
        seen.append(event)
        if isinstance(event, events.Checkpointed) and not (folder / "000002").exists():
            (folder / "000002").mkdir()
            seen.append(contents(own))
        if is_waiting(event):
            assert contents(own) == next(x for x in seen if isinstance(x, dict))
            assert "is left to another process" in seen[-2].text
            (folder / "000002" / "released").touch()

    shards.train(path, suspended)
    law_equal(path, whole)


@pytest.mark.parametrize("name", ["resume", "create"])
def test_a_process_that_lost_its_claim_before_it_starts_does_not_write(tmp_path, name):
    """Let another process take over a shard and write in its folder while this one prepares to train it."""
    path, seen = shard_plan.create(planned(tmp_path / "run", 1, seeds=1)), []
    own, folder = path / "shards" / "00000", shard_folders.claim_folder(path, 0)
    if name == "resume":
        shards.train(path, seen.append, lambda: any(isinstance(x, events.Checkpointed) for x in seen))
        seen.clear()

    def suspended(event):
        seen.append(event)
        if isinstance(event, events.Prepared):
            (folder / f"{claims.newest(folder) + 1:06}").mkdir()
            own.mkdir(exist_ok=True)
            with (own / "metrics.csv").open("a") as file:
                file.write("40,5\n")
            seen.append(contents(own))

    shards.train(path, suspended, lambda: any(map(is_waiting, seen)))
    assert contents(own) == next(x for x in seen if isinstance(x, dict))


def contents(path):
    return {str(x): x.read_bytes() for x in sorted(path.rglob("*")) if x.is_file() and x.name != ".lock"}


def run_and_kill(path, seconds):
    """Start a worker and kill it after some time. Return True if it had already ended."""
    pid = forked(shards.train, path)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return wait(pid) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kills", [20, 100])
def test_workers_killed_at_any_time_lose_nothing(whole, tmp_path, kills):
    """Kill workers at random times until all kills are made. Each continues where the previous one was killed."""
    rng, done, number = random.Random(kills), 0, 0
    start = time.perf_counter()
    pid = forked(shards.train, shard_plan.create(planned(tmp_path / "timed")))
    assert wait(pid) == 0
    longest = time.perf_counter() - start
    while done < kills:
        number += 1
        path = shard_plan.create(planned(tmp_path / str(number)))
        for _ in range(4):
            if run_and_kill(path, rng.uniform(0, longest / 2)):
                break
            done += 1
        assert wait(forked(shards.train, path)) == 0
        law_equal(path, whole)
        shutil.rmtree(path)


def test_a_worker_that_is_killed_in_a_checkpoint_loses_nothing(whole, tmp_path, monkeypatch):
    """Kill a worker while it writes a checkpoint of the second shard. Another one continues at once."""
    path, save = shard_plan.create(planned(tmp_path / "run")), checkpoint.save

    def killed(folder, name, *rest):
        if (folder.parent.name, name) == ("00001", "40"):
            (folder / f"{name}.part").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
        return save(folder, name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", killed)
        assert wait(forked(shards.train, path)) == -signal.SIGKILL
    seen = []
    shards.train(path, seen.append)
    law_equal(path, whole)
    assert [x.step for x in seen if isinstance(x, events.Started)] == [20], "from the previous checkpoint"


def test_two_launches_at_once_share_the_shards(whole, tmp_path):
    """Let two processes record the shards that they start."""
    plan = planned(tmp_path / "run")

    def work(name):
        path = shard_plan.create(plan)
        with (tmp_path / name).open("a") as file:
            seen = lambda event: isinstance(event, events.Started) and file.write(f"{event.settings.seed}\n")  # noqa: E731
            shards.train(path, seen)

    pids = [forked(work, name) for name in "ab"]
    assert [wait(pid) for pid in pids] == [0, 0]
    started = [line for name in "ab" for line in (tmp_path / name).read_text().split()]
    assert sorted(started) == ["5", "7"], "each shard by one process"
    law_equal(tmp_path / "run", whole)


# Missing and damaged shards


def spoil(path, name):
    own = path / "shards" / "00001"
    if name == "gone":
        shutil.rmtree(own)
    elif name == "unfinished":
        (own / "summary.json").unlink()
    elif name == "params":
        (own / "params.safetensors").write_bytes(b"x" * 40)
    elif name == "few":
        (own / "params.safetensors").write_bytes((path / "params.safetensors").read_bytes())
    elif name == "rows":
        file = own / "metrics.csv"
        file.write_bytes(file.read_bytes().replace(b"20,7,", b"20,7,9", 1))
    elif name == "foreign":
        change(own / "config.json", lambda record: record["settings"].update(gamma=0.5))
    elif name == "groups":
        change(own / "config.json", lambda record: record["plan"].update(partition={"lanes": 2, "threads": 1}))
    elif name == "config":
        (own / "config.json").write_text("{")
    elif name == "more":
        with (own / "metrics.csv").open("a") as file:
            file.write("80\n\n")


def change(file, act):
    record = json.loads(file.read_text())
    act(record)
    file.write_text(json.dumps(record))


REASONS = {
    "gone": r"expected the run .*/shards/00001, got none",
    "unfinished": r"expected a finished run, got .*/shards/00001 .*",
    "params": r".*",
    "few": r"expected parameters of 2 seeds, as in other shards, got others in .*",
    "rows": r".*/metrics\.csv: expected its first \d+ bytes as at the checkpoint of step 60, got others; .*",
    "foreign": r".*/shards/00001: expected the settings of shards\.json, got gamma = 0\.5 and not 0\.99",
    "groups": r".*/shards/00001: expected the partition None of shards\.json, got {.*}",
    "config": r"run: expected a finished run folder, got .*/shards/00001 with a config\.json which is not JSON",
    "more": r"run: expected a finished run folder, got .* with a metrics\.csv .*",
}


@pytest.mark.parametrize("name", REASONS)
def test_shards_that_are_missing_or_damaged_are_named_and_the_rest_is_merged(merged, whole, tmp_path, name):
    path = copied(merged, tmp_path / "run")
    shutil.copy(merged / "params.safetensors", path)
    spoil(path, name)
    found = merging.merge(path)
    (note,) = found.notes
    assert note.startswith("shard 1 (seeds 7 to 8) is left out: ")
    assert re.fullmatch(REASONS[name], note.split(" is left out: ")[1]), note
    assert not merging.is_merged(path)
    run, full = fdqn.Run.load(path), fdqn.Run.load(whole)
    assert run.summary["failed_seeds"] == [7, 8]
    assert {x["cause"] for x in run.summary["failures"]} == {merging.MISSING}
    assert run.summary["final_return"]["per_seed"] == [*full.summary["final_return"]["per_seed"][:2], None, None]
    for key, x in run.params.items():
        assert torch.equal(x[:2], full.params[key][:2])
        assert x[2:].isnan().all()
    assert np.array_equal(run.curve.values[:, :2], full.curve.values[:, :2], equal_nan=True)
    assert np.isnan(run.curve.values[:, 2:]).all()
    assert [row for row in rows(path) if int(row["seed"]) < 7] == [r for r in rows(whole) if int(r["seed"]) < 7]
    assert len(rows(path)) == len(rows(whole))
    with pytest.raises(ValueError, match="seed: expected a seed that has not failed, got 8"):
        run.policy(8)


@pytest.mark.parametrize("partial", [False, True])
def test_a_merge_that_is_killed_is_repeated(merged, whole, tmp_path, monkeypatch, partial):
    """Kill a merge before each file that it writes, of a run without a merge and of one that lacked a shard."""
    write, written = files.write, []
    for last in range(9):
        path = copied(merged, tmp_path / str(last))
        if partial:
            spoil(path, "gone")
            merging.merge(path)
            shutil.copytree(merged / "shards" / "00001", path / "shards" / "00001")

        def killed(file, content, last=last):
            written.append(file.name)
            if len(written) > last:
                raise KilledError
            write(file, content)

        written.clear()
        with monkeypatch.context() as patched:
            patched.setattr(files, "write", killed)
            with contextlib.suppress(KilledError):
                merging.merge(path)
                break
        assert merging.refresh(path) == []
        law_equal(path, whole)
    assert len(written) == 6


@pytest.mark.slow
def test_a_missing_shard_is_trained_later(merged, whole, tmp_path):
    path = copied(merged, tmp_path / "run")
    spoil(path, "gone")
    merging.merge(path)
    shards.train(path)
    law_equal(path, whole)
    assert merging.is_merged(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("foreign", r"expected the settings of shards\.json, got gamma"), ("config", r"a config\.json which is not JSON")],
)
def test_a_damaged_shard_does_not_keep_others_from_training(merged, tmp_path, name, message):
    path = copied(merged, tmp_path / "run")
    spoil(path, name)
    if name == "foreign":
        (path / "shards" / "00001" / "summary.json").unlink()
    shutil.rmtree(path / "shards" / "00000")
    with pytest.raises(ValueError, match=rf"shard 1: .*{message}"):
        shards.train(path, numbers=[1, 0])
    assert shard_folders.is_finished(path, shard_plan.read(path), 0)


def test_machines_that_differ_from_the_plan_are_named(merged, whole, tmp_path):
    path = copied(merged, tmp_path / "run")
    spoil(path, "gone")
    change(path / "shards.json", lambda record: record["provenance"]["versions"].update(torch="1.0"))
    change(path / "shards.json", lambda record: record["provenance"]["engine"].update(cpu_capability="AVX9"))
    seen = []
    shards.train(path, seen.append)
    now = torch.backends.cpu.get_cpu_capability()
    lines = f"torch is {torch.__version__} and was 1.0, cpu_capability is {now} and was AVX9"
    said = [x.text for x in seen if isinstance(x, events.Notice)]
    assert said[-1] == f"shard 1 may differ in rounding: on {HERE}, {lines}"
    record = results.read_config(path)["shards"]
    assert [*record["machines"]] == ["1"]
    assert record["missing"] == []
    law_equal(path, whole)


@pytest.mark.slow
def test_a_shard_whose_seeds_all_fail_does_not_end_the_run(tmp_path):
    given = {"optimizer": "sgd", "learning_rate_schedule": "constant", "max_grad_norm": float("inf")}
    rates = {"learning_rate": [1e-3, 1e30]}
    plan = shard_plan.plan_sweep(sweep_plan.plan({**SMALL, "seeds": 2, "out": str(tmp_path / "x"), **given}, rates), 2)
    seen = []
    path = shards.train(shard_plan.create(plan), seen.append)
    assert {x.name for x in seen if isinstance(x, events.SeedFailed)} == {"setting 1, seed 5", "setting 1, seed 6"}
    assert {x.seed for x in seen if isinstance(x, events.SeedFailed)} == {2, 3}
    summary = results.read(path).summary
    assert summary["failed_seeds"] == [2, 3]
    assert summary["steps"] == 60
    assert [row.rank for row in sweep_results.read(path).ranking()] == [1, None]
    one = sweep.train(sweep_plan.plan({**SMALL, "seeds": 2, "out": str(tmp_path / "one"), **given}, rates))
    params = [load((x / "params.safetensors").read_bytes()) for x in (path, one)]
    assert all(torch.equal(x[:2], params[1][name][:2]) for name, x in params[0].items())


def test_an_exception_of_a_receiver_ends_training(tmp_path):
    def receive(event):
        if isinstance(event, events.Reported):
            raise KilledError

    path = shard_plan.create(planned(tmp_path / "run"))
    with pytest.raises(KilledError):
        shards.train(path, receive)
    assert not (path / "shards" / "00001").exists()
    assert not claims.is_held(shard_folders.claim_folder(path, 0))


def test_small_functions(merged, whole, tmp_path):
    plan = shard_plan.read(merged)
    assert shard_plan.is_sharded(merged)
    assert not shard_plan.is_sharded(whole)
    assert shard_plan.partition_record(plan) is None
    here = json.loads(json.dumps(shard_plan.provenance(plan.settings, None)))
    assert run_folder.differences_of(plan.provenance, here) == []
    pinned = cpu_groups.ThreadPartition(2, 4, 1)
    assert shard_plan.partition_record(plan._replace(pinned=pinned)) == run_folder.partition_record(pinned)
    assert run_folder.plan_record(plan.settings, 9, pinned)["partition"] == {"lanes": 2, "threads": 1}
    assert run_folder.provenance(plan.settings)["versions"] == here["versions"]
    same = settings.to_json(plan.settings)
    assert history.differing_settings(same, {**same, "out": "x"}) == ""
    assert history.differing_settings(same, {**same, "gamma": 0.5}) == "gamma = 0.99 and not 0.5"
    assert history.rows_text([["a", "b"], [1, ""]]) == b"a,b\r\n1,\r\n"
    (tmp_path / "made").mkdir()
    for name in ("settings.csv", "0a.part", "mine"):
        (tmp_path / "made" / name).touch()
    run_folder.remove_incomplete(tmp_path / "made")
    assert [x.name for x in (tmp_path / "made").iterdir()] == ["mine"]
    (tmp_path / "made" / "mine").unlink()
    run_folder.remove_incomplete(tmp_path / "made")
    assert not (tmp_path / "made").exists()
    (tmp_path / "shards").mkdir()
    shard_folders.add_differing_machine(tmp_path, 3, "a", ["x", "y"])
    shard_folders.add_differing_machine(tmp_path, 3, "a", ["y", "z"])
    assert shard_folders.differing_machines(tmp_path, 3) == {"a": ["x", "y", "z"]}
    (tmp_path / "shards" / "00003.json").write_text("[")
    assert shard_folders.differing_machines(tmp_path, 3) == {}
    assert merging.refresh(merged) == merging.notes(merged) == []
    path = shutil.copytree(merged, tmp_path / "run")
    run_folder.write_config(path, {**results.read_config(path), "shards": {"missing": [], "notes": ["a note"]}})
    assert merging.refresh(path) == ["a note"]
    summary = json.loads((path / "summary.json").read_text())
    assert run_folder.write_summary(path, plan.settings, summary, lambda: 2.0)["wall_seconds"] == 2.0
