"""Successive halving of sweeps: survivors keep their bits, and sweeps that were killed continue exactly."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from plants import rejects

import fdqn
from fdqn import cli, tree
from fdqn.cli import tables
from fdqn.compile import cpu_groups
from fdqn.experiment import (
    arms,
    assemble,
    evaluation,
    events,
    halving,
    halving_plan,
    history,
    html_report,
    results,
    run_folder,
    session,
    settings,
    sweep,
    sweep_plan,
    sweep_results,
)
from fdqn.report import halving_plots, sweep_plots, sweeps
from fdqn.testing import asserts
from fdqn.training import populations

SMALL = {"env": "catch", "seeds": 2, "seed": 5, "steps": 200, "hidden": (8,), "num_envs": 4, "batch_size": 8}
SMALL |= {"capacity": 64, "learning_starts": 16, "target_period": 4, "compile": False, "report_every": 50}
SMALL |= {"checkpoint_every": 50, "evaluate_episodes": 2, "evaluate_every": 100}
RATES = {"learning_rate": [1e-4, 3e-2, 1e-3, 1e-2, 3e-3]}


def planned(out, eta=2, values=RATES, **given):
    return halving_plan.plan(sweep_plan.plan({**SMALL, "out": str(out), **given}, values), eta)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, light):
    """A sweep of 5, 3 and 2 settings that was not interrupted."""
    return halving.train(planned(tmp_path_factory.mktemp("whole") / "sweep"))


@pytest.fixture(scope="module")
def full(tmp_path_factory, light):
    """The same sweep without halving."""
    return sweep.train(sweep_plan.plan({**SMALL, "out": str(tmp_path_factory.mktemp("full") / "sweep")}, RATES))


def rows(path, name="metrics.csv"):
    with (path / name).open(newline="") as file:
        return list(csv.DictReader(file))


def rows_of(path, number, seeds=2):
    """Return the rows of a setting by the seed's number, without their seconds."""
    own = [row for row in rows(path) if int(row["learner"]) // seeds == number]
    return [{**row, "learner": int(row["learner"]) % seeds, "seconds": None} for row in own]


def contents(path):
    """Return the results of a folder without the seconds in them."""
    found = {}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if file.name in ("params.safetensors", "settings.csv", "evaluations.csv"):
            found[name] = file.read_bytes()
        elif file.name == "metrics.csv":
            found[name] = [{**row, "seconds": None} for row in rows(file.parent)]
    return {**found, "numbers": halving_plan.read(path).setting_numbers}


# Bits


def law_survivors(path, full):
    """Compare rows, parameters and returns of every setting with a sweep that trains all of them to the end."""
    found, expected = sweep_results.read(path), sweep_results.read(full)
    for setting in range(len(found.values)):
        folder, number = sweep_results.locate(path, setting)
        trained_to = results.read(folder).summary["steps"]
        assert rows_of(folder, number) == [x for x in rows_of(full, setting) if int(x["step"]) <= trained_to], "rows"
        if found.halving.dropped(setting) is None:
            lanes = [results.of_setting(results.trained(x), k) for x, k in ((folder, number), (full, setting))]
            asserts.assert_trees_equal(lanes[0].params, lanes[1].params, "params: ")
            assert found.returns[setting].tolist() == expected.returns[setting].tolist()
        else:
            assert trained_to < SMALL["steps"]


def test_survivors_are_as_if_nothing_was_dropped(whole, full, tmp_path):
    law_survivors(whole, full)
    best, given = sweep_results.best_setting(whole)
    alone = session.train(dataclasses.replace(given, out=str(tmp_path / "alone")))
    folder, number = sweep_results.locate(whole, best)
    asserts.assert_trees_equal(results.of_setting(results.trained(folder), number).params, alone.params)


@pytest.mark.slow
@pytest.mark.skipif(not cpu_groups.supported(torch.device("cpu")), reason="seeds are not grouped here")
def test_compiled_survivors_are_as_if_nothing_was_dropped(light, tmp_path):
    one = planned(tmp_path / "sweep", compile=True, engine="aot", check_compile=False)
    run = session.train(dataclasses.replace(one.settings, out=str(tmp_path / "full")))
    law_survivors(halving.train(one), run.path)


def test_rungs_drop_the_settings_with_the_lowest_training_returns(whole):
    found = halving_plan.read(whole)
    assert [rung.settings for rung in found.rungs] == [5, 3, 2] == [len(numbers) for numbers in found.setting_numbers]
    assert [rung.end for rung in found.rungs] == [50, 150, 200]
    assert found.fraction == pytest.approx((5 * 50 + 3 * 100 + 2 * 50) / (5 * 200))
    for i in range(2):
        records = results.read(whole / str(i)).summary["settings"]
        means = results.read(whole / str(i)).curve.values[-1].reshape(-1, 2).mean(1)
        assert np.isfinite(means).all()
        assert all(record["final_return"]["iqm"] is None for record in records), "no evaluation of rungs"
        order = sorted(range(len(means)), key=lambda k: (-means[k], k))
        kept = sorted(order[: found.rungs[i + 1].settings])
        assert found.setting_numbers[i + 1] == tuple(found.setting_numbers[i][k] for k in kept)


def rewound(whole, path, rungs, numbers):
    """Copy a sweep with its first rungs, of which `halving.json` lists `numbers`."""
    shutil.copytree(whole, path, ignore=lambda _, names: [x for x in names if x.isdigit() and len(x) == 1])
    for i in range(rungs):
        shutil.copytree(whole / str(i), path / str(i))
    found = halving_plan.read(path)
    halving_plan.write(found._replace(setting_numbers=found.setting_numbers[:numbers]), path)
    return path


def with_replay_of_others(keep, state, members):
    return keep(state, members)._replace(buffer=keep(state.buffer, members.roll(1)))


def with_episodes_of_others(keep, state, members):
    return keep(state, members)._replace(env_state=keep(state.env_state, members.roll(1)))


@pytest.mark.parametrize("plant", [with_replay_of_others, with_episodes_of_others])
def test_wrong_learners_are_detected(monkeypatch, whole, full, tmp_path, plant):
    keep = populations.keep
    monkeypatch.setattr(populations, "keep", lambda state, members: plant(keep, state, members))
    path = rewound(whole, tmp_path / "sweep", 2, 2)
    halving.resume(path)
    with rejects("rows|params"):
        law_survivors(path, full)


# Interruptions


class KilledError(Exception):
    """Ends a sweep where a signal would."""


def kill_at(kind, count):
    """Return a receiver of events that raises at an event of a kind."""
    left = count

    def receive(event):
        nonlocal left
        left -= isinstance(event, kind)
        if not left:
            raise KilledError

    return receive


@pytest.mark.parametrize(
    ("rungs", "kind", "count"), [pytest.param(1, events.Reported, 1, marks=pytest.mark.slow), (2, events.Reported, 1)]
)
def test_a_sweep_killed_inside_a_rung_continues(whole, tmp_path, rungs, kind, count):
    """Kill a rung after its first report: the second before its end, the third at its end, before its summary."""
    path = rewound(whole, tmp_path / "sweep", rungs, rungs)
    with pytest.raises(KilledError):
        halving.resume(path, kill_at(kind, count))
    assert len(halving_plan.read(path).setting_numbers) == rungs + 1
    assert halving.resume(path) == path
    assert contents(path) == contents(whole)
    with pytest.raises(ValueError, match="steps: expected none for a sweep with halving"):
        halving.resume(path, steps=10**6)


@pytest.mark.parametrize(("module", "name"), [(history, "copy"), (halving_plan, "write")])
def test_a_sweep_killed_while_a_rung_is_made_continues(monkeypatch, whole, tmp_path, module, name):
    """Kill before the rows and the checkpoint of the last rung are written, and before `halving.json` lists it."""
    path = rewound(whole, tmp_path / "sweep", 2, 2)

    def killed(*given):
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(module, name, killed)
        with pytest.raises(KilledError):
            halving.resume(path)
    assert (path / "2" / "config.json").exists()
    assert len(halving_plan.read(path).setting_numbers) == 2
    with pytest.raises(ValueError, match="whose rung 2 of 3 has not finished; continue with: fdqn resume"):
        sweep_results.read(path)
    sweep.resume(path)
    assert contents(path) == contents(whole)


@pytest.mark.slow
def test_a_stopped_sweep_continues(whole, tmp_path):
    """Stop at the end of the first rung, and before it has made a folder."""
    path, seen = tmp_path / "sweep", []
    assert halving.train(planned(path), seen.append, lambda: any(isinstance(x, events.Reported) for x in seen)) == path
    assert seen[-1] == events.Stopped(path, 52, 200)
    assert not (path / "1").exists()
    shutil.rmtree(path / "0")
    (path / "0").mkdir()
    (path / "0" / "settings.csv").write_text("learner,setting\n")
    halving.resume(path)
    assert contents(path) == contents(whole)
    assert halving.resume(path) == path, "a finished sweep is only read"


def test_an_interrupted_evaluation_of_the_last_rung_is_repeated(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "sweep")
    summary = json.loads((path / "2" / "summary.json").read_text())
    summary["final_return"]["per_seed"] = [None] * 4
    (path / "2" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="whose rung 3 of 3 has not finished; continue with: fdqn resume"):
        sweep_results.read(path)
    halving.resume(path)
    np.testing.assert_array_equal(sweep_results.read(path).returns, sweep_results.read(whole).returns)


# Plans


def test_rungs_end_at_reports():
    found = planned("x", 3, {"gamma": [0.9 + i / 1000 for i in range(27)]}, steps=13_000, report_every=300)
    assert [(rung.settings, rung.end) for rung in found.rungs] == [(27, 1_200), (9, 4_200), (3, 13_000)]
    assert halving_plan.described(found, 1) == "9 settings x 2 seeds = 18 learners, to step 4,200"
    assert halving_plan.record(found)["rungs"][0] == {"settings": 27, "end": 1_200}
    assert halving.seconds(found) is None


def test_settings_with_failed_seeds_are_dropped_first():
    nan = float("nan")
    returns = np.array([[5.0, nan], [1.0, 1.0], [nan, nan], [2.0, 2.0], [1.0, nan], [nan, nan]])
    failed = [True, False, False, False, False, True]
    assert halving_plan.ranking(returns, failed) == [3, 1, 4, 2, 0, 5]
    assert halving_plan.survivors(returns, failed, 2) == [1, 3, 4]
    assert halving_plan.survivors(returns[:2], failed, 2) == [1]
    with pytest.raises(ValueError, match="steps: expected a finished episode before the end of a rung, got none"):
        halving_plan.survivors(np.full((3, 2), nan), failed, 2)


def test_a_rung_survives_json():
    given = planned("x").settings
    assert given.rung_of == 5
    assert settings.from_json(json.loads(json.dumps(settings.to_json(given)))) == given
    assert "rung_of" not in settings.to_json(dataclasses.replace(given, rung_of=0))


@pytest.mark.skipif(not cpu_groups.supported(torch.device("cpu")), reason="seeds are not grouped here")
def test_rungs_have_groups_of_one_size(light, tmp_path):
    """Compare with the groups that the same learners have without halving, which need not divide the seeds."""
    first = dataclasses.replace(planned("x", compile=True, seeds=3).settings, engine="aot")
    pinned, groups = run_folder.partition_to_pin(first, first.seeds), []
    for kept in (5, 3, 2):
        one = dataclasses.replace(first, varied=first.varied[:kept], out=str(tmp_path / str(kept)))
        path = run_folder.create(one, pinned=pinned)
        fixed = run_folder.pinned_partition(path, one)
        assert results.read_config(path)["engine"]["lanes"]["lanes"] == fixed.lanes
        assert run_folder.differences(path, one) == []
        run_folder.replan(path, 10**6, one)
        assert run_folder.pinned_partition(path, one) == fixed
        groups.append((fixed.lanes, fixed.threads))
    assert groups == [(pinned.lanes, pinned.threads)] * 3
    assert 3 % pinned.lanes == 0
    assert run_folder.partition_to_pin(dataclasses.replace(first, engine="eager"), 3) is None


def test_a_sweep_whose_seeds_all_fail_is_stopped(light, tmp_path):
    given = {"optimizer": "sgd", "learning_rate_schedule": "constant", "max_grad_norm": float("inf")}
    one = planned(tmp_path / "sweep", values={"learning_rate": [1e30, 1e31, 1e32]}, evaluate_every=0, **given)
    seen = []
    with pytest.raises(session.AllFailedError, match="all seeds of all settings have failed"):
        halving.train(one, seen.append)
    assert {x.name for x in seen if isinstance(x, events.SeedFailed)} >= {"setting 2, seed 6"}
    found = sweep_results.read(tmp_path / "sweep")
    assert [row.rank for row in found.ranking()] == [None] * 3


# Results


def test_ranking_has_survivors_then_dropped_settings(whole, full):
    found = sweep_results.read(whole)
    listed = found.ranking()
    last = set(found.halving.setting_numbers[-1])
    assert {row.setting for row in listed[:2]} == last
    assert [row.dropped for row in listed] == [None, None, 150, 50, 50]
    assert listed[3].estimate.iqm >= listed[4].estimate.iqm
    assert all(np.isfinite(found.returns[k]).all() == (k in last) for k in range(5))
    assert [row.in_best_set is None for row in listed] == [False, False, True, True, True]
    kept = sorted(last)
    expected = sweep_results.read(full).returns[kept]
    assert found.returns[kept].tolist() == expected.tolist()
    made = found.record()
    assert made["halving"]["eta"] == 2
    assert [x["dropped"] for x in made["settings"]] == [None, None, 150, 50, 50]
    json.dumps(made, allow_nan=False)
    assert found.picture().startswith(b"\x89PNG")


def test_dropped_settings_with_equal_returns_have_equal_ranks(whole):
    found = sweep_results.read(whole)
    _, _, _, fourth, fifth = (row.setting for row in found.ranking())
    for change, ranks in ((0.0, [4, 4]), (-1.0, [4, 5])):
        curves = list(found.curves)
        curves[fifth] = curves[fourth]._replace(values=curves[fourth].values + change)
        rows = found._replace(curves=tuple(curves)).ranking()
        assert [row.rank for row in rows[3:]] == ranks


def test_dropped_settings_whose_seeds_all_failed_have_no_rank(whole, tmp_path, capsys):
    """Let the best of the settings that the first rung dropped fail."""
    path = shutil.copytree(whole, tmp_path / "sweep")
    *_, best, other = sweep_results.read(path).ranking()
    summary = json.loads((path / "0" / "summary.json").read_text())
    summary["settings"][best.setting]["failed_seeds"] = [5, 6]
    (path / "0" / "summary.json").write_text(json.dumps(summary))
    rows = sweep_results.read(path).ranking()
    assert [(row.setting, row.rank, row.failed) for row in rows[3:]] == [(other.setting, 4, 0), (best.setting, None, 2)]
    assert "were dropped at steps 50 and 150 for lower training returns or failed seeds; the" in sweeps.explanation(
        rows
    )
    tables.print_ranking(path, ("learning_rate",), rows)
    assert capsys.readouterr().out.count("failed") == 3, "heading, row and reason"


def test_a_rung_is_not_a_sweep(whole):
    said = f"sweep: expected the folder of a whole sweep, got {whole / '0'}, a rung of successive halving; use {whole}"
    with pytest.raises(ValueError, match=said):
        sweep_results.read(whole / "0")
    assert len(sweep_results.read(whole / "2").values) == 2


def test_other_commands_know_halving(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    found = sweep_results.read(whole)
    (best, *_), (*_, worst) = found.ranking(), found.ranking()
    assert cli.main(["report", str(whole), "--out", "drawn.png"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "the others are the 2 settings of the last rung" in text
    assert "at 150" in text
    played = evaluation.play(evaluation.load(whole, setting=best.setting))
    assert played.returns.mean(1).tolist() == found.returns[best.setting].tolist()
    assert evaluation.load(whole, setting=worst.setting).step == 52
    fresh = sweep_results.on_fresh_seeds(whole, {})
    assert (fresh.seed, fresh.learning_rate) == (7, found.values[best.setting][0])
    assert not isinstance(fresh, settings.Sweep)
    read = arms.read([whole])
    assert [arm.returns.tolist() for arm in read] == [
        found.returns[k].tolist() for k in found.halving.setting_numbers[-1]
    ]
    assert {arm.settings for arm in read} == {5}
    one = Path(f"{whole}:{worst.setting}")
    with pytest.raises(ValueError, match=r"expected a setting of the last rung, got .*, which was dropped at step 50"):
        arms.read([one, Path(f"{whole}:{best.setting}")])
    damaged = tmp_path / "damaged"
    shutil.copytree(whole, damaged)
    table = (damaged / "settings.csv").read_text()
    for wrong in ("\n0,99,", "\n0,foo,"):
        (damaged / "settings.csv").write_text(table.replace("\n0,0,", wrong))
        with pytest.raises(ValueError, match=r"expected the settings and the seeds .* in .*settings\.csv, got others"):
            arms.read([damaged], "training")
    (damaged / "settings.csv").write_text(table)
    plan = json.loads((damaged / "halving.json").read_text())
    plan["rungs"][-1]["numbers"] = None
    (damaged / "halving.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=r"expected a finished sweep, got .*, whose rung 2 of 3 is the last one"):
        arms.read([damaged], "training")
    (dropped, kept) = arms.read([one, Path(f"{whole}:{best.setting}")], "training")
    assert (dropped.steps, kept.steps) == (52, 200)
    assert np.isfinite(dropped.returns).all()
    with pytest.raises(ValueError, match=r"setting: expected a number from 0 to 4, as listed in settings\.csv, got 5"):
        sweep_results.locate(whole, 5)
    with pytest.raises(ValueError, match="steps: expected none with halving, got 500"):
        session.resume(whole / "1", 500)
    with pytest.raises(ValueError, match="path: expected a run or a sweep of one program"):
        fdqn.resume(whole)


def test_arms_have_the_arguments_of_the_environment(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "sweep")
    for file in (tmp_path / "sweep").glob("*/summary.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "env_kwargs": ["time_limit=9"]}))
    (before, *_), (after, *_) = arms.read([whole]), arms.read([tmp_path / "sweep"])
    assert after.env == f"{before.env} (time_limit=9)"


def test_train_prints_the_rungs_before_it_starts(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = [x for name, x in SMALL.items() for x in (f"--{name.replace('_', '-')}", x)]
    words = [str(x[0] if isinstance(x, tuple) else x).lower() for x in line]
    rates = map(str, RATES["learning_rate"])
    started = []
    monkeypatch.setattr(halving, "train", lambda given, *rest: started.append(given) or whole)
    assert cli.main(["train", *words, "--learning-rate", *rates, "--halving", "2", "--out", "sweep", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[:4] == [
        "successive halving with eta = 2 in 3 rungs; 65% of the steps of the whole sweep; 36.9 kB",
        "  1: 5 settings x 2 seeds = 10 learners, to step 50",
        "  2: 3 settings x 2 seeds = 6 learners, to step 150",
        "  3: 2 settings x 2 seeds = 4 learners, to step 200",
    ]
    assert json.loads(out)["halving"]["rungs"][-1] == {"settings": 2, "end": 200}
    assert started == [planned("sweep")]


@pytest.mark.slow
def test_host_environments_are_halved(light, tmp_path):
    found = fdqn.sweep(
        {"gamma": [0.9, 0.95, 0.99]},
        halving=2,
        progress=False,
        **{**SMALL, "env": "gym:CartPole-v1", "learning_starts": 20},
        out=tmp_path / "x",
    )
    assert [row.dropped for row in found.ranking()] == [None, None, found.halving.rungs[0].end]


# The picture


def drawn_sweep(settings=9, seeds=4):
    rng = np.random.default_rng(0)
    values = [(rate, gamma) for rate in (1e-4, 1e-3, 1e-2) for gamma in (0.9, 0.97, 0.99)][:settings]
    ends = [1_000 if k % 3 else 5_000 for k in range(settings)]
    curves = [
        sweep_plots.plots.Curve(np.arange(500, end + 1, 500), rng.normal(k, 1, (end // 500, seeds)))
        for k, end in enumerate(ends)
    ]
    returns = np.stack([curve.values[-1] for curve in curves])
    data = sweeps.sweep(("learning_rate", "gamma"), values, returns, None, None, curves)
    dropped = tuple(None if end == 5_000 else end for end in ends)
    last = [k for k in range(settings) if dropped[k] is None]
    rows = sweeps.ranking(("learning_rate", "gamma"), [values[k] for k in last], returns[last])
    listed = [row._replace(setting=last[row.setting]) for row in rows]
    listed += [sweeps.dropped(k, values[k], returns[k], 9, 1_000) for k in range(settings) if k not in last]
    return halving_plots.Halving(data, dropped, tuple(listed), tuple(range(settings)))


def test_picture_of_all_settings(tmp_path):
    given = drawn_sweep()
    figure = halving_plots.figure(given, "catch", "9, 3 settings", "greedy return")
    top, *panels = figure.axes
    assert len(panels) == 2
    assert [panel.get_xlabel() for panel in panels] == ["learning_rate", "gamma"]
    ends = [line.get_xdata()[-1] for line in top.lines if len(line.get_xdata()) > 2 or line.get_linestyle() == "-"]
    assert ends.count(5_000) == 3
    assert len([line for line in top.lines if line.get_marker() == "x"]) == 6
    assert [text.get_text() for text in top.texts] == ["3 kept"]
    legend = [text.get_text() for text in top.get_legend().get_texts()]
    assert len(legend) == 3
    assert legend[0].startswith("1: ")
    assert len([line for line in panels[0].lines if line.get_marker() == "x"]) == 6
    halving_plots.write(tmp_path / "x.png", given)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert [axis.name for axis in sweep_plots.axes_of(given.data)] == ["learning_rate", "gamma"]
    assert sweep_plots.plain_text("a$b") == r"a\$b"
    assert sweep_plots.caption.__doc__
    assert sweep_plots.set_axis.__doc__


def test_small_functions(whole):
    given, _ = results.plan(whole / "0")
    program = assemble.program(given)
    assert program.config.env_steps == 4
    assert halving.state_bytes(planned("x")) > 0
    assert tree.leaves(assemble.hyper(given))[0].shape[0] == 10
    row = sweeps.dropped(3, (0.9,), [1.0, float("nan")], 4, 50)
    assert (row.rank, row.setting, row.dropped, float(row.estimate.iqm)) == (4, 3, 50, 1.0)
    assert sweeps.dropped(3, (0.9,), [float("nan")], 4, 50).rank is None


def test_the_page_says_when_settings_were_dropped(whole, tmp_path):
    page = html_report.page_of([whole], ["runs/sweep"])
    found = sweep_results.read(whole)
    column = page["results"]["columns"].index("dropped")
    dropped = [row.dropped for row in found.ranking()]
    assert [row[column] for row in page["results"]["rows"]] == ["" if x is None else f"at {x:,}" for x in dropped]
    ends = {curve["name"].split(": ")[1]: int(curve["steps"][-1]) for curve in page["curves"][0]["curves"]}
    for row in found.ranking():
        if (name := sweeps.text(row.values[0])) in ends:
            assert 0 <= ends[name] - (row.dropped or 200) < SMALL["num_envs"]
    assert page["sweep"] is None, "the returns of dropped settings are those of shorter training"
    assert page["commands"][0][1][0].endswith("--learning-rate 0.0001 0.03 0.001 0.01 0.003 --halving 2")


def test_the_page_of_a_sweep_whose_last_rung_is_training(whole, tmp_path):
    path = tmp_path / "sweep"
    shutil.copytree(whole, path)
    (last := max(path.glob("[0-9]"))).joinpath("summary.json").unlink()
    page = html_report.current(path, "sweep")
    assert len(page["results"]["rows"]) == len(RATES["learning_rate"])
    assert dict(page["facts"])["steps per seed"] == "200"
    assert "training" in page["results"]["title"]
    assert last.name == "2"
