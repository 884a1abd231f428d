"""A run as a function of its settings: train, evaluate, write the run folder, and emit events.

    train, resume -> _run:  start -> _train (reports, checkpoints) -> _finish (closing episodes, summary) -> Run

Nothing here prints, parses or handles signals. `fdqn.train` adds a progress display and Ctrl-C, the command line its
tables.
"""

import contextlib
import dataclasses
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fdqn import check, compile, envs, training, tree
from fdqn.experiment import assemble, events, history, memory, population, process, results, run_folder
from fdqn.experiment.events import OnEvent
from fdqn.experiment.settings import Settings, Sweep, check_device, is_read
from fdqn.training import evaluate, host
from fdqn.types import Env, HostEnv, HostVectorEnv, Network, Params

Stop = Callable[[], bool]
"""Return True to end a run early. Called between training iterations; once True, it must stay True."""


class AllFailedError(ValueError):
    """Error of a run whose seeds have all failed. Its files are complete."""


class Session(NamedTuple):
    """State of a run in progress."""

    path: Path
    settings: Settings
    program: training.Program
    start: history.Restored
    player: evaluate.Play | None
    """Compiled step of evaluation."""
    emit: OnEvent
    stop: Stop
    started: float
    """`time.perf_counter()` at the start of the call or the command."""
    before_write: Callable[[], None]


def train(
    settings: Settings,
    on_event: OnEvent = events.ignore,
    stop: Stop = bool,
    started: float | None = None,
    until: int | None = None,
    pinned: compile.ThreadPartition | None = None,
    before_write: Callable[[], None] = lambda: None,
) -> results.Run:
    """Train the seeds of `settings` in a new run folder.

    Args:
        settings: settings of the run. Its folder is `settings.out`, by default `runs/ENV-TIME` in the current folder.
        on_event: receives the events of `fdqn.experiment.events`. An exception that it raises ends the run.
        stop: ends the run early, with complete files, once it returns True.
        started: `time.perf_counter()` from which the duration of the run is measured; by default now.
        until: environment steps per seed at which the run ends, by default those of the settings, which always
            determine the lengths of schedules. A run that ends earlier is a rung of successive halving, and is not
            evaluated at its end. One that ends later equals a run that `resume` extends to these steps.
        pinned: partition of the seeds to keep, as in `run_folder.create`.
        before_write: called before the folder is created, and before rows, checkpoints or results are written. If it
            raises, the run ends there.

    Raises ValueError or TypeError for invalid settings, before a file is written; ValueError if all seeds
    failed before the end, or if the run was stopped before its first training iteration; FloatingPointError for a
    failed seed with `on_nan="stop"`.

    Sets up this process for training: denormal numbers count as 0 in this thread and in threads that it starts,
    CUDA's precision is that of the settings, and cuDNN is deterministic.
    """
    check.kind("settings", settings, Settings)
    started = time.perf_counter() if started is None else started
    # An environment may change the working directory.
    base = Path() if settings.out and os.path.isabs(settings.out) else Path.cwd()
    compile.prepare_cpu()
    run_folder.folder(settings, base)
    program, state = _prepare(settings, on_event)
    before_write()
    path = run_folder.create(settings, base, until, pinned)
    with run_folder.writing(path):
        start = history.Restored(state, None, 0, until or settings.steps, 0.0)
        with _unmarked():
            return _run(_session(path, settings, program, start, on_event, stop, started, before_write))


