"""The environments by name. Each is a pair of pure functions, one environment a file."""

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

from fdqn.envs import acrobot, cartpole, catch, mountain_car
from fdqn.types import Env

GYMNASIUM = {"acrobot": "Acrobot-v1", "cartpole": "CartPole-v1", "mountain_car": "MountainCar-v0"}
"""The gymnasium environments that ours follow step by step; catch has none."""


class _Entry(NamedTuple):
    make: Callable[..., Env]
    task: str


_ENTRIES = {
    "acrobot": _Entry(acrobot.make, "swing a two-link pendulum up above a line"),
    "cartpole": _Entry(cartpole.make, "keep a pole upright on a moving cart"),
    "catch": _Entry(catch.make, "be under a falling ball when it lands"),
    "mountain_car": _Entry(mountain_car.make, "swing a weak car up a hill"),
}


def names() -> tuple[str, ...]:
    """The names that `make` knows, sorted."""
    return tuple(sorted(_ENTRIES))


def make(name: str, **settings: Any) -> Env:
    """The environment of that name; `settings` are `time_limit` in steps and `dtype`. Raises ValueError for no name."""
    return _entry(name).make(**settings)


def describe(name: str) -> str:
    """One line: the task, the observation, the actions, the time limit in steps and the twin in gymnasium."""
    entry = _entry(name)
    spec = entry.make().spec
    twin = f"; as {GYMNASIUM[name]}" if name in GYMNASIUM else ""
    return f"{entry.task}; obs {list(spec.obs_shape)}, {spec.actions} actions, {spec.time_limit} steps{twin}"


def _entry(name: str) -> _Entry:
    if not isinstance(name, str):
        raise TypeError(f"name: expected that of an environment, got {name!r}; known: {', '.join(names())}")
    if name not in _ENTRIES:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise ValueError(f"unknown environment '{name}'{hint} Known: {', '.join(names())}")
    return _ENTRIES[name]
