"""QR-DQN: the network predicts quantiles of the distribution of the return.

Dabney, Rowland, Bellemare, Munos 2018, https://arxiv.org/abs/1710.10044

.. include:: ../docs/qr_dqn.md
"""

from functools import partial

from torch import Tensor

from fdqn import check, tree
from fdqn.agents.agent import each_pass, noise_shapes, per_action
from fdqn.networks import NoisyNetwork, with_noise
from fdqn.ops import distributional, quantile
from fdqn.types import Agent, Hyper, LossOutput, Network, Params, Scalar, Transition, Uniforms


def agent(network: Network | NoisyNetwork, quantiles: int = 200, double: bool = False, kappa: Scalar = 1.0) -> Agent:
    """Make a QR-DQN agent for one seed.

    The network has one output for each action and quantile, such as `networks.mlp(obs_shape, hidden, actions *
    quantiles)`; outputs `i * quantiles` to `(i + 1) * quantiles` are the quantile values of action i at
    `quantile.midpoints(quantiles)`, and their mean is its Q-value. The loss of a row is
    `quantile.regression_loss(z, midpoints, target, kappa)`. Its priority is the loss, as in dqn_zoo's Rainbow. With
    a priority exponent of 0.5, rows are sampled in proportion to the square root of the loss, as in Dopamine.

    Args:
        network: returns quantile values [..., actions * quantiles]. A dueling network must combine values and
            advantages quantile by quantile, as `networks.join(trunk, heads.dueling(actions, quantiles))` does. With a
            `NoisyNetwork`, every pass of the loss has independent noise.
        quantiles: number of quantiles N.
        double: select the next action with the online network, as in double DQN.
        kappa: threshold of the Huber loss; 0 for the absolute value.

    Raises TypeError for arguments of another type, and ValueError for `quantiles` below 1 or a negative `kappa`.
    `values` and `loss` raise ValueError if the number of outputs is not a multiple of `quantiles`.
    """
    noisy = with_noise(network)
    check.count("quantiles", quantiles, 1)
    check.kind("double", double, bool)
    check.number("kappa", kappa)
    return Agent(
        init=noisy.init,
        values=partial(_values, noisy, quantiles),
        loss=partial(_loss, noisy, quantiles, double, kappa),
        noise=partial(noise_shapes, noisy, 3 if double else 2),
    )


def _values(network: NoisyNetwork, quantiles: int, params: Params, obs: Tensor, noise: Uniforms) -> Tensor:
    return _quantiles(network, quantiles, params, obs, noise).mean(-1)


def _loss(
    network: NoisyNetwork,
    quantiles: int,
    double: bool,
    kappa: Scalar,
    params: Params,
    target_params: Params,
    batch: Transition,
    hyper: Hyper,
    noise: Uniforms,
) -> LossOutput:
    online, following, *selecting = each_pass(noise, 3 if double else 2)
    z_tm1 = distributional.pick(_quantiles(network, quantiles, params, batch.obs, online), batch.action)
    z_t = _quantiles(network, quantiles, target_params, batch.next_obs, following)
    # Only the argmax is used. Detaching the parameters avoids a useless backward pass.
    selector = (
        _values(network, quantiles, tree.map(Tensor.detach, params), batch.next_obs, *selecting)
        if double
        else z_t.mean(-1)
    )
    discount_t = hyper.gamma * batch.discount
    target = quantile.q_learning_target(batch.reward, discount_t, z_t, selector, batch.next_legal)
    midpoints = quantile.midpoints(quantiles, z_tm1.dtype, z_tm1.device)
    loss = quantile.regression_loss(z_tm1, midpoints.expand_as(z_tm1), target, kappa)
    return LossOutput(loss, z_tm1.mean(-1), loss.detach())


def _quantiles(network: NoisyNetwork, quantiles: int, params: Params, obs: Tensor, noise: Uniforms) -> Tensor:
    """Return the quantile values [..., A, N]."""
    return per_action(network.apply(params, obs, noise), quantiles, "quantile")
