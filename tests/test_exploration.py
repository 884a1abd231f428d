"""Exploration: actions are legal, frequencies are correct, and randomness comes only from arguments."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.func import vmap

from fdqn import random
from fdqn.ops import exploration, masking
from fdqn.testing import asserts, laws, strategies

# Keys are fixed, so tests of distributions are deterministic; their bounds would fail by chance once in 10,000.
CHANCE = 1e-4


@given(strategies.q_batches(), st.data(), st.floats(0, 1, width=32))
def test_explored_actions_are_legal(batch, data, epsilon):
    q, legal = batch
    u = data.draw(strategies.uniforms((*q.shape[:-1], 2)))
    laws.legal_only(partial(exploration.epsilon_greedy, epsilon=epsilon, u=u), q, legal)
    laws.legal_only(lambda q, legal: exploration.uniform(legal, u[:, 0]), q, legal)
    laws.masked(partial(exploration.epsilon_greedy, epsilon=epsilon, u=u), q, legal)


@given(strategies.q_batches(), st.data())
def test_epsilon_0_is_greedy_and_1_is_uniform(batch, data):
    q, legal = batch
    u = data.draw(strategies.uniforms((*q.shape[:-1], 2)))
    asserts.assert_trees_equal(masking.greedy(q, legal), exploration.epsilon_greedy(q, legal, 0.0, u))
    asserts.assert_trees_equal(exploration.uniform(legal, u[:, 1]), exploration.epsilon_greedy(q, legal, 1.0, u))


def test_epsilon_0_never_explores():
    """Check that a uniform of exactly 0 does not explore."""
    u = torch.tensor([[0.0, 0.9]])
    assert exploration.epsilon_greedy(
        torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool), 0.0, u
    ).tolist() == [0]


def test_no_legal_action_raises_or_gives_0():
    legal, u = torch.tensor([[True, False], [False, False]]), torch.full((2, 2), 0.9)
    with pytest.raises(ValueError, match=r"legal\[1\]: expected at least one legal action, got none"):
        exploration.uniform(legal, u[:, 0])
    with pytest.raises(ValueError, match=r"legal\[1\]: expected at least one legal action, got none"):
        exploration.epsilon_greedy(torch.ones(2, 2), legal, 0.5, u)
    assert vmap(exploration.uniform)(legal, u[:, 0])[1] == 0
    assert vmap(exploration.epsilon_greedy, (0, 0, None, 0))(torch.ones(2, 2), legal, 0.5, u)[1] == 0


def test_uniform_frequencies():
    legal = torch.tensor([True, False, True, True, False]).expand(30_000, 5)
    chosen = exploration.uniform(legal, random.uniform(random.key(2), (30_000,)))
    counts = torch.bincount(chosen, minlength=5)
    assert counts[[1, 4]].tolist() == [0, 0]
    assert stats.chisquare(counts[[0, 2, 3]].numpy()).pvalue > CHANCE


def test_exploration_rate_is_epsilon():
    q, legal = torch.tensor([0.0, 1.0]).expand(30_000, 2), torch.ones(30_000, 2, dtype=torch.bool)
    u = random.uniform(random.key(4), (30_000, 2))
    other = (exploration.epsilon_greedy(q, legal, 0.3, u) == 0).sum()
    assert stats.binomtest(int(other), 30_000, 0.15).pvalue > CHANCE


def test_the_largest_uniform_selects_the_last_of_many_actions():
    """Check that the action is legal although u times a large count rounds up to the count in float32."""
    for count in (1, 2, 3, 7, 1000, 4097):
        legal = torch.ones(1, count, dtype=torch.bool)
        u = torch.tensor([1 - 2.0**-23])
        assert exploration.uniform(legal, u).item() == count - 1
        laws.legal_only(lambda q, legal: exploration.uniform(legal, u), torch.zeros(1, count), legal)


@pytest.mark.parametrize("u", [-0.5, 1.0, 1.5, float("nan"), float("inf")])
def test_unreadable_uniforms_out_of_range_give_a_legal_action(u):
    legal = torch.tensor([[False, True, True, False]])
    one = torch.tensor([u])
    with pytest.raises(ValueError, match=r"^u\[0\]: expected numbers in \[0, 1\)"):
        exploration.uniform(legal, one)
    assert vmap(exploration.uniform)(legal, one).item() in (1, 2)
    chosen = vmap(exploration.epsilon_greedy, (0, 0, None, 0))(torch.zeros(1, 4), legal, 1.0, one.expand(1, 2))
    assert chosen.item() in (1, 2)


def test_uniforms_of_half_precision_are_refused():
    """Check that float16 and bfloat16, which cannot reach all of 300 actions, raise."""
    legal = torch.ones(1, 300, dtype=torch.bool)
    for dtype in (torch.float16, torch.bfloat16):
        for call in (exploration.uniform, vmap(exploration.uniform)):
            with pytest.raises(TypeError, match=f"^u: expected torch.float32 or torch.float64, got {dtype}"):
                call(legal, torch.tensor([0.5], dtype=dtype))


Q = torch.tensor([[[1.0, 2.0, 3.0], [0.5, -1.0, 0.1]]])
LEGAL = torch.tensor([[[True, True, False], [True, False, True]]])
U = torch.tensor([[[0.1, 0.7], [0.9, 0.2]]])


def test_laws_of_a_function():
    epsilon = torch.tensor([[0.5, 0.3]])
    laws.pure(exploration.epsilon_greedy, Q, LEGAL, epsilon, U)
    laws.ranked(exploration.epsilon_greedy, Q, LEGAL, epsilon, U, leading=2)
    laws.compiled(exploration.epsilon_greedy, Q, LEGAL, epsilon, U)
    laws.ranked(exploration.uniform, LEGAL, U[..., 0], leading=2)


def test_epsilon_may_differ_between_seeds():
    chosen = torch.func.vmap(exploration.epsilon_greedy, in_dims=(None, None, 0, None))(
        Q, LEGAL, torch.tensor([0.0, 1.0]), U
    )
    asserts.assert_trees_equal(torch.stack([masking.greedy(Q, LEGAL), exploration.uniform(LEGAL, U[..., 1])]), chosen)


def test_messages():
    with pytest.raises(ValueError, match=r"^q: expected shape \[... A\], got \[\]"):
        exploration.epsilon_greedy(torch.tensor(1.0), LEGAL, 0.1, U)
    with pytest.raises(ValueError, match=r"^legal: expected shape \[... A\], got \[\]"):
        exploration.uniform(torch.tensor(True), U[..., 0])
    with pytest.raises(ValueError, match=r"u: expected shape \[... 2\]"):
        exploration.epsilon_greedy(Q, LEGAL, 0.1, U[..., :1])
    with pytest.raises(TypeError, match=r"legal: expected torch.bool"):
        exploration.uniform(LEGAL.long(), U[..., 0])
    with pytest.raises(ValueError, match=r"u: expected shape \[...\]"):
        exploration.uniform(LEGAL, U)
