"""HTML pages of runs: numbers equal the statistics, text is escaped, and the printed command repeats the run.

Figures are plain records here, not checked by plotly; `test_page_browser` opens real pages.
"""

import csv
import dataclasses
import json
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fdqn import cli
from fdqn.cli import parse
from fdqn.experiment import html_report, page_data, presets, repeat, results, run_folder
from fdqn.experiment.settings import ALGORITHMS, Settings, Sweep, defaults, make
from fdqn.report import page, page_figures, plots, sweeps

EVIL = "<script>alert('x')</script>&\"%{y}"


def plain(traces, layout):
    """Replace plotly's check of a figure by a plain JSON record."""
    return json.loads(
        json.dumps({"data": list(traces), "layout": dict(layout)}, default=lambda x: np.asarray(x).tolist())
    )


@pytest.fixture
def without_plotly(monkeypatch):
    """Replace plotly.js by a library of one line."""
    monkeypatch.setattr(page, "library", lambda: "/**\n* plotly.js v0.0.0\n*/")
    monkeypatch.setattr(page, "check_plotly", lambda: None)
    monkeypatch.setattr(page_figures, "_figure", plain)
    monkeypatch.setattr(page_figures, "_colours", lambda x: ["#000000"] * len(x))


def rows_of(settings, steps, rng, stops=()):
    """Make rows of metrics.csv with rising returns; seeds in `stops` make no updates after half of the steps."""
    column = "learner" if isinstance(settings, Sweep) else "seed"
    first = 0 if isinstance(settings, Sweep) else settings.seed
    yield [*run_folder.history.COLUMNS[:1], column, *run_folder.history.COLUMNS[2:]]
    for step in steps:
        for seed in range(first, first + settings.learners):
            dead = seed in stops and step > steps[len(steps) // 2]
            updates = steps[len(steps) // 2] if dead else step
            value = "" if dead else round(step / 10 + rng.normal(0, 5), 3)
            yield [step, seed, updates, step // 9, value, 9, *([""] * 3 if dead else [1.5, 2.5, 0.5]), 0.1, 1e-3, 1.0]


def written(path, settings=None, reports=10, stops=(), done=True):
    """Write the folder of a run, without training."""
    settings = settings or make({"env": "catch", "seeds": 6, "seed": 5, "steps": 1000, "learning_starts": 20})
    settings = dataclasses.replace(settings, out=str(path))
    run_folder.create(settings)
    steps = [settings.steps * (i + 1) // 10 for i in range(reports)]
    rows = list(rows_of(settings, steps, np.random.default_rng(0), stops))
    with open(path / "metrics.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    if done:
        first = 0 if isinstance(settings, Sweep) else settings.seed
        seeds = list(range(first, first + settings.learners))
        returns = results.seeds_record([None if seed in stops else seed / 2 for seed in seeds])
        summary = {
            "env": settings.env, "seeds": seeds, "steps": settings.steps, "failed_seeds": list(stops),
            "failures": [{"seed": seed, "step": 600, "cause": "loss"} for seed in stops], "final_return": returns,
            "train_return": returns, "env_steps_per_second": 10.0, "seed_updates_per_second": 10.0,
            "compile_seconds": 0.0, "first_update_seconds": 1.0, "wall_seconds": 3.0,
        }  # fmt: skip
        if isinstance(settings, Sweep):
            summary["settings"] = run_folder._per_setting(settings, summary)
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def page_of(path, name="runs/one"):
    return html_report.page_of([path], [name])


# Data


def test_curves_exclude_failed_seeds(tmp_path):
    path = written(tmp_path / "run", stops=(6,))
    (panel,) = page_of(path)["curves"]
    (curve,) = panel["curves"]
    read = results.read_curve(path)
    alive = read._replace(values=read.values[:, [seed != 6 for seed in range(5, 11)]])
    drawn, estimates = plots.summarised(alive)
    assert (curve["steps"] == drawn.steps).all()
    assert curve["iqm"].tolist() == [float(x.iqm) for x in estimates]
    assert curve["low"].tolist() == [float(x.low) for x in estimates]
    assert curve["kinds"] == ["interval"] * 10
    assert curve["count"].tolist() == [5] * 10
    assert curve["seeds"] == [5, 6, 7, 8, 9, 10]
    assert curve["failed"] == [False, True, False, False, False, False]
    np.testing.assert_array_equal(curve["seed_values"], read.values.T)
    with_failed = plots.summarised(read)[1]
    assert curve["iqm"].tolist() != [float(x.iqm) for x in with_failed], "failed seeds must be excluded"


def test_the_tables_of_a_run(tmp_path):
    found = page_of(written(tmp_path / "run", stops=(6,)))
    assert found["title"] == "dqn on catch"
    facts = dict(found["facts"])
    assert facts["steps per seed"] == "1,000"
    assert facts["greedy return, IQM [95%]"] == results.interval_text(results.seeds_record([2.5, 3.5, 4, 4.5, 5]))
    assert facts["failed seeds"] == "1 of 6, excluded from the means"
    (seeds,) = found["seeds"]
    assert seeds["columns"] == ["seed", "greedy return", "training return", "episodes", "updates", "failure"]
    assert seeds["rows"][:2] == [[5, "2.5", "2.5", "111", "1,000", ""], [6, "", "", "111", "600", "failed"]]
    assert found["failures"]["rows"] == [["runs/one", 6, "600", "loss"]]
    assert [row[0] for row in found["settings"]["differing"]["rows"]] == [
        "env",
        "seeds",
        "seed",
        "steps",
        "learning_starts",
    ]
    assert ["learning_starts", "20", "1000"] in found["settings"]["differing"]["rows"]
    others = {row[0] for row in found["settings"]["others"]["rows"]}
    assert "gamma" in others
    assert not others & {"atoms", "out", "munchausen_tau"}, "unused settings and the folder are omitted"
    machine = dict(found["machine"]["rows"])
    assert {"fdqn", "torch", "numpy", "python", "device", "total time"} <= set(machine)
    assert found["results"] is None


def test_the_tables_of_several_runs_show_how_they_differ(tmp_path):
    other = make({"env": "catch", "algorithm": "c51", "seeds": 3, "steps": 1000, "learning_starts": 20, "gamma": 0.5})
    paths = [written(tmp_path / "a"), written(tmp_path / "b", other)]
    found = html_report.page_of(paths, ["a", "b"])
    (panel,) = found["curves"]
    assert [curve["name"] for curve in panel["curves"]] == ["a", "b"]
    assert [set(curve["kinds"]) for curve in panel["curves"]] == [{"interval"}, {"range"}]
    rows = {row[0]: row[1:] for row in found["settings"]["differing"]["rows"]}
    assert rows["algorithm"] == ["dqn", "c51"]
    assert rows["gamma"] == ["0.99", "0.5"]
    assert rows["atoms"] == ["", "101"]
    assert "steps" not in rows
    assert [row[:5] for row in found["results"]["rows"]] == [["a", "catch", "dqn", 6, 0], ["b", "catch", "c51", 3, 0]]


def test_runs_with_different_environment_arguments_have_separate_panels(tmp_path):
    given = {"env": "catch", "seeds": 2, "steps": 1000, "learning_starts": 20}
    limited = written(tmp_path / "b", make({**given, "env_kwargs": {"time_limit": 5}}))
    found = html_report.page_of([written(tmp_path / "a", make(given)), limited], ["a", "b"])
    titles = ["catch: training returns of a", "catch (time_limit=5): training returns of b"]
    assert [panel["title"] for panel in found["curves"]] == titles
    assert found["title"] == "2 runs on catch, catch (time_limit=5)"
    assert [row[1] for row in found["results"]["rows"]] == ["catch", "catch (time_limit=5)"]
    assert page_of(limited)["title"] == "dqn on catch (time_limit=5)"


def test_page_of_a_run_whose_seeds_have_all_failed(tmp_path, without_plotly):
    found = page_of(written(tmp_path / "run", stops=tuple(range(5, 11))))
    assert found["curves"] == []
    assert found["diagnostics"] is None
    assert len(found["failures"]["rows"]) == 6
    assert "There are no returns yet, or all seeds have failed." in page.html(found)


def test_long_curves_are_thinned_with_their_last_step():
    curve = plots.Curve(np.arange(1, 5001), np.arange(5000.0)[:, None])
    thin = page_data._thinned(curve, page_data.MAX_POINTS)
    assert len(thin.steps) <= page_data.MAX_POINTS
    assert (thin.steps[0], thin.steps[-1]) == (1, 5000)
    assert (np.diff(thin.steps) < 2 * 5000 / page_data.MAX_POINTS).all()
    assert page_data._thinned(curve, 5000) is curve


def test_many_seeds_are_limited(tmp_path):
    settings = make({"env": "catch", "seeds": 300, "steps": 1000, "learning_starts": 20})
    found = page_of(written(tmp_path / "run", settings, reports=2))
    (curve,) = found["curves"][0]["curves"]
    assert len(curve["seeds"]) == len(curve["seed_values"]) == page_data.MAX_SEEDS
    assert found["seeds"][0]["note"] == "and 44 more (summary.json)"
    assert curve["count"].tolist() == [300, 300]


def test_evaluations_have_a_panel(tmp_path):
    path = written(tmp_path / "run")
    rows = [["step", "seed", "return"], *([step, seed, step + seed] for step in (500, 1000) for seed in range(5, 11))]
    with open(path / "evaluations.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    panels = page_of(path)["curves"]
    assert [panel["label"] for panel in panels] == ["training return", "greedy return"]
    assert panels[1]["curves"][0]["seed_values"][1].tolist() == [506, 1006]


def test_recordings_are_embedded_if_they_fit(tmp_path, monkeypatch, without_plotly):
    path = written(tmp_path / "run")
    (path / "a.gif").write_bytes(b"GIF89a" + bytes(100))
    (path / "b.gif").write_bytes(b"GIF89a" + bytes(5_000_000))
    (path / "c.gif").symlink_to(path / "config.json")
    found = page_of(path)
    assert [(video.name, video.content is None) for _, video in found["videos"]] == [("a.gif", False), ("b.gif", True)]
    text = page.html(found)
    assert 'src="data:image/gif;base64,R0lGODlh' in text
    assert "b.gif (5.0 MB), runs/one: too large for this page" in text


# Runs in progress


def test_folders_of_runs_and_of_sweeps(tmp_path):
    html_report.check_run(written(tmp_path / "run"))
    assert html_report.program_folders(tmp_path / "run") == [tmp_path / "run"]
    settings = Sweep(**dataclasses.asdict(defaults("dqn")), varied=({"gamma": 0.5},))
    for name in ("10", "9", "x"):
        written(tmp_path / "sweep" / name, settings, done=False)
    assert html_report.program_folders(tmp_path / "sweep") == [tmp_path / "sweep" / "9", tmp_path / "sweep" / "10"]
    assert html_report.program_folders(tmp_path / "nowhere") == []


def test_page_of_a_run_in_progress(tmp_path):
    path = written(tmp_path / "run", reports=4, stops=(6,), done=False)
    whole = (path / "metrics.csv").read_text()
    found = html_report.current(path, "run")
    facts = dict(found["facts"])
    assert facts["steps per seed"] == "400 of 1,000"
    assert facts["failed seeds"].startswith("1 of 6"), "a seed without updates has failed"
    assert found["failures"]["rows"] == [["run", 6, "", "no more updates"]]
    with open(path / "metrics.csv", "a") as file:
        file.write("500,5,500,55,50.1,9,1.5,2.5,0.5,0.1,0.001,1.0\n500,6,5")  # in the middle of a write
    torn = html_report.current(path, "run")
    assert torn["curves"][0]["curves"][0]["steps"].tolist() == [100, 200, 300, 400]
    (path / "metrics.csv").write_text(whole[:40])
    assert html_report.current(path, "run")["curves"] == []


@pytest.mark.parametrize("change", [{"failures": [1]}, {"steps": "x"}, {"final_return": None}, {"wall_seconds": []}])
def test_a_damaged_summary_of_a_run_in_progress_is_refused(tmp_path, change):
    path = written(tmp_path / "run")
    html_report.current(path, "run")
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, **change}))
    with pytest.raises(ValueError, match=r"expected a finished run folder, got .* a summary\.json that is invalid"):
        html_report.current(path, "run")


@pytest.mark.parametrize("programs", [1, 2])
def test_page_of_a_sweep_in_progress(tmp_path, programs):
    base = dataclasses.asdict(make({"env": "catch", "seeds": 5, "steps": 1000, "learning_starts": 20}))
    values = [{"batch_size": size, "gamma": gamma} for size in (8, 16)[:programs] for gamma in (0.5, 0.9, 0.99)]
    for i in range(programs):
        own = Sweep(**{**base, "out": None}, varied=tuple(values[3 * i : 3 * i + 3]))
        written(tmp_path / "sweep" / str(i) if programs > 1 else tmp_path / "sweep", own, reports=3, done=False)
    found = html_report.current(tmp_path / "sweep", "sweep")
    assert found["title"] == "catch: sweep over batch_size, gamma"
    assert len(found["results"]["rows"]) == 3 * programs
    assert dict(found["facts"])["steps per seed"] == ("300 of 1,000" if programs == 1 else "1,000 (30% trained)")
    assert [axis["name"] for axis in found["sweep"]["axes"]] == (["batch_size", "gamma"] if programs > 1 else ["gamma"])
    (command,) = found["commands"][0][1]
    assert command.endswith(f"--batch-size {' '.join(['8', '16'][:programs])} --gamma 0.5 0.9 0.99")


@pytest.fixture
def sweep(tmp_path):
    """Write the folder of a sweep of four settings."""
    base = dataclasses.asdict(make({"env": "catch", "seeds": 5, "steps": 1000, "learning_starts": 20}))
    varied = tuple({"gamma": gamma, "learning_rate": rate} for gamma in (0.9, 0.99) for rate in (1e-3, 1e-2))
    return written(tmp_path / "sweep", Sweep(**base, varied=varied), stops=(7,))


def test_the_page_of_a_sweep(sweep):
    found = html_report.page_of([sweep], ["runs/s w"])
    effects = found["sweep"]
    assert [axis["name"] for axis in effects["axes"]] == ["gamma", "learning_rate"]
    read = results.read(sweep)
    greedy = np.arange(20.0).reshape(4, 5) / 2
    greedy[1, 2] = np.nan
    levels = sweeps.marginal(
        ("gamma", "learning_rate"), [tuple(x.values()) for x in read.settings.varied], greedy, "gamma"
    )
    assert [x["iqm"] for x in effects["axes"][0]["levels"]] == [float(level.estimate.iqm) for level in levels]
    assert found["failures"]["rows"] == [["runs/s w", 7, "600", "loss"]]
    assert found["results"]["columns"][:4] == ["rank", "setting", "gamma", "learning_rate"]
    assert found["commands"][0][1][1] == "fdqn train --best-of 'runs/s w'"


# The command that repeats a run


def parsed(command):
    words = shlex.split(command)
    assert words[:2] == ["fdqn", "train"]
    return parse.parse(words[1:])


@pytest.mark.parametrize(
    "given",
    [
        *({"algorithm": name} for name in ALGORITHMS),
        {
            "env": "gym:CartPole-v1",
            "seeds": 3,
            "seed": 7,
            "gamma": 0.5,
            "max_grad_norm": float("inf"),
            "hidden": (3, 4),
        },
        {"hidden": (), "compile": False, "prioritized": True, "double": False, "clip_rewards": True},
        {"env": "my code.py:it's", "optimizer": "rmsprop", "rmsprop_decay": 0.123456789},
        {"algorithm": "rainbow", "noisy": False},
        presets.values("cleanrl-c51", "cartpole"),
        presets.values("cleanrl-pqn", "acrobot"),
    ],
    ids=str,
)
def test_the_command_parses_to_the_settings(given):
    settings = make(given)
    assert parsed(repeat.command(settings)).settings == settings
    assert repeat.command(dataclasses.replace(settings, gamma=0.3)) != repeat.command(settings)


def test_the_command_of_a_sweep_parses_to_its_values():
    base = dataclasses.asdict(defaults("dqn"))
    rows = [{"hidden": hidden, "double": double, "learning_rate": rate}
            for hidden in ((64, 64), (120,)) for double in (True, False) for rate in (1e-4, 0.25)]  # fmt: skip
    command = repeat.command(Sweep(**base, varied=tuple(rows)))
    assert parsed(command).sweep["values"] == {
        "hidden": [(64, 64), (120,)], "double": [True, False], "learning_rate": [1e-4, 0.25]
    }  # fmt: skip
    assert repeat.command(Sweep(**base, varied=tuple(rows[:3]))) is None, "not a product"


def test_an_extended_run_is_repeated_by_two_commands(tmp_path):
    path = written(tmp_path / "run")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"plan": {"steps": 2000, "on_nan": "freeze"}}))
    assert page_of(path)["commands"][0][1][1] == "fdqn resume RUN --steps 2000"


