"""Tests of selection from Q-values under a mask."""

import contextlib

import pytest
import torch
from hypothesis import given
from plants import rejects
from torch.func import vmap

from fdqn import envs, random
from fdqn.ops import losses, masking
from fdqn.testing import asserts, laws, strategies


@given(strategies.q_batches(at_least_one=False))
def test_greedy_and_best_equal_a_loop(batch):
    q, legal = batch
    for i, (values, mask) in enumerate(zip(q.tolist(), legal.tolist(), strict=True)):
        allowed = {a: v for a, (v, ok) in enumerate(zip(values, mask, strict=True)) if ok}
        first_of_the_highest = min((a for a in allowed if allowed[a] == max(allowed.values())), default=0)
        assert masking.greedy(q, legal)[i] == first_of_the_highest
        assert masking.best(q, legal)[i] == max(allowed.values(), default=0.0)


@given(strategies.q_batches())
def test_masks(batch):
    q, legal = batch
    laws.masked(masking.best, q, legal)
    laws.masked(masking.greedy, q, legal)
    laws.legal_only(masking.greedy, q, legal)
    chosen = masking.greedy(q, legal)
    laws.masked(lambda q, legal: masking.pick(q, chosen), q, chosen.unsqueeze(-1) == torch.arange(q.shape[-1]))


@given(strategies.q_batches())
def test_pick_equals_gather(batch):
    q, legal = batch
    a = masking.greedy(q, legal)
    asserts.assert_trees_equal(q.gather(-1, a.unsqueeze(-1)).squeeze(-1), masking.pick(q, a))


@given(strategies.q_batches(at_least_one=False))
def test_values_selected_by_others_and_means_equal_a_loop(batch):
    q, legal = batch
    selector = q.flip(0)
    probabilities = torch.where(legal, selector, -1e9).softmax(-1)
    for i, mask in enumerate(legal.tolist()):
        allowed = [a for a, ok in enumerate(mask) if ok]
        choice = max(allowed, key=lambda a: selector[i, a].item(), default=None)
        assert masking.selected(q, selector, legal)[i] == (0.0 if choice is None else q[i, choice])
        mean = sum((probabilities[i, a] * q[i, a] for a in allowed), torch.tensor(0.0))
        torch.testing.assert_close(masking.expected(q, probabilities, legal)[i], mean, rtol=1e-5, atol=1e-5)
    laws.masked(lambda q, legal: masking.selected(q, selector, legal), q, legal)
    laws.masked(lambda x, legal: masking.selected(q, x, legal) + 0 * torch.where(legal, x, 0.0).sum(), selector, legal)
    laws.masked(lambda q, legal: masking.expected(q, probabilities, legal), q, legal)
    laws.masked(lambda p, legal: masking.expected(q, p, legal), probabilities, legal)
    with rejects("illegal values") if not legal.all() else contextlib.nullcontext():
        laws.masked(lambda q, legal: (probabilities * legal * q).sum(-1), q, legal)


def test_pick_out_of_range_raises_or_gives_0():
    q = torch.ones(2, 3)
    for action, at in ((torch.tensor([2, -1]), r"\[1\]: .* got -1"), (torch.tensor([3, 0]), r"\[0\]: .* got 3")):
        with pytest.raises(IndexError, match=f"action{at}"):
            masking.pick(q, action)
    assert vmap(masking.pick)(q, torch.tensor([-1, 3])).tolist() == [0.0, 0.0]


def test_minus_infinity_is_a_valid_value():
    q, legal = torch.tensor([[1.0, -torch.inf]]), torch.tensor([[False, True]])
    assert masking.best(q, legal).item() == -torch.inf


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_greedy_is_legal_for_any_values(value):
    q, legal = torch.tensor([5.0, value, value]), torch.tensor([False, True, True])
    assert masking.greedy(q, legal).item() == 1


Q = torch.tensor([[[1.0, 2.0, 3.0], [0.5, -1.0, 0.1]]])
LEGAL = torch.tensor([[[True, True, False], [True, False, True]]])


def test_laws_of_a_function():
    for f in (masking.best, masking.greedy):
        laws.pure(f, Q, LEGAL)
        laws.ranked(f, Q, LEGAL, leading=2)
        laws.compiled(f, Q, LEGAL)
    a = torch.tensor([[2, 0]])
    laws.ranked(masking.pick, Q, a, leading=2)
    laws.compiled(masking.pick, Q, a)
    laws.gradients(lambda q: (masking.pick(q, a) * 3).sum(), Q)
    laws.gradients(lambda q: masking.best(q, LEGAL).sum(), Q)


def test_messages():
    with pytest.raises(TypeError, match=r"action: expected an integer dtype, got torch.float32"):
        masking.pick(Q, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"action: expected shape \[...\] with ... = \[1, 2\], got \[1, 2, 1\]"):
        masking.pick(Q, torch.zeros(1, 2, 1, dtype=torch.int64))
    for f in (masking.best, masking.greedy):
        with pytest.raises(TypeError, match=r"legal: expected torch.bool, got torch.int64"):
            f(Q, LEGAL.long())
        with pytest.raises(ValueError, match="legal: expected shape"):
            f(Q, LEGAL[..., :2])


@pytest.mark.parametrize("f", [masking.greedy, masking.best])
def test_messages_name_the_argument(f):
    with pytest.raises(ValueError, match=r"^q: expected shape \[... A\], got \[\]"):
        f(torch.tensor(1.0), torch.tensor([True]))
    with pytest.raises(ValueError, match=r"^legal: expected shape \[... A\] with A = 2, got \[3\]"):
        f(torch.ones(2), torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"^legal: expected torch.bool, got torch.int64"):
        f(torch.ones(2), torch.ones(2, dtype=torch.int64))


def test_messages_of_pick_and_of_integers():
    with pytest.raises(ValueError, match=r"^q: expected shape \[... A\], got \[\]"):
        masking.pick(torch.tensor(1.0), torch.tensor(0))
    with pytest.raises(TypeError, match=r"^q: expected a floating-point dtype, got torch.int64"):
        masking.greedy(torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.uint16, torch.uint32, torch.uint64])
def test_actions_and_labels_of_any_integer_dtype(dtype):
    """Include wide unsigned integers, which PyTorch cannot compare with int64."""
    q, action = torch.arange(6.0).reshape(2, 3), torch.tensor([2, 1], dtype=dtype)
    assert masking.pick(q, action).tolist() == [2.0, 4.0]
    assert losses.one_hot(action, 300).argmax(-1).tolist() == [2, 1]
    assert torch.equal(losses.cross_entropy_of_labels(q, action), losses.cross_entropy_of_labels(q, action.long()))
    for name in envs.names():
        env = envs.make(name)
        u = random.uniform(random.key(0), (2, env.spec.noise))
        state, _ = env.reset(u)
        taken = action.long() % 2
        asserts.assert_trees_equal(env.step(state, taken, u), env.step(state, taken.to(dtype), u))
