"""Assertions about trees of tensors and about how a function compiles.

Each raises AssertionError with the leaf, the index in it, the expected value and the value found.
"""

import os
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdqn import check, tree

__all__ = [
    "assert_compiles_once", "assert_finite", "assert_no_graph_break", "assert_same_structure", "assert_shapes",
    "assert_trees_close", "assert_trees_equal", "one_graph",
]  # fmt: skip

# Trees


def assert_trees_equal(expected: Any, got: Any, name: str = "") -> None:
    """Assert equal structure, shapes, dtypes, devices and numbers, bit for bit; NaN equals NaN."""
    assert_trees_close(expected, got, atol=0.0, rtol=0.0, name=name)


def assert_trees_close(expected: Any, got: Any, atol: float, rtol: float = 0.0, name: str = "") -> None:
    """Assert equal structure, shapes, dtypes and devices, and close numbers.

        |got - expected| <= atol + rtol * |expected|

    This holds for floats and complex numbers; others must be equal. NaN equals NaN and an infinity equals itself.
    Leaves may be tensors, NumPy arrays and numbers, and Python numbers. `name` is put in front of the leaf's path in
    the message.
    """
    assert_same_structure(expected, got, name)
    for path, ours, theirs in zip(tree.paths(expected), tree.leaves(expected), tree.leaves(got), strict=True):
        leaf, a, b = f"{name}{path or 'value'}", _numbers(ours), _numbers(theirs)
        if a is None or b is None:
            plain = not isinstance(ours, _ARRAYS) and not isinstance(theirs, _ARRAYS)
            same = plain and ours == theirs
            assert same, f"{leaf}: expected {ours!r}, got {theirs!r}"
            continue
        assert a.shape == b.shape, f"{leaf}: expected shape {list(a.shape)}, got {list(b.shape)}"
        assert a.dtype == b.dtype, f"{leaf}: expected {a.dtype}, got {b.dtype}"
        assert a.device == b.device, f"{leaf}: expected it on {a.device}, got it on {b.device}"
        same = a == b
        if a.is_floating_point() or a.is_complex():
            same |= (a.isnan() & b.isnan()) | ((b - a).abs() <= atol + rtol * a.abs()) & a.isfinite()
        if not same.all():
            where = _first(~same)
            raise AssertionError(
                f"{name}{path}{list(where)}: expected {a[where].item()!r}, got {b[where].item()!r}; "
                f"{int((~same).sum())} of {same.numel()} numbers differ (atol {atol:g}, rtol {rtol:g})"
            )


def assert_same_structure(expected: Any, got: Any, name: str = "") -> None:
    """Assert equal containers, names and order; the leaves themselves are not compared."""
    if tree.structure(expected) != tree.structure(got):
        raise AssertionError(f"{name}expected the same structure; {check.difference(expected, got)}")


def assert_shapes(spec: Any, *tensors: Any) -> None:
    """Assert that tensors match a specification as in `check.shapes`, or that a tree of tensors matches a tree of
    shapes.

        assert_shapes("q[B A] legal[B A]", q, legal)
        assert_shapes({"weight": "[N M]", "bias": "[N]"}, params)

    A letter is one size throughout; `...` is the same leading axes throughout.
    """
    try:
        count = spec.count("[") if isinstance(spec, str) else 1
        what = "tensors" if isinstance(spec, str) else "trees of tensors"
        assert len(tensors) == count, f"{what}: expected {count} for {spec!r}, got {len(tensors)}"
        if isinstance(spec, str):
            check.shapes(spec, *tensors)
        else:
            (given,) = tensors
            assert_same_structure(spec, given)
            check.fit(tree.paths(given), [str(x).strip("[]") for x in tree.leaves(spec)], tree.leaves(given))
    except (ValueError, TypeError) as error:
        raise AssertionError(str(error)) from None


