"""Bad input for every public function: the error that it raises, and that nothing has changed.

A row has the function, its arguments, the type of the exception and its message, which names the argument, what was
expected and what was received; `…` is any text. Every public function has a row, or a reason in WITHOUT. Bad input on
the command line has a separate table below.
"""

import dataclasses
import importlib
import inspect
import json
import math
import re
import shlex
import shutil
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from test_public import NAMES
from torch import nn

import fdqn
from fdqn import agents, check, cli, envs, networks, optim, random, replay, training, tree
from fdqn.agents import dqn
from fdqn.experiment import acting, arms, assemble, halving_plan, results, run_folder, shard_plan, sweep_plan
from fdqn.experiment.settings import Settings, Sweep, make, to_json
from fdqn.experiment.sweep_plan import Draw
from fdqn.experiment.tracking import Choice
from fdqn.ops import losses, schedules, transforms
from fdqn.replay import frames, n_step
from fdqn.report import plots, video
from fdqn.storage import checkpoint
from fdqn.testing import asserts, examples
from fdqn.training import off_policy
from fdqn.types import HostEnv, LossOutput, Transition

ROOT = Path(fdqn.__file__).parent


class Given(NamedTuple):
    """Arguments of a call."""

    args: tuple
    named: dict[str, Any]


def given(*args, **named):
    return Given(args, named)


@dataclasses.dataclass
class Later:
    """An argument that is made in the place where the row runs."""

    make: Callable[[], Any]


# What is right, to be spoiled in one place a row.

KEY = random.key(3)


class Bytes(gymnasium.Env):
    """Shows what catch shows, in another dtype."""

    observation_space, action_space = gymnasium.spaces.Box(0, 255, (10, 5), np.uint8), gymnasium.spaces.Discrete(3)


def floats(number, *shape):
    return random.normal(random.fold_in(KEY, number), shape)


def sames(x):
    return x


Q, Q_T, REWARD, DISCOUNT = floats(1, 4, 3), floats(2, 4, 3), floats(3, 4), floats(4, 4)
LEGAL, STUCK = torch.ones(4, 3, dtype=torch.bool), torch.zeros(4, 3, dtype=torch.bool)
ACTION, U = torch.tensor([0, 1, 1, 2]), random.uniform(random.fold_in(KEY, 5), (4, 2))
NETWORK, WIDER = networks.mlp(2, (3,), 3), networks.mlp(2, (5,), 3)
PARAMS, OTHERS = NETWORK.init(KEY), WIDER.init(KEY)
LANES_OF_PARAMS = NETWORK.init(random.key([0, 1]))
META = {name: x.to("meta") for name, x in PARAMS.items()}
OBS = floats(10, 4, 2)
SIZES = "{'0.weight': [3, 2], '0.bias': [3], '2.weight': [3, 3], '2.bias': [3]}"
BATCH = Transition(OBS, ACTION, REWARD, torch.ones(4), OBS, LEGAL)
ROW, EMPTY = tree.index(BATCH, 0), replay.ring.init(tree.index(BATCH, 0), 3)
FULL, _ = replay.ring.add(EMPTY, tree.index(BATCH, slice(2)), LEGAL[:2, 0], None)
UNRANKED = replay.prioritized.init(ROW, 3)
RANKED, _ = replay.prioritized.add(UNRANKED, tree.index(BATCH, slice(2)), LEGAL[:2, 0], None)
RING, RECENT = replay.ring.buffer(8), n_step.init(ROW, 4, 2)
SHOWN, TWO, GAMMA = frames.init(torch.zeros(3, 2), 2, 9), torch.ones(2, dtype=torch.bool), torch.tensor(0.9)
LANES_OF_HYPER = training.hyper(4)
HYPER = tree.index(LANES_OF_HYPER, 0)
LEARNER = off_policy.init(optim.adam(), PARAMS)
AGENT = dqn.agent(NETWORK)
SAMPLE = examples.sample(BATCH)
BUFFER = replay.ring.buffer(8)


def with_loss(output):
    """Return an agent whose loss returns `output`."""
    return AGENT._replace(loss=lambda *given: output)


STEP = torch.tensor([1.5, 6.5])
CONSTANT = partial(schedules.constant, value=1.0)
ONE_MODULE = nn.Linear(2, 3)
MODULE = networks.from_module(lambda: nn.Linear(2, 3))
DROPPING = networks.from_module_with_dropout(lambda: nn.Sequential(nn.Linear(2, 3), nn.Dropout()))
CARTPOLE, CATCH = envs.make("cartpole"), envs.make("catch")
POLES, _ = CARTPOLE.reset(floats(12, 3, 4).sigmoid())
BALLS, _ = CATCH.reset(floats(13, 3, 1).sigmoid())
NOISE_4, PUSH = floats(14, 3, 4).sigmoid(), torch.tensor([0, 1, 0])
PROGRAM, TWO_ENVS = examples.program(), examples.program(num_envs=2)
HYPERS, KEYS = examples.seeds(2)
STATE = training.init(PROGRAM, HYPERS, KEYS)
LANE = tree.index(STATE, 0)
NOISES = training.noise(PROGRAM, KEYS, 0, 1)
NOISE = tree.index(tree.index(NOISES, 0), 0)
OTHER_NOISE = tree.index(tree.index(training.noise(examples.program(num_envs=2, batch_size=4), KEYS, 0, 1), 0), 0)
FUNCTIONS = training.vmapped(PROGRAM)
TRAINED = STATE.learner.params
SETTINGS = Settings(seeds=2, steps=300, learning_starts=100, batch_size=8, hidden=(8,), compile=False)
HUGE = dataclasses.replace(SETTINGS, steps=10**15, capacity=10**15)
EVOLVING = {"varied": ({"gamma": 0.9}, {"gamma": 1.0}), "bounds": {"gamma": (0.9, 1.0)}, "pbt_every": 2000}
GAMMAS = {"gamma": [0.9, 0.95, 0.99, 1.0]}
ARM = arms.Arm("a", np.arange(2.0), None, "return", "cartpole", 100)
POINTS = plots.Curve(np.arange(3), np.zeros((2, 2)))
SELECTED = SimpleNamespace(frequency=np.ones(2), members=np.ones(2, bool))
SCENE = video.Scene([np.zeros((2, 2, 3), np.uint8)], np.zeros(1), np.ones(1, bool))
FILM = video.Recording([SCENE], 1)
GRADS = {name: torch.ones_like(x) for name, x in PARAMS.items()}
ADAM, SGD = optim.adam(), optim.sgd()


SUPPORT, RETURNS = torch.linspace(-1.0, 1.0, 3), torch.full((4, 3, 3), 1 / 3)
NOISY = networks.noisy_mlp(2, (3,), 3)
TRUNK, NOISY_HEAD = networks.trunks.mlp(2, (3,)), networks.heads.noisy_dueling(3, 2)
IMPLICIT = networks.quantile(TRUNK, networks.heads.linear(3))
NOISY_AGENT = agents.dqn.agent(NOISY)
STREAM = training.Config(1, 1, 1, 1, 10, learning_starts=0, target_period=0)
ROLLOUTS = training.Config(3, 5, 6, 5, 15, learning_starts=0, target_period=0)
STREAM_PARAMS = networks.stream_mlp(2, (3,), 3).init(KEY)
C51_PARAMS = networks.mlp(2, (), 7).init(KEY)
C51 = agents.c51.agent(networks.mlp(2, (), 7), (-1, 1, 3))
QR_DQN = agents.qr_dqn.agent(networks.mlp(2, (), 7), 3)
IQN = agents.iqn.agent(IMPLICIT, False, 1, 3, 2)


def run_of(*args, **named):
    """Return the first report of a run."""
    return next(training.run(*args, **named))


def locked(*args):
    with checkpoint.lock(*args):
        pass


def network_of(factory):
    return networks.from_module(factory).apply(dict(factory().named_parameters()), OBS)


def saved(**changes):
    """Return the values of a settings file, with changes."""
    return {**to_json(Settings()), **changes}


# Functions that are parts of what a public function returns, which rows call by these names.
CALLED = {
    "acting.greedy": acting.greedy(CARTPOLE.spec, PROGRAM.network, tree.index(TRAINED, 0)),
    "networks.mlp.init": NETWORK.init,
    "networks.mlp.apply": NETWORK.apply,
    "networks.nature.apply": networks.nature((1, 36, 36), 2).apply,
    "networks.dueling_mlp.apply": networks.dueling_mlp(2, (3,), 3).apply,
    "networks.layer_norm_mlp.apply": networks.layer_norm_mlp(2, (3,), 3).apply,
    "networks.noisy_mlp.apply": NOISY.apply,
    "networks.stream_mlp.apply": networks.stream_mlp(2, (3,), 3).apply,
    "networks.with_noise.apply": networks.with_noise(NETWORK).apply,
    "networks.join.apply": networks.join(TRUNK, NOISY_HEAD).apply,
    "networks.quantile.apply": IMPLICIT.apply,
    "trunks.mlp.apply": TRUNK.apply,
    "c51.agent.values": C51.values,
    "c51.agent.loss": C51.loss,
    "qr_dqn.agent.values": QR_DQN.values,
    "iqn.agent.values": IQN.values,
    "iqn.agent.loss": IQN.loss,
    "dqn.agent.loss": NOISY_AGENT.loss,
    "networks.from_module.init": MODULE.init,
    "networks.from_module.apply": MODULE.apply,
    "networks.from_module.drawing": network_of,
    "networks.from_module_with_dropout.apply": DROPPING.apply,
    "optim.adam.init": ADAM.init,
    "optim.adam.update": ADAM.update,
    "optim.sgd.update": SGD.update,
    "optim.clip_by_global_norm.update": optim.clip_by_global_norm(1.0).update,
    "optim.clip_by_value.update": optim.clip_by_value(1.0).update,
    "optim.add_decayed_weights.update": optim.add_decayed_weights(1.0).update,
    "optim.frozen.update": optim.frozen().update,
    "optim.adam.scheduled": optim.adam(lambda count: "fast").update,
    "optim.chain.update": optim.chain(adam=ADAM).update,
    "optim.masked.init": optim.masked(ADAM, lambda name: False).init,
    "optim.grouped.init": optim.grouped(lambda name: "all", weight=ADAM).init,
    "envs.make.reset": CARTPOLE.reset,
    "envs.make.step": CARTPOLE.step,
    "transforms.transformed.of_transformed": transforms.transformed(sames, 2),
    "training.run": run_of,
    "training.scan.scanned": training.scan(sames),
    "training.vmapped.collect": FUNCTIONS.collect,
    "compile.donate.donated": fdqn.compile.donate(lambda state: {**state, "a": state["a"].double()}),
    "compile.donate.same": fdqn.compile.donate(sames),
    "compile.scan.run": fdqn.compile.scan(lambda state, x: state),
    "checkpoint.lock": locked,
    "testing.variants.variants.decorated": fdqn.testing.variants.variants("eager"),
}


def with_agent(**parts):
    """Return the program with other parts of its agent."""
    return examples.program(agent=PROGRAM.algorithm.agent._replace(**parts))


def with_fewer_rows():
    """Return the program with a buffer that samples five rows for any batch size."""
    config, rows = PROGRAM.config, replay.ring.buffer(40)
    fewer = rows._replace(sample=lambda state, bits, oldest: rows.sample(state, bits[:5], oldest))
    algorithm = off_policy.algorithm(config, PROGRAM.algorithm.agent, fewer, assemble.clipped(assemble.adam))
    return PROGRAM._replace(algorithm=algorithm)


