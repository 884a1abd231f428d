"""Use `fdqn.testing` as a user does: laws for a custom environment, loss, optimizer and network, one line per law.

Each component also has broken versions, with the messages of the laws that reject them.
"""

import subprocess
import sys
import textwrap
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from plants import rejects
from torch import Tensor

import fdqn.testing
from fdqn import random, tree
from fdqn.envs import episode
from fdqn.testing import asserts, examples, laws, programs, strategies
from fdqn.testing.variants import variants
from fdqn.types import Env, Network, Optimizer

# An environment: a walk along five cells that pays 1 at the right end. Moving left is illegal at the left end.


class Walk(NamedTuple):
    place: Tensor
    time: Tensor


def walk(time_limit=12, reset=None, move=None, change=lambda state, step: (state, step)):
    spec = episode.spec((5,), torch.float32, actions=2, noise=1, time_limit=time_limit)
    reset, move = reset or walk_reset, move or walk_move

    def step(state, action, u):
        state = move(state, action)
        terminated = state.place == 4
        result = episode.advance(state, *walk_observation(state), terminated.float(), terminated, reset(u), time_limit)
        return change(*result)

    return Env(reset, step, spec)


def walk_reset(u):
    place = (u[..., 0] * 4).long()
    state = Walk(place, torch.zeros_like(place))
    return episode.begin(state, *walk_observation(state))


def walk_move(state, action):
    return Walk((state.place + 2 * action - 1).clamp(0, 4), state.time + 1)


def walk_observation(state):
    here = state.place[..., None]
    return (here == torch.arange(5)).float(), (here > 0) | (torch.arange(2) == 1)


def test_laws_of_an_environment():
    laws.env(walk())
    laws.time_limit(walk)


def drawn_reset(u):
    return walk_reset(torch.rand_like(u))


def move_in_place(state, action):
    return Walk(state.place.add_(2 * action - 1).clamp_(0, 4), state.time + 1)


def count_in_floats(state, action):
    return Walk(walk_move(state, action).place, state.time + 1.0)


def ends_at_the_limit(state, step):
    return state, step._replace(terminated=step.terminated | step.truncated)


def shows_the_new_episode(state, step):
    return state, step._replace(next_obs=step.obs)


def ignores_the_limit(state, step):
    return state, step._replace(truncated=torch.zeros_like(step.truncated))


@pytest.mark.parametrize(
    ("law", "broken", "match"),
    [
        (laws.env, {"reset": drawn_reset}, "generator of torch: expected it unchanged|second call"),
        (laws.env, {"move": move_in_place}, r"inputs: \[0\].place\[\d\]: expected"),
        (
            laws.env,
            {"move": count_in_floats},
            r"shapes and dtypes: \[0\].time: expected torch.int64, got torch.float32",
        ),
        (laws.env, {"change": ignores_the_limit}, "truncated: expected true at the time limit, got false"),
        (laws.env, {"change": shows_the_new_episode}, "next_obs: expected the last observation of an episode"),
        (laws.time_limit, {"change": ends_at_the_limit}, "step 5 of 5, terminated: .* expected False, got True"),
    ],
)
def test_broken_environments_are_rejected(law, broken, match):
    make = partial(walk, **broken)
    with torch.random.fork_rng(devices=[]), rejects(match):
        law(make if law is laws.time_limit else make())


# A loss: the log-cosh of an expected SARSA error, with the mean over legal actions instead of the maximum.


def expected_loss(q_tm1, a_tm1, r_t, discount_t, q_t, legal_t):
    count = legal_t.sum(-1).clamp_min(1)
    target = r_t + discount_t * torch.where(legal_t, q_t, 0.0).sum(-1) / count
    delta = target.detach() - q_tm1.gather(-1, a_tm1.unsqueeze(-1)).squeeze(-1)
    return delta.abs() + torch.nn.functional.softplus(-2 * delta.abs()) - 0.6931471805599453


def batch():
    noise = random.normal(random.key(0), (4, 3))
    legal = torch.tensor([[True, True, False], [False, True, True], [True, True, True], [False, False, False]])
    return noise, torch.tensor([0, 1, 2, 0]), noise[:, 0] - 3, noise[:, 1].sigmoid(), noise.flip(0), legal


def test_laws_of_a_loss():
    laws.pure(expected_loss, *batch())
    laws.ranked(expected_loss, *batch())
    laws.compiled(expected_loss, *batch())
    laws.semi_gradient(expected_loss, *batch(), held=(2, 3, 4))
    laws.gradients(lambda q, *rest: expected_loss(q, *rest).sum(), *batch())
    laws.masked(lambda q, legal: expected_loss(*batch()[:4], q, legal), *batch()[4:])


@variants()
@given(strategies.q_batches(at_least_one=False))
def test_a_loss_is_at_least_0(variant, q_and_legal):
    q, legal = q_and_legal
    loss = variant(expected_loss)(q, q.argmax(-1), q[:, 0], torch.full_like(q[:, 0], 0.9), q.flip(0), legal)
    asserts.assert_shapes("q[B A] loss[B]", q, loss)
    asserts.assert_finite(loss)
    assert (loss > -1e-6).all()


