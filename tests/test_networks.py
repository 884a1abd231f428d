"""Compare networks with the names, values and outputs of equivalent `nn.Module`s."""

import contextlib
import copy
import math
import pickle
from collections import OrderedDict
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.func import grad, vmap

from fdqn import compile, networks, random, training, tree
from fdqn.networks import modules
from fdqn.testing import asserts, examples, laws

KEY = random.key(7)

# Keys are fixed, so tests of distributions are deterministic; their bounds would fail by chance once in 10,000.
CHANCE = 1e-4


def sequential(inputs, hidden, actions):
    sizes = [inputs, *hidden, actions]
    layers = []
    for m, n in pairwise(sizes):
        layers += [nn.Linear(m, n), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def untouched(make):
    """Make a module under a fork of the generator."""
    with torch.random.fork_rng(devices=[]):
        return make()


def observations(shape, seed=1):
    return random.normal(random.key(seed), shape)


@pytest.mark.parametrize("hidden", [(), (5,), (6, 4), (3, 3, 3)])
def test_mlp_equals_a_sequential(hidden):
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


def test_mlp_without_hidden_layers_is_a_linear_layer_named_0():
    network, obs = networks.mlp(4, (), 2), observations((3, 4))
    params = network.init(KEY)
    assert list(params) == ["0.weight", "0.bias"]
    torch.testing.assert_close(network.apply(params, obs), F.linear(obs, params["0.weight"], params["0.bias"]))
    laws.compiled(network.apply, params, obs)


def test_dueling_mlp_without_hidden_layers_is_two_linear_layers():
    network, obs = networks.dueling_mlp(4, (), 3), observations((7, 4))
    params = network.init(KEY)
    assert {n: tuple(x.shape) for n, x in params.items()} == {
        "value.weight": (1, 4), "value.bias": (1,), "advantage.weight": (3, 4), "advantage.bias": (3,),
    }  # fmt: skip
    value = F.linear(obs, params["value.weight"], params["value.bias"])
    torch.testing.assert_close(network.apply(params, obs).mean(-1, keepdim=True), value)


def test_dueling_mlp_equals_its_equation():
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


BYTES = {
    "mlp": (lambda shape: networks.mlp(shape, (16,), 3), [(128,), (84, 84), (4, 84, 84, 1), (16, 16, 3)]),
    "dueling_mlp": (lambda shape: networks.dueling_mlp(shape, (16,), 3), [(128,), (84, 84), (16, 16, 3)]),
    "nature": (lambda shape: networks.nature(shape, 3), [(1, 36, 36)]),
    "minatar": (lambda shape: networks.minatar(shape, 3), [(4, 10, 10), (1, 3, 5)]),
}
"""Networks, and shapes of their observations."""


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, (_, shapes) in BYTES.items() for shape in shapes])
def test_bytes_are_divided_by_255_in_every_network(name, shape):
    """Check that bytes are scaled, as without it the initial values of an MLP on images are about 30."""
    network = BYTES[name][0](shape)
    params, pictures = network.init(KEY), random.randint(random.key(1), (5, *shape), 0, 256).to(torch.uint8)
    q = network.apply(params, pictures)
    assert torch.equal(q, network.apply(params, pictures.float() / 255.0))
    assert q.abs().max() < 2
    for dtype in (torch.float32, torch.int16, torch.int64):
        assert torch.equal(network.apply(params, pictures.to(dtype)), network.apply(params, pictures.float()))
    flags = pictures > 127
    assert torch.equal(network.apply(params, flags), network.apply(params, flags.float()))
    wide = tree.cast(params, torch.float64)
    assert torch.equal(network.apply(wide, pictures), network.apply(wide, pictures.double() / 255.0))
    assert torch.equal(networks.to_module(network, params)(pictures), q)
    many = vmap(network.apply, (None, 0))(params, pictures.unsqueeze(1))
    torch.testing.assert_close(many.squeeze(1), q, rtol=1e-5, atol=1e-6)


def test_bytes_are_not_scaled_in_other_modules():
    """Check modules that divide by 255 themselves, as CleanRL's do. Dividing twice would make images black."""

    class Dividing(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = sequential(4, (6,), 3)

        def forward(self, x):
            return self.network(x / 255.0)

    pictures = random.randint(random.key(1), (5, 4), 0, 256).to(torch.uint8)
    for factory in (Dividing, partial(sequential, 4, (6,), 3)):
        network = networks.from_module(factory)
        params = network.init(KEY)
        assert torch.equal(network.apply(params, pictures), network.apply(params, pictures.float()))


def test_too_large_layers_are_refused_at_construction():
    for make in (
        lambda: networks.mlp(10**13, (64,), 2),
        lambda: networks.dueling_mlp(4, (64,), 10**13),
        lambda: networks.mlp(2**31, (), 1),
        lambda: networks.minatar((1, 10**5, 10**5), 2),
        lambda: networks.nature((1, 10**5, 10**5), 2),
    ):
        with pytest.raises(
            ValueError, match=r"expected layers of fewer than 2\*\*31 weights, got .*make observations or"
        ):
            make()


def half():
    """Make a module with a module-level function, so that it can be pickled."""
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


PICKLED = {
    "mlp": lambda: networks.mlp(4, (6,), 3),
    "dueling_mlp": lambda: networks.dueling_mlp(4, (6,), 3),
    "nature": lambda: networks.nature((1, 36, 36), 3),
    "minatar": lambda: networks.minatar((2, 4, 3), 3),
    "from_module": lambda: networks.from_module(half),
    "from_module_with_dropout": lambda: networks.from_module_with_dropout(half),
    "starting_from": lambda: networks.starting_from(networks.from_module(half), dict(half().named_parameters())),
}


@pytest.mark.parametrize("name", PICKLED)
def test_networks_can_be_pickled(name):
    network = PICKLED[name]()
    again = pickle.loads(pickle.dumps(network))
    shape = {"nature": (1, 36, 36), "minatar": (2, 4, 3)}.get(name, (4,))
    more = (KEY,) if name == "from_module_with_dropout" else ()
    params, obs = network.init(KEY), observations((3, *shape))
    asserts.assert_trees_equal(params, again.init(KEY))
    assert torch.equal(network.apply(params, obs, *more), again.apply(params, obs, *more))


@pytest.mark.parametrize(("shape", "features"), [((4, 84, 84), 3136), ((1, 36, 44), 128)])
def test_nature_equals_a_sequential(shape, features):
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


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.float32, torch.float64, torch.int64])
def test_nature_scales_only_bytes(dtype):
    """Check that black and white are 0 and 1, as in images of floats and booleans."""
    network = networks.nature((1, 36, 36), 3)
    params, black_white = network.init(KEY), random.randint(random.key(1), (2, 1, 36, 36), 0, 2)
    q = network.apply(params, black_white.to(dtype))
    assert torch.equal(q, network.apply(params, (255 * black_white).to(torch.uint8)))
    assert not torch.allclose(q, network.apply(params, black_white.to(torch.uint8)), atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 10, 10), (1, 3, 5)])
