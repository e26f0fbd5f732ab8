"""``normwise report``: a stored record drawn again. Needs no torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from normwise.cli.study import read
from normwise.cli.words import live, show
from normwise.errors import NormwiseError, StoreError
from normwise.study.address import is_url

app = App(name="report", help="Draw a stored record again.")


@app.command
def report(
    where: Annotated[str, Parameter(name="STUDY")],
    /,
    *,
    study: str | None = None,
    out: Path | None = None,
    serve: int | None = None,
) -> None:
    """Draw a stored study, diagnosis or advice again: the table here, the page beside it. Needs no torch.

    For instance: normwise report normwise-compare/digits

    Args:
        where: A study.json, a study.db, the folder that holds one, or postgresql://USER@HOST/DATABASE; or what
            'normwise diagnose --out' or 'normwise advise --out' wrote.
        study: The study's name, where a database holds several.
        out: The file to write. Default: report.html beside the study, or here; another record's own name with .html.
        serve: Show a study in a browser at http://127.0.0.1:PORT instead, as it stands whenever the page is asked for,
            until interrupted; on this machine only. 0 takes a free port.
    """
    if serve is not None:
        with live(where, study, serve):
            threading.Event().wait()
    from normwise import report as drawing
    from normwise.advice import is_advice, load_advice
    from normwise.files import check_target, write_own
    from normwise.findings import is_diagnosis, load_diagnosis

    if not is_url(where) and is_diagnosis(Path(where)):
        seen = load_diagnosis(Path(where))
        kind, name = "diagnosis", f"{Path(where).stem}.html"
        draw, shown = partial(drawing.diagnosis_html, seen), partial(drawing.diagnosis_table, seen)
    elif not is_url(where) and is_advice(Path(where)):
        told = load_advice(Path(where))
        kind, name = "advice", f"{Path(where).stem}.html"
        draw, shown = partial(drawing.advice_html, told), partial(drawing.advice_table, told)
    else:
        record = read(where, study)
        kind, name = "study", "report.html"
        draw, shown = partial(drawing.html, record), partial(drawing.table, record)
    page = out if out is not None else _beside(where) / name
    check_target(page, kind, page=True)
    with _whole(where):
        text, table = draw(), shown()
    write_own(page, text, kind, page=True)
    show(table)
    print(f"\nreport  {page}")


@contextmanager
def _whole(where: str) -> Iterator[None]:
    """Say that a stored record contradicts itself where it cannot be drawn: every field has its type, and no sense."""
    try:
        yield
    except NormwiseError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise StoreError(f"cannot draw {where}: it is damaged, parts of it contradict each other ({said})") from error


def _beside(where: str) -> Path:
    """The folder of a study; for a database that has none, this one."""
    path = Path(where)
    return Path() if is_url(where) else path if path.is_dir() else path.parent
