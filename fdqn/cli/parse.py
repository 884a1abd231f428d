"""Parse the arguments of the command `fdqn`: a dataclass for each command, and messages for invalid arguments.

This module does not import torch, so that `--help` is quick.
"""

import contextlib
import dataclasses
import difflib
import functools
import io
import math
import operator
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, cast

import tyro

from fdqn.cli import completion, several
from fdqn.experiment import presets, process, tracking
from fdqn.experiment import settings as groups
from fdqn.experiment.presets import PRESETS, PresetName
from fdqn.experiment.settings import Settings
from fdqn.experiment.tracking import TagSet, TrackerName

Wrappers = Annotated[tuple[str, ...], tyro.conf.arg(metavar="package.module:WRAPPER [...]")]


@dataclass(frozen=True)
class Train:
    """Settings of a run, and the form of its results."""

    settings: Settings | None
    """Settings of a single run; None for a sweep, and with --best-of."""
    preset: PresetName | None = None
    json: bool = False
    sweep: dict[str, Any] | None = None
    """Arguments of `sweep.plan`; None without several values of a flag."""
    halving: int | None = None
    best_of: Path | None = None
    given: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings that were given as flags."""
    track: tuple[TrackerName, ...] = ()
    tags: TagSet = "cleanrl"
    shards: "Sharding | None" = None


@dataclass(frozen=True)
class Sharding:
    """Division of a run into shards, and where they are trained."""

    count: int
    number: int | None = None
    """Shard to train here; None for those that a launcher assigns, or all."""
    ray: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True)
class SettingsFlags:
    """Settings of a run, in groups."""

    run: tyro.conf.OmitArgPrefixes[groups.RunSettings]
    iteration: tyro.conf.OmitArgPrefixes[groups.IterationSettings]
    replay: tyro.conf.OmitArgPrefixes[groups.ReplaySettings]
    exploration: tyro.conf.OmitArgPrefixes[groups.ExplorationSettings]
    network: tyro.conf.OmitArgPrefixes[groups.NetworkSettings]
    optimizer: tyro.conf.OmitArgPrefixes[groups.OptimizerSettings]
    algorithm: tyro.conf.OmitArgPrefixes[groups.AlgorithmSettings]
    evaluation: tyro.conf.OmitArgPrefixes[groups.EvaluationSettings]
    execution: tyro.conf.OmitArgPrefixes[groups.ExecutionSettings]


@dataclass(frozen=True)
class TrainFlags(SettingsFlags):
    """Train many seeds at once. Report the interquartile mean of their returns with its 95% bootstrap interval, or
    with the range of the seeds if there are fewer than 5.

    Several values of a flag make a sweep, one setting per combination: --gamma 0.9 0.99 --learning-rate 1e-4 1e-3.
    Settings are drawn at random from a range, on a log: or lin: scale: --learning-rate log:1e-5:1e-2 --samples 64.
    Commas join the layer sizes of a network: --hidden 64,64 120,84. Switches take values: --double true false."""

    preset: PresetName | None = None
    """Published settings to use instead of the defaults, as listed by fdqn presets. Other flags override them."""
    samples: int = 16
    """Number of settings to draw if a flag has a range such as log:1e-5:1e-2 or lin:0.9:0.999."""
    pbt_every: Annotated[int | None, tyro.conf.arg(metavar="STEPS")] = None
    """Population based training. Each seed has a population, whose initial members are the settings of the sweep.
    Every STEPS environment steps per seed, the worst 20% of the members of a population copy members of the best 20%.
    They copy parameters and hyper-parameters, and multiply the copied hyper-parameters by 0.8 or 1.2.
    For gamma, betas and decays, the distance to 1 is multiplied.
    A hyper-parameter stays between the lowest and the highest of its values, or in its range.
    STEPS is a multiple of --report-every. The result is the best member of each seed."""
    halving: Annotated[int | None, tyro.conf.arg(metavar="ETA")] = None
    """Successive halving: train all settings of a sweep briefly, train the best 1/ETA of them longer, and so on.
    Settings are dropped by their training returns, which favours those that learn early and explore briefly.
    The last 2 to ETA settings are trained to the end. A common ETA is 3."""
    best_of: Annotated[Path | None, tyro.conf.arg(metavar="SWEEP")] = None
    """Train the best setting of a finished sweep on seeds that the sweep did not use.
    The only other flags are --seeds, --seed, --out, --track, --tags and --json."""
    shards: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Divide the learners (seeds, or settings x seeds) into N equal shards, which train independently.
    Run the same command with the same --out in several processes, on any machines that can write to it.
    Each trains the shards that no other process trains, one after the other, and takes over those of lost processes.
    When all have finished, they are merged.
    fdqn resume RUN trains those that are left."""
    shard: Annotated[int | None, tyro.conf.arg(metavar="K")] = None
    """Train only shard K, 0 to N - 1; with --shards and --out.
    By default those that RANK (torchrun), SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX (Kubernetes) assigns."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="{auto,local,ADDRESS}")] = None
    """Train the shards as tasks of Ray; needs pip install 'fdqn[ray]'.
    auto: on the cluster to which this machine belongs. local: on this machine. ADDRESS: on the cluster at HOST:PORT."""
    shard_cpus: float = 1.0
    """CPU cores of each shard; with --ray."""
    shard_gpus: float = 0.0
    """GPUs of each shard, also a fraction such as 0.25; with --ray."""
    track: tuple[TrackerName, ...] = ()
    """Trackers to send metrics to while the run trains. Each needs pip install 'fdqn[NAME]'.
    TensorBoard files are in RUN/tensorboard. Environment variables such as WANDB_MODE and MLFLOW_TRACKING_URI apply."""
    tags: TagSet = "cleanrl"
    """Names of the metrics in trackers: those of CleanRL or of Stable-Baselines3."""
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
    wrappers: Wrappers = ()
    """Wrappers of the run; required if they are your own code."""
    evaluate_episodes: int | None = None
    """Evaluation episodes per seed from now on; by default unchanged."""
    evaluate_steps: int | None = None
    """Step limit of an evaluation episode from now on; by default unchanged."""
    device: Annotated[str | None, tyro.conf.arg(metavar="{auto,cpu,cuda,cuda:N}")] = None
    """Device to continue on, also when the run is resumed again; by default unchanged."""
    track: tuple[Literal[TrackerName, "none"], ...] | None = None
    """Trackers from now on; by default unchanged. With none, the run continues without them this time.
    A new tracker shows the run from its start, also a finished run."""
    tags: TagSet | None = None
    """Names of the metrics in trackers from now on; by default unchanged."""
    json: bool = False
    """Print only the summary, as JSON."""


@dataclass(frozen=True)
class Merge:
    """Merge the shards of a run that have finished, and name those that have not.
    RUN is then a run folder like any other. The process that finishes the last shard merges them by itself."""

    run: tyro.conf.Positional[Path]
    """Folder of a sharded run."""
    json: bool = False
    """Print only the summary, as JSON."""


@dataclass(frozen=True)
class Eval:
    """Play greedy episodes with the trained seeds of a run."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    env: str | None = None
    """Environment to play, built in or gym:NAME; by default the one trained on, with its arguments and wrappers."""
    wrappers: Wrappers = ()
    """Wrappers of the run; required if they are your own code."""
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="{best,last,STEP}")] = None
    """Checkpoint to play: best (highest training return), last (end of the run) or a step; by default last."""
    setting: int | None = None
    """Setting of a sweep to play, by its number in settings.csv."""
    seed: tuple[int, ...] = ()
    """Trained seeds to play; by default all."""
    episodes: int | None = None
    """Episodes per seed; by default the run's --evaluate-episodes."""
    evaluate_steps: int | None = None
    """Step limit of an episode; by default that of the run (see fdqn train --help)."""
    device: Annotated[str | None, tyro.conf.arg(metavar="{auto,cpu,cuda,cuda:N}")] = None
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
    """Summarise one run, or several in a table and one picture of their learning curves.
    To test whether runs differ, use fdqn compare."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path | None = None
    """PNG file to write; by default curve.png in a single folder, comparison.png next to the first of several."""
    html: Path | None = None
    """HTML file to write instead of the PNG: an interactive page that needs no network.
    Needs pip install 'fdqn[html]'."""
    json: bool = False
    """Print only the summaries, as JSON."""


@dataclass(frozen=True)
class Watch:
    """Serve an interactive page of a run or sweep on this machine, and update it while the run trains, until Ctrl-C.
    Needs pip install 'fdqn[html]'."""

    run: tyro.conf.Positional[Path]
    """Run folder, or folder of a sweep."""
    port: int = 6060
    """TCP port on 127.0.0.1; 0 for a free port."""
    json: bool = False
    """Print only the URL, as JSON."""


@dataclass(frozen=True)
class Compare:
    """Compare returns: differences with intervals, probability of improvement, permutation tests and power.
    An arm is a run, a setting of a sweep or a CSV file of returns. Each arm is compared with the first.
    To see learning curves alone, use fdqn report."""

    arms: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ARM [ARM ...]")]
    """Run folders, SWEEP:K for setting K of a sweep, a sweep's folder for all of its settings, or CSV files.
    A CSV file has one return per seed, or, with the columns seed and step, a learning curve per seed.
    Returns are one row or column of numbers, or a column named return, score, episodic_return or as in CleanRL's files.
    The columns seed, step or global_step, and one of exp_name, name or algorithm are optional.
    FILE:NAME is one of several arms in a file.
    Join files of one seed, such as monitor.csv or an export of TensorBoard, into one with a column seed."""
    measure: Literal["greedy", "training", "gymnasium"] | None = None
    """Returns of runs to compare: of greedy episodes, of the last training episodes, or in Gymnasium's environment.
    By default greedy, or training if a run has no greedy episodes."""
    paired: bool = False
    """Compare seed by seed. The default if all arms have the same seeds."""
    unpaired: bool = False
    """Compare as independent samples. The default if the seeds are different or unknown."""
    anyway: bool = False
    """Compare runs of different environments or different numbers of steps, which are refused otherwise."""
    confidence: float = 0.95
    """Nominal coverage of the intervals."""
    optimum: float | None = None
    """Return that counts as optimal. Adds the optimality gap, the mean of max(0, optimum - return)."""
    out: Path | None = None
    """PNG file to write; by default compare.png next to the first arm."""
    json: bool = False
    """Print only the comparison, as JSON."""


@dataclass(frozen=True)
class Export:
    """Write one trained seed of a run to a file that PyTorch or onnxruntime reads, with --seed and --out.
    Write the whole run as a model repository of the Hugging Face Hub with --hub."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    seed: int | None = None
    """Trained seed to export. With --hub, the seed of policy.pt2; by default the seed with the median return."""
    out: Path | None = None
    """File to write: .pt or .pth for a state_dict, .pt2 for the policy by torch.export, .onnx for the policy as ONNX.
    The policy maps obs [B, ...] to Q-values [B, actions] and runs without fdqn."""
    setting: int | None = None
    """Setting of a sweep to export, by its number in settings.csv."""
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="{best,last,STEP}")] = None
    """Checkpoint to export: best (highest training return), last (end of the run) or a step; by default last."""
    prefix: str = ""
    """Prefix of the names in the state_dict, including its dot, such as 'linear_relu_stack.'; none by default."""
    env: str | None = None
    """Environment of the run; required if it is your own code."""
    wrappers: Wrappers = ()
    """Wrappers of the run; required if they are your own code."""
    hub: Path | None = None
    """Folder to create with the parameters of all seeds, a model card with the results, and the policy of one seed."""
    video: Path | None = None
    """With --hub, the .mp4 or .gif file to show in the model card; by default one in the run folder."""
    push: Annotated[str | None, tyro.conf.arg(metavar="OWNER/NAME")] = None
    """With --hub, repository on the Hugging Face Hub to upload the folder to; it is created if it does not exist.
    Needs pip install 'fdqn[hub]', and a token from hf auth login or in HF_TOKEN."""
    json: bool = False
    """Print only the result, as JSON."""


