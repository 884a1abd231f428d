"""Description of this machine's processor by Linux."""

from pathlib import Path

_FILE = Path("/proc/cpuinfo")


def line(*prefixes: str) -> str:
    """Return the first line of /proc/cpuinfo that starts with one of `prefixes`; an empty string if none does."""
    lines = _FILE.read_text("utf-8", "replace").splitlines() if _FILE.exists() else []
    return next((line for line in lines if line.startswith(prefixes)), "")
