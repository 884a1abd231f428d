"""`fdqn.compile`: donation is safe, each signature is compiled once, and compiled programs equal eager ones."""

import contextlib
import gc
import sys
import warnings
import weakref
from functools import partial

import pytest
import torch
from plants import naive, rejects
from torch import Tensor
from torch.func import vmap

from fdqn import compile as edge
from fdqn import random, training, tree
from fdqn.compile import aot, cuda_graphs, engines, graph, toolchain, verify
from fdqn.compile import programs as steps
from fdqn.testing import asserts, examples, laws, programs

START = {"params": torch.tensor([1.0, 2.0]), "target": torch.tensor([10.0, 20.0])}


def copied(state):
    """Copy the parameters, which change in the same step, to the target."""
    return {"params": state["params"] * 2, "target": state["params"]}


def swapped(state):
    return {"params": state["target"], "target": state["params"]}


def viewed(state):
    """Return a view of another leaf."""
    return {"params": state["params"] + 1, "target": state["params"].flip(0)[:].reshape(2)}


def shifted(state):
    """Return each leaf with its elements moved."""
    return {"params": torch.cat([state["params"][1:], state["params"][:1]]), "target": state["target"].roll(1)}


def sliced(state):
    """Return a view of a part of another leaf, which changes in the same step."""
    return {"params": state["target"][:1].expand(2), "target": state["target"] * 3}


def same(state):
    return dict(state)


def crossed(state):
    """Compute each leaf from both."""
    return {"params": state["params"] + state["target"], "target": state["params"] - state["target"]}


STEPS = [copied, swapped, viewed, sliced, shifted, same, crossed]
TRANSFORMS = {
    "eager": lambda f: f,
    "aot_eager": lambda f: torch.compile(f, fullgraph=True, dynamic=False, backend="aot_eager"),
    "inductor": edge.compile,
}
EACH = pytest.mark.parametrize("how", TRANSFORMS)


@EACH
@pytest.mark.parametrize("f", STEPS, ids=lambda f: f.__name__)
def test_donation_equals_the_function(f, how):
    programs.donated(f, START, transform=TRANSFORMS[how])


@EACH
@pytest.mark.parametrize("f", STEPS[:2], ids=lambda f: f.__name__)
def test_donation_under_vmap(f, how):
    stacked = tree.map(lambda x: torch.stack([x, x + 100]), START)
    programs.donated(vmap(f), stacked, transform=TRANSFORMS[how])


@EACH
@pytest.mark.parametrize("f", [copied, swapped], ids=lambda f: f.__name__)
def test_naive_donation_is_rejected(f, how):
    with pytest.raises(AssertionError, match="call 1"):
        programs.donated(f, START, transform=TRANSFORMS[how], donate=naive)


@EACH
def test_donation_of_a_transpose(how):
    """Return a transpose, which shares the storage of its leaf, but not the strides."""
    programs.donated(lambda s: {"m": s["m"].T}, {"m": torch.arange(9.0).reshape(3, 3)}, transform=TRANSFORMS[how])


@EACH
def test_donation_of_an_expanded_constant(how):
    def f(state):
        return {"a": state["b"].expand(3), "b": state["a"].sum()}

    programs.donated(f, {"a": torch.arange(3.0), "b": torch.tensor(5.0)}, transform=TRANSFORMS[how])


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda s: s | {"target": s["target"][:1]}, ValueError, r"state\['target'\]: expected shape \[2\], got \[1\]"),
        (lambda s: s | {"target": s["target"].sum()}, ValueError, r"state\['target'\]: expected shape \[2\], got \[\]"),
        (lambda s: s | {"target": s["target"].double()}, TypeError, r"state\['target'\]: expected torch.float32, got"),
        (lambda s: {"params": s["params"]}, ValueError, r"state: expected the same structure; missing .*target"),
        (lambda s: list(s.values()), ValueError, "state: expected the same structure"),
    ],
)
def test_donation_refuses_changes_of_structure_shape_or_dtype(f, error, message):
    with pytest.raises(error, match=message):
        edge.donate(f)(tree.clone(START))


