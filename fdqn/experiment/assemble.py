"""Assemble the program, hyper-parameters, keys and device of a run from its settings, and reject invalid settings."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fdqn import check, envs, networks, optim, random, replay, training
from fdqn.agents import dqn
from fdqn.experiment.settings import Settings
from fdqn.ops import losses
from fdqn.training import off_policy
from fdqn.types import Agent, Buffer, EnvSpec, Hyper, Network, Optimizer


def program(settings: Settings) -> training.Program:
    """Return the program of the settings. Raises ValueError or TypeError for invalid settings."""
    check.kind("settings", settings, Settings)
    found = envs.find(settings.env)
    _checked(settings)
    if settings.terminal_on_life_loss and not (envs.on_host(found) and found.counts_lives()):
        raise ValueError(
            "terminal_on_life_loss: expected an environment that counts lives, such as ale:Breakout, got "
            f"{settings.env}"
        )
    # A seed stores at most one row per step, rounded up to whole training iterations.
    cycle = settings.num_envs * settings.steps_per_cycle
    steps = math.ceil(settings.steps / cycle) * cycle if cycle > 0 else settings.steps
    if settings.learning_starts > steps - cycle:
        raise ValueError(
            f"learning_starts: expected fewer than steps = {settings.steps} in whole training iterations of "
            f"{cycle}, got "
            f"{settings.learning_starts}: no update would be made"
        )
    rows = min(settings.capacity, max(steps, settings.batch_size))
    config = training.Config(
        num_envs=settings.num_envs,
        steps_per_cycle=settings.steps_per_cycle,
        updates_per_cycle=settings.updates_per_cycle,
        batch_size=settings.batch_size,
        capacity=rows,
        learning_starts=settings.learning_starts,
        target_period=settings.target_period if settings.tau == 1 else 0,
        n_step=settings.n_step,
        clip_rewards=settings.clip_rewards,
        terminal_on_life_loss=settings.terminal_on_life_loss,
        random_warmup=settings.random_warmup,
    )
    # Host environments: the last step of an iteration is stored in the next one, and every second step may be a reset
    # without a transition.
    if envs.on_host(found) and settings.learning_starts < (least := config.steps_before_rows(2 * config.n_step)):
        raise ValueError(
            f"learning_starts: expected at least {least} in a host environment, got {settings.learning_starts}: its "
            "steps are stored one training iteration later, and some only start an episode"
        )
    if not envs.on_host(found) and found.spec.stack > 1 and not settings.save_replay:
        raise ValueError(
            f"save_replay: expected True for {settings.env}, got False; resumed episodes need the stored frames"
        )
    return training.Program(
        found, off_policy.algorithm(config, agent(settings), buffer(config, found.spec), optimizer(settings))
    )


def agent(settings: Settings) -> Agent:
    """Return the DQN agent of the settings. Raises ValueError as `network` does."""
    check.kind("settings", settings, Settings)
    loss = {"mse": losses.squared, "huber": losses.huber}[settings.loss]
    return dqn.agent(network(settings), settings.double, loss)


def optimizer(settings: Settings) -> Callable[[Hyper], Optimizer]:
    """Return the optimizer of the settings as a function of a seed's hyper-parameters."""
    check.kind("settings", settings, Settings)
    rule = {"adam": adam, "rmsprop": rmsprop, "nature-rmsprop": nature_rmsprop}[settings.optimizer]
    return clipped(rule) if math.isfinite(settings.max_grad_norm) else rule


def buffer(config: training.Config, spec: EnvSpec) -> Buffer:
    """Return a uniform replay buffer with the wrappers that the observations and `n_step` require."""
    check.kind("config", config, training.Config)
    rows = replay.ring.buffer(config.capacity)
    if spec.obs_dtype == torch.bool and spec.stack == 1:
        rows = replay.packing.wrap(rows)
    rows = replay.n_step.wrap(rows, config.num_envs, config.n_step)
    if spec.stack == 1:
        return rows
    return replay.frames.wrap(rows, config.num_envs, spec.stack, config.capacity, config.n_step)


def network(settings: Settings) -> Network:
    """Return the network of the settings: MinAtar's for observations [C, 10, 10], the Nature network for larger frames,
    and an MLP over the flattened observation otherwise.

    Raises ValueError if `hidden` or `dueling` is set for a convolutional network, which supports neither.
    """
    check.kind("settings", settings, Settings)
    spec = envs.find(settings.env).spec
    if convolutional := _convolutional(spec.obs_shape):
        if settings.hidden != Settings.hidden or settings.dueling:
            raise ValueError(
                f"{'dueling' if settings.dueling else 'hidden'}: expected the default, as {settings.env} has frames "
                f"{list(spec.obs_shape)}, for which the convolutional network is fixed"
            )
        return convolutional(spec.obs_shape, spec.actions)
    mlp = networks.dueling_mlp if settings.dueling else networks.mlp
    return mlp(spec.obs_shape, settings.hidden, spec.actions)


