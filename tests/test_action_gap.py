"""Targets that increase the action gap: comparison with loops, special cases, masks, laws of functions."""

from functools import partial

import pytest
import torch
from plants import rejects
from torch.func import vmap

from fdqn import random, tree
from fdqn.ops import action_gap, masking, td
from fdqn.testing import asserts, laws

B, A = 64, 3
NAMES = {
    action_gap.advantage_learning_target: (
        "r_t", "discount_t", "q_tm1", "a_tm1", "q_t", "legal_tm1", "legal_t",
    ),
    action_gap.persistent_q_learning_target: ("r_t", "discount_t", "a_tm1", "q_t", "legal_t"),
    action_gap.persistent_advantage_learning_target: (
        "r_t", "discount_t", "q_tm1", "a_tm1", "q_t", "legal_tm1", "legal_t",
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize("f", NAMES, ids=lambda f: f.__name__)


def example(seed=3):
    key = random.key(seed)
    q_tm1, q_t = (random.normal(random.fold_in(key, i), (B, A), torch.float64) for i in range(2))
    r_t = random.normal(random.fold_in(key, 2), (B,), torch.float64)
    discount_t = 0.9 * (random.uniform(random.fold_in(key, 3), (B,)) < 0.8).double()
    a_tm1 = random.randint(random.fold_in(key, 4), (B,), 0, A)
    legal_tm1 = (random.uniform(random.fold_in(key, 5), (B, A)) < 0.5) | (a_tm1.unsqueeze(-1) == torch.arange(A))
    legal_t = (random.uniform(random.fold_in(key, 6), (B, A)) < 0.6) & (discount_t > 0).unsqueeze(-1)
    return {
        "r_t": r_t, "discount_t": discount_t, "q_tm1": q_tm1, "a_tm1": a_tm1, "q_t": q_t, "legal_tm1": legal_tm1,
        "legal_t": legal_t,
    }  # fmt: skip


def target(f, alpha=0.4, steps=None, **changes):
    given = {**(example() if steps is None else steps), **changes}
    return f(*(given[name] for name in NAMES[f]), alpha)


def loop_over_rows(f, alpha, r_t, discount_t, q_tm1, a_tm1, q_t, legal_tm1, legal_t):
    rows = zip(*(x.tolist() for x in (r_t, discount_t, q_tm1, a_tm1, q_t, legal_tm1, legal_t)), strict=True)
    for r, discount, q, a, following, now, then in rows:
        best = max((x for x, ok in zip(following, then, strict=True) if ok), default=0.0)
        advantage = r + discount * best - alpha * (max(x for x, ok in zip(q, now, strict=True) if ok) - q[a])
        persistent = r + discount * ((1 - alpha) * best + alpha * following[a]) if then[a] else None
        if f is action_gap.persistent_q_learning_target:
            yield r + discount * best if persistent is None else persistent
        elif f is action_gap.advantage_learning_target or persistent is None:
            yield advantage
        else:
            yield max(advantage, persistent)


@EACH
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_equals_a_loop_over_rows(f, alpha):
    expected = torch.tensor(list(loop_over_rows(f, alpha, **example())), dtype=torch.float64)
    asserts.assert_trees_close(expected, target(f, alpha), 1e-12)


@EACH
def test_alpha_0_is_q_learning(f):
    e = example()
    expected = td.q_learning_target(e["r_t"], e["discount_t"], e["q_t"], e["legal_t"])
    if f is not action_gap.persistent_advantage_learning_target:
        asserts.assert_trees_equal(expected, target(f, 0))
    asserts.assert_trees_close(expected, target(f, 0), 1e-12)


def test_target_subtracts_the_gap_and_is_unchanged_for_the_greedy_action():
    """Check that alpha times the gap at t-1 is subtracted, which is 0 for the best action."""
    e = example()
    gap = action_gap.action_gap(e["q_tm1"], e["a_tm1"], e["legal_tm1"])
    assert (gap >= 0).all()
    best = masking.greedy(e["q_tm1"], e["legal_tm1"])
    asserts.assert_trees_equal(torch.zeros_like(gap), action_gap.action_gap(e["q_tm1"], best, e["legal_tm1"]))
    f, plain = action_gap.advantage_learning_target, td.q_learning_target
    one_step = plain(e["r_t"], e["discount_t"], e["q_t"], e["legal_t"])
    asserts.assert_trees_close(one_step - 0.4 * gap, target(f), 1e-12)
    asserts.assert_trees_equal(one_step, target(f, a_tm1=best))
    assert (target(action_gap.persistent_advantage_learning_target) >= target(f)).all()


def test_advantage_learning_of_double_q_learning():
    """Subtract the gap of the target network at t-1 from the target of double Q-learning."""
    e, selector = example(), random.normal(random.key(9), (B, A), torch.float64)
    gap = action_gap.action_gap(e["q_tm1"], e["a_tm1"], e["legal_tm1"])
    double = td.double_q_learning_target(e["r_t"], e["discount_t"], e["q_t"], selector, e["legal_t"])
    steps = {
        **e,
        "q_t": torch.where(masking.greedy(selector, e["legal_t"]).unsqueeze(-1) == torch.arange(A), e["q_t"], -9.0),
    }
    asserts.assert_trees_close(target(action_gap.advantage_learning_target, steps=steps), double - 0.4 * gap, 1e-12)


def test_all_actions_are_legal_without_a_mask_at_t_minus_1():
    everything = torch.ones(B, A, dtype=torch.bool)
    for f in (action_gap.advantage_learning_target, action_gap.persistent_advantage_learning_target):
        asserts.assert_trees_equal(target(f, legal_tm1=everything), target(f, legal_tm1=None))
        with rejects("expected"):
            asserts.assert_trees_equal(target(f), target(f, legal_tm1=None))


def test_an_action_that_is_illegal_at_t_is_not_repeated():
    e, f = example(), action_gap.persistent_q_learning_target
    expected = td.q_learning_target(e["r_t"], e["discount_t"], e["q_t"], e["legal_t"])
    repeats = e["legal_t"][range(B), e["a_tm1"]]
    assert 0 < repeats.sum() < B
    asserts.assert_trees_close(expected[~repeats], target(f)[~repeats], 1e-12)


def zero_with_gradient(x):
    """Return 0 with a gradient of zeros in x, because no gradient flows through a target."""
    return 0 * x.nan_to_num(0.0, 0.0, 0.0).sum()


@EACH
def test_values_of_illegal_actions_are_ignored(f):
    e = example()
    laws.masked(lambda q, legal: target(f, q_t=q) + zero_with_gradient(q), e["q_t"], e["legal_t"])
    if "q_tm1" in NAMES[f]:
        laws.masked(lambda q, legal: target(f, q_tm1=q) + zero_with_gradient(q), e["q_tm1"], e["legal_tm1"])
        with rejects("illegal values 1e"):
            laws.masked(
                lambda q, legal: target(f, q_tm1=q, legal_tm1=None) + zero_with_gradient(q), e["q_tm1"], e["legal_tm1"]
            )
    with rejects("illegal values"):
        laws.masked(lambda q, legal: repeats_illegal_actions(e, q) + zero_with_gradient(q), e["q_t"], e["legal_t"])


def repeats_illegal_actions(e, q_t):
    """Compute the target with a planted bug: it repeats an action that is illegal at t."""
    best = masking.best(q_t, e["legal_t"])
    return e["r_t"] + e["discount_t"] * (0.6 * best + 0.4 * masking.pick(q_t, e["a_tm1"]))


def test_illegal_actions_do_not_change_the_gap():
    e = example()
    laws.masked(lambda q, legal: action_gap.action_gap(q, e["a_tm1"], legal), e["q_tm1"], e["legal_tm1"])


@EACH
def test_the_order_of_actions_does_not_matter(f):
    e, order = example(), torch.tensor([2, 0, 1])
    moved = {name: x[:, order] if x.ndim == 2 else x for name, x in e.items()}
    moved["a_tm1"] = order.argsort()[e["a_tm1"]]
    asserts.assert_trees_close(target(f), target(f, steps=moved), 1e-12)
    with rejects("expected"):
        asserts.assert_trees_close(target(f), target(f, steps={**moved, "a_tm1": e["a_tm1"]}), 1e-12)


@EACH
def test_laws_of_a_function(f):
    stacked = tree.stack([[example(seed)[name] for name in NAMES[f]] for seed in range(2)])
    laws.pure(partial(f, alpha=0.4), *stacked)
    laws.ranked(partial(f, alpha=0.4), *stacked, leading=2)
    laws.vmapped(f, *stacked, torch.tensor([0.2, 0.7], dtype=torch.float64))
    tracked = [x.requires_grad_() if x.is_floating_point() else x for x in stacked]
    assert not f(*tracked, 0.4).requires_grad


def test_compiled_for_several_seeds():
    def f(given, alpha):
        return [f(*args, alpha) for f, args in zip(NAMES, given, strict=True)]

    given = tree.stack([[[example(seed)[name] for name in names] for names in NAMES.values()] for seed in range(2)])
    laws.compiled(vmap(f), given, torch.tensor([0.2, 0.7], dtype=torch.float64), again=[], atol=1e-12)
