"""Every law holds for what is right and rejects a planted bug, in the words that name it."""

import random as python_random
from functools import partial

import pytest
import torch
from hypothesis import given
from plants import naive

from fdqn import actions, losses, optim, policies, random, replay, schedules, train, tree
from fdqn.envs import cartpole
from fdqn.testing import asserts, examples, laws, programs, strategies
from fdqn.types import Env, Network, Optimizer, Transition

ARANGE = torch.arange(6.0).reshape(2, 3)


def rejects(match=None):
    return pytest.raises(AssertionError, match=match)


# Trees


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [
        ({"w": torch.ones(2)}, {"v": torch.ones(2)}, "structure"),
        ({"w": torch.ones(2)}, {"w": torch.ones(2, 1)}, r"\['w'\]: expected shape \[2\], got \[2, 1\]"),
        ({"w": torch.ones(2)}, {"w": torch.ones(2).double()}, "expected torch.float32, got torch.float64"),
        ({"w": torch.ones(2)}, {"w": torch.tensor([1.0, 2.0])}, r"\['w'\]\[1\]: expected 1.0, got 2.0; 1 of 2 numbers"),
        (torch.tensor(torch.nan), torch.tensor(0.0), "expected nan, got 0.0"),
        (torch.tensor(torch.inf), torch.tensor(-torch.inf), "expected inf, got -inf"),
        (torch.tensor(torch.inf), torch.tensor(1.0), "expected inf, got 1.0"),
        (torch.tensor(1.0), torch.tensor(torch.nan), "expected 1.0, got nan"),
        ((torch.tensor(True),), (torch.tensor(False),), "expected True, got False"),
        ((1,), (2,), "expected 1, got 2"),
    ],
)
def test_trees_that_differ(a, b, match):
    with rejects(match):
        asserts.assert_trees_close(a, b, atol=1e-3, rtol=1e-3)
    with rejects(match):
        asserts.assert_trees_equal(a, b)


def test_trees_that_agree():
    a = {"w": torch.tensor([1.0, torch.nan, torch.inf]), "n": torch.tensor([1, 2]), "empty": torch.zeros(0)}
    asserts.assert_trees_equal(a, tree.clone(a))
    asserts.assert_trees_close(a, a | {"w": a["w"] + 1e-4}, atol=1e-3)
    asserts.assert_trees_close({"w": torch.tensor(1000.0)}, {"w": torch.tensor(1001.0)}, atol=0, rtol=1e-2)
    with rejects():
        asserts.assert_trees_close({"n": torch.tensor(1000)}, {"n": torch.tensor(1001)}, atol=10)


# Laws of any function


def test_pure_plants():
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


def test_vmapped_plants():
    laws.vmapped(lambda x, y: x @ y, ARANGE, ARANGE)
    laws.vmapped(lambda x, y: x @ y, ARANGE, ARANGE[0], in_dims=(0, None))
    laws.vmapped(lambda x: x.sum(), ARANGE, in_dims=1)

    def normalised_over_the_batch(x):  # under vmap only, as batch norm in training
        return x - (x.mean() if not torch._C._functorch.is_batchedtensor(x) else 0)

    with rejects("vmap"):
        laws.vmapped(normalised_over_the_batch, ARANGE)


def test_ranked_plants():
    x = torch.arange(24.0).reshape(2, 3, 4)
    laws.ranked(lambda x: x.softmax(-1), x, leading=2)
    with rejects("leading axes"):
        laws.ranked(lambda x: x.softmax(0), x, leading=2)
    with rejects("2 of 2 leading axes"):  # correct for one leading axis, not for two
        laws.ranked(lambda x: x - x.mean(tuple(range(max(0, x.ndim - 2), x.ndim)), keepdim=True), x, leading=2)


def test_compiled_plants():
    laws.compiled(lambda x, rate: x * rate, ARANGE, torch.tensor(0.1))
    with rejects("expected 1, got 2"):  # a learning rate that is a Python number compiles anew when it changes
        laws.compiled(lambda x, rate: x * rate, ARANGE, 0.1, again=[(ARANGE, 0.2)])
    with pytest.raises(Exception, match="Data-dependent"):
        laws.compiled(lambda x: x if x.sum() > 0 else -x, ARANGE)
    with rejects("call 0"):
        laws.compiled(lambda x: x + (1 if torch.compiler.is_compiling() else 0), ARANGE)


class WrongSlope(torch.autograd.Function):
    """The square, with the slope of the identity."""

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


