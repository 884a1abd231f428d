"""Compare optimizers with torch.optim, in float64 to 1e-12."""

import functools
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, vmap

from fdqn import optim, tree
from fdqn.ops import schedules
from fdqn.testing import asserts, examples, laws, programs, strategies


def after_decay(make, **settings):
    """Put `add_decayed_weights` in front of the optimizer, as PyTorch's `weight_decay` does."""
    return lambda rate: optim.chain(decay=optim.add_decayed_weights(0.1), rest=make(rate, **settings))


def in_double(theirs):
    """Set float64 as default dtype, in which PyTorch keeps NAdam's product of momenta; float32 is 1e-8 off."""

    def made(params, **settings):
        optimizer = theirs(params, **settings)
        for x in params:
            optimizer.state[x] = {
                "step": torch.zeros(()),
                "mu_product": torch.ones((), dtype=torch.float64),
                "exp_avg": torch.zeros_like(x),
                "exp_avg_sq": torch.zeros_like(x),
            }
        return optimizer

    return made


T = torch.optim


class Graves(T.Optimizer):
    """RMSprop by equations 38 to 40 of Graves 2013 without momentum, which torch.optim lacks."""

    def __init__(self, params, lr=1e-4, decay=0.95, eps=1e-4):
        super().__init__(params, {"lr": lr, "decay": decay, "eps": eps})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for x in group["params"]:
                n, g = self.state[x].get("moments", (0.0, 0.0))
                n = group["decay"] * n + (1 - group["decay"]) * x.grad**2
                g = group["decay"] * g + (1 - group["decay"]) * x.grad
                self.state[x]["moments"] = n, g
                x -= group["lr"] * x.grad / (n - g**2 + group["eps"]) ** 0.5


