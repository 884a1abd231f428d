"""Tests of functions of nested tensors."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from torch.func import grad, vmap

from fdqn import tree
from fdqn.testing import asserts, strategies


class Pair(NamedTuple):
    a: torch.Tensor
    b: dict


NESTED = Pair(torch.tensor([1.0, 2.0]), {"x": torch.tensor([[3], [4]]), "y": (torch.tensor([True, False]),)})


def test_leaves_and_paths_correspond():
    assert [x.dtype for x in tree.leaves(NESTED)] == [torch.float32, torch.int64, torch.bool]
    assert tree.paths(NESTED) == [".a", ".b['x']", ".b['y'][0]"]


def test_where_selects_along_the_first_axes():
    new, old = {"x": torch.ones(2, 3), "y": torch.tensor([1, 2])}, {"x": torch.zeros(2, 3), "y": torch.tensor([3, 4])}
    got = tree.where(torch.tensor([False, True]), new, old)
    assert got["x"].tolist() == [[0] * 3, [1] * 3]
    assert got["y"].tolist() == [3, 2]
    both = tree.where(torch.tensor([[True, False, True]] * 2), new["x"], old["x"])
    assert both.tolist() == [[1, 0, 1]] * 2


def test_structure_compares():
    assert tree.structure(NESTED) == tree.structure(tree.clone(NESTED))
    assert tree.structure(NESTED) != tree.structure(NESTED._replace(b={}))
    assert tree.structure((NESTED.a,)) != tree.structure([NESTED.a])


def test_map_keeps_the_structure_and_refuses_other_structures():
    doubled = tree.map(lambda x, y: x + y, NESTED.b["x"], NESTED.b["x"])
    assert torch.equal(doubled, torch.tensor([[6], [8]]))
    assert isinstance(tree.map(lambda x: x, NESTED), Pair)
    with pytest.raises(ValueError, match="trees: expected one structure"):
        tree.map(lambda x, y: x, {"a": NESTED.a}, {"b": NESTED.a})


def test_index_inverts_stack():
    stacked = tree.stack([NESTED, tree.map(torch.zeros_like, NESTED)])
    asserts.assert_trees_equal(NESTED, tree.index(stacked, 0))
    asserts.assert_trees_equal(tree.index(NESTED, slice(1)), tree.index(tree.stack([NESTED], 1), (slice(1), 0)))


def test_cast_changes_only_floats():
    assert [x.dtype for x in tree.leaves(tree.cast(NESTED, torch.float64))] == [torch.float64, torch.int64, torch.bool]


def test_clone_is_independent_and_contiguous():
    wide = {"w": torch.zeros(3).expand(2, 3), "t": torch.zeros(2, 3).T}
    copy = tree.clone(wide)
    assert all(x.is_contiguous() for x in tree.leaves(copy))
    assert not {x.data_ptr() for x in tree.leaves(copy)} & {x.data_ptr() for x in tree.leaves(wide)}


WEIGHTS = [0, 0.0, 1, 1.0, torch.tensor(0.0), torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64)]


@pytest.mark.parametrize("weight", WEIGHTS)
@given(strategies.twin_trees())
def test_lerp_is_exact_at_both_ends(weight, pair):
    asserts.assert_trees_equal(pair[int(weight)], tree.lerp(*pair, weight))


@given(strategies.params())
def test_lerp_at_one_half(params):
    other = tree.map(lambda x: x + 1, params)
    for weight in (0.25, 0.75, torch.tensor(0.25, dtype=torch.float64), torch.tensor(0.75, dtype=torch.float64)):
        asserts.assert_trees_close(
            tree.map(lambda x: x + float(weight), params), tree.lerp(params, other, weight), 1e-14
        )


def ends(dtype=torch.float32):
    """Return numbers of many magnitudes. A naive lerp is not exact for a third of them at weight 1."""
    size = torch.logspace(-6, 6, 1000, dtype=torch.float64)
    a, b = size.repeat(100), size.repeat_interleave(100)
    return a.to(dtype), -b.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_lerp_is_exact_at_both_ends_for_any_magnitude(dtype):
    a, b = ends(dtype)
    for kind in (float, torch.tensor):
        assert torch.equal(tree.lerp(a, b, kind(1.0)), b)
        assert torch.equal(tree.lerp(a, b, kind(0.0)), a)
    assert not torch.equal((a + 1.0 * (b - a)), b), "the naive formula is not exact"


@pytest.mark.parametrize("weight", [0.1, 0.49, 0.5, 0.51, 0.9, 0.999])
def test_lerp_equals_torch(weight):
    a, b = ends()
    expected = torch.lerp(a, b, weight)
    tensor = torch.tensor(weight)
    for ours in (
        tree.lerp(a, b, weight),
        tree.lerp(a, b, tensor),
        vmap(tree.lerp, (None, None, 0))(a, b, tensor[None])[0],
    ):
        torch.testing.assert_close(ours, expected, rtol=2e-7, atol=1e-7 * float(b.abs().max()))
    if weight < 0.5:
        assert torch.equal(tree.lerp(a, b, weight), a + weight * (b - a)), (
            "equal bit for bit to the formula used before"
        )
        assert torch.equal(tree.lerp(a, b, tensor), a + tensor * (b - a))


def test_lerp_ignores_infinities_at_the_other_end():
    wild = torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38])
    calm = torch.tensor([1.0, -2.0, 0.5, -3e38])
    for weight in (0.0, torch.tensor(0.0)):
        assert torch.equal(tree.lerp(calm, wild, weight), calm)
        asserts.assert_trees_equal(tree.lerp(wild, calm, weight), wild)
    for weight in (1.0, torch.tensor(1.0)):
        assert torch.equal(tree.lerp(wild, calm, weight), calm)
        asserts.assert_trees_equal(tree.lerp(calm, wild, weight), wild)
    assert not tree.lerp(calm, wild, 0.25)[:3].isfinite().any()


def test_lerp_under_vmap_and_its_derivatives():
    a, b, weights = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 7.0]), torch.tensor([0.0, 0.25, 0.75, 1.0])
    stacked = vmap(tree.lerp, (None, None, 0))(a, b, weights)
    asserts.assert_trees_equal(torch.stack([tree.lerp(a, b, w) for w in weights]), stacked)
    for w in weights:
        by_a, by_b, by_w = grad(lambda *x: tree.lerp(*x).sum(), (0, 1, 2))(a, b, w)
        assert by_a.tolist() == [1 - w] * 2
        assert by_b.tolist() == [w] * 2
        assert by_w == 7.0


def test_lerp_shares_no_memory_with_its_arguments():
    a, b = torch.ones(2), torch.zeros(2)
    for weight in WEIGHTS:
        assert tree.lerp(a, b, weight).data_ptr() not in (a.data_ptr(), b.data_ptr())


def test_lerp_keeps_the_dtype():
    half = {"w": torch.ones(2, dtype=torch.bfloat16)}
    assert tree.lerp(half, half, torch.tensor(0.5))["w"].dtype == torch.bfloat16


@given(strategies.params())
def test_norm_equals_that_of_one_vector(params):
    flat = torch.cat([x.flatten() for x in tree.leaves(params)])
    torch.testing.assert_close(tree.norm(params), flat.norm(), rtol=1e-12, atol=1e-12)


def test_equal_compares_structure_shapes_dtypes_and_numbers():
    one = {"w": torch.ones(2)}
    assert tree.equal(one, {"w": torch.ones(2)})
    for other in ({"v": torch.ones(2)}, {"w": torch.ones(2).double()}, {"w": torch.ones(2, 1)}, {"w": torch.zeros(2)}):
        assert not tree.equal(one, other)


def test_nbytes():
    assert tree.nbytes(NESTED) == 2 * 4 + 2 * 8 + 2


def test_separate_copies_only_leaves_that_share_memory():
    own, wide = torch.ones(3), torch.arange(6.0)
    given = {
        "own": own,
        "again": own,
        "part": wide[:3],
        "expanded": torch.ones(()).expand(2),
        "turned": wide.view(2, 3).T,
    }
    taken = torch.zeros(2)
    result = tree.separate({**given, "taken": taken}, (taken,))
    asserts.assert_trees_equal({**given, "taken": taken}, result)
    assert result["own"] is own
    memory = [x.untyped_storage().data_ptr() for x in (*result.values(), taken, wide)]
    assert len(set(memory)) == len(memory)
    assert all(x.is_contiguous() and x.untyped_storage().nbytes() == x.nbytes for x in result.values())


def test_numpy_conversion_shares_memory():
    arrays = {"x": np.arange(6.0).reshape(2, 3), "y": (np.array([True, False]), np.arange(8, dtype=np.int32)[::2])}
    tensors = tree.from_numpy(arrays)
    back = tree.to_numpy(tensors)
    assert tree.structure(back) == tree.structure(arrays)
    assert tensors["y"][1].dtype == torch.int32
    assert tensors["y"][1].stride() == (2,)
    for a, x, b in zip(tree.leaves(arrays), tree.leaves(tensors), tree.leaves(back), strict=True):
        assert a.ctypes.data == x.data_ptr() == b.ctypes.data
        assert (a == b).all()
        assert (a.shape, a.strides, a.dtype) == (b.shape, b.strides, b.dtype)
    arrays["x"][0, 0] = 7
    assert tensors["x"][0, 0] == 7
    assert isinstance(tree.to_numpy(Pair(torch.ones(1), {})), Pair)


def test_numpy_is_copied_if_memory_cannot_be_shared():
    fixed = np.arange(3.0)
    fixed.flags.writeable = False
    record = np.zeros(3, dtype=[("a", np.int8), ("b", np.float32)])
    for array in (np.arange(3.0)[::-1], fixed, np.arange(3).astype(">i4"), record["b"], np.float32(2.5)):
        tensor = tree.from_numpy({"x": array})["x"]
        assert tensor.tolist() == array.tolist()
        assert tensor.shape == array.shape
        if isinstance(array, np.ndarray):
            assert not np.shares_memory(array, tensor.numpy())
    leaf = torch.ones(2, requires_grad=True)
    assert (tree.to_numpy([leaf, leaf * 2])[1] == 2).all()
    flipped = torch.tensor([1 + 2j]).conj()
    assert tree.to_numpy(flipped).tolist() == [1 - 2j]


def test_unsupported_numpy_and_tensors_are_refused():
    for leaf, message in (
        ([1.0], "got float"),
        (np.array(["a"]), "got dtype <U1"),
        (np.array([None]), "got dtype object"),
    ):
        with pytest.raises(TypeError, match=f"tree: expected NumPy arrays of numbers, {message}"):
            tree.from_numpy({"x": leaf})
    with pytest.raises(TypeError, match=r"tree: expected dtypes that NumPy has, got torch.bfloat16; cast first"):
        tree.to_numpy(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match="tree: expected tensors, got ndarray"):
        tree.to_numpy([np.ones(2)])


def test_a_tree_moves_to_a_device_without_a_copy_if_it_is_there():
    assert {x.device.type for x in tree.leaves(tree.to(NESTED, "meta"))} == {"meta"}
    moved = tree.to(NESTED, torch.device("cpu"))
    assert all(a is b for a, b in zip(tree.leaves(NESTED), tree.leaves(moved), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_tree_moves_to_the_gpu_and_back_to_numpy():
    moved = tree.to(NESTED, "cuda")
    assert {x.device.type for x in tree.leaves(moved)} == {"cuda"}
    asserts.assert_trees_equal(NESTED, tree.to(moved, "cpu"))
    for a, b in zip(tree.leaves(NESTED), tree.leaves(tree.to_numpy(moved)), strict=True):
        assert a.tolist() == b.tolist()
