"""Assemble the program, hyper-parameters, keys and device of a run from its settings, and reject invalid settings."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fdqn import check, envs, networks, optim, random, replay, training
from fdqn.agents import c51, dqn, iqn, munchausen, pqn, qr_dqn
from fdqn.experiment.settings import OPTIMIZERS, Settings, Sweep, check_read, defaults, each, is_read
from fdqn.networks import Head, NoisyNetwork, QuantileNetwork, Trunk, heads, trunks
from fdqn.ops import losses, schedules
from fdqn.training import off_policy, on_policy, streaming
from fdqn.types import Agent, Algorithm, Buffer, Env, EnvSpec, HostEnv, Hyper, Network, Optimizer, Scalar, Schedule


def program(settings: Settings) -> training.Program:
    """Assemble the training program of the settings. Raises ValueError or TypeError for invalid settings."""
    check.kind("settings", settings, Settings)
    found = env(settings)
    _check_settings(settings)
    if settings.terminal_on_life_loss and not (envs.on_host(found) and found.counts_lives()):
        raise ValueError(
            "terminal_on_life_loss: expected an environment that counts lives, such as ale:Breakout, got "
            f"{settings.env}"
        )
    config = _config(settings, envs.on_host(found))
    if not envs.on_host(found) and found.spec.stack > 1 and not settings.save_replay:
        raise ValueError(
            f"save_replay: expected True for {settings.env}, got False; resumed episodes need the stored frames"
        )
    return training.Program(found, algorithm(settings, config, found.spec))


def env(settings: Settings) -> Env | HostEnv:
    """Return the environment of the settings, with its arguments and wrappers.

    Raises ValueError as `envs.find` does.
    """
    check.kind("settings", settings, Settings)
    if settings.env_kwargs or settings.wrappers:
        return envs.find(settings.env, settings.env_kwargs, settings.wrappers)
    return envs.find(settings.env)


def algorithm(settings: Settings, config: training.Config, spec: EnvSpec) -> Algorithm:
    """Assemble the algorithm of the settings. Raises ValueError as `agent` does.

    Numbers that a sweep varies are taken from `Hyper.numbers` of each seed.
    """
    check.kind("settings", settings, Settings)
    streams = settings.algorithm == "stream-q"
    make = partial(_algorithm, settings, config, spec, _stream_network(settings, spec) if streams else _body(settings))
    if numbers := {name: values[0] for name, values in _varied_numbers(settings).items()}:
        return training.parametrized(make, numbers)
    return make({})


def _algorithm(
    settings: Settings, config: training.Config, spec: EnvSpec, network: Any, numbers: Mapping[str, Any]
) -> Algorithm:
    """Assemble the algorithm around a network, with some numbers in place of the settings of that name."""
    given = _with(settings, numbers)
    if settings.algorithm == "stream-q":
        return streaming.algorithm(config, network, given.q_lambda, given.stream_kappa)
    if settings.algorithm == "pqn":
        return on_policy.algorithm(config, _agent(given, network), _optimizer(given), given.q_lambda)
    rows = _prioritized(given, config.capacity) if settings.prioritized else None
    period = torch.as_tensor(numbers["target_period"]) if "target_period" in numbers else None
    return off_policy.algorithm(config, _agent(given, network), buffer(config, spec, rows), _optimizer(given), period)


def _with(settings: Settings, numbers: Mapping[str, Any]) -> Any:
    """Return a record with the fields of the settings and the support of C51, some replaced by `numbers`."""
    own = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings)}
    support = (settings.v_min, settings.v_max, settings.atoms)
    return SimpleNamespace(**{**own, "support": support, "updates": partial(updates, settings), **numbers})


def agent(settings: Settings) -> Agent:
    """Assemble the agent of the settings. Raises ValueError for settings out of range, and as `body` does."""
    check.kind("settings", settings, Settings)
    return _agent(_with(settings, {}), _body(settings))


def _body(settings: Settings) -> Any:
    """Assemble the network of the agent."""
    match settings.algorithm:
        case "c51" | "rainbow":
            return body(settings, settings.atoms)
        case "qr-dqn":
            return body(settings, settings.quantiles)
        case "iqn":
            return _initialized(settings, networks.quantile(*parts(settings), settings.cosines))
    return body(settings)


def _agent(given: Any, network: Any) -> Agent:
    loss: Callable[[Tensor], Tensor] = losses.squared
    if given.loss == "huber":
        loss = partial(losses.huber, threshold=given.huber_delta)
        if not _differs(given, "huber_delta"):
            loss = losses.huber
    match given.algorithm:
        case "dqn":
            return dqn.agent(network, given.double, loss)
        case "munchausen":
            numbers = given.munchausen_alpha, given.munchausen_tau, given.munchausen_clip
            return munchausen.agent(network, *numbers, loss)
        case "c51" | "rainbow":
            return c51.agent(network, given.support, given.double)
        case "qr-dqn":
            return qr_dqn.agent(network, given.quantiles, given.double, given.kappa)
        case "iqn":
            count = given.fractions
            return iqn.agent(network, given.double, count, count, count, given.kappa)
        case "pqn":
            return pqn.agent(network, loss)
    raise ValueError(f"algorithm: expected one with an agent, got {given.algorithm}")


def _differs(given: Any, name: str) -> bool:
    """Return True for a number that is a tensor or not the default."""
    x = getattr(given, name)
    return isinstance(x, Tensor) or x != getattr(Settings, name)


def network(settings: Settings) -> Network:
    """Return the network, without noise, from observations to Q-values, whose maximum is the greedy action."""
    check.kind("settings", settings, Settings)
    if settings.algorithm == "stream-q":
        return _stream_network(settings, env(settings).spec)
    return training.policy(agent(settings))


def buffer(config: training.Config, spec: EnvSpec, rows: Buffer | None = None) -> Buffer:
    """Wrap a replay buffer as the observations and `n_step` require.

    Args:
        config: sizes of the program.
        spec: sizes of the environment.
        rows: buffer of `config.capacity` transitions; by default one that samples uniformly.
    """
    check.kind("config", config, training.Config)
    rows = replay.ring.buffer(config.capacity) if rows is None else rows
    if spec.obs_dtype == torch.bool and spec.stack == 1:
        rows = replay.packing.wrap(rows)
    rows = replay.n_step.wrap(rows, config.num_envs, config.n_step)
    if spec.stack == 1:
        return rows
    return replay.frames.wrap(rows, config.num_envs, spec.stack, config.capacity, config.n_step)


_UNIFORM = 1e-3
"""Fraction of the rows that prioritized replay samples uniformly, as in dqn_zoo. Otherwise a row whose priority was
once 0, such as one that C51 predicts exactly, would not be sampled again."""


def _prioritized(given: Any, capacity: int) -> Buffer:
    """Return a prioritized buffer whose importance-sampling exponent is annealed to 1 over the run."""
    beta = partial(schedules.linear, start=given.priority_beta, end=1.0, steps=given.updates())
    return replay.prioritized.buffer(capacity, given.priority_alpha, beta, uniform=_UNIFORM)


def body(settings: Settings, atoms: int = 1) -> NoisyNetwork:
    """Assemble the network of the settings, a trunk and a head, with `atoms` outputs for each action.

    Raises ValueError for settings that the network does not support, such as `hidden` for a convolutional one.
    """
    return _initialized(settings, networks.join(*parts(settings, atoms)))


N = TypeVar("N", NoisyNetwork, QuantileNetwork)


def _initialized(settings: Settings, network: N) -> N:
    return networks.orthogonal(network) if settings.orthogonal else network


def parts(settings: Settings, atoms: int = 1) -> tuple[Trunk, Head]:
    """Return the trunk and the head of the network of the settings. Raises ValueError as `body` does."""
    check.kind("settings", settings, Settings)
    spec = env(settings).spec
    kind = _kind(settings, spec.obs_shape)
    if not kind.endswith("mlp") and (len(spec.obs_shape) != 3 or min(spec.obs_shape[1:]) < _smallest(kind)):
        raise ValueError(
            f"network: expected auto or one for the observations {list(spec.obs_shape)} of {settings.env}, got {kind}, "
            f"which needs images of at least {_smallest(kind)} x {_smallest(kind)}"
        )
    if not kind.endswith("mlp") and settings.hidden != Settings.hidden:
        raise ValueError(
            f"hidden: expected the default, as {settings.env} has frames {list(spec.obs_shape)}, for which the "
            f"network {kind} is fixed"
        )
    if settings.noisy and kind not in _NOISY:
        raise ValueError(f"noisy: expected network mlp, nature or minatar with it, got {kind}; omit one of them")
    sizes = (settings.hidden,) if kind.endswith("mlp") else ()
    if not settings.noisy:
        head = (heads.dueling if settings.dueling else heads.linear)(spec.actions, atoms)
        return _TRUNKS[kind](spec.obs_shape, *sizes), head
    noisy_head = heads.noisy_dueling if settings.dueling else heads.noisy_linear
    trunk = _NOISY[kind](spec.obs_shape, *sizes, sigma_zero=settings.sigma_zero)
    return trunk, noisy_head(spec.actions, atoms, settings.sigma_zero)


def _smallest(kind: str) -> int:
    """Return the smallest height and width of images that a convolutional network takes."""
    return networks.SMALLEST_FRAME if kind.endswith("nature") else 3


_TRUNKS: dict[str, Callable[..., Trunk]] = {
    "mlp": trunks.mlp,
    "layernorm-mlp": trunks.layer_norm_mlp,
    "nature": trunks.nature,
    "layernorm-nature": trunks.layer_norm_nature,
    "minatar": trunks.minatar,
    "layernorm-minatar": trunks.layer_norm_minatar,
    "impala": trunks.impala,
}

_NOISY: dict[str, Callable[..., Trunk]] = {
    "mlp": trunks.noisy_mlp,
    "nature": trunks.noisy_nature,
    "minatar": trunks.noisy_minatar,
}


def _kind(settings: Settings, obs_shape: tuple[int, ...]) -> str:
    """Return the setting `network`, with `auto` replaced by the network for this shape of observations."""
    if settings.network != "auto":
        return settings.network
    kind = "mlp"
    if len(obs_shape) == 3:
        if obs_shape[1:] == (10, 10):
            kind = "minatar"
        elif min(obs_shape[1:]) >= networks.SMALLEST_FRAME:
            kind = "nature"
    return f"layernorm-{kind}" if settings.algorithm == "pqn" else kind


def _stream_network(settings: Settings, spec: EnvSpec) -> Network:
    """Return the network of Stream Q: convolutional for boards of 10 x 10, otherwise an MLP."""
    if len(spec.obs_shape) != 3 or min(spec.obs_shape[1:]) < 10:
        return networks.stream_mlp(spec.obs_shape, settings.hidden, spec.actions)
    if spec.obs_shape[1:] != (10, 10):
        raise ValueError(
            f"algorithm: expected another one for images {list(spec.obs_shape)} of {settings.env}, got stream-q, which "
            "has networks for vectors and for boards of 10 x 10"
        )
    if settings.hidden != defaults("stream-q").hidden:
        raise ValueError(
            f"hidden: expected the default, as {settings.env} has boards {list(spec.obs_shape)}, for which the network "
            "of stream-q is fixed"
        )
    return networks.stream_minatar(spec.obs_shape, spec.actions)


def optimizer(settings: Settings) -> Callable[[Hyper], Optimizer]:
    """Return the optimizer of the settings as a function of a seed's hyper-parameters."""
    check.kind("settings", settings, Settings)
    return _optimizer(_with(settings, {}))


