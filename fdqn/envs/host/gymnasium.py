"""Make a `HostEnv` from Gymnasium: a registered environment, a user's class, or any vector environment."""

import contextlib
import copy
import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import RenderCollection

from fdqn.envs.host.spaces import Encoding, encoding
from fdqn.envs.host.vector import GymnasiumVector, close, message
from fdqn.types import EnvSpec, HostEnv

EPISODE_STEPS = 27_000
"""Time limit of evaluation episodes for an environment without one; see `evaluate.step_limit`."""


Wrappers = Sequence[tuple[str, Callable[[Any], Any]]]
"""Names of wrappers, for messages, and the wrappers, functions from `gymnasium.Env` to `gymnasium.Env`; the innermost
first."""


class _WrapperError(ValueError):
    """Error of a wrapper, which is not one of its environment."""


def named(name: str, wrappers: Wrappers = (), /, **settings: Any) -> HostEnv:
    """Make the environment registered under `name`, such as CartPole-v1.

    Raises ValueError if there is none, and as `from_vector` does.

    Args:
        name: Name in Gymnasium's registry.
        wrappers: Wrappers around each environment.
        settings: Keyword arguments for the environment.
    """
    if name not in gymnasium.registry and (game := re.fullmatch(r"ALE/(\w+)-v\d+", name)):
        raise ValueError(
            f"env: gym:{name} is registered by ale_py, which is not imported; use ale:{game[1]} for the preprocessing "
            f"of the Nature paper, or gym:ale_py:{name} for none"
        )
    around = [partial(wrapped, wrappers=wrappers)] if wrappers else []
    make = partial(_registered, name, settings, wrappers=around)
    recorded = {**settings, "render_mode": "rgb_array", "disable_env_checker": True}
    record = partial(_registered, name, recorded, wrappers=[*around, _collect_frames])
    return from_vector(f"gym:{name}", make, record)


def from_factory(name: str, make: Callable[..., gymnasium.Env], wrappers: Wrappers = (), /, **settings: Any) -> HostEnv:
    """Make a `HostEnv` of single environments, each the result of `make(**settings)` in the wrappers.

    Every call gets a copy of the settings, because an environment might change a list among them.

    For videos, a `make` that takes `render_mode` is called with "rgb_array". `name` is for messages. Raises ValueError
    as `from_vector` does.
    """
    record = partial(_synchronous, partial(_rendering, make, wrappers, settings))
    return from_vector(name, partial(_synchronous, partial(_made, make, wrappers, settings)), record)


