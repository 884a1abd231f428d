"""Groups of seeds on separate threads: results do not depend on the groups, and groups take their steps in order."""

import ctypes
import os
import shutil
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.func import vmap

from fdqn import compile as edge
from fdqn import training, tree
from fdqn.compile import ThreadPartition, aot, cpu_groups, toolchain
from fdqn.experiment import assemble
from fdqn.experiment.settings import Settings
from fdqn.testing import asserts, examples

pytestmark = pytest.mark.skipif(not cpu_groups.supported(torch.device("cpu")), reason="needs groups on threads")


def step(state, x):
    """Take a step of one seed with products, a sum, an integer, a flag and rows written in place."""
    return {
        "m": state["m"] * 0.5 + x["u"].outer(x["u"]),
        "total": state["total"] + x["u"].sum().double(),
        "count": state["count"] + x["n"],
        "odd": (state["count"] + x["n"]) % 2 == 1,
        "rows": state["rows"].index_put((state["count"] % 5,), x["u"]),
    }


def started(count):
    state = {
        "m": torch.zeros(count, 3, 3),
        "total": torch.zeros(count, dtype=torch.float64),
        "count": torch.arange(count),
        "odd": torch.zeros(count, dtype=torch.bool),
        "rows": torch.zeros(count, 5, 3),
    }
    return state


def noise(cycles, count):
    generator = torch.Generator().manual_seed(cycles * count)
    u = torch.randint(8, (cycles, count, 3), generator=generator) / 8  # sums of these are exact in any order
    return {"u": u, "n": torch.randint(9, (cycles, count), generator=generator)}


@pytest.mark.parametrize(
    "parts", [ThreadPartition(*x) for x in ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 3, 1), (6, 1, 2))], ids=str
)
def test_groups_equal_the_vmapped_scan(parts):
    """Compare all seeds and steps, with slices of longer noise, and alternating states and lengths."""
    scanned, together = edge.scan_vmapped(step, lambda count: parts), training.scan(vmap(step))
    states = [started(6), tree.map(lambda x: x.flip(0), started(6))]
    expected = tree.clone(states)
    for i, cycles in [(0, 1), (0, 7), (1, 3), (0, 3), (1, 1)]:
        xs = tree.index(noise(cycles + 4, 6), slice(2, 2 + cycles))
        addresses = [x.data_ptr() for x in tree.leaves(states[i])]
        assert scanned(states[i], xs) is states[i]
        assert [x.data_ptr() for x in tree.leaves(states[i])] == addresses
        expected[i] = together(expected[i], xs)
        asserts.assert_trees_equal(expected, states)


@pytest.mark.parametrize("parts", [ThreadPartition(2, 1, 1), ThreadPartition(2, 3, 1)], ids=str)
def test_asynchronous_groups_equal_the_vmapped_scan(parts):
    start, together = edge.scan_vmapped_async(step, lambda count: parts), training.scan(vmap(step))
    state = started(6)
    expected = tree.clone(state)
    for cycles in (1, 7, 3):
        xs = noise(cycles, 6)
        finished = start(state, xs)
        assert finished() is state
        expected = together(expected, xs)
        asserts.assert_trees_equal(expected, state)


def test_a_seed_does_not_depend_on_other_seeds_or_threads():
    """Compare bits of seeds alone and with others, for any number of threads."""
    program, (hyper, keys) = examples.program(), examples.seeds(4)
    noises = training.noise(program, keys, 0, 6)

    def after(count, *parts):
        here = slice(count)
        state = training.init(program, tree.index(hyper, here), keys[here])
        scanned = edge.scan_vmapped(partial(training.cycle, program), lambda _: ThreadPartition(*parts))
        return scanned(state, tree.map(lambda x: x[:, here], noises))

    whole = after(4, 1, 2, 1)
    for count, *parts in [(4, 1, 1, 1), (3, 1, 2, 1), (1, 1, 1, 1), (4, 2, 2, 1)]:
        asserts.assert_trees_equal(tree.index(whole, slice(count)), after(count, *parts))


def test_steps_that_need_python_run_ungrouped():
    """Swap leaves, which uses a custom operator that torch can call only through the interpreter."""

    def swap(state, x):
        return {"a": state["b"], "b": state["a"] + x}

    state = {"a": torch.zeros(4), "b": torch.ones(4)}
    expected = training.scan(vmap(swap))(state, torch.ones(3, 4))
    scanned = edge.scan_vmapped(swap, lambda count: ThreadPartition(2, 2, 1))
    asserts.assert_trees_equal(expected, scanned(tree.clone(state), torch.ones(3, 4)))


