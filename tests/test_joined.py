"""Trunks, heads and their combinations: compared with `nn.Module`s, laws with planted bugs, initial values."""

import hashlib
import math
import pickle
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.func import grad, vmap

from fdqn import networks, random, tree
from fdqn.networks import heads, layers, trunks
from fdqn.testing import asserts, laws

KEY = random.key(7)
CHANCE = 1e-4
FRAME, BOARD, VECTOR = (2, 36, 40), (3, 6, 5), (2, 3)


class Noisy(nn.Module):
    """Noisy linear layer of Fortunato et al., equations 10 and 11; `factors` are f(e) of outputs and inputs."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight_mu = nn.Parameter(torch.empty(outputs, inputs))
        self.bias_mu = nn.Parameter(torch.empty(outputs))
        self.weight_sigma = nn.Parameter(torch.empty(outputs, inputs))
        self.bias_sigma = nn.Parameter(torch.empty(outputs))
        self.factors = None

    def forward(self, x):
        if self.factors is None:
            return x @ self.weight_mu.mT + self.bias_mu
        out, into = self.factors[: len(self.bias_mu)], self.factors[len(self.bias_mu) :]
        weight = self.weight_mu + self.weight_sigma * torch.outer(out, into)
        return x @ weight.mT + self.bias_mu + self.bias_sigma * out


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv0, self.conv1 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.conv1(F.relu(self.conv0(F.relu(x))))


class Stage(nn.Module):
    """Stage of IMPALA's network, figure 3 of Espeholt et al."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.block0, self.block1 = Block(outputs), Block(outputs)

    def forward(self, x):
        return self.block1(self.block0(F.max_pool2d(self.conv(x), 3, stride=2, padding=1)))


def dense(sizes, make=nn.Linear, norm=False):
    layers = []
    for m, n in pairwise(sizes):
        layers += [make(m, n), *([nn.LayerNorm(n)] if norm else []), nn.ReLU()]
    return layers


def nature(make=nn.Linear, norm=False):
    shapes = [(2, 36, 40), (32, 8, 9), (64, 3, 3), (64, 1, 1)]
    return [*convolved(shapes, [(8, 4), (4, 2), (3, 1)], norm), *dense([64, 512], make, norm)]


def minatar(make=nn.Linear, norm=False):
    return [*convolved([BOARD, (16, 4, 3)], [(3, 1)], norm), *dense([192, 128], make, norm)]


def convolved(shapes, filters, norm):
    layers = []
    for (m, *_), after, (size, stride) in zip(shapes, shapes[1:], filters, strict=False):
        layers += [nn.Conv2d(m, after[0], size, stride), *([nn.LayerNorm(after)] if norm else []), nn.ReLU()]
    return [*layers, nn.Flatten()]


def impala(features=32):
    return [Stage(3, 16), Stage(16, 32), Stage(32, 32), nn.Flatten(), nn.ReLU(), *dense([features, 256])]


TRUNKS = {
    "mlp": (trunks.mlp(VECTOR, (7, 5)), lambda: dense([6, 7, 5])),
    "mlp without hidden layers": (trunks.mlp(VECTOR, ()), lambda: []),
    "layer_norm_mlp": (trunks.layer_norm_mlp(VECTOR, (7, 5)), lambda: dense([6, 7, 5], norm=True)),
    "noisy_mlp": (trunks.noisy_mlp(VECTOR, (7, 5)), lambda: dense([6, 7, 5], Noisy)),
    "nature": (trunks.nature(FRAME), nature),
    "layer_norm_nature": (trunks.layer_norm_nature(FRAME), lambda: nature(norm=True)),
    "noisy_nature": (trunks.noisy_nature(FRAME), lambda: nature(Noisy)),
    "minatar": (trunks.minatar(BOARD), minatar),
    "layer_norm_minatar": (trunks.layer_norm_minatar(BOARD), lambda: minatar(norm=True)),
    "noisy_minatar": (trunks.noisy_minatar(BOARD), lambda: minatar(Noisy)),
    "minatar without hidden layers": (trunks.minatar(BOARD, hidden=()), lambda: minatar()[:-2]),
    "impala": (trunks.impala(BOARD), impala),
}
HEADS = {
    "linear": (heads.linear, nn.Linear),
    "noisy_linear": (heads.noisy_linear, Noisy),
    "dueling": (heads.dueling, nn.Linear),
    "noisy_dueling": (heads.noisy_dueling, Noisy),
}
EACH_TRUNK, EACH_HEAD = pytest.mark.parametrize("trunk", TRUNKS), pytest.mark.parametrize("head", HEADS)
ACTIONS = 3


