"""The studies of a database: which there are, and how one is made, renamed or put back from a damaged file."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from normwise.errors import InputError, StoreError
from normwise.records import STUDY_VERSION, Cell, Settings, Trial, from_dict, to_dict
from normwise.study.address import is_url, redact
from normwise.study.database import STORE_NAME, Database, File, Memory, is_hindered
from normwise.study.salvage import Salvaged
from normwise.study.server import Server
from normwise.study.tuning import ladder


def open_database(where: str | os.PathLike[str] | Database | None) -> Database:
    """Give the database that a user names. Nothing is opened or made yet."""
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
    """List the studies of a storage."""
    return [study.study_name for study in storage.get_all_studies()]


def find(storage: BaseStorage, database: Database, name: str | None) -> str:
    """Find a study, or the only one."""
    there = names(storage)
    if name in there or (name is None and len(there) == 1):
        return name or there[0]
    if not there:
        raise StoreError(f"{database.name} holds no study")
    if name is None:
        raise StoreError(f"{database.name} holds several studies ({', '.join(there)}): name one with --study")
    raise StoreError(f"{database.name} holds no study {name!r}: it holds {', '.join(there)}")


def check_version(about: dict[str, Any], what: str) -> None:
    """Refuse what a newer normwise has written; what an older one has written can be read."""
    version = about.get("version", 1)
    if not isinstance(version, int) or version > STUDY_VERSION:
        raise StoreError(f"{what} has version {version}, this normwise reads up to {STUDY_VERSION}: upgrade normwise")
    if "settings" not in about:
        raise StoreError(f"{what} was not made by normwise: it has no settings")


class Finished:
    """Turns Optuna's trials into the finished ones, each cell once; remembers those it has turned."""

    def __init__(self) -> None:
        self._known: dict[int, Trial] = {}

    def of(self, trials: list[FrozenTrial]) -> list[Trial]:
        """Choose and turn them."""
        found: dict[str, Trial] = {}
        for frozen in trials:
            if frozen.state == TrialState.COMPLETE:
                if frozen.number not in self._known:
                    self._known[frozen.number] = from_dict(Trial, frozen.user_attrs.get("result"))
                found.setdefault(self._known[frozen.number].cell.key, self._known[frozen.number])
        return list(found.values())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's log lines and its notices about experimental features away from the user."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def create(storage: BaseStorage, name: str) -> optuna.Study:
    """Open a study, made where there is none of this name."""
    return optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        # Never asked: every parameter of every trial is given. The default sampler costs time even so.
        sampler=optuna.samplers.RandomSampler(seed=0),
    )


def rename(storage: BaseStorage, name: str) -> None:
    """Make room for a study of this name: who has it is ``NAME.old-1`` from now on. Optuna itself cannot rename."""
    there = names(storage)
    engine = getattr(getattr(storage, "_backend", None), "engine", None)
    if name in there and engine is not None:
        new = next(n for n in (f"{name}.old-{k}" for k in range(1, 10**6)) if n not in there)
        statement = sqlalchemy.text("UPDATE studies SET study_name = :new WHERE study_name = :old")
        with engine.begin() as connection:
            connection.execute(statement, {"new": new, "old": name})


def damage_of(database: Database) -> str | None:
    """Look for damage in a file of studies: in its structure, and by reading all that it holds."""
    if not isinstance(database, File) or not database.exists():
        return None
    if (found := database.damage()) is not None:
        return found
    try:
        with quiet():
            storage = database.storage()
            for study in storage.get_all_studies():
                _read_through(study.user_attrs, storage.get_all_trials(study._study_id, deepcopy=False))
    except RuntimeError as error:  # Optuna's, about the version of its tables
        raise StoreError(f"{database.name} cannot be used ({' '.join(str(error).split())})") from error
    except Exception as error:  # of all kinds, where what Optuna reads is not what it wrote
        return None if is_hindered(error) else " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def _read_through(about: dict[str, Any], trials: list[FrozenTrial]) -> None:
    """Read a study as it will be read later; that of another program, or of a newer normwise, is not ours to judge."""
    version = about.get("version", 1)
    foreign = about.get("settings") is None
    if foreign or (isinstance(version, int) and version > STUDY_VERSION):
        if foreign and any("cell" in trial.user_attrs for trial in trials):
            raise StoreError("the study's settings are missing")
        return
    settings = from_dict(Settings, about["settings"])
    Finished().of(trials)
    for trial in trials:
        cell = from_dict(Cell, trial.user_attrs.get("cell"))
        if not _belongs(cell, settings):
            raise StoreError(f"the trial {cell.key} is not of this study")
        if trial.state == TrialState.COMPLETE and trial.user_attrs["result"]["cell"] != trial.user_attrs["cell"]:
            raise StoreError(f"the result of the trial {cell.key} is that of another")


def _belongs(cell: Cell, settings: Settings) -> bool:
    return (
        cell.stage in ("tune", "final")
        and cell.method in settings.methods
        and cell.batch_size in settings.batch_sizes
        and cell.seed in (*settings.seeds, *settings.tune_seeds)
    )


def restore(storage: BaseStorage, name: str, kept: Salvaged, settings: Settings | None = None) -> None:
    """Make a study of what was read from a damaged file."""
    study = create(storage, name)
    own = _settings_of(kept) or settings
    about = {key: value for key, value in kept.attributes.items() if key != "settings"}
    for key, value in (about if own is None else about | {"settings": to_dict(own)}).items():
        study.set_user_attr(key, value)
    for result in whole(kept, own).values():
        assert own is not None  # or nothing would be whole
        study.add_trial(as_frozen(own, from_dict(Cell, result["cell"]), result))


def _settings_of(kept: Salvaged) -> Settings | None:
    with contextlib.suppress(StoreError):
        return from_dict(Settings, kept.attributes.get("settings"))
    return None


def whole(kept: Salvaged, settings: Settings | None = None) -> dict[str, Any]:
    """Choose the results that are whole and of cells of their study."""
    found: dict[str, Any] = {}
    settings = _settings_of(kept) or settings
    for result in kept.results:
        with contextlib.suppress(StoreError):
            cell = from_dict(Trial, result).cell
            if settings is not None and _belongs(cell, settings):
                found[cell.key] = result
    return found


def as_frozen(settings: Settings, cell: Cell, result: dict[str, Any] | None = None) -> FrozenTrial:
    """Give Optuna's form of a trial that waits, or of a finished one.

    Its parameters are the cell's, so that Optuna's own tools show them; they are stored with the trial, which is much
    faster than to suggest them one by one when it runs.
    """
    choices: dict[str, list[Any]] = {
        "stage": ["tune", "final"],
        "method": settings.methods,
        "batch_size": settings.batch_sizes,
        "lr": sorted({lr for batch_size in settings.batch_sizes for lr in ladder(settings, batch_size)}),
        "seed": sorted({*settings.seeds, *settings.tune_seeds}),
    }
    given = to_dict(cell)
    known = {name: values for name, values in choices.items() if given[name] in values}
    return optuna.trial.create_trial(
        state=TrialState.WAITING if result is None else TrialState.COMPLETE,
        value=None if result is None else result["valid_score"],
        params={name: given[name] for name in known},
        distributions={name: CategoricalDistribution(values) for name, values in known.items()},
        user_attrs={"cell": given} | ({} if result is None else {"result": result}),
    )
