"""Checks of Gymnasium environments: actions have the dtype of the space, action masks follow the convention of
sb3-contrib, and invalid return values are refused with a message.
"""

import itertools
import pickle
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_host_environments import SETTINGS, trained

from fdqn import envs, networks, random
from fdqn.envs.host import gymnasium as gym
from fdqn.envs.host.checked import Checked
from fdqn.envs.host.spaces import encoding
from fdqn.experiment import assemble, memory
from fdqn.experiment.settings import Settings
from fdqn.report import video
from fdqn.training import evaluate

KEYS = random.key([0, 1])


class Strict(gymnasium.Env):
    """Environment that accepts only actions of its space, gives a reward of 1 per step and terminates after 3 steps."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(0, 9, (2,), np.float32)

    def __init__(self, render_mode=None, dtype=np.int32, start=0):
        self.render_mode, self.action_space = render_mode, spaces.Discrete(3, start=start, dtype=dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.shown(), {}

    def shown(self):
        return np.full(2, self.time, np.float32)

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} of {action.dtype}"
        self.time += 1
        return self.shown(), 1.0, self.time == 3, False, {}

    def render(self):
        return np.full((4, 4, 3), self.time, np.uint8)


class Small(Strict):
    """Environment with int8 actions that can be pickled."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode, np.int8, -2)


# Actions


ACTIONS = [(np.int32, 0), (np.int8, -3), (np.int16, 100), (np.uint8, 250), (np.uint64, 1), (np.int64, 7)]


@pytest.mark.parametrize(("dtype", "start"), ACTIONS)
def test_actions_have_the_dtype_of_the_space_in_training_evaluation_and_video(monkeypatch, dtype, start):
    """Train with other dtypes than int64, which Gymnasium's checker permits."""
    host_env = gym.from_factory("strict", lambda render_mode=None: Strict(render_mode, dtype, start))
    monkeypatch.setattr(envs, "find", lambda name: host_env)
    last = trained(SETTINGS)
    assert last.state.metrics.failed.tolist() == [-1, -1]
    assert (last.state.metrics.episodes > 0).all()
    network = networks.mlp(2, (4,), 3)
    params = network.init(KEYS)
    assert evaluate.greedy_on_host(host_env, network, params, KEYS, 2).returns.tolist() == [[3.0, 3.0]] * 2
    scenes = list(itertools.islice(video.host_scenes("strict", host_env, network, params, KEYS, 2, [0, 1]), 4))
    assert scenes[3].returns.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_actions_have_the_dtype_of_the_space_in_synchronous_environments(mode):
    host_env = gym.from_vector("strict", lambda n: SyncVectorEnv([Strict] * n, autoreset_mode=mode))
    vector_env = host_env.open(1, 2)
    vector_env.reset([[1, 2]])
    for _ in range(8):
        vector_env.step(np.array([[0, 2]]))
    assert vector_env.broken == {}


class StrictVector(gymnasium.vector.VectorEnv):
    """Vector environment that accepts only actions of its space."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}

    def __init__(self, num_envs):
        self.num_envs, self.single_action_space = num_envs, spaces.Discrete(3, start=2, dtype=np.int16)
        self.single_observation_space = Strict.observation_space
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        return np.zeros((self.num_envs, 2), np.float32), {}

    def step(self, actions):
        assert self.action_space.contains(actions), actions.dtype
        none = np.zeros(self.num_envs, bool)
        return np.zeros((self.num_envs, 2), np.float32), np.ones(self.num_envs), none, none, {}


def test_actions_have_the_dtype_of_the_space_of_a_vector_environment():
    host_env = gym.from_vector("taking", StrictVector)
    vector_env = host_env.open(2, 3)
    vector_env.reset([[1, 2, 3], [4, 5, 6]])
    for _ in range(30):
        vector_env.step(np.ones((2, 3), np.int64))
    assert vector_env.broken == {}


def test_actions_have_the_dtype_of_the_space_of_a_registered_environment(monkeypatch):
    monkeypatch.setitem(gymnasium.registry, "Strict-v0", gymnasium.envs.registration.EnvSpec("Strict-v0", Strict))
    vector_env = gym.named("Strict-v0").open(1, 1)
    vector_env.reset([[1]])
    assert vector_env.step(np.array([[2]])).alive.all()


def test_int64_actions_are_detected():
    """Check that int64 actions, the planted bug, raise."""
    env = Strict()
    env.reset()
    with pytest.raises(AssertionError, match="int64"):
        env.step(np.int64(1))


# Masks


class Masked(Strict):
    """Environment with one legal action per step, given only by `action_masks()`, as in sb3-contrib."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode, np.int64, 4)

    def action_masks(self):
        assert self.time < 3, "action_masks() was called after the end"
        return np.arange(3) == (self.time + 1) % 3

    def step(self, action):
        assert self.action_masks()[action - 4], "an illegal action was taken"
        return super().step(action)


