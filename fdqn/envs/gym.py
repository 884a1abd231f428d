"""Environments of Gymnasium as a world: their ends as `Step` has them, however they restart.

A lane has a vector environment of its own, so that what its environments do does not depend on how many lanes there
are, and one that fails ends its own lane only.
"""

import contextlib
import difflib
import faulthandler
import inspect
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete, Space
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import concatenate, create_empty_array
from gymnasium.wrappers import RenderCollection
from numpy.typing import NDArray
from torch import Tensor

from fdqn.envs.checked import LIVES, check_environments, reset_values, step_values
from fdqn.envs.spaces import MASK, Encoding, encoding
from fdqn.types import EnvSpec, HostEnv, HostStep, Step

EPISODE_STEPS = 27_000
"""Longest evaluation episode, by default, of an environment without a time limit; see `evaluate.step_limit`."""

STACK = 4
"""Frames of an observation of Atari."""

FIVE_MINUTES = 4_500
"""Steps after which evaluation stops looking at an episode of Atari, as the Nature paper does."""

PATIENCE = 120.0
"""Seconds that a lane's environments may take for one step, and each to be made."""


def named(name: str, **settings: Any) -> HostEnv:
    """The environments registered under that name. Raises ValueError where there are none or they do not suit."""
    if name not in gymnasium.registry and (game := re.fullmatch(r"ALE/(\w+)-v\d+", name)):
        raise ValueError(
            f"env: gym:{name} is registered by ale_py, which is not imported; ale:{game[1]} plays it prepared as in "
            f"the Nature paper, gym:ale_py:{name} as it is"
        )

    make = partial(_registered, name, settings)
    film = partial(make, wrappers=[_keeping_frames], render_mode="rgb_array", disable_env_checker=True)
    return world(f"gym:{name}", make, film)


def _registered(name: str, settings: dict[str, Any], num_envs: int, **more: Any) -> VectorEnv:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of newer versions: the name was asked for
        mode = {"autoreset_mode": AutoresetMode.DISABLED, "copy": False}  # encoding copies
        return gymnasium.make_vec(name, num_envs, "sync", vector_kwargs=mode, **settings, **more)