def wrapped(env: gymnasium.Env, wrappers: Wrappers) -> gymnasium.Env:
    """Apply wrappers to an environment. Raises ValueError, naming the wrapper, for one that does not fit."""
    for name, wrapper in wrappers:
        try:
            env = wrapper(env)
        except (Exception, SystemExit) as error:  # a user's wrapper may raise anything
            raise _WrapperError(
                f"wrappers: expected {name} to take the environment as its only argument, got "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if not isinstance(env, gymnasium.Env):
            raise _WrapperError(f"wrappers: expected {name} to return a gymnasium.Env, got {type(env).__name__}")
    return env


def from_vector(
    name: str,
    make: Callable[[int], VectorEnv],
    record: Callable[[int], VectorEnv] | None = None,
    stack: int = 1,
    limit: int | None = None,
) -> HostEnv:
    """Make a `HostEnv` of vector environments.

    Every environment of a `SyncVectorEnv` is wrapped in `Checked`, which also reads legal actions from a method
    `action_masks()`. Other vector environments provide them as `action_mask` in their observations or infos.

    Args:
        name: Name for messages.
        make: `make(num_envs)` returns a vector environment in any autoreset mode.
        record: `record(num_envs)` returns the same with rendering: `render()` returns, for each environment, the list
            of frames since the last call. None if it does not render.
        stack: Frames in an observation, as `EnvSpec.stack`.
        limit: Time limit of evaluation episodes. By default the environment's own; without one, the spec is `endless`.

    Raises:
        ValueError: an environment cannot be made, its actions are not discrete, its observation space is not supported
            (see `spaces.encoding`), or it does not state its autoreset mode.
    """
    try:
        with contextlib.ExitStack() as closing:
            probe = make(1)
            closing.callback(close, probe)
            actions, observed = probe.single_action_space, probe.single_observation_space
            spec_of = probe.envs[0] if isinstance(probe, SyncVectorEnv) else probe  # with time limits of arguments
            limit = limit or (spec_of.spec.max_episode_steps if spec_of.spec is not None else None)
            mode = probe.metadata.get("autoreset_mode")
    except _WrapperError as error:
        raise ValueError(str(error)) from error.__cause__
    except (Exception, SystemExit) as error:  # a user's environment may raise anything
        raise ValueError(f"env: expected an environment of Gymnasium, got {name!r}: {message(error)}") from error
    if not isinstance(actions, Discrete):
        raise ValueError(f"env: expected discrete actions, got {actions} in {name!r}")
    if not isinstance(mode, AutoresetMode):
        raise ValueError(f"env: expected an AutoresetMode in metadata['autoreset_mode'] of {name!r}, got {mode!r}")
    encoded = encoding(observed)
    dtype = torch.from_numpy(np.zeros(0, encoded.dtype)).dtype
    spec = EnvSpec(encoded.shape, dtype, int(actions.n), 0, limit or EPISODE_STEPS, stack=stack, endless=not limit)
    open = partial(GymnasiumVector, name, make, encoded, spec)
    recording = None if record is None else partial(_open_recording, name, record, encoded, spec)
    return HostEnv(open, spec, recording, partial(_counts_lives, open))


def _open_recording(
    name: str, record: Callable[[int], VectorEnv], encoded: Encoding, spec: EnvSpec, seeds: int
) -> GymnasiumVector:
    return GymnasiumVector(name, record, encoded, spec, seeds, 1)


def _counts_lives(open: Callable[[int, int], GymnasiumVector]) -> bool:
    """Return True if the infos of a reset or step of one environment contain lives."""
    with contextlib.closing(open(1, 1)) as probe:
        first = probe.reset([[0]])
        probe.step(first.legal.long().argmax(-1).numpy())
        return probe.counts_lives


def _registered(name: str, settings: dict[str, Any], num_envs: int, *, wrappers: list[Any]) -> VectorEnv:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about newer versions of an environment
        mode = {"autoreset_mode": AutoresetMode.DISABLED, "copy": False}  # encoding copies
        return gymnasium.make_vec(
            name, num_envs, "sync", vector_kwargs=mode, wrappers=wrappers, **copy.deepcopy(settings)
        )


def _synchronous(make: Callable[[], gymnasium.Env], num_envs: int) -> VectorEnv:
    return SyncVectorEnv([make] * num_envs, copy=False, autoreset_mode=AutoresetMode.DISABLED)


def _made(make: Callable[..., gymnasium.Env], wrappers: Wrappers, settings: dict[str, Any]) -> gymnasium.Env:
    return wrapped(make(**copy.deepcopy(settings)), wrappers)


def _rendering(make: Callable[..., gymnasium.Env], wrappers: Wrappers, settings: dict[str, Any]) -> gymnasium.Env:
    renders = {"render_mode": "rgb_array"} if "render_mode" in inspect.signature(make).parameters else {}
    return _collect_frames(_made(make, wrappers, {**settings, **renders}))


def _collect_frames(env: gymnasium.Env) -> gymnasium.Env:
    """Make `render` return one frame for every step and reset since its last call, including the last of an episode."""
    if env.render_mode != "rgb_array":
        raise ValueError(f"render_mode: expected 'rgb_array', got {env.render_mode!r}")
    return RenderCollection(env, reset_clean=False)
