"""Programs on a GPU. Run with `pytest -m gpu` on a machine with a CUDA device.

Checks that need no GPU are in `test_cuda_structure.py`, `test_cuda_kernels.py` and `test_compile.py`.
"""

import json
import warnings

import numpy as np
import pytest
import torch

from fdqn import cli, compile, envs, random, training, tree
from fdqn.compile import cuda_graphs
from fdqn.experiment import assemble, memory, run_folder
from fdqn.experiment.settings import Settings
from fdqn.testing import asserts, examples, programs
from fdqn.training import evaluate, host, streams, transfer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_gpu(nested):
    return tree.map(lambda x: x.cuda(), nested)


def on_cpu(nested):
    return tree.map(lambda x: x.cpu(), nested)


def test_noise_equals_that_on_the_cpu_bit_for_bit():
    program, (_, keys) = examples.program(), examples.seeds(3)
    asserts.assert_trees_equal(training.noise(program, keys, 2, 5), on_cpu(training.noise(program, keys.cuda(), 2, 5)))
    asserts.assert_trees_equal(random.split(keys, 3), random.split(keys.cuda(), 3).cpu())


def test_compiled_noise_equals_that_on_the_cpu_bit_for_bit():
    """Compile the noise together with its keys."""
    program, (_, keys) = examples.program(), examples.seeds(3)
    draw = compile.compiled(program).noise
    for first in (2, 7):
        asserts.assert_trees_equal(training.noise(program, keys, first, 5), on_cpu(draw(keys.cuda(), first, 5)))


@pytest.mark.parametrize("step", ["collect", "cycle"])
def test_compiled_donated_steps_equal_eager_steps_on_the_cpu(step):
    program, (hyper, keys) = examples.program(), examples.seeds(3)
    state = training.init(program, on_gpu(hyper), keys.cuda())
    assert {x.device.type for x in tree.leaves(state)} == {"cuda"}
    expected = on_cpu(state)
    noises = training.noise(program, keys, 0, 4)
    fast, plain = getattr(compile.compiled(program), step), getattr(training.vmapped(program), step)
    for i in range(4):
        here = tree.index(noises, slice(i, i + 1))
        expected, state = plain(expected, here), fast(state, on_gpu(here))
    asserts.assert_trees_close(expected, on_cpu(state), atol=1e-4, rtol=1e-4)


def test_a_run_with_captured_graphs_equals_one_without(monkeypatch):
    """Compare bits, with warm-up, hard target updates, and different numbers of training iterations."""
    program, (hyper, keys) = examples.program(target_period=4), examples.seeds(3)
    recorded, original = [], cuda_graphs._captured

    def counted(*given):
        recorded.append(1)
        return original(*given)

    monkeypatch.setattr(cuda_graphs, "_captured", counted)
    states = []
    for captures in (True, False):
        with monkeypatch.context() as patch:
            if not captures:
                patch.setattr(cuda_graphs, "captures", lambda xs: False)
            state = training.init(program, on_gpu(hyper), keys.cuda())
            states.append(on_cpu(programs.advance(program, state, 43, compile.compiled(program))))
    assert recorded
    # The spare entry of the ring is written in any order.
    kept = [s._replace(metrics=s.metrics._replace(returns=s.metrics.returns[:, :-1])) for s in states]
    asserts.assert_trees_equal(*kept)


def test_only_reports_synchronize_with_the_device():
    """Check that a run with captured graphs synchronizes with the device once per report."""
    program, (hyper, keys) = examples.program(target_period=4), examples.seeds(2)
    state = training.init(program, on_gpu(hyper), keys.cuda())
    reports = training.run(program, state, 10**6, compile.compiled(program), report_every=8 * program.config.env_steps)
    for _ in range(30):
        next(reports)
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        try:
            torch.cuda.set_sync_debug_mode("warn")  # warns that it is a prototype
            waits.clear()
            for _ in range(5):
                next(reports)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([wait for wait in waits if "synchronizing CUDA operation" in str(wait.message)]) <= 5


def captured_lengths(monkeypatch):
    """Record the numbers of steps of the graphs that are captured."""
    lengths, original = [], cuda_graphs._captured

    def recorded(graph, leaves, xs, pool):
        lengths.append(len(xs[0]))
        return original(graph, leaves, xs, pool)

    monkeypatch.setattr(cuda_graphs, "_captured", recorded)
    return lengths


