"""Greedy policy on NumPy arrays, for code that does not use torch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fdqn.ops import masking
from fdqn.types import EnvSpec, Network, Params


def greedy(spec: EnvSpec, network: Network, params: Params) -> Callable[..., Any]:
    """Return the greedy policy of one seed, `policy(obs, legal=None) -> action`, on NumPy arrays.

    One observation [*O] gives an int, N observations [N, *O] give actions [N] of int64. `legal`, bool [A] or [N, A],
    marks the actions to choose from.
    """

    return partial(_act, spec, network, params)


@torch.no_grad()
def _act(
    spec: EnvSpec, network: Network, params: Params, obs: ArrayLike, legal: ArrayLike | None = None
) -> int | NDArray[np.int64]:
    given = _obs(spec, np.asarray(obs))
    rows = given.reshape(-1, *spec.obs_shape)
    q = network.apply(params, rows)
    chosen = masking.greedy(q, _legal(spec, given, legal).reshape(len(rows), spec.actions)).numpy()
    return int(chosen[0]) if given.ndim == len(spec.obs_shape) else chosen


def _obs(spec: EnvSpec, obs: NDArray[Any]) -> Tensor:
    """Return observations as a tensor. Raises ValueError or TypeError unless shape and dtype fit the environment."""
    if obs.shape != spec.obs_shape and obs.shape[1:] != spec.obs_shape:
        one = ", ".join(map(str, spec.obs_shape))
        raise ValueError(
            f"obs: expected shape [{one}] or [N, {one}], got {list(obs.shape)}; give observations of the env"
        )
    expected = torch.zeros((), dtype=spec.obs_dtype).numpy().dtype
    if obs.dtype != expected and not (obs.dtype.kind == "f" and expected.kind == "f"):
        raise TypeError(f"obs: expected dtype {expected}, got {obs.dtype}; convert with obs.astype({str(expected)!r})")
    return torch.from_numpy(np.array(obs, dtype=expected))


def _legal(spec: EnvSpec, obs: Tensor, legal: ArrayLike | None) -> Tensor:
    """Return the mask of legal actions for each observation; all of them by default."""
    expected = (*obs.shape[: obs.ndim - len(spec.obs_shape)], spec.actions)
    if legal is None:
        return torch.ones(expected, dtype=torch.bool)
    mask = np.asarray(legal)
    if mask.dtype != np.bool_:
        raise TypeError(f"legal: expected dtype bool, got {mask.dtype}; convert with legal.astype(bool)")
    if mask.shape != expected:
        raise ValueError(
            f"legal: expected shape {list(expected)}, got {list(mask.shape)}; give one mask per observation"
        )
    if not mask.any(-1).all():
        raise ValueError(
            "legal: expected a legal action for each observation, got none; do not act after the end of an episode"
        )
    return torch.from_numpy(np.array(mask))
