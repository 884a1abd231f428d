"""Replay of stacked frames: each frame is stored once, and samples equal the stored transitions bit for bit."""

import functools

import numpy as np
import pytest
import torch
from torch.func import vmap

from fdqn import random, tree
from fdqn.replay import frames, n_step, ring
from fdqn.testing import asserts, laws, programs
from fdqn.types import Transition

STACK, SIZE = 3, (2, 2)


class FrameGenerator:
    """Generator of transitions with stacked frames of E environments whose episodes end at random."""

    def __init__(self, num_envs, mean_length, seed, idle=0.2):
        self.rng, self.num_envs, self.mean, self.idle = np.random.default_rng(seed), num_envs, mean_length, idle
        self.obs = np.stack([self.start() for _ in range(num_envs)])

    def frame(self):
        return self.rng.integers(0, 3, SIZE, dtype=np.uint8)  # few values, so that frames may be equal

    def start(self):
        return np.stack([np.zeros(SIZE, np.uint8)] * (STACK - 1) + [self.frame()])

    def step(self):
        """Return transitions [E], and flags [E] of ended episodes and of steps that were taken."""
        obs = self.obs
        valid = self.rng.random(self.num_envs) >= self.idle
        next_obs = np.stack([np.concatenate([o[1:], self.frame()[None]]) for o in obs])
        ended = self.rng.random(self.num_envs) < 1 / self.mean
        terminated = ended & (self.rng.random(self.num_envs) < 0.5)
        after = np.stack([self.start() if e else n for e, n in zip(ended, next_obs, strict=True)])
        self.obs = np.where(valid[:, None, None, None], after, obs)
        number, reward = self.rng.integers(0, 9, self.num_envs), self.rng.normal(size=self.num_envs)
        parts = obs, number, reward, np.where(terminated, 0.0, 1.0), next_obs, np.ones((self.num_envs, 2), bool)
        return Transition(*map(torch.from_numpy, parts)), torch.from_numpy(ended), torch.from_numpy(valid)


ROW, GAMMA = tree.index(FrameGenerator(1, 1, seed=0).step()[0], 0), torch.tensor(0.9)


def stored(generator, capacity, steps=1):
    """Return a buffer for the generator and its initial state."""
    rows = n_step.wrap(ring.buffer(capacity), generator.num_envs, steps)
    buffer = frames.wrap(rows, generator.num_envs, STACK, capacity, steps)
    return buffer, buffer.init(ROW)


def all_rows(buffer, state):
    """Return all rows in one tree, oldest first."""
    count = int(buffer.size(state))
    return buffer.sample(state, (torch.arange(count) * 2**32).div(count, rounding_mode="floor") + 1, 0).batch


def assert_newest_equal(expected, ours, count):
    """Compare the newest rows that both have, at most `count`; return how many there were."""
    count = min(count, len(expected.reward), len(ours.reward))
    asserts.assert_trees_equal(*(tree.map(lambda x: x[len(x) - count :], rows) for rows in (expected, ours)))
    return count


def added(buffer, state, batch, ended, valid):
    return buffer.add(state, batch, ended, valid, GAMMA)[0]


@pytest.mark.parametrize("mean_length", [1, 2, 5, 50])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_samples_equal_the_stored_transitions(num_envs, mean_length):
    """Compare all rows of the buffer with the newest transitions; long episodes use the full capacity."""
    generator = FrameGenerator(num_envs, mean_length, seed=num_envs, idle=0.0 if mean_length == 50 else 0.2)
    (buffer, state), log, gone = stored(generator, 30), None, 0
    for _ in range(150):
        batch, ended, valid = generator.step()
        state = added(buffer, state, batch, ended, valid)
        new = tree.index(batch, valid)
        log = new if log is None else tree.map(lambda old, x: torch.cat([old, x])[-30:], log, new)
        rows = all_rows(buffer, state)
        count = assert_newest_equal(log, rows, 30)
        assert count == len(rows.reward)
        assert count or not len(log.reward)
        gone = max(gone, len(log.reward) - count)
    assert int(state.buffer.added) > 60
    assert gone == 0 if mean_length == 50 else gone > 0 if mean_length == 1 else gone >= 0


