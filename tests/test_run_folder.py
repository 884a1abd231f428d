"""The run folder: what is written can be recomputed, is complete at every moment, and is read or refused in words."""

import csv
import dataclasses
import json
import math
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import fdqn
from fdqn import compile, envs, random, training, tree
from fdqn.compile import cpu_groups
from fdqn.experiment import assemble, export, history, memory, results, run_folder
from fdqn.experiment.settings import Settings, is_device, make
from fdqn.testing import asserts
from fdqn.training import evaluate, off_policy, streams

COLUMNS = [
    "step", "seed", "updates", "episodes", "return", "length", "loss", "q", "grad_norm", "epsilon", "learning_rate",
    "seconds",
]  # fmt: skip
KEYS = {
    "env",
    "seeds",
    "steps",
    "failed_seeds",
    "failures",
    "final_return",
    "train_return",
    "env_steps_per_second",
    "seed_updates_per_second",
    "compile_seconds",
    "first_update_seconds",
    "wall_seconds",
    "gymnasium_return",
}
FILES = {"checkpoints", "config.json", "metrics.csv", "params.safetensors", "summary.json", "curve.png"}
SEEDS = (11, 12, 13)


def finish(path, settings, report, started, twin=None):
    """End a run as `session.train` does: play the trained seeds and write the results."""
    network, params = assemble.network(settings), report.state.learner.params
    final = evaluate.greedy(envs.find(settings.env), network, params, report.state.key)
    if twin is not None:
        twin = evaluate.not_played(*twin.shape)._replace(returns=twin)
    return run_folder.finish(path, settings, report, started, final, twin)


class Made:
    """One small run, its reports kept."""

    def __init__(self, path):
        self.settings = Settings(
            seeds=3, seed=11, steps=600, learning_starts=200, report_every=150, batch_size=16, hidden=(8,),
            updates_per_cycle=2, compile=False, out=str(path),
        )  # fmt: skip
        self.started = time.perf_counter()
        self.program = assemble.program(self.settings)
        state = training.init(self.program, assemble.hyper(self.settings), assemble.keys(self.settings))
        self.path = run_folder.create(self.settings)
        functions = run_folder.functions(self.program, self.settings)
        reports = training.run(self.program, state, self.settings.steps, functions, self.settings.report_every)
        self.reports = list(history.record(self.path, self.settings, reports))
        self.outside = np.arange(60.0).reshape(3, 20)
        self.summary = finish(self.path, self.settings, self.reports[-1], self.started, self.outside)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("runs") / "deep" / "run")


@pytest.fixture
def copy(made, tmp_path):
    """The run folder, to be spoiled."""
    return shutil.copytree(made.path, tmp_path / "copy")


@pytest.fixture
def no_picture(monkeypatch):
    """Pictures have tests of their own and take a second."""
    monkeypatch.setattr(results, "picture", lambda *given: None)


