"""Gradient descent as `init/update` pairs: state in, updates and state out.

`update(grads, state, params)` answers with what is to be *added* to the parameters (`apply_updates`). Learning rates
are numbers, tensors (one a lane, under `vmap`) or schedules of the update count. Equations and defaults are those of
`torch.optim`; the order in which each rounds is kept, so that float64 agrees to 1e-12.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.types import Optimizer, Params, Scalar, Schedule


class AdamState(NamedTuple):
    """What the next update needs of its number t is in the state already: computed inside the fused kernel, a power, a
    root or a quotient would be computed anew for every element.
    """

    updates: Tensor
    beta1_power: Tensor
    """`beta1 ** t`."""
    beta2_power: Tensor
    root: Tensor
    """`sqrt(1 - beta2**t)`."""
    scale: Tensor
    """`root / (1 - beta1**t)`."""
    mean: Params
    square: Params


class SgdState(NamedTuple):
    """The decayed sum of gradients; with momentum 0 the last gradient."""

    updates: Tensor
    velocity: Params


class RmspropState(NamedTuple):
    """The mean of squared gradients."""

    updates: Tensor
    square: Params


def adam(
    learning_rate: Scalar | Schedule = 1e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> Optimizer:
    """Adam.

        mean   = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g**2
        update = -rate / (1 - beta1**t) * mean / (sqrt(square / (1 - beta2**t)) + eps)

    Kingma, Ba 2015, https://arxiv.org/abs/1412.6980, in the order of operations at the end of their section 2;
    `torch.optim.Adam`.
    """
    return Optimizer(partial(_init_adam, beta1, beta2), partial(_update_adam, learning_rate, beta1, beta2, eps))


def _init_adam(beta1: float, beta2: float, params: Params) -> AdamState:
    power1, power2 = _one(params) * beta1, _one(params) * beta2
    return AdamState(_no_updates(params), *_corrections(power1, power2), _zeros(params), _zeros(params))


def _update_adam(
    learning_rate: Scalar | Schedule,
    beta1: float,
    beta2: float,
    eps: float,
    grads: Params,
    state: AdamState,
    params: Params,
) -> tuple[Params, AdamState]:
    check.same("grads", params, grads)
    mean = tree.lerp(state.mean, grads, 1 - beta1)
    square = tree.map(lambda v, g: v * beta2 + (1 - beta2) * (g * g), state.square, grads)
    size, floor = _rate(learning_rate, state.updates) * state.scale, eps * state.root
    updates = tree.map(lambda m, v: (-size * m / (v.sqrt() + floor)).to(m.dtype), mean, square)
    corrections = _corrections(state.beta1_power * beta1, state.beta2_power * beta2)
    return updates, AdamState(state.updates + 1, *corrections, mean, square)


def _corrections(power1: Tensor, power2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    root = (1 - power2).sqrt()
    return power1, power2, root, root / (1 - power1)


def sgd(learning_rate: Scalar | Schedule = 1e-3, momentum: float = 0.0, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum.

        velocity = momentum * velocity + g
        update   = -rate * velocity,  for Nesterov  -rate * (g + momentum * velocity)

    Sutskever et al. 2013; `torch.optim.SGD`. Raises ValueError for Nesterov without momentum.
    """
    if nesterov and momentum == 0:
        raise ValueError("nesterov: expected momentum above 0 with it, got momentum 0")
    return Optimizer(_init_sgd, partial(_update_sgd, learning_rate, momentum, nesterov))


def _init_sgd(params: Params) -> SgdState:
    return SgdState(_no_updates(params), _zeros(params))


def _update_sgd(
    learning_rate: Scalar | Schedule, momentum: float, nesterov: bool, grads: Params, state: SgdState, params: Params
) -> tuple[Params, SgdState]:
    check.same("grads", params, grads)
    rate = _rate(learning_rate, state.updates)
    velocity = tree.map(lambda v, g: v * momentum + g, state.velocity, grads)
    direction = tree.map(lambda v, g: g + momentum * v, velocity, grads) if nesterov else velocity
    return tree.map(lambda d: (-rate * d).to(d.dtype), direction), SgdState(state.updates + 1, velocity)


