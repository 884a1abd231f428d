"""The same work in plain JAX: one jitted, donated scan over training iterations, vmapped over seeds.

Does not import fdqn. CartPole, replay, network and Q-learning are written in plain JAX; Adam is optax's. As in fdqn, an
iteration steps ten environments once and makes one update. The target copy is a `where`, because a `cond` in a `scan`
copies the carry in jax 0.10 (jax-ml/jax issue 38145). The noise of a whole scan is drawn before it.

    pip install jax optax && python benchmarks/jax_dqn.py

Prints seed-updates per second at 1, 8 and 32 seeds.
"""

import statistics
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class State(NamedTuple):
    """State of one seed."""

    params: dict
    target: dict
    opt_state: optax.OptState
    rows: tuple
    added: jax.Array
    env: jax.Array
    time: jax.Array
    key: jax.Array
    iteration: jax.Array
    totals: jax.Array


class Work(NamedTuple):
    """Sizes of the work."""

    sizes: tuple = (4, 120, 84, 2)
    envs: int = 10
    batch: int = 128
    capacity: int = 10_000
    target_period: int = 20
    learning_rate: float = 2.5e-4
    gamma: float = 0.99
    epsilon: float = 0.05
    cartpole: bool = True


def apply(params, x):
    """Apply the MLP."""
    last = len(params) // 2 - 1
    for i in range(last + 1):
        x = x @ params[f"w{i}"] + params[f"b{i}"]
        x = x if i == last else jax.nn.relu(x)
    return x


