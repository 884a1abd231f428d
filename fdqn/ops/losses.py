"""Loss functions: elementwise losses of TD errors, and the losses of a classifier.

No function reduces over the batch; the caller takes `.mean()` or `.sum()`.
"""

import torch
from torch import Tensor

from fdqn import check
from fdqn.ops import masking
from fdqn.types import Scalar


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
    return -masking.pick(logits.log_softmax(-1), labels)


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


def smoothed(probabilities: Tensor, fraction: Scalar) -> Tensor:
    """Smooth labels: distribute a fraction of the probability evenly over all classes.

        (1 - fraction) * probabilities + fraction / K

    Shapes: both [..., K]. Raises ValueError for a `fraction` outside [0, 1]. Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567; `label_smoothing` of `torch.nn.functional.cross_entropy`.
    """
    check.shapes("probabilities[... K]", probabilities)
    check.floating("probabilities", probabilities)
    check.fraction("fraction", fraction)
    return (1 - fraction) * probabilities + fraction / probabilities.shape[-1]


def _check_positive(name: str, x: Scalar, advice: str) -> None:
    check.number(name, x)
    if not isinstance(x, Tensor) and x == 0:
        raise ValueError(f"{name}: expected a number above 0, got {x}; {advice}")
