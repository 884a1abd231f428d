"""Tests of the training loop: noise, collecting, schedules, reports, resuming, refusals and learning."""

import functools
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import vmap

from fdqn import compile as edge
from fdqn import envs, networks, random, replay, training, tree
from fdqn.envs.classic import cartpole
from fdqn.experiment import assemble
from fdqn.experiment.settings import Settings
from fdqn.testing import asserts, examples, laws, probes, programs
from fdqn.training import host, loop, metrics, streams
from fdqn.types import Network, Transition


def initialized(seeds=2, seed=0, **settings):
    program, (hyper, keys) = examples.program(**settings), examples.seeds(seeds, seed)
    return program, training.init(program, hyper, keys)


def changing_tensors(state):
    return state.learner.params, state.obs, state.buffer.rows.obs


# Laws of a program


@pytest.mark.parametrize("config", [{}, {"steps_per_cycle": 2, "updates_per_cycle": 2, "target_period": 0}], ids=str)
def test_seeds_are_independent(config):
    """Compare seed i of many with seed i alone, in float64 to 1e-10 after 50 training iterations."""
    program = examples.program(cartpole.make(time_limit=20, dtype=torch.float64), **config)
    programs.seeds(partial(programs.trained, program, cycles=50), *examples.seeds(3), distinct=changing_tensors)


def test_seeds_are_independent_in_float32():
    program = examples.program()
    one_update = partial(programs.trained, program, cycles=5, dtype=torch.float32)
    programs.seeds(one_update, *examples.seeds(3), distinct=changing_tensors, atol=1e-5, rtol=1e-5)


def test_noise_of_seeds_is_independent():
    program, (hyper, keys) = examples.program(), examples.seeds(4)

    def noise(hyper, keys):
        return tree.map(lambda x: x.transpose(0, 1), training.noise(program, keys, 5, 3))

    programs.seeds(noise, hyper, keys, atol=0.0, rtol=0.0)


@pytest.mark.parametrize("config", [{}, {"steps_per_cycle": 3, "updates_per_cycle": 2}], ids=str)
def test_noise_does_not_depend_on_chunks(config):
    program, (_, keys) = examples.program(**config), examples.seeds(2)
    programs.chunks(program, keys)
    programs.chunks(program, keys, first=0, cycles=3)
    programs.chunks(program, keys, first=2**31 - 2, cycles=4)


def test_noise_has_its_shapes_ranges_and_no_repetition():
    program, (_, keys) = examples.program(steps_per_cycle=2, updates_per_cycle=3, target_period=3), examples.seeds(2)
    noise = laws.pure(training.noise, program, keys, 3, 5)
    shapes = [tuple(x.shape) for x in noise[:3]]
    assert noise[3:] == ((), ()), "this agent takes no noise"
    assert shapes == [(5, 2, 2, 3, 2), (5, 2, 2, 3, 4), (5, 2, 3, 8)]
    assert noise.sample.dtype == torch.int64
    assert ((noise.act >= 0) & (noise.act < 1) & True).all()
    assert ((noise.sample >= 0) & (noise.sample < 2**32)).all()
    numbers = torch.cat([(noise.act * 2**23).flatten(), (noise.env * 2**23).flatten(), (noise.sample >> 9).flatten()])
    assert len(set(numbers.tolist())) > 0.999 * len(numbers)  # no number is used for two purposes


@pytest.mark.parametrize("name", ["cartpole", "catch"])
@pytest.mark.parametrize("config", [{}, {"steps_per_cycle": 3, "num_envs": 2}], ids=str)
def test_metrics_equal_a_loop_over_the_log(name, config):
    settings = {"time_limit": 20} if name == "cartpole" else {}
    programs.metrics(examples.program(envs.make(name, **settings), **config), *examples.seeds(2))


def test_metrics_keep_the_last_hundred_episodes():
    """End more episodes than the ring of returns holds."""
    program = examples.program(probes.reward_of_obs().env, num_envs=4)
    programs.metrics(program, *examples.seeds(2), cycles=40)


def test_metrics_of_more_environments_than_the_ring_holds():
    """End all episodes in one step, so that slots of the ring would be written twice at once."""
    program = examples.program(probes.reward_of_obs().env, num_envs=130, capacity=300)
    programs.metrics(program, *examples.seeds(2), cycles=5)


def test_a_state_continues_exactly():
    program, state = initialized()
    programs.resumed(partial(programs.advance, program), state, 9, 8)
    programs.resumed(partial(programs.advance, program), state, 2, 6)  # in the warm-up


