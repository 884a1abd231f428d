"""Check that each law of `fdqn.testing.programs` accepts a correct program and rejects planted bugs."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from plants import naive, rejects

from fdqn import compile as edge
from fdqn import random, replay, training, tree
from fdqn.testing import examples, programs
from fdqn.training import iteration, loop, metrics


def changing_tensors(state):
    return state.learner.params, state.obs, state.buffer.rows.obs


def shared_key(noise):
    """Plant a bug: draw the noise of all seeds from the key of the first one."""

    def noise_of_seed_0(program, keys, first, cycles):
        return noise(program, keys[:1].expand_as(keys), first, cycles)

    return noise_of_seed_0


def chunk_noise(program, keys, first, cycles):
    """Plant a bug: draw all noise of a chunk from the key of its first iteration."""
    shape = training.noise(program, keys, first, cycles)
    key = random.fold_in(keys, first)
    act, env = (
        random.uniform(random.fold_in(key, i), (cycles, *x.shape[2:])).transpose(0, 1) for i, x in enumerate(shape[:2])
    )
    return training.Noise(
        act, env, random.bits(random.fold_in(key, 2), (cycles, *shape.sample.shape[2:])).transpose(0, 1)
    )


def test_seeds_rejects_a_shared_key(monkeypatch):
    program, (hyper, keys) = examples.program(), examples.seeds(3)
    programs.seeds(
        lambda hyper, keys: training.noise(program, keys, 0, 2).act.transpose(0, 1), hyper, keys, atol=0, rtol=0
    )
    noise = shared_key(training.noise)
    with rejects("seed 1 of 3"):
        programs.seeds(lambda hyper, keys: noise(program, keys, 0, 2).act.transpose(0, 1), hyper, keys, atol=0, rtol=0)
    monkeypatch.setattr(iteration, "noise", noise)
    monkeypatch.setattr(loop, "noise", noise)
    with rejects("seed 1 of 3"):
        programs.seeds(partial(programs.trained, program, cycles=6), hyper, keys, distinct=changing_tensors)


def test_seeds_rejects_equal_seeds_and_dependent_seeds():
    program, (hyper, keys) = examples.program(), examples.seeds(3)
    network = program.network
    same_init = examples.program(network=network._replace(init=lambda key: network.init(key * 0)))
    with rejects(r"seed 1\[.0.weight.\]: expected a change with its key"):
        programs.seeds(
            lambda hyper, keys: training.init(same_init, hyper, keys).learner.params, hyper, keys, atol=0, rtol=0
        )
    same = [0, 1, 0]
    with rejects("seeds 0 and 2.*expected them to differ"):
        programs.seeds(lambda hyper, keys: random.bits(keys, (4,)), tree.index(hyper, same), keys[same], atol=0, rtol=0)
    with rejects("seed 1 of 3"):
        programs.seeds(lambda hyper, keys: random.normal(keys, (4,)).cumsum(0), hyper, keys)

    def dependent(hyper, keys):  # correct for one seed, and within the tolerance of float32
        x = random.normal(keys, (4,), torch.float64)
        return x + 1e-13 * (x - x.mean(0)) * (len(x) > 1)

    with rejects("seeds whose key did not change"):
        programs.seeds(dependent, hyper, keys)


def test_chunks_rejects_noise_that_depends_on_the_chunk():
    program, (_, keys) = examples.program(), examples.seeds(2)
    programs.chunks(program, keys)
    with rejects("noise drawn at once"):
        programs.chunks(program, keys, noise=chunk_noise)

    def frozen(program, keys, first, cycles):
        return tree.stack(tree.index(training.noise(program, keys, 0, 1), 0) for _ in range(cycles))

    with rejects("expected new noise"):
        programs.chunks(program, keys, noise=frozen)


def test_metrics_accepts_episodes_that_end_within_an_iteration():
    programs.metrics(examples.program(steps_per_cycle=2), *examples.seeds(2))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda old, new, step: new._replace(running=new.running + step.reward * 0.5), "returned|last returns|running"),
        (lambda old, new, step: new._replace(episodes=old.episodes + step.terminated.sum()), "episodes"),
        (lambda old, new, step: new._replace(returned=new.returned + 1), "returned"),
        (lambda old, new, step: new._replace(running=old.running + step.reward), "last returns|returned"),
        (lambda old, new, step: new._replace(returns=old.returns), "last returns"),
        (lambda old, new, step: new._replace(lengths=new.lengths + step.terminated.sum()), "lengths"),
        (lambda old, new, step: new._replace(elapsed=old.elapsed + 1), "lengths|elapsed"),
    ],
)
def test_metrics_rejects_planted_bugs(monkeypatch, change, match):
    program, (hyper, keys) = examples.program(steps_per_cycle=2), examples.seeds(2)
    correct = training.count_episodes
    monkeypatch.setattr(metrics, "count_episodes", lambda old, step: change(old, correct(old, step), step))
    with rejects(match):
        programs.metrics(program, hyper, keys)


def test_metrics_rejects_a_wrong_return_before_any_episode_ends(monkeypatch):
    correct = training.count_episodes
    monkeypatch.setattr(metrics, "count_episodes", lambda old, step: correct(old, step)._replace(running=old.running))
    with rejects("seed 0, running: "):
        programs.metrics(examples.program(), *examples.seeds(2), cycles=2)


def test_metrics_rejects_stored_rewards_that_were_changed(monkeypatch):
    correct = replay.transition

    def half(obs, action, step, legal):
        return correct(obs, action, step._replace(reward=step.reward / 2), legal)

    monkeypatch.setattr(replay, "transition", half)
    with rejects(r"reward of stored rows from 0: \[0, 0\]: expected 1.0, got 0.5"):
        programs.metrics(examples.program(), *examples.seeds(2), cycles=2)


def test_resumed_rejects_an_incomplete_checkpoint():
    program, (hyper, keys) = examples.program(), examples.seeds(2)
    start, run = training.init(program, hyper, keys), partial(programs.advance, program)
    programs.resumed(run, start, 6, 5)
    fresh = tree.clone(start)
    incomplete = {
        "opt_state": lambda s: s._replace(learner=s.learner._replace(opt_state=fresh.learner.opt_state)),
        "target": lambda s: s._replace(learner=s.learner._replace(target_params=s.learner.params)),
        "replay": lambda s: s._replace(buffer=fresh.buffer),
        "running returns": lambda s: s._replace(metrics=fresh.metrics),
        "half precision": lambda s: s._replace(learner=tree.cast(tree.cast(s.learner, torch.bfloat16), torch.float32)),
        "environment": lambda s: s._replace(env_state=fresh.env_state, obs=fresh.obs),
    }
    for through in incomplete.values():
        with rejects("resumed after 7 of 12"):
            programs.resumed(run, start, 7, 5, through)


def test_naive_donation_is_rejected():
    start = {"params": torch.tensor([1.0, 2.0]), "target": torch.tensor([10.0, 20.0])}

    def swap(state):
        return {"params": state["target"], "target": state["params"]}

    def copy(state):
        return {"params": state["params"] + 1, "target": state["params"]}

    for f in (swap, copy):
        programs.donated(f, start)
        with rejects("call 1"):
            programs.donated(f, start, donate=naive)
    with rejects("call 1, the donated state: "):  # not donated at all
        programs.donated(copy, start, donate=lambda f: f)
    with rejects("expected the old storage, got other storage"):  # the state is overwritten, but a copy is returned
        programs.donated(copy, start, donate=lambda f: lambda state: tree.clone(edge.donate(f)(state)))


def test_laws_need_neither_hypothesis_nor_pytest():
    code = (
        "import sys; sys.modules['hypothesis'] = sys.modules['pytest'] = None\n"
        "from fdqn.testing import examples, programs\n"
        "programs.chunks(examples.program(), examples.seeds(2)[1])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
