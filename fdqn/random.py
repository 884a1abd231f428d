"""Random numbers from keys, as in `jax.random`.

A key [..., 2] is two 32-bit integers stored as int64. All functions are pure and batched over the leading axes of their
keys. They use the Threefry-2x32 counter-based generator with partitionable keys and return the numbers of `jax.random`:
`key, split, fold_in, bits` and `uniform` are equal bit for bit; `normal` in float32 differs by a relative error of up
to 6e-6, the error of jax.random itself in the tails.
Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".

Threefry is computed in int32, whose additions wrap and which PyTorch vectorizes, unlike uint32.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fdqn import check

# Upper bound of the factor of a 32-bit integer, so that the product fits in int64.
_SIZES = 2**31

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def key(seed: int | Sequence[int] | Tensor) -> Tensor:
    """Make a key [..., 2] from a seed or an array of seeds [...].

    Raises ValueError for a seed outside [0, 2**32) and TypeError for one that is not an integer.
    """
    try:
        seeds = torch.as_tensor(seed)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"seed: expected an integer in [0, 2**32) or an array of them, got {seed!r}") from None
    check.integer("seed", seeds)
    seeds = seeds.to(torch.int64)
    if ((seeds < 0) | (seeds >= 2**32)).any():
        raise ValueError(f"seed: expected integers in [0, 2**32), got {seeds.min().item()} to {seeds.max().item()}")
    return torch.stack([torch.zeros_like(seeds), seeds], -1)


def split(key: Tensor, num: int = 2) -> Tensor:
    """Split a key [..., 2] into `num` independent keys [..., num, 2]. Raises ValueError for `num` below 1."""
    check.count("num", num, 1)
    return torch.stack(_outputs(key, (num,)), -1)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """Derive a key from a key [..., 2] and `data`, integers in [0, 2**32) that broadcast against the leading axes.

    Raises TypeError for data that are not integers and ValueError for data out of range, those of a tensor if they can
    be read.
    """
    _check_key(key)
    if not isinstance(data, Tensor):
        if isinstance(data, bool) or not isinstance(data, int):
            raise TypeError(f"data: expected an integer, got {data!r}")
        if not 0 <= data < 2**32:
            raise ValueError(f"data: expected an integer in [0, 2**32), got {data}")
        # Created on the device, because a copy from the host would synchronize.
        data = torch.full((), data, dtype=torch.int64, device=key.device)
    check.integer("data", data)
    # In int64 first, so that any integer dtype is accepted and the range can be checked.
    check.bits("data", data := data.to(torch.int64))
    data = data.to(key.device)
    zero = torch.zeros((), dtype=torch.int32, device=key.device)
    k0, k1 = _to_int32(key).unbind(-1)
    return torch.stack([_to_int64(x) for x in _threefry(k0, k1, zero, _to_int32(data))], -1)


def bits(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Draw random 32-bit integers [..., *shape], int64 in [0, 2**32)."""
    x0, x1 = _outputs(key, shape)
    return x0 ^ x1


