"""Categorical DQN (C51): the network predicts the distribution of the return instead of its mean.

Bellemare, Dabney, Munos 2017, https://arxiv.org/abs/1707.06887

.. include:: ../docs/c51.md
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.agents.agent import each_pass, noise_shapes, per_action
from fdqn.networks import NoisyNetwork, with_noise
from fdqn.ops import distributional, losses
from fdqn.types import Agent, Hyper, LossOutput, Network, Params, Transition, Uniforms


def agent(
    network: Network | NoisyNetwork, support: Tensor | Sequence[float] = (-10.0, 10.0, 51), double: bool = False
) -> Agent:
    """Make a C51 agent for one seed.

    The network has one output for each action and atom, such as `networks.mlp(obs_shape, hidden, actions * atoms)`;
    outputs `i * atoms` to `(i + 1) * atoms` are the logits of action i. The loss of a row is the cross-entropy between
    the projected target distribution and the distribution of the action taken; its priority is their Kullback-Leibler
    divergence.

    Args:
        network: returns logits [..., actions * atoms]. A dueling network must combine values and advantages atom by
            atom, as `networks.join(trunk, heads.dueling(actions, atoms))` does; `networks.dueling_mlp`, whose state
            value is one number for all atoms, is not suitable. With a `NoisyNetwork`, every pass of the loss has
            independent noise.
        support: returns of the atoms, a tensor [atoms] or (low, high, atoms). It must cover the returns of the
            environment; the default suits clipped rewards.
        double: select the next action with the online network, as in double DQN and Rainbow.

    Raises TypeError for arguments of another type, and ValueError for a support with fewer than two atoms or with atoms
    that are not finite and increasing. `values` and `loss` raise ValueError if the number of outputs is not
    a multiple of the number of atoms.
    """
    noisy, atoms = with_noise(network), _atoms(support)
    check.kind("double", double, bool)
    passes = 3 if double else 2
    return Agent(
        init=noisy.init,
        values=partial(_values, noisy, atoms),
        loss=partial(_loss, noisy, atoms, double),
        noise=partial(noise_shapes, noisy, passes),
    )


class _Atoms(NamedTuple):
    """Support as Python numbers, which make an agent independent of the device."""

    numbers: tuple[float, ...]
    """All atoms, or the first and the last of evenly spaced ones."""
    size: int
    evenly_spaced: bool


def _atoms(support: Tensor | Sequence[float]) -> _Atoms | Tensor:
    """Check a support. A tensor under a transform or a compiler stays one, because its values cannot be read."""
    if isinstance(support, Tensor) and check.is_symbolic(support):
        check.shapes("support[N]", support)
        check.floating("support", support)
        return support
    if not isinstance(support, Tensor):  # no tensor to read, because a sweep makes its agents while they are traced
        low, high, count = distributional.evenly_spaced(support)
        return _Atoms((float(low), float(high)), count, True)
    wide = distributional.atoms(support).double().cpu()
    even = torch.linspace(float(wide[0]), float(wide[-1]), len(wide), dtype=torch.float64)
    return _Atoms(tuple(wide.tolist()), len(wide), torch.equal(wide, even))


def _support(atoms: _Atoms | Tensor, like: Tensor) -> Tensor:
    """Create the support [N] on the device and in the dtype of `like`; copying it would synchronize with the device."""
    if isinstance(atoms, Tensor):
        return atoms.to(like.dtype)
    x = atoms.numbers
    if atoms.evenly_spaced:
        return torch.linspace(x[0], x[-1], atoms.size, dtype=like.dtype, device=like.device)
    return torch.stack([torch.full((), number, dtype=like.dtype, device=like.device) for number in x])


def _values(network: NoisyNetwork, atoms: _Atoms | Tensor, params: Params, obs: Tensor, noise: Uniforms) -> Tensor:
    logits = _logits(network, atoms, params, obs, noise)
    return distributional.mean(_support(atoms, logits), logits.softmax(-1))


def _loss(
    network: NoisyNetwork,
    atoms: _Atoms | Tensor,
    double: bool,
    params: Params,
    target_params: Params,
    batch: Transition,
    hyper: Hyper,
    noise: Uniforms,
) -> LossOutput:
    online, following, *selecting = each_pass(noise, 3 if double else 2)
    logits_tm1 = distributional.pick(_logits(network, atoms, params, batch.obs, online), batch.action)
    p_t = _logits(network, atoms, target_params, batch.next_obs, following).softmax(-1)
    support = _support(atoms, p_t)
    selector = (
        _values(network, atoms, tree.map(Tensor.detach, params), batch.next_obs, *selecting)
        if double
        else distributional.mean(support, p_t)
    )
    discount_t = hyper.gamma * batch.discount
    target = distributional.q_learning_target(support, batch.reward, discount_t, p_t, selector, batch.next_legal)
    loss = losses.cross_entropy(logits_tm1, target)
    return LossOutput(
        loss=loss,
        q=distributional.mean(support, logits_tm1.softmax(-1)),
        priority=(loss.detach() - torch.special.entr(target).sum(-1)).clamp_min(0),
    )


def _logits(network: NoisyNetwork, atoms: _Atoms | Tensor, params: Params, obs: Tensor, noise: Uniforms) -> Tensor:
    """Return the logits [..., A, atoms]."""
    return per_action(network.apply(params, obs, noise), _count(atoms), "atom")


def _count(atoms: _Atoms | Tensor) -> int:
    return len(atoms) if isinstance(atoms, Tensor) else atoms.size