PAIRS = {
    "adam": (optim.adam, T.Adam),
    "adam-betas": (
        partial(optim.adam, beta1=0.8, beta2=0.95, eps=1e-5),
        partial(T.Adam, betas=(0.8, 0.95), eps=1e-5),
    ),
    "adam-decay": (after_decay(optim.adam), partial(T.Adam, weight_decay=0.1)),
    "adamw": (optim.adamw, T.AdamW),
    "adamw-decay": (
        partial(optim.adamw, beta1=0.8, beta2=0.95, eps=1e-5, weight_decay=0.3),
        partial(T.AdamW, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.3),
    ),
    "adamax": (optim.adamax, T.Adamax),
    "adamax-betas": (
        partial(optim.adamax, beta1=0.8, beta2=0.9, eps=1e-3),
        partial(T.Adamax, betas=(0.8, 0.9), eps=1e-3),
    ),
    "nadam": (optim.nadam, in_double(T.NAdam)),
    "nadam-betas": (
        partial(optim.nadam, beta1=0.8, beta2=0.95, eps=1e-5, momentum_decay=0.1),
        in_double(partial(T.NAdam, betas=(0.8, 0.95), eps=1e-5, momentum_decay=0.1)),
    ),
    "radam": (optim.radam, T.RAdam),
    "radam-betas": (
        partial(optim.radam, beta1=0.8, beta2=0.95, eps=1e-5),
        partial(T.RAdam, betas=(0.8, 0.95), eps=1e-5),
    ),
    "radam-never-rectified": (partial(optim.radam, beta2=0.6), partial(T.RAdam, betas=(0.9, 0.6))),
    "sgd": (optim.sgd, T.SGD),
    "sgd-decay": (after_decay(optim.sgd), partial(T.SGD, weight_decay=0.1)),
    "momentum": (partial(optim.sgd, momentum=0.9), partial(T.SGD, momentum=0.9)),
    "nesterov": (partial(optim.sgd, momentum=0.9, nesterov=True), partial(T.SGD, momentum=0.9, nesterov=True)),
    "nesterov-decay": (
        after_decay(optim.sgd, momentum=0.9, nesterov=True),
        partial(T.SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "rmsprop": (optim.rmsprop, T.RMSprop),
    "rmsprop-decay": (partial(optim.rmsprop, decay=0.9, eps=1e-3), partial(T.RMSprop, alpha=0.9, eps=1e-3)),
    "centered-rmsprop": (
        partial(optim.centered_rmsprop, decay=0.9, eps=1e-3),
        partial(T.RMSprop, alpha=0.9, eps=1e-3, centered=True),
    ),
    "graves-rmsprop": (optim.graves_rmsprop, Graves),
    "graves-rmsprop-decay": (
        partial(optim.graves_rmsprop, decay=0.9, eps=1e-3),
        partial(Graves, decay=0.9, eps=1e-3),
    ),
    "adagrad": (optim.adagrad, T.Adagrad),
    "adagrad-initial-accumulator": (
        partial(optim.adagrad, eps=1e-3, initial_square=0.5),
        partial(T.Adagrad, eps=1e-3, initial_accumulator_value=0.5),
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


@EACH
def test_schedules_receive_the_number_of_updates(name):
    ours, theirs = PAIRS[name]
    decay = partial(schedules.exponential, start=1e-2, decay=0.9)
    laws.optimizer(ours(decay), partial(theirs, lr=1e-2), partial(T.lr_scheduler.ExponentialLR, gamma=0.9), steps=20)


DEFAULTS = {
    "adam": T.Adam, "adamw": T.AdamW, "adamax": T.Adamax, "nadam": in_double(T.NAdam), "radam": T.RAdam,
    "sgd": T.SGD, "rmsprop": T.RMSprop, "centered_rmsprop": partial(T.RMSprop, centered=True), "adagrad": T.Adagrad,
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_equal_pytorch(name):
    laws.optimizer(getattr(optim, name)(), DEFAULTS[name], steps=20)


def test_schedules_equal_torch_schedulers():
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


def test_schedules_that_return_python_numbers_equal_torch_schedulers():
    decay = partial(schedules.exponential, start=1e-2, decay=0.9)
    laws.optimizer(
        optim.adam(decay),
        partial(torch.optim.Adam, lr=1e-2),
        partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
    )


def gradients_of_seeds(seeds, steps):
    generator = torch.Generator().manual_seed(5)
    params = tree.stack([tree.map(lambda x, i=i: x + i, examples.params()) for i in range(seeds)])
    grads = [
        tree.map(lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype) + 1e-3, params)
        for _ in range(steps)
    ]
    return params, grads


RATES = torch.tensor([1e-3, 1e-2, 0.1], dtype=torch.float64)
MAKERS = {name: ours for name, (ours, _) in PAIRS.items()}
COMPILED = (
    "adam", "adam-decay", "adamw", "adamax", "nadam", "radam", "radam-never-rectified", "sgd", "momentum", "nesterov",
    "rmsprop", "centered-rmsprop", "graves-rmsprop", "adagrad",
)  # fmt: skip
"""One optimizer of each structure. The others differ from these only in numbers, which are constants of the graph."""


@functools.cache
def learned_by_torch(name):
    """Return the parameters of three seeds after 50 updates of torch.optim, each with its own learning rate."""
    params, grads = gradients_of_seeds(3, 50)
    learned = []
    for seed, rate in enumerate(RATES.tolist()):
        reference = {n: x[seed].clone().requires_grad_() for n, x in params.items()}
        oracle = PAIRS[name][1](list(reference.values()), lr=rate)
        for g in grads:
            for n, x in reference.items():
                x.grad = g[n][seed].clone()
            oracle.step()
        learned.append(tree.map(torch.Tensor.detach, reference))
    return tree.stack(learned)


def updated(make, rate, grads, state, params):
    updates, state = make(rate).update(grads, state, params)
    return optim.apply_updates(params, updates), state


def initial_state(make, params):
    return tree.clone(vmap(lambda rate, params: make(rate).init(params))(RATES, params))


@EACH
def test_seeds_with_different_learning_rates_equal_torch_optim(name):
    """Compare each seed under vmap with torch.optim at its learning rate."""
    make, (params, grads) = MAKERS[name], gradients_of_seeds(3, 50)
    step, state = vmap(partial(updated, make)), initial_state(make, params)
    for g in grads:
        params, state = step(RATES, g, state, params)
    asserts.assert_trees_close(learned_by_torch(name), params, 1e-12, 1e-12)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_seeds_with_different_learning_rates_equal_torch_optim(name):
    make, (params, grads) = MAKERS[name], gradients_of_seeds(3, 50)
    count = CompileCounterWithBackend("aot_eager")
    step = torch.compile(vmap(partial(updated, make)), fullgraph=True, dynamic=False, backend=count)
    state = initial_state(make, params)
    for g in grads:
        params, state = step(RATES, g, state, params)
    asserts.assert_trees_close(learned_by_torch(name), params, 1e-12, 1e-12)
    assert count.frame_count == 1


def test_clip():
    laws.clipped(optim.clip_by_global_norm)
    laws.clipped(lambda norm: optim.clip_by_global_norm(torch.tensor(norm, dtype=torch.float64)), max_norm=0.3)


@given(strategies.params())
def test_clip_at_infinity_changes_nothing(params):
    for norm in (torch.inf, torch.tensor(torch.inf)):
        clipped, _ = optim.clip_by_global_norm(norm).update(params, {}, params)
        asserts.assert_trees_equal(params, clipped)


def test_clip_of_zero_gradients_is_zero():
    zero = tree.map(torch.zeros_like, examples.params())
    asserts.assert_trees_equal(zero, optim.clip_by_global_norm(1.0).update(zero, {}, zero)[0])
    asserts.assert_trees_equal(zero, optim.clip_by_global_norm(0.0).update(zero, {}, zero)[0])


def test_clip_by_value():
    """Include a limit per seed, infinite limits and infinite gradients."""
    grads = examples.params() | {"odd": torch.tensor([torch.inf, -torch.inf, torch.nan, 0.3], dtype=torch.float64)}
    for limit in (0.25, 0.0, torch.tensor(0.25, dtype=torch.float64)):
        theirs = {name: torch.zeros_like(g).requires_grad_() for name, g in grads.items()}
        for name, x in theirs.items():
            x.grad = grads[name].clone()
        torch.nn.utils.clip_grad_value_(theirs.values(), float(limit))
        clipped, _ = optim.clip_by_value(limit).update(grads, {}, grads)
        asserts.assert_trees_equal({name: x.grad for name, x in theirs.items()}, clipped)


def is_weight(name):
    return name.endswith("weight")


def test_groups_equal_torch_parameter_groups():
    """Compare groups with different learning rates and weight decays, and frozen parameters, over 60 steps."""
    params = examples.params()

    def group_of(name):
        return "weights" if is_weight(name) else "frozen" if name == "scale" else "biases"

    ours = optim.grouped(
        group_of,
        weights=optim.adamw(1e-2, weight_decay=0.1),
        biases=optim.adamw(1e-3, weight_decay=0.0),
        frozen=optim.frozen(),
    )

    def theirs(tensors):
        named = dict(zip(params, tensors, strict=True))
        groups = {group: [x for n, x in named.items() if group_of(n) == group] for group in ("weights", "biases")}
        return T.AdamW(
            [
                {"params": groups["weights"], "lr": 1e-2, "weight_decay": 0.1},
                {"params": groups["biases"], "lr": 1e-3, "weight_decay": 0.0},
            ]
        )

    laws.optimizer(ours, theirs, params=params)


def test_masked_decay_does_not_change_other_parameters():
    params = examples.params()
    grads = tree.map(torch.ones_like, params)
    decay = optim.masked(optim.add_decayed_weights(0.5), is_weight)
    updates, state = decay.update(grads, decay.init(params), params)
    assert state == {}
    asserts.assert_trees_equal(
        {n: 1 + 0.5 * x if is_weight(n) else torch.ones_like(x) for n, x in params.items()}, updates
    )


def test_state_of_a_masked_optimizer_has_the_chosen_parameters():
    params = examples.params()
    momentum = optim.masked(optim.sgd(0.1, momentum=0.9), is_weight)
    state = momentum.init(params)
    assert list(state.velocity) == [name for name in params if is_weight(name)] != list(params)
    updates, state = momentum.update(params, state, params)
    asserts.assert_trees_equal({n: -0.1 * x if is_weight(n) else x for n, x in params.items()}, updates)
    assert list(updates) == list(params)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: optim.adam(0.1, beta1=x, beta2=0.5 + x / 2, eps=x / 10),
        lambda x: optim.adamw(0.1, beta1=x, weight_decay=x),
        lambda x: optim.adamax(0.1, beta1=x, beta2=1 - x / 9, eps=x / 10),
        lambda x: optim.nadam(0.1, beta1=x, beta2=1 - x / 9, momentum_decay=x),
        lambda x: optim.radam(0.1, beta1=x, beta2=0.9 + x / 10),
        lambda x: optim.sgd(0.1, momentum=x),
        lambda x: optim.sgd(0.1, momentum=x, nesterov=True),
        lambda x: optim.rmsprop(0.1, decay=x, eps=x / 10),
        lambda x: optim.centered_rmsprop(0.1, decay=x, eps=x / 10),
        lambda x: optim.graves_rmsprop(0.1, decay=x, eps=x / 10),
        lambda x: optim.adagrad(0.1, eps=x),
        lambda x: optim.chain(clip=optim.clip_by_global_norm(x), decay=optim.add_decayed_weights(x), sgd=optim.sgd(x)),
        lambda x: optim.chain(clip=optim.clip_by_value(x), adam=optim.adam(x)),
    ],
)
def test_every_number_may_differ_between_seeds(make):
    """Compare seeds with different numbers, in float32 and float64, with runs with Python numbers."""
    numbers = [0.25, 0.5, 0.875]
    params, grads = gradients_of_seeds(3, 5)
    for dtype in (torch.float64, torch.float32):
        values = torch.tensor(numbers, dtype=torch.float64)
        start = tree.cast(params, dtype)
        state = vmap(lambda x, p: make(x).init(p))(values, start)
        stacked = start
        for g in tree.cast(grads, dtype):
            updates, state = vmap(lambda x, g, s, p: make(x).update(g, s, p))(values, g, state, stacked)
            stacked = optim.apply_updates(stacked, updates)
        for seed, number in enumerate(numbers):
            alone = tree.index(start, seed)
            alone_state = make(number).init(alone)
            for g in tree.cast(grads, dtype):
                updates, alone_state = make(number).update(tree.index(g, seed), alone_state, alone)
                alone = optim.apply_updates(alone, updates)
            atol = 1e-13 if dtype == torch.float64 else 1e-5
            asserts.assert_trees_close(alone, tree.index(stacked, seed), atol, atol)
            asserts.assert_trees_close(alone_state, tree.index(state, seed), atol, atol)


def test_chain_is_associative():
    laws.chained(optim.clip_by_global_norm(0.5), optim.adam(1e-2), optim.sgd(0.3, momentum=0.5))


def test_chain_applies_optimizers_in_order():
    params = examples.params()
    clip, adam = optim.clip_by_global_norm(0.5), optim.adam(1e-2)
    both = optim.chain(clip=clip, adam=adam)
    updates, state = both.update(params, both.init(params), params)
    expected, adam_state = adam.update(clip.update(params, {}, params)[0], adam.init(params), params)
    asserts.assert_trees_equal(expected, updates)
    asserts.assert_trees_equal({"clip": {}, "adam": adam_state}, state)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_are_kept(name, dtype):
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
    programs.donated(lambda s, g: (lambda u, new: (optim.apply_updates(s[0], u), new))(*opt.update(g, s[1], s[0])),
                 (params, opt.init(params)), tree.clone(params))  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_an_update_is_compiled_once(name):
    opt, params = MAKERS[name](torch.tensor(0.1)), tree.cast(examples.params(), torch.float32)
    laws.compiled(opt.update, params, opt.init(params), params)


@pytest.mark.parametrize("name", ["adam", "adamax", "nadam", "radam"])
def test_scales_have_the_dtype_of_the_parameters(name):
    """Check that only powers are float64, because a float64 scale would promote every update."""
    state = PAIRS[name][0](0.1).init(tree.cast(examples.params(), torch.float32))
    wide = {n for n, x in state._asdict().items() if isinstance(x, torch.Tensor) and x.dtype == torch.float64}
    assert wide <= {"beta1_power", "beta2_power", "mu_product"}


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
        with pytest.raises(ValueError, match=r"^grads: expected the same structure"):
            opt.update(short, opt.init(params), params)
        with pytest.raises(ValueError, match=r"grads\['0.bias'\]: expected shape \[4\], got \[4, 1\]"):
            opt.update(params | {"0.bias": torch.zeros(4, 1).double()}, opt.init(params), params)
        with pytest.raises(ValueError, match=r"^params: expected at least one tensor"):
            opt.init({})
    with pytest.raises(ValueError, match=r"^nesterov: expected momentum above 0"):
        optim.sgd(0.1, nesterov=True)


@EACH
def test_invalid_learning_rates_are_refused(name):
    make = PAIRS[name][0]
    for wrong in (1, torch.tensor(1), True, "0.1", None):
        with pytest.raises(TypeError, match=r"learning_rate: expected a"):
            make(wrong)
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"learning_rate: expected at least 0, got {wrong}"):
            make(wrong)
    counting = make(lambda count: count)
    params = examples.params()
    with pytest.raises(TypeError, match=r"learning_rate\(count\): expected a floating-point dtype, got torch.int64"):
        counting.update(params, counting.init(params), params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.adam(beta1=1.0), "beta1: expected at least 0 and below 1, got 1.0"),
        (lambda: optim.adamw(beta2=-0.1), "beta2: expected at least 0 and below 1, got -0.1"),
        (lambda: optim.adamw(weight_decay=-1.0), "weight_decay: expected at least 0, got -1.0"),
        (lambda: optim.nadam(momentum_decay=-1.0), "momentum_decay: expected at least 0, got -1.0"),
        (lambda: optim.radam(eps=-1.0), "eps: expected at least 0, got -1.0"),
        (lambda: optim.sgd(momentum=-0.5), "momentum: expected at least 0, got -0.5"),
        (lambda: optim.rmsprop(decay=1.0), "decay: expected at least 0 and below 1, got 1.0"),
        (lambda: optim.rmsprop(eps=-1.0), "eps: expected at least 0"),
        (lambda: optim.centered_rmsprop(decay=2.0), "decay: expected at least 0 and below 1, got 2.0"),
        (lambda: optim.centered_rmsprop(eps=-1.0), "eps: expected at least 0"),
        (lambda: optim.graves_rmsprop(decay=2.0), "decay: expected at least 0 and below 1, got 2.0"),
        (lambda: optim.graves_rmsprop(eps=-1.0), "eps: expected at least 0"),
        (lambda: optim.adagrad(eps=-1.0), "eps: expected at least 0"),
        (lambda: optim.adagrad(initial_square=-1.0), "initial_square: expected at least 0"),
        (lambda: optim.clip_by_global_norm(-1.0), "max_norm: expected at least 0, got -1.0"),
        (lambda: optim.clip_by_value(-1.0), "limit: expected at least 0, got -1.0"),
        (lambda: optim.add_decayed_weights(-1.0), "weight_decay: expected at least 0, got -1.0"),
    ],
)
def test_invalid_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_integer_tensors_are_refused():
    with pytest.raises(TypeError, match=r"max_norm: expected a floating-point dtype, got torch.int64"):
        optim.clip_by_global_norm(torch.tensor(1))


