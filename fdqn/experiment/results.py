"""Results of a run: read the files of a run folder, check them, and draw and format them."""

import base64
import csv
import dataclasses
import html
import io
import json
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load

from fdqn import check, envs, networks, training, tree
from fdqn.experiment import acting, assemble, history
from fdqn.experiment.settings import Settings, Sweep, from_json, is_device, task
from fdqn.report import plots, statistics
from fdqn.storage import checkpoint, files
from fdqn.training import evaluate
from fdqn.types import EnvSpec, Network, Params

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBER = (int, float)
PERHAPS = (int, float, type(None))
SUMMARY = {
    "env": str, "seeds": list, "steps": int, "failed_seeds": list, "failures": list, "final_return": dict,
    "train_return": dict, "env_steps_per_second": PERHAPS, "seed_updates_per_second": PERHAPS,
    "compile_seconds": NUMBER, "first_update_seconds": PERHAPS, "wall_seconds": NUMBER,
}  # fmt: skip
"""Fields of `summary.json` and their types."""


REPLANNED = ("device", "evaluate_episodes", "evaluate_steps")
"""Settings that `resume` may change permanently, in addition to `on_nan`."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run that has ended: its settings, results, trained parameters and policies.

    `fdqn.train` and `fdqn.resume` return one; `Run.load` reads one from its folder. Parameters are read on
    first access.
    """

    path: Path
    """Run folder."""
    settings: Settings
    summary: dict[str, Any]
    """Content of `summary.json`."""
    curve: plots.Curve
    """Training returns [P, S] at the P reports."""
    env: str | None = field(default=None, repr=False)
    """Environment trained on, as given again for an environment that is code of your own."""
    wrappers: Sequence[str] = field(default=(), repr=False)
    """Wrappers of the environment, as given again for wrappers that are code of your own."""

    @staticmethod
    def load(path: str | os.PathLike[str], env: str | None = None, wrappers: Sequence[str] = ()) -> "Run":
        """Read the folder of a run that has ended, also one that was stopped early.

        An environment that is code of your own is imported only if `env` names it again, and wrappers only if
        `wrappers` names them. Raises ValueError, naming the file, if it is not a run folder, is damaged, or the run has
        no results.
        """
        check.kind("path", path, str, os.PathLike)
        folder = Path(path)
        if (folder / "config.json").is_file() and not (folder / "summary.json").exists():
            expected = f"run: expected a finished run folder, got {folder} without summary.json"
            raise ValueError(f"{expected}; fdqn.resume({str(folder)!r}) finishes it")
        return dataclasses.replace(read(folder, env, wrappers), path=folder.absolute())

    @cached_property
    def params(self) -> Params:
        """Trained parameters of all seeds: tensors [S, ...] on the CPU under the names of the network.

        Raises ValueError if they are missing, damaged or not those of the settings.
        """
        return read_params(self.path, self.env, self.wrappers)

    @cached_property
    def network(self) -> Network:
        """Network of the settings: `network.apply(params of one seed, obs [..., *O]) -> q [..., A]`."""
        return assemble.network(_named(self.path, self.env, self.wrappers))

    def policy(self, seed: int) -> Callable[..., Any]:
        """Return the greedy policy of one trained seed, `policy(obs, legal=None) -> action`, on NumPy arrays.

        An observation [*O] gives an int, N observations [N, *O] give actions [N] of int64. `legal`, bool [A] or [N, A],
        marks the actions to choose from. The arrays must have the shape and dtype of the environment; floats of any
        precision are accepted for floats. Raises ValueError for a seed that was not trained or has failed, and, when
        called, ValueError or TypeError for arrays that do not fit.
        """
        check.count("seed", seed)
        unusable = failed_seeds(self.settings, _causes(self.summary), finite(self.params))[1]
        params = tree.index(self.params, seed_index(self.settings, unusable, seed))
        return acting.greedy(assemble.env(self.settings).spec, self.network, params)

    def plot(self, file: str | os.PathLike[str] | BinaryIO | None = None) -> "Figure":
        """Draw the learning curve over the seeds as a matplotlib figure, and write it to `file` as a PNG if given."""
        drawn = plots.figure(*_panels(self.curve, self.summary))
        if file is not None:
            drawn.savefig(file, format="png")
        return drawn

    def __repr__(self) -> str:
        summary = self.summary
        failed = f", {len(summary['failed_seeds'])} failed" if summary["failed_seeds"] else ""
        return (
            f"Run({str(self.path)!r}: {task(summary)}, {len(summary['seeds'])} seeds{failed}, {summary['steps']:,} "
            f"steps, greedy return {interval_text(summary['final_return'])})"
        )

    def _repr_html_(self) -> str:
        """Show the run in a notebook as one line and its learning curve."""
        drawn = io.BytesIO()
        self.plot(drawn)
        picture = base64.b64encode(drawn.getvalue()).decode()
        return f'<p>{html.escape(repr(self))}</p><img width="640" src="data:image/png;base64,{picture}">'


