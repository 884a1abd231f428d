"""Soft values and policies, the Munchausen target, the loss of CQL: loops, special cases, masks, laws."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plants import rejects
from torch.func import grad, vmap

from fdqn import random, tree
from fdqn.ops import action_gap, masking, soft, td
from fdqn.testing import asserts, laws, strategies

B, A, TAU = 5, 3, 0.7
DOUBLE = torch.float64


def example(seed=3):
    key = random.key(seed)
    q_tm1, q_t = (random.normal(random.fold_in(key, i), (B, A), DOUBLE) for i in range(2))
    r_t, discount_t = (random.normal(random.fold_in(key, i), (B,), DOUBLE) for i in (2, 3))
    a_tm1 = random.randint(random.fold_in(key, 4), (B,), 0, A)
    legal_tm1 = (random.uniform(random.fold_in(key, 5), (B, A)) < 0.5) | (a_tm1.unsqueeze(-1) == torch.arange(A))
    legal_t = random.uniform(random.fold_in(key, 6), (B, A)) < 0.6
    return {
        "r_t": r_t, "discount_t": discount_t, "q_tm1_target": q_tm1, "a_tm1": a_tm1, "q_t_target": q_t,
        "legal_tm1": legal_tm1, "legal_t": legal_t,
    }  # fmt: skip


def munchausen(alpha=0.9, tau=TAU, clip=-1.0, **changes):
    return soft.munchausen_target(**{**example(), **changes}, alpha=alpha, tau=tau, clip=clip)


def log_sum_exp(values, tau):
    return tau * math.log(sum(math.exp(x / tau) for x in values)) if values else 0.0


def options(q, legal):
    return [[x for x, ok in zip(*row, strict=True) if ok] for row in zip(q.tolist(), legal.tolist(), strict=True)]


@given(strategies.q_batches(dtype=DOUBLE, at_least_one=False), st.floats(0.2, 3.0))
def test_values_and_policies_equal_a_loop(batch, tau):
    q, legal = batch[0].clamp(-50, 50), batch[1]
    values, logs = soft.value(q, legal, tau), soft.log_policy(q, legal, tau)
    for i, legal_values in enumerate(options(q, legal)):
        expected = log_sum_exp(legal_values, tau)
        assert math.isclose(values[i], expected, rel_tol=1e-12, abs_tol=1e-12)
        for x, log, ok in zip(q[i].tolist(), logs[i].tolist(), legal[i].tolist(), strict=True):
            assert math.isclose(log, (x - expected) / tau, rel_tol=1e-11, abs_tol=1e-11) if ok else log == -math.inf
    asserts.assert_trees_close(logs.exp(), soft.policy(q, legal, tau), 1e-12, 1e-12)
    asserts.assert_trees_close(legal.any(-1).double(), soft.policy(q, legal, tau).sum(-1), 1e-12)


def loop_over_rows(alpha, tau, clip, r_t, discount_t, q_tm1_target, a_tm1, q_t_target, legal_tm1, legal_t):
    now, following = options(q_tm1_target, legal_tm1), options(q_t_target, legal_t)
    for i, a in enumerate(a_tm1.tolist()):
        bonus = q_tm1_target[i, a].item() - log_sum_exp(now[i], tau)
        yield r_t[i] + alpha * min(max(bonus, clip), 0.0) + discount_t[i] * log_sum_exp(following[i], tau)


@pytest.mark.parametrize(("alpha", "tau", "clip"), [(0.9, 0.7, -1.0), (0.5, 0.3, -0.2), (1.0, 2.0, -math.inf)])
def test_munchausen_target_equals_a_loop(alpha, tau, clip):
    for seed in range(5):
        expected = torch.stack(list(loop_over_rows(alpha, tau, clip, **example(seed))))
        got = munchausen(alpha, tau, clip, **example(seed))
        asserts.assert_trees_close(expected, got, 1e-12, 1e-12)
        everything = {**example(seed), "legal_tm1": torch.ones(B, A, dtype=torch.bool)}
        expected = torch.stack(list(loop_over_rows(alpha, tau, clip, **everything)))
        asserts.assert_trees_close(
            expected, munchausen(alpha, tau, clip, **{**example(seed), "legal_tm1": None}), 1e-12
        )


def test_munchausen_with_alpha_0_or_tau_near_0_is_another_target():
    e = example()
    one_step = e["r_t"], e["discount_t"], e["q_t_target"], e["legal_t"]
    asserts.assert_trees_equal(soft.q_learning_target(*one_step, TAU), munchausen(alpha=0))
    asserts.assert_trees_close(td.q_learning_target(*one_step), soft.q_learning_target(*one_step, 1e-14), 1e-12)
    q, legal = e["q_t_target"], e["legal_t"]
    asserts.assert_trees_close(masking.best(q, legal), soft.value(q, legal, 1e-14), 1e-12)
    greedy = (masking.greedy(q, legal).unsqueeze(-1) == torch.arange(A)) & legal
    asserts.assert_trees_equal(greedy.double(), soft.policy(q, legal, 1e-14))
    expected = action_gap.advantage_learning_target(
        e["r_t"], e["discount_t"], e["q_tm1_target"], e["a_tm1"], q, e["legal_tm1"], legal, 0.9
    )
    asserts.assert_trees_close(expected, munchausen(0.9, 1e-14, -math.inf), 1e-12)


def naive_value(q, legal, tau):
    """Compute the soft value with a planted bug: it overflows, or loses the digits of `q / tau`."""
    return tau * torch.where(legal, q / tau, -torch.inf).exp().sum(-1).log()


def divided_first(q, legal, tau):
    return (torch.where(legal, q, -torch.inf) / tau).log_softmax(-1)


def stable(value, log_policy):
    """Check values of a million in float32, at the temperature of the paper."""
    q, legal = 1e6 + torch.tensor([[0.0, 0.0625, -0.0625]]), torch.tensor([[True, True, True]])
    expected = soft.value(q.double() - 1e6, legal, 0.03) + 1e6
    asserts.assert_trees_close(expected, value(q, legal, 0.03).double(), 0.0625)
    expected = soft.log_policy(q.double(), legal, 0.03)
    asserts.assert_trees_close(expected, log_policy(q, legal, 0.03).double(), 1e-6, 1e-6)


def test_large_values_at_a_small_temperature():
    stable(soft.value, soft.log_policy)
    with rejects("expected 1000000.0"):
        stable(naive_value, soft.log_policy)
    with rejects("expected -2.2"):
        stable(soft.value, divided_first)


def test_infinities_of_legal_actions():
    legal = torch.tensor([[True, True, False]] * 3)
    q = torch.tensor([[torch.inf, 0.0, 0.0], [-torch.inf, 1.0, 0.0], [-torch.inf, -torch.inf, 0.0]])
    assert soft.value(q, legal, 0.5).tolist() == [torch.inf, 1.0, -torch.inf]
    assert soft.policy(q, legal, 0.5)[1].tolist() == [0.0, 1.0, 0.0]


def test_no_legal_action():
    q, nothing = torch.full((2, 3), torch.nan), torch.zeros(2, 3, dtype=torch.bool)
    assert soft.value(q, nothing, TAU).tolist() == [0.0, 0.0]
    assert soft.policy(q, nothing, TAU).sum() == 0
    slope = grad(lambda q: soft.value(q, nothing, TAU).sum() + soft.policy(q, nothing, TAU).sum())(q)
    asserts.assert_trees_equal(torch.zeros(2, 3), slope)


@given(strategies.q_batches())
def test_masks(batch):
    q, legal = batch
    laws.masked(partial(soft.value, tau=TAU), q, legal)
    laws.masked(partial(soft.policy, tau=TAU), q, legal)
    laws.masked(lambda q, legal: torch.where(legal, soft.log_policy(q, legal, TAU), 0.0), q, legal)
    chosen = masking.greedy(q, legal)
    laws.masked(lambda q, legal: soft.conservative_loss(q, chosen, legal), q, legal)


def multiplied(q, legal, tau):
    """Compute the soft value with a planted bug: it multiplies by the mask, so NaN and infinity pass."""
    return tau * ((q / tau).exp() * legal).sum(-1).log()


def test_masks_reject_a_multiplied_mask():
    with rejects("illegal values"):
        laws.masked(
            partial(multiplied, tau=TAU), example()["q_t_target"], torch.tensor([True, True, False]).expand(B, A)
        )


def zero_with_gradient(x):
    """Return 0 with a gradient of zeros in x, because no gradient flows through a target."""
    return 0 * x.nan_to_num(0.0, 0.0, 0.0).sum()


def test_values_of_illegal_actions_are_ignored():
    e = example()
    laws.masked(lambda q, legal: munchausen(q_t_target=q) + zero_with_gradient(q), e["q_t_target"], e["legal_t"])
    laws.masked(lambda q, legal: munchausen(q_tm1_target=q) + zero_with_gradient(q), e["q_tm1_target"], e["legal_tm1"])
    with rejects("illegal values 1e"):
        laws.masked(
            lambda q, legal: munchausen(q_tm1_target=q, legal_tm1=None) + zero_with_gradient(q),
            e["q_tm1_target"],
            e["legal_tm1"],
        )


def test_an_unknown_mask_is_wrong_by_at_most_the_clip():
    for poison in (1e30, torch.inf, -1e30):
        q = torch.where(example()["legal_tm1"], example()["q_tm1_target"], poison)
        wrong = munchausen(q_tm1_target=q, legal_tm1=None) - munchausen(q_tm1_target=q)
        assert (wrong.abs() <= 0.9).all()


def test_permuted_actions():
    e, order = example(), torch.tensor([2, 0, 1])
    moved = {
        **{name: e[name][:, order] for name in ("q_tm1_target", "q_t_target", "legal_tm1", "legal_t")},
        "a_tm1": order.argsort()[e["a_tm1"]],
    }
    asserts.assert_trees_close(munchausen(), munchausen(**moved), 1e-12)
    for f in (soft.policy, soft.log_policy):
        got = f(e["q_t_target"][:, order], e["legal_t"][:, order], TAU)
        asserts.assert_trees_close(f(e["q_t_target"], e["legal_t"], TAU)[:, order], got, 1e-12)
    with rejects("expected"):
        asserts.assert_trees_close(munchausen(), munchausen(**{**moved, "a_tm1": e["a_tm1"]}), 1e-12)


def test_conservative_loss():
    e = example()
    q, a, legal = e["q_tm1_target"], e["a_tm1"], e["legal_tm1"]
    expected = torch.tensor([log_sum_exp(x, 1.0) for x in options(q, legal)], dtype=DOUBLE) - q[range(B), a]
    asserts.assert_trees_close(expected, soft.conservative_loss(q, a, legal), 1e-12)
    assert (soft.conservative_loss(q, a, legal) >= 0).all()
    alone = a.unsqueeze(-1) == torch.arange(A)
    asserts.assert_trees_equal(torch.zeros(B, dtype=DOUBLE), soft.conservative_loss(q, a, alone))
    laws.gradients(lambda q: soft.conservative_loss(q, a, legal).sum(), q)


def test_laws_of_functions():
    e, tau = example(), torch.tensor(TAU, dtype=DOUBLE)
    q, legal = e["q_t_target"], e["legal_t"]
    for f in (soft.value, soft.policy):
        laws.pure(f, q, legal, tau)
        laws.ranked(partial(f, tau=TAU), *(torch.stack([x, x.flip(0)]) for x in (q, legal)), leading=2)
        laws.gradients(lambda q, f=f: f(q, legal, TAU).square().sum(), q)
    rest = (example()["legal_tm1"], legal)
    args = *list(e.values())[:5], *rest, *(torch.tensor(x, dtype=DOUBLE) for x in (0.9, TAU, -1.0))
    laws.pure(soft.munchausen_target, *args)
    laws.vmapped(partial(soft.munchausen_target, tau=TAU), *args[:7])
    other = *list(example(4).values())[:5], *rest, *(x / 2 for x in args[7:])
    laws.vmapped(soft.munchausen_target, *tree.stack([args, other]))
    laws.compiled(vmap(soft.munchausen_target), *tree.stack([args, other]), again=[], atol=1e-12)
    tracked = [x.requires_grad_() if x.is_floating_point() else x for x in args]
    assert not soft.munchausen_target(*tracked).requires_grad
