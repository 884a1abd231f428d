"""TD errors and their targets, one equation each. All are elementwise; the caller takes the mean or sum.

Names in `fdqn.ops` carry their time step, as in rlax: `q_tm1` are the values at the observation at t-1, `a_tm1` is the
action taken there, `r_t` and `discount_t` are the reward and discount that follow, and `q_t` are the values at the next
observation. `discount_t` is gamma times the transition's discount, so it is 0 after a terminal step. No gradient flows
through the target of a TD error. The functions of this module whose names end in `_target` do not detach their result.
"""

from torch import Tensor

from fdqn import check
from fdqn.ops import masking


def q_learning(q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor, legal_t: Tensor) -> Tensor:
    """Compute the TD error of Q-learning.

        delta = q_learning_target(r_t, discount_t, q_t, legal_t) - q_tm1[a_tm1]

    Args:
        q_tm1: Q-values at time t-1, [..., A].
        a_tm1: Action taken at t-1, integers [...].
        r_t: Reward at t, [...].
        discount_t: Discount at t, gamma included, [...].
        q_t: Q-values of the target network at t, [..., A].
        legal_t: Mask of legal actions at t, bool [..., A].

    Shapes: the result is [...]. Raises ValueError, TypeError or IndexError for arguments of another shape, dtype or
    range.
    Watkins, Dayan 1992; Mnih et al. 2015, https://doi.org/10.1038/nature14236
    """
    check.shapes(
        "q_tm1[... A] a_tm1[...] r_t[...] discount_t[...] q_t[... A] legal_t[... A]",
        q_tm1, a_tm1, r_t, discount_t, q_t, legal_t,
    )  # fmt: skip
    _check_types(q_tm1, a_tm1, q_t, legal_t)
    target = q_learning_target(r_t, discount_t, q_t, legal_t)
    return target.detach() - masking.pick(q_tm1, a_tm1)


def q_learning_target(r_t: Tensor, discount_t: Tensor, q_t: Tensor, legal_t: Tensor) -> Tensor:
    """Compute the target of Q-learning.

        target = r_t + discount_t * max over legal_t of q_t

    Shapes: q_t, legal_t [..., A]; r_t, discount_t and the result [...].
    """
    check.shapes("r_t[...] discount_t[...] q_t[... A] legal_t[... A]", r_t, discount_t, q_t, legal_t)
    return r_t + discount_t * masking.best(q_t, legal_t)


def double_q_learning(
    q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor, q_t_selector: Tensor, legal_t: Tensor
) -> Tensor:
    """Compute the TD error of double Q-learning.

        delta = double_q_learning_target(r_t, discount_t, q_t, q_t_selector, legal_t) - q_tm1[a_tm1]

    Args:
        q_tm1: Q-values at time t-1, [..., A].
        a_tm1: Action taken at t-1, integers [...].
        r_t: Reward at t, [...].
        discount_t: Discount at t, gamma included, [...].
        q_t: Q-values of the target network at t, which evaluate the action, [..., A].
        q_t_selector: Q-values of the online network at t, which select the action, [..., A].
        legal_t: Mask of legal actions at t, bool [..., A].

    Shapes: the result is [...]. Raises ValueError, TypeError or IndexError for arguments of another shape, dtype or
    range.
    van Hasselt, Guez, Silver 2016, https://arxiv.org/abs/1509.06461
    """
    check.shapes(
        "q_tm1[... A] a_tm1[...] r_t[...] discount_t[...] q_t[... A] q_t_selector[... A] legal_t[... A]",
        q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector, legal_t,
    )  # fmt: skip
    _check_types(q_tm1, a_tm1, q_t, legal_t)
    target = double_q_learning_target(r_t, discount_t, q_t, q_t_selector, legal_t)
    return target.detach() - masking.pick(q_tm1, a_tm1)


def double_q_learning_target(
    r_t: Tensor, discount_t: Tensor, q_t: Tensor, q_t_selector: Tensor, legal_t: Tensor
) -> Tensor:
    """Compute the target of double Q-learning: one network selects the next action, the other evaluates it.

        target = r_t + discount_t * q_t[argmax over legal_t of q_t_selector]

    Shapes: q_*, legal_t [..., A]; r_t, discount_t and the result [...].
    """
    check.shapes(
        "r_t[...] discount_t[...] q_t[... A] q_t_selector[... A] legal_t[... A]",
        r_t, discount_t, q_t, q_t_selector, legal_t,
    )  # fmt: skip
    check.floating("q_t", q_t)
    check.floating("q_t_selector", q_t_selector)
    check.boolean("legal_t", legal_t)
    return r_t + discount_t * masking.selected(q_t, q_t_selector, legal_t)


def expected_sarsa(
    q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor, pi_t: Tensor, legal_t: Tensor
) -> Tensor:
    """Compute the TD error of expected SARSA.

        delta = expected_sarsa_target(r_t, discount_t, q_t, pi_t, legal_t) - q_tm1[a_tm1]

    Args:
        q_tm1: Q-values at time t-1, [..., A].
        a_tm1: Action taken at t-1, integers [...].
        r_t: Reward at t, [...].
        discount_t: Discount at t, gamma included, [...].
        q_t: Q-values of the target network at t, [..., A].
        pi_t: Probabilities of the actions at t, [..., A]; those of illegal actions are taken as 0.
        legal_t: Mask of legal actions at t, bool [..., A].

    Shapes: the result is [...]. Raises ValueError, TypeError or IndexError for arguments of another shape, dtype or
    range.
    van Seijen et al. 2009, https://doi.org/10.1109/ADPRL.2009.4927542; `rlax.expected_sarsa`
    """
    check.shapes(
        "q_tm1[... A] a_tm1[...] r_t[...] discount_t[...] q_t[... A] pi_t[... A] legal_t[... A]",
        q_tm1, a_tm1, r_t, discount_t, q_t, pi_t, legal_t,
    )  # fmt: skip
    _check_types(q_tm1, a_tm1, q_t, legal_t)
    return expected_sarsa_target(r_t, discount_t, q_t, pi_t, legal_t).detach() - masking.pick(q_tm1, a_tm1)


def expected_sarsa_target(r_t: Tensor, discount_t: Tensor, q_t: Tensor, pi_t: Tensor, legal_t: Tensor) -> Tensor:
    """Compute the target of expected SARSA. With a greedy policy it is the target of Q-learning.

        target = r_t + discount_t * sum over legal_t of pi_t * q_t

    Shapes: q_t, pi_t, legal_t [..., A]; r_t, discount_t and the result [...]. Raises ValueError or TypeError for
    arguments of another shape or dtype.
    """
    check.shapes("r_t[...] discount_t[...] q_t[... A] pi_t[... A] legal_t[... A]", r_t, discount_t, q_t, pi_t, legal_t)
    check.floating("q_t", q_t)
    check.floating("pi_t", pi_t)
    check.boolean("legal_t", legal_t)
    return r_t + discount_t * masking.expected(q_t, pi_t, legal_t)


def _check_types(q_tm1: Tensor, a_tm1: Tensor, q_t: Tensor, legal_t: Tensor) -> None:
    check.floating("q_tm1", q_tm1)
    check.floating("q_t", q_t)
    check.boolean("legal_t", legal_t)
    check.integer("a_tm1", a_tm1)
    check.within("a_tm1", a_tm1, q_tm1.shape[-1])
