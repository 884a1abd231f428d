"""The training loop: one lane's cycle as a pure function, and the host loop that repeats it for all lanes.

    cycle = learn after collect:  E environments step k times, their transitions enter replay, n updates follow

Everything up to `sync` is written for one lane and becomes many by one `vmap`. What recurs (warm-up, target copies,
evaluation, reports) depends on the cycle number alone, which all lanes share, so it is decided in host Python.
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

from fdqn import actions, check, dqn, random, replay, schedules, tree
from fdqn.types import Env, Hyper, Network, Optimizer, Params, Step

# Words and cycles drawn at once: enough that the draw's fixed cost is shared, few enough to be small beside the state.
WORDS_PER_DRAW = 2**19
# More on CUDA, so that a captured graph spans many iterations even with a thousand seeds; 134 MB.
WORDS_PER_DRAW_ON_CUDA = 2**24
CYCLES_PER_DRAW = 1024

# Most training iterations per call of a step function; a run can be stopped between calls. WORK_PER_CALL bounds the
# environment steps plus updates of one call, which has at least one iteration.
CYCLES_PER_CALL = 64
WORK_PER_CALL = 128

# Training returns are stated over this many episodes, as CleanRL does.
EPISODES_KEPT = 100


class Program(NamedTuple):
    """All that is fixed before training starts. `optimizer` makes a lane's optimizer from its hyper-parameters."""

    config: dqn.Config
    env: Env
    network: Network
    loss: dqn.Loss
    optimizer: Callable[[Hyper], Optimizer]


CAUSES = ("nothing", "loss", "gradient", "parameter", "environment")
"""What may be NaN or infinite in an update; and what may break outside of torch."""


class Metrics(NamedTuple):
    """What is counted along the way. Sums run from the start; of two moments they give the mean between."""

    running: Tensor
    """[E], the return of each environment's episode so far."""
    returns: Tensor
    """[R + 1], the returns of the last R episodes as a ring, NaN before; the last place takes what is not kept."""
    episodes: Tensor
    """[] int64, episodes ended."""
    returned: Tensor
    """[] float64, the sum of their returns."""
    totals: dqn.Diagnostics
    """Sums over all updates, [] float64 each."""
    failed: Tensor
    """[] int64, the cycle in which an update was not finite, from which on the learner stays as it was; -1 before."""
    cause: Tensor
    """[] int64, the place in CAUSES of what was not finite."""


class TrainState(NamedTuple):
    """One lane, whole: this and the program decide everything that follows."""

    learner: dqn.Learner
    replay: replay.Replay
    env_state: Any
    obs: Tensor
    legal: Tensor
    metrics: Metrics
    hyper: Hyper
    key: Tensor
    cycle: Tensor
    """[] int64, cycles done."""
    emptied: Tensor
    """[] int64, the cycle at which replay was empty: 0, or where a run goes on without its own."""


class Noise(NamedTuple):
    """All chance of one cycle."""

    act: Tensor
    """[k, E, 2] in [0, 1)."""
    env: Tensor
    """[k, E, K] in [0, 1)."""
    sample: Tensor
    """[n, B] int64 words in [0, 2**32)."""


class Functions(NamedTuple):
    """The step functions, over lanes; `vmapped` makes plain ones, `fdqn.compile.compiled` fast ones.

    `collect` and `cycle` go through all the cycles of their noise, leaves [n, S, ...], in turn.
    """

    noise: Callable[[Tensor, int, int], Noise]
    """Of keys [S, 2], the first cycle and how many."""
    collect: Callable[[TrainState, Noise], TrainState]
    cycle: Callable[[TrainState, Noise], TrainState]
    sync: Callable[[TrainState], TrainState]


class Reading(NamedTuple):
    """What the lanes say at one moment, [S] each, on the host."""

    episodes: NDArray[np.int64]
    updates: NDArray[np.int64]
    returned: NDArray[np.float64]
    loss: NDArray[np.float64]
    q: NDArray[np.float64]
    grad_norm: NDArray[np.float64]
    epsilon: NDArray[np.float64]
    failed: NDArray[np.int64]
    cause: NDArray[np.int64]
    last_returns: NDArray[np.float32]
    """[S, R], the ring without its spare place."""