def atari(name: str) -> HostEnv:
    """The game of that name in the Arcade Learning Environment, such as Breakout, as Mnih et al. 2015 play it: grey
    frames of 84 x 84, the last four at once; four frames a step, of the last two the brighter; up to 30 idle steps at
    the start, and the fire button where a game waits for it; at most half an hour, in evaluation five minutes. Rewards
    are the game's own. https://doi.org/10.1038/nature14236

    Raises ValueError where ale-py is not installed or has no such game.
    """
    try:
        from ale_py import roms
    except ImportError:
        raise ValueError(f"env: ale:{name} needs ale-py, got none; pip install 'fdqn[atari]'") from None
    game = re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if game not in (known := sorted(roms.get_all_rom_ids())):
        near = difflib.get_close_matches(game, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; ale-py has {len(known)}"
        raise ValueError(f"env: expected a game of ale-py, got {name!r}{hint}")

    return world(f"ale:{name}", partial(_atari, game), partial(_filmed_atari, game), STACK, FIVE_MINUTES)


def _atari(game: str, num_envs: int, **settings: Any) -> VectorEnv:
    from ale_py import vector_env

    settings = {"stack_num": STACK, **settings, "reward_clipping": False, "autoreset_mode": AutoresetMode.SAME_STEP}
    return _SeedsAsArray(vector_env.AtariVectorEnv(game, num_envs, num_threads=1, **settings))


def _filmed_atari(game: str, num_envs: int) -> VectorEnv:
    shown = _atari(game, num_envs, grayscale=False, img_height=210, img_width=160, stack_num=1)
    return _Twins(_atari(game, num_envs), shown)


def of(name: str, make: Callable[[], gymnasium.Env]) -> HostEnv:
    """Environments that `make()` gives one by one; `name` is for messages."""

    return world(name, partial(_one_by_one, make), partial(_one_by_one, partial(_filmed, make)))


def _one_by_one(make: Callable[[], gymnasium.Env], num_envs: int) -> VectorEnv:
    return gymnasium.vector.SyncVectorEnv([make] * num_envs, copy=False, autoreset_mode=AutoresetMode.DISABLED)


def _filmed(make: Callable[..., gymnasium.Env]) -> gymnasium.Env:
    return _keeping_frames(_rendering(make))


def world(
    name: str,
    make: Callable[[int], VectorEnv],
    film: Callable[[int], VectorEnv] | None = None,
    stack: int = 1,
    limit: int | None = None,
) -> HostEnv:
    """The environments that `make(num_envs)` gives, of any autoreset mode; `name` is for messages. Those that
    `film(num_envs)` gives do the same, and render each a list of frames, those since they were last asked.

    With `stack` above 1 their observations are so many frames, as `EnvSpec.stack` has them. Evaluation looks at `limit`
    steps of an episode, by default those that the environments themselves allow; where they allow any number, the spec
    is `endless`. Each environment of a `SyncVectorEnv` is wrapped in `Checked`, which also reads legal actions from a
    method `action_masks()`; other vector environments give them as `action_mask` in their observations or infos.

    Raises ValueError where they cannot be made, for actions that are not discrete or observations that are no array.
    """
    try:
        with contextlib.ExitStack() as closing:
            probe = make(1)
            closing.callback(close, probe)
            actions, observed = probe.single_action_space, probe.single_observation_space
            limit = limit or (probe.spec.max_episode_steps if probe.spec is not None else None)
            mode = probe.metadata.get("autoreset_mode")
    except (Exception, SystemExit) as error:  # whatever somebody's code may raise
        raise ValueError(f"env: expected an environment of Gymnasium, got {name!r}: {_said(error)}") from error
    if not isinstance(actions, Discrete):
        raise ValueError(f"env: expected discrete actions, got {actions} in {name!r}")
    if not isinstance(mode, AutoresetMode):
        raise ValueError(f"env: expected {name!r} to say its autoreset_mode in its metadata, got {mode!r}")
    encoded = encoding(observed)
    dtype = torch.from_numpy(np.zeros(0, encoded.dtype)).dtype
    spec = EnvSpec(encoded.shape, dtype, int(actions.n), 0, limit or EPISODE_STEPS, stack=stack, endless=not limit)

    open = partial(Games, name, make, encoded, spec)
    return HostEnv(open, spec, film and partial(_open_film, name, film, encoded, spec), partial(_counts_lives, open))


def _open_film(name: str, film: Callable[[int], VectorEnv], encoded: Encoding, spec: EnvSpec, lanes: int) -> "Games":
    return Games(name, film, encoded, spec, lanes, 1)


def _counts_lives(open: Callable[[int, int], "Games"]) -> bool:
    with contextlib.closing(open(1, 1)) as probe:
        first = probe.reset([[0]])
        probe.step(first.legal.long().argmax(-1).numpy())  # what may be done
        return probe.counts_lives


Answered = TypeVar("Answered")


class Games:
    """A world that is open: `num_envs` environments of each lane. Close it when done.

    `broken` says of lanes whose environment raised, gave no answer for too long or one that is no number, what it was.
    They stand still. `counts_lives` says whether infos did since the last reset. Raises ValueError where not one lane
    could be made.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[int], VectorEnv],
        encoding: Encoding,
        spec: EnvSpec,
        lanes: int,
        num_envs: int,
    ) -> None:
        self.name, self.encoding, self.spec, self.num_envs = name, encoding, spec, num_envs
        self.broken: dict[int, str] = {}
        self.counts_lives = False
        self._everything = np.ones((num_envs, spec.actions), np.bool_)
        shown = np.zeros((num_envs, *(encoding.shape if spec.stack > 1 else (0,))), encoding.dtype)
        self._numbers, self._lanes = range(lanes), dict[int, _Lane]()
        for i in self._numbers:
            try:
                with patience(PATIENCE * num_envs):
                    self._lanes[i] = _opened(make, num_envs, shown.copy())
            except (Exception, SystemExit) as error:
                self._break(i, error)
        self._check_some_left("be made")

    def reset(self, seeds: list[list[int]]) -> Step:
        """New episodes in all environments, seeded by seeds [S][E]. Raises ValueError where no lane can start one."""
        nothing = self._nothing()[: len(Step._fields)]
        lanes = zip(self._numbers, seeds, strict=True)
        steps = [self._attempt(i, partial(self._reset, seeds=row)) or nothing for i, row in lanes]
        self._check_some_left("start an episode")
        return Step(*_stacked(steps))

    def step(self, actions: NDArray[np.int64]) -> HostStep:
        """One step of all environments, actions [S, E]."""
        lanes = zip(self._numbers, actions, strict=True)
        answers = [self._attempt(i, partial(self._step, actions=row)) or self._nothing() for i, row in lanes]
        *step, valid, alive, life_lost = _stacked(answers)
        return HostStep(Step(*step), valid, alive, life_lost)

    def frames(self) -> list[Any]:
        """What each lane's first environment, one that is filmed, looked like after its last step, or at its start;
        nothing where it is broken. Raises ValueError where no lane renders."""
        rendered = [self._attempt(i, lambda lane: lane.vector.render()) for i in self._numbers]
        self._check_some_left("render")
        return [frames and frames[0][0] for frames in rendered]  # a second one is of the episode that began since

    def close(self) -> None:
        """Close all environments, also those that are broken."""
        for lane in self._lanes.values():
            close(lane.vector)

    def _attempt(self, i: int, act: Callable[["_Lane"], Answered]) -> Answered | None:
        """What `act` answers of lane i; None where that is broken, or breaks by it."""
        if i not in self.broken:
            try:
                with patience(PATIENCE):
                    return act(self._lanes[i])
            except (Exception, SystemExit) as error:  # whatever somebody's code may raise
                self._break(i, error)
        return None

    def _break(self, i: int, error: BaseException) -> None:
        self.broken[i], self._last = _said(error), error

    def _check_some_left(self, task: str) -> None:
        if len(self.broken) == len(self._numbers):
            raise ValueError(f"env: expected {self.name} to {task}, got {_said(self._last)}") from self._last

    def _reset(self, lane: "_Lane", seeds: list[int]) -> tuple[Any, ...]:
        """What a `Step` of one lane holds, in its order."""
        lane.restarts[:] = False
        obs, infos = reset_values(lane.vector.reset(seed=seeds))  # type: ignore[arg-type]
        first, legal = self.encoding.encode(obs), self._checked(self._legal(obs, infos, self.num_envs))
        _check_finite("observations", first)
        self._check_stacked(lane, first, ~lane.restarts, begins=True)
        self.counts_lives = _are_counted(infos)
        lane.lives[:] = _lives(infos, lane.lives)
        none = np.zeros(self.num_envs, np.bool_)
        return first, legal, first, legal, np.zeros(self.num_envs, np.float32), none, none

    def _step(self, lane: "_Lane", actions: NDArray[np.int64]) -> tuple[Any, ...]:
        """What an `HostStep` of one lane holds, in its order: many small tensors would take longer than the world."""
        vector, restarted = lane.vector, lane.restarts.copy()
        chosen = (actions + lane.first_action).astype(lane.action_dtype)
        obs, reward, terminated, truncated, infos = step_values(vector.step(chosen))
        reward, terminated, truncated = map(np.asarray, (reward, terminated, truncated))
        for name, x in (("rewards", reward), ("terminated", terminated), ("truncated", truncated)):
            if x.shape != (self.num_envs,):
                raise ValueError(f"env: expected {name} of shape [{self.num_envs}], got {list(x.shape)}")
        with np.errstate(over="ignore"):
            reward = reward.astype(np.float32)
        ended = terminated | truncated
        lives = _lives(infos, lane.lives)
        self.counts_lives |= _are_counted(infos)
        life_lost = (lives < lane.lives) & ~ended
        next_obs, next_legal = self.encoding.encode(obs), self._legal(obs, infos, self.num_envs)
        first, legal = next_obs, next_legal
        match lane.mode:
            case AutoresetMode.DISABLED if ended.any():
                obs, infos = reset_values(vector.reset(options={"reset_mask": ended}))
                first = self.encoding.encode(obs)
                legal = np.where(ended[:, None], self._legal(obs, infos, self.num_envs), next_legal)
                lives = np.where(ended, _lives(infos, lives), lives)
            case AutoresetMode.SAME_STEP if ended.any():
                final, final_infos = _final(vector.single_observation_space, infos, ended)
                next_obs, next_legal = next_obs.copy(), next_legal.copy()
                next_obs[ended] = self.encoding.encode(final)
                next_legal[ended] = self._legal(final, final_infos, int(ended.sum()))
            case AutoresetMode.NEXT_STEP:
                lane.restarts[:] = ended
                legal = legal | ended[:, None]  # what is done there counts for nothing
        lane.lives[:] = lives
        _check_finite("observations", next_obs)
        _check_finite("observations", first)
        _check_finite("rewards", reward)
        self._check_stacked(lane, next_obs, ~restarted, begins=False)
        self._check_stacked(lane, first, restarted if lane.mode == AutoresetMode.NEXT_STEP else ended, begins=True)
        step = first, self._checked(legal), next_obs, next_legal, reward, terminated, truncated
        return *step, ~restarted, True, life_lost

    def _legal(self, obs: Any, infos: Mapping[str, Any], count: int) -> NDArray[np.bool_]:
        """What may be done at `count` observations [N, A]: all, where neither they nor the infos say."""
        everything = self._everything[:count]
        if isinstance(obs, dict) and MASK in obs:
            mask, told = np.asarray(obs[MASK]), everything[:, 0]
        elif MASK in infos:
            mask, told = np.asarray(infos[MASK]), np.asarray(infos.get(f"_{MASK}", everything[:, 0]))
            if mask.dtype == object:  # lists
                mask = np.stack([np.asarray(mask[i] if told[i] else everything[0]) for i in range(count)])
        else:
            return everything
        if mask.shape != everything.shape:
            raise ValueError(f"{MASK}: expected {self.spec.actions} entries, one an action, got {list(mask.shape[1:])}")
        return np.where(told[:, None], mask != 0, True)

    def _checked(self, legal: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if not (able := legal.any(-1)).all():
            place = int(able.argmin())
            raise ValueError(f"{MASK}: expected a legal action before the end, got none in environment {place}")
        return legal

    def _nothing(self) -> tuple[Any, ...]:
        obs = np.zeros((self.num_envs, *self.encoding.shape), self.encoding.dtype)
        legal, none = np.ones((self.num_envs, self.spec.actions), np.bool_), np.zeros(self.num_envs, np.bool_)
        return obs, legal, obs, legal, np.zeros(self.num_envs, np.float32), none, none, none, False, none

    def _check_stacked(self, lane: "_Lane", obs: NDArray[Any], at: NDArray[np.bool_], begins: bool) -> None:
        """Where observations are frames: that they show those before and one more, which is all that replay keeps."""
        if self.spec.stack == 1 or not at.any():
            return
        before = 0 if begins else lane.shown[at, 1:]
        if not (obs[at, :-1] == before).all():
            raise ValueError(
                f"env: expected observations of the last {self.spec.stack} frames, oldest first and zeros before an "
                f"episode's first, got others from {self.name}"
            )
        lane.shown[at] = obs[at]


class _SeedsAsArray(VectorWrapper):
    """For environments that want one."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        # Of a seed they take 31 bits.
        return self.env.reset(seed=np.asarray(seed, np.int64) >> 1, options=options)  # type: ignore[arg-type]


class _Twins(VectorWrapper):
    """Games and the same again, by seeds and actions, whose observations [N, 1, H, W, 3] are for people to see."""

    def __init__(self, env: VectorEnv, shown: VectorEnv) -> None:
        super().__init__(env)
        self.shown = shown

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.seen, _ = self.shown.reset(seed=seed, options=options)
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, ...]:
        self.seen, *_ = self.shown.step(actions)
        return self.env.step(actions)

    def render(self) -> tuple[Any, ...]:
        return tuple(self.seen)

    def close(self, **how: Any) -> None:
        self.shown.close(**how)
        self.env.close(**how)