@dataclass(frozen=True)
class SummaryFlags(SettingsFlags):
    """Print the layers of the network, parameters, memory and floating-point operations of a run, without training.

    fdqn summary RUN describes a run folder. It takes only --json, and --env and --wrapper for your own code.
    Without RUN, the flags are those of fdqn train."""

    preset: PresetName | None = None
    """Published settings to use instead of the defaults. Other flags override them."""
    json: bool = False
    """Print only JSON."""


@dataclass(frozen=True)
class Summary:
    """Print the sizes of a run folder, or of a run with these settings."""

    folder: Path | None
    settings: Settings | None = None
    env: str | None = None
    wrappers: tuple[str, ...] = ()
    json: bool = False


@dataclass(frozen=True)
class Envs:
    """List the environments."""

    json: bool = False
    """Print only JSON."""


@dataclass(frozen=True)
class Presets:
    """List the presets: published settings, with the returns that were published and those that fdqn reaches."""

    json: bool = False
    """Print only JSON."""


@dataclass(frozen=True)
class Version:
    """Print the versions of fdqn, Python, torch and the C++ compiler, and the engine selected on this machine."""

    json: bool = False


Command = Version | Train | Resume | Merge | Eval | Report | Watch | Compare | Export | Summary | Envs | Presets
COMMANDS = {
    "train": TrainFlags,
    "resume": Resume,
    "merge": Merge,
    "eval": Eval,
    "report": Report,
    "watch": Watch,
    "compare": Compare,
    "export": Export,
    "summary": SummaryFlags,
    "envs": Envs,
    "presets": Presets,
}