def resume(
    path: Path,
    steps: int | None = None,
    *,
    env: str | None = None,
    wrappers: Sequence[str] = (),
    fallback: bool = False,
    on_nan: Literal["freeze", "stop"] | None = None,
    evaluate_episodes: int | None = None,
    evaluate_steps: int | None = None,
    device: str | None = None,
    on_event: OnEvent = events.ignore,
    stop: Stop = bool,
    started: float | None = None,
    before_write: Callable[[], None] = lambda: None,
) -> results.Run:
    """Continue the run of a folder from its newest checkpoint, as if it had not been interrupted.

    Args:
        path: run folder. If the run is finished, it is only read. If only its evaluation after training was
            interrupted, it is evaluated again.
        steps: planned environment steps per seed, at least as many as before; schedules keep their lengths.
        env: the environment trained on, required again if it is code of your own.
        wrappers: its wrappers, required again if they are code of your own.
        fallback: if the newest checkpoint is damaged, continue from the newest one that is not.
        on_nan, evaluate_episodes, evaluate_steps, device: replace the settings of that name from now on.
        on_event, stop, started, before_write: as for `train`.

    Raises ValueError for a folder that is no run, CheckpointError if another process writes in it or no checkpoint can
    be read, and the errors of `train`.
    """
    check.kind("fallback", fallback, bool)
    if device is not None:
        check_device(device)
    started = time.perf_counter() if started is None else started
    compile.prepare_cpu()
    _, planned = _plan(path, env, wrappers, steps)
    done, wanted = results.finished(path), steps or planned
    changed: dict[str, Any]
    if done >= wanted and results.lacks_evaluation(path):
        changed = dict(device=device, evaluate_episodes=evaluate_episodes, evaluate_steps=evaluate_steps)
        return _evaluate_again(path, env, wrappers, changed, on_event, stop, started, before_write)
    if done >= wanted:
        on_event(events.Notice(f"{path} is finished after {done:,} steps; to continue, pass a larger --steps"))
        return results.read(path, env, wrappers)
    with run_folder.writing(path):
        settings, planned = _plan(path, env, wrappers, steps)  # again, now that no other process can change it
        changed = dict(on_nan=on_nan, device=device)
        changed |= dict(evaluate_episodes=evaluate_episodes, evaluate_steps=evaluate_steps)
        settings = dataclasses.replace(settings, **{name: x for name, x in changed.items() if x is not None})
        program, state = _prepare(settings, on_event)
        start = history.restored(path, settings, program, state, fallback, before_write)
        start = start._replace(steps=max(wanted, planned))
        run_folder.replan(path, start.steps, settings)
        for line in _notes(path, settings, program, start):
            on_event(events.Notice(line))
        with _unmarked():
            return _run(_session(path, settings, program, start, on_event, stop, started, before_write))


