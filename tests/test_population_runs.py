"""Tests of runs with population based training: laws, exact resumption, results and commands."""

import csv
import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from plants import rejects

import fdqn
from fdqn import cli, training, tree
from fdqn.experiment import (
    arms,
    assemble,
    evaluation,
    events,
    history,
    html_report,
    page_data,
    population,
    results,
    settings,
    sweep,
    sweep_plan,
)
from fdqn.report import plots, population_plots
from fdqn.storage import checkpoint
from fdqn.testing import asserts, examples
from fdqn.training import loop, populations

GIVEN = {
    "env": "catch", "seeds": 2, "seed": 5, "steps": 120, "hidden": (8,), "num_envs": 4, "batch_size": 8, "capacity": 64,
    "learning_starts": 16, "target_period": 4, "report_every": 20, "checkpoint_every": 40, "n_step": 1,
    "learning_rate_schedule": "constant", "epsilon_fraction": 0.5, "evaluate_episodes": 1, "compile": False,
}  # fmt: skip
VALUES = {"learning_rate": [1e-3, 3e-3, 1e-2], "gamma": [0.9, 0.99]}
SEEDS, LEARNERS, EVERY, ENV_STEPS = 2, 12, 40, 4


def planned(path, pbt_every=EVERY, values=VALUES, **changes):
    return sweep_plan.plan({**GIVEN, "out": str(path), **changes}, values, pbt_every=pbt_every)


def trained(path, *given, **changes):
    return sweep.train(planned(path, *given, **changes))


def rows(file):
    """Read a table without its seconds."""
    with file.open(newline="") as lines:
        return [{name: x for name, x in row.items() if name != "seconds"} for row in csv.DictReader(lines)]


def state_at(path, step=120):
    """Read the state of a checkpoint, with the metrics from which the next means are computed."""
    given, _ = results.plan(path)
    program = assemble.program(given)
    state = training.init(program, assemble.hyper(given), assemble.keys(given))
    like = {"lanes": state, "since": tree.from_numpy(training.snapshot(program, state))}
    return checkpoint.load(path / "checkpoints" / str(step), like)[0]


def contents(path):
    """Return the contents of all files of a run, without seconds."""
    tables = {name: rows(path / name) for name in ("metrics.csv", history.POPULATION) if (path / name).exists()}
    return {**tables, "summary": results.read(path).summary["final_return"]["per_seed"]}


def assert_same_run(expected, got, prefix=""):
    asserts.assert_trees_equal(state_at(expected), state_at(got), prefix)
    assert contents(expected) == contents(got), prefix


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, light_runs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Make a run with steps of population based training at 40 and 80 environment steps."""
    return trained(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Make the same sweep without population based training."""
    return trained(tmp_path_factory.mktemp("plain") / "run", 0)


# The loop

PROGRAM = examples.program()


def reports(between, steps=63):
    """Train with `between`; return the reports, without times, and the number of steps at each call."""
    state, calls = training.init(PROGRAM, *examples.seeds(3)), []

    def called(state, step):
        calls.append(step)
        return between(state, step)

    found = []
    chosen = None if between is None else called
    for report in training.run(PROGRAM, state, steps, training.vmapped(PROGRAM), 21, between=chosen):
        clock = dict(compile_seconds=0, learning_seconds=0, first_update=None)
        found.append(report._replace(state=tree.clone(report.state), **clock))
    return found, calls


@pytest.fixture(scope="module")
def expected_reports():
    return reports(None)[0]


def same_reports(expected, between):
    got, calls = reports(between)
    assert calls == [0, 21, 42]
    for one, two in zip(expected, got, strict=True):
        asserts.assert_trees_equal(one.state, two.state, "state: ")
        for name in one._fields[: one._fields.index("planned")]:
            if name not in ("state", "evaluation"):
                np.testing.assert_array_equal(getattr(one, name), getattr(two, name), f"report: {name}")
        for name, x in one.since._asdict().items():
            np.testing.assert_array_equal(x, getattr(two.since, name), f"since: {name}")


def test_an_identity_between_reports_does_not_change_a_run(expected_reports):
    same_reports(expected_reports, lambda state, step: state)


