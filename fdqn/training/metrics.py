"""Counters of one seed, and snapshots of them on the host."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fdqn import check, tree
from fdqn.ops import masking, schedules
from fdqn.training.state import CAUSES, Metrics, Program, TrainState, zero
from fdqn.types import Diagnostics, Hyper, Step

EPISODES_KEPT = 100
"""Number of episodes over which training returns are reported, as in CleanRL."""


class MetricsSnapshot(NamedTuple):
    """Metrics of all seeds on the host, [S] each. See `Metrics` for the fields."""

    episodes: NDArray[np.int64]
    updates: NDArray[np.int64]
    returned: NDArray[np.float64]
    lengths: NDArray[np.float64]
    loss: NDArray[np.float64]
    q: NDArray[np.float64]
    grad_norm: NDArray[np.float64]
    epsilon: NDArray[np.float64]
    failed: NDArray[np.int64]
    cause: NDArray[np.int64]
    last_returns: NDArray[np.float32]
    """[S, R], the ring of returns without its scratch element."""


def init(reward: Tensor) -> Metrics:
    """Make the metrics before the first step, for rewards [E]."""
    count = zero(reward.device)
    total = torch.zeros((), dtype=torch.float64, device=reward.device)
    return Metrics(
        running=torch.zeros_like(reward),
        elapsed=torch.zeros_like(reward, dtype=torch.int64),
        returns=reward.new_full((max(EPISODES_KEPT, len(reward)) + 1,), torch.nan),
        episodes=count,
        returned=total,
        lengths=count,
        totals=Diagnostics(total, total, total),
        failed=count - 1,
        cause=count,
    )


def count_episodes(metrics: Metrics, step: Step) -> Metrics:
    """Update the metrics after one step of every environment, leaves [E, ...]."""
    ended = step.terminated | step.truncated
    running, elapsed = metrics.running + step.reward, metrics.elapsed + 1
    kept = metrics.returns.shape[0] - 1
    place = (metrics.episodes + masking.count(ended) - 1) % kept
    return metrics._replace(
        running=torch.where(ended, 0.0, running),
        elapsed=torch.where(ended, 0, elapsed),
        returns=metrics.returns.index_put((torch.where(ended, place, kept),), running),
        episodes=metrics.episodes + ended.sum(),
        returned=metrics.returned + torch.where(ended, running, 0.0).sum(),
        lengths=metrics.lengths + torch.where(ended, elapsed, 0).sum(),
    )


def count_update(metrics: Metrics, diagnostics: Diagnostics, sound: Tensor, cycle: Tensor) -> Metrics:
    """Update the metrics after one update. Sums stop at the first update that is not finite, which is recorded.

    Shapes: sound [] bool, True if the new parameters are finite; cycle [] int64, number of the training iteration.
    """
    loss, norm = diagnostics.loss.isfinite(), diagnostics.grad_norm.isfinite()
    fails = (metrics.failed < 0) & ~(loss & norm & sound)
    failed = torch.where(fails, cycle, metrics.failed)
    cause = torch.where(norm, CAUSES.index("parameter"), CAUSES.index("gradient"))
    cause = torch.where(loss, cause, CAUSES.index("loss"))
    return metrics._replace(
        totals=tree.map(lambda total, x: torch.where(failed < 0, total + x, total), metrics.totals, diagnostics),
        failed=failed,
        cause=torch.where(fails, cause, metrics.cause),
    )


def epsilon(hyper: Hyper, steps: Tensor, random_steps: int | Tensor = 0) -> Tensor:
    """Return the probability of a random action after `steps` environment steps of a seed. Shapes: all [...].

    1                                                                          before `random_steps`
    linear(steps - random_steps, epsilon_start, epsilon_end, epsilon_steps)    from then on
    """
    if isinstance(random_steps, int) and random_steps == 0:
        value = schedules.linear(steps, hyper.epsilon_start, hyper.epsilon_end, hyper.epsilon_steps)
    else:
        since = torch.clamp(steps - random_steps, min=0)
        value = schedules.linear(since, hyper.epsilon_start, hyper.epsilon_end, hyper.epsilon_steps)
        value = torch.where(steps < random_steps, 1.0, value)
    return value.to(hyper.epsilon_start.dtype)


def random_steps(program: Program, state: TrainState) -> int | Tensor:
    """Return the number of environment steps of a seed with uniformly random actions. Shape: that of `state.cycle`.

    If a run is resumed before its first update and without its buffer, learning starts later, and actions are random
    until then.
    """
    config = program.config
    if not config.random_warmup:
        return 0
    return config.warmup_steps + torch.where(state.learner.updates == 0, state.emptied * config.env_steps, 0)


def snapshot(program: Program, state: TrainState) -> MetricsSnapshot:
    """Copy the metrics of all seeds to the host in one transfer, as float64, in which all of them are exact."""
    check.shapes("state.key[S 2]", state.key)
    metrics = state.metrics
    explored = epsilon(state.hyper, state.cycle * program.config.env_steps, random_steps(program, state))
    counts = metrics.episodes, state.learner.updates, metrics.failed, metrics.cause
    columns = (*counts, metrics.returned, metrics.lengths, *metrics.totals, explored)
    table = (
        torch.cat([*(x.double().unsqueeze(-1) for x in columns), metrics.returns[:, :-1].double()], -1).cpu().numpy()
    )
    episodes, updates, failed, cause = table[:, : len(counts)].T.astype(np.int64, order="C")
    returned, lengths, loss, q, grad_norm, exploration = table[:, len(counts) : len(columns)].T.copy()
    return MetricsSnapshot(
        episodes=episodes,
        updates=updates,
        returned=returned,
        lengths=lengths,
        loss=loss,
        q=q,
        grad_norm=grad_norm,
        epsilon=exploration,
        failed=failed,
        cause=cause,
        last_returns=table[:, len(columns) :].astype(np.float32),
    )
