"""The study as one HTML page."""

from __future__ import annotations

from normwise.records import Study, to_dict
from normwise.report import _formats as formats
from normwise.report import _frame as frame
from normwise.report import _view as view


def render(study: Study) -> str:
    """Draw the page; see :func:`normwise.report.html`."""
    methods = view.methods_of(study)
    scale = formats.scale_of(study)
    blends = view.blends_of(study)
    finals = view.finals_of(study)
    members = formats.unique(member for blend in blends for layer in blend.layers for member in layer.members)
    return frame.render(
        "report.html",
        "charts.js",
        # What the charts read: the study as it is stored, and how to draw it.
        {
            "study": to_dict(study),
            "scale": to_dict(scale),
            "methods": methods,
            "blends": [to_dict(blend) for blend in blends],
        },
        study.versions,
        methods,
        drawn=members,
        scripts=("filter.js", "trials.js"),
        study=study,
        settings=study.settings,
        scale=scale,
        level=formats.interval_level(study),
        groups=view.groups_of(study),
        blends=blends,
        finals=finals,
        regrets=view.regrets_of(study),
        curve_sizes=[(size, f"Batch size {size}") for size in dict.fromkeys(t.cell.batch_size for t in finals)],
        lost=[t for t in study.trials if t.state != "complete"],
        shared_cautions=view.shared_cautions(study),
        members=members,
    )
