"""Deep Q-learning for many seeds at once, in PyTorch, as pure functions.

Parameters are plain dicts and state is tensors; `vmap`, `compile` and device placement are applied at the edge.
Submodules load on first use, so that `fdqn --help` does not import torch.

.. include:: README.md
"""

import importlib
from typing import Any

__version__ = "0.2.0.dev0"

__all__ = [
    "actions",
    "agents",
    "build",
    "check",
    "checkpoint",
    "compile",
    "distributional",
    "dqn",
    "envs",
    "evaluate",
    "export",
    "files",
    "history",
    "losses",
    "networks",
    "optim",
    "plots",
    "policies",
    "random",
    "replay",
    "returns",
    "runs",
    "schedules",
    "settings",
    "statistics",
    "testing",
    "training",
    "tree",
    "types",
    "video",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"fdqn.{name}")
    raise AttributeError(f"module 'fdqn' has no attribute {name!r}")
