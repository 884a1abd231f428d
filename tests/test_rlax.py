"""Targets and returns compared with rlax, vmapped over 200 random cases."""

from functools import partial

import numpy as np
import pytest
import torch
from plants import rejects
from test_oracles import CASES, EACH_DTYPE, EXACT, wide

from fdqn.ops import action_gap, masking, returns, soft, td, transforms

jax = pytest.importorskip("jax")
rlax = pytest.importorskip("rlax")

T, A = 7, 5


class Cases:
    """Random steps as arrays: single ones [200], or trajectories [7, 200] of several episodes, with ties and masks."""

    def __init__(self, dtype, *steps, seed=0):
        rng, shape = np.random.default_rng(seed), (*steps, CASES)
        self.q_tm1, self.q_t, self.selector = rng.normal(size=(3, *shape, A)).astype(dtype)
        self.q_t[..., ::2, :] = np.round(self.q_t[..., ::2, :])
        self.legal_t = rng.random((*shape, A)) < 0.7
        self.a_tm1, self.a_t = rng.integers(A, size=(2, *shape))
        for a in (self.a_tm1, self.a_t):  # rlax needs a value of every action taken
            np.put_along_axis(self.legal_t, a[..., None], True, -1)
        self.r_t = rng.normal(size=shape).astype(dtype)
        self.ended_t = rng.random(shape) < 0.3
        terminated = self.ended_t & (rng.random(shape) < 0.5)
        self.discount_t = (np.float64(0.9) * rng.random(shape) * ~terminated).astype(dtype)
        logits = np.where(self.legal_t, rng.normal(size=(*shape, A)), -np.inf)
        self.pi_t = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(dtype)
        self.mu_t = rng.uniform(0.1, 1.0, shape).astype(dtype)
        self.c_t, self.lambda_t = rng.random((2, *shape)).astype(dtype)
        self.v_t = rng.normal(size=shape).astype(dtype)
        self.mixing = np.array(0.7, dtype)

    def tensors(self, *names):
        return [torch.from_numpy(getattr(self, name)) for name in names]

    def masked(self, illegal):
        """Return the values at t with `illegal` for illegal actions, because rlax has no masks."""
        return np.where(self.legal_t, self.q_t, np.array(illegal, self.q_t.dtype))

    def continuing(self, x):
        """Return `x` where the episode continues, 0 where it ended."""
        return np.where(self.ended_t, np.zeros_like(x), x)


def agree(dtype, ours, theirs, *arrays):
    """Compare `ours` with `theirs`, a function of one case, over the cases in the last axis of the arrays."""
    steps = ours.ndim - 1
    axes = [min(steps, x.ndim) if x.ndim else None for x in arrays]
    with wide(dtype):
        expected = np.asarray(jax.jit(jax.vmap(theirs, axes, steps))(*arrays))
    assert str(ours.dtype) == f"torch.{expected.dtype}" == f"torch.{dtype}"
    np.testing.assert_allclose(ours.numpy(), expected, rtol=EXACT[dtype], atol=EXACT[dtype])


@EACH_DTYPE
def test_expected_sarsa(dtype):
    x = Cases(dtype)
    ours = td.expected_sarsa(*x.tensors("q_tm1", "a_tm1", "r_t", "discount_t", "q_t", "pi_t", "legal_t"))
    agree(dtype, ours, rlax.expected_sarsa, x.q_tm1, x.a_tm1, x.r_t, x.discount_t, x.masked(0), x.pi_t)


@EACH_DTYPE
def test_persistent_q_learning(dtype):
    x = Cases(dtype)
    target = action_gap.persistent_q_learning_target(*x.tensors("r_t", "discount_t", "a_tm1", "q_t", "legal_t"), 0.3)
    ours = target - masking.pick(*x.tensors("q_tm1", "a_tm1"))
    theirs = partial(rlax.persistent_q_learning, action_gap_scale=0.3)
    agree(dtype, ours, theirs, x.q_tm1, x.a_tm1, x.r_t, x.discount_t, x.masked(-np.inf))


def logs_of(q, legal, tau):
    return jax.nn.log_softmax(jax.numpy.where(legal, q, -jax.numpy.inf) / tau)


