"""Every assertion accepts correct values and rejects a planted bug with its leaf, index and numbers."""

import inspect

import numpy as np
import pytest
import torch
from plants import branches, rejects

from fdqn import tree
from fdqn.testing import asserts
from fdqn.types import Network

X = torch.arange(3.0)

# Trees


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [
        ({"w": torch.ones(2)}, {"v": torch.ones(2)}, r"same structure; missing \[\"\['w'\]\"\], extra \[\"\['v'\]\"\]"),
        (torch.ones(2), torch.ones(2, device="meta"), "^value: expected it on cpu, got it on meta"),
        ({"w": torch.ones(2)}, {"w": torch.ones(2, 1)}, r"\['w'\]: expected shape \[2\], got \[2, 1\]"),
        ({"w": torch.ones(2)}, {"w": torch.ones(2).double()}, "expected torch.float32, got torch.float64"),
        ({"w": torch.ones(2)}, {"w": torch.tensor([1.0, 2.0])}, r"\['w'\]\[1\]: expected 1.0, got 2.0; 1 of 2 numbers"),
        (torch.tensor(torch.nan), torch.tensor(0.0), "expected nan, got 0.0"),
        (torch.tensor(torch.inf), torch.tensor(-torch.inf), "expected inf, got -inf"),
        (torch.tensor(torch.inf), torch.tensor(1.0), "expected inf, got 1.0"),
        (torch.tensor(1.0), torch.tensor(torch.nan), "expected 1.0, got nan"),
        ((torch.tensor(True),), (torch.tensor(False),), "expected True, got False"),
        ((1,), (2,), "expected 1, got 2"),
        ((1.0,), (1.5,), r"^\[0\]\[\]: expected 1.0, got 1.5"),
        ((1.0,), (torch.nan,), "expected 1.0, got nan"),
        (1 + 2j, 1 + 3j, r"expected \(1\+2j\), got \(1\+3j\)"),
        (torch.tensor([1 + 2j]), torch.tensor([1 + 3j]), r"^\[0\]: expected \(1\+2j\), got \(1\+3j\)"),
        ({"w": np.ones(2)}, {"w": np.array([1.0, 2.0])}, r"\['w'\]\[1\]: expected 1.0, got 2.0; 1 of 2 numbers"),
        (np.ones(2), np.ones((2, 1)), r"expected shape \[2\], got \[2, 1\]"),
        (np.float32(1), np.float64(1), "expected torch.float32, got torch.float64"),
        ({"w": np.ones(2)}, {"w": None}, r"\['w'\]: expected array\(\[1., 1.\]\), got None"),
        ({"w": 3}, {"w": torch.ones(2)}, r"\['w'\]: expected 3, got tensor"),
        ("adam", "sgd", "^value: expected 'adam', got 'sgd'"),
    ],
)
def test_different_trees_are_rejected(a, b, match):
    with rejects(match):
        asserts.assert_trees_close(a, b, atol=1e-3, rtol=1e-3)
    with rejects(match):
        asserts.assert_trees_equal(a, b)


def test_equal_trees_are_accepted():
    a = {"w": torch.tensor([1.0, torch.nan, torch.inf]), "n": torch.tensor([1, 2]), "empty": torch.zeros(0)}
    asserts.assert_trees_equal(a, tree.clone(a))
    asserts.assert_trees_close(a, a | {"w": a["w"] + 1e-4}, atol=1e-3)
    asserts.assert_trees_close({"w": torch.tensor(1000.0)}, {"w": torch.tensor(1001.0)}, atol=0, rtol=1e-2)
    for x in (1.0, 1.0 + 1j, np.float64(1), np.ones(2), torch.tensor([1.0 + 1j])):
        asserts.assert_trees_close([x], [x + 1e-4], atol=1e-3)
        with rejects("expected"):
            asserts.assert_trees_close([x], [x + 1e-2], atol=1e-3)
    for x in (torch.nan, complex(torch.nan, 0), np.float32("nan"), np.array([np.inf, np.nan], ">f4"), "adam", None, 3):
        asserts.assert_trees_equal({"x": x}, {"x": x})
    with rejects("expected 1000, got 1001"):
        asserts.assert_trees_close({"n": torch.tensor(1000)}, {"n": torch.tensor(1001)}, atol=10)


@pytest.mark.parametrize(
    ("expected", "got", "match"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, r"^missing here: expected .* missing \[\"\['b'\]\"\], extra nothing"),
        ({"a": 1}, {"a": 1, "b": [2]}, r"missing nothing, extra \[\"\['b'\]\[0\]\"\]"),
        ((1, 2), [1, 2], r"expected the same structure; expected \('\*', '\*'\), got \['\*', '\*'\]"),
        (Network(1, 2), {"init": 1, "apply": 2}, r"missing \['.init', '.apply'\]"),
        (
            {"a": 1},
            {"a": 1, "none": ()},
            r"expected the same structure; expected {'a': '\*'}, got {'a': '\*', 'none': \(\)}",
        ),
    ],
)
def test_different_structures_are_rejected(expected, got, match):
    with rejects(match):
        asserts.assert_same_structure(expected, got, "missing here: ")


def test_equal_structures_are_accepted():
    asserts.assert_same_structure({"a": (1, [2])}, {"a": (torch.ones(3), [None])})


