"""Results of a sweep as data: the ranking of its settings, the effect of each varied value, the picture to draw.

A sweep has K settings with S seeds each. A setting is one combination of values. `names` are the N varied names, such
as `("learning_rate", "gamma")`, `values` has a row of N values for each setting, and `returns` [K, S] a return for each
seed. A return that is not finite belongs to a failed seed, which is excluded from all means.
"""

import math
import shlex
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fdqn.report import plots, samples, statistics

Value = float | int | str | bool | tuple[Any, ...] | None
"""A value of a varied name; a tuple for sizes of hidden layers."""

Scale = Literal["log", "linear", "category"]

LEVELS = 16
"""Maximum number of values of a name that are reported one by one; more are grouped into bins."""

MIN_LOG_RATIO = 4
"""Minimum ratio of the largest to the smallest of three or more values for a logarithmic axis."""

MIN_LOG_RATIO_OF_TWO = 30
"""The same ratio for two values, which have no spacing to compare with that of a linear axis."""

# Tick labels of neighbours that are closer than this fraction of the axis would overlap.
_CROWDED = 0.12


SELECTED = "the best setting was selected on these seeds, so its return is biased upwards"
"""Caption of pictures of a ranking; see `is_selected`."""


class BestSet(Protocol):
    """Settings that are indistinguishable from the best, as `comparisons.selection` returns them."""

    @property
    def frequency(self) -> NDArray[np.float64]:
        """Fraction [K] of the resamples in which a setting is the best."""

    @property
    def members(self) -> NDArray[np.bool_]:
        """True [K] for the settings in the set."""


class Sweep(NamedTuple):
    """Settings and returns of a sweep, checked by `sweep`."""

    names: tuple[str, ...]
    values: tuple[tuple[Value, ...], ...]
    returns: NDArray[np.float64]
    selection: BestSet | None
    scales: tuple[Scale, ...]
    """Scale of the axis of each name."""
    curves: tuple[plots.Curve, ...] | None
    """Learning curve of each setting."""


class Row(NamedTuple):
    """One setting of a ranking."""

    rank: int | None
    """1 for the highest interquartile mean; equal means have equal ranks; None if all seeds failed."""
    setting: int
    """Index of the setting in the sweep."""
    values: tuple[Value, ...]
    seeds: int
    """Number of seeds, including failed ones."""
    failed: int
    estimate: statistics.Interval
    """Interquartile mean [] of the seeds that did not fail, with its interval."""
    in_best_set: bool | None
    """True if the setting is indistinguishable from the best; None without a selection."""
    frequency: float | None
    """Fraction of the resamples in which the setting is the best; None without a selection."""
    dropped: int | None = None
    """Environment step at which successive halving dropped the setting; None if it did not. The estimate of a dropped
    setting is that of its training returns."""


class Level(NamedTuple):
    """All settings with one value of a name, or with values in one bin."""

    value: Value
    """The value, or the median of the values in the bin."""
    settings: tuple[int, ...]
    estimate: statistics.Interval
    """Interquartile mean [] over all seeds of these settings, with its interval."""
    best: int | None
    """The setting with the highest interquartile mean; None if all seeds failed."""


