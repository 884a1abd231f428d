"""Seaquest: a submarine shoots fish and submarines, collects divers, and must surface for air with a diver aboard.

Each enemy shot gives one point. At the surface one diver leaves and the tank is refilled; with six divers aboard all
leave, and the remaining air gives points. After each surfacing, enemies get faster and more frequent. The episode ends
when the submarine touches an enemy or its bullet, runs out of air or surfaces without a diver. The planes are bow,
stern, own bullets, trails (previous cells of enemies and divers), enemy bullets, fish, submarines, tank, divers aboard
and divers. Young and Tian 2019, https://arxiv.org/abs/1903.03176

`u[..., 0]` decides about sticky actions, `u[..., 1]` selects one of the 48 kinds and positions of a new enemy,
`u[..., 2]` one of the 16 positions of a new diver.

The order of collisions depends on age, so objects are stored in order of appearance, and a new object takes the oldest
slot, which is free by then. At most two own bullets exist at once: one is fired every five steps and flies for at most
nine. At most two divers exist: one appears every 30 steps and drifts for at most 59. An enemy exists for ten moves, in
which at most 29 others appear (one a step, a move every third step); `tests/test_minatar.py` enumerates the cases.
Enemy bullets are interchangeable and stored as planes.
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
ENEMIES = 32  # slots; 30 are needed, and 32 fill whole SIMD vectors
TOP, LOWEST = 1, 8  # rows of enemies and divers; the submarine also surfaces in row 0
TANK = 200  # steps
SEATS = 6
COOL_DOWN = 5  # steps between own shots
SHOT = 10  # steps between shots of an enemy
SPAWN, MOVE, FASTEST = 20, 5, 2  # initial steps between enemies; waits between moves: initial, shortest
NOBODY = 2 * ENEMIES  # larger than every rank
LEVELS = 19  # at the last level, an enemy appears every step
DIVER_SPAWN, DIVER_MOVE = 30, 6  # steps between divers, and between moves of a diver


class Thing(NamedTuple):
    """An own bullet or a diver [...], int32; column 0 if it does not exist."""

    x: Tensor
    y: Tensor
    dx: Tensor


class Enemies(NamedTuple):
    """Enemies [..., 32], int32; column 0 for an empty slot. In a state they are packed, one number per enemy."""

    x: Tensor
    y: Tensor
    dx: Tensor
    armed: Tensor
    """1 for a submarine, 0 for a fish."""
    move_timer: Tensor
    shot_timer: Tensor


class State(NamedTuple):
    """State of the game, int32."""

    x: Tensor
    y: Tensor
    dx: Tensor
    air: Tensor
    """Steps until the tank is empty."""
    aboard: Tensor
    """Number of divers aboard; -1 after all six have left, which counts as a diver at the next surfacing."""
    up: Tensor
    """1 from surfacing until the next dive."""
    level: Tensor
    """Number of surfacings, at most 19."""
    shot_timer: Tensor
    spawn_timer: Tensor
    oldest: Tensor
    """Slot of the oldest enemy, which the next enemy takes; slots wrap around."""
    bullets: tuple[Thing, Thing]
    """The older one first."""
    divers: tuple[Thing, Thing]
    enemies: Tensor
    """[..., 32], packed: a sixth of the memory traffic in each step."""
    east: Tensor
    """[..., 16], plane of the enemy bullets that fly right."""
    west: Tensor


def make(
    time_limit: int = board.TIME_LIMIT,
    dtype: torch.dtype = torch.float32,
    sticky: float = board.STICKY,
    ramping: bool = True,
) -> Env:
    """Make Seaquest; with `ramping` it gets harder at each surfacing. The other arguments are those of `board.env`."""
    game = board.Game(start, partial(play, ramping=ramping), show)
    return board.env(game, PLANES, NOISE, time_limit, dtype, sticky)


def start(u: Tensor) -> State:
    """Place the submarine at the surface, with a full tank. Shapes: u [..., 3]."""
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
    """Add enemies and divers; move or fire; move bullets, divers and enemies and collide them; then handle air and
    surfacing.

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
    """Return the planes."""
    enemies, divers, bullets = unpack(state.enemies), state.divers, state.bullets
    bow, stern = (board.cell(x, state.y) for x in (state.x, board.shift(state.x, -state.dx)))
    # Fish, submarines and trails share one plane of 30 bits.
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
    """Pack an enemy into one number: column 10 bits, row 4, direction 1, armed 1, move timer 3, shot timer 4."""
    right = (enemies.dx > 0).to(board.INT)
    timers = enemies.move_timer << 16 | enemies.shot_timer << 19
    return enemies.x | enemies.y << 10 | right << 14 | enemies.armed << 15 | timers


