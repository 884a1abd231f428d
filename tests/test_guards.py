"""Guards against non-finite numbers: a failed seed is frozen and reported, and other seeds are unchanged."""

import json
import shlex
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from torch.func import vmap

from fdqn import cli, training, tree
from fdqn.experiment import assemble, history, run_folder
from fdqn.experiment.settings import Settings
from fdqn.ops import losses
from fdqn.testing import asserts, examples, programs
from fdqn.types import Diagnostics

BAD, SEEDS = 1, 3


def put(leaf, value):
    """Set a leaf to the value for seed BAD."""
    return leaf.clone().index_fill_(0, torch.tensor([BAD]), value)


CORRUPTIONS = {
    "observation": lambda s, x: s._replace(buffer=s.buffer._replace(rows=s.buffer.rows._replace(
        obs=put(s.buffer.rows.obs, x)))),
    "next observation": lambda s, x: s._replace(buffer=s.buffer._replace(rows=s.buffer.rows._replace(
        next_obs=put(s.buffer.rows.next_obs, x)))),
    "reward": lambda s, x: s._replace(buffer=s.buffer._replace(rows=s.buffer.rows._replace(
        reward=put(s.buffer.rows.reward, x)))),
    "discount": lambda s, x: s._replace(hyper=s.hyper._replace(gamma=put(s.hyper.gamma, x))),
    "parameter": lambda s, x: s._replace(learner=s.learner._replace(
        params=s.learner.params | {"2.bias": put(s.learner.params["2.bias"], x)})),
    "target parameter": lambda s, x: s._replace(learner=s.learner._replace(
        target_params=s.learner.target_params | {"2.bias": put(s.learner.target_params["2.bias"], x)})),
    "learning rate": lambda s, x: s._replace(hyper=s.hyper._replace(learning_rate=put(s.hyper.learning_rate, x))),
}  # fmt: skip
CAUSE = {"learning rate": "parameter"}


def advanced(state, cycles, program=None):
    program = program or examples.program()
    return programs.advance(program, tree.clone(state), cycles)


@pytest.fixture(scope="module")
def trained():
    """Return a state after some training."""
    program, (hyper, keys) = examples.program(), examples.seeds(SEEDS)
    return programs.advance(program, training.init(program, hyper, keys), 20)


@pytest.fixture(scope="module")
def uncorrupted(trained):
    """Return the state of the other seeds ten training iterations later."""
    return others(advanced(trained, 10))


def others(state):
    return tree.index(state, torch.tensor([i for i in range(SEEDS) if i != BAD]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_failed_seed_is_frozen_and_others_are_unchanged(trained, uncorrupted, name, value):
    corrupted = CORRUPTIONS[name](trained, value)
    asserts.assert_trees_equal(others(trained), others(corrupted))
    after = advanced(corrupted, 10)
    asserts.assert_trees_equal(uncorrupted, others(after))
    # The learner is unchanged, except for the target network, which is still updated.
    asserts.assert_trees_equal(
        tree.index(corrupted.learner, BAD)._replace(target_params={}),
        tree.index(after.learner, BAD)._replace(target_params={}),
    )
    assert after.metrics.failed.tolist() == [-1, 21, -1]
    assert [training.CAUSES[i] for i in after.metrics.cause] == ["nothing", CAUSE.get(name, "loss"), "nothing"]
    asserts.assert_trees_equal(tree.index(corrupted.metrics.totals, BAD), tree.index(after.metrics.totals, BAD))


def corrupted_program(corrupt):
    """Make a program with a wrong loss for the seed with the largest learning rate."""
    agent = examples.program().algorithm.agent

    def loss(params, target_params, batch, hyper, noise):
        output = agent.loss(params, target_params, batch, hyper, noise)
        return output._replace(loss=corrupt(output.loss, hyper.learning_rate > 1.9e-3))

    return examples.program(agent=agent._replace(loss=loss))


class ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, factor):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0], None


@pytest.mark.parametrize(
    ("corrupt", "cause"),
    [
        (lambda value, here: value + torch.where(here, torch.inf, 0.0), "loss"),
        (lambda value, here: ScaledGradient.apply(value, torch.where(here, torch.inf, 1.0)), "gradient"),
        (lambda value, here: ScaledGradient.apply(value, torch.where(here, torch.nan, 1.0)), "gradient"),
    ],
)
def test_non_finite_losses_and_gradients_fail_a_seed(corrupt, cause):
    program, (hyper, keys) = corrupted_program(corrupt), examples.seeds(SEEDS)
    start = training.init(program, hyper, keys)
    after = programs.advance(program, tree.clone(start), 12)
    healthy = programs.advance(examples.program(), tree.clone(start), 12)
    asserts.assert_trees_equal(tree.index(healthy, slice(2)), tree.index(after, slice(2)))
    assert after.metrics.failed.tolist() == [-1, -1, 5]
    assert training.CAUSES[after.metrics.cause[2]] == cause
    asserts.assert_trees_equal(tree.index(start.learner.params, 2), tree.index(after.learner.params, 2))


def test_missing_guard_is_detected(trained):
    """Check that parameters become NaN without the guard, the planted bug."""
    program = examples.program()
    corrupted = CORRUPTIONS["reward"](trained, torch.nan)
    noise = tree.index(training.noise(program, corrupted.key, 20, 1), 0)

    def unguarded(state, noise):
        state = training.collect(program, state, noise)
        return program.algorithm.update(state.learner, state.buffer, noise.sample[0], (), state.hyper)[0]

    params = vmap(unguarded)(corrupted, noise).params
    with pytest.raises(AssertionError, match="expected a finite number"):
        asserts.assert_finite(params)
    asserts.assert_finite(vmap(partial(training.cycle, program))(corrupted, noise).learner.params)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("leaf", ["0.weight", "0.bias", "2.weight", "2.bias"])
