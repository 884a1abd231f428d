"""Agents: value-based learning rules, each made by the function `agent` of its module.

- `dqn`: Q-learning and double Q-learning, also with noisy networks.
- `munchausen`: DQN whose rewards include the log-probability of the action taken.
- `c51`: categorical DQN, which learns the distribution of returns.
- `qr_dqn`: DQN of quantiles, which learns the distribution of returns at fixed fractions.
- `iqn`: the same at sampled fractions.
- `pqn`: regression to returns, for `training.on_policy.algorithm`.

Rainbow is `c51.agent(network, support, double=True)` with a noisy dueling network, `replay.prioritized.buffer` and
`replay.n_step.wrap`.

`check_agent` checks the shapes of a custom agent.
"""

from fdqn.agents import c51, dqn, iqn, munchausen, pqn, qr_dqn
from fdqn.agents.agent import check_agent, check_loss_output, each_pass, noise_shapes

__all__ = [
    "c51",
    "check_agent",
    "check_loss_output",
    "dqn",
    "each_pass",
    "iqn",
    "munchausen",
    "noise_shapes",
    "pqn",
    "qr_dqn",
]