def returns_record(
    returns: NDArray[Any],
    failed: list[int],
    seeds: Sequence[int],
    cut: tuple[NDArray[np.bool_], int | None] | None = None,
) -> dict[str, Any]:
    """Summarise returns [S, episodes] as in `summary.json`; failed seeds are kept as null.

    `cut` gives, for an evaluation, the episodes [S, episodes] that reached the step limit, and the limit.
    """
    per_seed, excluded = statistics.row_means(returns), [seeds.index(seed) for seed in failed]
    per_seed[excluded] = np.nan
    unfinished = {} if cut is None else {"unfinished": int(np.delete(cut[0], excluded, 0).sum()), "step_limit": cut[1]}
    return {**seeds_record(per_seed), **unfinished}


def seeds_record(per_seed: Sequence[float | None] | NDArray[np.float64]) -> dict[str, Any]:
    """Summarise one return per seed as in `summary.json`; NaN and None are those of failed seeds."""
    returns = np.array([math.nan if x is None else x for x in per_seed], dtype=np.float64)
    estimate = statistics.interval(returns)
    return {
        "iqm": _json_number(estimate.iqm),
        "low": _json_number(estimate.low),
        "high": _json_number(estimate.high),
        "kind": estimate.kind,
        "per_seed": [_json_number(x) for x in returns],
    }


def step_limit(path: Path, settings: Settings, spec: EnvSpec) -> int:
    """Return the step limit of evaluation episodes: from the settings, or from the episodes trained so far."""
    if settings.evaluate_steps or not spec.endless:
        return settings.evaluate_steps or spec.time_limit
    steps, episodes = _read(path, "metrics.csv", _read_episodes)
    return evaluate.step_limit(spec, settings.num_envs, steps, episodes)