def test_many_iterations_of_a_thousand_seeds_are_captured_in_one_graph(monkeypatch):
    lengths = captured_lengths(monkeypatch)
    settings = Settings(seeds=1024, capacity=256, batch_size=32, hidden=(8,), steps=4_000, device="cuda")
    program, device = assemble.program(settings), torch.device("cuda")
    state = training.init(program, assemble.hyper(settings, device), assemble.keys(settings).to(device))
    for _ in training.run(program, state, settings.steps, compile.compiled(program), report_every=2_000):
        pass
    assert max(lengths) >= 16
    assert len(lengths) <= 4


@torch.library.custom_op("fdqn_test::waits", mutates_args=())
def waits(x: torch.Tensor) -> torch.Tensor:
    """Read a value, which a capture does not allow and a trace does not show."""
    return x + float(x.sum() * 0)


@waits.register_fake
def _(x):
    return torch.empty_like(x)


def test_a_step_that_cannot_be_captured_runs_without_a_graph():
    scanned, state = compile.scan(lambda s, x: waits(s) + x), torch.zeros(2, device="cuda")
    stream = torch.cuda.current_stream()
    scanned(state, torch.ones(3, device="cuda"))
    with pytest.warns(UserWarning, match="CUDA graph: expected to capture 3 steps, got: "):
        scanned(state, torch.ones(3, device="cuda"))
    assert torch.cuda.current_stream() == stream
    for _ in range(3):
        scanned(state, torch.ones(2, device="cuda"))
    assert state.tolist() == [12.0, 12.0]
    other = compile.scan(lambda s, x: s + x)  # other steps are still captured
    for _ in range(3):
        other(state, torch.ones(2, device="cuda"))
    assert state.tolist() == [18.0, 18.0]


def test_a_host_constant_in_a_step_is_refused():
    shift = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"expected every tensor on cuda:0, got a constant \[2\] torch.float32 on cpu"):
        compile.scan(lambda s, x: s + shift.to(s.device) * x)(
            torch.zeros(2, device="cuda"), torch.ones(3, device="cuda")
        )


def test_graphs_of_deleted_states_free_their_memory():
    scanned, held = compile.scan(lambda s, x: (s + x).sin().cumsum(0)), []
    for _ in range(12):
        state = torch.zeros(2**20, device="cuda")
        for _ in range(3):
            scanned(state, torch.ones(4, device="cuda"))
        del state
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
    assert held[-1] <= held[3]


