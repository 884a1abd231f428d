"""Train and continue sweeps with successive halving.

    RUN/settings.csv    a row for each learner of all settings
    RUN/halving.json    the rungs and their settings (`halving_plan`)
    RUN/0, RUN/1, ...   a run for each rung

A rung starts from the last checkpoint of the one before it, without the learners of the dropped settings. Rows of
`metrics.csv` and other tables are copied for the learners that are kept. So the last rung is a complete run of its
settings, equal to one without halving. A rung has started once `halving.json` lists its settings. If a sweep is killed
before that, the folder of the rung is made again from the previous rung, whose files no longer change, so the sweep
continues exactly.
"""

import dataclasses
import itertools
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fdqn import training
from fdqn.experiment import (
    assemble,
    cost,
    events,
    halving_plan,
    history,
    memory,
    results,
    run_folder,
    session,
    sweep_plan,
)
from fdqn.experiment.events import OnEvent
from fdqn.experiment.halving_plan import Halving
from fdqn.experiment.settings import Sweep
from fdqn.report import plots
from fdqn.training import populations


def train(
    planned: Halving, on_event: OnEvent = events.ignore, stop: session.Stop = bool, started: float | None = None
) -> Path:
    """Train the rungs of a plan one after the other, and return the folder of the sweep.

    Raises the errors of `session.train`, and ValueError if no episode has finished by the end of a rung. A sweep that
    was stopped is continued by `resume`.
    """
    settings = planned.settings
    state_bytes(planned)  # raises before a file is written
    path = run_folder.create_sweep(settings)
    halving_plan.write(planned, path)
    return _continue(path, on_event, stop, started, {"env": settings.env, "wrappers": settings.wrappers})


def resume(
    path: Path,
    on_event: OnEvent = events.ignore,
    stop: session.Stop = bool,
    started: float | None = None,
    **changes: Any,
) -> Path:
    """Continue a sweep with halving that was stopped, and return its folder.

    Arguments and errors are those of `sweep.resume`; `steps` cannot be changed.
    """
    if changes.get("steps") is not None:
        raise ValueError("steps: expected none for a sweep with halving, got a number; omit it")
    sweep_plan.check_code(path, halving_plan.read(path).settings, changes.get("env"), changes.get("wrappers", ()))
    return _continue(path, on_event, stop, started, changes)


def _continue(
    path: Path, on_event: OnEvent, stop: session.Stop, started: float | None, changes: Mapping[str, Any]
) -> Path:
    """Train the current rung, the last one that has started, and those after it."""
    while True:
        planned = halving_plan.read(path)
        number = len(planned.setting_numbers) - 1
        if not _is_complete(path / str(number), planned.rungs[number].end):
            rung = f"rung {number + 1} of {len(planned.rungs)}: {halving_plan.described(planned, number)}"
            on_event(events.Notice(rung))
            _train_rung(path, planned, partial(_as_sweep, on_event, path, planned), stop, started, changes)
            started = None
        if stop() or number + 1 == len(planned.rungs):
            return path
        _start_rung(path, number, changes.get("env"), changes.get("wrappers", ()))


def _is_complete(path: Path, end: int) -> bool:
    """Return True if a rung was trained to its end and, if it is the last one, evaluated."""
    return results.finished(path) >= end and not results.lacks_evaluation(path)


def _train_rung(
    path: Path, planned: Halving, emit: OnEvent, stop: session.Stop, started: float | None, changes: Mapping[str, Any]
) -> None:
    """Train the current rung to its end."""
    number = len(planned.setting_numbers) - 1
    own = path / str(number)
    if (own / "config.json").exists():
        session.resume(own, on_event=emit, stop=stop, started=started, **changes)
        return
    if number:
        raise ValueError(f"sweep: expected the rung {own}, which {halving_plan.FILE} lists, got none; restore it")
    run_folder.remove_incomplete(own)
    first = dataclasses.replace(session.changed(planned.settings, changes), out=str(own))
    pinned = run_folder.partition_to_pin(first, first.seeds)
    session.train(first, emit, stop, started, planned.rungs[0].end, pinned)


