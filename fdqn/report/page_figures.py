"""Draw interactive figures as records of plotly.js: data, layout and config. Needs `pip install fdqn[html]`.

Lines are interquartile means over the seeds. Bands are their 95% bootstrap intervals, or the range of the seeds where
fewer than 5 have a value. Text is escaped, because plotly interprets some HTML tags.
"""

import html
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdqn.report import plots, sweeps

Figure = dict[str, Any]

INK = "#1f2937"

LINES = 512
"""Maximum number of settings in parallel coordinates."""

_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", "size": 12, "color": INK}

_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    # Listed one by one, because some of plotly's default buttons send the figure to a server.
    "modeBarButtons": [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]],
    "plotlyServerURL": "",
    "toImageButtonOptions": {"format": "png", "scale": 2},
}


def curves(panel: Mapping[str, Any]) -> Figure:
    """Draw learning curves: a line and a band for each run, and its single seeds.

    Buttons toggle the seeds, the bands and logarithmic axes. The legend toggles each seed of a single run, or all seeds
    of each of several runs.
    """
    runs, traces = panel["curves"], []
    alone = len(runs) == 1
    for i, run in enumerate(runs):  # single seeds first, so that they are drawn below the lines
        if "seeds" in run:
            traces += _each_seed(run, panel["label"]) if alone else [_all_seeds(run, _look(i)[0])]
    for i, run in enumerate(runs):
        colour, dash = _look(i)
        traces += [*_band(run, colour, alone), _line(run, colour, dash, panel["label"], alone)]
    singles = [i for i, trace in enumerate(traces) if trace["meta"] == "seed"]
    bands = [i for i, trace in enumerate(traces) if trace["meta"] == "band"]
    shown = any(traces[i].get("visible", True) is True for i in singles)
    positive = all((np.nan_to_num(run["low"], nan=np.inf) > 0).all() and (run["iqm"] > 0).all() for run in runs)
    toggles = [
        *([_toggle("seeds", _visibility(singles, traces), shown)] if singles else []),
        *([_toggle("interval", _visibility(bands, traces), True)] if bands else []),
        _toggle("log steps", _axis_type("xaxis"), False),
        *([_toggle(f"log {panel['label'].split()[-1]}", _axis_type("yaxis"), False)] if positive else []),
    ]
    return _figure(
        traces,
        {
            "height": 500 if alone else 480 + 16 * len(runs),
            "margin": {"l": 56, "r": 14, "t": 68, "b": 168 if alone and singles else 60},
            "hovermode": "closest" if alone else "x unified",
            "xaxis": {"title": {"text": "environment steps per seed", "standoff": 8}, **_steps_axis(runs)},
            "yaxis": {"title": {"text": _safe(panel["label"]), "standoff": 6}},
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": -0.15,
                "yanchor": "top",
                **({"title": {"text": _safe(panel["legend"]), "side": "top"}} if panel.get("legend") else {}),
            },
            **({"legend2": _seeds_legend()} if alone and singles else {}),
            "updatemenus": _in_a_row(toggles),
        },
    )


def diagnostics(found: Mapping[str, Any]) -> Figure:
    """Draw medians over the seeds, with quartiles, in one panel for each metric."""
    panels, traces = found["panels"], []
    layout: dict[str, Any] = {}
    for k, panel in enumerate(panels):
        x, y = (f"{axis}{k + 1 if k else ''}" for axis in "xy")
        for i, curve in enumerate(panel["curves"]):
            traces += _quartile_traces(
                curve, i, {"xaxis": x, "yaxis": y, "showlegend": k == 0 and len(panel["curves"]) > 1}
            )
        top, size = 1 - k / len(panels), 1 / len(panels)
        layout[f"yaxis{k + 1 if k else ''}"] = {
            "domain": [top - size + 0.06, top - 0.02],
            "anchor": x,
            "title": {"text": _safe(panel["label"]), "standoff": 6},
        }
        layout[f"xaxis{k + 1 if k else ''}"] = {
            "anchor": y,
            "showticklabels": k == len(panels) - 1,
            **({"matches": "x"} if k else {}),
            **_steps_axis(panel["curves"]),
        }
    last = f"xaxis{len(panels) if len(panels) > 1 else ''}"
    layout[last]["title"] = {"text": "environment steps per seed", "standoff": 8}
    return _figure(
        traces,
        {
            "height": 170 * len(panels) + 110 + 16 * len(panels[0]["curves"]),
            "margin": {"l": 66, "r": 14, "t": 34, "b": 50},
            "hovermode": "x unified" if len(panels[0]["curves"]) > 1 else "closest",
            "legend": {"orientation": "h", "x": 0, "y": -0.1, "yanchor": "top"},
            **layout,
        },
    )


