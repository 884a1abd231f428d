"""Sweeps: several settings in one program."""

import csv
import dataclasses
import itertools
import json
import math
import re
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from plants import rejects

import fdqn
from fdqn import cli, compile, random, training, tree
from fdqn.cli import several as ranges
from fdqn.cli import tables
from fdqn.compile import cpu_groups
from fdqn.experiment import (
    arms,
    assemble,
    evaluation,
    events,
    memory,
    presets,
    results,
    run_folder,
    session,
    settings,
    sweep,
    sweep_plan,
    sweep_results,
)
from fdqn.experiment.settings import Sweep
from fdqn.report import sweeps
from fdqn.testing import asserts, programs
from fdqn.training import off_policy

pytestmark = pytest.mark.usefixtures("unchecked_iterations")

SMALL = {"seeds": 2, "steps": 400, "hidden": (8,), "num_envs": 2, "batch_size": 8, "compile": False}
REPLAY = {**SMALL, "capacity": 64, "learning_starts": 16, "updates_per_cycle": 2, "target_period": 4}
SOFT = {name: value for name, value in REPLAY.items() if name != "target_period"}
PQN = {**SMALL, "steps_per_cycle": 8, "updates_per_cycle": 4, "algorithm": "pqn"}
STREAM = {"seeds": 2, "steps": 400, "hidden": (8,), "compile": False, "algorithm": "stream-q"}

# Settings of a small run, and the values of several settings of a sweep.
CASES = {
    "rate and gamma": (REPLAY, {"learning_rate": (1e-3, 5e-3), "gamma": (0.9, 0.99)}),
    "epsilon": (REPLAY, {"epsilon_start": (1.0, 0.5), "epsilon_end": (0.1, 0.2), "epsilon_fraction": (0.1, 0.9)}),
    "soft target": (SOFT, {"tau": (0.1, 0.5)}),
    "clipping": (REPLAY, {"max_grad_norm": (0.1, 10.0)}),
    "target period": (REPLAY, {"target_period": (2, 8)}),
    "schedule": (REPLAY, {"learning_rate_end": (0.0, 1e-3)}),
    "cosine": ({**REPLAY, "learning_rate_schedule": "cosine"}, {"learning_rate_end": (0.0, 1e-3)}),
    "exponential": (
        {**REPLAY, "learning_rate_schedule": "exponential"},
        {"learning_rate_decay": (0.9, 0.5), "learning_rate_decay_every": (10, 3)},
    ),
    "adam": (REPLAY, {"adam_beta1": (0.9, 0.5), "adam_beta2": (0.999, 0.9), "adam_eps": (1e-8, 1e-3)}),
    "radam": ({**REPLAY, "optimizer": "radam"}, {"adam_beta1": (0.9, 0.5), "adam_beta2": (0.999, 0.9)}),
    "nadam": ({**REPLAY, "optimizer": "nadam"}, {"adam_beta1": (0.9, 0.5), "adam_eps": (1e-8, 1e-3)}),
    "adamax": ({**REPLAY, "optimizer": "adamax"}, {"adam_beta2": (0.9, 0.5), "adam_eps": (1e-8, 1e-3)}),
    "rmsprop": ({**REPLAY, "optimizer": "rmsprop"}, {"rmsprop_decay": (0.95, 0.5)}),
    "nature rmsprop": ({**REPLAY, "optimizer": "nature-rmsprop"}, {"rmsprop_decay": (0.95, 0.5)}),
    "huber": ({**REPLAY, "loss": "huber"}, {"huber_delta": (1.0, 0.1)}),
    "priorities": ({**REPLAY, "prioritized": True}, {"priority_alpha": (0.6, 0.3), "priority_beta": (0.4, 0.9)}),
    "munchausen": (
        {**REPLAY, "algorithm": "munchausen"},
        {"munchausen_alpha": (0.9, 0.1), "munchausen_tau": (0.03, 0.5), "munchausen_clip": (-1.0, -0.1)},
    ),
    "c51": ({**REPLAY, "algorithm": "c51", "atoms": 11}, {"v_min": (-100.0, 0.0), "v_max": (100.0, 10.0)}),
    "qr-dqn": ({**REPLAY, "algorithm": "qr-dqn", "quantiles": 5}, {"kappa": (1.0, 0.1)}),
    "iqn": ({**REPLAY, "algorithm": "iqn", "fractions": 2, "cosines": 4}, {"kappa": (1.0, 0.1)}),
    "rainbow": (
        {**REPLAY, "algorithm": "rainbow", "atoms": 11},
        {"priority_alpha": (0.6, 0.3), "v_max": (100.0, 10.0), "learning_rate": (1e-3, 5e-3)},
    ),
    "pqn": (PQN, {"q_lambda": (0.65, 0.1), "adam_eps": (1e-8, 1e-3)}),
    "stream-q": (STREAM, {"q_lambda": (0.8, 0.1), "stream_kappa": (2.0, 3.0)}),
}


COMPILED = ({**REPLAY, "seeds": 4}, {"learning_rate": (1e-3, 5e-3), "gamma": (0.9, 0.99), "adam_eps": (1e-8, 1e-3)})


def made(case):
    """Return the sweep of a case: each setting has one value of every number."""
    base, numbers = COMPILED if case == "compiled" else CASES[case]
    each = [dict(zip(numbers, values, strict=True)) for values in zip(*numbers.values(), strict=True)]
    first = settings.make({**base, **each[0]})
    return Sweep(**dataclasses.asdict(first), varied=tuple(each))


def advanced(given, cycles=14):
    program = assemble.program(given)
    state = training.init(program, assemble.hyper(given), assemble.keys(given))
    return programs.advance(program, state, cycles)


def without_hyper(state):
    return state._replace(hyper=None)


