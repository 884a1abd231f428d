"""Off-policy, on-policy and streaming algorithms obey the law of algorithms, which rejects planted bugs; every setting
that an algorithm reads has an effect."""

import functools

import pytest
import torch
from plants import rejects

from fdqn import networks, replay, training, tree
from fdqn.agents import dqn, pqn, qr_dqn
from fdqn.experiment import assemble
from fdqn.experiment.settings import make
from fdqn.testing import examples, programs
from fdqn.testing.algorithms import algorithm
from fdqn.training import off_policy, on_policy, streaming


def ranked():
    """Make a program of DQN with prioritized replay and two-step returns."""
    program = examples.program(n_step=2)
    buffer = replay.n_step.wrap(replay.prioritized.buffer(40, epsilon=1e-6), 3, 2)
    agent, config = program.algorithm.agent, program.config
    return program._replace(algorithm=off_policy.algorithm(config, agent, buffer, assemble.adam))


def rollouts():
    """Make a program of PQN: two epochs of two minibatches over four steps of three environments."""
    program = examples.program()
    sizes = {"num_envs": 3, "steps_per_cycle": 4, "updates_per_cycle": 4, "batch_size": 6, "capacity": 12}
    config = training.Config(**sizes, learning_starts=0, target_period=0)
    return program._replace(algorithm=on_policy.algorithm(config, pqn.agent(program.network), assemble.adam))


def stream():
    """Make a program of Stream Q with statistics of observations and rewards."""
    program = examples.program()
    config = training.Config(1, 1, 1, 1, 1, learning_starts=0, target_period=0)
    return program._replace(algorithm=streaming.algorithm(config, networks.stream_mlp(4, (5,), 2)))


@pytest.mark.parametrize("make", [examples.program, ranked, rollouts, stream])
def test_algorithms_are_functions_of_their_keys(make):
    algorithm(make(), *examples.seeds(2))


def planted(**changes):
    program = examples.program()
    return program._replace(algorithm=program.algorithm._replace(**changes))


def test_use_of_a_global_generator_is_detected():
    plant = planted(select=lambda bits: torch.randint(0, 2**32, bits.shape))
    with rejects("the same keys: "):
        algorithm(plant, *examples.seeds(2))


def test_hidden_state_is_detected():
    own, calls = examples.program().algorithm, []

    def update(learner, *given):
        calls.append(1)
        updated, *rest = own.update(learner, *given)
        return updated._replace(updates=updated.updates + len(calls)), *rest

    with rejects("the same keys: "):
        algorithm(planted(update=update), *examples.seeds(2))


def test_a_selection_that_depends_on_other_seeds_is_detected():
    with rejects("select, one seed after the other: "):
        algorithm(planted(select=lambda bits: bits.flip(0) if bits.ndim == 3 else bits), *examples.seeds(2))


def test_a_cut_that_changes_a_dtype_of_the_buffer_is_detected():
    with rejects("cut"):
        algorithm(planted(cut=lambda buffer: buffer._replace(added=buffer.added.float())), *examples.seeds(2))


def test_bounds_that_are_too_low_are_detected():
    with rejects("bounds: expected added from 0 to 3"):
        algorithm(planted(bounds=lambda buffer, steps: {"added": (buffer.added, 3)}), *examples.seeds(2))


def test_another_agent_obeys_the_law():
    program = examples.program(agent=dqn.agent(examples.program().network, double=False))
    algorithm(program, *examples.seeds(2), cycles=5)


# Settings of an algorithm have an effect

