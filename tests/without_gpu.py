"""Compile for an H100, or interpret, the CUDA code that inductor generates for a training step, without a GPU.

    python tests/without_gpu.py                       count kernels for sm_90 and launches, expect none on the CPU
    TRITON_INTERPRET=1 python tests/without_gpu.py    compare the kernels in Triton's interpreter with eager

Each prints one line of JSON. If this version of torch or triton lacks one of the private names that are replaced here,
the exit code is SKIPPED and the reason is on standard error. The names are those of torch 2.13 and triton 3.7.

Graph capture, cuBLAS, TF32, races between threads, synchronization and speed are tested by `pytest -m gpu` only.
"""

import collections
import contextlib
import ctypes
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import types
import warnings
from functools import partial

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fdqn import compile as edge
from fdqn import training, tree
from fdqn.compile import graph, host_tensors
from fdqn.compile.signature import tensors
from fdqn.testing import asserts, examples
from fdqn.types import Hyper

# Triton reads this variable when it is imported.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

SKIPPED = 77
SEEDS = 3

H100 = types.SimpleNamespace(
    name="H100",
    major=9,
    minor=0,
    total_memory=80 << 30,
    multi_processor_count=132,
    warp_size=32,
    gcnArchName="",
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 << 20,
)

# The kernels compiled and the modules generated since the last call of `compiled`.
KERNELS = []
MODULES = []


class Missing(Exception):
    """Raised if torch or triton lacks a name that is replaced here."""


def found(module, name=None):
    """Return a module or its attribute; raise Missing if there is none."""
    try:
        imported = importlib.import_module(module)
        return getattr(imported, name) if name else imported
    except (ImportError, AttributeError) as error:
        raise Missing(f"{module}.{name or ''} is missing: {error}") from error


def replace(owner, name, value):
    """Set an attribute; raise Missing if it does not exist."""
    if not hasattr(owner, name):
        raise Missing(f"{getattr(owner, '__name__', owner)}.{name} is missing")
    setattr(owner, name, value)


# Simulated GPU


def simulate_gpu():
    """Make torch, inductor and triton assume one GPU."""
    register_guard()
    simulate_in_torch()
    simulate_in_triton()
    simulate_in_inductor()


def register_guard():
    """Register a no-op device guard for CUDA, which CPU builds of torch lack."""
    if torch.version.cuda is None:
        root = os.path.dirname(torch.__file__)
        source = b"C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>);"
        with tempfile.TemporaryDirectory() as folder:
            command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{root}/include", f"-L{root}/lib"]
            command += ["-include", "c10/core/impl/DeviceGuardImplInterface.h", "-xc++", "-", "-lc10"]
            done = subprocess.run([*command, "-o", f"{folder}/guard.so"], input=source, capture_output=True)
            if done.returncode:
                raise Missing(f"no guard for CUDA could be compiled: {done.stderr.decode()[-300:]}")
            ctypes.CDLL(f"{folder}/guard.so")
        torch._C._cuda_getCurrentRawStream = lambda index: 0
    found("torch._C", "_ensureCUDADeviceGuardSet")()


def simulate_in_torch():
    """Make torch report one available H100."""
    replace(FakeTensorMode, "avoid_device_init", property(lambda mode: True))
    interface = found("torch._dynamo.device_interface", "CudaInterface")
    results = {
        "current_device": 0,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "synchronize": None,
        "_lazy_init": None,
        "set_device": None,
        "set_rng_state": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "is_available": True,
        "device_count": 1,
        "get_device_properties": H100,
        "get_device_capability": (9, 0),
    }
    for name, result in results.items():
        replace(torch.cuda, name, lambda *given, result=result, **more: result)
        if hasattr(interface, name):
            setattr(interface, name, staticmethod(getattr(torch.cuda, name)))
    for name in ("exchange_device", "maybe_exchange_device"):
        replace(interface, name, staticmethod(lambda *given: 0))


def simulate_in_triton():
    """Make triton compile for sm_90."""
    target = found("triton.backends.compiler", "GPUTarget")("cuda", 90, 32)
    utils = types.SimpleNamespace(get_device_properties=lambda index: {"max_shared_mem": 232448})
    driver = found("triton.runtime", "driver")
    simulated = types.SimpleNamespace(utils=utils, get_current_target=lambda: target, get_current_device=lambda: 0)
    replace(driver, "_default", simulated)
    replace(driver, "_active", simulated)


