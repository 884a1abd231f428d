"""Acrobot: swing a two-link pendulum above a line with a torque of -1 (0), 0 (1) or 1 Nm (2) at its middle joint.

The same path, rewards and ends as gymnasium's Acrobot-v1 (Sutton 1996, with the dynamics of Sutton and Barto's book,
http://incompleteideas.net/book/the-book-2nd.html), one Runge-Kutta step of 0.2 s a step.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn.envs import episode
from fdqn.types import Env, EnvSpec, Step

ACTIONS, NOISE = 3, 4
DT = 0.2  # s
GRAVITY = 9.8  # m/s^2
M1 = M2 = 1.0  # kg, mass of a link
L1 = 1.0  # m, length of the upper link
LC1 = LC2 = 0.5  # m, from a joint to the link's centre of mass
I1 = I2 = 1.0  # kg m^2
MAX_VELOCITY_1 = 4 * math.pi  # rad/s
MAX_VELOCITY_2 = 9 * math.pi  # rad/s
START = 0.1  # every number of a first state is uniform in [-START, START)

Vector = tuple[Tensor, Tensor, Tensor, Tensor]


class State(NamedTuple):
    """One number [...] each, so that the physics is elementwise on contiguous memory."""

    theta1: Tensor
    """Angle of the upper link, rad in [-pi, pi], 0 hanging down."""
    theta2: Tensor
    """Angle of the lower link relative to the upper, rad in [-pi, pi]."""
    theta1_dot: Tensor
    theta2_dot: Tensor
    time: Tensor
    """Steps since the episode started, int64."""


def make(time_limit: int = 500, dtype: torch.dtype = torch.float32) -> Env:
    """Make Acrobot; `dtype` is that of observation, state and reward. Raises ValueError if `time_limit` < 1."""
    spec = episode.spec((6,), dtype, actions=ACTIONS, noise=NOISE, time_limit=time_limit)
    return Env(partial(reset, spec=spec), partial(step, spec=spec), spec)


def reset(u: Tensor, spec: EnvSpec) -> tuple[State, Step]:
    """Draw a first state, every number uniform in [-0.1, 0.1). Shapes: u [..., 4]."""
    episode.check_reset(u, NOISE)
    theta1, theta2, theta1_dot, theta2_dot = (-START + 2 * START * v for v in u.to(spec.obs_dtype).unbind(-1))
    state = State(theta1, theta2, theta1_dot, theta2_dot, torch.zeros_like(theta1, dtype=torch.int64))
    return episode.begin(state, _observe(state), episode.all_legal(state.time, ACTIONS))


def step(state: State, action: Tensor, u: Tensor, spec: EnvSpec) -> tuple[State, Step]:
    """Hold a torque of `action - 1` Nm for 0.2 s (actions are not checked against their range).

        angles are wrapped to [-pi, pi], velocities clipped to 4 pi and 9 pi rad/s
        terminated = -cos theta1 - cos(theta2 + theta1) > 1;  reward = 0 where terminated else -1

    Shapes: state and action [...]; u [..., 4].
    """
    episode.check_step(State, state, action, u, NOISE)
    theta1, theta2, theta1_dot, theta2_dot = _runge_kutta(state[:4], action.to(state.theta1.dtype) - 1)
    state = State(
        _wrap(theta1),
        _wrap(theta2),
        theta1_dot.clamp(-MAX_VELOCITY_1, MAX_VELOCITY_1),
        theta2_dot.clamp(-MAX_VELOCITY_2, MAX_VELOCITY_2),
        state.time + 1,
    )
    terminated = -state.theta1.cos() - (state.theta2 + state.theta1).cos() > 1.0
    reward = -(~terminated).to(theta1.dtype)
    legal = episode.all_legal(state.time, ACTIONS)
    return episode.advance(state, _observe(state), legal, reward, terminated, reset(u, spec), spec.time_limit)


def _observe(state: State) -> Tensor:
    theta1, theta2 = state.theta1, state.theta2
    return torch.stack([theta1.cos(), theta1.sin(), theta2.cos(), theta2.sin(), state.theta1_dot, state.theta2_dot], -1)


def _wrap(x: Tensor) -> Tensor:
    """Reduce an angle [...] to [-pi, pi] by whole turns; both ends are kept."""
    return x - x.sign() * (((x.abs() - math.pi) / (2 * math.pi)).ceil() * (2 * math.pi))


def _runge_kutta(y: Vector, torque: Tensor) -> Vector:
    """Take one classical Runge-Kutta step of fourth order: `y + dt/6 (k1 + 2 k2 + 2 k3 + k4)`."""
    k1 = _derivatives(y, torque)
    k2 = _derivatives(_move(y, DT / 2.0, k1), torque)
    k3 = _derivatives(_move(y, DT / 2.0, k2), torque)
    k4 = _derivatives(_move(y, DT, k3), torque)
    a, b, c, d = (p + 2 * q + 2 * r + s for p, q, r, s in zip(k1, k2, k3, k4, strict=True))
    return _move(y, DT / 6.0, (a, b, c, d))


def _move(y: Vector, dt: float, k: Vector) -> Vector:
    return y[0] + dt * k[0], y[1] + dt * k[1], y[2] + dt * k[2], y[3] + dt * k[3]


def _derivatives(y: Vector, torque: Tensor) -> Vector:
    """Compute velocities and accelerations of both joints, with the book's equation of theta2 (not that of 1996)."""
    theta1, theta2, theta1_dot, theta2_dot = y
    cos2, sin2 = theta2.cos(), theta2.sin()
    d1 = M1 * LC1**2 + M2 * (L1**2 + LC2**2 + 2 * L1 * LC2 * cos2) + I1 + I2
    d2 = M2 * (LC2**2 + L1 * LC2 * cos2) + I2
    phi2 = M2 * LC2 * GRAVITY * (theta1 + theta2 - math.pi / 2.0).cos()
    phi1 = (
        -M2 * L1 * LC2 * (theta2_dot * theta2_dot) * sin2
        - 2 * M2 * L1 * LC2 * theta2_dot * theta1_dot * sin2
        + (M1 * LC1 + M2 * L1) * GRAVITY * (theta1 - math.pi / 2).cos()
        + phi2
    )
    theta2_acc = (torque + d2 / d1 * phi1 - M2 * L1 * LC2 * (theta1_dot * theta1_dot) * sin2 - phi2) / (
        M2 * LC2**2 + I2 - d2 * d2 / d1
    )
    theta1_acc = -(d2 * theta2_acc + phi1) / d1
    return theta1_dot, theta2_dot, theta1_acc, theta2_acc
