"""Tests of pictures of sweeps: selection, data, ticks, and text that neither overlaps nor leaves the page."""

import itertools
import time

import numpy as np
import pytest
import scipy.stats
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from test_sweeps import DRAWN, GRID, NAMES, Selection, returns, selection_of

from fdqn.report import plots, statistics, sweep_plots, sweeps

HIDDEN = [(64, 64), (120, 84), (256, 256), (468, 512, 256)]


def drawn(names, values, table, **named):
    measure = named.pop("measure", "greedy return")
    data = sweeps.sweep(names, values, table, **named)
    return sweep_plots.figure(data, "cartpole", f"{len(values)} settings", measure)


def three_drawn(settings=64, seeds=6):
    """Draw settings of three numbers, with a best learning rate of 1e-3."""
    rng = np.random.default_rng(1)
    values = [(10 ** rng.uniform(-5, -2), rng.uniform(0.9, 1), int(rng.choice([1, 3, 5]))) for _ in range(settings)]
    means = [400 - 100 * (np.log10(rate) + 3) ** 2 + 10 * n for rate, _, n in values]
    table = np.array(means)[:, None] + rng.normal(0, 30, (settings, seeds))
    table[3] = np.nan
    return ("learning_rate", "gamma", "n_step"), values, table


def titles(figure):
    return [part.get_suptitle().strip() for part in figure.subfigs]


def captions(part):
    return [text for text in part.texts if text.get_fontsize() == 8]


def caption(figure, i=0):
    (text,) = captions(figure.subfigs[i])
    return text.get_text().replace("\n", " ")


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def line(axes, label):
    (found,) = [x for x in axes.lines if x.get_label() == label]
    return found.get_xdata(), found.get_ydata()


def points(axes, colour):
    """Return the filled points of a colour [N, 2]."""
    filled = [x for x in axes.collections if isinstance(x, PathCollection) and len(x.get_facecolors())]
    found = [x.get_offsets() for x in filled if to_hex(x.get_facecolors()[0]) == colour.lower()]
    return np.concatenate(found) if found else np.zeros((0, 2))


def means_of(table):
    return np.array([scipy.stats.trim_mean(x, 0.25) if len(x := row[np.isfinite(row)]) else np.nan for row in table])


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (("gamma",), [(0.9,), (0.95,), (0.99,)], {"Sensitivity": 1}),
        (NAMES, GRID, {"All settings": 2, "Sensitivity": 2}),
        (NAMES, [*zip(DRAWN[:12], DRAWN[12:24], strict=True)], {"All settings": 2, "Sensitivity": 2}),
        (
            ("a", "b", "c", "d"),
            [*itertools.product([1, 2], [1, 2], [1, 2], [1, 2])],
            {"All settings": 1, "Sensitivity": 6},
        ),
        (("gamma",), [(0.9,)], {"Sensitivity": 1}),
    ],
)
def test_pictures_fit_the_names_and_values(names, values, expected):
    figure = drawn(names, values, np.arange(6.0 * len(values)).reshape(len(values), 6))
    assert dict(zip(titles(figure), (len(part.axes) for part in figure.subfigs), strict=True)) == expected
    assert figure.get_suptitle() == "cartpole"
    assert caption(figure).startswith(f"{len(values)} settings ")


def test_heat_map_of_a_grid():
    table = returns()
    figure = drawn(NAMES, GRID, table, selection=selection_of(table))
    axes, bar = figure.subfigs[0].axes
    means = means_of(table).reshape(4, 3).T
    np.testing.assert_allclose(axes.collections[0].get_array().filled(np.nan), means)
    assert (labels(axes.xaxis), labels(axes.yaxis)) == (["1e-4", "3e-4", "1e-3", "3e-3"], ["0.97", "0.99", "0.999"])
    assert (axes.get_xlabel(), axes.get_ylabel()) == NAMES
    written = {text.get_position(): text.get_text() for text in axes.texts}
    first = statistics.interval(table[0])
    assert written[0, 0.1] == f"{float(first.iqm):.0f}"
    assert written[0, -0.25] == f"[{float(first.low):.0f}, {float(first.high):.0f}]"
    assert written[2, 1] == "failed"
    assert sorted({(round(x.get_x()), round(x.get_y())) for x in axes.patches}) == [(i, 0) for i in range(4)], "members"
    assert bar.get_ylabel() == "interquartile mean of the greedy return"
    assert "orange frame: indistinguishable from the best" in caption(figure)
    dark = [image.cmap(image.norm(means[~np.isnan(means)].max())) for image in axes.collections[:1]]
    light = [image.cmap(image.norm(means[~np.isnan(means)].min())) for image in axes.collections[:1]]
    assert sum(dark[0][:3]) < sum(light[0][:3]), "the best is the darkest"


