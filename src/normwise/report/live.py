"""A page that shows a study while it runs: read-only, and reachable from this machine only.

The page is the stored report, drawn anew for every request, with a banner that says how far the study is; until it is
finished the browser is told to ask again. What the reader filtered stays in the page's address, so it survives.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from normwise.errors import InputError, NormwiseError
from normwise.records import Study

LOOPBACK = "127.0.0.1"
REFRESH_SECONDS = 10
# Names under which this machine may be asked for; any other is a foreign page that found its way here.
_OWN_NAMES = {LOOPBACK, "localhost"}


@dataclass(frozen=True)
class Ahead:
    """What a study still has to do: how many trials it will have, and the seconds of training left (0: not known)."""

    total: int
    seconds: float


def page(study: Study, ahead: Ahead) -> str:
    """Draw a study as its live page: it says that it is one, how much is done and how much is left."""
    from normwise.report import _study

    as_of = datetime.now().astimezone().strftime("%H:%M:%S")
    live = {
        "total": max(ahead.total, len(study.trials)),
        "seconds": ahead.seconds,
        "every": REFRESH_SECONDS,
        "as_of": as_of,
    }
    return _study.html(study, live=live)


@contextmanager
def serving(read: Callable[[], Study], port: int = 0, *, ahead: Callable[[Study], Ahead]) -> Iterator[str]:
    """Serve a study's page while the body runs; ``ahead`` tells what is left of a study."""
    try:
        server = _Server((LOOPBACK, port), _handler(lambda: (study := read(), ahead(study))))
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot serve on port {port}: {error}; name another one, or 0 for any free one") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that went away, or of what else one request did: the terminal is the study's."""


def _asked_for(host: str, path: str) -> tuple[str | None, str | None]:
    """The name and the path of a request; nothing of what is none."""
    try:
        return urlsplit(f"//{host}").hostname, urlsplit(path).path
    except ValueError:
        return None, None


def _handler(read: Callable[[], tuple[Study, Ahead]]) -> type[BaseHTTPRequestHandler]:
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        """Answers for the page and nothing else."""

        server_version, sys_version = "normwise", ""

        def do_GET(self) -> None:
            """Draw the study as it stands."""
            host, path = _asked_for(self.headers.get("Host", ""), self.path)
            if host not in _OWN_NAMES:
                self._answer(403, b"This page is for this machine only.\n", "text/plain")
            elif path != "/":
                self._answer(404, b"There is only the page at /.\n", "text/plain")
            else:
                self._page()

        do_HEAD = do_GET  # noqa: N815 - the name is http.server's

        def _page(self) -> None:
            try:
                with one_at_a_time:
                    study, ahead = read()
                    text = page(study, ahead).encode(errors="backslashreplace")
            except NormwiseError as error:
                # Nothing to see yet, say; the browser asks again.
                self._answer(503, f"{error}\n".encode(errors="backslashreplace"), "text/plain", again=True)
                return
            except Exception as error:  # a record that contradicts itself, say
                said = f"cannot draw the study: {type(error).__name__}: {error}\n"
                self._answer(500, said.encode(errors="backslashreplace"), "text/plain", again=True)
                return
            self._answer(200, text, "text/html", again=not study.finished)

        def _answer(self, status: int, body: bytes, kind: str, again: bool = False) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("X-Frame-Options", "DENY")
            if again:
                self.send_header("Refresh", str(REFRESH_SECONDS))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the terminal belongs to the study."""

    return Handler