def parse(arguments: list[str]) -> Command:
    """Parse the arguments into a command. Exits with one line on standard error if they are invalid."""
    first = arguments[0] if arguments else "--help"
    if first.startswith("--completion="):
        first, arguments = "--completion", [*first.split("=", 1), *arguments[1:]]
    if first == "--version":
        return _version(arguments)
    if first == "--completion":
        print(completion.script(_shell(arguments), union(subcommands())))
        raise SystemExit(0)
    if first not in (*COMMANDS, "-h", "--help"):
        what = "flag" if first.startswith("-") else "command"
        _refuse(f"unknown {what} {first!r}{_nearest(first, list(COMMANDS), 'fdqn --help')}")
    arguments = _joined_wrappers(arguments)
    flags = [_flag(word) for word in arguments if word.startswith("--")]
    found = several.Several(arguments, {}, {})
    if first in ("train", "summary"):
        try:
            found = several.split(arguments)
        except ValueError as error:
            _refuse(f"flag --{_dashed(error)}")
        arguments = found.arguments
    if twice := [word for word in flags if flags.count(word) > 1]:
        _refuse(f"flag --{twice[0]}: expected once, got {flags.count(twice[0])} times")
    choices = subcommands()
    if first in ("train", "summary"):
        flag_type, at = COMMANDS[first], [*COMMANDS].index(first)
        choices[at] = Annotated[flag_type, tyro.conf.subcommand(first, default=_defaults(flag_type, arguments))]
    message = io.StringIO()
    try:
        with process.REDIRECTING, contextlib.redirect_stderr(message):
            command, unknown = tyro.cli(
                union(choices),
                prog="fdqn",
                description="Deep Q-learning as pure functions: many seeds at once.\n\nfdqn --version prints versions. "
                "fdqn --completion {bash,zsh,fish} prints a completion script for the shell.",
                args=arguments or ["--help"],
                return_unknown_args=True,
            )
    except SystemExit as end:
        if end.code:
            _refuse(_sentence(message.getvalue()))
        raise
    folder = Path(unknown.pop(0)) if first == "summary" and unknown and not unknown[0].startswith("-") else None
    if unknown:
        word = next((given for given in arguments if given.endswith(f"={unknown[0]}")), unknown[0])
        what = "flag" if word.startswith("-") else "argument"
        _refuse(f"unknown {what} {word!r}{_nearest(word, _flags(command), f'fdqn {first} --help')}")
    if isinstance(command, Export):
        _check_export(command)
    if isinstance(command, SummaryFlags):
        return _summary(command, folder, flags, found)
    return _train(command, flags, found) if isinstance(command, TrainFlags) else command


