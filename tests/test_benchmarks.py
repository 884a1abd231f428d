"""Code of the benchmarks whose errors would go unnoticed."""

import collections
import copy
import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fdqn.testing import laws


def module(name):
    """Import a file of `benchmarks`, which is not a package."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    there = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(there)
    return there


@pytest.mark.parametrize("seconds", [20e-6, 40e-6, 70e-6, 1e-3, 4e-3])
def test_reports_have_the_target_interval(seconds):
    """A report waits for the GPU, about 2 ms with refilling its queue: 2 % of a tenth of a second."""
    cadence = module("cadence")
    iterations = cadence.iterations_per_report(seconds)
    assert iterations % cadence.TARGET_PERIOD == 0
    assert 0.06 <= iterations * seconds <= 0.14


def test_slow_iterations_are_reported_every_target_period():
    cadence = module("cadence")
    assert cadence.iterations_per_report(0.1) == cadence.TARGET_PERIOD


# Cuttle: a reference in plain Python. A card is (rank 0 to 12, suit 0 to 3); tuples compare as scuttles do.

SUITS = "cdhs"
NAMES = [*map(str, range(11)), "J", "Q", "K"][1:]
NAMES[0] = "A"
CARDS = [(rank, suit) for rank in range(13) for suit in range(4)]
NUMBERS = CARDS[:40]
JACKS, QUEENS, KINGS, EIGHTS = ([(rank, suit) for suit in range(4)] for rank in (10, 11, 12, 7))
MOVES = [
    ("draw",), ("pass",), *(("scuttle", a, t) for a in NUMBERS for t in NUMBERS if t < a),
    *(("points", card) for card in NUMBERS), *(("jack", jack, t) for jack in JACKS for t in NUMBERS),
    *(("royal", king) for king in KINGS), *(("royal", queen) for queen in QUEENS),
    *(("glasses", eight) for eight in EIGHTS),
]  # fmt: skip


def card(name):
    """Return the card of a name such as "10s" or "Ad"."""
    return NAMES.index(name[:-1]), SUITS.index(name[-1])


class Table:
    """A game of two players; hands, points with the jacks on them, other cards on the table, glasses."""

    def __init__(self, deck):
        self.deck, self.scrap, self.passes = list(deck), set(), 0
        self.hands, self.points, self.royals, self.glasses = [set(), set()], [{}, {}], [set(), set()], [set(), set()]

    def moves(self, me):
        hand, target = self.hands[me], self.points[1 - me]
        guarded = bool(self.royals[1 - me] & set(QUEENS))

        def allowed(kind, *cards):
            if kind in ("draw", "pass"):
                return (bool(self.deck) and len(hand) < 8) if kind == "draw" else not self.deck
            if cards[0] not in hand or (len(cards) == 2 and cards[1] not in target):
                return False
            return not (kind == "jack" and guarded)

        return [allowed(*move) for move in MOVES]

    def play(self, me, kind, *cards):
        self.passes = self.passes + 1 if kind == "pass" else 0
        if kind == "draw":
            self.hands[me].add(self.deck.pop(0))
        self.hands[me] -= set(cards[:1])
        if kind == "points":
            self.points[me][cards[0]] = set()
        elif kind == "royal":
            self.royals[me].add(cards[0])
        elif kind == "glasses":
            self.glasses[me].add(cards[0])
        elif kind == "scuttle":
            self.scrap |= {*cards, *self.points[1 - me].pop(cards[1])}
        elif kind == "jack":
            self.points[me][cards[1]] = self.points[1 - me].pop(cards[1]) | {cards[0]}

    def score(self, me):
        return sum(rank + 1 for rank, _ in self.points[me])

    def reached(self, me):
        return self.score(me) >= (21, 14, 10, 5, 0)[len(self.royals[me] & set(KINGS))]

    def result(self):
        """Return the winner, "draw", or None while the game goes on."""
        return next((me for me in (0, 1) if self.reached(me)), "draw" if self.passes >= 3 else None)

    def greedy(self, me):
        def preference(move):
            after = copy.deepcopy(self)
            after.play(me, *move)
            return math.inf if after.reached(me) else after.score(me) - after.score(1 - me)

        return max(itertools.compress(MOVES, self.moves(me)), key=preference)

    def shown(self, me):
        """Return the set bits of the observation."""

        def table(player):
            jacks = set().union(*self.points[player].values())
            return {*self.points[player], *jacks, *self.royals[player], *self.glasses[player]}

        hidden, seen = set(self.hands[1 - me]), bool(self.glasses[me])
        zones = {
            0: self.hands[me], 1: table(me), 3: table(1 - me), 4: hidden if seen else set(),
            5: set(self.deck) | (set() if seen else hidden), 6: self.scrap,
        }  # fmt: skip
        return {52 * zone + 13 * suit + rank for zone, held in zones.items() for rank, suit in held}


def dealt(u):
    """Deal from uniforms [53]; return the game and the learner's number, after the opponent's first move if any."""
    deck = [CARDS[i] for i in sorted(range(52), key=lambda i: (u[1 + i], i))]
    table, me = Table(deck[11:]), 0 if u[0] < 0.5 else 1
    table.hands = [set(deck[:5]), set(deck[5:11])]
    if me:
        table.play(0, *table.greedy(0))
    return table, me


def test_cuttle_equals_a_game_in_plain_python():
    """Compare masks, observations, rewards and ends of 32 environments at every step."""
    cuttle = module("cuttle")
    env, count = cuttle.make(), 32
    generator = np.random.default_rng(0)
    u = generator.random((count, 53), dtype=np.float32)
    state, step = env.reset(torch.from_numpy(u))
    games, ends = [dealt(row) for row in u.tolist()], collections.Counter()
    for _ in range(60):
        assert step.legal.tolist() == [table.moves(me) for table, me in games]
        shown = [set(row.nonzero().flatten().tolist()) for row in step.obs]
        assert shown == [table.shown(me) for table, me in games]
        # Draws are rare among random moves; every third environment draws and passes while it can.
        actions = [
            int(row[:2].int().argmax()) if i % 3 == 0 and row[:2].any() else int(generator.choice(row.nonzero()[:, 0]))
            for i, row in enumerate(step.legal)
        ]
        u = generator.random((count, 53), dtype=np.float32)
        state, step = env.step(state, torch.tensor(actions), torch.from_numpy(u))
        for i, (table, me) in enumerate(games):
            table.play(me, *MOVES[actions[i]])
            if table.result() is None:
                table.play(1 - me, *table.greedy(1 - me))
            result = table.result()
            assert bool(step.terminated[i]) == (result is not None)
            assert float(step.reward[i]) == (0 if result in (None, "draw") else 1 if result == me else -1)
            assert set(step.next_obs[i].nonzero().flatten().tolist()) == table.shown(me)
            if result is not None:
                ends[result if result == "draw" else result == me] += 1
                games[i] = dealt(u[i].tolist())
    assert ends[True] >= 10
    assert ends[False] >= 100


def test_cuttle_obeys_the_laws_of_environments():
    cuttle = module("cuttle")
    laws.env(cuttle.make(), envs=3, steps=12)
    laws.time_limit(cuttle.make, limit=2, envs=4)


def position(cuttle, deck="", passes=0, jacks=None, **zones):
    """Return a state with the named cards in hand, their_hand, table, their_table; all others in the scrap or deck."""
    place, host = torch.full((52,), cuttle.SCRAP, dtype=torch.int8), torch.full((52,), -1, dtype=torch.int8)
    for zone, names in {"deck": deck, **zones}.items():
        for name in names.split():
            place[CARDS.index(card(name))] = getattr(cuttle, zone.upper())
    for jack, below in (jacks or {}).items():
        host[CARDS.index(card(jack))] = CARDS.index(card(below))
    zero = torch.tensor(0)
    return cuttle.State(place, torch.arange(52, dtype=torch.int8), host, zero.to(torch.int8) + passes, zero)


def move(kind, *names):
    return MOVES.index((kind, *map(card, names)))


def names_at(state, place):
    return {NAMES[CARDS[i][0]] + SUITS[CARDS[i][1]] for i in (state.place == place).nonzero().flatten().tolist()}


WINS = [
    ("7c", "7d 7h", ("points", "7c"), True),
    ("7c", "7d 6h", ("points", "7c"), False),
    ("7c", "7d Kc", ("points", "7c"), True),
    ("Kd", "10d Kc", ("royal", "Kd"), True),
    ("Kd", "9d Kc", ("royal", "Kd"), False),
    ("Kh", "5d Kc Kd", ("royal", "Kh"), True),
    ("Kh", "4d Kc Kd", ("royal", "Kh"), False),
    ("Ks", "Kc Kd Kh", ("royal", "Ks"), True),
    ("8c", "7d 6h", ("points", "8c"), True),
    ("8c", "7d 6h", ("glasses", "8c"), False),
]


@pytest.mark.parametrize(("hand", "table", "played", "won"), WINS)
def test_cuttle_goals(hand, table, played, won):
    """A player wins at 21, 14, 10, 5 and 0 points with 0 to 4 kings."""
    cuttle = module("cuttle")
    after = cuttle.play(position(cuttle, hand=hand, table=table), torch.tensor(move(*played)))
    assert bool(cuttle.wins(after)) == won


def test_cuttle_conformance():
    """Check scuttles, jacks, queens, the hand limit and passes in constructed positions."""
    cuttle = module("cuttle")

    def legal(state):
        return set(itertools.compress(MOVES, cuttle.legal(state).tolist()))

    def scuttles(**zones):
        return {kind for kind, *_ in legal(position(cuttle, **zones)) if kind == "scuttle"}

    assert scuttles(hand="9s", their_table="9h")
    assert not scuttles(hand="9h", their_table="9s")
    assert scuttles(hand="9c", their_table="8s Qc")
    assert not scuttles(hand="8s", their_table="9c")
    assert not scuttles(hand="10s", their_table="Kc Qc Jc")

    under = position(cuttle, hand="10s", their_table="4d Jc Jd 2c Jh", jacks={"Jc": "4d", "Jd": "4d", "Jh": "2c"})
    after = cuttle.play(under, torch.tensor(move("scuttle", "10s", "4d")))
    assert names_at(after, cuttle.THEIR_TABLE) == {"2c", "Jh"}
    assert {"10s", "4d", "Jc", "Jd"} <= names_at(after, cuttle.SCRAP)
    assert int((after.host >= 0).sum()) == 1

    steal = position(cuttle, hand="Js", table="7d Kd", their_table="7c Jc", jacks={"Jc": "7c"})
    after = cuttle.play(steal, torch.tensor(move("jack", "Js", "7c")))
    assert bool(cuttle.wins(after)), "one king: 14 points win"
    assert names_at(after, cuttle.TABLE) == {"7d", "Kd", "7c", "Jc", "Js"}
    guarded = position(cuttle, hand="Js", their_table="7c Qc")
    assert not any(kind == "jack" for kind, *_ in legal(guarded))

    full = position(cuttle, deck="Ac", hand="2c 3c 4c 5c 6c 7c 8c 9c")
    assert not {("draw",), ("pass",)} & legal(full)
    less = position(cuttle, deck="Ac", hand="2c 3c 4c 5c 6c 7c 8c")
    assert ("draw",) in legal(less)
    empty = position(cuttle, hand="2c", passes=1)
    assert legal(empty) == {("pass",), ("points", card("2c"))}

    env, u = cuttle.make(), torch.full((53,), 0.5)
    _, step = env.step(position(cuttle, hand="Jc", passes=2), torch.tensor(cuttle.PASS), u)
    assert bool(step.terminated)
    assert float(step.reward) == 0
    _, step = env.step(position(cuttle, hand="Jc", their_hand="Jd", passes=1), torch.tensor(cuttle.PASS), u)
    assert bool(step.terminated), "the opponent makes the third pass"
    _, step = env.step(position(cuttle, hand="2c", their_hand="Jd", passes=2), torch.tensor(move("points", "2c")), u)
    assert not bool(step.terminated)


def test_lunar_chooses_for_each_seed_the_checkpoint_with_its_best_training_return(tmp_path, monkeypatch):
    """Choose the first of equal returns, no missing one, and none of a report without a checkpoint."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    for step in (20, 40, 60):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    (tmp_path / "checkpoints" / "best").mkdir()
    rows = {20: (1.5, -3.0), 40: ("", 7.0), 50: (9.0, 9.0), 60: (1.0, 7.0)}
    lines = [f"{step},{seed},{x}" for step, row in rows.items() for seed, x in zip((3, 5), row, strict=True)]
    (tmp_path / "metrics.csv").write_text("step,seed,return\n" + "\n".join(lines) + "\n")
    assert module("lunar").best_steps(tmp_path) == {3: 20, 5: 40}


