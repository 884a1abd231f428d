"""Settings of a run: the flags of `fdqn train` with their units, and the defaults of each algorithm.

`Settings` has the fields of all classes above it, which are the groups of `fdqn train --help`. This module does not
import torch, so that `--help` is quick.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro

from fdqn import arguments

AlgorithmName = Literal["dqn", "munchausen", "c51", "qr-dqn", "iqn", "rainbow", "pqn", "stream-q"]
OptimizerName = Literal[
    "adam", "adamw", "adamax", "nadam", "radam", "adagrad", "sgd", "torch-rmsprop", "rmsprop", "nature-rmsprop"
]
NetworkName = Literal[
    "auto", "mlp", "layernorm-mlp", "nature", "layernorm-nature", "minatar", "layernorm-minatar", "impala"
]


@dataclass(frozen=True)
class RunSettings:
    """Environment, algorithm, seeds and length of the run."""

    env: str = "cartpole"
    """Environment: a name that `fdqn envs` lists, gym:NAME, ale:GAME, or package.module:name for your own."""
    env_kwargs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE [NAME=VALUE ...]")] = ()
    """Keyword arguments of the environment, such as is_slippery=False map_name=8x8.
    Values are Python literals; any other text is a string."""
    wrappers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="package.module:WRAPPER [...]")] = ()
    """Wrappers around each environment, the innermost first, such as gymnasium.wrappers:FlattenObservation.
    For gym:NAME and your own gymnasium.Env: gymnasium wrappers; for others: functions from Env to Env.
    --wrapper A --wrapper B is the same as --wrappers A B."""
    algorithm: AlgorithmName = "dqn"
    """Learning algorithm, which decides which flags are read.
    fdqn train --algorithm NAME --help shows its defaults."""
    seeds: int = 16
    """Number of seeds (independent learners) to train at once."""
    seed: int = 0
    """First seed; the others are seed + 1, seed + 2, ..."""
    steps: int = 100_000
    """Environment steps per seed, summed over its environments, warm-up included."""
    gamma: float = 0.99
    """Discount factor per environment step, in [0, 1]."""
    clip_rewards: bool = False
    """Clip rewards to [-1, 1] for learning. Reported returns are not clipped."""
    terminal_on_life_loss: bool = False
    """End episodes at a lost life for learning, in environments that count lives.
    Reported returns are of whole episodes."""
    terminal_on_truncation: bool = False
    """Treat episodes that a time limit cuts off as terminated in learning, as CleanRL's pqn.py does.
    Otherwise targets bootstrap from the last observation."""
    out: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Run folder to create; by default runs/ENV-DATE-TIME."""


@dataclass(frozen=True)
class IterationSettings:
    """Training iteration: steps of the environments, then updates. Not read by stream-q, which learns from each step
    once."""

    num_envs: int = 10
    """Environments per seed."""
    steps_per_cycle: int = 1
    """Steps of each environment per training iteration."""
    updates_per_cycle: int = 1
    """Updates per training iteration, after its steps."""
    batch_size: int = 128
    """Transitions per update."""


@dataclass(frozen=True)
class ReplaySettings:
    """Replay buffer and target network. Not read by pqn and stream-q."""

    capacity: int = 10_000
    """Transitions that the replay buffer of a seed holds."""
    learning_starts: int = 1_000
    """Environment steps per seed before the first update."""
    n_step: int = 3
    """Environment steps per transition; their rewards are discounted and summed."""
    prioritized: bool = False
    """Sample transitions in proportion to their priority instead of uniformly."""
    priority_alpha: float = 0.6
    """Exponent of the priorities, in [0, 1]; with --prioritized."""
    priority_beta: float = 0.4
    """Exponent of the importance-sampling weights at the start, in [0, 1], annealed to 1; with --prioritized."""
    save_replay: bool = True
    """Save the replay buffer in checkpoints. Without it checkpoints are small, but a resumed run differs.
    It first refills its replay buffer for --learning-starts steps."""
    target_period: int = 20
    """Updates between hard copies of the parameters to the target network."""
    tau: float = 1.0
    """Fraction of the new parameters in a soft target update, made after every update. 1: hard copies instead."""


