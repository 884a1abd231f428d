"""Consoles of the command: progress and messages on standard error, results on standard output."""

import os
import sys
from typing import TYPE_CHECKING, Any

from fdqn.experiment import process

if TYPE_CHECKING:
    from rich.console import Console


def console() -> "Console":
    """Return a console for standard error that stays silent after its pipe is closed."""
    from rich.console import Console

    class Silent(Console):
        """Discard output after a broken pipe, so that the run continues."""

        def print(self, *objects: Any, **how: Any) -> None:
            super().print(*map(_as_typed, objects), **how)

        def on_broken_pipe(self) -> None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    return Silent(stderr=True, highlight=False, markup=False, emoji=False)


def _as_typed(x: Any) -> Any:
    """Return text with its paths as the user typed them, and other objects unchanged."""
    return process.shown(x) if isinstance(x, str) else x


def results() -> "Console":
    """Return a console for standard output that raises BrokenPipeError when its pipe is closed."""
    from rich.console import Console

    # Outside of a terminal, tables are 160 columns wide instead of the 80 that rich assumes.
    class Plain(Console):
        """Raise BrokenPipeError as `print` does."""

        def print(self, *objects: Any, **how: Any) -> None:
            super().print(*map(_as_typed, objects), **how)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    plain = Plain(highlight=False, markup=False, emoji=False)
    return plain if plain.is_terminal else Plain(highlight=False, markup=False, emoji=False, width=160)
