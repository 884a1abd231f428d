"""Whole programs whose observations are booleans: packed in replay, they are trained, kept and counted as they were."""

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
    """Catch on a board that says only whether there is something, in rows of another length where asked."""
    env = catch.make()

    def flags(answer):
        state, step = answer
        obs, next_obs = ((x > 0).reshape(*x.shape[:-2], *shape) for x in (step.obs, step.next_obs))
        return state, step._replace(obs=obs, next_obs=next_obs)

    return Env(
        lambda u: flags(env.reset(u)),
        lambda state, action, u: flags(env.step(state, action, u)),
        env.spec._replace(obs_shape=shape, obs_dtype=torch.bool),
    )


def started(count=3, shape=(catch.ROWS, catch.COLUMNS)):
    program, (hyper, keys) = examples.program(boolean_catch(shape)), examples.seeds(count)
    return program, training.init(program, hyper, keys)


def unpacked(state):
    """The same lanes before their first step, with a buffer that holds booleans as they are."""
    packed = state.buffer
    rows = packed.buffer.rows._replace(
        **{name: x.new_zeros((*packed.buffer.rows.reward.shape, *x.shape[2:])) for name, x in packed.unpacked.items()}
    )
    return state._replace(buffer=ring.Ring(rows, packed.buffer.added))


def unpacking(program):
    """The same program with a buffer that holds booleans as they are."""
    agent, rows = program.algorithm.agent, ring.buffer(program.config.capacity)
    optimizer = assemble.clipped(assemble.adam)
    return program._replace(algorithm=off_policy.algorithm(program.config, agent, rows, optimizer))


def assert_same_training(plain, packed, atol=0.0):
    """Every leaf, and all that is in replay."""
    every = torch.arange(40) * 2**32 // 40 + 1
    plain_rows, rows = ring.buffer(40), packing.wrap(ring.buffer(40))
    stored = [
        vmap(buffer.sample, (0, None, None))(state.buffer, every, 0).batch
        for buffer, state in ((plain_rows, plain), (rows, packed))
    ]
    asserts.assert_trees_close(*stored, atol, atol, "stored rows: ")
    asserts.assert_trees_close(*(state._replace(buffer=()) for state in (plain, packed)), atol, atol)


def test_the_environment_holds_to_the_law():
    laws.env(boolean_catch(), steps=50)


def test_training_is_the_same_packed_and_unpacked():
    """Bit for bit, from the first step on, around the end of the ring."""
    program, packed = started()
    plain = unpacked(packed)
    assert plain.buffer.rows.obs.shape == (3, 40, catch.ROWS, catch.COLUMNS)
    assert packed.buffer.buffer.rows.obs.shape == (3, 40, 7)
    for cycles in (4, 16):
        plain = programs.advance(unpacking(program), plain, cycles)
        packed = programs.advance(program, packed, cycles)
        assert_same_training(plain, packed)
    assert (packed.learner.updates == 16).all()


def test_a_bit_in_another_place_is_seen(monkeypatch):
    """Planted: bytes are read from their other end."""
    program, packed = started()
    plain, right = programs.advance(unpacking(program), unpacked(packed), 10), packing.unpack
    monkeypatch.setattr(
        packing, "unpack", lambda x, n: right(x, 8 * x.shape[-1]).unflatten(-1, (-1, 8)).flip(-1).flatten(-2)[..., :n]
    )
    packed = programs.advance(program, packed, 10)
    monkeypatch.undo()
    with pytest.raises(AssertionError, match=r"\.learner\.params"):
        assert_same_training(plain, packed)


def test_lanes_do_not_know_each_other():
    one_update = partial(programs.trained, examples.program(boolean_catch()), cycles=5, dtype=torch.float32)
    programs.seeds(one_update, *examples.seeds(2), distinct=lambda state: state.learner.params, atol=1e-5, rtol=1e-5)