def test_donation_refuses_leaves_that_share_storage():
    x = torch.zeros(4)
    for state in ({"a": x, "b": x}, {"a": x[:2], "b": x[2:]}, {"a": x, "b": x.view(2, 2)}):
        with pytest.raises(ValueError, match="state: expected leaves with separate storage"):
            edge.donate(same)(state)


def test_donation_refuses_elements_that_share_memory():
    """Use an expanded tensor, which vmap returns for a constant."""
    state = {"params": torch.zeros(3, 2), "count": vmap(lambda x: torch.zeros(()))(torch.zeros(3))}
    message = r"state\['count'\]: expected separate memory for every element, got shape \[3\] with strides \[0\]"

    def add(state, x):
        return tree.map(lambda leaf: leaf + x, state)

    with pytest.raises(ValueError, match=message):
        edge.donate(add)(state, torch.ones(()))
    with pytest.raises(ValueError, match=message):
        edge.scan(add)(state, torch.ones(1))
    assert edge.scan(add)(tree.clone(state), torch.ones(1))["count"].tolist() == [1, 1, 1]


def test_donation_accepts_empty_leaves_with_stride_0():
    """Use an empty leaf with stride 0, as in replay of boolean observations that are constant."""
    state = {"params": torch.zeros(2, 2), "none": vmap(lambda x: torch.zeros(0, 3))(torch.zeros(2))}
    assert state["none"].stride(0) == 0
    assert edge.donate(same)(state)["none"].shape == (2, 0, 3)


def test_donation_accepts_empty_leaves():
    programs.donated(same, {"a": torch.zeros(0), "b": torch.zeros(0), "c": torch.ones(1)})


def test_arguments_are_not_donated():
    args = torch.tensor([3.0, 4.0])

    def f(state, x):
        return {"params": x, "target": state["params"] + x}

    programs.donated(f, START, args, transform=edge.compile)
    assert args.tolist() == [3.0, 4.0]


# Compiling


@pytest.fixture
def compiles(monkeypatch):
    """Record the functions that are compiled or loaded from the cache of libraries."""
    given = []

    def counted(original):
        def compile(f, inputs, *more, **settings):
            given.append(f)
            return original(f, inputs, *more, **settings)

        return compile

    monkeypatch.setattr(torch._inductor, "compile", counted(torch._inductor.compile))
    monkeypatch.setattr(aot, "library", counted(aot.library))
    return given


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """Use an empty cache of libraries."""
    monkeypatch.setattr(toolchain, "cache_dir", lambda: tmp_path)


def test_a_signature_is_compiled_once(compiles):
    f = edge.compile(lambda x, n: {"sum": x.sum() + n, "x": x, "n": n})
    for x, n, expected in [
        (torch.ones(3), 1, 1),
        (torch.zeros(3), 1, 1),
        (torch.ones(4), 1, 2),
        (torch.ones(4), 2, 3),
        (torch.ones(4).double(), 2, 4),
        (torch.ones(8)[::2], 2, 5),
        (torch.ones(3), 1, 5),
    ]:
        output = f(x, n)
        assert len(compiles) == expected
        assert output["x"] is x
        assert output["n"] == n
        assert float(output["sum"]) == float(x.sum()) + n


def test_the_names_of_leaves_are_part_of_a_signature():
    """Check that equal leaves with another name do not use the graph of the first name."""
    f = edge.compile(lambda s: {name: x + (1 if name == "a" else 2) for name, x in s.items()})
    x = torch.zeros(2)
    assert f({"a": x})["a"].tolist() == [1.0, 1.0]
    assert f({"b": x})["b"].tolist() == [2.0, 2.0]


def test_the_names_of_leaves_of_later_arguments_are_part_of_a_signature():
    f = edge.compile(lambda x, s: x + s["p"] if "p" in s else x - s["q"])
    x, y = torch.ones(2), torch.ones(2) * 5
    assert f(x, {"p": y}).tolist() == [6.0, 6.0]
    assert f(x, {"q": y}).tolist() == [-4.0, -4.0]


