"""Compare compiled steps with eager execution, once at the start of a run.

A compiler may miscompile a new program: inductor of torch 2.13 multiplied some gradients by the number of lanes. One
step of two lanes detects that and takes a tenth of a second.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from fdqn import tree

State = TypeVar("State")

LANES = 2
"""Number of lanes that are compared."""

ATTEMPTS = 2
"""Consecutive steps that must differ. A single one may differ by chance, if rounding breaks a tie between actions."""

MAX_BYTES = 2**30
"""Largest size in bytes of the compared lanes, which are copied. If they are larger, nothing is compared."""

TOLERANCE = 1e-3
"""Largest relative difference of a leaf's root mean square. Rounding in float32 stays far below it."""


class MismatchError(ValueError):
    """A compiled step and the same step in eager execution give different results."""


class Comparison(NamedTuple):
    """The comparison of one step: call `start` before the compiled step, which overwrites its state, then `finish`."""

    start: Callable[[Any, Any], Any]
    """`start(state [S, ...], xs [n, S, ...]) -> expected` for the first x; None once the comparison is over."""
    finish: Callable[[Any, Any], None]
    """`finish(expected, state)` raises MismatchError, naming the leaf, if this step and the previous one differ."""


def comparison(step: Callable[[Any, Any], Any]) -> Comparison:
    """Compare compiled steps with `step(state, x) -> state`, a function of one lane, until one agrees."""
    differing: list[str] = []
    over = False  # later calls return at once

    def start(state: Any, xs: Any) -> Any:
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
            # A copy, because the result may hold leaves of the state, which the compiled step overwrites.
            return vmap(step)(tree.clone(compared), tree.index(xs, (0, few)))

    def finish(expected: Any, state: Any) -> None:
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

    return Comparison(start, finish)


def with_comparison(
    scan: Callable[[State, Any], State], step: Callable[[State, Any], State]
) -> Callable[[State, Any], State]:
    """Return `scan(state, xs)`, a compiled scan, with its first steps compared with `step`, a function of one lane.

    The returned function raises MismatchError as `comparison` does.
    """
    start, finish = comparison(step)

    def compared(state: State, xs: Any) -> State:
        expected = start(state, xs)
        if expected is None:
            return scan(state, xs)
        state = scan(state, tree.index(xs, slice(1)))
        finish(expected, state)
        rest = tree.index(xs, slice(1, None))
        return scan(state, rest) if len(tree.leaves(rest)[0]) else state

    return compared


def differences(expected: Any, got: Any) -> list[str]:
    """Return the paths of the leaves that differ, with their relative errors.

    Integers and booleans must be equal, except priorities in fixed point (`replay.prioritized`), which are computed
    from losses; the rms of their errors may be `TOLERANCE` times their rms.
    Floating-point leaves must satisfy

        rms(expected - got) <= tolerance * (rms(expected) + 0.1 * largest rms of its siblings)

    Siblings are the leaves of the same dict or tuple; they give a scale to a gradient that is 0 up to rounding. NaN
    equals NaN.
    """
    paths, leaves, others = tree.paths(expected), tree.leaves(expected), tree.leaves(got)
    sizes = [_rms(torch.where(x.isfinite(), x, 0.0)) if x.is_floating_point() else 0.0 for x in leaves]
    siblings: dict[str, float] = {}
    for path, size in zip(paths, sizes, strict=True):
        siblings[_parent(path)] = max(size, siblings.get(_parent(path), 0.0))
    found = []
    for path, a, b, size in zip(paths, leaves, others, sizes, strict=True):
        if not a.is_floating_point():
            is_close = _FIXED_POINT.search(path) is not None and _rms(a - b) <= TOLERANCE * _rms(a)
            found += [] if is_close or torch.equal(a, b) else [path]
            continue
        error = _rms(torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b))
        scale = size + 0.1 * siblings[_parent(path)]
        if not error <= _tolerance(a) * scale:
            found.append(f"{path} (relative error {error / scale if scale else error:.2g})")
    return found


_FIXED_POINT = re.compile(r"\.(mass|sums\[\d+\]|highest)$")
"""Paths of the fields of `replay.prioritized.Prioritized` that are computed from priorities."""


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt()) if x.numel() else 0.0


def _parent(path: str) -> str:
    """Return the path of a leaf's container: `.params` for `.params['0.weight']`, `.metrics` for `.metrics.running`."""
    return path[: path.rfind("[" if path.endswith("]") else ".")]


def _tolerance(x: Tensor) -> float:
    """Return TOLERANCE, or more where products round more: in half precision, and with TF32 on a GPU."""
    rounding = torch.finfo(x.dtype).eps
    if x.is_cuda and torch.get_float32_matmul_precision() != "highest":
        rounding = max(rounding, 2.0**-10)
    return max(TOLERANCE, 16 * rounding)
