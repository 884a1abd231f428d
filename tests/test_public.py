"""Every public function is documented, tested and pure, keeps float64, and composes with vmap, grad and compilation."""

import importlib
import inspect
import itertools
import pathlib
import pkgutil
import re
import sys
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

import fdqn
from fdqn import networks, optim, random, replay, training, tree
from fdqn.agents import c51, dqn, iqn, munchausen, pqn, qr_dqn
from fdqn.ops import (
    action_gap,
    distributional,
    exploration,
    losses,
    masking,
    quantile,
    returns,
    running,
    schedules,
    soft,
    td,
    transforms,
)
from fdqn.replay import frames, n_step, packing
from fdqn.testing import asserts, examples, laws, probes
from fdqn.training import off_policy, on_policy, populations
from fdqn.types import Step, Transition

TESTS = "\n".join(path.read_text() for path in sorted(pathlib.Path(__file__).parent.glob("test_*.py")))
ATTRIBUTES = set(re.findall(r"\b(\w+)(?=\.(\w+))", TESTS))
IMPORTED = {name for line in re.findall(r"import (.*)", TESTS) for name in re.findall(r"\w+", line)}

INTERNAL = {"process"}
"""Modules of public packages that are not for users."""


def modules():
    """Yield every public module with its name in tests, which lacks the name of its package."""
    for name in fdqn.__all__:
        outer = getattr(fdqn, name)
        if not inspect.ismodule(outer):
            continue  # `fdqn.train` is `fdqn.experiment.api.train`
        yield name, outer
        inner = [x.name for x in pkgutil.iter_modules(getattr(outer, "__path__", []))]
        for module in getattr(outer, "__all__", [] if any(public(outer)) else inner):
            if module not in inner or module in INTERNAL:
                continue
            if inspect.ismodule(x := importlib.import_module(f"{outer.__name__}.{module}")):
                yield f"testing.{module}" if name == "testing" else module, x


def public(module):
    """Yield the public functions and classes of a module: those in its `__all__`, or those without underscore.

    Names that its package exports as well are left out; they belong to the package.
    """
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    package = sys.modules[module.__name__.rpartition(".")[0]]
    given = set(getattr(package, "__all__", [])) if package is not fdqn else set()
    for name in names:
        x = getattr(module, name)
        if not (inspect.isfunction(x) or inspect.isclass(x)) or not x.__module__.startswith(module.__name__):
            continue
        if name not in given or getattr(package, name) is not x:
            yield name, x


NAMES = [(named, name, x) for named, module in modules() for name, x in public(module)]


@pytest.mark.parametrize(("module", "name", "x"), NAMES, ids=lambda x: x if isinstance(x, str) else "")
def test_every_public_name_is_documented_and_used_in_a_test(module, name, x):
    text = inspect.getdoc(x) or ""
    assert len(text.split()) >= 2
    assert not (inspect.isclass(x) and text.startswith(f"{name}(")), "a generated docstring says nothing"
    if inspect.isclass(x) or name in probes.ALL:
        return  # records are used where functions return them, probes through their table
    short = module.split(".")[-1]
    used = {(short, name), ("edge", name)} & ATTRIBUTES or name in IMPORTED
    assert used, f"{module}.{name} is in no test"


# Arguments of one seed for every public function of tensors: float32, and far from points without a derivative.

KEY = random.key(3)


def floats(number, *shape):
    return random.normal(random.fold_in(KEY, number), shape)


