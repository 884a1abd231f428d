"""Loss functions: TD errors, elementwise losses and the losses of a classifier.

All functions are elementwise and return no reduction; the caller takes `.mean()` or `.sum()`.

Names carry their time step, as in rlax: `q_tm1` are the values at the observation that was acted on, `a_tm1` is the
action, `r_t` and `discount_t` followed it, and `q_t` are the values at the next observation. `discount_t` is gamma
times the transition's discount, so it is 0 after a terminal step. No gradient flows through the target.
"""

import torch
from torch import Tensor

from fdqn import actions, check
from fdqn.types import Scalar


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
    return target.detach() - actions.pick(q_tm1, a_tm1)


def q_learning_target(r_t: Tensor, discount_t: Tensor, q_t: Tensor, legal_t: Tensor) -> Tensor:
    """Compute the target of Q-learning.

        target = r_t + discount_t * max over legal_t of q_t

    Shapes: q_t, legal_t [..., A]; r_t, discount_t and the result [...].
    """
    check.shapes("r_t[...] discount_t[...] q_t[... A] legal_t[... A]", r_t, discount_t, q_t, legal_t)
    return r_t + discount_t * actions.best(q_t, legal_t)


def double_q_learning(
    q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor, q_t_selector: Tensor, legal_t: Tensor
) -> Tensor:
    """TD error of double Q-learning.

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
    return target.detach() - actions.pick(q_tm1, a_tm1)


def double_q_learning_target(
    r_t: Tensor, discount_t: Tensor, q_t: Tensor, q_t_selector: Tensor, legal_t: Tensor
) -> Tensor:
    """Target of double Q-learning: one network chooses the next action, another gives its value.

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
    # Without a legal action, the selected action is illegal too, and its value is masked to 0.
    following = actions.pick(torch.where(legal_t, q_t, 0.0), actions.greedy(q_t_selector, legal_t))
    return r_t + discount_t * following


def squared(delta: Tensor) -> Tensor:
    """Return `delta ** 2`; its mean is `torch.nn.functional.mse_loss`. Shapes: [...]. Raises TypeError for integers."""
    check.floating("delta", delta)
    return delta * delta


def huber(delta: Tensor, threshold: Scalar = 1.0) -> Tensor:
    """Return the Huber loss: quadratic up to `threshold`, linear beyond; `torch.nn.functional.huber_loss`.

        0.5 * delta**2                            where |delta| <= threshold
        threshold * (|delta| - 0.5 * threshold)   elsewhere

    Shapes: [...]. Raises TypeError unless `delta` has a floating-point dtype and ValueError unless `threshold` is above
    0.
    Huber 1964, https://doi.org/10.1214/aoms/1177703732
    """
    check.floating("delta", delta)
    _check_positive("threshold", threshold, "for 0 there is nothing to minimise")
    size = delta.abs()
    inside = size.clamp_max(threshold)
    return inside * (size - 0.5 * inside)


def smooth_l1(delta: Tensor, beta: Scalar = 1.0) -> Tensor:
    """Return the smooth L1 loss, `huber / beta`; `torch.nn.functional.smooth_l1_loss`.

        0.5 * delta**2 / beta   where |delta| <= beta
        |delta| - 0.5 * beta    elsewhere

    Shapes: [...]. Raises ValueError unless `beta` is above 0; at 0 the loss would be `delta.abs()`.
    Girshick 2015, https://arxiv.org/abs/1504.08083
    """
    _check_positive("beta", beta, "for 0 use delta.abs()")
    return huber(delta, beta) / beta


def cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return the cross-entropy, in nats, between `probabilities` and `softmax(logits)`;
    `torch.nn.functional.cross_entropy`.

        -sum over classes of probabilities * log softmax(logits)

    A class of probability 0 contributes 0, even if its logit is -inf. Shapes: both [..., K]; result [...].
    """
    check.shapes("logits[... K] probabilities[... K]", logits, probabilities)
    check.floating("logits", logits)
    check.floating("probabilities", probabilities)
    logs = logits.log_softmax(-1)
    impossible = (probabilities == 0) & (logs == -torch.inf)  # 0 * -inf is NaN
    return -(probabilities * torch.where(impossible, 0.0, logs)).sum(-1)


def cross_entropy_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the negative log-likelihood, in nats, of the target classes; `torch.nn.functional.cross_entropy`.

        -log softmax(logits)[label]

    Shapes: logits [..., K]; labels integers in [0, K) [...]; result [...]. Raises IndexError for a label out of range
    if `check.within` can read it; under a transform or a compiler, or on a GPU, the loss of such a label is 0.
    """
    check.shapes("logits[... K] labels[...]", logits, labels)
    check.floating("logits", logits)
    check.integer("labels", labels)
    check.within("labels", labels, logits.shape[-1])
    return -actions.pick(logits.log_softmax(-1), labels)


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return one-hot vectors of the labels; `torch.nn.functional.one_hot`.

    Shapes: labels integers in [0, classes) [...]; result [..., classes]. Raises TypeError for labels that are not
    integers and IndexError for a label out of range if `check.within` can read it; otherwise its row is all zeros.
    """
    check.count("classes", classes, 1)
    check.kind("dtype", dtype, torch.dtype)
    check.integer("labels", labels)
    check.within("labels", labels, classes)
    return (labels.long().unsqueeze(-1) == torch.arange(classes, device=labels.device)).to(dtype)


def smoothed(probabilities: Tensor, share: Scalar) -> Tensor:
    """Smooth the labels: distribute the fraction `share` of the probability evenly over all classes.

        (1 - share) * probabilities + share / K

    Shapes: both [..., K]. Raises ValueError for a `share` outside [0, 1]. Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567; `label_smoothing` of `torch.nn.functional.cross_entropy`.
    """
    check.shapes("probabilities[... K]", probabilities)
    check.floating("probabilities", probabilities)
    check.share("share", share)
    return (1 - share) * probabilities + share / probabilities.shape[-1]


def _check_types(q_tm1: Tensor, a_tm1: Tensor, q_t: Tensor, legal_t: Tensor) -> None:
    check.floating("q_tm1", q_tm1)
    check.floating("q_t", q_t)
    check.boolean("legal_t", legal_t)
    check.integer("a_tm1", a_tm1)
    check.within("a_tm1", a_tm1, q_tm1.shape[-1])


def _check_positive(name: str, x: Scalar, advice: str) -> None:
    check.number(name, x)
    if not isinstance(x, Tensor) and x == 0:
        raise ValueError(f"{name}: expected a number above 0, got {x}; {advice}")
