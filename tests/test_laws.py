"""Check that every law accepts correct functions and rejects planted bugs with a specific message."""

import random as python_random
from functools import partial
from typing import NamedTuple

import pytest
import torch
from plants import branches, rejects
from torch import Tensor

from fdqn import envs, optim, random, replay, tree
from fdqn.envs import episode
from fdqn.envs.classic import cartpole, mountain_car
from fdqn.ops import exploration, masking, schedules, td
from fdqn.replay import n_step, packing, prioritized, ring
from fdqn.testing import laws, probes
from fdqn.types import Env, EnvSpec, Optimizer, Sample

ARANGE = torch.arange(6.0).reshape(2, 3)

# Laws of any function


def test_pure_rejects_planted_bugs():
    calls = []
    assert torch.equal(laws.pure(torch.sin, ARANGE), ARANGE.sin())
    with rejects("second call"):
        laws.pure(lambda x: x + len(calls) + (calls.append(0) or 0), ARANGE)
    with rejects("inputs"):
        laws.pure(lambda x: x.mul_(1.5), ARANGE + 1)
    with rejects("printed"):
        laws.pure(lambda x: print(x), ARANGE)


def test_pure_rejects_generators():
    with torch.random.fork_rng(devices=[]), rejects("generator of torch"):
        laws.pure(lambda x: torch.rand(1) * 0 + x, ARANGE)
    before = python_random.getstate()
    with rejects("generator of python"):
        laws.pure(lambda x: x + 0 * python_random.random(), ARANGE)
    python_random.setstate(before)


def test_vmapped_rejects_planted_bugs():
    laws.vmapped(lambda x, y: x @ y, ARANGE, ARANGE)
    laws.vmapped(lambda x, y: x @ y, ARANGE, ARANGE[0], in_dims=(0, None))
    laws.vmapped(lambda x: x.sum(), ARANGE, in_dims=1)

    def normalised_over_the_batch(x):  # under vmap only, as batch norm in training
        return x - (x.mean() if not torch._C._functorch.is_batchedtensor(x) else 0)

    with rejects("vmap"):
        laws.vmapped(normalised_over_the_batch, ARANGE)


def test_ranked_rejects_planted_bugs():
    x = torch.arange(24.0).reshape(2, 3, 4)
    laws.ranked(lambda x: x.softmax(-1), x, leading=2)
    with rejects("leading axes"):
        laws.ranked(lambda x: x.softmax(0), x, leading=2)
    with rejects("2 of 2 leading axes"):  # correct for one leading axis, not for two
        laws.ranked(lambda x: x - x.mean(tuple(range(max(0, x.ndim - 2), x.ndim)), keepdim=True), x, leading=2)


def test_compiled_rejects_planted_bugs():
    laws.compiled(lambda x, rate: x * rate, ARANGE, torch.tensor(0.1))
    # A learning rate that is not a tensor.
    with rejects("call 1: expected the graph of call 0, got another; guard: .* == 0.1"):
        laws.compiled(lambda x, rate: x * rate, ARANGE, 0.1, again=[(ARANGE, 0.2)])
    with rejects("got a break at .* in branches, .*Data-dependent"):
        laws.compiled(branches, ARANGE)
    with rejects("call 0"):
        laws.compiled(lambda x: x + (1 if torch.compiler.is_compiling() else 0), ARANGE)