def _optimizer(given: Any) -> Callable[[Hyper], Optimizer]:
    rule = _RULES[given.optimizer]
    chosen = {word: name for name, word in _ARGUMENTS.items() if given.optimizer in OPTIMIZERS[name]}
    if numbers := {word: getattr(given, name) for word, name in chosen.items() if _differs(given, name)}:
        rule = partial(rule, **numbers)
    if given.learning_rate_schedule != "constant":
        rule = partial(_scheduled, given, rule)
    return clipped(rule) if math.isfinite(given.max_grad_norm) else rule


def _scheduled(given: Any, rule: Callable[[Hyper], Optimizer], hyper: Hyper) -> Optimizer:
    """Return the optimizer of `rule` with the schedule over all updates in place of the learning rate."""
    rate = _schedule(given, hyper.learning_rate)
    return rule(hyper._replace(learning_rate=rate))  # type: ignore[arg-type]


def _schedule(given: Any, start: Scalar) -> Schedule:
    end = given.learning_rate_end
    match given.learning_rate_schedule:
        case "linear":
            return partial(schedules.linear, start=start, end=end, steps=given.updates())
        case "cosine":
            return partial(_cosine, start=start, end=end, steps=given.updates())
    decay, every = given.learning_rate_decay, given.learning_rate_decay_every
    return partial(schedules.staircase, start=start, decay=decay, every=every)


