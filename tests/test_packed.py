"""Tests of programs with boolean observations: packing them in replay changes neither training nor checkpoints."""

from functools import partial

import pytest
import torch
from torch.func import vmap

from fdqn import compile as edge
from fdqn import random, training, tree
from fdqn.compile import cpu_groups
from fdqn.envs import catch
from fdqn.experiment import assemble, memory
from fdqn.replay import packing, ring
from fdqn.storage import checkpoint
from fdqn.testing import asserts, examples, laws, programs
from fdqn.training import off_policy
from fdqn.types import Env, Transition

COUNT = catch.ROWS * catch.COLUMNS


def boolean_catch(shape=(catch.ROWS, catch.COLUMNS)):
    """Make Catch with boolean observations of the given shape."""
    env = catch.make()

    def flags(result):
        state, step = result
        obs, next_obs = ((x > 0).reshape(*x.shape[:-2], *shape) for x in (step.obs, step.next_obs))
        return state, step._replace(obs=obs, next_obs=next_obs)

    return Env(
        lambda u: flags(env.reset(u)),
        lambda state, action, u: flags(env.step(state, action, u)),
        env.spec._replace(obs_shape=shape, obs_dtype=torch.bool),
    )


def initialized(count=3, shape=(catch.ROWS, catch.COLUMNS)):
    program, (hyper, keys) = examples.program(boolean_catch(shape)), examples.seeds(count)
    return program, training.init(program, hyper, keys)


def unpacked(state):
    """Return an initial state with a buffer that stores booleans unpacked."""
    packed = state.buffer
    rows = packed.buffer.rows._replace(
        **{name: x.new_zeros((*packed.buffer.rows.reward.shape, *x.shape[2:])) for name, x in packed.unpacked.items()}
    )
    return state._replace(buffer=ring.Ring(rows, packed.buffer.added))


def unpacking(program):
    """Return the program with a buffer that stores booleans unpacked."""
    agent, rows = program.algorithm.agent, ring.buffer(program.config.capacity)
    optimizer = assemble.clipped(assemble.adam)
    return program._replace(algorithm=off_policy.algorithm(program.config, agent, rows, optimizer))


def assert_same_training(plain, packed, atol=0.0):
    """Compare all leaves and all rows in replay."""
    every = torch.arange(40) * 2**32 // 40 + 1
    plain_rows, rows = ring.buffer(40), packing.wrap(ring.buffer(40))
    stored = [
        vmap(buffer.sample, (0, None, None))(state.buffer, every, 0).batch
        for buffer, state in ((plain_rows, plain), (rows, packed))
    ]
    asserts.assert_trees_close(*stored, atol, atol, "stored rows: ")
    asserts.assert_trees_close(*(state._replace(buffer=()) for state in (plain, packed)), atol, atol)


def test_the_environment_satisfies_the_law():
    laws.env(boolean_catch(), steps=50)


def test_training_is_the_same_packed_and_unpacked():
    """Compare bit for bit from the first step until after the ring has wrapped around."""
    program, packed = initialized()
    plain = unpacked(packed)
    assert plain.buffer.rows.obs.shape == (3, 40, catch.ROWS, catch.COLUMNS)
    assert packed.buffer.buffer.rows.obs.shape == (3, 40, 7)
    for cycles in (4, 16):
        plain = programs.advance(unpacking(program), plain, cycles)
        packed = programs.advance(program, packed, cycles)
        assert_same_training(plain, packed)
    assert (packed.learner.updates == 16).all()


def test_a_wrong_order_of_bits_is_detected(monkeypatch):
    """Plant a bug: unpack the bits of each byte in reverse order."""
    program, packed = initialized()
    plain, right = programs.advance(unpacking(program), unpacked(packed), 10), packing.unpack
    monkeypatch.setattr(
        packing, "unpack", lambda x, n: right(x, 8 * x.shape[-1]).unflatten(-1, (-1, 8)).flip(-1).flatten(-2)[..., :n]
    )
    packed = programs.advance(program, packed, 10)
    monkeypatch.undo()
    with pytest.raises(AssertionError, match=r"\.learner\.params"):
        assert_same_training(plain, packed)


def test_seeds_are_independent():
    one_update = partial(programs.trained, examples.program(boolean_catch()), cycles=5, dtype=torch.float32)
    programs.seeds(one_update, *examples.seeds(2), distinct=lambda state: state.learner.params, atol=1e-5, rtol=1e-5)


IN_GROUPS = pytest.mark.skipif(
    not cpu_groups.supported(torch.device("cpu")), reason="groups of seeds are not supported here"
)
TWO_BY_TWO = edge.ThreadPartition(2, 2, 1)


