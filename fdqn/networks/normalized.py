"""Networks of Stream Q: normalized observations, layer normalization without parameters, LeakyReLU, sparse weights.

The running mean and variance of the observations are parameters named `norm.mean`, `norm.var` and `norm.count`, as
BatchNorm keeps its statistics in a `state_dict`, so acting, evaluation and exported networks use them. They have no
gradient; `update_statistics` updates them.

Elsayed, Vasan, Mahmood 2024, https://arxiv.org/abs/2410.14606
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fdqn import check
from fdqn.networks import layers as parts
from fdqn.networks.initialization import sparse
from fdqn.networks.layers import Layer, Layers
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
    event = parts.event_shape(obs_shape)
    check.sizes("hidden", hidden, 1)
    check.count("actions", actions, 1)
    *inner, last = pairwise((math.prod(event), *hidden, actions))
    dense = [x for m, n in inner for x in (parts.linear(m, n), _layer_norm((n,)), _leaky_relu())]
    return _network(event, [*dense, parts.linear(*last)], images=False)


def stream_minatar(obs_shape: Sequence[int], actions: int) -> Network:
    """Make the convolutional network of Stream Q for MinAtar's boards [channels, height, width].

    It has a convolution of 16 filters of 3 x 3, a hidden layer of 128 units and a linear output layer. The first two
    are followed by layer normalization over all of their outputs and LeakyReLU. Observations are normalized, and
    weights initialized, as in `stream_mlp`.

    Shapes: obs [..., channels, height, width]; q [..., actions]. Raises ValueError for boards below 3 x 3.
    """
    event = parts.event_shape(obs_shape, rank=3)
    if min(event[1:]) < 3:
        raise ValueError(f"obs_shape: expected boards of at least 3 x 3, got {event[1]} x {event[2]}")
    check.count("actions", actions, 1)
    convolved = (16, *(n - 2 for n in event[1:]))
    layers = [
        parts.convolution(event[0], 16, 3), _layer_norm(convolved), _leaky_relu(), parts.flatten(),
        parts.linear(math.prod(convolved), 128), _layer_norm((128,)), _leaky_relu(), parts.linear(128, actions),
    ]  # fmt: skip
    return _network(event, layers, images=True)


def update_statistics(params: Params, obs: Tensor) -> Params:
    """Add one observation [*O] to the running mean and variance among the parameters of one seed.

    Parameters without such statistics, those of other networks, are returned unchanged. Raises ValueError for an
    observation of another shape.
    """
    check.kind("params", params, dict)
    check.tensor("obs", obs)
    if not all(name in params for name in STATISTICS):
        return params
    mean, var, count = (params[name] for name in STATISTICS)
    return {**params, **dict(zip(STATISTICS, running.welford(mean, var, count, _scaled(obs, mean.dtype)), strict=True))}


def _scaled(obs: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert an observation as `layers.inputs` does."""
    return obs.to(dtype) / 255.0 if obs.dtype == torch.uint8 else obs.to(dtype)


def _network(event: tuple[int, ...], sequence: Sequence[Layer], images: bool) -> Network:
    layers = {f"{i}": layer for i, layer in enumerate(sequence)}
    shapes = dict(zip(STATISTICS, (event, event, ()), strict=True)) | parts.shapes(layers)
    return sparse(Network(partial(_init, event, layers), partial(_apply, event, images, layers, shapes)))


def _init(event: tuple[int, ...], layers: Layers, key: Tensor) -> Params:
    """Initialize the statistics to mean 0, variance 1 and count 0, and the layers as PyTorch does."""
    zeros = torch.zeros((*key.shape[:-1], *event), device=key.device)
    start = (zeros, torch.ones_like(zeros), zeros.new_zeros(key.shape[:-1]))
    return dict(zip(STATISTICS, start, strict=True)) | parts.init(layers, 0, key)


def _apply(event: tuple[int, ...], images: bool, layers: Layers, shapes: Shapes, params: Params, obs: Tensor) -> Tensor:
    x = parts.inputs(event, shapes, params, obs)
    leading = x.shape[: x.ndim - len(event)]
    x = (x - params["norm.mean"].detach()) / (params["norm.var"].detach() + EPSILON).sqrt()
    return parts.restored(parts.forward(layers, params, parts.batched(x, event, images), {}), leading, images)


def _layer_norm(shape: tuple[int, ...]) -> Layer:
    """Make the counterpart of `nn.LayerNorm(shape, elementwise_affine=False)`."""
    return Layer(partial(_apply_norm, shape), {}, _init_nothing, keys=0, noise=0)


def _leaky_relu() -> Layer:
    """Make the counterpart of `nn.LeakyReLU`, whose slope is 0.01 below 0."""
    return Layer(_apply_leaky_relu, {}, _init_nothing, keys=0, noise=0)


def _apply_norm(shape: tuple[int, ...], params: Params, name: str, x: Tensor, noise: Tensor | None) -> Tensor:
    return F.layer_norm(x, shape)


def _apply_leaky_relu(params: Params, name: str, x: Tensor, noise: Tensor | None) -> Tensor:
    return F.leaky_relu(x)


def _init_nothing(key: Tensor, first: int) -> Params:
    return {}
