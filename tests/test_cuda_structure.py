"""The steps as CUDA would get them, checked without a GPU: traced on tensors that have a device and no memory.

Nothing of a step may be on the CPU, be copied from or to it, or be asked for its value: a CUDA graph cannot capture
that, and uncaptured it makes the host wait. What the compiler makes of the steps is in `without_gpu.py`.
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
LANES = 3


@pytest.fixture(autouse=True)
def memoryless():
    """Tensors on a device that is not there."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def started(program):
    """Lanes on the device and the noise of one cycle."""
    hyper = Hyper(*(torch.ones(LANES, device=DEVICE) for _ in Hyper._fields[:-1]))
    with pytest.MonkeyPatch.context() as patched:
        # The hundred operations of Threefry take most of the time here; `test_noise_with_its_keys` traces them.
        patched.setattr(random, "_threefry", lambda k0, k1, x0, x1: (x0 + k0 + x1, x1 + k1 + x0))
        state = training.init(program, hyper, torch.zeros((LANES, 2), dtype=torch.int64, device=DEVICE))
        return state, tree.index(training.noise(program, state.key, 0, 1), 0)


def check(f, *args):
    """Trace it and look at every node, as compiling for CUDA does."""
    with torch.no_grad():
        traced, answer = graph.trace(f, args)
    host_tensors.check_on_device(traced, args, lambda: graph.trace(f, args))
    # Numbers of the host: on `meta` they are a constant without a copy, on CUDA a copy.
    assert [node.target for node in traced.graph.find_nodes(op="get_attr") if node.meta["val"].device == DEVICE] == []
    assert {x.device for x in tree.leaves(args) if isinstance(x, torch.Tensor)} == {DEVICE}
    return traced, answer


def check_step(step, program, state, *given):
    check(edge.donate(vmap(partial(step, program))), state, *given)


def check_play(env, network, state, epsilon):
    params, keys = state.learner.params, state.key
    games = next(evaluate.device_steps(env, network, params, keys, 4, epsilon=epsilon))
    u = torch.zeros((LANES, 4, 2 + env.spec.noise), device=DEVICE)
    check(vmap(partial(evaluate.play, env, network, epsilon)), params, games, u)


# What is there


@pytest.mark.parametrize("name", envs.names())
def test_an_environment_of_ours_is_stepped_learned_and_played_on_the_device(name):
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
def test_variants_of_the_program(variant):
    program = assemble.program(Settings(**VARIANTS[variant]))
    state, noise = started(program)
    check_step(training.cycle, program, state, noise)


def test_noise_with_its_keys():
    program = assemble.program(Settings())
    state, _ = started(program)
    numbers = training.cycle_numbers(state.key, 3, 5)
    traced, answer = check(partial(training.draw_numbered, program), state.key, numbers)
    assert len(traced.graph.find_nodes(op="output")[0].args[0]) == len(tree.leaves(answer)) == 3


WORLDS = {
    "numbers": (EnvSpec((4,), torch.float32, actions=2, noise=0, time_limit=500), None),
    "frames": (EnvSpec((4, 84, 84), torch.uint8, actions=6, noise=0, time_limit=500, stack=4), networks.nature),
    "flags": (EnvSpec((30,), torch.bool, actions=3, noise=0, time_limit=500), None),
}


@pytest.mark.parametrize("kind", WORLDS)
def test_the_parts_of_a_cycle_around_a_host_environment(kind):
    spec, network = WORLDS[kind]
    network = network and network(spec.obs_shape, spec.actions)
    program = examples.program(HostEnv(None, spec), network=network, terminal_on_life_loss=True, n_step=2)
    state, noise = started(program)
    step = iteration._blank_step(spec, torch.zeros((LANES, 3), dtype=torch.int64, device=DEVICE))
    none = torch.zeros((LANES, 3), dtype=torch.bool, device=DEVICE)
    answer = HostStep(Step(*map(torch.clone, step)), ~none, ~none[:, 0], none)
    check_step(
        host.choose, program, state, tree.index(host.interaction(tree.map(lambda x: x.unsqueeze(0), noise), 0), 0)
    )
    check_step(host.store, program, state, answer)
    check_step(host.finish, program, state, answer)
    check_step(training.learn, program, state, noise)


