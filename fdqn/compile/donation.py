"""Donation: write the new state over the old one, as JAX's `donate_argnums` does."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from fdqn import check, tree

State = TypeVar("State")


def donate(f: Callable[..., State]) -> Callable[..., State]:
    """`f(state, *args) -> state`, writing each new leaf over the old one and returning the old, now new, state.

    Equal to `f` also where a new leaf is, or is a view of, an old leaf of another place (`target <- params`, a swap).
    Raises ValueError or TypeError where `f` changes structure, shape or dtype (copying would broadcast or truncate),
    and ValueError where leaves of the state, or elements of one, share memory.
    """

    check.function("f", f)

    def donated(state: State, *args: Any) -> State:
        for path, leaf in zip(tree.paths(state), tree.leaves(state), strict=True):
            check.tensor(f"state{path}", leaf)
            if leaf.numel() and overlaps(leaf):
                raise ValueError(
                    f"state{path}: expected memory of its own for every element, got shape {list(leaf.shape)} with "
                    f"strides {list(leaf.stride())}, as vmap answers constants; give tree.clone(state)"
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


# Under torch.compile Dynamo cannot see which storages are shared, but runs a function that is allowed in the graph as
# plain Python, on tensors that know.
@torch.compiler.allow_in_graph
def _separate(*leaves: Tensor) -> tuple[Tensor, ...]:
    """Of old leaves and then as many new ones: the new ones, those that share storage with another old leaf copied."""
    old, new = leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :]
    owners: dict[int, int] = {}
    for i, leaf in enumerate(old):
        if leaf.numel() and owners.setdefault(storage(leaf), i) != i:
            raise ValueError(
                f"state: expected leaves with storage of their own, got {owners[storage(leaf)]} and {i} sharing one"
            )
    return tuple(
        _snapshot(value) if storage(value) in owners and not _is_same(old[i], value) else value
        for i, value in enumerate(new)
    )


def _is_same(old: Tensor, new: Tensor) -> bool:
    """Whether `new` is all of `old` in its own place."""
    return (
        storage(old) == storage(new) and old.storage_offset() == new.storage_offset() and old.stride() == new.stride()
    )


def storage(x: Tensor) -> int:
    """Return a number that tells the memory of one tensor from that of others, also of tensors without memory."""
    return x.untyped_storage()._cdata


# An operator of our own, since inductor takes a plain clone out and then reads what has been written over (2.13).
@torch.library.custom_op("fdqn::snapshot", mutates_args=())
def _snapshot(x: Tensor) -> Tensor:
    return x.clone()


@_snapshot.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)
