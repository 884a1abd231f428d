"""Agents: all agents obey the laws, the laws reject planted bugs, and losses equal those of the papers."""

from functools import partial

import pytest
import torch
from plants import rejects

from fdqn import networks, random, tree
from fdqn.agents import (
    c51,
    check_agent,
    check_loss_output,
    dqn,
    each_pass,
    iqn,
    munchausen,
    noise_shapes,
    pqn,
    qr_dqn,
)
from fdqn.experiment import memory
from fdqn.ops import distributional, losses, masking, quantile, td
from fdqn.testing import agents, asserts, examples, laws
from fdqn.types import Agent, Hyper, LossOutput, NoiseShapes, Transition

ATOMS = (-3.0, 3.0, 7)


def linear_quantiles(network):
    """Make a network of quantiles that are linear in the fraction, with a level and a slope for each action.

    The slopes are so large that the greedy action depends on the fractions.
    """
    noisy = networks.with_noise(network)

    def apply(params, obs, fractions, noise=()):
        level, slope = noisy.apply(params, obs, noise).unflatten(-1, (-1, 2)).unbind(-1)
        return level.unsqueeze(-1) + 8 * slope.unsqueeze(-1) * (fractions.unsqueeze(-2) - 0.5)

    return networks.QuantileNetwork(noisy.init, apply, noisy.noise)


def implicit(network, **changes):
    few = {"fractions": 4, "target_fractions": 4, "acting_fractions": 4, **changes}
    return iqn.agent(linear_quantiles(network), **few)


MAKERS = {
    "dqn": (partial(dqn.agent, double=False), 1),
    "double": (dqn.agent, 1),
    "huber": (partial(dqn.agent, loss=losses.huber), 1),
    "c51": (partial(c51.agent, support=ATOMS), 7),
    "double c51": (partial(c51.agent, support=ATOMS, double=True), 7),
    "qr": (partial(qr_dqn.agent, quantiles=4), 4),
    "double qr": (partial(qr_dqn.agent, quantiles=4, double=True, kappa=0.0), 4),
    "iqn": (implicit, 2),
    "double iqn": (partial(implicit, double=True, kappa=0.3), 2),
}
EACH = pytest.mark.parametrize(("make", "outputs"), MAKERS.values(), ids=MAKERS)
PLAIN, NOISY = networks.mlp(2, (5,), 3), networks.noisy_mlp(2, (5,), 3)
NOISY_6 = networks.noisy_mlp(2, (5,), 3 * 2)


@EACH
def test_agents_obey_the_laws_with_and_without_noise(make, outputs):
    agents.agent(make(networks.mlp(2, (5,), 3 * outputs)), (2,), 3)
    agents.agent(make(networks.noisy_mlp(2, (5,), 3 * outputs)), (2,), 3)
    agents.illegal_actions(make, outputs=outputs)


@pytest.mark.parametrize("double", [False, True])
def test_dqn_obeys_the_laws(double):
    make = partial(dqn.agent, double=double)
    agents.agent(make(PLAIN), (2,), 3)
    agents.agent(make(networks.dueling_mlp(2, (5,), 3)), (2,), 3)
    agents.illegal_actions(make)
    given = params(PLAIN, 1), params(PLAIN, 2), batch(), HYPER
    right, other = (dqn.double_q_learning, dqn.q_learning)[:: 1 if double else -1]
    expected = right(PLAIN.apply, losses.squared, *given)
    asserts.assert_trees_close(expected, make(PLAIN).loss(*given, ()), 1e-12)
    with rejects("expected"):
        asserts.assert_trees_close(other(PLAIN.apply, losses.squared, *given), make(PLAIN).loss(*given, ()), 1e-12)


SOFT = {"plain": {}, "warm": {"tau": 0.5, "clip": -3.0, "alpha": 0.5}, "alpha 0": {"tau": 1.0, "alpha": 0.0}}


@pytest.mark.parametrize("options", SOFT.values(), ids=SOFT)
def test_munchausen_obeys_the_laws(options):
    make = partial(munchausen.agent, **options)
    agents.agent(make(PLAIN), (2,), 3, greedy_target=False)
    # With an alpha of 0, the pass of the target network at `obs` and its noise are not used.
    if options.get("alpha") != 0:
        agents.agent(make(NOISY), (2,), 3, greedy_target=False)
    agents.illegal_actions(make)


