"""Runs as model repositories of the Hugging Face Hub: the folder, its model card, loading and uploading."""

import ast
import base64
import dataclasses
import http.server
import inspect
import json
import re
import shlex
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open

import fdqn
from fdqn import cli
from fdqn.cli import parse
from fdqn.experiment import assemble, hub, model_card, repeat, settings
from fdqn.testing.asserts import assert_trees_close


@pytest.fixture
def workdir(small_run, tmp_path, monkeypatch):
    """Change to a folder with `run`, a copy of the small run."""
    shutil.copytree(small_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def repository(workdir):
    """Return a folder written from the run."""
    assert cli.main(["export", "run", "--hub", "repo"]) == 0
    return Path("repo")


class Api:
    """A fake `huggingface_hub.HfApi` that records its calls."""

    calls: list

    def __init__(self, **given):
        self.calls.append(("init", given))

    def create_repo(self, *args, **named):
        self.calls.append(("create_repo", args, named))
        return f"https://huggingface.co/{args[0]}"

    def upload_folder(self, **named):
        self.calls.append(("upload_folder", named))


@pytest.fixture
def api(monkeypatch):
    """Replace the package huggingface_hub by a fake with a token."""
    monkeypatch.setattr(Api, "calls", [], raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api, get_token=lambda: "hf_token"))
    return Api


def test_the_folder_can_be_read_as_the_run(repository):
    """Read the folder with `Run.load`, `eval`, `report` and `export` as a run folder."""
    run, shared = fdqn.Run.load("run"), fdqn.Run.load("repo")
    assert_trees_close(shared.params, run.params, 0, 0)
    assert (shared.summary, shared.settings.out) == (run.summary, "repo")
    np.testing.assert_array_equal(shared.curve.values, run.curve.values)
    assert shared.policy(seed=6)(np.zeros(4)) == run.policy(seed=6)(np.zeros(4))
    assert cli.main(["eval", "repo", "--episodes", "1"]) == 0
    assert cli.main(["export", "repo", "--seed", "5", "--out", "a.pt"]) == 0
    assert sorted(file.name for file in repository.iterdir()) == [
        "README.md", "config.json", "curve.png", "metrics.csv", "model.safetensors", "policy.pt2", "summary.json",
    ]  # fmt: skip


def test_the_folder_contains_no_path_of_this_machine(repository):
    paths = [str(repository.absolute().parent).encode(), str(Path(fdqn.__file__).parents[1]).encode()]
    assert json.loads(Path("run/config.json").read_text())["settings"]["out"].startswith("/")
    for file in repository.iterdir():
        assert not any(workdir in file.read_bytes() for workdir in paths), file


def test_metadata_of_the_parameters(repository):
    with safe_open(repository / "model.safetensors", "pt") as file:
        found = file.metadata()
    assert found == {
        "format": "pt", "library": "fdqn", "algorithm": "dqn", "env": "cartpole", "seeds": "[5, 6]", "steps": "100",
    }  # fmt: skip


def test_the_policy_of_the_median_seed_is_exported_by_default(repository):
    run = fdqn.Run.load("run")
    returns = run.summary["final_return"]["per_seed"]
    lower = int(np.argmin(returns))
    obs = torch.linspace(-1, 1, 12).reshape(3, 4)
    q = torch.export.load(repository / "policy.pt2").module()(obs)
    expected = [run.network.apply({name: x[i] for name, x in run.params.items()}, obs) for i in (0, 1)]
    torch.testing.assert_close(q, expected[lower])
    assert not torch.allclose(expected[0], expected[1])


def card(folder):
    return (folder / "README.md").read_text()


def test_the_command_of_the_card_parses_to_the_settings(repository):
    """Parse the printed command to the settings of the run, except its folder."""
    (command,) = re.findall(r"```sh\n(.*?)\n```", card(repository))
    parsed = parse.parse(shlex.split(command)[1:])
    ours = fdqn.Run.load("run").settings
    assert settings.to_json(parsed.settings) == {**settings.to_json(ours), "out": None}


