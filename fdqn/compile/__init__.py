"""The edge where pure functions become fast ones: `scan(vmap(f))`, one compiled graph that writes over its state.

`donate` is JAX's `donate_argnums`: the new state is written over the old one at the top level of the compiled graph.
Inductor then computes results straight into the old storage, so that a pure `replay.add` costs one row, not one ring,
and every leaf keeps its address for life. `compile` is `jax.jit`, and `scan` is `lax.scan`: a donated, compiled step
for each of many inputs, with the loop on the host, or in one CUDA graph. `compiled` gives a program's step functions.

`engines` is the table of engines that compile, `dynamo`, `graph` and `aot` with `cpu_groups` its rows.
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
