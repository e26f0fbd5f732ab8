"""The tasks that have a name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
    "austen-post": partial(austen_task, placement="post"),
    "austen-sandwich": partial(austen_task, placement="sandwich"),
    "textures": textures_task,
}
# Those that come with a package and have no folder.
_EMBEDDED = {"digits"}
DATASETS = tuple(_TASKS)


def named_task(name: str) -> Task:
    """Give a task that has a name, with its reference model; see :func:`normwise.study.load_task`."""
    kind, colon, _ = name.partition(":")
    if kind not in _TASKS or (colon and kind in _EMBEDDED):
        raise InputError(f"unknown data set {name!r}: {nearest(name, DATASETS)}Known are {', '.join(DATASETS)}")
    return _TASKS[kind](name)
