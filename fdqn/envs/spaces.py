"""Observations of Gymnasium's spaces as arrays, a batch at a time."""

import math
from collections.abc import Callable
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

    - Box: as they are, float64 as float32, integers of more than 8 bits as float32; a number becomes [1], and pictures
      [H, W, 1, 3 or 4] of uint8 have their channels first, as convolutions take them;
    - Discrete and MultiDiscrete: one-hot booleans; MultiBinary: booleans;
    - Dict and Tuple: the only entry as it is, of several the flat concatenation, booleans only where all are. The entry
      `action_mask` is left out.

    Raises ValueError for other spaces.
    """
    if isinstance(space, spaces.Box):
        dtype = np.dtype(space.dtype if space.dtype in (np.uint8, np.bool_) else np.float32)
        if not space.shape:
            return Encoding((1,), dtype, lambda x: np.array(x, dtype=dtype).reshape(-1, 1))
        if len(space.shape) == 3 and space.shape[2] in (1, 3, 4) and dtype == np.uint8:
            height, width, channels = space.shape
            return Encoding((channels, height, width), dtype, lambda x: np.array(np.moveaxis(x, -1, 1), order="C"))
        return Encoding(space.shape, dtype, lambda x: np.array(x, dtype=dtype))
    if isinstance(space, spaces.MultiBinary):
        return Encoding(space.shape, np.dtype(np.bool_), lambda x: np.array(x, dtype=np.bool_))
    if isinstance(space, spaces.Discrete):
        values = np.arange(int(space.n)) + int(space.start)
        return Encoding(values.shape, np.dtype(np.bool_), lambda x: np.asarray(x)[..., None] == values)
    if isinstance(space, spaces.MultiDiscrete):
        starts = np.asarray(space.start).ravel()
        sizes = np.asarray(space.nvec).ravel()
        digits = np.concatenate([np.arange(n) + start for n, start in zip(sizes, starts, strict=True)])

        def one_hot(x: Any) -> NDArray[Any]:
            return np.repeat(np.reshape(x, (len(x), -1)), sizes, axis=1) == digits

        return Encoding(digits.shape, np.dtype(np.bool_), one_hot)
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


def _concatenation(parts: dict[Any, Encoding]) -> Encoding:
    """Several observations, each flat, one after the other."""
    dtype = np.dtype(np.bool_ if all(part.dtype == np.bool_ for part in parts.values()) else np.float32)

    def encode(x: Any) -> NDArray[Any]:
        flat = [np.reshape(part.encode(x[key]), (-1, math.prod(part.shape))) for key, part in parts.items()]
        return np.concatenate(flat, axis=1, dtype=dtype)

    return Encoding((sum(math.prod(part.shape) for part in parts.values()),), dtype, encode)
