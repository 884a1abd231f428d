"""Shared fixtures and settings: reproducible hypothesis runs, and a compiler that is reset after every test."""

import gc
import sys

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fdqn",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fdqn")

# Tensors here are tiny, so threads would only wait for each other, three times as long next to another process.
torch.set_num_threads(1)


def pytest_collection_finish(session):
    """Collect garbage less often and skip the modules: collection took an eighth of the time of tests that compile."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def light_runs(monkeypatch):
    """Replace the slow parts of a small run that have their own tests: memory check, plot and Git commit."""
    lighten(monkeypatch)


@pytest.fixture
def unchecked_iterations(monkeypatch):
    """Leave out the iteration on fake tensors at the start of a run, which takes 0.1 s and has its own tests."""
    from fdqn.training import iteration

    monkeypatch.setattr(iteration, "check_cycle", lambda *given: None)


def lighten(monkeypatch):
    from fdqn.experiment import memory, results, run_folder
    from fdqn.training import iteration

    monkeypatch.setattr(iteration, "check_cycle", lambda *given: None)
    monkeypatch.setattr(memory, "check_memory", lambda *given: 36_900)
    monkeypatch.setattr(results, "picture", lambda file, *given: file.write(b"PNG"))
    monkeypatch.setattr(run_folder, "git_commit", lambda: None)


@pytest.fixture(scope="module")
def light():
    """Replace for a module what `light_runs` replaces for a test, and the computation of the size of replay."""
    from fdqn.experiment import memory

    with pytest.MonkeyPatch.context() as patched:
        lighten(patched)
        patched.setattr(memory, "replay_bytes", lambda *given: 15_000)
        yield patched


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """Return the folder of a small finished run: seeds 5 and 6 in CartPole. Tests must only read it."""
    import fdqn

    path = tmp_path_factory.mktemp("small") / "run"
    sizes = dict(num_envs=4, batch_size=4, hidden=(8,), learning_starts=20, report_every=50, evaluate_episodes=2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        lighten(monkeypatch)
        fdqn.train(seeds=2, seed=5, steps=100, **sizes, engine="eager", progress=False, out=str(path))
    return path


@pytest.fixture(autouse=True)
def fresh_process():
    """Reset the compiler and the processor's flags after each test."""
    yield
    torch.set_flush_denormal(False)
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()