ROWS = [
    # bits
    ("packing.pack", given(torch.zeros(3)), TypeError, "flags: expected …, got …"),
    ("packing.pack", given(torch.tensor(True)), ValueError, "flags: expected shape …, got …"),
    ("packing.unpack", given(torch.zeros(1, dtype=torch.uint8), 9), ValueError,
     "packed: expected shape …, got …"),
    # agents and distributions
    ("distributional.project", given(SUPPORT, RETURNS, REWARD, DISCOUNT), ValueError,
     "reward: expected shape [...] with ... = [4, 3], got [4]"),
    ("distributional.project", given(SUPPORT[:2], RETURNS[:, 0], REWARD, DISCOUNT), ValueError,
     "probabilities: expected shape [... N] with N = 2, got [4, 3]"),
    ("distributional.project", given(SUPPORT.long(), RETURNS[:, 0], REWARD, DISCOUNT), TypeError,
     "support: expected a floating-point dtype, got torch.int64"),
    ("distributional.mean", given(SUPPORT, ACTION), ValueError,
     "probabilities: expected shape [... N] with N = 3, got [4]"),
    ("distributional.mean", given(0.5, RETURNS), TypeError, "support: expected a tensor [N], got float"),
    ("distributional.pick", given(RETURNS, ACTION.float()), TypeError,
     "action: expected an integer dtype, got torch.float32"),
    ("distributional.pick", given(RETURNS, ACTION + 1), IndexError, "action[3]: expected a number from 0 to 2, got 3"),
    ("distributional.q_learning_target", given(SUPPORT, REWARD, DISCOUNT, RETURNS, Q, LEGAL[:, :2]), ValueError,
     "legal_t: expected shape [... A] with A = 3, got [4, 2]"),
    ("distributional.q_learning_target", given(SUPPORT, REWARD, DISCOUNT, RETURNS, Q, Q), TypeError,
     "legal_t: expected torch.bool, got torch.float32"),
    ("distributional.atoms", given((-1, 1)), TypeError,
     "support: expected a tensor [N] or (low, high, N), got (-1, 1)"),
    ("distributional.atoms", given(("low", 1, 3)), TypeError,
     "support: expected a tensor [N] or (low, high, N), got ('low', 1, 3)"),
    ("distributional.atoms", given((-1, 1, 1)), ValueError, "support: expected at least 2 atoms, got 1"),
    ("distributional.atoms", given((-1, 1, True)), TypeError,
     "support: expected a tensor [N] or (low, high, N), got (-1, 1, True)"),
    ("c51.agent", given(NETWORK, [0.0, 1.0, 2.0]), TypeError,
     "support: expected (low, high, N) with an integer N, got [0.0, 1.0, 2.0]; to list the atoms, pass a tensor"),
    ("distributional.atoms", given(torch.zeros(1)), ValueError, "support: expected at least 2 atoms, got 1"),
    ("distributional.atoms", given(torch.zeros(3, 1)), ValueError, "support: expected shape [N], got [3, 1]"),
    ("distributional.atoms", given(torch.arange(3)), TypeError,
     "support: expected a floating-point dtype, got torch.int64"),
    ("c51.agent", given(NETWORK, (1, -1, 3)), ValueError,
     "support: expected low below high, got 1 and -1"),
    ("c51.agent", given(NETWORK, (2, 2, 3)), ValueError, "support: expected low below high, got 2 and 2"),
    ("distributional.evenly_spaced", given((0.0, math.inf, 3)), ValueError,
     "support: expected finite numbers, got [0.0, inf]"),
    ("distributional.evenly_spaced", given((1.0, 1.0 + 2e-16, 5)), ValueError,
     "support: expected increasing numbers, got 5 from 1.0 to 1.0000000000000002; use fewer"),
    ("c51.agent", given(NETWORK, torch.tensor([1.0, 0.0])), ValueError,
     "support: expected increasing numbers, got [1.0, 0.0]; sort them"),
    ("c51.agent", given(NETWORK, (-1, float("inf"), 3)), ValueError,
     "support: expected finite numbers, got […]"),
    ("c51.agent", given(NETWORK, double="no"), TypeError, "double: expected bool, got str"),
    ("c51.agent", given(NETWORK.apply), TypeError, "network: expected Network or NoisyNetwork, got partial"),
    ("c51.agent.values", given(C51_PARAMS, OBS, ()), ValueError,
     "network: expected a multiple of 3 outputs, one for each action and atom, got 7; make it with actions * 3 …"),
    ("c51.agent.loss", given(C51_PARAMS, C51_PARAMS, BATCH, HYPER, torch.zeros(2, 5)), TypeError,
     "noise: expected () for a network without noise, got Tensor"),
    ("dqn.agent.loss", given(NOISY.init(KEY), NOISY.init(KEY), BATCH, HYPER, torch.zeros(2, 11)), ValueError,
     "noise: expected shape [3 K], got [2, 11]"),
    ("quantile.midpoints", given(0), ValueError, "quantiles: expected at least 1, got 0"),
    ("quantile.midpoints", given(3, torch.int64), TypeError,
     "dtype: expected a floating-point dtype, got torch.int64"),
    ("quantile.regression_loss", given(Q, Q[:, :2], RETURNS[:, 0]), ValueError,
     "fractions: expected shape [... N] with N = 3, got [4, 2]"),
    ("quantile.regression_loss", given(ACTION, REWARD, REWARD), TypeError,
     "z_tm1: expected a floating-point dtype, got torch.int64"),
    ("quantile.regression_loss", given(REWARD, REWARD, REWARD, -1), ValueError, "kappa: expected at least 0, got -1"),
    ("quantile.q_learning_target", given(REWARD, DISCOUNT, RETURNS, Q, Q), TypeError,
     "legal_t: expected torch.bool, got torch.float32"),
    ("quantile.q_learning_target", given(REWARD, DISCOUNT, Q, Q, LEGAL), ValueError,
     "z_t: expected shape [... A M] with ... = [4], got [4, 3]"),
    ("munchausen.agent", given(AGENT), TypeError, "network: expected Network or NoisyNetwork, got Agent"),
    ("munchausen.agent", given(NETWORK, 1.5), ValueError, "alpha: expected a number from 0 to 1, got 1.5"),
    ("munchausen.agent", given(NETWORK, -0.5), ValueError, "alpha: expected at least 0, got -0.5"),
    ("munchausen.agent", given(NETWORK, tau=0), ValueError,
     "tau: expected a number above 0, got 0; without a temperature use dqn.agent"),
    ("munchausen.agent", given(NETWORK, tau="low"), TypeError,
     "tau: expected a number or a tensor of floats, got 'low'"),
    ("munchausen.agent", given(NETWORK, clip=1.0), ValueError, "clip: expected at most 0, got 1.0"),
    ("munchausen.agent", given(NETWORK, clip=None), TypeError, "clip: expected a number, got None"),
    ("munchausen.agent", given(NETWORK, loss="mse"), TypeError, "loss: expected a function, got str"),
    ("qr_dqn.agent", given(AGENT), TypeError, "network: expected Network or NoisyNetwork, got Agent"),
    ("qr_dqn.agent", given(NETWORK, 0), ValueError, "quantiles: expected at least 1, got 0"),
    ("qr_dqn.agent", given(NETWORK, 2, kappa=-0.1), ValueError, "kappa: expected at least 0, got -0.1"),
    ("qr_dqn.agent", given(NETWORK, 2, "yes"), TypeError, "double: expected bool, got str"),
    ("qr_dqn.agent.values", given(C51_PARAMS, OBS, ()), ValueError,
     "network: expected a multiple of 3 outputs, one for each action and quantile, got 7; make it with actions * 3 …"),
    ("iqn.agent", given(NETWORK), TypeError, "network: expected QuantileNetwork, got Network"),
    *[("iqn.agent", given(IMPLICIT, **{name: 0}), ValueError, f"{name}: expected at least 1, got 0")
      for name in ("fractions", "target_fractions", "acting_fractions")],
    ("iqn.agent", given(IMPLICIT, double=1), TypeError, "double: expected bool, got int"),
    ("iqn.agent", given(IMPLICIT, kappa=-1), ValueError, "kappa: expected at least 0, got -1"),
    ("iqn.agent.values", given(PARAMS, OBS, torch.zeros(3)), ValueError, "noise: expected shape [8], got [3]"),
    ("iqn.agent.loss", given(PARAMS, PARAMS, BATCH, HYPER, torch.zeros(3, 8)), ValueError,
     "noise: expected shape [3 12], got [3, 8]"),
    ("on_policy.algorithm", given(ROLLOUTS, NETWORK, assemble.adam), TypeError, "agent: expected Agent, got Network"),
    ("on_policy.algorithm", given({}, AGENT, assemble.adam), TypeError, "config: expected Config, got dict"),
    ("on_policy.algorithm", given(ROLLOUTS, AGENT, ADAM), TypeError, "optimizer: expected a function, got Optimizer"),
    ("on_policy.algorithm", given(ROLLOUTS, AGENT, assemble.adam, 1.5), ValueError,
     "lambda_: expected a number from 0 to 1, got 1.5"),
    *[("on_policy.algorithm", given(dataclasses.replace(ROLLOUTS, **{name: value}), AGENT, assemble.adam), ValueError,
       f"{name}: expected {expected}, got {value}")
      for name, value, expected in (
          ("batch_size", 4, "a divisor of num_envs * steps_per_cycle = 15"),
          ("updates_per_cycle", 4, "whole epochs, a multiple of 3 minibatches"),
          ("target_period", 6, "0, as there is no target network"),
          ("learning_starts", 9, "0, as every training iteration learns from its own steps"),
          ("n_step", 3, "1, as returns span the rollout"))],
    ("on_policy.permutations", given(torch.zeros((3, 5), dtype=torch.int64), 7), ValueError,
     "bits: expected a multiple of 7 of them, got 15"),
    ("on_policy.permutations", given(torch.zeros(5, dtype=torch.int64), 5), ValueError,
     "bits: expected shape [... n B], got [5]"),
    ("on_policy.permutations", given(Q, 3), TypeError, "bits: expected an integer dtype, got torch.float32"),
    ("streaming.algorithm", given(STREAM, AGENT), TypeError, "network: expected Network or NoisyNetwork, got Agent"),
    ("streaming.algorithm", given({}, NETWORK), TypeError, "config: expected Config, got dict"),
    ("streaming.algorithm", given(STREAM, NOISY), ValueError,
     "network: expected one without noise, got one that takes 11 uniforms; Stream Q explores with epsilon"),
    ("streaming.algorithm", given(STREAM, NETWORK, -0.1), ValueError, "lambda_: expected at least 0, got -0.1"),
    ("streaming.algorithm", given(STREAM, NETWORK, 0.8, "2"), TypeError,
     "kappa: expected a number or a tensor of floats, got '2'"),
    *[("streaming.algorithm", given(dataclasses.replace(STREAM, **{name: value, **more}), NETWORK), ValueError,
       f"{name}: expected {expected}, got {value}")
      for name, value, expected, more in (
          ("num_envs", 2, "1 with Stream Q, as a trace follows one environment", {}),
          ("steps_per_cycle", 2, "1 with Stream Q, as an update follows every step", {}),
          ("updates_per_cycle", 2, "1 with Stream Q, as a transition is used once", {}),
          ("batch_size", 2, "1 with Stream Q, as there is no replay", {}),
          ("learning_starts", 9, "0 with Stream Q, as learning starts with the first step", {}),
          ("target_period", 6, "0 with Stream Q, as there is no target network", {}),
          ("n_step", 2, "1 with Stream Q, as eligibility traces span the episode", {"learning_starts": 1}))],
    ("optim.obgd", given([GRADS], torch.tensor(1.0), 1.0), TypeError, "trace: expected dict, got list"),
    ("optim.obgd", given(GRADS, torch.ones(1), 1.0), ValueError, "delta: expected shape [], got [1]"),
    ("optim.obgd", given(GRADS, torch.tensor(1), 1.0), TypeError,
     "delta: expected a floating-point dtype, got torch.int64"),
    ("optim.obgd", given(GRADS, torch.tensor(1.0), -1.0), ValueError, "learning_rate: expected at least 0, got -1.0"),
    ("running.welford", given(Q, Q, torch.tensor(1.0), Q[0]), ValueError,
     "x: expected shape [...] with ... = [4, 3], got [3]"),
    ("running.welford", given(Q, Q, torch.tensor(1), Q), TypeError,
     "count: expected a floating-point dtype, got torch.int64"),
    ("pqn.agent", given(AGENT), TypeError, "network: expected Network or NoisyNetwork, got Agent"),
    ("pqn.agent", given(NETWORK, loss="mse"), TypeError, "loss: expected a function, got str"),
    ("returns.lambda_returns", given(REWARD, DISCOUNT[:3], REWARD, 0.9), ValueError,
     "discount_t: expected shape [...] with ... = [4], got [3]"),
    ("returns.lambda_returns", given(REWARD, ACTION, REWARD, 0.9), TypeError,
     "discount_t: expected a floating-point dtype, got torch.int64"),
    ("returns.lambda_returns", given(REWARD, DISCOUNT, REWARD, 1.1), ValueError,
     "lambda_: expected a number from 0 to 1, got 1.1"),
    ("returns.lambda_returns", given(REWARD, DISCOUNT, REWARD, REWARD[:2]), ValueError,
     "lambda_: expected shape [...] with ... = [4], got [2]"),
    ("returns.lambda_returns", given(*(torch.zeros(0),) * 3, 0.9), ValueError,
     "r_t: expected at least one step, shape [T, ...], got [0]"),
    ("agents.check_agent", given(AGENT.values, PARAMS, BATCH, HYPER), TypeError, "agent: expected Agent, got partial"),
    ("agents.check_agent", given(AGENT._replace(init=None), PARAMS, BATCH, HYPER), TypeError,
     "agent.init: expected a function, got NoneType"),
    ("agents.check_agent", given(AGENT._replace(needs_legal=None), PARAMS, BATCH, HYPER), TypeError,
     "agent.needs_legal: expected bool, got NoneType"),
    ("agents.check_agent", given(AGENT._replace(noise=lambda rows: ()), PARAMS, BATCH, HYPER), TypeError,
     "agent.noise: expected NoiseShapes, got tuple"),
    ("agents.check_agent", given(AGENT._replace(values=lambda *given: Q[:, :2]), PARAMS, BATCH, HYPER), ValueError,
     "agent.values: expected shape [4 3], got [4, 2]"),
    ("agents.check_agent", given(AGENT._replace(loss=lambda *given: Q), PARAMS, BATCH, HYPER), TypeError,
     "agent.loss: expected LossOutput, got Tensor"),
    ("agents.check_loss_output", given(LossOutput(REWARD, REWARD, REWARD.mean()), 4), ValueError,
     "agent.loss.priority: expected shape [4], got []"),
    ("agents.check_loss_output", given(LossOutput(REWARD, ACTION, REWARD), 4), TypeError,
     "agent.loss.q: expected a floating-point dtype, got torch.int64"),
    ("agents.each_pass", given(torch.zeros(2, 5), 3), ValueError, "noise: expected shape [3 K], got [2, 5]"),
    # actions and policies
    ("masking.pick", given(Q.numpy(), ACTION), TypeError, "q: expected a tensor [... A], got ndarray"),
    ("masking.pick", given(Q, ACTION.float()), TypeError, "action: expected an integer dtype, got torch.float32"),
    ("masking.pick", given(Q, ACTION.unsqueeze(-1)), ValueError,
     "action: expected shape [...] with ... = [4], got [4, 1]"),
    ("masking.pick", given(ACTION, Q), ValueError, "action: expected shape […], got […]"),
    ("masking.pick", given(Q, ACTION + 3), IndexError, "action[0]: expected a number from 0 to 2, got 3"),
    ("masking.pick", given(Q.to("meta"), ACTION), ValueError,
     "action: expected it on the device of q, meta, got cpu"),
    ("masking.greedy", given(Q, LEGAL.float()), TypeError, "legal: expected torch.bool, got torch.float32"),
    ("masking.greedy", given(LEGAL, Q), TypeError, "legal: expected torch.bool, got torch.float32"),
    ("masking.best", given(Q.long(), LEGAL), TypeError, "q: expected a floating-point dtype, got torch.int64"),
    ("masking.best", given(Q, LEGAL[:, :2]), ValueError, "legal: expected shape [... A] with A = 3, got [4, 2]"),
    ("masking.count", given(ACTION), TypeError, "flags: expected torch.bool, got torch.int64"),
    ("masking.count", given([True, False]), TypeError, "flags: expected a tensor, got list"),
    ("exploration.uniform", given(LEGAL, U), ValueError, "u: expected shape [...] with ... = [4], got [4, 2]"),
    ("exploration.uniform", given(LEGAL, ACTION), TypeError, "u: expected a floating-point dtype, got torch.int64"),
    ("exploration.uniform", given(LEGAL, U[:, 0] + 1), ValueError, "u[0]: expected numbers in [0, 1), got …"),
    ("exploration.uniform", given(LEGAL, U[:, 0].half()), TypeError,
     "u: expected torch.float32 or torch.float64, got torch.float16"),
    ("exploration.epsilon_greedy", given(Q, LEGAL, 0.1, U.bfloat16()), TypeError,
     "u: expected torch.float32 or torch.float64, got torch.bfloat16"),
    ("exploration.epsilon_greedy", given(Q, LEGAL, 0.1, U - 1), ValueError,
     "u[0, 0]: expected numbers in [0, 1), got …"),
    ("exploration.uniform", given(STUCK, U[:, 0]), ValueError,
     "legal[0]: expected at least one legal action, got none"),
    ("exploration.epsilon_greedy", given(Q, LEGAL, "0.1", U), TypeError,
     "epsilon: expected a number or a tensor of floats, got '0.1'"),
    ("exploration.epsilon_greedy", given(Q, LEGAL, 1.5, U), ValueError,
     "epsilon: expected a number from 0 to 1, got 1.5"),
    ("exploration.epsilon_greedy", given(Q, LEGAL, float("nan"), U), ValueError,
     "epsilon: expected at least 0, got nan"),
    ("exploration.epsilon_greedy", given(Q, LEGAL, torch.ones(3), U), ValueError,
     "epsilon: expected a shape that broadcasts to [4], got [3]"),
    ("exploration.epsilon_greedy", given(Q, LEGAL, 0.1, U[:, 0]), ValueError, "u: expected shape [... 2]…, got [4]"),
    # losses
    ("td.q_learning", given(Q, ACTION, REWARD.unsqueeze(-1), DISCOUNT, Q_T, LEGAL), ValueError,
     "r_t: expected shape [...] with ... = [4], got [4, 1]"),
    ("td.q_learning", given(Q, REWARD, ACTION, DISCOUNT, Q_T, LEGAL), TypeError,
     "a_tm1: expected an integer dtype, got torch.float32"),
    ("td.q_learning", given(Q, ACTION, REWARD, DISCOUNT, Q_T.long(), LEGAL), TypeError,
     "q_t: expected a floating-point dtype, got torch.int64"),
    ("td.q_learning", given(Q, ACTION, REWARD, 0.99, Q_T, LEGAL), TypeError,
     "discount_t: expected a tensor [...], got float"),
    ("td.q_learning", given(Q, ACTION - 1, REWARD, DISCOUNT, Q_T, LEGAL), IndexError,
     "a_tm1[0]: expected a number from 0 to 2, got -1"),
    ("td.double_q_learning", given(Q, ACTION, REWARD, DISCOUNT, Q_T, LEGAL, LEGAL), TypeError,
     "q_t_selector: expected a floating-point dtype, got torch.bool"),
    ("td.double_q_learning", given(Q, ACTION, REWARD, DISCOUNT, Q_T, Q, Q), TypeError,
     "legal_t: expected torch.bool, got torch.float32"),
    ("td.q_learning_target", given(REWARD, DISCOUNT, Q_T, LEGAL[:, :2]), ValueError,
     "legal_t: expected shape [... A] with A = 3, got [4, 2]"),
    ("td.q_learning_target", given(REWARD, DISCOUNT, Q_T, Q), TypeError,
     "legal: expected torch.bool, got torch.float32"),
    ("td.double_q_learning_target", given(REWARD, DISCOUNT, Q_T, LEGAL, LEGAL), TypeError,
     "q_t_selector: expected a floating-point dtype, got torch.bool"),
    # multi-step returns and transformed targets
    *[("returns." + name, given(REWARD, DISCOUNT, REWARD, *rest), error, says)
      for name in ("lambda_returns_of_episodes", "n_step_returns") for rest, error, says in (
          ((LEGAL[:, 0].float(), 1), TypeError, "ended_t: expected torch.bool, got torch.float32"),
          ((LEGAL, 1), ValueError, "ended_t: expected shape [...] with ... = [4], got [4, 3]"))],
    ("returns.lambda_returns_of_episodes", given(*(torch.zeros(0),) * 3, torch.zeros(0) > 0, 0.9), ValueError,
     "r_t: expected at least one step, shape [T, ...], got [0]"),
    ("returns.lambda_returns_of_episodes", given(REWARD, DISCOUNT, ACTION, LEGAL[:, 0], 0.9), TypeError,
     "v_t: expected a floating-point dtype, got torch.int64"),
    ("returns.n_step_returns", given(REWARD, DISCOUNT, REWARD, LEGAL[:, 0], 0), ValueError,
     "n: expected at least 1, got 0"),
    ("returns.n_step_returns", given(REWARD, DISCOUNT, REWARD, LEGAL[:, 0], 2.0), TypeError,
     "n: expected an integer, got 2.0"),
    ("returns.n_step_returns", given(*(torch.tensor(0.0),) * 3, torch.tensor(True), 2), ValueError,
     "r_t: expected at least one step, shape [T, ...], got []"),
    *[("returns." + name, given(REWARD, DISCOUNT, Q, *rest, LEGAL, LEGAL[:, 0], lambda_), error, says)
      for name, rest in (("peng_q_lambda", ()), ("watkins_q_lambda", (ACTION,)),
                         ("retrace", (ACTION, Q.softmax(-1), U[:, 0])))
      for lambda_, error, says in (
          (1.5, ValueError, "lambda_: expected a number from 0 to 1, got 1.5"),
          (-0.5, ValueError, "lambda_: expected at least 0, got -0.5"),
          ("0.5", TypeError, "lambda_: expected a number or a tensor of floats, got '0.5'"),
          (torch.ones(3), ValueError, "lambda_: expected shape [...] with ... = [4], got [3]"))],
    ("returns.peng_q_lambda", given(REWARD, DISCOUNT, Q, Q, LEGAL[:, 0], 0.9), TypeError,
     "legal_t: expected torch.bool, got torch.float32"),
    ("returns.watkins_q_lambda", given(REWARD, DISCOUNT, Q, ACTION + 1, LEGAL, LEGAL[:, 0], 0.9), IndexError,
     "a_t[3]: expected a number from 0 to 2, got 3"),
    ("returns.watkins_q_lambda", given(REWARD, DISCOUNT, Q, REWARD, LEGAL, LEGAL[:, 0], 0.9), TypeError,
     "a_t: expected an integer dtype, got torch.float32"),
    ("returns.off_policy_returns", given(REWARD, DISCOUNT, Q, ACTION, Q, Q, LEGAL, LEGAL[:, 0]), ValueError,
     "c_t: expected shape [...] with ... = [4], got [4, 3]"),
    ("returns.off_policy_returns", given(REWARD, DISCOUNT, Q, ACTION, LEGAL, REWARD, LEGAL, LEGAL[:, 0]), TypeError,
     "pi_t: expected a floating-point dtype, got torch.bool"),
    ("returns.retrace", given(REWARD, DISCOUNT, Q, ACTION, REWARD, REWARD, LEGAL, LEGAL[:, 0], 0.9), ValueError,
     "pi_t: expected shape […], got [4]"),
    ("returns.retrace", given(REWARD, DISCOUNT, Q, ACTION, Q, Q, LEGAL, LEGAL[:, 0], 0.9), ValueError,
     "mu_t: expected shape [...] with ... = [4], got [4, 3]"),
    ("returns.retrace", given(REWARD, DISCOUNT, Q, ACTION, Q, ACTION, LEGAL, LEGAL[:, 0], 0.9), TypeError,
     "mu_t: expected a floating-point dtype, got torch.int64"),
    ("transforms.signed_hyperbolic", given(ACTION), TypeError, "x: expected a floating-point dtype, got torch.int64"),
    ("transforms.signed_hyperbolic", given(Q, -0.1), ValueError, "eps: expected at least 0, got -0.1"),
    ("transforms.signed_parabolic", given(0.5), TypeError, "y: expected a tensor, got float"),
    ("transforms.signed_parabolic", given(Q, "small"), TypeError,
     "eps: expected a number or a tensor of floats, got 'small'"),
    ("transforms.transformed", given(None, 2), TypeError, "target: expected a function, got NoneType"),
    ("transforms.transformed", given(sames, "q_t"), TypeError, "values: expected an integer, got 'q_t'"),
    ("transforms.transformed", given(sames, -1), ValueError, "values: expected at least 0, got -1"),
    ("transforms.transformed", given(sames, 0, eps=-1), ValueError, "eps: expected at least 0, got -1"),
    ("transforms.transformed.of_transformed", given(Q), IndexError,
     "values: expected positions below 1, the number of arguments, got 2"),
    ("transforms.n_step_q_learning_target", given(REWARD, DISCOUNT, Q, Q, LEGAL, LEGAL[:, 0], 0), ValueError,
     "n: expected at least 1, got 0"),
    ("transforms.n_step_q_learning_target", given(REWARD, DISCOUNT, Q, Q[:, :2], LEGAL, LEGAL[:, 0], 1), ValueError,
     "q_t_selector: expected shape [... A] with A = 3, got [4, 2]"),
    ("td.expected_sarsa", given(Q, ACTION, REWARD, DISCOUNT, Q_T, REWARD, LEGAL), ValueError,
     "pi_t: expected shape […], got [4]"),
    ("td.expected_sarsa", given(Q, ACTION + 1, REWARD, DISCOUNT, Q_T, Q, LEGAL), IndexError,
     "a_tm1[3]: expected a number from 0 to 2, got 3"),
    ("td.expected_sarsa_target", given(REWARD, DISCOUNT, Q_T, LEGAL, LEGAL), TypeError,
     "pi_t: expected a floating-point dtype, got torch.bool"),
    ("td.expected_sarsa_target", given(REWARD, DISCOUNT, Q_T, Q, Q), TypeError,
     "legal_t: expected torch.bool, got torch.float32"),
    # soft values and action gaps
    *[("soft." + name, given(Q, LEGAL, tau), error, "tau: " + says)
      for name in ("value", "policy", "log_policy") for tau, error, says in (
          (0, ValueError, "expected a number above 0, got 0; use a maximum over the actions instead"),
          (-0.1, ValueError, "expected at least 0, got -0.1"),
          (float("nan"), ValueError, "expected at least 0, got nan"),
          ("0.1", TypeError, "expected a number or a tensor of floats, got '0.1'"),
          (torch.ones(4), ValueError, "expected a number or a tensor [], got shape [4]; use vmap for several seeds"))],
    ("soft.value", given(Q, Q, 0.1), TypeError, "legal: expected torch.bool, got torch.float32"),
    ("soft.value", given(Q.long(), LEGAL, 0.1), TypeError, "q: expected a floating-point dtype, got torch.int64"),
    ("soft.policy", given(Q, LEGAL[:, :2], 0.1), ValueError, "legal: expected shape [... A] with A = 3, got [4, 2]"),
    ("soft.q_learning_target", given(REWARD, DISCOUNT, Q_T, LEGAL, 0.0), ValueError,
     "tau: expected a number above 0, got 0.0; …"),
    ("soft.q_learning_target", given(REWARD, DISCOUNT, Q_T, Q, 0.1), TypeError,
     "legal_t: expected torch.bool, got torch.float32"),
    *[("soft.munchausen_target", given(REWARD, DISCOUNT, Q, ACTION, Q_T, None, LEGAL, **changes), error, says)
      for changes, error, says in (
          ({"alpha": 1.1}, ValueError, "alpha: expected a number from 0 to 1, got 1.1"),
          ({"alpha": -0.1}, ValueError, "alpha: expected at least 0, got -0.1"),
          ({"alpha": None}, TypeError, "alpha: expected a number or a tensor of floats, got None"),
          ({"tau": 0}, ValueError, "tau: expected a number above 0, got 0; …"),
          ({"clip": 1}, ValueError, "clip: expected at most 0, got 1"),
          ({"clip": float("nan")}, ValueError, "clip: expected at most 0, got nan"),
          ({"clip": "-1"}, TypeError, "clip: expected a number or a tensor of floats, got '-1'"),
          ({"clip": -torch.ones(4)}, ValueError, "clip: expected a number or a tensor [], got shape [4]; …"))],
    ("soft.munchausen_target", given(REWARD, DISCOUNT, Q, ACTION, Q_T, LEGAL[:, :2], LEGAL), ValueError,
     "legal_tm1: expected shape [... A] with A = 3, got [4, 2]"),
    ("soft.munchausen_target", given(REWARD, DISCOUNT, Q, ACTION, Q_T, Q, LEGAL), TypeError,
     "legal_tm1: expected torch.bool, got torch.float32"),
    ("soft.munchausen_target", given(REWARD, DISCOUNT, None, ACTION, Q_T, None, LEGAL), TypeError,
     "q_tm1_target: expected a tensor, got NoneType"),
    ("soft.munchausen_target", given(REWARD, DISCOUNT, Q, ACTION + 1, Q_T, None, LEGAL), IndexError,
     "a_tm1[3]: expected a number from 0 to 2, got 3"),
    ("soft.conservative_loss", given(Q, ACTION.float(), LEGAL), TypeError,
     "a_tm1: expected an integer dtype, got torch.float32"),
    ("soft.conservative_loss", given(Q, ACTION, Q), TypeError, "legal_tm1: expected torch.bool, got torch.float32"),
    ("action_gap.action_gap", given(Q, ACTION - 1, LEGAL), IndexError,
     "action[0]: expected a number from 0 to 2, got -1"),
    *[("action_gap." + name, given(REWARD, DISCOUNT, Q, ACTION, *rest), error, says)
      for name in ("advantage_learning_target", "persistent_advantage_learning_target") for rest, error, says in (
          ((Q_T, LEGAL, LEGAL, 1.5), ValueError, "alpha: expected a number from 0 to 1, got 1.5"),
          ((Q_T, LEGAL, LEGAL, torch.ones(4)), ValueError, "alpha: expected a number or a tensor [], got shape [4]; …"),
          ((Q_T[:, :2], LEGAL, LEGAL, 0.5), ValueError, "q_t: expected shape [... A] with A = 3, got [4, 2]"),
          ((Q_T, Q, LEGAL, 0.5), TypeError, "legal_tm1: expected torch.bool, got torch.float32"))],
    ("action_gap.persistent_q_learning_target", given(REWARD, DISCOUNT, ACTION, Q_T, LEGAL, -1), ValueError,
     "alpha: expected at least 0, got -1"),
    ("action_gap.persistent_q_learning_target", given(REWARD, DISCOUNT, ACTION, LEGAL, LEGAL, 0.5), TypeError,
     "q_t: expected a floating-point dtype, got torch.bool"),
    ("masking.selected", given(Q, LEGAL, LEGAL), TypeError,
     "q_selector: expected a floating-point dtype, got torch.bool"),
    ("masking.selected", given(LEGAL, Q, LEGAL), TypeError, "q: expected a floating-point dtype, got torch.bool"),
    ("masking.expected", given(Q, ACTION, LEGAL), ValueError, "probabilities: expected shape […], got [4]"),
    ("masking.expected", given(Q, LEGAL, LEGAL), TypeError,
     "probabilities: expected a floating-point dtype, got torch.bool"),
    ("losses.squared", given(ACTION), TypeError, "delta: expected a floating-point dtype, got torch.int64"),
    ("losses.squared", given(0.5), TypeError, "delta: expected a tensor, got float"),
    ("losses.huber", given(Q.numpy()), TypeError, "delta: expected a tensor, got ndarray"),
    ("losses.huber", given(Q, 0), ValueError,
     "threshold: expected a number above 0, got 0; for 0 there is nothing to minimise"),
    ("losses.huber", given(Q, float("nan")), ValueError, "threshold: expected at least 0, got nan"),
    ("losses.smooth_l1", given(Q, 0.0), ValueError, "beta: expected a number above 0, got 0.0; for 0 use delta.abs()"),
    ("losses.cross_entropy", given(Q, ACTION), ValueError, "probabilities: expected shape [… K] with … = [4], got [4]"),
    ("losses.cross_entropy", given(Q, LEGAL), TypeError,
     "probabilities: expected a floating-point dtype, got torch.bool"),
    ("losses.cross_entropy_of_labels", given(Q, Q_T), ValueError, "labels: expected shape [...]…, got [4, 3]"),
    ("losses.cross_entropy_of_labels", given(Q, ACTION + 1), IndexError,
     "labels[3]: expected a number from 0 to 2, got 3"),
    ("losses.one_hot", given([0, 1], 3), TypeError, "labels: expected a tensor, got list"),
    ("losses.one_hot", given(ACTION, 0), ValueError, "classes: expected at least 1, got 0"),
    ("losses.one_hot", given(ACTION, True), TypeError, "classes: expected an integer, got True"),
    ("losses.one_hot", given(ACTION, 3, "float32"), TypeError, "dtype: expected dtype, got str"),
    ("losses.smoothed", given(Q_T, 1.5), ValueError, "fraction: expected a number from 0 to 1, got 1.5"),
    ("losses.smoothed", given(ACTION, 0.1), TypeError,
     "probabilities: expected a floating-point dtype, got torch.int64"),
    # optim
    *[(f"optim.{name}", given(-1e-3), ValueError, "learning_rate: expected at least 0, got -0.001")
      for name in ("adagrad", "adam", "adamax", "adamw", "centered_rmsprop", "graves_rmsprop", "nadam", "radam",
                   "rmsprop", "sgd")],
    ("optim.adam", given(1), TypeError,
     "learning_rate: expected a float, a float tensor or a schedule, got the int 1"),
    ("optim.adam", given("1e-3"), TypeError, "learning_rate: expected a number or a tensor of floats, got '1e-3'"),
    ("optim.adam", given(float("inf")), ValueError, "learning_rate: expected a finite number, got inf"),
    ("optim.adam", given(torch.ones(2)), ValueError,
     "learning_rate: expected a number or a tensor [], got shape [2]; use vmap for several seeds"),
    ("optim.adam", given(beta2=1.0), ValueError, "beta2: expected at least 0 and below 1, got 1.0"),
    ("optim.adam", given(eps=None), TypeError, "eps: expected a number or a tensor of floats, got None"),
    ("optim.sgd", given(1e-3, nesterov=True), ValueError,
     "nesterov: expected momentum above 0 with it, got momentum 0"),
    ("optim.clip_by_global_norm", given(float("nan")), ValueError, "max_norm: expected at least 0, got nan"),
    ("optim.clip_by_value", given(-1.0), ValueError, "limit: expected at least 0, got -1.0"),
    ("optim.add_decayed_weights", given("0.1"), TypeError,
     "weight_decay: expected a number or a tensor of floats, got '0.1'"),
    ("optim.chain", given(), ValueError, "optimizers: expected at least one by name, got none"),
    ("optim.chain", given(clip=5.0), TypeError, "clip: expected Optimizer, got float"),
    ("optim.chain", given(adam=optim.adam), TypeError, "adam: expected Optimizer, got function"),
    ("optim.chain", given(adam=torch.optim.Adam), TypeError, "adam: expected Optimizer, got the class Adam"),
    ("optim.masked", given(lambda name: True, ADAM), TypeError, "optimizer: expected Optimizer, got function"),
    ("optim.masked", given(ADAM, "0.bias"), TypeError, "chosen: expected a function, got str"),
    ("optim.masked.init", given(PARAMS), ValueError,
     "chosen: expected it to choose at least one parameter, got none of …"),
    ("optim.grouped", given("weight", weight=ADAM), TypeError, "group_of: expected a function, got str"),
    ("optim.grouped.init", given(PARAMS), ValueError,
     "group_of: expected the groups ['weight'], each with parameters, got …"),
    ("optim.adam.init", given({}), ValueError, "params: expected at least one tensor, got an empty tree"),
    ("optim.adam.init", given(nn.Linear(2, 2)), TypeError, "params: expected a tensor, got Linear"),
    ("optim.adam.init", given({"0.weight": np.zeros(3)}), TypeError,
     "params['0.weight']: expected a tensor, got ndarray"),
    ("optim.adam.init", given({"0.weight": ACTION}), TypeError,
     "params['0.weight']: expected a floating-point dtype, got torch.int64"),
    ("optim.adam.update", given({name: None for name in PARAMS}, ADAM.init(PARAMS), PARAMS), TypeError,
     "grads['0.weight']: expected a tensor, got NoneType"),
    ("optim.adam.update", given(OTHERS, ADAM.init(PARAMS), PARAMS), ValueError,
     "grads['0.weight']: expected shape [3, 2], got [5, 2]"),
    ("optim.adam.update", given(GRADS, SGD.init(PARAMS), PARAMS), TypeError,
     "state: expected AdamState, as init makes it, got SgdState"),
    ("optim.adam.update", given(GRADS, ADAM.init(OTHERS), PARAMS), ValueError,
     "state.mean['0.weight']: expected shape [3, 2], got [5, 2]"),
    ("optim.adam.update", given(META, ADAM.init(PARAMS), PARAMS), ValueError,
     "grads['0.weight']: expected it on cpu, got meta"),
    ("optim.adam.scheduled", given(GRADS, ADAM.init(PARAMS), PARAMS), TypeError,
     "learning_rate(count): expected a number or a tensor of floats, got 'fast'"),
    ("optim.sgd.update", given({"0.weight": Q}, SGD.init(PARAMS), PARAMS), ValueError,
     "grads: expected the same structure; missing […], extra nothing"),
    ("optim.chain.update", given(GRADS, ADAM.init(PARAMS), PARAMS), ValueError,
     "state: expected a dict of ['adam'], as init makes it, got AdamState"),
    ("optim.clip_by_global_norm.update", given(OTHERS, {}, PARAMS), ValueError,
     "grads['0.weight']: expected shape [3, 2], got [5, 2]"),
    ("optim.clip_by_value.update", given(tree.cast(GRADS, torch.float64), {}, PARAMS), TypeError,
     "grads['0.weight']: expected torch.float32, got torch.float64"),
    ("optim.add_decayed_weights.update", given(list(GRADS.values()), {}, PARAMS), ValueError,
     "grads: expected the same structure; missing […], extra […]"),
    ("optim.frozen.update", given(OTHERS, {}, PARAMS), ValueError,
     "grads['0.weight']: expected shape [3, 2], got [5, 2]"),
    ("optim.apply_updates", given(PARAMS, OTHERS), ValueError,
     "updates['0.weight']: expected shape [3, 2], got [5, 2]"),
    ("optim.apply_updates", given(PARAMS, {name: 0.0 for name in PARAMS}), TypeError,
     "updates['0.weight']: expected a tensor, got float"),
    # dqn
    ("training.Config", given(batch_size=256, capacity=100), ValueError,
     "batch_size: expected at most capacity = 100, got 256"),
    ("training.Config", given(batch_size=0), ValueError, "batch_size: expected at least 1, got 0"),
    ("training.Config", given(capacity=1e4), TypeError, "capacity: expected an integer, got 10000.0"),
    ("training.Config", given(num_envs=True), TypeError, "num_envs: expected an integer, got True"),
    ("training.Config", given(num_envs=300, capacity=200), ValueError,
     "num_envs: expected at most capacity = 200, got 300: one step would not fit"),
    ("training.Config", given(updates_per_cycle=3), ValueError,
     "target_period: expected a multiple of updates_per_cycle = 3, got 20: hard copies …"),
    ("training.hyper", given(0), ValueError, "seeds: expected at least 1, got 0"),
    ("training.hyper", given(2.5), TypeError, "seeds: expected an integer, got 2.5"),
    ("training.hyper", given(2, learning_rate="fast"), TypeError,
     "learning_rate: expected a number or several, one per seed, got 'fast'"),
    ("training.hyper", given(2, learning_rate=None), TypeError,
     "learning_rate: expected a number or several, one per seed, got None"),
    ("training.hyper", given(2, learning_rate=float("inf")), ValueError,
     "learning_rate: expected finite numbers, got inf"),
    ("training.hyper", given(2, learning_rate=[1e-3] * 3), ValueError,
     "learning_rate: expected a number or 2 of them, one per seed, got shape [3]"),
    ("training.hyper", given(2, gamma=1.01), ValueError, "gamma: expected numbers in [0, 1], got 1.01"),
    ("training.hyper", given(2, gamma=True), TypeError, "gamma: expected a number or several, one per seed, got True"),
    ("training.hyper", given(2, epsilon_end=[0.1, float("nan")]), ValueError,
     "epsilon_end: expected numbers in [0, 1], got [0.1, nan]"),
    ("training.hyper", given(2, tau=0.0), ValueError,
     "tau: expected numbers above 0, got 0.0: the target would never move"),
    *[(f"dqn.{name}", *row) for name in ("q_learning", "double_q_learning") for row in (
        (given(NETWORK.apply, losses.squared, PARAMS, OTHERS, BATCH, HYPER), ValueError,
         "params: expected the network's names and shapes, …; got …"),
        (given(NETWORK.apply, losses.squared, PARAMS, PARAMS, BATCH, LANES_OF_HYPER), ValueError,
         "hyper.gamma: expected shape [], got [4]"),
        (given(NETWORK, losses.squared, PARAMS, PARAMS, BATCH, HYPER), TypeError,
         "apply: expected a function, got Network"),
        (given(NETWORK.apply, "mse", PARAMS, PARAMS, BATCH, HYPER), TypeError, "loss: expected a function, got str"),
        (given(NETWORK.apply, losses.squared, PARAMS, PARAMS, BATCH, 0.99), TypeError,
         "hyper: expected Hyper, got float"),
        (given(NETWORK.apply, losses.squared, PARAMS, PARAMS, BATCH._replace(action=REWARD), HYPER), TypeError,
         "action: expected an integer dtype, got torch.float32"),
        (given(NETWORK.apply, losses.squared, PARAMS, PARAMS, BATCH._replace(obs=OBS[:, :1]), HYPER), ValueError,
         "obs: expected shape [... 2], got [4, 1]"),
    )],
    ("dqn.agent", given(nn.Linear(2, 2)), TypeError, "network: expected Network or NoisyNetwork, got Linear"),
    ("dqn.agent", given(NETWORK, "yes"), TypeError, "double: expected bool, got str"),
    ("dqn.agent", given(NETWORK, loss="mse"), TypeError, "loss: expected a function, got str"),
    ("off_policy.init", given(optim.adam, PARAMS), TypeError, "optimizer: expected Optimizer, got function"),
    ("off_policy.init", given(ADAM, nn.Linear(2, 2)), TypeError, "params: expected dict, got Linear"),
    ("off_policy.init", given(optim.frozen(), {}), ValueError, "params: expected at least one tensor, got none"),
    ("off_policy.update", given(with_loss(REWARD.sum()), ADAM, LEARNER, SAMPLE, HYPER), TypeError,
     "agent.loss: expected LossOutput, got Tensor"),
    ("off_policy.update", given(with_loss(LossOutput(REWARD.sum(), REWARD, REWARD)), ADAM, LEARNER, SAMPLE, HYPER),
     ValueError, "agent.loss.loss: expected shape [4], got []"),
    ("off_policy.update", given(with_loss(LossOutput(REWARD, REWARD, REWARD[:2])), ADAM, LEARNER, SAMPLE, HYPER),
     ValueError, "agent.loss.priority: expected shape [4], got [2]"),
    ("off_policy.update", given(AGENT, ADAM, PARAMS, SAMPLE, HYPER), TypeError, "learner: expected Learner, got dict"),
    ("off_policy.update", given(AGENT, ADAM, LEARNER, BATCH, HYPER), TypeError,
     "sample: expected Sample, got Transition"),
    ("off_policy.update", given(AGENT, ADAM, LEARNER, SAMPLE._replace(weight=REWARD[:2]), HYPER), ValueError,
     "sample.weight: expected shape [B] with B = 4, got [2]"),
    ("off_policy.update", given(AGENT, ADAM, LEARNER, SAMPLE._replace(indices=ACTION[:3]), HYPER), ValueError,
     "sample.indices: expected shape [B] with B = 4, got [3]"),
    ("off_policy.update", given(AGENT, ADAM, LEARNER, SAMPLE._replace(weight=ACTION), HYPER), TypeError,
     "sample.weight: expected a floating-point dtype, got torch.int64"),
    ("off_policy.update", given(AGENT, ADAM, LEARNER, SAMPLE, LANES_OF_HYPER), ValueError,
     "hyper.gamma: expected shape [], got [4]"),
    ("off_policy.algorithm", given(SETTINGS, AGENT, BUFFER, assemble.adam), TypeError,
     "config: expected Config, got Settings"),
    ("off_policy.algorithm", given(PROGRAM.config, NETWORK, BUFFER, assemble.adam), TypeError,
     "agent: expected Agent, got Network"),
    ("off_policy.algorithm", given(PROGRAM.config, AGENT, None, assemble.adam), TypeError,
     "buffer: expected Buffer, got NoneType"),
    ("off_policy.algorithm", given(PROGRAM.config, AGENT, BUFFER, ADAM), TypeError,
     "optimizer: expected a function, got Optimizer"),
    ("off_policy.soft_copy", given(LEARNER, 1.5), ValueError, "tau: expected a number from 0 to 1, got 1.5"),
    ("off_policy.soft_copy", given(LEARNER, torch.ones(3)), ValueError,
     "tau: expected a number or a tensor [], got shape [3]; use vmap for several seeds"),
    ("off_policy.hard_copy", given(PARAMS), TypeError, "learner: expected Learner, got dict"),
    # networks
    ("networks.mlp", given("4", (8,), 2), TypeError, "obs_shape: expected whole numbers, got '4'"),
    ("networks.mlp", given(4.0, (8,), 2), TypeError, "obs_shape: expected whole numbers, got 4.0"),
    ("networks.mlp", given(4, 8, 2), TypeError,
     "hidden, actions: expected a sequence of integers and an integer, got 8, 2"),
    ("networks.mlp", given(4, (8,), True), TypeError,
     "hidden, actions: expected a sequence of integers and an integer, got (8,), True"),
    ("networks.mlp", given(4, (8, 0), 2), ValueError,
     "hidden, actions: expected sizes of at least 1, got [8, 0], 2"),
    ("networks.mlp.init", given(3), TypeError, "key: expected a tensor [... 2], got int"),
    ("networks.mlp.init", given(KEY.float()), TypeError, "key: expected an integer dtype, got torch.float32"),
    ("networks.mlp.apply", given(OTHERS, OBS), ValueError,
     "params: expected the network's names and shapes, …; got …"),
    ("networks.mlp.apply", given(LANES_OF_PARAMS, OBS), ValueError,
     f"params: expected the network's names and shapes, {SIZES}; got …; use vmap(network.apply) for several seeds"),
    ("networks.mlp.apply", given(list(PARAMS.values()), OBS), TypeError,
     "params: expected tensors by name, as network.init makes them, got list"),
    ("networks.mlp.apply", given(META, OBS), ValueError, "obs: expected it on the parameters' device meta, got cpu"),
    ("networks.mlp.apply", given(tree.map(torch.Tensor.long, PARAMS), OBS), TypeError,
     "params['0.weight']: expected a floating-point dtype, got torch.int64"),
    ("networks.mlp.apply", given(OBS, PARAMS), TypeError, "obs: expected a tensor [... 2], got dict"),
    ("networks.dueling_mlp", given(0, (8,), 2), ValueError,
     "obs_shape: expected one or more sizes of at least 1, got (0,)"),
    ("networks.dueling_mlp.apply", given(PARAMS, OBS), ValueError,
     "params: expected the network's names and shapes, …; got …"),
    ("networks.layer_norm_mlp", given(4, (0,), 2), ValueError,
     "hidden, actions: expected sizes of at least 1, got [0], 2"),
    ("networks.layer_norm_mlp", given(4, (8,), 2, -1.0), ValueError, "gain: expected at least 0, got -1.0"),
    ("networks.layer_norm_mlp.apply", given(PARAMS, OBS), ValueError,
     "params: expected the network's names and shapes, …"),
    ("networks.noisy_mlp", given(4, (8,), 2, -0.5), ValueError, "sigma_zero: expected at least 0, got -0.5"),
    ("networks.noisy_mlp", given(2**20, (2**12,), 2), ValueError,
     "obs_shape, hidden, actions: expected layers of fewer than 2**31 weights, got 4,294,967,296 in layer 0, …"),
    ("networks.noisy_mlp.apply", given(PARAMS, OBS), ValueError, "params: expected the network's names and shapes, …"),
    ("networks.noisy_mlp.apply", given(NOISY.init(KEY), OBS, torch.zeros(3)), ValueError,
     "noise: expected shape [11], got [3]"),
    ("networks.noisy_mlp.apply", given(NOISY.init(KEY), OBS, torch.ones(11)), ValueError,
     "u[0]: expected numbers in [0, 1), got 1.0"),
    ("networks.noisy_mlp.apply", given(NOISY.init(KEY), OBS, 3), TypeError,
     "noise: expected uniforms [K] or (), got int"),
    ("networks.join", given(NETWORK, networks.heads.linear(2)), TypeError, "trunk: expected Trunk, got Network"),
    ("networks.join", given(TRUNK, 2), TypeError, "head: expected Head, got int"),
    ("networks.join", given(TRUNK, networks.heads.dueling(10**5, 10**5)), ValueError,
     "obs_shape, hidden, actions: expected layers of fewer than 2**31 weights, got 30,000,000,000 in …"),
    ("networks.join.apply", given(PARAMS, OBS), ValueError, "params: expected the network's names and shapes, …"),
    ("networks.join.apply", given(networks.join(TRUNK, NOISY_HEAD).init(KEY), OBS, torch.zeros(3)), ValueError,
     "noise: expected shape [14], got [3]"),
    ("networks.quantile", given(TRUNK, networks.heads.linear(2, 51)), ValueError,
     "head: expected one atom for each action, got 51; …"),
    ("networks.quantile", given(TRUNK, networks.heads.linear(2), 0), ValueError, "cosines: expected at least 1, got 0"),
    ("networks.quantile", given(networks.heads.linear(2), TRUNK), TypeError, "trunk: expected Trunk, got Head"),
    ("networks.quantile.apply", given(IMPLICIT.init(KEY), OBS, floats(1, 3, 5)), ValueError,
     "fractions: expected shape [... N] with ... = [4], got [3, 5]"),
    ("networks.quantile.apply", given(IMPLICIT.init(KEY), OBS, ACTION.unsqueeze(-1)), TypeError,
     "fractions: expected a floating-point dtype, got torch.int64"),
    ("networks.quantile.apply", given(IMPLICIT.init(KEY), OBS, floats(1, 4, 5), torch.zeros(3)), TypeError,
     "noise: expected () for a network without noise, got Tensor"),
    ("trunks.mlp", given(4, 8), TypeError, "hidden: expected several integers, got 8"),
    ("trunks.mlp", given("4", (8,)), TypeError, "obs_shape: expected whole numbers, got '4'"),
    ("trunks.mlp", given(2**20, (2**12,)), ValueError,
     "obs_shape, hidden, actions: expected layers of fewer than 2**31 weights, got 4,294,967,296 in layer 0, …"),
    ("trunks.mlp.apply", given({}, OBS), ValueError, "params: expected the network's names and shapes, …; got …"),
    ("trunks.layer_norm_mlp", given(4, (8,), -1.0), ValueError, "gain: expected at least 0, got -1.0"),
    ("trunks.noisy_mlp", given(4, (8,), -0.5), ValueError, "sigma_zero: expected at least 0, got -0.5"),
    ("trunks.nature", given((4, 20, 84)), ValueError,
     "obs_shape: expected frames of at least 36 x 36, got 20 x 84"),
    ("trunks.layer_norm_nature", given((84, 84)), ValueError,
     "obs_shape: expected 3 sizes of at least 1, got (84, 84)"),
    ("trunks.noisy_nature", given((4, 84, 84), -0.5), ValueError, "sigma_zero: expected at least 0, got -0.5"),
    ("trunks.minatar", given((4, 2, 2)), ValueError, "obs_shape: expected boards of at least 3 x 3, got 2 x 2"),
    ("trunks.layer_norm_minatar", given((4, 10, 10), (0,)), ValueError, "hidden: expected at least 1, got 0"),
    ("trunks.noisy_minatar", given((4, 10, 10), -0.5), ValueError, "sigma_zero: expected at least 0, got -0.5"),
    ("trunks.impala", given((10, 10)), ValueError, "obs_shape: expected 3 sizes of at least 1, got (10, 10)"),
    ("heads.linear", given(0), ValueError, "actions: expected at least 1, got 0"),
    ("heads.linear", given(2, 0), ValueError, "atoms: expected at least 1, got 0"),
    ("heads.dueling", given(2.0), TypeError, "actions: expected an integer, got 2.0"),
    ("heads.noisy_linear", given(2, 1, -0.5), ValueError, "sigma_zero: expected at least 0, got -0.5"),
    ("heads.noisy_dueling", given(2, 1, 0.5, (0,)), ValueError, "hidden: expected at least 1, got 0"),
    ("networks.orthogonal", given(NETWORK, -1.0), ValueError, "gain: expected at least 0, got -1.0"),
    ("networks.orthogonal", given(PARAMS), TypeError, "network.init: expected a function, got NoneType"),
    ("networks.sparse", given(NETWORK, 1.0), ValueError, "sparsity: expected at least 0 and below 1, got 1.0"),
    ("networks.sparse", given(NETWORK, GAMMA), TypeError, "sparsity: expected a Python number, got Tensor"),
    ("networks.sparse", given(None), TypeError, "network.init: expected a function, got NoneType"),
    ("networks.with_noise", given(NETWORK.init), TypeError, "network: expected Network or NoisyNetwork, got partial"),
    ("networks.with_noise.apply", given(PARAMS, OBS, torch.zeros(3)), TypeError,
     "noise: expected () for a network without noise, got Tensor"),
    ("random.normal_from_uniform", given(ACTION), TypeError, "u: expected a floating-point dtype, got torch.int64"),
    ("random.normal_from_uniform", given(torch.tensor([0.5, 1.0])), ValueError,
     "u[1]: expected numbers in [0, 1), got 1.0"),
    ("networks.nature", given((4, 20, 84), 2), ValueError,
     "obs_shape: expected frames of at least 36 x 36, got 20 x 84"),
    ("networks.stream_mlp", given(4, (0,), 2), ValueError, "hidden: expected at least 1, got 0"),
    ("networks.stream_mlp", given(4, (8,), 0), ValueError, "actions: expected at least 1, got 0"),
    ("networks.stream_mlp.apply", given(PARAMS, OBS), ValueError, "params: expected the network's names and shapes, …"),
    ("networks.stream_minatar", given((4, 2, 10), 2), ValueError,
     "obs_shape: expected boards of at least 3 x 3, got 2 x 10"),
    ("networks.stream_minatar", given((4, 10, 10), True), TypeError, "actions: expected an integer, got True"),
    ("networks.update_statistics", given([OBS], OBS[0]), TypeError, "params: expected dict, got list"),
    ("networks.update_statistics", given(STREAM_PARAMS, [1.0, 2.0]), TypeError, "obs: expected a tensor, got list"),
    ("networks.update_statistics", given(STREAM_PARAMS, OBS), ValueError,
     "x: expected shape [...] with ... = [2], got [4, 2]"),
    ("networks.minatar", given((10, 10), 6), ValueError, "obs_shape: expected 3 sizes of at least 1, got (10, 10)"),
    ("networks.minatar", given((4, 2, 2), 6), ValueError, "obs_shape: expected boards of at least 3 x 3, got 2 x 2"),
    ("networks.nature", given(84, 2), ValueError, "obs_shape: expected 3 sizes of at least 1, got (84,)"),
    ("networks.nature", given((4, 84, 84), 2.5), TypeError, "actions: expected an integer, got 2.5"),
    ("networks.nature.apply", given(PARAMS, floats(1, 36, 36, 1)), ValueError,
     "obs: expected shape [... 1 36 36], got [36, 36, 1]"),
    ("networks.from_module", given(nn.Linear(2, 3)), TypeError,
     "factory: expected a function that makes a module, got Linear"),
    ("networks.from_module", given(lambda: None), TypeError,
     "factory: expected it to make an nn.Module, got NoneType"),
    ("networks.from_module", given(lambda: nn.BatchNorm1d(2)), TypeError,
     "factory: expected a module without running statistics, got […]; use e.g. LayerNorm"),
    ("networks.from_module", given(lambda: ONE_MODULE), TypeError,
     "factory: expected a new module at every call, got the same […] again; …"),
    ("networks.from_module.init", given(KEY.new_zeros((0, 2))), ValueError, "key: …"),
    ("networks.from_module.apply", given(PARAMS, OBS), ValueError,
     "params: expected the network's names and shapes, …; got …"),
    ("networks.from_module_with_dropout", given(lambda: nn.LSTM(2, 3, 2, dropout=0.5)), TypeError,
     "factory: expected dropout in separate layers, got it inside …; make them with dropout=0 and put nn.Dropout …"),
    ("networks.from_module_with_dropout.apply", given(DROPPING.init(KEY), OBS, 3), TypeError,
     "key: expected a tensor [2], got int"),
    ("networks.dropout", given(Q, 1.0, Q_T), ValueError, "rate: expected a number in [0, 1), got 1.0"),
    ("networks.dropout", given(Q, 0.5, Q.clamp_min(1)), ValueError, "u[0, 0]: expected numbers in [0, 1), got …"),
    ("networks.dropout", given(Q, "0.5", Q_T), TypeError, "rate: expected float or int or Tensor, got str"),
    ("networks.dropout", given(Q, Q_T, 0.5), TypeError, "u: expected a tensor [...], got float"),
    ("networks.dropout", given(Q.long(), 0.5, Q_T), TypeError, "x: expected a floating-point dtype, got torch.int64"),
    ("networks.load", given(nn.Linear(2, 3), PARAMS), TypeError, "network.init: expected a function, got NoneType"),
    ("networks.load", given(NETWORK, nn.Linear(2, 3)), TypeError,
     "state_dict: expected tensors by name, got Linear; pass module.state_dict()"),
    ("networks.load", given(NETWORK, {"q." + name: x for name, x in PARAMS.items()}), ValueError,
     "state_dict: expected the network's names and shapes, …; got …; use prefix='q.'"),
    ("networks.load", given(NETWORK, PARAMS, 5), TypeError, "prefix: expected str, got int"),
    ("networks.load", given(NETWORK, {name: x.tolist() for name, x in PARAMS.items()}), TypeError,
     "state_dict['0.weight']: expected a tensor, got list"),
    ("networks.starting_from", given(NETWORK, LANES_OF_PARAMS), ValueError,
     "state_dict: expected …; got …; select one seed with tree.index(params, seed)"),
    ("networks.to_module", given(NETWORK, OTHERS), ValueError,
     "state_dict: expected the network's names and shapes, …; got …"),
    # replay
    ("ring.buffer", given(0), ValueError, "capacity: expected at least 1, got 0"),
    ("ring.buffer", given(2.0), TypeError, "capacity: expected an integer, got 2.0"),
    ("ring.init", given(ROW._replace(obs=OBS[0].to(torch.complex64)), 9), TypeError,
     "example.obs: expected a dtype that replay stores, bool, …, float64, got torch.complex64; cast it"),
    ("ring.add", given(EMPTY, BATCH, LEGAL[:, 0], torch.ones(4, dtype=torch.bool)), ValueError,
     "batch: expected at most capacity = 3 rows, got 4"),
    ("ring.add", given(EMPTY, BATCH, LEGAL[:, 0], torch.ones(3, dtype=torch.bool)), ValueError,
     "batch.reward: expected shape [E] with E = 3, got [4]"),
    ("ring.add", given(EMPTY, BATCH, LEGAL[:, 0], torch.ones(4)), TypeError,
     "valid: expected torch.bool, got …"),
    ("ring.add", given(EMPTY, BATCH, LEGAL[:, 0], None), ValueError,
     "batch: expected at most capacity = 3 rows, got 4"),
    ("ring.add", given(EMPTY, tree.index(BATCH._replace(obs=OBS.double()), slice(2)), LEGAL[:2, 0], None),
     TypeError, "batch.obs: expected torch.float32, got torch.float64"),
    ("ring.add", given(EMPTY, tree.index(BATCH._replace(next_legal=LEGAL[:, :2]), slice(2)), LEGAL[:2, 0], None),
     ValueError, "batch.next_legal: expected shape [2, 3], got [2, 2]"),
    ("ring.sample", given(EMPTY, [1, 2]), TypeError, "bits: expected a tensor [B], got list"),
    ("ring.sample", given(EMPTY, U[:, 0]), TypeError, "bits: expected an integer dtype, got torch.float32"),
    ("ring.sample", given(EMPTY, ACTION), ValueError,
     "buffer: expected at least one row to sample from, got none; add rows first"),
    ("ring.sample", given(FULL, ACTION, 2), ValueError, "buffer: expected at least one row …, got none; …"),
    ("ring.sample", given(FULL, ACTION.int()), TypeError, "bits: expected torch.int64, got torch.int32; …"),
    ("ring.sample", given(FULL, ACTION - 1), ValueError, "bits[0]: expected integers in [0, 2**32), got -1"),
    ("prioritized.buffer", given(0), ValueError, "capacity: expected at least 1, got 0"),
    ("prioritized.buffer", given(2**31), ValueError, "capacity: expected at most 2**30, got 2147483648"),
    ("prioritized.buffer", given(8, alpha=1.5), ValueError, "alpha: expected a number from 0 to 1, got 1.5"),
    ("prioritized.buffer", given(8, alpha=-0.5), ValueError, "alpha: expected at least 0, got -0.5"),
    ("prioritized.buffer", given(8, beta=1.5), ValueError, "beta: expected a number from 0 to 1, got 1.5"),
    ("prioritized.buffer", given(8, beta="0.4"), TypeError, "beta: expected a number …, got '0.4'"),
    ("prioritized.buffer", given(8, uniform=1.5), ValueError, "uniform: expected a number from 0 to 1, got 1.5"),
    ("prioritized.buffer", given(8, epsilon=np.inf), ValueError,
     "epsilon: expected at least 0 and below inf, got inf"),
    ("prioritized.init", given(ROW._replace(obs=OBS[0].to(torch.complex64)), 9), TypeError,
     "example.obs: expected a dtype that replay stores, …, got torch.complex64; cast it"),
    ("prioritized.add", given(UNRANKED, BATCH, LEGAL[:, 0], None), ValueError,
     "batch: expected at most capacity = 3 rows, got 4"),
    ("prioritized.sample", given(RANKED, ACTION.int()), TypeError,
     "bits: expected torch.int64, got torch.int32; …"),
    ("prioritized.sample", given(RANKED, ACTION - 1), ValueError,
     "bits[0]: expected integers in [0, 2**32), got -1"),
    ("prioritized.sample", given(UNRANKED, ACTION), ValueError,
     "buffer: expected at least one row to sample from, got none; add rows first"),
    ("prioritized.sample", given(RANKED, ACTION, 2), ValueError,
     "buffer: expected at least one row to sample from, got none; add rows first"),
    ("prioritized.update", given(RANKED, ACTION, REWARD[:3]), ValueError,
     "priority: expected shape [B] with B = 4, got [3]"),
    ("prioritized.update", given(RANKED, ACTION[:1], REWARD[:1] * torch.nan), ValueError,
     "priority: expected numbers of at least 0, got a negative one or NaN"),
    ("prioritized.update", given(RANKED, ACTION[:1], torch.tensor([-1.0])), ValueError,
     "priority: expected numbers of at least 0, got a negative one or NaN"),
    ("prioritized.update", given(RANKED, torch.tensor([3]), torch.ones(1)), IndexError,
     "indices[0]: expected a number from 0 to 2, got 3"),
    ("prioritized.update", given(RANKED, torch.ones(1), torch.ones(1)), TypeError,
     "indices: expected an integer dtype, got torch.float32"),
    ("prioritized.update", given(RANKED, ACTION[:1], ACTION[:1]), TypeError,
     "priority: expected a floating-point dtype, got torch.int64"),
    ("packing.wrap", given(frames.wrap(RING, 2, 4, 8)), ValueError,
     "buffer: expected one that stores any observations, …, got one that needs them unpacked; …"),
    ("n_step.wrap", given(RING, 0, 2), ValueError, "num_envs: expected at least 1, got 0"),
    ("n_step.wrap", given(RING, 1, 0), ValueError, "steps: expected at least 1, got 0"),
    ("n_step.wrap", given(n_step.wrap(RING, 2, 2), 2, 2), ValueError,
     "buffer: expected one that stores any transitions, …, got one that needs single steps; …"),
    ("n_step.wrap", given(frames.wrap(RING, 2, 4, 8), 2, 2), ValueError,
     "buffer: expected one that stores any transitions, …, got one that needs single steps; …"),
    ("frames.wrap", given(RING, 2, 0, 8), ValueError, "stack: expected at least 1, got 0"),
    ("frames.wrap", given(RING, 2, 4, 0), ValueError, "capacity: expected at least 1, got 0"),
    ("frames.wrap", given(frames.wrap(RING, 2, 4, 8), 2, 4, 8), ValueError,
     "buffer: expected one that stores any observations, …, got one that needs them unchanged; …"),
    # random
    ("random.key", given(-1), ValueError, "seed: expected integers in [0, 2**32), got -1 to -1"),
    ("random.key", given([0, 2**32]), ValueError, "seed: expected integers in [0, 2**32), got 0 to 4294967296"),
    ("random.key", given(2**64), TypeError,
     "seed: expected an integer in [0, 2**32) or an array of them, got 18446744073709551616"),
    ("random.key", given(1.5), TypeError, "seed: expected an integer dtype, got torch.float32"),
    ("random.key", given("seven"), TypeError,
     "seed: expected an integer in [0, 2**32) or an array of them, got 'seven'"),
    ("random.split", given(KEY, 0), ValueError, "num: expected at least 1, got 0"),
    ("random.split", given(3), TypeError, "key: expected a tensor [... 2], got int"),
    ("random.fold_in", given(KEY, -1), ValueError, "data: expected an integer in [0, 2**32), got -1"),
    ("random.fold_in", given(KEY, 2**32), ValueError, "data: expected an integer in [0, 2**32), got 4294967296"),
    ("random.fold_in", given(KEY, 1.5), TypeError, "data: expected an integer, got 1.5"),
    ("random.bits", given(torch.arange(3)), ValueError, "key: expected shape [... 2], got [3]"),
    ("random.bits", given(KEY, 3), TypeError, "shape: expected several integers, got 3"),
    ("random.bits", given(KEY, (-1,)), ValueError, "shape: expected at least 0, got -1"),
    ("random.bits", given(KEY, (2**16, 2**16)), ValueError,
     "shape: expected fewer than 2**31 numbers per key, got 4294967296"),
    ("random.uniform", given(KEY, (2,), torch.bfloat16), TypeError,
     "dtype: expected torch.float32 or torch.float64, got torch.bfloat16"),
    ("random.unit", given(U), TypeError, "bits: expected an integer dtype, got torch.float32"),
    ("random.index", given(ACTION, 0), ValueError, "size: expected at least 1, got 0"),
    ("random.index", given(U, 5), TypeError, "bits: expected an integer dtype, got torch.float32"),
    *[(f"random.{name}", given(ACTION.to(dtype), *more), TypeError, f"bits: expected torch.int64, got {dtype}; …")
      for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint32)
      for name, more in (("index", (1000,)), ("unit", ()))],
    ("random.index", given(ACTION - 1, 5), ValueError, "bits[0]: expected integers in [0, 2**32), got -1"),
    ("random.index", given(ACTION + 2**32 - 2, 5), ValueError, "bits[3]: expected …, got 4294967296"),
    ("random.index", given(ACTION, 2**31), ValueError, "size: expected a number below 2**31, got 2147483648"),
    ("random.index", given(ACTION, torch.tensor(2**33)), ValueError,
     "size: expected integers in [1, 2**31), got 8589934592 to 8589934592"),
    ("random.index", given(ACTION, torch.tensor([3, 0, 3, 3])), ValueError,
     "size: expected integers in [1, 2**31), got 0 to 3"),
    ("random.index", given(ACTION, torch.tensor(5.0)), TypeError, "size: expected an integer dtype, got …"),
    ("random.unit", given(ACTION - 1), ValueError, "bits[0]: expected integers in [0, 2**32), got -1"),
    ("random.fold_in", given(KEY, ACTION + 2**32), ValueError,
     "data[0]: expected integers in [0, 2**32), got 4294967296"),
    ("random.fold_in", given(KEY, torch.tensor(-1, dtype=torch.int32)), ValueError,
     "data: expected integers in [0, 2**32), got -1"),
    ("random.bits", given(KEY - 4), ValueError, "key[0]: expected integers in [0, 2**32), got -4"),
    ("random.split", given(KEY + 2**32), ValueError, "key[0]: expected integers in [0, 2**32), got 4294967296"),
    ("random.randint", given(KEY, (2,), 2**63 - 2, 2**63 + 3), ValueError,
     "low, high: expected integers that int64 holds, got …"),
    ("random.randint", given(KEY, (2,), 5, 5), ValueError,
     "high: expected low < high < low + 2**31, got low 5, high 5"),
    ("random.randint", given(KEY, (2,), 0.5, 2), TypeError, "low: expected an integer, got 0.5"),
    ("random.normal", given(KEY, (2.5,)), TypeError, "shape: expected an integer, got 2.5"),
    # schedules
    *[(f"schedules.{name}", given(5, **constants), TypeError, "step: expected a tensor, got int")
      for name, constants in (
          ("constant", {"value": 1.0}), ("linear", {"start": 0.0, "end": 1.0, "steps": 9}),
          ("polynomial", {"start": 0.0, "steps": 9, "power": 2}), ("exponential", {"start": 1.0, "decay": 0.9}),
          ("milestones", {"start": 1.0, "decay": 0.9, "milestones": (4,)}),
          ("cosine", {"start": 1.0, "end": 0.0, "steps": 9}), ("warm_up", {"schedule": CONSTANT, "steps": 3}),
      )],
    ("schedules.constant", given(STEP, "fast"), TypeError, "value: expected a number or a tensor, got 'fast'"),
    ("schedules.linear", given(STEP, 0.0, float("nan"), 9), ValueError, "end: expected a number, got nan"),
    ("schedules.linear", given(STEP, 0.0, 1.0, -9), ValueError, "steps: expected at least 0, got -9"),
    ("schedules.staircase", given(STEP, 0.1, 0.9, 0), ValueError, "every: expected a number above 0, got 0"),
    ("schedules.milestones", given(STEP, 0.1, 0.9, 4), TypeError,
     "milestones: expected Sequence or Tensor, got int"),
    ("schedules.cosine", given(STEP, 0.1, 0.0, 0), ValueError, "steps: expected a number above 0, got 0"),
    ("schedules.cosine_restarts", given(STEP, 0.1, 0.0, 4, 1.5), ValueError,
     "growth: expected a whole number of at least 1, got 1.5"),
    ("schedules.cosine_restarts", given(STEP, 0.1, 0.0, 4, "2"), TypeError,
     "growth: expected a number or a tensor, got '2'"),
    ("schedules.one_cycle", given(STEP, 0.1, 10, start_divisor=0), ValueError,
     "start_divisor: expected a number above 0, got 0"),
    ("schedules.one_cycle", given(STEP, 0.1, 10, warm=2), ValueError, "warm: expected a number from 0 to 1, got 2"),
    ("schedules.warm_up", given(STEP, 0.1, 5), TypeError, "schedule: expected a function, got float"),
    ("schedules.warm_up", given(STEP, CONSTANT, -3), ValueError, "steps: expected at least 0, got -3"),
    ("schedules.sequence", given(STEP, [CONSTANT], [4]), ValueError,
     "starts: expected one for all of 1 schedules but the first, got 1"),
    ("schedules.sequence", given(STEP, [CONSTANT] * 3, [9, 4]), ValueError,
     "starts: expected them in ascending order, got [9, 4]"),
    ("schedules.sequence", given(STEP, [1.0, CONSTANT], [4]), TypeError, "schedules: expected a function, got float"),
    # statistics
    ("statistics.iqm", given([]), ValueError, "values: expected at least one number along axis -1, got shape [0]"),
    ("statistics.iqm", given([1.0], axis=3), ValueError,
     "values: expected at least one number along axis 3, got shape [1]"),
    ("statistics.iqm", given(["high"]), TypeError, "values: expected an array of numbers, got ['high']"),
    ("statistics.interval", given([[1.0], [1.0, 2.0]]), TypeError,
     "values: expected an array of numbers, got [[1.0], [1.0, 2.0]]"),
    ("statistics.interval", given(3.0), ValueError, "values: expected an axis of seeds, got the single number 3.0"),
    ("statistics.interval", given([1.0, 2.0], 95), ValueError, "confidence: expected a number in (0, 1), got 95"),
    ("statistics.interval", given([1.0, 2.0], "95%"), ValueError,
     "confidence: expected a number in (0, 1), got '95%'"),
    ("statistics.interval", given([1.0, 2.0], resamples=0), ValueError,
     "resamples: expected a whole number of at least 1, got 0"),
    # comparisons
    ("comparisons.compare", given([1.0, 2.0], [1.0], True), ValueError,
     "second: expected 2 seeds to pair with those of first, got 1"),
    ("comparisons.difference", given([1.0], [[1.0, 2.0]]), ValueError,
     "second: expected one return per seed, [S], got shape [1, 2]"),
    ("comparisons.difference", given([1.0], ["high"]), TypeError, "second: expected an array of numbers, got ['high']"),
    ("comparisons.difference", given([1.0], [2.0], "median"), ValueError,
     "statistic: expected 'iqm' or 'mean', got 'median'"),
    ("comparisons.difference", given([1.0], [2.0], confidence=95), ValueError,
     "confidence: expected a number in (0, 1), got 95"),
    ("comparisons.difference", given([1.0], [2.0], resamples=0), ValueError,
     "resamples: expected a whole number of at least 1, got 0"),
    ("comparisons.mean_interval", given(3.0), ValueError, "values: expected one return per seed, [S], got shape []"),
    ("comparisons.improvement", given(1.0, [1.0]), ValueError,
     "first: expected one return per seed, [S], got shape []"),
    ("comparisons.selection", given([1.0, 2.0]), ValueError,
     "returns: expected shape [settings, seeds], each at least 1, got [2]"),
    ("comparisons.selection", given([[1.0]], resamples=2.5), ValueError,
     "resamples: expected a whole number of at least 1, got 2.5"),
    ("permutation.permutation_test", given([1.0], [1.0, 2.0], True), ValueError,
     "second: expected 1 seeds to pair with those of first, got 2"),
    ("samples.numbers", given("x", [[1], [1, 2]]), TypeError, "x: expected an array of numbers, got [[1], [1, 2]]"),
    ("samples.finite", given("x", 1.0), ValueError, "x: expected one return per seed, [S], got shape []"),
    ("samples.pair", given([1.0], [], True), ValueError, "second: expected 1 seeds to pair with those of first, got 0"),
    ("samples.statistic", given("median"), ValueError, "statistic: expected 'iqm' or 'mean', got 'median'"),
    ("samples.check_confidence", given("95%"), ValueError, "confidence: expected a number in (0, 1), got '95%'"),
    ("samples.check_resamples", given(True), ValueError, "resamples: expected a whole number of at least 1, got True"),
    ("power.t_test_power", given(-1.0, 5), ValueError, "effect: expected a number of at least 0, got -1.0"),
    ("power.t_test_power", given(1.0, 5, 0), ValueError, "others: expected a number of at least 1, got 0"),
    ("power.detectable", given(math.nan, 5), ValueError, "spread: expected a number of at least 0, got nan"),
    ("power.detectable", given(1.0, 0), ValueError, "seeds: expected a number of at least 1, got 0"),
    ("power.detectable", given(1.0, 5, power=80), ValueError, "power: expected a number in (0, 1), got 80"),
    ("power.seeds_needed", given(1.0, 0.0), ValueError, "difference: expected a number above 0, got 0.0"),
    ("power.seeds_needed", given(1.0, 1.0, level=5), ValueError, "level: expected a number in (0, 1), got 5"),
    ("power.tolerance_fraction", given(0), ValueError, "seeds: expected a number of at least 1, got 0"),
    ("power.tolerance_seeds", given(90), ValueError, "fraction: expected a number in (0, 1), got 90"),
    ("power.tolerance", given([[1.0]]), ValueError, "values: expected one return per seed, [S], got shape [1, 1]"),
    ("power.spread", given([1.0], [1.0, 2.0], True), ValueError,
     "second: expected 1 seeds to pair with those of first, got 2"),
    ("aggregates.stratified", given([1.0, 2.0]), ValueError,
     "values: expected shape [tasks, seeds] with at least one task, got [2]"),
    ("aggregates.optimality_gap", given([1.0], math.inf), ValueError, "optimum: expected a finite number, got inf"),
    ("aggregates.profile", given([[[1.0]]], [0.0]), ValueError,
     "values: expected shape [seeds] or [tasks, seeds], got [1, 1, 1]"),
    ("aggregates.profile", given([1.0], [math.nan]), ValueError, "thresholds: expected finite numbers [T], got [nan]"),
    # tree
    ("tree.map", given(torch.add, PARAMS, {"0.weight": Q}), ValueError,
     "trees: expected one structure, got […] and […]"),
    ("tree.where", given(LEGAL[:, 0], (Q, Q), (Q,)), ValueError, "trees: expected one structure, got …"),
    ("tree.lerp", given((Q, Q), (Q,), 0.5), ValueError,
     "trees: expected one structure, got ['[0]', '[1]'] and ['[0]']"),
    ("tree.stack", given([]), ValueError, "trees: expected at least one, got none"),
    ("tree.stack", given([{"a": Q}, {"a": REWARD}]), ValueError,
     "trees: expected leaves of one shape, got […] and […]"),
    ("tree.cast", given(PARAMS, torch.int64), TypeError, "dtype: expected a floating-point dtype, got torch.int64"),
    ("tree.cast", given(PARAMS, "float64"), TypeError, "dtype: expected a floating-point dtype, got 'float64'"),
    ("tree.norm", given({}), ValueError, "tree: expected at least one tensor, got none"),
    ("tree.from_numpy", given({"a": [1.0]}), TypeError, "tree: expected NumPy arrays of numbers, got float"),
    ("tree.from_numpy", given(np.array(["x"])), TypeError, "tree: expected NumPy arrays of numbers, got dtype <U1"),
    ("tree.to_numpy", given({"a": 1.0}), TypeError, "tree: expected tensors, got float"),
    ("tree.to_numpy", given(Q.bfloat16()), TypeError,
     "tree: expected dtypes that NumPy has, got torch.bfloat16; cast first"),
    # check
    ("check.shapes", given("q[... A]", 1.0), TypeError, "q: expected a tensor [... A], got float"),
    ("check.fit", given(["q"], ["A"], [Q]), ValueError, "q: expected shape [A], got [4, 3]"),
    ("check.integer", given("x", Q), TypeError, "x: expected an integer dtype, got torch.float32"),
    ("check.floating", given("x", None), TypeError, "x: expected a tensor, got NoneType"),
    ("check.boolean", given("x", [True]), TypeError, "x: expected a tensor, got list"),
    ("check.tensor", given("x", nn.Linear), TypeError, "x: expected a tensor, got the class Linear"),
    ("check.kind", given("x", 5, str, dict), TypeError, "x: expected str or dict, got int"),
    ("check.function", given("f", 5), TypeError, "f: expected a function, got int"),
    ("check.count", given("n", -1), ValueError, "n: expected at least 0, got -1"),
    ("check.sizes", given("shape", (3, True)), TypeError, "shape: expected an integer, got True"),
    ("check.length", given("xs", {"a": Q, "b": torch.tensor(1)}), ValueError,
     "xs: expected tensors with a first axis of one length, got ['a'] [4, 3], ['b'] []"),
    ("check.length", given("xs", ()), ValueError,
     "xs: expected tensors with a first axis of one length, got no tensors"),
    ("check.broadcasts", given("x", Q, (3,)), ValueError, "x: expected a shape that broadcasts to [3], got [4, 3]"),
    ("check.fraction", given("x", 1.5), ValueError, "x: expected a number from 0 to 1, got 1.5"),
    ("check.number", given("x", "1"), TypeError, "x: expected a number or a tensor of floats, got '1'"),
    ("check.within", given("x", ACTION, 2), IndexError, "x[3]: expected a number from 0 to 1, got 2"),
    ("check.stored", given("x", {"a": torch.zeros(2, dtype=torch.uint16)}), TypeError,
     "x['a']: expected a dtype that replay stores, …, got torch.uint16; cast it"),
    ("check.stored", given("x", [1.0]), TypeError, "x[0]: expected a tensor, got float"),
    ("check.bits", given("x", ACTION.short()), TypeError, "x: expected torch.int64, got torch.int16; …"),
    ("check.bits", given("x", ACTION - 2), ValueError, "x[0]: expected integers in [0, 2**32), got -2"),
    ("check.uniforms", given("u", ACTION), TypeError, "u: expected a floating-point dtype, got torch.int64"),
    ("check.uniforms", given("u", torch.tensor([0.5, float("nan")])), ValueError,
     "u[1]: expected numbers in [0, 1), got nan"),
    ("check.some_legal", given("legal", STUCK), ValueError, "legal[0]: expected at least one legal action, got none"),
    ("check.same", given("x", PARAMS, OTHERS), ValueError, "x['0.weight']: expected shape [3, 2], got [5, 2]"),
    ("check.same", given("x", {"a": Q}, {"a": None}), TypeError, "x['a']: expected a tensor, got NoneType"),
    # envs
    ("envs.make", given("cartpol"), ValueError,
     "unknown environment 'cartpol'; did you mean 'cartpole'? Known: acrobot, cartpole, catch, …"),
    ("envs.make", given(None), TypeError, "name: expected the name of an environment, got None; known: acrobot, …"),
    ("envs.find", given(None), TypeError, "name: expected the name of an environment, got None; known: acrobot, …"),
    ("envs.find", given("minatar:brekout"), ValueError, "… did you mean 'minatar:breakout'? …"),
    ("envs.find", given("gym:Nonsense-v7"), ValueError, "env: expected an environment of Gymnasium, got …"),
    ("envs.find", given("nowhere_at_all:thing"), ValueError,
     "env: expected nowhere_at_all:thing to give an environment, got No module named 'nowhere_at_all'"),
    ("envs.find", given("math:nothing"), ValueError, "env: expected math:nothing to give an environment, got …"),
    ("envs.find", given("math:pi"), ValueError,
     "env: expected math:pi to give an Env, a HostEnv or a gymnasium environment, got float"),
    ("envs.find", given("catch", ("time_limit",)), ValueError,
     "env_kwargs: expected name=value, such as is_slippery=False, got 'time_limit'"),
    ("envs.find", given("catch", ("rows=4",)), ValueError,
     "env_kwargs: expected arguments of catch (time_limit), got rows=4"),
    ("envs.find", given("catch", ("time_limit=0",)), ValueError, "time_limit: expected at least 1, got 0"),
    ("envs.find", given("minatar:breakout", ("dtype=float",)), ValueError,
     "env_kwargs: expected arguments of minatar:breakout (time_limit, sticky), got dtype='float'"),
    ("envs.find", given("ale:Pong", ("frameskip=2",)), ValueError,
     "env_kwargs: expected none for ale:Pong, got frameskip=2"),
    ("envs.find", given("gym:FrozenLake-v1", ("slippery=False",)), ValueError,
     "env_kwargs: expected arguments that gym:FrozenLake-v1 accepts, got slippery=False: …"),
    ("envs.find", given("gym:FrozenLake-v1", ("num_envs=3",)), ValueError,
     "env_kwargs: expected arguments that gym:FrozenLake-v1 accepts, got num_envs=3: …"),
    ("envs.find", given("gym:FrozenLake-v1", ("map_name=9x9",)), ValueError,
     "env: expected an environment of Gymnasium, got 'gym:FrozenLake-v1': KeyError: '9x9' (with the env_kwargs …)"),
    ("envs.find", given("math:sqrt", ("x=4",)), ValueError,
     "env_kwargs: expected arguments that math:sqrt accepts, got x=4: math.sqrt() takes no keyword arguments"),
    ("envs.find", given(f"{__name__}:CATCH", ("rows=4",)), ValueError,
     f"env_kwargs: expected none for {__name__}:CATCH, which is not a function, got rows=4"),
    ("envs.find", given("catch", (), ("nowhere_at_all:Wrapper",)), ValueError,
     "wrappers: expected nowhere_at_all:Wrapper to import, got No module named 'nowhere_at_all'"),
    ("envs.find", given("catch", (), ("gymnasium.wrappers:Nothing",)), ValueError,
     "wrappers: expected gymnasium.wrappers:Nothing to import, got module 'gymnasium.wrappers' has no attribute …"),
    ("envs.find", given("catch", (), ("math:pi",)), ValueError,
     "wrappers: expected math:pi to be a class or a function, got float"),
    ("envs.find", given("catch", (), ("gymnasium.wrappers:FlattenObservation",)), ValueError,
     "wrappers: expected gymnasium.wrappers:FlattenObservation to be a function of one Env, got …"),
    ("envs.find", given("catch", (), ("builtins:id",)), ValueError,
     "wrappers: expected builtins:id to return an Env, got int"),
    ("envs.find", given("gym:CartPole-v1", (), ("gymnasium.wrappers:TimeLimit",)), ValueError,
     "wrappers: expected gymnasium.wrappers:TimeLimit to take the environment as its only argument, got TypeError: …"),
    ("envs.find", given("gym:CartPole-v1", (), ("builtins:id",)), ValueError,
     "wrappers: expected builtins:id to return a gymnasium.Env, got int"),
    ("envs.find", given("gym:CartPole-v1", (), ("gymnasium.wrappers:RescaleAction",)), ValueError,
     "wrappers: expected gymnasium.wrappers:RescaleAction to take …"),
    ("envs.describe", given("CartPole-v1"), ValueError,
     "unknown environment 'CartPole-v1'; did you mean 'cartpole'? …"),
    *[("envs.make", given(name, time_limit=0), ValueError, "time_limit: expected at least 1, got 0")
      for name in envs.names()],
    ("envs.make", given("cartpole", time_limit=1.5), TypeError, "time_limit: expected an integer, got 1.5"),
    ("envs.make", given("cartpole", dtype=torch.int64), TypeError,
     "dtype: expected a floating-point dtype, got torch.int64"),
    ("envs.make", given("cartpole", dtype="float32"), TypeError, "dtype: expected dtype, got str"),
    ("envs.make.reset", given(U), ValueError, "u: expected shape [... 4], got [4, 2]"),
    ("envs.make.reset", given(ACTION), TypeError, "u: expected a floating-point dtype, got torch.int64"),
    ("envs.make.step", given(POLES, PUSH.float(), NOISE_4), TypeError,
     "action: expected an integer dtype, got torch.float32"),
    ("envs.make.step", given(POLES, PUSH[:2], NOISE_4), ValueError,
     "action: expected shape [...] with ... = [3], got [2]"),
    ("envs.make.step", given(POLES, [0, 1, 0], NOISE_4), TypeError, "action: expected a tensor [...], got list"),
    ("envs.make.step", given(BALLS, PUSH, NOISE_4), TypeError,
     "state: expected a state of fdqn.envs.classic.cartpole, got fdqn.envs.classic.catch.State"),
    # populations
    ("populations.keep", given(STATE, torch.tensor([0.0])), TypeError,
     "members: expected an integer dtype, got torch.float32"),
    ("populations.keep", given(STATE, KEYS), ValueError, "members: expected shape [N], got [2, 2]"),
    ("populations.keep", given(STATE, torch.tensor([2])), IndexError,
     "members[0]: expected a number from 0 to 1, got 2"),
    ("populations.keep", given(STATE, torch.tensor([1, 1])), ValueError,
     "members: expected at least one, each once, got [1, 1]"),
    ("populations.keep", given(STATE, ACTION[:0]), ValueError, "members: expected at least one, each once, got []"),
    ("populations.keep", given({"a": KEYS, "b": ACTION}, ACTION), ValueError,
     "state: expected tensors with a first axis of one length, got ['a'] [2, 2], ['b'] [4]"),
    ("populations.members_of", given(ACTION, 0), ValueError, "seeds: expected at least 1, got 0"),
    ("populations.members_of", given(REWARD, 2), TypeError, "settings: expected an integer dtype, got torch.float32"),
    ("populations.successive_halving", given(REWARD, 1), ValueError, "eta: expected at least 2, got 1"),
    ("populations.successive_halving", given(REWARD, 2.5), TypeError, "eta: expected an integer, got 2.5"),
    ("populations.successive_halving", given(ACTION, 2), TypeError,
     "scores: expected a floating-point dtype, got torch.int64"),
    ("populations.rungs", given(0, 100, 2), ValueError, "settings: expected at least 1, got 0"),
    ("populations.rungs", given(8, 100, 1), ValueError, "eta: expected at least 2, got 1"),
    ("populations.rungs", given(64, 10, 2), ValueError,
     "steps: expected enough for 6 rungs of 64 settings, got 10; use more steps or fewer settings"),
    ("populations.noise", given(ACTION, 0, 1), ValueError, "keys: expected shape [M 2], got [4]"),
    ("populations.noise", given(KEYS, -1, 1), ValueError, "number: expected at least 0, got -1"),
    ("populations.noise", given(KEYS, 0, 1, 3), ValueError,
     "groups: expected a divisor of the number of members, 2, got 3"),
    ("populations.scores", given(STATE, REWARD), ValueError, "returns: expected shape [M] with M = 2, got [4]"),
    ("populations.scores", given(STATE, ACTION[:2]), TypeError,
     "returns: expected a floating-point dtype, got torch.int64"),
    ("populations.exploit", given(REWARD, U[:, 0], 0.6), ValueError,
     "fraction: expected a number in [0, 0.5], got 0.6"),
    ("populations.exploit", given(REWARD, U[:, 0], math.nan), ValueError, "fraction: expected at least 0, got nan"),
    ("populations.exploit", given(REWARD, U[:3, 0]), ValueError, "u: expected shape [M] with M = 4, got [3]"),
    ("populations.exploit", given(REWARD, U[:, 0] + 1), ValueError, "u[0]: expected numbers in [0, 1), got …"),
    ("populations.exploit", given(REWARD, U[:, 0], groups=3), ValueError,
     "groups: expected a divisor of the number of members, 4, got 3"),
    ("populations.copy", given(STATE, ACTION), ValueError, "source: expected shape [M] with M = 2, got [4]"),
    ("populations.copy", given(STATE, torch.tensor([0, 2])), IndexError,
     "source[1]: expected a number from 0 to 1, got 2"),
    ("populations.copy", given(STATE.learner, ACTION), TypeError, "state: expected TrainState, got Learner"),
    ("populations.explore", given(HYPERS, TWO, U[:2, :1], {"lr": (0, 1)}), ValueError,
     "bounds: expected names of hyper-parameters, learning_rate, …, got 'lr'"),
    ("populations.explore", given(HYPERS, TWO, U[:2, :1], {"gamma": (1, 0)}), ValueError,
     "bounds.gamma: expected (low, high) with low <= high, got (1, 0)"),
    ("populations.explore", given(HYPERS, TWO, U[:2], {"gamma": (0, 1)}), ValueError,
     "u: expected shape [M 1], got [2, 2]"),
    ("populations.explore", given(HYPERS, TWO, U[:2, :1], {"gamma": (0, 1)}, ()), ValueError,
     "factors: expected at least one, all above 0, got ()"),
    ("populations.explore", given(HYPERS, TWO, U[:2, :1], {"gamma": (0, 1)}, (0.8, -1.2)), ValueError,
     "factors: expected at least 0 and below inf, got -1.2"),
    ("populations.explore", given(HYPERS, KEYS[:, 0], U[:2, :1], {"gamma": (0, 1)}), TypeError,
     "changed: expected torch.bool, got torch.int64"),
    ("populations.evolve", given(STATE, REWARD[:2], NOISE, {}), TypeError,
     "noise: expected PopulationNoise, got Noise"),
    # train
    ("training.init", given(None, HYPERS, KEYS), TypeError, "program: expected Program, got NoneType"),
    ("training.init", given(PROGRAM._replace(algorithm=PROGRAM.algorithm._replace(config=SETTINGS)), HYPERS, KEYS),
     TypeError, "program.config: expected Config, got Settings"),
    ("training.init", given(PROGRAM._replace(env="cartpole"), HYPERS, KEYS), TypeError,
     "program.env: expected Env or HostEnv, got str"),
    ("training.init", given(PROGRAM._replace(algorithm=AGENT), HYPERS, KEYS), TypeError,
     "program.algorithm: expected Algorithm, got Agent"),
    ("training.init", given(PROGRAM._replace(algorithm=PROGRAM.algorithm._replace(agent=NETWORK)), HYPERS, KEYS),
     TypeError, "program.agent: expected Agent, got Network"),
    ("training.init", given(examples.program(agent=AGENT._replace(loss="mse")), HYPERS, KEYS), TypeError,
     "program.agent.loss: expected a function, got str"),
    ("training.init", given(examples.program(network=networks.mlp(4, (3,), 3)), HYPERS, KEYS), ValueError,
     "network.apply: expected shape [S E 2], got [2, 3, 3]"),
    ("training.init", given(PROGRAM, HYPERS._asdict(), KEYS), TypeError, "hyper: expected Hyper, got dict"),
    ("training.init", given(PROGRAM, KEYS, HYPERS), TypeError, "hyper: expected Hyper, got Tensor"),
    ("training.init", given(PROGRAM, LANES_OF_HYPER, KEYS), ValueError,
     "learning_rate: expected shape [S] with S = 2, got [4]"),
    ("training.init", given(PROGRAM, HYPERS, torch.arange(2)), ValueError, "keys: expected shape [S 2], got [2]"),
    ("training.init", given(PROGRAM, HYPERS, KEYS.float()), TypeError,
     "keys: expected an integer dtype, got torch.float32"),
    ("training.noise", given(PROGRAM, torch.arange(2), 0, 1), ValueError, "keys: expected shape [S 2], got [2]"),
    ("training.noise", given(PROGRAM, KEYS, 0, 0), ValueError, "cycles: expected at least 1, got 0"),
    ("training.cycle_keys", given(KEYS, -1, 1), ValueError, "first_cycle: expected at least 0, got -1"),
    ("training.cycle_keys", given(KEYS, 0, 1.5), TypeError, "cycles: expected an integer, got 1.5"),
    ("training.cycle_numbers", given(KEYS, 0, 0), ValueError, "cycles: expected at least 1, got 0"),
    ("training.draw_numbered", given(PROGRAM, KEYS.float(), torch.arange(2)), TypeError,
     "key: expected an integer dtype, got torch.float32"),
    ("compile.allow_tf32", given("high"), TypeError, "allowed: expected bool, got str"),
    ("compile.prepare_cuda", given(1), TypeError, "tf32: expected bool, got int"),
    ("compile.prepare_cuda", given(index=-1), ValueError, "index: expected at least 0, got -1"),
    ("training.draw", given(PROGRAM, torch.arange(3)), ValueError, "key: expected shape [... 2], got [3]"),
    ("training.cycle", given(PROGRAM, STATE, NOISE), ValueError,
     "params: expected the network's names and shapes, …; got …; use vmap(network.apply) for several seeds"),
    ("training.cycle", given(PROGRAM, NOISE, LANE), TypeError, "state: expected TrainState, got Noise"),
    ("training.cycle", given(PROGRAM, LANE, tree.index(NOISES, 0)), ValueError,
     "noise.act: expected shape [1 3 2], got [2, 1, 3, 2]"),
    ("training.collect", given(PROGRAM, LANE, OTHER_NOISE), ValueError,
     "noise.act: expected shape [1 3 2], got [1, 2, 2]"),
    ("training.learn", given(PROGRAM, LANE, OTHER_NOISE), ValueError, "noise.sample: expected shape [1 8], got [1, 4]"),
    ("training.interactions", given(NOISES._replace(act=KEYS)), ValueError,
     "noise.act: expected shape [S k E 2], got [2, 2]"),
    ("training.interactions", given(STATE), TypeError, "noise: expected Noise, got TrainState"),
    ("training.interact", given(PROGRAM, LANE, OTHER_NOISE), ValueError,
     "noise.act: expected shape [3 2], got [1, 2, 2]"),
    ("training.interact", given(PROGRAM, OTHER_NOISE, LANE), TypeError, "state: expected TrainState, got Noise"),
    ("training.update", given(PROGRAM, LANE, OTHER_NOISE.sample[0]), TypeError,
     "noise: expected UpdateNoise, got Tensor"),
    ("training.update", given(PROGRAM, LANE, training.UpdateNoise(OTHER_NOISE.sample[0])), ValueError,
     "noise.sample: expected shape [8], got [4]"),
    ("training.update", given(PROGRAM, LEARNER, training.UpdateNoise(OTHER_NOISE.sample[0])), TypeError,
     "state: expected TrainState, got Learner"),
    ("training.updates", given(STATE), TypeError, "noise: expected Noise, got TrainState"),
    ("training.updates", given(NOISES._replace(sample=KEYS)), ValueError,
     "noise.sample: expected shape [S n B], got [2, 2]"),
    ("training.policy", given(NETWORK), TypeError, "agent: expected Agent, got Network"),
    ("training.check_program", given(PROGRAM.algorithm), TypeError, "program: expected Program, got Algorithm"),
    ("training.sync", given(TRAINED), TypeError, "state: expected TrainState, got dict"),
    ("training.epsilon", given(HYPER, 70), TypeError, "step: expected a tensor, got int"),
    ("training.vmapped.collect", given(STATE, training.noise(TWO_ENVS, KEYS, 0, 1)), ValueError,
     "noise.act: expected shape [1 3 2], got […]"),
    ("training.scan", given(PROGRAM), TypeError, "step: expected a function, got Program"),
    ("training.scan.scanned", given(STATE, {}), ValueError,
     "xs: expected tensors with a first axis of one length, got no tensors"),
    ("training.run", given(PROGRAM, STATE, 0, FUNCTIONS, 10), ValueError, "steps: expected at least 1, got 0"),
    ("training.run", given(PROGRAM, STATE, 1e5, FUNCTIONS, 10), TypeError, "steps: expected an integer, got 100000.0"),
    ("training.run", given(PROGRAM, STATE, 100, FUNCTIONS, None), TypeError,
     "report_every: expected an integer, got None"),
    ("training.run", given(PROGRAM, STATE, 100, FUNCTIONS, 10, evaluate_every=-5), ValueError,
     "evaluate_every: expected at least 0, got -5"),
    ("training.run", given(PROGRAM, STATE, 100, None, 10), TypeError, "functions: expected Functions, got NoneType"),
    ("training.run", given(PROGRAM, LANE, 100, FUNCTIONS, 10), ValueError, "state.key: expected shape [S 2], got [2]"),
    ("training.run", given(PROGRAM, LEARNER, 100, FUNCTIONS, 10), TypeError, "state: expected TrainState, got Learner"),
    ("training.run", given(examples.program(hidden=(9,)), STATE, 100, FUNCTIONS, 10), ValueError,
     "params: expected the network's names and shapes, …; got …"),
    ("training.run", given(TWO_ENVS, STATE, 100, FUNCTIONS, 10), ValueError, "u: expected shape […] with …, got […]"),
    ("training.run", given(with_agent(values=lambda params, obs, noise: obs[..., :3]), STATE, 100, FUNCTIONS, 10),
     ValueError, "agent.values: expected shape [8 2], got [8, 3]"),
    ("training.noise", given(with_agent(noise=lambda rows: ((), ())), KEYS, 0, 1), TypeError,
     "agent.noise: expected NoiseShapes, got tuple"),
    ("training.run", given(with_fewer_rows(), STATE, 100, FUNCTIONS, 10), ValueError,
     "sample.batch.reward: expected shape [8], got [5]"),
    ("training.run", given(PROGRAM, STATE, 100, FUNCTIONS, 10, evaluate=np.zeros(2)), TypeError,
     "evaluate: expected a function, got ndarray"),
    ("training.snapshot", given(PROGRAM, LANE), ValueError, "state.key: expected shape [S 2], got [2]"),
    # evaluate
    ("evaluate.greedy_on_device", given("cartpole", PROGRAM.network, TRAINED, KEYS), TypeError,
     "env: expected Env, got str"),
    ("evaluate.greedy_on_device", given(CARTPOLE, nn.Linear(4, 2), TRAINED, KEYS), TypeError,
     "network: expected Network, got Linear"),
    ("evaluate.greedy_on_device", given(CARTPOLE, PROGRAM.network, TRAINED, KEYS, 0), ValueError,
     "episodes: expected at least 1, got 0"),
    ("evaluate.greedy_on_device", given(CARTPOLE, PROGRAM.network, TRAINED, KEYS, 1.5), TypeError,
     "episodes: expected an integer, got 1.5"),
    ("evaluate.greedy_on_device", given(CARTPOLE, PROGRAM.network, TRAINED, random.key([1, 2, 3])), ValueError,
     "params: expected as many seeds as there are keys, 3, got 2"),
    ("evaluate.greedy_on_device", given(CARTPOLE, PROGRAM.network, TRAINED, KEYS.double()), TypeError,
     "keys: expected an integer dtype, got torch.float64"),
    ("evaluate.greedy_on_device", given(CATCH, PROGRAM.network, TRAINED, KEYS, 1), ValueError,
     "obs: expected shape [... 4], got [1, 10, 5]"),
    ("evaluate.greedy_on_device", Given((CARTPOLE, PROGRAM.network, TRAINED, KEYS), {"epsilon": 1.5}), ValueError,
     "epsilon: expected a number from 0 to 1, got 1.5"),
    ("evaluate.greedy_on_host", given("CartPole-v1", PROGRAM.network, TRAINED, KEYS), TypeError,
     "env: expected HostEnv, got str"),
    ("evaluate.greedy", given("cartpole", PROGRAM.network, TRAINED, KEYS), TypeError,
     "env: expected Env or HostEnv, got str"),
    ("evaluate.not_played", given(0, 3), ValueError, "seeds: expected at least 1, got 0"),
    ("envs.on_host", given("cartpole"), TypeError, "env: expected Env or HostEnv, got str"),
    ("envs.open_host", given(CARTPOLE, 1, 1), TypeError, "env: expected HostEnv, got Env"),
    ("envs.open_host", given(HostEnv(None, CATCH.spec), 0, 1), ValueError, "seeds: expected at least 1, got 0"),
    ("envs.record_host", given(HostEnv(None, CATCH.spec), 1), ValueError,
     "env: expected an environment that renders, got a HostEnv without record"),
    ("evaluate.greedy_on_host", given(HostEnv(None, PROGRAM.env.spec), PROGRAM.network, TRAINED, [0, 1]), TypeError,
     "keys: expected a tensor [S 2], got list"),
    # settings and build
    ("settings.Settings", given(seeds="16"), TypeError, "seeds: expected a whole number, got '16'"),
    ("settings.Settings", given(seeds=True), TypeError, "seeds: expected a whole number, got True"),
    ("settings.Settings", given(steps=1e5), TypeError, "steps: expected a whole number, got 100000.0"),
    ("settings.Settings", given(gamma=None), TypeError, "gamma: expected a number, got None"),
    ("settings.Settings", given(hidden=8), TypeError, "hidden: expected whole numbers, got 8"),
    ("settings.Settings", given(double="no"), TypeError, "double: expected True or False, got 'no'"),
    ("settings.Settings", given(out=Path("run")), TypeError, "out: expected a path as a string, or None, got …"),
    ("settings.Settings", given(loss="l1"), ValueError, "loss: expected one of ('mse', 'huber'), got 'l1'"),
    *[("settings.Settings", given(device=name), ValueError,
       f"device: expected auto, cpu, cuda or cuda:N, got '{name}'") for name in ("tpu", "cuda:", "cuda:01", "cpu:0")],
    ("settings.check_device", given("tpu"), ValueError, "device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
    ("settings.from_json", given([1]), ValueError, "settings: expected a record, got list"),
    ("settings.from_json", given({}), ValueError, "settings: expected the fields of this version, got others: […]"),
    ("settings.from_json", given(saved(colour="red")), ValueError,
     "settings: expected the fields of this version, got others: ['colour']"),
    ("settings.from_json", given(saved(seeds="16")), ValueError, "settings.seeds: expected a whole number, got '16'"),
    ("settings.from_json", given(saved(hidden=[8.5])), ValueError,
     "settings.hidden: expected whole numbers, got (8.5,)"),
    ("settings.from_json", given(saved(loss="l1")), ValueError,
     "settings.loss: expected one of ('mse', 'huber'), got 'l1'"),
    ("settings.Settings", given(env_kwargs=8), TypeError, "env_kwargs: expected a list of strings, got 8"),
    ("settings.Settings", given(env_kwargs={"a": np.zeros(2)}), TypeError,
     "env_kwargs: expected a Python literal, such as a number, a string or a list, got a=array(…)"),
    ("settings.Settings", given(env_kwargs={"a": math.inf}), TypeError,
     "env_kwargs: expected a Python literal, such as a number, a string or a list, got a=inf"),
    ("settings.Settings", given(env_kwargs={2: 1}), TypeError, "env_kwargs: expected names of arguments, got 2"),
    ("settings.Settings", given(env_kwargs=["a"]), ValueError,
     "env_kwargs: expected name=value, such as is_slippery=False, got 'a'"),
    ("settings.Settings", given(env_kwargs=["a=1", "a=2"]), ValueError,
     "env_kwargs: expected each name once, got a twice"),
    ("settings.Settings", given(wrappers="a:b"), TypeError, "wrappers: expected a list of strings, got 'a:b'"),
    ("settings.Settings", given(wrappers=[nn.Linear]), TypeError, 
     "wrappers: expected a list of strings, got [<class …"),
    ("settings.Settings", given(wrappers=["a:b", "c"]), ValueError,
     "wrappers: expected a name such as package.module:Wrapper, got 'c'"),
    ("settings.make", given({"algorithm": "dqx"}), ValueError, "algorithm: expected one of ('dqn', …), got 'dqx'"),
    ("settings.make", given({"algorithm": ["dqn"]}), ValueError, "algorithm: expected one of ('dqn', …), got ['dqn']"),
    ("settings.make", given({"algorithm": "dqn"}, {"algorithm": "c51"}), ValueError,
     "algorithm: expected c51, the algorithm of the preset, got dqn; omit algorithm"),
    ("settings.make", given({"tau": 0.5, "target_period": 7}), ValueError,
     "target_period: expected tau = 1 with it, got 0.5; omit target_period"),
    ("settings.make", given({"v_min": 0.0}), ValueError,
     "v_min: expected algorithm c51 or rainbow, which read it, got dqn; omit v_min"),
    ("settings.make", given({"algorithm": "pqn", "quantiles": 3}), ValueError,
     "quantiles: expected algorithm qr-dqn, which reads it, got pqn; omit quantiles"),
    ("settings.make", given({"algorithm": "stream-q", "n_step": 3}), ValueError,
     "n_step: expected algorithm dqn, munchausen, …, iqn or rainbow, which read it, got stream-q; omit n_step"),
    ("settings.make", given({"learning_rate_end": 0.1, "learning_rate_schedule": "constant"}), ValueError,
     "learning_rate_end: expected learning_rate_schedule = linear or cosine with it, got constant; omit "
     "learning_rate_end"),
    ("settings.make", given({"sigma_zero": 0.1}), ValueError,
     "sigma_zero: expected noisy = True with it, got False; omit sigma_zero"),
    ("settings.make", given({"adam_eps": 0.1, "optimizer": "sgd"}), ValueError,
     "adam_eps: expected optimizer = adam, adamw, adamax, nadam or radam with it, got sgd; omit adam_eps"),
    ("settings.Sweep", given(varied=()), TypeError, "varied: expected a tuple of at least one dict, got ()"),
    ("settings.Sweep", given(varied=[{}]), TypeError, "varied: expected a tuple of at least one dict, got [{}]"),
    ("settings.Sweep", given(varied=({"gamma": 0.9}, {"tau": 0.9})), TypeError,
     "varied: expected dicts with the keys ['gamma'], got {'tau': 0.9}"),
    ("settings.Sweep", given(varied=({"colour": 1},)), ValueError, "varied: expected names of settings, got 'colour'"),
    ("settings.Sweep", given(varied=({"gamma": 0.9}, {"gamma": "much"})), TypeError,
     "gamma: expected a number, got 'much'"),
    ("settings.Sweep", given(varied=({"gamma": 0.9}, {"gamma": 0.8}), rung_of=1), ValueError,
     "rung_of: expected 0 or at least the number of settings, got 1"),
    ("settings.from_json", given(saved(varied={})), ValueError, "settings.varied: expected a list of records, got {}"),
    ("settings.from_json", given(saved(varied=[])), ValueError,
     "settings.varied: expected a tuple of at least one dict, got ()"),
    ("settings.from_json", given(saved(varied=[{"gamma": "x"}])), ValueError,
     "settings.gamma: expected a number, got 'x'"),
    ("assemble.program", given(Sweep(varied=({"gamma": 0.9}, {"gamma": 1.5}))), ValueError,
     "gamma: expected numbers in [0, 1], got 1.5 (setting 1 of the sweep)"),
    ("assemble.program", given(Sweep(varied=({"batch_size": 8}, {"batch_size": 16}))), ValueError,
     "varied: expected settings that one program can train, got others; use sweep_plan.plan"),
    ("settings.Sweep", given(pbt_every=2.5), TypeError, "pbt_every: expected a whole number, got 2.5"),
    ("settings.Sweep", given(bounds={"gamma": 0.9}), TypeError,
     "bounds: expected two numbers for each name, got {'gamma': 0.9}"),
    ("settings.from_json", given(saved(pbt_every=2000)), ValueError,
     "settings: expected the fields of this version, got others: ['pbt_every']"),
    *[("assemble.program", given(Sweep(**{**EVOLVING, **changes})), ValueError, message) for changes, message in (
        ({"varied": ({"gamma": 0.9},)}, "pbt_every: expected at least 2 settings, got 1; use more values"),
        ({"pbt_every": -1}, "pbt_every: expected a multiple of report_every = 2000, got -1; use 2000"),
        ({"pbt_every": 500}, "pbt_every: expected a multiple of report_every = 2000, got 500; use 2000"),
        ({"bounds": {}}, "bounds: expected a range for gamma, got none"),
        ({"bounds": {"gamma": (0.5, 0.9)}},
         "bounds: expected the range of a varied number, got gamma from 0.5 to 0.9"),
        ({"bounds": {"gamma": (0.9, 1.0), "tau": (0.1, 0.2)}},
         "bounds: expected the range of a varied number, got tau from 0.1 to 0.2"),
    )],
    ("assemble.check_evolves", given(["gamma", "double"]), ValueError,
     "double: expected one value with pbt_every, got several; population based training cannot change it while a "
     "learner trains"),
    *[("sweep_plan.plan", given(settings, values, pbt_every=every), error, message)
      for settings, values, every, error, message in (
        ({}, {"gamma": [0.9, 0.99]}, 2.5, TypeError, "pbt_every: expected an integer, got 2.5"),
        ({}, {"gamma": [0.9, 0.99]}, 3000, ValueError,
         "pbt_every: expected a multiple of report_every = 2000, got 3000; use 2000 or 4000"),
        ({"steps": 10**4}, {"gamma": [0.9, 0.99]}, 10**4, ValueError,
         "pbt_every: expected more than the 1000 steps before the first update and fewer than steps = 10000, got "
         "10000"),
        ({}, {"gamma": [0.9, 0.99], "hidden": [(8,), (4,)]}, 2000, ValueError,
         "hidden: expected one value with pbt_every, got several; …"),
        ({}, {"epsilon_fraction": [0.1, 0.2]}, 2000, ValueError,
         "epsilon_fraction: expected one value with pbt_every, got several; …"),
        ({}, {"gamma": [0.9, 0.99], "tau": [0.1, 1.0]}, 2000, ValueError,
         "tau: expected values of one program with pbt_every, got 0.1 and 1.0, which need two; omit one of them"),
        ({"algorithm": "stream-q"}, {"gamma": [0.9, 0.99]}, 2000, ValueError,
         "pbt_every: expected another algorithm, got stream-q, whose scale of rewards …"),
    )],
    *[("sweep_plan.plan", given(*arguments), error, message) for arguments, error, message in (
        (({}, {}, {"gamma": Draw("a", 1, "log")}), TypeError, "gamma: expected a range of two numbers, got 'a'"),
        (({}, {}, {"double": Draw(0, 1, "log")}), ValueError,
         "double: expected a list of values, got a range; only numbers can be drawn from one"),
        (({}, {}), ValueError, "values: expected at least one setting with several values or a range, got none"),
        (({}, {"gamma": []}), ValueError, "gamma: expected at least one value, got none"),
        (({}, {"gamma": 0.9}), TypeError, "gamma: expected a list of values or a range, got 0.9"),
        (({}, {"algorithm": "dqn"}), TypeError, "algorithm: expected a list of values or a range, got 'dqn'"),
        (({}, {"gamma": [0.9, 0.99, 0.9]}), ValueError, "gamma: expected each value once, got 0.9 2 times"),
        (({}, {"learning_rate": [1e-3, 1.00000000001e-3]}), ValueError,
         "learning_rate: expected each value once, got 0.001 2 times"),
        (({}, {"hidden": [[8], (8,)]}), ValueError, "hidden: expected each value once, got 8 2 times"),
        (({}, {"gama": [0.9]}), ValueError,
         "gama: expected the name of a setting; see fdqn.experiment.settings.Settings"),
        (({}, {"gamma": [0.9, 1.5], "tau": [0.1, 0.2]}), ValueError,
         "gamma: expected numbers in [0, 1], got 1.5 (in the setting gamma = 1.5, tau = 0.1)"),
        (({}, {"gamma": ["much"]}), TypeError, "gamma: expected a number, got 'much'"),
        (({}, {"v_min": [0.0], "algorithm": ["c51", "dqn"]}), ValueError,
         "v_min: expected algorithm c51 or rainbow, which read it, got dqn; omit v_min (in the setting v_min = 0.0, "
         "algorithm = dqn)"),
        (({"seeds": 2**19}, {"gamma": [0.9, 0.99, 1.0]}), ValueError,
         "seeds: expected at most 2**20 learners, got 3 settings x 524,288 seeds"),
        (({"seeds": 2}, {}, {"gamma": Draw(0.9, 1.0, "linear")}, 2**20), ValueError,
         "seeds: expected at most 2**20 learners, got 1,048,576 settings x 2 seeds"),
        (({}, {"env": ["cartpole", "catch"]}), ValueError,
         "env: expected one environment for all settings of a sweep, got several; returns in different environments "
         "cannot be ranked"),
        *(
            (({}, {name: [1, 2]}), ValueError, f"{name}: expected one value for all settings of a sweep, got several")
            for name in ("seeds", "seed", "out", "report_every", "evaluate_every", "checkpoint_every", "on_nan",
                         "keep_checkpoints", "device", "engine", "compile", "tf32", "save_replay")
        ),
        (({}, {}, {"gamma": Draw(0.9, 1.0, "linear")}, 0), ValueError, "samples: expected at least 1, got 0"),
        (({}, {}, {"gamma": Draw(0.9, 1.0, "exp")}), ValueError,
         "gamma: expected the scale 'log' or 'linear', got 'exp'"),
        (({}, {}, {"adam_eps": Draw(0.0, 1.0, "log")}), ValueError,
         "adam_eps: expected a range above 0 for log:, got 0:1; use lin:"),
        (({}, {}, {"gamma": Draw(0.99, 0.9, "linear")}), ValueError,
         "gamma: expected a range from a lower to a higher number, got 0.99:0.9"),
        (({}, {}, {"gamma": Draw(0.9, math.inf, "linear")}), ValueError,
         "gamma: expected a range from a lower to a higher number, got 0.9:inf"),
        (({}, {}, {"gamma": Draw(math.nan, 1.0, "linear")}), ValueError,
         "gamma: expected a range from a lower to a higher number, got nan:1"),
        (({}, {}, {"double": Draw(0, 1, "linear")}), ValueError,
         "double: expected a list of values, got a range; only numbers can be drawn from one"),
        (({}, {}, {"target_period": Draw(1.2, 1.8, "linear")}), ValueError,
         "target_period: expected a range with a whole number, got 1.2:1.8"),
        (({}, {}, {"seed": Draw(0, 9, "linear")}), ValueError,
         "seed: expected one value for all settings of a sweep, got several"),
        (({}, {}, {"gamma": Draw(0.9, 1.5, "linear")}, 16), ValueError,
         "gamma: expected numbers in [0, 1], got … (in the setting gamma = …)"),
    )],
    ("sweep.train", given(sweep_plan.plan({"out": "run"}, {"gamma": [0.9, 0.99]})), ValueError,
     "out: expected a folder that does not exist yet, got 'run'; choose another --out"),
    ("sweep.train", given(sweep_plan.plan({"out": "run"}, {"hidden": [(8,), (4,)]})), ValueError,
     "out: expected a folder that does not exist yet, got 'run'; choose another --out"),
    ("sweep.resume", given(Path("run")), ValueError, "sweep: expected the folder of a sweep, got run"),
    ("sweep.resume", given(Path("two-programs"), env="catch"), ValueError,
     "env: expected 'cartpole', the environment trained on, got 'catch'"),
    ("sweep.resume", given(Path("two-programs"), steps=10**6), ValueError,
     "steps: expected none for a sweep of several programs, got a number; omit it"),
    ("sweep.resume", given(Path("code-programs")), ValueError,
     "env: expected the environment of code-programs, which is user code, got none; pass --env my.games:chess"),
    ("sweep_results.read", given(Path("run")), ValueError,
     "sweep: expected the folder of a sweep, got run, a run of one setting"),
    ("sweep_results.read", given(Path("two-programs")), ValueError,
     "sweep: expected a finished sweep, got two-programs, whose program 1 of 2 has not finished; continue with: fdqn "
     "resume two-programs"),
    *[("sweep_results.read", given(Path(name)), ValueError,
       f"sweep: expected a sweep, got {name} with a sweep.json that is invalid: {says}")
      for name, says in (
          ("bad-programs", "Expecting …"), ("no-programs", "expected 0 settings, got 0"),
          ("half-programs", "expected 2 settings, got 1"), ("no-names", "no 'names'"),
          ("twice-programs", "expected each setting from 0 to 1 once, got 0 with ['hidden']"),
          ("plain-programs", "expected programs with a number for each of their settings, got [0]"),
      )],
    ("sweep_plan.read", given(Path("bad-programs")), ValueError,
     "sweep: expected a sweep, got bad-programs with a sweep.json that is invalid: …"),
    ("sweep_plan.check_code", given(Path("x"), Settings(), "catch"), ValueError,
     "env: expected 'cartpole', the environment trained on, got 'catch'"),
    # shards
    *[("shard_plan.plan", given(own, count), error, message)
      for own, count, error, message in (
          ("run", 2, TypeError, "settings: expected Settings, got str"),
          (Settings(), 0, ValueError, "shards: expected at least 1, got 0"),
          (Settings(), 2.0, TypeError, "shards: expected an integer, got 2.0"),
          (Settings(seeds=10), 4, ValueError,
           "shards: expected a number that divides 10 seeds such as 1, 2, 5, 10, got 4"),
          (Sweep(varied=({"gamma": 0.9}, {"gamma": 0.99}, {"gamma": 0.5}), seeds=4), 8, ValueError,
           "shards: expected a number that divides 3 settings x 4 seeds, by settings or parts of one setting, such as "
           "1, 3, 6, 12, got 8"),
          (sweep_plan.plan({}, GAMMAS, pbt_every=2_000).programs[0].settings, 2, ValueError,
           "shards: expected none with pbt_every, got both; the members of a population are trained together"),
          (Settings(gamma=2.0), 2, ValueError, "gamma: expected numbers in [0, 1], got 2.0"),
      )],
    ("shard_plan.plan_sweep", given(sweep_plan.plan({}, {**GAMMAS, "hidden": [(8,), (4,)]}), 2), ValueError,
     "shards: expected settings that one program can train, got 2 programs; train each in a separate run"),
    *[("shard_plan.create", given(shard_plan.plan(Settings(**{"seeds": 4, "engine": "eager", **own}), count)),
       ValueError, message)
      for own, count, message in (
          ({"out": "run"}, 2, "out: expected a folder that does not exist yet, got 'run'; choose another --out"),
          ({"out": "parts"}, 4, "shards: expected 2, as in parts/shards.json, got 4; choose another --out"),
          ({"out": "parts", "gamma": 0.5}, 2,
           "out: expected the settings of parts/shards.json, got gamma = 0.5 and not 0.99; choose another --out"),
          ({"out": "bad-parts"}, 2,
           "run: expected a sharded run, got bad-parts with a shards.json that is invalid: Expecting …"),
          ({"out": "file/run"}, 2, "out: expected a folder that can be created, got 'file/run', but …"),
      )],
    *[("shard_plan.read", given(Path(name)), ValueError, says)
      for name, says in (
          ("run", "run: expected a sharded run, got run without shards.json"),
          *[(name, f"run: expected a sharded run, got {name} with a shards.json that is invalid: {says}")
            for name, says in (
                ("bad-parts", "Expecting …"), ("no-parts", "no 'shards'"),
                ("three-parts", "shards: expected a number that divides 4 seeds such as 1, 2, 4, got 3"),
                ("huge-parts", "shards: expected a number that divides 4 seeds such as 1, 2, 4, got 1000000"),
                ("grouped-parts", "expected groups that divide 2 learners, got {'lanes': 3, 'threads': 1}"),
                ("plain-parts", "expected a provenance with device, engine, git, processor, versions, got others"),
                ("nested-parts", "maximum recursion …"),
            )],
      )],
    ("shards.train", given(Path("run")), ValueError, "run: expected a sharded run, got run without shards.json"),
    ("shards.train", given(Path("parts"), steps=10**6), ValueError,
     "steps: expected none for a sharded run, got a number; omit it"),
    ("shards.train", given(Path("parts"), numbers=[2]), ValueError, "shard: expected a number from 0 to 1, got 2"),
    ("shards.train", given(Path("parts"), env="catch"), ValueError,
     "env: expected 'cartpole', the environment trained on, got 'catch'"),
    ("shards.train", given(Path("code-parts")), ValueError,
     "env: expected the environment of code-parts, which is user code, got none; pass --env my.games:chess"),
    ("shards.assigned", given(2, {"RANK": "0"}), ValueError, "WORLD_SIZE: expected a number, got 'none'"),
    ("shards.assigned", given(2, {"JOB_COMPLETION_INDEX": "2"}), ValueError,
     "JOB_COMPLETION_INDEX: expected a number below 2, for 2 shards and processes numbered from 0, got 2"),
    ("shards.check_number", given(2, 2), ValueError, "shard: expected a number from 0 to 1, got 2"),
    ("shards.check_number", given(-1, 2), ValueError, "shard: expected at least 0, got -1"),
    ("shards.raise_first", given({3: "full disk", 5: "full disk"}), ValueError,
     "shard 3: full disk (errors in 2 shards)"),
    ("shards.check_untracked", given(["wandb"]), ValueError,
     "track: expected no tracker with shards, got wandb; omit track"),
    ("merging.merge", given(Path("run")), ValueError, "run: expected a sharded run, got run without shards.json"),
    ("merging.merge", given(Path("parts")), ValueError,
     "shards: expected at least one finished shard in parts, got none of 2: shard 0 (seeds 0 to 1) is left out: "
     "expected the run parts/shards/00000, got none"),
    ("merging.read_shard", given(Path("parts"), shard_plan.plan(Settings(seeds=4), 2), 1), ValueError,
     "expected the run parts/shards/00001, got none"),
    ("shard_folders.check_shard", given(Path("parts"), shard_plan.plan(Settings(seeds=4), 2), 1), ValueError,
     "run: expected a finished run folder, got parts/shards/00001 without config.json"),
    ("results.read", given(Path("parts")), ValueError,
     "run: expected a finished run folder, got parts, whose shards are not merged; use fdqn resume parts or, …"),
    ("history.read_rows", given(Path("page.html").parent / "empty.csv"), ValueError,
     "empty.csv: expected rows, got an empty file"),
    ("history.check_rows", given(Path("few-rows")), checkpoint.CheckpointError,
     "few-rows/metrics.csv: expected at least … bytes, as at the checkpoint of step 100, got others; …"),
    # successive halving
    *[("halving_plan.plan", given(sweep_plan.plan(own, values), eta), ValueError, message)
      for own, values, eta, message in (
          ({}, GAMMAS, 1, "halving: expected at least 2, got 1"),
          ({}, GAMMAS, 4, "halving: expected at least 5 settings with eta = 4, got 4; use more values"),
          ({}, {**GAMMAS, "hidden": [(8,), (4,)]}, 2,
           "halving: expected settings that one program can train, got 2 programs for the values of hidden; choose one "
           "value"),
          ({}, {"kappa": [0.0, 1.0], "algorithm": ["qr-dqn"]}, 2,
           "halving: expected settings that one program can train, got 2 programs for the values of kappa; choose …"),
          ({"save_replay": False}, GAMMAS, 2,
           "save_replay: expected True with halving, whose rungs start from checkpoints, got False"),
          ({"steps": 2_000}, GAMMAS, 2,
           "steps: expected enough for 2 rungs that end at reports, every 2,000 steps, got 2,000; use more steps or a "
           "lower report_every"),
          ({"steps": 4_000, "learning_starts": 2_500}, GAMMAS, 2,
           "steps: expected enough for a first rung of more than the 2,500 steps before the first update, got 4,000 "
           "with a first rung of 2,000; use more steps or fewer settings"),
      )],
    ("halving_plan.survivors", given(np.full((3, 2), np.nan), [False] * 3, 2), ValueError,
     "steps: expected a finished episode before the end of a rung, got none; train for more steps"),
    *[("halving_plan.read", given(Path(name)), ValueError,
       f"sweep: expected a sweep, got {name} with a halving.json that is invalid: {says}")
      for name, says in (
          ("bad-rungs", "Expecting …"), ("no-eta", "no 'eta'"),
          ("other-rungs", "expected rungs of [4, 2] settings with their ends, got …"),
          ("other-ends", "expected ends up to 100000, got [50000, 90000]"),
          ("other-numbers", "expected 4 settings of the rung before, got [0, 1, 2, 2]"),
          ("plain-rungs", "expected the settings of a first rung, got others"),
      )],
    ("halving.train", given(halving_plan.plan(sweep_plan.plan({"out": "run"}, GAMMAS), 2)), ValueError,
     "out: expected a folder that does not exist yet, got 'run'; choose another --out"),
    ("halving.resume", given(Path("rungs"), steps=10**6), ValueError,
     "steps: expected none for a sweep with halving, got a number; omit it"),
    ("halving.resume", given(Path("rungs"), env="catch"), ValueError,
     "env: expected 'cartpole', the environment trained on, got 'catch'"),
    ("halving.resume", given(Path("code-rungs")), ValueError,
     "env: expected the environment of code-rungs, which is user code, got none; pass --env my.games:chess"),
    ("sweep_results.read", given(Path("rungs")), ValueError,
     "sweep: expected a finished sweep, got rungs, whose rung 1 of 2 has not finished; continue with: fdqn resume …"),
    ("sweep_results.locate", given(Path("rungs"), 4), ValueError,
     "setting: expected a number from 0 to 3, as listed in settings.csv, got 4; pass --setting"),
    *[("arms.read", given([Path(name)]), ValueError,
       f"arms: expected a sweep, got {name} with a {file} that is invalid: …")
      for name, file in (
          ("bad-rungs", "halving.json"), ("other-numbers", "halving.json"), ("nested-rungs", "halving.json"),
          ("empty-programs", "sweep.json"), ("one-number", "sweep.json"), ("nested-programs", "sweep.json"),
          ("twice-programs", "sweep.json"), ("other-scales", "sweep.json"),
      )],
    ("sweep_results.read", given(Path("other-scales")), ValueError,
     "sweep: expected a sweep, got other-scales with a sweep.json that is invalid: expected the scales 'log' or …"),
    ("api.resume", given("rungs"), ValueError, "path: expected a run or a sweep of one program, got rungs; …"),
    ("api.sweep", given({"gamma": [0.9, 0.99]}, halving=2, progress=False), ValueError,
     "halving: expected at least 3 settings with eta = 2, got 2; use more values"),
    ("sweep_results.best_setting", given(Path("hollow")), ValueError,
     "run: expected a finished run folder, got hollow without …"),
    ("sweep_results.on_fresh_seeds", given(Path("run"), {}), ValueError,
     "sweep: expected the folder of a sweep, got run, a run of one setting"),
    ("sweep_results.read", given(Path("population")), ValueError,
     "sweep: expected a sweep of fixed settings, got population with population based training, which changes the "
     "settings while they train; see its best members with: fdqn report population"),
    ("sweep_results.best_setting", given(Path("population")), ValueError,
     "best_of: expected a sweep of fixed settings, got population with population based training, which changes the "
     "settings while they train; to repeat it on fresh seeds, train it again with another --seed"),
    ("sweep_results.locate", given(Path("population"), 1), ValueError,
     "setting: expected none for population with population based training, got 1; omit it to use the best member of "
     "each seed"),
    ("sweep_results.trained", given(Path("population"), None, "100"), ValueError,
     "checkpoint: expected last for population with population based training, whose best members are those at the "
     "end, got '100'; omit it"),
    ("population.read", given(Path("run")), ValueError,
     "population: expected a run with population based training, got run"),
    ("population.read", given(Path("bad-population")), ValueError,
     "population: expected a learner for each of 1 seeds in summary.json of bad-population, got others"),
    ("population.read", given(Path("bad-table")), ValueError,
     "population: expected 4 numbers in rows of 2 learners in bad-table/population.csv, got others"),
    *[("population.read", given(Path(name)), ValueError,
       f"population: expected 4 numbers in rows of 2 learners in {name}/population.csv, got others")
      for name in ("nan-step", "infinite")],
    *[("population.read", given(Path(name)), ValueError,
       f"population: expected the steps 50, 100 in {name}/population.csv, got {got}")
      for name, got in (
          ("no-steps", "none"), ("no-table", "none"), ("other-step", "60"), ("huge-step", f"{1e30:.0f}"),
      )],
    ("population.read", given(Path("no-returns")), ValueError,
     "population.final_return: expected 1 returns in summary.json of no-returns, got {}"),
    ("population.read", given(Path("no-values")), ValueError,
     "population: expected seed and values of each best member in summary.json of no-values, got others"),
    ("population.read", given(Path("bad-source")), ValueError,
     "population: expected sources among the learners of the same seed in bad-source/population.csv, got others"),
    ("sweep_results.locate", given(Path("run"), 0), ValueError,
     "setting: expected none for a run of one setting, got 0"),
    ("sweep_results.locate", given(Path("two-programs"), None), ValueError,
     "setting: expected a number from 0 to 1, as listed in settings.csv, got none; pass --setting"),
    ("sweep_results.locate", given(Path("two-programs"), 2), ValueError,
     "setting: expected a number from 0 to 1, as listed in settings.csv, got 2; pass --setting"),
    ("sweep_results.locate", given(Path("sweep"), -1), ValueError,
     "setting: expected a number from 0 to 1, as listed in settings.csv, got -1; pass --setting"),
    ("results.of_setting", given(results.Trained(SETTINGS, 1, {}, [], []), 0), TypeError,
     "found.settings: expected a Sweep, got Settings"),
    ("api.sweep", given({"gama": [0.9, 0.99]}), TypeError, "train: unknown setting 'gama'; did you mean 'gamma'?"),
    ("api.sweep", given({"gamma": [0.9, 1.5]}, env="catch", progress=False), ValueError,
     "gamma: expected numbers in [0, 1], got 1.5 (in the setting gamma = 1.5)"),
    ("api.sweep", given({"gamma": [0.9, 0.99]}, pbt_every=0, progress=False), ValueError,
     "pbt_every: expected at least 1, got 0"),
    ("api.resume", given("two-programs"), ValueError,
     "path: expected a run or a sweep of one program, got two-programs; continue it with fdqn.resume_sweep"),
    ("api.resume_sweep", given(None), TypeError, "path: expected str or PathLike, got NoneType"),
    ("api.resume_sweep", given("run", progress=False), ValueError, "sweep: expected the folder of a sweep, got …/run"),
    ("api.resume_sweep", given("two-programs", step=3), TypeError,
     "resume_sweep: unknown argument 'step'; see fdqn.resume"),
    ("training.parametrized", given(None, {}), TypeError, "make: expected a function, got NoneType"),
    ("training.parametrized", given(lambda numbers: AGENT, {}), TypeError,
     "make(numbers): expected Algorithm, got Agent"),
    ("settings.check_read", given(Settings(fractions=3)), ValueError,
     "fractions: expected algorithm iqn, which reads it, got dqn; omit fractions"),
    *[(f"assemble.{name}", given({"env": "cartpole"}), TypeError, "settings: expected Settings, got dict")
      for name in ("program", "network", "hyper", "seeds", "keys", "device", "body", "parts")],
    ("assemble.algorithm", given({}, PROGRAM.config, PROGRAM.env.spec), TypeError,
     "settings: expected Settings, got dict"),
    *[("assemble.program", given(make(values)), ValueError, message) for values, message in (
        ({"algorithm": "c51", "v_min": 5.0, "v_max": 5.0},
         "v_min: expected a number below v_max = 5.0, got 5.0; the returns of the environment must lie between them"),
        ({"algorithm": "c51", "v_max": math.inf}, "v_max: expected a finite number, got inf"),
        ({"algorithm": "c51", "v_max": 1e39}, "v_max: expected a number from -1e+38 to 1e+38, got 1e+39"),
        ({"algorithm": "c51", "v_min": 1e8, "v_max": 1e8 + 10, "atoms": 51},
         "atoms: expected atoms that differ in float32, got 51 from 100000000.0 to 100000010.0; use fewer or a …"),
        ({"algorithm": "c51", "v_min": 0.0, "v_max": 1e-45},
         "atoms: expected atoms that differ in float32, got 101 from 0.0 to 1e-45; use fewer or a wider support"),
        *[(values, f"{[*values][-1]}: expected at least 1.2e-38, the smallest number of float32, got 1e-50")
          for values in ({"algorithm": "munchausen", "munchausen_tau": 1e-50}, {"algorithm": "qr-dqn", "kappa": 1e-50},
                         {"loss": "huber", "huber_delta": 1e-50}, {"tau": 1e-50})],
        ({"algorithm": "qr-dqn", "kappa": 1e39}, "kappa: expected a number from -1e+38 to 1e+38, got 1e+39"),
        ({"algorithm": "c51", "v_min": -(10**39)}, "v_min: expected a number from -1e+38 to 1e+38, got -1000…"),
        ({"algorithm": "stream-q", "env": "minatar:breakout", "hidden": (64,)},
         "hidden: expected the default, as minatar:breakout has boards [4, 10, 10], …"),
        ({"algorithm": "c51", "atoms": 1}, "atoms: expected at least 2, got 1"),
        ({"algorithm": "qr-dqn", "quantiles": 0}, "quantiles: expected at least 1, got 0"),
        ({"algorithm": "iqn", "fractions": 0}, "fractions: expected at least 1, got 0"),
        ({"algorithm": "munchausen", "munchausen_alpha": 1.5},
         "munchausen_alpha: expected a number in [0, 1], got 1.5"),
        ({"algorithm": "munchausen", "munchausen_tau": 0.0},
         "munchausen_tau: expected a number in (0, inf), got 0.0"),
        ({"algorithm": "munchausen", "munchausen_clip": 1.0},
         "munchausen_clip: expected a number in (-inf, 0], got 1.0"),
        ({"prioritized": True, "priority_alpha": -0.1}, "priority_alpha: expected a number in [0, 1], got -0.1"),
        ({"algorithm": "pqn", "q_lambda": 2.0}, "q_lambda: expected a number in [0, 1], got 2.0"),
        ({"algorithm": "stream-q", "stream_kappa": 0.0}, "stream_kappa: expected a number in (0, inf), got 0.0"),
        ({"noisy": True, "network": "layernorm-mlp"},
         "noisy: expected network mlp, nature or minatar with it, got layernorm-mlp; omit one of them"),
        ({"network": "minatar"},
         "network: expected auto or one for the observations [4] of cartpole, got minatar, which needs images of at "
         "least 3 x 3"),
        ({"network": "nature", "env": "minatar:breakout"},
         "network: expected auto or one for the observations [4, 10, 10] of minatar:breakout, got nature, which needs "
         "images of at least 36 x 36"),
    )],
    ("sizes.describe", given({}), TypeError, "settings: expected Settings, got dict"),
    ("sizes.describe", given(Settings(gamma=1.5)), ValueError, "gamma: expected numbers in [0, 1], got 1.5"),
    ("api.summary", given(gama=0.9), TypeError, "train: unknown setting 'gama'; did you mean 'gamma'?"),
    ("api.summary", given("run", gamma=0.9), TypeError,
     "summary: expected only env and wrappers with a run, got gamma; omit it"),
    ("api.summary", given(8), TypeError, "run: expected str or PathLike, got int"),
    ("api.summary", given(Settings(), gamma=0.9), TypeError, "train: expected settings or keywords, got both; …"),
    ("sizes.describe_run", given(Path("nowhere")), ValueError,
     "run: expected a finished run folder, got nowhere without config.json"),
    ("assemble.env", given({}), TypeError, "settings: expected Settings, got dict"),
    ("assemble.env", given(Settings(env="cartpol")), ValueError, "unknown environment 'cartpol'; did you mean …"),
    ("assemble.program", given(Settings(env="cartpol")), ValueError, "unknown environment 'cartpol'; did you mean …"),
    ("assemble.program", given(Settings(tau=float("nan"))), ValueError, "tau: expected a number in (0, 1], got nan"),
    ("assemble.program", given(Settings(learning_starts=10**6)), ValueError,
     "learning_starts: expected fewer than steps = 100000 in whole training iterations of 10, got 1000000: no update "
     "would be made"),
    ("assemble.hyper", given(Settings(learning_rate=-1.0)), ValueError,
     "learning_rate: expected numbers in [0, inf], got -1.0"),
    ("assemble.updates", given({"env": "cartpole"}), TypeError, "settings: expected Settings, got dict"),
    ("assemble.keys", given(Settings(seed=-1)), ValueError, "seed: expected integers in [0, 2**32), got -1 to 14"),
    ("memory.check_memory", given(assemble.program(HUGE), 2, torch.device("cpu")), ValueError,
     "capacity: expected seeds that fit in … GB of free memory …, got 2 seeds that need … GB, of which … GB is …; "
     "lower --capacity or --seeds"),
    ("memory.available", given("cuda"), TypeError, "device: expected device, got str"),
    ("memory.check_memory", given(PROGRAM, 2, "cpu"), TypeError, "device: expected device, got str"),
    ("memory.state_bytes", given(PROGRAM, -1), ValueError, "seeds: expected at least 1, got -1"),
    ("assemble.adam", given(HYPERS), ValueError,
     "learning_rate: expected a number or a tensor [], got shape [2]; use vmap for several seeds"),
    ("assemble.rmsprop", given(HYPERS), ValueError,
     "learning_rate: expected a number or a tensor [], got shape [2]; use vmap for several seeds"),
    ("assemble.nature_rmsprop", given(HYPERS), ValueError,
     "learning_rate: expected a number or a tensor [], got shape [2]; use vmap for several seeds"),
    ("assemble.clipped", given("adam"), TypeError, "rule: expected a function, got str"),
    ("assemble.buffer", given(SETTINGS, PROGRAM.env.spec), TypeError, "config: expected Config, got Settings"),
    ("assemble.agent", given({}), TypeError, "settings: expected Settings, got dict"),
    ("assemble.optimizer", given({}), TypeError, "settings: expected Settings, got dict"),
    # frames
    ("frames.init", given(torch.tensor(1.0), 2, 9), ValueError,
     "example: expected a stack of frames …, got a number"),
    ("frames.init", given(torch.zeros(3, 2), 2, 5), ValueError, "capacity: expected at least 6, got 5"),
    ("frames.init", given(torch.zeros(3, 2), 0, 9), ValueError, "num_envs: expected at least 1, got 0"),
    ("frames.add", given(SHOWN, torch.zeros(2, 2, 2), torch.zeros(2, 3, 2), TWO, TWO), ValueError,
     "obs: expected shape [E 3 2], got [2, 2, 2]"),
    ("frames.add", given(SHOWN, torch.zeros(2, 3, 2), torch.zeros(2, 3, 2), TWO.float(), TWO), TypeError,
     "ended: expected torch.bool, got …"),
    ("frames.add", given(SHOWN, torch.zeros(2, 3, 2), torch.zeros(2, 3, 2), TWO, TWO.float()), TypeError,
     "valid: expected torch.bool, got …"),
    ("frames.add", given(SHOWN, torch.zeros(2, 3, 2).double(), torch.zeros(2, 3, 2), TWO, TWO), TypeError,
     "obs: expected torch.float32, got torch.float64"),
    ("frames.stack", given(SHOWN, torch.zeros(3, dtype=torch.int64)), ValueError,
     "at: expected shape [B 2], got [3]"),
    # n_step
    ("n_step.init", given(ROW, 0, 2), ValueError, "num_envs: expected at least 1, got 0"),
    ("n_step.init", given(ROW, 1, 0), ValueError, "steps: expected at least 1, got 0"),
    ("n_step.add", given(RECENT, BATCH, torch.zeros(3, dtype=torch.bool), LEGAL[:, 0], GAMMA), ValueError,
     "ended: expected shape [E] with E = 4, got [3]"),
    ("n_step.add", given(RECENT, BATCH, LEGAL[:, 0].float(), LEGAL[:, 0], GAMMA), TypeError,
     "ended: expected torch.bool, got …"),
    ("n_step.add", given(RECENT, BATCH, LEGAL[:, 0], LEGAL[:, 0], HYPERS.gamma), ValueError,
     "gamma: expected shape [], got [2]"),
    # compile
    ("compile.compile", given("f"), TypeError, "f: expected a function, got str"),
    ("compile.donate", given(PROGRAM), TypeError, "f: expected a function, got Program"),
    ("compile.donate.donated", given({"a": Q.clone()}), TypeError,
     "state['a']: expected torch.float32, got torch.float64"),
    ("compile.donate.same", given({"a": Q, "b": Q}), ValueError,
     "state: expected leaves with separate storage, got 0 and 1 sharing one"),
    ("compile.donate.same", given({"a": torch.ones(1).expand(3)}), ValueError,
     "state['a']: expected separate memory for every element, got shape [3] with strides [0], …"),
    ("compile.donate.same", given({"a": 1.0}), TypeError, "state['a']: expected a tensor, got float"),
    ("compile.scan", given(None), TypeError, "f: expected a function, got NoneType"),
    ("compile.scan.run", given({"a": Q.clone()}, torch.tensor(1.0)), ValueError,
     "xs: expected tensors with a first axis of one length, got one []"),
    ("compile.scan_vmapped_async", given(sames, 4), TypeError, "partition: expected a function, got int"),
    ("compile.scan_vmapped", given(sames, 4), TypeError, "partition: expected a function, got int"),
    ("compile.compiled", given(None), TypeError, "program: expected Program, got NoneType"),
    ("compile.compiled", given(PROGRAM, True, "jit"), ValueError,
     "engine: expected one of ('auto', 'aot', 'inductor', 'torch.compile', 'eager'), got 'jit'"),
    ("compile.compile", given(sames, 1), TypeError, "engine: expected str, got int"),
    ("compile.resolve", given("auto", "cpu"), TypeError, "device: expected device, got str"),
    ("compile.resolve", given("AOT", torch.device("cpu")), ValueError,
     "engine: expected one of ('auto', 'aot', 'inductor', 'torch.compile', 'eager'), got 'AOT'"),
    # checkpoint
    ("checkpoint.save", given(Path("new"), "latest", PARAMS, {}), checkpoint.CheckpointError,
     "name: expected a number of steps, such as '2000', got 'latest'"),
    ("checkpoint.save", given(Path("new"), "1", {"a": 1.0}, {}), checkpoint.CheckpointError,
     "state['a']: expected a tensor of a dtype among […], got float"),
    ("checkpoint.save", given(Path("file"), "1", PARAMS, {}), checkpoint.CheckpointError,
     "file/1: expected to write a checkpoint, got File exists; earlier ones are unchanged; …"),
    ("checkpoint.save", given(Path("run/checkpoints"), "1", PARAMS, {"a": float("nan")}), checkpoint.CheckpointError,
     "record: expected JSON values, got others: …"),
    ("checkpoint.load", given(Path("nowhere"), PARAMS), checkpoint.CheckpointError,
     "nowhere/manifest.json: expected a file of a checkpoint, got No such file or directory; use another checkpoint"),
    ("checkpoint.load", given(Path("run/checkpoints/100"), PARAMS), checkpoint.CheckpointError,
     "run/checkpoints/100/manifest.json: expected the leaves of the state that it is loaded into, got others: …"),
    ("checkpoint.load_part", given(Path("nowhere"), PARAMS, PARAMS), checkpoint.CheckpointError,
     "nowhere/manifest.json: expected a file of a checkpoint, got No such file or directory; use another checkpoint"),
    ("checkpoint.record", given(Path("file")), checkpoint.CheckpointError,
     "file/manifest.json: expected a plain file in a folder, got something else; …"),
    ("checkpoint.newest", given(Path("file")), checkpoint.CheckpointError,
     "file: expected a folder of checkpoints, got Not a directory; make it readable"),
    ("checkpoint.mark_damaged", given(Path("run/checkpoints/7")), checkpoint.CheckpointError,
     "run/checkpoints/7: expected to rename it, got No such file or directory; make its folder writable"),
    ("history.trained", given(Path("run/checkpoints/7"), SETTINGS, PROGRAM), checkpoint.CheckpointError,
     "run/checkpoints/7/…"),
    ("history.checkpoint_info", given(Path("run/checkpoints/7")), checkpoint.CheckpointError, "run/checkpoints/7/…"),
    ("files.read", given(Path("run")), ValueError, "run: expected a plain file, got something else"),
    ("files.digest", given(Path("run"), 1), ValueError, "run: expected a plain file, got something else"),
    ("checkpoint.prune", given(Path("run/checkpoints"), 0), ValueError, "keep: expected at least 1, got 0"),
    ("checkpoint.lock", given(Path("nowhere")), checkpoint.CheckpointError,
     "nowhere/.lock: expected to lock it, got No such file or directory; choose a folder that allows writing …"),
    # runs
    ("run_folder.folder", given(dataclasses.replace(SETTINGS, out="run")), ValueError,
     "out: expected a folder that does not exist yet, got 'run'; choose another --out"),
    ("run_folder.create_sweep", given(dataclasses.replace(SETTINGS, out="run")), ValueError,
     "out: expected a folder that does not exist yet, got 'run'; choose another --out"),
    ("run_folder.create", given(dataclasses.replace(SETTINGS, out="file/run")), ValueError,
     "out: expected a folder that can be created, got 'file/run', but …file is not a writable folder"),
    ("results.plan", given(Path("nowhere")), ValueError,
     "run: expected a finished run folder, got nowhere without config.json"),
    ("results.read", given(Path("no-summary")), ValueError,
     "run: expected a finished run folder, got no-summary without summary.json"),
    ("results.read_summary", given(Path("bad-summary")), ValueError,
     "run: expected a finished run folder, got bad-summary with a summary.json that is invalid: …"),
    ("results.Run.load", given("no-summary"), ValueError,
     "run: expected a finished run folder, got no-summary without summary.json; fdqn.resume('no-summary') finishes it"),
    ("results.Run.load", given(Path("nowhere")), ValueError,
     "run: expected a finished run folder, got nowhere without config.json"),
    ("results.Run.load", given(Path("bad-summary")), ValueError,
     "run: expected a finished run folder, got bad-summary with a summary.json …: summary: expected dict, got list"),
    ("results.Run.load", given(7), TypeError, "path: expected str or PathLike, got int"),
    ("results.Run.policy", given(Later(lambda: results.read(Path("run"))), 3), ValueError,
     "seed: expected a trained seed, 5 to 6, got 3"),
    ("results.Run.policy", given(Later(lambda: results.read(Path("bad-params"))), 5), ValueError,
     "run: expected a finished run folder, got bad-params with a params.safetensors which cannot be read: …"),
    ("results.seed_index", given(SETTINGS, [1], 1), ValueError,
     "seed: expected a seed that has not failed, got 1; see failures in summary.json"),
    ("acting.greedy", given(np.zeros((2, 3), np.float32)), ValueError,
     "obs: expected shape [4] or [N, 4], got [2, 3]; give observations of the env"),
    ("acting.greedy", given(np.zeros((4,), np.int64)), TypeError,
     "obs: expected dtype float32, got int64; convert with obs.astype('float32')"),
    ("acting.greedy", given(np.zeros((4,), np.float32), np.ones(3, bool)), ValueError,
     "legal: expected shape [2], got [3]; give one mask per observation"),
    ("acting.greedy", given(np.zeros((4,), np.float32), np.ones(2)), TypeError,
     "legal: expected dtype bool, got float64; convert with legal.astype(bool)"),
    ("acting.greedy", given(np.zeros((2, 4), np.float32), np.array([[True, True], [False, False]])), ValueError,
     "legal: expected a legal action for each observation, got none; do not act after the end of an episode"),
    # api, session and evaluation
    ("api.train", given(sedes=3), TypeError, "train: unknown setting 'sedes'; did you mean 'seeds'?"),
    ("api.train", given(zzzzz=3), TypeError, "train: unknown setting 'zzzzz'; see fdqn.experiment.settings.Settings"),
    ("api.train", given(SETTINGS, seeds=3), TypeError,
     "train: expected settings or keywords, got both; use dataclasses.replace for 'seeds'"),
    ("api.train", given(SETTINGS, preset="nature"), TypeError,
     "train: expected settings or keywords, got both; use dataclasses.replace for 'preset'"),
    ("api.train", given("cartpole"), TypeError, "settings: expected Settings, got str"),
    ("api.train", given(seeds="3"), TypeError, "seeds: expected a whole number, got '3'"),
    ("api.train", given(seeds=0), ValueError, "seeds: expected at least 1, got 0"),
    ("api.train", given(env="cartpol", progress=False), ValueError,
     "unknown environment 'cartpol'; did you mean 'cartpole'? …"),
    ("api.train", given(preset="atari", env="catch"), ValueError,
     "preset: expected one of minatar, nature, …, got 'atari'"),
    ("api.train", given(preset="zoo-dqn", env="catch"), ValueError,
     "env: expected an environment of preset 'zoo-dqn' (cartpole, acrobot, mountain_car, gym:LunarLander-v3), got …"),
    ("presets.values", given("cleanrl-dqn"), ValueError,
     "env: expected one with preset 'cleanrl-dqn', got none; give env='cartpole'"),
    ("presets.values", given("cleanrl-dqn", 3), TypeError, "env: expected a word, got 3"),
    ("api.train", given(preset="nature"), ValueError,
     "env: expected one with preset 'nature', got none; give env='ale:Breakout'"),
    ("api.train", given(out=Path("run"), progress=False), ValueError,
     "out: expected a folder that does not exist yet, got 'run'; choose another --out"),
    ("api.train", given(progress="no"), TypeError, "progress: expected bool, got str"),
    ("api.train", given(on_event=3), TypeError, "on_event: expected …, got int"),
    ("api.train", given(stop=True), TypeError, "stop: expected …, got bool"),
    ("api.resume", given("nowhere", progress=False), ValueError,
     "run: expected a finished run folder, got …nowhere without config.json"),
    ("api.resume", given("run", steps=1e3, progress=False), TypeError, "steps: expected an integer, got 1000.0"),
    ("api.resume", given("run", env="cartpole", progress=False), ValueError,
     "env: expected 'catch', the environment trained on, got 'cartpole'"),
    ("api.resume", given("run", env=3, progress=False), TypeError, "env: expected str, got int"),
    ("api.resume", given("run", fallback="yes", progress=False), TypeError, "fallback: expected bool, got str"),
    ("api.resume", given("run", steps=50, progress=False), ValueError,
     "steps: expected at least the planned 100, got 50"),
    ("api.resume", given(None), TypeError, "path: expected str or PathLike, got NoneType"),
    *[(name, given(*arguments, **more), ValueError, message) for name, more in (
        ("tracking.choose", {}), ("tracking.check_names", {})) for arguments, message in (
        (("tensorbord",), "track: expected one of tensorboard, …, got 'tensorbord'; did you mean 'tensorboard'?"),
        ((["wandb", "wandb"],), "track: expected each tracker once, got wandb 2 times"),
        (("wandb", "tianshou"), "tags: expected one of cleanrl, sb3, got 'tianshou'"))],
    ("tracking.choose", given(3), TypeError, "track: expected names of trackers, got 3 with the tags 'cleanrl'"),
    ("tracking.check_settings", given(Choice(("wandb",)), 129), ValueError,
     "track: expected a sweep of at most 128 settings, got 129; omit track"),
    ("tracking.check_settings", given(Choice(("wandb",)), 9, True), ValueError,
     "track: expected a sweep without halving, got one with it; omit track"),
    ("tracking.choose_for_resume", given(Path("run"), "excel"), ValueError,
     "track: expected one of tensorboard, …, got 'excel'"),
    ("tracking.choose_for_resume", given(Path("bad-trackers")), ValueError,
     "bad-trackers/tracking.json: expected the record of trackers, got another; delete it to resume without them (…)"),
    ("api.train", given(track="excel"), ValueError, "track: expected one of tensorboard, …, got 'excel'"),
    ("api.sweep", given({"gamma": [0.9, 0.99]}, track=["wandb", "wandb"]), ValueError,
     "track: expected each tracker once, got wandb 2 times"),
    ("api.resume", given("run", tags="rllib"), ValueError, "tags: expected one of cleanrl, sb3, got 'rllib'"),
    ("session.train", given(dataclasses.replace(SETTINGS, out="run")), ValueError,
     "out: expected a folder that does not exist yet, got 'run'; choose another --out"),
    ("session.train", given("cartpole"), TypeError, "settings: expected Settings, got str"),
    ("session.resume", given(Path("run"), 50), ValueError,
     "steps: expected at least the planned 100, got 50"),
    ("evaluation.load", given(Path("run"), "cartpole"), ValueError,
     "env: expected observations … as in training, got [4] and 2 in cartpole"),
    ("evaluation.load", given(Path("run"), seeds=[7]), ValueError,
     "seed: expected trained seeds, 5 to 6, got 7"),
    ("results.read_params", given(Path("other-params")), ValueError,
     "params.safetensors: expected {…}, got …"),
    ("results.trained", given(Path("run"), "7"), ValueError,
     "checkpoint: expected best, last or the step of a checkpoint, got '7'; run/checkpoints has steps 100"),
    ("results.read_curve", given(Path("empty-rows")), ValueError, "expected rows, got none"),
    ("results.comparison", given(Path("x.png"), []), ValueError,
     "panels: expected at least one curve in each, got none"),
    # export and plots
    ("export.write", given(Later(lambda: results.read(Path("run"))), 3, Path("a.pt")), ValueError,
     "seed: expected a trained seed, 5 to 6, got 3"),
    ("export.write", given(Later(lambda: results.read(Path("run"))), 5, Path("a.npz")), ValueError,
     "out: expected a name that ends in .pt or .pth for the state_dict, or in .pt2 or .onnx for the policy, got "
     "'a.npz'"),
    ("export.write", given(Later(lambda: results.read(Path("run"))), 5, Path("file")), ValueError,
     "out: expected a file that does not exist yet, got 'file'; choose another --out"),
    ("export.write", given(Later(lambda: results.read(Path("run"))), 5, Path("a.pt"), "stack"), ValueError,
     "prefix: expected a prefix that ends in a dot, got 'stack'; use 'stack.'"),
    ("hub.write", given(Path("sweep"), Path("repo")), ValueError,
     "run: expected a run of one setting, got the sweep sweep; train its best setting on fresh seeds with …"),
    ("hub.write", given(Path("run"), Path("file")), ValueError,
     "hub: expected a folder that does not exist yet, got 'file'; choose another --hub"),
    ("hub.check_push", given("poles"), ValueError, "push: expected a repository OWNER/NAME, got 'poles'"),
    ("hub.push", given(Path("run"), "a/b/c"), ValueError, "push: expected a repository OWNER/NAME, got 'a/b/c'"),
    ("page_data.of_runs", given([]), ValueError, "runs: expected at least one, got none"),
    ("html_report.write", given([Path("run")], Path("page.png")), ValueError,
     "html: expected a name that ends in .html, got 'page.png'"),
    ("html_report.write", given([Path("run")], Path("page.html")), ValueError,
     "html: expected a file that does not exist yet, got 'page.html'; choose another --html"),
    ("html_report.check_run", given(Path("hollow")), ValueError,
     "run: expected a run folder, got hollow without config.json"),
    ("watching.server", given(Path("run"), "6060"), TypeError, "port: expected an integer, got '6060'"),
    ("watching.server", given(Path("run"), 65536), ValueError, "port: expected at most 65535, got 65536"),
    ("watching.server", given(Path("hollow"), 0), ValueError,
     "run: expected a run folder, got hollow without config.json"),
    ("plots.learning_curves", given(Path("x.png"), {}), ValueError,
     "panels: expected at least one curve in each, got none"),
    ("plots.learning_curves", given(Path("x.png"), {"cartpole": {"a": POINTS}}), ValueError,
     "panels: expected curves of steps [P] and values [P, S], got [3] and [2, 2] in 'a'"),
    # sweeps
    ("sweeps.sweep", given((), [], []), ValueError,
     "values: expected at least one setting of at least one name, got 0 of 0"),
    ("sweeps.sweep", given(("gamma", "gamma"), [(0.9, 0.9)], [[1.0]]), ValueError,
     "names: expected each name once, got 'gamma' at 0 and 1"),
    ("sweeps.sweep", given(("gamma", "tau"), [(0.9, 0.1), (0.9,)], [[1.0], [1.0]]), ValueError,
     "values: expected 2 values in each row, got 1 in row 1"),
    ("sweeps.sweep", given(("gamma", "tau"), [(0.9, 0.1), (0.9, 0.1)], [[1.0], [1.0]]), ValueError,
     "values: expected each setting once, got 0.9, 0.1 at 0 and 1"),
    ("sweeps.sweep", given(("gamma",), [(0.9,)], [["high"]]), TypeError,
     "returns: expected an array of numbers, got [['high']]"),
    ("sweeps.sweep", given(("gamma",), [(0.9,)], [[1.0], [1.0]]), ValueError,
     "returns: expected shape [1, seeds], got [2, 1]"),
    ("sweeps.sweep", given(("gamma",), [(0.9,)], [[1.0]], scales={"gamme": "log"}), ValueError,
     "scales: expected names of the sweep, gamma, got 'gamme'"),
    ("sweeps.sweep", given(("gamma",), [(0.9,)], [[1.0]], scales={"gamma": "logit"}), ValueError,
     "gamma: expected the scale 'log', 'linear' or 'category', got 'logit'"),
    ("sweeps.sweep", given(("gamma",), [(0.9,)], [[1.0]], curves=[]), ValueError,
     "curves: expected 1, one for each setting, got 0"),
    ("sweeps.sweep", given(("gamma",), [(0.9,)], [[1.0]], curves=[POINTS]), ValueError,
     "curves: expected values [3, 1], got [2, 2] in curve 0"),
    ("sweeps.ranking", given(("gamma",), [(0.9,)], [[1.0]], SELECTED), ValueError,
     "selection: expected frequency and members [1], got [(2,), (2,)]"),
    ("sweeps.marginal", given(("gamma",), [(0.9,)], [[1.0]], "tau"), ValueError,
     "name: expected one of gamma, got 'tau'"),
    ("sweeps.scale", given([0.0, 1e-3], "log", "tau"), ValueError,
     "tau: expected positive numbers for the scale 'log', got 0; use 'linear'"),
    ("sweeps.scale", given([True, False], "linear", "double"), ValueError,
     "double: expected numbers for the scale 'linear', got on; use 'category'"),
    # arms of a comparison
    ("arms.read", given([Path("run")]), ValueError,
     "arms: expected at least two, got 1; fdqn report summarises one run"),
    ("arms.read", given([Path("run"), Path("run")]), ValueError, "arms: expected each arm once, got run twice"),
    ("arms.read", given([Path("run"), Path("bad-summary")]), ValueError,
     "arms: expected a finished run or sweep, got bad-summary with a summary.json without env, …"),
    ("arms.read", given([Path("population:1"), Path("run")]), ValueError,
     "arms: expected population without a setting, got '1'; population based training changes its settings while they "
     "train, and the best member of each seed is compared"),
    ("arms.read", given([Path("population"), Path("run")], "training"), ValueError,
     "measure: expected greedy or gymnasium for population with population based training, got training, by which its "
     "best members were selected"),
    ("arms.read", given([Path("bad-population"), Path("run")]), ValueError,
     "arms: expected the best member of each seed in summary.json of bad-population, got others"),
    ("arms.read", given([], "best"), ValueError, "measure: expected one of greedy, training, gymnasium, got 'best'"),
    ("arms.check_comparable", given([ARM, ARM._replace(name="b", env="catch")]), ValueError,
     "arms: expected one environment, got cartpole in a and catch in b; pass --anyway to compare them"),
    ("arms.check_comparable", given([ARM, ARM._replace(name="b", steps=200)]), ValueError,
     "arms: expected one number of steps per seed, got 100 in a and 200 in b; pass --anyway to compare them"),
    ("returns_csv.read", given(Path("file")), ValueError,
     "file: expected a column return, score, episodic_return, charts/episodic_return, r, value, got mine; rename the "
     "column of the returns to return"),
    ("returns_csv.table", given(Path("nowhere")), ValueError,
     "arms: expected a run folder, a sweep's SWEEP:K or a CSV file, got nowhere"),
    ("comparing.compare", given([ARM]), ValueError, "arms: expected at least two, got 1"),
    ("comparing.compare", given([ARM, ARM._replace(name="b", returns=np.ones(3))], True), ValueError,
     "paired: expected 2 seeds as in a, got 3 in b; pass --unpaired"),
    ("comparison_plots.comparison", given(Path("x.png"), []), ValueError, "arms: expected at least two, got 0"),
    # video
    ("video.representatives", given(np.array([np.nan])), ValueError,
     "video: expected a seed that has not failed, got none"),
    ("video.thinned", given([], 0), ValueError, "most: expected at least 2, got 0"),
    ("video.thinned", given([], 5), ValueError, "most: expected an even number, got 5"),
    ("video.thinned", given([], 6.0), TypeError, "most: expected an integer, got 6.0"),
    ("video.gif", given([], video.Recording([], 1)), ValueError,
     "recording: expected at least one scene, got none"),
    ("video.gif", given(["a", "b"], FILM), ValueError, "titles: expected one for each of 1 seeds, got 2"),
    ("video.gif", given(["a"], video.Recording([SCENE._replace(frames=[np.zeros((2, 2))])], 1)), ValueError,
     "video: expected pictures [H, W, 3] of uint8 of recording, got [2, 2] of float64"),
    ("video.check_frame", given("it", None), ValueError,
     "video: expected pictures [H, W, 3] of uint8 of it, got [] of NoneType"),
    ("video.check_frame", given("it", np.zeros((0, 2, 3), np.uint8)), ValueError,
     "video: expected pictures [H, W, 3] of uint8 of it, got [0, 2, 3] of uint8"),
    ("video.check_renders", given("cartpole", "cartpole"), TypeError, "env: expected Env or HostEnv, got str"),
    ("video.check_renders", given("mine:corridor", CARTPOLE), ValueError,
     "video: expected an environment that renders, got mine:corridor, whose observations are [4] of torch.float32; …"),
    ("video.check_renders", given("mine:world", HostEnv(None, CATCH.spec)), ValueError,
     "video: expected an environment that renders, got mine:world, a HostEnv without record"),
    ("video.draw", given("catch", CATCH, PROGRAM.network, TRAINED, KEYS, [0, 1], np.full((2, 3), np.nan)), ValueError,
     "video: expected a seed that has not failed, got none"),
    # testing
    ("compile.partition", given(PROGRAM, 0, 1), ValueError, "lanes: expected at least 1, got 0"),
    ("compile.partition", given(PROGRAM, 2, 0), ValueError, "threads: expected at least 1, got 0"),
    ("compile.partition", given(PROGRAM, 6, 2, 4), ValueError,
     "unit: expected a divisor of the number of lanes, 6, got 4"),
    ("testing.asserts.assert_trees_equal", given(PARAMS, OTHERS), AssertionError,
     "['0.weight']: expected shape [3, 2], got [5, 2]"),
    ("testing.asserts.assert_trees_close", given(Q, Q + 1, 0.5), AssertionError,
     "[0, 0]: expected …, got …; 12 of 12 …"),
    ("testing.asserts.assert_same_structure", given({"a": 1}, {"b": 1}), AssertionError,
     "expected the same structure; missing [\"['a']\"], extra [\"['b']\"]"),
    ("testing.asserts.assert_shapes", given("q[B A] a[B]", Q), AssertionError,
     "tensors: expected 2 for 'q[B A] a[B]', got 1"),
    ("testing.asserts.assert_finite", given(Q / 0), AssertionError, "[0, 0]: expected a finite number, got …"),
    ("testing.asserts.assert_compiles_once", given(sames), AssertionError,
     "calls: expected a tuple of arguments for each, got none"),
    ("testing.laws.semi_gradient", given(sames, Q, held=[5]), AssertionError, "held: expected some of [0], got [5]"),
    ("testing.examples.seeds", given(0), ValueError, "seeds: expected at least 1, got 0"),
    ("testing.examples.program", given(batch_size=50), ValueError,
     "batch_size: expected at most capacity = 40, got 50"),
    ("testing.programs.trained", given(PROGRAM, HYPERS, KEYS, 0), ValueError, "steps: expected at least 1, got 0"),
    ("testing.programs.chunks", given(PROGRAM, torch.arange(2)), ValueError, "keys: expected shape [S 2], got [2]"),
    ("testing.strategies.tensors", given((2,), dtype=torch.int64), TypeError,
     "dtype: expected a floating-point dtype, got torch.int64"),
    ("testing.strategies.tensors", given((2,), low=2.0, high=1.0), ValueError,
     "low, high: expected a number of torch.float32 between them, got 2.0 and 1.0"),
    ("testing.variants.variants", given("vmaped"), ValueError, "variants: expected some of […], got 'vmaped'"),
    ("testing.variants.variants.decorated", given(sames), TypeError,
     "sames: expected an argument `variant`, got ['x']"),
]  # fmt: skip