@pytest.mark.parametrize(
    "given",
    [
        dict(algorithm="pqn", hidden=(8, 8), orthogonal=False),
        dict(algorithm="rainbow", seeds=3, v_max=10.0),
        dict(max_grad_norm=float("inf"), learning_rate_schedule="constant", double=False),
        dict(algorithm="dqn", noisy=True),
    ],
)
def test_commands_parse_to_their_settings(given):
    chosen = settings.make(given)
    assert parse.parse(shlex.split(repeat.command(chosen))[1:]).settings == chosen


def test_code_of_the_card_runs(repository, monkeypatch):
    """Run both code blocks as printed, with downloads replaced by the folder."""
    downloads = SimpleNamespace(
        snapshot_download=lambda name, local_dir: shutil.copytree("repo", local_dir),
        hf_hub_download=lambda name, file: f"repo/{file}",
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", downloads)
    blocks = re.findall(r"```python\n(.*?)```", card(repository), re.S)
    assert len(blocks) == 2
    names = {}
    for code in blocks:
        exec(code.replace('local_dir="repo"', 'local_dir="copy"'), names)
        names.setdefault("greedy", names["policy"])
    assert int(names["action"]) == names["greedy"](np.zeros(4))


@pytest.mark.parametrize("name", ['my "best" run', "$HOME's", "für 1", "<b>", "-.x", "…"])
def test_code_of_the_card_is_valid_for_any_name_of_the_folder(workdir, name):
    assert cli.main(["export", "run", "--hub", name]) == 0
    for code in re.findall(r"```python\n(.*?)```", card(Path(name)), re.S):
        (repository,) = re.findall('"OWNER/(.*?)"', code)
        assert re.fullmatch("[A-Za-z0-9_][A-Za-z0-9._-]*", repository)
        ast.parse(code)


def test_the_card_has_the_arguments_of_the_environment_and_the_extension(workdir, monkeypatch):
    config = json.loads(Path("run/config.json").read_text())
    config["plan"]["steps"] = 300
    Path("run/config.json").write_text(json.dumps(config))
    run, env = fdqn.Run.load("run"), assemble.env(fdqn.Run.load("run").settings)
    run = dataclasses.replace(run, settings=dataclasses.replace(run.settings, env_kwargs=("time_limit='a|b`c'",)))
    monkeypatch.setattr(assemble, "env", lambda settings: env)
    run.summary.pop("gymnasium_return")
    text = model_card.text(run, "me/run", 5)
    assert "steps per seed in `` cartpole (time_limit='a|b`c') ``. Trained" in text
    assert "\n| greedy, `` cartpole (time_limit='a\\|b`c') `` | " in text
    assert "\n| `env_kwargs` | `` (\"time_limit='a\\|b`c'\",) `` |\n" in text
    assert """name: "cartpole (time_limit='a|b`c')"\n      type: "cartpole"\n""" in text
    assert "\nfdqn resume RUN --steps 300\n```" in text


def test_means_and_deviations_over_seeds():
    returns = [491.0, 500.0, None, 480.0]
    mean, deviation = np.mean([491, 500, 480]), np.std([491, 500, 480], ddof=1)
    assert model_card.mean_text({"per_seed": returns}) == f"{mean:.2f} +/- {deviation:.2f}"
    assert model_card.mean_text({"per_seed": [3.0]}) == "3.00"
    assert model_card.mean_text({"per_seed": [None]}) == "none"


def test_huggingface_hub_parses_the_card(repository):
    """Find the library, the tags and the results with `ModelCard` of huggingface_hub."""
    package = pytest.importorskip("huggingface_hub")
    run = fdqn.Run.load("run")
    data = package.ModelCard.load(repository / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("fdqn", "reinforcement-learning", "DQN")
    assert {"CartPole-v1", "deep-reinforcement-learning", "reinforcement-learning", "fdqn"} <= set(data.tags)
    mean, iqm = data.eval_results
    assert (mean.dataset_name, mean.dataset_type, mean.metric_type) == ("CartPole-v1", "CartPole-v1", "mean_reward")
    assert mean.metric_value == model_card.mean_text(run.summary["gymnasium_return"])
    assert re.fullmatch(r"\d+\.\d\d \+/- \d+\.\d\d", mean.metric_value)
    assert iqm.metric_type == "iqm_reward"


def test_calls_match_the_signatures_of_huggingface_hub():
    """Bind the calls that the fake records to the signatures of huggingface_hub."""
    package = pytest.importorskip("huggingface_hub")
    api = package.HfApi(library_name="fdqn", library_version="0")
    inspect.signature(api.create_repo).bind("a/b", repo_type="model", exist_ok=True)
    inspect.signature(api.upload_folder).bind(repo_id="a/b", folder_path="x", commit_message="y")
    assert package.get_token() is None or isinstance(package.get_token(), str)


class Hub(http.server.BaseHTTPRequestHandler):
    """A fake Hub on this machine, which creates a repository and accepts a commit of small files."""

    def do_GET(self):
        self.reply({})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else b""
        while "chunked" in self.headers.get("Transfer-Encoding", "") and (size := int(self.rfile.readline(), 16)):
            body += self.rfile.read(size)
            self.rfile.readline()
        address = f"http://127.0.0.1:{self.server.server_port}/me/poles"
        if self.path.endswith("/preupload/main"):
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            self.reply({"files": [{"path": file["path"], **mode} for file in json.loads(body)["files"]]})
        elif self.path.endswith("/commit/main"):
            self.server.commit = [json.loads(line)["value"] for line in body.decode().splitlines()]
            self.reply({"commitUrl": f"{address}/commit/1", "commitOid": "1" * 40, "success": True})
        elif self.path.endswith("/repos/create"):
            self.server.created = json.loads(body), self.headers["Authorization"]
            self.reply({"url": address})
        else:
            self.reply({"errors": [], "warnings": []})

    def reply(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given):
        pass


def test_huggingface_hub_uploads_the_folder_to_a_server(repository, monkeypatch):
    """Upload with huggingface_hub to a server on this machine; every file arrives unchanged."""
    package = pytest.importorskip("huggingface_hub")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(package.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_token")
        url = hub.push(repository, "me/poles")
        server.shutdown()
    assert url.endswith("/me/poles")
    assert server.created == ({"name": "poles", "organization": "me", "type": "model"}, "Bearer hf_token")
    header, *files = server.commit
    assert header["summary"] == "Upload a run of fdqn"
    sent = {file["path"]: base64.b64decode(file["content"]) for file in files}
    assert sent == {file.name: file.read_bytes() for file in repository.iterdir()}


def test_push_creates_the_repository_and_uploads_the_folder(workdir, api, capsys):
    assert cli.main(["export", "run", "--hub", "repo", "--push", "me/poles", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["url"], written["hub"]) == ("https://huggingface.co/me/poles", "repo")
    (_, made), (_, created, how), (_, uploaded) = api.calls
    assert made["library_name"] == "fdqn"
    assert (created, how) == (("me/poles",), {"repo_type": "model", "exist_ok": True})
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/poles", workdir / "repo")
    assert 'snapshot_download("me/poles", local_dir="poles")' in card(Path("repo"))


def test_a_failed_upload_keeps_the_folder_and_prints_the_command_to_upload_it(workdir, api, capsys, monkeypatch):
    def fail(self, **named):
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(Api, "upload_folder", fail)
    assert cli.main(["export", "run", "--hub", "repo", "--push", "me/poles"]) == 1
    assert capsys.readouterr().err == (
        "fdqn: push: expected to upload to me/poles, got no route to host; repo is complete, and "
        "hf upload me/poles repo uploads it\n"
    )
    fdqn.Run.load("repo")


@pytest.mark.parametrize(("kind", "shown"), [("gif", "![Episodes](replay.gif)"), ("mp4", 'src="replay.mp4"')])
def test_a_video_of_the_run_folder_is_shown(workdir, kind, shown):
    (workdir / "run" / f"play.{kind}").write_bytes(b"video")
    assert cli.main(["export", "run", "--hub", "repo"]) == 0
    assert shown in card(Path("repo"))
    assert Path(f"repo/replay.{kind}").read_bytes() == b"video"


def test_a_given_video_is_shown(workdir):
    (workdir / "run" / "play.gif").write_bytes(b"other")
    Path("best.mp4").write_bytes(b"video")
    assert cli.main(["export", "run", "--hub", "repo", "--video", "best.mp4"]) == 0
    assert Path("repo/replay.mp4").read_bytes() == b"video"
    assert not Path("repo/replay.gif").exists()


def test_failed_seeds_are_named_and_not_exported(workdir):
    path = workdir / "run" / "summary.json"
    summary = json.loads(path.read_text())
    summary["failed_seeds"] = [5]
    summary["failures"] = [{"seed": 5, "step": 50, "cause": "loss"}]
    for name in ("final_return", "train_return", "gymnasium_return"):
        summary[name]["per_seed"][0] = None
    path.write_text(json.dumps(summary))
    assert hub.write(workdir / "run", workdir / "repo")["seed"] == 6
    assert "Failed seeds are excluded: 5." in card(Path("repo"))
    assert "| 5 | failed | failed | failed |" in card(Path("repo"))
    with pytest.raises(ValueError, match="seed: expected a seed that has not failed, got 5"):
        hub.write(workdir / "run", workdir / "other", seed=5)


def test_a_failed_write_leaves_no_folder(workdir, monkeypatch, capsys):
    def fail(run, *given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_card, "text", fail)
    assert cli.main(["export", "run", "--hub", "repo"]) == 1
    assert capsys.readouterr().err == "fdqn: hub: expected to write 'repo', got No space left on device\n"
    assert [path.name for path in workdir.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--hub run", "hub: expected a folder that does not exist yet, got 'run'; choose another --hub"),
        ("--hub no/repo", "hub: expected a folder in an existing folder, got 'no/repo'; create no first"),
        ("--hub repo --seed 9", "seed: expected a trained seed, 5 to 6, got 9"),
        ("--hub repo --video a.avi", "video: expected an existing .mp4 or .gif file, got 'a.avi'"),
        ("--hub repo --video a.gif", "video: expected an existing .mp4 or .gif file, got 'a.gif'"),
        ("--hub repo --push poles", "push: expected a repository OWNER/NAME, got 'poles'"),
    ],
)
def test_invalid_input_is_refused_in_one_line(workdir, api, capsys, flags, message):
    assert cli.main(["export", "run", *shlex.split(flags)]) == 1
    assert capsys.readouterr().err == f"fdqn: {message}\n"
    assert [path.name for path in workdir.iterdir()] == ["run"]
    assert api.calls == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "Missing from fdqn export: --seed INT, or --hub PATH for a model repository"),
        ("--hub repo --out a.pt", "flag --out: expected none with --hub, got 'a.pt'; omit one of them"),
        ("--hub repo --prefix net.", "flag --prefix: expected none with --hub, got 'net.'; omit one of them"),
        ("--seed 5 --out a.pt --push me/poles", "flag --push: expected --hub with it, got none"),
        ("--seed 5 --out a.pt --video a.gif", "flag --video: expected --hub with it, got none"),
    ],
)
def test_conflicting_flags_are_usage_errors(workdir, capsys, flags, message):
    assert cli.main(["export", "run", *shlex.split(flags)]) == 2
    assert capsys.readouterr().err == f"fdqn: {message}\n"
    assert [path.name for path in workdir.iterdir()] == ["run"]


def test_a_missing_token_or_package_is_reported_before_writing(workdir, monkeypatch, capsys):
    words = ["export", "run", "--hub", "repo", "--push", "me/poles"]
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api, get_token=lambda: None))
    assert cli.main(words) == 1
    assert "push: expected a token of the Hugging Face Hub, got none; run hf auth login" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert cli.main(words) == 1
    assert "push: expected the package huggingface_hub, got none; pip install 'fdqn[hub]'" in capsys.readouterr().err
    assert [path.name for path in workdir.iterdir()] == ["run"]
