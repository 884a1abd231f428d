"""Networks of Stream Q: normalized observations, layer normalization without parameters, LeakyReLU, sparse weights.

The running mean and variance of the observations are parameters named `norm.mean`, `norm.var` and `norm.count`, as
BatchNorm keeps its statistics in a `state_dict`, so acting, evaluation and exported networks use them. They have no
gradient; `update_statistics` moves them.

Elsayed, Vasan, Mahmood 2024, https://arxiv.org/abs/2410.14606
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fdqn import check, random
from fdqn.networks.layers import _event, _flat, _init_layers, _linear, _shapes, _sizes, check_weights, inputs
from fdqn.networks.state_dict import Shapes
from fdqn.ops import running
from fdqn.types import Network, Params

STATISTICS = ("norm.mean", "norm.var", "norm.count")
"""Names of the statistics of the observations among the parameters."""

EPSILON = 1e-8
"""Added to the variance of observations."""


def stream_mlp(obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int) -> Network:
    """Make the MLP of Stream Q; the paper has two hidden layers of 32 units.

        x = (obs - norm.mean) / sqrt(norm.var + 1e-8)
        x = leaky_relu(layer_norm(linear(x)))          for each hidden layer
        q = linear(x)

    Names are those of `nn.Sequential(Linear, LayerNorm, LeakyReLU, ..., Linear)`, whose LayerNorms have no parameters.
    Nine of ten weights of every unit start at 0, and biases start at 0. uint8 observations are divided by 255.

    Shapes: obs [..., *obs_shape], flattened; q [..., actions]. Raises as `mlp` does.
    """
    event = _event(obs_shape)
    sizes = pairwise(_sizes(math.prod(event), hidden, actions))
    layers = {f"{3 * i}": (n, m) for i, (m, n) in enumerate(sizes)}
    check_weights(layers)
    return Network(partial(_init, event, layers), partial(_apply_mlp, event, layers))


def stream_minatar(obs_shape: Sequence[int], actions: int) -> Network:
    """Make the convolutional network of Stream Q for MinAtar's boards [channels, height, width].

    It has 16 filters of 3 x 3, 128 hidden units and a linear layer, each but the last followed by layer normalization
    over the whole of its output and LeakyReLU. Observations are normalized and weights start as in `stream_mlp`.

    Shapes: obs [..., channels, height, width]; q [..., actions]. Raises ValueError for boards below 3 x 3.
    """
    channels, height, width = event = _event(obs_shape, rank=3)
    if min(height, width) < 3:
        raise ValueError(f"obs_shape: expected boards of at least 3 x 3, got {height} x {width}")
    check.count("actions", actions, 1)
    layers = {"0": (16, channels, 3, 3), "4": (128, 16 * (height - 2) * (width - 2)), "7": (actions, 128)}
    return Network(partial(_init, event, layers), partial(_apply_minatar, event, layers))


def update_statistics(params: Params, obs: Tensor) -> Params:
    """Add one observation [*O] to the running mean and variance among the parameters of one seed.

    Returns parameters without such statistics, as of other networks, unchanged. Raises ValueError for an observation of
    another shape.
    """
    check.kind("params", params, dict)
    check.tensor("obs", obs)
    if not all(name in params for name in STATISTICS):
        return params
    mean, var, count = (params[name] for name in STATISTICS)
    return {**params, **dict(zip(STATISTICS, running.moments(mean, var, count, _scaled(obs, mean.dtype)), strict=True))}


_Layers = Mapping[str, tuple[int, ...]]


def _scaled(obs: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert observations as `layers.inputs` does."""
    return obs.to(dtype) / 255.0 if obs.dtype == torch.uint8 else obs.to(dtype)


def _normalized(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor) -> Tensor:
    x = inputs(event, _expected(event, layers), params, obs)
    mean, var = params["norm.mean"].detach(), params["norm.var"].detach()
    return (x - mean) / (var + EPSILON).sqrt()


def _apply_mlp(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor) -> Tensor:
    x = _flat(_normalized(event, layers, params, obs), len(event))
    *hidden, last = layers
    for name in hidden:
        x = _linear(params, name, x)
        x = F.leaky_relu(F.layer_norm(x, x.shape[-1:]))
    return _linear(params, last, x)


def _apply_minatar(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor) -> Tensor:
    boards = _normalized(event, layers, params, obs)
    x = F.conv2d(boards.reshape(-1, *event), params["0.weight"], params["0.bias"])
    x = F.leaky_relu(F.layer_norm(x, x.shape[1:])).flatten(1)
    x = _linear(params, "4", x)
    x = _linear(params, "7", F.leaky_relu(F.layer_norm(x, x.shape[-1:])))
    return x.reshape(*boards.shape[: boards.ndim - 3], x.shape[-1])


def _expected(event: tuple[int, ...], layers: _Layers) -> Shapes:
    statistics = dict(zip(STATISTICS, (event, event, ()), strict=True))
    return statistics | dict(item for name, shape in layers.items() for item in _shapes(name, shape))


def _init(event: tuple[int, ...], layers: _Layers, key: Tensor) -> Params:
    """Initialize the statistics to mean 0, variance 1 and count 0, and the layers sparsely."""
    leading = key.shape[:-1]
    zeros = torch.zeros((*leading, *event), device=key.device)
    statistics = dict(zip(STATISTICS, (zeros, torch.ones_like(zeros), zeros.new_zeros(leading)), strict=True))
    return statistics | _sparse(key, _init_layers(layers, key), len(leading))


def _sparse(key: Tensor, params: Params, leading: int, sparsity: float = 0.9) -> Params:
    """Set `ceil(sparsity * inputs)` weights of every unit, and all biases, to 0."""
    found = {}
    for i, (name, x) in enumerate(params.items()):
        if name.endswith("bias"):
            found[name] = torch.zeros_like(x)
            continue
        count = math.prod(x.shape[leading + 1 :])
        bits = random.bits(random.fold_in(random.fold_in(key, 1000), i), (x.shape[leading], count))
        rank = bits.argsort(dim=-1, stable=True).argsort(dim=-1)
        found[name] = torch.where((rank < min(math.ceil(sparsity * count), count - 1)).reshape(x.shape), 0.0, x)
    return found
