"""Tests of on-policy learning: returns of the rollout, permutations, rows of an update, probes and CartPole."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
from plants import rejects
from test_agents_train import greedy_returns
from torch.func import vmap

from fdqn import compile as edge
from fdqn import networks, optim, random, training, tree
from fdqn.agents import c51, pqn
from fdqn.envs import cartpole
from fdqn.ops import masking, returns, schedules
from fdqn.testing import asserts, examples, laws, probes, programs
from fdqn.training import on_policy
from fdqn.types import LossOutput, Transition

pytestmark = pytest.mark.usefixtures("unchecked_iterations")

NETWORK = networks.layer_norm_mlp(2, (6,), 3)
CONFIG = training.Config(
    num_envs=3, steps_per_cycle=5, updates_per_cycle=6, batch_size=5, capacity=15, learning_starts=0, target_period=0
)
HYPER = tree.cast(tree.index(training.hyper(1, gamma=0.9, learning_rate=0.01), 0), torch.float64)


def plain(hyper):
    return optim.sgd(hyper.learning_rate)


def algorithm(agent=None, config=CONFIG, optimizer=plain, **named):
    return on_policy.algorithm(config, agent or pqn.agent(NETWORK), optimizer, **named)


class Steps(NamedTuple):
    """Steps [T] of the environments."""

    batch: Transition
    ended: torch.Tensor
    valid: torch.Tensor


def steps(seed=0, count=5, envs=3):
    """Make episodes that terminate, are truncated or continue; then `next_obs` is the next observation."""
    key, shape = random.key(seed), (count, envs)
    obs = random.normal(random.fold_in(key, 0), (count + 1, envs, 2), torch.float64)
    u, legal = random.uniform(random.fold_in(key, 1), shape), random.uniform(random.fold_in(key, 2), (*shape, 3)) < 0.6
    last = random.normal(random.fold_in(key, 3), (count, envs, 2), torch.float64)
    ended = u < 0.4
    batch = Transition(
        obs=obs[:-1],
        action=random.randint(random.fold_in(key, 4), shape, 0, 3),
        reward=random.normal(random.fold_in(key, 5), shape, torch.float64),
        discount=torch.where(u < 0.2, 0.0, 1.0).double(),
        next_obs=torch.where(ended.unsqueeze(-1), last, obs[1:]),
        next_legal=legal | (torch.arange(3) == 0),
    )
    return Steps(batch, ended, torch.ones_like(ended))


def params(seed=0):
    return tree.cast(NETWORK.init(random.key(seed)), torch.float64)


def observed(algorithm, given, learner=None, rollout=None):
    """Return the learner and the rollout after these steps."""
    if rollout is None:
        example = tree.index(given.batch, (0, 0))
        learner, rollout = algorithm.init(params(), HYPER, example)
    for i in range(len(given.ended)):
        batch, ended, valid = tree.index(given, i)
        rollout = algorithm.observe(learner, rollout, batch, ended, valid, HYPER)
    return learner, rollout


def returns_by_hand(given, lambda_):
    """Compute lambda-returns backwards in time, with 0 in place of lambda at the end of an episode."""
    value = masking.best(NETWORK.apply(params(), given.batch.next_obs), given.batch.next_legal)
    mixing = torch.where(given.ended, 0.0, torch.tensor(lambda_, dtype=torch.float64))
    return returns.lambda_returns(given.batch.reward, HYPER.gamma * given.batch.discount, value, mixing)


@pytest.mark.parametrize("lambda_", [0.0, 0.65, 1.0])
def test_returns_of_the_rollout_are_lambda_returns(lambda_):
    """Check two consecutive training iterations; the second one must not depend on the first."""
    one, rollout, learner = algorithm(lambda_=lambda_), None, None
    for seed in range(2):
        given = steps(seed)
        learner, rollout = observed(one, given, learner, rollout)
        asserts.assert_trees_close(returns_by_hand(given, lambda_).flatten(), rollout.returns, 1e-12)
        asserts.assert_trees_equal(given.batch.obs.flatten(0, 1), rollout.obs)
        asserts.assert_trees_equal(given.batch.action.flatten(), rollout.action)
        assert int(rollout.steps) == 0


def test_the_comparison_rejects_planted_bugs():
    """Plant bugs: ends shifted by a step, as in CleanRL's issue 494; truncation as termination; the first observation
    of the next episode as the final one; no mask.
    """
    given = steps()
    batch, ended, _ = given
    reset = batch._replace(next_obs=torch.cat([batch.obs[1:], batch.next_obs[-1:]]))
    plants = [
        given._replace(ended=ended.roll(1, 0)),
        given._replace(batch=batch._replace(discount=torch.where(ended, 0.0, 1.0).double())),
        given._replace(batch=reset),
        given._replace(batch=batch._replace(next_legal=torch.ones_like(batch.next_legal))),
    ]
    for planted in plants:
        _, rollout = observed(algorithm(), planted)
        with rejects("expected"):
            asserts.assert_trees_close(returns_by_hand(given, 0.65).flatten(), rollout.returns, 1e-12)


def returns_by_episode(given, lambda_):
    """Compute lambda-returns by the forward view: weighted sums of the n-step returns within each episode.

    G = sum over n < N of (1 - lambda) lambda^(n - 1) G_n + lambda^(N - 1) G_N, where G_N reaches the end of the episode
    or of the rollout.
    """
    value = masking.best(NETWORK.apply(params(), given.batch.next_obs), given.batch.next_legal)
    gamma, (count, envs) = float(HYPER.gamma), given.ended.shape
    found = torch.zeros_like(value)
    for e in range(envs):
        for t in range(count):
            last = next((i for i in range(t, count) if given.ended[i, e]), count - 1)
            rewards, total = 0.0, 0.0
            for n, i in enumerate(range(t, last + 1)):
                rewards += gamma**n * given.batch.reward[i, e]
                n_step = rewards + gamma ** (n + 1) * given.batch.discount[i, e] * value[i, e]
                total += lambda_**n * (1 - lambda_ if i < last else 1.0) * n_step
            found[t, e] = total
    return found


def check_returns(one, lambda_, seed=4, count=12):
    """Check the returns of a rollout with terminations and truncations in the middle of it."""
    given = steps(seed, count)
    ends = given.ended[:-1]
    assert (ends & (given.batch.discount[:-1] == 0)).any()
    assert (ends & (given.batch.discount[:-1] == 1)).any()
    _, rollout = observed(one, given)
    asserts.assert_trees_close(returns_by_episode(given, lambda_).flatten(), rollout.returns, 1e-12)


LONG = training.Config(3, 12, 6, 6, 36, learning_starts=0, target_period=0)


@pytest.mark.parametrize("lambda_", [0.0, 0.65, 1.0])
def test_returns_equal_the_forward_view_of_each_episode(lambda_):
    check_returns(algorithm(config=LONG, lambda_=lambda_), lambda_)


def mask_on_the_value(one, lambda_):
    """Plant the bug of CleanRL before its fix of issue 494: the mask is on the value instead of on the whole return.

    G_t = r_t + gamma * (lambda * G_{t+1} + (1 - lambda) * discount_t * v_t)
    """
    given = []

    def observe(learner, rollout, batch, ended, valid, hyper):
        given.append((batch, ended))
        rollout = one.observe(learner, rollout, batch, ended, valid, hyper)
        if rollout.steps != 0:
            return rollout
        steps, _ = tree.stack([x for x, _ in given]), given.clear()
        value = masking.best(NETWORK.apply(learner.params, steps.next_obs), steps.next_legal)
        following, found = None, []
        for r, d, v in zip(*(x.flip(0) for x in (steps.reward, steps.discount, value)), strict=True):
            mixed = d * v if following is None else lambda_ * following + (1 - lambda_) * d * v
            following = r + hyper.gamma * mixed
            found.append(following)
        return rollout._replace(returns=torch.cat(found[::-1]))

    return one._replace(observe=observe)


def no_ends(one):
    """Plant a bug: ends of episodes are not reported, so returns continue into the next episode."""
    return one._replace(observe=lambda *x: one.observe(*x[:3], torch.zeros_like(x[3]), *x[4:]))


def truncation_as_termination(one):
    """Plant a bug: truncation is treated as termination, as in CleanRL."""

    def observe(learner, rollout, batch, ended, valid, hyper):
        batch = batch._replace(discount=torch.where(ended, 0.0, batch.discount))
        return one.observe(learner, rollout, batch, ended, valid, hyper)

    return one._replace(observe=observe)


@pytest.mark.parametrize(
    "plant",
    [lambda one: mask_on_the_value(one, 0.65), no_ends, truncation_as_termination],
    ids=["494", "no ends", "truncation"],
)
def test_a_wrong_mask_in_the_recursion_is_detected(plant):
    """Plant wrong masks. CleanRL's bug gave 408.14 +- 128.42 instead of 495.13 +- 6.89 on CartPole."""
    with rejects("expected"):
        check_returns(plant(algorithm(config=LONG, lambda_=0.65)), 0.65)