def test_equal_constants_of_different_types_are_different_constants():
    f = edge.compile(lambda i, n: i + n)
    i = torch.ones(2, dtype=torch.int64)
    assert [f(i, n).dtype for n in (1, 1.0)] == [torch.int64, torch.float32]


def test_a_repeated_tensor_is_part_of_a_signature():
    f = edge.compile(lambda a, b: (a - b, b))
    x, y = torch.ones(2), torch.zeros(2)
    assert f(x, x)[0].tolist() == [0.0, 0.0]
    difference, second = f(x, y)
    assert difference.tolist() == [1.0, 1.0]
    assert second is y


def test_compile_without_arguments():
    f = edge.compile(lambda: torch.ones(2))
    assert [f().tolist(), f().tolist()] == [[1.0, 1.0]] * 2


def test_a_scan_uses_replaced_leaves_of_its_state():
    scanned = edge.scan(lambda s, x: {name: y + x * (2 if name == "b" else 1) for name, y in s.items()})
    state, xs = {"a": torch.zeros(2)}, torch.ones(1, 2)
    scanned(state, xs)
    state["a"] = torch.ones(2) * 10
    assert scanned(state, xs)["a"].tolist() == [11.0, 11.0]
    state["b"] = torch.zeros(2)
    assert scanned(state, xs)["b"].tolist() == [2.0, 2.0]


def test_a_replaced_leaf_of_a_dict_is_used():
    f = edge.compile(lambda s: s["a"] * 2)
    state = {"a": torch.ones(2)}
    assert f(state).tolist() == [2.0, 2.0]
    state["a"] = torch.ones(3) * 5
    assert f(state).tolist() == [10.0] * 3
    state["a"] = torch.ones(3) * 6
    assert f(state).tolist() == [12.0] * 3


def test_outputs_without_tensors_and_repeated_outputs():
    f = edge.compile(lambda x: (x, (y := x + 1), y, None, "word", 7))
    x = torch.ones(2)
    output = f(x)
    assert output[0] is x
    assert output[1] is output[2]
    assert output[1].tolist() == [2.0, 2.0]
    assert output[3:] == (None, "word", 7)


def test_compiled_gradients_under_vmap():
    f = vmap(torch.func.grad(lambda w, x: ((w * x).sin()).sum()))
    w, x = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(edge.compile(f)(w, x), f(w, x))


# Patterns whose gradient or value writes at indices. Shapes: x [4, 3]; w [3, 6]; y = x @ w [4, 6].
ROWS, COLUMNS = torch.tensor([0, 0, 2]), torch.tensor([5, 4, 3, 2, 1, 1])
WRITING = {
    "index_select": lambda x, w: (x @ w).index_select(-1, COLUMNS),
    "index_select of a parameter": lambda x, w: w.index_select(0, ROWS),
    "gather": lambda x, w: (x @ w).gather(-1, COLUMNS.expand(4, 6)),
    "take_along_dim": lambda x, w: torch.take_along_dim(x @ w, ROWS[None], -1),
    "embedding": lambda x, w: torch.nn.functional.embedding(ROWS, w),
    "index_add": lambda x, w: torch.zeros(4, 6).index_add(-1, COLUMNS, x @ w),
    "index_add of rows": lambda x, w: torch.ones(4, 6).index_add(0, ROWS, (x @ w)[:3]),
    "scatter_add": lambda x, w: torch.zeros(4, 6).scatter_add(-1, COLUMNS.expand(4, 6), x @ w),
    "index_put": lambda x, w: torch.zeros(6).index_put((torch.tensor([0, 3, 5]),), (x @ w)[0, :3]),
    "accumulating index_put": lambda x, w: torch.zeros(6).index_put((ROWS,), (x @ w)[0, :3], accumulate=True),
    "different indices in each lane": lambda x, w: torch.zeros(9).index_put(
        ((x[:, 0] > 0).long(),), (x @ w)[:, 0], accumulate=True
    ),
    "diagonal_scatter": lambda x, w: torch.zeros(6, 6).diagonal_scatter((x @ w)[1]),
    "expand and sum": lambda x, w: w[0].expand(4, 6) * x[:, :1],
    "advanced indexing": lambda x, w: (x @ w)[ROWS, COLUMNS[:3]],
    "slices and stack": lambda x, w: torch.stack([(x @ w)[:, i : i + 3] for i in range(4)]),
    "argmax after a transpose": lambda x, w: (x @ w)[torch.arange(4), (x @ w).T.argmax(0)],
}


