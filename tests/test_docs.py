"""Check the pages in `fdqn/docs`: code runs, commands parse, names exist, tables agree with settings and returns.

`python tests/test_docs.py` rewrites the tables between the markers.
"""

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

import fdqn
from fdqn.cli import parse
from fdqn.experiment import presets, session, settings
from fdqn.experiment.settings import AlgorithmName

ROOT = Path(fdqn.__file__).parent
PAGES = {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))}
ALGORITHM_PAGES = {name: name.replace("-", "_") for name in get_args(AlgorithmName)}
KINDS = ("settings", "returns")


# The tables


def tables(kind, algorithm):
    return settings_table(algorithm) if kind == "settings" else returns_table(algorithm)


def settings_table(algorithm):
    """Return the table of settings that few algorithms read or whose default differs from that of `dqn`, with the first
    sentence of their help."""
    usual, own = settings.Settings(), settings.defaults(algorithm)
    rows = ["| flag | default | |", "|---|---|---|"]
    for name, text in help_texts().items():
        few = len(settings._READ_BY.get(name, get_args(AlgorithmName))) < 6 and is_read(own, name)
        if name != "algorithm" and (few or getattr(own, name) != getattr(usual, name)):
            shown = " ".join(map(str, x)) if isinstance(x := getattr(own, name), tuple) else str(x).lower()
            rows.append(f"| `--{name.replace('_', '-')}` | {shown} | {text} |")
    return "\n".join(rows)


def is_read(own, name):
    return own.algorithm in settings._READ_BY.get(name, (own.algorithm,))


def help_texts():
    """Return the first sentence of the help of each setting."""
    found = {}
    for group in settings.GROUPS:
        body = ast.parse(inspect.getsource(group)).body[0].body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[field.target.id] = (
                    " ".join(text.value.value.split()).split(". ")[0].split("; with ")[0].rstrip(".")
                )
    return found


def returns_table(algorithm):
    """Return the table of published returns and those of fdqn, as `fdqn presets` prints them."""
    rows = [row for row in presets.rows() if row["algorithm"] == algorithm]
    if not rows:
        return "There is no preset for this algorithm."
    lines = ["| `--preset` | `--env` | steps | published | fdqn | seeds |", "|---|---|--:|--:|--:|--:|"]
    for row in rows:
        seeds = row["ours"]["seeds"] if row["ours"] else "-"
        cells = (f"{row['steps']:,}", presets.published_text(row), presets.ours_text(row), seeds)
        lines.append(f"| {row['preset']} | {row['env']} | {' | '.join(map(str, cells))} |")
    protocols = dict.fromkeys((row["preset"], row["source"], row["protocol"]) for row in rows)
    notes = [f"- Published, [{name}]({source}): {protocol}." for name, source, protocol in protocols]
    if any(row["ours"] for row in rows):
        notes.append("- fdqn: mean over the seeds and its 95% interval, of the same kind of returns as published.")
    return "\n".join([*lines, "", *notes])


def rewritten(text):
    """Return a page with up-to-date tables."""
    pattern = rf"<!-- ({'|'.join(KINDS)}) ([\w-]+) -->\n.*?<!-- end -->"
    return re.sub(
        pattern, lambda m: f"<!-- {m[1]} {m[2]} -->\n{tables(m[1], m[2])}\n<!-- end -->", text, flags=re.DOTALL
    )


@pytest.mark.parametrize("page", PAGES)
def test_tables_agree_with_settings_and_records(page):
    text = PAGES[page].read_text()
    assert rewritten(text) == text, "run python tests/test_docs.py"


@pytest.mark.parametrize("algorithm", ALGORITHM_PAGES)
def test_every_algorithm_has_a_page(algorithm):
    text = PAGES[ALGORITHM_PAGES[algorithm]].read_text()
    assert text.startswith("# ")
    assert all(f"<!-- {kind} {algorithm} -->" in text for kind in KINDS)
    assert re.search(r"^    \S.*=", text, re.M), "an equation"
    assert "| part | where |" in text
    assert blocks("sh", text)
    assert blocks("python", text)


def test_a_wrong_number_in_a_table_is_noticed():
    text = PAGES["c51"].read_text()
    assert rewritten(text.replace("| 101 |", "| 100 |")) == text
    assert "| 101 |" in text


def test_every_page_is_included_once():
    """Find each page in one docstring, where pdoc renders it."""
    included = []
    for path in ROOT.rglob("*.py"):
        found = re.findall(r"^\.\. include:: (.*docs/.*)$", path.read_text(), re.M)
        included += [(path.parent / name).resolve() for name in found]
    assert sorted(included) == sorted(path.resolve() for path in PAGES.values())


# Their code


def blocks(language, text):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def all_blocks(language):
    return [
        pytest.param(code, id=f"{name}-{i}")
        for name, path in PAGES.items()
        for i, code in enumerate(blocks(language, path.read_text()))
    ]


