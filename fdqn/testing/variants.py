"""Run one test in several ways: eagerly, under vmap, compiled and on a GPU.

    @variants("eager", "compiled")
    def test_huber_is_even(variant):
        huber = variant(losses.huber)
        assert torch.equal(huber(torch.ones(3)), huber(-torch.ones(3)))

This is the only module that imports pytest.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from fdqn.testing.asserts import assert_trees_close, one_graph
from fdqn.testing.leaves import map_tensors, tensors

__all__ = ["variants"]

Function = Callable[..., Any]


def variants(*names: str) -> Callable[[Function], Function]:
    """Decorate a test to run once per name, by default all, with an argument `variant`.

    `variant` transforms a function into another one of the same signature:

    - `eager`: the function itself;
    - `vmapped`: under vmap, see `_vmapped`;
    - `compiled`: compiled into one graph by a fast backend; raises AssertionError for a graph break;
    - `cuda`: on the GPU, with the results moved back; skipped without a GPU.

    A test that does not call the transformed function fails. The decorator may be above or below hypothesis' `given`;
    set hypothesis' deadline to None, because compiling takes longer.

    Raises ValueError for an unknown name and TypeError for a test without the argument.
    """
    for name in names:
        if name not in _ALL:
            raise ValueError(f"variants: expected some of {list(_ALL)}, got {name!r}")
    parameters = [pytest.param(name, marks=_MARKS.get(name, ())) for name in names or _ALL]

    def decorate(test: Function) -> Function:
        if "variant" not in inspect.signature(test).parameters:
            raise TypeError(
                f"{test.__name__}: expected an argument `variant`, got {list(inspect.signature(test).parameters)}"
            )

        # Cached across the examples of a test, so that a function is compiled once for each signature.
        transformed = functools.lru_cache(lambda variant, f: _ALL[variant](f))

        @functools.wraps(test)
        def watched(*args: Any, variant: str, **kwargs: Any) -> None:
            made = called = False

            def make(f: Function) -> Function:
                nonlocal made
                made = True
                other = transformed(variant, f)

                @functools.wraps(f)
                def call(*args: Any, **kwargs: Any) -> Any:
                    nonlocal called
                    called = True
                    return other(*args, **kwargs)

                return call

            test(*args, variant=make, **kwargs)
            assert made, f"{test.__name__}[{variant}]: expected a call of `variant`, got none: it tests no variant"
            assert called, f"{test.__name__}[{variant}]: expected a call of the result of `variant`, got none"

        return pytest.mark.parametrize("variant", parameters)(watched)

    return decorate


def _vmapped(f: Function) -> Function:
    """Run `f` under vmap with every tensor argument repeated twice along a new leading axis; return the first result.

    Raises AssertionError if the two results differ and ValueError if no argument is a tensor.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        given = args, kwargs
        answer: Any = None

        def lane(*inner: Tensor) -> list[Tensor]:
            nonlocal answer
            args, kwargs = _with_tensors(given, iter(inner))
            answer = f(*args, **kwargs)
            return tensors(answer)

        inputs = [torch.stack([x, x]) for x in tensors(given)]
        if not inputs:
            raise ValueError("vmapped: expected a tensor among the arguments, got none")
        outputs = vmap(lane)(*inputs)
        first, second = ([x[i] for x in outputs] for i in range(2))
        assert_trees_close(first, second, 1e-6, 1e-5, "second of two equal rows: ")
        return _with_tensors(answer, iter(first))

    return call


def _cuda(f: Function) -> Function:
    """Run `f` on a GPU: move tensor arguments there and the results back."""

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = map_tensors(Tensor.cuda, (args, kwargs))
        return map_tensors(Tensor.cpu, f(*args, **kwargs))

    return call


_ALL: dict[str, Callable[[Function], Function]] = {
    "eager": lambda f: f,
    "vmapped": _vmapped,
    "compiled": one_graph,
    "cuda": _cuda,
}
_MARKS = {"cuda": pytest.mark.skipif(not torch.cuda.is_available(), reason="the cuda variant needs a CUDA device")}


def _with_tensors(x: Any, others: Iterator[Tensor]) -> Any:
    """Return the tree with its tensors replaced by `others`."""
    return map_tensors(lambda _: next(others), x)