class Report(NamedTuple):
    """The lanes at a moment of the run. Arrays are [S]; means are over what came since the last report."""

    step: int
    """Environment steps a lane."""
    updates: NDArray[np.int64]
    """Updates since the start; a lane that has failed makes no more."""
    episodes: NDArray[np.int64]
    """Episodes ended since the start."""
    returns: NDArray[np.float64]
    """Mean return of the episodes that ended since the last report, exploration on; NaN where none did."""
    last_returns: NDArray[np.float32]
    """[S, R], returns of the last R = max(100, E) episodes in no order, NaN where fewer have ended."""
    loss: NDArray[np.float64]
    """Mean loss; it, `q` and `grad_norm` are NaN where no update was made."""
    q: NDArray[np.float64]
    """Mean value of the actions in the batches."""
    grad_norm: NDArray[np.float64]
    """Mean norm before clipping."""
    epsilon: NDArray[np.float64]
    failed: NDArray[np.int64]
    """The cycle in which an update was not finite, from which on the lane's learner stays as it was; -1 for none."""
    cause: NDArray[np.int64]
    """The place in CAUSES of what was not finite."""
    evaluation: NDArray[np.float64] | None
    """[S, episodes], greedy returns, where an evaluation was due."""
    state: TrainState
    """The lanes themselves; under donation every report holds the same tensors."""
    planned: bool
    """Whether it was due; another was made because the run was stopped, or had all of its steps behind it."""
    since: Reading
    """What the next report's means are counted from: this report, or, where it was not planned, the one before, so that
    a resumed run goes on as if undisturbed."""
    compile_seconds: float
    """Host seconds, so far, in cycles that called a step function for the first time."""
    learning_seconds: float
    """Host seconds, so far, in the other cycles that learned, evaluation and reports left out."""
    learning_updates: int
    """Updates a lane in those seconds."""
    first_update: float | None
    """`time.perf_counter()` at the end of the first update."""


class Stopped(KeyboardInterrupt):
    """Raised in a step function that is being compiled, for `run` to stop there: the state is as it was."""


def init(program: Program, hyper: Hyper, keys: Tensor) -> TrainState:
    """The lanes [S] of `keys` [S, 2], before their first step, on the keys' device.

    Raises ValueError or TypeError where hyper, network and environment do not fit each other, before replay is made.
    """
    _check_program(program)
    check.kind("hyper", hyper, Hyper)
    check.shapes(f"keys[S 2] {' '.join(f'{name}[S]' for name in Hyper._fields)}", keys, *hyper)
    check.integer("keys", keys)
    config, spec = program.config, program.env.spec
    u = random.uniform(random.fold_in(keys, random.RESET), (config.num_envs, spec.noise))
    env_state, step = vmap(program.env.reset)(u)
    for name, x in (("obs", step.obs), ("next_obs", step.next_obs)):
        check.shapes(f"env.reset.{name}[S E {' '.join(map(str, spec.obs_shape))}]", x)
        if x.dtype != spec.obs_dtype:
            raise TypeError(f"env.reset.{name}: expected spec.obs_dtype = {spec.obs_dtype}, got {x.dtype}")
    check.shapes(f"env.reset.legal[S E {spec.actions}]", step.legal)
    params = program.network.init(random.fold_in(keys, random.NETWORK))
    q = vmap(program.network.apply)(params, step.obs)
    check.shapes(f"network.apply[S E {spec.actions}]", q)
    lanes = vmap(partial(_init_lane, program))(params, hyper, keys, env_state, step)
    # A run writes over its state, so no leaf may be the caller's or, as vmap answers constants, a view of another.
    return tree.separate(lanes, (params, hyper, keys))


def noise(program: Program, keys: Tensor, first_cycle: int, cycles: int) -> Noise:
    """The noise of `cycles` cycles from `first_cycle` on, leaves [cycles, S, ...], for keys [S, 2].

    A cycle's numbers follow from its lane's key and its own number, however many are drawn at once.
    """
    return draw(program, cycle_keys(keys, first_cycle, cycles))


