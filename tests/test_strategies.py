"""Check that strategies generate valid examples with frequent corner cases."""

import dataclasses
import inspect

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from fdqn import training, tree
from fdqn.ops import schedules
from fdqn.testing import asserts, examples, strategies
from fdqn.types import Transition


def drawn(strategy, count=200):
    """Draw the given number of examples."""
    found = []

    @settings(max_examples=count, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(x):
        found.append(x)

    collect()
    return found


def fraction(found, is_corner):
    """Return the fraction of examples with a corner case, in [0, 1]."""
    return sum(bool(is_corner(x)) for x in found) / len(found)


def has_ties(q):
    return any(len(set(row)) < len(row) for row in q.tolist())


@given(strategies.tensors((2, 3), -1.0, 2.0), strategies.uniforms((3,), torch.float64), strategies.words((4,)))
def test_numbers_are_in_range(x, u, bits):
    asserts.assert_shapes("x[2 3] u[3] bits[4]", x, u, bits)
    assert (x.dtype, u.dtype, bits.dtype) == (torch.float32, torch.float64, torch.int64)
    assert ((x >= -1) & (x <= 2)).all()
    assert ((u >= 0) & (u < 1) & (u * 2**23 == (u * 2**23).floor())).all()
    assert ((bits >= 0) & (bits < 2**32)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), [(0.1, 0.3), (-0.3, -0.1), (-1e6, 1e6), (-1e300, torch.inf), (1 / 3, 0.35)])
def test_bounds_are_rounded_inwards(low, high, dtype):
    found = torch.stack(drawn(strategies.tensors((2,), low, high, dtype), 50))
    asserts.assert_finite(found)
    assert found.dtype == dtype
    assert all(low <= x <= high for x in found.flatten().tolist())
    assert found.unique().numel() > 1


def test_bounds_with_only_one_number_between_them():
    for dtype in (torch.float32, torch.float64):
        assert {x.item() for x in drawn(strategies.tensors((), 0.5, 0.5, dtype), 5)} == {0.5}
    assert {x.item() for x in drawn(strategies.tensors((), 0.1, 0.1, torch.float64), 5)} == {0.1}


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (0.1, 0.1, torch.float32),
        (1.0, 0.0, torch.float32),
        (1e6, 2e6, torch.float16),
        (-2e39, -1e39, torch.float32),
        (torch.nan, 1.0, torch.float32),
        (0.0, torch.nan, torch.float64),
        (torch.inf, torch.inf, torch.float64),
    ],
)
def test_bounds_without_a_number_between_them_are_refused(low, high, dtype):
    with pytest.raises(ValueError, match=f"low, high: expected a number of {dtype} between them"):
        strategies.tensors((2,), low, high, dtype)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_integer_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=f"dtype: expected a floating-point dtype, got {dtype}"):
        strategies.tensors((2,), -3.0, 3.0, dtype)


@pytest.mark.parametrize(
    ("strategy", "corners"),
    [
        (strategies.tensors((3,), -100.0, 7.0), [0.0, -1e-6, -100.0, 7.0]),
        (strategies.uniforms((3,)), [0.0, 1 - 2.0**-23]),
        (strategies.words((3,)), [0, 2**32 - 1]),
    ],
)
def test_both_ends_are_drawn_often(strategy, corners):
    found = drawn(strategy)
    for corner in corners:
        assert fraction(found, lambda x: (x == torch.tensor(corner, dtype=x.dtype)).any()) > 0.02, corner


@given(strategies.keys((2,)), strategies.keys())
def test_keys(keys, key):
    asserts.assert_shapes("keys[2 2] key[2]", keys, key)
    assert ((keys >= 0) & (keys < 2**32)).all()


@given(strategies.masks((3, 4)), strategies.masks((2,)))
def test_masks_have_a_legal_action(legal, one):
    asserts.assert_shapes("legal[3 4] one[2]", legal, one)
    assert legal.dtype == torch.bool
    assert legal.any(-1).all()
    assert one.any()


@pytest.mark.parametrize("shape", [(5,), (3, 6)])
def test_empty_full_and_mixed_rows_are_frequent(shape):
    found = drawn(strategies.masks(shape, at_least_one=False))
    assert fraction(found, lambda legal: (~legal.any(-1)).any()) > 0.2
    assert fraction(found, lambda legal: legal.all(-1).any()) > 0.2
    assert fraction(found, lambda legal: (legal.any(-1) & ~legal.all(-1)).any()) > 0.2


@given(strategies.q_batches(dtype=torch.float64))
def test_q_batches_are_small_legal_rows(batch):
    q, legal = batch
    asserts.assert_shapes("q[B A] legal[B A]", q, legal)
    assert (q.dtype, legal.dtype) == (torch.float64, torch.bool)
    assert legal.any(-1).all()
    asserts.assert_finite(q)


def test_ties_are_frequent():
    assert fraction(drawn(strategies.q_batches()), lambda batch: has_ties(batch[0])) > 0.3
    assert fraction(drawn(strategies.labels()), lambda batch: has_ties(batch[0])) > 0.2


@given(strategies.labels(dtype=torch.float64))
def test_labels_are_classes(batch):
    logits, labels = batch
    asserts.assert_shapes("logits[B K] labels[B]", logits, labels)
    assert (logits.dtype, labels.dtype) == (torch.float64, torch.int64)
    assert ((labels >= 0) & (labels < logits.shape[1])).all()
    asserts.assert_finite(torch.nn.functional.cross_entropy(logits, labels))