def sweep(
    names: Sequence[str],
    values: Sequence[Sequence[Any]],
    returns: ArrayLike,
    selection: BestSet | None = None,
    scales: Mapping[str, Scale] | None = None,
    curves: Sequence[plots.Curve] | None = None,
) -> Sweep:
    """Check the data of a sweep and return them as one record.

    Args:
        names: the N names that were varied.
        values: K rows of N values; lists become tuples, and NumPy scalars become Python scalars.
        returns: returns [K, S]; NaN for a failed seed.
        selection: the settings that are indistinguishable from the best.
        scales: scales of axes by name, such as "log" for values drawn on a logarithmic scale. Others are chosen by
            `scale`.
        curves: K learning curves.

    Raises ValueError for shapes that do not fit, a name or a setting that occurs twice, an unknown name in `scales`,
    and a logarithmic scale for values that are not positive; TypeError for returns that are not numbers.
    """
    names, scales = tuple(names), dict(scales or {})
    rows = tuple(tuple(map(_plain, row)) for row in values)
    if not names or not rows:
        raise ValueError(f"values: expected at least one setting of at least one name, got {len(rows)} of {len(names)}")
    _check_once("names", names, "name")
    for i, row in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(f"values: expected {len(names)} values in each row, got {len(row)} in row {i}")
    _check_once("values", [tuple(map(_key, row)) for row in rows], "setting", rows)
    try:
        table = np.asarray(returns, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"returns: expected an array of numbers, got {str(returns)[:60]}") from None
    if table.ndim != 2 or table.shape[0] != len(rows) or not table.shape[1]:
        raise ValueError(f"returns: expected shape [{len(rows)}, seeds], got {list(table.shape)}")
    shapes = [] if selection is None else [np.shape(selection.frequency), np.shape(selection.members)]
    if any(shape != (len(rows),) for shape in shapes):
        raise ValueError(f"selection: expected frequency and members [{len(rows)}], got {shapes}")
    if curves is not None and len(curves) != len(rows):
        raise ValueError(f"curves: expected {len(rows)}, one for each setting, got {len(curves)}")
    for i, curve in enumerate(curves or ()):
        if np.shape(curve.values) != (len(curve.steps), table.shape[1]):
            expected = [len(curve.steps), table.shape[1]]
            raise ValueError(f"curves: expected values {expected}, got {list(np.shape(curve.values))} in curve {i}")
    if unknown := set(scales) - set(names):
        raise ValueError(f"scales: expected names of the sweep, {', '.join(names)}, got {min(unknown)!r}")
    chosen = tuple(
        scale(column, scales.get(name), name) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    )
    return Sweep(names, rows, table, selection, chosen, None if curves is None else tuple(curves))


def ranking(
    names: Sequence[str], values: Sequence[Sequence[Any]], returns: ArrayLike, selection: BestSet | None = None
) -> tuple[Row, ...]:
    """Sort the settings by the interquartile mean of their seeds, the highest first.

    Settings with equal means have the same rank; among them those with fewer failed seeds come first, then those with
    lower values. Settings whose seeds have all failed come last and have no rank. Raises as `sweep` does.
    """
    data = sweep(names, values, returns, selection)
    failed = (~np.isfinite(data.returns)).sum(axis=1)
    found = estimates(data.returns)
    means = np.array([float(estimate.iqm) for estimate in found])

    def order(i: int) -> tuple[Any, ...]:
        return (np.isnan(means[i]), 0.0 if np.isnan(means[i]) else -means[i], failed[i], *map(_key, data.values[i]))

    def row(i: int) -> Row:
        rank = None if np.isnan(means[i]) else 1 + int((means > means[i]).sum())
        in_best = None if selection is None else bool(selection.members[i])
        frequency = None if selection is None else float(selection.frequency[i])
        seeds = data.returns.shape[1]
        return Row(rank, i, data.values[i], seeds, int(failed[i]), found[i], in_best, frequency)

    return tuple(row(i) for i in sorted(range(len(means)), key=order))


def dropped(setting: int, values: Sequence[Value], returns: Sequence[float], rank: int, step: int) -> Row:
    """Return the row of a setting that successive halving dropped at a step.

    `returns` [S] are its training returns at that step, NaN for seeds without one. A setting without returns, such as
    one whose seeds have all failed, has no rank.
    """
    (estimate,) = estimates(np.asarray(returns, dtype=np.float64)[None])
    found = None if np.isnan(estimate.iqm) else rank
    return Row(found, setting, tuple(values), len(returns), 0, estimate, None, None, step)


def estimates(returns: NDArray[np.float64]) -> list[statistics.Interval]:
    """Compute `statistics.interval` of the finite returns in each row [K, S].

    Rows with the same number of finite returns use the same resamples and are computed together. The result for a row
    does not depend on the others.
    """
    alive = np.isfinite(returns)
    counts, found = alive.sum(axis=1), {}
    for count in np.unique(counts):
        here = np.flatnonzero(counts == count)
        each = statistics.interval(returns[here][alive[here]].reshape(len(here), count))
        for j, i in enumerate(here):
            found[int(i)] = statistics.Interval(each.iqm[j], each.low[j], each.high[j], each.kind)
    return [found[i] for i in range(len(returns))]


