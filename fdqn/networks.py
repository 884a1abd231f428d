"""Networks as `init/apply` pairs. Parameters carry the names of the equivalent `nn.Module`'s `state_dict`.

`init` is batched over the leading axes of its key, so one call makes the parameters of all lanes; `apply` takes one
lane's parameters and observations with any leading axes. Modules come in by `from_module`, their parameters by `load`;
`to_module` is the way back.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode

from fdqn import check, random, tree
from fdqn.types import Network, Params, Scalar


class NetworkWithDropout(NamedTuple):
    """`init(key [..., 2]) -> Params [...]` and `apply(params, obs [..., *O], key [2]) -> q [..., A]`."""

    init: Callable[[Tensor], Params]
    apply: Callable[[Params, Tensor, Tensor], Tensor]


def mlp(obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int) -> Network:
    """Linear layers with ReLU between: `nn.Sequential(Linear, ReLU, ..., Linear)` in names, initial distribution and
    outputs. Without hidden layers it is one linear layer, named "0".

    Shapes: obs [..., *obs_shape], flattened; q [..., actions]. Raises ValueError for a size below 1, and `apply` for
    parameters or observations of other names, shapes or devices; so do the networks below.
    """
    event = _event(obs_shape)
    # nn.Sequential counts the ReLUs too, so linear layer i stands at place 2 i.
    sizes = pairwise(_sizes(math.prod(event), hidden, actions))
    layers = {f"{2 * i}": (n, m) for i, (m, n) in enumerate(sizes)}
    return Network(partial(_init_layers, layers), partial(_apply_mlp, event, layers))


def dueling_mlp(obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int) -> Network:
    """An MLP whose last layer gives the state's value and each action's advantage.

        q = value + advantage - mean of advantage

    Shapes: obs [..., *obs_shape], flattened; q [..., actions]. Raises ValueError for a size below 1.
    Wang et al. 2016, https://arxiv.org/abs/1511.06581
    """
    event = _event(obs_shape)
    *trunk, actions = _sizes(math.prod(event), hidden, actions)
    layers = {f"trunk.{2 * i}": (n, m) for i, (m, n) in enumerate(pairwise(trunk))}
    layers |= {"value": (1, trunk[-1]), "advantage": (actions, trunk[-1])}
    return Network(partial(_init_layers, layers), partial(_apply_dueling_mlp, event, layers))


def nature(obs_shape: Sequence[int], actions: int) -> Network:
    """The convolutional network of the Nature DQN, for frames [channels, height, width] of 0 to 255.

    Shapes: obs [..., channels, height, width]; q [..., actions]. Raises ValueError for frames below 36 x 36.
    Mnih et al. 2015, https://doi.org/10.1038/nature14236
    """
    channels, height, width = _event(obs_shape, rank=3)
    if min(height, width) < 36:
        raise ValueError(f"obs_shape: expected frames of at least 36 x 36, got {height} x {width}")
    if actions < 1:
        raise ValueError(f"actions: expected at least 1, got {actions}")
    features = 64 * math.prod(((n - 8) // 4 - 3) // 2 - 1 for n in (height, width))
    layers = {
        "0": (32, channels, 8, 8),
        "2": (64, 32, 4, 4),
        "4": (64, 64, 3, 3),
        "7": (512, features),
        "9": (actions, 512),
    }
    return Network(partial(_init_layers, layers), partial(_apply_nature, (channels, height, width), layers))


def from_module(factory: Callable[[], nn.Module]) -> Network:
    """Any module as a pure function of its parameters, in evaluation mode: dropout is off.

    `factory` makes the module; `init` calls it once a lane, so a lane begins as the module does. Buffers are constants,
    those of one module for all lanes, on the parameters' device and, where floating, in their dtype. Shapes are the
    module's own.

    Raises TypeError for a module with running statistics, as of batch norm, and `apply` does for one whose forward
    writes a buffer: hidden state has no place in a function of parameters and observation.
    """
    skeleton, constants = _skeleton(factory)
    return Network(partial(_init_module, factory, constants), partial(_apply_module, skeleton.eval(), constants))


def from_module_with_dropout(factory: Callable[[], nn.Module]) -> NetworkWithDropout:
    """The same in training mode: dropout is on, its chance an argument.

    `apply(params, obs, key)` gives the n-th call of `F.dropout`, counted from 0, the uniforms of `fold_in(key, n)`:
    the same key drops the same. No generator is used. Lanes and samples that are to drop their own need keys of their
    own. In a compiled program a call costs a cipher, which takes a C++ compiler some seconds.

    Raises TypeError as `from_module` does, and for other layers that draw random numbers.
    """
    skeleton, constants = _skeleton(factory)
    inside = (nn.RNNBase, nn.MultiheadAttention)
    if hidden := [name for name, m in skeleton.named_modules() if isinstance(m, inside) and m.dropout > 0]:
        raise TypeError(
            f"factory: expected dropout in layers of its own, got it inside {hidden}; make them with dropout=0 and put "
            "nn.Dropout before or after"
        )
    apply = partial(_apply_module, skeleton.train(), constants)

    def apply_with_dropout(params: Params, obs: Tensor, key: Tensor) -> Tensor:
        check.shapes("key[2]", key)
        with _Dropping(key):
            return apply(params, obs)

    return NetworkWithDropout(partial(_init_module, factory, constants), apply_with_dropout)


def dropout(x: Tensor, rate: Scalar, u: Tensor) -> Tensor:
    """Dropout with its chance as an argument; `torch.nn.functional.dropout`. The mean is kept.

        0 where u < rate, x / (1 - rate) elsewhere

    Shapes: x, uniforms u and the result [...]. Raises ValueError for a number outside [0, 1): 1 would leave nothing.
    Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html
    """
    check.shapes("x[...] u[...]", x, u)
    if not isinstance(rate, Tensor) and not 0 <= rate < 1:
        raise ValueError(f"rate: expected a number in [0, 1), got {rate}")
    return (torch.where(u < rate, 0.0, x) / (1 - rate)).to(x.dtype)


def load(network: Network, state_dict: Mapping[str, Tensor], prefix: str = "") -> Params:
    """One lane's parameters from a module's `state_dict`, whose names are `prefix` and then the network's.

    The result is in the network's order, in the dtypes and on the device that came, and shares no memory with the
    module; `starting_from` makes it every lane's start. Raises ValueError for names or shapes that are not the
    network's and TypeError for what holds no floating-point numbers.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict: expected names with tensors, got {type(state_dict).__name__}; a module has state_dict()"
        )
    for name, x in state_dict.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"state_dict[{name!r}]: expected a tensor, got {type(x).__name__}")
    own = network.init(random.key(0))
    _check_fit(own, state_dict, prefix)
    for name in own:
        check.floating(f"state_dict[{prefix + name!r}]", state_dict[prefix + name])
    return {name: state_dict[prefix + name].detach().clone() for name in own}


