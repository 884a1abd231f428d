"""The command `fdqn`: what a person sees. Results go to standard output, everything else to standard error.

torch is imported where a command needs it, so that `--help` is quick.
"""

import contextlib
import dataclasses
import difflib
import functools
import io
import math
import operator
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro

import fdqn
from fdqn import process
from fdqn.settings import PRESETS, Preset, Settings

if TYPE_CHECKING:
    from rich.console import Console

    from fdqn import evaluate, history, runs, training

STARTED = time.perf_counter()

# Seconds before the first line of progress while episodes are played, and between lines, where there is no terminal.
_FIRST_LINE, _NEXT_LINE = 1.0, 10.0

# Rows that a table of seeds shows before it sums up the rest.
_ROWS = 32


@dataclass(frozen=True)
class Train:
    """Train many seeds at once. Report the interquartile mean of their returns with its 95% bootstrap interval, or
    with the range of the seeds if there are fewer than 5."""

    settings: tyro.conf.OmitArgPrefixes[Settings]
    preset: Preset | None = None
    """Published settings to use instead of the defaults. Other flags override them."""
    json: bool = False
    """Print only the summary, as JSON."""


@dataclass(frozen=True)
class Resume:
    """Continue a run that was stopped or killed. The result equals that of the uninterrupted run."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    steps: int | None = None
    """Total environment steps per seed, to extend the run. Schedules keep their original lengths."""
    fallback: bool = False
    """If the newest checkpoint is damaged, use the newest intact one."""
    on_nan: Literal["freeze", "stop"] | None = None
    """Reaction to a NaN or infinity in a seed: freeze that seed, or stop the run; by default unchanged."""
    env: str | None = None
    """Environment of the run; required if it is your own code."""
    evaluate_episodes: int | None = None
    """Evaluation episodes per seed from now on; by default unchanged."""
    evaluate_steps: int | None = None
    """Step limit of an evaluation episode from now on; by default unchanged."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """Device to continue on, also when the run is resumed again; by default unchanged."""
    json: bool = False
    """Print only the summary, as JSON."""


@dataclass(frozen=True)
class Eval:
    """Play greedy episodes with the trained seeds of a run."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    env: str | None = None
    """Environment to play, built in or gym:NAME; by default the one trained on."""
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="{best,last,STEP}")] = None
    """Checkpoint to play: best (highest training return), last (end of the run) or a step; by default last."""
    seed: tuple[int, ...] = ()
    """Trained seeds to play; by default all."""
    episodes: int | None = None
    """Episodes per seed; by default the run's --evaluate-episodes."""
    evaluate_steps: int | None = None
    """Step limit of an episode; by default that of the run (see fdqn train --help)."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """Device to play on; by default that of the run, or the CPU if CUDA is not available."""
    video: Path | None = None
    """GIF file to write: the best, the median and the worst seed side by side, 20 steps per second.
    Each plays the episode whose return is nearest to its mean.
    Episodes of more than 600 steps show every 2nd, 4th, 8th, ... step."""
    compile: bool = True
    """Compile the step of policy and environment: on CUDA from the start, on a CPU after 2,560 steps.
    The returns do not change. No effect if the run was trained with --no-compile."""
    json: bool = False
    """Print only the returns, as JSON."""


@dataclass(frozen=True)
class Report:
    """Summarise one run, or compare several in a table and one picture."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path | None = None
    """PNG file to write; by default curve.png in a single folder, comparison.png beside the first of several."""
    json: bool = False
    """Print only the summaries, as JSON."""