def sensitivity(sweep: Mapping[str, Any], number: int) -> Figure:
    """Draw the interquartile mean against the values of axis `number`: a point for each setting, a line for all."""
    axis = sweep["axes"][number]
    column, means, levels = axis["column"], sweep["means"], axis["levels"]
    kept = np.flatnonzero(np.isfinite(means))
    colours = [plots.COLOURS[1] if sweep["members"][i] else plots.COLOURS[5] for i in kept]
    points = {
        "type": "scatter",
        "mode": "markers",
        "name": "settings",
        "meta": "points",
        "x": _places(axis, [column[i] for i in kept]),
        "y": means[kept],
        "text": [_safe(sweep["labels"][i]) for i in kept],
        "hovertemplate": "%{text}: %{y:.5~g}<extra></extra>",
        "marker": {"size": 7, "opacity": 0.6, "color": colours},
    }
    drawn = [level for level in levels if np.isfinite(level["iqm"])]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "all settings with a value",
        "meta": "line",
        "x": _places(axis, [level["value"] for level in drawn]),
        "y": [level["iqm"] for level in drawn],
        "error_y": {
            "symmetric": False,
            "array": [_gap(x["high"], x["iqm"]) for x in drawn],
            "arrayminus": [_gap(x["iqm"], x["low"]) for x in drawn],
            "thickness": 1.5,
            "width": 4,
        },
        "text": [_safe(f"{sweeps.text(x['value'])}: IQM {_ends_text(x)} of {x['settings']} settings") for x in drawn],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": plots.COLOURS[0], "width": 2, "dash": "solid" if axis["scale"] != "category" else "dot"},
        "marker": {"size": 8, "color": plots.COLOURS[0]},
    }
    return _figure(
        [points, line],
        {
            "height": 300,
            "margin": {"l": 52, "r": 12, "t": 12, "b": 46},
            "hovermode": "closest",
            "showlegend": False,
            "xaxis": {"title": {"text": _safe(axis["name"]), "standoff": 6}, **_value_axis(axis)},
            "yaxis": {"title": {"text": _safe(sweep["measure"]), "standoff": 4}},
        },
    )


def parallel_coordinates(sweep: Mapping[str, Any]) -> Figure:
    """Draw each setting as a line through its values and its interquartile mean.

    A menu highlights the settings with one value. At most `LINES` of the best settings are drawn. Lines at equal values
    of an axis are spread out.
    """
    means, axes = sweep["means"], sweep["axes"]
    known = np.flatnonzero(np.isfinite(means))
    order = known[np.argsort(means[known], kind="stable")][-LINES:]
    low, high = float(means[order].min()), float(means[order].max())
    ends = (means[order] - low) / ((high - low) or 1.0)
    heights = np.stack([*(_heights(axis, order) for axis in axes), ends], axis=1)
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "meta": "setting",
            "x": list(range(len(axes) + 1)),
            "y": _short(y),
            "line": {"color": colour, "width": 3 if sweep["members"][i] else 1.5},
            "marker": {"size": 5, "color": colour},
            "hovertemplate": f"{_safe(sweep['labels'][i])}<br>{_safe(sweep['measure'])} {means[i]:.5g}<extra></extra>",
        }
        for i, y, colour in zip(order, heights, _colours(ends), strict=True)
    ]
    names = [*(axis["name"] for axis in axes), sweep["measure"]]
    ticks = [_ticks(axis) for axis in axes]
    ticks.append(([0.0, 0.5, 1.0], [sweeps.text(float(f"{x:.3g}")) for x in (low, (low + high) / 2, high)]))
    return _figure(
        traces,
        {
            "height": 430,
            "margin": {"l": 70, "r": 44, "t": 96, "b": 18},
            "hovermode": "closest",
            "showlegend": False,
            "dragmode": False,
            "xaxis": {
                "side": "top",
                "tickvals": list(range(len(names))),
                "ticktext": [_wrapped(name) for name in names],
                "range": [-0.05, len(axes) + 0.05],
                "showgrid": False,
                "zeroline": False,
                "fixedrange": True,
                "showline": False,
            },
            "yaxis": {"visible": False, "range": [-0.04, 1.06], "fixedrange": True},
            "shapes": [
                {
                    "type": "line",
                    "x0": k,
                    "x1": k,
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": "#9ca3af", "width": 1},
                    "layer": "below",
                }
                for k in range(len(names))
            ],
            "annotations": [
                {
                    "x": k,
                    "y": y,
                    "text": label,
                    "showarrow": False,
                    "xanchor": "right",
                    "xshift": -8,
                    "font": {"size": 11},
                    "bgcolor": "rgba(255,255,255,0.8)",
                    "borderpad": 1,
                }
                for k, axis in enumerate(ticks)
                for y, label in zip(*axis, strict=True)
            ],
            "updatemenus": [
                {
                    "type": "dropdown",
                    "x": 0,
                    "xanchor": "left",
                    "y": 1,
                    "yanchor": "bottom",
                    "pad": {"l": -60, "b": 44},
                    "font": {"size": 11},
                    "bgcolor": "white",
                    "bordercolor": "#d1d5db",
                    "active": 0,
                    "buttons": _selections(axes, order),
                }
            ],
        },
    )