def learning_rates(settings: Settings, hyper: Hyper, updates: Tensor) -> Tensor:
    """Return the learning rates [S] after `updates` [S] int64 updates with the hyper-parameters of the seeds."""
    if settings.learning_rate_schedule == "constant" or not is_read(settings, "learning_rate_schedule"):
        return hyper.learning_rate
    return torch.as_tensor(_schedule(_with(settings, hyper.numbers), hyper.learning_rate)(updates))


def _cosine(step: Tensor, start: Scalar, end: Scalar, steps: int) -> Tensor:
    """Follow `schedules.cosine` to its end and stay there, because a run may be extended."""
    return schedules.cosine(step.clamp_max(steps), start, end, steps)


def hyper(settings: Settings, device: torch.device | None = None) -> Hyper:
    """Return the hyper-parameters, tensors [S, ...] of all learners. `epsilon_fraction` is converted to steps."""
    check.kind("settings", settings, Settings)
    names = ("learning_rate", "gamma", "epsilon_start", "epsilon_end", "tau", "max_grad_norm")
    numbers = {
        name: torch.stack([torch.as_tensor(x, dtype=_NUMBERS[name]) for x in values])
        for name, values in _varied_numbers(settings).items()
    }
    return training.hyper(
        settings.learners,
        **{name: _over_lanes(settings, [getattr(one, name) for one in each(settings)]) for name in names},
        epsilon_steps=_over_lanes(settings, [one.epsilon_fraction * one.steps for one in each(settings)]),
        numbers={name: x.repeat_interleave(settings.seeds, 0) for name, x in numbers.items()},
        device=device,
    )


