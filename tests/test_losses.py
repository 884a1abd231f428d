"""The equations: a loop over the paper's letters, PyTorch's losses, gradients, what is held fixed, masks."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

from fdqn import losses, random, tree
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
    if f is losses.q_learning:
        values.pop("q_t_selector")
    return tuple(values.values())


BOTH = pytest.mark.parametrize("f", [losses.q_learning, losses.double_q_learning])


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
    for choice, f in ((q_t, losses.q_learning), (selector, losses.double_q_learning)):
        extra = () if f is losses.q_learning else (selector,)
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
def test_only_the_prediction_learns(f):
    laws.semi_gradient(f, *arguments(f), held=range(2, len(arguments(f))))


@BOTH
def test_gradient_is_that_of_the_prediction(f):
    laws.gradients(lambda q: losses.squared(f(q, *arguments(f)[1:])).mean(), arguments(f)[0])


@BOTH
def test_illegal_values_do_not_matter(f):
    legal_t = example()["legal_t"]
    laws.masked(lambda q_t, legal: f(*arguments(f, q_t=q_t)), example()["q_t"], legal_t)
    if f is losses.double_q_learning:
        laws.masked(lambda selector, legal: f(*arguments(f, q_t_selector=selector)), example()["q_t_selector"], legal_t)


@BOTH
def test_values_of_actions_not_taken_do_not_matter(f):
    taken = example()["a_tm1"].unsqueeze(-1) == torch.arange(A)
    laws.masked(lambda q_tm1, taken: f(*arguments(f, q_tm1=q_tm1)), example()["q_tm1"], taken)


@BOTH
def test_nothing_legal_and_minus_infinity_give_no_nan(f):
    nothing = torch.zeros(B, A, dtype=torch.bool)
    q_t = torch.full((B, A), -torch.inf, dtype=torch.float64)
    delta = f(*arguments(f, q_t=q_t, legal_t=nothing))
    asserts.assert_trees_equal(
        example()["r_t"] - example()["q_tm1"].gather(1, example()["a_tm1"][:, None])[:, 0], delta
    )


@BOTH
def test_a_terminal_step_has_no_future(f):
    q_t = example()["q_t"] * 1e6
    zero = torch.zeros(B, dtype=torch.float64)
    asserts.assert_trees_equal(f(*arguments(f, discount_t=zero)), f(*arguments(f, discount_t=zero, q_t=q_t)))


@BOTH
def test_messages(f):
    for name, wrong in (
        ("r_t", example()["r_t"].unsqueeze(-1)),
        ("discount_t", example()["discount_t"][:1]),
        ("a_tm1", example()["a_tm1"].unsqueeze(-1)),
        ("q_t", example()["q_t"][:, :2]),
        ("legal_t", example()["legal_t"][0]),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected shape .*, got"):
            f(*arguments(f, **{name: wrong}))
    with pytest.raises(TypeError, match=r"legal_t: expected torch.bool, got torch.float64"):
        f(*arguments(f, legal_t=example()["legal_t"].double()))
    with pytest.raises(TypeError, match=r"action: expected an integer dtype, got torch.float64"):
        f(*arguments(f, a_tm1=example()["a_tm1"].double()))


@given(strategies.tensors((6,), -5.0, 5.0, torch.float64), st.floats(0.1, 3.0))
def test_pytorchs_losses(delta, threshold):
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
    slope = grad(lambda d: losses.huber(d).sum())(delta[:3])
    torch.testing.assert_close(slope, torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("f", [losses.squared, losses.huber])
def test_penalties(f):
    delta = torch.tensor([[0.3, -2.0], [1.5, 0.01]])
    laws.pure(f, delta)
    laws.ranked(f, delta, leading=2)
    laws.compiled(f, delta)
    laws.gradients(lambda d: f(d).mean(), delta)


@BOTH
@pytest.mark.parametrize("penalty", [losses.squared, losses.huber])
def test_compile_of_vmap_of_grad(f, penalty):
    lanes = tree.stack([arguments(f), tree.map(lambda x: x.flip(0), arguments(f))])
    step = vmap(grad(lambda q, *rest: penalty(f(q, *rest)).mean()))
    laws.compiled(step, *lanes, atol=1e-12)