def test_wide_heat_map_has_bars_for_the_intervals():
    values = [*itertools.product(range(1, 10), ["a", "b"])]
    table = returns(18, seeds=3)
    axes = drawn(("n_step", "loss"), values, table).subfigs[0].axes[0]
    spread = np.ptp(table, axis=1)
    alive = [i for i, row in enumerate(table) if np.isfinite(row).sum() == 3]
    bars = {(round(x.get_x() + 0.4), round(x.get_y() + 0.36)): x.get_width() for x in axes.patches}
    for i in alive:
        assert bars[values[i][0] - 1, "ab".index(values[i][1])] == pytest.approx(0.8 * spread[i] / spread[alive].max())
    assert not any("[" in text.get_text() for text in axes.texts)


def test_sensitivity_of_a_grid():
    table = returns()
    chosen = selection_of(table)
    figure = drawn(NAMES, GRID, table, selection=chosen)
    rate, gamma = figure.subfigs[1].axes
    assert (rate.get_xscale(), gamma.get_xscale()) == ("log", "linear")
    assert labels(rate.xaxis) == ["1e-4", "3e-4", "1e-3", "3e-3"]
    assert (rate.get_xlabel(), gamma.get_xlabel(), rate.get_ylabel()) == (*NAMES, "greedy return")
    for axes, name, values in (
        (rate, "learning_rate", [1e-4, 3e-4, 1e-3, 3e-3]),
        (gamma, "gamma", [0.97, 0.99, 0.999]),
    ):
        levels = sweeps.marginal(NAMES, GRID, table, name)
        x, y = line(axes, "IQM")
        np.testing.assert_allclose(x, values)
        np.testing.assert_allclose(y, [level.estimate.iqm for level in levels])
        np.testing.assert_allclose(line(axes, "best")[1], [means_of(table)[level.best] for level in levels])
        bars = [bar.get_ydata() for bar in axes.lines if len(set(bar.get_xdata())) == 1]
        np.testing.assert_allclose(bars, [[level.estimate.low, level.estimate.high] for level in levels])
        column = np.array([row[NAMES.index(name)] for row in GRID])
        means, alive = means_of(table), ~np.isnan(means_of(table))
        for colour, which in (
            (sweep_plots.ACCENT, chosen.members & alive),
            (sweep_plots.BLUE, ~chosen.members & alive),
        ):
            np.testing.assert_allclose(points(axes, colour), np.stack([column[which], means[which]], axis=1))


def test_single_name_shows_every_seed():
    values, table = [(0.8,), (0.9,), (0.95,)], np.arange(24.0).reshape(3, 8)
    table[1, 2] = np.nan
    chosen = Selection(np.array([0, 0, 1]), np.array([False, False, True]))
    figure = drawn(("gamma",), values, table, selection=chosen)
    (axes,) = figure.subfigs[0].axes
    seen = points(axes, sweep_plots.BLUE)
    np.testing.assert_allclose(seen[:, 1], table[np.isfinite(table)])
    np.testing.assert_allclose(line(axes, "IQM")[1], means_of(table))
    rings = [x for x in axes.collections if not len(x.get_facecolors())]
    np.testing.assert_allclose(rings[0].get_offsets(), [[0.95, 19.5]])
    assert "points: single seeds" in caption(figure)


def test_categories_are_not_connected_and_sorted():
    values = [*itertools.product(HIDDEN[::-1], [True, False])]
    figure = drawn(("hidden", "double"), values, np.arange(40.0).reshape(8, 5))
    hidden, double = figure.subfigs[1].axes
    assert labels(hidden.xaxis) == ["64-64", "120-84", "256-256", "468-512-256"]
    assert labels(double.xaxis) == ["off", "on"]
    assert {x.get_linestyle() for x in hidden.lines if x.get_label() in ("IQM", "best")} == {"None"}
    np.testing.assert_allclose(line(hidden, "IQM")[1], [34.5, 24.5, 14.5, 4.5])


def test_crowded_numbers_are_evenly_spaced_and_connected():
    (axes,) = drawn(("gamma",), [(0.9,), (0.99,), (0.999,)], np.arange(15.0).reshape(3, 5)).subfigs[0].axes
    assert labels(axes.xaxis) == ["0.9", "0.99", "0.999"]
    np.testing.assert_allclose(line(axes, "IQM")[0], [0, 1, 2])
    assert {x.get_linestyle() for x in axes.lines if x.get_label() == "IQM"} == {"-"}