def test_minatar_equals_a_sequential(shape):
    features = 16 * (shape[1] - 2) * (shape[2] - 2)

    def make():
        return nn.Sequential(
            nn.Conv2d(shape[0], 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, 6)
        )

    network, module = networks.minatar(shape, 6), untouched(make)
    params = network.init(KEY)
    module.load_state_dict(params, strict=True)
    boards = random.randint(random.key(1), (2, 3, *shape), 0, 2).bool()
    expected = module(boards.flatten(0, 1).float()).reshape(2, 3, 6).detach()
    torch.testing.assert_close(network.apply(params, boards), expected, rtol=1e-5, atol=1e-5)


NETWORKS = {
    "mlp": networks.mlp(30, (64, 50), 20),
    "dueling": networks.dueling_mlp(30, (64, 50), 20),
    "nature": networks.nature((3, 36, 36), 20),
    "minatar": networks.minatar((3, 10, 10), 20),
}
EACH = pytest.mark.parametrize("name", NETWORKS)


@EACH
def test_initial_values_are_uniform_in_pytorchs_range(name):
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


def test_distribution_of_initial_values_equals_pytorch():
    def many(make):
        torch.manual_seed(0)
        return [make() for _ in range(60)]

    theirs = [dict(m.state_dict()) for m in untouched(lambda: many(lambda: sequential(4, (6,), 2)))]
    ours = networks.mlp(4, (6,), 2).init(random.key(list(range(60))))
    for name, x in ours.items():
        reference = torch.stack([p[name] for p in theirs])
        assert stats.ks_2samp(x.flatten().numpy(), reference.flatten().numpy()).pvalue > CHANCE


@EACH
def test_leaves_have_independent_numbers(name):
    params = NETWORKS[name].init(KEY)
    scaled = [(x / x.abs().max()).flatten()[:5] for x in params.values() if x.numel() >= 5]
    for i, a in enumerate(scaled):
        for b in scaled[:i]:
            assert not torch.allclose(a, b)


SMALL = {
    "mlp": (networks.mlp(4, (6, 5), 3), (4,)),
    "dueling": (networks.dueling_mlp(4, (6, 5), 3), (4,)),
    "nature": (networks.nature((1, 36, 36), 3), (1, 36, 36)),
    "minatar": (networks.minatar((2, 4, 3), 3), (2, 4, 3)),
    "module": (networks.from_module(lambda: sequential(4, (6,), 3)), (4,)),
}
EACH_SMALL = pytest.mark.parametrize("name", SMALL)


@EACH_SMALL
def test_laws_of_a_function(name):
    network, shape = SMALL[name]
    params = laws.pure(network.init, KEY)
    obs = observations((2, 3, *shape))
    laws.pure(network.apply, params, obs)
    # The order of summation in float64 convolutions depends on the number of images.
    wide = tree.cast(params, torch.float64)
    laws.ranked(lambda obs: network.apply(wide, obs), obs, leading=2, atol=1e-10)
    laws.vmapped(network.apply, network.init(random.key([1, 2])), obs, atol=1e-10)
    laws.compiled(network.apply, params, obs, atol=1e-5)


@EACH_SMALL
def test_seeds_are_initialized_independently(name):
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


# Modules: every layer, constants, dropout


class Positional(nn.Module):
    """Adds a constant to each row, as a positional encoding; in evaluation mode dropout is off."""

    def __init__(self, rows=3, size=4):
        super().__init__()
        self.register_buffer("places", torch.linspace(0, 1, rows * size).reshape(rows, size).cos())
        self.register_buffer("order", torch.arange(rows - 1, -1, -1), persistent=False)
        self.linear = nn.Linear(size, 2)

    def forward(self, x):
        return self.linear((x + self.places)[..., self.order, :]).sum(-2)


class Attention(nn.Module):
    """Hand-written, because torch's attention layers call kernels without a vmap rule in evaluation mode."""

    def __init__(self, size=4):
        super().__init__()
        self.project, self.drop, self.norm = nn.Linear(size, 3 * size), nn.Dropout(0.3), nn.LayerNorm(size)

    def forward(self, x):
        return self.norm(x + self.drop(F.scaled_dot_product_attention(*self.project(x).chunk(3, -1))))


MODULES = {
    "sequential": (lambda: sequential(4, (6, 5), 3), (4,)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), (2, 3, 3)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2)), (4,)),
    "group norm": (lambda: nn.Sequential(nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.Flatten()), (2, 4)),
    "attention": (Attention, (3, 4)),
    "constants": (Positional, (3, 4)),
}
EACH_MODULE = pytest.mark.parametrize("name", MODULES)


