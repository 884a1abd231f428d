"""Claims: at most one process at a time works on something, such as a shard of a run, also on several machines.

    NAME.claim/000001/owner.json    host, process and start of the first claim; its time of change is the heartbeat
    NAME.claim/000001/released      the claim is given back

A claim is the folder with the highest number. Making a folder is atomic, also on network file systems, so of several
processes that want the next number exactly one gets it. A claim can be followed by the next one if it was released, if
its heartbeat is older than `STALE` seconds. If its process is one of this machine, the heartbeat does not count: the
claim is free at once when the process has ended, and not before. Numbers only grow: a process that was suspended and
looks again sees that its claim is not the highest one, and must not write any more.

The holder looks before each write. Between the two there is no protection but the lock of the run folder, which many
file systems of several machines have as well.
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
"""Seconds without a heartbeat after which a claim is taken over."""

BEATS = 6
"""Heartbeats in `STALE` seconds."""

Clock = Callable[[Path], float]
"""Return the time in seconds by which claims in a folder are dated."""


class ClaimedError(ValueError):
    """Error of a claim that another process holds."""


class LostError(RuntimeError):
    """Error of a process whose claim was taken over by another one. It must not write any more."""


class Claim(NamedTuple):
    """A claim that this process holds."""

    folder: Path
    number: int

    @property
    def place(self) -> Path:
        """Folder of this claim."""
        return self.folder / f"{self.number:06}"

    def check(self) -> None:
        """Raise LostError if another process has taken over the claim."""
        if (now := newest(self.folder)) != self.number:
            by = described(self.folder) if now else "a process that removed it"
            raise LostError(f"{self.folder}: expected to hold claim {self.number}, but it was taken over by {by}")

    def beat(self, clock: Clock) -> None:
        """Renew the heartbeat."""
        now = clock(self.folder)
        os.utime(self.place / "owner.json", (now, now))

    def release(self) -> None:
        """Give the claim back, unless it was lost."""
        with contextlib.suppress(OSError):
            (self.place / "released").touch()


def filesystem_time(folder: Path) -> float:
    """Return the time of the machine that stores a folder, so that clocks of different machines do not matter."""
    probe = folder / f".{uuid.uuid4().hex}"
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


@contextlib.contextmanager
def holding(folder: Path, clock: Clock = filesystem_time, stale: float = STALE) -> Iterator[Claim]:
    """Hold a claim in a context, with a thread that renews its heartbeat, and release it at the end.

    Raises ClaimedError, naming the owner, if another process holds it.
    """
    claim = take(folder, clock, stale)
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(stale / BEATS):
            with contextlib.suppress(OSError):  # a file system that does not respond; `check` decides
                claim.beat(clock)

    thread = threading.Thread(target=keep, name="fdqn-claim", daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        ended.set()
        claim.release()


def take(folder: Path, clock: Clock = filesystem_time, stale: float = STALE) -> Claim:
    """Take the claim of a folder, which is made if it is missing.

    Args:
        folder: folder of the claims, `NAME.claim`.
        clock: time by which claims are dated.
        stale: seconds without a heartbeat after which a claim is taken over.

    Raises ClaimedError, naming the owner, if another process holds the claim or takes it first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = newest(folder)
    if last and not is_free(folder, last, clock, stale):
        raise ClaimedError(f"{folder}: expected no other process to work on it, got {described(folder)}")
    claim = Claim(folder, last + 1)
    try:
        claim.place.mkdir()
    except FileExistsError:
        raise ClaimedError(f"{folder}: expected to take the claim, but another process was faster") from None
    faster = ClaimedError(f"{folder}: expected to take the claim, but another process was faster")
    if newest(folder) != claim.number:  # this process was suspended, and folders that it had seen were removed
        claim.place.rmdir()
        raise faster
    try:
        files.write(claim.place / "owner.json", json.dumps(_own()).encode())
        claim.beat(clock)
    except OSError:
        if newest(folder) == claim.number:
            raise
    if newest(folder) != claim.number:  # it was suspended later, and its claim became stale
        raise faster
    for name in os.listdir(folder):  # the claim before this one is kept for inspection
        if name.isdecimal() and int(name) < last:
            shutil.rmtree(folder / name, ignore_errors=True)
    return claim


def newest(folder: Path) -> int:
    """Return the highest number of a claim in a folder; 0 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return max((int(name) for name in os.listdir(folder) if name.isdecimal()), default=0)
    return 0


def is_free(folder: Path, number: int, clock: Clock = filesystem_time, stale: float = STALE) -> bool:
    """Return True if a claim was released, is that of a process of this machine that has ended, or is stale.

    A process of this machine that is suspended keeps its claim, as it keeps the lock of the run folder.
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


def held(folder: Path, clock: Clock = filesystem_time, stale: float = STALE) -> bool:
    """Return True if a process holds the claim of a folder."""
    return bool(last := newest(folder)) and not is_free(folder, last, clock, stale)


def described(folder: Path) -> str:
    """Describe the owner of the newest claim of a folder, such as `process 71 on node-3`."""
    owner = _read(folder / f"{newest(folder):06}")
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}"


def _own() -> dict[str, Any]:
    """Return the record of this process in `owner.json`."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": pid,
        "started": _started(pid),
        "time": round(time.time(), 3),
    }


def _read(place: Path) -> dict[str, Any]:
    """Read `owner.json`; an empty record if it is not there yet or damaged."""
    try:
        record = json.loads(files.read(place / "owner.json", 2**16))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _machine() -> str | None:
    """Return the identity of this start of this machine, and of this container; None if the system has none.

    Copies of a virtual machine that is running may share all but the name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _has_ended(owner: dict[str, Any]) -> bool | None:
    """Return True if an owner, a process of this machine, has ended, False if it runs; None if neither is known.

    A number of a process may be that of a later one, which has another start.
    """
    pid = owner.get("pid")
    if owner.get("machine") is None or owner["machine"] != _machine() or type(pid) is not int or pid < 1:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        pass
    started, then = _started(pid), owner.get("started")
    return None if None in (started, then) else started != then


def _started(pid: int) -> int | None:
    """Return the time at which a process of this machine started; None if it is not known. A process that has ended,
    and whose parent has not waited for it, has 0."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])