@dataclass(frozen=True)
class ExplorationSettings:
    """Epsilon-greedy exploration. With --noisy, both defaults of epsilon are 0, because the noise explores."""

    epsilon_start: float = 1.0
    """Fraction of random actions at the start."""
    epsilon_end: float = 0.05
    """Fraction of random actions after annealing."""
    epsilon_fraction: float = 0.2
    """Fraction of --steps over which epsilon is annealed linearly."""
    random_warmup: bool = False
    """Take uniformly random actions until learning starts (--learning-starts) and anneal epsilon from there.
    Otherwise epsilon is annealed from the first step."""


@dataclass(frozen=True)
class NetworkSettings:
    """Network. stream-q only reads --hidden."""

    network: NetworkName = "auto"
    """Network. auto: minatar for boards of 10 x 10, nature for images of at least 36 x 36, mlp otherwise.
    With pqn, auto selects the same with LayerNorm. impala: residual network of the IMPALA paper."""
    hidden: tuple[int, ...] = (120, 84)
    """Sizes of the hidden layers of an MLP; none for a linear network."""
    dueling: bool = False
    """Use a dueling network: separate outputs for the value of the state and the advantages of the actions."""
    noisy: bool = False
    """Use noisy linear layers, which explore through noise in their weights."""
    sigma_zero: float = 0.5
    """Initial scale of the noise, divided by the square root of a layer's inputs; with --noisy."""
    orthogonal: bool = False
    """Initialize weights to orthogonal matrices times sqrt(2), and biases to 0."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer and loss. stream-q only reads --learning-rate, the largest step size of its optimizer ObGD."""

    optimizer: OptimizerName = "adam"
    """Optimizer, as in torch.optim with its defaults; torch-rmsprop is torch.optim.RMSprop.
    rmsprop: RMSprop of MinAtar's paper, centered, with decay 0.95 and eps 0.01.
    nature-rmsprop: RMSprop of the Nature paper, with eps inside the root: 0.01 / 32**2 for means over a batch of 32."""
    learning_rate: float = 2e-3
    """Learning rate of the optimizer."""
    learning_rate_schedule: Literal["constant", "linear", "exponential", "cosine"] = "linear"
    """Schedule of the learning rate.
    linear, cosine: from --learning-rate to --learning-rate-end over all updates of the run.
    exponential: multiplied by --learning-rate-decay after every --learning-rate-decay-every updates."""
    learning_rate_end: float = 1e-4
    """Learning rate at the end of the run, and after it in an extended run; with the schedules linear and cosine."""
    learning_rate_decay: float = 0.9
    """Factor of the learning rate in the schedule exponential, as gamma of torch's ExponentialLR."""
    learning_rate_decay_every: int = 1_000
    """Updates between two multiplications in the schedule exponential."""
    adam_beta1: float = 0.9
    """Decay of the mean gradient of adam, adamw, adamax, nadam and radam, in [0, 1)."""
    adam_beta2: float = 0.999
    """Decay of the mean squared gradient of adam, adamw, nadam and radam, and of adamax's largest one, in [0, 1)."""
    adam_eps: float = 1e-8
    """Constant added to the denominator of adam, adamw, adamax, nadam and radam."""
    rmsprop_decay: float = 0.95
    """Decay of the means of rmsprop and nature-rmsprop, in [0, 1)."""
    max_grad_norm: float = 10.0
    """Global norm to which gradients are clipped; inf for no clipping."""
    loss: Literal["mse", "huber"] = "mse"
    """Loss of the TD errors of dqn, munchausen and pqn: mse (mean squared error) or huber."""
    huber_delta: float = 1.0
    """TD error up to which the Huber loss is quadratic, above 0; with --loss huber."""
    double: bool = True
    """Use double Q-learning: the online network selects the next action and the target network evaluates it.
    Read by dqn, c51, qr-dqn, iqn and rainbow."""


