"""Refused connections to Ray, files of shards, and the display of their progress. These tests do not need Ray."""

import io
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from test_shards import planned

from fdqn.experiment import (
    events,
    merging,
    progress,
    ray_cluster,
    ray_shards,
    shard_folders,
    shard_plan,
    shards,
)


def test_ray_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ValueError, match=r"^ray: expected the package ray, got none; pip install 'fdqn\[ray\]'$"),
        ray_cluster.connected("local"),
    ):
        pass


class Fake(SimpleNamespace):
    """Stand-in for the module `ray` that is not connected."""

    @staticmethod
    def is_initialized():
        return False


@pytest.mark.parametrize("address", ["nowhere", "host:", ":80", "host:port", "host:1:x"])
def test_malformed_addresses_are_refused(monkeypatch, address):
    monkeypatch.setitem(sys.modules, "ray", Fake())
    with (
        pytest.raises(ValueError, match=f"ray: expected auto, local or HOST:PORT, got {address!r}"),
        ray_cluster.connected(address),
    ):
        pass


def test_addresses_that_do_not_respond_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", Fake(init=lambda *where, **given: time.sleep(9)))
    monkeypatch.setattr(ray_cluster, "TIMEOUT", 0.05)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"ray: expected a cluster at {address}, got no connection: "):
            ray_cluster.connected(address).__enter__()
        closed.listen()
        with pytest.raises(ValueError, match=f"ray: expected a cluster at {address}, got no response in 0.05 s"):
            ray_cluster.connected(address).__enter__()


def test_errors_of_ray_are_one_sentence(monkeypatch):
    def refuse(address, **given):
        raise ConnectionError("first line\nCould not find any running instance.\n")

    monkeypatch.setitem(sys.modules, "ray", Fake(init=refuse))
    with pytest.raises(
        ValueError, match=r"^ray: expected a cluster on this machine, got Could not find any running \w+\.$"
    ):
        ray_cluster.connected("auto").__enter__()
    assert ray_cluster.reason(ValueError()) == "ValueError"


def test_an_existing_connection_is_used(monkeypatch):
    fake = Fake(is_initialized=lambda: True)
    monkeypatch.setitem(sys.modules, "ray", fake)
    with ray_cluster.connected("127.0.0.1:9") as ray:
        assert ray is fake


def test_resources_that_no_node_has_are_refused():
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}}, {"Alive": False, "Resources": {"GPU": 8.0}}]
    fake = SimpleNamespace(nodes=lambda: nodes)
    ray_cluster.check_resources(fake, 4, 2)
    with pytest.raises(ValueError, match=r"shard_gpus: expected at most 2, the most that a node .* has, got 3"):
        ray_cluster.check_resources(fake, 4, 3)
    with pytest.raises(ValueError, match=r"shard_cpus: expected at most 4, the most that a node .* has, got 5"):
        ray_cluster.check_resources(fake, 5, 0)


def test_files_are_written_as_they_were_read(tmp_path):
    own = tmp_path / "a" / "shards" / "00002"
    (own / "checkpoints" / "20").mkdir(parents=True)
    for name in ("config.json", "checkpoints/20/state.safetensors", "checkpoints/.lock", "../00002.json"):
        (own / name).write_bytes(name.encode())
    (own / "link").symlink_to("config.json")
    found = ray_cluster.read_files(tmp_path / "a", 2)
    ray_cluster.write_files(tmp_path / "b", found)
    assert ray_cluster.read_files(tmp_path / "b", 2) == found
    assert sorted(found) == [
        "shards/00002.json",
        "shards/00002/checkpoints/20/state.safetensors",
        "shards/00002/config.json",
    ]
    assert ray_cluster.read_files(tmp_path, 3) == {}
    for name in ("../x", "shards/../../x", "/x"):
        with pytest.raises(ValueError, match="files: expected names in shards, got"):
            ray_cluster.write_files(tmp_path / "b", {name: b""})
    with ray_cluster.marked(tmp_path / "a") as token:
        assert (tmp_path / "a" / "shards" / token).exists()
    assert not (tmp_path / "a" / "shards" / token).exists()


def test_the_board_holds_progress_and_the_request_to_stop():
    board, row = ray_shards.Board(Path("run")), events.ShardProgress(1, "training", 20, 60, "node", 0.5)
    assert not board.update(row, ["a note"])
    assert board.read() == ({1: row}, ["a note"])
    assert board.read() == ({1: row}, [])
    board.stop()
    assert board.update(row._replace(step=40), [])


