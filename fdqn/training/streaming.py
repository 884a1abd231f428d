"""Learning from each transition once, when it arrives, with eligibility traces: Stream Q(lambda).

There is no replay, no target network and no batch. A seed holds its newest transition, an eligibility trace of the size
of its parameters, and the running statistics of observations and rewards.

.. include:: ../docs/stream_q.md
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from fdqn import check, optim, tree
from fdqn.agents import dqn
from fdqn.networks import NoisyNetwork, update_statistics, with_noise
from fdqn.ops import masking, running
from fdqn.training.config import Config
from fdqn.types import (
    Algorithm,
    Diagnostics,
    Hyper,
    Learner,
    Network,
    Params,
    Scalar,
    Transition,
    Uniforms,
)

EPSILON = 1e-8
"""Added to the variance of rewards."""


class RewardScale(NamedTuple):
    """Running statistics of the discounted sum of past rewards, [] each."""

    total: Tensor
    """Discounted sum of the rewards up to the newest step."""
    mean: Tensor
    var: Tensor
    steps: Tensor
    """[] int64, number of steps taken."""


class Newest(NamedTuple):
    """Newest transition of one seed."""

    row: Transition
    """Leaves [1, ...]; the reward is scaled."""
    legal: Tensor
    """[A] bool, legal actions at `row.obs`; all if the row starts an episode, where they are not known."""
    carried: Tensor
    """[], discount between the previous transition and this one; 0 if this one starts an episode."""
    carries: Tensor
    """[], the same between this transition and the next."""
    valid: Tensor
    """[] bool, False if no step was taken."""
    scale: RewardScale


def algorithm(config: Config, network: Network | NoisyNetwork, lambda_: Scalar = 0.8, kappa: Scalar = 2.0) -> Algorithm:
    """Make an algorithm that learns from each transition once, when it arrives: Stream Q(lambda).

        delta = r + gamma * discount * max q(s') - q(s, a)
        z = gamma * lambda * z + gradient of q(s, a)
        params = params + obgd(z, delta)

    At the start of an episode, and if `a` is not greedy, the trace `z` is set to 0 before the gradient is added, as in
    Watkins's Q(lambda): the TD errors from there on do not follow the greedy policy from the earlier states. Rewards
    are divided by the running standard deviation of their discounted sum. If the network has running statistics of its
    observations, as `networks.stream_mlp` does, they are updated at every step.

    Three details differ from the authors' code. A truncated episode bootstraps from its last observation. If an action
    is not greedy, the trace is reset before its update, as in the paper; the code resets it afterwards. The first
    observation of an episode is added to the statistics after the first action. Their environments with vectors as
    observations also append the time since the start of the episode, which is not done here.

    With host environments, each update uses the step of the previous training iteration.

    Args:
        config: sizes of training. `num_envs`, `steps_per_cycle`, `updates_per_cycle`, `batch_size` and `n_step` must be
            1, `learning_starts` and `target_period` 0; `capacity` is not used.
        network: Q-network without noise, such as `networks.stream_mlp(obs_shape, (32, 32), actions)`.
        lambda_: decay of the trace, from one-step Q-learning (0) to 1.
        kappa: factor of the bound on the steps; see `optim.obgd`.

    Raises TypeError for an argument of another type, and ValueError for other sizes or a network with noise.
    Elsayed, Vasan, Mahmood 2024, https://arxiv.org/abs/2410.14606
    """
    check.kind("config", config, Config)
    noisy = with_noise(network)
    if noisy.noise:
        raise ValueError(
            f"network: expected one without noise, got one that takes {noisy.noise} uniforms; Stream Q explores with "
            "epsilon"
        )
    check.fraction("lambda_", lambda_)
    check.number("kappa", kappa)
    _check_sizes(config)
    plain = Network(noisy.init, noisy.apply)
    return Algorithm(
        config=config,
        agent=dqn.agent(plain, double=False),  # for its values, which select actions; its loss is not used
        init=_init,
        observe=_observe,
        update=partial(_update, plain, lambda_, kappa),
        select=_unchanged,
        cut=_cut,
        bounds=_bounds,
    )


def _check_sizes(config: Config) -> None:
    for name, expected, why in (
        ("n_step", 1, "eligibility traces span the episode"),
        ("num_envs", 1, "a trace follows one environment"),
        ("steps_per_cycle", 1, "an update follows every step"),
        ("updates_per_cycle", 1, "a transition is used once"),
        ("batch_size", 1, "there is no replay"),
        ("learning_starts", 0, "learning starts with the first step"),
        ("target_period", 0, "there is no target network"),
    ):
        if (got := getattr(config, name)) != expected:
            raise ValueError(f"{name}: expected {expected} with Stream Q, as {why}, got {got}")


def _unchanged(bits: Tensor) -> Tensor:
    return bits


def _init(params: Params, hyper: Hyper, example: Transition) -> tuple[Learner, Newest]:
    zero = torch.zeros_like(example.reward)
    learner = Learner(params, {}, tree.map(torch.zeros_like, params), torch.zeros_like(example.action))
    newest = Newest(
        row=tree.map(lambda x: torch.zeros_like(x).unsqueeze(0), example),
        legal=torch.ones_like(example.next_legal),
        carried=zero,
        carries=zero,
        valid=torch.zeros_like(zero, dtype=torch.bool),
        scale=RewardScale(zero, zero, torch.ones_like(zero), torch.zeros_like(example.action)),
    )
    return learner, newest


def _observe(
    learner: Learner,
    newest: Newest,
    batch: Transition,
    ended: Tensor,
    valid: Tensor | None,
    hyper: Hyper,
) -> Newest:
    """Store the newest transition with its reward scaled."""
    taken = torch.ones_like(ended[0]) if valid is None else valid[0]
    carries = torch.where(ended[0] | ~taken, 0.0, batch.discount[0])
    scale = tree.where(taken, _with_reward(newest.scale, batch.reward[0], hyper.gamma * carries), newest.scale)
    row = batch._replace(reward=batch.reward / (scale.var + EPSILON).sqrt())
    # If a donated step returns a leaf in another place, it first copies that leaf, which the engine aot cannot do. So
    # the row is written into the old one, and `legal` and `carried` are computed instead of moved.
    at = torch.zeros_like(batch.action)
    return Newest(
        row=tree.map(lambda old, new: old.index_put((at,), new), newest.row, row),
        legal=newest.row.next_legal[0] | (newest.carries == 0),
        carried=torch.where(newest.valid, newest.carries, 0.0),
        carries=carries,
        valid=taken,
        scale=scale,
    )


def _with_reward(scale: RewardScale, reward: Tensor, decay: Tensor) -> RewardScale:
    """Add a reward to the discounted sum, and the sum to its statistics.

    At the end of an episode `decay` is 0, and the sum keeps only the last reward.
    """
    total = decay * scale.total + reward
    mean, var, _ = running.welford(scale.mean, scale.var, scale.steps.to(total.dtype), total)
    return RewardScale(total, mean, var, scale.steps + 1)


def _update(
    network: Network,
    lambda_: Scalar,
    kappa: Scalar,
    learner: Learner,
    newest: Newest,
    sample: Tensor,
    noise: Uniforms,
    hyper: Hyper,
) -> tuple[Learner, Newest, Diagnostics]:
    """Take one step along the trace of the newest transition; change nothing if no step was taken."""
    row = tree.index(newest.row, 0)
    grads, (q_a, q) = grad_and_value(partial(_value, network), has_aux=True)(learner.params, row)
    known = _with_observation(learner.params, row.obs, newest.valid & (newest.carried == 0))
    known = _with_observation(known, row.next_obs, newest.valid)
    next_value = masking.best(network.apply(known, row.next_obs), row.next_legal)
    delta = torch.where(newest.valid, row.reward + hyper.gamma * row.discount * next_value - q_a, 0.0)
    greedy = q_a >= masking.best(q, newest.legal)
    decay = torch.where(greedy, hyper.gamma * lambda_ * newest.carried, 0.0)
    trace = tree.map(lambda z, g: torch.where(newest.valid, decay * z + g, z), learner.opt_state, grads)
    params = optim.apply_updates(known, optim.obgd(trace, delta, hyper.learning_rate, kappa))
    norm = torch.where(newest.valid, tree.norm(grads), 0.0)
    updated = Learner(params, {}, trace, learner.updates + 1)
    return updated, newest, Diagnostics(delta.square(), torch.where(newest.valid, q_a, 0.0), norm)


def _value(network: Network, params: Params, row: Transition) -> tuple[Tensor, Tensor]:
    q = network.apply(params, row.obs)
    return masking.pick(q, row.action), q


def _with_observation(params: Params, obs: Tensor, counts: Tensor) -> Params:
    """Add an observation to the statistics among the parameters if `counts`."""
    # Without `where` for leaves that do not change, because it would copy them.
    new = update_statistics(params, obs)
    return tree.map(lambda a, b: b if a is b else torch.where(counts, a, b), new, params)


def _cut(newest: Newest) -> Newest:
    """Let the next transition start an episode."""
    return newest._replace(carries=torch.zeros_like(newest.carries))


def _bounds(newest: Newest, steps: int) -> dict[str, tuple[Tensor, int]]:
    return {"scale.steps": (newest.scale.steps, steps)}
