"""More processes on one study: each opens the store and takes what waits there.

A worker is a child process that is told its work on standard input, and that ends when the pipe breaks: however the
parent dies, nothing runs on unseen.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from normwise.errors import InputError
from normwise.records import Settings
from normwise.study.plan import due, training_steps
from normwise.study.store import Store
from normwise.study.tasks import Task, load_task
from normwise.study.trial import Trainer

_CHILD = "from normwise.study.worker import main; main()"


def trainer_of(task: Task, settings: Settings, measure_memory: bool = True) -> Trainer:
    """Give the trainer of a study's cells.

    Args:
        task: what to train.
        settings: their epochs fix how long.
        measure_memory: whether to, which takes an extra step per method and batch size.

    Returns:
        The trainer.

    Example:
        >>> settings = Settings("t", ["none"], [2], [0, 1], [9], {"2": [0.1]}, {"2": 1.0}, "", "", "", {}, "")
        >>> trainer_of(load_task("digits"), settings).steps
        {2: 538}
    """
    samples, each = task.splits.train.size, task.accumulate
    steps = {b: training_steps(settings.epochs[str(b)], b, samples, each) for b in settings.batch_sizes}
    return Trainer(task, steps, measure_memory, tune_share=settings.tune_share)


def share_of(folder: Path, settings: Settings, task: Task) -> Callable[[], object]:
    """Give the work that another process can do on a study: whatever waits in its store.

    Args:
        folder: of the store.
        settings: of the study.
        task: what to train; a task that has a name of its own is loaded anew in the other process, others are pickled.

    Returns:
        A job for :func:`helpers`.

    Raises:
        InputError: the model's function is not in a module that another process can import.

    Example:
        >>> callable(share_of)
        True
    """
    if task.source is None and getattr(task.make_model, "__module__", None) == "__main__":
        raise InputError(
            "several workers need make_model in a module that they can import: move it there, or workers=1"
        )
    return partial(_take_part, folder.resolve(), settings, task.source or task)


def _take_part(folder: Path, settings: Settings, task: Task | str) -> None:
    if isinstance(task, str):
        task = load_task(task)
    Store(folder, settings).work(trainer_of(task, settings), partial(due, settings))


@contextmanager
def helpers(jobs: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Run each job in a process of its own while the body runs.

    Args:
        jobs: functions without arguments that can be pickled.

    Yields:
        Nothing.

    Raises:
        InputError: a job cannot be sent to another process.

    Example:
        >>> with helpers([]):
        ...     pass
    """
    try:
        pickled = [pickle.dumps(job) for job in jobs]
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"several workers need a make_model that can be pickled ({error}); use workers=1") from error
    children: list[subprocess.Popen[bytes]] = []
    try:
        for job in pickled:
            child = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            children.append(child)
            assert child.stdin is not None
            child.stdin.write(job)
            child.stdin.flush()
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            if child.stdin is not None:
                child.stdin.close()
            child.wait()


def main() -> None:
    """Run a worker: read the work from standard input, do it, end when the parent ends.

    Example:
        >>> callable(main)
        True
    """
    source = sys.stdin.buffer
    job = pickle.load(source)
    threading.Thread(target=_end_with, args=(source,), daemon=True).start()
    try:
        job()
    except KeyboardInterrupt:
        os._exit(130)  # The parent says what there is to say.


def _end_with(source: BinaryIO) -> None:
    source.read()
    os._exit(1)