def test_an_iteration_is_collect_then_learn():
    program, state = initialized()
    state = programs.advance(program, state, 30)
    noise = tree.index(training.noise(program, state.key, 30, 1), 0)
    asserts.assert_trees_equal(
        vmap(partial(training.cycle, program))(state, noise),
        vmap(partial(training.learn, program))(vmap(partial(training.collect, program))(state, noise), noise),
    )


def test_noise_is_drawn_from_the_keys_of_its_iterations():
    program, state = initialized()
    keys = training.cycle_keys(state.key, 5, 3)
    asserts.assert_trees_equal(training.noise(program, state.key, 5, 3), training.draw(program, keys))
    numbers = training.cycle_numbers(state.key, 5, 3)
    assert numbers.tolist() == [5, 6, 7]
    asserts.assert_trees_equal(
        training.noise(program, state.key, 5, 3), training.draw_numbered(program, state.key, numbers)
    )


@pytest.mark.parametrize("env", envs.names())
def test_draws_on_a_device_cover_graphs_of_many_iterations(env):
    """Expect at least 16 iterations and whole target periods at 1,024 seeds, but few iterations on a CPU."""
    for settings in (Settings(env=env), Settings(env=env, target_period=30), Settings(env=env, tau=0.5)):
        program = assemble.program(settings)
        keys = torch.empty((1024, 2), dtype=torch.int64, device="meta")
        cycles = loop._cycles_per_draw(program, keys)
        assert 16 <= cycles <= loop.CYCLES_PER_DRAW
        assert cycles % (program.config.target_period or 1) == 0
        assert cycles * 1024 * training.bits_per_cycle(program) * 8 <= 2**27
        assert loop._cycles_per_draw(program, torch.zeros(1024, 2)) <= 3


def test_a_run_on_a_device_has_many_iterations_per_call(monkeypatch):
    """Check the lengths of calls that CUDA would capture at 1,024 seeds: few different ones, of at least 16."""
    plain = loop._cycles_per_draw
    monkeypatch.setattr(loop, "_cycles_per_draw", lambda program, keys: plain(program, keys.to("meta")))
    settings = Settings(seeds=1024, capacity=128, hidden=(), steps=4_000)
    program, lengths = assemble.program(settings), []
    state = training.init(program, assemble.hyper(settings), assemble.keys(settings))

    def counted(state, noise):
        lengths.append(len(noise.act))
        return state

    def noise(keys, first, cycles):
        return training.Noise(*(torch.zeros(cycles, 1) for _ in training.Noise._fields))

    functions = training.Functions(noise, counted, counted, lambda state: state)
    for _ in training.run(program, state, settings.steps, functions, report_every=settings.steps):
        pass
    assert sum(lengths) == 400
    assert lengths[-14:] == [20] * 14


def test_step_functions_are_pure():
    program, state = initialized()
    state = programs.advance(program, state, 5)
    noise = training.noise(program, state.key, 5, 1)
    for f in (training.vmapped(program).collect, training.vmapped(program).cycle):
        laws.pure(f, state, noise)
    laws.pure(training.vmapped(program).sync, state)


def test_a_call_of_n_iterations_equals_n_calls():
    program, state = initialized()
    state = programs.advance(program, state, 5)
    noise = training.noise(program, state.key, 5, 4)

    def four(state, noises):
        for i in range(4):
            state = training.cycle(program, state, tree.index(noises, i))
        return state

    together = vmap(four, in_dims=(0, 1))(state, noise)
    for i in range(4):
        state = training.vmapped(program).cycle(state, tree.index(noise, slice(i, i + 1)))
    asserts.assert_trees_equal(state, together)


# Initial state


def test_initial_state():
    program, state = initialized()
    assert state.buffer.rows.obs.shape == (2, 40, 4)
    assert state.cycle.tolist() == [0, 0]
    assert state.learner.updates.tolist() == [0, 0]
    assert state.metrics.returns.isnan().all()
    assert state.metrics.returns.shape == (2, metrics.EPISODES_KEPT + 1)
    asserts.assert_trees_equal(state.learner.params, state.learner.target_params)
    leaves = [x for x in tree.leaves(state) if x.numel()]
    assert len({x.untyped_storage().data_ptr() for x in leaves}) == len(leaves)
    laws.pure(training.init, program, *examples.seeds(2))


def test_streams_use_separate_keys():
    program, state = initialized()
    _, keys = examples.seeds(2)
    used = [random.fold_in(keys, purpose) for purpose in range(4)]
    assert len({tuple(k.flatten().tolist()) for k in used}) == 4
    asserts.assert_trees_equal(program.network.init(random.fold_in(keys, streams.NETWORK)), state.learner.params)