def test_scatter_of_drawn_settings():
    rng = np.random.default_rng(0)
    values = [(10 ** rng.uniform(-5, -2), rng.uniform(0.9, 1)) for _ in range(20)]
    table = returns(20, seeds=3)
    figure = drawn(NAMES, values, table, selection=selection_of(table))
    axes, bar = figure.subfigs[0].axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    alive, failed = axes.collections
    order = np.argsort(means_of(table))[:-1]
    order = [*(i for i in order if i % 3), *(i for i in order if i % 3 == 0)]
    np.testing.assert_allclose(alive.get_offsets(), np.array(values)[order])
    np.testing.assert_allclose(alive.get_array(), means_of(table)[order])
    assert [to_hex(x) == sweep_plots.ACCENT.lower() for x in alive.get_edgecolors()] == [i % 3 == 0 for i in order]
    np.testing.assert_allclose(failed.get_offsets(), [values[11]])
    assert bar.get_ylabel()


def collections(axes):
    return {x.get_label(): x for x in axes.collections if isinstance(x, LineCollection)}


def test_parallel_coordinates():
    names, values, table = three_drawn()
    means = means_of(table)
    members = means >= np.sort(means[~np.isnan(means)])[-3]
    figure = drawn(names, values, table, selection=Selection(members / 3, members))
    (axes,) = figure.subfigs[0].axes
    assert labels(axes.xaxis) == [*names, "greedy return"]
    found = collections(axes)
    assert {label: len(x.get_segments()) for label, x in found.items()} == {
        "failed": 1, "others": 60, "outline": 3, "members": 3,
    }  # fmt: skip
    np.testing.assert_allclose(found["others"].get_array(), np.sort(means[~members & ~np.isnan(means)]))
    heights = np.array(found["members"].get_segments())[:, :, 1]
    best = np.argsort(np.where(members, means, -np.inf))[-3:]
    column = np.log([values[i][0] for i in range(64)])
    np.testing.assert_allclose(heights[:, 0], ((column - column.min()) / np.ptp(column))[best])
    alive = means[~np.isnan(means)]
    np.testing.assert_allclose(heights[:, -1], (means[best] - alive.min()) / np.ptp(alive))
    assert found["failed"].get_segments()[0].shape == (3, 2), "a failed setting has no return"
    texts = [text.get_text() for text in axes.texts]
    assert {"1e-4", "3e-4", "1e-3", "3e-3", "1", "3", "5"} <= set(texts)


def test_lines_at_one_value_are_spread_in_order_of_their_means():
    values = [*itertools.product([1, 2], [1, 2], HIDDEN)]
    table = np.random.default_rng(0).permutation(16)[:, None] + np.zeros((16, 5))
    (axes,) = drawn(("a", "b", "hidden"), values, table).subfigs[0].axes
    lines = np.array(collections(axes)["others"].get_segments())[:, :, 1]
    order = np.argsort(table[:, 0])
    first = np.array([values[i][0] for i in order])
    low, high = lines[first == 1, 0], lines[first == 2, 0]
    assert (np.diff(low) > 0).all()
    assert (np.diff(high) > 0).all()
    assert low.max() < high.min()
    assert low.min() == 0
    assert high.max() == pytest.approx(1)


def test_names_of_many_axes_are_broken():
    names = (
        "learning_rate",
        "gamma",
        "epsilon_start",
        "epsilon_end",
        "huber_threshold",
        "tau",
        "alpha",
        "beta",
        "clip",
    )
    values = np.random.default_rng(0).uniform(size=(20, 9)).tolist()
    figure = drawn(names, values, returns(20))
    (axes,) = figure.subfigs[0].axes
    assert labels(axes.xaxis)[4] == "huber_\nthreshold"
    figure.subfigs[1].set_visible(False)
    figure.draw_without_rendering()
    shown = [tick.label2.get_window_extent() for tick in axes.xaxis.get_major_ticks()]
    assert len(shown) == 10
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(shown))


def curves_of(table, reports=10):
    shape = np.linspace(0.1, 1, reports)[:, None]
    return [plots.Curve(np.arange(1, reports + 1) * 1000, shape * row) for row in table]


def test_learning_curves_of_the_best_the_median_and_the_worst():
    table = returns()
    figure = drawn(NAMES, GRID, table, curves=curves_of(table))
    (axes,) = figure.subfigs[2].axes
    ranked = sweeps.ranking(NAMES, GRID, table)
    chosen = [ranked[i] for i in (0, 1, 2, 5, 10)]
    expected = [f"{row.rank}: {sweeps.text(row.values[0])}, {sweeps.text(row.values[1])}" for row in chosen]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == expected
    ends = [x.get_ydata()[-1] for x in axes.lines]
    np.testing.assert_allclose(ends, [float(row.estimate.iqm) for row in chosen])
    assert axes.get_ylabel() == "training return", "drawn by plots.draw_curves"