def test_the_mask_of_issue_494_is_correct_without_ends():
    """Check that without ends the planted bug makes no difference, so that the mask alone is detected."""
    given = steps(4, 12)
    given = given._replace(
        ended=torch.zeros_like(given.ended),
        batch=given.batch._replace(
            discount=torch.ones_like(given.batch.discount),
            next_obs=torch.cat([given.batch.obs[1:], given.batch.next_obs[-1:]]),
        ),
    )
    _, rollout = observed(mask_on_the_value(algorithm(config=LONG, lambda_=0.65), 0.65), given)
    asserts.assert_trees_close(returns_by_episode(given, 0.65).flatten(), rollout.returns, 1e-12)


def test_invalid_steps_have_no_effect():
    """Leave out steps in which a host environment only starts a new episode: no row, and no return across them."""
    given = steps(3, count=5)
    ended = given.ended.clone()
    ended[1] = True
    valid = torch.ones_like(ended)
    valid[2] = False
    given = given._replace(ended=ended, valid=valid)
    one = algorithm()
    learner, rollout = observed(one, given)
    kept = valid.flatten()
    expected = returns_by_hand(given, 0.65).flatten()
    asserts.assert_trees_close(expected[kept], rollout.returns[kept], 1e-12)
    spoiled = given.batch.reward.clone()
    spoiled[2] = 1e6
    _, other = observed(one, given._replace(batch=given.batch._replace(reward=spoiled)))
    for rows in (torch.arange(5), torch.arange(5, 10)):
        updated = [one.update(learner, x, rows, (), HYPER)[0] for x in (rollout, other)]
        asserts.assert_trees_equal(*updated)


