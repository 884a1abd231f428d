"""Tests of packaging: versions, shell completion, types for users, and the contents of wheel and sdist."""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import fdqn
from fdqn import cli, compile
from fdqn.cli import completion, parse
from fdqn.compile import toolchain

ROOT = Path(fdqn.__file__).parents[1]


def test_versions_of_the_packages_and_the_compiler(capsys):
    assert cli.main(["--version", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["fdqn"], record["torch"]) == (fdqn.__version__, torch.__version__)
    assert record["engine"] == compile.resolve("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    assert record["compiler"] == toolchain.version()
    assert cli.main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"fdqn {fdqn.__version__}"
    assert [line.split()[0] for line in lines] == list(record)


def test_versions_without_a_compiler(capsys, monkeypatch):
    def missing():
        raise toolchain.compiler_error("none")

    monkeypatch.setattr(toolchain, "version", missing)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "compiler none that works"


# Completion


@pytest.fixture(scope="module")
def scripts():
    """Return the scripts of all shells."""
    return {shell: completion.script(shell, parse.union(parse.subcommands())) for shell in completion.SHELLS}


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_scripts_are_correct(scripts, shell, tmp_path):
    assert "--learning-rate-schedule" in scripts[shell]
    if (program := shutil.which(shell)) is None:
        assert shell != "bash"
        pytest.skip(f"needs {shell}")
    (tmp_path / "script").write_text(scripts[shell])
    subprocess.run([program, "-n", tmp_path / "script"], check=True)


CANDIDATES = [
    ("fdqn tr", ["train"]),
    ("fdqn train --seeds 3 --learning-rate-", ["--learning-rate-decay", "--learning-rate-decay-every",
                                              "--learning-rate-end", "--learning-rate-schedule"]),
    ("fdqn train --algorithm ", ["c51", "dqn", "iqn", "munchausen", "pqn", "qr-dqn", "rainbow", "stream-q"]),
    ("fdqn train --alg", ["--algorithm"]),
    ("fdqn summary --wra", ["--wrappers"]),
    ("fdqn eval ru", []),
    ("fdqn report --out pic", ["picture.png"]),
]  # fmt: skip

ASK = """
source ./script
complete -p fdqn > spec
while IFS= read -r line; do
  read -ra COMP_WORDS <<< "$line"
  [[ "$line" == *' ' ]] && COMP_WORDS+=('')
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); COMPREPLY=()
  _tyro_fdqn
  printf '%s\\n' "$(IFS=,; echo "${COMPREPLY[*]}")"
done < lines
"""


def test_bash_completes_commands_flags_and_values(scripts, tmp_path):
    """Call the function that bash calls, with a command line as arguments."""
    (tmp_path / "script").write_text(scripts["bash"])
    (tmp_path / "lines").write_text("".join(f"{line}\n" for line, _ in CANDIDATES))
    (tmp_path / "picture.png").touch()
    done = subprocess.run(["bash", "-c", ASK], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "-o default" in (tmp_path / "spec").read_text(), "bash completes file names if there is no candidate"
    found = [sorted(filter(None, line.split(","))) for line in done.stdout.splitlines()]
    assert dict(zip([line for line, _ in CANDIDATES], found, strict=True)) == dict(CANDIDATES)


def test_no_help_text_is_a_candidate(scripts):
    """Check that help texts have no line breaks, which would start another candidate."""
    for script in scripts.values():
        (spec,) = [line for line in script.splitlines() if line.startswith("COMPLETION_SPEC = ")]
        assert r"\n" not in spec


# Types

PROGRAM = '''
"""A user program."""

from functools import partial

import numpy as np
from torch import Tensor
from torch.func import vmap

import fdqn
from fdqn import envs, networks, optim, random, replay, training, tree
from fdqn.agents import dqn
from fdqn.experiment import events
from fdqn.experiment.settings import Settings
from fdqn.ops import losses, masking, schedules, td
from fdqn.training import off_policy
from fdqn.types import Agent, Env, HostEnv, Hyper, Network, Optimizer, Params, Transition


def follow(event: events.Event) -> None:
    match event:
        case events.Reported(step=step, returns=returns):
            print(step, float(returns.mean()))
        case events.Finished(path, summary):
            print(path, summary["final_return"])
        case _:
            pass


def train(out: str) -> float:
    run: fdqn.Run = fdqn.train(env="cartpole", seeds=2, steps=2_000, out=out, on_event=follow, progress=False)
    print(run.policy(seed=0)(np.zeros(4, dtype=np.float32)), run.settings.gamma, run.params["0.weight"].shape)
    again: fdqn.Run = fdqn.resume(out, steps=3_000)
    found = fdqn.sweep({"gamma": [0.9, 0.99], "learning_rate": fdqn.Draw(1e-4, 1e-2, "log")}, samples=2, seeds=2)
    print(found.ranking()[0].setting, fdqn.summary(run)["parameters"], again.path)
    return float(run.summary["final_return"]["iqm"])


def loss(network: Network, params: Params, batch: Transition, gamma: float) -> Tensor:
    q = network.apply(params, batch.obs)
    error = td.q_learning(q, batch.action, batch.reward, batch.discount * gamma, q, batch.next_legal)
    return losses.squared(error).mean()


def optimizer(hyper: Hyper) -> Optimizer:
    return optim.chain(clip=optim.clip_by_global_norm(hyper.max_grad_norm), adam=optim.adam(hyper.learning_rate))


def parts() -> Tensor:
    network = networks.mlp(4, (16,), 2)
    params = vmap(network.init)(random.key([0, 1, 2]))
    agent: Agent = dqn.agent(network, double=True, loss=losses.huber)
    env: Env = envs.make("cartpole", time_limit=200)
    other: Env | HostEnv = envs.find("gym:FrozenLake-v1", ("is_slippery=False",), ("mine:Wrapper",))
    print(other.spec.actions, tree.nbytes(params), optim.adam(partial(schedules.linear, start=1.0, end=0.1, steps=9)))
    config = training.Config(num_envs=1, capacity=100, learning_starts=10, batch_size=4)
    program = training.Program(env, off_policy.algorithm(config, agent, replay.ring.buffer(100), optimizer))
    _, step = env.reset(random.uniform(random.key(0), (3, env.spec.noise)))
    print(program.config.capacity)
    return masking.greedy(vmap(network.apply)(params, step.obs[:, None])[:, 0], step.legal)


SETTINGS = Settings(env="catch", env_kwargs=("time_limit=5",), wrappers=("mine:Wrapper",), hidden=(8, 8))
'''

WRONG = """
import fdqn
from fdqn.experiment.settings import Settings

fdqn.train(progress="yes")
Settings(gamma="0.9")
fdqn.resume("run", steps="many").path.nothing
"""


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_types_of_a_user_program_are_checked(checker, tmp_path):
    """Check that strict checkers accept a correct program and reject wrong arguments, because of `py.typed`."""
    pytest.importorskip(checker)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    strict = ["--strict"] if checker == "mypy" else ["--pythonpath", sys.executable]
    check = [sys.executable, "-m", checker, *strict]
    environment = {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    run = dict(cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    accepted, rejected = (subprocess.run([*check, name], **run) for name in ("program.py", "wrong.py"))
    assert accepted.returncode == 0, accepted.stdout
    assert rejected.stdout.count("error:") >= 4, rejected.stdout


# Distributions


@pytest.mark.slow
def test_the_wheel_and_the_sdist_train(tmp_path):
    """Build both, install each without its dependencies, and train with the C++ loop that it holds."""
    if not all(map(importlib.util.find_spec, ("build", "setuptools", "pip"))):
        pytest.skip("needs build, setuptools and pip")
    source = tmp_path / "source"
    kept = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", "build", "runs")
    shutil.copytree(ROOT, source, ignore=kept)
    python = [sys.executable, "-m"]
    subprocess.run([*python, "build", "--no-isolation", "--outdir", tmp_path / "dist", source], check=True)
    (sdist,), (wheel,) = (tmp_path / "dist").glob("*.tar.gz"), (tmp_path / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "fdqn/py.typed", "fdqn/compile/cpu_groups.cpp"} <= names
    for distribution in (wheel, sdist):
        site, folder = tmp_path / f"{distribution.suffix[1:]}-site", tmp_path / f"{distribution.suffix[1:]}-folder"
        folder.mkdir()
        install = ["pip", "install", "--no-deps", "--no-build-isolation", "--target", site, distribution]
        subprocess.run([*python, *install], check=True)
        code = "import sys, fdqn.cli; print(fdqn.__file__, file=sys.stderr); sys.exit(fdqn.cli.main())"
        line = shlex.split("train --env catch --seeds 2 --steps 2000 --evaluate-episodes 2 --out run --json")
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(
            [sys.executable, "-c", code, *line],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(str(site))
        assert json.loads(done.stdout)["failed_seeds"] == []
        engine = json.loads((folder / "run" / "config.json").read_text())["engine"]["engine"]
        assert engine == compile.resolve("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        assert "falling back" not in done.stderr
