"""Agents: value-based learning rules, each made by the function `agent` of its module.

- `dqn`: Q-learning and double Q-learning.
- `c51`: categorical DQN, which learns the distribution of returns.
- `noisy`: DQN with noisy networks.
- `pqn`: regression to returns, for `training.on_policy.algorithm`.

`check_agent` checks the shapes of a custom agent.
"""

from fdqn.agents import c51, dqn, noisy, pqn
from fdqn.agents.agent import check_agent, check_loss_output, each_pass, noise_shapes

__all__ = ["c51", "check_agent", "check_loss_output", "dqn", "each_pass", "noise_shapes", "noisy", "pqn"]
