"""DQN: configuration, losses, gradients, updates and target networks."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from torch import nn
from torch.func import grad, vmap

from fdqn import networks, optim, random, training, tree
from fdqn.agents import dqn
from fdqn.experiment import assemble
from fdqn.ops import exploration, losses
from fdqn.testing import asserts, examples, laws, programs, strategies
from fdqn.training import off_policy
from fdqn.types import Transition

NETWORK = networks.mlp(2, (6,), 3)


def seed_hyper(**values):
    return tree.index(training.hyper(1, **values), 0)


def batch(seed=0, size=7, dtype=torch.float64):
    key = random.key(seed)
    obs, next_obs = random.normal(key, (2, size, 2), dtype)
    return Transition(
        obs,
        random.randint(random.fold_in(key, 1), (size,), 0, 3),
        random.normal(random.fold_in(key, 2), (size,), dtype),
        (random.uniform(random.fold_in(key, 3), (size,)) < 0.7).to(dtype),
        next_obs,
        random.uniform(random.fold_in(key, 4), (size, 3)) < 0.6,
    )


def params(seed):
    return tree.cast(NETWORK.init(random.key(seed)), torch.float64)


def loss(f, elementwise=losses.squared):
    """Return a function for the mean loss and the mean Q-value, as in an update."""

    def mean(*args):
        output = f(NETWORK.apply, elementwise, *args)
        return output.loss.mean(), output.q.mean()

    return mean


def learn(agent, optimizer, learner, rows, hyper):
    return off_policy.update(agent, optimizer, learner, examples.sample(rows), hyper)[:2]


BOTH = pytest.mark.parametrize("f", [dqn.q_learning, dqn.double_q_learning])
HYPER = tree.cast(seed_hyper(gamma=0.9, learning_rate=0.01), torch.float64)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 256, "capacity": 100}, ValueError, "batch_size: expected at most capacity = 100, got 256"),
        ({"num_envs": 200, "capacity": 150}, ValueError, "num_envs: expected at most capacity = 150, got 200"),
        ({"num_envs": 0}, ValueError, "num_envs: expected at least 1, got 0"),
        ({"learning_starts": -1}, ValueError, "learning_starts: expected at least 0, got -1"),
        ({"batch_size": 32.0}, TypeError, "batch_size: expected an integer, got 32.0"),
        ({"batch_size": True}, TypeError, "batch_size: expected an integer, got True"),
        ({"updates_per_cycle": 3, "target_period": 20}, ValueError, "target_period: expected a multiple"),
    ],
)
def test_invalid_configurations_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        training.Config(**settings)


def test_config_is_frozen_and_counts_steps():
    config = training.Config(num_envs=4, steps_per_cycle=3, target_period=0)
    assert config.env_steps == 12
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_envs = 5


@pytest.mark.parametrize(
    ("seeds", "settings", "message"),
    [
        (1, {"gamma": 1.5}, r"gamma: expected numbers in \[0, 1\], got 1.5"),
        (2, {"gamma": [0.9, -0.1]}, "gamma: expected numbers in"),
        (1, {"gamma": math.nan}, "gamma: expected numbers in"),
        (1, {"epsilon_start": 2}, "epsilon_start: expected numbers in"),
        (1, {"epsilon_end": -1}, "epsilon_end: expected numbers in"),
        (1, {"learning_rate": -1e-3}, "learning_rate: expected numbers in"),
        (1, {"max_grad_norm": -1}, "max_grad_norm: expected numbers in"),
        (1, {"tau": 1.1}, "tau: expected numbers in"),
        (2, {"gamma": [0.9, 0.8, 0.7]}, r"gamma: expected a number or 2 of them, one per seed, got shape \[3\]"),
        (2, {"gamma": [[0.9, 0.8]]}, "gamma: expected a number or 2 of them"),
        (0, {}, "seeds: expected at least 1, got 0"),
    ],
)
def test_invalid_hyper_parameters_are_refused(seeds, settings, message):
    with pytest.raises(ValueError, match=message):
        training.hyper(seeds, **settings)


def test_hyper_parameters_of_several_seeds():
    hyper = training.hyper(3, gamma=[0.9, 0.8, 0.7], tau=0.5)
    assert {tuple(x.shape) for x in hyper[:-1]} == {(3,)}
    assert hyper.gamma.tolist() == torch.tensor([0.9, 0.8, 0.7]).tolist()
    assert hyper.tau.tolist() == [0.5] * 3
    assert len({x.untyped_storage().data_ptr() for x in hyper[:-1]}) == len(hyper[:-1])


def reference_loss(f, mine, target, rows):
    """Compute loss, mean Q-value and gradients with modules and `gather`."""

    def module(values):
        net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        net.load_state_dict(values)
        return net

    with torch.random.fork_rng(devices=[]):
        online, other = module(mine), module(target)
    q = online(rows.obs).gather(1, rows.action[:, None])[:, 0]
    with torch.no_grad():
        q_next = other(rows.next_obs)
        chooser = online(rows.next_obs) if f is dqn.double_q_learning else q_next
        best = chooser.masked_fill(~rows.next_legal, -torch.inf).argmax(1, keepdim=True)
        value = q_next.gather(1, best)[:, 0] * rows.next_legal.any(1)
        goal = rows.reward + 0.9 * rows.discount * value
    value = nn.functional.mse_loss(q, goal)
    value.backward()
    return value.detach(), q.mean().detach(), {n: p.grad for n, p in online.named_parameters()}


@BOTH
def test_loss_and_gradient_equal_pytorch_modules(f):
    hyper = HYPER._replace(gamma=torch.tensor(0.9, dtype=torch.float64))
    value, q, slopes = reference_loss(f, params(1), params(2), batch())
    mine = loss(f)(params(1), params(2), batch(), hyper)
    asserts.assert_trees_close((value, q), mine, 1e-12, 1e-12)
    got = grad(lambda p: loss(f)(p, params(2), batch(), hyper)[0])(params(1))
    asserts.assert_trees_close(slopes, got, 1e-12, 1e-12)


@BOTH
def test_laws_of_the_loss(f):
    laws.pure(loss(f), params(1), params(2), batch(), HYPER)
    laws.semi_gradient(lambda *a: loss(f)(*a)[0], params(1), params(2), batch(), HYPER, held=(1, 3))
    stacked = tree.stack([(params(i), params(i + 9), batch(i), HYPER) for i in range(2)])
    laws.vmapped(loss(f), *stacked)
    step = vmap(grad(loss(f, losses.huber), has_aux=True))
    laws.compiled(step, *stacked, atol=1e-12)


def test_gradient_without_bootstrapping():
    """Check gradients without bootstrapping, where the semi-gradient is the gradient."""
    rows = batch()._replace(discount=torch.zeros(7, dtype=torch.float64))
    laws.gradients(
        lambda p: dqn.q_learning(NETWORK.apply, losses.squared, p, params(2), rows, HYPER).loss.mean(), params(1)
    )


@BOTH
def test_time_limits_bootstrap_and_terminations_do_not(f):
    """Compare equal rows with discounts 1 and 0."""
    rows = tree.map(lambda x: torch.stack([x[0], x[0]]), batch())
    rows = rows._replace(discount=torch.tensor([1.0, 0.0]).double(), next_legal=torch.ones(2, 3, dtype=torch.bool))
    slope = grad(lambda r: loss(f, lambda delta: delta)(params(1), params(2), rows._replace(reward=r), HYPER)[0])
    assert slope(rows.reward).abs().max() == 0  # targets have no gradient
    seen = f(NETWORK.apply, lambda delta: delta, params(1), params(2), rows, HYPER).loss
    following = NETWORK.apply(params(2), rows.next_obs)[0]
    chooser = following if f is dqn.q_learning else NETWORK.apply(params(1), rows.next_obs)[0]
    torch.testing.assert_close(seen[0] - seen[1], HYPER.gamma * following[chooser.argmax()])


@given(strategies.transitions(batch=(4,), dtype=torch.float64))
def test_loss_is_finite_on_any_batch(rows):
    for f in (dqn.q_learning, dqn.double_q_learning):
        value, q = loss(f)(params(1), params(2), rows, HYPER)
        assert value.isfinite()
        assert q.isfinite()


def test_updates_equal_pytorch():
    """Compare twenty updates, with clipping and Adam, with PyTorch."""
    hyper = tree.cast(seed_hyper(gamma=0.9, learning_rate=0.01, max_grad_norm=0.5), torch.float64)
    optimizer = assemble.clipped(assemble.adam)(hyper)
    learner = off_policy.init(optimizer, params(1))
    reference = {n: x.clone().requires_grad_() for n, x in params(1).items()}
    oracle = torch.optim.Adam(reference.values(), lr=float(hyper.learning_rate))
    for i in range(20):
        rows = batch(i)
        slopes = grad(lambda p, r=rows: loss(dqn.q_learning)(p, params(1), r, hyper)[0])(
            tree.map(torch.Tensor.detach, reference)
        )
        for n, x in reference.items():
            x.grad = slopes[n].clone()
        norm = nn.utils.clip_grad_norm_(reference.values(), 0.5)
        oracle.step()
        learner, diagnostics = learn(dqn.agent(NETWORK, double=False), optimizer, learner, rows, hyper)
        asserts.assert_trees_close(tree.map(torch.Tensor.detach, reference), learner.params, 1e-10, 1e-10)
        torch.testing.assert_close(diagnostics.grad_norm, norm, rtol=1e-10, atol=0)
    assert int(learner.updates) == 20
    asserts.assert_trees_equal(params(1), learner.target_params)


def test_laws_of_an_update():
    hyper = tree.cast(seed_hyper(max_grad_norm=1.0), torch.float64)
    optimizer = assemble.clipped(assemble.adam)(hyper)
    learner = off_policy.init(optimizer, params(1))

    def step(learner, rows, hyper):
        return learn(dqn.agent(NETWORK), assemble.clipped(assemble.adam)(hyper), learner, rows, hyper)

    laws.pure(step, learner, batch(), hyper)
    laws.vmapped(step, tree.stack([learner] * 2), tree.stack([batch(1), batch(2)]), tree.stack([hyper, hyper]))
    other = hyper._replace(learning_rate=hyper.learning_rate * 3, gamma=hyper.gamma / 2)
    laws.compiled(step, learner, batch(), hyper, again=[(learner, batch(3), other)], atol=1e-10)
    programs.donated(lambda s, *a: step(s, *a)[0], tree.clone(learner), batch(), hyper)


def test_hard_and_soft_target_updates():
    learner = off_policy.init(optim.sgd(0.1), params(1))._replace(target_params=params(2))
    hard = laws.pure(off_policy.hard_copy, learner)
    asserts.assert_trees_equal(params(1), hard.target_params)
    asserts.assert_trees_equal(params(1), hard.params)
    soft = laws.pure(off_policy.soft_copy, learner, torch.tensor(0.25, dtype=torch.float64))
    expected = tree.map(lambda t, p: 0.75 * t + 0.25 * p, params(2), params(1))
    asserts.assert_trees_close(expected, soft.target_params, 1e-14)
    whole = off_policy.soft_copy(learner, torch.tensor(1.0, dtype=torch.float64))
    asserts.assert_trees_close(params(1), whole.target_params, 1e-14)
    for f in (off_policy.hard_copy, partial(off_policy.soft_copy, tau=torch.tensor(0.25))):
        programs.donated(f, tree.clone(learner))


def test_leaves_of_a_new_learner_share_no_storage():
    learner = off_policy.init(optim.adam(0.1), params(1))
    leaves = tree.leaves(learner)
    assert len({x.untyped_storage().data_ptr() for x in leaves}) == len(leaves)
    asserts.assert_trees_equal(learner.params, learner.target_params)


def test_act_is_greedy_without_epsilon_and_legal_with_it():
    rows, u = batch(size=50, dtype=torch.float32), random.uniform(random.key(5), (50, 2))
    legal = rows.next_legal | (torch.arange(3) == 1)
    mine = NETWORK.init(random.key(1))
    greedy = NETWORK.apply(mine, rows.obs).masked_fill(~legal, -torch.inf).argmax(-1)
    for epsilon in (torch.tensor(0.0), torch.tensor(0.5), torch.tensor(1.0)):
        act = partial(exploration.epsilon_greedy, dqn.agent(NETWORK).values(mine, rows.obs, ()))
        laws.legal_only(lambda q, legal, e=epsilon: act(legal, e, u), NETWORK.apply(mine, rows.obs), legal)
    asserts.assert_trees_equal(greedy, act(legal, torch.tensor(0.0), u))


@BOTH
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("reward", lambda x: x.unsqueeze(-1)),
        ("discount", lambda x: x.unsqueeze(-1)),
        ("action", lambda x: x.unsqueeze(-1)),
        ("next_legal", lambda x: x[:, :2]),
        ("obs", lambda x: x[:, :1]),
    ],
)
def test_batches_of_the_wrong_shape_are_refused(f, field, change):
    rows = batch()._replace(**{field: change(getattr(batch(), field))})
    with pytest.raises(ValueError, match=r"expected shape .*, got"):
        loss(f)(params(1), params(2), rows, HYPER)


@pytest.mark.parametrize("tau", [1, 1.0, torch.tensor(1.0)])
def test_a_soft_update_with_tau_1_is_a_hard_update(tau):
    """Compare bits for numbers of any magnitude, and check that the copy has separate memory."""
    params = {"w": torch.logspace(-6, 6, 1000), "b": torch.tensor([1.0, 2.0])}
    target = {"w": torch.logspace(6, -6, 1000).neg(), "b": torch.tensor([torch.nan, torch.inf])}
    learner = off_policy.init(optim.sgd(), params)._replace(target_params=target)
    copied = off_policy.soft_copy(learner, tau)
    asserts.assert_trees_equal(off_policy.hard_copy(learner), copied)
    assert all(copied.target_params[name].data_ptr() != x.data_ptr() for name, x in params.items())