def cycle_keys(keys: Tensor, first_cycle: int, cycles: int) -> Tensor:
    """The keys [cycles, S, 2] of `cycles` cycles from `first_cycle` on, for the lanes' keys [S, 2]."""
    return _numbered(keys, cycle_numbers(keys, first_cycle, cycles))


def cycle_numbers(keys: Tensor, first_cycle: int, cycles: int) -> Tensor:
    """The numbers [cycles] of `cycles` cycles from `first_cycle` on, on the device of the lanes' keys [S, 2]."""
    check.shapes("keys[S 2]", keys)
    check.count("first_cycle", first_cycle)
    check.count("cycles", cycles, 1)
    return first_cycle + torch.arange(cycles, device=keys.device)


def draw_numbered(program: Program, keys: Tensor, numbers: Tensor) -> Noise:
    """The noise of the cycles `numbers` [cycles], for the lanes' keys [S, 2]: `noise` without numbers of Python."""
    return draw(program, _numbered(keys, numbers))


def _numbered(keys: Tensor, numbers: Tensor) -> Tensor:
    return random.fold_in(random.fold_in(keys, random.CYCLES), numbers.unsqueeze(-1))


def draw(program: Program, cycle_keys: Tensor) -> Noise:
    """The noise of the cycles of `cycle_keys` [..., 2]."""
    config, spec = program.config, program.env.spec
    shapes = Noise(
        act=(config.steps_per_cycle, config.num_envs, 2),  # type: ignore[arg-type]
        env=(config.steps_per_cycle, config.num_envs, spec.noise),  # type: ignore[arg-type]
        sample=(config.updates_per_cycle, config.batch_size),  # type: ignore[arg-type]
    )
    words = random.bits(cycle_keys, (_words(program),)).split([math.prod(shape) for shape in shapes], -1)
    act, env, sample = (w.reshape(*w.shape[:-1], *shape) for w, shape in zip(words, shapes, strict=True))
    # Contiguous, so that the words behind it need not be kept and strides do not depend on who computed it.
    return Noise(random.unit(act), random.unit(env), sample.contiguous())


class Interaction(NamedTuple):
    """The random numbers of one step of every environment, and which step of its cycle it is."""

    act: Tensor
    """[E, 2] in [0, 1)."""
    env: Tensor
    """[E, K] in [0, 1)."""
    number: Tensor | int
    """[] int64, from 0 to k - 1."""


def interactions(noise: Noise) -> Interaction:
    """The k steps of one cycle, leaves [S, k, ...] of noise as leaves [k, S, ...]."""
    check.kind("noise", noise, Noise)
    check.shapes("noise.act[S k E 2] noise.env[S k E K]", noise.act, noise.env)
    act, env = noise.act.transpose(0, 1).contiguous(), noise.env.transpose(0, 1).contiguous()
    steps, lanes = act.shape[:2]
    return Interaction(act, env, torch.arange(steps, device=act.device).unsqueeze(-1).repeat(1, lanes))


def collect(program: Program, state: TrainState, noise: Noise) -> TrainState:
    """Act k times in every environment and remember what came of it."""
    check.kind("state", state, TrainState)
    shape = f"{program.config.steps_per_cycle} {program.config.num_envs}"
    check.shapes(f"noise.act[{shape} 2] noise.env[{shape} {program.env.spec.noise}]", noise.act, noise.env)
    for i in range(program.config.steps_per_cycle):
        state = interact(program, state, Interaction(noise.act[i], noise.env[i], i))
    return state._replace(cycle=state.cycle + 1)