@dataclass(frozen=True)
class AlgorithmSettings:
    """Constants that only some algorithms read."""

    v_min: float = -100.0
    """Smallest return of the support of c51 and rainbow."""
    v_max: float = 100.0
    """Largest return of the support of c51 and rainbow."""
    atoms: int = 101
    """Number of atoms of the support of c51 and rainbow."""
    quantiles: int = 51
    """Number of quantiles of qr-dqn; 200 in the paper."""
    kappa: float = 1.0
    """Threshold of the quantile Huber loss of qr-dqn and iqn; 0 for the absolute value."""
    fractions: int = 8
    """Number of fractions that iqn samples: for online values, for target values, and to select actions.
    64 in the paper."""
    cosines: int = 64
    """Number of cosines in iqn's embedding of a fraction."""
    munchausen_alpha: float = 0.9
    """Weight of the scaled log-policy that munchausen adds to the reward, in [0, 1]; 0 for none."""
    munchausen_tau: float = 0.03
    """Temperature of the softmax policy of munchausen, above 0."""
    munchausen_clip: float = -1.0
    """Lower bound of the scaled log-policy (tau times log pi) of munchausen, at most 0."""
    q_lambda: float = 0.65
    """Lambda of the returns of pqn and of the eligibility traces of stream-q, in [0, 1]."""
    stream_kappa: float = 2.0
    """Factor of the bound on the steps of stream-q (kappa of ObGD), above 0; a larger one gives smaller steps."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Reports, evaluation and checkpoints."""

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
    on_nan: Literal["freeze", "stop"] = "freeze"
    """Reaction to a NaN or infinity in a seed's loss, gradient or parameters: freeze that seed, or stop the run."""


@dataclass(frozen=True)
class ExecutionSettings:
    """Device and compiler."""

    device: Annotated[str, tyro.conf.arg(metavar="{auto,cpu,cuda,cuda:N}")] = "auto"
    """Device to train on; auto uses CUDA if it is available.
    cuda:N is the GPU with number N."""
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


GROUPS = (
    RunSettings,
    IterationSettings,
    ReplaySettings,
    ExplorationSettings,
    NetworkSettings,
    OptimizerSettings,
    AlgorithmSettings,
    EvaluationSettings,
    ExecutionSettings,
)
"""Groups of settings, in the order of `fdqn train --help`."""


def check_device(value: Any) -> None:
    """Raise ValueError for anything but a name of devices."""
    if not is_device(value):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {value!r}")


def is_device(value: Any) -> bool:
    """Return True for a name of devices: auto, cpu, cuda or, for the GPU of number N, cuda:N."""
    return isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?", value) is not None


