"""Compare normalizations by training: tasks, trials, an Optuna store, statistics → records.

The parts, in the order of the work of :func:`compare`: ``data`` and ``tasks`` (what is trained), ``plan`` (the grid),
``trial`` and ``measure`` (one run), ``database``, ``server`` and ``store`` (the queue), ``worker`` and ``engines`` (who
works on it), ``standings`` and ``verdict`` (what it all says), ``progress`` and ``result`` (what a person sees),
``stored`` and ``commands`` (studies that exist).

The public names are imported when they are first used: what reads a stored study (``store``, ``verdict`` and what they
import) needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normwise.study.comparison import compare
    from normwise.study.consult import advise
    from normwise.study.data import Part, Splits
    from normwise.study.engines import RayCluster
    from normwise.study.result import Study
    from normwise.study.tasks import Observer, Task, load_task, make_task

_HOME = {
    "Observer": "tasks",
    "Part": "data",
    "RayCluster": "engines",
    "Splits": "data",
    "Study": "result",
    "Task": "tasks",
    "advise": "consult",
    "compare": "comparison",
    "load_task": "tasks",
    "make_task": "tasks",
}

__all__ = ["Observer", "Part", "RayCluster", "Splits", "Study", "Task", "advise", "compare", "load_task", "make_task"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"normwise.study.{_HOME[name]}"), name)
    raise AttributeError(f"module 'normwise.study' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
