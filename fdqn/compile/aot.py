"""Compile a step ahead of time into a shared library that is cached on disk and called without Python."""

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
    """Everything a library is built from."""

    traced: torch.fx.GraphModule
    inputs: list[tuple[torch.Size, tuple[int, ...], torch.dtype]]
    options: dict[str, Any]
    path: Path
    """Path of the library; its name is a hash of everything the library depends on."""


def library(f: Callable[..., Any], args: Any, threads: int) -> Path | None:
    """Return the path of the library of `f` for `args`, (state, noise), and build it if it is missing.

    Returns None if the compiled step would have to call back into Python. A library avoids the interpreter and the
    barriers of a graph of the engine `inductor` and is 1.05 to 1.2 times as fast. Raises UnavailableError if a private
    function of torch that it needs is missing.
    """
    spec = _spec(f, args, threads)
    if builder := toolchain.background.get(spec.path):
        builder.wait()
        toolchain.background.pop(spec.path, None)
    if not spec.path.exists():
        build(spec)
    return None if b"aoti_torch_proxy_executor_call_function" in spec.path.read_bytes() else spec.path


def build(spec: BuildSpec) -> None:
    """Compile a library.

    A failed background build leaves no library, so `library` builds it again and raises the error in this process.
    """
    aot_compile = private.lookup("torch._inductor.aot_compile")
    for node in spec.traced.graph.nodes:
        node.meta.clear()  # unpickled fake tensors no longer share one fake mode
    examples = [torch.empty_strided(*kind[:2], dtype=kind[2]) for kind in spec.inputs]
    with private.calling("torch._inductor.aot_compile"):
        made = aot_compile(spec.traced, tuple(examples), options=spec.options)
    spec.path.parent.mkdir(parents=True, exist_ok=True)
    part = spec.path.with_suffix(f".{os.getpid()}")
    shutil.copy(str(made), part)
    os.replace(part, spec.path)


def build_in_background(f: Callable[..., Any], args: Any, threads: int) -> None:
    """Start a process that builds the library that `library` will return for the same arguments."""
    spec = _spec(f, args, threads)
    if spec.path.exists() or spec.path in toolchain.background:
        return
    # `-P`: import the same modules as this process, not those of the working directory.
    command = [sys.executable, "-P", "-c", "from fdqn.compile import aot; aot._build_from_input()"]
    with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError, OSError):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        written = pickle.dumps(spec)
        # A separate session, so that `toolchain.end` can kill its compilers too.
        builder = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        atexit.register(toolchain.end, builder)
        toolchain.background[spec.path] = builder
        assert builder.stdin is not None  # because of stdin=PIPE
        with builder.stdin:
            builder.stdin.write(written)


def _build_from_input() -> None:
    """Build the pickled spec on standard input; this is the main function of the background process."""
    with compiling():
        build(pickle.load(sys.stdin.buffer))


def _spec(f: Callable[..., Any], args: Any, threads: int) -> BuildSpec:
    traced, _ = graph.trace(f, args)
    inputs = [(x.shape, x.stride(), x.dtype) for x in tensors(args)]
    # Loop tails are not vectorized: inductor would vectorize over the few lanes of a group and transpose every array
    # for it, 0.88x the speed at 32 lanes.
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
    """Return inductor's settings as they were before the first compilation, which changes some.

    They are part of a library's name, so that settings from environment variables count. Raises UnavailableError if
    they cannot be read.
    """
    return repr(sorted(private.lookup("torch._inductor.config.save_config_portable")().items()))
