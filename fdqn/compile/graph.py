"""Trace a pure function with `make_fx` and compile the graph with inductor.

`torch.compile` traces bytecode first and checks guards before every call. Pure functions of fixed shapes need neither:
the guards and the wrapper of `torch.compile` cost 300 us a training iteration, twice the work of one seed.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdqn import tree
from fdqn.compile import host_tensors, private
from fdqn.compile.donation import overlaps
from fdqn.compile.signature import tensors


class TensorSlot(int):
    """Index of a tensor in the list of a graph's inputs followed by its outputs."""


class Graph(NamedTuple):
    """A compiled function of tensors."""

    run: Callable[..., Any]
    """Takes the input tensors and returns the output tensors that are not inputs."""
    result: Any = None
    """Return value of the traced function, with a TensorSlot in place of each tensor."""


def compile_graph(f: Callable[..., Any], args: Any) -> Graph:
    """Trace `f` for `args` and compile it with inductor.

    `torch._inductor.compile` takes a graph without guards: 205 instead of 493 us an iteration at one seed. Raises
    UnavailableError if it or `make_fx` is missing.
    """
    compile = private.lookup("torch._inductor.compile")
    traced, result = trace(f, args)
    inputs = tensors(args)
    host_tensors.check_on_device(traced, args, lambda: trace(f, args))
    settings = options(inputs)
    with without_tf32_warning(), private.calling("torch._inductor.compile"):
        return Graph(compile(traced, list(inputs), options=settings), result)


def trace(f: Callable[..., Any], args: Any) -> tuple[torch.fx.GraphModule, Any]:
    """Trace `f` with fake tensors; return the graph and the return value of `f`, as in `Graph`.

    `make_fx` traces through vmap and grad at the level of operators, in a tenth of the time of tracing bytecode (0.4 s
    for a training iteration). Raises UnavailableError if it is missing.
    """
    inputs, result = tensors(args), None
    make_fx = private.lookup("torch.fx.experimental.proxy_tensor.make_fx")

    def flat(*given: Tensor) -> list[Tensor]:
        nonlocal result
        left = iter(given)
        returned = f(*tree.map(lambda leaf: next(left) if isinstance(leaf, Tensor) else leaf, args))
        outputs: list[Tensor] = []
        slots = {id(x): TensorSlot(i) for i, x in enumerate(given)}
        for x in tensors(returned):
            if id(x) not in slots:
                slots[id(x)] = TensorSlot(len(given) + len(outputs))
                outputs.append(x)
        result = tree.map(lambda leaf: slots.get(id(leaf), leaf), returned)
        return outputs

    with torch.no_grad():
        with private.calling("torch.fx.experimental.proxy_tensor.make_fx"):
            tracer = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)
        traced = tracer(*inputs)
    own_memory(traced.graph)
    traced.recompile()
    return traced, result


def own_memory(graph: torch.fx.Graph) -> None:
    """Insert a contiguous copy of each written tensor whose elements share memory.

    Under vmap, the zeros that a gradient is accumulated into are one tensor, expanded over the lanes. Inductor of torch
    2.13 and older writes into it in place, and every lane gets the sum over all lanes (pytorch issues 188084 and
    183986, fixed in 2.14.1).
    """
    for node in list(graph.nodes):
        if getattr(node.target, "overloadpacket", None) in _WRITES and overlaps(node.args[0].meta["val"]):
            given, layout = node.args[0], torch.contiguous_format
            with graph.inserting_before(node):
                own = graph.call_function(torch.ops.aten.clone.default, (given,), {"memory_format": layout})
            own.meta["val"] = given.meta["val"].clone(memory_format=layout)
            node.update_arg(0, own)


FIXED_IN = "2.14.1"
"""First version of torch that does not need `own_memory`."""

# Operators that return their first argument with some elements replaced; inductor may compute them in place.
_WRITES = frozenset(
    getattr(torch.ops.aten, name)
    for name in (
        *("index_add", "index_copy", "index_fill", "index_put", "_unsafe_index_put", "index_reduce", "put"),
        *("scatter", "scatter_add", "scatter_reduce", "masked_scatter"),
        *("select_scatter", "slice_scatter", "diagonal_scatter", "as_strided_scatter"),
    )
    if hasattr(torch.ops.aten, name)
)


def options(inputs: list[Tensor], others: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings for inductor, together with `others`, that exist in this version of torch.

    Autotuning, which selects kernels by timing them, stays off, so that runs are reproducible. Raises UnavailableError
    if `torch._inductor.list_options`, which lists the settings, is missing.
    """
    wanted: dict[str, Any] = {"size_asserts": False, "alignment_asserts": False, "triton.cudagraphs": False}
    wanted |= {"deterministic": True, "triton.autotune_pointwise": False}
    if not any(x.is_cuda for x in inputs):
        # vec_isa_ok skips inductor's test of the vector instructions: ten small programs, seven seconds to compile.
        wanted |= {"cpp_wrapper": True, "cpp.threads": torch.get_num_threads(), "cpp.vec_isa_ok": True}
    known = private.lookup("torch._inductor.list_options")()
    return {name: value for name, value in (wanted | (others or {})).items() if name in known}


@contextlib.contextmanager
def without_tf32_warning() -> Iterator[None]:
    """Suppress inductor's advice to allow TF32, which is the user's choice (`allow_tf32`)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        yield
