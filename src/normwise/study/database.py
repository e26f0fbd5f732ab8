"""The database that studies are kept in: memory or one SQLite file; ``server`` adds PostgreSQL for many machines.

All of a study's queue is Optuna's. What differs between memory, file and server is said here once: how to reach the
database, the one lock under which trials are claimed, how long a silent worker counts as alive, and what to tell the
user.

Both kinds of lock are free again as soon as their holder dies. For a file it is a lock of the
operating system beside it; for a server it is an advisory lock that a connection of its own holds, so that the server
frees it with the connection.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import filelock
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
    it gives a sign of life every ``heartbeat`` seconds. One that waits looks again after ``poll`` seconds, then
    less and less often up to ``poll_at_most``, so that many that wait do not keep those that work from their claims.
    """

    name: str
    other = "--out for another folder"
    heartbeat = 1
    grace = 6
    poll = 0.5
    poll_at_most = 0.5

    @abstractmethod
    def lock(self) -> Lock:
        """Give a handle on the lock of this database."""

    @abstractmethod
    def storage(self) -> BaseStorage:
        """Open Optuna's storage, with its tables made where they are missing. The caller holds the lock."""

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
        return Storage(self, f"sqlite:///{self.path.resolve()}", kwargs)

    def exists(self) -> bool:
        """Tell whether the file is there and not empty."""
        return self.path.is_file() and self.path.stat().st_size > 0

    def error(self, error: BaseException) -> StoreError:
        """Say that the file cannot be used, and that it was left alone."""
        if isinstance(error, filelock.Timeout):
            return StoreError(f"{self.name} has been locked by another process for {LOCKED_FOR} s")
        if isinstance(error, OSError):
            return StoreError(f"cannot use the folder {self.path.parent}: {error.strerror or error}")
        return super().error(error)


class Storage(RDBStorage):
    """Optuna's storage, with signs of life that outlive a database that is away for a moment."""

    def __init__(self, database: Database, url: str, engine_kwargs: dict[str, Any]) -> None:
        super().__init__(
            url,
            engine_kwargs=engine_kwargs,
            heartbeat_interval=database.heartbeat,
            grace_period=database.grace,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
        weakref.finalize(self, self.engine.dispose)

    @contextlib.contextmanager
    def beating(self, trial_id: int) -> Iterator[None]:
        """Give signs of life for a trial while the body runs.

        Optuna's own thread for this ends at the first error, and its trial would be taken for one of a dead worker; and
        an interrupt while that thread starts leaves it running for ever.
        """
        ended = threading.Event()

        def heartbeat() -> None:
            while not ended.wait(self.heartbeat_interval):
                with contextlib.suppress(StorageInternalError, SQLAlchemyError):
                    self.record_heartbeat(trial_id)

        self.record_heartbeat(trial_id)
        thread = threading.Thread(target=heartbeat)
        try:
            thread.start()
            yield
        finally:
            ended.set()
            if thread.is_alive():
                thread.join()


def is_away(error: BaseException | None) -> bool:
    """Tell whether an error says that the connection broke: what was asked may be asked again."""
    while error is not None:
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        error = error.__cause__
    return False
