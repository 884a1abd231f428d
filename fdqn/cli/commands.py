"""The command `fdqn`: run a command and print its results. Results go to standard output, everything else to
standard error.

torch is imported where a command needs it, so that `--help` is quick.
"""

import contextlib
import dataclasses
import io
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdqn.cli import parse, tables, terminal
from fdqn.cli.parse import (
    Command,
    Compare,
    Envs,
    Eval,
    Export,
    Merge,
    Presets,
    Report,
    Resume,
    Sharding,
    Summary,
    Train,
    Version,
    Watch,
)
from fdqn.experiment import events, process
from fdqn.experiment.progress import Display, bytes_text, stopped_text

if TYPE_CHECKING:
    from rich.console import Console

    from fdqn.experiment import sweep_plan
    from fdqn.experiment.tracking import Choice

STARTED = time.perf_counter()

Emit = Callable[[Any], None]
"""Print a value as JSON on standard output, from which all other output is redirected."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 for success, 1 for an error, 2 for a usage error, and 128 plus the
    signal's number if a signal ended it (130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP).

    Without arguments, run the command line of this process, which should exit afterwards.
    """
    started = STARTED if arguments is None else time.perf_counter()
    with process.printable():
        try:
            with process.handling(process.interrupt):
                command = process.placed(parse.parse(list(sys.argv[1:] if arguments is None else arguments)))
                with process.only_json(command.json, ends=arguments is None) as emit:
                    _run(command, emit, started)
                print(end="", flush=True)
            return 0
        except SystemExit as end:
            if isinstance(end.code, str):  # raised by user code
                print(f"fdqn: {end.code}", file=sys.stderr)
                return 1
            return int(end.code or 0)
        except BrokenPipeError:
            # The reader closed the pipe, as `head` does. Avoid a second error when Python flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt as error:
            number = process.signal_of(error)
            print(f"fdqn: {'interrupted' if number == signal.SIGINT else f'stopped by {number.name}'}", file=sys.stderr)
            return 128 + number
        except Exception as error:
            message = _known_error(error)
            if message is None and not isinstance(error, ValueError | TypeError | OSError | FloatingPointError):
                raise
            print(f"fdqn: {process.shown(message or error)}", file=sys.stderr)
            return 1


def _known_error(error: Exception) -> str | None:
    """Return a message with advice for errors of torch that depend on the machine; None for other errors."""
    if "fdqn.compile.toolchain" in sys.modules:  # else nothing was compiled
        from fdqn.compile import toolchain

        if failure := toolchain.find_compiler_error(error):
            return str(failure)
    if not isinstance(error, RuntimeError):
        return None
    text = " ".join(str(error).split())
    lacks_memory = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    if type(error).__name__ == "OutOfMemoryError" or any(part in text for part in lacks_memory):
        return f"out of memory; lower --seeds or --capacity; files written so far are complete ({text[:120]})"
    if "tensors to be on the same device" in text:
        hint = "create constants on the device of an argument, as in torch.zeros(3, device=x.device)"
        return f"device: expected every tensor of a step on one device, got several; {hint} ({text[:120]})"
    if "does not load; delete" in text:
        return text
    return None


def _run(command: Command, emit: Emit, started: float) -> None:
    match command:
        case Train():
            _train(command, emit, started)
        case Resume():
            _resume(command, emit, started)
        case Merge():
            _merge(command, emit)
        case Eval():
            _eval(command, emit)
        case Report():
            _report(command, emit)
        case Watch():
            _watch(command, emit)
        case Compare():
            _compare(command, emit)
        case Export():
            _export(command, emit)
        case Summary():
            _summary(command, emit)
        case Version():
            _version(emit if command.json else None)
        case Envs():
            _envs(command, emit)
        case Presets():
            _presets(command, emit)


