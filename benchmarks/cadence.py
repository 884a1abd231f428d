"""Report interval of the benchmarks. Does not import torch, because peers run in their own virtual environments."""

TARGET_PERIOD = 20
"""Updates between target copies: cycles go by multiples of it."""

REPORT_SECONDS = 0.1
"""Between reports, for which the host waits for a GPU and the queue of its work runs dry."""


def cycles_a_report(seconds: float) -> int:
    """Whole target periods that take about REPORT_SECONDS, for a cycle of so many seconds."""
    return TARGET_PERIOD * max(1, round(REPORT_SECONDS / TARGET_PERIOD / seconds))
