"""Collect the results of runs as the data of a page: dicts of text, numbers, lists and arrays, without layout.

A page has:

    title, facts            the top of the page, the facts as pairs of a name and a value
    curves                  panels of learning curves, at most two for each environment (`_curves`)
    diagnostics             medians of loss, Q-values and gradient norm (`_diagnostics`)
    sweep                   effects of the varied settings (`_effects`); None for runs of one setting
    results, seeds          tables (`_table`): results of each run or setting, and a table of seeds for each run
    failures, settings      tables, None if empty
    machine                 table of versions, device and times
    videos, commands        recordings of episodes, and the commands that train the runs again
"""

import itertools
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fdqn.experiment import repeat, results, run_folder
from fdqn.experiment import settings as groups
from fdqn.experiment.population import Population
from fdqn.experiment.settings import Settings, Sweep
from fdqn.report import plots, sweeps

MAX_POINTS = 300
"""Maximum number of points of a learning curve."""

MAX_SEED_VALUES = 80_000
"""Maximum number of values in all curves of single seeds, separately for training and evaluations."""

MAX_SEEDS = 256
"""Maximum number of seeds of a run that are drawn as curves or listed in a table."""

DIAGNOSTICS = {"loss": "loss", "q": "mean Q-value", "grad_norm": "gradient norm"}
"""Columns of `metrics.csv` and their labels."""

Page = dict[str, Any]


class Video(NamedTuple):
    """A recording of episodes in a run folder."""

    name: str
    size: int
    """Bytes."""
    content: bytes | None
    """Content of the GIF; None if it is too large for a page."""


class RunData(NamedTuple):
    """A run folder, finished or not."""

    name: str
    """Name of the folder on the page."""
    settings: Settings
    config: dict[str, Any]
    """Content of `config.json`."""
    metrics: dict[str, plots.Curve]
    """Columns of `metrics.csv` [P, S]; empty before the first report."""
    evaluations: plots.Curve | None
    """Mean greedy returns [P, S] of evaluations during training, if there are any."""
    summary: dict[str, Any] | None
    """Content of `summary.json`; None before the end."""
    videos: tuple[Video, ...] = ()

    @property
    def steps(self) -> tuple[int, int]:
        """Environment steps per seed, trained and planned."""
        done = int(self.metrics["return"].steps[-1]) if self.metrics else 0
        return max(done, self.summary["steps"] if self.summary else 0), self.config["plan"]["steps"]

    @property
    def seeds(self) -> list[int]:
        """Seeds, or numbers of the learners of a sweep."""
        return (
            list(range(self.settings.learners))
            if isinstance(self.settings, Sweep)
            else [*range(self.settings.seed, self.settings.seed + self.settings.seeds)]
        )

    @property
    def failed(self) -> list[int]:
        """Failed seeds; before the summary is written, those with fewer updates than the others."""
        if self.summary is not None and self.summary["steps"] >= self.steps[0]:
            return self.summary["failed_seeds"]
        if not self.metrics:
            return []
        updates = self.metrics["updates"].values[-1]
        return [seed for seed, count in zip(self.seeds, updates, strict=True) if count < updates.max()]


class SweepData(NamedTuple):
    """A sweep of K settings with S seeds each, finished or not."""

    name: str
    programs: tuple[RunData, ...]
    names: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    scales: dict[str, Any]
    measure: str
    """Returns that rank the settings: "greedy", "training" or the name of a Gymnasium environment."""
    returns: NDArray[np.float64]
    """[K, S]; NaN for a failed seed."""
    rows: tuple[sweeps.Row, ...]
    """Settings, the best first."""
    curves: tuple[plots.Curve | None, ...]
    """Learning curve of each setting; None before the first report."""
    finished: bool
    eta: int = 0
    """Successive halving keeps the best 1/eta of the settings of a rung; 0 without halving."""


# Pages


def of_runs(runs: Sequence[RunData]) -> Page:
    """Return the page of one or several runs of one setting each. Raises ValueError for no runs."""
    if not runs:
        raise ValueError("runs: expected at least one, got none")
    return {
        "title": _title(runs),
        "facts": _run_facts(runs[0]) if len(runs) == 1 else [],
        "curves": _curves(runs),
        "diagnostics": _diagnostics(runs),
        "sweep": None,
        "results": _results(runs) if len(runs) > 1 else None,
        "seeds": [_seeds(run) for run in runs],
        **_records(runs),
        "commands": [(run.name, repeat.commands(run.settings, run.config["plan"]["steps"])) for run in runs],
    }


