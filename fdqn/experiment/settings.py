"""Settings of a run: flags, units, defaults and presets. Does not import torch, so that `--help` is quick."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro


@dataclass(frozen=True)
class Settings:
    """Settings of a run: flags of `fdqn train` with their units and defaults."""

    env: str = "cartpole"
    """Environment: a name that `fdqn envs` lists, gym:NAME, ale:GAME, or package.module:name for your own."""
    seeds: int = 16
    """Number of seeds (independent learners) to train at once."""
    seed: int = 0
    """First seed; the others are seed + 1, seed + 2, ..."""
    steps: int = 100_000
    """Environment steps per seed, summed over its environments, warm-up included."""
    num_envs: int = 10
    """Environments per seed."""
    steps_per_cycle: int = 1
    """Steps of each environment per training iteration."""
    updates_per_cycle: int = 1
    """Updates per training iteration, after its steps."""
    batch_size: int = 128
    """Transitions per update."""
    capacity: int = 10_000
    """Transitions that the replay buffer of a seed holds."""
    learning_starts: int = 1_000
    """Environment steps per seed before the first update."""
    target_period: int = 20
    """Updates between hard copies of the parameters to the target network."""
    tau: float = 1.0
    """Fraction of the new parameters in a soft target update, made after every update. 1: hard copies instead."""
    n_step: int = 1
    """Environment steps per transition; their rewards are discounted and summed."""
    clip_rewards: bool = False
    """Clip rewards to [-1, 1] for learning. Reported returns are not clipped."""
    terminal_on_life_loss: bool = False
    """End episodes at a lost life for learning, in environments that count lives.
    Reported returns are of whole episodes."""
    optimizer: Literal["adam", "rmsprop", "nature-rmsprop"] = "adam"
    """Optimizer. rmsprop is that of MinAtar's paper: centered, decay 0.95, eps 0.01.
    nature-rmsprop is that of the Nature paper: eps inside the root, 0.01 / 32**2 for the mean over a batch of 32."""
    learning_rate: float = 2e-3
    """Learning rate of the optimizer."""
    gamma: float = 0.99
    """Discount factor per environment step, in [0, 1]."""
    max_grad_norm: float = 10.0
    """Global norm to which gradients are clipped; inf for no clipping."""
    epsilon_start: float = 1.0
    """Fraction of random actions at the start."""
    epsilon_end: float = 0.05
    """Fraction of random actions after annealing."""
    epsilon_fraction: float = 0.2
    """Fraction of --steps over which epsilon is annealed linearly."""
    random_warmup: bool = False
    """Take uniformly random actions until learning starts (--learning-starts) and anneal epsilon from there.
    Otherwise epsilon is annealed from the first step."""
    hidden: tuple[int, ...] = (120, 84)
    """Sizes of the hidden layers; none for a linear network.
    Images (10 x 10, or at least 36 x 36) use a convolutional network instead."""
    dueling: bool = False
    """Use a dueling network: separate outputs for the value of the state and the advantages of the actions."""
    double: bool = True
    """Use double Q-learning: the online network selects the next action and the target network evaluates it."""
    loss: Literal["mse", "huber"] = "mse"
    """Loss of the TD errors: mse (mean squared error) or huber."""
    report_every: int = 2_000
    """Environment steps per seed between rows of metrics.csv."""
    evaluate_epsilon: float = 0.0
    """Fraction of random actions in evaluation; the other actions are greedy."""
    evaluate_episodes: int = 20
    """Evaluation episodes per seed."""
    evaluate_steps: int = 0
    """Step limit of an evaluation episode. The summary counts episodes that reach it as unfinished.
    0: the environment's time limit or, if it has none, 10 times the mean training episode length (1,000 to 27,000)."""
    evaluate_every: int = 0
    """Environment steps per seed between evaluations during training; 0 for one at the end only."""
    checkpoint_every: int = 20_000
    """Environment steps per seed between checkpoints, rounded up to a report; 0 for one at the end only."""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep, in addition to the one with the best training return."""
    save_replay: bool = True
    """Save the replay buffer in checkpoints. Without it checkpoints are small, but a resumed run differs.
    It first refills its replay buffer for --learning-starts steps."""
    on_nan: Literal["freeze", "stop"] = "freeze"
    """Reaction to a NaN or infinity in a seed's loss, gradient or parameters: freeze that seed, or stop the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto uses CUDA if it is available."""
    tf32: bool = False
    """Use TF32 for float32 matrix products and convolutions on CUDA.
    Several times faster, but inputs are rounded to a mantissa of 10 bits."""
    compile: bool = True
    """Compile the training iteration; --no-compile is --engine eager."""
    engine: Literal["auto", "eager", "torch.compile", "inductor", "aot"] = "auto"
    """Engine that runs the training iteration; one that does not work is replaced by the next slower, with a notice.
    eager: operation by operation. torch.compile: public API. inductor: one graph without guards.
    aot: compiled ahead of time, groups of seeds on threads. auto: aot on Linux CPUs, inductor on others.
    auto on CUDA: torch.compile."""
    check_compile: bool = True
    """Compare the first compiled step and update with eager execution and stop the run if they differ."""
    out: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Run folder to create; by default runs/ENV-DATE-TIME."""

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
"""Settings published by papers, without the environment. Differences from the authors' code:

minatar (Young and Tian 2019, https://arxiv.org/abs/1903.03176; examples/dqn.py of kenjyoung/MinAtar)
- Minibatches are sampled with replacement; theirs without.
- Episodes are truncated after 10,000 steps, and training bootstraps there; theirs have no limit.
- The first update follows step 5,001; theirs step 5,002.
- RMSprop has no momentum, as in their code until December 2024; since then theirs has a momentum of 0.95.

nature (Mnih et al. 2015, https://doi.org/10.1038/nature14236; google-deepmind/dqn)
- Four environments take one step each between updates; theirs is one environment that takes four.
- 10 million steps, the first fifth of their 50 million. One seed, because its replay takes 7.6 GB.
- The target network is copied every 10,000 updates, as in the paper; their code copies it every 10,000 steps, which
  are 2,500 updates.
- If a game waits for the fire button, it is pressed at the start. Episodes are truncated after half an hour.
- The final parameters are evaluated on whole episodes; theirs are evaluated every 250,000 steps, and the best are
  reported.
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
    """Return True if a value has the type of its setting's default."""
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and all(type(x) is int for x in value)
    if isinstance(default, float):
        return isinstance(value, float | int) and not isinstance(value, bool)
    return type(value) is type(default) or (default is None and isinstance(value, str))


def to_json(settings: Settings) -> dict[str, Any]:
    """Return the settings as values of strict JSON: infinities become strings."""
    return {
        name: str(value) if isinstance(value, float) and math.isinf(value) else value
        for name, value in dataclasses.asdict(settings).items()
    }


_ADDED = ("random_warmup", "evaluate_episodes", "evaluate_steps", "check_compile", "engine")
"""Fields that settings written by version 0.1 lack. Their defaults are its behaviour."""


def with_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of fields that are newer than the given JSON values."""
    defaults = to_json(Settings())
    return {**{name: defaults[name] for name in _ADDED}, **given}


def from_json(given: dict[str, Any]) -> Settings:
    """Return the settings from the values of `to_json`. Raises ValueError, naming the field, for one that is unknown,
    missing or of another type."""
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
