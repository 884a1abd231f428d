"""Any `nn.Module` as a pure function of its parameters and, with dropout, of a key."""

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
    """Wrap a module as a pure function of its parameters, in evaluation mode: dropout is off.

    `factory` returns a new module at every call. `init` calls it once per seed, so parameters have the module's own
    initial distribution. Shapes are the module's own.

    Buffers are constants, those of one module for all seeds. They are moved to the parameters' device and, if floating,
    cast to their dtype. Observations are cast to the parameters' dtype too, except int32 and int64, which may be
    indices. uint8 observations are cast but not divided by 255, because modules for images usually do that themselves.

    The network can be pickled if `factory` can, such as a class or a module-level function.

    Raises TypeError for a module with running statistics, such as batch norm. `apply` raises TypeError for a forward
    that draws random numbers or writes a buffer, because a pure function has no hidden state. In-place operations on
    activations, such as `nn.ReLU(inplace=True)`, are allowed: parameters and observations are copied at every call.
    `apply` also raises as that of `mlp` does for parameters that are not the module's.
    """
    skeleton, constants = _skeleton(factory)
    apply = partial(_apply_without_drawing, skeleton.eval(), _shapes(skeleton), constants)
    return Network(partial(_init_module, factory, constants), apply)


def from_module_with_dropout(factory: Callable[[], nn.Module]) -> NetworkWithDropout:
    """Wrap a module as a pure function of its parameters and a key, in training mode: dropout is on.

    `apply(params, obs, key)` gives the n-th call of `F.dropout`, counted from 0, the uniforms of `fold_in(key, n)`, so
    equal keys drop equal units. No generator is used. Seeds and samples with independent masks need different keys. In
    a compiled program each call of dropout contains a Threefry cipher, which takes some seconds to compile on a CPU.

    Raises TypeError as `from_module` does, and for other layers that draw random numbers.
    """
    skeleton, constants = _skeleton(factory)
    inside = (nn.RNNBase, nn.MultiheadAttention)
    if hidden := [name for name, m in skeleton.named_modules() if isinstance(m, inside) and m.dropout > 0]:
        raise TypeError(
            f"factory: expected dropout in separate layers, got it inside {hidden}; make them with dropout=0 and put "
            "nn.Dropout before or after"
        )
    apply = partial(_apply_with_dropout, skeleton.train(), _shapes(skeleton), constants)
    return NetworkWithDropout(partial(_init_module, factory, constants), apply)


def dropout(x: Tensor, rate: Scalar, u: Tensor) -> Tensor:
    """Apply dropout with its random numbers as an argument; `torch.nn.functional.dropout`.

        0 where u < rate, x / (1 - rate) elsewhere

    Shapes: x, uniforms u and the result [...]. Raises ValueError for a rate outside [0, 1) and for a `u` outside [0, 1)
    that `check.uniforms` can read.
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


# PyTorch's generator is shared by all threads, and `functional_call` swaps the parameters of a shared module.
_LOCK = threading.RLock()


def _made(factory: Callable[[], nn.Module], key: Tensor) -> nn.Module:
    """Call `factory` under a fork of PyTorch's generator, seeded from `key`. No other function uses the generator."""
    # Always on the CPU: only its generator is forked, and a seed gives the same parameters on every device.
    with _LOCK, torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.inference_mode(False):
        torch.default_generator.manual_seed(_seed(key))
        return factory()


def _seed(key: Tensor) -> int:
    try:
        return int(random.bits(key))
    except RuntimeError:
        raise ValueError(
            "key: expected one that can be read, got one inside of a transform; init takes the keys [..., 2] of all "
            "seeds at once"
        ) from None


# The buffers of a module on each device on which parameters were initialized.
_Constants = dict[torch.device, Params]


def _skeleton(factory: Callable[[], nn.Module]) -> tuple[nn.Module, _Constants]:
    """Return a module whose parameters are replaced in every call, and its buffers."""
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
    # A copy, because the caller may hold the factory's module and change its mode or buffers.
    with torch.inference_mode(False):
        own = copy.deepcopy(skeleton)
    return own, {torch.device("cpu"): {name: x.detach().cpu() for name, x in own.named_buffers()}}


