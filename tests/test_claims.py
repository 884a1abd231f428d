"""Claims: one holder at a time among many processes, and takeover of stale claims and of ended processes."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from plants import rejects

from fdqn.experiment import claims


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self, folder):
        return self.now


def of_another_machine(claim):
    """Edit a claim into one of a process on another machine, which only its heartbeat shows to be alive."""
    record = json.loads((claim.path / "owner.json").read_text())
    times = os.stat(claim.path / "owner.json").st_mtime
    (claim.path / "owner.json").write_text(json.dumps({**record, "machine": "other", "host": "node-3", "pid": 71}))
    os.utime(claim.path / "owner.json", (times, times))
    return claim


def test_a_claim_excludes_others_until_it_is_released(tmp_path):
    folder = tmp_path / "00003.claim"
    with claims.holding(folder) as claim:
        record = json.loads((claim.path / "owner.json").read_text())
        assert (record["pid"], record["host"]) == (os.getpid(), os.uname().nodename)
        assert claims.is_held(folder)
        claim.check()
        with pytest.raises(claims.ClaimedError, match=f"got that of process {os.getpid()} on "):
            claims.take(folder)
    assert not claims.is_held(folder)
    again = claims.take(folder)
    assert again.number == claim.number + 1
    with pytest.raises(claims.LostError, match="taken over by process"):
        claim.check()


def test_a_claim_without_heartbeat_is_taken_over_after_the_stated_time(tmp_path):
    folder, clock = tmp_path / "x.claim", Clock()
    first = of_another_machine(claims.take(folder, clock))
    clock.now += claims.STALE
    with pytest.raises(claims.ClaimedError, match="got that of process 71 on node-3"):
        claims.take(folder, clock)
    first.beat(clock)
    clock.now += claims.STALE
    assert claims.is_held(folder, clock), "the time of the heartbeat counts, not that of the start"
    clock.now += 1
    second = claims.take(folder, clock)
    with pytest.raises(claims.LostError):
        first.check()
    second.check()
    first.release()
    assert claims.is_held(folder, clock), "a lost claim cannot be released"
    with contextlib.suppress(FileNotFoundError):
        first.beat(clock)
    second.check()


def law_one_taker(folder, clock, take):
    """Let two processes see the same stale claim, and let the second take it after the first has taken it."""
    of_another_machine(claims.take(folder, clock))
    clock.now += claims.STALE + 1
    takers = [take(folder, clock) for _ in range(2)]
    taken = []
    for taker in takers:
        with contextlib.suppress(claims.ClaimedError):
            taken.append(taker())
    holders = 0
    for claim in taken:
        with contextlib.suppress(claims.LostError):
            claim.check()
            holders += 1
    assert len(taken) == holders == 1, "claims"


def seen_before(folder, clock):
    """Return a function that takes the claim, and that has already seen that it is free."""
    last = claims.newest(folder)

    def taker():
        with pytest.MonkeyPatch.context() as patched:
            newest, seen = claims.newest, []
            patched.setattr(claims, "newest", lambda x: newest(x) if seen else (seen.append(x), last)[1])
            patched.setattr(claims, "is_free", lambda *given: True)
            return claims.take(folder, clock)

    return taker


def renamed_away(folder, clock):
    """Return a function with a common bug: it renames the claim that it has seen, then creates a new one."""

    def taker():
        last = claims.newest(folder)
        os.rename(folder / f"{last:06}", folder / f"stale-{time.monotonic_ns()}")
        claim = claims.Claim(folder, last + 1)
        claim.path.mkdir()
        return claim

    return taker


def test_only_one_process_takes_over_a_stale_claim(tmp_path):
    law_one_taker(tmp_path / "a.claim", Clock(), seen_before)
    with rejects("claims"):
        law_one_taker(tmp_path / "b.claim", Clock(), renamed_away)


def test_a_suspended_process_does_not_take_a_removed_number(tmp_path):
    folder, clock = tmp_path / "x.claim", Clock()
    claims.take(folder, clock).release()
    late = seen_before(folder, clock)
    for _ in range(3):
        claims.take(folder, clock).release()
    holder = claims.take(folder, clock)
    with pytest.raises(claims.ClaimedError, match="another process took first"):
        late()
    holder.check()
    assert sorted(x.name for x in folder.iterdir()) == ["000004", "000005"]


def test_a_claim_of_a_process_that_was_killed_is_free_at_once(tmp_path):
    folder = tmp_path / "x.claim"
    read, write = os.pipe()
    if not (pid := os.fork()):
        claims.take(folder)
        os.write(write, b"x")
        time.sleep(100)
        os._exit(0)
    os.read(read, 1)
    assert claims.is_held(folder)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while claims.is_held(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not claims.is_held(folder), "also before its parent has waited for it"
    os.waitpid(pid, 0)
    assert claims.take(folder).number == 2


def test_only_one_of_many_processes_holds_a_claim(tmp_path):
    """Let 8 processes increment a counter in a file while they hold the claim."""
    folder, count = tmp_path / "x.claim", tmp_path / "count"
    count.write_text("0")
    pids = []
    for _ in range(8):
        if pid := os.fork():
            pids.append(pid)
            continue
        with contextlib.suppress(BaseException):
            for _ in range(5):
                add_one(folder, count)
            os._exit(0)
        os._exit(1)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
    assert count.read_text() == "40"


def add_one(folder: Path, count: Path):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            claim = claims.take(folder)
        except claims.ClaimedError:
            time.sleep(0.001)
            continue
        before = int(count.read_text())
        time.sleep(0.001)
        count.write_text(str(before + 1))
        claim.check()
        return claim.release()
    raise AssertionError("no claim in a minute")


def test_the_heartbeat_is_renewed_while_a_claim_is_held(tmp_path):
    folder, clock = tmp_path / "x.claim", Clock()
    with claims.holding(folder, clock, stale=0.06) as claim:
        clock.now += 5.0
        deadline = time.monotonic() + 10
        while os.stat(claim.path / "owner.json").st_mtime < clock.now and time.monotonic() < deadline:
            time.sleep(0.005)
        assert os.stat(claim.path / "owner.json").st_mtime == clock.now
        assert not claims.is_free(folder, claim.number, clock, 0.06)


def test_a_claim_of_a_process_of_this_machine_does_not_become_stale(tmp_path):
    """Keep the claim of a suspended process, which also keeps the lock of the run folder."""
    folder, clock = tmp_path / "x.claim", Clock()
    claim = claims.take(folder, clock)
    clock.now += 10 * claims.STALE
    assert claims.is_held(folder, clock)
    of_another_machine(claim)
    assert not claims.is_held(folder, clock)


@pytest.mark.parametrize(("started", "ended"), [(None, None), (1, True)])
def test_a_reused_process_number_is_recognized(started, ended):
    record = claims._own()
    assert claims._has_ended(record) is False
    assert claims._has_ended({**record, "started": started}) is ended
    assert claims._has_ended({**record, "machine": f"another-{record['machine']}"}) is None


@pytest.mark.parametrize("kept", [True, False])
def test_a_process_suspended_while_it_takes_a_claim_does_not_hold_it(tmp_path, monkeypatch, kept):
    """Let another process take over after a folder is created and before `owner.json` is written in it."""
    folder, clock, own = tmp_path / "x.claim", Clock(), claims._own

    def suspended():
        (folder / "000002").mkdir()
        if not kept:
            (folder / "000001").rmdir()
        return own()

    monkeypatch.setattr(claims, "_own", suspended)
    with pytest.raises(claims.ClaimedError, match="another process took first"):
        claims.take(folder, clock)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pid": "x"}', '{"pid": -1, "machine": "other"}'])
def test_a_claim_with_a_damaged_owner_is_held_until_it_is_stale(tmp_path, content):
    folder, clock = tmp_path / "x.claim", Clock()
    claim = claims.take(folder, clock)
    (claim.path / "owner.json").write_text(content)
    os.utime(claim.path / "owner.json", (clock.now, clock.now))
    with pytest.raises(claims.ClaimedError, match=r"got that of process .* on an unknown host"):
        claims.take(folder, clock)
    clock.now += claims.STALE + 1
    claims.take(folder, clock)


def test_the_time_is_that_of_the_file_system(tmp_path):
    assert abs(claims.filesystem_time(tmp_path) - time.time()) < 100
    assert list(tmp_path.iterdir()) == []
    assert claims.owner_text(tmp_path) == "process ? on an unknown host"
    assert claims.newest(tmp_path / "none") == 0
