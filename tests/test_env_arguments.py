"""Check keyword arguments and wrappers of environments: how they are parsed, applied, and kept by runs."""

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

OWN = """
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
    assert desc.pop() == "rest", "another environment took it"
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
def place(tmp_path, monkeypatch):
    """Make `places_own.py` in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("places_own.py").write_text(OWN)
    yield
    sys.modules.pop("places_own", None)
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
def test_pairs_become_literals_and_are_formatted_again(pair, value):
    (read,) = arguments.parse([pair]).values()
    assert read == value
    assert type(read) is type(value)
    again = arguments.to_pairs(arguments.parse([pair]))
    assert arguments.parse(again) == arguments.parse([pair])
    assert arguments.to_pairs(arguments.parse(again)) == again


def test_sets_are_written_in_the_same_order_by_every_process():
    """The order of a set of strings depends on the process, which would refuse to resume the run of another."""
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


def test_an_environment_with_its_arguments_has_a_name_of_its_own():
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


def test_arguments_reach_an_environment_of_gymnasium():
    """Reach the upper right corner of a 4 x 4 map by three steps to the right on ice that is not slippery."""
    safe = envs.find(LAKE, ("is_slippery=False",))
    obs, _ = steps(safe, [RIGHT] * 3)
    assert obs.int().argmax(-1).tolist() == [1, 2, 3]
    slippery, _ = steps(envs.find(LAKE), [RIGHT] * 3)
    assert slippery.int().argmax(-1).tolist() != [1, 2, 3], "the default slips with this seed"
    assert envs.find(LAKE, ("map_name='8x8'",)).spec.obs_shape == (64,)
    assert envs.find(LAKE, ("max_episode_steps=5",)).spec.time_limit == 5
    assert envs.find(LAKE, ("max_episode_steps=-1",)).spec.endless


def test_environments_are_kept_by_their_arguments():
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


@pytest.mark.parametrize("name", [LAKE, "places_own:lake"])
@pytest.mark.parametrize(("order", "last"), [(("doubled", "plus_one"), 3.0), (("plus_one", "doubled"), 4.0)])
def test_the_first_wrapper_is_the_innermost(place, name, order, last):
    kwargs = ("is_slippery=False",) if name == LAKE else ()
    env = envs.find(name, kwargs, tuple(f"places_own:{wrapper}" for wrapper in order))
    assert steps(env, GOAL)[1][-1] == last


@pytest.mark.parametrize(("order", "added"), [(("doubled", "plus_one"), 1.0), (("plus_one", "doubled"), 2.0)])
def test_functions_wrap_a_pure_environment(place, order, added):
    env = envs.find("catch", ("time_limit=5",), tuple(f"places_own:pure_{wrapper}" for wrapper in order))
    assert env.spec.time_limit == 5
    state, _ = env.reset(torch.full((1, env.spec.noise), 0.5))
    _, step = env.step(state, torch.tensor([1]), torch.full((1, env.spec.noise), 0.5))
    assert step.reward.tolist() == [added]


def test_arguments_reach_a_function_of_ones_own(place):
    assert envs.find("places_own:lake", ("size=8",)).spec.obs_shape == (64,)
    assert envs.find("places_own:catch", ("rows=4",)).spec.time_limit == 4
    assert envs.find("places_own:lake", ("size=8",), ("places_own:short",)).spec.time_limit == 3


def test_no_environment_changes_the_arguments_of_another(place):
    env = envs.find("places_own:eaten", ("desc=['SF', 'FG', 'rest']",))
    assert len(env.open(2, 2).reset([[0, 1], [2, 3]]).obs) == 2