def wrapped():
    """Return an environment whose method is behind a wrapper."""
    return gymnasium.wrappers.TimeLimit(Masked(), 2)


@pytest.mark.parametrize("make", [Masked, wrapped])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_masks_of_the_method_are_used(monkeypatch, make, mode):
    """Train with an environment that raises at illegal actions."""
    host_env = gym.from_vector("masked", lambda n: SyncVectorEnv([make] * n, autoreset_mode=mode))
    monkeypatch.setattr(envs, "find", lambda name: host_env)
    last = trained(SETTINGS)
    assert last.state.metrics.failed.tolist() == [-1, -1]
    assert (last.state.metrics.episodes > 0).all()
    rows, count = last.state.buffer.rows, int(last.state.buffer.added[0])
    going_on = rows.discount[0, :count] == 1
    assert (rows.next_legal[0, :count][going_on].sum(-1) == 1).all()
    network = networks.mlp(2, (4,), 3)
    assert evaluate.greedy_on_host(host_env, network, network.init(KEYS), KEYS, 2).returns.min() >= 2


def test_masks_of_the_method_are_used_for_factories_and_registered_names(monkeypatch):
    monkeypatch.setitem(gymnasium.registry, "Masked-v0", gymnasium.envs.registration.EnvSpec("Masked-v0", Masked))
    for host_env in (gym.from_factory("masked", Masked), gym.named("Masked-v0")):
        vector_env = host_env.open(1, 2)
        step = vector_env.reset([[1, 2]])
        for t in range(7):
            assert step.legal[0].tolist() == [[action == (t % 3 + 1) % 3 for action in range(3)]] * 2
            step = vector_env.step(step.legal.long().argmax(-1).numpy()).step
        assert vector_env.broken == {}


class WithTwoMasks(Masked):
    """Environment with a mask in its observations or infos; `action_masks()` must not be called."""

    def __init__(self, where):
        super().__init__()
        self.where = where
        if where == "obs":
            self.observation_space = spaces.Dict({"a": Strict.observation_space, "action_mask": spaces.MultiBinary(3)})

    def action_masks(self):
        raise AssertionError("action_masks() was called")

    def right(self):
        return (np.arange(3) == 2).astype(np.int8)

    def with_mask(self, obs, *rest, info):
        shown = {"a": obs, "action_mask": self.right()} if self.where == "obs" else obs
        return shown, *rest, {"action_mask": self.right().tolist()} if self.where == "info" else info

    def reset(self, **how):
        obs, info = super().reset(**how)
        return self.with_mask(obs, info=info)

    def step(self, action):
        assert action == 6
        *result, info = Strict.step(self, action)
        return self.with_mask(*result, info=info)


@pytest.mark.parametrize("where", ["obs", "info"])
def test_a_mask_in_observations_or_infos_takes_precedence(where):
    vector_env = gym.from_factory("masks", partial(WithTwoMasks, where)).open(1, 2)
    step = vector_env.reset([[1, 2]])
    for _ in range(5):
        assert step.legal[0].tolist() == [[False, False, True]] * 2
        step = vector_env.step(step.legal.long().argmax(-1).numpy()).step
    assert vector_env.broken == {}


def test_a_mask_of_the_wrong_length_is_refused():
    env = Masked
    vector_env = gym.from_factory("short", type("Short", (env,), {"action_masks": lambda self: [True, False]})).open(
        1, 1
    )
    with pytest.raises(ValueError, match="action_mask: expected 3 entries, one an action, got"):
        vector_env.reset([[1]])