# Collecting


def test_collect_equals_a_plain_loop():
    """Step the environments with actions that a plain epsilon-greedy implementation chooses."""
    program, (hyper, keys) = examples.program(num_envs=2, steps_per_cycle=2), examples.seeds(1)
    state = training.init(program, hyper, keys)
    one = tree.index(state, 0)
    env_state, obs, legal = one.env_state, one.obs, one.legal
    expected, taken = [], 0
    for cycle in range(12):
        noise = tree.index(training.noise(program, keys, cycle, 1), (0, 0))
        for i in range(2):
            epsilon = 1 + (float(one.hyper.epsilon_end) - 1) * min(1.0, taken / float(one.hyper.epsilon_steps))
            q = program.network.apply(one.learner.params, obs)
            explored = torch.tensor([math.floor(float(u) * 2) for u in noise.act[i][:, 1]])
            action = torch.where(noise.act[i][:, 0] < epsilon, explored, q.argmax(-1))
            env_state, step = program.env.step(env_state, action, noise.env[i])
            rows = zip(obs, action, step.reward, step.terminated, step.next_obs, step.next_legal, strict=True)
            expected += [Transition(o, a, r, 1.0 - t.float(), n, m) for o, a, r, t, n, m in rows]
            obs, legal, taken = step.obs, step.legal, taken + 2
        state = training.vmapped(program).collect(state, training.noise(program, keys, cycle, 1))
    expected = expected[-40:]
    start = 48 % 40
    got = tree.map(lambda x: x[0].roll(-start, 0), state.buffer.rows)
    for i, row in enumerate(expected):
        asserts.assert_trees_close(row, tree.index(got, i), 1e-6, 0.0, f"row {i}: ")
    asserts.assert_trees_equal((obs, legal), (state.obs[0], state.legal[0]))
    assert int(state.learner.updates[0]) == 0


def test_truncated_transitions_keep_their_discount():
    program, state = initialized(env=probes.endless_reward().env)
    state = programs.advance(program, state, 8)
    assert (state.metrics.episodes > 0).all()
    assert (state.buffer.rows.discount[:, :24] == 1).all()


def test_terminal_on_truncation():
    """Truncate episodes every five steps; three environments write one row each per step."""
    env = probes.endless_reward().env
    program, state = initialized(env=env)
    truncating = examples.program(env, terminal_on_truncation=True)
    plain, ended = (programs.advance(each, tree.clone(state), 12).buffer.rows for each in (program, truncating))
    step = torch.arange(36) // 3
    assert torch.equal(ended.discount[:, :36] == 0, (step % 5 == 4).expand(2, 36))
    assert plain.discount[:, :36].unique().tolist() == [1.0]


def test_illegal_actions_are_never_taken():
    probe = probes.masked_reward()
    program, state = initialized(env=probe.env)
    state = programs.advance(program, state, 13)
    rows = tree.index(state.buffer.rows, (slice(None), slice(0, 39)))
    assert not ((rows.obs[..., 0] == 1) & (rows.action == 2)).any()
    assert ((rows.obs[..., 0] == 0) & (rows.action == 2)).any()


def with_warmup(learning_starts=21, steps_per_cycle=2, **hyper):
    """Return a program with four steps per iteration that learns from its seventh iteration on, and its state."""
    program = examples.program(
        num_envs=2, steps_per_cycle=steps_per_cycle, learning_starts=learning_starts, random_warmup=True
    )
    _, keys = examples.seeds(2)
    return program, training.init(program, training.hyper(2, epsilon_steps=40, **hyper), keys)


def random_actions(program, keys, cycle):
    """Return the random actions [S, k, E] of an iteration."""
    u = training.noise(program, keys, cycle, 1).act[0, ..., 1]
    return (u * program.env.spec.actions).long()


def test_actions_are_uniform_until_learning_starts_and_then_greedy():
    """Set epsilon to 0: the untrained network must not act before learning starts."""
    program, state = with_warmup(epsilon_start=0.0, epsilon_end=0.0)
    functions, uniform = training.vmapped(program), []
    for cycle in range(10):
        noise = training.noise(program, state.key, cycle, 1)
        assert (training.snapshot(program, state).epsilon == (cycle < 6)).all()
        step = functions.collect if cycle < 6 else functions.cycle
        before, state = state, step(tree.clone(state), noise)
        taken = state.buffer.rows.action[:, 4 * cycle : 4 * cycle + 4].reshape(2, 2, 2)
        uniform.append(torch.equal(taken, random_actions(program, state.key, cycle)))
        assert (state.learner.updates > before.learner.updates).all() == (cycle >= 6)
    assert uniform == [True] * 6 + [False] * 4


