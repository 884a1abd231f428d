"""Tests of the comparison of the first compiled step with eager execution."""

import pytest
import torch
from torch.func import vmap

from fdqn import compile as edge
from fdqn import training, tree
from fdqn.compile import engines, verify
from fdqn.compile import programs as steps
from fdqn.replay import prioritized
from fdqn.testing import examples, programs
from fdqn.types import Transition


def leaves(**changed):
    generator = torch.Generator().manual_seed(0)
    made = {
        "params": {"weight": torch.randn(2, 50, generator=generator), "bias": torch.randn(2, 5, generator=generator)},
        "mean": {"weight": 1e-3 * torch.randn(2, 50, generator=generator), "bias": torch.zeros(2, 5)},
        "count": torch.tensor([3, 3]),
        "returns": torch.tensor([[torch.nan, 1.0], [torch.nan, -torch.inf]]),
        "empty": torch.zeros(2, 0),
    }
    return made | changed


def test_equal_leaves_do_not_differ():
    assert verify.differences(leaves(), leaves()) == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("['mean']['weight']", leaves(mean=tree.map(lambda x: 8 * x, leaves()["mean"]))),
        ("['mean']['weight']", leaves(mean=tree.map(lambda x: 1.035 * x, leaves()["mean"]))),
        ("['mean']['bias']", leaves(mean=leaves()["mean"] | {"bias": torch.full((2, 5), 1e-4)})),
        ("['params']['weight']", leaves(params=tree.map(lambda x: x * torch.nan, leaves()["params"]))),
        ("['count']", leaves(count=torch.tensor([3, 4]))),
        ("['returns']", leaves(returns=torch.tensor([[0.0, 1.0], [torch.nan, -torch.inf]]))),
        ("['returns']", leaves(returns=torch.tensor([[torch.nan, 1.0], [torch.nan, torch.inf]]))),
    ],
)
def test_wrong_numbers_are_named(name, wrong):
    (first, *_) = verify.differences(leaves(), wrong)
    assert first.startswith(name)


def empty_buffer():
    """Make an empty prioritized buffer of six rows."""
    flag, number = torch.tensor([True]), torch.tensor(0.0)
    row = Transition(torch.zeros(2), torch.tensor(0), number, number, torch.zeros(2), flag)
    return prioritized.init(row, 6)


def test_priorities_in_fixed_point_may_round_and_no_other_integers():
    """Accept differences in the last bits of priorities, but no 1%, no lost priority and no other integer."""
    state = empty_buffer()
    mass = torch.tensor([2**28, 0, 3 * 2**26, 2**28, 2**27, 0, 0, 0])
    state = state._replace(mass=mass, sums=(mass.reshape(1, 8).sum(-1),), highest=mass.amax())
    rounded = mass + torch.tensor([9, 0, -5, 0, 1, 0, 0, 0])
    close = state._replace(mass=rounded, sums=(rounded.reshape(1, 8).sum(-1),), highest=rounded.amax())
    assert verify.differences(state, close) == []
    for wrong in (mass + mass // 100, mass * (mass < 2**28), mass + 2**26):
        assert verify.differences(state, state._replace(mass=wrong)) == [".mass"]
    assert verify.differences(state, state._replace(updates=state.updates + 1)) == [".updates"]
    counts = {"updates": torch.full((4,), 2_000_000), "keys": torch.full((4, 2), 2**31)}
    for name in counts:
        assert verify.differences(counts, {**counts, name: counts[name] + 1}) == [f"['{name}']"]


def test_rounding_passes():
    """Include a gradient that is 0 except for rounding, next to others that are not 0."""
    rounded = tree.map(lambda x: x * (1 + 1e-5) if x.is_floating_point() else x, leaves())
    rounded["mean"]["bias"] = torch.full((2, 5), 1e-9)
    assert verify.differences(leaves(), rounded) == []


def wrong_at(*calls):
    """Make a scan of `state + x` that is wrong in these calls, and a list of the steps compared with it."""
    compared, called = [], []

    def step(state, x):
        compared.append(1)
        return state + x

    def scan(state, xs):
        called.append(1)
        return training.scan(vmap(lambda s, x: s + x))(state, xs) * (2 if len(called) in calls else 1)

    return verify.with_comparison(scan, step), compared


def test_a_step_that_is_always_wrong_is_refused_by_its_second_call():
    compiled, _ = wrong_at(*range(10))
    state = compiled(torch.ones(3), torch.ones(1, 3))
    with pytest.raises(verify.MismatchError, match="compiled step: expected the results of eager execution"):
        compiled(state, torch.ones(1, 3))


def test_a_single_difference_is_not_a_mismatch():
    """Check also that no further steps are compared once one agrees."""
    compiled, compared = wrong_at(1)
    state = torch.ones(3)
    for _ in range(5):
        state = compiled(state, torch.ones(2, 3))
    assert len(compared) == 2


def test_all_steps_are_taken_when_the_first_is_compared():
    compiled, _ = wrong_at()
    assert compiled(torch.zeros(3), torch.ones(7, 3)).tolist() == [7.0] * 3


def test_a_step_that_moves_a_leaf_agrees():
    """Compare a step whose result holds a leaf of the old state, which the compiled step overwrites."""

    def shifted(state, x):
        return {"newest": x * 1.0, "last": state["newest"]}

    def scan(state, xs):
        for x in xs:
            state = edge.donate(vmap(shifted))(state, x)
        return state

    compiled = verify.with_comparison(scan, shifted)
    state = compiled({"newest": torch.ones(3), "last": torch.zeros(3)}, torch.full((2, 3), 5.0))
    compiled(state, torch.full((1, 3), 7.0))
    assert [x.tolist() for x in tree.leaves(state)] == [[7.0] * 3, [5.0] * 3]


def test_a_large_state_is_not_copied(monkeypatch):
    monkeypatch.setattr(verify, "MAX_BYTES", 7)
    compiled, compared = wrong_at(*range(10))
    with pytest.warns(UserWarning, match="compiled steps are not compared with eager execution: 2 seeds hold"):
        state = compiled(torch.ones(3), torch.ones(1, 3))
    compiled(state, torch.ones(1, 3))
    assert not compared


@pytest.fixture
def wrong_updates(monkeypatch):
    """Replace compiled steps by eager ones with a gradient norm that is 7% off."""

    def off(state, noise):
        totals = state.metrics.totals
        return state._replace(metrics=state.metrics._replace(totals=totals._replace(grad_norm=totals.grad_norm * 1.07)))

    def scan_vmapped(step, **given):
        return lambda state, xs: off(training.scan(vmap(step))(state, xs), xs)

    monkeypatch.setattr(engines, "scan_vmapped", scan_vmapped)
    monkeypatch.setattr(steps, "_noise", lambda program, engine: lambda *given: training.noise(program, *given))


@pytest.mark.usefixtures("wrong_updates")
@pytest.mark.parametrize("config", [{}, {"updates_per_cycle": 16, "target_period": 16}], ids=str)
def test_a_wrongly_compiled_program_is_not_trained(config):
    program, (hyper, keys) = examples.program(**config), examples.seeds(2)
    state = training.init(program, hyper, keys)
    with pytest.raises(verify.MismatchError, match=r"\.metrics\.totals\.grad_norm"):
        programs.advance(program, tree.clone(state), 8, edge.compiled(program))
    programs.advance(program, state, 8, edge.compiled(program, check_compile=False))