def assert_lanes_equal_alone(case):
    """Compare every bit of the state of each setting with a run of that setting, operation by operation."""
    given = made(case)
    together = advanced(given)
    states = []
    for number in range(2):
        alone = advanced(given.at(number))
        assert (alone.learner.updates > 10).all()
        lanes = tree.index(together, slice(2 * number, 2 * number + 2))
        asserts.assert_trees_equal(without_hyper(lanes), without_hyper(alone))
        states.append(alone)
    first, second = (state.learner.params for state in states)
    assert not tree.equal(first, second), "the settings should not learn the same"


@pytest.mark.parametrize("case", CASES)
def test_a_learner_equals_its_setting_trained_alone(case):
    assert_lanes_equal_alone(case)


@pytest.mark.skipif(not cpu_groups.supported(torch.device("cpu")), reason="seeds are not grouped here")
def test_a_compiled_learner_equals_its_setting_trained_alone(monkeypatch):
    """Compare every bit of the second of two settings x 4 seeds with that setting alone, in groups of 4 seeds."""
    compile.prepare_cpu()
    monkeypatch.setattr(cpu_groups, "partition", lambda *sizes: compile.ThreadPartition(4, 1, 1))
    given = made("compiled")
    states = []
    for each in (given, given.at(1)):
        program = assemble.program(each)
        state = training.init(program, assemble.hyper(each), assemble.keys(each))
        states.append(programs.advance(program, state, 50, compile.compiled(program, False, "aot")))
    together, alone = states
    assert (alone.learner.updates > 50).all()
    asserts.assert_trees_equal(without_hyper(tree.index(together, slice(4, 8))), without_hyper(alone))


def of_the_first_setting(monkeypatch):
    """Give all lanes the values of the first setting."""
    hyper = assemble.hyper

    def first(given, *device):
        return (
            hyper(dataclasses.replace(given, varied=given.varied[:1] * len(given.varied)), *device)
            if isinstance(given, Sweep)
            else hyper(given, *device)
        )

    monkeypatch.setattr(assemble, "hyper", first)


def in_the_order_of_seeds(monkeypatch):
    """Let the settings change fastest from lane to lane, instead of the seeds."""
    hyper = assemble.hyper

    def swapped(given, *device):
        order = torch.arange(given.learners).view(-1, given.seeds).T.flatten()
        return tree.index(hyper(given, *device), order)

    monkeypatch.setattr(assemble, "hyper", swapped)


def with_float32_betas(monkeypatch):
    monkeypatch.setitem(assemble._NUMBERS, "adam_beta1", torch.float32)
    monkeypatch.setitem(assemble._NUMBERS, "adam_beta2", torch.float32)


def with_late_target_copies(monkeypatch):
    """Count the updates between target copies from another update."""
    update = off_policy._update

    def late(*given):
        config, agent, buffer, optimizer, period, learner, *rest = given
        if period is None:
            return update(*given)
        moved = learner._replace(updates=learner.updates + 1)
        learner, *others = update(config, agent, buffer, optimizer, period, moved, *rest)
        return learner._replace(updates=learner.updates - 1), *others

    monkeypatch.setattr(off_policy, "_update", late)


@pytest.mark.parametrize(
    ("plant", "case"),
    [
        (of_the_first_setting, "rate and gamma"),
        (of_the_first_setting, "munchausen"),
        (in_the_order_of_seeds, "rate and gamma"),
        (in_the_order_of_seeds, "adam"),
        (with_float32_betas, "adam"),
        (with_late_target_copies, "target period"),
    ],
)
def test_the_law_rejects_planted_bugs(monkeypatch, plant, case):
    plant(monkeypatch)
    with rejects("expected"):
        assert_lanes_equal_alone(case)


def test_permuting_settings_permutes_results_and_nothing_else():
    base = settings.make({**REPLAY, "gamma": 0.9})
    varied = ({"gamma": 0.9}, {"gamma": 0.5}, {"gamma": 0.99})
    given = Sweep(**dataclasses.asdict(base), varied=varied)
    state, other = advanced(given), advanced(dataclasses.replace(given, varied=(varied[2], varied[0], varied[1])))
    asserts.assert_trees_equal(tree.index(state, torch.tensor([4, 5, 0, 1, 2, 3])), other)


# Plans


def planned(values=None, draws=None, samples=1, **given):
    return sweep_plan.plan({**REPLAY, **given}, values or {}, draws, samples)


def test_the_last_name_changes_fastest():
    plan = planned({"gamma": [0.9, 0.99], "learning_rate": [1e-3, 1e-2, 1e-1]})
    assert plan.names == ("gamma", "learning_rate")
    assert plan.values == tuple(itertools.product((0.9, 0.99), (1e-3, 1e-2, 1e-1)))
    assert [program.setting_numbers for program in plan.programs] == [tuple(range(6))]
    assert plan.learners == 12


def test_draws_are_a_function_of_the_seed():
    draws = {"learning_rate": sweep_plan.Draw(1e-5, 1e-2, "log"), "target_period": sweep_plan.Draw(2, 50, "linear")}
    plan, again, other = (planned({}, draws, 8, seed=seed, updates_per_cycle=1) for seed in (0, 0, 1))
    assert plan == again
    assert plan.scales == {"learning_rate": "log", "target_period": "linear"}
    assert not {rate for rate, _ in plan.values} & {rate for rate, _ in other.values}
    assert all(type(period) is int and 2 <= period <= 50 for _, period in plan.values)


def test_every_drawn_setting_is_combined_with_every_value():
    plan = planned({"gamma": [0.9, 0.99]}, {"learning_rate": sweep_plan.Draw(1e-5, 1e-2, "log")}, 3)
    assert [gamma for gamma, _ in plan.values] == [0.9, 0.99] * 3
    assert len({rate for _, rate in plan.values}) == 3


