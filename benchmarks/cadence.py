"""Report interval of the benchmarks. Does not import torch, because some peers run in separate environments."""

TARGET_PERIOD = 20
"""Updates between target copies; chunks of iterations are multiples of it."""

REPORT_SECONDS = 0.1
"""Seconds between reports. At a report the host waits for the GPU and its queue of work runs empty."""


def cycles_a_report(seconds: float) -> int:
    """Return a number of iterations, in whole target periods, that takes about REPORT_SECONDS, for an iteration of
    `seconds`.
    """
    return TARGET_PERIOD * max(1, round(REPORT_SECONDS / TARGET_PERIOD / seconds))
