"""Networks that predict the quantiles of the return at given fractions, for IQN."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from fdqn.types import Params


class QuantileNetwork(NamedTuple):
    """Network of quantile functions: `apply(params, obs [..., *O], fractions, noise=()) -> z [..., A, N]`."""

    init: Callable[[Tensor], Params]
    """`init(key [..., 2]) -> params`, with leaves [..., *shape]."""
    apply: Callable[..., Tensor]
    """`apply(params, obs, fractions)` with fractions [..., N] in [0, 1], or [N] for all rows, returns quantile values;
    `apply(params, obs, fractions, noise [K])` samples the weights of a noisy network once for all rows."""
    noise: int
    """Number of uniforms K that `apply` takes; 0 for a network without noise."""