# Invalid return values


class Changed(Strict):
    """Environment that changes the return values of `reset` and `step` by the given functions."""

    def __init__(self, reset=None, step=None):
        super().__init__(dtype=np.int64)
        self.by_reset, self.by_step = reset, step

    def reset(self, *, seed=None, options=None):
        right = super().reset(seed=seed)
        return self.by_reset(*right) if self.by_reset else right

    def step(self, action):
        right = super().step(action)
        return self.by_step(*right) if self.by_step else right


FIVE = r"\(obs, reward, terminated, truncated, info\)"
STEPS = {
    "old api": (lambda o, r, e, t, i: (o, r, e, i), f"step to return {FIVE}, got 4 values; return all five"),
    "observation alone": (lambda o, *_: o, f"step to return {FIVE}, got ndarray; return all five"),
    "a longer observation": (
        lambda o, *more: (np.append(o, o), *more),
        r"step to return an observation of shape \[2\], got \[4\] of ndarray",
    ),
    "no observation": (lambda o, *more: (None, *more), r"step to return an observation of .*, got \[\] of NoneType"),
    "no info": (lambda o, r, e, t, i: (o, r, e, t, None), "step to return a dict as its info, got None"),
    "two rewards": (lambda o, r, *more: (o, [r, r], *more), r"step to return a number as its reward, got \[1.0, 1.0\]"),
    "no reward": (lambda o, r, *more: (o, None, *more), "step to return a number as its reward, got None"),
    "a word": (lambda o, r, *more: (o, "1", *more), "step to return a number as its reward, got '1'"),
    "complex": (lambda o, r, *more: (o, 1j, *more), "step to return a number as its reward, got 1j"),
    "no end": (lambda o, r, e, t, i: (o, r, None, t, i), "step to return a bool as its terminated, got None"),
    "a name": (lambda o, r, e, t, i: (o, r, e, "no", i), "step to return a bool as its truncated, got 'no'"),
    "two ends": (lambda o, r, e, t, i: (o, r, e, 2, i), "step to return a bool as its truncated, got 2"),
}


@pytest.mark.parametrize("name", STEPS)
def test_invalid_return_values_of_step_are_refused(name):
    wrong, message = STEPS[name]
    vector_env = gym.from_factory("wrong", partial(Changed, None, wrong)).open(1, 1)
    vector_env.reset([[1]])
    vector_env.step(np.array([[1]]))
    with pytest.raises(ValueError, match=f"^env: expected {message}"):
        raise ValueError(vector_env.broken[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda obs, info: obs, r"reset to return \(obs, info\), got ndarray; return both, as since Gym 0.26"),
        (lambda obs, info: (obs, None), "reset to return a dict as its info, got None"),
        (lambda obs, info: (obs, 0.0, {}), r"reset to return \(obs, info\), got 3 values; return both"),
    ],
)
def test_invalid_return_values_of_reset_are_refused(wrong, message):
    with pytest.raises(ValueError, match=f"to start an episode, got env: expected {message}"):
        gym.from_factory("wrong", partial(Changed, wrong)).open(1, 1).reset([[1]])


class Old(Strict):
    """Environment of the API before Gym 0.26."""

    def reset(self):
        return self.shown()


class Seeded(Strict):
    """Environment whose `reset` takes a seed but no options."""

    def reset(self, *, seed=None):
        return super().reset(seed=seed)


@pytest.mark.parametrize(("make", "lacks"), [(Old, "seed"), (Seeded, "options")])
def test_a_reset_without_seed_or_options_is_refused(make, lacks):
    message = (
        rf"got env: expected reset to take seed and options, got .* unexpected keyword argument '{lacks}'; take both"
    )
    with pytest.raises(ValueError, match=message):
        gym.from_factory("old", make).open(1, 1).reset([[1]])


def test_an_old_environment_is_accepted_behind_an_adapter():
    class Adapter(gymnasium.Wrapper):
        def reset(self, *, seed=None, options=None):
            self.env.time = 0
            return self.env.reset(), {}

    vector_env = gym.from_factory("old", lambda: Adapter(Old(dtype=np.int64))).open(1, 1)
    vector_env.reset([[1]])
    assert vector_env.step(np.array([[1]])).alive.all()


