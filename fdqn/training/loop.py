"""The training loop on the host: it repeats training iterations of all seeds and reports on the way.

Whatever recurs (warm-up, target copies, evaluation, reports) depends on the number of the training iteration alone,
which all seeds share, so the host decides it. `Cadence` holds when things are due, `Clock` where the time went.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fdqn import check, tree
from fdqn.training import iteration, metrics
from fdqn.training.draws import bits_per_cycle, noise
from fdqn.training.metrics import MetricsSnapshot
from fdqn.training.state import Functions, Noise, Program, TrainState, check_program

# Random integers and training iterations drawn at once: enough to amortise the fixed cost of a draw, and small beside
# the state.
WORDS_PER_DRAW = 2**19
# More on CUDA, so that a captured graph spans many iterations even with a thousand seeds; 134 MB.
WORDS_PER_DRAW_ON_CUDA = 2**24
CYCLES_PER_DRAW = 1024

# Most training iterations per call of a step function; a run can be stopped between calls. WORK_PER_CALL bounds the
# environment steps plus updates of one call, which has at least one iteration.
CYCLES_PER_CALL = 64
WORK_PER_CALL = 128


class Report(NamedTuple):
    """Progress of all seeds. Arrays are [S]; means are over the time since the last report."""

    step: int
    """Environment steps per seed."""
    updates: NDArray[np.int64]
    """Updates since the start; a seed that has failed makes no more."""
    episodes: NDArray[np.int64]
    """Episodes ended since the start."""
    returns: NDArray[np.float64]
    """Mean return of the episodes that ended since the last report, with exploration; NaN where none did."""
    last_returns: NDArray[np.float32]
    """[S, R], returns of the last R = max(100, E) episodes in no order, NaN where fewer have ended."""
    loss: NDArray[np.float64]
    """Mean loss; it, `q` and `grad_norm` are NaN where no update was made."""
    q: NDArray[np.float64]
    """Mean value of the actions in the batches."""
    grad_norm: NDArray[np.float64]
    """Mean gradient norm before clipping."""
    epsilon: NDArray[np.float64]
    failed: NDArray[np.int64]
    """Training iteration of the first update that was not finite, from which on the seed's learner stays as it was; -1
    for none."""
    cause: NDArray[np.int64]
    """Index in CAUSES of what was not finite."""
    evaluation: NDArray[np.float64] | None
    """[S, episodes], greedy returns, where an evaluation was due."""
    state: TrainState
    """The state of all seeds; under donation every report holds the same tensors."""
    planned: bool
    """False for a report that was made only because the run was stopped, or had no steps left."""
    since: MetricsSnapshot
    """Start of the next report's means: this report or, if it was not planned, the one before, so that a resumed run
    continues as if undisturbed."""
    compile_seconds: float
    """Seconds so far in iterations that called a step function for the first time."""
    learning_seconds: float
    """Seconds so far in all other iterations with updates, without evaluation and reports."""
    learning_updates: int
    """Updates per seed in those seconds."""
    first_update: float | None
    """`time.perf_counter()` at the end of the first update."""


class Stopped(KeyboardInterrupt):
    """Raised in a step function that is being compiled, to stop the run there: the state is unchanged."""


class Cadence(NamedTuple):
    """When something is due, in training iterations; functions of the iteration number alone."""

    env_steps: int
    """Environment steps of a seed in one iteration."""
    last: int
    """Iterations of the whole run."""
    warm: int
    """First iteration with updates."""
    period: int
    """Iterations between hard target copies; 0 for none."""
    report_every: int
    """In environment steps, as is `evaluate_every`."""
    evaluate_every: int

    def next_due(self, number: int) -> int:
        """The first iteration after `number` with something due behind it."""
        dues = [self.last]
        dues += [_next_multiple(number, self.env_steps, x) for x in (self.report_every, self.evaluate_every) if x]
        if number < self.warm:
            return min(*dues, self.warm)
        return min([*dues, number + self.period - (number - self.warm) % self.period] if self.period else dues)

    def collects_only(self, number: int) -> bool:
        """Return True before the first update."""
        return number < self.warm

    def syncs(self, number: int) -> bool:
        """Return True if a hard target copy follows iteration `number`."""
        return number > self.warm and self.period > 0 and (number - self.warm) % self.period == 0

    def reports(self, number: int, cycles: int) -> bool:
        """Return True if a report or an evaluation follows the last `cycles` of `number` iterations."""
        return self.evaluates(number, cycles) or self._is_due(number, cycles, self.report_every)

    def evaluates(self, number: int, cycles: int) -> bool:
        """Return True if an evaluation follows the last `cycles` of `number` iterations."""
        return self._is_due(number, cycles, self.evaluate_every)

    def _is_due(self, number: int, cycles: int, every: int) -> bool:
        """Return True if those iterations ended the run or passed a multiple of `every` environment steps."""
        return every > 0 and (number == self.last or number >= _next_multiple(number - cycles, self.env_steps, every))


def _next_multiple(number: int, env_steps: int, every: int) -> int:
    """The first iteration after `number` behind which a seed has passed another multiple of `every` steps."""
    return math.ceil((number * env_steps // every + 1) * every / env_steps)


def cadence(program: Program, state: TrainState, steps: int, report_every: int, evaluate_every: int = 0) -> Cadence:
    """The cadence of a run of `steps` environment steps per seed, from `state` on."""
    config = program.config
    return Cadence(
        env_steps=config.env_steps,
        last=math.ceil(steps / config.env_steps),
        warm=int(state.emptied.max()) + config.warmup_steps // config.env_steps,
        period=config.target_period // config.updates_per_cycle,
        report_every=report_every,
        evaluate_every=evaluate_every,
    )


class Clock(NamedTuple):
    """Where the time of a run went; see `Report`."""

    compile_seconds: float = 0.0
    learning_seconds: float = 0.0
    learning_updates: int = 0
    first_update: float | None = None

    def after(self, began: float, now: float, compiled: bool, updates: int) -> "Clock":
        """The clock after a call of step functions with that many updates per seed, compiled or not."""
        clock = self
        if compiled:
            clock = clock._replace(compile_seconds=self.compile_seconds + now - began)
        elif updates:
            clock = clock._replace(
                learning_seconds=self.learning_seconds + now - began,
                learning_updates=self.learning_updates + updates,
            )
        return clock._replace(first_update=now) if updates and self.first_update is None else clock


@torch.no_grad()
def run(
    program: Program,
    state: TrainState,
    steps: int,
    functions: Functions,
    report_every: int,
    evaluate: Callable[[TrainState], NDArray[np.float64]] | None = None,
    evaluate_every: int = 0,
    stop: Callable[[], bool] = bool,
    since: MetricsSnapshot | None = None,
    at_once: int | None = None,
) -> Iterator[Report]:
    """Train all seeds until each has taken `steps` environment steps; yield reports on the way and at the end.

    Nothing happens before the first report is asked for. Then whatever one training iteration raises on fake tensors is
    raised before anything runs. A run that was stopped continues from the `state` and `since` of its last report; one
    with no steps left only reports.

    Args:
        program: fixed part of the run.
        state: all seeds, leaves [S, ...]. It belongs to the run from here on: donated functions write over it.
        steps: environment steps per seed; it and all cadences are rounded up to whole training iterations.
        functions: step functions, compiled or not.
        report_every: environment steps per seed between reports.
        evaluate: `evaluate(state) -> returns [S, episodes]`.
        evaluate_every: environment steps per seed between evaluations; 0 for none.
        stop: asked between calls of step functions; True ends the run early, with a report. So does `Stopped`, raised
            while a step function is compiled.
        since: start of the first report's means; by default `state`.
        at_once: most training iterations per call of a step function; by default CYCLES_PER_CALL or fewer.
    """
    check_program(program)
    check.kind("state", state, TrainState)
    check.shapes("state.key[S 2]", state.key)
    check.kind("functions", functions, Functions)
    for name, value in (("steps", steps), ("report_every", report_every)):
        check.count(name, value, 1)
    check.count("evaluate_every", evaluate_every)
    if evaluate is not None:
        check.function("evaluate", evaluate)
    due = cadence(program, state, steps, report_every, evaluate_every if evaluate is not None else 0)
    number, most = int(state.cycle.max()), at_once or _most_per_call(program)
    draws = _Draws(program, state, functions, number)
    iteration.check_cycle(program, state, draws.noises)

    called: set[str] = set()
    clock, counted, reported = Clock(), since or metrics.snapshot(program, state), -1

    def report(evaluation: NDArray[np.float64] | None, planned: bool) -> Report:
        nonlocal counted, reported
        before, now, reported = counted, metrics.snapshot(program, state), number
        counted = now if planned else before
        return _report(number * due.env_steps, before, now, counted, evaluation, state, planned, clock)

    if number >= due.last:
        yield report(None, planned=False)
    while number < due.last:
        began, before = time.perf_counter(), number
        step_function = functions.collect if due.collects_only(number) else functions.cycle
        calls = {"collect" if due.collects_only(number) else "cycle"} | ({"noise"} if draws.used_up(number) else set())
        try:
            # One iteration where there is something to compile.
            end = min(due.next_due(number), draws.end(number), number + (most if calls <= called else 1))
            state = step_function(state, draws.take(number, end))
            number = end
        except Stopped:
            if number > reported:
                yield report(None, planned=False)
            return
        if due.syncs(number):
            calls.add("sync")
            state = functions.sync(state)

        stopping, compiled = stop(), not calls <= called
        planned = due.reports(number, number - before)
        updates = (number - before) * program.config.updates_per_cycle if "cycle" in calls else 0
        if planned or stopping or compiled or (updates and clock.first_update is None):
            _wait(state)  # a GPU returns before it is done
        clock = clock.after(began, time.perf_counter(), compiled, updates)
        called |= calls
        if planned or stopping:
            evaluating = evaluate is not None and due.evaluates(number, number - before)
            yield report(evaluate(state) if evaluating and evaluate is not None else None, planned)
        if stopping:
            return


class _Draws:
    """The noise of a run, drawn for many training iterations at once."""

    def __init__(self, program: Program, state: TrainState, functions: Functions, number: int) -> None:
        self._draw, self._keys, self._start = functions.noise, state.key, number
        self._ahead = _cycles_per_draw(program, state.key)
        # The first is drawn without `functions.noise`, so that one step function compiles beside another and `noise`.
        self._first, self._drawn = number, number + 1
        self.noises = noise(program, state.key, number, 1)

    def used_up(self, number: int) -> bool:
        """Return True if the noise of iteration `number` is still to be drawn."""
        return number == self._drawn

    def end(self, number: int) -> int:
        """The iteration before which the draw that holds `number` ends."""
        return self._next_first(number) + self._ahead if self.used_up(number) else self._drawn

    def take(self, number: int, end: int) -> Noise:
        """The noise of iterations `number` to `end`, the latter not included."""
        if self.used_up(number):
            self._first = self._next_first(number)
            self.noises = self._draw(self._keys, self._first, self._ahead)
            self._drawn = self._first + self._ahead
        return tree.index(self.noises, slice(number - self._first, end - self._first))

    def _next_first(self, number: int) -> int:
        return self._start + (number - self._start) // self._ahead * self._ahead


def _most_per_call(program: Program) -> int:
    config = program.config
    return min(CYCLES_PER_CALL, max(1, WORK_PER_CALL // (config.steps_per_cycle + config.updates_per_cycle)))


def _cycles_per_draw(program: Program, keys: Tensor) -> int:
    """Training iterations whose noise is drawn at once, for keys [S, 2]."""
    words = WORDS_PER_DRAW if keys.device.type == "cpu" else WORDS_PER_DRAW_ON_CUDA
    ahead = max(1, min(CYCLES_PER_DRAW, words // (bits_per_cycle(program) * keys.shape[0])))
    period = program.config.target_period // program.config.updates_per_cycle
    # Whole periods, so that there are few different lengths.
    return ahead - ahead % period if period and ahead > period else ahead


def _wait(state: TrainState) -> None:
    if state.cycle.is_cuda:
        torch.cuda.synchronize(state.cycle.device)


def _report(
    step: int,
    before: MetricsSnapshot,
    now: MetricsSnapshot,
    since: MetricsSnapshot,
    evaluation: NDArray[np.float64] | None,
    state: TrainState,
    planned: bool,
    clock: Clock,
) -> Report:
    updates = now.updates - before.updates
    return Report(
        step=step,
        updates=now.updates,
        episodes=now.episodes,
        returns=_means(now.returned - before.returned, now.episodes - before.episodes),
        last_returns=now.last_returns,
        loss=_means(now.loss - before.loss, updates),
        q=_means(now.q - before.q, updates),
        grad_norm=_means(now.grad_norm - before.grad_norm, updates),
        epsilon=now.epsilon,
        failed=now.failed,
        cause=now.cause,
        evaluation=evaluation,
        state=state,
        planned=planned,
        since=since,
        **clock._asdict(),
    )


def _means(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """`sums / counts`, NaN where nothing was counted."""
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
