"""Multi-step returns: special cases, loops, ends of episodes, masks, laws of a function."""

from functools import partial

import pytest
import torch
from plants import rejects
from torch.func import vmap

from fdqn import random, replay, tree
from fdqn.ops import masking, returns, td, transforms
from fdqn.testing import asserts, laws
from fdqn.types import Transition


def example(steps=6, envs=3, seed=0):
    key = random.key(seed)
    r_t, v_t = random.normal(key, (2, steps, envs), torch.float64)
    discount_t = 0.9 * (random.uniform(random.fold_in(key, 1), (steps, envs)) < 0.8).double()
    return r_t, discount_t, v_t


def test_equal_to_rlax():
    jax, rlax = pytest.importorskip("jax"), pytest.importorskip("rlax")
    r_t, discount_t, v_t = example()
    lambda_ = random.uniform(random.key(5), (6, 3), torch.float64)
    with jax.enable_x64(True):
        theirs = jax.vmap(rlax.lambda_returns, 1, 1)(*(x.numpy() for x in (r_t, discount_t, v_t, lambda_)))
        expected = torch.tensor(theirs.tolist(), dtype=torch.float64)
    asserts.assert_trees_close(expected, returns.lambda_returns(r_t, discount_t, v_t, lambda_), 1e-12)


def test_ends_of_lambda():
    r_t, discount_t, v_t = example()
    asserts.assert_trees_equal(r_t + discount_t * v_t, returns.lambda_returns(r_t, discount_t, v_t, 0))
    monte_carlo, total = [], v_t[-1]
    for r, d in zip(r_t.flip(0), discount_t.flip(0), strict=True):
        total = r + d * total
        monte_carlo.insert(0, total)
    asserts.assert_trees_close(torch.stack(monte_carlo), returns.lambda_returns(r_t, discount_t, v_t, 1.0), 1e-12)


def test_lambda_0_bootstraps_and_ignores_later_rewards():
    r_t, discount_t, v_t = example()
    lambda_ = torch.full((6, 3), 0.9, dtype=torch.float64)
    lambda_[2] = 0
    whole = returns.lambda_returns(r_t, discount_t, v_t, lambda_)
    asserts.assert_trees_equal(whole[:3], returns.lambda_returns(r_t[:3], discount_t[:3], v_t[:3], lambda_[:3]))


def test_laws_of_lambda_returns():
    args = (*example(), torch.tensor(0.8, dtype=torch.float64))
    laws.pure(returns.lambda_returns, *args)
    laws.vmapped(returns.lambda_returns, *tree.stack([args, (*example(seed=1), args[3] / 2)]))
    laws.compiled(returns.lambda_returns, *args, atol=1e-12)
    laws.gradients(lambda *xs: returns.lambda_returns(*xs).square().sum(), *args)


def test_lambda_as_a_python_number_keeps_its_digits():
    """Check that it is not rounded to float32 if the rewards are float64."""
    rows, lambda_ = example(), torch.tensor(0.7, dtype=torch.float64)
    asserts.assert_trees_equal(returns.lambda_returns(*rows, lambda_), returns.lambda_returns(*rows, 0.7))
    ended = torch.zeros(6, 3, dtype=torch.bool)
    f = returns.lambda_returns_of_episodes
    asserts.assert_trees_equal(f(*rows, ended, lambda_), f(*rows, ended, 0.7))


# Trajectories of several episodes

GAMMA, T, E, A = 0.9, 9, 4, 3


