"""Compare Threefry with jax.random bit for bit: with recorded vectors and, if it is installed, with JAX."""

import json
import math
import pathlib
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from fdqn import random
from fdqn.testing import asserts, laws, strategies

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden_random.json").read_text())

# Keys are fixed, so tests of distributions are deterministic; their bounds would fail by chance once in 10,000.
CHANCE = 1e-4


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["seed"]))
def test_golden_vectors(case):
    key = random.key(case["seed"])
    assert key.tolist() == case["key"]
    assert random.split(key, len(case["split"])).tolist() == case["split"]
    for data, expected in case["fold_in"].items():
        assert random.fold_in(key, int(data)).tolist() == expected
    bits = torch.tensor(case["bits"])
    assert torch.equal(random.bits(key, bits.shape), bits)
    uniform, normal = torch.tensor(case["uniform"]), torch.tensor(case["normal"])
    assert torch.equal(random.uniform(key, uniform.shape), uniform)
    torch.testing.assert_close(random.normal(key, normal.shape), normal, rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", [0, 3, 2**31, 2**32 - 1])
def test_live_jax(seed):
    jax = pytest.importorskip("jax")
    theirs, ours = jax.random.key(seed), random.key(seed)
    assert jax.random.key_data(theirs).tolist() == ours.tolist()
    assert jax.random.key_data(jax.random.split(theirs, 5)).tolist() == random.split(ours, 5).tolist()
    assert jax.random.key_data(jax.random.fold_in(theirs, 77)).tolist() == random.fold_in(ours, 77).tolist()
    assert jax.random.bits(theirs, (100,)).tolist() == random.bits(ours, (100,)).tolist()
    assert jax.random.uniform(theirs, (100,)).tolist() == random.uniform(ours, (100,)).tolist()
    # JAX's float32 inverse has errors up to 6e-6 in the tails; its uniforms, transformed in float64, do not.
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    v = np.asarray(jax.random.uniform(theirs, (10_000,), minval=lowest, maxval=1.0), np.float64)
    exact = torch.from_numpy(math.sqrt(2) * special.erfinv(v)).float()
    torch.testing.assert_close(random.normal(ours, (10_000,)), exact, rtol=3e-7, atol=0)
    theirs_normal = torch.from_numpy(np.array(jax.random.normal(theirs, (10_000,))))
    torch.testing.assert_close(random.normal(ours, (10_000,)), theirs_normal, rtol=6e-6, atol=0)


@pytest.mark.parametrize("f", [random.split, random.bits, random.uniform, random.normal])
def test_keys_are_batched(f):
    keys = random.key([[1, 2, 3], [4, 5, 6]])
    shape = 4 if f is random.split else (2, 3)
    many = f(keys, shape)
    for i in range(2):
        for j in range(3):
            asserts.assert_trees_equal(f(keys[i, j], shape), many[i, j])
    laws.vmapped(lambda key: f(key, shape), keys, dtype=None, atol=0.0)


@given(strategies.keys((2,)))
def test_laws_of_a_function(keys):
    laws.pure(random.uniform, keys, (3,))
    laws.ranked(lambda key: random.fold_in(key, 7), keys, dtype=None, atol=0.0)
    assert ((random.uniform(keys, (50,)) >= 0) & (random.uniform(keys, (50,)) < 1)).all()


def test_compiled():
    keys = random.key([1, 2])
    laws.compiled(lambda keys: random.bits(random.fold_in(keys, 3), (5,)), keys, again=[(random.key([3, 4]),)])


def test_fold_in_broadcasts():
    keys = random.key([1, 2])
    both = random.fold_in(keys, torch.tensor([[7], [8], [9]]))
    assert both.shape == (3, 2, 2)
    asserts.assert_trees_equal(random.fold_in(keys[1], 9), both[2, 1])


def test_derived_keys_are_different():
    """Check that `fold_in`, `split` and `key` give different keys."""
    keys = random.key(list(range(50)))
    family = torch.cat(
        [keys, random.split(keys, 3).reshape(-1, 2), random.fold_in(keys, 5), random.fold_in(keys, 2**31)]
    )
    assert len(set(map(tuple, family.tolist()))) == len(family)


@pytest.mark.parametrize("seed", [-1, 2**32, [0, 2**32]])
def test_seeds_out_of_range(seed):
    with pytest.raises(ValueError, match=r"seed: expected integers in \[0, 2\*\*32\)"):
        random.key(seed)


def test_invalid_seeds_and_keys_are_refused():
    with pytest.raises(TypeError, match=r"seed: expected an integer dtype, got torch.float32"):
        random.key(1.5)
    with pytest.raises(TypeError, match="key: expected an integer dtype"):
        random.bits(torch.zeros(2))
    with pytest.raises(ValueError, match=r"key: expected shape \[... 2\], got \[3\]"):
        random.bits(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape: expected fewer than 2\*\*31 numbers"):
        random.bits(random.key(0), (2**16, 2**15))


def test_distributions():
    key = random.key(11)
    assert stats.kstest(random.uniform(key, (20_000,), torch.float64).numpy(), "uniform").pvalue > CHANCE
    assert stats.kstest(random.normal(key, (20_000,), torch.float64).numpy(), "norm").pvalue > CHANCE
    bits = random.bits(key, (20_000,))
    for position in (0, 1, 15, 31):
        assert abs(float(((bits >> position) & 1).double().mean()) - 0.5) < 0.015


@given(st.integers(1, 2**31 - 1))
def test_index_is_in_range_and_reaches_both_ends(size):
    bits = torch.tensor([0, 1, 2**31, 2**32 - 1])
    at = random.index(bits, size)
    assert at.tolist() == [int(w) * size >> 32 for w in bits]
    assert at[0] == 0
    assert at[-1] == size - 1


@pytest.mark.parametrize("size", [2**31 - 1, 2**31 - 2, 1_000_003])
def test_index_does_not_overflow_near_its_limit(size):
    bits = random.bits(random.key(1), (1000,))
    expected = [int(w) * size >> 32 for w in bits]
    assert random.index(bits, size).tolist() == expected
    assert random.index(bits, torch.tensor(size)).tolist() == expected


@given(strategies.keys(), st.integers(-(2**40), 2**40), st.integers(1, 2**31 - 1))
def test_randint_is_in_range(key, low, width):
    x = random.randint(key, (20,), low, low + width)
    assert ((x >= low) & (x < low + width)).all()
    assert x.dtype == torch.int64


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 2), (0, 2**31)])
def test_randint_refuses_an_empty_range(low, high):
    with pytest.raises(ValueError, match="high: expected low < high"):
        random.randint(random.key(0), (1,), low, high)