def _train(command: Train, emit: Emit, started: float) -> None:
    console = _ready()
    from fdqn.experiment import session, sweep_results, tracking

    if command.shards is not None:
        return _train_shards(command, command.shards, console, emit, started)
    if command.sweep is not None:
        return _sweep(command, console, emit, started)
    settings, until = command.settings, None
    if settings is None:
        assert command.best_of is not None
        settings = sweep_results.on_fresh_seeds(command.best_of, command.given)
        until = sweep_results.extended_to(command.best_of)
    choice = tracking.choose(command.track, command.tags)
    with (
        _following(console, emit if command.json else None) as (on_event, stop),
        tracking.tracked(choice, on_event) as receive,
    ):
        session.train(settings, receive, stop, started, until)


def _sweep(command: Train, console: "Console", emit: Emit, started: float) -> None:
    """Train a sweep, print the plan before and the ranking after it."""
    from fdqn.experiment import halving, halving_plan, sweep, tracking

    plan, choice = _plan(command), tracking.choose(command.track, command.tags)
    tracking.check_settings(choice, len(plan.values), command.halving is not None)
    rungs = None if command.halving is None else halving_plan.plan(plan, command.halving)
    with console.status("planning") if console.is_terminal else contextlib.nullcontext():
        if rungs is None:
            text = tables.plan_text(plan, sweep.state_bytes(plan), sweep.seconds(plan))
        else:
            text = tables.halving_text(rungs, halving.state_bytes(rungs), halving.seconds(rungs))
    console.print(text, soft_wrap=True)
    with (
        _following(console, None, prints=False) as (on_event, stop),
        tracking.tracked(choice, on_event) as receive,
    ):
        if rungs is None:
            path = sweep.train(plan, receive, stop, started)
        else:
            path = halving.train(rungs, receive, stop, started)
    _print_sweep(path, emit if command.json else None)


def _plan(command: Train) -> "sweep_plan.Plan":
    """Return the plan of a sweep."""
    from fdqn.experiment import sweep_plan

    given = {**(command.sweep or {})}
    draws = {name: sweep_plan.Draw(low, high, scale) for name, (scale, low, high) in given.pop("draws").items()}
    return sweep_plan.plan(**given, draws=draws)


def _train_shards(command: Train, wanted: Sharding, console: "Console", emit: Emit, started: float) -> None:
    """Plan a sharded run, or join a planned one, and train the shards of this process."""
    from fdqn.experiment import ray_cluster, ray_shards, shard_plan, shards

    if command.settings is None:
        planned = shard_plan.plan_sweep(_plan(command), wanted.count)
    else:
        planned = shard_plan.plan(command.settings, wanted.count)
    numbers = None if wanted.number is None else range(wanted.number, wanted.number + 1)
    if wanted.number is not None:
        shards.check_number(wanted.number, wanted.count)
    elif wanted.ray is None and (found := shards.assigned(wanted.count, os.environ)) is not None:
        numbers, sentence = found
        console.print(sentence, soft_wrap=True)
    if numbers is not None and planned.settings.out is None:
        raise ValueError("out: expected the folder that all processes share, such as --out runs/a, got none")
    cluster = contextlib.nullcontext() if wanted.ray is None else ray_cluster.connected(wanted.ray)
    code: dict[str, Any] = {"env": planned.settings.env, "wrappers": planned.settings.wrappers}
    with cluster as ray:  # connect before the folder is created
        if wanted.ray is not None:
            ray_cluster.check_resources(ray, wanted.cpus, wanted.gpus)
        path = shard_plan.create(planned)
        if numbers is None:
            console.print(tables.shards_text(planned, path), soft_wrap=True)
        with _following(console, None, prints=False) as (on_event, stop):
            if wanted.ray is not None:
                ray_shards.train(path, wanted.ray, wanted.cpus, wanted.gpus, on_event, stop, **code)
            else:
                shards.train(path, on_event, stop, started, numbers, device=planned.settings.device, **code)
    _print_shards(path, emit if command.json else None)


def _merge(command: Merge, emit: Emit) -> None:
    console = _ready()
    from fdqn.experiment import merging

    for note in merging.merge(command.run).notes:
        console.print(note, soft_wrap=True)
    _print_merged(command.run, emit if command.json else None)


def _refresh(paths: Sequence[Path]) -> None:
    """Merge runs with missing shards again, and print the shards that are still missing."""
    for path in filter(Path.is_dir, paths):  # files of returns are compared without torch
        from fdqn.experiment import merging, shard_plan

        for note in merging.refresh(path) if shard_plan.is_sharded(path) else ():
            terminal.console().print(note, soft_wrap=True)


