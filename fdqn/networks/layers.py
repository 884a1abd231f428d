"""Layers of networks, with the parameter names, initial distribution and outputs of PyTorch's modules.

Trunks and heads are sequences of layers. The functions at the end make one network of layers by name: initialization,
noise, forward pass and checks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fdqn import check, random
from fdqn.networks.state_dict import Shapes, fitting
from fdqn.types import Params, Uniforms


class Layer(NamedTuple):
    """Layer as pure functions, which take the parameters of the whole network and the layer's name in it."""

    apply: Callable[[Params, str, Tensor, Tensor | None], Tensor]
    """`apply(params, name, x, factors) -> y`, with noise factors [noise], or None for the mean weights."""
    shapes: Shapes
    """Shapes of the layer's parameters, by their names after the layer's name and a dot."""
    init: Callable[[Tensor, int], Params]
    """`init(key [..., 2], first) -> params`, from `fold_in(key, first)`, `fold_in(key, first + 1)`, ..."""
    keys: int
    """Number of keys that `init` takes."""
    noise: int
    """Number of noise factors that `apply` takes."""


Layers = Mapping[str, Layer]
"""Layers by name, in the order of their parameters, keys and noise."""


def linear(inputs: int, outputs: int) -> Layer:
    """Make the counterpart of `nn.Linear`."""
    weight = (outputs, inputs)
    return Layer(_apply_linear, _with_bias(weight), partial(_init_uniform, weight), keys=1, noise=0)


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> Layer:
    """Make the counterpart of `nn.Conv2d` with square filters, for a batch [rows, inputs, height, width]."""
    weight = (outputs, inputs, size, size)
    return Layer(partial(_apply_convolution, stride), _with_bias(weight), partial(_init_uniform, weight), 1, 0)


def noisy_linear(inputs: int, outputs: int, sigma_zero: float) -> Layer:
    """Make a linear layer with factorized Gaussian noise; see `trunks.noisy_mlp`."""
    weight, bias = (outputs, inputs), (outputs,)
    shapes = {"weight_mu": weight, "bias_mu": bias, "weight_sigma": weight, "bias_sigma": bias}
    return Layer(_apply_noisy, shapes, partial(_init_noisy, weight, sigma_zero), keys=1, noise=outputs + inputs)


def layer_norm(shape: tuple[int, ...]) -> Layer:
    """Make the counterpart of `nn.LayerNorm(shape)`, which normalizes the last `len(shape)` axes together."""
    return Layer(partial(_apply_norm, shape), {"weight": shape, "bias": shape}, partial(_init_norm, shape), 0, 0)


def relu() -> Layer:
    """Make the counterpart of `nn.ReLU`."""
    return Layer(_apply_relu, {}, _init_nothing, keys=0, noise=0)


def flatten() -> Layer:
    """Make the counterpart of `nn.Flatten`, for a batch of rows."""
    return Layer(_apply_flatten, {}, _init_nothing, keys=0, noise=0)


def residual_stage(inputs: int, outputs: int) -> Layer:
    """Make a convolution of 3 x 3, max-pooling of 3 x 3 with stride 2, and two residual blocks.

    A residual block is x + convolution(relu(convolution(relu(x)))). Height and width are halved, rounded up.
    """
    weights: Shapes = {"conv": (outputs, inputs, 3, 3)}
    weights |= {f"block{i}.conv{j}": (outputs, outputs, 3, 3) for i in (0, 1) for j in (0, 1)}
    shapes = {f"{name}.{kind}": x for name, weight in weights.items() for kind, x in _with_bias(weight).items()}
    return Layer(_apply_stage, shapes, partial(_init_stage, weights), keys=len(weights), noise=0)


# `functional_call` of an `nn.Module`, as `from_module` uses it, would give the same operations and bits. But it
# replaces the parameters of a module that all threads share, so threads would wait for each other. It is also slower:
# an eager call (mlp of 120 and 84 units, 10 rows) takes 0.27 ms without the checks of this module, against 0.15 ms with
# them.


