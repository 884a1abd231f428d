"""Booleans packed eight to a byte: flag `8 k + i` is bit `i` of byte `k`, NumPy's `bitorder="little"`.

Unused bits of the last byte are 0.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fdqn import check


def pack(flags: Tensor) -> Tensor:
    """Pack booleans [..., N] into bytes, uint8 [..., size(N)].

        byte[k] = sum over i of flag[8 k + i] * 2**i

    Raises TypeError for another dtype and ValueError for a tensor without axes.
    """
    check.shapes("flags[... N]", flags)
    check.boolean("flags", flags)
    *leading, count = flags.shape
    filled = F.pad(flags.to(torch.uint8), (0, 8 * size(count) - count))
    eights = filled.reshape(*leading, size(count), 8)
    # Eight ORs: on a CPU, a sum over an axis of eight takes 15 times as long, and `cat` instead of `pad` 3 times.
    return functools.reduce(torch.bitwise_or, [eights[..., i] << i for i in range(8)])


def unpack(packed: Tensor, count: int) -> Tensor:
    """Unpack bytes, uint8 [..., size(N)], into `count` booleans [..., N].

        flag[8 k + i] = bit i of byte[k]

    Raises ValueError for another number of bytes and TypeError for another dtype.
    """
    check.shapes(f"packed[... {size(count)}]", packed)
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed: expected torch.uint8, got {packed.dtype}")
    eights = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return eights.reshape(*packed.shape[:-1], 8 * packed.shape[-1])[..., :count].to(torch.bool)


def size(count: int) -> int:
    """Return the number of bytes that `count` packed booleans take: ceil(count / 8)."""
    return math.ceil(count / 8)