def of_sweep(found: SweepData) -> Page:
    """Return the page of a sweep."""
    first = found.programs[0].settings
    return {
        "title": f"{groups.task(first)}: sweep over {', '.join(found.names)}",
        "facts": _sweep_facts(found),
        "curves": [_setting_curves(found)] if any(curve is not None for curve in found.curves) else [],
        "diagnostics": None,
        # Members of populations change their values, and returns of dropped settings are those of shorter training.
        "sweep": None if found.eta or _evolves(found) else _effects(found),
        "results": _ranking(found),
        "seeds": [],
        **_records(found.programs),
        "commands": [(found.name, _sweep_commands(found))],
    }


def of_population(run: RunData, found: Population) -> Page:
    """Return the page of population based training: the ancestors of the best member of each seed."""
    settings, command = found.settings, repeat.command(found.settings)
    facts = [
        ("run", run.name),
        ("members per seed", f"{len(settings.varied):,}"),
        ("seeds", f"{settings.seeds:,}"),
        ("steps per seed", _progress([run])),
        ("population based training", f"every {settings.pbt_every:,} steps, {found.copies:,} copies"),
        (
            f"{found.measure} return of the best members, {results.interval_heading([found.estimate()])}",
            results.interval_text(found.estimate()),
        ),
    ]
    panels = [
        ("training returns", "training return", found.lineage()),
        *((name, name, curve) for name, curve in found.schedules().items()),
    ]
    of = "of the ancestors of the best member of each seed"
    return {
        "title": f"{groups.task(settings)}: population based training of {', '.join(found.values)}",
        "facts": facts,
        "curves": [
            {
                "title": f"{groups.task(settings)}: {title} {of}",
                "label": label,
                "curves": [_ancestors(run.name, found, curve)],
            }
            for title, label, curve in panels
            if curve.values.shape[1]
        ],
        "diagnostics": _diagnostics([run]),
        "sweep": None,
        "results": _best_members(found),
        "seeds": [],
        **_records([run]),
        "commands": [(run.name, [] if command is None or settings.scales else [command])],
    }