def test_prepare_cuda_disables_tf32_and_makes_training_deterministic(monkeypatch):
    for name in ("deterministic", "benchmark", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    compile.prepare_cuda()
    generator = torch.Generator().manual_seed(1)
    images, weights = torch.rand(64, 16, 20, 20, generator=generator), torch.rand(32, 16, 3, 3, generator=generator)
    expected = torch.nn.functional.conv2d(images.double(), weights.double())
    torch.testing.assert_close(
        torch.nn.functional.conv2d(images.cuda(), weights.cuda()).cpu().double(), expected, rtol=1e-5, atol=1e-5
    )
    settings = Settings(env="minatar:breakout", seeds=2, capacity=200, batch_size=8, learning_starts=100, steps=1_000)
    ends = []
    for _ in range(2):
        program = assemble.program(settings)
        state = training.init(program, on_gpu(assemble.hyper(settings)), assemble.keys(settings).cuda())
        *_, report = training.run(program, state, settings.steps, compile.compiled(program), report_every=1_000)
        ends.append(on_cpu(report.state.learner))
    asserts.assert_trees_equal(*ends)


def test_evaluation_on_the_gpu_equals_that_on_the_cpu():
    """Compare compiled evaluation, with keys on the CPU."""
    program, (_, keys) = examples.program(), examples.seeds(3)
    params = program.network.init(random.fold_in(keys, streams.NETWORK))
    player = compile.player(program.env, program.network, 0.1)
    returns = evaluate.greedy_on_device(
        program.env, program.network, on_gpu(params), keys, 5, fast=player, epsilon=0.1
    ).returns
    expected = evaluate.greedy_on_device(program.env, program.network, params, keys, 5, epsilon=0.1).returns
    np.testing.assert_array_equal(returns, expected)


# Environments on the host


def test_transfers_through_pinned_memory_are_complete():
    """Transfer while the device is busy and the host overwrites the source."""
    device = torch.device("cuda")
    upload, download, sums = transfer.uploads(device), transfer.downloads(device), []
    busy = torch.rand(2048, 2048, device=device)
    for i in range(50):
        batch = {"obs": torch.full((3, 1000), float(i)), "ended": torch.full((5,), i % 2 == 0)}
        there = upload(batch)
        batch["obs"].fill_(-1.0)
        batch["ended"].fill_(False)
        busy = busy @ busy / busy.norm()
        sums.append((there, there["obs"].sum() / 3000))
    for i, (there, mean) in enumerate(sums):
        assert download(mean).item() == i
        assert there["obs"].unique().tolist() == [float(i)]
        assert there["ended"].tolist() == [i % 2 == 0] * 5


@pytest.mark.parametrize("compiles", [True, False])
def test_a_run_in_gymnasium_starts_like_one_on_the_cpu(compiles):
    settings = Settings(
        env="gym:CartPole-v1", seeds=2, steps=120, num_envs=3, batch_size=8, capacity=60, learning_starts=12,
        target_period=4, hidden=(8,), compile=compiles,
    )  # fmt: skip
    ends = []
    for device in ("cpu", "cuda"):
        program = assemble.program(settings)
        vector_env = envs.find(settings.env).open(settings.seeds, settings.num_envs)
        state = training.init(program, tree.to(assemble.hyper(settings), device), assemble.keys(settings).to(device))
        functions = run_folder.functions(program, settings, vector_env)
        *_, report = training.run(program, host.start(program, vector_env, state), 120, functions, 30, at_once=1)
        ends.append(on_cpu(report.state))
        vector_env.close()
    cpu, gpu = ends
    assert gpu.learner.updates.min() > 0
    # Observations are equal as long as actions are random.
    torch.testing.assert_close(cpu.buffer.rows.obs[:, :12], gpu.buffer.rows.obs[:, :12], rtol=0, atol=0)


def test_available_memory_of_the_gpu():
    device = torch.device("cuda")
    free, total = memory.available(device)
    held = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert memory.available(device)[0] <= free - 2**27
    del held
    assert abs(memory.available(device)[0] - free) < 2**27
    assert free <= total == torch.cuda.get_device_properties(device).total_memory


def test_out_of_memory_on_the_gpu_is_reported_in_one_line(tmp_path, capsys, monkeypatch):

    monkeypatch.setattr(memory, "check_memory", lambda *given: 0)
    words = ["train", "--device=cuda", "--seeds=4096", "--capacity=10000000", "--steps=100000000"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 1
    assert "fdqn: out of memory; lower --seeds or --capacity" in capsys.readouterr().err


def test_the_command_trains_on_the_gpu(tmp_path, capsys):
    sizes = ["--seeds=2", "--steps=600", "--learning-starts=100", "--batch-size=8", "--hidden", "8"]
    assert cli.main(["train", "--device=cuda", "--json", *sizes, "--out", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out)["failed_seeds"] == []


def test_parameters_of_a_module_do_not_depend_on_the_device_or_change_the_generators():
    from fdqn import networks

    network = networks.from_module(lambda: torch.nn.Linear(3, 2))
    key = random.key(5)
    before = torch.cuda.get_rng_state()
    expected = network.init(key)
    with torch.device("cuda"):
        asserts.assert_trees_equal(expected, on_cpu(network.init(key.cuda())))
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_buffers_of_a_module_are_on_the_device_of_its_parameters():
    """Check also a program with captured steps, which must not copy from the host."""

    from fdqn import networks

    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.tensor([0.1, -0.2, 0.3, 0.0]))
            self.linear = torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(x + self.shift)

    network = networks.from_module(Shifted)
    program = examples.program(network=network, double=False)
    hyper, keys = examples.seeds(2)
    state = training.init(program, on_gpu(hyper), keys.cuda())
    (*_, report) = training.run(program, state, 600, compile.compiled(program), report_every=120)
    assert report.updates.min() > 0
    params, obs = tree.index(report.state.learner.params, 0), torch.ones(3, 4)
    expected = network.apply(on_cpu(params), obs)
    torch.testing.assert_close(network.apply(params, obs.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_dropout_on_the_gpu_equals_that_on_the_cpu():
    from fdqn import networks

    network = networks.from_module_with_dropout(lambda: torch.nn.Sequential(torch.nn.Dropout(0.3)))
    obs, key = torch.ones(5, 40), random.key(3)
    assert torch.equal(network.apply({}, obs, key), network.apply({}, obs.cuda(), key.cuda()).cpu())
