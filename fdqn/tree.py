"""Nested tensors: NamedTuples, dicts, lists and tuples whose leaves are tensors.

The only file that imports torch's pytree.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")


def map(f: Callable[..., Any], tree: T, *others: Any) -> T:
    """`f` on every leaf; with several trees of one structure, on every group of leaves.

    Raises ValueError where the structures differ.
    """
    try:
        return pytree.tree_map(f, tree, *others)
    except ValueError:
        if all(structure(other) == structure(tree) for other in others):
            raise  # of `f`
    raise ValueError(f"trees: expected one structure, got {' and '.join(str(paths(x)) for x in (tree, *others))}")


def leaves(tree: Any) -> list[Tensor]:
    """The leaves from left to right."""
    return pytree.tree_leaves(tree)


def structure(tree: Any) -> Any:
    """What is left when the leaves are taken out; comparable with `==`."""
    return pytree.tree_structure(tree)


def paths(tree: Any) -> list[str]:
    """The name of every leaf in the order of `leaves`, such as `.learner.params['0.weight']`."""
    return [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]


def stack(trees: Iterable[T], dim: int = 0) -> T:
    """One tree whose leaves have a new axis `dim`. Raises ValueError for no trees and for leaves of several shapes."""
    if not (given := list(trees)):
        raise ValueError("trees: expected at least one, got none")
    return map(lambda *xs: _stacked(xs, dim), *given)


def index(tree: T, i: Any) -> T:
    """`leaf[i]` of every leaf."""
    return map(lambda x: x[i], tree)


def where(chosen: Tensor, new: T, old: T) -> T:
    """The elements of `new` where `chosen` [...] holds along the first axes of its leaves, of `old` elsewhere."""
    return map(lambda a, b: torch.where(chosen.reshape(chosen.shape + (1,) * (b.ndim - chosen.ndim)), a, b), new, old)


def cast(tree: T, dtype: torch.dtype) -> T:
    """Floating leaves in `dtype`, itself floating; the others as they are."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype!r}")
    return map(lambda x: x.to(dtype) if x.is_floating_point() else x, tree)


def to(tree: T, device: torch.device | str) -> T:
    """The leaves on `device`, copied only where they are elsewhere."""
    return map(lambda x: x.to(device), tree)


def from_numpy(tree: Any) -> Any:
    """NumPy arrays as tensors on the CPU, over the same memory: what is written to one is seen in the other.

    Copied where PyTorch cannot share: arrays that are read-only, run backwards or have another byte order, and single
    numbers. Raises TypeError for what is no array of numbers.
    """
    return map(_tensor, tree)


def to_numpy(tree: Any) -> Any:
    """Tensors as NumPy arrays, without gradients: over the same memory on the CPU, copied to the host from elsewhere.

    Raises TypeError for a dtype that NumPy does not have, such as bfloat16.
    """
    return map(_array, tree)


def clone(tree: T) -> T:
    """Fresh contiguous storage for every leaf."""
    return map(lambda x: x.clone(memory_format=torch.contiguous_format), tree)


def separate(tree: T, apart_from: Any = ()) -> T:
    """Contiguous storage of its own for every leaf, copied only where it has none or shares it with `apart_from`."""
    taken = {x.untyped_storage()._cdata for x in leaves(apart_from)}

    def own(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        is_own = x.is_contiguous() and storage.nbytes() == x.nbytes and storage._cdata not in taken
        taken.add(storage._cdata)
        return x if is_own else x.clone(memory_format=torch.contiguous_format)

    return map(own, tree)


def lerp(a: T, b: T, weight: float | Tensor) -> T:
    """Linear interpolation of every leaf, in the leaf's dtype: exactly `a` at weight 0 and `b` at weight 1.

        a + weight * (b - a)         where weight < 0.5
        b - (1 - weight) * (b - a)   elsewhere

    `torch.lerp`. What is infinite or NaN at one end does not reach the other.
    """
    return map(partial(_lerp, weight), a, b)


def norm(tree: Any) -> Tensor:
    """The Euclidean norm [] of all leaves taken as one vector, in float32 or wider. Raises ValueError for no leaves."""
    if not (wide := [x.to(torch.promote_types(x.dtype, torch.float32)) for x in leaves(tree)]):
        raise ValueError("tree: expected at least one tensor, got none")
    return torch.stack([(x * x).sum() for x in wide]).sum().sqrt()


def equal(a: Any, b: Any) -> bool:
    """Same structure, shapes, dtypes and numbers; NaN equals NaN."""
    return structure(a) == structure(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)
        for x, y in zip(leaves(a), leaves(b), strict=True)
    )


def nbytes(tree: Any) -> int:
    """Bytes that the leaves hold."""
    return sum(x.numel() * x.element_size() for x in leaves(tree))


def _lerp(weight: float | Tensor, x: Tensor, y: Tensor) -> Tensor:
    if not isinstance(weight, Tensor):
        if weight in (0, 1):
            return (y if weight else x).to(x.dtype, copy=True)
        step = _difference(x, y)
        return (x + weight * step if weight < 0.5 else y - (1 - weight) * step).to(x.dtype)
    at_start, at_end, step = weight == 0, weight == 1, _difference(x, y)
    if not x.is_floating_point():  # of integers the conversion rounds too
        return torch.where(at_end, y, torch.where(at_start, x, (x + weight * step).to(x.dtype)))
    # 0 * inf is NaN. Finite differences stay, so that the derivative with respect to the weight does too.
    step = torch.where((at_start | at_end) & ~step.isfinite(), 0.0, step)
    return torch.where(weight < 0.5, x + weight * step, y - (1 - weight) * step).to(x.dtype)


def _difference(x: Tensor, y: Tensor) -> Tensor:
    """`y - x`; that of integers and flags in float64, where it does not wrap."""
    return y - x if x.is_floating_point() or x.is_complex() else y.double() - x.double()


def _stacked(xs: tuple[Tensor, ...], dim: int) -> Tensor:
    if len(shapes := {tuple(x.shape) for x in xs}) > 1:
        raise ValueError(f"trees: expected leaves of one shape, got {' and '.join(str(list(s)) for s in shapes)}")
    return torch.stack(xs, dim)


def _tensor(x: Any) -> Tensor:
    if not isinstance(x, np.ndarray | np.generic) or x.dtype.kind not in "biufc":
        what = f"dtype {x.dtype}" if isinstance(x, np.ndarray | np.generic) else type(x).__name__
        raise TypeError(f"tree: expected NumPy arrays of numbers, got {what}")
    forwards = all(step >= 0 and step % x.itemsize == 0 for step in x.strides)
    shareable = x.flags.writeable and x.dtype.isnative and forwards
    return torch.from_numpy(x if shareable else np.array(x, dtype=x.dtype.newbyteorder("="), order="C"))


def _array(x: Tensor) -> NDArray[Any]:
    if not isinstance(x, Tensor):
        raise TypeError(f"tree: expected tensors, got {type(x).__name__}")
    try:
        return x.numpy(force=True)
    except TypeError:
        raise TypeError(f"tree: expected dtypes that NumPy has, got {x.dtype}; cast first") from None
