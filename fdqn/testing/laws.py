"""Laws of functions and components, one function for each.

Each raises AssertionError with the leaf, the index in it, the expected value and the value found. Tolerances apply to
floats; integers and booleans must always be equal.

Laws of any function: `pure, vmapped, ranked, compiled, gradients, semi_gradient`. Laws of components: `optimizer,
chained, clipped, masked, legal_only, episodes, schedule, replay_like_deque, buffer, env, time_limit`. The laws of a
whole program are in `programs`.
"""

import contextlib
import io
import math
import random as python_random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from fdqn import optim, random, tree
from fdqn.replay import packing, ring
from fdqn.testing import examples
from fdqn.testing.asserts import assert_compiles_once, assert_finite, assert_trees_close, assert_trees_equal
from fdqn.testing.leaves import copied, map_tensors
from fdqn.types import Buffer, Env, Optimizer, Params, Sample, Step, Transition

__all__ = [
    "buffer", "chained", "clipped", "compiled", "env", "episodes", "gradients", "legal_only", "masked", "optimizer",
    "pure", "ranked", "replay_like_deque", "schedule", "semi_gradient", "time_limit", "vmapped",
]  # fmt: skip

# Laws of any function


def pure(f: Callable[..., Any], *args: Any) -> Any:
    """Check that `f` is pure, and return `f(*args)`.

    Two calls must return the same bits, leave inputs and random number generators unchanged, and print nothing.
    """
    before, generators = copied(args), _generators()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        first = copied(f(*args))
        second = f(*args)
    assert_trees_equal(before, args, "inputs: ")
    assert_trees_equal(first, second, "second call: ")
    for name, a, b in zip(("torch", "numpy", "python"), generators, _generators(), strict=True):
        assert a == b, f"generator of {name}: expected it unchanged, got another state"
    printed = out.getvalue() + err.getvalue()
    assert not printed, f"printed: expected nothing, got {printed!r}"
    return first


def vmapped(
    f: Callable[..., Any],
    *args: Any,
    in_dims: int | tuple[int | None, ...] = 0,
    dtype: torch.dtype | None = torch.float64,
    atol: float = 1e-12,
) -> None:
    """Check that `vmap(f)(xs) == stack([f(x) for x in xs])`.

    Floats are cast to `dtype`; None keeps their dtypes.
    """
    args = args if dtype is None else _cast(args, dtype)
    dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
    size = next(tree.leaves(x)[0].shape[d] for x, d in zip(args, dims, strict=True) if d is not None)

    def one(i: int) -> Any:
        return f(*(x if d is None else _select(x, d, i) for x, d in zip(args, dims, strict=True)))

    expected = tree.stack(one(i) for i in range(size))
    assert_trees_close(expected, vmap(f, in_dims)(*args), atol, atol, "vmap: ")


def ranked(
    f: Callable[..., Any],
    *args: Any,
    leading: int = 1,
    dtype: torch.dtype | None = torch.float64,
    atol: float = 1e-12,
) -> None:
    """Check that `f` accepts leading axes: it must equal `vmap(f)` over the first 1 to `leading` axes of `args`.

    Floats are cast to `dtype`; None keeps their dtypes.
    """
    args = args if dtype is None else _cast(args, dtype)
    expected, g = f(*args), f
    for axes in range(1, leading + 1):
        g = vmap(g)
        assert_trees_close(g(*args), expected, atol, atol, f"{axes} of {leading} leading axes: ")


def compiled(
    f: Callable[..., Any],
    *args: Any,
    again: Sequence[tuple[Any, ...]] | None = None,
    backend: str = "aot_eager",
    transform: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    atol: float = 1e-6,
    rtol: float = 1e-5,
) -> None:
    """Check that compiled `f` equals eager `f`, as one graph (`fullgraph=True`) that is compiled exactly once.

    Args:
        f: function under test.
        args: arguments of the first call.
        again: arguments of further calls, which must not recompile; by default `args` with halved floats.
        backend: backend of `torch.compile`.
        transform: compiler to use instead of `torch.compile`, such as `fdqn.compile.compile`; its compilations are not
            counted.
        atol: absolute tolerance.
        rtol: relative tolerance.
    """
    halved = map_tensors(lambda x: x * 0.5 if x.is_floating_point() else x, args)
    calls = [args, *([halved] if again is None else again)]
    expected = [f(*call) for call in copied(calls)]
    if transform is None:
        results = assert_compiles_once(f, *copied(calls), backend=backend)
    else:
        fast = transform(f)
        results = [fast(*call) for call in copied(calls)]
    for i, (eager, result) in enumerate(zip(expected, results, strict=True)):
        assert_trees_close(eager, result, atol, rtol, f"call {i}: ")