@pytest.mark.parametrize("steps", [2, 3, 12])
@pytest.mark.parametrize("mean_length", [1, 2, 5, 50])
def test_n_step_samples_equal_those_of_a_plain_buffer(mean_length, steps):
    """Compare with replay of the same rows with whole observations, also for few rows and short episodes."""
    generator = FrameGenerator(3, mean_length, seed=steps)
    (buffer, state), plain = stored(generator, 20, steps), n_step.wrap(ring.buffer(2_000), 3, steps)
    whole = plain.init(ROW)
    for _ in range(120):
        step = generator.step()
        state, whole = added(buffer, state, *step), added(plain, whole, *step)
        if not int(plain.size(whole)):
            continue
        assert int(buffer.size(state)) > 0
        assert_newest_equal(all_rows(plain, whole), all_rows(buffer, state), 20)


def test_rows_with_overwritten_frames_are_detected(monkeypatch):
    """Plant a bug: keep rows whose frames were overwritten."""
    monkeypatch.setattr(frames, "lost", lambda before, after: torch.tensor(-1))
    with pytest.raises(AssertionError):
        test_samples_equal_the_stored_transitions(3, 1)


def test_ignored_ends_of_episodes_are_detected(monkeypatch):
    """Plant a bug: ignore the ends of episodes."""
    original = frames.add
    monkeypatch.setattr(
        frames, "add", lambda held, obs, next_obs, ended, valid: original(held, obs, next_obs, ended & False, valid)
    )
    with pytest.raises(AssertionError):
        test_samples_equal_the_stored_transitions(1, 5)


def test_every_row_with_all_frames_is_kept():
    """Check that exactly the rows with all frames remain, by counting the frames of each environment."""
    generator = FrameGenerator(3, 2, seed=5)
    buffer, state = stored(generator, 30)
    size, written, log, fresh = state.frames.ring.shape[1], [0, 0, 0], [], [True] * 3
    for _ in range(100):
        batch, ended, valid = generator.step()
        state = added(buffer, state, batch, ended, valid)
        for i in range(3):
            if valid[i]:
                written[i] += 1 + fresh[i]
                log.append((i, written[i] - 2))  # the newest frame is that of next_obs
                fresh[i] = bool(ended[i])
        whole = [position - STACK + 1 >= written[i] - size for i, position in log]
        newest = len(whole) - max((i + 1 for i, is_whole in enumerate(whole) if not is_whole), default=0)
        assert int(buffer.size(state)) == min(newest, 30)


def test_each_frame_is_stored_once():
    generator = FrameGenerator(2, 50, seed=3)
    _, state = stored(generator, 1_000)
    stacked = 2 * 1_000 * STACK * 4
    assert state.frames.ring.nbytes < stacked / (2 * STACK) * 1.2
    assert state.buffer.rows.obs.shape == state.buffer.rows.next_obs.shape == (1_000, 2)


def test_rows_are_sampled_uniformly():
    generator = FrameGenerator(3, 4, seed=9)
    buffer, state = stored(generator, 20)
    for _ in range(40):
        batch, ended, valid = generator.step()
        state = added(buffer, state, batch._replace(reward=torch.arange(3.0).double()), ended, valid)
    count = int(buffer.size(state))
    bits = random.bits(random.key(0), (4_000 * count,))
    at = (state.buffer.added - count + random.index(bits, count)) % 20
    drawn = buffer.sample(state, bits, 0)
    assert torch.equal(drawn.indices, at)
    assert torch.equal(drawn.batch.reward, state.buffer.rows.reward[at])
    assert torch.bincount(at, minlength=20).sort().values[-count:].float().std() < 5 * 4_000**0.5