def test_gradients_plants():
    params = {"a": ARANGE, "b": torch.tensor(0.5)}
    laws.gradients(lambda p, x: (p["a"].sin() * p["b"] * x).sum(), params, ARANGE)
    with rejects(r"finite differences\['a'\]\[0, 0\]: expected 0.0, got 1.0"):
        laws.gradients(lambda p: WrongSlope.apply(p["a"]).sum() + p["b"], params)
    with rejects("finite differences"):  # a part that is held fixed by mistake
        laws.gradients(lambda p: (p["a"].detach() * p["a"]).sum() + p["b"], params)


def undetached_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, legal_t):
    return r_t + discount_t * actions.best(q_t, legal_t) - actions.pick(q_tm1, a_tm1)


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
    laws.semi_gradient(losses.q_learning, *arguments, held=(2, 3, 4, 5))
    with rejects("argument 4: expected gradient 0 on the target's side"):
        laws.semi_gradient(undetached_q_learning, *arguments, held=(4,))
    with rejects("expected it to depend on an argument"):
        laws.semi_gradient(lambda *args: losses.q_learning(*args).detach(), *arguments, held=(4,))
    with rejects("expected a gradient, got 0"):
        laws.semi_gradient(lambda *args: losses.q_learning(*args) * 0, *arguments, held=(4,))


# Laws of a part


def update_only(f):
    """An optimizer without state that changes gradients by `f`."""
    return Optimizer(lambda params: {}, lambda grads, state, params: (tree.map(f, grads), state))


def adam_without_bias_correction(rate, beta1=0.9, beta2=0.999, eps=1e-8):
    right = optim.adam(rate)

    def update(grads, state, params):
        _, state = right.update(grads, state, params)
        return tree.map(lambda m, v: -rate * m / (v.sqrt() + eps), state.mean, state.square), state

    return Optimizer(right.init, update)


def test_optimizer_plants():
    laws.optimizer(optim.adam(1e-2), partial(torch.optim.Adam, lr=1e-2))
    with rejects("params after step 1"):
        laws.optimizer(adam_without_bias_correction(1e-2), partial(torch.optim.Adam, lr=1e-2))
    with rejects("params after step 1"):  # right to 1e-6 and no further
        laws.optimizer(optim.adam(1e-2, eps=1.01e-8), partial(torch.optim.Adam, lr=1e-2))
    with rejects("updates of float32 params.*float32.*float64"):
        double = Optimizer(
            lambda params: {}, lambda grads, state, params: (tree.map(lambda g: -0.1 * g.double(), grads), {})
        )
        laws.optimizer(double, partial(torch.optim.SGD, lr=0.1))


def test_chained_rejects_a_chain_that_depends_on_its_brackets(monkeypatch):
    first, second, third = optim.clip_by_global_norm(1.0), optim.adam(1e-2), optim.sgd(0.5, momentum=0.9)
    laws.chained(first, second, third)

    def averaged(optimizers, grads, state, params):  # side by side, not one after the other
        results = {name: opt.update(grads, state[name], params) for name, opt in optimizers.items()}
        updates = [update for update, _ in results.values()]
        return tree.map(lambda *xs: sum(xs) / len(xs), *updates), {name: new for name, (_, new) in results.items()}

    monkeypatch.setattr(optim, "_update_chain", averaged)
    with rejects("updates of step 1"):
        laws.chained(first, second, third)


def test_clipped_rejects_clipping_element_by_element():
    laws.clipped(optim.clip_by_global_norm)
    with rejects("norm: expected at most 1.5"):
        laws.clipped(lambda norm: update_only(lambda g: g.clamp(-norm, norm)))
    with rejects("norm: expected at most|direction"):  # each leaf by its own norm
        laws.clipped(lambda norm: update_only(lambda g: g * (norm / g.norm()).clamp_max(1.0)))
    with rejects("direction|gradients of norm"):
        laws.clipped(lambda norm: update_only(lambda g: g.clamp(-norm / 10, norm / 10)))
    with rejects("gradients of norm"):  # scales up what is small
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
    laws.masked(actions.best, q, legal)
    one = torch.tensor([0, 1, 0])
    onehot = one.unsqueeze(-1) == torch.arange(3)
    laws.masked(lambda q, legal: actions.pick(q, one), q, onehot)
    with rejects("illegal values"):  # q * onehot lets NaN and infinities through
        laws.masked(lambda q, legal: (q * onehot).sum(-1), q, onehot)
    with rejects("illegal values"):
        laws.masked(lambda q, legal: q.amax(-1), q, legal)
    with rejects("gradient with illegal values"):  # the value is right, the gradient is NaN
        laws.masked(lambda q, legal: torch.where(legal, q.exp() * q.sin() / q, 0.0).sum(-1), q, legal)
    with rejects("gradient of illegal values"):
        laws.masked(lambda q, legal: torch.where(legal, q, q - q.detach()).nan_to_num().sum(-1), q, legal)