def strict(text):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def rows(path):
    with open(path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def interquartile(values):
    cut = len(values) // 4
    return sum(sorted(values)[cut : len(values) - cut]) / (len(values) - 2 * cut)


def test_the_folder_holds_what_the_contract_says(made):
    assert {p.name for p in made.path.iterdir()} == FILES


def test_metrics_have_a_row_per_seed_and_report(made):
    assert (made.path / "metrics.csv").read_text().splitlines()[0].split(",") == COLUMNS
    table = rows(made.path)
    assert [(int(r["step"]), int(r["seed"])) for r in table] == [
        (step, seed) for step in (150, 300, 450, 600) for seed in SEEDS
    ]
    seconds = [float(r["seconds"]) for r in table]
    assert seconds == sorted(seconds)
    assert seconds[-1] > seconds[0] > 0
    assert not any("nan" in value.lower() or "inf" in value.lower() for r in table for value in r.values())


def test_metrics_say_what_the_reports_said(made):
    table = iter(rows(made.path))
    for report in made.reports:
        for i in range(3):
            row = next(table)
            assert int(row["updates"]) == report.updates[i] == max(0, (report.step - 200) // 10) * 2
            assert int(row["episodes"]) == report.episodes[i]
            columns = {
                "return": report.returns,
                "length": report.lengths,
                "loss": report.loss,
                "q": report.q,
                "grad_norm": report.grad_norm,
                "epsilon": report.epsilon,
            }
            for name, values in columns.items():
                assert float(row[name] or "nan") == pytest.approx(values[i], rel=1e-6, nan_ok=True), name
    first, last = rows(made.path)[0], rows(made.path)[-1]
    assert first["loss"] == first["q"] == first["grad_norm"] == "", "no update was made yet, so there is no number"
    assert min(float(last[name]) for name in ("loss", "q", "grad_norm")) > 0


def test_epsilon_goes_down_as_asked(made):
    for row in rows(made.path):
        share = min(1.0, int(row["step"]) / (0.2 * 600))
        assert float(row["epsilon"]) == pytest.approx(1 - 0.95 * share, rel=1e-5)


def test_learning_rate_is_that_of_the_next_update(made):
    assert made.settings.learning_rate_schedule == "linear"
    first, last = made.settings.learning_rate, made.settings.learning_rate_end
    for row in rows(made.path):
        expected = first + (last - first) * int(row["updates"]) / 80
        assert float(row["learning_rate"]) == pytest.approx(expected, rel=1e-6)
    assert float(row["learning_rate"]) == pytest.approx(last)
    np.testing.assert_allclose(history.learning_rates(made.settings, made.reports[-1]), [last] * 3, rtol=1e-6)


def test_metrics_are_on_disk_before_the_next_report(tmp_path, made):
    settings = dataclasses.replace(made.settings, out=str(tmp_path / "live"))
    path = run_folder.create(settings)
    live = history.record(path, settings, iter(made.reports))
    for n in range(1, len(made.reports) + 1):
        next(live)
        assert len(rows(path)) == 3 * n
        assert (path / "metrics.csv").read_text().endswith("\n")


def test_summary_has_exactly_the_contract_s_keys(made):
    summary = strict((made.path / "summary.json").read_text())
    assert set(summary) == KEYS
    assert summary == made.summary
    returns = {"iqm", "low", "high", "kind", "per_seed"}
    assert set(summary["train_return"]) == returns
    assert set(summary["final_return"]) == returns | {"unfinished", "step_limit"}
    assert set(summary["gymnasium_return"]) == returns | {"env"}
    assert (summary["env"], summary["seeds"], summary["steps"]) == ("cartpole", list(SEEDS), 600)
    assert summary["failed_seeds"] == []


@pytest.mark.usefixtures("no_picture")
def test_without_an_outside_there_is_no_outside_return(made, copy):
    summary = finish(copy, made.settings, made.reports[-1], made.started)
    assert set(summary) == KEYS - {"gymnasium_return"}
    assert strict((copy / "summary.json").read_text()) == summary


def test_final_return_follows_from_the_parameters_on_disk(made):
    params = results.read_params(made.path)
    keys = torch.stack([random.key(seed) for seed in SEEDS])
    returns = evaluate.greedy_on_device(made.program.env, made.program.network, params, keys, episodes=20).returns
    record = made.summary["final_return"]
    assert record["per_seed"] == pytest.approx(returns.mean(1))
    assert record["iqm"] == pytest.approx(interquartile(returns.mean(1)))
    assert record["low"] <= record["iqm"] <= record["high"]
    other = evaluate.greedy_on_device(made.program.env, made.program.network, params, keys + 1, episodes=20).returns
    assert record["per_seed"] != pytest.approx(other.mean(1)), "other keys, other episodes"


def test_no_training_used_the_evaluation_s_keys(made):
    assert len({streams.NETWORK, streams.RESET, streams.CYCLES, streams.EVALUATION, streams.HOST_EVALUATION}) == 5


def test_train_return_follows_from_the_table(made):
    """Few episodes ended here, so the last hundred are all of them and the table says their mean."""
    table = rows(made.path)
    for i, seed in enumerate(SEEDS):
        own = [r for r in table if int(r["seed"]) == seed]
        counts = np.diff([0, *(int(r["episodes"]) for r in own)])
        assert 0 < counts.sum() <= 100
        total = sum(n * float(r["return"]) for n, r in zip(counts, own, strict=True) if n)
        assert made.summary["train_return"]["per_seed"][i] == pytest.approx(total / counts.sum(), rel=1e-5)


def test_train_return_is_of_the_last_hundred_only(made):
    last = made.reports[-1].last_returns
    assert last.shape == (3, 100)
    assert (np.isfinite(last).sum(1) == made.reports[-1].episodes).all()


def test_outside_returns_are_summed_up_the_same_way(made):
    record = made.summary["gymnasium_return"]
    assert record["env"] == "CartPole-v1"
    assert record["per_seed"] == [9.5, 29.5, 49.5]
    assert record["iqm"] == pytest.approx(29.5)


@pytest.mark.usefixtures("no_picture")
def test_rates_and_times_follow_from_the_last_report(made, copy):
    report, summary = made.reports[-1], made.summary
    rate = report.learning_updates * 3 / report.learning_seconds
    assert summary["seed_updates_per_second"] == pytest.approx(rate)
    assert summary["env_steps_per_second"] == pytest.approx(rate * 10 / 2), "10 steps and 2 updates a cycle"
    assert summary["compile_seconds"] == 0, "nothing was compiled"
    compiled = dataclasses.replace(made.settings, compile=True)
    assert finish(copy, compiled, report, made.started)["compile_seconds"] == round(report.compile_seconds, 3)
    assert summary["first_update_seconds"] == pytest.approx(report.first_update - made.started, abs=1e-3)
    assert 0 < summary["first_update_seconds"] < summary["wall_seconds"] < 60
    assert 0 < report.learning_updates <= report.updates[0]


@pytest.mark.usefixtures("no_picture")
def test_numbers_that_are_not_there_are_null(made, copy):
    report = made.reports[0]._replace(last_returns=np.full((3, 100), np.nan, np.float32))
    assert report.first_update is None, "the first report comes before the first update"
    summary = finish(copy, made.settings, report, made.started)
    text = strict((copy / "summary.json").read_text())
    assert text == summary
    assert text["first_update_seconds"] is text["seed_updates_per_second"] is text["env_steps_per_second"] is None
    assert text["train_return"] == {"iqm": None, "low": None, "high": None, "kind": None, "per_seed": [None] * 3}


def test_config_says_what_ran(made):
    config = strict((made.path / "config.json").read_text())
    assert set(config) == {"settings", "plan", "versions", "git", "device", "processor", "engine"}
    assert config["plan"] == {"steps": 600, "on_nan": "freeze"}
    assert config["processor"]
    assert config["settings"] == {**dataclasses.asdict(made.settings), "hidden": [8], "env_kwargs": [], "wrappers": []}
    assert config["versions"] == {
        "fdqn": fdqn.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    assert config["device"] == str(assemble.device(made.settings))
    assert config["engine"]["compile"] is False
    assert config["engine"]["threads"] == torch.get_num_threads()
    assert config["engine"]["lanes"] is None  # not compiled
    assert config["git"] is None or 12 <= len(config["git"]) <= 13


def test_config_with_an_infinite_setting_is_still_json(tmp_path, made):
    path = run_folder.create(dataclasses.replace(made.settings, max_grad_norm=math.inf, out=str(tmp_path / "inf")))
    strict((path / "config.json").read_text())


def test_an_infinite_setting_is_read_back(tmp_path, made):
    path = run_folder.create(dataclasses.replace(made.settings, max_grad_norm=math.inf, out=str(tmp_path / "inf")))
    for name in ("summary.json", "metrics.csv"):
        shutil.copy(made.path / name, path)
    assert results.read(path).settings.max_grad_norm == math.inf


def test_parameters_are_the_lanes_under_the_names_of_the_module(made):
    params = results.read_params(made.path)
    trained = made.reports[-1].state.learner.params
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    assert {name: (3, *x.shape) for name, x in module.state_dict().items()} == {
        name: tuple(x.shape) for name, x in params.items()
    }
    assert all(torch.equal(params[name], trained[name]) for name in params)
    obs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for lane in range(3):
        module.load_state_dict({name: x[lane] for name, x in params.items()}, strict=True)
        torch.testing.assert_close(
            module(obs), made.program.network.apply({n: x[lane] for n, x in params.items()}, obs)
        )
    with safe_open(made.path / "params.safetensors", "pt") as file:
        assert json.loads(file.metadata()["seeds"]) == list(SEEDS)


@pytest.mark.parametrize(("name", "value"), [("0.weight", math.nan), ("2.bias", math.inf), ("0.bias", -math.inf)])
@pytest.mark.usefixtures("no_picture")
def test_a_failed_seed_is_named_and_left_out(made, copy, name, value):
    report = made.reports[-1]
    params = {n: x.clone() for n, x in report.state.learner.params.items()}
    params[name][1].view(-1)[0] = value
    state = report.state._replace(learner=report.state.learner._replace(params=params))
    summary = finish(copy, made.settings, report._replace(state=state), made.started, made.outside)
    assert strict((copy / "summary.json").read_text()) == summary
    assert summary["failed_seeds"] == [12]
    for key in ("final_return", "train_return", "gymnasium_return"):
        before, after = made.summary[key], summary[key]
        assert after["per_seed"] == [before["per_seed"][0], None, before["per_seed"][2]]
        assert after["iqm"] == pytest.approx(interquartile([before["per_seed"][0], before["per_seed"][2]]))
    assert results.read(copy).summary == summary


@pytest.mark.usefixtures("no_picture")
def test_all_seeds_failed(made, copy):
    report = made.reports[-1]
    params = {n: torch.full_like(x, torch.nan) for n, x in report.state.learner.params.items()}
    state = report.state._replace(learner=report.state.learner._replace(params=params))
    summary = finish(copy, made.settings, report._replace(state=state), made.started)
    assert strict((copy / "summary.json").read_text())["failed_seeds"] == list(SEEDS)
    nothing = {"iqm": None, "low": None, "high": None, "kind": None, "per_seed": [None] * 3}
    assert summary["final_return"] == nothing | {"unfinished": 0, "step_limit": 500}


def test_one_seed_has_no_interval():
    record = results.returns_record(np.array([[3.0, 5.0]]), [], range(4, 5))
    assert record == {"iqm": 4.0, "low": None, "high": None, "kind": None, "per_seed": [4.0]}


@pytest.mark.parametrize(("seeds", "failed", "kind"), [
    (8, [], "interval"), (5, [], "interval"), (4, [], "range"), (6, [0, 3], "range"), (2, [1], None), (2, [0, 1], None)
])  # fmt: skip
def test_a_record_says_whether_it_has_an_interval_or_a_range(seeds, failed, kind):
    returns = np.random.default_rng(seeds).normal(size=(seeds, 4))
    record = results.returns_record(returns, failed, range(seeds))
    assert record["kind"] == kind
    left = [x for x in record["per_seed"] if x is not None]
    if kind == "range":
        assert (record["low"], record["high"]) == (min(left), max(left))
        assert results.interval_text(record) == f"{record['iqm']:.1f} [range {min(left):.1f}, {max(left):.1f}]"
    assert results.interval_heading([record]) == {"interval": "IQM [95%]", "range": "IQM [range]", None: "IQM"}[kind]


def test_a_table_of_both_names_both():
    kinds = [{"kind": kind} for kind in ("range", None, "interval")]
    assert results.interval_heading(kinds) == "IQM [95% or range]"


def test_a_summary_from_before_there_were_ranges_is_read(copy):
    summary = json.loads((copy / "summary.json").read_text())
    names = [name for name in summary if name.endswith("_return")]
    kinds = {name: summary[name].pop("kind") for name in names}
    (copy / "summary.json").write_text(json.dumps(summary))
    assert {name: results.read(copy).summary[name]["kind"] for name in names} == kinds
    assert set(kinds.values()) == {"range"}


@pytest.mark.parametrize(("name", "value", "words"), [
    ("kind", "guess", r"final_return\.kind: expected 'interval', 'range' or null, got 'guess'"),
    ("unfinished", "many", r"final_return\.unfinished: expected int, got str"),
    ("step_limit", 1.5, r"final_return\.step_limit: expected int.*, got float"),
])  # fmt: skip
def test_a_summary_that_says_something_else_of_its_returns_is_refused(copy, name, value, words):
    summary = json.loads((copy / "summary.json").read_text())
    summary["final_return"][name] = value
    (copy / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match=words):
        results.read(copy)


def test_cut_episodes_of_failed_seeds_do_not_count():
    cut = np.array([[True, False], [True, True], [False, False]])
    record = results.returns_record(np.ones((3, 2)), [5], range(4, 7), (cut, 40))
    assert (record["unfinished"], record["step_limit"]) == (1, 40)
    assert results.unfinished_text(record) == "1 at 40 steps"
    assert results.unfinished_text({"unfinished": 0, "step_limit": 40}) == results.unfinished_text({}) == ""


def test_the_limit_of_a_run_follows_its_metrics(copy, made):
    endless = envs.find("gym:CliffWalking-v1").spec
    assert results.step_limit(copy, made.settings, envs.find("cartpole").spec) == 500
    assert results.step_limit(copy, made.settings, endless) == 1_000
    assert results.step_limit(copy, dataclasses.replace(made.settings, evaluate_steps=40_000), endless) == 40_000
    rows = [(step, seed, 0, episodes) for step, episodes in ((10_000, 10), (20_000, 20)) for seed in range(3)]
    lines = [",".join(map(str, [*row, *[""] * 8])) for row in rows]
    (copy / "metrics.csv").write_text("\n".join([",".join(COLUMNS), *lines, ""]))
    settings = dataclasses.replace(made.settings, num_envs=4)
    assert results.step_limit(copy, settings, endless) == 5_000, "10 x 1,000, but no environment was followed so long"
    assert results.step_limit(copy, dataclasses.replace(settings, num_envs=1), endless) == 10_000


def test_episodes_that_are_not_there_do_not_count():
    record = results.returns_record(np.array([[1.0, 3.0, np.nan], [np.nan] * 3, [5.0, 5.0, 5.0]]), [], range(3))
    assert record["per_seed"] == [2.0, None, 5.0]
    assert record["iqm"] == pytest.approx(3.5)


def snapshot(path):
    return {p.relative_to(path): (p.read_bytes(), p.stat().st_mtime_ns) for p in path.rglob("*") if p.is_file()}


def test_an_existing_folder_is_refused_and_untouched(made):
    before = snapshot(made.path)
    with pytest.raises(ValueError, match=r"out: expected a folder that does not exist yet, got .*run"):
        run_folder.create(made.settings)
    assert snapshot(made.path) == before


@pytest.mark.parametrize("kind", ["empty folder", "file", "dangling link"])
def test_whatever_is_there_is_refused(tmp_path, made, kind):
    target = tmp_path / "x"
    {"empty folder": target.mkdir, "file": target.touch, "dangling link": lambda: target.symlink_to("nowhere")}[kind]()
    with pytest.raises(ValueError, match="out: expected a folder that does not exist yet"):
        run_folder.create(dataclasses.replace(made.settings, out=str(target)))
    assert os.listdir(tmp_path) == ["x"]


def test_a_parent_that_is_a_file_is_refused_by_name(tmp_path, made):
    (tmp_path / "file").touch()
    with pytest.raises((ValueError, OSError), match="out: "):
        run_folder.create(dataclasses.replace(made.settings, out=str(tmp_path / "file" / "run")))


def test_without_a_name_the_folder_is_named_after_environment_and_time():
    name = run_folder.folder(Settings(env="catch"))
    assert name.parts[0] == "runs"
    assert time.strptime(name.parts[1], "catch-%Y%m%d-%H%M%S")


def test_runs_started_in_the_same_second_get_distinct_names(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *given: "20260102-030405")
    settings = Settings(env="catch")
    assert run_folder.folder(settings, tmp_path).name == "catch-20260102-030405"
    assert run_folder.folder(Settings(env="gym:Taxi-v4"), tmp_path).name == "gym-Taxi-v4-20260102-030405"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "catch-20260102-030405-3").symlink_to("nowhere")
    made = [run_folder.create(settings, tmp_path) for _ in range(3)]
    assert [path.name for path in made] == [f"catch-20260102-030405{end}" for end in ("", "-2", "-4")], "3 is taken"
    for path in made:
        out = json.loads((path / "config.json").read_text())["settings"]["out"]
        assert out == str(path.relative_to(tmp_path)), "as it would have been typed"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out: expected a folder that can be created, got .*file"):
        run_folder.create(settings, tmp_path / "file")


@pytest.mark.parametrize("given", [None, "run"])
def test_concurrent_processes_get_distinct_run_folders(tmp_path, monkeypatch, given):
    """All look before the first makes it; of those that ask for a name, one gets it."""
    monkeypatch.setattr(time, "strftime", lambda *given: "20260102-030405")
    monkeypatch.setattr(run_folder, "provenance", lambda *given: {})
    context, count = multiprocessing.get_context("fork"), 8
    barrier, results = context.Barrier(count), context.Queue()
    original = Path.mkdir

    def together(path, *how, **more):
        if path.name in ("run", "catch-20260102-030405"):
            monkeypatch.setattr(Path, "mkdir", original)
            barrier.wait(10)
        original(path, *how, **more)

    def one():
        try:
            results.put(run_folder.create(Settings(env="catch", out=given), tmp_path).name)
        except ValueError:
            results.put("refused")

    monkeypatch.setattr(Path, "mkdir", together)
    processes = [context.Process(target=one) for _ in range(count)]
    for process in processes:
        process.start()
    names = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    if given:
        assert sorted(names) == ["refused"] * (count - 1) + ["run"]
        return
    assert len(set(names)) == count
    assert "refused" not in names
    assert {p.name for p in (tmp_path / "runs").iterdir()} == set(names)


@pytest.mark.parametrize("file", ["summary.json", "params.safetensors"])
@pytest.mark.usefixtures("no_picture")
def test_files_are_replaced_whole_or_not_at_all(monkeypatch, made, copy, file):
    before, replace = (copy / file).read_bytes(), os.replace

    def power_cut(source, target):
        if str(target).endswith(file):
            raise OSError("power cut")
        replace(source, target)

    monkeypatch.setattr(os, "replace", power_cut)
    with pytest.raises(OSError, match="power cut"):
        finish(copy, made.settings, made.reports[1], made.started)
    assert (copy / file).read_bytes() == before
    monkeypatch.undo()
    finish(copy, made.settings, made.reports[1], made.started)
    assert {p.name for p in copy.iterdir()} == FILES
    assert (copy / file).read_bytes() != before


def test_a_run_is_read_as_it_was_written(made):
    run = results.read(made.path)
    assert run.path == made.path
    assert run.settings == made.settings
    assert run.summary == made.summary
    np.testing.assert_array_equal(run.curve.steps, [150, 300, 450, 600])
    np.testing.assert_allclose(run.curve.values, [report.returns for report in made.reports], rtol=1e-6)


def test_rows_in_another_order_and_missing_ones_are_read(copy):
    lines = (copy / "metrics.csv").read_text().splitlines()
    (copy / "metrics.csv").write_text("\n".join([lines[0], *reversed(lines[2:])]) + "\n")
    curve, whole = results.read_curve(copy), [r["return"] for r in rows(copy)]
    assert curve.values.shape == (4, 3)
    assert np.isnan(curve.values[0, 0])
    assert np.isfinite(curve.values).sum() == sum(value != "" for value in whole)


def test_a_long_run_of_many_seeds_is_read_quickly(tmp_path):
    lines = [f"{step},{seed},0,1,2.0,9.0,,,,0.1,0.001,1.0" for step in range(100, 10_100, 100) for seed in range(1000)]
    (tmp_path / "metrics.csv").write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")
    began = time.perf_counter()
    assert results.read_curve(tmp_path).values.shape == (100, 1000)
    assert time.perf_counter() - began < 3


def spoil(name, content):
    def act(path):
        if content is None:
            (path / name).unlink()
        elif isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            (path / name).write_text(content)

    return pytest.param(act, name, id=f"{name}: {content!r:.30}")


def settings_with(**changes):
    def act(path):
        config = json.loads((path / "config.json").read_text())
        config["settings"].update(changes)
        (path / "config.json").write_text(json.dumps(config))

    return pytest.param(act, "config.json", id=f"config.json: {changes}")


def metrics_with(old, new):
    def act(path):
        text = (path / "metrics.csv").read_text()
        assert old in text
        (path / "metrics.csv").write_text(text.replace(old, new, 1))

    return pytest.param(act, "metrics.csv", id=f"metrics.csv: {new!r}")


@pytest.mark.parametrize(
    ("act", "file"),
    [
        spoil("config.json", None),
        spoil("config.json", ""),
        spoil("config.json", "{"),
        spoil("config.json", "[]"),
        spoil("config.json", "{}"),
        spoil("config.json", b"\xff\xfe\x00"),
        settings_with(colour="red"),
        settings_with(hidden=None),
        settings_with(hidden="8"),
        settings_with(seeds="three"),
        settings_with(env="nowhere"),
        spoil("summary.json", None),
        spoil("summary.json", ""),
        spoil("summary.json", "[]"),
        spoil("summary.json", "{}"),
        spoil("metrics.csv", None),
        spoil("metrics.csv", ""),
        spoil("metrics.csv", "a,b\n1,2\n"),
        metrics_with("150,11", "many,11"),
        metrics_with("150,11", "150,eleven"),
    ],
)
def test_a_broken_folder_is_refused_naming_the_file(copy, act, file):
    act(copy)
    with pytest.raises(ValueError, match="run: expected a finished run folder") as error:
        results.read(copy)
    assert file in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"\x08\0\0\0\0\0\0\0{}"], ids=repr)