def test_an_update_is_one_step_on_the_mean_squared_error():
    one, rows = algorithm(), torch.tensor([0, 3, 7, 14, 2])
    learner, rollout = observed(one, steps())
    assert learner.target_params == {}
    tracked = {name: x.clone().requires_grad_() for name, x in learner.params.items()}
    q = NETWORK.apply(tracked, rollout.obs[rows]).gather(1, rollout.action[rows, None])[:, 0]
    loss = torch.nn.functional.mse_loss(q, rollout.returns[rows])
    loss.backward()
    expected = {name: (x - HYPER.learning_rate * x.grad).detach() for name, x in tracked.items()}
    after, same, diagnostics = one.update(learner, rollout, rows, (), HYPER)
    asserts.assert_trees_close(expected, after.params, 1e-12)
    asserts.assert_trees_equal(rollout, same)
    torch.testing.assert_close(diagnostics.loss, loss.detach(), rtol=1e-12, atol=0)
    assert int(after.updates) == 1


def test_the_last_step_may_come_after_the_update():
    """Add the last step late, as with host environments: its row has no effect on an update before that."""
    one, given = algorithm(), steps()
    learner, rollout = observed(one, tree.map(lambda x: x[:4], given))
    assert rollout.valid.tolist() == [True] * 12 + [False] * 3
    after, _, diagnostics = one.update(learner, rollout, torch.arange(10, 15), (), HYPER)
    asserts.assert_finite((after, diagnostics))
    kept = observed(one, tree.map(lambda x: x[4:], given), learner, rollout)[1]
    value = masking.best(NETWORK.apply(params(), given.batch.next_obs[4]), given.batch.next_legal[4])
    expected = given.batch.reward[4] + HYPER.gamma * given.batch.discount[4] * value
    asserts.assert_trees_close(expected, kept.returns[12:], 1e-12)
    following = observed(one, steps(1, count=4), learner, kept)[1]
    asserts.assert_trees_equal(kept.returns[12:], following.returns[12:])
    assert following.valid.all()


