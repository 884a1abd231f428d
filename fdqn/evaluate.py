"""How good trained lanes are: greedy episodes, in our environments or in worlds outside torch."""

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

from fdqn import actions, check, policies, random, transfer, tree
from fdqn.types import Env, EnvSpec, Network, Params, World

# Steps whose noise is drawn at once, and after which is asked whether all have ended.
_DRAW = 64

# Of the numbers that keys are folded with, the first for choices: beyond all steps, which chance of the world takes.
_CHOICES = 2**31

# Steps after which a compiled step takes over on a CPU: by then they have taken about as long as compiling one takes.
_SOON = 40 * _DRAW


# Where an environment has no time limit: the step limit as a multiple of the mean length in training, and its minimum.
_TIMES, _AT_LEAST = 10, 1_000


class Games(NamedTuple):
    """One lane's episodes [N] under way."""

    env_state: Any
    obs: Tensor
    legal: Tensor
    returns: Tensor
    """[N], so far; fixed from an episode's end on."""
    ended: Tensor
    """[N] bool."""
    next_obs: Tensor
    """[N, *O], what the last action led to, never the first of another episode; at the start it is `obs`."""


class Played(NamedTuple):
    """How episodes in a world stand, over lanes."""

    returns: Tensor
    """[S, N], so far; fixed from an episode's end on; NaN for a lane whose environments broke before all had ended."""
    ended: Tensor
    """[S, N] bool."""


Play = Callable[[Params, Games, Tensor], Games]
"""`play` over lanes: `params [S, ...], games [S, ...], u [S, N, 2 + K] -> games`."""

Progress = Callable[[int, int], None]
"""Told now and then how many episodes have ended, over all lanes, and how many steps each has been played."""

Cut = Callable[[NDArray[np.bool_], int], None]
"""Called once with a mask [S, N] of the episodes that reached the step limit without ending, and with that limit."""

Broke = Callable[[int, str], None]
"""Told of each lane whose environments broke before its episodes had ended, and what they said."""


def play(env: Env, network: Network, epsilon: float, params: Params, games: Games, u: Tensor) -> Games:
    """One step of one lane's episodes, greedy but for a share `epsilon` of them; rewards after an episode's end do not
    count. u [N, 2 + K].
    """
    action = _chosen(network.apply(params, games.obs), games.legal, epsilon, u[:, :2])
    env_state, step = env.step(games.env_state, action, u[:, 2:])
    returns = games.returns + torch.where(games.ended, 0.0, step.reward)
    ended = games.ended | step.terminated | step.truncated
    return Games(env_state, step.obs, step.legal, returns, ended, step.next_obs)


@torch.no_grad()
def steps(
    env: Env,
    network: Network,
    params: Params,
    keys: Tensor,
    episodes: int = 20,
    fast: Play | None = None,
    epsilon: float = 0.0,
    limit: int | None = None,
) -> Iterator[Games]:
    """The games [S, N] that `native` plays, at their start and after every step, up to `limit` steps or the
    environment's time limit.

    Where an episode has ended, the environment plays another, which counts for nothing.
    """
    check.kind("env", env, Env)
    _check(network, params, keys, episodes, epsilon)
    limit = min(_limit(env.spec, limit), env.spec.time_limit)
    keys = random.fold_in(keys.to(_device(params)), random.EVALUATION)
    env_state, first = vmap(env.reset)(random.uniform(random.fold_in(keys, 0), (episodes, env.spec.noise)))
    ended = first.terminated | first.truncated
    games = Games(env_state, first.obs, first.legal, torch.zeros_like(first.reward), ended, first.next_obs)
    games = tree.separate(games)  # as those of later steps are, so that a player is compiled once
    yield games
    slow, soon = vmap(partial(play, env, network, epsilon)), _slow_steps(keys.device)
    for start in range(0, limit, _DRAW):
        count = min(_DRAW, limit - start)
        noise = random.uniform(random.fold_in(keys, 1 + start), (count, episodes, env.spec.noise))
        u = torch.cat([_choices(keys, _CHOICES + start, (count, episodes, 2), epsilon), noise], -1)
        advance = slow if fast is None or start < soon else fast
        for i in range(count):
            games = advance(params, games, u[:, i])
            yield games


