"""Networks as `init/apply` pairs. Parameters have the names of the equivalent `nn.Module`'s `state_dict`.

`init` is batched over the leading axes of its key, so one call makes the parameters of all seeds. `apply` takes the
parameters of one seed and observations with any leading axes.

`layers` has the built-in networks, `modules` wraps any `nn.Module`, and `state_dict` loads and exports parameters.
"""

from fdqn.networks.layer_norm import layer_norm_mlp
from fdqn.networks.layers import SMALLEST_FRAME, dueling_mlp, minatar, mlp, nature
from fdqn.networks.modules import NetworkWithDropout, dropout, from_module, from_module_with_dropout
from fdqn.networks.noisy_layers import NoisyNetwork, noisy_mlp, with_noise
from fdqn.networks.quantile import QuantileNetwork
from fdqn.networks.state_dict import load, starting_from, to_module

__all__ = [
    "SMALLEST_FRAME",
    "NetworkWithDropout",
    "NoisyNetwork",
    "QuantileNetwork",
    "dropout",
    "dueling_mlp",
    "from_module",
    "from_module_with_dropout",
    "layer_norm_mlp",
    "load",
    "minatar",
    "mlp",
    "nature",
    "noisy_mlp",
    "starting_from",
    "to_module",
    "with_noise",
]
