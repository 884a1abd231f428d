"""What the README shows works as shown."""

import json
import re
import shlex
from pathlib import Path

import pytest

from fdqn import cli, compile, envs
from fdqn.testing import laws

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_programs_run(monkeypatch, capsys):
    training, _, _, law = blocks("python")
    assert len([line for line in training.splitlines() if line.strip() and "import" not in line]) <= 20
    monkeypatch.setattr(compile, "compiled", training.vmapped)
    shortened = training.replace("100_000", "1_200").replace("10_000", "600")
    assert shortened != training
    exec(shortened, {})
    assert re.search(r"^600 \[.*^1200 \[", capsys.readouterr().out, re.S | re.M)
    exec(law, {})


@pytest.mark.parametrize("name", ["corridor", "Corridor"])
def test_environments_of_one_s_own_are_trained(tmp_path, monkeypatch, name):
    """In a corridor one learns to go right: greedily every episode ends with the reward."""
    _, functions, gym_class, _ = blocks("python")
    assert all(len([line for line in block.splitlines() if line.strip()]) <= 30 for block in (functions, gym_class))
    (tmp_path / "mine.py").write_text(functions + "\n\n" + gym_class)
    monkeypatch.chdir(tmp_path)
    words = shlex.split("--no-compile --seeds 2 --steps 3000 --learning-starts 300 --learning-rate 0.01 --gamma 0.9")
    assert cli.main(["train", "--env", f"mine:{name}", *words, "--out", "run"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["final_return"]["per_seed"] == [1.0, 1.0]
    assert cli.main(["eval", "run"]) == 1, "code is named again"
    assert cli.main(["eval", "run", "--env", f"mine:{name}"]) == 0
    if name == "corridor":
        laws.env(envs.find("mine:corridor"))


def test_first_two_shell_blocks_are_one_command_each():
    job, tests, *_ = blocks("sh")
    for command, last in ((job, "fdqn train"), (tests, "pytest -n 2 --dist loadfile")):
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
        assert command.strip().endswith(f".venv/bin/{last}")


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_linked_files_exist(path):
    assert (Path(__file__).parents[1] / path).exists()


def named_tests():
    """The tests that the tables name, with their files."""
    for row in re.findall(r"^\| .* \|$", README, re.M):
        file = "tests/test_page.py"
        for path, name in re.findall(r"`(tests/\w+\.py)?(?:::)?(test_\w+)`", row):
            file = path or file
            yield file, name


@pytest.mark.parametrize(("file", "name"), sorted(set(named_tests())))
def test_tests_that_the_tables_name_exist(file, name):
    assert f"\ndef {name}(" in (Path(__file__).parents[1] / file).read_text()


def test_every_section_of_the_table_names_a_test():
    table = README[README.index("| PyTorch | fdqn | test |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) > 20
    assert all("`test_" in row or "::test_" in row for row in table)
