"""From Q-values to actions; the chance comes in as uniforms."""

import torch
from torch import Tensor

from fdqn import actions, check
from fdqn.types import Scalar


def uniform(legal: Tensor, u: Tensor) -> Tensor:
    """Each legal action with the same probability.

    Shapes: legal [..., A] bool; u [...] in [0, 1); result [...] int64. Raises ValueError where nothing is legal and
    `check.some_legal` can see it; elsewhere the action is 0.
    """
    check.shapes("legal[... A] u[...]", legal, u)
    check.boolean("legal", legal)
    check.floating("u", u)
    check.some_legal("legal", legal)
    # The action that makes the count of legal actions so far exceed floor(u * count) for the first time.
    count = actions.count(legal)
    chosen = (u * count[..., -1]).floor().to(torch.int64)
    return (count > chosen.unsqueeze(-1)).to(torch.int8).argmax(-1)


def epsilon_greedy(q: Tensor, legal: Tensor, epsilon: Scalar, u: Tensor) -> Tensor:
    """A uniform legal action with probability `epsilon`, else the legal action of the highest value.

    Shapes: q and legal [..., A]; epsilon a number or a tensor that broadcasts to [...]; u [..., 2] in [0, 1), the
    first deciding whether to explore, the second where; result [...] int64. Raises ValueError as `uniform` does, and
    for an epsilon outside [0, 1] where it is a number.
    """
    check.shapes("q[... A] legal[... A] u[... 2]", q, legal, u)
    if isinstance(epsilon, Tensor):
        check.floating("epsilon", epsilon)
        check.broadcasts("epsilon", epsilon, legal.shape[:-1])
    else:
        check.share("epsilon", epsilon)
    return torch.where(u[..., 0] < epsilon, uniform(legal, u[..., 1]), actions.greedy(q, legal))
