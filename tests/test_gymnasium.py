"""Environments pass `check_env` of Gymnasium, and host environments a check of the assumptions of training. Tests of
packages that are not installed are skipped; the message of `--env` for a missing package is checked.
"""

import re
import sys
import warnings
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from plants import rejects
from test_host_environments import LabeledEnv, labeled_env

from fdqn import cli, envs, training, tree
from fdqn import compile as edge
from fdqn.envs.host import gymnasium as gym
from fdqn.experiment import assemble
from fdqn.experiment.settings import Settings
from fdqn.testing import asserts
from fdqn.types import HostEnv, HostStep

MASK_SOURCES = ("obs", "info", "nowhere")
REGISTERED = (
    "CartPole-v1", "Acrobot-v1", "MountainCar-v0", "FrozenLake-v1", "CliffWalking-v1", "Taxi-v4", "Blackjack-v1",
    "LunarLander-v3",
)  # fmt: skip
PACKAGES = {"gym:LunarLander-v3": "Box2D", "ale:Pong": "ale_py"}


def skip_without_package(name):
    pytest.importorskip(PACKAGES.get(name, "gymnasium"))


@pytest.fixture(autouse=True)
def only_our_warnings():
    """Ignore warnings of swig, used by Box2D, and of bounds and specs that our environments do not have."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "builtin type swig", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*A Box observation space m")
        warnings.filterwarnings("ignore", ".*Not able to test alternative render modes")
        yield


def corridor():
    """Return the class `Corridor` in the README."""
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.S)
    exec(next(block for block in blocks if "class Corridor" in block), shown := {})
    return shown["Corridor"]


class AsGymnasium(gymnasium.Env):
    """Adapter of a pure environment to `gymnasium.Env`."""

    def __init__(self, name):
        self.env = envs.make(name)
        spec = self.env.spec
        self.action_space = spaces.Discrete(spec.actions)
        dtype = torch.empty(0, dtype=spec.obs_dtype).numpy().dtype
        bounds = (0, 1) if dtype == np.bool_ else (-np.inf, np.inf)
        self.observation_space = spaces.Box(*bounds, spec.obs_shape, dtype)

    def draw(self):
        return torch.from_numpy(self.np_random.random(self.env.spec.noise, np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, first = self.env.reset(self.draw())
        return first.obs.numpy(), {"action_mask": first.legal.numpy()}

    def step(self, action):
        self.state, step = self.env.step(self.state, torch.tensor(int(action)), self.draw())
        result = step.reward.item(), step.terminated.item(), step.truncated.item()
        return step.next_obs.numpy(), *result, {"action_mask": step.next_legal.numpy()}


# The checker of Gymnasium


def check_single(env):
    check_env(env, skip_render_check=env.spec is None)


@pytest.mark.parametrize("name", envs.names())
def test_pure_environments_pass_the_checker_of_gymnasium(name):
    check_single(AsGymnasium(name))


@pytest.mark.parametrize("where", MASK_SOURCES)
def test_the_test_environment_passes_the_checker_of_gymnasium(where):
    env = LabeledEnv(where)
    env.action_space.sample = lambda: env.action_space.start + env.mask().argmax()  # sample only legal actions
    check_single(env)


def test_the_environment_in_the_readme_passes_the_checker_of_gymnasium():
    check_single(corridor()())


@pytest.mark.parametrize("name", REGISTERED)
def test_environments_of_gymnasium_pass_its_checker(name):
    skip_without_package(f"gym:{name}")
    check_env(gymnasium.make(name).unwrapped, skip_render_check=True)


def test_an_atari_game_passes_the_checker_of_gymnasium():
    gymnasium.register_envs(pytest.importorskip("ale_py"))
    check_env(gymnasium.make("ALE/Pong-v5").unwrapped, skip_render_check=True)


class WithMistake(AsGymnasium):
    """An environment with one mistake."""

    def __init__(self, mistake):
        super().__init__("cartpole")
        self.mistake, self.memory = mistake, np.zeros(4, np.float32)

    def draw(self):
        return torch.rand(self.env.spec.noise) if self.mistake == "a global generator" else super().draw()

    def step(self, action):
        obs, *rest = super().step(action)
        if self.mistake == "another dtype":
            obs = obs.astype(np.float64)
        if self.mistake == "NaN":
            obs = obs * np.nan
        if self.mistake == "reused memory":
            self.memory[:] = obs
            obs = self.memory
        return obs, *rest


@pytest.mark.parametrize("mistake", ["a global generator", "another dtype", "NaN", "reused memory"])
def test_the_checker_of_gymnasium_detects_planted_bugs(mistake):
    with torch.random.fork_rng(devices=[]), pytest.raises((AssertionError, UserWarning)):
        check_single(WithMistake(mistake))


# Assumptions of training


def check_host_env(host_env, seeds=2, num_envs=3, steps=60):
    """Play random legal actions and check the outputs; return the number of ended episodes.

    Shapes and dtypes are those of the spec, numbers are finite, outputs are not overwritten later, some action is
    legal, `obs` equals `next_obs` within an episode, and the same seeds and actions give the same outputs.
    """
    first, *played = _played(host_env, seeds, num_envs, steps)
    again = _played(host_env, seeds, num_envs, steps)
    asserts.assert_trees_equal([first, *played], again, "repeated: ")
    spec, shape = host_env.spec, (seeds, num_envs)
    for step, valid, alive, life_lost in (first, *played):
        for obs, legal in ((step.obs, step.legal), (step.next_obs, step.next_legal)):
            assert (obs.shape, obs.dtype) == ((*shape, *spec.obs_shape), spec.obs_dtype)
            assert (legal.shape, legal.dtype) == ((*shape, spec.actions), torch.bool)
        assert (step.reward.shape, step.reward.dtype) == (shape, torch.float32)
        for flag in (step.terminated, step.truncated, valid, life_lost):
            assert (flag.shape, flag.dtype) == (shape, torch.bool)
        assert alive.all()
        assert not (life_lost & (step.terminated | step.truncated)).any(), "a lost life at the end of an episode"
        asserts.assert_finite(step)
        assert step.legal.any(-1).all(), "expected a legal action"
        running = ~(step.terminated | step.truncated)
        asserts.assert_trees_equal(
            (step.next_obs[running], step.next_legal[running]),
            (step.obs[running], step.legal[running]),
            "within an episode: ",
        )
        assert step.next_legal[running].any(-1).all()
    assert torch.equal(first.step.next_obs, first.step.obs)
    assert not any(x.any() for x in (first.step.reward, first.step.terminated, first.step.truncated))
    return sum(int((x.step.terminated | x.step.truncated).sum()) for x in played)


def _played(host_env, seeds, num_envs, steps):
    """Return copies of the outputs of a reset and of `steps` steps."""
    vector_env, dice = host_env.open(seeds, num_envs), torch.Generator().manual_seed(1)
    first = vector_env.reset([[100 * seed + i for i in range(num_envs)] for seed in range(seeds)])
    everywhere = torch.ones((seeds, num_envs), dtype=torch.bool)
    results = [HostStep(first, everywhere, everywhere[:, 0], ~everywhere)]
    kept = [tree.clone(results[0])]
    for _ in range(steps):
        legal = results[-1].step.legal
        action = torch.where(legal, torch.rand(legal.shape, generator=dice), -1.0).argmax(-1)
        results.append(vector_env.step(action.numpy()))
        kept.append(tree.clone(results[-1]))
    vector_env.close()
    assert vector_env.broken == {}
    asserts.assert_trees_equal(kept, results, "memory: ")
    return kept


@pytest.mark.parametrize("where", MASK_SOURCES)
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_host_environments_with_masks_meet_the_assumptions_of_training(mode, where):
    assert check_host_env(labeled_env(mode, where)) > 60


LONG = ("ale:Pong", "gym:Acrobot-v1", "gym:MountainCar-v0", "gym:Taxi-v4", "gym:CliffWalking-v1")
"""Environments whose episodes can be longer than the number of steps."""


@pytest.mark.parametrize("name", ["ale:Pong", *("gym:" + name for name in REGISTERED)])
def test_named_host_environments_meet_the_assumptions_of_training(name):
    skip_without_package(name)
    ended = check_host_env(envs.find(name), steps={"ale:Pong": 15, "gym:LunarLander-v3": 120}.get(name, 60))
    assert ended > 0 or name in LONG


@pytest.mark.parametrize("name", ["catch", "minatar:breakout"])
def test_pure_environments_on_the_host_meet_the_assumptions_of_training(name):
    assert check_host_env(gym.from_factory(name, partial(AsGymnasium, name))) > 0


def with_steps(change):
    """Make a host environment that applies `change(step, previous step)` to its outputs."""
    host_env = labeled_env(AutoresetMode.DISABLED, "nowhere")

    def opened(seeds, num_envs):
        vector_env = host_env.open(seeds, num_envs)
        right, before = vector_env.step, []

        def step(actions):
            before.append(right(actions))
            return before[-1]._replace(step=change(before[-1].step, before[max(len(before) - 2, 0)].step))

        vector_env.step = step
        return vector_env

    return HostEnv(opened, host_env.spec)


def reusing_memory(step, before):
    """Plant a bug: reuse the memory of the previous step."""
    return tree.map(lambda new, old: old.copy_(new), step, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reusing_memory, "memory"),
        (lambda s, _: s._replace(obs=s.obs.double()), "float32"),
        (lambda s, _: s._replace(reward=s.reward / 0), "finite"),
        (lambda s, _: s._replace(legal=s.legal & False), "a legal action"),
        (lambda s, b: s._replace(obs=b.obs), "within an episode"),
        (lambda s, _: s._replace(reward=s.reward + np.random.default_rng().random()), "repeated"),
    ],
)
def test_the_check_of_host_environments_detects_planted_bugs(change, message):
    with rejects(message):
        check_host_env(with_steps(change))


@pytest.mark.parametrize("name", ["gym:CartPole-v1", "gym:FrozenLake-v1", "gym:Blackjack-v1"])
def test_the_state_of_training_with_a_host_environment_can_be_donated(name):
    """Check that leaves do not share memory for each kind of observations."""
    settings = Settings(
        env=name, seeds=2, num_envs=3, steps=40, learning_starts=12, n_step=1, batch_size=4, hidden=(4,)
    )
    state = training.init(assemble.program(settings), assemble.hyper(settings), assemble.keys(settings))
    assert edge.donate(lambda state: state)(state) is state


# Missing packages


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("gym:LunarLander-v3", "Box2D", r'pip install "?gymnasium\[box2d\]"?'),
        ("gym:phys2d/CartPole-v1", "jax", "jax"),
        ("ale:Pong", "ale_py", r"pip install 'fdqn\[atari\]'"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys, name, module, message):
    for loaded in [x for x in sys.modules if x.startswith(("gymnasium.envs.box2d", "gymnasium.envs.phys2d"))]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    envs.find.cache_clear()
    assert cli.main(["train", "--env", name, "--out", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(rf"fdqn: env: [^\n]*{re.escape(name)}[^\n]*{message}[^\n]*\n", err)
    assert not (tmp_path / "run").exists()
