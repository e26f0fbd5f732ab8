"""The tasks that have a name."""

from __future__ import annotations

from collections.abc import Callable

from normwise.errors import InputError
from normwise.study.tasks.base import Task, nearest
from normwise.study.tasks.images import digits_task, fashion_task

# Each is given the whole source: the name, and a folder behind a colon if there is one.
_TASKS: dict[str, Callable[[str], Task]] = {"digits": digits_task, "fashion-mnist": fashion_task}
# Those that come with a package and have no folder.
_EMBEDDED = {"digits"}
DATASETS = tuple(_TASKS)


def load_task(name: str) -> Task:
    """Give a named task with its reference model.

    Args:
        name: ``"digits"``, ``"fashion-mnist"`` or ``"fashion-mnist:FOLDER"``.

    Returns:
        The task.

    Raises:
        InputError: there is no such task; the message names the nearest.

    Example:
        >>> load_task("digts")
        Traceback (most recent call last):
        ...
        normwise.errors.InputError: unknown data set 'digts': did you mean 'digits'? Known are digits, fashion-mnist
    """
    kind, colon, _ = name.partition(":")
    if kind not in _TASKS or (colon and kind in _EMBEDDED):
        raise InputError(f"unknown data set {name!r}: {nearest(name, DATASETS)}Known are {', '.join(DATASETS)}")
    return _TASKS[kind](name)
