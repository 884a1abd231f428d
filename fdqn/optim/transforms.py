"""Transformations of gradients, and combinations of optimizers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fdqn import check, tree
from fdqn.types import Optimizer, Params, Scalar


def apply_updates(params: Params, updates: Params) -> Params:
    """Return `params + updates`, leaf by leaf, with structure and dtypes kept."""
    check.same("updates", params, updates)
    return tree.map(torch.add, params, updates)


def chain(**optimizers: Optimizer) -> Optimizer:
    """Apply optimizers one after the other, each to the updates of the previous one: `chain(clip=..., adam=...)`.

    The state is a dict with the same names. Raises ValueError without optimizers.
    """
    _check_optimizers(optimizers)
    return Optimizer(partial(_init_chain, optimizers), partial(_update_chain, optimizers))


def _init_chain(optimizers: dict[str, Optimizer], params: Params) -> dict[str, Any]:
    return {name: optimizer.init(params) for name, optimizer in optimizers.items()}


def _update_chain(
    optimizers: dict[str, Optimizer], grads: Params, state: dict[str, Any], params: Params
) -> tuple[Params, dict[str, Any]]:
    _check_names(optimizers, state)
    new = {}
    for name, optimizer in optimizers.items():
        grads, new[name] = optimizer.update(grads, state[name], params)
    return grads, new


def clip_by_global_norm(max_norm: Scalar) -> Optimizer:
    """Scale all gradients so that their global norm is at most `max_norm`. Stateless.

        g * min(1, max_norm / (norm + 1e-6))

    Pascanu, Mikolov, Bengio 2013, https://arxiv.org/abs/1211.5063; `torch.nn.utils.clip_grad_norm_`.
    """
    check.number("max_norm", max_norm)
    return Optimizer(_init_nothing, partial(_clip_by_global_norm, max_norm))


def _clip_by_global_norm(max_norm: Scalar, grads: Params, state: Params, params: Params) -> tuple[Params, Params]:
    check.same("grads", params, grads)
    scale = (max_norm / (tree.norm(grads) + 1e-6)).clamp_max(1.0)
    return tree.map(lambda g: (g * scale).to(g.dtype), grads), state


def clip_by_value(limit: Scalar) -> Optimizer:
    """Clamp every element of the gradients to [-limit, limit]. Stateless. `torch.nn.utils.clip_grad_value_`."""
    check.number("limit", limit)
    return Optimizer(_init_nothing, partial(_clip_by_value, limit))


def _clip_by_value(limit: Scalar, grads: Params, state: Params, params: Params) -> tuple[Params, Params]:
    check.same("grads", params, grads)
    return tree.map(lambda g: g.clamp(-limit, limit).to(g.dtype), grads), state


def add_decayed_weights(weight_decay: Scalar) -> Optimizer:
    """Add L2 regularization to the gradient: `g + weight_decay * p`. Stateless.

    In front of an optimizer this is the `weight_decay` of `torch.optim`; for decoupled weight decay see `adamw`.
    """
    check.number("weight_decay", weight_decay)
    return Optimizer(_init_nothing, partial(_add_decayed_weights, weight_decay))


def _add_decayed_weights(weight_decay: Scalar, grads: Params, state: Params, params: Params) -> tuple[Params, Params]:
    check.same("grads", params, grads)
    return tree.map(lambda g, p: (g + weight_decay * p).to(g.dtype), grads, params), state


def frozen() -> Optimizer:
    """Make an optimizer whose updates are 0, for a group of parameters that is not trained."""
    return Optimizer(_init_nothing, _stay)


def _stay(grads: Params, state: Params, params: Params) -> tuple[Params, Params]:
    check.same("grads", params, grads)
    return tree.map(torch.zeros_like, grads), state


def masked(optimizer: Optimizer, chosen: Callable[[str], bool]) -> Optimizer:
    """Apply `optimizer` to the parameters with `chosen(name)`; pass the gradients of the others through.

    `masked(add_decayed_weights(0.01), lambda name: name.endswith("weight"))`. Raises ValueError if no parameter is
    chosen.
    """
    check.kind("optimizer", optimizer, Optimizer)
    check.function("chosen", chosen)
    return Optimizer(partial(_init_masked, optimizer, chosen), partial(_update_masked, optimizer, chosen))


def _init_masked(optimizer: Optimizer, chosen: Callable[[str], bool], params: Params) -> Any:
    if not (some := _some(chosen, params)):
        raise ValueError(f"chosen: expected it to choose at least one parameter, got none of {sorted(params)}")
    return optimizer.init(some)


def _update_masked(
    optimizer: Optimizer, chosen: Callable[[str], bool], grads: Params, state: Any, params: Params
) -> tuple[Params, Any]:
    check.same("grads", params, grads)
    updates, new = optimizer.update(_some(chosen, grads), state, _some(chosen, params))
    return {name: updates.get(name, g) for name, g in grads.items()}, new


def grouped(group_of: Callable[[str], str], **optimizers: Optimizer) -> Optimizer:
    """Apply to each parameter the optimizer of its group, `optimizers[group_of(name)]`: parameter groups of
    `torch.optim`.

    The state is a dict with the names of the groups. Raises ValueError for a group without an optimizer or without
    parameters.
    """
    check.function("group_of", group_of)
    _check_optimizers(optimizers)
    return Optimizer(partial(_init_grouped, group_of, optimizers), partial(_update_grouped, group_of, optimizers))


def _init_grouped(group_of: Callable[[str], str], optimizers: dict[str, Optimizer], params: Params) -> dict[str, Any]:
    groups = {name: group_of(name) for name in params}
    if set(groups.values()) != set(optimizers):
        raise ValueError(f"group_of: expected the groups {sorted(optimizers)}, each with parameters, got {groups}")
    return {group: optimizer.init(_of(group, group_of, params)) for group, optimizer in optimizers.items()}


def _update_grouped(
    group_of: Callable[[str], str],
    optimizers: dict[str, Optimizer],
    grads: Params,
    state: dict[str, Any],
    params: Params,
) -> tuple[Params, dict[str, Any]]:
    check.same("grads", params, grads)
    _check_names(optimizers, state)
    updates: Params = {}
    new = {}
    for group, optimizer in optimizers.items():
        theirs = _of(group, group_of, grads), state[group], _of(group, group_of, params)
        some, new[group] = optimizer.update(*theirs)
        updates |= some
    return {name: updates[name] for name in grads}, new


def _check_optimizers(optimizers: dict[str, Optimizer]) -> None:
    if not optimizers:
        raise ValueError("optimizers: expected at least one by name, got none")
    for name, optimizer in optimizers.items():
        check.kind(name, optimizer, Optimizer)


def _check_names(optimizers: dict[str, Optimizer], state: Any) -> None:
    if not isinstance(state, dict) or set(state) != set(optimizers):
        got = sorted(state) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"state: expected a dict of {sorted(optimizers)}, as init makes it, got {got}")


def _init_nothing(params: Params) -> Params:
    return {}


def _some(chosen: Callable[[str], bool], params: Params) -> Params:
    return {name: x for name, x in params.items() if chosen(name)}


def _of(group: str, group_of: Callable[[str], str], params: Params) -> Params:
    return _some(lambda name: group_of(name) == group, params)
