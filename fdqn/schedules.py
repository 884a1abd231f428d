"""Values as functions of a step. Bind the constants with `functools.partial` to make a `types.Schedule`:
`partial(schedules.linear, start=1.0, end=0.05, steps=50_000)`.

A step is a count, so it is taken as float64: float32 would round what is computed of it. Each is one of
`torch.optim.lr_scheduler`, equal to it at every step, as a function of the step and not of the value before; constants
may be tensors, one a lane. Shapes: step and the result [...]; constants that are tensors broadcast with it; `steps`,
`every`, `starts` and `milestones` in the unit of step.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fdqn import check
from fdqn.types import Scalar, Schedule


def constant(step: Tensor, value: Scalar) -> Tensor:
    """`value` at every step."""
    _check(step, value=value)
    return torch.zeros_like(step, dtype=torch.float64) + _double(value, step)


def linear(step: Tensor, start: Scalar, end: Scalar, steps: Scalar) -> Tensor:
    """From `start` at step 0 to `end` at `steps`, then constant; `end` throughout where `steps` is 0.

        start + (end - start) * min(step / steps, 1)

    `torch.optim.lr_scheduler.LinearLR`.
    """
    _check(step, start=start, end=end, steps=steps)
    return _between(step, start, end, _done(step, steps))


def polynomial(step: Tensor, start: Scalar, steps: Scalar, power: Scalar, end: Scalar = 0.0) -> Tensor:
    """From `start` at step 0 to `end` at `steps`, first fast and then slow for a power above 1, then constant.

        end + (start - end) * (1 - min(step / steps, 1)) ** power

    `torch.optim.lr_scheduler.PolynomialLR`, whose end is 0.
    """
    _check(step, start=start, steps=steps, power=power, end=end)
    return _between(step, end, start, (1.0 - _done(step, steps)) ** power)


def exponential(step: Tensor, start: Scalar, decay: Scalar) -> Tensor:
    """`start` times `decay` a step.

        start * decay ** step

    `torch.optim.lr_scheduler.ExponentialLR`.
    """
    _check(step, start=start, decay=decay)
    return _double(start, step) * _double(decay, step) ** step.double()


def staircase(step: Tensor, start: Scalar, decay: Scalar, every: Scalar) -> Tensor:
    """`start`, times `decay` after each `every` steps.

        start * decay ** floor(step / every)

    `torch.optim.lr_scheduler.StepLR`.
    """
    _check(step, start=start, decay=decay, every=every)
    _check_positive("every", every)
    return _double(start, step) * _double(decay, step) ** (step.double() / _double(every, step)).floor()


def milestones(step: Tensor, start: Scalar, decay: Scalar, milestones: Sequence[Scalar]) -> Tensor:
    """`start`, times `decay` from each of the milestones on.

        start * decay ** (how many milestones are at most step)

    `torch.optim.lr_scheduler.MultiStepLR`.
    """
    check.kind("milestones", milestones, Sequence, Tensor)
    _check(step, start=start, decay=decay)
    step = _wide(step)
    passed = sum(
        ((step >= milestone).double() for milestone in milestones), torch.zeros_like(step, dtype=torch.float64)
    )
    return _double(start, step) * _double(decay, step) ** passed


def cosine(step: Tensor, start: Scalar, end: Scalar, steps: Scalar) -> Tensor:
    """From `start` at step 0 along half a cosine to `end` at `steps`, and back up after it, again and again.

        end + (start - end) * (1 + cos(pi * step / steps)) / 2

    With `step.clamp_max(steps)` it stays at the end. Loshchilov, Hutter 2017, https://arxiv.org/abs/1608.03983;
    `torch.optim.lr_scheduler.CosineAnnealingLR`.
    """
    _check(step, start=start, end=end, steps=steps)
    _check_positive("steps", steps)
    return _between(step, end, start, (1.0 + (math.pi * step.double() / _double(steps, step)).cos()) / 2.0)


def cosine_restarts(step: Tensor, start: Scalar, end: Scalar, steps: Scalar, growth: int = 1) -> Tensor:
    """Half a cosine from `start` to `end` over `steps`, then from `start` again over `growth` times as many, and so on.

    `growth` is a whole number of at least 1. Loshchilov, Hutter 2017, https://arxiv.org/abs/1608.03983;
    `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`.
    """
    _check(step, start=start, end=end, steps=steps, growth=growth)
    if growth < 1 or growth != int(growth):
        raise ValueError(f"growth: expected a whole number of at least 1, got {growth}")
    _check_positive("steps", steps)
    time, steps = step.double(), _double(steps, step)
    if growth == 1:
        return cosine(time.remainder(steps), start, end, steps)
    # Before restart n lie steps * (growth**n - 1) / (growth - 1) steps. A rounded logarithm is n or one too many.
    units = time / steps * (growth - 1) + 1.0
    guess = (units.log() / math.log(growth)).round()
    restarts = torch.where(float(growth) ** guess > units, guess - 1, guess)
    length = steps * float(growth) ** restarts
    return cosine(time - (length - steps) / (growth - 1), start, end, length)


def one_cycle(
    step: Tensor,
    peak: Scalar,
    steps: Scalar,
    warm: Scalar = 0.3,
    start_divisor: Scalar = 25.0,
    end_divisor: Scalar = 1e4,
) -> Tensor:
    """Up to `peak` over the share `warm` of the steps and down again over the rest, both along half a cosine.

    From `peak / start_divisor` at step 0 to `peak / start_divisor / end_divisor` at the last, `steps - 1`, and constant
    after it. Smith, Topin 2019, https://arxiv.org/abs/1708.07120; `torch.optim.lr_scheduler.OneCycleLR`.
    """
    _check(step, peak=peak, steps=steps, start_divisor=start_divisor, end_divisor=end_divisor)
    if not isinstance(warm, Tensor):
        check.share("warm", warm)
    for name, x in (("steps", steps), ("start_divisor", start_divisor), ("end_divisor", end_divisor)):
        _check_positive(name, x)
    start, last = _double(peak, step) / start_divisor, _double(steps, step) - 1.0
    top = (warm * _double(steps, step) - 1.0).clamp_min(1e-30)  # no rise at all is a step of no length
    time = step.double().minimum(last)
    return torch.where(
        time <= top, cosine(time, start, peak, top), cosine(time - top, peak, start / end_divisor, last - top)
    )


def warm_up(step: Tensor, schedule: Schedule, steps: int, share: Scalar = 0.0) -> Tensor:
    """In a line from `share` of a schedule's first value to that value at `steps`, then the schedule from its start.

    `torch.optim.lr_scheduler.LinearLR`, followed by another in a `SequentialLR`.
    """
    check.function("schedule", schedule)
    check.count("steps", steps)
    _check(step, share=share)
    first = schedule(torch.zeros_like(step))
    return sequence(step, [lambda s: linear(s, share * first, first, steps), schedule], [steps])


def sequence(step: Tensor, schedules: Sequence[Schedule], starts: Sequence[Scalar]) -> Tensor:
    """One schedule after the other: from each of `starts` on the next, which counts from there.

    `torch.optim.lr_scheduler.SequentialLR`. Raises ValueError unless all but the first schedule have a start.
    """
    if len(starts) != len(schedules) - 1:
        raise ValueError(f"starts: expected one for all of {len(schedules)} schedules but the first, got {len(starts)}")
    for schedule in schedules:
        check.function("schedules", schedule)
    check.tensor("step", step)
    numbers = [start for start in starts if not isinstance(start, Tensor)]
    if numbers != sorted(numbers):
        raise ValueError(f"starts: expected them in ascending order, got {list(starts)}")
    step = _wide(step)
    value = constant(step, schedules[0](step))
    for schedule, start in zip(schedules[1:], starts, strict=True):
        begun = step >= start
        # Before its start a schedule is asked for its first value, since it may not be defined below 0.
        value = torch.where(begun, schedule(torch.where(begun, step - start, torch.zeros_like(step))), value)
    return value


def _check(step: Tensor, **constants: Scalar) -> None:
    """Raise TypeError unless step is a tensor and the constants are numbers or tensors, ValueError for NaN."""
    check.tensor("step", step)
    for name, x in constants.items():
        if isinstance(x, Tensor):
            continue
        if isinstance(x, bool) or not isinstance(x, int | float):
            raise TypeError(f"{name}: expected a number or a tensor, got {x!r}")
        if math.isnan(x) or (name == "steps" and x < 0):
            raise ValueError(f"{name}: expected {'at least 0' if name == 'steps' else 'a number'}, got {x}")


def _check_positive(name: str, x: Scalar) -> None:
    if not isinstance(x, Tensor) and not x > 0:
        raise ValueError(f"{name}: expected a number above 0, got {x}")


def _done(step: Tensor, steps: Scalar) -> Tensor:
    """The share of the steps that is done, at most 1."""
    length = _double(steps, step)
    return torch.where(step >= length, 1.0, step.double() / length.clamp_min(1e-30))


def _between(step: Tensor, a: Scalar, b: Scalar, fraction: Tensor) -> Tensor:
    """`a` at fraction 0 and `b` at fraction 1, both exactly, since each is weighted by itself."""
    return (1.0 - fraction) * _double(a, step) + fraction * _double(b, step)


def _wide(step: Tensor) -> Tensor:
    """The step in int64 where it is a narrower integer, beside which a larger number would wrap."""
    return step.to(torch.promote_types(step.dtype, torch.int64))


def _double(value: Scalar, step: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(step.device, torch.float64)
    # Made on the device: copied there, the host would wait for it.
    return torch.full((), value, dtype=torch.float64, device=step.device)