def trajectory(seed=0):
    """Return steps [9, 4] of episodes that terminate or are truncated, with masks of legal actions."""
    key, shape = random.key(seed), (T, E)
    u = random.uniform(random.fold_in(key, 0), shape)
    ended_t, terminated = u < 0.4, u < 0.2
    legal_t = random.uniform(random.fold_in(key, 1), (*shape, A)) < 0.6
    a_t = random.randint(random.fold_in(key, 2), shape, 0, A)
    legal_t = (legal_t | (a_t.unsqueeze(-1) == torch.arange(A))) & ~terminated.unsqueeze(-1)
    logits = random.normal(random.fold_in(key, 3), (*shape, A), torch.float64)
    return {
        "r_t": random.normal(random.fold_in(key, 4), shape, torch.float64),
        "discount_t": torch.where(terminated, 0.0, torch.tensor(GAMMA, dtype=torch.float64)),
        "q_t": random.normal(random.fold_in(key, 5), (*shape, A), torch.float64),
        "v_t": random.normal(random.fold_in(key, 6), shape, torch.float64),
        "a_t": a_t,
        "pi_t": torch.where(legal_t, logits, -1e9).softmax(-1),
        "mu_t": random.uniform(random.fold_in(key, 7), shape, torch.float64) + 0.1,
        "c_t": random.uniform(random.fold_in(key, 8), shape, torch.float64),
        "legal_t": legal_t,
        "ended_t": ended_t,
    }


NAMES = {
    returns.lambda_returns_of_episodes: ("r_t", "discount_t", "v_t", "ended_t"),
    returns.n_step_returns: ("r_t", "discount_t", "v_t", "ended_t"),
    returns.peng_q_lambda: ("r_t", "discount_t", "q_t", "legal_t", "ended_t"),
    returns.watkins_q_lambda: ("r_t", "discount_t", "q_t", "a_t", "legal_t", "ended_t"),
    returns.off_policy_returns: ("r_t", "discount_t", "q_t", "a_t", "pi_t", "c_t", "legal_t", "ended_t"),
    returns.retrace: ("r_t", "discount_t", "q_t", "a_t", "pi_t", "mu_t", "legal_t", "ended_t"),
    transforms.n_step_q_learning_target: ("r_t", "discount_t", "q_t", "q_t", "legal_t", "ended_t"),
}
LAST = {
    **dict.fromkeys(NAMES, (0.7,)),
    returns.n_step_returns: (3,),
    transforms.n_step_q_learning_target: (3,),
    returns.off_policy_returns: (),
}
EACH = pytest.mark.parametrize("f", NAMES, ids=lambda f: f.__name__)
OF_Q = pytest.mark.parametrize("f", [f for f in NAMES if "q_t" in NAMES[f]], ids=lambda f: f.__name__)


def arguments(f, steps=None, **changes):
    given = {**(trajectory() if steps is None else steps), **changes}
    return [given[name] for name in NAMES[f]] + list(LAST[f])


@EACH
def test_returns_equal_those_of_each_episode_alone(f):
    """Compare bit for bit the returns of the whole trajectory with those of each episode alone."""
    for seed in range(3):
        steps = trajectory(seed)
        whole = f(*arguments(f, steps))
        for e in range(E):
            ends = [*(steps["ended_t"][:, e].nonzero().flatten() + 1).tolist(), T]
            for first, last in zip([0, *ends], ends, strict=False):
                if first < last:
                    alone = f(*arguments(f, {name: x[first:last, e] for name, x in steps.items()}))
                    asserts.assert_trees_equal(alone, whole[first:last, e])


def of_values(f):
    """Make a function of rewards, discounts, values and ends of `f`, for an environment with a single action."""

    def g(r_t, discount_t, v_t, ended_t):
        q_t, a_t = v_t.unsqueeze(-1), torch.zeros_like(v_t, dtype=torch.int64)
        ones, legal_t = torch.ones_like(v_t), torch.ones_like(q_t, dtype=torch.bool)
        found = {"r_t": r_t, "discount_t": discount_t, "v_t": v_t, "q_t": q_t, "a_t": a_t, "ended_t": ended_t}
        return f(*arguments(f, found, pi_t=torch.ones_like(q_t), mu_t=ones, c_t=0.7 * ones, legal_t=legal_t))

    return g


def rows(seed=0):
    steps = trajectory(seed)
    return [steps[name] for name in ("r_t", "discount_t", "v_t", "ended_t")]


