"""Environments by name: pure ones, one module each, and host environments of Gymnasium and Atari.

.. include:: ../docs/environments.md
"""

import copy
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fdqn import arguments, check
from fdqn.envs.classic import acrobot, cartpole, catch, mountain_car
from fdqn.envs.host.contract import open_host as open_host
from fdqn.envs.host.contract import record_host as record_host
from fdqn.envs.minatar import asterix, breakout, freeway, seaquest, space_invaders
from fdqn.types import Env, HostEnv

if TYPE_CHECKING:
    from typing_extensions import TypeIs

GYMNASIUM = {"acrobot": "Acrobot-v1", "cartpole": "CartPole-v1", "mountain_car": "MountainCar-v0"}
"""Environments of Gymnasium with exactly the dynamics of a pure one."""


class _Entry(NamedTuple):
    make: Callable[..., Env]
    task: str


_ENTRIES = {
    "acrobot": _Entry(acrobot.make, "swing a two-link pendulum up above a line"),
    "cartpole": _Entry(cartpole.make, "keep a pole upright on a moving cart"),
    "catch": _Entry(catch.make, "be under a falling ball when it lands"),
    "minatar:asterix": _Entry(asterix.make, "collect gold and keep away from enemies"),
    "minatar:breakout": _Entry(breakout.make, "break bricks with a ball and a paddle"),
    "minatar:freeway": _Entry(freeway.make, "cross eight lanes of traffic"),
    "minatar:seaquest": _Entry(seaquest.make, "shoot enemies, rescue divers and come up for air"),
    "minatar:space_invaders": _Entry(space_invaders.make, "shoot waves of aliens"),
    "mountain_car": _Entry(mountain_car.make, "swing a weak car up a hill"),
}


def names() -> tuple[str, ...]:
    """List the names of the pure environments, sorted."""
    return tuple(sorted(_ENTRIES))


def on_host(env: Env | HostEnv) -> "TypeIs[HostEnv]":
    """Return True for an environment that is stepped on the host, False for a pure one.

    Training, evaluation and video all choose their loop with this function. Raises TypeError for anything else.
    """
    check.kind("env", env, Env, HostEnv)
    return isinstance(env, HostEnv)


def is_env(x: Any) -> "TypeIs[Env | HostEnv]":
    """Return True for an environment of either kind."""
    return isinstance(x, Env | HostEnv)


@functools.cache
def find(name: str, env_kwargs: tuple[str, ...] = (), wrappers: tuple[str, ...] = ()) -> Env | HostEnv:
    """Find an environment by name.

    Raises ValueError if there is none or it cannot be made, or a wrapper does not fit; TypeError if the name is not a
    string.

    Args:
        name: a name of `names`, `gym:NAME` for Gymnasium's registry, `ale:GAME` for Atari, or `package.module:name` for
            your own: an `Env`, a `HostEnv`, or a function or class that gives one of these or a `gymnasium.Env` when
            called with `env_kwargs`.
        env_kwargs: keyword arguments of the environment, such as `is_slippery=False`; see `arguments.parse`.
        wrappers: wrappers as `package.module:name`, the innermost first. Around a `gymnasium.Env`, registered or your
            own: functions from it to another, such as Gymnasium's wrappers; around an `Env` or a `HostEnv`: functions
            from it to another of its kind.
    """
    kwargs = arguments.parse(env_kwargs)
    loaded = [(wrapper, _wrapper(wrapper)) for wrapper in wrappers]
    if not isinstance(name, str) or (not is_code(name) and not name.startswith(("gym:", "ale:"))):
        return _wrapped(_made(name, kwargs), loaded)
    if name.startswith("gym:"):
        return _registered_env(name, kwargs, loaded)
    if name.startswith("ale:"):
        from fdqn.envs.host import atari

        if kwargs:
            raise ValueError(f"env_kwargs: expected none for {name}, got {_text(kwargs)}")
        return _wrapped(atari.make(name.removeprefix("ale:")), loaded)
    return _load(name, kwargs, loaded)


