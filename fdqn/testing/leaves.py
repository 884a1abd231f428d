"""The tensors among the leaves of a tree. Other leaves, such as numbers and strings, stay unchanged."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fdqn import tree

__all__ = ["copied", "map_tensors", "tensors"]


def tensors(x: Any) -> list[Tensor]:
    """Return the leaves that are tensors, from left to right."""
    return [leaf for leaf in tree.leaves(x) if isinstance(leaf, Tensor)]


def map_tensors(f: Callable[[Tensor], Any], x: Any) -> Any:
    """Apply `f` to the leaves that are tensors."""
    return tree.map(lambda leaf: f(leaf) if isinstance(leaf, Tensor) else leaf, x)


def copied(x: Any) -> Any:
    """Return a detached copy, so that later writes to `x` do not change it."""
    return map_tensors(lambda leaf: leaf.detach().clone(), x)