def interact(program: Program, state: TrainState, noise: Interaction) -> TrainState:
    """Act once in every environment and add the transitions to replay."""
    check.kind("state", state, TrainState)
    envs = program.config.num_envs
    check.shapes(f"noise.act[{envs} 2] noise.env[{envs} {program.env.spec.noise}]", noise.act, noise.env)
    taken = state.cycle * program.config.env_steps + noise.number * program.config.num_envs
    explored = epsilon(state.hyper, taken, random_steps(program, state))
    action = dqn.act(program.network.apply, state.learner.params, state.obs, state.legal, explored, noise.act)
    env_state, step = program.env.step(state.env_state, action, noise.env)
    return state._replace(
        replay=remember(program, state, action, step),
        env_state=env_state,
        obs=step.obs,
        legal=step.legal,
        metrics=count_episodes(state.metrics, step),
    )


def remember(
    program: Program,
    state: TrainState,
    action: Tensor,
    step: Step,
    valid: Tensor | None = None,
    life_lost: Tensor | None = None,
) -> replay.Replay:
    """The lane's replay after `action` [E] and the environments' answer, as the configuration says to learn from it."""
    ended = step.terminated | step.truncated
    if program.config.terminal_on_life_loss and life_lost is not None:
        step = step._replace(terminated=step.terminated | life_lost)
    if program.config.clip_rewards:
        step = step._replace(reward=step.reward.clamp(-1.0, 1.0))
    batch = replay.transition(state.obs, action, step)
    return replay.remember(state.replay, batch, ended, state.hyper.gamma, valid)


def learn(program: Program, state: TrainState, noise: Noise) -> TrainState:
    """Update n times from replay, moving the target along where copies are soft.

    An update whose loss, gradient or result is not finite, and every one after it, is left out: the learner stays as it
    was.
    """
    check.kind("state", state, TrainState)
    check.shapes(f"noise.sample[{program.config.updates_per_cycle} {program.config.batch_size}]", noise.sample)
    for i in range(program.config.updates_per_cycle):
        state = update(program, state, noise.sample[i])
    return state


def update(program: Program, state: TrainState, words: Tensor) -> TrainState:
    """Update once, from the rows of replay that `words` [B] choose. `learn` is several of these."""
    check.kind("state", state, TrainState)
    check.shapes(f"words[{program.config.batch_size}]", words)
    batch = replay.sample(state.replay, words)
    updated, diagnostics = dqn.learn(program.loss, program.optimizer(state.hyper), state.learner, batch, state.hyper)
    if program.config.target_period == 0:
        updated = dqn.soft_copy(updated, state.hyper.tau)
    # The largest, which may be NaN: a compiler vectorises it, and not whether all are finite.
    sound = torch.stack([x.abs().amax() for x in updated.params.values()]).amax() < torch.inf
    metrics = count_update(state.metrics, diagnostics, sound, state.cycle)
    # What did not change need not be chosen: that would write it anew.
    alive = metrics.failed < 0
    learner = tree.map(lambda new, old: new if new is old else torch.where(alive, new, old), updated, state.learner)
    return state._replace(learner=learner, metrics=metrics)


def cycle(program: Program, state: TrainState, noise: Noise) -> TrainState:
    """`learn` after `collect`."""
    return learn(program, collect(program, state, noise), noise)


def sync(state: TrainState) -> TrainState:
    """The hard target copy."""
    check.kind("state", state, TrainState)
    return state._replace(learner=dqn.hard_copy(state.learner))


def epsilon(hyper: Hyper, steps: Tensor, random_steps: int | Tensor = 0) -> Tensor:
    """The fraction of random actions after `steps` environment steps of a lane: 1 in the first `random_steps`, after
    which it is annealed. Shapes: all [...].

        1                                                                   before random_steps
        linear(steps - random_steps, epsilon_start, epsilon_end, epsilon_steps)      from then on
    """
    if isinstance(random_steps, int) and random_steps == 0:
        value = schedules.linear(steps, hyper.epsilon_start, hyper.epsilon_end, hyper.epsilon_steps)
    else:
        since = torch.clamp(steps - random_steps, min=0)
        value = schedules.linear(since, hyper.epsilon_start, hyper.epsilon_end, hyper.epsilon_steps)
        value = torch.where(steps < random_steps, 1.0, value)
    return value.to(hyper.epsilon_start.dtype)


