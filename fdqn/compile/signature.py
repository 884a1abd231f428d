"""Make something once for each kind of arguments."""

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
    """Return `make(f, args)` for the first arguments of each signature.

    A signature is the structure of arguments, the shapes, strides, dtypes and devices of tensors, which of them share
    memory, other arguments, and the number of threads.
    """
    known: dict[Any, T] = {}

    def made(*args: Any) -> T:
        leaves = tree.leaves(args)
        # Which arguments are one tensor, or share memory, is part of what is compiled.
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
"""`run(xs, leaves of xs)`: steps of one state that is fixed."""


def once_per_state(make: Callable[[Any, Any], Run]) -> Callable[[Any, Any], Any]:
    """Call `make(state, xs)(xs, leaves)`. `make` is called again only for a state that differs from the last one in any
    leaf, or xs of another kind.

    A signature costs half of a small network's training iteration; this costs a twentieth.
    """
    recent: tuple[Any, list[Tensor], Any, Run] | None = None

    def call(state: Any, xs: Any) -> Any:
        nonlocal recent
        leaves, each = tree.leaves(state), tree.leaves(xs)
        check.length("xs", xs)
        # A tensor's memory may be exchanged behind its back.
        kinds = [tree.structure(xs), *(kind(x[0]) for x in each), *(x.data_ptr() for x in leaves)]
        last = recent  # another thread may replace it at any time
        if last is None or state is not last[0] or kinds != last[2] or not all(map(is_, leaves, last[1])):
            last = recent = state, leaves, kinds, make(state, xs)
        return last[3](xs, each)

    return call


def kind(leaf: Any) -> Any:
    """Return what of an argument is part of a signature."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return type(leaf), repr(leaf)  # 1, 1.0 and True are equal and not the same constant


def tensors(args: Any) -> list[Tensor]:
    """The leaves that are tensors."""
    return [leaf for leaf in tree.leaves(args) if isinstance(leaf, Tensor)]
