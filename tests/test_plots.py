"""Pictures of learning curves: the drawn data equal the statistics, and the picture is legible."""

import time

import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure
from matplotlib.image import imread

from fdqn.report import plots
from fdqn.report.plots import Curve

STEPS = np.arange(1, 21) * 1000


def learning(seeds, seed=0, best=500.0, reports=20):
    rng = np.random.default_rng(seed)
    rise = 1 - np.exp(-np.linspace(0, 4, reports))[:, None]
    return Curve(np.arange(1, reports + 1) * 1000, best * rise + rng.normal(0, best / 20, (reports, seeds)))


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw, and return the axes as they were when the file was written, and the pixels of the file."""
    kept, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        kept.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(curves, title="", subtitle=""):
        path = tmp_path / "picture.png"
        plots.learning_curves(path, {title: curves}, subtitle)
        assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]
        assert path.read_bytes().startswith(b"\x89PNG")
        return kept[-1].axes[0], imread(path)

    return draw


def thick(axes):
    return [line for line in axes.lines if line.get_linewidth() >= 1.5]


def has_colour(pixels, colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return (np.abs(pixels[..., :3] - rgb).max(-1) < 0.02).mean()


@pytest.mark.parametrize(("panels", "shape"), [(1, (1, 1)), (3, (3, 1)), (4, (2, 2)), (5, (3, 2))])
def test_many_panels_are_in_two_columns(tmp_path, panels, shape):
    path, names = tmp_path / "many.png", [f"environment {i}" for i in range(panels)]
    plots.learning_curves(path, {name: {"": learning(4)} for name in names})
    height, width = imread(path).shape[:2]
    rows, columns = shape
    assert (height, width) == (675 * rows, 1200 * columns)


def test_picture_is_not_blank(drawn):
    _, pixels = drawn({"": learning(16)}, "cartpole", "16 seeds")
    height, width = pixels.shape[:2]
    assert width >= 1000
    assert 1.3 < width / height < 2.5
    ink = (pixels[..., :3].min(-1) < 0.9).mean()
    assert 0.02 < ink < 0.6
    assert has_colour(pixels, plots.COLOURS[0]) > 0.001
    _, blank = drawn({"": Curve(STEPS, np.full((20, 3), np.nan))})
    assert has_colour(blank, plots.COLOURS[0]) == 0, "the check can fail"


def test_line_is_the_interquartile_mean_with_its_interval(drawn):
    curve = learning(16)
    axes, _ = drawn({"": curve}, "cartpole")
    (line,) = thick(axes)
    np.testing.assert_array_equal(line.get_xdata(), curve.steps)
    np.testing.assert_allclose(line.get_ydata(), scipy.stats.trim_mean(curve.values, 0.25, axis=1))
    thin = [line for line in axes.lines if line.get_linewidth() < 1.5]
    np.testing.assert_allclose([line.get_ydata() for line in thin], curve.values.T)
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() < line.get_ydata().min()
    assert corners[:, 1].max() > line.get_ydata().max() - 1
    middle = corners[np.isclose(corners[:, 0], 10_000), 1]
    assert middle.min() < line.get_ydata()[9] < middle.max()


def bands(axes):
    """Return the kinds of bands and the steps that each spans."""
    return {
        "range" if band.get_hatch() else "interval": sorted({float(x) for x in band.get_paths()[0].vertices[:, 0]})
        for band in axes.collections
    }


@pytest.mark.parametrize(("seeds", "expected"), [
    (8, "band: its 95% bootstrap interval"), (5, "band: its 95% bootstrap interval"), (4, "band: range of the seeds"),
    (2, "band: range of the seeds"), (1, None),
])  # fmt: skip
def test_band_of_few_seeds_is_their_range(drawn, seeds, expected):
    curve = learning(seeds)
    axes, _ = drawn({"": curve})
    note = axes.get_title(loc="left")
    assert (expected in note) if expected else ("band" not in note)
    assert ("interval" in note) == (seeds >= 5)
    assert ("hatched" in note) is False
    assert list(bands(axes)) == ([] if seeds == 1 else ["interval" if seeds >= 5 else "range"])
    if 1 < seeds < 5:
        corners = axes.collections[0].get_paths()[0].vertices
        assert corners[:, 1].max() == pytest.approx(curve.values.max())


def test_late_seeds_turn_a_range_into_an_interval(drawn):
    values = learning(8).values.copy()
    values[:6, 3:] = np.nan  # three seeds until step 6,000
    axes, _ = drawn({"": Curve(STEPS, values)})
    assert bands(axes) == {
        "interval": [1000.0 * i for i in range(7, 21)],
        "range": [1000.0 * i for i in range(1, 8)],  # including the segment between the two
    }
    assert "interval, hatched: range of fewer than 5 seeds" in axes.get_title(loc="left")


def test_curves_of_many_and_few_seeds_have_different_bands(drawn):
    axes, _ = drawn({"many": learning(9), "few": learning(3, best=300.0), "one": learning(1)})
    assert set(bands(axes)) == {"interval", "range"}
    assert len(axes.collections) == 2
    assert "interval, hatched: range of fewer than 5 seeds" in axes.get_title(loc="left")


def test_caption_of_each_panel_names_its_bands(tmp_path, monkeypatch):
    kept, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kw: kept.append(figure) or save(figure, *args, **kw))
    plots.learning_curves(tmp_path / "x.png", {"a": {"": learning(6)}, "b": {"": learning(2)}})
    notes = [axes.get_title(loc="left") for axes in kept[0].get_axes()]
    assert [("interval" in note, "range" in note) for note in notes] == [(True, False), (False, True)]


def test_axes_are_named_with_their_units(drawn):
    axes, _ = drawn({"": learning(4)}, "cartpole", "4 seeds")
    assert axes.get_xlabel() == "environment steps per seed"
    assert axes.get_ylabel() == "training return"
    assert axes.figure.get_suptitle() == "cartpole"
    assert "4 seeds" in axes.get_title(loc="left")
    assert axes.get_xlim()[0] == 0
    assert axes.get_legend() is None


def test_several_curves_have_a_legend_and_different_colours(drawn):
    curves = {f"run {i}": learning(8, seed=i, best=100.0 * (i + 1)) for i in range(3)}
    axes, pixels = drawn(curves)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(curves)
    assert len({line.get_color() for line in thick(axes)}) == 3
    assert len(axes.lines) == 3, "single seeds are not drawn for several runs"
    assert all(has_colour(pixels, colour) > 0.0005 for colour in plots.COLOURS[:3])


def test_curves_of_different_lengths(drawn):
    axes, _ = drawn({"short": learning(4, reports=5), "long": learning(4, reports=40)})
    assert [len(line.get_xdata()) for line in thick(axes)] == [5, 40]
    assert axes.get_xlim()[1] >= 40_000


def test_more_curves_than_colours(drawn):
    curves = {f"run {i}": learning(4, seed=i) for i in range(len(plots.COLOURS) + 2)}
    axes, _ = drawn(curves)
    looks = {(line.get_color(), str(line.get_linestyle())) for line in thick(axes)}
    assert len(looks) == len(curves), "two runs must not look the same"


def test_no_curves_are_refused(tmp_path):
    with pytest.raises(ValueError, match="panels: expected at least one curve in each, got none"):
        plots.learning_curves(tmp_path / "x.png", {})
    assert not list(tmp_path.iterdir())


def test_one_seed_is_a_line_without_a_band(drawn):
    curve = learning(1)
    axes, pixels = drawn({"": curve})
    np.testing.assert_allclose(thick(axes)[0].get_ydata(), curve.values[:, 0])
    assert has_colour(pixels, plots.COLOURS[0]) > 0.001


def test_single_report_is_visible(drawn):
    _, pixels = drawn({"": Curve(np.array([1000]), np.array([[10.0, 20.0, 30.0, 40.0]]))})
    assert has_colour(pixels, plots.COLOURS[0]) > 1e-5, "a line of one point draws nothing without a marker"


def test_run_without_a_finished_episode(drawn):
    axes, _ = drawn({"": Curve(STEPS, np.full((20, 3), np.nan))}, "mountain_car")
    assert axes.get_xlabel()


def test_no_rows_at_all(drawn):
    drawn({"": Curve(np.zeros(0, np.int64), np.zeros((0, 0)))})


def test_missing_value_is_filled_forward(drawn):
    curve = learning(8)
    holes = curve.values.copy()
    holes[5, 2] = holes[11:13, 6] = np.nan
    filled = holes.copy()
    filled[5, 2], filled[11:13, 6] = holes[4, 2], holes[10, 6]
    axes, _ = drawn({"": Curve(curve.steps, holes)})
    np.testing.assert_allclose(thick(axes)[0].get_ydata(), scipy.stats.trim_mean(filled, 0.25, axis=1))


def test_seed_counts_from_its_first_finished_episode(drawn):
    curve = learning(8)
    late = curve.values.copy()
    late[0, 1:] = np.nan  # at the first report only one seed has finished an episode
    axes, _ = drawn({"": Curve(curve.steps, late)})
    np.testing.assert_allclose(
        thick(axes)[0].get_ydata()[-5:], scipy.stats.trim_mean(curve.values[-5:], 0.25, axis=1), rtol=1e-6
    )


def test_a_thousand_seeds_are_fast(drawn):
    curve = learning(1000, reports=100)
    began = time.perf_counter()
    axes, _ = drawn({"": curve})
    assert time.perf_counter() - began < 5
    assert len(axes.lines) == 1


def test_long_names_do_not_push_the_axes_out(drawn):
    name = "somebody/shared/experiments/learning-rates/runs/mountain_car-20260101-1200"
    axes, _ = drawn({name + str(i): learning(4, seed=i) for i in range(4)}, "", "interquartile mean and 95% interval")
    page, legend = axes.figure.get_window_extent(), axes.get_legend().get_window_extent()
    assert axes.get_window_extent().width > 0.7 * page.width
    assert page.x0 <= legend.x0 < legend.x1 <= page.x1


def test_the_subtitle_of_a_run_fits_the_picture(drawn):
    from fdqn.experiment import results

    drawn_with = []
    record = {"iqm": -112.34, "low": -113.45, "high": -111.23}
    seeds = {"seeds": list(range(128)), "failed_seeds": list(range(12))}
    summary = {"env": "mountain_car", "final_return": record, **seeds}
    original = plots.learning_curves
    try:
        plots.learning_curves = lambda path, panels, subtitle: drawn_with.extend([panels, subtitle])
        results.picture(None, learning(128), summary)
    finally:
        plots.learning_curves = original
    panels, subtitle = drawn_with
    assert panels["mountain_car"][""].values.shape[1] == 116, "failed seeds are not drawn"
    axes, _ = drawn({"": learning(16)}, "mountain_car", subtitle)
    assert "128 seeds" in subtitle
    assert "-112.3 [-113.5, -111.2]" in subtitle or "-112.3 [-113.4, -111.2]" in subtitle
    assert "12 failed" in subtitle
    extent = axes._left_title.get_window_extent()
    assert extent.x1 <= axes.figure.get_window_extent().x1, "the subtitle exceeds the picture"
