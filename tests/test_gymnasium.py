"""Every environment that we bring, show or test with, held to Gymnasium's own `check_env`, and every world to what a
learner counts on. What is not installed is left out, and what `--env` then says is read.
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
from test_worlds import Told, told

from fdqn import cli, envs, training, tree
from fdqn import compile as edge
from fdqn.envs.host import gymnasium as gym
from fdqn.experiment import assemble
from fdqn.experiment.settings import Settings
from fdqn.testing import asserts
from fdqn.types import HostEnv, HostStep

TOLD = ("obs", "info", "nowhere")
REGISTERED = (
    "CartPole-v1", "Acrobot-v1", "MountainCar-v0", "FrozenLake-v1", "CliffWalking-v1", "Taxi-v4", "Blackjack-v1",
    "LunarLander-v3",
)  # fmt: skip
PACKAGES = {"gym:LunarLander-v3": "Box2D", "ale:Pong": "ale_py"}


def skip_without_package(name):
    pytest.importorskip(PACKAGES.get(name, "gymnasium"))


@pytest.fixture(autouse=True)
def only_our_warnings():
    """Those of swig, with which Box2D is built, and of limits and specs, which our environments need not have."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "builtin type swig", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*A Box observation space m")
        warnings.filterwarnings("ignore", ".*Not able to test alternative render modes")
        yield


def corridor():
    """The class that the README shows."""
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.S)
    exec(next(block for block in blocks if "class Corridor" in block), shown := {})
    return shown["Corridor"]


class Single(gymnasium.Env):
    """One of our pure environments as Gymnasium has them: whoever steps it starts it anew after an end."""

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
        told = step.reward.item(), step.terminated.item(), step.truncated.item()
        return step.next_obs.numpy(), *told, {"action_mask": step.next_legal.numpy()}


# Gymnasium's check


def checked(env):
    check_env(env, skip_render_check=env.spec is None)


@pytest.mark.parametrize("name", envs.names())
def test_our_environments_are_gymnasium_s_where_it_wants_one(name):
    checked(Single(name))


@pytest.mark.parametrize("where", TOLD)
def test_an_environment_of_the_tests(where):
    env = Told(where)
    env.action_space.sample = lambda: env.action_space.start + env.mask().argmax()  # what is legal, as it asks for
    checked(env)


def test_the_environment_that_the_readme_shows():
    checked(corridor()())


@pytest.mark.parametrize("name", REGISTERED)
def test_environments_that_gymnasium_has(name):
    skip_without_package(f"gym:{name}")
    check_env(gymnasium.make(name).unwrapped, skip_render_check=True)


def test_a_game_of_atari():
    gymnasium.register_envs(pytest.importorskip("ale_py"))
    check_env(gymnasium.make("ALE/Pong-v5").unwrapped, skip_render_check=True)


class Bad(Single):
    """An environment with one mistake."""

    def __init__(self, mistake):
        super().__init__("cartpole")
        self.mistake, self.memory = mistake, np.zeros(4, np.float32)

    def draw(self):
        return torch.rand(self.env.spec.noise) if self.mistake == "chance of its own" else super().draw()

    def step(self, action):
        obs, *rest = super().step(action)
        if self.mistake == "another dtype":
            obs = obs.astype(np.float64)
        if self.mistake == "NaN":
            obs = obs * np.nan
        if self.mistake == "memory written again":
            self.memory[:] = obs
            obs = self.memory
        return obs, *rest


@pytest.mark.parametrize("mistake", ["chance of its own", "another dtype", "NaN", "memory written again"])
def test_the_check_finds_mistakes(mistake):
    with torch.random.fork_rng(devices=[]), pytest.raises((AssertionError, UserWarning)):
        checked(Bad(mistake))


# What a learner counts on


def check_host_env(world, lanes=2, num_envs=3, steps=60):
    """What a world says is of the shapes and dtypes of its spec for life, finite, in memory that stays as it is, and
    there is something to do. Where an episode goes on what is acted on next is what the action led to. The same seeds
    and actions give it all again. Actions are random legal ones; returns how many episodes ended.
    """
    first, *played = _played(world, lanes, num_envs, steps)
    again = _played(world, lanes, num_envs, steps)
    asserts.assert_trees_equal([first, *played], again, "played again: ")
    spec, shape = world.spec, (lanes, num_envs)
    for step, valid, alive, life_lost in (first, *played):
        for obs, legal in ((step.obs, step.legal), (step.next_obs, step.next_legal)):
            assert (obs.shape, obs.dtype) == ((*shape, *spec.obs_shape), spec.obs_dtype)
            assert (legal.shape, legal.dtype) == ((*shape, spec.actions), torch.bool)
        assert (step.reward.shape, step.reward.dtype) == (shape, torch.float32)
        for flag in (step.terminated, step.truncated, valid, life_lost):
            assert (flag.shape, flag.dtype) == (shape, torch.bool)
        assert alive.all()
        assert not (life_lost & (step.terminated | step.truncated)).any(), "an end and a lost life are two things"
        asserts.assert_finite(step)
        assert step.legal.any(-1).all(), "expected something to do"
        on = ~(step.terminated | step.truncated)
        asserts.assert_trees_equal(
            (step.next_obs[on], step.next_legal[on]), (step.obs[on], step.legal[on]), "goes on: "
        )
        assert step.next_legal[on].any(-1).all()
    assert torch.equal(first.step.next_obs, first.step.obs)
    assert not any(x.any() for x in (first.step.reward, first.step.terminated, first.step.truncated))
    return sum(int((x.step.terminated | x.step.truncated).sum()) for x in played)


