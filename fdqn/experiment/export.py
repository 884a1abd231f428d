"""Export one trained seed as a `state_dict` or as a policy that runs without fdqn."""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fdqn import compile, networks, tree
from fdqn.experiment import assemble, results, sweep_results
from fdqn.experiment.settings import Settings
from fdqn.storage import files
from fdqn.types import Params


def write(
    run: results.Run | Path,
    seed: int,
    out: Path,
    prefix: str = "",
    env: str | None = None,
    checkpoint: str | None = None,
    setting: int | None = None,
    wrappers: Sequence[str] = (),
) -> dict[str, Any]:
    """Write one trained seed to a file and return a record of it, as `fdqn export --json` prints it.

    Args:
        run: finished run, or its folder.
        seed: a trained seed.
        out: file to write. `.pt` and `.pth`: `state_dict`. `.pt2`: policy of `torch.export`, obs [B, *O] -> q [B, A],
            which runs without fdqn. `.onnx`: the same policy, input "obs" and output "q", which runs in onnxruntime.
        prefix: prefix of the names in the `state_dict`, including the dot at its end.
        env: environment of the run, required if it is your own code.
        checkpoint: checkpoint to export, as in `results.trained`; by default the final parameters.
        setting: number of a setting, required for a sweep. For population based training, the best member of the seed
            is exported.
        wrappers: wrappers of the run, required if they are your own code.

    Raises ValueError for a seed that was not trained or has failed, an invalid prefix or suffix of `out`, a file that
    exists or cannot be written, and missing packages for ONNX; no partial file is left.
    """
    where = run.path if isinstance(run, results.Run) else run
    path, trained = sweep_results.trained(where, setting, checkpoint, env, wrappers)
    index = results.seed_index(trained.settings, trained.unusable, seed)
    _check_free(out)
    ending = out.suffix.lower()
    if ending not in (".pt", ".pth", ".pt2", ".onnx"):
        expected = "a name that ends in .pt or .pth for the state_dict, or in .pt2 or .onnx for the policy"
        raise ValueError(f"out: expected {expected}, got {str(out)!r}")
    if ending in (".pt2", ".onnx") and prefix:
        raise ValueError(f"prefix: expected none for a policy, which has no parameter names, got {prefix!r}")
    params = tree.clone(tree.index(trained.params, index))
    if ending == ".pt2":
        what, read = "policy", f"torch.export.load({str(out)!r}).module()"
        content = policy(trained.settings, params)
    elif ending == ".onnx":
        what, read = "policy", f"onnxruntime.InferenceSession({str(out)!r})"
        content = onnx_policy(trained.settings, params)
    else:
        if prefix and not prefix.endswith("."):
            raise ValueError(f"prefix: expected a prefix that ends in a dot, got {prefix!r}; use {prefix + '.'!r}")
        what, read = "state_dict", f"torch.load({str(out)!r}, weights_only=True)"
        content = _saved(torch.save, {prefix + name: x for name, x in params.items()})
    try:
        files.write(out, content)
    except OSError as error:
        raise ValueError(f"out: {error}") from None
    checkpoint_info = {} if checkpoint is None else {"checkpoint": trained.step}
    written = {"run": str(path), "seed": seed, "out": str(out), "what": what, "bytes": len(content), "read": read}
    return written | checkpoint_info


def _check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise ValueError(f"out: expected a file that does not exist yet, got {str(out)!r}; choose another --out")
    if not out.parent.is_dir():
        raise ValueError(f"out: expected a file in an existing folder, got {str(out)!r}; create {out.parent} first")


def policy(settings: Settings, params: Params) -> bytes:
    """Export the network with one seed's parameters by `torch.export`, for any batch size.

    Returns the content of a `.pt2` file: a program from obs [B, *O] to q [B, A].
    """
    return _saved(torch.export.save, _program(settings, params))


def onnx_policy(settings: Settings, params: Params) -> bytes:
    """Export the network with one seed's parameters as an ONNX model, for any batch size.

    Returns the content of an `.onnx` file. Its input "obs" [batch, *O] has the dtype of the environment's observations,
    and its output "q" [batch, A] is float32. Raises ValueError if the packages onnx and onnxscript are missing.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ValueError(
            "out: expected the packages onnx and onnxscript for an .onnx file, got none; pip install 'fdqn[onnx]'"
        ) from None
    program = _program(settings, params)
    with compile.compiling(), _quiet("torch.onnx"):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["obs"],
            output_names=["q"],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
    assert exported is not None
    return exported.model_proto.SerializeToString()


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hide the warnings of a logger of torch, such as that torchvision is missing."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _program(settings: Settings, params: Params) -> torch.export.ExportedProgram:
    """Trace the network with one seed's parameters."""
    spec = assemble.env(settings).spec
    module = networks.to_module(assemble.network(settings), params).requires_grad_(False)
    obs = torch.zeros((2, *spec.obs_shape), dtype=spec.obs_dtype)
    with compile.compiling():
        program = torch.export.export(module, (obs,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:  # do not leak local paths into the file
        node.meta.pop("stack_trace", None)
    return program


def _saved(writer: Callable[[Any, Any], None], what: Any) -> bytes:
    file = io.BytesIO()
    writer(what, file)
    return file.getvalue()