class WrongSlope(torch.autograd.Function):
    """The square, with the gradient of the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_gradients_rejects_planted_bugs():
    params = {"a": ARANGE, "b": torch.tensor(0.5)}
    laws.gradients(lambda p, x: (p["a"].sin() * p["b"] * x).sum(), params, ARANGE)
    laws.gradients(lambda p: (p["a"] * ARANGE.mT).sin().sum() * p["b"], params | {"a": ARANGE.mT})
    with rejects(r"finite differences\['a'\]\[2, 1\]: expected 10"):  # detached by mistake, and transposed
        laws.gradients(lambda p: (p["a"][2, 1] ** 2 + p["a"][2, 1].detach() ** 2) / 2, {"a": ARANGE.mT})
    with rejects(r"finite differences\['a'\]\[0, 0\]: expected 0.0, got 1.0"):
        laws.gradients(lambda p: WrongSlope.apply(p["a"]).sum() + p["b"], params)
    with rejects(r"torch.func.grad and autograd.grad: \[0\]\[0, 0\]: expected 1.0, got 2.0"):
        laws.gradients(
            lambda p: (p["a"] * (2 if torch._C._functorch.is_gradtrackingtensor(p["a"]) else 1)).sum() + p["b"], params
        )
    with rejects("finite differences"):  # partly detached by mistake
        laws.gradients(lambda p: (p["a"].detach() * p["a"]).sum() + p["b"], params)


def undetached_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, legal_t):
    return r_t + discount_t * masking.best(q_t, legal_t) - masking.pick(q_tm1, a_tm1)


def td_arguments(batch=4, count=3):
    key = random.key(3)
    q_tm1, q_t, selector = random.normal(key, (3, batch, count), torch.float64)
    r_t, discount_t = random.normal(random.fold_in(key, 1), (2, batch), torch.float64)
    a_tm1 = random.randint(random.fold_in(key, 2), (batch,), 0, count)
    legal_t = random.uniform(random.fold_in(key, 3), (batch, count)) < 0.7
    return q_tm1, a_tm1, r_t, discount_t, q_t, selector, legal_t


def test_semi_gradient_rejects_a_target_that_is_not_detached():
    q_tm1, a_tm1, r_t, discount_t, q_t, _, legal_t = td_arguments()
    arguments = (q_tm1, a_tm1, r_t, discount_t, q_t, legal_t)
    laws.semi_gradient(td.q_learning, *arguments, held=(2, 3, 4, 5))
    with rejects("argument 4: expected gradient 0 on the target's side"):
        laws.semi_gradient(undetached_q_learning, *arguments, held=(4,))
    with rejects("expected it to depend on an argument"):
        laws.semi_gradient(lambda *args: td.q_learning(*args).detach(), *arguments, held=(4,))
    with rejects("expected a gradient, got 0"):
        laws.semi_gradient(lambda *args: td.q_learning(*args) * 0, *arguments, held=(4,))


def test_semi_gradient_rejects_gradients_that_cancel():
    q, r = random.normal(random.key(0), (2, 4))
    laws.semi_gradient(lambda q, r: (r - r.mean()).detach() - q, q, r, held=(1,))
    with rejects("argument 1: expected gradient 0 on the target's side, got 0.[0-9]"):
        laws.semi_gradient(lambda q, r: (r - r.mean()) - q, q, r, held=(1,))
    laws.semi_gradient(lambda q, r: q - q.mean() + r.detach(), q, r, held=(1,))  # here the gradient is correct


def test_semi_gradient_rejects_an_index_out_of_range():
    for held in ((7,), (-1,), (1, 2)):
        with rejects(r"held: expected some of \[0, 1\], got \["):
            laws.semi_gradient(lambda q, r: r.detach() - q, ARANGE, ARANGE, held=held)


# Laws of components


def update_only(f):
    """Make a stateless optimizer that changes gradients by `f`."""
    return Optimizer(lambda params: {}, lambda grads, state, params: (tree.map(f, grads), state))


def adam_without_bias_correction(rate, beta1=0.9, beta2=0.999, eps=1e-8):
    correct = optim.adam(rate)

    def update(grads, state, params):
        _, state = correct.update(grads, state, params)
        return tree.map(lambda m, v: -rate * m / (v.sqrt() + eps), state.mean, state.square), state

    return Optimizer(correct.init, update)


def test_optimizer_rejects_planted_bugs():
    laws.optimizer(optim.adam(1e-2), partial(torch.optim.Adam, lr=1e-2))
    with rejects("params after step 1"):
        laws.optimizer(adam_without_bias_correction(1e-2), partial(torch.optim.Adam, lr=1e-2))
    with rejects("params after step 1"):  # correct to 1e-6 only
        laws.optimizer(optim.adam(1e-2, eps=1.01e-8), partial(torch.optim.Adam, lr=1e-2))
    with rejects("updates of float32 params.*float32.*float64"):
        double = Optimizer(
            lambda params: {}, lambda grads, state, params: (tree.map(lambda g: -0.1 * g.double(), grads), {})
        )
        laws.optimizer(double, partial(torch.optim.SGD, lr=0.1))


def momentum(update):
    """Make gradient descent with momentum 0.9 from a function `update(grads, velocity) -> (updates, velocity)`."""
    return Optimizer(
        lambda params: tree.map(torch.zeros_like, params), lambda grads, state, params: update(grads, state)
    )


MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def test_optimizer_rejects_in_place_updates():
    def correct(grads, state):
        state = tree.map(lambda v, g: 0.9 * v + g, state, grads)
        return tree.map(lambda v: -0.1 * v, state), state

    def over_state(grads, state):
        state = tree.map(lambda v, g: v.mul_(0.9).add_(g), state, grads)
        return tree.map(lambda v: -0.1 * v, state), state

    def over_grads(grads, state):
        state = tree.map(lambda v, g: 0.9 * v + g, state, grads)
        return tree.map(lambda g, v: g.copy_(-0.1 * v), grads, state), state

    laws.optimizer(momentum(correct), MOMENTUM)
    with rejects(r"inputs: \[1\]\['0.weight'\]\[0, 0\]: expected 0.0, got"):
        laws.optimizer(momentum(over_state), MOMENTUM)
    with rejects(r"inputs: \[0\]\['0.weight'\]\[0, 0\]: expected"):
        laws.optimizer(momentum(over_grads), MOMENTUM)


def test_optimizer_rejects_bugs_visible_only_in_float32_or_at_zero_gradient():
    theirs = partial(torch.optim.SGD, lr=0.1)
    laws.optimizer(update_only(lambda g: -0.1 * g), theirs)
    with rejects("params after step 1 in float32: "):
        laws.optimizer(update_only(lambda g: -0.1 * g * (1 if g.dtype == torch.float64 else 990)), theirs)
    with rejects("params after step 1 in float32: "):  # an epsilon that vanishes in float32
        laws.optimizer(update_only(lambda g: -0.1 * g * ((1 + 1e-12 - torch.ones_like(g)) / 1e-12).sign()), theirs)
    with rejects(r"params after step 1, some of gradient 0: .* got nan"):
        laws.optimizer(update_only(lambda g: -0.1 * g * (g / g)), theirs)

    def counts_nothing(grads, state):  # a zero gradient does not change the velocity
        state = tree.map(lambda v, g: torch.where(g == 0, v, 0.9 * v + g), state, grads)
        return tree.map(lambda v: -0.1 * v, state), state

    with rejects("params after step 4, some of gradient 0: "):
        laws.optimizer(momentum(counts_nothing), MOMENTUM)
    with rejects("state of float64 params: .*expected torch.float64, got torch.float32"):
        forgetful = Optimizer(
            lambda p: p, lambda g, s, p: (tree.map(lambda x: -0.1 * x, g), tree.cast(s, torch.float32))
        )
        laws.optimizer(forgetful, theirs)


def test_chained_rejects_a_chain_that_is_not_associative(monkeypatch):
    first, second, third = optim.clip_by_global_norm(1.0), optim.adam(1e-2), optim.sgd(0.5, momentum=0.9)
    laws.chained(first, second, third)

    def averaged(optimizers, grads, state, params):  # in parallel instead of in sequence
        results = {name: opt.update(grads, state[name], params) for name, opt in optimizers.items()}
        updates = [update for update, _ in results.values()]
        return tree.map(lambda *xs: sum(xs) / len(xs), *updates), {name: new for name, (_, new) in results.items()}

    monkeypatch.setattr(optim.transforms, "_update_chain", averaged)
    with rejects("updates of step 1"):
        laws.chained(first, second, third)


def above(max_norm, f):
    """Make a stateless optimizer that changes gradients by `f(grad, norm)` if their norm is above the limit."""

    def update(grads, state, params):
        size = tree.norm(grads)
        return tree.map(lambda g: torch.where(size > max_norm, f(g, size), g), grads), state

    return Optimizer(lambda params: {}, update)


def test_clipped_rejects_clipping_element_by_element():
    laws.clipped(optim.clip_by_global_norm)
    with rejects("norm: expected at most 1.5"):
        laws.clipped(lambda norm: update_only(lambda g: g.clamp(-norm, norm)))
    with rejects("norm: expected at most|direction"):  # each leaf by its own norm
        laws.clipped(lambda norm: update_only(lambda g: g * (norm / g.norm()).clamp_max(1.0)))
    with rejects("direction|gradients of norm"):
        laws.clipped(lambda norm: update_only(lambda g: g.clamp(-norm / 10, norm / 10)))
    with rejects("direction at norm"):  # correct norm, wrong direction
        laws.clipped(lambda norm: above(norm, lambda g, size: g.clamp(-norm / 10, norm / 10)))
    with rejects("clip_grad_norm_: "):  # smaller than necessary
        laws.clipped(lambda norm: above(norm, lambda g, size: g * norm / (2 * size)))
    with rejects("gradients of norm"):  # scales small gradients up
        laws.clipped(
            lambda norm: Optimizer(
                lambda p: {}, lambda g, s, p: (tree.map(lambda x: x * norm / (tree.norm(g) + 1e-6), g), s)
            )
        )


def mask_arguments():
    q = torch.tensor([[1.0, 2.0, 3.0], [5.0, 0.0, -1.0], [-2.0, -3.0, -1.0]])
    legal = torch.tensor([[True, True, False], [False, True, True], [True, False, False]])
    return q, legal


def test_masked_rejects_multiplying_by_a_mask():
    q, legal = mask_arguments()
    laws.masked(masking.best, q, legal)
    one = torch.tensor([0, 1, 0])
    onehot = one.unsqueeze(-1) == torch.arange(3)
    laws.masked(lambda q, legal: masking.pick(q, one), q, onehot)
    with rejects("illegal values"):  # q * onehot lets NaN and infinities through
        laws.masked(lambda q, legal: (q * onehot).sum(-1), q, onehot)
    with rejects("illegal values"):
        laws.masked(lambda q, legal: q.amax(-1), q, legal)
    with rejects("gradient with illegal values"):  # the value is correct, the gradient is NaN
        laws.masked(lambda q, legal: torch.where(legal, q.exp() * q.sin() / q, 0.0).sum(-1), q, legal)
    with rejects("gradient of illegal values"):
        laws.masked(lambda q, legal: torch.where(legal, q, q - q.detach()).nan_to_num().sum(-1), q, legal)


def test_legal_only_rejects_planted_bugs():
    q, legal = mask_arguments()
    u = torch.full((3, 2), 0.99)
    laws.legal_only(partial(exploration.epsilon_greedy, epsilon=0.5, u=u), q, legal)
    with rejects(r"actions\[0\]: expected one of \[0, 1\], got 2"):
        laws.legal_only(lambda q, legal: q.argmax(-1), q, legal)
    with rejects(r"actions\[2\]: expected one of \[0\], got 2"):  # the greedy action is masked, the random one is not
        laws.legal_only(
            lambda q, legal: torch.where(torch.arange(3) > 1, (u[:, 1] * 3).long(), masking.greedy(q, legal)), q, legal
        )
    with rejects("got 3"):  # rounding up, not down
        laws.legal_only(lambda q, legal: (u[:, 1] * 3).ceil().long(), q, torch.ones_like(legal))
    laws.legal_only(lambda q, legal: masking.greedy(q, legal).int(), q, legal)
    for dtype in (torch.float32, torch.bool):
        with rejects(f"actions: expected an integer dtype, got {dtype}"):
            laws.legal_only(lambda q, legal, dtype=dtype: masking.greedy(q, legal).to(dtype), q, legal)
    with rejects("shape"):
        laws.legal_only(lambda q, legal: q.argmax(-1, keepdim=True), q, legal)


GAMMA = 0.9


def trajectory():
    """Return rewards, discounts, values and ends of steps [9, 4], with terminations and truncations."""
    key = random.key(0)
    r_t, v_t = random.normal(key, (2, 9, 4), torch.float64)
    u = random.uniform(random.fold_in(key, 1), (9, 4))
    return r_t, torch.where(u < 0.2, 0.0, torch.tensor(GAMMA, dtype=torch.float64)), v_t, u < 0.4


def backward(step):
    """Make a function that computes returns with `step(i, following, ...)`, from the last step to the first."""

    def f(r_t, discount_t, v_t, ended_t):
        following, found = v_t[-1], []
        for i in reversed(range(len(r_t))):
            following = step(i, following, r_t, discount_t, v_t, ended_t)
            found.append(following)
        return torch.stack(found[::-1])

    return f


def mixed(v, following):
    return 0.3 * v + 0.7 * following


def correct(i, following, r_t, discount_t, v_t, ended_t):
    return r_t[i] + discount_t[i] * torch.where(ended_t[i], v_t[i], mixed(v_t[i], following))


def masks_the_value_only(i, following, r_t, discount_t, v_t, ended_t):
    """Mask only the value, as in CleanRL's issue 494: returns of 408 instead of 495 in CartPole."""
    return r_t[i] + GAMMA * (0.7 * following + 0.3 * v_t[i] * (discount_t[i] > 0))


