"""Shards as tasks of Ray: the bits of one process, also without a shared folder and with processes that are killed."""

import contextlib
import os
import shutil
import signal
import threading
import time

import psutil
import pytest
from test_shards import SMALL, law_equal, planned

from fdqn.experiment import events, ray_cluster, ray_shards, session, settings, shard_folders, shard_plan

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster():
    """Start a cluster of two nodes on this machine, with a core each."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    started.add_node(num_cpus=1)
    ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return session.train(settings.make({**SMALL, "out": str(tmp_path_factory.mktemp("whole") / "run")})).path


def test_tasks_have_the_bits_of_one_process(cluster, whole, tmp_path):
    path, seen = shard_plan.create(planned(tmp_path / "run", 4)), []
    assert ray_shards.train(path, cpus=1, on_event=seen.append) == path
    law_equal(path, whole)
    last = [event for event in seen if isinstance(event, events.Shards)][-1]
    assert [(row.number, row.state, row.step) for row in last.rows] == [(i, "finished", 60) for i in range(4)]
    assert sorted(x.name for x in (path / "shards").glob("*") if "." not in x.name) == [f"{i:05}" for i in range(4)]
