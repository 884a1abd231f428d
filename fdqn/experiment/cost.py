"""Arithmetic of an update, and the time that a run is expected to take on a CPU."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fdqn import envs, training, tree
from fdqn.experiment import assemble
from fdqn.experiment.settings import Settings

# Seconds of one core per update, floating-point operation of a product, and written element, fitted to the algorithms'
# measured speed on CartPole (`benchmarks/family.py speed`); for these the estimate is within 25%.
_SECONDS = (3e-5, 1.35e-11, 3.4e-11)

COMPILE_SECONDS = 25
"""Seconds that compiling a program takes the first time."""


class Cost(NamedTuple):
    """Arithmetic per update of one seed, with its share of the environment steps."""

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
        elif name in _WRITES:  # compiled, these work in place and write only their source
            self.elements += args[_WRITES[name]].numel()
        elif not func.is_view and isinstance(out, Tensor) and name not in _COPIES:
            self.elements += out.numel()
        return out


_aten = torch.ops.aten
_WRITES = {_aten.index_put: 2, _aten.scatter: 3, _aten.index_add: 3, _aten.scatter_add: 3}
_COPIES = {_aten.clone, _aten._to_copy, _aten.detach, _aten.copy, _aten.alias}


def count(program: training.Program) -> Cost:
    """Count the arithmetic of one step and one update of one seed on fake tensors, per update.

    The steps of a host environment are not counted, only the choice of actions.
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
    share = program.config.steps_per_cycle / program.config.updates_per_cycle
    return Cost(steps.products * share + learning.products, steps.elements * share + learning.elements)


def _after_step(
    program: training.Program, state: training.TrainState, noise: training.Interaction
) -> training.TrainState:
    if envs.on_host(program.env):
        training.act(program, state, noise)
        return state
    return training.interact(program, state, noise)


def seconds(settings: Settings, cores: int | None = None) -> float:
    """Estimate the seconds of a compiled run on a CPU, without the steps of a host environment and its evaluation.

    Args:
        settings: settings of the run.
        cores: number of cores, by default as many as torch uses.
    """
    cost, updates = count(assemble.program(settings)), assemble.updates(settings)
    fixed, product, element = _SECONDS
    each = fixed + product * cost.products + element * cost.elements
    return COMPILE_SECONDS + updates * settings.lanes * each / (cores or torch.get_num_threads())
