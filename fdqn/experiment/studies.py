"""Optuna studies that train several trials at once as the settings of a sweep. Needs `pip install fdqn[optuna]`."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fdqn import check
from fdqn.experiment import assemble, session, sweep_plan
from fdqn.experiment.results import Run
from fdqn.experiment.settings import Settings, Sweep
from fdqn.report import statistics

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution


class Batch(NamedTuple):
    """Trials that one program trains."""

    trials: tuple["Trial", ...]
    sweep: Sweep
    """Its settings are those of the trials, in order."""


def optimize(
    study: "Study",
    space: Mapping[str, "BaseDistribution"],
    *,
    trials: int,
    batch: int,
    train: Callable[[Sweep], Run] = session.train,
    **settings: Any,
) -> None:
    """Search for settings with a high training return with Optuna, `batch` trials at a time.

    Until `trials` trials have finished, ask the study for `batch` trials, train them as the settings of one sweep, and
    tell the study the interquartile mean over seeds of each trial's training returns. A trial fails if one of its seeds
    has failed or has not finished an episode, because the mean of the other seeds would be biased upwards.

        import optuna
        from optuna.distributions import FloatDistribution
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        study = optuna.create_study(
            study_name="cartpole",
            storage=JournalStorage(JournalFileBackend("cartpole.log")),
            direction="maximize",
            load_if_exists=True,
        )
        space = {
            "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
            "gamma": FloatDistribution(0.9, 0.999),
        }
        optimize(study, space, trials=64, batch=16, env="cartpole", seeds=8, steps=100_000)
        study.best_params

    With the journal file, an interrupted study continues, and several processes can share a study. A sampler chooses
    the trials of a batch without results of one another; `TPESampler(constant_liar=True)` keeps them apart. The return
    of the best trial is biased upwards, because it was selected on its seeds: train the best settings again on fresh
    seeds, with another `seed`.

    Args:
        study: a study of one objective with direction "maximize".
        space: distributions to search, by keyword of `fdqn.train`.
        trials: number of trials to train.
        batch: number of trials to train at once.
        train: trains a sweep and returns its run, such as `fdqn.train`, which shows progress.
        settings: all other keywords of `fdqn.train`. The run folder of a batch is `out/trial-N`, where N is the number
            of its first trial.

    Raises ValueError for another direction, settings out of range, or names that are both in `space` and in `settings`;
    ImportError without Optuna. If training raises an exception, the trials of the batch fail.
    Akiba et al. 2019, https://arxiv.org/abs/1907.10902
    """
    import optuna

    check.kind("study", study, optuna.Study)
    check.count("trials", trials, 1)
    check.count("batch", batch, 1)
    check.function("train", train)
    if (directions := [direction.name.lower() for direction in study.directions]) != ["maximize"]:
        raise ValueError(
            f"study: expected direction maximize, got {' and '.join(directions)}; create it with direction='maximize'"
        )
    if not space:
        raise ValueError("space: expected at least one setting to search, got none")
    for name in space:
        if name in settings:
            raise ValueError(
                f"space: expected settings without a keyword, got {name!r}, which has one; omit one of them"
            )
        if name not in {field.name for field in dataclasses.fields(Settings)}:
            raise ValueError(f"space: expected names of settings, got {name!r}")
    for first in range(0, trials, batch):
        asked = [study.ask(dict(space)) for _ in range(min(batch, trials - first))]
        try:
            for part in _batches(asked, settings):
                _tell(study, part, train(part.sweep))
        except BaseException:
            _fail(study, asked)
            raise


def _batches(trials: list["Trial"], settings: Mapping[str, Any]) -> list[Batch]:
    """Return the sweeps of the trials, one for each program that they need; values such as `hidden` need several."""
    programs: dict[Any, list[tuple[Trial, Sweep]]] = {}
    for trial in trials:
        one = sweep_plan.plan(settings, {name: (value,) for name, value in trial.params.items()}).programs[0].settings
        programs.setdefault(assemble.in_one_program(one.at(0)), []).append((trial, one))
    return [_batch(*zip(*each, strict=True)) for each in programs.values()]


def _batch(trials: tuple["Trial", ...], sweeps: tuple[Sweep, ...]) -> Batch:
    """Join sweeps of one setting each that one program can train."""
    out = sweeps[0].out and f"{sweeps[0].out}/trial-{trials[0].number}"
    return Batch(trials, dataclasses.replace(sweeps[0], out=out, varied=tuple(one.varied[0] for one in sweeps)))


def _tell(study: "Study", batch: Batch, run: Run) -> None:
    """Tell the study the returns of trained trials."""
    from optuna.trial import TrialState

    returns, seeds = run.summary["train_return"]["per_seed"], batch.sweep.seeds
    for i, trial in enumerate(batch.trials):
        own = returns[i * seeds : (i + 1) * seeds]
        trial.set_user_attr("returns", own)
        trial.set_user_attr("run", str(run.path))
        if all(x is not None and math.isfinite(x) for x in own):
            study.tell(trial, float(statistics.iqm(own)))
        else:
            study.tell(trial, state=TrialState.FAIL)


def _fail(study: "Study", trials: list["Trial"]) -> None:
    """Tell the study that trials have failed, except those that already have a result."""
    from optuna.trial import TrialState

    for trial in trials:
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