@dataclass(frozen=True)
class Settings(
    ExecutionSettings,
    EvaluationSettings,
    AlgorithmSettings,
    OptimizerSettings,
    NetworkSettings,
    ExplorationSettings,
    ReplaySettings,
    IterationSettings,
    RunSettings,
):
    """Settings of a run: flags of `fdqn train` with their units. The defaults are DQN's; `make` has those of others."""

    def __post_init__(self) -> None:
        _make_canonical(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _is_like(field.default, value):
                raise TypeError(f"{field.name}: expected {_kind(field.default)}, got {value!r}")
            if get_origin(field.type) is Literal and value not in (known := get_args(field.type)):
                raise ValueError(f"{field.name}: expected one of {known}, got {value!r}")
        check_device(self.device)

    @property
    def learners(self) -> int:
        """Number of independent learners that are trained at once."""
        return self.seeds

    @property
    def compiles(self) -> bool:
        """Return True if the step functions are compiled."""
        return self.compile and self.engine != "eager"


@dataclass(frozen=True)
class Sweep(Settings):
    """Several settings that are trained at once in one program, each with the same seeds.

    Learner i, counted from 0, is seed `seed + i % seeds` of setting `i // seeds`.
    """

    varied: tuple[dict[str, Any], ...] = ({},)
    """Values of the fields that differ between settings, one dict with the same keys for each setting. The fields
    themselves have the values of the first setting."""
    scales: dict[str, Literal["log", "linear"]] = dataclasses.field(default_factory=dict)
    """Scales of the fields whose values were drawn from a range."""
    pbt_every: int = 0
    """Environment steps per seed between steps of population based training; 0 for none."""
    bounds: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """Lowest and highest value of each varied hyper-parameter in population based training."""
    rung_of: int = 0
    """Number of settings with which successive halving started, if this is one of its rungs; otherwise 0."""

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError unless every setting is valid on its own."""
        if not isinstance(self.varied, tuple) or not self.varied:
            raise TypeError(f"varied: expected a tuple of at least one dict, got {self.varied!r}")
        for values in self.varied:
            if not isinstance(values, dict) or values.keys() != self.varied[0].keys():
                raise TypeError(f"varied: expected dicts with the keys {list(self.varied[0])}, got {values!r}")
        if unknown := self.varied[0].keys() - {field.name for field in dataclasses.fields(Settings)}:
            raise ValueError(f"varied: expected names of settings, got {min(unknown)!r}")
        _make_canonical(self)
        for name, value in self.varied[0].items():
            object.__setattr__(self, name, value)
        for number in range(len(self.varied)):
            self.at(number)
        if not isinstance(self.scales, dict):
            raise TypeError(f"scales: expected a dict, got {self.scales!r}")
        for name, scale in self.scales.items():
            if name not in self.varied[0] or scale not in ("log", "linear"):
                raise ValueError(f"scales: expected 'log' or 'linear' for a varied name, got {scale!r} for {name!r}")
        if type(self.pbt_every) is not int:
            raise TypeError(f"pbt_every: expected a whole number, got {self.pbt_every!r}")
        if not _are_bounds(self.bounds):
            raise TypeError(f"bounds: expected two numbers for each name, got {self.bounds!r}")
        if type(self.rung_of) is not int or (self.rung_of and self.rung_of < len(self.varied)):
            raise ValueError(f"rung_of: expected 0 or at least the number of settings, got {self.rung_of!r}")

    @property
    def learners(self) -> int:
        """Number of independent learners that are trained at once: seeds times settings."""
        return self.seeds * len(self.varied)

    def at(self, number: int) -> Settings:
        """Return the settings number `number`, counted from 0."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        return Settings(**{**own, **self.varied[number]})


def _make_canonical(settings: Settings) -> None:
    """Write the arguments of the environment as `arguments.to_pairs` does, so that equal ones are equal settings.

    Also check the names of wrappers. Fields of another type are left to the check of types.
    """
    given, wrappers = settings.env_kwargs, settings.wrappers
    if isinstance(given, Mapping):
        object.__setattr__(settings, "env_kwargs", arguments.to_pairs(given))
    elif _is_like((), given):
        object.__setattr__(settings, "env_kwargs", arguments.to_pairs(arguments.parse(given)))
    if not _is_like((), wrappers):
        return
    object.__setattr__(settings, "wrappers", tuple(wrappers))
    for name in wrappers:
        module, _, attribute = name.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), attribute)):
            dotted = module.rpartition(".") if not attribute else ("", "", "")
            hint = f"; write {dotted[0]}:{dotted[2]}" if dotted[0] else ""
            raise ValueError(f"wrappers: expected a name such as package.module:Wrapper, got {name!r}{hint}")


def task(settings: Settings | Mapping[str, Any]) -> str:
    """Return the name of the environment with its arguments and wrappers, if any, from settings or a `summary.json`."""
    if isinstance(settings, Settings):
        env, more = settings.env, (*settings.env_kwargs, *settings.wrappers)
    else:
        env, more = settings["env"], (*settings.get("env_kwargs", ()), *settings.get("wrappers", ()))
    return f"{env} ({', '.join(more)})" if more else env


