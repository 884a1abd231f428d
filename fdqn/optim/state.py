"""What states begin with, and what every optimizer asks of its numbers."""

import math
from typing import Any

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.types import Params, Scalar, Schedule


def no_updates(params: Params) -> Tensor:
    """The count of updates before the first."""
    return torch.zeros((), dtype=torch.int64, device=first(params).device)


def zeros(params: Params) -> Params:
    """A sum or mean before the first update."""
    return tree.map(torch.zeros_like, params)


def first(params: Params) -> Tensor:
    """Any of the parameters, for its device. Raises ValueError where there is none, TypeError for integers."""
    if not (leaves := tree.leaves(params)):
        raise ValueError("params: expected at least one tensor, got an empty tree")
    for path, leaf in zip(tree.paths(params), leaves, strict=True):
        check.floating(f"params{path}", leaf)
    return leaves[0]


def check_fit(kind: Any, grads: Params, state: Any, params: Params) -> None:
    """Raise ValueError or TypeError unless gradients and state are those of an optimizer of these parameters."""
    check.same("grads", params, grads)
    if not isinstance(state, kind):
        raise TypeError(f"state: expected {kind.__name__}, as init makes it, got {type(state).__name__}")
    for name, x in zip(kind._fields, state, strict=True):
        if isinstance(x, dict):
            check.same(f"state.{name}", params, x)


def rate(learning_rate: Scalar | Schedule, count: Tensor) -> Scalar:
    """The learning rate after `count` updates. Raises TypeError for a schedule of anything but floats."""
    if not callable(learning_rate):
        return learning_rate
    value = learning_rate(count)
    check.number("learning_rate(count)", value)
    return value


def check_rate(learning_rate: Scalar | Schedule) -> None:
    """Raise TypeError for integers, which are steps taken for rates, and ValueError for a negative number."""
    if not callable(learning_rate):
        check.number("learning_rate", learning_rate)
        if not isinstance(learning_rate, Tensor) and math.isinf(learning_rate):
            raise ValueError("learning_rate: expected a finite number, got inf")
        if isinstance(learning_rate, int):
            raise TypeError(
                f"learning_rate: expected a float, a float tensor or a schedule, got the int {learning_rate}"
            )