@pytest.fixture
def small(monkeypatch, tmp_path, light_runs):
    """Shorten training, run it eagerly and in an empty folder, and return the settings that were given."""
    given, train = [], session.train

    def shortened(chosen, *rest):
        given.append(chosen)
        few = dict(seeds=2, steps=64, learning_starts=8, batch_size=8, report_every=32, evaluate_episodes=1)
        size = dict(steps_per_cycle=4, updates_per_cycle=2, evaluate_steps=10, engine="eager", capacity=100)
        return train(dataclasses.replace(chosen, **few, **size), *rest)

    monkeypatch.setattr(session, "train", shortened)
    monkeypatch.chdir(tmp_path)
    return given


@pytest.mark.parametrize("code", all_blocks("python"))
def test_code_runs(small, code):
    """Run each block. The one of the migration page has the settings of the preset, except for epsilon."""
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names := {})
    if "target_period" in code and small:
        different = unlike(small[0], "zoo-dqn")
        assert different == {"report_every", "checkpoint_every", "epsilon_start", "epsilon_fraction"}
    if "error" in names:
        assert names["error"].max() < 0.2, "learned the values of the probe"


def test_values_out_of_bounds_stop_the_run_of_the_page(small):
    (code,) = [x for x in blocks("python", PAGES["debugging"].read_text()) if "check_values" in x]
    with pytest.raises(RuntimeError, match=r"values of .* at step"):
        exec(code.replace("bound = 1 / (1 - 0.99)", "bound = -100"), {})


@pytest.mark.parametrize("page", PAGES)
def test_code_and_equations_fit_the_width_of_pdoc_s_pages(page):
    text = PAGES[page].read_text()
    code = [*"".join(blocks("python", text)).splitlines(), *re.findall(r"^    \S.*", text, re.M)]
    assert [line for line in code if len(line) > 104] == []


@pytest.mark.parametrize("code", all_blocks("sh"))
def test_commands_parse(code):
    for line in code.splitlines():
        assert isinstance(parse.parse(shlex.split(line)[1:]), parse.Train)


def test_the_command_of_the_migration_page_is_the_preset():
    (command,) = blocks("sh", PAGES["migration"].read_text())
    ours = parse.parse(shlex.split(command)[1:]).settings
    assert unlike(ours, "cleanrl-dqn") == {"report_every", "checkpoint_every"}


def unlike(ours, preset):
    """Return the settings that differ from those of a preset in CartPole."""
    values = presets.values(preset, "cartpole")
    return {name for name, x in values.items() if getattr(ours, name) != x}


# Their names


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_names_exist(page):
    """Look up each `--flag` in a column of fdqn, and each `module.name` in a text."""
    from test_readme import exists

    text = re.sub(r"```.*?```", "", PAGES[page].read_text(), flags=re.S)
    ours = text
    if page in ("migration", "changelog"):  # the first column has names of another library or of 0.1
        ours = re.sub(r"^\| .*? \| ", "| ", text, flags=re.M)
    known = {name for command in parse.COMMANDS.values() for name in flags(command)}
    known |= {"wrapper", "version", "completion"}
    spans = re.findall(r"`([^`\n]+)`", ours)
    named = {flag for span in spans for flag in re.findall(r"--([a-z][a-z-]*)", span)}
    assert sorted(name for name in named if name.removeprefix("no-") not in known) == []
    dotted = {f"fdqn.{a}.{b}" for span in spans for a, b in re.findall(r"^(\w+)\.((?!(?:py|md|json)\b)\w[\w.]*)", span)}
    inside = {name for name in dotted if name.split(".")[1] in fdqn.__all__ or page in ALGORITHM_PAGES.values()}
    assert sorted(name for name in inside if not exists(name)) == []


OTHERS = ("preset", "best_of", "samples", "halving", "pbt_every", "track", "tags", "json", "help")
OTHERS += ("shards", "shard", "ray", "shard_cpus", "shard_gpus")


def flags(command):
    if command is parse.TrainFlags:
        own = [field.name for group in settings.GROUPS for field in dataclasses.fields(group)]
        return {name.replace("_", "-") for name in [*own, *OTHERS]}
    return {field.name.replace("_", "-") for field in dataclasses.fields(command)}


@pytest.mark.parametrize("keyword", re.findall(r"`(\w+)(?:=[^`]*)?`", "".join(
    row.split(" | ")[1] for row in PAGES["migration"].read_text().split("## Stable-Baselines3")[1].splitlines()
    if row.startswith("| ")
)))  # fmt: skip
def test_keywords_of_the_migration_page_exist(keyword):
    known = set(inspect.signature(fdqn.train).parameters) | {"fdqn"}
    assert keyword in known


if __name__ == "__main__":
    for path in PAGES.values():
        path.write_text(rewritten(path.read_text()))
