"""Deep Q-learning for many seeds at once, in PyTorch, as pure functions.

    run = fdqn.train(env="cartpole", seeds=16, steps=100_000)

Parameters are plain dicts and state is tensors; `vmap`, `compile` and device placement are applied at the edge.
`fdqn.train`, `fdqn.resume` and `fdqn.Run` are those of `fdqn.experiment.api` and `fdqn.experiment.results`.
Submodules load on first use, so that `fdqn --help` does not import torch.

.. include:: README.md
.. include:: docs/changelog.md
"""

import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "pdoc" in sys.modules:  # pdoc documents what a module holds, and does not call `__getattr__`
    from fdqn.experiment.api import resume, summary, sweep, train
    from fdqn.experiment.results import Run
    from fdqn.experiment.sweep_plan import Draw

__version__ = "0.2.0.dev0"

_FROM = {
    "Draw": "experiment.sweep_plan",
    "Run": "experiment.results",
    "resume": "experiment.api",
    "summary": "experiment.api",
    "sweep": "experiment.api",
    "train": "experiment.api",
}
"""Functions and classes that the package gives itself, and their modules."""

__all__ = [
    "Draw",
    "Run",
    "agents",
    "check",
    "compile",
    "envs",
    "experiment",
    "networks",
    "ops",
    "optim",
    "random",
    "replay",
    "report",
    "resume",
    "storage",
    "summary",
    "sweep",
    "testing",
    "train",
    "training",
    "tree",
    "types",
]

_MOVED = {
    "actions": "fdqn.ops.masking",
    "bits": "fdqn.replay.packing",
    "build": "fdqn.experiment.assemble",
    "checkpoint": "fdqn.storage.checkpoint",
    "dqn": "fdqn.agents.dqn",
    "evaluate": "fdqn.training.evaluate",
    "export": "fdqn.experiment.export",
    "files": "fdqn.storage.files",
    "frames": "fdqn.replay.frames",
    "history": "fdqn.experiment.history",
    "losses": "fdqn.ops.losses",
    "n_step": "fdqn.replay.n_step",
    "plots": "fdqn.report.plots",
    "policies": "fdqn.ops.exploration",
    "runs": "fdqn.experiment.results",
    "schedules": "fdqn.ops.schedules",
    "settings": "fdqn.experiment.settings",
    "statistics": "fdqn.report.statistics",
    "video": "fdqn.report.video",
    "worlds": "fdqn.training.host",
}
"""Modules of version 0.1 that are elsewhere now."""


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(importlib.import_module(f"fdqn.{_FROM[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"fdqn.{name}")
    if name in _MOVED:
        warnings.warn(f"fdqn.{name} is now {_MOVED[name]}", DeprecationWarning, stacklevel=2)
        return importlib.import_module(_MOVED[name])
    raise AttributeError(f"module 'fdqn' has no attribute {name!r}")
