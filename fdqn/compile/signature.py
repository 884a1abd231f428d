"""Caches by the signature of arguments."""

from collections.abc import Callable
from operator import is_
from typing import Any, TypeVar

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.compile.donation import storage
from fdqn.compile.lock import compiling

T = TypeVar("T")


def once_per_signature(make: Callable[..., T], f: Callable[..., Any]) -> Callable[..., T]:
    """Return a function that calls `make(f, args)` once per signature of its arguments and caches the result.

    A signature contains the structure of the arguments, the shapes, strides, dtypes and devices of tensors, which of
    them share memory, the values of other arguments, and the number of threads.
    """
    known: dict[Any, T] = {}

    def made(*args: Any) -> T:
        leaves = tree.leaves(args)
        # The compiled code depends on which arguments share memory.
        owners: dict[int, int] = {}
        shared = (owners.setdefault(storage(x), i) for i, x in enumerate(tensors(args)))
        signature = (torch.get_num_threads(), tree.structure(args), *map(kind, leaves), *shared)
        if signature not in known:
            with compiling():
                if signature not in known:
                    known[signature] = make(f, args)
        return known[signature]

    return made


Run = Callable[[Any, list[Tensor]], Any]
"""`run(xs, leaves of xs)` runs steps on the state for which it was made."""


def once_per_state(make: Callable[[Any, Any], Run]) -> Callable[[Any, Any], Any]:
    """Return a function that calls `make(state, xs)(xs, leaves of xs)` and reuses the result of `make` while the state
    has the same leaves and `xs` the same structure, shapes and dtypes.

    This check costs a twentieth of a small network's training iteration; a full signature would cost half of it.
    """
    recent: tuple[Any, list[Tensor], Any, Run] | None = None

    def call(state: Any, xs: Any) -> Any:
        nonlocal recent
        leaves, each = tree.leaves(state), tree.leaves(xs)
        check.length("xs", xs)
        # `set_` or `.data` may have replaced the memory of a tensor.
        kinds = [tree.structure(xs), *(kind(x[0]) for x in each), *(x.data_ptr() for x in leaves)]
        last = recent  # another thread may replace it at any time
        if last is None or state is not last[0] or kinds != last[2] or not all(map(is_, leaves, last[1])):
            last = recent = state, leaves, kinds, make(state, xs)
        return last[3](xs, each)

    return call


def kind(leaf: Any) -> Any:
    """Return the entry of an argument in a signature."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return type(leaf), repr(leaf)  # 1, 1.0 and True are equal and not the same constant


def tensors(args: Any) -> list[Tensor]:
    """Return the leaves that are tensors."""
    return [leaf for leaf in tree.leaves(args) if isinstance(leaf, Tensor)]
