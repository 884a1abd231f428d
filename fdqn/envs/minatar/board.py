"""Shared code of the five games: the board as bits, the six actions, sticky actions and the step of an environment.

A plane of the board is an int32 [..., 16] of rows; bit c of a row is column c. Only ten rows are used; the other six
are 0 and fill a SIMD vector. An object has a row, as a number, and a column, as a single set bit; column 0 means that
the object does not exist. Shifts move objects, `&` finds collisions and `|` is the union.

Bits are used instead of bools for speed: on a CPU, selecting between 256 boards of ten planes takes a few microseconds
with bits and 2,400 with bools, which compilers load one by one. Observations are converted to bools four cells at a
time: four bytes of an int32, viewed as bools. For the same reason the games store and compare numbers instead of masks
where there are several per game.
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
"""Steps. MinAtar has no limit; this one ends the evaluation of policies that never die."""
INT = torch.int32


class Game(NamedTuple):
    """The rules of a game, without sticky actions, step count and restarts, which all games share."""

    start: Callable[[Tensor], Any]
    """`u [..., K] -> state`, a record of int32 tensors. Checks `u`, because K is a constant of the game."""
    play: Callable[[Any, Tensor, Tensor, Tensor], tuple[Any, Tensor, Tensor]]
    """`state, action [...], u [..., K], time [...] -> state, points [...], terminated
    [...]`; `time` counts the steps before this one. `u[..., 0]` is reserved for sticky actions.
    """
    show: Callable[[Any], Tensor]
    """`state -> planes [..., P, 16]` of bits."""


class State(NamedTuple):
    """State of an environment: the game, the last action and the time."""

    game: Any
    """State of the game."""
    last: Tensor
    """[...] int32, the last executed action; NOTHING at the start of an episode."""
    time: Tensor
    """[...] int64, steps since the episode started."""


def env(game: Game, planes: int, noise: int, time_limit: int, dtype: torch.dtype, sticky: float) -> Env:
    """Make an environment of a game.

    With probability `sticky`, a step repeats the last executed action instead of the given one. At the start of an
    episode the last action is "nothing", so episodes are independent; the `minatar` package repeats the last action of
    the previous episode.

    Args:
        game: Rules of the game.
        planes: P, planes of an observation.
        noise: K, uniforms per reset and step.
        time_limit: Steps after which an episode is truncated.
        dtype: Dtype of rewards; observations are bool.
        sticky: Probability of a repeated action.

    Raises ValueError for a time limit below 1 or a probability outside [0, 1], and TypeError for a `sticky` that is not
    a number. Young and Tian 2019, https://arxiv.org/abs/1903.03176
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
    """Start an episode. Shapes: u [..., K]."""
    state, step = _begin(u, game, dtype)
    return state, step._replace(obs=_bools(step.obs), next_obs=_bools(step.next_obs))


def step(
    state: State, action: Tensor, u: Tensor, game: Game, dtype: torch.dtype, sticky: float, spec: EnvSpec
) -> tuple[State, Step]:
    """Execute `action`, or the last action where `u[..., 0] < sticky`.

    The range of actions is not checked; other numbers do nothing. Shapes: state and action [...]; u [..., K].

    Args:
        state: State of the environment.
        action: Index of the action, integers [...].
        u: Uniforms in [0, 1), [..., K].
        game: Rules of the game.
        dtype: Dtype of rewards.
        sticky: Probability of a repeated action.
        spec: Specification of the environment.
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
    # Recomputing the observation from the selected state is cheaper than selecting between observations or masks.
    return state, step._replace(obs=_bools(game.show(state.game)), legal=legal, next_obs=_bools(planes))


def zeros(u: Tensor) -> Tensor:
    """Return zeros [...] int32, with the leading axes of u [..., K]."""
    return torch.zeros_like(u[..., 0], dtype=INT)


def choice(u: Tensor, n: int | Tensor) -> Tensor:
    """Sample one of the numbers [...] from 0 to `n` - 1: `floor(u n)`, below n in every precision in which u < 1."""
    return (u * n).to(INT)


def side(right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the column and direction of an object that enters at the left if `right`, else at the right."""
    return torch.where(right, FIRST, LAST).to(INT), torch.where(right, 1, -1).to(INT)


