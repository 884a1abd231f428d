"""Examples for laws: a program that is small enough to check in seconds, and inputs.

To check a custom component, pass it to `program`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fdqn import networks, random, training
from fdqn.agents import dqn
from fdqn.envs.classic import cartpole
from fdqn.experiment import assemble
from fdqn.training import off_policy
from fdqn.types import Agent, Env, Hyper, Network, Optimizer, Params, Sample, Transition

__all__ = ["params", "program", "sample", "seeds"]


def program(
    env: Env | None = None,
    hidden: tuple[int, ...] = (8,),
    double: bool = True,
    network: Network | None = None,
    agent: Agent | None = None,
    optimizer: Callable[[Hyper], Optimizer] | None = None,
    **config: Any,
) -> training.Program:
    """Make a small program: by default a DQN of CartPole with episodes of at most 20 steps.

    Args:
        env: environment to use instead of CartPole.
        hidden: sizes of the hidden layers of the MLP.
        double: use double Q-learning.
        network: network to use instead of the MLP.
        agent: agent to use instead of the DQN.
        optimizer: makes the optimizer of one seed from its hyper-parameters; Adam on clipped gradients by default.
        **config: fields of `training.Config`.
    """
    env = env or cartpole.make(time_limit=20)
    network = network or networks.mlp(env.spec.obs_shape, hidden, env.spec.actions)
    small = {"num_envs": 3, "batch_size": 8, "capacity": 40, "learning_starts": 12, "target_period": 4}
    sizes, agent = training.Config(**{**small, **config}), agent or dqn.agent(network, double)
    algorithm = off_policy.algorithm(
        sizes, agent, assemble.buffer(sizes, env.spec), optimizer or assemble.clipped(assemble.adam)
    )
    return training.Program(env, algorithm)


def seeds(count: int, seed: int = 0) -> tuple[Hyper, Tensor]:
    """Make hyper-parameters and keys of `count` seeds that differ in every hyper-parameter."""
    spread = torch.linspace(0.0, 1.0, count).tolist()
    hyper = training.hyper(
        count,
        learning_rate=[1e-3 * (1 + x) for x in spread],
        gamma=[0.9 + 0.09 * x for x in spread],
        epsilon_end=[0.3 * x for x in spread],
        epsilon_steps=[50 + 50 * x for x in spread],
        tau=[0.1 + 0.5 * x for x in spread],
        max_grad_norm=[1 + x for x in spread],
    )
    return hyper, random.key(list(range(seed, seed + count)))


def params() -> Params:
    """Make small parameters in float64: two matrices, a vector and a scalar."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (1, 4), "scale": ()}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def sample(batch: Transition) -> Sample:
    """Make a uniform sample of a batch [B, ...]: weights 1, indices 0 to B - 1."""
    count = batch.reward.shape[0]
    return Sample(batch, torch.arange(count, device=batch.reward.device), torch.ones_like(batch.reward))