def _check_export(command: Export) -> None:
    """Exit with a usage error unless the flags are those for a file, or those for a model repository."""
    if command.hub is not None:
        for name in ("out", "setting", "checkpoint", "prefix"):
            if (value := getattr(command, name)) not in (None, ""):
                _refuse(f"flag --{name}: expected none with --hub, got {str(value)!r}; omit one of them")
        return
    for name, kind in (("seed", "INT"), ("out", "PATH")):
        if getattr(command, name) is None:
            _refuse(f"Missing from fdqn export: --{name} {kind}, or --hub PATH for a model repository")
    for name in ("push", "video"):
        if getattr(command, name) is not None:
            _refuse(f"flag --{name}: expected --hub with it, got none")


def subcommands() -> list[Any]:
    """Return the commands with their names."""
    return [Annotated[command, tyro.conf.subcommand(name)] for name, command in COMMANDS.items()]


def union(choices: list[Any]) -> Any:
    """Return the union of several types, for `tyro.cli`."""
    return functools.reduce(operator.or_, choices)


def _version(arguments: list[str]) -> Version:
    if others := [word for word in arguments[1:] if word != "--json"]:
        _refuse(f"argument {others[0]!r}: expected none with --version but --json; omit it")
    return Version("--json" in arguments)


def _shell(arguments: list[str]) -> completion.Shell:
    """Return the shell of `--completion SHELL` or `--completion=SHELL`."""
    words = arguments[1:]
    if len(words) != 1 or words[0] not in completion.SHELLS:
        _refuse(f"flag --completion: expected {' or '.join(completion.SHELLS)}, got {' '.join(words) or 'none'}")
    return cast(completion.Shell, words[0])


