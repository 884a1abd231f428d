"""Schedules: values as functions of a step.

Bind the constants with `functools.partial` to make a `types.Schedule`:
`partial(schedules.linear, start=1.0, end=0.05, steps=50_000)`.

Each schedule equals one of `torch.optim.lr_scheduler` at every step, in closed form: it depends on the step and not on
the previous value. Steps are converted to float64, because float32 would round large counts. Constants may be tensors,
for example one value a seed.

Shapes: step and the result [...]; constants that are tensors broadcast with them. `steps`, `every`, `starts` and
`milestones` are in the unit of `step`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fdqn import check
from fdqn.types import Scalar, Schedule


def constant(step: Tensor, value: Scalar) -> Tensor:
    """Return `value` at every step."""
    _check(step, value=value)
    return torch.zeros_like(step, dtype=torch.float64) + _double(value, step)


def linear(step: Tensor, start: Scalar, end: Scalar, steps: Scalar) -> Tensor:
    """Interpolate linearly from `start` at step 0 to `end` at `steps`, then stay there; `end` throughout if `steps` is
    0.

        start + (end - start) * min(step / steps, 1)

    `torch.optim.lr_scheduler.LinearLR`.
    """
    _check(step, start=start, end=end, steps=steps)
    return _between(step, start, end, _done(step, steps))


def polynomial(step: Tensor, start: Scalar, steps: Scalar, power: Scalar, end: Scalar = 0.0) -> Tensor:
    """Decay polynomially from `start` at step 0 to `end` at `steps`, then stay there. A power above 1 decays fast at
    first.

        end + (start - end) * (1 - min(step / steps, 1)) ** power

    `torch.optim.lr_scheduler.PolynomialLR`, whose end is 0.
    """
    _check(step, start=start, steps=steps, power=power, end=end)
    return _between(step, end, start, (1.0 - _done(step, steps)) ** power)


def exponential(step: Tensor, start: Scalar, decay: Scalar) -> Tensor:
    """Multiply `start` by `decay` at every step.

        start * decay ** step

    `torch.optim.lr_scheduler.ExponentialLR`.
    """
    _check(step, start=start, decay=decay)
    return _double(start, step) * _double(decay, step) ** step.double()


def staircase(step: Tensor, start: Scalar, decay: Scalar, every: Scalar) -> Tensor:
    """Multiply `start` by `decay` after every `every` steps.

        start * decay ** floor(step / every)

    Raises ValueError unless `every` is above 0. `torch.optim.lr_scheduler.StepLR`.
    """
    _check(step, start=start, decay=decay, every=every)
    _check_positive("every", every)
    return _double(start, step) * _double(decay, step) ** (step.double() / _double(every, step)).floor()


def milestones(step: Tensor, start: Scalar, decay: Scalar, milestones: Sequence[Scalar]) -> Tensor:
    """Multiply `start` by `decay` at each of the milestones.

        start * decay ** (number of milestones <= step)

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
    """Follow a cosine from `start` at step 0 to `end` at `steps`, and on: after `steps` the value rises back to
    `start`.

        end + (start - end) * (1 + cos(pi * step / steps)) / 2

    Pass `step.clamp_max(steps)` to stay at the end. Raises ValueError unless `steps` is above 0.
    Loshchilov, Hutter 2017, https://arxiv.org/abs/1608.03983; `torch.optim.lr_scheduler.CosineAnnealingLR`.
    """
    _check(step, start=start, end=end, steps=steps)
    _check_positive("steps", steps)
    return _between(step, end, start, (1.0 + (math.pi * step.double() / _double(steps, step)).cos()) / 2.0)


