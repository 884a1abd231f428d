"""The tensors among the leaves of a tree. Other leaves, such as numbers and names, stay as they are."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fdqn import tree

__all__ = ["copied", "map_tensors", "tensors"]


def tensors(x: Any) -> list[Tensor]:
    """The leaves that are tensors, from left to right."""
    return [leaf for leaf in tree.leaves(x) if isinstance(leaf, Tensor)]


def map_tensors(f: Callable[[Tensor], Any], x: Any) -> Any:
    """`f` on the leaves that are tensors."""
    return tree.map(lambda leaf: f(leaf) if isinstance(leaf, Tensor) else leaf, x)


def copied(x: Any) -> Any:
    """The same numbers elsewhere, without gradients: what is written to `x` later is not seen."""
    return map_tensors(lambda leaf: leaf.detach().clone(), x)