def test_far_lower_returns_are_clipped_and_marked():
    values = [(i,) for i in range(12)]
    table = np.random.default_rng(0).normal(400, 30, (12, 8))
    table[4] = -1e6
    two = [(i, j) for i in (1, 2, 3, 4) for j in (0.1, 0.2, 0.3)]
    figure = drawn(("n_step", "tau"), two, table)
    assert "triangles: below the axis" in caption(figure, 1)
    axes = figure.subfigs[1].axes[0]
    assert axes.get_ylim()[0] > 0
    assert figure.subfigs[0].axes[0].collections[0].norm.vmin > 300
    (lone,) = drawn(("n_step",), values, table).subfigs[0].axes
    assert lone.get_ylim()[0] > 0
    ceiling = np.full((12, 8), 500.0)
    ceiling[4] = 9
    figure = drawn(("n_step", "tau"), two, ceiling)
    assert figure.subfigs[0].axes[0].collections[0].norm.vmin == 9, "a single bad setting under a ceiling is shown"


def test_equal_returns_and_failed_sweeps_are_drawn():
    figure = drawn(NAMES, GRID, np.full((12, 5), 500.0))
    norm = figure.subfigs[0].axes[0].collections[0].norm
    assert (norm.vmin, norm.vmax) == (499.5, 500.5)
    assert figure.subfigs[1].axes[0].get_ylim()[0] < 500 < figure.subfigs[1].axes[0].get_ylim()[1]
    failed = drawn(NAMES, GRID, np.full((12, 5), np.nan), curves=curves_of(np.zeros((12, 5))))
    assert titles(failed) == ["All settings"]
    assert {text.get_text() for text in failed.subfigs[0].axes[0].texts} == {"failed", ""} - {""}
    assert "all seeds failed" in caption(drawn(("gamma",), [(0.9,), (0.95,)], np.full((2, 3), np.nan)))


def boxes(figure):
    """Yield groups of texts that must not overlap: tick labels of each axis, texts in the axes, captions."""

    def level(texts):
        seen = [x for x in texts if x.get_visible() and x.get_text() and not x.get_rotation()]
        return [x.get_window_extent() for x in seen]

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            if axis.get_visible() and axes.get_visible():
                yield level(tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)
        yield level(axes.texts)
    for part in figure.subfigs:
        yield level(captions(part))


FEW_DRAWN = [
    (6.65127e-4, 0.957, 2.1e-7), (6.98e-4, 0.9601, 3e-5), (2.1e-3, 0.91, 4.4e-8), (2.2e-3, 0.99, 5e-8),
    (2.3e-4, 0.98, 1e-6),
]  # fmt: skip


@pytest.mark.parametrize("picture", ["grid", "hidden", "drawn", "few drawn"])
def test_texts_do_not_overlap_and_stay_on_the_page(picture):
    table = returns()
    hidden = [*itertools.product(HIDDEN, [True, False], [1, 3, 5])]
    given = {
        "grid": (NAMES, GRID, table),
        "hidden": (("hidden", "double", "n_step"), hidden, returns(24, 5)),
        "drawn": three_drawn(24),
        "few drawn": (("learning_rate", "gamma", "adam_eps"), FEW_DRAWN, returns(5, 5)),
    }[picture]
    curves = curves_of(table) if picture == "grid" else None
    scales = {"learning_rate": "log", "gamma": "linear", "adam_eps": "log"} if picture == "few drawn" else None
    figure = drawn(*given, selection=selection_of(given[2]), curves=curves, scales=scales)
    figure.draw_without_rendering()
    page = figure.bbox
    for group in boxes(figure):
        for one, other in itertools.combinations(group, 2):
            assert not one.overlaps(other)
        for box in group:
            assert page.x0 <= box.x0
            assert box.x1 <= page.x1
    for part in figure.subfigs:
        low = min(x.get_window_extent().y0 for x in captions(part))
        assert low >= max(axes.bbox.y1 for axes in part.axes) - 1, "the caption is above the axes"
    if picture == "hidden":
        figure.subfigs[1].axes[0].tick_params(labelrotation=0, labelsize=14)
        figure.draw_without_rendering()
        pairs = [pair for group in boxes(figure) for pair in itertools.combinations(group, 2)]
        assert any(one.overlaps(other) for one, other in pairs), "the check detects overlaps"


def test_one_drawn_value_has_an_axis_around_it():
    figure = drawn(("learning_rate",), [(1e-4,)], np.arange(5.0)[None], scales={"learning_rate": "log"})
    figure.draw_without_rendering()  # warnings are errors
    low, high = figure.subfigs[0].axes[0].get_xlim()
    assert 0 < low < 1e-4 < high


def test_picture_of_256_settings_is_fast(tmp_path):
    names, values, table = three_drawn(256)
    data = sweeps.sweep(names, values, table, selection_of(table))
    began = time.perf_counter()
    sweep_plots.write(tmp_path / "sweep.png", data)
    assert time.perf_counter() - began < 5
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
