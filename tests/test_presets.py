"""Check that presets have the published values, make valid programs, and are listed with the committed scores."""

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import fdqn
from fdqn import cli, random, training
from fdqn.experiment import assemble, presets, settings

ROOT = Path(fdqn.__file__).parents[1]
CASES = [(name, env) for name, preset in presets.PRESETS.items() for env in preset.envs]

# Published values under the names of the authors' files, copied from these files independently of `presets.py`.

CLEANRL = {
    "total_timesteps": 500_000, "gamma": 0.99, "learning_rate": 2.5e-4, "start_e": 1, "end_e": 0.05,
    "exploration_fraction": 0.5, "layers": (120, 84),
}  # fmt: skip
CLEANRL_REPLAY = {
    **CLEANRL, "train_frequency": 10, "target_network_frequency": 500, "buffer_size": 10_000, "batch_size": 128,
    "learning_starts": 10_000,
}  # fmt: skip
ZOO = {
    "cartpole": (5e4, 2.3e-3, 64, 100_000, 1_000, 0.99, 10, 256, 128, 0.16, 0.04),
    "mountain_car": (1.2e5, 4e-3, 128, 10_000, 1_000, 0.98, 600, 16, 8, 0.2, 0.07),
    "acrobot": (1e5, 6.3e-4, 128, 50_000, 0, 0.99, 250, 4, 4, 0.12, 0.1),
    "gym:LunarLander-v3": (1e5, 6.3e-4, 128, 50_000, 0, 0.99, 250, 4, 4, 0.12, 0.1),
}
"""n_timesteps, learning_rate, batch_size, buffer_size, learning_starts, gamma, target_update_interval, train_freq,
gradient_steps, exploration_fraction, exploration_final_eps of dqn.yml, with -1 gradient steps resolved."""
ZOO_QR = {**ZOO, "gym:LunarLander-v3": (1e5, 1.5e-3, 128, 100_000, 10_000, 0.995, 1, 256, 256, 0.24, 0.18)}
QUANTILES = {"cartpole": 10, "mountain_car": 25, "acrobot": 25, "gym:LunarLander-v3": 170}
DOPAMINE = {
    "revisiting-dqn": {"cartpole": (4, 100, 1e-3), "acrobot": (4, 100, 1e-3), "mountain_car": (4, 100, 1e-2)},
    "revisiting-qr-dqn": dict.fromkeys(("cartpole", "acrobot", "mountain_car"), (2, 100, 1e-4)),
    "revisiting-iqn": dict.fromkeys(("acrobot", "mountain_car"), (2, 100, 1e-4)),
    "revisiting-rainbow": dict.fromkeys(("cartpole", "acrobot", "mountain_car"), (2, 100, 1e-4)),
}
LUNAR_LANDER = {"revisiting-iqn": (2, 100, 1e-3)}
"""update_period, target_update_period, learning_rate."""
RETURNS = {
    ("cleanrl-dqn", "cartpole"): "488.69 +- 16.11", ("cleanrl-dqn", "acrobot"): "-91.54 +- 7.20",
    ("cleanrl-dqn", "mountain_car"): "-194.95 +- 8.48", ("cleanrl-c51", "cartpole"): "481.20 +- 20.53",
    ("cleanrl-c51", "acrobot"): "-87.70 +- 5.52", ("cleanrl-c51", "mountain_car"): "-166.38 +- 27.94",
    ("cleanrl-pqn", "cartpole"): "495.13 +- 6.89", ("cleanrl-pqn", "acrobot"): "-95.63 +- 5.73",
    ("cleanrl-pqn", "mountain_car"): "-200.00 +- 0.00", ("zoo-dqn", "cartpole"): "500.00 +- 0.00",
    ("zoo-dqn", "acrobot"): "-76.64 +- 11.75", ("zoo-dqn", "mountain_car"): "-100.85 +- 9.93",
    ("zoo-dqn", "gym:LunarLander-v3"): "154.38 +- 79.24", ("zoo-qr-dqn", "cartpole"): "500.00 +- 0.00",
    ("zoo-qr-dqn", "acrobot"): "-69.14 +- 9.97", ("zoo-qr-dqn", "mountain_car"): "-106.04 +- 15.54",
    ("zoo-qr-dqn", "gym:LunarLander-v3"): "70.24 +- 225.49",
}  # fmt: skip


def made(name, env):
    return settings.make({}, presets.values(name, env))


def env_steps(given):
    return given.num_envs * given.steps_per_cycle


