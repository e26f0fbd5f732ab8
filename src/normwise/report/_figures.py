"""The charts of a result as plotly figures, to show in a notebook and to change as one likes."""

from __future__ import annotations

import html
from typing import Any

from plotly.graph_objects import Bar, Figure, Scatter
from plotly.subplots import make_subplots

from normwise.report import _palette as palette
from normwise.report._charts import Chart, Curves, Row

_BLUE, _WARN = "#1d4ed8", "#8a4b00"
_ROW, _AROUND, _HIGH = 26, 90, 320


def figure(charts: list[Chart | Curves]) -> Figure:
    """Draw charts below one another; names stand at the left, as wide as they are."""
    heights = [_HIGH if isinstance(chart, Curves) else _ROW * len(chart.rows) for chart in charts]
    total = sum(heights) + _AROUND * len(charts)
    drawn = make_subplots(
        len(charts), 1, row_heights=heights, subplot_titles=[chart.title for chart in charts],
        vertical_spacing=_AROUND / total if len(charts) > 1 else 0,
    )  # fmt: skip
    for place, chart in enumerate(charts, 1):
        if isinstance(chart, Curves):
            drawn.add_traces(_lines(chart, place == 1), place, 1)
            drawn.update_xaxes(title_text=chart.along, row=place, col=1)
            drawn.update_yaxes(title_text=chart.unit, row=place, col=1)
            continue
        drawn.add_trace(_trace(chart), place, 1)
        names = [html.escape(row.name) for row in chart.rows]
        drawn.update_yaxes(
            tickvals=[*range(len(names))],
            ticktext=names,
            range=[len(names) - 0.5, -0.5],
            automargin=True,
            row=place,
            col=1,
        )
        drawn.update_xaxes(title_text=chart.unit, type="log" if chart.log else "linear", row=place, col=1)
        if chart.mark is not None:
            drawn.add_vline(chart.mark, line={"color": _WARN, "dash": "dot"}, row=place, col=1)
    return drawn.update_layout(height=total, template="plotly_white")


def _lines(chart: Curves, named: bool) -> list[Scatter]:
    looks = palette.looks([line.name for line in chart.rows])
    return [
        Scatter(
            x=line.x, y=line.y, name=html.escape(line.name), mode="lines+markers", legendgroup=line.name,
            showlegend=named, line={"color": looks[line.name].light}, marker={"symbol": looks[line.name].symbol},
        )
        for line in chart.rows
    ]  # fmt: skip


def _trace(chart: Chart) -> Bar | Scatter:
    rows = chart.rows
    looks = palette.looks([row.look for row in rows if row.look])
    colors = [looks[row.look].light if row.look else _BLUE for row in rows]
    shared: dict[str, Any] = {
        "x": [row.value for row in rows], "y": [*range(len(rows))], "text": [html.escape(row.name) for row in rows],
        "hovertemplate": "%{text}: %{x:.4g}<extra></extra>", "showlegend": False,
    }  # fmt: skip
    if chart.form == "bars":
        return Bar(orientation="h", marker_color=colors, textposition="none", **shared)
    symbols = [looks[row.look].symbol if row.look else "circle" for row in rows]
    mode = "lines+markers" if chart.form == "line" else "markers"
    marker = {"color": colors, "symbol": symbols, "size": 10}
    return Scatter(mode=mode, marker=marker, line={"color": _BLUE, "width": 1.5}, error_x=_intervals(rows), **shared)


def _intervals(rows: list[Row]) -> dict[str, Any] | None:
    if not any(row.high is not None for row in rows):
        return None
    above = [0 if row.high is None else row.high - row.value for row in rows]
    below = [0 if row.low is None else row.value - row.low for row in rows]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": "#5b616b"}
