"""Measure the time of each public function, eager and compiled.

    python benchmarks/micro.py [--device cpu] [--seeds 32] [--repeats 7]

Sizes are those of one training iteration of the small network. Prints microseconds per call, medians of the repeats,
and appends a record to `benchmarks/records/micro.jsonl`.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import work
from torch.func import grad, vmap

from fdqn import compile, optim, random, replay, training, tree
from fdqn.experiment import assemble
from fdqn.ops import exploration, losses, masking, schedules, td
from fdqn.testing import examples
from fdqn.training import off_policy


def cases(seeds: int, device: str) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """Yield name, function over seeds, and arguments."""
    program = work.program("small")
    state = work.initial_state(program, seeds, device)
    noise = tree.index(training.noise(program, state.key, 0, 1), 0)
    state = training.vmapped(program).collect(state, tree.map(lambda x: x.unsqueeze(0), noise))
    apply, params, hyper = program.network.apply, state.learner.params, state.hyper
    bits, u = noise.sample[:, 0], noise.act[:, 0]
    sample = vmap(partial(replay.ring.sample, oldest=0))
    batch = sample(state.buffer, bits).batch
    q, q_t = vmap(apply)(params, batch.obs), vmap(apply)(params, batch.next_obs)
    q_acting, action = vmap(apply)(params, state.obs), torch.zeros_like(u[..., 0], dtype=torch.int64)
    step = vmap(program.env.step)(state.env_state, action, noise.env[:, 0])[1]
    new = vmap(replay.transition)(state.obs, action, step)
    errors = q, batch.action, batch.reward, batch.discount, q_t
    labels, probabilities = batch.action, q_t.softmax(-1)

    yield "random.bits", lambda keys: random.bits(keys, (128,)), (state.key,)
    yield "random.split", random.split, (state.key,)
    yield "random.fold_in", lambda keys: random.fold_in(keys, 7), (state.key,)
    yield "random.uniform", lambda keys: random.uniform(keys, (128,)), (state.key,)
    yield "random.randint", lambda keys: random.randint(keys, (128,), 0, 7), (state.key,)
    yield "random.unit", random.unit, (bits,)
    yield "random.index", lambda bits: random.index(bits, 10_000), (bits,)
    yield "random.normal", lambda keys: random.normal(keys, (128,)), (state.key,)
    yield "training.noise", lambda keys: training.noise(program, keys, 0, 20), (state.key,)
    yield "network.apply, batch", vmap(apply), (params, batch.obs)
    yield "network.apply, acting", vmap(apply), (params, state.obs)
    yield "masking.pick", masking.pick, (q, batch.action)
    yield "masking.best", masking.best, (q_t, batch.next_legal)
    yield "masking.count", vmap(masking.count), (step.terminated,)
    yield "exploration.uniform", exploration.uniform, (state.legal, u[..., 0])
    yield "masking.greedy", masking.greedy, (q_t, batch.next_legal)
    yield "exploration.epsilon_greedy", exploration.epsilon_greedy, (q_acting, state.legal, torch.tensor(0.05), u)
    yield "env.step", vmap(program.env.step), (state.env_state, action, noise.env[:, 0])
    yield "replay.ring.sample", sample, (state.buffer, bits)
    yield "losses.squared", losses.squared, (batch.reward,)
    yield "losses.huber", losses.huber, (batch.reward,)
    yield "losses.smooth_l1", losses.smooth_l1, (batch.reward,)
    yield "losses.one_hot", lambda labels: losses.one_hot(labels, 2), (labels,)
    yield "losses.smoothed", lambda p: losses.smoothed(p, 0.1), (probabilities,)
    yield "losses.cross_entropy", losses.cross_entropy, (q, probabilities)
    yield "losses.cross_entropy_of_labels", losses.cross_entropy_of_labels, (q, labels)
    yield "td.q_learning", td.q_learning, (*errors, batch.next_legal)
    yield "td.double_q_learning", td.double_q_learning, (*errors, q_t, batch.next_legal)
    yield "grad of the loss", vmap(_gradient(program)), (params, state.learner.target_params, batch, hyper)
    for name, make in OPTIMIZERS.items():
        yield (
            f"optim.{name}",
            vmap(partial(_update, make)),
            (params, vmap(partial(_init, make))(params, hyper), params, hyper),
        )
    yield "optim.apply_updates", optim.apply_updates, (params, params)
    yield "off_policy.update", vmap(_learn(program)), (state.learner, batch, hyper)
    yield "off_policy.soft_copy", vmap(off_policy.soft_copy), (state.learner, hyper.tau)
    for name, schedule in SCHEDULES.items():
        yield f"schedules.{name}", schedule, (state.cycle,)
    yield "off_policy.hard_copy", vmap(off_policy.hard_copy), (state.learner,)
    # Donated: without donation they would copy the whole replay memory.
    add = vmap(lambda ring, batch: replay.ring.add(ring, batch, batch.discount == 0, None)[0])
    yield "replay.ring.add, in place", compile.donate(add), (tree.clone(state.buffer), new)
    yield "training.cycle, in place", compile.donate(vmap(partial(training.cycle, program))), (tree.clone(state), noise)


def _gradient(program):
    loss = program.algorithm.agent.loss
    return lambda params, *given: grad(lambda p: loss(p, *given, ()).loss.mean())(params)


def _learn(program):
    agent = program.algorithm.agent
    return lambda learner, batch, hyper: off_policy.update(
        agent, assemble.adam(hyper), learner, examples.sample(batch), hyper
    )


def _init(make, params, hyper):
    return make(hyper).init(params)


def _update(make, grads, state, params, hyper):
    return make(hyper).update(grads, state, params)


# Optimizers as functions of a seed's hyper-parameters.
OPTIMIZERS = {
    "adam": lambda hyper: optim.adam(hyper.learning_rate),
    "adamw": lambda hyper: optim.adamw(hyper.learning_rate),
    "adamax": lambda hyper: optim.adamax(hyper.learning_rate),
    "nadam": lambda hyper: optim.nadam(hyper.learning_rate),
    "radam": lambda hyper: optim.radam(hyper.learning_rate),
    "sgd": lambda hyper: optim.sgd(hyper.learning_rate, momentum=0.9),
    "rmsprop": lambda hyper: optim.rmsprop(hyper.learning_rate),
    "centered_rmsprop": lambda hyper: optim.centered_rmsprop(hyper.learning_rate),
    "graves_rmsprop": lambda hyper: optim.graves_rmsprop(hyper.learning_rate),
    "adagrad": lambda hyper: optim.adagrad(hyper.learning_rate),
    "clip_by_global_norm": lambda hyper: optim.clip_by_global_norm(hyper.max_grad_norm),
    "clip_by_value": lambda hyper: optim.clip_by_value(hyper.max_grad_norm),
    "add_decayed_weights": lambda hyper: optim.add_decayed_weights(0.01),
    "frozen": lambda hyper: optim.frozen(),
    "masked": lambda hyper: optim.masked(optim.add_decayed_weights(0.01), lambda name: name.endswith("weight")),
    "grouped": lambda hyper: optim.grouped(lambda name: name.split(".")[1], weight=optim.adam(), bias=optim.sgd()),
}
SCHEDULES = {
    "constant": partial(schedules.constant, value=0.1),
    "linear": partial(schedules.linear, start=1.0, end=0.1, steps=100),
    "polynomial": partial(schedules.polynomial, start=1.0, steps=100, power=2.0),
    "exponential": partial(schedules.exponential, start=1.0, decay=0.99),
    "staircase": partial(schedules.staircase, start=1.0, decay=0.5, every=30),
    "milestones": partial(schedules.milestones, start=1.0, decay=0.5, milestones=(30, 80)),
    "cosine": partial(schedules.cosine, start=1.0, end=0.0, steps=100),
    "cosine_restarts": partial(schedules.cosine_restarts, start=1.0, end=0.0, steps=10, growth=2),
    "one_cycle": partial(schedules.one_cycle, peak=1.0, steps=100),
    "warm_up": partial(schedules.warm_up, schedule=partial(schedules.exponential, start=1.0, decay=0.9), steps=10),
    "sequence": partial(
        schedules.sequence, schedules=[partial(schedules.constant, value=v) for v in (1, 2)], starts=[9]
    ),
}


def time_of(f: Callable[[], Any], repeats: int, device: str) -> float:
    """Measure the median microseconds of a call."""
    f()
    times = []
    for _ in range(repeats):
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < 0.05:
            f()
            calls += 1
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return work.spread(times)["median"]


@torch.no_grad()
def main() -> None:
    """Measure, print and append a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    work.prepare()
    results = {}
    print(f"{'us per call, ' + str(arguments.seeds) + ' seeds':32s} {'eager':>10s} {'compiled':>10s}")
    for name, f, args in cases(arguments.seeds, arguments.device):
        eager = time_of(partial(f, *args), arguments.repeats, arguments.device)
        compiled = time_of(partial(compile.compile(f), *args), arguments.repeats, arguments.device)
        results[name] = {"eager": eager, "compiled": compiled}
        print(f"{name:32s} {eager:10,.0f} {compiled:10,.0f}", flush=True)
    work.append("micro", {**work.machine(arguments.device), "seeds": arguments.seeds, "microseconds": results})


if __name__ == "__main__":
    main()
