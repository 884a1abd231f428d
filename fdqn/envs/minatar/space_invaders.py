"""Space Invaders: shoot aliens, which march sideways and down and shoot back; one point each.

The fewer aliens are left, the faster they march; a cleared wave is followed by a faster one. The episode ends if an
alien or a bullet reaches the cannon or if the aliens march beyond the last row. The planes are cannon, aliens, aliens
marching left, aliens marching right, own bullets and enemy bullets. Young and Tian 2019,
https://arxiv.org/abs/1903.03176

`u[..., 0]` decides about sticky actions, the only source of randomness.
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
COOL_DOWN = 5  # steps between own shots
SHOT = 10  # steps between enemy shots
SLOWEST, FASTEST = 12, 6  # most steps between two moves of a wave: first wave, fastest wave
DEPTH, WAVE = 4, 0b0011111100  # number of rows and columns (bits) of a new wave


class State(NamedTuple):
    """State of the game, int32: three planes [..., 16] of bits, and numbers [...]."""

    cannon: Tensor
    """Column of the cannon."""
    aliens: Tensor
    ours: Tensor
    theirs: Tensor
    dx: Tensor
    slowest: Tensor
    """Most steps between two moves of this wave."""
    march_timer: Tensor
    shot_timer: Tensor


def make(
    time_limit: int = board.TIME_LIMIT,
    dtype: torch.dtype = torch.float32,
    sticky: float = board.STICKY,
    ramping: bool = True,
) -> Env:
    """Make Space Invaders; with `ramping` each wave is faster. The other arguments are those of `board.env`."""
    game = board.Game(start, partial(play, ramping=ramping), show)
    return board.env(game, PLANES, NOISE, time_limit, dtype, sticky)


def start(u: Tensor) -> State:
    """Place a wave at the top, marching left. Shapes: u [..., 1]."""
    episode.check_reset(u, NOISE)
    zero = board.zeros(u)
    none = zero[..., None] + 0 * board.rows(zero)
    return State(
        zero + (1 << 5), none + _wave(zero), none, none.clone(), zero - 1, zero + SLOWEST, zero + SLOWEST, zero
    )


def play(state: State, action: Tensor, u: Tensor, time: Tensor, ramping: bool) -> tuple[State, Tensor, Tensor]:
    """Move or fire the cannon, move bullets, let the aliens march and fire if their timers are up, and remove hit
    aliens.

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
    """Return the planes."""
    left = (state.dx < 0)[..., None]
    cannon = board.cell(state.cannon, board.BOTTOM)
    marching = torch.where(left, state.aliens, 0), torch.where(left, 0, state.aliens)
    return torch.stack([cannon, state.aliens, *marching, state.ours, state.theirs], -2)


def _march(state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return aliens and direction after a move if the timer is up, a flag for the move, and a flag for leaving the
    board.

    At the edge ahead of them the aliens move down one row and turn; otherwise they move one column.
    """
    moves = state.march_timer == 0
    edge = torch.where(state.dx > 0, board.LAST, board.FIRST).to(board.INT)
    turns = moves & board.somewhere(state.aliens & edge[..., None])
    bottom = state.aliens[..., board.BOTTOM]
    beyond = turns & (bottom != 0)
    # An alien that leaves at the bottom appears at the top; only the last observation of the episode shows it.
    lower = _down(state.aliens) | board.cell(bottom, 0)
    on = board.shift(state.aliens, state.dx[..., None])
    aliens = torch.where(moves[..., None], torch.where(turns[..., None], lower, on), state.aliens)
    return aliens, torch.where(turns, -state.dx, state.dx), moves, beyond


def _nearest(aliens: Tensor, cannon: Tensor) -> Tensor:
    """Return, as a plane, the lowest alien in the column nearest to the cannon; the left one of two equally near."""
    column = board.rows(aliens)
    there = board.union(aliens)[..., None] >> column & 1
    away = column - board.ones(cannon - 1)[..., None]
    distance = torch.where(there != 0, 2 * away.abs() + (away > 0).to(board.INT), 4 * board.SIZE)
    nearest = board.lowest(distance)
    # Decode the distance: 2 d to the left, 2 d + 1 to the right.
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