def native(
    env: Env,
    network: Network,
    params: Params,
    keys: Tensor,
    episodes: int = 20,
    progress: Progress | None = None,
    fast: Play | None = None,
    epsilon: float = 0.0,
    limit: int | None = None,
    cut: Cut | None = None,
) -> NDArray[np.float64]:
    """Returns [S, episodes] of the lanes `params` [S, ...], with the lanes' `keys` [S, 2] but noise no training used.

    A fraction `epsilon` of actions is random. An episode ends at the latest at the environment's time limit, or is cut
    after `limit` steps; `cut` is called with a mask of the episodes that were cut. `fast` is `play` over lanes,
    compiled: it plays on where episodes are long, on CUDA from the first step. All is computed on the device of
    `params`. Raises ValueError for fewer than one episode, and for as many lanes of `params` as there are not keys.
    """
    check.kind("env", env, Env)
    last = min(_limit(env.spec, limit), env.spec.time_limit)
    for i, games in enumerate(steps(env, network, params, keys, episodes, fast, epsilon, last)):
        if i % _DRAW == 0 or i == last:
            if progress is not None:
                progress(int(games.ended.sum()), i)
            if games.ended.all():
                break
    if cut is not None:
        cut(~games.ended.cpu().numpy(), last)
    return games.returns.double().cpu().numpy()


def seeds_outside(keys: Tensor, episodes: int) -> Tensor:
    """What each game of a world is seeded with, [S, episodes], from the lanes' keys [S, 2]."""
    return random.bits(random.fold_in(keys, random.OUTSIDE), (episodes,))


@torch.no_grad()
def steps_outside(
    games: Any,
    spec: EnvSpec,
    network: Network,
    params: Params,
    seeds: Tensor,
    epsilon: float = 0.0,
    limit: int | None = None,
) -> Iterator[Played]:
    """How the games of a world that is open stand, seeded by `seeds` [S, N], at their start and after every step, up to
    `limit` steps or the world's time limit. What is random of their actions follows from their seeds too.
    """
    apply, device = vmap(network.apply), _device(params)
    upload, download = transfer.uploads(device), transfer.downloads(device)
    step = games.reset(seeds.tolist())
    _check_fit(apply, params, step.obs.to(device), spec.actions)
    ended, returns = step.terminated, step.reward.double()
    yield Played(returns, ended)
    keys = torch.stack([torch.zeros_like(seeds), seeds], -1).to(device)
    for i in range(_limit(spec, limit)):
        obs, legal = upload((step.obs, step.legal))
        action = _chosen(apply(params, obs), legal, epsilon, _choices(keys, i, (2,), epsilon))
        step, valid, alive, _ = games.step(download(action))
        returns = returns + torch.where(ended | ~valid, 0.0, step.reward)
        returns = torch.where((alive | ended.all(-1)).unsqueeze(-1), returns, torch.nan)
        ended = ended | step.terminated | step.truncated | ~alive.unsqueeze(-1)
        yield Played(returns, ended)


def outside(
    world: World,
    network: Network,
    params: Params,
    keys: Tensor,
    episodes: int = 20,
    progress: Progress | None = None,
    epsilon: float = 0.0,
    broke: Broke | None = None,
    limit: int | None = None,
    cut: Cut | None = None,
) -> NDArray[np.float64]:
    """Returns [S, episodes] of the lanes `params` [S, ...] in a world, a share `epsilon` of actions random; NaN for a
    lane whose environments broke before all of its episodes had ended.

    Each game's seed follows from its lane's key [S, 2]. An episode is cut after `limit` steps, by default after the
    world's time limit; `cut` is called with a mask of those that had not ended by then. Raises ValueError for fewer
    than one episode, or where the network does not take the world's observations or gives another number of actions, or
    where all lanes broke.
    """
    check.kind("world", world, World)
    _check(network, params, keys, episodes, epsilon)
    seeds, last = seeds_outside(keys, episodes), _limit(world.spec, limit)
    with contextlib.closing(world.open(keys.shape[0], episodes)) as games:
        for i, played in enumerate(steps_outside(games, world.spec, network, params, seeds, epsilon, last)):
            if progress is not None:
                progress(int(played.ended.sum()), i)
            if played.ended.all():
                break
        returns = played.returns.numpy()
        broken = getattr(games, "broken", {})
        lost = {lane: words for lane, words in broken.items() if np.isnan(returns[lane]).any()}
        if len(lost) == len(returns):
            raise ValueError(f"env: expected episodes that can be played to their end, got {lost[0]}")
        for lane, words in lost.items():
            if broke is not None:
                broke(lane, words)
        if cut is not None:
            cut((~played.ended & ~played.returns.isnan()).numpy(), last)
        return returns


