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
from collections.abc import Iterator
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


def trainer_of(task: Task, settings: Settings) -> Trainer:
    """Give the trainer of a study's cells.

    Args:
        task: what to train.
        settings: their epochs fix how long.

    Returns:
        The trainer.

    Example:
        >>> settings = Settings("t", ["none"], [2], [0, 1], [9], {"2": [0.1]}, {"2": 1.0}, "", "", "", {}, "")
        >>> trainer_of(load_task("digits"), settings).steps
        {2: 538}
    """
    samples, each = task.splits.train.size, task.accumulate
    steps = {b: training_steps(settings.epochs[str(b)], b, samples, each) for b in settings.batch_sizes}
    return Trainer(task, steps, tune_share=settings.tune_share)


@contextmanager
def helpers(count: int, folder: Path, settings: Settings, task: Task) -> Iterator[None]:
    """Let so many further processes work on a store while the body runs.

    Args:
        count: how many; 0 starts none.
        folder: of the store.
        settings: of the study.
        task: what to train; a task that has a name of its own is loaded anew in the child, others are pickled.

    Yields:
        Nothing.

    Raises:
        InputError: the model's function cannot be sent to another process.

    Example:
        >>> callable(helpers)
        True
    """
    children: list[subprocess.Popen[bytes]] = []
    if count:
        job = _pickled(folder, settings, task)
    try:
        for _ in range(count):
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
    folder, settings, task = pickle.load(source)
    threading.Thread(target=_end_with, args=(source,), daemon=True).start()
    try:
        if isinstance(task, str):
            task = load_task(task)
        Store(folder, settings).work(trainer_of(task, settings), partial(due, settings))
    except KeyboardInterrupt:
        os._exit(130)  # The parent says what there is to say.


def _end_with(source: BinaryIO) -> None:
    source.read()
    os._exit(1)


def _pickled(folder: Path, settings: Settings, task: Task) -> bytes:
    named = task.source is not None
    module = getattr(task.make_model, "__module__", None)
    if not named and module == "__main__":
        raise InputError(
            "several workers need make_model in a module that they can import: move it there, or workers=1"
        )
    try:
        return pickle.dumps((folder.resolve(), settings, task.source if named else task))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"several workers need a make_model that can be pickled ({error}); use workers=1") from error