MEMORY = packing.wrap(ring.buffer(8))


def add_and_sample(state, x):
    """Add rows of one seed, sample rows, and sum their observations."""
    obs = x["obs"]
    zeros = torch.zeros(len(obs))
    new = Transition(obs, zeros.long(), zeros, zeros, ~obs, obs[:, :2])
    memory, _ = MEMORY.add(state["memory"], new, obs[:, 0], None, torch.tensor(0.9))
    batch = MEMORY.sample(memory, x["bits"], 0).batch
    return {"memory": memory, "seen": state["seen"] + batch.obs.sum(0) + 100 * batch.next_obs.sum(0)}


@IN_GROUPS
def test_compiled_groups_equal_eager():
    """Wrap around the ring in the C++ loop: equal to eager bit for bit, and in the same memory."""
    obs = random.bits(random.key(1), (6, 4, 3, 11)) % 2 == 1
    noises = {"obs": obs, "bits": random.bits(random.key(2), (6, 4, 5))}
    zero, flags = torch.tensor(0.0), obs[0, 0, 0]
    memory = MEMORY.init(Transition(flags, zero.long(), zero, zero, flags, flags[:2]))
    state = {"memory": memory, "seen": torch.zeros(11, dtype=torch.int64)}
    state = tree.stack([state] * 4)
    expected, addresses = training.scan(vmap(add_and_sample))(state, noises), [x.data_ptr() for x in tree.leaves(state)]
    got = edge.scan_vmapped(add_and_sample, lambda _: TWO_BY_TWO)(state, noises)
    asserts.assert_trees_equal(expected, got)
    assert [x.data_ptr() for x in tree.leaves(got)] == addresses


@IN_GROUPS
@pytest.mark.slow
def test_compiled_training_is_the_same_packed_and_unpacked():
    """Compare with compiled unpacked training bit for bit, and with eager training up to rounding."""
    program, state = initialized(4)
    noises = training.noise(program, state.key, 0, 20)
    early, late = tree.index(noises, slice(4)), tree.index(noises, slice(4, None))
    collect, cycle = (training.scan(vmap(partial(f, program))) for f in (training.collect, training.cycle))
    packed, plain = (tree.clone(collect(x, early)) for x in (state, unpacked(state)))
    expected = cycle(packed, late)
    fast = edge.scan_vmapped(partial(training.cycle, program), lambda _: TWO_BY_TWO)
    packed, plain = fast(packed, late), fast(plain, late)
    assert_same_training(plain, packed)
    assert_same_training(expected, packed, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu_is_the_same_packed_and_unpacked():
    program, state = initialized()
    ends = []
    for start in (unpacked(state), state):
        end = tree.to(programs.advance(program, tree.to(start, "cuda"), 20, edge.compiled(program)), "cpu")
        # The last slot of the ring takes dropped returns in an arbitrary order.
        ends.append(end._replace(metrics=end.metrics._replace(returns=end.metrics.returns[:, :-1])))
    assert_same_training(*ends)


def test_a_state_continues_exactly_from_a_checkpoint(tmp_path):
    program, state = initialized()

    def through(state):
        path = checkpoint.save(tmp_path, "20", state, {})
        return checkpoint.load(path, training.init(program, *examples.seeds(3)))[0]

    programs.resumed(partial(programs.advance, program), state, 20, 8, through)


def test_a_checkpoint_of_another_shape_with_as_many_bytes_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, "0", initialized()[1], {})
    layouts = r"\.buffer\.unpacked\['obs'\] .*\[3, 0, 10, 5\].*\[3, 0, 50\]"
    with pytest.raises(checkpoint.CheckpointError, match=layouts):
        checkpoint.load(path, initialized(shape=(COUNT,))[1])


def test_replay_bytes_equal_the_allocated_bytes():
    program, state = initialized(2)
    row = 2 * packing.size(COUNT) + catch.ACTIONS + 8 + 4 + 4
    counter = 8
    assert memory.replay_bytes(program, 1) == program.config.capacity * row + counter
    assert tree.nbytes(state.buffer.buffer.rows) == 2 * 40 * 33
    assert memory.replay_bytes(program, 2) == tree.nbytes(state.buffer) == 2 * (40 * 33 + counter)
    assert tree.nbytes(unpacked(state).buffer.rows) == 2 * 40 * (2 * COUNT + 19)
    floats = examples.program(catch.make())
    assert memory.replay_bytes(floats, 2) == 2 * (40 * (8 * COUNT + 19) + counter)