def values_and_gradients(x, w):
    """Return the value of each pattern, and the gradient of its mean square, vmapped over the first axis."""

    def loss(f):
        return lambda x, w: f(x, w).square().mean()

    return {name: (vmap(f)(x, w), *vmap(torch.func.grad(loss(f), argnums=(0, 1)))(x, w)) for name, f in WRITING.items()}


def test_compiled_writes_at_indices_under_vmap_equal_eager():
    generator = torch.Generator().manual_seed(3)
    x, w = (torch.randn(8, *shape, generator=generator) for shape in ((4, 3), (3, 6)))
    laws.compiled(values_and_gradients, x, w, transform=edge.compile)


@pytest.mark.skipif(torch.__version__ >= "2.14.1", reason="fixed in torch 2.14.1")
@pytest.mark.parametrize("name", ["index_select", "index_add", "index_put", "accumulating index_put"])
def test_the_law_rejects_a_compiler_without_the_guard(monkeypatch, name):
    monkeypatch.setattr(graph, "own_memory", lambda traced: None)
    monkeypatch.setattr(sys.modules[__name__], "WRITING", {name: WRITING[name]})
    x, w = torch.ones(8, 4, 3), torch.ones(8, 3, 6) * torch.arange(1.0, 9)[:, None, None]
    with rejects(name):
        laws.compiled(values_and_gradients, x, w, transform=edge.compile)


def test_branches_on_values_are_refused():
    with pytest.raises(RuntimeError):
        edge.compile(lambda x: x if x.sum() > 0 else -x)(torch.ones(2))


def test_a_captured_tensor_is_a_constant():
    constant = torch.arange(3.0)
    assert edge.compile(lambda x: x + constant)(torch.ones(3)).tolist() == [1.0, 2.0, 3.0]


# Scans


@pytest.mark.parametrize("f", STEPS, ids=lambda f: f.__name__)
def test_a_scan_equals_its_steps_in_turn(f):
    def step(state, x):
        return tree.map(lambda y: y * x, f(state))

    xs = torch.tensor([0.5, -2.0, 3.0, 0.25])
    expected = training.scan(step)(START, xs)
    state = tree.clone(START)
    scanned = edge.scan(step)
    assert scanned(state, xs) is state
    asserts.assert_trees_equal(expected, state)
    asserts.assert_trees_equal(training.scan(step)(expected, xs[:1]), scanned(state, xs[:1]))


def test_a_scan_compiles_once_for_any_number_of_steps(compiles):
    scanned, state = edge.scan(lambda s, x: s + x), torch.zeros(2)
    for n in (1, 3, 2):
        scanned(state, torch.ones(n))
    assert len(compiles) == 1
    assert state.tolist() == [6.0, 6.0]


def test_a_scan_refuses_a_change_of_dtype():
    with pytest.raises(TypeError, match=r"state: expected torch\.float32, got torch\.float64"):
        edge.scan(lambda s, x: s.double() + x)(torch.zeros(2), torch.ones(3))


class Recording:
    """Replacement of `torch.cuda.CUDAGraph` and `torch.cuda.graph` on a CPU, whose capture records calls."""

    current = None

    def __init__(self):
        self.recorded = []

    def replay(self):
        for f, args in self.recorded:
            f(*args)

    @classmethod
    def capture(cls, recording, pool):
        assert pool == 7

        class Capture:
            def __enter__(self):
                cls.current = recording

            def __exit__(self, *error):
                cls.current = None

        return Capture()


