"""Static checks: what they let through, and what they say of the rest."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fdqn import check


@given(st.lists(st.integers(0, 4), max_size=3), st.integers(0, 4))
def test_shapes_that_fit(leading, size):
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
def test_shapes_that_do_not(spec, shapes, message):
    with pytest.raises(ValueError, match=message):
        check.shapes(spec, *(torch.zeros(shape) for shape in shapes))


def test_what_is_no_tensor():
    with pytest.raises(TypeError, match=r"r: expected a tensor \[...\], got float"):
        check.shapes("r[...]", 1.0)


def test_as_many_tensors_as_names():
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
def test_each_dtype_fits_one_check(dtype, fits):
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