def _check_new(module: nn.Module, again: nn.Module) -> None:
    """Raise TypeError if two calls of the factory returned the same module or shared parameters."""
    memory = {x.untyped_storage().data_ptr() for x in module.parameters()} - {0}
    shared = [name for name, x in again.named_parameters() if x.untyped_storage().data_ptr() in memory]
    if again is module or shared:
        raise TypeError(
            f"factory: expected a new module at every call, got the same {shared or type(module).__name__} again; make "
            "it inside the factory, and load trained parameters with networks.load and networks.starting_from"
        )


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(x.shape) for name, x in module.named_parameters()}


def _init_module(factory: Callable[[], nn.Module], constants: _Constants, key: Tensor) -> Params:
    check.shapes("key[... 2]", key)
    if not key.numel():
        raise ValueError(f"key: expected at least one seed, got shape {list(key.shape)}")
    # Moved here and not at first use: under tracing the copy would become part of every step.
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
    with torch.inference_mode(False):  # copies, since forward may write in place; a compiler removes them
        given, own_obs = {**tree.map(torch.clone, params), **copies}, obs.to(dtype, copy=True)
    q = _called(skeleton, given, own_obs)
    # A buffer that forward replaced differs in `given`; an in-place write increments `_version`. Dynamo cannot read the
    # version while it traces; there the written copy is discarded.
    if written := [n for n, x in copies.items() if given[n] is not x or statically_known_true(x._version != 0)]:
        raise TypeError(
            f"factory: expected a forward that writes no buffer, got one that writes {written}; pass changing values "
            "with obs, or remove them"
        )
    return q


def _called(skeleton: nn.Module, given: Params, obs: Tensor) -> Tensor:
    """Call `functional_call` from one thread at a time."""
    if check.is_traced():  # Dynamo cannot trace locks
        return functional_call(skeleton, given, (obs,))
    with _LOCK:
        return functional_call(skeleton, given, (obs,))


def _copies(constants: _Constants, like: Tensor) -> Params:
    """Copy the constants to the device of `like`, floating ones in its dtype, as `module.to(dtype)` casts them."""
    there = constants.get(like.device, constants[torch.device("cpu")])
    with torch.inference_mode(False):  # inference tensors have no version counter
        moved = {name: x.to(like.device, copy=True) for name, x in there.items()}
        return tree.cast(moved, like.dtype) if like.is_floating_point() else moved


# Functions that draw random numbers only in training mode, and the position of that argument.
_SWITCHED = {
    **dict.fromkeys(("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "native_dropout"), 2),
    **dict.fromkeys(("alpha_dropout", "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"), 2),
    **dict.fromkeys(("feature_dropout", "feature_dropout_"), 2),
    **dict.fromkeys(("rrelu", "rrelu_"), 3),
    **dict.fromkeys(("rrelu_with_noise", "rrelu_with_noise_", "rrelu_with_noise_functional"), 4),
}
# Functions that always draw random numbers.
_RANDOM = {
    *("gumbel_softmax", "fractional_max_pool2d", "fractional_max_pool3d", "rand", "randn", "randint", "randperm"),
    *("rand_like", "randn_like", "randint_like", "bernoulli", "binomial", "multinomial", "normal", "poisson", "random"),
    *("cauchy", "exponential", "geometric", "log_normal", "normal_functional", "uniform"),
    *("bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_"),
    *("_standard_gamma", "_sample_dirichlet"),
}


class _Drawing(TorchFunctionMode):
    """Mode that keeps generators untouched: `F.dropout` takes its uniforms from `key`, if there is one; other calls
    that draw random numbers raise TypeError.
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
                    "training=self.training to dropout, use from_module_with_dropout, or pass random numbers with obs"
                )
            raise TypeError(f"factory: expected no random layers other than nn.Dropout, got one that calls {name}")
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