def greedy(
    env: Env | World,
    network: Network,
    params: Params,
    keys: Tensor,
    episodes: int = 20,
    progress: Progress | None = None,
    fast: Play | None = None,
    epsilon: float = 0.0,
    broke: Broke | None = None,
    limit: int | None = None,
    cut: Cut | None = None,
) -> NDArray[np.float64]:
    """`native` or `outside`, as the environment is; nothing is compiled of a world, and only its environments break."""
    if isinstance(env, World):
        return outside(env, network, params, keys, episodes, progress, epsilon, broke, limit, cut)
    return native(env, network, params, keys, episodes, progress, fast, epsilon, limit, cut)


def step_limit(spec: EnvSpec, num_envs: int, steps: NDArray[np.int64], episodes: NDArray[np.int64]) -> int:
    """Steps after which evaluation cuts an episode: the environment's time limit. Where it has none, 10 times the mean
    length of a training episode, but no more than the steps that training took in each environment; at least 1,000 and
    at most `spec.time_limit`.

    The mean is over the second half of training, of the seed for which it is longest. `steps` [P] and `episodes` [P, S]
    are the environment steps of a seed, in all of its `num_envs` environments, and its ended episodes at each report.
    """
    if not spec.endless:
        return spec.time_limit
    if not len(steps):
        return min(_AT_LEAST, spec.time_limit)
    half = np.searchsorted(steps, steps[-1] / 2, side="right") - 1  # the last report of the first half, or none
    before = (steps[half], episodes[half]) if half >= 0 else (0, 0 * episodes[0])
    ended = (episodes[-1] - before[1]).min()
    followed = steps[-1] / num_envs
    likely = min(_TIMES * (steps[-1] - before[0]) / ended, followed) if ended else followed
    return min(max(_AT_LEAST, math.ceil(likely)), spec.time_limit)


def _limit(spec: EnvSpec, limit: int | None) -> int:
    if limit is None:
        return spec.time_limit
    check.count("limit", limit, 1)
    return limit


def _slow_steps(device: torch.device) -> int:
    """Steps after which a compiled step takes over: on a CPU _SOON; on CUDA, at up to 1,012 launches a step, none."""
    return _SOON if device.type == "cpu" else 0


def _device(params: Params) -> torch.device:
    return next(iter(params.values())).device


def _chosen(q: Tensor, legal: Tensor, epsilon: float, u: Tensor) -> Tensor:
    """Actions [...], greedy but for a share of them. Where it is 0, as it mostly is, nothing is spent on chance."""
    if epsilon == 0:
        return actions.greedy(q, legal)
    return policies.epsilon_greedy(q, legal, epsilon, u)


def _choices(keys: Tensor, number: int, shape: tuple[int, ...], epsilon: float) -> Tensor:
    """The uniforms [..., *shape] of that number that `_chosen` takes; where it looks at none, zeros."""
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
        raise ValueError(f"env: expected {q.shape[-1]} actions, as many as the network gives values, got {actions}")


def _check(network: Network, params: Params, keys: Tensor, episodes: int, epsilon: float) -> None:
    check.kind("network", network, Network)
    check.count("episodes", episodes, 1)
    check.share("epsilon", epsilon)
    check.shapes("keys[S 2]", keys)
    check.integer("keys", keys)
    if (lanes := check.length("params", params)) != keys.shape[0]:
        raise ValueError(f"params: expected as many lanes as there are keys, {keys.shape[0]}, got {lanes}")