def _over_lanes(settings: Settings, values: list[float]) -> float | list[float]:
    return [value for value in values for _ in range(settings.seeds)] if isinstance(settings, Sweep) else values[0]


_NUMBERS: dict[str, torch.dtype] = {
    **dict.fromkeys(("learning_rate_end", "learning_rate_decay", "learning_rate_decay_every"), torch.float64),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "rmsprop_decay"), torch.float64),
    **dict.fromkeys(("priority_alpha", "priority_beta"), torch.float64),
    **dict.fromkeys(("adam_eps", "huber_delta", "kappa", "q_lambda", "stream_kappa", "support"), torch.float32),
    **dict.fromkeys(("munchausen_alpha", "munchausen_tau", "munchausen_clip"), torch.float32),
    "target_period": torch.int64,
}
"""Numbers in `Hyper.numbers` that a sweep may vary in one program, with the dtype in which their Python numbers
compute."""


def _varied_numbers(settings: Settings) -> dict[str, list[Any]]:
    """Return the values of each number that a sweep varies, other than the fields of `Hyper`; none without a sweep."""
    if not isinstance(settings, Sweep):
        return {}
    varied = {name: [one[name] for one in settings.varied] for name in settings.varied[0] if name in _NUMBERS}
    if {"v_min", "v_max"} & settings.varied[0].keys():
        varied["support"] = [torch.linspace(one.v_min, one.v_max, one.atoms) for one in each(settings)]
    return varied


def free_names() -> set[str]:
    """Return the names of the settings that may differ between the lanes of one program."""
    return {"v_min", "v_max", "epsilon_fraction", *_NUMBERS, *Hyper._fields} - {"support", "numbers", "epsilon_steps"}


def in_one_program(settings: Settings) -> tuple[Any, ...]:
    """Return a key that is equal for settings that differ only in numbers that one program reads per seed."""
    free = free_names()
    shared = [getattr(settings, field.name) for field in dataclasses.fields(Settings) if field.name not in free]
    # Soft updates, clipping and the absolute value are other programs than hard copies, no clipping and the Huber loss.
    return (*shared, settings.tau == 1, math.isfinite(settings.max_grad_norm), settings.kappa == 0)


def seeds(settings: Settings) -> range:
    """Return the seeds of the run; for a sweep, the numbers of its lanes."""
    check.kind("settings", settings, Settings)
    return (
        range(settings.learners)
        if isinstance(settings, Sweep)
        else range(settings.seed, settings.seed + settings.seeds)
    )


def name(settings: Settings, lane: int) -> str:
    """Return the name of lane number `lane` for messages, such as `seed 3` or `setting 2, seed 3`."""
    setting, seed = divmod(lane, settings.seeds)
    return (
        f"setting {setting}, seed {settings.seed + seed}"
        if isinstance(settings, Sweep)
        else f"seed {settings.seed + seed}"
    )


