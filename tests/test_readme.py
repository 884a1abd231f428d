"""Tests of the README files: code, commands, links, paths and names of tests are valid; help texts use common terms."""

import ast
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

import fdqn
from fdqn import cli, compile, envs, training
from fdqn.cli import parse
from fdqn.testing import laws

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PACKAGE = (ROOT / "fdqn/README.md").read_text()
PAGES = {path: (ROOT / path).read_text() for path in ("README.md", "fdqn/README.md", "benchmarks/README.md")}

PRIVATE_WORDS = r"lanes?|worlds?|cycles?|shares?|penalty|told|asked|said|stands|begun|rooms?"


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def block(excerpt):
    (found,) = (text for text in blocks("python") if excerpt in text)
    return found


def checked_blocks():
    return re.findall(r"<!-- check -->\n```python\n(.*?)```", README, re.S)


def dotted_names(code):
    """Return the dotted names in the code that start with `fdqn` or with a name imported from it."""
    program, imported, names = ast.parse(code), {"fdqn": "fdqn"}, set()
    for node in ast.walk(program):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "fdqn":
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    assigned = {node.id for node in ast.walk(program) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(program):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", text := ast.unparse(node)):
            first, rest = text.split(".", 1)
            if first in imported and first not in assigned:
                names.add(f"{imported[first]}.{rest}")
    return names


def exists(dotted):
    """Return True if a dotted name can be imported or read."""
    first, *rest = dotted.split(".")
    value, path = importlib.import_module(first), first
    for name in rest:
        path = f"{path}.{name}"
        try:
            value = getattr(value, name)
        except (AttributeError, ImportError):
            try:
                value = importlib.import_module(path)
            except ImportError:
                return False
    return True


def test_missing_dotted_names_are_detected():
    code = "import fdqn\nfrom fdqn import optim\nrun = fdqn.absent(1)\noptim.adam(1).update\nrun.plot\n"
    assert dotted_names(code) == {"fdqn.optim", "fdqn.absent", "fdqn.optim.adam"}
    assert exists("fdqn.optim.adam")
    assert exists("fdqn.testing.laws.env")
    assert not exists("fdqn.absent")


def test_public_names_of_the_package_exist():
    """Check names that pdoc documents; it fails on a name that cannot be imported."""
    assert [name for name in fdqn.__all__ if not exists(f"fdqn.{name}")] == []


@pytest.mark.parametrize("code", blocks("python"))
def test_names_in_code_exist(code):
    assert missing(code) == []


def missing(code):
    names = [name for name in sorted(dotted_names(code)) if not exists(name)]
    return names


@pytest.mark.parametrize("page", ["README.md", "fdqn/README.md", "benchmarks/README.md"])
def test_functions_in_texts_exist(page):
    """Resolve names such as `losses.huber` in texts and tables in the modules of fdqn, here `fdqn.ops.losses`."""
    spans = " ".join(re.findall(r"`([^`\n]+)`", PAGES[page]))
    named = {
        f"fdqn.{module}.{name}" for module, name in re.findall(r"(?<![\w./])(\w+)\.((?!(?:py|json)\b)[a-z]\w*)", spans)
    }
    assert [name for name in sorted(named) if name.split(".")[1] in fdqn.__all__ and not exists(name)] == []


def test_names_of_the_changelog_exist():
    """Resolve the names of version 0.2 in the tables of moved and renamed functions, which are relative to `fdqn`."""
    changes = (ROOT / "fdqn/docs/changelog.md").read_text()
    new = " ".join(row.split(" | ")[-1] for row in re.findall(r"^\| `.*", changes, re.M))
    names = {f"fdqn.{name}" for name in re.findall(r"(?<![\w.])(?!fdqn\.|agent\.|losses\.)(\w+(?:\.\w+)+)", new)}
    assert len(names) > 80
    assert sorted(name for name in names if not exists(name)) == []


@pytest.mark.parametrize("code", checked_blocks())
def test_checked_blocks_run(tmp_path, monkeypatch, capsys, code):
    """Run each marked block as printed, with fewer seeds and steps and without compiling."""
    assert missing(code) == []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compile, "compiled", lambda program, *how: training.vmapped(program))
    small = "steps=1_200, report_every=600, evaluate_episodes=1, engine='eager'"
    code = code.replace("seeds=16", "seeds=4").replace("steps=100_000", small)
    exec(code.replace("100_000", "1_200").replace("10_000", "600"), names := {})
    if "run" in names:
        assert len(names["final"]["per_seed"]) == 4
        assert Path("curve.png").exists()
    else:
        assert re.search(r"^600 \[.*^1200 \[", capsys.readouterr().out, re.S | re.M)


def test_laws_run():
    exec(block("laws.env"), {})