@dataclass(frozen=True)
class Export:
    """Write one trained seed of a run to a file that PyTorch reads."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    seed: int
    """Seed to export, one of those trained."""
    out: Path
    """File to write: .pt or .pth for a state_dict, .pt2 for the policy by torch.export.
    The policy maps obs [B, ...] to Q-values [B, actions] and runs without fdqn."""
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="{best,last,STEP}")] = None
    """Checkpoint to export: best (highest training return), last (end of the run) or a step; by default last."""
    prefix: str = ""
    """Prefix of the names in the state_dict, with its dot, such as linear_relu_stack. (none by default)."""
    env: str | None = None
    """Environment of the run; required if it is your own code."""
    json: bool = False
    """Print only the result, as JSON."""


@dataclass(frozen=True)
class Envs:
    """List the environments."""

    json: bool = False
    """Print only JSON."""


Emit = Callable[[Any], None]
"""Print a value as JSON on standard output, where all else is kept from."""

Command = Train | Resume | Eval | Report | Export | Envs
COMMANDS = {"train": Train, "resume": Resume, "eval": Eval, "report": Report, "export": Export, "envs": Envs}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 for success, 1 for an error, 2 for a usage error, and 128 plus the
    signal's number if a signal ended it (130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP).

    Without arguments, run the command line of this process, which should exit afterwards.
    """
    started = STARTED if arguments is None else time.perf_counter()
    with process.printable():
        try:
            with process.handling(process.interrupt):
                command = process.placed(_parse(list(sys.argv[1:] if arguments is None else arguments)))
                with process.only_json(command.json, ends=arguments is None) as emit:
                    _run(command, emit, started)
                print(end="", flush=True)
            return 0
        except SystemExit as end:
            if isinstance(end.code, str):  # of somebody's code
                print(f"fdqn: {end.code}", file=sys.stderr)
                return 1
            return int(end.code or 0)
        except BrokenPipeError:
            # The reader left, as `head` does. Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt as error:
            number = process.signal_of(error)
            print(f"fdqn: {'interrupted' if number == signal.SIGINT else f'stopped by {number.name}'}", file=sys.stderr)
            return 128 + number
        except Exception as error:
            sentence = _known(error)
            if sentence is None and not isinstance(error, ValueError | TypeError | OSError | FloatingPointError):
                raise
            print(f"fdqn: {process.shown(sentence or error)}", file=sys.stderr)
            return 1


def _known(error: Exception) -> str | None:
    """Say what to do about an error of torch that depends on the machine; nothing for another one."""
    if "fdqn.toolchain" in sys.modules:  # else nothing was compiled
        from fdqn import toolchain

        if failure := toolchain.find_compiler_error(error):
            return str(failure)
    if not isinstance(error, RuntimeError):
        return None
    text = " ".join(str(error).split())
    lacks_memory = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    if type(error).__name__ == "OutOfMemoryError" or any(words in text for words in lacks_memory):
        return f"out of memory; lower --seeds or --capacity; what was written is complete ({text[:120]})"
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
        case Eval():
            _eval(command, emit)
        case Report():
            _report(command, emit)
        case Export():
            _export(command, emit)
        case Envs():
            _envs(command, emit)


def _parse(arguments: list[str]) -> Command:
    """The command as a record; exits with one line on standard error where it cannot be read."""
    first = arguments[0] if arguments else "--help"
    if first == "--version":
        print(f"fdqn {fdqn.__version__}")
        raise SystemExit(0)
    if first not in (*COMMANDS, "-h", "--help"):
        what = "flag" if first.startswith("-") else "command"
        _refuse(f"unknown {what} {first!r}{_nearest(first, list(COMMANDS), 'fdqn --help')}")
    flags = [_flag(word) for word in arguments if word.startswith("--")]
    if twice := [word for word in flags if flags.count(word) > 1]:
        _refuse(f"flag --{twice[0]}: expected it once, got it {flags.count(twice[0])} times")
    choices = [Annotated[command, tyro.conf.subcommand(name)] for name, command in COMMANDS.items()]
    if preset := _preset(arguments):
        if not {"--env", "--help", "-h"} & {word.split("=")[0] for word in arguments}:
            world = {"minatar": "minatar:breakout", "nature": "ale:Breakout"}[preset]
            _refuse(f"flag --preset {preset}: expected --env with it, such as --env {world}, got none")
        default = Train(Settings(**PRESETS[preset]))
        choices[0] = Annotated[Train, tyro.conf.subcommand("train", default=default)]
    complaint = io.StringIO()
    try:
        with process.REDIRECTING, contextlib.redirect_stderr(complaint):
            command, unknown = tyro.cli(
                cast(Any, functools.reduce(operator.or_, choices)),
                prog="fdqn",
                description="Deep Q-learning as pure functions: many seeds at once.",
                args=arguments or ["--help"],
                return_unknown_args=True,
            )
    except SystemExit as end:
        if end.code:
            _refuse(_sentence(complaint.getvalue()))
        raise
    if unknown:
        word = next((given for given in arguments if given.endswith(f"={unknown[0]}")), unknown[0])
        what = "flag" if word.startswith("-") else "argument"
        _refuse(f"unknown {what} {word!r}{_nearest(word, _flags(command), f'fdqn {first} --help')}")
    return command