def test_legal_only_plants():
    q, legal = mask_arguments()
    u = torch.full((3, 2), 0.99)
    laws.legal_only(partial(policies.epsilon_greedy, epsilon=0.5, u=u), q, legal)
    with rejects(r"actions\[0\]: expected one of \[0, 1\], got 2"):
        laws.legal_only(lambda q, legal: q.argmax(-1), q, legal)
    with rejects(r"actions\[2\]: expected one of \[0\], got 2"):  # greedy is masked, exploring is not
        laws.legal_only(
            lambda q, legal: torch.where(torch.arange(3) > 1, (u[:, 1] * 3).long(), actions.greedy(q, legal)), q, legal
        )
    with rejects("got 3"):  # rounding up, not down
        laws.legal_only(lambda q, legal: (u[:, 1] * 3).ceil().long(), q, torch.ones_like(legal))
    with rejects("shape"):
        laws.legal_only(lambda q, legal: q.argmax(-1, keepdim=True), q, legal)


def test_schedule_rejects_epsilon_stuck_at_its_end():
    right = partial(schedules.linear, start=1.0, end=0.05, steps=100)
    laws.schedule(right, 1.0, 0.05, 100)
    with rejects("step 0: expected 1.0, got 0.05"):
        laws.schedule(lambda step: torch.full_like(step, 0.05, dtype=torch.float32), 1.0, 0.05, 100)
    with rejects("step 0: expected 1.0, got 0.05"):  # the start and the end exchanged
        laws.schedule(partial(schedules.linear, start=0.05, end=1.0, steps=100), 1.0, 0.05, 100)
    with rejects("step 50: expected between"):  # integer division
        laws.schedule(lambda step: 1.0 + (0.05 - 1.0) * (step // 100).clamp_max(1), 1.0, 0.05, 100)
    with rejects("after the end"):
        laws.schedule(lambda step: 1.0 - 0.95 * step / 100, 1.0, 0.05, 100)
    with rejects("step 100: expected 0.05"):
        laws.schedule(partial(schedules.linear, start=1.0, end=0.05, steps=101), 1.0, 0.05, 100)
    with rejects("monotone"):
        laws.schedule(lambda step: right(step) + 0.1 * (step == 60), 1.0, 0.05, 100)


# Replay


def forgetful_add(memory, batch):
    """Writes over the last rows when full: forgets to begin again at the start."""
    capacity, count = memory.rows.reward.shape[0], batch.reward.shape[0]
    at = (memory.added.clamp_max(capacity - count) + torch.arange(count)) % capacity
    return replay.Replay(
        tree.map(lambda ring, new: ring.index_put((at,), new), memory.rows, batch), memory.added + count
    )


def sliced_add(memory, batch):
    """Right while the batch divides the capacity: the wrapped rest of a batch is lost."""
    capacity, count = memory.rows.reward.shape[0], batch.reward.shape[0]
    at = memory.added % capacity + torch.arange(count)
    keep = at < capacity
    rows = tree.map(lambda ring, new: ring.index_put((at[keep],), new[keep]), memory.rows, batch)
    return replay.Replay(rows, memory.added + count)


def test_replay_rejects_a_ring_that_forgets_its_wrap_around():
    operations = [2, torch.tensor([0, 2**32 - 1]), 3, 2, 2]
    laws.replay_like_deque(operations, 5)
    with rejects("operation 3, stored rows"):
        laws.replay_like_deque(operations, 5, add=forgetful_add)
    with rejects("operation 4, stored rows"):
        laws.replay_like_deque([*operations[:2], 3, 3, 3], 5, add=sliced_add)
    with rejects("stored rows"):  # samples over the capacity, not over what is filled
        laws.replay_like_deque(
            operations, 5, sample=lambda m, w: tree.index(m.rows, random.index(w, m.rows.reward.shape[0]))
        )

    def torn(memory, words):  # the rewards of other rows than the observations
        rows = replay.sample(memory, words)
        return rows._replace(obs=rows.obs.flip(0))

    with rejects("sampled rows"):
        laws.replay_like_deque(operations, 5, sample=torn)


# Environments


def changed(make, **settings):
    """An environment whose every step goes through `change(step, fresh)`."""

    def build(change):
        env = make(**settings)

        def step(state, action, u):
            state, result = env.step(state, action, u)
            return state, change(result)

        return Env(env.reset, step, env.spec)

    return build


def done_flag(step):
    """Old gym: one flag, a time limit counts as the end of the task."""
    done = step.terminated | step.truncated
    return step._replace(terminated=done, truncated=torch.zeros_like(done))


SHORT = changed(cartpole.make, time_limit=15)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (done_flag, "truncated: expected true at the time limit"),
        (lambda s: s._replace(truncated=s.truncated | s.terminated), "truncated: expected false before the limit"),
        (lambda s: s._replace(next_obs=s.obs), "next_obs: expected how episodes ended"),
        (lambda s: s._replace(obs=s.next_obs), "new episode"),
        (
            lambda s: s._replace(reward=s.reward.double()),
            r"step 1, for life: \[1\].reward: expected torch.float32",
        ),
        (lambda s: s._replace(terminated=s.terminated.float()), "terminated: expected torch.bool"),
        (lambda s: s._replace(legal=s.legal.long()), "legal: expected torch.bool"),
        (lambda s: s._replace(reward=s.reward.unsqueeze(-1)), "reward|leading axes"),
        (lambda s: s._replace(reward=s.reward / 0), "reward: expected finite"),
        (lambda s: s._replace(obs=s.obs - s.obs.mean(0)), "leading axes|goes on"),
        (lambda s: s._replace(obs=s.obs + 0 * torch.rand(())), "generator of torch"),
    ],
)
def test_env_plants(change, match):
    laws.env(SHORT(lambda step: step))
    with torch.random.fork_rng(devices=[]), rejects(match):
        laws.env(SHORT(change), steps=60)


