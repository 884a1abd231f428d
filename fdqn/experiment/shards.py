"""Train the shards of a run, one after the other in this process, or in several processes on any machines.

A process takes the claim on a shard (`claims`), trains the shard as an ordinary run, from its newest checkpoint if it
has one, and releases the claim. It then waits for shards that other processes train, and takes over those whose process
was lost. Processes share nothing but the run folder. A process that finds all shards finished
merges them (`merging`).

.. include:: ../docs/machines.md
"""

import contextlib
import shlex
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fdqn import check
from fdqn.experiment import claims, events, merging, results, session, shard_folders, shard_plan, sweep_plan
from fdqn.experiment.events import OnEvent
from fdqn.experiment.settings import Sweep
from fdqn.experiment.shard_plan import ShardPlan
from fdqn.storage import checkpoint

RANKS = {"RANK": "WORLD_SIZE", "SLURM_ARRAY_TASK_ID": "SLURM_ARRAY_TASK_MAX", "JOB_COMPLETION_INDEX": None}
"""Variables with the number of a process of torchrun, of a SLURM job array and of an indexed Kubernetes job, and those
with the number of processes (for SLURM, less one)."""

PAUSE = 10.0
"""Seconds after which a waiting process checks again whether other processes still hold their claims."""


def assigned(count: int, environ: Mapping[str, str]) -> tuple[range, str] | None:
    """Return the shards that a launcher assigns to this process, and a line that names the variable.

    Process k of W trains the shards k, k + W, k + 2W, ... Returns None if no variable of `RANKS` is set.

    Raises ValueError if a variable is not a number or is out of range.
    """
    name = next((name for name in RANKS if environ.get(name)), None)
    if name is None:
        return None
    rank, processes = _number(name, environ), count
    if (size := RANKS[name]) is not None and (name == "RANK" or environ.get(size)):
        processes = _number(size, environ) + (size == "SLURM_ARRAY_TASK_MAX")
    if rank >= min(count, processes):
        raise ValueError(
            f"{name}: expected a number below {min(count, processes)}, for {count} shards and processes numbered from "
            f"0, got {rank}"
        )
    mine = range(rank, count, processes)
    listed = f"shard {rank}" if len(mine) == 1 else f"shards {', '.join(map(str, mine[:4]))}{', ...' * (len(mine) > 4)}"
    return mine, f"{name}={rank}: {listed} of {count}"


def _number(name: str, environ: Mapping[str, str]) -> int:
    given = environ.get(name, "")
    if not given.isdecimal() or (name == "WORLD_SIZE" and int(given) == 0):
        raise ValueError(f"{name}: expected a number, got {given or 'none'!r}")
    return int(given)


def check_untracked(trackers: Sequence[str]) -> None:
    """Raise ValueError if there are trackers, which can only receive a run of one process."""
    if trackers:
        raise ValueError(f"track: expected no tracker with shards, got {trackers[0]}; omit track")


def check_number(number: int, count: int) -> None:
    """Raise ValueError unless `number` is in [0, count)."""
    check.count("shard", number)
    if number >= count:
        raise ValueError(f"shard: expected a number from 0 to {count - 1}, got {number}")


def train(
    path: Path,
    on_event: OnEvent = events.ignore,
    stop: session.Stop = bool,
    started: float | None = None,
    numbers: Iterable[int] | None = None,
    clock: claims.Clock = claims.filesystem_time,
    **changes: Any,
) -> Path:
    """Train or continue shards of a planned run one after the other, and merge them if all shards have finished.

    Args:
        path: folder of the run, as `shard_plan.create` returns it.
        on_event: receives the events of each shard, in which seeds and settings are numbered as in the whole run.
        stop: ends training at the next iteration, with complete files, once it returns True.
        started: as for `session.train`.
        numbers: shards to train; by default all that have not finished.
        clock: time with which heartbeats of claims are compared.
        **changes: arguments of `session.resume`, such as `env` and `device`; `steps` cannot be changed.

    Shards that other processes work on come last: this process waits for them, and trains those whose process was
    lost. So all of `numbers` have finished at the end, unless the run was stopped. A shard that ends with an error does
    not keep the others from training; the error is raised at the end.

    Raises ValueError for a folder that is not a sharded run, a number out of range, changed steps, and errors of
    shards.
    """
    planned = shard_plan.read(path)
    if changes.pop("steps", None) is not None:
        raise ValueError("steps: expected none for a sharded run, got a number; omit it")
    sweep_plan.check_code(path, planned.settings, changes.get("env"), changes.get("wrappers", ()))
    mine = list(range(planned.shards) if numbers is None else numbers)
    for number in mine:
        check_number(number, planned.shards)
    errors: dict[int, Exception] = {}
    left, is_first = mine, True
    while left and not stop():
        held = []
        for number in left:
            if stop() or shard_folders.is_finished(path, planned, number):
                continue
            try:
                if not _train_one(path, planned, number, on_event, stop, started, clock, changes):
                    held.append(number)
            except _ShardError as failed:
                errors[number] = failed.args[0]
                if not stop():
                    on_event(events.Notice(f"shard {number} of {planned.shards}: {errors[number]}"))
            started = None
        if held and is_first:
            by = claims.owner_text(shard_folders.claim_folder(path, held[0]))
            on_event(events.Notice(f"waiting for shards that other processes train: {_listed(held)} (the first: {by})"))
        left, is_first = held, False
        if left:
            _pause(stop)
    finish(path, on_event, stop, clock)
    raise_first({} if stop() else errors)
    return path