Q, Q_T = floats(1, 4, 3), floats(2, 4, 3)
LEGAL = torch.tensor([[True, True, False]] * 3 + [[True, False, True]])
ACTION, U = torch.tensor([0, 1, 1, 2]), random.uniform(random.fold_in(KEY, 5), (4, 2))
REWARD, DISCOUNT = floats(3, 4), floats(4, 4)
PARAMS = {"0.weight": floats(6, 3, 2), "0.bias": floats(7, 3)}
GRADS = {"0.weight": floats(8, 3, 2), "0.bias": floats(9, 3)}
NET = networks.mlp(2, (3,), 3)
HYPER = tree.index(training.hyper(1), 0)
BATCH = Transition(floats(10, 4, 2), ACTION, REWARD, torch.ones(4), floats(11, 4, 2), LEGAL)
RING = replay.ring.buffer(8)
RANKED = replay.prioritized.buffer(8)
FULL = RING.add(RING.init(tree.index(BATCH, 0)), BATCH, LEGAL[:, 0], None, torch.tensor(0.9))[0]
WEIGHED = RANKED.add(RANKED.init(tree.index(BATCH, 0)), BATCH, LEGAL[:, 0], None, torch.tensor(0.9))[0]
STEP = torch.tensor([1.5, 6.5, 11.0])
FILM = frames.init(floats(12, 2, 3), 4, 9)
SHOWN, SHOWN_NEXT = floats(13, 4, 2, 3), floats(14, 4, 2, 3)
FILMED, AT, AT_NEXT = frames.add(FILM, SHOWN, SHOWN_NEXT, LEGAL[:, 1], LEGAL[:, 0])
RECENT = n_step.init(tree.index(BATCH, 0), 4, 3)


def updates_of(make):
    """Make a function of gradients and parameters: the optimizer's update from its initial state."""
    return lambda grads, params: make().update(grads, make().init(params), params)


def with_network(network, obs):
    return lambda params: network.apply(params, obs.to(params[next(iter(params))].dtype)), (network.init(KEY),)


