"""Networks as `init/apply` pairs. Parameters have the names of the equivalent `nn.Module`'s `state_dict`.

`init` is batched over the leading axes of its key, so one call makes the parameters of all seeds. `apply` takes the
parameters of one seed and observations with any leading axes.

`mlp`, `nature`, `minatar` and similar functions make the usual networks. For others, `join` (or `quantile`, for IQN)
combines any trunk of `trunks` with any head of `heads`. `orthogonal` and `sparse` change initial parameters,
`from_module` wraps any `nn.Module`, and `load` and `to_module` read and write a `state_dict`.
"""

from fdqn.networks import heads, trunks
from fdqn.networks.heads import Head
from fdqn.networks.implicit_quantiles import QuantileNetwork, quantile
from fdqn.networks.initialization import orthogonal, sparse
from fdqn.networks.joined import NoisyNetwork, join, with_noise
from fdqn.networks.modules import NetworkWithDropout, dropout, from_module, from_module_with_dropout
from fdqn.networks.normalized import stream_minatar, stream_mlp, update_statistics
from fdqn.networks.standard import dueling_mlp, layer_norm_mlp, minatar, mlp, nature, noisy_mlp
from fdqn.networks.state_dict import load, starting_from, to_module
from fdqn.networks.trunks import SMALLEST_FRAME, Trunk

__all__ = [
    "SMALLEST_FRAME",
    "Head",
    "NetworkWithDropout",
    "NoisyNetwork",
    "QuantileNetwork",
    "Trunk",
    "dropout",
    "dueling_mlp",
    "from_module",
    "from_module_with_dropout",
    "heads",
    "join",
    "layer_norm_mlp",
    "load",
    "minatar",
    "mlp",
    "nature",
    "noisy_mlp",
    "orthogonal",
    "quantile",
    "sparse",
    "starting_from",
    "stream_minatar",
    "stream_mlp",
    "to_module",
    "trunks",
    "update_statistics",
    "with_noise",
]
