"""SGD, RMSprop and Adagrad."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.optim.state import check_fit, check_rate, no_updates, rate, zeros
from fdqn.types import Optimizer, Params, Scalar, Schedule


class SgdState(NamedTuple):
    """Count of updates and the decayed sum of gradients; with momentum 0 the latter is the last gradient."""

    updates: Tensor
    velocity: Params


class RmspropState(NamedTuple):
    """Count of updates and the running mean of squared gradients."""

    updates: Tensor
    square: Params


class CenteredRmspropState(NamedTuple):
    """Count of updates and the running means of gradients and of squared gradients."""

    updates: Tensor
    mean: Params
    square: Params


class AdagradState(NamedTuple):
    """Count of updates and the sum of squared gradients."""

    updates: Tensor
    square: Params


def sgd(learning_rate: Scalar | Schedule = 1e-3, momentum: Scalar = 0.0, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum.

        velocity = momentum * velocity + g
        update   = -rate * velocity,  for Nesterov  -rate * (g + momentum * velocity)

    Sutskever et al. 2013; `torch.optim.SGD`. Raises ValueError for Nesterov momentum of 0.
    """
    check_rate(learning_rate)
    check.number("momentum", momentum)
    if nesterov and not isinstance(momentum, Tensor) and momentum == 0:
        raise ValueError("nesterov: expected momentum above 0 with it, got momentum 0")
    return Optimizer(_init_sgd, partial(_update_sgd, learning_rate, momentum, nesterov))


def _init_sgd(params: Params) -> SgdState:
    return SgdState(no_updates(params), zeros(params))


def _update_sgd(
    learning_rate: Scalar | Schedule, momentum: Scalar, nesterov: bool, grads: Params, state: SgdState, params: Params
) -> tuple[Params, SgdState]:
    check_fit(SgdState, grads, state, params)
    size = rate(learning_rate, state.updates)
    velocity = tree.map(lambda v, g: (decayed(momentum, v) + g).to(g.dtype), state.velocity, grads)
    direction = tree.map(lambda v, g: g + momentum * v, velocity, grads) if nesterov else velocity
    updates = tree.map(lambda d, g: (-size * d).to(g.dtype), direction, grads)
    return updates, SgdState(state.updates + 1, velocity)


def rmsprop(learning_rate: Scalar | Schedule = 1e-2, decay: Scalar = 0.99, eps: Scalar = 1e-8) -> Optimizer:
    """RMSprop.

        square = decay * square + (1 - decay) * g**2
        update = -rate * g / (sqrt(square) + eps)

    Tieleman, Hinton 2012; `torch.optim.RMSprop`.
    """
    check_rate(learning_rate)
    check.number("decay", decay, below=1.0)
    check.number("eps", eps)
    return Optimizer(_init_rmsprop, partial(_update_rmsprop, learning_rate, decay, eps))


def _init_rmsprop(params: Params) -> RmspropState:
    return RmspropState(no_updates(params), zeros(params))


def _update_rmsprop(
    learning_rate: Scalar | Schedule, decay: Scalar, eps: Scalar, grads: Params, state: RmspropState, params: Params
) -> tuple[Params, RmspropState]:
    check_fit(RmspropState, grads, state, params)
    size = rate(learning_rate, state.updates)
    square = mean_square(decay, state.square, grads)
    updates = tree.map(lambda g, v: (-size * (g / (v.sqrt() + eps))).to(g.dtype), grads, square)
    return updates, RmspropState(state.updates + 1, square)


def centered_rmsprop(learning_rate: Scalar | Schedule = 1e-2, decay: Scalar = 0.99, eps: Scalar = 1e-8) -> Optimizer:
    """RMSprop normalized by the standard deviation of the gradient.

        mean   = decay * mean + (1 - decay) * g
        square = decay * square + (1 - decay) * g**2
        update = -rate * g / (sqrt(square - mean**2) + eps)

    If rounding makes the variance negative, it is taken as 0; PyTorch gives NaN.
    Graves 2013, https://arxiv.org/abs/1308.0850; `torch.optim.RMSprop(centered=True)`.
    """
    check_rate(learning_rate)
    check.number("decay", decay, below=1.0)
    check.number("eps", eps)
    return Optimizer(_init_centered_rmsprop, partial(_update_centered_rmsprop, learning_rate, decay, eps))


def _init_centered_rmsprop(params: Params) -> CenteredRmspropState:
    return CenteredRmspropState(no_updates(params), zeros(params), zeros(params))


