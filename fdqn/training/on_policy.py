"""On-policy learning from rollouts, as in PQN, without replay and target network.

In a training iteration every environment takes T steps. The Q-values are regressed to the Q(lambda) returns of these
steps in several epochs of minibatches; then the rollout is discarded.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import check
from fdqn.ops import masking
from fdqn.training import off_policy
from fdqn.training.config import Config
from fdqn.types import (
    Agent,
    Algorithm,
    Diagnostics,
    Hyper,
    Learner,
    Optimizer,
    Params,
    Sample,
    Scalar,
    Transition,
    Uniforms,
)


class Rollout(NamedTuple):
    """Steps of one training iteration. Row `t * E + e` is step t of environment e."""

    obs: Tensor
    """[T * E, *O]."""
    action: Tensor
    """[T * E] int64."""
    next_legal: Tensor
    """[T * E, A] bool."""
    returns: Tensor
    """[T * E], Q(lambda) returns up to the newest step."""
    valid: Tensor
    """[T * E] bool, False where no step was taken."""
    trace: Tensor
    """[T * E], weight of the next TD error in the return of each row; 0 if the episode of the row has ended."""
    value: Tensor
    """[E], largest Q-value of a legal action at the newest observation."""
    steps: Tensor
    """[] int64, number of steps taken in this training iteration, from 0 to T - 1."""


def algorithm(
    config: Config, agent: Agent, optimizer: Callable[[Hyper], Optimizer], lambda_: Scalar = 0.65
) -> Algorithm:
    """Make an algorithm that learns only from the rollout of each training iteration: PQN.

    The `updates_per_cycle` updates are epochs of minibatches of `batch_size` rows, each epoch over a random permutation
    of the `num_envs * steps_per_cycle` rows. With host environments, the last step of an iteration is used in the
    updates of the next one, with its one-step return. Gallici et al. 2024, https://arxiv.org/abs/2407.04811

    Returns use the values of the parameters that acted. A truncated episode bootstraps from its last observation,
    unless `config.terminal_on_truncation`, as in CleanRL's pqn.py and purejaxql. A schedule of the learning rate counts
    updates, as in purejaxql; CleanRL's rate is constant within a training iteration. The loss of `pqn.agent` is that of
    CleanRL, twice that of purejaxql.

    Args:
        config: sizes and options of training. An epoch consists of whole minibatches and an iteration of whole
            epochs. `learning_starts` and `target_period` must be 0, `n_step` 1; `capacity` is not used.
        agent: values and losses, such as `pqn.agent(network)`. Its loss gets transitions with the return as reward and
            a discount of 0.
        optimizer: makes the optimizer of one seed from its hyper-parameters.
        lambda_: interpolates between one-step (0) and Monte Carlo returns (1).

    Raises TypeError for an argument of another type and ValueError for sizes that do not fit together.
    """
    check.kind("config", config, Config)
    check.kind("agent", agent, Agent)
    check.function("optimizer", optimizer)
    check.fraction("lambda_", lambda_)
    _check_sizes(config)
    return Algorithm(
        config=config,
        agent=agent,
        init=partial(_init, config, optimizer),
        observe=partial(_observe, config, agent, lambda_),
        update=partial(_update, agent, optimizer),
        select=partial(permutations, rows=config.env_steps),
        cut=_cut,
        bounds=partial(_bounds, config),
    )


def permutations(bits: Tensor, rows: int) -> Tensor:
    """Convert random integers to the rows of all minibatches: each epoch is a random permutation of all rows.

    Shapes: bits and result [..., n, B] int64, where n * B is a multiple of `rows`. Raises ValueError otherwise.
    """
    check.shapes("bits[... n B]", bits)
    check.bits("bits", bits)
    check.count("rows", rows, 1)
    if (count := bits.shape[-2] * bits.shape[-1]) % rows:
        raise ValueError(f"bits: expected a multiple of {rows} of them, got {count}")
    # A stable sort, so that ties have the same order on all devices.
    return bits.reshape(*bits.shape[:-2], -1, rows).argsort(dim=-1, stable=True).reshape(bits.shape)


def _check_sizes(config: Config) -> None:
    rows = config.env_steps
    if rows % config.batch_size:
        raise ValueError(
            f"batch_size: expected a divisor of num_envs * steps_per_cycle = {rows}, got {config.batch_size}"
        )
    if (config.updates_per_cycle * config.batch_size) % rows:
        raise ValueError(
            f"updates_per_cycle: expected whole epochs, a multiple of {rows // config.batch_size} minibatches, got "
            f"{config.updates_per_cycle}"
        )
    for name, expected, why in (
        ("target_period", 0, "there is no target network"),
        ("learning_starts", 0, "every training iteration learns from its own steps"),
        ("n_step", 1, "returns span the rollout"),
    ):
        if (got := getattr(config, name)) != expected:
            raise ValueError(f"{name}: expected {expected}, as {why}, got {got}")


def _init(
    config: Config, optimizer: Callable[[Hyper], Optimizer], params: Params, hyper: Hyper, example: Transition
) -> tuple[Learner, Rollout]:
    learner = off_policy.init(optimizer(hyper), params)
    rows, floats = config.env_steps, example.reward
    rollout = Rollout(
        obs=example.obs.new_zeros((rows, *example.obs.shape)),
        action=example.action.new_zeros(rows),
        next_legal=example.next_legal.new_zeros((rows, *example.next_legal.shape)),
        returns=floats.new_zeros(rows),
        valid=torch.zeros(rows, dtype=torch.bool, device=floats.device),
        trace=floats.new_zeros(rows),
        value=floats.new_zeros(config.num_envs),
        steps=torch.zeros_like(example.action),
    )
    return learner._replace(target_params={}), rollout


def _observe(
    config: Config,
    agent: Agent,
    lambda_: Scalar,
    learner: Learner,
    rollout: Rollout,
    batch: Transition,
    ended: Tensor,
    valid: Tensor | None,
    hyper: Hyper,
) -> Rollout:
    """Add one step of every environment and update the returns of the earlier rows.

    A new step changes the lambda-return of an earlier row by its TD error, times `gamma * lambda` for each step in
    between. The result equals `returns.lambda_returns` over the rollout, without a second pass over it.
    """
    envs = config.num_envs
    valid = torch.ones_like(ended) if valid is None else valid
    value = masking.best(agent.values(learner.params, batch.next_obs, ()), batch.next_legal)
    discount = hyper.gamma * batch.discount
    one_step = batch.reward + discount * value
    trace = torch.where(rollout.steps == 0, 0.0, rollout.trace)
    # If the episode continues, `rollout.value` is the value at `obs`; otherwise all traces are 0.
    delta = torch.where(valid, one_step - rollout.value, 0.0)
    decay = torch.where(ended | ~valid, 0.0, discount * lambda_)
    returns, trace = (
        rollout.returns + trace * delta.repeat(len(trace) // envs),
        trace * decay.repeat(len(trace) // envs),
    )
    at = rollout.steps * envs + torch.arange(envs, device=ended.device)
    return Rollout(
        obs=rollout.obs.index_put((at,), batch.obs),
        action=rollout.action.index_put((at,), batch.action),
        next_legal=rollout.next_legal.index_put((at,), batch.next_legal),
        returns=returns.index_put((at,), one_step),
        valid=rollout.valid.index_put((at,), valid),
        trace=trace.index_put((at,), decay),
        value=value,
        steps=(rollout.steps + 1) % config.steps_per_cycle,
    )


def _update(
    agent: Agent,
    optimizer: Callable[[Hyper], Optimizer],
    learner: Learner,
    rollout: Rollout,
    sample: Tensor,
    noise: Uniforms,
    hyper: Hyper,
) -> tuple[Learner, Rollout, Diagnostics]:
    """Take one gradient step on the rows `sample` [B] of the rollout."""
    obs, action, next_legal, returns, valid = (x[sample] for x in rollout[:5])
    # With a discount of 0 the next observation is not used, so `obs` can take its place.
    batch = Transition(obs, action, returns, torch.zeros_like(returns), obs, next_legal)
    weight = valid.to(returns.dtype) * (len(sample) / valid.sum().clamp_min(1)).to(returns.dtype)
    complete = learner._replace(target_params=learner.params)
    updated, diagnostics, _ = off_policy.update(
        agent, optimizer(hyper), complete, Sample(batch, sample, weight), hyper, noise
    )
    return updated._replace(target_params={}), rollout, diagnostics


def _cut(rollout: Rollout) -> Rollout:
    """Reset the traces, so that no return includes rewards of the new episodes."""
    return rollout._replace(trace=torch.zeros_like(rollout.trace))


def _bounds(config: Config, rollout: Rollout, steps: int) -> dict[str, tuple[Tensor, int]]:
    return {"steps": (rollout.steps, config.steps_per_cycle - 1)}
