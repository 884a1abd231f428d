"""Freeway: cross eight rows of traffic to the top, again and again; each crossing gives a point and new traffic.

A car sends the chicken back to the bottom. The chicken may move every third step, and an episode has 2,501 steps. The
planes are chicken, cars, and five of trails, one for each number of steps from 1 to 5 between two moves of a car.
Young and Tian 2019, https://arxiv.org/abs/1903.03176

`u[..., 0]` decides on sticky actions, `u[..., 1:]` choose one of ten speeds and directions for each car.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fdqn.envs import episode
from fdqn.envs.minatar import board
from fdqn.types import Env

CARS, WAITS = 8, 5
PLANES, NOISE = 2 + WAITS, 1 + CARS
COLUMN = 1 << 4  # of the chicken
PAUSE = 3  # steps between two moves of the chicken
STEPS = 2_501


class State(NamedTuple):
    """int32; cars are stored by row [..., 16], with column 0 in a row without one."""

    y: Tensor
    """Row of the chicken."""
    pause: Tensor
    """Steps until the chicken may move."""
    car: Tensor
    """Columns."""
    dx: Tensor
    wait: Tensor
    """Steps between two moves of a car."""
    timer: Tensor
    """Steps until the car's next move."""


def make(time_limit: int = board.TIME_LIMIT, dtype: torch.dtype = torch.float32, sticky: float = board.STICKY) -> Env:
    """Make Freeway. Args as in `board.env`."""
    return board.env(board.Game(start, play, show), PLANES, NOISE, time_limit, dtype, sticky)


def start(u: Tensor) -> State:
    """Place all cars at the left and the chicken at the bottom. Shapes: u [..., 9]."""
    episode.check_reset(u, NOISE)
    zero = board.zeros(u)
    dx, wait = _traffic(u)
    row = board.rows(zero)
    car = torch.where((row >= 1) & (row <= CARS), board.FIRST, 0) + 0 * wait
    return State(zero + board.BOTTOM, zero + PAUSE, car.to(board.INT), dx, wait, wait.clone())


def play(state: State, action: Tensor, u: Tensor, time: Tensor) -> tuple[State, Tensor, Tensor]:
    """Move the chicken if it may move, back to the bottom and new traffic from the top; then move the cars.

    A car hits the chicken before or after the car's move, and wraps around at the sides. Shapes: state, action and time
    [...]; u [..., 9].
    """
    moves = (state.pause == 0) & ((action == board.UP) | (action == board.DOWN))
    y = torch.where(moves, board.climb(state.y, action, 0, board.BOTTOM), state.y)
    pause = (torch.where(moves, PAUSE, state.pause) - 1).clamp(min=0)
    there = y == 0
    y = torch.where(there, board.BOTTOM, y)
    dx, wait = (torch.where(there[..., None], *pair) for pair in zip(_traffic(u), (state.dx, state.wait), strict=True))
    timer = torch.where(there[..., None], wait, state.timer)
    drives = timer == 0
    car = torch.where(drives, _around(state.car, dx), state.car)
    chicken = board.cell(torch.full_like(y, COLUMN), y)
    hit = board.somewhere(chicken & (state.car | car))
    after = State(torch.where(hit, board.BOTTOM, y), pause, car, dx, wait, torch.where(drives, wait, timer - 1))
    return after, there.to(board.INT), time + 1 >= STEPS


def show(state: State) -> Tensor:
    """Draw the planes [..., P, 16] of an observation."""
    behind = _around(state.car, -state.dx)
    trails = [torch.where(state.wait == wait, behind, 0) for wait in range(1, 1 + WAITS)]
    chicken = board.cell(torch.full_like(state.y, COLUMN), state.y)
    return torch.stack([chicken, state.car, *trails], -2)


def _around(x: Tensor, dx: Tensor) -> Tensor:
    """Compute the next column, wrapping around at the sides."""
    ahead = board.shift(x, dx)
    return torch.where((ahead == 0) & (x != 0), board.side(dx > 0)[0], ahead)


def _traffic(u: Tensor) -> tuple[Tensor, Tensor]:
    """Draw directions and waits [..., 16] of new traffic in rows 1 to 8, uniform over the ten kinds."""
    kind = board.choice(u[..., 1:], 2 * WAITS)
    kind = torch.cat([kind[..., :1], kind, kind[..., 1:]], -1)
    right = kind >= WAITS
    return board.side(right)[1], 1 + torch.where(right, kind - WAITS, kind)
