"""Compare schedules with their end points and with the schedulers of PyTorch."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fdqn.ops import schedules
from fdqn.testing import laws


@given(st.floats(-5, 5, width=32), st.floats(-5, 5, width=32), st.integers(1, 300))
def test_linear(start, end, steps):
    laws.schedule(partial(schedules.linear, start=start, end=end, steps=steps), start, end, steps)


def test_ends_of_linear_are_exact():
    f = partial(schedules.linear, start=torch.tensor(1.0), end=torch.tensor(0.05), steps=torch.tensor(7.0))
    assert f(torch.tensor(0)) == 1.0
    assert f(torch.tensor([7, 8, 10**9])).tolist() == [torch.tensor(0.05).item()] * 3
    assert f(torch.tensor(3)).item() == pytest.approx(1 + (0.05 - 1) * 3 / 7)


@pytest.mark.parametrize("steps", [0, 0.0, torch.tensor(0.0)])
def test_linear_over_zero_steps_is_its_end(steps):
    assert schedules.linear(torch.tensor([0, 1]), 1.0, 0.25, steps).tolist() == [0.25, 0.25]


def test_linear_over_a_fraction_of_a_step():
    assert schedules.linear(torch.tensor([0.0, 0.25, 0.5]), 1.0, 0.0, 0.5).tolist() == [1.0, 0.5, 0.0]


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


STEPS = torch.arange(60)
L = torch.optim.lr_scheduler
f = partial
"""Schedules and PyTorch's schedulers, all at a learning rate of 0.1."""
PAIRS = {
    "constant": (f(schedules.constant, value=0.1), lambda o: L.LambdaLR(o, lambda step: 1.0)),
    "linear": (f(schedules.linear, start=0.1, end=0.02, steps=20), lambda o: L.LinearLR(o, 1.0, 0.2, total_iters=20)),
    "linear-up": (f(schedules.linear, start=0.03, end=0.1, steps=7), lambda o: L.LinearLR(o, 0.3, 1.0, total_iters=7)),
    "polynomial": (f(schedules.polynomial, start=0.1, steps=23, power=2.5), lambda o: L.PolynomialLR(o, 23, 2.5)),
    "polynomial-1": (f(schedules.polynomial, start=0.1, steps=5, power=1), lambda o: L.PolynomialLR(o, 5, 1)),
    "exponential": (f(schedules.exponential, start=0.1, decay=0.9), lambda o: L.ExponentialLR(o, 0.9)),
    "staircase": (f(schedules.staircase, start=0.1, decay=0.5, every=7), lambda o: L.StepLR(o, 7, 0.5)),
    "milestones": (
        f(schedules.milestones, start=0.1, decay=0.5, milestones=(3, 4, 20)),
        lambda o: L.MultiStepLR(o, [3, 4, 20], 0.5),
    ),
    "cosine": (f(schedules.cosine, start=0.1, end=0.01, steps=17), lambda o: L.CosineAnnealingLR(o, 17, 0.01)),
    "restarts": (
        f(schedules.cosine_restarts, start=0.1, end=0.01, steps=7),
        lambda o: L.CosineAnnealingWarmRestarts(o, 7, 1, 0.01),
    ),
    "restarts-2": (
        f(schedules.cosine_restarts, start=0.1, end=0.01, steps=4, growth=2),
        lambda o: L.CosineAnnealingWarmRestarts(o, 4, 2, 0.01),
    ),
    "restarts-3": (
        f(schedules.cosine_restarts, start=0.1, end=0.0, steps=1, growth=3),
        lambda o: L.CosineAnnealingWarmRestarts(o, 1, 3),
    ),
    "one-cycle": (
        f(schedules.one_cycle, peak=0.1, steps=60),
        lambda o: L.OneCycleLR(o, 0.1, 60, cycle_momentum=False),
    ),
    "one-cycle-early": (
        f(schedules.one_cycle, peak=0.1, steps=60, warm=0.1, start_divisor=3.0, end_divisor=10.0),
        lambda o: L.OneCycleLR(o, 0.1, 60, None, None, 0.1, "cos", False, div_factor=3.0, final_div_factor=10.0),
    ),
    "warm-up": (
        f(schedules.warm_up, schedule=f(schedules.cosine, start=0.1, end=0.01, steps=30), steps=10, start_factor=0.25),
        lambda o: L.SequentialLR(o, [L.LinearLR(o, 0.25, 1.0, total_iters=10), L.CosineAnnealingLR(o, 30, 0.01)], [10]),
    ),
    "sequence": (
        f(
            schedules.sequence,
            schedules=[
                f(schedules.constant, value=0.1),
                f(schedules.exponential, start=0.1, decay=0.9),
                f(schedules.linear, start=0.1, end=0.02, steps=9),
            ],
            starts=[5, 21],
        ),
        lambda o: L.SequentialLR(
            o, [L.LambdaLR(o, lambda s: 1.0), L.ExponentialLR(o, 0.9), L.LinearLR(o, 1.0, 0.2, 9)], [5, 21]
        ),
    ),
}
EACH = pytest.mark.parametrize("name", PAIRS)