@pytest.mark.parametrize(("name", "env"), CASES)
def test_a_preset_makes_valid_settings_and_does_not_rely_on_defaults(name, env):
    """Check that a preset sets every field that it reads, so that it does not change with the defaults."""
    values, given = presets.values(name, env), made(name, env)
    settings.check_read(given)
    assert given.env == env
    others = (settings.RunSettings, settings.EvaluationSettings, settings.ExecutionSettings)
    numbers = {f.name for group in settings.GROUPS if group not in others for f in dataclasses.fields(group)}
    learning = ("algorithm", "steps", "gamma", "clip_rewards", "terminal_on_life_loss", "terminal_on_truncation")
    for field in {*numbers, *learning} - set(values):
        if field not in ("save_replay", "hidden"):
            with pytest.raises(ValueError, match=f"^{field}: expected .* omit {field}$"):
                settings.check_read(given, [field])
    assert "hidden" in values or env.startswith(("ale:", "minatar:"))


@pytest.mark.parametrize(("name", "env"), CASES)
def test_a_preset_makes_a_program(name, env):
    """Assemble every preset in full size, which allocates nothing."""
    if env.startswith("ale:"):
        pytest.importorskip("ale_py")
    if env.startswith("gym:LunarLander"):
        pytest.importorskip("Box2D")
    given = made(name, env)
    program = assemble.program(given)
    assert program.config.env_steps == env_steps(given)
    assert assemble.hyper(given).epsilon_steps[0].item() == pytest.approx(given.epsilon_fraction * given.steps)


@pytest.mark.parametrize("name", [name for name in presets.PRESETS if name != "nature"])
def test_a_preset_learns(name):
    """Train a few short iterations with a small buffer and a narrow network."""
    env = presets.example(name)
    small = {
        "steps_per_cycle": 2, "updates_per_cycle": 1, "num_envs": 2, "batch_size": 4, "capacity": 16,
        "learning_starts": 4, "target_period": 2, "seeds": 1, "steps": 64,
    }  # fmt: skip
    if made(name, env).hidden != settings.Settings.hidden:
        small["hidden"] = (8,)
    read = {key: value for key, value in small.items() if key in presets.values(name, env) or key == "seeds"}
    given = dataclasses.replace(made(name, env), **read)
    program = assemble.program(given)
    state = training.init(program, assemble.hyper(given), assemble.keys(given))
    *_, last = training.run(program, state, 12, training.vmapped(program), report_every=4)
    assert last.state.learner.updates.item() >= 1
    assert all(x.isfinite().all() for x in last.state.learner.params.values())
    assert (last.state.metrics.failed < 0).all()


@pytest.mark.parametrize(("name", "env"), [case for case in CASES if case[0] in ("cleanrl-dqn", "cleanrl-c51")])
def test_cleanrl_presets_have_the_published_values(name, env):
    given = made(name, env)
    assert env_steps(given) == 10 * given.updates_per_cycle
    assert {
        "total_timesteps": given.steps, "gamma": given.gamma, "learning_rate": given.learning_rate,
        "start_e": given.epsilon_start, "end_e": given.epsilon_end, "exploration_fraction": given.epsilon_fraction,
        "layers": given.hidden, "train_frequency": env_steps(given), "batch_size": given.batch_size,
        "target_network_frequency": given.target_period * env_steps(given), "buffer_size": given.capacity,
        "learning_starts": given.learning_starts,
    } == CLEANRL_REPLAY  # fmt: skip
    assert (given.optimizer, given.max_grad_norm, given.double, given.tau) == ("adam", math.inf, False, 1.0)
    if name == "cleanrl-c51":
        assert (given.algorithm, given.v_min, given.v_max, given.atoms) == ("c51", -100, 100, 101)
        assert given.adam_eps == 0.01 / 128
    else:
        assert (given.algorithm, given.loss, given.adam_eps) == ("dqn", "mse", 1e-8)


@pytest.mark.parametrize("env", presets.PRESETS["cleanrl-pqn"].envs)
def test_the_cleanrl_pqn_preset_has_the_published_values(env):
    given = made("cleanrl-pqn", env)
    assert {
        "total_timesteps": given.steps, "gamma": given.gamma, "learning_rate": given.learning_rate,
        "start_e": given.epsilon_start, "end_e": given.epsilon_end, "exploration_fraction": given.epsilon_fraction,
        "layers": given.hidden,
    } == CLEANRL  # fmt: skip
    assert (given.num_envs, given.steps_per_cycle, given.q_lambda, given.max_grad_norm) == (4, 128, 0.65, 10)
    assert env_steps(given) == 4 * given.batch_size, "num_minibatches"
    assert given.updates_per_cycle == 4 * 4, "num_minibatches * update_epochs"
    assert (given.optimizer, given.learning_rate_schedule, given.learning_rate_end) == ("radam", "linear", 0)
    assert (given.loss, given.orthogonal, given.network) == ("mse", True, "auto")