def test_broken_parameters_are_refused_naming_the_file(copy, content):
    (copy / "params.safetensors").unlink()
    if content is not None:
        (copy / "params.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"params\.safetensors"):
        results.read_params(copy)


def test_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match=re.escape(f"run: expected a finished run folder, got {path}")):
            results.read(path)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"iqm": 496.14, "low": 489.0, "high": 500.0}, "496.1 [489.0, 500.0]"),
        ({"iqm": -84.0, "low": -90.25, "high": -80.0}, "-84.0 [-90.2, -80.0]"),
        ({"iqm": 9.0, "low": None, "high": None}, "9.0"),
        ({"iqm": 9.0, "low": 8.0, "high": 10.0, "kind": "range"}, "9.0 [range 8.0, 10.0]"),
        ({"iqm": 9.0, "low": 8.0, "high": 10.0, "kind": "interval"}, "9.0 [8.0, 10.0]"),
        ({"iqm": None, "low": None, "high": None}, "none"),
    ],
)
def test_interval_text(record, text):
    assert results.interval_text(record) == text


def test_cuda_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert assemble.device(Settings(device="auto")) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device: expected an available one, got cuda"):
        assemble.device(Settings(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert assemble.device(Settings(device="auto")) == torch.device("cuda")
    assert assemble.device(Settings(device="cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert assemble.device(Settings(device="cuda:1")) == torch.device("cuda", 1)
    assert [x for x in ("auto", "cuda:15", "cuda:", "cuda:01", "gpu", 0) if is_device(x)] == ["auto", "cuda:15"]
    with pytest.raises(ValueError, match="device: expected a GPU from cuda:0 to cuda:1, got cuda:2"):
        assemble.device(Settings(device="cuda:2"))
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    compile.prepare_cuda(index=1)
    compile.prepare_cuda()
    assert chosen == [1], "streams and graphs are those of the current GPU"


def test_replay_bytes_are_the_bytes_that_replay_takes(made):
    state = training.init(made.program, assemble.hyper(made.settings), assemble.keys(made.settings))
    lanes = len(assemble.seeds(made.settings))
    assert memory.replay_bytes(made.program, lanes) == tree.nbytes(state.buffer)


def test_the_bytes_of_the_lanes_are_known_before_they_are_allocated(made):
    """State and gradient exactly; what a batch's activations add is less than what is allowed for it."""
    state = training.init(made.program, assemble.hyper(made.settings), assemble.keys(made.settings))
    lanes = len(assemble.seeds(made.settings))
    exact = tree.nbytes((state, state.learner.params))
    widths = sum(x.shape[-1] for x in state.learner.params.values() if x.ndim == 2)
    assert memory.state_bytes(made.program, lanes) == exact + lanes * 4 * made.program.config.batch_size * widths * 4
    assert memory.check_memory(made.program, lanes, torch.device("cpu")) == memory.state_bytes(made.program, lanes)


@pytest.mark.parametrize(
    ("lanes", "change", "message"),
    [
        (
            2**22,
            {},
            r"(capacity|seeds): expected seeds that fit in .* GB of free memory .*, got 4194304 seeds that need",
        ),
        (64, {"capacity": 10**9}, r"capacity: .*; lower --capacity or --seeds"),
        (2**22, {"capacity": 16}, r"seeds: .*; lower --seeds or --hidden"),
    ],
)
def test_more_lanes_than_memory_holds(monkeypatch, made, lanes, change, message):
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 2**12}.get)
    config = dataclasses.replace(made.program.config, **change)
    buffer = assemble.buffer(config, made.program.env.spec)
    algorithm = off_policy.algorithm(config, made.program.algorithm.agent, buffer, assemble.adam)
    with pytest.raises(ValueError, match=message):
        memory.check_memory(made.program._replace(algorithm=algorithm), lanes, torch.device("cpu"))


def test_a_rollout_that_memory_does_not_hold(monkeypatch):
    """Name a flag that PQN reads."""
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 2**12}.get)
    sizes = {"num_envs": 2**10, "steps_per_cycle": 2**5, "batch_size": 2**10, "updates_per_cycle": 2**5}
    settings = make({"algorithm": "pqn", "env": "minatar:breakout", **sizes})
    with pytest.raises(ValueError, match=r"num_envs: .* GB is rollout .*; lower --num-envs or --seeds"):
        memory.check_memory(assemble.program(settings), 512, torch.device("cpu"))