OPTIMIZERS = {
    **{name: getattr(optim, name) for name in ("adam", "adamw", "adamax", "nadam", "radam", "sgd", "rmsprop")},
    **{name: getattr(optim, name) for name in ("centered_rmsprop", "graves_rmsprop", "adagrad", "frozen")},
    "chain": lambda: optim.chain(clip=optim.clip_by_global_norm(0.1), adam=optim.adam()),
    "clip_by_global_norm": lambda: optim.clip_by_global_norm(0.1),
    "clip_by_value": lambda: optim.clip_by_value(0.5),
    "add_decayed_weights": lambda: optim.add_decayed_weights(0.1),
    "masked": lambda: optim.masked(optim.sgd(), lambda name: name == "0.bias"),
    "grouped": lambda: optim.grouped(lambda name: name[2:], weight=optim.adam(), bias=optim.sgd()),
}
DROPPING = networks.from_module_with_dropout(lambda: nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Linear(3, 3)))
LEARNER = off_policy.init(optim.adam(), NET.init(KEY))
SUPPORT, RETURNS = torch.linspace(-1.0, 2.0, 4), floats(15, 4, 3, 4).softmax(-1)
NOISY = networks.noisy_mlp(2, (3,), 3)
IMPLICIT = networks.quantile(networks.trunks.layer_norm_mlp(2, (4,)), networks.heads.dueling(3), 5)
NOISY_LOSS = partial(dqn.agent(NOISY).loss, noise=random.uniform(KEY, (3, NOISY.noise)))
C51_LOSS = partial(c51.agent(networks.mlp(2, (3,), 3 * 4), (-1, 2, 4)).loss, noise=())
QR_LOSS = partial(qr_dqn.agent(networks.mlp(2, (3,), 3 * 4), 4).loss, noise=())
IQN_LOSS = partial(iqn.agent(IMPLICIT, False, 2, 3, 2).loss, noise=random.uniform(KEY, (3, 12)))
MUNCHAUSEN_LOSS = partial(munchausen.agent(NET, tau=0.5).loss, noise=())
FUNCTIONS = {
    "munchausen.agent.loss": (MUNCHAUSEN_LOSS, (NET.init(KEY), NET.init(random.key(4)), BATCH, HYPER)),
    "qr_dqn.agent.loss": (
        QR_LOSS,
        (*(networks.mlp(2, (3,), 3 * 4).init(random.key(i)) for i in range(2)), BATCH, HYPER),
    ),
    "iqn.agent.loss": (IQN_LOSS, (IMPLICIT.init(KEY), IMPLICIT.init(random.key(4)), BATCH, HYPER)),
    "quantile.regression_loss": (quantile.regression_loss, (Q, Q_T.sigmoid(), RETURNS[:, 0])),
    "quantile.q_learning_target": (
        lambda z_t, *rest: quantile.q_learning_target(*rest[:2], z_t, *rest[2:]),
        (RETURNS, REWARD, DISCOUNT, Q, LEGAL),
    ),
    "c51.agent.loss": (
        C51_LOSS,
        (*(networks.mlp(2, (3,), 3 * 4).init(random.key(i)) for i in range(2)), BATCH, HYPER),
    ),
    "pqn.agent.loss": (partial(pqn.agent(NET).loss, noise=()), (NET.init(KEY), {}, BATCH, HYPER)),
    "agents.dqn.loss": (NOISY_LOSS, (NOISY.init(KEY), NOISY.init(random.key(4)), BATCH, HYPER)),
    "masking.pick": (masking.pick, (Q, ACTION)),
    "masking.best": (masking.best, (Q, LEGAL)),
    "masking.greedy": (masking.greedy, (Q, LEGAL)),
    "masking.selected": (masking.selected, (Q, Q_T, LEGAL)),
    "masking.expected": (masking.expected, (Q, Q_T.softmax(-1), LEGAL)),
    "masking.count": (masking.count, (LEGAL,)),
    "distributional.project": (distributional.project, (SUPPORT, RETURNS[:, 0], REWARD, DISCOUNT)),
    "distributional.mean": (distributional.mean, (SUPPORT, RETURNS)),
    "distributional.pick": (distributional.pick, (RETURNS, ACTION)),
    "distributional.q_learning_target": (
        lambda p_t, *rest: distributional.q_learning_target(SUPPORT.to(p_t), *rest[:2], p_t, *rest[2:]),
        (RETURNS, REWARD, DISCOUNT, Q, LEGAL),
    ),
    "packing.pack": (packing.pack, (LEGAL,)),
    "packing.unpack": (lambda packed: packing.unpack(packed, 3), (packing.pack(LEGAL),)),
    "off_policy.init": (partial(off_policy.init, optim.adam()), (PARAMS,)),
    "off_policy.update": (
        lambda learner, batch, hyper: off_policy.update(
            dqn.agent(NET), optim.adam(hyper.learning_rate), learner, examples.sample(batch), hyper
        ),
        (LEARNER, BATCH, HYPER),
    ),
    "dqn.q_learning": (
        partial(dqn.q_learning, NET.apply, losses.huber),
        (NET.init(KEY), NET.init(random.key(4)), BATCH, HYPER),
    ),
    "dqn.double_q_learning": (
        partial(dqn.double_q_learning, NET.apply, losses.huber),
        (NET.init(KEY), NET.init(random.key(4)), BATCH, HYPER),
    ),
    "off_policy.soft_copy": (off_policy.soft_copy, (LEARNER, torch.tensor(0.1))),
    "off_policy.hard_copy": (off_policy.hard_copy, (LEARNER,)),
    "td.q_learning_target": (td.q_learning_target, (REWARD, DISCOUNT, Q_T, LEGAL)),
    "td.double_q_learning_target": (td.double_q_learning_target, (REWARD, DISCOUNT, Q_T, Q, LEGAL)),
    "td.q_learning": (td.q_learning, (Q, ACTION, REWARD, DISCOUNT, Q_T, LEGAL)),
    "td.double_q_learning": (td.double_q_learning, (Q, ACTION, REWARD, DISCOUNT, Q_T, Q, LEGAL)),
    "action_gap.action_gap": (action_gap.action_gap, (Q, ACTION, LEGAL)),
    "action_gap.advantage_learning_target": (
        partial(action_gap.advantage_learning_target, alpha=0.3),
        (REWARD, DISCOUNT, Q, ACTION, Q_T, LEGAL, LEGAL),
    ),
    "action_gap.persistent_q_learning_target": (
        partial(action_gap.persistent_q_learning_target, alpha=0.3),
        (REWARD, DISCOUNT, ACTION, Q_T, LEGAL),
    ),
    "action_gap.persistent_advantage_learning_target": (
        partial(action_gap.persistent_advantage_learning_target, alpha=0.3),
        (REWARD, DISCOUNT, Q, ACTION, Q_T, LEGAL, LEGAL),
    ),
    "soft.value": (partial(soft.value, tau=0.3), (Q, LEGAL)),
    "soft.policy": (partial(soft.policy, tau=0.3), (Q, LEGAL)),
    "soft.log_policy": (lambda q, legal: torch.where(legal, soft.log_policy(q, legal, 0.3), 0.0), (Q, LEGAL)),
    "soft.q_learning_target": (partial(soft.q_learning_target, tau=0.3), (REWARD, DISCOUNT, Q_T, LEGAL)),
    "soft.munchausen_target": (soft.munchausen_target, (REWARD, DISCOUNT, Q, ACTION, Q_T, LEGAL, LEGAL)),
    "soft.conservative_loss": (soft.conservative_loss, (Q, ACTION, LEGAL)),
    "losses.squared": (losses.squared, (Q,)),
    "losses.huber": (losses.huber, (Q,)),
    "losses.smooth_l1": (losses.smooth_l1, (Q,)),
    "losses.cross_entropy": (losses.cross_entropy, (Q, Q_T.softmax(-1))),
    "losses.cross_entropy_of_labels": (losses.cross_entropy_of_labels, (Q, ACTION)),
    "losses.one_hot": (lambda labels: losses.one_hot(labels, 3, torch.float64), (ACTION,)),
    "losses.smoothed": (lambda p: losses.smoothed(p, 0.1), (Q.softmax(-1),)),
    "networks.mlp": with_network(NET, BATCH.obs),
    "networks.dueling_mlp": with_network(networks.dueling_mlp(2, (3, 4), 3), BATCH.obs),
    "networks.layer_norm_mlp": with_network(networks.layer_norm_mlp(2, (3, 4), 3), BATCH.obs),
    "networks.noisy_mlp": (
        lambda params: NOISY.apply(params, BATCH.obs.to(params["0.bias_mu"]), U.new_full((NOISY.noise,), 0.3)),
        (NOISY.init(KEY),),
    ),
    "networks.join": with_network(
        networks.join(networks.trunks.impala((2, 4, 3)), networks.heads.dueling(2, 3)), floats(12, 2, 2, 4, 3)
    ),
    "networks.quantile": (
        lambda params: IMPLICIT.apply(params, BATCH.obs.to(params["embedding.bias"]), U.double()),
        (IMPLICIT.init(KEY),),
    ),
    "networks.nature": with_network(networks.nature((1, 36, 36), 2), floats(12, 2, 1, 36, 36)),
    "networks.minatar": with_network(networks.minatar((2, 4, 3), 2), floats(12, 2, 2, 4, 3)),
    "networks.stream_mlp": with_network(networks.stream_mlp(2, (3,), 3), BATCH.obs),
    "networks.stream_minatar": with_network(networks.stream_minatar((2, 4, 3), 2), floats(12, 2, 2, 4, 3)),
    "networks.update_statistics": (networks.update_statistics, (networks.stream_mlp(2, (), 3).init(KEY), BATCH.obs[0])),
    "networks.from_module": with_network(
        networks.from_module(lambda: nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Tanh(), nn.Dropout())),
        BATCH.obs,
    ),
    "networks.from_module_with_dropout": (
        partial(DROPPING.apply, obs=BATCH.obs.double(), key=KEY),
        (tree.cast(DROPPING.init(KEY), torch.float64),),
    ),
    "networks.dropout": (lambda x: networks.dropout(x, 0.3, random.uniform(KEY, (4, 3))), (Q,)),
    **{f"optim.{name}": (updates_of(make), (GRADS, PARAMS)) for name, make in OPTIMIZERS.items()},
    "optim.obgd": (lambda trace, delta: optim.obgd(trace, delta, 0.5), (PARAMS, REWARD[0])),
    "optim.apply_updates": (optim.apply_updates, (PARAMS, GRADS)),
    "on_policy.permutations": (lambda bits: on_policy.permutations(bits, 6), (random.bits(KEY, (4, 3)),)),
    "populations.successive_halving": (lambda scores: populations.successive_halving(scores, 3), (REWARD,)),
    "populations.exploit": (lambda scores, u: populations.exploit(scores, u, 0.4), (REWARD, U[:, 0])),
    "populations.members_of": (lambda settings: populations.members_of(settings, 3), (ACTION,)),
    "exploration.uniform": (exploration.uniform, (LEGAL, U[:, 0])),
    "exploration.epsilon_greedy": (lambda q, *rest: exploration.epsilon_greedy(q, LEGAL, 0.5, *rest), (Q, U)),
    "random.split": (random.split, (KEY,)),
    "random.fold_in": (lambda key: random.fold_in(key, 7), (KEY,)),
    "random.bits": (lambda key: random.bits(key, (5,)), (KEY,)),
    "random.uniform": (lambda key: random.uniform(key, (5,), torch.float64), (KEY,)),
    "random.normal": (lambda key: random.normal(key, (5,), torch.float64), (KEY,)),
    "random.normal_from_uniform": (random.normal_from_uniform, (U,)),
    "random.randint": (lambda key: random.randint(key, (5,), -3, 9), (KEY,)),
    "random.unit": (lambda words: random.unit(words, torch.float64), (random.bits(KEY, (5,)),)),
    "random.index": (lambda words: random.index(words, 9), (random.bits(KEY, (5,)),)),
    "replay.transition": (
        replay.transition,
        (BATCH.obs, ACTION, Step(BATCH.obs, LEGAL, BATCH.obs, LEGAL, REWARD, LEGAL[:, 1], LEGAL[:, 2])),
    ),
    "prioritized.init": (lambda row: replay.prioritized.init(row, 5), (tree.index(BATCH, 0),)),
    "prioritized.add": (replay.prioritized.add, (WEIGHED, BATCH, LEGAL[:, 2], LEGAL[:, 1], HYPER.gamma)),
    "prioritized.sample": (replay.prioritized.sample, (WEIGHED, random.bits(KEY, (5,)), torch.tensor(1))),
    "prioritized.update": (replay.prioritized.update, (WEIGHED, torch.tensor([0, 3, 3, 1]), REWARD.abs())),
    "prioritized.size": (replay.prioritized.size, (WEIGHED, torch.tensor(1))),
    "ring.init": (lambda row: replay.ring.init(row, 5), (tree.index(BATCH, 0),)),
    "ring.add": (replay.ring.add, (FULL, BATCH, LEGAL[:, 2], LEGAL[:, 1], HYPER.gamma)),
    "ring.sample": (lambda full, bits: replay.ring.sample(full, bits, 0), (FULL, random.bits(KEY, (5,)))),
    "ring.size": (replay.ring.size, (FULL, torch.tensor(1))),
    "frames.init": (lambda example: frames.init(example, 2, 6), (SHOWN[0],)),
    "frames.add": (frames.add, (FILMED, SHOWN, SHOWN_NEXT, LEGAL[:, 2], LEGAL[:, 1])),
    "frames.stack": (frames.stack, (FILMED, AT_NEXT)),
    "frames.number": (frames.number, (FILMED, AT, ACTION, LEGAL[:, 1])),
    "frames.lost": (frames.lost, (FILM, FILMED)),
    "n_step.init": (lambda row: n_step.init(row, 2, 3), (tree.index(BATCH, 0),)),
    "n_step.add": (n_step.add, (RECENT, BATCH, LEGAL[:, 2], LEGAL[:, 1], HYPER.gamma)),
    "n_step.cut": (n_step.cut, (RECENT,)),
    "schedules.constant": (partial(schedules.constant, value=0.1), (STEP,)),
    "schedules.linear": (partial(schedules.linear, start=0.1, end=0.2, steps=9), (STEP,)),
    "schedules.polynomial": (partial(schedules.polynomial, start=0.1, steps=9, power=2.0), (STEP,)),
    "schedules.exponential": (partial(schedules.exponential, start=0.1, decay=0.9), (STEP,)),
    "schedules.staircase": (partial(schedules.staircase, start=0.1, decay=0.9, every=4), (STEP,)),
    "schedules.milestones": (partial(schedules.milestones, start=0.1, decay=0.9, milestones=(4, 8)), (STEP,)),
    "schedules.cosine": (partial(schedules.cosine, start=0.1, end=0.0, steps=20), (STEP,)),
    "schedules.cosine_restarts": (partial(schedules.cosine_restarts, start=0.1, end=0.0, steps=3, growth=2), (STEP,)),
    "schedules.one_cycle": (partial(schedules.one_cycle, peak=0.1, steps=20), (STEP,)),
    "schedules.warm_up": (
        partial(schedules.warm_up, schedule=partial(schedules.exponential, start=0.1, decay=0.9), steps=4),
        (STEP,),
    ),
    "schedules.sequence": (
        lambda step: schedules.sequence(
            step, [partial(schedules.cosine, start=0.1, end=0.0, steps=4), partial(schedules.constant, value=1)], [4]
        ),
        (STEP,),
    ),
    "td.expected_sarsa_target": (td.expected_sarsa_target, (REWARD, DISCOUNT, Q_T, Q.softmax(-1), LEGAL)),
    "td.expected_sarsa": (td.expected_sarsa, (Q, ACTION, REWARD, DISCOUNT, Q_T, Q.softmax(-1), LEGAL)),
    "returns.lambda_returns_of_episodes": (
        lambda v_t, *rest: returns.lambda_returns_of_episodes(*rest[:2], v_t, rest[2], 0.7),
        (Q_T, Q, floats(16, 4, 3), LEGAL),
    ),
    "returns.n_step_returns": (
        lambda v_t, *rest: returns.n_step_returns(*rest[:2], v_t, rest[2], 2),
        (Q_T, Q, floats(16, 4, 3), LEGAL),
    ),
    "returns.peng_q_lambda": (
        lambda *given: returns.peng_q_lambda(*given, 0.7),
        (REWARD, DISCOUNT, Q, LEGAL, LEGAL[:, 1]),
    ),
    "returns.watkins_q_lambda": (
        lambda *given: returns.watkins_q_lambda(*given, 0.7),
        (REWARD, DISCOUNT, Q, ACTION, LEGAL, LEGAL[:, 1]),
    ),
    "returns.off_policy_returns": (
        returns.off_policy_returns,
        (REWARD, DISCOUNT, Q, ACTION, Q_T.softmax(-1), U[:, 0], LEGAL, LEGAL[:, 1]),
    ),
    "returns.retrace": (
        lambda *given: returns.retrace(*given, 0.7),
        (REWARD, DISCOUNT, Q, ACTION, Q_T.softmax(-1), U[:, 0], LEGAL, LEGAL[:, 1]),
    ),
    "transforms.signed_hyperbolic": (transforms.signed_hyperbolic, (Q,)),
    "transforms.signed_parabolic": (transforms.signed_parabolic, (Q,)),
    "transforms.n_step_q_learning_target": (
        lambda *given: transforms.n_step_q_learning_target(*given, 2),
        (REWARD, DISCOUNT, Q, Q_T, LEGAL, LEGAL[:, 1]),
    ),
    "running.welford": (running.welford, (Q, DISCOUNT.abs().unsqueeze(-1).expand(4, 3), torch.tensor(5.0), Q_T)),
    "returns.lambda_returns": (returns.lambda_returns, (Q, Q_T, floats(16, 4, 3), torch.tensor(0.7))),
    "tree.map": (lambda a: tree.map(torch.square, a), (PARAMS,)),
    "tree.stack": (lambda a, b: tree.stack([a, b]), (PARAMS, GRADS)),
    "tree.index": (lambda a: tree.index(a, 0), (PARAMS,)),
    "tree.where": (tree.where, (torch.tensor([True, False, True]), PARAMS, GRADS)),
    "tree.cast": (lambda a: tree.cast(a, torch.float64), (PARAMS,)),
    "tree.clone": (tree.clone, (PARAMS,)),
    "tree.lerp": (lambda a, b: tree.lerp(a, b, 0.3), (PARAMS, GRADS)),
    "tree.norm": (tree.norm, (PARAMS,)),
    "training.epsilon": (partial(training.epsilon, random_steps=20), (HYPER, torch.tensor(70))),
    "training.cycle_keys": (lambda keys: training.cycle_keys(keys, 2, 3), (random.key([1, 2]),)),
}
"""Names that are not in the table, with the reason."""
ELSEWHERE = {
    "prioritized": {"buffer": "makes functions", "bounds": "compares", "Prioritized": ""},
    "packing": {"size": "counts", "wrap": "makes functions", "Packed": ""},
    "frames": {"capacity": "counts", "wrap": "makes functions", "Frames": "", "Stacked": ""},
    "n_step": {"wrap": "makes functions", "Recent": "", "NStep": ""},
    "ring": {
        "buffer": "makes functions",
        "bounds": "compares",
        "Ring": "",
        "transition": "is `replay.transition`",
    },
    "dqn": {"agent": "binds", "loss_output": "is part of the losses"},
    "off_policy": {"algorithm": "binds"},
    "on_policy": {"algorithm": "binds", "Rollout": ""},
    "populations": {
        **dict.fromkeys(("PopulationNoise", "Rung"), ""),
        **dict.fromkeys(("keep", "noise", "scores", "copy", "explore", "evolve"), "take all members at once"),
        "rungs": "counts",
    },
    "streaming": {"algorithm": "binds", "Newest": "", "RewardScale": ""},
    "networks": {
        "QuantileNetwork": "",
        "load": "looks at names, once",
        "starting_from": "makes a network of another",
        "to_module": "makes a module",
        "orthogonal": "makes a network of another",
        "sparse": "makes a network of another",
        "NetworkWithDropout": "",
        "NoisyNetwork": "",
        "Head": "",
        "Trunk": "",
        "with_noise": "makes a network of another",
    },
    "distributional": {"atoms": "looks at numbers, once", "evenly_spaced": "looks at numbers"},
    "quantile": {"midpoints": "takes no tensors"},
    "transforms": {"transformed": "makes a function of another"},
    "random": {"key": "looks at its seeds"},
    "replay": {"Replay": ""},
    "tree": {
        **dict.fromkeys(("leaves", "structure", "paths", "equal", "nbytes"), "returns no tensors"),
        **dict.fromkeys(("from_numpy", "to_numpy"), "share memory, so that there is nothing to compute"),
        "separate": "looks at memory",
        "to": "does not compute",
    },
    "training": {
        **dict.fromkeys(("MetricsSnapshot", "Program", "Metrics", "TrainState", "Noise", "Functions", "Report"), ""),
        **dict.fromkeys(("Cadence", "Clock", "Config", "Interaction", "Stopped", "UpdateNoise"), ""),
        **dict.fromkeys(
            (
                *("init", "noise", "draw", "draw_numbered", "collect", "observe", "learn", "cycle", "sync", "run"),
                *("act", "interact", "interactions", "update", "updates", "example_update", "check_cycle"),
                *("count_episodes", "count_update", "random_steps", "snapshot"),
            ),
            "a whole program's laws",
        ),
        **dict.fromkeys(("bits_per_cycle", "cadence", "cycle_numbers"), "counts"),
        **dict.fromkeys(("policy", "scan", "vmapped", "parametrized"), "make functions"),
        "check_program": "checks",
        "hyper": "makes tensors of numbers",
    },
}
MODULES = (
    "action_gap", "soft", "transforms",
    "td",
    "masking", "distributional", "dqn", "losses", "networks", "optim", "exploration", "random", "replay", "frames",
    "n_step", "on_policy", "packing", "populations", "prioritized", "quantile", "returns", "ring", "running",
    "schedules", "streaming", "tree", "training",
)  # fmt: skip
EACH = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.mark.parametrize("module", MODULES)
def test_the_table_is_complete(module):
    expected = {name for name, _ in public(dict(modules())[module])} - set(ELSEWHERE.get(module, {}))
    assert {name.split(".")[1] for name in FUNCTIONS if name.startswith(module + ".")} == expected


