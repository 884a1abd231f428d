"""`fdqn.train`, `fdqn.sweep` and their continuation: a run from a script or a notebook, with progress and Ctrl-C."""

import contextlib
import dataclasses
import difflib
import inspect
import io
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
from rich.console import Console

from fdqn import check, compile, training
from fdqn.experiment import (
    events,
    halving_plan,
    population,
    presets,
    process,
    session,
    shard_plan,
    shards,
    sizes,
    sweep_plan,
    sweep_results,
    tracking,
)
from fdqn.experiment import halving as successive
from fdqn.experiment import sweep as sweeping
from fdqn.experiment.events import OnEvent
from fdqn.experiment.population import Population
from fdqn.experiment.presets import PresetName
from fdqn.experiment.progress import Display, stopped_text
from fdqn.experiment.results import Run, interval_text
from fdqn.experiment.settings import Settings, make
from fdqn.experiment.sweep_plan import Draw
from fdqn.experiment.sweep_results import Results
from fdqn.experiment.tracking import TagSet, TrackerName

EVERY = 5.0
"""Seconds between two lines of progress where there is neither a terminal nor a notebook."""


def train(
    settings: Settings | None = None,
    /,
    *,
    preset: PresetName | None = None,
    progress: bool = True,
    on_event: OnEvent | None = None,
    stop: Callable[[], bool] | None = None,
    track: TrackerName | Sequence[TrackerName] = (),
    tags: TagSet = "cleanrl",
    **keywords: Any,
) -> Run:
    """Train many seeds at once in a new run folder and return the run.

        run = fdqn.train(env="cartpole", seeds=16, steps=100_000)
        run.summary["final_return"], run.plot("curve.png"), run.policy(seed=3)

    In the main thread Ctrl-C, or a notebook's interrupt, stops the run within a few training iterations. The folder is
    then complete, and KeyboardInterrupt is raised, so that the script or the next cells do not run; `Run.load`
    reads the folder and `fdqn.resume` continues the run. A second Ctrl-C stops at once, and the run continues from its
    last checkpoint. In another thread no signal is handled; end the run with `stop` or an exception of `on_event`.
    Handlers of signals are restored at the end.

    While it trains, denormal numbers count as 0 in this thread and in threads that it starts. For the whole process,
    CUDA's precision is set and cuDNN is deterministic. All of these settings are restored at the end.

    Args:
        settings: all settings as one record. Alternatively, pass those that differ from the defaults as keywords with
            the names of the flags of `fdqn train`, such as `env`, `seeds`, `steps`, `gamma`, `hidden` and `out`;
            `env_kwargs` is a dict or a list of words such as `is_slippery=False`;
            `fdqn.experiment.settings.Settings` documents them. The run folder `out` must not exist yet; by default it
            is a new one in `runs/`.
        preset: published settings that replace the defaults (`fdqn presets`); most need `env`.
        progress: show progress: a bar on a terminal and in a notebook, elsewhere a line every few seconds on standard
            error.
        on_event: receives the events of `fdqn.experiment.events`, in the thread of the run. An exception that it raises
            ends the run and is raised here.
        stop: called between training iterations; the run ends early, with complete files, once it returns True.
        track: trackers that show the run while it trains: "tensorboard", "wandb", "trackio", "mlflow", or several. Each
            needs `pip install 'fdqn[NAME]'`. One that fails is reported once, and the run continues without it.
        tags: names of the metrics in trackers: those of CleanRL, or "sb3" for those of Stable-Baselines3.

    Raises:
        TypeError: an unknown keyword, a value of another type, or `settings` and keywords together.
        ValueError: invalid settings, before a file is written; a folder `out` that exists; all seeds have
            failed; or the run was stopped before its first training iteration.
        FloatingPointError: a seed failed, with the setting `on_nan="stop"`.
        KeyboardInterrupt: Ctrl-C.
    """
    chosen, shown = _settings(settings, preset, keywords), tracking.choose(track, tags)
    return _supervised(progress, on_event, stop, lambda emit, over: session.train(chosen, emit, over), shown)


@overload
def sweep(
    varied: Mapping[str, Sequence[Any] | Draw],
    *,
    samples: int = ...,
    pbt_every: None = ...,
    preset: PresetName | None = ...,
    progress: bool = ...,
    on_event: OnEvent | None = ...,
    stop: Callable[[], bool] | None = ...,
    track: TrackerName | Sequence[TrackerName] = ...,
    tags: TagSet = ...,
    **keywords: Any,
) -> Results: ...