def test_a_captured_scan_equals_the_plain_one(monkeypatch):
    """Check on a CPU that buffers are refilled, and that graphs of other lengths and states are kept apart."""
    step = vmap(lambda s, x: {"a": s["a"] * 0.5 + x.sum(), "b": s["a"]}, in_dims=(0, 0))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", Recording.capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    runs, plain = [], graph.compile_graph

    def recording(f, args):
        made = plain(f, args)

        def run(*tensors):
            if Recording.current is not None:
                Recording.current.recorded.append((made.run, tensors))
                return []
            runs.append(1)
            return made.run(*tensors)

        return made._replace(run=run)

    monkeypatch.setattr(graph, "compile_graph", recording)
    monkeypatch.setattr(cuda_graphs, "captures", lambda xs: True)
    scanned = edge.scan(step)
    states = [{"a": torch.full((2,), float(i)), "b": torch.zeros(2)} for i in range(2)]
    expected = tree.clone(states)
    for i, n in [(0, 3), (0, 3), (0, 2), (1, 3), (0, 3), (1, 3), (1, 3), (0, 2), (0, 2)]:
        xs = torch.rand(n, 2, 7)[..., :4]  # not contiguous, as noise may be
        expected[i] = training.scan(step)(expected[i], xs)
        scanned(states[i], xs)
        asserts.assert_trees_equal(expected, states)
    assert len(runs) == 3 + 2 + 3  # the first calls for each length and state; later ones are replayed


