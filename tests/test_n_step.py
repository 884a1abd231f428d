"""Transitions over n steps, beside sums written out episode by episode."""

import itertools

import pytest
import torch

from fdqn import training, tree
from fdqn.experiment import assemble
from fdqn.replay import n_step, ring
from fdqn.testing import asserts, examples, laws, programs
from fdqn.types import Transition

GAMMA = 0.9


def walk(num_envs, steps, seed, stands=0.0, going_on=(1.0,)):
    """Single steps [T] of [E]: numbered observations, so that it is seen which is which; `going_on` are discounts of
    steps after which the task goes on, 0 among them perhaps where the episode does."""
    made = torch.Generator().manual_seed(seed)
    for t in range(steps):
        ended = torch.rand(num_envs, generator=made) < 0.25
        discount = torch.where(ended & (torch.rand(num_envs, generator=made) < 0.5), 0.0, 1.0).double()
        if len(going_on) > 1:
            drawn = torch.randint(len(going_on), (num_envs,), generator=made)
            discount = discount * torch.tensor(going_on, dtype=torch.float64)[drawn]
        obs = (1_000 * torch.arange(num_envs) + t).double().unsqueeze(-1)
        reward = torch.randn(num_envs, generator=made, dtype=torch.float64)
        legal = torch.rand((num_envs, 2), generator=made) < 0.5
        valid = torch.rand(num_envs, generator=made) >= stands
        yield Transition(obs, torch.arange(num_envs), reward, discount, obs + 0.5, legal, legal.flip(-1)), ended, valid


def expected(singles, n):
    """Of one environment's single steps `[(row, ended)]`: those over n that are complete, from the definition."""
    found = []
    for start in range(len(singles)):
        reward, row, complete, weight = torch.zeros((), dtype=torch.float64), None, False, 1.0
        for m, (step, ended) in enumerate(singles[start : start + n]):
            reward, row, discount = reward + weight * step.reward, step, weight * step.discount
            if complete := ended or m == n - 1 or step.discount == 0:
                break
            weight = GAMMA * discount
        known = start + n <= len(singles)  # it comes out n - 1 steps after it began
        if complete and known:
            first = singles[start][0]
            found.append(
                row._replace(obs=first.obs, action=first.action, reward=reward, discount=discount, legal=first.legal)
            )
    return found


def given(n, stands, seed=0, going_on=(1.0,)):
    recent, singles, got = None, [[] for _ in range(3)], [[] for _ in range(3)]
    for batch, ended, valid in walk(3, 60, seed, stands, going_on):
        recent = recent or n_step.init(tree.index(batch, 0), 3, n)
        recent, rows, whole = n_step.add(recent, batch, ended, valid, torch.tensor(GAMMA, dtype=torch.float64))
        for i in range(3):
            if valid[i]:
                singles[i].append((tree.index(batch, i), bool(ended[i])))
            if whole[i]:
                got[i].append(tree.index(rows, i))
    return singles, got


@pytest.mark.parametrize("going_on", [(1.0,), (1.0, 0.0), (1.0, 0.5, 0.9), (1.5, 0.5, 0.25, 0.0)], ids=str)
@pytest.mark.parametrize("stands", [0.0, 0.3])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_equals_the_definition(n, stands, going_on):
    """Every step starts one transition, in order, none crosses an end, and those just before an end are there too.
    Discounts of any size count on the way."""
    singles, got = given(n, stands, going_on=going_on)
    for ours, steps in zip(got, singles, strict=True):
        theirs = expected(steps, n)
        assert len(ours) == len(theirs) == len(steps) - n + 1
        for a, b in zip(theirs, ours, strict=True):
            asserts.assert_trees_close(a, b, 1e-12, 1e-12)


def test_what_crosses_an_end_is_found(monkeypatch):
    """The planted bug: sums go on into the next episode."""
    original = n_step.add
    monkeypatch.setattr(
        n_step, "add", lambda recent, batch, ended, *more: original(recent, batch, ended & False, *more)
    )
    with pytest.raises(AssertionError):
        test_equals_the_definition(3, 0.0, (1.0,))


