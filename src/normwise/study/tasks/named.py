"""The tasks that have a name."""

from __future__ import annotations

from collections.abc import Callable

from normwise.errors import InputError
from normwise.study.tasks.austen import austen_task
from normwise.study.tasks.base import Task, nearest
from normwise.study.tasks.images import digits_task, fashion_task
from normwise.study.tasks.textures import textures_task
from normwise.study.tasks.vowels import vowels_task

# Each is given the whole source: the name, and what stands behind a colon: a folder, or a texture.
_TASKS: dict[str, Callable[[str], Task]] = {
    "digits": digits_task,
    "fashion-mnist": fashion_task,
    "japanese-vowels": vowels_task,
    "austen": austen_task,
    "textures": textures_task,
}
# Those that come with a package and have no folder.
_EMBEDDED = {"digits"}
DATASETS = tuple(_TASKS)


def load_task(name: str) -> Task:
    """Give a named task with its reference model.

    Args:
        name: one of ``DATASETS``; ``"fashion-mnist"``, ``"japanese-vowels"`` and ``"austen"`` may name their folder
            behind a colon, ``"textures"`` the texture.

    Returns:
        The task.

    Raises:
        InputError: there is no such task; the message names the nearest.

    Example:
        >>> load_task("digts")
        Traceback (most recent call last):
        ...
        normwise.errors.InputError: unknown data set 'digts': did you mean 'digits'? Known are ...
    """
    kind, colon, _ = name.partition(":")
    if kind not in _TASKS or (colon and kind in _EMBEDDED):
        raise InputError(f"unknown data set {name!r}: {nearest(name, DATASETS)}Known are {', '.join(DATASETS)}")
    return _TASKS[kind](name)