def is_code(name: str) -> bool:
    """Return True if finding this environment imports a user's code, as for `gym:module:Name`."""
    return name.count(":") > 1 or (":" in name and name.partition(":")[0] not in ("gym", "minatar", "ale"))


def is_wrapper_code(name: str) -> bool:
    """Return True if loading this wrapper imports a user's code, not one of Gymnasium's wrappers."""
    return name.partition(":")[0] != "gymnasium.wrappers"


def _import_from_here() -> None:
    """Put the current folder on the import path, as `python -m` does, and leave it there: `reset` may import too."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)


def _attribute(name: str) -> Any:
    """Import `package.module:name`."""
    module, _, attribute = name.partition(":")
    _import_from_here()
    return getattr(importlib.import_module(module), attribute)


def _wrapper(name: str) -> Callable[[Any], Any]:
    """Load a wrapper. Raises ValueError if it does not import or is not a function."""
    try:
        found = _attribute(name)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise ValueError(f"wrappers: expected {name} to import, got {_reason(error)}") from error
    if not callable(found):
        raise ValueError(f"wrappers: expected {name} to be a class or a function, got {type(found).__name__}")
    return found


def _wrapped(env: Env | HostEnv, wrappers: Sequence[tuple[str, Callable[[Any], Any]]]) -> Env | HostEnv:
    """Apply functions from `Env` to `Env`, or from `HostEnv` to `HostEnv`, the innermost first."""
    kind = type(env)
    for name, wrapper in wrappers:
        try:
            env = wrapper(env)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"wrappers: expected {name} to be a function of one {kind.__name__}, got {_reason(error)}"
            ) from error
        if not isinstance(env, kind):
            raise ValueError(f"wrappers: expected {name} to return {_a(kind)}, got {_a(type(env))}")
    return env


def _a(kind: type) -> str:
    return f"an {kind.__name__}" if kind in (Env, HostEnv) else kind.__name__


def _reason(error: BaseException) -> str:
    """Return the message of an error of a user's code on one line."""
    kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


def _made(name: str, kwargs: dict[str, Any]) -> Env:
    """Make a pure environment, for which only keyword arguments of its `make` are accepted."""
    takes = inspect.signature(_entry(name).make).parameters
    if others := {key: value for key, value in kwargs.items() if key not in takes or key == "dtype"}:
        known = ", ".join(key for key in takes if key != "dtype")
        raise ValueError(f"env_kwargs: expected arguments of {name} ({known}), got {_text(others)}")
    return make(name, **kwargs)


def _registered_env(name: str, kwargs: dict[str, Any], wrappers: Sequence[tuple[str, Callable[[Any], Any]]]) -> HostEnv:
    """Make an environment of Gymnasium's registry."""
    from fdqn.envs.host import gymnasium

    if name.count(":") > 1:
        _import_from_here()  # the module that registers it
    try:
        return gymnasium.named(name.removeprefix("gym:"), wrappers, **kwargs)
    except ValueError as error:
        raise _about_kwargs(error, name, kwargs) from error.__cause__


def _text(kwargs: dict[str, Any]) -> str:
    return " ".join(arguments.to_pairs(kwargs))


def _about_kwargs(error: ValueError, name: str, kwargs: dict[str, Any]) -> ValueError:
    """Return the error of an environment that was made with keyword arguments as one about these."""
    if not kwargs or not str(error).startswith("env: "):
        return error
    given = _text(kwargs)
    if isinstance(error.__cause__, TypeError) and "argument" in str(error.__cause__):
        return ValueError(f"env_kwargs: expected arguments that {name} accepts, got {given}: {error.__cause__}")
    return ValueError(f"{error} (with the env_kwargs {given})")


