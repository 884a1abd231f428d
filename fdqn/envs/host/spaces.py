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

    - Box: booleans and uint8 up to 255 as they are, all else as float32, also counts and flags in uint8; a number
      becomes [1], and pictures [H, W, C] have their channels first, as convolutions take them. Pictures are of at least
      10 x 10 and have at most 16 channels, fewer than rows and columns or, as MinAtar's Seaquest, as many as both;
    - Discrete and MultiDiscrete: one-hot booleans; MultiBinary: booleans. What is not in the space raises ValueError;
    - Dict and Tuple: the only entry as it is, of several the flat concatenation: booleans or uint8 where all are, else
      float32, uint8 divided by 255 as networks do. The entry `action_mask` is left out.

    However large the space is, nothing of its size is allocated before an observation is encoded. Raises ValueError for
    other spaces.
    """
    if isinstance(space, spaces.Box):
        kept = space.dtype == np.bool_ or (space.dtype == np.uint8 and np.max(space.high, initial=0) == 255)
        dtype = np.dtype(space.dtype if kept else np.float32)
        if not space.shape:
            return Encoding((1,), dtype, partial(_column, dtype))
        if _has_channels_last(space.shape):
            height, width, channels = space.shape
            return Encoding((channels, height, width), dtype, partial(_channels_first, dtype))
        return Encoding(space.shape, dtype, partial(np.array, dtype=dtype))
    if isinstance(space, spaces.MultiBinary):
        return Encoding(space.shape, np.dtype(np.bool_), partial(_flags, space))
    if isinstance(space, spaces.Discrete):
        return _one_hots(space, [int(space.n)], [int(space.start)])
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hots(space, np.ravel(space.nvec).tolist(), np.ravel(space.start).tolist())
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        parts = {key: encoding(each) for key, each in items if key != MASK}
        if len(parts) == 1:
            ((key, part),) = parts.items()
            return part._replace(encode=partial(_entry, key, part))
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


def _column(dtype: np.dtype, x: Any) -> NDArray[Any]:
    return np.array(x, dtype=dtype).reshape(-1, 1)


def _channels_first(dtype: np.dtype, x: Any) -> NDArray[Any]:
    return np.array(np.moveaxis(x, -1, 1), dtype=dtype, order="C")


def _entry(key: Any, part: Encoding, x: Any) -> NDArray[Any]:
    return part.encode(x[key])


def _one_hots(space: spaces.Space, sizes: list[int], starts: list[int]) -> Encoding:
    """Encode integers, each with `sizes[i]` values from `starts[i]` on, as concatenated one-hot booleans."""
    return Encoding((sum(sizes),), np.dtype(np.bool_), partial(_one_hot, space, np.array(sizes), np.array(starts)))


def _one_hot(space: spaces.Space, sizes: NDArray[Any], starts: NDArray[Any], x: Any) -> NDArray[np.bool_]:
    """A batch of numbers as booleans [N, V], each number true at its place among the values that it may have. Raises
    ValueError for a number that has another."""
    places = np.reshape(x, (len(x), -1)) - starts
    wrong = ~((places >= 0) & (places < sizes) & (places == np.floor(places)))
    if wrong.any():
        raise ValueError(f"env: expected observations in {space}, got {np.asarray(x)[wrong.any(1).argmax()]}")
    flags = np.zeros((len(places), sizes.sum()), np.bool_)
    flags[np.arange(len(places))[:, None], places.astype(np.int64) + sizes.cumsum() - sizes] = True
    return flags


def _flags(space: spaces.Space, x: Any) -> NDArray[np.bool_]:
    """A batch of zeros and ones as booleans. Raises ValueError for other numbers."""
    flags = np.array(x, dtype=np.bool_)
    if (wrong := np.asarray(x) != flags).any():
        raise ValueError(f"env: expected observations in {space}, got {np.asarray(x)[wrong][0]}")
    return flags


def _concatenation(parts: dict[Any, Encoding]) -> Encoding:
    """Several observations, each flat, one after the other."""
    dtypes = {part.dtype for part in parts.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    return Encoding((sum(math.prod(part.shape) for part in parts.values()),), dtype, partial(_flat, parts, dtype))


def _flat(parts: dict[Any, Encoding], dtype: np.dtype, x: Any) -> NDArray[Any]:
    flat = [np.reshape(part.encode(x[key]), (-1, math.prod(part.shape))) for key, part in parts.items()]
    scaled = [each / np.float32(255) if each.dtype == np.uint8 != dtype else each for each in flat]
    return np.concatenate(scaled, axis=1, dtype=dtype)