def _preset(arguments: list[str]) -> Preset | None:
    """The preset that is asked for, where there is one of that name: its settings are the defaults of the others."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--preset=") else [word])]
    asked = words[words.index("--preset") + 1 :][:1] if "--preset" in words else []
    return cast(Preset, asked[0]) if asked and asked[0] in PRESETS and words[0] == "train" else None


def _flag(word: str) -> str:
    """The name of a flag, however it is written."""
    return word.split("=")[0].removeprefix("--").replace("_", "-").removeprefix("no-")


def _flags(command: Command) -> list[str]:
    fields = [field.name for field in dataclasses.fields(command) if field.name not in ("settings", "run", "runs")]
    if isinstance(command, Train):
        fields += [field.name for field in dataclasses.fields(Settings)]
    return [f"--{name.replace('_', '-')}" for name in fields]


def _nearest(word: str, known: list[str], help: str) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; see `{help}`"


def _sentence(box: str) -> str:
    """What tyro complains of, as one line: the paragraph after the title, whether it frames with lines or with -."""
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if text.startswith(("─", "---")):
            paragraphs.append([])
        elif text:
            paragraphs[-1].append(text)
    sentence = " ".join(paragraphs[1] if len(paragraphs) > 1 else paragraphs[0])
    # A number that may be left out has two ways of not being one.
    sentence = re.sub(
        r"no type matching .*INT could .* from \['(.*?)'\]\. .*", r"expected a whole number, got '\1'", sentence
    )
    sentence = re.sub(r"(?<=\()'None', |, 'None'", "", sentence)  # for a choice that may be left out
    return sentence.replace("invalid literal for int() with base 10:", "expected a whole number, got")


def _refuse(sentence: str) -> None:
    print(f"fdqn: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def _train(command: Train, emit: Emit, started: float) -> None:
    console, settings = _ready(), command.settings
    here = Path() if settings.out and os.path.isabs(settings.out) else Path.cwd()  # an environment may go elsewhere
    from fdqn import history, runs

    runs.folder(settings, here)
    program, state = _begun(console, settings)
    path = runs.create(settings, here)
    with runs.writing(path):
        where = history.Restored(state, None, 0, settings.steps, 0.0)
        _go_on(console, path, settings, program, where, emit if command.json else None, started)


def _resume(command: Resume, emit: Emit, started: float) -> None:
    console = _ready()
    from fdqn import envs, history, runs

    path = command.run
    settings, planned = runs.plan(path, command.env)
    _check_more(command.steps, planned)
    done, wanted = runs.finished(path), command.steps or planned
    if done >= wanted:
        console.print(f"{path} is finished: {done:,} steps; --steps with more goes on", soft_wrap=True)
        if command.json:
            emit(runs.read(path).summary)
        return
    with runs.writing(path):
        settings, planned = runs.plan(path, command.env)  # again, now that nobody else can change it
        _check_more(command.steps, planned)
        changed = {name: getattr(command, name) for name in ("on_nan", "device", "evaluate_episodes", "evaluate_steps")}
        settings = dataclasses.replace(settings, **{name: x for name, x in changed.items() if x is not None})
        wanted = max(wanted, planned)
        program, state = _begun(console, settings)
        where = history.restored(path, settings, program, state, command.fallback)
        runs.replan(path, wanted, settings)
        for damaged in where.passed:
            console.print(f"passed over and set aside: {damaged}", soft_wrap=True)
        for line in runs.differences(path, settings):
            console.print(f"not bit for bit: {line}", soft_wrap=True)
        console.print(
            f"going on at step {where.step:,} of {wanted:,}" if where.step else "no checkpoint: starting over"
        )
        if where.step and envs.on_host(envs.find(settings.env)):
            console.print(f"not bit for bit: {settings.env} starts new episodes", soft_wrap=True)
        if where.step and not settings.save_replay:
            filled = f"it is filled anew with {settings.learning_starts:,} steps a seed before learning goes on"
            console.print(f"not bit for bit: the replay was not saved; {filled}", soft_wrap=True)
        if wanted > settings.steps and program.config.capacity < settings.capacity:
            rows = f"{program.config.capacity:,} rows, as many as the first {settings.steps:,} steps needed"
            console.print(f"the replay keeps its {rows}", soft_wrap=True)
        where = where._replace(steps=wanted)
        _go_on(console, path, settings, program, where, emit if command.json else None, started)


def _ready() -> "Console":
    """A console, when torch is loaded and this process prepared to train."""
    console = _console()
    with console.status("loading torch") if console.is_terminal else contextlib.nullcontext():
        from fdqn import compile
    compile.prepare_cpu()
    return console


def _check_more(steps: int | None, planned: int) -> None:
    if steps is not None and steps > 2**53:
        raise ValueError(f"steps: expected at most 2**53, got a number of {len(str(steps))} digits")
    if steps is not None and steps < planned:
        raise ValueError(f"steps: expected at least the {planned:,} that were planned, got {steps:,}")


def _begun(console: "Console", settings: Settings) -> "tuple[training.Program, training.TrainState]":
    """The program and its lanes before their first step."""
    from fdqn import build, compile, training

    program, device = build.program(settings), build.device(settings)
    compile.prepare_cuda(tf32=settings.tf32 and device.type == "cuda")
    size = build.check_memory(program, settings.seeds, device)
    hyper = build.hyper(settings, device)
    rows, lane = program.config.capacity, build.replay_bytes(program, 1)
    console.print(
        f"{settings.env}: {settings.seeds} seeds x {settings.steps:,} steps on {device}; {_bytes(size)}, replay "
        f"{settings.seeds} x {rows:,} rows of {lane // rows:,} B: {_bytes(lane)} a seed, "
        f"{_bytes(settings.seeds * lane)} in all",
        soft_wrap=True,
    )
    return program, training.init(program, hyper, build.keys(settings).to(device))


def _go_on(
    console: "Console",
    path: Path,
    settings: Settings,
    program: "training.Program",
    where: "history.Restored",
    emit: Emit | None,
    started: float,
) -> None:
    """From there to the end, or until it is stopped: train, play, sum up."""
    from fdqn import compile, training

    try:
        with process.stopping(console.print, compile.is_compiling, training.Stopped) as stop, _not_news(stop):
            _go_on_until(stop, console, path, settings, program, where, emit, started)
    except KeyboardInterrupt:
        console.print(
            f"the files in {path} are complete; continue from the last checkpoint with: fdqn resume {path}",
            soft_wrap=True,
        )
        raise


@contextlib.contextmanager
def _not_news(stop: process.Stop) -> Iterator[None]:
    """Take a failure for an interrupt after a signal, which the C++ compiler may have got too."""
    try:
        yield
    except (RuntimeError, subprocess.SubprocessError):
        if stop():
            raise KeyboardInterrupt(stop.signal) from None
        raise


def _go_on_until(
    stop: process.Stop,
    console: "Console",
    path: Path,
    settings: Settings,
    program: "training.Program",
    where: "history.Restored",
    emit: Emit | None,
    started: float,
) -> None:
    """Train, play and sum up until `stop`."""
    from fdqn import build, envs, evaluate, history, runs, training
    from fdqn.training import host

    env = envs.find(settings.env)
    state, games = where.state, None
    gone = {lane for lane, cycle in enumerate(state.metrics.failed.tolist()) if cycle >= 0}
    if envs.on_host(env) and len(gone) == settings.seeds:
        raise ValueError(f"run: expected a seed that can go on, got {path}, in which all have failed")

    epsilon = settings.evaluate_epsilon
    fast = _player(settings.compile, env, program.network, epsilon)

    episodes = settings.evaluate_episodes
    nothing = evaluate.not_played(settings.seeds, episodes)

    def greedy(env: Any, network: Any, params: Any, keys: Any, progress: Any = None) -> Any:
        """What was trained stays, whatever happens to an environment that is played in."""
        limit = runs.step_limit(path, settings, env.spec)
        try:
            played = evaluate.greedy(
                env, network, params, keys, episodes, epsilon=epsilon, limit=limit, fast=fast, progress=progress
            )
        except ValueError as error:
            console.print(f"not played to the end: {error}", soft_wrap=True)
            return nothing
        _say_not_played(console, build.seeds(settings), played)
        return played

    def periodic(state: training.TrainState) -> Any:
        """Played to its end also where the run is to stop: a resumed run would not play it again."""
        return greedy(env, program.network, state.learner.params, state.key).returns

    def play(env: Any, network: Any, params: Any, keys: Any) -> Any:
        limit = runs.step_limit(path, settings, env.spec)
        with stop.at_once(), _episodes(console, settings.seeds * episodes, limit) as progress:
            return greedy(env, network, params, keys, progress)

    def over() -> bool:
        """Whether nobody is left who could go on, or somebody wants to stop."""
        if games is None:
            return stop()
        return stop() or len({*games.broken} | gone) == settings.seeds

    with _warnings_as_lines(console), contextlib.ExitStack() as closing:
        if envs.on_host(env):
            games = closing.enter_context(contextlib.closing(envs.open_host(env, settings.seeds, settings.num_envs)))
            state = host.start(program, games, state)
            broken = games.broken
            if where.step and (unable := broken.keys() - gone):
                raise ValueError(
                    f"env: expected {settings.env} to begin for all seeds that go on, got none for seed "
                    f"{settings.seed + min(unable)}: {broken[min(unable)]}; resume again when it does"
                )
        reports = training.run(
            program,
            state,
            where.steps,
            _stopped_before_compiling(runs.functions(program, settings, games), stop, settings.compile),
            settings.report_every,
            evaluate=periodic if settings.evaluate_every else None,
            evaluate_every=settings.evaluate_every,
            stop=over,
            since=where.since,
            at_once=None if games is None else 1,
        )
        recorded = history.record(path, settings, reports, where)
        reports = _saying_failures(console, settings, recorded, games, where.step, gone)
        report = _follow(console, settings, where.steps, reports)
    goes_on = f"; continue with: fdqn resume {path}" if report.step < where.steps else ""
    stopped = f"stopped at {report.step:,} of {where.steps:,} steps; the files in {path} are complete{goes_on}"
    if stop() and report.step == where.step:  # nothing is new
        console.print(stopped, soft_wrap=True)
        raise SystemExit(stop.code)
    params = report.state.learner.params
    runs.save_params(path, settings, params)
    outside = None

    def last(env: Any, network: Any, params: Any, keys: Any) -> Any:
        """The closing episodes; a run that is stopped does not wait for those of a world, which may take minutes."""
        if not (stop() and games is not None):
            with contextlib.suppress(KeyboardInterrupt):
                return play(env, network, params, keys)
        console.print(f"not played; fdqn eval {path} plays the trained seeds", soft_wrap=True)
        return nothing

    if settings.env in envs.GYMNASIUM and not stop():
        name = envs.GYMNASIUM[settings.env]
        console.print(f"playing the trained lanes in gymnasium's {name}")
        try:
            twin = envs.find(f"gym:{name}")
            outside = play(twin, program.network, params, report.state.key)
        except KeyboardInterrupt:
            console.print("not played to the end")
    if games is not None and not stop():
        limit = runs.step_limit(path, settings, env.spec)
        console.print(f"playing {episodes} greedy episodes a seed in {settings.env}, of at most {limit:,} steps")
    summary = runs.finish(path, settings, report, started, outside, where.seconds, last)
    if emit is not None:
        emit(summary)
    else:
        _print_summary(path, summary)
    print(end="", flush=True)
    if stop():
        console.print(stopped, soft_wrap=True)
        raise SystemExit(stop.code)
    if report.step < where.steps:
        raise ValueError(
            f"stopped at {report.step:,} of {where.steps:,} steps, as all seeds have failed; the files in {path} are "
            "complete"
        )


def _say_not_played(console: "Console", seeds: Sequence[int], played: "evaluate.Evaluation") -> None:
    """Print the seeds whose environments failed before their episodes had ended."""
    for i, message in played.failures.items():
        console.print(f"seed {seeds[i]} was not played to the end: {message}", soft_wrap=True)


@contextlib.contextmanager
def _warnings_as_lines(console: "Console") -> Iterator[None]:
    """Print what fdqn warns of as one line, without the place in its code; other warnings as they are."""
    with warnings.catch_warnings():
        show, shown = warnings.showwarning, set[str]()

        def line(message: Any, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
            if Path(filename).parent == Path(__file__).parent:
                if str(message) not in shown:  # each compiled function may give the same reason
                    console.print(str(message), soft_wrap=True)
                shown.add(str(message))
            else:
                show(message, category, filename, *rest, **more)

        warnings.showwarning = line
        yield


def _stopped_before_compiling(functions: "training.Functions", stop: Callable[[], bool], compiles: bool) -> Any:
    """The same functions; the first call of each, in which it is compiled, stops a run that is to stop."""
    from fdqn import training

    def guarded(f: Callable[..., Any]) -> Callable[..., Any]:
        called = False

        def call(*given: Any) -> Any:
            nonlocal called
            if not called and stop():
                raise training.Stopped
            called = True
            return f(*given)

        return call

    if not compiles:
        return functions
    return functions._replace(
        noise=guarded(functions.noise), collect=guarded(functions.collect), cycle=guarded(functions.cycle)
    )


def _follow(
    console: "Console", settings: Settings, steps: int, reports: "Iterator[training.Report]"
) -> "training.Report":
    """Show the run as it goes: a live line on a terminal, a plain line a report elsewhere. Answers the last report."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    wait = "compiling, about 25 s the first time" if settings.compile else "first cycle"
    if not console.is_terminal:
        console.print(wait)
        for report in reports:
            console.print(f"step {report.step:,} of {steps:,}  {_status(settings, report)}")
        return report
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.description}"), console=console) as progress:
        task = progress.add_task(wait, total=steps)
        for report in reports:
            progress.update(task, completed=report.step, description=_status(settings, report))
    return report


