"""A program small enough to hold to every law in seconds; replace a part by yours and ask the laws again."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fdqn import build, dqn, losses, networks, random, training
from fdqn.envs.classic import cartpole
from fdqn.types import Env, Hyper, Network, Params

__all__ = ["lanes", "params", "program"]


def program(
    env: Env | None = None,
    hidden: tuple[int, ...] = (8,),
    double: bool = True,
    network: Network | None = None,
    **config: Any,
) -> training.Program:
    """CartPole with episodes of at most 20 steps, or `env`, and an MLP, or `network`; `config` are fields of
    `dqn.Config`.
    """
    world = env or cartpole.make(time_limit=20)
    network = network or networks.mlp(world.spec.obs_shape, hidden, world.spec.actions)
    small = {"num_envs": 3, "batch_size": 8, "capacity": 40, "learning_starts": 12, "target_period": 4}
    loss = dqn.double_q_learning if double else dqn.q_learning
    return training.Program(
        dqn.Config(**{**small, **config}),
        world,
        network,
        partial(loss, network.apply, losses.squared),
        build.clipped_adam,
    )


def lanes(count: int, seed: int = 0) -> tuple[Hyper, Tensor]:
    """Hyper-parameters and keys of `count` lanes that differ in everything a lane can differ in."""
    spread = torch.linspace(0.0, 1.0, count).tolist()
    hyper = dqn.hyper(
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
    """A small params tree in float64: a matrix, two vectors and a scalar."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (1, 4), "scale": ()}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
