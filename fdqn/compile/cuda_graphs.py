"""Run a compiled step for each of n inputs, in a loop on the host or as one CUDA graph."""

import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdqn.compile.signature import kind

# CUDA graphs kept per state. A run uses few different chunk lengths more than once.
GRAPHS_KEPT = 8

Step = Callable[..., Any]
"""A compiled function of tensors; it updates the first of them, the state, in place."""


def in_turn(step: Step, leaves: list[Tensor], xs: list[Tensor]) -> None:
    """Call `step(*leaves, *x)` for each x of `xs`, leaves [n, ...], in a loop on the host."""
    for x in zip(*(x.unbind() for x in xs), strict=True):
        step(*leaves, *x)


def captures(xs: list[Tensor]) -> bool:
    """Return True if repeated scans are captured in CUDA graphs: on CUDA, where launches cost more than the kernels."""
    return xs[0].is_cuda


class _Captured(NamedTuple):
    """A CUDA graph of n steps of one state."""

    replay: Callable[[list[Tensor]], None]
    pool: Any
    """Memory pool of its temporaries. Graphs that are replayed one after the other share it."""


class _StateGraphs(NamedTuple):
    """The CUDA graphs of one state. They write to its addresses."""

    leaves: list[weakref.ref[Tensor]]
    captured: dict[Any, _Captured | None]
    """Graphs by step function, number of steps and kinds of inputs, most recent last; None if seen once."""


def replayed() -> Callable[[Step, list[Tensor], list[Tensor]], None]:
    """Return a form of `in_turn` that captures a CUDA graph at the second equal call and replays it from then on.

    The last GRAPHS_KEPT graphs of each state are kept; graphs of freed states are dropped.
    """
    states: dict[Any, _StateGraphs] = {}
    works = True

    def run(step: Step, leaves: list[Tensor], xs: list[Tensor]) -> None:
        nonlocal works
        graphs = _of_state(states, leaves)
        place = (id(step), len(xs[0]), *map(kind, xs))
        seen, captured = place in graphs, graphs.pop(place, None)
        if seen and captured is None and works:
            pool = next((each.pool for each in graphs.values() if each), None) or torch.cuda.graph_pool_handle()
            captured = _captured_or_warned(step, leaves, xs, pool)
            works = captured is not None
        graphs[place] = captured
        for oldest in list(graphs)[:-GRAPHS_KEPT]:
            del graphs[oldest]
        if captured is None:
            in_turn(step, leaves, xs)
        else:
            captured.replay(xs)

    return run


def _of_state(states: dict[Any, _StateGraphs], leaves: list[Tensor]) -> dict[Any, _Captured | None]:
    """Return the graphs of the state with these leaves; drop those of freed states."""
    addresses = tuple(x.data_ptr() for x in leaves)
    if addresses not in states:
        for gone in [key for key, each in states.items() if any(leaf() is None for leaf in each.leaves)]:
            del states[gone]
        states[addresses] = _StateGraphs([weakref.ref(x) for x in leaves], {})
    return states[addresses].captured


def _captured_or_warned(step: Step, leaves: list[Tensor], xs: list[Tensor], pool: Any) -> _Captured | None:
    """Return `_captured`; if it fails, restore the stream, warn and return None."""
    stream = torch.cuda.current_stream(leaves[0].device)
    try:
        return _Captured(_captured(step, leaves, xs, pool), pool)
    except RuntimeError as error:
        # After a failed capture torch.cuda.graph leaves its own stream as the current one (2.13).
        torch.cuda.set_stream(stream)
        first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
        reason = next(iter(str(first).splitlines()), type(first).__name__)
        warnings.warn(
            f"CUDA graph: expected to capture {len(xs[0])} steps, got: {reason}; kernels are launched one by one, "
            "which is slower",
            stacklevel=2,
        )
        return None


def _captured(step: Step, leaves: list[Tensor], xs: list[Tensor], pool: Any) -> Callable[[list[Tensor]], None]:
    """Capture `in_turn` as one CUDA graph that reads `xs` from static buffers. Capturing executes no kernels.

    Temporaries are allocated from `pool`.
    """
    # The step was compiled for these strides; `empty_like` would not keep them.
    buffers = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in xs]
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording, pool=pool):
        in_turn(step, leaves, buffers)

    def replay(xs: list[Tensor]) -> None:
        for buffer, x in zip(buffers, xs, strict=True):
            buffer.copy_(x)
        recording.replay()

    return replay
