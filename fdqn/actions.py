"""Reading a row of Q-values under a mask of legal actions.

Everything selects with `where` and never multiplies by a mask: an infinity or NaN among the actions that were not
meant must not leak into a result or a gradient.
"""

import torch
from torch import Tensor

from fdqn import check


def pick(q: Tensor, action: Tensor) -> Tensor:
    """The value `q[action]`.

    Shapes: q [..., A]; action and the result [...]. Raises IndexError for an action that does not exist, where
    `check.within` can see it; elsewhere its value is 0.
    """
    check.shapes("q[... A] action[...]", q, action)
    check.integer("action", action)
    check.within("action", action, q.shape[-1])
    # Not `gather`: its backward scatters, while this fuses with what surrounds it.
    chosen = action.long().unsqueeze(-1) == torch.arange(q.shape[-1], device=q.device)
    return torch.where(chosen, q, 0.0).sum(-1)


def greedy(q: Tensor, legal: Tensor) -> Tensor:
    """The legal action of the highest value, the first of several; 0 where nothing is legal.

    Shapes: q and legal [..., A]; result [...] int64.
    """
    check.shapes("q[... A] legal[... A]", q, legal)
    check.boolean("legal", legal)
    check.floating("q", q)
    # A legal -inf still stands above what is illegal.
    return torch.where(legal, q.clamp_min(torch.finfo(q.dtype).min), -torch.inf).argmax(-1)


def best(q: Tensor, legal: Tensor) -> Tensor:
    """The highest legal value; 0 where nothing is legal, since such a state has no future.

    Shapes: q and legal [..., A]; result [...].
    """
    check.shapes("q[... A] legal[... A]", q, legal)
    check.boolean("legal", legal)
    check.floating("q", q)
    highest = torch.where(legal, q, -torch.inf).amax(-1)
    return torch.where(legal.any(-1), highest, 0.0)


def count(flags: Tensor) -> Tensor:
    """How many of the flags are true up to each, itself included: `flags.cumsum(-1)`. Shapes: both [..., N]."""
    check.boolean("flags", flags)
    check.shapes("flags[... N]", flags)
    size = flags.shape[-1]
    if size > 32:
        return flags.cumsum(-1)
    # A sum of comparisons fuses with what surrounds it, where `cumsum` is a call out of the graph.
    place = torch.arange(size, device=flags.device)
    return (flags.unsqueeze(-2) & (place <= place.unsqueeze(-1))).sum(-1)
