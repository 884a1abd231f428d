"""Networks of linear and convolutional layers, with the names, initial distribution and outputs of `nn.Sequential`.

All networks of this module divide uint8 observations by 255, because uint8 almost always means pixels or memory. Other
dtypes are not scaled; cast small counts in uint8 to another dtype to keep their values.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fdqn import check, random
from fdqn.networks.state_dict import Shapes, fitting
from fdqn.types import Network, Params

SMALLEST_FRAME = 36
"""Smallest height and width that `nature` accepts: its last convolution needs at least one position."""


def mlp(obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int) -> Network:
    """Make an MLP of linear layers with ReLU between them. uint8 observations are divided by 255.

    It equals `nn.Sequential(Linear, ReLU, ..., Linear)` in names, initial distribution and outputs. Without hidden
    layers it is one linear layer, named "0".

    Shapes: obs [..., *obs_shape], flattened; q [..., actions]. Raises ValueError for a size below 1 and for a layer of
    2**31 weights or more. `apply` raises ValueError for parameters or observations of other names, shapes or devices,
    and TypeError for parameters that are not floating-point. The networks below raise the same errors.
    """
    event = _event(obs_shape)
    # nn.Sequential numbers the ReLUs too, so linear layer i has the name 2 i.
    sizes = pairwise(_sizes(math.prod(event), hidden, actions))
    layers = {f"{2 * i}": (n, m) for i, (m, n) in enumerate(sizes)}
    return _network(layers, partial(_apply_mlp, event, layers))


def dueling_mlp(obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int) -> Network:
    """Make an MLP with a dueling head: its last layer gives the state's value and the advantage of each action.

        q = value + advantage - mean of advantage

    uint8 observations are divided by 255.

    Shapes: obs [..., *obs_shape], flattened; q [..., actions]. Raises ValueError for a size below 1.
    Wang et al. 2016, https://arxiv.org/abs/1511.06581
    """
    event = _event(obs_shape)
    *trunk, actions = _sizes(math.prod(event), hidden, actions)
    layers = {f"trunk.{2 * i}": (n, m) for i, (m, n) in enumerate(pairwise(trunk))}
    layers |= {"value": (1, trunk[-1]), "advantage": (actions, trunk[-1])}
    return _network(layers, partial(_apply_dueling_mlp, event, layers))


def nature(obs_shape: Sequence[int], actions: int) -> Network:
    """Make the convolutional network of the Nature DQN, for frames [channels, height, width].

    uint8 frames are divided by 255; other dtypes are not scaled.

    Shapes: obs [..., channels, height, width]; q [..., actions]. Raises ValueError for frames below 36 x 36.
    Mnih et al. 2015, https://doi.org/10.1038/nature14236
    """
    channels, height, width = _event(obs_shape, rank=3)
    if min(height, width) < (least := SMALLEST_FRAME):
        raise ValueError(f"obs_shape: expected frames of at least {least} x {least}, got {height} x {width}")
    check.count("actions", actions, 1)
    features = 64 * math.prod(((n - 8) // 4 - 3) // 2 - 1 for n in (height, width))
    layers = {
        "0": (32, channels, 8, 8),
        "2": (64, 32, 4, 4),
        "4": (64, 64, 3, 3),
        "7": (512, features),
        "9": (actions, 512),
    }
    return _network(layers, partial(_apply_nature, (channels, height, width), layers))


def minatar(obs_shape: Sequence[int], actions: int) -> Network:
    """Make the convolutional network of MinAtar's DQN, for boards [channels, height, width].

    It has 16 filters of 3 x 3, 128 hidden units and a linear layer, with ReLU between them. uint8 boards are divided by
    255.

    Shapes: obs [..., channels, height, width]; q [..., actions]. Raises ValueError for boards below 3 x 3.
    Young and Tian 2019, https://arxiv.org/abs/1903.03176
    """
    channels, height, width = _event(obs_shape, rank=3)
    if min(height, width) < 3:
        raise ValueError(f"obs_shape: expected boards of at least 3 x 3, got {height} x {width}")
    if actions < 1:
        raise ValueError(f"actions: expected at least 1, got {actions}")
    layers = {"0": (16, channels, 3, 3), "3": (128, 16 * (height - 2) * (width - 2)), "5": (actions, 128)}
    return _network(layers, partial(_apply_minatar, (channels, height, width), layers))


# These networks do not go through `functional_call(skeleton, params, (obs,))` as those `from_module` do. With the
# reshapes and checks outside of the skeleton, `make_fx` of `vmap(grad(loss))` gives the same operations in the same
# order (mlp 99 nodes, nature 161, minatar 105) and the same bits. But it exchanges the parameters of a module that all
# threads share, so threads would wait for each other, and a call run operation by operation takes 0.27 ms without the
# checks (mlp of 120 and 84 units, 10 rows) where this one takes 0.15 ms with them.

# The shape of each layer's weight under the layer's name.
_Layers = Mapping[str, tuple[int, ...]]


def _network(layers: _Layers, apply: Callable[[Params, Tensor], Tensor]) -> Network:
    """Pair `apply` with the initialization of its layers. Raises ValueError for a layer too large to sample at once."""
    check_weights(layers)
    return Network(partial(_init_layers, layers), apply)


def check_weights(layers: _Layers) -> None:
    """Raise ValueError for a layer too large to sample at once."""
    for name, shape in layers.items():
        if (weights := math.prod(shape)) >= 2**31:
            raise ValueError(
                f"obs_shape, hidden, actions: expected layers of fewer than 2**31 weights, got {weights:,} in layer "
                f"{name}, {list(shape)}; make observations or layers smaller"
            )


def _apply_mlp(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor) -> Tensor:
    *hidden, last = layers
    x = _flat(_checked(event, layers, params, obs), len(event))
    for name in hidden:
        x = _linear(params, name, x).relu()
    return _linear(params, last, x)


def _apply_dueling_mlp(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor) -> Tensor:
    *trunk, _, _ = layers
    x = _flat(_checked(event, layers, params, obs), len(event))
    for name in trunk:
        x = _linear(params, name, x).relu()
    value, advantage = _linear(params, "value", x), _linear(params, "advantage", x)
    return value + advantage - advantage.mean(-1, keepdim=True)


def _apply_nature(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor) -> Tensor:
    frames = _checked(event, layers, params, obs)
    x = frames.reshape(-1, *event)
    for name, stride in (("0", 4), ("2", 2), ("4", 1)):
        x = F.conv2d(x, params[f"{name}.weight"], params[f"{name}.bias"], stride).relu()
    x = _linear(params, "9", _linear(params, "7", x.flatten(1)).relu())
    return x.reshape(*frames.shape[: frames.ndim - 3], x.shape[-1])


def _apply_minatar(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor) -> Tensor:
    # Under vmap over seeds this is a grouped convolution. A matrix product over unfolded windows [64, 9 channels] took,
    # for 8 seeds and 32 rows (compiled, one thread), 0.92 of its time with 4 channels and 1.11 with 10 for forward and
    # gradient, and 1.08 and 1.24 for the forward pass alone.
    boards = _checked(event, layers, params, obs)
    x = F.conv2d(boards.reshape(-1, *event), params["0.weight"], params["0.bias"]).relu()
    x = _linear(params, "5", _linear(params, "3", x.flatten(1)).relu())
    return x.reshape(*boards.shape[: boards.ndim - 3], x.shape[-1])


def _linear(params: Params, name: str, x: Tensor) -> Tensor:
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def _flat(obs: Tensor, axes: int) -> Tensor:
    return obs.reshape(*obs.shape[: obs.ndim - axes], math.prod(obs.shape[obs.ndim - axes :]))


def _checked(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor) -> Tensor:
    """Check parameters and observations; return the observations in the parameters' dtype, uint8 divided by 255."""
    return inputs(event, dict(item for name, shape in layers.items() for item in _shapes(name, shape)), params, obs)


