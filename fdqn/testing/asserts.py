"""Assertions about trees of tensors. Each names the leaf, the place in it, what was expected and what came."""

from typing import Any

from torch import Tensor

from fdqn import tree

__all__ = ["assert_trees_close", "assert_trees_equal"]


def assert_trees_equal(expected: Any, got: Any, name: str = "") -> None:
    """Same structure, shapes, dtypes and numbers, exactly; NaN equals NaN."""
    assert_trees_close(expected, got, atol=0.0, rtol=0.0, name=name)


def assert_trees_close(expected: Any, got: Any, atol: float, rtol: float = 0.0, name: str = "") -> None:
    """Same structure, shapes and dtypes; `|got - expected| <= atol + rtol * |expected|` for floats, equal for others.

    NaN equals NaN and an infinity equals itself.
    """
    assert tree.structure(expected) == tree.structure(got), (
        f"{name}: expected structure {tree.structure(expected)}, got {tree.structure(got)}"
    )
    for path, a, b in zip(tree.paths(expected), tree.leaves(expected), tree.leaves(got), strict=True):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            assert a == b, f"{name}{path}: expected {a!r}, got {b!r}"
            continue
        assert a.shape == b.shape, f"{name}{path}: expected shape {list(a.shape)}, got {list(b.shape)}"
        assert a.dtype == b.dtype, f"{name}{path}: expected {a.dtype}, got {b.dtype}"
        same = a == b
        if a.is_floating_point():
            same |= (a.isnan() & b.isnan()) | ((b - a).abs() <= atol + rtol * a.abs()) & a.isfinite()
        if not same.all():
            where = tuple((~same).nonzero()[0].tolist())
            assert False, (  # noqa: B011, PT015
                f"{name}{path}{list(where)}: expected {a[where].item()!r}, got {b[where].item()!r}; "
                f"{int((~same).sum())} of {same.numel()} numbers differ (atol {atol:g}, rtol {rtol:g})"
            )
