"""Deep Q-networks with Q-learning or double Q-learning. Mnih et al. 2015, https://doi.org/10.1038/nature14236

With a noisy network they explore through noise in their weights. Fortunato et al. 2018,
https://arxiv.org/abs/1706.10295

.. include:: ../docs/dqn.md
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from fdqn import check, tree
from fdqn.agents.agent import each_pass, noise_shapes
from fdqn.networks import NoisyNetwork, with_noise
from fdqn.ops import losses, masking, td
from fdqn.types import Agent, Hyper, LossOutput, Network, Params, Transition, Uniforms

Apply = Callable[..., Tensor]
"""`apply(params, obs [..., *O]) -> q [..., A]`; that of a `NoisyNetwork` takes noise as its third argument."""
Elementwise = Callable[[Tensor], Tensor]
"""Elementwise loss of TD errors, such as `losses.huber`."""


def agent(network: Network | NoisyNetwork, double: bool = True, loss: Elementwise = losses.squared) -> Agent:
    """Make a DQN agent for one seed.

    With a `NoisyNetwork`, `values` samples the weights once for all rows, and `loss` uses independent samples for the
    online values, the target values and, with `double`, the selection of the next action. Epsilon should then be 0.

    Args:
        network: returns Q-values [..., A]. A dueling network makes a dueling DQN.
        double: use double Q-learning: the online network selects the next action, the target network evaluates it.
        loss: elementwise loss of the TD errors, [B] to [B].

    Raises TypeError for arguments of another type.
    """
    noisy = with_noise(network)
    check.kind("double", double, bool)
    check.function("loss", loss)
    return Agent(
        init=noisy.init,
        values=noisy.apply,
        loss=partial(double_q_learning if double else q_learning, noisy.apply, loss),
        noise=partial(noise_shapes, noisy, 3 if double else 2),
    )


def q_learning(
    apply: Apply,
    loss: Elementwise,
    params: Params,
    target_params: Params,
    batch: Transition,
    hyper: Hyper,
    noise: Uniforms = (),
) -> LossOutput:
    """Compute the loss of Q-learning for each row; see `td.q_learning_target`.

    Args:
        apply: `apply(params, obs [B, *O]) -> q [B, A]`; with noise, `apply(params, obs, noise [K])`.
        loss: elementwise loss of the TD errors, [B] to [B].
        params: online parameters.
        target_params: parameters that evaluate the next observation.
        batch: transitions, leaves [B, ...].
        hyper: hyper-parameters of one seed; only `gamma` [] is used.
        noise: uniforms [2, K] for the online and the target pass of a noisy network, or `()`.

    Shapes: results [B]. Raises TypeError or ValueError for arguments of another type or shape.
    """
    _check(apply, loss, hyper)
    online, following = each_pass(noise, 2)
    q_tm1 = _pass(apply, params, batch.obs, online)
    q_t = _pass(apply, target_params, batch.next_obs, following)
    discount_t = hyper.gamma * batch.discount
    target = td.q_learning_target(batch.reward, discount_t, q_t, batch.next_legal)
    return loss_output(loss, target, q_tm1, batch.action)


def double_q_learning(
    apply: Apply,
    loss: Elementwise,
    params: Params,
    target_params: Params,
    batch: Transition,
    hyper: Hyper,
    noise: Uniforms = (),
) -> LossOutput:
    """Compute the loss of double Q-learning for each row; see `td.double_q_learning_target`.

    Args:
        apply, loss, params, target_params, batch, hyper: as for `q_learning`.
        noise: uniforms [3, K] for the online, the target and the selecting pass of a noisy network, or `()`.

    Shapes: results [B]. Raises TypeError or ValueError for arguments of another type or shape.
    van Hasselt, Guez, Silver 2016, https://arxiv.org/abs/1509.06461
    """
    _check(apply, loss, hyper)
    online, following, selecting = each_pass(noise, 3)
    q_tm1 = _pass(apply, params, batch.obs, online)
    q_t = _pass(apply, target_params, batch.next_obs, following)
    # Only their argmax is used. Detaching the parameters avoids a useless backward pass.
    q_t_selector = _pass(apply, tree.map(Tensor.detach, params), batch.next_obs, selecting)
    discount_t = hyper.gamma * batch.discount
    target = td.double_q_learning_target(batch.reward, discount_t, q_t, q_t_selector, batch.next_legal)
    return loss_output(loss, target, q_tm1, batch.action)


def loss_output(loss: Elementwise, target: Tensor, q_tm1: Tensor, action: Tensor) -> LossOutput:
    """Return losses, Q-values and priorities |delta| of the actions taken, without gradient through the target.

        delta = target - q_tm1[action]

    Shapes: target, action and results [...]; q_tm1 [..., A].
    """
    check.floating("q_tm1", q_tm1)
    check.shapes("q_tm1[... A] target[...]", q_tm1, target)
    q = masking.pick(q_tm1, action)
    delta = target.detach() - q
    return LossOutput(loss(delta), q, delta.detach().abs())


def _pass(apply: Apply, params: Params, obs: Tensor, noise: Uniforms) -> Tensor:
    """Call `apply`, without the argument for noise if there is none, because that of a plain network lacks it."""
    return apply(params, obs, noise) if isinstance(noise, Tensor) else apply(params, obs)


def _check(apply: Apply, loss: Elementwise, hyper: Hyper) -> None:
    check.function("apply", apply)
    check.function("loss", loss)
    check.kind("hyper", hyper, Hyper)
    # Hyper-parameters [S] would broadcast against a batch of S rows.
    check.shapes("hyper.gamma[]", hyper.gamma)