def a_remote(board, calls):
    """Return stand-ins for the module `ray` and for an actor, which call the board in this process."""
    remote = SimpleNamespace(remote=lambda *given: calls.append(given) or board.update(*given))
    sent = SimpleNamespace(remote=lambda *given: calls.append(given) or board.files(*given))
    fake = SimpleNamespace(get=lambda x: x, exceptions=SimpleNamespace(RayError=RuntimeError))
    return fake, SimpleNamespace(update=remote, files=sent)


def test_a_task_reports_its_shard(monkeypatch):
    board, calls = ray_shards.Board(Path("run")), []
    fake, actor = a_remote(board, calls)
    monkeypatch.setitem(sys.modules, "ray", fake)
    with ray_shards._reporting(actor, 3, 60) as (receive, stop):
        assert board.read()[0][3].state == "starting"
        receive(events.Training(False))
        receive(events.Notice("a note"))
        receive(events.Notice("1 of 2 shards have not finished: 0"))
        receive(events.SeedFailed(5, 20, "loss", "its loss is not finite", "seed 5"))
        receive(events.EvaluationStarted("catch", 4, 10))
        assert not stop()
        board.stop()
    assert stop()
    rows, said = board.read()
    assert rows[3].state == "evaluating"
    assert said == ["a note", "seed 5 failed at step 20: its loss is not finite; it stops learning"]
    assert threading.active_count() >= 1


def test_a_task_returns_the_files_of_its_shard_without_the_folder(monkeypatch, tmp_path, light_runs):
    """Run the task on a node that does not have the run folder, then on one that has it."""
    path, calls, seen = shard_plan.create(planned(tmp_path / "run")), [], []
    shards.train(path, seen.append, lambda: any(isinstance(x, events.Checkpointed) for x in seen), numbers=[1])
    board = ray_shards.Board(path)
    fake, actor = a_remote(board, calls)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "node"))
    plan, code = (path / "shards.json").read_bytes(), {"env": None, "wrappers": ()}
    sent = ray_shards.train_shard("/nowhere", "a-token", plan, 1, actor, 1.0, code)
    assert (1,) in calls, "it continues from the files of the folder"
    assert not shard_folders.is_finished(path, shard_plan.read(path), 1)
    assert not (tmp_path / "node" / "fdqn-a-token" / "shards" / "00001").exists()
    ray_cluster.write_files(path, sent)
    with ray_cluster.marked(path) as token:
        assert ray_shards.train_shard(str(path), token, plan, 0, actor, 1.0, code) == {}
    assert (0,) not in calls
    assert any("resuming at step 2" in text for text in board.read()[1])
    assert sorted(merging.merge(path).summary["seeds"]) == [5, 6, 7, 8]
    assert merging.is_merged(path)
    assert [row.state for row in board.read()[0].values()] == ["finished", "finished"]


def test_errors_of_tasks_are_raised_after_the_others_have_ended(monkeypatch, tmp_path):
    """Let one of two tasks fail with an error, as Ray reports it."""

    def get(ref):
        if ref == "b":
            raise RuntimeError("ray::train_shard()\nValueError: shard 1: expected a plan, got none")
        return {} if ref == "a" else ref

    errors = SimpleNamespace(RayError=RuntimeError)
    fake = SimpleNamespace(get=get, wait=lambda refs, timeout: (refs[:1], refs[1:]), exceptions=errors)
    board = SimpleNamespace(read=SimpleNamespace(remote=lambda: ({}, [])))
    seen = []
    found = ray_shards._follow(fake, {"b": 1, "a": 0}, board, tmp_path, 2, seen.append, bool)
    assert found == {1: "expected a plan, got none"}
    assert events.Notice("shard 1 of 2 failed: expected a plan, got none") in seen
    with pytest.raises(ValueError, match=r"^shard 1: expected a plan, got none \(errors in 2 shards\)$"):
        shards.raise_first({**found, 3: "another"})
    assert shards.raise_first({}) is None


ROWS = (
    events.ShardProgress(0, "finished", 60, 60, "node-1", 0.5),
    events.ShardProgress(1, "training", 20, 60, "node-2", None),
)


def test_progress_of_shards_is_shown():
    event = events.ShardsReported(ROWS, 4)
    assert progress.shards_text(event) == "1 of 4 shards finished, 1 training, 2 waiting"
    plain, live = (Console(file=io.StringIO(), force_terminal=x, width=100) for x in (False, True))
    for console in (plain, live):
        with progress.Display(console) as display:
            display(event)
            display(event)
    assert plain.file.getvalue() == "1 of 4 shards finished, 1 training, 2 waiting\n"
    text = live.file.getvalue()
    assert "shard 1 on node-2: training" in text
    assert "shard 0 on" not in text, "finished shards are hidden"