def hyper(settings: Settings, device: torch.device | None = None) -> Hyper:
    """Return the hyper-parameters, tensors [S]. `epsilon_fraction` is converted to steps."""
    check.kind("settings", settings, Settings)
    return training.hyper(
        settings.seeds,
        learning_rate=settings.learning_rate,
        gamma=settings.gamma,
        epsilon_start=settings.epsilon_start,
        epsilon_end=settings.epsilon_end,
        epsilon_steps=settings.epsilon_fraction * settings.steps,
        tau=settings.tau,
        max_grad_norm=settings.max_grad_norm,
        device=device,
    )


def seeds(settings: Settings) -> range:
    """Return the seeds of the run."""
    check.kind("settings", settings, Settings)
    return range(settings.seed, settings.seed + settings.seeds)


def keys(settings: Settings) -> Tensor:
    """Return the random keys [S, 2] of the seeds, on the CPU."""
    return random.key(seeds(settings))


def device(settings: Settings) -> torch.device:
    """Return the device of the settings. Raises ValueError for CUDA if it is not available."""
    check.kind("settings", settings, Settings)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device: expected an available one, got cuda, but torch finds no CUDA device; use --device cpu"
        )
    use_cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def clipped(rule: Callable[[Hyper], Optimizer]) -> Callable[[Hyper], Optimizer]:
    """Return `rule` preceded by clipping of the gradients by their global norm."""
    check.function("rule", rule)
    return partial(_clipped, rule)


def _clipped(rule: Callable[[Hyper], Optimizer], hyper: Hyper) -> Optimizer:
    return optim.chain(clip=optim.clip_by_global_norm(hyper.max_grad_norm), rule=rule(hyper))


def adam(hyper: Hyper) -> Optimizer:
    """Adam. Kingma and Ba 2015, https://arxiv.org/abs/1412.6980"""
    return optim.adam(hyper.learning_rate)


def rmsprop(hyper: Hyper) -> Optimizer:
    """RMSprop of MinAtar's DQN. Young and Tian 2019, https://arxiv.org/abs/1903.03176"""
    return optim.centered_rmsprop(hyper.learning_rate, decay=0.95, eps=0.01)


def nature_rmsprop(hyper: Hyper) -> Optimizer:
    """RMSprop of the Nature DQN. Mnih et al. 2015, https://doi.org/10.1038/nature14236

    The paper adds 0.01 to the variance of gradients that are summed over 32 rows. Here gradients are means over the
    rows, and their variance is smaller by a factor of 32**2.
    """
    return optim.graves_rmsprop(hyper.learning_rate, decay=0.95, eps=0.01 / 32**2)


def _convolutional(obs_shape: tuple[int, ...]) -> Callable[[tuple[int, ...], int], Network] | None:
    """Return the convolutional network for observations [C, H, W]; None if there is none for this shape."""
    if len(obs_shape) != 3:
        return None
    if obs_shape[1:] == (10, 10):
        return networks.minatar
    return networks.nature if min(obs_shape[1:]) >= networks.SMALLEST_FRAME else None


def _checked(settings: Settings) -> None:
    lowest = dict.fromkeys(("seeds", "steps", "report_every", "keep_checkpoints", "evaluate_episodes"), 1)
    lowest |= dict.fromkeys(("seed", "evaluate_steps", "evaluate_every", "checkpoint_every"), 0)
    for name, least in lowest.items():
        if getattr(settings, name) < least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(settings, name)}")
    if settings.seeds > 2**20:
        raise ValueError(f"seeds: expected at most 2**20, got {settings.seeds}")
    if settings.steps > 2**53:
        raise ValueError(f"steps: expected at most 2**53, got {len(str(settings.steps))} digits")
    if settings.seed + settings.seeds > 2**32:
        raise ValueError(
            f"seed: expected seeds below 2**32, got {settings.seed} to {settings.seed + settings.seeds - 1}"
        )
    if not 0 <= settings.epsilon_fraction <= 1:
        raise ValueError(f"epsilon_fraction: expected a number in [0, 1], got {settings.epsilon_fraction}")
    if not 0 <= settings.evaluate_epsilon <= 1:
        raise ValueError(f"evaluate_epsilon: expected a number in [0, 1], got {settings.evaluate_epsilon}")
    if not 0 < settings.tau <= 1:
        raise ValueError(f"tau: expected a number in (0, 1], got {settings.tau}")
    if settings.max_grad_norm == 0:
        raise ValueError("max_grad_norm: expected a number above 0, got 0, which would clip every gradient to 0")
    if not settings.compile and settings.engine not in ("auto", "eager"):
        raise ValueError(
            f"engine: expected 'eager' or 'auto' with --no-compile (compile=False), got {settings.engine!r}; omit one "
            "of them"
        )
    if settings.tau == 1 and settings.target_period < 1:
        raise ValueError(f"target_period: expected at least 1 with tau 1, got {settings.target_period}")