def gradients(f: Callable[..., Tensor], *args: Any, step: float = 1e-6, atol: float = 1e-7) -> None:
    """Check the gradient of the scalar `f(*args)` with respect to its first argument, a tree of floats, in float64.

    `torch.func.grad` must equal `torch.autograd.grad` and central differences with step size `step`. Choose arguments
    away from kinks.
    """
    first, *rest = _cast(args, torch.float64)
    by_func = grad(f)(first, *rest)
    tracked = tree.map(lambda x: x.detach().clone().requires_grad_(), first)
    by_autograd = torch.autograd.grad(
        f(tracked, *rest), tree.leaves(tracked), allow_unused=True, materialize_grads=True
    )
    assert_trees_close(list(by_autograd), tree.leaves(by_func), 1e-12, 1e-12, "torch.func.grad and autograd.grad: ")

    def difference(leaf: int, place: int) -> Tensor:
        moved = [_move(first, leaf, place, by) for by in (step, -step)]
        with torch.no_grad():
            return (f(moved[0], *rest) - f(moved[1], *rest)) / (2 * step)

    for i, (path, leaf) in enumerate(zip(tree.paths(first), tree.leaves(by_func), strict=True)):
        numeric = [difference(i, j) for j in range(leaf.numel())]
        assert_trees_close(torch.stack(numeric).reshape(leaf.shape), leaf, atol, 1e-6, f"finite differences{path}")


def semi_gradient(f: Callable[..., Tensor], *args: Any, held: Sequence[int]) -> None:
    """Check that the gradient with respect to the arguments with indices `held` is exactly 0, and another one is not.

    The results are summed with different weights in [1, 2), so that gradients that cancel over a batch are detected.
    """
    assert all(0 <= i < len(args) for i in held), f"held: expected some of {list(range(len(args)))}, got {list(held)}"
    tracked = map_tensors(lambda x: x.detach().clone().requires_grad_(x.is_floating_point()), args)
    places = [(i, x) for i, arg in enumerate(tracked) for x in tree.leaves(arg) if _tracked(x)]
    result = f(*tracked)
    assert result.requires_grad, "result: expected it to depend on an argument, got no gradient at all"
    weights = 1.0 + random.uniform(random.key(0), tuple(result.shape), result.dtype).to(result.device)
    found = torch.autograd.grad(
        (weights * result).sum(), [x for _, x in places], allow_unused=True, materialize_grads=True
    )
    slopes = {
        i: max(float(g.abs().max()) for (j, _), g in zip(places, found, strict=True) if i == j) for i, _ in places
    }
    for i in held:
        assert slopes.get(i, 0.0) == 0, f"argument {i}: expected gradient 0 on the target's side, got {slopes[i]:g}"
    assert any(slopes[i] > 0 for i in set(slopes) - set(held)), (
        f"arguments other than {list(held)}: expected a gradient, got 0"
    )


# Laws of components


def optimizer(
    ours: Optimizer,
    theirs: Callable[[list[Tensor]], torch.optim.Optimizer],
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    steps: int = 60,
    atol: float = 1e-12,
    params: Params | None = None,
    single: float = 1e-6,
) -> None:
    """Check an optimizer against `torch.optim` at every step.

    Runs `steps` random non-zero gradients in float64, six gradients of which four are 0, including the first two, and
    ten gradients in float32. Updates must be pure and keep dtypes.

    Args:
        ours: optimizer under test.
        theirs: makes the `torch.optim` optimizer of a list of parameters.
        scheduler: makes the learning rate scheduler of that optimizer.
        steps: number of steps in float64.
        atol: absolute and relative tolerance in float64.
        params: initial parameters; by default `examples.params()`.
        single: absolute and relative tolerance in float32.
    """
    double = tree.cast(examples.params() if params is None else params, torch.float64)
    generator, zero = torch.Generator().manual_seed(0), tree.map(torch.zeros_like, double)
    many = [tree.map(lambda x: _nonzero(x.shape, generator), double) for _ in range(max(steps, 10))]
    scaled = [tree.map(lambda g, by=2.0 ** (i % 7 - 3): g * by, grads) for i, grads in enumerate(many[:steps])]
    _follow(ours, theirs, scheduler, double, scaled, atol, "")
    _follow(ours, theirs, scheduler, double, [zero, zero, many[0], zero, many[1], zero], atol, ", some of gradient 0")
    small, few = tree.cast(double, torch.float32), tree.cast(many[:10], torch.float32)
    _follow(ours, theirs, scheduler, small, few, single, " in float32")


def _follow(
    ours: Optimizer,
    theirs: Callable[[list[Tensor]], torch.optim.Optimizer],
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None,
    mine: Params,
    gradients: Sequence[Params],
    atol: float,
    name: str,
) -> None:
    """Check that the parameters equal those of the reference after each of `gradients`."""
    reference = {name: x.clone().requires_grad_() for name, x in mine.items()}
    oracle, state = theirs(list(reference.values())), ours.init(mine)
    clock = scheduler(oracle) if scheduler else None
    dtype = "/".join(sorted({str(x.dtype).removeprefix("torch.") for x in mine.values()}))
    for step, grads in enumerate(gradients, 1):
        for key, x in reference.items():
            x.grad = grads[key].clone()
        oracle.step()
        if clock:
            clock.step()
        careful = step in (1, len(gradients))  # `pure` is slow: only the first and the last step
        updates, after = pure(ours.update, grads, state, mine) if careful else ours.update(grads, state, mine)
        for what, a, b in (("updates", mine, updates), ("state", state, after)):
            assert_trees_equal(_dtypes(a), _dtypes(b), f"{what} of {dtype} params: ")
        mine, state = optim.apply_updates(mine, updates), after
        assert_trees_close(tree.map(Tensor.detach, reference), mine, atol, atol, f"params after step {step}{name}: ")


