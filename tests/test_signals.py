"""Tests of signals that end a command: its files, messages and exit code."""

import contextlib
import json
import math
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fdqn import cli, compile, training
from fdqn.compile import toolchain
from fdqn.experiment import events, history, process, progress, results, run_folder, session
from fdqn.training import evaluate, host

TINY = shlex.split(
    "--seeds 2 --steps 300 --learning-starts 100 --report-every 100 --batch-size 8 --hidden 8 --no-compile"
)
FILES = {"checkpoints", "config.json", "metrics.csv", "params.safetensors", "summary.json", "curve.png"}
ROOT = Path(cli.__file__).resolve().parents[2]
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 138, "SIGUSR2": 140}


pytestmark = pytest.mark.usefixtures("light_runs")


@pytest.fixture(autouse=True)
def default_hangup():
    """Handle SIGHUP as in a terminal, also if the tests were started by nohup, under which runs ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(name):
    os.kill(os.getpid(), getattr(signal, name))


def handlers():
    return [signal.getsignal(number) for number in process.SIGNALS]


def checkpoints(path):
    return sorted(int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdigit())


@pytest.fixture
def at_first_report(monkeypatch):
    """Return a function that registers an action to take after the first report of a run."""

    def patch(action):
        def record(*given):
            for i, report in enumerate(original(*given)):
                if i == 0:
                    action()
                yield report

        original = history.record
        monkeypatch.setattr(history, "record", record)

    return patch


@pytest.mark.parametrize("name", list(CODES))
def test_a_signal_ends_a_run_like_ctrl_c(tmp_path, capsys, at_first_report, name):
    at_first_report(lambda: send(name))
    before, path = handlers(), tmp_path / "run"
    assert cli.main(["train", *TINY, "--json", "--out", str(path)]) == CODES[name]
    out, err = capsys.readouterr()
    summary = json.loads((path / "summary.json").read_text())
    assert json.loads(out) == summary
    assert 100 <= summary["steps"] < 300
    assert checkpoints(path)[-1] == summary["steps"]
    assert {p.name for p in path.iterdir()} == FILES
    assert f"stopped at {summary['steps']} of 300 steps; the files in {path} are complete" in err
    assert f"; continue with: fdqn resume {path}" in err
    assert "Traceback" not in err
    assert handlers() == before


def test_a_run_stopped_by_sigterm_continues_exactly(tmp_path, at_first_report, monkeypatch):
    assert cli.main(["train", *TINY, "--out", str(tmp_path / "whole")]) == 0
    at_first_report(lambda: send("SIGTERM"))
    assert cli.main(["train", *TINY, "--out", str(tmp_path / "run")]) == 143
    assert cli.main(["resume", str(tmp_path / "run")]) == 143, "a resumed run handles the signal too"
    monkeypatch.undo()
    assert cli.main(["resume", str(tmp_path / "run")]) == 0
    params = [(tmp_path / name / "params.safetensors").read_bytes() for name in ("whole", "run")]
    assert params[0] == params[1]


@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM"), ("SIGTERM", "SIGINT")])
def test_a_second_signal_of_either_kind_stops_at_once(tmp_path, capsys, monkeypatch, first, second):
    def slow(*given):
        functions = original(*given)

        def collect(*state):
            for name in (first, second):
                send(name)
                time.sleep(0.01)
            return pytest.fail("the run continued")

        return functions._replace(collect=collect)

    original = run_folder.functions
    monkeypatch.setattr(run_folder, "functions", slow)
    assert cli.main(["train", *TINY, "--out", str(tmp_path / "run")]) == CODES[second]
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert f"continue from the last checkpoint with: fdqn resume {tmp_path / 'run'}" in err
    assert err.splitlines()[-1] == "fdqn: " + ("interrupted" if second == "SIGINT" else "stopped by SIGTERM")
    assert not list(tmp_path.rglob("*.part"))


def test_sigterm_during_the_final_evaluation(tmp_path, capsys, monkeypatch):
    def slow(*given, **more):
        send("SIGTERM")
        time.sleep(0.01)
        return original(*given, **more)

    original = evaluate.greedy_on_host
    monkeypatch.setattr(evaluate, "greedy_on_host", slow)
    path = tmp_path / "run"
    assert cli.main(["train", *TINY, "--out", str(path)]) == 143
    err = capsys.readouterr().err
    assert f"stopped at 300 of 300 steps; the files in {path} are complete" in err
    assert {p.name for p in path.iterdir()} == FILES
    assert json.loads((path / "summary.json").read_text())["final_return"]["iqm"] > 0


def test_a_signal_while_drawing_does_not_leave_incomplete_files(tmp_path, capsys, monkeypatch):
    def slow(*given):
        send("SIGTERM")
        return original(*given)

    original = results.picture
    monkeypatch.setattr(results, "picture", slow)
    assert cli.main(["train", *TINY, "--out", str(tmp_path / "run")]) == 143
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES
    assert "stopped at 300 of 300 steps" in capsys.readouterr().err


def test_a_periodic_evaluation_is_finished_after_a_signal(tmp_path, capsys, monkeypatch):
    """Check that the evaluation is finished, because a resumed run does not repeat it. A second signal would end it."""
    played = evaluate.greedy

    def slow(*given, **more):
        send("SIGTERM")
        time.sleep(0.01)
        return played(*given, **more)

    flags = [*TINY, "--evaluate-every", "100", "--evaluate-episodes", "1"]
    assert cli.main(["train", *flags, "--out", str(tmp_path / "whole")]) == 0
    path = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "greedy", slow)
        assert cli.main(["train", *flags, "--out", str(path)]) == 143
    assert f"; continue with: fdqn resume {path}" in capsys.readouterr().err
    assert len((path / "evaluations.csv").read_text().splitlines()) > 1
    assert cli.main(["resume", str(path)]) == 0
    assert (path / "evaluations.csv").read_text() == (tmp_path / "whole" / "evaluations.csv").read_text()


@pytest.mark.parametrize("more", [[], ["--video", "a.gif"]])
def test_sigterm_during_eval_leaves_no_partial_files(tmp_path, capsys, monkeypatch, more):
    assert cli.main(["train", *TINY, "--out", str(tmp_path / "run")]) == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "_FIRST_LINE", math.inf)  # a slow machine would print progress
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    capsys.readouterr()
    original = evaluate.greedy if not more else os.fsync

    def signalled(*given, **more):
        send("SIGTERM")
        time.sleep(0.01)
        return original(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(*((evaluate, "greedy") if not more else (os, "fsync")), signalled)
        code = cli.main(["eval", "run", "--episodes", "1", "--json", *more])
    assert code == 143
    out, err = capsys.readouterr()
    assert err == "fdqn: stopped by SIGTERM\n"
    assert bool(out) == bool(more)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


# Compiling


def test_an_interrupt_ends_compiler_processes():
    started = []

    def compiling():
        with compile.compiling():
            assert compile.is_compiling()
            started.append(subprocess.Popen(["sh", "-c", "sleep 60 & wait"]))
            time.sleep(0.2)  # until there is a grandchild process
            raise KeyboardInterrupt

    before = subprocess.Popen(["sleep", "60"])
    others = toolchain._descendants()
    try:
        with pytest.raises(KeyboardInterrupt):
            compiling()
        assert not compile.is_compiling()
        assert started[0].wait(timeout=1) < 0
        assert before.poll() is None, "processes started before continue"
        assert not {pid for pid in toolchain._descendants() if toolchain._is_running(pid)} - others
    finally:
        before.kill()
        before.wait()


def test_a_signal_while_compiling_keeps_collected_steps(tmp_path, capsys, monkeypatch):
    """Check that the steps before learning are saved, because the state is valid until `cycle` runs."""

    def compiled(*given):
        functions = original(*given)

        def cycle(*state):
            with compile.compiling():
                send("SIGTERM")
                time.sleep(5)
            return pytest.fail("the run continued")

        return functions._replace(cycle=cycle)

    original, path = run_folder.functions, tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "functions", compiled)
        assert cli.main(["train", *TINY, "--out", str(path)]) == 143
    assert f"stopped at 100 of 300 steps; the files in {path} are complete; continue with: fdqn resume {path}" in (
        capsys.readouterr().err
    )
    assert checkpoints(path) == [100]
    assert cli.main(["resume", str(path)]) == 0
    assert cli.main(["train", *TINY, "--out", str(tmp_path / "whole")]) == 0
    params = [(tmp_path / name / "params.safetensors").read_bytes() for name in ("whole", "run")]
    assert params[0] == params[1]


def test_a_signal_before_the_first_iteration(tmp_path, capsys, monkeypatch):
    def compiled(*given):
        functions = original(*given)

        def collect(*state):
            with compile.compiling():
                send("SIGHUP")
                time.sleep(5)

        return functions._replace(collect=collect)

    original, path = run_folder.functions, tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "functions", compiled)
        assert cli.main(["train", *TINY, "--json", "--out", str(path)]) == 129
    out, err = capsys.readouterr()
    assert out == ""
    assert f"stopped at 0 of 300 steps; the files in {path} are complete; continue with: fdqn resume {path}" in err
    assert cli.main(["resume", str(path)]) == 0


def test_a_state_within_an_iteration_is_not_saved(tmp_path, capsys, monkeypatch):
    """Interrupt the compilation of `learn`, which starts in the middle of an iteration in host environments."""

    def compiled(*given):
        def learn(*state):
            with compile.compiling():
                send("SIGTERM")
                time.sleep(5)

        return original(*given)._replace(learn=learn)

    original, path = host.vmapped, tmp_path / "run"
    flags = "--env gym:CartPole-v1 --steps-per-cycle 2 --num-envs 2"
    with monkeypatch.context() as patched:
        patched.setattr(host, "vmapped", compiled)
        assert cli.main(["train", *TINY, *flags.split(), "--out", str(path)]) == 143
    assert "Traceback" not in capsys.readouterr().err
    assert checkpoints(path) == []
    assert cli.main(["resume", str(path)]) == 0


def test_a_stopped_run_does_not_start_compiling():
    def collect(*given):
        return pytest.fail("the function was called")

    stop = process.Stop()
    watched = session._watched("collect", collect, stop, events.ignore)
    stop.signal = signal.SIGTERM
    with pytest.raises(training.Stopped):
        watched()


# Handlers


def test_ignored_signals_and_other_handlers_are_kept(monkeypatch):
    def others(*given):
        return None

    old = [signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGUSR1, others)]
    try:
        with process.handling(process.interrupt):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, "ignored, as under nohup"
            assert signal.getsignal(signal.SIGUSR1) == others
            assert signal.getsignal(signal.SIGTERM) == process.interrupt
    finally:
        signal.signal(signal.SIGHUP, old[0])
        signal.signal(signal.SIGUSR1, old[1])


def test_a_forked_worker_can_be_terminated():
    """Check that the handlers are not active in workers, which vector environments end by SIGTERM."""
    with process.handling(process.interrupt), process.stopping(print):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        time.sleep(0.1)
        worker.terminate()
        worker.join(5)
        code = worker.exitcode
        worker.kill()
    assert code == -signal.SIGTERM


def test_the_command_runs_in_a_thread(tmp_path, capsys):
    codes = []
    command = ["train", *TINY, "--out", str(tmp_path / "run")]
    thread = threading.Thread(target=lambda: codes.append(cli.main(command)))
    thread.start()
    thread.join()
    assert codes == [0]
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES
    thread = threading.Thread(target=lambda: codes.append(cli.main(["eval", str(tmp_path / "run"), "--episodes", "1"])))
    thread.start()
    thread.join()
    assert codes == [0, 0]


# As a process


def start_process(path, *flags, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}
    command = [sys.executable, "-m", "fdqn", "train", *flags, "--steps", "100000000", "--json", "--out", str(path)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_output(running, text):
    lines = [""]
    while text not in lines[-1]:
        lines.append(running.stderr.readline())
        assert lines[-1], "".join(lines)


@pytest.mark.slow
def test_sigterm_to_a_process(tmp_path):
    running = start_process(tmp_path / "run", *TINY[:2], *TINY[4:])
    try:
        wait_for_output(running, "step 200 ")
        running.terminate()
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 143
    assert "Traceback" not in err
    assert f"; continue with: fdqn resume {tmp_path / 'run'}" in err
    assert checkpoints(tmp_path / "run") == [json.loads(out)["steps"]]


def processes_of(path):
    """Return the processes whose command line contains a path."""
    lines = {}
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines[int(file.parent.name)] = file.read_bytes()
    return [pid for pid, line in lines.items() if os.fsencode(path) in line]


@pytest.mark.slow
def test_sigterm_to_a_process_that_compiles(tmp_path):
    cache = tmp_path / "cache"
    running = start_process(tmp_path / "run", *TINY[:2], *TINY[4:-1], TORCHINDUCTOR_CACHE_DIR=str(cache))
    try:
        wait_for_output(running, "compiling")
        until = time.monotonic() + 60
        while not processes_of(cache):
            assert time.monotonic() < until, "no compiler was started"
            time.sleep(0.05)
        session = [pid for pid in toolchain._descendants() if pid != running.pid]
        running.terminate()
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 143
    assert "Traceback" not in err
    assert "stopped at 0 of 100,000,000 steps" in err
    assert processes_of(cache) == []
    assert not [pid for pid in session if toolchain._is_running(pid)]
