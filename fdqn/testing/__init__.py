"""The laws that fdqn is tested with, as functions that also check your environments, losses, optimizers and networks.

- `asserts` compares trees of tensors and detects graph breaks and recompilations.
- `laws` has one function per law of a function or component, `agents` those of an agent, `programs` one per law of
  a whole program.
- `examples` has a small program to start from.
- `probes` are environments whose optimal values are known.
- `strategies` generates inputs for hypothesis, which it requires.
- `variants` runs one test eagerly, under vmap, compiled and on a GPU; it requires pytest.

An example, in which your components replace those of fdqn:

    from functools import partial

    import torch
    from hypothesis import given, settings

    from fdqn import envs, optim
    from fdqn.ops import losses
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

__all__ = ["agents", "algorithms", "asserts", "examples", "laws", "probes", "programs", "strategies", "variants"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"fdqn.testing.{name}")
    raise AttributeError(f"module 'fdqn.testing' has no attribute {name!r}")