@EACH_DTYPE
def test_munchausen(dtype):
    """Compare with the target written with jax, because rlax does not have it."""
    x, alpha, tau, clip = Cases(dtype), 0.9, 0.3, -1.0

    def theirs(r_t, discount_t, q_tm1, a_tm1, q_t, legal_tm1, legal_t):
        bonus = jax.numpy.clip(tau * logs_of(q_tm1, legal_tm1, tau)[a_tm1], clip, 0)
        value = jax.nn.logsumexp(jax.numpy.where(legal_t, q_t, -jax.numpy.inf) / tau)
        return r_t + alpha * bonus + discount_t * tau * value

    names = ("r_t", "discount_t", "q_tm1", "a_tm1", "q_t", "legal_t", "legal_t")
    ours = soft.munchausen_target(*x.tensors(*names), alpha, tau, clip)
    agree(dtype, ours, theirs, *(getattr(x, name) for name in names))
    agree(dtype, soft.log_policy(*x.tensors("q_t", "legal_t"), tau).exp().amax(-1),
          lambda q, legal: jax.numpy.exp(logs_of(q, legal, tau)).max(), x.q_t, x.legal_t)  # fmt: skip


@EACH_DTYPE
def test_lambda_returns(dtype):
    x = Cases(dtype, T)
    ours = returns.lambda_returns_of_episodes(*x.tensors("r_t", "discount_t", "v_t", "ended_t", "lambda_t"))
    agree(dtype, ours, rlax.lambda_returns, x.r_t, x.discount_t, x.v_t, x.continuing(x.lambda_t))
    with rejects("Not equal to tolerance"):
        agree(dtype, ours, rlax.lambda_returns, x.r_t, x.discount_t, x.v_t, x.lambda_t)


@EACH_DTYPE
@pytest.mark.parametrize("n", [1, 3, T])
def test_n_step_returns(dtype, n):
    x = Cases(dtype, T)
    ours = returns.n_step_returns(*x.tensors("r_t", "discount_t", "v_t", "ended_t"), n)
    theirs = partial(rlax.n_step_bootstrapped_returns, n=n)
    one = np.ones_like(x.r_t)
    agree(dtype, ours, lambda r, d, v, goes_on: theirs(r, d, v, lambda_t=goes_on),
          x.r_t, x.discount_t, x.v_t, x.continuing(one))  # fmt: skip


@EACH_DTYPE
def test_q_lambda(dtype):
    """Compare Watkins' version with rlax's, with a lambda of 0 at actions that are not greedy."""
    x = Cases(dtype, T)
    taken = masking.pick(*x.tensors("q_tm1", "a_tm1"))
    steps = x.tensors("r_t", "discount_t", "q_t")
    given = x.q_tm1, x.a_tm1, x.r_t, x.discount_t, x.masked(-np.inf)
    ours = returns.peng_q_lambda(*steps, *x.tensors("legal_t", "ended_t", "mixing")) - taken
    agree(dtype, ours, rlax.q_lambda, *given, x.continuing(np.full_like(x.r_t, 0.7)))
    ours = returns.watkins_q_lambda(*steps, *x.tensors("a_t", "legal_t", "ended_t", "mixing")) - taken
    value = np.take_along_axis(x.masked(-np.inf), x.a_t[..., None], -1)[..., 0]
    greedy = value == x.masked(-np.inf).max(-1)
    assert 0.1 < greedy.mean() < 0.9
    agree(dtype, ours, rlax.q_lambda, *given, x.continuing(np.where(greedy, x.mixing, 0).astype(dtype)))


@EACH_DTYPE
def test_off_policy_returns(dtype):
    x = Cases(dtype, T)
    ours = returns.off_policy_returns(
        *x.tensors("r_t", "discount_t", "q_t", "a_t", "pi_t", "c_t", "legal_t", "ended_t")
    )
    theirs = rlax.general_off_policy_returns_from_action_values
    agree(dtype, ours, theirs, x.masked(0), x.a_t, x.r_t, x.discount_t, x.continuing(x.c_t), x.pi_t)


