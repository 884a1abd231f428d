"""Configuration of a training program, and the hyper-parameters that may differ between seeds."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fdqn import check
from fdqn.types import Hyper


@dataclass(frozen=True)
class Config:
    """Sizes and options of a training program, the same for all seeds.

    Raises TypeError for a value of another type and ValueError for one out of range or values that contradict each
    other.
    """

    num_envs: int = 10
    """Environments per seed."""
    steps_per_cycle: int = 1
    """Steps of each environment in a training iteration."""
    updates_per_cycle: int = 1
    """Updates in a training iteration, made after its steps."""
    batch_size: int = 128
    """Rows per update."""
    capacity: int = 10_000
    """Capacity of the replay buffer of each seed, in rows."""
    learning_starts: int = 1_000
    """Environment steps per seed before the first update."""
    target_period: int = 20
    """Updates between hard copies of the target parameters; 0 for a soft update by `Hyper.tau` after every update."""
    n_step: int = 1
    """Environment steps per transition, for n-step returns."""
    clip_rewards: bool = False
    """Learn from rewards clipped to [-1, 1]. Reported returns are not clipped."""
    terminal_on_life_loss: bool = False
    """Treat a lost life as a termination in learning. Reported episodes continue."""
    terminal_on_truncation: bool = False
    """Treat truncation, such as at a time limit, as termination in learning instead of bootstrapping."""
    random_warmup: bool = False
    """Act uniformly at random until learning starts, and anneal epsilon from then on instead of from the first step."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool):
                check.kind(field.name, getattr(self, field.name), bool)
                continue
            least = 0 if field.name in ("learning_starts", "target_period") else 1
            check.count(field.name, getattr(self, field.name), least)
        if self.batch_size > self.capacity:
            raise ValueError(f"batch_size: expected at most capacity = {self.capacity}, got {self.batch_size}")
        if self.num_envs > self.capacity:
            raise ValueError(
                f"num_envs: expected at most capacity = {self.capacity}, got {self.num_envs}: one step would not fit"
            )
        if (least := self.steps_before_rows(self.n_step)) > self.learning_starts:
            raise ValueError(
                f"learning_starts: expected at least {least} with n_step = {self.n_step}, got {self.learning_starts}: "
                "updates would come before the first row"
            )
        if self.target_period % self.updates_per_cycle:
            raise ValueError(
                f"target_period: expected a multiple of updates_per_cycle = {self.updates_per_cycle}, got "
                f"{self.target_period}: hard copies are made between training iterations"
            )

    def steps_before_rows(self, steps: int) -> int:
        """Return the smallest `learning_starts` for which every environment takes `steps` steps before any update."""
        cycles = math.ceil(steps / self.steps_per_cycle) - 1  # the iteration of the first update takes steps too
        return (cycles - 1) * self.env_steps + 1 if cycles > 0 else 0

    @property
    def warmup_steps(self) -> int:
        """Environment steps per seed before the training iteration of the first update."""
        return math.ceil(self.learning_starts / self.env_steps) * self.env_steps

    @property
    def env_steps(self) -> int:
        """Environment steps per seed in a training iteration, over all of its environments."""
        return self.num_envs * self.steps_per_cycle


def hyper(
    seeds: int,
    learning_rate: float | Sequence[float] = 2e-3,
    gamma: float | Sequence[float] = 0.99,
    epsilon_start: float | Sequence[float] = 1.0,
    epsilon_end: float | Sequence[float] = 0.05,
    epsilon_steps: float | Sequence[float] = 10_000,
    tau: float | Sequence[float] = 1.0,
    max_grad_norm: float | Sequence[float] = 10.0,
    numbers: Mapping[str, Tensor] | None = None,
    device: torch.device | str | None = None,
) -> Hyper:
    """Make the hyper-parameters [S] of `seeds` seeds. Each is a number for all seeds or a sequence of S numbers.

    Args:
        seeds: number of seeds S.
        learning_rate: at least 0.
        gamma: discount factor, in [0, 1].
        epsilon_start: probability of a random action at the start, in [0, 1].
        epsilon_end: probability of a random action after `epsilon_steps`, in [0, 1].
        epsilon_steps: environment steps over which epsilon is annealed linearly.
        tau: weight of the online parameters in a soft target update, in (0, 1].
        max_grad_norm: global norm to which gradients are clipped; infinity for no clipping.
        numbers: further numbers by name, tensors [S, ...]; see `training.parametrized`.
        device: device of the tensors.

    Raises ValueError for a value out of range and TypeError for a value that is not a number; the message names the
    argument.
    """
    check.count("seeds", seeds, 1)
    given: dict[str, Any] = {
        "learning_rate": learning_rate, "gamma": gamma, "epsilon_start": epsilon_start, "epsilon_end": epsilon_end,
        "epsilon_steps": epsilon_steps, "tau": tau, "max_grad_norm": max_grad_norm,
    }  # fmt: skip
    for name, value in given.items():
        low, high = {
            "learning_rate": (0, math.inf),
            "epsilon_steps": (0, math.inf),
            "max_grad_norm": (0, math.inf),
        }.get(name, (0, 1))
        values = _numbers(name, value)
        if values.ndim > 1 or (values.ndim == 1 and len(values) != seeds):
            raise ValueError(
                f"{name}: expected a number or {seeds} of them, one per seed, got shape {list(values.shape)}"
            )
        if not ((values >= low) & (values <= high)).all():
            raise ValueError(f"{name}: expected numbers in [{low}, {high}], got {value}")
        if name == "tau" and not (values > 0).all():
            raise ValueError(f"tau: expected numbers above 0, got {value}: the target would never move")
        if name != "max_grad_norm" and not values.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, got {value}")
    for name, x in (numbers or {}).items():
        check.tensor(f"numbers.{name}", x)
        if x.shape[:1] != (seeds,):
            raise ValueError(f"numbers.{name}: expected a tensor [{seeds}, ...], got shape {list(x.shape)}")
    given = {
        name: torch.as_tensor(value, dtype=torch.float32, device=device).expand(seeds).clone()
        for name, value in given.items()
    }
    return Hyper(**given, numbers={name: value.to(device, copy=True) for name, value in (numbers or {}).items()})


def _numbers(name: str, value: Any) -> Tensor:
    try:
        if not isinstance(value, bool):
            return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"{name}: expected a number or several, one per seed, got {value!r}")
