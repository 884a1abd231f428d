"""Tests of settings: every flag exists, is documented and reaches the program; presets have the published values."""

import dataclasses
import inspect
import json
import math
import re
import shlex
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from fdqn import envs, networks, training, tree
from fdqn.agents import dqn
from fdqn.cli import parse
from fdqn.experiment import assemble, presets, settings
from fdqn.experiment.settings import Settings
from fdqn.ops import losses
from fdqn.types import HostEnv, Hyper

CONTRACT = shlex.split("""
--env --env-kwargs --wrappers --algorithm --seeds --seed --steps --gamma --clip-rewards --terminal-on-life-loss
--terminal-on-truncation --out
--num-envs --steps-per-cycle --updates-per-cycle --batch-size
--capacity --learning-starts --n-step --prioritized --priority-alpha --priority-beta --save-replay --target-period --tau
--epsilon-start --epsilon-end --epsilon-fraction --random-warmup
--network --hidden --dueling --noisy --sigma-zero --orthogonal
--optimizer --learning-rate --learning-rate-schedule --learning-rate-end --learning-rate-decay
--learning-rate-decay-every --adam-beta1 --adam-beta2 --adam-eps --rmsprop-decay --max-grad-norm --loss --huber-delta
--double
--v-min --v-max --atoms --quantiles --kappa --fractions --cosines
--munchausen-alpha --munchausen-tau --munchausen-clip --q-lambda --stream-kappa
--report-every --evaluate-epsilon --evaluate-episodes --evaluate-steps --evaluate-every --checkpoint-every
--keep-checkpoints --on-nan
--device --tf32 --compile --engine --check-compile
""")

# A value other than the default for every field.
OTHER = {
    "env": "acrobot",
    "env_kwargs": ("is_slippery=False", "map_name='8x8'"),
    "wrappers": ("gymnasium.wrappers:NormalizeReward", "mine:Wrapper"),
    "seeds": 5,
    "seed": 7,
    "steps": 4321,
    "num_envs": 6,
    "steps_per_cycle": 3,
    "updates_per_cycle": 2,
    "batch_size": 32,
    "capacity": 999,
    "learning_starts": 77,
    "target_period": 40,
    "tau": 0.01,
    "n_step": 2,
    "clip_rewards": True,
    "terminal_on_life_loss": True,
    "terminal_on_truncation": True,
    "optimizer": "rmsprop",
    "learning_rate": 3e-4,
    "gamma": 0.9,
    "max_grad_norm": 5.0,
    "epsilon_start": 0.8,
    "epsilon_end": 0.02,
    "epsilon_fraction": 0.5,
    "random_warmup": True,
    "hidden": (16, 8, 4),
    "dueling": True,
    "double": False,
    "loss": "huber",
    "report_every": 123,
    "evaluate_epsilon": 0.25,
    "evaluate_episodes": 7,
    "evaluate_steps": 50,
    "evaluate_every": 456,
    "checkpoint_every": 789,
    "keep_checkpoints": 3,
    "save_replay": False,
    "on_nan": "stop",
    "device": "cpu",
    "tf32": True,
    "compile": False,
    "engine": "eager",
    "check_compile": False,
    "out": "somewhere",
    "algorithm": "c51",
    "prioritized": True,
    "priority_alpha": 0.7,
    "priority_beta": 0.5,
    "network": "layernorm-mlp",
    "noisy": True,
    "sigma_zero": 0.1,
    "orthogonal": True,
    "learning_rate_schedule": "cosine",
    "learning_rate_end": 1e-5,
    "learning_rate_decay": 0.8,
    "learning_rate_decay_every": 77,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "adam_eps": 1e-4,
    "rmsprop_decay": 0.9,
    "huber_delta": 2.0,
    "v_min": -5.0,
    "v_max": 5.0,
    "atoms": 11,
    "quantiles": 9,
    "kappa": 0.5,
    "fractions": 16,
    "cosines": 16,
    "munchausen_alpha": 0.8,
    "munchausen_tau": 0.1,
    "munchausen_clip": -2.0,
    "q_lambda": 0.5,
    "stream_kappa": 3.0,
}

