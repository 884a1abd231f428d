"""Write a page of results as one HTML file that needs no network. Needs `pip install fdqn[html]`.

All text of runs is escaped. A content security policy allows the scripts of this module and plotly.js from the package
plotly, by their hashes. The browser runs and loads nothing else.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import fdqn
from fdqn.report import page_figures

_DRAW = """
const draw = (section, figure) => {
  const plot = section.querySelector('.plot');
  return Plotly.react(plot, figure.data, figure.layout, figure.config);
};
const figureOf = section => JSON.parse(section.querySelector('script').textContent);
Promise.all([...document.querySelectorAll('section.figure')].map(section => draw(section, figureOf(section))))
  .then(() => { document.body.dataset.drawn = 'yes'; });
"""

_UPDATE = """
let seen = '';
const parts = root => [...root.querySelectorAll('section')];
const keep = (figure, plot) => {
  figure.data.forEach((trace, i) => { const old = plot.data[i]; if (old) trace.visible = old.visible; });
  for (const [name, old] of Object.entries(plot.layout)) {
    if (/^[xy]axis/.test(name) && figure.layout[name]) {
      if (old.type) figure.layout[name].type = old.type;
      if (old.autorange === false) { figure.layout[name].range = old.range; figure.layout[name].autorange = false; }
    }
  }
  (plot.layout.updatemenus || []).forEach((old, i) => { figure.layout.updatemenus[i].active = old.active; });
  return figure;
};
const update = async () => {
  const state = document.getElementById('state');
  try {
    const response = await fetch('/update', {cache: 'no-store'});
    if (!response.ok) throw new Error(await response.text());
    const text = await response.text();
    state.textContent = 'updated ' + new Date().toLocaleTimeString();
    if (text === seen) return;
    seen = text;
    const fresh = new DOMParser().parseFromString(text, 'text/html');
    const ids = root => parts(root).map(part => part.id).join();
    if (ids(fresh) !== ids(document)) { location.reload(); return; }
    for (const part of parts(fresh)) {
      const old = document.getElementById(part.id);
      if (part.classList.contains('figure')) {
        await draw(old, keep(figureOf(part), old.querySelector('.plot')));
      } else {
        const open = [...old.querySelectorAll('details')].map(details => details.open);
        old.innerHTML = part.innerHTML;
        old.querySelectorAll('details').forEach((details, i) => { if (i in open) details.open = open[i]; });
      }
    }
  } catch (error) {
    state.textContent = 'update failed: ' + error.message;
  }
};
const again = () => setTimeout(() => update().then(again), 1000 * document.body.dataset.seconds);
again();
"""

_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f3f4f6; color: #1f2937;
  font: 15px/1.45 system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 16px; }
section { background: white; border: 1px solid #e5e7eb; border-radius: 8px; padding: 12px 16px; margin: 0 0 14px;
  min-width: 0; overflow: hidden; }
section#head { background: none; border: 0; padding: 4px 0; }
h1 { font-size: 22px; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 15px; margin: 2px 0 6px; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 0; }
dl div { min-width: 0; }
dt { font-size: 12px; color: #4b5563; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
dd.long { font-weight: 400; max-width: 70ch; }
figure { margin: 0 0 8px; }
p.note, .note, footer, #state { font-size: 12px; color: #4b5563; margin: 4px 0; overflow-wrap: anywhere; }
.plot { width: 100%; }
.scroll { overflow-x: auto; }
.wide { min-width: var(--width); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 0 14px; }
.tall { max-height: 420px; overflow-y: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 12px 3px 0; text-align: left; border-bottom: 1px solid #f0f1f3; vertical-align: top; }
thead th { color: #4b5563; font-weight: 600; position: sticky; top: 0; background: white;
  border-bottom-color: #d1d5db; }
th.number, td.number { text-align: right; white-space: nowrap; }
td, thead th { max-width: 42ch; min-width: 6ch; overflow-wrap: break-word; }
tbody td:first-child { white-space: nowrap; max-width: none; }
table + * , .scroll + details { margin-top: 10px; }
details + details { margin-top: 8px; }
summary { cursor: pointer; font-weight: 600; }
details > .scroll { margin-top: 6px; }
pre { margin: 4px 0; padding: 8px 10px; background: #f3f4f6; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: 13px; }
img { max-width: 100%; height: auto; display: block; }
"""