def a_system(monkeypatch, path, files):
    """Fake Linux's memory files in a folder; sizes in kB and bytes as there, 8 GiB in all."""
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**21, "SC_PAGE_SIZE": 2**12}.get)
    monkeypatch.setattr(memory, "_PROC", path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", path / "cgroup")
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)


GB = 2**30
MEMINFO = {"proc/meminfo": f"MemTotal: {8 * 2**20} kB\nMemFree: 5 kB\nMemAvailable: {3 * 2**20} kB\n"}
LIMITED = {
    "version 2": {
        "proc/self/cgroup": "0::/a/b\n",
        "cgroup/a/b/memory.max": "max\n", "cgroup/a/b/memory.current": f"{GB}\n",
        "cgroup/a/memory.max": f"{4 * GB}\n", "cgroup/a/memory.current": f"{3 * GB}\n",
        "cgroup/a/memory.stat": f"anon 5\ninactive_file {GB}\n",
    },
    "in a container": {
        "proc/self/cgroup": "0::/\n", "cgroup/memory.max": f"{4 * GB}\n", "cgroup/memory.current": f"{2 * GB}\n",
    },
    "version 1": {
        "proc/self/cgroup": "4:memory:/a\n3:cpuset:/\n0::/\n",
        "cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n", "cgroup/memory/memory.usage_in_bytes": "5\n",
        "cgroup/memory/a/memory.limit_in_bytes": f"{4 * GB}\n",
        "cgroup/memory/a/memory.usage_in_bytes": f"{3 * GB}\n",
        "cgroup/memory/a/memory.stat": f"total_inactive_file {GB}\ninactive_file 7\n",
    },
}  # fmt: skip