def undetached(q_tm1, a_tm1, r_t, discount_t, q_t, legal_t):
    return expected_loss(q_tm1, a_tm1, r_t, discount_t, q_t, legal_t) + q_t[..., 0]


def times_the_mask(q_tm1, a_tm1, r_t, discount_t, q_t, legal_t):
    masked = (q_t * legal_t).sum(-1, keepdim=True) / legal_t.sum(-1, keepdim=True).clamp_min(1)
    return expected_loss(q_tm1, a_tm1, r_t, discount_t, masked, legal_t[..., :1] | True)


def over_the_batch(q_tm1, a_tm1, r_t, discount_t, q_t, legal_t):
    return expected_loss(q_tm1, a_tm1, r_t - r_t.mean(), discount_t, q_t, legal_t)


def reads_a_value(*args):
    loss = expected_loss(*args)
    if loss.max() > 10:
        return loss.clamp(max=10)
    return loss


def test_broken_losses_are_rejected():
    with rejects("argument 4: expected gradient 0 on the target's side, got 1"):
        laws.semi_gradient(undetached, *batch(), held=(2, 3, 4))
    with rejects(r"illegal values inf: \[\d\]: expected .*, got nan"):
        laws.masked(lambda q, legal: times_the_mask(*batch()[:4], q, legal), *batch()[4:])
    with rejects("1 of 1 leading axes"):
        laws.ranked(over_the_batch, *batch())
    with rejects("got a break at .*test_kit.py:.* in reads_a_value, `if loss.max.* > 10:`"):
        laws.compiled(reads_a_value, *batch())


# An optimizer: steps along the running mean of gradients.


def heavy_ball(rate, momentum=0.9, sign=-1.0, start=torch.zeros_like):
    def init(params):
        return tree.map(start, params)

    def update(grads, velocity, params):
        velocity = tree.map(lambda v, g: momentum * v + g, velocity, grads)
        return tree.map(lambda v: sign * rate * v, velocity), velocity

    return Optimizer(init, update)


REFERENCE = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def test_laws_of_an_optimizer():
    laws.optimizer(heavy_ball(0.1), REFERENCE)
    laws.chained(heavy_ball(0.1), heavy_ball(1.0, sign=1.0), heavy_ball(0.5))
    laws.pure(heavy_ball(0.1).update, *[examples.params()] * 3)


def test_broken_optimizers_are_rejected():
    with rejects(r"params after step 1: \['0.weight'\]\[0, 0\]: expected .*, got .*"):
        laws.optimizer(heavy_ball(0.1, sign=1.0), REFERENCE)  # gradient ascent
    with rejects("params after step 2"):
        laws.optimizer(heavy_ball(0.1, momentum=0.99), REFERENCE)
    with rejects("updates of float32 params.*expected torch.float32, got torch.float64"):
        laws.optimizer(heavy_ball(0.1, start=lambda x: 0 * x.double()), REFERENCE)


# A network: one layer with a bias shared by all actions.


def init_linear(key):
    weight = random.normal(key, (2, 5))
    return {"weight": weight, "bias": torch.zeros_like(weight[..., 0, 0])}


def apply_linear(params, obs):
    return obs @ params["weight"].mT + params["bias"]


def test_laws_of_a_network():
    obs = random.normal(random.key(1), (3, 5))
    laws.vmapped(init_linear, random.key([0, 1, 2]))
    laws.ranked(partial(apply_linear, tree.cast(init_linear(random.key(0)), torch.float64)), obs)
    laws.gradients(lambda params, obs: (apply_linear(params, obs) ** 2).sum(), init_linear(random.key(0)), obs)


# All components as one program.


def own_program(network):
    return examples.program(walk(), network=network, optimizer=lambda hyper: heavy_ball(hyper.learning_rate))


def test_laws_of_a_program():
    program, (hyper, keys) = own_program(Network(init_linear, apply_linear)), examples.seeds(3)
    trained = partial(programs.trained, program, cycles=8, dtype=torch.float32)
    programs.seeds(trained, hyper, keys, lambda state: state.learner.params["weight"], atol=1e-5, rtol=1e-5)
    programs.metrics(program, hyper, keys)
    programs.resumed(partial(programs.advance, program), trained(hyper, keys), 4, 3)


def test_equal_initialization_of_seeds_is_rejected():
    network = Network(lambda key: init_linear(torch.zeros_like(key)), apply_linear)
    started = partial(programs.trained, own_program(network), cycles=1, dtype=torch.float32)
    with rejects(r"seed 1\['weight'\]: expected a change with its key, got none"):
        programs.seeds(started, *examples.seeds(3), lambda state: state.learner.params)


# The example in the docstring of the package.


def test_the_documented_example_passes(tmp_path):
    example = textwrap.dedent(fdqn.testing.__doc__.split("\n\n", 3)[3])
    assert len([line for line in example.splitlines() if line and "import" not in line]) <= 10
    (tmp_path / "test_mine.py").write_text(example)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "--strict-markers", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "test_mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