@pytest.mark.parametrize(
    ("draw", "quantile"),
    [
        (sweep_plan.Draw(1e-6, 1e-2, "log"), lambda p: 10 ** (-6 + 4 * p)),
        (sweep_plan.Draw(0.5, 2.5, "linear"), lambda p: 0.5 + 2 * p),
    ],
    ids=["log", "linear"],
)
def test_draws_have_the_quantiles_of_their_scale(draw, quantile):
    """Compare with the quantiles of the distribution; a range of four standard errors has 1,000 draws."""
    drawn = np.sort([x for (x,) in sweep_plan._drawn({"learning_rate": draw}, 1000, 3)])
    assert draw.low <= drawn[0]
    assert drawn[-1] <= draw.high
    for p in (0.1, 0.25, 0.5, 0.75, 0.9):
        below = np.mean(drawn <= quantile(p))
        assert abs(below - p) < 4 * math.sqrt(p * (1 - p) / 1000)


def test_draws_stay_in_their_range_after_rounding():
    low, high = 0.99999990, 0.99999999  # six digits would be 1
    assert all(
        low <= x <= high for (x,) in sweep_plan._drawn({"adam_beta2": sweep_plan.Draw(low, high, "linear")}, 20, 0)
    )
    drawn = sweep_plan._drawn({"target_period": sweep_plan.Draw(0.6, 3.4, "linear")}, 200, 0)
    assert sorted(drawn) == [(1,), (2,), (3,)], "equal draws are one setting"


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (sweep_plan.Draw(0.6, 3.4, "linear"), [1 / 3, 1 / 3, 1 / 3]),
        (sweep_plan.Draw(1, 3, "log"), [math.log(k + 1, 4) - math.log(k, 4) for k in (1, 2, 3)]),
    ],
    ids=["linear", "log"],
)
def test_drawn_integers_include_the_ends(draw, expected):
    drawn = sweep_plan._scaled("target_period", draw, (np.arange(3000) + 0.5) / 3000)
    np.testing.assert_allclose(np.bincount(drawn)[1:] / 3000, expected, atol=1e-3)


def test_a_varied_name_is_no_keyword():
    with pytest.raises(
        ValueError, match="gamma: expected it once, got it in varied and as a keyword; omit one of them"
    ):
        fdqn.sweep({"gamma": [0.9, 0.99]}, gamma=0.5)


def test_the_scale_of_a_range_has_any_case():
    assert ranges.split(["--gamma", "LIN:0.9:0.99"]).draws == {"gamma": ("linear", 0.9, 0.99)}


def test_the_plan_counts_equal_draws():
    plan = planned(
        {"gamma": [0.9]}, {"target_period": sweep_plan.Draw(1, 3, "linear")}, 8, updates_per_cycle=1, seeds=1, seed=1
    )
    assert plan.drawn == (8, len(plan.values))
    text = tables.plan_text(plan, [1000])
    assert "sweep of 3 settings (8 drawn, 3 different) x 1 seed = 3 learners in one program" in text
    alone = planned({"gamma": [0.9]}, seeds=1)
    assert tables.plan_text(alone, [1000]).startswith("sweep of 1 setting x 1 seed = 1 learner in one program")


SHAPING = {
    "hidden": [(8,), (12, 4)],
    "batch_size": [8, 16],
    "n_step": [1, 3],
    "algorithm": ["dqn", "munchausen"],
    "optimizer": ["adam", "sgd"],
    "double": [True, False],
    "tau": [0.5, 1.0],
    "max_grad_norm": [10.0, math.inf],
}


@pytest.mark.parametrize("name", SHAPING)
def test_values_that_shape_the_program_need_several(name):
    given = {key: value for key, value in REPLAY.items() if key != "target_period"}
    plan = sweep_plan.plan(given, {"gamma": [0.9, 0.99], name: SHAPING[name]})
    assert [program.setting_numbers for program in plan.programs] == [(0, 2), (1, 3)]
    for program in plan.programs:
        assemble.program(program.settings)
        for number, one in zip(program.setting_numbers, settings.each(program.settings), strict=True):
            assert (one.gamma, getattr(one, name)) == plan.values[number]


def test_kappa_0_needs_a_program_of_its_own():
    plan = planned({"kappa": [0.0, 0.5, 1.0]}, algorithm="qr-dqn")
    assert [program.setting_numbers for program in plan.programs] == [(0,), (1, 2)]


def test_each_algorithm_has_its_own_defaults():
    plan = sweep_plan.plan({"steps": 20_000, "compile": False}, {"algorithm": ["dqn", "pqn"]})
    first, second = (program.settings for program in plan.programs)
    assert dataclasses.asdict(first.at(0)) == dataclasses.asdict(settings.make({"steps": 20_000, "compile": False}))
    assert (second.optimizer, second.num_envs) == ("radam", 4)


def test_numbers_alone_need_one_program():
    alone = {"rainbow's priorities": (CASES["rainbow"][0], {"priority_alpha": (0.6, 0.3)})}  # with a fixed support
    for case, (base, numbers) in {**CASES, **alone}.items():
        plan = sweep_plan.plan(base, {name: list(values) for name, values in numbers.items()})
        assert len(plan.programs) == 1, case
        (size,) = sweep.state_bytes(plan)  # although fake tensors cannot be read
        assert size > 0, case


def test_a_preset_gives_the_values_that_are_not_given():
    published = presets.values("cleanrl-dqn", "cartpole")
    plan = sweep_plan.plan({"gamma": 0.5}, {"learning_rate": [1e-3, 1e-2]}, published=published)
    (program,) = plan.programs
    assert program.settings.batch_size == published["batch_size"]
    assert [one.learning_rate for one in settings.each(program.settings)] == [1e-3, 1e-2]


def test_a_sweep_survives_json():
    plan = planned({"max_grad_norm": [math.inf], "double": [True], "hidden": [[12, 4]], "gamma": [0.9, 1.0]})
    given = plan.programs[0].settings
    assert given.varied[0]["hidden"] == (12, 4)
    text = json.dumps(settings.to_json(given), allow_nan=False)
    assert settings.from_json(json.loads(text)) == given
    assert "scales" not in json.loads(text), "versions without scales read it"
    with pytest.raises(ValueError, match="settings: expected the fields of this version, got others"):
        settings.from_json({**settings.to_json(settings.Settings()), "scales": {}})
    drawn = planned({}, {"gamma": sweep_plan.Draw(0.9, 0.99, "linear")}, 2).programs[0].settings
    assert drawn.scales == {"gamma": "linear"}
    assert settings.from_json(json.loads(json.dumps(settings.to_json(drawn)))) == drawn