def uniform(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw uniform numbers [..., *shape] in [0, 1), multiples of 2**-23."""
    return unit(bits(key, shape), dtype)


def unit(bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert random bits [...], int64 in [0, 2**32), to uniforms in [0, 1) from their upper 23 bits.

    Raises TypeError unless `bits` is int64 and `dtype` is float32 or float64 (narrower ones would round some values up
    to 1), and ValueError for bits out of range, if values can be read.
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    check.bits("bits", bits)
    return (bits >> 9).to(dtype) * 2.0**-23


def index(bits: Tensor, size: int | Tensor) -> Tensor:
    """Convert random bits [...], int64 in [0, 2**32), to indices in [0, size): `(bits * size) >> 32`.

    `size` is in [1, 2**31). All 32 bits are used, because the 23 bits of float32 uniforms are visibly uneven over a
    million rows.

    Raises TypeError for bits of another dtype or a size that is not an integer, and ValueError for numbers out of
    range, those of a tensor if they can be read.
    """
    check.bits("bits", bits)
    if isinstance(size, Tensor):
        check.integer("size", size)
        size = size.to(torch.int64)
        if check.seen((size < 1) | (size >= _SIZES)):
            raise ValueError(f"size: expected integers in [1, 2**31), got {size.min().item()} to {size.max().item()}")
    else:
        check.count("size", size, 1)
        if size >= _SIZES:
            raise ValueError(f"size: expected a number below 2**31, got {size}")
    return (bits * size) >> 32


def randint(key: Tensor, shape: Sequence[int], low: int, high: int) -> Tensor:
    """Draw integers [..., *shape] in [low, high), int64.

    Raises TypeError for bounds that are not integers and ValueError unless 0 < high - low < 2**31.
    """
    for name, bound in (("low", low), ("high", high)):
        if isinstance(bound, bool) or not isinstance(bound, int):
            raise TypeError(f"{name}: expected an integer, got {bound!r}")
    if not 0 < high - low < _SIZES:
        raise ValueError(f"high: expected low < high < low + 2**31, got low {low}, high {high}")
    if low < -(2**63) or high > 2**63:
        raise ValueError(f"low, high: expected integers that int64 holds, got low {low}, high {high}")
    return low + index(bits(key, shape), high - low)


def normal(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw standard normal numbers [..., *shape] by inverse transform: `sqrt(2) erfinv(v)`, v uniform in (-1, 1)."""
    return normal_from_uniform(uniform(key, shape, dtype))


def normal_from_uniform(u: Tensor) -> Tensor:
    """Convert uniforms [...] in [0, 1) to standard normal numbers by inverse transform, as `normal` does.

    Raises TypeError unless `u` is floating-point, and ValueError for a number outside [0, 1), if values can be read.
    """
    check.uniforms("u", u)
    smallest = -1.0 + 2.0**-24
    return math.sqrt(2) * torch.erfinv((u * 2.0 + smallest).clamp_min(smallest))


def _outputs(key: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the two outputs [..., *shape] of Threefry at the counters 0, 1, 2, ..., the flat index into `shape`."""
    _check_key(key)
    check.sizes("shape", shape)
    count = math.prod(shape)
    if count >= 2**31:
        raise ValueError(f"shape: expected fewer than 2**31 numbers per key, got {count}")
    counter = torch.arange(count, dtype=torch.int32, device=key.device)
    k0, k1 = (k.unsqueeze(-1) for k in _to_int32(key).unbind(-1))
    x0, x1 = _threefry(k0, k1, torch.zeros_like(counter), counter)
    full = (*key.shape[:-1], *shape)
    return _to_int64(x0).reshape(full), _to_int64(x1).reshape(full)


def _check_key(key: Tensor) -> None:
    """Raise unless `key` [..., 2] is a tensor of integers which, if they can be read, are in [0, 2**32)."""
    check.shapes("key[... 2]", key)
    check.integer("key", key)
    check.bits("key", key.to(torch.int64))


def _threefry(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the twenty rounds of Threefry-2x32 to int32 keys and counters, which broadcast."""
    keys = (k0, k1, k0 ^ k1 ^ 0x1BD11BDA)
    x0, x1 = x0 + k0, x1 + k1
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = _rotate_left(x1, rotation) ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + (keys[(group + 2) % 3] + (group + 1))
    return x0, x1


def _rotate_left(x: Tensor, by: int) -> Tensor:
    # `>>` of int32 is arithmetic, so the copies of the sign bit are masked out.
    return (x << by) | ((x >> (32 - by)) & ((1 << by) - 1))


def _to_int32(x: Tensor) -> Tensor:
    # Map the upper half of the 32-bit range to negative numbers explicitly; narrowing casts are undefined there.
    x = x.to(torch.int64)
    return torch.where(x >= 2**31, x - 2**32, x).to(torch.int32)


def _to_int64(x: Tensor) -> Tensor:
    return x.to(torch.int64) & 0xFFFFFFFF
