"""The usual networks, each a trunk joined with a linear or dueling head.

All networks of this module divide uint8 observations by 255, because uint8 almost always means pixels or memory. Other
dtypes are not scaled; cast small counts in uint8 to another dtype to keep their values.
"""

from collections.abc import Sequence

from fdqn import check
from fdqn.networks import heads, trunks
from fdqn.networks.initialization import orthogonal
from fdqn.networks.joined import NoisyNetwork, join
from fdqn.networks.layers import event_shape
from fdqn.types import Network


def mlp(obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int) -> Network:
    """Make an MLP of linear layers with ReLU between them. uint8 observations are divided by 255.

    It equals `nn.Sequential(Linear, ReLU, ..., Linear)` in names, initial distribution and outputs. Without hidden
    layers it is one linear layer, named "0".

    Shapes: obs [..., *obs_shape], flattened; q [..., actions]. Raises ValueError for a size below 1 and for a layer of
    2**31 weights or more. `apply` raises ValueError for parameters or observations of other names, shapes or devices,
    and TypeError for parameters that are not floating-point. The networks below raise the same errors.
    """
    _check_sizes(obs_shape, hidden, actions)
    return _plain(join(trunks.mlp(obs_shape, hidden), heads.linear(actions)))


def dueling_mlp(obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int) -> Network:
    """Make an MLP with a dueling head: its last layer gives the state's value and the advantage of each action.

        q = value + advantage - mean of advantage

    uint8 observations are divided by 255.

    Shapes: obs [..., *obs_shape], flattened; q [..., actions]. Raises ValueError for a size below 1.
    Wang et al. 2016, https://arxiv.org/abs/1511.06581
    """
    _check_sizes(obs_shape, hidden, actions)
    return _plain(join(trunks.mlp(obs_shape, hidden), heads.dueling(actions)))


def layer_norm_mlp(
    obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int, gain: float | None = None
) -> Network:
    """Make an MLP with layer normalization before each ReLU.

    Parameter names, initial distribution and outputs are those of `nn.Sequential(Linear, LayerNorm, ReLU, ...,
    Linear)`. With a `gain`, weights are initialized to orthogonal matrices times `gain` and biases to 0; CleanRL's PQN
    uses sqrt(2). Observations of uint8 are divided by 255.

    Shapes: obs [..., *obs_shape], flattened; q [..., actions]. Raises as `mlp` does, and ValueError for a negative
    gain. Ba et al. 2016, https://arxiv.org/abs/1607.06450; for Q-learning Gallici et al. 2024,
    https://arxiv.org/abs/2407.04811
    """
    if gain is not None:
        check.number("gain", gain)
    _check_sizes(obs_shape, hidden, actions)
    network = _plain(join(trunks.layer_norm_mlp(obs_shape, hidden), heads.linear(actions)))
    return network if gain is None else orthogonal(network, gain)


def noisy_mlp(
    obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int, sigma_zero: float = 0.5
) -> NoisyNetwork:
    """Make an MLP of noisy linear layers with factorized Gaussian noise and ReLU activations.

        y = (weight_mu + weight_sigma * outer(f(e_out), f(e_in))) x + bias_mu + bias_sigma * f(e_out)
        f(e) = sign(e) sqrt(|e|),    e_in and e_out standard normal

    Means are initialized uniformly in +-1 / sqrt(inputs), scales to `sigma_zero / sqrt(inputs)`. Each call samples the
    weights once for all of its rows. Observations of uint8 are divided by 255. The noise replaces epsilon-greedy
    exploration.

    Shapes: obs [..., *obs_shape], flattened; noise [K] or (); outputs [..., actions]. Raises as `mlp` does; `apply`
    raises ValueError for noise of another shape or, if its values can be read, outside [0, 1).
    Fortunato et al. 2018, https://arxiv.org/abs/1706.10295
    """
    check.number("sigma_zero", sigma_zero)
    _check_sizes(obs_shape, hidden, actions)
    trunk = trunks.noisy_mlp(obs_shape, hidden, sigma_zero)
    return join(trunk, heads.noisy_linear(actions, sigma_zero=sigma_zero))


def nature(obs_shape: Sequence[int], actions: int) -> Network:
    """Make the convolutional network of the Nature DQN, for frames [channels, height, width].

    uint8 frames are divided by 255; other dtypes are not scaled.

    Shapes: obs [..., channels, height, width]; q [..., actions]. Raises ValueError for frames below 36 x 36.
    Mnih et al. 2015, https://doi.org/10.1038/nature14236
    """
    return _plain(join(trunks.nature(obs_shape), heads.linear(actions)))


def minatar(obs_shape: Sequence[int], actions: int) -> Network:
    """Make the convolutional network of MinAtar's DQN, for boards [channels, height, width].

    It has 16 filters of 3 x 3, 128 hidden units and a linear layer, with ReLU between them. uint8 boards are divided by
    255.

    Shapes: obs [..., channels, height, width]; q [..., actions]. Raises ValueError for boards below 3 x 3.
    Young and Tian 2019, https://arxiv.org/abs/1903.03176
    """
    return _plain(join(trunks.minatar(obs_shape), heads.linear(actions)))


def _plain(network: NoisyNetwork) -> Network:
    """Return a network of layers without noise as a `Network`."""
    return Network(network.init, network.apply)


def _check_sizes(obs_shape: int | Sequence[int], hidden: Sequence[int], actions: int) -> None:
    event_shape(obs_shape)
    if not isinstance(hidden, Sequence) or not all(type(n) is int for n in (*hidden, actions)):
        raise TypeError(f"hidden, actions: expected a sequence of integers and an integer, got {hidden!r}, {actions!r}")
    if min((*hidden, actions)) < 1:
        raise ValueError(f"hidden, actions: expected sizes of at least 1, got {list(hidden)}, {actions}")