@pytest.mark.parametrize("f", [f for f in NAMES if f is not transforms.n_step_q_learning_target])
def test_no_return_crosses_an_end(f):
    laws.episodes(of_values(f), *rows())


def test_lambda_returns_of_episodes_equal_a_loop_and_their_ends():
    got = returns.lambda_returns_of_episodes(*rows(), 0.7)
    expected, following = [], None
    for r, discount, v, ended in zip(*(x.flip(0) for x in rows()), strict=True):
        ahead = v if following is None else torch.where(ended, v, 0.3 * v + 0.7 * following)
        following = r + discount * ahead
        expected.insert(0, following)
    expected = torch.stack(expected)
    last = rows()[0][-1] + rows()[1][-1] * rows()[2][-1]
    asserts.assert_trees_close(expected, got, 1e-12)
    asserts.assert_trees_equal(last, got[-1])
    r_t, discount_t, v_t, _ = rows()
    asserts.assert_trees_equal(r_t + discount_t * v_t, returns.lambda_returns_of_episodes(*rows(), 0))
    mixing = torch.where(rows()[3], 0.0, torch.tensor(0.7, dtype=torch.float64))
    asserts.assert_trees_close(returns.lambda_returns(r_t, discount_t, v_t, mixing), got, 1e-12)


def forward_view(r, discount, v, n):
    """Compute the discounted rewards of up to n steps of one episode plus the value after them."""
    m = min(n, len(r))
    total, factor = 0.0, 1.0
    for i in range(m):
        total, factor = total + factor * r[i], factor * discount[i]
    return total + factor * v[m - 1]


@pytest.mark.parametrize("n", [1, 2, 5, T, 20])
def test_n_step_returns_equal_a_loop(n):
    r_t, discount_t, v_t, ended_t = rows()
    got = returns.n_step_returns(r_t, discount_t, v_t, ended_t, n)
    for e in range(E):
        for t in range(T):
            end = next((i for i in range(t, T) if ended_t[i, e]), T - 1) + 1
            expected = forward_view(r_t[t:end, e], discount_t[t:end, e], v_t[t:end, e], n)
            torch.testing.assert_close(got[t, e], expected, rtol=1e-12, atol=1e-12)
    if n == 1:
        asserts.assert_trees_equal(r_t + discount_t * v_t, got)
    if n >= T:
        asserts.assert_trees_close(returns.lambda_returns_of_episodes(*rows(), 1.0), got, 1e-12)


def test_n_step_returns_are_those_of_replay():
    """Compare with `replay.n_step`, which stores the rewards and discounts of n steps instead of returns."""
    steps, n, gamma = trajectory(), 3, torch.tensor(GAMMA, dtype=torch.float64)
    number = torch.arange(T * E).reshape(T, E, 1).double()
    rows = Transition(number, steps["a_t"], steps["r_t"], (steps["discount_t"] > 0).double(), number, steps["legal_t"])
    buffer = replay.n_step.wrap(replay.ring.buffer(T * E), E, n)
    state, found = buffer.init(tree.index(rows, (0, 0))), {}
    for t in range(T):
        state, added = buffer.add(state, tree.index(rows, t), steps["ended_t"][t], None, gamma)
        for i in added.valid.nonzero().flatten().tolist():
            row = tree.index(added.batch, i)
            after = steps["v_t"].flatten()[int(row.next_obs)]
            found[int(row.obs)] = row.reward + gamma * row.discount * after
    got = returns.n_step_returns(*(steps[name] for name in NAMES[returns.n_step_returns]), n).flatten()
    assert len(found) > 20
    for number, value in found.items():
        torch.testing.assert_close(got[number], value, rtol=1e-12, atol=1e-12)


def one_step(steps, policy=None):
    given = steps["r_t"], steps["discount_t"], steps["q_t"]
    if policy is None:
        return td.q_learning_target(*given, steps["legal_t"])
    return td.expected_sarsa_target(*given, policy, steps["legal_t"])


