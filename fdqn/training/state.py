"""Types of a training program, of the state of one seed, and of the random numbers of a training iteration."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdqn import check, envs
from fdqn.training.config import Config
from fdqn.types import Agent, Algorithm, Diagnostics, Env, HostEnv, Hyper, Learner, Network, Params, Uniforms


class Program(NamedTuple):
    """Environment and algorithm, which are fixed before training starts."""

    env: Env | HostEnv
    algorithm: Algorithm

    @property
    def config(self) -> Config:
        """Sizes of a training iteration."""
        return self.algorithm.config

    @property
    def network(self) -> Network:
        """The agent's network without noise, as evaluation uses it."""
        return policy(self.algorithm.agent)


def policy(agent: Agent) -> Network:
    """Return the network of an agent's greedy actions: its `values` with `()` as noise."""
    check.kind("agent", agent, Agent)
    return Network(agent.init, partial(_values_without_noise, agent.values))


def _values_without_noise(values: Callable[..., Tensor], params: Params, obs: Tensor) -> Tensor:
    return values(params, obs, ())


CAUSES = ("nothing", "loss", "gradient", "parameter", "environment")
"""Causes of the failure of a seed: a NaN or infinite loss, gradient or parameter, or a failed host environment."""


class Metrics(NamedTuple):
    """Counters of one seed. Sums run from the start, so differences of two snapshots give means between them."""

    running: Tensor
    """[E], return so far of the running episode of each environment."""
    elapsed: Tensor
    """[E] int64, steps so far of the running episode of each environment."""
    returns: Tensor
    """[R + 1], ring of the returns of the last R episodes, NaN if fewer have ended. The last element is scratch."""
    episodes: Tensor
    """[] int64, number of ended episodes."""
    returned: Tensor
    """[] float64, sum of the returns of ended episodes."""
    lengths: Tensor
    """[] int64, sum of the lengths of ended episodes."""
    totals: Diagnostics
    """Sums over all updates, [] float64 each."""
    failed: Tensor
    """[] int64, training iteration in which the seed failed; -1 for none. A failed seed makes no more updates."""
    cause: Tensor
    """[] int64, index of the cause of the failure in CAUSES."""


class TrainState(NamedTuple):
    """Complete state of one seed. State and program determine the rest of the run."""

    learner: Learner
    buffer: Any
    """Stored transitions, in a form defined by the algorithm."""
    env_state: Any
    """State of the environments; for host environments, their next actions [E]."""
    obs: Tensor
    legal: Tensor
    metrics: Metrics
    hyper: Hyper
    key: Tensor
    cycle: Tensor
    """[] int64, number of training iterations done."""
    emptied: Tensor
    """[] int64, training iteration at which the buffer was empty: 0, or that at which the run resumed without it."""


class Noise(NamedTuple):
    """All random numbers of one training iteration."""

    act: Tensor
    """[k, E, 2] in [0, 1)."""
    env: Tensor
    """[k, E, K] in [0, 1)."""
    sample: Tensor
    """[n, B] int64, made by `Algorithm.select`."""
    values: Uniforms = ()
    """[k, *shape], with the shape that the agent requests for E rows; () for none."""
    loss: Uniforms = ()
    """[n, *shape], with the shape that the agent requests for B rows; () for none."""


class Interaction(NamedTuple):
    """Random numbers of one step of every environment, and the index of the step in its training iteration."""

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
    """Step functions over all seeds, made by `vmapped` (eager) or `fdqn.compile.compiled`.

    `collect` and `cycle` run n training iterations for noise with leaves [n, S, ...].
    """

    noise: Callable[[Tensor, int, int], Noise]
    """`noise(keys [S, 2], first_cycle, cycles) -> noise`, leaves [cycles, S, ...]."""
    collect: Callable[[TrainState, Noise], TrainState]
    """Step the environments and store transitions, without updates."""
    cycle: Callable[[TrainState, Noise], TrainState]
    """Step the environments, store transitions and make updates."""
    sync: Callable[[TrainState], TrainState]
    """Copy the parameters to the target parameters."""


def check_program(program: Program) -> None:
    """Raise TypeError, naming the field, for a program with a field of the wrong type."""
    check.kind("program", program, Program)
    if not envs.is_env(program.env):
        raise TypeError(f"program.env: expected Env or HostEnv, got {type(program.env).__name__}")
    check.kind("program.algorithm", program.algorithm, Algorithm)
    check.kind("program.config", program.config, Config)
    check.kind("program.agent", program.algorithm.agent, Agent)
    for name in ("init", "values", "loss", "noise"):
        check.function(f"program.agent.{name}", getattr(program.algorithm.agent, name))


def zero(device: torch.device) -> Tensor:
    """Return a counter [] int64 of 0."""
    return torch.zeros((), dtype=torch.int64, device=device)
