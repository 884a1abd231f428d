"""Mean and variance of a stream of numbers, updated with one number at a time."""

import torch
from torch import Tensor

from fdqn import check


def welford(mean: Tensor, var: Tensor, count: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Update mean, sample variance and count of a stream with its next element `x`; return the new ones.

        n = count + 1
        mean' = mean + (x - mean) / n
        var' = var + ((x - mean) * (x - mean') - var) / (n - 1)

    Start with a mean of 0, a variance of 1 and a count of 0. The variance of a single element is 1. The state holds the
    variance instead of the sum of squares, because a large sum stops growing in float32.

    Shapes: mean, var and x [...]; count [] float. Raises ValueError for other shapes and TypeError for dtypes that are
    not floating-point. Welford 1962, https://doi.org/10.2307/1266577
    """
    check.shapes("mean[...] var[...] x[...]", mean, var, x)
    check.shapes("count[]", count)
    for name, value in (("mean", mean), ("var", var), ("count", count), ("x", x)):
        check.floating(name, value)
    number = count + 1
    moved = mean + (x - mean) / number
    spread = var + ((x - mean) * (x - moved) - var) / (number - 1).clamp_min(1)
    return moved, torch.where(number < 2, var, spread), number
