"""Access to private names of torch, which may be missing or changed in another version."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch


class UnavailableError(RuntimeError):
    """An engine cannot be used: this version of torch lacks a function, or the device is not supported."""


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
    """Raise UnavailableError if a call inside the block fails because the parameters of a private function changed."""
    try:
        yield
    except TypeError as error:
        raise UnavailableError(f"torch {torch.__version__} has another {name}: {str(error).splitlines()[0]}") from error