@EACH_MODULE
def test_function_of_a_module_equals_the_module(name):
    factory, shape = MODULES[name]
    network, module = networks.from_module(factory), untouched(factory).eval().double()
    params = tree.cast(network.init(KEY), torch.float64)
    assert list(params) == [n for n, _ in module.named_parameters()]
    module.load_state_dict(params, strict=False)
    obs = observations((5, *shape)).double()
    expected = module(obs)
    torch.testing.assert_close(network.apply(params, obs), expected.detach(), rtol=0, atol=1e-12)
    loss = torch.autograd.grad(expected.square().sum(), list(module.parameters()))
    grads = grad(lambda p: network.apply(p, obs).square().sum())(params)
    asserts.assert_trees_close(list(loss), list(grads.values()), 1e-12, 1e-12)


@EACH_MODULE
def test_a_module_under_transforms(name):
    factory, shape = MODULES[name]
    network = networks.from_module(factory)
    params, obs = network.init(random.key([1, 2])), observations((2, 3, *shape))
    laws.vmapped(network.apply, params, obs, atol=1e-10)

    def loss(params, obs):
        return network.apply(params, obs).square().sum()

    laws.compiled(vmap(grad(loss)), params, obs, atol=1e-4, rtol=1e-4)


@EACH_MODULE
def test_gradients_of_samples_equal_a_loop(name):
    factory, shape = MODULES[name]
    network = networks.from_module(factory)
    params, obs = tree.cast(network.init(KEY), torch.float64), observations((4, *shape)).double()

    def loss(params, row):
        return network.apply(params, row.unsqueeze(0)).square().sum()

    expected = tree.stack(grad(loss)(params, row) for row in obs)
    asserts.assert_trees_close(expected, vmap(grad(loss), (None, 0))(params, obs), 1e-11, 1e-11)
    module = untouched(factory).eval().double()
    module.load_state_dict(params, strict=False)
    alone = torch.autograd.grad(module(obs[:1]).square().sum(), list(module.parameters()))
    asserts.assert_trees_close(list(alone), [x[0] for x in expected.values()], 1e-11, 1e-11)


def test_constants_follow_the_parameters_dtype():
    network, obs = networks.from_module(Positional), observations((5, 3, 4))
    params = network.init(KEY)
    assert network.apply(params, obs).dtype == torch.float32
    half = tree.cast(params, torch.bfloat16)
    assert network.apply(half, obs.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(
        network.apply(half, obs.bfloat16()).float(), network.apply(params, obs), rtol=0.1, atol=0.1
    )


def test_constants_in_a_program_that_trains():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.tensor([0.1, -0.2, 0.3, 0.0]))
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(x + self.shift)

    network = networks.from_module(Shifted)
    program = examples.program(network=network, double=False)
    state = training.init(program, *examples.seeds(2))
    (*_, report) = training.run(program, state, 45, training.vmapped(program), report_every=45)
    assert report.updates.min() > 0


def test_constants_come_from_one_module_without_using_the_generator():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mix", torch.randn(4, 4))
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(x @ self.mix)

    before = torch.get_rng_state()
    a, b = networks.from_module(Features), networks.from_module(Features)
    assert torch.equal(torch.get_rng_state(), before)
    params, obs = a.init(KEY), observations((5, 4))
    assert torch.equal(a.apply(params, obs), b.apply(params, obs))


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (lambda: nn.BatchNorm1d(4), "1.running_mean"),
        (lambda: nn.SyncBatchNorm(4), "1.running_var"),
        (lambda: nn.InstanceNorm1d(4, track_running_stats=True), "1.num_batches_tracked"),
    ],
)
def test_running_statistics_are_refused_at_construction(layer, named):
    for make in (networks.from_module, networks.from_module_with_dropout):
        with pytest.raises(
            TypeError, match=f"factory: expected .* without running statistics, got .*{named}.*LayerNorm"
        ):
            make(lambda: nn.Sequential(nn.Linear(4, 4), layer()))


def test_batch_statistics_are_allowed():
    make = lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))  # noqa: E731
    network, obs = networks.from_module(make), observations((6, 4))
    params = network.init(KEY)
    module = untouched(make).eval()
    module.load_state_dict(params)
    torch.testing.assert_close(network.apply(params, obs), module(obs).detach())


class Counting(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("fixed", torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))
        self.write = write

    def forward(self, x):
        self.write(self)
        return self.linear(x) * self.fixed


def add_in_place(module):
    module.calls += 1


def replace(module):
    module.calls = module.calls + 1


@pytest.mark.parametrize("write", [add_in_place, replace])
def test_a_forward_that_writes_a_buffer_is_refused(write):
    network = networks.from_module(lambda: Counting(write))
    params, obs = network.init(KEY), observations((3, 4))
    message = r"factory: expected a forward that writes no buffer, got one that writes \['calls'\]"
    for given in (params, tree.cast(params, torch.float64)):
        with pytest.raises(TypeError, match=message):
            network.apply(given, obs.to(given["linear.bias"].dtype))
    with pytest.raises(TypeError, match=message), torch.inference_mode():
        network.apply(params, obs)
    for transformed in (
        vmap(network.apply, (None, 0)),
        grad(lambda params, obs: network.apply(params, obs).sum()),
        compile.compile(network.apply),
    ):
        with pytest.raises(TypeError, match=message):
            transformed(params, obs)
    fast = torch.compile(network.apply, fullgraph=True, backend="aot_eager")
    with contextlib.suppress(torch._dynamo.exc.Unsupported):  # it raises, or the result is still correct
        laws.pure(fast, params, obs)


@pytest.mark.parametrize("write", [
    lambda module: module.linear.bias.mul_(2), lambda module: module.linear.weight[0].zero_(),
])  # fmt: skip
def test_forward_cannot_change_parameters_in_place(write):
    def forward(module):
        with torch.no_grad():
            write(module)

    network = networks.from_module(lambda: Counting(forward))
    params, obs = network.init(KEY), observations((3, 4))
    before = tree.clone(params)
    q = laws.pure(network.apply, params, obs)
    stacked = tree.map(lambda x: x[None], params)
    grad(lambda params: network.apply(params, obs).sum())(params)
    for many in (vmap(network.apply), compile.compile(vmap(network.apply))):
        torch.testing.assert_close(many(stacked, obs[None])[0], q)
    asserts.assert_trees_equal(before, params)