def cosine_restarts(step: Tensor, start: Scalar, end: Scalar, steps: Scalar, growth: int = 1) -> Tensor:
    """Anneal from `start` to `end` along half a cosine, with warm restarts; the first period takes `steps`, each
    following one `growth` times as many.

    Raises ValueError unless `growth` is a whole number of at least 1 and `steps` is above 0. Loshchilov, Hutter 2017,
    https://arxiv.org/abs/1608.03983; `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`.
    """
    _check(step, start=start, end=end, steps=steps, growth=growth)
    if growth < 1 or growth != int(growth):
        raise ValueError(f"growth: expected a whole number of at least 1, got {growth}")
    _check_positive("steps", steps)
    time, steps = step.double(), _double(steps, step)
    if growth == 1:
        return cosine(time.remainder(steps), start, end, steps)
    # Restart n happens at step steps * (growth**n - 1) / (growth - 1). The rounded logarithm is n or n + 1.
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
    """Rise to `peak` and fall again, both along half a cosine; constant after the last step, `steps - 1`.

    Args:
        step: Step, [...].
        peak: Highest value.
        steps: Length of the whole schedule.
        warm: Fraction of the steps that rise, in [0, 1].
        start_divisor: The value at step 0 is `peak / start_divisor`.
        end_divisor: The last value is `peak / start_divisor / end_divisor`.

    Raises ValueError unless `steps` and the divisors are above 0. Smith, Topin 2019, https://arxiv.org/abs/1708.07120;
    `torch.optim.lr_scheduler.OneCycleLR`.
    """
    _check(step, peak=peak, steps=steps, start_divisor=start_divisor, end_divisor=end_divisor)
    if not isinstance(warm, Tensor):
        check.fraction("warm", warm)
    for name, x in (("steps", steps), ("start_divisor", start_divisor), ("end_divisor", end_divisor)):
        _check_positive(name, x)
    start, last = _double(peak, step) / start_divisor, _double(steps, step) - 1.0
    top = (warm * _double(steps, step) - 1.0).clamp_min(1e-30)  # avoids 0 / 0 if nothing rises
    time = step.double().minimum(last)
    return torch.where(
        time <= top, cosine(time, start, peak, top), cosine(time - top, peak, start / end_divisor, last - top)
    )


def warm_up(step: Tensor, schedule: Schedule, steps: int, start_factor: Scalar = 0.0) -> Tensor:
    """Increase linearly from `start_factor` times the first value of `schedule` to that value at `steps`, then follow
    `schedule`.

    `schedule` counts from the end of the warm-up. `torch.optim.lr_scheduler.LinearLR`, followed by another scheduler in
    a `SequentialLR`.
    """
    check.function("schedule", schedule)
    check.count("steps", steps)
    _check(step, start_factor=start_factor)
    first = schedule(torch.zeros_like(step))
    return sequence(step, [lambda s: linear(s, start_factor * first, first, steps), schedule], [steps])


def sequence(step: Tensor, schedules: Sequence[Schedule], starts: Sequence[Scalar]) -> Tensor:
    """Run schedules one after the other. Schedule i + 1 takes over at `starts[i]` and counts its steps from there.

    `torch.optim.lr_scheduler.SequentialLR`. Raises ValueError unless every schedule but the first has a start and the
    starts ascend.
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
        started = step >= start
        # A schedule need not be defined for negative steps, so it is evaluated at 0 before its start.
        value = torch.where(started, schedule(torch.where(started, step - start, torch.zeros_like(step))), value)
    return value


def _check(step: Tensor, **constants: Scalar) -> None:
    """Raise TypeError unless `step` is a tensor and the constants are numbers or tensors, and ValueError for NaN."""
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
    """Return the fraction of the steps that is done, at most 1."""
    length = _double(steps, step)
    return torch.where(step >= length, 1.0, step.double() / length.clamp_min(1e-30))


def _between(step: Tensor, a: Scalar, b: Scalar, fraction: Tensor) -> Tensor:
    """Interpolate between `a` at fraction 0 and `b` at fraction 1. The weighted sum is exact at both ends."""
    return (1.0 - fraction) * _double(a, step) + fraction * _double(b, step)


def _wide(step: Tensor) -> Tensor:
    """Widen the step to int64, because comparing a narrower integer with a larger number would wrap."""
    return step.to(torch.promote_types(step.dtype, torch.int64))


def _double(value: Scalar, step: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(step.device, torch.float64)
    # Created on the device: copying a CPU tensor there would synchronize.
    return torch.full((), value, dtype=torch.float64, device=step.device)
