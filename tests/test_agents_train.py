"""Short training runs of agents and of combinations of the extensions of DQN."""

from itertools import product

import pytest
import torch
from torch.func import vmap

from fdqn import compile as edge
from fdqn import networks, optim, random, training, tree
from fdqn.agents import c51, check_agent, dqn, iqn, munchausen, qr_dqn
from fdqn.envs import cartpole
from fdqn.networks import heads, trunks
from fdqn.ops import losses
from fdqn.replay import n_step, prioritized, ring
from fdqn.testing import algorithms, asserts, examples, programs
from fdqn.training import off_policy, streams
from fdqn.types import Transition

pytestmark = pytest.mark.usefixtures("unchecked_iterations")

ATOMS = (0.0, 20.0, 11)
AGENTS = {
    "c51": lambda: c51.agent(networks.mlp(4, (8,), 2 * 11), ATOMS),
    "noisy": lambda: dqn.agent(networks.noisy_mlp(4, (8,), 2)),
    "double noisy c51": lambda: c51.agent(networks.noisy_mlp(4, (8,), 2 * 11), ATOMS, double=True),
    "munchausen": lambda: munchausen.agent(networks.mlp(4, (8,), 2)),
    "qr": lambda: qr_dqn.agent(networks.mlp(4, (8,), 2 * 5), 5),
    "noisy dueling qr": lambda: qr_dqn.agent(networks.join(trunks.mlp(4, (8,)), heads.noisy_dueling(2, 5)), 5, True),
    "iqn": lambda: iqn.agent(networks.quantile(trunks.mlp(4, (8,)), heads.linear(2), 4), False, 3, 4, 5),
}
EACH = pytest.mark.parametrize("make", AGENTS.values(), ids=AGENTS)


@EACH
def test_short_training_is_finite_and_changes_each_seed_differently(make):
    one = examples.program(agent=make(), n_step=2)
    hyper, keys = examples.seeds(2)
    state = programs.advance(one, training.init(one, hyper, keys), 60)
    assert int(state.cycle[0]) * one.config.env_steps >= 180
    assert (state.metrics.failed == -1).all()
    assert (state.learner.updates > 0).all()
    asserts.assert_finite(state.learner)
    before = one.network.init(random.fold_in(keys, streams.NETWORK))
    for name, x in state.learner.params.items():
        assert not torch.equal(x[0], x[1]), f"{name} of both seeds"
        assert not torch.equal(x, before[name]), f"{name} did not learn"


@pytest.mark.parametrize("name", ["munchausen", "qr", "iqn", "double noisy c51"])
def test_training_is_a_function_of_the_keys_and_resumes_exactly(name):
    """Check the law of algorithms, chunks of noise and exact resumption, with two seeds."""
    one = examples.program(agent=AGENTS[name]())
    hyper, keys = examples.seeds(2)
    algorithms.algorithm(one, hyper, keys, cycles=6)
    programs.chunks(one, keys, cycles=3)
    programs.resumed(lambda s, n: programs.advance(one, s, n), training.init(one, hyper, keys), 6, 3)


CONFIG = training.Config(3, batch_size=8, capacity=40, learning_starts=12, target_period=4)


def composed(double, dueling, noisy, prioritize, multi_step, categorical, actions=2):
    """Make the algorithm with any combination of the extensions of DQN; Rainbow has all of them."""
    atoms = 11 if categorical else 1
    trunk = trunks.noisy_mlp(4, (8,)) if noisy else trunks.mlp(4, (8,))
    plain, noisy_heads = (heads.linear, heads.dueling), (heads.noisy_linear, heads.noisy_dueling)
    network = networks.join(trunk, (noisy_heads if noisy else plain)[dueling](actions, atoms))
    agent = c51.agent(network, ATOMS, double) if categorical else dqn.agent(network, double)
    rows = prioritized.buffer(CONFIG.capacity) if prioritize else ring.buffer(CONFIG.capacity)
    buffer = n_step.wrap(rows, CONFIG.num_envs, 2) if multi_step else rows
    return off_policy.algorithm(CONFIG, agent, buffer, lambda h: optim.adam(h.learning_rate))


def rainbow():
    return training.Program(cartpole.make(time_limit=20), composed(*(True,) * 6))


def steps_of_rollout():
    """Yield six steps of three environments, in which no episode ends."""
    key = random.key(5)
    obs = 3 * random.normal(key, (7, 3, 4))
    for i in range(6):
        action = random.randint(random.fold_in(key, i), (3,), 0, 5)
        reward = random.normal(random.fold_in(key, i + 10), (3,))
        yield Transition(obs[i], action, reward, torch.ones(3), obs[i + 1], torch.ones(3, 5, dtype=torch.bool))