RIGHT = {
    "an array of one": lambda o, r, *more: (o, np.array([r]), *more),
    "a list of one": lambda o, r, *more: (o, [r], *more),
    "a tensor": lambda o, r, *more: (o, torch.tensor(r), *more),
    "an integer": lambda o, r, *more: (o, 1, *more),
    "a truth": lambda o, r, *more: (o, np.True_, *more),
    "numbers for ends": lambda o, r, e, t, i: (o, r, np.array([e]), int(t), i),
    "a list of five": lambda *five: list(five),
    "infos of any type": lambda o, r, e, t, i: (o, r, e, t, {"x": 1 if o[0] % 2 else "one", "y": [o] * int(o[0])}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_unambiguous_return_values_are_accepted(name):
    vector_env = gym.from_factory("right", partial(Changed, None, RIGHT[name])).open(1, 2)
    vector_env.reset([[1, 2]])
    for t in range(3):
        step = vector_env.step(np.array([[1, 0]])).step
        assert step.reward.tolist() == [[1.0, 1.0]]
        assert step.terminated.tolist() == [[t == 2] * 2]
    assert vector_env.broken == {}


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("lives", [None, "three", [3], [3, 2], {}, np.nan, np.array([1, 2]), True], ids=str)
def test_lives_that_are_not_integers_are_ignored(lives, mode):
    """Check also that environments with and without lives can be combined."""

    def make(own):
        return lambda: Changed(lambda o, i: (o, own), lambda *five: (*five[:4], own))

    for others in ({}, {"lives": 3}):
        both = [make({"lives": lives}), make(others)]
        host_env = gym.from_vector("lives", lambda n, both=both: SyncVectorEnv(both[:n], autoreset_mode=mode))
        vector_env = host_env.open(1, 2)
        vector_env.reset([[1, 2]])
        for _ in range(6):
            assert not vector_env.step(np.array([[1, 0]])).life_lost.any()
        assert vector_env.broken == {}
        assert vector_env.counts_lives == (bool(others) or str(lives) == "[3]")
        assert host_env.counts_lives() == (str(lives) == "[3]")


def test_invalid_return_values_of_vector_environments_are_refused():
    class Wide(SyncVectorEnv):
        def step(self, actions):
            obs, reward, *rest = super().step(actions)
            return obs, reward[:, None], *rest

    class Four(SyncVectorEnv):
        def step(self, actions):
            return super().step(actions)[1:]

    for kind, message in (
        (Wide, r"rewards of shape \[2\], got \[2, 1\]"),
        (Four, f"step to return {FIVE}, got 4 values"),
    ):
        vector_env = gym.from_vector("it", lambda n, kind=kind: kind([partial(Strict, None, np.int64)] * n)).open(1, 2)
        vector_env.reset([[1, 2]])
        vector_env.step(np.array([[1, 0]]))
        with pytest.raises(ValueError, match=f"^env: expected {message}"):
            raise ValueError(vector_env.broken[0])


def test_checked_environments_keep_valid_infos():
    env = Checked(Changed(lambda o, i: (o, {"x": 1, "lives": None, "action_mask": None})))
    assert env.reset(seed=1)[1] == {"x": 1}


# Large spaces


HUGE = {
    "discrete": spaces.Discrete(10**13),
    "from a start": spaces.Discrete(2**62, start=2**62),
    "several": spaces.MultiDiscrete([10**13, 3]),
    "entries": spaces.Dict({"a": spaces.Discrete(10**13), "b": spaces.Box(-1, 1, (2,))}),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_space_is_refused_without_allocating_it(monkeypatch, name):
    """Check that spaces with at least ten trillion entries are encoded lazily."""

    class Huge(Strict):
        observation_space = HUGE[name]

    assert encoding(HUGE[name]).shape[0] >= 10**13
    host_env = gym.from_factory("huge", Huge)
    monkeypatch.setattr(envs, "find", lambda name: host_env)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 weights, got .*make observations or layers smaller"):
        assemble.program(Settings(env="huge"))


def test_a_space_too_large_for_memory_raises_the_memory_error(monkeypatch):
    class Large(Strict):
        observation_space = spaces.Discrete(10**7)

    host_env = gym.from_factory("large", Large)
    monkeypatch.setattr(envs, "find", lambda name: host_env)
    with pytest.raises(ValueError, match=r"^capacity: expected seeds that fit in .* GB of free memory"):
        memory.check_memory(assemble.program(Settings(env="large")), 16, torch.device("cpu"))


@pytest.mark.parametrize(
    ("space", "x", "expected"),
    [
        (spaces.Discrete(3, start=-1, dtype=np.int8), np.array([1, -1], np.int8), [[0, 0, 1], [1, 0, 0]]),
        (spaces.Discrete(3, start=254, dtype=np.uint8), np.array([254], np.uint8), [[1, 0, 0]]),
        (spaces.Discrete(2, start=2**62), np.array([2**62 + 1]), [[0, 1]]),
        (spaces.MultiDiscrete([[2, 1], [3, 2]]), np.array([[[1, 0], [2, 0]]]), [[0, 1, 1, 0, 0, 1, 1, 0]]),
    ],
)
def test_one_hot_encodings(space, x, expected):
    assert encoding(space).encode(x).astype(int).tolist() == expected


def test_a_fraction_is_not_in_a_discrete_space():
    with pytest.raises(ValueError, match=r"expected observations in Discrete\(3\), got 1.5"):
        encoding(spaces.Discrete(3)).encode(np.array([1.0, 1.5]))


def test_bytes_among_several_observations_are_divided_by_255_once():
    """Check that the encoding divides bytes in mixed observations, and the network bytes without other values."""
    bytes_ = spaces.Box(0, 255, (2,), np.uint8)
    x = {"a": np.array([[0, 255]], np.uint8), "b": np.array([[51, 102]], np.uint8), "c": np.array([[7.0]], np.float32)}
    mixed = encoding(spaces.Dict({"a": bytes_, "b": bytes_, "c": spaces.Box(-9, 9, (1,))}))
    assert mixed.dtype == np.float32
    np.testing.assert_array_equal(mixed.encode(x), np.array([[0, 1, 0.2, 0.4, 7]], np.float32))
    alone = encoding(spaces.Dict({"a": bytes_, "b": bytes_}))
    assert alone.dtype == np.uint8
    assert alone.encode(x).tolist() == [[0, 255, 51, 102]]
    flags = encoding(spaces.Dict({"a": bytes_, "b": spaces.Discrete(2)})).encode({"a": x["a"], "b": np.array([1])})
    assert flags.tolist() == [[0, 1, 0, 1]]
    network = networks.mlp(4, (3,), 2)
    params, shown = network.init(random.key(0)), torch.from_numpy(mixed.encode(x)[:, :4])
    assert torch.equal(network.apply(params, torch.from_numpy(alone.encode(x))), network.apply(params, shown))


@pytest.mark.parametrize("make", [partial(gym.from_factory, "small", Small), partial(gym.named, "CartPole-v1")])
def test_host_environments_can_be_pickled(make):
    played = []
    for host_env in (make(), pickle.loads(pickle.dumps(make()))):
        vector_env = host_env.open(1, 2)
        first = vector_env.reset([[1, 2]])
        played.append([first, *(vector_env.step(np.array([[0, 1]])).step for _ in range(3))])
        assert vector_env.broken == {}
        assert not host_env.counts_lives()
    assert str(played[0]) == str(played[1])


@pytest.mark.parametrize("high", [1, 10, 254, np.array([255, 1, 1])])
def test_counts_and_flags_in_uint8_are_not_scaled_as_bytes(high):
    """Check that uint8 values are kept as bytes, which networks divide by 255, only if an upper bound is 255."""
    space = spaces.Box(np.zeros(3, np.uint8), np.broadcast_to(np.uint8(high), 3), dtype=np.uint8)
    encoded = encoding(space)
    assert encoded.dtype == (np.uint8 if np.max(high) == 255 else np.float32)
    assert encoded.encode(np.array([[0, 1, 1]], np.uint8)).tolist() == [[0, 1, 1]]