def tensors(x):
    return [leaf for leaf in tree.leaves(x) if isinstance(leaf, Tensor)]


def is_float(x):
    return isinstance(x, Tensor) and x.is_floating_point()


def filled(x, leaves):
    """Replace each None in a tree by the next leaf of an iterator."""
    if x is None:
        return next(leaves)
    if isinstance(x, dict):
        return {name: filled(child, leaves) for name, child in x.items()}
    children = [filled(child, leaves) for child in x]
    return type(x)(*children) if hasattr(x, "_fields") else type(x)(children)


def vectors(args):
    """Make functions `pack(args) -> vectors` and `unpack(*vectors) -> args`.

    The floats of the first argument become one vector, and all other leaves of each dtype one vector each.

    Dynamo traces torch's bookkeeping of every single argument of vmap and grad, which would take half of its time.
    """
    leaves, first, empty = tree.leaves(args), len(tree.leaves(args[0])), tree.map(lambda _: None, args)
    groups = {}
    for i, x in enumerate(leaves):
        groups.setdefault((not (i < first and is_float(x)), str(x.dtype)), []).append(i)
    groups = [groups[kind] for kind in sorted(groups)]
    sizes = [[leaves[i].numel() for i in group] for group in groups]
    order = sorted((i, j) for j, i in enumerate(itertools.chain(*groups)))
    shapes = [(j, leaves[i].shape) for i, j in order]

    def pack(args):
        leaves = tree.leaves(args)
        return [torch.cat([leaves[i].flatten() for i in group]) for group in groups]

    def unpack(*vectors):
        parts = [part for x, size in zip(vectors, sizes, strict=True) for part in x.split(size)]
        return filled(empty, iter([parts[j].view(shape) for j, shape in shapes]))

    return pack, unpack