WITHOUT = {
    "export.policy": "takes checked settings and parameters",
    "export.onnx_policy": "the same",
    "model_card.text": "formats a run that `results` has read",
    "model_card.front_matter": "the same",
    "model_card.mean_text": "the same",
    "repeat.command": "takes checked settings",
    "repeat.commands": "the same",
    "html_report.page_of": "hands on to `results.read`",
    "html_report.current": "hands on to `results.read_config`",
    "html_report.program_folders": "takes any path",
    "page_data.of_population": "takes what `population.read` has checked",
    "page_data.of_sweep": "takes what `sweep_results.read` has checked",
    "page.body": "formats what `page_data` has made",
    "page.encoded": "takes any text",
    "page.html": "formats what `page_data` has made",
    "page.check_plotly": "takes nothing",
    **{
        f"page_figures.{name}": "draws what `page_data` has made"
        for name in ("curves", "diagnostics", "sensitivity", "parallel_coordinates")
    },
    "watching.address": "takes a server",
    "watching.is_own_name": "takes any text",
    "tracking.tracked": "takes a checked choice",
    **{f"tracked_rows.{name}": "reads files that `history` has written"
       for name in ("curves", "points", "reader", "drop_held")},
    **{f"trackers.{name}": "opens a tracker for a run; its errors are notices"
       for name in ("mlflow", "tensorboard", "trackio", "wandb")},
    "assemble.free_names": "takes nothing",
    "assemble.in_one_program": "makes a key of settings",
    "assemble.name": "formats numbers",
    "check.is_symbolic": "takes any tensor",
    "results.seeds_record": "takes numbers that `returns_record` has made",
    "run_folder.cell": "formats any value",
    "run_folder.settings_table": "formats checked settings",
    "session.AllFailedError": "is what is raised",
    "session.changed": "takes checked settings",
    "session.train_or_resume": "hands on to `train` and `resume`",
    "settings.each": "takes checked settings",
    "settings.to_json_values": "takes any values",
    **{f"population.{name}": "is a part of a run" for name in ("evolution", "is_due", "record", "draw_curve")},
    **{f"population.{name}": "takes what `read` has checked" for name in ("best_members", "write_picture")},
    "population.is_population": "takes any path",
    **{f"population_plots.{name}": "takes what `population.read` has checked"
       for name in ("ancestors", "figure", "write")},
    "history.add_evolution": "writes a step of `population.evolution`",
    "plots.filled": "is a part of `figure`, which refuses",
    **{f"claims.{name}": "takes any folder; tests/test_claims.py has what `take` and `check` refuse"
       for name in ("ClaimedError", "LostError", "filesystem_time", "holding", "take", "newest", "is_free", "is_held",
                    "owner_text")},
    "settings.is_device": "takes any value",
    "shards.finish": "hands on to `shard_plan.read`",
    "progress.shards_text": "formats an event",
    **{f"ray_cluster.{name}": "needs Ray; tests/test_ray_cluster.py has what is refused"
       for name in ("check_resources", "connected", "read_files", "marked", "reason", "write_files")},
    **{f"ray_shards.{name}": "needs Ray; tests/test_ray_shards.py has what is refused"
       for name in ("train", "train_shard")},
    **{f"shard_plan.{name}": "takes a plan that `plan` has checked"
       for name in ("provenance", "differences", "partition_record")},
    **{f"shard_plan.{name}": "takes any path or number" for name in ("folder", "name", "is_sharded")},
    **{f"shard_folders.{name}": "takes a plan that `plan` has checked"
       for name in ("is_finished", "learners_text", "claim_folder", "differing_machines", "add_differing_machine")},
    **{f"merging.{name}": "hands on to `merge` and `results.read_config`"
       for name in ("is_merged", "refresh", "notes")},
    **{f"run_folder.{name}": "takes checked settings and records"
       for name in ("remove_incomplete", "plan_record", "partition_to_pin", "partition_record", "pinned_partition",
                    "provenance", "differences_of", "write_config", "write_summary")},
    "results.is_partition": "takes anything",
    **{f"history.{name}": "formats what was checked" for name in ("differing_settings", "rows_text")},
    "halving_plan.described": "describes a plan that `plan` has checked",
    "halving_plan.ranking": "takes records of a summary that was checked",
    "halving_plan.record": "returns a part of a plan",
    "halving_plan.write": "writes a plan that `plan` has checked",
    "halving.seconds": "takes a plan that `plan` has checked",
    "halving.state_bytes": "hands on to `memory.check_memory`",
    "history.copy": "takes what `restored` has checked",
    **{f"halving_plots.{name}": "draws what `sweeps.sweep` has checked" for name in ("figure", "write")},
    **{f"sweep_plots.{name}": "draws what `sweeps.sweep` has checked"
       for name in ("axes_of", "caption", "plain_text", "set_axis")},
    "sweep_plan.described": "describes checked settings",
    "sweep_plan.write": "writes a plan that `plan` has checked",
    "sweep_results.is_over": "takes any path",
    "sweep_results.is_sweep": "takes any path",
    "sweep_results.write_picture": "draws what `read` has checked",
    "sweep_plan.counted": "formats a number",
    "sweep.state_bytes": "hands on to `memory.check_memory`",
    "sweep.seconds": "takes a plan that `plan` has checked",
    "cost.count": "takes a program that `assemble.program` has checked",
    "cost.seconds": "hands on to `assemble.program`",
    "agents.noise_shapes": "multiplies sizes",
    "packing.size": "rounds up a number",
    "frames.capacity": "counts",
    "frames.number": "is a part of `wrap`",
    "frames.lost": "the same",
    "n_step.cut": "reads what is recent",
    "dqn.loss_output": "is a part of `q_learning`, which refuses",
    "testing.examples.sample": "puts together; `off_policy.update` refuses",
    "training.observe": "is a part of `interact`, which refuses",
    "training.act": "is a part of `interact`, which refuses",
    "training.bits_per_cycle": "counts",
    "training.cadence": "is a part of `run`, which refuses",
    "training.check_cycle": "is a part of `run`, which refuses",
    "training.example_update": "gives zeros",
    "types.no_noise": "returns the same for all arguments",
    "compile.compiled_parts": "is `compiled` for host environments",
    "envs.is_code": "takes any name",
    "history.why": "puts into words",
    "history.learning_rates": "reads a report of `training.run`",
    "assemble.learning_rates": "takes the settings and hyper-parameters of a program",
    "host.start": "starts from a state that `training.init` has checked",
    "host.choose": "is a part of `functions`",
    "host.finish": "is a part of `functions`",
    "host.functions": "binds",
    "host.interaction": "is a part of `functions`",
    "host.store": "is a part of `functions`",
    "host.vmapped": "binds",
    "memory.fake_state": "is `training.init` without memory",
    "history.best_step": "returns None if there is none",
    "memory.replay_bytes": "multiplies what `check_memory` has checked",
    "check.difference": "returns a text",
    "check.seen": "takes any flags",
    "checkpoint.CheckpointError": "is what is raised",
    "compile.player": "binds",
    "compile.CompilerError": "is what is raised",
    "compile.MismatchError": "is what is raised",
    "compile.flushes_denormals": "takes nothing",
    "compile.is_compiling": "takes nothing",
    "compile.compiling": "takes nothing",
    "check.is_traced": "takes nothing",
    "compile.prepare_cpu": "takes nothing",
    "envs.names": "takes nothing",
    "files.append": "is the system's refusal, an OSError; tests/test_files.py",
    "files.cut": "the same",
    "files.opened": "the same",
    "files.write_all": "the same",
    "files.sync": "the same",
    "files.write": "the same",
    "evaluate.play": "is a step of `greedy`; network and environment refuse",
    "envs.is_env": "takes anything",
    "evaluate.host_seeds": "draws for keys that `greedy_on_host` has checked",
    "evaluate.step_limit": "computes of a table that `runs` has read",
    "evaluate.device_steps": "is `greedy_on_device`, step by step",
    "evaluate.host_steps": "is `greedy_on_host`, step by step",
    "optim.frozen": "takes nothing",
    "prioritized.size": "counts",
    "prioritized.bounds": "reads a state",
    "ring.size": "counts",
    "ring.bounds": "reads a state",
    "replay.transition": "puts together; `replay.ring.add` refuses",
    "run_folder.differences": "reads what `plan` has checked",
    "history.failed_seeds": "reads a report of `training.run`",
    "settings.with_defaults": "is part of `from_json`, which refuses",
    "results.failed_seeds": "takes results that `trained` has read",
    "run_folder.finish": "writes a report of `training.run`",
    "run_folder.add_evaluation": "adds evaluations to a run that was read before",
    "results.is_evaluated": "takes a summary that was read before",
    "results.gymnasium_name": "takes any settings",
    "results.lacks_evaluation": "reads with `results.read`",
    "population.with_returns": "takes a summary that was read before",
    "sweeps.is_selected": "takes the rows of a ranking",
    "sweep_results.described": "reads with `sweep_results.locate`",
    "sweep_results.described_text": "takes a record of `sweep_results.described`",
    "sweep_results.extended_to": "reads with `results.read_config`",
    "api.follow": "takes events of `session`",
    "api.stopping": "is `process.stopping`",
    "evaluation.record_video": "takes what `load` has checked; `video.draw` refuses",
    "evaluation.play": "takes what `load` has checked; `evaluate.greedy` refuses",
    "events.ignore": "takes anything",
    "settings.is_read": "takes the name of a field",
    "settings.storage": "takes the name of an algorithm that `Settings` has checked",
    "sweep_plan.of_sweep": "takes an event of a run",
    "session.compiled_player": "binds",
    "plots.figure": "is `learning_curves` without a file",
    **{f"sweep_plots.{name}": "draws what `sweeps.sweep` has checked" for name in ("figure", "write")},
    **{f"sweeps.{name}": "takes what `sweep` has checked"
       for name in ("decimals", "distinct", "dropped", "estimates", "explanation", "few_seeds", "groups",
                    "interval_text", "overview", "text", "varied")},
    "plots.draw_curves": "draws what `figure` has checked",
    "plots.look": "takes any number",
    "plots.plain_text": "takes any text",
    "plots.summarised": "is a part of `figure`, which refuses",
    "comparison_plots.figure": "is `comparison` without a file",
    "comparison_plots.short_names": "takes any names",
    "arms.are_paired": "returns a bool",
    "arms.mismatch": "returns a text",
    "returns_csv.seed_name": "takes any text",
    "comparing.picture": "draws what `compare` has made",
    "comparing.with_short_names": "takes any names",
    **{f"comparison_text.{name}": "describes what `comparing.compare` has made"
       for name in ("conclusions", "decimals", "estimate_text", "notes", "number_text", "p_text", "percent_text",
                    "range_text")},
    **{f"progress.{name}": "shows events of `session`"
       for name in ("bytes_text", "prepared_text", "status_text", "stopped_text")},
    "run_folder.functions": "hands on to `compile.compiled` and `training.vmapped`",
    "run_folder.git_commit": "takes nothing",
    "results.interval_heading": "reads summaries that `read` has checked",
    "results.step_limit": "reads a folder that `read` or `plan` has checked",
    "results.unfinished_text": "reads a summary that `read` has checked",
    "results.interval_text": "reads a summary that `read` has checked",
    "results.picture": "draws what `read` has checked",
    "history.record": "writes reports of `training.run`",
    "history.restored": "tests/test_history.py has its refusals",
    "results.returns_record": "takes arrays that `evaluate` made",
    "run_folder.save_params": "writes parameters of a state",
    "results.read_config": "is part of `read`, which refuses",
    "results.finite": "takes parameters of a state",
    "sizes.layers": "takes the parameters of its network",
    "results.read_settings": "is part of `read`, which refuses",
    "results.unnamed_code": "returns the message that `plan` raises",
    "envs.is_wrapper_code": "takes a name that `Settings` has checked",
    "settings.task": "takes Settings or a summary that `read` has checked",
    "results.finished": "returns 0 if there is nothing to read",
    "run_folder.replan": "writes what `plan` has checked",
    "studies.optimize": "needs Optuna; tests/test_studies.py has its refusals",
    "statistics.row_means": "is for `runs` and `history`",
    "samples.expanded_tail": "takes a confidence and numbers that its callers have checked",
    "samples.iqm": "takes what `numbers` has checked",
    "samples.mean": "takes what `numbers` has checked",
    "permutation.holm": "takes what `permutation_test` returned",
    "run_folder.writing": "is `checkpoint.lock`",
    "settings.to_json": "takes Settings alone",
    "settings.defaults": "takes an algorithm that `make` has checked",
    **{f"presets.{name}": "reads the table of presets"
       for name in ("example", "measure", "ours_text", "published_text", "rows", "scores", "seconds_text")},
    **{f"settings.{name}Settings": "is part of `Settings`, which refuses"
       for name in ("Run", "Iteration", "Replay", "Exploration", "Network", "Optimizer", "Algorithm", "Evaluation",
                    "Execution")},
    "training.count_episodes": "is part of `collect`, which refuses",
    "training.random_steps": "is part of `collect`, which refuses",
    "training.count_update": "is part of `learn`, which refuses",
    "training.vmapped": "makes functions; they refuse",
    "video.scenes": "calls `device_scenes` or `host_scenes`",
    "video.device_scenes": "is `evaluate.greedy_on_device` with pictures",
    "video.host_scenes": "is `evaluate.greedy_on_host` with pictures; `check_renders` refuses",
    "video.typical": "reads a row of returns",
    **{f"tree.{name}": "takes any tree; a leaf that is no tensor is refused by Python"
       for name in ("leaves", "structure", "paths", "index", "to", "clone", "separate", "equal", "nbytes")},
    "testing.asserts.assert_no_graph_break": "raises what it is for",
    "testing.asserts.one_graph": "raises what it is for",
    "testing.examples.params": "takes nothing",
}  # fmt: skip
"""Public functions without a row, with the reason; whole modules are in MODULES_WITHOUT."""