class Scaling(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu, self.linear = nn.ReLU(inplace=True), nn.Linear(4, 2)

    def forward(self, x):
        x /= 255.0
        return self.linear(self.relu(x))


def test_forward_cannot_change_observations_in_place():
    network = networks.from_module(Scaling)
    params, obs = network.init(KEY), 255 * observations((3, 4))
    before = obs.clone()
    expected = F.linear((before / 255).relu(), params["linear.weight"], params["linear.bias"])
    for call in (network.apply, vmap(network.apply, (None, 0)), compile.compile(network.apply)):
        torch.testing.assert_close(call(params, obs), expected)
        assert torch.equal(obs, before)
    laws.pure(network.apply, params, obs)
    laws.compiled(network.apply, params, obs)
    gradient = grad(lambda obs: network.apply(params, obs).sum())(obs)
    assert torch.equal(obs, before)
    assert gradient.abs().max() > 0


def test_networks_work_in_inference_mode():
    with torch.inference_mode():
        network = networks.from_module(Positional)
        params = network.init(KEY)
        wide = tree.cast(params, torch.float64)
        assert network.apply(wide, observations((2, 3, 4)).double()).shape == (2, 2)


# Dropout with random numbers as an argument


def test_dropout_equals_its_equation():
    x, u = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 0.24, 0.25, 0.9])
    assert torch.equal(networks.dropout(x, 0.25, u), torch.tensor([0, 0, 3 / 0.75, 4 / 0.75]))
    assert networks.dropout(x, 0.0, u).tolist() == x.tolist()
    assert networks.dropout(x, torch.tensor(0.25), u).tolist() == networks.dropout(x, 0.25, u).tolist()
    laws.compiled(networks.dropout, x, torch.tensor(0.25), u, again=[])
    laws.vmapped(networks.dropout, x, torch.tensor([0.1, 0.2, 0.25, 0.95]), u)
    laws.gradients(lambda x: networks.dropout(x, 0.25, u.double()).square().sum(), x)
    rates = torch.tensor([0.25] * 4, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert networks.dropout(x.to(dtype), 0.25, u).dtype == dtype
        assert vmap(networks.dropout)(x.to(dtype), rates, u).dtype == dtype


def test_dropout_refuses_invalid_arguments():
    x = torch.ones(3)
    for rate in (-0.1, 1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"rate: expected a number in \[0, 1\), got"):
            networks.dropout(x, rate, x * 0)
    with pytest.raises(ValueError, match="u: expected shape"):
        networks.dropout(x, 0.5, torch.zeros(3, 1))


def dropping():
    return nn.Sequential(nn.Dropout(0.25), nn.Linear(4, 400), nn.ReLU(), nn.Dropout(0.5), nn.Linear(400, 2))


def test_dropout_drops_the_given_fraction_and_keeps_the_mean():
    network = networks.from_module_with_dropout(lambda: nn.Sequential(nn.Dropout(0.3)))
    kept = network.apply({}, torch.ones(200, 500), KEY)
    count = int((kept == 0).sum())
    assert stats.binomtest(count, kept.numel(), 0.3).pvalue > CHANCE
    assert set(kept.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
    assert abs(kept.mean() - 1) < 4 * math.sqrt(0.3 / 0.7 / kept.numel())
    assert abs(kept.mean(0).std() - math.sqrt(0.3 / 0.7 / 200)) < 0.01, "columns have different masks"
    assert stats.binomtest(count, kept.numel(), 0.31).pvalue < CHANCE, "the test rejects another fraction"


def test_dropout_depends_only_on_the_key():
    network, obs = networks.from_module_with_dropout(dropping), observations((3, 4))
    params = network.init(KEY)
    key = random.key(3)
    q = laws.pure(network.apply, params, obs, key)
    assert torch.equal(q, network.apply(params, obs, key))
    assert not torch.equal(q, network.apply(params, obs, random.key(4)))
    x = networks.dropout(obs, 0.25, random.uniform(random.fold_in(key, 0), (3, 4)))
    x = F.linear(x, params["1.weight"], params["1.bias"]).relu()
    x = networks.dropout(x, 0.5, random.uniform(random.fold_in(key, 1), (3, 400)))
    torch.testing.assert_close(q, F.linear(x, params["4.weight"], params["4.bias"]))


def test_evaluation_mode_has_no_dropout():
    off, on = networks.from_module(dropping), networks.from_module_with_dropout(dropping)
    params, obs = on.init(KEY), observations((3, 4))
    asserts.assert_trees_equal(off.init(KEY), params)
    module = untouched(dropping).eval()
    module.load_state_dict(params)
    torch.testing.assert_close(off.apply(params, obs), module(obs).detach())
    keys = random.key(torch.arange(4000))
    many = vmap(on.apply, (None, None, 0))(params, obs[:1] * 0.1, keys)
    error = many.std(0) / math.sqrt(len(keys))
    # The last layer keeps the mean exactly; after a ReLU the mean is different.
    assert ((many.mean(0) - off.apply(params, obs[:1] * 0.1)).abs() < 5 * error + 0.02).all()


def test_dropout_under_transforms():
    network, obs = networks.from_module_with_dropout(dropping), observations((2, 3, 4))
    params, keys = network.init(random.key([1, 2])), random.key([3, 4])
    laws.vmapped(network.apply, params, obs, keys, atol=1e-10)
    laws.compiled(network.apply, tree.index(params, 0), obs[0], keys[0], again=[], atol=1e-5)

    def loss(params, obs, key):
        return network.apply(params, obs, key).square().sum()

    laws.compiled(vmap(grad(loss)), params, obs, keys, again=[], atol=1e-3, rtol=1e-4)
    laws.gradients(lambda x: network.apply(tree.cast(tree.index(params, 0), x.dtype), x, keys[0]).sum(), obs[0])


def test_functional_dropout_equals_the_layer():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            x = F.dropout(F.dropout(x, 0.9, training=False), training=self.training)
            return F.dropout(self.linear(x), p=0.25, training=self.training, inplace=True)

    network, obs = networks.from_module_with_dropout(Functional), observations((3, 4))
    params = network.init(KEY)
    x = networks.dropout(obs, 0.5, random.uniform(random.fold_in(KEY, 0), (3, 4)))
    x = F.linear(x, params["linear.weight"], params["linear.bias"])
    expected = networks.dropout(x, 0.25, random.uniform(random.fold_in(KEY, 1), (3, 2)))
    assert torch.equal(network.apply(params, obs, KEY), expected)


@pytest.mark.parametrize(
    "layer", [nn.RReLU, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d]
)
def test_other_random_layers_are_refused(layer):
    network = networks.from_module_with_dropout(lambda: nn.Sequential(nn.Linear(4, 4), layer()))
    with pytest.raises(
        TypeError, match=r"factory: expected no random layers other than nn.Dropout, got one that calls \w+"
    ):
        network.apply(network.init(KEY), observations((2, 3, 4)), KEY)


DRAWS = pytest.mark.parametrize("draw", [
    lambda x: x + torch.rand(4), lambda x: x * torch.bernoulli(x.sigmoid()), lambda x: F.gumbel_softmax(x),
    lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
    lambda x: F.scaled_dot_product_attention(x, x, x, None, 0.1),
    lambda x: torch.ops.aten.native_dropout(x, 0.5, True)[0],
    lambda x: torch.ops.aten.native_dropout.default(x, 0.5, True)[0],
    lambda x: torch.feature_dropout(x, 0.5, True), lambda x: torch.feature_dropout(x, p=0.5, train=True),
    lambda x: F.dropout2d(x, 0.5), lambda x: F.rrelu(x, 0.1, 0.3, True), lambda x: x + torch.ops.aten.randn([4]),
    lambda x: torch.distributions.Normal(x, 1.0).sample(), lambda x: torch.empty(4).uniform_() + x,
])  # fmt: skip


class Calling(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


@DRAWS
def test_other_random_functions_are_refused(draw):
    before = torch.get_rng_state()
    with pytest.raises(
        TypeError, match=r"factory: expected no random layers other than nn.Dropout, got one that calls"
    ):
        networks.from_module_with_dropout(lambda: Calling(draw)).apply({}, observations((2, 3, 4)), KEY)
    with pytest.raises(TypeError, match=r"factory: expected a forward that draws no random numbers, got one that call"):
        networks.from_module(lambda: Calling(draw)).apply({}, observations((2, 3, 4)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("drop", [
    lambda x: F.dropout(x, p=0.5), lambda x: F.dropout(x), lambda x: torch.dropout(x, p=0.5, train=True),
])  # fmt: skip
def test_dropout_that_is_always_on_is_refused_only_in_evaluation(drop):
    obs = observations((2, 3, 4))
    with pytest.raises(TypeError, match=r"that calls dropout; pass training=self.training .*from_module_with_dropout"):
        networks.from_module(lambda: Calling(drop)).apply({}, obs)
    expected = networks.dropout(obs, 0.5, random.uniform(random.fold_in(KEY, 0), obs.shape))
    assert torch.equal(networks.from_module_with_dropout(lambda: Calling(drop)).apply({}, obs, KEY), expected)


@pytest.mark.parametrize("layer", [
    nn.RReLU, nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Dropout1d,
    lambda: Calling(lambda x: torch.dropout(x, p=0.5, train=False)), lambda: nn.LSTM(4, 4, 2, dropout=0.5),
    lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True),
])  # fmt: skip
def test_random_layers_are_allowed_in_evaluation_mode(layer):
    def make():
        return nn.Sequential(nn.Linear(4, 4), layer())

    network, module, obs = networks.from_module(make), untouched(make).eval(), observations((2, 3, 4))
    params = dict(module.named_parameters())
    outputs = (network.apply(tree.map(torch.detach, params), obs), module(obs))
    q, expected = (x[0] if isinstance(x, tuple) else x for x in outputs)
    torch.testing.assert_close(q, expected.detach())


def test_every_random_operator_of_pytorch_is_handled():
    seeded = set()
    for schema in torch._C._jit_get_all_schemas():
        space, _, name = schema.name.partition("::")
        overload = schema.overload_name or "default"
        if space == "aten" and not name.startswith("_") and overload in getattr(torch.ops.aten, name).overloads():
            tags = getattr(getattr(torch.ops.aten, name), overload).tags
            seeded |= {name} if torch.Tag.nondeterministic_seeded in tags else set()
    # Recurrent layers are checked when the network is made, attention by its argument.
    apart = {"lstm", "gru", "rnn_relu", "rnn_tanh", "miopen_rnn", "scaled_dot_product_attention"}
    assert seeded >= {"rand", "native_dropout", "bernoulli_"}
    assert seeded - apart <= set(modules._SWITCHED) | modules._RANDOM


def test_dropout_inside_other_layers_is_refused():
    for make in (lambda: nn.LSTM(4, 4, 2, dropout=0.1), lambda: nn.MultiheadAttention(4, 2, dropout=0.1)):
        with pytest.raises(TypeError, match=r"factory: expected dropout in separate layers, got it inside \['0'\]"):
            networks.from_module_with_dropout(lambda: nn.Sequential(make()))
    network = networks.from_module_with_dropout(lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True))
    assert network.apply(network.init(KEY), observations((2, 3, 4)), KEY).shape == (2, 3, 4)


def test_dropout_needs_one_key():
    network = networks.from_module_with_dropout(dropping)
    params, obs = network.init(KEY), observations((3, 4))
    with pytest.raises(ValueError, match=r"key: expected shape \[2\], got \[3, 2\]"):
        network.apply(params, obs, random.key([1, 2, 3]))


# Parameters in and out


class Page(nn.Module):
    """A network with the layers of the reference project."""

    def __init__(self, inputs=4, hidden=(6, 5), actions=3):
        super().__init__()
        self.linear_relu_stack = sequential(inputs, hidden, actions)

    def forward(self, x):
        return self.linear_relu_stack(x)


PAGE = networks.mlp(4, (6, 5), 3)


@pytest.mark.parametrize(("make", "prefix"), [(lambda: sequential(4, (6, 5), 3), ""), (Page, "linear_relu_stack.")])
def test_load_of_a_module(make, prefix):
    module = untouched(make)
    params, obs = networks.load(PAGE, module.state_dict(), prefix), observations((7, 4))
    assert list(params) == list(PAGE.init(KEY))
    torch.testing.assert_close(PAGE.apply(params, obs), module(obs).detach(), rtol=0, atol=1e-6)
    assert not any(x.requires_grad for x in params.values())
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert all(x.abs().max() > 0 for x in params.values()), "the module has separate memory"


def test_load_keeps_the_dtype_and_the_order_of_the_network():
    wide = untouched(Page).double().linear_relu_stack.state_dict()
    params = networks.load(PAGE, dict(reversed(wide.items())))
    assert list(params) == list(PAGE.init(KEY))
    assert {x.dtype for x in params.values()} == {torch.float64}


def changed(**changes):
    """Return the state_dict of Page with changed entries; None removes one."""
    state = dict(untouched(Page).linear_relu_stack.state_dict()) | {n.replace("_", "."): x for n, x in changes.items()}
    return {name: x for name, x in state.items() if x is not None}


@pytest.mark.parametrize(
    ("given", "prefix", "error", "message"),
    [
        (changed(**{"0.bias": None}), "", ValueError, r"shapes, {'0.bias': \[6\]}; got none of them$"),
        (changed(more=torch.ones(2, 1)), "", ValueError, r"got {'more': \[2, 1\]}; if those are buffers, load"),
        (
            changed(**{"2.weight": torch.ones(6, 5), "4.bias": None}), "", ValueError,
            r"shapes, {'2.weight': \[5, 6\], '4.bias': \[3\]}; got {'2.weight': \[6, 5\]}$",
        ),
        (
            changed(**{"4.bias": torch.ones(4)}), "", ValueError,
            r"shapes, {'4.bias': \[3\]}; got {'4.bias': \[4\]}$",
        ),
        (untouched(Page).state_dict(), "", ValueError, r"'0.weight': \[6, 4\].*; use prefix='linear_relu_stack.'$"),
        (untouched(Page).state_dict(), "stack.", ValueError, r"'stack.0.weight'.*; use prefix='linear_relu_stack.'$"),
        (changed(), "linear_relu_stack.", ValueError, "'linear_relu_stack.0.weight'.*; use prefix=''$"),
        (changed(**{"0.bias": torch.ones(6, dtype=torch.int64)}), "", TypeError, r"state_dict\['0.bias'\]: .*int64"),
        (changed(**{"0.bias": torch.ones(6).bool()}), "", TypeError, r"state_dict\['0.bias'\]: .*bool"),
        (changed(**{"0.bias": [1.0] * 6}), "", TypeError, r"state_dict\['0.bias'\]: expected a tensor, got list"),
        (untouched(Page), "", TypeError, r"state_dict: expected tensors by name, got Page; pass module.state_dict\(\)"),
        ({}, "", ValueError, r"'4.weight': \[3, 5\].*; got none of them$"),
    ],
)  # fmt: skip
def test_load_refuses_other_names_and_shapes(given, prefix, error, message):
    before = {n: x.clone() for n, x in given.items() if isinstance(x, torch.Tensor)} if isinstance(given, dict) else {}
    with pytest.raises(error, match=message):
        networks.load(PAGE, given, prefix)
    assert all(torch.equal(x, given[n]) for n, x in before.items())


def test_load_of_a_module_with_constants():
    module, network = untouched(Positional), networks.from_module(Positional)
    with torch.no_grad():
        module.places.mul_(3)
    with pytest.raises(
        ValueError, match=r"got {'places': \[3, 4\]}; if those are buffers, load them into the module that"
    ):
        networks.load(network, module.state_dict())

    def trained():
        made = Positional()
        made.load_state_dict(module.state_dict())
        return made

    network = networks.from_module(trained)
    params, obs = networks.load(network, dict(module.named_parameters())), observations((5, 3, 4))
    torch.testing.assert_close(network.apply(params, obs), module(obs).detach())
    assert not any(x.requires_grad for x in params.values())


def test_seeds_start_from_loaded_parameters():
    params = networks.load(PAGE, untouched(Page).state_dict(), "linear_relu_stack.")
    network = networks.starting_from(PAGE, params)
    seeds = network.init(random.key([[1, 2, 3], [4, 5, 6]]))
    for name, x in seeds.items():
        assert torch.equal(x, params[name].expand(2, 3, *params[name].shape))
    asserts.assert_trees_equal(params, network.init(KEY))
    leaves = (*seeds.values(), *params.values(), *network.init(KEY).values(), *network.init(KEY).values())
    assert len({x.untyped_storage().data_ptr() for x in leaves}) == len(leaves)
    assert all(x.is_contiguous() for x in leaves)
    with pytest.raises(ValueError, match="expected the network's names and shapes"):
        networks.starting_from(networks.mlp(4, (6,), 3), params)


def test_training_starts_from_loaded_parameters():
    program = examples.program()
    module = untouched(lambda: sequential(4, (8,), 2))
    params = networks.load(program.network, module.state_dict())
    loaded = examples.program(network=networks.starting_from(program.network, params))
    state = training.init(loaded, *examples.seeds(3))
    for name, x in state.learner.params.items():
        assert torch.equal(x, module.state_dict()[name].expand_as(x))
    asserts.assert_trees_equal(state.learner.params, state.learner.target_params)


@pytest.mark.parametrize("name", ["mlp", "dueling", "nature", "minatar", "module"])
def test_to_module_equals_the_network(name):
    network, shape = SMALL[name]
    params, obs = network.init(KEY), observations((2, *shape))
    module = networks.to_module(network, params)
    asserts.assert_trees_equal(params, {n: module.state_dict()[n] for n in params})
    assert len(module.state_dict()) == len(params)
    assert torch.equal(module(obs), network.apply(params, obs))
    module(obs).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert not {p.data_ptr() for p in module.parameters()} & {x.data_ptr() for x in params.values()}
    asserts.assert_trees_equal(params, networks.load(network, module.state_dict()))


def test_to_module_with_any_names():
    network = networks.from_module(lambda: nn.Sequential(OrderedDict(network=nn.Linear(2, 2), params=nn.Linear(2, 3))))
    params, obs = network.init(KEY), observations((4, 2))
    assert torch.equal(networks.to_module(network, params)(obs), network.apply(params, obs))


@pytest.mark.parametrize("make", [networks.from_module, networks.from_module_with_dropout])
def test_factory_that_returns_the_same_module_is_refused_without_change(make):
    model, plain = untouched(lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))), nn.ReLU()
    before = tree.clone(dict(model.state_dict()))
    for mode in (True, False):
        model.train(mode)
        with pytest.raises(
            TypeError, match=r"new module at every call, got the same \['0.weight', .*networks.load and ne"
        ):
            make(lambda: model)
        assert {m.training for m in model.modules()} == {mode}
    with pytest.raises(TypeError, match=r"got the same \['0.0.weight', '0.0.bias', '0.2.weight', '0.2.bias'\] again"):
        make(lambda: nn.Sequential(model, nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="got the same ReLU again"):
        make(lambda: plain)
    asserts.assert_trees_equal(before, dict(model.state_dict()))


def test_factory_may_return_copies():
    model, obs = untouched(lambda: sequential(4, (6,), 3)), observations((3, 4))
    network = networks.from_module(lambda: copy.deepcopy(model))
    assert torch.equal(network.apply(network.init(KEY), obs), model(obs).detach())


def test_network_is_independent_of_the_factorys_module():
    kept = []

    def factory():
        kept.append(nn.Sequential(nn.Dropout(0.5), Positional()))
        return kept[-1]

    network, obs = networks.from_module(factory), observations((2, 3, 4))
    params = network.init(KEY)
    before, q = tree.clone(params), network.apply(params, obs)
    for module in kept:
        assert module.training
        module.double()
        with torch.no_grad():
            for x in (*module.parameters(), *module.buffers()):
                x.zero_()
    asserts.assert_trees_equal(before, params)
    assert torch.equal(network.apply(params, obs), q)
    asserts.assert_trees_equal(before, network.init(KEY))


def test_factories_of_other_objects_are_refused():
    for make in (networks.from_module, networks.from_module_with_dropout):
        for given, name in ((nn.Linear(2, 2), "Linear"), (None, "NoneType")):
            with pytest.raises(TypeError, match=f"factory: expected a function that makes a module, got {name}"):
                make(given)
        with pytest.raises(TypeError, match=r"factory: expected it to make an nn.Module, got int"):
            make(lambda: 3)


@EACH_SMALL
def test_apply_records_no_graph(name):
    """Check that `no_grad` is not needed, as parameters do not require gradients."""
    network, shape = SMALL[name]
    params, obs = network.init(random.key([1, 2])), observations((2, 3, *shape))
    for q in (network.apply(tree.index(params, 0), obs[0]), vmap(network.apply)(params, obs)):
        assert q.grad_fn is None
        assert not q.requires_grad
    gradients = grad(lambda p: network.apply(p, obs[0]).sum())(tree.index(params, 0))
    assert not any(x.requires_grad for x in gradients.values())


@EACH_SMALL
def test_apply_can_be_exported(name):
    network, shape = SMALL[name]
    params, obs = network.init(KEY), observations((3, *shape))
    module = networks.to_module(network, params).requires_grad_(False)
    program = torch.export.export(module, (obs,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for count in (1, 2, 7):
        obs = observations((count, *shape))
        torch.testing.assert_close(program.module()(obs), network.apply(params, obs))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*(("nature", dtype) for dtype in (torch.uint8, torch.bool, torch.float32)), ("mlp", torch.uint8)],
)
def test_frames_of_any_dtype_under_vmap_and_exported(name, dtype):
    network, shape = SMALL[name]
    params = network.init(random.key([1, 2]))
    frames = random.randint(random.key(3), (2, 5, *shape), 0, 256).to(dtype)
    expected = torch.stack([network.apply(tree.index(params, i), frames[i]) for i in range(2)])
    torch.testing.assert_close(vmap(network.apply)(params, frames), expected)
    compiled = torch.compile(vmap(network.apply), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(params, frames), expected)
    module = networks.to_module(network, tree.index(params, 0)).requires_grad_(False)
    program = torch.export.export(module, (frames[0, :2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(frames[0]), expected[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.mlp(0, (4,), 2), r"obs_shape: expected .*, got \(0,\)"),
        (lambda: networks.mlp((), (4,), 2), "obs_shape"),
        (lambda: networks.mlp(4, (), 0), "hidden, actions: .*, got \\[\\], 0"),
        (lambda: networks.mlp(4, (0,), 2), "hidden"),
        (lambda: networks.dueling_mlp(4, (3,), 0), "actions"),
        (lambda: networks.nature((84, 84), 2), "obs_shape: expected 3 sizes"),
        (lambda: networks.nature((4, 35, 84), 2), "obs_shape: expected frames of at least 36 x 36, got 35 x 84"),
        (lambda: networks.nature((4, 84, 84), 0), "actions"),
        (lambda: networks.minatar((10, 10), 2), "obs_shape: expected 3 sizes"),
        (lambda: networks.minatar((4, 10, 2), 2), "obs_shape: expected boards of at least 3 x 3, got 10 x 2"),
        (lambda: networks.minatar((4, 10, 10), 0), "actions"),
    ],
)
def test_invalid_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["mlp", "dueling", "nature", "minatar"])
def test_observations_of_another_shape_are_refused(name):
    network, shape = SMALL[name]
    with pytest.raises(ValueError, match="obs: expected shape"):
        network.apply(network.init(KEY), torch.zeros(2, *shape[:-1], shape[-1] + 1))


@EACH_SMALL
def test_parameters_of_another_network_are_refused(name):
    network, shape = SMALL[name]
    params, obs = network.init(KEY), torch.zeros(2, *shape)
    first = next(iter(params))
    lacking = {n: x for n, x in params.items() if n != first}
    for wrong, message in (
        (lacking, rf"params: expected .*, {{'{first}': \[.*\]}}; got none of them$"),
        (params | {"more": torch.zeros(1, 2)}, r"params: expected .*, no others; got {'more': \[1, 2\]}$"),
        (params | {first: torch.zeros(7)}, rf"params: expected .*, {{'{first}': .*}}; got {{'{first}': .*}}"),
        (
            network.init(random.key([1, 2])),
            r"params: expected .*; got .*\[2, .*; use vmap\(network.apply\) for several seeds$",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            network.apply(wrong, obs)


@EACH_SMALL
def test_observations_on_another_device_are_refused(name):
    network, shape = SMALL[name]
    with pytest.raises(ValueError, match="obs: expected it on the parameters' device cpu, got meta"):
        network.apply(network.init(KEY), torch.zeros(2, *shape, device="meta"))


@EACH_SMALL
def test_invalid_parameters_are_refused(name):
    network, shape = SMALL[name]
    params, obs = network.init(KEY), torch.zeros(2, *shape)
    first = next(iter(params))
    for wrong, message in (
        (list(params.values()), "params: expected tensors by name, as network.init makes them, got list"),
        (params | {first: None}, rf"params\['{first}'\]: expected a tensor, got NoneType"),
        ({first: dict(params)}, rf"params\['{first}'\]: expected a tensor, got dict"),
    ):
        with pytest.raises(TypeError, match=message):
            network.apply(wrong, obs)
    with pytest.raises(TypeError, match=r"obs: expected a tensor \[.*\], got list"):
        network.apply(params, obs.tolist())


@pytest.mark.parametrize("name", ["mlp", "dueling", "nature", "minatar"])
def test_integer_parameters_are_refused(name):
    network, shape = SMALL[name]
    params = network.init(KEY)
    last = [*params][-1]
    with pytest.raises(TypeError, match=rf"params\['{last}'\]: expected a floating-point dtype, got torch.int64"):
        network.apply(params | {last: params[last].long()}, torch.zeros(2, *shape))


@EACH_SMALL
def test_observations_are_cast_to_the_parameters_dtype(name):
    network, shape = SMALL[name]
    params, obs = network.init(KEY), random.randint(random.key(1), (2, *shape), 0, 2)
    expected = network.apply(params, obs.float())
    white = 1 if name == "module" else 255  # of bytes
    assert torch.equal(network.apply(params, (white * obs).to(torch.uint8)), expected)
    for dtype in (torch.bool, torch.float64, torch.bfloat16):
        assert torch.equal(network.apply(params, obs.to(dtype)), expected)
    assert network.apply(tree.cast(params, torch.bfloat16), obs.bool()).dtype == torch.bfloat16


def test_integer_observations_are_not_cast():
    network = networks.from_module(lambda: nn.Embedding(5, 3))
    params = network.init(KEY)
    for dtype in (torch.int32, torch.int64):
        assert torch.equal(network.apply(params, torch.tensor([4, 1], dtype=dtype)), params["weight"][[4, 1]])


def test_modules_cannot_be_initialized_under_vmap():
    network, _ = SMALL["module"]
    with pytest.raises(ValueError, match=r"key: expected at least one seed, got shape \[0, 2\]"):
        network.init(random.key([1])[:0])
    with pytest.raises(ValueError, match=r"key: expected one that can be read, .*; init takes the keys \[\.\.\., 2\]"):
        vmap(network.init)(random.key([1, 2]))


def test_a_network_without_parameters():
    network, obs = networks.from_module(nn.ReLU), observations((2, 3))
    assert networks.load(network, {}) == network.init(KEY) == {}
    assert torch.equal(networks.to_module(network, {})(obs), obs.relu())
    with pytest.raises(ValueError, match=r"state_dict: expected .*, no others; got {'more': \[1\]}"):
        networks.load(network, {"more": torch.ones(1)})
    with pytest.raises(ValueError, match=r"state_dict: expected .*, no others; got {'more': \[1\]}"):
        networks.load(network, {"more": torch.ones(1)}, "prefix.")


def test_to_module_refuses_other_names_and_shapes():
    params = PAGE.init(random.key([1, 2]))
    with pytest.raises(ValueError, match=r"expected the network's names.*; select one seed with tree.index\(params, "):
        networks.to_module(PAGE, params)
    seed_params = dict(reversed(tree.index(params, 1).items()))
    assert [n for n, _ in networks.to_module(PAGE, seed_params).named_parameters()] == list(params)


@pytest.mark.parametrize("sizes", [(4, 5, 2), (4, (5.0,), 2), (4, (5,), 2.0), (4, "5", 2), (4, None, 2)])
def test_fractional_sizes_are_refused(sizes):
    for make in (networks.mlp, networks.dueling_mlp):
        with pytest.raises(TypeError, match="hidden, actions: expected a sequence of integers"):
            make(*sizes)


def test_invalid_keys_are_refused():
    for network, _ in SMALL.values():
        with pytest.raises(ValueError, match="key: expected shape"):
            network.init(torch.zeros(3, dtype=torch.int64))


def test_parameters_of_several_seeds():
    network, _ = SMALL["mlp"]
    params = network.init(random.key([1, 2, 3]))
    obs = observations((3, 5, 4))
    q = vmap(network.apply)(params, obs)
    for i in range(3):
        torch.testing.assert_close(q[i], network.apply(tree.index(params, i), obs[i]), rtol=1e-6, atol=1e-6)
