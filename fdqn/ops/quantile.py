"""Equations of quantile regression (QR-DQN, IQN): the distribution of a return is given by its quantiles.

A fraction is a cumulative probability in [0, 1]; the quantile value z_i is the return below which a fraction tau_i of
the probability lies. Quantile values are [..., N], those of all actions [..., A, N], and their mean over N is the
Q-value. Names and time steps are those of `td`.
Dabney, Rowland, Bellemare, Munos 2018, https://arxiv.org/abs/1710.10044; with sampled fractions Dabney, Ostrovski,
Silver, Munos 2018, https://arxiv.org/abs/1806.06923
"""

import torch
from torch import Tensor

from fdqn import check
from fdqn.ops import distributional, losses, masking
from fdqn.types import Scalar


def midpoints(quantiles: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Return the midpoints of `quantiles` equal parts of [0, 1]: `(i + 1/2) / quantiles`, shape [quantiles].

    The quantiles of a distribution at the midpoints are its best approximation by as many equally probable values, in
    1-Wasserstein distance (lemma 2 of Dabney et al. 2018). Raises ValueError for `quantiles` below 1 and TypeError for
    a dtype that is not floating-point.
    """
    check.count("quantiles", quantiles, 1)
    check.kind("dtype", dtype, torch.dtype)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype}")
    return (torch.arange(quantiles, dtype=dtype, device=device) + 0.5) / quantiles


def regression_loss(z_tm1: Tensor, fractions: Tensor, target: Tensor, kappa: Scalar = 1.0) -> Tensor:
    """Compute the quantile Huber loss of quantile values against samples of their target distribution.

        sum over i, mean over j of |fractions_i - 1[delta_ij < 0]| * L(delta_ij),    delta_ij = target_j - z_tm1_i

    L is `losses.huber` with threshold `kappa`, and the absolute value for a `kappa` of 0 (pinball loss). As in rlax and
    Dopamine, L is not divided by `kappa`. No gradient flows through the target.

    Args:
        z_tm1: Quantile values at t-1 of the action taken, [..., N].
        fractions: Fractions of the quantile values, [..., N].
        target: Samples of the target distribution, [..., M], such as those of `q_learning_target`.
        kappa: Threshold of the Huber loss, at least 0.

    Shapes: the result is [...]. Raises ValueError or TypeError for arguments of another shape, dtype or range.
    Equations 9 and 10 of Dabney et al. 2018; `rlax.quantile_regression_loss`.
    """
    check.shapes("z_tm1[... N] fractions[... N] target[... M]", z_tm1, fractions, target)
    check.floating("z_tm1", z_tm1)
    check.floating("fractions", fractions)
    check.number("kappa", kappa)
    delta = target.detach().unsqueeze(-2) - z_tm1.unsqueeze(-1)
    is_pinball = not isinstance(kappa, Tensor) and kappa == 0
    size = delta.abs() if is_pinball else losses.huber(delta, kappa)
    # `where` instead of |fraction - flag|: it keeps the dtype, and the flags need no conversion.
    weight = torch.where(delta < 0, 1 - fractions.unsqueeze(-1), fractions.unsqueeze(-1))
    return (weight * size).mean(-1).sum(-1)


def q_learning_target(r_t: Tensor, discount_t: Tensor, z_t: Tensor, q_t_selector: Tensor, legal_t: Tensor) -> Tensor:
    """Compute samples of the target distribution of quantile Q-learning. No gradient flows through it.

        target_j = r_t + discount_t * z_t[argmax over legal_t of q_t_selector]_j

    If no action is legal, all samples are `r_t`.

    Args:
        r_t: Reward at t, [...].
        discount_t: Discount at t, gamma included, [...].
        z_t: Quantile values of the target network at t, [..., A, M].
        q_t_selector: Values that select the action, [..., A]: means of quantile values of the target network, or of the
            online network for double Q-learning.
        legal_t: Mask of legal actions at t, bool [..., A].

    Shapes: the result is [..., M]. Raises ValueError or TypeError for arguments of another shape or dtype.
    Dabney et al. 2018; the target within `rlax.quantile_q_learning`.
    """
    check.shapes(
        "r_t[...] discount_t[...] z_t[... A M] q_t_selector[... A] legal_t[... A]",
        r_t, discount_t, z_t, q_t_selector, legal_t,
    )  # fmt: skip
    check.boolean("legal_t", legal_t)
    check.floating("z_t", z_t)
    check.floating("q_t_selector", q_t_selector)
    following = distributional.pick(z_t, masking.greedy(q_t_selector, legal_t))
    # Without a legal action, the selected action is illegal too, and its values may be NaN.
    following = torch.where(legal_t.any(-1, keepdim=True), following, 0.0)
    return (r_t.unsqueeze(-1) + discount_t.unsqueeze(-1) * following).detach()