@pytest.mark.parametrize("name", ["corridor", "Corridor"])
def test_user_environments_are_trained(tmp_path, monkeypatch, name):
    """Train in a corridor with a reward at its right end, which every greedy episode must reach."""
    functions, gym_class = block("def corridor"), block("class Corridor")
    assert all(len([line for line in code.splitlines() if line.strip()]) <= 30 for code in (functions, gym_class))
    (tmp_path / "mine.py").write_text(functions + "\n\n" + gym_class)
    monkeypatch.chdir(tmp_path)
    flags = shlex.split("--no-compile --seeds 2 --steps 3000 --learning-starts 300 --learning-rate 0.01 --gamma 0.9")
    assert cli.main(["train", "--env", f"mine:{name}", *flags, "--out", "run"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["final_return"]["per_seed"] == [1.0, 1.0]
    assert cli.main(["eval", "run"]) == 1, "--env is required again for user code"
    assert cli.main(["eval", "run", "--env", f"mine:{name}"]) == 0
    if name == "corridor":
        laws.env(envs.find("mine:corridor"))


def test_first_two_shell_blocks_are_one_command_each():
    job, tests, *_ = blocks("sh")
    for command, last in ((job, "fdqn train"), (tests, "pytest -n 2 --dist loadfile")):
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
        assert command.strip().endswith(f".venv/bin/{last}")


@pytest.mark.parametrize("command", re.findall(r"^\| `fdqn (.*?)` \|", README, re.M))
def test_commands_of_the_table_parse(command):
    first, *_ = arguments = shlex.split(command)
    parsed = {"train": parse.Train, "summary": parse.Summary}.get(first, parse.COMMANDS[first])
    assert isinstance(parse.parse(arguments), parsed)


def links():
    return [(page, path) for page, text in PAGES.items() for path in re.findall(r"\]\(((?!http)[^)#]+)[^)]*\)", text)]


@pytest.mark.parametrize(("page", "path"), links())
def test_linked_files_exist(page, path):
    assert ((ROOT / page).parent / path).exists()


def named_tests():
    """Return the tests that the tables name, with their files."""
    for row in (row for text in PAGES.values() for row in re.findall(r"^\| .* \|$", text, re.M)):
        file = "tests/test_page.py"
        for path, name in re.findall(r"`(tests/\w+\.py)?(?:::)?(test_\w+)`", row):
            file = path or file
            yield file, name


@pytest.mark.parametrize(("file", "name"), sorted(set(named_tests())))
def test_tests_in_the_tables_exist(file, name):
    assert f"\ndef {name}(" in (ROOT / file).read_text()


@pytest.mark.parametrize(
    "path", sorted({path for text in PAGES.values() for path in re.findall(r"tests/\w+\.py", text)})
)
def test_test_files_exist(path):
    assert (ROOT / path).exists()


def rows(title):
    """Return the rows of the table with this first line."""
    return PACKAGE[PACKAGE.index(title) :].split("\n\n")[0].splitlines()[2:]


def test_every_section_of_the_table_names_a_test():
    table = rows("| PyTorch | fdqn | test |")
    assert len(table) > 20
    assert all("`test_" in row or "::test_" in row for row in table)


def test_the_map_of_the_package_has_exactly_the_modules():
    """Compare the rows with the modules. A row names a module or a whole folder; bold rows are headings."""
    entries, heads = set(), set()
    for row in rows("| to change | open |"):
        (heads if row.startswith("| **") else entries).update(re.findall(r"`([\w/.]+)`", row.split(" | ")[-1]))
    assert {path for path in entries | heads if not (ROOT / "fdqn" / path).exists()} == set()
    modules = {path.relative_to(ROOT / "fdqn").as_posix() for path in (ROOT / "fdqn").rglob("*.py")}
    whole = tuple(path for path in entries if path.endswith("/"))
    assert {path for path in modules - entries if "/__" not in f"/{path}" and not path.startswith(whole)} == set()


@pytest.mark.parametrize("page", PAGES)
def test_pages_use_the_field_s_terms(page):
    text = re.sub(r"```.*?```|`[^`\n]*`|^\| lane \|.*$", "", PAGES[page], flags=re.S | re.M)
    assert re.findall(rf"\b(?:{PRIVATE_WORDS})\b", text) == []


@pytest.mark.parametrize("command", list(parse.COMMANDS))
def test_help_uses_the_field_s_terms_and_breaks_lines_at_sentences(monkeypatch, capsys, command):
    """Allow none of `PRIVATE_WORDS` except in names of flags, and line breaks only after sentences."""
    monkeypatch.setenv("COLUMNS", "4000")
    assert cli.main([command, "--help"]) == 0
    text = re.sub(r"--[\w-]+", "", capsys.readouterr().out.replace("│", " "))
    assert re.findall(rf"\b(?:{PRIVATE_WORDS})\b", text) == []
    if command in ("train", "summary"):  # too many flags for one column; `test_settings` reads their texts
        return
    continued = re.findall(r"^ {6,}(\S.*?) *\n(?= {6,}\w)", text, re.M)
    assert [line for line in continued if not line.endswith(".")] == []
