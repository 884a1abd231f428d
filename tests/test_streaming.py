"""Stream Q: the algorithm compared with a loop over steps, networks, running statistics, laws, CartPole."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plants import rejects
from torch import Tensor, nn
from torch.func import grad, vmap

from fdqn import compile as edge
from fdqn import envs, networks, optim, random, training, tree
from fdqn.agents import dqn
from fdqn.compile import graph
from fdqn.envs import cartpole
from fdqn.ops import masking, running, td
from fdqn.testing import agents, asserts, examples, laws, programs
from fdqn.training import host, off_policy, streaming
from fdqn.types import Transition

pytestmark = pytest.mark.usefixtures("unchecked_iterations")

ACTIONS = 3
NETWORK = networks.stream_mlp(ACTIONS + 2, (6, 5), ACTIONS)
CONFIG = training.Config(1, 1, 1, 1, 1, learning_starts=0, target_period=0)
HYPER = tree.cast(tree.index(training.hyper(1, gamma=0.9, learning_rate=1.0), 0), torch.float64)


def algorithm(network=NETWORK, **named):
    return streaming.algorithm(CONFIG, network, **named)


class Steps(NamedTuple):
    """Steps [T] of one environment, with the legal actions at `batch.obs`."""

    batch: Transition
    ended: Tensor
    valid: Tensor
    legal: Tensor


def steps(seed=0, count=300):
    """Make episodes that terminate or are truncated. An observation starts with its mask of legal actions."""
    key = random.key(seed)
    uniform = random.uniform(random.fold_in(key, 0), (count, 4))
    ended, terminated = uniform[:, 0] < 0.15, uniform[:, 0] < 0.07
    legal = random.uniform(random.fold_in(key, 1), (2, count + 1, ACTIONS)) < 0.7
    legal[..., 0] |= ~legal.any(-1)
    felt = random.normal(random.fold_in(key, 2), (2, count + 1, 2), torch.float64) * 3 + 1
    first, last = torch.cat([legal.double(), felt], -1)
    following = torch.where(ended.unsqueeze(-1), last[1:], first[1:])
    action = (legal[0, :-1] * uniform[:, 1:]).argmax(-1)
    batch = Transition(
        obs=first[:-1],
        action=action,
        reward=random.normal(random.fold_in(key, 3), (count,), torch.float64) + 0.5,
        discount=torch.where(terminated, 0.0, 1.0).double(),
        next_obs=following,
        next_legal=following[:, :ACTIONS] > 0,
    )
    return Steps(batch, ended, torch.ones_like(ended), legal[0, :-1])


def params(network=NETWORK):
    """Return random parameters, because sparse initialization leaves most of a small network at 0."""
    start = tree.cast(network.init(random.key(1)), torch.float64)
    return {
        name: x if name.startswith("norm") else random.normal(random.fold_in(random.key(2), i), x.shape, x.dtype)
        for i, (name, x) in enumerate(start.items())
    }


def learned(given, one=None, start=None):
    """Return the learners after each of the steps."""
    one = one or algorithm()
    learner, newest = one.init(start or params(), HYPER, tree.index(given.batch, 0))
    found = []
    for i in range(len(given.ended)):
        batch, ended, valid = tree.map(lambda x, i=i: x[i : i + 1], given[:3])
        newest = one.observe(learner, newest, batch, ended, valid, HYPER)
        learner, newest, _ = one.update(learner, newest, torch.zeros(1, dtype=torch.int64), (), HYPER)
        found.append(learner)
    return found


# The paper's algorithm in a loop over steps, with means and variances computed from lists


def spread(seen):
    return np.var(seen, axis=0, ddof=1) if len(seen) > 1 else np.ones_like(seen[0])


def normalized(obs, seen):
    if not seen:
        return obs
    return (obs - torch.from_numpy(np.mean(seen, axis=0))) / torch.from_numpy(np.sqrt(spread(seen) + 1e-8))


def q_of(weights, x):
    for layer in ("0", "3"):
        x = F.linear(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
        x = F.leaky_relu(F.layer_norm(x, x.size()), 0.01)
    return F.linear(x, weights["6.weight"], weights["6.bias"])


def loop_over_steps(given, lambda_=0.8, kappa=2.0, plant=None):
    """Return the weights after each step of the loop. `plant` names a planted bug."""
    gamma, rate = float(HYPER.gamma), float(HYPER.learning_rate)
    weights = {name: x.clone() for name, x in params().items() if not name.startswith("norm")}
    traces = {name: torch.zeros_like(x) for name, x in weights.items()}
    seen, totals, total, starts, found = [], [], 0.0, True, []
    for obs, action, reward, discount, next_obs, next_legal, ended, legal in zip(
        *given.batch[:6], given.ended, given.legal, strict=True
    ):
        x = normalized(obs, seen)
        seen += [obs.numpy()] if starts else []
        if plant != "statistics without the last observation" or not ended:
            seen += [next_obs.numpy()]
        y = normalized(next_obs, seen)
        total = reward.item() + (0.0 if ended else gamma * total)
        totals += [total]
        scaled = reward / np.sqrt(spread(totals) + 1e-8)

        for w in weights.values():
            w.requires_grad_().grad = None
        q = q_of(weights, x)
        q[action].backward()
        with torch.no_grad():
            best = max(q[a].item() for a in range(ACTIONS) if legal[a])
            cut = starts or (q[action].item() < best and plant != "kept at an action that is not greedy")
            future = 0.0 if plant == "truncation as termination" and ended else discount
            q_t = q_of(weights, y)
            target = scaled + gamma * future * max(q_t[a] for a in range(ACTIONS) if next_legal[a])
            delta = target - q[action]
            old = traces
            traces = {n: (0.0 if cut else gamma * lambda_) * z + weights[n].grad for n, z in traces.items()}
            measured = traces
            if plant == "bound of the trace that has not decayed":
                measured = {n: (0.0 if cut else 1.0) * z + weights[n].grad for n, z in old.items()}
            size = sum(z.abs().sum() for z in measured.values())
            bound = rate * kappa * max(abs(delta), 1.0) * size
            step = rate / bound if bound > 1 else rate
            weights = {n: w.detach() + step * delta * traces[n] for n, w in weights.items()}
        if plant == "reset after the update with an action that is not greedy" and q[action].item() < best:
            traces = {n: torch.zeros_like(z) for n, z in traces.items()}
        starts = bool(ended)
        if plant == "kept at a truncation" and ended and discount == 1:
            starts = False
        found.append(weights)
    return found


@pytest.fixture(scope="module")
def ours():
    return learned(steps())


def compare(expected, learners, atol=1e-10):
    for i, (weights, learner) in enumerate(zip(expected, learners, strict=True)):
        got = {name: learner.params[name] for name in weights}
        asserts.assert_trees_close(weights, got, atol, atol, f"step {i}: ")


def test_every_step_equals_that_of_the_loop(ours):
    """Compare 300 steps with terminations, truncations, masks, and greedy and other actions."""
    given = steps()
    assert given.ended.any()
    assert (given.ended & (given.batch.discount == 1)).any()
    compare(loop_over_steps(given), ours)
    seen = torch.cat([given.batch.next_obs, given.batch.obs[torch.cat([torch.tensor([True]), given.ended[:-1]])]])
    statistics = [ours[-1].params[name] for name in ("norm.mean", "norm.var", "norm.count")]
    asserts.assert_trees_close([seen.mean(0), seen.var(0), torch.tensor(len(seen)).double()], statistics, 1e-10, 1e-10)


@pytest.mark.parametrize(("lambda_", "kappa"), [(0.0, 2.0), (1.0, 3.0)])
def test_other_lambdas_and_bounds(lambda_, kappa):
    given = steps(1, 60)
    compare(loop_over_steps(given, lambda_, kappa), learned(given, algorithm(lambda_=lambda_, kappa=kappa)))


@pytest.mark.parametrize(
    "plant",
    [
        "kept at an action that is not greedy",
        "reset after the update with an action that is not greedy",
        "kept at a truncation",
        "truncation as termination",
        "bound of the trace that has not decayed",
        "statistics without the last observation",
    ],
)
def test_the_comparison_detects_planted_bugs(ours, plant):
    with rejects("expected"):
        compare(loop_over_steps(steps(), plant=plant), ours)


def test_lambda_0_is_one_step_q_learning_with_bounded_steps():
    """Use a network without statistics, so that only rewards are scaled."""
    network, given = networks.mlp(ACTIONS + 2, (4,), ACTIONS), steps(2, 40)
    one = algorithm(network, lambda_=0.0)
    learners, totals, total = learned(given, one, params(network)), [], 0.0
    before = params(network)
    for i, learner in enumerate(learners):
        row = tree.index(given.batch, i)
        total = float(row.reward) + (0.0 if given.ended[i] else float(HYPER.gamma) * total)
        totals.append(total)
        reward = row.reward / np.sqrt(spread(totals) + 1e-8)
        q, q_t = network.apply(before, row.obs), network.apply(before, row.next_obs)
        delta = td.q_learning(q, row.action, reward, HYPER.gamma * row.discount, q_t, row.next_legal)
        slope = grad(lambda w, row=row: masking.pick(network.apply(w, row.obs), row.action))(before)
        before = optim.apply_updates(before, optim.obgd(slope, delta, HYPER.learning_rate, 2.0))
        asserts.assert_trees_close(before, learner.params, 1e-12, 1e-12)


def test_illegal_values_change_nothing():
    """Poison them in the values that decide if an action is greedy, and in targets."""
    given, results = steps(3, 60), []
    for poison in (0.0, 1e30, -1e30, torch.inf, torch.nan):
        own = NETWORK._replace(
            apply=lambda params, obs, poison=poison: torch.where(
                obs[..., :ACTIONS] > 0, NETWORK.apply(params, obs), poison
            )
        )
        results.append(learned(given, algorithm(own))[-1])
    for other in results[1:]:
        asserts.assert_trees_equal(results[0], other)


def test_a_step_that_was_not_taken_changes_nothing():
    """Check that nothing is learned, and the trace is reset, if a host environment only started an episode."""
    one, given = algorithm(), steps(4, 30)
    learner, newest = one.init(params(), HYPER, tree.index(given.batch, 0))
    bits = torch.zeros(1, dtype=torch.int64)
    after, newest, diagnostics = one.update(learner, newest, bits, (), HYPER)
    asserts.assert_trees_equal(learner._replace(updates=after.updates), after)
    asserts.assert_finite(diagnostics)
    for i in range(20):
        batch, ended, valid = tree.map(lambda x, i=i: x[i : i + 1], given[:3])
        newest = one.observe(after, newest, batch, ended, valid & (i != 10), HYPER)
        before, (after, newest, _) = after, one.update(after, newest, bits, (), HYPER)
        if i == 10:
            asserts.assert_trees_equal(before._replace(updates=after.updates), after)
        if i in (0, 11):
            slope = grad(lambda w, batch=batch: NETWORK.apply(w, batch.obs[0])[batch.action[0]])(before.params)
            asserts.assert_trees_close(slope, after.opt_state, 1e-12, 1e-12)
    assert int(newest.scale.steps) == 19
    assert int(one.bounds(newest, 19)["scale.steps"][1]) == 19


def test_cut_starts_an_episode():
    one, given = algorithm(), steps(5, 30)
    learner, newest = one.init(params(), HYPER, tree.index(given.batch, 0))
    batch, _, valid = tree.map(lambda x: x[:1], given[:3])
    for _ in range(2):
        newest = one.observe(learner, newest, batch, ~valid, valid, HYPER)
        learner, newest, _ = one.update(learner, newest, torch.zeros(1, dtype=torch.int64), (), HYPER)
    before = learner
    newest = one.observe(learner, one.cut(newest), batch, ~valid, valid, HYPER)
    after, _, _ = one.update(learner, newest, torch.zeros(1, dtype=torch.int64), (), HYPER)
    slope = grad(lambda w: NETWORK.apply(w, batch.obs[0])[batch.action[0]])(before.params)
    asserts.assert_trees_close(slope, after.opt_state, 1e-12, 1e-12)


# Equations


def test_obgd_equals_the_rule_of_the_authors_code():
    trace = {"a": torch.tensor([[1.0, -2.0]]), "b": torch.tensor([0.5])}
    for delta, rate, kappa in [(0.3, 1.0, 2.0), (-5.0, 1.0, 2.0), (0.3, 0.01, 2.0), (-0.5, 0.1, 1.5)]:
        product = max(abs(delta), 1.0) * 3.5 * rate * kappa
        step = rate / product if product > 1 else rate
        updates = optim.obgd(trace, torch.tensor(delta), rate, kappa)
        asserts.assert_trees_close({name: step * delta * z for name, z in trace.items()}, updates, 1e-7)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_welford_equals_numpy(shape):
    x = random.normal(random.key(0), (50, *shape), torch.float64) * 5 - 2
    mean, var, count = torch.zeros_like(x[0]), torch.ones_like(x[0]), torch.zeros((), dtype=torch.float64)
    for i, each in enumerate(x):
        mean, var, count = running.welford(mean, var, count, each)
        asserts.assert_trees_close([x[: i + 1].mean(0), torch.from_numpy(np.array(spread(x[: i + 1].numpy())))],
                                   [mean, var], 1e-12, 1e-12)  # fmt: skip
    assert int(count) == 50


# Networks


class Module(nn.Module):
    """Networks of the authors as a module."""

    def __init__(self, network, params):
        super().__init__()
        mlp = params["0.weight"].ndim == 2
        shape = [n for name, x in params.items() if name.endswith("bias") for n in x.shape]
        first = (
            nn.Linear(params["0.weight"].shape[1], shape[0]) if mlp else nn.Conv2d(params["0.weight"].shape[1], 16, 3)
        )
        flat = [] if mlp else [nn.Flatten()]
        inputs = params["3.weight" if mlp else "4.weight"].shape[1]
        sizes = (shape[0],) if mlp else (16, 4, 3)
        self.layers = nn.Sequential(
            first, nn.LayerNorm(sizes, elementwise_affine=False), nn.LeakyReLU(), *flat,
            nn.Linear(inputs, shape[1]), nn.LayerNorm(shape[1], elementwise_affine=False), nn.LeakyReLU(),
            nn.Linear(shape[1], shape[2]),
        )  # fmt: skip
        self.layers.load_state_dict({name: x for name, x in params.items() if not name.startswith("norm")})
        self.mean, self.var = params["norm.mean"], params["norm.var"]

    def forward(self, obs):
        return self.layers((obs - self.mean) / (self.var + 1e-8).sqrt())


NETWORKS = [(networks.stream_mlp(5, (7, 6), 3), (5,)), (networks.stream_minatar((2, 6, 5), 3), (2, 6, 5))]


@pytest.mark.parametrize(("network", "shape"), NETWORKS, ids=["mlp", "minatar"])
def test_networks_equal_modules(network, shape):
    own = {name: x.float() for name, x in params(network).items()}
    own |= {"norm.mean": random.normal(random.key(5), shape), "norm.var": random.uniform(random.key(6), shape) + 0.1}
    obs = random.normal(random.key(7), (4, *shape))
    expected = Module(network, own)(obs).detach()
    asserts.assert_trees_close(expected, network.apply(own, obs), 1e-5, 1e-5)
    asserts.assert_trees_close(expected[0], network.apply(own, obs[0]), 1e-5, 1e-5)
    module = networks.to_module(network, own)
    asserts.assert_trees_close(expected, module(obs).detach(), 1e-5, 1e-5)
    asserts.assert_trees_equal(own, networks.load(network, module.state_dict()))
    whole = torch.arange(obs.numel()).reshape(obs.shape).to(torch.uint8)
    asserts.assert_trees_close(network.apply(own, whole.float() / 255), network.apply(own, whole), 1e-6)


@pytest.mark.parametrize(("network", "shape"), NETWORKS, ids=["mlp", "minatar"])
def test_nine_of_ten_weights_start_at_0(network, shape):
    several = network.init(random.key([0, 1]))
    asserts.assert_trees_equal(tree.index(several, 1), network.init(random.key(1)))
    for name, x in several.items():
        if name.endswith("bias"):
            assert not x.any(), name
        if name.endswith("weight"):
            kept = (x.flatten(2) != 0).sum(-1)
            inputs = x[0, 0].numel()
            assert (kept == max(1, inputs - int(np.ceil(0.9 * inputs)))).all(), name
    assert several["norm.mean"].shape == (2, *shape)
    assert not several["norm.count"].any()


def test_statistics_have_no_gradient():
    """Check that gradient steps leave them unchanged, and that `update_statistics` changes nothing else."""
    own = params()
    slope = grad(lambda w: NETWORK.apply(w, torch.ones(5).double()).sum())(own)
    assert not any(slope[name].any() for name in slope if name.startswith("norm"))
    agent = dqn.agent(NETWORK)
    learner = off_policy.init(optim.adam(0.1), own)
    batch = tree.index(steps().batch, slice(4))
    after, *_ = off_policy.update(agent, optim.adam(0.1), learner, examples.sample(batch), HYPER)
    kept = {name: x for name, x in own.items() if name.startswith("norm")}
    asserts.assert_trees_equal(kept, {name: after.params[name] for name in kept})
    seen = laws.pure(networks.update_statistics, own, batch.obs[0])
    asserts.assert_trees_equal({**own, **{name: seen[name] for name in kept}}, seen)
    asserts.assert_trees_equal(batch.obs[0], seen["norm.mean"])
    plain = networks.mlp(5, (), 3).init(random.key(0))
    assert networks.update_statistics(plain, batch.obs[0]) is plain


# Programs


def small(**named):
    env = cartpole.make(time_limit=7)
    return training.Program(env, algorithm(networks.stream_mlp(4, (5,), 2), **named))


def test_the_agent_satisfies_the_laws():
    agents.agent(algorithm(networks.stream_mlp(2, (6,), 3)).agent, (2,), 3)


def test_laws_of_a_program():
    """Check independence of seeds, chunks of noise, donation and exact resume."""
    one = small()
    hyper, keys = examples.seeds(3)
    programs.seeds(partial(programs.trained, one, cycles=6), hyper, keys, distinct=lambda state: state.buffer.row.obs)
    programs.chunks(one, keys, first=1, cycles=3)
    state = training.init(one, hyper, keys)
    programs.resumed(lambda s, cycles: programs.advance(one, s, cycles), state, 5, 3)
    programs.donated(training.vmapped(one).cycle, tree.clone(state), training.noise(one, keys, 0, 1))


def test_compiled_steps_are_the_same():
    """Compile the steps of two seeds as one graph."""
    one, given = algorithm(), [steps(seed, 3) for seed in range(2)]
    states = []
    for own in given:
        learner, newest = one.init(params(), HYPER, tree.index(own.batch, 0))
        batch, ended, valid = tree.map(lambda x: x[:1], own[:3])
        states.append((learner, one.observe(learner, newest, batch, ended, valid, HYPER), batch, ended, valid))
    learner, newest, *rest = tree.stack(states)
    hyper = tree.stack([HYPER] * 2)

    def step(learner, newest, batch, ended, valid, hyper):
        newest = one.observe(learner, newest, batch, ended, valid, hyper)
        return one.update(learner, newest, ended, (), hyper)

    laws.compiled(vmap(step), learner, newest, *rest, hyper, again=[], atol=1e-12, rtol=1e-12)


def test_a_donated_iteration_copies_no_leaf_first():
    """Check that the graph has no operator for such copies, because it runs in Python and the engine aot cannot."""
    one = small()
    hyper, keys = examples.seeds(2)
    state, noise = training.init(one, hyper, keys), tree.index(training.noise(one, keys, 0, 1), 0)
    traced, _ = graph.trace(edge.donate(vmap(partial(training.cycle, one))), (state, noise))
    assert not [node for node in traced.graph.nodes if "snapshot" in str(node.target)]


def test_an_environment_on_the_host_is_learned_from_one_iteration_later():
    one = training.Program(envs.find("gym:CartPole-v1"), algorithm(networks.stream_mlp(4, (5,), 2)))
    hyper, keys = examples.seeds(2)
    hyper = hyper._replace(learning_rate=torch.ones(2))
    vector_env = one.env.open(2, 1)
    functions = host.functions(one, vector_env, host.vmapped(one))
    start = host.start(one, vector_env, training.init(one, hyper, keys))
    state = functions.cycle(start, training.noise(one, keys, 0, 1))
    asserts.assert_trees_equal(start.learner.params, state.learner.params)
    newest, learner = state.buffer, state.learner
    expected = vmap(lambda *x: one.algorithm.update(*x[:2], None, (), x[2])[0])(learner, newest, hyper)
    state = functions.cycle(state, training.noise(one, keys, 1, 1))
    asserts.assert_trees_close(expected, state.learner, 1e-6, 1e-6)
    state = functions.cycle(state, training.noise(one, keys, 2, 60))
    assert (state.learner.updates == 62).all()
    assert (state.metrics.failed < 0).all()
    assert (state.buffer.scale.steps == 62).all()
    vector_env.close()


@pytest.mark.slow
def test_solves_cartpole():
    """Train 16 seeds for 100,000 steps with the paper's settings; epsilon reaches 0.01 after 20,000."""
    env = cartpole.make()
    one = training.Program(env, algorithm(networks.stream_mlp(4, (32, 32), 2)))
    hyper = training.hyper(16, learning_rate=1.0, epsilon_end=0.01, epsilon_steps=20_000)
    edge.prepare_cpu()
    state = training.init(one, hyper, random.key(range(100, 116)))
    *_, report = training.run(one, state, 100_000, edge.compiled(one), report_every=100_000)
    found = report.last_returns.mean(1)
    assert found.mean() >= 470, found
    assert found.min() >= 350, found