def test_every_parameter_is_checked(trained, leaf, value):
    """Check every leaf, because the loss does not depend on minus infinity before a ReLU."""
    learner = trained.learner
    corrupted = trained._replace(
        learner=learner._replace(params=learner.params | {leaf: put(learner.params[leaf], value)})
    )
    after = advanced(corrupted, 3)
    assert after.metrics.failed.tolist() == [-1, 21, -1]
    asserts.assert_trees_equal(others(advanced(trained, 3)), others(after))


@pytest.mark.parametrize("leaf", ["0.weight", "0.bias", "2.weight", "2.bias"])
def test_non_finite_parameters_are_not_stored(trained, leaf):
    """Use an infinite step size for one leaf."""

    def optimizer(hyper):
        whole = assemble.clipped(assemble.adam)(hyper)

        def update(grads, state, params):
            updates, state = whole.update(grads, state, params)
            bad = torch.where(hyper.learning_rate > 1, torch.inf, 1.0)
            return updates | {leaf: updates[leaf] * bad}, state

        return whole._replace(update=update)

    hyper = trained.hyper._replace(learning_rate=put(trained.hyper.learning_rate, 1.5))
    after = advanced(trained._replace(hyper=hyper), 3, examples.program(optimizer=optimizer))
    assert after.metrics.failed.tolist() == [-1, 21, -1]
    assert training.CAUSES[after.metrics.cause[BAD]] == "parameter"
    asserts.assert_trees_equal(tree.index(trained.learner.params, BAD), tree.index(after.learner.params, BAD))


def test_reports_contain_the_failed_seed_the_iteration_and_the_cause(trained):
    program = examples.program()
    corrupted = CORRUPTIONS["reward"](trained, torch.nan)
    *_, last = training.run(program, corrupted, 90, training.vmapped(program), 30)
    assert last.failed.tolist() == [-1, 21, -1]
    assert last.cause.tolist() == [0, 1, 0]
    assert np.isnan(last.loss).tolist() == [False, True, False]


# The command


@pytest.mark.usefixtures("light_runs")
def test_failed_seeds_are_printed_and_excluded(tmp_path, capsys, monkeypatch):
    """Train with an infinite loss for TD errors above 1.5, which occur for some of the seeds."""
    monkeypatch.setattr(losses, "squared", lambda delta: delta * delta * torch.where(delta > 1.5, torch.inf, 1.0))
    words = shlex.split("train --steps 600 --seeds 3 --n-step 1 --no-compile --learning-starts 100 --report-every 200")
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    err = capsys.readouterr().err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    failed = summary["failed_seeds"]
    assert 0 < len(failed) < 3
    for failure, seed in zip(summary["failures"], failed, strict=True):
        assert (failure["seed"], failure["cause"]) == (seed, "loss")
        assert 100 <= failure["step"] <= 600
        assert err.count(f"seed {seed} failed at step {failure['step']}: its loss is not finite") == 1
        assert summary["final_return"]["per_seed"][seed] is None
    assert summary["final_return"]["iqm"] is not None


@pytest.mark.usefixtures("light_runs")
def test_on_nan_stop_stops_the_run(tmp_path, capsys, monkeypatch):
    healthy = losses.squared
    words = ["train", "--seeds", "2", "--no-compile", "--learning-starts", "100", "--report-every", "100"]
    words += [
        "--evaluate-episodes",
        "1",
        "--checkpoint-every",
        "100",
        "--on-nan",
        "stop",
        "--out",
        str(tmp_path / "run"),
    ]
    calls = 0

    def later(delta):
        nonlocal calls
        calls += 1
        return healthy(delta) * (torch.inf if calls > 25 else 1.0)

    monkeypatch.setattr(losses, "squared", later)
    assert cli.main([*words, "--steps", "1000"]) == 1
    err = capsys.readouterr().err
    assert "fdqn: stopped: seed 0 failed at step" in err
    assert "fdqn resume" in err
    steps = [int(path.name) for path in run_folder.checkpoint.newest(tmp_path / "run" / "checkpoints")]
    assert steps
    assert max(steps) < 1000
    # The same run fails again, unless failed seeds are frozen or the loss is corrected.
    assert cli.main(["resume", str(tmp_path / "run")]) == 1
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert cli.main(["resume", str(tmp_path / "copy"), "--on-nan", "freeze"]) == 0
    assert json.loads((tmp_path / "copy" / "summary.json").read_text())["failed_seeds"] == [0, 1]
    monkeypatch.setattr(losses, "squared", healthy)
    assert cli.main(["resume", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["failed_seeds"] == []


def test_failed_seeds_have_step_and_cause(trained):
    program = examples.program()
    (report,) = training.run(program, CORRUPTIONS["reward"](trained, torch.nan), 60, training.vmapped(program), 30)
    assert history.failed_seeds(Settings(seeds=3, seed=7, num_envs=3), report) == {}
    corrupted = CORRUPTIONS["reward"](trained, torch.nan)
    *_, report = training.run(program, corrupted, 90, training.vmapped(program), 30)
    assert history.failed_seeds(Settings(seeds=3, seed=7, num_envs=3), report) == {8: (63, "loss")}
    assert training.snapshot(program, report.state).failed.tolist() == [-1, 21, -1]
    zero = Diagnostics(*torch.zeros(3))
    counted = training.count_update(tree.index(report.state.metrics, BAD), zero, torch.tensor(True), torch.tensor(40))
    assert int(counted.failed) == 21
