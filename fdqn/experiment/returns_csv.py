"""CSV files of returns: those of other libraries, of a paper's table, or a plain list of numbers."""

import csv
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fdqn.report.plots import Curve
from fdqn.report.samples import Array
from fdqn.storage import files

RETURN_COLUMNS = ("return", "score", "episodic_return", "charts/episodic_return", "r", "value")
"""Columns that may hold the returns; the first of these that is there. The last three are those of CleanRL,
Stable-Baselines3 and TensorBoard."""

ARM_COLUMNS = ("exp_name", "name", "algorithm")
"""Columns that may divide a file into arms; the first of these that is there. In exports of CleanRL's runs, `name` is
different for each seed."""

STEP_COLUMNS = ("step", "global_step")
"""Columns that may hold environment steps; the first of these that is there."""

LARGEST = 1e70
"""Largest absolute value; fourth powers of larger ones, the squares of variances, overflow."""

LARGEST_STEP = 10**15
"""Largest step."""

# Steps of the curve of seeds that were recorded at different steps.
_CURVE_STEPS = 200


class Returns(NamedTuple):
    """Returns of the seeds of an arm in a CSV file."""

    arm: str
    """Value of the column that divides the file into arms; empty without such a column."""
    values: Array
    """[S]; NaN for a failed seed."""
    seeds: tuple[int | str, ...] | None
    """Names of the seeds; None without a column of seeds."""
    column: str
    """Source of the values, such as "column score"."""
    steps: int | None
    """Last step of the seeds, with a column of steps."""
    curve: Curve | None
    """Values by step, with a column of steps."""


def read(file: Path) -> list[Returns]:
    """Read the returns of the arms of a CSV file.

    With a header, one of `RETURN_COLUMNS` holds the returns, in any case of letters. Optional columns: `seed`; one of
    `ARM_COLUMNS`, which divides the file into arms; and one of `STEP_COLUMNS`, which makes learning curves, of which
    the last step of each seed is compared. Without a header, the file is one column or one row of returns. `nan` is the
    return of a failed seed. The separator is a comma, a semicolon or a tab.

    Raises ValueError, naming line and column, for a value that is missing or not a number; for a file that cannot be
    read, without such a column, with rows of other lengths, or with a seed that is there twice; and for the learning
    curve of one seed: steps without a column of seeds, or the episodes in a `monitor.csv` of Stable-Baselines3.
    """
    lines = table(file)
    if _are_numbers(lines[0][1]):
        return [Returns("", _headless(file, lines), None, "numbers without a header", None, None)]
    header, rows = [cell.lower() for cell in lines[0][1]], lines[1:]
    value, arm, seed, step = (
        next((x for x in columns if x in header), None)
        for columns in (RETURN_COLUMNS, ARM_COLUMNS, ("seed",), STEP_COLUMNS)
    )
    if value is None:
        raise ValueError(
            f"{file}: expected a column {', '.join(RETURN_COLUMNS)}, got {', '.join(header)[:100]}; rename the column "
            f"of the returns to {RETURN_COLUMNS[0]}"
        )
    if not rows:
        raise ValueError(f"{file}: expected rows, got only a header")
    if not seed and (step or {"r", "l", "t"} <= set(header)):
        raise ValueError(
            f"{file}: expected a column seed with the column{f' {step}' if step else 's r, l, t'}, got none; the "
            "learning curve of one seed cannot be compared, so join the files of all seeds and add their seeds"
        )
    for line, cells in rows:
        if cells in ([], [""]):
            _number(file, line, value, "")
        if len(cells) != len(header):
            raise ValueError(f"{file}: expected {len(header)} columns in line {line}, got {len(cells)}")
    groups: dict[str, dict[Any, dict[float, float]]] = {}
    for line, cells in rows:
        row = dict(zip(header, cells, strict=True))
        group = groups.setdefault(row[arm] if arm else "", {})
        this = seed_name(row[seed]) if seed else len(group)
        if this == "":
            raise ValueError(f"{file}: expected a seed in line {line}, column seed, got nothing")
        points = group.setdefault(this, {})
        at = _number(file, line, step, row[step]) if step else 0.0
        if step and not 0 <= at <= LARGEST_STEP:
            got = repr(row[step][:40])
            raise ValueError(
                f"{file}: expected a step from 0 to {LARGEST_STEP:g} in line {line}, column {step}, got {got}"
            )
        if at in points:
            where = f" at step {row[step]}" if step else ""
            raise ValueError(f"{file}: expected each seed once{where}, got seed {row[seed or '']} again in line {line}")
        points[at] = _number(file, line, value, row[value])
    return [_returns(group, points, value, seed is not None, step is not None) for group, points in groups.items()]


