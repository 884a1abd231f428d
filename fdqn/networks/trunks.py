"""Trunks: the part of a network that turns observations into features. `networks.join` adds a head.

All trunks divide uint8 observations by 255, because uint8 almost always means pixels or memory. Other dtypes are not
scaled; cast small counts in uint8 to another dtype to keep their values.

A trunk is a sequence of layers with the names, initial distribution and outputs of `nn.Sequential`, and ends with the
ReLU of its last hidden layer. `init(key [..., 2])` is batched over the leading axes of its key. `apply(params, obs,
noise=())` takes the parameters of one seed and observations [..., *obs_shape], and returns features [..., features].
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from fdqn import check
from fdqn.networks import layers as parts
from fdqn.networks.initialization import orthogonal
from fdqn.networks.layers import Layer, Layers
from fdqn.networks.state_dict import Shapes
from fdqn.types import Params, Uniforms

SMALLEST_FRAME = 36
"""Smallest height and width that `nature` accepts: its last convolution needs at least one position."""


class Trunk(NamedTuple):
    """Part of a network from observations to features."""

    init: Callable[[Tensor], Params]
    """`init(key [..., 2]) -> params`, with leaves [..., *shape]."""
    apply: Callable[..., Tensor]
    """`apply(params, obs [..., *O], noise=()) -> features [..., F]`."""
    features: int
    """Number of features F."""
    noise: int
    """Number of uniforms K in [0, 1) that `apply` takes as `noise [K]`; 0 for none."""
    layers: Layers
    """Layers by name: 0, 1, 2, ..., as in `nn.Sequential`."""
    obs_shape: tuple[int, ...]
    """Shape of an observation."""
    images: bool
    """True if the first layer takes a batch of images [rows, channels, height, width], False for vectors [..., n]."""


def mlp(obs_shape: int | Sequence[int], hidden: Sequence[int]) -> Trunk:
    """Make linear layers with a ReLU after each. Without hidden layers the features are the flattened observation.

    Shapes: obs [..., *obs_shape]; features [..., hidden[-1]]. Raises TypeError for sizes that are not integers, and
    ValueError for a size below 1 and for a layer of 2**31 weights or more. `apply` raises ValueError for parameters,
    observations or noise of other names, shapes or devices, and TypeError for parameters that are not floating-point.
    The trunks below raise the same errors.
    """
    event, sizes = _sizes(obs_shape, hidden)
    return _trunk(event, _dense(sizes), sizes[-1])


def layer_norm_mlp(obs_shape: int | Sequence[int], hidden: Sequence[int], gain: float | None = None) -> Trunk:
    """Make linear layers with layer normalization and a ReLU after each, for learning without a target network.

    With a `gain`, weights are initialized to orthogonal matrices times `gain` and biases to 0, as `orthogonal` does.

    Shapes: obs [..., *obs_shape]; features [..., hidden[-1]]. Raises ValueError for a negative gain.
    Ba et al. 2016, https://arxiv.org/abs/1607.06450; for Q-learning Gallici et al. 2024,
    https://arxiv.org/abs/2407.04811
    """
    if gain is not None:
        check.number("gain", gain)
    event, sizes = _sizes(obs_shape, hidden)
    trunk = _trunk(event, _normalized_dense(sizes), sizes[-1])
    return trunk if gain is None else orthogonal(trunk, gain)


def noisy_mlp(obs_shape: int | Sequence[int], hidden: Sequence[int], sigma_zero: float = 0.5) -> Trunk:
    """Make noisy linear layers with factorized Gaussian noise and a ReLU after each.

        y = (weight_mu + weight_sigma * outer(f(e_out), f(e_in))) x + bias_mu + bias_sigma * f(e_out)
        f(e) = sign(e) sqrt(|e|),    e_in and e_out standard normal

    Means are initialized uniformly in +-1 / sqrt(inputs), scales to `sigma_zero / sqrt(inputs)`. Noise is passed as
    uniforms in [0, 1); `()` selects the mean weights. Each call samples the weights once for all of its rows.

    Shapes: obs [..., *obs_shape]; noise [K] or (); features [..., hidden[-1]]. Raises ValueError for a negative
    sigma_zero. Fortunato et al. 2018, https://arxiv.org/abs/1706.10295
    """
    check.number("sigma_zero", sigma_zero)
    event, sizes = _sizes(obs_shape, hidden)
    return _trunk(event, _noisy_dense(sizes, float(sigma_zero)), sizes[-1])


def nature(obs_shape: Sequence[int], hidden: Sequence[int] = (512,)) -> Trunk:
    """Make the convolutions and the hidden layers of the Nature DQN, for frames [channels, height, width].

    With `hidden=()` the features are the outputs of the last convolution, as the heads of Rainbow and IQN need them.

    Shapes: obs [..., channels, height, width]; features [..., hidden[-1]]. Raises ValueError for frames below 36 x 36.
    Mnih et al. 2015, https://doi.org/10.1038/nature14236
    """
    event, convolved, sizes = _nature(obs_shape, hidden)
    return _convolutional(event, _rectified(convolved), _dense(sizes), sizes[-1])


def layer_norm_nature(obs_shape: Sequence[int], hidden: Sequence[int] = (512,)) -> Trunk:
    """Make the trunk `nature` with layer normalization before each ReLU, as in PQN on Atari.

    The output of a convolution is normalized over channels, height and width together, as in CleanRL. (PureJaxQL
    normalizes over the channels of each position.)

    Shapes and errors: as `nature`. Gallici et al. 2024, https://arxiv.org/abs/2407.04811
    """
    event, convolved, sizes = _nature(obs_shape, hidden)
    return _convolutional(event, _normalized(convolved), _normalized_dense(sizes), sizes[-1])


def noisy_nature(obs_shape: Sequence[int], sigma_zero: float = 0.5, hidden: Sequence[int] = (512,)) -> Trunk:
    """Make the trunk `nature` with noisy hidden layers, as in Rainbow; its convolutions have no noise.

    Shapes and errors: as `nature`, and `noisy_mlp` for the noise. Hessel et al. 2018, https://arxiv.org/abs/1710.02298
    """
    check.number("sigma_zero", sigma_zero)
    event, convolved, sizes = _nature(obs_shape, hidden)
    dense = _noisy_dense(sizes, float(sigma_zero))
    return _convolutional(event, _rectified(convolved), dense, sizes[-1])


def minatar(obs_shape: Sequence[int], hidden: Sequence[int] = (128,)) -> Trunk:
    """Make the convolution and the hidden layers of MinAtar's DQN, for boards [channels, height, width].

    It has 16 filters of 3 x 3 and 128 hidden units. With `hidden=()` the features are the outputs of the convolution.

    Shapes: obs [..., channels, height, width]; features [..., hidden[-1]]. Raises ValueError for boards below 3 x 3.
    Young and Tian 2019, https://arxiv.org/abs/1903.03176
    """
    event, convolved, sizes = _minatar(obs_shape, hidden)
    return _convolutional(event, _rectified(convolved), _dense(sizes), sizes[-1])


def layer_norm_minatar(obs_shape: Sequence[int], hidden: Sequence[int] = (128,)) -> Trunk:
    """Make the trunk `minatar` with layer normalization before each ReLU, as in PQN on MinAtar.

    Layers are normalized as in `layer_norm_nature`.

    Shapes and errors: as `minatar`. Gallici et al. 2024, https://arxiv.org/abs/2407.04811
    """
    event, convolved, sizes = _minatar(obs_shape, hidden)
    return _convolutional(event, _normalized(convolved), _normalized_dense(sizes), sizes[-1])


def noisy_minatar(obs_shape: Sequence[int], sigma_zero: float = 0.5, hidden: Sequence[int] = (128,)) -> Trunk:
    """Make the trunk `minatar` with noisy hidden layers; its convolution has no noise.

    Shapes and errors: as `minatar`, and `noisy_mlp` for the noise. Hessel et al. 2018, https://arxiv.org/abs/1710.02298
    """
    check.number("sigma_zero", sigma_zero)
    event, convolved, sizes = _minatar(obs_shape, hidden)
    dense = _noisy_dense(sizes, float(sigma_zero))
    return _convolutional(event, _rectified(convolved), dense, sizes[-1])


def impala(obs_shape: Sequence[int], hidden: Sequence[int] = (256,)) -> Trunk:
    """Make the residual network of IMPALA, for frames or boards [channels, height, width] of any size.

    It has three stages of 16, 32 and 32 channels, each a convolution of 3 x 3, max-pooling of 3 x 3 with stride 2 and
    two residual blocks of two convolutions, and 256 hidden units.

    Shapes: obs [..., channels, height, width]; features [..., hidden[-1]]. Raises as `mlp` does. Espeholt et al. 2018,
    https://arxiv.org/abs/1802.01561
    """
    event = parts.event_shape(obs_shape, rank=3)
    stages = [parts.residual_stage(m, n) for m, n in pairwise((event[0], 16, 32, 32))]
    sizes = [32 * math.prod(-(-n // 8) for n in event[1:]), *_hidden(hidden)]  # halved three times, rounded up
    return _convolutional(event, stages, [parts.relu(), *_dense(sizes)], sizes[-1])


_Convolved = Sequence[tuple[Layer, tuple[int, ...]]]
"""Convolutions and the shape [channels, height, width] of the output of each."""


def _nature(obs_shape: Sequence[int], hidden: Sequence[int]) -> tuple[tuple[int, ...], _Convolved, list[int]]:
    """Return the shape of an observation, the convolutions, and the sizes of their output and the hidden layers."""
    event = parts.event_shape(obs_shape, rank=3)
    if min(event[1:]) < (least := SMALLEST_FRAME):
        raise ValueError(f"obs_shape: expected frames of at least {least} x {least}, got {event[1]} x {event[2]}")
    convolved = _convolutions(event, [(32, 8, 4), (64, 4, 2), (64, 3, 1)])
    return event, convolved, [math.prod(convolved[-1][1]), *_hidden(hidden)]


def _minatar(obs_shape: Sequence[int], hidden: Sequence[int]) -> tuple[tuple[int, ...], _Convolved, list[int]]:
    """Return the shape of an observation, the convolution, and the sizes of its output and the hidden layers."""
    event = parts.event_shape(obs_shape, rank=3)
    if min(event[1:]) < 3:
        raise ValueError(f"obs_shape: expected boards of at least 3 x 3, got {event[1]} x {event[2]}")
    convolved = _convolutions(event, [(16, 3, 1)])
    return event, convolved, [math.prod(convolved[-1][1]), *_hidden(hidden)]


def _convolutions(event: tuple[int, ...], filters: Sequence[tuple[int, int, int]]) -> _Convolved:
    """Make a convolution for each (number of filters, size, stride)."""
    convolved = []
    for channels, size, stride in filters:
        layer = parts.convolution(event[0], channels, size, stride)
        event = (channels, *((n - size) // stride + 1 for n in event[1:]))
        convolved.append((layer, event))
    return convolved


def _rectified(convolved: _Convolved) -> list[Layer]:
    return [x for layer, _ in convolved for x in (layer, parts.relu())]


def _normalized(convolved: _Convolved) -> list[Layer]:
    return [x for layer, shape in convolved for x in (layer, parts.layer_norm(shape), parts.relu())]


def _dense(sizes: Sequence[int]) -> list[Layer]:
    return [x for m, n in pairwise(sizes) for x in (parts.linear(m, n), parts.relu())]


def _normalized_dense(sizes: Sequence[int]) -> list[Layer]:
    return [x for m, n in pairwise(sizes) for x in (parts.linear(m, n), parts.layer_norm((n,)), parts.relu())]


def _noisy_dense(sizes: Sequence[int], sigma_zero: float) -> list[Layer]:
    return [x for m, n in pairwise(sizes) for x in (parts.noisy_linear(m, n, sigma_zero), parts.relu())]


def _sizes(obs_shape: int | Sequence[int], hidden: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
    """Return the shape of an observation, and the sizes of the flattened observation and the hidden layers."""
    event = parts.event_shape(obs_shape)
    return event, [math.prod(event), *_hidden(hidden)]


def _hidden(hidden: Sequence[int]) -> Sequence[int]:
    check.sizes("hidden", hidden, 1)
    return hidden


def _convolutional(event: tuple[int, ...], convolved: list[Layer], dense: list[Layer], features: int) -> Trunk:
    return _trunk(event, [*convolved, parts.flatten(), *dense], features, images=True)


def _trunk(event: tuple[int, ...], sequence: Sequence[Layer], features: int, images: bool = False) -> Trunk:
    layers = {f"{i}": layer for i, layer in enumerate(sequence)}
    return Trunk(
        init=partial(parts.init, layers, 0),
        apply=partial(_apply, event, images, layers, parts.shapes(layers)),
        features=features,
        noise=parts.noise(layers),
        layers=layers,
        obs_shape=event,
        images=images,
    )


def _apply(
    event: tuple[int, ...],
    images: bool,
    layers: Layers,
    shapes: Shapes,
    params: Params,
    obs: Tensor,
    noise: Uniforms = (),
) -> Tensor:
    x = parts.inputs(event, shapes, params, obs)
    factors = parts.noise_factors(layers, noise, x)
    leading = x.shape[: x.ndim - len(event)]
    return parts.restored(parts.forward(layers, params, parts.batched(x, event, images), factors), leading, images)
