"""Tests of copies between host and device: data arrive unchanged and are not overwritten before they are read."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fdqn import tree
from fdqn.testing import asserts
from fdqn.training import transfer

DTYPES = [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16]


def numbers(shape, dtype, seed=0):
    x = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))
    return x > 127 if dtype == torch.bool else x.to(dtype)


def buffer(slots):
    return torch.empty(max((slot.end for slot in slots), default=0), dtype=torch.uint8)


# One buffer for a nested tensor


@given(st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(DTYPES)), max_size=6))
def test_unpack_is_the_inverse_of_pack(kinds):
    nested = {str(i): numbers(shape, dtype, i) for i, (shape, dtype) in enumerate(kinds)}
    bytes_ = buffer(transfer.layout(nested))
    asserts.assert_trees_equal(nested, transfer.unpack(bytes_, transfer.pack(nested, bytes_), nested))


def test_views_and_nested_structures_are_packed():
    """Pack transposed, sliced, expanded, empty and scalar tensors."""
    x = torch.arange(24.0).reshape(4, 6)
    nested = (x.T, {"a": [x[::2, 1:4], torch.tensor(True)]}, torch.ones(1).expand(5), x[:0])
    bytes_ = buffer(transfer.layout(nested))
    read = transfer.unpack(bytes_, transfer.pack(nested, bytes_), nested)
    assert tree.structure(read) == tree.structure(nested)
    for expected, got in zip(tree.leaves(nested), tree.leaves(read), strict=True):
        assert torch.equal(expected, got)
        assert got.is_contiguous()


def test_slots_are_aligned_and_do_not_overlap():
    slots = transfer.layout([numbers((3,), dtype) for dtype in DTYPES])
    assert all(slot.start % transfer.ALIGNMENT == 0 for slot in slots)
    assert all(a.end <= b.start for a, b in pairwise(slots))


# Order of operations on CUDA, where copies are asynchronous


class Stream:
    """A queue of jobs that run when they are waited for, or immediately if `eager`."""

    current = None

    def __init__(self, eager=False):
        self.jobs, self.done, self.eager = [], 0, eager

    def launch(self, job):
        self.jobs.append(job)
        if self.eager:
            self.run(len(self.jobs))

    def run(self, until):
        while self.done < until:
            self.done += 1
            self.jobs[self.done - 1]()

    def wait_event(self, event):
        self.launch(event.reached())


class Event:
    """A position in a stream. Waiting for an event that was not recorded returns immediately."""

    stream, position = None, 0

    def record(self, stream):
        self.stream, self.position = stream, len(stream.jobs)

    def reached(self):
        stream, position = self.stream, self.position
        return lambda: stream and stream.run(position)

    def synchronize(self):
        self.reached()()


class StreamContext:
    """Replaces `torch.cuda.stream`."""

    def __init__(self, stream):
        self.stream = stream

    def __enter__(self):
        self.before, Stream.current = Stream.current, self.stream

    def __exit__(self, *error):
        Stream.current = self.before


def simulated(monkeypatch, early):
    """Simulate CUDA streams on a CPU and return the compute stream.

    Copies run as late as events allow or, if `early`, as early as possible on the side stream.
    """
    copy = torch.Tensor.copy_

    def copy_(target, source, non_blocking=False):
        if non_blocking:
            Stream.current.launch(lambda: copy(target, source))
        else:
            copy(target, source)
        return target

    def clone(x):
        result = torch.full_like(x, 77)
        Stream.current.launch(lambda: copy(result, x))
        return result

    monkeypatch.setattr(Stream, "current", Stream())
    for name, fake in {"Event": Event, "Stream": lambda device: Stream(early), "stream": StreamContext}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream.current)
    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    monkeypatch.setattr(torch.Tensor, "clone", clone)
    monkeypatch.setattr(transfer, "_pinned", lambda size: torch.full((size,), 77, dtype=torch.uint8))
    return Stream.current


@pytest.fixture(params=[False, True], ids=["late", "early"])
def compute(monkeypatch, request):
    return simulated(monkeypatch, request.param)


def time_step(i):
    return {"obs": torch.full((2, 3), float(i)), "ended": torch.tensor([i % 2 == 0])}


def exchange(compute, times=6, waits=(1, 4)):
    """Upload several time steps; return their values on the device when they are used, and at the end.

    The host overwrites each time step after the upload, and waits for the device after those in `waits`.
    """
    upload, seen, kept = transfer._through_pinned_memory(torch.device("cpu")), [], []
    for i in range(times):
        step = time_step(i)
        uploaded = upload(step)
        for leaf in step.values():
            leaf.fill_(55)
        compute.launch(lambda uploaded=uploaded: seen.append({name: x.tolist() for name, x in uploaded.items()}))
        kept.append(uploaded)
        if i in waits:
            compute.run(len(compute.jobs))
    compute.run(len(compute.jobs))
    return seen, [{name: x.tolist() for name, x in tensors.items()} for tensors in kept]


EXPECTED = [{name: x.tolist() for name, x in time_step(i).items()} for i in range(6)]


@pytest.mark.parametrize("waits", [(), (1, 4), range(6)])
def test_time_steps_arrive_unchanged_whenever_they_are_copied(compute, waits):
    seen, kept = exchange(compute, waits=waits)
    assert seen == EXPECTED
    assert kept == EXPECTED


def test_a_time_step_may_be_larger_than_the_last(compute):
    upload = transfer._through_pinned_memory(torch.device("cpu"))
    kept = [upload(torch.full((size,), float(size))) for size in (2, 1, 40, 3, 100)]
    compute.run(len(compute.jobs))
    assert [x.tolist() for x in kept] == [[float(len(x))] * len(x) for x in kept]
    assert [len(x) for x in kept] == [2, 1, 40, 3, 100]


def test_actions_are_read_after_they_are_computed(compute):
    """Check also that a downloaded array does not change with the next one."""
    download = transfer._through_pinned_array(torch.device("cpu"))
    action, read = torch.zeros(2, 3, dtype=torch.int64), []
    for i in range(4):
        compute.launch(lambda i=i: action.fill_(i))
        read.append(download(action))
    assert [x.tolist() for x in read] == [[[i] * 3] * 2 for i in range(4)]


WAIT = Stream.wait_event
PLANTS = {
    "the host writes before the copy reads": (False, Event, "synchronize", lambda event: None),
    "kernels read before the copy writes": (
        False, Stream, "wait_event", lambda stream, event: WAIT(stream, event) if stream is not Stream.current else None
    ),
    "the copy writes before kernels read": (
        True, Stream, "wait_event", lambda stream, event: None if stream.eager else WAIT(stream, event)
    ),
}  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS)
def test_each_missing_event_is_detected(monkeypatch, plant):
    early, of, name, broken = PLANTS[plant]
    compute = simulated(monkeypatch, early)
    monkeypatch.setattr(of, name, broken)
    seen, _ = exchange(compute, waits=())
    assert seen != EXPECTED


# Without a device


def test_a_cpu_needs_no_copies():
    nested, cpu = {"obs": torch.zeros(2), "ended": torch.zeros(2, dtype=torch.bool)}, torch.device("cpu")
    assert transfer.uploads(cpu)(nested) is nested
    action = torch.arange(3)
    array = transfer.downloads(cpu)(action)
    action[0] = 7
    np.testing.assert_array_equal(array, [7, 1, 2])
