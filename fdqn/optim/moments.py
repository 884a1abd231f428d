"""Adam and its variants.

Each state holds the bias corrections of the next update, computed by the update before. Computed in the fused kernel,
a power, root or quotient would be recomputed for every element. Powers are float64 regardless of the parameters'
dtype: in float32 the first `1 - beta2**t` would be off by 5e-5.
"""

import functools
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.optim.descent import decayed, mean_square
from fdqn.optim.state import check_fit, check_rate, first, no_updates, rate, zeros
from fdqn.types import Optimizer, Params, Scalar, Schedule


class AdamState(NamedTuple):
    """Moment estimates, and the bias corrections of the next update, number t."""

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


class AdamaxState(NamedTuple):
    """Mean gradient and exponentially weighted infinity norm, and the bias correction of the next update, number t."""

    updates: Tensor
    beta1_power: Tensor
    scale: Tensor
    """`1 / (1 - beta1**t)`."""
    mean: Params
    largest: Params


class NadamState(NamedTuple):
    """Moment estimates, and the coefficients of the next update, number t; `mu(t)` is its momentum."""

    updates: Tensor
    mu_product: Tensor
    """`mu(1) * ... * mu(t)`."""
    beta2_power: Tensor
    root: Tensor
    """`sqrt(1 - beta2**t)`."""
    grad_scale: Tensor
    """`(1 - mu(t)) / (1 - mu_product)`."""
    mean_scale: Tensor
    """`mu(t + 1) / (1 - mu_product * mu(t + 1))`."""
    mean: Params
    square: Params


class RadamState(NamedTuple):
    """Moment estimates, and the coefficients of the next update, number t."""

    updates: Tensor
    scale: Tensor
    """`1 / (1 - beta1**t)`."""
    rectified: Tensor
    """`r(t) * sqrt(1 - beta2**t) / (1 - beta1**t)`; 0 while `rho(t) <= 5`, where the variance is not tractable."""
    mean: Params
    square: Params


def adam(
    learning_rate: Scalar | Schedule = 1e-3, beta1: Scalar = 0.9, beta2: Scalar = 0.999, eps: Scalar = 1e-8
) -> Optimizer:
    """Adam.

        mean   = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g**2
        update = -rate / (1 - beta1**t) * mean / (sqrt(square / (1 - beta2**t)) + eps)

    Kingma, Ba 2015, https://arxiv.org/abs/1412.6980, in the order of operations at the end of their section 2;
    `torch.optim.Adam`.
    """
    _check(learning_rate, beta1, beta2, eps)
    return Optimizer(partial(_init_adam, beta1, beta2), partial(_update_adam, learning_rate, beta1, beta2, eps))


def _init_adam(beta1: Scalar, beta2: Scalar, params: Params) -> AdamState:
    one = _one(params)
    return AdamState(no_updates(params), *_corrections(one * beta1, one * beta2, params), zeros(params), zeros(params))


def _update_adam(
    learning_rate: Scalar | Schedule,
    beta1: Scalar,
    beta2: Scalar,
    eps: Scalar,
    grads: Params,
    state: AdamState,
    params: Params,
) -> tuple[Params, AdamState]:
    check_fit(AdamState, grads, state, params)
    mean = tree.lerp(state.mean, grads, 1 - beta1)
    square = mean_square(beta2, state.square, grads)
    size, floor = rate(learning_rate, state.updates) * state.scale, eps * state.root
    updates = tree.map(lambda m, v: (-size * m / (v.sqrt() + floor)).to(m.dtype), mean, square)
    corrections = _corrections(state.beta1_power * beta1, state.beta2_power * beta2, params)
    return updates, AdamState(state.updates + 1, *corrections, mean, square)


def _corrections(power1: Tensor, power2: Tensor, params: Params) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    root = (1 - power2).sqrt()
    return power1, power2, _as(params, root), _as(params, root / (1 - power1))


def adamw(
    learning_rate: Scalar | Schedule = 1e-3,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 1e-2,
) -> Optimizer:
    """Adam with decoupled weight decay, which the adaptive step sizes do not scale.

        update = Adam's update - rate * weight_decay * p

    Loshchilov, Hutter 2019, https://arxiv.org/abs/1711.05101; `torch.optim.AdamW`.
    """
    check.number("weight_decay", weight_decay)
    inner = adam(learning_rate, beta1, beta2, eps)
    return Optimizer(inner.init, partial(_update_adamw, inner, learning_rate, weight_decay))