def simulate_in_inductor():
    """Make inductor compile kernels in this process, without loading or tuning them."""
    # False is its result for deterministic settings; the original would allocate real tensors first.
    replace(found("torch._inductor.fx_passes.pad_mm"), "_should_pad", lambda *given, **more: False)
    folder = found("torch._inductor.fx_passes.joint_graph", "UniformValueConstantFolder")
    for name in ("__init__", "_deduce_value"):
        replace(folder, name, constants_on_cpu(getattr(folder, name)))
    replace(found("torch._inductor.runtime.triton_helpers"), "set_driver_to_gpu", lambda: None)
    tuner = found("torch._inductor.runtime.triton_heuristics", "CachingAutotuner")
    replace(tuner, "precompile", (lambda *given, **more: None) if INTERPRETING else precompile)
    cache = found("torch._inductor.codecache", "PyCodeCache")
    load = cache.load_by_key_path
    replace(cache, "load_by_key_path", staticmethod(partial(load_and_store, load)))
    config = found("torch._inductor.config")
    for name, value in {
        "compile_threads": 1,
        "force_disable_caches": True,
        "use_static_triton_launcher": False,
    }.items():
        replace(config, name, value)


def precompile(tuner, *given, **more):
    """Compile the variants of a kernel and store them in KERNELS without loading them."""
    tuner._precompile_worker()
    KERNELS.extend(result.kernel for result in tuner.compile_results)


def load_and_store(load, *given, **more):
    """Load a generated module and store it in MODULES."""
    MODULES.append(load(*given, **more))
    return MODULES[-1]