NOT_INT64 = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64)


@pytest.mark.parametrize("dtype", NOT_INT64)
@pytest.mark.parametrize("f", [random.unit, lambda bits: random.index(bits, 1000)], ids=["unit", "index"])
def test_bits_of_another_dtype_are_refused_also_under_vmap(f, dtype):
    """Refuse other dtypes: int32 bits would give the indices -1 and 0 of 1000, uint8 bits only 0."""
    bits = random.bits(random.key(0), (8,)).to(dtype)
    for call in (f, torch.func.vmap(f)):
        with pytest.raises(TypeError, match=f"^bits: expected torch.int64, got {dtype}"):
            call(bits)


def test_sizes_of_any_integer_dtype_are_widened():
    bits = random.bits(random.key(0), (8,))
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16):
        assert torch.equal(random.index(bits, torch.tensor(100, dtype=dtype)), random.index(bits, 100))


def test_data_of_any_integer_dtype_is_widened():
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16):
        asserts.assert_trees_equal(
            random.fold_in(random.key(0), torch.tensor(7, dtype=dtype)), random.fold_in(random.key(0), 7)
        )


def test_keys_and_data_beyond_32_bits_are_refused():
    for wrong in (2**32 + 5, -5):
        with pytest.raises(ValueError, match=rf"^data\[1\]: expected integers in \[0, 2\*\*32\), got {wrong}"):
            random.fold_in(random.key(0), torch.tensor([5, wrong]))
        with pytest.raises(ValueError, match=rf"^key\[1\]: expected integers in \[0, 2\*\*32\), got {wrong}"):
            random.bits(torch.tensor([0, wrong]))


def test_unit_uses_the_upper_bits():
    assert random.unit(torch.tensor([0, 511, 512, 2**32 - 1])).tolist() == [0.0, 0.0, 2.0**-23, 1 - 2.0**-23]


def test_normal_equals_jax_to_the_documented_relative_error():
    """Measure the error of a million numbers, including the tails, where the absolute error exceeds 6e-6."""
    stated = float(re.search(r"`normal` in float32 differs by a relative error of up\nto (\S+),", random.__doc__)[1])
    jax = pytest.importorskip("jax")
    ours = random.normal(random.key(1), (1_000_000,)).double()
    theirs = torch.from_numpy(np.array(jax.random.normal(jax.random.key(1), (1_000_000,)))).double()
    relative = ((ours - theirs) / theirs).abs().max().item()
    assert stated / 3 < relative <= stated
    assert (ours - theirs).abs().max() > stated


def test_normal_is_finite_for_all_bits():
    smallest = -1.0 + 2.0**-24
    assert torch.erfinv(torch.tensor(smallest)).isfinite()
    assert random.normal(random.key(0), (100_000,)).isfinite().all()


@pytest.mark.parametrize("data", [-1, 2**32])
def test_fold_in_refuses_data_out_of_range(data):
    with pytest.raises(ValueError, match=r"data: expected an integer in \[0, 2\*\*32\)"):
        random.fold_in(random.key(0), data)


def test_fold_in_refuses_fractions():
    with pytest.raises(TypeError, match="data: expected an integer dtype"):
        random.fold_in(random.key(0), torch.tensor(1.9))
    with pytest.raises(TypeError, match="key: expected an integer dtype"):
        random.fold_in(random.key(0).float(), 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_uniforms_never_round_up_to_one(dtype):
    with pytest.raises(TypeError, match=r"dtype: expected torch.float32 or torch.float64"):
        random.uniform(random.key(0), (3,), dtype)
