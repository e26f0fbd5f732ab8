"""What results have in common: a short line, a table for notebooks and pandas, a file to come back to."""

from __future__ import annotations

import html
import importlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

from normwise.errors import MissingDependencyError
from normwise.files import write_own
from normwise.records import load_record


class Tabular:
    """Rows under a headline; a class says which."""

    _kind: ClassVar[str]

    def _headline(self) -> str:
        """What came out, in one line."""
        raise NotImplementedError

    def _rows(self) -> Sequence[Mapping[str, Any]]:
        """What is in the table: rows of plain values, all with the same keys."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{self._kind.capitalize()} {self._headline()}"

    def to_frame(self) -> Any:
        """Give the rows as a pandas ``DataFrame``.

        Returns:
            The frame; lists in its cells are joined by commas.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ModuleNotFoundError as error:
            raise MissingDependencyError("to_frame needs pandas: pip install pandas") from error
        return pandas.DataFrame([{key: _plain(value) for key, value in row.items()} for row in self._rows()])

    def plot(self, chart: str | None = None) -> Any:
        """Draw a chart of the result's page as a plotly figure.

        Args:
            chart: which one; by default the first that the result holds. A study has ``score``, ``behind``, ``time``,
                ``memory`` and ``curves``; a diagnosis ``gradients``, ``gaps`` and ``shifts``; advice ``points``,
                ``time`` and ``memory``; a conversion ``refitted`` and ``drift``; an inspection ``channels``,
                ``variance`` and ``dead``.

        Returns:
            A ``plotly.graph_objects.Figure``, which a notebook shows.

        Raises:
            InputError: the result has no such chart, or nothing to draw.
            MissingDependencyError: plotly is not installed.
        """
        return self._report().figure(self, chart)

    def to_html(self) -> str:
        """Draw the result as one self-contained page.

        Returns:
            The page's text.

        Raises:
            MissingDependencyError: the packages of ``normwise[compare]`` are not installed.
        """
        return self._report().page(self)

    @staticmethod
    def _report() -> Any:
        # By name: records are read by the report, and know it only when they are to be drawn.
        return importlib.import_module("normwise.report")

    def _facts(self) -> list[tuple[str, str]]:
        """What its page says in short, as pairs of title and value."""
        return []

    def _notes(self) -> list[str]:
        """What its page says besides."""
        return []

    def _repr_html_(self) -> str:
        """Show the headline and the rows in a notebook."""
        rows = self._rows()
        body = [_line("td", row.values()) for row in rows]
        table = f"<table>{_line('th', rows[0])}{''.join(body)}</table>" if rows else ""
        return f"<p>{html.escape(repr(self))}</p>{table}"


class Result(Tabular):
    """A record that is kept in a file."""

    _newest: ClassVar[int]

    def to_json(self) -> str:
        """Give the record as strict JSON."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON, whole or not at all.

        Args:
            path: the file; what normwise did not write is not replaced.

        Raises:
            InputError: a file is there that holds something else.
            StoreError: the file cannot be written.
        """
        write_own(path, self.to_json(), self._kind)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.

        Returns:
            The record.

        Raises:
            StoreError: the file cannot be read, is no such record, or of a newer version than this normwise knows.
        """
        return load_record(path, cls, cls._kind, cls._newest)


def counted(severities: Iterable[str]) -> str:
    """Say how many findings there are of each severity, the gravest first."""
    found = Counter(severities)
    order = [severity for severity in ("error", "warning", "info") if found[severity]]
    return ", ".join(f"{found[s]} {s}{'s' * (found[s] != 1 and s != 'info')}" for s in order) or "no findings"


def layers(count: int) -> str:
    """A number of layers in words."""
    return f"{count} layer{'s' * (count != 1)}"


def _plain(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def written(value: Any) -> str:
    """A value as tables show it."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(_plain(value))


def _line(tag: str, values: Iterable[Any]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(written(value))}</{tag}>' for value in values)}</tr>"
