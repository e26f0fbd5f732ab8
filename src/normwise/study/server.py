"""PostgreSQL as the database of studies: many machines, and a server that may restart meanwhile."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import zlib
from typing import Any

import sqlalchemy
from optuna.storages import BaseStorage
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from normwise.errors import InputError, MissingDependencyError, StoreError
from normwise.study.address import redact
from normwise.study.database import LOCKED_FOR, TABLES, Database, Lock, Storage

_LOG = logging.getLogger("normwise")


class Server(Database):
    """A PostgreSQL database, for any number of processes on any number of machines.

    A server that goes away (a restart, a fail-over) is waited for, up to ``patience`` seconds; one that cannot be
    reached from the start is an error at once. A connection is kept while a trial trains; up to three are open for the
    moment of a claim.
    """

    other = "--study for another name"
    heartbeat = 5
    grace = 30
    poll_at_most = 5.0
    patience = 300.0

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            # The driver is named, so that neither an environment nor a version of SQLAlchemy chooses another.
            self._url = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError):
            raise InputError(f"cannot read the URL {redact(url)}: expected postgresql://USER@HOST/DATABASE") from None
        if "@" in (self._url.host or ""):
            # Half a password would be taken for a host, and be looked up and reported as one.
            raise InputError(f"cannot read the URL {redact(url)}: write an @ in a password as %40")
        self.name = redact(self._url.set(drivername="postgresql").render_as_string())
        self._reached = False
        self._owner = threading.get_ident()
        self._locks: sqlalchemy.Engine | None = None

    def lock(self) -> Lock:
        """Give a handle on the advisory lock of this database."""
        if self._locks is None:
            try:
                self._locks = sqlalchemy.create_engine(
                    self._url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT", connect_args=_CONNECT
                )
            except ModuleNotFoundError as error:
                raise MissingDependencyError(
                    f"a PostgreSQL storage needs {error.name}: pip install 'normwise[postgres]'"
                ) from error
            self._prepare(self._locks)
        return _AdvisoryLock(self._locks)

    def storage(self) -> BaseStorage:
        """Open the database."""
        kwargs = {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 4, "connect_args": _CONNECT}
        storage = Storage(self, self._url.render_as_string(hide_password=False), kwargs)
        self._prepare(storage.engine)
        # What the constructor opened lacks the settings of a session.
        storage.engine.dispose()
        return storage

    def exists(self) -> bool:
        """Tell whether the database can be reached and has Optuna's tables."""
        self.lock()
        assert self._locks is not None
        try:
            return set(sqlalchemy.inspect(self._locks).get_table_names()) >= TABLES
        except SQLAlchemyError as error:
            raise self.error(error) from None

    def error(self, error: BaseException) -> StoreError:
        """Say that the database cannot be used; what was finished stays in it."""
        return StoreError(
            f"cannot use {self.name} ({self.detail(error)}): what was finished is kept; "
            "check the address and that the server runs, then give the same command again"
        )

    def detail(self, error: BaseException) -> str:
        """Give the driver's own words, with the password taken out wherever it stands."""
        text = super().detail(error)
        return text.replace(str(self._url.password), "***") if self._url.password else text

    def _prepare(self, engine: sqlalchemy.Engine) -> None:
        sqlalchemy.event.listen(engine, "do_connect", self._connect)
        sqlalchemy.event.listen(engine, "connect", _set_up)

    def _connect(self, dialect: Any, record: object, args: Any, kwargs: Any) -> object:
        """Connect; where that has worked before, wait for a server that is away."""
        told, deadline = False, time.monotonic() + self.patience
        while True:
            try:
                connection = dialect.connect(*args, **kwargs)
            except dialect.loaded_dbapi.OperationalError as error:
                # Optuna's heartbeat runs in a thread of its own and tries again by itself.
                waits = self._reached and threading.get_ident() == self._owner
                if not waits or time.monotonic() > deadline:
                    raise
                if not told:
                    _LOG.warning("normwise: %s is away (%s); waiting for it", self.name, self.detail(error))
                    told = True
                time.sleep(min(1.0, self.poll))
            else:
                self._reached = True
                if told:
                    # Other workers could give no sign of life either: let them, before one is taken for dead.
                    time.sleep(2 * self.heartbeat)
                return connection


# libpq notices within half a minute when the server's machine is gone.
_CONNECT = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "application_name": "normwise",
}
# The server likewise, when a worker's machine is gone: its lock is free then. Optuna compares times of sessions, which
# must agree on their zone whatever the machine's environment says.
_SESSION = {
    "timezone": "'UTC'",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "lock_timeout": f"'{LOCKED_FOR}s'",
}


def _set_up(connection: Any, record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute("; ".join(f"SET {name} = {value}" for name, value in _SESSION.items()))
    connection.commit()


class _AdvisoryLock:
    """Held by a connection that is opened for it and closed to free it: one per database."""

    key = zlib.crc32(b"normwise")

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        self._engine = engine
        self._connection: sqlalchemy.Connection | None = None

    def acquire(self) -> None:
        self._connection = self._engine.connect()
        try:
            self._connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": self.key})
        except BaseException:
            self.release()
            raise

    def release(self, force: bool = False) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                connection.close()