def starting_from(network: Network, params: Params) -> Network:
    """`network`, each lane of which begins as a copy of `params`, whatever its key. Raises as `load` does."""
    return network._replace(init=partial(_init_as, network.init, load(network, params)))


def to_module(network: Network, params: Params) -> nn.Module:
    """A module whose `state_dict` is a copy of one lane's `params` and whose forward is `network.apply`."""
    return _Module(network, params)


# The shape of each layer's weight under the layer's name.
_Layers = Mapping[str, tuple[int, ...]]


def _apply_mlp(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor) -> Tensor:
    *hidden, last = layers
    x = _flat(_checked(event, layers, params, obs), len(event))
    for name in hidden:
        x = _linear(params, name, x).relu()
    return _linear(params, last, x)


def _apply_dueling_mlp(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor) -> Tensor:
    *trunk, _, _ = layers
    x = _flat(_checked(event, layers, params, obs), len(event))
    for name in trunk:
        x = _linear(params, name, x).relu()
    value, advantage = _linear(params, "value", x), _linear(params, "advantage", x)
    return value + advantage - advantage.mean(-1, keepdim=True)


def _apply_nature(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor) -> Tensor:
    frames = _checked(event, layers, params, obs)
    x = frames.reshape(-1, *event) / 255.0
    for name, stride in (("0", 4), ("2", 2), ("4", 1)):
        x = F.conv2d(x, params[f"{name}.weight"], params[f"{name}.bias"], stride).relu()
    x = _linear(params, "9", _linear(params, "7", x.flatten(1)).relu())
    return x.reshape(*frames.shape[: frames.ndim - 3], x.shape[-1])


def _linear(params: Params, name: str, x: Tensor) -> Tensor:
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def _flat(obs: Tensor, axes: int) -> Tensor:
    return obs.reshape(*obs.shape[: obs.ndim - axes], math.prod(obs.shape[obs.ndim - axes :]))


