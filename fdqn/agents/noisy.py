"""DQN with noisy networks, which explore through noise in their weights.

Fortunato et al. 2018, https://arxiv.org/abs/1706.10295
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from fdqn import check, tree
from fdqn.agents import dqn
from fdqn.agents.agent import each_pass, noise_shapes
from fdqn.networks import NoisyNetwork, with_noise
from fdqn.ops import losses, td
from fdqn.types import Agent, Hyper, LossOutput, Network, Params, Transition, Uniforms


def agent(
    network: Network | NoisyNetwork, double: bool = True, loss: Callable[[Tensor], Tensor] = losses.squared
) -> Agent:
    """Make a DQN agent for one seed from a noisy network such as `networks.noisy_mlp`.

    `values` samples the weights once for all rows. `loss` uses independent samples for the online values, the target
    values and, with `double`, the selection of the next action. Set epsilon to 0.

    Args:
        network: returns Q-values [..., A]. With a plain `Network` the agent is a DQN.
        double: select the next action with the online network.
        loss: elementwise loss of the TD errors, [B] to [B].

    Raises TypeError for a network of another type or a loss that is not a function.
    """
    check.function("loss", loss)
    noisy = with_noise(network)
    return Agent(
        init=noisy.init,
        values=noisy.apply,
        loss=partial(_loss, noisy, double, loss),
        noise=partial(noise_shapes, noisy, 3 if double else 2),
    )


def _loss(
    network: NoisyNetwork,
    double: bool,
    elementwise: Callable[[Tensor], Tensor],
    params: Params,
    target_params: Params,
    batch: Transition,
    hyper: Hyper,
    noise: Uniforms,
) -> LossOutput:
    online, following, *selecting = each_pass(noise, 3 if double else 2)
    q_tm1 = network.apply(params, batch.obs, online)
    q_t = network.apply(target_params, batch.next_obs, following)
    discount_t, legal_t = hyper.gamma * batch.discount, batch.next_legal
    if double:
        # Only their argmax is used. Detaching the parameters avoids a useless backward pass.
        selector = network.apply(tree.map(Tensor.detach, params), batch.next_obs, *selecting)
        target = td.double_q_learning_target(batch.reward, discount_t, q_t, selector, legal_t)
    else:
        target = td.q_learning_target(batch.reward, discount_t, q_t, legal_t)
    return dqn.loss_output(elementwise, target, q_tm1, batch.action)