# Folders of sweeps


def trained_alone(found, path):
    """Train a setting alone and return its parameters."""
    run = session.train(dataclasses.replace(found, out=str(path)))
    return results.trained(run.path).params


FEW = {**REPLAY, "steps": 100, "report_every": 25, "checkpoint_every": 25, "evaluate_episodes": 2}
FEW |= {"evaluate_steps": 30, "env": "catch", "seed": 5}
RATES = {"learning_rate": [1e-3, 1e-2], "max_grad_norm": [1.0, 10.0]}
SHAPES = {"hidden": [(8,), (4, 4)], "learning_rate": [1e-3, 1e-2]}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A sweep of one program."""
    return sweep.train(sweep_plan.plan({**FEW, "out": str(tmp_path_factory.mktemp("one") / "sweep")}, RATES))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A sweep of two programs."""
    return sweep.train(sweep_plan.plan({**FEW, "out": str(tmp_path_factory.mktemp("several") / "sweep")}, SHAPES))


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_the_values_of_every_learner(one):
    given, _ = results.plan(one)
    hyper, keys = assemble.hyper(given), assemble.keys(given)
    assert len(rows(one / "settings.csv")) == given.learners == 8
    for lane, row in enumerate(rows(one / "settings.csv")):
        assert int(row["learner"]) == lane
        for name in RATES:
            assert getattr(hyper, name)[lane] == torch.tensor(float(row[name]))
        assert torch.equal(random.key(int(row["seed"])), keys[lane])
        assert assemble.name(given, lane) == f"setting {row['setting']}, seed {row['seed']}"


def test_tables_of_one_and_of_several_programs_are_alike(one, several):
    plan = sweep_plan.plan(FEW, SHAPES)
    table = rows(several / "settings.csv")
    assert [row["learner"] for row in table] == [str(lane) for lane in range(8)]
    for row in table:
        hidden, rate = plan.values[int(row["setting"])]
        assert (row["hidden"], float(row["learning_rate"])) == (" ".join(map(str, hidden)), rate)
    for i, program in enumerate(sweep_plan.read(several).programs):
        own = rows(several / str(i) / "settings.csv")
        kept = [row for row in table if int(row["setting"]) in program.setting_numbers]
        assert [list(row.values())[2:] for row in own] == [list(row.values())[2:] for row in kept]


@pytest.mark.parametrize("which", ["one", "several"])
def test_results_are_those_of_the_summaries(request, which):
    path = request.getfixturevalue(which)
    found = sweep_results.read(path)
    assert found.returns.shape == (len(found.values), 2)
    for number, (values, made) in enumerate(zip(found.values, found.settings, strict=True)):
        assert values == tuple(getattr(made, name) for name in found.names)
        folder, local = sweep_results.locate(path, number)
        summary = results.read(folder).summary
        lanes = slice(2 * local, 2 * local + 2)
        assert found.returns[number].tolist() == summary["final_return"]["per_seed"][lanes]
        assert found.records[number]["setting"] == number
        assert found.records[number]["seeds"] == [5, 6]
        curve = results.read_curve(folder)
        np.testing.assert_array_equal(found.curves[number].values, curve.values[:, lanes])
    assert {row.setting for row in found.ranking()} == set(range(len(found.values)))
    json.dumps(found.record(), allow_nan=False)
    assert found.picture().startswith(b"\x89PNG")


@pytest.mark.usefixtures("light_runs")
def test_parameters_of_a_setting_are_those_trained_alone(several, tmp_path):
    for number in (0, 3):
        path, local = sweep_results.locate(several, number)
        trained = results.of_setting(results.trained(path), local)
        expected = trained_alone(sweep_results.read(several).settings[number], tmp_path / str(number))
        asserts.assert_trees_equal(trained.params, expected)


def test_evaluation_of_a_setting_plays_its_parameters(one):
    """Repeat the evaluation at the end of the training, which has the same keys."""
    played = evaluation.play(evaluation.load(one, setting=2))
    assert played.returns.mean(1).tolist() == sweep_results.read(one).returns[2].tolist()


def test_a_setting_is_located(one, several):
    assert sweep_results.locate(one, 3) == (one, 3)
    plan = sweep_plan.read(several)
    for i, program in enumerate(plan.programs):
        for local, number in enumerate(program.setting_numbers):
            assert sweep_results.locate(several, number) == (several / str(i), local)


def test_the_best_setting_is_trained_on_fresh_seeds(one, several):
    for path in (one, several):
        number, best = sweep_results.best_setting(path)
        assert number == sweep_results.read(path).ranking()[0].setting
        fresh = sweep_results.on_fresh_seeds(path, {"seeds": 3})
        assert (fresh.seed, fresh.seeds, fresh.out) == (7, 3, None)
        assert not isinstance(fresh, Sweep)
        assert dataclasses.replace(fresh, seed=5, seeds=2, out=best.out) == best
        assert sweep_results.on_fresh_seeds(path, {"seed": 3, "seeds": 2}).seed == 3
        for seed in (4, 5, 6):
            with pytest.raises(ValueError, match="seed: expected seeds that the sweep did not use, 7 or higher, got"):
                sweep_results.on_fresh_seeds(path, {"seed": seed, "seeds": 2})


