"""Opening host environments: objects that violate the protocol are refused with the member, in one function."""

import ast
import pathlib
import re
from typing import ClassVar

import numpy as np
import pytest
import torch

import fdqn
from fdqn import envs, networks, random
from fdqn.report import video
from fdqn.training import evaluate
from fdqn.types import EnvSpec, HostEnv, HostStep, Step

SPEC = EnvSpec((4,), torch.float32, actions=2, noise=0, time_limit=3)
SEEDS, ENVS = 2, 3


class Opened:
    """Vector environment of zeros, except for the fields in `wrong`; episodes last three steps."""

    broken: ClassVar[dict] = {}

    def __init__(self, seeds=SEEDS, num_envs=ENVS, **wrong):
        self.shape, self.wrong, self.time, self.closed = (seeds, num_envs), wrong, 0, False

    def fields(self):
        obs, legal = torch.zeros(*self.shape, 4), torch.ones(*self.shape, 2, dtype=torch.bool)
        ended = torch.full(self.shape, self.time >= 3)
        return Step(obs, legal, obs, legal, torch.zeros(self.shape), ended, ended & False)

    def reset(self, seeds):
        self.time = 0
        wrong = {name[6:]: x for name, x in self.wrong.items() if name.startswith("first_")}
        return self.fields()._replace(**wrong)

    def step(self, actions):
        self.time += 1
        everywhere = torch.ones(self.shape, dtype=torch.bool)
        step = HostStep(self.fields(), everywhere, everywhere[:, 0], ~everywhere)
        inner = {name: x for name, x in self.wrong.items() if name in Step._fields}
        outer = {name: x for name, x in self.wrong.items() if name in HostStep._fields}
        return step._replace(**({"step": step.step._replace(**inner)} | outer))

    def frames(self):
        return [np.zeros((2, 2, 3), np.uint8)] * self.shape[0]

    def close(self):
        self.closed = True


def host_env(kind=Opened, **wrong):
    return HostEnv(lambda seeds, num_envs: kind(seeds, num_envs, **wrong), SPEC, lambda seeds: kind(seeds, 1, **wrong))


def open_and_step(env):
    vector = envs.open_host(env, SEEDS, ENVS)
    vector.reset([[0] * ENVS] * SEEDS)
    return vector.step(np.zeros((SEEDS, ENVS), np.int64))


def test_a_valid_environment_is_opened():
    step = open_and_step(host_env())
    assert step.step.obs.shape == (SEEDS, ENVS, 4)


@pytest.mark.parametrize("member", ["reset", "step", "close", "broken", "frames"])
def test_a_missing_member_is_named(member):
    kept = {name: x for name, x in vars(Opened).items() if name != member and name not in ("__dict__", "__weakref__")}
    env = host_env(type("Partial", (), kept))
    with pytest.raises(ValueError, match=f"^env: expected record to return .*, got Partial without {member}"):
        envs.record_host(env, SEEDS)
    if member == "frames":
        return
    hint = re.escape("; set broken = {} if seeds cannot fail separately") if member == "broken" else ""
    members = "reset, step, close, broken"
    message = f"^env: expected open to return an object with {members}, got Partial without {member}{hint}$"
    network = networks.mlp((4,), (2,), 2)
    keys = random.key(torch.arange(SEEDS))
    for run in (
        lambda: envs.open_host(env, SEEDS, ENVS),
        lambda: evaluate.greedy(env, network, network.init(keys), keys, ENVS),
    ):
        with pytest.raises(ValueError, match=message):
            run()