MODULES_WITHOUT = {
    "testing.algorithms": "holds programs to a law; tests/test_algorithms.py has what it rejects",
    "testing.agents": "hold agents to laws; tests/test_agents.py has what each rejects",
    "testing.laws": "hold functions to laws; tests/test_laws.py has what each rejects",
    "testing.programs": "hold programs to laws; tests/test_programs.py has what each rejects",
    "testing.probes": "take a dtype, which `envs.episode.spec` refuses",
    "testing.strategies": "hypothesis refuses",
}

TYPED = (ValueError, TypeError, IndexError, checkpoint.CheckpointError)


HOMES = {p.stem: ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in ROOT.glob("*/**/*.py")}
HOMES |= {p.stem: p.stem for p in ROOT.iterdir()}
"""The dotted name below `fdqn` of each module, by its last part."""


def named(name):
    """Return the function that a row names."""
    module, *rest = name.split(".")
    x = importlib.import_module(f"fdqn.{HOMES.get(module, module)}")
    for part in rest:
        x = getattr(x, part)
    return x


def fits(sentence, says):
    """Return a match if the message is that of the row, in which `…` is any text."""
    return re.fullmatch(".+".join(map(re.escape, says.split("…"))).replace(r"\ ", " "), sentence)


def plain(leaf):
    """Convert an array of strings to a list; return other leaves unchanged."""
    return leaf.tolist() if isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "biufc" else leaf


