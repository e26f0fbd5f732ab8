"""Compare normalizations by training: tasks, trials, an Optuna store, statistics → records.

:func:`compare` is the whole job. The parts, in the order of the work: ``data`` and ``tasks`` (what is trained),
``plan`` (the grid), ``trial`` and ``measure`` (one run), ``store`` and ``worker`` (queue and processes), ``standings``
and ``verdict`` (what it all says), ``progress`` and ``result`` (what a person sees).
"""

from normwise.study.compare import compare
from normwise.study.data import Part, Splits
from normwise.study.result import Study
from normwise.study.tasks import Task, load_task, make_task

__all__ = ["Part", "Splits", "Study", "Task", "compare", "load_task", "make_task"]
