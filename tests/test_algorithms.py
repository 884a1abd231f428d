"""The law of algorithms holds for off-policy and on-policy learning and rejects planted bugs."""

import pytest
import torch
from plants import rejects

from fdqn import networks, replay, training
from fdqn.agents import dqn, pqn
from fdqn.experiment import assemble
from fdqn.testing import examples
from fdqn.testing.algorithms import algorithm
from fdqn.training import off_policy, on_policy, streaming


def ranked():
    """DQN with prioritized replay over two steps."""
    program = examples.program(n_step=2)
    buffer = replay.n_step.wrap(replay.prioritized.buffer(40, epsilon=1e-6), 3, 2)
    agent, config = program.algorithm.agent, program.config
    return program._replace(algorithm=off_policy.algorithm(config, agent, buffer, assemble.adam))


def rollouts():
    """PQN: two epochs of two minibatches over four steps of three environments."""
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


def test_a_generator_of_the_process_is_detected():
    plant = planted(select=lambda bits: torch.randint(0, 2**32, bits.shape))
    with rejects("the same keys: "):
        algorithm(plant, *examples.seeds(2))


def test_a_memory_outside_of_the_state_is_detected():
    own, calls = examples.program().algorithm, []

    def update(learner, *given):
        calls.append(1)
        updated, *rest = own.update(learner, *given)
        return updated._replace(updates=updated.updates + len(calls)), *rest

    with rejects("the same keys: "):
        algorithm(planted(update=update), *examples.seeds(2))


def test_a_selection_that_sees_its_neighbours_is_detected():
    with rejects("select, one seed after the other: "):
        algorithm(planted(select=lambda bits: bits.flip(0) if bits.ndim == 3 else bits), *examples.seeds(2))


def test_a_cut_that_changes_the_buffer_s_shape_is_detected():
    with rejects("cut"):
        algorithm(planted(cut=lambda buffer: buffer._replace(added=buffer.added.float())), *examples.seeds(2))


def test_bounds_that_are_too_low_are_detected():
    with rejects("bounds: expected added from 0 to 3"):
        algorithm(planted(bounds=lambda buffer, steps: {"added": (buffer.added, 3)}), *examples.seeds(2))


def test_an_agent_of_one_s_own_is_held_to_the_law():
    program = examples.program(agent=dqn.agent(examples.program().network, double=False))
    algorithm(program, *examples.seeds(2), cycles=5)