def test_no_return_crosses_a_cut():
    """Cut after three of five steps without an end of an episode: the returns of these three do not change."""
    one, given = algorithm(), steps()
    given = given._replace(ended=torch.zeros_like(given.ended))
    learner, rollout = observed(one, tree.map(lambda x: x[:3], given))
    kept = observed(one, tree.map(lambda x: x[3:], given), learner, one.cut(rollout))[1]
    asserts.assert_trees_equal(rollout.returns[:9], kept.returns[:9])
    crossing = observed(one, tree.map(lambda x: x[3:], given), learner, rollout)[1]
    with rejects("expected"):
        asserts.assert_trees_equal(rollout.returns[:9], crossing.returns[:9])
    asserts.assert_trees_close(crossing.returns[9:], kept.returns[9:], 1e-12)


def test_other_agents_regress_to_the_returns():
    """Use C51, whose target distribution has all its mass at the return."""
    agent = c51.agent(networks.layer_norm_mlp(2, (6,), 3 * 5), (-2, 2, 5))
    one = algorithm(agent)
    given = steps()
    learner, rollout = one.init(
        tree.cast(agent.init(random.key(0)), torch.float64), HYPER, tree.index(given.batch, (0, 0))
    )
    learner, rollout = observed(one, given, learner, rollout)
    after, _, diagnostics = one.update(learner, rollout, torch.arange(5), (), HYPER)
    asserts.assert_finite((after, diagnostics))
    assert not tree.equal(after.params, learner.params)


def test_pqn_regresses_to_the_rewards_of_its_batch():
    agent, batch = pqn.agent(NETWORK), tree.index(steps().batch, 0)
    q = masking.pick(NETWORK.apply(params(), batch.obs), batch.action)
    output = laws.pure(agent.loss, params(), {}, batch, HYPER, ())
    asserts.assert_trees_equal(LossOutput((batch.reward - q) ** 2, q, (batch.reward - q).abs()), output)
    laws.semi_gradient(
        lambda params, rewards: agent.loss(params, {}, batch._replace(reward=rewards), HYPER, ()).loss,
        params(), batch.reward, held=(1,),
    )  # fmt: skip


def test_permutations_are_of_all_rows_in_every_epoch():
    bits = random.bits(random.key([0, 1]), (6, 5))
    rows = laws.pure(on_policy.permutations, bits, 15)
    assert rows.shape == (2, 6, 5)
    epochs = rows.reshape(2, 2, 15)
    asserts.assert_trees_equal(torch.arange(15).expand(2, 2, 15), epochs.sort(-1).values)
    assert len({tuple(x) for x in epochs.flatten(0, 1).tolist()}) == 4
    laws.vmapped(lambda x: on_policy.permutations(x, 15), bits, dtype=None)
    laws.compiled(lambda x: on_policy.permutations(x, 15), bits, again=[])
    assert on_policy.permutations(torch.zeros((1, 5), dtype=torch.int64), 5).tolist() == [[0, 1, 2, 3, 4]]


def program(env, network, config, optimizer=None, **named):
    optimizer = optimizer or (lambda hyper: optim.adam(hyper.learning_rate))
    return training.Program(env, on_policy.algorithm(config, pqn.agent(network), optimizer, **named))


@pytest.mark.parametrize(("name", "lambda_"), [("endless_reward", 0.65), ("masked_reward", 0.0)])
def test_probes(name, lambda_):
    """Check that truncation bootstraps, and that illegal actions are neither taken nor used to bootstrap.

    With a lambda above 0 the returns are those of the random behavior policy.
    """
    probe = probes.ALL[name]()
    config = training.Config(4, 5, 4, 10, 20, learning_starts=0, target_period=0)
    one = program(probe.env, networks.mlp(1, (16,), probe.env.spec.actions), config, lambda_=lambda_)
    hyper = training.hyper(1, gamma=0.5, learning_rate=0.02, epsilon_start=1.0, epsilon_end=1.0)
    *_, report = training.run(
        one, training.init(one, hyper, random.key([0])), 60 * 20, training.vmapped(one), report_every=10_000
    )
    q = one.network.apply(tree.index(report.state.learner.params, 0), probe.obs)
    expected = probe.q(0.5)
    asserts.assert_trees_close(torch.where(probe.legal, expected, 0.0), torch.where(probe.legal, q, 0.0), 0.1)


