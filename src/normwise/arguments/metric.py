"""A metric in every form: a name, an object of torchmetrics, a function of outputs or of (model, loader)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normwise.arguments.functions import Takes, function_of, takes
from normwise.arguments.loss import fitted
from normwise.errors import InputError

FORMS = "a name such as 'accuracy', an object of torchmetrics, a function of (output, target), or metric(model, loader)"


@dataclass(frozen=True)
class Metric:
    """A function whose value is a score, higher being better, and what it takes."""

    function: Callable[[Any, Any], Any]
    name: str
    takes: Takes


@dataclass(frozen=True)
class Accumulated:
    """An object of torchmetrics as a function of outputs and targets; minus it where lower is better."""

    metric: Any

    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        """Give the score of a whole part."""
        metric = copy.deepcopy(self.metric)
        metric.reset()
        metric.update(fitted(outputs, targets), targets)
        value = metric.compute()
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise InputError(f"{type(metric).__name__} gives more than one number: give a metric of one")
        return -value if self.metric.higher_is_better is False else value


def metric_of(value: Any) -> Metric | str:
    """Read a metric; a name comes back as it is, as who scores knows what it stands for."""
    if isinstance(value, str) and ":" not in value:
        return value
    if all(callable(getattr(value, name, None)) for name in ("update", "compute", "reset")):
        if isinstance(value, type):
            raise InputError(f"metric is the class {value.__name__}: give one of it, {value.__name__}(...)")
        minus = "−" if getattr(value, "higher_is_better", None) is False else ""
        return Metric(Accumulated(value), minus + type(value).__name__, "outputs")
    function = function_of(value, "metric", FORMS)
    if isinstance(function, torch.nn.Module):
        return Metric(function, type(function).__name__, "outputs")
    name = getattr(function, "__name__", type(function).__name__)
    return Metric(function, name, takes(function, f"metric {name}"))