def test_epsilon_anneals_from_the_start_of_learning():
    program, state = with_warmup(epsilon_start=0.8, epsilon_end=0.2)
    reported, starts = [], [0, 20, 24, 44, 64, 84]
    for step in starts:
        now = state._replace(cycle=torch.full_like(state.cycle, step // 4))
        now = now._replace(learner=now.learner._replace(updates=torch.full_like(state.cycle, max(0, step // 4 - 6))))
        reported.append(training.snapshot(program, now).epsilon.tolist())
    assert training.random_steps(program, state).tolist() == [24, 24]
    expected = [1.0, 1.0, 0.8, 0.5, 0.2, 0.2]
    assert reported == [[pytest.approx(x)] * 2 for x in expected]


def test_only_a_replay_emptied_before_the_first_update_prolongs_the_warmup():
    program, state = with_warmup(epsilon_start=0.8, epsilon_end=0.2)
    at = state._replace(cycle=torch.full_like(state.cycle, 7), emptied=torch.full_like(state.cycle, 3))
    assert training.snapshot(program, at).epsilon.tolist() == [1.0, 1.0], "12 steps later than with the replay kept"
    later = at._replace(cycle=at.cycle + 2)
    assert training.snapshot(program, later).epsilon.tolist() == [pytest.approx(0.8)] * 2
    learned = at._replace(learner=at.learner._replace(updates=at.learner.updates + 5))
    assert training.snapshot(program, learned).epsilon.tolist() == [pytest.approx(0.74)] * 2, (
        "the value of its step, as in an uninterrupted run"
    )


def test_without_a_warmup_epsilon_is_unchanged():
    hyper, steps = training.hyper(1, epsilon_steps=70), torch.arange(100)
    asserts.assert_trees_equal(training.epsilon(hyper, steps), training.epsilon(hyper, steps, 0))
    asserts.assert_trees_equal(training.epsilon(hyper, steps), training.epsilon(hyper, steps, torch.tensor(0)))


def test_epsilon_is_linear_in_environment_steps():
    hyper = tree.index(training.hyper(1, epsilon_start=0.9, epsilon_end=0.1, epsilon_steps=200), 0)
    laws.schedule(partial(training.epsilon, hyper), 0.9, 0.1, 200)


# The host loop


class LoggedFunctions:
    """Log the calls of the step functions, one entry per training iteration."""

    def __init__(self, program):
        self.log = []
        plain = training.vmapped(program)
        self.functions = training.Functions(
            *(partial(self.call, n, getattr(plain, n)) for n in training.Functions._fields)
        )

    def call(self, name, f, *args):
        if name != "noise":
            self.log += [name] if name == "sync" else [name] * len(args[1].sample)
        return f(*args)


def run_counted(steps=300, every=60, seeds=2, **settings):
    program, state = initialized(seeds, **settings)
    logged = LoggedFunctions(program)
    reports = list(training.run(program, state, steps, logged.functions, every))
    return program, logged.log, reports


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (300, 60, [60, 120, 180, 240, 300]),
        (300, 100, [102, 201, 300]),  # three environments: rounded up to whole iterations
        (100, 1000, [102]),
        (30, 3, list(range(3, 31, 3))),
        (30, 1, list(range(3, 31, 3))),
        (1, 1, [3]),
    ],
)
def test_steps_of_reports(steps, every, expected):
    _, log, reports = run_counted(steps, every)
    assert [r.step for r in reports] == expected
    assert len([x for x in log if x != "sync"]) == expected[-1] // 3


@pytest.mark.parametrize(("learning_starts", "warm"), [(0, 0), (1, 1), (12, 4), (13, 5), (10_000, 10)])
def test_learning_starts_is_exact(learning_starts, warm):
    _, log, reports = run_counted(30, 30, learning_starts=learning_starts, target_period=0)
    assert log == ["collect"] * warm + ["cycle"] * (10 - warm)
    assert reports[-1].updates.tolist() == [10 - warm] * 2
    assert reports[-1].state.learner.updates.tolist() == [10 - warm] * 2


@pytest.mark.parametrize(("updates", "period"), [(1, 1), (1, 4), (2, 4), (2, 2), (3, 6)])
def test_hard_target_copies_every_period(updates, period):
    _, log, reports = run_counted(90, 90, updates_per_cycle=updates, target_period=period)
    learned, copies = 0, []
    for name in log:
        learned += updates * (name == "cycle")
        if name == "sync":
            copies.append(learned)
    assert copies == list(range(period, learned + 1, period))
    assert learned == 26 * updates
    assert reports[-1].updates.tolist() == [learned] * 2


def test_the_target_does_not_change_between_hard_copies():
    program, state = initialized(target_period=4, learning_starts=12)
    old = tree.clone(state.learner.params)
    for cycles, updates in ((4 + 3, 3), (1, 4), (3, 7), (1, 8)):
        state = programs.advance(program, state, cycles)
        assert state.learner.updates.tolist() == [updates] * 2
        if updates % 4 == 0:
            asserts.assert_trees_equal(state.learner.params, state.learner.target_params)
            old = tree.clone(state.learner.params)
        else:
            asserts.assert_trees_equal(old, state.learner.target_params)
            assert not tree.equal(old, state.learner.params)


def test_soft_target_updates_at_every_update():
    program, state = initialized(target_period=0, updates_per_cycle=1)
    state = programs.advance(program, state, 4)
    for _ in range(3):
        before = tree.clone(state.learner.target_params)
        state = programs.advance(program, state, 1)
        tau = state.hyper.tau
        for name, x in state.learner.target_params.items():
            weight = tau.reshape(-1, *[1] * (x.ndim - 1))
            expected = before[name] + weight * (state.learner.params[name] - before[name])
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "value"),
    [("BITS_PER_DRAW", w) for w in (1, 400, 10**9)]
    + [(n, v) for n in ("CYCLES_PER_DRAW", "CYCLES_PER_CALL") for v in (1, 3, 7)],
)
@pytest.mark.parametrize("done", [0, 5])
def test_chunks_of_noise_do_not_change_a_run(monkeypatch, name, value, done):
    program, state, expected = state_after(done)
    monkeypatch.setattr(loop, name, value)
    asserts.assert_trees_equal(expected, programs.advance(program, tree.clone(state), 30))


@functools.cache
def state_after(done):
    """Return a program, its state after `done` iterations, and that of 30 more."""
    program, state = initialized()
    state = programs.advance(program, state, done) if done else state
    return program, state, programs.advance(program, tree.clone(state), 30)


def test_reports_do_not_change_a_run():
    *_, often = run_counted(150, 3)[2]
    *_, once = run_counted(150, 150)[2]
    asserts.assert_trees_equal(once.state, often.state)


def test_evaluations_are_scheduled():
    program, state = initialized()
    returns = np.arange(4.0).reshape(2, 2)
    reports = list(training.run(program, state, 90, training.vmapped(program), 30, lambda state: returns, 45))
    assert [(r.step, r.evaluation is not None) for r in reports] == [(30, False), (45, True), (60, False), (90, True)]
    assert reports[1].evaluation is returns
    program, state = initialized()
    reports = list(training.run(program, state, 60, training.vmapped(program), 30, lambda state: returns, 0))
    assert [r.evaluation for r in reports] == [None, None]


def test_reports_equal_means_of_the_logged_values():
    """Recompute the means between two reports from the sums in their states and from a log of losses."""
    program, state = initialized()
    losses_seen, plain = [], training.vmapped(program)

    def cycle(state, noise):
        before = state.metrics.totals.loss
        after = vmap(partial(training.cycle, program))(state, noise)
        losses_seen.append(after.metrics.totals.loss - before)
        return after

    reports = list(training.run(program, state, 120, plain._replace(cycle=training.scan(cycle)), 30))
    assert np.isfinite(reports[0].loss).all()
    done = 0
    for report, before in zip(reports, [None, *reports], strict=False):
        assert report.updates[0] == report.updates[1]
        part = torch.stack(losses_seen[done : report.updates[0]]).mean(0)
        done = report.updates[0]
        np.testing.assert_allclose(report.loss, part.numpy(), rtol=1e-9)
        then = (0, 0.0) if before is None else (before.state.metrics.episodes, before.state.metrics.returned)
        now = report.state.metrics.episodes, report.state.metrics.returned
        expected = (now[1] - then[1]) / (now[0] - then[0])
        np.testing.assert_allclose(report.returns, expected.numpy(), rtol=1e-9)
        assert report.episodes.tolist() == now[0].tolist()
        lengths = report.state.metrics.lengths
        expected = (lengths - (0 if before is None else before.state.metrics.lengths)).double() / (now[0] - then[0])
        np.testing.assert_allclose(report.lengths, expected.numpy(), rtol=1e-9)
        np.testing.assert_allclose(
            report.epsilon, training.epsilon(report.state.hyper, torch.tensor(report.step)).numpy()
        )
        kept = report.last_returns[~np.isnan(report.last_returns)]
        assert len(kept) == sum(report.episodes)
        assert report.last_returns.shape == (2, metrics.EPISODES_KEPT)


def test_means_without_data_are_nan():
    _, _, reports = run_counted(6, 3, learning_starts=1000)
    assert np.isnan(reports[0].loss).all()
    assert np.isnan(reports[0].returns).all()
    assert reports[0].updates.tolist() == [0, 0]
    assert reports[-1].first_update is None


def test_times_are_monotonic():
    _, _, reports = run_counted(60, 15)
    for name in ("compile_seconds", "learning_seconds", "learning_updates"):
        values = [getattr(r, name) for r in reports]
        assert values == sorted(values)
        assert values[-1] > 0


def test_a_finished_run_only_reports():
    program, state = initialized()
    state = programs.advance(program, state, 10)
    (report,) = training.run(program, state, 30, training.vmapped(program), 10)
    assert (report.step, *report.updates) == (30, 6, 6)
    asserts.assert_trees_equal(state, report.state)


def numbers(report):
    """Return the fields of a report without times and tensors."""
    left_out = ("state", "planned", "since", "compile_seconds", "learning_seconds", "learning_updates", "first_update")
    return {name: x for name, x in report._asdict().items() if name not in left_out}


def assert_same_reports(expected, got):
    for a, b in zip(expected, got, strict=True):
        for name, x in numbers(a).items():
            np.testing.assert_array_equal(numbers(b)[name], x, err_msg=f"{name} at step {a.step}", strict=x is not None)


@functools.cache
def uninterrupted():
    """Return the reports of 24 iterations."""
    program, state = initialized()
    return list(training.run(program, state, 3 * 24, training.vmapped(program), 12))


# Warm-up ends with iteration 4, replay wraps in iteration 14, the target is copied at 8, 12, 16.
@pytest.mark.parametrize("stopped", [1, 3, 4, 5, 7, 8, 9, 12, 13, 14, 15, 20, 23, 24])
def test_a_run_stopped_anywhere_continues_exactly(stopped):
    """Compare all leaves and reports with those of an uninterrupted run."""
    program, state = initialized()
    functions, ends, expected = training.vmapped(program), [], uninterrupted()

    class Stop:
        """Return True at one call; the loop calls it after each iteration."""

        calls = 0

        def __call__(self):
            Stop.calls += 1
            return Stop.calls == stopped

    one_at_a_time = pytest.MonkeyPatch()
    one_at_a_time.setattr(loop, "CYCLES_PER_CALL", 1)
    before = list(training.run(program, state, 3 * 24, functions, 12, stop=Stop()))
    one_at_a_time.undo()
    if not before[-1].planned:
        ends = [before.pop()]
    last = (ends or before)[-1]
    assert last.step == 3 * stopped
    after = list(training.run(program, last.state, 3 * 24, functions, 12, since=last.since))
    asserts.assert_trees_equal(expected[-1].state, after[-1].state)
    assert_same_reports(expected, before + (after if stopped < 24 else []))


def test_reports_differ_if_the_sums_at_the_last_report_are_lost():
    program, state = initialized()
    functions = training.vmapped(program)
    expected = list(training.run(program, tree.clone(state), 72, functions, 36))
    stopped = list(training.run(program, state, 54, functions, 36))[-1]
    after = list(training.run(program, stopped.state, 72, functions, 36))
    with pytest.raises(AssertionError, match="at step 72"):
        assert_same_reports(expected[1:], after)


# Refused arguments


@pytest.mark.parametrize(("steps", "every", "message"), [(0, 1, "steps: expected at least 1"), (9, 0, "report_every")])
def test_invalid_steps_and_report_every_are_refused(steps, every, message):
    program, state = initialized()
    with pytest.raises(ValueError, match=message):
        list(training.run(program, state, steps, training.vmapped(program), every))


def test_a_network_with_a_wrong_number_of_actions_is_refused():
    program = examples.program(network=networks.mlp(4, (8,), 3))
    with pytest.raises(ValueError, match=r"network.apply: expected shape \[S E 2\], got \[2, 3, 3\]"):
        training.init(program, *examples.seeds(2))


def test_a_network_with_a_wrong_observation_shape_is_refused():
    program = examples.program(network=networks.mlp(5, (8,), 2))
    with pytest.raises(ValueError, match=r"obs: expected shape \[... 5\]"):
        training.init(program, *examples.seeds(2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"obs_shape": (5,)}, ValueError, r"env.reset.obs: expected shape \[S E 5\]"),
        (
            {"obs_dtype": torch.uint8},
            TypeError,
            r"env.reset.obs: expected spec.obs_dtype = torch.uint8, got torch.float32",
        ),
        ({"actions": 3}, ValueError, r"env.reset.legal: expected shape \[S E 3\]"),
    ],
)
def test_an_environment_that_contradicts_its_spec_is_refused(change, error, message):
    program = examples.program()
    env = program.env._replace(spec=program.env.spec._replace(**change))
    with pytest.raises(error, match=message):
        training.init(program._replace(env=env), *examples.seeds(2))


