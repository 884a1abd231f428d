"""Comparing compiled steps with the same steps run operation by operation, once at the start of a run.

A compiler may be wrong about a program that nobody has compiled before: inductor of torch 2.13 multiplied some
gradients by the number of lanes. One step of two lanes shows it and takes a tenth of a second.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from fdqn import tree

State = TypeVar("State")

LANES = 2
"""Lanes that are compared."""

ATTEMPTS = 2
"""Steps in a row that must differ. One may differ by chance: a tie between two actions that rounding breaks."""

MAX_BYTES = 2**30
"""Bytes of the compared lanes above which nothing is compared, since one step copies them."""

TOLERANCE = 1e-3
"""Relative difference, by the root mean square of a leaf, that rounding in float32 stays far below."""


class MismatchError(ValueError):
    """A compiled step does not compute what the same step computes uncompiled."""


class Comparison(NamedTuple):
    """The comparison of one step: `begin` before the compiled step, which writes over its state, then `end`."""

    begin: Callable[[Any, Any], Any]
    """`begin(state [S, ...], xs [n, S, ...]) -> expected`, of the first x; None where nothing is compared any more."""
    end: Callable[[Any, Any], None]
    """`end(expected, state)` raises MismatchError, naming the leaf, if this step and the one before it differ."""


def comparison(step: Callable[[Any, Any], Any]) -> Comparison:
    """Compare the first steps with `step(state, x) -> state`, a function of one lane, until one agrees."""
    differing: list[str] = []
    over = False  # asked at every call, so that a run pays nothing once it is settled

    def begin(state: Any, xs: Any) -> Any:
        nonlocal over
        if over:
            return None
        few = slice(LANES)
        compared = tree.index(state, few)
        if (size := tree.nbytes(compared)) > MAX_BYTES:
            over = True
            warnings.warn(
                f"compiled steps are not compared with eager execution: {LANES} seeds hold {size / 1e9:.1f} GB, "
                f"more than {MAX_BYTES / 1e9:.1f} GB",
                stacklevel=1,
            )
            return None
        with torch.no_grad():
            return vmap(step)(compared, tree.index(xs, (0, few)))

    def end(expected: Any, state: Any) -> None:
        nonlocal over
        if expected is None:
            return
        found = differences(expected, tree.index(state, slice(LANES)))
        over = not found
        differing.extend(found[:1])
        if found and len(differing) >= ATTEMPTS:
            raise MismatchError(
                f"compiled step: expected the results of eager execution, got different values in {found[0]}; the "
                "compiler miscompiles this program: train with --no-compile, or skip this check with "
                "--no-check-compile (check_compile=False)"
            )

    return Comparison(begin, end)


def with_comparison(
    fold: Callable[[State, Any], State], step: Callable[[State, Any], State]
) -> Callable[[State, Any], State]:
    """`fold(state, xs)`, a compiled step for each x of xs, whose first steps are compared with `step` of one lane.

    Raises MismatchError as `comparison` does.
    """
    begin, end = comparison(step)

    def folded(state: State, xs: Any) -> State:
        expected = begin(state, xs)
        if expected is None:
            return fold(state, xs)
        state = fold(state, tree.index(xs, slice(1)))
        end(expected, state)
        rest = tree.index(xs, slice(1, None))
        return fold(state, rest) if len(tree.leaves(rest)[0]) else state

    return folded


def differences(expected: Any, got: Any) -> list[str]:
    """The leaves that differ, by path, with their relative error. Integers and booleans must be equal, other leaves

        rms(expected - got) <= tolerance * (rms(expected) + 0.1 * the largest rms of the leaves beside it)

    Leaves beside it are those of the same dict or tuple: a gradient that is 0 but for rounding is compared with theirs.
    NaN equals NaN.
    """
    paths, leaves, others = tree.paths(expected), tree.leaves(expected), tree.leaves(got)
    sizes = [_rms(torch.where(x.isfinite(), x, 0.0)) if x.is_floating_point() else 0.0 for x in leaves]
    beside: dict[str, float] = {}
    for path, size in zip(paths, sizes, strict=True):
        beside[_parent(path)] = max(size, beside.get(_parent(path), 0.0))
    found = []
    for path, a, b, size in zip(paths, leaves, others, sizes, strict=True):
        if not a.is_floating_point():
            found += [] if torch.equal(a, b) else [path]
            continue
        error = _rms(torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b))
        scale = size + 0.1 * beside[_parent(path)]
        if not error <= _tolerance(a) * scale:
            found.append(f"{path} (relative error {error / scale if scale else error:.2g})")
    return found


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt()) if x.numel() else 0.0


def _parent(path: str) -> str:
    """The path of what holds a leaf: `.params` for `.params['0.weight']`, `.metrics` for `.metrics.running`."""
    return path[: path.rfind("[" if path.endswith("]") else ".")]


def _tolerance(x: Tensor) -> float:
    """Wider where products round more: in half precisions, and with TF32 on a GPU."""
    rounding = torch.finfo(x.dtype).eps
    if x.is_cuda and torch.get_float32_matmul_precision() != "highest":
        rounding = max(rounding, 2.0**-10)
    return max(TOLERANCE, 16 * rounding)
