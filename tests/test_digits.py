"""The supervised example: training many seeds of a classifier."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_seeds_of_the_classifier_learn():
    pytest.importorskip("sklearn")
    script = Path(__file__).parents[1] / "benchmarks" / "digits.py"
    words = [sys.executable, script, "--seeds", "4", "--updates", "300"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    accuracy, low, high = map(
        float, re.search(r"over 4 seeds: ([\d.]+)% \[range ([\d.]+), ([\d.]+)\]", done.stdout).groups()
    )
    assert 94 < low <= accuracy <= high < 100
