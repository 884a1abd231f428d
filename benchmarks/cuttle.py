"""Cuttle against a fixed player: an environment with 468 boolean observations and 994 actions, most of them illegal.

    fdqn train --env benchmarks.cuttle:make

The card game for two players of https://www.cuttle.cards/rules (version 1.0.2) without one-off effects, and so without
counters. Each player tries to reach a goal of points on the table: 21, or 14, 10, 5 and 0 with 1, 2, 3 and 4 kings.
Player 0 is dealt five cards and moves first, player 1 is dealt six. A turn is one of these moves:

    draw      one card; needs a deck that is not empty and fewer than eight cards in the hand
    pass      needs an empty deck; three passes in a row end the game as a draw
    scuttle   play a number card to scrap a number card of the opponent that has a lower rank, or the same rank and a
              lower suit (clubs < diamonds < hearts < spades); jacks on that card are scrapped too
    points    play a number card, ace (1) to 10, for its rank
    jack      take a number card of the opponent, unless the opponent has a queen; the jack stays on that card
    king      lower the goal
    queen     protect all cards from jacks
    glasses   play an 8 to see the opponent's hand, for the rest of the game

The hand limit differs from the full game, in which a player with eight cards may draw and then discards one.

The learner is player 0 or 1 with probability 1/2. The opponent (`greedy`) is part of the environment, so one step goes
from a decision of the learner to its next one. Reward: +1 for a win, -1 for a loss, 0 for a draw and before the end.

An observation has nine zones of 52 booleans, index 13 suit + rank: own hand, own table, own revealed cards, the
opponent's table, the opponent's revealed cards (the hand, with glasses), unseen cards (the deck and, without glasses,
the opponent's hand), scrap, stack, effect. Own revealed cards, stack and effect are those of one-offs: always False.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import tree
from fdqn.envs import episode
from fdqn.ops import masking
from fdqn.types import Env, EnvSpec, Step

SUITS, RANKS, CARDS = 4, 13, 52
ZONES = 9
HAND_LIMIT, PASSES = 8, 3
DEALT = 5, 6
NOISE = 1 + CARDS
TIME_LIMIT = 100
"""Decisions of the learner. No game lasts that long: every card is drawn and played at most once."""

# A card is a number, 4 rank + suit, so that a number card scuttles all number cards below it.
NUMBERS, EIGHT, JACK_CARD, QUEEN_CARD, KING_CARD = 40, 28, 40, 44, 48
"""Number of number cards, and the first card of each rank."""
PAIRS = NUMBERS * (NUMBERS - 1) // 2

# Actions
DRAW, PASS = 0, 1
SCUTTLE = 2
"""First of 780 actions: number card a scuttles t < a, at index a (a - 1) / 2 + t."""
POINTS = SCUTTLE + PAIRS
"""First of 40 actions, one per number card."""
JACK = POINTS + NUMBERS
"""First of 160 actions: the jack of suit s takes number card t, at index 40 s + t."""
KING = JACK + SUITS * NUMBERS
QUEEN, GLASSES, ACTIONS = KING + SUITS, KING + 2 * SUITS, KING + 3 * SUITS

# Places of a card. `^ 1` exchanges the players.
DECK, SCRAP = 0, 1
HAND, THEIR_HAND, TABLE, THEIR_TABLE, SEES, THEY_SEE = range(2, 8)
"""Hand and table of the player to move and of the other player; `SEES` is the place of an 8 played as glasses."""


class State(NamedTuple):
    """State of the game for the player to move."""

    place: Tensor
    """Place of each card, [..., 52] int8."""
    order: Tensor
    """Position of each card in the shuffled deck, [..., 52] int8; the lowest one of the deck is drawn next."""
    host: Tensor
    """Number card on which each jack lies, [..., 52] int8; -1 for all other cards."""
    passes: Tensor
    """Passes in a row, [...] int8."""
    time: Tensor
    """Decisions of the learner since the game started, [...] int64."""


def make(time_limit: int = TIME_LIMIT) -> Env:
    """Make the environment. Raises ValueError for a time limit below 1."""
    spec = episode.spec((ZONES * CARDS,), torch.float32, actions=ACTIONS, noise=NOISE, time_limit=time_limit)
    spec = spec._replace(obs_dtype=torch.bool)
    return Env(reset, partial(step, spec=spec), spec)


def reset(u: Tensor) -> tuple[State, Step]:
    """Shuffle and deal; as player 1, the learner decides after the opponent's first move.

    The learner is player 0 where `u[..., 0] < 1/2`. The rest of `u` orders the deck. Shapes: u [..., 53].
    """
    episode.check_reset(u, NOISE)
    first = u[..., 0] < 0.5
    dealt = deal(u[..., 1:])
    moved = swapped(play(dealt, greedy(dealt)))
    state = tree.where(first, dealt, moved)
    return episode.begin(state, observe(state), legal(state), u.dtype)


def step(state: State, action: Tensor, u: Tensor, spec: EnvSpec) -> tuple[State, Step]:
    """Make the learner's move and, unless it ends the game, the opponent's.

    Actions are not checked. Shapes: state and action [...]; u [..., 53].
    """
    episode.check_step(State, state, action, u, NOISE)
    mine = play(state, action)
    won = wins(mine)
    over = won | (mine.passes >= PASSES)
    answered = swapped(mine)
    theirs = play(answered, greedy(answered))
    lost = wins(theirs) & ~over
    state = tree.where(over, mine, swapped(theirs))._replace(time=state.time + 1)
    terminated = over | lost | (state.passes >= PASSES)
    reward = won.to(u.dtype) - lost.to(u.dtype)
    return episode.advance(state, observe(state), legal(state), reward, terminated, reset(u), spec.time_limit)


def deal(u: Tensor) -> State:
    """Order the cards by `u` and deal the first five to the player to move, the next six to the other.

    Shapes: u [..., 52].
    """
    card = torch.arange(CARDS, device=u.device)
    own, other = u.unsqueeze(-1), u.unsqueeze(-2)
    before = (other < own) | ((other == own) & (card < card.unsqueeze(-1)))
    order = before.sum(-1).to(torch.int8)
    place = torch.where(order < DEALT[0], HAND, torch.where(order < sum(DEALT), THEIR_HAND, DECK)).to(torch.int8)
    zero = torch.zeros_like(u[..., 0], dtype=torch.int64)
    return State(place, order, torch.full_like(order, -1), zero.to(torch.int8), zero)


def legal(state: State) -> Tensor:
    """Return the legal actions [..., 994] of the player to move."""
    hand = state.place == HAND
    targets = state.place[..., :NUMBERS] == THEIR_TABLE
    queen = (state.place[..., QUEEN_CARD:KING_CARD] == THEIR_TABLE).any(-1)
    deck = (state.place == DECK).any(-1)
    card, target = cards(torch.arange(SCUTTLE, POINTS, device=hand.device))
    jacks = hand[..., JACK_CARD:QUEEN_CARD, None] & (targets & ~queen[..., None])[..., None, :]
    allowed = {
        DRAW: (deck & (hand.sum(-1) < HAND_LIMIT))[..., None],
        PASS: ~deck[..., None],
        SCUTTLE: hand[..., card] & targets[..., target],
        POINTS: hand[..., :NUMBERS],
        JACK: jacks.flatten(-2),
        KING: hand[..., KING_CARD:],
        QUEEN: hand[..., QUEEN_CARD:KING_CARD],
        GLASSES: hand[..., EIGHT : EIGHT + SUITS],
    }
    return torch.cat(list(allowed.values()), -1)


def cards(action: Tensor) -> tuple[Tensor, Tensor]:
    """Return the card that an action plays and the card that it aims at, -2 for none. Shapes: all [...] int64."""
    pair = (action - SCUTTLE).clamp(0, PAIRS - 1)
    above = ((1 + (8 * pair + 1).float().sqrt()) / 2).long()  # the largest a with a (a - 1) / 2 <= pair
    below = pair - above * (above - 1) // 2
    jack = action - JACK
    starts = ((SCUTTLE, above), (POINTS, action - POINTS), (JACK, JACK_CARD + jack // NUMBERS))
    royals = (
        (KING, action - KING + KING_CARD),
        (QUEEN, action - QUEEN + QUEEN_CARD),
        (GLASSES, action - GLASSES + EIGHT),
    )
    card = torch.full_like(action, -2)
    for start, played in (*starts, *royals):
        card = torch.where(action >= start, played, card)
    target = torch.where(among(action, JACK, KING), jack % NUMBERS, -2)
    return card, torch.where(among(action, SCUTTLE, POINTS), below, target)


def among(action: Tensor, start: int, end: int) -> Tensor:
    """Return True for the actions from `start` to `end` - 1."""
    return (action >= start) & (action < end)


def play(state: State, action: Tensor) -> State:
    """Make a move; the result is still that of the player who made it. Shapes: state and action [...]."""
    action = action.long().unsqueeze(-1)
    card, target = cards(action)
    numbers = torch.arange(CARDS, device=action.device)
    scuttles = among(action, SCUTTLE, POINTS)
    played, on_target = numbers == card, state.host == target
    taken = (numbers == target) | on_target
    # In floats: with int8 here, the program compiled by inductor of torch 2.13 for CPUs never drew a card.
    top = torch.where(state.place == DECK, state.order.float(), CARDS)
    drawn = (action == DRAW) & (top < CARDS) & (top == top.amin(-1, keepdim=True))

    place = torch.where(taken, torch.where(scuttles, SCRAP, TABLE), state.place)
    place = torch.where(played, torch.where(scuttles, SCRAP, torch.where(action >= GLASSES, SEES, TABLE)), place)
    place = torch.where(drawn, HAND, place)
    host = torch.where(scuttles & on_target, -1, state.host)
    host = torch.where(played & among(action, JACK, KING), target, host)
    passes = torch.where(action[..., 0] == PASS, state.passes + 1, 0)
    kind = torch.int8
    return state._replace(place=place.to(kind), host=host.to(kind), passes=passes.to(kind))


def swapped(state: State) -> State:
    """Return the same state for the other player."""
    return state._replace(place=torch.where(state.place > SCRAP, state.place ^ 1, state.place))


def wins(state: State) -> Tensor:
    """Return True where the player to move has reached the goal. A move never brings the other player there."""
    return score(state) >= goal(kings(state))


def score(state: State) -> Tensor:
    """Return the points on the table [...] of the player to move."""
    numbers = torch.arange(NUMBERS, device=state.place.device)
    return torch.where(state.place[..., :NUMBERS] == TABLE, value(numbers), 0).sum(-1)


def value(card: Tensor) -> Tensor:
    """Return the points of a number card."""
    return card // SUITS + 1


def kings(state: State) -> Tensor:
    """Count the kings [...] of the player to move."""
    return (state.place[..., KING_CARD:] == TABLE).sum(-1)


def goal(kings: Tensor) -> Tensor:
    """Return the points that win with this number of kings: 21, 14, 10, 5, 0."""
    return 21 - 7 * (kings >= 1).long() - 4 * (kings >= 2).long() - 5 * (kings >= 3).long() - 5 * (kings >= 4).long()


def greedy(state: State) -> Tensor:
    """Return the move of the fixed player: the first that wins, else one with the largest lead in points after it.

    A scuttle gains the points of its target, a jack twice that. On a tie the first action of the table is taken, so
    the player prefers scuttles to points, and draws if no move gains points.
    """
    action = torch.arange(ACTIONS, device=state.place.device)
    card, target = cards(action)
    points, jack = among(action, POINTS, JACK), among(action, JACK, KING)
    own = torch.where(points, value(card), torch.where(jack, value(target), 0))
    theirs = torch.where(jack | among(action, SCUTTLE, POINTS), value(target), 0)
    reached = score(state).unsqueeze(-1) + own >= goal(kings(state).unsqueeze(-1) + among(action, KING, QUEEN))
    return masking.greedy(torch.where(reached, 1_000, own + theirs).float(), legal(state))


def observe(state: State) -> Tensor:
    """Return the zones that the player to move sees, [..., 468] bool."""
    place = state.place
    hidden, sees = place == THEIR_HAND, (place == SEES).any(-1, keepdim=True)
    none = torch.zeros_like(hidden)
    zones = (
        place == HAND, (place == TABLE) | (place == SEES), none,
        (place == THEIR_TABLE) | (place == THEY_SEE), hidden & sees,
        (place == DECK) | (hidden & ~sees), place == SCRAP, none, none,
    )  # fmt: skip
    return torch.stack(zones, -2).unflatten(-1, (RANKS, SUITS)).transpose(-1, -2).flatten(-3)
