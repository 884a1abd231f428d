"""Any `nn.Module` as a pure function of its parameters, and, where it drops out, of a key."""

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.func import functional_call
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode

from fdqn import check, random, tree
from fdqn.networks.state_dict import Shapes, fitting
from fdqn.types import Network, Params, Scalar


class NetworkWithDropout(NamedTuple):
    """`init(key [..., 2]) -> Params [...]` and `apply(params, obs [..., *O], key [2]) -> q [..., A]`."""

    init: Callable[[Tensor], Params]
    apply: Callable[[Params, Tensor, Tensor], Tensor]


def from_module(factory: Callable[[], nn.Module]) -> Network:
    """Any module as a pure function of its parameters, in evaluation mode: dropout is off.

    `factory` makes a new module at every call; `init` calls it once a lane, so a lane begins as the module does.
    Buffers are constants, those of one module for all lanes, on the parameters' device and, where floating, in their
    dtype. Shapes are the module's own. Observations come in the parameters' dtype too, but for int32 and int64, which
    may be indices; `apply` raises as that of `mlp` for parameters that are not the module's. Those of uint8 are cast
    but not divided by 255, because modules for images usually do that themselves.

    The network can be pickled if `factory` can, such as a class or a module-level function.

    Raises TypeError for a module with running statistics, as of batch norm, and `apply` does for one whose forward
    draws random numbers or writes a buffer: hidden state has no place in a function of parameters and observation.
    Into those it may write, as `nn.ReLU(inplace=True)` does: they are copies, and what is written goes with the call.
    """
    skeleton, constants = _skeleton(factory)
    apply = partial(_apply_without_drawing, skeleton.eval(), _shapes(skeleton), constants)
    return Network(partial(_init_module, factory, constants), apply)


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
    apply = partial(_apply_with_dropout, skeleton.train(), _shapes(skeleton), constants)
    return NetworkWithDropout(partial(_init_module, factory, constants), apply)


def dropout(x: Tensor, rate: Scalar, u: Tensor) -> Tensor:
    """Dropout with its chance as an argument; `torch.nn.functional.dropout`. The mean is kept.

        0 where u < rate, x / (1 - rate) elsewhere

    Shapes: x, uniforms u and the result [...]. Raises ValueError for a rate outside [0, 1), as 1 would leave nothing,
    and for a u outside [0, 1) that `check.uniforms` can read.
    Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html
    """
    check.shapes("x[...] u[...]", x, u)
    check.floating("x", x)
    check.floating("u", u)
    check.kind("rate", rate, float, int, Tensor)
    if not isinstance(rate, Tensor) and not 0 <= rate < 1:
        raise ValueError(f"rate: expected a number in [0, 1), got {rate}")
    check.uniforms("u", u)
    return (torch.where(u < rate, 0.0, x) / (1 - rate)).to(x.dtype)


# The generator of PyTorch is one for all threads, and a module takes its parameters from one caller at a time.
_LOCK = threading.RLock()


def _made(factory: Callable[[], nn.Module], key: Tensor) -> nn.Module:
    """What `factory` makes under a fork of PyTorch's generator, seeded from `key`: the one place that touches it."""
    # On the CPU, whatever the device: its generator alone is forked, and a seed means the same everywhere.
    with _LOCK, torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.inference_mode(False):
        torch.default_generator.manual_seed(_seed(key))
        return factory()


def _seed(key: Tensor) -> int:
    try:
        return int(random.bits(key))
    except RuntimeError:
        raise ValueError(
            "key: expected one that can be read, got one inside of a transform; init takes the keys [..., 2] of all "
            "lanes at once"
        ) from None


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
    _check_new(skeleton, _made(factory, random.key(0)))
    # A copy, whose mode is set and whose constants stay, whoever else holds what the factory made.
    with torch.inference_mode(False):
        own = copy.deepcopy(skeleton)
    return own, {torch.device("cpu"): {name: x.detach().cpu() for name, x in own.named_buffers()}}


def _check_new(module: nn.Module, again: nn.Module) -> None:
    """Raise TypeError where two calls of a factory made one thing."""
    memory = {x.untyped_storage().data_ptr() for x in module.parameters()} - {0}
    shared = [name for name, x in again.named_parameters() if x.untyped_storage().data_ptr() in memory]
    if again is module or shared:
        raise TypeError(
            f"factory: expected a new module at every call, got the same {shared or type(module).__name__} again; make "
            "it inside the factory, and bring trained parameters in by networks.load and networks.starting_from"
        )


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(x.shape) for name, x in module.named_parameters()}


def _init_module(factory: Callable[[], nn.Module], constants: _Constants, key: Tensor) -> Params:
    check.shapes("key[... 2]", key)
    if not key.numel():
        raise ValueError(f"key: expected at least one lane, got shape {list(key.shape)}")
    # Here and not when they are used: a copy made while tracing would be one of the trace, in every step of it.
    if key.device not in constants:
        constants[key.device] = {name: x.to(key.device) for name, x in constants[torch.device("cpu")].items()}
    if key.ndim > 1:
        return tree.stack(_init_module(factory, constants, k) for k in key)
    return {name: p.detach().to(key.device, copy=True) for name, p in _made(factory, key).named_parameters()}


