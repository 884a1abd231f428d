"""A run as a function of its settings: train, evaluate, write the run folder, and emit events on the way.

    train, resume -> _run:  start -> _train (reports, checkpoints) -> _finish (closing episodes, summary) -> Run

Nothing here prints, parses or handles signals. `fdqn.train` adds a progress display and Ctrl-C, the command line its
tables.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fdqn import check, compile, envs, training
from fdqn.experiment import assemble, events, history, memory, results, run_folder
from fdqn.experiment.events import OnEvent
from fdqn.experiment.settings import Settings
from fdqn.training import evaluate, host
from fdqn.types import Env, HostEnv, HostVectorEnv, Network, Params

Stop = Callable[[], bool]
"""Return True once a run is to end early. Called between training iterations; once True, it stays True."""


class Session(NamedTuple):
    """One run under way."""

    path: Path
    settings: Settings
    program: training.Program
    start: history.Restored
    player: evaluate.Play | None
    """Compiled step of evaluation."""
    emit: OnEvent
    stop: Stop
    began: float
    """`time.perf_counter()` at the start of the call or the command."""


def train(
    settings: Settings, on_event: OnEvent = events.ignore, stop: Stop = bool, began: float | None = None
) -> results.Run:
    """Train the seeds of `settings` in a new run folder.

    Args:
        settings: all of the run. Its folder is `settings.out`, by default `runs/ENV-TIME`, in the current folder.
        on_event: receives the events of `fdqn.experiment.events`. An exception that it raises ends the run.
        stop: ends the run early, with complete files, once it returns True.
        began: `time.perf_counter()` from which the run counts its seconds, by default now.

    Raises ValueError or TypeError for settings that cannot work, before a file is written; ValueError if all seeds
    failed before the end, or if the run was stopped before its first training iteration; FloatingPointError for a
    failed seed with `on_nan="stop"`.

    Sets up this process for training: denormal numbers count as 0 in this thread and in threads that it starts, and
    CUDA's precision is that of the settings.
    """
    check.kind("settings", settings, Settings)
    began = time.perf_counter() if began is None else began
    base = Path() if settings.out and os.path.isabs(settings.out) else Path.cwd()  # an environment may change it
    compile.prepare_cpu()
    run_folder.folder(settings, base)
    program, state = _prepare(settings, on_event)
    path = run_folder.create(settings, base)
    with run_folder.writing(path):
        start = history.Restored(state, None, 0, settings.steps, 0.0)
        with _unmarked():
            return _run(_session(path, settings, program, start, on_event, stop, began))


def resume(
    path: Path,
    steps: int | None = None,
    *,
    env: str | None = None,
    fallback: bool = False,
    on_nan: Literal["freeze", "stop"] | None = None,
    evaluate_episodes: int | None = None,
    evaluate_steps: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    on_event: OnEvent = events.ignore,
    stop: Stop = bool,
    began: float | None = None,
) -> results.Run:
    """Continue the run of a folder from its newest checkpoint, as if it had not been interrupted.

    Args:
        path: run folder. If the run is finished, it is only read.
        steps: planned environment steps per seed, at least as many as before; schedules keep their lengths.
        env: the environment trained on, required again if it is code of your own.
        fallback: if the newest checkpoint is damaged, continue from the newest one that is not.
        on_nan, evaluate_episodes, evaluate_steps, device: replace the settings of that name from now on.
        on_event, stop, began: as for `train`.

    Raises ValueError for a folder that is no run, CheckpointError if another process writes in it or no checkpoint can
    be read, and what `train` raises.
    """
    began = time.perf_counter() if began is None else began
    compile.prepare_cpu()
    _, planned = _plan(path, env, steps)
    done, wanted = results.finished(path), steps or planned
    if done >= wanted:
        on_event(events.Notice(f"{path} is finished: {done:,} steps; --steps with more goes on"))
        return results.read(path, env)
    with run_folder.writing(path):
        settings, planned = _plan(path, env, steps)  # again, now that no other process can change it
        changed: dict[str, Any] = dict(on_nan=on_nan, device=device)
        changed |= dict(evaluate_episodes=evaluate_episodes, evaluate_steps=evaluate_steps)
        settings = dataclasses.replace(settings, **{name: x for name, x in changed.items() if x is not None})
        program, state = _prepare(settings, on_event)
        start = history.restored(path, settings, program, state, fallback)._replace(steps=max(wanted, planned))
        run_folder.replan(path, start.steps, settings)
        for line in _notes(path, settings, program, start):
            on_event(events.Notice(line))
        with _unmarked():
            return _run(_session(path, settings, program, start, on_event, stop, began))


def _plan(path: Path, env: str | None, steps: int | None) -> tuple[Settings, int]:
    """Read the settings and the planned steps of a run that is to take `steps`."""
    settings, planned = results.plan(path, env)
    if steps is not None and steps > 2**53:
        raise ValueError(f"steps: expected at most 2**53, got a number of {len(str(steps))} digits")
    if steps is not None and steps < planned:
        raise ValueError(f"steps: expected at least the {planned:,} that were planned, got {steps:,}")
    return settings, planned


def _prepare(settings: Settings, emit: OnEvent) -> tuple[training.Program, training.TrainState]:
    """Build the program and its initial state, after a check that the memory suffices."""
    program, device = assemble.program(settings), assemble.device(settings)
    compile.prepare_cuda(tf32=settings.tf32 and device.type == "cuda")
    size = memory.check_memory(program, settings.seeds, device)
    hyper = assemble.hyper(settings, device)
    replay_bytes = memory.replay_bytes(program, 1)
    emit(events.Prepared(settings, str(device), size, program.config.capacity, replay_bytes))
    return program, training.init(program, hyper, assemble.keys(settings).to(device))


def _notes(path: Path, settings: Settings, program: training.Program, start: history.Restored) -> Iterator[str]:
    """Say where a resumed run continues and in what it will differ from an uninterrupted one."""
    yield from (f"passed over and set aside: {damaged}" for damaged in start.passed)
    yield from (f"not bit for bit: {line}" for line in run_folder.differences(path, settings))
    yield f"going on at step {start.step:,} of {start.steps:,}" if start.step else "no checkpoint: starting over"
    if start.step and envs.on_host(envs.find(settings.env)):
        yield f"not bit for bit: {settings.env} starts new episodes"
    if start.step and not settings.save_replay:
        filled = f"it is filled anew with {settings.learning_starts:,} steps a seed before learning goes on"
        yield f"not bit for bit: the replay was not saved; {filled}"
    if start.steps > settings.steps and program.config.capacity < settings.capacity:
        rows = f"{program.config.capacity:,} rows, as many as the first {settings.steps:,} steps needed"
        yield f"the replay keeps its {rows}"


def _session(
    path: Path,
    settings: Settings,
    program: training.Program,
    start: history.Restored,
    emit: OnEvent,
    stop: Stop,
    began: float,
) -> Session:
    env = envs.find(settings.env)
    player = compiled_player(settings, env, program.network, settings.evaluate_epsilon)
    return Session(path, settings, program, start, player, _marked(emit), stop, began)


def compiled_player(settings: Settings, env: Env | HostEnv, network: Network, epsilon: float) -> evaluate.Play | None:
    """Return the compiled step of long evaluation episodes; None without compiling and for host environments."""
    if envs.on_host(env) or not settings.compiles:
        return None
    return compile.player(env, network, epsilon, settings.engine)


def _run(session: Session) -> results.Run:
    """Train, play the closing episodes and write the results, until the end or until `session.stop`."""
    path, settings, start = session.path, session.settings, session.start
    session.emit(events.Started(path, settings, start.step, start.steps))
    report = _train(session)
    stopped = events.Stopped(path, report.step, start.steps)
    if session.stop() and report.step == start.step:
        session.emit(stopped)
        raise ValueError(f"stop: expected a training iteration first, got a stop before; {_complete(stopped)}")
    summary = _finish(session, report)
    session.emit(events.Finished(path, summary))
    if session.stop():
        session.emit(stopped)
    elif report.step < start.steps:
        where = f"{report.step:,} of {start.steps:,} steps"
        raise ValueError(f"stopped at {where}, as all seeds have failed; the files in {path} are complete")
    return results.read(path, settings.env)


def _complete(stopped: events.Stopped) -> str:
    return f"the files in {stopped.path} are complete; continue with: fdqn resume {stopped.path}"


# Training


def _train(session: Session) -> training.Report:
    """Train until the last step, or until the run is stopped, and return the last report."""
    settings, start = session.settings, session.start
    failed = {i for i, cycle in enumerate(start.state.metrics.failed.tolist()) if cycle >= 0}
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
            stop=lambda: session.stop() or (vector is not None and len(failed | {*vector.broken}) == settings.seeds),
            since=start.since,
            at_once=None if vector is None else 1,
        )
        told: set[int] = set()

        def checkpointed(place: Path, step: int) -> None:
            session.emit(events.Checkpointed(place, step))

        for report in history.record(session.path, settings, reports, start, checkpointed):
            for event in _report_events(session, report, vector, told):
                session.emit(event)
            failed |= {seed - settings.seed for seed in told}
    return report


@contextlib.contextmanager
def _opened(session: Session, failed: set[int]) -> Iterator[tuple[HostVectorEnv | None, training.TrainState]]:
    """Open the host environments of the run and start their episodes; without any, give None and the state as it is.

    Raises ValueError if a resumed seed, not one of the lanes in `failed`, has no environment that starts.
    """
    env, settings, start = envs.find(session.settings.env), session.settings, session.start
    if not envs.on_host(env):
        yield None, start.state
        return
    if len(failed) == settings.seeds:
        raise ValueError(f"run: expected a seed that can go on, got {session.path}, in which all have failed")
    with contextlib.closing(envs.open_host(env, settings.seeds, settings.num_envs)) as vector:
        state = host.start(session.program, vector, start.state)
        if start.step and (unable := vector.broken.keys() - failed):
            raise ValueError(
                f"env: expected {settings.env} to begin for all seeds that go on, got none for seed "
                f"{settings.seed + min(unable)}: {vector.broken[min(unable)]}; resume again when it does"
            )
        yield vector, state


def _functions(session: Session, vector: HostVectorEnv | None) -> training.Functions:
    """Return the step functions of the run. Those that are compiled when they are first called are watched."""
    functions = run_folder.functions(session.program, session.settings, vector)
    if not session.settings.compiles:
        return functions
    names = ("noise", "collect", "cycle")
    watched = {name: _watched(name, getattr(functions, name), session.stop, session.emit) for name in names}
    return functions._replace(**watched)


def _watched(name: str, f: Callable[..., Any], stop: Stop, emit: OnEvent) -> Callable[..., Any]:
    """Wrap a step function: a run that is to stop ends before the first call, and `Compiled` is emitted after it."""
    called = False

    def call(*given: Any) -> Any:
        nonlocal called
        if called:
            return f(*given)
        if stop():
            raise training.Stopped
        called, began = True, time.perf_counter()
        result = f(*given)
        emit(events.Compiled(name, time.perf_counter() - began))
        return result

    return call


def _report_events(
    session: Session, report: training.Report, vector: HostVectorEnv | None, told: set[int]
) -> Iterator[events.Event]:
    """Turn a report into events: seeds that failed and are not in `told`, to which they are added, then the numbers."""
    settings = session.settings
    for seed, (step, cause) in history.failed_seeds(settings, report).items():
        if seed not in told:
            told.add(seed)
            error = None if vector is None else vector.broken.get(seed - settings.seed)
            known = error and cause == "environment" and step >= session.start.step
            yield events.SeedFailed(seed, step, cause, history.why(cause) + (f", {error}" if known else ""))
    if report.evaluation is not None:
        yield events.Evaluated(report.step, settings.env, report.evaluation.copy())
    yield _reported(session, report)


def _reported(session: Session, report: training.Report) -> events.Reported:
    rate = report.learning_updates * session.settings.seeds
    return events.Reported(
        step=report.step,
        steps=session.start.steps,
        seconds=session.start.seconds + time.perf_counter() - session.began,
        updates=report.updates,
        episodes=report.episodes,
        returns=report.returns,
        loss=report.loss,
        q=report.q,
        grad_norm=report.grad_norm,
        epsilon=report.epsilon,
        failed=report.failed >= 0,
        updates_per_second=rate / report.learning_seconds if report.learning_seconds else math.nan,
    )


# Evaluation and results


def _evaluate(session: Session, state: training.TrainState) -> NDArray[np.float64]:
    """Play an evaluation during training, to its end also if the run is to stop: a resumed run would not repeat it."""
    return _play(session, envs.find(session.settings.env), state.learner.params, state.key).returns


def _finish(session: Session, report: training.Report) -> dict[str, Any]:
    """Play the closing episodes, write parameters, learning curve and summary, and return the summary."""
    path, settings = session.path, session.settings
    run_folder.save_params(path, settings, report.state.learner.params)
    gymnasium = _gymnasium_episodes(session, report)
    final = _final_episodes(session, report)
    return run_folder.finish(path, settings, report, session.began, final, gymnasium, session.start.seconds)


def _gymnasium_episodes(session: Session, report: training.Report) -> evaluate.Evaluation | None:
    """Play the trained seeds in Gymnasium's version of the environment, if there is one and the run goes on."""
    if (name := envs.GYMNASIUM.get(session.settings.env)) is None or session.stop():
        return None
    session.emit(events.Notice(f"playing the trained lanes in gymnasium's {name}"))
    try:
        return _closing_episodes(session, f"gym:{name}", report)
    except KeyboardInterrupt:
        session.emit(events.Notice("not played to the end"))
        return None


