"""A wrapper that checks the values of `reset` and `step` of a single environment against Gymnasium's API."""

import reprlib
from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from fdqn.envs.host.spaces import MASK

LIVES = "lives"
"""Key of the number of lives in infos."""


class Checked(gymnasium.Wrapper):
    """Check every value that an environment returns. Raises ValueError with the name of an invalid one.

    A reward may be an array of one number. `lives` that are not a number and a mask of None are dropped from infos. If
    neither observation nor info has a mask, it is read from a method `action_masks()` (the convention of sb3-contrib),
    except after termination. With `only_used`, all other infos are dropped, because a vector environment may fail to
    stack infos whose types differ between environments.
    """

    def __init__(self, env: gymnasium.Env, only_used: bool = False) -> None:
        super().__init__(env)
        self._only_used = only_used
        space = self.observation_space
        self._shape = space.shape if isinstance(space, Box) else None
        self._masks = env.get_wrapper_attr("action_masks") if env.has_wrapper_attr("action_masks") else None

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        """Reset, and check observation and info."""
        try:
            result = self.env.reset(**how)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise ValueError(
                f"env: expected reset to take seed and options, got {error}; take both, as since Gym 0.26"
            ) from error
        obs, info = reset_values(result)
        self._check_shape("reset", obs)
        return obs, self._info(obs, info, ended=False)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and check observation, reward, terminated, truncated and info."""
        result = self.env.step(action)
        if self._is_plain(result):
            return result
        obs, reward, terminated, truncated, info = step_values(result)
        self._check_shape("step", obs)
        ends = _flag("terminated", terminated), _flag("truncated", truncated)
        return obs, _number("reward", reward), *ends, self._info(obs, info, ended=ends[0])

    def _is_plain(self, result: Any) -> bool:
        """Return True for values of exactly the types that most environments return; no further check is needed."""
        return (
            self._masks is None
            and type(result) is tuple
            and len(result) == 5
            and type(result[1]) is float
            and type(result[2]) is bool
            and type(result[3]) is bool
            and result[4] == {}
            and (self._shape is None or getattr(result[0], "shape", None) == self._shape)
        )

    def _check_shape(self, method: str, obs: Any) -> None:
        # Try the attribute first: `np.shape` takes longer than a step of some environments.
        if self._shape is None or getattr(obs, "shape", None) == self._shape or np.shape(obs) == self._shape:
            return
        raise ValueError(
            f"env: expected {method} to return an observation of shape {list(self._shape)}, got "
            f"{list(np.shape(obs))} of {type(obs).__name__}"
        )

    def _info(self, obs: Any, info: Mapping[str, Any], ended: bool) -> dict[str, Any]:
        if not info and self._masks is None:
            return {}
        kept = {key: x for key, x in info.items() if key not in (MASK, LIVES) and not self._only_used}
        if _is_count(lives := np.asarray(info.get(LIVES))):
            kept[LIVES] = int(lives.item())
        mask = info.get(MASK)
        if mask is None and callable(self._masks) and not ended and not (isinstance(obs, dict) and MASK in obs):
            mask = self._masks()
        return kept if mask is None else {**kept, MASK: np.asarray(mask)}


def check_environments(vector: VectorEnv) -> VectorEnv:
    """Wrap the environments of a `SyncVectorEnv` in `Checked`; other vector environments are returned unchanged."""
    inner = vector.unwrapped
    if isinstance(inner, SyncVectorEnv):
        # Keep all infos if there are vector wrappers, which may read any of them.
        inner.envs = [Checked(env, only_used=inner is vector) for env in inner.envs]
    return vector


def reset_values(result: Any) -> tuple[Any, Mapping[str, Any]]:
    """Unpack the result of `reset`, (obs, info). Raises ValueError for anything else."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise ValueError(
            f"env: expected reset to return (obs, info), got {_kind(result)}; return both, as since Gym 0.26"
        )
    _check_info("reset", result[1])
    return result[0], result[1]


def step_values(result: Any) -> tuple[Any, Any, Any, Any, Mapping[str, Any]]:
    """Unpack the result of `step`, (obs, reward, terminated, truncated, info). Raises ValueError for anything else."""
    if not isinstance(result, tuple | list) or len(result) != 5:
        raise ValueError(
            f"env: expected step to return (obs, reward, terminated, truncated, info), got {_kind(result)}; return "
            "all five, as since Gym 0.26"
        )
    _check_info("step", result[4])
    return result[0], result[1], result[2], result[3], result[4]


def _check_info(method: str, info: Any) -> None:
    if type(info) is not dict and not isinstance(info, Mapping):
        raise ValueError(f"env: expected {method} to return a dict as its info, got {reprlib.repr(info)}")


def _number(name: str, x: Any) -> float:
    if isinstance(x, float):
        return x
    array = np.asarray(x)
    if array.dtype.kind not in "biuf" or array.size != 1:
        raise ValueError(f"env: expected step to return a number as its {name}, got {reprlib.repr(x)}")
    return float(array.item())


def _flag(name: str, x: Any) -> bool:
    if isinstance(x, bool):
        return x
    array = np.asarray(x)
    if array.dtype.kind not in "biuf" or array.size != 1 or array.item() not in (0, 1):
        raise ValueError(f"env: expected step to return a bool as its {name}, got {reprlib.repr(x)}")
    return bool(array.item())


def _is_count(x: NDArray[Any]) -> bool:
    return x.dtype.kind in "iuf" and x.size == 1 and bool(np.isfinite(x).all())


def _kind(result: Any) -> str:
    return f"{len(result)} values" if isinstance(result, tuple | list) else type(result).__name__
