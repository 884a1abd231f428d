"""Tests of losses: a loop over the equations, PyTorch's losses, gradients and masks."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

from fdqn import random, tree
from fdqn.ops import losses, masking, td
from fdqn.testing import asserts, laws, strategies

B, A = 5, 3


def example(seed=3, batch=(B,), dtype=torch.float64):
    key = random.key(seed)
    q_tm1, q_t, selector = (random.normal(random.fold_in(key, i), (*batch, A), dtype) for i in range(3))
    r_t, discount_t = (random.normal(random.fold_in(key, i), batch, dtype) for i in (3, 4))
    a_tm1 = random.randint(random.fold_in(key, 5), batch, 0, A)
    legal_t = random.uniform(random.fold_in(key, 6), (*batch, A)) < 0.6
    return {
        "q_tm1": q_tm1, "a_tm1": a_tm1, "r_t": r_t, "discount_t": discount_t, "q_t": q_t, "q_t_selector": selector,
        "legal_t": legal_t,
    }  # fmt: skip


def arguments(f, **changes):
    values = {**example(), **changes}
    if f is td.q_learning:
        values.pop("q_t_selector")
    return tuple(values.values())


BOTH = pytest.mark.parametrize("f", [td.q_learning, td.double_q_learning])


def by_hand(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector, legal_t):
    rows = zip(*(x.tolist() for x in (q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector, legal_t)), strict=True)
    for q, a, r, discount, following, selector, legal in rows:
        options = [i for i in range(len(q)) if legal[i]]
        best = max(options, key=lambda i: selector[i], default=None)
        yield r + discount * (0.0 if best is None else following[best]) - q[a]


@given(strategies.q_batches(dtype=torch.float64, at_least_one=False), st.data())
def test_equal_to_a_loop(batch, data):
    q_t, legal_t = batch
    shape = q_t.shape
    q_tm1, selector = (data.draw(strategies.tensors(shape, dtype=torch.float64)) for _ in range(2))
    r_t, discount_t = (data.draw(strategies.tensors(shape[:1], -1, 1, torch.float64)) for _ in range(2))
    a_tm1 = random.randint(data.draw(strategies.keys()), shape[:1], 0, shape[1])
    for choice, f in ((q_t, td.q_learning), (selector, td.double_q_learning)):
        extra = () if f is td.q_learning else (selector,)
        expected = torch.tensor(list(by_hand(q_tm1, a_tm1, r_t, discount_t, q_t, choice, legal_t)), dtype=torch.float64)
        got = f(q_tm1, a_tm1, r_t, discount_t, q_t, *extra, legal_t)
        asserts.assert_trees_close(expected, got, 1e-9, 1e-12)


@BOTH
def test_laws_of_a_function(f):
    laws.pure(f, *arguments(f))
    laws.vmapped(f, *arguments(f))
    laws.ranked(f, *tree.map(lambda x: torch.stack([x, x.flip(0)]), arguments(f)), leading=2)
    laws.compiled(f, *arguments(f), atol=1e-12)


@BOTH
def test_only_the_prediction_has_a_gradient(f):
    laws.semi_gradient(f, *arguments(f), held=range(2, len(arguments(f))))


@BOTH
def test_gradient_of_the_prediction(f):
    laws.gradients(lambda q: losses.squared(f(q, *arguments(f)[1:])).mean(), arguments(f)[0])


@BOTH
def test_values_of_illegal_actions_are_ignored(f):
    legal_t = example()["legal_t"]
    laws.masked(lambda q_t, legal: f(*arguments(f, q_t=q_t)), example()["q_t"], legal_t)
    if f is td.double_q_learning:
        laws.masked(lambda selector, legal: f(*arguments(f, q_t_selector=selector)), example()["q_t_selector"], legal_t)


@BOTH
def test_values_of_other_actions_are_ignored(f):
    taken = example()["a_tm1"].unsqueeze(-1) == torch.arange(A)
    laws.masked(lambda q_tm1, taken: f(*arguments(f, q_tm1=q_tm1)), example()["q_tm1"], taken)


@BOTH
def test_no_legal_action_and_minus_infinity_give_no_nan(f):
    nothing = torch.zeros(B, A, dtype=torch.bool)
    q_t = torch.full((B, A), -torch.inf, dtype=torch.float64)
    delta = f(*arguments(f, q_t=q_t, legal_t=nothing))
    asserts.assert_trees_equal(
        example()["r_t"] - example()["q_tm1"].gather(1, example()["a_tm1"][:, None])[:, 0], delta
    )


@BOTH
def test_a_terminal_step_does_not_bootstrap(f):
    q_t = example()["q_t"] * 1e6
    zero = torch.zeros(B, dtype=torch.float64)
    asserts.assert_trees_equal(f(*arguments(f, discount_t=zero)), f(*arguments(f, discount_t=zero, q_t=q_t)))


def test_expected_sarsa_of_a_greedy_policy_is_q_learning():
    legal_t = example()["legal_t"] | (torch.arange(A) == 0)
    greedy = masking.greedy(example()["q_t"], legal_t)
    one_hot = losses.one_hot(greedy, A, torch.float64)
    asserts.assert_trees_equal(
        td.q_learning(*arguments(td.q_learning, legal_t=legal_t)), sarsa(pi_t=one_hot, legal_t=legal_t)
    )


def sarsa(**changes):
    values = {**example(), **changes}
    pi_t = values.pop("pi_t", torch.where(values["legal_t"], values.pop("q_t_selector"), -1e9).softmax(-1))
    return td.expected_sarsa(
        *(values[n] for n in ("q_tm1", "a_tm1", "r_t", "discount_t", "q_t")), pi_t, values["legal_t"]
    )


def test_laws_of_expected_sarsa():
    pi_t, legal_t = example()["q_t_selector"].softmax(-1), example()["legal_t"]
    args = (*arguments(td.q_learning)[:5], pi_t, legal_t)
    laws.vmapped(td.expected_sarsa, *args)
    laws.ranked(td.expected_sarsa, *tree.map(lambda x: torch.stack([x, x.flip(0)]), args), leading=2)
    laws.semi_gradient(td.expected_sarsa, *args, held=range(2, 7))
    laws.gradients(lambda q: losses.squared(sarsa(q_tm1=q)).mean(), example()["q_tm1"])
    laws.masked(lambda q_t, legal: sarsa(q_t=q_t) + 0 * torch.where(legal, q_t, 0.0).sum(), example()["q_t"], legal_t)
    laws.masked(lambda p, legal: sarsa(pi_t=p) + 0 * torch.where(legal, p, 0.0).sum(), pi_t, legal_t)


@BOTH
def test_messages(f):
    for name, wrong in (
        ("q_tm1", torch.tensor(1.0)),
        ("r_t", example()["r_t"].unsqueeze(-1)),
        ("discount_t", example()["discount_t"][:1]),
        ("a_tm1", example()["a_tm1"].unsqueeze(-1)),
        ("q_t", example()["q_t"][:, :2]),
        ("legal_t", example()["legal_t"][0]),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected shape .*, got"):
            f(*arguments(f, **{name: wrong}))
    with pytest.raises(TypeError, match=r"legal_t: expected torch.bool, got torch.float64"):
        f(*arguments(f, legal_t=example()["legal_t"].double()))
    with pytest.raises(TypeError, match=r"^a_tm1: expected an integer dtype, got torch.float64"):
        f(*arguments(f, a_tm1=example()["a_tm1"].double()))


@given(strategies.tensors((6,), -5.0, 5.0, torch.float64), st.floats(0.1, 3.0))
def test_elementwise_losses_equal_pytorch(delta, threshold):
    zero = torch.zeros_like(delta)
    torch.testing.assert_close(losses.squared(delta).mean(), F.mse_loss(delta, zero), rtol=1e-14, atol=0)
    expected = F.huber_loss(delta, zero, reduction="none", delta=threshold)
    torch.testing.assert_close(losses.huber(delta, threshold), expected, rtol=1e-14, atol=1e-14)
    ours = grad(lambda d: losses.huber(d, threshold).sum())(delta)
    theirs = grad(lambda d: F.huber_loss(d, zero, reduction="sum", delta=threshold))(delta)
    kink = (delta.abs() - threshold).abs() < 1e-9
    torch.testing.assert_close(ours[~kink], theirs[~kink], rtol=1e-14, atol=1e-14)


def test_huber_at_zero_infinity_and_its_kink():
    delta = torch.tensor([0.0, 1.0, -1.0, torch.inf], dtype=torch.float64)
    assert losses.huber(delta).tolist() == [0.0, 0.5, 0.5, torch.inf]
    assert losses.huber(torch.tensor(3.0)) == 2.5
    slope = grad(lambda d: losses.huber(d).sum())(delta[:3])
    torch.testing.assert_close(slope, torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("f", [losses.squared, losses.huber])
def test_values_of_elementwise_losses(f):
    delta = torch.tensor([[0.3, -2.0], [1.5, 0.01]])
    laws.pure(f, delta)
    laws.ranked(f, delta, leading=2)
    laws.compiled(f, delta)
    laws.gradients(lambda d: f(d).mean(), delta)


@BOTH
@pytest.mark.parametrize("loss", [losses.squared, losses.huber])
def test_compile_of_vmap_of_grad(f, loss):
    seeds = tree.stack([arguments(f), tree.map(lambda x: x.flip(0), arguments(f))])
    step = vmap(grad(lambda q, *rest: loss(f(q, *rest)).mean()))
    laws.compiled(step, *seeds, atol=1e-12)


def logits_and(key, classes=4, batch=(B,)):
    logits = 3 * random.normal(random.fold_in(random.key(key), 0), (*batch, classes), torch.float64)
    probabilities = random.normal(random.fold_in(random.key(key), 1), (*batch, classes), torch.float64).softmax(-1)
    return logits, probabilities, random.randint(random.fold_in(random.key(key), 2), batch, 0, classes)


@given(strategies.tensors((6,), -5.0, 5.0, torch.float64), strategies.tensors((6,), -5.0, 5.0, torch.float64))
def test_mse_huber_and_smooth_l1_equal_pytorch(predictions, targets):
    delta = predictions - targets
    pairs = [
        (losses.squared(delta), F.mse_loss),
        (losses.huber(delta, 0.7), lambda *xs, reduction: F.huber_loss(*xs, delta=0.7, reduction=reduction)),
        (losses.smooth_l1(delta, 0.7), lambda *xs, reduction: F.smooth_l1_loss(*xs, beta=0.7, reduction=reduction)),
        (losses.smooth_l1(delta), F.smooth_l1_loss),
    ]
    for ours, theirs in pairs:
        for reduction, result in (("none", ours), ("mean", ours.mean()), ("sum", ours.sum())):
            expected = theirs(predictions, targets, reduction=reduction)
            torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-13)


@given(st.integers(0, 99), st.integers(2, 6), st.sampled_from([0.0, 0.1, 1.0]))
def test_cross_entropy_equals_pytorch(key, classes, smoothing):
    """Compare class indices and probabilities, smoothed or not, in all reductions. Classes are axis 1 in PyTorch."""
    logits, probabilities, labels = logits_and(key, classes)
    one_hot = losses.one_hot(labels, classes, torch.float64)
    pairs = [
        (losses.cross_entropy(logits, losses.smoothed(probabilities, smoothing)), probabilities),
        (losses.cross_entropy(logits, losses.smoothed(one_hot, smoothing)), labels),
    ]
    pairs += [(losses.cross_entropy_of_labels(logits, labels), labels)] if smoothing == 0 else []
    for ours, target in pairs:
        for reduction, result in (("none", ours), ("mean", ours.mean()), ("sum", ours.sum())):
            expected = F.cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing)
            torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-13)


def test_cross_entropy_of_more_axes_equals_pytorch():
    logits, probabilities, labels = logits_and(3, 4, (2, 5))
    for ours, target in (
        (losses.cross_entropy_of_labels(logits, labels), labels),
        (losses.cross_entropy(logits, probabilities), probabilities.movedim(-1, 1)),
    ):
        expected = F.cross_entropy(logits.movedim(-1, 1), target, reduction="none")
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)


def test_cross_entropy_of_huge_and_impossible_logits():
    """Mask a class with probability 0 by -inf, and check that value and gradient are not NaN."""
    logits = torch.tensor([[1e4, -1e4, -torch.inf], [0.0, 0.0, -torch.inf]], dtype=torch.float64)
    for f, target in ((losses.cross_entropy, torch.tensor([[1.0, 0, 0], [0, 1, 0]]).double()),
                      (losses.cross_entropy_of_labels, torch.tensor([0, 1]))):  # fmt: skip
        assert f(logits, target).tolist() == [0.0, pytest.approx(0.6931471805599453)]
        slope = grad(lambda x, f=f, target=target: f(x, target).sum())(logits)
        assert slope.tolist() == [[0.0, 0.0, 0.0], [0.5, -0.5, 0.0]]
    assert losses.cross_entropy_of_labels(logits, torch.tensor([2, 2])).tolist() == [torch.inf, torch.inf]
    impossible = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.0, 0.5]], dtype=torch.float64)
    assert losses.cross_entropy(logits, impossible).tolist() == [torch.inf, torch.inf]


CLASSIFIER = [
    (losses.cross_entropy, lambda key: logits_and(key)[:2]),
    (losses.cross_entropy_of_labels, lambda key: logits_and(key)[::2]),
]


@pytest.mark.parametrize(("f", "make"), CLASSIFIER)
def test_laws_of_classification_losses(f, make):
    laws.pure(f, *make(1))
    laws.vmapped(f, *make(1))
    laws.ranked(f, *tree.map(lambda x: torch.stack([x, x.flip(0)]), make(1)), leading=2)
    laws.compiled(f, *make(1), atol=1e-12)
    laws.gradients(lambda logits: f(logits, make(1)[1]).mean(), make(1)[0])
    seeds = tree.stack([make(1), make(2)])
    laws.compiled(vmap(grad(lambda *xs: f(*xs).mean())), *seeds, atol=1e-12)


def test_gradient_of_cross_entropy_with_respect_to_probabilities():
    logits, probabilities, _ = logits_and(5)
    laws.gradients(lambda p: losses.cross_entropy(logits, p).sum(), probabilities)


@pytest.mark.parametrize("f", [lambda p: losses.smoothed(p, 0.3), losses.smooth_l1])
def test_laws_of_smoothing(f):
    x = torch.tensor([[0.3, -2.0], [1.5, 0.01]])
    laws.pure(f, x)
    laws.ranked(f, x, leading=1)
    laws.compiled(f, x)
    laws.gradients(lambda d: f(d).square().mean(), x)


def test_smoothed_probabilities_are_probabilities():
    _, probabilities, _ = logits_and(4)
    smooth = losses.smoothed(probabilities, 0.4)
    torch.testing.assert_close(smooth.sum(-1), torch.ones(B).double())
    assert (smooth >= 0.4 / 4).all()


@BOTH
def test_actions_out_of_range_are_refused(f):
    for action, at in ((3, 3), (-1, 3)):
        wrong = example()["a_tm1"].clone()
        wrong[at] = action
        with pytest.raises(IndexError, match=rf"^a_tm1\[{at}\]: expected a number from 0 to 2, got {action}"):
            f(*arguments(f, a_tm1=wrong))


@BOTH
def test_integer_values_are_refused(f):
    for name in ("q_tm1", "q_t", *(["q_t_selector"] if f is td.double_q_learning else [])):
        with pytest.raises(TypeError, match=f"^{name}: expected a floating-point dtype, got torch.int64"):
            f(*arguments(f, **{name: example()[name].long()}))


def test_elementwise_losses_refuse_integers_and_invalid_thresholds():
    for f in (losses.squared, losses.huber, losses.smooth_l1):
        with pytest.raises(TypeError, match=r"^delta: expected a floating-point dtype, got torch.int8"):
            f(torch.tensor([100], dtype=torch.int8))
    with pytest.raises(ValueError, match=r"^threshold: expected a number above 0, got 0"):
        losses.huber(torch.ones(2), 0)
    with pytest.raises(ValueError, match=r"^threshold: expected at least 0, got -1"):
        losses.huber(torch.ones(2), -1)


def test_thresholds_and_smoothing_may_differ_between_seeds():
    numbers, delta = torch.tensor([0.5, 2.0]), torch.tensor([1.0, 1.0])
    assert vmap(losses.huber)(delta, numbers).tolist() == [0.375, 0.5]
    assert vmap(losses.smooth_l1)(delta, numbers).tolist() == [0.75, 0.25]
    shares = torch.tensor([0.5, 1.0])
    assert vmap(losses.smoothed)(torch.eye(2), shares).tolist() == [[0.75, 0.25], [0.5, 0.5]]


def test_one_hot():
    labels = torch.tensor([[0, 2], [1, 1]])
    asserts.assert_trees_equal(F.one_hot(labels, 3).float(), laws.pure(losses.one_hot, labels, 3))
    laws.vmapped(lambda x: losses.one_hot(x, 3), labels)
    assert losses.one_hot(labels, 3, torch.float64).dtype == torch.float64


def test_messages_of_classification_losses():
    logits, probabilities, labels = logits_and(6)
    for f in (losses.cross_entropy_of_labels, lambda _, x: losses.one_hot(x, 4)):
        with pytest.raises(IndexError, match=r"labels\[1\]: expected a number from 0 to 3, got 4"):
            f(logits[:2], torch.tensor([3, 4]))
        with pytest.raises(IndexError, match=r"labels\[0\]: expected a number from 0 to 3, got -1"):
            f(logits[:2], torch.tensor([-1, 4]))
        with pytest.raises(TypeError, match=r"labels: expected an integer dtype, got torch.float64"):
            f(logits, labels.double())
    for f, other in ((losses.cross_entropy, probabilities), (losses.cross_entropy_of_labels, labels)):
        with pytest.raises(ValueError, match=r"^logits: expected shape \[... K\], got \[\]"):
            f(torch.tensor(1.0), other)
    with pytest.raises(ValueError, match=r"labels: expected shape \[...\] with ... = \[5\], got \[4\]"):
        losses.cross_entropy_of_labels(logits, labels[:4])
    with pytest.raises(ValueError, match=r"probabilities: expected shape \[... K\] with K = 4, got \[5, 3\]"):
        losses.cross_entropy(logits, probabilities[:, :3])
    with pytest.raises(TypeError, match=r"probabilities: expected a floating-point dtype, got torch.int64"):
        losses.cross_entropy(logits, probabilities.long())
    with pytest.raises(TypeError, match=r"logits: expected a floating-point dtype, got torch.int64"):
        losses.cross_entropy(logits.long(), probabilities)
    with pytest.raises(TypeError, match=r"logits: expected a floating-point dtype, got torch.int64"):
        losses.cross_entropy_of_labels(logits.long(), labels)
    with pytest.raises(ValueError, match=r"fraction: expected a number from 0 to 1, got 1.5"):
        losses.smoothed(probabilities, 1.5)
    for beta in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"beta: expected .*, got {beta}"):
            losses.smooth_l1(logits, beta)
    with pytest.raises(TypeError, match=r"classes: expected an integer, got 2\.5"):
        losses.one_hot(labels, 2.5)
    with pytest.raises(ValueError, match=r"probabilities: expected shape \[... K\], got \[\]"):
        losses.smoothed(torch.tensor(1.0), 0.5)
