"""Access to names of torch that are not public and may be missing, or mean something else, in another version."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch


class UnavailableError(RuntimeError):
    """An engine cannot be used here: this version of torch lacks something, or the device is not one it supports."""


def lookup(name: str) -> Any:
    """Return the object of a dotted name such as `torch._inductor.compile`.

    Raises UnavailableError if it is missing.
    """
    found, parts = torch, name.split(".")
    for i, part in enumerate(parts[1:], 2):
        try:
            found = getattr(found, part) if hasattr(found, part) else importlib.import_module(".".join(parts[:i]))
        except ImportError:
            raise UnavailableError(f"torch {torch.__version__} has no {name}") from None
    return found


@contextlib.contextmanager
def calling(name: str) -> Iterator[None]:
    """Raise UnavailableError where the call of a private function inside fails because its parameters have changed."""
    try:
        yield
    except TypeError as error:
        raise UnavailableError(f"torch {torch.__version__} has another {name}: {str(error).splitlines()[0]}") from error
