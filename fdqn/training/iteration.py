"""One training iteration as a pure function of the state of one seed.

    cycle = collect, then learn

`collect` steps the environments and stores transitions; `learn` makes updates. `vmapped` maps all of these functions
over seeds. Host environments have a separate iteration in `host`, made of the same parts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

from fdqn import check, envs, random, replay, tree
from fdqn.agents import check_agent
from fdqn.ops import exploration
from fdqn.training import metrics, off_policy, streams
from fdqn.training.draws import interactions, noise, updates
from fdqn.training.state import (
    Functions,
    Interaction,
    Noise,
    Program,
    TrainState,
    UpdateNoise,
    check_program,
    zero,
)
from fdqn.types import EnvSpec, Hyper, Params, Step, Transition


def init(program: Program, hyper: Hyper, keys: Tensor) -> TrainState:
    """Make the states [S] of all seeds before their first step, on the device of `keys` [S, 2].

    Raises ValueError or TypeError if hyper-parameters, network and environment do not fit together. This is checked
    before a buffer is allocated.
    """
    check_program(program)
    check.kind("hyper", hyper, Hyper)
    *plain, numbers = hyper
    check.shapes(f"keys[S 2] {' '.join(f'{name}[S]' for name in Hyper._fields[:-1])}", keys, *plain)
    for name, x in numbers.items():
        check.tensor(f"numbers.{name}", x)
        check.shapes(f"keys[S 2] numbers.{name}[S{' _' * (x.ndim - 1)}]", keys, x)
    check.integer("keys", keys)
    spec = program.env.spec
    env_state, step = _first_step(program, keys)
    for name, x in (("obs", step.obs), ("next_obs", step.next_obs)):
        check.shapes(f"env.reset.{name}[S E {' '.join(map(str, spec.obs_shape))}]", x)
        if x.dtype != spec.obs_dtype:
            raise TypeError(f"env.reset.{name}: expected spec.obs_dtype = {spec.obs_dtype}, got {x.dtype}")
    check.shapes(f"env.reset.legal[S E {spec.actions}]", step.legal)
    params = program.network.init(random.fold_in(keys, streams.NETWORK))
    q = vmap(program.network.apply)(params, step.obs)
    check.shapes(f"network.apply[S E {spec.actions}]", q)
    seeds = vmap(partial(_init_seed, program))(params, hyper, keys, env_state, step)
    # A run overwrites its state, so no leaf may share memory with an argument or with another leaf, as constants under
    # vmap do.
    return tree.separate(seeds, (params, hyper, keys))


def _first_step(program: Program, keys: Tensor) -> tuple[Any, Step]:
    """Reset all environments; return states and steps [S, E]. For host environments, which start later, use zeros."""
    config, spec = program.config, program.env.spec
    if envs.on_host(program.env):
        actions = torch.zeros((keys.shape[0], config.num_envs), dtype=torch.int64, device=keys.device)
        return actions, _blank_step(spec, actions)
    u = random.uniform(random.fold_in(keys, streams.RESET), (config.num_envs, spec.noise))
    return vmap(program.env.reset)(u)


def _blank_step(spec: EnvSpec, action: Tensor) -> Step:
    """Make a step of zeros for actions [...] of a host environment, with all actions legal."""
    obs = torch.zeros((*action.shape, *spec.obs_shape), dtype=spec.obs_dtype, device=action.device)
    legal = torch.ones((*action.shape, spec.actions), dtype=torch.bool, device=action.device)
    ended = torch.zeros_like(action, dtype=torch.bool)
    return Step(obs, legal, obs, legal, torch.zeros_like(action, dtype=torch.float32), ended, ended)


def _init_seed(program: Program, params: Params, hyper: Hyper, key: Tensor, env_state: Any, step: Step) -> TrainState:
    action = torch.zeros_like(step.reward[0], dtype=torch.int64)
    example = replay.transition(step.obs[0], action, tree.index(step, 0), _legal(program, step.legal[0]))
    learner, buffer = program.algorithm.init(params, hyper, example)
    return TrainState(
        learner=learner,
        buffer=buffer,
        env_state=env_state,
        obs=step.obs,
        legal=step.legal,
        metrics=metrics.init(step.reward),
        hyper=hyper,
        key=key,
        cycle=zero(key.device),
        emptied=zero(key.device),
    )


def _legal(program: Program, legal: Tensor) -> Tensor | tuple[()]:
    """Return the mask to store in a transition: () if the agent does not need it."""
    return legal if program.algorithm.agent.needs_legal else ()


def cycle(program: Program, state: TrainState, noise: Noise) -> TrainState:
    """Run one training iteration: `collect`, then `learn`."""
    return learn(program, collect(program, state, noise), noise)


def collect(program: Program, state: TrainState, noise: Noise) -> TrainState:
    """Take `steps_per_cycle` steps in every environment and store the transitions."""
    check.kind("state", state, TrainState)
    shape = f"{program.config.steps_per_cycle} {program.config.num_envs}"
    check.shapes(f"noise.act[{shape} 2] noise.env[{shape} {program.env.spec.noise}]", noise.act, noise.env)
    for i in range(program.config.steps_per_cycle):
        values = tree.index(noise.values, i)
        state = interact(program, state, Interaction(noise.act[i], noise.env[i], i, values))
    return state._replace(cycle=state.cycle + 1)


def interact(program: Program, state: TrainState, noise: Interaction) -> TrainState:
    """Take one step in every environment and store the transitions.

    Raises TypeError for host environments, which `host` steps.
    """
    check.kind("state", state, TrainState)
    if envs.on_host(program.env):
        raise TypeError("program.env: expected Env, got HostEnv; use training.host.functions")
    count = program.config.num_envs
    check.shapes(f"noise.act[{count} 2] noise.env[{count} {program.env.spec.noise}]", noise.act, noise.env)
    action = act(program, state, noise)
    env_state, step = program.env.step(state.env_state, action, noise.env)
    return observe(program, state, action, step)._replace(env_state=env_state)


def act(program: Program, state: TrainState, noise: Interaction) -> Tensor:
    """Choose epsilon-greedy actions [E] at the current observations."""
    taken = state.cycle * program.config.env_steps + noise.number * program.config.num_envs
    epsilon = metrics.epsilon(state.hyper, taken, metrics.random_steps(program, state))
    algorithm, params = program.algorithm, state.learner.params
    if algorithm.values is None:
        q = algorithm.agent.values(params, state.obs, noise.values)
    else:
        q = algorithm.values(params, state.obs, noise.values, state.hyper)
    return exploration.epsilon_greedy(q, state.legal, epsilon, noise.act)


def observe(
    program: Program,
    state: TrainState,
    action: Tensor,
    step: Step,
    valid: Tensor | None = None,
    life_lost: Tensor | None = None,
) -> TrainState:
    """Store the transitions of one step of the environments and update observations and metrics.

    Args:
        program: the algorithm and its configuration, which determines how rewards, truncation and lost lives are
            treated.
        state: state of one seed before the step.
        action: actions taken, [E] int64.
        step: result of the environments, leaves [E, ...].
        valid: [E] bool, True where a step was taken; None means everywhere.
        life_lost: [E] bool, used for `Config.terminal_on_life_loss`.
    """
    ended, learned = step.terminated | step.truncated, step
    if program.config.terminal_on_truncation:
        learned = learned._replace(terminated=ended)
    if program.config.terminal_on_life_loss and life_lost is not None:
        learned = learned._replace(terminated=learned.terminated | life_lost)
    if program.config.clip_rewards:
        learned = learned._replace(reward=learned.reward.clamp(-1.0, 1.0))
    batch = replay.transition(state.obs, action, learned, _legal(program, state.legal))
    return state._replace(
        buffer=program.algorithm.observe(state.learner, state.buffer, batch, ended, valid, state.hyper),
        obs=step.obs,
        legal=step.legal,
        metrics=metrics.count_episodes(state.metrics, step),
    )


def learn(program: Program, state: TrainState, noise: Noise) -> TrainState:
    """Make `updates_per_cycle` updates.

    From the first update whose loss, gradient or new parameters are not finite, the learner stays unchanged.
    """
    check.kind("state", state, TrainState)
    check.shapes(f"noise.sample[{program.config.updates_per_cycle} {program.config.batch_size}]", noise.sample)
    for i in range(program.config.updates_per_cycle):
        state = update(program, state, UpdateNoise(noise.sample[i], tree.index(noise.loss, i)))
    return state


def update(program: Program, state: TrainState, noise: UpdateNoise) -> TrainState:
    """Make one update. `learn` makes several."""
    check.kind("state", state, TrainState)
    check.kind("noise", noise, UpdateNoise)
    check.shapes(f"noise.sample[{program.config.batch_size}]", noise.sample)
    updated, buffer, diagnostics = program.algorithm.update(
        state.learner, state.buffer, noise.sample, noise.loss, state.hyper
    )
    # `amax` propagates NaN. Inductor vectorizes it, but not `isfinite().all()`.
    sound = torch.stack([x.abs().amax() for x in updated.params.values()]).amax() < torch.inf
    counted = metrics.count_update(state.metrics, diagnostics, sound, state.cycle)
    # Leaves that the update returned unchanged are kept, because `where` would copy them.
    alive = counted.failed < 0
    learner = tree.map(lambda new, old: new if new is old else torch.where(alive, new, old), updated, state.learner)
    return state._replace(learner=learner, buffer=buffer, metrics=counted)


def sync(state: TrainState) -> TrainState:
    """Copy the parameters to the target parameters."""
    check.kind("state", state, TrainState)
    return state._replace(learner=off_policy.hard_copy(state.learner))


def vmapped(program: Program) -> Functions:
    """Make the step functions over all seeds without compilation, for debugging and tests."""
    return Functions(
        noise=partial(noise, program),
        collect=scan(vmap(partial(collect, program))),
        cycle=scan(vmap(partial(cycle, program))),
        sync=vmap(sync),
    )


def scan(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Make a function that calls `step(state, x) -> state` for each x of leaves [n, ...], as `jax.lax.scan` does."""
    check.function("step", step)

    def scanned(state: Any, xs: Any) -> Any:
        for i in range(check.length("xs", xs)):
            state = step(state, tree.index(xs, i))
        return state

    return scanned