def test_a_step_is_compiled_once_and_cached(monkeypatch, tmp_path):
    """Check that a library is reused for other numbers of seeds and by later processes, but not for other steps."""
    monkeypatch.setattr(toolchain, "cache_dir", lambda: tmp_path)
    made, original = [], torch._inductor.aot_compile
    monkeypatch.setattr(
        torch._inductor, "aot_compile", lambda *given, **options: made.append(1) or original(*given, **options)
    )
    for count in (2, 8):
        state, xs = started(count), noise(2, count)
        wanted = training.scan(vmap(step))(state, xs)
        scanned = edge.scan_vmapped(step, lambda _: ThreadPartition(2, 2, 1))
        asserts.assert_trees_equal(wanted, scanned(tree.clone(state), xs))
        assert len(made) == 1
    assert len(list(tmp_path.glob("fdqn/*.so"))) == 1 + 1  # the step and the loop

    def compiled_again(*given, **options):
        raise ArithmeticError("compiled again")

    monkeypatch.setattr(torch._inductor, "aot_compile", compiled_again)
    other = edge.scan_vmapped(lambda s, x: step(s, x) | {"m": s["m"] + 1}, lambda _: ThreadPartition(2, 2, 1))
    with pytest.raises(ArithmeticError, match="compiled again"):
        other(started(2), noise(2, 2))


