"""Asterix: collect gold and avoid enemies, which enter from both sides.

Touching gold gives one point; touching an enemy ends the episode. Each of eight rows holds at most one object. Objects
appear and move faster over time. The planes are player, enemies, trails (previous cells of objects) and gold.
Young and Tian 2019, https://arxiv.org/abs/1903.03176

`u[..., 0]` decides about sticky actions, `u[..., 1]` selects one of the six kinds of new object, `u[..., 2]` its row.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn.envs import episode
from fdqn.envs.minatar import board
from fdqn.types import Env

PLANES, NOISE = 4, 3
TOP, LOWEST = 1, 8  # rows of objects and player
SPAWN, MOVE = 10, 5  # initial steps between new objects and between moves
RAMP = 102  # steps between levels of difficulty
LEVELS = 9  # at the last level, both happen every step


class State(NamedTuple):
    """State of the game, int32. Objects are indexed by row, [..., 16]; rows without an object have column 0."""

    x: Tensor
    y: Tensor
    thing: Tensor
    """Columns of the objects."""
    dx: Tensor
    """+1 to the right, -1 to the left."""
    gold: Tensor
    """1 for gold, 0 for an enemy."""
    spawn_timer: Tensor
    move_timer: Tensor


def make(
    time_limit: int = board.TIME_LIMIT,
    dtype: torch.dtype = torch.float32,
    sticky: float = board.STICKY,
    ramping: bool = True,
) -> Env:
    """Make Asterix; with `ramping` it gets harder over time. The other arguments are those of `board.env`."""
    game = board.Game(start, partial(play, ramping=ramping), show)
    return board.env(game, PLANES, NOISE, time_limit, dtype, sticky)


def start(u: Tensor) -> State:
    """Place the player in the middle of an empty board. Shapes: u [..., 3]."""
    episode.check_reset(u, NOISE)
    zero = board.zeros(u)
    none = zero[..., None] + 0 * board.rows(zero)
    return State(zero + (1 << 5), zero + 5, none, none + 1, none.clone(), zero + SPAWN, zero + MOVE)


def play(state: State, action: Tensor, u: Tensor, time: Tensor, ramping: bool) -> tuple[State, Tensor, Tensor]:
    """Add a new object if its timer is up, move the player, then move the objects if their timer is up.

        level = min(time // 102, 9);  a new object every 10 - level steps, a move every max(5 - level // 2, 1)

    Collisions count before and after the objects' move. Shapes: state, action and time [...]; u [..., 3].
    """
    level = board.quotient(time, RAMP).clamp(max=LEVELS) * ramping
    state = _spawn(state, u)
    state = state._replace(x=board.walk(state.x, action), y=board.climb(state.y, action, TOP, LOWEST))
    before, found, caught = _touch(state)
    moves = before.move_timer == 0
    moved = before._replace(thing=torch.where(moves[..., None], board.shift(before.thing, before.dx), before.thing))
    after, found_too, caught_too = _touch(moved)
    after = after._replace(
        spawn_timer=torch.where(state.spawn_timer == 0, SPAWN - level, state.spawn_timer) - 1,
        move_timer=torch.where(moves, (MOVE - (level >> 1)).clamp(min=1), state.move_timer) - 1,
    )
    return after, found.to(board.INT) + found_too.to(board.INT), caught | caught_too


def show(state: State) -> Tensor:
    """Return the planes."""
    gold = state.gold > 0
    player = board.cell(state.x, state.y)
    enemies, found = torch.where(gold, 0, state.thing), torch.where(gold, state.thing, 0)
    return torch.stack([player, enemies, board.shift(state.thing, -state.dx), found], -2)


def _spawn(state: State, u: Tensor) -> State:
    """Add an object that enters at the left or at the right, if the timer is up and a row is free.

    A third of the objects are gold. The row is uniform among the free rows.
    """
    row = board.rows(state.thing)
    empty = (state.thing == 0) & (row >= TOP) & (row <= LOWEST)
    free = board.total(torch.where(empty, 1 << row, 0))
    number = board.choice(u[..., 2], board.ones(free))
    above = board.ones(free[..., None] & ((1 << row) - 1))
    kind = board.choice(u[..., 1], 6)
    x, dx = board.side(kind < 3)
    gold = (kind % 3 == 0).to(board.INT)
    x = torch.where(state.spawn_timer == 0, x, 0)[..., None]
    new = torch.where((free[..., None] >> row & 1 != 0) & (above == number[..., None]), x, 0)
    return state._replace(
        thing=state.thing | new,
        dx=torch.where(new != 0, dx[..., None], state.dx),
        gold=torch.where(new != 0, gold[..., None], state.gold),
    )


def _touch(state: State) -> tuple[State, Tensor, Tensor]:
    """Remove the gold that the player touches; return the state, a flag for gold and a flag for an enemy touched."""
    touched = state.thing & board.cell(state.x, state.y)
    found = torch.where(state.gold > 0, touched, 0)
    caught = touched & ~found
    return state._replace(thing=state.thing & ~found), board.somewhere(found), board.somewhere(caught)
