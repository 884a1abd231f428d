"""Sweeps: several settings in one program."""

import dataclasses

import pytest

from fdqn import training, tree
from fdqn.experiment import assemble, settings
from fdqn.experiment.settings import Sweep
from fdqn.testing import asserts, programs

SMALL = {"seeds": 2, "steps": 400, "hidden": (8,), "num_envs": 2, "batch_size": 8, "compile": False}
REPLAY = {**SMALL, "capacity": 64, "learning_starts": 16, "updates_per_cycle": 2, "target_period": 4}
SOFT = {name: value for name, value in REPLAY.items() if name != "target_period"}
PQN = {**SMALL, "steps_per_cycle": 8, "updates_per_cycle": 4, "algorithm": "pqn"}
STREAM = {"seeds": 2, "steps": 400, "hidden": (8,), "compile": False, "algorithm": "stream-q"}

# Settings of a small run, and the values of several settings of a sweep.
CASES = {
    "rate and gamma": (REPLAY, {"learning_rate": (1e-3, 5e-3), "gamma": (0.9, 0.99)}),
    "epsilon": (REPLAY, {"epsilon_start": (1.0, 0.5), "epsilon_end": (0.1, 0.2), "epsilon_fraction": (0.1, 0.9)}),
    "soft target": (SOFT, {"tau": (0.1, 0.5)}),
    "clipping": (REPLAY, {"max_grad_norm": (0.1, 10.0)}),
    "target period": (REPLAY, {"target_period": (2, 8)}),
    "schedule": (REPLAY, {"learning_rate_end": (0.0, 1e-3)}),
    "cosine": ({**REPLAY, "learning_rate_schedule": "cosine"}, {"learning_rate_end": (0.0, 1e-3)}),
    "exponential": (
        {**REPLAY, "learning_rate_schedule": "exponential"},
        {"learning_rate_decay": (0.9, 0.5), "learning_rate_decay_every": (10, 3)},
    ),
    "adam": (REPLAY, {"adam_beta1": (0.9, 0.5), "adam_beta2": (0.999, 0.9), "adam_eps": (1e-8, 1e-3)}),
    "radam": ({**REPLAY, "optimizer": "radam"}, {"adam_beta1": (0.9, 0.5), "adam_beta2": (0.999, 0.9)}),
    "nadam": ({**REPLAY, "optimizer": "nadam"}, {"adam_beta1": (0.9, 0.5), "adam_eps": (1e-8, 1e-3)}),
    "adamax": ({**REPLAY, "optimizer": "adamax"}, {"adam_beta2": (0.9, 0.5), "adam_eps": (1e-8, 1e-3)}),
    "rmsprop": ({**REPLAY, "optimizer": "rmsprop"}, {"rmsprop_decay": (0.95, 0.5)}),
    "nature rmsprop": ({**REPLAY, "optimizer": "nature-rmsprop"}, {"rmsprop_decay": (0.95, 0.5)}),
    "huber": ({**REPLAY, "loss": "huber"}, {"huber_delta": (1.0, 0.1)}),
    "priorities": ({**REPLAY, "prioritized": True}, {"priority_alpha": (0.6, 0.3), "priority_beta": (0.4, 0.9)}),
    "munchausen": (
        {**REPLAY, "algorithm": "munchausen"},
        {"munchausen_alpha": (0.9, 0.1), "munchausen_tau": (0.03, 0.5), "munchausen_clip": (-1.0, -0.1)},
    ),
    "c51": ({**REPLAY, "algorithm": "c51", "atoms": 11}, {"v_min": (-100.0, 0.0), "v_max": (100.0, 10.0)}),
    "qr-dqn": ({**REPLAY, "algorithm": "qr-dqn", "quantiles": 5}, {"kappa": (1.0, 0.1)}),
    "iqn": ({**REPLAY, "algorithm": "iqn", "fractions": 2, "cosines": 4}, {"kappa": (1.0, 0.1)}),
    "rainbow": (
        {**REPLAY, "algorithm": "rainbow", "atoms": 11},
        {"priority_alpha": (0.6, 0.3), "v_max": (100.0, 10.0), "learning_rate": (1e-3, 5e-3)},
    ),
    "pqn": (PQN, {"q_lambda": (0.65, 0.1), "adam_eps": (1e-8, 1e-3)}),
    "stream-q": (STREAM, {"q_lambda": (0.8, 0.1), "stream_kappa": (2.0, 3.0)}),
}


def made(case):
    """Return the sweep of a case: each setting has one value of every number."""
    base, numbers = CASES[case]
    each = [dict(zip(numbers, values, strict=True)) for values in zip(*numbers.values(), strict=True)]
    first = settings.make({**base, **each[0]})
    return Sweep(**dataclasses.asdict(first), varied=tuple(each))


def advanced(given, cycles=20):
    program = assemble.program(given)
    state = training.init(program, assemble.hyper(given), assemble.keys(given))
    return programs.advance(program, state, cycles)


def without_hyper(state):
    return state._replace(hyper=None)


@pytest.mark.parametrize("case", CASES)
def test_a_lane_equals_its_setting_trained_alone(case):
    """Compare every bit of the state of each setting with a run of that setting, operation by operation."""
    sweep = made(case)
    together = advanced(sweep)
    states = []
    for number in range(2):
        alone = advanced(sweep.at(number))
        assert (alone.learner.updates > 10).all()
        lanes = tree.index(together, slice(2 * number, 2 * number + 2))
        asserts.assert_trees_equal(without_hyper(lanes), without_hyper(alone))
        states.append(alone)
    first, second = (state.learner.params for state in states)
    assert not tree.equal(first, second), "the settings should not learn the same"