class Dueling(nn.Module):
    def __init__(self, trunk, value, advantage, atoms):
        super().__init__()
        self.trunk, self.value, self.advantage, self.atoms = nn.Sequential(*trunk), value, advantage, atoms

    def forward(self, obs):
        x = self.trunk(obs)
        value, advantage = self.value(x).reshape(-1, 1, self.atoms), self.advantage(x).reshape(-1, ACTIONS, self.atoms)
        return (value + advantage - advantage.mean(1, keepdim=True)).reshape(len(x), -1)


def module_of(trunk, head, atoms, hidden=()):
    """Make the `nn.Module` of a trunk and a head, in float64 and without initializing it."""
    made, features, make = TRUNKS[trunk][1](), TRUNKS[trunk][0].features, HEADS[head][1]

    def branch(outputs):
        return [*dense([features, *hidden], make), make((features, *hidden)[-1], outputs)]

    if head.endswith("linear"):
        return nn.Sequential(*made, *branch(ACTIONS * atoms)).double()
    value, advantage = (x if hidden else x[0] for x in (branch(atoms), branch(ACTIONS * atoms)))
    wrapped = [nn.Sequential(*x) if hidden else x for x in (value, advantage)]
    return Dueling(made, *wrapped, atoms).double()


def network_of(trunk, head, atoms=1, **named):
    return networks.join(TRUNKS[trunk][0], HEADS[head][0](ACTIONS, atoms, **named))


def params_of(network, seed=1):
    """Return parameters in float64 that are all different, unlike initial values such as zeros and scales."""
    params = tree.cast(network.init(KEY), torch.float64)
    return {
        name: x + 0.02 * random.normal(random.fold_in(random.key(seed), i), x.shape, torch.float64)
        for i, (name, x) in enumerate(params.items())
    }


def observations(trunk, *leading):
    return random.normal(random.key(2), (*leading, *TRUNKS[trunk][0].obs_shape), torch.float64)


def noise_of(network, seed=3):
    return random.uniform(random.key(seed), (network.noise,), torch.float64) if network.noise else ()


def give_noise(module, noise):
    """Set the noise factors of each noisy layer, in the order of the parameters."""
    e = random.normal_from_uniform(noise)
    factors = e.sign() * e.abs().sqrt()
    for layer in (x for x in module.modules() if isinstance(x, Noisy)):
        size = sum(layer.weight_mu.shape)
        layer.factors, factors = factors[:size], factors[size:]
    assert not len(factors)


def rows(trunk, obs):
    return obs.flatten(1) if len(TRUNKS[trunk][0].obs_shape) == 2 else obs


@EACH_HEAD
@EACH_TRUNK
def test_every_trunk_with_every_head_equals_its_module(trunk, head):
    atoms = 4
    network, module = network_of(trunk, head, atoms), module_of(trunk, head, atoms)
    params, obs = params_of(network), observations(trunk, 5)
    assert list(params) == list(module.state_dict())
    module.load_state_dict(params, strict=True)
    asserts.assert_trees_close(module(rows(trunk, obs)).detach(), network.apply(params, obs), 1e-10)
    if noise := network.noise:
        assert noise == sum(sum(x.weight_mu.shape) for x in module.modules() if isinstance(x, Noisy))
        u = noise_of(network)
        give_noise(module, u)
        noisy = module(rows(trunk, obs)).detach()
        asserts.assert_trees_close(noisy, network.apply(params, obs, u), 1e-10)
        assert (noisy - network.apply(params, obs)).abs().max() > 1e-3


