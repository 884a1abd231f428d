"""The laws of fdqn as functions, for your environment, loss, optimizer, network or policy as much as for ours.

`asserts` says where trees of tensors differ and where a graph breaks; `laws` has one checker a law of a function or of
a part, `agents` those of an agent, `programs` one a law of a whole program; `examples` is a program to start from and
`probes` are environments whose values are known. These need nothing beyond fdqn. `strategies` makes hypothesis inputs
and needs hypothesis;
`variants` runs one test eager, vmapped, compiled and on a GPU and needs pytest. With your own in the place of ours:

    from functools import partial

    import torch
    from hypothesis import given, settings

    from fdqn import envs, losses, optim
    from fdqn.testing import asserts, laws, strategies
    from fdqn.testing.variants import variants


    def test_env():
        laws.env(envs.make("catch"))


    def test_optimizer():
        laws.optimizer(optim.adam(1e-3), partial(torch.optim.Adam, lr=1e-3))


    @variants("eager", "vmapped", "compiled")
    @settings(deadline=None)
    @given(strategies.tensors((4,)))
    def test_loss(variant, delta):
        asserts.assert_finite(variant(losses.huber)(delta))
"""

import importlib
from typing import Any

__all__ = ["agents", "asserts", "examples", "laws", "probes", "programs", "strategies", "variants"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"fdqn.testing.{name}")
    raise AttributeError(f"module 'fdqn.testing' has no attribute {name!r}")