def _load(name: str, kwargs: dict[str, Any], wrappers: Sequence[tuple[str, Callable[[Any], Any]]]) -> Env | HostEnv:
    try:
        found = _attribute(name)
        given = found(**copy.deepcopy(kwargs)) if callable(found) and not is_env(found) else found
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        reason = ValueError(f"env: expected {name} to give an environment, got {_reason(error)}")
        reason.__cause__ = error
        raise _about_kwargs(reason, name, kwargs) from error
    if kwargs and given is found:
        raise ValueError(f"env_kwargs: expected none for {name}, which is not a function, got {_text(kwargs)}")
    if is_env(given):
        return _wrapped(given, wrappers)
    import gymnasium

    from fdqn.envs.host.gymnasium import from_factory
    from fdqn.envs.host.vector import close

    single = isinstance(given, gymnasium.Env)
    if single and callable(found):
        close(given)
        return from_factory(name, found, wrappers, **kwargs)
    hint = "; give the class itself, so that each seed has its own" if single else ""
    raise ValueError(
        f"env: expected {name} to give an Env, a HostEnv or a gymnasium environment, got {type(given).__name__}{hint}"
    )


def make(name: str, **settings: Any) -> Env:
    """Make a pure environment.

    Raises ValueError if `names` does not list the name.

    Args:
        name: one of `names`.
        settings: `time_limit` in steps, `dtype`, and those of the environment's own `make`.
    """
    return _entry(name).make(**settings)


def describe(name: str) -> str:
    """Describe a pure environment in one line: task, observation, actions, time limit, equivalent in Gymnasium."""
    entry = _entry(name)
    spec = entry.make().spec
    same = f"; as {GYMNASIUM[name]}" if name in GYMNASIUM else ""
    return f"{entry.task}; obs {list(spec.obs_shape)}, {spec.actions} actions, {spec.time_limit} steps{same}"


def _entry(name: str) -> _Entry:
    if not isinstance(name, str):
        raise TypeError(f"name: expected the name of an environment, got {name!r}; known: {', '.join(names())}")
    if name not in _ENTRIES:
        near = next(_suggestions(name), None) or next(iter(difflib.get_close_matches(name, names(), n=1)), None)
        hint = f"; did you mean '{near}'?" if near else "."
        raise ValueError(f"unknown environment '{name}'{hint} Known: {', '.join(names())}")
    return _ENTRIES[name]


def _suggestions(name: str) -> Iterator[str]:
    """Yield valid names close to an unprefixed or misspelt one, the likeliest first."""
    if registered := _registered(name):
        yield from (key for key, same in GYMNASIUM.items() if f"gym:{same}" == registered)
        yield registered
    game = re.fullmatch(r"(?:ALE/|MinAtar/)?(\w+?)(?:NoFrameskip|Deterministic)?(?:-v\d+)?", name)
    word = _snake(game[1]) if game else ""
    minatar = [key for key in names() if key == f"minatar:{word}"]
    if name == word or name.startswith("MinAtar/"):
        yield from minatar
    yield from _atari(word)
    yield from minatar


def _snake(name: str) -> str:
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _registered(name: str) -> str | None:
    """Find a name in Gymnasium's registry, ignoring case and with the newest version if it has none."""
    import gymnasium

    def task(name: str) -> str:
        return re.sub(r"-v\d+$", "", name).lower()

    known = [key for key, spec in gymnasium.registry.items() if "ale_py" not in str(spec.entry_point)]
    same = [key for key in known if task(key) == task(name)]
    newest = max(same, key=lambda key: int((re.findall(r"-v(\d+)$", key) or [0])[0]), default=None)
    found = name if name in same else newest
    return found and f"gym:{found}"


def _atari(word: str) -> list[str]:
    """Find a game of Atari, if ale-py is installed."""
    if not word or importlib.util.find_spec("ale_py") is None:
        return []
    from ale_py import roms

    name = "".join(map(str.capitalize, word.split("_")))
    return [f"ale:{name}"] if word in roms.get_all_rom_ids() and _snake(name) == word else []
