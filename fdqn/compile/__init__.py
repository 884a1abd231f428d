"""Compile pure functions: `scan(vmap(f))` becomes one graph that updates its state in place.

`compile` corresponds to `jax.jit`, `scan` to `lax.scan` and `donate` to `donate_argnums`. `donate` copies the new state
into the old one at the end of the graph. Inductor then computes results directly into the old storage: a pure
`replay.add` writes one row instead of the whole buffer, and every leaf keeps its address. `scan` runs a donated,
compiled step for each of n inputs, in a loop on the host or in one CUDA graph. `compiled` returns the step functions of
a program.

`engines` holds the table of engines; `dynamo`, `graph` and `aot` (with `cpu_groups`) implement its rows.
"""

from fdqn.compile.cpu_groups import ThreadPartition, flushes_denormals
from fdqn.compile.donation import donate
from fdqn.compile.engines import ENGINES, compile, resolve, scan, scan_vmapped, scan_vmapped_async
from fdqn.compile.lock import compiling, is_compiling
from fdqn.compile.prepare import allow_tf32, prepare_cpu, prepare_cuda
from fdqn.compile.programs import compiled, compiled_parts, partition, player
from fdqn.compile.toolchain import CompilerError
from fdqn.compile.verify import MismatchError

__all__ = [
    "ENGINES",
    "CompilerError",
    "MismatchError",
    "ThreadPartition",
    "allow_tf32",
    "compile",
    "compiled",
    "compiled_parts",
    "compiling",
    "donate",
    "flushes_denormals",
    "is_compiling",
    "partition",
    "player",
    "prepare_cpu",
    "prepare_cuda",
    "resolve",
    "scan",
    "scan_vmapped",
    "scan_vmapped_async",
]
