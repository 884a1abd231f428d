"""Train and continue sweeps.

A setting is one combination of the values of a sweep; a learner is one seed of one setting. The folder of a sweep has
`settings.csv` with a row for each learner. If one program can train all settings, the folder is a run. Otherwise each
program is a run in a folder of its own, `0`, `1`, ..., and `sweep.json` lists them. `sweep_plan` chooses the programs,
`sweep_results` reads the folder.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

from fdqn.experiment import (
    assemble,
    cost,
    events,
    halving,
    halving_plan,
    memory,
    run_folder,
    session,
    shard_plan,
    shards,
    sweep_plan,
    sweep_results,
)
from fdqn.experiment.events import OnEvent
from fdqn.experiment.sweep_plan import Plan


def train(
    plan: Plan, on_event: OnEvent = events.ignore, stop: session.Stop = bool, started: float | None = None
) -> Path:
    """Train the programs of a plan one after the other, and return the folder of the sweep.

    Raises the errors of `session.train`. A sweep that was stopped is continued by `resume`.
    """
    shared = plan.programs[0].settings
    if len(plan.programs) == 1:
        return session.train(shared, on_event, stop, started).path
    state_bytes(plan)  # before the first one starts
    whole = tuple(dict(zip(plan.names, row, strict=True)) for row in plan.values)
    path = run_folder.create_sweep(dataclasses.replace(shared, varied=whole))
    sweep_plan.write(plan, path)
    return _continue(path, on_event, stop, started, new=True)


def resume(
    path: Path,
    on_event: OnEvent = events.ignore,
    stop: session.Stop = bool,
    started: float | None = None,
    **changes: Any,
) -> Path:
    """Continue a sweep that was stopped, and return its folder.

    Args:
        path: folder of the sweep.
        on_event, stop, started: as for `session.train`.
        **changes: arguments of `session.resume`, such as `env` and `on_nan`; `steps` only for a sweep of one program.

    Raises ValueError for a folder that is not a sweep, and the errors of `session.resume`.
    """
    if not sweep_results.is_sweep(path):
        raise ValueError(f"sweep: expected the folder of a sweep, got {path}")
    if shard_plan.is_sharded(path):
        return shards.train(path, on_event, stop, started, **changes)
    if (path / halving_plan.FILE).exists():
        return halving.resume(path, on_event, stop, started, **changes)
    if (path / "sweep.json").exists():
        return _continue(path, on_event, stop, started, **changes)
    session.resume(path, on_event=on_event, stop=stop, started=started, **changes)
    return path


def _continue(
    path: Path, on_event: OnEvent, stop: session.Stop, started: float | None, new: bool = False, **changes: Any
) -> Path:
    """Train or resume every program that has not finished, also after one in which all seeds have failed."""
    programs = sweep_plan.read(path).programs
    lengths, failed = [program.settings.steps for program in programs], 0
    if changes.get("steps") is not None:
        raise ValueError("steps: expected none for a sweep of several programs, got a number; omit it")
    if not new:
        sweep_plan.check_code(path, programs[0].settings, changes.get("env"), changes.get("wrappers", ()))
    for i, program in enumerate(programs):
        if sweep_results.is_over(path, i, program.settings):
            continue
        on_event(events.Notice(f"program {i + 1} of {len(programs)}: {sweep_plan.described(program.settings)}"))
        emit = partial(_as_sweep, on_event, path, program, sum(lengths[:i]), sum(lengths))
        try:
            session.train_or_resume(path / str(i), program.settings, changes, emit, stop, started)
        except session.AllFailedError as error:
            failed += 1
            on_event(events.Notice(str(error)))
        if stop():
            return path
        started = time.perf_counter()
    if failed == len(programs):
        raise session.AllFailedError(
            f"stopped, because all seeds of all settings have failed; the files in {path} are complete"
        )
    return path


def _as_sweep(
    on_event: OnEvent, path: Path, program: sweep_plan.Program, before: int, steps: int, event: events.Event
) -> None:
    on_event(sweep_plan.of_sweep(event, path, program, before, steps))


def state_bytes(plan: Plan) -> tuple[int, ...]:
    """Return the bytes that each program needs. Raises ValueError if clearly less memory is available."""
    return tuple(
        memory.check_memory(assemble.program(one.settings), one.settings.learners, assemble.device(one.settings))
        for one in plan.programs
    )


def seconds(plan: Plan) -> tuple[float, ...] | None:
    """Estimate the seconds that each program takes, as `cost.seconds` does; None unless compiled for a CPU."""
    shared = plan.programs[0].settings
    if not shared.compiles or assemble.device(shared).type != "cpu":
        return None
    return tuple(cost.seconds(program.settings) for program in plan.programs)