@EACH_HEAD
def test_hidden_layers_of_heads(head):
    """Check that each branch of a dueling head has its own hidden layers, as in Rainbow."""
    network, module = network_of("mlp", head, 2, hidden=(6,)), module_of("mlp", head, 2, hidden=(6,))
    params, obs = params_of(network), observations("mlp", 5)
    assert list(params) == list(module.state_dict())
    module.load_state_dict(params, strict=True)
    asserts.assert_trees_close(module(rows("mlp", obs)).detach(), network.apply(params, obs), 1e-12)


@pytest.mark.parametrize(("shape", "features"), [((4, 10, 10), 128), ((1, 84, 84), 3872), ((2, 1, 3), 32)])
def test_impala_takes_boards_and_frames(shape, features):
    network = networks.join(trunks.impala(shape), heads.linear(2))
    params, obs = network.init(KEY), random.randint(KEY, (2, *shape), 0, 256).to(torch.uint8)
    module = nn.Sequential(Stage(shape[0], 16), *impala(features)[1:], nn.Linear(256, 2))
    module.load_state_dict(params, strict=True)
    torch.testing.assert_close(network.apply(params, obs), module(obs / 255).detach(), rtol=1e-6, atol=1e-6)


@EACH_TRUNK
def test_a_trunk_alone_gives_the_features(trunk):
    own, module = TRUNKS[trunk][0], nn.Sequential(*TRUNKS[trunk][1]()).double()
    params, obs = params_of(own), observations(trunk, 2, 3)
    module.load_state_dict(params, strict=True)
    expected = module(rows(trunk, obs.flatten(0, 1))).reshape(2, 3, own.features).detach()
    asserts.assert_trees_close(expected, own.apply(params, obs), 1e-10)
    if not params:
        assert own.apply({}, obs.to(torch.uint8)).dtype == own.apply({}, obs > 0).dtype == torch.float32


@EACH_TRUNK
def test_initial_values(trunk):
    """Check weights in +-1 / sqrt(inputs), scales of noise and the identity of layer normalization."""
    params = network_of(trunk, "noisy_dueling", 4, sigma_zero=0.5).init(random.key([0, 1]))
    drawn = []
    for name, layer in module_of(trunk, "noisy_dueling", 4).named_modules():
        own = {n.removeprefix(f"{name}."): x for n, x in params.items() if n.rpartition(".")[0] == name}
        if isinstance(layer, nn.LayerNorm):
            assert (own["weight"] == 1).all()
            assert not own["bias"].any()
        elif isinstance(layer, nn.Linear | nn.Conv2d | Noisy):
            mean = {n.removesuffix("_mu"): x for n, x in own.items() if not n.endswith("sigma")}
            bound = 1 / math.sqrt(math.prod(mean["weight"].shape[2:]))
            assert mean["weight"].abs().max() <= bound
            assert mean["bias"].abs().max() <= bound
            assert stats.kstest((mean["weight"] / bound).flatten().numpy(), "uniform", (-1, 2)).pvalue > CHANCE
            scales = [x for n, x in own.items() if n.endswith("sigma")]
            assert all(x.unique().tolist() == [pytest.approx(0.5 * bound)] for x in scales)
            drawn += [tuple((x[seed].flatten()[:4] / bound).tolist()) for x in mean.values() for seed in (0, 1)]
    assert len(set(drawn)) == len(drawn), "no two layers or seeds start with the same numbers"


PLAIN = {"noisy_mlp": "mlp", "noisy_nature": "nature", "noisy_minatar": "minatar"}