def check_plotly() -> None:
    """Raise ValueError if plotly is not installed."""
    try:
        import plotly.offline  # noqa: F401
    except ImportError:
        raise ValueError("html: expected plotly, which draws the page, got none; pip install 'fdqn[html]'") from None


@functools.cache
def library() -> str:
    """Return the source of plotly.js, the complete bundle in the installed package plotly."""
    check_plotly()
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def html(page: Mapping[str, Any], seconds: float | None = None) -> str:
    """Return the HTML of a page.

    Args:
        page: data of the page, from `experiment.page_data`.
        seconds: interval at which the page requests updates from its server; None for a page without a server.

    Raises ValueError if plotly is missing.
    """
    scripts = [library(), _DRAW, *([] if seconds is None else [_UPDATE])]
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    connect = "" if seconds is None else " connect-src 'self';"
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:;{connect} "
        "base-uri 'none'; form-action 'none'"
    )
    data = "" if seconds is None else f' data-seconds="{seconds:g}"'
    state = "" if seconds is None else '<p id="state" role="status">waiting for the first update</p>'
    tags = "\n".join(f"<script>{script}</script>" for script in scripts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(page['title'])}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body{data}>\n<main>\n{state}\n{body(page)}\n{_footer()}\n"
        f"</main>\n{tags}\n</body>\n</html>\n"
    )


def encoded(text: str) -> bytes:
    """Encode text as UTF-8. Bytes of paths that are not valid Unicode become backslash escapes."""
    return text.encode(errors="backslashreplace")


def body(page: Mapping[str, Any]) -> str:
    """Return the HTML of the sections of a page, each with an id."""
    return "\n".join(_sections(page))


def _sections(page: Mapping[str, Any]) -> Iterator[str]:
    yield _section("head", "", _head(page))
    for i, panel in enumerate(page["curves"]):
        yield _figure(f"curves-{i}", panel["title"], _curves_note(panel), page_figures.curves(panel))
    if not page["curves"]:
        note = "There are no returns yet, or all seeds have failed."
        yield _section("waiting", "Learning curves", f'<p class="note">{note}</p>')
    yield from _sweep_sections(page["sweep"])
    if page["results"]:
        yield _section("results", page["results"]["title"], _table(page["results"], tall=True))
    if page["videos"]:
        yield _section("videos", "Recordings", "".join(_video(name, video) for name, video in page["videos"]))
    if page["failures"]:
        yield _section("failures", "Failures", _table(page["failures"], tall=True))
    if page["seeds"]:
        closed = len(page["seeds"]) > 1
        yield _section("seeds", "", "".join(_details(table, closed) for table in page["seeds"]))
    if page["diagnostics"]:
        note = "line: median of the seeds; band: quartiles; gradient norm before clipping"
        yield _figure("diagnostics", page["diagnostics"]["title"], note, page_figures.diagnostics(page["diagnostics"]))
    differing, others = page["settings"]["differing"], page["settings"]["others"]
    first = "" if differing is None else f"<h2>{escape(differing['title'])}</h2>{_table(differing)}"
    yield _section("settings", "", first + _details(others, closed=True))
    yield _section("repeat", "Commands to reproduce", _commands(page["commands"]))
    yield _section("machine", page["machine"]["title"], _table(page["machine"]))


def _sweep_sections(sweep: Mapping[str, Any] | None) -> Iterator[str]:
    if sweep is None:
        return
    axes = sweep["axes"]
    if len(axes) > 1:
        thick = ", thick if indistinguishable from the best" if any(sweep["members"]) else ""
        note = f"one line per setting: dark for a high return{thick}; lines at equal values are spread out"
        drawn = page_figures.parallel_coordinates(sweep)
        yield _figure("parallel", "All settings", note, drawn, width=90 * (len(axes) + 1) + 60)
    yield '<div class="grid">'
    for i, axis in enumerate(axes):
        note = "line: mean of all settings with this value, with its interval or range; points: single settings"
        marked = ", orange: indistinguishable from the best" if any(sweep["members"]) else ""
        yield _figure(f"effect-{i}", f"Effect of {axis['name']}", note + marked, page_figures.sensitivity(sweep, i))
    yield "</div>"


# Sections


