"""Networks of implicit quantiles (IQN), which take the fractions of the quantiles as an input.

Dabney et al. 2018, https://arxiv.org/abs/1806.06923
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import check
from fdqn.networks import layers as parts
from fdqn.networks.heads import Head
from fdqn.networks.joined import branches_of
from fdqn.networks.layers import Layers
from fdqn.networks.state_dict import Shapes
from fdqn.networks.trunks import Trunk
from fdqn.types import Params, Uniforms


class QuantileNetwork(NamedTuple):
    """Network whose `apply` also takes the fractions at which it returns quantiles."""

    init: Callable[[Tensor], Params]
    """`init(key [..., 2]) -> params`, with leaves [..., *shape]."""
    apply: Callable[..., Tensor]
    """`apply(params, obs [..., *O], fractions [..., N], noise=()) -> z [..., A, N]`, the quantile of the return of each
    action at each fraction. Fractions [N] are used for all observations; `noise [K]` samples the weights once for all
    observations."""
    noise: int
    """Number of uniforms K that `apply` takes as noise; 0 for a network without noise."""


def quantile(trunk: Trunk, head: Head, cosines: int = 64) -> QuantileNetwork:
    """Make a network that returns a quantile of each action's return for every fraction it is given.

        z(obs, tau) = head(trunk(obs) * relu(linear(c(tau)))),    c_i(tau) = cos(pi i tau),  i = 1, ..., cosines

    The trunk is computed once for each observation, the head for each fraction. Multiples start at 1 as in Dopamine and
    DQN Zoo; the paper starts at 0, which gives a constant that the bias of the linear layer makes redundant. The
    paper's network for Atari is `quantile(trunks.nature(obs_shape, hidden=()), heads.linear(actions, hidden=(512,)))`.

    Parameters of the trunk are named "trunk.0", "trunk.1", ..., those of the linear layer "embedding", and those of the
    head "head", or "value" and "advantage" if it is dueling.

    Shapes: obs [..., *obs_shape]; fractions in [0, 1], [..., N] with the leading axes of obs, or [N] for all
    observations; noise [K] or (); result [..., actions, N]. Raises TypeError for arguments of another type and
    ValueError for a head with several atoms or `cosines` below 1; `apply` raises as that of `trunks.mlp`.
    """
    check.kind("trunk", trunk, Trunk)
    check.kind("head", head, Head)
    check.count("cosines", cosines, 1)
    if head.atoms != 1:
        raise ValueError(f"head: expected one atom for each action, got {head.atoms}; make it with atoms=1")
    body = {f"trunk.{name}": layer for name, layer in trunk.layers.items()}
    embedding = {"embedding": parts.linear(cosines, trunk.features)}
    branches = branches_of(head, trunk.features)
    ends = embedding | {name: layer for branch in branches for name, layer in branch.items()}
    layers = body | ends
    network = _Quantile(
        trunk.obs_shape, trunk.images, parts.shapes(layers), layers, body, embedding, branches, head.combine, cosines
    )
    init = partial(_init, trunk.init, ends, parts.keys(body))
    return QuantileNetwork(init, partial(_apply, network), parts.noise(layers))


class _Quantile(NamedTuple):
    obs_shape: tuple[int, ...]
    images: bool
    shapes: Shapes
    layers: Layers
    """All layers."""
    body: Layers
    """Layers of the trunk."""
    embedding: Layers
    branches: tuple[Layers, ...]
    """Layers of the head."""
    combine: Callable[..., Tensor]
    cosines: int


def _init(trunk: Callable[[Tensor], Params], ends: Layers, first: int, key: Tensor) -> Params:
    return {f"trunk.{name}": x for name, x in trunk(key).items()} | parts.init(ends, first, key)


def _apply(network: _Quantile, params: Params, obs: Tensor, fractions: Tensor, noise: Uniforms = ()) -> Tensor:
    event = network.obs_shape
    # Fractions that are the same for all observations are embedded once.
    leading = "" if isinstance(fractions, Tensor) and fractions.ndim == 1 else "... "
    check.shapes(f"obs[... {' '.join(map(str, event))}] fractions[{leading}N]", obs, fractions)
    check.floating("fractions", fractions)
    x = parts.inputs(event, network.shapes, params, obs)
    factors = parts.noise_factors(network.layers, noise, x)
    features = parts.forward(network.body, params, parts.batched(x, event, network.images), factors)
    features = parts.restored(features, obs.shape[: obs.ndim - len(event)], network.images)
    embedded = parts.forward(network.embedding, params, _cosines(fractions.to(x.dtype), network.cosines), {}).relu()
    rows = features.unsqueeze(-2) * embedded
    outputs = network.combine(*(parts.forward(branch, params, rows, factors) for branch in network.branches))
    return outputs.mT


def _cosines(fractions: Tensor, count: int) -> Tensor:
    multiples = torch.arange(1, count + 1, dtype=fractions.dtype, device=fractions.device)
    return (fractions.unsqueeze(-1) * multiples * math.pi).cos()