def test_numbers_of_hyper_parameters_and_keys_must_agree():
    hyper, keys = examples.seeds(3)
    with pytest.raises(ValueError, match=r"learning_rate: expected shape \[S\] with S = 2, got \[3\]"):
        training.init(examples.program(), hyper, keys[:2])


def changed_steps(change):
    env = cartpole.make(time_limit=20)

    def step(state, action, u):
        state, result = env.step(state, action, u)
        return state, change(result)

    return env._replace(step=step)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s._replace(reward=s.reward.unsqueeze(-1)), ValueError, "expected shape"),
        (lambda s: s._replace(reward=s.reward.double()), TypeError, "expected torch.float32, got torch.float64"),
        (lambda s: s._replace(obs=s.obs.double()), TypeError, "expected torch.float32, got torch.float64"),
        (lambda s: s._replace(next_obs=s.next_obs[..., :3]), ValueError, "expected shape"),
        (lambda s: s._replace(legal=s.legal.long()), TypeError, "expected torch.bool, got torch.int64"),
    ],
)
def test_invalid_steps_are_refused_before_the_first_call(change, error, message):
    program = examples.program(changed_steps(change))
    state = training.init(program, *examples.seeds(2))

    def never(*args):
        raise AssertionError("a step function was called")

    with pytest.raises(error, match=message):
        list(training.run(program, state, 30, training.Functions(never, never, never, never), 10))