@overload
def sweep(
    varied: Mapping[str, Sequence[Any] | Draw],
    *,
    samples: int = ...,
    pbt_every: int,
    preset: PresetName | None = ...,
    progress: bool = ...,
    on_event: OnEvent | None = ...,
    stop: Callable[[], bool] | None = ...,
    track: TrackerName | Sequence[TrackerName] = ...,
    tags: TagSet = ...,
    **keywords: Any,
) -> Population: ...


def sweep(
    varied: Mapping[str, Sequence[Any] | Draw],
    *,
    samples: int = 16,
    pbt_every: int | None = None,
    halving: int | None = None,
    preset: PresetName | None = None,
    progress: bool = True,
    on_event: OnEvent | None = None,
    stop: Callable[[], bool] | None = None,
    track: TrackerName | Sequence[TrackerName] = (),
    tags: TagSet = "cleanrl",
    **keywords: Any,
) -> Results | Population:
    """Train a sweep, all combinations of several values, and return its results.

        found = fdqn.sweep({"learning_rate": [1e-4, 1e-3], "gamma": [0.97, 0.99]}, env="cartpole", seeds=8)
        found = fdqn.sweep({"learning_rate": fdqn.Draw(1e-5, 1e-2, "log")}, samples=64)
        best = found.ranking()[0]

    With `pbt_every` the settings of each seed are the initial members of a population. At intervals, its worst members
    copy the parameters and hyper-parameters of one of the best, and the copied hyper-parameters are perturbed
    (population based training, Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846). The result is the best member
    of each seed:

        found = fdqn.sweep({"learning_rate": fdqn.Draw(1e-5, 1e-2, "log")}, env="acrobot", seeds=8, pbt_every=20_000)
        found.estimate(), found.best()

    Args:
        varied: several values by keyword of `fdqn.train`, or a range from which `samples` settings are drawn.
        samples: number of drawn settings.
        pbt_every: environment steps per seed between steps of population based training, a multiple of `report_every`.
            Hyper-parameters stay between the lowest and the highest of their values, or in their range.
        halving: eta of successive halving: several times, only the best 1/eta of the settings are kept. They are chosen
            by training returns, which favours settings that learn early and explore briefly.
        preset, progress, on_event, stop, tags: as in `fdqn.train`.
        track: as in `fdqn.train`; trackers show the aggregate of each setting, of at most 128; not with `halving`.
        **keywords: keywords of `fdqn.train` that all settings have in common.

    Raises ValueError for invalid settings before a file is written, and the errors of `fdqn.train`.
    """
    _check_names([*varied, *keywords])
    if twice := [name for name in varied if name in keywords]:
        raise ValueError(f"{twice[0]}: expected it once, got it in varied and as a keyword; omit one of them")
    values = {name: x for name, x in varied.items() if not isinstance(x, Draw)}
    draws = {name: x for name, x in varied.items() if isinstance(x, Draw)}
    published = None if preset is None else presets.values(preset, keywords.get("env"))
    if pbt_every is not None:
        check.count("pbt_every", pbt_every, 1)
    planned = sweep_plan.plan(_plain(keywords), values, draws, samples, published, pbt_every or 0)
    shown = tracking.choose(track, tags)
    tracking.check_settings(shown, len(planned.values), halving is not None)
    if halving is None:
        path = _supervised(progress, on_event, stop, lambda emit, over: sweeping.train(planned, emit, over), shown)
    else:
        rungs = halving_plan.plan(planned, halving)
        path = _supervised(progress, on_event, stop, lambda emit, over: successive.train(rungs, emit, over), shown)
    return sweep_results.read(path) if pbt_every is None else population.read(path)


