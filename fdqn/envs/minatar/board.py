"""What the five games share: the board as bits, the six actions, sticky actions, and the frame of a step.

A plane of the board is its rows [..., 16], each an int32 whose bit c is column c; beyond the ten there are six that
stay 0, so that a plane is one vector of a CPU. A thing stands in a row, a number, and in a column, one bit; the column
of what is not there is 0. Moving is a shift, meeting is `&`, a union is `|`.

Bits and not bools because of what compilers make of them on a CPU: to choose between 256 boards of ten planes takes a
few microseconds in bits and 2,400 in bools, which are loaded one by one. They become bools where they are shown, four
cells of an int32 at a time, which are then viewed as four bytes. For the same reason the games keep and compare numbers
rather than masks wherever there is more than one a game.
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
"""Steps. The games know no limit; this one is there for policies that never die, whose evaluation has to end."""
INT = torch.int32


class Game(NamedTuple):
    """A game, without what all of them have: sticky actions, the count of steps, ends."""

    start: Callable[[Tensor], Any]
    """`u [..., K] -> state`, a record of int32 tensors. It checks u, as K is a constant of the game's file."""
    play: Callable[[Any, Tensor, Tensor, Tensor], tuple[Any, Tensor, Tensor]]
    """`state, action [...], u [..., K], time [...] -> state, points [...], terminated [...]`; `time` counts the steps
    before this one. `u[..., 0]` is not the game's: it decides about sticky actions.
    """
    show: Callable[[Any], Tensor]
    """`state -> planes [..., P, 16]`, bits."""


class State(NamedTuple):
    """A game under way."""

    game: Any
    """What the game keeps."""
    last: Tensor
    """[...] int32, the last action that was carried out; nothing at the start of an episode."""
    time: Tensor
    """[...] int64, steps since the episode started."""


def env(game: Game, planes: int, noise: int, time_limit: int, dtype: torch.dtype, sticky: float) -> Env:
    """The game as an environment of P planes and K uniforms; `dtype` is that of rewards, observations are bool.

    With probability `sticky` a step repeats the last action instead of the given one. At the start of an episode that
    is to do nothing, so that episodes are independent; the package goes on repeating the action that ended the last.

    Raises ValueError for a time limit below 1 or a probability outside [0, 1], TypeError for what is no such number.
    Young and Tian 2019, https://arxiv.org/abs/1903.03176
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
    """A first state. Shapes: u [..., K]."""
    state, step = _begin(u, game, dtype)
    return state, step._replace(obs=_bools(step.obs), next_obs=_bools(step.next_obs))


def step(
    state: State, action: Tensor, u: Tensor, game: Game, dtype: torch.dtype, sticky: float, spec: EnvSpec
) -> tuple[State, Step]:
    """One step of the game with `action`, or with the last one again where `u[..., 0] < sticky`.

    Actions are not checked against their range: what is none of the six does nothing. Shapes: state and action [...];
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
    # Of what it chose, the state is enough: to show it again is cheaper than to choose between pictures, or masks.
    return state, step._replace(obs=_bools(game.show(state.game)), legal=legal, next_obs=_bools(planes))


def zeros(u: Tensor) -> Tensor:
    """A zero [...] for each of the games that u [..., K] is for."""
    return torch.zeros_like(u[..., 0], dtype=INT)


def choice(u: Tensor, n: int | Tensor) -> Tensor:
    """One of `n` [...] numbers from 0 on: `floor(u n)`, which is below n in any precision that u < 1 has."""
    return (u * n).to(INT)


def side(right: Tensor) -> tuple[Tensor, Tensor]:
    """Column and direction of what comes in at the left and goes right, or else the other way round."""
    return torch.where(right, FIRST, LAST).to(INT), torch.where(right, 1, -1).to(INT)


def rows(like: Tensor) -> Tensor:
    """The numbers of the rows, or of columns, [16]."""
    return torch.arange(ROWS, dtype=INT, device=like.device)