def _print_shards(path: Path, emit: Emit | None) -> None:
    """Print the results of a sharded run, if all of its shards are merged."""
    from fdqn.experiment import merging

    if merging.is_merged(path):
        _print_merged(path, emit)
    elif emit is not None:
        emit({"run": process.shown(path), "merged": False})


def _print_merged(path: Path, emit: Emit | None) -> None:
    from fdqn.experiment import results, sweep_results

    if sweep_results.is_sweep(path):
        return _print_sweep(path, emit)
    summary = results.read(path).summary
    if emit is None:
        tables.print_summary(path, summary)
    else:
        emit(summary)


def _print_sweep(path: Path, emit: Emit | None, out: Path | None = None) -> None:
    """Write the picture of a sweep, by default into its folder, and print the ranking."""
    from fdqn.experiment import population, sweep_results

    if population.is_population(path):
        return _print_population(path, emit, out)
    found = sweep_results.read(path)
    picture = _written(partial(sweep_results.write_picture, found), out)
    if emit is not None:
        return emit({**found.record(), "sweep": process.shown(path)})
    tables.print_ranking(path, found.names, found.ranking(), f"{found.measure} return")
    if out is None:
        terminal.results().print(f"sweep {path}, picture {picture}", soft_wrap=True)


def _print_population(path: Path, emit: Emit | None, out: Path | None = None) -> None:
    """Write the picture of population based training, by default into its folder, and print its best members."""
    from fdqn.experiment import population

    found = population.read(path)
    picture = _written(partial(population.write_picture, found), out)
    if emit is not None:
        return emit({**found.record(), "sweep": process.shown(path)})
    tables.print_population(found)
    terminal.results().print(f"sweep {path}, picture {picture}", soft_wrap=True)


def _written(write: Callable[[Path | None], Path], out: Path | None) -> Path:
    """Write a picture and return its file. An error that concerns `--out` names it."""
    try:
        return write(out)
    except (OSError, ValueError) as error:
        raise error if out is None else ValueError(f"out: {error}") from None


def _resume(command: Resume, emit: Emit, started: float) -> None:
    console = _ready()
    from fdqn.experiment import session, shard_plan, sweep_results, tracking

    choice = tracking.choose_for_resume(command.run, _track(command), command.tags)
    if shard_plan.is_sharded(command.run):
        return _resume_shards(command, choice, console, emit, started)
    if sweep_results.is_sweep(command.run):
        return _resume_sweep(command, choice, console, emit, started)
    with (
        _following(console, emit if command.json else None) as (on_event, stop),
        tracking.tracked(choice, on_event, resumed=command.run) as receive,
    ):
        run = session.resume(
            command.run,
            command.steps,
            env=command.env,
            wrappers=command.wrappers,
            fallback=command.fallback,
            on_nan=command.on_nan,
            evaluate_episodes=command.evaluate_episodes,
            evaluate_steps=command.evaluate_steps,
            device=command.device,
            on_event=receive,
            stop=stop,
            started=started,
        )
    if command.json and not on_event.finished:  # the run was finished already
        emit(run.summary)


def _track(command: Resume) -> tuple[str, ...] | None:
    """Return the trackers to continue with: () for --track none, None to keep those of the run."""
    return () if command.track == ("none",) else command.track


def _resume_shards(command: Resume, choice: "Choice", console: "Console", emit: Emit, started: float) -> None:
    from fdqn.experiment import shards

    shards.check_untracked(choice.trackers)
    with _following(console, None, prints=False) as (on_event, stop):
        shards.train(command.run, on_event, stop, started, **_changes(command))
    _print_shards(command.run, emit if command.json else None)


def _changes(command: Resume) -> dict[str, Any]:
    """Return the arguments of `session.resume`."""
    names = ("steps", "env", "wrappers", "fallback", "on_nan", "evaluate_episodes", "evaluate_steps", "device")
    return {name: getattr(command, name) for name in names}


