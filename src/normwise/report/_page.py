"""The study as one HTML file: jinja2 writes the words and tables, plotly.js draws the charts from the embedded study.

Why plotly.js: later pages filter, drill down and show trade-offs, which needs hover, redrawing and themes; it is kept
well and draws SVG that prints sharply. Its 4.8 MB are embedded gzipped (1.9 MB as base64) and unpacked by the browser's
own ``DecompressionStream`` before they run. Without scripts every number still stands in the tables.

The page's content policy forbids every request, so that no text, however hostile, can phone home. Escaping: jinja's
autoescape for markup, its ``tojson`` for the embedded data, ``safe()`` in ``charts.js`` for plotly's pseudo-HTML.
"""

from __future__ import annotations

import base64
import functools
import gzip
from importlib import resources

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from normwise.records import Study, to_dict
from normwise.report import _formats as formats
from normwise.report import _palette as palette
from normwise.report import _view as view
from normwise.report._formats import Scale


def render(study: Study) -> str:
    """Draw the page; see :func:`normwise.report.html`."""
    methods = view.methods_of(study)
    scale = formats.scale_of(study)
    groups = view.groups_of(study)
    blends = view.blends_of(study)
    finals = view.finals_of(study)
    trained = {t.cell.method for t in finals}
    template = _environment().get_template("report.html")
    return template.render(
        study=study,
        settings=study.settings,
        scale=scale,
        level=formats.interval_level(study),
        methods=methods,
        looks=palette.looks(methods),
        card=palette.CARD,
        groups=groups,
        blends=blends,
        finals=finals,
        curve_methods=[m for m in methods if m in trained],
        curve_sizes=[(size, f"Batch size {size}") for size in dict.fromkeys(t.cell.batch_size for t in finals)],
        lost=[t for t in study.trials if t.state != "complete"],
        shared_cautions=view.shared_cautions(study),
        data=_data(study, methods, scale, blends),
        members=formats.unique(member for blend in blends for layer in blend.layers for member in layer.members),
        style=_asset("report.css"),
        script=_asset("charts.js"),
        plotly=_packed_plotly(),
    )


def _data(study: Study, methods: list[str], scale: Scale, blends: list[view.Blend]) -> dict:
    """What the charts read: the study as it is stored, and how to draw it."""
    drawn = formats.unique([*methods, *(m for b in blends for layer in b.layers for m in layer.members)])
    return {
        "study": to_dict(study),
        "scale": to_dict(scale),
        "looks": {name: to_dict(look) for name, look in palette.looks(drawn).items()},
        "methods": methods,
        "blends": [to_dict(blend) for blend in blends],
    }


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
        norm=lambda name: palette.NAMES.get(name, name),
    )
    return environment


def _asset(name: str) -> Markup:
    """Read one of the package's own files, which go into the page as they are."""
    return Markup((resources.files("normwise.report") / name).read_text(encoding="utf-8"))


@functools.cache
def _packed_plotly() -> str:
    """Pack the chart library; ``mtime=0`` keeps equal studies' reports equal."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