def _played(world, lanes, num_envs, steps):
    """Answers, the first of them to a reset; each as it was when it was given."""
    games, dice = world.open(lanes, num_envs), torch.Generator().manual_seed(1)
    first = games.reset([[100 * lane + i for i in range(num_envs)] for lane in range(lanes)])
    everywhere = torch.ones((lanes, num_envs), dtype=torch.bool)
    answers = [HostStep(first, everywhere, everywhere[:, 0], ~everywhere)]
    kept = [tree.clone(answers[0])]
    for _ in range(steps):
        legal = answers[-1].step.legal
        action = torch.where(legal, torch.rand(legal.shape, generator=dice), -1.0).argmax(-1)
        answers.append(games.step(action.numpy()))
        kept.append(tree.clone(answers[-1]))
    games.close()
    assert games.broken == {}
    asserts.assert_trees_equal(kept, answers, "memory: ")
    return kept


@pytest.mark.parametrize("where", TOLD)
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_host_environment_of_the_tests(mode, where):
    assert check_host_env(told(mode, where)) > 60


LONG = ("ale:Pong", "gym:Acrobot-v1", "gym:MountainCar-v0", "gym:Taxi-v4", "gym:CliffWalking-v1")
"""Whose episodes do not end as soon."""


@pytest.mark.parametrize("name", ["ale:Pong", *("gym:" + name for name in REGISTERED)])
def test_host_environments_by_name(name):
    skip_without_package(name)
    ended = check_host_env(envs.find(name), steps={"ale:Pong": 15, "gym:LunarLander-v3": 120}.get(name, 60))
    assert ended > 0 or name in LONG


@pytest.mark.parametrize("name", ["catch", "minatar:breakout"])
def test_a_pure_environment_as_a_host_environment(name):
    assert check_host_env(gym.from_factory(name, partial(Single, name))) > 0


def with_steps(change):
    """A world whose every step goes through `change(step, step before)`."""
    world = told(AutoresetMode.DISABLED, "nowhere")

    def opened(lanes, num_envs):
        games = world.open(lanes, num_envs)
        right, before = games.step, []

        def step(actions):
            before.append(right(actions))
            return before[-1]._replace(step=change(before[-1].step, before[max(len(before) - 2, 0)].step))

        games.step = step
        return games

    return HostEnv(opened, world.spec)


def written_again(step, before):
    """All in the memory of the step before."""
    return tree.map(lambda new, old: old.copy_(new), step, before)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (written_again, "memory"),
        (lambda s, _: s._replace(obs=s.obs.double()), "float32"),
        (lambda s, _: s._replace(reward=s.reward / 0), "finite"),
        (lambda s, _: s._replace(legal=s.legal & False), "something to do"),
        (lambda s, b: s._replace(obs=b.obs), "goes on"),
        (lambda s, _: s._replace(reward=s.reward + np.random.default_rng().random()), "played again"),
    ],
)
def test_the_check_of_host_environments_finds_mistakes(change, says):
    with rejects(says):
        check_host_env(with_steps(change))


@pytest.mark.parametrize("name", ["gym:CartPole-v1", "gym:FrozenLake-v1", "gym:Blackjack-v1"])
def test_the_state_of_a_host_environment_run_may_be_donated(name):
    """As a compiled run does, whatever the observations are."""
    settings = Settings(
        env=name, seeds=2, num_envs=3, steps=40, learning_starts=12, n_step=1, batch_size=4, hidden=(4,)
    )
    state = training.init(assemble.program(settings), assemble.hyper(settings), assemble.keys(settings))
    assert edge.donate(lambda state: state)(state) is state


# What is not installed


@pytest.mark.parametrize(
    ("name", "module", "says"),
    [
        ("gym:LunarLander-v3", "Box2D", r'pip install "?gymnasium\[box2d\]"?'),
        ("gym:phys2d/CartPole-v1", "jax", "jax"),
        ("ale:Pong", "ale_py", r"pip install 'fdqn\[atari\]'"),
    ],
)
def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch, capsys, name, module, says):
    for loaded in [x for x in sys.modules if x.startswith(("gymnasium.envs.box2d", "gymnasium.envs.phys2d"))]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    envs.find.cache_clear()
    assert cli.main(["train", "--env", name, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(rf"fdqn: env: [^\n]*{re.escape(name)}[^\n]*{says}[^\n]*\n", said)
    assert not (tmp_path / "run").exists()
