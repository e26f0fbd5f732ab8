"""An optimizer in every form: a class or a name of ``torch.optim``, a function of parameters or of the model."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normwise.arguments.lookup import resolved
from normwise.errors import InputError, blaming
from normwise.nn._checks import came

FORMS = (
    "a class of torch.optim or its name, such as 'AdamW', a function of (params) or (params, lr) that gives one, or "
    "of (model)"
)
_PARAMETERS = {"params", "parameters", "param_groups"}


@dataclass(frozen=True)
class Maker:
    """What makes an optimizer, and what of a model it takes."""

    function: Callable[..., Any]
    of_parameters: bool
    called: str = ""

    @property
    def name(self) -> str:
        """What the user calls it."""
        if self.called:
            return self.called
        inner = getattr(self.function, "func", self.function)  # of a partial
        return getattr(inner, "__name__", type(inner).__name__)

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Its arguments by name."""
        return dict(inspect.signature(self.function).parameters)

    def __call__(self, model: nn.Module, **given: Any) -> Any:
        """Make one for a model."""
        trained = [p for p in model.parameters() if p.requires_grad]
        return self.function(trained if self.of_parameters else model, **given)


def maker_of(value: Any) -> Maker:
    """Read an optimizer that is yet to be made."""
    if isinstance(value, str):
        value = resolved(value) if ":" in value else _named(value)
    if isinstance(value, torch.optim.Optimizer) or not callable(value) or isinstance(value, nn.Module):
        of_one = ": it belongs to the parameters of one model" if isinstance(value, torch.optim.Optimizer) else ""
        raise InputError(f"optimizer must be {FORMS}, got {came(value)}{of_one}")
    try:
        first = next(iter(inspect.signature(value).parameters), "")
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer must be {FORMS}: {error}") from error
    if isinstance(value, type):
        _check_class(value)
    return Maker(value, first in _PARAMETERS)


def optimizer_for(model: nn.Module, value: Any) -> torch.optim.Optimizer:
    """Make the optimizer of a model, with the learning rate that it has by itself."""
    maker = maker_of(value)
    rate = maker.parameters.get("lr")
    if rate is not None and rate.default is rate.empty:
        raise InputError(f"optimizer {maker.name} names no learning rate: give a default, as in lr=0.1")
    with blaming(f"optimizer {maker.name} failed"):
        made = maker(model)
    made = made[0] if isinstance(made, tuple | list) and made else made
    if not isinstance(getattr(made, "param_groups", None), list):
        raise InputError(f"optimizer {maker.name} gave {came(made)}, expected a torch.optim.Optimizer")
    return made


def _named(name: str) -> type[torch.optim.Optimizer]:
    known = {n.lower(): c for n, c in vars(torch.optim).items() if isinstance(c, type) and _is_optimizer(c)}
    if name.lower() in known:
        return known[name.lower()]
    near = difflib.get_close_matches(name.lower(), known, 1)
    raise InputError(
        f"unknown optimizer {name!r}: {''.join(f'did you mean {known[n].__name__!r}? ' for n in near)}torch.optim has "
        f"{', '.join(sorted(c.__name__ for c in known.values()))}; for your own give the function itself, or "
        "path.py:callable"
    )


def _is_optimizer(kind: type) -> bool:
    return issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer


def _check_class(kind: type) -> None:
    """Refuse classes that make no optimizer, and those whose step asks for the loss again."""
    if not issubclass(kind, torch.optim.Optimizer):
        raise InputError(f"optimizer must be {FORMS}, got the class {kind.__name__}")
    step = inspect.signature(inspect.unwrap(kind.step)).parameters.get("closure")
    if step is not None and step.default is step.empty:
        raise InputError(f"{kind.__name__} runs the model several times a step, which is not supported: give another")