def _are_bounds(bounds: Any) -> bool:
    return isinstance(bounds, dict) and all(
        isinstance(limits, tuple) and len(limits) == 2 and all(_is_like(0.0, x) for x in limits)
        for limits in bounds.values()
    )


def each(settings: Settings) -> list[Settings]:
    """Return the settings of a sweep, or the only setting of another run."""
    return (
        [settings.at(number) for number in range(len(settings.varied))] if isinstance(settings, Sweep) else [settings]
    )


_REPLAY = ("dqn", "munchausen", "c51", "qr-dqn", "iqn", "rainbow")
_MINIBATCHES = (*_REPLAY, "pqn")
_READ_BY: dict[str, tuple[str, ...]] = {
    **{field.name: _REPLAY for field in dataclasses.fields(ReplaySettings)},
    "random_warmup": _REPLAY,
    **{
        field.name: _MINIBATCHES
        for field in (*dataclasses.fields(IterationSettings), *dataclasses.fields(OptimizerSettings))
    },
    "learning_rate": (*_MINIBATCHES, "stream-q"),
    **dict.fromkeys(("loss", "huber_delta"), ("dqn", "munchausen", "pqn")),
    "double": ("dqn", "c51", "qr-dqn", "iqn", "rainbow"),
    "network": _MINIBATCHES,
    "dueling": _MINIBATCHES,
    "noisy": _REPLAY,
    "sigma_zero": _REPLAY,
    "orthogonal": _MINIBATCHES,
    **dict.fromkeys(("v_min", "v_max", "atoms"), ("c51", "rainbow")),
    "quantiles": ("qr-dqn",),
    "kappa": ("qr-dqn", "iqn"),
    **dict.fromkeys(("fractions", "cosines"), ("iqn",)),
    **dict.fromkeys(("munchausen_alpha", "munchausen_tau", "munchausen_clip"), ("munchausen",)),
    "q_lambda": ("pqn", "stream-q"),
    "stream_kappa": ("stream-q",),
}
"""Algorithms that read a setting. All algorithms read a setting that is not listed."""

_ADAM = ("adam", "adamw", "adamax", "nadam", "radam")
OPTIMIZERS = {
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_eps"), _ADAM),
    "rmsprop_decay": ("rmsprop", "nature-rmsprop"),
}
"""Optimizers that read a setting."""

_NEEDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "priority_alpha": ("prioritized", (True,)),
    "priority_beta": ("prioritized", (True,)),
    "sigma_zero": ("noisy", (True,)),
    "learning_rate_end": ("learning_rate_schedule", ("linear", "cosine")),
    "learning_rate_decay": ("learning_rate_schedule", ("exponential",)),
    "learning_rate_decay_every": ("learning_rate_schedule", ("exponential",)),
    **{name: ("optimizer", readers) for name, readers in OPTIMIZERS.items()},
    "huber_delta": ("loss", ("huber",)),
    "hidden": ("network", ("auto", "mlp", "layernorm-mlp")),
}
"""Settings that are read only if another setting has one of these values."""

ALGORITHMS: dict[AlgorithmName, dict[str, Any]] = {
    "dqn": {},
    "munchausen": {"n_step": 1},
    "c51": {},
    "qr-dqn": {},
    "iqn": {},
    "rainbow": {"dueling": True, "noisy": True, "prioritized": True},
    "pqn": {
        "num_envs": 4,
        "steps_per_cycle": 128,
        "updates_per_cycle": 16,
        "optimizer": "radam",
        "learning_rate": 2.5e-4,
        "learning_rate_end": 0.0,
        "epsilon_fraction": 0.5,
        "orthogonal": True,
    },
    "stream-q": {
        "num_envs": 1,
        "batch_size": 1,
        "hidden": (32, 32),
        "learning_rate": 1.0,
        "q_lambda": 0.8,
        "epsilon_end": 0.01,
    },
}
"""Defaults of each algorithm that differ from those of `Settings`."""