@pytest.mark.parametrize("head", ["linear", "dueling"])
@pytest.mark.parametrize("trunk", PLAIN)
def test_without_noise_or_with_scale_0_a_noisy_network_equals_the_plain_one(trunk, head):
    plain, noisy = network_of(PLAIN[trunk], head, 2), network_of(trunk, f"noisy_{head}", 2)
    params, obs = noisy.init(KEY), observations(trunk, 4).float()
    mean = {name.removesuffix("_mu"): x for name, x in params.items() if not name.endswith("_sigma")}
    asserts.assert_trees_equal(plain.init(KEY), mean)
    asserts.assert_trees_equal(plain.apply(mean, obs), noisy.apply(params, obs))
    silent = {name: torch.zeros_like(x) if name.endswith("_sigma") else x for name, x in params.items()}
    asserts.assert_trees_equal(plain.apply(mean, obs), noisy.apply(silent, obs, noise_of(noisy).float()))
    with pytest.raises(TypeError, match=r"noise: expected \(\) for a network without noise, got Tensor"):
        plain.apply(mean, obs, torch.zeros(3))


@pytest.mark.parametrize("atoms", [1, 4])
@pytest.mark.parametrize("head", ["dueling", "noisy_dueling"])
def test_dueling_heads_separate_value_and_advantages_of_each_atom(head, atoms):
    network, trunk = network_of("mlp", head, atoms), TRUNKS["mlp"][0]
    params, obs, u = params_of(network), observations("mlp", 6), noise_of(network)

    def outputs(**changed):
        return network.apply(params | changed, obs, u).unflatten(-1, (ACTIONS, atoms))

    kind = "bias_mu" if "noisy" in head else "bias"
    q, shift = outputs(), torch.arange(1.0, atoms + 1).double()
    value_shifted = outputs(**{f"value.{kind}": params[f"value.{kind}"] + shift})
    asserts.assert_trees_close(q + shift, value_shifted, 1e-12)
    same = outputs(**{f"advantage.{kind}": params[f"advantage.{kind}"] + shift.repeat(ACTIONS)})
    asserts.assert_trees_close(q, same, 1e-12)
    if head == "dueling":
        features = trunk.apply({n.removeprefix("trunk."): x for n, x in params.items() if n.startswith("trunk")}, obs)
        value = F.linear(features, params["value.weight"], params["value.bias"])
        asserts.assert_trees_close(value, q.mean(-2), 1e-12)


def test_a_common_mean_of_all_atoms_is_detected():
    def wrong(value, advantage):
        x = advantage.unflatten(-1, (ACTIONS, -1))
        return (value.unsqueeze(-2) + x - x.mean((-1, -2), keepdim=True)).flatten(-2)

    right = network_of("mlp", "dueling", 4)
    other = networks.join(TRUNKS["mlp"][0], heads.dueling(ACTIONS, 4)._replace(combine=wrong))
    params, obs = params_of(right), observations("mlp", 6)
    with pytest.raises(AssertionError):
        asserts.assert_trees_close(right.apply(params, obs), other.apply(params, obs), 1e-3)


@EACH_HEAD
def test_permuting_the_actions_permutes_the_outputs(head):
    atoms, order = 2, torch.tensor([2, 0, 1])
    network = network_of("mlp", head, atoms)
    params, obs = params_of(network), observations("mlp", 6)
    last = "advantage" if "dueling" in head else "4"
    moved = {
        name: x.unflatten(0, (ACTIONS, atoms))[order].flatten(0, 1) if name.startswith(last) else x
        for name, x in params.items()
    }
    outputs = network.apply(params, obs).unflatten(-1, (ACTIONS, atoms))
    permuted = network.apply(moved, obs).unflatten(-1, (ACTIONS, atoms))
    asserts.assert_trees_close(outputs[:, order], permuted, 1e-12)


@EACH_TRUNK
def test_every_parameter_gets_a_gradient(trunk):
    network = network_of(trunk, "noisy_dueling", 2)
    params, obs, u = params_of(network), observations(trunk, 8), noise_of(network)
    grads = grad(lambda p: network.apply(p, obs, u).square().sum())(params)
    assert all(g.abs().max() > 0 for g in grads.values())


