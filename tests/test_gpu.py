"""The same program on a GPU. Run with `pytest -m gpu` where there is one."""

import json
import warnings

import pytest
import torch

from fdqn import cli, compile, random, train, tree
from fdqn.testing import asserts, examples, programs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_gpu(nested):
    return tree.map(lambda x: x.cuda(), nested)


def on_cpu(nested):
    return tree.map(lambda x: x.cpu(), nested)


def test_noise_is_the_same_bit_for_bit():
    program, (_, keys) = examples.program(), examples.lanes(3)
    asserts.assert_trees_equal(train.noise(program, keys, 2, 5), on_cpu(train.noise(program, keys.cuda(), 2, 5)))
    asserts.assert_trees_equal(random.split(keys, 3), random.split(keys.cuda(), 3).cpu())


@pytest.mark.parametrize("step", ["collect", "cycle"])
def test_a_compiled_donated_step_equals_the_eager_one_on_the_cpu(step):
    program, (hyper, keys) = examples.program(), examples.lanes(3)
    state = train.init(program, on_gpu(hyper), keys.cuda())
    assert {x.device.type for x in tree.leaves(state)} == {"cuda"}
    expected = on_cpu(state)
    noises = train.noise(program, keys, 0, 4)
    fast, plain = getattr(compile.compiled(program), step), getattr(train.vmapped(program), step)
    for i in range(4):
        here = tree.index(noises, slice(i, i + 1))
        expected, state = plain(expected, here), fast(state, on_gpu(here))
    asserts.assert_trees_close(expected, on_cpu(state), atol=1e-4, rtol=1e-4)


def test_a_captured_run_equals_an_uncaptured_one(monkeypatch):
    """Bit for bit, with warm-up, hard copies, recurring and odd numbers of cycles."""
    program, (hyper, keys) = examples.program(target_period=4), examples.lanes(3)
    recorded, original = [], compile._captured

    def counted(*given):
        recorded.append(1)
        return original(*given)

    monkeypatch.setattr(compile, "_captured", counted)
    states = []
    for captures in (True, False):
        with monkeypatch.context() as patch:
            if not captures:
                patch.setattr(compile, "_captures", lambda xs: False)
            state = train.init(program, on_gpu(hyper), keys.cuda())
            states.append(on_cpu(programs.advance(program, state, 43, compile.compiled(program))))
    assert recorded
    # The ring's spare place takes what is not kept, in no order.
    kept = [s._replace(metrics=s.metrics._replace(returns=s.metrics.returns[:, :-1])) for s in states]
    asserts.assert_trees_equal(*kept)


def test_a_report_reads_the_host_and_nothing_else_does():
    """In a run whose graphs are captured, a report reads the device once."""
    program, (hyper, keys) = examples.program(target_period=4), examples.lanes(2)
    state = train.init(program, on_gpu(hyper), keys.cuda())
    reports = train.run(program, state, 10**6, compile.compiled(program), report_every=8 * program.config.env_steps)
    for _ in range(30):
        next(reports)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            for _ in range(5):
                next(reports)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([wait for wait in waits if "synchronizing CUDA operation" in str(wait.message)]) <= 5


def test_memory_that_runs_out_is_said_in_a_sentence(tmp_path, capsys, monkeypatch):
    from fdqn import build

    monkeypatch.setattr(build, "check_memory", lambda *given: 0)
    words = ["train", "--device=cuda", "--seeds=4096", "--capacity=10000000", "--steps=100000000"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 1
    assert "fdqn: out of memory; lower --seeds or --capacity" in capsys.readouterr().err


def test_the_command_trains(tmp_path, capsys):
    sizes = ["--seeds=2", "--steps=600", "--learning-starts=100", "--batch-size=8", "--hidden", "8"]
    assert cli.main(["train", "--device=cuda", "--json", *sizes, "--out", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out)["failed_seeds"] == []


def test_a_module_s_parameters_do_not_depend_on_the_device_and_leave_the_generators_alone():
    from fdqn import networks

    network = networks.from_module(lambda: torch.nn.Linear(3, 2))
    key = random.key(5)
    before = torch.cuda.get_rng_state()
    expected = network.init(key)
    with torch.device("cuda"):
        asserts.assert_trees_equal(expected, on_cpu(network.init(key.cuda())))
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_the_constants_of_a_module_are_where_its_parameters_are():
    """Also in a program whose steps are captured, where nothing may be copied from the host."""
    from functools import partial

    from fdqn import dqn, losses, networks

    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.tensor([0.1, -0.2, 0.3, 0.0]))
            self.linear = torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(x + self.shift)

    network = networks.from_module(Shifted)
    program = examples.program()._replace(network=network, loss=partial(dqn.q_learning, network.apply, losses.squared))
    hyper, keys = examples.lanes(2)
    state = train.init(program, on_gpu(hyper), keys.cuda())
    (*_, report) = train.run(program, state, 600, compile.compiled(program), report_every=120)
    assert report.updates.min() > 0
    params, obs = tree.index(report.state.learner.params, 0), torch.ones(3, 4)
    expected = network.apply(on_cpu(params), obs)
    torch.testing.assert_close(network.apply(params, obs.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_dropout_drops_the_same_on_the_gpu():
    from fdqn import networks

    network = networks.from_module_with_dropout(lambda: torch.nn.Sequential(torch.nn.Dropout(0.3)))
    obs, key = torch.ones(5, 40), random.key(3)
    assert torch.equal(network.apply({}, obs, key), network.apply({}, obs.cuda(), key.cuda()).cpu())
