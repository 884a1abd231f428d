"""IQN: the network predicts the quantile of the return at any fraction that it is given.

Dabney, Ostrovski, Silver, Munos 2018, https://arxiv.org/abs/1806.06923

.. include:: ../docs/iqn.md
"""

from functools import partial
from typing import NamedTuple

from torch import Tensor

from fdqn import check, tree
from fdqn.agents.agent import each_pass
from fdqn.networks import QuantileNetwork
from fdqn.ops import distributional, quantile
from fdqn.types import Agent, Hyper, LossOutput, NoiseShapes, Params, Scalar, Transition, Uniforms


def agent(
    network: QuantileNetwork,
    double: bool = False,
    fractions: int = 64,
    target_fractions: int = 64,
    acting_fractions: int = 64,
    kappa: Scalar = 1.0,
) -> Agent:
    """Make an IQN agent for one seed.

    The Q-value of an action is the mean of its quantile values at fractions that are sampled for every row; without
    noise they are `quantile.midpoints`. The loss takes three passes with independent fractions: online values, target
    values, and the values that select the next action. The loss of a row is
    `quantile.regression_loss(z, fractions, target, kappa)`, and so is its priority, as for `qr_dqn`.

    Args:
        network: returns quantile values [..., A, N] at fractions [..., N], such as `networks.quantile(trunk, head)`.
            The noise of a noisy network is independent in each pass.
        double: select the next action with the online network, as in double DQN.
        fractions: number of fractions N of the online values.
        target_fractions: number of fractions of the target values.
        acting_fractions: number of fractions of `values` and of the values that select the next action.
        kappa: threshold of the Huber loss; 0 for the absolute value.

    Raises TypeError for arguments of another type, and ValueError for numbers of fractions below 1 or a negative
    `kappa`. With noise, `values` takes observations [rows, *O] and raises ValueError for noise of another size.
    """
    check.kind("network", network, QuantileNetwork)
    check.kind("double", double, bool)
    check.count("fractions", fractions, 1)
    check.count("target_fractions", target_fractions, 1)
    check.count("acting_fractions", acting_fractions, 1)
    check.number("kappa", kappa)
    counts = _Counts(fractions, target_fractions, acting_fractions)
    return Agent(
        init=network.init,
        values=partial(_values, network, acting_fractions),
        loss=partial(_loss, network, counts, double, kappa),
        noise=partial(_noise, network, counts),
    )


class _Counts(NamedTuple):
    """Numbers of fractions of the passes of the loss."""

    online: int
    target: int
    acting: int


def _noise(network: QuantileNetwork, counts: _Counts, rows: int) -> NoiseShapes:
    """Return the shapes of the uniforms: for each pass, the noise of the network and then the fractions of all rows.

    Every pass of the loss gets as many uniforms as the pass with the most fractions takes.
    """
    return NoiseShapes((network.noise + rows * counts.acting,), (3, network.noise + rows * max(counts)))


def _values(network: QuantileNetwork, count: int, params: Params, obs: Tensor, noise: Uniforms) -> Tensor:
    if isinstance(noise, Tensor):
        check.shapes(f"noise[{network.noise + obs.shape[0] * count}]", noise)
    return _quantiles(network, count, params, obs, noise)[0].mean(-1)


def _loss(
    network: QuantileNetwork,
    counts: _Counts,
    double: bool,
    kappa: Scalar,
    params: Params,
    target_params: Params,
    batch: Transition,
    hyper: Hyper,
    noise: Uniforms,
) -> LossOutput:
    if isinstance(noise, Tensor):
        check.shapes(f"noise[3 {network.noise + batch.action.shape[0] * max(counts)}]", noise)
    online, following, selecting = each_pass(noise, 3)
    z, fractions = _quantiles(network, counts.online, params, batch.obs, online)
    z_tm1 = distributional.pick(z, batch.action)
    z_t, _ = _quantiles(network, counts.target, target_params, batch.next_obs, following)
    # Only the argmax is used. Detaching the parameters avoids a useless backward pass.
    chooser = tree.map(Tensor.detach, params) if double else target_params
    selector = _quantiles(network, counts.acting, chooser, batch.next_obs, selecting)[0].mean(-1)
    discount_t = hyper.gamma * batch.discount
    target = quantile.q_learning_target(batch.reward, discount_t, z_t, selector, batch.next_legal)
    loss = quantile.regression_loss(z_tm1, fractions.expand_as(z_tm1), target, kappa)
    return LossOutput(loss, z_tm1.mean(-1), loss.detach())


def _quantiles(
    network: QuantileNetwork, count: int, params: Params, obs: Tensor, noise: Uniforms
) -> tuple[Tensor, Tensor]:
    """Return quantile values [..., A, count] and their fractions, from the noise of one pass.

    The fractions are [rows, count]; without noise they are the midpoints [count], the same for all rows.
    """
    like = next(iter(params.values()))
    if not isinstance(noise, Tensor):
        fractions = quantile.midpoints(count, like.dtype, like.device)
        return network.apply(params, obs, fractions), fractions
    rows, start = obs.shape[0], network.noise
    fractions = noise[start : start + rows * count].to(like.dtype).reshape(rows, count)
    return network.apply(params, obs, fractions, noise[:start] if start else ()), fractions
