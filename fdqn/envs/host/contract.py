"""Open host environments and check that they follow the protocols `HostVectorEnv` and `RecordingEnv`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fdqn import check
from fdqn.types import EnvSpec, HostEnv, HostStep, HostVectorEnv, RecordingEnv, Step


def open_host(env: HostEnv, seeds: int, num_envs: int) -> HostVectorEnv:
    """Open `num_envs` environments for each of `seeds` seeds; close the result when done.

    The first reset and the first step are checked: shapes and dtypes must be those of `HostStep` and the spec.

    Raises:
        ValueError: the opened object lacks a member of `HostVectorEnv`, or no seed's environments could be made. Its
            first reset or step raises it for a wrong shape.
        TypeError: `env` is not a `HostEnv`. The first reset or step raises it for a wrong type or dtype.
    """
    check.kind("env", env, HostEnv)
    check.count("seeds", seeds, 1)
    check.count("num_envs", num_envs, 1)
    opened = env.open(seeds, num_envs)
    _check_members("open", opened, ("reset", "step", "close", "broken"))
    return _FirstChecked(opened, env.spec, (seeds, num_envs))


def record_host(env: HostEnv, seeds: int) -> RecordingEnv:
    """Open one environment that renders for each of `seeds` seeds, checked as by `open_host`.

    Raises ValueError if `env` does not render, and the errors of `open_host`.
    """
    check.kind("env", env, HostEnv)
    check.count("seeds", seeds, 1)
    if env.record is None:
        raise ValueError("env: expected an environment that renders, got a HostEnv without record")
    opened = env.record(seeds)
    _check_members("record", opened, ("reset", "step", "close", "broken", "frames"))
    return _FirstChecked(opened, env.spec, (seeds, 1))


class _FirstChecked:
    """An open environment whose first reset and first step are checked; later ones are passed through."""

    def __init__(self, env: Any, spec: EnvSpec, shape: tuple[int, int]) -> None:
        self._env, self._spec, self._shape = env, spec, shape
        self._was_reset = self._was_stepped = False

    @property
    def broken(self) -> dict[int, str]:
        return self._env.broken

    def reset(self, seeds: list[list[int]]) -> Step:
        step = self._env.reset(seeds)
        if not self._was_reset:
            check.kind("env.reset", step, Step)
            _check_step("reset", step, self._spec, self._shape)
            self._was_reset = True
        return step

    def step(self, actions: NDArray[np.int64]) -> HostStep:
        step = self._env.step(actions)
        if not self._was_stepped:
            _check_host_step(step, self._spec, self._shape)
            self._was_stepped = True
        return step

    def frames(self) -> list[Any]:
        return self._env.frames()

    def close(self) -> None:
        self._env.close()


def _check_members(method: str, opened: Any, names: Sequence[str]) -> None:
    if missing := [name for name in names if not hasattr(opened, name)]:
        hint = "; set broken = {} if seeds cannot fail separately" if missing == ["broken"] else ""
        raise ValueError(
            f"env: expected {method} to return an object with {', '.join(names)}, got {type(opened).__name__} without "
            f"{', '.join(missing)}{hint}"
        )


def _check_host_step(step: Any, spec: EnvSpec, shape: tuple[int, int]) -> None:
    check.kind("env.step", step, HostStep)
    check.kind("env.step.step", step.step, Step)
    _check_step("step", step.step, spec, shape)
    for name, x, expected in (
        ("valid", step.valid, shape),
        ("alive", step.alive, shape[:1]),
        ("life_lost", step.life_lost, shape),
    ):
        _check_array(f"step to return {name}", x, expected, torch.bool)


def _check_step(method: str, step: Step, spec: EnvSpec, shape: tuple[int, int]) -> None:
    obs, legal = (*shape, *spec.obs_shape), (*shape, spec.actions)
    expected = {
        "obs": (obs, spec.obs_dtype),
        "legal": (legal, torch.bool),
        "next_obs": (obs, spec.obs_dtype),
        "next_legal": (legal, torch.bool),
        "reward": (shape, torch.float32),
        "terminated": (shape, torch.bool),
        "truncated": (shape, torch.bool),
    }
    for name, (dims, dtype) in expected.items():
        _check_array(f"{method} to return {name}", getattr(step, name), dims, dtype)


def _check_array(name: str, x: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"env: expected {name} as a tensor, got {type(x).__name__}")
    if tuple(x.shape) != shape:
        raise ValueError(f"env: expected {name} of shape {list(shape)}, got {list(x.shape)}")
    if x.dtype != dtype:
        raise TypeError(f"env: expected {name} of {dtype}, got {x.dtype}")