@EACH
def test_functions_are_pure(name):
    f, args = FUNCTIONS[name]
    laws.pure(f, *args)


@EACH
def test_float64_stays_float64(name):
    f, args = FUNCTIONS[name]
    result = f(*tree.map(lambda x: x.double() if x.is_floating_point() else x, args))
    assert {x.dtype for x in tensors(result) if x.is_floating_point()} <= {torch.float64}


def is_smooth(f, args):
    return any(map(is_float, tree.leaves(args[0]))) and any(map(is_float, tree.leaves(f(*args))))


@pytest.mark.parametrize("module", sorted({name.split(".")[0] for name in FUNCTIONS}))
def test_compile_of_vmap_of_grad(module):
    """Compile one graph of a module's functions over two different seeds; without grad if not smooth.

    Each function has arguments of its own, so the gradient of the sum holds the gradient of each. Starting the compiler
    for every single function would take half of the time.
    """
    doubled = {
        name: (f, tree.map(lambda x: x.double() if is_float(x) else x, args))
        for name, (f, args) in FUNCTIONS.items()
        if name.split(".")[0] == module
    }
    for smooth in (True, False):
        chosen = {name: (f, args) for name, (f, args) in doubled.items() if is_smooth(f, args) == smooth}
        if chosen:
            assert_compiled_equals_seeds_alone(chosen, smooth)


