"""Breakout: bounce a ball off a paddle so that it breaks bricks; a point for each, and new ones when all are gone.

The ball goes diagonally. Off the middle of the paddle it goes on to its side, off a corner back to where it came from;
below the paddle is the end. The planes are paddle, ball, trail (where the ball was) and bricks.
Young and Tian 2019, https://arxiv.org/abs/1903.03176

`u[..., 0]` is the sticky draw, `u[..., 1]` chooses between the two starts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fdqn.envs import episode
from fdqn.envs.minatar import board
from fdqn.types import Env

PLANES, NOISE = 4, 2
TOP, BRICKS = 1, 3  # the first row of bricks, and how many
WALL = 2 ** (BRICKS * board.SIZE) - 1  # all of them
START = 3  # row of the ball


class State(NamedTuple):
    """int32 [...]."""

    paddle: Tensor
    """Its column."""
    x: Tensor
    y: Tensor
    dx: Tensor
    dy: Tensor
    last_x: Tensor
    last_y: Tensor
    bricks: Tensor
    """Their columns in each row, row after row, 30 bits."""
    struck: Tensor
    """1 where the ball met a brick in the last step: it breaks no other in the next."""


def make(time_limit: int = board.TIME_LIMIT, dtype: torch.dtype = torch.float32, sticky: float = board.STICKY) -> Env:
    """Breakout; the arguments are as in `board.env`."""
    return board.env(board.Game(start, play, show), PLANES, NOISE, time_limit, dtype, sticky)


def start(u: Tensor) -> State:
    """The ball at the left going right or the other way round, down. Shapes: u [..., 2]."""
    episode.check_reset(u, NOISE)
    zero = board.zeros(u)
    x, dx = board.side(board.choice(u[..., 1], 2) == 0)
    y = zero + START
    return State(zero + (1 << 4), x, y, dx, zero + 1, x.clone(), y.clone(), zero + WALL, zero)


def play(state: State, action: Tensor, u: Tensor, time: Tensor) -> tuple[State, Tensor, Tensor]:
    """The paddle moves, then the ball: off a side wall; off the ceiling, or a brick that breaks, or the paddle.

    Bricks come again when the ball reaches the last row and there is none. Shapes: state and action [...].
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
    """The planes."""
    paddle = board.cell(state.paddle, board.BOTTOM)
    ball, trail = board.cell(state.x, state.y), board.cell(state.last_x, state.last_y)
    rows = (board.cell(state.bricks >> board.SIZE * row & board.ALL, TOP + row) for row in range(BRICKS))
    return torch.stack([paddle, ball, trail, sum(rows, start=torch.zeros_like(ball))], -2)
