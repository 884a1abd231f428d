"""Arithmetic of an update, and an estimate of the time of a run on a CPU."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fdqn import envs, training, tree
from fdqn.experiment import assemble
from fdqn.experiment.settings import Settings

# Seconds of one core per update, per floating-point operation of a product, and per written element, fitted to the
# measured speed of the algorithms on CartPole (`benchmarks/family.py speed`). Estimates of these speeds are within 25%.
_SECONDS = (3e-5, 1.35e-11, 3.4e-11)

COMPILE_SECONDS = 25
"""Seconds that the first compilation of a program takes."""


class Cost(NamedTuple):
    """Arithmetic per update of one seed, including the environment steps per update."""

    products: float
    """Floating-point operations of matrix products and convolutions."""
    elements: float
    """Elements that all other operations write."""


class Arithmetic(TorchDispatchMode):
    """Count the floating-point operations of products and the elements that all other operations write."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.elements = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute an operation and count it."""
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket
        if name in flop_registry:
            self.products += flop_registry[name](*args, **(kwargs or {}), out_val=out)
        elif name in _WRITES:  # when compiled, these are in place and write only the elements of their source
            self.elements += args[_WRITES[name]].numel()
        elif not func.is_view and isinstance(out, Tensor) and name not in _COPIES:
            self.elements += out.numel()
        return out


_aten = torch.ops.aten
_WRITES = {_aten.index_put: 2, _aten.scatter: 3, _aten.index_add: 3, _aten.scatter_add: 3}
_COPIES = {_aten.clone, _aten._to_copy, _aten.detach, _aten.copy, _aten.alias}


def count(program: training.Program) -> Cost:
    """Count the arithmetic per update of one seed on fake tensors: the update, and the steps per update.

    Of a host environment, only the selection of actions is counted.
    """
    with FakeTensorMode(), torch.no_grad():
        state = training.init(program, training.hyper(1), torch.zeros((1, 2), dtype=torch.int64))
        noise = training.noise(program, state.key, 0, 1)
        step = tree.index(training.interactions(tree.index(noise, 0)), 0)
        draws = tree.index(training.updates(tree.index(noise, 0)), 0)
        state, step, draws = tree.index(state, 0), tree.index(step, 0), tree.index(draws, 0)
        with Arithmetic() as steps:
            state = _after_step(program, state, step)
        with Arithmetic() as learning:
            training.update(program, state, draws)
    ratio = program.config.steps_per_cycle / program.config.updates_per_cycle
    return Cost(steps.products * ratio + learning.products, steps.elements * ratio + learning.elements)


def _after_step(
    program: training.Program, state: training.TrainState, noise: training.Interaction
) -> training.TrainState:
    if envs.on_host(program.env):
        training.act(program, state, noise)
        return state
    return training.interact(program, state, noise)


def seconds(settings: Settings, cores: int | None = None) -> float:
    """Estimate the seconds of a compiled run on a CPU, excluding evaluation and the steps of a host environment.

    Args:
        settings: settings of the run.
        cores: number of cores, by default as many as torch uses.
    """
    cost, updates = count(assemble.program(settings)), assemble.updates(settings)
    fixed, product, element = _SECONDS
    each = fixed + product * cost.products + element * cost.elements
    return COMPILE_SECONDS + updates * settings.learners * each / (cores or torch.get_num_threads())