@pytest.mark.parametrize(
    "make",
    [
        optim.clip_by_global_norm,
        optim.clip_by_value,
        optim.add_decayed_weights,
        lambda _: optim.frozen(),
        lambda x: optim.masked(optim.clip_by_value(x), is_weight),
        lambda x: optim.grouped(lambda name: "all", all=optim.clip_by_value(x)),
    ],
)
def test_transforms_refuse_trees_that_do_not_match(make):
    params, opt = examples.params(), make(1.0)
    with pytest.raises(ValueError, match=r"^grads: expected the same structure; missing .*scale"):
        opt.update({n: x for n, x in params.items() if n != "scale"}, opt.init(params), params)


def test_masks_and_groups_without_parameters_are_refused():
    params = examples.params()
    with pytest.raises(
        ValueError, match=r"chosen: expected it to choose at least one parameter, got none of \['0.bias'"
    ):
        optim.masked(optim.sgd(0.1), lambda name: name == "wieght").init(params)
    for groups in ({"a": optim.sgd(0.1)}, {"all": optim.sgd(0.1), "none": optim.sgd(0.1)}):
        with pytest.raises(
            ValueError, match=r"group_of: expected the groups \['a.*, each with parameters, got {.*'all'"
        ):
            optim.grouped(lambda name: "all", **groups).init(params)


