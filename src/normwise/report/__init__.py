"""Records → what a person reads: a table in the terminal, and one HTML file that stands alone.

Reads the records of :mod:`normwise.records`, ``findings``, ``outcomes`` and ``advice`` only, never torch: what was
stored years ago can be drawn again on a machine without it. Calls: :func:`html` for ``report.html``, :func:`table` for
the terminal, :func:`plain` for text files; the same of a diagnosis are :func:`diagnosis_html`, :func:`diagnosis_table`
and :func:`diagnosis_plain`; of advice :func:`advice_html`, :func:`advice_table` and
:func:`advice_plain`; of claims :func:`claims_html`, :func:`claims_table` and, for the docs, :func:`claims_markdown`.
Of any result :func:`page` draws the page and :func:`figure` a chart of it for plotly.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from contextlib import contextmanager

from normwise.errors import MissingDependencyError

if typing.TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

    from normwise.advice import Advice
    from normwise.findings import Diagnosis
    from normwise.outcomes import Claims
    from normwise.records import Study
    from normwise.results import Tabular

__all__ = [
    "advice_html",
    "advice_plain",
    "advice_table",
    "claims_html",
    "claims_markdown",
    "claims_table",
    "diagnosis_html",
    "diagnosis_plain",
    "diagnosis_table",
    "figure",
    "html",
    "page",
    "plain",
    "table",
]


def html(study: Study) -> str:
    """Draw a study as one HTML document that works offline and makes no request.

    Verdicts come first, then charts and tables with every number; the whole study is embedded as JSON.

    Args:
        study: the comparison, finished or not.

    Returns:
        The document's text (about 2 MB, nearly all of it the packed chart library).

    Raises:
        MissingDependencyError: rich, jinja2 or plotly is not installed.

    Example:
        >>> from normwise.records import Settings, Study
        >>> settings = Settings("digits", ["batch"], [2], [0], [0], {}, {}, "accuracy", "SGD", "", {}, "net")
        >>> study = Study("Digits", "2026-01-01", "normwise compare", settings, {}, {}, [], [], [], 0.0, finished=False)
        >>> html(study).startswith("<!doctype html>")
        True
    """
    with _needs("rich, jinja2 and plotly"):
        from normwise.report import _study

        return _study.html(study)


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
        from normwise.report import _study
    return _study.render(study)


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
        from normwise.report._terminal import plain as as_text
    return as_text(table(study), width)


def page(result: Tabular) -> str:
    """Draw any result as one HTML document that works offline.

    Args:
        result: what :func:`normwise.compare`, ``diagnose``, ``advise``, ``convert`` or ``inspect`` gave.

    Returns:
        The document's text.

    Raises:
        MissingDependencyError: rich, jinja2 or plotly is not installed.

    Example:
        >>> from normwise.advice import Situation, rank
        >>> page(rank("Net", Situation("conv", ["conv"], batch_size=64, depth=5))).startswith("<!doctype html>")
        True
    """
    with _needs("rich, jinja2 and plotly"):
        from normwise.report import _advice, _diagnosis, _result, _study

        of = {"study": _study.html, "diagnosis": _diagnosis.html, "advice": _advice.html}
        return of.get(result._kind, _result.html)(getattr(result, "record", result))  # type: ignore[operator]


def figure(result: Tabular, chart: str | None = None) -> Figure:
    """Draw a chart of a result as a plotly figure.

    Args:
        result: what :func:`normwise.compare`, ``diagnose``, ``advise``, ``convert`` or ``inspect`` gave.
        chart: which one; by default the first that the result holds.

    Returns:
        The figure; of a study with one part for each batch size.

    Raises:
        InputError: the result has no such chart, or nothing to draw.
        MissingDependencyError: plotly is not installed.

    Example:
        >>> from normwise.advice import Situation, rank
        >>> advice = rank("Net", Situation("conv", ["conv"], batch_size=64, depth=5))
        >>> [annotation.text for annotation in figure(advice).layout.annotations]
        ['Expected behind the best method']
    """
    with _needs("plotly"):
        from normwise.report import _charts, _figures

        return _figures.figure(_charts.chosen(result, chart))


def diagnosis_html(seen: Diagnosis) -> str:
    """Draw a diagnosis as one HTML document that works offline: findings with their fixes, charts by depth, tables.

    Args:
        seen: what :func:`normwise.diagnose` gave.

    Returns:
        The document's text.

    Raises:
        MissingDependencyError: rich, jinja2 or plotly is not installed.

    Example:
        >>> from normwise.findings import Diagnosis, ModelFacts, RunTrace
        >>> seen = Diagnosis("2026-01-01", ModelFacts("Net", "conv", ["conv"], 2, 2), RunTrace())
        >>> "Nothing found" in diagnosis_html(seen)
        True
    """
    with _needs("rich, jinja2 and plotly"):
        from normwise.report import _diagnosis

        return _diagnosis.html(seen)


def diagnosis_table(seen: Diagnosis) -> RenderableType:
    """Draw a diagnosis for the terminal: the findings, the gravest first, then what was measured.

    Args:
        seen: what :func:`normwise.diagnose` gave.

    Returns:
        Something for ``rich.console.Console.print``.

    Raises:
        MissingDependencyError: rich is not installed.

    Example:
        >>> from rich.console import Console
        >>> from normwise.findings import Diagnosis, ModelFacts, RunTrace
        >>> seen = Diagnosis("2026-01-01", ModelFacts("Net", "conv", ["conv"], 2, 2), RunTrace())
        >>> Console(width=80).print(diagnosis_table(seen))
        Net: nothing found
        architecture conv; normalization layers 0; batch size 2; passes measured 0 of 0
    """
    with _needs("rich"):
        from normwise.report import _diagnosis
    return _diagnosis.render(seen)


def diagnosis_plain(seen: Diagnosis, width: int = 120) -> str:
    """Give :func:`diagnosis_table`'s content as text without colours, for files and logs.

    Args:
        seen: what :func:`normwise.diagnose` gave.
        width: columns to fill; at least 80.

    Returns:
        The text, ending in a newline.

    Raises:
        MissingDependencyError: rich is not installed.

    Example:
        >>> from normwise.findings import Diagnosis, ModelFacts, RunTrace
        >>> seen = Diagnosis("2026-01-01", ModelFacts("Net", "conv", ["conv"], 2, 2), RunTrace())
        >>> diagnosis_plain(seen).splitlines()[0]
        'Net: nothing found'
    """
    with _needs("rich"):
        from normwise.report._terminal import plain as as_text
    return as_text(diagnosis_table(seen), width)


def advice_html(advice: Advice) -> str:
    """Draw advice as one HTML document that works offline: what to use and why, every method's reasons with sources.

    Args:
        advice: from :func:`normwise.advise`.

    Returns:
        The document's text.

    Raises:
        MissingDependencyError: rich, jinja2 or plotly is not installed.

    Example:
        >>> from normwise.advice import Situation, rank
        >>> "Use batch norm" in advice_html(rank("Net", Situation("conv", ["conv"], batch_size=64, depth=5)))
        True
    """
    with _needs("rich, jinja2 and plotly"):
        from normwise.report import _advice

        return _advice.html(advice)


def advice_table(advice: Advice) -> RenderableType:
    """Draw advice for the terminal: what to use, why, the code, and how all methods rank.

    Args:
        advice: from :func:`normwise.advise`.

    Returns:
        Something for ``rich.console.Console.print``.

    Raises:
        MissingDependencyError: rich is not installed.

    Example:
        >>> callable(advice_table)
        True
    """
    with _needs("rich"):
        from normwise.report import _advice
    return _advice.render(advice)


def advice_plain(advice: Advice, width: int = 120) -> str:
    """Give :func:`advice_table`'s content as text without colours, for files and logs.

    Args:
        advice: from :func:`normwise.advise`.
        width: columns to fill; at least 80.

    Returns:
        The text, ending in a newline.

    Raises:
        MissingDependencyError: rich is not installed.

    Example:
        >>> from normwise.advice import Situation, rank
        >>> advice_plain(rank("Net", Situation("conv", ["conv"], batch_size=64, depth=5))).partition(",")[0]
        'Net: use batch norm'
    """
    with _needs("rich"):
        from normwise.report._terminal import plain as as_text
    return as_text(advice_table(advice), width)


def claims_html(claims: Claims) -> str:
    """Draw claims as one HTML document that works offline and makes no request.

    Args:
        claims: their outcomes.

    Returns:
        The document's text.

    Raises:
        MissingDependencyError: rich, jinja2 or plotly is not installed.

    Example:
        >>> from normwise.outcomes import Claims
        >>> claims_html(Claims("2026-01-01", "normwise claims run all", {}, {}, [])).startswith("<!doctype html>")
        True
    """
    with _needs("rich, jinja2 and plotly"):
        from normwise.report import _claims

        return _claims.html(claims)


def claims_table(claims: Claims) -> RenderableType:
    """Draw claims for the terminal: each with its verdict and its hypotheses.

    Args:
        claims: their outcomes.

    Returns:
        Something for ``rich.console.Console.print``.

    Raises:
        MissingDependencyError: rich is not installed.

    Example:
        >>> from rich.console import Console
        >>> from normwise.outcomes import Claims
        >>> Console(width=80).print(claims_table(Claims("2026-01-01", "normwise claims run all", {}, {}, [])))
        No claim has been put to the test yet.
    """
    with _needs("rich"):
        from normwise.report import _claims
    return _claims.render(claims)


def claims_markdown(claims: Claims) -> str:
    """Write claims as a page of the docs, with every number in tables.

    Args:
        claims: their outcomes.

    Returns:
        Markdown.

    Example:
        >>> from normwise.outcomes import Claims
        >>> claims_markdown(Claims("2026-01-01", "normwise claims run all", {}, {}, [])).splitlines()[0]
        '# What the textbooks say, measured'
    """
    from normwise.report import _claims_markdown

    return _claims_markdown.render(claims)


@contextmanager
def _needs(packages: str) -> Iterator[None]:
    """Turn a missing package into an error that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("normwise"):
            raise
        raise MissingDependencyError(f"drawing needs {packages}: pip install 'normwise[compare]'") from error