# Settings without which a flag is not read.
WITH = {
    **{key: {"prioritized": True} for key in ("priority_alpha", "priority_beta")},
    "sigma_zero": {"noisy": True},
    **{key: {"learning_rate_schedule": "exponential"} for key in ("learning_rate_decay", "learning_rate_decay_every")},
    "rmsprop_decay": {"optimizer": "rmsprop"},
    "huber_delta": {"loss": "huber"},
    **{key: {"algorithm": "rainbow"} for key in ("v_min", "v_max", "atoms")},
    **{key: {"algorithm": "qr-dqn"} for key in ("quantiles", "kappa")},
    **{key: {"algorithm": "iqn"} for key in ("fractions", "cosines")},
    **{key: {"algorithm": "munchausen"} for key in ("munchausen_alpha", "munchausen_tau", "munchausen_clip")},
    "q_lambda": {"algorithm": "pqn"},
    "stream_kappa": {"algorithm": "stream-q"},
}


def arguments(name, value):
    flag = name.replace("_", "-")
    match value:
        case bool():
            return [f"--{flag}" if value else f"--no-{flag}"]
        case tuple():
            return [f"--{flag}", *map(str, value)]
        case _:
            return [f"--{flag}", str(value)]


def parsed(*flags):
    return parse.parse(["train", *flags]).settings


def test_every_field_has_a_flag():
    assert [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Settings)] == CONTRACT
    assert set(OTHER) == {field.name for field in dataclasses.fields(Settings)}
    assert all(getattr(Settings(), name) != value for name, value in OTHER.items())


@pytest.mark.parametrize("name", OTHER)
def test_a_flag_sets_its_field_and_no_other(name):
    needed = WITH.get(name, {})
    flags = [flag for other, value in needed.items() for flag in arguments(other, value)]
    assert parsed(*flags, *arguments(name, OTHER[name])) == settings.make({**needed, name: OTHER[name]})
    usual = settings.defaults(OTHER[name] if name == "algorithm" else needed.get("algorithm", "dqn"))
    changed = {**needed, name: OTHER[name]}
    if changed.get("noisy"):
        changed |= {"epsilon_start": 0.0, "epsilon_end": 0.0}
    assert settings.make({**needed, name: OTHER[name]}) == dataclasses.replace(usual, **changed)


@pytest.mark.parametrize("algorithm", get_args(settings.AlgorithmName))
def test_all_flags_of_an_algorithm_at_once(algorithm):
    # With the schedule, the optimizer and the soft target of OTHER, these are not read.
    unread = {"learning_rate_decay", "learning_rate_decay_every", "target_period"}
    unread |= {"adam_beta1", "adam_beta2", "adam_eps"}
    names = [name for name in OTHER if algorithm in settings._READ_BY.get(name, (algorithm,)) and name not in unread]
    given = {**{name: OTHER[name] for name in names}, "algorithm": algorithm}
    assert len(given) > 20
    flags = [flag for name, value in given.items() for flag in arguments(name, value)]
    assert parsed(*flags) == settings.make(given)


@pytest.mark.parametrize("name", WITH)
def test_a_flag_that_is_not_read_is_rejected(name, capsys):
    with pytest.raises(SystemExit):
        parsed(*arguments(name, OTHER[name]))
    flag = f"--{name.replace('_', '-')}"
    assert re.fullmatch(rf"fdqn: flag {flag}: expected .*, got .*; omit {flag[2:]}\n", capsys.readouterr().err)
    with pytest.raises(ValueError, match=f"^{name}: expected .*; omit {name}$"):
        settings.make({name: OTHER[name]})
    with pytest.raises(ValueError, match=f"^{name}: expected .*; omit {name}$"):
        assemble.program(Settings(**{name: OTHER[name]}))


def test_the_table_of_algorithms_shows_the_settings_of_each():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    head, *rows = re.findall(r"^\| `(.+)\|$", readme.partition("## Algorithms")[2].partition("\n## ")[0], re.MULTILINE)
    flags = [word.strip(" `-").replace("-", "_") for word in head.split("|")[2:]]
    assert flags == ["double", "dueling", "noisy", "prioritized", "n_step"]
    read = {
        (name := row.split("`")[0], flag): cell.strip()
        for row in rows
        for flag, cell in zip(flags, row.split("|")[2:], strict=True)
    }
    assert len(read) == len(flags) * len(get_args(settings.AlgorithmName))
    for (name, flag), cell in read.items():
        assert cell == ("yes" if name in settings._READ_BY[flag] else ""), (name, flag)