def _apply_linear(params: Params, name: str, x: Tensor, noise: Tensor | None = None) -> Tensor:
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def _apply_convolution(stride: int, params: Params, name: str, x: Tensor, noise: Tensor | None = None) -> Tensor:
    # Under vmap over seeds this is a grouped convolution. A matrix product over unfolded windows [64, 9 * channels] is
    # not clearly faster: for 8 seeds and 32 rows of MinAtar (compiled, one thread), forward and backward took 0.92
    # times as long with 4 channels and 1.11 with 10, the forward pass alone 1.08 and 1.24.
    return F.conv2d(x, params[f"{name}.weight"], params[f"{name}.bias"], stride)


def _apply_noisy(params: Params, name: str, x: Tensor, noise: Tensor | None) -> Tensor:
    weight, bias = params[f"{name}.weight_mu"], params[f"{name}.bias_mu"]
    if noise is None:
        return F.linear(x, weight, bias)
    out, into = noise.split(list(weight.shape))
    weight = weight + params[f"{name}.weight_sigma"] * (out.unsqueeze(-1) * into)
    return F.linear(x, weight, bias + params[f"{name}.bias_sigma"] * out)


def _apply_norm(shape: tuple[int, ...], params: Params, name: str, x: Tensor, noise: Tensor | None) -> Tensor:
    return F.layer_norm(x, shape, params[f"{name}.weight"], params[f"{name}.bias"])


def _apply_relu(params: Params, name: str, x: Tensor, noise: Tensor | None) -> Tensor:
    return x.relu()


def _apply_flatten(params: Params, name: str, x: Tensor, noise: Tensor | None) -> Tensor:
    return x.flatten(1)


def _apply_stage(params: Params, name: str, x: Tensor, noise: Tensor | None) -> Tensor:
    def convolved(inner: str, x: Tensor) -> Tensor:
        return F.conv2d(x, params[f"{name}.{inner}.weight"], params[f"{name}.{inner}.bias"], padding=1)

    x = F.max_pool2d(convolved("conv", x), kernel_size=3, stride=2, padding=1)
    for block in ("block0", "block1"):
        x = x + convolved(f"{block}.conv1", convolved(f"{block}.conv0", x.relu()).relu())
    return x


def _with_bias(weight: tuple[int, ...]) -> Shapes:
    return {"weight": weight, "bias": weight[:1]}


