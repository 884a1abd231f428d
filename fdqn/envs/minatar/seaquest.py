"""Seaquest: a submarine shoots fish and submarines, collects divers and has to come up for air with one aboard.

Each enemy that is shot gives a point. At the surface one diver leaves and the tank is filled; with six aboard all leave
and the remaining air gives points. Each time, enemies become faster and more frequent. The episode ends when the player
touches an enemy or its bullet, runs out of air, or surfaces without a diver. The planes are bow, stern, the player's
bullets, trails (the cells behind enemies and divers), the enemies' bullets, fish, submarines, the tank, divers aboard
and divers.
Young and Tian 2019, https://arxiv.org/abs/1903.03176

`u[..., 0]` decides on sticky actions, `u[..., 1]` chooses among the 48 kinds and places of a new enemy, `u[..., 2]`
among the 16 places of a new diver.

Collisions are resolved in order of age, so objects are stored in the order in which they appeared. A new object takes
the oldest slot, which is empty by then. The player shoots at most every five steps and a bullet flies for at most nine,
so two slots suffice; likewise two for divers, which appear every 30 steps and drift for at most 59. An enemy stays for
ten moves, during which at most 29 others appear (one a step, moves every third step); `tests/test_minatar.py` tries all
cases. The enemies' bullets do not differ and are stored as planes.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import tree
from fdqn.envs import episode
from fdqn.envs.minatar import board
from fdqn.types import Env

PLANES, NOISE = 10, 3
ENEMIES = 32  # slots; 30 are needed, and 32 fill whole vectors
TOP, LOWEST = 1, 8  # rows of enemies and divers; the submarine also surfaces in row 0
TANK = 200  # steps
SEATS = 6
COOL_DOWN = 5  # steps between two shots of the player
SHOT = 10  # steps that an enemy waits between shots
SPAWN, MOVE, FASTEST = 20, 5, 2  # steps between enemies; between moves of an enemy, at first and at least
NOBODY = 2 * ENEMIES  # larger than all ranks
LEVELS = 19  # of difficulty; at the last, an enemy appears every step
DIVER_SPAWN, DIVER_MOVE = 30, 6  # steps between divers, and between moves of a diver


class Thing(NamedTuple):
    """A bullet of the player or a diver [...], int32; column 0 if there is none."""

    x: Tensor
    y: Tensor
    dx: Tensor


class Enemies(NamedTuple):
    """[..., 32] int32; column 0 if there is none. In a state each enemy is packed into one number."""

    x: Tensor
    y: Tensor
    dx: Tensor
    armed: Tensor
    """1 for a submarine, 0 for a fish."""
    move_timer: Tensor
    shot_timer: Tensor


class State(NamedTuple):
    """int32."""

    x: Tensor
    y: Tensor
    dx: Tensor
    air: Tensor
    """Steps that the tank lasts."""
    aboard: Tensor
    """Divers; -1 after all six have left, which still counts as divers at the next surfacing."""
    up: Tensor
    """1 from surfacing to diving."""
    level: Tensor
    """Times surfaced, up to 19."""
    shot_timer: Tensor
    spawn_timer: Tensor
    oldest: Tensor
    """Slot of the oldest enemy, which the next one takes; slots wrap around."""
    bullets: tuple[Thing, Thing]
    """The older first."""
    divers: tuple[Thing, Thing]
    enemies: Tensor
    """[..., 32], packed: a sixth of the memory to read in each step."""
    east: Tensor
    """[..., 16], the plane of the enemies' bullets that fly right."""
    west: Tensor


def make(
    time_limit: int = board.TIME_LIMIT,
    dtype: torch.dtype = torch.float32,
    sticky: float = board.STICKY,
    ramping: bool = True,
) -> Env:
    """Make Seaquest; with `ramping` it gets harder with each surfacing. Other args as in `board.env`."""
    game = board.Game(start, partial(play, ramping=ramping), show)
    return board.env(game, PLANES, NOISE, time_limit, dtype, sticky)


