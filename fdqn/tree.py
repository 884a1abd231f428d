"""Functions of trees: NamedTuples, dicts, lists and tuples, nested in any way, whose leaves are tensors.

No other module imports `torch.utils._pytree`.
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
    """Apply `f` to every leaf or, for several trees of one structure, to corresponding leaves; return a tree.

    Raises ValueError if the structures differ.
    """
    try:
        return pytree.tree_map(f, tree, *others)
    except ValueError:
        if all(structure(other) == structure(tree) for other in others):
            raise  # raised by `f`
    raise ValueError(f"trees: expected one structure, got {' and '.join(str(paths(x)) for x in (tree, *others))}")


def leaves(tree: Any) -> list[Tensor]:
    """Return the leaves in order."""
    return pytree.tree_leaves(tree)


def structure(tree: Any) -> Any:
    """Return the structure of a tree without its leaves, which can be compared with `==`."""
    return pytree.tree_structure(tree)


def paths(tree: Any) -> list[str]:
    """Return the path of every leaf, in the order of `leaves`, such as `.learner.params['0.weight']`."""
    return [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]


def stack(trees: Iterable[T], dim: int = 0) -> T:
    """Stack trees along a new axis `dim`. Raises ValueError for no trees or for leaves of different shapes."""
    if not (given := list(trees)):
        raise ValueError("trees: expected at least one, got none")
    return map(lambda *xs: _stacked(xs, dim), *given)


def index(tree: T, i: Any) -> T:
    """Index every leaf: `leaf[i]`."""
    return map(lambda x: x[i], tree)


def where(chosen: Tensor, new: T, old: T) -> T:
    """Select from leaves of `new` where `chosen` is True and from `old` elsewhere.

    Shapes: chosen [...]; leaves [..., *shape].
    """
    return map(lambda a, b: torch.where(chosen.reshape(chosen.shape + (1,) * (b.ndim - chosen.ndim)), a, b), new, old)


def cast(tree: T, dtype: torch.dtype) -> T:
    """Convert floating-point leaves to the floating-point `dtype`. Raises TypeError for another dtype."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype!r}")
    return map(lambda x: x.to(dtype) if x.is_floating_point() else x, tree)


def to(tree: T, device: torch.device | str) -> T:
    """Move all leaves to `device`; leaves already there are not copied."""
    return map(lambda x: x.to(device), tree)


def from_numpy(tree: Any) -> Any:
    """Convert NumPy arrays to tensors on the CPU that share their memory.

    Copies arrays that PyTorch cannot share: read-only ones, those with negative strides or another byte order, and
    scalars. Raises TypeError for leaves that are not arrays of numbers.
    """
    return map(_tensor, tree)


def to_numpy(tree: Any) -> Any:
    """Convert tensors to NumPy arrays, detached. They share the memory of tensors on the CPU; others are copied.

    Raises TypeError for a dtype that NumPy does not have, such as bfloat16.
    """
    return map(_array, tree)


def clone(tree: T) -> T:
    """Copy every leaf into new contiguous storage."""
    return map(lambda x: x.clone(memory_format=torch.contiguous_format), tree)


def separate(tree: T, apart_from: Any = ()) -> T:
    """Give every leaf separate contiguous storage, which it shares with no other leaf and no leaf of `apart_from`.

    Leaves for which this already holds are not copied.
    """
    taken = {x.untyped_storage()._cdata for x in leaves(apart_from)}

    def own(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        is_own = x.is_contiguous() and storage.nbytes() == x.nbytes and storage._cdata not in taken
        taken.add(storage._cdata)
        return x if is_own else x.clone(memory_format=torch.contiguous_format)

    return map(own, tree)


def lerp(a: T, b: T, weight: float | Tensor) -> T:
    """Interpolate linearly between leaves, in their dtype: exactly `a` at weight 0 and `b` at weight 1.

        a + weight * (b - a)         where weight < 0.5
        b - (1 - weight) * (b - a)   elsewhere

    As `torch.lerp`, except that infinities and NaN of one end do not affect the result at the other end.
    """
    return map(partial(_lerp, weight), a, b)


def norm(tree: Any) -> Tensor:
    """Compute the norm [] of all leaves as one vector, in float32 or wider. Raises ValueError for no leaves."""
    if not (wide := [x.to(torch.promote_types(x.dtype, torch.float32)) for x in leaves(tree)]):
        raise ValueError("tree: expected at least one tensor, got none")
    return torch.stack([(x * x).sum() for x in wide]).sum().sqrt()


def equal(a: Any, b: Any) -> bool:
    """Return True if structures, shapes, dtypes and values are equal; NaN equals NaN."""
    return structure(a) == structure(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)
        for x, y in zip(leaves(a), leaves(b), strict=True)
    )


def nbytes(tree: Any) -> int:
    """Return the number of bytes of all elements of all leaves."""
    return sum(x.numel() * x.element_size() for x in leaves(tree))


def _lerp(weight: float | Tensor, x: Tensor, y: Tensor) -> Tensor:
    if not isinstance(weight, Tensor):
        if weight in (0, 1):
            return (y if weight else x).to(x.dtype, copy=True)
        step = _difference(x, y)
        return (x + weight * step if weight < 0.5 else y - (1 - weight) * step).to(x.dtype)
    at_start, at_end, step = weight == 0, weight == 1, _difference(x, y)
    if not x.is_floating_point():  # integers must be exact at both ends
        return torch.where(at_end, y, torch.where(at_start, x, (x + weight * step).to(x.dtype)))
    # 0 * inf is NaN. Finite differences are kept, and with them the derivative with respect to the weight.
    step = torch.where((at_start | at_end) & ~step.isfinite(), 0.0, step)
    return torch.where(weight < 0.5, x + weight * step, y - (1 - weight) * step).to(x.dtype)


def _difference(x: Tensor, y: Tensor) -> Tensor:
    """Return `y - x`, for integers and booleans in float64, where it does not wrap."""
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
