"""The kernels that CUDA would run, without a GPU: `without_gpu.py` in processes of its own, as it changes torch."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import without_gpu

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs triton")]


# Launches that a step may take.
MOST = {"collect": 25, "cycle": 70}


def said(**environment):
    """Return what the script prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    command = [sys.executable, without_gpu.__file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode == without_gpu.SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kernel_of_a_step_is_for_the_gpu():
    """And few are launched: no copy, no value asked for, nothing on the CPU."""
    for step, found in said(TRITON_INTERPRET="0").items():
        assert found["for_sm_90"] == found["kernels"] > 0
        assert not found["on_cpu"]
        assert not {"aten::copy_", "aten::_to_copy", "aten::_local_scalar_dense"} & set(found["launches"])
        assert sum(found["launches"].values()) <= MOST[step]


def test_the_kernels_of_a_step_compute_what_eager_does():
    """To 1e-4, in whatever order their programs run; most leaves bit for bit."""
    for found in said(TRITON_INTERPRET="1").values():
        assert found["equal"] >= found["leaves"] / 2