def start(u: Tensor) -> State:
    """Place the submarine at the surface with a full tank. Shapes: u [..., 3]."""
    episode.check_reset(u, NOISE)
    zero = board.zeros(u)

    def none(*places: int) -> Tensor:
        return zero.clone() if not places else zero[..., None] + torch.zeros(places, dtype=board.INT, device=u.device)

    pairs = [Thing(none(), none(), none()) for _ in range(4)]
    return State(
        zero + (1 << 5), none(), zero - 1, zero + TANK, none(), zero + 1, none(), none(), zero + SPAWN, none(),
        (pairs[0], pairs[1]), (pairs[2], pairs[3]), none(ENEMIES), none(board.ROWS),
        none(board.ROWS),
    )  # fmt: skip


def play(state: State, action: Tensor, u: Tensor, time: Tensor, ramping: bool) -> tuple[State, Tensor, Tensor]:
    """Add enemies and divers; move or shoot; move the player's bullets, divers and enemies; then use air or surface.

    Shapes: state, action and time [...]; u [..., 3].
    """
    state = _steer(_spawn(state, u, time), action)
    enemies = unpack(state.enemies)
    state, enemies, shot = _fly(state, enemies)
    state = _drift(state, time)
    state, enemies, rammed, met = _attack(state, enemies)
    state, hit = _return_fire(state)
    state, earned, lost = _breathe(state, ramping)
    return state._replace(enemies=pack(enemies)), shot + met + earned, rammed | hit | lost


