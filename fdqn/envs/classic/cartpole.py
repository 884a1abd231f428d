"""CartPole: keep a pole upright on a cart by pushing left (0) or right (1); one point a step.

The same path, rewards and ends as gymnasium's CartPole-v1 (Barto, Sutton, Anderson 1983,
https://doi.org/10.1109/TSMC.1983.6313077), one Euler step of 0.02 s a step.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn.envs import episode
from fdqn.types import Env, EnvSpec, Step

ACTIONS, NOISE = 2, 4
GRAVITY = 9.8  # m/s^2
MASS_POLE = 0.1  # kg
MASS = 1.1  # kg, cart and pole
LENGTH = 0.5  # m, half of the pole
POLE_MASS_LENGTH = 0.05  # kg m
FORCE = 10.0  # N
DT = 0.02  # s
MAX_X = 2.4  # m
MAX_THETA = 12 * 2 * math.pi / 360  # rad
START = 0.05  # every number of a first state is uniform in [-START, START)


class State(NamedTuple):
    """One number [...] each, so that the physics is elementwise on contiguous memory."""

    x: Tensor
    """Position of the cart, m."""
    x_dot: Tensor
    theta: Tensor
    """Angle of the pole from upright, rad."""
    theta_dot: Tensor
    time: Tensor
    """Steps since the episode started, int64."""


def make(time_limit: int = 500, dtype: torch.dtype = torch.float32) -> Env:
    """Make CartPole; `dtype` is that of observation, state and reward. Raises ValueError if `time_limit` < 1."""
    spec = episode.spec((4,), dtype, actions=ACTIONS, noise=NOISE, time_limit=time_limit)
    return Env(partial(reset, spec=spec), partial(step, spec=spec), spec)


def reset(u: Tensor, spec: EnvSpec) -> tuple[State, Step]:
    """Draw a first state, every number uniform in [-0.05, 0.05). Shapes: u [..., 4]."""
    episode.check_reset(u, NOISE)
    x, x_dot, theta, theta_dot = (-START + 2 * START * v for v in u.to(spec.obs_dtype).unbind(-1))
    state = State(x, x_dot, theta, theta_dot, torch.zeros_like(x, dtype=torch.int64))
    return episode.begin(state, _observe(state), episode.all_legal(state.time, ACTIONS))


def step(state: State, action: Tensor, u: Tensor, spec: EnvSpec) -> tuple[State, Step]:
    """Push for 0.02 s: right for action 1, left for any other number.

        temp = (force + m_p l theta_dot^2 sin theta) / m
        theta_acc = (g sin theta - cos theta temp) / (l (4/3 - m_p cos^2 theta / m))
        x_acc = temp - m_p l theta_acc cos theta / m
        reward = 1;  terminated = |x| > 2.4 m or |theta| > 12 degrees

    Shapes: state and action [...]; u [..., 4].
    Florian 2007, https://coneural.org/florian/papers/05_cart_pole.pdf, with gymnasium's order of operations.
    """
    episode.check_step(State, state, action, u, NOISE)
    x, x_dot, theta, theta_dot, time = state
    force = torch.where(action == 1, FORCE, -FORCE).to(x.dtype)
    cos, sin = theta.cos(), theta.sin()
    temp = (force + POLE_MASS_LENGTH * (theta_dot * theta_dot) * sin) / MASS
    theta_acc = (GRAVITY * sin - cos * temp) / (LENGTH * (4.0 / 3.0 - MASS_POLE * (cos * cos) / MASS))
    x_acc = temp - POLE_MASS_LENGTH * theta_acc * cos / MASS
    state = State(x + DT * x_dot, x_dot + DT * x_acc, theta + DT * theta_dot, theta_dot + DT * theta_acc, time + 1)
    terminated = (state.x.abs() > MAX_X) | (state.theta.abs() > MAX_THETA)
    reward = torch.ones_like(x)
    legal = episode.all_legal(time, ACTIONS)
    return episode.advance(state, _observe(state), legal, reward, terminated, reset(u, spec), spec.time_limit)


def _observe(state: State) -> Tensor:
    return torch.stack(state[:4], -1)