@EACH
def test_state_of_another_optimizer_is_refused(name):
    params, opt = examples.params(), PAIRS[name][0](0.1)
    other = {"other": torch.zeros(3, dtype=torch.float64)}
    with pytest.raises((ValueError, TypeError), match=r"^state"):
        opt.update(params, optim.frozen().init(params), params)
    if name not in ("adam-decay", "sgd-decay", "nesterov-decay"):
        with pytest.raises(ValueError, match=r"^state\.\w+: expected the same structure; missing .*extra .*other"):
            opt.update(params, opt.init(other), params)
    with pytest.raises(TypeError, match=r"^params\['w'\]: expected a floating-point dtype, got torch.int64"):
        opt.init({"w": torch.zeros(2, dtype=torch.int64)})


def test_numbers_of_several_seeds_without_vmap_are_refused():
    for make in (optim.adam, optim.clip_by_global_norm, optim.clip_by_value, optim.add_decayed_weights):
        with pytest.raises(ValueError, match=r"or a tensor \[\], got shape \[2\]; use vmap for several seeds"):
            make(torch.tensor([1.0, 2.0]))
    params, opt = examples.params(), optim.sgd(lambda count: torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"^learning_rate\(count\): .* a tensor \[\], got shape \[2\]"):
        opt.update(params, opt.init(params), params)


