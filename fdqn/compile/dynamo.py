"""Compile with `torch.compile`: the engine for CUDA, and the fallback where private functions of torch are missing."""

import contextlib
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from fdqn import tree
from fdqn.compile import graph, host_tensors, private
from fdqn.compile.lock import compiling
from fdqn.compile.signature import tensors


def compile_function(f: Callable[..., Any], args: Any) -> Callable[..., Any]:
    """Return `f`, compiled at its first call. It accepts only arguments of the signature of `args` and records no
    gradients.

    Raises UnavailableError if this version of torch would compute wrong gradients and the workaround is unavailable.
    """
    _check_devices(f, args)
    run = torch.compile(_unseen(f), fullgraph=True, dynamic=False, options=_options(tensors(args)))
    is_first = True

    def call(*args: Any) -> Any:
        nonlocal is_first
        if not is_first:
            with torch.no_grad():
                return run(*args)
        with compiling(writes=True), graph.without_tf32_warning():
            result = run(*args)
        is_first = False
        return result

    return call


def compile_step(step: Callable[[Any, Any], Any], args: Any) -> Callable[..., None]:
    """Compile a donated `step(state, x)` as a function of the leaves of state and x; it updates the state in place."""
    structure = tree.map(lambda leaf: 0, args)  # does not keep the tensors alive

    def flat(*given: Tensor) -> None:
        left = iter(given)
        step(*tree.map(lambda leaf: next(left), structure))

    return compile_function(flat, tuple(tree.leaves(args)))


def _options(inputs: list[Tensor]) -> dict[str, Any]:
    """Return options of `torch.compile`: inductor's settings, the pass `own_memory`, and no guards.

    A compiled function is called with one signature only, and guards cost 70 to 130 us a call.
    """
    options: dict[str, Any] = {}
    with contextlib.suppress(private.UnavailableError):  # the settings only save microseconds per call
        options = graph.options(inputs)
    if (skip := getattr(torch.compiler, "skip_all_guards_unsafe", None)) is not None:
        options["guard_filter_fn"] = skip
    try:
        options["post_grad_custom_pre_pass"] = _own_memory_pass()
    except private.UnavailableError as error:
        if torch.__version__ < graph.FIXED_IN:
            raise private.UnavailableError(f"{error}, without which it computes wrong gradients under vmap") from None
    return options


def _own_memory_pass() -> Any:
    """Return `graph.own_memory` as a pass that inductor runs on the graph traced by Dynamo.

    The hook is documented but not stable. Raises UnavailableError if it is missing.
    """
    base = private.lookup("torch._inductor.custom_graph_pass.CustomGraphPass")
    private.lookup("torch._inductor.config.post_grad_custom_pre_pass")

    class OwnMemory(base):  # type: ignore[misc, valid-type]
        def __call__(self, graph_: torch.fx.Graph) -> None:
            graph.own_memory(graph_)

        def uuid(self) -> str:
            """Return the pass's identifier in the keys of inductor's caches; change it whenever the pass changes."""
            return "fdqn.own_memory.1"

    return OwnMemory()


def _check_devices(f: Callable[..., Any], args: Any) -> None:
    """Raise ValueError for host tensors in a graph for another device; no check if the graph cannot be traced."""
    if all(x.device.type == "cpu" for x in tensors(args)):
        return
    with contextlib.suppress(private.UnavailableError):
        traced, _ = graph.trace(f, args)
        host_tensors.check_on_device(traced, args, lambda: graph.trace(f, args))


def _unseen(f: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `f` in a new code object. Dynamo caches compiled code by code object, so it compiles this one afresh."""

    def unseen(*args: Any) -> Any:
        return f(*args)

    return FunctionType(unseen.__code__.replace(), unseen.__globals__, closure=unseen.__closure__)