def raise_first(errors: Mapping[int, Exception | str]) -> None:
    """Raise ValueError with the first error of shards, if there is any. Keys are the numbers of the shards."""
    if errors:
        number, error = next(iter(errors.items()))
        others = f" (errors in {len(errors)} shards)" if len(errors) > 1 else ""
        raise ValueError(f"shard {number}: {error}{others}")


class _ShardError(Exception):
    """Wrap an error that ends one shard and not the others."""


def _train_one(
    path: Path,
    planned: ShardPlan,
    number: int,
    on_event: OnEvent,
    stop: session.Stop,
    started: float | None,
    clock: claims.Clock,
    changes: Mapping[str, Any],
) -> bool:
    """Train a shard to its end, or until `stop` returns True. Returns False if another process holds its claim."""
    title, folder = f"shard {number} of {planned.shards}", shard_folders.claim_folder(path, number)
    if claims.is_held(folder, clock):
        return False
    with _receiver(partial(_forward, on_event, path, planned, number)) as emit:
        try:
            with claims.holding(folder, clock) as claim:
                if shard_folders.is_finished(path, planned, number):  # by another process, since `train` looked
                    return True
                emit(events.Notice(f"{title}: {shard_folders.learners_text(planned, number)}"))
                if lines := shard_plan.differences(planned, changes.get("device")):
                    shard_folders.add_differing_machine(path, number, socket.gethostname(), lines)
                own = shard_plan.folder(path, number)
                if (own / "config.json").exists():
                    shard_folders.check_shard(path, planned, number)
                given = planned.shard_settings(number, path)
                session.train_or_resume(own, given, changes, emit, stop, started, planned.pinned, claim.check)
        except claims.ClaimedError:  # another process was faster
            return False
        except claims.LostError as error:
            emit(events.Notice(f"{title} is left to another process: {error}"))
            return False
        except session.AllFailedError as error:
            emit(events.Notice(f"{title}: {error}"))
    return True


def _pause(stop: session.Stop) -> None:
    """Wait `PAUSE` seconds, or until `stop` returns True."""
    end = time.monotonic() + PAUSE
    while not stop() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.2))


@contextlib.contextmanager
def _receiver(on_event: OnEvent) -> Iterator[OnEvent]:
    """Yield a receiver of events. Wrap errors of a run in `_ShardError`, but not exceptions that `on_event` raises."""
    raised: list[BaseException] = []

    def emit(event: events.Event) -> None:
        try:
            on_event(event)
        except BaseException as error:
            raised.append(error)
            raise

    try:
        yield emit
    except (ValueError, OSError, FloatingPointError, checkpoint.CheckpointError) as error:
        if error in raised:
            raise
        raise _ShardError(error) from None


def _forward(on_event: OnEvent, path: Path, planned: ShardPlan, number: int, event: events.Event) -> None:
    """Pass on an event of a shard with the folder of the whole run and its numbers of seeds and settings."""
    match event:
        case events.Stopped():
            return  # `train` emits one of the whole run
        case events.Started():
            event = event._replace(path=path)
        case events.SeedFailed() if isinstance(planned.settings, Sweep):
            own = planned.shard_settings(number, path)
            assert isinstance(own, Sweep)
            setting, seed = divmod(event.seed, own.seeds)
            setting += number * planned.size // planned.settings.seeds
            name = f"setting {setting}, seed {own.seed + seed}"
            event = event._replace(seed=event.seed + number * planned.size, name=name)
    on_event(event)


def _stopped(path: Path, planned: ShardPlan) -> events.Stopped:
    done = sum(results.finished(shard_plan.folder(path, number)) for number in range(planned.shards))
    return events.Stopped(path, done, planned.shards * planned.settings.steps)


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:8]))}{', ...' * (len(numbers) > 8)}"


def _left(path: Path, planned: ShardPlan) -> list[int]:
    """Return the shards that have not finished."""
    return [number for number in range(planned.shards) if not shard_folders.is_finished(path, planned, number)]


def finish(
    path: Path, on_event: OnEvent, stop: session.Stop = bool, clock: claims.Clock = claims.filesystem_time
) -> None:
    """Merge the shards of a run if all have finished; otherwise emit which have not, or that the run was stopped."""
    planned = shard_plan.read(path)
    left = _left(path, planned)
    if left and stop():
        return on_event(_stopped(path, planned))
    if not left:
        for note in merging.refresh(path):
            on_event(events.Notice(note))
        return
    held = sum(claims.is_held(shard_folders.claim_folder(path, number), clock) for number in left)
    on_event(
        events.Notice(
            f"{len(left)} of {planned.shards} shards have not finished: {_listed(left)}; other processes work on "
            f"{held} of them; continue with: fdqn resume {shlex.quote(str(path))}"
        )
    )
