"""MountainCar: a car too weak for the hill has to swing up it; push left (0), not (1) or right (2).

The same path, rewards and ends as gymnasium's MountainCar-v0 (Moore 1990,
https://www.cl.cam.ac.uk/techreports/UCAM-CL-TR-209.pdf).
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn.envs import episode
from fdqn.types import Env, EnvSpec, Step

ACTIONS, NOISE = 3, 1
MIN_POSITION, MAX_POSITION = -1.2, 0.6
START_LOW, START_HIGH = -0.6, -0.4
MAX_SPEED = 0.07  # a step
GOAL = 0.5
FORCE = 0.001  # speed a step
GRAVITY = 0.0025  # speed a step


class State(NamedTuple):
    """One number [...] each."""

    position: Tensor
    velocity: Tensor
    """Change of position a step."""
    time: Tensor
    """Steps since the episode started, int64."""


def make(time_limit: int = 200, dtype: torch.dtype = torch.float32) -> Env:
    """Make MountainCar; `dtype` is that of observation, state and reward. Raises ValueError if `time_limit` < 1."""
    spec = episode.spec((2,), dtype, actions=ACTIONS, noise=NOISE, time_limit=time_limit)
    return Env(partial(reset, spec=spec), partial(step, spec=spec), spec)


def reset(u: Tensor, spec: EnvSpec) -> tuple[State, Step]:
    """Place the car at rest, its position uniform in [-0.6, -0.4). Shapes: u [..., 1]."""
    episode.check_reset(u, NOISE)
    position = START_LOW + (START_HIGH - START_LOW) * u[..., 0].to(spec.obs_dtype)
    state = State(position, torch.zeros_like(position), torch.zeros_like(position, dtype=torch.int64))
    return episode.begin(state, _observe(state), episode.all_legal(state.time, ACTIONS))


def step(state: State, action: Tensor, u: Tensor, spec: EnvSpec) -> tuple[State, Step]:
    """Accelerate the car for one step (actions are not checked against their range).

        velocity = clip(velocity + 0.001 (action - 1) - 0.0025 cos(3 position), -0.07, 0.07)
        position = clip(position + velocity, -1.2, 0.6);  the left wall stops the car
        reward = -1;  terminated = position >= 0.5 and velocity >= 0

    Shapes: state and action [...]; u [..., 1].
    """
    episode.check_step(State, state, action, u, NOISE)
    position, velocity, time = state
    push = (action.to(position.dtype) - 1) * FORCE
    velocity = (velocity + (push + (3 * position).cos() * -GRAVITY)).clamp(-MAX_SPEED, MAX_SPEED)
    position = (position + velocity).clamp(MIN_POSITION, MAX_POSITION)
    # <= and not ==: -1.2 has no exact value, and a clamped position is never below it in its own dtype.
    velocity = torch.where((position <= MIN_POSITION) & (velocity < 0), 0.0, velocity)
    state = State(position, velocity, time + 1)
    terminated = (position >= GOAL) & (velocity >= 0)
    reward = -torch.ones_like(position)
    legal = episode.all_legal(time, ACTIONS)
    return episode.advance(state, _observe(state), legal, reward, terminated, reset(u, spec), spec.time_limit)


def _observe(state: State) -> Tensor:
    return torch.stack([state.position, state.velocity], -1)
