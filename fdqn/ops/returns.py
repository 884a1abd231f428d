"""Multi-step returns of a trajectory. Time is the first axis; names are those of `td`.

Row t holds one step: its reward `r_t`, its `discount_t`, and the values `v_t` or `q_t` of the observation that it led
to (`Step.next_obs`), which is the last one of the episode where the episode ended, never the first of the next. Flags
`ended_t` are True where the step ended its episode, terminated or truncated. The discount is gamma where the episode
continues or is truncated, and 0 where it terminated:

    ended_t    = terminated | truncated
    discount_t = gamma * (1 - terminated)

Then no return crosses the end of an episode. After termination nothing is added. After truncation, and after the last
row of the trajectory, the return bootstraps from the value of the last observation.
"""

import torch
from torch import Tensor

from fdqn import check
from fdqn.ops import masking
from fdqn.types import Scalar


def lambda_returns(r_t: Tensor, discount_t: Tensor, v_t: Tensor, lambda_: Scalar) -> Tensor:
    """Compute the lambda-returns of a trajectory.

        G_t = r_t + discount_t * ((1 - lambda_t) * v_t + lambda_t * G_{t+1})

    After the last step, G is `v_t`. With the maximum over action values as `v_t` these are the returns of Q(lambda).
    Pass a `lambda_` of 0 where an episode is truncated, because the next row belongs to another episode, or use
    `lambda_returns_of_episodes`.

    Shapes: r_t, discount_t, v_t and result [T, ...]; lambda_ a number, [] or [T, ...]. `rlax.lambda_returns`;
    Peng and Williams 1996, https://doi.org/10.1023/A:1018076709321
    """
    check.shapes("r_t[...] discount_t[...] v_t[...]", r_t, discount_t, v_t)
    for name, x in (("r_t", r_t), ("discount_t", discount_t), ("v_t", v_t)):
        check.floating(name, x)
    if not r_t.ndim or not len(r_t):
        raise ValueError(f"r_t: expected at least one step, shape [T, ...], got {list(r_t.shape)}")
    mixing, following, found = _lambda_of_each_step(lambda_, r_t), v_t[-1], []
    for r, discount, v, mix in zip(*(x.flip(0) for x in (r_t, discount_t, v_t, mixing)), strict=True):
        following = r + discount * ((1 - mix) * v + mix * following)
        found.append(following)
    return torch.stack(found[::-1])


def lambda_returns_of_episodes(
    r_t: Tensor, discount_t: Tensor, v_t: Tensor, ended_t: Tensor, lambda_: Scalar
) -> Tensor:
    """Compute the lambda-returns of a trajectory of several episodes.

        G_t = r_t + discount_t * v_t                                             where ended_t, and at the last row
        G_t = r_t + discount_t * ((1 - lambda_t) * v_t + lambda_t * G_{t+1})     elsewhere

    If `v_t` is the maximum over the action values, these are the returns of Peng's Q(lambda); if it is the value of the
    action taken, those of SARSA(lambda).

    Shapes: r_t, discount_t, v_t, ended_t and result [T, ...]; lambda_ a number, [] or [T, ...]. Raises ValueError or
    TypeError for arguments of another shape, dtype or range. `rlax.lambda_returns` with a lambda of 0 at the ends;
    Sutton and Barto 2018, section 12.3, http://incompleteideas.net/book/the-book.html
    """
    check.shapes("r_t[...] discount_t[...] v_t[...] ended_t[...]", r_t, discount_t, v_t, ended_t)
    check.floating("v_t", v_t)
    _check_steps(r_t, discount_t, ended_t)
    mixing = _lambda_of_each_step(lambda_, r_t)
    return _backward(r_t, discount_t, v_t, ended_t, (1 - mixing) * v_t, mixing)


def n_step_returns(r_t: Tensor, discount_t: Tensor, v_t: Tensor, ended_t: Tensor, n: int) -> Tensor:
    """Compute the n-step returns of a trajectory of several episodes.

        G_t = r_t + discount_t * (r_{t+1} + discount_{t+1} * (... * (r_{t+m-1} + discount_{t+m-1} * v_{t+m-1})))

    The number of steps m is n, or less if the episode or the trajectory ends earlier.

    Shapes: r_t, discount_t, v_t, ended_t and result [T, ...]. Raises ValueError or TypeError for arguments of another
    shape or dtype, or an n below 1. `rlax.n_step_bootstrapped_returns`; Sutton and Barto 2018, chapter 7,
    http://incompleteideas.net/book/the-book.html
    """
    check.shapes("r_t[...] discount_t[...] v_t[...] ended_t[...]", r_t, discount_t, v_t, ended_t)
    check.floating("v_t", v_t)
    _check_steps(r_t, discount_t, ended_t)
    check.count("n", n, 1)
    returns = r_t + discount_t * v_t
    for _ in range(min(n, len(r_t)) - 1):
        following = torch.cat([returns[1:], v_t[-1:]])
        returns = r_t + discount_t * torch.where(ended_t, v_t, following)
    return returns


