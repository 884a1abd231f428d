"""Multi-step returns of a trajectory. Time is the first axis; names are those of `losses`."""

import torch
from torch import Tensor

from fdqn import check
from fdqn.types import Scalar


def lambda_returns(r_t: Tensor, discount_t: Tensor, v_t: Tensor, lambda_: Scalar) -> Tensor:
    """Compute the lambda-returns of a trajectory.

        G_t = r_t + discount_t * ((1 - lambda_t) * v_t + lambda_t * G_{t+1})

    After the last step, G is `v_t`. With the maximum over action values as `v_t` these are the returns of Q(lambda).
    Pass a `lambda_` of 0 where an episode is truncated, because the next row belongs to another episode.

    Shapes: r_t, discount_t, v_t and result [T, ...]; lambda_ a number, [] or [T, ...]. `rlax.lambda_returns`;
    Peng and Williams 1996, https://doi.org/10.1023/A:1018076709321
    """
    check.shapes("r_t[...] discount_t[...] v_t[...]", r_t, discount_t, v_t)
    for name, x in (("r_t", r_t), ("discount_t", discount_t), ("v_t", v_t)):
        check.floating(name, x)
    if not r_t.ndim or not len(r_t):
        raise ValueError(f"r_t: expected at least one step, shape [T, ...], got {list(r_t.shape)}")
    if isinstance(lambda_, Tensor) and lambda_.ndim:
        check.shapes("r_t[...] lambda_[...]", r_t, lambda_)
    else:
        check.fraction("lambda_", lambda_)
    mixing, following, found = torch.as_tensor(lambda_).to(r_t).expand_as(r_t), v_t[-1], []
    for r, discount, v, mix in zip(*(x.flip(0) for x in (r_t, discount_t, v_t, mixing)), strict=True):
        following = r + discount * ((1 - mix) * v + mix * following)
        found.append(following)
    return torch.stack(found[::-1])
