"""Tests of runs from Python: events, early ends, settings, progress and results."""

import base64
import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import fdqn
from fdqn import cli, compile, envs
from fdqn.experiment import assemble, events, history, population, process, progress, results, run_folder, session
from fdqn.experiment.presets import PRESETS
from fdqn.experiment.settings import Settings, make
from fdqn.storage import checkpoint
from fdqn.training import evaluate

TINY = dict(
    env="catch", seeds=2, steps=300, learning_starts=100, report_every=100, checkpoint_every=200, batch_size=8,
    hidden=(8,), evaluate_episodes=2, compile=False,
)  # fmt: skip
FILES = {"checkpoints", "config.json", "metrics.csv", "params.safetensors", "summary.json", "curve.png"}


PICTURE = results.picture


@pytest.fixture(autouse=True)
def here(request, tmp_path, monkeypatch, light_runs):
    """Change to an empty folder."""
    monkeypatch.chdir(tmp_path)
    if "draws" in request.node.name:
        monkeypatch.setattr(results, "picture", PICTURE)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a run, and return it with the events that it emitted."""
    seen, path = [], tmp_path_factory.mktemp("session") / "run"
    run = fdqn.train(**TINY, evaluate_every=200, out=path, progress=False, on_event=seen.append)
    return run, seen


def names(seen):
    return [type(event).__name__ for event in seen]


def is_documented(seen):
    """Return True if the sequence of events is one that `fdqn.experiment.events` documents."""
    one = "|".join(["Compiled", "Checkpointed", "SeedFailed", "Evaluated", "Reported", "Notice"])
    closing = "(Notice )*(EvaluationStarted ((EvaluationProgress|Notice) )*EvaluationEnded (Evaluated )?)?"
    grammar = f"Prepared (Notice )*Started (Notice )*Training (({one}) )*({closing})*(Finished )?(Stopped )?"
    return re.fullmatch(grammar, "".join(f"{name} " for name in names(seen))) is not None


# Events


def test_the_sequence_of_events_is_lawful(made):
    run, seen = made
    assert is_documented(seen)
    counts = {name: names(seen).count(name) for name in set(names(seen))}
    assert counts["Reported"] == 3
    assert counts["Checkpointed"] == 2
    assert counts["Evaluated"] == 3, "two during training and the final one"
    assert "Stopped" not in counts
    steps = [event.step for event in seen if isinstance(event, events.Reported)]
    assert steps == [100, 200, 300]
    assert seen[-1] == events.Finished(run.path, run.summary)


@pytest.mark.parametrize("plant", ["late", "twice", "early"])
def test_an_invalid_sequence_of_events_is_detected(made, plant):
    seen = list(made[1])
    {"late": lambda: seen.append(seen.pop(0)), "twice": lambda: seen.append(seen[-1]), "early": seen.reverse}[plant]()
    assert not is_documented(seen)


def test_events_agree_with_the_files(made):
    run, seen = made
    reports = [event for event in seen if isinstance(event, events.Reported)]
    np.testing.assert_allclose(run.curve.values, [event.returns for event in reports], rtol=1e-6)
    assert [event.updates.tolist() for event in reports] == [[0, 0], [10, 10], [20, 20]]
    *_, final = [event for event in seen if isinstance(event, events.Evaluated)]
    assert final.returns.mean(1).tolist() == run.summary["final_return"]["per_seed"]
    kept = [event for event in seen if isinstance(event, events.Checkpointed)]
    assert [event.step for event in kept] == [200, 300]
    assert {event.path for event in kept} == set(checkpoint.newest(run.path / "checkpoints"))


def test_compiled_functions_are_announced(monkeypatch):
    """Check the names of the engine; the functions here are not compiled."""
    monkeypatch.setattr(compile, "compiled", lambda program, *how: fdqn.training.vmapped(program))
    monkeypatch.setattr(compile, "player", lambda *given: None)
    seen = []
    fdqn.train(**TINY | {"compile": True}, progress=False, on_event=seen.append)
    assert is_documented(seen)
    compiled = {event.function for event in seen if isinstance(event, events.Compiled)}
    assert compiled == {"noise", "collect", "cycle"}


def test_warnings_of_fdqn_are_notices_even_if_warnings_are_errors(monkeypatch):
    """Check that each is emitted once, with any filters of the process."""

    def warning(program, *how):
        for _ in range(2):
            warnings.warn_explicit("an engine is missing", UserWarning, compile.__file__, 1, "fdqn.compile.engines")
        return fdqn.training.vmapped(program)

    monkeypatch.setattr(compile, "compiled", warning)
    monkeypatch.setattr(compile, "player", lambda *given: None)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fdqn.train(**TINY | {"compile": True}, progress=False, on_event=seen.append)
    assert [event.text for event in seen if isinstance(event, events.Notice)].count("an engine is missing") == 1


def test_a_refused_resume_changes_no_file(made):
    path = made[0].path
    before = (path / "config.json").read_bytes()
    with pytest.raises(TypeError, match=r"steps: expected an integer, got 1000\.0"):
        fdqn.resume(path, steps=1e3, progress=False)
    assert (path / "config.json").read_bytes() == before


def test_a_policy_can_be_pickled(made):
    obs = np.zeros((1, 10, 5), dtype=np.float32)
    assert pickle.loads(pickle.dumps(made[0].policy(1)))(obs) == made[0].policy(1)(obs)


def test_a_loaded_run_does_not_depend_on_the_current_folder(made, here, monkeypatch):
    monkeypatch.chdir(made[0].path.parent)
    run = fdqn.Run.load("run")
    monkeypatch.chdir(here)
    assert set(run.params) == set(made[0].params)


def test_the_final_evaluation_of_a_host_environment_is_announced():
    seen = []
    run = fdqn.train(**TINY | {"env": "gym:CartPole-v1"}, progress=False, on_event=seen.append)
    assert is_documented(seen)
    assert any("evaluating 2 greedy episodes" in event.text for event in seen if isinstance(event, events.Notice))
    assert run.summary["final_return"]["iqm"] > 0


def test_a_failed_seed_is_an_event(monkeypatch):
    def failing(settings, report):
        return {1: (150, "loss")} if report.step >= 200 else {}

    monkeypatch.setattr(history, "failed_seeds", failing)
    seen = []
    run = fdqn.train(**TINY, progress=False, on_event=seen.append)
    failed = [event for event in seen if isinstance(event, events.SeedFailed)]
    assert failed == [events.SeedFailed(1, 150, "loss", "its loss is not finite", "seed 1")], (
        "the event is emitted once"
    )
    assert is_documented(seen)
    with pytest.raises(ValueError, match="seed: expected a seed that has not failed, got 1"):
        run.policy(1)


# How a run ends


@pytest.mark.parametrize("kind", [events.Prepared, events.Reported, events.EvaluationProgress])
def test_an_exception_in_on_event_ends_the_run_and_is_raised(made, here, kind):
    """Check that it does not count as an error of the environment, and that the run can be resumed."""

    def receive(event):
        if isinstance(event, kind):
            raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$") as caught:
        fdqn.train(**TINY, out="run", progress=False, on_event=receive)
    assert caught.value.__cause__ is None
    if kind is events.Prepared:
        assert not Path("run").exists()
        return
    assert not (here / "run" / "summary.json").exists()
    run = fdqn.resume("run", progress=False)
    assert {p.name for p in run.path.iterdir()} == FILES
    assert_trained_as(made[0], run)


def assert_trained_as(expected, run):
    assert (run.path / "params.safetensors").read_bytes() == (expected.path / "params.safetensors").read_bytes()


def test_stop_ends_a_run_early_and_resume_continues_it(made, here):
    seen = []

    def stop():
        return any(isinstance(event, events.Reported) for event in seen)

    run = fdqn.train(**TINY, out="run", progress=False, on_event=seen.append, stop=stop)
    assert is_documented(seen)
    assert names(seen)[-2:] == ["Finished", "Stopped"]
    assert run.summary["steps"] < 300
    run = fdqn.resume("run", progress=False)
    assert run.summary["steps"] == 300
    assert_trained_as(made[0], run)


@pytest.mark.parametrize("lost", [("final_return",), ("gymnasium_return",), ("final_return", "gymnasium_return")])
def test_an_interrupted_evaluation_is_repeated(small_run, here, lost):
    """Compare with the run whose evaluation was not interrupted."""
    path = shutil.copytree(small_run, here / "run")
    expected = json.loads((path / "summary.json").read_text())
    given = json.loads((path / "summary.json").read_text())
    given["final_return"] |= {"per_seed": [None, None], "iqm": None} if "final_return" in lost else {}
    if "gymnasium_return" in lost:
        del given["gymnasium_return"]
    (path / "summary.json").write_text(json.dumps(given))
    assert results.lacks_evaluation(path)
    assert not results.lacks_evaluation(small_run)
    seen = []
    run = fdqn.resume(path, progress=False, on_event=seen.append)
    assert {**run.summary, "wall_seconds": 0} == {**expected, "wall_seconds": 0}
    assert names(seen).count("EvaluationStarted") == len(lost)
    assert seen[-1] == events.Finished(path, run.summary)
    seen.clear()
    fdqn.resume(path, progress=False, on_event=seen.append)
    assert names(seen) == ["Notice"], "the run is finished"


def test_a_run_whose_seeds_all_failed_is_not_evaluated_again(small_run, here):
    path = shutil.copytree(small_run, here / "run")
    given = json.loads((path / "summary.json").read_text())
    assert results.is_evaluated(given)
    given["final_return"] |= {"per_seed": [None, None]}
    assert not results.is_evaluated(given)
    assert results.is_evaluated(given | {"failed_seeds": [5, 6]})
    assert not results.is_evaluated(given | {"failed_seeds": [5]})
    assert results.gymnasium_name(Settings(env="cartpole")) == "CartPole-v1"
    assert results.gymnasium_name(Settings(env="catch")) is None


def test_evaluations_are_added_to_a_summary(small_run, here):
    path = shutil.copytree(small_run, here / "run")
    given, before = results.read_settings(path), results.read(path).summary
    played = evaluate.not_played(2, 1)._replace(returns=np.array([[3.0], [5.0]]), limit=9)
    added = run_folder.add_evaluation(path, given, played, None, 1.0)
    assert added["final_return"]["per_seed"] == [3.0, 5.0]
    assert added["gymnasium_return"] == before["gymnasium_return"]
    assert results.read(path).summary == added
    best = [{"seed": 5, "learner": 1}, {"seed": 6, "learner": None}]
    assert population.with_returns(best, added)["final_return"]["per_seed"] == [5.0, None]


def test_a_stop_before_the_first_iteration(here):
    """Check that there is no run to return, and that nothing is compiled."""
    with pytest.raises(ValueError, match=r"stop: expected at least one training iteration, .*: fdqn resume .*run"):
        fdqn.train(**TINY | {"compile": True}, out="run", progress=False, stop=lambda: True)


def test_ctrl_c_completes_the_files_and_raises(here, capsys):
    before = [signal.getsignal(number) for number in process.SIGNALS]
    seen = []

    def receive(event):
        seen.append(event)
        if isinstance(event, events.Reported) and event.step == 100:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"the files in .*run are complete; continue with: fdqn resume .*run"):
        fdqn.train(**TINY, out="run", on_event=receive)
    assert is_documented(seen)
    assert {p.name for p in Path("run").iterdir()} == FILES
    assert fdqn.Run.load("run").summary["steps"] < 300
    assert [signal.getsignal(number) for number in process.SIGNALS] == before
    assert "press Ctrl-C again to stop immediately" in capsys.readouterr().err


def test_only_ctrl_c_is_handled():
    """Leave other signals than SIGINT to the owner of the process."""
    others = [number for number in process.SIGNALS if number != signal.SIGINT]
    before, during = [signal.getsignal(number) for number in others], []
    fdqn.train(**TINY, progress=False, on_event=lambda event: during.append([signal.getsignal(n) for n in others]))
    assert all(handlers == before for handlers in during)


def test_global_settings_of_torch_are_restored(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    flushed = []
    fdqn.train(**TINY, progress=False, on_event=lambda event: flushed.append(bool(torch.tensor(1e-40) * 1 == 0)))
    assert flushed[-1], "denormal numbers are 0 during training"
    assert torch.tensor(1e-40) * 1 != 0
    assert torch.backends.cudnn.deterministic is False
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (precision, tf32)


def in_threads(*calls):
    """Return the results or exceptions of calls, each in a separate thread."""
    results = [None] * len(calls)

    def one(i):
        try:
            results[i] = calls[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_run_in_a_thread(made, capsys):
    (run,) = in_threads(lambda: fdqn.train(**TINY, out="run"))
    assert run.summary["final_return"] == made[0].summary["final_return"]
    assert_trained_as(made[0], run)


def test_two_runs_in_one_folder_at_the_same_time(here):
    results = in_threads(*[lambda: fdqn.train(**TINY, out="run", progress=False)] * 2)
    run, error = sorted(results, key=lambda x: isinstance(x, Exception))
    assert {p.name for p in run.path.iterdir()} == FILES
    assert isinstance(error, ValueError)
    assert re.match("out: expected a folder that (does not exist yet|can be made), got 'run'", str(error))


def test_resuming_a_running_run_is_refused(here):
    errors = []

    def receive(event):
        if isinstance(event, events.Reported) and not errors:
            with pytest.raises(checkpoint.CheckpointError, match="in use") as caught:
                fdqn.resume("run", progress=False)
            errors.append(caught.value)

    fdqn.train(**TINY, out="run", progress=False, on_event=receive)
    assert errors


# Settings


def test_settings_or_keywords(monkeypatch):
    given = []
    monkeypatch.setattr(session, "train", lambda settings, *rest: given.append(settings))
    fdqn.train(env="acrobot", gamma=0.9, hidden=[8], out=Path("a"), progress=False)
    fdqn.train(Settings(env="acrobot", gamma=0.9, hidden=(8,), out="a"), progress=False)
    assert given[0] == given[1]
    fdqn.train(preset="minatar", env="minatar:breakout", seeds=3, progress=False)
    assert given[2] == Settings(**PRESETS["minatar"].settings | {"env": "minatar:breakout", "seeds": 3})


def test_the_signature_names_every_setting():
    import inspect

    given = inspect.signature(fdqn.train).parameters
    assert set(Settings.__dataclass_fields__) <= set(given)
    assert given["gamma"].default == Settings.gamma


def test_a_run_equals_that_of_the_command_line(made):
    command = (
        "train --env catch --seeds 2 --steps 300 --learning-starts 100 --report-every 100 --checkpoint-every 200 "
        "--batch-size 8 --hidden 8 --evaluate-episodes 2 --evaluate-every 200 --no-compile --out cli"
    )
    assert cli.main(command.split()) == 0
    assert_trained_as(made[0], fdqn.Run.load("cli"))
    tables = [(path / "metrics.csv").read_text().splitlines() for path in (Path("cli"), made[0].path)]
    timeless = [[row.rsplit(",", 1)[0] for row in table] for table in tables]
    assert timeless[0] == timeless[1]


# Progress


def test_progress_is_printed_on_standard_error(here, capsys):
    fdqn.train(**TINY, out="run")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert "\x1b" not in err
    assert lines[0].startswith("catch: 2 seeds x 300 steps")
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["100", "300"], (
        "the first report and the last one"
    )
    assert lines[-1].startswith(f"{here}/run: greedy return ")
    fdqn.resume("run", progress=False)
    assert capsys.readouterr() == ("", "")


def test_progress_in_a_notebook_is_a_bar_or_lines(monkeypatch):
    from rich.console import Console

    for widgets in (True, False):
        monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name, found=widgets: found or None)
        console = Console(force_jupyter=True)
        with contextlib.redirect_stdout(None):
            assert progress.Display(console)._live is widgets


# Results


def test_a_run_is_read_from_its_folder(made):
    run = fdqn.Run.load(str(made[0].path))
    assert (run.path, run.settings, run.summary) == (made[0].path, made[0].settings, made[0].summary)
    assert {name: x.shape for name, x in run.params.items()} == {
        "0.weight": (2, 8, 50), "0.bias": (2, 8), "2.weight": (2, 3, 8), "2.bias": (2, 3),
    }  # fmt: skip
    assert run.params is run.params, "parameters are read once"
    assert repr(run).startswith(f"Run({str(run.path)!r}: catch, 2 seeds, 300 steps, greedy return ")


@pytest.mark.parametrize("seed", [0, 1])
def test_a_policy_acts_greedily_on_arrays(made, seed):
    run = made[0]
    policy, (index, spec) = run.policy(seed), (seed, envs.find("catch").spec)
    rng = np.random.default_rng(seed)
    obs = rng.integers(0, 2, (16, *spec.obs_shape)).astype(np.float32)
    q = run.network.apply({name: x[index] for name, x in run.params.items()}, torch.from_numpy(obs)).numpy()
    actions = policy(obs)
    assert (actions.dtype, actions.tolist()) == (np.int64, q.argmax(-1).tolist())
    assert [policy(x) for x in obs] == actions.tolist()
    assert type(policy(obs[0])) is int
    assert policy(obs[:0]).shape == (0,)
    assert policy(obs.astype(np.float64)).tolist() == actions.tolist()
    legal = np.ones((16, 3), bool)
    legal[np.arange(16), actions] = False
    assert policy(obs, legal).tolist() == np.where(legal, q, -np.inf).argmax(-1).tolist()
    assert policy(obs[0], legal[0]) == policy(obs, legal)[0]


def test_a_policy_repeats_the_final_evaluation(made):
    """Compare the actions of each step and the return in the summary."""
    run = made[0]
    policy, seed = run.policy(1), slice(1, 2)
    params, keys = {name: x[seed] for name, x in run.params.items()}, assemble.keys(run.settings)[seed]
    *steps, last = evaluate.device_steps(envs.find("catch"), run.network, params, keys, 2)
    for before in steps:
        q = run.network.apply({name: x[0] for name, x in params.items()}, before.obs[0])
        assert policy(before.obs[0].numpy()).tolist() == q.argmax(-1).tolist()
    assert last.returns.mean() == pytest.approx(run.summary["final_return"]["per_seed"][1])


def test_a_run_draws_itself(made, here):
    figure = made[0].plot("curve.png")
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_ylabel() for axes in figure.subfigs[0].axes] == ["training return"]
    html = made[0]._repr_html_()
    drawn = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    assert drawn.startswith(b"\x89PNG")
    assert "2 seeds" in html


def test_params_of_a_damaged_run(made, here):
    import shutil

    path = shutil.copytree(made[0].path, "copy")
    (Path(path) / "params.safetensors").write_bytes(b"nonsense")
    run = fdqn.Run.load(path)
    with pytest.raises(ValueError, match=r"params\.safetensors which cannot be read"):
        run.policy(0)
    config = json.loads((Path(path) / "config.json").read_text())
    (Path(path) / "config.json").write_text(json.dumps({**config, "settings": {}}))
    with pytest.raises(ValueError, match=r"config\.json that is invalid"):
        fdqn.Run.load(path)


NUMBERS = np.array([1.0, 2.0, np.nan])
REPORTED = events.Reported(
    step=2_000, steps=4_000, seconds=1.5, updates=np.arange(3), episodes=np.arange(3), returns=NUMBERS,
    lengths=NUMBERS, loss=NUMBERS, q=NUMBERS, grad_norm=NUMBERS, epsilon=NUMBERS, learning_rate=NUMBERS,
    failed=np.array([False, True, False]), updates_per_second=1234.5,
)  # fmt: skip
GREEDY = events.Evaluated(2_000, "catch", np.array([[3.0, 4.0], [9.0, 9.0], [np.nan, np.nan]]))
STOPPED = events.Stopped(Path("run"), 2_000, 4_000)
TEXTS = [
    (progress.bytes_text(1_500), "1.5 kB"),
    (progress.bytes_text(2_500_000), "2.5 MB"),
    (progress.status_text(REPORTED), "return 1.0  loss 1  1,234 seed-updates/s"),
    (progress.status_text(REPORTED, GREEDY), "return 1.0  greedy 3.5  loss 1  1,234 seed-updates/s"),
    (progress.status_text(REPORTED._replace(returns=NUMBERS * np.nan, loss=NUMBERS * np.nan)),
     "no episode finished yet  1,234 seed-updates/s"),
    (progress.stopped_text(STOPPED),
     "stopped at 2,000 of 4,000 steps; the files in run are complete; continue with: fdqn resume run"),
    (progress.stopped_text(STOPPED._replace(path=Path("my run"))),
     "stopped at 2,000 of 4,000 steps; the files in my run are complete; continue with: fdqn resume 'my run'"),
    (progress.stopped_text(STOPPED._replace(step=4_000)),
     "stopped at 4,000 of 4,000 steps; the files in run are complete"),
    (progress.prepared_text(events.Prepared(Settings(seeds=2), "cpu", 36_900, 300, 15_000)),
     "cartpole: 2 seeds x 100,000 steps on cpu; 36.9 kB, replay 2 x 300 rows of 50 B: "
     "15.0 kB per seed, 30.0 kB in total"),
    (progress.prepared_text(events.Prepared(make({"algorithm": "pqn", "seeds": 2}), "cpu", 36_900, 512, 15_360)),
     "cartpole: 2 seeds x 100,000 steps on cpu; 36.9 kB, rollout 2 x 512 rows of 30 B: "
     "15.4 kB per seed, 30.7 kB in total"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_texts_of_events(text, expected):
    assert text == expected


@pytest.mark.usefixtures("light_runs")
def test_an_incomplete_folder_is_trained_and_a_stopped_run_resumed(tmp_path):
    """Changes apply to both; None and arguments of `resume` that are no settings change nothing."""
    sizes = dict(num_envs=4, batch_size=4, hidden=(8,), learning_starts=20, report_every=50, evaluate_episodes=2)
    given = make({**sizes, "seeds": 2, "steps": 100, "compile": False, "out": str(tmp_path / "run")})
    changes = {"evaluate_episodes": 3, "device": None, "env": None, "fallback": False}
    assert session.changed(given, changes).evaluate_episodes == 3
    assert session.changed(given, {"device": None, "fallback": True}) == given
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.csv").touch()  # left by a process that was killed
    stopped = session.train_or_resume(tmp_path / "run", given, changes, stop=lambda: True)
    assert stopped.summary["steps"] < 100
    run = session.train_or_resume(tmp_path / "run", given, changes)
    assert run.summary["steps"] == 100
    assert run.settings.evaluate_episodes == 3