@pytest.mark.parametrize(
    ("spec", "tensors", "match"),
    [
        ("q[B A] a[B]", (torch.ones(2, 3), torch.ones(3)), r"a: expected shape \[B\] with B = 2, got \[3\]"),
        ("q[... A] r[...]", (torch.ones(2, 3), torch.ones(2, 1)), r"r: expected shape \[...\] with ... = \[2\]"),
        ("q[B 4]", (torch.ones(2, 3),), r"q: expected shape \[B 4\], got \[2, 3\]"),
        ("q[B 4]", (3,), r"q: expected a tensor \[B 4\], got int"),
        (
            {"weight": "[N M]", "bias": "[N]"},
            ({"weight": torch.ones(2, 3), "bias": torch.ones(3)},),
            r"\['bias'\]: expected shape \[N\] with N = 2, got \[3\]",
        ),
        (Network("[2]", "[2]"), (Network(torch.ones(2), torch.ones(1)),), r"^\.apply: expected shape \[2\], got \[1\]"),
        ("q[B] r[B]", (X,), r"tensors: expected 2 for 'q\[B\] r\[B\]', got 1$"),
        ("q[B]", (X, X), r"tensors: expected 1 for 'q\[B\]', got 2"),
        ("q[B]", (), r"tensors: expected 1 for 'q\[B\]', got 0"),
        ({"weight": "[]"}, (), r"trees of tensors: expected 1 for {'weight': '\[\]'}, got 0"),
        ({"weight": "[]"}, ({"bias": X},), r"missing \[\"\['weight'\]\"\]"),
    ],
)
def test_mismatching_shapes_are_refused(spec, tensors, match):
    with rejects(match):
        asserts.assert_shapes(spec, *tensors)


def test_matching_shapes_are_accepted():
    asserts.assert_shapes("q[B A] legal[B A] u[]", torch.ones(2, 3), torch.ones(2, 3), torch.tensor(1.0))
    asserts.assert_shapes(
        {"weight": "[... N M]", "bias": ["[... N]"]}, {"weight": torch.ones(5, 2, 3), "bias": [torch.ones(5, 2)]}
    )


def test_assert_finite():
    asserts.assert_finite({"x": X, "n": torch.tensor([1]), "flag": torch.tensor(True), "rate": 0.1, "name": "adam"})
    with rejects(r"^grads\['b'\]\[0, 1\]: expected a finite number, got nan; 2 of 4 numbers are not finite"):
        asserts.assert_finite({"a": X, "b": torch.tensor([[0.0, torch.nan], [torch.inf, 1.0]])}, "grads")
    with rejects("got -inf; 1 of 1"):
        asserts.assert_finite([X, -torch.inf])
    asserts.assert_finite([np.ones(2), np.float32(1), 1j, np.array(["a"]), np.array([1]), None])
    with rejects(r"^\['b'\]\[1\]: expected a finite number, got nan; 1 of 2"):
        asserts.assert_finite({"a": X, "b": np.array([1.0, np.nan], np.float32)})
    for wrong in (np.float32("inf"), np.float64("nan"), complex(0, torch.inf), torch.tensor(complex(torch.nan, 0))):
        with rejects(r"^\[0\]\[\]: expected a finite number, got .*(nan|inf)"):
            asserts.assert_finite([wrong])


# Compiling


def test_message_of_a_graph_break_names_its_line():
    line = inspect.getsourcelines(branches)[1] + 2
    with rejects(f"one graph, got a break at .*plants.py:{line} in branches, `if x.sum.* > 0:`: Data-dependent"):
        asserts.assert_no_graph_break(branches, X)
    with rejects("in <lambda>.*print"):
        asserts.assert_no_graph_break(lambda x: print(x), X)
    with rejects("Data-dependent"):
        asserts.one_graph(branches)(X)
    asserts.assert_no_graph_break(lambda x, steps: x * steps, X, 3)
    assert torch.equal(asserts.one_graph(torch.sub)(X, other=X), 0 * X)


@pytest.mark.parametrize(
    ("calls", "match"),
    [
        ([(X, 0.1), (X, 0.1), (X, 0.2)], r"call 2: expected the graph of call 0, got another; guard: .*== 0.1$"),
        ([(X, X), (torch.ones(1), X)], "call 1: .*size mismatch at index 0. expected 3, actual 1"),
        ([(X, X), (X.double(), X)], "call 1: .*dtype mismatch"),
        ([], "calls: expected a tuple of arguments for each, got none"),
        ([X, X], "call 0: expected a tuple of arguments, got Tensor"),
    ],
)
def test_message_of_a_recompilation_names_its_guard(calls, match):
    with rejects(match):
        asserts.assert_compiles_once(lambda x, rate: x * rate, *calls)


def test_assert_compiles_once():
    rates = [(X, torch.tensor(0.1)), (X + 1, torch.tensor(0.2))]
    outputs = asserts.assert_compiles_once(lambda x, rate: x * rate, *rates)
    asserts.assert_trees_equal([x * rate for x, rate in rates], outputs)
    with rejects("Data-dependent"):
        asserts.assert_compiles_once(branches, (X,), (X,))


def test_earlier_compilations_do_not_count():
    for size in range(2, 14):  # more signatures than torch.compile keeps of one function
        asserts.assert_compiles_once(torch.neg, (torch.ones(size),), (torch.zeros(size),))
