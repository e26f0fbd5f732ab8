"""The studies of a database: which there are, and how one is made or renamed."""

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
from normwise.records import STUDY_VERSION, Settings, Setup, Trial, from_dict, to_dict
from normwise.study.address import is_url, redact
from normwise.study.database import STORE_NAME, Database, File, Memory, Storage
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
    """Turns Optuna's trials into the finished ones, each setup once; remembers those it has turned."""

    def __init__(self) -> None:
        self._known: dict[int, Trial] = {}

    def of(self, trials: list[FrozenTrial]) -> list[Trial]:
        """Choose and turn them."""
        found: dict[str, Trial] = {}
        for frozen in trials:
            if frozen.state == TrialState.COMPLETE:
                if frozen.number not in self._known:
                    self._known[frozen.number] = from_dict(Trial, frozen.user_attrs.get("result"))
                found.setdefault(self._known[frozen.number].setup.key, self._known[frozen.number])
        return list(found.values())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's log lines and its notices about experimental features away from the user."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.filterwarnings("ignore", "Heartbeat of storage is supposed")  # The store gives its own.
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
    if name in there and isinstance(storage, Storage):
        new = next(n for n in (f"{name}.old-{k}" for k in range(1, 10**6)) if n not in there)
        statement = sqlalchemy.text("UPDATE studies SET study_name = :new WHERE study_name = :old")
        with storage.engine.begin() as connection:
            connection.execute(statement, {"new": new, "old": name})


def setup_of(trial: FrozenTrial | optuna.Trial) -> Setup:
    """What a stored trial is to train; older stores call it a cell."""
    return from_dict(Setup, trial.user_attrs.get("setup", trial.user_attrs.get("cell")))


def as_frozen(settings: Settings, setup: Setup, result: dict[str, Any] | None = None) -> FrozenTrial:
    """Give Optuna's form of a trial that waits, or of a finished one.

    Its parameters are the setup's, so that Optuna's own tools show them; they are stored with the trial, which is much
    faster than to suggest them one by one when it runs.
    """
    choices: dict[str, list[Any]] = {
        "stage": ["tune", "final"],
        "method": settings.methods,
        "batch_size": settings.batch_sizes,
        "lr": sorted({lr for batch_size in settings.batch_sizes for lr in ladder(settings, batch_size)}),
        "seed": sorted({*settings.seeds, *settings.tune_seeds}),
    }
    given = to_dict(setup)
    known = {name: values for name, values in choices.items() if given[name] in values}
    return optuna.trial.create_trial(
        state=TrialState.WAITING if result is None else TrialState.COMPLETE,
        value=None if result is None else result["valid_score"],
        params={name: given[name] for name in known},
        distributions={name: CategoricalDistribution(values) for name, values in known.items()},
        user_attrs={"setup": given} | ({} if result is None else {"result": result}),
    )
