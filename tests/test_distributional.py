"""Equations over distributions: invariants of the projection, comparison with loops, laws of functions."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

from fdqn import random, tree
from fdqn.ops import distributional
from fdqn.testing import asserts, laws, strategies

EVEN, UNEVEN = distributional.atoms((-2.0, 4.0, 7)), torch.tensor([-1.0, 0.0, 0.25, 3.0], dtype=torch.float64)
EACH_SUPPORT = pytest.mark.parametrize("support", [EVEN, UNEVEN], ids=["even", "uneven"])


def example(support, seed=0, batch=(5,), actions=None):
    key, free = random.key(seed), batch if actions is None else (*batch, actions)
    probabilities = (2 * random.normal(key, (*free, len(support)), torch.float64)).softmax(-1)
    reward = random.normal(random.fold_in(key, 1), batch, torch.float64)
    return support, probabilities, reward, 0.99 * random.uniform(random.fold_in(key, 2), batch, torch.float64)


def project_with_loops(support, probabilities, reward, discount):
    """Project with loops: divide the mass of each moved atom between its neighbors."""
    result = [0.0] * len(support)
    for z, p in zip(support, probabilities, strict=True):
        x = min(max(reward + discount * z, support[0]), support[-1])
        above = next(i for i, y in enumerate(support) if y >= x)
        below = max(above - 1, 0)
        fraction = 1.0 if above == below else (x - support[below]) / (support[above] - support[below])
        result[above] += fraction * p
        result[below] += (1 - fraction) * p
    return result


@EACH_SUPPORT
@given(st.data())
def test_projection_equals_a_loop_and_keeps_the_mass(support, data):
    reward, discount = (data.draw(strategies.tensors((3,), -9.0, 9.0, torch.float64)) for _ in range(2))
    probabilities = data.draw(strategies.tensors((3, len(support)), -3.0, 3.0, torch.float64)).softmax(-1)
    projected = distributional.project(support, probabilities, reward, discount)
    rows = zip(probabilities.tolist(), reward.tolist(), discount.tolist(), strict=True)
    expected = torch.tensor([project_with_loops(support.tolist(), *row) for row in rows], dtype=torch.float64)
    asserts.assert_trees_close(expected, projected, 1e-12)
    asserts.assert_trees_close(torch.ones(3, dtype=torch.float64), projected.sum(-1), 1e-12)
    assert projected.min() >= 0


@EACH_SUPPORT
@given(st.data())
def test_projection_keeps_the_mean_inside_the_support(support, data):
    probabilities = data.draw(strategies.tensors((3, len(support)), -3.0, 3.0, torch.float64)).softmax(-1)
    discount = data.draw(strategies.tensors((3,), 0.0, 1.0, torch.float64))
    # Rewards for which all atoms stay inside of the support.
    low, high = support[0] * (1 - discount), support[-1] * (1 - discount)
    reward = low + (high - low) * data.draw(strategies.uniforms((3,), torch.float64))
    expected = reward + discount * distributional.mean(support, probabilities)
    projected = distributional.project(support, probabilities, reward, discount)
    asserts.assert_trees_close(expected, distributional.mean(support, projected), 1e-12)


def test_infinite_rewards_project_to_the_ends_of_the_support():
    reward = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64)
    projected = distributional.project(EVEN, torch.full((2, 7), 1 / 7, dtype=torch.float64), reward, reward * 0 + 1)
    assert projected.isnan().all()  # inf * 0 is NaN, which must not be hidden
    projected = distributional.project(EVEN, torch.full((2, 7), 1 / 7, dtype=torch.float64), reward, torch.ones(2))
    asserts.assert_trees_close(torch.eye(7, dtype=torch.float64)[[6, 0]], projected, 1e-12)


@EACH_SUPPORT
def test_laws_of_projection(support):
    f, args = partial(distributional.project, support), example(support)[1:]
    laws.pure(f, *args)
    laws.vmapped(f, *args)
    laws.ranked(f, *tree.map(lambda x: torch.stack([x, x.flip(0)]), args), leading=2)
    laws.compiled(f, *args, atol=1e-12)
    laws.gradients(lambda p, r, d: f(p, r, d).square().sum(), *args)
    stacked = tree.stack([args, example(support, 1)[1:]])
    laws.compiled(vmap(grad(lambda p, r, d: f(p, r, d).square().sum())), *stacked, atol=1e-12)


def target_arguments(seed=0):
    support, p_t, r_t, discount_t = example(EVEN, seed, actions=3)
    selector = random.normal(random.key(seed + 7), (5, 3), torch.float64)
    return support, r_t, discount_t, p_t, selector, random.uniform(random.key(seed + 8), (5, 3)) < 0.6


def test_laws_of_the_target():
    support, *args = target_arguments()
    f = partial(distributional.q_learning_target, support)
    laws.pure(f, *args)
    laws.vmapped(f, *args)
    laws.compiled(f, *args, atol=1e-12)
    assert not f(*(x.requires_grad_(x.is_floating_point()) for x in args)).requires_grad
    *others, legal = target_arguments()[1:]
    laws.masked(lambda q, legal: grad_free(f, others, q, legal), others[3], legal)


def grad_free(f, others, q, legal):
    """Return the target with a zero gradient for the selector."""
    return f(*others[:3], q, legal) + 0 * torch.where(legal, q, 0.0).sum()


def test_target_without_legal_actions_is_the_reward():
    support, r_t, discount_t, p_t, selector, legal = target_arguments()
    nothing = torch.zeros_like(legal)
    got = distributional.q_learning_target(support, r_t, discount_t, p_t * torch.nan, selector, nothing)
    expected = distributional.project(support, torch.full((5, 7), 1 / 7, dtype=torch.float64), r_t, 0 * discount_t)
    asserts.assert_trees_close(expected, got, 1e-12)
    asserts.assert_trees_close(r_t.clamp(-2.0, 4.0), distributional.mean(support, got), 1e-12)


def test_target_uses_the_distribution_of_the_best_legal_action():
    support, r_t, discount_t, p_t, selector, _ = target_arguments()
    legal = torch.tensor([True, False, True]).expand(5, 3)
    best = torch.where(selector[:, 0] >= selector[:, 2], 0, 2)
    asserts.assert_trees_equal(p_t[range(5), best], distributional.pick(p_t, best))
    expected = distributional.project(support, p_t[range(5), best], r_t, discount_t)
    got = distributional.q_learning_target(support, r_t, discount_t, p_t, selector, legal)
    asserts.assert_trees_equal(expected, got)


def test_atoms_from_a_range_and_from_a_tensor():
    assert EVEN.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    given = torch.tensor([0.0, 2.0, 3.0])
    kept = distributional.atoms(given)
    asserts.assert_trees_equal(given, kept)
    assert kept.data_ptr() != given.data_ptr()