SCHEDULES = {
    "constant": (0.1,), "linear": (1.0, 0.1, 100), "polynomial": (1.0, 100, 2.0), "exponential": (1.0, 0.9),
    "staircase": (1.0, 0.9, 10), "cosine": (1.0, 0.1, 100), "cosine_restarts": (1.0, 0.1, 100, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_make_their_numbers_on_the_device(name):
    step = torch.zeros((LANES,), dtype=torch.int64, device=DEVICE)
    check(lambda step: torch.as_tensor(getattr(schedules, name)(step, *SCHEDULES[name])), step)


def test_evaluation_is_compiled_from_its_first_step():
    """On a CPU 2,560 steps come before, in about the time of compiling; on a device these are a million launches."""
    program = assemble.program(Settings())
    state, _ = started(program)
    slow, calls = vmap(partial(evaluate.play, program.env, program.network, 0.0)), []

    def fast(*given):
        calls.append(given)
        return slow(*given)

    games = evaluate.device_steps(program.env, program.network, state.learner.params, state.key, 4, fast=fast)
    for _ in range(4):
        next(games)
    assert len(calls) == 3


def test_keys_follow_the_parameters_that_are_played():
    """Whoever reads parameters and makes keys anew has these on the CPU."""
    program = assemble.program(Settings())
    state, _ = started(program)
    keys = torch.zeros((LANES, 2), dtype=torch.int64)
    games = next(evaluate.device_steps(program.env, program.network, state.learner.params, keys, 4))
    assert {x.device for x in tree.leaves(games)} == {DEVICE}


# What is found


TABLE = torch.tensor([0.1, -0.2, 0.3, 0.0])


def constant(obs):
    return obs + TABLE.to(obs.device)


def made_here(obs):
    return obs + torch.tensor([0.1, -0.2, 0.3, 0.0]).to(obs.device)


def made_there(obs):
    return obs + torch.tensor([0.1, -0.2, 0.3, 0.0], device=obs.device)


def counted(obs):
    return obs + torch.arange(4.0).to(obs.device)


def from_the_host(obs):
    return obs.cpu().sin().to(obs.device)


def to_the_host(obs):
    return obs + obs.cpu().mean() * 0.0


def number_to_the_device(obs):
    return obs + torch.tensor(0.5).to(obs.device)


def new(obs):
    return obs + obs.new_tensor([0.1, -0.2, 0.3, 0.0])


def asked(obs):
    return obs * obs.abs().amax().item()


def branching(obs):
    return obs if obs.sum() > 0 else -obs


def mixed(obs):
    return obs + torch.zeros(4)


def shifted(shift):
    """CartPole with something else done to its observations."""
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
            made_here,
            r"got a constant \[4\] torch.float32 on cpu in test_cuda_structure.py, line \d+, made_here; create it",
        ),
        (counted, r"got aten.arange.default \[4\] torch.float32 on cpu in test_cuda_structure.py, line \d+, counted"),
        (from_the_host, r"got aten._to_copy.default \[.*4\] torch.float32 on cpu in .*, from_the_host"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_host_tensor_in_a_step_is_refused_by_name(monkeypatch, shift, match):
    """Before anything is compiled."""
    monkeypatch.setattr(torch._inductor, "compile", lambda *given, **more: pytest.fail("it was compiled"))
    program = examples.program(shifted(shift))
    state, noise = started(program)
    with pytest.raises(ValueError, match=match):
        graph.compile_graph(edge.donate(vmap(partial(training.collect, program))), (state, noise))


# Of these torch itself stops the trace, or the check finds a constant.
@pytest.mark.parametrize(
    "shift", [new, made_there, asked, branching, mixed, number_to_the_device], ids=lambda f: f.__name__
)
def test_what_waits_for_the_host_is_not_traced(shift):
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


def test_numbers_may_stay_on_the_host():
    """Kernels take them by value, as PyTorch does."""
    check(lambda x: torch.where(x > 0, torch.tensor(0.5), x) * torch.tensor(2.0), torch.zeros(3, device=DEVICE))


def test_nothing_is_refused_on_a_cpu():
    x = torch.zeros(4)
    traced, _ = graph.trace(constant, (x,))
    host_tensors.check_on_device(traced, (x,), lambda: graph.trace(constant, (x,)))


def test_epsilon_greedy_evaluation_copies_no_scalar():
    """A number of Python goes into the kernel as it is; a tensor of it would be copied from the host at every step."""
    q, legal = torch.zeros((LANES, 2), device=DEVICE), torch.ones((LANES, 2), dtype=torch.bool, device=DEVICE)
    check(lambda q, legal, u: evaluate._choose(q, legal, 0.05, u), q, legal, torch.zeros((LANES, 2), device=DEVICE))