def marginal(names: Sequence[str], values: Sequence[Sequence[Any]], returns: ArrayLike, name: str) -> tuple[Level, ...]:
    """Group the settings by their value of one name, in ascending order, and summarise each group.

    The interquartile mean of a group is that of all its seeds together. A name with more than 16 different numbers,
    such as one drawn at random, is grouped into up to 8 bins with about equal numbers of values.

    The bootstrap of the interval depends on the sweep. On a full grid, groups differ only in their value, so seeds are
    resampled within each setting, as rliable does within each task. Otherwise the settings of a group are themselves a
    sample, so whole settings are resampled with their seeds. If a setting has fewer than 5 seeds (on a grid), or a
    group has fewer than 5 settings (otherwise), the ends are the range of the seeds.

    Raises ValueError for a name that is not in `names`, and as `sweep` does.
    """
    data = sweep(names, values, returns)
    if name not in data.names:
        raise ValueError(f"name: expected one of {', '.join(data.names)}, got {name!r}")
    column = [row[data.names.index(name)] for row in data.values]
    means = _iqms(data.returns)
    columns = list(zip(*data.values, strict=True))
    resampled = _within_settings if math.prod(len(distinct(x)) for x in columns) == len(column) else _whole_settings

    def level(value: Value, group: Sequence[int]) -> Level:
        settings = sorted(group, key=lambda i: tuple(map(_key, data.values[i])))  # independent of their order
        alive = [i for i in settings if not np.isnan(means[i])]
        best = max(alive, key=lambda i: means[i]) if alive else None
        return Level(value, tuple(settings), _pooled(data.returns[alive], resampled), best)

    return tuple(level(value, group) for value, group in groups(column))


