"""Training loop on the host: repeat training iterations of all seeds and yield reports.

The end of warm-up, target copies, evaluations and reports depend only on the number of the training iteration, which is
the same for all seeds, so the host schedules them. `Cadence` computes when they are due; `Clock` measures time.
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

# Random integers and training iterations drawn at once: enough to amortize the fixed cost of a draw, and small compared
# to the state.
BITS_PER_DRAW = 2**19
# More on CUDA, so that a captured graph spans many iterations even with a thousand seeds; 134 MB.
BITS_PER_DRAW_ON_CUDA = 2**24
CYCLES_PER_DRAW = 1024

# Most training iterations per call of a step function; a run can be stopped between calls. WORK_PER_CALL bounds the
# environment steps plus updates of one call, which has at least one iteration.
CYCLES_PER_CALL = 64
WORK_PER_CALL = 128


class Report(NamedTuple):
    """Progress of all seeds. Arrays are [S]; means are taken since the last report."""

    step: int
    """Environment steps per seed."""
    updates: NDArray[np.int64]
    """Updates since the start; a failed seed makes no more."""
    episodes: NDArray[np.int64]
    """Episodes ended since the start."""
    returns: NDArray[np.float64]
    """Mean return, with exploration, of the episodes that ended since the last report; NaN if none did."""
    lengths: NDArray[np.float64]
    """Mean length of these episodes in environment steps."""
    last_returns: NDArray[np.float32]
    """[S, R], returns of the last R = max(100, E) episodes, unordered; NaN if fewer have ended."""
    loss: NDArray[np.float64]
    """Mean loss; NaN if no update was made, as are `q` and `grad_norm`."""
    q: NDArray[np.float64]
    """Mean Q-value of the actions in the batches."""
    grad_norm: NDArray[np.float64]
    """Mean gradient norm before clipping."""
    epsilon: NDArray[np.float64]
    failed: NDArray[np.int64]
    """Training iteration in which the seed failed; -1 for none."""
    cause: NDArray[np.int64]
    """Index of the cause of the failure in CAUSES."""
    evaluation: NDArray[np.float64] | None
    """[S, episodes], greedy returns; None if no evaluation was due."""
    state: TrainState
    """State of all seeds. With donation, all reports hold the same tensors, which the run overwrites."""
    planned: bool
    """False if the report was made only because the run was stopped or had no steps left."""
    since: MetricsSnapshot
    """Start of the means of the next report: this report or, if it was not planned, the previous one, so that a resumed
    run yields the same reports as an uninterrupted one."""
    compile_seconds: float
    """Total seconds of the calls that compiled a step function."""
    learning_seconds: float
    """Total seconds of all other calls with updates, without evaluation and reports."""
    learning_updates: int
    """Updates per seed in those seconds."""
    first_update: float | None
    """`time.perf_counter()` at the end of the first update."""


class Stopped(KeyboardInterrupt):
    """Raised in a step function during its compilation to stop the run. The state is unchanged."""


class Cadence(NamedTuple):
    """Schedule of a run in training iterations: when target copies, reports and evaluations are due."""

    env_steps: int
    """Environment steps per seed in one iteration."""
    last: int
    """Number of iterations of the whole run."""
    warm: int
    """Number of iterations before the first one with updates."""
    period: int
    """Iterations between hard target copies; 0 for none."""
    report_every: int
    """Environment steps between reports."""
    evaluate_every: int
    """Environment steps between evaluations; 0 for none."""

    def next_due(self, number: int) -> int:
        """Return the first iteration count after `number` at which something is due or the run ends."""
        dues = [self.last]
        dues += [_next_multiple(number, self.env_steps, x) for x in (self.report_every, self.evaluate_every) if x]
        if number < self.warm:
            return min(*dues, self.warm)
        return min([*dues, number + self.period - (number - self.warm) % self.period] if self.period else dues)

    def collects_only(self, number: int) -> bool:
        """Return True if the next iteration makes no updates yet."""
        return number < self.warm

    def syncs(self, number: int) -> bool:
        """Return True if a hard target copy follows iteration `number`."""
        return number > self.warm and self.period > 0 and (number - self.warm) % self.period == 0

    def reports(self, number: int, cycles: int) -> bool:
        """Return True if a report or an evaluation is due after `number` iterations, the last `cycles` of them new."""
        return self.evaluates(number, cycles) or self._is_due(number, cycles, self.report_every)

    def evaluates(self, number: int, cycles: int) -> bool:
        """Return True if an evaluation is due after `number` iterations, the last `cycles` of them new."""
        return self._is_due(number, cycles, self.evaluate_every)

    def _is_due(self, number: int, cycles: int, every: int) -> bool:
        """Return True if the new iterations ended the run or reached a multiple of `every` environment steps."""
        return every > 0 and (number == self.last or number >= _next_multiple(number - cycles, self.env_steps, every))


def _next_multiple(number: int, env_steps: int, every: int) -> int:
    """Return the first iteration count after `number` at which a seed has passed another multiple of `every` steps."""
    return math.ceil((number * env_steps // every + 1) * every / env_steps)


def cadence(program: Program, state: TrainState, steps: int, report_every: int, evaluate_every: int = 0) -> Cadence:
    """Make the cadence of a run from `state` until each seed has taken `steps` environment steps."""
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
    """Time measurements of a run; see the fields of `Report`."""

    compile_seconds: float = 0.0
    learning_seconds: float = 0.0
    learning_updates: int = 0
    first_update: float | None = None

    def after(self, started: float, now: float, compiled: bool, updates: int) -> "Clock":
        """Return the clock after a call of step functions.

        Args:
            started, now: `time.perf_counter()` before and after the call.
            compiled: True if the call compiled a step function.
            updates: updates per seed in the call.
        """
        clock = self
        if compiled:
            clock = clock._replace(compile_seconds=self.compile_seconds + now - started)
        elif updates:
            clock = clock._replace(
                learning_seconds=self.learning_seconds + now - started,
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
    between: Callable[[TrainState, int], TrainState] | None = None,
) -> Iterator[Report]:
    """Train all seeds until each has taken `steps` environment steps; yield reports along the way and at the end.

    This is a generator: nothing runs before the first report is requested. One iteration is then run on fake tensors,
    so that its errors are raised before training starts. To continue a stopped run, pass the `state` and `since` of its
    last report. A run with no steps left only yields a report.

    Args:
        program: environment and algorithm.
        state: state of all seeds, leaves [S, ...]. The run owns it: functions with donation overwrite it.
        steps: environment steps per seed, rounded up to whole training iterations, as are the other numbers of steps.
        functions: step functions, compiled or eager.
        report_every: environment steps per seed between reports.
        evaluate: `evaluate(state) -> returns [S, episodes]`; None for no evaluations.
        evaluate_every: environment steps per seed between evaluations; 0 for none.
        stop: called between calls of step functions. If it returns True, the run ends early with a report. A step
            function that raises `Stopped` during its compilation ends the run in the same way.
        since: start of the means of the first report; by default `state`.
        at_once: maximum of training iterations per call of a step function; by default at most CYCLES_PER_CALL.
        between: `between(state, step) -> state` returns the state from which training goes on, at `step` environment
            steps per seed: at the start, and after each planned report but the last. A run that is resumed at a report
            calls it again, since the report holds the state before the call. It may change learners and
            hyper-parameters; the means of the next report do not count updates that a copied learner has made before.
    """
    check_program(program)
    check.kind("state", state, TrainState)
    check.shapes("state.key[S 2]", state.key)
    check.kind("functions", functions, Functions)
    for name, value in (("steps", steps), ("report_every", report_every)):
        check.count(name, value, 1)
    check.count("evaluate_every", evaluate_every)
    for name, function in (("evaluate", evaluate), ("between", between)):
        if function is not None:
            check.function(name, function)
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

    def continued(state: TrainState) -> TrainState:
        nonlocal counted
        if between is None:
            return state
        before = state.learner.updates.cpu().numpy().copy()
        state = between(state, number * due.env_steps)
        counted = counted._replace(updates=counted.updates + state.learner.updates.cpu().numpy() - before)
        return state

    if number >= due.last:
        yield report(None, planned=False)
    else:
        state = continued(state)
    while number < due.last:
        started, before = time.perf_counter(), number
        step_function = functions.collect if due.collects_only(number) else functions.cycle
        calls = {"collect" if due.collects_only(number) else "cycle"} | ({"noise"} if draws.used_up(number) else set())
        try:
            # A call that compiles a function runs a single iteration.
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
            _wait(state)  # CUDA calls return before their kernels are done
        clock = clock.after(started, time.perf_counter(), compiled, updates)
        called |= calls
        if planned or stopping:
            evaluating = evaluate is not None and due.evaluates(number, number - before)
            yield report(evaluate(state) if evaluating and evaluate is not None else None, planned)
        if stopping:
            return
        if planned and number < due.last:
            state = continued(state)


class _Draws:
    """Noise of a run, drawn for many training iterations at once."""

    def __init__(self, program: Program, state: TrainState, functions: Functions, number: int) -> None:
        self._draw, self._keys, self._start = functions.noise, state.key, number
        self._ahead = _cycles_per_draw(program, state.key)
        # The first is drawn without `functions.noise`, so that `noise` and a step function can be compiled at once.
        self._first, self._drawn = number, number + 1
        self.noises = noise(program, state.key, number, 1)

    def used_up(self, number: int) -> bool:
        """Return True if the noise of iteration `number` has not been drawn yet."""
        return number == self._drawn

    def end(self, number: int) -> int:
        """Return the end of the draw that contains iteration `number`, exclusive."""
        return self._next_first(number) + self._ahead if self.used_up(number) else self._drawn

    def take(self, number: int, end: int) -> Noise:
        """Return the noise of iterations `number` to `end`, exclusive; draw it if necessary."""
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
    """Return the number of training iterations whose noise is drawn at once, for keys [S, 2]."""
    limit = BITS_PER_DRAW if keys.device.type == "cpu" else BITS_PER_DRAW_ON_CUDA
    ahead = max(1, min(CYCLES_PER_DRAW, limit // (bits_per_cycle(program) * keys.shape[0])))
    period = program.config.target_period // program.config.updates_per_cycle
    # Whole periods, so that calls have few different lengths.
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
    updates, episodes = now.updates - before.updates, now.episodes - before.episodes
    return Report(
        step=step,
        updates=now.updates,
        episodes=now.episodes,
        returns=_means(now.returned - before.returned, episodes),
        lengths=_means(now.lengths - before.lengths, episodes),
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
    """Return `sums / counts`, NaN for counts of 0."""
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
