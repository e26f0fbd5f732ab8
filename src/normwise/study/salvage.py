"""Damaged SQLite files: notice the damage, put the file aside, and go on with what can still be read of it.

SQLite's own recovery is a command line program that few have, and what SQLAlchemy and Optuna cannot read they refuse as
a whole. So rows are asked for one by one here, past broken indexes.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import eq
from pathlib import Path
from typing import Any

import filelock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from normwise.errors import StoreError
from normwise.files import parse_json
from normwise.records import STUDY_VERSION, Settings, Setup, Trial, from_dict, to_dict
from normwise.study.catalog import Finished, as_frozen, create, quiet, setup_of
from normwise.study.database import LOCKED_FOR, TABLES, Database, File

# So many rows in a row may be broken before the rest counts as lost.
_MISSES = 2000
_MAGIC = b"SQLite format 3\0"
# What stands where in the header of a file that SQLite makes by default; the rest differs from file to file.
_HEADER = {
    0: _MAGIC,
    16: (4096).to_bytes(2, "big"),
    18: bytes([1, 1, 0, 64, 32, 32]),
    44: (4).to_bytes(4, "big"),
    56: (1).to_bytes(4, "big"),
}
# What a database cannot do at the moment, or here; all else that goes wrong is its content's.
_HINDERED = ("locked", "readonly", "read-only", "unable to open", "disk i/o", "disk is full", "permission")
_LOG = logging.getLogger("normwise")


@dataclass
class Salvaged:
    """What was found of one study: its attributes, and the results of its finished trials as they were stored.

    ``finished`` is how many trials the file calls finished, whether or not their results could be read.
    """

    attributes: dict[str, Any] = field(default_factory=dict)
    results: list[Any] = field(default_factory=list)
    finished: int = 0


def mended(database: Database, settings: Settings | None, name: str | None) -> BaseStorage:
    """Open a database; a damaged file is put aside and what can be read of it goes into a new one.

    The caller holds the lock.
    """
    damage = damage_of(database)
    if damage is None:
        return database.storage()
    assert isinstance(database, File)
    aside = _put_aside(database.path)
    kept = salvage(aside)
    if name is not None and len(kept) == 1:
        # The only one can be no other, though its name be damaged.
        kept = {name: next(iter(kept.values()))}
    storage = database.storage()
    read = sum(_restore(storage, each, found, settings) for each, found in kept.items())
    lost = sum(found.finished for found in kept.values()) - read
    _LOG.warning(
        "normwise: %s was damaged (%s); it is kept as %s, %d finished trial(s) were read from it%s, and what is "
        "missing is run again",
        *(database.name, damage, aside.name, read, f", {lost} were lost" if lost > 0 else ""),
    )
    return storage


def damage_of(database: Database) -> str | None:
    """Look for damage in a file of studies: in its structure, and by reading all that it holds."""
    if not isinstance(database, File) or not database.exists():
        return None
    if (found := _structural_damage(database)) is not None:
        return found
    try:
        with quiet():
            storage = database.storage()
            for study in storage.get_all_studies():
                trials = storage.get_all_trials(storage.get_study_id_from_name(study.study_name), deepcopy=False)
                _read_through(study.user_attrs, trials)
    except RuntimeError as error:  # Optuna's, about the version of its tables
        raise StoreError(f"{database.name} cannot be used ({' '.join(str(error).split())})") from error
    except Exception as error:  # of all kinds, where what Optuna reads is not what it wrote
        return None if _is_hindered(error) else " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def _structural_damage(database: File) -> str | None:
    """What SQLite finds wrong with a file; that of another program is refused."""
    with database.path.open("rb") as file:
        head = file.read(len(_MAGIC))
    if head != _MAGIC:
        # It was cut within these bytes, or some of them changed: no other program's file begins like this.
        if _MAGIC.startswith(head) or sum(map(eq, head, _MAGIC)) > len(_MAGIC) // 2:
            return "its first bytes are not those of a SQLite file"
        raise _foreign(database, "it is not a SQLite file")
    with contextlib.closing(sqlite3.connect(database.path, timeout=LOCKED_FOR)) as connection:
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and not tables & TABLES:
                raise _foreign(database, "it is a SQLite file of another program")
            verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        except sqlite3.OperationalError as error:
            # It may be busy, which says nothing of the content; opening it will say more.
            return None if _is_hindered(error) else str(error)
        except sqlite3.DatabaseError as error:
            verdict = str(error)
        except UnicodeDecodeError:
            verdict = "the names of its tables cannot be read"
    return None if verdict == "ok" else str(verdict).splitlines()[-1]


def _foreign(database: File, detail: str) -> StoreError:
    return StoreError(f"{database.name} cannot be used ({detail}); it was left as it is: add {database.other}")


def _read_through(about: dict[str, Any], trials: list[FrozenTrial]) -> None:
    """Read a study as it will be read later; those of other programs and of a newer normwise are not judged."""
    version = about.get("version", 1)
    foreign = about.get("settings") is None
    if foreign or (isinstance(version, int) and version > STUDY_VERSION):
        if foreign and any(trial.user_attrs.keys() & {"setup", "cell"} for trial in trials):
            raise StoreError("the study's settings are missing")
        return
    settings = from_dict(Settings, about["settings"])
    Finished().of(trials)
    for trial in trials:
        setup = setup_of(trial)
        if not _belongs(setup, settings):
            raise StoreError(f"the trial {setup.key} is not of this study")
        if trial.state == TrialState.COMPLETE and from_dict(Trial, trial.user_attrs["result"]).setup != setup:
            raise StoreError(f"the result of the trial {setup.key} is that of another")


def _is_hindered(error: BaseException) -> bool:
    """Tell whether an error says that a file could not be used just now, which says nothing of its content."""
    if isinstance(error, (filelock.Timeout, OSError)):
        return True
    if not isinstance(error, (sqlite3.Error, SQLAlchemyError, StorageInternalError)):
        return False
    text = f"{error} {error.__cause__ or ''}".lower()
    return any(word in text for word in _HINDERED)


def _belongs(setup: Setup, settings: Settings) -> bool:
    return (
        setup.stage in ("tune", "final")
        and setup.method in settings.methods
        and setup.batch_size in settings.batch_sizes
        and setup.seed in (*settings.seeds, *settings.tune_seeds)
    )


def _put_aside(path: Path) -> Path:
    """Rename a file, and what SQLite keeps beside it, to the first free ``study.db.damaged-N``."""
    numbered = (path.with_name(f"{path.name}.damaged-{n}") for n in range(1, 10**6))
    aside = next(free for free in numbered if not free.exists())
    for suffix in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def _restore(storage: BaseStorage, name: str, kept: Salvaged, settings: Settings | None) -> int:
    """Make a study of what was read from a damaged file, and give how many of its results are whole."""
    study = create(storage, name)
    with contextlib.suppress(StoreError):
        settings = from_dict(Settings, kept.attributes.pop("settings", None))
    if settings is not None:
        kept.attributes["settings"] = to_dict(settings)
    for key, value in kept.attributes.items():
        study.set_user_attr(key, value)
    whole: dict[str, FrozenTrial] = {}
    for result in kept.results:
        with contextlib.suppress(StoreError):
            setup = from_dict(Trial, result).setup
            if settings is not None and _belongs(setup, settings):
                whole[setup.key] = as_frozen(settings, setup, result)
    study.add_trials(list(whole.values()))
    return len(whole)


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
        # Text that cannot be decoded is refused where it is read; a broken table must not hide the others.
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
