"""MLPs with layer normalization, for learning without a target network."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fdqn import check
from fdqn.networks.initialization import orthogonal
from fdqn.networks.layers import _event, _flat, _init_layers, _linear, _sizes, check_weights, inputs
from fdqn.networks.state_dict import Shapes
from fdqn.types import Network, Params


def layer_norm_mlp(
    obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int, gain: float | None = None
) -> Network:
    """Make an MLP with layer normalization before each ReLU.

    Parameter names, initial distribution and outputs are those of `nn.Sequential(Linear, LayerNorm, ReLU, ...,
    Linear)`. With a `gain`, weights are initialized to orthogonal matrices times `gain` and biases to 0; CleanRL's PQN
    uses sqrt(2). Observations of uint8 are divided by 255.

    Shapes: obs [..., *obs_shape], flattened; q [..., actions]. Raises as `mlp` does, and ValueError for a negative
    gain. Ba et al. 2016, https://arxiv.org/abs/1607.06450; for Q-learning Gallici et al. 2024,
    https://arxiv.org/abs/2407.04811
    """
    if gain is not None:
        check.number("gain", gain)
    event = _event(obs_shape)
    sizes = _sizes(math.prod(event), hidden, actions)
    # nn.Sequential counts LayerNorm and ReLU too: linear layer i has index 3 i, its LayerNorm 3 i + 1.
    linear = {f"{3 * i}": (n, m) for i, (m, n) in enumerate(pairwise(sizes))}
    check_weights(linear)
    norms = {f"{3 * i + 1}": (size,) for i, size in enumerate(hidden)}
    network = Network(partial(_init, linear, norms), partial(_apply, event, linear, norms))
    return network if gain is None else orthogonal(network, gain)


_Layers = Mapping[str, tuple[int, ...]]


def _apply(event: tuple[int, ...], linear: _Layers, norms: _Layers, params: Params, obs: Tensor) -> Tensor:
    x = _flat(inputs(event, _expected(linear, norms), params, obs), len(event))
    *hidden, last = linear
    for name, norm in zip(hidden, norms, strict=True):
        x = _linear(params, name, x)
        x = F.layer_norm(x, x.shape[-1:], params[f"{norm}.weight"], params[f"{norm}.bias"]).relu()
    return _linear(params, last, x)


def _init(linear: _Layers, norms: _Layers, key: Tensor) -> Params:
    """Initialize linear layers as `mlp` does, and layer norms to scale 1 and shift 0."""
    params = _init_layers(linear, key)
    for name, shape in norms.items():
        params[f"{name}.weight"] = torch.ones((*key.shape[:-1], *shape), device=key.device)
        params[f"{name}.bias"] = torch.zeros((*key.shape[:-1], *shape), device=key.device)
    return {name: params[name] for name in _expected(linear, norms)}


def _expected(linear: _Layers, norms: _Layers) -> Shapes:
    layers = dict(sorted({**linear, **norms}.items(), key=lambda item: int(item[0])))
    return {
        f"{name}.{kind}": shape if kind == "weight" else shape[:1]
        for name, shape in layers.items()
        for kind in ("weight", "bias")
    }