def _read_episodes(file: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read the environment steps [P] and ended episodes [P, S] at the reports so far, of seeds that have not failed."""
    lines = csv.DictReader(io.StringIO(files.read(file).decode(), newline=""))
    rows: dict[int, list[tuple[int, int]]] = {}
    for row in lines:
        rows.setdefault(int(row["step"]), []).append((int(row["episodes"]), int(row["updates"])))
    if not rows:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.int64)
    episodes, updates = np.array(list(rows.values()), dtype=np.int64).transpose(2, 0, 1)
    # A failed seed makes no more updates, and may not finish any more episodes.
    return np.array(list(rows), dtype=np.int64), episodes[:, updates[-1] == updates[-1].max()]


def unfinished_text(record: dict[str, Any]) -> str:
    """Format the number of cut episodes, such as `12 at 1,000 steps`; empty if there are none or it is unknown."""
    if not record.get("unfinished"):
        return ""
    return f"{record['unfinished']:,} at {record['step_limit']:,} steps"


def plan(path: Path, env: str | None = None, wrappers: Sequence[str] = ()) -> tuple[Settings, int]:
    """Return the settings of a run folder, finished or not, and its planned environment steps per seed.

    Raises ValueError, naming the file, if it is not a run folder, or if its environment is user code other than `env`
    or its wrappers are user code other than `wrappers`.
    """
    config = read_config(path)
    settings = _named(path, env, wrappers)
    return settings, config["plan"]["steps"]


def read_settings(path: Path) -> Settings:
    """Return the settings of a run folder, finished or not, without importing user code.

    Raises ValueError, naming the file, if it is not a run folder.
    """
    return _read(path, "config.json", _read_settings)


def _replanned(settings: Settings, config: dict[str, Any]) -> Settings:
    """Return the settings with the changes made by `resume`."""
    changed = {name: x for name, x in config["plan"].items() if name in ("on_nan", *REPLANNED)}
    return dataclasses.replace(settings, **changed)


def finished(path: Path) -> int:
    """Return the environment steps per seed in `summary.json`, also of a stopped run; 0 if missing or unreadable."""
    try:
        return _read(path, "summary.json", _read_summary)["steps"]
    except ValueError:
        return 0


def read_summary(path: Path) -> dict[str, Any] | None:
    """Return the content of `summary.json`, also of a stopped run; None if there is none, as in a run in progress.

    Raises ValueError, naming the file, if it is damaged.
    """
    return _read(path, "summary.json", _read_summary) if (path / "summary.json").exists() else None


def is_evaluated(summary: Mapping[str, Any]) -> bool:
    """Return True if a run was evaluated after training: a seed that did not fail has a return, or all have failed."""
    returns = zip(summary["seeds"], summary["final_return"]["per_seed"], strict=True)
    remaining = [x for seed, x in returns if seed not in summary["failed_seeds"]]
    return not remaining or any(x is not None for x in remaining)


def gymnasium_name(settings: Settings) -> str | None:
    """Return the name of Gymnasium's version of the environment trained on; None if there is none.

    With arguments or wrappers, the environment may be another task.
    """
    return None if settings.env_kwargs or settings.wrappers else envs.GYMNASIUM.get(settings.env)


def lacks_evaluation(path: Path) -> bool:
    """Return True if an evaluation after training is missing, because it was interrupted.

    Rungs of successive halving other than the last are not evaluated, and lack none. Raises ValueError, naming the
    file, for a folder that is not a finished run.
    """
    run = read(path)
    if read_config(path)["plan"]["steps"] < run.settings.steps:
        return False
    in_gymnasium = gymnasium_name(run.settings) is not None
    return not is_evaluated(run.summary) or (in_gymnasium and "gymnasium_return" not in run.summary)


def read(path: Path, env: str | None = None, wrappers: Sequence[str] = ()) -> Run:
    """Read the folder of a finished run. Raises ValueError, naming the file, if it is not one; see `Run.load`."""
    settings = read_settings(path)
    seeds = list(assemble.seeds(settings))
    summary = _read(path, "summary.json", partial(_read_summary, seeds=seeds))
    return Run(
        path, settings, summary, _read(path, "metrics.csv", partial(_read_rows, seeds=len(seeds))), env, wrappers
    )


def read_params(path: Path, env: str | None = None, wrappers: Sequence[str] = ()) -> Params:
    """Read the trained parameters [S, ...] of a run folder, in the order of the network (the file sorts by name).

    In a folder of the Hugging Face Hub the file is `model.safetensors`.

    Raises ValueError if they do not fit the settings, or if the environment is user code other than `env`
    or its wrappers are user code other than `wrappers`.
    """
    settings = _named(path, env, wrappers)
    name = "params.safetensors"
    if not os.path.lexists(path / name) and (path / "model.safetensors").is_file():
        name = "model.safetensors"
    params = _read(path, name, lambda file: dict(load(files.read(file))))
    expected = assemble.network(settings).init(assemble.keys(settings))
    shapes, given = ({name: list(x.shape) for name, x in given.items()} for given in (expected, params))
    if shapes != given:
        others = [name for name in given if shapes.get(name) != given[name]]
        got = ", ".join(f"{name} {given[name]}" for name in others[:3]) or f"only {sorted(given)}"
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ValueError(f"{name}: expected {shapes}, got {got}{more}")
    return {name: params[name] for name in expected}


class Trained(NamedTuple):
    """Trained parameters of a run's seeds, at its end or at a checkpoint."""

    settings: Settings
    step: int
    """Environment steps per seed."""
    params: Params
    """[S, ...]"""
    failed: list[int]
    """Seeds that had failed."""
    unusable: list[int]
    """Failed seeds without usable parameters: all except those of which only the environment failed."""


def trained(path: Path, which: str | None = None, env: str | None = None, wrappers: Sequence[str] = ()) -> Trained:
    """Read the trained parameters of a run: the final ones, or those of the checkpoint `which`, "best" or a step.

    Raises ValueError, naming the existing checkpoints, if there is no such checkpoint; CheckpointError if it is
    damaged; and the errors of `read_params`.
    """
    if which in (None, "last"):
        run = read(path)
        params, step, settings, causes = (
            read_params(path, env, wrappers),
            run.summary["steps"],
            run.settings,
            _causes(run.summary),
        )
    else:
        settings = _named(path, env, wrappers)
        place = _checkpoint(path, str(which))
        params, iterations, codes = history.trained(place, settings, assemble.program(settings))
        failures = zip(assemble.seeds(settings), iterations.tolist(), codes.tolist(), strict=True)
        causes = {seed: training.CAUSES[code] for seed, iteration, code in failures if iteration >= 0}
        step = history.checkpoint_info(place).step
    return Trained(settings, step, params, *failed_seeds(settings, causes, finite(params)))


def of_setting(found: Trained, number: int) -> Trained:
    """Return the trained parameters of one setting of a sweep, under its seeds."""
    settings = found.settings
    if not isinstance(settings, Sweep):
        raise TypeError(f"found.settings: expected a Sweep, got {type(settings).__name__}")
    check.count("number", number)
    lanes, one = range(number * settings.seeds, (number + 1) * settings.seeds), settings.at(number)
    failed, unusable = (
        [one.seed + lane - lanes.start for lane in lanes if lane in group] for group in (found.failed, found.unusable)
    )
    return Trained(one, found.step, tree.index(found.params, slice(lanes.start, lanes.stop)), failed, unusable)


def _causes(summary: dict[str, Any]) -> dict[int, str]:
    """Return the causes of failure in a summary, by seed."""
    causes = {failure["seed"]: failure["cause"] for failure in summary["failures"]}
    return {**dict.fromkeys(summary["failed_seeds"], "parameter"), **causes}


def failed_seeds(
    settings: Settings, causes: Mapping[int, str], finite: NDArray[np.bool_]
) -> tuple[list[int], list[int]]:
    """Return the failed seeds, and those of them whose parameters are unusable: all except those with finite parameters
    of which only the environment failed.

    `causes` gives the cause of each failure by seed, one of `training.CAUSES`; `finite`, bool [S], marks seeds with
    finite parameters.
    """
    ok = dict(zip(assemble.seeds(settings), finite.tolist(), strict=True))
    failed = [seed for seed, is_finite in ok.items() if seed in causes or not is_finite]
    return failed, [seed for seed in failed if not ok[seed] or causes.get(seed) != "environment"]


def seed_index(settings: Settings, unusable: Sequence[int], seed: int) -> int:
    """Return the index of a seed among the trained ones. Raises ValueError if it was not trained or is `unusable`."""
    seeds = assemble.seeds(settings)
    if seed not in seeds:
        raise ValueError(f"seed: expected a trained seed, {seeds[0]} to {seeds[-1]}, got {seed}")
    if seed in unusable:
        raise ValueError(f"seed: expected a seed that has not failed, got {seed}; see failures in summary.json")
    return seeds.index(seed)


def _checkpoint(path: Path, which: str) -> Path:
    """Return the folder of a checkpoint, "best" or a step. Raises ValueError, naming the existing ones, if missing."""
    kept = {place.name.removesuffix(".old"): place for place in reversed(checkpoint.newest(path / "checkpoints"))}
    step = history.best_step(path) if which == "best" else which
    if step in kept:
        return kept[step]
    steps = [*kept] if len(kept) <= 8 else [*[*kept][:4], "...", *[*kept][-4:]]
    wanted = "one with a finished training episode" if which == "best" else "best, last or the step of a checkpoint"
    there = f"steps {', '.join(steps)}" if kept else "none"
    raise ValueError(f"checkpoint: expected {wanted}, got {which!r}; {path / 'checkpoints'} has {there}")


def read_curve(path: Path) -> plots.Curve:
    """Read the training returns [P, S] at all reports from `metrics.csv`. Raises ValueError if it is damaged."""
    lines = io.StringIO(files.read(path / "metrics.csv").decode(), newline="")
    try:
        rows = [
            (int(row["step"]), int(row[_learner(row)]), float(row["return"] or "nan")) for row in csv.DictReader(lines)
        ]
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ValueError("expected numbers under step, seed and return, got other columns or values") from None
    if not rows:
        raise ValueError("expected rows, got none")
    steps, seeds = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    if len(steps) * len(seeds) > 2 * len(rows) + 1_000:
        raise ValueError(f"expected a row for each of {len(steps)} steps and {len(seeds)} seeds, got {len(rows)}")
    row_of, column_of = ({x: i for i, x in enumerate(axis)} for axis in (steps, seeds))
    values = np.full((len(steps), len(seeds)), np.nan)
    for step, seed, value in rows:
        values[row_of[step], column_of[seed]] = value
    return plots.Curve(np.asarray(steps, dtype=np.int64), values)


def _learner(row: Mapping[str, str]) -> str:
    """Return the column that numbers the learners: for a sweep `learner`, or `lane` in files of older versions."""
    return next(name for name in ("learner", "lane", "seed") if name in row or name == "seed")


def picture(file: Path | BinaryIO, curve: plots.Curve, summary: dict[str, Any]) -> None:
    """Draw the learning curve of one run as a PNG."""
    plots.learning_curves(file, *_panels(curve, summary))


def _panels(curve: plots.Curve, summary: dict[str, Any]) -> tuple[dict[str, dict[str, plots.Curve]], str]:
    """Return the learning curve of one run without failed seeds, and its result as subtitle."""
    failed, seeds = summary["failed_seeds"], summary["seeds"]
    result = f"{len(seeds)} seeds; greedy return after training: {interval_text(summary['final_return'])}"
    alive = curve._replace(values=curve.values[:, [seed not in failed for seed in seeds]])
    left_out = f"; {len(failed)} failed seeds excluded" if failed else ""
    return {task(summary): {"": alive}}, result + left_out


def comparison(file: Path | BinaryIO, read: Sequence[Run]) -> None:
    """Draw the learning curves of several runs as a PNG, one panel per environment. Raises ValueError for no runs."""
    panels: dict[str, dict[str, plots.Curve]] = {}
    for run in read:
        panels.setdefault(task(run.settings), {})[_drawable(run.path)] = run.curve
    plots.learning_curves(file, panels)


def _drawable(path: Path) -> str:
    """Return a path as text; bytes that are not valid Unicode become escapes."""
    return str(path).encode(errors="backslashreplace").decode()


def interval_text(record: dict[str, Any]) -> str:
    """Format a record of returns as `496.1 [489.0, 500.0]`, as `12.0 [range 10.0, 14.0]` for too few seeds for an
    interval, or as `12.0` for one seed.
    """
    if record["iqm"] is None:
        return "none"
    kind = "range " if record.get("kind") == "range" else ""
    ends = f" [{kind}{record['low']:.1f}, {record['high']:.1f}]" if record["low"] is not None else ""
    return f"{record['iqm']:.1f}{ends}"


def interval_heading(records: Sequence[dict[str, Any]]) -> str:
    """Return the heading of a column of `interval_text`."""
    kinds = {record["kind"] for record in records if record.get("kind") is not None}
    ends = {"interval": "95%", "range": "range"}
    return f"IQM [{' or '.join(ends[kind] for kind in sorted(kinds))}]" if kinds else "IQM"


Read = TypeVar("Read")


def _read(path: Path, name: str, reader: Callable[[Path], Read]) -> Read:
    """Read one file of a run folder. Raises ValueError, naming the file, for every error of `reader`."""
    try:
        return reader(path / name)
    except FileNotFoundError:
        if (path / "shards.json").exists():
            where = shlex.quote(str(path))
            raise ValueError(
                f"run: expected a finished run folder, got {path}, whose shards are not merged; use fdqn resume "
                f"{where} or, for those that have finished, fdqn merge {where}"
            ) from None
        raise ValueError(f"run: expected a finished run folder, got {path} without {name}") from None
    except (json.JSONDecodeError, RecursionError):
        reason = "which is not JSON"
    except (OSError, UnicodeDecodeError, SafetensorError) as error:
        reason = f"which cannot be read: {getattr(error, 'strerror', None) or error}"
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"that is invalid: {error}"
    raise ValueError(f"run: expected a finished run folder, got {path} with a {name} {reason}")


def read_config(path: Path) -> dict[str, Any]:
    """Read `config.json` of a run folder. Raises ValueError if it is missing or damaged."""
    return _read(path, "config.json", _parse_config)


def _parse_config(file: Path) -> dict[str, Any]:
    config = json.loads(files.read(file, 2**24))
    parts = {"settings": dict, "plan": dict, "versions": dict, "engine": dict}
    if not isinstance(config, dict) or not all(isinstance(config.get(name), of) for name, of in parts.items()):
        raise ValueError(f"expected records of {', '.join(parts)}")
    plan = config["plan"]
    if (
        type(plan.get("steps")) is not int
        or not 0 < plan["steps"] <= 2**53
        or plan.get("on_nan") not in ("freeze", "stop")
        or not is_device(plan.get("device", "auto"))
        or not all(
            type(plan.get(name, 1)) is int and plan.get(name, 1) >= 0
            for name in ("evaluate_episodes", "evaluate_steps")
        )
    ):
        raise ValueError("expected a plan with steps and on_nan")
    if "partition" in plan and not is_partition(plan["partition"]):
        raise ValueError(f"partition: expected the size of a group and its threads, got {plan['partition']!r:.80}")
    return config


def is_partition(record: Any) -> bool:
    """Return True for the record of a pinned partition: seeds of a group, and threads that compute it."""
    names = ("lanes", "threads")
    return isinstance(record, dict) and [*record] == [*names] and all(type(x) is int and x > 0 for x in record.values())


def _read_settings(file: Path, env: str | None = None, wrappers: Sequence[str] = ()) -> Settings:
    """Read the settings, and import an environment or wrappers that are user code only if they equal `env` and
    `wrappers`: a folder from elsewhere must not choose code to run.
    """
    config = _parse_config(file)
    settings = _replanned(from_json(config["settings"]), config)
    if not unnamed_code(path=file.parent, settings=settings, env=env, wrappers=wrappers):
        assemble.program(settings)
    return settings


def unnamed_code(path: Path, settings: Settings, env: str | None, wrappers: Sequence[str]) -> str:
    """Return the message about an environment or wrappers that are user code and that `env` and `wrappers` do not name;
    empty if there are none."""
    if envs.is_code(settings.env) and settings.env != env:
        got, flag = env or "none", f"--env {shlex.quote(settings.env)}"
        return f"env: expected the environment of {path}, which is user code, got {got}; pass {flag}"
    if any(map(envs.is_wrapper_code, settings.wrappers)) and tuple(wrappers) != settings.wrappers:
        got = " ".join(wrappers) or "none"
        flag = shlex.join([word for name in settings.wrappers for word in ("--wrapper", name)])
        return f"wrappers: expected the wrappers of {path}, which are user code, got {got}; pass {flag}"
    return ""


def _named(path: Path, env: str | None, wrappers: Sequence[str]) -> Settings:
    settings = _read(path, "config.json", partial(_read_settings, env=env, wrappers=wrappers))
    if message := unnamed_code(path, settings, env, wrappers):
        raise ValueError(message)
    _check_bytes(path, settings)
    return settings


def _check_bytes(path: Path, settings: Settings) -> None:
    """Raise ValueError for a run of version 0.1 whose uint8 observations were not divided by 255, as they are now.

    Version 0.1 divided only frames by 255.
    """
    version, spec = read_config(path)["versions"].get("fdqn"), assemble.env(settings).spec
    frames = len(spec.obs_shape) == 3 and min(spec.obs_shape[1:]) >= networks.SMALLEST_FRAME
    if version == "0.1.0" and spec.obs_dtype == torch.uint8 and not frames:
        raise ValueError(
            f"run: expected bytes divided by 255, as networks read them since fdqn 0.2, got {path} of fdqn {version}; "
            "train it again, or read it with that version"
        )


def _read_summary(file: Path, seeds: list[int] | None = None) -> dict[str, Any]:
    summary = json.loads(files.read(file, 2**24))
    check.kind("summary", summary, dict)
    if missing := set(SUMMARY) - set(summary):
        raise ValueError(f"expected {', '.join(sorted(missing))} too")
    for name, kind in SUMMARY.items():
        check.kind(name, summary[name], *(kind if isinstance(kind, tuple) else (kind,)))
    if seeds is not None and summary["seeds"] != seeds:
        raise ValueError(f"seeds: expected those of config.json, {seeds[0]} to {seeds[-1]}, got {summary['seeds']}")
    for name in ("env_kwargs", "wrappers"):
        if not all(isinstance(x, str) for x in _list(name, summary.get(name, []))):
            raise ValueError(f"{name}: expected strings, got {summary[name]}")
    if others := [seed for seed in summary["failed_seeds"] if seed not in summary["seeds"]]:
        raise ValueError(f"failed_seeds: expected some of the seeds, got {others}")
    for failure in summary["failures"]:
        if not isinstance(failure, dict) or failure.keys() != {"seed", "step", "cause"}:
            raise ValueError(f"failures: expected seed, step and cause of each, got {failure}")
    for name in ("final_return", "train_return", "gymnasium_return"):
        if name in summary:
            _check_returns(name, summary[name], len(summary["seeds"]))
            summary[name].setdefault("kind", _kind(summary[name]))  # missing in summaries of older versions
    return summary


def _list(name: str, value: Any) -> list[Any]:
    check.kind(name, value, list)
    return value


def _kind(record: dict[str, Any]) -> statistics.Kind | None:
    """Return the kind of interval in a summary of an older version: for fewer than 5 seeds the range of the seeds."""
    if record["low"] is None:
        return None
    return "range" if sum(x is not None for x in record["per_seed"]) < statistics.MIN_SEEDS else "interval"


def _check_returns(name: str, record: Any, seeds: int) -> None:
    """Raise ValueError or TypeError unless `record` has the fields of `returns_record`."""
    check.kind(name, record, dict)
    for part in ("iqm", "low", "high"):
        check.kind(f"{name}.{part}", record.get(part, "nothing"), *PERHAPS)
    check.kind(f"{name}.unfinished", record.get("unfinished", 0), int)
    check.kind(f"{name}.step_limit", record.get("step_limit"), int, *([] if record.get("unfinished") else [type(None)]))
    if record.get("kind") not in (None, *get_args(statistics.Kind)):
        raise ValueError(f"{name}.kind: expected 'interval', 'range' or null, got {record['kind']!r}")
    check.kind(f"{name}.per_seed", record.get("per_seed"), list)
    for value in record["per_seed"]:
        check.kind(f"{name}.per_seed", value, *PERHAPS)
    if len(record["per_seed"]) != seeds:
        raise ValueError(f"{name}.per_seed: expected {seeds} numbers, one per seed, got {len(record['per_seed'])}")
    if name == "gymnasium_return":
        check.kind(f"{name}.env", record.get("env"), str)


def _read_rows(file: Path, seeds: int) -> plots.Curve:
    curve = read_curve(file.parent)
    if curve.values.shape[1] != seeds:
        raise ValueError(f"expected rows of {seeds} seeds, got {curve.values.shape[1]}")
    return curve


def finite(params: Params) -> NDArray[np.bool_]:
    """Return bool [S], True for seeds whose parameters are all finite."""
    return torch.stack([x.isfinite().reshape(len(x), -1).all(1) for x in params.values()]).all(0).cpu().numpy()


def _json_number(x: Any) -> float | None:
    return float(x) if math.isfinite(x) else None
