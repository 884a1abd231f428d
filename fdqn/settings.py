"""What `fdqn train` can be asked: the flags, their units and defaults. No torch here, so that `--help` is quick."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro


@dataclass(frozen=True)
class Settings:
    """Train many seeds of a deep Q-network at once. Report the interquartile mean of their returns with its 95%
    bootstrap interval, or with the range of the seeds if there are fewer than 5."""

    env: str = "cartpole"
    """Environment; `fdqn envs` lists them: ours, gym:NAME, ale:GAME, or package.module:name of your own."""
    seeds: int = 16
    """Lanes: independent learners trained side by side."""
    seed: int = 0
    """Seed of the first lane; lane i has seed + i."""
    steps: int = 100_000
    """Environment steps a seed, all of its environments together, warm-up included."""
    num_envs: int = 10
    """Environments a lane."""
    steps_per_cycle: int = 1
    """Steps of each environment in a cycle."""
    updates_per_cycle: int = 1
    """Updates that follow them."""
    batch_size: int = 128
    """Rows an update."""
    capacity: int = 10_000
    """Rows of replay a lane."""
    learning_starts: int = 1_000
    """Environment steps a seed before the first update."""
    target_period: int = 20
    """Updates between hard target copies."""
    tau: float = 1.0
    """Below 1: a soft target copy of this share at every update instead of hard ones."""
    n_step: int = 1
    """Environment steps that a transition spans; rewards in between are discounted and added up."""
    clip_rewards: bool = False
    """Learn from rewards clipped to [-1, 1]; returns are stated as they are."""
    terminal_on_life_loss: bool = False
    """Learn as if an episode ended where a life is lost, in worlds that count them; returns are of whole episodes."""
    optimizer: Literal["adam", "rmsprop", "nature-rmsprop"] = "adam"
    """What turns gradients into steps. rmsprop is that of MinAtar's paper (centered, decay 0.95, eps 0.01), and
    nature-rmsprop that of the Nature paper, whose eps is in the root, beside the variance of gradients summed over 32
    rows: of their mean, as the loss is here, 0.01 / 32**2."""
    learning_rate: float = 2e-3
    """Step size of the optimizer."""
    gamma: float = 0.99
    """Discount a step, in [0, 1]."""
    max_grad_norm: float = 10.0
    """Global gradient norm above which gradients are scaled down; inf for never."""
    epsilon_start: float = 1.0
    """Share of random actions at the start."""
    epsilon_end: float = 0.05
    """Share of random actions at the end."""
    epsilon_fraction: float = 0.2
    """Share of --steps over which epsilon goes linearly from start to end."""
    random_warmup: bool = False
    """Take uniformly random actions until learning starts (--learning-starts) and anneal epsilon from there, as in the
    papers of both presets. Otherwise epsilon is annealed from the first step."""
    hidden: tuple[int, ...] = (120, 84)
    """Sizes of the hidden layers; none for a linear network. Boards of 10 x 10 and frames from 36 x 36 on have a
    convolutional network instead."""
    dueling: bool = False
    """Split the last layer into the state's value and the actions' advantages."""
    double: bool = True
    """Double Q-learning: the online network chooses the action that the target network values."""
    loss: Literal["mse", "huber"] = "mse"
    """What is made of TD errors."""
    report_every: int = 2_000
    """Environment steps a seed between rows of metrics.csv."""
    evaluate_epsilon: float = 0.0
    """Share of random actions in evaluation, which is greedy but for them."""
    evaluate_episodes: int = 20
    """Evaluation episodes per seed."""
    evaluate_steps: int = 0
    """Step limit of an evaluation episode. The summary counts the episodes that reach it unfinished. 0 uses the
    environment's time limit or, if it has none, 10 times the mean training episode length (1,000 to 27,000)."""
    evaluate_every: int = 0
    """Environment steps a seed between greedy evaluations; 0 for one at the end only."""
    checkpoint_every: int = 20_000
    """Environment steps a seed between checkpoints, rounded up to reports; 0 for one at the end only."""
    keep_checkpoints: int = 2
    """Checkpoints to keep, beside that of the best training return."""
    save_replay: bool = True
    """Keep the replay in checkpoints; without, they are small, and a resumed run is not the undisturbed one: it first
    fills its replay with --learning-starts steps."""
    on_nan: Literal["freeze", "stop"] = "freeze"
    """When a seed's loss or gradient is NaN or infinite: leave that seed as it was, or stop the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where there is one."""
    tf32: bool = False
    """On CUDA, use TF32 for float32 matrix products and convolutions: several times faster, but inputs are rounded to
    10 bits of mantissa."""
    compile: bool = True
    """Compile the step functions; --no-compile is --engine eager, for a debugger."""
    engine: Literal["auto", "eager", "torch.compile", "inductor", "aot"] = "auto"
    """Engine that runs the step functions: eager (operation by operation), torch.compile, inductor (one graph without
    guards), or aot (ahead of time, groups of seeds on threads; CPUs under Linux). auto takes aot there, inductor on
    other CPUs and torch.compile on CUDA. An engine that does not work steps down, with a line that says why."""
    check_compile: bool = True
    """Compare the first compiled step and update with eager execution, and stop the run if they differ."""
    out: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Run folder to make; by default runs/ENV-DATE-TIME."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _is_like(field.default, value):
                raise TypeError(f"{field.name}: expected {_KINDS[type(field.default)]}, got {value!r}")
            if get_origin(field.type) is Literal and value not in (known := get_args(field.type)):
                raise ValueError(f"{field.name}: expected one of {known}, got {value!r}")

    @property
    def compiles(self) -> bool:
        """Return True if the step functions are compiled."""
        return self.compile and self.engine != "eager"


