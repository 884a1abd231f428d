"""Command `fdqn`: parse the arguments (`parse`), run the command (`commands`), print results (`tables`)."""

from fdqn.cli.commands import main

__all__ = ["main"]