def small(**named):
    config = training.Config(2, 4, 4, 4, 8, learning_starts=0, target_period=0)
    return program(cartpole.make(time_limit=7), networks.layer_norm_mlp(4, (5,), 2), config, **named)


def test_laws_of_a_program():
    """Check independence of seeds, chunks of noise, donation and exact resume."""
    one = small()
    hyper, keys = examples.seeds(3)
    programs.seeds(partial(programs.trained, one, cycles=3), hyper, keys, distinct=lambda state: state.learner.params)
    programs.chunks(one, keys, first=1, cycles=3)
    state = training.init(one, hyper, keys)
    programs.resumed(lambda s, cycles: programs.advance(one, s, cycles), state, 2, 1)
    noises = training.noise(one, keys, 0, 1)
    programs.donated(training.vmapped(one).cycle, tree.clone(state), noises)


def test_compiled_observe_and_update_equal_eager():
    """Compile each for two seeds as one graph."""
    one, given = algorithm(), [steps(seed) for seed in range(2)]
    learners, rollouts = zip(*(observed(one, x) for x in given), strict=True)
    (batch, ended, valid), hyper = tree.index(tree.stack(given), (slice(None), 0)), tree.stack([HYPER] * 2)
    state = tree.stack(learners), tree.stack(rollouts)
    laws.compiled(vmap(one.observe), *state, batch, ended, valid, hyper, again=[], atol=1e-12)
    rows = torch.arange(10).reshape(2, 5)
    laws.compiled(vmap(lambda *x: one.update(*x[:3], (), x[3])), *state, rows, hyper, again=[], atol=1e-12)


def on_cartpole(config, steps):
    """Make a program with annealed RAdam, clipping at 10 and lambda 0.95, as in purejaxql's pqn_cartpole.yaml."""
    updates = steps // config.env_steps * config.updates_per_cycle

    def optimizer(hyper):
        rate = partial(schedules.linear, start=hyper.learning_rate, end=0.0, steps=updates)
        return optim.chain(clip=optim.clip_by_global_norm(hyper.max_grad_norm), radam=optim.radam(rate))

    return program(cartpole.make(), networks.layer_norm_mlp(4, (128, 128), 2), config, optimizer, lambda_=0.95)


def test_cartpole_returns_exceed_those_of_random_actions():
    """Random actions have returns of 22. Use Adam, because the first hundred steps of RAdam are small."""
    config = training.Config(32, 16, 16, 128, 512, learning_starts=0, target_period=0)
    one = program(cartpole.make(), networks.layer_norm_mlp(4, (64, 64), 2), config)
    hyper = training.hyper(1, learning_rate=2e-3, epsilon_end=0.1, epsilon_steps=8_000)
    state = training.init(one, hyper, random.key([0]))
    *_, report = training.run(one, state, 10_240, training.vmapped(one), report_every=5_120)
    assert report.returns[0] > 60


@pytest.mark.slow
def test_reaches_400_on_cartpole():
    """Train four seeds for 200,000 steps with the settings of purejaxql's pqn_cartpole.yaml for environments, rollouts,
    minibatches, epochs, lambda, clipping and annealing. The learning rate is 1e-3 instead of 1e-4, for fewer steps.
    """
    config = training.Config(32, 64, 64, 128, 2048, learning_starts=0, target_period=0)
    one = on_cartpole(config, 200_000)
    hyper = training.hyper(4, learning_rate=1e-3, epsilon_end=0.2, epsilon_steps=80_000)
    edge.prepare_cpu()
    state = training.init(one, hyper, random.key(range(4)))
    *_, report = training.run(one, state, 200_000, edge.compiled(one), report_every=200_000)
    found = greedy_returns(one, report.state)
    assert found.min() >= 400, found
