"""Read what can still be read of a damaged SQLite store, past SQLAlchemy and past broken indexes."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normwise.files import parse_json

# So many rows in a row may be broken before the rest counts as lost.
_MISSES = 2000
# What stands where in the header of a file that SQLite makes by default; the rest differs from file to file.
_HEADER = {
    0: b"SQLite format 3\0",
    16: (4096).to_bytes(2, "big"),
    18: bytes([1, 1, 0, 64, 32, 32]),
    44: (4).to_bytes(4, "big"),
    56: (1).to_bytes(4, "big"),
}


@dataclass
class Salvaged:
    """What was found of one study: its attributes, and the results of its finished trials as they were stored.

    ``finished`` is how many trials the file calls finished, whether or not their results could be read.
    """

    attributes: dict[str, Any] = field(default_factory=dict)
    results: list[Any] = field(default_factory=list)
    finished: int = 0


def salvage(path: Path) -> dict[str, Salvaged]:
    """Collect the studies of a damaged file, row by row."""
    with tempfile.TemporaryDirectory(prefix="normwise-") as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        _straighten(copy)
        return _found(copy)


def _straighten(path: Path) -> None:
    """Give a file the header that every study's has, and one that was cut short the length that its header tells.

    SQLite reads nothing of a file with another one, nor of a shorter one.
    """
    with path.open("r+b") as file:
        for place, usual in _HEADER.items():
            file.seek(place)
            file.write(usual)
        file.seek(0)
        header = file.read(32)
        page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
        length = (65536 if page == 1 else page) * pages
        if path.stat().st_size < length < 100 * path.stat().st_size:
            file.truncate(length)


def _found(path: Path) -> dict[str, Salvaged]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
        # What cannot be decoded is for whoever reads it to refuse, and a broken table must not hide the others.
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        connection.execute("PRAGMA writable_schema=ON")
        names = dict(_rows(connection, "studies", "study_id, study_name"))
        found = {key: Salvaged() for key in names}
        for key, name, text in _rows(connection, "study_user_attributes", "study_id, key, value_json"):
            if key in found and (value := _parsed(text)) is not None:
                found[key].attributes[str(name)] = value
        study_of = {}
        for trial, study, state in _rows(connection, "trials", "trial_id, study_id, state"):
            study_of[trial] = next(iter(names)) if len(names) == 1 else study
            if state == "COMPLETE" and study_of[trial] in found:
                found[study_of[trial]].finished += 1
        for trial, name, text in _rows(connection, "trial_user_attributes", "trial_id, key, value_json"):
            # Where the table of trials is lost, a result can only be the single study's.
            owner = study_of.get(trial, next(iter(names)) if len(names) == 1 else None)
            if name == "result" and owner in found and (value := _parsed(text)) is not None:
                found[owner].results.append(value)
    return {str(names[key]): kept for key, kept in found.items()}


def _rows(connection: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """Every row that can be reached; asked for one by one, since a scan ends at the first broken page."""
    missing = row = 0
    while missing < _MISSES:
        row, missing = row + 1, missing + 1
        try:
            found = connection.execute(f"SELECT {columns} FROM {table} WHERE rowid = ?", (row,)).fetchone()
        except sqlite3.Error:
            continue
        if found is not None:
            missing = 0
            yield found


def _parsed(text: object) -> Any:
    try:
        return parse_json(text) if isinstance(text, str) else None
    except ValueError:
        return None
