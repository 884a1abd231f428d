"""Schedules: their ends, and PyTorch's own."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fdqn import schedules
from fdqn.testing import laws


@given(st.floats(-5, 5, width=32), st.floats(-5, 5, width=32), st.integers(1, 300))
def test_linear(start, end, steps):
    laws.schedule(partial(schedules.linear, start=start, end=end, steps=steps), start, end, steps)


def test_linear_meets_its_ends_exactly():
    f = partial(schedules.linear, start=torch.tensor(1.0), end=torch.tensor(0.05), steps=torch.tensor(7.0))
    assert f(torch.tensor(0)) == 1.0
    assert f(torch.tensor([7, 8, 10**9])).tolist() == [torch.tensor(0.05).item()] * 3
    assert f(torch.tensor(3)).item() == pytest.approx(1 + (0.05 - 1) * 3 / 7)


@pytest.mark.parametrize("steps", [0, 0.0, torch.tensor(0.0)])
def test_linear_of_no_steps_is_its_end(steps):
    assert schedules.linear(torch.tensor([0, 1]), 1.0, 0.25, steps).tolist() == [0.25, 0.25]


@given(st.floats(1e-3, 5), st.floats(0.5, 0.99), st.integers(1, 60))
def test_exponential(start, decay, steps):
    f = partial(schedules.exponential, start=start, decay=decay)
    laws.schedule(f, start, start * decay**steps, steps, constant_after=False, rtol=1e-5)


def test_constant():
    laws.schedule(partial(schedules.constant, value=0.3), 0.3, 0.3, 10)


def theirs(make, steps, rate=0.1):
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    clock, rates = make(opt), []
    for _ in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        clock.step()
    return torch.tensor(rates, dtype=torch.float64)


STEPS = torch.arange(30, dtype=torch.float64)


@pytest.mark.parametrize("decay", [0.9, torch.tensor(0.9, dtype=torch.float64)], ids=["number", "tensor"])
def test_exponential_is_pytorchs(decay):
    expected = theirs(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9), 30)
    torch.testing.assert_close(schedules.exponential(STEPS, 0.1, decay), expected, rtol=1e-12, atol=0)


def test_linear_is_pytorchs():
    expected = theirs(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=20), 30)
    torch.testing.assert_close(schedules.linear(STEPS, 0.1, 0.02, 20), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "f",
    [
        partial(schedules.linear, start=1.0, end=0.1, steps=20),
        partial(schedules.exponential, start=1.0, decay=0.9),
        partial(schedules.constant, value=0.5),
    ],
)
def test_laws_of_a_function(f):
    step = torch.tensor([[0, 5, 19], [20, 21, 40]])
    laws.pure(f, step)
    laws.ranked(f, step, leading=2, dtype=None, atol=1e-7)
    laws.compiled(f, step, again=[(step + 1,)])


def test_one_schedule_a_lane():
    starts, steps = torch.tensor([1.0, 0.5]), torch.tensor([10.0, 20.0])
    many = torch.func.vmap(partial(schedules.linear, torch.tensor(5)), in_dims=(0, None, 0))(starts, 0.0, steps)
    assert many.tolist() == [0.5, 0.375]
