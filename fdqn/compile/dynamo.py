"""Compile with `torch.compile`: the engine for CUDA, and the one to step down to without private functions."""

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
    """Return `f`, compiled at its first call. It takes arguments of this signature only, and records no gradients.

    Raises UnavailableError where this version would compute wrong gradients and cannot be kept from it.
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
    """Return a donated `step(state, x)` as a function of the tensors of state and x, which writes over the first."""
    structure = tree.map(lambda leaf: 0, args)  # of the tensors nothing is kept

    def flat(*given: Tensor) -> None:
        left = iter(given)
        step(*tree.map(lambda leaf: next(left), structure))

    return compile_function(flat, tuple(tree.leaves(args)))


def _options(inputs: list[Tensor]) -> dict[str, Any]:
    """Return options of `torch.compile`: inductor's as far as they are known, the guard, and no checks before a call.

    A compiled function is called with one signature only, and the checks cost 70 to 130 us a call.
    """
    options: dict[str, Any] = {}
    with contextlib.suppress(private.UnavailableError):  # they save microseconds a call
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
    """Return `graph.own_memory` as a pass of inductor, which runs it on the graph that Dynamo has traced.

    The hook is documented but not stable. Without it, UnavailableError.
    """
    base = private.lookup("torch._inductor.custom_graph_pass.CustomGraphPass")
    private.lookup("torch._inductor.config.post_grad_custom_pre_pass")

    class OwnMemory(base):  # type: ignore[misc, valid-type]
        def __call__(self, graph_: torch.fx.Graph) -> None:
            graph.own_memory(graph_)

        def uuid(self) -> str:
            """Name the pass in the keys of inductor's caches; to be changed with it."""
            return "fdqn.own_memory.1"

    return OwnMemory()


def _check_devices(f: Callable[..., Any], args: Any) -> None:
    """Refuse tensors on the host in a graph for a device by name, where they can be seen."""
    if all(x.device.type == "cpu" for x in tensors(args)):
        return
    with contextlib.suppress(private.UnavailableError):
        traced, _ = graph.trace(f, args)
        host_tensors.check_on_device(traced, args, lambda: graph.trace(f, args))


def _unseen(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return `f` behind code that Dynamo has not met: it keeps what it compiled with the code object."""

    def unseen(*args: Any) -> Any:
        return f(*args)

    return FunctionType(unseen.__code__.replace(), unseen.__globals__, closure=unseen.__closure__)