def resume(
    path: str | os.PathLike[str],
    *,
    steps: int | None = None,
    env: str | None = None,
    wrappers: Sequence[str] = (),
    fallback: bool = False,
    on_nan: Literal["freeze", "stop"] | None = None,
    evaluate_episodes: int | None = None,
    evaluate_steps: int | None = None,
    device: str | None = None,
    progress: bool = True,
    on_event: OnEvent | None = None,
    stop: Callable[[], bool] | None = None,
    track: TrackerName | Sequence[TrackerName] | None = None,
    tags: TagSet | None = None,
) -> Run:
    """Continue a run that was interrupted as if it had not been, or train a finished one for more steps.

    Ctrl-C, progress and events are as in `fdqn.train`.

    Args:
        path: run folder.
        steps: planned environment steps per seed, at least as many as before.
        env: the environment trained on, required again if it is code of your own.
        wrappers: its wrappers, required again if they are code of your own.
        fallback: if the newest checkpoint is damaged, continue from the newest one that is not.
        on_nan, evaluate_episodes, evaluate_steps, device: replace the settings of that name from now on.
        progress, on_event, stop: as in `fdqn.train`.
        track: trackers from now on; by default those of the run, and with () none this time. A new one shows the run
            from its start, also a finished one.
        tags: names of the metrics in trackers from now on; by default unchanged.

    Raises ValueError for a folder that is no run, `checkpoint.CheckpointError` if another process or thread writes in
    it or its checkpoint is damaged, and the errors of `fdqn.train`.
    """
    check.kind("path", path, str, os.PathLike)
    more: dict[str, Any] = dict(env=env, wrappers=wrappers, fallback=fallback, on_nan=on_nan, device=device)
    more |= dict(evaluate_episodes=evaluate_episodes, evaluate_steps=evaluate_steps)
    where = Path(path).absolute()  # an environment may change the current folder
    if shard_plan.is_sharded(where):
        return _resume_shards(
            where, steps, more, progress, on_event, stop, tracking.choose_for_resume(where, track, tags)
        )
    if (where / "sweep.json").exists() or (where / halving_plan.FILE).exists():
        raise ValueError(
            f"path: expected a run or a sweep of one program, got {path}; continue it with fdqn.resume_sweep"
        )
    return _supervised(
        progress,
        on_event,
        stop,
        lambda emit, over: session.resume(where, steps, **more, on_event=emit, stop=over),
        tracking.choose_for_resume(where, track, tags),
        where,
    )


def _resume_shards(
    path: Path,
    steps: int | None,
    more: dict[str, Any],
    progress: bool,
    on_event: OnEvent | None,
    stop: Callable[[], bool] | None,
    shown: tracking.Choice,
) -> Run:
    """Continue the shards of a run that have not finished, and read the run."""
    shards.check_untracked(shown.trackers)
    _supervised(progress, on_event, stop, lambda emit, over: shards.train(path, emit, over, steps=steps, **more), shown)
    return Run.load(path, more["env"], more["wrappers"])


def resume_sweep(
    path: str | os.PathLike[str],
    *,
    progress: bool = True,
    on_event: OnEvent | None = None,
    stop: Callable[[], bool] | None = None,
    track: TrackerName | Sequence[TrackerName] | None = None,
    tags: TagSet | None = None,
    **changes: Any,
) -> Results | Population:
    """Continue a sweep that was stopped as if it had not been, and return what `fdqn.sweep` would have returned.

    `fdqn.experiment.sweep_results.read` reads a finished sweep.

    Args:
        path: folder of the sweep.
        progress, on_event, stop, track, tags: as in `fdqn.resume`.
        **changes: other arguments of `fdqn.resume`, such as `env` and `device`. `steps` only for a sweep of one program
            without successive halving.

    Raises ValueError for a folder that is no sweep, and the errors of `fdqn.resume`.
    """
    check.kind("path", path, str, os.PathLike)
    for name in changes:
        if name not in inspect.signature(resume).parameters:
            raise TypeError(f"resume_sweep: unknown argument {name!r}; see fdqn.resume")
    where = Path(path).absolute()  # an environment may change the current folder
    shown = tracking.choose_for_resume(where, track, tags)
    _supervised(
        progress, on_event, stop, lambda emit, over: sweeping.resume(where, emit, over, **changes), shown, where
    )
    return population.read(where) if population.is_population(where) else sweep_results.read(where)


def summary(
    run: Settings | Run | str | os.PathLike[str] | None = None,
    /,
    *,
    preset: PresetName | None = None,
    **keywords: Any,
) -> dict[str, Any]:
    """Return the layers of a network, its parameters, its memory and the arithmetic of an update; nothing is trained.

        fdqn.summary("runs/a")["parameters"]
        fdqn.summary(env="minatar:breakout", algorithm="rainbow")["layers"]

    Args:
        run: a run, its folder, or settings. Alternatively, pass settings as keywords as to `fdqn.train`. With a folder,
            the only keywords are `env` and `wrappers`, which are required if they are code of your own.
        preset: published settings that replace the defaults.

    Returns the record of `experiment.sizes.describe`. Raises TypeError for settings together with keywords, ValueError
    for invalid settings and for a folder that is no run, and for a sweep of several programs.
    """
    if isinstance(run, Run):
        return sizes.describe(run.settings)
    if run is None or isinstance(run, Settings):
        return sizes.describe(_settings(run, preset, keywords))
    check.kind("run", run, str, os.PathLike)
    if others := [*(["preset"] if preset is not None else []), *(keywords.keys() - {"env", "wrappers"})]:
        raise TypeError(f"summary: expected only env and wrappers with a run, got {min(others)}; omit it")
    return sizes.describe_run(Path(run), **keywords)


