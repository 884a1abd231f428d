"""Find CPU tensors in a graph for another device."""

import contextlib
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fdqn.compile.signature import tensors


def check_on_device(traced: torch.fx.GraphModule, args: Any, again: Callable[[], Any]) -> None:
    """Raise ValueError if a graph for another device contains a CPU tensor or a copy from or to the CPU.

    A CUDA graph cannot capture such a copy, and without capture it would synchronize the host at every step. `again`
    traces the graph once more, to find the line of code for the message.
    """
    away = [x.device for x in tensors(args) if x.device.type != "cpu"]
    for node in traced.graph.nodes if away else ():
        if (x := _on_host(node)) is not None:
            what = "a constant" if node.op == "get_attr" else "an argument" if node.op == "placeholder" else node.target
            raise ValueError(
                f"compile: expected every tensor on {away[0]}, got {what} {list(x.shape)} {x.dtype} on {x.device}"
                f"{_source_line(again)}; create it on the device of an argument, as in "
                "torch.zeros(3, device=x.device)"
            )


def _on_host(node: torch.fx.Node) -> Tensor | None:
    """Return the tensor of a node that is on the CPU or copied from or to it, else None.

    A scalar tensor [] on the CPU does not count, since kernels take it by value.
    """
    if node.op == "output":
        return None
    here = tensors(node.meta.get("val"))
    given = [x for source in node.all_input_nodes for x in tensors(source.meta.get("val"))]
    from_device = any(x.device.type != "cpu" for x in given)
    copied = given if _is_copy(node) and any(x.device.type != "cpu" for x in here) else []
    found = [x for x in here if x.device.type == "cpu" and (x.ndim or from_device)]
    found += [x for x in copied if x.device.type == "cpu"]
    return found[0] if found else None


def _is_copy(node: torch.fx.Node) -> bool:
    return str(node.target).split(".")[1:2] in (["_to_copy"], ["copy"], ["copy_"], ["device_put"])


def _source_line(trace: Callable[[], Any]) -> str:
    """Describe the line of code at which a CPU tensor first appears; an empty string if none is found."""
    with contextlib.suppress(Exception), (seen := _HostTensors()):
        trace()
    return seen.line


class _HostTensors(TorchFunctionMode):
    """Records the first call of a torch function that takes or returns a CPU tensor with at least one axis."""

    line = ""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self.line and any(x.device.type == "cpu" and x.ndim for x in tensors((args, kwargs, result))):
            inside = tuple(str(Path(file).parent) + os.sep for file in (torch.__file__, __file__))
            frame = next((x for x in reversed(traceback.extract_stack()) if not x.filename.startswith(inside)), None)
            self.line = f" in {Path(frame.filename).name}, line {frame.lineno}, {frame.name}" if frame else ""
        return result