def cartpole(work, state, time, action, u):
    """Step CartPole in [E] environments; return state, time, next_obs, reward, terminated."""
    x, x_dot, theta, theta_dot = jnp.moveaxis(state, -1, 0)
    force = jnp.where(action == 1, 10.0, -10.0)
    cos, sin = jnp.cos(theta), jnp.sin(theta)
    temp = (force + 0.05 * theta_dot**2 * sin) / 1.1
    theta_acc = (9.8 * sin - cos * temp) / (0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
    x_acc = temp - 0.05 * theta_acc * cos / 1.1
    new = jnp.stack(
        [x + 0.02 * x_dot, x_dot + 0.02 * x_acc, theta + 0.02 * theta_dot, theta_dot + 0.02 * theta_acc], -1
    )
    time = time + 1
    terminated = (jnp.abs(new[..., 0]) > 2.4) | (jnp.abs(new[..., 2]) > 12 * 2 * jnp.pi / 360)
    ended = terminated | (time >= 500)
    after = jnp.where(ended[..., None], -0.05 + 0.1 * u, new)
    return after, jnp.where(ended, 0, time), new, jnp.ones_like(x), terminated


def walk(work, state, time, action, u):
    """Step the stand-in for a wide observation: a random state per step; one in a hundred steps ends an episode."""
    new = u
    terminated = u[..., 0] < 0.01
    return new, time, new, (action == 0).astype(jnp.float32), terminated


def init(work: Work, key):
    """Initialize a seed."""
    params = {}
    keys = jax.random.split(key, 2 * len(work.sizes))
    for i, (n, m) in enumerate(zip(work.sizes[:-1], work.sizes[1:], strict=True)):
        bound = n**-0.5
        params[f"w{i}"] = jax.random.uniform(keys[2 * i], (n, m), minval=-bound, maxval=bound)
        params[f"b{i}"] = jax.random.uniform(keys[2 * i + 1], (m,), minval=-bound, maxval=bound)
    capacity, width = work.capacity, work.sizes[0]
    rows = (
        jnp.zeros((capacity, width)),
        jnp.zeros((capacity, width)),
        jnp.zeros((capacity,), jnp.int32),
        jnp.zeros((capacity,)),
        jnp.zeros((capacity,)),
    )
    env = jax.random.uniform(keys[-1], (work.envs, width), minval=-0.05, maxval=0.05)
    return State(
        params,
        jax.tree.map(jnp.copy, params),
        optax.adam(work.learning_rate).init(params),
        rows,
        jnp.zeros((), jnp.int32),
        env,
        jnp.zeros((work.envs,), jnp.int32),
        key,
        jnp.zeros((), jnp.int32),
        jnp.zeros((3,)),
    )


def iterate(work: Work, state: State, noise):
    """Step every environment once, then update once."""
    explore, choice, env_u, sample_u = noise
    q = apply(state.params, state.env)
    actions = work.sizes[-1]
    action = jnp.where(explore < work.epsilon, (choice * actions).astype(jnp.int32), q.argmax(-1))
    step = cartpole if work.cartpole else walk
    env, time, next_obs, reward, terminated = step(work, state.env, state.time, action, env_u)
    at = (state.added + jnp.arange(work.envs)) % work.capacity
    new = (state.env, next_obs, action, reward, 1.0 - terminated)
    rows = tuple(ring.at[at].set(x) for ring, x in zip(state.rows, new, strict=True))
    added = state.added + work.envs

    filled = jnp.minimum(added, work.capacity)
    index = (sample_u * filled).astype(jnp.int32)
    obs, next_obs, action, reward, discount = (ring[index] for ring in rows)

    def loss(params):
        q_tm1 = jnp.take_along_axis(apply(params, obs), action[:, None], -1)[:, 0]
        target = reward + work.gamma * discount * apply(state.target, next_obs).max(-1)
        return jnp.square(jax.lax.stop_gradient(target) - q_tm1).mean(), q_tm1.mean()

    (value, q_mean), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = optax.adam(work.learning_rate).update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    copy = (state.iteration + 1) % work.target_period == 0
    target = jax.tree.map(lambda t, p: jnp.where(copy, p, t), state.target, params)
    totals = state.totals + jnp.stack([value, q_mean, optax.global_norm(grads)])
    return State(params, target, opt_state, rows, added, env, time, state.key, state.iteration + 1, totals)


def draw(work: Work, state: State, iterations: int):
    """Draw the noise of a scan."""
    keys = jax.random.split(jax.random.fold_in(state.key, state.iteration), 4)
    uniform = jax.random.uniform
    return (
        uniform(keys[0], (iterations, work.envs)),
        uniform(keys[1], (iterations, work.envs)),
        uniform(keys[2], (iterations, work.envs, work.sizes[0])),
        uniform(keys[3], (iterations, work.batch)),
    )


def seeds_scan(work: Work, iterations: int, states):
    """Scan the vmapped iteration. The vmap is inside, so that each operation covers all seeds."""
    noise = jax.vmap(partial(draw, work, iterations=iterations), out_axes=1)(states)

    def body(states, noise):
        return jax.vmap(partial(iterate, work))(states, noise), None

    return jax.lax.scan(body, states, noise)[0]


def states(work: Work, seeds: int):
    """Initialize `seeds` seeds."""
    return jax.vmap(partial(init, work))(jax.vmap(jax.random.key)(jnp.arange(seeds)))


def advance(work: Work, iterations: int):
    """Make a function that runs a number of iterations in place."""
    return jax.jit(partial(seeds_scan, work, iterations), donate_argnums=0)


def main(iterations: int = 500, repeats: int = 7) -> None:
    """Print the median speed over repeats, without compilation."""
    for seeds in (1, 8, 32):
        run, state = advance(Work(), iterations), states(Work(), seeds)
        state = jax.block_until_ready(run(state))
        rates = []
        for _ in range(repeats):
            start = time.perf_counter()
            state = jax.block_until_ready(run(state))
            rates.append(seeds * iterations / (time.perf_counter() - start))
        print(f"{seeds} seeds: {statistics.median(rates):,.0f} seed-updates/s, {min(rates):,.0f} to {max(rates):,.0f}")


if __name__ == "__main__":
    main()