def train_or_resume(
    path: Path,
    settings: Settings,
    changes: Mapping[str, Any],
    on_event: OnEvent = events.ignore,
    stop: Stop = bool,
    started: float | None = None,
    pinned: compile.ThreadPartition | None = None,
    before_write: Callable[[], None] = lambda: None,
) -> results.Run:
    """Continue the run of a folder, or train it if a process was killed before it had written `config.json`.

    Args:
        path: folder of the run, that of `settings`.
        settings: settings of a new run.
        changes: arguments of `resume`; a new run takes those of `changed`.
        on_event, stop, started, pinned, before_write: as for `train`.

    Raises the errors of `train` and `resume`.
    """
    if (path / "config.json").exists():
        return resume(path, on_event=on_event, stop=stop, started=started, before_write=before_write, **changes)
    run_folder.remove_incomplete(path)
    return train(changed(settings, changes), on_event, stop, started, None, pinned, before_write)


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return settings with those arguments of `resume` that replace settings of their name. None replaces nothing."""
    names = ("on_nan", "device", "evaluate_episodes", "evaluate_steps")
    return dataclasses.replace(settings, **{name: changes[name] for name in names if changes.get(name) is not None})


def _evaluate_again(
    path: Path,
    env: str | None,
    wrappers: Sequence[str],
    changed: dict[str, Any],
    on_event: OnEvent,
    stop: Stop,
    started: float,
    before_write: Callable[[], None],
) -> results.Run:
    """Evaluate a run whose evaluation after training is missing, and add the returns to its summary."""
    with run_folder.writing(path):
        settings, planned = _plan(path, env, wrappers, None)
        settings = dataclasses.replace(settings, **{name: x for name, x in changed.items() if x is not None})
        program, state = _prepare(settings, on_event)
        before_write()
        run_folder.replan(path, planned, settings)
        start = history.Restored(state, None, results.finished(path), planned, 0.0)
        with _unmarked():
            session = _session(path, settings, program, start, on_event, stop, started, before_write)
            with process.saying_warnings(lambda text: session.emit(events.Notice(text))):
                return _add_evaluation(session)


def _add_evaluation(session: Session) -> results.Run:
    path, settings, start, summary = session.path, session.settings, session.start, results.read(session.path).summary
    session.emit(events.Started(path, settings, start.step, start.steps))
    session.emit(events.Notice("training is complete; repeating the evaluation that was interrupted"))
    params = tree.to(results.read_params(path, settings.env, settings.wrappers), assemble.device(settings))
    trained = _Trained(params, start.state.key, start.step)
    gymnasium = None if "gymnasium_return" in summary else _gymnasium_episodes(session, trained)
    final = None if results.is_evaluated(summary) else _final_episodes(session, trained)
    seconds = time.perf_counter() - session.started
    session.before_write()
    session.emit(events.Finished(path, run_folder.add_evaluation(path, settings, final, gymnasium, seconds)))
    if session.stop():
        session.emit(events.Stopped(path, start.step, start.steps))
    return results.read(path, settings.env, settings.wrappers)


def _plan(path: Path, env: str | None, wrappers: Sequence[str], steps: int | None) -> tuple[Settings, int]:
    """Read the settings and planned steps of a run. Raises ValueError unless `env`, `wrappers` and `steps`, if given,
    fit.
    """
    if isinstance(wrappers, str):
        raise TypeError(f"wrappers: expected a list of strings, got {wrappers!r}")
    if env is not None:
        check.kind("env", env, str)
    if steps is not None and type(steps) is not int:
        raise TypeError(f"steps: expected an integer, got {steps!r}")
    settings, planned = results.plan(path, env, wrappers)
    if env is not None and env != settings.env:
        raise ValueError(f"env: expected {settings.env!r}, the environment trained on, got {env!r}")
    if wrappers and tuple(wrappers) != settings.wrappers:
        trained = " ".join(settings.wrappers) or "none"
        raise ValueError(f"wrappers: expected those trained with, {trained}, got {' '.join(wrappers)}")
    if steps is not None and steps > 2**53:
        raise ValueError(f"steps: expected at most 2**53, got a number of {len(str(steps))} digits")
    if steps is not None and isinstance(settings, Sweep) and settings.rung_of:
        raise ValueError(f"steps: expected none with halving, got {steps:,}; train its best setting for more steps")
    if steps is not None and (path.absolute().parent / "sweep.json").exists():
        raise ValueError(
            "steps: expected none for a program of a sweep, whose settings would no longer be comparable, got "
            f"{steps:,}; omit it"
        )
    if steps is not None and steps < planned:
        raise ValueError(f"steps: expected at least the planned {planned:,}, got {steps:,}")
    return settings, planned


def _prepare(settings: Settings, emit: OnEvent) -> tuple[training.Program, training.TrainState]:
    """Assemble the program and its initial state after checking the available memory."""
    program, device = assemble.program(settings), assemble.device(settings)
    compile.prepare_cuda(tf32=settings.tf32 and device.type == "cuda", index=device.index)
    size = memory.check_memory(program, settings.learners, device)
    state = training.init(program, assemble.hyper(settings, device), assemble.keys(settings).to(device))
    replay_bytes = tree.nbytes(state.buffer) // settings.learners
    emit(events.Prepared(settings, str(device), size, program.config.capacity, replay_bytes))
    return program, state


def _notes(path: Path, settings: Settings, program: training.Program, start: history.Restored) -> Iterator[str]:
    """Describe where a resumed run continues and how it may differ from an uninterrupted one."""
    yield from (f"skipped damaged checkpoint {damaged} and renamed it" for damaged in start.skipped)
    yield from (
        f"results may differ from an uninterrupted run: {line}" for line in run_folder.differences(path, settings)
    )
    yield (
        f"resuming at step {start.step:,} of {start.steps:,}"
        if start.step
        else "no checkpoint found; restarting at step 0"
    )
    if start.step and envs.on_host(assemble.env(settings)):
        yield f"results differ from an uninterrupted run: {settings.env} starts new episodes"
    if start.step and not settings.save_replay:
        refill = f"learning continues after it is refilled with {settings.learning_starts:,} steps per seed"
        yield f"results differ from an uninterrupted run: the replay buffer was not saved; {refill}"
    shortened = is_read(settings, "capacity") and program.config.capacity < settings.capacity
    if start.steps > settings.steps and shortened:
        rows = f"{program.config.capacity:,} rows, sized for the original {settings.steps:,} steps"
        yield f"the capacity of the replay buffer stays at {rows}"


def _session(
    path: Path,
    settings: Settings,
    program: training.Program,
    start: history.Restored,
    emit: OnEvent,
    stop: Stop,
    started: float,
    before_write: Callable[[], None],
) -> Session:
    env = assemble.env(settings)
    player = compiled_player(settings, env, program.network, settings.evaluate_epsilon)
    return Session(path, settings, program, start, player, _marked(emit), stop, started, before_write)


def compiled_player(settings: Settings, env: Env | HostEnv, network: Network, epsilon: float) -> evaluate.Play | None:
    """Return the compiled step of long evaluation episodes; None if not compiled or for host environments."""
    if envs.on_host(env) or not settings.compiles:
        return None
    return compile.player(env, network, epsilon, settings.engine)


def _run(session: Session) -> results.Run:
    """Call `_run_to_end`, and emit warnings of fdqn as notices."""
    with process.saying_warnings(lambda text: session.emit(events.Notice(text))):
        return _run_to_end(session)


def _run_to_end(session: Session) -> results.Run:
    """Train to the end or until `session.stop`, evaluate and write the results."""
    path, settings, start = session.path, session.settings, session.start
    session.emit(events.Started(path, settings, start.step, start.steps))
    report = _train(session)
    stopped = events.Stopped(path, report.step, start.steps)
    if session.stop() and report.step == start.step:
        session.emit(stopped)
        raise ValueError(f"stop: expected at least one training iteration, got a stop before it; {_complete(stopped)}")
    summary = _finish(session, report)
    session.emit(events.Finished(path, summary))
    if session.stop():
        session.emit(stopped)
    elif report.step < start.steps:
        where = f"{report.step:,} of {start.steps:,} steps"
        raise AllFailedError(f"stopped at {where}, because all seeds have failed; the files in {path} are complete")
    return results.read(path, settings.env, settings.wrappers)


def _complete(stopped: events.Stopped) -> str:
    return f"the files in {stopped.path} are complete; continue with: fdqn resume {shlex.quote(str(stopped.path))}"


# Training


def _train(session: Session) -> training.Report:
    """Train until the last step, or until the run is stopped, and return the last report."""
    settings, start = session.settings, session.start
    failed = {i for i, cycle in enumerate(start.state.metrics.failed.tolist()) if cycle >= 0}
    reported: set[int] = set()
    with _opened(session, failed) as (vector, state):
        session.emit(events.Training(settings.compiles))
        reports = training.run(
            session.program,
            state,
            start.steps,
            _functions(session, vector),
            settings.report_every,
            evaluate=partial(_evaluate, session) if settings.evaluate_every else None,
            evaluate_every=settings.evaluate_every,
            stop=lambda: session.stop() or (vector is not None and len(failed | {*vector.broken}) == settings.learners),
            since=start.since,
            at_once=None if vector is None else 1,
            between=_between(session, failed, reported),
        )

        def checkpointed(place: Path, step: int) -> None:
            session.emit(events.Checkpointed(place, step))

        for report in history.record(session.path, settings, reports, start, checkpointed, session.before_write):
            for event in _report_events(session, report, vector, reported):
                session.emit(event)
            failed |= {assemble.seeds(settings).index(seed) for seed in reported}
    return report


def _between(
    session: Session, failed: set[int], reported: set[int]
) -> Callable[[training.TrainState, int], training.TrainState] | None:
    """Return the steps of population based training; None for other runs.

    Learners that continue with a copy after a failure are removed from both sets.
    """
    settings = session.settings
    if not isinstance(settings, Sweep) or not settings.pbt_every:
        return None
    evolved = population.evolution(session.path, settings, session.program)

    def step(state: training.TrainState, at: int) -> training.TrainState:
        state = evolved(state, at)
        now = {i for i, cycle in enumerate(state.metrics.failed.tolist()) if cycle >= 0}
        failed.intersection_update(now)
        reported.intersection_update(now)
        return state

    return step


@contextlib.contextmanager
def _opened(session: Session, failed: set[int]) -> Iterator[tuple[HostVectorEnv | None, training.TrainState]]:
    """Open the host environments of the run and start their episodes; without any, yield None and the unchanged state.

    Raises ValueError if the environments of a resumed seed, other than those in `failed`, do not start.
    """
    env, settings, start = assemble.env(session.settings), session.settings, session.start
    if not envs.on_host(env):
        yield None, start.state
        return
    if len(failed) == settings.learners:
        raise ValueError(f"run: expected a seed that has not failed, got {session.path}, in which all have")
    with contextlib.closing(envs.open_host(env, settings.learners, settings.num_envs)) as vector:
        state = host.start(session.program, vector, start.state)
        if start.step and (unable := vector.broken.keys() - failed):
            raise ValueError(
                f"env: expected {settings.env} to start for all remaining seeds, got an error for "
                f"{assemble.name(settings, min(unable))}: {vector.broken[min(unable)]}; fix the environment and resume "
                "again"
            )
        yield vector, state


def _functions(session: Session, vector: HostVectorEnv | None) -> training.Functions:
    """Return the step functions of the run. The first call of compiled ones is reported."""
    pinned = run_folder.pinned_partition(session.path, session.settings)
    functions = run_folder.functions(session.program, session.settings, vector, pinned)
    if not session.settings.compiles:
        return functions
    names = ("noise", "collect", "cycle")
    watched = {name: _watched(name, getattr(functions, name), session.stop, session.emit) for name in names}
    return functions._replace(**watched)


def _watched(name: str, f: Callable[..., Any], stop: Stop, emit: OnEvent) -> Callable[..., Any]:
    """Wrap a step function: emit `Compiled` after its first call, or raise `Stopped` instead if the run is to stop."""
    called = False

    def call(*given: Any) -> Any:
        nonlocal called
        if called:
            return f(*given)
        if stop():
            raise training.Stopped
        called, before = True, time.perf_counter()
        result = f(*given)
        emit(events.Compiled(name, time.perf_counter() - before))
        return result

    return call


def _report_events(
    session: Session, report: training.Report, vector: HostVectorEnv | None, reported: set[int]
) -> Iterator[events.Event]:
    """Yield the events of a report: failed seeds that are not in `reported`, to which they are added, then metrics."""
    settings = session.settings
    for seed, (step, cause) in history.failed_seeds(settings, report).items():
        if seed not in reported:
            reported.add(seed)
            lane = assemble.seeds(settings).index(seed)
            error = None if vector is None else vector.broken.get(lane)
            known = error and cause == "environment" and step >= session.start.step
            reason = history.why(cause) + (f", {error}" if known else "")
            yield events.SeedFailed(seed, step, cause, reason, assemble.name(settings, lane))
    if report.evaluation is not None:
        yield events.Evaluated(report.step, settings.env, report.evaluation.copy())
    yield _reported(session, report)


def _reported(session: Session, report: training.Report) -> events.Reported:
    rate = report.learning_updates * session.settings.learners
    return events.Reported(
        step=report.step,
        steps=session.start.steps,
        seconds=session.start.seconds + time.perf_counter() - session.started,
        updates=report.updates,
        episodes=report.episodes,
        returns=report.returns,
        lengths=report.lengths,
        loss=report.loss,
        q=report.q,
        grad_norm=report.grad_norm,
        epsilon=report.epsilon,
        learning_rate=history.learning_rates(session.settings, report),
        failed=report.failed >= 0,
        updates_per_second=rate / report.learning_seconds if report.learning_seconds else math.nan,
        planned=report.planned,
    )


# Evaluation and results


def _evaluate(session: Session, state: training.TrainState) -> NDArray[np.float64]:
    """Evaluate during training. A stop does not interrupt it, because a resumed run would not repeat it."""
    return _play(session, assemble.env(session.settings), state.learner.params, state.key).returns


def _finish(session: Session, report: training.Report) -> dict[str, Any]:
    """Evaluate, write parameters, learning curve and summary, and return the summary."""
    path, settings = session.path, session.settings
    session.before_write()
    run_folder.save_params(path, settings, report.state.learner.params)
    if session.start.steps < settings.steps:  # a rung of successive halving other than the last
        gymnasium, final = None, evaluate.not_played(settings.learners, settings.evaluate_episodes)
    else:
        trained = _Trained(report.state.learner.params, report.state.key, report.step)
        gymnasium = _gymnasium_episodes(session, trained)
        final = _final_episodes(session, trained)
    session.before_write()
    return run_folder.finish(path, settings, report, session.started, final, gymnasium, session.start.seconds)


class _Trained(NamedTuple):
    """Parameters and keys of the seeds that are evaluated after training, and their environment steps."""

    params: Params
    keys: Tensor
    step: int


def _gymnasium_episodes(session: Session, trained: _Trained) -> evaluate.Evaluation | None:
    """Evaluate in Gymnasium's version of the environment, if there is one and the run was not stopped."""
    settings = session.settings
    if (name := results.gymnasium_name(settings)) is None or session.stop():
        return None
    session.emit(events.Notice(f"evaluating the trained seeds in {name} of Gymnasium"))
    try:
        return _evaluate_with_progress(session, f"gym:{name}", envs.find(f"gym:{name}"), trained)
    except KeyboardInterrupt:
        session.emit(events.Notice("evaluation interrupted"))
        return None


