"""Donation: reuse the memory of the old state for the new one, as JAX's `donate_argnums` does."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from fdqn import check, tree

State = TypeVar("State")


def donate(f: Callable[..., State]) -> Callable[..., State]:
    """Make `f(state, *args) -> state` update its state in place: copy each new leaf into the old one.

    The result equals that of `f` even if a new leaf is, or is a view of, another old leaf (`target <- params`, a swap).
    The donated function raises ValueError or TypeError if `f` changes structure, shape or dtype (a copy would broadcast
    or truncate), and ValueError if leaves of the state, or elements of one leaf, share memory.
    """

    check.function("f", f)

    def donated(state: State, *args: Any) -> State:
        for path, leaf in zip(tree.paths(state), tree.leaves(state), strict=True):
            check.tensor(f"state{path}", leaf)
            if leaf.numel() and overlaps(leaf):
                raise ValueError(
                    f"state{path}: expected separate memory for every element, got shape {list(leaf.shape)} with "
                    f"strides {list(leaf.stride())}, which vmap returns for constants; pass tree.clone(state)"
                )
        new = f(state, *args)
        check.same("state", state, new)
        old_leaves, new_leaves = tree.leaves(state), tree.leaves(new)
        for old, value in zip(old_leaves, _separate(*old_leaves, *new_leaves), strict=True):
            old.copy_(value)
        return state

    return donated


def overlaps(x: Tensor) -> bool:
    """Return True if elements of a tensor share memory, as after `expand`."""
    return any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True))


# Dynamo cannot see which tensors share storage. A function that is allowed in the graph runs as plain Python, on
# tensors that have that information.
@torch.compiler.allow_in_graph
def _separate(*leaves: Tensor) -> tuple[Tensor, ...]:
    """Return the new leaves, with copies of those that share storage with another old leaf.

    `leaves` are the old leaves, followed by the same number of new ones.
    """
    old, new = leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :]
    owners: dict[int, int] = {}
    for i, leaf in enumerate(old):
        if leaf.numel() and owners.setdefault(storage(leaf), i) != i:
            raise ValueError(
                f"state: expected leaves with separate storage, got {owners[storage(leaf)]} and {i} sharing one"
            )
    return tuple(
        _snapshot(value) if storage(value) in owners and not _is_same(old[i], value) else value
        for i, value in enumerate(new)
    )


def _is_same(old: Tensor, new: Tensor) -> bool:
    """Return True if `new` has the storage, offset and strides of `old`."""
    return (
        storage(old) == storage(new) and old.storage_offset() == new.storage_offset() and old.stride() == new.stride()
    )


def storage(x: Tensor) -> int:
    """Return a number that identifies the storage of a tensor; fake tensors, which have no memory, have one too."""
    return x.untyped_storage()._cdata


# A custom operator, since inductor removes a plain clone and then reads memory that has been overwritten (2.13).
@torch.library.custom_op("fdqn::snapshot", mutates_args=())
def _snapshot(x: Tensor) -> Tensor:
    return x.clone()


@_snapshot.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)
