"""Pack boolean observations into bytes, eight flags to a byte.

Flag `8 k + i` is bit `i` of byte `k`, as in `numpy.packbits(bitorder="little")`. Unused bits of the last byte are 0.
"""

import functools
import math
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fdqn import check
from fdqn.types import Added, Buffer, Sample, Transition


class Packed(NamedTuple):
    """State of a buffer whose boolean observations are packed."""

    unpacked: dict[str, Tensor]
    """For each packed field, an empty tensor bool [0, *O] that records the shape of the observations.

    It is part of the state so that a checkpoint of observations of another size is rejected even if both take the same
    number of bytes, such as 465 and 468 booleans.
    """
    buffer: Any
    """State of the wrapped buffer."""


def wrap(buffer: Buffer) -> Buffer:
    """Wrap `buffer` so that it stores boolean observations [*O] as bytes [size(O)]; other dtypes are unchanged.

    Raises ValueError for a buffer that requires unpacked observations, such as one made by `frames.wrap`.
    """
    if "observations" in buffer.needs:
        raise ValueError(
            "buffer: expected one that stores any observations, such as ring or n_step, got one that needs them "
            "unpacked; wrap it in packing before frames"
        )
    return Buffer(
        init=partial(_init, buffer),
        add=partial(_add, buffer),
        sample=partial(_sample, buffer),
        update=partial(_update, buffer),
        size=partial(_size, buffer),
        cut=partial(_cut, buffer),
        bounds=partial(_bounds, buffer),
        needs=buffer.needs,
    )


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
    # On a CPU, a sum over an axis of eight takes 15 times as long as eight ORs, and `cat` 3 times as long as `pad`.
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


def _init(buffer: Buffer, example: Transition) -> Packed:
    check.stored("example", example)
    observations = {"obs": example.obs, "next_obs": example.next_obs}
    unpacked = {name: x.new_zeros((0, *x.shape)) for name, x in observations.items() if x.dtype == torch.bool}
    packed = {name: _bytes(observations[name].unsqueeze(0)).squeeze(0) for name in unpacked}
    return Packed(unpacked, buffer.init(example._replace(**packed)))


def _add(
    buffer: Buffer, state: Packed, batch: Transition, ended: Tensor, valid: Tensor | None, gamma: Tensor
) -> tuple[Packed, Added]:
    for name, like in state.unpacked.items():
        check.same(f"batch.{name}", like.new_zeros((batch.reward.shape[0], *like.shape[1:])), getattr(batch, name))
    packed = batch._replace(**{name: _bytes(getattr(batch, name)) for name in state.unpacked})
    inner, added = buffer.add(state.buffer, packed, ended, valid, gamma)
    return state._replace(buffer=inner), added._replace(batch=_unpacked(state.unpacked, added.batch))


def _sample(buffer: Buffer, state: Packed, bits: Tensor, oldest: Tensor | int = 0) -> Sample:
    rows = buffer.sample(state.buffer, bits, oldest)
    return rows._replace(batch=_unpacked(state.unpacked, rows.batch))


def _update(buffer: Buffer, state: Packed, indices: Tensor, priority: Tensor) -> Packed:
    return state._replace(buffer=buffer.update(state.buffer, indices, priority))


def _size(buffer: Buffer, state: Packed, oldest: Tensor | int = 0) -> Tensor:
    return buffer.size(state.buffer, oldest)


def _cut(buffer: Buffer, state: Packed) -> Packed:
    return state._replace(buffer=buffer.cut(state.buffer))


def _bounds(buffer: Buffer, state: Packed, steps: int) -> dict[str, tuple[Tensor, int]]:
    return buffer.bounds(state.buffer, steps)


def _bytes(flags: Tensor) -> Tensor:
    """Pack booleans [B, *O] into bytes [B, size(O)]."""
    return pack(flags.reshape(flags.shape[0], math.prod(flags.shape[1:])))


def _unpacked(shapes: dict[str, Tensor], rows: Transition) -> Transition:
    """Unpack the observations of rows [B, ...] to the recorded shapes."""

    def flags(name: str) -> Tensor:
        packed, shape = getattr(rows, name), shapes[name].shape[1:]
        return unpack(packed, math.prod(shape)).reshape(packed.shape[0], *shape)

    return rows._replace(**{name: flags(name) for name in shapes})