def _section(name: str, title: str, content: str) -> str:
    heading = f"<h2>{escape(title)}</h2>\n" if title else ""
    return f'<section id="{name}">\n{heading}{content}\n</section>'


def _figure(name: str, title: str, note: str, figure: Mapping[str, Any], width: int = 0) -> str:
    """Return a section with a figure. Its data is JSON, escaped so that it cannot end the script element."""
    data = (
        json.dumps(figure, separators=(",", ":"))
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
    )
    height = figure["layout"]["height"]
    return (
        f'<section id="{name}" class="figure">\n<h2>{escape(title)}</h2>\n<p class="note">{escape(note)}</p>\n'
        f'<div class="scroll"><div class="wide" style="--width: {width}px">'
        f'<div class="plot" style="height: {height}px"></div></div></div>\n'
        f'<script type="application/json">{data}</script>\n</section>'
    )


def _head(page: Mapping[str, Any]) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd{' class=long' if len(value) > 60 else ''}>{escape(value)}</dd></div>"
        for name, value in page["facts"]
    )
    return f"<h1>{escape(page['title'])}</h1>\n" + (f"<dl>{facts}</dl>" if facts else "")


def _curves_note(panel: Mapping[str, Any]) -> str:
    runs = panel["curves"]
    kinds = {kind for run in runs for kind in run["kinds"] if kind}
    bands = {"interval": "its 95% bootstrap interval", "range": "the range of fewer than 5 seeds"}
    band = f"; band: {' or '.join(bands[kind] for kind in sorted(kinds))}" if kinds else ""
    seeds = [run for run in runs if "seeds" in run]
    alone = "; click a seed in the legend to hide it, double-click to show it alone" if len(runs) == 1 and seeds else ""
    return f"line: interquartile mean of the seeds{band}{alone}"


def _table(table: Mapping[str, Any], tall: bool = False) -> str:
    """Return a table. Columns of numbers are aligned to the right."""
    columns = list(zip(*table["rows"], strict=True)) or [()] * len(table["columns"])
    looks = [' class="number"' if _is_numeric(column) else "" for column in columns]
    head = "".join(f"<th{look}>{escape(str(name))}</th>" for look, name in zip(looks, table["columns"], strict=True))
    rows = "".join(
        f"<tr>{''.join(f'<td{look}>{escape(str(x))}</td>' for look, x in zip(looks, row, strict=True))}</tr>\n"
        for row in table["rows"]
    )
    note = f'<p class="note">{escape(table["note"])}</p>' if table["note"] else ""
    return (
        f'<div class="scroll{" tall" * tall}"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>'
        f"</div>{note}"
    )


def _is_numeric(column: Sequence[Any]) -> bool:
    return any(x != "" for x in column) and all(
        isinstance(x, int) or not x.strip("0123456789,.-+e") or x in ("failed", "none") for x in map(_bare, column)
    )


def _bare(x: Any) -> Any:
    """Return a cell without its interval."""
    return x if isinstance(x, int) else str(x).split(" [")[0]


def _details(table: Mapping[str, Any], closed: bool) -> str:
    opened = "" if closed else " open"
    return f"<details{opened}><summary>{escape(table['title'])}</summary>\n{_table(table, tall=True)}</details>"


def _video(run: str, video: Any) -> str:
    title = escape(f"{video.name} ({video.size / 1e6:.1f} MB), {run}")
    if video.content is None:
        return f'<p class="note">{title}: too large for this page</p>'
    encoded = base64.b64encode(video.content).decode()
    image = f'<img alt="{title}" src="data:image/gif;base64,{encoded}">'
    return f'<figure>{image}<figcaption class="note">{title}</figcaption></figure>'


def _commands(commands: Sequence[tuple[str, Sequence[str]]]) -> str:
    several = len(commands) > 1
    parts = []
    for name, lines in commands:
        label = f'<p class="note">{escape(name)}</p>' if several else ""
        text = "\n".join(lines) or "No command: the settings were drawn from ranges, which the folder does not record."
        parts.append(f"{label}<pre>{escape(text)}</pre>")
    return "".join(parts)


def _footer() -> str:
    version = next((x.split()[-1] for x in library()[:200].splitlines() if "plotly.js v" in x), "")
    return f"<footer>fdqn {escape(fdqn.__version__)}, plotly.js {escape(version)}; this page needs no network</footer>"


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
