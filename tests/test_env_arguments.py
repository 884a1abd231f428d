"""Keyword arguments and wrappers of environments: parsing, application, and storage in runs."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import fdqn
from fdqn import arguments, cli, envs
from fdqn.envs.host import gymnasium as host
from fdqn.experiment import assemble, events, history, results, run_folder
from fdqn.experiment.settings import Settings, task, to_json

LAKE = "gym:FrozenLake-v1"
RIGHT = 2
TINY = "--seeds 2 --steps 40 --learning-starts 20 --report-every 20 --batch-size 4 --hidden 4 --num-envs 2"
LINE = shlex.split(f"{TINY} --evaluate-episodes 2 --no-compile")

USER_ENVS = """
import gymnasium

from fdqn import envs


def doubled(env):
    return gymnasium.wrappers.TransformReward(env, lambda reward: 2 * reward)


def plus_one(env):
    return gymnasium.wrappers.TransformReward(env, lambda reward: reward + 1)


def short(env):
    return gymnasium.wrappers.TimeLimit(env, 3)


def lake(size=4, render_mode=None):
    return gymnasium.make("FrozenLake-v1", map_name=f"{size}x{size}", is_slippery=False, render_mode=render_mode)


def eaten(desc):
    assert desc.pop() == "rest", "another environment changed the list"
    return gymnasium.make("FrozenLake-v1", desc=desc)


def catch(rows):
    return envs.make("catch", time_limit=rows)


def _rewards(env, f):
    def step(state, action, u):
        state, x = env.step(state, action, u)
        return state, x._replace(reward=f(x.reward))

    return env._replace(step=step)


def pure_doubled(env):
    return _rewards(env, lambda reward: 2 * reward)


def pure_plus_one(env):
    return _rewards(env, lambda reward: reward + 1)


def nothing(env):
    return None
