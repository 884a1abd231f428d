"""Policies: actions from Q-values. Random numbers are arguments, uniforms in [0, 1)."""

import torch
from torch import Tensor

from fdqn import check
from fdqn.ops import masking
from fdqn.types import Scalar


def uniform(legal: Tensor, u: Tensor) -> Tensor:
    """Sample a legal action uniformly.

    Shapes: legal [..., A] bool; u [...] in [0, 1), float32 or float64; result [...] int64. Raises ValueError for a row
    without a legal action if `check.some_legal` can read it; otherwise the action is 0. Raises ValueError for a `u`
    outside [0, 1) if `check.uniforms` can read it; otherwise it is clamped into the range.
    """
    check.shapes("legal[... A] u[...]", legal, u)
    check.boolean("legal", legal)
    _check_uniforms(u)
    check.some_legal("legal", legal)
    # Take the first action at which the running count of legal actions exceeds floor(u * count).
    count = masking.count(legal)
    chosen = (u * count[..., -1]).floor().to(torch.int64).clamp_min(0).minimum(count[..., -1] - 1)
    return (count > chosen.unsqueeze(-1)).to(torch.int8).argmax(-1)


def epsilon_greedy(q: Tensor, legal: Tensor, epsilon: Scalar, u: Tensor) -> Tensor:
    """Sample a uniform legal action with probability `epsilon`, else return the greedy legal action.

    Shapes: q and legal [..., A]; epsilon a number or a tensor that broadcasts to [...]; u [..., 2] in [0, 1), of which
    the first decides whether to explore and the second selects the random action; result [...] int64. Raises TypeError
    and ValueError as `uniform` does, and ValueError for a number `epsilon` outside [0, 1].
    """
    check.shapes("q[... A] legal[... A] u[... 2]", q, legal, u)
    _check_uniforms(u)
    if isinstance(epsilon, Tensor):
        check.floating("epsilon", epsilon)
        check.broadcasts("epsilon", epsilon, legal.shape[:-1])
    else:
        check.fraction("epsilon", epsilon)
    return torch.where(u[..., 0] < epsilon, uniform(legal, u[..., 1]), masking.greedy(q, legal))


def _check_uniforms(u: Tensor) -> None:
    check.uniforms("u", u)
    # Narrower dtypes cannot reach every one of many actions, and a uniform rounded to them may become 1.
    if u.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"u: expected torch.float32 or torch.float64, got {u.dtype}")