def _resume_sweep(command: Resume, choice: "Choice", console: "Console", emit: Emit, started: float) -> None:
    from fdqn.experiment import sweep, tracking

    with (
        _following(console, None, prints=False) as (on_event, stop),
        tracking.tracked(choice, on_event, resumed=command.run) as receive,
    ):
        sweep.resume(command.run, receive, stop, started, **_changes(command))
    _print_sweep(command.run, emit if command.json else None)


def _ready() -> "Console":
    """Load torch and return a console for standard error."""
    console = terminal.console()
    with console.status("loading torch") if console.is_terminal else contextlib.nullcontext():
        from fdqn import compile
    compile.prepare_cpu()
    return console


class _Follower:
    """Receive the events of a run: show them, print the summary, and exit with the code of a signal that stopped it."""

    def __init__(
        self, console: "Console", display: Display, emit: Emit | None, stop: process.Stop, prints: bool
    ) -> None:
        self._console, self._display, self._emit, self._stop, self._prints = console, display, emit, stop, prints
        self.path: Path | None = None
        """Run folder, once it exists."""
        self.finished = False

    def __call__(self, event: events.Event) -> None:
        from fdqn.experiment import api

        api.follow(self._stop, event)
        self._display(event)
        match event:
            case events.Started(path):
                self.path = path
            case events.Finished(path, summary):
                self.finished = True
                if not self._prints:
                    return
                if self._emit is None:
                    tables.print_summary(path, summary)
                else:
                    self._emit(summary)
                print(end="", flush=True)
            case events.Stopped():
                self._console.print(stopped_text(event), soft_wrap=True)
                raise SystemExit(self._stop.code)


@contextlib.contextmanager
def _following(console: "Console", emit: Emit | None, prints: bool = True) -> Iterator[tuple[_Follower, process.Stop]]:
    """Show a run and let signals stop it. Its summary is printed if `prints`."""
    from fdqn.experiment import api

    follower: _Follower | None = None
    try:
        with (
            process.saying_warnings(partial(console.print, soft_wrap=True)),
            Display(console) as display,
            api.stopping(console.print) as stop,
        ):
            follower = _Follower(console, display, emit, stop, prints)
            yield follower, stop
    except KeyboardInterrupt:
        if follower is not None and (path := follower.path) is not None:
            console.print(
                f"the files in {path} are complete; continue from the last checkpoint with: "
                f"fdqn resume {shlex.quote(str(path))}",
                soft_wrap=True,
            )
        raise


def _eval(command: Eval, emit: Emit) -> None:
    console = _ready()
    from fdqn.experiment import evaluation, sweep_results

    if command.video is not None:
        _check_video(command.video)
    _refresh([command.run])
    trained = evaluation.load(
        command.run,
        command.env,
        wrappers=command.wrappers,
        checkpoint=command.checkpoint,
        seeds=command.seed,
        episodes=command.episodes,
        evaluate_steps=command.evaluate_steps,
        device=command.device,
        compiling=command.compile,
        renders=command.video is not None,
        setting=command.setting,
    )
    with process.saying_warnings(partial(console.print, soft_wrap=True)), Display(console) as display:
        played = evaluation.play(trained, display)
    setting = sweep_results.described(command.run, command.setting)
    if command.json:
        checkpoint_info = {} if command.checkpoint is None else {"checkpoint": trained.step}
        emit({**setting, **played.record, **({"seeds": trained.seeds} if command.seed else {}), **checkpoint_info})
    else:
        at = "" if command.checkpoint is None else f", checkpoint of step {trained.step:,}"
        title = f"{trained.title}, {trained.episodes} greedy episodes per seed{at}"
        tables.print_seeds(title, trained.seeds, trained.failed, {"return": played.record})
        if setting:
            terminal.results().print(sweep_results.described_text(setting), soft_wrap=True)
    if command.video is not None:
        with Display(console) as display:
            drawn, recording = evaluation.record_video(trained, played, display)
        _write_video(command.video, drawn)
        steps = "step" if recording.every == 1 else f"{recording.every} steps"
        frames = f"{len(recording.scenes):,} frames, one every {steps}, {bytes_text(len(drawn))}"
        console.print(f"video {command.video}: {frames}", soft_wrap=True)


