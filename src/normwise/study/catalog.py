"""The studies of a database: which there are, and how one is made, renamed or put back from a damaged file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from normwise.errors import InputError, StoreError
from normwise.records import Trial, from_dict
from normwise.study.address import is_url, redact
from normwise.study.database import STORE_NAME, Database, File, Memory
from normwise.study.salvage import Salvaged
from normwise.study.server import Server


def open_database(where: str | os.PathLike[str] | Database | None) -> Database:
    """Give the database that a user names. Nothing is opened or made yet.

    Args:
        where: ``None`` for memory, a folder, a SQLite file, ``sqlite:///FILE``, or ``postgresql://USER@HOST/DATABASE``.

    Returns:
        The database.

    Raises:
        InputError: it is neither.

    Example:
        >>> open_database("results").name
        'results/study.db'
        >>> open_database("mysql://db/x")
        Traceback (most recent call last):
        ...
        normwise.errors.InputError: cannot keep studies in mysql://db/x: expected postgresql://USER@HOST/DATABASE, ...
    """
    if where is None:
        return Memory()
    if isinstance(where, Database):
        return where
    text = os.fspath(where)
    if not is_url(text):
        path = Path(text)
        return File(path if path.is_file() or path.suffix in {".db", ".sqlite", ".sqlite3"} else path / STORE_NAME)
    kind, _, rest = text.partition("://")
    if kind.lower() == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return File(Path(rest[1:]))
    if kind.lower().partition("+")[0] in {"postgresql", "postgres"}:
        return Server(text)
    raise InputError(
        f"cannot keep studies in {redact(text)}: expected postgresql://USER@HOST/DATABASE, sqlite:///FILE or a folder"
    )


def names(storage: BaseStorage) -> list[str]:
    """List the studies of a storage.

    Args:
        storage: Optuna's.

    Returns:
        Their names, oldest first.

    Example:
        >>> names(Memory().storage())
        []
    """
    return [study.study_name for study in storage.get_all_studies()]


def only_name(storage: BaseStorage, database: Database) -> str:
    """Choose the study of a database that holds one.

    Args:
        storage: Optuna's.
        database: for the message.

    Returns:
        Its name.

    Raises:
        StoreError: there is none, or there are several; the message lists them.

    Example:
        >>> only_name(Memory().storage(), Memory())
        Traceback (most recent call last):
        ...
        normwise.errors.StoreError: memory holds no study
    """
    there = names(storage)
    if len(there) == 1:
        return there[0]
    if not there:
        raise StoreError(f"{database.name} holds no study")
    raise StoreError(f"{database.name} holds several studies ({', '.join(there)}): name one with --study")


def unknown(name: str, storage: BaseStorage, database: Database) -> StoreError:
    """Say which studies there are where one is not.

    Args:
        name: that was asked for.
        storage: Optuna's.
        database: for the message.

    Returns:
        The error to raise.

    Example:
        >>> unknown("a", Memory().storage(), Memory())
        StoreError("memory holds no study 'a': it holds none")
    """
    return StoreError(f"{database.name} holds no study {name!r}: it holds {', '.join(names(storage)) or 'none'}")


def create(storage: BaseStorage, name: str) -> optuna.Study:
    """Open a study, made where there is none of this name.

    Args:
        storage: Optuna's.
        name: of the study.

    Returns:
        Optuna's study.

    Example:
        >>> create(Memory().storage(), "mine").study_name
        'mine'
    """
    return optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        # Never asked: every parameter of every trial is given. The default sampler costs time even so.
        sampler=optuna.samplers.RandomSampler(seed=0),
    )


def rename(storage: BaseStorage, name: str) -> None:
    """Make room for a study of this name: one that has it is ``NAME.old-1`` from now on. Optuna itself cannot rename.

    Args:
        storage: Optuna's.
        name: of the study.

    Example:
        >>> rename(Memory().storage(), "mine")
    """
    there = names(storage)
    engine = getattr(getattr(storage, "_backend", None), "engine", None)
    if name in there and engine is not None:
        new = next(n for n in (f"{name}.old-{k}" for k in range(1, 10**6)) if n not in there)
        statement = sqlalchemy.text("UPDATE studies SET study_name = :new WHERE study_name = :old")
        with engine.begin() as connection:
            connection.execute(statement, {"new": new, "old": name})


def restore(storage: BaseStorage, name: str, kept: Salvaged) -> None:
    """Make a study of what was read from a damaged file.

    Args:
        storage: Optuna's.
        name: of the study.
        kept: its attributes and results.

    Example:
        >>> storage = Memory().storage()
        >>> restore(storage, "mine", Salvaged({"title": "Mine"}))
        >>> create(storage, "mine").user_attrs
        {'title': 'Mine'}
    """
    study = create(storage, name)
    for key, value in kept.attributes.items():
        study.set_user_attr(key, value)
    for result in whole(kept).values():
        study.add_trial(as_frozen(result))


def whole(kept: Salvaged) -> dict[str, Any]:
    """Choose the results that are whole.

    Args:
        kept: what was read from a damaged file.

    Returns:
        The key of a cell → its result.

    Example:
        >>> whole(Salvaged(results=[{"half": 1}]))
        {}
    """
    found = {}
    for result in kept.results:
        with contextlib.suppress(StoreError):
            found[from_dict(Trial, result).cell.key] = result
    return found


def as_frozen(result: dict[str, Any]) -> FrozenTrial:
    """Give Optuna's form of a finished trial.

    Args:
        result: the trial as plain data.

    Returns:
        To be added to a study.

    Example:
        >>> as_frozen({"cell": {"method": "batch"}, "valid_score": 0.5}).value
        0.5
    """
    attributes = {"cell": result["cell"], "result": result}
    return optuna.trial.create_trial(value=result["valid_score"], user_attrs=attributes)