def unpack(enemies: Tensor) -> Enemies:
    """Unpack the numbers made by `pack`."""
    x, y, dx = enemies & board.ALL, enemies >> 10 & 15, (enemies >> 13 & 2) - 1
    return Enemies(x, y, dx, enemies >> 15 & 1, enemies >> 16 & 7, enemies >> 19 & 15)


def _spawn(state: State, u: Tensor, time: Tensor) -> State:
    """Add an enemy if its timer is up and its row has no enemy of the opposite direction; a diver every 30 steps."""
    zero = board.zeros(u)
    enemies, due = unpack(state.enemies), state.spawn_timer == 0
    kind = board.choice(u[..., 1], 48)
    x, y, dx = _newcomer(kind & 15)
    against = torch.where((enemies.y == y[..., None]) & (enemies.dx != dx[..., None]), enemies.x, 0)
    armed = (kind < 16).to(board.INT)  # a third of them
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
    """Return column, row and direction of the 16 positions at the sides."""
    x, dx = board.side(place < 8)
    return x, TOP + (place & 7), dx


def _push(two: tuple[Thing, Thing], new: Thing, when: Tensor) -> tuple[Thing, Thing]:
    """Drop the older object and append the new one, where `when` is true."""
    return tree.map(lambda later, now: torch.where(when, later, now), (two[1], new), two)


def _steer(state: State, action: Tensor) -> State:
    """Move the submarine one cell and turn it that way, or fire if it may."""
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
    """Move own bullets one cell, the younger first. Each removes itself and one enemy in its cell: the oldest fish,
    else the oldest submarine.
    """
    older, younger = (bullet._replace(x=board.shift(bullet.x, bullet.dx)) for bullet in state.bullets)
    state = state._replace(bullets=(older, younger))
    return _collide(state, enemies, enemies.x, 1, (1, 0))


def _drift(state: State, time: Tensor) -> State:
    """Let divers come aboard if a seat is free, the younger first; move the others if it is time, and try again."""
    moves, aboard, left = board.remainder(time, DIVER_MOVE) == DIVER_MOVE - 1, state.aboard, []
    for diver in reversed(state.divers):
        diver, aboard = _board(diver, state, aboard)
        diver = diver._replace(x=torch.where(moves, board.shift(diver.x, diver.dx), diver.x))
        diver, aboard = _board(diver, state, aboard)
        left.append(diver)
    return state._replace(aboard=aboard, divers=(left[1], left[0]))


def _board(diver: Thing, state: State, aboard: Tensor) -> tuple[Thing, Tensor]:
    """Return the diver, removed if it comes aboard, and the number of divers aboard."""
    boards = ((diver.x & state.x) != 0) & (diver.y == state.y) & (aboard < SEATS)
    return diver._replace(x=torch.where(boards, 0, diver.x)), aboard + boards.to(board.INT)


def _attack(state: State, old: Enemies) -> tuple[State, Enemies, Tensor, Tensor]:
    """Move enemies if it is time and collide them with the submarine or its bullets: the youngest first, submarines
    before fish.

    Submarines fire if it is time, even those that left the board or were shot in this step.
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
    """Collide bullets, in the order `turns`, with enemies whose columns are in `targets`; remove both, for one point
    each.

    With `sign` +1 a bullet hits the oldest fish, else the oldest submarine, in its cell; with -1 the last in that
    order.
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
    """Move enemy bullets one cell; return a flag for a hit before or after the move."""
    here = board.cell(state.x, state.y)
    east, west = state.east << 1 & board.ALL, state.west >> 1
    hit = board.somewhere((state.east | state.west | east | west) & here)
    return state._replace(east=east, west=west), hit


def _breathe(state: State, ramping: bool) -> tuple[State, Tensor, Tensor]:
    """Consume air below the surface; on surfacing, unload divers and refill the tank, or end the episode.

    One diver leaves, or all six for points. Surfacing without a diver ends the episode, as does an empty tank.
    """
    below = state.y > 0
    arrives = ~below & (state.up == 0)
    docks = arrives & (state.aboard != 0)
    all_leave = docks & (state.aboard == SEATS)
    lost = (state.air <= 0) | (arrives & (state.aboard == 0))
    points = torch.where(all_leave, board.quotient(state.air, TANK // board.SIZE), 0)
    after = state._replace(
        air=torch.where(below, state.air - 1, torch.where(docks, TANK, state.air)),
        # As in MinAtar, surfacing with all six leaves -1 divers.
        aboard=torch.where(all_leave, -1, state.aboard - docks.to(board.INT)),
        up=torch.where(below, 0, torch.where(docks, 1, state.up)),
        level=(state.level + docks.to(board.INT) * ramping).clamp(max=LEVELS),
        shot_timer=(state.shot_timer - 1).clamp(min=0),
        spawn_timer=(state.spawn_timer - 1).clamp(min=0),
    )
    return after, points, lost


def _places(like: Tensor) -> Tensor:
    return torch.arange(ENEMIES, dtype=board.INT, device=like.device)