def _check_video(file: Path) -> None:
    if file.suffix.lower() != ".gif":
        raise ValueError(f"video: expected a name that ends in .gif, got {str(file)!r}")
    if not file.parent.is_dir():
        raise ValueError(f"video: expected a file in an existing folder, got {str(file)!r}; create {file.parent} first")


def _write_video(file: Path, content: bytes) -> None:
    from fdqn.storage import files

    try:
        files.write(file, content)
    except (OSError, ValueError) as error:
        raise ValueError(f"video: {error}") from None


def _report(command: Report, emit: Emit) -> None:
    from fdqn.experiment import results, sweep_results
    from fdqn.storage import files

    if not command.runs:
        raise ValueError("runs: expected at least one run folder, got none")
    _refresh(command.runs)
    if command.html is not None:
        return _write_page(command, command.html, emit)
    if len(command.runs) == 1 and sweep_results.is_sweep(command.runs[0]):
        return _print_sweep(command.runs[0], emit if command.json else None, command.out)
    for path in command.runs:
        if sweep_results.is_sweep(path):
            raise ValueError(
                f"runs: expected runs of one setting, or one sweep alone, got several with the sweep {path}; use fdqn "
                "compare"
            )
    read = [results.read(path) for path in command.runs]
    own = read[0].path / "curve.png" if len(read) == 1 else read[0].path.resolve().parent / "comparison.png"
    read = [dataclasses.replace(run, path=Path(process.shown(run.path))) for run in read]
    picture, drawn = command.out or own, io.BytesIO()
    try:
        if len(read) == 1:
            results.picture(drawn, read[0].curve, read[0].summary)
        else:
            results.comparison(drawn, read)
        files.write(picture, drawn.getvalue())
    except (OSError, ValueError) as error:
        raise ValueError(f"out: {error}") from None
    if command.json:
        emit([{"run": str(run.path), **run.summary} for run in read])
    elif len(read) == 1:
        tables.print_summary(read[0].path, read[0].summary)
    else:
        tables.print_comparison(read, picture)


def _write_page(command: Report, file: Path, emit: Emit) -> None:
    """Write the page of `fdqn report --html`, and print its name and size."""
    from fdqn.experiment import html_report

    if command.out is not None:
        raise ValueError("out: expected none with --html, which replaces the PNG; omit --out")
    size = html_report.write(command.runs, file, [process.shown(path) for path in command.runs])
    if command.json:
        return emit({"html": process.shown(file), "bytes": size})
    terminal.results().print(f"page {file}, {bytes_text(size)}; open it in a browser", soft_wrap=True)


def _watch(command: Watch, emit: Emit) -> None:
    """Serve the page of a run until Ctrl-C."""
    from fdqn.experiment import watching

    with watching.server(command.run, command.port, process.shown(command.run)) as served:
        address = watching.address(served)
        if command.json:
            emit({"address": address})
        else:
            terminal.results().print(f"{address} shows {command.run}; press Ctrl-C to stop", soft_wrap=True)
            print(end="", flush=True)
        try:
            served.serve_forever()
        except KeyboardInterrupt as error:
            if process.signal_of(error) != signal.SIGINT:
                raise


def _compare(command: Compare, emit: Emit) -> None:
    from fdqn.experiment import arms, comparing, comparison_text
    from fdqn.storage import files

    if not command.arms:
        raise ValueError("arms: expected at least two, got none")
    if command.paired and command.unpaired:
        raise ValueError("paired: expected --paired or --unpaired, got both")
    _refresh(command.arms)
    read = arms.read(command.arms, command.measure, [process.shown(path) for path in command.arms])
    if not command.anyway:
        arms.check_comparable(read)
    if not command.json:
        read = comparing.with_short_names(read)
    paired = command.paired if command.paired or command.unpaired else None
    record = comparing.compare(read, paired, command.confidence, command.optimum)
    picture, drawn = command.out or command.arms[0].resolve().parent / "compare.png", io.BytesIO()
    try:
        comparing.picture(drawn, read, record)
        files.write(picture, drawn.getvalue())
    except (OSError, ValueError) as error:
        raise ValueError(f"out: {error}") from None
    if command.json:
        emit({**record, "notes": comparison_text.notes(read, record), "picture": process.shown(picture)})
    else:
        tables.print_arms(record, comparison_text.notes(read, record), picture)