def test_without_flags_all_settings_are_defaults():
    assert parsed() == Settings()


@pytest.mark.parametrize("name", ["minatar", "nature"])
def test_a_preset_replaces_the_defaults(name):
    expected = Settings(**presets.PRESETS[name].settings)
    catch = dataclasses.replace(expected, env="catch")
    given = parsed("--env", "catch", "--preset", name)
    assert given == parsed("--env=catch", f"--preset={name}") == catch != dataclasses.replace(Settings(), env="catch")
    changed = parsed("--env", "catch", "--preset", name, "--batch-size", "7", "--double")
    assert changed == dataclasses.replace(expected, env="catch", batch_size=7, double=True)
    assert parsed() == Settings()


def test_the_preset_flag_accepts_all_presets():
    assert get_args(presets.PresetName) == tuple(presets.PRESETS)


def test_minatar_preset_equals_the_paper():
    """Compare with Young and Tian 2019, section 3, and the constants of the package's examples/dqn.py."""
    given = Settings(**presets.PRESETS["minatar"].settings)
    program, hyper = assemble.program(dataclasses.replace(given, env="minatar:breakout")), assemble.hyper(given)
    assert program.config == training.Config(
        num_envs=1, batch_size=32, capacity=100_000, learning_starts=5_000, target_period=1_000, random_warmup=True
    )
    assert assemble.optimizer(given) is assemble.rmsprop
    assert program.algorithm.agent.loss.func is dqn.q_learning
    assert program.algorithm.agent.loss.args[1] is losses.huber
    expected = {"learning_rate": 2.5e-4, "gamma": 0.99, "epsilon_start": 1.0, "epsilon_end": 0.1, "epsilon_steps": 1e5}
    assert {name: getattr(hyper, name).tolist() for name in expected} == {
        name: pytest.approx([x] * 16) for name, x in expected.items()
    }
    assert given.steps == 5_000_000


def test_nature_preset_equals_the_paper():
    """Compare with Mnih et al. 2015, extended data table 1, and its text: clipped rewards, lost lives as ends."""
    pytest.importorskip("ale_py")
    given = Settings(**presets.PRESETS["nature"].settings)
    program, hyper = assemble.program(dataclasses.replace(given, env="ale:Pong")), assemble.hyper(given)
    assert program.config == training.Config(
        num_envs=4, batch_size=32, capacity=1_000_000, learning_starts=50_000, target_period=10_000,
        clip_rewards=True, terminal_on_life_loss=True, random_warmup=True,
    )  # fmt: skip
    assert program.config.env_steps == 4 * program.config.updates_per_cycle
    assert assemble.optimizer(given) is assemble.nature_rmsprop
    assert program.algorithm.agent.loss.func is dqn.q_learning
    assert program.algorithm.agent.loss.args[1] is losses.huber
    expected = {"learning_rate": 2.5e-4, "gamma": 0.99, "epsilon_start": 1.0, "epsilon_end": 0.1, "epsilon_steps": 1e6}
    assert {name: getattr(hyper, name).tolist() for name in expected} == {
        name: pytest.approx([x]) for name, x in expected.items()
    }
    assert given.steps == 10_000_000


@pytest.mark.parametrize(("name", "expected"), [
    ("minatar", {0: 1.0, 4_999: 1.0, 5_000: 1.0, 5_001: 1 - 9e-6, 55_000: 0.55, 100_000: 0.145, 105_000: 0.1}),
    ("nature", {0: 1.0, 49_999: 1.0, 50_000: 1.0, 550_000: 0.55, 1_000_000: 0.145, 1_050_000: 0.1, 9_000_000: 0.1}),
])  # fmt: skip
def test_epsilon_of_presets_equals_the_authors_code(name, expected):
    """Compare with their code: 1 until learning starts, then 1 - 0.9 t / T after t more steps, and 0.1 after T."""
    given = Settings(**{**presets.PRESETS[name].settings, "env": "catch", "terminal_on_life_loss": False, "seeds": 1})
    program, hyper = assemble.program(given), assemble.hyper(given)
    steps = torch.tensor(list(expected))
    epsilon = training.epsilon(tree.index(hyper, 0), steps, program.config.warmup_steps)
    assert epsilon.tolist() == pytest.approx(list(expected.values()), abs=1e-7)