def _update_centered_rmsprop(
    learning_rate: Scalar | Schedule,
    decay: Scalar,
    eps: Scalar,
    grads: Params,
    state: CenteredRmspropState,
    params: Params,
) -> tuple[Params, CenteredRmspropState]:
    check_fit(CenteredRmspropState, grads, state, params)
    size = rate(learning_rate, state.updates)
    mean, square, variance = _centered(decay, state, grads)
    updates = tree.map(lambda g, v: (-size * (g / (v.sqrt() + eps))).to(g.dtype), grads, variance)
    return updates, CenteredRmspropState(state.updates + 1, mean, square)


def graves_rmsprop(learning_rate: Scalar | Schedule = 1e-4, decay: Scalar = 0.95, eps: Scalar = 1e-4) -> Optimizer:
    """RMSprop as first published, with `eps` inside the square root. The Nature DQN used it.

        mean   = decay * mean + (1 - decay) * g
        square = decay * square + (1 - decay) * g**2
        update = -rate * g / sqrt(square - mean**2 + eps)

    The defaults are the paper's. If rounding makes the variance negative, it is taken as 0. Graves 2013,
    https://arxiv.org/abs/1308.0850, equations 38 to 40 without momentum;
    `optax.rmsprop(centered=True, eps_in_sqrt=True)`.
    """
    check_rate(learning_rate)
    check.number("decay", decay, below=1.0)
    check.number("eps", eps)
    return Optimizer(_init_centered_rmsprop, partial(_update_graves_rmsprop, learning_rate, decay, eps))


def _update_graves_rmsprop(
    learning_rate: Scalar | Schedule,
    decay: Scalar,
    eps: Scalar,
    grads: Params,
    state: CenteredRmspropState,
    params: Params,
) -> tuple[Params, CenteredRmspropState]:
    check_fit(CenteredRmspropState, grads, state, params)
    size = rate(learning_rate, state.updates)
    mean, square, variance = _centered(decay, state, grads)
    updates = tree.map(lambda g, v: (-size * (g / (v + eps).sqrt())).to(g.dtype), grads, variance)
    return updates, CenteredRmspropState(state.updates + 1, mean, square)


def adagrad(learning_rate: Scalar | Schedule = 1e-2, eps: Scalar = 1e-10, initial_square: Scalar = 0.0) -> Optimizer:
    """Adagrad.

        square = square + g**2
        update = -rate * g / (sqrt(square) + eps)

    For the `lr_decay` of `torch.optim.Adagrad`, pass the schedule `lambda count: rate / (1 + lr_decay * count)`.
    Duchi, Hazan, Singer 2011, https://jmlr.org/papers/v12/duchi11a.html
    """
    check_rate(learning_rate)
    check.number("eps", eps)
    check.number("initial_square", initial_square)
    return Optimizer(partial(_init_adagrad, initial_square), partial(_update_adagrad, learning_rate, eps))


def _init_adagrad(initial_square: Scalar, params: Params) -> AdagradState:
    return AdagradState(
        no_updates(params), tree.map(lambda x: (torch.zeros_like(x) + initial_square).to(x.dtype), params)
    )


def _update_adagrad(
    learning_rate: Scalar | Schedule, eps: Scalar, grads: Params, state: AdagradState, params: Params
) -> tuple[Params, AdagradState]:
    check_fit(AdagradState, grads, state, params)
    size = rate(learning_rate, state.updates)
    square = tree.map(lambda v, g: v + g * g, state.square, grads)
    updates = tree.map(lambda g, v: (-size * (g / (v.sqrt() + eps))).to(g.dtype), grads, square)
    return updates, AdagradState(state.updates + 1, square)


def mean_square(decay: Scalar, square: Params, grads: Params) -> Params:
    """Update the running mean of squared gradients, `decay * square + (1 - decay) * g**2`."""
    return tree.map(lambda v, g: (decayed(decay, v) + (1 - decay) * (g * g)).to(g.dtype), square, grads)


def decayed(decay: Scalar, x: Tensor) -> Tensor:
    """Return `decay * x`, and 0 for a decay of 0 even if `x` is infinite or NaN."""
    if isinstance(decay, Tensor):
        return torch.where(decay == 0, 0.0, x * decay)
    return x * decay if decay else torch.zeros_like(x)


def _centered(decay: Scalar, state: CenteredRmspropState, grads: Params) -> tuple[Params, Params, Params]:
    """Update the running means of gradients and squared gradients; return them and the variance, at least 0."""
    mean, square = tree.lerp(state.mean, grads, 1 - decay), mean_square(decay, state.square, grads)
    return mean, square, tree.map(lambda m, v: (v - m * m).clamp_min(0.0), mean, square)
