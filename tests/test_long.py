"""Tests of long runs: they leak neither files nor memory."""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from fdqn import training
from fdqn.experiment import assemble, history, run_folder
from fdqn.experiment.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SETTINGS = Settings(
    env="cartpole", seeds=1, num_envs=1, batch_size=8, capacity=100, learning_starts=10, hidden=(8,), compile=False,
)  # fmt: skip


def open_files():
    return len(os.listdir("/proc/self/fd"))


def resident():
    """Return the resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(points):
    """Return the slope of equally spaced numbers."""
    return np.polyfit(np.arange(len(points)), points, 1)[0]


def reports(path, settings):
    program = assemble.program(settings)
    run_folder.create(settings)
    state = training.init(program, assemble.hyper(settings), assemble.keys(settings))
    made = training.run(program, state, settings.steps, run_folder.functions(program, settings), settings.report_every)
    return history.record(path, settings, made)


def test_a_run_closes_its_files(tmp_path):
    settings = dataclasses.replace(SETTINGS, steps=200, report_every=10, checkpoint_every=10, out=str(tmp_path / "run"))
    counts = [open_files() for _ in reports(tmp_path / "run", settings)]
    assert len(counts) == 20
    assert len(set(counts[1:])) == 1


@pytest.mark.slow
def test_a_million_updates_need_no_more_memory_than_the_first(tmp_path):
    settings = dataclasses.replace(SETTINGS, compile=True, steps=10**6 + 10, out=str(tmp_path / "run"))
    settings = dataclasses.replace(settings, report_every=2_000, checkpoint_every=100_000)
    memory, files = [], []
    for report in reports(tmp_path / "run", settings):
        if report.step % 100_000 == 0:
            memory.append(resident())
            files.append(open_files())
    print([round(x / 1e6, 1) for x in memory], slope(memory[1:]), set(files))
    assert report.updates.tolist() == [10**6]
    assert len(memory) == 10
    assert len(set(files)) == 1
    assert slope(memory[1:]) < 1e6


def test_a_leak_is_detected():
    assert slope([5e8 + 1.1e6 * i for i in range(9)]) > 1e6
