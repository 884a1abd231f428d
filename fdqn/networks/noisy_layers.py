"""Noisy networks: linear layers whose weights are a mean plus a learned scale times Gaussian noise.

Noise is passed as uniforms in [0, 1); `()` selects the mean weights. `with_noise` turns a plain `Network` into a
`NoisyNetwork` without noise, so that agents handle only one type.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fdqn import check, random
from fdqn.networks.layers import _event, _flat, _sizes, check_weights, inputs
from fdqn.networks.state_dict import Shapes
from fdqn.types import Network, Params, Uniforms


class NoisyNetwork(NamedTuple):
    """Network whose `apply` takes noise: `apply(params, obs [..., *O], noise=()) -> outputs [..., N]`."""

    init: Callable[[Tensor], Params]
    """`init(key [..., 2]) -> params`, with leaves [..., *shape]."""
    apply: Callable[..., Tensor]
    """`apply(params, obs)` uses the mean weights; `apply(params, obs, noise [K])` samples the weights once for all
    rows."""
    noise: int
    """Number of uniforms K that `apply` takes; 0 for a network without noise."""


def noisy_mlp(
    obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int, sigma_zero: float = 0.5
) -> NoisyNetwork:
    """Make an MLP of noisy linear layers with factorized Gaussian noise and ReLU activations.

        y = (weight_mu + weight_sigma * outer(f(e_out), f(e_in))) x + bias_mu + bias_sigma * f(e_out)
        f(e) = sign(e) sqrt(|e|),    e_in and e_out standard normal

    Means are initialized uniformly in +-1 / sqrt(inputs), scales to `sigma_zero / sqrt(inputs)`. Each call samples the
    weights once for all of its rows. Observations of uint8 are divided by 255. The noise replaces epsilon-greedy
    exploration.

    Shapes: obs [..., *obs_shape], flattened; noise [K] or (); outputs [..., actions]. Raises as `mlp` does; `apply`
    raises ValueError for noise of another shape or, if its values can be read, outside [0, 1).
    Fortunato et al. 2018, https://arxiv.org/abs/1706.10295
    """
    check.number("sigma_zero", sigma_zero)
    event = _event(obs_shape)
    sizes = pairwise(_sizes(math.prod(event), hidden, actions))
    layers = {f"{2 * i}": (n, m) for i, (m, n) in enumerate(sizes)}
    check_weights(layers)
    noise = sum(n + m for n, m in layers.values())
    return NoisyNetwork(partial(_init_layers, layers, float(sigma_zero)), partial(_apply_mlp, event, layers), noise)


def with_noise(network: Network | NoisyNetwork) -> NoisyNetwork:
    """Convert a `Network` to a `NoisyNetwork` without noise; return a `NoisyNetwork` unchanged.

    Raises TypeError for another type.
    """
    check.kind("network", network, Network, NoisyNetwork)
    if isinstance(network, NoisyNetwork):
        return network
    return NoisyNetwork(network.init, partial(_apply_without_noise, network.apply), 0)


_Layers = Mapping[str, tuple[int, int]]
"""Sizes (outputs, inputs) of each layer by name."""


def _apply_without_noise(
    apply: Callable[[Params, Tensor], Tensor], params: Params, obs: Tensor, noise: Uniforms = ()
) -> Tensor:
    if isinstance(noise, Tensor) or noise != ():
        raise TypeError(f"noise: expected () for a network without noise, got {type(noise).__name__}")
    return apply(params, obs)


def _apply_mlp(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor, noise: Uniforms = ()) -> Tensor:
    x = _flat(inputs(event, _shapes(layers), params, obs), len(event))
    noises = _split(layers, noise, x)
    *hidden, last = layers
    for name in hidden:
        x = _noisy_linear(params, name, x, noises[name]).relu()
    return _noisy_linear(params, last, x, noises[last])


def _noisy_linear(params: Params, name: str, x: Tensor, noise: tuple[Tensor, Tensor] | None) -> Tensor:
    weight, bias = params[f"{name}.weight_mu"], params[f"{name}.bias_mu"]
    if noise is None:
        return F.linear(x, weight, bias)
    out, into = noise
    weight = weight + params[f"{name}.weight_sigma"] * (out.unsqueeze(-1) * into)
    return F.linear(x, weight, bias + params[f"{name}.bias_sigma"] * out)


def _split(layers: _Layers, noise: Uniforms, like: Tensor) -> dict[str, tuple[Tensor, Tensor] | None]:
    """Return the noise factors f(e_out) [n] and f(e_in) [m] of each layer, or None without noise."""
    if not isinstance(noise, Tensor):
        if noise != ():
            raise TypeError(f"noise: expected uniforms [K] or (), got {type(noise).__name__}")
        return dict.fromkeys(layers)
    check.shapes(f"noise[{sum(n + m for n, m in layers.values())}]", noise)
    e = random.normal_from_uniform(noise).to(like.dtype)
    factors = iter((e.sign() * e.abs().sqrt()).split([size for shape in layers.values() for size in shape]))
    return {name: (next(factors), next(factors)) for name in layers}


def _shapes(layers: _Layers) -> Shapes:
    kinds = ("weight_mu", "bias_mu", "weight_sigma", "bias_sigma")
    return {
        f"{name}.{kind}": shape if "weight" in kind else shape[:1] for name, shape in layers.items() for kind in kinds
    }


def _init_layers(layers: _Layers, sigma_zero: float, key: Tensor) -> Params:
    """Initialize means uniformly in +-1 / sqrt(inputs), scales to sigma_zero / sqrt(inputs); see section 3.2."""
    params: Params = {}
    for i, (name, shape) in enumerate(layers.items()):
        bound = 1 / math.sqrt(shape[1])
        weight, bias = random.split(random.fold_in(key, i)).unbind(-2)
        means = {
            "weight": (2 * random.uniform(weight, shape) - 1) * bound,
            "bias": (2 * random.uniform(bias, shape[:1]) - 1) * bound,
        }
        params |= {f"{name}.{kind}_mu": x for kind, x in means.items()}
        params |= {f"{name}.{kind}_sigma": torch.full_like(x, sigma_zero * bound) for kind, x in means.items()}
    return params
