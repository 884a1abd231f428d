"""How good trained lanes are: greedy episodes, in our environments or in Gymnasium's own."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from fdqn import actions, check, random
from fdqn.types import Env, Network, Params

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
def outside(
    make: Callable[[], Any], network: Network, params: Params, keys: Tensor, episodes: int = 20
) -> NDArray[np.float64]:
    """Returns [S, episodes] of the lanes `params` in Gymnasium environments, `make()` giving a fresh one a game.

    Each game's seed follows from its lane's key [S, 2]. Raises ValueError for fewer than one episode, or where the
    network does not take the environment's observations or gives another number of actions.
    """
    check.function("make", make)
    _check(network, params, keys, episodes)
    lanes = keys.shape[0]
    seeds = random.bits(random.fold_in(keys, random.OUTSIDE), (episodes,)).tolist()
    games: list[Any] = []
    try:
        for _ in range(lanes * episodes):
            games.append(make())
        table = [games[i * episodes : (i + 1) * episodes] for i in range(lanes)]
        obs = np.stack(
            [[g.reset(seed=s)[0] for g, s in zip(*row, strict=True)] for row in zip(table, seeds, strict=True)]
        )
        space, apply = games[0].action_space, vmap(network.apply)
        _check_fit(apply, params, obs, int(space.n))
        returns, ended = np.zeros((lanes, episodes)), np.zeros((lanes, episodes), dtype=bool)
        while not ended.all():
            chosen = apply(params, torch.from_numpy(obs).to(keys.device)).argmax(-1).cpu().numpy()
            for lane, i in np.argwhere(~ended):
                action = int(space.start + chosen[lane, i])
                obs[lane, i], reward, terminated, truncated, _ = table[lane][i].step(action)
                returns[lane, i] += float(reward)
                ended[lane, i] = terminated or truncated
        return returns
    finally:
        for game in games:
            game.close()


def _check_fit(apply: Callable[..., Tensor], params: Params, obs: NDArray[Any], actions: int) -> None:
    try:
        q = apply(params, torch.from_numpy(obs).to(next(iter(params.values())).device))
    except (ValueError, RuntimeError) as error:
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
