"""Deep Q-learning as pure functions: parameters are dicts, state is tensors, transforms stay at the edge.

    run = fdqn.train(env="cartpole", seeds=16, steps=100_000)

`fdqn.train`, `fdqn.resume` and `fdqn.Run` train seeds and give back what was trained. To read the code, start with
`fdqn.types` (the words), then `fdqn.dqn` (the algorithm), then `fdqn.training` (the loop). Submodules load on first
use, so `fdqn --help` need not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdqn.api import resume, train
    from fdqn.runs import Run

__version__ = "0.2.0.dev0"

_FROM = {"Run": "runs", "resume": "api", "train": "api"}
"""Functions and classes that the package gives itself, and their modules."""

__all__ = [
    "Run",
    "acting",
    "actions",
    "api",
    "bits",
    "build",
    "check",
    "checkpoint",
    "compile",
    "dqn",
    "envs",
    "evaluate",
    "evaluation",
    "events",
    "export",
    "files",
    "frames",
    "history",
    "losses",
    "n_step",
    "networks",
    "optim",
    "plots",
    "policies",
    "progress",
    "random",
    "replay",
    "resume",
    "runs",
    "schedules",
    "session",
    "settings",
    "statistics",
    "testing",
    "train",
    "training",
    "tree",
    "types",
    "video",
    "worlds",
]


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(importlib.import_module(f"fdqn.{_FROM[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"fdqn.{name}")
    raise AttributeError(f"module 'fdqn' has no attribute {name!r}")