def cell(x: Tensor, y: Tensor | int) -> Tensor:
    """The plane [..., 16] of one thing [...]."""
    row = y if isinstance(y, int) else y[..., None]
    return torch.where(rows(x) == row, x[..., None], 0)


def cells(x: Tensor, y: Tensor) -> Tensor:
    """The plane [..., 16] of many things [..., 32]: of eight at a time, then of the four that come of it."""
    four = reduce(torch.bitwise_or, map(cell, x.split(4, -1), y.split(4, -1)))
    return reduce(torch.bitwise_or, four.unbind(-2))


def union(rows: Tensor) -> Tensor:
    """The columns [...] taken in any row of a plane [..., 16]."""
    while (n := rows.shape[-1]) > 1:
        rows = rows[..., : n // 2] | rows[..., n // 2 :]
    return rows[..., 0]


def quotient(x: Tensor, n: int) -> Tensor:
    """`x // n`, as floats: compilers have vectors' division for those alone."""
    return (x.to(torch.float64) / n).floor().to(INT)


def remainder(x: Tensor, n: int) -> Tensor:
    """`x % n`."""
    return x.to(INT) - n * quotient(x, n)


def somewhere(planes: Tensor) -> Tensor:
    """Whether anything [...] is in a plane [..., n]."""
    return lowest(-planes) != 0


def lowest(x: Tensor) -> Tensor:
    """The lowest [...] of numbers [..., n]; here and in `total` as floats, exact below 2^24, as compilers have vectors'
    minimum and sum for those alone.
    """
    return x.to(torch.float32).amin(-1).to(INT)


def total(x: Tensor) -> Tensor:
    """The sum [...] of numbers [..., n]."""
    return x.to(torch.float32).sum(-1).to(INT)


def ones(bits: Tensor) -> Tensor:
    """How many of ten bits are set: of each two, of each four, of all."""
    two = bits - (bits >> 1 & 0b0101010101)
    four = (two & 0b1100110011) + (two >> 2 & 0b0011001100110011)
    return (four & 15) + (four >> 4 & 15) + (four >> 8)


def shift(x: Tensor, dx: Tensor) -> Tensor:
    """Columns, one to the right where dx > 0, else to the left; 0 where that is off the board."""
    return torch.where(dx > 0, x << 1, x >> 1) & ALL


def walk(x: Tensor, action: Tensor) -> Tensor:
    """A column after LEFT or RIGHT, as far as the board goes."""
    x = torch.where(action == LEFT, (x >> 1).clamp(min=FIRST), x)
    return torch.where(action == RIGHT, (x << 1).clamp(max=LAST), x)


def climb(y: Tensor, action: Tensor, top: int, bottom: int) -> Tensor:
    """A row after UP or DOWN, from `top` to `bottom`."""
    y = torch.where(action == UP, (y - 1).clamp(min=top), y)
    return torch.where(action == DOWN, (y + 1).clamp(max=bottom), y)


def _begin(u: Tensor, game: Game, dtype: torch.dtype) -> tuple[State, Step]:
    first = game.start(u)
    state = State(first, zeros(u), torch.zeros_like(u[..., 0], dtype=torch.int64))
    return episode.begin(state, game.show(first), _all_legal(state.time), dtype)


def _all_legal(time: Tensor) -> Tensor:
    """The mask [..., 6]: `episode.all_legal`, written as three numbers of two bytes."""
    return time.new_full((*time.shape, ACTIONS // 2), 0x0101, dtype=torch.int16).view(torch.bool)


def _bools(planes: Tensor) -> Tensor:
    """Planes of bits [..., P, 16] as bools [..., P, 10, 10].

    Two rows are 20 bits, five times four; of four bits abcd, 0x204081 puts copies 7 apart, of which the mask leaves one
    bit a byte.
    """
    two = planes[..., 0:SIZE:2] | planes[..., 1:SIZE:2] << SIZE
    four = two[..., None] >> 4 * torch.arange(5, dtype=INT, device=planes.device) & 15
    return (four * 0x204081 & 0x01010101).view(torch.bool).flatten(-2).unflatten(-1, (SIZE, SIZE))
