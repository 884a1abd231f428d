"""Soft values, policies and targets: the maximum over actions is replaced by a log-sum-exp at a temperature tau.

With tau -> 0 the soft value is the maximum and the policy is greedy. Names and time steps are those of `td`.
"""

import torch
from torch import Tensor

from fdqn import check
from fdqn.ops import masking
from fdqn.types import Scalar


def value(q: Tensor, legal: Tensor, tau: Scalar) -> Tensor:
    """Return the soft value of the legal actions; 0 if no action is legal, as after the end of an episode.

        tau * log(sum over legal of exp(q / tau))

    Shapes: q and legal [..., A]; tau a number or []; result [...]. Raises ValueError unless `tau` is above 0.
    Haarnoja et al. 2017, https://arxiv.org/abs/1702.08165
    """
    highest, _, total = _exponentials(q, legal, tau)
    return torch.where(legal.any(-1), highest + tau * total.log(), 0.0)


def policy(q: Tensor, legal: Tensor, tau: Scalar) -> Tensor:
    """Return the probabilities of the softmax policy; 0 for illegal actions.

        exp(q / tau) / sum over legal of exp(q / tau)

    Shapes: q, legal and result [..., A]; tau a number or []. Raises ValueError unless `tau` is above 0.
    """
    _, scaled, total = _exponentials(q, legal, tau)
    return torch.where(legal, scaled.exp(), 0.0) / total.unsqueeze(-1)


def log_policy(q: Tensor, legal: Tensor, tau: Scalar) -> Tensor:
    """Return the logarithms, in nats, of the probabilities of the softmax policy; -inf for illegal actions.

        q / tau - log(sum over legal of exp(q / tau))

    Shapes: q, legal and result [..., A]; tau a number or []. Raises ValueError unless `tau` is above 0.
    """
    _, scaled, total = _exponentials(q, legal, tau)
    return torch.where(legal, scaled - total.log().unsqueeze(-1), -torch.inf)


def q_learning_target(r_t: Tensor, discount_t: Tensor, q_t: Tensor, legal_t: Tensor, tau: Scalar) -> Tensor:
    """Compute the target of soft Q-learning. No gradient flows through it.

        target = r_t + discount_t * value(q_t, legal_t, tau)

    Shapes: q_t, legal_t [..., A]; r_t, discount_t and the result [...]; tau a number or []. Raises ValueError unless
    `tau` is above 0. With tau -> 0 this is `td.q_learning_target`.
    Haarnoja et al. 2017, https://arxiv.org/abs/1702.08165
    """
    check.shapes("r_t[...] discount_t[...] q_t[... A] legal_t[... A]", r_t, discount_t, q_t, legal_t)
    check.floating("q_t", q_t)
    check.boolean("legal_t", legal_t)
    return (r_t + discount_t * value(q_t, legal_t, tau)).detach()


def munchausen_target(
    r_t: Tensor,
    discount_t: Tensor,
    q_tm1_target: Tensor,
    a_tm1: Tensor,
    q_t_target: Tensor,
    legal_tm1: Tensor | None,
    legal_t: Tensor,
    alpha: Scalar = 0.9,
    tau: Scalar = 0.03,
    clip: Scalar = -1.0,
) -> Tensor:
    """Compute the target of Munchausen Q-learning. No gradient flows through it.

        bonus  = clip(tau * log_policy(q_tm1_target, legal_tm1, tau)[a_tm1], clip, 0)
        target = r_t + alpha * bonus + discount_t * value(q_t_target, legal_t, tau)

    With alpha 0 this is `q_learning_target`. With tau -> 0 and clip -inf it is
    `action_gap.advantage_learning_target`.

    Args:
        r_t: Reward at t, [...].
        discount_t: Discount at t, gamma included, [...].
        q_tm1_target: Q-values of the target network at t-1, [..., A].
        a_tm1: Action taken at t-1, integers [...].
        q_t_target: Q-values of the target network at t, [..., A].
        legal_tm1: Mask of legal actions at t-1, bool [..., A]; None if all are legal. A `Transition` does not store
            it. If None is passed although some actions are illegal, their values enter the policy at t-1, and the
            bonus is wrong by at most `-clip`.
        legal_t: Mask of legal actions at t, bool [..., A].
        alpha: Weight of the bonus, in [0, 1].
        tau: Temperature, above 0.
        clip: Lowest bonus, at most 0.

    Shapes: the result is [...]; alpha, tau and clip are numbers or []. Raises ValueError, TypeError or IndexError for
    arguments of another shape, dtype or range.
    Vieillard, Pietquin, Geist 2020, https://arxiv.org/abs/2007.14430
    """
    check.tensor("q_tm1_target", q_tm1_target)
    legal_tm1 = torch.ones_like(q_tm1_target, dtype=torch.bool) if legal_tm1 is None else legal_tm1
    check.shapes(
        "r_t[...] discount_t[...] q_tm1_target[... A] a_tm1[...] q_t_target[... A] legal_tm1[... A] legal_t[... A]",
        r_t, discount_t, q_tm1_target, a_tm1, q_t_target, legal_tm1, legal_t,
    )  # fmt: skip
    for name, q in (("q_tm1_target", q_tm1_target), ("q_t_target", q_t_target)):
        check.floating(name, q)
    for name, legal in (("legal_tm1", legal_tm1), ("legal_t", legal_t)):
        check.boolean(name, legal)
    _check_action(a_tm1, q_tm1_target)
    check.fraction("alpha", alpha)
    _check_at_most_0("clip", clip)
    logs = masking.pick(log_policy(q_tm1_target, legal_tm1, tau), a_tm1)
    bonus = (tau * logs).clamp_max(0.0).clamp_min(clip)
    return (r_t + alpha * bonus + discount_t * value(q_t_target, legal_t, tau)).detach()


