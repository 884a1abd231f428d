"""Equations of quantile regression: compared with rlax, metamorphic laws with planted bugs, laws of a function."""

import contextlib
from functools import partial

import numpy as np
import pytest
import torch
from plants import rejects
from torch.func import grad, vmap

from fdqn import random, tree
from fdqn.ops import masking, quantile
from fdqn.testing import asserts, laws

EXACT = {"float32": 1e-6, "float64": 1e-12}
POISONS = (1e30, -1e30, torch.inf, -torch.inf, torch.nan)


def normal(number, *shape):
    return random.normal(random.fold_in(random.key(0), number), shape, torch.float64)


# Against rlax


def cases(dtype, count=200, actions=3, quantiles=5, targets=4):
    """Return 200 rows with an illegal action each. Half of them have rounded values, so some differences are 0."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(2, count, actions, quantiles)), rng.normal(size=(count, actions, targets))
    z = [np.where(np.arange(count)[:, None, None] % 2, np.round(x), x).astype(dtype) for x in (*z[0], z[1])]
    numbers = rng.normal(size=(2, count)).astype(dtype)
    legal = np.ones((count, actions), dtype=bool)
    legal[::2, 1] = False
    return z, numbers, rng.random((count, quantiles)).astype(dtype), rng.integers(actions, size=count), legal


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", EXACT)
def test_quantile_q_learning_equals_rlax(dtype, kappa):
    """Use sampled fractions, and a selector other than the target network."""
    jax, rlax = pytest.importorskip("jax"), pytest.importorskip("rlax")
    (now, selector, following), (r, d), fractions, a, legal = cases(dtype)
    z, q_t, z_t, r_t, d_t, u, action, mask = map(
        torch.from_numpy, (now, selector, following, r, d, fractions, a, legal)
    )
    target = quantile.q_learning_target(r_t, d_t, z_t, q_t.mean(-1), mask)
    taken = z[range(len(action)), action]
    got = quantile.regression_loss(taken, u, target, kappa)
    by_action = [np.swapaxes(x, 1, 2) for x in (now, np.where(legal[..., None], selector, -np.inf), following)]
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        theirs = jax.jit(jax.vmap(partial(rlax.quantile_q_learning, huber_param=kappa)))
        expected = np.asarray(theirs(by_action[0], fractions, a, r, d, by_action[1], by_action[2]))
        plain = jax.jit(jax.vmap(partial(rlax.quantile_regression_loss, huber_param=kappa)))
        loss = np.asarray(plain(taken.numpy(), fractions, target.numpy()))
    assert str(got.dtype) == f"torch.{expected.dtype}" == f"torch.{dtype}"
    np.testing.assert_allclose(got.numpy(), expected, rtol=EXACT[dtype], atol=EXACT[dtype])
    np.testing.assert_allclose(got.numpy(), loss, rtol=EXACT[dtype], atol=EXACT[dtype])


def test_midpoints():
    expected = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64)
    asserts.assert_trees_equal(expected, quantile.midpoints(4, torch.float64))
    assert quantile.midpoints(1).tolist() == [0.5]


# Metamorphic laws. Each takes the functions as arguments, so that functions with planted bugs can be passed.


def law_of_the_median(regression_loss):
    """Assert that the loss of one quantile is half the absolute error, and has its minimum at the median."""
    z, target, half = normal(1, 20, 1), normal(2, 20, 1), torch.full((20, 1), 0.5, dtype=torch.float64)
    asserts.assert_trees_close(
        (target - z).abs().squeeze(-1) / 2, regression_loss(z, half, target, 0.0), 1e-12, 0.0, "median: "
    )
    samples = torch.tensor([0.0, 1.0, 2.0, 5.0, 100.0], dtype=torch.float64)
    at = torch.linspace(0.25, 10.25, 41, dtype=torch.float64).unsqueeze(-1)  # 2.0 is the eighth
    loss = regression_loss(at, half[:1].expand_as(at), samples.expand(41, 5), 0.0)
    assert float(at[loss.argmin()]) in (2.0, 2.25), f"expected the minimum at the median 2, got {at[loss.argmin()]}"


def law_of_quantiles(regression_loss):
    """Assert that at the quantiles of the target the gradient of each is 0, or changes its sign there."""
    samples = torch.arange(10.0, dtype=torch.float64)
    fractions = torch.tensor([0.15, 0.55, 0.85], dtype=torch.float64)
    z = torch.tensor([1.0, 5.0, 8.0], dtype=torch.float64)  # samples below: 1.5 of 10, 5.5 of 10, 8.5 of 10
    slope = grad(lambda x: regression_loss(x, fractions, samples, 0.0))
    assert (slope(z - 0.1) < 0).all(), "expected a falling loss below the quantiles"
    assert (slope(z + 0.1) > 0).all(), "expected a rising loss above the quantiles"


def law_of_order(regression_loss, q_learning_target=quantile.q_learning_target):
    """Assert that neither the order of quantiles, of samples of the target nor of actions matters."""
    fractions, z, target = normal(3, 6, 4).sigmoid(), normal(4, 6, 4), normal(5, 6, 5)
    order, others = [2, 0, 3, 1], [4, 2, 0, 1, 3]
    expected = regression_loss(z, fractions, target, 0.7)
    got = regression_loss(z[:, order], fractions[:, order], target[:, others], 0.7)
    asserts.assert_trees_close(expected, got, 1e-12, 0.0, "another order of quantiles: ")
    r, d, z_t, selector = normal(6, 6), normal(7, 6), normal(8, 6, 3, 4), normal(9, 6, 3)
    legal = torch.tensor([[True, True, False], [False, True, True]] * 3)
    turned = [x[:, [2, 0, 1]] for x in (z_t, selector, legal)]
    expected = q_learning_target(r, d, z_t, selector, legal)
    asserts.assert_trees_equal(expected, q_learning_target(r, d, *turned), "another order of actions: ")


def law_of_illegal_actions(q_learning_target):
    """Assert that values of illegal actions change neither target nor loss nor gradient, also if none is legal."""
    r, d, selector = normal(6, 6), normal(7, 6), normal(9, 6, 3)
    legal = torch.tensor([[True, True, False], [False, True, True], [False] * 3] * 2)
    fractions = normal(3, 6, 4).sigmoid()

    def results(z_t, selector):
        def loss(z):
            return quantile.regression_loss(z, fractions, q_learning_target(r, d, z_t, selector, legal)).sum()

        return loss(normal(4, 6, 4)), grad(loss)(normal(4, 6, 4)), q_learning_target(r, d, z_t, selector, legal)

    expected = results(normal(8, 6, 3, 4), selector)
    asserts.assert_finite(expected)
    asserts.assert_trees_equal(r[2].expand(4), expected[2][2], "no legal action: ")
    for poison in POISONS:
        z_t = torch.where(legal.unsqueeze(-1), normal(8, 6, 3, 4), poison)
        got = results(z_t, torch.where(legal, selector, poison))
        asserts.assert_trees_equal(expected, got, f"illegal values {poison}: ")


def test_metamorphic_laws():
    law_of_the_median(quantile.regression_loss)
    law_of_quantiles(quantile.regression_loss)
    law_of_order(quantile.regression_loss)
    law_of_illegal_actions(quantile.q_learning_target)


def pairwise(f):
    """Make a regression loss whose terms [..., N, M] are `f(delta, fractions)`."""

    def loss(z, fractions, target, kappa):
        return f(target.unsqueeze(-2) - z.unsqueeze(-1), fractions.unsqueeze(-1)).mean(-1).sum(-1)

    return loss


def test_laws_of_median_and_quantiles_reject():
    with rejects("median"):
        law_of_the_median(pairwise(lambda delta, u: delta.abs()))
    with rejects("median"):
        law_of_the_median(pairwise(lambda delta, u: delta**2 / 2))
    with rejects("expected a (falling|rising) loss"):  # exchanged weights
        law_of_quantiles(pairwise(lambda delta, u: torch.where(delta < 0, u, 1 - u) * delta.abs()))
    with rejects("expected a (falling|rising) loss"):  # mean instead of quantiles
        law_of_quantiles(pairwise(lambda delta, u: u * delta**2))


def zipped(z, fractions, target, kappa):
    """Plant a bug: compare each quantile only with the sample at the same index."""
    return quantile.regression_loss(z.unsqueeze(-1), fractions.unsqueeze(-1), target[..., :4].unsqueeze(-1)).sum(-1)


def test_laws_of_order_and_masks_reject():
    with rejects("another order of quantiles"):
        law_of_order(zipped)
    with rejects("another order of actions"):
        law_of_order(quantile.regression_loss, lambda r, d, z, q, legal: r.unsqueeze(-1) + z[:, 0])
    with rejects("no legal action"):
        law_of_illegal_actions(lambda r, d, z, q, legal: quantile.q_learning_target(r, d, z, q, legal | True))

    def by_product(r, d, z, q, legal):
        chosen = torch.nn.functional.one_hot(masking.greedy(q, legal), 3).to(z.dtype)
        following = (z * chosen.unsqueeze(-1)).sum(-2) * legal.any(-1, keepdim=True)
        return r.unsqueeze(-1) + d.unsqueeze(-1) * following

    with rejects("illegal values"):
        law_of_illegal_actions(by_product)

    def without_a_future(r, d, z, q, legal):
        return r.unsqueeze(-1) + d.unsqueeze(-1) * z[range(6), masking.greedy(q, legal)]

    with rejects("no legal action|illegal values"):
        law_of_illegal_actions(without_a_future)


# Laws of a function


def test_laws_of_the_loss():
    f, args = (
        partial(quantile.regression_loss, kappa=0.5),
        (normal(1, 6, 4), normal(2, 6, 4).sigmoid(), normal(3, 6, 5)),
    )
    laws.pure(f, *args)
    laws.vmapped(f, *args)
    laws.ranked(f, *tree.map(lambda x: torch.stack([x, x.flip(0)]), args), leading=2)
    laws.gradients(lambda z: f(z, *args[1:]).sum(), args[0])
    seeds = tree.stack([args, tree.map(lambda x: x.flip(0), args)])
    laws.compiled(vmap(grad(lambda *given: f(*given).square().sum())), *seeds, atol=1e-12)
    assert not f(args[0], args[1], args[2].requires_grad_()).requires_grad


def test_laws_of_the_target():
    legal = torch.tensor([[True, True, False], [False, True, True]] * 3)
    args = normal(1, 6), normal(2, 6), normal(3, 6, 3, 4), normal(4, 6, 3), legal
    laws.pure(quantile.q_learning_target, *args)
    laws.vmapped(quantile.q_learning_target, *args)
    laws.ranked(quantile.q_learning_target, *tree.map(lambda x: torch.stack([x, x.flip(0)]), args), leading=2)
    assert not quantile.q_learning_target(*(x.requires_grad_(x.is_floating_point()) for x in args)).requires_grad
