"""Off-policy learning from a replay buffer, as in DQN: updates, target copies, and the `Algorithm`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from fdqn import check, optim, tree
from fdqn.agents import check_loss_output
from fdqn.training.config import Config
from fdqn.types import (
    Agent,
    Algorithm,
    Buffer,
    Diagnostics,
    Hyper,
    Learner,
    Optimizer,
    Params,
    Sample,
    Transition,
    Uniforms,
)


def algorithm(
    config: Config,
    agent: Agent,
    buffer: Buffer,
    optimizer: Callable[[Hyper], Optimizer],
    target_period: Tensor | None = None,
) -> Algorithm:
    """Make an algorithm that learns from a replay buffer, such as DQN.

    Each update samples `config.batch_size` rows, takes one gradient step and updates the priorities of the rows. Mnih
    et al. 2015, https://doi.org/10.1038/nature14236

    Args:
        config: sizes and options of training.
        agent: values and losses, such as `dqn.agent(network)`.
        buffer: replay buffer, such as `replay.ring.buffer(config.capacity)`.
        optimizer: makes the optimizer of one seed from its hyper-parameters.
        target_period: updates between hard copies of the target parameters, [] int64, if it differs between seeds. Then
            `config.target_period` must be 0 and is not a soft update. The update itself makes the copies, which takes
            longer than `config.target_period`, for which the training loop makes them.

    Raises TypeError for an argument of another type, and ValueError for two target periods.
    """
    check.kind("config", config, Config)
    check.kind("agent", agent, Agent)
    check.kind("buffer", buffer, Buffer)
    check.function("optimizer", optimizer)
    if target_period is not None:
        check.shapes("target_period[]", target_period)
        check.integer("target_period", target_period)
        if config.target_period:
            raise ValueError(f"config.target_period: expected 0 with target_period, got {config.target_period}")
    return Algorithm(
        config=config,
        agent=agent,
        init=partial(_init, agent, buffer, optimizer),
        observe=partial(_observe, buffer),
        update=partial(_update, config, agent, buffer, optimizer, target_period),
        select=_unchanged,
        cut=buffer.cut,
        bounds=buffer.bounds,
    )


def _unchanged(bits: Tensor) -> Tensor:
    return bits


def _init(
    agent: Agent,
    buffer: Buffer,
    optimizer: Callable[[Hyper], Optimizer],
    params: Params,
    hyper: Hyper,
    example: Transition,
) -> tuple[Learner, Any]:
    return init(optimizer(hyper), params), buffer.init(example)


def _observe(
    buffer: Buffer,
    learner: Learner,
    state: Any,
    batch: Transition,
    ended: Tensor,
    valid: Tensor | None,
    hyper: Hyper,
) -> Any:
    return buffer.add(state, batch, ended, valid, hyper.gamma)[0]


def _update(
    config: Config,
    agent: Agent,
    buffer: Buffer,
    optimizer: Callable[[Hyper], Optimizer],
    target_period: Tensor | None,
    learner: Learner,
    state: Any,
    bits: Tensor,
    noise: Uniforms,
    hyper: Hyper,
) -> tuple[Learner, Any, Diagnostics]:
    sample = buffer.sample(state, bits, 0)
    check.kind("buffer.sample", sample, Sample)
    check.shapes(f"sample.batch.reward[{config.batch_size}]", sample.batch.reward)
    learner, diagnostics, priority = update(agent, optimizer(hyper), learner, sample, hyper, noise)
    if target_period is not None:
        learner = soft_copy(learner, torch.where(learner.updates % target_period == 0, 1.0, 0.0))
    elif config.target_period == 0:
        learner = soft_copy(learner, hyper.tau)
    return learner, buffer.update(state, sample.indices, priority), diagnostics


def init(optimizer: Optimizer, params: Params) -> Learner:
    """Make a learner before its first update, whose target parameters are a copy of `params`.

    Raises TypeError for another type of optimizer or params, and ValueError for empty params.
    """
    check.kind("optimizer", optimizer, Optimizer)
    check.kind("params", params, dict)
    if not params:
        raise ValueError("params: expected at least one tensor, got none")
    updates = torch.zeros((), dtype=torch.int64, device=next(iter(params.values())).device)
    return Learner(params, tree.clone(params), optimizer.init(params), updates)


def update(
    agent: Agent, optimizer: Optimizer, learner: Learner, sample: Sample, hyper: Hyper, noise: Uniforms = ()
) -> tuple[Learner, Diagnostics, Tensor]:
    """Take one gradient step; return the learner, diagnostics and the new priorities [B].

        loss = mean over rows of weight * agent.loss

    Args:
        agent: computes the loss of each row.
        optimizer: transforms the gradient to updates of the parameters.
        learner: parameters, target parameters and optimizer state.
        sample: rows, leaves [B, ...], and their weights [B].
        hyper: hyper-parameters of one seed.
        noise: uniforms of shape `agent.noise(B).loss`.

    Raises TypeError or ValueError for losses or weights of the wrong type or shape.
    """
    check.kind("agent", agent, Agent)
    check.kind("optimizer", optimizer, Optimizer)
    check.kind("learner", learner, Learner)
    check.kind("sample", sample, Sample)
    # Hyper-parameters [S] would broadcast against a batch of S rows.
    check.shapes("hyper.gamma[]", hyper.gamma)
    rows, weight, indices = sample.batch.reward, sample.weight, sample.indices
    check.shapes("sample.batch.reward[B] sample.weight[B] sample.indices[B]", rows, weight, indices)
    check.floating("sample.weight", weight)
    grads, (value, (q, priority)) = grad_and_value(partial(_weighted_mean, agent), has_aux=True)(
        learner.params, learner.target_params, sample, hyper, noise
    )
    updates, opt_state = optimizer.update(grads, learner.opt_state, learner.params)
    params = optim.apply_updates(learner.params, updates)
    learner = Learner(params, learner.target_params, opt_state, learner.updates + 1)
    return learner, Diagnostics(value, q, tree.norm(grads)), priority


def _weighted_mean(
    agent: Agent, params: Params, target_params: Params, sample: Sample, hyper: Hyper, noise: Uniforms
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    output = agent.loss(params, target_params, sample.batch, hyper, noise)
    check_loss_output(output, sample.batch.reward.shape[0])
    return (sample.weight * output.loss).mean(), (output.q.mean(), output.priority)


def soft_copy(learner: Learner, tau: Tensor) -> Learner:
    """Move the target parameters towards the parameters: `target + tau * (params - target)`.

    Lillicrap et al. 2016, https://arxiv.org/abs/1509.02971. Raises ValueError for a tau outside [0, 1].
    """
    check.kind("learner", learner, Learner)
    check.fraction("tau", tau)
    return learner._replace(target_params=tree.lerp(learner.target_params, learner.params, tau))


def hard_copy(learner: Learner) -> Learner:
    """Replace the target parameters by the parameters."""
    check.kind("learner", learner, Learner)
    return learner._replace(target_params=tree.clone(learner.params))