def _update_adamw(
    inner: Optimizer,
    learning_rate: Scalar | Schedule,
    weight_decay: Scalar,
    grads: Params,
    state: AdamState,
    params: Params,
) -> tuple[Params, AdamState]:
    updates, new = inner.update(grads, state, params)
    decay = rate(learning_rate, state.updates) * weight_decay
    return tree.map(lambda u, p: (u - decay * p).to(u.dtype), updates, params), new


def adamax(
    learning_rate: Scalar | Schedule = 2e-3, beta1: Scalar = 0.9, beta2: Scalar = 0.999, eps: Scalar = 1e-8
) -> Optimizer:
    """Adamax: Adam with the infinity norm in place of the root mean square.

        mean    = beta1 * mean + (1 - beta1) * g
        largest = max(beta2 * largest, |g| + eps)
        update  = -rate / (1 - beta1**t) * mean / largest

    Kingma, Ba 2015, https://arxiv.org/abs/1412.6980, section 7; `torch.optim.Adamax`.
    """
    _check(learning_rate, beta1, beta2, eps)
    return Optimizer(partial(_init_adamax, beta1), partial(_update_adamax, learning_rate, beta1, beta2, eps))


def _init_adamax(beta1: Scalar, params: Params) -> AdamaxState:
    power = _one(params) * beta1
    return AdamaxState(no_updates(params), power, _as(params, 1 / (1 - power)), zeros(params), zeros(params))


def _update_adamax(
    learning_rate: Scalar | Schedule,
    beta1: Scalar,
    beta2: Scalar,
    eps: Scalar,
    grads: Params,
    state: AdamaxState,
    params: Params,
) -> tuple[Params, AdamaxState]:
    check_fit(AdamaxState, grads, state, params)
    mean = tree.lerp(state.mean, grads, 1 - beta1)
    largest = tree.map(lambda x, g: decayed(beta2, x).maximum(g.abs() + eps).to(g.dtype), state.largest, grads)
    size = rate(learning_rate, state.updates) * state.scale
    updates = tree.map(lambda m, x: (-size * m / x).to(m.dtype), mean, largest)
    power = state.beta1_power * beta1
    return updates, AdamaxState(state.updates + 1, power, _as(params, 1 / (1 - power)), mean, largest)


def nadam(
    learning_rate: Scalar | Schedule = 2e-3,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    momentum_decay: Scalar = 4e-3,
) -> Optimizer:
    """NAdam: Adam with Nesterov momentum that increases over the first updates.

        mu(t)  = beta1 * (1 - 0.96**(t * momentum_decay) / 2)
        toward = (1 - mu(t)) / (1 - mu(1) ... mu(t)) * g + mu(t + 1) / (1 - mu(1) ... mu(t + 1)) * mean
        update = -rate * toward / (sqrt(square / (1 - beta2**t)) + eps),  mean and square as in Adam

    Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ; `torch.optim.NAdam`.
    """
    _check(learning_rate, beta1, beta2, eps)
    check.number("momentum_decay", momentum_decay)
    return Optimizer(
        partial(_init_nadam, beta1, beta2, momentum_decay),
        partial(_update_nadam, learning_rate, beta1, beta2, eps, momentum_decay),
    )


def _init_nadam(beta1: Scalar, beta2: Scalar, momentum_decay: Scalar, params: Params) -> NadamState:
    one = _one(params)
    scales = _nesterov(no_updates(params), one, one, beta1, beta2, momentum_decay, params)
    return NadamState(no_updates(params), *scales, zeros(params), zeros(params))


def _update_nadam(
    learning_rate: Scalar | Schedule,
    beta1: Scalar,
    beta2: Scalar,
    eps: Scalar,
    momentum_decay: Scalar,
    grads: Params,
    state: NadamState,
    params: Params,
) -> tuple[Params, NadamState]:
    check_fit(NadamState, grads, state, params)
    mean = tree.lerp(state.mean, grads, 1 - beta1)
    square = mean_square(beta2, state.square, grads)
    size = rate(learning_rate, state.updates) * state.root
    by_grad, by_mean, floor = size * state.grad_scale, size * state.mean_scale, eps * state.root
    updates = tree.map(
        lambda g, m, v: (-(by_grad * g + by_mean * m) / (v.sqrt() + floor)).to(g.dtype), grads, mean, square
    )
    count = state.updates + 1
    scales = _nesterov(count, state.mu_product, state.beta2_power, beta1, beta2, momentum_decay, params)
    return updates, NadamState(count, *scales, mean, square)


