"""The database that studies are kept in: memory or one SQLite file; ``server`` adds PostgreSQL for many machines.

All of a study's queue is Optuna's. What differs between the carriers is said here once: how to reach the database, the
one lock under which trials are claimed, how long a silent worker counts as alive, and what to tell the user.

The lock has two carriers of one kind: both are free again as soon as their holder dies. For a file it is a lock of the
operating system beside it; for a server it is an advisory lock that a connection of its own holds, so that the server
frees it with the connection.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from operator import eq
from pathlib import Path
from typing import Any, Protocol

import filelock
import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from normwise.errors import StoreError
from normwise.study.address import redact

STORE_NAME = "study.db"
# Tables that mark a database as Optuna's.
TABLES = {"studies", "trials", "version_info"}

# Seconds that a lock is waited for; its holder does no more than claim a trial.
LOCKED_FOR = 120

MAGIC = b"SQLite format 3\0"
# What a database cannot do at the moment, or here; all else that goes wrong is its content's.
_HINDERED = ("locked", "readonly", "read-only", "unable to open", "disk i/o", "disk is full", "permission")


class Lock(Protocol):
    """What only one process at a time holds; free again when its holder dies."""

    def acquire(self) -> object:
        """Wait for it and take it."""
        ...

    def release(self, force: bool = False) -> None:
        """Give it up; harmless when it is free already."""
        ...


class Database(ABC):
    """A database that holds studies.

    ``name`` is for people and holds no password. A worker that has been silent for ``grace`` seconds counts as dead;
    it gives a sign of life every ``heartbeat`` seconds. One that waits looks again after ``poll`` seconds, and ever
    more seldom up to ``poll_at_most``, so that many that wait do not keep those that work from their claims.
    """

    name: str
    other = "--out for another folder"
    heartbeat = 1
    grace = 6
    poll = 0.5
    poll_at_most = 0.5
    # Whether this process holds a trial, which alone entitles it to signs of life.
    working = False

    @abstractmethod
    def lock(self) -> Lock:
        """Give a handle on the lock of this database."""

    @abstractmethod
    def storage(self) -> BaseStorage:
        """Open Optuna's storage, with its tables made where they are missing. Wants the lock."""

    @abstractmethod
    def exists(self) -> bool:
        """Tell whether there are studies to read, without making anything."""

    def error(self, error: BaseException) -> StoreError:
        """Put what went wrong with the database into one line for the user."""
        return StoreError(f"{self.name} cannot be used ({self.detail(error)}): add {self.other}")

    def detail(self, error: BaseException) -> str:
        """Give the driver's own words for an error, in one line without a password."""
        cause = error.__cause__ or error
        lines = str(getattr(cause, "orig", None) or cause).strip().splitlines()
        return redact(lines[0]) if lines else type(cause).__name__

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn what goes wrong with the database in the body into one clear line."""
        try:
            yield
        except (SQLAlchemyError, StorageInternalError, filelock.Timeout, OSError) as error:
            # Not chained: the original's text may hold the address with its password.
            raise self.error(error) from None


class Memory(Database):
    """Holds a study as long as the process lives."""

    name = "memory"

    def lock(self) -> Lock:
        """Give a stand-in: nobody else can come by."""
        return _NoLock()

    def storage(self) -> BaseStorage:
        """Make an empty storage."""
        return InMemoryStorage()

    def exists(self) -> bool:
        """Say no: there is nothing to come back to."""
        return False


class _NoLock:
    def acquire(self) -> None:
        pass

    def release(self, force: bool = False) -> None:
        pass


class File(Database):
    """One SQLite file, for any number of processes of one machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    def lock(self) -> Lock:
        """Give the lock of a file beside it; makes the folder."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path.parent / ".study.lock", timeout=LOCKED_FOR)
            with lock:
                return lock
        except OSError as error:
            raise StoreError(
                f"cannot write to the folder {self.path.parent}: {error.strerror or error}; name another with --out"
            ) from error

    def storage(self) -> BaseStorage:
        """Open the file, or make it."""
        kwargs = {"connect_args": {"timeout": LOCKED_FOR}}
        return optuna.storages.get_storage(Storage(self, f"sqlite:///{self.path.resolve()}", kwargs))

    def exists(self) -> bool:
        """Tell whether the file is there and not empty."""
        return self.path.is_file() and self.path.stat().st_size > 0

    def damage(self) -> str | None:
        """Look for damage."""
        if not self.exists():
            return None
        with self.path.open("rb") as file:
            head = file.read(len(MAGIC))
        if head != MAGIC:
            # Cut within its first bytes, or some of them changed: no other program's file begins so.
            if MAGIC.startswith(head) or sum(map(eq, head, MAGIC)) > len(MAGIC) // 2:
                return "its first bytes are not those of a SQLite file"
            raise self._foreign("it is not a SQLite file")
        with contextlib.closing(sqlite3.connect(self.path, timeout=LOCKED_FOR)) as connection:
            try:
                tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                if tables and not tables & TABLES:
                    raise self._foreign("it is a SQLite file of another program")
                verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            except sqlite3.OperationalError as error:
                # Busy, say: no word about the content, which opening it will have more to say about.
                return None if is_hindered(error) else str(error)
            except sqlite3.DatabaseError as error:
                verdict = str(error)
            except UnicodeDecodeError:
                verdict = "the names of its tables cannot be read"
        return None if verdict == "ok" else str(verdict).splitlines()[-1]

    def put_aside(self) -> Path:
        """Rename the file, and what SQLite keeps beside it, to the first free ``study.db.damaged-N``."""
        numbered = (self.path.with_name(f"{self.path.name}.damaged-{n}") for n in range(1, 10**6))
        aside = next(path for path in numbered if not path.exists())
        self.path.rename(aside)
        for suffix in ("-journal", "-wal", "-shm"):
            beside = self.path.with_name(self.path.name + suffix)
            if beside.exists():
                beside.rename(aside.with_name(aside.name + suffix))
        return aside

    def error(self, error: BaseException) -> StoreError:
        """Say that the file cannot be used, and that it was left alone."""
        if isinstance(error, filelock.Timeout):
            return StoreError(f"{self.name} has been locked by another process for {LOCKED_FOR} s")
        if isinstance(error, OSError):
            return StoreError(f"cannot use the folder {self.path.parent}: {error.strerror or error}")
        return super().error(error)

    def _foreign(self, detail: str) -> StoreError:
        return StoreError(f"{self.name} cannot be used ({detail}); it was left as it is: add {self.other}")


class Storage(RDBStorage):
    """Optuna's storage, whose heartbeat outlives a database that is away for a moment."""

    def __init__(self, database: Database, url: str, engine_kwargs: dict[str, Any]) -> None:
        self._database = database
        self._owner = threading.get_ident()
        super().__init__(
            url,
            engine_kwargs=engine_kwargs,
            heartbeat_interval=database.heartbeat,
            grace_period=database.grace,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
        weakref.finalize(self, self.engine.dispose)

    def record_heartbeat(self, trial_id: int) -> None:
        """Give a sign of life."""
        if threading.get_ident() == self._owner:
            return super().record_heartbeat(trial_id)
        if not self._database.working:
            # An interrupt can come between the start of Optuna's thread and the block that would stop it: the thread
            # would keep the process from ending, and the trial from being taken over.
            raise SystemExit
        # Optuna's thread: the next beat tries again. Were this raised, the thread would end, and its trial be taken for
        # one of a dead worker.
        with contextlib.suppress(StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)
        return None


def is_hindered(error: BaseException) -> bool:
    """Tell whether an error says that a file could not be used just now, which is no word about its content."""
    if isinstance(error, (filelock.Timeout, OSError)):
        return True
    if not isinstance(error, (sqlite3.Error, SQLAlchemyError, StorageInternalError)):
        return False
    text = f"{error} {error.__cause__ or ''}".lower()
    return any(word in text for word in _HINDERED)


def is_away(error: BaseException | None) -> bool:
    """Tell whether an error says that the connection broke: what was asked may be asked again."""
    while error is not None:
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        error = error.__cause__
    return False