def test_learning_starts_sets_the_warmup_of_a_preset():
    given = dataclasses.replace(
        Settings(**presets.PRESETS["nature"].settings), env="catch", learning_starts=2_001, steps=64_000
    )
    assert assemble.program(dataclasses.replace(given, terminal_on_life_loss=False)).config.warmup_steps == 2_004


def test_settings_of_version_0_1_keep_their_behaviour():
    """Read settings of a preset of version 0.1, which annealed epsilon from the first step."""
    now = settings.to_json(Settings(**presets.PRESETS["minatar"].settings))
    before = {name: value for name, value in now.items() if name not in settings._ADDED}
    assert settings.with_defaults(before) == {**now, "random_warmup": False}
    read = settings.from_json(before)
    assert {name: getattr(read, name) for name in settings._ADDED} == settings._ADDED
    assert not read.random_warmup
    assert (read.algorithm, read.network, read.learning_rate_schedule) == ("dqn", "auto", "constant")


def minatar_root(g):
    """Return the root of the variance after one gradient, plus 0.01, for the mean loss of the package's dqn.py."""
    return (0.05 * g**2 - (0.05 * g) ** 2).sqrt() + 0.01


def nature_root(g):
    """Return the root for gradients that are summed over 32 rows, with 0.01 added to their variance."""
    summed = 32 * g
    return (0.05 * summed**2 - (0.05 * summed) ** 2 + 0.01).sqrt() / 32


@pytest.mark.parametrize(("name", "root"), [("minatar", minatar_root), ("nature", nature_root)])
def test_first_optimizer_step_of_presets_equals_the_paper(name, root):
    """Compare the first steps, for gradients much smaller than, similar to and much larger than 0.01."""
    given = Settings(**{**presets.PRESETS[name].settings, "env": "catch", "terminal_on_life_loss": False, "seeds": 1})
    optimizer = assemble.optimizer(given)(tree.cast(tree.index(assemble.hyper(given), 0), torch.float64))
    grads = {"w": torch.tensor([-1e-4, 1e-3, -0.01, 0.1, 1.0], dtype=torch.float64)}
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    expected = -2.5e-4 * grads["w"] / root(grads["w"])
    torch.testing.assert_close(updates["w"], expected, rtol=1e-6, atol=0)


def test_every_field_is_documented():
    source = inspect.getsource(settings)
    for field in dataclasses.fields(Settings):
        found = re.search(rf'^    {field.name}: [^\n]*\n    """(.+?)"""', source, re.MULTILINE | re.DOTALL)
        assert found, field.name
        assert all(line.endswith(".") for line in found[1].splitlines()), field.name


def test_defaults_of_the_command_and_of_the_library_agree():
    hyper = {name: p.default for name, p in inspect.signature(training.hyper).parameters.items()}
    for name, value in {**dataclasses.asdict(training.Config()), **hyper}.items():
        if name not in ("seeds", "epsilon_steps", "numbers", "device", "n_step"):
            assert getattr(Settings(), name) == value, name


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(training.Config)])
def test_every_size_reaches_the_program(name, monkeypatch):
    if name == "terminal_on_life_loss":
        env = HostEnv(None, envs.find("cartpole").spec, counts_lives=lambda: True)
        monkeypatch.setattr(envs, "find", lambda name: env)
    config = assemble.program(dataclasses.replace(Settings(), **{name: OTHER[name], "batch_size": 32})).config
    assert getattr(config, name) == OTHER[name]


@pytest.mark.parametrize("name", [name for name in Hyper._fields[:-1] if name != "epsilon_steps"])
def test_every_hyper_parameter_reaches_all_seeds(name):
    given = assemble.hyper(dataclasses.replace(Settings(), seeds=4, **{name: OTHER[name]}))
    plain = assemble.hyper(dataclasses.replace(Settings(), seeds=4))
    assert given.numbers == {}
    for field in Hyper._fields[:-1]:
        value = getattr(given, field)
        assert value.shape == (4,)
        assert value.tolist() == pytest.approx([OTHER[name]] * 4 if field == name else getattr(plain, field).tolist())


def test_epsilon_fraction_is_converted_to_steps():
    hyper = assemble.hyper(Settings(steps=50_000, epsilon_fraction=0.3, seeds=2))
    assert hyper.epsilon_steps.tolist() == pytest.approx([15_000] * 2)