def test_every_combination_of_extensions_learns():
    """Make three updates of all 64 combinations on the same steps: losses are finite and all different."""
    hyper, steps = tree.index(training.hyper(1, learning_rate=0.1), 0), list(steps_of_rollout())
    losses = {}
    for switches in product((False, True), repeat=6):
        algorithm = composed(*switches, actions=5)
        agent = algorithm.agent
        params, other = agent.init(random.key(0)), agent.init(random.key(1))
        check_agent(agent, params, steps[0], hyper)
        learner, buffer = algorithm.init(params, hyper, tree.index(steps[0], 0))
        learner = learner._replace(target_params=other)
        for step in steps:
            buffer = algorithm.observe(learner, buffer, step, torch.zeros(3, dtype=torch.bool), None, hyper)
        shape, values = agent.noise(8).loss, []
        for i in range(3):
            bits, u = random.bits(random.key(i), (8,)), random.uniform(random.key(i), shape) if shape else ()
            learner, buffer, diagnostics = algorithm.update(learner, buffer, algorithm.select(bits), u, hyper)
            values.append(float(diagnostics.loss))
        asserts.assert_finite((learner, diagnostics))
        assert all(not torch.equal(x, params[name]) for name, x in learner.params.items())
        losses[switches] = tuple(values)
    assert len(set(losses.values())) == 64


def test_composed_rainbow_trains_and_updates_priorities():
    """Train Rainbow, and check that the priorities of sampled rows are updated."""
    one = rainbow()
    hyper, keys = examples.seeds(2)
    state = programs.advance(one, training.init(one, hyper, keys), 60)
    assert (state.metrics.failed == -1).all()
    asserts.assert_finite(state.learner)
    leaves = dict(zip(tree.paths(state.buffer), tree.leaves(state.buffer), strict=True))
    (mass,) = (leaf for path, leaf in leaves.items() if path.endswith(".mass"))
    assert len(mass[0].unique()) > 10


def test_noise_explores_without_epsilon():
    """Check that greedy actions at one observation differ from step to step."""
    one = examples.program(agent=dqn.agent(networks.noisy_mlp(4, (8,), 2)))
    hyper, keys = training.hyper(1, epsilon_start=0.0, epsilon_end=0.0), random.key([0])
    state, noise = training.init(one, hyper, keys), training.noise(one, keys, 0, 40)
    state = state._replace(obs=torch.zeros_like(state.obs))
    seen = set()
    for i in range(40):
        given = tree.index(training.interactions(tree.index(noise, i)), 0)
        seen |= set(vmap(lambda s, n: training.act(one, s, n))(state, given).flatten().tolist())
    assert seen == {0, 1}


def greedy_returns(one, state, episodes=20):
    """Return the mean returns [S] of greedy episodes without noise."""
    u = random.uniform(random.fold_in(state.key, 9), (episodes, one.env.spec.noise))
    env_state, step = vmap(one.env.reset)(u)
    total, running = torch.zeros(u.shape[:2]), torch.ones(u.shape[:2], dtype=torch.bool)
    for _ in range(one.env.spec.time_limit):
        q = vmap(one.network.apply)(state.learner.params, step.obs)
        env_state, step = vmap(one.env.step)(env_state, q.argmax(-1), u)
        total, running = total + running * step.reward, running & ~(step.terminated | step.truncated)
    return total.mean(-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "epsilon"),
    [
        (lambda: c51.agent(networks.mlp(4, (64, 64), 2 * 51), (0.0, 100.0, 51)), 1.0),
        (lambda: dqn.agent(networks.noisy_mlp(4, (64, 64), 2)), 0.0),
        (lambda: c51.agent(networks.noisy_mlp(4, (64, 64), 2 * 51), (0.0, 100.0, 51), double=True), 0.0),
        (lambda: munchausen.agent(networks.mlp(4, (64, 64), 2), loss=losses.squared), 1.0),
        (lambda: qr_dqn.agent(networks.mlp(4, (64, 64), 2 * 51), 51), 1.0),
        (lambda: iqn.agent(networks.quantile(trunks.mlp(4, (64, 64)), heads.linear(2)), False, 8, 8, 8), 1.0),
    ],
    ids=["c51", "noisy", "double noisy c51", "munchausen", "qr", "iqn"],
)
def test_learns_cartpole(agent, epsilon):
    """Train two seeds for 20,000 steps with the settings of the default run; random actions get a return of 22."""
    one = examples.program(
        cartpole.make(), agent=agent(), num_envs=10, batch_size=128, capacity=10_000, learning_starts=1_000,
        target_period=20,
    )  # fmt: skip
    hyper = training.hyper(2, epsilon_start=epsilon, epsilon_end=0.05 * epsilon, epsilon_steps=10_000)
    edge.prepare_cpu()
    state = training.init(one, hyper, random.key([0, 1]))
    *_, report = training.run(one, state, 20_000, edge.compiled(one), report_every=5_000)
    returns = greedy_returns(one, report.state)
    assert returns.min() > 100, (returns, report.returns)