# Learning


GAMMA, CYCLES = 0.6, 120


def learned(probe, double, **changes):
    """Return the action values [S, N, A] of a probe's states after a short run."""
    config = {"num_envs": 4, "batch_size": 32, "capacity": 400, "learning_starts": 80, "target_period": 10}
    program = examples.program(probe.env, (16,), double, **{**config, **changes})
    hyper = training.hyper(
        2, learning_rate=0.02, gamma=GAMMA, epsilon_start=1.0, epsilon_end=0.3, epsilon_steps=200, max_grad_norm=10.0
    )
    state = training.init(program, hyper, random.key([0, 1]))
    functions = training.vmapped(program)
    *_, last = training.run(program, state, 4 * CYCLES, functions, 4 * CYCLES)
    return vmap(program.network.apply, in_dims=(0, None))(last.state.learner.params, probe.obs)


def error(probe, q):
    expected = probe.q(GAMMA).expand_as(q)
    return float((q - expected)[probe.legal.expand_as(q)].abs().max())


@pytest.mark.parametrize("name", probes.ALL)
def test_learns_the_values_of_every_probe(name):
    probe = probes.ALL[name]()
    assert error(probe, learned(probe, double=True)) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("config", [{"target_period": 0}, {"steps_per_cycle": 2, "updates_per_cycle": 2}], ids=str)