def chained(first: Optimizer, second: Optimizer, third: Optimizer, steps: int = 3) -> None:
    """Check that `chain` is associative: `(first, second), third` equals `first, (second, third)`, bit for bit."""
    left = optim.chain(a=optim.chain(a=first, b=second), b=third)
    right = optim.chain(a=first, b=optim.chain(a=second, b=third))
    params, generator = tree.cast(examples.params(), torch.float64), torch.Generator().manual_seed(0)
    states = [left.init(params), right.init(params)]
    for step in range(steps):
        grads = {name: _nonzero(x.shape, generator) for name, x in params.items()}
        (a, states[0]), (b, states[1]) = left.update(grads, states[0], params), right.update(grads, states[1], params)
        assert_trees_equal(a, b, f"updates of step {step + 1}: ")


def clipped(clip: Callable[[float], Optimizer], max_norm: float = 1.5, atol: float = 1e-12) -> None:
    """Check gradient clipping by global norm.

    The norm must be at most `max_norm`, the direction must be kept, smaller gradients must be unchanged, and the result
    must equal that of `torch.nn.utils.clip_grad_norm_`.
    """
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 0.1, 1.0, 10.0, 1e6):
        grads = {name: scale * _nonzero(x.shape, generator) for name, x in examples.params().items()}
        result, _ = clip(max_norm).update(grads, clip(max_norm).init(grads), grads)
        norm, after = float(tree.norm(grads)), float(tree.norm(result))
        assert after <= max_norm * (1 + 1e-12), f"norm: expected at most {max_norm}, got {after}"
        if norm < max_norm * (1 - 1e-5):
            assert_trees_close(grads, result, 0.0, name=f"gradients of norm {norm:g}: ")
        direction = tree.map(lambda g, by=after / norm: g * by, grads)
        assert_trees_close(direction, result, 0.0, 1e-10, f"direction at norm {norm:g}: ")
        reference = {name: torch.zeros_like(g).requires_grad_() for name, g in grads.items()}
        for name, x in reference.items():
            x.grad = grads[name].clone()
        torch.nn.utils.clip_grad_norm_(reference.values(), max_norm)
        assert_trees_close({n: x.grad for n, x in reference.items()}, result, atol, atol, "clip_grad_norm_: ")


def masked(f: Callable[[Tensor, Tensor], Any], q: Tensor, legal: Tensor) -> None:
    """Check that `f(q, legal)` and its gradient do not depend on the values of illegal actions, bit for bit.

    Illegal values are replaced by large numbers, infinities and NaN. Shapes: q and legal [..., A].
    """
    expected, slope = f(q, legal), _slope(f, q, legal)
    assert_trees_equal(torch.zeros_like(q), torch.where(legal, 0.0, slope), "gradient of illegal values: ")
    for poison in (1e30, -1e30, torch.inf, -torch.inf, torch.nan):
        poisoned = torch.where(legal, q, poison)
        assert_trees_equal(expected, f(poisoned, legal), f"illegal values {poison}: ")
        assert_trees_equal(slope, _slope(f, poisoned, legal), f"gradient with illegal values {poison}: ")


def legal_only(policy: Callable[[Tensor, Tensor], Tensor], q: Tensor, legal: Tensor) -> None:
    """Check that `policy(q, legal)` returns integer actions that exist and, if any action is legal, are legal.

    Shapes: q and legal [..., A]; actions [...].
    """
    chosen, actions = policy(q, legal), q.shape[-1]
    assert chosen.shape == q.shape[:-1], f"actions: expected shape {list(q.shape[:-1])}, got {list(chosen.shape)}"
    whole = not (chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool)
    assert whole, f"actions: expected an integer dtype, got {chosen.dtype}"
    exists = (chosen >= 0) & (chosen < actions)
    allowed = legal.gather(-1, chosen.long().clamp(0, actions - 1).unsqueeze(-1)).squeeze(-1) | ~legal.any(-1)
    bad = (~(exists & allowed)).nonzero().tolist()
    if bad:
        at = tuple(bad[0])
        options = legal[at].nonzero().flatten().tolist()
        raise AssertionError(f"actions{bad[0]}: expected one of {options}, got {chosen[at].item()}; {len(bad)} illegal")


