"""Deep Q-networks with Q-learning or double Q-learning. Mnih et al. 2015, https://doi.org/10.1038/nature14236"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from fdqn import check, tree
from fdqn.ops import losses, masking, td
from fdqn.types import Agent, Hyper, LossOutput, Network, Params, Transition, Uniforms

Apply = Callable[[Params, Tensor], Tensor]
Elementwise = Callable[[Tensor], Tensor]
"""Elementwise loss of TD errors, such as `losses.huber`."""


def agent(network: Network, double: bool = True, loss: Elementwise = losses.squared) -> Agent:
    """Make a DQN agent for one seed.

    Args:
        network: returns Q-values [..., A]. A dueling network makes a dueling DQN.
        double: use double Q-learning: the online network selects the next action, the target network evaluates it.
        loss: elementwise loss of the TD errors, [B] to [B].

    Raises TypeError for arguments of another type.
    """
    check.kind("network", network, Network)
    check.kind("double", double, bool)
    check.function("loss", loss)
    learn = double_q_learning if double else q_learning
    return Agent(network.init, partial(_values, network.apply), partial(learn, network.apply, loss))


def _values(apply: Apply, params: Params, obs: Tensor, noise: Uniforms) -> Tensor:
    return apply(params, obs)


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
        apply: `apply(params, obs [B, *O]) -> q [B, A]`.
        loss: elementwise loss of the TD errors, [B] to [B].
        params: online parameters.
        target_params: parameters that evaluate the next observation.
        batch: transitions, leaves [B, ...].
        hyper: hyper-parameters of one seed; only `gamma` [] is used.
        noise: not used.
    """
    _check(apply, loss, hyper)
    q_tm1, q_t = apply(params, batch.obs), apply(target_params, batch.next_obs)
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
        apply, loss, params, target_params, batch, hyper, noise: as for `q_learning`.
    """
    _check(apply, loss, hyper)
    q_tm1, q_t = apply(params, batch.obs), apply(target_params, batch.next_obs)
    # Only their argmax is used. Detaching the parameters avoids a useless backward pass.
    q_t_selector = apply(tree.map(Tensor.detach, params), batch.next_obs)
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


def _check(apply: Apply, loss: Elementwise, hyper: Hyper) -> None:
    check.function("apply", apply)
    check.function("loss", loss)
    check.kind("hyper", hyper, Hyper)
    # Hyper-parameters [S] would broadcast against a batch of S rows.
    check.shapes("hyper.gamma[]", hyper.gamma)