def peng_q_lambda(
    r_t: Tensor, discount_t: Tensor, q_t: Tensor, legal_t: Tensor, ended_t: Tensor, lambda_: Scalar
) -> Tensor:
    """Compute the returns of Peng's Q(lambda). No gradient flows through them.

        lambda_returns_of_episodes(r_t, discount_t, max over legal_t of q_t, ended_t, lambda_)

    The trace is not cut after exploratory actions, so the returns are biased towards the policy that acted.

    Args:
        r_t: Rewards, [T, ...].
        discount_t: Discounts, gamma included, [T, ...].
        q_t: Q-values of the observation that each step led to, [T, ..., A].
        legal_t: Mask of legal actions there, bool [T, ..., A].
        ended_t: True where the step ended its episode, bool [T, ...].
        lambda_: Mixing parameter in [0, 1], a number, [] or [T, ...]. With 0 the returns are the targets of Q-learning.

    Shapes: the result is [T, ...]. Raises ValueError, TypeError or IndexError for arguments of another shape, dtype or
    range.
    Peng and Williams 1996, https://doi.org/10.1023/A:1018076709321; `rlax.q_lambda`
    """
    check.shapes(
        "r_t[...] discount_t[...] q_t[... A] legal_t[... A] ended_t[...]", r_t, discount_t, q_t, legal_t, ended_t
    )
    _check_values(q_t, legal_t)
    return lambda_returns_of_episodes(r_t, discount_t, masking.best(q_t, legal_t), ended_t, lambda_).detach()


def watkins_q_lambda(
    r_t: Tensor,
    discount_t: Tensor,
    q_t: Tensor,
    a_t: Tensor,
    legal_t: Tensor,
    ended_t: Tensor,
    lambda_: Scalar,
) -> Tensor:
    """Compute the returns of Watkins' Q(lambda), whose trace is cut at actions that are not greedy.

        lambda_t = lambda_ where q_t[a_t] = max over legal_t of q_t, else 0
        lambda_returns_of_episodes(r_t, discount_t, max over legal_t of q_t, ended_t, lambda_t)

    An action whose value equals the maximum is greedy. No gradient flows through the returns.

    Args:
        r_t, discount_t, q_t, legal_t, ended_t, lambda_: as for `peng_q_lambda`.
        a_t: Action taken at the observation that each step led to, which is the action of the next row, integers
            [T, ...]. It is not used at the last row and where the episode ended.

    Shapes: the result is [T, ...]. Raises ValueError, TypeError or IndexError for arguments of another shape, dtype or
    range.
    Watkins 1989; Sutton and Barto 2018, section 12.10, http://incompleteideas.net/book/the-book.html; `rlax.q_lambda`
    """
    check.shapes(
        "r_t[...] discount_t[...] q_t[... A] a_t[...] legal_t[... A] ended_t[...]",
        r_t, discount_t, q_t, a_t, legal_t, ended_t,
    )  # fmt: skip
    _check_values(q_t, legal_t)
    _check_action(a_t, q_t)
    v_t = masking.best(q_t, legal_t)
    greedy = masking.pick(legal_t & (q_t == v_t.unsqueeze(-1)), a_t) > 0
    lambda_t = torch.where(greedy, _lambda_of_each_step(lambda_, r_t), 0.0)
    return lambda_returns_of_episodes(r_t, discount_t, v_t, ended_t, lambda_t).detach()


def off_policy_returns(
    r_t: Tensor,
    discount_t: Tensor,
    q_t: Tensor,
    a_t: Tensor,
    pi_t: Tensor,
    c_t: Tensor,
    legal_t: Tensor,
    ended_t: Tensor,
) -> Tensor:
    """Compute the returns of a target policy from a trajectory of another policy, with traces `c_t`.

        v_t = sum over legal_t of pi_t * q_t
        G_t = r_t + discount_t * v_t                                       where ended_t, and at the last row
        G_t = r_t + discount_t * (v_t + c_t * (G_{t+1} - q_t[a_t]))        elsewhere

    | method | c_t |
    |---|---|
    | expected SARSA | 0 |
    | tree backup | pi_t[a_t] |
    | importance sampling | pi_t[a_t] / mu_t |
    | Q(lambda) of Harutyunyan et al. | lambda |
    | Retrace | lambda * min(1, pi_t[a_t] / mu_t) |

    Args:
        r_t: Rewards, [T, ...].
        discount_t: Discounts, gamma included, [T, ...].
        q_t: Q-values of the observation that each step led to, [T, ..., A].
        a_t: Action taken there, which is the action of the next row, integers [T, ...]. `a_t` and `c_t` are not used at
            the last row and where the episode ended.
        pi_t: Probabilities of the target policy there, [T, ..., A]; those of illegal actions are taken as 0.
        c_t: Traces, [T, ...].
        legal_t: Mask of legal actions there, bool [T, ..., A].
        ended_t: True where the step ended its episode, bool [T, ...].

    Shapes: the result is [T, ...]. Raises ValueError, TypeError or IndexError for arguments of another shape, dtype or
    range.
    Munos et al. 2016, https://arxiv.org/abs/1606.02647; `rlax.general_off_policy_returns_from_action_values`
    """
    check.shapes(
        "r_t[...] discount_t[...] q_t[... A] a_t[...] pi_t[... A] c_t[...] legal_t[... A] ended_t[...]",
        r_t, discount_t, q_t, a_t, pi_t, c_t, legal_t, ended_t,
    )  # fmt: skip
    _check_steps(r_t, discount_t, ended_t)
    _check_values(q_t, legal_t)
    _check_action(a_t, q_t)
    check.floating("pi_t", pi_t)
    check.floating("c_t", c_t)
    v_t = masking.expected(q_t, pi_t, legal_t)
    taken = masking.pick(torch.where(legal_t, q_t, 0.0), a_t)
    return _backward(r_t, discount_t, v_t, ended_t, v_t - c_t * taken, c_t)