def random_steps(program: Program, state: TrainState) -> int | Tensor:
    """Environment steps of a lane in which all actions are uniformly random. Shapes: as those of `state.cycle`.

    A run that is resumed without its replay before it has learned starts to learn later, and acts at random until then.
    """
    config = program.config
    if not config.random_warmup:
        return 0
    return config.warmup_steps + torch.where(state.learner.updates == 0, state.emptied * config.env_steps, 0)


def count_episodes(metrics: Metrics, step: Step) -> Metrics:
    """The metrics after one step of every environment, leaves [E]."""
    ended = step.terminated | step.truncated
    running = metrics.running + step.reward
    kept = metrics.returns.shape[0] - 1
    place = (metrics.episodes + actions.count(ended) - 1) % kept
    return metrics._replace(
        running=torch.where(ended, 0.0, running),
        returns=metrics.returns.index_put((torch.where(ended, place, kept),), running),
        episodes=metrics.episodes + ended.sum(),
        returned=metrics.returned + torch.where(ended, running, 0.0).sum(),
    )


def count_update(metrics: Metrics, diagnostics: dqn.Diagnostics, sound: Tensor, cycle: Tensor) -> Metrics:
    """The metrics after one update in that cycle; it counts only where it and all before it were finite.

    Shapes: sound [], whether the parameters that it gives are finite.
    """
    loss, norm = diagnostics.loss.isfinite(), diagnostics.grad_norm.isfinite()
    fails = (metrics.failed < 0) & ~(loss & norm & sound)
    failed = torch.where(fails, cycle, metrics.failed)
    cause = torch.where(norm, CAUSES.index("parameter"), CAUSES.index("gradient"))
    cause = torch.where(loss, cause, CAUSES.index("loss"))
    return metrics._replace(
        totals=tree.map(lambda total, x: torch.where(failed < 0, total + x, total), metrics.totals, diagnostics),
        failed=failed,
        cause=torch.where(fails, cause, metrics.cause),
    )


def vmapped(program: Program) -> Functions:
    """The step functions over lanes, run operation by operation: for a debugger and for laws."""
    return Functions(
        noise=partial(noise, program),
        collect=fold(vmap(partial(collect, program))),
        cycle=fold(vmap(partial(cycle, program))),
        sync=vmap(sync),
    )


