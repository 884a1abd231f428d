"""Tests of n-step transitions against sums that are computed episode by episode."""

import itertools

import pytest
import torch

from fdqn import training, tree
from fdqn.experiment import assemble
from fdqn.replay import n_step, ring
from fdqn.testing import asserts, examples, laws, programs
from fdqn.types import Transition

GAMMA = 0.9


def walk(num_envs, steps, seed, invalid=0.0, discounts=(1.0,)):
    """Generate `steps` transitions of [E] environments with numbered observations.

    `discounts` are drawn for steps without termination; a 0 among them ends the task but not the episode.
    `invalid` is the fraction of invalid rows.
    """
    generator = torch.Generator().manual_seed(seed)
    for t in range(steps):
        ended = torch.rand(num_envs, generator=generator) < 0.25
        discount = torch.where(ended & (torch.rand(num_envs, generator=generator) < 0.5), 0.0, 1.0).double()
        if len(discounts) > 1:
            drawn = torch.randint(len(discounts), (num_envs,), generator=generator)
            discount = discount * torch.tensor(discounts, dtype=torch.float64)[drawn]
        obs = (1_000 * torch.arange(num_envs) + t).double().unsqueeze(-1)
        reward = torch.randn(num_envs, generator=generator, dtype=torch.float64)
        legal = torch.rand((num_envs, 2), generator=generator) < 0.5
        valid = torch.rand(num_envs, generator=generator) >= invalid
        yield Transition(obs, torch.arange(num_envs), reward, discount, obs + 0.5, legal, legal.flip(-1)), ended, valid


def expected(singles, n):
    """Compute the complete n-step transitions of one environment's steps `[(row, ended)]` from the definition."""
    found = []
    for start in range(len(singles)):
        reward, row, complete, weight = torch.zeros((), dtype=torch.float64), None, False, 1.0
        for m, (step, ended) in enumerate(singles[start : start + n]):
            reward, row, discount = reward + weight * step.reward, step, weight * step.discount
            if complete := ended or m == n - 1 or step.discount == 0:
                break
            weight = GAMMA * discount
        returned = start + n <= len(singles)  # `add` returns it n - 1 steps after its first step
        if complete and returned:
            first = singles[start][0]
            found.append(
                row._replace(obs=first.obs, action=first.action, reward=reward, discount=discount, legal=first.legal)
            )
    return found


def given(n, invalid, seed=0, discounts=(1.0,)):
    recent, singles, got = None, [[] for _ in range(3)], [[] for _ in range(3)]
    for batch, ended, valid in walk(3, 60, seed, invalid, discounts):
        recent = recent or n_step.init(tree.index(batch, 0), 3, n)
        recent, rows, whole = n_step.add(recent, batch, ended, valid, torch.tensor(GAMMA, dtype=torch.float64))
        for i in range(3):
            if valid[i]:
                singles[i].append((tree.index(batch, i), bool(ended[i])))
            if whole[i]:
                got[i].append(tree.index(rows, i))
    return singles, got


@pytest.mark.parametrize("discounts", [(1.0,), (1.0, 0.0), (1.0, 0.5, 0.9), (1.5, 0.5, 0.25, 0.0)], ids=str)
@pytest.mark.parametrize("invalid", [0.0, 0.3])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_equals_the_definition(n, invalid, discounts):
    """Check that each step starts one transition, in order, also just before an end, and that none crosses an end.

    Intermediate discounts may have any size.
    """
    singles, got = given(n, invalid, discounts=discounts)
    for rows, steps in zip(got, singles, strict=True):
        want = expected(steps, n)
        assert len(rows) == len(want) == len(steps) - n + 1
        for a, b in zip(want, rows, strict=True):
            asserts.assert_trees_close(a, b, 1e-12, 1e-12)


def test_transitions_across_an_end_are_detected(monkeypatch):
    """Plant a bug: sums continue into the next episode."""
    original = n_step.add
    monkeypatch.setattr(
        n_step, "add", lambda recent, batch, ended, *more: original(recent, batch, ended & False, *more)
    )
    with pytest.raises(AssertionError):
        test_equals_the_definition(3, 0.0, (1.0,))


def test_ignored_intermediate_discounts_are_detected(monkeypatch):
    """Plant a bug: use powers of gamma only, which is correct if all discounts are 0 or 1."""
    monkeypatch.setattr(n_step, "_weights", lambda discount, gamma: gamma ** torch.arange(3) + 0 * discount)
    test_equals_the_definition(3, 0.3, (1.0, 0.0))
    with pytest.raises(AssertionError):
        test_equals_the_definition(3, 0.3, (1.0, 0.5))


