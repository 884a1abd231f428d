"""The transformed Bellman operator: the network learns h(Q), where h compresses large returns.

    target = h(r_t + discount_t * h^-1(q_t))

Pohlen et al. 2018, https://arxiv.org/abs/1805.11593; used in R2D2, https://openreview.net/forum?id=r1lyTjAqYX. Names
and time steps are those of `td`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fdqn import check
from fdqn.ops import masking, returns
from fdqn.types import Scalar


def signed_hyperbolic(x: Tensor, eps: Scalar = 1e-3) -> Tensor:
    """Return h(x), which grows as a square root.

        h(x) = sign(x) * (sqrt(|x| + 1) - 1) + eps * x

    It is computed as `x * (1 / (sqrt(|x| + 1) + 1) + eps)`. This subtracts no nearly equal numbers, so it is exact to a
    few roundings, also for small numbers in float32.

    Shapes: [...]; eps a number or []. Raises ValueError for a negative `eps`. `rlax.signed_hyperbolic`
    """
    check.floating("x", x)
    check.number("eps", eps)
    return x * (1 / ((x.abs() + 1).sqrt() + 1) + eps)


def signed_parabolic(y: Tensor, eps: Scalar = 1e-3) -> Tensor:
    """Return h^-1(y), the inverse of `signed_hyperbolic`.

        h^-1(y) = sign(y) * (((sqrt(1 + 4 * eps * (|y| + 1 + eps)) - 1) / (2 * eps))**2 - 1)

    This formula loses half of the digits in float32. The function computes `u * (|u| + 2)` instead, where u is the root
    of `eps * u * |u| + (1 + 2 * eps) * u = y`; this is exact to a few roundings, and defined for an `eps` of 0.

    Shapes: [...]; eps a number or []. Raises ValueError for a negative `eps`. `rlax.signed_parabolic`
    """
    check.floating("y", y)
    check.number("eps", eps)
    linear = 1 + 2 * eps
    root = 2 * y / (linear + (linear * linear + 4 * eps * y.abs()).sqrt())
    return root * (root.abs() + 2)


def transformed(target: Callable[..., Tensor], *values: int, eps: Scalar = 1e-3) -> Callable[..., Tensor]:
    """Make the transformed version of a target. No gradient flows through it.

        h(target(..., h^-1(values), ...))

    For example, `transformed(td.q_learning_target, 2)` takes its `q_t` from a network that learns h(Q).

    Args:
        target: function of positional arguments, such as `td.q_learning_target` or `returns.retrace`.
        values: positions, from 0, of the arguments that are values of the network.
        eps: as for `signed_hyperbolic`.

    Raises TypeError and ValueError for a target that is not a function, and positions that are not integers of at least
    0. The result raises IndexError if it gets fewer arguments. `rlax.transform_values`
    """
    check.function("target", target)
    for position in values:
        check.count("values", position)
    check.number("eps", eps)

    def of_transformed(*args: Any, **named: Any) -> Tensor:
        if missing := [position for position in values if position >= len(args)]:
            raise IndexError(f"values: expected positions below {len(args)}, the number of arguments, got {missing[0]}")
        plain = [signed_parabolic(x, eps) if i in values else x for i, x in enumerate(args)]
        return signed_hyperbolic(target(*plain, **named), eps).detach()

    return of_transformed


def n_step_q_learning_target(
    r_t: Tensor,
    discount_t: Tensor,
    q_t: Tensor,
    q_t_selector: Tensor,
    legal_t: Tensor,
    ended_t: Tensor,
    n: int,
    eps: Scalar = 1e-3,
) -> Tensor:
    """Compute the target of R2D2: transformed n-step double Q-learning. No gradient flows through it.

        v_t    = h^-1(q_t[argmax over legal_t of q_t_selector])
        target = h(returns.n_step_returns(r_t, discount_t, v_t, ended_t, n))

    Args:
        r_t: Rewards, [T, ...].
        discount_t: Discounts, gamma included, [T, ...].
        q_t: Values h(Q) of the target network at the observation that each step led to, [T, ..., A].
        q_t_selector: Values of the online network, which select the action, [T, ..., A]; pass `q_t` again for
            Q-learning instead of double Q-learning.
        legal_t: Mask of legal actions there, bool [T, ..., A].
        ended_t: True where the step ended its episode, bool [T, ...].
        n: Number of steps, at least 1.
        eps: as for `signed_hyperbolic`.

    Shapes: the result is [T, ...]. Raises ValueError or TypeError for arguments of another shape, dtype or range.
    Kapturowski et al. 2019, https://openreview.net/forum?id=r1lyTjAqYX; `rlax.transformed_n_step_q_learning`
    """
    check.shapes(
        "r_t[...] discount_t[...] q_t[... A] q_t_selector[... A] legal_t[... A] ended_t[...]",
        r_t, discount_t, q_t, q_t_selector, legal_t, ended_t,
    )  # fmt: skip
    check.floating("q_t", q_t)
    check.boolean("legal_t", legal_t)
    v_t = masking.selected(q_t, q_t_selector, legal_t)
    return transformed(returns.n_step_returns, 2, eps=eps)(r_t, discount_t, v_t, ended_t, n)
