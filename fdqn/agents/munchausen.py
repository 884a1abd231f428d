"""Munchausen-DQN: the scaled log-probability of the action taken is added to the reward.

Vieillard, Pietquin, Geist 2020, https://arxiv.org/abs/2007.14430

.. include:: ../docs/munchausen.md
"""

from functools import partial
from typing import NamedTuple

from torch import Tensor

from fdqn import check
from fdqn.agents import dqn
from fdqn.agents.agent import each_pass, noise_shapes
from fdqn.networks import NoisyNetwork, with_noise
from fdqn.ops import losses, soft
from fdqn.types import Agent, Hyper, LossOutput, Network, Params, Scalar, Transition, Uniforms


def agent(
    network: Network | NoisyNetwork,
    alpha: Scalar = 0.9,
    tau: Scalar = 0.03,
    clip: Scalar = -1.0,
    loss: dqn.Elementwise = losses.huber,
) -> Agent:
    """Make a Munchausen-DQN agent for one seed.

    The target is `soft.munchausen_target`. Its policy is `softmax(q / tau)` of the target network over legal actions.
    With an `alpha` of 0 this is soft Q-learning, which for tau -> 0 becomes Q-learning. With n-step transitions, only
    the log-probability of the first action is added.

    Args:
        network: returns Q-values [..., A]. With a `NoisyNetwork`, every pass of the loss has independent noise.
        alpha: factor of the log-probability, in [0, 1].
        tau: temperature of the policy, above 0, in units of the return. Not the weight of soft target updates.
        clip: lower bound of `tau * log pi`, at most 0.
        loss: elementwise loss of the TD errors, [B] to [B].

    The loss reads `batch.legal`, the legal actions at `batch.obs`; without it, (), all actions are legal.

    Raises TypeError for arguments of another type and ValueError for numbers out of range.
    """
    noisy = with_noise(network)
    check.fraction("alpha", alpha)
    check.number("tau", tau)
    if not isinstance(tau, Tensor) and tau == 0:
        raise ValueError("tau: expected a number above 0, got 0; without a temperature use dqn.agent")
    if isinstance(clip, bool) or not isinstance(clip, int | float | Tensor):
        raise TypeError(f"clip: expected a number, got {clip!r}")
    if not isinstance(clip, Tensor) and not clip <= 0:
        raise ValueError(f"clip: expected at most 0, got {clip}")
    check.function("loss", loss)
    return Agent(
        init=noisy.init,
        values=noisy.apply,
        loss=partial(_loss, noisy, _Munchausen(alpha, tau, clip), loss),
        noise=partial(noise_shapes, noisy, 3),
        needs_legal=True,
    )


class _Munchausen(NamedTuple):
    alpha: Scalar
    tau: Scalar
    clip: Scalar


def _loss(
    network: NoisyNetwork,
    constants: _Munchausen,
    elementwise: dqn.Elementwise,
    params: Params,
    target_params: Params,
    batch: Transition,
    hyper: Hyper,
    noise: Uniforms,
) -> LossOutput:
    online, taking, following = each_pass(noise, 3)
    q_tm1 = network.apply(params, batch.obs, online)
    target = soft.munchausen_target(
        batch.reward,
        hyper.gamma * batch.discount,
        network.apply(target_params, batch.obs, taking),
        batch.action,
        network.apply(target_params, batch.next_obs, following),
        batch.legal if isinstance(batch.legal, Tensor) else None,
        batch.next_legal,
        **constants._asdict(),
    )
    return dqn.loss_output(elementwise, target, q_tm1, batch.action)