def _start_rung(path: Path, number: int, env: str | None, wrappers: Sequence[str]) -> None:
    """Make the folder of the rung after `number`, and list its settings in `halving.json`."""
    own, new = path / str(number), path / str(number + 1)
    with run_folder.writing(own):
        planned = halving_plan.read(path)  # read again: under the lock, no other process changes it
        if len(planned.setting_numbers) > number + 1:
            return
        run = results.read(own)
        if len(run.summary["failed_seeds"]) == run.settings.learners:
            raise session.AllFailedError(
                f"stopped at {run.summary['steps']:,} of {planned.settings.steps:,} steps, because all seeds of all "
                f"settings have failed; the files in {path} are complete"
            )
        returns = plots.filled(run.curve.values)[-1].reshape(-1, planned.settings.seeds)
        failed = [bool(record["failed_seeds"]) for record in run.summary["settings"]]
        kept = halving_plan.survivors(returns, failed, planned.eta)
        _copy(own, new, kept, planned.rungs[number + 1].end, env, wrappers)
        chosen = tuple(planned.setting_numbers[number][i] for i in kept)
        halving_plan.write(planned._replace(setting_numbers=(*planned.setting_numbers, chosen)), path)


def _copy(source: Path, path: Path, kept: list[int], until: int, env: str | None, wrappers: Sequence[str]) -> None:
    """Make the folder of a rung from the one before: the settings `kept`, their rows, and the first checkpoint."""
    if path.is_dir():  # left by a process that was killed
        shutil.rmtree(path)
    given, _ = results.plan(source, env, wrappers)
    assert isinstance(given, Sweep)
    program = assemble.program(given)
    state = training.init(program, assemble.hyper(given), assemble.keys(given))
    at = history.restored(source, given, program, state)
    settings = dataclasses.replace(given, varied=tuple(given.varied[i] for i in kept), out=str(path))
    run_folder.create(settings, until=until, pinned=run_folder.pinned_partition(source, given))
    learners = populations.members_of(torch.tensor(kept), given.seeds).tolist()
    history.copy(source, at, path, settings, learners)


def _as_sweep(on_event: OnEvent, path: Path, planned: Halving, event: events.Event) -> None:
    rung = sweep_plan.Program(planned.settings, planned.setting_numbers[-1])
    on_event(sweep_plan.of_sweep(event, path, rung, 0, planned.settings.steps))


def state_bytes(planned: Halving) -> int:
    """Return the bytes that the learners need. Raises ValueError if clearly less memory is available.

    On a CPU, the states of two rungs are in memory at the same time between these rungs.
    """
    settings, device = planned.settings, assemble.device(planned.settings)
    settings_at_once = planned.rungs[0].settings + planned.rungs[1].settings * (device.type == "cpu")
    return memory.check_memory(assemble.program(settings), settings_at_once * settings.seeds, device)


def seconds(planned: Halving) -> tuple[float, ...] | None:
    """Estimate the seconds that each rung takes, as `cost.seconds` does; None unless compiled for a CPU."""
    settings = planned.settings
    if not settings.compiles or assemble.device(settings).type != "cpu":
        return None
    whole, warmup = cost.seconds(settings) - cost.COMPILE_SECONDS, assemble.program(settings).config.warmup_steps
    bounds = [warmup, *(rung.end for rung in planned.rungs)]
    fractions = [
        (end - start) / (settings.steps - warmup) * rung.settings / planned.rungs[0].settings
        for (start, end), rung in zip(itertools.pairwise(bounds), planned.rungs, strict=True)
    ]
    return tuple(whole * fraction + cost.COMPILE_SECONDS * (i == 0) for i, fraction in enumerate(fractions))