def rmsprop(learning_rate: Scalar | Schedule = 1e-2, decay: float = 0.99, eps: float = 1e-8) -> Optimizer:
    """RMSprop.

        square = decay * square + (1 - decay) * g**2
        update = -rate * g / (sqrt(square) + eps)

    Tieleman, Hinton 2012; `torch.optim.RMSprop`.
    """
    return Optimizer(_init_rmsprop, partial(_update_rmsprop, learning_rate, decay, eps))


def _init_rmsprop(params: Params) -> RmspropState:
    return RmspropState(_no_updates(params), _zeros(params))


def _update_rmsprop(
    learning_rate: Scalar | Schedule, decay: float, eps: float, grads: Params, state: RmspropState, params: Params
) -> tuple[Params, RmspropState]:
    check.same("grads", params, grads)
    rate = _rate(learning_rate, state.updates)
    square = tree.map(lambda v, g: v * decay + (1 - decay) * (g * g), state.square, grads)
    updates = tree.map(lambda g, v: (-rate * (g / (v.sqrt() + eps))).to(g.dtype), grads, square)
    return updates, RmspropState(state.updates + 1, square)


def clip_by_global_norm(max_norm: Scalar) -> Optimizer:
    """Scale all gradients together so that their norm, taken as one vector, is at most `max_norm`. No state.

        g * min(1, max_norm / (norm + 1e-6))

    Pascanu, Mikolov, Bengio 2013, https://arxiv.org/abs/1211.5063; `torch.nn.utils.clip_grad_norm_`.
    """
    return Optimizer(_init_nothing, partial(_clip_by_global_norm, max_norm))


def _clip_by_global_norm(max_norm: Scalar, grads: Params, state: Params, params: Params) -> tuple[Params, Params]:
    check.same("grads", params, grads)
    scale = (max_norm / (tree.norm(grads) + 1e-6)).clamp_max(1.0)
    return tree.map(lambda g: (g * scale).to(g.dtype), grads), state


def _init_nothing(params: Params) -> Params:
    return {}


def chain(**optimizers: Optimizer) -> Optimizer:
    """Several in a row, each given the updates of the one before: `chain(clip=..., adam=...)`.

    The state is a dict under the same names.
    """
    return Optimizer(partial(_init_chain, optimizers), partial(_update_chain, optimizers))


def _init_chain(optimizers: dict[str, Optimizer], params: Params) -> dict[str, Any]:
    return {name: optimizer.init(params) for name, optimizer in optimizers.items()}


def _update_chain(
    optimizers: dict[str, Optimizer], grads: Params, state: dict[str, Any], params: Params
) -> tuple[Params, dict[str, Any]]:
    new = {}
    for name, optimizer in optimizers.items():
        grads, new[name] = optimizer.update(grads, state[name], params)
    return grads, new


def apply_updates(params: Params, updates: Params) -> Params:
    """`params + updates`, leaf by leaf; structure and dtype kept."""
    check.same("updates", params, updates)
    return tree.map(torch.add, params, updates)


def _rate(learning_rate: Scalar | Schedule, count: Tensor) -> Scalar:
    return learning_rate(count) if callable(learning_rate) else learning_rate


def _one(params: Params) -> Tensor:
    return torch.ones((), dtype=_first(params).dtype, device=_first(params).device)


def _no_updates(params: Params) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=_first(params).device)


def _zeros(params: Params) -> Params:
    return tree.map(torch.zeros_like, params)


def _first(params: Params) -> Tensor:
    if not (leaves := tree.leaves(params)):
        raise ValueError("params: expected at least one tensor, got an empty tree")
    return leaves[0]