def test_soft_copies_replace_hard_ones():
    assert assemble.program(Settings(tau=0.01)).config.target_period == 0
    assert assemble.program(Settings(tau=1.0, target_period=20)).config.target_period == 20


def test_capacity_is_at_most_the_steps_of_the_run():
    assert assemble.program(Settings(steps=2_000, capacity=10_000)).config.capacity == 2_000
    assert assemble.program(Settings(steps=20_000, capacity=10_000)).config.capacity == 10_000
    assert assemble.program(Settings(steps=50, learning_starts=0, n_step=1, capacity=10_000)).config.capacity == 128, (
        "the capacity is at least a batch"
    )


@pytest.mark.parametrize("loss", ["mse", "huber"])
@pytest.mark.parametrize("double", [True, False])
def test_the_given_loss_is_used(loss, double):
    bound = assemble.agent(Settings(loss=loss, double=double)).loss
    assert bound.func is (dqn.double_q_learning if double else dqn.q_learning)
    assert bound.args[1] is {"mse": losses.squared, "huber": losses.huber}[loss]


def test_parts_of_a_network_joined_are_its_body():
    given = settings.defaults("rainbow")
    trunk, head = assemble.parts(given, 3)
    key = assemble.keys(given)[0]
    body, joined = assemble.body(given, 3).init(key), networks.join(trunk, head).init(key)
    assert body.keys() == joined.keys()
    assert body["advantage.weight_mu"].shape == (2 * 3, 84)
    orthogonal = assemble.body(dataclasses.replace(given, orthogonal=True), 3).init(key)
    assert not torch.equal(orthogonal["advantage.weight_mu"], body["advantage.weight_mu"])


def test_the_given_network_is_used():
    keys = assemble.keys(Settings(seeds=2))
    plain = assemble.network(Settings(hidden=(7, 5))).init(keys)
    assert {name: tuple(x.shape) for name, x in plain.items()} == {
        "0.weight": (2, 7, 4),
        "0.bias": (2, 7),
        "2.weight": (2, 5, 7),
        "2.bias": (2, 5),
        "4.weight": (2, 2, 5),
        "4.bias": (2, 2),
    }
    dueling = assemble.network(Settings(hidden=(7, 5), dueling=True)).init(keys)
    assert {"value.weight", "advantage.weight"} < set(dueling)


@pytest.mark.parametrize(("shape", "network"), [((4, 10, 10), networks.minatar), ((4, 84, 84), networks.nature)])
def test_frames_have_a_convolutional_network(monkeypatch, shape, network):
    made = envs.make("minatar:breakout")
    monkeypatch.setattr(assemble.envs, "find", lambda name: made._replace(spec=made.spec._replace(obs_shape=shape)))
    keys = assemble.keys(Settings(seeds=2))
    ours, expected = (made.init(keys) for made in (assemble.network(Settings(env="frames")), network(shape, 6)))
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in expected.items()}
    with pytest.raises(ValueError, match=r"^hidden: expected the default, as .* has frames"):
        assemble.network(Settings(hidden=(7, 5)))
    assert {"value.weight", "advantage.weight"} < set(assemble.network(Settings(dueling=True)).init(keys))


@pytest.mark.parametrize("shape", [(7, 7, 3), (2, 3, 4), (84, 84, 9), (4, 35, 84), (1, 10, 11), (10, 10), (3, 2, 3, 4)])
def test_shapes_without_a_convolutional_network_are_flattened(monkeypatch, shape):
    made = envs.make("minatar:breakout")
    monkeypatch.setattr(assemble.envs, "find", lambda name: made._replace(spec=made.spec._replace(obs_shape=shape)))
    key = assemble.keys(Settings(seeds=1))[0]
    for dueling, make in ((False, networks.mlp), (True, networks.dueling_mlp)):
        ours, expected = assemble.network(Settings(hidden=(7, 5), dueling=dueling)), make(shape, (7, 5), 6)
        params, obs = ours.init(key), torch.linspace(0, 1, 2 * math.prod(shape)).reshape(2, *shape)
        assert torch.equal(ours.apply(params, obs), expected.apply(expected.init(key), obs))


