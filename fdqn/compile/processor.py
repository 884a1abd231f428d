"""The processor of this machine, as Linux describes it."""

from pathlib import Path

_FILE = Path("/proc/cpuinfo")


def line(*beginnings: str) -> str:
    """Return the first line of /proc/cpuinfo that starts with one of `beginnings`; an empty string if none does."""
    lines = _FILE.read_text("utf-8", "replace").splitlines() if _FILE.exists() else []
    return next((line for line in lines if line.startswith(beginnings)), "")