def test_discounts_that_are_ignored_on_the_way_are_found(monkeypatch):
    """The planted bug: only powers of gamma weigh, as where discounts are 0 or 1."""
    monkeypatch.setattr(n_step, "_weights", lambda discount, gamma: gamma ** torch.arange(3) + 0 * discount)
    test_equals_the_definition(3, 0.3, (1.0, 0.0))
    with pytest.raises(AssertionError):
        test_equals_the_definition(3, 0.3, (1.0, 0.5))


def test_discounts_of_0_and_1_keep_the_bits_of_powers_of_gamma():
    for gamma in (torch.tensor(0.99), torch.tensor(0.9, dtype=torch.float64)):
        for discount in (torch.ones(2, 5), torch.ones(2, 5, dtype=torch.float64)):
            assert (n_step._weights(discount, gamma) == gamma ** torch.arange(5)).all()
    never = torch.tensor([[0.0, torch.nan, 1.0]])
    assert n_step._weights(never, torch.tensor(0.5))[0, :2].tolist() == [1.0, 0.0]


def test_replay_multiplies_discounts_over_several_steps():
    """r_0 + 0.9 * 0.5 * r_1 = 1.9, and what follows is worth 0.9 * 0.5 * 0.5 of what it is, before the last gamma."""
    obs, legal = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    batch = Transition(obs, torch.tensor([0]), torch.tensor([1.0]), torch.tensor([0.5]), obs, legal)
    buffer = n_step.wrap(ring.buffer(4), 1, 2)
    state = buffer.init(tree.index(batch, 0))
    for reward in (1.0, 2.0):
        batch = batch._replace(reward=torch.tensor([reward]))
        state, _ = buffer.add(state, batch, torch.tensor([False]), None, torch.tensor(0.9))
    row = buffer.sample(state, torch.tensor([0]), 0).batch
    assert row.reward.item() == pytest.approx(1 + 0.9 * 0.5 * 2)
    assert row.discount.item() == pytest.approx(0.9 * 0.5 * 0.5)


def test_steps_that_come_out_late_are_found(monkeypatch):
    """The planted bug, seen elsewhere: the last n - 1 starts of an episode are dropped."""
    original = n_step.add

    def dropping(recent, batch, ended, valid, gamma):
        recent, rows, whole = original(recent, batch, ended, valid, gamma)
        return recent, rows, whole & (rows.next_obs - rows.obs >= 2)[:, 0]

    monkeypatch.setattr(n_step, "add", dropping)
    with pytest.raises(AssertionError):
        test_equals_the_definition(3, 0.0, (1.0,))


def test_a_reward_that_is_not_finite_stays_in_its_episode():
    steps = list(walk(1, 3, 0))
    recent = n_step.init(tree.index(steps[0][0], 0), 1, 2)
    never, valid, gamma = torch.tensor([False]), torch.tensor([True]), torch.tensor(GAMMA)
    recent, _, _ = n_step.add(recent, steps[0][0], ~never, valid, gamma)
    wild = steps[1][0]._replace(reward=torch.tensor([torch.nan], dtype=torch.float64))
    _, row, _ = n_step.add(recent, wild, never, valid, gamma)
    assert row.reward.item() == steps[0][0].reward.item()


def test_nothing_spans_a_cut():
    gamma, valid = torch.tensor(GAMMA), torch.ones(3, dtype=torch.bool)
    recent, out = None, []
    for t, (batch, ended, _) in enumerate(walk(3, 12, 1)):
        recent = recent or n_step.init(tree.index(batch, 0), 3, 3)
        recent = n_step.cut(recent) if t == 6 else recent
        recent, rows, whole = n_step.add(recent, batch, ended & False, valid, gamma)
        out.append((t, bool(whole[0]), rows.obs[0].item()))
    assert [t for t, whole, _ in out if whole] == [2, 3, 4, 5, 8, 9, 10, 11]
    assert [obs for _, whole, obs in out if whole] == [0, 1, 2, 3, 6, 7, 8, 9]


