"""Shards as tasks of Ray have the bits of one process, also without a shared folder and after kills."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from test_shards import SMALL, law_equal, planned
from test_shards_cli import flags

from fdqn.experiment import (
    claims,
    events,
    history,
    merging,
    ray_cluster,
    ray_shards,
    session,
    settings,
    shard_folders,
    shard_plan,
    shards,
)
from fdqn.storage import checkpoint

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LONG = {"steps": 1_500, "report_every": 50, "checkpoint_every": 50}


@pytest.fixture(scope="module")
def nodes():
    """Start a cluster of two nodes on this machine, with a core each."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    started.add_node(num_cpus=1)
    yield started
    started.shutdown()


@pytest.fixture
def cluster(nodes):
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    yield nodes
    ray.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return session.train(settings.make({**SMALL, "out": str(tmp_path_factory.mktemp("whole") / "run")})).path


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return session.train(settings.make({**SMALL, **LONG, "out": str(tmp_path_factory.mktemp("long") / "run")})).path


def test_tasks_have_the_bits_of_one_process(cluster, whole, tmp_path):
    path, seen = shard_plan.create(planned(tmp_path / "run", 4)), []
    assert ray_shards.train(path, cpus=1, on_event=seen.append) == path
    law_equal(path, whole)
    last = [event for event in seen if isinstance(event, events.ShardsReported)][-1]
    assert [(row.number, row.state, row.step) for row in last.rows] == [(i, "finished", 60) for i in range(4)]
    assert sorted(x.name for x in (path / "shards").glob("*") if "." not in x.name) == [f"{i:05}" for i in range(4)]
    assert ray_shards.train(path) == path, "a finished run is only merged"


def test_files_come_back_from_nodes_without_the_folder(cluster, whole, tmp_path, monkeypatch):
    """Put the marker file in another folder, so that tasks do not find the run folder."""
    (tmp_path / "other" / "shards").mkdir(parents=True)
    marked = ray_cluster.marked
    monkeypatch.setattr(ray_cluster, "marked", lambda path: marked(tmp_path / "other"))
    path = shard_plan.create(planned(tmp_path / "run", 2))
    seen = []
    shards.train(path, seen.append, lambda: any(isinstance(x, events.Checkpointed) for x in seen), numbers=[0])
    assert not shard_folders.is_finished(path, shard_plan.read(path), 0)
    ray_shards.train(path)
    law_equal(path, whole)
    assert not (path / "shards" / "00001.claim").exists(), "claims are those of the temporary folders"


def owner(path, number):
    """Return the number of the process that holds the claim on a shard; None if there is none."""
    folder = shard_folders.claim_folder(path, number)
    if not claims.is_held(folder):
        return None
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / f"{claims.newest(folder):06}" / "owner.json").read_text())["pid"]


def killed_in(path, kills, end):
    """Start a thread that kills processes of shards, each after a new checkpoint. Return it and its count."""
    count, seen = [0], {}

    def work():
        number = 0
        while count[0] < kills and not end.is_set():
            time.sleep(0.05)
            number = 1 - number
            kept = checkpoint.newest(shard_plan.folder(path, number) / "checkpoints")
            if kept and kept[0] != seen.get(number) and (pid := owner(path, number)) is not None:
                seen[number] = kept[0]
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    count[0] += 1

    thread = threading.Thread(target=work)
    thread.start()
    return thread, count


def test_tasks_of_killed_workers_continue_from_checkpoints(cluster, long, tmp_path):
    path, end, seen = shard_plan.create(planned(tmp_path / "run", 2, **LONG)), threading.Event(), []
    thread, count = killed_in(path, 4, end)
    ray_shards.train(path, on_event=seen.append)
    end.set()
    thread.join()
    assert count[0] >= 1
    assert any("resuming at step" in x.text for x in seen if isinstance(x, events.Notice))
    law_equal(path, long)


def test_tasks_of_a_lost_node_run_on_another(cluster, long, tmp_path):
    path, lost = shard_plan.create(planned(tmp_path / "run", 2, **LONG)), []
    node = cluster.add_node(num_cpus=1)

    def lose(event):
        if isinstance(event, events.ShardsReported) and not lost and any(row.step > 100 for row in event.rows):
            lost.append(cluster.remove_node(node))

    ray_shards.train(path, on_event=lose)
    assert lost
    law_equal(path, long)


def test_a_stopped_run_continues(cluster, long, tmp_path):
    path, seen = shard_plan.create(planned(tmp_path / "run", 2, **LONG)), []

    def has_trained():
        return any(isinstance(x, events.ShardsReported) and any(row.step > 0 for row in x.rows) for x in seen)

    ray_shards.train(path, on_event=seen.append, stop=has_trained)
    assert isinstance(seen[-1], events.Stopped)
    assert not merging.is_merged(path)
    shards.train(path)
    law_equal(path, long)


def test_a_run_whose_driver_is_killed_continues(nodes, long, tmp_path):
    path = shard_plan.create(planned(tmp_path / "run", 2, **LONG))
    call = f"ray_shards.train(pathlib.Path({str(path)!r}), {nodes.address!r})"  # Ray cannot be used in a forked process
    code = f"import pathlib; from fdqn.experiment import ray_shards; {call}"
    driver = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 200
    while owner(path, 0) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    while (owner(path, 0) or owner(path, 1)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not merging.is_merged(path)
    shards.train(path)
    law_equal(path, long)


def test_the_command_starts_a_cluster_and_an_interrupt_leaves_shards_resumable(tmp_path):
    """Send SIGINT once a shard has written a checkpoint."""
    given = {**SMALL, "steps": 40_000, "checkpoint_every": 400, "report_every": 400}
    line = [sys.executable, "-m", "fdqn", "train", *flags("run", **given), "--shards", "2", "--ray", "local"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = subprocess.Popen(line, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    deadline, kept = time.monotonic() + 120, tmp_path / "run" / "shards" / "00000" / "checkpoints"
    while not checkpoint.newest(kept) and command.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=120)
    assert command.returncode == 130, err
    assert "stopped at 0 of 80,000 steps; the files in run are complete; continue with: fdqn resume run" in err
    steps = [history.checkpoint_info(place).step for place in checkpoint.newest(kept)[:1]]
    assert steps
    assert 0 < steps[0] < 40_000


def test_more_resources_than_a_node_has_are_refused(cluster, tmp_path):
    path = shard_plan.create(planned(tmp_path / "run"))
    for given, message in (
        ({"gpus": 64}, "shard_gpus: expected at most .*, the most that a node of the cluster has, got 64"),
        ({"cpus": 999}, "shard_cpus: expected at most 1, the most that a node of the cluster has, got 999"),
    ):
        with pytest.raises(ValueError, match=message):
            ray_shards.train(path, **given)
    assert [x.name for x in (path / "shards").iterdir()] == []


def test_auto_without_a_cluster_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    path = shard_plan.create(planned(tmp_path / "run"))
    with pytest.raises(ValueError, match="ray: expected a cluster on this machine, got "):
        ray_shards.train(path, "auto")
    assert torch.get_num_threads() >= 1
