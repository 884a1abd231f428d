"""Networks as `init/apply` pairs. Parameters carry the names of the equivalent `nn.Module`'s `state_dict`.

`init` is batched over the leading axes of its key, so one call makes the parameters of all lanes; `apply` takes one
lane's parameters and observations with any leading axes.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fdqn import check, random, tree
from fdqn.types import Network, Params


def mlp(obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int) -> Network:
    """Linear layers with ReLU between: `nn.Sequential(Linear, ReLU, ..., Linear)` in names, initial values and outputs.

    Shapes: obs [..., *obs_shape], flattened; q [..., actions]. Raises ValueError for a size below 1.
    """
    event = _event(obs_shape)
    sizes = _sizes(math.prod(event), hidden, actions)
    return Network(partial(_init_mlp, sizes), partial(_apply_mlp, event))


def dueling_mlp(obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int) -> Network:
    """An MLP whose last layer gives the state's value and each action's advantage.

        q = value + advantage - mean of advantage

    Shapes: obs [..., *obs_shape], flattened; q [..., actions].
    Wang et al. 2016, https://arxiv.org/abs/1511.06581
    """
    event = _event(obs_shape)
    sizes = _sizes(math.prod(event), hidden, actions)
    return Network(partial(_init_dueling_mlp, sizes), partial(_apply_dueling_mlp, event))


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
    shapes = {
        "0": (32, channels, 8, 8),
        "2": (64, 32, 4, 4),
        "4": (64, 64, 3, 3),
        "7": (512, features),
        "9": (actions, 512),
    }
    return Network(partial(_init_layers, shapes), partial(_apply_nature, (channels, height, width)))


def from_module(factory: Callable[[], nn.Module]) -> Network:
    """Any module as a pure function of its parameters.

    `factory` makes the module. Its skeleton is kept on the meta device in evaluation mode (dropout off); `init` calls
    `factory` once a lane under a fork of PyTorch's generator, seeded from the lane's key, and is the one place where
    that generator is touched. Shapes are the module's own. Raises TypeError for a module with buffers: a running
    statistic or other hidden state has no place in a function of parameters and observation.
    """
    with torch.device("meta"):
        skeleton = factory().eval()
    if buffers := [name for name, _ in skeleton.named_buffers()]:
        raise TypeError(f"factory: expected a module without buffers, got {buffers}; use e.g. LayerNorm for BatchNorm")

    def init(key: Tensor) -> Params:
        check.shapes("key[... 2]", key)
        if key.ndim > 1:
            return tree.stack(init(k) for k in key)
        # On the CPU, whatever the device: its generator alone is forked, and a seed means the same everywhere.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(int(random.bits(key)))
            return {name: p.detach().to(key.device) for name, p in factory().named_parameters()}

    def apply(params: Params, obs: Tensor) -> Tensor:
        return functional_call(skeleton, params, (obs,), strict=True)

    return Network(init, apply)


def _init_mlp(sizes: list[int], key: Tensor) -> Params:
    # nn.Sequential counts the ReLUs too, so linear layer i stands at place 2 i.
    return _init_layers({f"{2 * i}": (n, m) for i, (m, n) in enumerate(pairwise(sizes))}, key)


def _apply_mlp(event: tuple[int, ...], params: Params, obs: Tensor) -> Tensor:
    x = _flatten(event, params["0.weight"], obs)
    last = len(params) - 2
    for i in range(0, last + 1, 2):
        x = F.linear(x, params[f"{i}.weight"], params[f"{i}.bias"])
        x = x if i == last else x.relu()
    return x


def _init_dueling_mlp(sizes: list[int], key: Tensor) -> Params:
    *trunk, features, actions = sizes
    layers = {f"trunk.{2 * i}": (n, m) for i, (m, n) in enumerate(zip(trunk, [*trunk[1:], features], strict=True))}
    return _init_layers({**layers, "value": (1, features), "advantage": (actions, features)}, key)


def _apply_dueling_mlp(event: tuple[int, ...], params: Params, obs: Tensor) -> Tensor:
    x = _flatten(event, params["value.weight"], obs)
    for i in range(0, len(params) - 4, 2):
        x = F.linear(x, params[f"trunk.{i}.weight"], params[f"trunk.{i}.bias"]).relu()
    value = F.linear(x, params["value.weight"], params["value.bias"])
    advantage = F.linear(x, params["advantage.weight"], params["advantage.bias"])
    return value + advantage - advantage.mean(-1, keepdim=True)


def _apply_nature(event: tuple[int, ...], params: Params, obs: Tensor) -> Tensor:
    check.shapes(f"obs[... {' '.join(map(str, event))}]", obs)
    leading = obs.shape[: obs.ndim - 3]
    x = obs.reshape(-1, *event).to(params["0.weight"].dtype) / 255.0
    for name, stride in (("0", 4), ("2", 2), ("4", 1)):
        x = F.conv2d(x, params[f"{name}.weight"], params[f"{name}.bias"], stride).relu()
    x = F.linear(x.flatten(1), params["7.weight"], params["7.bias"]).relu()
    x = F.linear(x, params["9.weight"], params["9.bias"])
    return x.reshape(*leading, x.shape[-1])


def _init_layers(shapes: dict[str, tuple[int, ...]], key: Tensor) -> Params:
    """Weights and biases uniform in +-1 / sqrt(inputs), as `nn.Linear` and `nn.Conv2d` begin."""
    params = {}
    for i, (name, shape) in enumerate(shapes.items()):
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        weight, bias = random.split(random.fold_in(key, i)).unbind(-2)
        params[f"{name}.weight"] = (2 * random.uniform(weight, shape) - 1) * bound
        params[f"{name}.bias"] = (2 * random.uniform(bias, shape[:1]) - 1) * bound
    return params


def _flatten(event: tuple[int, ...], like: Tensor, obs: Tensor) -> Tensor:
    check.shapes(f"obs[... {' '.join(map(str, event))}]", obs)
    return obs.reshape(*obs.shape[: obs.ndim - len(event)], math.prod(event)).to(like.dtype)


def _event(obs_shape: int | Sequence[int], rank: int | None = None) -> tuple[int, ...]:
    event = (obs_shape,) if isinstance(obs_shape, int) else tuple(obs_shape)
    if not event or min(event) < 1 or (rank is not None and len(event) != rank):
        expected = "one or more" if rank is None else str(rank)
        raise ValueError(f"obs_shape: expected {expected} sizes of at least 1, got {event}")
    return event


def _sizes(inputs: int, hidden: Sequence[int], actions: int) -> list[int]:
    sizes = [inputs, *hidden, actions]
    if not hidden or min(sizes) < 1:
        raise ValueError(
            f"hidden, actions: expected hidden layers and sizes of at least 1, got {list(hidden)}, {actions}"
        )
    return sizes
