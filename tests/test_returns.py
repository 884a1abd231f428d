"""Lambda-returns: rlax's, their two ends, where an episode is cut, laws of a function."""

import pytest
import torch

from fdqn import random, tree
from fdqn.ops import returns
from fdqn.testing import asserts, laws


def example(steps=6, envs=3, seed=0):
    key = random.key(seed)
    r_t, v_t = random.normal(key, (2, steps, envs), torch.float64)
    discount_t = 0.9 * (random.uniform(random.fold_in(key, 1), (steps, envs)) < 0.8).double()
    return r_t, discount_t, v_t


def test_equal_to_rlax():
    jax, rlax = pytest.importorskip("jax"), pytest.importorskip("rlax")
    r_t, discount_t, v_t = example()
    lambda_ = random.uniform(random.key(5), (6, 3), torch.float64)
    with jax.enable_x64(True):
        theirs = jax.vmap(rlax.lambda_returns, 1, 1)(*(x.numpy() for x in (r_t, discount_t, v_t, lambda_)))
        expected = torch.tensor(theirs.tolist(), dtype=torch.float64)
    asserts.assert_trees_close(expected, returns.lambda_returns(r_t, discount_t, v_t, lambda_), 1e-12)


def test_ends_of_lambda():
    r_t, discount_t, v_t = example()
    asserts.assert_trees_equal(r_t + discount_t * v_t, returns.lambda_returns(r_t, discount_t, v_t, 0))
    monte_carlo, total = [], v_t[-1]
    for r, d in zip(r_t.flip(0), discount_t.flip(0), strict=True):
        total = r + d * total
        monte_carlo.insert(0, total)
    asserts.assert_trees_close(torch.stack(monte_carlo), returns.lambda_returns(r_t, discount_t, v_t, 1.0), 1e-12)


def test_lambda_0_keeps_what_follows_out_and_bootstraps():
    r_t, discount_t, v_t = example()
    lambda_ = torch.full((6, 3), 0.9, dtype=torch.float64)
    lambda_[2] = 0
    whole = returns.lambda_returns(r_t, discount_t, v_t, lambda_)
    asserts.assert_trees_equal(whole[:3], returns.lambda_returns(r_t[:3], discount_t[:3], v_t[:3], lambda_[:3]))


def test_laws_of_lambda_returns():
    args = (*example(), torch.tensor(0.8, dtype=torch.float64))
    laws.pure(returns.lambda_returns, *args)
    laws.vmapped(returns.lambda_returns, *tree.stack([args, (*example(seed=1), args[3] / 2)]))
    laws.compiled(returns.lambda_returns, *args, atol=1e-12)
    laws.gradients(lambda *xs: returns.lambda_returns(*xs).square().sum(), *args)