@pytest.mark.parametrize(
    ("between", "match"),
    [
        (lambda state, step: populations.copy(state, torch.tensor([1, 1, 2])), "state: "),
        (lambda state, step: state._replace(cycle=state.cycle + (step == 42)), "state: |report: "),
    ],
)
def test_another_function_between_reports_is_detected(expected_reports, between, match):
    with rejects(match):
        same_reports(expected_reports, between)


def test_means_do_not_count_updates_of_a_copied_learner():
    """Freeze member 0 until step 21, where it continues with a learner that has made more updates."""

    def between(state, step):
        if step == 0:
            failed = state.metrics.failed.clone()
            failed[0] = 0
            return state._replace(metrics=state.metrics._replace(failed=failed))
        return populations.copy(state, torch.tensor([1, 1, 2])) if step == 21 else state

    first, second, _ = reports(between)[0]
    assert first.updates[0] == 0 < first.updates[1]
    assert second.updates[0] == second.updates[1]
    assert np.isnan(first.loss[0])
    one, two = second.loss[:2]
    assert 0.25 < one / two < 4, "a mean over updates that were not made is too small"


# Laws of runs


def learners(path, chosen):
    """Return the state and the rows of some learners."""
    state, table = state_at(path)["lanes"], rows(path / "metrics.csv")
    own = [[row for row in table if int(row["learner"]) == learner] for learner in chosen]
    return tree.index(state, chosen), [[{**row, "learner": ""} for row in each] for each in own]


def sources(path):
    """Return the sources [N, M] of a run."""
    return np.array([int(row["source"]) for row in rows(path / history.POPULATION)]).reshape(-1, LEARNERS)


def test_members_that_do_not_copy_are_those_of_the_plain_run(plain, tmp_path):
    """Take one step at 80, so that nothing follows from a copy for others."""
    path = trained(tmp_path / "run", 80)
    (source,) = sources(path)
    own = [i for i in range(LEARNERS) if source[i] == i]
    assert 0 < len(own) < LEARNERS
    (state, table), (expected, others) = learners(path, own), learners(plain, own)
    asserts.assert_trees_equal(expected, state)
    assert table == others
    for learner in set(range(LEARNERS)) - set(own):
        params = (tree.index(state_at(each)["lanes"].learner.params, learner) for each in (path, plain))
        assert not tree.equal(*params), "a member that copied should learn from there"


def test_without_a_copy_the_run_is_the_plain_one(plain, monkeypatch, capsys):
    """Train in Python, with equal scores."""
    monkeypatch.setattr(populations, "scores", lambda state, returns: torch.full_like(returns, 1.0))
    found = fdqn.sweep(VALUES, pbt_every=EVERY, out="run", **GIVEN)
    assert found.copies == 0
    assert found.steps.tolist() == [EVERY, 2 * EVERY]
    asserts.assert_trees_equal(state_at(plain), state_at(found.path))
    assert rows(found.path / "metrics.csv") == rows(plain / "metrics.csv")
    assert "greedy return" not in capsys.readouterr().err, "a mean over all members is not printed"