def _init_uniform(shape: tuple[int, ...], key: Tensor, first: int) -> Params:
    """Sample weights and biases uniformly from +-1 / sqrt(inputs), as `nn.Linear` and `nn.Conv2d` do."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    weight, bias = random.split(random.fold_in(key, first)).unbind(-2)
    return {
        "weight": (2 * random.uniform(weight, shape) - 1) * bound,
        "bias": (2 * random.uniform(bias, shape[:1]) - 1) * bound,
    }


def _init_noisy(shape: tuple[int, int], sigma_zero: float, key: Tensor, first: int) -> Params:
    """Initialize means uniformly in +-1 / sqrt(inputs), scales to sigma_zero / sqrt(inputs)."""
    bound = 1 / math.sqrt(shape[1])
    means = _init_uniform(shape, key, first)
    params = {f"{kind}_mu": x for kind, x in means.items()}
    return params | {f"{kind}_sigma": torch.full_like(x, sigma_zero * bound) for kind, x in means.items()}


def _init_norm(shape: tuple[int, ...], key: Tensor, first: int) -> Params:
    """Initialize to scale 1 and shift 0."""
    full = (*key.shape[:-1], *shape)
    return {"weight": torch.ones(full, device=key.device), "bias": torch.zeros(full, device=key.device)}


def _init_nothing(key: Tensor, first: int) -> Params:
    return {}


def _init_stage(weights: Shapes, key: Tensor, first: int) -> Params:
    return {
        f"{name}.{kind}": x
        for i, (name, shape) in enumerate(weights.items(), first)
        for kind, x in _init_uniform(shape, key, i).items()
    }


# Several layers.


def shapes(layers: Layers) -> Shapes:
    """Return the shapes of all parameters by name. Raises ValueError for a layer of 2**31 weights or more."""
    named = {f"{name}.{own}": shape for name, layer in layers.items() for own, shape in layer.shapes.items()}
    for name, shape in named.items():
        if (weights := math.prod(shape)) >= 2**31:
            raise ValueError(
                f"obs_shape, hidden, actions: expected layers of fewer than 2**31 weights, got {weights:,} in layer "
                f"{name.rpartition('.')[0]}, {list(shape)}; make observations or layers smaller"
            )
    return named


def keys(layers: Layers) -> int:
    """Return the number of keys that `init` takes."""
    return sum(layer.keys for layer in layers.values())


def noise(layers: Layers) -> int:
    """Return the number of noise factors of all layers."""
    return sum(layer.noise for layer in layers.values())


def init(layers: Layers, first: int, key: Tensor) -> Params:
    """Initialize the parameters of all layers from a key [..., 2], numbering their keys from `first`."""
    params: Params = {}
    for name, layer in layers.items():
        params |= {f"{name}.{own}": x for own, x in layer.init(key, first).items()}
        first += layer.keys
    return params


def forward(layers: Layers, params: Params, x: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """Apply the layers one after another. `factors` holds the noise factors of noisy layers by name."""
    for name, layer in layers.items():
        x = layer.apply(params, name, x, factors.get(name))
    return x


def batched(x: Tensor, event: tuple[int, ...], images: bool) -> Tensor:
    """Reshape observations [..., *event] to images [rows, *event] or to vectors [..., n]."""
    return x.reshape(-1, *event) if images else x.reshape(*x.shape[: x.ndim - len(event)], math.prod(event))


def restored(y: Tensor, leading: tuple[int, ...], images: bool) -> Tensor:
    """Reshape the outputs [rows, n] of images to [*leading, n]; return those of vectors, [*leading, n], unchanged."""
    return y.reshape(*leading, y.shape[-1]) if images else y


def noise_factors(layers: Layers, noise: Uniforms, like: Tensor) -> dict[str, Tensor]:
    """Return the noise factors f(e) of each noisy layer, those of its outputs first; an empty dict without noise.

        f(e) = sign(e) sqrt(|e|),    e standard normal

    Shapes: noise, uniforms in [0, 1), [K]. Raises TypeError for noise that is not a tensor or (), or is given to layers
    without noise, and ValueError for noise of another shape.
    """
    sizes = {name: layer.noise for name, layer in layers.items() if layer.noise}
    if not isinstance(noise, Tensor):
        if noise != ():
            raise TypeError(f"noise: expected uniforms [K] or (), got {type(noise).__name__}")
        return {}
    if not sizes:
        raise TypeError(f"noise: expected () for a network without noise, got {type(noise).__name__}")
    check.shapes(f"noise[{sum(sizes.values())}]", noise)
    e = random.normal_from_uniform(noise).to(like.dtype)
    factors = e.sign() * e.abs().sqrt()
    # `as_strided` makes inductor store the factors. Otherwise it recomputes two factors for every weight: a forward
    # pass of a Rainbow network with 120 and 84 units takes 29 ms instead of 0.8 ms.
    factors = factors.as_strided(factors.size(), factors.stride())
    return dict(zip(sizes, factors.split(list(sizes.values())), strict=True))


def inputs(event: tuple[int, ...], expected: Shapes, params: Params, obs: Tensor) -> Tensor:
    """Check parameters and observations; return the observations in the parameters' dtype, uint8 divided by 255.

    Without parameters, floating-point observations keep their dtype.
    """
    check.shapes(f"obs[... {' '.join(map(str, event))}]", obs)
    fitting(expected, params, obs)
    for name in expected:
        check.floating(f"params[{name!r}]", params[name])
    x = obs.to(_dtype(expected, params, obs))
    return x / 255.0 if obs.dtype == torch.uint8 else x


def _dtype(expected: Shapes, params: Params, obs: Tensor) -> torch.dtype:
    if expected:
        return params[next(iter(expected))].dtype
    return obs.dtype if obs.is_floating_point() else torch.get_default_dtype()


def event_shape(obs_shape: int | Sequence[int], rank: int | None = None) -> tuple[int, ...]:
    """Return the shape of an observation as a tuple.

    Raises TypeError for sizes that are not integers, and ValueError for a size below 1 or another number of axes.
    """
    event = (obs_shape,) if isinstance(obs_shape, int) else obs_shape
    if not isinstance(event, Sequence) or not all(isinstance(n, int) and not isinstance(n, bool) for n in event):
        raise TypeError(f"obs_shape: expected whole numbers, got {obs_shape!r}")
    event = tuple(event)
    if not event or min(event) < 1 or (rank is not None and len(event) != rank):
        expected = "one or more" if rank is None else str(rank)
        raise ValueError(f"obs_shape: expected {expected} sizes of at least 1, got {event}")
    return event
