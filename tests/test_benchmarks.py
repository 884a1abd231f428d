"""Timing code of the benchmarks whose errors would go unnoticed."""

import importlib.util
from pathlib import Path

import pytest


def module(name):
    """Import a file of `benchmarks`, which is not a package."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    there = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(there)
    return there


@pytest.mark.parametrize("seconds", [20e-6, 40e-6, 70e-6, 1e-3, 4e-3])
def test_reports_have_the_target_interval(seconds):
    """A report waits for the GPU, about 2 ms with refilling its queue: 2 % of a tenth of a second."""
    cadence = module("cadence")
    iterations = cadence.iterations_per_report(seconds)
    assert iterations % cadence.TARGET_PERIOD == 0
    assert 0.06 <= iterations * seconds <= 0.14


def test_slow_iterations_are_reported_every_target_period():
    cadence = module("cadence")
    assert cadence.iterations_per_report(0.1) == cadence.TARGET_PERIOD