@EACH
def test_leaves_keep_their_dtypes_in_any_order(name):
    """Check that a bfloat16 leaf in front does not change float32 leaves."""
    wide, opt = {"b": torch.tensor([0.5, -0.25])}, PAIRS[name][0](0.01)
    mixed = {"a": torch.ones(2, dtype=torch.bfloat16), **wide}
    states, generator = [opt.init(wide), opt.init(mixed)], torch.Generator().manual_seed(0)
    for _ in range(20):
        grads = {n: torch.randn(2, generator=generator).to(x.dtype) for n, x in mixed.items()}
        updates, states[0] = opt.update({"b": grads["b"]}, states[0], wide)
        others, states[1] = opt.update(grads, states[1], mixed)
        wide, mixed = optim.apply_updates(wide, updates), optim.apply_updates(mixed, others)
    asserts.assert_trees_close(wide["b"], mixed["b"], 1e-6)
    assert mixed["a"].dtype == torch.bfloat16


def test_clip_of_half_precision_does_not_overflow():
    grads = {"a": torch.full((10,), 100.0, dtype=torch.float16), "b": torch.full((10,), 300.0, dtype=torch.float16)}
    clipped, _ = optim.clip_by_global_norm(1.0).update(grads, {}, grads)
    assert [round(float(x[0]), 2) for x in clipped.values()] == [0.1, 0.3]


