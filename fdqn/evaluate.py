"""How good trained lanes are: greedy episodes, in our environments or in worlds outside torch."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from fdqn import actions, check, random
from fdqn.types import Env, Network, Params, World

# Steps whose noise is drawn at once.
_DRAW = 64


class Games(NamedTuple):
    """One lane's episodes [N] under way."""

    env_state: Any
    obs: Tensor
    legal: Tensor
    returns: Tensor
    """[N], so far; fixed from an episode's end on."""
    ended: Tensor
    """[N] bool."""


def play(env: Env, network: Network, params: Params, games: Games, u: Tensor) -> Games:
    """One greedy step of one lane's episodes; rewards after an episode's end do not count. u [N, K]."""
    action = actions.greedy(network.apply(params, games.obs), games.legal)
    env_state, step = env.step(games.env_state, action, u)
    returns = games.returns + torch.where(games.ended, 0.0, step.reward)
    return Games(env_state, step.obs, step.legal, returns, games.ended | step.terminated | step.truncated)


@torch.no_grad()
def native(env: Env, network: Network, params: Params, keys: Tensor, episodes: int = 20) -> NDArray[np.float64]:
    """Returns [S, episodes] of the lanes `params` [S, ...], with the lanes' `keys` [S, 2] but noise no training used.

    An episode ends at the latest with the environment's time limit. Raises ValueError for fewer than one episode, and
    for as many lanes of `params` as there are not keys.
    """
    check.kind("env", env, Env)
    _check(network, params, keys, episodes)
    keys = random.fold_in(keys, random.EVALUATION)
    env_state, first = vmap(env.reset)(random.uniform(random.fold_in(keys, 0), (episodes, env.spec.noise)))
    ended = first.terminated | first.truncated
    games = Games(env_state, first.obs, first.legal, torch.zeros_like(first.reward), ended)
    advance = vmap(partial(play, env, network))
    for start in range(0, env.spec.time_limit, _DRAW):
        count = min(_DRAW, env.spec.time_limit - start)
        u = random.uniform(random.fold_in(keys, 1 + start), (count, episodes, env.spec.noise))
        for i in range(count):
            games = advance(params, games, u[:, i])
        if games.ended.all():
            break
    return games.returns.double().cpu().numpy()


@torch.no_grad()
def outside(world: World, network: Network, params: Params, keys: Tensor, episodes: int = 20) -> NDArray[np.float64]:
    """Returns [S, episodes] of the lanes `params` [S, ...] in a world, NaN for a lane whose environments broke.

    Each game's seed follows from its lane's key [S, 2]. An episode ends at the latest with the world's time limit.
    Raises ValueError for fewer than one episode, or where the network does not take the world's observations or gives
    another number of actions.
    """
    check.kind("world", world, World)
    _check(network, params, keys, episodes)
    apply = vmap(network.apply)
    with contextlib.closing(world.open(keys.shape[0], episodes)) as games:
        step = games.reset(random.bits(random.fold_in(keys, random.OUTSIDE), (episodes,)).tolist())
        _check_fit(apply, params, step.obs.to(keys.device), world.spec.actions)
        ended, returns = step.terminated, step.reward.double()
        for _ in range(world.spec.time_limit):
            q = apply(params, step.obs.to(keys.device))
            action = actions.greedy(q, step.legal.to(keys.device))
            step, valid, alive, _ = games.step(action.cpu().numpy())
            returns = returns + torch.where(ended | ~valid, 0.0, step.reward)
            returns = torch.where(alive.unsqueeze(-1), returns, torch.nan)
            ended = ended | step.terminated | step.truncated | ~alive.unsqueeze(-1)
            if ended.all():
                break
        return returns.numpy()


def greedy(env: Env | World, network: Network, params: Params, keys: Tensor, episodes: int = 20) -> NDArray[np.float64]:
    """`native` or `outside`, as the environment is."""
    return (outside if isinstance(env, World) else native)(env, network, params, keys, episodes)  # type: ignore[arg-type]


def _check_fit(apply: Callable[..., Tensor], params: Params, obs: Tensor, actions: int) -> None:
    try:
        q = apply(params, obs)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"env: expected observations that the network takes, got shape {list(obs.shape[2:])}: {error}"
        ) from None
    if q.shape[-1] != actions:
        raise ValueError(f"env: expected {q.shape[-1]} actions, as many as the network gives values, got {actions}")


def _check(network: Network, params: Params, keys: Tensor, episodes: int) -> None:
    check.kind("network", network, Network)
    check.count("episodes", episodes, 1)
    check.shapes("keys[S 2]", keys)
    check.integer("keys", keys)
    if (lanes := check.length("params", params)) != keys.shape[0]:
        raise ValueError(f"params: expected as many lanes as there are keys, {keys.shape[0]}, got {lanes}")
