"""The transformed Bellman operator: the transform and its inverse, targets, laws of a function."""

from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plants import rejects
from torch.func import grad

from fdqn import random
from fdqn.ops import masking, returns, td, transforms
from fdqn.testing import asserts, laws

EPS = 1e-3


def decimal_hyperbolic(x, eps):
    x = Decimal(x)
    return ((abs(x) + 1).sqrt() - 1 + Decimal(eps) * abs(x)).copy_sign(x)


def decimal_parabolic(y, eps):
    y, eps = Decimal(y), Decimal(eps)
    root = ((1 + 4 * eps * (abs(y) + 1 + eps)).sqrt() - 1) / (2 * eps)
    return (root * root - 1).copy_sign(y)


def exact(f, oracle, dtype, rtol, eps=EPS):
    """Check that `f` equals `oracle`, computed with 60 digits, at numbers from 1e-30 to 1e30."""
    size = torch.logspace(-30, 30, 121, dtype=torch.float64)
    x = torch.cat([size, -size, torch.zeros(1)]).to(dtype)
    with localcontext() as context:
        context.prec = 60
        expected = torch.tensor([float(oracle(v, eps)) for v in x.tolist()], dtype=torch.float64)
    asserts.assert_trees_close(expected, f(x, eps).double(), 0.0, rtol)


def textbook_hyperbolic(x, eps):
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + eps * x


def textbook_parabolic(y, eps):
    root = ((1 + 4 * eps * (y.abs() + 1 + eps)).sqrt() - 1) / (2 * eps)
    return y.sign() * (root * root - 1)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_exact_at_any_size(dtype, rtol):
    exact(transforms.signed_hyperbolic, decimal_hyperbolic, dtype, rtol)
    exact(transforms.signed_parabolic, decimal_parabolic, dtype, rtol)
    with rejects("expected"):
        exact(textbook_hyperbolic, decimal_hyperbolic, dtype, rtol)
    with rejects("expected"):
        exact(textbook_parabolic, decimal_parabolic, dtype, rtol)


@given(st.floats(-1e15, 1e15), st.sampled_from([0.0, 1e-3, 0.5]))
def test_inverse(x, eps):
    x = torch.tensor(x, dtype=torch.float64)
    y = transforms.signed_hyperbolic(x, eps)
    torch.testing.assert_close(transforms.signed_parabolic(y, eps), x, rtol=1e-13, atol=0)


def test_derivatives():
    """Check the derivatives, also at 0, where only the second derivative jumps."""
    x = torch.tensor([0.0, 1e-9, -2.0, 3.0], dtype=torch.float64)
    slope = grad(lambda x: transforms.signed_hyperbolic(x).sum())(x)
    asserts.assert_trees_close(1 / (2 * (x.abs() + 1).sqrt()) + EPS, slope, 1e-12)
    back = grad(lambda y: transforms.signed_parabolic(y).sum())(transforms.signed_hyperbolic(x))
    asserts.assert_trees_close(1 / slope, back, 1e-12)


def steps(seed=0):
    key = random.key(seed)
    r_t, discount_t = 100 * random.normal(key, (6, 4), torch.float64), torch.full((6, 4), 0.9, dtype=torch.float64)
    q_t, selector = 10 * random.normal(random.fold_in(key, 1), (2, 6, 4, 3), torch.float64)
    legal_t = (random.uniform(random.fold_in(key, 2), (6, 4, 3)) < 0.5) | (torch.arange(3) == 1)
    return r_t, discount_t, q_t, selector, legal_t, random.uniform(random.fold_in(key, 3), (6, 4)) < 0.3


def test_transformed_is_the_target_between_the_inverse_and_the_function():
    r_t, discount_t, q_t, selector, legal_t, ended_t = steps()
    got = transforms.transformed(td.double_q_learning_target, 2, eps=0.1)(r_t, discount_t, q_t, selector, legal_t)
    plain = td.double_q_learning_target(r_t, discount_t, transforms.signed_parabolic(q_t, 0.1), selector, legal_t)
    asserts.assert_trees_equal(transforms.signed_hyperbolic(plain, 0.1), got)
    v_t = masking.selected(q_t, selector, legal_t)
    plain = returns.n_step_returns(r_t, discount_t, transforms.signed_parabolic(v_t), ended_t, 3)
    got = transforms.n_step_q_learning_target(r_t, discount_t, q_t, selector, legal_t, ended_t, 3)
    asserts.assert_trees_close(transforms.signed_hyperbolic(plain), got, 1e-12, 1e-12)
    lambda_ = {"lambda_": 0.5}
    named = transforms.transformed(returns.peng_q_lambda, 2)(r_t, discount_t, q_t, legal_t, ended_t, **lambda_)
    asserts.assert_trees_equal(
        transforms.transformed(returns.peng_q_lambda, 2)(r_t, discount_t, q_t, legal_t, ended_t, 0.5), named
    )


def test_a_fixed_point_is_that_of_the_plain_operator():
    """Check that the fixed point for a reward of 10 at every step and a discount of 0.99 is h(1000)."""
    value = transforms.signed_hyperbolic(torch.tensor([[1000.0]], dtype=torch.float64))
    target = transforms.transformed(td.q_learning_target, 2)
    r_t, discount_t = torch.tensor([[10.0], [0.99]], dtype=torch.float64)
    got = target(r_t, discount_t, value, torch.tensor([[True]]))
    asserts.assert_trees_close(value[0], got, 1e-12)


def test_values_of_illegal_actions_are_ignored():
    r_t, discount_t, q_t, _, legal_t, _ = steps()

    def f(q, legal):
        target = transforms.transformed(td.q_learning_target, 2)(r_t, discount_t, q, legal)
        return target + 0 * q.nan_to_num(0.0, 0.0, 0.0).sum()

    laws.masked(f, q_t, legal_t)


def test_laws_of_functions():
    x, y = torch.tensor([[0.5, -3.0], [1e3, 0.01]], dtype=torch.float64), torch.tensor([0.5, 0.1], dtype=torch.float64)
    for f in (transforms.signed_hyperbolic, transforms.signed_parabolic):
        laws.pure(f, x)
        laws.ranked(f, x, leading=2)
        laws.vmapped(f, x, y)
        laws.gradients(lambda x, f=f: f(x).sum(), x[:1])
    given = steps()
    tracked = [x.clone().requires_grad_() if x.is_floating_point() else x for x in given]
    assert not transforms.transformed(td.double_q_learning_target, 2)(*tracked[:5]).requires_grad