IN_GROUPS = pytest.mark.skipif(not cpu_groups.supported(torch.device("cpu")), reason="lanes go all together here")
TWO_BY_TWO = edge.ThreadPartition(2, 2, 1)


MEMORY = packing.wrap(ring.buffer(8))


def remember(state, x):
    """Of one lane: rows go in, rows come out and are counted."""
    obs = x["obs"]
    count = torch.zeros(len(obs))
    new = Transition(obs, count.long(), count, count, ~obs, obs[:, :2])
    memory, _ = MEMORY.add(state["memory"], new, obs[:, 0], None, torch.tensor(0.9))
    batch = MEMORY.sample(memory, x["words"], 0).batch
    return {"memory": memory, "seen": state["seen"] + batch.obs.sum(0) + 100 * batch.next_obs.sum(0)}


@IN_GROUPS
def test_compiled_in_groups():
    """A ring and its wrap-around in the loop without an interpreter, bit for bit, and nothing moves."""
    obs = random.bits(random.key(1), (6, 4, 3, 11)) % 2 == 1
    noises = {"obs": obs, "words": random.bits(random.key(2), (6, 4, 5))}
    zero, flags = torch.tensor(0.0), obs[0, 0, 0]
    memory = MEMORY.init(Transition(flags, zero.long(), zero, zero, flags, flags[:2]))
    state = {"memory": memory, "seen": torch.zeros(11, dtype=torch.int64)}
    state = tree.stack([state] * 4)
    expected, addresses = training.scan(vmap(remember))(state, noises), [x.data_ptr() for x in tree.leaves(state)]
    got = edge.scan_vmapped(remember, lambda _: TWO_BY_TWO)(state, noises)
    asserts.assert_trees_equal(expected, got)
    assert [x.data_ptr() for x in tree.leaves(got)] == addresses


@IN_GROUPS
@pytest.mark.slow
def test_compiled_training_is_the_same_packed_and_unpacked():
    """Bit for bit what the same compiler makes of booleans as they are; operation by operation to rounding."""
    program, state = started(4)
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
    program, state = started()
    ends = []
    for begun in (unpacked(state), state):
        end = tree.to(programs.advance(program, tree.to(begun, "cuda"), 20, edge.compiled(program)), "cpu")
        # The ring's spare place takes what is not kept, in no order.
        ends.append(end._replace(metrics=end.metrics._replace(returns=end.metrics.returns[:, :-1])))
    assert_same_training(*ends)


def test_a_checkpoint_goes_on_as_if_undisturbed(tmp_path):
    program, state = started()

    def through(state):
        path = checkpoint.save(tmp_path, "20", state, {})
        return checkpoint.load(path, training.init(program, *examples.seeds(3)))[0]

    programs.resumed(partial(programs.advance, program), state, 20, 8, through)


def test_a_checkpoint_of_another_shape_that_fills_as_many_bytes_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, "0", started()[1], {})
    layouts = r"\.buffer\.unpacked\['obs'\] .*\[3, 0, 10, 5\].*\[3, 0, 50\]"
    with pytest.raises(checkpoint.CheckpointError, match=layouts):
        checkpoint.load(path, started(shape=(COUNT,))[1])


def test_bytes_are_known_before_they_are_allocated():
    program, state = started(2)
    row = 2 * packing.size(COUNT) + catch.ACTIONS + 8 + 4 + 4
    counter = 8
    assert memory.replay_bytes(program, 1) == program.config.capacity * row + counter
    assert tree.nbytes(state.buffer.buffer.rows) == 2 * 40 * 33
    assert memory.replay_bytes(program, 2) == tree.nbytes(state.buffer) == 2 * (40 * 33 + counter)
    assert tree.nbytes(unpacked(state).buffer.rows) == 2 * 40 * (2 * COUNT + 19)
    floats = examples.program(catch.make())
    assert memory.replay_bytes(floats, 2) == 2 * (40 * (8 * COUNT + 19) + counter)
