"""Child processes that end with their parent.

A child is told its work on standard input (a database's address with its password never stands on a command line) and
ends when the pipe breaks: however the parent dies, nothing runs on unseen.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from normwise.errors import InputError, NormwiseError, described
from normwise.study.address import redact

_LOG = logging.getLogger("normwise")
# The store gives up a trial that kills its workers; this limits deaths before a trial is claimed.
_RESTARTS = 30
_CHILD = "from normwise.study.children import main; main()"


@contextmanager
def helpers(
    jobs: Sequence[Callable[[], object]] = (), environments: Sequence[Mapping[str, str]] = ()
) -> Iterator[Callable[[], int]]:
    """Run each job in a process of its own, with variables of the environment of its own, while the body runs."""
    restarts = iter(range(_RESTARTS))
    environments = environments or [{}] * len(jobs)
    with started(jobs, environments) as children:

        def look_after() -> int:
            for k, child in enumerate(children):
                if (child.poll() or 0) < 0 and next(restarts, None) is not None:
                    _LOG.warning("normwise: signal %d ended a worker; another takes its place", -child.returncode)
                    _close(child)
                    children[k] = _start(packed(jobs[k]), environments[k])
            return sum(child.poll() is None for child in children)

        yield look_after


@contextmanager
def started(
    jobs: Sequence[Callable[[], object]], environments: Sequence[Mapping[str, str]] = ()
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run each job in a process of its own while the body runs."""
    pickled = [packed(job) for job in jobs]
    children: list[subprocess.Popen[bytes]] = []
    try:
        for job, variables in zip(pickled, environments or [{}] * len(pickled), strict=True):
            children.append(_start(job, variables))
        yield children
    finally:
        for child in children:
            child.terminate()
        for child in children:
            _close(child)


def _start(job: bytes, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # dead already, which is noticed later
        child.stdin.write(job)
        child.stdin.flush()
    return child


def _close(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
    child.wait()


def packed(job: Callable[[], object]) -> bytes:
    """Make a job ready to be sent to another process."""
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"several workers need a make_model that can be pickled ({error}); use workers=1") from error


def main() -> None:
    """Run a worker: read the work from standard input, do it, end when the parent ends."""
    source = sys.stdin.buffer
    try:
        job = pickle.load(source)
        threading.Thread(target=_end_with, args=(source,), daemon=True).start()
        job()
    except KeyboardInterrupt:
        os._exit(130)  # The parent says what there is to say.
    except (Exception, SystemExit) as error:
        said = str(error) if isinstance(error, NormwiseError) else described(error)
        print(f"normwise: a worker ended: {redact(' '.join(said.split()))}", file=sys.stderr, flush=True)
        os._exit(1)


def _end_with(source: BinaryIO) -> None:
    source.read()
    os._exit(1)
