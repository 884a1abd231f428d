"""Agents: value-based learning rules, each made by the function `agent` of its module.

- `dqn`: Q-learning and double Q-learning, also with noisy networks.
- `munchausen`: DQN that adds the scaled log-probability of the action taken to the reward.
- `c51`: categorical DQN, which learns the probabilities of fixed returns.
- `qr_dqn`: DQN by quantile regression, which learns quantiles of the return at fixed fractions.
- `iqn`: implicit quantile networks, which learn quantiles of the return at sampled fractions.
- `pqn`: regression to returns, for `training.on_policy.algorithm`.

Rainbow is `c51.agent(network, support, double=True)` with a noisy dueling network, `replay.prioritized.buffer` and
`replay.n_step.wrap`.

`check_agent` checks the shapes of a custom agent.

.. include:: ../docs/rainbow.md
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