def assert_finite(x: Any, name: str = "") -> None:
    """Assert that no tensor, array or number among the leaves is NaN or infinite."""
    for path, leaf in zip(tree.paths(x), tree.leaves(x), strict=True):
        numbers = _numbers(leaf)
        if numbers is None:
            continue
        wrong = ~numbers.isfinite()
        if wrong.any():
            where = _first(wrong)
            raise AssertionError(
                f"{name}{path}{list(where)}: expected a finite number, got {numbers[where].item()!r}; "
                f"{int(wrong.sum())} of {wrong.numel()} numbers are not finite"
            )


_ARRAYS = (Tensor, np.ndarray)


def _numbers(x: Any) -> Tensor | None:
    """Convert a leaf to a tensor; return None for exact leaves without a dtype: integers, booleans and strings."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.ndarray | np.generic):
        array = np.array(x, dtype=x.dtype.newbyteorder("="))
        return torch.from_numpy(array) if array.dtype.kind in "biufc" else None
    if isinstance(x, float):
        return torch.tensor(x, dtype=torch.float64)
    return torch.tensor(x, dtype=torch.complex128) if isinstance(x, complex) else None


def _first(found: Tensor) -> tuple[int, ...]:
    """Return the index of the first true element."""
    return tuple(found.nonzero()[0].tolist())


# Compiling


def one_graph(f: Callable[..., Any], backend: str = "aot_eager") -> Callable[..., Any]:
    """Compile `f` with `torch.compile` into one graph per signature, without reuse of earlier compilations of `f`.

    A call raises AssertionError with the reason and the line where the graph would break.
    """
    fast = torch.compile(_unseen(f), fullgraph=True, dynamic=False, backend=backend)

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            with torch._dynamo.config.patch(recompile_limit=1_000):  # the default of 8 is too low for generated inputs
                return fast(*args, **kwargs)
        except torch._dynamo.exc.Unsupported as error:
            raise AssertionError(
                f"expected one graph, got a break{_where(error)}: {str(error).splitlines()[0]}"
            ) from error

    return call


def assert_no_graph_break(f: Callable[..., Any], *args: Any) -> None:
    """Assert that `torch.compile` makes one graph of `f(*args)`; the message has the reason and line of a break."""
    one_graph(f, "eager")(*args)


def assert_compiles_once(f: Callable[..., Any], *calls: tuple[Any, ...], backend: str = "aot_eager") -> list[Any]:
    """Assert that the graph compiled for the first of `calls` serves all of them; the message has the guard that
    failed.

    `calls` are tuples of arguments. Returns the results of the calls.
    """
    assert calls, "calls: expected a tuple of arguments for each, got none"
    fast, answers = one_graph(f, backend), []
    for i, args in enumerate(calls):
        assert isinstance(args, tuple), f"call {i}: expected a tuple of arguments, got {type(args).__name__}"
        try:
            with torch._dynamo.config.patch(error_on_recompile=True):
                answers.append(fast(*args))
        except torch._dynamo.exc.RecompileError as error:
            guard = re.search(r"\d+/\d+: ([^#\n]*)", str(error))
            reason = guard[1].strip() if guard else str(error)
            raise AssertionError(f"call {i}: expected the graph of call 0, got another; guard: {reason}") from None
    return answers


def _unseen(f: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `f` in a new code object, because Dynamo caches compilations by code object."""

    def unseen(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs)

    return FunctionType(unseen.__code__.replace(), unseen.__globals__, closure=unseen.__closure__)


def _where(error: Any) -> str:
    """Return the innermost line outside of torch that a compiler error refers to, or "" if it is unknown."""
    stack = list(getattr(error, "real_stack", None) or [])
    own = [frame for frame in stack if not frame.filename.startswith(os.path.dirname(torch.__file__))]
    if not stack:
        return ""
    frame = (own or stack)[-1]
    return f" at {frame.filename}:{frame.lineno} in {frame.name}, `{frame.line}`"