FLAGS = torch.zeros(SEEDS, ENVS, dtype=torch.bool)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"obs": torch.zeros(SEEDS, ENVS, 5)}, ValueError, "step to return obs of shape [2, 3, 4], got [2, 3, 5]"),
        ({"obs": torch.zeros(SEEDS, ENVS, 4).double()}, TypeError,
         "step to return obs of torch.float32, got torch.float64"),
        ({"legal": FLAGS}, ValueError, "step to return legal of shape [2, 3, 2], got [2, 3]"),
        ({"next_obs": np.zeros((SEEDS, ENVS, 4))}, TypeError, "step to return next_obs as a tensor, got ndarray"),
        ({"next_legal": FLAGS[:1]}, ValueError, "step to return next_legal of shape [2, 3, 2], got [1, 3]"),
        ({"reward": torch.zeros(ENVS)}, ValueError, "step to return reward of shape [2, 3], got [3]"),
        ({"reward": FLAGS}, TypeError, "step to return reward of torch.float32, got torch.bool"),
        ({"terminated": FLAGS.float()}, TypeError, "step to return terminated of torch.bool, got torch.float32"),
        ({"truncated": FLAGS[0]}, ValueError, "step to return truncated of shape [2, 3], got [3]"),
        ({"valid": FLAGS[0]}, ValueError, "step to return valid of shape [2, 3], got [3]"),
        ({"alive": FLAGS}, ValueError, "step to return alive of shape [2], got [2, 3]"),
        ({"alive": True}, TypeError, "step to return alive as a tensor, got bool"),
        ({"life_lost": FLAGS[:, 0]}, ValueError, "step to return life_lost of shape [2, 3], got [2]"),
        ({"first_obs": torch.zeros(SEEDS, 4)}, ValueError, "reset to return obs of shape [2, 3, 4], got [2, 4]"),
        ({"first_legal": FLAGS}, ValueError, "reset to return legal of shape [2, 3, 2], got [2, 3]"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)  # fmt: skip
def test_a_wrong_field_is_named(wrong, error, message):
    with pytest.raises(error, match=f"^{re.escape('env: expected ' + message)}$"):
        open_and_step(host_env(**wrong))


def test_a_tuple_is_not_a_host_step():
    class Plain(Opened):
        def step(self, actions):
            return tuple(super().step(actions))

    with pytest.raises(TypeError, match=r"^env\.step: expected HostStep, got tuple$"):
        open_and_step(host_env(Plain))


def test_only_the_first_step_is_checked_and_failures_are_forwarded():
    """Check that `broken` is read from the opened object on every access, because seeds may fail at any time."""
    made = []

    class Failing(Opened):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.broken = {}
            made.append(self)

    vector = envs.open_host(host_env(Failing), SEEDS, ENVS)
    vector.reset([[0] * ENVS] * SEEDS)
    vector.step(np.zeros((SEEDS, ENVS), np.int64))
    made[0].broken = {1: "gone"}
    made[0].wrong = {"reward": FLAGS}
    assert vector.step(np.zeros((SEEDS, ENVS), np.int64)).step.reward.dtype == torch.bool
    assert vector.broken == {1: "gone"}
    vector.close()
    assert made[0].closed


def test_evaluation_and_video_close_their_environments():
    made = []

    class Kept(Opened):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            made.append(self)

    env, network, keys = host_env(Kept), networks.mlp((4,), (2,), 2), random.key(torch.arange(SEEDS))
    params = network.init(keys)
    returns = evaluate.greedy(env, network, params, keys, 1).returns
    video.check_renders("mine", env)
    video.draw("mine", env, network, params, keys, range(SEEDS), returns)
    assert len(made) == 3
    assert all(opened.closed for opened in made)


def calls(path):
    """Yield (function, source) for every call in a file, with the function at module level that it is in."""
    for outer in ast.parse(path.read_text()).body:
        for node in ast.walk(outer):
            if isinstance(node, ast.Call):
                yield getattr(outer, "name", ""), ast.unparse(node)


KIND = re.compile(r"isinstance\(.*\b(Env|HostEnv|World|RecordingEnv|HostVectorEnv)\b", re.S)
BROKEN = re.compile(r"(getattr|hasattr)\(.*broken", re.S)


def test_one_function_distinguishes_host_environments_from_pure_ones():
    root, kinds, guesses = pathlib.Path(fdqn.__file__).parent, set(), set()
    for path in sorted(root.rglob("*.py")):
        for function, source in calls(path):
            where = f"{path.relative_to(root)}:{function}"
            if source.startswith("isinstance(") and KIND.match(re.sub(r"gymnasium\.Env", "", source)):
                kinds.add(where)
            if BROKEN.match(source):
                guesses.add(where)
    assert kinds == {"envs/__init__.py:on_host", "envs/__init__.py:is_env"}
    assert guesses == set()