@pytest.mark.parametrize("name", probes.ALL)
def test_learns_the_values_of_every_probe_with_other_settings(name, config):
    probe = probes.ALL[name]()
    assert error(probe, learned(probe, double=False, **config)) < 0.05


def test_probes_reject_truncation_as_termination(monkeypatch):
    """Plant a bug: discount `1 - done`."""
    correct = replay.transition

    def one_minus_done(obs, action, step, legal):
        return correct(obs, action, step, legal)._replace(discount=1.0 - (step.terminated | step.truncated).float())

    monkeypatch.setattr(replay, "transition", one_minus_done)
    probe = probes.endless_reward()
    assert error(probe, learned(probe, double=True)) > 0.3


def test_probes_reject_a_target_without_a_mask():
    """Plant a bug: take the maximum over all actions, legal or not."""
    probe = probes.masked_reward()

    agent = examples.program(probe.env, (16,), double=False).algorithm.agent

    def unmasked(params, target_params, batch, hyper, noise):
        everything = batch._replace(next_legal=torch.ones_like(batch.next_legal))
        return agent.loss(params, target_params, everything, hyper, noise)

    q = learned(probe, False, agent=agent._replace(loss=unmasked))
    assert error(probe, q) > 0.3


def test_probes_reject_a_network_that_ignores_observations():
    probe = probes.reward_of_obs()
    network = examples.program(probe.env, (16,)).network
    constant = Network(network.init, lambda params, obs: network.apply(params, obs * 0))
    assert error(probe, learned(probe, False, network=constant)) > 0.5