def _dashed(error: TypeError | ValueError) -> str:
    """Return a message about a setting as one about its flag, `--wrapper` for each of the wrappers."""
    names = {field.name for field in dataclasses.fields(Settings)}
    text = re.sub(r"\w+", lambda word: word[0].replace("_", "-") if word[0] in names else word[0], str(error))
    return re.sub("^wrappers:", "wrapper:", text)


def _joined_wrappers(arguments: list[str]) -> list[str]:
    """Replace repeated flags `--wrapper NAME` by one flag `--wrappers NAME ...`."""
    others, wrappers = [], []
    rest = iter(arguments)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag != "--wrapper":
            others.append(word)
            continue
        wrappers.append(value if equals else next(rest, "--"))
        if wrappers[-1].startswith("--"):
            _refuse("flag --wrapper: expected a name such as package.module:Wrapper, got none")
    return [*others, "--wrappers", *wrappers] if wrappers else others


def _defaults(kind: Any, arguments: list[str]) -> Any:
    """Return the defaults of the flags of settings, which depend on the preset and the algorithm."""
    preset, algorithm, env = (_value(arguments, flag) for flag in ("--preset", "--algorithm", "--env"))
    known = {"algorithm": algorithm} if algorithm in groups.ALGORITHMS else {}
    if preset is None:
        return _grouped(kind, groups.make(known))
    if preset not in PRESETS:
        _refuse(f"flag --preset: expected a preset, got {preset!r}{_nearest(preset, list(PRESETS), 'fdqn presets')}")
    if env is None and {"--help", "-h"} & set(arguments):
        env = presets.example(cast(PresetName, preset))
    return _grouped(kind, groups.make(known, _published(preset, env)))


