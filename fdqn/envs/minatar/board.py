"""Code shared by the five games: the board as bits, the six actions, sticky actions, and the step around a game.

A plane of the board is a tensor of rows [..., 16], each an int32 whose bit c is column c. Six of the 16 rows are
padding of 0, so that a plane is one vector of a CPU. An object has a row, a number, and a column, one bit; an absent
object has column 0. Moving is a shift, touching is `&`, a union is `|`.

Compiled code for a CPU is much faster with bits than with bools: selecting between 256 boards of ten planes takes a few
microseconds with bits and 2,400 with bools, which are loaded one by one. Observations are converted to bools four cells
of an int32 at a time, viewed as four bytes. For the same reason the games store and compare numbers instead of masks.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdqn import check
from fdqn.envs import episode
from fdqn.types import Env, EnvSpec, Step

ACTIONS = 6
NOTHING, LEFT, UP, RIGHT, DOWN, FIRE = range(ACTIONS)
SIZE, ROWS = 10, 16
BOTTOM = SIZE - 1
FIRST, LAST, ALL = 1, 2 ** (SIZE - 1), 2**SIZE - 1
"""Bits of the first column, of the last, and of all."""
STICKY = 0.1
TIME_LIMIT = 10_000
"""Steps. The original games have no limit; this one ends the evaluation of policies that never die."""
INT = torch.int32


class Game(NamedTuple):
    """The rules of one game. `env` adds sticky actions, the step count and the time limit."""

    start: Callable[[Tensor], Any]
    """`u [..., K] -> state`, a record of int32 tensors. It checks `u`, because K is a constant of the game's file."""
    play: Callable[[Any, Tensor, Tensor, Tensor], tuple[Any, Tensor, Tensor]]
    """`state, action [...], u [..., K], time [...] -> state, points [...], terminated [...]`; `time` counts the steps
    before this one. `u[..., 0]` is reserved for sticky actions.
    """
    show: Callable[[Any], Tensor]
    """`state -> planes [..., P, 16]`, bits."""


class State(NamedTuple):
    """State of a running game."""

    game: Any
    """The game's own state."""
    last: Tensor
    """[...] int32, the last action taken; NOTHING at the start of an episode."""
    time: Tensor
    """[...] int64, steps since the episode started."""


def env(game: Game, planes: int, noise: int, time_limit: int, dtype: torch.dtype, sticky: float) -> Env:
    """Make an environment of a game. Observations are bool. Young and Tian 2019, https://arxiv.org/abs/1903.03176

    Args:
        game: the rules.
        planes: P, the planes of an observation.
        noise: K, the uniforms of each reset and step.
        time_limit: steps after which an episode is truncated, at least 1.
        dtype: of rewards.
        sticky: probability that a step repeats the last action instead of the given one. At the start of an episode the
            last action is NOTHING, so that episodes are independent; the original package repeats the action that ended
            the previous episode.

    Raises:
        ValueError: a time limit below 1 or a probability outside [0, 1].
        TypeError: an argument of the wrong type.
    """
    if isinstance(sticky, bool) or not isinstance(sticky, int | float):
        raise TypeError(f"sticky: expected a number, got {sticky!r}")
    if not 0 <= sticky <= 1:
        raise ValueError(f"sticky: expected a probability in [0, 1], got {sticky}")
    spec = episode.spec((planes, SIZE, SIZE), dtype, actions=ACTIONS, noise=noise, time_limit=time_limit)
    spec = spec._replace(obs_dtype=torch.bool)
    first = partial(reset, game=game, dtype=dtype)
    return Env(first, partial(step, game=game, dtype=dtype, sticky=sticky, spec=spec), spec)


def reset(u: Tensor, game: Game, dtype: torch.dtype) -> tuple[State, Step]:
    """Draw a first state. Shapes: u [..., K]."""
    state, step = _begin(u, game, dtype)
    return state, step._replace(obs=_bools(step.obs), next_obs=_bools(step.next_obs))


def step(
    state: State, action: Tensor, u: Tensor, game: Game, dtype: torch.dtype, sticky: float, spec: EnvSpec
) -> tuple[State, Step]:
    """Take one step of the game with `action`, or with the last action where `u[..., 0] < sticky`.

    Actions are not checked against their range; any other number does nothing. Shapes: state and action [...];
    u [..., K].
    """
    fresh = _begin(u, game, dtype)
    check.shapes("state.time[...] action[...] u[... K]", state.time, action, u)
    check.integer("action", action)
    action = torch.where(u[..., 0] < sticky, state.last, action.to(INT))
    after, points, terminated = game.play(state.game, action, u, state.time)
    state = State(after, action, state.time + 1)
    legal = _all_legal(state.time)
    planes, reward = game.show(after), points.to(dtype)
    state, step = episode.advance(state, planes, legal, reward, terminated, fresh, spec.time_limit)
    # Only the selected state is used: showing it again is cheaper than selecting between observations, or masks.
    return state, step._replace(obs=_bools(game.show(state.game)), legal=legal, next_obs=_bools(planes))


