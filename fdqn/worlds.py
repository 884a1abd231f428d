"""Training in a world: environments outside torch, stepped on the host while the device learns.

    cycle = act, step, remember (k - 1 times);  act;  step beside learn;  remember

So what a world answers to the last step of a cycle is learned from in the next. What is a function stays one, of one
lane: `choose`, `remember`, `conclude` and `training.learn`; only the steps between them are not.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from fdqn import dqn, random, replay, training, transfer, tree
from fdqn.types import Answer

SWITCH = 1e-5  # s


class Parts(NamedTuple):
    """What of a cycle is a function, over lanes; each goes along the first axis of what it is given, as `fold` does."""

    noise: Callable[[Tensor, int, int], training.Noise]
    choose: Callable[[training.TrainState, Tensor], training.TrainState]
    remember: Callable[[training.TrainState, Answer], training.TrainState]
    conclude: Callable[[training.TrainState, Answer], training.TrainState]
    learn: Callable[[training.TrainState, training.Noise], Callable[[], training.TrainState]]
    """Begins to learn; the function that it gives waits for the state, which nobody may write before."""
    sync: Callable[[training.TrainState], training.TrainState]


def choose(program: training.Program, state: training.TrainState, u: Tensor) -> training.TrainState:
    """Actions for all environments, kept as what the world has been asked for; the share of random ones is that of the
    cycle's start. Shapes: u [E, 2].
    """
    steps = state.cycle * program.config.env_steps
    share = training.epsilon(state.hyper, steps, training.random_steps(program, state))
    action = dqn.act(program.network.apply, state.learner.params, state.obs, state.legal, share, u)
    return state._replace(env_state=action)


def remember(program: training.Program, state: training.TrainState, answer: Answer) -> training.TrainState:
    """What came of the actions that were asked for. A lane whose environments are broken learns no more."""
    step, metrics = answer.step, training.count_episodes(state.metrics, answer.step)
    breaks = ~answer.alive & (metrics.failed < 0)
    return state._replace(
        replay=training.remember(program, state, state.env_state, step, answer.valid, answer.life_lost),
        obs=step.obs,
        legal=step.legal,
        metrics=metrics._replace(
            failed=torch.where(breaks, state.cycle, metrics.failed),
            cause=torch.where(breaks, training.CAUSES.index("environment"), metrics.cause),
        ),
    )


def conclude(program: training.Program, state: training.TrainState, answer: Answer) -> training.TrainState:
    """`remember` the last step of a cycle."""
    return remember(program, state, answer)._replace(cycle=state.cycle + 1)


def vmapped(program: training.Program) -> Parts:
    """The functions over lanes, run operation by operation."""
    return Parts(
        noise=partial(training.noise, program),
        choose=training.fold(vmap(partial(choose, program))),
        remember=training.fold(vmap(partial(remember, program))),
        conclude=training.fold(vmap(partial(conclude, program))),
        learn=partial(_learned, training.fold(vmap(partial(training.learn, program)))),
        sync=vmap(training.sync),
    )


def _learned(
    learn: Callable[[training.TrainState, training.Noise], training.TrainState],
    state: training.TrainState,
    noise: training.Noise,
) -> Callable[[], training.TrainState]:
    """All at once: what holds the interpreter gains nothing from a thread."""
    done = learn(state, noise)
    return lambda: done


def begun(games: Any, state: training.TrainState) -> training.TrainState:
    """The lanes at the start of new episodes in all of their environments, whose seeds follow from key and cycle."""
    keys = random.fold_in(random.fold_in(state.key, random.WORLD), state.cycle)
    first = tree.to(games.reset(random.bits(keys, (state.obs.shape[1],)).tolist()), state.key.device)
    metrics = state.metrics._replace(running=torch.zeros_like(state.metrics.running))
    return state._replace(obs=first.obs, legal=first.legal, metrics=metrics, replay=replay.cut(state.replay))


def functions(program: training.Program, games: Any, parts: Parts) -> training.Functions:
    """The step functions of a run in a world that is open."""
    upload, download = functools.cache(transfer.uploads), functools.cache(transfer.downloads)

    def ask(state: training.TrainState, noise: training.Noise, i: int) -> tuple[training.TrainState, NDArray[Any]]:
        state = parts.choose(state, noise.act[:, :, i])
        return state, download(state.key.device)(state.env_state)

    def answered(state: training.TrainState, actions: NDArray[Any]) -> Answer:
        return tree.map(lambda x: x.unsqueeze(0), upload(state.key.device)(games.step(actions)))

    def steps(state: training.TrainState, noise: training.Noise) -> tuple[training.TrainState, NDArray[Any]]:
        """All steps of a cycle but the last, whose actions it answers."""
        for i in range(program.config.steps_per_cycle - 1):
            state, actions = ask(state, noise, i)
            state = parts.remember(state, answered(state, actions))
        return ask(state, noise, program.config.steps_per_cycle - 1)

    def collect(state: training.TrainState, noise: training.Noise) -> training.TrainState:
        state, actions = steps(state, noise)
        return parts.conclude(state, answered(state, actions))

    def cycle(state: training.TrainState, noise: training.Noise) -> training.TrainState:
        state, actions = steps(state, noise)
        try:
            learned = parts.learn(state, noise)
        except training.Stopped as stopped:  # among the steps of a cycle there is no state to go on from
            raise stopped if program.config.steps_per_cycle == 1 else KeyboardInterrupt(*stopped.args) from None
        try:
            with _ready_to_switch():
                answer = answered(state, actions)
        finally:
            state = learned()
        return parts.conclude(state, answer)

    return training.Functions(parts.noise, _one_by_one(collect), _one_by_one(cycle), parts.sync)


@contextlib.contextmanager
def _ready_to_switch() -> Iterator[None]:
    """Threads get the interpreter soon after they ask for it: by itself it is kept for longer than a cycle takes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _one_by_one(
    step: Callable[[training.TrainState, Any], training.TrainState],
) -> Callable[[training.TrainState, Any], Any]:
    """`fold` for steps that take noise with leaves [1, S, ...]."""

    def folded(state: training.TrainState, noise: training.Noise) -> training.TrainState:
        for i in range(len(noise.act)):
            state = step(state, tree.index(noise, slice(i, i + 1)))
        return state

    return folded
