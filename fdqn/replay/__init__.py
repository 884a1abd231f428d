"""Replay buffers, as `Buffer` records of functions of a state: `ring` draws uniformly, `prioritized` by priority.

`packing`, `n_step` and `frames` wrap a buffer and return a buffer: packed booleans, transitions over n steps, and each
frame of stacked observations stored once. They compose in this order, each of them left out where it is not needed:

    buffer = ring.buffer(capacity)
    buffer = packing.wrap(buffer)
    buffer = n_step.wrap(buffer, num_envs, steps)
    buffer = frames.wrap(buffer, num_envs, stack, capacity, steps)
"""

from fdqn.replay import frames, n_step, packing, prioritized, ring
from fdqn.replay.ring import transition

__all__ = ["frames", "n_step", "packing", "prioritized", "ring", "transition"]