def _keeping_frames(env: gymnasium.Env) -> gymnasium.Env:
    """Renders a list of frames, one for every step and reset since it was last asked: also how an episode ended."""
    if env.render_mode != "rgb_array":
        raise ValueError(f"render_mode is {env.render_mode!r} and not 'rgb_array'")
    return RenderCollection(env, reset_clean=False)


def _rendering(make: Callable[..., gymnasium.Env]) -> gymnasium.Env:
    """One that renders arrays, where that is to be asked for."""
    asked = {"render_mode": "rgb_array"} if "render_mode" in inspect.signature(make).parameters else {}
    return make(**asked)


class _Lane(NamedTuple):
    vector: VectorEnv
    restarts: NDArray[np.bool_]
    """[E], whose next step will only start a new episode."""
    first_action: int
    """What gymnasium calls our action 0."""
    action_dtype: np.dtype
    """Of the action space: int64 actions are in no space of int32."""
    mode: AutoresetMode
    """How it restarts, as it said when it was opened: ale-py's environments share one record of it."""
    lives: NDArray[np.int64]
    """[E], where they are counted; else 0."""
    shown: NDArray[Any]
    """[E, *O], the last observation of stacked frames; of others nothing."""


def _opened(make: Callable[[int], VectorEnv], num_envs: int, shown: NDArray[Any]) -> _Lane:
    vector = check_environments(make(num_envs))
    assert isinstance(vector.single_action_space, Discrete)  # as `world` has seen
    none = np.zeros(num_envs, np.int64)
    actions, mode = vector.single_action_space, vector.metadata["autoreset_mode"]
    return _Lane(vector, none.astype(np.bool_), int(actions.start), np.dtype(actions.dtype), mode, none, shown)


