"""Sizes that shape a training program, and the hyper-parameters that may differ between seeds."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fdqn import check
from fdqn.types import Hyper


@dataclass(frozen=True)
class Config:
    """What shapes the program: plain numbers, checked once. Raises ValueError for sizes that cannot work."""

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
    """Environment steps a lane before the first update."""
    target_period: int = 20
    """Updates between hard target copies; 0 for a soft copy of share `Hyper.tau` at every update."""
    n_step: int = 1
    """Environment steps that a transition spans."""
    clip_rewards: bool = False
    """Learn from rewards clipped to [-1, 1]; what is reported is not."""
    terminal_on_life_loss: bool = False
    """Learn as if an episode ended where a life is lost; what is reported does not."""
    random_warmup: bool = False
    """Act uniformly at random until learning starts, and anneal epsilon from there instead of from the first step."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool):
                check.kind(field.name, getattr(self, field.name), bool)
                continue
            least = 0 if field.name in ("learning_starts", "target_period") else 1
            check.count(field.name, getattr(self, field.name), least)
        if self.batch_size > self.capacity:
            raise ValueError(f"batch_size {self.batch_size} exceeds capacity {self.capacity}")
        if self.num_envs > self.capacity:
            raise ValueError(f"num_envs {self.num_envs} exceeds capacity {self.capacity}: one step would not fit")
        if (least := self.steps_before_rows(self.n_step)) > self.learning_starts:
            raise ValueError(
                f"learning_starts: expected at least {least} with n_step = {self.n_step}, got {self.learning_starts}: "
                "updates would come before the first row"
            )
        if self.target_period % self.updates_per_cycle:
            raise ValueError(
                f"target_period {self.target_period} is not a multiple of updates_per_cycle {self.updates_per_cycle}: "
                "hard copies happen between cycles"
            )

    def steps_before_rows(self, steps: int) -> int:
        """The least `learning_starts` with which each environment has taken so many steps before the first update."""
        cycles = math.ceil(steps / self.steps_per_cycle) - 1  # the cycle of the first update takes steps too
        return (cycles - 1) * self.env_steps + 1 if cycles > 0 else 0

    @property
    def warmup_steps(self) -> int:
        """Environment steps a lane before the cycle of the first update."""
        return math.ceil(self.learning_starts / self.env_steps) * self.env_steps

    @property
    def env_steps(self) -> int:
        """Environment steps of one lane in a cycle, all of its environments together."""
        return self.num_envs * self.steps_per_cycle


def hyper(
    lanes: int,
    learning_rate: float | Sequence[float] = 2e-3,
    gamma: float | Sequence[float] = 0.99,
    epsilon_start: float | Sequence[float] = 1.0,
    epsilon_end: float | Sequence[float] = 0.05,
    epsilon_steps: float | Sequence[float] = 10_000,
    tau: float | Sequence[float] = 1.0,
    max_grad_norm: float | Sequence[float] = 10.0,
    device: torch.device | str | None = None,
) -> Hyper:
    """The hyper-parameters [S] of `lanes` lanes on `device`; each is a number for all or one number a lane.

    Raises ValueError for a value out of range and TypeError for what is no number, naming it.
    """
    given = Hyper(learning_rate, gamma, epsilon_start, epsilon_end, epsilon_steps, tau, max_grad_norm)  # type: ignore[arg-type]
    check.count("lanes", lanes, 1)
    for name, value in given._asdict().items():
        low, high = {
            "learning_rate": (0, math.inf),
            "epsilon_steps": (0, math.inf),
            "max_grad_norm": (0, math.inf),
        }.get(name, (0, 1))
        values = _numbers(name, value)
        if values.ndim > 1 or (values.ndim == 1 and len(values) != lanes):
            raise ValueError(
                f"{name}: expected a number or {lanes} of them, one a lane, got shape {list(values.shape)}"
            )
        if not ((values >= low) & (values <= high)).all():
            raise ValueError(f"{name}: expected numbers in [{low}, {high}], got {value}")
        if name == "tau" and not (values > 0).all():
            raise ValueError(f"tau: expected numbers above 0, got {value}: the target would never move")
        if name != "max_grad_norm" and not values.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, got {value}")
    return Hyper(*(torch.as_tensor(value, dtype=torch.float32, device=device).expand(lanes).clone() for value in given))


def _numbers(name: str, value: Any) -> Tensor:
    try:
        if not isinstance(value, bool):
            return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"{name}: expected a number or several, one a lane, got {value!r}")
