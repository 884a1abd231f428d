"""Presets: published settings of one algorithm. Does not import torch."""

import math
from typing import Any, Literal

_CLASSIC: dict[str, Any] = {
    "batch_size": 32,
    "optimizer": "rmsprop",
    "learning_rate": 2.5e-4,
    "max_grad_norm": math.inf,
    "epsilon_end": 0.1,
    "random_warmup": True,
    "double": False,
    "loss": "huber",
}

Preset = Literal["minatar", "nature"]

PRESETS: dict[Preset, dict[str, Any]] = {
    "minatar": {
        **_CLASSIC,
        "steps": 5_000_000,
        "num_envs": 1,
        "capacity": 100_000,
        "learning_starts": 5_000,
        "target_period": 1_000,
        "epsilon_fraction": 0.02,
        "report_every": 25_000,
        "checkpoint_every": 100_000,
    },
    "nature": {
        **_CLASSIC,
        "optimizer": "nature-rmsprop",
        "seeds": 1,
        "steps": 10_000_000,
        "num_envs": 4,
        "capacity": 1_000_000,
        "learning_starts": 50_000,
        "target_period": 10_000,
        "epsilon_fraction": 0.1,
        "clip_rewards": True,
        "terminal_on_life_loss": True,
        "evaluate_epsilon": 0.05,
        "evaluate_episodes": 30,
        "report_every": 50_000,
        "checkpoint_every": 1_000_000,
    },
}
"""Settings published by papers, without the environment. Differences from the authors' code:

minatar (Young and Tian 2019, https://arxiv.org/abs/1903.03176; examples/dqn.py of kenjyoung/MinAtar)
- Minibatches are sampled with replacement; theirs without.
- Episodes are truncated after 10,000 steps, and training bootstraps there; theirs have no limit.
- The first update follows step 5,001; theirs step 5,002.
- RMSprop has no momentum, as in their code until December 2024; since then theirs has a momentum of 0.95.

nature (Mnih et al. 2015, https://doi.org/10.1038/nature14236; google-deepmind/dqn)
- Four environments take one step each between updates; theirs is one environment that takes four.
- 10 million steps, the first fifth of their 50 million. One seed, because its replay takes 7.6 GB.
- The target network is copied every 10,000 updates, as in the paper; their code copies it every 10,000 steps, which
  are 2,500 updates.
- If a game waits for the fire button, it is pressed at the start. Episodes are truncated after half an hour.
- The final parameters are evaluated on whole episodes; theirs are evaluated every 250,000 steps, and the best are
  reported.
"""

EXAMPLES: dict[Preset, str] = {"minatar": "minatar:breakout", "nature": "ale:Breakout"}
"""Environment to suggest for a preset that does not choose one."""
