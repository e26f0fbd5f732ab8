"""The user's own optimizer and schedule, with the comparison's learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normwise.arguments.optimizer import Maker
from normwise.errors import InputError
from normwise.study.optimize import PerEpoch, Steps, warm_cosine

# What is tried of an optimizer that sets its own learning rate: this many times it.
FACTORS = (0.25, 1.0, 4.0)
_RATES = ("lr", "initial_lr", "max_lr", "min_lr")


@dataclass(frozen=True)
class OwnOptimizer:
    """Makes the user's optimizer, and hands the rate over or scales what it set.

    ``make`` may take ``lr`` and ``steps``. Where it takes ``lr`` it gets the rate under trial; else the rates of the
    optimizer that it gives, and of its schedule, are multiplied by it. What knows the parameters alone, as a class
    does, says nothing of a schedule: it gets the one that tasks have by default.
    """

    make: Maker

    def __call__(self, model: nn.Module, lr: float, steps: int) -> tuple[Steps, Steps | None]:
        """Give optimizer and schedule of a trial."""
        takes = self.make.parameters
        given = {name: value for name, value in (("lr", lr), ("steps", steps)) if name in takes}
        made = self.make(model, **given)
        optimizer, schedule = made if isinstance(made, tuple | list) and len(made) == 2 else (made, None)
        if not hasattr(optimizer, "step") or not (schedule is None or hasattr(schedule, "step")):
            kinds = ", ".join(type(x).__name__ for x in (made if isinstance(made, tuple | list) else [made]))
            raise InputError(f"the optimizer's function gave {kinds}: expected an optimizer, or it and a schedule")
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise InputError("ReduceLROnPlateau waits for a metric, which trials do not report: give another schedule")
        if "lr" not in takes:
            scale(optimizer, schedule, lr)
        if schedule is None and self.make.of_parameters:
            schedule = warm_cosine(optimizer, steps)
        return optimizer, schedule

    def rates(self) -> tuple[float, ...]:
        """Give the rates to try by default: about the function's own, or none where it names none."""
        parameter = self.make.parameters.get("lr")
        if parameter is None:
            return FACTORS
        own = parameter.default
        return tuple(own * factor for factor in FACTORS) if isinstance(own, int | float) else ()


def scale(optimizer: Any, schedule: Any, factor: float) -> None:
    """Multiply the learning rates of an optimizer and its schedule."""
    for group in optimizer.param_groups:
        group.update({name: group[name] * factor for name in _RATES if name in group})
    _scale_bases(schedule, factor)


def _scale_bases(schedule: Any, factor: float) -> None:
    if isinstance(schedule, PerEpoch):
        return _scale_bases(schedule.schedule, factor)
    if hasattr(schedule, "base_lrs"):
        schedule.base_lrs = [rate * factor for rate in schedule.base_lrs]
    for inner in getattr(schedule, "_schedulers", ()):
        _scale_bases(inner, factor)
    return None
