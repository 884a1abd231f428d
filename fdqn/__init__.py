"""Deep Q-learning as pure functions: parameters are dicts, state is tensors, transforms stay at the edge.

Start with `fdqn.types` (the words), then `fdqn.dqn` (the algorithm), then `fdqn.training` (the loop). Submodules load
on first use, so `fdqn --help` need not wait for torch.
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