def test_law_of_agents_without_a_greedy_target_rejects_planted_bugs():
    right = munchausen.agent(PLAIN)
    with rejects("loss of ended rows"):
        goes_on = partial(change_batch(lambda b: b._replace(discount=torch.ones_like(b.discount))), right)
        agents.agent(right._replace(loss=goes_on), (2,), 3, greedy_target=False)
    with rejects("loss.q: expected the values of"):
        agents.agent(values_with(lambda q: q.flip(-1))(right), (2,), 3, greedy_target=False)


def test_law_of_illegal_actions_rejects_a_policy_over_all_actions():
    def careless(network):
        right = munchausen.agent(network, tau=0.5)
        return right._replace(loss=partial(change_batch(lambda batch: batch._replace(legal=())), right))

    with rejects("illegal actions of target parameters at"):
        agents.illegal_actions(careless)


def test_dueling_and_layer_norm_networks_and_other_dtypes_obey_the_laws():
    agents.agent(dqn.agent(networks.dueling_mlp(2, (5,), 3)), (2,), 3)
    agents.agent(dqn.agent(networks.layer_norm_mlp((2, 2), (5,), 4)), (2, 2), 4, obs_dtype=torch.uint8)
    agents.agent(c51.agent(networks.mlp(2, (5,), 3 * 7), ATOMS), (2,), 3, dtype=torch.float32, atol=1e-5)


def planted(bug, network=PLAIN, double=False):
    """Make a DQN agent whose loss is `bug(right, params, target_params, batch, hyper, noise)`, where `right` is DQN."""
    right = dqn.agent(network, double)
    return right._replace(loss=partial(bug, right))


def with_output(**changes):
    """Make a bug that changes the output of the loss."""

    def bug(right, *given):
        output = right.loss(*given)
        return output._replace(**{name: f(getattr(output, name)) for name, f in changes.items()})

    return bug


def change_batch(f):
    """Make a bug that changes the batch of the loss."""
    return lambda right, params, target, batch, *rest: right.loss(params, target, f(batch), *rest)


def use_other_noise(f):
    return lambda right, params, target, batch, hyper, noise: right.loss(params, target, batch, hyper, f(noise))


def undetached(right, params, target, batch, hyper, noise):
    q, q_t = PLAIN.apply(params, batch.obs), PLAIN.apply(target, batch.next_obs)
    goal = batch.reward + hyper.gamma * batch.discount * masking.best(q_t, batch.next_legal)
    delta = goal - masking.pick(q, batch.action)
    return LossOutput(delta**2, masking.pick(q, batch.action), delta.abs())


def expected_sarsa(right, params, target, batch, hyper, noise):
    q, q_t = PLAIN.apply(params, batch.obs), PLAIN.apply(target, batch.next_obs)
    value = torch.where(batch.next_legal, q_t, 0.0).sum(-1) / batch.next_legal.sum(-1).clamp_min(1)
    delta = (batch.reward + hyper.gamma * batch.discount * value).detach() - masking.pick(q, batch.action)
    return LossOutput(delta**2, masking.pick(q, batch.action), delta.abs().detach())


def values_with(f):
    return lambda right: right._replace(values=lambda params, obs, noise: f(right.values(params, obs, noise)))


def all_legal(batch):
    return batch._replace(next_legal=torch.ones_like(batch.next_legal))


def drawn(q):
    return q + 1e-3 * torch.rand(())


