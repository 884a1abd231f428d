"""One trained seed for others: a `state_dict` that PyTorch reads, or a policy that runs without fdqn."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fdqn import compile, envs, networks, tree
from fdqn.experiment import assemble, results
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
) -> dict[str, Any]:
    """Write one trained seed to `out` and say what was written: its `state_dict`, names beginning with `prefix`, where
    `out` ends in .pt or .pth; where in .pt2, its policy, obs [B, *O] -> q [B, A], which runs without fdqn.

    The parameters are those of the end of the run, or of a `checkpoint` as in `results.trained`. Raises ValueError
    for a seed that was not trained or has failed, a prefix without its dot, another ending of `out`, and a file that
    cannot be written; no partial file is left.
    """
    path = run.path if isinstance(run, results.Run) else run
    trained = results.trained(path, checkpoint, env)
    lane = results.lane(trained.settings, trained.unsound, seed)
    _check_free(out)
    ending = out.suffix.lower()
    if ending not in (".pt", ".pth", ".pt2"):
        expected = "a name that ends in .pt or .pth for the state_dict, or in .pt2 for the policy"
        raise ValueError(f"out: expected {expected}, got {str(out)!r}")
    params = tree.clone(tree.index(trained.params, lane))
    if ending == ".pt2":
        if prefix:
            raise ValueError(f"prefix: expected none for a policy, whose names nobody sees, got {prefix!r}")
        what, read = "policy", f"torch.export.load({str(out)!r}).module()"
        content = _policy(trained.settings, params)
    else:
        if prefix and not prefix.endswith("."):
            raise ValueError(f"prefix: expected it to end in a dot, got {prefix!r}; use {prefix + '.'!r}")
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
        raise ValueError(f"out: expected a file in a folder that is there, got {str(out)!r}; make {out.parent} first")


def _policy(settings: Settings, params: Params) -> bytes:
    """The network with one lane's parameters, for any number of observations, in the format of `torch.export`."""
    spec = envs.find(settings.env).spec
    module = networks.to_module(assemble.network(settings), params).requires_grad_(False)
    obs = torch.zeros((2, *spec.obs_shape), dtype=spec.obs_dtype)
    with compile.compiling():
        program = torch.export.export(module, (obs,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:  # where fdqn is installed is nobody's business who is given the file
        node.meta.pop("stack_trace", None)
    return _saved(torch.export.save, program)


def _saved(writer: Callable[[Any, Any], None], what: Any) -> bytes:
    file = io.BytesIO()
    writer(what, file)
    return file.getvalue()