def close(env: gymnasium.Env | VectorEnv) -> None:
    """Close it, whatever it says of that."""
    with contextlib.suppress(Exception, SystemExit):
        env.close()


def _check_finite(name: str, numbers: NDArray[Any]) -> None:
    if numbers.dtype.kind == "f" and not (finite := np.isfinite(numbers)).all():
        raise ValueError(f"env: expected finite {name}, got {numbers[~finite][0]}")


def _are_counted(infos: Mapping[str, Any]) -> bool:
    """Return True if infos hold lives as numbers, one per environment."""
    if LIVES not in infos:
        return False
    lives = np.asarray(infos[LIVES])
    return lives.dtype.kind in "iuf" and lives.ndim == 1


def _lives(infos: Mapping[str, Any], before: NDArray[np.int64]) -> NDArray[np.int64]:
    """[E], where the infos say them; else as before."""
    if not _are_counted(infos):
        return before
    lives = np.asarray(infos[LIVES])
    told = np.isfinite(lives) & infos.get(f"_{LIVES}", True)
    return np.where(told, lives, before).astype(np.int64)


def _stacked(lanes: list[tuple[Any, ...]]) -> list[Tensor]:
    """The lanes' arrays, each with a leading axis of lanes."""
    return [torch.from_numpy(np.array(parts)) for parts in zip(*lanes, strict=True)]


