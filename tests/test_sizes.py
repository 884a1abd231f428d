"""Check layers, parameters, memory and floating-point operations of a run before it is trained."""

import json
import shlex
from pathlib import Path

import pytest
import torch

import fdqn
from fdqn import cli, networks, random, training, tree
from fdqn.cli import parse, tables
from fdqn.experiment import assemble, session, sizes
from fdqn.experiment.settings import Sweep, make
from fdqn.types import EnvSpec, Network

SMALL = {"hidden": (16,), "batch_size": 32, "capacity": 500, "double": False, "seeds": 3}


def test_sizes_of_a_small_network_by_hand():
    record = sizes.describe(make(SMALL))
    first, last = record["layers"]
    assert first == {
        "name": "0",
        "kind": "Linear",
        "output": [16],
        "shapes": {"weight": [16, 4], "bias": [16]},
        "parameters": 80,
        "bytes": 320,
    }
    assert (last["output"], last["parameters"]) == ([2], 34)
    assert record["parameters"] == 114
    size = record["bytes"]
    assert (size["parameters"], size["target"]) == (456, 456)
    assert 0 < size["optimizer"] - 2 * 456 <= 32, "two means of Adam, and counters"
    forward = 2 * (4 * 16 + 16 * 2)
    backward = 2 * (2 * 4 * 16 + 2 * 2 * 16) - 2 * 4 * 16  # no gradient of the observations
    assert record["flop"] == 10 * forward + 32 * (2 * forward + backward)
    assert (record["learners"], record["replay_rows"], record["updates"]) == (3, 500, 9_900)
    assert size["all"] == 3 * size["seed"]


@pytest.mark.parametrize(
    ("env", "algorithm"),
    [("minatar:breakout", "rainbow"), ("cartpole", "stream-q")],
)
def test_bytes_are_those_of_the_state_that_is_trained(env, algorithm):
    settings = make({"env": env, "algorithm": algorithm, "seeds": 2, "steps": 5_000})
    record = sizes.describe(settings)
    program = assemble.program(settings)
    state = training.init(program, assemble.hyper(settings), assemble.keys(settings))
    parts = {
        "parameters": state.learner.params,
        "target": state.learner.target_params,
        "optimizer": state.learner.opt_state,
        "replay": state.buffer,
        "seed": state,
    }
    assert {name: 2 * record["bytes"][name] for name in parts} == {name: tree.nbytes(x) for name, x in parts.items()}
    assert record["bytes"]["all"] == tree.nbytes(state)
    assert record["bytes"]["parameters"] == sum(layer["bytes"] for layer in record["layers"])
    assert 2 * record["parameters"] == sum(x.numel() for x in state.learner.params.values())


@pytest.mark.parametrize(
    ("values", "outputs"),
    [
        ({"env": "minatar:breakout"}, [[16, 8, 8], [128], [6]]),
        ({"env": "minatar:breakout", "algorithm": "pqn"}, [[16, 8, 8], [16, 8, 8], [128], [128], [6]]),
        ({"env": "minatar:breakout", "algorithm": "stream-q"}, [[4, 10, 10], [16, 8, 8], [128], [6]]),
        ({"dueling": True, "noisy": True}, [[120], [84], [1], [2]]),
        ({"algorithm": "iqn"}, [[120], [84], [8, 84], [8, 2]]),
        ({"algorithm": "c51", "atoms": 5}, [[120], [84], [10]]),
        ({"hidden": ()}, [[2]]),
    ],
)
def test_outputs_of_layers_are_those_for_one_observation(values, outputs):
    settings = make(values)
    network = assemble.network(settings)
    found = sizes.layers(network, network.init(random.key(0)), assemble.env(settings).spec)
    assert [layer["output"] for layer in found] == outputs
    assert all(layer["kind"] != "parameters" for layer in found)


def test_outputs_are_not_those_of_transformed_weights():
    """Ignore results without a batch axis if there are others."""
    inner = networks.mlp(2, (), 3)
    spec = EnvSpec((2,), torch.float32, 3, 0, 1)

    def apply(params, obs):
        doubled = {name: 2 * x for name, x in params.items()}
        return inner.apply(params, obs) + 0 * inner.apply(doubled, obs)

    params = inner.init(random.key(0))
    (layer,) = sizes.layers(Network(inner.init, apply), params, spec)
    assert (layer["output"], layer["kind"]) == ([3], "Linear")


def test_a_sweep_has_learners_of_all_settings():
    record = sizes.describe(Sweep(seeds=2, varied=({"gamma": 0.9}, {"gamma": 0.99}, {"gamma": 0.999})))
    assert (record["seeds"], record["learners"]) == (2, 6)
    assert record["bytes"]["all"] == 6 * record["bytes"]["seed"]


def test_the_command_prints_the_result_of_the_function(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = dict(env="catch", seeds=2, steps=40, learning_starts=20, report_every=40, batch_size=4, hidden=[4])
    settings = make({**given, "hidden": (4,), "out": "run"})
    monkeypatch.setattr(session, "_run", lambda *given: pytest.fail("not trained"))
    with pytest.raises(pytest.fail.Exception):
        fdqn.train(settings, progress=False)
    record = fdqn.summary("run")
    flags = "--env catch --seeds 2 --steps 40 --learning-starts 20 --report-every 40 --batch-size 4 --hidden 4"
    assert cli.main(["summary", *shlex.split(flags), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == record
    tables.print_sizes(record)
    text = capsys.readouterr().out
    assert "dqn on catch: float32 [10, 5], 3 actions" in text
    assert "weight[4, 50] bias[4]" in text
    assert "total" in text


@pytest.mark.parametrize(
    ("algorithm", "stored"),
    [("dqn", "replay, 10,000 rows"), ("pqn", "rollout, 512 rows"), ("stream-q", "rollout, 1 row ")],
)
def test_the_command_names_the_storage_of_an_algorithm(capsys, algorithm, stored):
    tables.print_sizes(sizes.describe(make({"algorithm": algorithm})))
    assert stored in capsys.readouterr().out


def test_the_command_takes_a_run_or_the_flags_of_train():
    assert parse.parse(["summary", "run", "--json"]) == parse.parse(["summary", "--json", "run"])
    assert parse.parse(["summary", "run", "--env", "a:b", "--wrapper", "c:d"]) == parse.Summary(
        Path("run"), None, "a:b", ("c:d",)
    )
    flags = ["--env", "catch", "--algorithm", "rainbow", "--hidden", "8"]
    assert parse.parse(["summary", *flags]).settings == parse.parse(["train", *flags]).settings
    preset = ["--preset", "minatar", "--env", "minatar:breakout"]
    assert parse.parse(["summary", *preset]).settings == parse.parse(["train", *preset]).settings
