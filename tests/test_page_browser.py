"""Open pages in headless Chromium, in wide and narrow windows: no errors, values under the pointer, working switches.

Needs `pip install plotly playwright` and a Chromium on the path; skipped without them.
"""

import shutil
import threading
import time

import numpy as np
import pytest
from test_html_report import EVIL, evil_page, rows_of, sweep, written  # noqa: F401

from fdqn.experiment import html_report, watching
from fdqn.experiment.settings import make

pytest.importorskip("plotly")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
WIDTHS = [1280, 390]
SEEDS = "plot => plot.data.filter(t => t.meta === 'seed' && (t.visible ?? true) === true).length"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def show(browser):
    """Open a URL in a window of a given width. The test fails if the page logs an error or loads another URL."""
    contexts, problems, requests = [], [], []

    def open_page(address, width=1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}))
        page = contexts[-1].new_page()
        page.on("console", lambda line: problems.append(line.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.wait_for_selector("body[data-drawn=yes]", timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
    assert {url.split("/")[0] for url in requests} <= {"file:", "http:"}
    assert {url.split("/")[2] for url in requests if url.startswith("http:")} <= {"", *watched}


watched = set()
"""Hosts of the servers that tests started."""


def page_file(tmp_path, *paths, names=None):
    file = tmp_path / "page.html"
    html_report.write(paths, file, names)
    return file


def plot(page, section="curves-0"):
    return page.locator(f"#{section} .plot")


def hover(page, section="curves-0"):
    """Move the pointer along the middle of a figure, or to its first marker, and return the text that appears."""
    area = page.locator(f"#{section} .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    points = [(box["x"] + box["width"] * (0.5 + 0.005 * k), box["y"] + box["height"] * (k + 1) / 62) for k in range(60)]
    marker = page.locator(f"#{section} .scatterlayer .point").first
    if marker.count():
        box = marker.bounding_box()
        points = [(box["x"] + box["width"] / 2 + k, box["y"] + box["height"] / 2) for k in (-1, 0, 1)]
    for x, y in points:
        page.mouse.move(x, y)
        page.wait_for_timeout(30)
        labels = page.locator(f"#{section} .hoverlayer .hovertext, #{section} .hoverlayer .legend").all_text_contents()
        if labels:
            return " ".join(labels)
    return ""


@pytest.mark.parametrize("width", WIDTHS)
def test_one_run(tmp_path, show, width):
    page = show(page_file(tmp_path, written(tmp_path / "run", stops=(6,)), names=["run"]).as_uri(), width)
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing is wider than the window"
    assert page.title() == "dqn on catch"
    buttons = page.evaluate("[...document.querySelectorAll('#curves-0 .modebar-btn')].map(x => x.dataset.title)")
    own = ["Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]
    assert buttons == own, "none that sends the figure to a server"
    assert "step" in hover(page)
    text = page.inner_text("main")
    for part in ("95% interval", "Failures", "fdqn train --env catch", "Machine and versions", "learning_starts"):
        assert part in text or page.locator(f"text={part}").count(), part
    sizes = page.evaluate(
        "[...document.querySelectorAll('text, td, p, dd')].map(x => parseFloat(getComputedStyle(x).fontSize))"
    )
    assert min(size for size in sizes if size) >= 10


def test_the_switches_of_one_run(tmp_path, show):
    page = show(page_file(tmp_path, written(tmp_path / "run"), names=["run"]).as_uri())
    assert plot(page).evaluate(SEEDS) == 6
    buttons = page.locator("#curves-0 .updatemenu-button")
    assert buttons.all_text_contents() == ["seeds", "interval", "log steps", "log return"]
    buttons.nth(0).click()
    page.wait_for_timeout(400)
    assert plot(page).evaluate(SEEDS) == 0
    buttons.nth(0).click()
    page.wait_for_timeout(400)
    assert plot(page).evaluate(SEEDS) == 6
    page.locator("#curves-0 .legend2toggle").nth(2).click()
    page.wait_for_timeout(600)
    hidden = plot(page).evaluate("plot => plot.data.filter(t => t.visible === 'legendonly').map(t => t.name)")
    assert hidden == ["7"]
    buttons.nth(1).click()
    page.wait_for_timeout(400)
    assert (
        plot(page).evaluate("plot => plot.data.filter(t => t.meta === 'band').map(t => t.visible)")[1] == "legendonly"
    )
    for k, axis in ((2, "xaxis"), (3, "yaxis")):
        buttons.nth(k).click()
        page.wait_for_timeout(400)
        assert plot(page).evaluate(f"plot => plot.layout.{axis}.type") == "log"
        buttons.nth(k).click()
        page.wait_for_timeout(400)
        assert plot(page).evaluate(f"plot => plot.layout.{axis}.type") == "linear"


@pytest.mark.parametrize("width", WIDTHS)
def test_several_runs(tmp_path, show, width):
    other = make({"env": "catch", "algorithm": "c51", "seeds": 3, "steps": 1000, "learning_starts": 20})
    paths = [written(tmp_path / "a"), written(tmp_path / "b", other)]
    page = show(page_file(tmp_path, *paths, names=["runs/a", "runs/b"]).as_uri(), width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    entries = page.locator("#curves-0 .legendtext").all_text_contents()
    assert entries[:4] == ["runs/a", "runs/b", "runs/a: 6 seeds", "runs/b: 3 seeds"]
    label = hover(page)
    assert "runs/a" in label
    assert "6 seeds" in label


@pytest.mark.parametrize("width", WIDTHS)
def test_a_sweep(sweep, tmp_path, show, width):  # noqa: F811
    page = show(page_file(tmp_path, sweep, names=["runs/sweep"]).as_uri(), width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert "learning_rate" in hover(page, "effect-1")
    faded = "plot => plot.data.filter(t => t.opacity < 0.5).length"
    assert plot(page, "parallel").evaluate(faded) == 0
    page.locator("#parallel .updatemenu-header").click()
    page.locator("#parallel .updatemenu-dropdown-button", has_text="gamma = 0.9").first.click()
    page.wait_for_timeout(400)
    assert plot(page, "parallel").evaluate(faded) == 2


def test_names_of_runs_are_shown_in_figures_as_they_are(tmp_path, show):
    path = evil_page(tmp_path)
    page = show(page_file(tmp_path, path, path, names=[EVIL, "<b>b</b>"]).as_uri())
    entries = page.locator("#curves-0 .legendtext").all_text_contents()
    assert entries == [EVIL, "<b>b</b>", f"{EVIL}: 6 seeds", "<b>b</b>: 6 seeds"]
    assert EVIL in hover(page)


def test_text_of_runs_is_shown_and_not_executed(tmp_path, show):
    path = evil_page(tmp_path)
    page = show(page_file(tmp_path, path, names=[EVIL]).as_uri())
    assert EVIL in page.inner_text("main")
    assert (
        page.evaluate("document.scripts.length - document.querySelectorAll('[type=\"application/json\"]').length") == 2
    )


def test_a_page_of_128_seeds(tmp_path, browser):
    settings = make({"env": "catch", "seeds": 128, "steps": 100_000, "learning_starts": 20})
    file = page_file(tmp_path, written(tmp_path / "run", settings))
    assert file.stat().st_size < 8_000_000
    times = []
    for _ in range(3):
        page = browser.new_page()
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(file.as_uri())
        page.wait_for_selector("body[data-drawn=yes]", timeout=60_000)
        metrics = {x["name"]: x["value"] for x in session.send("Performance.getMetrics")["metrics"]}
        times.append(metrics["TaskDuration"])
        page.close()
    assert min(times) < 2, "seconds of processor time, which other processes do not lengthen"


def test_watching_a_run(tmp_path, show):
    path = written(tmp_path / "run", reports=3, done=False)
    server = watching.server(path, 0, "run")
    watched.add(f"127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        page = show(watching.address(server))
        assert "300 of 1,000" in page.inner_text("#head")
        page.locator("#curves-0 .updatemenu-button").nth(0).click()
        page.wait_for_timeout(400)
        rows = rows_of(make({"env": "catch", "seeds": 6, "seed": 5}), [400, 500], np.random.default_rng(1))
        with open(path / "metrics.csv", "a") as file:
            file.write("".join(f"{','.join(map(str, row))}\n" for row in list(rows)[1:]))
        deadline = time.monotonic() + 30
        while "500 of 1,000" not in page.inner_text("#head") and time.monotonic() < deadline:
            page.wait_for_timeout(200)
        page.wait_for_timeout(400)
        assert "500 of 1,000" in page.inner_text("#head")
        assert "updated" in page.inner_text("#state")
        assert plot(page).evaluate(SEEDS) == 0, "the selection of the reader is kept"
        assert plot(page).evaluate("plot => plot.calcdata[plot.data.findIndex(t => t.meta === 'line')].length") == 5
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