def assert_compiled_equals_seeds_alone(functions, smooth):
    args = (
        {name: args[0] for name, (_, args) in functions.items()},
        {name: args[1:] for name, (_, args) in functions.items()},
    )
    other = tree.map(lambda x: x * 0.875 if is_float(x) else x, args)
    pack, unpack = vectors(args)

    def answers(*given):
        first, rest = unpack(*given)
        return {name: f(first[name], *rest[name]) for name, (f, _) in functions.items()}

    def total(*given):
        """Return a weighted sum of all floats that the functions return."""
        return sum(
            (x * (1 + i)).sum()
            for answer in answers(*given).values()
            for i, x in enumerate([x for x in tree.leaves(answer) if is_float(x)])
        )

    g, calls = grad(total) if smooth else answers, [pack(args), pack(other)]
    lanes = tree.stack(calls)
    laws.compiled(vmap(g), *lanes, again=[], atol=1e-12, rtol=1e-12)
    asserts.assert_trees_close(tree.stack([g(*call) for call in calls]), vmap(g)(*lanes), 1e-12, 1e-12)


def test_most_are_differentiated():
    plain = [n for n, (f, args) in FUNCTIONS.items() if not any(map(is_float, tree.leaves(args[0])))]
    assert len(plain) < 25
    assert not {"off_policy.update", "off_policy.soft_copy", "ring.add", "td.q_learning"} & set(plain)
