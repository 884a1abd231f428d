"""Rankings, marginals and scales of sweeps: laws of the ranking with planted bugs, and bootstraps written by hand."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats

from fdqn.cli import tables
from fdqn.report import statistics, sweeps

NAMES = ("learning_rate", "gamma")
DRAWN = np.random.default_rng(0).uniform(size=64)
GRID = list(itertools.product([1e-4, 3e-4, 1e-3, 3e-3], [0.97, 0.99, 0.999]))


class Selection(NamedTuple):
    frequency: np.ndarray
    members: np.ndarray


def returns(settings=12, seeds=16, seed=0):
    """Draw returns of settings with different means and skewed seeds; some failed."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(rng.uniform(100, 400, (settings, 1)), 30, (settings, seeds)) - rng.exponential(
        60, (settings, seeds)
    )
    drawn[1, seeds // 5] = drawn[4, : seeds // 2 + 1] = np.nan
    drawn[settings // 2 + 1] = np.nan
    return drawn.round()


def selection_of(table):
    members = np.arange(len(table)) % 3 == 0
    return Selection(members / members.sum(), members)


def content(row):
    """Return everything in a row but the index of its setting, with NaN equal to itself."""
    estimate = tuple(str(np.asarray(x).item()) for x in row.estimate[:3])
    return (row.rank, row.values, row.seeds, row.failed, estimate, row.estimate.kind, row.in_best_set, row.frequency)


def law_permutation(ranking):
    """Permute the settings: the rows are the same, and their indices are permuted."""
    table = returns()
    table[5] = table[2] = 250.0
    chosen, order = selection_of(table), np.random.default_rng(1).permutation(len(table))
    before = ranking(NAMES, GRID, table, chosen)
    moved = Selection(chosen.frequency[order], chosen.members[order])
    after = ranking(NAMES, [GRID[i] for i in order], table[order], moved)
    assert [content(row) for row in before] == [content(row) for row in after]
    assert [row.setting for row in before] == [order[row.setting] for row in after]


def law_shift(ranking):
    """Add a constant: the order stays, and estimates and the ends of their intervals move by the constant."""
    before, after = ranking(NAMES, GRID, returns()), ranking(NAMES, GRID, returns() + 1000)
    assert [(row.rank, row.setting) for row in before] == [(row.rank, row.setting) for row in after]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(np.array(one.estimate[:3], float) + 1000, np.array(other.estimate[:3], float))


def law_failed(ranking):
    """Omit failed seeds: each setting has the estimate of its other seeds, and settings without any come last."""
    table = returns()
    rows = ranking(NAMES, GRID, table)
    for row in rows:
        alive = table[row.setting][np.isfinite(table[row.setting])]
        assert (row.seeds, row.failed) == (16, 16 - len(alive))
        alone = statistics.interval(alive)
        np.testing.assert_array_equal(np.array(row.estimate[:3], float), np.array(alone[:3], float))
        assert row.estimate.kind == alone.kind
    assert [row.setting for row in rows if row.rank is None] == [rows[-1].setting] == [7]


def law_iqm(ranking):
    """Sort by the interquartile mean, where the mean and the median have other orders."""
    table = [[0, 0, 300, 300, 300, 300, 300, 300], [280] * 7 + [9000], [0, 0, 0, 299, 303, 303, 303, 303]]
    assert np.mean(table[1]) > np.mean(table[0])
    assert np.median(table[2]) > np.median(table[0])
    assert [row.setting for row in ranking(("gamma",), [(0.9,), (0.97,), (0.99,)], table)] == [0, 1, 2]


def by(statistic):
    def ranking(names, values, table, selection=None):
        rows = sweeps.ranking(names, values, table, selection)
        return tuple(sorted(rows, key=lambda row: -statistic(table[row.setting])))

    return ranking


def with_estimates(change):
    def ranking(names, values, table, selection=None):
        rows = sweeps.ranking(names, values, table, selection)
        return tuple(row._replace(estimate=change(row, np.asarray(table)[row.setting])) for row in rows)

    return ranking


def resampled_by_position(row, seeds):
    order = np.random.default_rng(row.setting).permutation(len(seeds))
    return statistics.interval(seeds[order])


def failed_first(names, values, table, selection=None):
    rows = sweeps.ranking(names, values, table, selection)
    return (*(row for row in rows if row.rank is None), *(row for row in rows if row.rank is not None))


def ties_by_position(names, values, table, selection=None):
    rows = sweeps.ranking(names, values, table, selection)
    return tuple(sorted(rows, key=lambda row: (row.rank or 99, row.setting)))


PLANTS = {
    "sorted by the mean": (law_iqm, by(np.nanmean)),
    "sorted by the median": (law_iqm, by(np.nanmedian)),
    "the lowest first": (law_iqm, by(lambda seeds: -statistics.iqm(seeds))),
    "failed seeds counted as 0": (
        law_failed,
        lambda names, values, table: sweeps.ranking(names, values, np.nan_to_num(table)),
    ),
    "failed settings first": (law_failed, failed_first),
    "a seed too many left out": (law_failed, with_estimates(lambda row, seeds: statistics.interval(seeds[1:]))),
    "interval relative to the mean": (
        law_shift,
        with_estimates(lambda row, seeds: row.estimate._replace(low=0.9 * row.estimate.iqm)),
    ),
    "resamples that depend on the position": (law_permutation, with_estimates(resampled_by_position)),
    "ties by position": (law_permutation, ties_by_position),
    "members by rank": (
        law_permutation,
        lambda *given: tuple(
            row._replace(in_best_set=bool(given[3].members[i])) for i, row in enumerate(sweeps.ranking(*given))
        ),
    ),
}


@pytest.mark.parametrize("law", [law_permutation, law_shift, law_failed, law_iqm])
def test_laws_of_the_ranking(law):
    law(sweeps.ranking)


@pytest.mark.parametrize("plant", PLANTS)
def test_laws_reject_planted_bugs(plant):
    law, ranking = PLANTS[plant]
    with pytest.raises(AssertionError):
        law(ranking)


def test_ties_have_one_rank_and_are_ordered_by_failures_and_values():
    table = [[500, 500, np.nan], [500, 500, 500], [9, 9, 9], [500, 500, 500]]
    rows = sweeps.ranking(("hidden",), [((64, 64),), ((256,),), ((8,),), ((120, 84),)], table)
    assert [(row.rank, row.values[0]) for row in rows] == [(1, (120, 84)), (1, (256,)), (1, (64, 64)), (4, (8,))]
    assert {row.in_best_set for row in rows} == {None}


def test_estimates_are_those_of_each_row_alone():
    table = returns()
    for row, estimate in zip(table, sweeps.estimates(table), strict=True):
        alone = statistics.interval(row[np.isfinite(row)])
        np.testing.assert_array_equal(np.array(estimate[:3], float), np.array(alone[:3], float))


def test_membership_and_frequency_are_those_of_the_selection():
    table = returns()
    rows = sweeps.ranking(NAMES, GRID, table, selection_of(table))
    assert {row.setting for row in rows if row.in_best_set} == {0, 3, 6, 9}
    assert {row.frequency for row in rows if row.in_best_set} == {0.25}


def test_marginal_of_one_name_is_the_interval_of_each_setting():
    table = returns(6)[[5, 4, 3, 2, 1, 0]]
    levels = sweeps.marginal(("gamma",), [(g,) for g in (0.99, 0.9, 0.95, 0.97, 0.8, 0.7)], table, "gamma")
    assert [(level.value, level.settings, level.best) for level in levels[:2]] == [(0.7, (5,), 5), (0.8, (4,), 4)]
    for level in levels:
        (i,) = level.settings
        alone = statistics.interval(table[i][np.isfinite(table[i])])
        np.testing.assert_array_equal(np.array(level.estimate[:3], float), np.array(alone[:3], float))
        assert level.estimate.kind == alone.kind


def stratified(rows, resamples=1_000):
    """Compute the textbook bootstrap of the pooled interquartile mean, with seeds drawn within each row."""
    rng, strata, means = np.random.default_rng(5), [row[np.isfinite(row)] for row in rows], []
    for _ in range(resamples):
        pool = np.sort(np.concatenate([rng.choice(seeds, len(seeds)) for seeds in strata]))
        means.append(pool[len(pool) // 4 : len(pool) - len(pool) // 4].mean())
    return np.quantile(means, [0.025, 0.975])


def test_marginal_of_a_grid_is_pooled_and_stratified_by_setting():
    table = returns()
    levels = sweeps.marginal(NAMES, GRID, table, "learning_rate")
    assert [level.settings for level in levels] == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]
    widths = []
    for level in levels:
        rows = table[list(level.settings)]
        pooled = rows[np.isfinite(rows)]
        assert level.estimate.iqm == pytest.approx(scipy.stats.trim_mean(pooled, 0.25))
        low, high = stratified(rows[np.isfinite(rows).any(axis=1)])
        assert level.estimate.low == pytest.approx(low, abs=0.15 * (high - low))
        assert level.estimate.high == pytest.approx(high, abs=0.15 * (high - low))
        plain = statistics.interval(pooled, resamples=500)
        widths.append((plain.high - plain.low) / (high - low))
        means = [np.nan if np.isnan(row).all() else statistics.iqm(row[np.isfinite(row)]) for row in rows]
        assert level.best == level.settings[int(np.nanargmax(means))]
    assert max(widths) > 1.3, "the check rejects an interval without strata"
    moved = np.random.default_rng(2).permutation(12)
    again = sweeps.marginal(NAMES, [GRID[i] for i in moved], table[moved], "learning_rate")
    assert [level.estimate for level in again] == [level.estimate for level in levels]
    assert [tuple(moved[list(level.settings)]) for level in again] == [level.settings for level in levels]


def test_marginal_of_drawn_settings_resamples_settings():
    """Draw returns that depend on the other number: the interval of a bin must show that spread, not that of seeds."""
    rng = np.random.default_rng(3)
    values = rng.uniform(size=(48, 2)).round(6).tolist()
    table = 100 * np.array(values)[:, 1:] + rng.normal(0, 1, (48, 8))
    levels = sweeps.marginal(("a", "b"), values, table, "a")
    assert [len(level.settings) for level in levels] == [6] * 8
    assert [level.value for level in levels] == sorted(level.value for level in levels)
    for level in levels:
        assert level.estimate.high - level.estimate.low > 15
    covered = [level.estimate.low <= 50 <= level.estimate.high for level in levels]
    assert sum(covered) >= 6, "the mean is 50 in every bin"
    seeds_alone = [stratified(table[list(level.settings)], 200) for level in levels]
    assert max(high - low for low, high in seeds_alone) < 5, "intervals over seeds alone are narrower"


def test_few_seeds_have_a_range():
    levels = sweeps.marginal(NAMES, GRID, np.arange(48).reshape(12, 4), "gamma")
    assert {level.estimate.kind for level in levels} == {"range"}
    assert (levels[0].estimate.low, levels[0].estimate.high) == (0, 39)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1e-4, 3e-4, 1e-3], "log"), ([1e-5, 1e-2], "log"), ([32, 64, 128], "log"), ([1, 26, 51, 76, 101], "linear"),
        (DRAWN, "linear"), (10 ** (3 * DRAWN - 5), "log"), ([0.9, 0.99, 0.999], "category"),
        ([1, 2, 3], "linear"), ([0.97, 0.99], "linear"), ([0.0, 1e-4, 1e-3], "category"),
        ([-1, 0, 1], "linear"), ([0.5], "category"), ([True, False], "category"), (["adam", "sgd"], "category"),
        ([(64, 64), (120, 84)], "category"), ([None, 10.0], "category"),
    ],
)  # fmt: skip
def test_scale_fits_the_values(values, expected):
    assert sweeps.scale(values) == expected
    assert sweeps.scale(list(values)[::-1]) == expected