def episodes(
    f: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    r_t: Tensor,
    discount_t: Tensor,
    v_t: Tensor,
    ended_t: Tensor,
    atol: float = 1e-12,
) -> None:
    """Check that multi-step returns `f(r_t, discount_t, v_t, ended_t)` do not cross the end of an episode.

    Where an episode ended they must be `r_t + discount_t * v_t`: the reward alone at termination, and with the value of
    the last observation of the same episode at truncation. If the rows after an end are replaced by large numbers,
    infinities or NaN, the returns up to the end must stay equal bit for bit.

    Args:
        f: returns under test.
        r_t: rewards, [T, ...].
        discount_t: discounts, gamma included, [T, ...].
        v_t: values of the observation that each step led to, [T, ...].
        ended_t: True where the step ended its episode, bool [T, ...]; some must be True before the last row.
        atol: absolute and relative tolerance of the returns at an end.
    """
    assert ended_t[:-1].any(), "ended_t: expected an end before the last row, got none"
    returns, one_step = f(r_t, discount_t, v_t, ended_t), r_t + discount_t * v_t
    ends, at_ends = torch.where(ended_t, one_step, 0.0), torch.where(ended_t, returns, 0.0)
    assert_trees_close(ends, at_ends, atol, atol, "returns where an episode ended: ")
    step = torch.arange(len(r_t), device=r_t.device).view(-1, *[1] * (r_t.ndim - 1))
    for poison in (1e30, torch.inf, torch.nan):
        for t in range(len(r_t) - 1):
            r, discount, v = (torch.where(ended_t[t] & (step > t), poison, x) for x in (r_t, discount_t, v_t))
            kept = (step <= t) & ended_t[t]
            expected, got = (torch.where(kept, x, 0.0) for x in (returns, f(r, discount, v, ended_t)))
            assert_trees_equal(expected, got, f"rows after the end at step {t} are {poison}: ")


