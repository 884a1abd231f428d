"""Compile a step ahead of time into a library that is kept on disk and needs no Python to be called."""

import atexit
import contextlib
import functools
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fdqn.compile import graph, private, processor, toolchain
from fdqn.compile.lock import compiling
from fdqn.compile.signature import tensors


class BuildSpec(NamedTuple):
    """All that a library is built from."""

    traced: torch.fx.GraphModule
    inputs: list[tuple[torch.Size, tuple[int, ...], torch.dtype]]
    options: dict[str, Any]
    path: Path
    """Where it is kept, named by all that it depends on."""


def library(f: Callable[..., Any], args: Any, threads: int) -> Path | None:
    """Return the library of `f` for `args`, all of them its state and noise; None where a call would need Python.

    A library saves the interpreter and the barriers of the graph `inductor` makes: 1.05 to 1.2 times the speed. Without
    one of the private functions used here, UnavailableError: the engine `inductor` is next.
    """
    spec = _spec(f, args, threads)
    if builder := toolchain.background.get(spec.path):
        builder.wait()
        toolchain.background.pop(spec.path, None)
    if not spec.path.exists():
        build(spec)
    return None if b"aoti_torch_proxy_executor_call_function" in spec.path.read_bytes() else spec.path


def build(spec: BuildSpec) -> None:
    """Compile a library. What fails in a process of its own is built again, and fails, here."""
    aot_compile = private.lookup("torch._inductor.aot_compile")
    for node in spec.traced.graph.nodes:
        node.meta.clear()  # after unpickling, stand-ins that do not know each other
    examples = [torch.empty_strided(*kind[:2], dtype=kind[2]) for kind in spec.inputs]
    with private.calling("torch._inductor.aot_compile"):
        made = aot_compile(spec.traced, tuple(examples), options=spec.options)
    spec.path.parent.mkdir(parents=True, exist_ok=True)
    part = spec.path.with_suffix(f".{os.getpid()}")
    shutil.copy(str(made), part)
    os.replace(part, spec.path)


def build_in_background(f: Callable[..., Any], args: Any, threads: int) -> None:
    """Start a process that builds what `library` will be asked for."""
    spec = _spec(f, args, threads)
    if spec.path.exists() or spec.path in toolchain.background:
        return
    # `-P`: what is imported is what this process would import, not what lies in the working directory.
    command = [sys.executable, "-P", "-c", "from fdqn.compile import aot; aot._build_from_input()"]
    with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError, OSError):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        written = pickle.dumps(spec)
        # In a session of its own, so that its compilers can be ended with it.
        builder = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        atexit.register(toolchain.end, builder)
        toolchain.background[spec.path] = builder
        assert builder.stdin is not None  # a pipe was asked for
        with builder.stdin:
            builder.stdin.write(written)


def _build_from_input() -> None:
    """Build the spec on standard input: the other process."""
    with compiling():
        build(pickle.load(sys.stdin.buffer))


def _spec(f: Callable[..., Any], args: Any, threads: int) -> BuildSpec:
    traced, _ = graph.trace(f, args)
    inputs = [(x.shape, x.stride(), x.dtype) for x in tensors(args)]
    # A vector that is not full would be one of a group's few lanes, each array transposed for it: 0.88x at 32 lanes.
    options = graph.options(
        tensors(args), {"cpp.threads": threads, "cpp_wrapper": False, "cpp.enable_loop_tail_vec": False}
    )
    constants = [(name, x.dtype, x.tolist()) for name, x in traced.state_dict().items()]
    compiler = os.environ.get("CXX"), torch.backends.cpu.get_cpu_capability(), processor.line("flags", "Features")
    made_from = (torch.__version__, compiler, _settings(), options, traced.code, constants, inputs)
    name = hashlib.sha256(repr(made_from).encode()).hexdigest()
    return BuildSpec(traced, inputs, options, toolchain.cache_dir() / "fdqn" / f"{name}.so")


@functools.cache
def _settings() -> str:
    """Return inductor's own settings as this process found them; compiling changes some.

    A library is named by them, so that settings in the environment count; without them, UnavailableError.
    """
    return repr(sorted(private.lookup("torch._inductor.config.save_config_portable")().items()))