def _export(command: Export, emit: Emit) -> None:
    from fdqn.experiment import export, sweep_results

    _refresh([command.run])
    if command.hub is not None:
        return _export_to_hub(command, command.hub, emit)
    assert command.seed is not None
    assert command.out is not None
    written = export.write(
        command.run,
        command.seed,
        command.out,
        command.prefix,
        command.env,
        command.checkpoint,
        command.setting,
        command.wrappers,
    )
    written |= {name: process.shown(written[name]) for name in ("run", "out", "read")}
    setting = sweep_results.described(command.run, command.setting)
    if command.json:
        emit({**written, **setting})
        return
    out = terminal.results()
    checkpoint_info = "" if command.checkpoint is None else f" at step {written['checkpoint']:,}"
    out.print(
        f"seed {command.seed} of {command.run}{checkpoint_info}: {written['what']}, {bytes_text(written['bytes'])} in "
        f"{command.out}",
        soft_wrap=True,
    )
    if setting:
        out.print(sweep_results.described_text(setting), soft_wrap=True)
    out.print(f"load it with {written['read']}", soft_wrap=True)


def _summary(command: Summary, emit: Emit) -> None:
    _ready()
    from fdqn.experiment import sizes

    if command.folder is not None:
        record = sizes.describe_run(command.folder, command.env, command.wrappers)
    else:
        assert command.settings is not None
        record = sizes.describe(command.settings)
    if command.json:
        emit(record)
    else:
        tables.print_sizes(record)


def _version(emit: Emit | None) -> None:
    """Print the versions of fdqn, Python, torch and the C++ compiler, and the engine and device that `auto` selects."""
    import platform

    import torch

    import fdqn
    from fdqn import compile
    from fdqn.compile import toolchain

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        compiler: str | None = toolchain.version()
    except RuntimeError:
        compiler = None
    record = {
        "fdqn": fdqn.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "engine": compile.resolve("auto", device),
        "compiler": compiler,
    }
    if emit is not None:
        return emit(record)
    for name, value in record.items():
        print(name, "none that works" if value is None else value)


def _export_to_hub(command: Export, folder: Path, emit: Emit) -> None:
    """Write a model repository, and upload it with --push, whose name and token are checked first."""
    from fdqn.experiment import hub

    if command.push is not None:
        hub.check_push(command.push)
    written = hub.write(command.run, folder, command.seed, command.env, command.video, command.push, command.wrappers)
    written |= {name: process.shown(written[name]) for name in ("run", "hub", "read")}
    if command.push is not None:
        written["url"] = hub.push(folder, command.push)
    if command.json:
        emit(written)
        return
    out = terminal.results()
    out.print(f"model repository of {command.run}: {bytes_text(written['bytes'])} in {folder}", soft_wrap=True)
    if command.push is not None:
        out.print(f"uploaded to {written['url']}", soft_wrap=True)
    out.print(f"load it with {written['read']}", soft_wrap=True)


def _envs(command: Envs, emit: Emit) -> None:
    from fdqn import envs

    if command.json:
        emit({name: envs.describe(name) for name in envs.names()})
        return
    from rich.table import Table

    table = Table("environment", "description", box=None)
    for name in envs.names():
        table.add_row(name, envs.describe(name))
    table.add_section()
    table.add_row("gym:NAME", "any environment of Gymnasium with discrete actions")
    table.add_row("ale:GAME", "a game of Atari, such as ale:Breakout; pip install 'fdqn[atari]'")
    table.add_row("package.module:name", "your own: an Env, a HostEnv, or a gymnasium.Env class")
    terminal.results().print(table)


def _presets(command: Presets, emit: Emit) -> None:
    from fdqn.experiment import presets

    rows = presets.rows()
    if command.json:
        emit(rows)
    else:
        tables.print_presets(rows)