REPLAYED = {"num_envs": 4, "batch_size": 8, "learning_starts": 24, "capacity": 40, "target_period": 9, "n_step": 2}
SMALL = {
    "dqn": REPLAYED,
    "munchausen": REPLAYED,
    "c51": {"atoms": 7, "v_min": -5.0, "v_max": 5.0, **REPLAYED},
    "qr-dqn": {"quantiles": 4, **REPLAYED},
    "iqn": {"fractions": 3, "cosines": 4, **REPLAYED},
    "rainbow": {"atoms": 7, "v_min": -5.0, "v_max": 5.0, **REPLAYED},
    "pqn": {"num_envs": 4, "steps_per_cycle": 6, "updates_per_cycle": 6, "batch_size": 4},
    "stream-q": {},
}
SWITCHES = ("dueling", "noisy", "prioritized", "orthogonal")
NUMBERS = {"learning_rate": 0.2, "gamma": 0.5, "epsilon_start": 0.3}
REPLAY_NUMBERS = {"target_period": 1, "tau": 0.3, "n_step": 1, "max_grad_norm": 1e-3, "adam_eps": 0.1, **NUMBERS}
EFFECTS = {
    "dqn": {"double": False, "loss": "huber", **REPLAY_NUMBERS},
    "munchausen": {
        "munchausen_alpha": 0.1, "munchausen_tau": 0.5, "munchausen_clip": -0.01, "loss": "huber", **REPLAY_NUMBERS,
    },
    "c51": {"double": False, "v_min": -9.0, "v_max": 9.0, "atoms": 5, **REPLAY_NUMBERS},
    "qr-dqn": {"double": False, "kappa": 0.1, "quantiles": 3, **REPLAY_NUMBERS},
    "iqn": {"double": False, "kappa": 0.1, "fractions": 2, "cosines": 3, **REPLAY_NUMBERS},
    "rainbow": {
        "double": False, "v_min": -9.0, "v_max": 9.0, "priority_alpha": 0.1, "priority_beta": 1.0, "sigma_zero": 0.1,
        **REPLAY_NUMBERS,
    },
    "pqn": {"q_lambda": 0.1, "loss": "huber", "network": "mlp", "max_grad_norm": 1e-3, "adam_eps": 0.1, **NUMBERS},
    "stream-q": {"q_lambda": 0.1, "stream_kappa": 9.0, **NUMBERS},
}  # fmt: skip
"""Changed values of settings, by algorithm."""


@functools.cache
def learned(kind, name="", value=None):
    """Return names and values of the parameters after a few updates, with another value of one setting."""
    given = {
        "algorithm": kind,
        "env": "acrobot",
        "seeds": 1,
        "steps": 96,
        "hidden": (6,),
        "learning_rate": 0.1,
        "compile": False,
    }
    given |= {**SMALL[kind], **({name: value} if name else {})}
    if name == "tau":
        given.pop("target_period")
    settings = make(given)
    program = assemble.program(settings)
    state = training.init(program, assemble.hyper(settings), assemble.keys(settings))
    state = programs.advance(program, state, settings.steps // program.config.env_steps)
    assert int(state.learner.updates) > 5
    assert int(state.metrics.failed) < 0
    return tuple(state.learner.params), tree.leaves(state.learner.params)


def changes():
    """Yield algorithms with a setting that they read and another value of it."""
    for kind, others in EFFECTS.items():
        usual = make({"algorithm": kind, **SMALL[kind]})
        read = [name for name in SWITCHES if name in ("dueling", "orthogonal") or kind != "pqn"]
        switches = {name: not getattr(usual, name) for name in read if kind != "stream-q"}
        yield from ((kind, name, value) for name, value in {**switches, **others}.items())


def assert_effect(kind, name, before, after):
    same = before[0] == after[0] and all(map(torch.equal, before[1], after[1]))
    assert not same, f"{name} of {kind} changes nothing"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "value"), list(changes()))
def test_a_setting_that_an_algorithm_reads_has_an_effect(kind, name, value):
    assert_effect(kind, name, learned(kind), learned(kind, name, value))


@pytest.mark.slow
def test_an_ignored_setting_is_detected(monkeypatch):
    right = qr_dqn.agent
    monkeypatch.setattr(qr_dqn, "agent", lambda network, quantiles, double, kappa: right(network, quantiles, double))
    with rejects("kappa of qr-dqn changes nothing"):
        assert_effect("qr-dqn", "kappa", learned("qr-dqn"), learned.__wrapped__("qr-dqn", "kappa", 0.1))