# Simulated runs on many machines


def simulated(learners=64, size=4, checkpoints=2, **given):
    scale = module("scale")
    costs = {"start": 2.0, "compile": 10.0, "load": 1.0, "train": 5.0, "checkpoint": 1e6, "merge": 0.5}
    cluster = {"machines": 2, "cores": 2, "bandwidth": 1e9, "spread": 0.0}
    for name in given:
        (costs if name in costs else cluster)[name] = given[name]
    found = scale.Costs(**costs), scale.Cluster(**cluster)
    return scale.simulate(*found, learners, size, checkpoints, np.random.default_rng(0))


@pytest.fixture
def beside_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")


def test_a_simulated_run_on_one_core_takes_the_sum_of_its_costs(beside_benchmarks):
    found = simulated(machines=1, cores=1, checkpoint=0.0)
    assert found.total == pytest.approx(16 * (2 + 1 + 4 * 5) + 10 + 64 * 0.5)
    assert found.bound == 64 * 5
    assert found.waiting == found.redone == 0
    assert simulated(machines=1, cores=1).total == pytest.approx(found.total + 16 * 2 * 4e6 / 1e9)


def test_a_simulated_run_is_as_slow_as_its_slowest_part(beside_benchmarks):
    assert simulated(checkpoint=0.0, compile=0.0).total == pytest.approx(4 * (2 + 1 + 4 * 5) + 64 * 0.5)
    writes = 64 * 2 * 1e6 / 1e6
    slow = simulated(bandwidth=1e6)
    assert writes <= slow.total - slow.merge <= writes + 100
    assert slow.waiting > simulated().waiting
    assert simulated(spread=0.3).total > simulated().total
    assert simulated(loss=0.99, train=500.0).redone > 0
    assert simulated(loss=0.99, train=500.0).total > simulated(train=500.0).total
    totals = [simulated(machines=machines).total for machines in (1, 2, 4, 8)]
    assert totals == sorted(totals, reverse=True)


def test_the_table_of_simulated_runs(beside_benchmarks):
    scale = module("scale")
    record = {"start_seconds": 2.0, "first_seconds": 20.0, "shard_seconds": [5.0] * 7, "whole_seconds": 40.0}
    record |= {"whole_compile_seconds": 8.0, "seeds": 16, "shards": 8, "steps": 1_000, "merge_seconds": 1.6}
    costs = scale.costs_of({**record, "checkpoint_bytes": 1e6}, 10_000)
    assert costs == scale.Costs(2.0, 15.0, 1.0, 20.0, 1e6, 0.1)
    table = scale.simulation_table(costs, 256, 4, 4).splitlines()
    assert all(line.count("|") == 10 for line in table)
    assert "one process | 40.0 s" in scale.overhead_table({**record, "equal_bits": True})
    row = {"alone": 100.0, "both": [98.0, 96.0]}
    weak = scale.weak_table({"seeds": 16, "rows": [row], "ratio": {"median": 0.97, "low": 0.97, "high": 0.97}})
    assert weak.endswith("| 16 | 100 | 0.970 [0.970, 0.970] |")