def _final(space: Space, infos: Mapping[str, Any], ended: NDArray[np.bool_]) -> tuple[Any, dict[str, Any]]:
    """The batch of the observations that ended episodes, and their masks."""
    last = [infos["final_obs"][i] for i in np.flatnonzero(ended)]
    masks = {key: x[ended] for key, x in infos.get("final_info", {}).items() if key in (MASK, f"_{MASK}")}
    return concatenate(space, last, create_empty_array(space, len(last))), masks  # type: ignore[arg-type]


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in here after so many seconds, and show on standard error where it hangs.

    Native code that does not come back cannot be interrupted, only shown: `kill -9` ends it, and a run of a command is
    resumed from its last checkpoint. Where the system has no such signal, or outside of the main thread, it takes as
    long as it takes, and nothing is shown.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(signum: int, frame: Any) -> None:
        raise TimeoutError(f"no answer for {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    # Unlike `late` this does not wait for the interpreter. 2 is standard error, whatever stands for it in Python.
    faulthandler.register(signal.SIGALRM, file=2, all_threads=False, chain=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)
        signal.signal(signal.SIGALRM, before)


def _said(error: BaseException) -> str:
    """In Gymnasium's words, or in somebody's, which may need the name of the exception to be understood."""
    words = " ".join(str(error).split())
    plain = isinstance(error, gymnasium.error.Error | ImportError | ValueError | TimeoutError)
    return words if words and plain else f"{type(error).__name__}: {words}" if words else type(error).__name__
