"""Show the events of a run on a console: a live bar on a terminal and in a notebook, plain lines elsewhere."""

import importlib.util
import math
import shlex
import time
from typing import TYPE_CHECKING, Any

from fdqn.experiment import events
from fdqn.experiment.settings import Sweep, storage, task

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# Seconds before the first line of evaluation progress and between lines, if there is no terminal.
_FIRST_LINE, _NEXT_LINE = 1.0, 10.0


class Display:
    """Show the events of a run. A context manager, which removes the progress bar on exit.

    `every` is the least number of seconds between two lines of metrics where bars cannot be shown.
    """

    def __init__(self, console: "Console", every: float = 0.0) -> None:
        self._console, self._every = console, every
        self._live = console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)
        self._bar: Progress | None = None
        self._task: Any = None
        self._tasks: dict[int, Any] = {}
        self._greedy: events.Evaluated | None = None
        self._due = -math.inf
        self._total = self._limit = 0
        self._started = 0.0

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def __call__(self, event: events.Event) -> None:
        """Show an event."""
        match event:
            case events.Prepared():
                self.say(prepared_text(event))
            case events.Notice(text):
                self.say(text)
            case events.Started(_, _, _, steps):
                self._total, self._greedy = steps, None
            case events.Training(compiling):
                self._start_training(
                    "compiling, about 25 s the first time" if compiling else "running the first training iteration"
                )
            case events.SeedFailed(_, step, _, reason, name):
                self.say(f"{name} failed at step {step:,}: {reason}; it stops learning")
            case events.Evaluated():
                self._greedy = event
            case events.Reported():
                self._report(event)
            case events.EvaluationStarted(_, episodes, limit):
                self._start_episodes(episodes, limit)
            case events.EvaluationProgress(ended, step):
                self._advance_episodes(ended, step)
            case events.ShardsReported():
                self._show_shards(event)
            case events.EvaluationEnded() | events.Finished() | events.Stopped():
                self._close()

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._console.print(text, soft_wrap=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start_training(self, wait: str) -> None:
        if not self._live:
            self._console.print(wait)
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn())
        rest = (TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, *rest, console=self._console)
        self._task = self._bar.add_task(wait, total=self._total)
        self._bar.start()

    def _report(self, event: events.Reported) -> None:
        greedy = self._greedy if self._greedy is not None and self._greedy.step == event.step else None
        text = status_text(event, greedy)
        if self._bar is not None:
            self._bar.update(self._task, completed=event.step, description=text)
            if event.step >= event.steps:
                self._close()
        elif (now := time.perf_counter()) >= self._due or event.step >= event.steps:
            self._due = now + self._every
            self._console.print(f"step {event.step:,} of {event.steps:,}  {text}")

    def _show_shards(self, event: events.ShardsReported) -> None:
        """Show a bar for all shards and one for each active shard; without a terminal, print a line now and then."""
        text, done = shards_text(event), sum(row.step / row.steps for row in event.rows)
        if not self._live:
            if (now := time.perf_counter()) >= self._due:
                self._due = now + max(self._every, _NEXT_LINE)
                self.say(text)
            return
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (BarColumn(20), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True)
            self._task, self._tasks = self._bar.add_task("", total=event.shards), {}
            self._bar.start()
        self._bar.update(self._task, completed=done, description=text)
        for row in event.rows:
            if row.number not in self._tasks:
                self._tasks[row.number] = self._bar.add_task("", total=row.steps)
            returns = "" if row.score is None else f"  return {row.score:.1f}"
            description = f"shard {row.number} on {row.host}: {row.state}{returns}"
            is_over = row.state in ("finished", "stopped")
            self._bar.update(self._tasks[row.number], completed=row.step, description=description, visible=not is_over)

    def _start_episodes(self, episodes: int, limit: int) -> None:
        self._close()
        self._started = time.perf_counter()
        self._total, self._limit, self._due = episodes, limit, self._started + _FIRST_LINE
        if not self._live:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True)
        self._task = self._bar.add_task("episodes", total=episodes)
        self._bar.start()

    def _advance_episodes(self, ended: int, step: int) -> None:
        """Show how many episodes have ended. The time left is an upper bound: the time until the step limit."""
        now = time.perf_counter()
        left = (now - self._started) * (self._limit - step) / max(step, 1)
        at_most = f", at most {left // 60:.0f}:{left % 60:02.0f} left" if step else ""
        status = f"step {step:,} of at most {self._limit:,}{at_most}"
        if self._bar is not None:
            self._bar.update(self._task, completed=ended, description=f"episodes, {status}")
        elif step and now >= self._due:
            self._due = now + _NEXT_LINE
            self.say(f"{ended:,} of {self._total:,} episodes finished, {status}")


def prepared_text(event: events.Prepared) -> str:
    """Describe the size of a run in one line."""
    settings, rows, size = event.settings, event.capacity, event.replay_bytes
    lanes = f"{len(settings.varied)} settings x " if isinstance(settings, Sweep) and len(settings.varied) > 1 else ""
    seeds = f"{settings.seeds} seed{'s' * (settings.seeds != 1)}"
    stored = f"{storage(settings.algorithm)} {settings.learners} x {rows:,} row{'s' * (rows != 1)}"
    return (
        f"{task(settings)}: {lanes}{seeds} x {settings.steps:,} steps on {event.device}; "
        f"{bytes_text(event.state_bytes)}, {stored} of {size // rows:,} B: "
        f"{bytes_text(size)} per seed, {bytes_text(settings.learners * size)} in total"
    )


def status_text(event: events.Reported, greedy: events.Evaluated | None = None) -> str:
    """Sum up the metrics of the seeds that have not failed, with those of an evaluation at the same step."""
    import numpy as np

    from fdqn.report import statistics

    alive = ~event.failed
    returns = event.returns[alive & np.isfinite(event.returns)]
    parts = [f"return {statistics.iqm(returns):.1f}" if len(returns) else "no episode finished yet"]
    if greedy is not None:
        means = greedy.returns[alive].mean(1)
        if len(means := means[np.isfinite(means)]):
            parts.append(f"greedy {statistics.iqm(means):.1f}")
    if len(loss := event.loss[alive & np.isfinite(event.loss)]):
        parts.append(f"loss {np.median(loss):.3g}")
    if math.isfinite(event.updates_per_second):
        parts.append(f"{event.updates_per_second:,.0f} seed-updates/s")
    return "  ".join(parts)


def shards_text(event: events.ShardsReported) -> str:
    """Sum up the shards of a run, such as `3 of 16 shards finished, 4 training, 9 waiting`."""
    states = [row.state for row in event.rows]
    active = {state: states.count(state) for state in dict.fromkeys(states) if state != "finished"}
    waiting = {"waiting": event.shards - len(states)} if len(states) < event.shards else {}
    parts = [f"{number} {state}" for state, number in {**active, **waiting}.items()]
    return ", ".join([f"{states.count('finished')} of {event.shards} shards finished", *parts])


def stopped_text(event: events.Stopped) -> str:
    """Describe where a run stopped and how to continue it."""
    hint = f"; continue with: fdqn resume {shlex.quote(str(event.path))}" if event.step < event.steps else ""
    where = f"{event.step:,} of {event.steps:,} steps"
    return f"stopped at {where}; the files in {event.path} are complete{hint}"


def bytes_text(size: int) -> str:
    """Format a number of bytes in MB or kB."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