def inputs(event: tuple[int, ...], expected: Shapes, params: Params, obs: Tensor) -> Tensor:
    """Check parameters and observations; return the observations in the parameters' dtype, uint8 divided by 255."""
    check.shapes(f"obs[... {' '.join(map(str, event))}]", obs)
    fitting(expected, params, obs)
    for name in expected:
        check.floating(f"params[{name!r}]", params[name])
    x = obs.to(params[next(iter(expected))].dtype)
    return x / 255.0 if obs.dtype == torch.uint8 else x


def _shapes(layer: str, weight: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return (f"{layer}.weight", weight), (f"{layer}.bias", weight[:1])


def _init_layers(layers: _Layers, key: Tensor) -> Params:
    """Sample weights and biases uniformly from +-1 / sqrt(inputs), as `nn.Linear` and `nn.Conv2d` do."""
    params = {}
    for i, (name, shape) in enumerate(layers.items()):
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        weight, bias = random.split(random.fold_in(key, i)).unbind(-2)
        params[f"{name}.weight"] = (2 * random.uniform(weight, shape) - 1) * bound
        params[f"{name}.bias"] = (2 * random.uniform(bias, shape[:1]) - 1) * bound
    return params


def _event(obs_shape: int | Sequence[int], rank: int | None = None) -> tuple[int, ...]:
    event = (obs_shape,) if isinstance(obs_shape, int) else obs_shape
    if not isinstance(event, Sequence) or not all(isinstance(n, int) and not isinstance(n, bool) for n in event):
        raise TypeError(f"obs_shape: expected whole numbers, got {obs_shape!r}")
    event = tuple(event)
    if not event or min(event) < 1 or (rank is not None and len(event) != rank):
        expected = "one or more" if rank is None else str(rank)
        raise ValueError(f"obs_shape: expected {expected} sizes of at least 1, got {event}")
    return event


def _sizes(inputs: int, hidden: Sequence[int], actions: int) -> list[int]:
    if not isinstance(hidden, Sequence) or not all(type(n) is int for n in (*hidden, actions)):
        raise TypeError(f"hidden, actions: expected a sequence of integers and an integer, got {hidden!r}, {actions!r}")
    sizes = [inputs, *hidden, actions]
    if min(sizes) < 1:
        raise ValueError(f"hidden, actions: expected sizes of at least 1, got {list(hidden)}, {actions}")
    return sizes
