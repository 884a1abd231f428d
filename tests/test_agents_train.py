"""Agents in training: C51, noisy nets and PQN through the loop, on their own and together."""

import pytest
import torch
from torch.func import vmap

from fdqn import compile as edge
from fdqn import networks, optim, random, training, tree
from fdqn.agents import c51, dqn
from fdqn.envs import cartpole
from fdqn.replay import n_step, prioritized
from fdqn.testing import asserts, examples, programs
from fdqn.training import off_policy, streams

ATOMS = (0.0, 20.0, 11)
AGENTS = {
    "c51": lambda: c51.agent(networks.mlp(4, (8,), 2 * 11), ATOMS),
    "noisy": lambda: dqn.agent(networks.noisy_mlp(4, (8,), 2)),
    "double noisy c51": lambda: c51.agent(networks.noisy_mlp(4, (8,), 2 * 11), ATOMS, double=True),
}
EACH = pytest.mark.parametrize("make", AGENTS.values(), ids=AGENTS)


@EACH
def test_a_few_hundred_steps_are_finite_and_seeds_are_independent(make):
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


def rainbow():
    """Double C51 with noisy nets, two-step returns and prioritized replay: everything but a dueling network."""
    config = training.Config(3, batch_size=8, capacity=40, learning_starts=12, target_period=4, n_step=2)
    buffer = n_step.wrap(prioritized.buffer(config.capacity), config.num_envs, config.n_step)
    learning = off_policy.algorithm(config, AGENTS["double noisy c51"](), buffer, lambda h: optim.adam(h.learning_rate))
    return training.Program(cartpole.make(time_limit=20), learning)


def test_rainbow_is_a_composition():
    """It trains, and the rows that were drawn have new priorities."""
    one = rainbow()
    hyper, keys = examples.seeds(2)
    state = programs.advance(one, training.init(one, hyper, keys), 60)
    assert (state.metrics.failed == -1).all()
    asserts.assert_finite(state.learner)
    leaves = dict(zip(tree.paths(state.buffer), tree.leaves(state.buffer), strict=True))
    (mass,) = (leaf for path, leaf in leaves.items() if path.endswith(".mass"))
    assert len(mass[0].unique()) > 10


def test_laws_of_a_program_with_noise():
    """Lanes, chunks and resumption of a run whose agent takes noise."""
    one = examples.program(agent=AGENTS["double noisy c51"]())
    hyper, keys = examples.seeds(2)
    programs.chunks(one, keys, cycles=3)
    programs.resumed(lambda s, n: programs.advance(one, s, n), training.init(one, hyper, keys), 6, 3)


def test_noise_explores_without_epsilon():
    """Greedy actions at one observation differ from step to step; those of a plain network do not."""
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
    """Mean returns [S] without noise."""
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
    ],
    ids=["c51", "noisy", "double noisy c51"],
)
def test_learns_cartpole(agent, epsilon):
    """Two seeds, 20 k steps, with the settings of the default run; random actions get 22."""
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