def _final_episodes(session: Session, report: training.Report) -> evaluate.Evaluation:
    """Play the trained seeds in the environment trained on. A run that is stopped does not wait for host environments,
    which may take minutes.
    """
    settings, path = session.settings, session.path
    on_host = envs.on_host(env := envs.find(settings.env))
    if not (on_host and session.stop()):
        if on_host:
            limit, count = results.step_limit(path, settings, env.spec), settings.evaluate_episodes
            text = f"playing {count} greedy episodes a seed in {settings.env}, of at most {limit:,} steps"
            session.emit(events.Notice(text))
        with contextlib.suppress(KeyboardInterrupt):
            return _closing_episodes(session, settings.env, report)
    session.emit(events.Notice(f"not played; fdqn eval {path} plays the trained seeds"))
    return evaluate.not_played(settings.seeds, settings.evaluate_episodes)


def _closing_episodes(session: Session, name: str, report: training.Report) -> evaluate.Evaluation:
    """Play the trained seeds with progress events. A stop that comes meanwhile raises KeyboardInterrupt."""
    env, settings, stopped = envs.find(name), session.settings, session.stop()
    limit = results.step_limit(session.path, settings, env.spec)

    def progress(ended: int, step: int) -> None:
        session.emit(events.EvaluationProgress(ended, step))
        if session.stop() and not stopped:
            raise KeyboardInterrupt

    session.emit(events.EvaluationStarted(name, settings.seeds * settings.evaluate_episodes, limit))
    try:
        played = _play(session, env, report.state.learner.params, report.state.key, progress)
    finally:
        session.emit(events.EvaluationEnded())
    session.emit(events.Evaluated(report.step, name, played.returns.copy()))
    return played


def _play(
    session: Session,
    env: Env | HostEnv,
    params: Params,
    keys: Tensor,
    progress: evaluate.Progress | None = None,
) -> evaluate.Evaluation:
    """Play greedy episodes. If the environment fails there are no returns: the trained parameters are kept."""
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
        session.emit(events.Notice(f"not played to the end: {error}"))
        return evaluate.not_played(settings.seeds, settings.evaluate_episodes)
    for i, message in played.failures.items():
        session.emit(events.Notice(f"seed {settings.seed + i} was not played to the end: {message}"))
    return played


# Exceptions of the receiver of events


class _ReceiverError(BaseException):
    """Carry an exception of `on_event` past the places that handle errors of environments."""


def _marked(on_event: OnEvent) -> OnEvent:
    """Wrap `on_event` so that what it raises is told apart from errors of the run; `_unmarked` unwraps it."""

    def emit(event: events.Event) -> None:
        try:
            on_event(event)
        except Exception as error:
            raise _ReceiverError(error) from None

    return emit


@contextlib.contextmanager
def _unmarked() -> Iterator[None]:
    """Raise what `on_event` raised."""
    error: Exception | None = None
    try:
        yield
    except _ReceiverError as marked:
        error = marked.args[0]
    if error is not None:
        raise error