@pytest.mark.parametrize("make", [optim.centered_rmsprop, partial(optim.graves_rmsprop, eps=1e-16)])
def test_centered_rmsprop_of_nearly_constant_gradients_is_finite(make):
    """Use gradients whose variance rounds below 0."""
    params = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(2))}
    opt = make(1e-3, decay=0.9)
    state = opt.init(params)
    below = 0
    for _ in range(200):
        updates, state = opt.update(params, state, params)
        below += int((state.square["w"] < state.mean["w"] ** 2).sum())
        asserts.assert_finite(updates)
    assert below > 0


def test_gradient_through_radam_is_finite_before_it_is_rectified():
    params = examples.params()
    opt = optim.radam(0.1)

    def stepped(grads):
        updates, _ = opt.update(grads, opt.init(params), params)
        return tree.norm(updates)

    asserts.assert_finite(grad(stepped)(tree.map(lambda x: x + 0.3, params)))


AT_0 = {
    "adam": (lambda zero: optim.adam(0.1, zero, 0.999), "mean"),
    "adamax": (lambda zero: optim.adamax(0.1, zero), "mean"),
    "nadam": (lambda zero: optim.nadam(0.1, zero), "mean"),
    "radam": (lambda zero: optim.radam(0.1, zero), "mean"),
    "centered_rmsprop": (lambda zero: optim.centered_rmsprop(0.1, zero), "mean"),
    "graves_rmsprop": (lambda zero: optim.graves_rmsprop(0.1, zero), "mean"),
    "sgd": (lambda zero: optim.sgd(0.1, zero), "velocity"),
}
"""Optimizers with a decay of 0, and the part of their state that is then the last gradient."""


