"""From Q-values to actions; the chance comes in as uniforms."""

import torch
from torch import Tensor

from fdqn import actions, check
from fdqn.types import Scalar


def uniform(legal: Tensor, u: Tensor) -> Tensor:
    """Each legal action with the same probability.

    Shapes: legal [..., A] bool; u [...] in [0, 1), float32 or float64; result [...] int64. Raises ValueError where
    nothing is legal and `check.some_legal` can read it; elsewhere the action is 0. Raises ValueError for a u outside
    [0, 1) that `check.uniforms` can read; elsewhere it counts as the nearest number inside.
    """
    check.shapes("legal[... A] u[...]", legal, u)
    check.boolean("legal", legal)
    _check_uniforms(u)
    check.some_legal("legal", legal)
    # The action that makes the count of legal actions so far exceed floor(u * count) for the first time.
    count = actions.count(legal)
    chosen = (u * count[..., -1]).floor().to(torch.int64).clamp_min(0).minimum(count[..., -1] - 1)
    return (count > chosen.unsqueeze(-1)).to(torch.int8).argmax(-1)


def epsilon_greedy(q: Tensor, legal: Tensor, epsilon: Scalar, u: Tensor) -> Tensor:
    """A uniform legal action with probability `epsilon`, else the legal action of the highest value.

    Shapes: q and legal [..., A]; epsilon a number or a tensor that broadcasts to [...]; u [..., 2] in [0, 1), the
    first deciding whether to explore, the second where; result [...] int64. Raises TypeError and ValueError as
    `uniform` does, and ValueError for an epsilon outside [0, 1] where it is a number.
    """
    check.shapes("q[... A] legal[... A] u[... 2]", q, legal, u)
    _check_uniforms(u)
    if isinstance(epsilon, Tensor):
        check.floating("epsilon", epsilon)
        check.broadcasts("epsilon", epsilon, legal.shape[:-1])
    else:
        check.share("epsilon", epsilon)
    return torch.where(u[..., 0] < epsilon, uniform(legal, u[..., 1]), actions.greedy(q, legal))


def _check_uniforms(u: Tensor) -> None:
    check.uniforms("u", u)
    # Narrower ones reach few of many actions, and what is rounded to them may be 1.
    if u.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"u: expected torch.float32 or torch.float64, got {u.dtype}")
