"""Greedy episodes of trained seeds, in pure environments or in host environments.

    greedy -> greedy_on_device -> device_steps
           -> greedy_on_host   -> host_steps

`greedy` is the function to call. `device_steps` and `host_steps` yield the running episodes after every step, from
which videos are recorded.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from fdqn import check, envs, random, tree
from fdqn.ops import exploration, masking
from fdqn.training import streams, transfer
from fdqn.types import Env, EnvSpec, HostEnv, HostVectorEnv, Network, Params

# Steps of noise drawn at once. After each such block, `ended` is read from the device.
_DRAW = 64

# `fold_in` number of the first random actions: above all step numbers, which are used for the noise of environments.
_CHOICES = 2**31

# On a CPU, the step from which a compiled function is used: by then, eager steps have taken about as long as compiling.
_COMPILE_AFTER = 40 * _DRAW

# Step limit for an environment without a time limit: a multiple of the mean training episode, and a minimum.
_MEAN_LENGTHS, _MIN_LIMIT = 10, 1_000


class Evaluation(NamedTuple):
    """Result of playing N greedy episodes with each of S seeds."""

    returns: NDArray[np.float64]
    """[S, N], sum of rewards; NaN for a seed whose host environments failed before its episodes had ended."""
    unfinished: NDArray[np.bool_]
    """[S, N], True for episodes that reached the step limit without ending."""
    limit: int | None
    """The step limit, or None if nothing was played."""
    failures: dict[int, str]
    """Error message by seed position in [0, S), for seeds whose host environments failed before the end."""


class Episodes(NamedTuple):
    """N running episodes of one seed in a pure environment."""

    env_state: Any
    obs: Tensor
    legal: Tensor
    returns: Tensor
    """[N], sum of rewards so far; constant after the end of the episode."""
    ended: Tensor
    """[N] bool."""
    next_obs: Tensor
    """[N, *O], observation that the last action led to, as `Step.next_obs`; equal to `obs` at the start."""


class HostEpisodes(NamedTuple):
    """Running episodes of all seeds in a host environment."""

    returns: Tensor
    """[S, N], sum of rewards so far; constant after the end of the episode; NaN for a seed that failed before that."""
    ended: Tensor
    """[S, N] bool."""


Play = Callable[[Params, Episodes, Tensor], Episodes]
"""`play` over seeds: `params [S, ...], episodes [S, ...], u [S, N, 2 + K] -> episodes`."""

Progress = Callable[[int, int], None]
"""Called as `progress(ended, step)`: the number of ended episodes over all seeds, and the steps taken so far."""


def greedy(
    env: Env | HostEnv,
    network: Network,
    params: Params,
    keys: Tensor,
    episodes: int = 20,
    *,
    epsilon: float = 0.0,
    limit: int | None = None,
    fast: Play | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Play greedy episodes with every seed.

    All seeds and episodes run in parallel. A seed's results depend only on its own parameters and key, and no random
    number is shared with training.

    Args:
        env: a pure environment, stepped on the device of `params`, or a host environment.
        network: its `apply` gives the action values.
        params: parameters [S, ...].
        keys: key of each seed [S, 2].
        episodes: number of episodes N of each seed, at least 1.
        epsilon: probability of a random legal action instead of the greedy one.
        limit: steps after which an episode is cut off, by default the environment's time limit.
        fast: compiled `play` over seeds, used after the first steps. Ignored for a host environment.
        progress: called with the numbers of ended episodes and of steps taken.

    Raises:
        ValueError: fewer than one episode, different numbers of keys and parameters, a network that does not fit the
            observations or actions of a host environment, or host environments that failed for all seeds.
        TypeError: an argument of the wrong type.
    """
    if envs.on_host(env):
        return greedy_on_host(env, network, params, keys, episodes, epsilon=epsilon, limit=limit, progress=progress)
    return greedy_on_device(
        env, network, params, keys, episodes, epsilon=epsilon, limit=limit, fast=fast, progress=progress
    )