def show(state: State) -> Tensor:
    """Draw the planes [..., P, 16] of an observation."""
    enemies, divers, bullets = unpack(state.enemies), state.divers, state.bullets
    bow, stern = (board.cell(x, state.y) for x in (state.x, board.shift(state.x, -state.dx)))
    # Planes of fish, submarines and trails at once, in 30 bits.
    three = torch.where(enemies.armed > 0, enemies.x << board.SIZE, enemies.x)
    three = board.cells(three | board.shift(enemies.x, -enemies.dx) << 2 * board.SIZE, enemies.y)
    fish, submarines, trails = three & board.ALL, three >> board.SIZE & board.ALL, three >> 2 * board.SIZE
    for diver in divers:
        trails = trails | board.cell(board.shift(diver.x, -diver.dx), diver.y)
    tank = board.quotient(state.air.clamp(min=0), TANK // board.SIZE)
    aboard = state.aboard.clamp(min=0)
    full, seats = (board.cell(x, board.BOTTOM) for x in ((1 << tank) - 1, board.LAST - (board.LAST >> aboard)))
    ours, shown = (board.cell(a.x, a.y) | board.cell(b.x, b.y) for a, b in (bullets, divers))
    return torch.stack([bow, stern, ours, trails, state.east | state.west, fish, submarines, full, seats, shown], -2)


def pack(enemies: Enemies) -> Tensor:
    """Pack each enemy into one number: 10 bits of its column, 4 of its row, 1, 1, 3 and 4 of the rest."""
    right = (enemies.dx > 0).to(board.INT)
    timers = enemies.move_timer << 16 | enemies.shot_timer << 19
    return enemies.x | enemies.y << 10 | right << 14 | enemies.armed << 15 | timers


def unpack(enemies: Tensor) -> Enemies:
    """Undo `pack`."""
    x, y, dx = enemies & board.ALL, enemies >> 10 & 15, (enemies >> 13 & 2) - 1
    return Enemies(x, y, dx, enemies >> 15 & 1, enemies >> 16 & 7, enemies >> 19 & 15)


def _spawn(state: State, u: Tensor, time: Tensor) -> State:
    """Add an enemy if due and if none in its row moves the other way, and a diver every 30 steps."""
    zero = board.zeros(u)
    enemies, due = unpack(state.enemies), state.spawn_timer == 0
    kind = board.choice(u[..., 1], 48)
    x, y, dx = _newcomer(kind & 15)
    against = torch.where((enemies.y == y[..., None]) & (enemies.dx != dx[..., None]), enemies.x, 0)
    armed = (kind < 16).to(board.INT)  # a third
    wait = (MOVE - (state.level >> 1)).clamp(min=FASTEST)
    new = Enemies(x, y, dx, armed, wait, zero + SHOT)
    diver = Thing(*_newcomer(board.choice(u[..., 2], 16)))
    place = torch.where(due & ~board.somewhere(against), state.oldest, NOBODY)
    return state._replace(
        enemies=torch.where(_places(state.enemies) == place[..., None], pack(new)[..., None], state.enemies),
        oldest=torch.where(place == NOBODY, state.oldest, state.oldest + 1 & ENEMIES - 1),
        spawn_timer=torch.where(due, SPAWN - state.level, state.spawn_timer),
        divers=_push(state.divers, diver, (time > 0) & (board.remainder(time, DIVER_SPAWN) == 0)),
    )


def _newcomer(place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Column, row and direction of the 16 entry cells at the sides."""
    x, dx = board.side(place < 8)
    return x, TOP + (place & 7), dx


def _push(two: tuple[Thing, Thing], new: Thing, when: Tensor) -> tuple[Thing, Thing]:
    """Replace (older, younger) by (younger, new) where `when`."""
    return tree.map(lambda later, now: torch.where(when, later, now), (two[1], new), two)


def _steer(state: State, action: Tensor) -> State:
    """Move the submarine one cell and turn it that way, or shoot if the player may."""
    fires = (action == board.FIRE) & (state.shot_timer == 0)
    dx = torch.where(action == board.LEFT, -1, torch.where(action == board.RIGHT, 1, state.dx))
    return state._replace(
        x=board.walk(state.x, action),
        y=board.climb(state.y, action, 0, LOWEST),
        dx=dx,
        shot_timer=torch.where(fires, COOL_DOWN, state.shot_timer),
        bullets=_push(state.bullets, Thing(state.x, state.y, state.dx), fires),
    )


def _fly(state: State, enemies: Enemies) -> tuple[State, Enemies, Tensor]:
    """Move the player's bullets, the younger first; each removes the oldest fish, or else submarine, that it hits."""
    older, younger = (bullet._replace(x=board.shift(bullet.x, bullet.dx)) for bullet in state.bullets)
    state = state._replace(bullets=(older, younger))
    return _collide(state, enemies, enemies.x, 1, (1, 0))


def _drift(state: State, time: Tensor) -> State:
    """Take divers aboard, the younger first, if a seat is free, before and after their move if one is due."""
    moves, aboard, left = board.remainder(time, DIVER_MOVE) == DIVER_MOVE - 1, state.aboard, []
    for diver in reversed(state.divers):
        diver, aboard = _board(diver, state, aboard)
        diver = diver._replace(x=torch.where(moves, board.shift(diver.x, diver.dx), diver.x))
        diver, aboard = _board(diver, state, aboard)
        left.append(diver)
    return state._replace(aboard=aboard, divers=(left[1], left[0]))


def _board(diver: Thing, state: State, aboard: Tensor) -> tuple[Thing, Tensor]:
    """Remove the diver where it comes aboard, and count it."""
    boards = ((diver.x & state.x) != 0) & (diver.y == state.y) & (aboard < SEATS)
    return diver._replace(x=torch.where(boards, 0, diver.x)), aboard + boards.to(board.INT)


def _attack(state: State, old: Enemies) -> tuple[State, Enemies, Tensor, Tensor]:
    """Move enemies if due; they hit the player, or its bullets: the youngest first, submarines before fish.

    Submarines shoot if due, including those that left or were shot in this step.
    """
    moved = torch.where(old.move_timer == 0, board.shift(old.x, old.dx), 0)
    x = torch.where(old.move_timer == 0, moved, old.x)
    wait = (MOVE - (state.level >> 1)).clamp(min=FASTEST)[..., None]
    here = torch.where(old.y == state.y[..., None], state.x[..., None], 0)
    rammed = board.somewhere((old.x | x) & here)
    shot = torch.where((old.shot_timer == 0) & (old.x != 0) & (old.armed > 0), x, 0)
    both = board.cells(torch.where(old.dx > 0, shot, shot << board.SIZE), old.y)
    state = state._replace(east=state.east | both & board.ALL, west=state.west | both >> board.SIZE)
    new = old._replace(
        x=x,
        move_timer=torch.where(old.move_timer == 0, wait, old.move_timer - 1),
        shot_timer=torch.where(old.shot_timer == 0, SHOT, old.shot_timer - 1),
    )
    state, new, points = _collide(state, new, moved & ~here, -1, (0, 1))
    return state, new, rammed, points


def _collide(
    state: State, enemies: Enemies, targets: Tensor, sign: int, turns: tuple[int, int]
) -> tuple[State, Enemies, Tensor]:
    """Remove each bullet, in the order of `turns`, with one enemy among `targets` in the same cell; a point each.

    With sign +1 it is the oldest fish, or else the oldest submarine; with -1 the youngest submarine, or else fish.
    """
    after, points = [*state.bullets], torch.zeros_like(state.x)
    age = _places(enemies.x) - state.oldest[..., None] & ENEMIES - 1
    rank, x = sign * (age + ENEMIES * enemies.armed), enemies.x
    for turn in turns:
        bullet = state.bullets[turn]
        meets = torch.where(enemies.y == bullet.y[..., None], targets & x & bullet.x[..., None], 0)
        ranks = torch.where(meets != 0, rank, NOBODY)
        lowest = board.lowest(ranks)
        x = torch.where((meets != 0) & (ranks == lowest[..., None]), 0, x)
        after[turn] = bullet._replace(x=torch.where(lowest == NOBODY, bullet.x, 0))
        points = points + (lowest != NOBODY).to(board.INT)
    return state._replace(bullets=(after[0], after[1])), enemies._replace(x=x), points


def _return_fire(state: State) -> tuple[State, Tensor]:
    """Move the enemies' bullets; returns whether one hit the player before or after its move."""
    here = board.cell(state.x, state.y)
    east, west = state.east << 1 & board.ALL, state.west >> 1
    hit = board.somewhere((state.east | state.west | east | west) & here)
    return state._replace(east=east, west=west), hit


def _breathe(state: State, ramping: bool) -> tuple[State, Tensor, Tensor]:
    """Use air below the surface. On surfacing, one diver leaves, or all six for points, and the tank is filled.

    Surfacing without a diver and an empty tank end the episode.
    """
    below = state.y > 0
    arrives = ~below & (state.up == 0)
    docks = arrives & (state.aboard != 0)
    all_leave = docks & (state.aboard == SEATS)
    lost = (state.air <= 0) | (arrives & (state.aboard == 0))
    points = torch.where(all_leave, board.quotient(state.air, TANK // board.SIZE), 0)
    after = state._replace(
        air=torch.where(below, state.air - 1, torch.where(docks, TANK, state.air)),
        # As in the original, one more leaves after all six, which makes -1.
        aboard=torch.where(all_leave, -1, state.aboard - docks.to(board.INT)),
        up=torch.where(below, 0, torch.where(docks, 1, state.up)),
        level=(state.level + docks.to(board.INT) * ramping).clamp(max=LEVELS),
        shot_timer=(state.shot_timer - 1).clamp(min=0),
        spawn_timer=(state.spawn_timer - 1).clamp(min=0),
    )
    return after, points, lost


def _places(like: Tensor) -> Tensor:
    return torch.arange(ENEMIES, dtype=board.INT, device=like.device)