def _final_episodes(session: Session, trained: _Trained) -> evaluate.Evaluation:
    """Evaluate in the environment trained on. A stopped run skips host environments, which may take minutes."""
    settings, path = session.settings, session.path
    on_host = envs.on_host(env := assemble.env(settings))
    if not (on_host and session.stop()):
        if on_host:
            limit, count = results.step_limit(path, settings, env.spec), settings.evaluate_episodes
            text = f"evaluating {count} greedy episodes per seed in {settings.env}, at most {limit:,} steps each"
            session.emit(events.Notice(text))
        with contextlib.suppress(KeyboardInterrupt):
            return _evaluate_with_progress(session, settings.env, env, trained)
    session.emit(
        events.Notice(
            f"evaluation skipped; run it with: fdqn eval {shlex.quote(str(path))}"
            f"{' --setting K' * isinstance(settings, Sweep)}"
        )
    )
    return evaluate.not_played(settings.learners, settings.evaluate_episodes)


def _evaluate_with_progress(session: Session, name: str, env: Env | HostEnv, trained: _Trained) -> evaluate.Evaluation:
    """Evaluate the trained seeds with progress events. A stop during the evaluation raises KeyboardInterrupt."""
    settings, stopped = session.settings, session.stop()
    limit = results.step_limit(session.path, settings, env.spec)

    def progress(ended: int, step: int) -> None:
        session.emit(events.EvaluationProgress(ended, step))
        if session.stop() and not stopped:
            raise KeyboardInterrupt

    session.emit(events.EvaluationStarted(name, settings.learners * settings.evaluate_episodes, limit))
    try:
        played = _play(session, env, trained.params, trained.keys, progress)
    finally:
        session.emit(events.EvaluationEnded())
    session.emit(events.Evaluated(trained.step, name, played.returns.copy()))
    return played


