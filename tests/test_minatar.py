"""Compare the MinAtar games with the `minatar` package step by step. Its random choices are derived from uniforms.

The package is the reference if it is installed (`pip install --no-deps minatar`; it requires pandas and seaborn only
for plots). Its observations are [10, 10, planes], those of fdqn are [planes, 10, 10].
"""

import functools
from collections import Counter

import numpy as np
import pytest
import torch

from fdqn import envs, tree
from fdqn.envs.minatar import asterix, board, breakout, freeway, seaquest, space_invaders

GAMES = {
    "asterix": asterix, "breakout": breakout, "freeway": freeway, "seaquest": seaquest,
    "space_invaders": space_invaders,
}  # fmt: skip
EACH = pytest.mark.parametrize("name", GAMES)
INT = torch.int32


def generator(seed):
    return torch.Generator().manual_seed(seed)


def made(name, **settings):
    return envs.make(f"minatar:{name}", **settings)


# --- The package, with given random numbers --------------------------------------------------------------------------


class Dealt:
    """A generator that returns given results in turn."""

    def __init__(self):
        self.results = []

    def rand(self, *shape):
        return self.results.pop(0)

    def randint(self, low, high=None, size=None):
        result = self.results.pop(0)
        return result(low) if callable(result) else result


def half(yes):
    """Return a uniform below 1/2, or above it."""
    return 0.25 if yes else 0.75


def third(yes):
    return 0.1 if yes else 0.9


def deal_asterix(game, u):
    kind = int(u[1] * 6)
    return [half(kind < 3), third(kind % 3 == 0), lambda n: int(u[2] * n)]


def deal_freeway(game, u):
    kind = (u[1:] * 10).astype(int)
    return [1 + kind % 5, np.where(kind >= 5, 0.75, 0.25)]


def deal_seaquest(game, u):
    enemy, diver = int(u[1] * 48), int(u[2] * 16)
    results = [half(enemy % 16 < 8), third(enemy < 16), 1 + enemy % 8] if game.e_spawn_timer == 0 else []
    return results + ([half(diver < 8), 1 + diver % 8] if game.d_spawn_timer == 0 else [])


DEAL = {
    "asterix": deal_asterix,
    "breakout": lambda game, u: [int(u[1] * 2)],
    "freeway": deal_freeway,
    "seaquest": deal_seaquest,
    "space_invaders": lambda game, u: [],
}


class PackageGame:
    """A game of the package whose random choices are derived from the uniforms of fdqn."""

    def __init__(self, name, ramping):
        minatar = pytest.importorskip("minatar")
        self.name = name
        self.outer = minatar.Environment(name, difficulty_ramping=ramping)
        self.game, self.sticky, self.dealt = self.outer.env, Dealt(), Dealt()
        self.outer.random, self.game.random = self.sticky, self.dealt

    def reset(self, u):
        self.dealt.results = DEAL[self.name](self.game, u)
        self.outer.reset()
        self.outer.last_action = 0  # as in a new environment, and as in fdqn in every episode

    def step(self, action, u):
        self.sticky.results, self.dealt.results = [u[0]], DEAL[self.name](self.game, u)
        return self.outer.act(action)

    def planes(self):
        return self.outer.state().transpose(2, 0, 1)

    def place(self, state):
        """Set the package's game to a state of fdqn's game."""
        self.outer.last_action = int(state.last)
        self.game.terminal = False
        PLACE[self.name](self.game, state.game, int(state.time))


def column(bit):
    return int(bit).bit_length() - 1


def unpacked(rows):
    return np.array([[row >> c & 1 for c in range(10)] for row in rows[:10].tolist()], dtype=float)