def test_an_infinite_norm_disables_clipping():
    hyper = tree.index(training.hyper(1), 0)
    params = {"w": torch.zeros(2)}
    clipped = assemble.optimizer(Settings(max_grad_norm=10.0))(hyper).init(params)
    assert set(clipped) == {"clip", "rule"}
    assert assemble.optimizer(Settings(max_grad_norm=math.inf, learning_rate_schedule="constant")) is assemble.adam


def test_rmsprop_equals_that_of_minatar():
    """Compare three steps, with and without clipping, with PyTorch and the constants of the paper."""
    clipped = assemble.optimizer(Settings(optimizer="rmsprop", max_grad_norm=0.5, learning_rate_schedule="constant"))
    free = assemble.optimizer(Settings(optimizer="rmsprop", max_grad_norm=math.inf, learning_rate_schedule="constant"))
    assert free is assemble.rmsprop
    hyper = Hyper(*torch.tensor([0.1, 0.99, 1.0, 0.0, 1.0, 1.0, 0.5], dtype=torch.float64))
    for make, norm in ((clipped, 0.5), (free, math.inf)):
        params, optimizer = {"w": torch.tensor([3.0, -4.0], dtype=torch.float64)}, make(hyper)
        state, theirs = optimizer.init(params), params["w"].clone().requires_grad_()
        oracle = torch.optim.RMSprop([theirs], lr=0.1, alpha=0.95, eps=0.01, centered=True)
        for _ in range(3):
            theirs.grad = theirs.detach().clone()
            torch.nn.utils.clip_grad_norm_([theirs], norm)
            oracle.step()
            updates, state = optimizer.update(params, state, params)
            params = {"w": params["w"] + updates["w"]}
            torch.testing.assert_close(params["w"], theirs.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "linear", "exponential", "cosine"])
def test_reported_learning_rates_equal_those_of_the_optimizer(schedule):
    """Compare the rate after each number of updates with the step that SGD takes next on a gradient of 1."""
    given = Settings(
        steps=60, learning_starts=10, num_envs=5, updates_per_cycle=1, optimizer="sgd", max_grad_norm=math.inf,
        learning_rate_schedule=schedule, learning_rate=0.5, learning_rate_end=0.1, learning_rate_decay=0.5,
        learning_rate_decay_every=3,
    )  # fmt: skip
    hyper, params = assemble.hyper(dataclasses.replace(given, seeds=1)), {"w": torch.tensor(3.0)}
    optimizer = assemble.optimizer(given)(tree.index(hyper, 0))
    state, steps = optimizer.init(params), []
    for _ in range(12):
        updates, state = optimizer.update({"w": torch.tensor(1.0)}, state, params)
        steps.append(-updates["w"].item())
    many = assemble.hyper(dataclasses.replace(given, seeds=12))
    np.testing.assert_allclose(assemble.learning_rates(given, many, torch.arange(12)).numpy(), steps, rtol=1e-6)
    assert len(set(steps)) == {"constant": 1, "linear": 11, "exponential": 4, "cosine": 11}[schedule]


def test_stream_q_reports_the_learning_rate_that_it_uses():
    """Check that it reports `Hyper.learning_rate`, because its updates use no schedule."""
    given = settings.make({"algorithm": "stream-q", "seeds": 2, "steps": 100, "learning_rate": 0.5})
    assert given.learning_rate_schedule != "constant"
    rates = assemble.learning_rates(given, assemble.hyper(given), torch.tensor([0, 90]))
    assert rates.tolist() == [0.5, 0.5]


def test_nature_rmsprop_equals_the_authors_code():
    """Compare three steps, with and without clipping, with the authors' code on gradients of 32 times the size."""
    clipped = assemble.optimizer(
        Settings(optimizer="nature-rmsprop", max_grad_norm=0.5, learning_rate_schedule="constant")
    )
    free = assemble.optimizer(
        Settings(optimizer="nature-rmsprop", max_grad_norm=math.inf, learning_rate_schedule="constant")
    )
    assert free is assemble.nature_rmsprop
    hyper = Hyper(*torch.tensor([0.1, 0.99, 1.0, 0.0, 1.0, 1.0, 0.5], dtype=torch.float64))
    for make, norm in ((clipped, 0.5), (free, math.inf)):
        params, optimizer = {"w": torch.tensor([0.3, -0.4], dtype=torch.float64)}, make(hyper)
        state, theirs, mean, square = optimizer.init(params), params["w"].numpy().copy(), 0.0, 0.0
        for _ in range(3):
            summed = 32 * theirs * min(1.0, norm / (np.linalg.norm(theirs) + 1e-6))
            mean, square = 0.95 * mean + 0.05 * summed, 0.95 * square + 0.05 * summed**2
            theirs -= 0.1 * summed / np.sqrt(square - mean**2 + 0.01)
            updates, state = optimizer.update(params, state, params)
            params = {"w": params["w"] + updates["w"]}
            np.testing.assert_allclose(params["w"].numpy(), theirs, rtol=1e-9, atol=1e-9)