@pytest.mark.parametrize("files", LIMITED.values(), ids=LIMITED)
def test_the_memory_of_a_process_is_that_of_its_control_groups(monkeypatch, tmp_path, files):
    a_system(monkeypatch, tmp_path, MEMINFO | files)
    assert memory.available(torch.device("cpu")) == (2 * GB, 4 * GB)


def test_the_memory_of_a_process_without_limits(monkeypatch, tmp_path):
    a_system(monkeypatch, tmp_path, MEMINFO | {"proc/self/cgroup": "0::/\n"})
    assert memory.available(torch.device("cpu")) == (3 * GB, 8 * GB)
    a_system(monkeypatch, tmp_path / "elsewhere", {})  # as on another system
    assert memory.available(torch.device("cpu")) == (8 * GB, 8 * GB)


def a_gpu(monkeypatch, free, total, reserved=0, allocated=0):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    return torch.device("cuda")


def test_the_memory_of_a_gpu_that_others_use(monkeypatch):
    """Memory that torch has reserved but does not use counts as free."""
    device = a_gpu(monkeypatch, 3 * GB, 80 * GB, reserved=2 * GB, allocated=GB)
    assert memory.available(device) == (4 * GB, 80 * GB)


def test_lanes_are_compared_with_what_is_free(monkeypatch, made):
    """On a GPU that another process has filled; not by a hair, as what is free changes."""
    needed = memory.state_bytes(made.program, 2**12)
    assert memory.check_memory(made.program, 2**12, a_gpu(monkeypatch, needed, 80 * GB)) == needed
    memory.check_memory(made.program, 2**12, a_gpu(monkeypatch, int(0.95 * needed), 80 * GB))
    free, needs = f"{needed / 2e9:,.1f} GB of free memory", f"got 4096 seeds that need {needed / 1e9:,.1f} GB"
    said = rf"expected seeds that fit in {free} \(85.9 GB in total\), {needs}"
    with pytest.raises(ValueError, match=said):
        memory.check_memory(made.program, 2**12, a_gpu(monkeypatch, needed // 2, 80 * GB))
    with pytest.raises(ValueError, match="expected seeds that fit"):
        memory.check_memory(made.program, 2**12, a_gpu(monkeypatch, needed - 1, needed - 1))


def test_the_partition_of_a_compiled_run_is_recorded():
    settings = Settings(seeds=6, device="cpu")
    expected = compile.partition(assemble.program(settings), 6, torch.get_num_threads())._asdict()
    assert run_folder._partition(settings) == (expected if cpu_groups.supported(torch.device("cpu")) else None)
    assert run_folder._partition(dataclasses.replace(settings, compile=False)) is None


def test_parameters_are_read_as_they_were_saved(made, copy):
    params = tree.map(lambda x: x + 1, results.read_params(made.path))
    run_folder.save_params(copy, made.settings, params)
    asserts.assert_trees_equal(params, results.read_params(copy))


def test_a_comparison_has_a_panel_an_environment(made, tmp_path):
    run = results.read(made.path)
    other = dataclasses.replace(run, path=tmp_path / "other", settings=dataclasses.replace(run.settings, env="acrobot"))
    results.comparison(tmp_path / "two.png", [run, dataclasses.replace(run, path=tmp_path / "same")])
    results.comparison(tmp_path / "panels.png", [run, other])
    areas = []
    for name in ("two.png", "panels.png"):
        with Image.open(tmp_path / name) as picture:
            areas.append(picture.width * picture.height)
    assert areas[0] < areas[1]


def test_the_commit_is_that_of_the_checkout():
    checkout = Path(fdqn.__file__).parents[1]
    done = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    commit = run_folder.git_commit()
    assert commit is None if done.returncode else done.stdout.startswith(commit.rstrip("+"))


def test_an_export_is_one_lane_of_what_was_trained(made, tmp_path):
    written = export.write(results.read(made.path), SEEDS[1], tmp_path / "one.pt")
    given = torch.load(tmp_path / "one.pt", weights_only=True)
    asserts.assert_trees_equal(tree.index(results.read_params(made.path), 1), given)
    assert written["bytes"] == (tmp_path / "one.pt").stat().st_size


def test_a_network_that_read_bytes_undivided_is_refused(tmp_path, monkeypatch):
    """Version 0.1 gave bytes to an MLP as they were: the trained parameters mean something else now."""

    class Bytes(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (3,), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(3, np.uint8), {}

        def step(self, action):
            return np.zeros(3, np.uint8), 1.0, True, False, {}

    gymnasium.register("Bytes-v0", entry_point=Bytes, max_episode_steps=5)
    try:
        settings = Settings(env="gym:Bytes-v0", out=str(tmp_path / "run"), seeds=1)
        path = run_folder.create(settings)
        results.plan(path)
        config = json.loads((path / "config.json").read_text())
        config["versions"]["fdqn"] = "0.1.0"
        (path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"run: expected bytes divided by 255, .* of fdqn 0\.1\.0; train it again"):
            results.plan(path)
    finally:
        gymnasium.registry.pop("Bytes-v0")


def test_the_limit_of_a_run_leaves_failed_seeds_out(tmp_path):
    """A seed whose environment broke at once ends no episode; with it the limit would be the longest there is."""
    rows = ["step,seed,updates,episodes", "5000,0,10,100", "5000,1,0,0", "10000,0,20,200", "10000,1,0,0"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    steps, episodes = results._read_episodes(tmp_path / "metrics.csv")
    assert steps.tolist() == [5000, 10000]
    assert episodes.tolist() == [[100], [200]]
