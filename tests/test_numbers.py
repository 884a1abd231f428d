"""Compare digests of the files of small runs, so that a change of the code that changes a number is detected.

Rounding differs between versions of torch and between processors, so each pair has its own
digests. To add a pair, run the commit before a change.
"""

import csv
import hashlib
import shlex
from pathlib import Path

import pytest
import torch

from fdqn import cli
from fdqn.compile import processor

SMALL = (
    "--no-compile --seeds 2 --batch-size 16 --hidden 8 --report-every 200 --evaluate-episodes 1"
    " --learning-rate-schedule constant"
)
RUNS = {
    "cartpole": "--steps 600 --learning-starts 200 --n-step 2",
    "gym": "--env gym:CartPole-v1 --steps 400 --n-step 1 --learning-starts 100 --steps-per-cycle 2 --tau 0.1",
    "minatar": "--env minatar:breakout --preset minatar --steps 300 --learning-starts 200 --evaluate-steps 20",
}
COLUMNS = ("step", "seed", "updates", "episodes", "return", "loss", "q", "grad_norm", "epsilon")
"""Columns in the digests, without seconds and columns that were added later."""
DIGESTS = {
    ("2.13.0", "AVX512", "AuthenticAMD"): {
        "cartpole": ("5168f0c36b4a6268", "961ff54ac02d2eb4"),
        "gym": ("a9c5e8cb4d803e05", "73b54746fe1b39d8"),
        "minatar": ("30d53d4a50f0f8a3", "e4f9c08c536a64fc"),
        "resumed": ("1d93c9b573c77ac2", "ef925b91d5422b3d"),
    },
}


def digests(path):
    """Return digests of the rows of `COLUMNS`, and of the parameters."""
    with open(path / "metrics.csv", newline="") as lines:
        rows = [list(COLUMNS), *([row[name] for name in COLUMNS] for row in csv.DictReader(lines))]
    contents = repr(rows).encode(), (path / "params.safetensors").read_bytes()
    return tuple(hashlib.sha256(content).hexdigest()[:16] for content in contents)


@pytest.fixture
def known():
    """Return the recorded digests for this torch on this processor."""
    vendor = processor.line("vendor_id").partition(":")[2].strip()
    here = torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability(), vendor
    if here not in DIGESTS:
        pytest.skip(f"no digests for {here}")
    return DIGESTS[here]


def flags(name):
    small = SMALL.replace("--hidden 8 ", "").replace("--batch-size 16 ", "") if name == "minatar" else SMALL
    return shlex.split(f"{small} {RUNS[name]}")


@pytest.mark.parametrize("name", RUNS)
def test_small_runs_write_the_same_bytes(known, tmp_path, name):
    assert cli.main(["train", *flags(name), "--out", str(tmp_path / "run")]) == 0
    assert digests(tmp_path / "run") == known[name]


def test_a_resumed_run_writes_the_same_bytes(known, tmp_path):
    path = str(tmp_path / "run")
    assert cli.main(["train", *flags("cartpole"), "--out", path]) == 0
    assert cli.main(["resume", path, "--steps", "900"]) == 0
    assert digests(Path(path)) == known["resumed"]