# Traces


def _line(run: Mapping[str, Any], colour: str, dash: str, label: str, alone: bool) -> dict[str, Any]:
    name = "IQM" if alone else _safe(run["name"])
    return {
        "type": "scatter",
        "mode": "lines" if len(run["steps"]) > 1 else "markers",
        "name": name,
        "meta": "line",
        "x": _whole(run["steps"]),
        "y": _short(run["iqm"]),
        "text": [_interval_text(run, j) for j in range(len(run["steps"]))],
        "hovertemplate": f"step %{{x:,}}<br>IQM %{{text}}<extra>{_safe(label)}</extra>" if alone else "%{text}",
        "line": {"color": colour, "width": 2.5, "dash": dash},
        "marker": {"color": colour, "size": 8},
        "legendgroup": f"line {run['name']}",
        "legendrank": 1,
    }


def _band(run: Mapping[str, Any], colour: str, alone: bool) -> list[dict[str, Any]]:
    """Fill the area between the ends of the intervals, with a legend entry if there is one run."""
    known = np.isfinite(run["low"])
    if known.sum() < 2:
        return []
    kinds = {kind for kind in run["kinds"] if kind}
    name = (
        "95% interval" if kinds == {"interval"} else "range of the seeds" if kinds == {"range"} else "interval or range"
    )
    steps = _whole(run["steps"][known])
    both = {
        "type": "scatter",
        "meta": "band",
        "hoverinfo": "skip",
        "mode": "lines",
        "line": {"width": 0, "color": colour},
        "x": steps,
        "legendgroup": "band" if alone else f"line {run['name']}",
        "name": name,
        "legendrank": 2,
    }
    return [
        {**both, "y": _short(run["low"][known]), "showlegend": False},
        {
            **both,
            "y": _short(run["high"][known]),
            "fill": "tonexty",
            "fillcolor": _faint(colour, 0.22),
            "showlegend": alone,
        },
    ]


def _each_seed(run: Mapping[str, Any], label: str) -> list[dict[str, Any]]:
    """Draw each seed as a line with an entry in the legend of seeds. Failed seeds are dotted."""
    many = len(run["seeds"]) > plots.SINGLE_CURVES
    return [
        {
            "type": "scatter",
            "mode": "lines" if len(values) > 1 else "markers",
            "meta": "seed",
            "name": str(seed),
            "legend": "legend2",
            "x": _whole(run["seed_steps"]),
            "y": _short(values),
            "connectgaps": True,
            "line": {"color": "#D55E00" if failed else "#56B4E9", "width": 1, "dash": "dot" if failed else "solid"},
            "opacity": 0.9 if failed else 0.55,
            "hovertemplate": _seed_hover(seed, failed, label),
            **({"visible": "legendonly"} if many else {}),
        }
        for seed, failed, values in zip(run["seeds"], run["failed"], run["seed_values"], strict=True)
    ]


def _seed_hover(seed: int, failed: bool, label: str) -> str:
    return f"step %{{x:,}}<br>{_safe(label)} %{{y:,.5~g}}<extra>seed {seed}{', failed' * failed}</extra>"


def _all_seeds(run: Mapping[str, Any], colour: str) -> dict[str, Any]:
    """Draw all seeds of a run as one trace with gaps, hidden at first."""
    count, steps = len(run["seeds"]), run["seed_steps"]
    x = np.tile(np.append(steps, steps[-1]), count)
    y = np.concatenate([np.append(values, np.nan) for values in run["seed_values"]])
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": "seed",
        "name": f"{_safe(run['name'])}: {count} seeds",
        "visible": "legendonly",
        "x": _whole(x),
        "y": _short(y),
        "line": {"color": colour, "width": 0.7},
        "opacity": 0.45,
        "hoverinfo": "skip",
        "legendgroup": f"seeds {run['name']}",
        "legendrank": 3,
    }


