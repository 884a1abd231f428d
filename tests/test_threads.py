"""Compare several threads that compile and train, such as Optuna's `n_jobs`, with one thread."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch.func import grad, vmap

from fdqn import compile as edge
from fdqn import networks, random, training, tree
from fdqn.compile import ThreadPartition, cpu_groups
from fdqn.testing import asserts, examples

THREADS = 4


def at_once(job):
    """Return the results of `job(0), job(1), ...`, started together in one thread each."""
    together = Barrier(THREADS)

    def run(i):
        together.wait()
        return job(i)

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(run, range(THREADS)))


def test_threads_that_compile_at_the_same_time():
    w = torch.linspace(-1, 1, 12).reshape(3, 4)
    gradients = [vmap(grad(lambda w, x, i=i: ((w * x).sin() ** (i + 2)).sum())) for i in range(THREADS)]
    results = at_once(lambda i: edge.compile(gradients[i])(w, w + 1))
    for gradient, result in zip(gradients, results, strict=True):
        torch.testing.assert_close(result, gradient(w, w + 1))


def test_one_compiled_function_called_by_several_threads():
    """Call a function that is compiled once for each signature."""
    f = edge.compile(lambda x: x.cumsum(-1) * 2)
    for x, result in zip(
        [torch.ones(3 + i % 2) for i in range(THREADS)], at_once(lambda i: f(torch.ones(3 + i % 2))), strict=True
    ):
        assert torch.equal(result, f(x))


@pytest.mark.skipif(not cpu_groups.supported(torch.device("cpu")), reason="groups of seeds are not supported here")
def test_one_compiled_scan_called_by_several_threads():
    """Check that no thread changes another thread's state."""
    scan = edge.scan_vmapped(lambda s, x: s + x, lambda count: ThreadPartition(1, 2, 1))
    states, xs = [torch.full((2,), 1000.0 * i) for i in range(THREADS)], torch.ones(3, 2)

    def job(i):
        for _ in range(50):
            scan(states[i], xs)

    at_once(job)
    for i, state in enumerate(states):
        assert state.tolist() == [1000.0 * i + 150] * 2


@pytest.mark.slow
def test_training_in_threads_equals_training_alone():
    def trained(i):
        program, (hyper, keys) = examples.program(hidden=(8 + i,)), examples.seeds(3)
        state = training.init(program, hyper, keys)
        *_, report = training.run(program, state, 600, edge.compiled(program), report_every=200)
        return tree.clone(report.state)

    for i, result in enumerate(at_once(trained)):
        asserts.assert_trees_equal(trained(i), result)


def test_modules_in_threads_equal_modules_in_one_thread():
    """Threads share PyTorch's generator and the parameters of a module during a call."""
    network = networks.from_module(lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)))
    keys, obs = [random.key(i) for i in range(THREADS)], torch.randn(5, 4)

    def job(i):
        results = []
        for _ in range(100):
            params = network.init(keys[i])
            results.append((params, network.apply(params, obs)))
        return results

    expected = [(network.init(key), network.apply(network.init(key), obs)) for key in keys]
    for i, results in enumerate(at_once(job)):
        for result in results:
            asserts.assert_trees_equal(expected[i], result)
