"""Workers: each opens the study's database, learns there what is trained, and takes what waits.

A worker is started by anything: ``normwise study work``, a Ray cluster, or the main process, whose own workers are
child processes. Such a child is told its work on standard input (a database's address with its password never stands
on a command line) and ends when the pipe breaks: however the parent dies, nothing runs on unseen.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from normwise.errors import InputError, NormwiseError, StoreError, described
from normwise.records import Settings
from normwise.study.address import redact
from normwise.study.own import fingerprints
from normwise.study.plan import due, training_steps
from normwise.study.ranks import Distributed
from normwise.study.store import OnChange, Store
from normwise.study.tasks import Task, load_task
from normwise.study.trial import Trainer

_LOG = logging.getLogger("normwise")
# What a trial does to workers, the store puts an end to; this ends what happens before a trial is claimed.
_RESTARTS = 30
_CHILD = "from normwise.study.worker import main; main()"


@dataclass(frozen=True)
class Job:
    """What a worker is told: where the study is and, if the study's database cannot say it, what is trained.

    ``where`` is never shown: it may hold a password.
    """

    where: str | Path | None = field(repr=False)
    study: str
    task: Task | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if getattr(self.task and self.task.make_model, "__module__", None) == "__main__":
            raise InputError(
                "several workers need make_model in a module that they can import: move it there, or workers=1"
            )

    def __call__(self, on_change: OnChange = lambda trials, note: None) -> None:
        """Work on the study until it is finished."""
        store = Store(self.where, name=self.study)
        task = rebuild(store) if self.task is None else self.task
        store.work(trainer_of(task, store.settings), partial(due, store.settings), on_change, floor=task.floor)


def rebuild(store: Store) -> Task:
    """Make a study's task from what its database says of it, and check that it is the same."""
    what = f"the study {store.name!r} in {store.database.name} cannot be worked on from here"
    source = store.about.get("source")
    if source is None:
        whose = "model or a method of your own" if store.settings.own else "model"
        raise StoreError(
            f"{what}: its {whose} was handed over in Python, not by a name that could be looked up; "
            "use the workers of the process that made it, compare(..., workers=N)"
        )
    task = load_task(source)
    here = {
        "score_name": task.score_name,
        "splits": task.splits.sizes(),
        "model": task.describe_model(),
        "own": fingerprints(task, store.settings.methods),
    }
    for name, value in here.items():
        if value != (theirs := getattr(store.settings, name)):
            raise StoreError(
                f"{what}: {source} gives {name} = {value} here, the study has {theirs}; "
                "use the same versions of the model's code, the data and normwise"
            )
    return task


def trainer_of(task: Task, settings: Settings, measure_memory: bool = True) -> Trainer | Distributed:
    """Give the trainer of a study's cells: of one process or, where the settings ask for several devices, of more."""
    samples, each = task.splits.train.size, task.accumulate
    steps = {b: training_steps(settings.epochs[str(b)], b, samples, each) for b in settings.batch_sizes}
    trainer = Trainer(task, steps, measure_memory, tune_share=settings.tune_share)
    return trainer if settings.devices == 1 else Distributed(trainer, settings.devices)


@contextmanager
def helpers(jobs: Sequence[Callable[[], object]]) -> Iterator[Callable[[], int]]:
    """Run each job in a process of its own while the body runs."""
    restarts = iter(range(_RESTARTS))
    with started(jobs) as children:

        def look_after() -> int:
            for k, child in enumerate(children):
                if (child.poll() or 0) < 0 and next(restarts, None) is not None:
                    _LOG.warning("normwise: signal %d ended a worker; another takes its place", -child.returncode)
                    _close(child)
                    children[k] = _start(packed(jobs[k]))
            return sum(child.poll() is None for child in children)

        yield look_after


@contextmanager
def started(jobs: Sequence[Callable[[], object]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run each job in a process of its own while the body runs."""
    pickled = [packed(job) for job in jobs]
    children: list[subprocess.Popen[bytes]] = []
    try:
        for job in pickled:
            children.append(_start(job))
        yield children
    finally:
        for child in children:
            child.terminate()
        for child in children:
            _close(child)


def _start(job: bytes) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
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
