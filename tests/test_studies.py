"""Optuna studies whose trials are settings of a sweep."""

import math
from types import SimpleNamespace

import pytest

from fdqn.experiment import results, studies
from fdqn.experiment.settings import Sweep

optuna = pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402
from optuna.storages import JournalStorage  # noqa: E402
from optuna.storages.journal import JournalFileBackend  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

SPACE = {"learning_rate": FloatDistribution(1e-5, 1e-1, log=True), "gamma": FloatDistribution(0.9, 0.999)}
SMALL = {
    "env": "cartpole", "seeds": 4, "steps": 160, "hidden": (8,), "num_envs": 2, "batch_size": 8, "capacity": 64,
    "learning_starts": 16, "compile": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def study(**given):
    sampler = optuna.samplers.RandomSampler(seed=1)
    return optuna.create_study(**{"direction": "maximize", "sampler": sampler, **given})


def score(learning_rate):
    return -abs(math.log10(learning_rate) + 3)


class Fake:
    """A trainer whose returns depend on the learning rate: the first seed is far too good, the last far too bad."""

    def __init__(self, outlier=100.0, failed=()):
        self.sweeps, self.outlier, self.failed = [], outlier, failed

    def __call__(self, sweep):
        self.sweeps.append(sweep)
        returns = []
        for number, values in enumerate(sweep.varied):
            mean = score(values["learning_rate"])
            returns += [mean + self.outlier, mean, mean, mean - self.outlier]
            if number in self.failed:
                returns[-1] = None
        return SimpleNamespace(path="runs/fake", summary={"train_return": {"per_seed": returns}})


def test_a_batch_is_one_sweep_and_each_trial_gets_the_return_of_its_setting():
    train, searched = Fake(), study()
    studies.optimize(searched, SPACE, trials=10, batch=4, train=train, **SMALL)
    assert [len(sweep.varied) for sweep in train.sweeps] == [4, 4, 2]
    assert all(isinstance(sweep, Sweep) and (sweep.env, sweep.seeds) == ("cartpole", 4) for sweep in train.sweeps)
    given = [values for sweep in train.sweeps for values in sweep.varied]
    assert [trial.params for trial in searched.trials] == given
    for trial in searched.trials:
        assert trial.value == pytest.approx(score(trial.params["learning_rate"]))
        assert trial.user_attrs["run"] == "runs/fake"
        assert len(trial.user_attrs["returns"]) == 4
    assert searched.best_value == max(score(values["learning_rate"]) for values in given)


def test_trials_with_a_failed_seed_fail_and_the_others_do_not():
    searched = study()
    studies.optimize(searched, SPACE, trials=4, batch=4, train=Fake(failed={1, 3}), **SMALL)
    assert [trial.state for trial in searched.trials] == [TrialState.COMPLETE, TrialState.FAIL] * 2


def test_settings_of_several_programs_are_several_sweeps(tmp_path):
    space = {**SPACE, "batch_size": CategoricalDistribution([8, 16]), "target_period": IntDistribution(1, 30)}
    given = {name: value for name, value in SMALL.items() if name != "batch_size"}
    train, searched = Fake(), study()
    studies.optimize(searched, space, trials=8, batch=8, train=train, **given, out=str(tmp_path / "study"))
    assert [sweep.batch_size for sweep in train.sweeps] == [
        *dict.fromkeys(t.params["batch_size"] for t in searched.trials)
    ]
    assert sum(len(sweep.varied) for sweep in train.sweeps) == 8
    for sweep in train.sweeps:
        assert set(sweep.varied[0]) == {"batch_size", "learning_rate", "gamma", "target_period"}
        trials = [trial for trial in searched.trials if trial.params["batch_size"] == sweep.batch_size]
        assert [trial.value for trial in trials] == pytest.approx([score(x["learning_rate"]) for x in sweep.varied])
        assert sweep.out == str(tmp_path / f"study/trial-{trials[0].number}")


def test_a_study_in_a_journal_continues(tmp_path):
    def opened():
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
        return study(study_name="cartpole", storage=storage, load_if_exists=True)

    for count in (3, 6):
        studies.optimize(opened(), SPACE, trials=3, batch=2, train=Fake(), **SMALL)
        assert len(opened().trials) == count
    assert opened().best_value == max(score(trial.params["learning_rate"]) for trial in opened().trials)


def test_trials_of_an_interrupted_batch_fail():
    def stopped(sweep):
        raise KeyboardInterrupt

    searched = study()
    with pytest.raises(KeyboardInterrupt):
        studies.optimize(searched, SPACE, trials=6, batch=3, train=stopped, **SMALL)
    assert [trial.state for trial in searched.trials] == [TrialState.FAIL] * 3


def refused(*args, **named):
    searched = study(**named.pop("study", {}))
    studies.optimize(searched, *args, **{"trials": 2, "batch": 2, "train": Fake(), **SMALL, **named})


@pytest.mark.parametrize(
    ("space", "named", "message"),
    [
        (SPACE, {"trials": 0}, "trials: expected at least 1, got 0"),
        (SPACE, {"batch": 0}, "batch: expected at least 1, got 0"),
        (
            SPACE,
            {"study": {"direction": "minimize"}},
            "study: expected direction maximize, got minimize; create it with",
        ),
        (
            SPACE,
            {"study": {"direction": None, "directions": ["maximize", "minimize"]}},
            "study: expected direction maximize, got maximize and minimize",
        ),
        ({}, {}, "space: expected at least one setting to search, got none"),
        ({"lr": SPACE["gamma"]}, {}, "space: expected names of settings, got 'lr'"),
        (SPACE, {"gamma": 0.9}, "space: expected settings without a keyword, got 'gamma', which has one; omit one"),
        ({"seeds": IntDistribution(1, 3)}, {"seeds": 1}, "space: expected settings without a keyword, got 'seeds'"),
        ({"seed": IntDistribution(1, 3)}, {}, "seed: expected one value for all settings of a sweep"),
        ({"gamma": FloatDistribution(2, 3)}, {}, r"gamma: expected .* \(in the setting gamma = "),
    ],
)
def test_bad_input_is_refused(space, named, message):
    with pytest.raises(ValueError, match=message):
        refused(space, **named)


def test_trials_are_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "picture", lambda file, *given: file.write(b"PNG"))
    searched, tiny = study(), {**SMALL, "seeds": 2, "evaluate_episodes": 1}
    studies.optimize(searched, SPACE, trials=2, batch=2, out=str(tmp_path / "study"), **tiny)
    assert [trial.state for trial in searched.trials] == [TrialState.COMPLETE] * 2
    assert searched.trials[0].user_attrs["run"] == str(tmp_path / "study" / "trial-0")
    assert all(0 < min(trial.user_attrs["returns"]) <= trial.value for trial in searched.trials)
