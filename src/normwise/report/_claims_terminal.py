"""Claims for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from normwise.outcomes import Claims, Outcome
from normwise.report import _claims_view as view
from normwise.report._formats import printable

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
            Text(printable(statement + (f" ({answer.note})" if answer.note else ""))),
            Text(f"{number}\n[{bounds}]" if bounds else number),
            Text(view.expected(answer), "dim"),
        )
    quick = " (quick run)" if outcome.quick else ""
    title = Text(f"\n{outcome.number} {printable(outcome.title)}{quick}: ", "bold")
    verdict = Text(outcome.verdict, _STYLES[view.kind(outcome.verdict)])
    return [title + verdict, Text(printable(f"{view.summary(outcome)}."), "dim"), table]