def greedy_on_device(
    env: Env,
    network: Network,
    params: Params,
    keys: Tensor,
    episodes: int = 20,
    *,
    epsilon: float = 0.0,
    limit: int | None = None,
    fast: Play | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Play greedy episodes in a pure environment, on the device of `params`.

    Args:
        env, network, params, keys, episodes, epsilon, limit, fast, progress: as for `greedy`, which also lists errors.
    """
    check.kind("env", env, Env)
    last = min(_limit(env.spec, limit), env.spec.time_limit)
    for i, now in enumerate(device_steps(env, network, params, keys, episodes, epsilon=epsilon, limit=last, fast=fast)):
        if i % _DRAW == 0 or i == last:
            if progress is not None:
                progress(int(now.ended.sum()), i)
            if now.ended.all():
                break
    return Evaluation(now.returns.double().cpu().numpy(), ~now.ended.cpu().numpy(), last, {})


def greedy_on_host(
    env: HostEnv,
    network: Network,
    params: Params,
    keys: Tensor,
    episodes: int = 20,
    *,
    epsilon: float = 0.0,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Play greedy episodes in a host environment, seeded by `host_seeds`.

    Args:
        env, network, params, keys, episodes, epsilon, limit, progress: as for `greedy`, which also lists errors.
    """
    check.kind("env", env, HostEnv)
    _check(network, params, keys, episodes, epsilon)
    seeds, last = host_seeds(keys, episodes), _limit(env.spec, limit)
    with contextlib.closing(envs.open_host(env, keys.shape[0], episodes)) as vector:
        for i, now in enumerate(host_steps(vector, env.spec, network, params, seeds, epsilon=epsilon, limit=last)):
            if progress is not None:
                progress(int(now.ended.sum()), i)
            if now.ended.all():
                break
        returns, lost = now.returns.numpy(), now.returns.isnan()
        failures = {seed: message for seed, message in vector.broken.items() if lost[seed].any()}
    if len(failures) == len(returns):
        raise ValueError(f"env: expected episodes that can be played to their end, got {failures[0]}")
    return Evaluation(returns, (~now.ended & ~lost).numpy(), last, failures)


def not_played(seeds: int, episodes: int) -> Evaluation:
    """Make the result of an evaluation without episodes: returns of NaN and no limit."""
    check.count("seeds", seeds, 1)
    check.count("episodes", episodes, 1)
    shape = (seeds, episodes)
    return Evaluation(np.full(shape, np.nan), np.zeros(shape, np.bool_), None, {})


def play(env: Env, network: Network, epsilon: float, params: Params, episodes: Episodes, u: Tensor) -> Episodes:
    """Take one step in all episodes of one seed; rewards after an episode's end are not counted.

    Args:
        env, network, epsilon, params: as for `greedy`, of one seed.
        episodes: [N, ...].
        u: uniforms in [0, 1), [N, 2 + K]: two for the choice of the action and K for the environment.
    """
    action = _choose(network.apply(params, episodes.obs), episodes.legal, epsilon, u[:, :2])
    env_state, step = env.step(episodes.env_state, action, u[:, 2:])
    returns = episodes.returns + torch.where(episodes.ended, 0.0, step.reward)
    ended = episodes.ended | step.terminated | step.truncated
    return Episodes(env_state, step.obs, step.legal, returns, ended, step.next_obs)


@torch.no_grad()
def device_steps(
    env: Env,
    network: Network,
    params: Params,
    keys: Tensor,
    episodes: int = 20,
    *,
    epsilon: float = 0.0,
    limit: int | None = None,
    fast: Play | None = None,
) -> Iterator[Episodes]:
    """Yield the episodes [S, N] that `greedy_on_device` plays, at the start and after every step up to the limit.

    After the end of an episode its environment starts another one, whose rewards are not counted.

    Args:
        env, network, params, keys, episodes, epsilon, limit, fast: as for `greedy`, which also lists errors.
    """
    check.kind("env", env, Env)
    _check(network, params, keys, episodes, epsilon)
    last = min(_limit(env.spec, limit), env.spec.time_limit)
    keys = random.fold_in(keys.to(_device(params)), streams.EVALUATION)
    env_state, first = vmap(env.reset)(random.uniform(random.fold_in(keys, 0), (episodes, env.spec.noise)))
    ended = first.terminated | first.truncated
    now = Episodes(env_state, first.obs, first.legal, torch.zeros_like(first.reward), ended, first.next_obs)
    now = tree.separate(now)  # like the results of later steps, so that `fast` compiles once
    yield now
    slow, compile_after = vmap(partial(play, env, network, epsilon)), _compile_after(keys.device)
    for start in range(0, last, _DRAW):
        count = min(_DRAW, last - start)
        noise = random.uniform(random.fold_in(keys, 1 + start), (count, episodes, env.spec.noise))
        u = torch.cat([_choices(keys, _CHOICES + start, (count, episodes, 2), epsilon), noise], -1)
        advance = slow if fast is None or start < compile_after else fast
        for i in range(count):
            now = advance(params, now, u[:, i])
            yield now


def host_seeds(keys: Tensor, episodes: int) -> Tensor:
    """Draw seeds [S, episodes] of host environments, int64 in [0, 2**32), from keys [S, 2]."""
    return random.bits(random.fold_in(keys, streams.HOST_EVALUATION), (episodes,))


@torch.no_grad()
def host_steps(
    vector: HostVectorEnv,
    spec: EnvSpec,
    network: Network,
    params: Params,
    seeds: Tensor,
    *,
    epsilon: float = 0.0,
    limit: int | None = None,
) -> Iterator[HostEpisodes]:
    """Yield the episodes that `greedy_on_host` plays in an open environment, at the start and after every step.

    Random actions are drawn from the seeds of the episodes, too.

    Args:
        vector: an open environment, for example of `envs.open_host`.
        spec: specification of the environment.
        network, params, epsilon, limit: as for `greedy`.
        seeds: seeds of the episodes [S, N], for example of `host_seeds`.
    """
    apply, device = vmap(network.apply), _device(params)
    upload, download = transfer.uploads(device), transfer.downloads(device)
    step = vector.reset(seeds.tolist())
    _check_fit(apply, params, step.obs.to(device), spec.actions)
    ended, returns = step.terminated, step.reward.double()
    yield HostEpisodes(returns, ended)
    keys = torch.stack([torch.zeros_like(seeds), seeds], -1).to(device)
    for i in range(_limit(spec, limit)):
        obs, legal = upload((step.obs, step.legal))
        action = _choose(apply(params, obs), legal, epsilon, _choices(keys, i, (2,), epsilon))
        step, valid, alive, _ = vector.step(download(action))
        returns = returns + torch.where(ended | ~valid, 0.0, step.reward)
        returns = torch.where((alive | ended.all(-1)).unsqueeze(-1), returns, torch.nan)
        ended = ended | step.terminated | step.truncated | ~alive.unsqueeze(-1)
        yield HostEpisodes(returns, ended)


def step_limit(spec: EnvSpec, num_envs: int, steps: NDArray[np.int64], episodes: NDArray[np.int64]) -> int:
    """Compute the step limit of evaluation episodes: the environment's time limit if it has one.

    For an endless environment the limit is 10 times the mean length of a training episode, but at most the number of
    steps that training took in each environment; at least 1,000 and at most `spec.time_limit`. The mean is that of the
    seed with the longest episodes over the second half of training.

    Args:
        spec: specification of the environment.
        num_envs: environments per seed in training.
        steps: environment steps per seed, over all of its environments, at each of P reports, [P].
        episodes: number of ended episodes of each seed at each report, [P, S].
    """
    if not spec.endless:
        return spec.time_limit
    if not len(steps):
        return min(_MIN_LIMIT, spec.time_limit)
    half = np.searchsorted(steps, steps[-1] / 2, side="right") - 1  # the last report of the first half, if any
    before = (steps[half], episodes[half]) if half >= 0 else (0, 0 * episodes[0])
    ended = (episodes[-1] - before[1]).min()
    longest = steps[-1] / num_envs
    estimate = min(_MEAN_LENGTHS * (steps[-1] - before[0]) / ended, longest) if ended else longest
    return min(max(_MIN_LIMIT, math.ceil(estimate)), spec.time_limit)


def _limit(spec: EnvSpec, limit: int | None) -> int:
    """Return the requested limit, by default the environment's time limit."""
    if limit is None:
        return spec.time_limit
    check.count("limit", limit, 1)
    return limit


def _compile_after(device: torch.device) -> int:
    """Return the step from which `fast` is used: 0 on CUDA, where eager steps launch up to 1,012 kernels."""
    return _COMPILE_AFTER if device.type == "cpu" else 0


def _device(params: Params) -> torch.device:
    return next(iter(params.values())).device


def _choose(q: Tensor, legal: Tensor, epsilon: float, u: Tensor) -> Tensor:
    """Choose epsilon-greedy actions [...]. An epsilon of 0, the usual case, uses no random numbers."""
    if epsilon == 0:
        return masking.greedy(q, legal)
    return exploration.epsilon_greedy(q, legal, epsilon, u)


def _choices(keys: Tensor, number: int, shape: tuple[int, ...], epsilon: float) -> Tensor:
    """Draw the uniforms [..., *shape] for `_choose`; zeros for an epsilon of 0, which does not use them."""
    if epsilon == 0:
        return torch.zeros((*keys.shape[:-1], *shape), device=keys.device)
    return random.uniform(random.fold_in(keys, number), shape)


def _check_fit(apply: Callable[..., Tensor], params: Params, obs: Tensor, actions: int) -> None:
    try:
        q = apply(params, obs)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"env: expected observations that the network takes, got shape {list(obs.shape[2:])}: {error}"
        ) from None
    if q.shape[-1] != actions:
        raise ValueError(f"env: expected {q.shape[-1]} actions, the number of outputs of the network, got {actions}")


def _check(network: Network, params: Params, keys: Tensor, episodes: int, epsilon: float) -> None:
    check.kind("network", network, Network)
    check.count("episodes", episodes, 1)
    check.fraction("epsilon", epsilon)
    check.shapes("keys[S 2]", keys)
    check.integer("keys", keys)
    if (seeds := check.length("params", params)) != keys.shape[0]:
        raise ValueError(f"params: expected as many seeds as there are keys, {keys.shape[0]}, got {seeds}")