def mask_of_the_next_step(i, following, r_t, discount_t, v_t, ended_t):
    at = min(i + 1, len(r_t) - 1)
    return r_t[i] + discount_t[at] * torch.where(ended_t[at], v_t[i], mixed(v_t[i], following))


def mask_of_the_previous_step(i, following, r_t, discount_t, v_t, ended_t):
    at = max(i - 1, 0)
    return r_t[i] + discount_t[at] * torch.where(ended_t[at], v_t[i], mixed(v_t[i], following))


def truncation_as_termination(i, following, r_t, discount_t, v_t, ended_t):
    return r_t[i] + torch.where(ended_t[i], 0.0, discount_t[i]) * mixed(v_t[i], following)


def termination_alone_ends(i, following, r_t, discount_t, v_t, ended_t):
    return r_t[i] + discount_t[i] * mixed(v_t[i], following)


def value_of_the_next_row(i, following, r_t, discount_t, v_t, ended_t):
    """Bootstrap from the first observation of the next episode."""
    v = v_t[min(i + 1, len(v_t) - 1)]
    return r_t[i] + discount_t[i] * torch.where(ended_t[i], v, mixed(v, following))


def multiplied_by_the_mask(i, following, r_t, discount_t, v_t, ended_t):
    mixing = 0.7 * (~ended_t[i]).double()
    return r_t[i] + discount_t[i] * ((1 - mixing) * v_t[i] + mixing * following)


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (masks_the_value_only, "returns where an episode ended"),
        (mask_of_the_next_step, "returns where an episode ended"),
        (mask_of_the_previous_step, "returns where an episode ended"),
        (truncation_as_termination, "returns where an episode ended"),
        (termination_alone_ends, "returns where an episode ended"),
        (value_of_the_next_row, "returns where an episode ended"),
        (multiplied_by_the_mask, "rows after the end at step 0 are inf"),
    ],
)
def test_the_law_of_episodes_rejects_planted_bugs(plant, message):
    laws.episodes(backward(correct), *trajectory())
    with rejects(message):
        laws.episodes(backward(plant), *trajectory())
    with rejects("ended_t: expected an end before the last row, got none"):
        laws.episodes(backward(correct), *trajectory()[:3], trajectory()[3] & False)


