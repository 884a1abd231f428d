"""Parse and format keyword arguments of environments, `name=value`, for flags and settings. Does not import torch."""

import ast
from collections.abc import Iterable, Mapping
from typing import Any


def parse(pairs: Iterable[str]) -> dict[str, Any]:
    """Parse pairs such as `is_slippery=False` and `map_name=8x8` into a dict.

    `ast.literal_eval` parses the values: numbers, strings, True, False, None, and tuples, lists, sets or dicts of them.
    Any other text is a string. Raises ValueError for a pair without a name or `=`, and for a name that occurs twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"env_kwargs: expected name=value, such as is_slippery=False, got {pair!r}")
        if name in values:
            raise ValueError(f"env_kwargs: expected each name once, got {name} twice")
        values[name] = _literal(text)
    return values


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the errors that its documentation lists
        return text


def to_pairs(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Format keyword arguments as pairs `name=value`, sorted by name. The inverse of `parse`.

    Raises TypeError for a name that is not an identifier, and for a value that is not a Python literal.
    """
    for name, value in values.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(f"env_kwargs: expected names of arguments, got {name!r}")
        if not _is_literal(value):
            raise TypeError(
                f"env_kwargs: expected a Python literal, such as a number, a string or a list, got {name}={value!r}"
            )
    return tuple(f"{name}={_text(values[name])}" for name in sorted(values))


def _text(value: Any) -> str:
    """Return the representation of a value, with sets in a sorted order, which is not that of another process."""
    match value:
        case set() if value and type(value) is set:
            return f"{{{', '.join(sorted(map(_text, value)))}}}"
        case dict() if type(value) is dict:
            return f"{{{', '.join(f'{_text(key)}: {_text(x)}' for key, x in value.items())}}}"
        case list() if type(value) is list:
            return f"[{', '.join(map(_text, value))}]"
        case tuple() if type(value) is tuple:
            return f"({', '.join(map(_text, value))}{',' * (len(value) == 1)})"
    return repr(value)


def _is_literal(value: Any) -> bool:
    """Return True if the text of a value is a literal that evaluates to an equal value of the same type."""
    try:
        text = _text(value)
    except RecursionError:  # a list that contains itself
        return False
    read = _literal(text)
    return type(read) is type(value) and read == value and _text(read) == text