def _apply_without_drawing(
    skeleton: nn.Module, expected: Shapes, constants: _Constants, params: Params, obs: Tensor
) -> Tensor:
    with _Drawing():
        return _apply_module(skeleton, expected, constants, params, obs)


def _apply_with_dropout(
    skeleton: nn.Module, expected: Shapes, constants: _Constants, params: Params, obs: Tensor, key: Tensor
) -> Tensor:
    check.shapes("key[2]", key)
    with _Drawing(key):
        return _apply_module(skeleton, expected, constants, params, obs)


def _apply_module(skeleton: nn.Module, expected: Shapes, constants: _Constants, params: Params, obs: Tensor) -> Tensor:
    check.shapes("obs[...]", obs)
    fitting(expected, params, obs)
    like = [*params.values(), obs][0]
    dtype = like.dtype if like.is_floating_point() and obs.dtype not in (torch.int32, torch.int64) else obs.dtype
    copies = _copies(constants, like)
    with torch.inference_mode(False):  # copies, since forward may write into them; a compiler takes them out
        given, own_obs = {**tree.map(torch.clone, params), **copies}, obs.to(dtype, copy=True)
    q = _called(skeleton, given, own_obs)
    # What forward puts in a buffer's place is in `given` now; what it writes into one is counted. Dynamo does not know
    # the count while it traces; there, what is written is thrown away.
    if written := [n for n, x in copies.items() if given[n] is not x or statically_known_true(x._version != 0)]:
        raise TypeError(
            f"factory: expected a forward that writes no buffer, got one that writes {written}; pass what changes in "
            "with obs, or leave it out"
        )
    return q


def _called(skeleton: nn.Module, given: Params, obs: Tensor) -> Tensor:
    """`functional_call`, by one thread at a time."""
    if check.is_traced():  # which knows no locks
        return functional_call(skeleton, given, (obs,))
    with _LOCK:
        return functional_call(skeleton, given, (obs,))


def _copies(constants: _Constants, like: Tensor) -> Params:
    """The constants on the device of `like`; floating ones in its dtype, as `module.to(dtype)` has them."""
    there = constants.get(like.device, constants[torch.device("cpu")])
    with torch.inference_mode(False):  # what is made in that mode does not count how often it is written to
        moved = {name: x.to(like.device, copy=True) for name, x in there.items()}
        return tree.cast(moved, like.dtype) if like.is_floating_point() else moved


# What draws random numbers only where it is told to train, and the place of the argument that tells it.
_SWITCHED = {
    **dict.fromkeys(("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "native_dropout"), 2),
    **dict.fromkeys(("alpha_dropout", "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"), 2),
    **dict.fromkeys(("feature_dropout", "feature_dropout_"), 2),
    **dict.fromkeys(("rrelu", "rrelu_"), 3),
    **dict.fromkeys(("rrelu_with_noise", "rrelu_with_noise_", "rrelu_with_noise_functional"), 4),
}
# What always does.
_RANDOM = {
    *("gumbel_softmax", "fractional_max_pool2d", "fractional_max_pool3d", "rand", "randn", "randint", "randperm"),
    *("rand_like", "randn_like", "randint_like", "bernoulli", "binomial", "multinomial", "normal", "poisson", "random"),
    *("cauchy", "exponential", "geometric", "log_normal", "normal_functional", "uniform"),
    *("bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_"),
    *("_standard_gamma", "_sample_dirichlet"),
}


class _Drawing(TorchFunctionMode):
    """Inside, nothing draws from a generator: calls of `F.dropout` are those of `dropout` with uniforms from `key`
    where there is one, and what else would draw is refused.
    """

    def __init__(self, key: Tensor | None = None) -> None:
        super().__init__()
        self.key, self.calls = key, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func.overloadpacket if isinstance(func, OpOverload) else func, "__name__", "")
        if name == "dropout" and self.key is not None:
            return self._dropout(self.key, *args, **kwargs)
        if _draws(name, args, kwargs):
            if self.key is None:
                raise TypeError(
                    f"factory: expected a forward that draws no random numbers, got one that calls {name}; pass "
                    "training=self.training to dropout, use from_module_with_dropout, or pass numbers in with obs"
                )
            raise TypeError(f"factory: expected no random layers but nn.Dropout, got one that calls {name}")
        return func(*args, **kwargs)

    def _dropout(
        self,
        key: Tensor,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
        train: bool = True,
    ) -> Tensor:
        if not (training and train):  # `torch.dropout` calls it `train`
            return input
        u = random.uniform(random.fold_in(key, self.calls), input.shape)
        self.calls += 1
        return dropout(input, p, u)


def _draws(name: str, args: Any, kwargs: Any) -> bool:
    if name == "scaled_dot_product_attention":
        return any((*args[4:5], kwargs.get("dropout_p")))
    if name not in _SWITCHED:
        return name in _RANDOM
    place = _SWITCHED[name]
    return bool(args[place] if len(args) > place else kwargs.get("training", kwargs.get("train", True)))
