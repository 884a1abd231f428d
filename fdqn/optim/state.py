"""Initial states of optimizers, and checks of their arguments."""

import math
from typing import Any

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.types import Params, Scalar, Schedule


def no_updates(params: Params) -> Tensor:
    """Return an update count of 0."""
    return torch.zeros((), dtype=torch.int64, device=first(params).device)


def zeros(params: Params) -> Params:
    """Return zeros like the parameters: the initial value of a sum or mean."""
    return tree.map(torch.zeros_like, params)


def first(params: Params) -> Tensor:
    """Return one of the parameters, for its device. Raises ValueError for an empty tree, TypeError for integers."""
    if not (leaves := tree.leaves(params)):
        raise ValueError("params: expected at least one tensor, got an empty tree")
    for path, leaf in zip(tree.paths(params), leaves, strict=True):
        check.floating(f"params{path}", leaf)
    return leaves[0]


def check_fit(kind: Any, grads: Params, state: Any, params: Params) -> None:
    """Raise ValueError or TypeError unless gradients and state belong to these parameters and this optimizer."""
    check.same("grads", params, grads)
    if not isinstance(state, kind):
        raise TypeError(f"state: expected {kind.__name__}, as init makes it, got {type(state).__name__}")
    for name, x in zip(kind._fields, state, strict=True):
        if isinstance(x, dict):
            check.same(f"state.{name}", params, x)


def rate(learning_rate: Scalar | Schedule, count: Tensor) -> Scalar:
    """Return the learning rate after `count` updates. Raises TypeError for a schedule whose value is not a float."""
    if not callable(learning_rate):
        return learning_rate
    value = learning_rate(count)
    check.number("learning_rate(count)", value)
    return value


def check_rate(learning_rate: Scalar | Schedule) -> None:
    """Raise TypeError for an integer, which is a step mistaken for a rate, and ValueError for a negative number."""
    if not callable(learning_rate):
        check.number("learning_rate", learning_rate)
        if not isinstance(learning_rate, Tensor) and math.isinf(learning_rate):
            raise ValueError("learning_rate: expected a finite number, got inf")
        if isinstance(learning_rate, int):
            raise TypeError(
                f"learning_rate: expected a float, a float tensor or a schedule, got the int {learning_rate}"
            )
