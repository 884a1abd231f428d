"""Select from Q-values under a mask of legal actions.

Selection uses `where` and never multiplies by a mask, so an infinity or NaN at another action cannot leak into a result
or a gradient.
"""

import torch
from torch import Tensor

from fdqn import check


def pick(q: Tensor, action: Tensor) -> Tensor:
    """Return `q[action]`.

    Shapes: q [..., A]; action and the result [...]. Raises IndexError for an action out of range if `check.within` can
    read it; otherwise the result is 0.
    """
    check.shapes("q[... A] action[...]", q, action)
    check.integer("action", action)
    check.within("action", action, q.shape[-1])
    # Not `gather`: its backward pass is a scatter, whereas a masked sum fuses with the operations around it.
    chosen = action.long().unsqueeze(-1) == torch.arange(q.shape[-1], device=q.device)
    return torch.where(chosen, q, 0.0).sum(-1)


def greedy(q: Tensor, legal: Tensor) -> Tensor:
    """Return the legal action of the highest value, the first one on a tie; 0 if no action is legal.

    Shapes: q and legal [..., A]; result [...] int64.
    """
    check.shapes("q[... A] legal[... A]", q, legal)
    check.boolean("legal", legal)
    check.floating("q", q)
    # A legal action of value -inf must still win over illegal actions.
    return torch.where(legal, q.clamp_min(torch.finfo(q.dtype).min), -torch.inf).argmax(-1)


def best(q: Tensor, legal: Tensor) -> Tensor:
    """Return the highest value of a legal action; 0 if no action is legal, because such a state has no future.

    Shapes: q and legal [..., A]; result [...].
    """
    check.shapes("q[... A] legal[... A]", q, legal)
    check.boolean("legal", legal)
    check.floating("q", q)
    highest = torch.where(legal, q, -torch.inf).amax(-1)
    return torch.where(legal.any(-1), highest, 0.0)


def selected(q: Tensor, q_selector: Tensor, legal: Tensor) -> Tensor:
    """Return `q[greedy(q_selector, legal)]`, the value of the action that other values select; 0 if none is legal.

    With the target network as `q` and the online network as `q_selector` this is the value of double Q-learning.
    Shapes: q, q_selector and legal [..., A]; result [...].
    """
    check.shapes("q[... A] q_selector[... A] legal[... A]", q, q_selector, legal)
    check.floating("q", q)
    check.floating("q_selector", q_selector)
    # Without a legal action, the selected action is illegal too, and its value is masked to 0.
    return pick(torch.where(legal, q, 0.0), greedy(q_selector, legal))


def expected(q: Tensor, probabilities: Tensor, legal: Tensor) -> Tensor:
    """Return the mean of the legal values under the probabilities of a policy; 0 if no action is legal.

        sum over legal of probabilities * q

    Shapes: q, probabilities and legal [..., A]; result [...]. The probabilities of illegal actions are taken as 0.
    """
    check.shapes("q[... A] probabilities[... A] legal[... A]", q, probabilities, legal)
    check.floating("q", q)
    check.floating("probabilities", probabilities)
    check.boolean("legal", legal)
    return (torch.where(legal, probabilities, 0.0) * torch.where(legal, q, 0.0)).sum(-1)


def count(flags: Tensor) -> Tensor:
    """Count the true flags up to and including each position: `flags.cumsum(-1)`. Shapes: both [..., N]."""
    check.boolean("flags", flags)
    check.shapes("flags[... N]", flags)
    size = flags.shape[-1]
    if size > 32:
        return flags.cumsum(-1)
    # A sum of comparisons fuses with the operations around it; `cumsum` is a separate kernel.
    place = torch.arange(size, device=flags.device)
    return (flags.unsqueeze(-2) & (place <= place.unsqueeze(-1))).sum(-1)
