"""Space Invaders: shoot aliens, which march from side to side and down and shoot back; a point for each.

Their march gets faster the fewer they are; when none is left a new wave comes, faster still. An alien or a bullet that
reaches the cannon is the end, and so is a march beyond the last row. The planes are cannon, aliens, aliens if they
march left, aliens if they march right, our bullets and theirs.
Young and Tian 2019, https://arxiv.org/abs/1903.03176

`u[..., 0]` is the sticky draw; there is no other chance.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fdqn.envs import episode
from fdqn.envs.minatar import board
from fdqn.types import Env

PLANES, NOISE = 6, 1
COOL_DOWN = 5  # steps from one of our shots to the next
SHOT = 10  # steps from one of theirs to the next
SLOWEST, FASTEST = 12, 6  # most steps from one move of a wave to the next: of the first wave, and at last
DEPTH, WAVE = 4, 0b0011111100  # rows of a new wave, and its columns


class State(NamedTuple):
    """int32; three planes [..., 16] of bits and numbers [...]."""

    cannon: Tensor
    """Its column."""
    aliens: Tensor
    ours: Tensor
    theirs: Tensor
    dx: Tensor
    slowest: Tensor
    """Most steps from one move of this wave to the next."""
    march_timer: Tensor
    shot_timer: Tensor


def make(
    time_limit: int = board.TIME_LIMIT,
    dtype: torch.dtype = torch.float32,
    sticky: float = board.STICKY,
    ramping: bool = True,
) -> Env:
    """Space Invaders; with `ramping` each wave is faster than the last. The rest is as in `board.env`."""
    game = board.Game(start, partial(play, ramping=ramping), show)
    return board.env(game, PLANES, NOISE, time_limit, dtype, sticky)


def start(u: Tensor) -> State:
    """A wave at the top, marching left. Shapes: u [..., 1]."""
    episode.check_reset(u, NOISE)
    zero = board.zeros(u)
    none = zero[..., None] + 0 * board.rows(zero)
    return State(
        zero + (1 << 5), none + _wave(zero), none, none.clone(), zero - 1, zero + SLOWEST, zero + SLOWEST, zero
    )


def play(state: State, action: Tensor, u: Tensor, time: Tensor, ramping: bool) -> tuple[State, Tensor, Tensor]:
    """The cannon moves or shoots, bullets fly, aliens march and shoot if it is time, and those that we hit are gone.

    Shapes: state, action and time [...].
    """
    fires = (action == board.FIRE) & (state.shot_timer == 0)
    cannon = board.walk(state.cannon, action)
    last = board.cell(cannon, board.BOTTOM)
    ours = _up(torch.where(fires[..., None], state.ours | last, state.ours))
    theirs = _down(state.theirs)
    dead = board.somewhere((theirs | state.aliens) & last)
    aliens, dx, moves, beyond = _march(state)
    dead = dead | beyond | (moves & (board.somewhere(aliens & last)))
    shoots = (time > 0) & (board.remainder(time, SHOT) == 0)
    theirs = theirs | torch.where(shoots[..., None], _nearest(aliens, cannon), 0)
    hit = aliens & ours
    aliens, ours = aliens & ~hit, ours & ~hit
    march_timer = (
        torch.where(moves, torch.minimum(board.total(board.ones(state.aliens)), state.slowest), state.march_timer) - 1
    )
    shot_timer = (torch.where(fires, COOL_DOWN, state.shot_timer) - 1).clamp(min=0)
    cleared = ~board.somewhere(aliens)
    slowest = torch.where(cleared, (state.slowest - 1).clamp(min=FASTEST), state.slowest) if ramping else state.slowest
    aliens = torch.where(cleared[..., None], _wave(cannon), aliens)
    after = State(cannon, aliens, ours, theirs, dx, slowest.clone(), march_timer, shot_timer)
    return after, board.total(board.ones(hit)), dead


def show(state: State) -> Tensor:
    """The planes."""
    left = (state.dx < 0)[..., None]
    cannon = board.cell(state.cannon, board.BOTTOM)
    marching = torch.where(left, state.aliens, 0), torch.where(left, 0, state.aliens)
    return torch.stack([cannon, state.aliens, *marching, state.ours, state.theirs], -2)


def _march(state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Aliens and their direction after a move, if it is time for one; whether it is, and whether one left the board.

    At the edge that they march to they go a row down and turn; otherwise they go a column on.
    """
    moves = state.march_timer == 0
    edge = torch.where(state.dx > 0, board.LAST, board.FIRST).to(board.INT)
    turns = moves & board.somewhere(state.aliens & edge[..., None])
    bottom = state.aliens[..., board.BOTTOM]
    beyond = turns & (bottom != 0)
    # Who leaves at the bottom comes in at the top, where only the last picture of the episode shows it.
    lower = _down(state.aliens) | board.cell(bottom, 0)
    on = board.shift(state.aliens, state.dx[..., None])
    aliens = torch.where(moves[..., None], torch.where(turns[..., None], lower, on), state.aliens)
    return aliens, torch.where(turns, -state.dx, state.dx), moves, beyond


def _nearest(aliens: Tensor, cannon: Tensor) -> Tensor:
    """The cell, as a plane, of the lowest alien in the column nearest to the cannon, of two the left one."""
    column = board.rows(aliens)
    there = board.union(aliens)[..., None] >> column & 1
    away = column - board.ones(cannon - 1)[..., None]
    distance = torch.where(there != 0, 2 * away.abs() + (away > 0).to(board.INT), 4 * board.SIZE)
    nearest = board.lowest(distance)
    # Back from the distance: 2 d to the left, 2 d + 1 to the right.
    step = torch.where((nearest & 1) == 0, -(nearest >> 1), nearest >> 1)
    bit = (1 << (board.ones(cannon - 1) + step).clamp(0, board.SIZE))[..., None]
    lowest = -board.lowest(torch.where((aliens & bit) != 0, -column, 1))
    return torch.where(column == lowest[..., None], bit, 0)


def _up(plane: Tensor) -> Tensor:
    return pad(plane[..., 1:], (0, 1))


def _down(plane: Tensor) -> Tensor:
    return torch.where(board.rows(plane) < board.SIZE, pad(plane[..., :-1], (1, 0)), 0)


def _wave(like: Tensor) -> Tensor:
    return torch.where(board.rows(like) < DEPTH, WAVE, 0).to(board.INT)
