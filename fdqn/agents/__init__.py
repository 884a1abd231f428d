"""Agents: value-based learning rules, each made by the function `agent` of its module.

`dqn` is deep Q-learning; `c51` predicts distributions of returns, `noisy` takes networks with noise, `pqn` regresses
to returns for `training.on_policy.algorithm`. `check_agent` checks an agent of your own.
"""

from fdqn.agents import c51, dqn, noisy, pqn
from fdqn.agents.agent import check_agent, check_loss_output, each_pass, noise_shapes

__all__ = ["c51", "check_agent", "check_loss_output", "dqn", "each_pass", "noise_shapes", "noisy", "pqn"]
