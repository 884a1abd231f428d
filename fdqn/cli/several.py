"""Several values of a flag of `fdqn train`: a list, or a range from which values are drawn."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fdqn.experiment.settings import Settings

RANGES = ("log", "lin")
"""Words before a range: `log:1e-5:1e-2` and `lin:0.9:0.999`."""


class Several(NamedTuple):
    """Arguments with the first value of each flag, and all values of the flags that have several."""

    arguments: list[str]
    values: dict[str, list[Any]]
    draws: dict[str, tuple[str, float, float]]
    """Scale, low and high of each range."""


def split(arguments: Sequence[str]) -> Several:
    """Separate flags of `fdqn train` with several values from the others.

    The sizes of hidden layers are several numbers already, so several networks are written with commas:
    `--hidden 64,64 120,84`. Raises ValueError, naming the flag, for a value or a range that is not a number where one
    is needed.
    """
    kinds = {field.name: field.default for field in dataclasses.fields(Settings)}
    plain: list[str] = []
    values: dict[str, list[Any]] = {}
    draws: dict[str, tuple[str, float, float]] = {}
    for words in _groups(arguments):
        flag, equals, first = words[0].partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        own = [first, *words[1:]] if equals else words[1:]
        if not flag.startswith("--") or name not in kinds or kinds[name] == () or not own:
            plain += words
        elif len(own) == 1 and own[0].lower().startswith(tuple(f"{word}:" for word in RANGES)):
            draws[name] = _range(name, own[0])
        elif name == "hidden" and any("," in word for word in own):
            sizes = [_sizes(word) for word in own]
            if len(sizes) > 1:
                values[name] = sizes
            else:
                plain += [flag, *map(str, sizes[0])]
        elif isinstance(kinds[name], bool):
            switches = [_value(name, True, word) for word in own]
            if len(switches) > 1:
                values[name] = switches
            else:
                plain.append(flag if switches[0] else f"--no-{flag.removeprefix('--')}")
        elif name != "hidden" and len(own) > 1:
            values[name] = [_value(name, kinds[name], word) for word in own]
        else:
            plain += words
    return Several(plain, values, draws)


def _groups(arguments: Sequence[str]) -> list[list[str]]:
    """Split arguments before each flag."""
    groups: list[list[str]] = [[]]
    for word in arguments:
        if word.startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    return [group for group in groups if group]


def _range(name: str, word: str) -> tuple[str, float, float]:
    parts = word.split(":")
    try:
        scale, low, high = parts
        return ("log" if scale.lower() == "log" else "linear"), float(low), float(high)
    except ValueError:
        raise ValueError(f"{name}: expected a range such as log:1e-5:1e-2, got {word!r}") from None


def _sizes(word: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in word.split(",") if size)
    except ValueError:
        raise ValueError(f"hidden: expected sizes of layers such as 120,84, got {word!r}") from None


def _value(name: str, default: Any, word: str) -> Any:
    """Convert a word to the type of a setting."""
    if isinstance(default, bool):
        if word.lower() not in ("true", "false"):
            raise ValueError(f"{name}: expected true or false, got {word!r}")
        return word.lower() == "true"
    if not isinstance(default, int | float):
        return word
    kind = "whole number" if isinstance(default, int) else "number"
    if word.startswith(tuple(f"{word}:" for word in RANGES)):
        raise ValueError(f"{name}: expected several values or one range, got {word!r} among several")
    try:
        value = int(word) if isinstance(default, int) else float(word)
    except ValueError:
        raise ValueError(f"{name}: expected a {kind}, got {word!r}") from None
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{name}: expected a number, got {word!r}")
    return value
