"""Breakout: bounce a ball off a paddle to break bricks; one point each. New bricks appear once all are broken.

The ball moves diagonally. The middle of the paddle reflects it vertically, a corner sends it back where it came from.
The episode ends when the ball passes the paddle. The planes are paddle, ball, trail (previous cell of the ball) and
bricks. Young and Tian 2019, https://arxiv.org/abs/1903.03176

`u[..., 0]` decides about sticky actions, `u[..., 1]` selects one of the two starts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fdqn.envs import episode
from fdqn.envs.minatar import board
from fdqn.types import Env

PLANES, NOISE = 4, 2
TOP, BRICKS = 1, 3  # first row of bricks and number of rows
WALL = 2 ** (BRICKS * board.SIZE) - 1  # all bricks
START = 3  # initial row of the ball


class State(NamedTuple):
    """State of the game, int32 [...]."""

    paddle: Tensor
    """Column of the paddle."""
    x: Tensor
    y: Tensor
    dx: Tensor
    dy: Tensor
    last_x: Tensor
    last_y: Tensor
    bricks: Tensor
    """Bricks as 30 bits: the columns of each row, row after row."""
    struck: Tensor
    """1 if the ball hit a brick in the last step; it then breaks no brick in the next step."""


def make(time_limit: int = board.TIME_LIMIT, dtype: torch.dtype = torch.float32, sticky: float = board.STICKY) -> Env:
    """Make Breakout; the arguments are those of `board.env`."""
    return board.env(board.Game(start, play, show), PLANES, NOISE, time_limit, dtype, sticky)


def start(u: Tensor) -> State:
    """Place the ball at the left or the right, moving down and inwards. Shapes: u [..., 2]."""
    episode.check_reset(u, NOISE)
    zero = board.zeros(u)
    x, dx = board.side(board.choice(u[..., 1], 2) == 0)
    y = zero + START
    return State(zero + (1 << 4), x, y, dx, zero + 1, x.clone(), y.clone(), zero + WALL, zero)


def play(state: State, action: Tensor, u: Tensor, time: Tensor) -> tuple[State, Tensor, Tensor]:
    """Move the paddle, then the ball, which bounces off side walls, ceiling, bricks (breaking them) and the paddle.

    New bricks appear when the ball reaches the last row and no brick is left. Shapes: state and action [...].
    """
    paddle, side = board.walk(state.paddle, action), board.shift(state.x, state.dx)
    x, dx = torch.where(side == 0, state.x, side), torch.where(side == 0, -state.dx, state.dx)
    y = state.y + state.dy
    row = y - TOP
    met = torch.where((row >= 0) & (row < BRICKS), x << (board.SIZE * row).clamp(0, 31), 0) & state.bricks
    struck = met != 0
    breaks = struck & (state.struck == 0)
    bricks = torch.where(breaks, state.bricks & ~met, state.bricks)
    low = y == board.BOTTOM
    bricks = torch.where(low & (bricks == 0), WALL, bricks)
    middle = low & (state.x == paddle)
    corner = low & ~middle & (x == paddle)
    bounced = (y < 0) | breaks | middle | corner
    after = State(
        paddle, x, torch.where(y < 0, 0, torch.where(bounced, state.y, y)),
        torch.where(corner, -dx, dx), torch.where(bounced, -state.dy, state.dy),
        state.x, state.y, bricks, struck.to(board.INT),
    )  # fmt: skip
    return after, breaks.to(board.INT), low & ~middle & ~corner


def show(state: State) -> Tensor:
    """Return the planes."""
    paddle = board.cell(state.paddle, board.BOTTOM)
    ball, trail = board.cell(state.x, state.y), board.cell(state.last_x, state.last_y)
    rows = (board.cell(state.bricks >> board.SIZE * row & board.ALL, TOP + row) for row in range(BRICKS))
    return torch.stack([paddle, ball, trail, sum(rows, start=torch.zeros_like(ball))], -2)