def _settings(settings: Settings | None, preset: PresetName | None, keywords: dict[str, Any]) -> Settings:
    """Return `settings`, or make them from the preset and the keywords."""
    if settings is not None:
        check.kind("settings", settings, Settings)
        if keywords or preset is not None:
            name = "preset" if preset is not None else next(iter(keywords))
            raise TypeError(f"train: expected settings or keywords, got both; use dataclasses.replace for {name!r}")
        return settings
    _check_names(keywords)
    published = None if preset is None else presets.values(preset, keywords.get("env"))
    return make(_plain(keywords), published)


def _check_names(names: Iterable[str]) -> None:
    """Raise TypeError, with the nearest name, for a name that is not one of a setting."""
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(
                name, [*known, "preset", "progress", "on_event", "stop", "track", "tags"], n=1, cutoff=0.5
            )
            hint = f"did you mean {near[0]!r}?" if near else "see fdqn.experiment.settings.Settings"
            raise TypeError(f"train: unknown setting {name!r}; {hint}")


def _plain(keywords: dict[str, Any]) -> dict[str, Any]:
    """Convert a path to a string and a list of sizes to a tuple."""
    if isinstance(keywords.get("out"), os.PathLike):
        keywords = {**keywords, "out": os.fspath(keywords["out"])}
    if isinstance(keywords.get("hidden"), list):
        keywords = {**keywords, "hidden": tuple(keywords["hidden"])}
    return keywords


def _signature() -> inspect.Signature:
    """Return the signature of `train` with all settings, for completion in editors and notebooks."""
    own = [x for x in inspect.signature(train).parameters.values() if x.kind is not inspect.Parameter.VAR_KEYWORD]
    fields = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in dataclasses.fields(Settings)
    ]
    return inspect.Signature([*own, *fields], return_annotation=Run)


train.__signature__ = _signature()  # type: ignore[attr-defined]


T = TypeVar("T")


def _supervised(
    progress: bool,
    on_event: OnEvent | None,
    stop: Callable[[], bool] | None,
    run: Callable[[OnEvent, session.Stop], T],
    shown: tracking.Choice,
    resumed: Path | None = None,
) -> T:
    """Run with a progress display and Ctrl-C, then restore the state of the process. `resumed` is the folder of a run
    that is continued."""
    check.kind("progress", progress, bool)
    for name, f in (("on_event", on_event), ("stop", stop)):
        if f is not None:
            check.function(name, f)
    with _process_state(), _display(progress) as display, stopping(display.say, [signal.SIGINT]) as interrupted:

        def emit(event: events.Event) -> None:
            follow(interrupted, event)
            display(event)
            if isinstance(event, events.Finished) and not {"settings", "population"} & event.summary.keys():
                display.say(f"{event.path}: greedy return {interval_text(event.summary['final_return'])}")
            if on_event is not None:
                on_event(event)
            if isinstance(event, events.Stopped) and interrupted():
                raise KeyboardInterrupt(stopped_text(event))

        with tracking.tracked(shown, emit, resumed=resumed) as receive:
            return run(receive, lambda: interrupted() or (stop is not None and bool(stop())))


@contextlib.contextmanager
def _process_state() -> Iterator[None]:
    """Restore what a run sets for this thread and this process."""
    flushes, precision, cudnn = compile.flushes_denormals(), torch.get_float32_matmul_precision(), torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    try:
        yield
    finally:
        torch.set_flush_denormal(flushes)
        torch.set_float32_matmul_precision(precision)
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before


@contextlib.contextmanager
def _display(shown: bool) -> Iterator[Display]:
    """Give a display on standard error, or a silent one."""
    plain: dict[str, Any] = dict(highlight=False, markup=False, emoji=False)
    console = Console(stderr=True, **plain) if shown else Console(file=io.StringIO(), quiet=True, force_jupyter=False)
    with Display(console, EVERY) as display:
        yield display


@contextlib.contextmanager
def stopping(say: Callable[[str], None], signals: Sequence[int] = process.SIGNALS) -> Iterator[process.Stop]:
    """Let signals request a stop, as `process.stopping` does. The caller passes the events of the run to `follow`."""
    with process.stopping(say, compile.is_compiling, training.Stopped, signals) as stop:
        stop.at_once = True
        yield stop


def follow(stop: process.Stop, event: events.Event) -> None:
    """Let the first signal interrupt phases without state to save: preparation and the evaluation after training."""
    if isinstance(event, events.EvaluationStarted):
        stop.at_once = True
    elif isinstance(event, events.Started | events.EvaluationEnded):
        stop.at_once = False