@pytest.mark.parametrize("works", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_next_step_is_compiled_by_another_process(monkeypatch, tmp_path, works):
    """Check also that the caller compiles if that process fails."""

    def later(state, x):
        return step(state, x) | {"total": state["total"] - 1}

    edge.scan_vmapped(step, lambda _: ThreadPartition(2, 2, 1))(started(4), noise(3, 4))
    (tmp_path / "fdqn").mkdir()
    for kept in (toolchain.cache_dir() / "fdqn").glob("*.so"):  # including the library of the first step
        (tmp_path / "fdqn" / kept.name).symlink_to(kept)
    monkeypatch.setattr(toolchain, "cache_dir", lambda: tmp_path)
    if not works:
        monkeypatch.setattr(sys, "executable", shutil.which("false"))
    made, original = [], aot.build
    monkeypatch.setattr(aot, "build", lambda order: made.append(1) or original(order))
    first = edge.scan_vmapped(step, lambda _: ThreadPartition(2, 2, 1), precompile=later)
    second = edge.scan_vmapped(later, lambda _: ThreadPartition(2, 2, 1))
    state, xs = started(4), noise(3, 4)
    expected = training.scan(vmap(later))(training.scan(vmap(step))(state, xs), xs)
    between = first(tree.clone(state), xs)
    assert len(toolchain.background) == 1
    with torch._inductor.config.patch("cpp.min_chunk_size", 512):  # as another compilation may
        asserts.assert_trees_equal(expected, second(between, xs))
    assert len(made) == (0 if works else 1)
    assert not toolchain.background


def test_captured_parameters_are_part_of_the_cache_key():
    """Capture frozen weights: the graph is the same, the numbers differ."""
    for value in (1.0, 2.0):
        weight = torch.nn.Parameter(torch.tensor(value), requires_grad=False)
        scanned = edge.scan_vmapped(lambda s, x, w=weight: s * w + x, lambda count: ThreadPartition(2, 1, 1))
        assert scanned(torch.ones(2), torch.zeros(1, 2)).tolist() == [value] * 2


def test_replaced_memory_of_a_tensor_is_used():
    scanned = edge.scan_vmapped(lambda s, x: s + x, lambda count: ThreadPartition(2, 1, 1))
    state = torch.zeros(2)
    scanned(state, torch.ones(1, 2))
    state.data = torch.full((2,), 10.0)
    assert scanned(state, torch.ones(1, 2)).tolist() == [11.0, 11.0]


def test_groups_that_do_not_divide_the_seeds_are_refused():
    with pytest.raises(ValueError, match="partition: expected groups of a size that divides 5 lanes"):
        edge.scan_vmapped(lambda s, x: s + x, lambda count: ThreadPartition(2, 1, 1))(torch.zeros(5), torch.ones(1, 5))


def test_a_truncated_library_is_named(tmp_path):
    (tmp_path / "cut.so").write_bytes(b"ELF")
    with pytest.raises(RuntimeError, match=r"does not load; delete .*cut\.so"):
        cpu_groups._model(tmp_path / "cut.so", 1)


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"compiler: expected a working C\+\+ compiler, got no-such-compiler"):
        cpu_groups._driver(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_waits_for_all_groups():
    """Check that Ctrl-C is raised after all seeds took all steps, so that the state is consistent."""
    scanned = edge.scan_vmapped(step, lambda count: ThreadPartition(2, 2, 1))
    state = started(8)
    scanned(state, noise(1, 8))
    start, xs = state["count"].clone(), noise(200_000, 8)
    begin = time.perf_counter()
    timer = threading.Timer(0.02, signal.raise_signal, [signal.SIGINT])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs of a shell
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start(), scanned(state, xs), time.sleep(5)  # sleeps on a machine that finishes before the signal
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.perf_counter() < begin + 5
    assert state["count"].tolist() == (start + xs["n"].sum(0)).tolist()


def test_a_fork_starts_new_threads():
    scanned = edge.scan_vmapped(step, lambda count: ThreadPartition(2, 2, 1))
    state, xs = scanned(started(4), noise(1, 4)), noise(2, 4)
    expected = training.scan(vmap(step))(state, xs)
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # if the child waits for threads that do not exist
        os._exit(not tree.equal(expected, scanned(state, xs)))
    assert os.waitpid(child, 0)[1] == 0


def test_a_failing_step_raises():
    scanned = edge.scan_vmapped(lambda rows, i: rows + rows.index_select(0, i), lambda count: ThreadPartition(2, 2, 1))
    rows = torch.zeros(4, 5)
    scanned(rows, torch.zeros(1, 4, 1, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"aot: a compiled step failed: .*out of bounds"):
        scanned(rows, torch.full((1, 4, 1), 7))


@pytest.mark.parametrize(
    ("hidden", "count", "threads", "expected"),
    [
        ((120, 84), 1, 2, ThreadPartition(1, 1, 1)),
        ((120, 84), 2, 2, ThreadPartition(1, 2, 1)),
        ((120, 84), 8, 2, ThreadPartition(4, 2, 1)),
        ((120, 84), 32, 2, ThreadPartition(4, 2, 1)),
        ((120, 84), 6, 2, ThreadPartition(3, 2, 1)),
        ((120, 84), 7, 2, ThreadPartition(1, 2, 1)),
        ((120, 84), 8, 16, ThreadPartition(1, 8, 1)),
        ((512, 512), 1, 2, ThreadPartition(1, 1, 2)),
        ((512, 512), 4, 16, ThreadPartition(1, 4, 4)),
        ((512, 512), 32, 2, ThreadPartition(1, 2, 1)),
    ],
)
def test_partition_depends_on_the_size_of_the_network(hidden, count, threads, expected):
    program = assemble.program(Settings(hidden=hidden))
    assert edge.partition(program, count, threads) == expected


@pytest.mark.parametrize(
    ("hidden", "count", "threads", "expected"),
    [
        ((120, 84), 96, 2, ThreadPartition(3, 2, 1)),
        ((120, 84), 48, 2, ThreadPartition(3, 2, 1)),
        ((120, 84), 6, 2, ThreadPartition(3, 2, 1)),
        ((512, 512), 96, 2, ThreadPartition(1, 2, 1)),
    ],
)
def test_group_sizes_divide_the_unit(hidden, count, threads, expected):
    program = assemble.program(Settings(hidden=hidden))
    assert edge.partition(program, count, threads, unit=6) == expected


def test_helpers_keep_their_number_of_threads():
    """Check also a helper that first computes after the caller has reset its own number: a new thread of torch uses the
    number that is set then, and three threads on two cores take twice as long."""
    before = torch.get_num_threads()
    cpu_groups._helpers.cache_clear()
    try:
        torch.set_num_threads(2)
        helpers = cpu_groups._helpers(1, 1, False)
        helpers.submit(int).result()
        torch.set_num_threads(2)
        assert helpers.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        cpu_groups._helpers.cache_clear()


@pytest.mark.parametrize(("groups", "workers"), [(8, 2), (3, 2), (1, 2), (9, 3)])
def test_a_slow_thread_does_fewer_steps_and_groups_keep_their_order(monkeypatch, groups, workers):
    """Use a Python function as the step. It is slow in one thread, as on a busy core."""
    torch_c, cycles, done, counts = ctypes.CDLL(str(cpu_groups._LIBRARIES / "libtorch_cpu.so")), 20, [], {}
    state, noise = torch.zeros(groups, 1), torch.zeros(cycles, groups, 1)

    def step(model, inputs, *others):
        data = ctypes.c_void_p()
        torch_c.aoti_torch_get_data_ptr(ctypes.c_void_p(inputs[1]), ctypes.byref(data))
        done.append(divmod((data.value - noise.data_ptr()) // 4, groups))
        for i in range(2):  # a step owns its inputs
            torch_c.aoti_torch_delete_tensor_object(ctypes.c_void_p(inputs[i]))
        thread = threading.get_ident()
        counts[thread] = counts.get(thread, 0) + 1
        time.sleep(0.001 if thread == caller else 0.004)
        return 0

    caller = threading.get_ident()
    pointers = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, *[ctypes.c_void_p] * 4]
    callback = ctypes.CFUNCTYPE(ctypes.c_int32, *pointers)(step)
    model = cpu_groups._Model(ctypes.cast(callback, ctypes.c_void_p), ctypes.c_void_p(), lambda: "")
    monkeypatch.setattr(cpu_groups, "_model", lambda library, workers: model)
    folder = Path(toolchain.cache_dir()) / "fdqn"
    folder.mkdir(parents=True, exist_ok=True)
    cpu_groups.loop(folder / "none.so", [state], ThreadPartition(1, workers, 1))([noise])
    for group in range(groups):
        assert [cycle for cycle, of in done if of == group] == list(range(cycles))
    if groups > workers:  # with a fixed assignment each thread would do the same number of steps
        assert counts[caller] > 1.3 * groups * cycles / workers
