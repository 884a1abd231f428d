"""PQN: Q-learning on returns, without replay and target network. Gallici et al. 2024,
https://arxiv.org/abs/2407.04811

The agent is a regression to returns; `training.on_policy.algorithm` computes them and makes the updates.
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
    """Make an agent for one seed that regresses the values of the actions taken to the rewards of its batch.

    `training.on_policy.algorithm` puts Q(lambda) returns in the place of the rewards; the agent does not bootstrap.

    Args:
        network: values [..., A], such as `networks.layer_norm_mlp`: without a target network the normalization is what
            keeps learning stable.
        loss: elementwise loss of the differences, [B] to [B].

    Raises TypeError for another kind of network and for a loss that is not a function.
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
