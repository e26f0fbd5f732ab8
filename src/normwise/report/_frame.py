"""The frame of a page: one HTML file that works offline, with jinja2's words and tables and plotly.js's charts.

Why plotly.js: pages filter, drill down and show trade-offs, which needs hover, redrawing and themes; it is kept
well and draws SVG that prints sharply. Its 4.8 MB are embedded gzipped (1.9 MB as base64) and unpacked by the browser's
own ``DecompressionStream`` before they run. Without scripts every number still stands in the tables.

The page's content policy forbids every request, so that no text, however hostile, can phone home. Escaping: jinja's
autoescape for markup, its ``tojson`` for the embedded data, ``safe()`` in ``page.js`` for plotly's pseudo-HTML.
"""

from __future__ import annotations

import base64
import functools
import gzip
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from normwise.records import to_dict
from normwise.report import _formats as formats
from normwise.report import _palette as palette
from normwise.report._charts import Chart, Curves
from normwise.results import written

# What draws each kind of page's charts and moves its tables, after page.js.
_SCRIPTS = {
    "advice": ["rows.js", "charts.js"],
    "claims": ["rows.js", "claims.js"],
    "diagnosis": ["rows.js", "charts.js"],
    "result": ["rows.js", "charts.js"],
    "study": ["rows.js", "filter.js", "trials.js", "study.js"],
}


def render(
    kind: str,
    data: Mapping[str, Any],
    versions: Mapping[str, str],
    methods: Sequence[str],
    drawn: Sequence[str] = (),
    charts: Mapping[str, Sequence[Chart | Curves]] = types.MappingProxyType({}),
    **context: Any,
) -> str:
    """Draw a page of one kind of record: its template, which extends ``page.html``, with the one style sheet."""
    shown = formats.unique([*methods, *drawn])
    return (
        _environment()
        .get_template(f"{kind}.html")
        .render(
            kind=kind,
            methods=list(methods),
            looks=palette.looks(list(methods)),
            card=palette.CARD,
            versions=versions,
            charts=charts,
            data={
                **data,
                "charts": {name: [asdict(chart) for chart in parts] for name, parts in charts.items()},
                "looks": {name: to_dict(look) for name, look in palette.looks(shown).items()},
            },
            style=_asset("report.css"),
            script=Markup("\n").join(_asset(name) for name in ("page.js", *_SCRIPTS[kind])),
            plotly=_packed_plotly(),
            **context,
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("normwise.report", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(formats=formats, MISSING=formats.MISSING)
    environment.filters.update(
        ms=formats.milliseconds,
        mib=formats.mebibytes,
        duration=formats.duration,
        share=formats.share,
        moment=formats.moment,
        written=written,
        upper_first=_upper_first,
        sentence=lambda text: f"{_upper_first(text).removesuffix('.')}.",
        norm=lambda name: palette.NAMES.get(name, name),
    )
    return environment


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _asset(name: str) -> Markup:
    """Read one of the package's own files, which go into the page as they are."""
    return Markup((resources.files("normwise.report") / name).read_text(encoding="utf-8"))


@functools.cache
def _packed_plotly() -> str:
    """Pack the chart library; ``mtime=0`` keeps equal records' pages equal."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