def test_a_given_scale_is_kept():
    assert sweeps.scale([1, 2, 3], "log") == "log"
    data = sweeps.sweep(NAMES, GRID, returns(), scales={"gamma": "category"})
    assert data.scales == ("log", "category")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(1, 2, 3), (2, 2, 3)], "sensitivity"), (list(itertools.product([1, 2], [3, 4], [5])), "heat map"),
        (np.random.default_rng(0).uniform(size=(9, 2)).tolist(), "scatter"),
        ([(i, j) for i in range(17) for j in range(2)], "scatter"),
        (list(itertools.product([1, 2], [3, 4], [5, 6])), "parallel coordinates"),
    ],
)  # fmt: skip
def test_overview_fits_the_names(values, expected):
    assert sweeps.overview("abc"[: len(values[0])], values) == expected


def test_varied_names_have_two_values():
    assert sweeps.varied(("a", "b", "c"), [(1, [2], True), (2, [2], False)]) == ("a", "c")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3e-4, "3e-4"), (1e-3, "1e-3"), (0.99, "0.99"), (0.9999, "0.9999"), (120000.0, "120000"), (2.5e7, "2.5e7"),
        (0.0, "0"), (-3e-5, "-3e-5"), ((120, 84), "120-84"), ([64], "64"), ((), "none"), (True, "on"), (False, "off"),
        (None, "none"), ("adam", "adam"), (64, "64"), (0.0031622776, "3.162e-3"), (0.97123456, "0.9712"),
        (np.float64(1e-4), "1e-4"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_text_of_a_value(value, expected):
    assert sweeps.text(value) == expected


def test_groups_keep_equal_values_together():
    column = [i % 20 for i in range(60)]
    found = sweeps.groups(column)
    assert sorted(i for _, group in found for i in group) == list(range(60))
    assert len(found) == 8
    owners = {column[i]: n for n, (_, group) in enumerate(found) for i in group}
    assert all(
        {column[i] for i in group} == {v for v, n in owners.items() if n == k} for k, (_, group) in enumerate(found)
    )
    assert sweeps.groups(["b", "a", "b"]) == [("a", [1]), ("b", [0, 2])]
    assert sweeps.distinct([True, 2, "x", None, (3,), 2.0]) == [None, True, 2.0, "x", (3,)]


def test_decimals_show_the_spread():
    assert [sweeps.decimals(x) for x in ([9, 500], [0.81, 0.99], [3, 4.5], [1, 1.001], [7], [np.nan])] == [
        0,
        2,
        1,
        4,
        1,
        1,
    ]
    assert sweeps.interval_text(statistics.interval([1.0, 2.0, 4.0]), 1) == "[range 1.0, 4.0]"
    assert sweeps.interval_text(statistics.interval([1.0]), 1) == ""


@pytest.fixture
def printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")

    def show(*given, **named):
        tables.print_ranking(Path("runs/lr"), given[0], sweeps.ranking(*given), **named)
        return capsys.readouterr().out.splitlines()

    return show


def test_table_of_the_ranking(printed):
    table = returns()
    lines = printed(NAMES, GRID, table, selection_of(table), measure="greedy return")
    rows = [line.split() for line in lines[2:14]]
    expected = sweeps.ranking(NAMES, GRID, table)
    assert lines[1].split() == ["rank", *NAMES, "seeds", "failed", "IQM", "[95%]", "in", "best", "set"]
    assert [row[1:3] for row in rows] == [[*map(sweeps.text, row.values)] for row in expected]
    assert [row[0] for row in rows] == [*map(str, range(1, 12)), "-"]
    assert [row[4] for row in rows] == [str(row.failed) for row in expected]
    assert [row[-1] == "yes" for row in rows] == [row.setting % 3 == 0 for row in expected]
    assert rows[0][5] == f"{float(expected[0].estimate.iqm):.0f}"
    assert rows[-1][5] == "failed"
    assert "Failed seeds are excluded" in lines[14]
    assert lines[15] == (
        "4 of 12 settings are indistinguishable from the best with these seeds (the best set). The return of the best "
        "setting is biased upwards, because it was selected on these seeds; train it again on fresh seeds with: fdqn "
        "train --best-of runs/lr"
    )


def test_table_of_many_settings_is_cut(printed):
    values, table = [(i,) for i in range(30)], np.arange(30.0)[:, None] + np.arange(3.0)
    lines = printed(("n_step",), values, table)
    assert len(lines) == 2 + 20 + 2
    assert lines[-2] == "... and 10 more (settings.csv)"
    assert lines[1].split() == ["rank", "n_step", "seeds", "failed", "IQM", "[range]"], (
        "the column of the best set is omitted"
    )
    assert "indistinguishable" not in lines[-1]
    assert "biased upwards" in lines[-1]
    last = Selection(np.full(30, 1 / 30), np.arange(30) < 2)
    assert "... and 10 more, 2 of them in the best set (settings.csv)" in printed(("n_step",), values, table, last)


def test_explanation_in_every_case():
    def explained(table, members=None):
        chosen = None if members is None else Selection(np.ones(len(table)), np.array(members))
        return sweeps.explanation(sweeps.ranking(("gamma",), [(0.1 * i,) for i in range(len(table))], table, chosen))

    assert explained([[np.nan], [np.nan]]) == "All seeds of all settings failed, so no setting is the best."
    five = np.arange(10.0).reshape(2, 5)
    assert explained(five, [False, True]).startswith("The best of 2 settings is distinguishable from all others")
    assert explained(five, [True, True]).startswith("2 of 2 settings are indistinguishable from the best")
    assert explained(five[:, :4], [False, True]).startswith("The best set has 1 of 2 settings, which may be too few")
    assert not sweeps.few_seeds(sweeps.ranking(NAMES, GRID, returns(seeds=5)))
    assert explained([[1.0, 2.0]], [True]) == "", "a single setting was not selected"
