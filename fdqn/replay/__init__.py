"""Replay buffers of transitions, as values."""

from fdqn.replay import frames, n_step, packing, ring
from fdqn.replay.ring import Replay, add, add_where, cut, filled, init, remember, sample, transition

__all__ = [
    "Replay", "add", "add_where", "cut", "filled", "frames", "init", "n_step", "packing", "remember", "ring", "sample",
    "transition",
]  # fmt: skip
