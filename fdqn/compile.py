"""The edge where pure functions become fast ones: `compile(donate(vmap(f)))`. The only file that says `torch.compile`.

`donate` is JAX's `donate_argnums`: the new state is written over the old one at the top level of the compiled graph.
Inductor then computes results straight into the old storage, so that a pure `replay.add` costs one row, not one ring,
and every leaf keeps its address for life.
"""

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from fdqn import check, train, tree

State = TypeVar("State")


def donate(f: Callable[..., State]) -> Callable[..., State]:
    """`f(state, *args) -> state`, writing each new leaf over the old one and answering with the old, now new, state.

    Equal to `f` also where a new leaf is, or is a view of, an old leaf of another place (`target <- params`, a swap).
    Raises ValueError or TypeError where `f` changes structure, shape or dtype (copying would broadcast or truncate),
    and ValueError where two leaves of the state share storage.
    """

    def donated(state: State, *args: Any) -> State:
        new = f(state, *args)
        check.same("state", state, new)
        old_leaves, new_leaves = tree.leaves(state), tree.leaves(new)
        for old, value in zip(old_leaves, _separate(*old_leaves, *new_leaves), strict=True):
            old.copy_(value)
        return state

    return donated


def compile(f: Callable[..., State]) -> Callable[..., State]:
    """`f` as one compiled graph, without gradients of its own, for the shapes of its first call."""

    def call(*args: Any) -> State:
        return f(*args)

    # Dynamo keeps its graphs by code object, at most 8: without one of its own, the ninth program of a process fails.
    own = FunctionType(call.__code__.replace(), call.__globals__, call.__name__, call.__defaults__, call.__closure__)
    return torch.no_grad()(torch.compile(own, fullgraph=True, dynamic=False))


def compiled(program: train.Program) -> train.Functions:
    """The step functions over lanes, each one compiled graph that writes over its state.

    On a CPU say `torch.set_flush_denormal(True)` first: what decays towards 0 becomes denormal and slow.
    """
    return train.Functions(
        collect=compile(donate(vmap(partial(train.collect, program)))),
        cycle=compile(donate(vmap(partial(train.cycle, program)))),
        sync=compile(donate(vmap(train.sync))),
    )


# Dynamo cannot see which storages are shared, but runs a function that is allowed in the graph as plain Python, on
# tensors that know.
@torch.compiler.allow_in_graph
def _separate(*leaves: Tensor) -> tuple[Tensor, ...]:
    """Of old leaves and then as many new ones: the new ones, those that share storage with another old leaf copied."""
    old, new = leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :]
    owners: dict[int, int] = {}
    for i, leaf in enumerate(old):
        if leaf.numel() and owners.setdefault(_storage(leaf), i) != i:
            raise ValueError(
                f"state: expected leaves with storage of their own, got {owners[_storage(leaf)]} and {i} sharing one"
            )
    return tuple(
        _snapshot(value) if _storage(value) in owners and not _is_same(old[i], value) else value
        for i, value in enumerate(new)
    )


def _is_same(old: Tensor, new: Tensor) -> bool:
    """Whether `new` is all of `old` in its own place."""
    return (
        _storage(old) == _storage(new) and old.storage_offset() == new.storage_offset() and old.stride() == new.stride()
    )


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


# An operator of our own, since inductor takes a plain clone out and then reads what has been written over (2.13).
@torch.library.custom_op("fdqn::snapshot", mutates_args=())
def _snapshot(x: Tensor) -> Tensor:
    return x.clone()


@_snapshot.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)
