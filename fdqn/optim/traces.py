"""Steps along eligibility traces, for learning from one transition at a time."""

import torch
from torch import Tensor

from fdqn import check, tree
from fdqn.types import Params, Scalar


def obgd(trace: Params, delta: Tensor, learning_rate: Scalar, kappa: Scalar = 2.0) -> Params:
    """Compute the updates of overshooting-bounded gradient descent (ObGD) from an eligibility trace and a TD error.

        step = learning_rate / max(1, learning_rate * kappa * max(|delta|, 1) * sum of |trace|)
        updates = step * delta * trace

    The bound keeps the TD error of the same transition from changing its sign. `trace` is the decayed sum of gradients
    of Q-values, the newest included, so updates are added to the parameters as those of an `Optimizer` are.

    Args:
        trace: eligibility trace, leaves as those of the parameters.
        delta: TD error, [].
        learning_rate: step size without the bound; 1 in the paper.
        kappa: factor of the bound; a larger one gives smaller steps.

    Raises TypeError for a trace that is not a dict or a delta that is not floating-point, and ValueError for a delta of
    another shape or a negative number. Elsayed, Vasan, Mahmood 2024, https://arxiv.org/abs/2410.14606
    """
    check.kind("trace", trace, dict)
    check.shapes("delta[]", delta)
    check.floating("delta", delta)
    check.number("learning_rate", learning_rate)
    check.number("kappa", kappa)
    size = torch.stack([z.abs().sum() for z in trace.values()]).sum()
    step = learning_rate / (learning_rate * kappa * delta.abs().clamp_min(1.0) * size).clamp_min(1.0)
    return tree.map(lambda z: (step * delta * z).to(z.dtype), trace)
