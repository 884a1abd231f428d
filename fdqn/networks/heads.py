"""Heads: the part of a network that turns features into outputs. `networks.join` adds one to a trunk.

The outputs [..., actions * atoms] are `atoms` numbers for each action: one Q-value, or the logits or quantiles of its
distribution of returns. Outputs `i * atoms` to `(i + 1) * atoms` are those of action i.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from fdqn import check
from fdqn.networks import layers as parts
from fdqn.networks.layers import Layer


class Head(NamedTuple):
    """Part of a network from features to outputs."""

    layers: Callable[[int], tuple[Sequence[Layer], ...]]
    """`layers(features)`: the layers of each branch, for this number of features."""
    names: tuple[str, ...]
    """Names of the branches. Empty for a single branch, whose layers `join` numbers after those of the trunk."""
    combine: Callable[..., Tensor]
    """`combine(*branches) -> outputs [..., actions * atoms]`."""
    actions: int
    """Number of actions."""
    atoms: int
    """Number of outputs for each action."""


def linear(actions: int, atoms: int = 1, hidden: Sequence[int] = ()) -> Head:
    """Make a head of a linear layer, with hidden layers and ReLU before it if `hidden` is given.

    Shapes: features [..., F]; outputs [..., actions * atoms]. Raises TypeError for sizes that are not integers and
    ValueError for a size below 1.
    """
    return _linear(actions, atoms, hidden, parts.linear)


def noisy_linear(actions: int, atoms: int = 1, sigma_zero: float = 0.5, hidden: Sequence[int] = ()) -> Head:
    """Make the head `linear` with noisy layers instead of linear ones; see `trunks.noisy_mlp`.

    Shapes and errors: as `linear`, and ValueError for a negative sigma_zero.
    """
    return _linear(actions, atoms, hidden, _noisy(sigma_zero))


def dueling(actions: int, atoms: int = 1, hidden: Sequence[int] = ()) -> Head:
    """Make a dueling head: one branch gives the state's value, one the advantage of each action.

        output = value + advantage - mean of advantage over the actions

    With several atoms, each atom has its own value and advantages, as in Rainbow. Each branch has its own hidden
    layers. Its parameter names start with "value" or "advantage", and those of the trunk with "trunk".

    Shapes: features [..., F]; value [..., 1, atoms]; advantage [..., actions, atoms]; outputs [..., actions * atoms].
    Raises as `linear` does. Wang et al. 2016, https://arxiv.org/abs/1511.06581
    """
    return _dueling(actions, atoms, hidden, parts.linear)


def noisy_dueling(actions: int, atoms: int = 1, sigma_zero: float = 0.5, hidden: Sequence[int] = ()) -> Head:
    """Make the head `dueling` with noisy layers, as in Rainbow; see `trunks.noisy_mlp`.

    Shapes and errors: as `dueling`, and ValueError for a negative sigma_zero. Hessel et al. 2018,
    https://arxiv.org/abs/1710.02298
    """
    return _dueling(actions, atoms, hidden, _noisy(sigma_zero))


_Make = Callable[[int, int], Layer]
"""`make(inputs, outputs)`, a linear layer."""


def _noisy(sigma_zero: float) -> _Make:
    check.number("sigma_zero", sigma_zero)
    return partial(parts.noisy_linear, sigma_zero=float(sigma_zero))


def _linear(actions: int, atoms: int, hidden: Sequence[int], make: _Make) -> Head:
    _check(actions, atoms, hidden)
    return Head(partial(_branches, make, hidden, (actions * atoms,)), (), _single_branch, actions, atoms)


def _dueling(actions: int, atoms: int, hidden: Sequence[int], make: _Make) -> Head:
    _check(actions, atoms, hidden)
    layers = partial(_branches, make, hidden, (atoms, actions * atoms))
    return Head(layers, ("value", "advantage"), partial(_value_and_advantage, actions), actions, atoms)


def _check(actions: int, atoms: int, hidden: Sequence[int]) -> None:
    check.count("actions", actions, 1)
    check.count("atoms", atoms, 1)
    check.sizes("hidden", hidden, 1)


def _branches(
    make: _Make, hidden: Sequence[int], outputs: tuple[int, ...], features: int
) -> tuple[Sequence[Layer], ...]:
    """Make a branch for each number of outputs: hidden layers with ReLU and a last layer."""
    return tuple(
        [
            *(x for m, n in pairwise((features, *hidden)) for x in (make(m, n), parts.relu())),
            make((features, *hidden)[-1], last),
        ]
        for last in outputs
    )


def _single_branch(outputs: Tensor) -> Tensor:
    return outputs


def _value_and_advantage(actions: int, value: Tensor, advantage: Tensor) -> Tensor:
    advantages = advantage.unflatten(-1, (actions, -1))
    return (value.unsqueeze(-2) + advantages - advantages.mean(-2, keepdim=True)).flatten(-2)
