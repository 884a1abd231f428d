"""Compare PyTorch features that a DQN uses with the equivalent pure functions, section by section.

Observation, network and numbers are those of a card game DQN: 468 booleans (nine zones of a game with 52 cards),
468-512-256-actions, MSE of the TD error, Adam 3e-5, gradient norm clipped at 5, ExponentialLR 0.9.
"""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import functional_call, grad, grad_and_value, vmap

from fdqn import networks, optim, random, training, tree, types
from fdqn.agents import dqn
from fdqn.experiment import assemble
from fdqn.experiment.settings import Settings
from fdqn.ops import losses, schedules
from fdqn.testing import asserts, examples, laws
from fdqn.training import off_policy
from fdqn.types import Transition

KEY = random.key(468)
ACTIONS = 18
CHANCE = 1e-4


class Page(nn.Module):
    """The network of the reference code."""

    def __init__(self, input_length=468, num_actions=ACTIONS, hidden=(512, 256)):
        super().__init__()
        self.linear_relu_stack = nn.Sequential(
            nn.Linear(input_length, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], num_actions),
        )

    def forward(self, x):
        return self.linear_relu_stack(x)


@pytest.fixture(autouse=True)
def own_generator():
    """Isolate PyTorch's generator, which the imperative code uses, from the other tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def observations(count, size=468, seed=1):
    return random.uniform(random.key(seed), (count, size)) < 0.1


# Key features


def test_dynamic_graphs():
    """Differentiate a function with Python branches and loops."""

    def steps(x):
        y = x
        while y < 100:
            y = y * x if y > 5 else y + x
        return y

    x = torch.tensor(3.0, requires_grad=True)
    steps(x).backward()
    assert grad(steps)(torch.tensor(3.0)) == x.grad


# Core components


def test_tensors_and_numpy():
    arr = np.array([1.0, 2.0, 3.0])
    theirs = torch.from_numpy(arr) * 2
    ours = tree.map(lambda x: x * 2, tree.from_numpy({"x": arr}))
    assert torch.equal(ours["x"], theirs)
    assert tree.from_numpy(arr).data_ptr() == torch.from_numpy(arr).data_ptr() == arr.ctypes.data
    back = tree.to_numpy(ours)["x"]
    assert back.tolist() == theirs.numpy().tolist() == [2, 4, 6]
    assert back.ctypes.data == ours["x"].data_ptr()


def test_autograd():
    x = torch.tensor(2.0, requires_grad=True)
    (x**2).backward()
    gradient, value = grad_and_value(lambda x: x**2)(torch.tensor(2.0))
    assert grad(lambda x: x**2)(torch.tensor(2.0)) == gradient == x.grad == 4.0
    assert value == 4.0
    assert not gradient.requires_grad


def test_autograd_of_a_network_and_of_every_sample():
    module = Page(12, 3, (8, 5)).double()
    network, obs = networks.mlp(12, (8, 5), 3), observations(6, 12).double()
    params = networks.load(network, module.state_dict(), "linear_relu_stack.")

    def loss(params, obs):
        return network.apply(params, obs).square().mean()

    module(obs).square().mean().backward()
    ours, value = grad_and_value(loss)(params, obs)
    asserts.assert_trees_close([p.grad for p in module.parameters()], list(ours.values()), 1e-12)
    assert value == loss(params, obs)
    each = vmap(grad(loss), (None, 0))(params, obs)
    for i in range(len(obs)):
        module.zero_grad()
        module(obs[i]).square().mean().backward()
        asserts.assert_trees_close([p.grad for p in module.parameters()], [x[i] for x in each.values()], 1e-12)


LAYERS = {
    "linear": (lambda: nn.Linear(468, 512), (3, 468)),
    "relu": (nn.ReLU, (3, 468)),
    "convolution": (lambda: nn.Conv2d(9, 4, (1, 5)), (3, 9, 4, 13)),
    "layer norm": (lambda: nn.LayerNorm(468), (3, 468)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    make, shape = LAYERS[name]
    network, layer, x = networks.from_module(make), make().double(), random.normal(KEY, shape, torch.float64)
    params = {name: p.detach() for name, p in layer.named_parameters()}
    torch.testing.assert_close(network.apply(params, x), layer(x).detach(), rtol=0, atol=1e-12)
    assert {n: p.shape for n, p in network.init(KEY).items()} == {n: p.shape for n, p in params.items()}


def test_sequential():
    network, module = networks.mlp(468, (512, 256), ACTIONS), Page().linear_relu_stack
    params = network.init(KEY)
    shapes = [(name, x.shape, x.dtype) for name, x in module.state_dict().items()]
    assert [(name, x.shape, x.dtype) for name, x in params.items()] == shapes
    wide, obs = tree.cast(params, torch.float64), observations(32)
    module.double().load_state_dict(wide, strict=True)
    torch.testing.assert_close(network.apply(wide, obs), module(obs.double()).detach(), rtol=0, atol=1e-12)


def test_initial_values_of_sequential():
    params, module = networks.mlp(468, (512, 256), ACTIONS).init(KEY), Page().linear_relu_stack
    for name, x in params.items():
        bound = 1 / math.sqrt({"0": 468, "2": 512, "4": 256}[name[0]])
        theirs = module.state_dict()[name].flatten().numpy()
        ours = x.flatten().numpy()
        assert max(abs(ours).max(), abs(theirs).max()) <= bound
        assert stats.kstest(ours[:50_000], "uniform", (-bound, 2 * bound)).pvalue > CHANCE
        assert stats.ks_2samp(ours[:50_000], theirs[:50_000]).pvalue > CHANCE
        assert abs(ours.std() * math.sqrt(3) / bound - 1) < 5 / math.sqrt(len(ours))
        if len(ours) > 1000:  # the test rejects numbers that are slightly too large, or normally distributed
            normal = random.normal(KEY, (50_000,)).numpy() * ours.std()
            assert stats.ks_2samp(ours[:50_000] * 1.1, theirs[:50_000]).pvalue < CHANCE
            assert stats.ks_2samp(normal, theirs[:50_000]).pvalue < CHANCE


def test_sequential_with_dropout():
    def make():
        return nn.Sequential(nn.Linear(468, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, ACTIONS))

    module, obs = make(), observations(4).float()
    off, on = networks.from_module(make), networks.from_module_with_dropout(make)
    params = networks.load(off, module.state_dict())
    torch.testing.assert_close(off.apply(params, obs), module.eval()(obs).detach(), rtol=0, atol=1e-6)
    module.train()
    theirs = torch.stack([module(obs) for _ in range(2000)]).detach()
    ours = vmap(on.apply, (None, None, 0))(params, obs, random.key(torch.arange(2000)))
    error = theirs.std(0) / math.sqrt(1000)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()
    assert stats.ks_2samp(ours[:, 0, 0].numpy(), theirs[:, 0, 0].numpy()).pvalue > CHANCE


def test_loss_functions():
    predictions, targets = random.normal(KEY, (2, 128), torch.float64)
    theirs = nn.MSELoss()(predictions, targets)
    torch.testing.assert_close(losses.squared(predictions - targets).mean(), theirs, rtol=0, atol=1e-15)


def test_optimizers():
    module = Page(12, 3, (8, 5)).double()
    theirs = torch.optim.Adam(module.parameters(), lr=3e-5)
    ours, obs = optim.adam(3e-5), observations(6, 12).double()
    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    state = ours.init(params)
    for _ in range(5):
        theirs.zero_grad()
        module(obs).square().mean().backward()
        theirs.step()
        grads = grad(lambda params: functional_call(module, params, (obs,)).square().mean())(params)
        updates, state = ours.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        asserts.assert_trees_close({n: p.detach() for n, p in module.named_parameters()}, params, 1e-12)


# PyTorch in the project


def test_network_definition():
    module, obs = Page(), observations(5)
    network = networks.mlp(468, (512, 256), ACTIONS)
    params = networks.load(network, module.state_dict(), prefix="linear_relu_stack.")
    torch.testing.assert_close(network.apply(params, obs), module(obs.float()).detach(), rtol=0, atol=1e-6)
    whole = networks.from_module(Page)
    assert list(whole.init(KEY)) == list(module.state_dict())
    torch.testing.assert_close(
        whole.apply(networks.load(whole, module.state_dict()), obs.float()), module(obs.float()).detach()
    )


def transitions(count, seed=2):
    """Make random transitions: one in five is terminal, one in four actions is legal."""
    keys = random.split(random.key(seed), 6)
    shape = (count, 468)
    legal = random.uniform(keys[5], (count, ACTIONS)) < 0.25
    return Transition(
        obs=random.uniform(keys[0], shape) < 0.1,
        action=random.randint(keys[1], (count,), 0, ACTIONS),
        reward=random.normal(keys[2], (count,), torch.float64),
        discount=(random.uniform(keys[3], (count,)) > 0.2).double(),
        next_obs=random.uniform(keys[4], shape) < 0.1,
        next_legal=legal | (torch.arange(ACTIONS) == 0),
    )


def page_loop(network, batches, gamma, every):
    """Train with an imperative loop; target network and learning rate change at fixed intervals."""
    target_network = copy.deepcopy(network)
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    for i, batch in enumerate(batches):
        with torch.no_grad():
            following = target_network(batch.next_obs.double())
            best = following.masked_fill(~batch.next_legal, -math.inf).max(1).values
            target_q_values = batch.reward + gamma * batch.discount * best
        q_values = network(batch.obs.double()).gather(1, batch.action.unsqueeze(1)).squeeze(1)
        loss = criterion(q_values, target_q_values)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm=5.0)
        optimizer.step()
        if (i + 1) % every == 0:
            scheduler.step()
            target_network.load_state_dict(network.state_dict())


def pure_loop(network, params, batches, gamma, every):
    """Train with the same loop written with pure functions."""
    hyper = training.hyper(1)._replace(gamma=torch.tensor(gamma, dtype=torch.float64))

    def rate(updates):
        return schedules.exponential(updates // every, 3e-5, 0.9)

    optimizer = optim.chain(clip=optim.clip_by_global_norm(5.0), adam=optim.adam(rate))
    agent, learner = dqn.agent(network, double=False), off_policy.init(optimizer, params)
    for i, batch in enumerate(batches):
        learner, _, _ = off_policy.update(agent, optimizer, learner, examples.sample(batch), hyper)
        if (i + 1) % every == 0:
            learner = off_policy.hard_copy(learner)
    return learner


def test_training_loop():
    """Compare the parameters of both loops after 160 updates on the same batches, at full size."""
    module, network = Page().double(), networks.mlp(468, (512, 256), ACTIONS)
    params = networks.load(network, module.state_dict(), "linear_relu_stack.")
    stored = transitions(2048)
    batches = [tree.index(stored, rows) for rows in random.randint(KEY, (160, 8), 0, 2048)]
    page_loop(module, batches, 0.99, every=40)
    learner = pure_loop(network, params, batches, 0.99, every=40)
    theirs = {name: p.detach() for name, p in module.linear_relu_stack.named_parameters()}
    asserts.assert_trees_close(theirs, learner.params, 1e-9)
    assert learner.updates == 160
    assert max(float((params[name] - x).abs().max()) for name, x in theirs.items()) > 1e-3, "the parameters changed"


def test_training_loop_detects_differences(monkeypatch):
    """Check that the tolerance detects another discount and missing gradient clipping."""
    module, network = Page(hidden=(8, 8)).double(), networks.mlp(468, (8, 8), ACTIONS)
    start, stored = copy.deepcopy(module), transitions(64)
    batches = [stored._replace(reward=stored.reward * 100)] * 20
    page_loop(module, batches, 0.99, 10)
    params = networks.load(network, start.state_dict(), "linear_relu_stack.")
    theirs = dict(module.linear_relu_stack.state_dict())
    asserts.assert_trees_close(theirs, pure_loop(network, params, batches, 0.99, 10).params, 1e-9)
    other = pure_loop(network, params, batches, 0.98, 10).params
    assert max(float((theirs[name] - x).abs().max()) for name, x in other.items()) > 1e-8
    monkeypatch.setattr(
        optim, "clip_by_global_norm", lambda norm: types.Optimizer(lambda p: {}, lambda g, s, p: (g, s))
    )
    other = pure_loop(network, params, batches, 0.99, 10).params
    assert max(float((theirs[name] - x).abs().max()) for name, x in other.items()) > 1e-8


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


@pytest.mark.parametrize("name", DEVICES)
def test_device_management(name):
    device = assemble.device(Settings(device=name))
    module, obs = Page().to(device), observations(3)
    network = networks.mlp(468, (512, 256), ACTIONS)
    params = tree.to(networks.load(network, module.cpu().state_dict(), "linear_relu_stack."), device)
    q = network.apply(params, obs.to(device))
    assert q.device.type == device.type == name
    torch.testing.assert_close(q.cpu(), module.cpu()(obs.float()).detach(), rtol=1e-4, atol=1e-5)


def test_auto_device_is_the_gpu_if_available(monkeypatch):
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert assemble.device(Settings()) == torch.device("cuda" if torch.cuda.is_available() else "cpu")
        assert assemble.device(Settings()).type == expected


# Common operations


def test_tensor_creation():
    before = torch.get_rng_state()
    ours = random.normal(KEY, (300, 400))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not used"
    theirs = torch.randn(300, 400)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert stats.ks_2samp(ours.flatten()[:50_000].numpy(), theirs.flatten()[:50_000].numpy()).pvalue > CHANCE
    like = tree.map(torch.zeros_like, {"x": ours})
    assert torch.equal(like["x"], torch.zeros(300, 400))


def test_tensor_operations():
    x, y = random.normal(KEY, (2, 6, 468))
    for f in (lambda x, y: x * 2, lambda x, y: x + y, lambda x, y: x @ y.T):
        laws.pure(f, x, y)
        laws.vmapped(f, x.reshape(2, 3, 468), y.reshape(2, 3, 468))


def test_reshape():
    """Apply networks to inputs with axes for batch, environments and seeds."""
    network, module = networks.mlp((9, 52), (16, 8), 3), Page(468, 3, (16, 8))
    params = networks.load(network, module.state_dict(), "linear_relu_stack.")
    obs = observations(10).reshape(5, 2, 9, 52)
    expected = module(obs.float().view(-1, 468)).view(5, 2, 3)
    torch.testing.assert_close(network.apply(params, obs), expected.detach(), rtol=0, atol=1e-6)


# Best practices


def test_inference_without_gradients():
    module, obs = Page(), observations(5)
    with torch.no_grad():
        expected = module(obs.float())
    network = networks.mlp(468, (512, 256), ACTIONS)
    params = networks.load(network, module.state_dict(), "linear_relu_stack.")
    q = network.apply(params, obs)
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-6)
    assert module(obs.float()).requires_grad, "the imperative code records a graph"
    assert q.grad_fn is None
    assert not q.requires_grad
    assert tree.to_numpy(q).shape == (5, ACTIONS)


def test_gradient_clipping():
    module, obs = Page(12, 3, (8, 5)).double(), observations(6, 12).double()
    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    for size in (1.0, 1e4):
        module.zero_grad()
        (size * module(obs).square().mean()).backward()
        grads = {name: p.grad.clone() for name, p in module.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm=5.0)
        clip = optim.clip_by_global_norm(5.0)
        clipped, _ = clip.update(grads, clip.init(params), params)
        asserts.assert_trees_close({n: p.grad for n, p in module.named_parameters()}, clipped, 1e-12)
        torch.testing.assert_close(tree.norm(grads), norm, rtol=1e-12, atol=0)
        assert (norm > 5) == (size > 1), "the larger gradient is clipped"


def test_learning_rate_scheduling():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=3e-5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    for step in range(50):
        ours = schedules.exponential(torch.tensor(step), 3e-5, 0.9)
        assert float(ours) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        parameter.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()


def test_save_and_load(tmp_path):
    file, module, obs = tmp_path / "checkpoint.pt", Page(), observations(3)
    torch.save(module.state_dict(), file)
    network = networks.mlp(468, (512, 256), ACTIONS)
    params = networks.load(network, torch.load(file, weights_only=True), "linear_relu_stack.")
    torch.testing.assert_close(network.apply(params, obs), module(obs.float()).detach(), rtol=0, atol=1e-6)
    ours = network.init(KEY)
    torch.save({"linear_relu_stack." + name: x for name, x in ours.items()}, file)
    module.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(network.apply(ours, obs), module(obs.float()).detach(), rtol=0, atol=1e-6)


def test_exported_programs(tmp_path):
    """Export a trained policy as a file that runs without this library."""
    network, obs = networks.mlp(468, (512, 256), ACTIONS), observations(3)
    params = network.init(KEY)
    module = networks.to_module(network, params).requires_grad_(False)
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(module, (obs,), dynamic_shapes=(batch,)), tmp_path / "policy.pt2")
    policy = torch.export.load(tmp_path / "policy.pt2").module()
    for count in (1, 3, 9):
        obs = observations(count)
        torch.testing.assert_close(policy(obs), network.apply(params, obs), rtol=0, atol=1e-6)
