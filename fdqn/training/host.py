"""Training with environments that are stepped on the host while the device learns.

    cycle = act, step, store (k - 1 times);  act;  step beside learn;  store

So the updates of a training iteration do not see its last step yet; the next iteration's do. All but the steps of the
environments is a function of one seed: `choose`, `store`, `finish` and `learn`.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch.func import vmap

from fdqn import random, tree
from fdqn.training import iteration, streams, transfer
from fdqn.training.draws import noise as draw_noise
from fdqn.training.loop import Stopped
from fdqn.training.state import CAUSES, Functions, Interaction, Noise, Program, TrainState
from fdqn.types import HostStep

SWITCH = 1e-5  # s


class Parts(NamedTuple):
    """The functions of a training iteration, over all seeds; each scans along the first axis of its second argument."""

    noise: Callable[[Any, int, int], Noise]
    choose: Callable[[TrainState, Interaction], TrainState]
    store: Callable[[TrainState, HostStep], TrainState]
    finish: Callable[[TrainState, HostStep], TrainState]
    learn: Callable[[TrainState, Noise], Callable[[], TrainState]]
    """Starts the updates; the function that it returns waits for the state, which nobody may write before."""
    sync: Callable[[TrainState], TrainState]


def choose(program: Program, state: TrainState, noise: Interaction) -> TrainState:
    """Choose the actions of all environments and keep them as `env_state`."""
    # Epsilon is that of the iteration's start for all of its steps.
    return state._replace(env_state=iteration.act(program, state, noise._replace(number=0)))


def store(program: Program, state: TrainState, answer: HostStep) -> TrainState:
    """Store the result of the chosen actions. A seed whose environments are broken learns no more."""
    state = iteration.observe(program, state, state.env_state, answer.step, answer.valid, answer.life_lost)
    metrics = state.metrics
    breaks = ~answer.alive & (metrics.failed < 0)
    return state._replace(
        metrics=metrics._replace(
            failed=torch.where(breaks, state.cycle, metrics.failed),
            cause=torch.where(breaks, CAUSES.index("environment"), metrics.cause),
        )
    )


def finish(program: Program, state: TrainState, answer: HostStep) -> TrainState:
    """`store` the result of the last step of a training iteration."""
    return store(program, state, answer)._replace(cycle=state.cycle + 1)


def vmapped(program: Program) -> Parts:
    """The functions over all seeds, run operation by operation."""
    return Parts(
        noise=partial(draw_noise, program),
        choose=iteration.scan(vmap(partial(choose, program))),
        store=iteration.scan(vmap(partial(store, program))),
        finish=iteration.scan(vmap(partial(finish, program))),
        learn=partial(_learned, iteration.scan(vmap(partial(iteration.learn, program)))),
        sync=vmap(iteration.sync),
    )


def _learned(
    learn: Callable[[TrainState, Noise], TrainState], state: TrainState, noise: Noise
) -> Callable[[], TrainState]:
    """Learn at once: eager execution holds the interpreter and gains nothing from a thread."""
    done = learn(state, noise)
    return lambda: done


def start(program: Program, env: Any, state: TrainState) -> TrainState:
    """Start new episodes in all environments, seeded by the seeds' keys and training iterations."""
    keys = random.fold_in(random.fold_in(state.key, streams.WORLD), state.cycle)
    first = tree.to(env.reset(random.bits(keys, (state.obs.shape[1],)).tolist()), state.key.device)
    metrics = state.metrics._replace(running=torch.zeros_like(state.metrics.running))
    buffer = program.algorithm.cut(state.buffer)
    return state._replace(obs=first.obs, legal=first.legal, metrics=metrics, buffer=buffer)


def functions(program: Program, env: Any, parts: Parts) -> Functions:
    """The step functions of a run with an open vector environment `env`."""
    upload, download = functools.cache(transfer.uploads), functools.cache(transfer.downloads)

    def actions(state: TrainState, noise: Noise, i: int) -> tuple[TrainState, NDArray[Any]]:
        state = parts.choose(state, interaction(noise, i))
        return state, download(state.key.device)(state.env_state)

    def answered(state: TrainState, actions: NDArray[Any]) -> HostStep:
        return tree.map(lambda x: x.unsqueeze(0), upload(state.key.device)(env.step(actions)))

    def steps(state: TrainState, noise: Noise) -> tuple[TrainState, NDArray[Any]]:
        """Take all steps of an iteration but the last, whose actions it returns."""
        for i in range(program.config.steps_per_cycle - 1):
            state, chosen = actions(state, noise, i)
            state = parts.store(state, answered(state, chosen))
        return actions(state, noise, program.config.steps_per_cycle - 1)

    def collect(state: TrainState, noise: Noise) -> TrainState:
        state, chosen = steps(state, noise)
        return parts.finish(state, answered(state, chosen))

    def cycle(state: TrainState, noise: Noise) -> TrainState:
        state, chosen = steps(state, noise)
        try:
            learned = parts.learn(state, noise)
        except Stopped as stopped:  # among the steps of an iteration there is no state to continue from
            raise stopped if program.config.steps_per_cycle == 1 else KeyboardInterrupt(*stopped.args) from None
        try:
            with _switching_soon():
                answer = answered(state, chosen)
        finally:
            state = learned()
        return parts.finish(state, answer)

    return Functions(parts.noise, _one_by_one(collect), _one_by_one(cycle), parts.sync)


def interaction(noise: Noise, i: int) -> Interaction:
    """Random numbers for the actions of step i, leaves [1, S, ...], from noise with leaves [1, S, k, ...]."""
    act, values = tree.map(lambda x: x[:, :, i], (noise.act, noise.values))
    return Interaction(act, (), (), values)  # type: ignore[arg-type]


@contextlib.contextmanager
def _switching_soon() -> Iterator[None]:
    """Let other threads have the interpreter soon after they ask: by default it is kept longer than an iteration
    takes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _one_by_one(step: Callable[[TrainState, Any], TrainState]) -> Callable[[TrainState, Any], Any]:
    """`scan` for steps that take noise with leaves [1, S, ...]."""

    def scanned(state: TrainState, noise: Noise) -> TrainState:
        for i in range(len(noise.act)):
            state = step(state, tree.index(noise, slice(i, i + 1)))
        return state

    return scanned