def zeros(u: Tensor) -> Tensor:
    """Make int32 zeros [...]. Shapes: u [..., K]."""
    return torch.zeros_like(u[..., 0], dtype=INT)


def choice(u: Tensor, n: int | Tensor) -> Tensor:
    """Choose an integer in [0, n): `floor(u n)`, which is below n in any precision of u < 1. Shapes: u and n [...]."""
    return (u * n).to(INT)


def side(right: Tensor) -> tuple[Tensor, Tensor]:
    """Column and direction of an object that enters at the left where `right`, else at the right."""
    return torch.where(right, FIRST, LAST).to(INT), torch.where(right, 1, -1).to(INT)


def rows(like: Tensor) -> Tensor:
    """Make the numbers of the rows [16], or columns."""
    return torch.arange(ROWS, dtype=INT, device=like.device)


def cell(x: Tensor, y: Tensor | int) -> Tensor:
    """Draw one object [...] on a plane [..., 16]."""
    row = y if isinstance(y, int) else y[..., None]
    return torch.where(rows(x) == row, x[..., None], 0)


def cells(x: Tensor, y: Tensor) -> Tensor:
    """Draw 32 objects [..., 32] on a plane [..., 16]: eight at a time, then the union of the four planes."""
    four = reduce(torch.bitwise_or, map(cell, x.split(4, -1), y.split(4, -1)))
    return reduce(torch.bitwise_or, four.unbind(-2))


def union(rows: Tensor) -> Tensor:
    """Compute the union of a plane's rows. Shapes: rows [..., 16], a power of 2; result [...]."""
    while (n := rows.shape[-1]) > 1:
        rows = rows[..., : n // 2] | rows[..., n // 2 :]
    return rows[..., 0]


def quotient(x: Tensor, n: int) -> Tensor:
    """Compute `x // n` with floats, the only numbers for which compilers vectorize division."""
    return (x.to(torch.float64) / n).floor().to(INT)


def remainder(x: Tensor, n: int) -> Tensor:
    """Compute `x % n`."""
    return x.to(INT) - n * quotient(x, n)


def somewhere(planes: Tensor) -> Tensor:
    """Return True where any number is above 0. Shapes: planes [..., n]; result [...]."""
    return lowest(-planes) != 0


def lowest(x: Tensor) -> Tensor:
    """Compute the minimum over the last axis.

    Here and in `total` with floats, exact below 2^24, because compilers vectorize reductions only for those. Shapes:
    x [..., n]; result [...].
    """
    return x.to(torch.float32).amin(-1).to(INT)


def total(x: Tensor) -> Tensor:
    """Compute the sum over the last axis. Shapes: x [..., n]; result [...]."""
    return x.to(torch.float32).sum(-1).to(INT)


def ones(bits: Tensor) -> Tensor:
    """Count the set bits of ten: of each two, of each four, of all."""
    two = bits - (bits >> 1 & 0b0101010101)
    four = (two & 0b1100110011) + (two >> 2 & 0b0011001100110011)
    return (four & 15) + (four >> 4 & 15) + (four >> 8)


def shift(x: Tensor, dx: Tensor) -> Tensor:
    """Move columns one to the right where dx > 0, else to the left; 0 if that is off the board."""
    return torch.where(dx > 0, x << 1, x >> 1) & ALL


def walk(x: Tensor, action: Tensor) -> Tensor:
    """Move a column by LEFT or RIGHT within the board."""
    x = torch.where(action == LEFT, (x >> 1).clamp(min=FIRST), x)
    return torch.where(action == RIGHT, (x << 1).clamp(max=LAST), x)


def climb(y: Tensor, action: Tensor, top: int, bottom: int) -> Tensor:
    """Move a row by UP or DOWN within `top` to `bottom`."""
    y = torch.where(action == UP, (y - 1).clamp(min=top), y)
    return torch.where(action == DOWN, (y + 1).clamp(max=bottom), y)


def _begin(u: Tensor, game: Game, dtype: torch.dtype) -> tuple[State, Step]:
    first = game.start(u)
    state = State(first, zeros(u), torch.zeros_like(u[..., 0], dtype=torch.int64))
    return episode.begin(state, game.show(first), _all_legal(state.time), dtype)


def _all_legal(time: Tensor) -> Tensor:
    """Make the mask [..., 6] of `episode.all_legal`, written as three numbers of two bytes."""
    return time.new_full((*time.shape, ACTIONS // 2), 0x0101, dtype=torch.int16).view(torch.bool)


def _bools(planes: Tensor) -> Tensor:
    """Convert planes of bits [..., P, 16] to bools [..., P, 10, 10].

    Two rows are 20 bits, five groups of four. Multiplying four bits by 0x204081 makes copies 7 bits apart; the mask
    keeps one bit in each byte.
    """
    two = planes[..., 0:SIZE:2] | planes[..., 1:SIZE:2] << SIZE
    four = two[..., None] >> 4 * torch.arange(5, dtype=INT, device=planes.device) & 15
    return (four * 0x204081 & 0x01010101).view(torch.bool).flatten(-2).unflatten(-1, (SIZE, SIZE))