def groups(column: Sequence[Value]) -> list[tuple[Value, list[int]]]:
    """Group indices by value in ascending order, or more than 16 different numbers into up to 8 bins.

    A bin is named by the median of its values.
    """
    column, values = list(map(_plain, column)), distinct(column)
    bins: list[list[Value]] = [[value] for value in values]
    if len(values) > LEVELS and _numeric(values):
        parts = np.array_split(np.arange(len(values)), min(8, len(column) // 6))
        bins = [[values[i] for i in part] for part in parts]
    number = {_key(value): n for n, found in enumerate(bins) for value in found}
    groups: list[list[int]] = [[] for _ in bins]
    for i, value in enumerate(column):
        groups[number[_key(value)]].append(i)
    return [(found[0] if len(found) == 1 else _median(found), group) for found, group in zip(bins, groups, strict=True)]


def _median(numbers: Sequence[Any]) -> float:
    return float(np.median(np.array(numbers, dtype=np.float64)))


def distinct(column: Iterable[Value]) -> list[Value]:
    """Return the distinct values in ascending order: None, booleans, numbers, strings, tuples."""
    return [value for _, value in sorted({_key(value): value for value in map(_plain, column)}.items())]


def scale(values: Sequence[Value], given: Scale | None = None, name: str = "scale") -> Scale:
    """Return the scale of the axis for the values of a name, or check the given one.

    Strings, tuples and booleans are categories, and so is a single number. Positive numbers are placed on a logarithmic
    axis if this spaces them more evenly than a linear one and the largest is at least 4 times the smallest (30 times
    for two numbers). A few numbers that would lie too close together on the axis, such as 0.9, 0.99 and 0.999, are
    categories, which are evenly spaced.

    Raises ValueError for a given scale that does not fit: "log" for numbers that are not positive, "log" or "linear"
    for values that are not numbers.
    """
    found = distinct(values)
    if given is not None:
        return _checked(given, found, name)
    if not _numeric(found) or len(found) < 2:
        return "category"
    numbers = np.array(found, dtype=np.float64)
    if _is_log(numbers):
        return "category" if _is_crowded(np.log(numbers)) else "log"
    return "category" if _is_crowded(numbers) else "linear"


def varied(names: Sequence[str], values: Sequence[Sequence[Any]]) -> tuple[str, ...]:
    """Return the names with at least two distinct values."""
    columns = zip(*values, strict=True)
    return tuple(name for name, column in zip(names, columns, strict=True) if len(distinct(column)) > 1)


def overview(
    names: Sequence[str], values: Sequence[Sequence[Any]]
) -> Literal["sensitivity", "heat map", "scatter", "parallel coordinates"]:
    """Return the kind of picture that shows all settings of a sweep.

    For one varied name, the picture of its sensitivity shows all settings. Two are drawn as a heat map, or as a scatter
    plot if more than half of the cells would be empty or one has more than 16 values. Three or more are drawn as
    parallel coordinates.
    """
    used = [i for i, name in enumerate(names) if name in varied(names, values)]
    if len(used) < 2:
        return "sensitivity"
    if len(used) > 2:
        return "parallel coordinates"
    sizes = [len(distinct(row[i] for row in values)) for i in used]
    return "heat map" if max(sizes) <= 16 and 2 * len(values) >= math.prod(sizes) else "scatter"


def text(value: Any) -> str:
    """Format a value: `3e-4`, `0.99`, `120-84` for hidden sizes, `on` or `off`.

    Numbers with more than six digits, such as those drawn from a range, are rounded to four.
    """
    value = _plain(value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    if isinstance(value, tuple):
        return "-".join(map(text, value)) or "none"
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    rounded = float(f"{value:.6g}")
    rounded = rounded if rounded == value else float(f"{value:.4g}")
    if rounded == 0 or 1e-2 <= abs(rounded) < 1e6:
        return f"{rounded:.10g}"
    mantissa, exponent = f"{rounded:.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def interval_text(estimate: statistics.Interval, digits: int) -> str:
    """Format the ends of an interval as `[389, 452]` and those of a range as `[range 389, 452]`."""
    if estimate.kind is None:
        return ""
    ends = f"{float(estimate.low):.{digits}f}, {float(estimate.high):.{digits}f}"
    return f"[range {ends}]" if estimate.kind == "range" else f"[{ends}]"


def explanation(rows: Sequence[Row], path: str = "SWEEP") -> str:
    """Explain a ranking: the settings indistinguishable from the best, and why the best needs fresh seeds."""
    if dropped := [row for row in rows if row.dropped is not None]:
        return _explained_halving([row for row in rows if row.dropped is None], dropped, path)
    finished, members = sum(row.rank is not None for row in rows), sum(bool(row.in_best_set) for row in rows)
    if not finished and any(row.failed < row.seeds for row in rows):
        return f"No setting has a return, so none is the best; continue with: fdqn resume {shlex.quote(path)}"
    if not finished:
        return "All seeds of all settings failed, so no setting is the best."
    words = []
    if members and len(rows) > 1 and few_seeds(rows):
        words += [
            f"The best set has {members} of {len(rows)} settings, which may be too few, because the bootstrap of fewer "
            f"than {statistics.MIN_SEEDS} seeds underestimates the spread of returns."
        ]
    elif members > 1:
        words += [
            f"{members} of {len(rows)} settings are indistinguishable from the best with these seeds (the best set)."
        ]
    elif members and len(rows) > 1:
        words += [f"The best of {len(rows)} settings is distinguishable from all others with these seeds."]
    if is_selected(rows):
        words += [
            "The return of the best setting is biased upwards, because it was selected on these seeds; train it again "
            f"on fresh seeds with: fdqn train --best-of {shlex.quote(path)}"
        ]
    return " ".join(words)


def _explained_halving(last: Sequence[Row], dropped: Sequence[Row], path: str) -> str:
    """Explain a ranking after successive halving, where the best set is a subset of the last rung."""
    *first, end = [f"{step:,}" for step in sorted({row.dropped or 0 for row in dropped})]
    when = f"steps {', '.join(first)} and {end}" if first else f"step {end}"
    why = "lower training returns or failed seeds" if any(row.failed for row in dropped) else "lower training returns"
    return (
        f"{len(dropped)} settings were dropped at {when} for {why}; the others are the {len(last)} settings of "
        "the last rung. " + explanation(last, path)
    )


def is_selected(rows: Sequence[Row]) -> bool:
    """Return True if the best setting was selected among several, which biases its return on these seeds upwards."""
    return sum(row.rank is not None for row in rows) > 1


def few_seeds(rows: Sequence[Row]) -> bool:
    """Return True if every setting has fewer than 5 seeds that did not fail, too few for a bootstrap."""
    return max((row.seeds - row.failed for row in rows), default=0) < statistics.MIN_SEEDS


def decimals(numbers: ArrayLike) -> int:
    """Return the decimals, from 0 to 4, that show the spread of the finite numbers with two digits."""
    finite = np.asarray(numbers, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    spread = float(np.ptp(finite)) if finite.size else 0.0
    return 1 if spread == 0 else int(np.clip(1 - math.floor(math.log10(spread)), 0, 4))


_RESAMPLES = 500


def _pooled(
    rows: NDArray[np.float64], resampled: Callable[[NDArray[np.float64]], NDArray[np.float64] | None]
) -> statistics.Interval:
    """Compute the interquartile mean of all finite returns [M, S], with an interval or the range."""
    if len(rows) <= 1:
        return statistics.interval(rows.ravel())
    seeds = rows[np.isfinite(rows)]
    iqm, drawn = statistics.iqm(seeds), resampled(rows)
    if drawn is None:
        return statistics.Interval(iqm, seeds.min(), seeds.max(), "range")
    low, high = np.quantile(_iqms(drawn), [0.025, 0.975])
    return statistics.Interval(iqm, low, high, "interval")


def _within_settings(rows: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Resample the finite returns within each row to [R, N]; None if a row has fewer than 5."""
    strata, rng = [row[np.isfinite(row)] for row in rows], np.random.default_rng(0)
    if min(map(len, strata)) < statistics.MIN_SEEDS:
        return None
    return np.concatenate([x[rng.integers(0, len(x), (_RESAMPLES, len(x)))] for x in strata], axis=1)


def _whole_settings(rows: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Resample rows to [R, M * S]; None for fewer than 5 rows."""
    if len(rows) < statistics.MIN_SEEDS:
        return None
    return rows[np.random.default_rng(0).integers(0, len(rows), (_RESAMPLES, len(rows)))].reshape(_RESAMPLES, -1)


def _iqms(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the interquartile means [R] of the finite numbers of rows [R, N]; NaN for a row without any."""
    return samples.iqm(np.where(np.isfinite(values), values, np.nan))


def _plain(value: Any) -> Value:
    """Convert NumPy scalars to Python scalars, and lists to tuples."""
    if isinstance(value, np.generic):
        value = value.item()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _key(value: Value) -> tuple[Any, ...]:
    """Return a key that sorts values of any type: None, booleans, numbers, strings, tuples."""
    if value is None:
        return (0,)
    if isinstance(value, bool):
        return (1, value)
    if isinstance(value, int | float):
        return (2, value)
    return (4, *map(_key, value)) if isinstance(value, tuple) else (3, str(value))


def _numeric(column: Sequence[Value]) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in column)


def _is_log(numbers: NDArray[np.float64]) -> bool:
    """Return True if sorted numbers are spaced more evenly on a logarithmic axis than on a linear one."""
    if numbers[0] <= 0:
        return False
    ratio = numbers[-1] / numbers[0]
    if len(numbers) == 2:
        return bool(ratio >= MIN_LOG_RATIO_OF_TWO)
    return bool(ratio >= MIN_LOG_RATIO and _unevenness(np.log(numbers)) < _unevenness(numbers))


def _unevenness(numbers: NDArray[np.float64]) -> float:
    """Return the largest distance of sorted numbers from evenly spaced ones, as a fraction of their range."""
    at = (numbers - numbers[0]) / (numbers[-1] - numbers[0])
    return float(np.abs(at - np.linspace(0, 1, len(at))).max())


def _is_crowded(numbers: NDArray[np.float64]) -> bool:
    """Return True if tick labels at these few sorted numbers would overlap."""
    least = min(_CROWDED, 0.4 / (len(numbers) - 1)) * (numbers[-1] - numbers[0])
    return len(numbers) <= LEVELS and bool((np.diff(numbers) < least).any())


def _checked(given: Scale, found: Sequence[Value], name: str) -> Scale:
    if given not in ("log", "linear", "category"):
        raise ValueError(f"{name}: expected the scale 'log', 'linear' or 'category', got {given!r}")
    if given != "category" and not _numeric(found):
        raise ValueError(f"{name}: expected numbers for the scale {given!r}, got {text(found[-1])}; use 'category'")
    if given == "log" and not _key(found[0]) > _key(0):
        raise ValueError(f"{name}: expected positive numbers for the scale 'log', got {text(found[0])}; use 'linear'")
    return given


def _check_once(argument: str, keys: Sequence[Hashable], what: str, shown: Sequence[Any] | None = None) -> None:
    """Raise ValueError, with both positions, if a key occurs twice."""
    first: dict[Hashable, int] = {}
    for i, key in enumerate(keys):
        if key in first:
            got = (shown or keys)[i]
            words = ", ".join(map(text, got)) if isinstance(got, tuple) else repr(got)
            raise ValueError(f"{argument}: expected each {what} once, got {words} at {first[key]} and {i}")
        first[key] = i