def check_cycle(program: Program, state: TrainState, noises: Noise) -> None:
    """Run one step and one update on fake tensors, so that errors are raised here and not in a compiler."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        before, noise = tree.map(mode.from_tensor, state), tree.map(mode.from_tensor, tree.index(noises, 0))
        _check_agent(program, tree.index(before, 0))
        after = vmap(partial(_step_without_host, program))(before, tree.index(interactions(noise), 0))
        after = vmap(partial(update, program))(after, tree.index(updates(noise), 0))
        check.same("state after one training iteration", before, after)


def _step_without_host(program: Program, state: TrainState, noise: Interaction) -> TrainState:
    """Call `interact`, or for a host environment use a blank step instead of stepping it."""
    if not envs.on_host(program.env):
        return interact(program, state, noise)
    action = act(program, state, noise)
    return observe(program, state, action, _blank_step(program.env.spec, action))._replace(env_state=action)


def _check_agent(program: Program, state: TrainState) -> None:
    """Check the agent's results for a batch made of the first observation of one seed."""
    obs, legal, reward = state.obs[0], state.legal[0], state.metrics.running[0]
    action, discount = torch.zeros_like(reward, dtype=torch.int64), torch.ones_like(reward)
    row = Transition(obs, action, reward, discount, obs, legal, _legal(program, legal))
    batch = tree.map(lambda x: x.expand(program.config.batch_size, *x.shape), row)
    check_agent(program.algorithm.agent, state.learner.params, batch, state.hyper)
