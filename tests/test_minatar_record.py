"""The MinAtar games where the `minatar` package is not installed: what it answered is kept in `minatar_record.npz`.

Of each game 80 episodes from the middle of things are recorded, and those that follow: where they begin, the actions,
and of every step a checksum of what the package showed, paid and ended. Where the package is there, the record is held
to it. `python tests/test_minatar_record.py` makes it anew.
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
    Twin,
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
    """Uniforms [T + 1, C, K], the same on every machine."""
    return random.uniform(random.key(list(GAMES).index(name)), (STEPS + 1, COPIES, env.spec.noise))


def checksum(planes, reward, terminated, first):
    """Of one step: what it led to, what it paid, whether that was the end, and what is acted on next."""
    return zlib.crc32(b"".join(np.asarray(x, np.float32).tobytes() for x in (planes, reward, terminated, first)))


def start(name, env, leaves):
    """The recorded state, in the types of the game's own."""
    state, _ = env.reset(torch.zeros(COPIES, env.spec.noise))
    kept = iter(leaves)
    return tree.map(lambda x: torch.from_numpy(next(kept)).to(x.dtype), state)


def ours(name, env, state, actions):
    """The checksums [T] of our game."""
    for action, u in zip(torch.from_numpy(actions).long(), chance(name, env)[1:], strict=True):
        state, step = env.step(state, action, u)
        yield checksum(step.next_obs, step.reward, step.terminated, step.obs)


def theirs(name, env, state, actions, met):
    """The checksums [T] of the package's game; counts what happened in it."""
    twins = [Twin(name, ramping=True) for _ in range(COPIES)]
    u = chance(name, env).numpy()
    for i, twin in enumerate(twins):
        twin.reset(u[0, i])
        twin.place(tree.index(state, i))
    for action, v in zip(actions.tolist(), u[1:], strict=True):
        before = [LOOK[name](twin.game) for twin in twins]
        reward, terminated = zip(
            *(twin.step(*given) for twin, *given in zip(twins, action, v, strict=True)), strict=True
        )
        planes = np.array([twin.planes() for twin in twins])
        for twin, old, points, ended, w in zip(twins, before, reward, terminated, v, strict=True):
            met.update(EVENTS[name](old, LOOK[name](twin.game), points, ended))
            if ended:
                twin.reset(w)
        yield checksum(planes, reward, terminated, np.array([twin.planes() for twin in twins]))


def recorded(name):
    with np.load(RECORD) as kept:
        count = sum(key.startswith(f"{name}/state") for key in kept)
        return [kept[f"{name}/state{i}"] for i in range(count)], kept[f"{name}/actions"], kept[f"{name}/checksums"]


def check(name, env):
    """Our game beside the record."""
    leaves, actions, expected = recorded(name)
    got = np.fromiter(ours(name, env, start(name, env, leaves), actions), np.uint32)
    assert len(got) == len(expected) == STEPS
    wrong = np.flatnonzero(got != expected)
    assert not len(wrong), f"{name}: expected what the package did, got something else at step {wrong[0]} of {STEPS}"


@EACH
def test_same_path_as_recorded(name):
    check(name, made(name))


@EACH
def test_the_record_is_the_packages(name):
    pytest.importorskip("minatar")
    leaves, actions, expected = recorded(name)
    met, env = set(), made(name)
    assert list(theirs(name, env, start(name, env, leaves), actions, met)) == expected.tolist()
    assert REACHED[name] - met == set()


@PLANTED
def test_the_record_rejects_planted_bugs(monkeypatch, name, module, attribute, value):
    env = spoiled(monkeypatch, name, module, attribute, value)
    with pytest.raises(AssertionError, match="expected what the package did"):
        check(name, env)


def record():
    """Play careful games of our own and ask the package what it would have answered."""
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
        checksums = np.fromiter(theirs(name, env, first, actions, set()), np.uint32)
        kept |= {f"{name}/actions": actions, f"{name}/checksums": checksums}
        kept |= {f"{name}/state{i}": smallest(x.numpy()) for i, x in enumerate(tree.leaves(first))}
    np.savez_compressed(RECORD, **kept)


def smallest(x):
    """The same numbers in as few bytes."""
    return x.astype(np.result_type(np.min_scalar_type(x.min()), np.min_scalar_type(x.max())))


if __name__ == "__main__":
    record()