@pytest.mark.parametrize("env", presets.PRESETS["pqn-minatar"].envs)
def test_the_pqn_minatar_preset_has_the_published_values(env):
    given = made("pqn-minatar", env)
    assert (given.steps, given.num_envs, given.steps_per_cycle, given.batch_size) == (10**7, 128, 32, 128 * 32 // 32)
    assert (given.updates_per_cycle, given.gamma, given.q_lambda) == (32 * 2, 0.99, 0.65)
    assert (given.epsilon_start, given.epsilon_end, given.epsilon_fraction) == (1.0, 0.05, 0.1)
    assert (given.optimizer, given.learning_rate, given.learning_rate_schedule) == ("radam", 5e-4, "linear")
    assert (given.learning_rate_end, given.max_grad_norm, given.network) == (0, 10, "auto")


@pytest.mark.parametrize(("name", "env"), [case for case in CASES if case[0] in ("zoo-dqn", "zoo-qr-dqn")])
def test_rl_zoo_presets_have_the_published_values(name, env):
    given = made(name, env)
    steps, rate, batch, buffer, starts, gamma, target, every, updates, fraction, end = (
        ZOO if name == "zoo-dqn" else ZOO_QR
    )[env]
    assert (given.steps, given.batch_size, given.capacity, given.gamma) == (steps, batch, buffer, gamma)
    assert (given.num_envs, given.steps_per_cycle, given.updates_per_cycle) == (1, every, updates)
    assert (given.hidden, given.optimizer, given.double, given.tau) == ((256, 256), "adam", False, 1.0)
    # The target network is copied after the burst nearest to the interval, or after every burst if that is shorter.
    assert given.target_period % updates == 0
    assert abs(given.target_period // updates * every - max(target, every)) <= every / 2
    # The first burst of updates follows the first whole rollout that ends after `learning_starts`.
    first_burst = next(step for step in range(every, 20_000, every) if step > starts)
    assert math.ceil(given.learning_starts / every) * every + every == first_burst
    # After the random actions, epsilon is that of a linear schedule from the first step on.
    assert given.random_warmup
    for step in range(given.learning_starts, int(steps), 997):
        annealed = min(1.0, (step - given.learning_starts) / (given.epsilon_fraction * steps))
        expected = max(end, 1 - (1 - end) * step / (fraction * steps))
        assert given.epsilon_start + annealed * (given.epsilon_end - given.epsilon_start) == pytest.approx(expected)
    if name == "zoo-dqn":
        assert (given.algorithm, given.loss, given.max_grad_norm) == ("dqn", "huber", 10)
        assert (given.learning_rate, given.adam_eps) == (rate, 1e-8)
    else:
        assert (given.algorithm, given.quantiles, given.kappa) == ("qr-dqn", QUANTILES[env], 1.0)
        assert (given.max_grad_norm, given.adam_eps) == (math.inf, 0.01 / batch)
        linear = env == "gym:LunarLander-v3"
        assert given.learning_rate_schedule == ("linear" if linear else "constant")
        assert given.learning_rate == pytest.approx(rate * (1 - first_burst / steps) if linear else rate)


@pytest.mark.parametrize(("name", "env"), [case for case in CASES if case[0].startswith("revisiting")])
def test_revisiting_presets_have_the_published_values(name, env):
    given, long = made(name, env), env == "gym:LunarLander-v3"
    period, target, rate = LUNAR_LANDER.get(name, (4, 300, 1e-3)) if long else DOPAMINE[name][env]
    assert (env_steps(given), given.updates_per_cycle, given.target_period * period) == (period, 1, target)
    assert (given.learning_rate, given.adam_eps, given.optimizer) == (rate, 3.125e-4, "adam")
    assert (given.steps, given.capacity, given.batch_size) == (120_000 if long else 30_000, 50_000, 128)
    assert (given.learning_starts, given.gamma, given.hidden) == (500, 0.99, (512, 512))
    assert (given.epsilon_start, given.epsilon_end, given.max_grad_norm) == (0.01, 0.01, math.inf)
    match name:
        case "revisiting-dqn":
            assert (given.algorithm, given.loss, given.double) == ("dqn", "mse", False)
        case "revisiting-qr-dqn":
            assert (given.algorithm, given.quantiles, given.kappa, given.double) == ("qr-dqn", 51, 1.0, False)
        case "revisiting-iqn":
            assert (given.algorithm, given.fractions, given.cosines, given.kappa) == ("iqn", 32, 64, 1.0)
        case "revisiting-rainbow":
            largest = {"mountain_car": 100, "gym:LunarLander-v3": 300}.get(env, 200)
            assert (given.algorithm, given.v_min, given.v_max, given.atoms) == ("rainbow", -largest, largest, 51)
            assert (given.n_step, given.double, given.dueling, given.noisy, given.sigma_zero) == (
                3,
                True,
                True,
                True,
                0.1,
            )
            assert (given.prioritized, given.priority_alpha, given.priority_beta) == (True, 0.5, 0.5)


def test_published_returns_are_those_of_the_sources():
    rows = {(row["preset"], row["env"]): presets.published_text(row) for row in presets.rows()}
    assert {case: rows[case] for case in RETURNS} == RETURNS
    others = {case for case, text in rows.items() if case not in RETURNS and text != "-"}
    assert others == {case for case in CASES if case[0] in ("minatar", "nature")}


def test_every_preset_is_documented_with_its_differences():
    text = Path(presets.__file__).read_text().split("Differences from the authors' code:")[1]
    for name, preset in presets.PRESETS.items():
        assert name in text or ("revisiting-*" in text and name.startswith("revisiting"))
        assert preset.source.startswith("https://")
        assert preset.protocol
        assert presets.example(name) == next(iter(preset.envs))


def test_the_command_lists_the_committed_scores(capsys):
    assert cli.main(["presets", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["preset"], row["env"]) for row in rows] == CASES
    lines = [json.loads(line) for line in presets.SCORES.read_text().splitlines()]
    newest = {(line["preset"], line["env"]): line for line in lines}
    assert newest == presets.scores()
    assert newest.keys() <= set(CASES), "a score without a preset"
    for row in rows:
        assert row["ours"] == newest.get((row["preset"], row["env"]))
        assert row["measure"] == presets.measure(row["preset"])
        assert row["command"].startswith(f"fdqn train --preset {row['preset']} --env {row['env']}")
    for line in lines:
        assert line["low"] <= line["mean"] <= line["high"]
        assert line.keys() >= {"seeds", "steps", "seconds", "commit", "torch", "processor", "date"}


def test_the_table_shows_scores_and_a_dash_for_missing_ones(capsys):
    assert cli.main(["presets"]) == 0
    printed = capsys.readouterr().out
    for row in presets.rows():
        (line,) = (line for line in printed.splitlines() if line.split()[:2] == [row["preset"], row["env"]])
        assert presets.published_text(row) in line
        assert presets.ours_text(row) in line
        assert line.rstrip().endswith(presets.seconds_text(row))


def test_a_record_is_formatted():
    ours = {"mean": 491.0706, "low": 486.442, "high": 494.681, "seeds": 32, "seconds": 520.4}
    row = {"published": {"mean": 488.69, "deviation": 16.11}, "ours": ours}
    assert presets.published_text(row) == "488.69 +- 16.11"
    assert presets.ours_text(row) == "491.07 [486.44, 494.68]"
    assert [presets.seconds_text({"ours": {"seconds": x}}) for x in (59.6, 520.4, 9_000)] == ["60 s", "9 min", "2.5 h"]
    nothing = {"published": None, "ours": None}
    assert {f(nothing) for f in (presets.published_text, presets.ours_text, presets.seconds_text)} == {"-"}


def test_the_newest_score_of_a_preset_is_used(tmp_path, monkeypatch):
    lines = [{"preset": "zoo-dqn", "env": "cartpole", "mean": x} for x in (1.0, 2.0)]
    (tmp_path / "scores.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    monkeypatch.setattr(presets, "SCORES", tmp_path / "scores.jsonl")
    assert presets.scores() == {("zoo-dqn", "cartpole"): lines[1]}
    monkeypatch.setattr(presets, "SCORES", tmp_path / "none.jsonl")
    assert presets.scores() == {}


def test_presets_are_listed_without_torch():
    code = "import sys; from fdqn import cli; cli.main(['presets']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_the_table_of_the_benchmarks_is_that_of_the_records(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("presets_benchmark", ROOT / "benchmarks/presets.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    assert benchmark.table() in (ROOT / "benchmarks/README.md").read_text(), "run benchmarks/presets.py --table"


def test_keys_of_the_seeds_do_not_depend_on_the_preset():
    assert (assemble.keys(made("zoo-dqn", "cartpole")) == random.key(range(16))).all()


@pytest.mark.parametrize("changed", [
    {"noisy": False}, {"prioritized": False}, {"double": False}, {"optimizer": "sgd"}, {"tau": 0.01},
], ids=str)  # fmt: skip
def test_an_ingredient_of_a_preset_can_be_switched_off(changed):
    """Check that values of the preset that are then unused become the defaults."""
    made = settings.make({**changed, "seeds": 2}, presets.values("revisiting-rainbow", "cartpole"))
    assemble.program(made)
    assert all(getattr(made, name) == value for name, value in changed.items())
    if not made.noisy:
        assert (made.sigma_zero, made.epsilon_start) == (settings.Settings.sigma_zero, settings.Settings.epsilon_start)
    if not made.prioritized:
        assert made.priority_alpha == settings.Settings.priority_alpha
