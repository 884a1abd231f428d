"""Training iteration for environments that are stepped on the host while the device learns.

    repeat k - 1 times:   choose actions, step, store
    then:                 choose actions, step and learn at the same time, finish

The updates of an iteration therefore do not see its last step; those of the next iteration do. Everything but the steps
of the environments is a pure function of one seed: `choose`, `store`, `finish` and `iteration.learn`.
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

SWITCH = 1e-5
"""Switch interval of Python threads while a step and updates run at the same time, in seconds."""


class Parts(NamedTuple):
    """Functions of a training iteration over all seeds. They scan along the first axis of their second argument."""

    noise: Callable[[Any, int, int], Noise]
    choose: Callable[[TrainState, Interaction], TrainState]
    store: Callable[[TrainState, HostStep], TrainState]
    finish: Callable[[TrainState, HostStep], TrainState]
    learn: Callable[[TrainState, Noise], Callable[[], TrainState]]
    """Starts the updates and returns a function that waits for the new state. Do not change the state before that."""
    sync: Callable[[TrainState], TrainState]


def choose(program: Program, state: TrainState, noise: Interaction) -> TrainState:
    """Choose the actions of all environments and store them as `env_state`."""
    # All steps of an iteration use the epsilon at its start.
    return state._replace(env_state=iteration.act(program, state, noise._replace(number=0)))


def store(program: Program, state: TrainState, result: HostStep) -> TrainState:
    """Store the result of the chosen actions. A seed with a failed environment makes no more updates."""
    state = iteration.observe(program, state, state.env_state, result.step, result.valid, result.life_lost)
    metrics = state.metrics
    fails = ~result.alive & (metrics.failed < 0)
    return state._replace(
        metrics=metrics._replace(
            failed=torch.where(fails, state.cycle, metrics.failed),
            cause=torch.where(fails, CAUSES.index("environment"), metrics.cause),
        )
    )


def finish(program: Program, state: TrainState, result: HostStep) -> TrainState:
    """Store the result of the last step of a training iteration, as `store` does, and count the iteration."""
    return store(program, state, result)._replace(cycle=state.cycle + 1)


def vmapped(program: Program) -> Parts:
    """Make the functions over all seeds, without compilation."""
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
    """Make the updates immediately: eager execution holds the GIL, so a thread would gain nothing."""
    done = learn(state, noise)
    return lambda: done


def start(program: Program, env: Any, state: TrainState) -> TrainState:
    """Reset all environments, with seeds derived from the key and training iteration of each seed."""
    keys = random.fold_in(random.fold_in(state.key, streams.HOST_RESET), state.cycle)
    first = tree.to(env.reset(random.bits(keys, (state.obs.shape[1],)).tolist()), state.key.device)
    metrics = state.metrics
    metrics = metrics._replace(running=torch.zeros_like(metrics.running), elapsed=torch.zeros_like(metrics.elapsed))
    buffer = program.algorithm.cut(state.buffer)
    return state._replace(obs=first.obs, legal=first.legal, metrics=metrics, buffer=buffer)


def functions(program: Program, env: Any, parts: Parts) -> Functions:
    """Make the step functions of a run with an open host environment `env`."""
    upload, download = functools.cache(transfer.uploads), functools.cache(transfer.downloads)

    def actions(state: TrainState, noise: Noise, i: int) -> tuple[TrainState, NDArray[Any]]:
        state = parts.choose(state, interaction(noise, i))
        return state, download(state.key.device)(state.env_state)

    def stepped(state: TrainState, actions: NDArray[Any]) -> HostStep:
        return tree.map(lambda x: x.unsqueeze(0), upload(state.key.device)(env.step(actions)))

    def steps(state: TrainState, noise: Noise) -> tuple[TrainState, NDArray[Any]]:
        """Take all steps of an iteration but the last; return the actions of the last."""
        for i in range(program.config.steps_per_cycle - 1):
            state, chosen = actions(state, noise, i)
            state = parts.store(state, stepped(state, chosen))
        return actions(state, noise, program.config.steps_per_cycle - 1)

    def collect(state: TrainState, noise: Noise) -> TrainState:
        state, chosen = steps(state, noise)
        return parts.finish(state, stepped(state, chosen))

    def cycle(state: TrainState, noise: Noise) -> TrainState:
        state, chosen = steps(state, noise)
        try:
            learned = parts.learn(state, noise)
        except Stopped as stopped:  # a run cannot continue from the middle of an iteration
            raise stopped if program.config.steps_per_cycle == 1 else KeyboardInterrupt(*stopped.args) from None
        try:
            with _switching_soon():
                result = stepped(state, chosen)
        finally:
            state = learned()
        return parts.finish(state, result)

    return Functions(parts.noise, _one_by_one(collect), _one_by_one(cycle), parts.sync)


def interaction(noise: Noise, i: int) -> Interaction:
    """Select the random numbers for the actions of step i, leaves [1, S, ...], from leaves [1, S, k, ...]."""
    act, values = tree.map(lambda x: x[:, :, i], (noise.act, noise.values))
    return Interaction(act, (), (), values)  # type: ignore[arg-type]


@contextlib.contextmanager
def _switching_soon() -> Iterator[None]:
    """Shorten the switch interval of Python threads, whose default is longer than a training iteration."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _one_by_one(step: Callable[[TrainState, Any], TrainState]) -> Callable[[TrainState, Any], Any]:
    """Scan a step that takes noise with leaves [1, S, ...]."""

    def scanned(state: TrainState, noise: Noise) -> TrainState:
        for i in range(len(noise.act)):
            state = step(state, tree.index(noise, slice(i, i + 1)))
        return state

    return scanned