def constants_on_cpu(function):
    """Wrap a function of inductor's constant folder so that constants are on the CPU: this GPU has no memory."""

    class OnTheCpu(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if kwargs.get("device") is not None and kwargs["device"].type == "cuda":
                kwargs["device"] = torch.device("cpu")
            return operator(*args, **kwargs)

    def wrapped(*given):
        with OnTheCpu():
            return function(*given)

    return wrapped


# Compiling and running a step


def compiled(f, args):
    """Return the module that inductor generates for `f` on CUDA. `args` are on the device `meta`."""
    traced, _ = graph.trace(f, args)
    host_tensors.check_on_device(traced, args, lambda: graph.trace(f, args))
    for node in traced.graph.nodes:
        node.args, node.kwargs = (torch.fx.node.map_aggregate(x, on_cuda) for x in (node.args, node.kwargs))
        node.meta.clear()
    traced.recompile()
    KERNELS.clear()
    MODULES.clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda:0") for x in tensors(args)]
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        torch._inductor.compile(traced, inputs, options=graph.options(inputs))
    return next(module for module in reversed(MODULES) if hasattr(module, "call") or hasattr(module, "runner"))


def on_cuda(x):
    """Replace the device `meta` by CUDA; return other arguments unchanged."""
    return torch.device("cuda", 0) if isinstance(x, torch.device) and x.type == "meta" else x


def run_module(module, inputs, kernel):
    """Run a generated module on `inputs` of another device, and count its launches by kind.

    `kernel(tuner, *args)` is called in place of each Triton kernel.
    """
    launches = collections.Counter()
    device = inputs[0].device

    class LaunchCounter(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            name = operator._schema.name
            allocates = "empty" in name or "strided" in name
            if not (operator.namespace == "prim" or operator.is_view or allocates):
                launches[name] += 1
            return operator(*args, **(kwargs or {}))

    def empty(size, stride, dtype):
        x = torch.empty_strided(size, stride, dtype=dtype, device=device)
        # NaN shows reads of uninitialized memory.
        return x.fill_(torch.nan if dtype.is_floating_point else 1) if device.type == "cpu" else x

    def view(x, size, stride, offset):
        return x.as_strided(size, stride, x.storage_offset() + offset)

    def run(tuner, *args, **more):
        launches["triton"] += 1
        kernel(tuner, *args)

    replaced = {"empty_strided_cuda": empty, "reinterpret_tensor": view, "copy_if_misaligned": lambda x: x}
    vars(module).update(replaced, get_raw_stream=id)
    replace(found("torch._inductor.runtime.triton_heuristics", "CachingAutotuner"), "run", run)
    with torch.no_grad(), LaunchCounter() if device.type == "meta" else contextlib.nullcontext():
        (module.call if hasattr(module, "call") else module.runner.call)(list(inputs))
    return launches


def meta_arguments(program):
    """Return the state of several seeds and the noise of one training iteration, on the device `meta`."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        hyper = Hyper(*(torch.ones(SEEDS, device="meta") for _ in Hyper._fields[:-1]))
        state = training.init(program, hyper, torch.zeros((SEEDS, 2), dtype=torch.int64, device="meta"))
        return state, tree.index(training.noise(program, state.key, 0, 1), 0)


def donated(program, step):
    """Return a step of a program, vmapped over seeds, that overwrites its state."""
    return edge.donate(vmap(partial(getattr(training, step), program)))


# Compiled for sm_90


def compile_for_sm_90(program):
    """Return for each step the numbers of launches, kernels and kernels for sm_90, and whether one is on the CPU."""
    results = {}
    for step in ("collect", "cycle"):
        args = meta_arguments(program)
        module = compiled(donated(program, step), args)
        launches = run_module(module, tensors(args), lambda *given: None)
        with open(module.__file__) as file:
            on_cpu = "cpp_fused" in file.read()
        for_sm_90 = sum("cubin" in kernel.asm and kernel.metadata.target.arch == 90 for kernel in KERNELS)
        results[step] = {"launches": launches, "kernels": len(KERNELS), "for_sm_90": for_sm_90, "on_cpu": on_cpu}
    return results


# Interpreted


def interpret(program):
    """Count for each step the leaves that equal eager ones bit for bit; fail if one differs by more than 1e-4."""
    state = training.init(program, *examples.seeds(SEEDS))
    eager = training.vmapped(program)
    results = {}
    for step, ready in (("collect", 0), ("cycle", 8)):
        number = int(state.cycle[0])
        state = eager.collect(state, training.noise(program, state.key, number, ready)) if ready else state
        noise = training.noise(program, state.key, number + ready, 1)
        got = tree.clone(state)
        module = compiled(donated(program, step), meta_arguments(program))
        run_module(module, tensors((got, tree.index(noise, 0))), run_interpreted)
        state = getattr(eager, step)(state, noise)
        # The last slot of the ring takes dropped returns in an arbitrary order.
        kept = [s._replace(metrics=s.metrics._replace(returns=s.metrics.returns[:, :-1])) for s in (state, got)]
        asserts.assert_trees_close(*kept, 1e-4, 1e-4, f"{step}: ")
        pairs = list(zip(*map(tree.leaves, kept), strict=True))
        results[step] = {"leaves": len(pairs), "equal": sum(torch.equal(a, b) for a, b in pairs)}
    return results


def run_interpreted(tuner, *args):
    """Run a kernel in Triton's interpreter, with small programs in random order to expose dependences between them."""
    builder = found("triton.runtime.interpreter", "interpreter_builder")
    grids = found("torch._inductor.runtime.triton_heuristics", "GridExpr")
    config = tuner.configs[0]
    tuner.fn.fn.__globals__["libdevice"] = libdevice()
    names = [name for name in tuner.fn.arg_names if name not in config.kwargs]
    sizes = dict(zip(names, args, strict=True))
    one_element = sizes.get("xnumel", 10**9) <= 512  # more programs would take minutes
    blocks = {name: 1 if name == "XBLOCK" and one_element else size for name, size in config.kwargs.items()}
    saved = config.kwargs
    config.kwargs = blocks
    grid = grids.from_meta(tuner.inductor_meta, config).eval_slow({**sizes, **blocks})
    config.kwargs = saved
    order = random.sample(range(grid[0]), grid[0])
    set_index = type(builder).set_grid_idx
    builder.set_grid_idx = lambda x, y, z: set_index(builder, order[x], y, z)
    tuner.fn[tuple(map(int, grid))](*args, **blocks)


def libdevice():
    """Return the functions of CUDA's libdevice that the kernels use, implemented with NumPy."""
    language = found("triton.language")
    handle = found("triton.runtime.interpreter", "TensorHandle")

    def elementwise(function, to=None):
        def call(*xs, **more):
            data = function(*(getattr(getattr(x, "handle", x), "data", x) for x in xs))
            kind = to or xs[0].dtype.scalar
            data = data.astype(np.int32 if to else xs[0].handle.data.dtype)
            shape = language.block_type(kind, xs[0].shape) if xs[0].type.is_block() else kind
            return language.tensor(handle(data, kind), shape)

        return call

    plain = {name: elementwise(getattr(np, name)) for name in ("floor", "ceil", "sqrt", "rint", "trunc")}
    return types.SimpleNamespace(signbit=elementwise(np.signbit, language.int32), pow=elementwise(np.power), **plain)


def main():
    """Compile or interpret a small program for CartPole, and print the results."""
    try:
        simulate_gpu()
        program = examples.program(hidden=(16, 8))
        print(json.dumps(interpret(program) if INTERPRETING else compile_for_sm_90(program)))
    except Missing as missing:
        print(missing, file=sys.stderr)
        sys.exit(SKIPPED)


if __name__ == "__main__":
    main()
