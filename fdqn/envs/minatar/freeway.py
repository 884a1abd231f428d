"""Freeway: a chicken crosses eight rows of traffic to the top for one point, then starts again in new traffic.

A collision with a car sends the chicken back to the bottom. The chicken moves at most every third step. An episode has
2,501 steps. The planes are chicken, cars and five planes of trails, one for each speed of a car (1 to 5 steps per
move).
Young and Tian 2019, https://arxiv.org/abs/1903.03176

`u[..., 0]` decides about sticky actions; `u[..., 1:]` select one of the ten speeds and directions for each car.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fdqn.envs import episode
from fdqn.envs.minatar import board
from fdqn.types import Env

CARS, WAITS = 8, 5
PLANES, NOISE = 2 + WAITS, 1 + CARS
COLUMN = 1 << 4  # column of the chicken
PAUSE = 3  # steps between two moves of the chicken
STEPS = 2_501


class State(NamedTuple):
    """State of the game, int32. Cars are indexed by row, [..., 16]; rows without a car have column 0."""

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
    """Steps until the next move of a car."""


def make(time_limit: int = board.TIME_LIMIT, dtype: torch.dtype = torch.float32, sticky: float = board.STICKY) -> Env:
    """Make Freeway; the arguments are those of `board.env`."""
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
    """Move the chicken if it may; at the top, restart it in new traffic; then move the cars.

    A car hits the chicken at its position before or after the car's move. Cars that leave the board enter at the other
    side. Shapes: state, action and time [...]; u [..., 9].
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
    """Return the planes."""
    behind = _around(state.car, -state.dx)
    trails = [torch.where(state.wait == wait, behind, 0) for wait in range(1, 1 + WAITS)]
    chicken = board.cell(torch.full_like(state.y, COLUMN), state.y)
    return torch.stack([chicken, state.car, *trails], -2)


def _around(x: Tensor, dx: Tensor) -> Tensor:
    """Return the next column, wrapping around the board."""
    ahead = board.shift(x, dx)
    return torch.where((ahead == 0) & (x != 0), board.side(dx > 0)[0], ahead)


def _traffic(u: Tensor) -> tuple[Tensor, Tensor]:
    """Sample directions and waits [..., 16] of new traffic, uniformly from ten, in rows 1 to 8."""
    kind = board.choice(u[..., 1:], 2 * WAITS)
    kind = torch.cat([kind[..., :1], kind, kind[..., 1:]], -1)
    right = kind >= WAITS
    return board.side(right)[1], 1 + torch.where(right, kind - WAITS, kind)
