"""What ``compare`` returns: the record of a study, with its table and its files."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from normwise import files, records, report
from normwise.results import Tabular

if TYPE_CHECKING:
    from rich.console import RenderableType


# The record and its page.
FILES = ("study.json", "report.html")


class Study(Tabular):
    """A finished (or interrupted) comparison.

    Args:
        record: all that was measured.

    Example:
        >>> settings = records.Settings("t", ["none"], [2], [0, 1], [9], {"2": [0.1]}, {}, "", "", "", {}, "")
        >>> Study(records.Study("T", "2026-01-01", "", settings, {}, {}, [], [], [], 0.0))
        Study 'T': no method is finished yet; 0 trials
    """

    _kind: ClassVar[str] = "study"

    def __init__(self, record: records.Study) -> None:
        self.record = record

    @property
    def verdicts(self) -> list[records.Verdict]:
        """Which method to use at each batch size, how sure that is, and why."""
        return self.record.verdicts

    @property
    def standings(self) -> list[records.Standing]:
        """How each method did, best first within a batch size."""
        return self.record.standings

    @property
    def trials(self) -> list[records.Trial]:
        """Every training run."""
        return self.record.trials

    def table(self) -> RenderableType:
        """Draw the study for a terminal.

        Returns:
            Something for ``rich.print``.

        Example:
            >>> callable(Study.table)
            True
        """
        return report.table(self.record)

    html = Tabular.to_html

    @classmethod
    def load(cls, where: str | os.PathLike[str]) -> Study:
        """Read a study that was saved.

        Args:
            where: its folder, or a ``study.json``.

        Returns:
            The study.

        Raises:
            StoreError: the file cannot be read, is no study, or of a newer version than this normwise knows.

        Example:
            >>> Study.load("nowhere.json")
            Traceback (most recent call last):
            ...
            normwise.errors.StoreError: cannot read the study nowhere.json: No such file or directory
        """
        return cls(records.load_study(Path(where) / FILES[0] if Path(where).is_dir() else where))

    def _headline(self) -> str:
        said = [
            f"{'undecided' if v.outcome in records.UNDECIDED else v.use} at batch size {v.batch_size}"
            for v in self.verdicts
        ]
        return f"{self.record.title!r}: {', '.join(said) or 'no method is finished yet'}; {len(self.trials)} trials"

    def _rows(self) -> list[dict[str, Any]]:
        """Every training run, without its curve."""
        nested = ("setup", "curve", "mixtures", "observed")
        return [asdict(t.setup) | {k: v for k, v in asdict(t).items() if k not in nested} for t in self.trials]

    def save(self, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write ``study.json`` and ``report.html``; each is replaced whole or not at all.

        Args:
            folder: made if it is missing.

        Returns:
            The two files.

        Raises:
            InputError: a file of one of these names is there that normwise did not write.
            StoreError: the folder cannot be written.

        Example:
            >>> callable(Study.save)
            True
        """
        folder = files.make_folder(folder)
        stored, page = folder / FILES[0], folder / FILES[1]
        files.check_folder(folder, "study", FILES)
        files.write_own(stored, records.dumps(self.record), "study")
        files.write_own(page, self.html(), "study", page=True)
        return stored, page

    def _repr_html_(self) -> str:
        """Show the report in a notebook, in a frame of its own so that its styles stay inside."""
        import html

        return f'<iframe srcdoc="{html.escape(self.html())}" style="width:100%;height:40rem;border:0"></iframe>'
