"""Report interval of the benchmarks. Does not import torch, because some peers run in separate environments."""

TARGET_PERIOD = 20
"""Updates between target copies; chunks of iterations are multiples of it."""

REPORT_SECONDS = 0.1
"""Seconds between reports. At a report the host waits for the GPU and its queue of work runs empty."""


def iterations_per_report(seconds: float) -> int:
    """Return the number of iterations that take about REPORT_SECONDS, a multiple of TARGET_PERIOD.

    `seconds` is the time of one iteration.
    """
    return TARGET_PERIOD * max(1, round(REPORT_SECONDS / TARGET_PERIOD / seconds))