def keys(settings: Settings) -> Tensor:
    """Return the random keys [S, 2] of the seeds, on the CPU. All settings of a sweep have the same keys."""
    check.kind("settings", settings, Settings)
    first = range(settings.seed, settings.seed + settings.seeds)
    return random.key([*first] * len(each(settings)))


def device(settings: Settings) -> torch.device:
    """Return the device of the settings. Raises ValueError for CUDA or a GPU that is not available."""
    check.kind("settings", settings, Settings)
    name = settings.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = torch.device(name)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: expected an available one, got {name}, but torch finds no CUDA device; use --device cpu"
        )
    if found.index is not None and found.index >= (count := torch.cuda.device_count()):
        raise ValueError(f"device: expected a GPU from cuda:0 to cuda:{count - 1}, got {name}")
    return found


def clipped(rule: Callable[[Hyper], Optimizer]) -> Callable[[Hyper], Optimizer]:
    """Return `rule` preceded by clipping of the gradients by their global norm."""
    check.function("rule", rule)
    return partial(_clipped, rule)


def _clipped(rule: Callable[[Hyper], Optimizer], hyper: Hyper) -> Optimizer:
    return optim.chain(clip=optim.clip_by_global_norm(hyper.max_grad_norm), rule=rule(hyper))


def adam(hyper: Hyper, beta1: Scalar = 0.9, beta2: Scalar = 0.999, eps: Scalar = 1e-8) -> Optimizer:
    """Make Adam. Kingma and Ba 2015, https://arxiv.org/abs/1412.6980"""
    return optim.adam(hyper.learning_rate, beta1, beta2, eps)


def rmsprop(hyper: Hyper, decay: Scalar = 0.95) -> Optimizer:
    """Make the RMSprop of MinAtar's DQN. Young and Tian 2019, https://arxiv.org/abs/1903.03176"""
    return optim.centered_rmsprop(hyper.learning_rate, decay=decay, eps=0.01)


def nature_rmsprop(hyper: Hyper, decay: Scalar = 0.95) -> Optimizer:
    """Make the RMSprop of the Nature DQN. Mnih et al. 2015, https://doi.org/10.1038/nature14236

    The paper adds 0.01 to the variance of gradients that are summed over 32 rows. Here gradients are means over the
    rows, and their variance is smaller by a factor of 32**2.
    """
    return optim.graves_rmsprop(hyper.learning_rate, decay=decay, eps=0.01 / 32**2)


_ARGUMENTS = {"adam_beta1": "beta1", "adam_beta2": "beta2", "adam_eps": "eps", "rmsprop_decay": "decay"}
"""Arguments of optimizers by the setting that gives them."""


def _with_rate(rule: Callable[..., Optimizer], hyper: Hyper, **numbers: Scalar) -> Optimizer:
    return rule(hyper.learning_rate, **numbers)


_RULES: dict[str, Callable[..., Optimizer]] = {
    "adam": adam,
    "adamw": partial(_with_rate, optim.adamw),
    "adamax": partial(_with_rate, optim.adamax),
    "nadam": partial(_with_rate, optim.nadam),
    "radam": partial(_with_rate, optim.radam),
    "adagrad": partial(_with_rate, optim.adagrad),
    "sgd": partial(_with_rate, optim.sgd),
    "torch-rmsprop": partial(_with_rate, optim.rmsprop),
    "rmsprop": rmsprop,
    "nature-rmsprop": nature_rmsprop,
}


