"""Tasks: what is trained, on which data, and how it is scored."""

from normwise.study.tasks.base import MakeModel, Observer, Task, nearest
from normwise.study.tasks.language import language_data
from normwise.study.tasks.named import DATASETS
from normwise.study.tasks.own import load_task, make_task

__all__ = ["DATASETS", "MakeModel", "Observer", "Task", "language_data", "load_task", "make_task", "nearest"]
