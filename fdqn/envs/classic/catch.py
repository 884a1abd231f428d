"""Catch: a ball falls one row a step; be under it at the bottom by moving left (0), not (1) or right (2).

The game of bsuite: a board of 10 rows and 5 columns, +1 for a catch and -1 for a miss after nine steps, 0 before.
Osband et al. 2020, https://arxiv.org/abs/1908.03568;
https://github.com/google-deepmind/bsuite/blob/main/bsuite/environments/catch.py
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn.envs import episode
from fdqn.types import Env, EnvSpec, Step

ACTIONS, NOISE = 3, 1
ROWS, COLUMNS = 10, 5


class State(NamedTuple):
    """Integers [...]; the ball's row is the time, the paddle's row is the last."""

    ball: Tensor
    """Column of the ball, int64."""
    paddle: Tensor
    """Column of the paddle, int64."""
    time: Tensor
    """Steps since the episode started, int64."""


def make(time_limit: int = ROWS, dtype: torch.dtype = torch.float32) -> Env:
    """Make catch; `dtype` is that of observation and reward.

    An episode has nine steps, so the default limit is never reached.

    Raises ValueError for a time limit below 1.
    """
    spec = episode.spec((ROWS, COLUMNS), dtype, actions=ACTIONS, noise=NOISE, time_limit=time_limit)
    return Env(partial(reset, spec=spec), partial(step, spec=spec), spec)


def reset(u: Tensor, spec: EnvSpec) -> tuple[State, Step]:
    """Place the ball at the top in column `floor(5 u)` and the paddle in the middle. Shapes: u [..., 1]."""
    episode.check_reset(u, NOISE)
    # u keeps its own dtype here: rounded to a coarse one it could become 1 and the ball would leave the board.
    ball = (u[..., 0] * COLUMNS).to(torch.int64)
    state = State(ball, torch.full_like(ball, COLUMNS // 2), torch.zeros_like(ball))
    return episode.begin(state, _observe(state, spec), episode.all_legal(state.time, ACTIONS))


def step(state: State, action: Tensor, u: Tensor, spec: EnvSpec) -> tuple[State, Step]:
    """Move by `action - 1` columns, as far as the board goes, and let the ball fall one row.

        terminated = the ball is in the last row;  reward = +1 caught, -1 missed, 0 before

    Actions are not checked against their range. Shapes: state and action [...]; u [..., 1].
    """
    episode.check_step(State, state, action, u, NOISE)
    state = State(state.ball, (state.paddle + action.long() - 1).clamp(0, COLUMNS - 1), state.time + 1)
    terminated = state.time >= ROWS - 1
    reward = torch.where(state.ball == state.paddle, 1.0, -1.0) * terminated
    legal = episode.all_legal(state.time, ACTIONS)
    obs = _observe(state, spec)
    return episode.advance(state, obs, legal, reward.to(spec.obs_dtype), terminated, reset(u, spec), spec.time_limit)


def _observe(state: State, spec: EnvSpec) -> Tensor:
    """Draw the board [..., 10, 5]: 1 at the ball and at the paddle, 0 elsewhere."""
    cells = torch.arange(ROWS * COLUMNS, device=state.time.device).reshape(ROWS, COLUMNS)
    ball = (state.time * COLUMNS + state.ball)[..., None, None]
    paddle = ((ROWS - 1) * COLUMNS + state.paddle)[..., None, None]
    return ((cells == ball) | (cells == paddle)).to(spec.obs_dtype)
