"""Steps for CUDA, checked without a GPU by tracing on tensors with a device and no memory.

No tensor of a step may be on the CPU, be copied from or to it, or be read by the host: a CUDA graph cannot capture
that, and without a graph the host waits. `without_gpu.py` checks the compiled steps.
"""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

from fdqn import compile as edge
from fdqn import envs, networks, random, training, tree
from fdqn.compile import graph, host_tensors
from fdqn.envs import cartpole
from fdqn.experiment import assemble
from fdqn.experiment.settings import Settings
from fdqn.ops import schedules
from fdqn.testing import examples
from fdqn.training import evaluate, host, iteration
from fdqn.types import EnvSpec, HostEnv, HostStep, Hyper, Step

DEVICE = torch.device("meta")
SEEDS = 3


@pytest.fixture(autouse=True)
def memoryless():
    """Create tensors without memory, on a device that does not exist."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def started(program):
    """Return a state on the device and the noise of one training iteration."""
    hyper = Hyper(*(torch.ones(SEEDS, device=DEVICE) for _ in Hyper._fields[:-1]))
    with pytest.MonkeyPatch.context() as patched:
        # Skip Threefry, which takes most of the time; `test_noise_and_its_keys_stay_on_the_device` traces it.
        patched.setattr(random, "_threefry", lambda k0, k1, x0, x1: (x0 + k0 + x1, x1 + k1 + x0))
        state = training.init(program, hyper, torch.zeros((SEEDS, 2), dtype=torch.int64, device=DEVICE))
        return state, tree.index(training.noise(program, state.key, 0, 1), 0)


def check(f, *args):
    """Trace a function and check every node, as compilation for CUDA does."""
    with torch.no_grad():
        traced, output = graph.trace(f, args)
    host_tensors.check_on_device(traced, args, lambda: graph.trace(f, args))
    # Numbers of the host are constants on `meta`, but copies on CUDA.
    assert [node.target for node in traced.graph.find_nodes(op="get_attr") if node.meta["val"].device == DEVICE] == []
    assert {x.device for x in tree.leaves(args) if isinstance(x, torch.Tensor)} == {DEVICE}
    return traced, output


def check_step(step, program, state, *given):
    check(edge.donate(vmap(partial(step, program))), state, *given)


def check_play(env, network, state, epsilon):
    params, keys = state.learner.params, state.key
    episodes = next(evaluate.device_steps(env, network, params, keys, 4, epsilon=epsilon))
    u = torch.zeros((SEEDS, 4, 2 + env.spec.noise), device=DEVICE)
    check(vmap(partial(evaluate.play, env, network, epsilon)), params, episodes, u)


# Steps of the package


@pytest.mark.parametrize("name", envs.names())
def test_training_and_evaluation_in_each_environment_stay_on_the_device(name):
    program = assemble.program(Settings(env=name))
    state, noise = started(program)
    check_step(training.cycle, program, state, noise)
    check_play(program.env, program.network, state, 0.1)


VARIANTS = {
    "soft copies, n steps": {"tau": 0.5, "n_step": 3, "double": False},
    "dueling, several steps": {"dueling": True, "steps_per_cycle": 2, "updates_per_cycle": 2, "loss": "huber"},
    "rmsprop, no clipping": {"optimizer": "rmsprop", "max_grad_norm": float("inf"), "clip_rewards": True},
    "nature-rmsprop, linear": {"optimizer": "nature-rmsprop", "hidden": ()},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_of_variants_stays_on_the_device(variant):
    program = assemble.program(Settings(**VARIANTS[variant]))
    state, noise = started(program)
    check_step(training.cycle, program, state, noise)


def test_noise_and_its_keys_stay_on_the_device():
    program = assemble.program(Settings())
    state, _ = started(program)
    numbers = training.cycle_numbers(state.key, 3, 5)
    traced, output = check(partial(training.draw_numbered, program), state.key, numbers)
    assert len(traced.graph.find_nodes(op="output")[0].args[0]) == len(tree.leaves(output)) == 3


HOST_SPECS = {
    "numbers": (EnvSpec((4,), torch.float32, actions=2, noise=0, time_limit=500), None),
    "frames": (EnvSpec((4, 84, 84), torch.uint8, actions=6, noise=0, time_limit=500, stack=4), networks.nature),
    "flags": (EnvSpec((30,), torch.bool, actions=3, noise=0, time_limit=500), None),
}


@pytest.mark.parametrize("kind", HOST_SPECS)
def test_training_with_a_host_environment_stays_on_the_device(kind):
    spec, network = HOST_SPECS[kind]
    network = network and network(spec.obs_shape, spec.actions)
    program = examples.program(HostEnv(None, spec), network=network, terminal_on_life_loss=True, n_step=2)
    state, noise = started(program)
    step = iteration._blank_step(spec, torch.zeros((SEEDS, 3), dtype=torch.int64, device=DEVICE))
    none = torch.zeros((SEEDS, 3), dtype=torch.bool, device=DEVICE)
    output = HostStep(Step(*map(torch.clone, step)), ~none, ~none[:, 0], none)
    check_step(
        host.choose, program, state, tree.index(host.interaction(tree.map(lambda x: x.unsqueeze(0), noise), 0), 0)
    )
    check_step(host.store, program, state, output)
    check_step(host.finish, program, state, output)
    check_step(training.learn, program, state, noise)


SCHEDULES = {
    "constant": (0.1,), "linear": (1.0, 0.1, 100), "polynomial": (1.0, 100, 2.0), "exponential": (1.0, 0.9),
    "staircase": (1.0, 0.9, 10), "cosine": (1.0, 0.1, 100), "cosine_restarts": (1.0, 0.1, 100, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_stay_on_the_device(name):
    step = torch.zeros((SEEDS,), dtype=torch.int64, device=DEVICE)
    check(lambda step: torch.as_tensor(getattr(schedules, name)(step, *SCHEDULES[name])), step)


def test_evaluation_on_cuda_is_compiled_from_its_first_step():
    """Check that on CUDA, where eager steps need many launches, evaluation is compiled from its first step."""
    program = assemble.program(Settings())
    state, _ = started(program)
    slow, calls = vmap(partial(evaluate.play, program.env, program.network, 0.0)), []

    def fast(*given):
        calls.append(given)
        return slow(*given)

    episodes = evaluate.device_steps(program.env, program.network, state.learner.params, state.key, 4, fast=fast)
    for _ in range(4):
        next(episodes)
    assert len(calls) == 3


def test_keys_are_moved_to_the_device_of_the_parameters():
    """Check that keys on the CPU, as made for loaded parameters, are moved to the device."""
    program = assemble.program(Settings())
    state, _ = started(program)
    keys = torch.zeros((SEEDS, 2), dtype=torch.int64)
    episodes = next(evaluate.device_steps(program.env, program.network, state.learner.params, keys, 4))
    assert {x.device for x in tree.leaves(episodes)} == {DEVICE}


# Violations that are detected


TABLE = torch.tensor([0.1, -0.2, 0.3, 0.0])


def constant(obs):
    return obs + TABLE.to(obs.device)


def host_tensor(obs):
    return obs + torch.tensor([0.1, -0.2, 0.3, 0.0]).to(obs.device)


def tensor_from_numbers(obs):
    return obs + torch.tensor([0.1, -0.2, 0.3, 0.0], device=obs.device)


def host_arange(obs):
    return obs + torch.arange(4.0).to(obs.device)


def from_the_host(obs):
    return obs.cpu().sin().to(obs.device)


def to_the_host(obs):
    return obs + obs.cpu().mean() * 0.0


def number_to_the_device(obs):
    return obs + torch.tensor(0.5).to(obs.device)


def new_tensor(obs):
    return obs + obs.new_tensor([0.1, -0.2, 0.3, 0.0])


def reads_a_value(obs):
    return obs * obs.abs().amax().item()


def branching(obs):
    return obs if obs.sum() > 0 else -obs


def mixed_devices(obs):
    return obs + torch.zeros(4)


def shifted(shift):
    """Make CartPole with a function applied to its observations."""
    plain = cartpole.make()

    def step(state, action, u):
        state, step = plain.step(state, action, u)
        return state, step._replace(obs=shift(step.obs))

    return plain._replace(step=step)


@pytest.mark.parametrize(
    ("shift", "match"),
    [
        (
            constant,
            r"expected every tensor on meta, got a constant \[4\] torch.float32 on cpu in test_cuda_str.*, const",
        ),
        (
            host_tensor,
            r"got a constant \[4\] torch.float32 on cpu in test_cuda_structure.py, line \d+, host_tensor; create it",
        ),
        (
            host_arange,
            r"got aten.arange.default \[4\] torch.float32 on cpu in test_cuda_structure.py, line \d+, host_arange",
        ),
        (from_the_host, r"got aten._to_copy.default \[.*4\] torch.float32 on cpu in .*, from_the_host"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_host_tensor_in_a_step_is_refused_with_its_line(monkeypatch, shift, match):
    """Check that the error is raised before compilation."""
    monkeypatch.setattr(
        torch._inductor, "compile", lambda *given, **more: pytest.fail("compiled despite the host tensor")
    )
    program = examples.program(shifted(shift))
    state, noise = started(program)
    with pytest.raises(ValueError, match=match):
        graph.compile_graph(edge.donate(vmap(partial(training.collect, program))), (state, noise))


# Either torch refuses the trace, or the check finds a constant.
@pytest.mark.parametrize(
    "shift",
    [new_tensor, tensor_from_numbers, reads_a_value, branching, mixed_devices, number_to_the_device],
    ids=lambda f: f.__name__,
)
def test_synchronization_with_the_host_is_refused(shift):
    program = examples.program(shifted(shift))
    state, noise = started(program)
    with pytest.raises((RuntimeError, ValueError, AssertionError)):
        check_step(training.collect, program, state, noise)


def test_a_host_constant_of_a_network_is_refused():
    plain = networks.mlp((4,), (8,), 2)

    def apply(params, obs):
        return plain.apply(params, obs * TABLE.to(obs.device))

    program = examples.program(network=plain._replace(apply=apply))
    state, noise = started(program)
    with pytest.raises(ValueError, match=r"got a constant \[4\] torch.float32 on cpu in test_cuda_structure.py"):
        check_step(training.learn, program, state, noise)


def test_scalars_on_the_cpu_are_allowed():
    """Check that CPU scalars are allowed, because kernels take them by value, as in PyTorch."""
    check(lambda x: torch.where(x > 0, torch.tensor(0.5), x) * torch.tensor(2.0), torch.zeros(3, device=DEVICE))


def test_constants_are_allowed_on_a_cpu():
    x = torch.zeros(4)
    traced, _ = graph.trace(constant, (x,))
    host_tensors.check_on_device(traced, (x,), lambda: graph.trace(constant, (x,)))


def test_epsilon_greedy_evaluation_does_not_copy_scalars():
    """Check that epsilon is a Python number, which kernels take by value; a tensor would be copied at every step."""
    q, legal = torch.zeros((SEEDS, 2), device=DEVICE), torch.ones((SEEDS, 2), dtype=torch.bool, device=DEVICE)
    check(lambda q, legal, u: evaluate._choose(q, legal, 0.05, u), q, legal, torch.zeros((SEEDS, 2), device=DEVICE))
