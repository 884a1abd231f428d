"""One seed's vector environment of Gymnasium, translated to the fields of a `HostStep` in every autoreset mode.

Gymnasium's vector environments start a new episode in one of three ways: on request (DISABLED), within the step that
ends an episode (SAME_STEP), or with the next step, whose action is ignored (NEXT_STEP). `SeedEnvs` gives the same
transitions for all of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray

from fdqn.envs.host.checked import LIVES, check_environments, reset_values, step_values
from fdqn.envs.host.spaces import MASK, Encoding
from fdqn.types import EnvSpec


class SeedEnvs:
    """The E environments of one seed, made by `make(E)`.

    `reset` and `step` return tuples of arrays instead of records of tensors, because many small tensors would take
    longer than the environments. Raises ValueError for invalid values, and any error of the environments.
    """

    def __init__(
        self, name: str, make: Callable[[int], VectorEnv], encoding: Encoding, spec: EnvSpec, num_envs: int
    ) -> None:
        self.vector = check_environments(make(num_envs))
        self.counts_lives = False
        """True if an info has counted lives since the last reset."""
        space = self.vector.single_action_space
        assert isinstance(space, Discrete)  # checked by `gymnasium.from_vector`
        self._name, self._encoding, self._spec, self._num_envs = name, encoding, spec, num_envs
        self._first_action, self._action_dtype = int(space.start), np.dtype(space.dtype)
        # Read once: ale-py's environments share one metadata dict, so a later one may change it.
        self._mode = self.vector.metadata["autoreset_mode"]
        self._restarts = np.zeros(num_envs, np.bool_)  # the next step only starts a new episode
        self._lives = np.zeros(num_envs, np.int64)  # 0 if not counted
        self._all_legal = np.ones((num_envs, spec.actions), np.bool_)
        self._shown = np.zeros((num_envs, *(encoding.shape if spec.stack > 1 else (0,))), encoding.dtype)

    def reset(self, seeds: list[int]) -> tuple[Any, ...]:
        """Start new episodes; returns the fields of a `Step` in order. Shapes: seeds [E]."""
        self._restarts[:] = False
        obs, infos = reset_values(self.vector.reset(seed=seeds))  # type: ignore[arg-type]
        first, legal = self._encoding.encode(obs), _some_legal(self._legal(obs, infos, self._num_envs))
        _check_finite("observations", first)
        self._check_stacked(first, ~self._restarts, begins=True)
        self.counts_lives = _are_counted(infos)
        self._lives[:] = _read_lives(infos, self._lives)
        none = np.zeros(self._num_envs, np.bool_)
        return first, legal, first, legal, np.zeros(self._num_envs, np.float32), none, none

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, ...]:
        """Step once; returns the fields of a `Step`, then valid, alive and life_lost. Shapes: actions [E]."""
        restarted = self._restarts.copy()
        # Gymnasium's actions may start above 0, and int64 actions are not in a space of int32.
        chosen = (actions + self._first_action).astype(self._action_dtype)
        obs, reward, terminated, truncated, infos = step_values(self.vector.step(chosen))
        reward, terminated, truncated = map(np.asarray, (reward, terminated, truncated))
        for name, x in (("rewards", reward), ("terminated", terminated), ("truncated", truncated)):
            if x.shape != (self._num_envs,):
                raise ValueError(f"env: expected {name} of shape [{self._num_envs}], got {list(x.shape)}")
        with np.errstate(over="ignore"):
            reward = reward.astype(np.float32)
        ended = terminated | truncated
        lives = _read_lives(infos, self._lives)
        self.counts_lives |= _are_counted(infos)
        life_lost = (lives < self._lives) & ~ended
        next_obs, next_legal = self._encoding.encode(obs), self._legal(obs, infos, self._num_envs)
        first, legal = next_obs, next_legal
        match self._mode:
            case AutoresetMode.DISABLED if ended.any():
                obs, infos = reset_values(self.vector.reset(options={"reset_mask": ended}))
                first = self._encoding.encode(obs)
                legal = np.where(ended[:, None], self._legal(obs, infos, self._num_envs), next_legal)
                lives = np.where(ended, _read_lives(infos, lives), lives)
            case AutoresetMode.SAME_STEP if ended.any():
                final, final_infos = _final(self.vector.single_observation_space, infos, ended)
                next_obs, next_legal = next_obs.copy(), next_legal.copy()
                next_obs[ended] = self._encoding.encode(final)
                next_legal[ended] = self._legal(final, final_infos, int(ended.sum()))
            case AutoresetMode.NEXT_STEP:
                self._restarts[:] = ended
                legal = legal | ended[:, None]  # the next action is ignored
        self._lives[:] = lives
        _check_finite("observations", next_obs)
        _check_finite("observations", first)
        _check_finite("rewards", reward)
        self._check_stacked(next_obs, ~restarted, begins=False)
        self._check_stacked(first, restarted if self._mode == AutoresetMode.NEXT_STEP else ended, begins=True)
        step = first, _some_legal(legal), next_obs, next_legal, reward, terminated, truncated
        return *step, ~restarted, True, life_lost

    def _legal(self, obs: Any, infos: Mapping[str, Any], count: int) -> NDArray[np.bool_]:
        """Read the legal actions [N, A] at `count` observations from these or the infos; by default all are legal."""
        everything = self._all_legal[:count]
        if isinstance(obs, dict) and MASK in obs:
            mask, given = np.asarray(obs[MASK]), everything[:, 0]
        elif MASK in infos:
            mask, given = np.asarray(infos[MASK]), np.asarray(infos.get(f"_{MASK}", everything[:, 0]))
            if mask.dtype == object:  # lists
                mask = np.stack([np.asarray(mask[i] if given[i] else everything[0]) for i in range(count)])
        else:
            return everything
        if mask.shape != everything.shape:
            raise ValueError(
                f"{MASK}: expected {self._spec.actions} entries, one an action, got {list(mask.shape[1:])}"
            )
        return np.where(given[:, None], mask != 0, True)

    def _check_stacked(self, obs: NDArray[Any], at: NDArray[np.bool_], begins: bool) -> None:
        """Check that stacked frames are the previous ones and one new frame, since replay stores only the new one."""
        if self._spec.stack == 1 or not at.any():
            return
        before = 0 if begins else self._shown[at, 1:]
        if not (obs[at, :-1] == before).all():
            raise ValueError(
                f"env: expected observations of the last {self._spec.stack} frames, oldest first and zeros before an "
                f"episode's first, got others from {self._name}"
            )
        self._shown[at] = obs[at]


def _some_legal(legal: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if not (able := legal.any(-1)).all():
        place = int(able.argmin())
        raise ValueError(f"{MASK}: expected a legal action before the end, got none in environment {place}")
    return legal


def _check_finite(name: str, numbers: NDArray[Any]) -> None:
    if numbers.dtype.kind == "f" and not (finite := np.isfinite(numbers)).all():
        raise ValueError(f"env: expected finite {name}, got {numbers[~finite][0]}")


def _are_counted(infos: Mapping[str, Any]) -> bool:
    """Return True if infos hold lives as numbers, one per environment."""
    if LIVES not in infos:
        return False
    lives = np.asarray(infos[LIVES])
    return lives.dtype.kind in "iuf" and lives.ndim == 1


def _read_lives(infos: Mapping[str, Any], before: NDArray[np.int64]) -> NDArray[np.int64]:
    """Read the lives [E] from infos; an environment whose info has none keeps its lives from before."""
    if not _are_counted(infos):
        return before
    lives = np.asarray(infos[LIVES])
    given = np.isfinite(lives) & infos.get(f"_{LIVES}", True)
    return np.where(given, lives, before).astype(np.int64)


def _final(space: Space, infos: Mapping[str, Any], ended: NDArray[np.bool_]) -> tuple[Any, dict[str, Any]]:
    """Batch the final observations of ended episodes, and their action masks."""
    last = [infos["final_obs"][i] for i in np.flatnonzero(ended)]
    masks = {key: x[ended] for key, x in infos.get("final_info", {}).items() if key in (MASK, f"_{MASK}")}
    return concatenate(space, last, create_empty_array(space, len(last))), masks  # type: ignore[arg-type]
