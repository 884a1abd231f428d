"""Write the page of run folders or a sweep as one HTML file. Reads folders of runs that still train, too."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fdqn.experiment import halving_plan, page_data, population, results, sweep_plan, sweep_results
from fdqn.experiment.page_data import RunData, SweepData, Video
from fdqn.experiment.settings import Sweep, from_json
from fdqn.report import page, plots, sweeps
from fdqn.storage import files

VIDEO_BYTES = 1_000_000
"""Maximum size of all recordings on a page in bytes, which keeps the page below 8 MB."""


def write(paths: Sequence[Path], file: Path, names: Sequence[str] | None = None) -> int:
    """Write the page of finished runs, or of one finished sweep, and return its size in bytes.

    The page embeds plotly.js, so that it needs no network.

    Args:
        paths: run folders of one setting each, or the folder of one sweep.
        file: HTML file to create; it must not exist.
        names: names of the folders on the page; by default the paths.

    Raises ValueError if plotly is missing, if the file exists or cannot be written, and for a folder that is not a
    finished run; no partial file is left.
    """
    _check_target(file)
    names = [str(path) for path in paths] if names is None else list(names)
    content = page.encoded(page.html(page_of(paths, names)))
    try:
        files.write(file, content)
    except OSError as error:
        raise ValueError(f"html: {error}") from None
    return len(content)


def _check_target(file: Path) -> None:
    """Raise ValueError unless a page can be written to `file`."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"html: expected a name that ends in .html, got {str(file)!r}")
    if os.path.lexists(file):
        raise ValueError(f"html: expected a file that does not exist yet, got {str(file)!r}; choose another --html")
    if not file.parent.is_dir():
        raise ValueError(f"html: expected a file in an existing folder, got {str(file)!r}; create {file.parent} first")


def page_of(paths: Sequence[Path], names: Sequence[str]) -> page_data.Page:
    """Return the data of the page of finished runs, or of one finished sweep.

    Raises ValueError for folders that are not finished runs, and for a sweep among several folders.
    """
    if len(paths) == 1 and population.is_population(paths[0]):
        return page_data.of_population(_read_run(paths[0], names[0]), population.read(paths[0]))
    if len(paths) == 1 and sweep_results.is_sweep(paths[0]):
        return page_data.of_sweep(_finished_sweep(paths[0], names[0]))
    for path in paths:
        if sweep_results.is_sweep(path):
            expected = "expected runs of one setting, or one sweep alone"
            raise ValueError(f"runs: {expected}, got several with the sweep {path}; use fdqn compare")
        results.read(path)  # checks all files
    return page_data.of_runs(
        [_with_videos(_read_run(path, name), path) for path, name in zip(paths, names, strict=True)]
    )


def current(path: Path, name: str) -> page_data.Page:
    """Return the data of the page of a run or a sweep as it is now, finished or not.

    Raises ValueError if the folder is neither, or if a file is damaged or in the middle of a write.
    """
    if not _is_sweep(path):
        return page_data.of_runs([_with_videos(_read_run(path, name), path)])
    try:
        if population.is_population(path):
            return page_data.of_population(_read_run(path, name), population.read(path))
        return page_data.of_sweep(_finished_sweep(path, name))
    except ValueError:
        return page_data.of_sweep(_unfinished_sweep(path, name))


def check_run(path: Path) -> None:
    """Raise ValueError unless a folder is a run or a sweep, finished or not."""
    if (path / "sweep.json").exists():
        sweep_plan.read(path)
    elif (path / halving_plan.FILE).exists():
        halving_plan.read(path)
    elif not program_folders(path):
        raise ValueError(f"run: expected a run folder, got {path} without config.json")
    elif (path / "config.json").exists():
        _read_settings(path)


def _is_sweep(path: Path) -> bool:
    """Return True if a folder is a sweep, also before its first program has started."""
    return sweep_results.is_sweep(path) or (path / "sweep.json").exists() or not (path / "config.json").exists()


def program_folders(path: Path) -> list[Path]:
    """Return the run folders of the programs of a sweep that have started, in their order."""
    if (path / "config.json").exists():
        return [path]
    numbered = sorted((int(x.name), x) for x in path.glob("*") if x.name.isdecimal()) if path.is_dir() else []
    return [folder for _, folder in numbered if (folder / "config.json").exists()]


# Runs


def _read_run(path: Path, name: str) -> RunData:
    """Read a run folder, finished or not. Raises ValueError if it is not a run folder or a file is damaged."""
    config, settings = _read_settings(path)
    found = RunData(name, settings, config, {}, None, results.read_summary(path))
    metrics = _columns(path / "metrics.csv", len(found.seeds))
    if metrics and not {"return", "updates", "episodes"} <= set(metrics):
        raise ValueError(f"run: expected columns return, updates and episodes in {path / 'metrics.csv'}, got others")
    evaluations = _columns(path / "evaluations.csv", len(found.seeds)).get("return")
    return found._replace(metrics=metrics, evaluations=evaluations)


