"""Compare the values of the probes with value iteration on their stepped transitions."""

import pytest
import torch

from fdqn import tree
from fdqn.testing import probes

GAMMAS = (0.0, 0.5, 0.9, 0.99)


def transitions(probe):
    """Collect every (row, action, legal, reward, terminated, truncated, next row, next legal) by stepping.

    Visits all reachable states and also tries illegal actions; a row is the index of an observation in `probe.obs`.
    """
    env = probe.env
    rows = {tuple(obs): i for i, obs in enumerate(probe.obs.tolist())}
    starts = torch.tensor([[0.0], [0.3], [0.6], [0.999]])
    found, seen, open_ = set(), set(), [tree.index(env.reset(starts), i) for i in range(len(starts))]
    while open_:
        state, step = open_.pop()
        key = tuple(x.item() for x in tree.leaves(state))
        if key in seen:
            continue
        seen.add(key)
        for action in range(env.spec.actions):
            for u in starts:
                after = env.step(state, torch.tensor(action), u)
                result = after[1]
                found.add(
                    (
                        rows[tuple(step.obs.tolist())],
                        action,
                        step.legal[action].item(),
                        result.reward.item(),
                        result.terminated.item(),
                        result.truncated.item(),
                        rows[tuple(result.next_obs.tolist())],
                        tuple(result.next_legal.tolist()),
                    )
                )
                open_.append(after)
    assert {t[0] for t in found} == set(rows.values())
    return found


def optimal(found, shape, gamma, truncation_ends=False, masked=True):
    """Run value iteration until convergence; NaN for illegal actions."""
    q = torch.zeros(shape, dtype=torch.float64)
    for _ in range(4_000):
        new = torch.full(shape, float("nan"), dtype=torch.float64)
        for row, action, legal, reward, terminated, truncated, after, legal_after in found:
            choices = [v for v, ok in zip(q[after].tolist(), legal_after, strict=True) if (ok or not masked) and v == v]
            stop = terminated or (truncated and truncation_ends)
            value = reward + (0.0 if stop else gamma * max(choices))
            if legal or not masked:
                # The value of an action in a state does not depend on the time.
                assert new[row, action].isnan() or abs(new[row, action] - value) < 1e-12
                new[row, action] = value
        if torch.equal(new.nan_to_num(), q.nan_to_num()):
            return new
        q = new
    raise AssertionError("value iteration did not settle")


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", probes.ALL)
def test_values_are_the_fixed_point_of_value_iteration(name, gamma):
    probe = probes.ALL[name](dtype=torch.float64)
    q = probe.q(gamma)
    assert q.shape == probe.legal.shape == (len(probe.obs), probe.env.spec.actions)
    found = optimal(transitions(probe), q.shape, gamma)
    torch.testing.assert_close(q, found, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert torch.equal(q.isnan(), ~probe.legal)


def test_values_reject_wrong_targets():
    endless, masked, delayed = (
        probes.ALL[n](dtype=torch.float64) for n in ("endless_reward", "masked_reward", "delayed_reward")
    )
    with pytest.raises(AssertionError):  # the value of a step would depend on the time
        optimal(transitions(endless), (1, 2), 0.9, truncation_ends=True)
    unmasked = optimal(transitions(masked), (2, 3), 0.9, masked=False)
    assert torch.equal(unmasked[0], torch.full((3,), 0.9, dtype=torch.float64))
    assert not torch.isclose(unmasked, masked.q(0.9)).any(-1)[0]
    assert not torch.equal(optimal(transitions(delayed), (2, 2), 0.9), delayed.q(0.8))


@pytest.mark.parametrize("name", probes.ALL)
def test_legal_equals_the_mask_of_the_environment(name):
    probe = probes.ALL[name]()
    for row, _, _, _, _, _, after, legal_after in transitions(probe):
        assert probe.legal[row].any()
        assert legal_after == tuple(probe.legal[after].tolist())


def test_only_the_masked_probe_has_illegal_actions():
    assert [name for name in probes.ALL if not probes.ALL[name]().legal.all()] == ["masked_reward"]
    probe = probes.masked_reward()
    paid = {action: reward for row, action, _, reward, *_ in transitions(probe) if row == 1}
    assert max(paid, key=paid.get) == 2
    # The illegal action also looks best if it is never tried: its value stays near 0, all others are lower.
    assert all(reward < 0 for action, reward in paid.items() if action != 2)


def test_only_the_endless_probe_is_truncated():
    truncated = {name for name in probes.ALL if any(t[5] for t in transitions(probes.ALL[name]()))}
    assert truncated == {"endless_reward"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", probes.ALL)
def test_vmapped_and_compiled_equal_eager(name, dtype):
    probe = probes.ALL[name](dtype=dtype)
    env = probe.env
    u = torch.rand(2, 3, 1, generator=torch.Generator().manual_seed(0))
    action = torch.arange(6).reshape(2, 3) % env.spec.actions
    state, _ = env.reset(u)
    whole = env.step(state, action, u)
    one = [tree.stack([env.step(*tree.index((state, action, u), (s, e))) for e in range(3)]) for s in range(2)]
    assert tree.equal(whole, tree.stack(one))
    assert tree.equal(whole, torch.func.vmap(env.step)(state, action, u))
    torch._dynamo.reset()
    assert tree.equal(
        whole, torch.compile(torch.func.vmap(env.step), backend="aot_eager", fullgraph=True)(state, action, u)
    )
    assert probe.obs.dtype == probe.q(0.5).dtype == whole[1].obs.dtype == whole[1].reward.dtype == dtype