PLANTS = {
    "mean of the loss": (planted(with_output(loss=torch.mean)), r"agent.loss.loss: expected shape \[6\], got \[\]"),
    "no record": (planted(lambda right, *given: tuple(right.loss(*given))), "agent.loss: expected LossOutput, got tup"),
    "other actions": (values_with(lambda q: q[..., :2])(dqn.agent(PLAIN)), r"agent.values: expected shape \[6 3\], "),
    "signed priority": (planted(with_output(priority=torch.neg)), "loss.priority: expected at least 0, got -"),
    "infinite priority": (planted(with_output(priority=lambda p: p / 0)), r"loss: .priority\[0\]: expected a finite"),
    "drawn values": (values_with(drawn)(dqn.agent(PLAIN)), "second call|generator of torch"),
    "rows without legal actions": (
        planted(lambda right, p, t, b, h, u: right.loss(p, t, b._replace(
            reward=torch.where(b.next_legal.any(-1), b.reward, -torch.inf)), h, u)),
        "nothing legal, loss: .loss.*: expected a finite number",
    ),
    "batch norm": (planted(with_output(loss=lambda x: x / x.max())), "other rows after a change of row"),
    "first row only": (planted(with_output(loss=lambda x: x + x[0])), "other rows after a change of row 0"),
    "discount ignored": (
        planted(change_batch(lambda b: b._replace(discount=torch.ones_like(b.discount)))), "loss of ended rows"),
    "gamma ignored": (
        planted(lambda right, p, t, b, h, u: right.loss(p, t, b, h._replace(gamma=torch.ones_like(h.gamma)), u)),
        "loss with gamma 0",
    ),
    "no target": (
        planted(lambda right, p, t, b, h, u: right.loss(p, tree.map(torch.Tensor.detach, p), b, h, u)),
        "loss: expected it to depend on the target parameters",
    ),
    "time limit as termination": (
        planted(change_batch(lambda b: b._replace(discount=torch.zeros_like(b.discount)))),
        "loss: expected it to depend on the target parameters",
    ),
    "lowest action": (values_with(torch.neg)(planted(with_output(q=torch.neg))), "the target uses another action"),
    "q of another action": (values_with(lambda q: q.flip(-1))(dqn.agent(PLAIN)), "loss.q: expected the values of"),
    "expected sarsa": (planted(expected_sarsa), "the target uses another action"),
    "mask ignored": (planted(change_batch(all_legal)), "got the same|the target uses another action"),
    "undetached": (planted(undetached), "argument 1: expected gradient 0 on the target's side"),
    "no gradient": (planted(with_output(loss=lambda x: x.detach())), "expected it to depend on an argument"),
    "shared noise": (
        planted(use_other_noise(lambda u: u[:1].expand_as(u) if u != () else u), NOISY, double=True),
        r"noise of loss: expected all of \[3, 15\] to be used, got part 1 unused",
    ),
    "noise ignored": (planted(use_other_noise(lambda u: ()), NOISY), "noise of loss: .*, got part 0 unused"),
    "noise too long": (
        dqn.agent(NOISY)._replace(
            values=lambda p, obs, u: NOISY.apply(p, obs, u[:-1] if len(u) else u),
            noise=lambda rows: NoiseShapes((16,), (3, 15)),
        ),
        r"noise of values: expected all of \[16\] to be used, got part 15 unused",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("agent", "message"), PLANTS.values(), ids=PLANTS)
def test_law_of_agents_rejects_planted_bugs(agent, message):
    with torch.random.fork_rng(devices=[]), rejects(message):
        agents.agent(agent, (2,), 3)


def masked_by_product(network):
    """Plant a bug: multiply by the mask, so that illegal values count as 0 and NaN stays NaN."""

    def loss(params, target, batch, hyper, noise):
        q, q_t = network.apply(params, batch.obs), network.apply(target, batch.next_obs)
        value = (q_t * batch.next_legal).amax(-1)
        delta = (batch.reward + hyper.gamma * batch.discount * value).detach() - masking.pick(q, batch.action)
        return LossOutput(delta**2, masking.pick(q, batch.action), delta.abs().detach())

    return dqn.agent(network, double=False)._replace(loss=loss)


def masked_by_a_large_number(network):
    """Plant a bug: a row without a legal action bootstraps from a large number."""

    def loss(params, target, batch, hyper, noise):
        q, q_t = network.apply(params, batch.obs), network.apply(target, batch.next_obs)
        value = q_t.masked_fill(~batch.next_legal, -1e9).amax(-1)
        value = torch.where(value == -1e9, network.apply(target, batch.next_obs).amax(-1), value)
        delta = (batch.reward + hyper.gamma * batch.discount * value).detach() - masking.pick(q, batch.action)
        return LossOutput(delta**2, masking.pick(q, batch.action), delta.abs().detach())

    return dqn.agent(network, double=False)._replace(loss=loss)


def unmasked(network):
    right = dqn.agent(network)
    return right._replace(loss=lambda p, t, batch, *rest: right.loss(p, t, all_legal(batch), *rest))


def unmasked_choice(network):
    """Plant a bug: the online network selects among all actions, and an illegal one counts as 0."""

    def loss(params, target, batch, hyper, noise):
        q, q_t = network.apply(params, batch.obs), network.apply(target, batch.next_obs)
        chosen = network.apply(params, batch.next_obs).detach().argmax(-1)
        value = masking.pick(torch.where(batch.next_legal, q_t, 0.0), chosen)
        delta = (batch.reward + hyper.gamma * batch.discount * value).detach() - masking.pick(q, batch.action)
        return LossOutput(delta**2, masking.pick(q, batch.action), delta.abs().detach())

    return dqn.agent(network)._replace(loss=loss)


@pytest.mark.parametrize("make", [masked_by_product, masked_by_a_large_number, unmasked, unmasked_choice])
def test_law_of_illegal_actions_rejects_planted_bugs(make):
    with rejects("illegal actions of (online|target) parameters at"):
        agents.illegal_actions(make)


# C51 and noisy DQN

HYPER = Hyper(*(torch.tensor(x, dtype=torch.float64) for x in (1e-3, 0.9, 1.0, 0.1, 100.0, 0.5, 10.0)))


def batch(seed=0, rows=7, dtype=torch.float64):
    key = random.key(seed)
    obs, next_obs = random.normal(key, (2, rows, 2), dtype)
    return Transition(
        obs,
        random.randint(random.fold_in(key, 1), (rows,), 0, 3),
        random.normal(random.fold_in(key, 2), (rows,), dtype),
        (random.uniform(random.fold_in(key, 3), (rows,)) < 0.7).to(dtype),
        next_obs,
        random.uniform(random.fold_in(key, 4), (rows, 3)) < 0.6,
    )


def params(network, seed):
    return tree.cast(network.init(random.key(seed)), torch.float64)


def test_c51_equals_a_loop_over_rows_actions_and_atoms():
    """Compare with Algorithm 1 of Bellemare et al., 2017, in plain Python."""
    network, rows = networks.mlp(2, (5,), 3 * 7), batch()
    support = distributional.atoms(ATOMS)
    online, target = params(network, 1), params(network, 2)
    output = c51.agent(network, ATOMS).loss(online, target, rows, HYPER, ())
    for i in range(7):
        p = network.apply(target, rows.next_obs[i]).reshape(3, 7).softmax(-1)
        q = (p @ support).tolist()
        legal = [a for a in range(3) if rows.next_legal[i, a]]
        m = [0.0] * 7
        for j in range(7):
            best = max(legal, key=lambda a: q[a], default=None)
            future = 0.0 if best is None else 0.9 * float(rows.discount[i]) * float(support[j])
            b = (min(max(float(rows.reward[i]) + future, -3.0), 3.0) + 3.0) / 1.0
            mass = 1 / 7 if best is None else float(p[best, j])
            low, high = int(b), min(int(b) + 1, 6)
            m[low] += mass * (1 - (b - int(b)))
            m[high] += mass * (b - int(b))
        logits = network.apply(online, rows.obs[i]).reshape(3, 7)[rows.action[i]]
        expected = -(torch.tensor(m, dtype=torch.float64) * logits.log_softmax(-1)).sum()
        torch.testing.assert_close(output.loss[i], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(output.q[i], (logits.softmax(-1) * support).sum(), rtol=1e-12, atol=1e-12)


def test_supports_may_be_uneven_and_state_bytes_needs_no_memory():
    uneven = torch.tensor([-1.0, 0.0, 0.25, 3.0])
    agent = c51.agent(networks.mlp(2, (5,), 3 * 4), uneven)
    agents.agent(agent, (2,), 3)
    logits = networks.mlp(2, (5,), 3 * 4).apply(params(agent, 0), batch().obs).reshape(7, 3, 4)
    expected = logits.softmax(-1) @ uneven.double()
    asserts.assert_trees_close(expected, agent.values(params(agent, 0), batch().obs, ()), 1e-12)
    for support in (uneven, ATOMS):
        agent = c51.agent(networks.mlp(4, (8,), 2 * len(distributional.atoms(support))), support)
        assert memory.state_bytes(examples.program(agent=agent), 2) > 0


def test_priority_of_c51_is_0_where_the_prediction_is_the_target():
    """Use terminal rows with reward 0 and nearly all mass at 0."""
    network = networks.mlp(2, (), 3 * 7)
    sure = {"0.weight": torch.zeros(21, 2), "0.bias": torch.tensor([0.0, 0, 0, 50, 0, 0, 0] * 3)}
    rows = batch(dtype=torch.float32)
    rows = rows._replace(reward=torch.zeros(7), discount=torch.zeros(7))
    output = c51.agent(network, ATOMS).loss(sure, sure, rows, tree.cast(HYPER, torch.float32), ())
    asserts.assert_trees_close(LossOutput(*(torch.zeros(7),) * 3), output, 1e-6)


@pytest.mark.parametrize("name", ["double", "double c51"])
def test_laws_of_a_function(name):
    """Check purity, vmap over seeds and compilation to one graph, with noise."""
    make, outputs = MAKERS[name]
    network = networks.noisy_mlp(2, (4,), 3 * outputs)
    agent = make(network)
    seeds = []
    for i in range(2):
        u = random.uniform(random.key(i), agent.noise(7).loss)
        seeds.append((params(network, i), params(network, i + 9), batch(i), HYPER, u))
    laws.vmapped(agent.loss, *tree.stack(seeds))
    laws.compiled(agent.loss, *seeds[0], again=[seeds[1]], atol=1e-12)


def test_noise_of_the_loss_is_independent_in_each_pass():
    """Check the rows of the noise: online network, target network, selection of the next action."""
    agent, rows = dqn.agent(NOISY), batch(1)
    online, target = params(NOISY, 1), params(NOISY, 2)
    u = random.uniform(random.key(0), agent.noise(7).loss)
    q_t = NOISY.apply(target, rows.next_obs, u[1])
    best = masking.greedy(NOISY.apply(online, rows.next_obs, u[2]), rows.next_legal)
    value = torch.where(rows.next_legal.any(-1), masking.pick(q_t, best), 0.0)
    q = masking.pick(NOISY.apply(online, rows.obs, u[0]), rows.action)
    delta = rows.reward + HYPER.gamma * rows.discount * value - q
    expected = LossOutput(delta**2, q, delta.abs())
    asserts.assert_trees_close(expected, agent.loss(online, target, rows, HYPER, u), 1e-12)


def test_joined_networks_obey_the_laws():
    """Use dueling heads with several atoms, noise in trunk and head, and networks of quantiles."""
    trunks, heads = networks.trunks, networks.heads
    agents.agent(c51.agent(networks.join(trunks.mlp(2, (5,)), heads.dueling(3, 7)), ATOMS, double=True), (2,), 3)
    agents.agent(qr_dqn.agent(networks.join(trunks.noisy_mlp(2, (5,)), heads.noisy_dueling(3, 4)), 4), (2,), 3)
    few = {"fractions": 4, "target_fractions": 4, "acting_fractions": 4}
    agents.agent(iqn.agent(networks.quantile(trunks.mlp(2, (6,)), heads.dueling(3), 4), **few), (2,), 3, seed=3)
    noisy = networks.quantile(trunks.noisy_mlp(2, (6,)), heads.noisy_linear(3), 4)
    agents.agent(iqn.agent(noisy, double=True, **few), (2,), 3)


def test_fractions_of_iqn():
    """Check that each pass takes its own number of fractions per row from the uniforms after the network's noise."""
    network = linear_quantiles(NOISY_6)
    agent, rows = iqn.agent(network, False, 2, 3, 5), batch(1)
    assert agent.noise(4) == NoiseShapes((18 + 4 * 5,), (3, 18 + 4 * 5))
    online, target = params(network, 1), params(network, 2)
    u = random.uniform(random.key(0), agent.noise(7).loss).double()
    few = [x.reshape(7, n) for x, n in ((u[0, 18:32], 2), (u[1, 18:39], 3), (u[2, 18:], 5))]
    z = distributional.pick(network.apply(online, rows.obs, few[0], u[0, :18]), rows.action)
    z_t = network.apply(target, rows.next_obs, few[1], u[1, :18])
    q_t = network.apply(target, rows.next_obs, few[2], u[2, :18]).mean(-1)
    goal = quantile.q_learning_target(rows.reward, HYPER.gamma * rows.discount, z_t, q_t, rows.next_legal)
    loss = quantile.regression_loss(z, few[0], goal)
    expected = LossOutput(loss, z.mean(-1), loss)
    asserts.assert_trees_close(expected, agent.loss(online, target, rows, HYPER, u), 1e-12)
    double = iqn.agent(network, True, 2, 3, 5).loss(online, target, rows, HYPER, u)
    q_t = network.apply(online, rows.next_obs, few[2], u[2, :18]).mean(-1)
    goal = quantile.q_learning_target(rows.reward, HYPER.gamma * rows.discount, z_t, q_t, rows.next_legal)
    asserts.assert_trees_close(quantile.regression_loss(z, few[0], goal), double.loss, 1e-12)
    means = network.apply(online, rows.obs, quantile.midpoints(5, torch.float64)).mean(-1)
    asserts.assert_trees_close(means, agent.values(online, rows.obs, ()), 1e-12)
    asserts.assert_trees_close(means.reshape(7, 1, 3), agent.values(online, rows.obs.unsqueeze(1), ()), 1e-12)


def test_fractions_for_all_rows_equal_those_of_each_row():
    network = networks.quantile(networks.trunks.mlp(2, (6,)), networks.heads.dueling(3), 4)
    given, obs, u = params(network, 0), batch().obs, random.uniform(random.key(1), (5,), torch.float64)
    asserts.assert_trees_close(network.apply(given, obs, u.expand(7, 5)), network.apply(given, obs, u), 1e-12)
    alone = torch.stack([network.apply(given, x, u) for x in obs])
    asserts.assert_trees_close(network.apply(given, obs, u), alone, 1e-12)


# Order of the actions

ORDER = torch.tensor([2, 0, 1])


def reordered(network, outputs):
    """Return the network with its actions in another order."""
    noisy = networks.with_noise(network)

    def apply(params, obs, noise=()):
        return noisy.apply(params, obs, noise).unflatten(-1, (3, outputs))[..., ORDER, :].flatten(-2)

    return networks.NoisyNetwork(noisy.init, apply, noisy.noise)


def law_of_permuted_actions(make, outputs, move=lambda action: ORDER.argsort()[action]):
    """Assert that the order of the actions does not matter, where `move` gives the new numbers of actions."""
    for network in (networks.mlp(2, (5,), 3 * outputs), networks.noisy_mlp(2, (5,), 3 * outputs)):
        agent, moved, rows = make(network), make(reordered(network, outputs)), batch(3)
        u_values, u_loss = (random.uniform(random.key(4), shape) if shape else () for shape in agent.noise(7))
        given = params(network, 1), params(network, 2)
        others = rows._replace(action=move(rows.action), next_legal=rows.next_legal[:, ORDER])
        expected = agent.loss(*given, rows, HYPER, u_loss), agent.values(given[0], rows.obs, u_values)[:, ORDER]
        got = moved.loss(*given, others, HYPER, u_loss), moved.values(given[0], rows.obs, u_values)
        asserts.assert_trees_close(expected, got, 1e-12, 1e-12, "another order of actions: ")


@pytest.mark.parametrize(
    ("make", "outputs"), [*MAKERS.values(), (munchausen.agent, 1), (pqn.agent, 1)], ids=[*MAKERS, "munchausen", "pqn"]
)
def test_the_order_of_actions_does_not_matter(make, outputs):
    law_of_permuted_actions(make, outputs)


def test_law_of_permuted_actions_rejects_planted_bugs():
    with rejects("another order of actions"):
        law_of_permuted_actions(dqn.agent, 1, move=lambda action: action)
    with rejects("another order of actions"):
        law_of_permuted_actions(lambda network: values_with(lambda q: q - q[..., :1])(dqn.agent(network)), 1)


# Special cases give the simpler agent


def test_munchausen_at_temperature_0_and_alpha_0_is_q_learning():
    """Compare with DQN at an alpha of 0 and temperatures close to 0."""
    given = params(PLAIN, 1), params(PLAIN, 2), batch(), HYPER, ()
    cold = munchausen.agent(PLAIN, alpha=0.0, tau=1e-6, loss=losses.squared).loss(*given)
    asserts.assert_trees_close(dqn.agent(PLAIN, double=False).loss(*given), cold, 1e-5)
    exact = munchausen.agent(PLAIN, alpha=0.0, tau=1e-15, loss=losses.squared).loss(*given)
    asserts.assert_trees_close(dqn.agent(PLAIN, double=False).loss(*given), exact, 1e-12)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", ["dqn", "c51", "qr"])
def test_noise_of_scale_0_gives_the_agent_without_noise(name, double):
    make, outputs = {
        "dqn": (dqn.agent, 1),
        "c51": (partial(c51.agent, support=ATOMS), 7),
        "qr": (partial(qr_dqn.agent, quantiles=4), 4),
    }[name]
    plain, noisy = networks.mlp(2, (5,), 3 * outputs), networks.noisy_mlp(2, (5,), 3 * outputs, sigma_zero=0.0)
    seeds = [(params(plain, i), params(noisy, i)) for i in (1, 2)]
    u = random.uniform(random.key(0), make(noisy, double=double).noise(7).loss)
    expected = make(plain, double=double).loss(seeds[0][0], seeds[1][0], batch(), HYPER, ())
    got = make(noisy, double=double).loss(seeds[0][1], seeds[1][1], batch(), HYPER, u)
    asserts.assert_trees_close(expected, got, 1e-12)


def test_noise_of_scale_0_gives_munchausen_and_iqn_without_noise():
    plain, silent = PLAIN, networks.noisy_mlp(2, (5,), 3, sigma_zero=0.0)
    u = random.uniform(random.key(0), munchausen.agent(silent).noise(7).loss)
    expected = munchausen.agent(plain).loss(params(plain, 1), params(plain, 2), batch(), HYPER, ())
    got = munchausen.agent(silent).loss(params(silent, 1), params(silent, 2), batch(), HYPER, u)
    asserts.assert_trees_close(expected, got, 1e-12)
    plain, silent = networks.mlp(2, (5,), 6), networks.noisy_mlp(2, (5,), 6, sigma_zero=0.0)
    u = random.uniform(random.key(0), implicit(silent).noise(7).loss).double()
    fractions = u[:, linear_quantiles(silent).noise :]
    expected = implicit(plain).loss(params(plain, 1), params(plain, 2), batch(), HYPER, fractions)
    asserts.assert_trees_close(
        expected, implicit(silent).loss(params(silent, 1), params(silent, 2), batch(), HYPER, u), 1e-12
    )


@pytest.mark.parametrize("double", [False, True])
def test_one_quantile_is_dqn_with_half_the_absolute_error(double):
    given = params(PLAIN, 1), params(PLAIN, 2), batch(), HYPER, ()
    median = qr_dqn.agent(PLAIN, 1, double, kappa=0.0).loss(*given)
    expected = dqn.agent(PLAIN, double, loss=lambda delta: delta.abs() / 2).loss(*given)
    asserts.assert_trees_close(expected._replace(priority=expected.loss), median, 1e-12)
    huber = qr_dqn.agent(PLAIN, 1, double, kappa=1.0).loss(*given)
    asserts.assert_trees_close(dqn.agent(PLAIN, double, losses.huber).loss(*given).loss / 2, huber.loss, 1e-12)


def test_the_mean_of_the_c51_target_is_the_dqn_target():
    """Compare the means of the targets, if all targets are inside the support: projection keeps the mean."""
    network, support = networks.mlp(2, (5,), 3 * 41), distributional.atoms((-40.0, 40.0, 41))
    target, rows = params(network, 2), batch()
    p_t = network.apply(target, rows.next_obs).unflatten(-1, (3, 41)).softmax(-1)
    q_t = distributional.mean(support, p_t)
    discount_t = HYPER.gamma * rows.discount
    got = distributional.q_learning_target(support, rows.reward, discount_t, p_t, q_t, rows.next_legal)
    expected = td.q_learning_target(rows.reward, discount_t, q_t, rows.next_legal)
    inside = rows.reward.abs() + 0.9 * 40 <= 40
    assert inside.all()
    asserts.assert_trees_close(expected, distributional.mean(support, got), 1e-12)


def test_shapes_of_the_noise_of_agents():
    assert dqn.agent(PLAIN).noise(9) == NoiseShapes()
    assert dqn.agent(NOISY).noise(9) == NoiseShapes((15,), (3, 15))
    assert dqn.agent(NOISY, double=False).noise(9) == NoiseShapes((15,), (2, 15))
    assert noise_shapes(NOISY, 5, rows=2) == NoiseShapes((15,), (5, 15))
    assert each_pass((), 2) == ((), ())
    assert [x.shape for x in each_pass(torch.zeros(2, 15), 2)] == [(15,)] * 2


def test_check_agent_accepts_agents_and_names_the_wrong_part():
    check_agent(dqn.agent(NOISY), params(NOISY, 0), batch(), HYPER)
    with pytest.raises(TypeError, match=r"agent.noise: expected NoiseShapes, got tuple"):
        check_agent(Agent(PLAIN.init, dqn.agent(PLAIN).values, dqn.agent(PLAIN).loss, lambda rows: ()),
                         params(PLAIN, 0), batch(), HYPER)  # fmt: skip
    check_loss_output(LossOutput(*torch.zeros(3, 4)), 4)
