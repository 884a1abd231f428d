"""An environment that answers nothing: it stands for a world where only shapes matter, as before anything runs."""

from functools import partial

import torch
from torch import Tensor

from fdqn.types import Env, EnvSpec, Step


def make(spec: EnvSpec) -> Env:
    """Zeros of the shapes of `spec`; its state is the action that the world has been asked for, int64 [...]."""
    return Env(partial(reset, spec=spec), partial(step, spec=spec), spec)


def reset(u: Tensor, spec: EnvSpec) -> tuple[Tensor, Step]:
    """Shapes: u [..., K]."""
    action = torch.zeros(u.shape[:-1], dtype=torch.int64, device=u.device)
    return step(action, action, u, spec)


def step(state: Tensor, action: Tensor, u: Tensor, spec: EnvSpec) -> tuple[Tensor, Step]:
    """Shapes: state and action [...]; u [..., K]."""
    obs = torch.zeros((*action.shape, *spec.obs_shape), dtype=spec.obs_dtype, device=action.device)
    legal = torch.ones((*action.shape, spec.actions), dtype=torch.bool, device=action.device)
    none = torch.zeros_like(action, dtype=torch.bool)
    return action, Step(obs, legal, obs, legal, torch.zeros_like(action, dtype=torch.float32), none, none)