def test_laws():
    batches = [step for step, *_ in walk(3, 8, 2)]
    recent = n_step.init(tree.index(batches[0], 0), 3, 3)
    ended, valid = torch.tensor([True, False, False]), torch.tensor([True, True, False])
    gammas = [torch.tensor(x, dtype=torch.float64) for x in (0.9, 0.5)]
    others = [n_step.add(recent, b, ended, valid, gammas[0])[0] for b in batches[:2]]
    laws.pure(n_step.add, others[0], batches[3], ended, valid, gammas[0])
    pair = tree.stack(others), tree.stack(batches[3:5]), torch.stack([ended, valid]), torch.stack([valid, valid])
    laws.vmapped(n_step.add, *pair, torch.stack(gammas))
    laws.compiled(n_step.add, others[0], batches[3], ended, valid, gammas[0], atol=1e-12)


def test_a_program_learns_from_rows_over_n_steps():
    """What lies in replay after a run is what the definition makes of the single steps of the same run."""
    hyper, keys = examples.seeds(2)
    one, three = (examples.program(capacity=400, n_step=n, learning_starts=400) for n in (1, 3))
    states = []
    for program in (one, three):
        state = training.init(program, hyper, keys)
        functions = training.vmapped(program)
        states.append(functions.collect(state, functions.noise(keys, 0, 60)))
    single, spanning = states[0].buffer, states[1].buffer.buffer
    assert single.added.tolist() == [180, 180]
    assert spanning.added.tolist() == [174, 174]
    asserts.assert_trees_equal(states[0].metrics, states[1].metrics)
    for lane in range(2):
        rows = tree.index(single.rows, (lane, slice(0, 180)))
        for env in range(3):
            steps = [tree.index(rows, i) for i in range(env, 180, 3)]
            # An end is where the next row begins anew.
            ends = [not torch.equal(a.next_obs, b.obs) for a, b in itertools.pairwise(steps)] + [False]
            gamma = float(hyper.gamma[lane])
            for i in range(58):
                m = next((k for k in range(3) if ends[i + k]), 2)
                row = tree.index(spanning.rows, (lane, 3 * i + env))
                reward = sum(gamma**k * steps[i + k].reward for k in range(m + 1))
                last = steps[i + m]
                theirs = Transition(
                    steps[i].obs, steps[i].action, reward, gamma**m * last.discount, last.next_obs, last.next_legal
                )
                asserts.assert_trees_close(theirs, row, 1e-5, 1e-5)


def test_the_target_is_the_n_step_return():
    """With one gamma of the loss on top, what is bootstrapped counts gamma**n."""
    from fdqn.ops import td

    batch = next(walk(1, 1, 0))[0]._replace(discount=torch.ones(1, dtype=torch.float64))
    recent = n_step.init(tree.index(batch, 0), 1, 3)
    never, valid, gamma = torch.tensor([False]), torch.tensor([True]), torch.tensor(GAMMA, dtype=torch.float64)
    for _ in range(3):
        recent, row, whole = n_step.add(recent, batch, never, valid, gamma)
    assert whole.all()
    q = torch.tensor([[2.0, 5.0]], dtype=torch.float64)
    delta = td.q_learning(q * 0, row.action, row.reward, gamma * row.discount, q, torch.ones(1, 2, dtype=torch.bool))
    r = batch.reward.item()
    assert delta.item() == pytest.approx(r + GAMMA * r + GAMMA**2 * r + GAMMA**3 * 5)


def test_the_flag_reaches_the_program():
    from fdqn.experiment.settings import Settings

    assert assemble.program(Settings(n_step=4)).config.n_step == 4
    with pytest.raises(ValueError, match=r"^n_step: expected at least 1, got 0"):
        assemble.program(Settings(n_step=0))


def test_chunks_and_lanes_with_steps_in_between():
    hyper, keys = examples.seeds(2)
    program = examples.program(n_step=3)
    state = training.init(program, hyper, keys)
    functions = training.vmapped(program)
    state = functions.collect(state, functions.noise(keys, 0, 10))
    noises = functions.noise(keys, 10, 4)
    together = functions.cycle(state, noises)
    single = state
    for i in range(4):
        single = functions.cycle(single, tree.index(noises, slice(i, i + 1)))
    asserts.assert_trees_equal(together, single)
    programs.donated(functions.collect, state, noises)
