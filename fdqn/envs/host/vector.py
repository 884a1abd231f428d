"""Open environments of Gymnasium for all seeds. A seed that fails does not stop the others.

Every seed has its own vector environment, so its results do not depend on the number of seeds.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from fdqn.envs.host.autoreset import SeedEnvs
from fdqn.envs.host.spaces import Encoding
from fdqn.envs.host.watchdog import TIMEOUT, timeout
from fdqn.types import EnvSpec, HostStep, Step

T = TypeVar("T")


class GymnasiumVector:
    """A `HostVectorEnv` (and `RecordingEnv`) of `num_envs` environments of Gymnasium for each seed.

    A seed fails if its environments raise, take longer than `watchdog.TIMEOUT`, or return an invalid or non-finite
    value. It is then added to `broken` and no longer stepped. Raises ValueError if no seed's environments can be made.
    """

    def __init__(
        self, name: str, make: Callable[[int], VectorEnv], encoding: Encoding, spec: EnvSpec, seeds: int, num_envs: int
    ) -> None:
        self.broken: dict[int, str] = {}
        self._name, self._range, self._envs = name, range(seeds), dict[int, SeedEnvs]()
        self._zeros = partial(_zeros, num_envs, encoding, spec.actions)
        for i in self._range:
            try:
                with timeout(TIMEOUT * num_envs):
                    self._envs[i] = SeedEnvs(name, make, encoding, spec, num_envs)
            except (Exception, SystemExit) as error:
                self._fail(i, error)
        self._check_some_left("be made")

    @property
    def counts_lives(self) -> bool:
        """True if any info since the last reset has counted lives."""
        return any(env.counts_lives for env in self._envs.values())

    def reset(self, seeds: list[list[int]]) -> Step:
        """Start new episodes in all environments. Raises ValueError if no seed can start one. Shapes: seeds [S][E]."""
        pairs = zip(self._range, seeds, strict=True)
        steps = [self._call(i, partial(_reset, seeds=row)) or self._zeros()[: len(Step._fields)] for i, row in pairs]
        self._check_some_left("start an episode")
        return Step(*_stacked(steps))

    def step(self, actions: NDArray[np.int64]) -> HostStep:
        """Step all environments once. Shapes: actions [S, E]."""
        pairs = zip(self._range, actions, strict=True)
        *step, valid, alive, life_lost = _stacked(
            [self._call(i, partial(_step, actions=row)) or self._zeros() for i, row in pairs]
        )
        return HostStep(Step(*step), valid, alive, life_lost)

    def frames(self) -> list[Any]:
        """Render each seed's first environment, None for a failed seed. Raises ValueError if no seed renders."""
        rendered = [self._call(i, lambda env: env.vector.render()) for i in self._range]
        self._check_some_left("render")
        return [frames and frames[0][0] for frames in rendered]  # a second frame is of the next episode

    def close(self) -> None:
        """Close all environments, also those of failed seeds."""
        for env in self._envs.values():
            close(env.vector)

    def _call(self, i: int, f: Callable[[SeedEnvs], T]) -> T | None:
        """Apply `f` to the environments of seed i; None if they have failed or fail now."""
        if i not in self.broken:
            try:
                with timeout(TIMEOUT):
                    return f(self._envs[i])
            except (Exception, SystemExit) as error:  # a user's environment may raise anything
                self._fail(i, error)
        return None

    def _fail(self, i: int, error: BaseException) -> None:
        self.broken[i], self._last_error = message(error), error

    def _check_some_left(self, task: str) -> None:
        if len(self.broken) == len(self._range):
            error = self._last_error
            raise ValueError(f"env: expected {self._name} to {task}, got {message(error)}") from error


def close(env: gymnasium.Env | VectorEnv) -> None:
    """Close an environment and ignore its errors."""
    with contextlib.suppress(Exception, SystemExit):
        env.close()


def message(error: BaseException) -> str:
    """Put the error's message on one line, with the exception's name unless the message explains itself."""
    text = " ".join(str(error).split())
    plain = isinstance(error, gymnasium.error.Error | ImportError | ValueError | TimeoutError)
    return text if text and plain else f"{type(error).__name__}: {text}" if text else type(error).__name__


def _reset(env: SeedEnvs, seeds: list[int]) -> tuple[Any, ...]:
    return env.reset(seeds)


def _step(env: SeedEnvs, actions: NDArray[np.int64]) -> tuple[Any, ...]:
    return env.step(actions)


def _zeros(num_envs: int, encoding: Encoding, actions: int) -> tuple[Any, ...]:
    """Make the fields of a `HostStep` for a failed seed: zeros, and all actions legal."""
    obs = np.zeros((num_envs, *encoding.shape), encoding.dtype)
    legal, none = np.ones((num_envs, actions), np.bool_), np.zeros(num_envs, np.bool_)
    return obs, legal, obs, legal, np.zeros(num_envs, np.float32), none, none, none, False, none


def _stacked(seeds: list[tuple[Any, ...]]) -> list[Tensor]:
    """Stack the seeds' arrays, field by field."""
    return [torch.from_numpy(np.array(parts)) for parts in zip(*seeds, strict=True)]