def defaults(algorithm: AlgorithmName, noisy: bool | None = None) -> Settings:
    """Return the default settings of an algorithm. With noisy layers, the fraction of random actions is 0."""
    chosen = {"algorithm": algorithm, **ALGORITHMS[algorithm]}
    if chosen.get("noisy", False) if noisy is None else noisy:
        chosen |= {"epsilon_start": 0.0, "epsilon_end": 0.0}
    return Settings(**chosen)


def storage(algorithm: AlgorithmName) -> Literal["replay", "rollout"]:
    """Return where an algorithm stores transitions: in a replay buffer, or only in that of a training iteration."""
    return "replay" if algorithm in _REPLAY else "rollout"


def make(given: Mapping[str, Any], published: Mapping[str, Any] | None = None) -> Settings:
    """Make settings from some values; the others are the defaults of the algorithm.

    Args:
        given: values by field of `Settings`.
        published: values of a preset, by field; they replace defaults, and `given` replaces them.

    Raises TypeError and ValueError as `Settings` does, and ValueError for a given field that is not read with the other
    settings.
    """
    published = dict(published or {})
    algorithm = given.get("algorithm", published.get("algorithm", "dqn"))
    if algorithm not in get_args(AlgorithmName):
        raise ValueError(f"algorithm: expected one of {get_args(AlgorithmName)}, got {algorithm!r}")
    if algorithm != (usual := published.get("algorithm", algorithm)):
        raise ValueError(f"algorithm: expected {usual}, the algorithm of the preset, got {algorithm}; omit algorithm")
    if published.get("noisy") and not given.get("noisy", True):
        # Without noise in the weights, the preset's fraction of random actions would not explore.
        published = {name: value for name, value in published.items() if not name.startswith("epsilon_")}
    values = {**published, **given}
    made = dataclasses.replace(defaults(algorithm, values.get("noisy")), **values)
    check_read(made, given)
    if "target_period" in given and made.tau != 1:
        raise ValueError(f"target_period: expected tau = 1 with it, got {made.tau}; omit target_period")
    # A given value may leave values of the preset unread.
    unread = {name for name in published.keys() - given.keys() if _reason_unread(made, name)}
    return dataclasses.replace(defaults(algorithm, made.noisy), **{k: v for k, v in values.items() if k not in unread})


def check_read(settings: Settings, names: Iterable[str] | None = None) -> None:
    """Raise ValueError for a field that is not read by the algorithm or with the other settings.

    Args:
        settings: all settings.
        names: fields to check; by default those that differ from the algorithm's defaults.
    """
    usual = defaults(settings.algorithm, settings.noisy)
    if names is None:
        names = [field.name for field in dataclasses.fields(Settings)]
        names = [name for name in names if getattr(settings, name) != getattr(usual, name)]
    for name in names:
        if reason := _reason_unread(settings, name):
            raise ValueError(f"{name}: {reason}; omit {name}")


def is_read(settings: Settings, name: str) -> bool:
    """Return True if a field is read by the algorithm and with the other settings."""
    return _reason_unread(settings, name) is None


def _reason_unread(settings: Settings, name: str) -> str | None:
    """Return the part of a message that says why a field is not read; None if it is read."""
    algorithm = settings.algorithm
    readers = _READ_BY.get(name, (algorithm,))
    if algorithm not in readers:
        verb = "read" if len(readers) > 1 else "reads"
        return f"expected algorithm {_either(readers)}, which {verb} it, got {algorithm}"
    other, needed = _NEEDS.get(name, ("algorithm", (algorithm,)))
    if (got := getattr(settings, other)) not in needed:
        return f"expected {other} = {_either(map(str, needed))} with it, got {got}"
    return None


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


_KINDS = {
    str: "a word",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    tuple: "whole numbers",
    type(None): "a path as a string, or None",
}


def _kind(default: Any) -> str:
    """Describe the type of a setting with this default."""
    return "a list of strings" if default == () else _KINDS[type(default)]


