"""The laws of fdqn as functions, for your environment, loss, optimizer or policy as much as for ours.

`asserts` compares trees of tensors; `laws` has one checker a law of a function or a part, `programs` one a law of a
whole program; `examples` has a program to start from. They need nothing beyond fdqn. `strategies` makes hypothesis
inputs and needs hypothesis; `probes` are environments whose values are known.

    from fdqn.testing import laws
    laws.env(my_env)
"""

import importlib
from typing import Any

__all__ = ["asserts", "examples", "laws", "probes", "programs", "strategies", "variants"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"fdqn.testing.{name}")
    raise AttributeError(f"module 'fdqn.testing' has no attribute {name!r}")
