"""Networks of a trunk and a head. `NoisyNetwork` is their type, with or without noise."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from fdqn import check
from fdqn.networks import layers as parts
from fdqn.networks.heads import Head
from fdqn.networks.layers import Layers
from fdqn.networks.state_dict import Shapes
from fdqn.networks.trunks import Trunk
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


def join(trunk: Trunk, head: Head) -> NoisyNetwork:
    """Make a network of a trunk and a head.

    Layers are named 0, 1, 2, ..., as in one `nn.Sequential` of trunk and head. With a dueling head those of the trunk
    are named "trunk.0", "trunk.1", ... instead. The first uniforms of the noise are those of the trunk.

    Shapes: obs [..., *obs_shape]; noise [K] or (); outputs [..., actions * atoms]. Raises TypeError for arguments of
    another type and ValueError for a layer of 2**31 weights or more; `apply` raises as that of `trunks.mlp`.
    """
    check.kind("trunk", trunk, Trunk)
    check.kind("head", head, Head)
    prefix = "trunk." if head.names else ""
    body = {f"{prefix}{name}": layer for name, layer in trunk.layers.items()}
    branches = branches_of(head, trunk.features, first=len(body))
    ends = {name: layer for branch in branches for name, layer in branch.items()}
    layers = body | ends
    joined = _Joined(trunk.obs_shape, trunk.images, parts.shapes(layers), layers, body, branches, head.combine)
    init = partial(_init, trunk.init, prefix, ends, parts.keys(body))
    return NoisyNetwork(init, partial(_apply, joined), parts.noise(layers))


def with_noise(network: Network | NoisyNetwork) -> NoisyNetwork:
    """Convert a `Network` to a `NoisyNetwork` without noise; return a `NoisyNetwork` unchanged.

    Raises TypeError for another type.
    """
    check.kind("network", network, Network, NoisyNetwork)
    if isinstance(network, NoisyNetwork):
        return network
    return NoisyNetwork(network.init, partial(_apply_without_noise, network.apply), 0)


def branches_of(head: Head, features: int, first: int | None = None) -> tuple[Layers, ...]:
    """Return the layers of each branch of a head by name.

    The layers of a single branch are named "head" or, with `first`, numbered from `first` on.
    """
    sequences = head.layers(features)
    if first is not None and not head.names:
        return ({f"{first + i}": layer for i, layer in enumerate(sequences[0])},)
    return tuple(
        {name: sequence[0]} if len(sequence) == 1 else {f"{name}.{i}": layer for i, layer in enumerate(sequence)}
        for name, sequence in zip(head.names or ("head",), sequences, strict=True)
    )


class _Joined(NamedTuple):
    obs_shape: tuple[int, ...]
    images: bool
    shapes: Shapes
    layers: Layers
    """All layers."""
    body: Layers
    """Layers of the trunk."""
    branches: tuple[Layers, ...]
    """Layers of the head."""
    combine: Callable[..., Tensor]


def _init(trunk: Callable[[Tensor], Params], prefix: str, ends: Layers, first: int, key: Tensor) -> Params:
    return {f"{prefix}{name}": x for name, x in trunk(key).items()} | parts.init(ends, first, key)


def _apply(joined: _Joined, params: Params, obs: Tensor, noise: Uniforms = ()) -> Tensor:
    x = parts.inputs(joined.obs_shape, joined.shapes, params, obs)
    factors = parts.noise_factors(joined.layers, noise, x)
    leading = x.shape[: x.ndim - len(joined.obs_shape)]
    features = parts.forward(joined.body, params, parts.batched(x, joined.obs_shape, joined.images), factors)
    outputs = joined.combine(*(parts.forward(branch, params, features, factors) for branch in joined.branches))
    return parts.restored(outputs, leading, joined.images)


def _apply_without_noise(
    apply: Callable[[Params, Tensor], Tensor], params: Params, obs: Tensor, noise: Uniforms = ()
) -> Tensor:
    if isinstance(noise, Tensor) or noise != ():
        raise TypeError(f"noise: expected () for a network without noise, got {type(noise).__name__}")
    return apply(params, obs)