def place_asterix(game, s, time):
    level = min(time // 102, 9)
    game.player_x, game.player_y = column(s.x), int(s.y)
    game.entities = [
        [column(s.thing[r]), r, bool(s.dx[r] > 0), bool(s.gold[r])] if s.thing[r] else None for r in range(1, 9)
    ]
    game.spawn_timer, game.move_timer = int(s.spawn_timer), int(s.move_timer)
    game.spawn_speed, game.move_speed = 10 - level, max(5 - level // 2, 1)
    game.ramp_index, game.ramp_timer = level, 100 - time % 102


def place_breakout(game, s, time):
    game.ball_x, game.ball_y, game.last_x, game.last_y = column(s.x), int(s.y), column(s.last_x), int(s.last_y)
    game.ball_dir = {(-1, -1): 0, (1, -1): 1, (1, 1): 2, (-1, 1): 3}[int(s.dx), int(s.dy)]
    game.pos, game.strike = column(s.paddle), bool(s.struck)
    game.brick_map = np.zeros((10, 10))
    game.brick_map[1:4] = unpacked(torch.stack([s.bricks >> 10 * row & 1023 for row in range(3)]))


def place_freeway(game, s, time):
    game.pos, game.move_timer, game.terminate_timer = int(s.y), int(s.pause), 2500 - time
    speeds = (s.dx * s.wait).tolist()
    game.cars = [[column(s.car[row]), row, int(s.timer[row]), speeds[row]] for row in range(1, 9)]


def things(s, *others):
    fields = (s.x.tolist(), s.y.tolist(), s.dx.tolist(), *(x.tolist() for x in others))
    return [[column(x), y, dx > 0, *rest] for x, y, dx, *rest in zip(*fields, strict=True) if x]


def place_seaquest(game, s, time):
    game.sub_x, game.sub_y, game.sub_or = column(s.x), int(s.y), bool(s.dx > 0)
    game.oxygen, game.diver_count, game.surface = int(s.air), int(s.aboard), bool(s.up)
    game.shot_timer, game.e_spawn_timer = int(s.shot_timer), int(s.spawn_timer)
    level = int(s.level)
    game.ramp_index, game.e_spawn_speed, game.move_speed = level, 20 - level, max(5 - level // 2, 2)
    game.d_spawn_timer = (30 - time % 30) % 30 if time else 30
    bullets, divers = (tree.stack(two) for two in (s.bullets, s.divers))
    game.f_bullets = things(bullets)
    game.divers = [[*diver, 5 - time % 6] for diver in things(divers)]
    crowd = tree.map(lambda x: x.roll(-int(s.oldest)), seaquest.unpack(s.enemies))
    enemies = things(crowd, crowd.armed, crowd.move_timer, crowd.shot_timer)
    game.e_subs = [[x, y, right, move, shot] for x, y, right, armed, move, shot in enemies if armed]
    game.e_fish = [[x, y, right, move] for x, y, right, armed, move, _ in enemies if not armed]
    game.e_bullets = [
        [c, r, right]
        for plane, right in ((s.east, True), (s.west, False))
        for r, c in np.argwhere(unpacked(plane)).tolist()
    ]


def place_space_invaders(game, s, time):
    game.pos, game.alien_dir = column(s.cannon), int(s.dx)
    game.alien_map, game.f_bullet_map, game.e_bullet_map = map(unpacked, (s.aliens, s.ours, s.theirs))
    game.enemy_move_interval, game.alien_move_timer = int(s.slowest), int(s.march_timer)
    game.alien_shot_timer = (10 - time % 10) % 10 if time else 10
    game.shot_timer = int(s.shot_timer)


PLACE = {
    "asterix": place_asterix, "breakout": place_breakout, "freeway": place_freeway, "seaquest": place_seaquest,
    "space_invaders": place_space_invaders,
}  # fmt: skip


# --- Mid-game states -------------------------------------------------------------------------------------------------


class Dice:
    """Random int32 tensors for `copies` games."""

    def __init__(self, copies, seed):
        self.copies, self.generator = copies, generator(seed)

    def __call__(self, low, high, *shape):
        """Sample whole numbers from low to high."""
        return torch.randint(low, high + 1, (self.copies, *shape), generator=self.generator, dtype=INT)

    def bit(self, *shape, none=0.0):
        present = torch.rand(self.copies, *shape, generator=self.generator) >= none
        return torch.where(present, 1 << self(0, 9, *shape), 0).to(INT)

    def sign(self, *shape):
        return 2 * self(0, 1, *shape) - 1

    def plane(self):
        return torch.where(torch.arange(16) < 10, self(0, 1023, 16), 0)


LANES = (torch.arange(16) >= 1) & (torch.arange(16) <= 8)
"""Rows in which objects move sideways."""


def anywhere_asterix(dice):
    thing = torch.where(LANES, dice.bit(16, none=0.4), 0).to(INT)
    state = asterix.State(dice.bit(), dice(1, 8), thing, dice.sign(16), dice(0, 1, 16), dice(0, 3), dice(0, 2))
    return state, dice(0, 1200)


def anywhere_breakout(dice):
    bricks = torch.where(dice(0, 2) == 0, 0, dice(0, breakout.WALL))
    bricks = bricks & torch.where(dice(0, 1) == 0, 0b1000010000_1000010000_1000010000, breakout.WALL).to(INT)
    state = breakout.State(
        dice.bit(), dice.bit(), dice(0, 8), dice.sign(), dice.sign(), dice.bit(), dice(0, 8), bricks, dice(0, 1)
    )
    return state, dice(0, 100)


def anywhere_freeway(dice):
    car = torch.where(LANES, dice.bit(16), 0).to(INT)
    state = freeway.State(dice(1, 9), dice(0, 2), car, dice.sign(16), dice(1, 5, 16), dice(0, 5, 16))
    return state, dice(2400, 2499)


def anywhere_space_invaders(dice):
    rows = torch.arange(16)
    aliens = dice.plane() & dice.plane() & torch.where(dice(0, 1, 1) == 0, dice.plane(), 1023)
    aliens[:, 2] |= dice.bit()  # at least one exists
    aliens = torch.where(rows < dice(4, 10, 1), aliens, 0).to(INT)
    one = torch.where(rows == 2, dice.bit()[:, None], 0)
    aliens = torch.where(dice(0, 2, 1) == 0, one, aliens).to(INT)  # the last alien of a wave
    sparse = dice.plane() & dice.plane() & dice.plane()
    ours = torch.where(((aliens & sparse) == 0) & (rows != 9), sparse, 0)
    theirs = dice.plane() & dice.plane() & dice.plane() & dice.plane()
    state = space_invaders.State(dice.bit(), aliens, ours, theirs, dice.sign(), dice(6, 12), dice(0, 3), dice(0, 4))
    return state, dice(0, 40)


def on_the_way_out(dice, most, dx, none):
    """Sample columns from which an object leaves after at most `most` moves; 0 if `most` is 0."""
    moves = 1 + (torch.rand(dx.shape, generator=dice.generator) * most).to(INT).clamp(max=9)
    position = torch.where(dx > 0, 10 - moves, moves - 1)
    present = (torch.rand(dx.shape, generator=dice.generator) >= none) & (most > 0)
    return torch.where(present, 1 << position, 0).to(INT)


def pair(x, y, dx):
    """Make two of seaquest's objects from fields [..., 2]."""
    return tuple(seaquest.Thing(*(field.to(INT)[..., i].clone() for field in (x, y, dx))) for i in range(2))


def anywhere_seaquest(dice):
    """Sample a crowd: many objects per cell, of both kinds and in all phases, each of which leaves before its slot is
    reused.
    """
    places = torch.arange(seaquest.ENEMIES)
    late = places >= len(places) - dice(0, 20, 1)  # slots are filled from the end
    rows, way = dice(1, 8, len(places)), dice.sign(9)
    rows = torch.where(dice(0, 1, 1) == 0, rows, 1 + rows % 2)
    dx = way.gather(-1, rows.long())
    x = torch.where(late, on_the_way_out(dice, ((places - 1) // 3).expand_as(dx), dx, none=0.2), 0).to(INT)
    crowd = seaquest.Enemies(x, rows, dx, *(dice(0, n, len(places)) for n in (1, 2, 3)))
    oldest = dice(0, 31)
    crowd = tree.map(lambda field: field.gather(-1, (places - oldest[:, None]).long() % len(places)), crowd)
    shot_timer, time, dx = dice(0, 4), dice(1, 29), dice.sign(2)
    flights = torch.stack([shot_timer, (shot_timer + 5).clamp(max=10)], -1)
    bullets = pair(on_the_way_out(dice, flights, dx, none=0.3), dice(1, 2, 2), dx)
    drifts, dx = torch.stack([5 - time // 6, 10 - time // 6], -1), dice.sign(2)
    divers = pair(on_the_way_out(dice, drifts, dx, none=0.3), dice(1, 3, 2), dx)
    planes = (torch.where(LANES, dice.plane() & dice.plane() & dice.plane(), 0) for _ in range(2))
    x, dx, y = dice.bit(), dice.sign(), dice(0, 4)
    dx = torch.where(x == 1, -1, torch.where(x == 512, 1, dx)).to(INT)  # it faces the side it came from
    up, air = torch.where(y == 0, dice(0, 1), 0).to(INT), dice(1, 200) // dice(1, 100) + 1
    state = seaquest.State(
        x,
        y,
        dx,
        air,
        dice(-2, 6),
        up,
        dice(0, 19),
        shot_timer,
        dice(0, 3),
        oldest,
        bullets,
        divers,
        seaquest.pack(crowd),
        *planes,
    )
    return state, time + 30 * dice(0, 2)


ANYWHERE = {
    "asterix": anywhere_asterix, "breakout": anywhere_breakout, "freeway": anywhere_freeway,
    "seaquest": anywhere_seaquest, "space_invaders": anywhere_space_invaders,
}  # fmt: skip


def anywhere(name, copies, seed):
    dice = Dice(copies, seed)
    state, time = ANYWHERE[name](dice)
    return board.State(tree.map(lambda x: x.to(INT), state), dice(0, 5), time.long())


# --- The walk --------------------------------------------------------------------------------------------------------


def careful(env, state, u, random):
    """Select, among the six actions, one that does not end the game in this step and gives a point, if there is one."""
    six = tree.map(lambda x: x.expand(6, *x.shape), state)
    actions = torch.arange(6)[:, None].expand(6, len(random))
    _, step = env.step(six, actions, u.expand(6, *u.shape))
    chance = torch.rand(6, len(random), generator=generator(int(random.sum())))
    return (step.reward - 10 * step.terminated.float() + chance).argmax(0)


def walk(name, env, copies, steps, seed=0, fraction=0.0, starts=None, ramping=True, change=None):
    """Compare `env` with the package for steps * copies steps; return the events that occurred.

    Actions are random, except for the given fraction of careful ones. In every second game, episodes start in states of
    `starts(copies, seed)`. `change(u, actions)` alters both in advance.
    """
    package_games = [PackageGame(name, ramping) for _ in range(copies)]
    chance = generator(seed)
    u = torch.rand(steps + 1, copies, env.spec.noise, generator=chance)
    actions = torch.randint(6, (steps, copies), generator=chance)
    if change:
        u, actions = change(u, actions)
    cautious = torch.rand(steps, copies, generator=chance) < fraction
    dealt = u.numpy()
    state, step = env.reset(u[0])
    for i, package_game in enumerate(package_games):
        package_game.reset(dealt[0, i])
    met = Counter()

    def begin(which, state, t):
        """Start some of the new episodes in mid-game states."""
        chosen = which & (torch.arange(copies) % 2 == 0)
        if starts is None or not chosen.any():
            return state
        other = starts(copies, seed + t)
        for i in chosen.nonzero().flatten().tolist():
            package_games[i].place(tree.index(other, i))
        pick = lambda new, old: torch.where(chosen.reshape(-1, *[1] * (old.dim() - 1)), new, old)  # noqa: E731
        return tree.map(pick, other, state)

    assert np.array_equal(step.obs.numpy(), [package_game.planes() for package_game in package_games])
    state = begin(torch.ones(copies, dtype=torch.bool), state, 0)
    for t in range(steps):
        action = actions[t]
        if cautious[t].any():
            action = torch.where(cautious[t], careful(env, state, u[t + 1], action), action)
        before = [LOOK[name](package_game.game) for package_game in package_games]
        kind = [(x.shape, x.dtype) for x in tree.leaves(state)]
        state, step = env.step(state, action, u[t + 1])
        assert kind == [(x.shape, x.dtype) for x in tree.leaves(state)]
        results = [
            package_game.step(int(a), v) for package_game, a, v in zip(package_games, action, dealt[t + 1], strict=True)
        ]
        reward, terminated = (np.array(x) for x in zip(*results, strict=True))
        assert np.array_equal(step.next_obs.numpy(), [package_game.planes() for package_game in package_games])
        assert np.array_equal(step.reward.numpy(), reward)
        assert np.array_equal(step.terminated.numpy(), terminated)
        for package_game, old, points, ended in zip(package_games, before, reward, terminated, strict=True):
            met.update(EVENTS[name](old, LOOK[name](package_game.game), points, ended))
        for i in np.flatnonzero(terminated):
            package_games[i].reset(dealt[t + 1, i])
            assert np.array_equal(step.obs[i].numpy(), package_games[i].planes())
        met["end"] += int(terminated.sum())
        met["points"] += int(reward.sum())
        if terminated.any():
            state = begin(step.terminated, state, t + 1)
    return met


LOOK = {
    "asterix": lambda g: (g.spawn_speed, g.move_speed),
    "breakout": lambda g: int(g.brick_map.sum()),
    "freeway": lambda g: (g.pos, g.terminate_timer),
    "seaquest": lambda g: (
        g.diver_count, g.oxygen, g.ramp_index, g.sub_y, g.surface, len(g.e_fish) + len(g.e_subs), len(g.divers),
        len(g.f_bullets),
    ),
    "space_invaders": lambda g: (g.ramp_index, g.enemy_move_interval, g.alien_dir, int(g.alien_map.sum())),
}  # fmt: skip
"""Values of the package's game recorded before and after a step."""


def seaquest_events(old, new, points, ended):
    divers, air, _, _, up, _, _, _ = old
    now, _, level, y, _, enemies, drifting, bullets = new
    arrives = y == 0 and not up
    return [
        name
        for name, met in (
            ("came aboard", now > divers),
            ("all six left", arrives and now == -1 and divers > 0),
            ("one left", arrives and 0 < divers < 6),
            ("one left of none", arrives and divers < 0),
            ("alone", ended and arrives and divers == 0),
            ("no air", ended and air <= 0),
            ("top level", level == 19),
            ("two points", points > 1),
            (f"{enemies} enemies", True),
            (f"{bullets} bullets", True),
            (f"{drifting} divers", True),
        )
        if met
    ]


EVENTS = {
    "asterix": lambda old, new, points, ended: ["top level"] if new == (1, 1) else [],
    "breakout": lambda old, new, points, ended: ["refilled"] if new > old else [],
    "freeway": lambda old, new, points, ended: (
        (["hit"] if new[0] == 9 and old[0] < 8 and not points else []) + (["time"] if ended and new[1] < 0 else [])
    ),
    "seaquest": seaquest_events,
    "space_invaders": lambda old, new, points, ended: (
        (["wave"] if new[3] == 24 > old[3] else [])
        + (["faster"] if new[0] > old[0] else [])
        + (["fastest"] if new[1] == 6 else [])
        + (["turn"] if new[2] != old[2] else [])
    ),
}


@EACH
@pytest.mark.parametrize("seed", [0, 1])
def test_same_path_as_the_package_at_random(name, seed):
    """Play 10,000 steps per game: 100 games of 100 steps; in freeway, four games of the full 2,501 steps."""
    whole = name == "freeway" and seed == 0
    met = walk(name, made(name), *((4, 2_510) if whole else (100, 100)), seed)
    assert met["end"] >= (4 if whole else 0 if name == "freeway" else 100)
    assert met["points"] > 0 or name == "freeway"


REACHED = {
    "asterix": {"top level"},
    "breakout": {"refilled"},
    "freeway": {"hit", "time"},
    "seaquest": {
        "came aboard", "all six left", "one left", "one left of none", "alone", "no air", "top level", "15 enemies",
        "2 bullets", "2 divers",
    },
    "space_invaders": {"wave", "faster", "fastest", "turn"},
}  # fmt: skip


@pytest.mark.parametrize("fraction", [0.0, 0.8])
@EACH
def test_same_path_from_mid_game_states(name, fraction):
    met = walk(name, made(name), 80, 80, seed=5, fraction=fraction, starts=functools.partial(anywhere, name))
    assert REACHED[name] - set(met) == set()


@EACH
def test_same_path_of_careful_play(name):
    met = walk(name, made(name), 20, 150, seed=7, fraction=0.95)
    assert met["points"] > 0 or name == "freeway"


@pytest.mark.parametrize("name", ["asterix", "seaquest", "space_invaders"])
def test_same_path_without_ramping(name):
    """Play 20 games of 250 steps of asterix, in which difficulty would increase twice; start others in mid-game."""
    if name == "asterix":
        walk(name, made(name, ramping=False), 20, 250, seed=3, fraction=0.9, ramping=False)
        return

    def easy(copies, seed):
        state = anywhere(name, copies, seed)
        return state._replace(game=state.game._replace(level=0 * state.last)) if name == "seaquest" else state

    met = walk(name, made(name, ramping=False), 60, 80, seed=3, starts=easy, ramping=False)
    assert met["faster"] == met["top level"] == 0
    assert met["wave"] + met["one left"] > 0


def duel(copies, seed):
    """Set up two own bullets that fly towards each other and are about to meet in a cell with many enemies."""
    dice, state = Dice(copies, seed), anywhere("seaquest", copies, seed)
    right = dice(0, 1, 1) > 0
    apart = torch.tensor([6, 8])
    x, dx = torch.where(right, apart, 9 - apart), torch.where(right, torch.tensor([1, -1]), torch.tensor([-1, 1]))
    bullets = pair(1 << x, torch.ones_like(x), dx)
    near = 1 << (torch.where(right, 7, 2) + dice(-1, 1, seaquest.ENEMIES))
    enemies = seaquest.unpack(state.game.enemies)
    enemies = enemies._replace(
        x=torch.where(enemies.x > 0, near, 0).to(INT),
        y=torch.ones_like(enemies.y),
        dx=enemies.dx[:, :1].expand_as(enemies.dx).clone(),
    )
    game = state.game._replace(
        bullets=bullets, enemies=seaquest.pack(enemies), shot_timer=4 + 0 * state.last, y=8 + 0 * state.last
    )
    return state._replace(game=game)


def meet_in_duels():
    """Play three steps; the queues are not designed for such crowds."""
    return walk("seaquest", made("seaquest"), 300, 3, starts=duel)


def test_two_bullets_of_seaquest_in_one_cell():
    met = meet_in_duels()
    assert met["two points"] > 50


def crowded(u, actions):
    """Set up new enemies in a row with one direction, so that none is rejected, and a game that pauses until they
    exist.
    """
    kind = (u[..., 1] * 48).long()
    kind = kind // 16 * 16 + kind % 8 + 8 * (kind % 2)
    return torch.stack([u[..., 0], (kind + 0.5) / 48, u[..., 2]], -1), torch.where(
        torch.arange(len(actions))[:, None] < 40, 0, actions
    )


def hardest(copies, seed):
    state, _ = made("seaquest").reset(torch.zeros(copies, 3))
    return state._replace(game=state.game._replace(level=state.game.level + 19, spawn_timer=0 * state.last))


def test_seaquest_with_the_most_possible_enemies():
    """Leave 29 enemies after a step in which there were 30, and then dive into them."""
    met = walk("seaquest", made("seaquest"), 60, 90, seed=1, fraction=0.7, starts=hardest, change=crowded)
    assert met["29 enemies"] > 0
    assert met["30 enemies"] == 0
    assert met["points"] > 50


def test_slots_of_seaquests_enemies_suffice():
    """Enumerate the life of an enemy (surfacing at most every other step) and count the enemies that appear in it."""

    def wait(level):
        return max(5 - level // 2, 2)

    @functools.cache
    def most(level, spawn_timer, moves, timer, may_surface):
        moves, timer = (moves + 1, wait(level)) if timer == 0 else (moves, timer - 1)
        if moves == 10:
            return 0
        spawn_timer = max(spawn_timer - 1, 0)
        counts = []
        for surfaces in (False, True) if may_surface else (False,):
            after = min(level + surfaces, 19)
            comes = spawn_timer == 0
            counts.append(comes + most(after, 20 - after if comes else spawn_timer, moves, timer, not surfaces))
        return max(counts)

    others = max(most(level, 20 - level, 0, wait(level), True) for level in range(20))
    assert others == 29
    assert others < seaquest.ENEMIES


def test_episodes_are_independent():
    """Check that an episode starts with "nothing". The package repeats the last action of the previous episode."""
    env = made("breakout", time_limit=1)
    state, _ = env.reset(torch.zeros(2, 2))
    state, _ = env.step(state, torch.tensor([board.LEFT, board.RIGHT]), torch.full((2, 2), 0.5))
    assert state.last.tolist() == [0, 0]
    state, step = env.step(state, torch.tensor([board.LEFT, board.RIGHT]), torch.tensor([[0.05, 0.5]] * 2))
    assert torch.equal(step.next_obs[0], step.next_obs[1])


@pytest.mark.parametrize(("u", "expected"), [(0.0999, board.LEFT), (0.1001, board.RIGHT)])
def test_sticky_actions(u, expected):
    env = made("breakout")
    state, _ = env.reset(torch.zeros(1, 2))
    state, _ = env.step(state, torch.tensor([board.LEFT]), torch.full((1, 2), 0.5))
    state, _ = env.step(state, torch.tensor([board.RIGHT]), torch.tensor([[u, 0.5]]))
    assert state.last.item() == expected
    for sticky, action in ((0.0, board.RIGHT), (1.0, board.NOTHING)):
        env = made("breakout", sticky=sticky)
        state, _ = env.reset(torch.zeros(1, 2))
        state, _ = env.step(state, torch.tensor([board.RIGHT]), torch.tensor([[u, 0.5]]))
        assert state.last.item() == action


def test_sticky_must_be_a_probability():
    with pytest.raises(ValueError, match=r"sticky: expected a probability in \[0, 1\], got 1\.5"):
        made("asterix", sticky=1.5)
    with pytest.raises(TypeError, match="sticky: expected a number, got 'often'"):
        made("asterix", sticky="often")


def test_enemies_are_packed():
    dice = Dice(50, 0)
    fields = dice.bit(32), dice(0, 8, 32), dice.sign(32), dice(0, 1, 32), dice(0, 5, 32), dice(0, 10, 32)
    enemies = seaquest.Enemies(*fields)
    assert tree.equal(seaquest.unpack(seaquest.pack(enemies)), enemies)


def test_the_board():
    dice = Dice(5, 0)
    x, y, planes = dice.bit(32), dice(0, 9, 32), dice.plane()
    drawn = torch.zeros(5, 10, 10)
    for game in range(5):
        for bit, row in zip(x[game].tolist(), y[game].tolist(), strict=True):
            drawn[game, row, column(bit)] = 1
    shown = np.array([unpacked(plane) for plane in board.cells(x, y)])
    assert np.array_equal(shown, drawn.numpy())
    assert torch.equal(board.cells(x[:, :1], y[:, :1]), board.cell(x[:, 0], y[:, 0]))
    assert board.ones(torch.arange(1024)).tolist() == [n.bit_count() for n in range(1024)]
    assert board.union(planes).tolist() == [functools.reduce(int.__or__, plane) for plane in planes.tolist()]
    for right in (1, -1):
        moved = board.shift(planes, torch.tensor(right))
        expected = [np.roll(np.pad(unpacked(plane), ((0, 0), (1, 1))), right, 1)[:, 1:-1] for plane in planes]
        assert np.array_equal([unpacked(plane) for plane in moved], expected)
    x = torch.arange(-5, 2_000)
    for n in (2, 6, 20, 30, 102):
        assert torch.equal(board.quotient(x, n), (x // n).to(INT))
        assert torch.equal(board.remainder(x, n), (x % n).to(INT))
    for n in range(1, 50):
        assert board.choice(torch.tensor([0.0, 1 - 2**-24]), n).tolist() == [0, n - 1]


# --- Planted bugs ----------------------------------------------------------------------------------------------------


def youngest_first(collide):
    return lambda state, enemies, targets, sign, turns: collide(state, enemies, targets, -sign, turns)


def other_turns(collide):
    return lambda state, enemies, targets, sign, turns: collide(state, enemies, targets, sign, turns[::-1])


def right_one_of_two(nearest):
    def mirrored(rows):
        return sum((rows >> c & 1) << (9 - c) for c in range(10)).to(INT)

    return lambda aliens, cannon: mirrored(nearest(mirrored(aliens), mirrored(cannon)))


PLANTED = pytest.mark.parametrize(
    ("name", "module", "attribute", "value"),
    [
        ("asterix", asterix, "RAMP", 101),
        ("asterix", asterix, "LEVELS", 8),
        ("breakout", breakout, "TOP", 2),
        ("breakout", board, "STICKY", 0.2),
        ("freeway", freeway, "PAUSE", 2),
        ("freeway", freeway, "STEPS", 2_500),
        ("seaquest", seaquest, "FASTEST", 1),
        ("seaquest", seaquest, "SEATS", 5),
        ("seaquest", seaquest, "DIVER_MOVE", 5),
        ("seaquest", seaquest, "DIVER_SPAWN", 36),
        ("seaquest", seaquest, "TANK", 180),
        ("space_invaders", space_invaders, "FASTEST", 7),
        ("space_invaders", space_invaders, "COOL_DOWN", 4),
        ("space_invaders", space_invaders, "_nearest", right_one_of_two),
    ],
)


def spoiled(monkeypatch, name, module, attribute, value):
    """Return the game with a planted bug."""
    monkeypatch.setattr(module, attribute, value(getattr(module, attribute)) if callable(value) else value)
    return made(name, **({"sticky": value} if attribute == "STICKY" else {}))


@PLANTED
def test_the_walk_rejects_planted_bugs(monkeypatch, name, module, attribute, value):
    env = spoiled(monkeypatch, name, module, attribute, value)
    with pytest.raises(AssertionError):
        walk(name, env, 80, 80, seed=5, starts=functools.partial(anywhere, name))


@pytest.mark.parametrize("places", [8, 16])
def test_the_crowd_rejects_too_few_slots(monkeypatch, places):
    monkeypatch.setattr(seaquest, "ENEMIES", places)
    with pytest.raises(AssertionError):
        walk("seaquest", made("seaquest"), 20, 60, starts=hardest, change=crowded)


@pytest.mark.parametrize("plant", [youngest_first, other_turns])
def test_the_duel_rejects_another_order(monkeypatch, plant):
    monkeypatch.setattr(seaquest, "_collide", plant(seaquest._collide))
    with pytest.raises(AssertionError):
        meet_in_duels()