def _checked(event: tuple[int, ...], layers: _Layers, params: Params, obs: Tensor) -> Tensor:
    """Observations in the parameters' dtype, where both are what the network takes."""
    check.shapes(f"obs[... {' '.join(map(str, event))}]", obs)
    expected = dict(item for name, shape in layers.items() for item in _shapes(name, shape))
    if expected != (given := {name: tuple(x.shape) for name, x in params.items()}):
        are_lanes = expected == {name: shape[1:] for name, shape in given.items()}
        hint = "; many lanes go through vmap(network.apply)" if are_lanes else ""
        raise ValueError(f"params: {_difference(expected, given)}{hint}")
    weight = params[next(iter(expected))]
    if obs.device != weight.device:
        raise ValueError(f"obs: expected it on the parameters' device {weight.device}, got {obs.device}")
    return obs.to(weight.dtype)


def _shapes(layer: str, weight: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return (f"{layer}.weight", weight), (f"{layer}.bias", weight[:1])


def _init_layers(layers: _Layers, key: Tensor) -> Params:
    """Weights and biases uniform in +-1 / sqrt(inputs), as `nn.Linear` and `nn.Conv2d` begin."""
    params = {}
    for i, (name, shape) in enumerate(layers.items()):
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        weight, bias = random.split(random.fold_in(key, i)).unbind(-2)
        params[f"{name}.weight"] = (2 * random.uniform(weight, shape) - 1) * bound
        params[f"{name}.bias"] = (2 * random.uniform(bias, shape[:1]) - 1) * bound
    return params


def _made(factory: Callable[[], nn.Module], key: Tensor) -> nn.Module:
    """What `factory` makes under a fork of PyTorch's generator, seeded from `key`: the one place that touches it."""
    # On the CPU, whatever the device: its generator alone is forked, and a seed means the same everywhere.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.inference_mode(False):
        torch.default_generator.manual_seed(int(random.bits(key)))
        return factory()


# The constants of a module on each device that lanes were made on.
_Constants = dict[torch.device, Params]


def _skeleton(factory: Callable[[], nn.Module]) -> tuple[nn.Module, _Constants]:
    """A module whose parameters are to be replaced, and its buffers."""
    if isinstance(factory, nn.Module) or not callable(factory):
        raise TypeError(f"factory: expected a function that makes a module, got {type(factory).__name__}")
    skeleton = _made(factory, random.key(0))
    if not isinstance(skeleton, nn.Module):
        raise TypeError(f"factory: expected it to make an nn.Module, got {type(skeleton).__name__}")
    buffers = dict(skeleton.named_buffers())
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    if running := [name for name in buffers if name.rpartition(".")[2] in statistics]:
        raise TypeError(f"factory: expected a module without running statistics, got {running}; use e.g. LayerNorm")
    return skeleton, {torch.device("cpu"): {name: x.detach().cpu() for name, x in buffers.items()}}


def _init_module(factory: Callable[[], nn.Module], constants: _Constants, key: Tensor) -> Params:
    check.shapes("key[... 2]", key)
    # Here and not when they are used: a copy made while tracing would be one of the trace, in every step of it.
    if key.device not in constants:
        constants[key.device] = {name: x.to(key.device) for name, x in constants[torch.device("cpu")].items()}
    if key.ndim > 1:
        return tree.stack(_init_module(factory, constants, k) for k in key)
    return {name: p.detach().to(key.device) for name, p in _made(factory, key).named_parameters()}


def _apply_module(skeleton: nn.Module, constants: _Constants, params: Params, obs: Tensor) -> Tensor:
    copies = _copies(constants, [*params.values(), obs][0])
    given = {**params, **copies}
    q = functional_call(skeleton, given, (obs,), strict=True)
    # What forward puts in a buffer's place is in `given` now; what it writes into one is counted. Dynamo does not know
    # the count while it traces; there, what is written is thrown away.
    if written := [n for n, x in copies.items() if given[n] is not x or statically_known_true(x._version != 0)]:
        raise TypeError(
            f"factory: expected a forward that writes no buffer, got one that writes {written}; pass what changes in "
            "with obs, or leave it out"
        )
    return q


def _copies(constants: _Constants, like: Tensor) -> Params:
    """The constants on the device of `like`; floating ones in its dtype, as `module.to(dtype)` has them."""
    there = constants.get(like.device, constants[torch.device("cpu")])
    with torch.inference_mode(False):  # what is made in that mode does not count how often it is written to
        moved = {name: x.to(like.device, copy=True) for name, x in there.items()}
        return tree.cast(moved, like.dtype) if like.is_floating_point() else moved


# What draws random numbers, but for dropout.
_RANDOM = {
    *("alpha_dropout", "feature_alpha_dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "rrelu", "rrelu_"),
    *("gumbel_softmax", "fractional_max_pool2d", "fractional_max_pool3d", "rand", "randn", "randint", "randperm"),
    *("rand_like", "randn_like", "randint_like", "bernoulli", "multinomial", "normal", "poisson"),
    *("bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_"),
}


class _Dropping(TorchFunctionMode):
    """Inside, calls of `F.dropout` are those of `dropout` with uniforms from `key`."""

    def __init__(self, key: Tensor) -> None:
        super().__init__()
        self.key, self.calls = key, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "dropout":
            return self._dropout(*args, **kwargs)
        if name in _RANDOM or (name == "scaled_dot_product_attention" and any((*args[4:5], kwargs.get("dropout_p")))):
            raise TypeError(f"factory: expected no random layers but nn.Dropout, got one that calls {name}")
        return func(*args, **kwargs)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training:
            return input
        u = random.uniform(random.fold_in(self.key, self.calls), input.shape)
        self.calls += 1
        return dropout(input, p, u)


def _init_as(init: Callable[[Tensor], Params], params: Params, key: Tensor) -> Params:
    """Copies of `params` where and as often as `init` makes its own."""
    return {name: params[name].to(own.device).expand_as(own).clone() for name, own in init(key).items()}


class _Module(nn.Module):
    def __init__(self, network: Network, params: Params) -> None:
        super().__init__()
        self._apply_pure = network.apply  # a name that no parameter has
        for name, x in params.items():
            *owners, own = name.split(".")
            owner: nn.Module = self
            for part in owners:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(own, nn.Parameter(x.detach().clone()))

    def forward(self, obs: Tensor) -> Tensor:
        return self._apply_pure(dict(self.named_parameters()), obs)


def _check_fit(own: Params, given: Mapping[str, Tensor], prefix: str) -> None:
    """Raise ValueError with what only one side has, and the prefix that would fit if one does."""
    ours = {prefix + name: tuple(x.shape) for name, x in own.items()}
    theirs = {name: tuple(x.shape) for name, x in given.items()}
    if ours == theirs:
        return
    first = next(iter(own))
    starts = {name.removesuffix(first) for name in theirs if name.endswith(first)} - {prefix}
    fits = [start for start in starts if {start + name for name in own} == set(theirs)]
    hint = "".join(f"; use prefix={start!r}" for start in fits)
    if ours.items() < theirs.items():
        hint = "; leave out what is no parameter, as dict(module.named_parameters()) does"
    raise ValueError(f"state_dict: {_difference(ours, theirs)}{hint}")


def _difference(expected: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> str:
    """The names and shapes that only one side has."""
    lacking = {name: list(shape) for name, shape in expected.items() if given.get(name) != shape}
    foreign = {name: list(shape) for name, shape in given.items() if expected.get(name) != shape}
    return f"expected the network's names and shapes, {lacking or 'no others'}; got {foreign or 'none of them'}"


def _event(obs_shape: int | Sequence[int], rank: int | None = None) -> tuple[int, ...]:
    event = (obs_shape,) if isinstance(obs_shape, int) else tuple(obs_shape)
    if not event or min(event) < 1 or (rank is not None and len(event) != rank):
        expected = "one or more" if rank is None else str(rank)
        raise ValueError(f"obs_shape: expected {expected} sizes of at least 1, got {event}")
    return event


def _sizes(inputs: int, hidden: Sequence[int], actions: int) -> list[int]:
    if not isinstance(hidden, Sequence) or not all(isinstance(n, int) for n in (*hidden, actions)):
        raise TypeError(f"hidden, actions: expected whole numbers, several and one, got {hidden!r}, {actions!r}")
    sizes = [inputs, *hidden, actions]
    if min(sizes) < 1:
        raise ValueError(f"hidden, actions: expected sizes of at least 1, got {list(hidden)}, {actions}")
    return sizes