@pytest.mark.slow
def test_learns_cartpole():
    """Train eight seeds, compiled, for 20,000 steps: most balance ten times as long as random actions do."""
    env = cartpole.make()
    program = examples.program(
        env, (64, 64), num_envs=10, batch_size=64, capacity=10_000, learning_starts=1000, target_period=20
    )
    hyper = training.hyper(8, learning_rate=2e-3, epsilon_steps=6000, max_grad_norm=10.0)
    state = training.init(program, hyper, random.key(list(range(8))))
    *_, last = training.run(program, state, 20_000, edge.compiled(program), 2_000)
    assert np.median(np.nanmean(last.last_returns, axis=1)) > 100


def test_the_initial_state_shares_no_memory():
    program = examples.program()
    hyper, keys = examples.seeds(2)
    before = tree.clone((hyper, keys))
    state = training.init(program, hyper, keys)
    storages = [x.untyped_storage().data_ptr() for x in tree.leaves((state, hyper, keys))]
    assert len(set(storages)) == len(storages)
    for x in tree.leaves(state):
        x.zero_()
    asserts.assert_trees_equal(before, (hyper, keys))


def test_invalid_keys_and_hyper_parameters_are_refused():
    program = examples.program()
    hyper, keys = examples.seeds(2)
    with pytest.raises(TypeError, match="keys: expected an integer dtype"):
        training.init(program, hyper, keys.float())
    with pytest.raises(ValueError, match=r"^learning_rate: expected it on the device of keys, cpu, got meta"):
        training.init(program, hyper._replace(learning_rate=hyper.learning_rate.to("meta")), keys)


PICKLED = {
    "cartpole": {},
    "huber and soft copies": {"loss": "huber", "tau": 0.1, "double": True, "dueling": True},
    "catch": {"env": "catch", "optimizer": "rmsprop", "max_grad_norm": math.inf},
    "minatar": {"env": "minatar:breakout", "optimizer": "nature-rmsprop"},
    "gymnasium": {"env": "gym:CartPole-v1"},
}


@pytest.mark.parametrize("name", PICKLED)
def test_programs_can_be_pickled(name):
    """Compare one step of the unpickled program with one of the original."""
    changes = {"hidden": (8,)} if name != "minatar" else {}
    program = assemble.program(Settings(**{"seeds": 2, "batch_size": 8, **changes, **PICKLED[name]}))
    again = pickle.loads(pickle.dumps(program))
    hyper, keys = training.hyper(2), random.key([0, 1])
    after = []
    for each in (program, again):
        state, noise = training.init(each, hyper, keys), training.noise(each, keys, 0, 1)
        if envs.on_host(each.env):
            after.append(host.vmapped(each).choose(state, host.interaction(noise, 0)))
        else:
            after.append(training.vmapped(each).cycle(state, noise))
    asserts.assert_trees_equal(*after)


def test_a_program_with_a_module_can_be_pickled():
    network = networks.from_module(partial(nn.Linear, 4, 2))
    program = examples.program(network=network)
    assert pickle.loads(pickle.dumps(program)).network.init(random.key(0)).keys() == {"weight", "bias"}


def test_an_iteration_is_its_steps_and_then_its_updates():
    """Run the parts of `collect` and `learn` in order, with an epsilon that changes within the iteration."""
    config = {"steps_per_cycle": 3, "updates_per_cycle": 2, "target_period": 4, "learning_starts": 18}
    program, (hyper, keys) = examples.program(**config), examples.seeds(2)
    state = programs.advance(program, training.init(program, hyper, keys), 4)
    noise = tree.index(training.noise(program, keys, 4, 1), 0)
    expected = vmap(partial(training.cycle, program))(state, noise)
    steps = training.interactions(noise)
    for i in range(3):
        state = vmap(partial(training.interact, program))(state, tree.index(steps, i))
    state = state._replace(cycle=state.cycle + 1)
    for i in range(2):
        state = vmap(partial(training.update, program))(state, tree.index(training.updates(noise), i))
    asserts.assert_trees_equal(expected, state)