def _config(settings: Settings, on_host: bool) -> training.Config:
    """Return the sizes of the program. Raises ValueError for sizes that do not fit together."""
    common: dict[str, Any] = dict(
        num_envs=settings.num_envs,
        steps_per_cycle=settings.steps_per_cycle,
        updates_per_cycle=settings.updates_per_cycle,
        batch_size=settings.batch_size,
        clip_rewards=settings.clip_rewards,
        terminal_on_life_loss=settings.terminal_on_life_loss,
        terminal_on_truncation=settings.terminal_on_truncation,
    )
    if settings.algorithm in ("pqn", "stream-q"):
        # Nothing is stored beyond a training iteration, and there is no target network.
        rows = max(settings.num_envs * settings.steps_per_cycle, settings.batch_size, 1)
        return training.Config(**common, capacity=rows, learning_starts=0, target_period=0)
    # A seed stores at most one row per step, rounded up to whole training iterations.
    cycle = settings.num_envs * settings.steps_per_cycle
    steps = math.ceil(settings.steps / cycle) * cycle if cycle > 0 else settings.steps
    if settings.learning_starts > steps - cycle:
        raise ValueError(
            f"learning_starts: expected fewer than steps = {settings.steps} in whole training iterations of {cycle}, "
            f"got {settings.learning_starts}: no update would be made"
        )
    copies = settings.tau == 1 and "target_period" not in _varied_numbers(settings)  # else the update makes them
    config = training.Config(
        **common,
        capacity=min(settings.capacity, max(steps, settings.batch_size)),
        learning_starts=settings.learning_starts,
        target_period=settings.target_period if copies else 0,
        n_step=settings.n_step,
        random_warmup=settings.random_warmup,
    )
    # Host environments: the last step of an iteration is stored in the next one, and every second step may be a reset
    # without a transition.
    if on_host and settings.learning_starts < (least := config.steps_before_rows(2 * config.n_step)):
        raise ValueError(
            f"learning_starts: expected at least {least} in a host environment, got {settings.learning_starts}: its "
            "steps are stored one training iteration later, and some only start an episode"
        )
    return config


def updates(settings: Settings) -> int:
    """Return the number of updates of a seed in the whole run."""
    check.kind("settings", settings, Settings)
    config = _config(settings, on_host=False)
    learning = settings.steps - config.warmup_steps
    return math.ceil(learning / config.env_steps) * config.updates_per_cycle


def _check_settings(settings: Settings) -> None:
    """Raise ValueError for settings out of range or not read, and for a sweep that one program cannot train."""
    for number, one in enumerate(each(settings)):
        try:
            _check_ranges(one)
            check_read(one)
            hyper(one)
        except ValueError as error:
            where = f" (setting {number} of the sweep)" if isinstance(settings, Sweep) else ""
            raise ValueError(f"{error}{where}") from None
    if len({in_one_program(one) for one in each(settings)}) > 1:
        raise ValueError("varied: expected settings that one program can train, got others; use sweep_plan.plan")
    if isinstance(settings, Sweep) and settings.pbt_every:
        _check_population(settings)


EVOLVING = (set(Hyper._fields) | set(_NUMBERS)) - {"epsilon_steps", "numbers", "support"}
"""Settings that population based training changes: numbers that each learner has under the same name."""


def check_evolves(names: Iterable[str]) -> None:
    """Raise ValueError for a varied setting that population based training cannot change."""
    for name in names:
        if name not in EVOLVING:
            raise ValueError(
                f"{name}: expected one value with pbt_every, got several; population based training cannot change it "
                "while a learner trains"
            )


def _check_population(settings: Sweep) -> None:
    """Raise ValueError for population based training that is not defined, or too early or late for an effect."""
    every, names = settings.pbt_every, settings.varied[0].keys()
    if len(settings.varied) < 2:
        raise ValueError(f"pbt_every: expected at least 2 settings, got {len(settings.varied)}; use more values")
    if settings.algorithm == "stream-q":
        raise ValueError(
            "pbt_every: expected another algorithm, got stream-q, whose scale of rewards depends on what a learner has "
            "seen and cannot be copied to another"
        )
    check_evolves(names)
    if every < 1 or every % settings.report_every:
        whole = max(every, 0) // settings.report_every
        near = dict.fromkeys(str(number * settings.report_every) for number in (max(whole, 1), whole + 1))
        raise ValueError(
            f"pbt_every: expected a multiple of report_every = {settings.report_every}, got {every}; use "
            f"{' or '.join(near)}"
        )
    starts = _config(settings, on_host=False).warmup_steps
    if not starts < every < settings.steps:
        raise ValueError(
            f"pbt_every: expected more than the {starts} steps before the first update and fewer than steps = "
            f"{settings.steps}, got {every}"
        )
    for name, (low, high) in settings.bounds.items():
        if name not in names or not all(low <= one[name] <= high for one in settings.varied):
            raise ValueError(f"bounds: expected the range of a varied number, got {name} from {low} to {high}")
    if missing := names - settings.bounds.keys():
        raise ValueError(f"bounds: expected a range for {min(missing)}, got none")