_CLASSIC: dict[str, Any] = {
    "batch_size": 32,
    "optimizer": "rmsprop",
    "learning_rate": 2.5e-4,
    "max_grad_norm": math.inf,
    "epsilon_end": 0.1,
    "random_warmup": True,
    "double": False,
    "loss": "huber",
}

Preset = Literal["minatar", "nature"]

PRESETS: dict[Preset, dict[str, Any]] = {
    "minatar": {
        **_CLASSIC,
        "steps": 5_000_000,
        "num_envs": 1,
        "capacity": 100_000,
        "learning_starts": 5_000,
        "target_period": 1_000,
        "epsilon_fraction": 0.02,
        "report_every": 25_000,
        "checkpoint_every": 100_000,
    },
    "nature": {
        **_CLASSIC,
        "optimizer": "nature-rmsprop",
        "seeds": 1,
        "steps": 10_000_000,
        "num_envs": 4,
        "capacity": 1_000_000,
        "learning_starts": 50_000,
        "target_period": 10_000,
        "epsilon_fraction": 0.1,
        "clip_rewards": True,
        "terminal_on_life_loss": True,
        "evaluate_epsilon": 0.05,
        "evaluate_episodes": 30,
        "report_every": 50_000,
        "checkpoint_every": 1_000_000,
    },
}
"""Settings that papers published, all but the environment. What differs from the authors' code:

minatar (Young and Tian 2019, https://arxiv.org/abs/1903.03176; examples/dqn.py of kenjyoung/MinAtar)
- Minibatches are drawn with replacement; theirs without.
- An episode is cut after 10,000 steps, in training as a truncation that bootstraps; their games have no limit.
- The first update follows step 5,001; theirs step 5,002.
- RMSprop has no momentum, as in their code until December 2024; since then that code has one of 0.95.

nature (Mnih et al. 2015, https://doi.org/10.1038/nature14236; google-deepmind/dqn)
- Four environments take a step each between updates; theirs is one that takes four.
- 10 million steps, the first fifth of their 50 million. A seed takes 7.6 GB of replay, so there is one.
- The target is copied every 10,000 updates, as the paper says; their code does every 10,000 steps, 2,500 updates.
- Where a game waits for the fire button it is pressed at the start, and an episode is cut after half an hour.
- Evaluation plays whole episodes of the last parameters; theirs every 250,000 steps, and the best are stated.
"""

_KINDS = {
    str: "a word",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    tuple: "whole numbers",
    type(None): "a path as a string, or None",
}


def _is_like(default: Any, value: Any) -> bool:
    """Whether a value is of the type of a setting, which its default has."""
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and all(type(x) is int for x in value)
    if isinstance(default, float):
        return isinstance(value, float | int) and not isinstance(value, bool)
    return type(value) is type(default) or (default is None and isinstance(value, str))


def to_json(settings: Settings) -> dict[str, Any]:
    """The settings as strict JSON has them: an infinity becomes a word."""
    return {
        name: str(value) if isinstance(value, float) and math.isinf(value) else value
        for name, value in dataclasses.asdict(settings).items()
    }


_ADDED = ("random_warmup", "evaluate_episodes", "evaluate_steps", "check_compile", "engine")
"""Fields that settings written by version 0.1 lack; their defaults are what it did."""


def with_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them, with the fields that came after they were written."""
    defaults = to_json(Settings())
    return {**{name: defaults[name] for name in _ADDED}, **given}


def from_json(given: dict[str, Any]) -> Settings:
    """What `to_json` made. Raises ValueError, naming the field, for one that is unknown, missing or of another type."""
    if not isinstance(given, dict):
        raise ValueError(f"settings: expected a record, got {type(given).__name__}")
    given, defaults = with_defaults(given), dataclasses.asdict(Settings())
    if set(given) != set(defaults):
        raise ValueError(
            f"settings: expected the fields of this version, got others: {sorted(set(given) ^ set(defaults))}"
        )
    read = dict(given)
    for name, default in defaults.items():
        value = read[name]
        if isinstance(default, float) and (type(value) is int or value in ("inf", "-inf")):
            read[name] = float(value)
        elif isinstance(default, tuple) and isinstance(value, list):
            read[name] = tuple(value)
    try:
        return Settings(**read)
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings.{error}") from None