@pytest.mark.usefixtures("light_runs")
def test_an_extended_sweep_has_its_steps_everywhere(one, several, tmp_path, monkeypatch):
    path = shutil.copytree(one, tmp_path / "sweep")
    sweep.resume(path, steps=150)
    found = sweep_results.read(path)
    assert results.read(path).summary["steps"] == 150
    assert sweep_results._steps_text(found.curves) == ", 150 steps"
    short = found.curves[0]._replace(steps=found.curves[0].steps[:-1])
    assert sweep_results._steps_text([short, *found.curves]) == f", {short.steps[-1]} to 150 steps"
    assert sweep_results._steps_text([short._replace(steps=short.steps[:0])]) == ""
    assert sweep_results.extended_to(path) == 150
    assert sweep_results.extended_to(one) is sweep_results.extended_to(several) is None
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--best-of", "sweep", "--out", "best"]) == 0
    alone = session.train(dataclasses.replace(sweep_results.on_fresh_seeds(path, {}), out="alone"))
    extended = session.resume(alone.path, 150)
    assert extended.summary["steps"] == results.read(Path("best")).summary["steps"] == 150
    asserts.assert_trees_equal(results.read_params(Path("best")), extended.params)
    with pytest.raises(ValueError, match="steps: expected none for a program of a sweep"):
        session.resume(several / "0", 150)


def test_the_best_setting_is_marked_as_selected(place, capsys, one):
    """Check JSON, both commands for one setting and the picture; other settings have no mark."""
    found = sweep_results.read(one)
    best, *_, worst = (row.setting for row in found.ranking())
    assert found.record()["selected_on_these_seeds"] is True
    assert sweep_results._mark(found.ranking()) == f"\n{sweeps.SELECTED}"
    assert sweep_results._mark(found.ranking()[:1]) == ""
    values = dict(zip(found.names, found.values[best], strict=True))
    for k, selected in ((best, True), (worst, False)):
        assert sweep_results.described(one, k)["selected_on_these_seeds"] is selected
        out, _ = printed(capsys, "eval", str(one), "--setting", str(k))
        assert f"setting {k}: learning_rate = " in out
        assert ("selected on these seeds" in out) is selected
    out, _ = printed(capsys, "eval", str(one), "--setting", str(best), "--json")
    expected = {"setting": best, "values": values, "selected_on_these_seeds": True}
    assert {name: json.loads(out)[name] for name in expected} == expected
    line = ["export", str(one), "--setting", str(best), "--seed", "5", "--out"]
    assert "selected on these seeds" in printed(capsys, *line, "a.pt")[0]
    out, _ = printed(capsys, *line, "b.pt", "--json")
    assert {name: json.loads(out)[name] for name in expected} == expected
    assert sweep_results.described(one, None) == {}
    assert sweep_results.described_text({**expected, "values": {"gamma": 0.9}}).startswith(
        f"setting {best}: gamma = 0.9"
    )
    assert sweeps.is_selected(found.ranking())
    assert not sweeps.is_selected(found.ranking()[:1])


# Interruptions


def contents(path):
    """Return the results of a folder, without the seconds in them."""
    found = {}
    for file in sorted(path.rglob("*")):
        if file.name in ("params.safetensors", "settings.csv"):
            found[str(file.relative_to(path))] = file.read_bytes()
        elif file.name == "metrics.csv":
            seconds = ("seconds", "updates_per_second")
            found[str(file.relative_to(path))] = [
                {name: x for name, x in row.items() if not name.endswith(seconds)} for row in rows(file)
            ]
    return found


class StopAt:
    """Ask to stop once a number of reports have been made."""

    def __init__(self, count):
        self.left = count

    def __call__(self, event):
        self.left -= isinstance(event, events.Reported)

    def stop(self):
        return self.left <= 0


def stopped(plan, reports):
    """Train a sweep until a number of reports; return its folder and the event of its end."""
    at, seen = StopAt(reports), []
    path = sweep.train(plan, lambda event: (at(event), seen.append(event)), at.stop)
    (end,) = [event for event in seen if isinstance(event, events.Stopped)]
    return path, end


@pytest.mark.usefixtures("light_runs")
def test_a_stopped_sweep_of_one_program_continues(one, tmp_path):
    path, end = stopped(sweep_plan.plan({**FEW, "out": str(tmp_path / "sweep")}, RATES), 2)
    assert end == events.Stopped(path, end.step, 100)
    assert 50 <= end.step <= 58
    assert contents(path) != contents(one)
    with pytest.raises(ValueError, match=rf"best_of: expected a finished sweep, got {path}, which has trained 5\d of"):
        sweep_results.best_setting(path)
    assert sweep.resume(path) == path
    assert contents(path) == contents(one)


