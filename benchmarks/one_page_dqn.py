"""Double DQN for 16 seeds of CartPole on one page, of fdqn's functions. Usage: one_page_dqn.py [STEPS]"""

import sys

import torch
from torch.func import grad, vmap

from fdqn import compile, envs, networks, optim, random, replay, tree
from fdqn.ops import exploration, losses, schedules, td
from fdqn.report import statistics
from fdqn.training import evaluate

SEEDS, ENVS, BATCH, PERIOD, WARMUP, GAMMA = 16, 10, 128, 20, 100, torch.tensor(0.99)
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000  # environment steps per seed
env, gymnasium = envs.make("cartpole"), envs.find("gym:CartPole-v1")
network = networks.mlp(env.spec.obs_shape, (120, 84), env.spec.actions)
optimizer = optim.chain(clip=optim.clip_by_global_norm(10.0), adam=optim.adam(2e-3))
buffer = replay.ring.buffer(10_000)  # below, functions of one seed but for `draw`


def init(key):
    """Initialize the state of one seed."""
    params = network.init(random.fold_in(key, 0))
    env_state, step = env.reset(random.uniform(random.fold_in(key, 1), (ENVS, env.spec.noise)))
    rows = buffer.init(tree.index(replay.transition(step.obs, step.terminated.long(), step), 0))
    acting = {"env": env_state, "obs": step.obs, "count": torch.zeros((), dtype=torch.int64)}
    return acting | {"params": params, "target": params, "optimizer": optimizer.init(params), "rows": rows}


def loss(params, target, batch):
    """Compute the mean squared TD error of a batch for one seed."""
    q_tm1, q_t = network.apply(params, batch.obs), network.apply(target, batch.next_obs)
    selector, discount_t = network.apply(params, batch.next_obs).detach(), GAMMA * batch.discount
    delta = td.double_q_learning(q_tm1, batch.action, batch.reward, discount_t, q_t, selector, batch.next_legal)
    return losses.squared(delta).mean()


def iteration(state, noise):
    """Step the environments of one seed once, then make one update."""
    params, target, count = state["params"], state["target"], state["count"]
    q, epsilon = network.apply(params, state["obs"]), schedules.linear(count * ENVS, 1.0, 0.05, 0.2 * STEPS)
    action = exploration.epsilon_greedy(q, torch.ones_like(q, dtype=torch.bool), epsilon, noise["act"])
    env_state, step = env.step(state["env"], action, noise["env"])
    row = replay.transition(state["obs"], action, step)
    rows, _ = buffer.add(state["rows"], row, step.terminated | step.truncated, None, GAMMA)
    gradient = grad(loss)(params, target, buffer.sample(rows, noise["sample"], 0).batch)
    updates, optimizer_state = optimizer.update(gradient, state["optimizer"], params)
    new = {"params": optim.apply_updates(params, updates), "optimizer": optimizer_state}
    new = tree.map(lambda x, old: torch.where(count < WARMUP, old, x), new, {name: state[name] for name in new})
    target = tree.map(lambda x, old: torch.where(count % PERIOD == 0, x, old), new["params"], target)
    return state | new | {"target": target, "rows": rows, "env": env_state, "obs": step.obs, "count": count + 1}


def draw(keys, first, count):
    """Draw the noise of `count` iterations; leaves [count, S, ...]."""
    keys = random.fold_in(random.fold_in(keys, 2), first + torch.arange(count).unsqueeze(-1))
    act, chance = random.uniform(random.fold_in(keys, 0), (ENVS, 2 + env.spec.noise)).split([2, env.spec.noise], -1)
    return {"act": act, "env": chance, "sample": random.bits(random.fold_in(keys, 1), (BATCH,))}


compile.prepare_cpu()
keys, run = random.key(range(SEEDS)), compile.scan(vmap(iteration))
state = tree.separate(vmap(init)(keys))
for first in range(0, STEPS // ENVS, 500):
    state = run(state, draw(keys, first, min(500, STEPS // ENVS - first)))
    print(f"{min(first + 500, STEPS // ENVS):,} of {STEPS // ENVS:,} training iterations", file=sys.stderr)
returns = evaluate.greedy(gymnasium, network, state["params"], keys).returns
print("IQM {:.1f} [{:.1f}, {:.1f}], {}".format(*statistics.interval(statistics.row_means(returns))))