def _quartile_traces(curve: Mapping[str, Any], i: int, place: Mapping[str, Any]) -> list[dict[str, Any]]:
    colour, dash = _look(i)
    steps = _whole(curve["steps"])
    edge = {
        "type": "scatter",
        "mode": "lines",
        "x": steps,
        "hoverinfo": "skip",
        "line": {"width": 0, "color": colour},
        "legendgroup": curve["name"],
        **place,
        "showlegend": False,
        "name": "quartiles",
        "meta": "band",
    }
    name, short = _safe(curve["name"]), "%{y:.4~g}"
    long = f"step %{{x:,}}<br>median {short} [%{{customdata[0]:.4~g}}, %{{customdata[1]:.4~g}}]<extra></extra>"
    return [
        {**edge, "y": _short(curve["low"])},
        {**edge, "y": _short(curve["high"]), "fill": "tonexty", "fillcolor": _faint(colour, 0.2)},
        {
            "type": "scatter",
            "mode": "lines" if len(steps) > 1 else "markers",
            "x": steps,
            "y": _short(curve["median"]),
            "name": name,
            "meta": "line",
            "legendgroup": curve["name"],
            "line": {"color": colour, "width": 2, "dash": dash},
            "customdata": np.stack([_short(curve["low"]), _short(curve["high"])], axis=1),
            "hovertemplate": short if place["showlegend"] else long,
            **place,
        },
    ]


