"""Values as functions of a step. Bind the constants with `functools.partial` to make a `types.Schedule`:
`partial(schedules.linear, start=1.0, end=0.05, steps=50_000)`.

A step is a count, so it is taken as float64: float32 would round what is computed of it.
"""

import torch
from torch import Tensor

from fdqn.types import Scalar


def constant(step: Tensor, value: Scalar) -> Tensor:
    """`value` at every step. Shapes: step and the result [...]."""
    return torch.zeros_like(step, dtype=torch.float64) + value


def linear(step: Tensor, start: Scalar, end: Scalar, steps: Scalar) -> Tensor:
    """From `start` at step 0 to `end` at `steps`, then constant; `end` throughout where `steps` is 0.

        start + (end - start) * min(step / steps, 1)

    Shapes: step and the result [...]; steps in the unit of step.
    """
    length = torch.as_tensor(steps, dtype=torch.float64, device=step.device)
    done = torch.where(step >= length, 1.0, step.double() / length.clamp_min(1e-30))
    # Weighted from both sides, so that either end is met exactly.
    return (1.0 - done) * start + done * end


def exponential(step: Tensor, start: Scalar, decay: Scalar) -> Tensor:
    """`start` times `decay` a step: `torch.optim.lr_scheduler.ExponentialLR`.

        start * decay ** step

    Shapes: step and the result [...].
    """
    return start * torch.as_tensor(decay, dtype=torch.float64, device=step.device) ** step
