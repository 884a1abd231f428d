"""Compare the MinAtar games with recorded results of the `minatar` package, for machines where it is not installed.

`minatar_record.npz` has, for each game, 80 episodes that start in mid-game states and the episodes that follow: initial
states, actions and, for every step, a checksum of the package's observation, reward and termination. If the package is
installed, the record is compared with it. `python tests/test_minatar_record.py` makes a new record.
"""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from test_minatar import (
    EACH,
    EVENTS,
    GAMES,
    LOOK,
    PLANTED,
    REACHED,
    PackageGame,
    anywhere,
    careful,
    generator,
    made,
    spoiled,
)

from fdqn import random, tree

RECORD = Path(__file__).with_name("minatar_record.npz")
COPIES, STEPS = 80, 80


def chance(name, env):
    """Draw uniforms [T + 1, C, K], the same on every machine."""
    return random.uniform(random.key(list(GAMES).index(name)), (STEPS + 1, COPIES, env.spec.noise))


def checksum(planes, reward, terminated, first):
    """Compute the checksum of a step: next observation, reward, termination and the observation to act on."""
    return zlib.crc32(b"".join(np.asarray(x, np.float32).tobytes() for x in (planes, reward, terminated, first)))


def start(name, env, leaves):
    """Return the recorded state in the dtypes of the game."""
    state, _ = env.reset(torch.zeros(COPIES, env.spec.noise))
    kept = iter(leaves)
    return tree.map(lambda x: torch.from_numpy(next(kept)).to(x.dtype), state)


def checksums(name, env, state, actions):
    """Yield the checksums [T] of a game of fdqn."""
    for action, u in zip(torch.from_numpy(actions).long(), chance(name, env)[1:], strict=True):
        state, step = env.step(state, action, u)
        yield checksum(step.next_obs, step.reward, step.terminated, step.obs)


def package_checksums(name, env, state, actions, met):
    """Yield the checksums [T] of the package's game, and collect the events that occurred."""
    package_games = [PackageGame(name, ramping=True) for _ in range(COPIES)]
    u = chance(name, env).numpy()
    for i, package_game in enumerate(package_games):
        package_game.reset(u[0, i])
        package_game.place(tree.index(state, i))
    for action, v in zip(actions.tolist(), u[1:], strict=True):
        before = [LOOK[name](package_game.game) for package_game in package_games]
        reward, terminated = zip(
            *(package_game.step(*given) for package_game, *given in zip(package_games, action, v, strict=True)),
            strict=True,
        )
        planes = np.array([package_game.planes() for package_game in package_games])
        for package_game, old, points, ended, w in zip(package_games, before, reward, terminated, v, strict=True):
            met.update(EVENTS[name](old, LOOK[name](package_game.game), points, ended))
            if ended:
                package_game.reset(w)
        yield checksum(planes, reward, terminated, np.array([package_game.planes() for package_game in package_games]))


def recorded(name):
    with np.load(RECORD) as kept:
        count = sum(key.startswith(f"{name}/state") for key in kept)
        return [kept[f"{name}/state{i}"] for i in range(count)], kept[f"{name}/actions"], kept[f"{name}/checksums"]


def check(name, env):
    """Compare a game with the record."""
    leaves, actions, expected = recorded(name)
    got = np.fromiter(checksums(name, env, start(name, env, leaves), actions), np.uint32)
    assert len(got) == len(expected) == STEPS
    wrong = np.flatnonzero(got != expected)
    assert not len(wrong), f"{name}: expected the recorded checksum, got another at step {wrong[0]} of {STEPS}"


@EACH
def test_same_path_as_recorded(name):
    check(name, made(name))


@EACH
def test_the_record_equals_the_package(name):
    pytest.importorskip("minatar")
    leaves, actions, expected = recorded(name)
    met, env = set(), made(name)
    assert list(package_checksums(name, env, start(name, env, leaves), actions, met)) == expected.tolist()
    assert REACHED[name] - met == set()


@PLANTED
def test_the_record_rejects_planted_bugs(monkeypatch, name, module, attribute, value):
    env = spoiled(monkeypatch, name, module, attribute, value)
    with pytest.raises(AssertionError, match="expected the recorded checksum"):
        check(name, env)


def record():
    """Play careful games and record the results of the package."""
    kept = {}
    for seed, name in enumerate(GAMES):
        env, actions = made(name), []
        state = first = anywhere(name, COPIES, seed=5 + seed)
        for t, u in enumerate(chance(name, env)[1:]):
            action = torch.randint(6, (COPIES,), generator=generator(t))
            cautious = torch.rand(COPIES, generator=generator(t)) < 0.8
            actions.append(torch.where(cautious, careful(env, state, u, action), action))
            state, _ = env.step(state, actions[-1], u)
        actions = torch.stack(actions).numpy().astype(np.uint8)
        checksums = np.fromiter(package_checksums(name, env, first, actions, set()), np.uint32)
        kept |= {f"{name}/actions": actions, f"{name}/checksums": checksums}
        kept |= {f"{name}/state{i}": smallest(x.numpy()) for i, x in enumerate(tree.leaves(first))}
    np.savez_compressed(RECORD, **kept)


def smallest(x):
    """Convert to the smallest dtype that holds all values."""
    return x.astype(np.result_type(np.min_scalar_type(x.min()), np.min_scalar_type(x.max())))


if __name__ == "__main__":
    record()
