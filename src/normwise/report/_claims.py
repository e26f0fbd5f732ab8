"""Claims for people, in the terminal and on the page."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from normwise.outcomes import Claims, Outcome
from normwise.records import to_dict
from normwise.report import _claims_view as view
from normwise.report import _formats as formats
from normwise.report._terminal import said

_STYLES = {"holds": "green", "part": "blue", "fails": "red", "undecided": "yellow"}


def render(claims: Claims) -> RenderableType:
    """Draw the claims; see :func:`normwise.report.claims_table`."""
    if not claims.outcomes:
        return Text("No claim has been put to the test yet.")
    return Group(*(part for outcome in claims.outcomes for part in _claim(outcome)))


def _claim(outcome: Outcome) -> list[RenderableType]:
    table = Table(box=None, padding=(0, 1), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(justify="right")
    table.add_column(justify="right")
    for answer in outcome.answers:
        number, bounds = view.estimate(answer)
        statement = answer.statement if answer.decides else f"(besides) {answer.statement}"
        table.add_row(
            Text(view.mark(answer.verdict), _STYLES[view.kind(answer.verdict)]),
            said(statement + (f" ({answer.note})" if answer.note else "")),
            Text(f"{number}\n[{bounds}]" if bounds else number),
            Text(view.expected(answer), "dim"),
        )
    quick = " (quick run)" if outcome.quick else ""
    title = said(f"\n{outcome.number} {outcome.title}{quick}: ", "bold")
    verdict = Text(outcome.verdict, _STYLES[view.kind(outcome.verdict)])
    return [title + verdict, said(f"{view.summary(outcome)}.", "dim"), table]


def html(claims: Claims) -> str:
    """Draw the page; see :func:`normwise.report.claims_html`."""
    from normwise.report import _frame as frame

    outcomes = claims.outcomes
    looks = formats.unique(s.look for o in outcomes for figure in o.figures for s in figure.series)
    kinds = [view.kind(o.verdict) for o in outcomes]
    return frame.render(
        "claims",
        {"figures": {o.name: [to_dict(f) for f in o.figures] for o in outcomes}, "claims": to_dict(claims)},
        claims.versions,
        looks,
        claims=claims,
        outcomes=outcomes,
        view=view,
        counts={kind: kinds.count(kind) for kind in (*view.KINDS.values(), "undecided")},
        quick=[o.number for o in outcomes if o.quick],
    )