@contextlib.contextmanager
def _episodes(console: "Console", total: int, limit: int) -> "Iterator[evaluate.Progress]":
    """Show how many episodes have ended while they are played: a bar on a terminal, a line now and then elsewhere. The
    time left is an upper bound, that to the step limit.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    began = time.perf_counter()

    def status(steps: int) -> str:
        left = (time.perf_counter() - began) * (limit - steps) / max(steps, 1)
        at_most = f", at most {left // 60:.0f}:{left % 60:02.0f} left" if steps else ""
        return f"step {steps:,} of at most {limit:,}{at_most}"

    if not console.is_terminal:
        due = began + _FIRST_LINE

        def line(ended: int, steps: int) -> None:
            nonlocal due
            if steps and (now := time.perf_counter()) >= due:
                due = now + _NEXT_LINE
                console.print(f"{ended:,} of {total:,} episodes have ended, {status(steps)}", soft_wrap=True)

        yield line
        return
    columns = (SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("episodes", total=total)
        yield lambda ended, steps: progress.update(task, completed=ended, description=f"episodes, {status(steps)}")


def _player(compiling: bool, env: Any, network: Any, epsilon: float) -> "evaluate.Play | None":
    """The compiled step of evaluation episodes; a host environment has none."""
    from fdqn import compile, envs

    return compile.player(env, network, epsilon) if compiling and not envs.on_host(env) else None


def _saying_failures(
    console: "Console",
    settings: Settings,
    reports: "Iterator[training.Report]",
    games: Any,
    since: int,
    gone: set[int],
) -> "Iterator[training.Report]":
    """The same reports; each seed that fails is said once, with what its environments said, if it was in this process,
    which goes on from step `since`, and its lane added to those that are gone."""
    from fdqn import history

    said: set[int] = set()
    for report in reports:
        failures = history.failed_seeds(settings, report)
        for seed in failures.keys() - said:
            step, cause = failures[seed]
            words = None if games is None else games.broken.get(seed - settings.seed)
            known = words and cause == "environment" and step >= since
            why = history.why(cause) + (f", {words}" if known else "")
            console.print(f"seed {seed} failed at step {step:,}: {why}; it learns no more", soft_wrap=True)
        said.update(failures)
        gone.update(seed - settings.seed for seed in failures)
        yield report


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def _status(settings: Settings, report: "training.Report") -> str:
    import numpy as np

    from fdqn import statistics

    alive = report.failed < 0
    returns = report.returns[alive & np.isfinite(report.returns)]
    parts = [f"return {statistics.iqm(returns):.1f}" if len(returns) else "no episode has ended since"]
    if report.evaluation is not None:
        greedy = report.evaluation[alive].mean(1)
        if len(greedy := greedy[np.isfinite(greedy)]):
            parts.append(f"greedy {statistics.iqm(greedy):.1f}")
    if len(loss := report.loss[alive & np.isfinite(report.loss)]):
        parts.append(f"loss {np.median(loss):.3g}")
    if report.learning_seconds:
        parts.append(f"{report.learning_updates * settings.seeds / report.learning_seconds:,.0f} seed-updates/s")
    return "  ".join(parts)


def _eval(command: Eval, emit: Emit) -> None:
    console = _ready()
    import torch

    from fdqn import build, check, compile, envs, evaluate, runs, tree, video

    if command.evaluate_steps:  # 0 is the default
        check.count("evaluate_steps", command.evaluate_steps, 1)
    if command.video is not None:
        _check_video(command.video)
    run = runs.trained(command.run, command.checkpoint, command.env)
    name, settings = command.env or run.settings.env, run.settings
    network = build.network(settings)
    env, trained = envs.find(name), envs.find(settings.env).spec
    if (env.spec.obs_shape, env.spec.actions) != (trained.obs_shape, trained.actions):
        raise ValueError(
            f"env: expected observations {list(trained.obs_shape)} and {trained.actions} actions as in training, "
            f"got {list(env.spec.obs_shape)} and {env.spec.actions} in {name}"
        )
    if (env.spec.obs_dtype == torch.uint8) != (trained.obs_dtype == torch.uint8):  # which a network may scale
        raise ValueError(f"env: expected {trained.obs_dtype} as in training, got {env.spec.obs_dtype} in {name}")
    if command.video is not None:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # nothing goes to a screen, which there may not be
        video.check_renders(name, env)
    seeds, epsilon = _chosen(command.seed, build.seeds(settings)), settings.evaluate_epsilon
    failed = [seed for seed in run.failed if seed in seeds]
    device = build.device(dataclasses.replace(settings, device=command.device or _own_device(settings)))
    compile.prepare_cuda(tf32=settings.tf32 and device.type == "cuda")
    lanes = [build.seeds(settings).index(seed) for seed in seeds]
    params, keys = tree.to(tree.index(run.params, lanes), device), build.keys(settings)[lanes]
    fast = _player(command.compile and settings.compile, env, network, epsilon)

    episodes = run.settings.evaluate_episodes if command.episodes is None else command.episodes
    limit = command.evaluate_steps or runs.step_limit(command.run, run.settings, env.spec)
    with _warnings_as_lines(console), _episodes(console, len(seeds) * episodes, limit) as progress:
        played = evaluate.greedy(
            env, network, params, keys, episodes, epsilon=epsilon, limit=limit, fast=fast, progress=progress
        )
    _say_not_played(console, seeds, played)
    record = runs.returns_record(played.returns, failed, seeds, (played.unfinished, played.limit))
    if command.json:
        checkpoint_info = {} if command.checkpoint is None else {"checkpoint": run.step}
        emit({**record, **({"seeds": seeds} if command.seed else {}), **checkpoint_info})
    else:
        at = "" if command.checkpoint is None else f", checkpoint of step {run.step:,}"
        _print_seeds(f"{name}, {episodes} greedy episodes a seed{at}", seeds, failed, {"return": record})
    if command.video is not None:
        returns = played.returns.copy()
        returns[[seeds.index(seed) for seed in failed]] = math.nan
        with _episodes(console, 3, limit) as progress:
            drawn, film = video.draw(
                name, env, network, params, keys, seeds, returns,
                epsilon=epsilon, limit=limit, fast=fast, progress=progress,
            )  # fmt: skip
        _write_video(command.video, drawn)
        steps = "step" if film.every == 1 else f"{film.every} steps"
        frames = f"{len(film.scenes):,} frames, one every {steps}, {_bytes(len(drawn))}"
        console.print(f"video {command.video}: {frames}", soft_wrap=True)


def _chosen(asked: Sequence[int], trained: range) -> list[int]:
    """The seeds to play."""
    for seed in asked:
        if seed not in trained:
            raise ValueError(f"seed: expected trained seeds, {trained[0]} to {trained[-1]}, got {seed}")
        if asked.count(seed) > 1:
            raise ValueError(f"seed: expected distinct seeds, got {seed} {asked.count(seed)} times; name it once")
    return list(asked or trained)


def _own_device(settings: Settings) -> Literal["auto", "cpu", "cuda"]:
    """The device that a run asked for, in place of CUDA any: a run from elsewhere may be played without."""
    return "auto" if settings.device == "cuda" else settings.device


def _check_video(file: Path) -> None:
    if file.suffix.lower() != ".gif":
        raise ValueError(f"video: expected a name that ends in .gif, got {str(file)!r}")
    if not file.parent.is_dir():
        raise ValueError(
            f"video: expected a file in a folder that is there, got {str(file)!r}; make {file.parent} first"
        )


def _write_video(file: Path, content: bytes) -> None:
    from fdqn import files

    try:
        files.write(file, content)
    except (OSError, ValueError) as error:
        raise ValueError(f"video: {error}") from None


def _report(command: Report, emit: Emit) -> None:
    from fdqn import files, runs

    if not command.runs:
        raise ValueError("runs: expected at least one run folder, got none")
    read = [runs.read(path) for path in command.runs]
    own = read[0].path / "curve.png" if len(read) == 1 else read[0].path.resolve().parent / "comparison.png"
    read = [run._replace(path=Path(process.shown(run.path))) for run in read]
    picture, drawn = command.out or own, io.BytesIO()
    try:
        if len(read) == 1:
            runs.picture(drawn, read[0].curve, read[0].summary)
        else:
            runs.comparison(drawn, read)
        files.write(picture, drawn.getvalue())
    except (OSError, ValueError) as error:
        raise ValueError(f"out: {error}") from None
    if command.json:
        emit([{"run": str(run.path), **run.summary} for run in read])
    elif len(read) == 1:
        _print_summary(read[0].path, read[0].summary)
    else:
        _print_comparison(read, picture)


def _export(command: Export, emit: Emit) -> None:
    from fdqn import export

    written = export.write(command.run, command.seed, command.out, command.prefix, command.env, command.checkpoint)
    written |= {name: process.shown(written[name]) for name in ("run", "out", "read")}
    if command.json:
        emit(written)
        return
    out = _results()
    checkpoint_info = "" if command.checkpoint is None else f" at step {written['checkpoint']:,}"
    out.print(
        f"seed {command.seed} of {command.run}{checkpoint_info}: {written['what']}, {_bytes(written['bytes'])} in "
        f"{command.out}",
        soft_wrap=True,
    )
    out.print(f"read it with {written['read']}", soft_wrap=True)


def _envs(command: Envs, emit: Emit) -> None:
    from fdqn import envs

    if command.json:
        emit({name: envs.describe(name) for name in envs.names()})
        return
    from rich.table import Table

    table = Table("environment", "what it is", box=None)
    for name in envs.names():
        table.add_row(name, envs.describe(name))
    table.add_section()
    table.add_row("gym:NAME", "any environment of Gymnasium with discrete actions")
    table.add_row("ale:GAME", "a game of Atari, such as ale:Breakout; pip install 'fdqn[atari]'")
    table.add_row("package.module:name", "your own: an Env, a HostEnv, or a gymnasium.Env class")
    _results().print(table)


def _print_summary(path: Path, summary: dict[str, Any]) -> None:
    columns = {"greedy": summary["final_return"], "training": summary["train_return"]}
    if "gymnasium_return" in summary:
        columns[f"gymnasium's {summary['gymnasium_return']['env']}"] = summary["gymnasium_return"]
    _print_seeds(
        f"{summary['env']}, mean return a seed after {summary['steps']:,} steps",
        summary["seeds"],
        summary["failed_seeds"],
        columns,
    )
    out = _results()
    if summary["failed_seeds"]:
        out.print(f"failed seeds, left out of the means: {summary['failed_seeds']}")
    rates = (summary["seed_updates_per_second"], summary["env_steps_per_second"])
    if None not in rates:
        out.print(f"{rates[0]:,.0f} seed-updates/s, {rates[1]:,.0f} environment steps/s over all seeds")
    out.print(f"{summary['wall_seconds']:.1f} s in all, {summary['compile_seconds']:.1f} s of it compiling")
    out.print(f"run folder {path}, picture {path / 'curve.png'}", soft_wrap=True)


def _print_seeds(title: str, seeds: list[int], failed: list[int], columns: dict[str, dict[str, Any]]) -> None:
    from rich.table import Table

    from fdqn import runs

    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    table.add_column("seed", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    for i, seed in enumerate(seeds[:_ROWS]):
        values = [record["per_seed"][i] for record in columns.values()]
        missing = "failed" if seed in failed else "-"
        table.add_row(str(seed), *(missing if x is None else f"{x:.1f}" for x in values))
    if len(seeds) > _ROWS:
        table.add_row("...", *(f"and {len(seeds) - _ROWS} more" for _ in columns))
    table.add_section()
    records = list(columns.values())
    table.add_row(runs.interval_heading(records), *map(runs.interval_text, records), style="bold")
    unfinished = [runs.unfinished_text(record) for record in records]
    if any(unfinished):
        table.add_row("cut", *unfinished)
    out = _results()
    out.print(table)
    if any(unfinished):
        out.print("cut: episodes that had not ended at the step limit; raise it with --evaluate-steps", soft_wrap=True)


def _print_comparison(read: "list[runs.Run]", picture: Path) -> None:
    from rich.table import Table

    from fdqn import runs

    table = Table("run", "env", box=None, header_style="bold")
    headings = [
        f"{name} {runs.interval_heading([run.summary[key] for run in read])}"
        for name, key in (("greedy", "final_return"), ("training", "train_return"))
    ]
    for name in ("seeds", "failed", "steps", *headings, "seed-updates/s"):
        table.add_column(name, justify="right")
    for run in read:
        summary = run.summary
        rate = summary["seed_updates_per_second"]
        table.add_row(
            str(run.path),
            summary["env"],
            str(len(summary["seeds"])),
            str(len(summary["failed_seeds"])),
            f"{summary['steps']:,}",
            runs.interval_text(summary["final_return"]),
            runs.interval_text(summary["train_return"]),
            f"{rate:,.0f}" if rate is not None and math.isfinite(rate) else "",
        )
    out = _results()
    out.print(table)
    out.print(f"picture {picture}", soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console

    class Patient(Console):
        """When whoever read what is said has gone, the run goes on in silence."""

        def print(self, *objects: Any, **how: Any) -> None:
            super().print(*map(_as_typed, objects), **how)

        def on_broken_pipe(self) -> None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    return Patient(stderr=True, highlight=False, markup=False, emoji=False)


def _as_typed(x: Any) -> Any:
    """Return text with its paths as the user typed them, and other objects unchanged."""
    return process.shown(x) if isinstance(x, str) else x


def _results() -> "Console":
    from rich.console import Console

    # Elsewhere than on a terminal a table keeps its columns, however narrow rich would think the page is.
    class Plain(Console):
        """When whoever read the results has gone, it is as where anything else is printed."""

        def print(self, *objects: Any, **how: Any) -> None:
            super().print(*map(_as_typed, objects), **how)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    console = Plain(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Plain(highlight=False, markup=False, width=160)
