"""Records → what a person reads: a table in the terminal, and one HTML file that stands alone.

Reads :mod:`normwise.records` only, never torch: a study that was stored years ago can be drawn again on a machine
without it. Calls: :func:`html` for ``report.html``, :func:`table` for the terminal, :func:`plain` for text files.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from contextlib import contextmanager

from normwise.errors import MissingDependencyError

if typing.TYPE_CHECKING:
    from rich.console import RenderableType

    from normwise.records import Study

__all__ = ["html", "plain", "table"]


def html(study: Study) -> str:
    """Draw a study as one HTML document that works offline and makes no request.

    Verdicts come first, then charts and tables with every number; the whole study is embedded as JSON.

    Args:
        study: the comparison, finished or not.

    Returns:
        The document's text (about 2 MB, nearly all of it the packed chart library).

    Raises:
        MissingDependencyError: jinja2 or plotly is not installed.

    Example:
        >>> from normwise.records import Settings, Study
        >>> settings = Settings("digits", ["batch"], [2], [0], [0], {}, {}, "accuracy", "SGD", "", {}, "net")
        >>> study = Study("Digits", "2026-01-01", "normwise compare", settings, {}, {}, [], [], [], 0.0, finished=False)
        >>> html(study).startswith("<!doctype html>")
        True
    """
    with _needs("jinja2 and plotly"):
        from normwise.report import _page
    return _page.render(study)


def table(study: Study) -> RenderableType:
    """Draw a study for the terminal: the verdicts, then one table per batch size.

    Args:
        study: the comparison, finished or not.

    Returns:
        Something for ``rich.console.Console.print``; it fits itself to the console's width, from 80 columns on.

    Raises:
        MissingDependencyError: rich is not installed.

    Example:
        >>> from rich.console import Console
        >>> from normwise.records import Settings, Study
        >>> settings = Settings("digits", ["batch"], [2], [0], [0], {}, {}, "accuracy", "SGD", "", {}, "net")
        >>> study = Study("Digits", "2026-01-01", "normwise compare", settings, {}, {}, [], [], [], 0.0, finished=False)
        >>> Console(width=80).print(table(study))
        Unfinished: what follows covers the trials done so far.
        No verdict yet.
    """
    with _needs("rich"):
        from normwise.report import _terminal
    return _terminal.render(study)


def plain(study: Study, width: int = 120) -> str:
    r"""Give :func:`table`'s content as text without colours, for files and logs.

    Args:
        study: the comparison, finished or not.
        width: columns to fill; at least 80.

    Returns:
        The text, ending in a newline.

    Raises:
        MissingDependencyError: rich is not installed.

    Example:
        >>> from normwise.records import Settings, Study
        >>> settings = Settings("digits", ["batch"], [2], [0], [0], {}, {}, "accuracy", "SGD", "", {}, "net")
        >>> plain(Study("Digits", "2026-01-01", "normwise compare", settings, {}, {}, [], [], [], 0.0))
        'No verdict yet.\n'
    """
    with _needs("rich"):
        from normwise.report import _terminal
    return _terminal.text(study, width)


@contextmanager
def _needs(packages: str) -> Iterator[None]:
    """Turn a missing package into an error that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("normwise"):
            raise
        raise MissingDependencyError(f"the report needs {packages}: pip install 'normwise[compare]'") from error
