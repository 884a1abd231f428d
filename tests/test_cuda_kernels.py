"""Kernels for CUDA, checked without a GPU: `without_gpu.py` runs in separate processes, because it patches torch."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import without_gpu

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs triton")]


# Most launches of a step.
MAX_LAUNCHES = {"collect": 25, "cycle": 70}


def output(**environment):
    """Run the script and return its parsed output."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    command = [sys.executable, without_gpu.__file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode == without_gpu.SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kernel_of_a_step_runs_on_the_gpu():
    """Check that there are few launches, no copies, no reads of values, and nothing on the CPU."""
    for step, found in output(TRITON_INTERPRET="0").items():
        assert found["for_sm_90"] == found["kernels"] > 0
        assert not found["on_cpu"]
        assert not {"aten::copy_", "aten::_to_copy", "aten::_local_scalar_dense"} & set(found["launches"])
        assert sum(found["launches"].values()) <= MAX_LAUNCHES[step]


def test_kernels_of_a_step_equal_eager_execution():
    """Compare with eager results to 1e-4 for any order of program instances; most leaves are bit-equal."""
    for found in output(TRITON_INTERPRET="1").values():
        assert found["equal"] >= found["leaves"] / 2