def test_labels_include_one_class_and_overflowing_logits():
    found = drawn(strategies.labels())
    assert fraction(found, lambda batch: batch[0].shape[1] == 1) > 0.02
    assert fraction(found, lambda batch: batch[0].exp().isinf().any()) > 0.2


@given(strategies.transitions((2, 3), obs_shape=(4,), actions=5))
def test_transitions(batch):
    asserts.assert_shapes(Transition("[2 3 4]", "[2 3]", "[2 3]", "[2 3]", "[2 3 4]", "[2 3 5]"), batch)
    assert ((batch.discount == 0) | (batch.discount == 1)).all()
    assert ((batch.action >= 0) & (batch.action < 5)).all()


def test_terminal_transitions_without_legal_actions_are_frequent():
    found = drawn(strategies.transitions())
    assert fraction(found, lambda batch: (batch.discount == 0).any()) > 0.3
    assert fraction(found, lambda batch: (batch.discount == 1).any()) > 0.3
    assert fraction(found, lambda batch: (~batch.next_legal.any(-1)).any()) > 0.1


@given(strategies.replay_operations(3))
def test_replay_operations_are_valid(operations):
    assert all(1 <= x <= 3 if isinstance(x, int) else x.dtype == torch.int64 for x in operations)


def test_replay_operations_fill_and_sample():
    found = drawn(strategies.replay_operations(3))
    assert fraction(found, lambda operations: any(isinstance(x, torch.Tensor) for x in operations)) > 0.3
    assert fraction(found, lambda operations: sum(x for x in operations if isinstance(x, int)) > 3) > 0.3


@given(strategies.params(max_layers=3))
def test_params_are_consecutive_layers(params):
    x = torch.ones(params["0.weight"].shape[1], dtype=torch.float64)
    for i in range(len(params) // 2):
        x = params[f"{2 * i}.weight"] @ x + params[f"{2 * i}.bias"]
    asserts.assert_finite(x)


@given(strategies.trees())
def test_trees_have_tensors_at_the_leaves(x):
    for leaf in tree.leaves(x):
        assert tuple(leaf.shape) in [(), (0,), (1,), (3,), (2, 3)]
        assert leaf.dtype in (torch.float32, torch.float64, torch.int64, torch.bool)
    asserts.assert_finite(x)
    asserts.assert_trees_equal(x, tree.clone(x))


def test_trees_of_every_kind_are_drawn():
    found = drawn(strategies.trees())
    for kind in (torch.Tensor, list, tuple, dict, strategies.Pair):
        assert fraction(found, lambda x: type(x) is kind) > 0.02, kind
    assert fraction(found, lambda x: not tree.leaves(x)) > 0.02
    assert fraction(found, lambda x: any(leaf.numel() == 0 for leaf in tree.leaves(x))) > 0.1
    assert fraction(found, lambda x: len({leaf.dtype for leaf in tree.leaves(x)}) > 1) > 0.1
    assert fraction(found, lambda x: "][" in "".join(tree.paths(x))) > 0.1  # nested twice


@given(strategies.trees(dtypes=[torch.float64]))
def test_trees_of_one_dtype(x):
    assert {leaf.dtype for leaf in tree.leaves(x)} <= {torch.float64}


@given(strategies.twin_trees())
def test_twin_trees_differ_only_in_numbers(pair):
    first, second = (tree.map(torch.zeros_like, x) for x in pair)
    asserts.assert_trees_equal(first, second)


def test_twin_trees_differ():
    assert fraction(drawn(strategies.twin_trees(), 60), lambda pair: not tree.equal(*pair)) > 0.3


def test_configs_of_every_corner_are_drawn():
    found = drawn(strategies.configs())
    assert all(isinstance(config, training.Config) for config in found)
    assert fraction(found, lambda c: c.capacity == max(c.batch_size, c.num_envs)) > 0.2
    assert fraction(found, lambda c: c.env_steps > c.capacity) > 0.02
    assert fraction(found, lambda c: c.learning_starts == 0) > 0.2
    assert fraction(found, lambda c: c.target_period == 0) > 0.2
    assert fraction(found, lambda c: c.target_period > c.updates_per_cycle) > 0.1


@settings(max_examples=5)
@given(strategies.configs())
def test_configs_run(config):
    program, (hyper, keys) = examples.program(**dataclasses.asdict(config)), examples.seeds(2)
    *_, last = training.run(
        program, training.init(program, hyper, keys), 5 * config.env_steps, training.vmapped(program), 10
    )
    asserts.assert_finite(last.state.learner)


@given(strategies.schedules())
def test_schedules_have_a_value_at_every_step(schedule):
    steps = torch.tensor([0, 1, 2, 500, 1000, 10**9])
    values = torch.as_tensor(schedule(steps))
    asserts.assert_shapes("steps[N] values[N]", steps, values)
    assert ((values >= -1e-12) & (values <= 1 + 1e-12)).all()
    asserts.assert_trees_close(torch.stack([torch.as_tensor(schedule(step)) for step in steps]), values, 1e-12)


def test_every_schedule_is_drawn():
    found = drawn(strategies.schedules(), 400)
    formulas = {f for name, f in vars(schedules).items() if inspect.isfunction(f) and not name.startswith("_")}
    for f in formulas - {schedules.warm_up, schedules.sequence}:  # combinations of other schedules
        assert fraction(found, lambda schedule: schedule.func is f) > 0.03, f
    assert fraction(found, lambda schedule: schedule.keywords.get("steps") == 0) > 0.01
    assert fraction(found, lambda schedule: schedule.keywords.get("steps") == 1) > 0.02