def described(x):
    """Copy everything in an argument that must not change: values of CPU tensors, shape and dtype of other tensors."""
    leaves = [leaf if not isinstance(leaf, torch.Tensor) or leaf.device.type == "cpu" else (leaf.shape, leaf.dtype)
              for leaf in tree.leaves(x)]  # fmt: skip
    return tree.structure(x), [leaf.clone() if isinstance(leaf, torch.Tensor) else plain(leaf) for leaf in leaves]


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Make a small run of seeds 5 and 6 with the command."""
    path = tmp_path_factory.mktemp("refusals") / "run"
    sizes = "--seeds 2 --seed 5 --steps 100 --learning-starts 20 --report-every 50 --batch-size 8 --hidden 4"
    words = shlex.split(f"train --env catch --capacity 30 --no-compile {sizes}")
    assert cli.main([*words, "--out", str(path)]) == 0
    return path


def edited(name, change):
    """Make a function that applies `change` to a JSON file of a run folder."""

    def edit(path):
        content = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(change(content)))

    return edit


def with_settings(**changes):
    return edited("config.json", lambda config: {**config, "settings": {**config["settings"], **changes}})


def with_summary(**changes):
    return edited("summary.json", lambda summary: {**summary, **changes})


def written(name, content):
    return lambda path: (path / name).write_bytes(content)


def without(name):
    return lambda path: (path / name).unlink()


def both(*acts):
    return lambda path: [act(path) for act in acts]


WRONG_CONFIG, WRONG_SUMMARY, WRONG_ROWS = (
    f"with a {name} that is invalid:" for name in ("config.json", "summary.json", "metrics.csv")
)
SPOILED = {
    "no-config": (without("config.json"), "without config.json"),
    "bad-config": (written("config.json", b"{"), "with a config.json which is not JSON"),
    "list-config": (written("config.json", b"[]"), f"{WRONG_CONFIG} expected records of …"),
    "bytes-config": (written("config.json", b"\xff"), "with a config.json which cannot be read: …"),
    "no-settings": (edited("config.json", lambda x: {**x, "settings": None}),
                    f"{WRONG_CONFIG} expected records of …"),
    "other-env": (with_settings(env="cartpol"), f"{WRONG_CONFIG} unknown environment 'cartpol'; did you mean …"),
    "bad-seeds": (with_settings(seeds=0), f"{WRONG_CONFIG} seeds: expected at least 1, got 0"),
    "bad-type": (with_settings(seeds="2"), f"{WRONG_CONFIG} settings.seeds: expected a whole number, got '2'"),
    "bad-loss": (with_settings(loss="l1"), f"{WRONG_CONFIG} settings.loss: expected one of …, got 'l1'"),
    "no-summary": (without("summary.json"), "without summary.json"),
    "bad-summary": (written("summary.json", b"[]"), f"{WRONG_SUMMARY} summary: expected dict, got list"),
    "few-summary": (written("summary.json", b"{}"), f"{WRONG_SUMMARY} expected … too"),
    "seeds": (with_summary(seeds=3), f"{WRONG_SUMMARY} seeds: expected list, got int"),
    "other-seeds": (with_summary(seeds=[0, 1]),
                    f"{WRONG_SUMMARY} seeds: expected those of config.json, 5 to 6, got [0, 1]"),
    "steps": (with_summary(steps="many"), f"{WRONG_SUMMARY} steps: expected int, got str"),
    "failed": (with_summary(failed_seeds=[99]), f"{WRONG_SUMMARY} failed_seeds: expected some of the seeds, got [99]"),
    "failed-null": (with_summary(failed_seeds=None), f"{WRONG_SUMMARY} failed_seeds: expected list, got NoneType"),
    "return": (with_summary(final_return={}),
               f"{WRONG_SUMMARY} final_return.iqm: expected int or float or None, got str"),
    "return-number": (with_summary(train_return=5), f"{WRONG_SUMMARY} train_return: expected dict, got int"),
    "return-seeds": (with_summary(train_return={"iqm": 1.0, "low": None, "high": None, "per_seed": [1.0]}),
                     f"{WRONG_SUMMARY} train_return.per_seed: expected 2 numbers, one per seed, got 1"),
    "speed": (with_summary(seed_updates_per_second="fast"),
              f"{WRONG_SUMMARY} seed_updates_per_second: expected int or float or None, got str"),
    "wall": (with_summary(wall_seconds=None), f"{WRONG_SUMMARY} wall_seconds: expected int or float, got NoneType"),
    "empty-rows": (written("metrics.csv", b"step,seed,return\n"), f"{WRONG_ROWS} expected rows, got none"),
    "text-rows": (written("metrics.csv", b"step,seed,return\n100,five,1.0\n"),
                  f"{WRONG_ROWS} expected numbers under step, seed and return, got other columns or values"),
    "few-rows": (written("metrics.csv", b"step,seed,return\n100,5,1.0\n"),
                 f"{WRONG_ROWS} expected rows of 2 seeds, got 1"),
}  # fmt: skip
"""Run folders with wrong content under their names, and what `eval`, `report` and `export` say of them."""

HALF_SPOILED = {
    "bad-params": written("params.safetensors", b"nonsense"),
    "other-params": lambda path: shutil.copy(path / "checkpoints/100/state.safetensors", path / "params.safetensors"),
    "bad-checkpoint": both(without("summary.json"), written("checkpoints/100/state.safetensors", b"")),
    "more-seeds": with_settings(seeds=3),
    "bad-trackers": written("tracking.json", b"{}"),
}
"""Those that some commands can do without."""


def programs_json(*lists, values=((8,), (4,)), env="cartpole", **changes):
    """Return the text of `sweep.json` of a sweep over `hidden`, with a program for each list of numbers."""
    programs = []
    for numbers in lists:
        varied = [{"hidden": list(values[number])} for number in numbers]
        programs.append({"numbers": numbers, "settings": {**to_json(Settings(env=env)), "varied": varied}})
    record = {"names": ["hidden"], "values": [[list(x)] for x in values], "scales": {}, "programs": programs, **changes}
    return json.dumps({name: x for name, x in record.items() if x is not None})


SWEEPS = {
    "two-programs": programs_json([0], [1]),
    "code-programs": programs_json([0], [1], env="my.games:chess"),
    "bad-programs": "{",
    "no-programs": programs_json(values=()),
    "half-programs": programs_json([1]),
    "no-names": programs_json([0], [1], names=None),
    "twice-programs": programs_json([0], [0]),
    "plain-programs": programs_json([0], programs=[{"numbers": [0], "settings": to_json(Settings())}]),
    "empty-programs": programs_json(programs=[]),
    "one-number": programs_json([0], programs=[{"numbers": 5, "settings": to_json(Settings())}]),
    "nested-programs": "[" * 100_000,
    "other-scales": programs_json([0], [1], scales={"double": "log"}),
}
"""Files `sweep.json` of sweeps that were never started, and damaged ones."""


def halving_json(ends=(50_000, 100_000), numbers=((0, 1, 2, 3), None), sizes=(4, 2), rung_of=4, env="cartpole", eta=2):
    """Return the text of `halving.json` of a sweep of four settings."""
    varied = [{"gamma": gamma} for gamma in GAMMAS["gamma"]]
    rungs = [
        {"settings": size, "end": end, "numbers": own} for size, end, own in zip(sizes, ends, numbers, strict=True)
    ]
    settings = {**to_json(Settings(env=env)), "varied": varied, "rung_of": rung_of}
    record = {"eta": eta, "rungs": rungs, "settings": settings}
    return json.dumps({name: x for name, x in record.items() if x is not None})


HALVED = {
    "rungs": halving_json(),
    "code-rungs": halving_json(env="my.games:chess"),
    "bad-rungs": "{",
    "no-eta": halving_json(eta=None),
    "other-rungs": halving_json(sizes=(4, 3)),
    "other-ends": halving_json(ends=(50_000, 90_000)),
    "other-numbers": halving_json(numbers=((0, 1, 2, 2), None)),
    "plain-rungs": halving_json(rung_of=0),
    "nested-rungs": "[" * 100_000,
}
"""Files `halving.json` of sweeps that were never started, and damaged ones."""


def shards_json(shards=2, partition=None, provenance=True, env="cartpole"):
    """Return the text of `shards.json` of a run of four seeds."""
    names = ("versions", "engine", "git", "device", "processor") if provenance else ()
    settings = to_json(Settings(seeds=4, engine="eager", env=env, out="parts"))
    record = {"shards": shards, "partition": partition, "provenance": {name: {} for name in names}}
    return json.dumps({name: x for name, x in {**record, "settings": settings}.items() if x is not None or shards})


SHARDED = {
    "parts": shards_json(),
    "code-parts": shards_json(env="my.games:chess"),
    "bad-parts": "{",
    "no-parts": json.dumps({"settings": to_json(Settings())}),
    "three-parts": shards_json(3),
    "huge-parts": shards_json(10**6),
    "grouped-parts": shards_json(partition={"lanes": 3, "threads": 1}),
    "plain-parts": shards_json(provenance=False),
    "nested-parts": "[" * 100_000,
}
"""Files `shards.json` of runs without a shard that was started, and damaged ones."""


def as_sweep(path):
    """Turn a run into a sweep of which only the settings can be read."""
    edited("config.json", lambda x: {**x, "settings": {**x["settings"], "varied": [{"gamma": 0.9}, {"gamma": 1.0}]}})(
        path
    )
    (path / "settings.csv").write_text("learner,setting,seed,gamma\n")


BEST = {"best": [{"seed": 5, "learner": 0, "setting": 0, "values": {"gamma": 0.9}}]}


def as_population(found, table):
    """Make a function that turns a run into one with population based training of two settings of one seed."""
    varied = [{"gamma": 0.9}, {"gamma": 1.0}]
    means = {"iqm": 0.0, "low": None, "high": None, "kind": None, "per_seed": [0.0]}
    record = {**found, **dict.fromkeys(("final_return", "train_return"), means)}
    return both(
        with_settings(seeds=1, varied=varied, pbt_every=50, bounds={"gamma": [0.9, 1.0]}),
        with_summary(seeds=[0, 1], failed_seeds=[], failures=[], population=record),
        written("settings.csv", b"learner,setting,seed,gamma\n"),
        written("population.csv", f"step,learner,source,gamma\n{table}".encode()),
    )


POPULATIONS = {
    "population": as_population(BEST, "50,0,0,0.9\n50,1,0,0.92\n"),
    "bad-population": as_population({"best": [5]}, ""),
    "bad-table": as_population(BEST, "50,0,0\n50,1,0\n"),
    "no-returns": both(
        as_population(BEST, "50,0,0,0.9\n50,1,0,0.92\n"),
        edited("summary.json", lambda x: {**x, "population": {**x["population"], "final_return": {}}}),
    ),
    "no-values": as_population({"best": [{"seed": 5, "learner": 0}]}, "50,0,0,0.9\n50,1,0,0.92\n"),
    "no-steps": as_population(BEST, ""),
    "no-table": both(as_population(BEST, ""), lambda path: (path / "population.csv").unlink()),
    "nan-step": as_population(BEST, "nan,0,0,0.9\nnan,1,0,0.92\n"),
    "other-step": as_population(BEST, "60,0,0,0.9\n60,1,0,0.92\n"),
    "huge-step": as_population(BEST, "1e30,0,0,0.9\n1e30,1,0,0.92\n"),
    "infinite": as_population(BEST, "50,0,0,inf\n50,1,0,0.92\n"),
    "bad-source": as_population(BEST, "50,0,2,0.9\n50,1,0,0.92\n"),
}
"""Runs with population based training, most of them damaged."""


@pytest.fixture(scope="module")
def stage(trained, tmp_path_factory):
    """A folder with `run`, a file, and runs that are spoiled; and all of its files."""
    path = tmp_path_factory.mktemp("place")
    (path / "file").write_text("mine\n")
    (path / "page.html").write_text("mine\n")
    (path / "hollow").mkdir()
    spoil = {"run": lambda path: None, **{name: act for name, (act, _) in SPOILED.items()}, **HALF_SPOILED}
    spoil |= POPULATIONS
    for name, act in spoil.items():
        shutil.copytree(trained, path / name)
        act(path / name)
    shutil.copytree(trained, path / "sweep")
    as_sweep(path / "sweep")
    for name, text in SWEEPS.items():
        (path / name).mkdir()
        (path / name / "settings.csv").write_text("learner,setting,seed,hidden\n")
        (path / name / "sweep.json").write_text(text)
    for name, text in HALVED.items():
        (path / name).mkdir()
        (path / name / "settings.csv").write_text("learner,setting,seed,gamma\n")
        (path / name / "halving.json").write_text(text)
    for name, text in SHARDED.items():
        (path / name).mkdir()
        (path / name / "shards.json").write_text(text)
    (path / "empty.csv").touch()
    return path, files(path)


@pytest.fixture
def place(stage, monkeypatch):
    """Change to that folder, and check afterwards that nothing in it has changed."""
    path, before = stage
    monkeypatch.chdir(path)
    monkeypatch.setenv("COLUMNS", "100")
    yield path
    assert files(path) == before, "nothing is made, changed or removed"


def assert_refused(call, args, words, error, says):
    """Check that a call raises this type and message in fdqn, and changes neither arguments nor the generator."""
    before, generator = described((args, words)), torch.get_rng_state()
    with pytest.raises(error) as caught:
        call(*args, **words)
    sentence = str(caught.value)
    assert caught.type is error, f"a {caught.type.__name__}: {sentence}"
    assert fits(sentence, says), sentence
    assert "\n" not in sentence
    last = traceback.extract_tb(caught.tb)[-1]
    assert Path(last.filename).is_relative_to(ROOT), f"not our own sentence: {last}"
    after = described((args, words))
    assert before[0] == after[0]
    asserts.assert_trees_equal(before[1], after[1])
    assert torch.equal(generator, torch.get_rng_state()), "a number was drawn"


WITH_FILES = (
    "population",
    "arms",
    "returns_csv",
    "comparing",
    "comparison_plots",
    "checkpoint",
    "files",
    "history",
    "results",
    "run_folder",
    "export",
    "hub",
    "plots",
    "api",
    "session",
    "halving",
    "halving_plan",
    "shards",
    "shard_plan",
    "shard_folders",
    "merging",
    "sweep",
    "sweep_plan",
    "sweep_results",
    "tracking",
    "evaluation",
    "html_report",
    "watching",
)
IDS = [f"{name}-{i}" for i, (name, *_) in enumerate(ROWS)]


@pytest.mark.parametrize(("name", "arguments", "error", "says"), ROWS, ids=IDS)
def test_bad_input_is_refused_in_a_sentence_and_changes_nothing(request, name, arguments, error, says):
    if name.split(".")[0] in WITH_FILES:
        request.getfixturevalue("place")
    assert error in TYPED or name.startswith("testing.")
    args, words = tree.map(lambda x: x.make() if isinstance(x, Later) else x, tuple(arguments))
    assert_refused(CALLED.get(name) or named(name), args, words, error, says)


PLANTS = {
    "says nothing": lambda x: x,
    "says another thing": lambda x: check.count("y", -1),
    "raises another type": lambda x: check.count("x", "-1"),
    "leaves it to torch": lambda x: x.reshape(7),
    "writes": lambda x: (x.add_(1), check.count("x", -1)),
    "draws": lambda x: (torch.rand(1), check.count("x", -1)),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_the_runner_sees_planted_bugs(plant):
    says = "…" if plant == "leaves it to torch" else "x: expected at least 0, got -1"
    error = RuntimeError if plant == "leaves it to torch" else ValueError
    assert_refused(lambda x: check.count("x", -1), (torch.zeros(2),), {}, ValueError, "x: expected at least 0, got -1")
    with torch.random.fork_rng(), pytest.raises((AssertionError, pytest.fail.Exception, TypeError)):
        assert_refused(PLANTS[plant], (torch.zeros(2),), {}, error, says)


def test_every_public_function_has_a_row():
    rows = {".".join(row[0].split(".")[: 3 if row[0].startswith("testing") else 2]) for row in ROWS}
    callable_names = {
        f"{room}.{name}" for room, name, x in NAMES
        if inspect.isfunction(x) or dataclasses.is_dataclass(x) or issubclass(x, Exception)
    }  # fmt: skip
    left = {name for name in callable_names - rows if name.rpartition(".")[0] not in MODULES_WITHOUT}
    assert left == set(WITHOUT) & left, sorted(left - set(WITHOUT))
    assert not set(WITHOUT) - callable_names, "of what is no more"
    assert not set(WITHOUT) & rows - {"optim.frozen", "training.vmapped"}, "it has a row"
    assert rows - callable_names <= {"envs.find"}


# The command line: the line, the exit code and the sentence.

LINES = [
    # how it is asked
    ("train --env-kwargs a=1e999", 2, "flag --env-kwargs: expected a Python literal, …, got a=inf"),
    ("trian", 2, "unknown command 'trian'; did you mean 'train'?"),
    ("--seeds 2", 2, "unknown flag '--seeds'; see `fdqn --help`"),
    ("eval", 2, "Missing from fdqn eval: PATH Run folder. (required)"),
    ("eval run run", 2, "unknown argument 'run'; …"),
    ("train run", 2, "unknown argument 'run'; …"),
    ("train --evn catch", 2, "unknown flag '--evn'; did you mean '--env'?"),
    ("train --env", 2, "Missing value for argument '--env'. …"),
    ("train --seeds", 2, "Missing value for argument '--seeds'. …"),
    ("train --seeds 1e3", 2, "Error parsing --seeds: expected a whole number, got '1e3'"),
    ("train --seeds 2 --seeds 3", 2, "flag --seeds: expected once, got 2 times"),
    ("train --seeds=2 --seeds=3", 2, "flag --seeds: expected once, got 2 times"),
    ("train --json --json", 2, "flag --json: expected once, got 2 times"),
    ("train --json=yes", 2, "unknown flag '--json=yes'; did you mean '--json'?"),
    ("train --double maybe", 2, "flag --double: expected true or false, got 'maybe'"),
    ("train --gamma 0.9 much", 2, "flag --gamma: expected a number, got 'much'"),
    ("train --hidden 8, 4,x", 2, "flag --hidden: expected sizes of layers such as 120,84, got '4,x'"),
    ("train --gamma log:0.9", 2, "flag --gamma: expected a range such as log:1e-5:1e-2, got 'log:0.9'"),
    ("train --samples 4", 2,
     "flag --samples: expected a flag with a range such as --learning-rate log:1e-5:1e-2, got none"),
    ("train --gamma 0.9 0.99 --samples 4", 2, "flag --samples: expected a flag with a range such as …, got none"),
    ("train --halving 3", 2, "flag --halving: expected a flag with several values or a range, got none; omit it"),
    ("train --gamma 0.9 0.99 --halving 2", 1, "halving: expected at least 3 settings with eta = 2, got 2; use more …"),
    ("train --gamma 0.9 0.95 0.99 --halving 1", 1, "halving: expected at least 2, got 1"),
    ("train --gamma 0.9 0.95 0.99 --halving two", 2, "Error parsing --halving: …"),
    ("train --gamma 0.9 0.99 --hidden 8, 4, --halving 2", 1,
     "halving: expected settings that one program can train, got 2 programs for the values of hidden; choose …"),
    ("train --gamma 0.9 0.95 0.99 --halving 2 --pbt-every 2000", 1,
     "halving: expected none with pbt_every, got both; omit one of them"),
    ("train --shard 1", 2, "flag --shard: expected --shards with it, got none"),
    ("train --ray local", 2, "flag --ray: expected --shards with it, got none"),
    ("train --shards 2 --shard-gpus 1", 2, "flag --shard-gpus: expected --ray with it, got none"),
    ("train --shards 2 --ray local --shard-gpus -1", 2, "flag --shard-gpus: expected a number from 0, got -1"),
    ("train --shards 2 --ray local --shard 1 --out x", 2,
     "flag --shard: expected none with --ray, which trains all of them; omit one of them"),
    ("train --shards 2 --shard 1", 2, "flag --shard: expected --out with it, the folder of the whole run, got none"),
    ("train --shards 2 --track tensorboard", 2, "flag --track: expected none with --shards, got both; omit one …"),
    ("train --shards 2 --halving 2 --gamma 0.9 0.99", 2, "flag --halving: expected none with --shards, got both; …"),
    ("train --best-of sweep --shards 2", 2, "flag --shards: expected none but --seeds, …"),
    ("train --shards two", 2, "Error parsing --shards: expected a whole number, got 'two'"),
    ("train --seeds 10 --shards 4", 1,
     "shards: expected a number that divides 10 seeds such as 1, 2, 5, 10, got 4"),
    ("train --seeds 4 --shards 2 --shard 2 --out x", 1, "shard: expected a number from 0 to 1, got 2"),
    ("train --seeds 4 --shards 2 --shard 0 --out run", 1,
     "out: expected a folder that does not exist yet, got 'run'; choose another --out"),
    ("train --seeds 4 --shards 2 --gamma 0.5 --engine eager --shard 1 --out parts", 1,
     "out: expected the settings of parts/shards.json, got gamma = 0.5 and not 0.99; choose another --out"),
    ("train --seeds 4 --shards 4 --engine eager --shard 1 --out parts", 1,
     "shards: expected 2, as in parts/shards.json, got 4; choose another --out"),
    ("train --hidden 8, 4, --shards 2", 1,
     "shards: expected settings that one program can train, got 2 programs; train each in a separate run"),
    ("merge run", 1, "run: expected a sharded run, got run without shards.json"),
    ("merge parts", 1, "shards: expected at least one finished shard in parts, got none of 2: shard 0 …"),
    ("merge bad-parts", 1, "run: expected a sharded run, got bad-parts with a shards.json that is invalid: …"),
    ("report parts", 1, "shards: expected at least one finished shard in parts, got none of 2: shard 0 …"),
    ("eval parts", 1, "shards: expected at least one finished shard in parts, got none of 2: shard 0 …"),
    ("resume parts --steps 1000000", 1, "steps: expected none for a sharded run, got a number; omit it"),
    ("train --best-of sweep --halving 2", 2, "flag --halving: expected none but --seeds, …"),
    ("resume rungs --steps 10", 1, "steps: expected none for a sweep with halving, got a number; omit it"),
    ("report rungs", 1, "sweep: expected a finished sweep, got rungs, whose rung 1 of 2 has not finished; …"),
    *[(f"{command} bad-rungs{rest}", 1,
       "sweep: expected a sweep, got bad-rungs with a halving.json that is invalid: …")
      for command, rest in (("eval", " --setting 0"), ("resume", ""), ("report", ""), ("train --best-of", ""))],
    ("train --gamma 0.9 0.99 --gamma 0.5", 2, "flag --gamma: expected once, got 2 times"),
    ("train --best-of sweep --gamma 0.9", 2,
     "flag --gamma: expected none but --seeds, --seed, --out, --track, --tags and --json with --best-of; …"),
    ("train --best-of sweep --seeds 2 4", 2, "flag --seeds: expected one value with --best-of, got several"),
    ("train --best-of sweep --samples 4", 2, "flag --samples: expected none but --seeds, …"),
    ("train --track", 2, "flag --track: expected a tracker, such as tensorboard, got none"),
    ("train --track tensorbord", 2, "invalid choice 'tensorbord' for argument '--track'. Expected one of (…)."),
    ("train --track wandb wandb", 2, "flag --track: expected each tracker once, got wandb 2 times"),
    ("train --track wandb --tags rllib", 2, "invalid choice 'rllib' for argument '--tags'. Expected one of (…)."),
    ("train --tags sb3", 2, "flag --tags: expected a tracker with it, such as --track tensorboard, got none"),
    ("resume run --track excel", 2, "invalid choice 'excel' for argument '--track'. Expected one of (…)."),
    ("resume run --track none wandb", 1, "track: expected one of tensorboard, wandb, trackio, mlflow, got 'none'"),
    ("resume bad-trackers", 1, "bad-trackers/tracking.json: expected the record of trackers, got another; delete …"),
    ("train --best-of run", 1, "sweep: expected the folder of a sweep, got run, a run of one setting"),
    ("train --best-of hollow", 1, "run: expected a finished run folder, got hollow without config.json"),
    ("train --best-of population", 1, "best_of: expected a sweep of fixed settings, got population with …"),
    ("train --pbt-every 2000", 2,
     "flag --pbt-every: expected a flag with several values such as --learning-rate 1e-4 1e-3, got none"),
    ("train --gamma 0.9 0.99 --pbt-every 0", 2, "flag --pbt-every: expected at least 1, got 0"),
    ("train --gamma 0.9 0.99 --pbt-every 1e4", 2, "Error parsing --pbt-every: expected a whole number, got '1e4'"),
    ("train --gamma 0.9 0.99 --pbt-every 2000 4000", 2, "unknown argument '4000'; …"),
    ("train --gamma 0.9 0.99 --pbt-every 3000", 1, "pbt_every: expected a multiple of report_every = 2000, got 3000…"),
    ("train --hidden 8, 4, --pbt-every 2000", 1, "hidden: expected one value with pbt_every, got several; …"),
    ("train --best-of sweep --pbt-every 2000", 2, "flag --pbt-every: expected none but --seeds, …"),
    ("report run population", 1, "runs: expected runs of one setting, or one sweep alone, got several …"),
    ("eval population --setting 1", 1, "setting: expected none for population with population based training, …"),
    ("eval population --checkpoint best", 1, "checkpoint: expected last for population with …, got 'best'; omit it"),
    ("export population --seed 4 --out a.pt", 1, "seed: expected a trained seed, 5 to 5, got 4"),
    ("compare population:1 run", 1, "arms: expected population without a setting, got '1'; …"),
    ("train --best-of two-programs", 1, "sweep: expected a finished sweep, got two-programs, whose program 1 of 2 …"),
    ("train --gamma 0.9 0.99 1.5", 1,
     "gamma: expected numbers in [0, 1], got 1.5 (in the setting gamma = 1.5)"),
    ("train --gamma 0.9 0.90", 1, "gamma: expected each value once, got 0.9 2 times"),
    ("train --seeds 2 4", 1, "seeds: expected one value for all settings of a sweep, got several"),
    ("train --out a b", 1, "out: expected one value for all settings of a sweep, got several"),
    ("train --report-every 10 20", 1, "report_every: expected one value for all settings of a sweep, got several"),
    ("train --env cartpole catch", 1, "env: expected one environment for all settings of a sweep, got several; …"),
    ("train --adam-eps log:0:1", 1, "adam_eps: expected a range above 0 for log:, got 0:1; use lin:"),
    ("train --gamma lin:1:0.9", 1, "gamma: expected a range from a lower to a higher number, got 1:0.9"),
    ("train --gamma lin:0.9:1 --samples 0", 1, "samples: expected at least 1, got 0"),
    ("train --gamma lin:0.9:1 --samples 1048576", 1, "seeds: expected at most 2**20 learners, got …"),
    ("train --gamma 0.9 0.99 --out run", 1,
     "out: expected a folder that does not exist yet, got 'run'; choose another --out"),
    ("train --hidden 8, 4, --out run", 1,
     "out: expected a folder that does not exist yet, got 'run'; choose another --out"),
    *[(f"{command} sweep{setting}", 1,
       f"setting: expected a number from 0 to 1, as listed in settings.csv, got {got}; pass --setting")
      for command in ("eval", "export --seed 5 --out a.pt")
      for setting, got in (("", "none"), (" --setting 2", "2"), (" --setting -1", "-1"))],
    ("eval run --setting 0", 1, "setting: expected none for a run of one setting, got 0"),
    ("eval two-programs --setting two", 2, "Error parsing --setting: expected a whole number, got 'two'"),
    ("eval two-programs --setting 1", 1, "run: expected a finished run folder, got two-programs/1 without …"),
    ("report two-programs", 1, "sweep: expected a finished sweep, got two-programs, whose program 1 of 2 …"),
    ("report run sweep", 1,
     "runs: expected runs of one setting, or one sweep alone, got several with the sweep sweep; use fdqn compare"),
    ("resume two-programs --steps 10", 1, "steps: expected none for a sweep of several programs, got a number; …"),
    *[(f"{command} bad-programs{rest}", 1,
       "sweep: expected a sweep, got bad-programs with a sweep.json that is invalid: …")
      for command, rest in (("eval", " --setting 0"), ("resume", ""), ("report", ""), ("train --best-of", ""))],
    ("train --compile --no-compile", 2, "flag --compile: expected once, got 2 times"),
    ("train --loss l1", 2, "invalid choice 'l1' for argument '--loss'. Expected one of ('mse', 'huber')."),
    ("train --hidden 8 4.5", 2, "Error parsing --hidden: … ['8', '4.5']"),
    ("train --steps 100_000.5", 2, "Error parsing --steps: expected a whole number, got '100_000.5'"),
    ("train --gamma", 2, "Missing value for argument '--gamma'. …"),
    ("resume", 2, "Missing from fdqn resume: PATH Run folder. (required)"),
    ("resume run --steps many", 2, "Error parsing --steps: expected a whole number, got 'many'"),
    ("resume run --on-nan ignore", 2, "invalid choice 'ignore' for argument '--on-nan'. Expected one of (…)."),
    ("export run --seed 5", 2, "Missing from fdqn export: --out PATH, or --hub PATH for a model repository"),
    ("export run --out a.pt", 2, "Missing from fdqn export: --seed INT, or --hub PATH for a model repository"),
    ("export run --hub repo --out a.pt", 2, "flag --out: expected none with --hub, got 'a.pt'; omit one of them"),
    ("export run --seed 5 --out a.pt --push me/a", 2, "flag --push: expected --hub with it, got none"),
    ("export sweep --hub repo", 1, "run: expected a run of one setting, got the sweep sweep; train …"),
    ("export run --seed five --out a.pt", 2, "Error parsing --seed: expected a whole number, got 'five'"),
    ("envs catch", 2, "unknown argument 'catch'; see `fdqn envs --help`"),
    ("report run --out", 2, "Missing value for argument '--out'. …"),
    # numbers and names
    ("train --env-kwargs rows", 2,
     "flag --env-kwargs: expected name=value, such as is_slippery=False, got 'rows'"),
    ("train --env-kwargs 2x=1", 2, "flag --env-kwargs: expected name=value, such as is_slippery=False, got '2x=1'"),
    ("train --env-kwargs a=1 a=2", 2, "flag --env-kwargs: expected each name once, got a twice"),
    ("train --env-kwargs a=1 --env-kwargs b=2", 2, "flag --env-kwargs: expected once, got 2 times"),
    ("train --env catch --env-kwargs is_slippery=False", 1,
     "env_kwargs: expected arguments of catch (time_limit), got is_slippery=False"),
    ("train --env gym:FrozenLake-v1 --env-kwargs is_slipery=False", 1,
     "env_kwargs: expected arguments that gym:FrozenLake-v1 accepts, got is_slipery=False: …"),
    ("train --wrapper", 2, "flag --wrapper: expected a name such as package.module:Wrapper, got none"),
    ("train --wrapper --seeds 2", 2, "flag --wrapper: expected a name such as package.module:Wrapper, got none"),
    ("train --wrapper TimeLimit", 2,
     "flag --wrapper: expected a name such as package.module:Wrapper, got 'TimeLimit'"),
    ("train --wrapper gymnasium.wrappers.TimeLimit", 2,
     "flag --wrapper: expected a name such as package.module:Wrapper, got 'gymnasium.wrappers.TimeLimit'; write "
     "gymnasium.wrappers:TimeLimit"),
    ("train --env catch --wrapper math:pi", 1, "wrappers: expected math:pi to be a class or a function, got float"),
    ("train --env catch --wrapper nowhere_at_all:W", 1,
     "wrappers: expected nowhere_at_all:W to import, got No module named 'nowhere_at_all'"),
    ("resume run --steps 200 --wrapper a:b", 1, "wrappers: expected those trained with, none, got a:b"),
    ("--completion", 2, "flag --completion: expected bash or zsh or fish, got none"),
    ("--completion=csh", 2, "flag --completion: expected bash or zsh or fish, got csh"),
    ("--version run", 2, "argument 'run': expected none with --version but --json; omit it"),
    ("summary --gama 0.9", 2, "unknown flag '--gama'; did you mean '--gamma'?"),
    ("summary run run", 2, "unknown argument 'run'; see `fdqn summary --help`"),
    ("summary run --gamma 0.9", 2, "flag --gamma: expected none but --env, --wrapper and --json with a run; omit it"),
    ("summary --gamma 0.9 0.99", 2, "flag --gamma: expected one value with summary, got several"),
    ("summary --env cartpol", 1, "unknown environment 'cartpol'; did you mean 'cartpole'? Known: …"),
    ("summary hollow", 1, "run: expected a finished run folder, got hollow without config.json"),
    ("summary two-programs", 1,
     "run: expected a run or a sweep of one program, got two-programs; give one of its folders"),
    ("train --env cartpol", 1, "unknown environment 'cartpol'; did you mean 'cartpole'? Known: …"),
    ("train --env ale:Pogn", 1, "env: expected a game of ale-py, got 'Pogn'; did you mean pong?"),
    ("train --env gym:CartPole-v7", 1, "env: expected an environment of Gymnasium, got 'gym:CartPole-v7': …"),
    ("train --env gym:Pendulum-v1", 1, "env: expected discrete actions, got …"),
    ("train --env gym:CartPole-v1 --n-step 1 --learning-starts 0", 1,
     "learning_starts: expected at least 1 in a host environment, got 0: …"),
    ("train --seeds 0", 1, "seeds: expected at least 1, got 0"),
    ("train --seed -1", 1, "seed: expected at least 0, got -1"),
    ("train --seed 4294967296", 1, "seed: expected seeds below 2**32, got …"),
    ("train --steps 0", 1, "steps: expected at least 1, got 0"),
    ("train --steps 500", 1, "learning_starts: expected fewer than steps = 500 …, got 1000: no update would be made"),
    ("train --batch-size 20000", 1, "batch_size: expected at most capacity = 10000, got 20000"),
    ("train --num-envs 0", 1, "num_envs: expected at least 1, got 0"),
    ("train --learning-rate nan", 1, "learning_rate: expected numbers in [0, inf], got nan"),
    ("train --learning-rate -1", 1, "learning_rate: expected numbers in [0, inf], got -1.0"),
    ("train --gamma 1.5", 1, "gamma: expected numbers in [0, 1], got 1.5"),
    ("train --tau inf", 1, "tau: expected a number in (0, 1], got inf"),
    ("train --epsilon-fraction -0.5", 1, "epsilon_fraction: expected a number in [0, 1], got -0.5"),
    ("train --no-compile --engine aot", 1, "engine: expected 'eager' or 'auto' with --no-compile (compile=False), got "
     "'aot'; omit one of them"),
    ("train --engine jit", 2, "invalid choice 'jit' for argument '--engine'. Expected one of (…)."),
    ("train --max-grad-norm 0", 1,
     "max_grad_norm: expected a number above 0, got 0, which would clip every gradient to 0"),
    ("train --hidden 8 0", 1, "hidden: expected at least 1, got 0"),
    ("train --seeds 1000000000", 1,
     "seeds: expected at most 2**20, got 1000000000"),
    ("train --keep-checkpoints 0", 1, "keep_checkpoints: expected at least 1, got 0"),
    ("eval run --episodes 0", 1, "episodes: expected at least 1, got 0"),
    ("eval run --episodes -3", 1, "episodes: expected at least 1, got -3"),
    ("eval run --evaluate-steps -3", 1, "evaluate_steps: expected at least 1, got -3"),
    ("train --evaluate-episodes 0", 1, "evaluate_episodes: expected at least 1, got 0"),
    ("train --evaluate-steps -1", 1, "evaluate_steps: expected at least 0, got -1"),
    ("resume run --steps 10000 --evaluate-steps -1", 1, "evaluate_steps: expected at least 0, got -1"),
    ("eval run --video", 2, "Missing value for argument '--video'. …"),
    ("eval run --video a.mp4", 1, "video: expected a name that ends in .gif, got 'a.mp4'"),
    ("eval run --video nowhere/a.gif", 1,
     "video: expected a file in an existing folder, got 'nowhere/a.gif'; create nowhere first"),
    ("eval hollow --video a.gif", 1, "run: expected a finished run folder, got hollow without config.json"),
    ("eval run --env cartpole", 1, "env: expected observations [10, 5] and 3 actions as in training, got …"),
    (f"eval run --env {__name__}:Bytes", 1, "env: expected torch.float32 as in training, got torch.uint8 in …"),
    ("eval run --env gym:Nonsense-v7", 1, "env: expected an environment of Gymnasium, got 'gym:Nonsense-v7': …"),
    ("eval run --env gym:CartPole-v1", 1,
     "env: expected observations [10, 5] and 3 actions as in training, got [4] and 2 in gym:CartPole-v1"),
    ("export run --seed 3 --out a.pt", 1, "seed: expected a trained seed, 5 to 6, got 3"),
    ("export run --seed 5 --out a.npz", 1, "out: expected a name that ends in .pt or .pth …, got 'a.npz'"),
    ("export run --seed 5 --out a.onnx --prefix stack.", 1, "prefix: expected none for a policy, …, got 'stack.'"),
    ("resume run --steps 1", 1, "steps: expected at least the planned 100, got 1"),
    ("resume run --steps 0", 1, "steps: expected at least the planned 100, got 0"),
    ("resume run --steps -5", 1, "steps: expected at least the planned 100, got -5"),
    # places
    ("train --out run", 1, "out: expected a folder that does not exist yet, got 'run'; choose another --out"),
    ("train --out file", 1, "out: expected a folder that does not exist yet, got 'file'; choose another --out"),
    ("train --out file/run", 1, "out: expected a folder that can be created, got 'file/run', but …"),
    ("train --out=", 1, "out: expected a folder that does not exist yet, got ''; choose another --out"),
    ("train --out /proc/fdqn/run", 1, "out: expected a folder that can be created, got '/proc/fdqn/run'…"),
    ("eval nowhere", 1, "run: expected a finished run folder, got nowhere without config.json"),
    ("eval file", 1,
     "run: expected a finished run folder, got file with a config.json which cannot be read: Not a directory"),
    ("eval hollow", 1, "run: expected a finished run folder, got hollow without config.json"),
    ("eval run/summary.json", 1,
     "run: expected a finished run folder, got run/summary.json with a config.json which cannot …"),
    ("resume hollow", 1, "run: expected a finished run folder, got hollow without config.json"),
    ("resume file", 1,
     "run: expected a finished run folder, got file with a config.json which cannot be read: Not a directory"),
    ("resume nowhere --steps 5", 1, "run: expected a finished run folder, got nowhere without config.json"),
    ("report", 1, "runs: expected at least one run folder, got none"),
    ("report run hollow", 1, "run: expected a finished run folder, got hollow without config.json"),
    ("report run --out run", 1, "out: run: expected to write it, got Is a directory; the old content is kept; …"),
    ("report run --out nowhere/x.png", 1,
     "out: nowhere/x.png: expected to write it, got No such file or directory; the old content is kept; …"),
    ("report run run --out file/x.png", 1,
     "out: file/x.png: expected to write it, got Not a directory; the old content is kept; …"),
    ("report nowhere --json", 1, "run: expected a finished run folder, got nowhere without config.json"),
    ("report --html a.html", 1, "runs: expected at least one run folder, got none"),
    ("report run --html run", 1, "html: expected a name that ends in .html, got 'run'"),
    ("report run --html=", 1, "html: expected a name that ends in .html, got '.'"),
    ("report run --html page.html", 1,
     "html: expected a file that does not exist yet, got 'page.html'; choose another --html"),
    ("report run --html nowhere/a.html", 1,
     "html: expected a file in an existing folder, got 'nowhere/a.html'; create nowhere first"),
    ("report run --html a.html --out a.png", 1,
     "out: expected none with --html, which replaces the PNG; omit --out"),
    ("report run sweep --html a.html", 1,
     "runs: expected runs of one setting, or one sweep alone, got several with the sweep sweep; use fdqn compare"),
    ("watch", 2, "Missing from fdqn watch: PATH Run folder, or folder of a sweep. …"),
    ("watch run --port", 2, "Missing value for argument '--port'. …"),
    ("watch run --port web", 2, "Error parsing --port: expected a whole number, got 'web'"),
    ("watch run --port -1", 1, "port: expected at least 0, got -1"),
    ("watch run --port 65536", 1, "port: expected at most 65535, got 65536"),
    *[(f"watch {name}", 1, f"run: expected a run folder, got {name} without config.json")
      for name in ("nowhere", "hollow", "file")],
    ("export run --seed 5 --out run", 1,
     "out: expected a file that does not exist yet, got 'run'; choose another --out"),
    ("export run --seed 5 --out=", 1, "out: expected a file that does not exist yet, got '.'; choose another --out"),
    ("export run --seed 5 --out nowhere/a.pt", 1,
     "out: expected a file in an existing folder, got 'nowhere/a.pt'; create nowhere first"),
    ("export run --seed 5 --out a.pt --prefix stack", 1,
     "prefix: expected a prefix that ends in a dot, got 'stack'; use 'stack.'"),
    ("export hollow --seed 5 --out a.pt", 1, "run: expected a finished run folder, got hollow without config.json"),
    # run folders with wrong content
    *[(f"{command} {name}", 1, f"run: expected a finished run folder, got {name} {says}")
      for name, (_, says) in SPOILED.items() for command in ("eval", "report", "export --seed 5 --out a.pt")],
    *[(f"resume {name} --steps 200", 1, f"run: expected a finished run folder, got {name} {says}")
      for name, (_, says) in SPOILED.items() if "config" in says and name != "other-seeds"],
    *[(f"{command} bad-params", 1,
       "run: expected a finished run folder, got bad-params with a params.safetensors which cannot be read: …")
      for command in ("eval", "export --seed 5 --out a.pt")],
    ("eval other-params", 1, "params.safetensors: expected {…}, got … and … more"),
    ("eval more-seeds", 1, "run: … summary.json …: seeds: expected those of config.json, 5 to 7, got [5, 6]"),
    ("resume more-seeds --steps 200", 1,
     "more-seeds/checkpoints/100: expected the settings of config.json, got seeds = 2 and not 3"),
    ("resume bad-checkpoint --steps 200", 1,
     "bad-checkpoint/checkpoints/100/state.safetensors: expected … bytes, got 0; use another …"),
    ("resume few-rows --steps 200", 1,
     "few-rows/metrics.csv: expected at least … bytes, as at the checkpoint of step 100, got others; …"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "says"), LINES, ids=[line for line, *_ in LINES])
def test_a_bad_line_is_one_sentence_and_leaves_no_trace(place, capsys, monkeypatch, line, code, says):
    monkeypatch.setattr(run_folder, "functions", lambda *given: pytest.fail(f"not refused: {line}"))
    got = cli.main(line.split(" "))
    out, err = capsys.readouterr()
    assert got == code, err
    assert out == ""
    *before, sentence = err.splitlines()
    assert all(re.match(r"(cartpole|catch): \d+ seeds x |sweep of |  \d+: ", line) for line in before), (
        "what is said before it starts"
    )
    assert sentence.startswith("fdqn: ")
    assert fits(sentence.removeprefix("fdqn: "), says), err


def test_the_table_is_long():
    assert len(ROWS) + len(LINES) >= 120
