"""Networks: names, values and outputs of the `nn.Module`s they stand for."""

import math
from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import vmap

from fdqn import networks, random, tree
from fdqn.testing import asserts, laws

KEY = random.key(7)

# Keys are fixed, so a test of a distribution fails always or never; by chance one in ten thousand would.
CHANCE = 1e-4


def sequential(inputs, hidden, actions):
    sizes = [inputs, *hidden, actions]
    layers = []
    for m, n in pairwise(sizes):
        layers += [nn.Linear(m, n), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def untouched(make):
    """A module made under a fork of the generator."""
    with torch.random.fork_rng(devices=[]):
        return make()


def observations(shape, seed=1):
    return random.normal(random.key(seed), shape)


@pytest.mark.parametrize("hidden", [(5,), (6, 4), (3, 3, 3)])
def test_mlp_is_a_sequential(hidden):
    network, module = networks.mlp(4, hidden, 2), untouched(lambda: sequential(4, hidden, 2))
    params = network.init(KEY)
    expected = OrderedDict((n, (tuple(x.shape), x.dtype)) for n, x in module.state_dict().items())
    assert {n: (tuple(x.shape), x.dtype) for n, x in params.items()} == expected
    module.load_state_dict(params, strict=True)
    obs = observations((3, 5, 4))
    torch.testing.assert_close(network.apply(params, obs), module(obs).detach(), rtol=1e-6, atol=1e-6)


def test_mlp_flattens_observations_and_takes_any_dtype():
    network = networks.mlp((2, 3), (5,), 2)
    params, obs = network.init(KEY), torch.arange(24).reshape(2, 2, 2, 3) % 5
    q = network.apply(params, obs)
    assert q.shape == (2, 2, 2)
    flat = networks.mlp(6, (5,), 2).apply(params, obs.reshape(2, 2, 6).float())
    torch.testing.assert_close(q, flat, rtol=0, atol=0)
    assert network.apply(params, obs.bool()).dtype == torch.float32


def test_dueling_mlp_is_its_equation():
    network = networks.dueling_mlp(4, (6, 5), 3)
    params = network.init(KEY)
    shapes = {
        "trunk.0.weight": (6, 4), "trunk.0.bias": (6,), "trunk.2.weight": (5, 6), "trunk.2.bias": (5,),
        "value.weight": (1, 5), "value.bias": (1,), "advantage.weight": (3, 5), "advantage.bias": (3,),
    }  # fmt: skip
    assert {n: tuple(x.shape) for n, x in params.items()} == shapes
    module = untouched(lambda: nn.ModuleDict({
        "trunk": nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU()),
        "value": nn.Linear(5, 1), "advantage": nn.Linear(5, 3),
    }))  # fmt: skip
    module.load_state_dict(params, strict=True)
    obs = observations((7, 4))
    x = module["trunk"](obs)
    advantage = module["advantage"](x)
    expected = module["value"](x) + advantage - advantage.mean(-1, keepdim=True)
    torch.testing.assert_close(network.apply(params, obs), expected.detach(), rtol=1e-6, atol=1e-6)


def test_dueling_separates_value_and_advantage():
    network = networks.dueling_mlp(4, (6,), 3)
    params, obs = network.init(KEY), observations((7, 4))
    q = network.apply(params, obs)
    shifted = network.apply(params | {"advantage.bias": params["advantage.bias"] + 5}, obs)
    torch.testing.assert_close(shifted, q, rtol=0, atol=1e-5)
    torch.testing.assert_close(network.apply(params | {"value.bias": params["value.bias"] + 5}, obs), q + 5)


@pytest.mark.parametrize(("shape", "features"), [((4, 84, 84), 3136), ((1, 36, 44), 128)])
def test_nature_is_a_sequential(shape, features):
    def make():
        return nn.Sequential(
            nn.Conv2d(shape[0], 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1),
            nn.ReLU(), nn.Flatten(), nn.Linear(features, 512), nn.ReLU(), nn.Linear(512, 6),
        )  # fmt: skip

    network, module = networks.nature(shape, 6), untouched(make)
    params = network.init(KEY)
    module.load_state_dict(params, strict=True)
    frames = random.randint(random.key(1), (2, 3, *shape), 0, 256).to(torch.uint8)
    expected = module(frames.flatten(0, 1).float() / 255).reshape(2, 3, 6).detach()
    torch.testing.assert_close(network.apply(params, frames), expected, rtol=1e-5, atol=1e-5)


NETWORKS = {
    "mlp": networks.mlp(30, (64, 50), 20),
    "dueling": networks.dueling_mlp(30, (64, 50), 20),
    "nature": networks.nature((3, 36, 36), 20),
}
EACH = pytest.mark.parametrize("name", NETWORKS)


@EACH
def test_initial_values_are_uniform_in_the_range_of_pytorch(name):
    params = NETWORKS[name].init(KEY)
    scaled = []
    for leaf, x in params.items():
        bound = 1 / math.sqrt(math.prod(params[leaf.replace("bias", "weight")].shape[1:]))
        assert x.abs().max() <= bound
        if x.numel() >= 1000:
            assert stats.kstest((x / bound).flatten().numpy(), "uniform", (-1, 2)).pvalue > CHANCE
        scaled.append((x / bound).flatten())
    every = torch.cat(scaled)
    assert stats.kstest(every[:50_000].numpy(), "uniform", (-1, 2)).pvalue > CHANCE


def test_initial_values_are_distributed_as_pytorchs():
    def many(make):
        torch.manual_seed(0)
        return [make() for _ in range(60)]

    theirs = [dict(m.state_dict()) for m in untouched(lambda: many(lambda: sequential(4, (6,), 2)))]
    ours = networks.mlp(4, (6,), 2).init(random.key(list(range(60))))
    for name, x in ours.items():
        reference = torch.stack([p[name] for p in theirs])
        assert stats.ks_2samp(x.flatten().numpy(), reference.flatten().numpy()).pvalue > CHANCE