def assert_seed_alone(path, alone):
    """Compare seed 6 of a run of seeds 5 and 6 with a run of seed 6."""
    one, two = learners(path, range(1, LEARNERS, SEEDS)), learners(alone, range(LEARNERS // SEEDS))
    asserts.assert_trees_equal(two[0], one[0], "seed 6: ")
    assert one[1] == two[1], "seed 6: rows differ"


def test_seeds_are_independent_populations(run, plain, tmp_path):
    alone = trained(tmp_path / "alone", seeds=1, seed=6)
    assert_seed_alone(run, alone)
    own = population.read(run).best()[1], population.read(alone).best()[0]
    assert [{**best, "learner": 0} for best in own] == [{**own[0], "learner": 0}] * 2
    with rejects("seed 6: "):
        assert_seed_alone(plain, alone)


def test_copies_across_seeds_are_detected(tmp_path, monkeypatch):
    """Make one population of all members: the run cannot be read, and its summary is not written."""
    evolve = populations.evolve
    monkeypatch.setattr(populations, "evolve", lambda *given, groups, **more: evolve(*given, groups=1, **more))
    monkeypatch.setattr(populations, "noise", partial(_one_group, populations.noise))
    with pytest.raises(ValueError, match="population: expected sources among the learners of the same seed"):
        trained(tmp_path / "mixed")


def _one_group(noise, keys, number, names, groups):
    return noise(keys, number, names)


def test_numbers_stay_within_their_bounds_and_change_only_with_a_copy(run):
    found = population.read(run)
    assert found.steps.tolist() == [EVERY, 2 * EVERY]
    assert found.copies > 0
    assert len(np.unique(found.values["learning_rate"])) > 3
    for name, values in found.values.items():
        low, high = min(VALUES[name]), max(VALUES[name])
        assert ((values >= low) & (values <= high)).all()
        for before, after, source in zip(values[:-1], values[1:], found.sources, strict=True):
            own = source == np.arange(LEARNERS)
            np.testing.assert_array_equal(before[own], after[own])
    final = state_at(run)["lanes"].hyper
    np.testing.assert_allclose(found.values["learning_rate"][-1], final.learning_rate.numpy(), rtol=1e-6)


def test_a_failed_member_continues_with_a_copy(tmp_path):
    seen = []
    given = {"optimizer": "sgd", "max_grad_norm": float("inf"), "seeds": 1}
    plan = planned(tmp_path / "run", values={"learning_rate": [1e-3, 2e-3, 3e-3, 1e30]}, **given)
    summary = results.read(sweep.train(plan, seen.append)).summary
    assert [event.name for event in seen if isinstance(event, events.SeedFailed)] == ["setting 3, seed 5"]
    first = [row["source"] for row in rows(tmp_path / "run" / history.POPULATION)[:4]]
    assert first[3] in "012"
    assert summary["failed_seeds"] == []


@pytest.mark.slow
def test_members_in_host_environments_are_copied(tmp_path):
    given = {"env": "gym:CartPole-v1", "steps": 360, "learning_starts": 20, "epsilon_end": 0.01}
    found = population.read(trained(tmp_path / "run", 120, {"learning_rate": [1e-4, 1e-1]}, **given))
    assert found.steps.tolist() == [120, 240]
    assert found.copies > 0
    assert np.isfinite(found.estimate()["per_seed"]).all()


# Interruptions

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "iterations", [pytest.param(9, marks=SLOW), 10, *(pytest.param(x, marks=SLOW) for x in (13, 20))]
)
def test_a_run_stopped_anywhere_continues(run, tmp_path, monkeypatch, iterations):
    """Stop before and at a step of population based training, which is taken after 10 and 20 iterations."""
    with monkeypatch.context() as patched:
        patched.setattr(loop, "CYCLES_PER_CALL", 1)
        path = sweep.train(planned(tmp_path / "run"), stop=_until(iterations))
    assert results.finished(path) == ENV_STEPS * iterations
    sweep.resume(path)
    assert_same_run(run, path)


def _until(iterations):
    calls = iter(range(10**9))
    return lambda: next(calls) >= iterations - 1


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", [pytest.param(40, marks=SLOW), 60, pytest.param(100, marks=SLOW)])
def test_a_run_killed_anywhere_continues(run, tmp_path, step):
    """Lose all rows after the newest checkpoint, at 40 or 80 steps, where a step of the training is repeated."""

    def kill(event):
        if isinstance(event, events.Reported) and event.step == step:
            raise Killed

    with pytest.raises(Killed):
        sweep.train(planned(tmp_path / "run"), kill)
    sweep.resume(tmp_path / "run")
    assert_same_run(run, tmp_path / "run")


def test_a_finished_run_is_extended_exactly(run, tmp_path, monkeypatch):
    """End where a step of population based training is due; epsilon is annealed over 60 steps in both runs."""
    path = trained(tmp_path / "run", steps=80, epsilon_fraction=0.75)
    assert sources(path).shape == (1, LEARNERS)
    copy = Path(shutil.copytree(path, "copy"))
    sweep.resume(path, steps=120)
    assert_same_run(run, path)
    due = population.is_due
    monkeypatch.setattr(population, "is_due", lambda step, *given: step != 80 and due(step, *given))
    sweep.resume(copy, steps=120)
    with rejects("forgotten"):
        assert_same_run(run, copy, "forgotten: ")


# Results


def test_the_best_member_of_each_seed_is_reported(run):
    found, summary = population.read(run), results.read(run).summary
    for seed, best in enumerate(found.best()):
        own = range(seed, LEARNERS, SEEDS)
        returns = summary["train_return"]["per_seed"]
        assert returns[best["learner"]] == best["train_return"] == max(returns[i] for i in own)
        assert best["return"] == summary["final_return"]["per_seed"][best["learner"]]
        assert best["setting"] == best["learner"] // SEEDS
        for name, value in best["values"].items():
            assert value == pytest.approx(found.values[name][-1, best["learner"]], rel=1e-6)
    assert found.estimate()["per_seed"] == [best["return"] for best in found.best()]
    assert "settings" not in summary, "they are not ranked"
    assert population.record(found.settings, state_at(run)["lanes"].hyper, summary) == summary["population"]
    json.dumps(found.record(), allow_nan=False)
    assert population.is_population(run)


def test_the_lineage_follows_the_copies(run):
    found, curve = population.read(run), results.read_curve(run)
    for seed, best in enumerate(found.best()):
        held = best["learner"]
        for i in reversed(range(len(curve.steps))):
            np.testing.assert_array_equal(found.lineage().values[i, seed], curve.values[i, held])
            if i and curve.steps[i - 1] in found.steps:
                held = found.sources[found.steps.tolist().index(curve.steps[i - 1]), held]


def test_the_page_shows_the_ancestors_and_their_numbers(run):
    found = population.read(run)
    page = html_report.page_of([run], ["run"])
    assert page["title"] == page_data.of_population(html_report._read_run(run, "run"), found)["title"]
    assert [panel["label"] for panel in page["curves"]] == ["training return", "learning_rate", "gamma"]
    (returns,), (rates,), _ = (panel["curves"] for panel in page["curves"])
    np.testing.assert_array_equal(returns["seed_values"], found.lineage().values.T)
    assert rates["seeds"] == [5, 6]
    last = [member["values"]["learning_rate"] for member in found.best()]
    np.testing.assert_allclose(rates["seed_values"][:, -1], last, rtol=1e-6)
    assert set(rates["seed_values"][:, 0]) <= set(VALUES["learning_rate"]), "as the settings are at the start"
    assert page["sweep"] is None
    assert page["commands"][0][1][0].endswith(f"--gamma 0.9 0.99 --pbt-every {EVERY}")


def test_best_members_are_played_exported_and_compared(run, capsys):
    found = population.read(run)
    played = evaluation.play(evaluation.load(run))
    assert played.returns.mean(1).tolist() == found.estimate()["per_seed"]
    assert cli.main(["export", str(run), "--seed", "6", "--out", "a.pt"]) == 0
    params = tree.index(results.trained(run).params, found.best()[1]["learner"])
    asserts.assert_trees_equal(torch.load("a.pt", weights_only=True), params)
    best = population.best_members(results.trained(run), found)
    assert (best.failed, best.settings.seeds) == ([], SEEDS)
    asserts.assert_trees_equal(params, tree.index(best.params, 1))
    first, _ = arms.read([run, Path(shutil.copytree(run, "other"))])
    assert first.seeds == (5, 6)
    assert first.returns.tolist() == found.estimate()["per_seed"]
    file = Path("other/summary.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "env_kwargs": ["time_limit=9"]}))
    assert arms.read([run, Path("other")])[1].env == f"{first.env} (time_limit=9)"
    capsys.readouterr()


def test_the_command_prints_the_plan_and_the_best_members(run, tmp_path, capsys):
    more = ["--learning-rate", "1e-3", "3e-3", "1e-2", "--gamma", "0.9", "0.99", "--pbt-every", "40", "--out", "run"]
    assert cli.main(["train", *flags(GIVEN), *more]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[1] == (
        "population based training every 40 steps, each seed a population of 6 members: learning_rate in [0.001, "
        "0.01], gamma in [0.9, 0.99]"
    )
    assert out.splitlines()[0].strip() == "catch, best member of each seed after 120 steps"
    assert "copies in 2 steps of population based training" in out
    assert out.splitlines()[-1] == "sweep run, picture run/population.png"
    assert_same_run(run, tmp_path / "run")
    assert cli.main(["report", "run", "--json", "--out", "drawn.png"]) == 0
    assert json.loads(capsys.readouterr().out) == {**population.read(run).record(), "sweep": "run"}
    assert (tmp_path / "drawn.png").read_bytes() == (tmp_path / "run" / "population.png").read_bytes()


def test_pictures_of_a_run(run, tmp_path):
    found = population.read(run)
    assert population.write_picture(found, tmp_path / "a.png").read_bytes() == found.picture()
    with (tmp_path / "b.png").open("wb") as file:
        population.draw_curve(file, run, found.settings, found.summary)
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def flags(given):
    """Return the flags of settings."""
    arguments = []
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return arguments


def test_bounds_are_those_of_the_values_or_the_range(tmp_path):
    drawn = {"gamma": sweep_plan.Draw(0.8, 0.95, "linear")}
    made = sweep_plan.plan(GIVEN, {"learning_rate": [1e-2, 1e-3]}, drawn, 3, pbt_every=40).programs[0].settings
    assert made.bounds == {"learning_rate": (1e-3, 1e-2), "gamma": (0.8, 0.95)}
    assert settings.from_json(json.loads(json.dumps(settings.to_json(made)))) == made
    assert {"pbt_every", "bounds"}.isdisjoint(settings.to_json(dataclasses.replace(made, pbt_every=0, bounds={})))
    assert [step for step in range(12, 100, 12) if population.is_due(step, 40, 12)] == [48, 84]


def made_history(seeds, members=3, steps=2, best=0):
    """Make a history in which member 0 copies the last member of its seed at every step."""
    count = members * seeds
    own = np.tile(np.arange(count), (steps, 1))
    own[:, :seeds] = np.arange(count - seeds, count)
    curve = plots.Curve(np.arange(1, 7) * 10, np.linspace(0, 1, 6 * count).reshape(6, count))
    curve.values[3, 0] = np.nan
    values = {"learning_rate": np.geomspace(1e-4, 1e-2, (steps + 1) * count).reshape(-1, count)}
    chosen = [None if best is None else best + seed for seed in range(seeds)]
    return population_plots.History(curve, np.arange(1, steps + 1) * 20, own, values, chosen, range(5, 5 + seeds))


@pytest.mark.parametrize(
    "given",
    [made_history(9), made_history(2, steps=0, best=None)],
    ids=["many seeds", "all failed before a step"],
)
def test_pictures(given, tmp_path):
    population_plots.write(tmp_path / "a.png", given, "a$_{b", "$_{3 members")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_logarithmic_axis_of_a_decade_has_several_labels():
    given = made_history(2, members=2)
    figure = population_plots.figure(given._replace(values={"target_period": np.geomspace(5, 50, 12).reshape(3, 4)}))
    axes = figure.subfigs[0].axes[1]
    figure.draw_without_rendering()
    (low, high), ticks = axes.get_ylim(), axes.yaxis.get_major_ticks()
    shown = [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]
    assert shown == ["5", "10", "20", "50"]


def test_ancestors():
    given = made_history(2)
    reports = given.curve.steps
    assert population_plots.ancestors(reports, given.steps, given.sources, 0).tolist() == [4, 4, 4, 4, 0, 0]
    assert population_plots.ancestors(reports, given.steps, given.sources, 3).tolist() == [3] * 6
    assert len(population_plots.figure(given).subfigs) == 2


@pytest.mark.slow
def test_a_compiled_run_continues_exactly(tmp_path, monkeypatch):
    given = {"compile": True, "check_compile": False}
    path = trained(tmp_path / "whole", **given)
    assert (sources(path) != np.arange(LEARNERS)).any()
    stopped = sweep.train(planned(tmp_path / "run", **given), stop=_until(3))
    assert results.finished(stopped) < 120
    sweep.resume(stopped)
    assert_same_run(path, stopped)