def _check_ranges(settings: Settings) -> None:
    """Raise ValueError for settings out of range, alone or in combination."""
    for name, least in _LEAST.items():
        if getattr(settings, name) < least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(settings, name)}")
    for name, (low, high, ends) in _RANGES.items():
        value = getattr(settings, name)
        if not low <= value <= high or (value == low and ends[0] == "(") or (value == high and ends[1] == ")"):
            raise ValueError(f"{name}: expected a number in {ends[0]}{low:g}, {high:g}{ends[1]}, got {value}")
    if settings.seeds > 2**20:
        raise ValueError(f"seeds: expected at most 2**20, got {settings.seeds}")
    if settings.steps > 2**53:
        raise ValueError(f"steps: expected at most 2**53, got {len(str(settings.steps))} digits")
    if settings.seed + settings.seeds > 2**32:
        raise ValueError(
            f"seed: expected seeds below 2**32, got {settings.seed} to {settings.seed + settings.seeds - 1}"
        )
    if settings.max_grad_norm == 0:
        raise ValueError("max_grad_norm: expected a number above 0, got 0, which would clip every gradient to 0")
    for name in ("v_min", "v_max"):
        if not math.isfinite(getattr(settings, name)):
            raise ValueError(f"{name}: expected a finite number, got {getattr(settings, name)}")
    if settings.v_min >= settings.v_max:
        raise ValueError(
            f"v_min: expected a number below v_max = {settings.v_max}, got {settings.v_min}; the returns of the "
            "environment must lie between them"
        )
    _check_single_precision(settings)
    if not settings.compile and settings.engine not in ("auto", "eager"):
        raise ValueError(
            f"engine: expected 'eager' or 'auto' with --no-compile (compile=False), got {settings.engine!r}; omit one "
            "of them"
        )
    if settings.tau == 1 and settings.target_period < 1:
        raise ValueError(f"target_period: expected at least 1 with tau 1, got {settings.target_period}")


def _check_single_precision(settings: Settings) -> None:
    """Raise ValueError for numbers that are 0, infinite or equal to each other in float32, which learners use."""
    for name, value in dataclasses.asdict(settings).items():
        if isinstance(getattr(Settings, name), float) and _LARGEST < abs(value) < math.inf:
            raise ValueError(f"{name}: expected a number from {-_LARGEST:g} to {_LARGEST:g}, got {value}")
    for name in ("tau", "munchausen_tau", "huber_delta", "kappa", "stream_kappa"):
        if 0 < (value := getattr(settings, name)) < _SMALLEST:
            raise ValueError(f"{name}: expected at least {_SMALLEST:.2g}, the smallest number of float32, got {value}")
    low, high, atoms = settings.v_min, settings.v_max, settings.atoms
    if (high - low) / (atoms - 1) < max(abs(low) * 2**-22, abs(high) * 2**-22, _SMALLEST):
        raise ValueError(
            f"atoms: expected atoms that differ in float32, got {atoms} from {low} to {high}; use fewer or a "
            "wider support"
        )


_SMALLEST, _LARGEST = 2.0**-126, 1e38
"""Smallest normal number of float32, and a bound so that sums of a few numbers are finite in it."""

# Smallest value of a setting.
_LEAST = {
    **dict.fromkeys(("seeds", "steps", "report_every", "keep_checkpoints", "evaluate_episodes"), 1),
    **dict.fromkeys(("seed", "evaluate_steps", "evaluate_every", "checkpoint_every"), 0),
    **dict.fromkeys(("quantiles", "fractions", "cosines", "learning_rate_decay_every"), 1),
    "atoms": 2,
}

_RANGES = {
    **dict.fromkeys(("epsilon_fraction", "evaluate_epsilon"), (0, 1, "[]")),
    **dict.fromkeys(("priority_alpha", "priority_beta", "munchausen_alpha", "q_lambda"), (0, 1, "[]")),
    **dict.fromkeys(("tau", "learning_rate_decay"), (0, 1, "(]")),
    **dict.fromkeys(("sigma_zero", "learning_rate_end", "adam_eps", "kappa"), (0, math.inf, "[)")),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "rmsprop_decay"), (0, 1, "[)")),
    **dict.fromkeys(("munchausen_tau", "stream_kappa", "huber_delta"), (0, math.inf, "()")),
    "munchausen_clip": (-math.inf, 0, "(]"),
}
"""Smallest and largest value of a setting, and brackets that show which of them are included."""