def _ancestors(name: str, found: Population, curve: plots.Curve) -> dict[str, Any]:
    seeds = [member["seed"] for member in found.best() if member["learner"] is not None][:MAX_SEEDS]
    single = _thinned(curve, max(2, MAX_SEED_VALUES // len(seeds)))
    return {
        **_estimates(name, curve),
        "seeds": seeds,
        "failed": [False] * len(seeds),
        "seed_steps": single.steps,
        "seed_values": single.values[:, : len(seeds)].T,
    }


def _best_members(found: Population) -> dict[str, Any]:
    """Return the table of the best member of each seed: its final hyper-parameters and its returns."""
    names, best = list(found.values), found.best()
    rows = [
        [
            member["seed"],
            "failed" if member["learner"] is None else member["learner"],
            *(sweeps.text(member["values"][name]) if member["values"] else "" for name in names),
            _number(member["train_return"]),
            _number(member["return"]),
        ]
        for member in best[:MAX_SEEDS]
    ]
    columns = ["seed", "learner", *names, "training return", f"{found.measure} return"]
    return _table("Best member of each seed", columns, rows, len(best), "summary.json")


def _records(runs: Sequence[RunData]) -> Page:
    """Return the parts of a page that all kinds of runs have."""
    return {
        "failures": _failures(runs),
        "settings": _settings(runs),
        "machine": _machine(runs),
        "videos": [(run.name, video) for run in runs for video in run.videos],
    }


def _title(runs: Sequence[RunData]) -> str:
    envs = list(dict.fromkeys(groups.task(run.settings) for run in runs))
    if len(runs) == 1:
        return f"{runs[0].settings.algorithm} on {envs[0]}"
    return f"{len(runs)} runs on {', '.join(envs)}"


def _run_facts(run: RunData) -> list[tuple[str, str]]:
    settings, summary = run.settings, run.summary
    facts = [("run", run.name), ("seeds", f"{settings.seeds:,}"), ("steps per seed", _progress([run]))]
    if summary is not None and run.steps[0] <= summary["steps"]:
        names = {"final_return": "greedy return", "train_return": "training return"}
        if "gymnasium_return" in summary:
            names["gymnasium_return"] = f"return in {summary['gymnasium_return']['env']}"
        for key, name in names.items():
            facts.append((f"{name}, {results.interval_heading([summary[key]])}", results.interval_text(summary[key])))
        if unfinished := results.unfinished_text(summary["final_return"]):
            facts.append(("unfinished episodes", unfinished))
    elif run.metrics:
        facts.append(("training return so far, IQM", _number(_last(run))))
    if failed := run.failed:
        facts.append(("failed seeds", f"{len(failed):,} of {len(run.seeds):,}, excluded from the means"))
    return facts


def _last(run: RunData) -> float:
    _, estimates = plots.summarised(_thinned(_usable(run, run.metrics["return"]), 1))
    return float(estimates[-1].iqm) if estimates else math.nan


def _evolves(found: SweepData) -> bool:
    settings = found.programs[0].settings
    return isinstance(settings, Sweep) and settings.pbt_every > 0


def _sweep_facts(found: SweepData) -> list[tuple[str, str]]:
    settings = found.programs[0].settings
    facts = [
        ("sweep", found.name),
        ("settings", f"{len(found.values):,}"),
        ("seeds per setting", f"{settings.seeds:,}"),
        ("steps per seed", _progress(found.programs[-1:] if found.eta else found.programs)),
        *([("successive halving", f"the best 1/{found.eta} of the settings of each rung")] if found.eta else []),
    ]
    if found.finished:
        facts.append(("result", sweeps.explanation(found.rows, found.name)))
    return facts


def _progress(runs: Sequence[RunData]) -> str:
    """Format the steps per seed, trained and planned. Of several programs, format the trained fraction of all steps."""
    if len(runs) > 1:
        done, planned = (sum(x) for x in zip(*(run.steps for run in runs), strict=True))
        return f"{runs[0].steps[1]:,}" if done >= planned else f"{runs[0].steps[1]:,} ({done / planned:.0%} trained)"
    done, planned = runs[0].steps
    return f"{done:,}" if done >= planned else f"{done:,} of {planned:,}"


# Curves


def _curves(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return panels of learning curves: training returns for each environment, and evaluations if there are any."""
    values = MAX_SEED_VALUES // len(runs)
    panels = []
    for env in dict.fromkeys(groups.task(run.settings) for run in runs):
        here = [run for run in runs if groups.task(run.settings) == env]
        for title, label, curves in (
            (f"{env}: training returns", "training return", [run.metrics.get("return") for run in here]),
            (f"{env}: greedy evaluations during training", "greedy return", [run.evaluations for run in here]),
        ):
            drawn = [_curve(run, curve, values) for run, curve in zip(here, curves, strict=True) if curve is not None]
            if drawn := [curve for curve in drawn if len(curve["steps"])]:
                of = f" of {drawn[0]['name']}" if len(drawn) == 1 < len(runs) else ""  # which the legend does not name
                panels.append({"title": title + of, "label": label, "curves": drawn})
    return panels


def _curve(run: RunData, curve: plots.Curve, values: int) -> dict[str, Any]:
    """Return a learning curve without failed seeds, and those of up to `MAX_SEEDS` seeds, `values` values in all."""
    drawn = run.seeds[:MAX_SEEDS]
    single = _thinned(curve, max(2, values // len(drawn)))
    return {
        **_estimates(run.name, _usable(run, curve)),
        "seeds": drawn,
        "failed": [seed in run.failed for seed in drawn],
        "seed_steps": single.steps,
        "seed_values": single.values[:, : len(drawn)].T,
    }


def _estimates(name: str, curve: plots.Curve) -> dict[str, Any]:
    drawn, estimates = plots.summarised(_thinned(curve, MAX_POINTS))
    return {
        "name": name,
        "steps": drawn.steps,
        "count": np.isfinite(drawn.values).sum(axis=1),
        "iqm": np.array([float(x.iqm) for x in estimates]),
        "low": np.array([float(x.low) for x in estimates]),
        "high": np.array([float(x.high) for x in estimates]),
        "kinds": [x.kind for x in estimates],
    }


def _usable(run: RunData, curve: plots.Curve) -> plots.Curve:
    """Return a curve without failed seeds."""
    failed = set(run.failed)
    return curve._replace(values=curve.values[:, [seed not in failed for seed in run.seeds]])


def _thinned(curve: plots.Curve, points: int) -> plots.Curve:
    """Return at most `points` evenly spaced steps of a curve, including the last."""
    if len(curve.steps) <= points:
        return curve
    kept = np.unique(np.linspace(len(curve.steps) - 1, 0, points).round().astype(np.int64))
    return plots.Curve(curve.steps[kept], curve.values[kept])


def _setting_curves(found: SweepData) -> dict[str, Any]:
    """Return the learning curves of the best settings, the median and the worst."""
    known = [row for row in found.rows if row.rank is not None and found.curves[row.setting] is not None]
    chosen = sorted({*range(min(5, len(known))), len(known) // 2, len(known) - 1} - {-1}) if known else []
    curves = []
    for row in (known[i] for i in chosen):
        curve = found.curves[row.setting]
        assert curve is not None
        kept = np.isfinite(found.returns[row.setting]) | (row.dropped is not None)
        curves.append(
            _estimates(f"{row.rank}: {_values_text(row.values)}", curve._replace(values=curve.values[:, kept]))
        )
    env = groups.task(found.programs[0].settings)
    title = f"{env}: training returns of the best settings, the median and the worst"
    legend = f"rank: {', '.join(found.names)}"
    return {"title": title, "label": "training return", "legend": legend, "curves": curves}


def _values_text(values: Iterable[Any]) -> str:
    return ", ".join(map(sweeps.text, values))


def _diagnostics(runs: Sequence[RunData]) -> dict[str, Any] | None:
    """Return the median over the seeds, with quartiles, of the columns in `DIAGNOSTICS`."""
    panels = []
    for column, label in DIAGNOSTICS.items():
        curves = [_quartiles(run.name, _usable(run, run.metrics[column])) for run in runs if column in run.metrics]
        if curves := [curve for curve in curves if len(curve["steps"])]:
            panels.append({"label": label, "curves": curves})
    return {"title": "Loss, Q-values and gradients", "panels": panels} if panels else None


def _quartiles(name: str, curve: plots.Curve) -> dict[str, Any]:
    curve = _thinned(curve, MAX_POINTS)
    seen = np.isfinite(curve.values).any(axis=1)
    steps, values = curve.steps[seen], curve.values[seen]
    low, median, high = np.nanquantile(values, [0.25, 0.5, 0.75], axis=1) if len(steps) else np.empty((3, 0))
    return {"name": name, "steps": steps, "low": low, "median": median, "high": high}


# Sweeps


def _effects(found: SweepData) -> dict[str, Any] | None:
    """Return the effect of each varied setting, and all settings for parallel coordinates; None if all failed."""
    data = sweeps.sweep(found.names, found.values, found.returns, None, found.scales)
    used = sweeps.varied(found.names, found.values) or found.names[:1]
    rows = sorted(found.rows, key=lambda row: row.setting)
    means = np.array([float(row.estimate.iqm) for row in rows])
    if np.isnan(means).all():
        return None
    axes = []
    for name, scale, column in zip(data.names, data.scales, zip(*data.values, strict=True), strict=True):
        if name not in used:
            continue
        levels = sweeps.marginal(data.names, data.values, data.returns, name)
        axes.append(
            {
                "name": name,
                "scale": scale,
                "column": list(column),
                "distinct": sweeps.distinct(column),
                "levels": [_level(level) for level in levels],
            }
        )
    return {
        "measure": f"{found.measure} return",
        "axes": axes,
        "means": means,
        "members": [bool(row.in_best_set) for row in rows],
        "labels": [_setting_text(data.names, row.values) for row in rows],
        "note": f"{len(rows):,} settings x {found.returns.shape[1]:,} seeds",
    }


def _setting_text(names: Iterable[str], values: Iterable[Any]) -> str:
    return ", ".join(f"{name} {sweeps.text(x)}" for name, x in zip(names, values, strict=True))


def _level(level: sweeps.Level) -> dict[str, Any]:
    iqm, low, high = (float(x) for x in level.estimate[:3])
    return {
        "value": level.value,
        "settings": len(level.settings),
        "iqm": iqm,
        "low": low,
        "high": high,
        "kind": level.estimate.kind,
    }


def _ranking(found: SweepData) -> dict[str, Any]:
    """Return the table of the settings, the best first."""
    heading = results.interval_heading([row.estimate._asdict() for row in found.rows])
    digits = sweeps.decimals([float(row.estimate.iqm) for row in found.rows])
    halved = any(row.dropped is not None for row in found.rows)
    marked = any(row.in_best_set for row in found.rows)
    rows = [
        [
            "" if row.rank is None else row.rank,
            row.setting,
            *map(sweeps.text, row.values),
            row.seeds,
            row.failed,
            "failed" if row.rank is None else _estimate_text(row, digits),
            *["yes" if row.in_best_set else ""] * marked,
            *["" if row.dropped is None else f"at {row.dropped:,}"] * halved,
        ]
        for row in found.rows[:MAX_SEEDS]
    ]
    columns = [
        "rank",
        "setting",
        *found.names,
        "seeds",
        "failed",
        heading,
        *["in best set"] * marked,
        *["dropped"] * halved,
    ]
    title = f"Settings by {found.measure} return"
    if _evolves(found):
        title = f"Members by {found.measure} return, with their initial values"
    return _table(title, columns, rows, len(found.rows), "settings.csv")


def _estimate_text(row: sweeps.Row, digits: int) -> str:
    return f"{float(row.estimate.iqm):.{digits}f} {sweeps.interval_text(row.estimate, digits)}".strip()


# Tables


def _table(title: str, columns: list[str], rows: list[list[Any]], total: int, file: str) -> dict[str, Any]:
    note = f"and {total - len(rows):,} more ({file})" if total > len(rows) else ""
    return {"title": title, "columns": columns, "rows": rows, "note": note}


def _results(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return a row for each run."""
    known = [run for run in runs if run.summary is not None]
    headings = [
        f"{name} {results.interval_heading([run.summary[key] for run in known if run.summary])}"
        for name, key in (("greedy", "final_return"), ("training", "train_return"))
    ]
    columns = ["run", "env", "algorithm", "seeds", "failed", "steps", *headings]
    rows = [
        [
            run.name,
            groups.task(run.settings),
            run.settings.algorithm,
            run.settings.seeds,
            len(run.failed),
            _progress([run]),
            *(
                results.interval_text(run.summary[key]) if run.summary else ""
                for key in ("final_return", "train_return")
            ),
        ]
        for run in runs
    ]
    return _table("Results", columns, rows, len(rows), "")


def _seeds(run: RunData) -> dict[str, Any]:
    """Return a row for each seed: returns, episodes, updates and failure."""
    summary = run.summary if run.summary is not None and run.summary["steps"] >= run.steps[0] else {}
    names = {"final_return": "greedy return", "train_return": "training return", "gymnasium_return": "in Gymnasium"}
    columns: dict[str, list[Any]] = {
        name: [_number(x) for x in summary[key]["per_seed"]] for key, name in names.items() if key in summary
    }
    if not summary and run.metrics:
        columns["training return"] = [_number(x) for x in run.metrics["return"].values[-1]]
    columns |= {
        name: [_number(x, 0) for x in run.metrics[name].values[-1]]
        for name in ("episodes", "updates")
        if name in run.metrics
    }
    failed = {seed: "failed" for seed in run.failed}
    if failed:
        columns["failure"] = [failed.get(seed, "") for seed in run.seeds]
    shown = list(zip(run.seeds, *columns.values(), strict=True))[:MAX_SEEDS]
    title = f"Seeds of {run.name}"
    return _table(title, ["seed", *columns], [list(row) for row in shown], len(run.seeds), "summary.json")


def _failures(runs: Sequence[RunData]) -> dict[str, Any] | None:
    """Return a row for each failed seed."""
    rows = [
        [run.name, failure["seed"], f"{failure['step']:,}", failure["cause"]]
        for run in runs
        for failure in (run.summary or {"failures": []})["failures"]
    ]
    known = {(row[0], row[1]) for row in rows}
    rows += [
        [run.name, seed, "", "no more updates"] for run in runs for seed in run.failed if (run.name, seed) not in known
    ]
    seed = "learner" if any(isinstance(run.settings, Sweep) for run in runs) else "seed"
    shown = rows[:MAX_SEEDS]
    return _table("Failures", ["run", seed, "step", "cause"], shown, len(rows), "summary.json") if rows else None


def _settings(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return two tables with a column for each run: settings that differ, and the other settings that are read.

    Several runs are compared with each other, a single run with the defaults of its algorithm.
    """
    columns = [_setting_values(run.settings) for run in runs]
    usual = _setting_values(groups.defaults(runs[0].settings.algorithm, runs[0].settings.noisy))
    differing: list[list[Any]] = []
    others: list[list[Any]] = []
    for name in columns[0]:
        values = [column[name] for column in columns]
        if not any(values):
            continue
        if len(runs) == 1:
            changed = values[0] != usual[name]
            (differing if changed else others).append([name, *values, usual[name]] if changed else [name, *values])
        else:
            (differing if len(set(values)) > 1 else others).append([name, *values])
    names = [run.name for run in runs]
    title = "Settings that differ from the defaults" if len(runs) == 1 else "Settings that differ between the runs"
    last = ["default"] if len(runs) == 1 else []
    return {
        "differing": _table(title, ["setting", *names, *last], differing, len(differing), "") if differing else None,
        "others": _table("Other settings", ["setting", *names], others, len(others), ""),
    }


def _setting_values(settings: Settings) -> dict[str, str]:
    """Format the settings, except the run folder; settings that the algorithm does not read become empty."""
    own = groups.to_json(settings)
    varied = set(settings.varied[0]) if isinstance(settings, Sweep) else set()
    texts = {}
    for name in (name for name in groups.to_json(groups.Settings()) if name != "out"):
        value = getattr(settings, name) if name not in varied else None
        texts[name] = "varied" if name in varied else run_folder.cell(value) or "none"
        if name in own and name not in varied and not groups.is_read(settings, name):
            texts[name] = ""
    return texts


def _machine(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return versions, device and times, a column for each run."""
    columns = [_machine_facts(run) for run in runs]
    names = list(dict.fromkeys(itertools.chain.from_iterable(columns)))
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    return _table("Machine and versions", ["", *(run.name for run in runs)], rows, len(rows), "")


def _machine_facts(run: RunData) -> dict[str, str]:
    config, summary = run.config, run.summary or {}
    found = {
        **config["versions"],
        "git commit": config.get("git"),
        "device": config.get("device"),
        "processor": config.get("processor"),
        "engine": config["engine"].get("engine"),
        "threads": config["engine"].get("threads"),
        "total time": _seconds(summary.get("wall_seconds")),
        "compile time": _seconds(summary.get("compile_seconds")),
        "seed-updates per second": _number(summary.get("seed_updates_per_second"), 0),
        "environment steps per second": _number(summary.get("env_steps_per_second"), 0),
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(x: float | None, digits: int | None = None) -> str:
    """Format a number; empty for None, NaN and infinity."""
    if x is None or not math.isfinite(x):
        return ""
    return f"{x:,.{1 if digits is None else digits}f}"


# Commands


def _sweep_commands(found: SweepData) -> list[str]:
    """Return the commands that train a sweep again and its best setting on fresh seeds.

    The first is omitted if the settings were drawn at random, because their ranges are not recorded.
    """
    merged = _merged(found)
    command = None if found.scales else repeat.command(merged)
    if command is not None and found.eta:
        command += f" --halving {found.eta}"
    best = (
        [f"fdqn train --best-of {shlex.quote(found.name)}"] if found.finished and found.rows[0].rank is not None else []
    )
    return [*([] if command is None else [command]), *best]


def _merged(found: SweepData) -> Sweep:
    """Return the settings of all programs of a sweep as one `Sweep`."""
    first = found.programs[0].settings
    varied = tuple(dict(zip(found.names, row, strict=True)) for row in found.values)
    own: Mapping[str, Any] = {name: getattr(first, name) for name in groups.to_json(groups.Settings())}
    return Sweep(**own, varied=varied, pbt_every=first.pbt_every if isinstance(first, Sweep) else 0)
