"""Select trackers, and send the metrics of a run to them while it trains.

Each tracker has a thread, which reads the rows of the run folder and writes them to the tracker. A tracker that fails
or blocks does not stop the run, and one that was interrupted catches up when the run is resumed.

tracking.json         in the run folder: trackers, tags, and the id and the start time of the run in the trackers
"""

import collections
import contextlib
import difflib
import importlib
import json
import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from fdqn.experiment import events
from fdqn.experiment.events import OnEvent
from fdqn.storage import files

if TYPE_CHECKING:
    from fdqn.experiment.tracked_rows import Points
    from fdqn.experiment.trackers import Sink, TrackedRun

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
TagSet = Literal["cleanrl", "sb3"]

MAX_SETTINGS = 128
"""Maximum number of settings of a tracked sweep."""

TIMEOUT = 60.0
"""Seconds that a finished run waits for a tracker that makes no progress."""

_MODULES = {
    "tensorboard": ("torch.utils.tensorboard",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
"""Modules that each tracker imports."""

_CPU_FRACTION = 0.01
"""Maximum fraction of the CPU time of the process that the thread of a tracker uses while the run trains. It writes
less often to a slow tracker, such as MLflow, which needs 0.4 s for the points of 32 seeds."""

_BATCH = 100
"""Maximum number of reports that are written to a tracker in one call."""


class Choice(NamedTuple):
    """Trackers of a run, and the set of tags that names its metrics in them."""

    trackers: tuple[TrackerName, ...] = ()
    tags: TagSet = "cleanrl"


# The choice


def choose(track: str | Sequence[str], tags: str = "cleanrl") -> Choice:
    """Check the names of trackers and tags, and import the packages of the trackers.

    Args:
        track: name of a tracker, or several names: "tensorboard", "wandb", "trackio", "mlflow".
        tags: names of the metrics, "cleanrl" or "sb3".

    Raises TypeError for values that are not names, and ValueError for an unknown name, a tracker that occurs twice, a
    missing package, and W&B without a login.
    """
    found = check_names(track, tags)
    for name in found.trackers:
        _import(name)
    return found


def check_names(track: str | Sequence[str], tags: str = "cleanrl") -> Choice:
    """Check the names as `choose` does, without importing packages."""
    if not isinstance(track, Iterable) or not isinstance(tags, str):
        raise TypeError(f"track: expected names of trackers, got {track!r} with the tags {tags!r}")
    names = [track] if isinstance(track, str) else [*track]
    for name in names:
        if name not in get_args(TrackerName):
            near = difflib.get_close_matches(name, get_args(TrackerName), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"track: expected one of {', '.join(get_args(TrackerName))}, got {name!r}{hint}")
        if names.count(name) > 1:
            raise ValueError(f"track: expected each tracker once, got {name} {names.count(name)} times")
    if tags not in get_args(TagSet):
        raise ValueError(f"tags: expected one of {', '.join(get_args(TagSet))}, got {tags!r}")
    return Choice(tuple(names), tags)  # type: ignore[arg-type]


def check_settings(choice: Choice, count: int, halving: bool = False) -> None:
    """Raise ValueError for a tracked sweep of more than `MAX_SETTINGS` settings, as each has a curve, or with
    successive halving, as it changes the settings from rung to rung."""
    if choice.trackers and halving:
        raise ValueError("track: expected a sweep without halving, got one with it; omit track")
    if choice.trackers and count > MAX_SETTINGS:
        raise ValueError(f"track: expected a sweep of at most {MAX_SETTINGS} settings, got {count:,}; omit track")


def choose_for_resume(path: Path, track: str | Sequence[str] | None = None, tags: str | None = None) -> Choice:
    """Return the trackers of a resumed run: `track` and `tags` if given, else those of its `tracking.json`.

    Imports their packages. Raises ValueError for a damaged `tracking.json`, and the errors of `choose`.
    """
    record = _read(path)
    before = Choice() if record is None else Choice(tuple(record["trackers"]), record["tags"])
    found = check_names(before.trackers if track is None else track, before.tags if tags is None else tags)
    try:
        return choose(*found)
    except ValueError as error:
        without = "; or resume without trackers, with --track none" if track is None else ""
        raise ValueError(f"{error}{without}") from None


def _import(name: str) -> None:
    for module in _MODULES[name]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and module.startswith(error.name or " ")
            reason = "none" if missing else f"the error {error}"
            raise ValueError(
                f"track: expected the packages of {name}, got {reason}; pip install 'fdqn[{name}]'"
            ) from None
    if name == "wandb":
        _check_login()


def _check_login() -> None:
    """Raise ValueError unless W&B has an API key or is offline: it prompts for one in the middle of the output."""
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled") or wandb.login(prompt=False, verify=False):
        return
    raise ValueError("track: expected a login to W&B, got none; run wandb login, or set WANDB_MODE=offline")


# The record in the run folder


def _read(path: Path) -> dict[str, Any] | None:
    """Read `tracking.json` of a run folder; None if there is none. Raises ValueError if it is damaged."""
    file = path / "tracking.json"
    if not file.exists():
        return None
    try:
        record = json.loads(files.read(file, 2**16))
        check_names(record["trackers"], record["tags"])
        known = isinstance(record["id"], str) and re.fullmatch("[0-9a-f]{8}", record["id"])
        if not known or type(record["started"]) is not float or not math.isfinite(record["started"]):
            raise ValueError("expected an id and a time")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: expected the record of trackers, got another; delete it to resume without them ({error})"
        ) from None
    return record


def _recorded(path: Path, choice: Choice, started: Callable[[], float]) -> dict[str, Any]:
    """Write a choice of trackers to `tracking.json` and return the record. An earlier id and start time are kept."""
    before = _read(path)
    record = {"id": uuid.uuid4().hex[:8], "started": started()} if before is None else before
    record = {**record, "trackers": list(choice.trackers), "tags": choice.tags}
    if record != before:
        files.write(path / "tracking.json", (json.dumps(record, indent=2) + "\n").encode())
    return record


# The event callback


@contextlib.contextmanager
def tracked(
    choice: Choice, on_event: OnEvent, timeout: float = TIMEOUT, resumed: Path | None = None
) -> Iterator[OnEvent]:
    """Yield an event callback that updates the trackers and then calls `on_event`. Close the trackers at the end.

    An error of a tracker becomes one `Notice`. At the end, wait for trackers that still write, but for no more than
    `timeout` seconds without progress. Of a folder that is `resumed`, write the rows that the trackers lack, also if
    there is nothing left to train.
    """
    if not choice.trackers:
        yield on_event
        return
    new = set(choice.trackers) - set(_names(resumed))
    feeds, started, told = list[_Feed](), list[str](), set[tuple[str, str]]()

    def receive(event: events.Event) -> None:
        if isinstance(event, events.Started):
            for feed in feeds:  # of the previous program of a sweep
                feed.close(True)
            feeds.extend(_feeds(choice, _working(choice.trackers, feeds), event, on_event, told))
            started.append(Path(event.settings.out or "").name)
        elif isinstance(event, events.Reported) and event.planned:
            for feed in feeds:
                feed.reported(event.step)
        elif isinstance(event, events.Stopped):
            for feed in feeds:
                feed.close(False)
        for feed in feeds:
            feed.emit_notices(on_event)
        on_event(event)

    try:
        yield receive
    except BaseException as error:
        for feed in feeds:
            feed.close(False)
        with contextlib.suppress(Exception):
            _wait(feeds, on_event, min(timeout, 5.0) if isinstance(error, KeyboardInterrupt) else timeout)
        raise
    for feed in feeds:
        feed.close(True)
    _wait(feeds, on_event, timeout)
    late = [name for name in _working(choice.trackers, feeds) if name in new or not started]
    if resumed is not None and late:
        _catch_up(choice, late, resumed, started, on_event, timeout, told)


def _working(names: Sequence[TrackerName], feeds: "Sequence[_Feed]") -> list[TrackerName]:
    """Return the trackers that have not failed: those of the next programs of a sweep."""
    failed = {feed.name for feed in feeds if feed.failed}
    return [name for name in names if name not in failed]


def _names(path: Path | None) -> tuple[TrackerName, ...]:
    """Return the trackers of a run folder so far."""
    record = None if path is None else _read(path)
    return () if record is None else tuple(record["trackers"])


def _catch_up(
    choice: Choice,
    late: Sequence[TrackerName],
    path: Path,
    started: Sequence[str],
    on_event: OnEvent,
    timeout: float,
    told: set[tuple[str, str]],
) -> None:
    """Write the rows of a finished run, or of each finished program of a sweep, to trackers that may lack some.

    Args:
        choice: trackers of the run.
        late: those of them that get the rows.
        path: folder of the run or the sweep.
        started: names of programs that were trained meanwhile, whose rows all trackers have.
        on_event: receives notices.
        timeout: seconds without progress to wait.
        told: trackers and kinds of messages that were emitted.
    """
    from fdqn.experiment import results, run_folder, sweep_plan

    if (path / "halving.json").exists():
        return
    several = (path / "sweep.json").exists()
    names = [str(number) for number in range(len(sweep_plan.read(path).programs))] if several else []
    folders = [path / name for name in names if name not in started] if several else [path] * (not started)
    for folder in (folder for folder in folders if (folder / "summary.json").exists()):
        try:
            settings, step = results.read_settings(folder), results.finished(folder)
            with run_folder.writing(folder):
                event = events.Started(path, settings, step, step)
                feeds = _feeds(choice, late, event, on_event, told)
                for feed in feeds:
                    feed.close(True)
                _wait(feeds, on_event, timeout)
        except (OSError, ValueError) as error:
            on_event(events.Notice(f"the run is not tracked: {error}"))
            return
        blocked = {feed.name for feed in feeds if feed.thread.is_alive()}
        late = [name for name in _working(late, feeds) if name not in blocked]


def _feeds(
    choice: Choice,
    working: Sequence[TrackerName],
    event: events.Started,
    on_event: OnEvent,
    told: set[tuple[str, str]],
) -> "list[_Feed]":
    """Start a thread for each working tracker of a run, or of a program of a sweep, that starts or continues."""
    from fdqn.experiment import tracked_rows, trackers
    from fdqn.experiment.settings import Sweep

    settings, folder, numbers = event.settings, event.path, None
    if (event.path / "halving.json").exists():
        on_event(events.Notice("the sweep is not tracked: successive halving changes its settings from rung to rung"))
        return []
    try:
        if (event.path / "sweep.json").exists():  # of several programs, each in its own folder
            from fdqn.experiment import sweep_plan

            program = int(Path(settings.out or "").name)
            folder, numbers = event.path / str(program), sweep_plan.read(event.path).programs[program].setting_numbers
        before = tracked_rows.reader(folder, settings.learners)
        record = _recorded(
            event.path,
            choice,
            lambda: time.time() - max([report.seconds for report in before(event.step)], default=0.0),
        )
    except (OSError, ValueError) as error:
        on_event(events.Notice(f"the run is not tracked: {error}"))
        return []
    if not isinstance(settings, Sweep) and settings.seeds > (most := tracked_rows.MAX_SEEDS):
        on_event(events.Notice(f"trackers show only the aggregate of the seeds, as there are more than {most}"))
    returns = tuple(tracked_rows.TAGS[choice.tags][name] for name in tracked_rows.WITH_INTERVAL)
    curves = tracked_rows.curves(settings, numbers)
    run = trackers.TrackedRun(event.path, record["id"], record["started"], curves, returns)
    tail = _Tail(folder, settings.learners, event.step, choice.tags)
    return [_Feed(name, trackers.ADAPTERS[name], run, tail, told) for name in working]


class _Tail(NamedTuple):
    """Rows of a run folder that are sent to a tracker."""

    folder: Path
    learners: int
    step: int
    """Step up to which the rows are complete when the thread starts."""
    tags: str


def _wait(feeds: "list[_Feed]", on_event: OnEvent, timeout: float) -> None:
    """Wait until the trackers have written everything, or none has made progress for `timeout` seconds."""
    before: list[int] = []
    while (left := [feed for feed in feeds if feed.thread.is_alive()]) and before != [x.progress for x in left]:
        before, until = [feed.progress for feed in left], time.monotonic() + timeout
        for feed in left:
            feed.thread.join(max(0.0, until - time.monotonic()))
    for feed in feeds:
        feed.emit_notices(on_event)
    for name in dict.fromkeys(feed.name for feed in left):
        waited = f"{name} has not responded for {timeout:g} s; fdqn does not wait for it any longer"
        on_event(events.Notice(f"{waited}; fdqn resume adds the missing points"))


class _Feed:
    """A thread that writes the rows of a run to a tracker."""

    def __init__(
        self,
        name: str,
        adapter: "Callable[[TrackedRun], Sink]",
        run: "TrackedRun",
        tail: _Tail,
        told: set[tuple[str, str]],
    ) -> None:
        self.name, self._adapter, self._run, self._tail, self._told = name, adapter, run, tail, told
        self._changed = threading.Condition()
        self._step = tail.step
        self._finished: bool | None = None
        self.progress = 0
        self.failed = False
        self._notices = collections.deque[tuple[str, str]]()
        self.thread = threading.Thread(target=self._work, name=f"fdqn {name}", daemon=True)
        self.thread.start()

    def reported(self, step: int) -> None:
        """Let the thread write the rows up to a step."""
        with self._changed:
            self._step = step
            self._changed.notify()

    def close(self, finished: bool) -> None:
        """Let the thread write the remaining rows and close the tracker."""
        with self._changed:
            self._finished = finished if self._finished is None else self._finished
            self._changed.notify()

    def emit_notices(self, on_event: OnEvent) -> None:
        """Emit the notices of the tracker, in the thread of the run, each kind once for all programs."""
        while self._notices:
            kind, text = self._notices.popleft()
            if (self.name, kind) not in self._told:
                self._told.add((self.name, kind))
                on_event(events.Notice(text))

    def _work(self) -> None:
        """Open the tracker, write rows until the run ends, and close it."""
        try:
            sink = self._adapter(self._run)
            self._notices.append(("where", f"{self.name}: {sink.where}"))
            self.progress += 1
            self._write(sink)
        except BaseException as error:  # SystemExit too, as no error of this thread reaches the run
            self.failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            text = f"{self.name} failed, and the run continues without it: {reason}"
            self._notices.append(("failure", f"{text}; fdqn resume adds the missing points"))

    def _write(self, sink: "Sink") -> None:
        """Write the points of all rows, also of those before a resume, that the tracker does not hold."""
        from fdqn.experiment import tracked_rows

        read, tags = tracked_rows.reader(self._tail.folder, self._tail.learners), tracked_rows.TAGS[self._tail.tags]
        last: dict[str, Any] = {}
        seen, due = -1, 0.0
        while True:
            step, finished = self._next(seen, due)
            started = time.thread_time()
            batch: list[Points] = []
            for report in read(step):
                last, points = tracked_rows.points(last, report, self._run.curves, tags)
                batch.append(tracked_rows.drop_held(points, sink.held))
                if len(batch) == _BATCH:
                    self._write_batch(sink, batch)
                    batch = []
            self._write_batch(sink, batch)
            seen, due = step, time.process_time() + (time.thread_time() - started) / _CPU_FRACTION
            if finished is not None:
                sink.close(finished)
                return

    def _next(self, seen: int, due: float) -> tuple[int, bool | None]:
        """Wait for rows after step `seen` and until the process has used `due` seconds of CPU time, or for the end.

        Returns the step up to which rows are complete, and at the end True or False for a finished or a stopped run.
        """
        with self._changed:
            while self._finished is None and time.process_time() < due:
                self._changed.wait(0.5)
            self._changed.wait_for(lambda: self._finished is not None or self._step > seen)
            return self._step, self._finished

    def _write_batch(self, sink: "Sink", batch: "list[Points]") -> None:
        if batch:
            sink.write(batch)
        self.progress += 1