def _heights(axis: Mapping[str, Any], order: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the heights of settings on an axis. Equal values are spread out in the given order."""
    heights = np.array([_fraction(axis, axis["column"][i]) for i in order])
    for height in np.unique(heights):
        here = np.flatnonzero(heights == height)
        heights[here] += np.linspace(-1, 1, len(here)) * min(0.02, 0.002 * len(here)) if len(here) > 1 else 0
    return heights


def _fraction(axis: Mapping[str, Any], value: Any) -> float:
    """Return the position of a value on an axis: 0 for the lowest value, 1 for the highest."""
    distinct, scale = axis["distinct"], axis["scale"]
    if scale == "category":
        return distinct.index(value) / max(1, len(distinct) - 1)
    low, high, x = (np.log(v) if scale == "log" else float(v) for v in (distinct[0], distinct[-1], value))
    return float((x - low) / ((high - low) or 1.0))


def _ticks(axis: Mapping[str, Any]) -> tuple[list[float], list[str]]:
    """Return heights and labels of the ticks: all values, or at most 5 if there are more than 8."""
    distinct = axis["distinct"]
    if len(distinct) > 8:
        wanted = np.linspace(0, 1, 5)
        places = np.array([_fraction(axis, x) for x in distinct])
        distinct = [distinct[i] for i in dict.fromkeys(int(np.abs(places - x).argmin()) for x in wanted)]
    return [_fraction(axis, x) for x in distinct], [_safe(sweeps.text(x)) for x in distinct]


def _selections(axes: Sequence[Mapping[str, Any]], order: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the entries of a menu that fades the settings outside of one value or bin of an axis."""
    entries = [("all settings", np.ones(len(order), dtype=bool))]
    for axis in axes:
        for value, members in sweeps.groups(axis["column"]):
            inside = [axis["column"][i] for i in members]
            exact = len(set(map(str, inside))) == 1
            text = sweeps.text(value) if exact else f"{sweeps.text(min(inside))} to {sweeps.text(max(inside))}"
            entries.append((f"{axis['name']} = {text}" if exact else f"{axis['name']} {text}", np.isin(order, members)))
    return [
        {"label": _safe(label), "method": "restyle", "args": [{"opacity": [1 if x else 0.06 for x in chosen]}]}
        for label, chosen in entries
    ]


def _colours(fractions: NDArray[np.float64]) -> list[str]:
    """Return colours from light for the lowest to dark for the highest mean."""
    from plotly.colors import sample_colorscale

    return sample_colorscale("YlGnBu", list(0.25 + 0.75 * fractions))


def _wrapped(name: str) -> str:
    """Break a long name into lines at its underscores and spaces."""
    lines = textwrap.wrap(name.replace("_", "_ "), 14, break_long_words=False) if len(name) > 16 else [name]
    return "<br>".join(_safe(line.replace("_ ", "_")) for line in lines)


# Layout


def _figure(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> Figure:
    """Check a figure with plotly and return it as values of JSON, in which arrays are encoded compactly."""
    import plotly.graph_objects as go

    axis = {"gridcolor": "#e5e7eb", "zerolinecolor": "#e5e7eb", "linecolor": "#9ca3af", "automargin": False}
    axes = {name: {**axis, **x} for name, x in layout.items() if name.startswith(("xaxis", "yaxis"))}
    base = {
        "font": _FONT,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "template": "none",
        "uirevision": "page",
        "hoverlabel": {"namelength": -1, "bgcolor": "white", "font": {"size": 12}},
    }
    made = go.Figure(list(traces), {**base, **layout, **axes})
    return {**json.loads(made.to_json()), "config": _CONFIG}


def _toggle(label: str, actions: tuple[list[Any], list[Any], str], active: bool) -> dict[str, Any]:
    on, off, method = actions
    return {"label": label, "method": method, "args": on, "args2": off, "active": active}


def _visibility(numbers: list[int], traces: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any], str]:
    hidden = "legendonly" if any(traces[i].get("showlegend", True) for i in numbers) else False
    return [{"visible": True}, numbers], [{"visible": hidden}, numbers], "restyle"


def _axis_type(axis: str) -> tuple[list[Any], list[Any], str]:
    log, linear = ({f"{axis}.type": kind, f"{axis}.autorange": True} for kind in ("log", "linear"))
    return [log], [linear], "relayout"


def _in_a_row(toggles: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a menu for each toggle, because only one button of a menu can be active."""
    menus, left = [], 0
    for toggle in toggles:
        button = {name: x for name, x in toggle.items() if name != "active"}
        menus.append(
            {
                "type": "buttons",
                "direction": "right",
                "showactive": True,
                "active": 0 if toggle["active"] else -1,
                "buttons": [button],
                "x": 0,
                "xanchor": "left",
                "y": 1,
                "yanchor": "bottom",
                "font": {"size": 11},
                "pad": {"l": left - 50, "b": 8, "t": 0, "r": 0},
                "bgcolor": "white",
                "bordercolor": "#d1d5db",
            }
        )
        left += 5 * len(toggle["label"]) + 34
    return menus


def _seeds_legend() -> dict[str, Any]:
    return {
        "orientation": "h",
        "x": 0,
        "y": -0.33,
        "yanchor": "top",
        "maxheight": 84,
        "entrywidth": 34,
        "font": {"size": 10},
        "title": {"text": "seeds ", "font": {"size": 11}},
        "itemwidth": 30,
        "tracegroupgap": 0,
    }


def _steps_axis(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"tickformat": "~s", "hoverformat": ",", "rangemode": "tozero", "nticks": 8}


def _value_axis(axis: Mapping[str, Any]) -> dict[str, Any]:
    distinct = axis["distinct"]
    if axis["scale"] == "category":
        labels = [_safe(sweeps.text(x)) for x in distinct]
        return {
            "type": "linear",
            "tickvals": list(range(len(distinct))),
            "ticktext": labels,
            "range": [-0.5, len(distinct) - 0.5],
        }
    if len(distinct) <= 8:
        return {
            "type": axis["scale"],
            "tickvals": list(distinct),
            "ticktext": [_safe(sweeps.text(x)) for x in distinct],
        }
    return {"type": axis["scale"], "nticks": 6}


def _places(axis: Mapping[str, Any], values: Sequence[Any]) -> list[Any]:
    return [axis["distinct"].index(x) for x in values] if axis["scale"] == "category" else list(values)


# Text and numbers


def _safe(text: Any) -> str:
    """Escape text for plotly, which interprets tags and, in hover templates, `%{`."""
    return html.escape(str(text), quote=False).replace("%{", "%&#123;")


def _interval_text(run: Mapping[str, Any], j: int) -> str:
    kind = run["kinds"][j]
    ends = "" if kind is None else f" [{'range ' * (kind == 'range')}{run['low'][j]:,.5g}, {run['high'][j]:,.5g}]"
    return f"{run['iqm'][j]:,.5g}{ends}, {run['count'][j]} seeds"


def _ends_text(level: Mapping[str, Any]) -> str:
    if level["kind"] is None:
        return f"{level['iqm']:.5g}"
    return f"{level['iqm']:.5g} [{'range ' * (level['kind'] == 'range')}{level['low']:.5g}, {level['high']:.5g}]"


def _gap(high: float, low: float) -> float:
    return high - low if np.isfinite(high) and np.isfinite(low) else 0.0


def _look(number: int) -> tuple[str, str]:
    dashes = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
    colour, style = plots.look(number)
    return colour, dashes[style]


def _faint(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _whole(steps: NDArray[np.int64]) -> NDArray[Any]:
    return steps.astype(np.int32) if len(steps) and steps.max() < 2**31 else steps.astype(np.float64)


def _short(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32)
