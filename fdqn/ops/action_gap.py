"""Targets that increase the action gap: the difference between the values of the best and the other actions.

Bellemare et al. 2016, https://arxiv.org/abs/1512.04860. Names and time steps are those of `td`. With an `alpha` of 0
every target is `td.q_learning_target`; a larger one increases the gap more. No gradient flows through a target.
"""

import torch
from torch import Tensor

from fdqn import check
from fdqn.ops import masking, td
from fdqn.types import Scalar


def action_gap(q: Tensor, action: Tensor, legal: Tensor) -> Tensor:
    """Return the difference between the highest value of a legal action and the value of `action`.

        max over legal of q - q[action]

    Advantage learning subtracts `alpha` times the gap at t-1 from a target. `advantage_learning_target` does so for
    Q-learning; use this function for other targets, such as that of double Q-learning.

    Shapes: q, legal [..., A]; action integers [...]; result [...], at least 0 if `action` is legal. Raises ValueError,
    TypeError or IndexError for arguments of another shape, dtype or range.
    """
    return masking.best(q, legal) - masking.pick(q, action)


def advantage_learning_target(
    r_t: Tensor,
    discount_t: Tensor,
    q_tm1: Tensor,
    a_tm1: Tensor,
    q_t: Tensor,
    legal_tm1: Tensor | None,
    legal_t: Tensor,
    alpha: Scalar,
) -> Tensor:
    """Compute the target of advantage learning.

        target = q_learning_target(r_t, discount_t, q_t, legal_t) - alpha * action_gap(q_tm1, a_tm1, legal_tm1)

    Args:
        r_t: Reward at t, [...].
        discount_t: Discount at t, gamma included, [...].
        q_tm1: Q-values of the target network at t-1, [..., A].
        a_tm1: Action taken at t-1, integers [...].
        q_t: Q-values of the target network at t, [..., A].
        legal_tm1: Mask of legal actions at t-1, bool [..., A]; None if all are legal. A `Transition` does not store it;
            the gap is wrong if the highest value belongs to an illegal action.
        legal_t: Mask of legal actions at t, bool [..., A].
        alpha: Weight of the gap, in [0, 1].

    Shapes: the result is [...]. Raises ValueError, TypeError or IndexError for arguments of another shape, dtype or
    range.
    Baird 1999; Bellemare et al. 2016, https://arxiv.org/abs/1512.04860
    """
    check.tensor("q_tm1", q_tm1)
    legal_tm1 = torch.ones_like(q_tm1, dtype=torch.bool) if legal_tm1 is None else legal_tm1
    check.shapes(
        "r_t[...] discount_t[...] q_tm1[... A] a_tm1[...] q_t[... A] legal_tm1[... A] legal_t[... A]",
        r_t, discount_t, q_tm1, a_tm1, q_t, legal_tm1, legal_t,
    )  # fmt: skip
    _check_types(q_tm1, a_tm1, legal_tm1, q_t, legal_t)
    check.fraction("alpha", alpha)
    target = td.q_learning_target(r_t, discount_t, q_t, legal_t)
    return (target - alpha * action_gap(q_tm1, a_tm1, legal_tm1)).detach()


def persistent_q_learning_target(
    r_t: Tensor, discount_t: Tensor, a_tm1: Tensor, q_t: Tensor, legal_t: Tensor, alpha: Scalar
) -> Tensor:
    """Compute the target of persistent Q-learning: part of the value is that of repeating the last action.

        target = r_t + discount_t * ((1 - alpha) * max over legal_t of q_t + alpha * q_t[a_tm1])

    Where `a_tm1` is illegal at t, it cannot be repeated, and the target is that of Q-learning.

    Args:
        r_t: Reward at t, [...].
        discount_t: Discount at t, gamma included, [...].
        a_tm1: Action taken at t-1, integers [...].
        q_t: Q-values of the target network at t, [..., A].
        legal_t: Mask of legal actions at t, bool [..., A].
        alpha: Weight of the repeated action, in [0, 1].

    Shapes: the result is [...]. Raises ValueError, TypeError or IndexError for arguments of another shape, dtype or
    range.
    Bellemare et al. 2016, https://arxiv.org/abs/1512.04860; `rlax.persistent_q_learning`
    """
    check.shapes("r_t[...] discount_t[...] a_tm1[...] q_t[... A] legal_t[... A]", r_t, discount_t, a_tm1, q_t, legal_t)
    _check_types(q_t, a_tm1, legal_t, q_t, legal_t)
    check.fraction("alpha", alpha)
    best = masking.best(q_t, legal_t)
    repeated = torch.where(_repeats(a_tm1, legal_t), masking.pick(q_t, a_tm1), best)
    return (r_t + discount_t * ((1 - alpha) * best + alpha * repeated)).detach()


def persistent_advantage_learning_target(
    r_t: Tensor,
    discount_t: Tensor,
    q_tm1: Tensor,
    a_tm1: Tensor,
    q_t: Tensor,
    legal_tm1: Tensor | None,
    legal_t: Tensor,
    alpha: Scalar,
) -> Tensor:
    """Compute the target of persistent advantage learning: the larger of the two other targets.

        target = max(advantage_learning_target, persistent_q_learning_target)

    Where `a_tm1` is illegal at t, this is the target of advantage learning. The gap at t is discounted, so it is 0
    after a terminal step; the experiments of the paper do not discount it.

    Args:
        r_t, discount_t, q_tm1, a_tm1, q_t, legal_tm1, legal_t, alpha: as for `advantage_learning_target`.

    Shapes: the result is [...]. Raises ValueError, TypeError or IndexError for arguments of another shape, dtype or
    range.
    """
    advantage = advantage_learning_target(r_t, discount_t, q_tm1, a_tm1, q_t, legal_tm1, legal_t, alpha)
    persistent = persistent_q_learning_target(r_t, discount_t, a_tm1, q_t, legal_t, alpha)
    return torch.where(_repeats(a_tm1, legal_t), advantage.maximum(persistent), advantage)


def _repeats(a_tm1: Tensor, legal_t: Tensor) -> Tensor:
    """Return True where the action taken at t-1 is legal at t."""
    return masking.pick(legal_t, a_tm1) > 0


def _check_types(q_tm1: Tensor, a_tm1: Tensor, legal_tm1: Tensor, q_t: Tensor, legal_t: Tensor) -> None:
    # First q_t and legal_t: persistent Q-learning has no values at t-1 and passes these in their place as well.
    check.floating("q_t", q_t)
    check.floating("q_tm1", q_tm1)
    check.boolean("legal_t", legal_t)
    check.boolean("legal_tm1", legal_tm1)
    check.integer("a_tm1", a_tm1)
    check.within("a_tm1", a_tm1, q_t.shape[-1])