@EACH
def test_equals_pytorch_at_every_step(name):
    ours, make = PAIRS[name]
    expected = theirs(make, len(STEPS))
    for steps in (STEPS, STEPS.double(), STEPS.to(torch.int32)):
        torch.testing.assert_close(ours(steps), expected, rtol=1e-12, atol=1e-15)


def with_tensors(x):
    """Bind the constants as tensors."""
    if isinstance(x, partial):
        return partial(x.func, **{name: with_tensors(value) for name, value in x.keywords.items()})
    if isinstance(x, list | tuple):
        return [with_tensors(value) for value in x]
    return torch.tensor(x, dtype=torch.float64) if isinstance(x, int | float) else x


@EACH
def test_constants_may_be_tensors(name):
    ours, _ = PAIRS[name]
    whole = {"growth", "steps"} if "restarts" in name or name == "warm-up" else set()
    tensors = partial(ours.func, **{k: v if k in whole else with_tensors(v) for k, v in ours.keywords.items()})
    torch.testing.assert_close(tensors(STEPS), ours(STEPS), rtol=1e-14, atol=0)


@EACH
def test_laws_of_a_function(name):
    ours, _ = PAIRS[name]
    step = torch.tensor([[0, 5, 19], [20, 21, 40]])
    laws.pure(ours, step)
    laws.ranked(ours, step, leading=2, dtype=None, atol=1e-7)
    laws.compiled(ours, step, again=[(step + 1,)])
    assert ours(step).dtype == torch.float64


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 3000))
def test_restarts_at_any_step_equal_pytorch(steps, growth, step):
    """Compare with PyTorch, which computes restarts by a loop over whole periods."""
    start, length = 0, steps
    while step >= start + length:
        start, length = start + length, length * growth
    expected = schedules.cosine(torch.tensor(step - start), 0.1, 0.01, length)
    got = schedules.cosine_restarts(torch.tensor(step), 0.1, 0.01, steps, growth)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@given(st.floats(1e-4, 1), st.floats(1e-4, 1), st.integers(1, 50), st.floats(0.5, 4))
def test_end_points_of_polynomial_and_cosine(start, end, steps, power):
    laws.schedule(partial(schedules.polynomial, start=start, end=end, steps=steps, power=power), start, end, steps)
    laws.schedule(lambda step: schedules.cosine(step.clamp_max(steps), start, end, steps), start, end, steps, rtol=1e-6)


def test_one_cycle_is_constant_after_its_end():
    rates = schedules.one_cycle(torch.tensor([0, 29, 99, 100, 1000]), 0.1, 100)
    torch.testing.assert_close(rates, torch.tensor([0.004, 0.1, 4e-7, 4e-7, 4e-7]).double(), rtol=1e-6, atol=0)


def test_warm_up_never_evaluates_negative_steps():
    def sqrt(step):
        assert (step >= 0).all()
        return 1 / (step + 1).double().sqrt()

    rates = schedules.warm_up(torch.arange(6), sqrt, steps=4)
    torch.testing.assert_close(rates, torch.tensor([0, 0.25, 0.5, 0.75, 1.0, 0.5**0.5], dtype=torch.float64))


def test_one_cycle_without_warm_up_is_finite():
    rates = schedules.one_cycle(torch.arange(10), 0.1, 10, 0.1)
    assert rates.isfinite().all()
    torch.testing.assert_close(rates[1], schedules.cosine(torch.tensor(1), 0.1, 0.1 / 25 / 1e4, 9))


