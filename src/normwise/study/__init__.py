"""Compare normalizations by training: tasks, trials, an Optuna store, statistics → records.

The parts, in the order of the work of :func:`compare`: ``data`` and ``tasks`` (what is trained), ``plan`` (the grid),
``trial`` and ``measure`` (one run), ``database``, ``server``, ``catalog``, ``salvage`` and ``store`` (the queue),
``children``, ``ranks``, ``worker`` and ``engines`` (who works on it), ``standings`` and ``verdict`` (what it all says),
``progress`` and ``result`` (what a person sees), ``stored`` (studies that exist).

The public names are imported when they are first used: what reads a stored study (``store``, ``verdict`` and what they
import) needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normwise._lazy import offer

if TYPE_CHECKING:
    from normwise.study.comparison import compare
    from normwise.study.consult import advise
    from normwise.study.data import Part, Splits
    from normwise.study.engines import RayCluster
    from normwise.study.result import Study
    from normwise.study.tasks import Observer, Task, language_data, load_task, make_task


__all__ = [
    "Observer", "Part", "RayCluster", "Splits", "Study", "Task", "advise", "compare", "language_data", "load_task",
    "make_task",
]  # fmt: skip

offer(
    __name__,
    {
        "comparison": "compare",
        "consult": "advise",
        "data": "Part Splits",
        "engines": "RayCluster",
        "result": "Study",
        "tasks": "Observer Task language_data load_task make_task",
    },
)