def test_lambda_0_gives_the_targets_of_one_step():
    steps = trajectory()
    for f in (returns.peng_q_lambda, returns.watkins_q_lambda):
        asserts.assert_trees_equal(one_step(steps), f(*arguments(f, steps)[:-1], 0.0))
    f, sarsa = returns.retrace, one_step(steps, steps["pi_t"])
    asserts.assert_trees_equal(sarsa, f(*arguments(f, steps)[:-1], 0.0))
    f = returns.off_policy_returns
    asserts.assert_trees_equal(sarsa, f(*arguments(f, steps, c_t=torch.zeros(T, E, dtype=torch.float64))))
    f = transforms.n_step_q_learning_target
    target = transforms.transformed(td.q_learning_target, 2)
    expected = target(*(steps[name] for name in ("r_t", "discount_t", "q_t", "legal_t")))
    asserts.assert_trees_close(expected, f(*arguments(f, steps)[:-1], 1), 1e-12)


def test_watkins_equals_peng_if_all_actions_are_greedy_and_one_step_if_none_is():
    steps, f = trajectory(), returns.watkins_q_lambda
    greedy = masking.greedy(steps["q_t"], steps["legal_t"])
    peng = returns.peng_q_lambda(*arguments(returns.peng_q_lambda, steps))
    asserts.assert_trees_equal(peng, f(*arguments(f, steps, a_t=greedy)))
    others = torch.where(steps["legal_t"], steps["q_t"], torch.inf).argmin(-1)
    several = steps["legal_t"].sum(-1) > 1
    steps["ended_t"] = steps["ended_t"] | ~several
    asserts.assert_trees_equal(one_step(steps), f(*arguments(f, steps, a_t=others)))
    tied = torch.ones_like(steps["q_t"])  # with ties, every legal action is greedy
    asserts.assert_trees_equal(
        returns.peng_q_lambda(*arguments(returns.peng_q_lambda, steps, q_t=tied)), f(*arguments(f, steps, q_t=tied))
    )


def test_retrace_on_policy_and_far_from_it():
    """Check that the trace is lambda for pi = mu, 0 for mu far above pi, and 0 for 0 / 0."""
    steps, f, general = trajectory(), returns.retrace, returns.off_policy_returns
    on_policy = masking.pick(steps["pi_t"], steps["a_t"])
    c_t = torch.full((T, E), 0.7, dtype=torch.float64)
    expected = general(*arguments(general, steps, c_t=c_t))
    asserts.assert_trees_close(expected, f(*arguments(f, steps, mu_t=on_policy)), 1e-12)
    asserts.assert_trees_close(expected, f(*arguments(f, steps, mu_t=on_policy / 2)), 1e-12)  # at most 1
    none = torch.where(steps["a_t"].unsqueeze(-1) == torch.arange(A), 0.0, steps["pi_t"])
    sarsa = one_step(steps, none)
    asserts.assert_trees_equal(sarsa, f(*arguments(f, steps, pi_t=none, mu_t=torch.zeros(T, E, dtype=torch.float64))))


@EACH
def test_permuted_actions(f):
    steps, order = trajectory(), torch.tensor([2, 0, 1])
    moved = {name: x[..., order] if x.ndim == 3 else x for name, x in steps.items()}
    moved["a_t"] = order.argsort()[steps["a_t"]]
    asserts.assert_trees_close(f(*arguments(f, steps)), f(*arguments(f, moved)), 1e-12)
    if f in (returns.watkins_q_lambda, returns.retrace, returns.off_policy_returns):
        with rejects("expected"):
            wrong = {**moved, "a_t": steps["a_t"]}
            asserts.assert_trees_close(f(*arguments(f, steps)), f(*arguments(f, wrong)), 1e-12)


def zero_with_gradient(x):
    """Return 0 with a gradient of zeros in x, for returns through which no gradient flows."""
    return 0 * x.nan_to_num(0.0, 0.0, 0.0).sum()


