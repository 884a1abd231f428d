"""Initializations of networks: functions that return a network with other initial parameters.

They change the weight of each linear or convolutional layer: a parameter named `weight`, or `weight_mu` in a noisy
layer, which has at least two axes and another shape than its bias. They set that bias to 0. Other parameters, such as
those of layer normalization and the scales of noise, keep their initial values.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from fdqn import check, random
from fdqn.types import Params

N = TypeVar("N")
"""A network: a record with a function `init`, such as a `Network`, `NoisyNetwork` or `Trunk`."""


def orthogonal(network: N, gain: float = math.sqrt(2)) -> N:
    """Initialize the weights of a network to orthogonal matrices times `gain`, and the biases to 0.

    The weight of a convolution [n, channels, height, width] is taken as a matrix of n rows. The default gain is that of
    every layer of CleanRL's PQN.

    Raises TypeError for a network without a function `init`, and TypeError or ValueError for a gain that is not a
    number of at least 0. Saxe et al. 2014, https://arxiv.org/abs/1312.6120
    """
    check.number("gain", gain)
    return _initialized(network, partial(_orthogonal, gain))


def sparse(network: N, sparsity: float = 0.9) -> N:
    """Initialize a fraction `sparsity` of the weights of every unit to 0, and the biases to 0.

    Of the m weights of a unit, a random choice of `ceil(sparsity * m)` is 0, but at least one is not. The other weights
    are uniform in +-1 / sqrt(m) and equal those of the plain initialization with the same key.

    Raises TypeError for a network without a function `init`, and TypeError or ValueError for a sparsity that is not a
    number in [0, 1). Elsayed, Vasan, Mahmood 2024, https://arxiv.org/abs/2410.14606; there, all weights of a unit with
    few inputs are 0.
    """
    if isinstance(sparsity, Tensor):
        raise TypeError("sparsity: expected a Python number, got Tensor")
    check.number("sparsity", sparsity, below=1)
    return _initialized(network, partial(_sparse, sparsity))


_Weight = Callable[[Tensor, tuple[int, ...]], Tensor]
"""`weight(key [..., 2], shape) -> [..., *shape]`."""


def _initialized(network: N, weight: _Weight) -> N:
    init: Any = getattr(network, "init", None)
    check.function("network.init", init)
    return cast("N", cast(Any, network)._replace(init=partial(_init, init, weight)))


def _init(init: Callable[[Tensor], Params], weight: _Weight, key: Tensor) -> Params:
    """Replace the i-th weight of `init(key)` by one from `fold_in(key, i)`, as the layers number their keys."""
    params, leading = dict(init(key)), key.ndim - 1
    names = [name for name in params if _is_weight(params, name, leading)]
    for i, name in enumerate(names):
        own = params[name]
        params[name] = weight(random.fold_in(key, i), tuple(own.shape[leading:])).to(own.dtype)
        if (bias := _bias(name)) in params:
            params[bias] = torch.zeros_like(params[bias])
    return params


def _is_weight(params: Params, name: str, leading: int) -> bool:
    if name.split(".")[-1] not in ("weight", "weight_mu") or params[name].ndim < leading + 2:
        return False
    bias = params.get(_bias(name))
    return bias is None or bias.shape != params[name].shape  # equal in layer normalization over several axes


def _bias(name: str) -> str:
    start, _, end = name.rpartition("weight")
    return f"{start}bias{end}"


def _orthogonal(gain: float, key: Tensor, shape: tuple[int, ...]) -> Tensor:
    rows, columns = shape[0], math.prod(shape[1:])
    return gain * _orthonormal(key, (rows, columns)).reshape(*key.shape[:-1], *shape)


def _orthonormal(key: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sample matrices [..., n, m] with orthonormal rows or, if n > m, columns, as `torch.nn.init.orthogonal_` does."""
    tall = (max(shape), min(shape))
    # In float64, so that differences in rounding between linear algebra libraries mostly vanish in float32.
    q, r = torch.linalg.qr(random.normal(key, tall, torch.float64))
    # QR may give each column either sign. Only with these signs are the matrices uniformly distributed.
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return (q if shape[0] >= shape[1] else q.mT).to(torch.float32).contiguous()


def _sparse(sparsity: float, key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sample weights [..., *shape], of which each unit, an index of the first axis of `shape`, keeps the same number.

    The weights use the key of the plain layer's weight; the choice of zeros uses the key of its bias, which is 0 here.
    """
    inputs = math.prod(shape[1:])
    kept = max(1, inputs - math.ceil(sparsity * inputs))
    weight, choice = random.split(key).unbind(-2)
    # Distinct numbers in random order, so that exactly `kept` of them are among the lowest.
    order = random.bits(choice, (shape[0], inputs)) * inputs + torch.arange(inputs, device=key.device)
    keep = order <= order.kthvalue(kept, dim=-1, keepdim=True).values
    values = (2 * random.uniform(weight, shape) - 1) * (1 / math.sqrt(inputs))
    return torch.where(keep.reshape(values.shape), values, 0.0)