def _returns(name: str, points: dict[Any, dict[float, float]], column: str, named: bool, stepped: bool) -> Returns:
    """Return the values of each seed at its last step."""
    last = [max(by_step) for by_step in points.values()]
    values = np.array([by_step[step] for by_step, step in zip(points.values(), last, strict=True)])
    found = Returns(name, values, tuple(points) if named else None, f"column {column}", None, None)
    if not stepped:
        return found
    at = (
        "the last step"
        if min(last) == max(last)
        else f"the last step of each seed, {min(last):,.0f} to {max(last):,.0f}"
    )
    return found._replace(column=f"column {column} at {at}", steps=int(max(last)), curve=_curve(points))


def _curve(points: dict[Any, dict[float, float]]) -> Curve:
    """Return the values [P, S] at the steps of all seeds, or at equally spaced ones if these are many."""
    steps = np.array(sorted({step for by_step in points.values() for step in by_step}))
    if len(steps) > _CURVE_STEPS:
        steps = np.linspace(steps[-1] / _CURVE_STEPS, steps[-1], _CURVE_STEPS)
    values = np.full((len(steps), len(points)), np.nan)
    for column, by_step in enumerate(points.values()):
        at = np.array(sorted(by_step))
        index = np.searchsorted(at, steps, "right") - 1
        found = np.array([by_step[x] for x in at])
        values[:, column] = np.where(index >= 0, found[index], np.nan)
    return Curve(steps.astype(np.int64), values)


def table(file: Path) -> list[tuple[int, list[str]]]:
    """Read the rows of a CSV file with their line numbers. Blank lines at the end and before a header are dropped.

    Another blank line is a row without cells, because a writer may leave a missing number empty in a single column.

    Raises ValueError, naming the file, if it cannot be read or is empty.
    """
    try:
        text = files.read(file, 2**28).decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"arms: expected a run folder, a sweep's SWEEP:K or a CSV file, got {file}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: expected a CSV file, got bytes that are not UTF-8") from None
    except OSError as error:
        raise ValueError(f"{file}: expected a CSV file, got one that cannot be read: {error.strerror}") from None
    if text.startswith("#{"):  # the first line of a monitor.csv of Stable-Baselines3; line numbers stay
        text = "\n" + text.partition("\n")[2]
    first = text.lstrip().split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        lines = [(reader.line_num, [" ".join(cell.split()) for cell in _cells(cells)]) for cells in reader]
    except csv.Error as error:
        raise ValueError(f"{file}: expected a CSV file, got an error in line {reader.line_num}: {error}") from None
    while lines and not lines[-1][1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{file}: expected returns, got an empty file")
    start = next(i for i, (_, cells) in enumerate(lines) if cells)
    return lines if _are_numbers(lines[start][1]) else lines[start:]


def _cells(cells: list[str]) -> list[str]:
    """Return the cells of a line; none for a line of white space. The quoted empty text `""` is a cell."""
    return [] if len(cells) == 1 and cells[0].isspace() else cells


def _are_numbers(cells: list[str]) -> bool:
    """Return True if no cell is a text, as in a file without a header."""
    return all(_is_number(cell) or not cell for cell in cells)


def _headless(file: Path, lines: list[tuple[int, list[str]]]) -> Array:
    """Return the numbers of one column or one row."""
    widest = max(len(cells) for _, cells in lines)
    if widest > 1 and len(lines) > 1:
        raise ValueError(
            f"{file}: expected one column or one row of numbers without a header, got {len(lines)} rows and {widest} "
            f"columns; add a header with a column {RETURN_COLUMNS[0]}"
        )
    return np.array([_number(file, line, str(i + 1), x) for line, row in lines for i, x in enumerate(row or [""])])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(file: Path, line: int, column: str | None, cell: str) -> float:
    """Read a cell. Raises ValueError, naming line and column, for one that is empty, not a number, or too large."""
    if _is_number(cell):
        if math.isfinite(float(cell)) and abs(float(cell)) > LARGEST:
            raise ValueError(f"{file}: expected at most {LARGEST:g} in line {line}, column {column}, got {cell[:40]}")
        return float(cell)
    got = repr(cell[:40]) if cell else "nothing; write nan for a failed seed"
    raise ValueError(f"{file}: expected a number in line {line}, column {column}, got {got}")


def seed_name(cell: str) -> int | str:
    """Return the name of a seed in a cell: an int for a whole number, or the text."""
    return int(float(cell)) if _is_number(cell) and float(cell).is_integer() else cell
