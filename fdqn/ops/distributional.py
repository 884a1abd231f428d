"""Equations of categorical distributional RL (C51): a return is a distribution over fixed atoms.

A support [N] holds the atoms in increasing order. A distribution over them is [..., N]; one per action is [..., A, N].
Names and time steps are those of `td`. Bellemare, Dabney, Munos 2017, https://arxiv.org/abs/1707.06887
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fdqn import check
from fdqn.ops import masking


def project(support: Tensor, probabilities: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
    """Project the distribution of `reward + discount * z` back onto the atoms z of `support`.

    Each shifted atom is clipped to the support, and its probability is split between its two neighbors by linear
    interpolation. The sum of the probabilities is preserved, and so is the mean unless an atom is clipped.

        sum over j of h_i(clip(reward + discount * z_j)) * p_j,    h_i the triangular kernel around atom i

    Shapes: support [N], increasing; probabilities and result [..., N]; reward and discount [...].
    Equation 7 of Bellemare et al. 2017; `rlax.categorical_l2_project`.
    """
    check.shapes("support[N] probabilities[... N] reward[...] discount[...]", support, probabilities, reward, discount)
    check.floating("support", support)
    check.floating("probabilities", probabilities)
    shifted = reward.unsqueeze(-1) + discount.unsqueeze(-1) * support
    distance = shifted.clamp(support[0], support[-1]).unsqueeze(-2) - support.unsqueeze(-1)
    # A sum over all pairs instead of a scatter to two neighbors: it fuses, and its order of addition is fixed.
    spacing = torch.where(distance < 0, _before(support).unsqueeze(-1), _after(support).unsqueeze(-1))
    return ((1 - distance.abs() / spacing).clamp_min(0) * probabilities.unsqueeze(-2)).sum(-1)


def mean(support: Tensor, probabilities: Tensor) -> Tensor:
    """Compute the mean of distributions over the atoms of `support`. Shapes: [N] and [..., N]; result [...]."""
    check.shapes("support[N] probabilities[... N]", support, probabilities)
    check.floating("support", support)
    check.floating("probabilities", probabilities)
    return (probabilities * support).sum(-1)


def pick(distributions: Tensor, action: Tensor) -> Tensor:
    """Return the distribution, or the logits, of one action.

    Shapes: distributions [..., A, N]; action [...]; result [..., N]. Raises IndexError for an action out of range if
    `check.within` can read it; otherwise the result is 0.
    """
    check.shapes("distributions[... A N] action[...]", distributions, action)
    check.integer("action", action)
    check.within("action", action, distributions.shape[-2])
    chosen = action.long().unsqueeze(-1) == torch.arange(distributions.shape[-2], device=distributions.device)
    return torch.where(chosen.unsqueeze(-1), distributions, 0.0).sum(-2)


def q_learning_target(
    support: Tensor, r_t: Tensor, discount_t: Tensor, p_t: Tensor, q_t_selector: Tensor, legal_t: Tensor
) -> Tensor:
    """Compute the target distribution of categorical Q-learning. No gradient flows through it.

        target = project(support, p_t[argmax over legal_t of q_t_selector], r_t, discount_t)

    If no action is legal, all probability is at `r_t`.

    Args:
        support: Atoms, [N].
        r_t: Reward at t, [...].
        discount_t: Discount at t, gamma included, [...].
        p_t: Probabilities of the target network at t, [..., A, N].
        q_t_selector: Values that select the action, [..., A]: the means of `p_t` for C51, those of the online network
            for double C51.
        legal_t: Mask of legal actions at t, bool [..., A].

    Shapes: the result is [..., N]. `rlax.categorical_q_learning`, `rlax.categorical_double_q_learning`.
    """
    check.shapes(
        "support[N] r_t[...] discount_t[...] p_t[... A N] q_t_selector[... A] legal_t[... A]",
        support, r_t, discount_t, p_t, q_t_selector, legal_t,
    )  # fmt: skip
    check.boolean("legal_t", legal_t)
    check.floating("q_t_selector", q_t_selector)
    following, goes_on = pick(p_t, masking.greedy(q_t_selector, legal_t)), legal_t.any(-1)
    # With a discount of 0 any distribution gives the same target, but those of illegal actions may be NaN.
    following = torch.where(goes_on.unsqueeze(-1), following, 1 / following.shape[-1])
    return project(support, following, r_t, torch.where(goes_on, discount_t, 0.0)).detach()


def atoms(support: Tensor | Sequence[float]) -> Tensor:
    """Return the atoms [N] of a support: a tensor, or evenly spaced ones for `(low, high, N)`.

    Raises TypeError unless the atoms are floating-point numbers and N an integer, and ValueError unless there are at
    least two atoms and they are finite and increasing.
    """
    if not isinstance(support, Tensor):
        return torch.linspace(*evenly_spaced(support), dtype=torch.float64)
    check.shapes("support[N]", support)
    check.floating("support", support)
    if support.numel() < 2:
        raise ValueError(f"support: expected at least 2 atoms, got {support.numel()}")
    if not bool(support.isfinite().all()):
        raise ValueError(f"support: expected finite numbers, got {support.tolist()}")
    if not bool((support.diff() > 0).all()):
        raise ValueError(f"support: expected increasing numbers, got {support.tolist()}; sort them")
    return support.detach().clone()


def evenly_spaced(support: Sequence[float]) -> tuple[float, float, int]:
    """Return the checked (low, high, N) of a support, without tensors, so that it can be called while tracing.

    Raises as `atoms` does.
    """
    if not isinstance(support, Sequence) or isinstance(support, str) or len(support) != 3:
        raise TypeError(f"support: expected a tensor [N] or (low, high, N), got {support!r}")
    low, high, count = support
    if any(isinstance(x, bool) or not isinstance(x, int | float) for x in support):
        raise TypeError(f"support: expected a tensor [N] or (low, high, N), got {support!r}")
    if not isinstance(count, int):
        raise TypeError(
            f"support: expected (low, high, N) with an integer N, got {support!r}; to list the atoms, pass a tensor"
        )
    if count < 2:
        raise ValueError(f"support: expected at least 2 atoms, got {count}")
    if not low < high:
        raise ValueError(f"support: expected low below high, got {low} and {high}")
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(f"support: expected finite numbers, got {[low, high]}")
    if not (np.diff(np.linspace(low, high, count)) > 0).all():
        raise ValueError(f"support: expected increasing numbers, got {count} from {low} to {high}; use fewer")
    return low, high, count


def _before(support: Tensor) -> Tensor:
    """Return the distance of each atom from the previous one; 1 for the first, where it is never used."""
    return torch.cat([torch.ones_like(support[:1]), support.diff()])


def _after(support: Tensor) -> Tensor:
    return torch.cat([support.diff(), torch.ones_like(support[:1])])
