"""Tasks: what is trained, on which data, and how it is scored."""

from normwise.study.tasks.base import MakeModel, Observer, Task, nearest
from normwise.study.tasks.named import DATASETS
from normwise.study.tasks.own import load_task, make_task

__all__ = ["DATASETS", "MakeModel", "Observer", "Task", "load_task", "make_task", "nearest"]