# HTML


class Tags(HTMLParser):
    """Collect tags, attributes and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.words = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_data(self, data):
        if self.tags[-1:] == ["script"] and self.scripts and not self.scripts[-1][1]:
            self.scripts[-1] = (self.scripts[-1][0], data)
        self.words += data


def evil_page(tmp_path):
    """Make the page of runs whose names, environments and records contain HTML."""
    path = written(tmp_path / "run", stops=(6,))
    config = json.loads((path / "config.json").read_text())
    config["settings"]["env"], config["git"], config["versions"][EVIL] = f"code:{EVIL}", EVIL, EVIL
    (path / "config.json").write_text(json.dumps(config))
    summary = json.loads((path / "summary.json").read_text())
    summary["env"], summary["failures"][0]["cause"] = EVIL, EVIL
    (path / "summary.json").write_text(json.dumps(summary))
    (path / f"{EVIL.replace('/', '')}.gif").write_bytes(b"GIF89a")
    return path


@pytest.mark.parametrize("count", [1, 2])
def test_text_of_runs_is_escaped(tmp_path, without_plotly, count):
    path = evil_page(tmp_path)
    read = Tags(page.html(html_report.page_of([path] * count, [EVIL, f"{EVIL} 2"][:count])))
    assert {kind for kind, _ in read.scripts} == {None, "application/json"}
    assert [text for kind, text in read.scripts if kind is None] == [page.library(), page._DRAW]
    assert not any(name.startswith("on") for _, name, _ in read.attributes)
    assert EVIL in read.words
    for text in (text for kind, text in read.scripts if kind):
        assert not set(text) & set("<>&")
        for trace in json.loads(text)["data"]:
            assert "<script" not in json.dumps(trace.get("name", ""))
    assert page_figures._safe(EVIL) == "&lt;script&gt;alert('x')&lt;/script&gt;&amp;\"%&#123;y}"


def test_the_parser_of_tags_detects_a_planted_script():
    assert Tags("<p>a</p><script>alert(1)</script><img onerror='x'>").tags == ["p", "script", "img"]


def test_the_page_of_a_sweep_is_escaped(sweep, without_plotly):
    found = html_report.page_of([sweep], [EVIL])
    read = Tags(page.html(found))
    assert {"parallel", "effect-0", "effect-1", "results"} <= {x for tag, name, x in read.attributes if name == "id"}
    assert len([1 for kind, _ in read.scripts if kind is None]) == 2
    lines = next(json.loads(text) for kind, text in read.scripts if kind and '"setting"' in text)
    assert len(lines["data"]) == 4
    chosen = {button["label"]: button["args"][0]["opacity"] for button in lines["layout"]["updatemenus"][0]["buttons"]}
    assert sorted(chosen["gamma = 0.9"]) == [0.06, 0.06, 1, 1]


def test_the_page_loads_no_external_resources(tmp_path, without_plotly):
    text = page.html(page_of(written(tmp_path / "run")))
    links = [
        (name, value) for _, name, value in Tags(text).attributes if name in ("src", "href", "action", "data", "srcset")
    ]
    assert links == [("href", "data:,")]
    policy = next(value for _, name, value in Tags(text).attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy
    assert "unsafe" not in policy.split("style-src")[0]
    assert "connect-src 'self'" in page.html(page_of(tmp_path / "run"), 3.0)


def test_the_update_of_a_page_has_its_sections(tmp_path, without_plotly):
    found = page_of(written(tmp_path / "run"))
    assert page.body(found) in page.html(found)
    assert "<script>" not in page.body(found)


# Figures


def test_figures_have_the_numbers_of_the_page(tmp_path, without_plotly):
    found = page_of(written(tmp_path / "run", stops=(6,)))
    (run,) = found["curves"][0]["curves"]
    drawn = page_figures.curves(found["curves"][0])["data"]
    line = next(trace for trace in drawn if trace["meta"] == "line")
    np.testing.assert_allclose(line["y"], run["iqm"], rtol=1e-6)
    low, high = (trace["y"] for trace in drawn if trace["meta"] == "band")
    np.testing.assert_allclose([low, high], [run["low"], run["high"]], rtol=1e-6)
    assert line["text"][0] == f"{run['iqm'][0]:,.5g} [{run['low'][0]:,.5g}, {run['high'][0]:,.5g}], 5 seeds"
    seeds = {trace["name"]: trace for trace in drawn if trace["meta"] == "seed"}
    assert list(seeds) == ["5", "6", "7", "8", "9", "10"]
    np.testing.assert_allclose(seeds["7"]["y"], run["seed_values"][2], rtol=1e-6)
    assert [name for name, trace in seeds.items() if trace["line"]["dash"] == "dot"] == ["6"]
    medians = [x for x in page_figures.diagnostics(found["diagnostics"])["data"] if x["meta"] == "line"]
    assert [(x["yaxis"], set(x["y"])) for x in medians] == [("y", {1.5}), ("y2", {2.5}), ("y3", {0.5})]


def test_figures_of_a_sweep_have_its_numbers(sweep, without_plotly):
    effects = html_report.page_of([sweep], ["s"])["sweep"]
    points, line = page_figures.sensitivity(effects, 1)["data"]
    assert points["x"] == [1e-3, 1e-2, 1e-3, 1e-2]
    np.testing.assert_allclose(points["y"], effects["means"])
    assert line["x"] == [1e-3, 1e-2]
    assert line["y"] == [level["iqm"] for level in effects["axes"][1]["levels"]]
    lines = page_figures.parallel_coordinates(effects)["data"]
    assert [round(trace["y"][-1], 3) for trace in lines] == [0, 0.333, 0.667, 1]
    assert [round(trace["y"][0]) for trace in lines] == [0, 0, 1, 1]


def test_a_sweep_whose_seeds_have_all_failed_has_no_effects(sweep, without_plotly):
    data = html_report._finished_sweep(sweep, "s")
    failed = np.full_like(data.returns, np.nan)
    found = page_data.of_sweep(data._replace(returns=failed, rows=sweeps.ranking(data.names, data.values, failed)))
    assert found["sweep"] is None
    assert "effect-0" not in page.html(found)


# The command and its errors


def test_the_command_writes_only_the_page(tmp_path, without_plotly, monkeypatch, capsys):
    path = written(tmp_path / "run")
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "run", "--html", "page.html"]) == 0
    assert capsys.readouterr().out.startswith("page page.html, ")
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()} == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["page.html", "run"]
    assert str(tmp_path) not in Path("page.html").read_text(), "paths are shown as given"
    assert cli.main(["report", "run", "run", "--html", "two.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"html": "two.html", "bytes": Path("two.html").stat().st_size}


def test_names_that_are_not_unicode_become_escapes(tmp_path, without_plotly):
    path = written(tmp_path / "run")
    html_report.write([path], tmp_path / "page.html", ["run \udcff"])
    assert b"run \\udcff" in (tmp_path / "page.html").read_bytes()
    assert page.encoded("\udcff\u00e9") == b"\\udcff\xc3\xa9"


def test_a_failed_write_leaves_no_page(tmp_path, without_plotly, monkeypatch, capsys):
    written(tmp_path / "run")
    monkeypatch.chdir(tmp_path)

    def full(file, content):
        raise OSError(f"{file}: expected to write it, got No space left on device")

    monkeypatch.setattr("fdqn.storage.files.write", full)
    assert cli.main(["report", "run", "--html", "page.html"]) == 1
    assert capsys.readouterr().err == "fdqn: html: page.html: expected to write it, got No space left on device\n"
    assert not Path("page.html").exists()


def test_missing_plotly_is_reported_with_the_extra(tmp_path, monkeypatch, capsys):
    written(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "plotly", None)
    page.library.cache_clear()
    for words in (["report", "run", "--html", "page.html"], ["watch", "run"]):
        with pytest.raises(ValueError, match="html: expected plotly"):
            page.check_plotly()
        assert cli.main(words) == 1
        assert capsys.readouterr().err == (
            "fdqn: html: expected plotly, which draws the page, got none; pip install 'fdqn[html]'\n"
        )
    assert not Path("page.html").exists()


def test_every_displayed_setting_has_a_value():
    assert all(page_data._setting_values(Settings())[name] for name in ("env", "gamma", "hidden"))