"""


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Change to a new folder with the module `user_envs`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("user_envs.py").write_text(USER_ENVS)
    yield
    sys.modules.pop("user_envs", None)
    envs.find.cache_clear()


PAIRS = [
    ("is_slippery=False", False),
    ("map_name=8x8", "8x8"),
    ("map_name='8x8'", "8x8"),
    ("size=8", 8),
    ("size=8.0", 8.0),
    ("size=True", True),
    ("desc=['SF', 'FG']", ["SF", "FG"]),
    ("at=(1, 2)", (1, 2)),
    ("config={'sizes': {1, 2}}", {"sizes": {1, 2}}),
    ("seed=None", None),
    ("path=a=b", "a=b"),
    ("empty=", ""),
    ("open=[", "["),
    ("word=False?", "False?"),
]


@pytest.mark.parametrize(("pair", "value"), PAIRS, ids=[pair for pair, _ in PAIRS])
def test_pairs_are_parsed_as_literals_and_round_trip(pair, value):
    (read,) = arguments.parse([pair]).values()
    assert read == value
    assert type(read) is type(value)
    again = arguments.to_pairs(arguments.parse([pair]))
    assert arguments.parse(again) == arguments.parse([pair])
    assert arguments.to_pairs(arguments.parse(again)) == again


def test_sets_are_formatted_in_sorted_order():
    """Check that sets are sorted, because the order of a set of strings depends on the process."""
    (word,) = arguments.to_pairs({"x": ({*"hgfedcba"}, [{9: {"z", "y", "x", "w"}}], set(), {3})})
    text = "({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}, [{9: {'w', 'x', 'y', 'z'}}], set(), {3})"
    assert word == f"x={text}"
    assert arguments.to_pairs(arguments.parse([word])) == (word,)
    loop = [1]
    loop.append(loop)
    with pytest.raises(TypeError, match="env_kwargs: expected a Python literal"):
        arguments.to_pairs({"x": loop})


def test_settings_of_equal_arguments_are_equal():
    made = Settings(env_kwargs=("map_name=8x8", "is_slippery=False"))
    assert made == Settings(env_kwargs={"is_slippery": False, "map_name": "8x8"})
    assert made.env_kwargs == ("is_slippery=False", "map_name='8x8'")
    assert made != Settings(env_kwargs={"is_slippery": 0, "map_name": "8x8"})
    assert hash(made) == hash(Settings(env_kwargs=list(made.env_kwargs)))


def test_the_name_of_a_task_includes_its_arguments():
    made = Settings(env=LAKE, env_kwargs={"is_slippery": False}, wrappers=["gymnasium.wrappers:NormalizeReward"])
    assert task(made) == f"{LAKE} (is_slippery=False, gymnasium.wrappers:NormalizeReward)"
    assert task({"env": LAKE, "env_kwargs": ["is_slippery=False"]}) == f"{LAKE} (is_slippery=False)"
    assert task(Settings()) == task({"env": "cartpole"}) == "cartpole"


def steps(env, actions):
    """Return the observations and rewards of one environment, [T, ...] and [T]."""
    vector = env.open(1, 1)
    try:
        vector.reset([[0]])
        made = [vector.step(np.full((1, 1), action)).step for action in actions]
    finally:
        vector.close()
    return torch.stack([x.next_obs[0, 0] for x in made]), torch.stack([x.reward[0, 0] for x in made])


def test_arguments_are_passed_to_gymnasium():
    """Move right three times to the upper right corner of a 4 x 4 map without slipping."""
    safe = envs.find(LAKE, ("is_slippery=False",))
    obs, _ = steps(safe, [RIGHT] * 3)
    assert obs.int().argmax(-1).tolist() == [1, 2, 3]
    slippery, _ = steps(envs.find(LAKE), [RIGHT] * 3)
    assert slippery.int().argmax(-1).tolist() != [1, 2, 3], "the default does not slip with this seed"
    assert envs.find(LAKE, ("map_name='8x8'",)).spec.obs_shape == (64,)
    assert envs.find(LAKE, ("max_episode_steps=5",)).spec.time_limit == 5
    assert envs.find(LAKE, ("max_episode_steps=-1",)).spec.endless


def test_environments_are_cached_by_their_arguments():
    """Distinguish `False` and `0`, which are equal in Python."""
    safe = envs.find(LAKE, ("is_slippery=False",))
    assert envs.find(LAKE, ("is_slippery=False",)) is safe
    others = [
        envs.find(LAKE),
        envs.find(LAKE, ("is_slippery=0",)),
        envs.find(LAKE, ("is_slippery=False",), ("gymnasium.wrappers:NormalizeReward",)),
    ]
    assert all(other is not safe for other in others)


def test_wrappers_of_gymnasium_are_applied():
    flat = envs.find("gym:CartPole-v1", (), ("gymnasium.wrappers:TimeAwareObservation",))
    assert flat.spec.obs_shape == (5,)
    assert envs.find("gym:CartPole-v1").spec.obs_shape == (4,)


GOAL = [1, 1, 2, 1, 2, 2]
"""Actions that reach the goal of the map of 4 x 4, where the reward is 1."""


@pytest.mark.parametrize("name", [LAKE, "user_envs:lake"])
@pytest.mark.parametrize(("order", "last"), [(("doubled", "plus_one"), 3.0), (("plus_one", "doubled"), 4.0)])
def test_the_first_wrapper_is_the_innermost(workdir, name, order, last):
    kwargs = ("is_slippery=False",) if name == LAKE else ()
    env = envs.find(name, kwargs, tuple(f"user_envs:{wrapper}" for wrapper in order))
    assert steps(env, GOAL)[1][-1] == last


@pytest.mark.parametrize(("order", "added"), [(("doubled", "plus_one"), 1.0), (("plus_one", "doubled"), 2.0)])
def test_pure_environments_are_wrapped_by_functions(workdir, order, added):
    env = envs.find("catch", ("time_limit=5",), tuple(f"user_envs:pure_{wrapper}" for wrapper in order))
    assert env.spec.time_limit == 5
    state, _ = env.reset(torch.full((1, env.spec.noise), 0.5))
    _, step = env.step(state, torch.tensor([1]), torch.full((1, env.spec.noise), 0.5))
    assert step.reward.tolist() == [added]


def test_arguments_are_passed_to_user_functions(workdir):
    assert envs.find("user_envs:lake", ("size=8",)).spec.obs_shape == (64,)
    assert envs.find("user_envs:catch", ("rows=4",)).spec.time_limit == 4
    assert envs.find("user_envs:lake", ("size=8",), ("user_envs:short",)).spec.time_limit == 3


def test_environments_do_not_share_arguments(workdir):
    env = envs.find("user_envs:eaten", ("desc=['SF', 'FG', 'rest']",))
    assert len(env.open(2, 2).reset([[0, 1], [2, 3]]).obs) == 2


def test_recordings_show_the_wrapped_environment(workdir):
    pytest.importorskip("pygame")
    for name, kwargs in ((LAKE, ("is_slippery=False",)), ("user_envs:lake", ("size=4",))):
        recording = envs.find(name, kwargs, ("user_envs:short",)).record(1)
        recording.reset([[0]])
        assert recording.frames()[0].ndim == 3
        ends = [bool(recording.step(np.full((1, 1), 0)).step.truncated) for _ in range(3)]
        assert ends == [False, False, True]
        recording.close()


def test_wrapped_applies_wrappers_in_order():
    env = host.wrapped(
        gymnasium.make("FrozenLake-v1"), [("a", gymnasium.wrappers.NormalizeReward), ("b", gymnasium.Wrapper)]
    )
    assert type(env) is gymnasium.Wrapper
    assert type(env.env) is gymnasium.wrappers.NormalizeReward


# Runs

KWARGS = "--env-kwargs is_slippery=False map_name=8x8"
WRAPPERS = "--wrapper user_envs:short --wrapper gymnasium.wrappers:NormalizeReward"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Train a run in which every episode lasts three steps."""
    path = tmp_path_factory.mktemp("arguments")
    (path / "user_envs.py").write_text(USER_ENVS)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(path)
        patched.setattr(sys, "path", [*sys.path])
        assert cli.main(["train", *LINE, "--env", LAKE, *shlex.split(f"{KWARGS} {WRAPPERS}"), "--out", "run"]) == 0
        sys.modules.pop("user_envs")
        envs.find.cache_clear()
    return path / "run"