def test_index_i_has_the_key_of_seed_plus_i():
    from fdqn import random

    keys = assemble.keys(Settings(seed=5, seeds=3))
    assert keys.tolist() == [random.key(5 + i).tolist() for i in range(3)]
    assert len({tuple(key) for key in keys.tolist()}) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"seed": 2**32 - 1, "seeds": 2}, "seed: expected seeds below"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"report_every": 0}, "report_every: expected at least 1, got 0"),
        ({"evaluate_every": -1}, "evaluate_every: expected at least 0, got -1"),
        ({"epsilon_fraction": 1.01}, "epsilon_fraction: expected a number in"),
        ({"epsilon_fraction": math.nan}, "epsilon_fraction: expected a number in"),
        ({"tau": 0.0}, "tau: expected a number in"),
        ({"tau": math.nan}, "tau: expected a number in"),
        ({"tau": 1.5}, "tau: expected a number in"),
        ({"target_period": 0}, "target_period: expected at least 1"),
        ({"batch_size": 129, "capacity": 128}, "batch_size: expected at most capacity = 128, got 129"),
        ({"num_envs": 200, "capacity": 128}, "num_envs: expected at most capacity = 128, got 200"),
        (
            {"updates_per_cycle": 3, "target_period": 20},
            "target_period: expected a multiple of updates_per_cycle = 3, got 20",
        ),
        ({"hidden": (8, 0)}, "hidden"),
        ({"env": "cartpol"}, "unknown environment 'cartpol'; did you mean 'cartpole'"),
    ],
)
def test_invalid_settings_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        assemble.program(Settings(**given))


def test_the_largest_seed():
    assert len(assemble.keys(Settings(seed=2**32 - 2, seeds=2))) == 2
    assemble.program(Settings(seed=2**32 - 2, seeds=2))


@pytest.mark.parametrize(
    ("steps", "learning_starts", "refused"), [(400, 395, True), (400, 390, False), (401, 395, False)]
)
def test_a_run_without_an_update_is_refused(steps, learning_starts, refused):
    given = Settings(steps=steps, learning_starts=learning_starts, num_envs=10)
    if refused:
        with pytest.raises(ValueError, match=r"learning_starts: .*no update"):
            assemble.program(given)
    else:
        assemble.program(given)


def test_capacity_is_rounded_up_to_whole_iterations():
    rows = assemble.program(Settings(steps=2_001, steps_per_cycle=20, num_envs=10)).config.capacity
    assert rows == 2_200


def test_settings_are_unchanged_by_json():
    for given in (Settings(), Settings(**OTHER), Settings(max_grad_norm=math.inf), settings.defaults("rainbow")):
        text = json.dumps(settings.to_json(given), allow_nan=False)
        assert settings.from_json(json.loads(text)) == given


def test_clipping_at_an_infinite_norm_equals_plain_adam():
    """Compare updates with those of clipping at an infinite norm."""
    hyper = Hyper(*torch.tensor([0.1, 0.99, 1.0, 0.0, 1.0, 1.0, math.inf]))
    params = {"w": torch.tensor([3.0, -4.0])}
    plain, clipped = assemble.adam(hyper), assemble.clipped(assemble.adam)(hyper)
    updates, _ = plain.update(params, plain.init(params), params)
    also, _ = clipped.update(params, clipped.init(params), params)
    assert updates["w"].tolist() == also["w"].tolist() == pytest.approx([-0.1, 0.1])


def test_a_field_is_read_by_its_algorithms():
    assert settings.is_read(Settings(algorithm="c51"), "v_min")
    assert not settings.is_read(Settings(algorithm="dqn"), "v_min")
