"""Lightning modules: their own training step, validation step, optimizer and schedule; Lightning is not imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normwise.arguments.optimizer import Maker
from normwise.errors import InputError
from normwise.study.data import Part, Samples
from normwise.study.optimize import PerEpoch

_BATCH = 512


def is_lightning(model: nn.Module) -> bool:
    """Tell a Lightning module by what it can do."""
    return all(callable(getattr(model, name, None)) for name in ("training_step", "configure_optimizers"))


def training_loss(model: nn.Module, batch: Any) -> Tensor:
    """Run a module's ``training_step``; in evaluation mode its ``validation_step``, if that gives or logs a loss."""
    steps: list[Any] = [model.training_step]
    if not model.training and _validates(model):
        steps.insert(0, model.validation_step)
    for step in steps:
        with _logging(model) as logged:
            given = step(batch, 0)
        loss = given.get("loss") if isinstance(given, Mapping) else given
        loss = logged.get("val_loss", logged.get("valid_loss")) if loss is None else loss
        if isinstance(loss, Tensor):
            return loss
    raise InputError(f"{type(model).__name__}.training_step gave no loss: return it")


@dataclass(frozen=True)
class Logged:
    """The score that a module logs in its ``validation_step``, averaged over the samples; with a minus where asked."""

    name: str

    def __call__(self, model: nn.Module, part: Part | Samples) -> float:
        """Give the score of a part."""
        wanted, total = self.name.removeprefix("-"), 0.0
        for piece in part.batches(_BATCH):
            with _logging(model) as logged:
                model.validation_step(piece.load(), 0)  # type: ignore[operator]
            if wanted not in logged:
                raise InputError(
                    f"{type(model).__name__}.validation_step logs no {wanted!r}: it logs "
                    f"{', '.join(logged) or 'nothing'}"
                )
            total += float(logged[wanted]) * piece.size
        return (-1 if self.name.startswith("-") else 1) * total / part.size


def maker(model: nn.Module) -> Maker:
    """What makes a module's optimizer and schedule."""
    return Maker(configured, of_parameters=False, called=f"{type(model).__name__}.configure_optimizers")


def configured(model: nn.Module) -> tuple[Any, Any]:
    """Read what a module's ``configure_optimizers`` gives: one optimizer, and one schedule or none."""
    if not getattr(model, "automatic_optimization", True):
        raise InputError(
            f"{type(model).__name__} optimizes by hand: give an optimizer and a loss(model, batch) instead"
        )
    given: Any = model.configure_optimizers()  # type: ignore[operator]
    schedule = None
    if isinstance(given, Mapping):
        given, schedule = given["optimizer"], given.get("lr_scheduler")
    elif isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], list | tuple):
        given, schedule = (_single(model, values) for values in given)
    given, schedule = _single(model, given), _single(model, schedule)
    if isinstance(given, Mapping):
        given, schedule = given["optimizer"], given.get("lr_scheduler")
    interval = "epoch"
    if isinstance(schedule, Mapping):
        interval, schedule = schedule.get("interval", "epoch"), schedule["scheduler"]
    return given, PerEpoch(schedule) if schedule is not None and interval == "epoch" else schedule


def _single(model: nn.Module, values: Any) -> Any:
    if isinstance(values, list | tuple):
        if len(values) > 1:
            raise InputError(f"{type(model).__name__} has {len(values)} optimizers or schedules: one can be compared")
        return values[0] if values else None
    return values


def _validates(model: nn.Module) -> bool:
    """Whether the module has a ``validation_step`` of its own; Lightning's does nothing."""
    step = getattr(type(model), "validation_step", None)
    return step is not None and not getattr(step, "__module__", "").startswith(("lightning.", "pytorch_lightning."))


@contextmanager
def _logging(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Catch what a step logs: without Lightning's trainer it would go nowhere, with a warning."""
    logged: dict[str, Any] = {}

    def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        logged[name] = value.detach() if isinstance(value, torch.Tensor) else value

    def log_dict(values: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        for name, value in values.items():
            log(name, value)

    own: Any = model.__dict__
    own.update(log=log, log_dict=log_dict)
    try:
        yield logged
    finally:
        del own["log"], own["log_dict"]