@pytest.fixture
def trained(original, workdir):
    return shutil.copytree(original, Path("run"))


def test_a_run_keeps_arguments_and_wrappers(trained, capsys):
    config = json.loads((trained / "config.json").read_text())["settings"]
    assert config["env_kwargs"] == ["is_slippery=False", "map_name='8x8'"]
    assert config["wrappers"] == ["user_envs:short", "gymnasium.wrappers:NormalizeReward"]
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["env_kwargs"] == config["env_kwargs"]
    assert summary["final_return"]["step_limit"] == 3
    for command in ("eval run --json", "resume run --steps 60 --json", "export run --seed 1 --out a.pt --json"):
        assert cli.main(shlex.split(f"{command} {WRAPPERS}")) == 0, capsys.readouterr().err
    for line in map(json.loads, capsys.readouterr().out.splitlines()[:2]):
        assert line.get("final_return", line)["step_limit"] == 3, "the wrapper must end every episode"
    assert cli.main(["report", "run"]) == 0, "report must not import wrappers"
    assert f"{LAKE} (is_slippery=False" in capsys.readouterr().out
    other = ["eval", "run", "--env", "gym:FrozenLake8x8-v1", "--evaluate-steps", "9", "--json"]
    assert cli.main([*other, *shlex.split(WRAPPERS)]) == 0
    assert json.loads(capsys.readouterr().out)["step_limit"] == 9, "wrappers of the run apply to its environment only"
    loaded = fdqn.Run.load("run", wrappers=["user_envs:short", "gymnasium.wrappers:NormalizeReward"])
    assert loaded.policy(0)(np.zeros(64, bool)) in range(4)