def test_cut_starts_a_new_episode():
    """Check that the next observation after `cut` is stored as the first of an episode."""
    generator = FrameGenerator(2, 1e9, seed=1)
    buffer, state = stored(generator, 30)
    batch, ended, valid = generator.step()
    state = added(buffer, state, batch, ended, torch.ones_like(valid))
    generator.obs = np.stack([generator.start(), generator.start()])
    batch, ended, _ = generator.step()
    right = added(buffer, buffer.cut(state), batch, ended, torch.ones_like(valid))
    wrong = added(buffer, state, batch, ended, torch.ones_like(valid))
    asserts.assert_trees_equal(tree.index(batch, 1), tree.index(all_rows(buffer, right), -1))
    with pytest.raises(AssertionError):
        asserts.assert_trees_equal(tree.index(batch, 1), tree.index(all_rows(buffer, wrong), -1))


INVALID = {
    ("buffer", "buffer", "added"): 10**9,
    ("buffer", "buffer", "rows", "obs"): 3,
    ("buffer", "buffer", "rows", "next_obs"): -1,
    ("buffer", "recent", "rows", "obs"): 99,
    ("buffer", "recent", "taken"): 10**9,
    ("buffer", "recent", "since"): -1,
    ("frames", "written"): 2**62,
    ("frames", "row"): 10**9,
    ("frames", "oldest"): -1,
}


def test_bounds_detect_invalid_indices():
    """Check that bounds detect indices outside of the rings, which a compiled step would follow unchecked."""
    generator = FrameGenerator(3, 4, seed=2)
    buffer, state = stored(generator, 20, steps=2)
    for _ in range(9):
        state = added(buffer, state, *generator.step())

    def in_bounds(state):
        limits = buffer.bounds(tree.stack([state, state]), 27)
        return all(bool(((x >= 0) & (x <= most)).all()) for x, most in limits.values())

    assert in_bounds(state)
    for path, value in INVALID.items():
        invalid = tree.clone(state)
        functools.reduce(getattr, path, invalid).fill_(value)
        assert not in_bounds(invalid), path


@pytest.mark.parametrize("steps", [1, 3])
def test_laws_of_frames(steps):
    generators = [FrameGenerator(3, 3, seed=i) for i in range(2)]
    buffer, states = stored(generators[0], 20, steps)[0], [stored(generator, 20, steps)[1] for generator in generators]
    one_step, sample = functools.partial(added, buffer), functools.partial(buffer.sample, oldest=0)
    for _ in range(12):
        states = [one_step(state, *generator.step()) for state, generator in zip(states, generators, strict=True)]
    given = [generator.step() for generator in generators]
    laws.pure(one_step, states[0], *given[0])
    laws.vmapped(one_step, tree.stack(states), *map(tree.stack, zip(*given, strict=True)))
    laws.compiled(one_step, states[0], *given[0], again=[(states[1], *given[1])])
    programs.donated(one_step, states[0], *given[0])
    bits = torch.arange(7) << 28
    laws.vmapped(sample, tree.stack(states), torch.stack([bits, bits]))
    laws.compiled(sample, states[0], bits)
    both = vmap(one_step)(tree.stack(states), *map(tree.stack, zip(*given, strict=True)))
    alone = one_step(states[1], *given[1])
    asserts.assert_trees_equal(alone, tree.index(both, 1))


def test_sizes_of_the_ring():
    assert frames.capacity(1_600, 4, 4, 1) == 400 + 25 + 4 + 8
    with pytest.raises(ValueError, match=r"^capacity: expected at least 6, got 5"):
        frames.init(torch.zeros(3, 2, 2), 1, 5)
    held = frames.init(torch.zeros(3, 2, 2, dtype=torch.uint8), 2, 6)
    assert held.ring.shape == (2, 6, 2, 2)
    assert frames.stack(held, torch.tensor([[0, 5], [1, 2]])).shape == (2, 3, 2, 2)


def test_an_example_without_the_stack_is_refused():
    with pytest.raises(ValueError, match=r"^example\.obs: expected shape \[4 2 2\], got \[3, 2, 2\]"):
        frames.wrap(ring.buffer(8), 1, STACK + 1, 8).init(ROW)