def schedule(
    f: Callable[[Tensor], Tensor | float],
    start: float,
    end: float,
    steps: int,
    constant_after: bool = True,
    rtol: float = 1e-6,
) -> None:
    """Check a monotone schedule: `start` at step 0, `end` from `steps` on but not earlier.

    Args:
        f: schedule, a function of an integer tensor.
        start: value at step 0.
        end: value at `steps`.
        steps: length of the schedule.
        constant_after: False skips the check of the steps after `steps`.
        rtol: relative tolerance.
    """
    values = torch.as_tensor(f(torch.arange(steps + 1))).double().expand(steps + 1)
    bound = rtol * max(abs(start), abs(end), 1e-30)
    for name, expected, got in (("step 0", start, values[0]), (f"step {steps}", end, values[-1])):
        assert abs(expected - float(got)) <= bound, f"{name}: expected {expected}, got {float(got)}"
    moves = values.diff() * math.copysign(1.0, end - start)
    assert (moves >= -bound).all(), (
        f"step {int(moves.argmin()) + 1}: expected a monotone schedule, got a step in the other direction"
    )
    if steps > 2 and start != end:
        middle = float(values[steps // 2])
        inside = min(start, end) < middle < max(start, end)
        assert inside, f"step {steps // 2}: expected between {start} and {end}, got {middle}"
    if steps > 1 and abs(start - end) > bound:
        early = int((values == values[-1]).nonzero()[0])
        assert early == steps, f"step {early}: expected {end} at step {steps} and not before, got it already"
    if constant_after:
        for after in (torch.arange(steps + 1, 2 * steps + 101), torch.tensor(10 * steps + 1001)):
            late = torch.as_tensor(f(after)).double().expand(after.shape).flatten().tolist()
            for step, value in zip(after.flatten().tolist(), late, strict=True):
                assert abs(value - end) <= bound, f"step {step}: expected {end} after the end, got {value}"


def replay_like_deque(
    operations: Sequence[int | Tensor],
    capacity: int,
    buffer: Buffer | None = None,
    obs_dtype: torch.dtype = torch.float32,
) -> None:
    """Check a uniform buffer against `deque(maxlen=capacity)` for a sequence of adds and samples. See also `buffer`.

    Every sampled row must be a stored row, with all leaves from one transition. Evenly spaced bits must sample every
    stored row once. Observations of torch.bool encode the row number in binary, so that packing can be checked.

    Args:
        operations: for each operation, the number of rows to add or random bits [B] to sample with.
        capacity: capacity of the buffer in rows.
        buffer: buffer under test; by default a ring with packing.
        obs_dtype: dtype of observations.
    """
    numbered = partial(_numbered, obs_dtype=obs_dtype)
    model: deque[int] = deque(maxlen=capacity)
    buffer = buffer or packing.wrap(ring.buffer(capacity))
    state, added = buffer.init(tree.index(numbered([0]), 0)), 0
    gamma = torch.tensor(0.9)
    for i, operation in enumerate(operations):
        if isinstance(operation, int):
            ended = torch.zeros(operation, dtype=torch.bool)
            state, _ = buffer.add(state, numbered(range(added, added + operation)), ended, None, gamma)
            model.extend(range(added, added + operation))
            added += operation
        if not model:
            continue
        size = len(model)
        every = torch.tensor([-(-row * 2**32 // size) for row in range(size)])
        stored = buffer.sample(state, every, 0).batch
        shown = sorted(stored.reward.int().tolist())
        assert shown == sorted(model), f"operation {i}, stored rows: expected {sorted(model)}, got {shown}"
        rows = stored if isinstance(operation, int) else buffer.sample(state, operation, 0).batch
        numbers = rows.reward.int().tolist()
        assert_trees_equal(numbered(numbers), rows, f"operation {i}, sampled rows: ")
        assert set(numbers) <= set(model), f"operation {i}, sampled rows: expected some of {list(model)}, got {numbers}"


def buffer(
    buffer: Buffer,
    capacity: int,
    num_envs: int = 3,
    steps: int = 1,
    stack: int = 1,
    obs_dtype: torch.dtype = torch.float32,
    alpha: float | None = None,
    beta: float = 0.0,
    rounds: int = 40,
    seed: int = 0,
    atol: float = 1e-5,
) -> None:
    """Check a buffer against a model in Python, a list of rows and their priorities.

    - `add` writes n-step transitions, as computed from their definition, with consecutive serial numbers. Invalid steps
      write no row, and no row contains steps from both sides of an end or a cut.
    - `sample` returns stored rows that are not older than `oldest`, with the probabilities of the model (a chi-squared
      test with fixed bits) and its weights. Rows of priority 0 are only sampled if there are no others.
    - `update` changes the given rows and no others.
    - `bounds` hold, and all functions are pure and equal their vmap.

    Args:
        buffer: buffer under test, made for the following arguments.
        capacity: capacity of the buffer in rows.
        num_envs: number of environments, the rows of each `add`.
        steps: steps per row.
        stack: frames per observation. Above 1, fewer rows than `capacity` may be stored.
        obs_dtype: dtype of observations.
        alpha: exponent of priorities; new rows have the largest priority so far, at least 1. None for a uniform buffer,
            whose weights are 1 and whose `update` is the identity.
        beta: exponent of the weights, `(min over the batch of P(j) / P(i))**beta`.
        rounds: number of steps of every environment.
        seed: seed of the data and of the bits.
        atol: absolute tolerance of rewards, discounts and weights.
    """
    play = _Play(num_envs, stack, obs_dtype, seed)
    state, gamma = buffer.init(tree.index(play.step()[0], 0)), torch.tensor(0.9)
    play.restart()
    rows, masses, highest = list[Transition](), list[float](), 1.0
    recent: list[list[tuple[Transition, bool]]] = [[] for _ in range(num_envs)]
    for i in range(rounds):
        batch, ended, valid = play.step()
        state, added = buffer.add(state, batch, ended, None if valid.all() else valid, gamma)
        whole = [_is_complete(recent[e], batch, ended, valid, e, steps) for e in range(num_envs)]
        assert added.valid.tolist() == whole, f"round {i}, added.valid: expected {whole}, got {added.valid.tolist()}"
        new = [_over(recent[e][-steps:], gamma) for e in range(num_envs) if whole[e]]
        if new:
            name, numbers = f"round {i}, added", list(range(len(rows), len(rows) + len(new)))
            assert added.number[added.valid].tolist() == numbers, f"{name}.number: expected {numbers}, got others"
            assert_trees_close(tree.stack(new), tree.index(added.batch, added.valid), atol, atol, f"{name}.batch: ")
        rows, masses = rows + new, masses + [highest] * len(new)
        if i % 13 == 12:
            state, recent = buffer.cut(state), [[] for _ in range(num_envs)]
            play.restart()
        size, most = int(buffer.size(state)), min(len(rows), capacity)
        assert size == most or (stack > 1 and bool(rows) <= size <= most), (
            f"round {i}, size: expected {most}, got {size}"
        )
        if not size:
            continue
        model = _Model(rows, torch.tensor(masses).double(), capacity, alpha is None, beta, atol)
        bits = random.bits(random.fold_in(random.key(seed), i), (1024,))
        drawn = model.check(buffer.sample(state, bits[:32], 0), len(rows) - size, f"round {i}, ")
        if i % 8 == 7:
            oldest = len(rows) - size // 2 - 1
            model.check_often(buffer.sample(state, bits, 0), len(rows) - size, f"round {i}, ")
            for limit in (oldest, torch.tensor(oldest)):
                model.check_often(buffer.sample(state, bits, limit), oldest, f"round {i}, oldest {oldest}: ")
        # Equal for all draws of one row, and 0 for every fourth row.
        priority = (drawn.batch.action * 3 + i).remainder(4).to(drawn.weight.dtype)
        before, state = state, buffer.update(state, drawn.indices, priority)
        if alpha is None:
            assert_trees_equal(before, state, f"round {i}, update without priorities: ")
        else:
            for number, p in zip(model.numbers(drawn.batch), priority.tolist(), strict=True):
                masses[number] = p**alpha if p else 0.0
            highest = max(highest, *(masses[number] for number in model.numbers(drawn.batch)))
        for name, (x, largest) in buffer.bounds(state, num_envs * (i + 1)).items():
            inside = bool(((x >= 0) & (x <= largest)).all())
            assert inside, f"round {i}, bounds[{name!r}]: expected numbers from 0 to {largest}, got {x}"
    batch, ended, valid = play.step()
    pure(buffer.add, state, batch, ended, valid, gamma)
    pure(buffer.update, state, drawn.indices, priority)
    pure(buffer.cut, state)
    pure(buffer.sample, state, bits[:8], 0)
    states = tree.stack([before, state])
    vmapped(lambda state, bits: buffer.sample(state, bits, 0), states, bits[:16].reshape(2, 8), dtype=None)
    vmapped(buffer.update, states, *(x.expand(2, -1) for x in (drawn.indices, priority)), dtype=None)
    vmapped(lambda state: buffer.add(state, batch, ended, valid, gamma), states, dtype=None)


def _is_complete(
    recent: list[tuple[Transition, bool]], batch: Transition, ended: Tensor, valid: Tensor, env: int, steps: int
) -> bool:
    """Append a valid step of an environment to its recent steps; return True if it completes a row of `steps` steps."""
    if valid[env]:
        recent.append((tree.index(batch, env), bool(ended[env])))
    return bool(valid[env]) and len(recent) >= steps


def _over(singles: Sequence[tuple[Transition, bool]], gamma: Tensor) -> Transition:
    """Make the n-step transition of these steps of one environment, up to the first end."""
    reward, weight = torch.zeros(()), torch.ones(())
    for last, ended in singles:
        reward, discount = reward + weight * last.reward, weight * last.discount
        if ended or discount == 0:
            break
        weight = gamma * discount
    first = singles[0][0]
    return Transition(first.obs, first.action, reward, discount, last.next_obs, last.next_legal)


class _Play:
    """Random steps of environments, with ends, invalid steps and, for `stack` above 1, stacked frames.

    Actions are consecutive numbers, which identify the steps.
    """

    def __init__(self, num_envs: int, stack: int, obs_dtype: torch.dtype, seed: int) -> None:
        self.rng, self.num_envs, self.stack, self.obs_dtype = np.random.default_rng(seed), num_envs, stack, obs_dtype
        self.count = 0
        self.restart()

    def restart(self) -> None:
        self.obs = torch.stack([self._first() for _ in range(self.num_envs)])

    def step(self) -> tuple[Transition, Tensor, Tensor]:
        """Return transitions [E, ...], `ended` [E] and `valid` [E], which is True everywhere in every other round."""
        obs = self.obs
        shown = [torch.cat([x[1:], self._frame().unsqueeze(0)]) if self.stack > 1 else self._frame() for x in obs]
        next_obs = torch.stack(shown)
        ended, terminated = self._flags(0.15), self._flags(0.5)
        valid = self._flags(0.7) | (self.count % 2 == 0)
        reward = torch.from_numpy(self.rng.normal(size=self.num_envs).astype(np.float32))
        action = self.count * self.num_envs + torch.arange(self.num_envs)
        discount = torch.where(ended & terminated, 0.0, 1.0)
        legal = torch.from_numpy(self.rng.random((self.num_envs, 3)) < 0.5)
        after = torch.stack([self._first() if end else x for end, x in zip(ended, next_obs, strict=True)])
        self.obs, self.count = tree.where(valid, after, obs), self.count + 1
        return Transition(obs, action, reward, discount, next_obs, legal), ended, valid

    def _flags(self, probability: float) -> Tensor:
        return torch.from_numpy(self.rng.random(self.num_envs) < probability)

    def _frame(self) -> Tensor:
        x = torch.from_numpy(self.rng.integers(0, 200, (3, 3)))
        return x % 2 == 1 if self.obs_dtype == torch.bool else x.to(self.obs_dtype)

    def _first(self) -> Tensor:
        frame = self._frame()
        return torch.stack([*[torch.zeros_like(frame)] * (self.stack - 1), frame]) if self.stack > 1 else frame


class _Model(NamedTuple):
    """Model of a buffer: all rows ever added, and their masses p**alpha."""

    rows: list[Transition]
    masses: Tensor
    capacity: int
    uniform: bool
    beta: float
    atol: float

    def numbers(self, batch: Transition) -> list[int]:
        """Return the serial numbers of sampled rows; -1 for a row that was never added."""
        known = {int(row.action): number for number, row in enumerate(self.rows)}
        return [known.get(action, -1) for action in batch.action.tolist()]

    def check(self, drawn: Sample, oldest: int, name: str) -> Sample:
        """Check rows, indices and weights of a sample."""
        numbers = self.numbers(drawn.batch)
        expected = range(oldest, len(self.rows))
        bad = [number for number in numbers if number not in expected]
        assert not bad, f"{name}rows: expected numbers from {oldest} to {len(self.rows) - 1}, got {bad}"
        rows = tree.stack(self.rows[number] for number in numbers)
        assert_trees_close(rows, drawn.batch, self.atol, self.atol, f"{name}rows: ")
        pairs = set(zip(numbers, drawn.indices.tolist(), strict=True))
        one = len(pairs) == len({number for number, _ in pairs}) == len({at for _, at in pairs})
        assert one, f"{name}indices: expected one for each row, got {sorted(pairs)}"
        mass = self._masses(oldest)[torch.tensor(numbers) - oldest]
        assert mass.all(), f"{name}rows: expected none of priority 0, got {int((mass == 0).sum())}"
        weight = (mass.min() / mass) ** self.beta
        assert_trees_close(weight.to(drawn.batch.reward.dtype), drawn.weight, self.atol, self.atol, f"{name}weight: ")
        return drawn

    def check_often(self, drawn: Sample, oldest: int, name: str) -> None:
        """Check the frequencies of rows by a chi-squared test, with a limit of six standard deviations."""
        numbers = torch.tensor(self.numbers(drawn.batch))
        assert (numbers >= oldest).all(), f"{name}rows: expected numbers of at least {oldest}, got {int(numbers.min())}"
        mass = self._masses(oldest)
        count, expected = torch.bincount(numbers - oldest, minlength=len(mass)), len(numbers) * mass / mass.sum()
        assert not count[mass == 0].any(), f"{name}rows: expected none of priority 0, got {int(count[mass == 0].sum())}"
        surprise = ((count - expected) ** 2 / expected)[mass > 0].sum()
        free = int((mass > 0).sum()) - 1
        limit = free + 6 * math.sqrt(2 * free) + 6
        assert surprise <= limit, (
            f"{name}frequencies: expected a chi-squared of at most {limit:.1f}, got {surprise:.1f}"
        )

    def _masses(self, oldest: int) -> Tensor:
        mass = self.masses[oldest:]
        return torch.ones_like(mass) if self.uniform or not mass.any() else mass


def env(env: Env, envs: int = 8, steps: int = 200, seed: int = 0, restarts_as_reset: bool = True) -> None:
    """Check an environment with random legal actions.

    - Shapes and dtypes never change; flags and masks are bool; observations and rewards are finite.
    - `reset` and `step` are pure and equal their vmap.
    - At `obs` some action is legal.
    - At the end of an episode, `obs` is the first observation of the next one and `next_obs` the last of the old one;
      otherwise they are equal. With `restarts_as_reset`, the new episode is that of `reset` with the same uniforms.
    - An episode is truncated at the time limit and never before.
    - Stacked observations are consistent with `spec.stack`.

    Some episode must end within `steps`. See also `time_limit`.
    """
    u = _env_noise(env, envs, seed, 0)
    state, step = pure(env.reset, u)
    _check_reset(env, envs, step)
    ranked(env.reset, u, dtype=None, atol=1e-6)
    action = _random_legal(step.legal, random.key(seed))
    pure(env.step, state, action, u)
    ranked(env.step, state, action, u, dtype=None, atol=1e-6)

    _check_stacked(env, step, None, "reset, ")
    first, shown, state_kind, step_kind = step, step.obs, _dtypes(state), _dtypes(step)
    time, moved, seen = torch.zeros(envs, dtype=torch.int64), False, list[bool]()
    for i in range(1, steps + 1):
        u = _env_noise(env, envs, seed, i)
        state, step = env.step(state, _random_legal(step.legal, random.fold_in(random.key(seed), i)), u)
        assert_trees_equal((state_kind, step_kind), (_dtypes(state), _dtypes(step)), f"step {i}, shapes and dtypes: ")
        _check_step(env, step, time + 1, f"step {i}, ")
        _check_stacked(env, step, shown, f"step {i}, ")
        shown = step.obs
        ended = step.terminated | step.truncated
        if restarts_as_reset and ended.any():
            fresh_state, fresh = env.reset(u)
            expected, got = (fresh_state, fresh.obs, fresh.legal), (state, step.obs, step.legal)
            assert_trees_equal(tree.index(expected, ended), tree.index(got, ended), f"step {i}, new episode: ")
        time = torch.where(ended, 0, time + 1)
        moved |= bool((step.next_obs != first.obs).any())
        seen += (step.next_obs == step.obs).flatten(1).all(-1)[ended].tolist()
    limit = env.spec.time_limit
    assert seen, f"end: expected an episode to end, got none in {steps} steps; pass steps= above its limit {limit}"
    assert not (moved and all(seen)), "next_obs: expected the last observation of an episode, got the first of the next"


def _check_reset(env: Env, envs: int, step: Step) -> None:
    obs = torch.zeros((envs, *env.spec.obs_shape), dtype=env.spec.obs_dtype)
    legal, flag = torch.zeros((envs, env.spec.actions), dtype=torch.bool), torch.zeros(envs, dtype=torch.bool)
    kind = Step(obs, legal, obs, legal, torch.zeros(envs, dtype=step.reward.dtype), flag, flag)
    assert_trees_equal(kind, _dtypes(step), "reset: ")
    assert step.reward.is_floating_point(), f"reset.reward: expected a floating-point dtype, got {step.reward.dtype}"
    assert_trees_equal((step.obs, step.legal), (step.next_obs, step.next_legal), "reset, next_obs and obs: ")
    assert_trees_equal(torch.zeros_like(step.reward), step.reward, "reset.reward: ")
    assert not (step.terminated | step.truncated).any(), "reset: expected nothing to have ended, got an end"
    _check_seen(step, "reset, ")


def _check_step(env: Env, step: Step, time: Tensor, name: str) -> None:
    """Check one step; `time` [E] is the number of steps of the episode, including this one."""
    late, on = time >= env.spec.time_limit, ~(step.terminated | step.truncated)
    _check_seen(step, name)
    assert bool((late <= step.truncated).all()), f"{name}truncated: expected true at the time limit, got false"
    assert bool((step.truncated <= late).all()), f"{name}truncated: expected false before the limit, got true"
    ahead = (step.next_obs[on], step.next_legal[on])
    assert_trees_equal(ahead, (step.obs[on], step.legal[on]), f"{name}inside an episode, obs and next_obs: ")


def _check_stacked(env: Env, step: Step, before: Tensor | None, name: str) -> None:
    """Check that each observation shifts the previous one by a frame and the first of an episode starts with zeros."""
    if env.spec.stack == 1:
        return
    starts = step.terminated | step.truncated | (before is None)
    if before is not None:
        assert_trees_equal(before[:, 1:], step.next_obs[:, :-1], f"{name}next_obs and obs of the previous step: ")
    first = step.obs[starts][:, :-1]
    assert_trees_equal(torch.zeros_like(first), first, f"{name}obs, frames before an episode's first: ")


def _check_seen(step: Step, name: str) -> None:
    """Check that values are finite and that some action is legal at `obs`."""
    assert_finite(step, name)
    stuck = (~step.legal.any(-1)).nonzero().tolist()
    assert not stuck, f"{name}legal{stuck[0]}: expected a legal action, got none; {len(stuck)} environments are stuck"


def time_limit(make: Callable[[int], Env], limit: int = 5, envs: int = 8, seed: int = 0) -> None:
    """Check that a time limit truncates and does not terminate.

    Up to the limit, `make(limit)` must have the rewards, observations and terminations of `make(10 * limit)`. Some
    episode must reach the limit.
    """
    pair = make(limit), make(10 * limit)
    u = _env_noise(pair[0], envs, seed, 0)
    (short, a), (long, b) = pair[0].reset(u), pair[1].reset(u)
    alive = torch.ones(envs, dtype=torch.bool)
    for i in range(1, limit + 1):
        u, action = _env_noise(pair[0], envs, seed, i), _random_legal(a.legal, random.fold_in(random.key(seed), i))
        (short, a), (long, b) = pair[0].step(short, action, u), pair[1].step(long, action, u)
        for name in ("reward", "terminated", "next_obs", "next_legal"):
            assert_trees_equal(getattr(b, name)[alive], getattr(a, name)[alive], f"step {i} of {limit}, {name}: ")
        expected = torch.full_like(a.truncated[alive], i == limit)
        assert_trees_equal(expected, a.truncated[alive], f"step {i} of {limit}, truncated: ")
        alive &= ~a.terminated
    assert alive.any(), f"truncated: expected an episode cut off at step {limit}, got none: all terminated; pass limit="


# Helpers


def _nonzero(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    return x + torch.where(x < 0, -1e-3, 1e-3)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return map_tensors(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, x)


def _select(x: Any, dim: int, i: int) -> Any:
    return tree.map(lambda leaf: leaf.select(dim, i), x)


def _tracked(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _dtypes(x: Any) -> Any:
    """Zero all numbers of a tree, so that only shapes and dtypes remain."""
    return tree.map(torch.zeros_like, x)


def _move(x: Any, leaf: int, place: int, by: float) -> Any:
    """Return the tree with `by` added to one number of one leaf."""
    leaves = tree.leaves(tree.clone(x))
    leaves[leaf].view(-1)[place] += by
    rest = iter(leaves)
    return tree.map(lambda _: next(rest), x)


def _generators() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), str(np.random.get_state()), python_random.getstate()  # noqa: NPY002


def _slope(f: Callable[[Tensor, Tensor], Any], q: Tensor, legal: Tensor) -> Tensor:
    """Return the gradient of the sum of the floats of `f` with respect to q; 0 if nothing depends on it."""
    tracked = q.detach().clone().requires_grad_()
    results = [x.sum() for x in tree.leaves(f(tracked, legal)) if _tracked(x)]
    return torch.autograd.grad(torch.stack(results).sum(), tracked)[0] if results else torch.zeros_like(q)


def _numbered(numbers: Sequence[int], obs_dtype: torch.dtype = torch.float32) -> Transition:
    """Make transitions that encode their number in every leaf."""
    n = torch.tensor(list(numbers))
    real = n.float()
    obs, next_obs = torch.stack([real, -real], -1), real[:, None, None] + 0.5
    if obs_dtype == torch.bool:  # bit counts that do not fill the last byte
        obs = (n[:, None] >> torch.arange(20, -1, -1)) % 2
        next_obs = 1 - obs[:, -15:].reshape(-1, 3, 5)
    legal = n[:, None] % 3 == 0
    return Transition(obs.to(obs_dtype), n * 3, real, (n % 2).float(), next_obs.to(obs_dtype), legal)


def _random_legal(legal: Tensor, key: Tensor) -> Tensor:
    score = random.uniform(key, tuple(legal.shape))
    return torch.where(legal, score, -1.0).argmax(-1)


def _env_noise(env: Env, envs: int, seed: int, step: int) -> Tensor:
    return random.uniform(random.fold_in(random.key(seed), step), (envs, env.spec.noise))