def test_wrappers_in_a_run_folder_are_not_imported_without_permission(trained, capsys):
    for command in ("eval run", "resume run --steps 60", "export run --seed 1 --out a.pt", "eval run --wrapper a:b"):
        assert cli.main(command.split()) == 1
        assert "wrappers: expected the wrappers of run, which are user code, got " in capsys.readouterr().err
    assert cli.main(["report", "run"]) == 0
    assert results.read_settings(trained).wrappers[0] == "user_envs:short"
    with pytest.raises(ValueError, match=r"wrappers: expected the wrappers of .*/run, which are user code, got none"):
        fdqn.Run.load("run").params  # noqa: B018
    assert "user_envs" not in sys.modules


def test_wrappers_of_gymnasium_are_allowed():
    made = Settings(env=LAKE, wrappers=["gymnasium.wrappers:NormalizeReward"])
    assert not envs.is_wrapper_code(made.wrappers[0])
    assert results.unnamed_code(Path("run"), made, None, ()) == ""
    message = results.unnamed_code(Path("run"), Settings(wrappers=["a:b", "e:f"]), None, ["c:d"])
    assert message.endswith("got c:d; pass --wrapper a:b --wrapper e:f")
    assert results.unnamed_code(Path("run"), Settings(wrappers=["a:b"]), None, ["a:b"]) == ""


def test_runs_of_earlier_versions_can_be_read_and_resumed(workdir, monkeypatch):
    """Read run folders without these settings."""

    def without(made):
        return {name: x for name, x in to_json(made).items() if name not in ("env_kwargs", "wrappers")}

    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "to_json", without)
        patched.setattr(history, "to_json", without)
        assert cli.main(["train", *LINE, "--env", "catch", "--out", "run"]) == 0
    assert "wrappers" not in json.loads(Path("run/config.json").read_text())["settings"]
    assert results.read_settings(Path("run")).env_kwargs == ()
    assert cli.main(["resume", "run", "--steps", "60"]) == 0


def test_keywords_equal_flags(workdir):
    line = ["--env", LAKE, *shlex.split(f"{KWARGS} {WRAPPERS}")]
    flags = cli.parse.parse(["train", *line]).settings
    wrappers = ["user_envs:short", "gymnasium.wrappers:NormalizeReward"]
    assert flags == cli.parse.parse(["train", "--env", LAKE, *KWARGS.split(), "--wrappers", *wrappers]).settings
    keywords = dict(env_kwargs={"is_slippery": False, "map_name": "8x8"}, wrappers=wrappers)
    prepared_settings = []

    def prepared(event):
        if isinstance(event, events.Prepared):
            prepared_settings.append(event.settings)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fdqn.train(env=LAKE, **keywords, seeds=2, steps=2_000, progress=False, out="python", on_event=prepared)
    assert (prepared_settings[0].env_kwargs, prepared_settings[0].wrappers) == (flags.env_kwargs, flags.wrappers)
    assert assemble.env(prepared_settings[0]) is assemble.env(flags)


def test_changed_tasks_are_not_evaluated_in_gymnasium(workdir, capsys):
    line = [*LINE, "--env", "cartpole", "--out"]
    assert cli.main(["train", *line, "a", "--env-kwargs", "time_limit=9"]) == 0
    assert "gymnasium_return" not in json.loads(Path("a/summary.json").read_text())
    shutil.copytree("a", "b")
    summary = json.loads(Path("b/summary.json").read_text())
    del summary["env_kwargs"]
    Path("b/summary.json").write_text(json.dumps(summary))
    capsys.readouterr()
    assert cli.main(["compare", "a", "b"]) == 1
    assert re.search(
        r"expected one environment, got cartpole \(time_limit=9\) in a and cartpole in b", capsys.readouterr().err
    )
