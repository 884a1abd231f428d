"""Compare losses with rlax and optimizers with optax, independent implementations of the same papers."""

import contextlib
from functools import partial

import numpy as np
import pytest
import torch

from fdqn import optim, tree
from fdqn.ops import distributional, losses, td
from fdqn.testing import examples

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
rlax = pytest.importorskip("rlax")

CASES = 200
EXACT = {"float32": 1e-6, "float64": 1e-12}
EACH_DTYPE = pytest.mark.parametrize("dtype", EXACT)


def wide(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def cases(dtype):
    """Generate rows of one to six actions or classes, half of them with ties, with some but not all actions illegal."""
    rng = np.random.default_rng(0)
    for case in range(CASES):
        size, batch = 1 + case % 6, 1 + case % 4
        values = rng.normal(size=(4, batch, size)).astype(dtype)
        if case % 2:
            values = np.round(values)
        numbers = rng.normal(size=(2, batch)).astype(dtype)
        chosen = rng.integers(size, size=batch)
        legal = rng.random((batch, size)) < 0.6
        legal[np.arange(batch), rng.integers(size, size=batch)] = True
        yield values, numbers, chosen, legal


def agree(dtype, ours, theirs):
    """Compare each case, with a relative tolerance for numbers above 1."""
    with wide(dtype):
        for case in cases(dtype):
            got, expected = ours(*(torch.from_numpy(x) for x in case)), np.asarray(theirs(*case))
            assert str(got.dtype) == f"torch.{expected.dtype}" == f"torch.{dtype}"
            np.testing.assert_allclose(got.numpy(), expected, rtol=EXACT[dtype], atol=EXACT[dtype])


def no_illegal(q, legal):
    """Mask with -inf, because rlax has no masks."""
    return np.where(legal, q, -np.inf)


@EACH_DTYPE
def test_q_learning(dtype):
    theirs = jax.jit(jax.vmap(rlax.q_learning))
    agree(
        dtype,
        lambda q, x, a, legal: td.q_learning(q[0], a, x[0], x[1], q[1], legal),
        lambda q, x, a, legal: theirs(q[0], a, x[0], x[1], no_illegal(q[1], legal)),
    )


@EACH_DTYPE
def test_double_q_learning(dtype):
    theirs = jax.jit(jax.vmap(rlax.double_q_learning))
    agree(
        dtype,
        lambda q, x, a, legal: td.double_q_learning(q[0], a, x[0], x[1], q[1], q[2], legal),
        lambda q, x, a, legal: theirs(q[0], a, x[0], x[1], q[1], no_illegal(q[2], legal)),
    )


def categorical_cases(dtype):
    """Distributions over even and uneven supports, moved inside and outside of them."""
    rng = np.random.default_rng(1)
    for case in range(CASES):
        atoms, batch, size = 6, 4, 3
        support = np.cumsum(rng.random(atoms) + 0.1) if case % 2 else np.linspace(-2, 3, atoms)
        logits = rng.normal(size=(2, batch, size, atoms))
        numbers = rng.normal(size=(2, batch))
        chosen = rng.integers(size, size=batch)
        selector = rng.normal(size=(batch, size))
        yield *(x.astype(dtype) for x in (support, logits, numbers, selector)), chosen


@EACH_DTYPE
def test_projection(dtype):
    theirs = jax.jit(jax.vmap(rlax.categorical_l2_project, (0, 0, None)))
    with wide(dtype):
        for support, logits, (r, d), _, _ in categorical_cases(dtype):
            p = torch.from_numpy(logits[0, :, 0]).softmax(-1)
            got = distributional.project(torch.from_numpy(support), p, torch.from_numpy(r), torch.from_numpy(d))
            expected = theirs(r[:, None] + d[:, None] * support, p.numpy(), support)
            np.testing.assert_allclose(got.numpy(), np.asarray(expected), rtol=EXACT[dtype], atol=EXACT[dtype])


@pytest.mark.filterwarnings("ignore:Rlax .* will be deprecated:PendingDeprecationWarning")
@EACH_DTYPE
@pytest.mark.parametrize("double", [False, True])
def test_categorical_q_learning(dtype, double):
    f = rlax.categorical_double_q_learning if double else rlax.categorical_q_learning
    theirs = jax.jit(jax.vmap(f, (None, 0, 0, 0, 0, None, 0, *([0] if double else []))))
    with wide(dtype):
        for support, logits, (r, d), selector, a in categorical_cases(dtype):
            z, now, p_t, r_t, d_t, chooser, action = map(
                torch.from_numpy, (support, logits[0], logits[1], r, d, selector, a)
            )
            p_t = p_t.softmax(-1)
            chooser = chooser if double else distributional.mean(z, p_t)
            target = distributional.q_learning_target(z, r_t, d_t, p_t, chooser, torch.ones_like(chooser).bool())
            got = losses.cross_entropy(distributional.pick(now, action), target)
            expected = theirs(support, logits[0], a, r, d, support, logits[1], *([selector] if double else []))
            np.testing.assert_allclose(got.numpy(), np.asarray(expected), rtol=EXACT[dtype], atol=EXACT[dtype])


@EACH_DTYPE
def test_elementwise_losses(dtype):
    """Compare elementwise losses; the l2_loss of rlax is half of `squared`."""
    pairs = [
        (lambda delta: losses.squared(delta) / 2, jax.jit(rlax.l2_loss)),
        (partial(losses.huber, threshold=0.7), jax.jit(partial(rlax.huber_loss, delta=0.7))),
        (losses.huber, jax.jit(optax.huber_loss)),
    ]
    for ours, theirs in pairs:
        agree(dtype, lambda q, *_, f=ours: f(q[0]), lambda q, *_, f=theirs: f(q[0]))


@EACH_DTYPE
def test_cross_entropy(dtype):
    soft, hard = jax.jit(optax.softmax_cross_entropy), jax.jit(optax.softmax_cross_entropy_with_integer_labels)
    probabilities = jax.jit(jax.nn.softmax)
    agree(
        dtype,
        lambda q, *_: losses.cross_entropy(q[0], q[1].softmax(-1)),
        lambda q, *_: soft(q[0], probabilities(q[1])),
    )
    agree(dtype, lambda q, x, a, _: losses.cross_entropy_of_labels(q[0], a), lambda q, x, a, _: hard(q[0], a))


@EACH_DTYPE
def test_label_smoothing(dtype):
    smooth = jax.jit(partial(optax.losses.smooth_labels, alpha=0.3))
    one_hot = jax.jit(jax.nn.softmax)
    agree(dtype, lambda q, *_: losses.smoothed(q[0].softmax(-1), 0.3), lambda q, *_: smooth(one_hot(q[0])))


OPTIMIZERS = {
    "adam": (optim.adam(1e-2), lambda: optax.adam(1e-2)),
    "adam-betas": (optim.adam(1e-2, 0.8, 0.95, 1e-5), lambda: optax.adam(1e-2, 0.8, 0.95, 1e-5)),
    "adamw": (optim.adamw(1e-2, weight_decay=0.1), lambda: optax.adamw(1e-2, weight_decay=0.1)),
    "radam": (optim.radam(1e-2, eps=0.0), lambda: optax.radam(1e-2, eps=0.0)),
    "adagrad": (
        optim.adagrad(1e-2, eps=0.0, initial_square=0.1),
        lambda: optax.adagrad(1e-2, eps=0.0, initial_accumulator_value=0.1),
    ),
    "rmsprop": (
        optim.rmsprop(1e-2, decay=0.9, eps=1e-3),
        lambda: optax.rmsprop(1e-2, decay=0.9, eps=1e-3, eps_in_sqrt=False),
    ),
    "graves_rmsprop": (
        optim.graves_rmsprop(1e-2, decay=0.95, eps=1e-5),
        lambda: optax.rmsprop(1e-2, decay=0.95, eps=1e-5, centered=True, eps_in_sqrt=True),
    ),
    "sgd": (optim.sgd(0.1), lambda: optax.sgd(0.1)),
    "momentum": (optim.sgd(0.1, momentum=0.9), lambda: optax.sgd(0.1, momentum=0.9)),
    "nesterov": (optim.sgd(0.1, momentum=0.9, nesterov=True), lambda: optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "decay": (
        optim.chain(decay=optim.add_decayed_weights(0.1), sgd=optim.sgd(0.1)),
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
    ),
    "clip": (
        optim.chain(clip=optim.clip_by_value(0.5), sgd=optim.sgd(0.1)),
        lambda: optax.chain(optax.clip(0.5), optax.sgd(0.1)),
    ),
    "frozen": (optim.frozen(), optax.set_to_zero),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    """Compare fifty steps in float64."""
    ours, make = OPTIMIZERS[name]
    rng, params = np.random.default_rng(1), examples.params()
    state = ours.init(params)
    with wide("float64"):
        theirs = make()
        reference = {n: jax.numpy.asarray(x.numpy()) for n, x in params.items()}
        their_state, update = theirs.init(reference), jax.jit(theirs.update)
        for _ in range(50):
            grads = {n: rng.normal(size=tuple(x.shape)) for n, x in params.items()}
            updates, state = ours.update(tree.map(torch.from_numpy, grads), state, params)
            params = optim.apply_updates(params, updates)
            their_updates, their_state = update(grads, their_state, reference)
            reference = optax.apply_updates(reference, their_updates)
        for n, x in params.items():
            np.testing.assert_allclose(x.numpy(), np.asarray(reference[n]), rtol=1e-12, atol=1e-12)