@EACH_DTYPE
def test_retrace(dtype):
    """Cut the trace of rlax at ends of episodes by an infinite `mu_t`, which makes the ratio 0."""
    x, lambda_ = Cases(dtype, T), 0.7
    names = ("r_t", "discount_t", "q_t", "a_t", "pi_t", "mu_t", "legal_t", "ended_t")
    ours = returns.retrace(*x.tensors(*names), lambda_) - masking.pick(*x.tensors("q_tm1", "a_tm1"))
    theirs = partial(rlax.retrace, lambda_=np.array(lambda_, dtype), eps=0.0)
    mu_t = np.where(x.ended_t, np.array(np.inf, dtype), x.mu_t)
    agree(dtype, ours, theirs, x.q_tm1, x.masked(0), x.a_tm1, x.a_t, x.r_t, x.discount_t, x.pi_t, mu_t)


def large_and_small(dtype):
    """Return numbers from 1e-6 to 1e6 of both signs."""
    size = np.logspace(-6, 6, CASES // 2)
    return np.concatenate([-size, size]).astype(dtype)


def test_signed_hyperbolic_and_its_inverse():
    x = large_and_small("float64")
    for ours, theirs in (
        (transforms.signed_hyperbolic, rlax.signed_hyperbolic),
        (transforms.signed_parabolic, rlax.signed_parabolic),
    ):
        agree("float64", ours(torch.from_numpy(x)), theirs, x)


def exact_in_float32(f, theirs):
    """Check that `f` in float32 equals rlax in float64 to a relative 1e-6."""
    x = large_and_small("float32")
    with jax.enable_x64(True):
        expected = np.asarray(theirs(x.astype("float64")))
    np.testing.assert_allclose(np.asarray(f(x)), expected, rtol=1e-6, atol=1e-9)


def test_signed_hyperbolic_and_its_inverse_in_float32():
    """Compare in float32, where the formulas of the paper, as in rlax, lose digits of small numbers."""
    for ours, theirs in (
        (transforms.signed_hyperbolic, rlax.signed_hyperbolic),
        (transforms.signed_parabolic, rlax.signed_parabolic),
    ):
        exact_in_float32(lambda x, f=ours: f(torch.from_numpy(x)).numpy(), theirs)
        with rejects("Not equal to tolerance"):
            exact_in_float32(jax.jit(theirs), theirs)


@pytest.mark.parametrize("n", [1, 3])
def test_transformed_n_step_q_learning(n):
    x = Cases("float64", T)
    x.ended_t[:] = False
    steps = x.tensors("r_t", "discount_t", "q_t", "selector", "legal_t", "ended_t")
    ours = transforms.n_step_q_learning_target(*steps, n) - masking.pick(*x.tensors("q_tm1", "a_tm1"))
    theirs = partial(rlax.transformed_n_step_q_learning, n=n, tx_pair=rlax.SIGNED_HYPERBOLIC_PAIR)
    chosen = np.where(x.legal_t, x.selector, -np.inf).argmax(-1)
    agree("float64", ours, theirs, x.q_tm1, x.a_tm1, x.masked(0), chosen, x.r_t, x.discount_t)


def test_transformed_q_lambda_and_retrace():
    x = Cases("float64", T)
    taken = masking.pick(*x.tensors("q_tm1", "a_tm1"))
    pair = rlax.SIGNED_HYPERBOLIC_PAIR
    peng = transforms.transformed(returns.peng_q_lambda, 2)
    ours = peng(*x.tensors("r_t", "discount_t", "q_t", "legal_t", "ended_t", "mixing")) - taken
    agree(
        "float64", ours, partial(rlax.transformed_q_lambda, tx_pair=pair),
        x.q_tm1, x.a_tm1, x.r_t, x.discount_t, x.masked(-1e9), x.continuing(np.full_like(x.r_t, 0.7)),
    )  # fmt: skip
    mu_t = np.where(x.ended_t, np.inf, x.mu_t)
    names = ("r_t", "discount_t", "q_t", "a_t", "pi_t", "mu_t", "legal_t", "ended_t", "mixing")
    ours = transforms.transformed(returns.retrace, 2)(*x.tensors(*names)) - taken
    theirs = partial(rlax.transformed_retrace, lambda_=np.float64(0.7), eps=0.0, tx_pair=pair)
    agree("float64", ours, theirs, x.q_tm1, x.masked(0), x.a_tm1, x.a_t, x.r_t, x.discount_t, x.pi_t, mu_t)
