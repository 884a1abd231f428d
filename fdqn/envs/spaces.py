"""Observations of Gymnasium's spaces as arrays, a batch at a time."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

MASK = "action_mask"
"""The key under which observations or infos say what may be done."""


class Encoding(NamedTuple):
    """Observations of a space, a batch at a time, as one array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    encode: Callable[[Any], NDArray[Any]]
    """A batch of the space, as vector environments give it, to [N, *shape] of its own memory."""


def encoding(space: spaces.Space) -> Encoding:
    """How observations of a space become arrays.

    - Box: uint8 and booleans as they are, all else as float32; a number becomes [1], and pictures [H, W, C] have their
      channels first, as convolutions take them. Pictures are of at least 10 x 10 and have at most 16 channels, fewer
      than rows and columns or, as MinAtar's Seaquest, as many as both;
    - Discrete and MultiDiscrete: one-hot booleans; MultiBinary: booleans. What is not in the space raises ValueError;
    - Dict and Tuple: the only entry as it is, of several the flat concatenation, booleans only where all are. The entry
      `action_mask` is left out.

    Raises ValueError for other spaces.
    """
    if isinstance(space, spaces.Box):
        dtype = np.dtype(space.dtype if space.dtype in (np.uint8, np.bool_) else np.float32)
        if not space.shape:
            return Encoding((1,), dtype, lambda x: np.array(x, dtype=dtype).reshape(-1, 1))
        if _has_channels_last(space.shape):
            height, width, channels = space.shape
            first = channels, height, width
            return Encoding(first, dtype, lambda x: np.array(np.moveaxis(x, -1, 1), dtype=dtype, order="C"))
        return Encoding(space.shape, dtype, lambda x: np.array(x, dtype=dtype))
    if isinstance(space, spaces.MultiBinary):
        return Encoding(space.shape, np.dtype(np.bool_), partial(_flags, space))
    if isinstance(space, spaces.Discrete):
        values = np.arange(int(space.n)) + int(space.start)
        return Encoding(values.shape, np.dtype(np.bool_), partial(_one_hot, space, values, len(values)))
    if isinstance(space, spaces.MultiDiscrete):
        starts = np.asarray(space.start).ravel()
        sizes = np.asarray(space.nvec).ravel()
        values = np.concatenate([np.arange(n) + start for n, start in zip(sizes, starts, strict=True)])
        return Encoding(values.shape, np.dtype(np.bool_), partial(_one_hot, space, values, sizes))
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        parts = {key: encoding(each) for key, each in items if key != MASK}
        if len(parts) == 1:
            ((key, part),) = parts.items()
            return part._replace(encode=lambda x: part.encode(x[key]))
        if parts:
            return _concatenation(parts)
    raise ValueError(
        "env: expected observations of a Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple space, got "
        f"{space}; wrap the environment so that it gives one of these"
    )


def _has_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether observations of that shape are pictures [H, W, C], by the rule that `encoding` states."""
    if len(shape) != 3:
        return False
    height, width, channels = shape
    side = min(height, width)
    return side >= 10 and channels <= 16 and (channels < side or height == width == channels)


def _one_hot(space: spaces.Space, values: NDArray[Any], sizes: Any, x: Any) -> NDArray[np.bool_]:
    """A batch of numbers as booleans [N, V], each number true where its value stands among those that it may have, of
    which `sizes` says how many there are. Raises ValueError for a number that has another."""
    numbers = np.reshape(x, (len(x), -1))
    flags = np.repeat(numbers, sizes, axis=1) == values
    if np.count_nonzero(flags) < numbers.size:
        raise ValueError(f"env: expected observations in {space}, got {np.asarray(x)[flags.sum(axis=1).argmin()]}")
    return flags


def _flags(space: spaces.Space, x: Any) -> NDArray[np.bool_]:
    """A batch of zeros and ones as booleans. Raises ValueError for other numbers."""
    flags = np.array(x, dtype=np.bool_)
    if (wrong := np.asarray(x) != flags).any():
        raise ValueError(f"env: expected observations in {space}, got {np.asarray(x)[wrong][0]}")
    return flags


def _concatenation(parts: dict[Any, Encoding]) -> Encoding:
    """Several observations, each flat, one after the other."""
    dtype = np.dtype(np.bool_ if all(part.dtype == np.bool_ for part in parts.values()) else np.float32)

    def encode(x: Any) -> NDArray[Any]:
        flat = [np.reshape(part.encode(x[key]), (-1, math.prod(part.shape))) for key, part in parts.items()]
        return np.concatenate(flat, axis=1, dtype=dtype)

    return Encoding((sum(math.prod(part.shape) for part in parts.values()),), dtype, encode)