def fold(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`step(state, x) -> state` once for each x of a tree with leaves [n, ...], in turn: `lax.scan` without outputs."""

    check.function("step", step)

    def folded(state: Any, xs: Any) -> Any:
        for i in range(check.length("xs", xs)):
            state = step(state, tree.index(xs, i))
        return state

    return folded


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
    since: Reading | None = None,
    at_once: int | None = None,
) -> Iterator[Report]:
    """Train the lanes of `state` until each has taken `steps` environment steps; report on the way and at the end.

    Steps and cadences are in environment steps a lane and are rounded up to whole cycles. `state` belongs to the run
    from here on: donated functions write over it. `stop` is asked between calls of step functions, of at most `at_once`
    cycles each (by default CYCLES_PER_CALL or fewer), and ends the run early, with a report; so does `Stopped`, raised
    while a step function is compiled. A run that was stopped goes on from the state and `since` of that report; one
    that has all of its steps behind it only reports. A lane whose replay was empty at `state.emptied` takes
    `learning_starts` steps from there before it learns. Nothing happens before the first report is asked for; then
    whatever one cycle raises on fake tensors is raised, before anything runs.
    """
    _check_program(program)
    check.kind("state", state, TrainState)
    check.shapes("state.key[S 2]", state.key)
    check.kind("functions", functions, Functions)
    for name, value in (("steps", steps), ("report_every", report_every)):
        check.count(name, value, 1)
    check.count("evaluate_every", evaluate_every)
    if evaluate is not None:
        check.function("evaluate", evaluate)
    config = program.config
    number, last = int(state.cycle.max()), math.ceil(steps / config.env_steps)
    warm = int(state.emptied.max()) + config.warmup_steps // config.env_steps
    period = config.target_period // config.updates_per_cycle
    ahead = _cycles_per_draw(program, state.key)
    # The first cycle's noise is drawn as it is, so that one step function can compile beside the other and `noise`.
    start, first, drawn = number, number, number + 1
    long = max(1, WORK_PER_CALL // (config.steps_per_cycle + config.updates_per_cycle))
    most = at_once or min(CYCLES_PER_CALL, long)
    noises = noise(program, state.key, number, 1)
    _try_on_fake_tensors(program, state, noises)

    called: set[str] = set()
    compile_seconds, learning_seconds, learning_updates = 0.0, 0.0, 0
    first_update, counted, reported = None, since or reading(program, state), -1

    def report(evaluation: NDArray[np.float64] | None, planned: bool) -> Report:
        nonlocal counted, reported
        before, read, reported = counted, reading(program, state), number
        counted = read if planned else before
        return Report(
            step=number * config.env_steps,
            episodes=read.episodes,
            returns=_means(read.returned - before.returned, read.episodes - before.episodes),
            last_returns=read.last_returns,
            updates=read.updates,
            loss=_means(read.loss - before.loss, read.updates - before.updates),
            q=_means(read.q - before.q, read.updates - before.updates),
            grad_norm=_means(read.grad_norm - before.grad_norm, read.updates - before.updates),
            epsilon=read.epsilon,
            failed=read.failed,
            cause=read.cause,
            evaluation=evaluation,
            state=state,
            planned=planned,
            since=counted,
            compile_seconds=compile_seconds,
            learning_seconds=learning_seconds,
            learning_updates=learning_updates,
            first_update=first_update,
        )

    if number >= last:
        yield report(None, planned=False)
    while number < last:
        began, calls = time.perf_counter(), {"collect" if number < warm else "cycle"}
        if number == drawn:
            calls.add("noise")
        before = number
        try:
            if number == drawn:
                first = start + (number - start) // ahead * ahead
                noises = functions.noise(state.key, first, ahead)
                drawn = first + ahead
            # As many cycles in a row as nothing else is due in between, but one where there is compiling to do.
            dues = [last, drawn, number + (most if calls <= called else 1)]
            dues += [_next_due(number, config.env_steps, every) for every in (report_every, evaluate_every) if every]
            dues += [warm] if number < warm else [number + period - (number - warm) % period] if period else []
            cycles, number = min(dues) - number, min(dues)
            here = slice(number - cycles - first, number - first)
            step_function = functions.collect if "collect" in calls else functions.cycle
            state = step_function(state, tree.index(noises, here))
        except Stopped:
            number, calls = before, set()
        if not calls:
            if number > reported:
                yield report(None, planned=False)
            return
        if number > warm and period and (number - warm) % period == 0:
            calls.add("sync")
            state = functions.sync(state)

        stopping = stop()
        evaluating = evaluate is not None and _is_due(number, cycles, last, config.env_steps, evaluate_every)
        planned = evaluating or _is_due(number, cycles, last, config.env_steps, report_every)
        is_first_update = first_update is None and "cycle" in calls
        if planned or stopping or is_first_update or not calls <= called:
            _wait(state)  # a GPU answers before it is done
        now = time.perf_counter()
        if not calls <= called:
            compile_seconds += now - began
        elif "cycle" in calls:
            learning_seconds += now - began
            learning_updates += cycles * config.updates_per_cycle
        called |= calls
        first_update = now if is_first_update else first_update
        if planned or stopping:
            yield report(evaluate(state) if evaluating and evaluate is not None else None, planned)
        if stopping:
            return


def _check_program(program: Program) -> None:
    check.kind("program", program, Program)
    check.kind("program.config", program.config, dqn.Config)
    check.kind("program.env", program.env, Env)
    check.kind("program.network", program.network, Network)
    check.function("program.loss", program.loss)
    check.function("program.optimizer", program.optimizer)


def _init_lane(program: Program, params: Params, hyper: Hyper, key: Tensor, env_state: Any, step: Step) -> TrainState:
    config = program.config
    example = replay.transition(step.obs[0], torch.zeros_like(step.reward[0], dtype=torch.int64), tree.index(step, 0))
    zero = torch.zeros((), dtype=torch.int64, device=key.device)
    total = torch.zeros((), dtype=torch.float64, device=key.device)
    kept = max(EPISODES_KEPT, config.num_envs)
    metrics = Metrics(
        running=torch.zeros_like(step.reward),
        returns=step.reward.new_full((kept + 1,), torch.nan),
        episodes=zero,
        returned=total,
        totals=dqn.Diagnostics(total, total, total),
        failed=zero - 1,
        cause=zero,
    )
    return TrainState(
        learner=dqn.init(program.optimizer(hyper), params),
        replay=replay.init(example, config.capacity, config.num_envs, config.n_step, program.env.spec.stack),
        env_state=env_state,
        obs=step.obs,
        legal=step.legal,
        metrics=metrics,
        hyper=hyper,
        key=key,
        cycle=zero,
        emptied=zero,
    )


def _words(program: Program) -> int:
    """32-bit words that one lane needs for one cycle."""
    config = program.config
    return config.env_steps * (2 + program.env.spec.noise) + config.updates_per_cycle * config.batch_size


def _cycles_per_draw(program: Program, keys: Tensor) -> int:
    """Cycles whose noise is drawn at once, for keys [S, 2]."""
    words = WORDS_PER_DRAW if keys.device.type == "cpu" else WORDS_PER_DRAW_ON_CUDA
    ahead = max(1, min(CYCLES_PER_DRAW, words // (_words(program) * keys.shape[0])))
    period = program.config.target_period // program.config.updates_per_cycle
    # Whole periods, so that chunks are of few lengths.
    return ahead - ahead % period if period and ahead > period else ahead


def _try_on_fake_tensors(program: Program, state: TrainState, noises: Noise) -> None:
    """One step and one update on tensors without memory: what does not fit raises here, not in a compiler."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        before, noise = tree.map(mode.from_tensor, state), tree.map(mode.from_tensor, tree.index(noises, 0))
        first = tree.index(interactions(noise), 0)
        after = vmap(partial(update, program))(vmap(partial(interact, program))(before, first), noise.sample[:, 0])
        check.same("state after one cycle", before, after)


def _next_due(number: int, env_steps: int, every: int) -> int:
    """The first cycle count after `number` at which a lane has passed another multiple of `every` environment steps."""
    return math.ceil((number * env_steps // every + 1) * every / env_steps)


def _is_due(number: int, cycles: int, last: int, env_steps: int, every: int) -> bool:
    """Whether the last `cycles` of `number` cycles ended the run or passed a multiple of `every` environment steps."""
    return every > 0 and (number == last or number >= _next_due(number - cycles, env_steps, every))


def _wait(state: TrainState) -> None:
    if state.cycle.is_cuda:
        torch.cuda.synchronize(state.cycle.device)


def reading(program: Program, state: TrainState) -> Reading:
    """What the lanes say now, in one transfer of numbers that are exact in float64: a GPU is asked once a report."""
    check.shapes("state.key[S 2]", state.key)
    metrics = state.metrics
    share = epsilon(state.hyper, state.cycle * program.config.env_steps, random_steps(program, state))
    counts = metrics.episodes, state.learner.updates, metrics.failed, metrics.cause
    columns = (*counts, metrics.returned, *metrics.totals, share)
    table = (
        torch.cat([*(x.double().unsqueeze(-1) for x in columns), metrics.returns[:, :-1].double()], -1).cpu().numpy()
    )
    episodes, updates, failed, cause = table[:, : len(counts)].T.astype(np.int64, order="C")
    returned, loss, q, grad_norm, explored = table[:, len(counts) : len(columns)].T.copy()
    return Reading(
        episodes=episodes,
        updates=updates,
        returned=returned,
        loss=loss,
        q=q,
        grad_norm=grad_norm,
        epsilon=explored,
        failed=failed,
        cause=cause,
        last_returns=table[:, len(columns) :].astype(np.float32),
    )


def _means(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """`sums / counts`, NaN where nothing was counted."""
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