@pytest.fixture
def captures(monkeypatch):
    """Make `scan` behave as on CUDA, with graphs that run eagerly and captures that record calls; return the list of
    weak references to the recordings."""
    recordings = []

    class Counted(Recording):
        def __init__(self):
            super().__init__()
            recordings.append(weakref.ref(self))

    def eager(f, args):
        traced, output = graph.trace(f, args)

        def run(*tensors):
            if Recording.current is None:
                return traced(*tensors)
            # New tensors on the same memory: a CUDA graph stores addresses and keeps no tensor alive.
            Recording.current.recorded.append((traced, [x.detach() for x in tensors]))
            return []

        return graph.Graph(run, output)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Counted)
    monkeypatch.setattr(torch.cuda, "graph", Recording.capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream before")
    monkeypatch.setattr(graph, "compile_graph", eager)
    monkeypatch.setattr(cuda_graphs, "captures", lambda xs: True)
    return recordings


def alive(recordings):
    gc.collect(1)  # the class of a fake is in a reference cycle
    return sum(each() is not None for each in recordings)


def test_graphs_of_deleted_states_are_dropped(captures):
    scanned = edge.scan(lambda s, x: s + x)
    for _ in range(5):
        state = torch.zeros(2)
        for _ in range(3):
            scanned(state, torch.ones(4))
        assert state.tolist() == [12.0, 12.0]
    assert alive(captures) <= 2


def test_graphs_of_live_states_are_kept(captures):
    """Call one function with several states in turn."""
    scanned, states = edge.scan(lambda s, x: s + x), [torch.zeros(2) for _ in range(4)]
    for _ in range(6):
        for state in states:
            scanned(state, torch.ones(3))
    assert len(captures) == alive(captures) == 4
    assert [state.tolist() for state in states] == [[18.0, 18.0]] * 4


def test_few_graphs_are_kept_of_many_lengths(captures, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "GRAPHS_KEPT", 3)
    scanned, state = edge.scan(lambda s, x: s + x), torch.zeros(2)
    lengths = [n for n in range(1, 9) for _ in range(3)]
    for n in lengths:
        scanned(state, torch.ones(n))
        assert alive(captures) <= 3
    assert len(captures) == 8
    assert state.tolist() == [float(sum(lengths))] * 2


def test_the_most_used_graph_is_kept(captures, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "GRAPHS_KEPT", 2)
    scanned, state = edge.scan(lambda s, x: s + x), torch.zeros(2)
    for n in [20, 20, 1, 20, 2, 20, 3, 20, 4, 20]:
        scanned(state, torch.ones(n))
    assert len(captures) == 1


class Refusing:
    """Replacement of `torch.cuda.graph` for a step that cannot be captured; it raises again on exit, as in torch."""

    tries = 0

    def __init__(self, recording, pool):
        Refusing.tries += 1

    def __enter__(self):
        pass

    def __exit__(self, *error):
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def test_a_capture_that_fails_falls_back_with_one_warning(captures, monkeypatch):
    """Check that the steps still run, in the stream that was current before the capture."""
    streams = []
    monkeypatch.setattr(torch.cuda, "graph", Refusing)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(Refusing, "tries", 0)
    scanned, state, in_turn = edge.scan(lambda s, x: s + x), torch.zeros(2), cuda_graphs.in_turn

    def fails_once(*given):
        monkeypatch.setattr(cuda_graphs, "in_turn", in_turn)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with DSA")

    scanned(state, torch.ones(3))
    monkeypatch.setattr(cuda_graphs, "in_turn", fails_once)
    with pytest.warns(UserWarning, match="to capture 3 steps, got: CUDA error: operation not permitted") as warned:
        scanned(state, torch.ones(3))
    assert "DSA" not in str(warned[0].message)
    assert state.tolist() == [6.0, 6.0]
    assert streams == ["the stream before"]
    for n in (3, 3, 2, 2, 2):
        scanned(state, torch.ones(n))  # warnings would raise
    assert state.tolist() == [18.0, 18.0]
    assert Refusing.tries == 1
    reference = weakref.ref(state)
    del state, warned
    gc.collect()
    scanned(torch.zeros(2), torch.ones(1))
    assert reference() is None, "a reference to the state was kept"


def test_other_errors_during_capture_are_raised(captures, monkeypatch):
    scanned, state = edge.scan(lambda s, x: s + x), torch.zeros(2)
    scanned(state, torch.ones(3))
    monkeypatch.setattr(cuda_graphs, "_captured", lambda *given: [].pop())
    with pytest.raises(IndexError):
        scanned(state, torch.ones(3))


def test_compiling_suppresses_the_warning_about_tf32(monkeypatch):
    """Check that only this warning is suppressed: users choose the precision by a setting."""

    def compiling(traced, inputs, options):
        warnings.warn("TensorFloat32 tensor cores for float32 matrix multiplication available", stacklevel=2)
        if len(inputs) > 1:
            warnings.warn("another", stacklevel=2)
        return traced

    monkeypatch.setattr(torch._inductor, "compile", compiling)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert edge.compile(lambda x: x + 1)(torch.ones(2)).tolist() == [2.0, 2.0]
        with pytest.raises(UserWarning, match="another"):
            edge.compile(lambda x, y: x + y)(torch.ones(2), torch.ones(2))


# Setting up CUDA


@pytest.fixture
def backends():
    """Restore the global settings of torch after the test."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


@pytest.mark.usefixtures("backends")
@pytest.mark.parametrize("allowed", [False, True])
def test_allow_tf32_sets_matrix_products_and_convolutions(allowed):
    """Check all flags; warnings of torch would raise."""
    edge.allow_tf32(not allowed)
    edge.allow_tf32(allowed)
    assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed


@pytest.mark.usefixtures("backends")
def test_prepare_cuda_makes_convolutions_deterministic():
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    edge.prepare_cuda()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    edge.prepare_cuda(tf32=True)
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("first_cycle", [0, 7])
def test_noise_with_compiled_keys_is_unchanged(monkeypatch, first_cycle):
    """Compile the keys, as on CUDA, with one graph for all training iterations."""
    made = []

    def eager(f, args):
        traced, output = graph.trace(f, args)
        made.append(traced)
        return graph.Graph(lambda *tensors: traced(*tensors), output)

    monkeypatch.setattr(graph, "compile_graph", eager)
    monkeypatch.setattr(steps, "_compiles_keys", lambda keys: True)
    program, (_, keys) = examples.program(), examples.seeds(2)
    draw = edge.compiled(program).noise
    for first in (first_cycle, first_cycle + 1):
        asserts.assert_trees_equal(training.noise(program, keys, first, 5), draw(keys, first, 5))
    assert len(made) == 1
    assert len([node for node in made[0].graph.nodes if node.op == "call_function"]) > 300, (
        "the graph must include the keys"
    )


# The program, compiled


def started(seeds=2, **config):
    program, (hyper, keys) = examples.program(**config), examples.seeds(seeds)
    return program, training.init(program, hyper, keys)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sync", {}),
        ("cycle", {"target_period": 0}),
    ],
    ids=str,
)
def test_each_step_function_compiles_to_one_graph(name, config):
    program, state = started(**config)
    noise = training.noise(program, state.key, 0, 2)
    rest = [() if name == "sync" else (tree.index(noise, slice(i, i + 1)),) for i in range(2)]
    other = state._replace(hyper=tree.map(lambda x: x * 0.5, state.hyper))
    f = getattr(training.vmapped(program), name)
    laws.compiled(f, state, *rest[0], again=[(other, *rest[1])], atol=1e-5)


def test_donated_step_functions_equal_the_plain_ones():
    program, state = started(target_period=0)
    state = programs.advance(program, state, 5)
    noise = tree.index(training.noise(program, state.key, 5, 1), 0)
    for f, *args in ((training.collect, noise), (training.cycle, noise)):
        programs.donated(vmap(partial(f, program)), tree.clone(state), *args)
    programs.donated(vmap(training.sync), tree.clone(state))


def test_compiled_functions_record_no_gradients():
    f = edge.compile(lambda x: x * 2)
    x = torch.ones(2, requires_grad=True)
    assert not f(x).requires_grad


def test_compiled_run_equals_eager_run(compiles, monkeypatch):
    """Run warm-up, learning and hard target updates with compiled functions, each of which is compiled once."""
    monkeypatch.setattr(aot, "build_in_background", lambda *_: None)  # compilations in other processes are not counted
    program, state = started()
    eager = programs.advance(program, tree.clone(state), 10)
    functions = edge.compiled(program)
    fast = programs.advance(program, state, 7, functions)
    fast = programs.advance(program, fast, 3, functions)  # continues, as after a stop
    assert len(compiles) == len({"noise", "collect", "cycle"})
    asserts.assert_trees_close(eager, fast, 1e-4, 1e-4)
    assert isinstance(fast.cycle, Tensor)
    assert int(fast.learner.updates[0]) == 10 - 4


def test_noise_compiles_to_the_same_bits():
    program, (_, keys) = examples.program(), examples.seeds(2)
    laws.compiled(
        partial(training.noise, program, first_cycle=3, cycles=2), keys, again=[(random.key([7, 8]),)], atol=0.0
    )


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="needs a processor that can flush denormals")
def test_prepare_cpu_flushes_denormals():
    assert torch.tensor(1e-40) * 1 > 0
    edge.prepare_cpu()
    assert torch.tensor(1e-40) * 1 == 0


# Long training iterations


LONG = {"steps_per_cycle": 12, "updates_per_cycle": 5, "target_period": 10, "learning_starts": 36}


@pytest.fixture
def uncompiled(monkeypatch):
    """Run steps eagerly, so that only the loops around them differ."""
    monkeypatch.setattr(engines, "scan_vmapped", lambda step, **given: training.scan(edge.donate(vmap(step))))
    monkeypatch.setattr(steps, "_noise", lambda program, engine: partial(training.noise, program))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("config", [LONG, LONG | {"target_period": 0, "n_step": 3}], ids=str)
def test_a_long_iteration_repeats_one_step_and_one_update(config):
    """Compare bits, with epsilon that changes within a training iteration, and hard and soft target updates."""
    program, state = started(3, **config)
    assert steps._is_long(program)
    expected = programs.advance(program, tree.clone(state), 6)
    asserts.assert_trees_equal(expected, programs.advance(program, state, 6, edge.compiled(program)))


def test_updates_of_a_long_iteration_start_asynchronously_with_a_host_environment(monkeypatch):
    def start(step, partition, engine):
        return lambda state, xs: lambda: training.scan(vmap(step))(state, xs)

    monkeypatch.setattr(engines, "scan_vmapped_async", start)
    program, state = started(3, **LONG)
    state = programs.advance(program, state, 5)
    noise = training.noise(program, state.key, 5, 1)
    expected = training.scan(vmap(partial(training.learn, program)))(state, noise)
    wait = steps._learn_async(program, True, "auto", None)(state, noise)
    asserts.assert_trees_equal(expected, wait())


@pytest.mark.parametrize("error", [4e-4, 4e-3])
def test_only_the_first_update_of_a_long_iteration_is_verified_with_a_host_environment(monkeypatch, error):
    """Check only one update: Adam amplifies rounding, so that 5 updates differ by more than the tolerance, 1e-3."""

    def start(step, partition, engine):
        def update(state, x):
            state = vmap(step)(state, x)
            params = {name: leaf * (1 + error) for name, leaf in state.learner.params.items()}
            return state._replace(learner=state.learner._replace(params=params))

        return lambda state, xs: lambda: training.scan(update)(state, xs)

    monkeypatch.setattr(engines, "scan_vmapped_async", start)
    program, state = started(3, **LONG)
    state = programs.advance(program, state, 5)
    learn = steps._learn_async(program, True, "auto", None)
    with contextlib.nullcontext() if error < verify.TOLERANCE else pytest.raises(verify.MismatchError, match="params"):
        for i in range(5, 5 + verify.ATTEMPTS):
            state = learn(state, training.noise(program, state.key, i, 1))()


def test_a_constant_step_number_in_a_long_iteration_is_detected(monkeypatch):
    """Plant a bug: every step of a training iteration uses the epsilon of the first step."""
    program, state = started(3, **LONG)
    expected = programs.advance(program, tree.clone(state), 6)
    monkeypatch.setattr(engines, "scan_vmapped", lambda step, **given: training.scan(edge.donate(vmap(step))))
    monkeypatch.setattr(steps, "_noise", lambda program, engine: partial(training.noise, program))
    right = training.interactions
    monkeypatch.setattr(training, "interactions", lambda noise: right(noise)._replace(number=0 * right(noise).number))
    with rejects("expected"):
        asserts.assert_trees_equal(expected, programs.advance(program, state, 6, edge.compiled(program)))


@pytest.mark.usefixtures("empty_cache")
def test_graphs_do_not_grow_with_the_steps_and_updates_of_an_iteration(monkeypatch):
    """Count the nodes of graphs in a failing compiler. RL Zoo uses 256 steps and 128 updates for CartPole."""
    monkeypatch.setattr(aot, "build_in_background", lambda *given: None)
    monkeypatch.setattr(steps, "_noise", lambda program, engine: partial(training.noise, program))

    def sizes(steps, updates):
        graphs = []

        def compile(graph, inputs, **settings):
            graphs.append(len(graph.graph.nodes))
            raise toolchain.compiler_error("a counter")

        for name in ("compile", "aot_compile"):
            monkeypatch.setattr(torch._inductor, name, compile)
        program, state = started(
            steps_per_cycle=steps, updates_per_cycle=updates, target_period=updates, learning_starts=3 * steps
        )
        with pytest.warns(UserWarning, match="a counter"):
            programs.advance(program, state, 2, edge.compiled(program))
        return graphs

    assert sizes(9, 40) == sizes(20, 7)


@pytest.mark.slow
def test_a_long_iteration_equals_an_unrolled_one_bit_for_bit(monkeypatch):
    results = []
    for unrolled in (0, 100):
        monkeypatch.setattr(steps, "UNROLLED", unrolled)
        program, state = started(4, steps_per_cycle=3, updates_per_cycle=3, target_period=6, learning_starts=27)
        results.append(programs.advance(program, state, 10, edge.compiled(program)))
    asserts.assert_trees_equal(*results)
