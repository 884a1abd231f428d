"""Packed booleans: the bytes equal those of NumPy and unpack to the input, for any length."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plants import rejects

from fdqn import random
from fdqn.replay import packing
from fdqn.testing import asserts, laws, strategies

COUNTS = (0, 1, 7, 8, 9, 63, 64, 65, 468)

SHAPES = st.tuples(st.lists(st.integers(0, 3), max_size=2), st.integers(0, 20)).map(lambda x: (*x[0], x[1]))


def flags(*shape):
    return random.bits(random.key(len(shape)), shape) % 2 == 1


def assert_packs_as_numpy(x, pack=packing.pack, unpack=packing.unpack):
    """Compare the bytes with `numpy.packbits` and the unpacked values with the input."""
    packed = pack(x)
    asserts.assert_trees_equal(torch.from_numpy(np.packbits(x.numpy(), -1, "little")), packed, "packed: ")
    asserts.assert_trees_equal(x, unpack(packed, x.shape[-1]), "unpacked: ")


@given(SHAPES.flatmap(lambda shape: strategies.masks(shape, at_least_one=False)))
def test_packing_equals_numpy(x):
    assert_packs_as_numpy(x)


@pytest.mark.parametrize("count", COUNTS)
def test_any_length_round_trips(count):
    x = flags(5, count)
    assert_packs_as_numpy(x)
    assert_packs_as_numpy(x | True)
    assert_packs_as_numpy(x[0])
    assert packing.pack(x).shape == (5, packing.size(count))


def test_sizes_in_bytes():
    assert [packing.size(count) for count in COUNTS] == [0, 1, 1, 1, 2, 8, 8, 9, 59]


def test_unpacking_of_every_byte_equals_numpy():
    every = torch.arange(256, dtype=torch.uint8).unsqueeze(-1)
    expected = np.unpackbits(every.numpy(), -1, bitorder="little").astype(bool)
    asserts.assert_trees_equal(torch.from_numpy(expected), packing.unpack(every, 8))


def test_planted_bugs_are_rejected():
    x = flags(4, 11)
    with rejects("packed: "):  # the other bit order, which also round-trips
        assert_packs_as_numpy(
            x, lambda x: packing.pack(x.flip(-1)), lambda packed, count: packing.unpack(packed, count).flip(-1)
        )
    with rejects("packed: "):  # drops the last, partly filled byte
        assert_packs_as_numpy(x, lambda x: packing.pack(x[..., : x.shape[-1] // 8 * 8]))
    with rejects("unpacked: "):  # reversed bits in each byte
        assert_packs_as_numpy(
            x, unpack=lambda packed, _: packing.unpack(packed, 16).reshape(4, 2, 8).flip(-1).flatten(1)[:, :11]
        )
    with rejects("unpacked: "):  # whole bytes, with flags that were never packed
        assert_packs_as_numpy(x, unpack=lambda packed, _: packing.unpack(packed, 16))


@pytest.mark.parametrize("count", [8, 11])
def test_laws_of_a_function(count):
    x = flags(2, 3, count)
    packed = laws.pure(packing.pack, x)
    laws.pure(packing.unpack, packed, count)
    laws.ranked(packing.pack, x, leading=2)
    laws.ranked(lambda packed: packing.unpack(packed, count), packed, leading=2)
    laws.compiled(packing.pack, x)
    laws.compiled(lambda packed: packing.unpack(packed, count), packed)


def test_messages():
    with pytest.raises(TypeError, match=r"^flags: expected torch.bool, got torch.float32"):
        packing.pack(torch.zeros(3))
    with pytest.raises(ValueError, match=r"^flags: expected shape \[... N\], got \[\]"):
        packing.pack(torch.tensor(True))
    with pytest.raises(TypeError, match=r"^packed: expected torch.uint8, got torch.int64"):
        packing.unpack(torch.zeros(2, dtype=torch.int64), 9)
    with pytest.raises(ValueError, match=r"^packed: expected shape \[... 2\], got \[1, 3\]"):
        packing.unpack(torch.zeros(1, 3, dtype=torch.uint8), 9)