def _read_settings(path: Path) -> tuple[dict[str, Any], Any]:
    config = results.read_config(path)
    try:
        return config, from_json(config["settings"])
    except ValueError as error:
        raise ValueError(
            f"run: expected a run folder, got {path} with a config.json that is invalid: {error}"
        ) from None


def _columns(file: Path, seeds: int) -> dict[str, plots.Curve]:
    """Read the columns [P, S] of a CSV file, without an incomplete last report; {} if the file does not exist."""
    try:
        content = files.read(file).decode()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"run: expected rows in {file}, got a file that cannot be read: {error}") from None
    rows = list(csv.reader(io.StringIO(content[: content.rfind("\n") + 1], newline="")))
    if len(rows) < 2:
        return {}
    columns, body = rows[0], rows[1:]
    try:
        table = np.array([[float(x or "nan") for x in row] for row in body], dtype=np.float64)
        at = columns.index("step")
    except ValueError as error:
        raise ValueError(f"run: expected rows of numbers in {file}, got others: {error}") from None
    whole = len(table) // seeds * seeds  # a report that is being written has fewer rows than seeds
    if not whole:
        return {}
    parts = table[:whole].reshape(-1, seeds, len(columns))
    steps = np.nan_to_num(parts[:, 0, at]).clip(0, 2**53).astype(np.int64)
    if (parts[:, :, at] != steps[:, None]).any():
        raise ValueError(f"run: expected a row for each of {seeds} seeds at each step in {file}, got others")
    return {name: plots.Curve(steps, parts[:, :, i]) for i, name in enumerate(columns) if name != "step"}


def _with_videos(run: RunData, path: Path) -> RunData:
    """Add the recordings in a run folder, without the content of those that would make the page too large."""
    videos, remaining = [], VIDEO_BYTES
    for file in sorted(path.glob("*.gif")):
        try:
            size = file.stat().st_size
            content = files.read(file, remaining) if size <= remaining else None
        except (OSError, ValueError):  # removed, or not a plain file
            continue
        remaining -= size if content is not None else 0
        videos.append(Video(file.name, size, content))
    return run._replace(videos=tuple(videos))


# Sweeps


def _finished_sweep(path: Path, name: str) -> SweepData:
    found = sweep_results.read(path)
    programs = tuple(_read_run(folder, folder.name if folder != path else name) for folder in program_folders(path))
    eta = 0 if found.halving is None else found.halving.eta
    done = eta > 0 or all(run.steps[0] >= run.steps[1] or len(run.failed) == len(run.seeds) for run in programs)
    return SweepData(
        name,
        programs,
        found.names,
        found.values,
        dict(found.scales),
        found.measure,
        found.returns,
        found.ranking(),
        found.curves,
        done,
        eta,
    )


def _unfinished_sweep(path: Path, name: str) -> SweepData:
    """Rank the settings of a sweep by their training returns so far."""
    programs = tuple(_read_run(folder, folder.name if folder != path else name) for folder in program_folders(path))
    if not programs or not all(isinstance(run.settings, Sweep) for run in programs):
        raise ValueError(f"sweep: expected the folder of a sweep, got {path}")
    curves = _curves_by_values(programs)
    first = programs[0].settings
    assert isinstance(first, Sweep)
    names, values, scales = tuple(first.varied[0]), tuple(curves), dict(first.scales)
    if (path / "sweep.json").exists():
        plan = sweep_plan.read(path)
        names, values, scales = plan.names, plan.values, dict(plan.scales)
    found = [curves.get(row) for row in values]
    returns = np.array([_last(curve, first.seeds) for curve in found])
    rows = sweeps.ranking(names, values, returns)
    eta = halving_plan.read(path).eta if (path / halving_plan.FILE).exists() else 0
    return SweepData(name, programs, names, values, scales, "training", returns, rows, tuple(found), False, eta)


def _curves_by_values(programs: Sequence[RunData]) -> dict[tuple[Any, ...], plots.Curve | None]:
    """Return the learning curves of the settings; a later program of the same setting continues its curve."""
    curves: dict[tuple[Any, ...], plots.Curve | None] = {}
    for run in programs:
        assert isinstance(run.settings, Sweep)
        seeds, whole = run.settings.seeds, run.metrics.get("return")
        for k, own in enumerate(run.settings.varied):
            values, before = tuple(own.values()), curves.get(tuple(own.values()))
            part = None if whole is None else whole._replace(values=whole.values[:, k * seeds : (k + 1) * seeds])
            curves[values] = _continued(before, part)
    return curves


def _continued(before: plots.Curve | None, after: plots.Curve | None) -> plots.Curve | None:
    if before is None or after is None:
        return before if after is None else after
    kept = before.steps < after.steps[0]
    steps = np.concatenate([before.steps[kept], after.steps])
    return plots.Curve(steps, np.concatenate([before.values[kept], after.values]))


def _last(curve: plots.Curve | None, seeds: int) -> Any:
    """Return the last known return [S] of each seed."""
    if curve is None:
        return np.full(seeds, np.nan)
    seen, _ = plots.summarised(curve)
    return seen.values[-1] if len(seen.steps) else np.full(seeds, np.nan)