@pytest.mark.parametrize("zero", [0, 0.0, torch.tensor(0.0)], ids=str)
@pytest.mark.parametrize("name", AT_0)
def test_mean_with_decay_0_is_the_last_gradient(name, zero):
    """Check numbers of any size, also if the previous mean is infinite or NaN."""
    make, field = AT_0[name]
    params = {"w": torch.zeros(1000)}
    large, small = torch.logspace(-6, 15, 1000), torch.logspace(3, -12, 1000).neg()
    optimizer = make(zero)
    state = optimizer.init(params)
    for grads in (large, torch.full((1000,), torch.inf), small):
        _, state = optimizer.update({"w": grads}, state, params)
    assert torch.equal(getattr(state, field)["w"], small)


@pytest.mark.parametrize("zero", [0.0, torch.tensor(0.0)], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda zero: optim.rmsprop(0.1, zero), lambda zero: optim.adam(0.1, 0.9, zero),
        lambda zero: optim.nadam(0.1, 0.9, zero), lambda zero: optim.radam(0.1, 0.9, zero),
    ],
    ids=["rmsprop", "adam", "nadam", "radam"],
)  # fmt: skip
def test_mean_square_with_decay_0_is_the_last_square(make, zero):
    """Check that a gradient of 1e30, whose square is infinite, has no effect on the next update."""
    optimizer, params = make(zero), {"w": torch.zeros(1)}
    state = optimizer.init(params)
    for g in (1e30, 0.5):
        _, state = optimizer.update({"w": torch.tensor([g])}, state, params)
    assert state.square["w"].item() == 0.25


def test_adamax_with_decay_0_uses_the_last_gradient():
    optimizer, params = optim.adamax(0.1, 0.9, 0.0), {"w": torch.zeros(1)}
    state = optimizer.init(params)
    for g in (torch.inf, 0.5):
        _, state = optimizer.update({"w": torch.tensor([g])}, state, params)
    assert state.largest["w"].item() == 0.5


@pytest.mark.parametrize("name", sorted({*optim.__all__} - {"obgd"}))
def test_optimizers_can_be_pickled(name):
    make = {
        "apply_updates": lambda: optim.adam(partial(schedules.linear, start=0.1, end=0.0, steps=4)),
        "chain": lambda: optim.chain(clip=optim.clip_by_global_norm(0.1), adam=optim.adam()),
        "clip_by_global_norm": lambda: optim.clip_by_global_norm(0.1),
        "clip_by_value": lambda: optim.clip_by_value(0.1),
        "add_decayed_weights": lambda: optim.add_decayed_weights(0.1),
        "masked": lambda: optim.masked(optim.sgd(), str.isalpha),
        "grouped": lambda: optim.grouped(str.lower, w=optim.adam()),
    }.get(name) or getattr(optim, name)
    optimizer, params, grads = make(), {"w": torch.ones(3)}, {"w": torch.tensor([1.0, -2.0, 0.5])}
    again = pickle.loads(pickle.dumps(optimizer))
    asserts.assert_trees_equal(*(x.update(grads, x.init(params), params) for x in (optimizer, again)))
