"""Records of a training program and of the state of one seed."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdqn import check, envs
from fdqn.training.config import Config
from fdqn.types import Agent, Algorithm, Diagnostics, Env, HostEnv, Hyper, Learner, Network, Params, Uniforms


class Program(NamedTuple):
    """Everything that is fixed before training starts."""

    env: Env | HostEnv
    algorithm: Algorithm

    @property
    def config(self) -> Config:
        """Sizes of a training iteration."""
        return self.algorithm.config

    @property
    def network(self) -> Network:
        """The agent's initial parameters and its values without noise, as evaluation uses them."""
        return policy(self.algorithm.agent)


def policy(agent: Agent) -> Network:
    """The network behind an agent's greedy actions: its values with `()` in place of noise."""
    check.kind("agent", agent, Agent)
    return Network(agent.init, partial(_values_without_noise, agent.values))


def _values_without_noise(values: Callable[..., Tensor], params: Params, obs: Tensor) -> Tensor:
    return values(params, obs, ())


CAUSES = ("nothing", "loss", "gradient", "parameter", "environment")
"""Causes of a seed's failure: what is NaN or infinite in an update, or an environment on the host that broke."""


class Metrics(NamedTuple):
    """Counters of one seed. Sums run from the start; the difference of two snapshots gives the mean between them."""

    running: Tensor
    """[E], return of each environment's unfinished episode."""
    returns: Tensor
    """[R + 1], ring of the returns of the last R episodes, NaN where fewer have ended; the last place is scratch."""
    episodes: Tensor
    """[] int64, episodes that have ended."""
    returned: Tensor
    """[] float64, sum of their returns."""
    totals: Diagnostics
    """Sums over all updates, [] float64 each."""
    failed: Tensor
    """[] int64, training iteration of the first update that was not finite; -1 for none. From there on the learner
    stays as it was."""
    cause: Tensor
    """[] int64, index in CAUSES of what was not finite."""


class TrainState(NamedTuple):
    """The whole state of one seed: with the program it determines everything that follows."""

    learner: Learner
    buffer: Any
    """Stored transitions, in the form of the algorithm's own."""
    env_state: Any
    """State of the environments; for environments stepped on the host, the actions [E] that they are to take."""
    obs: Tensor
    legal: Tensor
    metrics: Metrics
    hyper: Hyper
    key: Tensor
    cycle: Tensor
    """[] int64, training iterations done."""
    emptied: Tensor
    """[] int64, training iteration at which the buffer was empty: 0, or where a run was resumed without its buffer."""


class Noise(NamedTuple):
    """All random numbers of one training iteration."""

    act: Tensor
    """[k, E, 2] in [0, 1)."""
    env: Tensor
    """[k, E, K] in [0, 1)."""
    sample: Tensor
    """[n, B] int64, made by `Algorithm.select`."""
    values: Uniforms = ()
    """[k, *shape], of the shape that the agent states for E rows; () for none."""
    loss: Uniforms = ()
    """[n, *shape], of the shape that the agent states for B rows; () for none."""


class Interaction(NamedTuple):
    """Random numbers of one step of every environment, and the step's position in its training iteration."""

    act: Tensor
    """[E, 2] in [0, 1)."""
    env: Tensor
    """[E, K] in [0, 1)."""
    number: Tensor | int
    """[] int64, from 0 to k - 1."""
    values: Uniforms = ()


class UpdateNoise(NamedTuple):
    """Random numbers of one update."""

    sample: Tensor
    """[B] int64."""
    loss: Uniforms = ()


class Functions(NamedTuple):
    """Step functions over all seeds; `vmapped` gives eager ones, `fdqn.compile.compiled` compiled ones.

    `collect` and `cycle` run one training iteration for each of the n in their noise, leaves [n, S, ...].
    """

    noise: Callable[[Tensor, int, int], Noise]
    """`noise(keys [S, 2], first_cycle, cycles)`, leaves [cycles, S, ...]."""
    collect: Callable[[TrainState, Noise], TrainState]
    cycle: Callable[[TrainState, Noise], TrainState]
    sync: Callable[[TrainState], TrainState]


def check_program(program: Program) -> None:
    """Raise TypeError, naming the field, for a program with a part of another type."""
    check.kind("program", program, Program)
    if not envs.is_env(program.env):
        raise TypeError(f"program.env: expected Env or HostEnv, got {type(program.env).__name__}")
    check.kind("program.algorithm", program.algorithm, Algorithm)
    check.kind("program.config", program.config, Config)
    check.kind("program.agent", program.algorithm.agent, Agent)
    for name in ("init", "values", "loss", "noise"):
        check.function(f"program.agent.{name}", getattr(program.algorithm.agent, name))


def zero(device: torch.device) -> Tensor:
    """A counter [] int64 at 0."""
    return torch.zeros((), dtype=torch.int64, device=device)
