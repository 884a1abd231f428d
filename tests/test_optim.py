"""The optimizers beside torch.optim, in float64 to 1e-12."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

from fdqn import optim, schedules, tree
from fdqn.testing import asserts, examples, laws, programs, strategies

PAIRS = {
    "adam": (optim.adam, torch.optim.Adam),
    "adam-betas": (
        partial(optim.adam, beta1=0.8, beta2=0.95, eps=1e-5),
        partial(torch.optim.Adam, betas=(0.8, 0.95), eps=1e-5),
    ),
    "sgd": (optim.sgd, torch.optim.SGD),
    "momentum": (partial(optim.sgd, momentum=0.9), partial(torch.optim.SGD, momentum=0.9)),
    "nesterov": (
        partial(optim.sgd, momentum=0.9, nesterov=True),
        partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    ),
    "rmsprop": (optim.rmsprop, torch.optim.RMSprop),
    "rmsprop-decay": (
        partial(optim.rmsprop, decay=0.9, eps=1e-3),
        partial(torch.optim.RMSprop, alpha=0.9, eps=1e-3),
    ),
}
EACH = pytest.mark.parametrize("name", PAIRS)


@EACH
@pytest.mark.parametrize("rate", [1e-3, 0.1])
def test_equals_torch_optim(name, rate):
    ours, theirs = PAIRS[name]
    laws.optimizer(ours(rate), partial(theirs, lr=rate))


@EACH
def test_equals_torch_optim_with_a_tensor_for_a_rate(name):
    ours, theirs = PAIRS[name]
    laws.optimizer(ours(torch.tensor(1e-2, dtype=torch.float64)), partial(theirs, lr=1e-2))


@given(strategies.params(), st.sampled_from(sorted(PAIRS)))
def test_equals_torch_optim_on_any_tree(params, name):
    ours, theirs = PAIRS[name]
    laws.optimizer(ours(1e-2), partial(theirs, lr=1e-2), steps=5, params=params)


def test_scheduled_rates_equal_torchs_schedulers():
    decay = partial(schedules.exponential, start=1e-2, decay=torch.tensor(0.9, dtype=torch.float64))
    laws.optimizer(
        optim.adam(decay),
        partial(torch.optim.Adam, lr=1e-2),
        partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
    )
    numbers = {"start": 1e-2, "end": 1e-3, "steps": 20.0}
    linear = partial(schedules.linear, **{k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()})
    laws.optimizer(
        optim.sgd(linear),
        partial(torch.optim.SGD, lr=1e-2),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=20),
    )


def test_scheduled_rates_of_python_numbers_equal_torchs_schedulers():
    decay = partial(schedules.exponential, start=1e-2, decay=0.9)
    laws.optimizer(
        optim.adam(decay),
        partial(torch.optim.Adam, lr=1e-2),
        partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
    )


def lane_gradients(lanes, steps):
    generator = torch.Generator().manual_seed(5)
    params = tree.stack([tree.map(lambda x, i=i: x + i, examples.params()) for i in range(lanes)])
    grads = [
        tree.map(lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype) + 1e-3, params)
        for _ in range(steps)
    ]
    return params, grads


@EACH
@pytest.mark.parametrize("compiler", [None, "aot_eager"])
def test_lanes_with_rates_of_their_own_equal_torch_optim(name, compiler):
    """Under vmap, and compiled: every lane is a run of torch.optim with its own learning rate."""
    ours, theirs = PAIRS[name]
    rates = torch.tensor([1e-3, 1e-2, 0.1], dtype=torch.float64)
    params, grads = lane_gradients(3, 50)

    def step(rate, grads, state, params):
        updates, state = ours(rate).update(grads, state, params)
        return optim.apply_updates(params, updates), state

    many = vmap(step)
    many = torch.compile(many, fullgraph=True, dynamic=False, backend=compiler) if compiler else many
    state = tree.clone(vmap(lambda rate, params: ours(rate).init(params))(rates, params))
    mine = params
    for g in grads:
        mine, state = many(rates, g, state, mine)
    for lane, rate in enumerate(rates.tolist()):
        reference = {n: x[lane].clone().requires_grad_() for n, x in params.items()}
        oracle = theirs(list(reference.values()), lr=rate)
        for g in grads:
            for n, x in reference.items():
                x.grad = g[n][lane].clone()
            oracle.step()
        asserts.assert_trees_close(tree.map(torch.Tensor.detach, reference), tree.index(mine, lane), 1e-12, 1e-12)


def test_clip():
    laws.clipped(optim.clip_by_global_norm)
    laws.clipped(lambda norm: optim.clip_by_global_norm(torch.tensor(norm, dtype=torch.float64)), max_norm=0.3)


@given(strategies.params())
def test_clip_at_infinity_changes_nothing(params):
    for norm in (torch.inf, torch.tensor(torch.inf)):
        clipped, _ = optim.clip_by_global_norm(norm).update(params, {}, params)
        asserts.assert_trees_equal(params, clipped)


def test_clip_of_nothing_is_nothing():
    zero = tree.map(torch.zeros_like, examples.params())
    asserts.assert_trees_equal(zero, optim.clip_by_global_norm(1.0).update(zero, {}, zero)[0])
    asserts.assert_trees_equal(zero, optim.clip_by_global_norm(0.0).update(zero, {}, zero)[0])


def test_chain_is_associative():
    laws.chained(optim.clip_by_global_norm(0.5), optim.adam(1e-2), optim.sgd(0.3, momentum=0.5))


def test_chain_is_one_after_the_other():
    params = examples.params()
    clip, adam = optim.clip_by_global_norm(0.5), optim.adam(1e-2)
    both = optim.chain(clip=clip, adam=adam)
    updates, state = both.update(params, both.init(params), params)
    expected, adam_state = adam.update(clip.update(params, {}, params)[0], adam.init(params), params)
    asserts.assert_trees_equal(expected, updates)
    asserts.assert_trees_equal({"clip": {}, "adam": adam_state}, state)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_stay(name, dtype):
    opt = PAIRS[name][0](torch.tensor(0.1, dtype=torch.float64))
    params = tree.cast(examples.params(), dtype)
    state = opt.init(params)
    for _ in range(2):
        updates, after = opt.update(params, state, params)
        assert {x.dtype for x in tree.leaves(updates)} == {dtype}
        assert [x.dtype for x in tree.leaves(after)] == [x.dtype for x in tree.leaves(state)]
        state = after


@EACH
def test_laws_of_a_function(name):
    opt, params = PAIRS[name][0](torch.tensor(0.1)), tree.cast(examples.params(), torch.float32)
    laws.pure(opt.init, params)
    laws.pure(opt.update, params, opt.init(params), params)
    laws.compiled(opt.update, params, opt.init(params), params)
    programs.donated(lambda s, g: (lambda u, new: (optim.apply_updates(s[0], u), new))(*opt.update(g, s[1], s[0])),
                 (params, opt.init(params)), tree.clone(params))  # fmt: skip


def test_initial_state_shares_no_storage():
    for make, _ in PAIRS.values():
        leaves = tree.leaves(make(0.1).init(examples.params()))
        assert len({x.untyped_storage().data_ptr() for x in leaves}) == len(leaves)


def test_apply_updates():
    params = examples.params()
    updates = tree.map(torch.ones_like, params)
    asserts.assert_trees_equal(tree.map(lambda x: x + 1, params), laws.pure(optim.apply_updates, params, updates))


def test_messages():
    params = examples.params()
    short = {n: x for n, x in params.items() if n != "scale"}
    with pytest.raises(ValueError, match=r"updates: expected the same structure; missing .*scale"):
        optim.apply_updates(params, short)
    with pytest.raises(TypeError, match=r"updates\['0.weight'\]: expected torch.float64, got torch.float32"):
        optim.apply_updates(params, tree.cast(params, torch.float32))
    for make, _ in PAIRS.values():
        opt = make(0.1)
        with pytest.raises(ValueError, match="grads: expected the same structure"):
            opt.update(short, opt.init(params), params)
        with pytest.raises(ValueError, match=r"grads\['0.bias'\]: expected shape \[4\], got \[4, 1\]"):
            opt.update(params | {"0.bias": torch.zeros(4, 1).double()}, opt.init(params), params)
        with pytest.raises(ValueError, match="params: expected at least one tensor"):
            opt.init({})
    with pytest.raises(ValueError, match="nesterov: expected momentum above 0"):
        optim.sgd(0.1, nesterov=True)
