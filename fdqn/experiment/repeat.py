"""Write the command that trains a run again, from its settings."""

import dataclasses
import itertools
import shlex
from typing import Any

from fdqn.experiment.settings import Settings, Sweep, defaults
from fdqn.report import sweeps


def command(settings: Settings) -> str | None:
    """Return the command line that trains with these settings. It omits the defaults of the algorithm.

    The run folder is omitted, too, so that a new one is created. For a sweep, each varied flag has all of its values.
    Returns None for a sweep whose settings are not the combinations of such values, such as one drawn from ranges.
    """
    varied = _options(settings) if isinstance(settings, Sweep) else {}
    if varied is None:
        return None
    usual = defaults(settings.algorithm, settings.noisy)
    own = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings) if field.name != "out"}
    changed = {name: x for name, x in own.items() if x != getattr(usual, name) and name not in varied}
    always = {name: own[name] for name in ("env", "algorithm", "seeds", "seed", "steps") if name not in varied}
    words = [word for name, x in {**always, **changed}.items() for word in _flag(name, x)]
    words += [word for name, options in varied.items() for word in (_dashed(name), *map(_word, options))]
    every = settings.pbt_every if isinstance(settings, Sweep) else 0
    return shlex.join(["fdqn", "train", *words, *(["--pbt-every", str(every)] if every else [])])


def commands(settings: Settings, planned: int) -> list[str]:
    """Return the commands that train a run of one setting again, and extend it if more steps were `planned` later."""
    train = command(settings)
    assert train is not None
    return [train, *([f"fdqn resume RUN --steps {planned}"] if planned != settings.steps else [])]


def _options(settings: Sweep) -> dict[str, list[Any]] | None:
    """Return the values of each varied setting; None unless their product, the last varying fastest, is the sweep."""
    names, rows = list(settings.varied[0]), [tuple(values.values()) for values in settings.varied]
    options = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    if rows != list(itertools.product(*options)) or max(map(len, options)) > sweeps.LEVELS:
        return None
    return dict(zip(names, options, strict=True))


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [_dashed(name) if value else _dashed(f"no_{name}")]
    return [_dashed(name), *map(str, value)] if isinstance(value, tuple) else [_dashed(name), str(value)]


def _word(value: Any) -> str:
    """Format one of several values of a flag: layer sizes are joined by commas, and booleans are in lower case."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"
