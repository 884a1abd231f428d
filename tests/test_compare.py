"""The command `fdqn compare`: arms from runs, sweeps and CSV files, table, text and plot."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rich.console
from matplotlib.image import imread

from fdqn import cli
from fdqn.experiment import arms, comparing, comparison_text, returns_csv
from fdqn.report import comparison_plots, comparisons, plots, power
from fdqn.report.comparison_plots import DrawnArm, Ends
from fdqn.report.plots import Curve

RNG = np.random.default_rng(0)
LOW, HIGH = ([round(x, 2) for x in RNG.normal(mean, 40, 9)] for mean in (300, 400))


def column(values, header="return"):
    return "\n".join([header, *map(str, values)]) + "\n"


def seeded(values, start=0):
    return "seed,score\n" + "".join(f"{start + i},{x}\n" for i, x in enumerate(values))


def write_run(path, greedy, training=None, env="cartpole", steps=1_000, failed=()):
    """Write the files of a finished run that a comparison reads."""
    path.mkdir()
    seeds = list(range(5, 5 + len(greedy)))
    returns = {"final_return": greedy, "train_return": greedy if training is None else training}
    summary = {"env": env, "steps": steps, "seeds": seeds, "failed_seeds": list(failed)}
    summary |= {name: {"per_seed": values} for name, values in returns.items()}
    (path / "summary.json").write_text(json.dumps(summary))
    rows = [f"{step},{seed},{step / 10}" for step in (steps // 2, steps) for seed in seeds]
    (path / "metrics.csv").write_text("step,seed,return\n" + "\n".join(rows) + "\n")


def write_sweep(path, returns, header="learner,setting,seed,learning_rate,hidden"):
    """Write the files of a sweep of returns [settings, seeds] that a comparison reads."""
    path.mkdir()
    seeds = len(returns[0])
    rows = [f"{k * seeds + s},{k},{s},{10.0**-k},8" for k in range(len(returns)) for s in range(seeds)]
    (path / "settings.csv").write_text("\n".join([header, *rows]) + "\n")
    per_seed = [x for row in returns for x in row]
    summary = {"env": "cartpole", "steps": 1_000, "seeds": [0, 1], "failed_seeds": []}
    (path / "summary.json").write_text(json.dumps({**summary, "final_return": {"per_seed": per_seed}}))


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Change to a folder with arms of every kind. The plot, which takes most of the time, is not drawn."""
    monkeypatch.setattr(comparison_plots, "comparison", lambda file, *given: file.write(b"picture"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("low.csv").write_text(column(LOW))
    Path("high.csv").write_text(column(HIGH))
    write_run(tmp_path / "a", LOW, HIGH)
    write_run(tmp_path / "b", [*HIGH[:8], None], LOW, failed=[13])
    write_sweep(tmp_path / "sweep", [LOW, HIGH, [*LOW[:8], None]])
    return tmp_path


def compared(capsys, *words):
    assert cli.main(["compare", *words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def printed(capsys, *words):
    assert cli.main(["compare", *words]) == 0
    return capsys.readouterr().out


# CSV files


@pytest.mark.parametrize(
    ("text", "values", "seeds", "column"),
    [
        (column([1, 2.5, "nan"]), [1, 2.5, np.nan], None, "column return"),
        (column([1, 2.5], "Score "), [1, 2.5], None, "column score"),
        ("episodic_return;seed\r\n3;a\r\n4;b\r\n", [3, 4], ("a", "b"), "column episodic_return"),
        ("score\treturn\n3\t5\n4\t6\n", [5, 6], None, "column return"),
        ("\ufeffseed,return\n7,1\n8.0,2\n", [1, 2], (7, 8), "column return"),
        ("1\n2\n-3e1\n\n \n", [1, 2, -30], None, "numbers without a header"),
        ("1, 2, NaN,4", [1, 2, np.nan, 4], None, "numbers without a header"),
        ("5", [5], None, "numbers without a header"),
        ('return,comment\n3,"a, b"\n', [3], None, "column return"),
        ("seed,step,return\n1,10,5\n1,20,6\n2,20,8\n2,10,7\n", [6, 8], (1, 2), "column return at the last step"),
    ],
)
def test_read_csv_files(tmp_path, text, values, seeds, column):
    (tmp_path / "x.csv").write_text(text, newline="")
    (found,) = returns_csv.read(tmp_path / "x.csv")
    np.testing.assert_array_equal(found.values, values)
    assert (found.seeds, found.column, found.arm) == (seeds, column, "")


def test_read_exports_of_other_libraries(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("Name,exp_name,seed,global_step,charts/episodic_return\na__1,a,1,99,5\na__2,a,2,98,6\n")
    (found,) = returns_csv.read(file)
    assert (found.arm, found.seeds, found.values.tolist(), found.steps) == ("a", (1, 2), [5, 6], 99)
    file.write_text("Wall time,Step,Value,seed\n1e9,10,2,1\n1e9,20,3,1\n1e9,20,7,2\n")
    (found,) = returns_csv.read(file)
    assert (found.seeds, found.values.tolist(), found.curve.steps.tolist()) == ((1, 2), [3, 7], [10, 20])
    file.write_text("#{}\nr,seed\n4,1\nx,2\n")
    with pytest.raises(ValueError, match="in line 4, column r, got 'x'"):
        returns_csv.read(file)


def test_a_column_of_names_gives_arms_and_one_of_steps_gives_curves(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("exp_name,seed,step,return\nq,1,10,1\nz,1,10,2\nq,1,30,3\nz,1,20,4\nq,2,20,5\n")
    q, z = returns_csv.read(file)
    assert (q.arm, z.arm) == ("q", "z")
    assert (q.steps, z.steps) == (30, 20)
    assert q.values.tolist() == [3, 5]
    assert q.column == "column return at the last step of each seed, 20 to 30"
    np.testing.assert_array_equal(q.curve.steps, [10, 20, 30])
    np.testing.assert_array_equal(q.curve.values, [[1, np.nan], [1, 5], [3, 5]])


def test_many_steps_are_thinned_to_the_last_values(tmp_path):
    file, rng = tmp_path / "x.csv", np.random.default_rng(0)
    steps = [sorted(rng.choice(10_000, 300, replace=False) + 1) for _ in range(2)]
    rows = [f"{seed},{step},{step}" for seed in (0, 1) for step in steps[seed]]
    file.write_text("seed,step,return\n" + "\n".join(rows) + "\n")
    (found,) = returns_csv.read(file)
    assert len(found.curve.steps) <= 200
    assert found.curve.values[-1].tolist() == found.values.tolist() == [x[-1] for x in steps]
    assert (np.diff(found.curve.values, axis=0)[1:] >= 0).all()


REFUSED_FILES = [
    ("\nreturn\n1\nx\n", "bad.csv: expected a number in line 4, column return, got 'x'"),
    (
        'return\n1\n""\n3\n',
        "bad.csv: expected a number in line 3, column return, got nothing; write nan for a failed seed",
    ),
    (
        'return\n1\n""\n',
        "bad.csv: expected a number in line 3, column return, got nothing; write nan for a failed seed",
    ),
    (
        "return\n1\n\n3\n",
        "bad.csv: expected a number in line 3, column return, got nothing; write nan for a failed seed",
    ),
    ("seed,return\n1,2\n \n2,3\n", "bad.csv: expected a number in line 3, column return, got nothing; write nan for …"),
    ("1\n\n3\n", "bad.csv: expected a number in line 2, column 1, got nothing; write nan for a failed seed"),
    ('""\n2\n3\n', "bad.csv: expected a number in line 1, column 1, got nothing; write nan for a failed seed"),
    ("seed,return\n1,2\n2,\n", "bad.csv: expected a number in line 3, column return, got nothing; write nan for a …"),
    ("return\n1\n-1e200\n", "bad.csv: expected at most 1e+70 in line 3, column return, got -1e200"),
    ('"a\nb",c\n1,2\n', "bad.csv: expected a column return, score, episodic_return, …, got a b, c; …"),
    ("1\nx\n3\n", "bad.csv: expected a number in line 2, column 1, got 'x'"),
    ("1,2,,4\n", "bad.csv: expected a number in line 1, column 3, got nothing; write nan for a failed seed"),
    ("1,2\n3,4\n", "bad.csv: expected one column or one row of numbers without a header, got 2 rows and 2 columns; …"),
    (
        "reward\n1\n2\n",
        "bad.csv: expected a column return, score, episodic_return, …, got reward; rename …",
    ),
    ("return\n", "bad.csv: expected rows, got only a header"),
    ("\n\n", "bad.csv: expected returns, got an empty file"),
    ("step,return\n1,2\n", "bad.csv: expected a column seed with the column step, got none; the learning curve of …"),
    ("Wall time,Step,Value\n1e9,1,2\n1e9,2,3\n", "bad.csv: expected a column seed with the column step, got none; …"),
    (
        "global_step,charts/episodic_return\n1,2\n2,3\n",
        "bad.csv: expected a column seed with the column global_step, …",
    ),
    (
        '#{"t_start": 1.5, "env_id": "CartPole-v1"}\nr,l,t\n9.0,9,0.1\n8.0,8,0.2\n',
        "bad.csv: expected a column seed with the columns r, l, t, got none; the learning curve of one …",
    ),
    ("seed,return\n1,2\n1,3\n", "bad.csv: expected each seed once, got seed 1 again in line 3"),
    ("seed,step,return\n1,5,2\n1,5,3\n", "bad.csv: expected each seed once at step 5, got seed 1 again in line 3"),
    ("seed,step,return\n1,nan,2\n", "bad.csv: expected a step from 0 to 1e+15 in line 2, column step, got 'nan'"),
    ("seed,step,return\n1,-5,2\n", "bad.csv: expected a step from 0 to 1e+15 in line 2, column step, got '-5'"),
    ("seed,return\n1,2,3\n", "bad.csv: expected 2 columns in line 2, got 3"),
    ("seed,return\n,2\n", "bad.csv: expected a seed in line 2, column seed, got nothing"),
    (b"return\n\xff\n", "bad.csv: expected a CSV file, got bytes that are not UTF-8"),
]


def refused(capsys, arguments, message):
    assert cli.main(["compare", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.fullmatch("fdqn: " + ".+".join(map(re.escape, message.split("…"))) + "\n", err), err


@pytest.mark.parametrize(("content", "message"), REFUSED_FILES)
def test_invalid_files_are_refused_with_line_and_column(workdir, capsys, content, message):
    Path("bad.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(capsys, ["low.csv", "bad.csv"], message)
    assert not Path("compare.png").exists()


REFUSED = [
    ("low.csv", "arms: expected at least two, got 1; fdqn report summarises one run"),
    ("", "arms: expected at least two, got none"),
    ("a a", "arms: expected each arm once, got a twice"),
    ("a ./a", "arms: expected each arm once, got a twice"),
    ("sweep:0 ../{here}/sweep:0", "arms: expected each arm once, got ../{here}/sweep:0… twice"),
    ("sweep other/../sweep:1", "arms: expected each arm once, got other/../sweep:1… twice"),
    ("a nowhere", "arms: expected a run folder, a sweep's SWEEP:K or a CSV file, got nowhere"),
    ("a a:3", "arms: expected a sweep or a CSV file before :3, got the run a"),
    ("a sweep:7", "arms: expected a setting of sweep, 0 to 2, got '7'"),
    ("a low.csv:dqn", "arms: expected an arm of low.csv (which has one arm), got 'dqn'"),
    ("a b --measure gymnasium", "measure: expected gymnasium returns in every run, got none in a"),
    ("a b --paired --unpaired", "paired: expected --paired or --unpaired, got both"),
    ("a low.csv --confidence 95", "confidence: expected a number in (0, 1), got 95.0"),
    ("a low.csv --optimum inf", "optimum: expected a finite number, got inf"),
    ("a low.csv --optimum 1e308", "optimum: expected a number up to 1e+70, got 1e+308"),
    ("a short.csv --paired", "paired: expected 9 seeds as in a, got 2 in short.csv; pass --unpaired"),
    ("a sweep:0 --paired", "paired: expected the seeds of a, got others in sweep:0…; pass --unpaired"),
    (
        "a other",
        "arms: expected one environment, got cartpole in a and acrobot in other; pass --anyway to compare them",
    ),
    ("a longer", "arms: expected one number of steps per seed, got 1,000 in a and 5,000 in longer; pass --anyway to …"),
    ("a empty", "arms: expected a finished run or sweep, got empty without summary.json"),
    ("a broken", "arms: expected a finished run or sweep, got broken with a summary.json that cannot be read"),
    ("a hollow", "arms: expected a finished run or sweep, got hollow with a summary.json without env, steps, …"),
    ("a text", "arms: expected 1 numbers under final_return.per_seed of text, got others"),
    ("a rows", "arms: expected a finished run, got rows with a metrics.csv that is invalid: expected numbers under …"),
    ("a low.csv --out missing/x.png", "out: missing/x.png: …"),
]


@pytest.fixture
def spoiled(workdir):
    """Add arms that do not fit or are damaged."""
    Path("short.csv").write_text(column([1, 2]))
    write_run(workdir / "other", LOW, env="acrobot")
    write_run(workdir / "longer", LOW, steps=5_000)
    write_run(workdir / "text", ["high"])
    write_run(workdir / "rows", LOW)
    Path("rows/metrics.csv").write_text("a,b\n1,2\n")
    for name, content in (("empty", None), ("broken", "{"), ("hollow", "{}")):
        Path(name).mkdir()
        if content:
            Path(name, "summary.json").write_text(content)
    return workdir


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_arms_that_cannot_be_compared_are_refused(spoiled, capsys, line, message):
    refused(capsys, line.format(here=spoiled.name).split(), message.format(here=spoiled.name))
    assert not list(spoiled.glob("*.png"))


@pytest.mark.parametrize(("setting", "message"), [
    ("sweep,seed,lr\n0,0,1\n",
     "arms: expected rows under learner, setting and seed in sweep/settings.csv, got sweep, seed, lr"),
    ("learner,setting,seed,lr\n0,0,0,1\n1,0,1\n", "sweep/settings.csv: expected 4 columns in line 3, got 3"),
    ("lane,setting,seed\n0,0,0\n", "arms: expected 1 numbers under final_return.per_seed of sweep, got others"),
])  # fmt: skip
def test_damaged_settings_of_a_sweep_are_refused(workdir, capsys, setting, message):
    Path("sweep/settings.csv").write_text(setting)
    rows = setting.count("\n") - 1
    if "columns in line" in message:
        write = json.loads(Path("sweep/summary.json").read_text())
        write["final_return"]["per_seed"] = [1.0] * rows
        Path("sweep/summary.json").write_text(json.dumps(write))
    refused(capsys, ["a", "sweep", "--anyway"], message)


def test_different_runs_are_compared_with_anyway(spoiled, capsys):
    found = compared(capsys, "a", "other", "--anyway")
    assert "compared anyway: expected one environment, got cartpole in a and acrobot in other" in found["notes"]
    assert len(compared(capsys, "a", "longer", "--anyway")["arms"]) == 2


def test_steps_may_differ_by_a_training_iteration(workdir, capsys):
    write_run(workdir / "near", HIGH, steps=1_009)
    assert compared(capsys, "a", "near")["arms"][1]["steps"] == 1_009


# Compared returns


def test_the_json_record_equals_the_functions(workdir, capsys):
    found = compared(capsys, "low.csv", "high.csv")
    expected = comparisons.compare(LOW, HIGH)
    (record,) = found["comparisons"]
    for name in ("iqm", "mean", "improvement"):
        assert list(record[name].values()) == pytest.approx(getattr(expected, name)[:3])
    assert record["p"] == record["p_adjusted"] == expected.p
    assert (record["arm"], record["baseline"]) == ("high.csv", "low.csv")
    assert record["spread"] == pytest.approx(power.spread(LOW, HIGH))
    assert record["detectable"] == pytest.approx(power.detectable(record["spread"], 9))
    assert record["half"] == pytest.approx(record["detectable"] / 2)
    assert record["seeds_for_half"] == power.seeds_needed(record["spread"], record["half"])
    low, high = found["arms"]
    assert low["per_seed"] == LOW
    assert low["iqm"]["kind"] == "interval"
    assert high["tolerance"] == {
        "low": min(HIGH), "high": max(HIGH), "fraction": pytest.approx(power.tolerance_fraction(9))
    }  # fmt: skip
    assert not found["paired"], "the files have no seeds"
    assert Path(found["picture"]) == workdir / "compare.png"


def test_exchanged_arms_negate_and_shuffled_seeds_change_nothing(workdir, capsys):
    rng = np.random.default_rng(1)
    Path("one.csv").write_text(seeded(LOW))
    lines = seeded(HIGH).splitlines()
    Path("other.csv").write_text("\n".join([lines[0], *rng.permutation(lines[1:])]) + "\n")
    Path("two.csv").write_text(seeded(HIGH))
    forth, back = compared(capsys, "one.csv", "other.csv"), compared(capsys, "other.csv", "one.csv")
    assert forth["paired"]
    expected = compared(capsys, "one.csv", "two.csv")["comparisons"][0]
    for name in ("iqm", "mean"):
        a, b = forth["comparisons"][0][name], back["comparisons"][0][name]
        assert [a["value"], a["low"], a["high"]] == pytest.approx([-b["value"], -b["high"], -b["low"]])
        assert a == pytest.approx(expected[name]), "seeds are paired by name"


def test_arms_with_the_same_seeds_are_paired(workdir, capsys):
    assert compared(capsys, "sweep:0", "sweep:1")["paired"]
    assert not compared(capsys, "sweep:0", "sweep:1", "--unpaired")["paired"]
    assert not compared(capsys, "a", "sweep:0")["paired"], "seeds 5 to 13 and 0 to 8"
    assert compared(capsys, "low.csv", "high.csv", "--paired")["paired"], "rows are paired in order"
    out = printed(capsys, "sweep:0", "sweep:1")
    assert "paired: all arms have the same seeds; --unpaired compares them" in out
    assert "unpaired: the seeds of the arms are different or unknown" in printed(capsys, "a", "low.csv")


def test_runs_are_compared_by_greedy_returns_or_as_requested(workdir, capsys):
    greedy, training = compared(capsys, "a", "b"), compared(capsys, "a", "b", "--measure", "training")
    assert greedy["arms"][0]["per_seed"] == training["arms"][1]["per_seed"] == LOW
    assert "returns: greedy return" in greedy["notes"]
    assert "returns: training return" in training["notes"]
    mixed = compared(capsys, "a", "low.csv")
    assert "returns: greedy return (a); column return (low.csv)" in mixed["notes"]
    write_run(workdir / "unplayed", [None] * 9, HIGH)
    assert "returns: training return" in compared(capsys, "a", "unplayed")["notes"]


def test_failed_seeds_are_counted_and_named(workdir, capsys):
    found = compared(capsys, "a", "b")
    assert found["paired"]
    assert [(arm["seeds"], arm["failed"]) for arm in found["arms"]] == [(9, 0), (8, 1)]
    assert found["comparisons"][0]["seeds"] == [8, 8]
    assert found["comparisons"][0]["failed"] == [0, 1]
    assert (
        "failed seeds, excluded from all numbers, in paired comparisons with their counterparts: 1 of b"
        in (found["notes"])
    )
    row = next(line for line in printed(capsys, "a", "b").splitlines() if line.split()[:1] == ["b"])
    assert row.split()[1:3] == ["8", "1"]


def test_settings_of_a_sweep(workdir, capsys):
    every = compared(capsys, "sweep")
    names = ["sweep:0 learning_rate=1.0", "sweep:1 learning_rate=0.1", "sweep:2 learning_rate=0.01"]
    assert [arm["name"] for arm in every["arms"]] == names, "the size of the network is the same in all"
    assert [arm["failed"] for arm in every["arms"]] == [0, 0, 1]
    assert every["arms"][1]["per_seed"] == HIGH
    one = compared(capsys, "sweep:1", "a", "--unpaired")
    assert one["arms"][0]["per_seed"] == HIGH
    assert [x["p"] <= x["p_adjusted"] for x in every["comparisons"]] == [True, True]
    assert any(note.startswith("settings of a sweep: ") for note in one["notes"])


def test_arms_of_a_csv_file(workdir, capsys):
    rows = [f"{name},{x}" for name, values in (("dqn", LOW), (":rainbow:", HIGH)) for x in values]
    Path("paper.csv").write_text("algorithm,score\n" + "\n".join(rows) + "\n")
    found = compared(capsys, "paper.csv")
    assert [arm["name"] for arm in found["arms"]] == ["dqn", ":rainbow:"]
    assert ":rainbow:" in printed(capsys, "paper.csv"), "names are printed as they are"
    found = compared(capsys, "low.csv", "paper.csv:dqn")
    assert [arm["name"] for arm in found["arms"]] == ["low.csv", "paper.csv:dqn"]
    assert found["arms"][1]["per_seed"] == LOW


def test_optimality_gap_and_confidence(workdir, capsys):
    found = compared(capsys, "low.csv", "high.csv", "--optimum", "500", "--confidence", "0.5")
    assert found["arms"][0]["optimality_gap"]["value"] == pytest.approx(500 - np.mean(LOW))
    wide = compared(capsys, "low.csv", "high.csv")
    for key in ("iqm", "mean", "improvement"):
        narrow, wider = found["comparisons"][0][key], wide["comparisons"][0][key]
        assert wider["low"] < narrow["low"] < narrow["high"] < wider["high"]
    out = printed(capsys, "low.csv", "high.csv", "--optimum", "500", "--confidence", "0.5")
    assert "optimality gap" in out
    assert "50% intervals" in out


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("paired", ["--paired", "--unpaired"])
def test_the_largest_values_are_compared(workdir, capsys, paired):
    Path("low.csv").write_text(column([-1e70, 1e70] * 5))
    Path("high.csv").write_text(column([1e70, -1e70, -1e70] * 3 + [0]))
    found = compared(capsys, "low.csv", "high.csv", paired, "--optimum", "1e70")
    assert all(np.isfinite(list(found["comparisons"][0]["mean"].values())))


def test_few_seeds(workdir, capsys):
    for name, values in (("one", [3.0]), ("two", [1.0, 2.0]), ("none", ["nan"] * 3), ("same", [5.0] * 6)):
        Path(f"{name}.csv").write_text(column(values))
    found = compared(capsys, "one.csv", "two.csv", "none.csv", "same.csv")
    first, second, third = found["comparisons"]
    assert first["iqm"] == {"value": -1.5, "low": None, "high": None}
    assert (second["p"], second["p_adjusted"], second["detectable"]) == (None, None, None)
    assert found["arms"][1]["iqm"]["kind"] == "range"
    assert third["detectable"] == 0
    text = printed(capsys, "one.csv", "two.csv", "none.csv", "same.csv")
    needs = "it needs 8 to cover 50%, 18 to cover 75%, 22 to cover 80%, 46 to cover 90%, 93 to cover 95% of further"
    assert f"not available with 0 to 6 seeds (one.csv, two.csv, none.csv, same.csv); {needs}" in text
    assert "none.csv against one.csv: power is not available with fewer than two seeds in an arm" in text
    assert "same.csv against one.csv: power is not available, because the returns do not vary" in text


def test_the_table_and_the_text(workdir, capsys):
    out = printed(capsys, "low.csv", "high.csv")
    record = compared(capsys, "low.csv", "high.csv")
    (found,) = record["comparisons"]
    row = next(line for line in out.splitlines() if line.split()[:1] == ["high.csv"])
    cells = [f"+{found['iqm']['value']:.1f} [{found['iqm']['low']:.1f}, {found['iqm']['high']:.1f}]"]
    cells += [f"{found['improvement']['value']:.2f} [", f"{record['arms'][1]['mean']['value']:.1f} ["]
    assert all(cell in row for cell in cells)
    assert (
        f"high.csv against low.csv: with this spread (standard deviation {found['spread']:.1f}) 9 seeds per arm show "
        f"differences of the mean above {found['detectable']:.1f} (80% power at the 5% level); a difference of "
        f"{found['half']:.1f} needs {found['seeds_for_half']} seeds per arm"
    ) in out
    assert f"low.csv: at least 57% of further seeds have returns between {min(LOW):.1f} and {max(LOW):.1f}" in out
    assert out.splitlines()[-1] == f"picture {workdir / 'compare.png'}"


def test_long_names_of_arms_are_wrapped(workdir, monkeypatch):
    name = "a_rather_long_name_of_a_file_of_returns_" * 3
    Path(f"{name}.csv").write_text(column(HIGH))
    screen = rich.console.Console(width=120, file=io.StringIO())
    monkeypatch.setattr(cli.terminal, "results", lambda: screen)
    assert cli.main(["compare", "low.csv", f"{name}.csv"]) == 0
    table = screen.file.getvalue().split("IQM: ")[0]
    words = [line.split()[0] for line in table.splitlines()]
    assert f"{name}.csv" in "".join(word for word in words if word[0] in f"{name}.csv")


def test_many_arms_are_summarised(workdir, capsys):
    rows = [f"arm{i},{x + i}" for i in range(9) for x in LOW]
    Path("many.csv").write_text("name,return\n" + "\n".join(rows) + "\n")
    out = printed(capsys, "many.csv")
    assert "tolerance intervals of 9 arms: see --json" in out
    assert out.count("80% power") == 1
    assert "p (Holm)" in out


def test_arms_are_printed_without_their_common_folder(workdir, capsys):
    Path("deep/er").mkdir(parents=True)
    for name in ("low", "high"):
        Path("deep/er", name).write_text(column(LOW if name == "low" else HIGH))
    out = printed(capsys, "deep/er/low", "deep/er/high")
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["low", "high"]
    assert out.splitlines()[-1] == "picture deep/er/compare.png"
    assert compared(capsys, "deep/er/low", "deep/er/high")["arms"][0]["name"] == "deep/er/low"


def test_csv_files_are_compared_without_torch(workdir):
    code = (
        "import sys; from fdqn import cli; cli.main(['compare', 'low.csv', 'high.csv']); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"


# Formatting


@pytest.mark.parametrize(("values", "digits"), [
    ([10.0, 500.0], 1), ([0.1, 0.9], 2), ([0.01, 0.012], 4), ([5.0, 5.0], 1), ([], 1), ([0.05], 3), ([1e-12, 0.0], 6),
])  # fmt: skip
def test_decimals_follow_the_spread(values, digits):
    assert comparison_text.decimals(values) == digits


def test_numbers_as_text():
    assert comparison_text.number_text(-0.01, 1) == "0.0"
    assert comparison_text.number_text(None, 1) == "-"
    assert comparison_text.p_text(0.00021) == "0.0002"
    assert comparison_text.p_text(None) == "-"
    assert comparison_text.percent_text(0.99) == "99%"
    assert comparison_text.percent_text(0.999) == "99.9%"
    assert comparison_text.percent_text(1 - 1e-9) == "99.9999999%"
    assert comparison_text.percent_text(1 - 2**-52) == "99.99999999999997%"
    assert comparison_text.percent_text(0.9999999999999999) == "99.99999999999999%"
    assert comparison_text.range_text([1, 1]) == "1 seed"
    assert comparison_text.range_text([3, 2_000]) == "3 to 2,000 seeds"
    estimate = {"value": 1.0, "low": 0.5, "high": 2.0}
    assert comparison_text.estimate_text(estimate, 1, signed=True) == "+1.0 [0.5, 2.0]"
    assert comparison_text.estimate_text({**estimate, "kind": "range"}, 1) == "1.0 [range 0.5, 2.0]"
    assert comparison_text.estimate_text({"value": None, "low": None, "high": None}, 1) == "-"


def test_python_functions_of_arms(workdir):
    read = arms.read([Path("low.csv"), Path("high.csv")])
    assert arms.mismatch(read) == ""
    assert not arms.are_paired(read)
    record = comparing.compare(read)
    assert comparison_text.notes(read, record)[1] == "returns: column return"
    assert len(comparison_text.conclusions(record)) == 3


# The plot


def test_the_command_draws_its_comparison(workdir, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.chdir(workdir)
    read = arms.read([Path("a"), Path("b")])
    comparing.picture(drawn := io.BytesIO(), comparing.with_short_names(read), comparing.compare(read))
    assert cli.main(["compare", "a", "b", "--out", "x.png"]) == 0
    assert Path("x.png").read_bytes() == drawn.getvalue()
    assert imread("x.png").shape[1] == 1800


def drawn_arm(name, seed=0, seeds=10, first=False, curve=True):
    rng = np.random.default_rng(seed)
    returns = rng.normal(100 * seed, 30, seeds)
    points = Curve(np.arange(1, 6) * 100, rng.normal(size=(5, seeds))) if curve else None
    own = Ends(100.0 * seed, 100.0 * seed - 20, 100.0 * seed + 20, seeds < 5)
    mean = Ends(100.0 * seed + 2, 100.0 * seed - 18, None if seeds < 5 else 100.0 * seed + 22)
    return DrawnArm(name, returns, own, mean, None if first else own, None if first else mean, points)


def panels(figure):
    return {axes.get_xlabel(): axes for axes in figure.axes}


def test_the_figure_has_a_row_per_arm_curves_and_profiles():
    given = [drawn_arm("runs/a", 0, first=True), drawn_arm("runs/b", 1)]
    figure = comparison_plots.figure(given, "greedy return", "training return", "cartpole")
    found = panels(figure)
    assert list(found) == [
        "greedy return", "difference of greedy return", "environment steps per seed", "greedy return r"
    ]  # fmt: skip
    own, difference, curves, profiles = found.values()
    assert [label.get_text() for label in own.get_yticklabels()] == ["a", "b"]
    segments = {tuple(np.round(line.get_xdata(), 6)) for line in own.lines if len(line.get_xdata()) == 2}
    assert {(80.0, 120.0), (82.0, 122.0), (-20.0, 20.0)} <= segments
    assert "baseline" in [text.get_text().strip() for text in difference.texts]
    assert (80.0, 120.0) in {tuple(line.get_xdata()) for line in difference.lines}
    assert {line.get_color() for line in curves.lines} == set(plots.COLOURS[:2])
    for arm, line in zip(given, profiles.lines, strict=True):
        steps, fractions = line.get_data()
        assert fractions[200] == pytest.approx((arm.returns > steps[200]).mean())
    assert figure.get_suptitle() == "cartpole"


@pytest.mark.parametrize(("seeds", "curve", "count"), [(10, False, 3), (7, True, 3), (7, False, 2)])
def test_panels_without_data_are_left_out(seeds, curve, count):
    given = [drawn_arm("a", 0, seeds, True), drawn_arm("b", 1, seeds, curve=curve)]
    assert len(comparison_plots.figure(given).axes) == count


def test_few_seeds_have_dashed_ranges():
    figure = comparison_plots.figure([drawn_arm("a", 0, 3, True, False), drawn_arm("b", 1, 3, curve=False)])
    own, difference = figure.axes
    assert "range of fewer than 5 seeds" in own.get_title(loc="left")
    assert "95%" not in own.get_title(loc="left")
    assert any(line.get_linestyle() == "--" for line in own.lines if len(line.get_xdata()) == 2)
    assert difference.get_xlabel() == "difference of return"


def test_many_arms_are_cut_to_the_best():
    given = [drawn_arm(f"arm {i}", i, first=i == 0) for i in range(60)]
    figure = comparison_plots.figure(given)
    labels = [label.get_text().replace("\n", " ") for label in figure.axes[0].get_yticklabels()]
    assert labels == ["arm 0", *(f"arm {i}" for i in range(21, 60))]
    assert "the first and the best 39 of 60 arms" in figure.get_suptitle()


def test_names_with_dollar_signs_are_drawn_as_they_are():
    names = ["a$_{b", "c/a$b_{$c", "plain"]
    arms_ = [drawn_arm(name, seed=i, first=not i) for i, name in enumerate(names)]
    figure = comparison_plots.figure(arms_, "r$_{1$", "t$_{2$", "env$_{3$")
    figure.draw_without_rendering()
    curves = panels(figure)["environment steps per seed"]
    assert [text.get_text() for text in curves.get_legend().get_texts()] == [r"a\$_{b", r"c/a\$b_{\$c", "plain"]
    assert plots.plain_text("a$b") == r"a\$b"


def test_all_text_is_inside_the_figure(tmp_path):
    name = "somebody/shared/experiments/learning-rates/runs/mountain_car-20260101-1200"
    given = [drawn_arm(f"{name}{i} gamma=0.9{i}", i, 4, i == 0) for i in range(3)]
    figure = comparison_plots.figure(given)
    figure.savefig(tmp_path / "x.png")
    page = figure.get_window_extent()
    own, difference = figure.axes[:2]
    for axes in (own, difference):
        for text in (axes.xaxis.label, axes._left_title, *axes.get_yticklabels()):
            extent = text.get_window_extent()
            assert page.x0 - 1 <= extent.x0 <= extent.x1 <= page.x1 + 1, text
    assert own._left_title.get_window_extent().x1 <= difference.get_window_extent().x0, "captions do not overlap"
    assert imread(tmp_path / "x.png").shape[1] == 1800


def test_seed_names():
    assert [returns_csv.seed_name(x) for x in ("3", "3.0", "b", "1.5")] == [3, 3, "b", "1.5"]


def test_colours_and_markers_are_distinct():
    assert len({plots.look(i) for i in range(28)}) == 28


def test_short_names():
    assert comparison_plots.short_names(["x/y/a", "x/y/b"]) == ["a", "b"]
    assert comparison_plots.short_names(["x/a", "x/y/b"]) == ["a", "y/b"]
    assert comparison_plots.short_names(["x", "x/y"]) == ["x", "x/y"]
    assert comparison_plots.short_names(["/r/p.csv:dqn", "/r/p.csv:c51"]) == ["p.csv:dqn", "p.csv:c51"]
