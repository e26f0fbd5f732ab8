"""Tasks of the user's own model and data."""

from __future__ import annotations

from typing import Any

from torch import nn

from normwise.errors import InputError
from normwise.study.data import Splits, as_part, split
from normwise.study.tasks.base import MakeModel, Task, classification
from normwise.study.tasks.named import DATASETS, load_task
from normwise.study.tasks.scores import r_squared


def make_task(make_model: MakeModel, data: Any, name: str = "own data") -> Task:
    """Make a task of the user's model and data: classification for whole-number targets, else regression.

    Args:
        make_model: ``make_model(norm)`` builds a fresh model.
        data: the name of a data set, :class:`Splits`, or ``(inputs, targets)``, which are split 60/20/20.
        name: of the task.

    Returns:
        The task.

    Raises:
        InputError: ``make_model`` cannot be called, or the data are of another form.

    Example:
        >>> import torch
        >>> from normwise.study.tasks.images import small_convnet
        >>> task = make_task(small_convnet, (torch.zeros(100, 1, 8, 8), torch.arange(100) % 10))
        >>> task.score_name, task.floor
        ('accuracy', 0.1)
    """
    if not callable(make_model):
        raise InputError(f"make_model must be a function of norm that builds a model, got {type(make_model).__name__}")
    if isinstance(data, str):
        return classification(data, load_task(data).splits, make_model)
    if isinstance(data, tuple) and len(data) == 3:
        splits = Splits(*(as_part(x, y, part) for part, (x, y) in zip(Splits._fields, data, strict=True)))
    elif isinstance(data, tuple) and len(data) == 2:
        splits = split(*data)
    else:
        raise InputError(
            f"data must be a name ({', '.join(DATASETS)}), Splits(train, valid, test) or (inputs, targets), "
            f"got {type(data).__name__}"
        )
    targets = splits.train.targets
    if isinstance(targets, tuple):
        raise InputError("several targets need a loss and a metric of your own: see normwise.study.Task")
    if targets.is_floating_point():
        return Task(name, splits, make_model, nn.functional.mse_loss, r_squared, "R²", floor=0.0)
    return classification(name, splits, make_model)
