"""PQN: Q-learning on lambda-returns without replay and target network.

The agent only regresses to returns; `training.on_policy.algorithm` computes the returns and makes the updates.
Gallici et al. 2024, https://arxiv.org/abs/2407.04811

.. include:: ../docs/pqn.md
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from fdqn import check
from fdqn.agents.agent import each_pass, noise_shapes
from fdqn.networks import NoisyNetwork, with_noise
from fdqn.ops import losses, masking
from fdqn.types import Agent, Hyper, LossOutput, Network, Params, Transition, Uniforms


def agent(network: Network | NoisyNetwork, loss: Callable[[Tensor], Tensor] = losses.squared) -> Agent:
    """Make a PQN agent for one seed, whose loss regresses Q-values of the actions taken to `batch.reward`.

    `training.on_policy.algorithm` passes Q(lambda) returns as `batch.reward`. The agent itself does not bootstrap.

    Args:
        network: returns Q-values [..., A]. Use one with normalization, such as `networks.layer_norm_mlp`, which keeps
            learning stable without a target network.
        loss: elementwise loss of the errors, [B] to [B].

    Raises TypeError for a network of another type or a loss that is not a function.
    """
    check.function("loss", loss)
    noisy = with_noise(network)
    return Agent(
        init=noisy.init,
        values=noisy.apply,
        loss=partial(_loss, noisy, loss),
        noise=partial(noise_shapes, noisy, 1),
    )


def _loss(
    network: NoisyNetwork,
    elementwise: Callable[[Tensor], Tensor],
    params: Params,
    target_params: Params,
    batch: Transition,
    hyper: Hyper,
    noise: Uniforms,
) -> LossOutput:
    (online,) = each_pass(noise, 1)
    q = masking.pick(network.apply(params, batch.obs, online), batch.action)
    delta = batch.reward.detach() - q
    return LossOutput(elementwise(delta), q, delta.detach().abs())
