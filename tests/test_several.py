"""Parsing of several values of a flag, and of ranges."""

import math
import re
import shlex

import pytest

from fdqn.cli import parse, several


def split(line):
    return several.split(line.split())


@pytest.mark.parametrize(
    ("line", "name", "values"),
    [
        ("--learning-rate 1e-4 1e-3", "learning_rate", [1e-4, 1e-3]),
        ("--learning_rate 1 2", "learning_rate", [1.0, 2.0]),
        ("--learning-rate=1e-4 1e-3", "learning_rate", [1e-4, 1e-3]),
        ("--munchausen-clip -1 -0.5", "munchausen_clip", [-1.0, -0.5]),
        ("--max-grad-norm 10 inf", "max_grad_norm", [10.0, math.inf]),
        ("--target-period 10 20", "target_period", [10, 20]),
        ("--algorithm dqn c51", "algorithm", ["dqn", "c51"]),
        ("--double true false", "double", [True, False]),
        ("--double True FALSE", "double", [True, False]),
        ("--hidden 64,64 120,84", "hidden", [(64, 64), (120, 84)]),
        ("--hidden 64, 32,16", "hidden", [(64,), (32, 16)]),
        ("--hidden , 8,", "hidden", [(), (8,)]),
        ("--hidden 8 12,4", "hidden", [(8,), (12, 4)]),
    ],
)
def test_several_values_of_a_flag(line, name, values):
    found = split(f"train --seeds 4 {line} --json")
    assert found.arguments == ["train", "--seeds", "4", "--json"]
    assert found.values == {name: values}
    assert [type(x) for x in found.values[name]] == [type(x) for x in values]
    assert found.draws == {}


@pytest.mark.parametrize(
    ("line", "draw"),
    [
        ("--gamma log:1e-5:1e-2", ("log", 1e-5, 1e-2)),
        ("--gamma=lin:0.9:0.999", ("linear", 0.9, 0.999)),
        ("--gamma lin:-1:1", ("linear", -1.0, 1.0)),
    ],
)
def test_a_range(line, draw):
    found = split(f"train {line} --samples 3")
    assert (found.arguments, found.values, found.draws) == (["train", "--samples", "3"], {}, {"gamma": draw})


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("train --gamma 0.9", None),
        ("train --gamma=0.9 --no-double --hidden 64 64 --hidden", None),
        ("train --out= --seeds", None),
        ("train --unknown 1 2", None),
        ("train --samples 3 4", None),
        ("train run other --env=catch", None),
        ("train --hidden 8,4 --seeds 2", "train --hidden 8 4 --seeds 2"),
        ("train --double true", "train --double"),
        ("train --double false --seeds 2", "train --no-double --seeds 2"),
    ],
)
def test_single_values_stay_flags(line, same):
    assert split(line) == several.Several((same or line).split(), {}, {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--gamma 0.9 much", "gamma: expected a number, got 'much'"),
        ("--gamma 0.9 nan", "gamma: expected a number, got 'nan'"),
        ("--target-period 1 2.5", "target_period: expected a whole number, got '2.5'"),
        ("--double true maybe", "double: expected true or false, got 'maybe'"),
        ("--hidden 64,x 8,", "hidden: expected sizes of layers such as 120,84, got '64,x'"),
        ("--gamma log:0.9", "gamma: expected a range such as log:1e-5:1e-2, got 'log:0.9'"),
        ("--gamma log:1:2:3", "gamma: expected a range such as log:1e-5:1e-2, got 'log:1:2:3'"),
        ("--gamma lin:a:b", "gamma: expected a range such as log:1e-5:1e-2, got 'lin:a:b'"),
        ("--gamma 0.9 lin:0:1", "gamma: expected several values or one range, got 'lin:0:1' among several"),
    ],
)
def test_invalid_values_are_refused(line, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        split(f"train {line}")


def test_the_command_has_the_arguments_of_a_plan():
    command = parse.parse(
        shlex.split("train --seeds 4 --gamma 0.9 0.99 --tau lin:0.1:0.9 --samples 3 --hidden 8,4 --no-compile")
    )
    assert command.settings is None
    assert command.sweep == {
        "given": {"seeds": 4, "hidden": (8, 4), "compile": False},
        "values": {"gamma": [0.9, 0.99]},
        "draws": {"tau": ("linear", 0.1, 0.9)},
        "samples": 3,
        "published": None,
    }


def test_a_preset_is_published_to_all_settings():
    command = parse.parse(shlex.split("train --preset cleanrl-dqn --env cartpole --gamma 0.9 0.99"))
    assert command.sweep["given"] == {"env": "cartpole"}
    assert command.sweep["published"]["batch_size"] == 128
