"""Loading parameters from a `state_dict`, and exporting them as a module."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor, nn

from fdqn import check, random
from fdqn.types import Params

Shapes = dict[str, tuple[int, ...]]
"""Shapes of parameters by name."""


class Initialized(Protocol):
    """Record with a function `init`: a `Network`, `NoisyNetwork`, `QuantileNetwork` or `Trunk`."""

    @property
    def init(self) -> Callable[[Tensor], Params]:
        """`init(key [..., 2]) -> params`, with leaves [..., *shape]."""


class Applied(Initialized, Protocol):
    """Network whose `apply` needs no arguments but parameters and observations."""

    @property
    def apply(self) -> Callable[..., Tensor]:
        """`apply(params, obs) -> outputs`."""


N = TypeVar("N", bound=Initialized)


def load(network: Initialized, state_dict: Mapping[str, Tensor], prefix: str = "") -> Params:
    """Return the parameters of one seed from a module's `state_dict`.

    Names in the `state_dict` are `prefix` followed by the network's. The result has the network's order and the dtypes
    and device of the `state_dict`, and shares no memory with it. Pass it to `starting_from` to start every seed from
    it. Buffers are not parameters: to use trained buffers with `from_module`, load them in the factory.

    Raises ValueError for names or shapes that differ from the network's and TypeError for tensors that are not
    floating-point.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict: expected tensors by name, got {type(state_dict).__name__}; pass module.state_dict()"
        )
    check.function("network.init", getattr(network, "init", None))
    check.kind("prefix", prefix, str)
    for name, x in state_dict.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"state_dict[{name!r}]: expected a tensor, got {type(x).__name__}")
    own = network.init(random.key(0))
    _check_fit(own, state_dict, prefix)
    for name in own:
        check.floating(f"state_dict[{prefix + name!r}]", state_dict[prefix + name])
    return {name: state_dict[prefix + name].detach().clone() for name in own}


def starting_from(network: N, params: Params) -> N:
    """Return `network` with every seed initialized to a copy of `params`, for any key. Raises as `load` does."""
    return cast(N, cast(Any, network)._replace(init=partial(_init_as, network.init, load(network, params))))


def to_module(network: Applied, params: Params) -> nn.Module:
    """Return a module whose `state_dict` is a copy of one seed's `params` and whose forward is `network.apply`.

    A network with noise uses its mean weights.

    Raises as `load` does.
    """
    return _Module(network, load(network, params))


def _init_as(init: Callable[[Tensor], Params], params: Params, key: Tensor) -> Params:
    """Return copies of `params` with the leading axes and device of the parameters that `init` makes."""
    return {name: params[name].to(own.device).expand_as(own).clone() for name, own in init(key).items()}


class _Module(nn.Module):
    def __init__(self, network: Applied, params: Params) -> None:
        super().__init__()
        self._apply_pure = network.apply  # not a name of any parameter
        for name, x in params.items():
            *owners, own = name.split(".")
            owner: nn.Module = self
            for part in owners:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(own, nn.Parameter(x))

    def forward(self, obs: Tensor) -> Tensor:
        return self._apply_pure(dict(self.named_parameters()), obs)


def _check_fit(own: Params, given: Mapping[str, Tensor], prefix: str) -> None:
    """Raise ValueError with the differing names and shapes, and suggest a prefix that would fit."""
    ours = {prefix + name: tuple(x.shape) for name, x in own.items()}
    theirs = {name: tuple(x.shape) for name, x in given.items()}
    if ours == theirs:
        return
    starts = {n.removesuffix(first) for first in [*own][:1] for n in theirs if n.endswith(first)} - {prefix}
    fits = [start for start in starts if {start + name for name in own} == set(theirs)]
    hint = "".join(f"; use prefix={start!r}" for start in fits)
    if ours.items() < theirs.items():
        hint = "; if those are buffers, load them into the module that the factory makes and leave them out here"
    if are_lanes(ours, theirs):
        hint = "; select one seed with tree.index(params, seed)"
    raise ValueError(f"state_dict: {difference(ours, theirs)}{hint}")


def fitting(expected: Shapes, params: Params, obs: Tensor) -> None:
    """Raise TypeError or ValueError unless `params` are those of one seed and `obs` is on their device."""
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected tensors by name, as network.init makes them, got {type(params).__name__}")
    for name, x in params.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"params[{name!r}]: expected a tensor, got {type(x).__name__}")
    if expected != (given := {name: tuple(x.shape) for name, x in params.items()}):
        hint = "; use vmap(network.apply) for several seeds" if are_lanes(expected, given) else ""
        raise ValueError(f"params: {difference(expected, given)}{hint}")
    for x in params.values():
        if obs.device != x.device:
            raise ValueError(f"obs: expected it on the parameters' device {x.device}, got {obs.device}")


def are_lanes(expected: Shapes, given: Shapes) -> bool:
    """Return True if the shapes differ only by one more leading axis."""
    return bool(expected) and expected == {name: shape[1:] for name, shape in given.items()}


def difference(expected: Shapes, given: Shapes) -> str:
    """Describe the names and shapes that only one side has."""
    lacking = {name: list(shape) for name, shape in expected.items() if given.get(name) != shape}
    foreign = {name: list(shape) for name, shape in given.items() if expected.get(name) != shape}
    return f"expected the network's names and shapes, {lacking or 'no others'}; got {foreign or 'none of them'}"
