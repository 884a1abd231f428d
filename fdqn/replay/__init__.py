"""Replay buffers, as `Buffer` records of pure functions.

`ring.buffer` samples uniformly, `prioritized.buffer` in proportion to priorities. Wrappers add features: `packing`
packs boolean observations into bytes, `n_step` makes n-step transitions, and `frames` stores each frame of stacked
observations once. Each wrapper is optional. They compose in this order:

    buffer = ring.buffer(capacity)
    buffer = packing.wrap(buffer)
    buffer = n_step.wrap(buffer, num_envs, steps)
    buffer = frames.wrap(buffer, num_envs, stack, capacity, steps)
"""

from fdqn.replay import frames, n_step, packing, prioritized, ring
from fdqn.replay.ring import transition

__all__ = ["frames", "n_step", "packing", "prioritized", "ring", "transition"]