def _is_like(default: Any, value: Any) -> bool:
    """Return True if a value has the type of its setting's default; with the default (), its elements are strings."""
    if isinstance(default, tuple):
        kind = int if default else str
        return isinstance(value, tuple | list) and all(type(x) is kind for x in value)
    if isinstance(default, float):
        return isinstance(value, float | int) and not isinstance(value, bool)
    return type(value) is type(default) or (default is None and isinstance(value, str))


def to_json(settings: Settings) -> dict[str, Any]:
    """Return the settings as values of strict JSON: infinities become strings."""
    values = to_json_values(dataclasses.asdict(settings))
    if not isinstance(settings, Sweep):
        return values
    unused = [name for name in _OF_SWEEPS if not values[name]]  # as in files of versions without them
    return {
        **{name: value for name, value in values.items() if name not in unused},
        "varied": [to_json_values(each) for each in settings.varied],
    }


_OF_SWEEPS = ("scales", "rung_of", "pbt_every", "bounds")
"""Fields of `Sweep` that are only written if they are used."""


def to_json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return values of settings as values of strict JSON: infinities become strings."""
    return {
        name: str(value) if isinstance(value, float) and math.isinf(value) else value for name, value in values.items()
    }


_ADDED: dict[str, Any] = {
    "random_warmup": False,
    "evaluate_episodes": 20,
    "evaluate_steps": 0,
    "check_compile": True,
    "engine": "auto",
    **{
        name: to_json(Settings())[name]
        for name in (
            "algorithm", "terminal_on_truncation", "prioritized", "priority_alpha", "priority_beta", "network", "noisy",
            "sigma_zero", "orthogonal", "learning_rate_end", "learning_rate_decay", "learning_rate_decay_every",
            "adam_beta1", "adam_beta2", "adam_eps", "rmsprop_decay", "huber_delta", "v_min", "v_max", "atoms",
            "quantiles", "kappa", "fractions", "cosines", "munchausen_alpha", "munchausen_tau", "munchausen_clip",
            "q_lambda", "stream_kappa",
        )
    },
    "learning_rate_schedule": "constant",
    "env_kwargs": (),
    "wrappers": (),
}  # fmt: skip
"""Fields that settings written by earlier versions lack, with the values that those versions used."""


def with_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of fields that are newer than the given JSON values."""
    return {**_ADDED, **given}


def from_json(given: dict[str, Any]) -> Settings:
    """Return the settings from the values of `to_json`. Raises ValueError, naming the field, for one that is unknown,
    missing or of another type."""
    if not isinstance(given, dict):
        raise ValueError(f"settings: expected a record, got {type(given).__name__}")
    given, usual = with_defaults(given), dataclasses.asdict(Settings())
    if set(given) - ({"varied", *_OF_SWEEPS} if "varied" in given else set()) != set(usual):
        raise ValueError(
            f"settings: expected the fields of this version, got others: {sorted(set(given) ^ set(usual))}"
        )
    varied = given.pop("varied", None)
    own = {name: given.pop(name) for name in _OF_SWEEPS if name in given}
    if isinstance(bounds := own.get("bounds"), dict):
        own["bounds"] = {name: tuple(x) if isinstance(x, list) else x for name, x in bounds.items()}
    if varied is not None and not (isinstance(varied, list) and all(isinstance(values, dict) for values in varied)):
        raise ValueError(f"settings.varied: expected a list of records, got {varied!r}")
    try:
        if varied is None:
            return Settings(**_typed(given))
        return Sweep(**_typed(given), varied=tuple(map(_typed, varied)), **own)
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings.{error}") from None


def _typed(given: dict[str, Any]) -> dict[str, Any]:
    """Convert JSON values to the types of the settings: numbers to floats where the default is one, lists to tuples."""
    read, usual = dict(given), dataclasses.asdict(Settings())
    for name, value in given.items():
        default = usual.get(name)
        if isinstance(default, float) and (type(value) is int or value in ("inf", "-inf")):
            read[name] = float(value)
        elif isinstance(default, tuple) and isinstance(value, list):
            read[name] = tuple(value)
    return read