def test_recordings_show_the_wrapped_environment(place):
    pytest.importorskip("pygame")
    for name, kwargs in ((LAKE, ("is_slippery=False",)), ("places_own:lake", ("size=4",))):
        recording = envs.find(name, kwargs, ("places_own:short",)).record(1)
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
WRAPPERS = "--wrapper places_own:short --wrapper gymnasium.wrappers:NormalizeReward"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Train a run in which every episode lasts three steps."""
    path = tmp_path_factory.mktemp("arguments")
    (path / "places_own.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(path)
        patched.setattr(sys, "path", [*sys.path])
        assert cli.main(["train", *LINE, "--env", LAKE, *shlex.split(f"{KWARGS} {WRAPPERS}"), "--out", "run"]) == 0
        sys.modules.pop("places_own")
        envs.find.cache_clear()
    return path / "run"


@pytest.fixture
def trained(original, place):
    return shutil.copytree(original, Path("run"))


def test_a_run_keeps_arguments_and_wrappers(trained, capsys):
    config = json.loads((trained / "config.json").read_text())["settings"]
    assert config["env_kwargs"] == ["is_slippery=False", "map_name='8x8'"]
    assert config["wrappers"] == ["places_own:short", "gymnasium.wrappers:NormalizeReward"]
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["env_kwargs"] == config["env_kwargs"]
    assert summary["final_return"]["step_limit"] == 3
    for command in ("eval run --json", "resume run --steps 60 --json", "export run --seed 1 --out a.pt --json"):
        assert cli.main(shlex.split(f"{command} {WRAPPERS}")) == 0, capsys.readouterr().err
    for line in map(json.loads, capsys.readouterr().out.splitlines()[:2]):
        assert line.get("final_return", line)["step_limit"] == 3, "the wrapper ends every episode"
    assert cli.main(["report", "run"]) == 0, "which imports nothing"
    assert f"{LAKE} (is_slippery=False" in capsys.readouterr().out
    other = ["eval", "run", "--env", "gym:FrozenLake8x8-v1", "--evaluate-steps", "9", "--json"]
    assert cli.main([*other, *shlex.split(WRAPPERS)]) == 0
    assert json.loads(capsys.readouterr().out)["step_limit"] == 9, "another environment has no wrappers of the run"
    loaded = fdqn.Run.load("run", wrappers=["places_own:short", "gymnasium.wrappers:NormalizeReward"])
    assert loaded.policy(0)(np.zeros(64, bool)) in range(4)


def test_a_folder_cannot_choose_wrappers_to_import(trained, capsys):
    for command in ("eval run", "resume run --steps 60", "export run --seed 1 --out a.pt", "eval run --wrapper a:b"):
        assert cli.main(command.split()) == 1
        assert "wrappers: expected the wrappers of run, which are user code, got " in capsys.readouterr().err
    assert cli.main(["report", "run"]) == 0
    assert results.read_settings(trained).wrappers[0] == "places_own:short"
    with pytest.raises(ValueError, match=r"wrappers: expected the wrappers of .*/run, which are user code, got none"):
        fdqn.Run.load("run").params  # noqa: B018
    assert "places_own" not in sys.modules


def test_wrappers_of_gymnasium_need_no_permission():
    made = Settings(env=LAKE, wrappers=["gymnasium.wrappers:NormalizeReward"])
    assert not envs.is_wrapper_code(made.wrappers[0])
    assert results.unnamed_code(Path("run"), made, None, ()) == ""
    message = results.unnamed_code(Path("run"), Settings(wrappers=["a:b", "e:f"]), None, ["c:d"])
    assert message.endswith("got c:d; pass --wrapper a:b --wrapper e:f")
    assert results.unnamed_code(Path("run"), Settings(wrappers=["a:b"]), None, ["a:b"]) == ""


def test_runs_of_earlier_versions_are_read_and_resumed(place, monkeypatch):
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


def test_keywords_are_the_flags(place):
    line = ["--env", LAKE, *shlex.split(f"{KWARGS} {WRAPPERS}")]
    flags = cli.parse.parse(["train", *line]).settings
    wrappers = ["places_own:short", "gymnasium.wrappers:NormalizeReward"]
    assert flags == cli.parse.parse(["train", "--env", LAKE, *KWARGS.split(), "--wrappers", *wrappers]).settings
    keywords = dict(env_kwargs={"is_slippery": False, "map_name": "8x8"}, wrappers=wrappers)
    seen = []

    def prepared(event):
        if isinstance(event, events.Prepared):
            seen.append(event.settings)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fdqn.train(env=LAKE, **keywords, seeds=2, steps=2_000, progress=False, out="python", on_event=prepared)
    assert (seen[0].env_kwargs, seen[0].wrappers) == (flags.env_kwargs, flags.wrappers)
    assert assemble.env(seen[0]) is assemble.env(flags)


def test_other_tasks_are_not_evaluated_as_gymnasiums(place, capsys):
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
