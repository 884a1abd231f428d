"""Compute the sizes of a run: layers, parameters, memory, and the floating-point operations of an update."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fdqn import check, tree
from fdqn.experiment import assemble, cost, memory, results
from fdqn.experiment.settings import Settings
from fdqn.types import EnvSpec, Network, Params

_ROWS = 37
"""Batch size of the forward pass that finds the shapes of outputs: a prime, by which the batch axis is recognized."""


def describe(settings: Settings) -> dict[str, Any]:
    """Return the sizes of a run as a record, as `fdqn summary --json` prints it. Allocates the network of one seed.

    `bytes` are those of the training state: by part and in total for one seed, and "all" for all learners. `flop` is
    the number of floating-point operations in matrix products and convolutions for one update of one seed and for the
    environment steps before it; see `cost.count`.

    Raises ValueError for invalid settings.
    """
    check.kind("settings", settings, Settings)
    program = assemble.program(settings)
    state, spec = memory.fake_state(program, 1), program.env.spec
    params = {name: torch.zeros(x.shape[1:], dtype=x.dtype) for name, x in state.learner.params.items()}
    found = layers(program.network, params, spec)
    parts = {
        "parameters": tree.nbytes(state.learner.params),
        "target": tree.nbytes(state.learner.target_params),
        "optimizer": tree.nbytes(state.learner.opt_state),
        "replay": tree.nbytes(state.buffer),
    }
    whole, arithmetic = tree.nbytes(state), cost.count(program)
    return {
        "env": settings.env,
        **{name: list(x) for name in ("env_kwargs", "wrappers") if (x := getattr(settings, name))},
        "algorithm": settings.algorithm,
        "observations": list(spec.obs_shape),
        "dtype": str(spec.obs_dtype).removeprefix("torch."),
        "actions": spec.actions,
        "seeds": settings.seeds,
        "learners": settings.learners,
        "layers": found,
        "parameters": sum(layer["parameters"] for layer in found),
        "bytes": {**parts, "other": whole - sum(parts.values()), "seed": whole, "all": settings.learners * whole},
        "replay_rows": program.config.capacity,
        "updates": assemble.updates(settings),
        "flop": round(arithmetic.products),
    }


def describe_run(path: Path, env: str | None = None, wrappers: Sequence[str] = ()) -> dict[str, Any]:
    """Return the sizes of the run in a folder, finished or not, as `describe` does.

    Raises ValueError for a folder that is not a run, a sweep of several programs, and user code other than `env` and
    `wrappers`.
    """
    if (path / "sweep.json").exists():
        raise ValueError(f"run: expected a run or a sweep of one program, got {path}; give one of its folders")
    settings, _ = results.plan(path, env, wrappers)
    return describe(settings)


def layers(network: Network, params: Params, spec: EnvSpec) -> list[dict[str, Any]]:
    """Return the layers of a network in the order of their parameters.

    A record has the name and kind of a layer, the shape of its output for one observation, and the shapes, number and
    bytes of its parameters. Parameters whose names differ only after the last dot form a layer. The output of a layer
    is the result of the last operation that reads one of its parameters.

    Args:
        network: network without noise.
        params: parameters of one seed.
        spec: sizes of the environment.
    """
    outputs: dict[str, list[int]] = {}
    with torch.no_grad(), _Outputs(params, outputs):
        network.apply(params, torch.zeros((_ROWS, *spec.obs_shape), dtype=spec.obs_dtype))
    shapes: dict[str, dict[str, list[int]]] = {}
    for name, x in params.items():
        layer, _, part = name.rpartition(".")
        shapes.setdefault(layer, {})[part] = list(x.shape)
    return [
        {
            "name": layer,
            "kind": _kind(parts),
            "output": outputs.get(layer, []),
            "shapes": parts,
            "parameters": sum(map(math.prod, parts.values())),
            "bytes": sum(x.nbytes for name, x in params.items() if name.rpartition(".")[0] == layer),
        }
        for layer, parts in shapes.items()
    ]


def _kind(shapes: dict[str, list[int]]) -> str:
    """Return PyTorch's name of a layer, from the names and shapes of its parameters."""
    if "mean" in shapes and "var" in shapes:
        return "running statistics"
    noisy = "weight_mu" in shapes
    match len(shapes.get("weight_mu" if noisy else "weight", [])), "bias" in shapes or noisy:
        case 2, _:
            return "NoisyLinear" if noisy else "Linear"
        case 4, _:
            return "Conv2d"
        case ((1 | 3), True):
            return "LayerNorm"
    return "parameters"


class _Outputs(TorchDispatchMode):
    """Record the shape of the last result of an operation that reads the parameters of each layer."""

    def __init__(self, params: Params, outputs: dict[str, list[int]]) -> None:
        super().__init__()
        self._layers = {_storage(x): name.rpartition(".")[0] for name, x in params.items()}
        self._outputs = outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute an operation and record its result."""
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple | list) else out
        if not func.is_view and isinstance(first, Tensor):
            for x in tree.leaves((args, kwargs or {})):
                if isinstance(x, Tensor) and (layer := self._layers.get(_storage(x))) is not None:
                    self._record(layer, list(first.shape))
        return out

    def _record(self, layer: str, shape: list[int]) -> None:
        """Record a shape without its batch axis, or a shape that has no batch axis if no other was recorded."""
        if shape and shape[0] > 0 and shape[0] % _ROWS == 0:  # several rows for each observation: IQN's fractions
            each = shape[0] // _ROWS
            self._outputs[layer] = [*([each] if each > 1 else []), *shape[1:]]
        else:
            self._outputs.setdefault(layer, shape)


def _storage(x: Tensor) -> int:
    """Return the address of a tensor's storage, which its views share."""
    return x.untyped_storage().data_ptr()