def test_weights_for_discounts_of_0_and_1_are_exact_powers_of_gamma():
    for gamma in (torch.tensor(0.99), torch.tensor(0.9, dtype=torch.float64)):
        for discount in (torch.ones(2, 5), torch.ones(2, 5, dtype=torch.float64)):
            assert (n_step._weights(discount, gamma) == gamma ** torch.arange(5)).all()
    never = torch.tensor([[0.0, torch.nan, 1.0]])
    assert n_step._weights(never, torch.tensor(0.5))[0, :2].tolist() == [1.0, 0.0]


def test_replay_multiplies_intermediate_discounts():
    """Expect a reward of r_0 + 0.9 * 0.5 * r_1 = 1.9 and a discount of 0.9 * 0.5 * 0.5, before the last gamma."""
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


def test_dropped_transitions_before_an_end_are_detected(monkeypatch):
    """Plant a bug of other libraries: drop the transitions that start in the last n - 1 steps of an episode."""
    original = n_step.add

    def dropping(recent, batch, ended, valid, gamma):
        recent, rows, whole = original(recent, batch, ended, valid, gamma)
        return recent, rows, whole & (rows.next_obs - rows.obs >= 2)[:, 0]

    monkeypatch.setattr(n_step, "add", dropping)
    with pytest.raises(AssertionError):
        test_equals_the_definition(3, 0.0, (1.0,))


def test_a_nan_reward_does_not_reach_another_episode():
    steps = list(walk(1, 3, 0))
    recent = n_step.init(tree.index(steps[0][0], 0), 1, 2)
    never, valid, gamma = torch.tensor([False]), torch.tensor([True]), torch.tensor(GAMMA)
    recent, _, _ = n_step.add(recent, steps[0][0], ~never, valid, gamma)
    invalid = steps[1][0]._replace(reward=torch.tensor([torch.nan], dtype=torch.float64))
    _, row, _ = n_step.add(recent, invalid, never, valid, gamma)
    assert row.reward.item() == steps[0][0].reward.item()


def test_no_transition_spans_a_cut():
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


def test_a_program_stores_n_step_rows():
    """Compare the replay of a run with n-step transitions computed from the single steps of the same run."""
    hyper, keys = examples.seeds(2)
    one, three = (examples.program(capacity=400, n_step=n, learning_starts=400) for n in (1, 3))
    states = []
    for program in (one, three):
        state = training.init(program, hyper, keys)
        functions = training.vmapped(program)
        states.append(functions.collect(state, functions.noise(keys, 0, 60)))
    single, n_step_rows = states[0].buffer, states[1].buffer.buffer
    assert single.added.tolist() == [180, 180]
    assert n_step_rows.added.tolist() == [174, 174]
    asserts.assert_trees_equal(states[0].metrics, states[1].metrics)
    for seed in range(2):
        rows = tree.index(single.rows, (seed, slice(0, 180)))
        for env in range(3):
            steps = [tree.index(rows, i) for i in range(env, 180, 3)]
            # At an end, the next row starts from another observation.
            ends = [not torch.equal(a.next_obs, b.obs) for a, b in itertools.pairwise(steps)] + [False]
            gamma = float(hyper.gamma[seed])
            for i in range(58):
                m = next((k for k in range(3) if ends[i + k]), 2)
                row = tree.index(n_step_rows.rows, (seed, 3 * i + env))
                reward = sum(gamma**k * steps[i + k].reward for k in range(m + 1))
                last = steps[i + m]
                want = Transition(
                    steps[i].obs, steps[i].action, reward, gamma**m * last.discount, last.next_obs, last.next_legal
                )
                asserts.assert_trees_close(want, row, 1e-5, 1e-5)


def test_the_target_is_the_n_step_return():
    """Check that the bootstrapped value has weight gamma**n, including the gamma of the loss."""
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


def test_the_setting_reaches_the_program():
    from fdqn.experiment.settings import Settings

    assert assemble.program(Settings(n_step=4)).config.n_step == 4
    with pytest.raises(ValueError, match=r"^n_step: expected at least 1, got 0"):
        assemble.program(Settings(n_step=0))


def test_chunks_and_donation_with_n_step_returns():
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