def test_env_rejects_a_reset_that_breaks_the_spec():
    env = cartpole.make()
    with rejects("reset: .obs: expected shape"):
        laws.env(env._replace(spec=env.spec._replace(obs_shape=(5,))))
    with rejects("reset: .legal: expected shape"):
        laws.env(env._replace(spec=env.spec._replace(actions=3)))
    with rejects("reset: .obs: expected torch.uint8"):
        laws.env(env._replace(spec=env.spec._replace(obs_dtype=torch.uint8)))


def test_time_limit_rejects_one_that_terminates():
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


# Programs


def moving_parts(state):
    return state.learner.params, state.obs, state.replay.rows.obs


def shared_key(noise):
    def of_the_first_lane(program, keys, first, cycles):
        return noise(program, keys[:1].expand_as(keys), first, cycles)

    return of_the_first_lane


def chunk_noise(program, keys, first, cycles):
    """All numbers of a chunk from the key of its first cycle."""
    shape = train.noise(program, keys, first, cycles)
    key = random.fold_in(keys, first)
    act, env = (
        random.uniform(random.fold_in(key, i), (cycles, *x.shape[2:])).transpose(0, 1) for i, x in enumerate(shape[:2])
    )
    return train.Noise(act, env, random.bits(random.fold_in(key, 2), (cycles, *shape.sample.shape[2:])).transpose(0, 1))


def test_lanes_rejects_lanes_that_share_a_key(monkeypatch):
    program, (hyper, keys) = examples.program(), examples.lanes(3)
    programs.lanes(
        lambda hyper, keys: train.noise(program, keys, 0, 2).act.transpose(0, 1), hyper, keys, atol=0, rtol=0
    )
    noise = shared_key(train.noise)
    with rejects("lane 1 of 3"):
        programs.lanes(lambda hyper, keys: noise(program, keys, 0, 2).act.transpose(0, 1), hyper, keys, atol=0, rtol=0)
    monkeypatch.setattr(train, "noise", noise)
    with rejects("lane 1 of 3"):
        programs.lanes(partial(programs.trained, program, cycles=6), hyper, keys, distinct=moving_parts)


def test_lanes_rejects_lanes_that_are_alike_and_lanes_that_see_each_other():
    program, (hyper, keys) = examples.program(), examples.lanes(3)
    same_start = program._replace(network=Network(lambda key: program.network.init(key * 0), program.network.apply))
    with rejects(r"lane 1\[.0.weight.\]: expected a change with its key"):
        programs.lanes(
            lambda hyper, keys: train.init(same_start, hyper, keys).learner.params, hyper, keys, atol=0, rtol=0
        )
    same = [0, 1, 0]
    with rejects("lanes 0 and 2.*expected them to differ"):
        programs.lanes(lambda hyper, keys: random.bits(keys, (4,)), tree.index(hyper, same), keys[same], atol=0, rtol=0)
    with rejects("lane 1 of 3"):
        programs.lanes(lambda hyper, keys: random.normal(keys, (4,)).cumsum(0), hyper, keys)

    def mixed(hyper, keys):  # invisible alone, and in floats that tolerance forgives
        x = random.normal(keys, (4,), torch.float64)
        return x + 1e-13 * (x - x.mean(0)) * (len(x) > 1)

    with rejects("lanes whose key did not change"):
        programs.lanes(mixed, hyper, keys)


