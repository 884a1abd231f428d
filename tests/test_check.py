"""Checks of shapes, dtypes and values: accepted inputs and error messages."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fdqn import check
from fdqn import compile as edge


@given(st.lists(st.integers(0, 4), max_size=3), st.integers(0, 4))
def test_matching_shapes_are_accepted(leading, size):
    check.shapes(
        "q[... A] legal[... A] r[...]", torch.zeros(*leading, size), torch.zeros(*leading, size), torch.zeros(leading)
    )
    check.shapes("x[A A]", torch.zeros(size, size))
    check.shapes("x[]", torch.zeros(()))
    check.shapes("u[... 2]", torch.zeros(*leading, 2))


@pytest.mark.parametrize(
    ("spec", "shapes", "message"),
    [
        ("r[...] v[...]", [(3,), (3, 1)], r"v: expected shape \[...\] with ... = \[3\], got \[3, 1\]"),
        ("q[... A] a[...]", [(2, 3), (3,)], r"a: expected shape \[...\] with ... = \[2\], got \[3\]"),
        ("q[... A] p[... A]", [(2, 3), (2, 4)], r"p: expected shape \[... A\] with A = 3, got \[2, 4\]"),
        ("q[... A] p[... A]", [(2, 3), (1, 3)], r"p: expected shape \[... A\] with ... = \[2\], got \[1, 3\]"),
        ("u[... 2]", [(5, 3)], r"u: expected shape \[... 2\], got \[5, 3\]"),
        ("x[B]", [()], r"x: expected shape \[B\], got \[\]"),
        ("x[B]", [(1, 2)], r"x: expected shape \[B\], got \[1, 2\]"),
        ("x[]", [(1,)], r"x: expected shape \[\], got \[1\]"),
        ("x[B] y[B]", [(1,), (2,)], r"y: expected shape \[B\] with B = 1, got \[2\]"),
    ],
)
def test_mismatching_shapes_are_refused(spec, shapes, message):
    with pytest.raises(ValueError, match=message):
        check.shapes(spec, *(torch.zeros(shape) for shape in shapes))


def test_fit_accepts_names_of_any_form():
    check.fit(["['w']", ".b"], ["N M", "N"], [torch.zeros(2, 3), torch.zeros(2)])
    with pytest.raises(ValueError, match=r"^\.b: expected shape \[N\] with N = 2, got \[3\]$"):
        check.fit(["['w']", ".b"], ["N M", "N"], [torch.zeros(2, 3), torch.zeros(3)])


def test_objects_other_than_tensors_are_refused():
    with pytest.raises(TypeError, match=r"r: expected a tensor \[...\], got float"):
        check.shapes("r[...]", 1.0)


def test_number_of_tensors_equals_number_of_names():
    with pytest.raises(ValueError, match="zip"):
        check.shapes("a[...] b[...]", torch.zeros(1))


@pytest.mark.parametrize(
    ("dtype", "fits"),
    [
        (torch.float32, check.floating),
        (torch.bfloat16, check.floating),
        (torch.int64, check.integer),
        (torch.uint8, check.integer),
        (torch.bool, check.boolean),
        (torch.complex64, None),
    ],
)
def test_each_dtype_passes_one_check(dtype, fits):
    for one in (check.floating, check.integer, check.boolean):
        if one is fits:
            one("x", torch.zeros(1, dtype=dtype))
        else:
            with pytest.raises(TypeError, match=f"x: expected .*, got {dtype}"):
                one("x", torch.zeros(1, dtype=dtype))


def test_same_names_the_leaf():
    a = {"w": torch.zeros(2), "b": torch.zeros(1)}
    check.same("params", a, {"w": torch.ones(2), "b": torch.ones(1)})
    with pytest.raises(ValueError, match=r"params\['w'\]: expected shape \[2\], got \[3\]"):
        check.same("params", a, a | {"w": torch.zeros(3)})
    with pytest.raises(TypeError, match=r"params\['b'\]: expected torch.float32, got torch.float64"):
        check.same("params", a, a | {"b": torch.zeros(1).double()})
    with pytest.raises(ValueError, match=r"params: .*missing \[\"\['b'\]\"\], extra \[\"\['c'\]\"\]"):
        check.same("params", a, {"w": torch.zeros(2), "c": torch.zeros(1)})


def test_shapes_hold_under_vmap_and_compile():
    def f(x, y):
        check.shapes("x[... A] y[...]", x, y)
        return x.sum(-1) + y

    x, y = torch.ones(2, 3, 4), torch.ones(2, 3)
    assert torch.equal(torch.compile(torch.func.vmap(f), fullgraph=True, backend="eager")(x, y), f(x, y))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_within(dtype):
    check.within("label", torch.tensor([[0, 2], [1, 2]], dtype=dtype), 3)
    check.within("label", torch.tensor([], dtype=dtype), 3)
    with pytest.raises(IndexError, match=r"label\[1, 0\]: expected a number from 0 to 2, got 3"):
        check.within("label", torch.tensor([[0, 2], [3, 4]], dtype=dtype), 3)
    with pytest.raises(IndexError, match=r"label: expected a number from 0 to 2, got 7"):
        check.within("label", torch.tensor(7, dtype=dtype), 3)


def test_within_a_size_beyond_the_range_of_the_dtype():
    check.within("label", torch.tensor([50, 200], dtype=torch.uint8), 300)
    check.within("label", torch.tensor([5, 255], dtype=torch.uint8), 256)
    check.within("label", torch.tensor([5, 100], dtype=torch.int8), 200)
    check.within("label", torch.tensor([5], dtype=torch.uint16), 26)
    with pytest.raises(IndexError, match=r"label\[0\]: expected a number from 0 to 199, got -5"):
        check.within("label", torch.tensor([-5, 100], dtype=torch.int8), 200)


def test_some_legal():
    check.some_legal("legal", torch.tensor([[True, False], [False, True]]))
    with pytest.raises(ValueError, match=r"legal\[0, 1\]: expected at least one legal action, got none"):
        check.some_legal("legal", torch.tensor([[[True], [False]]]))
    with pytest.raises(ValueError, match="legal: expected at least one legal action, got none"):
        check.some_legal("legal", torch.tensor([False]))


def checked(x):
    """Call the checks of values, which raise only where values can be read."""
    check.within("x", x, 3)
    check.some_legal("x", x[..., None] > 9)
    return x + 1


def test_values_are_checked_only_outside_of_transforms_and_compilers():
    bad = torch.tensor([0, 7])
    expected = [1, 8]
    with pytest.raises(IndexError):
        checked(bad)
    assert vmap(checked)(bad).tolist() == expected
    assert vmap(vmap(checked))(bad[None]).tolist() == [expected]
    assert edge.compile(checked)(bad).tolist() == expected
    assert torch.compile(checked, fullgraph=True, backend="aot_eager")(bad).tolist() == expected
    assert torch.compile(vmap(checked), fullgraph=True, backend="aot_eager")(bad).tolist() == expected
    with FakeTensorMode() as mode:
        checked(mode.from_tensor(bad))
    checked(bad.to("meta"))


def test_values_are_read_inside_a_gradient_of_another_argument():
    with pytest.raises(IndexError, match="x"):
        grad(lambda w, x: (w * checked(x)).sum())(torch.tensor(1.0), torch.tensor([7]))


READS = {
    "within": lambda x: check.within("x", x, 3),
    "bits": lambda x: check.bits("x", x - 1),
    "uniforms": lambda x: check.uniforms("x", x.double()),
    "seen": lambda x: fail() if check.seen(x == 7) else None,
}


def fail():
    raise ValueError("x: seen")


@pytest.mark.parametrize("name", READS)
def test_each_check_reads_values_only_outside_of_transforms_and_compilers(name):
    def reads(x):
        READS[name](x)
        return x + 1

    bad, expected = torch.tensor([0, 7]), [1, 8]
    with pytest.raises((IndexError, ValueError), match="x"):
        reads(bad)
    assert vmap(reads)(bad).tolist() == expected
    assert torch.compile(reads, fullgraph=True, backend="aot_eager")(bad).tolist() == expected
    assert make_fx(vmap(reads))(bad)(bad).tolist() == expected
    reads(bad.to("meta"))


def test_bounds_of_bits_and_uniforms():
    check.bits("x", torch.tensor([0, 2**32 - 1]))
    check.bits("x", torch.zeros(0, dtype=torch.int64))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        below = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
        check.uniforms("u", torch.stack([below * 0, below]))
        for wrong in (1.0, -1e-4, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=r"^u\[1\]: expected numbers in \[0, 1\), got "):
                check.uniforms("u", torch.tensor([0.5, wrong], dtype=dtype))


def test_numbers():
    for x in (0, 0.5, torch.tensor(-1.0)):
        check.number("x", x, below=1.0)
    with pytest.raises(ValueError, match=r"x: .* or a tensor \[\], got shape \[2\]; use vmap for several seeds"):
        check.number("x", torch.ones(2))
    assert vmap(lambda x: check.number("x", x) or x)(torch.ones(2)).tolist() == [1, 1]
    for wrong in (True, None, "1", torch.tensor(1), 1j):
        with pytest.raises(TypeError, match="x: expected a"):
            check.number("x", wrong)
    for wrong in (1.0, 2, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"x: expected at least 0 and below 1, got {wrong}"):
            check.number("x", wrong, below=1.0)
    check.number("x", float("inf"))
    with pytest.raises(ValueError, match="x: expected at least 0, got -1"):
        check.number("x", -1)


def test_devices():
    here, there = torch.zeros(2), torch.zeros(2, device="meta")
    check.shapes("q[A] u[A]", there, there)
    with pytest.raises(ValueError, match=r"^u: expected it on the device of q, cpu, got meta"):
        check.shapes("q[A] u[A]", here, there)
    check.same("grads", {"w": there}, {"w": there})
    with pytest.raises(ValueError, match=r"^grads\['w'\]: expected it on meta, got cpu"):
        check.same("grads", {"w": there}, {"w": here})


def test_message_of_same_shows_the_order_of_keys_and_the_containers():
    a, b = torch.zeros(1), torch.ones(1)
    with pytest.raises(ValueError, match=r"grads: .* structure; expected {'w': '\*', 'b': '\*'}, got {'b'"):
        check.same("grads", {"w": a, "b": b}, {"b": b, "w": a})
    with pytest.raises(ValueError, match=r"expected \['\*', '\*'\], got \('\*', '\*'\)"):
        check.same("grads", [a, b], (a, b))
    assert check.difference({"w": a}, {"b": a}) == "missing [\"['w']\"], extra [\"['b']\"]"