@OF_Q
def test_values_of_illegal_actions_are_ignored(f):
    steps = trajectory()
    laws.masked(lambda q, legal: f(*arguments(f, steps, q_t=q)) + zero_with_gradient(q), steps["q_t"], steps["legal_t"])
    if "pi_t" in NAMES[f]:
        laws.masked(
            lambda pi, legal: f(*arguments(f, steps, pi_t=pi)) + zero_with_gradient(pi), steps["pi_t"], steps["legal_t"]
        )
    with rejects("illegal values 1e"):
        everything = torch.ones_like(steps["legal_t"])
        g = returns.peng_q_lambda
        laws.masked(
            lambda q, legal: g(*arguments(g, steps, q_t=q, legal_t=everything)) + zero_with_gradient(q),
            steps["q_t"],
            steps["legal_t"],
        )


@EACH
def test_actions_and_traces_at_an_end_are_ignored(f):
    """Change actions and traces at ends, where the next action belongs to another episode or is not known."""
    steps = trajectory()
    unused = torch.cat([steps["ended_t"][:-1], torch.ones(1, E, dtype=torch.bool)])
    changes = {"a_t": torch.where(unused, (steps["a_t"] + 1) % A, steps["a_t"])}
    changes |= {name: torch.where(unused, torch.nan, steps[name]) for name in ("mu_t", "c_t")}
    asserts.assert_trees_equal(f(*arguments(f, steps)), f(*arguments(f, steps, **changes)))


def few(f, seed):
    """Return the tensor arguments for a short trajectory, without the last argument, a number."""
    return arguments(f, {name: x[:4, :2] for name, x in trajectory(seed).items()})[: len(NAMES[f])]


@EACH
def test_laws_of_a_function(f):
    laws.pure(f, *few(f, 0), *LAST[f])
    laws.vmapped(lambda *args: f(*args, *LAST[f]), *tree.stack([few(f, 0), few(f, 1)]))


def test_compiled_for_several_seeds():
    """Compile all functions in one graph, which takes less time than one by one."""

    def f(given):
        return [f(*args, *LAST[f]) for f, args in zip(NAMES, given, strict=True)]

    laws.compiled(vmap(f), tree.stack([[few(f, seed) for f in NAMES] for seed in range(2)]), again=[], atol=1e-12)


def test_gradients():
    """Check that the general returns are differentiable and that no gradient flows through those of control."""
    steps = {name: x[:4, :2] for name, x in trajectory().items()}
    for f in (returns.lambda_returns_of_episodes, returns.n_step_returns):
        laws.gradients(lambda v, f=f: f(*arguments(f, steps, v_t=v)).square().sum(), steps["v_t"])
    f = returns.off_policy_returns
    laws.gradients(lambda q: f(*arguments(f, steps, q_t=q)).square().sum(), steps["q_t"])
    for f in (returns.peng_q_lambda, returns.watkins_q_lambda, returns.retrace, transforms.n_step_q_learning_target):
        tracked = {n: x.clone().requires_grad_() if x.is_floating_point() else x for n, x in steps.items()}
        assert not f(*arguments(f, tracked)).requires_grad


def test_lambda_of_each_seed():
    """Pass lambda as a tensor with one value per seed, and with one per step."""
    stacked = tree.stack([rows(0), rows(1)])
    lambda_ = torch.tensor([0.2, 0.9], dtype=torch.float64)
    got = vmap(returns.lambda_returns_of_episodes)(*stacked, lambda_)
    for i in range(2):
        asserts.assert_trees_close(returns.lambda_returns_of_episodes(*rows(i), float(lambda_[i])), got[i], 1e-12)
    each = torch.full((T, E), 0.7, dtype=torch.float64)
    f = partial(returns.lambda_returns_of_episodes, *rows())
    asserts.assert_trees_equal(f(0.7), f(each))