def _play(
    session: Session,
    env: Env | HostEnv,
    params: Params,
    keys: Tensor,
    progress: evaluate.Progress | None = None,
) -> evaluate.Evaluation:
    """Play greedy episodes. If the environment fails, the returns are NaN, and the parameters are still saved."""
    settings, network = session.settings, session.program.network
    try:
        played = evaluate.greedy(
            env,
            network,
            params,
            keys,
            settings.evaluate_episodes,
            epsilon=settings.evaluate_epsilon,
            limit=results.step_limit(session.path, settings, env.spec),
            fast=session.player,
            progress=progress,
        )
    except ValueError as error:
        session.emit(events.Notice(f"evaluation failed: {error}"))
        return evaluate.not_played(settings.learners, settings.evaluate_episodes)
    for i, message in played.failures.items():
        session.emit(events.Notice(f"{assemble.name(settings, i)} did not finish its evaluation: {message}"))
    return played


# Exceptions of on_event


class _ReceiverError(BaseException):
    """Wrap an exception of `on_event`, so that handlers of environment errors do not catch it."""


def _marked(on_event: OnEvent) -> OnEvent:
    """Wrap `on_event` so that its exceptions can be distinguished from errors of the run; `_unmarked` unwraps them."""

    def emit(event: events.Event) -> None:
        try:
            on_event(event)
        except Exception as error:
            raise _ReceiverError(error) from None

    return emit


@contextlib.contextmanager
def _unmarked() -> Iterator[None]:
    """Raise the original exception of `on_event`."""
    error: Exception | None = None
    try:
        yield
    except _ReceiverError as marked:
        error = marked.args[0]
    if error is not None:
        raise error