@EACH_TRUNK
def test_laws_of_a_joined_network(trunk):
    network = network_of(trunk, "noisy_dueling", 2)
    laws.pure(network.init, KEY)
    params, obs, u = params_of(network), observations(trunk, 2, 3), noise_of(network)
    laws.pure(network.apply, params, obs, u)
    laws.ranked(lambda obs: network.apply(params, obs, u), obs, leading=2, atol=1e-10)
    stacked = tree.stack([(params, obs, u), (params_of(network, 5), obs.flip(0), noise_of(network, 6))])
    laws.vmapped(network.apply, *stacked, atol=1e-10)
    asserts.assert_trees_equal(tree.index(network.init(random.key([1, 2])), 1), network.init(random.key(2)))


@EACH_TRUNK
def test_bytes_are_divided_by_255(trunk):
    network = network_of(trunk, "linear")
    params, shape = network.init(KEY), TRUNKS[trunk][0].obs_shape
    pictures = random.randint(KEY, (3, *shape), 0, 256).to(torch.uint8)
    assert torch.equal(network.apply(params, pictures), network.apply(params, pictures / 255.0))
    assert torch.equal(network.apply(params, pictures.int()), network.apply(params, pictures.float()))


@pytest.mark.parametrize("trunk", ["mlp", "noisy_minatar", "impala"])
def test_joined_networks_are_loaded_exported_and_pickled(trunk):
    network, noise = network_of(trunk, "noisy_dueling", 2), network_of(trunk, "noisy_dueling", 2).noise
    params, obs = network.init(KEY), observations(trunk, 4).float()
    again = pickle.loads(pickle.dumps(network))
    assert again.noise == noise
    asserts.assert_trees_equal(params, again.init(KEY))
    asserts.assert_trees_equal(network.apply(params, obs), again.apply(params, obs))
    module = networks.to_module(network, params)
    asserts.assert_trees_equal(params, networks.load(network, module.state_dict()))
    asserts.assert_trees_equal(network.apply(params, obs), module(obs).detach())
    program = torch.export.export(
        module.requires_grad_(False), (obs[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.testing.assert_close(program.module()(obs), network.apply(params, obs))


def test_layer_normalization_of_images_is_over_channels_and_positions():
    """Check that a shift and scale of the whole image cancel, but not those of a single channel."""
    trunk = trunks.layer_norm_minatar(BOARD, hidden=())
    layer = trunk.layers["1"]
    params, x = params_of(trunk), random.normal(KEY, (4, 16, 4, 3), torch.float64)
    normalized = layer.apply(params, "1", x, None)
    asserts.assert_trees_close(normalized, layer.apply(params, "1", 1000 * x + 3, None), 1e-4)
    shifted = x + 5 * (torch.arange(16) == 2)[:, None, None]
    assert (layer.apply(params, "1", shifted, None) - normalized).abs().max() > 0.5


def test_layer_norm_trunks_with_a_gain_start_orthogonally():
    network = networks.join(trunks.layer_norm_mlp(4, (6, 5), gain=2.0), heads.linear(3))
    plain = networks.join(trunks.layer_norm_mlp(4, (6, 5)), heads.linear(3))
    own, whole = network.init(KEY), networks.layer_norm_mlp(4, (6, 5), 3, gain=2.0).init(KEY)
    for name in own:
        assert torch.equal(own[name], (plain.init(KEY) if name.startswith("6") else whole)[name])
    asserts.assert_trees_equal(whole, networks.orthogonal(network, 2.0).init(KEY))


DIGESTS = {
    "mlp": (networks.mlp(4, (6, 5), 3), "b5876f44803ae327"),
    "dueling_mlp": (networks.dueling_mlp(4, (6, 5), 3), "5459891986c53b7e"),
    "layer_norm_mlp": (networks.layer_norm_mlp(4, (6, 5), 3), "f56ef93e29bed5e7"),
    "noisy_mlp": (networks.noisy_mlp(4, (6, 5), 3), "2146697922ebfcac"),
    "nature": (networks.nature((1, 36, 36), 3), "9deb0f72235b1403"),
    "minatar": (networks.minatar((2, 4, 3), 3), "f48b357fd51f2abf"),
}
"""Networks, and digests of their initial parameters in version 0.2, which are equal on all processors."""


@pytest.mark.parametrize("name", DIGESTS)
def test_initial_parameters_of_the_usual_networks_equal_those_of_version_0_2(name):
    network, expected = DIGESTS[name]
    digest = hashlib.sha256()
    for leaf, x in network.init(KEY).items():
        digest.update(leaf.encode() + x.numpy().tobytes())
    assert digest.hexdigest()[:16] == expected


# Networks of implicit quantiles


class Quantiles(nn.Module):
    """IQN of Dabney et al., equation 4 with multiples 1 to n, as in Dopamine."""

    def __init__(self, trunk, head, cosines):
        super().__init__()
        self.trunk, self.cosines = nn.Sequential(*TRUNKS[trunk][1]()), cosines
        features, make = TRUNKS[trunk][0].features, HEADS[head][1]
        self.embedding = nn.Linear(cosines, features)
        if head.endswith("linear"):
            self.head = make(features, ACTIONS)
        else:
            self.value, self.advantage = make(features, 1), make(features, ACTIONS)
        self.double()

    def forward(self, obs, fractions):
        z = []
        for tau in fractions.unbind(-1):
            cosines = torch.stack([torch.cos(math.pi * i * tau) for i in range(1, self.cosines + 1)], -1)
            x = self.trunk(obs) * F.relu(self.embedding(cosines))
            if hasattr(self, "head"):
                z.append(self.head(x))
            else:
                z.append(self.value(x) + self.advantage(x) - self.advantage(x).mean(-1, keepdim=True))
        return torch.stack(z, -1)


def quantile_of(trunk, head="linear", cosines=6):
    return networks.quantile(TRUNKS[trunk][0], HEADS[head][0](ACTIONS), cosines)


def fractions_of(*shape):
    return random.uniform(random.key(11), shape, torch.float64)


@EACH_HEAD
@pytest.mark.parametrize("trunk", ["mlp", "noisy_mlp", "layer_norm_minatar", "impala", "mlp without hidden layers"])
def test_quantile_networks_equal_their_module(trunk, head):
    network, module = quantile_of(trunk, head), Quantiles(trunk, head, 6)
    params, obs, fractions = params_of(network), observations(trunk, 5), fractions_of(5, 4)
    assert list(params) == list(module.state_dict())
    module.load_state_dict(params, strict=True)
    z = network.apply(params, obs, fractions)
    assert z.shape == (5, ACTIONS, 4)
    asserts.assert_trees_close(module(rows(trunk, obs), fractions).detach(), z, 1e-10)
    if network.noise:
        u = noise_of(network)
        give_noise(module, u)
        expected = module(rows(trunk, obs), fractions).detach()
        asserts.assert_trees_close(expected, network.apply(params, obs, fractions, u), 1e-10)


@pytest.mark.parametrize("trunk", ["mlp", "noisy_minatar"])
def test_laws_of_quantile_networks(trunk):
    network = quantile_of(trunk, "noisy_dueling")
    params, obs, fractions, u = params_of(network), observations(trunk, 2, 3), fractions_of(2, 3, 4), noise_of(network)
    laws.pure(network.init, KEY)
    laws.pure(network.apply, params, obs, fractions, u)
    laws.ranked(lambda obs, tau: network.apply(params, obs, tau, u), obs, fractions, leading=2, atol=1e-10)
    other = params_of(network, 5), obs.flip(0), fractions.flip(0), noise_of(network, 6)
    laws.vmapped(network.apply, *tree.stack([(params, obs, fractions, u), other]), atol=1e-10)
    grads = grad(lambda p: network.apply(p, obs, fractions, u).square().sum())(params)
    assert all(g.abs().max() > 0 for g in grads.values())
    again = pickle.loads(pickle.dumps(network))
    asserts.assert_trees_equal(network.apply(params, obs, fractions), again.apply(params, obs, fractions))


def test_each_quantile_depends_on_its_own_fraction():
    network = quantile_of("minatar", "dueling")
    params, obs, fractions = params_of(network), observations("minatar", 5), fractions_of(5, 4)
    z = network.apply(params, obs, fractions)
    for i in range(4):
        asserts.assert_trees_close(z[..., i : i + 1], network.apply(params, obs, fractions[:, i : i + 1]), 1e-10)
    asserts.assert_trees_close(z.flip(-1), network.apply(params, obs, fractions.flip(-1)), 1e-12)
    assert (z[..., 0] - z[..., 1]).abs().max() > 1e-3


def test_the_network_of_the_iqn_paper():
    """Check that fractions multiply the features of the convolutions, before the hidden layer."""
    network = networks.quantile(trunks.minatar(BOARD, hidden=()), heads.linear(ACTIONS, hidden=(8,)), 6)
    params, obs, fractions = params_of(network), observations("minatar", 5), fractions_of(5, 4)
    shapes = {"trunk.0": (16, 3, 3, 3), "embedding": (192, 6), "head.0": (8, 192), "head.2": (ACTIONS, 8)}
    assert {n: tuple(x.shape) for n, x in params.items() if "weight" in n} == {
        f"{name}.weight": shape for name, shape in shapes.items()
    }
    x = F.conv2d(obs, params["trunk.0.weight"], params["trunk.0.bias"]).relu().flatten(1).unsqueeze(1)
    cosines = torch.cos(math.pi * fractions.unsqueeze(-1) * torch.arange(1, 7))
    x = x * F.linear(cosines, params["embedding.weight"], params["embedding.bias"]).relu()
    x = F.linear(x, params["head.0.weight"], params["head.0.bias"]).relu()
    expected = F.linear(x, params["head.2.weight"], params["head.2.bias"]).mT
    asserts.assert_trees_close(expected, network.apply(params, obs, fractions), 1e-10)


def test_the_trunk_is_computed_once_for_each_observation():
    seen = []

    def watched(layer, params, name, x, noise):
        seen.append((name, tuple(x.shape)))
        return layer.apply(params, name, x, noise)

    trunk = TRUNKS["mlp"][0]
    spied = {name: layer._replace(apply=partial(watched, layer)) for name, layer in trunk.layers.items()}
    network = networks.quantile(trunk._replace(layers=spied), heads.linear(ACTIONS))
    network.apply(network.init(KEY), torch.zeros(5, *VECTOR), torch.zeros(5, 4))
    assert seen == [("trunk.0", (5, 6)), ("trunk.1", (5, 7)), ("trunk.2", (5, 7)), ("trunk.3", (5, 5))]


def test_orthogonal_and_sparse_start_of_joined_networks():
    network = network_of("layer_norm_minatar", "noisy_dueling", 2)
    plain = network.init(KEY)
    for change in (networks.orthogonal, networks.sparse):
        params = change(network).init(KEY)
        kept = [n for n in plain if torch.equal(plain[n], params[n])]
        norms = [f"trunk.{i}.{kind}" for i in (1, 5) for kind in ("weight", "bias")]
        assert kept == [n for n in plain if n in norms or n.endswith("sigma")]
    embedding = networks.orthogonal(quantile_of("mlp")).init(KEY)["embedding.weight"]
    torch.testing.assert_close(embedding @ embedding.mT, 2 * torch.eye(5))


def test_keys_of_the_layers_are_numbered_through_trunk_and_head():
    """Check that no two layers of trunk and head use the same key."""
    named = {"a": layers.linear(3, 3), "b": layers.relu(), "c": layers.linear(3, 3)}
    params = layers.init(named, 0, KEY)
    assert list(params) == ["a.weight", "a.bias", "c.weight", "c.bias"]
    assert not torch.equal(params["a.weight"], params["c.weight"])
    later = layers.init({"c": named["c"]}, 1, KEY)
    assert torch.equal(later["c.weight"], params["c.weight"])
    many = vmap(lambda x: layers.forward(named, params, x, {}))(torch.ones(2, 4, 3))
    assert many.shape == (2, 4, 3)