def _nesterov(
    updates: Tensor,
    mu_product: Tensor,
    beta2_power: Tensor,
    beta1: Scalar,
    beta2: Scalar,
    momentum_decay: Scalar,
    params: Params,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the coefficients of update number `updates + 1` from the products of the update before."""
    t = updates.double() + 1
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (n * momentum_decay)) for n in (t, t + 1))
    product, power = mu_product * mu, beta2_power * beta2
    by_grad, by_mean = (1 - mu) / (1 - product), mu_next / (1 - product * mu_next)
    return product, power, _as(params, (1 - power).sqrt()), _as(params, by_grad), _as(params, by_mean)


def radam(
    learning_rate: Scalar | Schedule = 1e-3, beta1: Scalar = 0.9, beta2: Scalar = 0.999, eps: Scalar = 1e-8
) -> Optimizer:
    """RAdam: Adam without adaptive step sizes until their variance is tractable, then with a rectification term.

        rho(t) = rho - 2 * t * beta2**t / (1 - beta2**t),  rho = 2 / (1 - beta2) - 1
        r(t)   = sqrt((rho(t) - 4) * (rho(t) - 2) * rho / ((rho - 4) * (rho - 2) * rho(t)))
        update = -rate / (1 - beta1**t) * mean * (r(t) * sqrt(1 - beta2**t) / (sqrt(square) + eps) if rho(t) > 5 else 1)

    Liu et al. 2020, https://arxiv.org/abs/1908.03265; `torch.optim.RAdam`.
    """
    _check(learning_rate, beta1, beta2, eps)
    return Optimizer(partial(_init_radam, beta1, beta2), partial(_update_radam, learning_rate, beta1, beta2, eps))


def _init_radam(beta1: Scalar, beta2: Scalar, params: Params) -> RadamState:
    count = no_updates(params)
    return RadamState(count, *_rectification(count, beta1, beta2, params), zeros(params), zeros(params))


def _update_radam(
    learning_rate: Scalar | Schedule,
    beta1: Scalar,
    beta2: Scalar,
    eps: Scalar,
    grads: Params,
    state: RadamState,
    params: Params,
) -> tuple[Params, RadamState]:
    check_fit(RadamState, grads, state, params)
    mean = tree.lerp(state.mean, grads, 1 - beta1)
    square = mean_square(beta2, state.square, grads)
    size = rate(learning_rate, state.updates)
    plain, rectified = size * state.scale, size * state.rectified

    def descend(m: Tensor, v: Tensor) -> Tensor:
        return (-m * torch.where(state.rectified > 0, rectified / (v.sqrt() + eps), plain)).to(m.dtype)

    count = state.updates + 1
    scales = _rectification(count, beta1, beta2, params)
    return tree.map(descend, mean, square), RadamState(count, *scales, mean, square)


def _rectification(updates: Tensor, beta1: Scalar, beta2: Scalar, params: Params) -> tuple[Tensor, Tensor]:
    """Compute the coefficients of update number `updates + 1`."""
    t = updates.double() + 1
    power2, scale = beta2**t, 1 / (1 - beta1**t)
    most = 2 / (1 - beta2) - 1
    length = most - 2 * t * power2 / (1 - power2)
    known = length > 5
    safe = torch.where(known, length, 6.0)  # the square root in the unused branch would be NaN, and its gradient too
    rectification = ((safe - 4) * (safe - 2) * most / ((most - 4) * (most - 2) * safe)).sqrt()
    rectified = torch.where(known, rectification * (1 - power2).sqrt() * scale, 0.0)
    return _as(params, scale), _as(params, rectified)


def _check(learning_rate: Scalar | Schedule, beta1: Scalar, beta2: Scalar, eps: Scalar) -> None:
    check_rate(learning_rate)
    check.number("beta1", beta1, below=1.0)
    check.number("beta2", beta2, below=1.0)
    check.number("eps", eps)


def _one(params: Params) -> Tensor:
    return torch.ones((), dtype=torch.float64, device=first(params).device)


def _as(params: Params, x: Tensor) -> Tensor:
    """Cast `x` to the widest of the parameters' dtypes, at least float32, so that products with them are no wider."""
    return x.to(functools.reduce(torch.promote_types, {leaf.dtype for leaf in tree.leaves(params)}, torch.float32))