def _published(preset: str, env: str | None) -> dict[str, Any]:
    """Return the settings of a preset. Exits with a usage error if it has none for the environment."""
    try:
        return presets.values(preset, env)
    except ValueError as error:
        if env is None:
            suggested = presets.example(cast(PresetName, preset))
            _refuse(f"flag --preset {preset}: expected --env with it, such as --env {suggested}, got none")
        _refuse(f"flag --{error}")


def _value(arguments: list[str], flag: str) -> str | None:
    """Return the value of a flag among the arguments, if it is given."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith(f"{flag}=") else [word])]
    return next(iter(words[words.index(flag) + 1 :]), None) if flag in words else None


def _grouped(kind: Any, settings: Settings) -> Any:
    """Split settings into the groups of `fdqn train --help`, the fields of `SettingsFlags`."""
    values = dataclasses.asdict(settings)
    parts: list[Any] = [
        group(**{field.name: values[field.name] for field in dataclasses.fields(group)}) for group in groups.GROUPS
    ]
    return kind(*parts)


_WITH_BEST_OF = ("best-of", "seeds", "seed", "out", "track", "tags", "json")


def _check_trackers(track: tuple[str, ...], names: list[str]) -> None:
    """Exit with a usage error for a tracker that occurs twice, and for --tags without a tracker."""
    try:
        tracking.check_names(track)
    except ValueError as error:
        _refuse(f"flag --{error}")
    if "track" in names and not track:
        _refuse("flag --track: expected a tracker, such as tensorboard, got none")
    if "tags" in names and not track:
        _refuse("flag --tags: expected a tracker with it, such as --track tensorboard, got none")


def _train(flags: TrainFlags, names: list[str], found: several.Several) -> Train:
    """Return the command for parsed flags. `names` are those that were given, as opposed to defaults."""
    swept = {**found.values, **found.draws}
    given = _given(flags, names)
    given = {name: value for name, value in given.items() if name not in swept}
    command = Train(None, flags.preset, flags.json, given=given, track=flags.track, tags=flags.tags)
    _check_trackers(flags.track, names)
    if flags.best_of is not None:
        if others := [name for name in names if name not in _WITH_BEST_OF]:
            known = "--seeds, --seed, --out, --track, --tags and --json"
            _refuse(f"flag --{others[0]}: expected none but {known} with --best-of; omit it")
        if swept:
            _refuse(f"flag --{next(iter(swept))}: expected one value with --best-of, got several")
        return dataclasses.replace(command, best_of=flags.best_of)
    if "samples" in names and not found.draws:
        _refuse("flag --samples: expected a flag with a range such as --learning-rate log:1e-5:1e-2, got none")
    if flags.shards is not None:
        command = dataclasses.replace(command, shards=_shards(flags, names))
    elif others := [name for name in names if name in ("shard", "ray", "shard-cpus", "shard-gpus")]:
        _refuse(f"flag --{others[0]}: expected --shards with it, got none")
    if flags.pbt_every is not None and (not swept or flags.pbt_every < 1):
        got = flags.pbt_every if swept else "none"
        expected = "at least 1" if swept else "a flag with several values such as --learning-rate 1e-4 1e-3"
        _refuse(f"flag --pbt-every: expected {expected}, got {got}")
    if flags.halving is not None and not swept:
        _refuse("flag --halving: expected a flag with several values or a range, got none; omit it")
    published = _published(flags.preset, given.get("env")) if flags.preset else None
    if swept:
        plan = dict(given=given, values=found.values, draws=found.draws, samples=flags.samples, published=published)
        if flags.pbt_every is not None:
            plan["pbt_every"] = flags.pbt_every
        return dataclasses.replace(command, sweep=plan, halving=flags.halving)
    return dataclasses.replace(command, settings=_made(given, published))


def _shards(flags: TrainFlags, names: list[str]) -> Sharding:
    """Return how the run is divided. Exits with a usage error for flags that cannot be used together."""
    for name in ("halving", "pbt-every", "track"):
        if name in names:
            _refuse(f"flag --{name}: expected none with --shards, got both; omit one of them")
    if flags.ray is None and (others := [name for name in names if name in ("shard-cpus", "shard-gpus")]):
        _refuse(f"flag --{others[0]}: expected --ray with it, got none")
    if flags.shard is not None and flags.ray is not None:
        _refuse("flag --shard: expected none with --ray, which trains all of them; omit one of them")
    if flags.shard is not None and "out" not in names:
        _refuse("flag --shard: expected --out with it, the folder of the whole run, got none")
    for name, least in (("shard-cpus", flags.shard_cpus), ("shard-gpus", flags.shard_gpus)):
        if not 0 <= least < math.inf:
            _refuse(f"flag --{name}: expected a number from 0, got {least:g}")
    assert flags.shards is not None
    return Sharding(flags.shards, flags.shard, flags.ray, flags.shard_cpus, flags.shard_gpus)


def _given(flags: SettingsFlags, names: list[str]) -> dict[str, Any]:
    """Return the settings that were given as flags."""
    parts = [getattr(flags, field.name) for field in dataclasses.fields(SettingsFlags)]
    values = {name: value for part in parts for name, value in vars(part).items()}
    return {name: values[name] for name in (word.replace("-", "_") for word in names) if name in values}


def _made(given: dict[str, Any], published: dict[str, Any] | None) -> Settings:
    """Make settings. Exits with a usage error if they are invalid."""
    try:
        return groups.make(given, published)
    except (TypeError, ValueError) as error:
        _refuse(f"flag --{_dashed(error)}")


def _summary(flags: SummaryFlags, folder: Path | None, names: list[str], found: several.Several) -> Summary:
    """Return the command for a run folder or for parsed flags. `names` are those that were given."""
    if swept := [*found.values, *found.draws]:
        _refuse(f"flag --{swept[0].replace('_', '-')}: expected one value with summary, got several")
    given = _given(flags, names)
    if folder is None:
        published = _published(flags.preset, given.get("env")) if flags.preset else None
        return Summary(None, _made(given, published), json=flags.json)
    if others := [name for name in names if name not in ("env", "wrappers", "json")]:
        _refuse(f"flag --{others[0]}: expected none but --env, --wrapper and --json with a run; omit it")
    return Summary(folder, None, given.get("env"), given.get("wrappers", ()), flags.json)


def _flag(word: str) -> str:
    """Return the name of a flag without leading dashes, `no-` and the value."""
    return word.split("=")[0].removeprefix("--").replace("_", "-").removeprefix("no-")


def _flags(command: Any) -> list[str]:
    if isinstance(command, SettingsFlags):
        own = {field.name for field in dataclasses.fields(command)}
        own -= {field.name for field in dataclasses.fields(SettingsFlags)}
        fields = [*sorted(own), *(field.name for field in dataclasses.fields(Settings))]
    else:
        fields = [field.name for field in dataclasses.fields(command) if field.name not in ("run", "runs", "arms")]
    return [f"--{name.replace('_', '-')}" for name in fields]


def _nearest(word: str, known: list[str], help: str) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; see `{help}`"


def _sentence(box: str) -> str:
    """Extract the message of tyro as one line: the paragraph after the title of a box drawn in Unicode or -."""
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if text.startswith(("─", "---")):
            paragraphs.append([])
        elif text:
            paragraphs[-1].append(text)
    sentence = " ".join(paragraphs[1] if len(paragraphs) > 1 else paragraphs[0])
    # tyro reports an invalid optional number as two failed alternatives.
    sentence = re.sub(
        r"no type matching .*INT could .* from \['(.*?)'\]\. .*", r"expected a whole number, got '\1'", sentence
    )
    sentence = re.sub(r"(?<=\()'None', |, 'None'", "", sentence)  # for an optional choice
    return sentence.replace("invalid literal for int() with base 10:", "expected a whole number, got")


def _refuse(sentence: str) -> NoReturn:
    """Print a usage error and exit with code 2."""
    print(f"fdqn: {sentence}", file=sys.stderr)
    raise SystemExit(2)
