"""The equations: TD errors and what is minimised of them.

Letters are the field's, with time in the name: `q_tm1` were the values at the observation acted on, `r_t` and
`discount_t` came after it, `q_t` are the values at what followed. `discount_t` is gamma times the transition's
discount, so 0 after a terminal step. Everything on the target's side is held fixed.
"""

import torch
from torch import Tensor

from fdqn import actions, check


def q_learning(q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor, legal_t: Tensor) -> Tensor:
    """TD error of Q-learning.

        delta = r_t + discount_t * max over legal_t of q_t - q_tm1[a_tm1]

    Shapes: q_*, legal_t [..., A]; a_tm1, r_t, discount_t and the result [...].
    Watkins, Dayan 1992; Mnih et al. 2015, https://doi.org/10.1038/nature14236
    """
    check.shapes(
        "q_tm1[... A] a_tm1[...] r_t[...] discount_t[...] q_t[... A] legal_t[... A]",
        q_tm1, a_tm1, r_t, discount_t, q_t, legal_t,
    )  # fmt: skip
    check.boolean("legal_t", legal_t)
    target = r_t + discount_t * actions.best(q_t, legal_t)
    return target.detach() - actions.pick(q_tm1, a_tm1)


def double_q_learning(
    q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor, q_t_selector: Tensor, legal_t: Tensor
) -> Tensor:
    """TD error of double Q-learning: one network chooses the next action, another says what it is worth.

        delta = r_t + discount_t * q_t[argmax over legal_t of q_t_selector] - q_tm1[a_tm1]

    Shapes: q_*, legal_t [..., A]; a_tm1, r_t, discount_t and the result [...].
    van Hasselt, Guez, Silver 2016, https://arxiv.org/abs/1509.06461
    """
    check.shapes(
        "q_tm1[... A] a_tm1[...] r_t[...] discount_t[...] q_t[... A] q_t_selector[... A] legal_t[... A]",
        q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector, legal_t,
    )  # fmt: skip
    check.boolean("legal_t", legal_t)
    # Where nothing is legal the chosen action is illegal too, and its value is masked to 0.
    following = actions.pick(torch.where(legal_t, q_t, 0.0), actions.greedy(q_t_selector, legal_t))
    return (r_t + discount_t * following).detach() - actions.pick(q_tm1, a_tm1)


def squared(delta: Tensor) -> Tensor:
    """`delta ** 2`, elementwise; its mean is `torch.nn.functional.mse_loss`. Shapes: [...]."""
    return delta * delta


def huber(delta: Tensor, threshold: float = 1.0) -> Tensor:
    """Half the square up to `threshold`, beyond it linear with the same slope; `torch.nn.functional.huber_loss`.

        0.5 * delta**2                            where |delta| <= threshold
        threshold * (|delta| - 0.5 * threshold)   elsewhere

    Shapes: [...]. Huber 1964, https://doi.org/10.1214/aoms/1177703732
    """
    size = delta.abs()
    inside = size.clamp_max(threshold)
    return inside * (size - 0.5 * inside)
