"""Completion of the command's flags in shells: tyro's scripts, with corrections."""

import contextlib
import io
import re
from typing import Any, Literal, get_args

import tyro

from fdqn.experiment import process

Shell = Literal["bash", "zsh", "fish"]
SHELLS: tuple[Shell, ...] = get_args(Shell)


def script(shell: Shell, commands: Any) -> str:
    """Return the script that completes the commands of `fdqn`, a union of dataclasses, in a shell."""
    text = io.StringIO()
    with process.REDIRECTING, contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(commands, prog="fdqn", args=["--tyro-print-completion", shell])
    # tyro prints a line for each candidate, so that a line break in a help text would begin another candidate.
    written = re.sub(r"(?m)^COMPLETION_SPEC = .*$", lambda spec: spec[0].replace(r"\n", " "), text.getvalue())
    return _with_files(written) if shell == "bash" else written


def _with_files(written: str) -> str:
    """Complete the names of files where tyro's script for bash has no candidates, as for run folders."""
    written = written.replace("complete -F ", "complete -o default -F ")
    return written.replace('    matches+=("$completion")', '    [[ -n "$completion" ]] && matches+=("$completion")')