def test_chunks_rejects_noise_that_depends_on_the_chunk():
    program, (_, keys) = examples.program(), examples.lanes(2)
    programs.chunks(program, keys)
    with rejects("noise drawn at once"):
        programs.chunks(program, keys, noise=chunk_noise)

    def frozen(program, keys, first, cycles):
        return tree.stack(tree.index(train.noise(program, keys, 0, 1), 0) for _ in range(cycles))

    with rejects("expected new noise"):
        programs.chunks(program, keys, noise=frozen)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda old, new, step: new._replace(running=new.running + step.reward * 0.5), "returned|last returns|running"),
        (lambda old, new, step: new._replace(episodes=old.episodes + step.terminated.sum()), "episodes"),
        (lambda old, new, step: new._replace(returned=new.returned + 1), "returned"),
        (lambda old, new, step: new._replace(running=old.running + step.reward), "last returns|returned"),
        (lambda old, new, step: new._replace(returns=old.returns), "last returns"),
    ],
)
def test_metrics_plants(monkeypatch, change, match):
    program, (hyper, keys) = examples.program(steps_per_cycle=2), examples.lanes(2)
    right = train.count_episodes
    monkeypatch.setattr(train, "count_episodes", lambda old, step: change(old, right(old, step), step))
    with rejects(match):
        programs.metrics(program, hyper, keys)


def test_resumed_rejects_a_checkpoint_that_forgets():
    program, (hyper, keys) = examples.program(), examples.lanes(2)
    start, run = train.init(program, hyper, keys), partial(programs.advance, program)
    programs.resumed(run, start, 6, 5)
    fresh = tree.clone(start)
    forgotten = {
        "opt_state": lambda s: s._replace(learner=s.learner._replace(opt_state=fresh.learner.opt_state)),
        "target": lambda s: s._replace(learner=s.learner._replace(target_params=s.learner.params)),
        "replay": lambda s: s._replace(replay=fresh.replay),
        "running returns": lambda s: s._replace(metrics=fresh.metrics),
        "half precision": lambda s: s._replace(learner=tree.cast(tree.cast(s.learner, torch.bfloat16), torch.float32)),
        "environment": lambda s: s._replace(env_state=fresh.env_state, obs=fresh.obs),
    }
    for through in forgotten.values():
        with rejects("resumed after 7 of 12"):
            programs.resumed(run, start, 7, 5, through)


def test_naive_donation_is_rejected():
    start = {"params": torch.tensor([1.0, 2.0]), "target": torch.tensor([10.0, 20.0])}

    def swap(state):
        return {"params": state["target"], "target": state["params"]}

    def copy(state):
        return {"params": state["params"] + 1, "target": state["params"]}

    for f in (swap, copy):
        programs.donated(f, start)
        with rejects("call 1"):
            programs.donated(f, start, donate=naive)
    with rejects("the donated state|old storage"):  # not donated at all
        programs.donated(copy, start, donate=lambda f: f)


# Strategies


@given(strategies.q_batches())
def test_q_batches_are_small_legal_rows(batch):
    q, legal = batch
    assert q.shape == legal.shape
    assert legal.dtype == torch.bool
    assert legal.any(-1).all()
    assert q.isfinite().all()


@given(strategies.transitions(), strategies.params(), strategies.keys((2,)), strategies.uniforms((3,)))
def test_strategies_keep_their_word(batch, params, keys, u):
    assert isinstance(batch, Transition)
    assert {x.shape[0] for x in batch} == {3}
    assert ((batch.discount == 0) | (batch.discount == 1)).all()
    assert ((batch.action >= 0) & (batch.action < 3)).all()
    assert all(name.endswith(("weight", "bias")) for name in params)
    assert keys.shape == (2, 2)
    assert ((keys >= 0) & (keys < 2**32)).all()
    assert ((u >= 0) & (u < 1)).all()


@given(strategies.replay_operations(3))
def test_replay_operations_fit(operations):
    assert all(1 <= x <= 3 if isinstance(x, int) else x.dtype == torch.int64 for x in operations)


def test_laws_need_no_hypothesis():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from fdqn.testing import examples, programs\n"
        "programs.chunks(examples.program(), examples.lanes(2)[1])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