def rows(like: Tensor) -> Tensor:
    """Return the indices of rows or columns, [16]."""
    return torch.arange(ROWS, dtype=INT, device=like.device)


def cell(x: Tensor, y: Tensor | int) -> Tensor:
    """Return the plane [..., 16] of one object [...]."""
    row = y if isinstance(y, int) else y[..., None]
    return torch.where(rows(x) == row, x[..., None], 0)


def cells(x: Tensor, y: Tensor) -> Tensor:
    """Return the plane [..., 16] of many objects [..., 32], combined eight at a time and then four."""
    four = reduce(torch.bitwise_or, map(cell, x.split(4, -1), y.split(4, -1)))
    return reduce(torch.bitwise_or, four.unbind(-2))


def union(rows: Tensor) -> Tensor:
    """Return the columns [...] occupied in any row of a plane [..., 16]."""
    while (n := rows.shape[-1]) > 1:
        rows = rows[..., : n // 2] | rows[..., n // 2 :]
    return rows[..., 0]


def quotient(x: Tensor, n: int) -> Tensor:
    """Return `x // n`, computed in floats, because compilers vectorize only floating-point division."""
    return (x.to(torch.float64) / n).floor().to(INT)


def remainder(x: Tensor, n: int) -> Tensor:
    """Return `x % n`."""
    return x.to(INT) - n * quotient(x, n)


def somewhere(planes: Tensor) -> Tensor:
    """Return True [...] where a plane [..., n] has any bit set."""
    return lowest(-planes) != 0


def lowest(x: Tensor) -> Tensor:
    """Return the minimum [...] of numbers [..., n].

    Here and in `total` the numbers are converted to floats, exact below 2^24, because compilers vectorize minimum and
    sum for floats only.
    """
    return x.to(torch.float32).amin(-1).to(INT)


def total(x: Tensor) -> Tensor:
    """Return the sum [...] of numbers [..., n]."""
    return x.to(torch.float32).sum(-1).to(INT)


def ones(bits: Tensor) -> Tensor:
    """Count the set bits of a ten-bit number: in pairs, in groups of four, in total."""
    two = bits - (bits >> 1 & 0b0101010101)
    four = (two & 0b1100110011) + (two >> 2 & 0b0011001100110011)
    return (four & 15) + (four >> 4 & 15) + (four >> 8)


def shift(x: Tensor, dx: Tensor) -> Tensor:
    """Move columns right where dx > 0, else left; 0 for an object that leaves the board."""
    return torch.where(dx > 0, x << 1, x >> 1) & ALL


def walk(x: Tensor, action: Tensor) -> Tensor:
    """Move a column by LEFT or RIGHT, clamped to the board."""
    x = torch.where(action == LEFT, (x >> 1).clamp(min=FIRST), x)
    return torch.where(action == RIGHT, (x << 1).clamp(max=LAST), x)


def climb(y: Tensor, action: Tensor, top: int, bottom: int) -> Tensor:
    """Move a row by UP or DOWN, clamped to [top, bottom]."""
    y = torch.where(action == UP, (y - 1).clamp(min=top), y)
    return torch.where(action == DOWN, (y + 1).clamp(max=bottom), y)


def _begin(u: Tensor, game: Game, dtype: torch.dtype) -> tuple[State, Step]:
    first = game.start(u)
    state = State(first, zeros(u), torch.zeros_like(u[..., 0], dtype=torch.int64))
    return episode.begin(state, game.show(first), _all_legal(state.time), dtype)


def _all_legal(time: Tensor) -> Tensor:
    """Return the mask [..., 6]: `episode.all_legal`, written as three 16-bit numbers."""
    return time.new_full((*time.shape, ACTIONS // 2), 0x0101, dtype=torch.int16).view(torch.bool)


def _bools(planes: Tensor) -> Tensor:
    """Convert planes of bits [..., P, 16] to bools [..., P, 10, 10].

    Two rows have 20 bits, five groups of four. Multiplying a group by 0x204081 makes copies 7 bits apart, of which the
    mask keeps one bit in each byte.
    """
    two = planes[..., 0:SIZE:2] | planes[..., 1:SIZE:2] << SIZE
    four = two[..., None] >> 4 * torch.arange(5, dtype=INT, device=planes.device) & 15
    return (four * 0x204081 & 0x01010101).view(torch.bool).flatten(-2).unflatten(-1, (SIZE, SIZE))