def test_schedule_rejects_epsilon_stuck_at_its_end():
    correct = partial(schedules.linear, start=1.0, end=0.05, steps=100)
    laws.schedule(correct, 1.0, 0.05, 100)
    laws.schedule(lambda step: 0.3, 0.3, 0.3, 100)
    with rejects("step 0: expected 1.0, got 0.05"):
        laws.schedule(lambda step: torch.full_like(step, 0.05, dtype=torch.float32), 1.0, 0.05, 100)
    with rejects("step 0: expected 1.0, got 0.05"):  # start and end swapped
        laws.schedule(partial(schedules.linear, start=0.05, end=1.0, steps=100), 1.0, 0.05, 100)
    with rejects("step 50: expected between"):  # integer division
        laws.schedule(lambda step: 1.0 + (0.05 - 1.0) * (step // 100).clamp_max(1), 1.0, 0.05, 100)
    with rejects("after the end"):
        laws.schedule(lambda step: 1.0 - 0.95 * step / 100, 1.0, 0.05, 100)
    with rejects("step 100: expected 0.05"):
        laws.schedule(partial(schedules.linear, start=1.0, end=0.05, steps=101), 1.0, 0.05, 100)
    with rejects("step 60: expected 0.05 at step 100 and not before, got it already"):  # too fast
        laws.schedule(partial(schedules.linear, start=1.0, end=0.05, steps=60), 1.0, 0.05, 100)
    with rejects("step 99: expected 0.05 at step 100"):  # off by one
        laws.schedule(partial(schedules.linear, start=1.0, end=0.05, steps=99), 1.0, 0.05, 100)
    for late in (101, 150, 200, 2001):
        with rejects(f"step {late}: expected 0.05 after the end, got 5.0"):
            laws.schedule(lambda step, at=late: torch.where(step // at == 1, 5.0, correct(step)), 1.0, 0.05, 100)
    with rejects("monotone"):
        laws.schedule(lambda step: correct(step) + 0.1 * (step == 60), 1.0, 0.05, 100)


# Replay


RING = ring.buffer(5)


def forgetful_add(state, batch, ended, valid, gamma):
    """Overwrite the last rows when full instead of wrapping around."""
    capacity, count = state.rows.reward.shape[0], batch.reward.shape[0]
    at = (state.added.clamp_max(capacity - count) + torch.arange(count)) % capacity
    rows = tree.map(lambda ring, new: ring.index_put((at,), new), state.rows, batch)
    return state._replace(rows=rows, added=state.added + count), None


def sliced_add(state, batch, ended, valid, gamma):
    """Lose the wrapped rest of a batch, which is correct only if the batch size divides the capacity."""
    capacity, count = state.rows.reward.shape[0], batch.reward.shape[0]
    at = state.added % capacity + torch.arange(count)
    keep = at < capacity
    rows = tree.map(lambda ring, new: ring.index_put((at[keep],), new[keep]), state.rows, batch)
    return state._replace(rows=rows, added=state.added + count), None


def with_batches(buffer, change):
    """Return the buffer with `change(batch, bits)` applied to the batches that it samples."""

    def sample(state, bits, oldest):
        drawn = buffer.sample(state, bits, oldest)
        return drawn._replace(batch=change(drawn.batch, bits))

    return buffer._replace(sample=sample)


def test_replay_rejects_a_ring_that_does_not_wrap_around():
    operations = [2, torch.tensor([0, 2**32 - 1]), 3, 2, 2]
    laws.replay_like_deque(operations, 5)
    laws.replay_like_deque(operations, 5, RING)
    with rejects("operation 3, stored rows"):
        laws.replay_like_deque(operations, 5, RING._replace(add=forgetful_add))
    with rejects("operation 4, stored rows"):
        laws.replay_like_deque([*operations[:2], 3, 3, 3], 5, RING._replace(add=sliced_add))

    def unfilled(state, bits, oldest):  # samples from the capacity instead of the filled rows
        at = random.index(bits, state.rows.reward.shape[0])
        return Sample(tree.index(state.rows, at), at, torch.ones(len(bits)))

    with rejects("stored rows"):
        laws.replay_like_deque(operations, 5, RING._replace(sample=unfilled))

    def torn(rows, bits):  # rewards of other rows than the observations
        return rows._replace(obs=rows.obs.flip(0))

    with rejects("sampled rows"):
        laws.replay_like_deque(operations, 5, with_batches(RING, torn))

    def invented(r, bits):  # complete rows that were never added, in samples of two
        by = 6 * (len(bits) == 2)
        obs, action, reward = r.obs + torch.tensor([by, -by]), r.action + 3 * by, r.reward + by
        return r._replace(obs=obs, action=action, reward=reward, next_obs=r.next_obs + by)

    with rejects(r"operation 1, sampled rows: expected some of \[0, 1, 2\], got \[6, 8\]"):
        laws.replay_like_deque([3, torch.tensor([0, 2**32 - 1])], 5, with_batches(RING, invented))


def test_replay_rejects_wrongly_packed_booleans():
    operations = [2, torch.tensor([0, 2**32 - 1]), 3, 2, 2]
    laws.replay_like_deque(operations, 5, obs_dtype=torch.bool)
    packed = packing.wrap(RING)

    def repacked(change):
        return with_batches(packed, lambda rows, bits: rows._replace(obs=change(rows.obs)))

    def cut(obs):  # drops the last, partly filled byte
        return torch.cat([obs[:, :16], obs[:, 16:] & False], -1)

    def turned(obs):  # reverse the order of the bits
        return packing.unpack(packing.pack(obs), 24).reshape(-1, 3, 8).flip(-1).flatten(1)[:, :21]

    with rejects(r"operation 0, sampled rows: \.obs\[1, 20\]: expected True, got False"):
        laws.replay_like_deque(operations, 5, repacked(cut), torch.bool)
    with rejects(r"operation 0, sampled rows: \.obs\[1, 19\]: "):
        laws.replay_like_deque(operations, 5, repacked(turned), torch.bool)

    def as_bytes(state, bits, oldest):  # the bytes themselves
        return packed.sample(state._replace(unpacked={}), bits, oldest)

    with rejects(r"sampled rows: \.obs: expected shape \[2, 21\], got \[2, 3\]"):
        laws.replay_like_deque(operations, 5, packed._replace(sample=as_bytes), torch.bool)


PRIORITIZED, BY_PRIORITY = prioritized.buffer(20, alpha=0.7, beta=0.6), {"alpha": 0.7, "beta": 0.6}
"""A correct buffer. Each planted bug changes one of its functions."""


def counts_from_1(*args):
    state, added = PRIORITIZED.add(*args)
    return state, added._replace(number=added.number + 1)


def treats_rows_as_valid(state, batch, ended, valid, gamma):
    return PRIORITIZED.add(state, batch, ended, None, gamma)


def with_priority_1(*args):
    """Plant a bug: new rows get priority 1 instead of the largest one."""
    state, added = PRIORITIZED.add(*args)
    at = added.number[added.valid] % 20
    return (PRIORITIZED.update(state, at, torch.ones(len(at))) if len(at) else state), added


def draws_the_next_row(state, bits, oldest):
    """Plant a bug: draw the row after the correct one."""
    at = (PRIORITIZED.sample(state, bits, oldest).indices + 1) % state.ring.added.clamp_max(20)
    mass = state.mass[at]
    return Sample(tree.index(state.ring.rows, at), at, ((mass[mass > 0].amin() / mass) ** 0.6).float())


def unscaled(state, bits, oldest):
    drawn = PRIORITIZED.sample(state, bits, oldest)
    return drawn._replace(weight=state.mass[drawn.indices].float() ** -0.6)


def unweighted(state, bits, oldest):
    drawn = PRIORITIZED.sample(state, bits, oldest)
    return drawn._replace(weight=torch.ones_like(drawn.weight))


def renumbered(state, bits, oldest):
    drawn = PRIORITIZED.sample(state, bits, oldest)
    return drawn._replace(indices=torch.arange(len(bits)))


def updates_neighbors(state, indices, priority):
    after = PRIORITIZED.update(state, (indices + 1) % state.ring.added.clamp_max(20), priority)
    return PRIORITIZED.update(after, indices, priority)


def keeps_sums(state, indices, priority):
    return PRIORITIZED.update(state, indices, priority)._replace(sums=state.sums)


BROKEN = {
    "rows of other numbers": ({"add": counts_from_1}, r"added\.number: expected \[0, "),
    "rows that are not valid": ({"add": treats_rows_as_valid}, r"added\.valid: expected \[.*False"),
    "new rows of priority 1": ({"add": with_priority_1}, "weight"),
    "rows of priority 0": ({"sample": draws_the_next_row}, "rows: expected none of priority 0"),
    "rows too old": ({"sample": lambda state, bits, _: PRIORITIZED.sample(state, bits, 0)}, "oldest .*: rows: "),
    "other frequencies": ({"sample": lambda state, bits, oldest: PRIORITIZED.sample(state, bits // 4 * 3, oldest)},
                          "frequencies: expected a chi-squared of at most"),
    "weights of 1": ({"sample": unweighted}, "weight"),
    "weights above 1": ({"sample": unscaled}, "weight"),
    "several indices of a row": ({"sample": renumbered}, "indices: expected one for each row"),
    "no update": ({"update": lambda state, indices, priority: state}, "rows: expected none of priority 0"),
    "updates of other rows": ({"update": updates_neighbors}, "weight|rows: expected none of priority 0"),
    "sums not updated": ({"update": keeps_sums}, r"bounds\['sums of priorities'\]: expected numbers from 0 to 0"),
    "another alpha": ({"update": prioritized.buffer(20, alpha=1.0).update}, "weight"),
    "another size": ({"size": lambda state, oldest=0: state.ring.added - oldest}, "size: expected 20, got 2"),
}  # fmt: skip


def test_buffer_accepts_every_kind_and_composition():
    laws.buffer(ring.buffer(20), 20)
    laws.buffer(PRIORITIZED, 20, **BY_PRIORITY)
    laws.buffer(packing.wrap(n_step.wrap(PRIORITIZED, 3, 3)), 20, steps=3, obs_dtype=torch.bool, **BY_PRIORITY)
    laws.buffer(replay.frames.wrap(n_step.wrap(ring.buffer(20), 2, 2), 2, 3, 20, 2), 20, 2, steps=2, stack=3)
    laws.buffer(replay.frames.wrap(PRIORITIZED, 3, 2, 20), 20, stack=2, obs_dtype=torch.bool, **BY_PRIORITY)


@pytest.mark.parametrize("name", BROKEN)
def test_buffer_rejects_planted_bugs(name):
    bug, message = BROKEN[name]
    with rejects(message):
        laws.buffer(PRIORITIZED._replace(**bug), 20, **BY_PRIORITY)


def test_buffer_rejects_planted_bugs_in_wrappers_and_rings():
    kept = ring.buffer(20)
    with rejects("update without priorities: "):
        laws.buffer(kept._replace(update=lambda state, *_: state._replace(added=state.added + 1)), 20)
    over = n_step.wrap(kept, 3, 3)
    with rejects(r"added\.valid"):  # rows continue across a cut
        laws.buffer(over._replace(cut=lambda state: state), 20, steps=3)
    with rejects(r"added\.batch: .*\.reward"):
        laws.buffer(over._replace(add=lambda *args: over.add(*args[:-1], args[-1] / 2)), 20, steps=3)
    stacked = replay.frames.wrap(kept, 3, 2, 20)
    with rejects(r"added\.batch: .*\.obs"):  # the first observation after a cut shows frames before it
        laws.buffer(stacked._replace(cut=lambda state: state), 20, stack=2)
    packed = packing.wrap(kept)
    with rejects(r"added\.batch: .*\.obs"):
        flipped = packed._replace(
            add=lambda state, batch, *more: packed.add(state, batch._replace(obs=~batch.obs), *more)
        )
        laws.buffer(flipped, 20, obs_dtype=torch.bool)


# Environments


def changed(make, **settings):
    """Make an environment whose steps are changed by `change(step, fresh)`."""

    def build(change):
        env = make(**settings)

        def step(state, action, u):
            state, result = env.step(state, action, u)
            return state, change(result)

        return Env(env.reset, step, env.spec)

    return build


def done_flag(step):
    """Use a single flag, as in old gym: a time limit counts as termination."""
    done = step.terminated | step.truncated
    return step._replace(terminated=done, truncated=torch.zeros_like(done))


SHORT = changed(cartpole.make, time_limit=15)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (done_flag, "truncated: expected true at the time limit"),
        (lambda s: s._replace(truncated=s.truncated | s.terminated), "truncated: expected false before the limit"),
        (lambda s: s._replace(next_obs=s.obs), "next_obs: expected the last observation of an episode"),
        (lambda s: s._replace(obs=s.next_obs), "new episode"),
        (
            lambda s: s._replace(reward=s.reward.double()),
            r"step 1, shapes and dtypes: \[1\].reward: expected torch.float32",
        ),
        (lambda s: s._replace(terminated=s.terminated.float()), "terminated: expected torch.bool"),
        (lambda s: s._replace(legal=s.legal.long()), "legal: expected torch.bool"),
        (lambda s: s._replace(reward=s.reward.unsqueeze(-1)), "reward|leading axes"),
        (lambda s: s._replace(reward=s.reward / 0), r"step 1, \.reward\[0\]: expected a finite number, got inf"),
        (lambda s: s._replace(next_obs=s.next_obs / 0), r"step 1, \.next_obs\[0, 0\]: expected a finite number"),
        (lambda s: s._replace(legal=s.legal & False), r"step 1, legal\[0\]: expected a legal action, got none; 8"),
        (lambda s: s._replace(reward=s.reward * 0 + s.next_obs.mean()), "1 of 1 leading axes: "),
        (lambda s: s._replace(obs=s.obs * 1.5), "inside an episode, obs and next_obs"),
        (lambda s: s._replace(obs=s.obs + 0 * torch.rand(())), "generator of torch"),
    ],
)
def test_env_rejects_planted_bugs(change, match):
    laws.env(SHORT(lambda step: step))
    with torch.random.fork_rng(devices=[]), rejects(match):
        laws.env(SHORT(change), steps=60)


@pytest.mark.parametrize("name", [*envs.names(), *probes.ALL])
def test_environments_of_fdqn_satisfy_the_law(name):
    settings = {"time_limit": 100} if name.startswith("minatar:") else {}  # 10,000 steps would take minutes
    env = probes.ALL[name]().env if name in probes.ALL else envs.make(name, **settings)
    laws.env(env, steps=max(50, env.spec.time_limit))


class Ticks(NamedTuple):
    """Time of a stream of frames."""

    time: Tensor


def frame_counter(shown):
    """Make an environment of frames that count steps, stacked by `shown(time) -> [..., 3, 1]`."""
    spec = EnvSpec((3, 1), torch.float32, actions=2, noise=1, time_limit=6, stack=3)

    def begin(u):
        state = Ticks(torch.zeros_like(u[..., 0], dtype=torch.int64))
        return episode.begin(state, shown(state.time), episode.all_legal(state.time, 2))

    def step(state, action, u):
        after = Ticks(state.time + 1)
        legal, none = episode.all_legal(after.time, 2), torch.zeros_like(after.time, dtype=torch.bool)
        return episode.advance(after, shown(after.time), legal, none.float(), none, begin(u), 6)

    return Env(begin, step, spec)


def frames(time, order=(2, 1, 0), floor=-1):
    each = [(time - back).clamp_min(floor) + 1 for back in order]
    return torch.stack(each, -1).unsqueeze(-1).float()


def test_env_checks_stacked_frames():
    laws.env(frame_counter(frames), steps=20)
    with pytest.raises(AssertionError, match="next_obs and obs of the previous step"):
        laws.env(frame_counter(partial(frames, order=(3, 1, 0))), steps=20)
    with pytest.raises(AssertionError, match="frames before an episode's first"):
        laws.env(frame_counter(partial(frames, floor=0)), steps=20)


def test_env_rejects_a_reset_that_breaks_the_spec():
    env = cartpole.make()
    with rejects("reset: .obs: expected shape"):
        laws.env(env._replace(spec=env.spec._replace(obs_shape=(5,))))
    with rejects("reset: .legal: expected shape"):
        laws.env(env._replace(spec=env.spec._replace(actions=3)))
    with rejects("reset: .obs: expected torch.uint8"):
        laws.env(env._replace(spec=env.spec._replace(obs_dtype=torch.uint8)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda s: s._replace(reward=s.reward.long()),
            "reset.reward: expected a floating-point dtype, got torch.int64",
        ),
        (lambda s: s._replace(next_obs=s.obs + 1), "reset, next_obs and obs"),
        (lambda s: s._replace(next_legal=~s.legal), "reset, next_obs and obs"),
        (lambda s: s._replace(obs=0 / (0 * s.obs), next_obs=0 / (0 * s.obs)), r"reset, \.obs\[0, 0\]: .*, got nan"),
        (lambda s: s._replace(legal=s.legal & False, next_legal=s.legal & False), r"reset, legal\[0\]: .* got none"),
        (lambda s: s._replace(reward=s.reward + 1), "reset.reward: "),
        (lambda s: s._replace(terminated=~s.terminated), "reset: expected nothing to have ended"),
        (lambda s: s._replace(truncated=~s.truncated), "reset: expected nothing to have ended"),
    ],
)
def test_env_rejects_an_inconsistent_reset(change, match):
    env = cartpole.make()

    def reset(u):
        state, step = env.reset(u)
        return state, change(step)

    with rejects(match):
        laws.env(env._replace(reset=reset))


def test_env_rejects_environments_that_depend_on_each_other_at_reset():
    env = cartpole.make()
    with rejects(r"1 of 1 leading axes: "):
        laws.env(env._replace(reset=lambda u: env.reset((u + u.mean(0)) % 1)))


def test_env_rejects_a_run_without_an_end():
    """Check that an episode ends, because errors at the end would not be detected otherwise."""
    endless = changed(mountain_car.make, time_limit=500)(lambda s: s._replace(next_obs=s.obs))
    with rejects("expected an episode to end, got none in 200 steps; pass steps= above its limit 500"):
        laws.env(endless)
    with rejects("next_obs: expected the last observation of an episode"):
        laws.env(endless, steps=500)


def test_time_limit_rejects_termination_at_the_limit():
    def make(change):
        return lambda limit: changed(cartpole.make, time_limit=limit)(change)

    laws.time_limit(make(lambda step: step))
    with rejects("terminated: .*expected False, got True"):
        laws.time_limit(make(done_flag))
    with rejects("terminated: .*expected False, got True"):  # both flags at once
        laws.time_limit(make(lambda s: s._replace(terminated=s.terminated | s.truncated)))
    with rejects("next_obs"):
        laws.time_limit(make(lambda s: s._replace(next_obs=s.obs)))
    with rejects("truncated"):
        laws.time_limit(lambda limit: cartpole.make(time_limit=limit + 1))
    with rejects("truncated: expected an episode cut off at step 5, got none"):  # no episode reaches the limit
        laws.time_limit(make(lambda s: s._replace(terminated=s.terminated | True, truncated=s.truncated & False)))
