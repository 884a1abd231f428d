"""Claims on shards of a run: of several processes, also on several machines, at most one at a time works on a shard.

    00003.claim/000001/owner.json    host, process and start of the holder; its modification time is the heartbeat
    00003.claim/000001/released      the holder has released the claim

The folder with the highest number is the current claim. A process takes the claim by creating the folder with the next
number. Creating a folder is atomic, also on network file systems, so of several processes exactly one succeeds. It may
do so only if the current claim is free:

- It was released.
- Its holder is a process of this machine that has ended. A holder of this machine that still runs keeps the claim, also
  without a heartbeat.
- Its holder is a process of another machine, and its heartbeat is older than `STALE` seconds, as when the process or
  the machine was lost.

The current claim is never renamed or removed. A process that was suspended while another one took the claim over sees
a higher number than its own (`Claim.check`), and must not write any more. The holder checks before each write; between
the check and the write, only the lock of the run folder protects, which many network file systems have as well.
"""

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fdqn.storage import files

STALE = 120.0
"""Seconds without a heartbeat after which a claim is free."""

BEATS = 6
"""Heartbeats within `STALE` seconds."""

Clock = Callable[[Path], float]
"""Return the time in seconds with which heartbeats in a folder are compared."""


class ClaimedError(ValueError):
    """The claim is held by another process."""


class LostError(RuntimeError):
    """The claim of this process was taken over by another one. This process must not write any more."""


class Claim(NamedTuple):
    """A claim that this process holds."""

    folder: Path
    """Folder of all claims on the shard, such as `00003.claim`."""
    number: int

    @property
    def path(self) -> Path:
        """Folder of this claim, such as `00003.claim/000001`."""
        return self.folder / f"{self.number:06}"

    def check(self) -> None:
        """Raise LostError if another process has taken over the claim."""
        if (now := newest(self.folder)) != self.number:
            by = owner_text(self.folder) if now else "a process that removed it"
            raise LostError(f"{self.folder}: expected to hold claim {self.number}, but it was taken over by {by}")

    def beat(self, clock: Clock) -> None:
        """Renew the heartbeat."""
        now = clock(self.folder)
        os.utime(self.path / "owner.json", (now, now))

    def release(self) -> None:
        """Release the claim, unless it was lost."""
        with contextlib.suppress(OSError):
            (self.path / "released").touch()


def filesystem_time(folder: Path) -> float:
    """Return the time of the file system that stores a folder, so that the clocks of the machines do not matter."""
    probe = folder / f".{uuid.uuid4().hex}"
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


@contextlib.contextmanager
def holding(folder: Path, clock: Clock = filesystem_time, stale: float = STALE) -> Iterator[Claim]:
    """Take the claim, renew its heartbeat from a thread while the context is active, and release it at the end.

    Raises ClaimedError, naming the holder, if another process holds the claim.
    """
    claim = take(folder, clock, stale)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(stale / BEATS):
            with contextlib.suppress(OSError):  # a file system that does not respond; `check` decides
                claim.beat(clock)

    thread = threading.Thread(target=renew, name="fdqn-claim", daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        ended.set()
        claim.release()


def take(folder: Path, clock: Clock = filesystem_time, stale: float = STALE) -> Claim:
    """Take the claim of a folder, which is created if it does not exist.

    Args:
        folder: folder of the claims, such as `00003.claim`.
        clock: time with which heartbeats are compared.
        stale: seconds without a heartbeat after which a claim is free.

    Raises ClaimedError, naming the holder, if another process holds the claim or takes it first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = newest(folder)
    if last and not is_free(folder, last, clock, stale):
        raise ClaimedError(f"{folder}: expected a free claim, got that of {owner_text(folder)}")
    claim = Claim(folder, last + 1)
    faster = ClaimedError(f"{folder}: expected a free claim, got one that another process took first")
    try:
        claim.path.mkdir()
    except FileExistsError:
        raise faster from None
    if newest(folder) != claim.number:  # suspended since `last` was read, and that folder was removed
        claim.path.rmdir()
        raise faster
    try:
        files.write(claim.path / "owner.json", json.dumps(_own()).encode())
        claim.beat(clock)
    except OSError:
        if newest(folder) == claim.number:
            raise
    if newest(folder) != claim.number:  # suspended since the folder was created, and the claim became stale
        raise faster
    for name in os.listdir(folder):  # keep the previous claim for inspection
        if name.isdecimal() and int(name) < last:
            shutil.rmtree(folder / name, ignore_errors=True)
    return claim


def newest(folder: Path) -> int:
    """Return the number of the current claim of a folder; 0 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return max((int(name) for name in os.listdir(folder) if name.isdecimal()), default=0)
    return 0


def is_free(folder: Path, number: int, clock: Clock = filesystem_time, stale: float = STALE) -> bool:
    """Return True if a claim was released, is stale, or was held by a process of this machine that has ended.

    A suspended process of this machine keeps its claim, as it keeps the lock of the run folder.
    """
    place = folder / f"{number:06}"
    if (place / "released").exists():
        return True
    if (ended := _has_ended(_read(place))) is not None:
        return ended
    with contextlib.suppress(FileNotFoundError):
        file = place / "owner.json"
        seen = (file if file.exists() else place).stat().st_mtime
        return clock(folder) - seen > stale
    return False


def is_held(folder: Path, clock: Clock = filesystem_time, stale: float = STALE) -> bool:
    """Return True if a process holds the claim of a folder."""
    return bool(last := newest(folder)) and not is_free(folder, last, clock, stale)


def owner_text(folder: Path) -> str:
    """Describe the holder of the current claim of a folder, such as `process 71 on node-3`."""
    owner = _read(folder / f"{newest(folder):06}")
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}"


def _own() -> dict[str, Any]:
    """Return the content of `owner.json` for this process."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": pid,
        "started": _started(pid),
        "time": round(time.time(), 3),
    }


def _read(place: Path) -> dict[str, Any]:
    """Read `owner.json`; return an empty record if it does not exist yet or is damaged."""
    try:
        record = json.loads(files.read(place / "owner.json", 2**16))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _machine() -> str | None:
    """Identify this boot of this machine, and this container (PID namespace); None if the system has no such files.

    The host name is a part of it, since copies of a running virtual machine may have the rest in common.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{socket.gethostname()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _has_ended(owner: dict[str, Any]) -> bool | None:
    """Return whether a holder, a process of this machine, has ended; None for other machines or if it is unknown.

    The system reuses process numbers, so the times at which the processes started are compared too.
    """
    pid = owner.get("pid")
    if owner.get("machine") is None or owner["machine"] != _machine() or type(pid) is not int or pid < 1:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # a process of another user
        pass
    started, then = _started(pid), owner.get("started")
    return None if None in (started, then) else started != then


def _started(pid: int) -> int | None:
    """Return the time at which a process of this machine started, in clock ticks since boot.

    None if it is unknown, 0 for a process that has ended but whose parent has not waited for it (a zombie).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])
