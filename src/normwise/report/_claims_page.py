"""The claims as one HTML page."""

from __future__ import annotations

from normwise.outcomes import Claims
from normwise.records import to_dict
from normwise.report import _claims_view as view
from normwise.report import _formats as formats
from normwise.report import _frame as frame


def render(claims: Claims) -> str:
    """Draw the page; see :func:`normwise.report.claims_html`."""
    outcomes = claims.outcomes
    looks = formats.unique(s.look for o in outcomes for figure in o.figures for s in figure.series)
    kinds = [view.kind(o.verdict) for o in outcomes]
    return frame.render(
        "claims.html",
        "claims.js",
        {"figures": {o.name: [to_dict(f) for f in o.figures] for o in outcomes}, "claims": to_dict(claims)},
        claims.versions,
        looks,
        styles=("claims.css",),
        claims=claims,
        outcomes=outcomes,
        view=view,
        counts={kind: kinds.count(kind) for kind in (*view.KINDS.values(), "undecided")},
        quick=[o.number for o in outcomes if o.quick],
    )