def retrace(
    r_t: Tensor,
    discount_t: Tensor,
    q_t: Tensor,
    a_t: Tensor,
    pi_t: Tensor,
    mu_t: Tensor,
    legal_t: Tensor,
    ended_t: Tensor,
    lambda_: Scalar,
) -> Tensor:
    """Compute the returns of Retrace. No gradient flows through them.

        off_policy_returns with c_t = lambda_ * min(1, pi_t[a_t] / mu_t)

    Args:
        r_t, discount_t, q_t, a_t, pi_t, legal_t, ended_t: as for `off_policy_returns`.
        mu_t: Probability with which the policy that acted chose `a_t`, [T, ...].
        lambda_: Decay of the trace in [0, 1], a number, [] or [T, ...]. With 0 the returns are the targets of expected
            SARSA.

    Shapes: the result is [T, ...]. Raises ValueError, TypeError or IndexError for arguments of another shape, dtype or
    range.
    Munos et al. 2016, https://arxiv.org/abs/1606.02647; `rlax.retrace`
    """
    check.shapes(
        "r_t[...] q_t[... A] a_t[...] pi_t[... A] mu_t[...] legal_t[... A]", r_t, q_t, a_t, pi_t, mu_t, legal_t
    )
    check.floating("mu_t", mu_t)
    check.boolean("legal_t", legal_t)
    _check_action(a_t, q_t)
    pi_a = masking.pick(torch.where(legal_t, pi_t, 0.0), a_t)
    # min(1, pi / mu) as pi / max(pi, mu), which is 0, not NaN, where both probabilities are 0.
    ratio = pi_a / pi_a.maximum(mu_t).clamp_min(torch.finfo(pi_a.dtype).tiny)
    c_t = _lambda_of_each_step(lambda_, r_t) * ratio
    return off_policy_returns(r_t, discount_t, q_t, a_t, pi_t, c_t, legal_t, ended_t).detach()


def _backward(
    r_t: Tensor, discount_t: Tensor, v_t: Tensor, ended_t: Tensor, base_t: Tensor, weight_t: Tensor
) -> Tensor:
    """Compute `G_t = r_t + discount_t * (base_t + weight_t * G_{t+1})`, or `r_t + discount_t * v_t` at an end.

    `where` selects between them, so that not even NaN of the next episode passes the end.
    """
    cut_t = torch.cat([ended_t[:-1], torch.ones_like(ended_t[-1:])])
    rows = (x.flip(0) for x in (r_t, discount_t, v_t, cut_t, base_t, weight_t))
    following, found = v_t[-1], []
    for r, discount, v, cut, base, weight in zip(*rows, strict=True):
        following = r + discount * torch.where(cut, v, base + weight * following)
        found.append(following)
    return torch.stack(found[::-1])


def _lambda_of_each_step(lambda_: Scalar, r_t: Tensor) -> Tensor:
    if isinstance(lambda_, Tensor) and lambda_.ndim:
        check.shapes("r_t[...] lambda_[...]", r_t, lambda_)
    else:
        check.fraction("lambda_", lambda_)
    # A tensor made of a Python number would be float32, also where the rewards are float64.
    return (torch.ones_like(r_t) * lambda_).to(r_t.dtype)


def _check_steps(r_t: Tensor, discount_t: Tensor, ended_t: Tensor) -> None:
    check.floating("r_t", r_t)
    check.floating("discount_t", discount_t)
    check.boolean("ended_t", ended_t)
    if not r_t.ndim or not len(r_t):
        raise ValueError(f"r_t: expected at least one step, shape [T, ...], got {list(r_t.shape)}")


def _check_values(q_t: Tensor, legal_t: Tensor) -> None:
    check.floating("q_t", q_t)
    check.boolean("legal_t", legal_t)


def _check_action(a_t: Tensor, q_t: Tensor) -> None:
    check.integer("a_t", a_t)
    check.within("a_t", a_t, q_t.shape[-1])