@EACH
def test_float32_steps_and_constants_are_converted_to_float64(name):
    ours, _ = PAIRS[name]
    assert ours(STEPS.float()).dtype == torch.float64
    torch.testing.assert_close(ours(STEPS.float()), ours(STEPS), rtol=1e-14, atol=0)
    numbers = {k: torch.tensor([v, v]) for k, v in ours.keywords.items() if isinstance(v, float)}
    value = partial(ours.func, **{**ours.keywords, **numbers})(torch.tensor([7, 7]))
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, ours(torch.tensor([7, 7])), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (partial(schedules.cosine, start=1.0, end=0.0, steps=0), "steps"),
        (partial(schedules.cosine_restarts, start=1.0, end=0.0, steps=0), "steps"),
        (partial(schedules.one_cycle, peak=1.0, steps=0), "steps"),
        (partial(schedules.staircase, start=1.0, decay=0.5, every=0), "every"),
    ],
)
def test_invalid_lengths_are_refused(f, name):
    with pytest.raises(ValueError, match=f"{name}: expected a number above 0, got 0"):
        f(STEPS)


def test_messages():
    with pytest.raises(ValueError, match=r"growth: expected a whole number of at least 1, got 1\.5"):
        schedules.cosine_restarts(STEPS, 0.1, 0.0, 4, 1.5)
    with pytest.raises(ValueError, match="growth: expected a whole number of at least 1, got 0"):
        schedules.cosine_restarts(STEPS, 0.1, 0.0, 4, 0)
    with pytest.raises(ValueError, match="starts: expected one for all of 2 schedules but the first, got 2"):
        schedules.sequence(STEPS, [schedules.constant] * 2, [1, 2])


def test_schedules_may_differ_between_seeds():
    starts, steps = torch.tensor([1.0, 0.5]), torch.tensor([10.0, 20.0])
    many = torch.func.vmap(partial(schedules.linear, torch.tensor(5)), in_dims=(0, None, 0))(starts, 0.0, steps)
    assert many.tolist() == [0.5, 0.375]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_narrow_integer_steps_do_not_wrap(dtype):
    """Use steps that would wrap: 300 in uint8 is 44, and 2**40 in int32 is 0."""
    step, large = torch.tensor([0, 60, 100], dtype=dtype), {torch.int32: 2**40}.get(dtype, 2**17 + 300)
    ends = [partial(schedules.constant, value=1.0), partial(schedules.constant, value=2.0)]
    assert schedules.sequence(step, ends, [large]).tolist() == [1.0, 1.0, 1.0]
    assert schedules.milestones(step, 1.0, 0.5, [50, large]).tolist() == [1.0, 0.5, 0.5]
    for make in (
        partial(schedules.linear, start=1.0, end=0.0, steps=large),
        partial(schedules.polynomial, start=1.0, steps=large, power=2.0),
        partial(schedules.warm_up, schedule=ends[0], steps=large),
        partial(schedules.one_cycle, peak=1.0, steps=large),
        partial(schedules.staircase, start=1.0, decay=0.5, every=large),
        partial(schedules.cosine_restarts, start=1.0, end=0.0, steps=large, growth=2),
    ):
        assert torch.equal(make(step), make(step.long()))


MEET = {
    "linear": (partial(schedules.linear, steps=7), 7),
    "polynomial": (partial(schedules.polynomial, steps=7, power=2.0), 7),
    "polynomial of a root": (partial(schedules.polynomial, steps=7, power=0.5), 7),
    "cosine": (partial(schedules.cosine, steps=7), 7),
    "cosine_restarts": (partial(schedules.cosine_restarts, steps=7, growth=2), None),
}


@pytest.mark.parametrize("name", MEET)
@given(st.floats(-5, 5), st.floats(-5, 5))
def test_both_ends_are_exact(name, start, end):
    make, last = MEET[name]
    assert make(torch.tensor(0), start=start, end=end).item() == start
    if last is not None:
        assert make(torch.tensor(last), start=start, end=end).item() == end


@given(st.floats(1e-6, 5), st.floats(1.5, 50), st.floats(1.5, 1e5))
def test_three_ends_of_one_cycle_are_exact(peak, start_divisor, end_divisor):
    rates = schedules.one_cycle(torch.tensor([0, 29, 99]), peak, 100, 0.3, start_divisor, end_divisor)
    assert rates.tolist() == [peak / start_divisor, peak, peak / start_divisor / end_divisor]