@pytest.mark.parametrize(
    ("reports", "steps"),
    [
        pytest.param(2, 50, id="first", marks=pytest.mark.slow),
        pytest.param(6, 150, id="second"),
        pytest.param(4, 100, id="between", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_sweep_of_several_programs_continues(light_runs, several, tmp_path, reports, steps):
    """Stop in the first and in the second program, and after the last report of the first."""
    path, end = stopped(sweep_plan.plan({**FEW, "out": str(tmp_path / "sweep")}, SHAPES), reports)
    assert end == events.Stopped(path, end.step, 200)
    assert steps <= end.step <= steps + 8
    with pytest.raises(ValueError, match=rf"has not finished; continue with: fdqn resume {path}"):
        sweep_results.read(path)
    moved = path.rename(tmp_path / "moved")
    assert sweep.resume(moved) == moved
    assert contents(moved) == contents(several)
    assert sweep.resume(moved) == moved, "a finished sweep is only read"


@pytest.mark.usefixtures("light_runs")
def test_a_program_that_was_killed_before_it_started_is_trained(several, tmp_path):
    path, _ = stopped(sweep_plan.plan({**FEW, "out": str(tmp_path / "sweep")}, SHAPES), 1)
    (path / "1").mkdir()
    (path / "1" / "settings.csv").write_text("learner,setting\n")
    sweep.resume(path)
    assert contents(path) == contents(several)


def test_a_sweep_that_does_not_fit_in_memory_is_refused_before_it_starts(tmp_path):
    given = {**FEW, "out": str(tmp_path / "sweep"), "steps": 10**12}
    plan = sweep_plan.plan(given, {"capacity": [64, 10**12]})
    with pytest.raises(ValueError, match="capacity: expected seeds that fit in"):
        sweep.state_bytes(plan)
    with pytest.raises(ValueError, match="capacity: expected seeds that fit in"):
        sweep.train(plan)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.usefixtures("light_runs")
def test_an_interrupted_evaluation_of_a_sweep_is_repeated(tmp_path):
    """Interrupt the evaluation in a host environment, and compare with `evaluation.play`, which has the same keys."""
    given = {**FEW, "env": "gym:CartPole-v1", "out": str(tmp_path / "sweep")}
    seen = []
    plan = sweep_plan.plan(given, {"gamma": [0.9, 0.99]})
    path = sweep.train(plan, seen.append, lambda: any(isinstance(x, events.EvaluationStarted) for x in seen))
    assert isinstance(seen[-1], events.Stopped)
    assert results.read(path).summary["final_return"]["per_seed"] == [None] * 4
    with pytest.raises(ValueError, match=rf"was not evaluated; continue with: fdqn resume {path}, or evaluate one"):
        sweep_results.read(path)
    assert not sweep_results.is_over(path.parent, path.name, plan.programs[0].settings)
    found = sweep_results.read(sweep.resume(path))
    played = [evaluation.play(evaluation.load(path, setting=k)).returns.mean(1) for k in (0, 1)]
    assert found.returns.tolist() == np.stack(played).tolist()
    assert sweep_results.is_over(path.parent, path.name, plan.programs[0].settings)


def test_missing_returns_are_not_failures(one, tmp_path):
    path = shutil.copytree(one, tmp_path / "sweep")
    summary = json.loads((path / "summary.json").read_text())
    summary["settings"][1]["final_return"] |= {"per_seed": [None, None]}
    (path / "summary.json").write_text(json.dumps(summary))
    rows = sweep_results.read(path).ranking()
    assert [(row.setting, row.rank, row.failed) for row in rows if row.rank is None] == [(1, None, 0)]
    text = "No setting has a return, so none is the best; continue with: fdqn resume a"
    assert sweeps.explanation(rows[-1:], "a") == text
    assert sweeps.explanation(rows[-1:], "a b") == text[:-1] + "'a b'"


def test_programs_are_ranked_by_one_measure(several, tmp_path):
    """Leave out the Gymnasium evaluation of the second program: all settings are ranked by their greedy returns."""
    path = shutil.copytree(several, tmp_path / "sweep")
    expected = sweep_results.read(several)
    for i, played in ((0, True), (1, True), (1, False)):
        summary = json.loads((path / str(i) / "summary.json").read_text())
        for record in (summary, *summary["settings"]):
            record.pop("gymnasium_return", None)
            if played:
                returns = [1000.0 + lane for lane in range(len(record["seeds"]))]
                record["gymnasium_return"] = {"env": "Catch-v1", **results.seeds_record(returns)}
        (path / str(i) / "summary.json").write_text(json.dumps(summary))
        found = sweep_results.read(path)
        if i == 1 and played:
            assert found.measure == "Catch-v1"
            assert found.returns.tolist() == [[1000.0, 1001.0]] * 4
    assert found.measure == "greedy"
    assert found.returns.tolist() == expected.returns.tolist()


# Failed seeds

DIVERGING = {**FEW, "optimizer": "sgd", "learning_rate_schedule": "constant", "max_grad_norm": math.inf}


@pytest.mark.usefixtures("light_runs")
def test_a_setting_whose_seeds_all_fail_has_no_rank(tmp_path):
    plan = sweep_plan.plan({**DIVERGING, "out": str(tmp_path / "sweep")}, {"learning_rate": [1e30, 1e-3]})
    seen = []
    found = sweep_results.read(sweep.train(plan, seen.append))
    names = [event.name for event in seen if isinstance(event, events.SeedFailed)]
    assert names == ["setting 0, seed 5", "setting 0, seed 6"]
    assert [(row.setting, row.rank, row.failed) for row in found.ranking()] == [(1, 1, 0), (0, None, 2)]
    assert sweep_results.best_setting(found.path)[0] == 1
    json.dumps(found.record(), allow_nan=False)
    assert found.picture()


def test_a_program_whose_seeds_all_fail_does_not_end_the_sweep(tmp_path, monkeypatch, light_runs):
    """Raise the error of a run whose environments have all failed after each program, as `session.train` does."""
    train, seen = session.train, []

    def failing(*given):
        raise session.AllFailedError(f"stopped at step {train(*given).summary['steps']}")

    monkeypatch.setattr(session, "train", failing)
    plan = sweep_plan.plan(
        {**DIVERGING, "out": str(tmp_path / "sweep")}, {"hidden": [(8,), (4,)], "learning_rate": [1e30]}
    )
    with pytest.raises(session.AllFailedError, match="all seeds of all settings have failed"):
        sweep.train(plan, seen.append)
    assert sum(isinstance(event, events.Finished) for event in seen) == 2
    named = [event.name for event in seen if isinstance(event, events.SeedFailed)]
    assert named == [f"setting {k}, seed {seed}" for k in (0, 1) for seed in (5, 6)]
    found = sweep_results.read(tmp_path / "sweep")
    assert [row.rank for row in found.ranking()] == [None, None]
    json.dumps(found.record(), allow_nan=False)
    with pytest.raises(ValueError, match="best_of: expected a setting whose seeds did not all fail"):
        sweep_results.best_setting(found.path)


# The command, and Python

LINE = shlex.split(
    "train --env catch --seeds 2 --seed 5 --steps 100 --hidden 8 --num-envs 2 --batch-size 8 --capacity 64 "
    "--learning-starts 16 --updates-per-cycle 2 --target-period 4 --report-every 25 --checkpoint-every 25 "
    "--evaluate-episodes 2 --evaluate-steps 30 --no-compile"
)
ONE = ["--learning-rate", "1e-3", "1e-2", "--max-grad-norm", "1", "10"]


def replaced(line, flag, *values):
    """Return a line with other values of a flag."""
    i = line.index(flag)
    return [*line[:i], flag, *values, *line[i + 2 :]]


SEVERAL = [*replaced(LINE, "--hidden", "8,", "4,4"), "--learning-rate", "1e-3", "1e-2"]


def printed(capsys, *words, code=0):
    """Run a command; return what it printed on standard output and on standard error."""
    got = cli.main(list(words))
    out, err = capsys.readouterr()
    assert got == code, err
    return out, err


CHECK_MEMORY = memory.check_memory


@pytest.fixture
def sizes(monkeypatch, light_runs):
    """Compute the size of a sweep, which other light runs leave out."""
    monkeypatch.setattr(memory, "check_memory", CHECK_MEMORY)


@pytest.fixture
def place(tmp_path, monkeypatch, light_runs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.mark.usefixtures("sizes")
def test_train_prints_the_plan_then_the_ranking(place, capsys, one):
    out, err = printed(capsys, *LINE, *ONE, "--out", "sweep")
    first = err.splitlines()[0]
    assert re.fullmatch(r"sweep of 4 settings x 2 seeds = 8 learners in one program; [\d.]+ kB", first)
    assert out.splitlines()[0].strip() == "settings by greedy return"
    assert out.splitlines()[-1] == "sweep sweep, picture sweep/sweep.png"
    assert len(re.findall(r"^ +[1-4] ", out, re.M)) == 4
    assert "fdqn train --best-of sweep" in " ".join(out.split())
    assert contents(place / "sweep") == contents(one)


@pytest.mark.usefixtures("sizes")
def test_train_of_several_programs_prints_json(place, capsys, several):
    out, err = printed(capsys, *SEVERAL, "--out", "sweep", "--json")
    first, *others = err.splitlines()
    said = r"sweep of 4 settings x 2 seeds = 8 learners in 2 programs, one after the other; at most [\d.]+ kB"
    assert re.fullmatch(said, first)
    assert others[:3] == [
        "  1: hidden = 8: 2 settings x 2 seeds = 4 learners",
        "  2: hidden = 4 4: 2 settings x 2 seeds = 4 learners",
        "program 1 of 2: hidden = 8: 2 settings x 2 seeds = 4 learners",
    ]
    record = json.loads(out)
    assert record["sweep"] == "sweep"
    assert record["measure"] == "greedy"
    assert sorted(x["setting"] for x in record["settings"]) == [0, 1, 2, 3]
    assert {tuple(x["values"]["hidden"]) for x in record["settings"]} == {(8,), (4, 4)}
    assert contents(place / "sweep") == contents(several)


@pytest.mark.usefixtures("sizes")
def test_supports_of_the_command(place, capsys):
    line = replaced(replaced(LINE, "--seeds", "1"), "--steps", "50")
    own = shlex.split("--algorithm c51 --v-min -5 --v-max 10 20 --atoms 5 --out sweep --json")
    out, _ = printed(capsys, *line, *own)
    assert sorted(x["values"]["v_max"] for x in json.loads(out)["settings"]) == [10, 20]


def test_drawn_settings_of_the_command(place, capsys):
    line = replaced(LINE, "--seeds", "1")
    out, _ = printed(capsys, *line, "--learning-rate", "log:1e-4:1e-2", "--samples", "3", "--out", "sweep", "--json")
    expected = sweep_plan._drawn({"learning_rate": sweep_plan.Draw(1e-4, 1e-2, "log")}, 3, 5)
    rates = {x["setting"]: x["values"]["learning_rate"] for x in json.loads(out)["settings"]}
    assert [rates[i] for i in range(3)] == [rate for (rate,) in expected]


@pytest.mark.parametrize("which", ["one", "several"])
def test_other_commands_know_sweeps(request, place, capsys, which):
    path = str(request.getfixturevalue(which))
    found = sweep_results.read(Path(path))
    out, _ = printed(capsys, "report", path, "--out", "drawn.png")
    assert out.splitlines()[0].strip() == "settings by greedy return"
    assert (place / "drawn.png").read_bytes() == found.picture()
    out, _ = printed(capsys, "report", path, "--out", "drawn.png", "--json")
    assert [x["setting"] for x in json.loads(out)["settings"]] == [row.setting for row in found.ranking()]
    out, _ = printed(capsys, "eval", path, "--setting", "3", "--json")
    assert json.loads(out)["per_seed"] == found.returns[3].tolist()
    out, _ = printed(capsys, "eval", path, "--setting", "3", "--seed", "6", "--json")
    assert json.loads(out)["per_seed"] == [found.returns[3, 1]]
    printed(capsys, "export", path, "--setting", "3", "--seed", "6", "--out", "a.pt")
    folder, local = sweep_results.locate(Path(path), 3)
    trained = results.of_setting(results.trained(folder), local)
    asserts.assert_trees_equal(torch.load("a.pt", weights_only=True), tree.index(trained.params, 1))
    out, _ = printed(capsys, "compare", f"{path}:0", f"{path}:3", "--out", "drawn.png", "--json")
    record = json.loads(out)
    assert [arm["per_seed"] for arm in record["arms"]] == found.returns[[0, 3]].tolist()
    assert record["paired"] is True
    out, _ = printed(capsys, "compare", path, "--out", "drawn.png", "--json")
    assert [arm["per_seed"] for arm in json.loads(out)["arms"]] == found.returns.tolist()
    _, err = printed(capsys, "resume", path)
    assert which == "several" or "is finished after 100 steps" in err


def test_best_of_trains_the_best_setting_on_fresh_seeds(place, capsys, one):
    out, _ = printed(capsys, "train", "--best-of", str(one), "--seeds", "3", "--out", "best", "--json")
    assert json.loads(out)["seeds"] == [7, 8, 9]
    trained, _ = results.plan(Path("best"))
    assert trained == dataclasses.replace(sweep_results.best_setting(one)[1], seed=7, seeds=3, out="best")
    printed(capsys, "compare", f"{one}:0", "best", "--out", "drawn.png", "--json")


@pytest.mark.parametrize("which", ["one", pytest.param("several", marks=pytest.mark.slow)])
def test_ctrl_c_names_the_folder_of_the_sweep(request, place, capsys, monkeypatch, which):
    """Interrupt after the second report, which saves a checkpoint; the resumed sweep equals an uninterrupted one."""
    expected, functions, calls = contents(request.getfixturevalue(which)), run_folder.functions, itertools.count()

    def interrupting(*given):
        made = functions(*given)

        def cycle(*state):
            if next(calls) == 1:
                signal.raise_signal(signal.SIGINT)
            return made.cycle(*state)

        return made._replace(cycle=cycle)

    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "functions", interrupting)
        line = [*LINE, *ONE] if which == "one" else SEVERAL
        out, err = printed(capsys, *line, "--out", "sweep", code=130)
    assert out == ""
    total = 100 if which == "one" else 200
    said = rf"stopped at \d+ of {total} steps; the files in sweep are complete; continue with: fdqn resume sweep"
    assert re.fullmatch(said, err.splitlines()[-1]), err
    printed(capsys, "resume", "sweep")
    assert contents(place / "sweep") == expected


def test_settings_of_different_lengths_are_compared_as_such(place, capsys):
    line = replaced(LINE, "--steps", "50", "100")
    printed(capsys, *line, "--out", "sweep")
    _, err = printed(capsys, "compare", "sweep", "--out", "drawn.png", code=1)
    assert "expected one number of steps per seed, got 50 in sweep:0 steps=50 and 100 in sweep:1" in err


def test_host_environments_are_swept(place, capsys):
    line = replaced(LINE, "--env", "gym:CartPole-v1")
    out, _ = printed(capsys, *line, "--gamma", "0.9", "0.99", "--out", "sweep", "--json")
    found = json.loads(out)["settings"]
    assert sorted(x["setting"] for x in found) == [0, 1]
    assert all(np.isfinite(x["final_return"]["per_seed"]).all() for x in found)


def test_sweep_in_python(place, one, capsys):
    given = {name: value for name, value in FEW.items() if name != "out"}
    found = fdqn.sweep(RATES, progress=False, out=place / "sweep", **given)
    assert contents(found.path) == contents(one)
    again = fdqn.resume_sweep(found.path, progress=False)
    assert found.returns.tolist() == again.returns.tolist() == sweep_results.read(one).returns.tolist()
    drawn = fdqn.sweep({"gamma": fdqn.Draw(0.9, 0.99, "linear")}, samples=2, progress=True, out="drawn", **given)
    assert len(drawn.values) == 2
    assert drawn.scales == sweep_results.read(drawn.path).scales == {"gamma": "linear"}
    assert "greedy return" not in capsys.readouterr().err, "a mean over settings says nothing"


@pytest.mark.slow
def test_a_stop_in_python_leaves_a_sweep_to_continue(place, several):
    given = {name: value for name, value in FEW.items() if name != "hidden"}
    at = StopAt(2)
    with pytest.raises(ValueError, match="whose program 1 of 2 has not finished; continue with: fdqn resume"):
        fdqn.sweep(SHAPES, progress=False, out="sweep", on_event=at, stop=at.stop, **given)
    found = fdqn.resume_sweep("sweep", progress=False)
    assert contents(place / "sweep") == contents(several)
    assert found.returns.tolist() == sweep_results.read(several).returns.tolist()


def test_environments_of_user_code_are_named_again(place, monkeypatch, capsys):
    (place / "my_games.py").write_text("from fdqn import envs\ncatch = envs.make('catch')\n")
    monkeypatch.syspath_prepend(str(place))
    line = replaced(SEVERAL, "--env", "my_games:catch")
    printed(capsys, *line, "--out", "sweep")
    assert "pass --env my_games:catch" in printed(capsys, "resume", "sweep", code=1)[1]
    printed(capsys, "resume", "sweep", "--env", "my_games:catch")
    printed(capsys, "report", "sweep")


def test_small_functions():
    given = made("rate and gamma")
    assert sweep_plan.described(given) == "2 settings x 2 seeds = 4 learners"
    single = dataclasses.replace(given, seeds=1, varied=given.varied[:1])
    assert sweep_plan.described(single) == "learning_rate = 0.001, gamma = 0.9: 1 setting x 1 seed = 1 learner"
    assert run_folder.settings_table(given).splitlines()[1] == "0,0,0,0.001,0.9"
    assert run_folder.cell((8, 4)) == "8 4"
    assert settings.to_json_values({"a": math.inf, "b": 1.5, "c": "x"}) == {"a": "inf", "b": 1.5, "c": "x"}
    assert {"gamma", "tau", "v_min", "target_period"} < assemble.free_names()
    assert assemble.in_one_program(given.at(0)) == assemble.in_one_program(given.at(1))
    assert results.seeds_record([1.0, None])["per_seed"] == [1.0, None]


def test_a_sweep_of_an_older_version_is_read(one, tmp_path):
    """Read a folder whose tables have the column `lane` in place of `learner`."""
    old = shutil.copytree(one, tmp_path / "old")
    for name in ("settings.csv", "metrics.csv"):
        table = (old / name).read_text()
        assert table.count("learner") == 1
        (old / name).write_text(table.replace("learner", "lane"))
    for now, then in zip(sweep_results.read(one).curves, sweep_results.read(old).curves, strict=True):
        np.testing.assert_array_equal(now.values, then.values)
    for now, then in zip(arms.read([one]), arms.read([old]), strict=True):
        assert now.seeds == then.seeds
        np.testing.assert_array_equal(now.returns, then.returns)
        np.testing.assert_array_equal(now.curve.values, then.curve.values)


def test_folders_of_sweeps(one, several, tmp_path):
    assert sweep_results.is_sweep(one)
    assert sweep_results.is_sweep(several)
    assert not sweep_results.is_sweep(several / "checkpoints")
    assert sweep_results.write_picture(sweep_results.read(one)).read_bytes() == sweep_results.read(one).picture()
