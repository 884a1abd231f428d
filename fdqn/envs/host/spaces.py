"""Conversion of observations from Gymnasium's spaces to arrays, a batch at a time."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

MASK = "action_mask"
"""Key of the legal actions in observations and infos."""


class Encoding(NamedTuple):
    """Conversion of a space's observations, a batch at a time, to one array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    encode: Callable[[Any], NDArray[Any]]
    """Convert a batch, as vector environments return it, to a new array [N, *shape]."""


def encoding(space: spaces.Space) -> Encoding:
    """Choose the conversion for an observation space.

    - Box: booleans, and uint8 whose bound is 255, keep their dtype; everything else becomes float32, including counts
      and flags in uint8. A scalar gets the shape [1]. Pictures [H, W, C] become [C, H, W], as convolutions take them. A
      picture has at least 10 x 10 pixels and at most 16 channels: fewer than rows and columns, or equally many as in
      MinAtar's Seaquest.
    - Discrete and MultiDiscrete become one-hot booleans, MultiBinary booleans. `encode` raises ValueError for values
      outside of the space.
    - Dict and Tuple without the entry `action_mask`: a single entry is converted by itself; several are flattened and
      concatenated, as booleans or uint8 if all are, else as float32 with uint8 divided by 255, as networks do.

    No memory of the space's size is allocated before an observation is encoded. Raises ValueError for other spaces.
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
    """Return True if observations of this shape are pictures [H, W, C], by the rule in `encoding`."""
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
    """Encode integers [N, ...] as concatenated one-hot booleans [N, V]. Raises ValueError outside of the space."""
    places = np.reshape(x, (len(x), -1)) - starts
    wrong = ~((places >= 0) & (places < sizes) & (places == np.floor(places)))
    if wrong.any():
        raise ValueError(f"env: expected observations in {space}, got {np.asarray(x)[wrong.any(1).argmax()]}")
    flags = np.zeros((len(places), sizes.sum()), np.bool_)
    flags[np.arange(len(places))[:, None], places.astype(np.int64) + sizes.cumsum() - sizes] = True
    return flags


def _flags(space: spaces.Space, x: Any) -> NDArray[np.bool_]:
    """Convert a batch of zeros and ones to booleans. Raises ValueError for other numbers."""
    flags = np.array(x, dtype=np.bool_)
    if (wrong := np.asarray(x) != flags).any():
        raise ValueError(f"env: expected observations in {space}, got {np.asarray(x)[wrong][0]}")
    return flags


def _concatenation(parts: dict[Any, Encoding]) -> Encoding:
    """Flatten and concatenate several observations."""
    dtypes = {part.dtype for part in parts.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    return Encoding((sum(math.prod(part.shape) for part in parts.values()),), dtype, partial(_flat, parts, dtype))


def _flat(parts: dict[Any, Encoding], dtype: np.dtype, x: Any) -> NDArray[Any]:
    flat = [np.reshape(part.encode(x[key]), (-1, math.prod(part.shape))) for key, part in parts.items()]
    scaled = [each / np.float32(255) if each.dtype == np.uint8 != dtype else each for each in flat]
    return np.concatenate(scaled, axis=1, dtype=dtype)