@EACH
def test_leaves_do_not_share_numbers(name):
    params = NETWORKS[name].init(KEY)
    scaled = [(x / x.abs().max()).flatten()[:5] for x in params.values() if x.numel() >= 5]
    for i, a in enumerate(scaled):
        for b in scaled[:i]:
            assert not torch.allclose(a, b)


SMALL = {
    "mlp": (networks.mlp(4, (6, 5), 3), (4,)),
    "dueling": (networks.dueling_mlp(4, (6, 5), 3), (4,)),
    "nature": (networks.nature((1, 36, 36), 3), (1, 36, 36)),
    "module": (networks.from_module(lambda: sequential(4, (6,), 3)), (4,)),
}
EACH_SMALL = pytest.mark.parametrize("name", SMALL)


@EACH_SMALL
def test_laws_of_a_function(name):
    network, shape = SMALL[name]
    params = laws.pure(network.init, KEY)
    obs = observations((2, 3, *shape))
    laws.pure(network.apply, params, obs)
    # Convolutions in float64 are summed in another order when there are more images at once.
    wide = tree.cast(params, torch.float64)
    laws.ranked(lambda obs: network.apply(wide, obs), obs, leading=2, atol=1e-10)
    laws.vmapped(network.apply, network.init(random.key([1, 2])), obs, atol=1e-10)
    laws.compiled(network.apply, params, obs, atol=1e-5)


@EACH_SMALL
def test_lanes_are_initialised_as_alone_and_differ(name):
    network, _ = SMALL[name]
    keys = random.key([[1, 2, 3], [4, 5, 6]])
    many = network.init(keys)
    asserts.assert_trees_equal(network.init(keys[1, 2]), tree.map(lambda x: x[1, 2], many))
    flat = tree.map(lambda x: x.flatten(0, 1), many)
    for leaf in flat.values():
        assert len({tuple(x.flatten().tolist()) for x in leaf}) == 6


@EACH_SMALL
def test_every_parameter_gets_a_gradient(name):
    network, shape = SMALL[name]
    grads = torch.func.grad(lambda p: network.apply(p, observations((8, *shape))).square().sum())(network.init(KEY))
    assert all(g.abs().max() > 0 for g in grads.values())


def test_gradients():
    for name in ("mlp", "dueling", "module"):
        network, shape = SMALL[name]
        obs = observations((2, *shape)).double()
        laws.gradients(lambda p, n=network, obs=obs: n.apply(p, obs).square().sum(), network.init(KEY), atol=1e-6)


def test_from_module_equals_the_module():
    made = []

    def factory():
        made.append(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Dropout(0.5), nn.Linear(5, 2)))
        return made[-1]

    network = networks.from_module(factory)
    params = network.init(KEY)
    module, obs = made[-1].eval(), observations((3, 4))
    asserts.assert_trees_equal(dict(module.named_parameters()).keys(), params.keys())
    torch.testing.assert_close(network.apply(params, obs), module(obs).detach(), rtol=0, atol=1e-7)
    assert not any(x.requires_grad for x in params.values())


def test_from_module_is_strict_about_names():
    network, _ = SMALL["module"]
    params, obs = network.init(KEY), observations((4,))
    missing = {n: x for n, x in params.items() if n != "0.bias"}
    for wrong in (missing, params | {"extra": torch.zeros(1)}, missing | {"0.offset": params["0.bias"]}):
        with pytest.raises(RuntimeError, match=r"0.bias|extra"):
            network.apply(wrong, obs)


def test_from_module_refuses_buffers():
    with pytest.raises(TypeError, match=r"factory: expected a module without buffers, got .*running_mean"):
        networks.from_module(lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_from_module_keeps_tied_parameters_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    network = networks.from_module(Tied)
    params, obs = network.init(KEY), observations((2, 3))
    expected = (obs @ params["a.weight"].T + params["a.bias"]) @ params["a.weight"].T + params["b.bias"]
    torch.testing.assert_close(network.apply(params, obs), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.mlp(0, (4,), 2), r"obs_shape: expected .*, got \(0,\)"),
        (lambda: networks.mlp((), (4,), 2), "obs_shape"),
        (lambda: networks.mlp(4, (), 2), "hidden"),
        (lambda: networks.mlp(4, (0,), 2), "hidden"),
        (lambda: networks.dueling_mlp(4, (3,), 0), "actions"),
        (lambda: networks.nature((84, 84), 2), "obs_shape: expected 3 sizes"),
        (lambda: networks.nature((4, 35, 84), 2), "obs_shape: expected frames of at least 36 x 36, got 35 x 84"),
        (lambda: networks.nature((4, 84, 84), 0), "actions"),
    ],
)
def test_sizes_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["mlp", "dueling", "nature"])
def test_observations_of_the_wrong_shape(name):
    network, shape = SMALL[name]
    with pytest.raises(ValueError, match="obs: expected shape"):
        network.apply(network.init(KEY), torch.zeros(2, *shape[:-1], shape[-1] + 1))


def test_what_is_no_key():
    for network, _ in SMALL.values():
        with pytest.raises(ValueError, match="key: expected shape"):
            network.init(torch.zeros(3, dtype=torch.int64))


def test_lanes_of_parameters():
    network, _ = SMALL["mlp"]
    params = network.init(random.key([1, 2, 3]))
    obs = observations((3, 5, 4))
    q = vmap(network.apply)(params, obs)
    for i in range(3):
        torch.testing.assert_close(q[i], network.apply(tree.index(params, i), obs[i]), rtol=1e-6, atol=1e-6)