def conservative_loss(q_tm1: Tensor, a_tm1: Tensor, legal_tm1: Tensor) -> Tensor:
    """Return the regularizer of discrete conservative Q-learning, at least 0, to be added to the loss.

        log(sum over legal_tm1 of exp(q_tm1)) - q_tm1[a_tm1]

    It lowers the values of legal actions that the data does not contain.

    Shapes: q_tm1, legal_tm1 [..., A]; a_tm1 integers [...]; result [...], inf for an illegal action. Raises ValueError,
    TypeError or IndexError for arguments of another shape, dtype or range.
    Kumar et al. 2020, equation 4, https://arxiv.org/abs/2006.04779
    """
    check.shapes("q_tm1[... A] a_tm1[...] legal_tm1[... A]", q_tm1, a_tm1, legal_tm1)
    check.floating("q_tm1", q_tm1)
    check.boolean("legal_tm1", legal_tm1)
    _check_action(a_tm1, q_tm1)
    return -masking.pick(log_policy(q_tm1, legal_tm1, 1.0), a_tm1)


def _exponentials(q: Tensor, legal: Tensor, tau: Scalar) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest legal value [...], `(q - highest) / tau` [..., A], and the sum of the exponentials [...].

    Subtracting before dividing keeps all digits at large values and small temperatures.
    """
    check.shapes("q[... A] legal[... A]", q, legal)
    check.floating("q", q)
    check.boolean("legal", legal)
    _check_above_0("tau", tau)
    # Any number may be subtracted, so `highest` needs no gradient, and 0 is subtracted in place of infinity, because
    # inf - inf is NaN.
    highest = masking.best(q, legal).detach()
    highest = torch.where(highest.isfinite(), highest, 0.0)
    scaled = torch.where(legal, q - highest.unsqueeze(-1), 0.0) / tau
    total = torch.where(legal, scaled.exp(), 0.0).sum(-1)
    # Without a legal action the sum would be 0, and its logarithm has no gradient.
    return highest, scaled, torch.where(legal.any(-1), total, 1.0)


def _check_action(a_tm1: Tensor, q_tm1: Tensor) -> None:
    check.integer("a_tm1", a_tm1)
    check.within("a_tm1", a_tm1, q_tm1.shape[-1])


def _check_above_0(name: str, x: Scalar) -> None:
    check.number(name, x)
    if not isinstance(x, Tensor) and x == 0:
        raise ValueError(f"{name}: expected a number above 0, got {x}; use a maximum over the actions instead")


def _check_at_most_0(name: str, x: Scalar) -> None:
    if isinstance(x, Tensor):
        check.number(name, x)
    elif isinstance(x, bool) or not isinstance(x, int | float):
        raise TypeError(f"{name}: expected a number or a tensor of floats, got {x!r}")
    elif not x <= 0:
        raise ValueError(f"{name}: expected at most 0, got {x}")
