"""The page of a result that has no form of its own: what it says in short, its charts, its rows."""

from __future__ import annotations

import json

from normwise.report import _charts
from normwise.report import _diagnosis as diagnosis
from normwise.report import _frame as frame
from normwise.results import Result


def html(result: Result) -> str:
    """Draw the page; see :func:`normwise.report.page`. Columns that hold nothing are left out."""
    rows = result._rows()
    columns = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)] if rows else []
    return frame.render(
        "result",
        {"result": json.loads(result.to_json())},
        {},
        [],
        charts=_charts.charts_of(result),
        title=repr(result),
        facts=result._facts(),
        notes=result._notes(),
        kinds=diagnosis.kinds(getattr(result, "findings", [])),
        shown=diagnosis.SHOWN,
        columns=columns,
        rows=rows,
    )
