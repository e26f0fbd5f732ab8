"""The loss that a user gives to ``diagnose``: by name or as a function, with errors that say what does not fit."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from normwise.errors import InputError, described
from normwise.probe.gaps import Loss
from normwise.surgery.running import tensors_in


def loss_of(loss: Loss | str | None) -> Loss | None:
    """Give the function that a user means."""
    if loss is None or isinstance(loss, _Checked):
        return loss
    if isinstance(loss, str):
        return _Checked(_named(loss), loss)
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        raise InputError(f"loss is the class {loss.__name__}: give one of it, {loss.__name__}()")
    if not callable(loss):
        raise InputError(
            f"loss must be a function of (output, target) or a name such as 'cross_entropy', got {type(loss).__name__}"
        )
    return _Checked(loss, getattr(loss, "__name__", type(loss).__name__))


def _named(name: str) -> Callable[[Any, Any], Any]:
    found: Any = getattr(F, name, None)
    if _takes_pairs(found):
        return found
    known = [each for each in dir(F) if _takes_pairs(getattr(F, each))]
    near = "".join(f", did you mean {each!r}?" for each in difflib.get_close_matches(name, known, 1))
    raise InputError(
        f"unknown loss {name!r}: torch.nn.functional has no such function of (output, target){near}; for your own give "
        "the function itself, on the command line path.py:callable"
    )


def _takes_pairs(function: Any) -> bool:
    if not inspect.isfunction(function) or function.__name__.startswith("_"):
        return False
    first = list(inspect.signature(function).parameters.values())[:3]
    return [p.name for p in first[:2]] == ["input", "target"] and all(p.default is not p.empty for p in first[2:])


class _Checked:
    """A loss whose errors say what it was given."""

    def __init__(self, function: Callable[[Any, Any], Any], name: str) -> None:
        self._function, self._name = function, name

    def __call__(self, output: Any, target: Any) -> Tensor:
        try:
            value = self._function(output, target)
        except (Exception, SystemExit) as error:
            given = f"{_shape(output)} and the target {_shape(target)}"
            raise InputError(
                f"loss {self._name} failed on the output {given}: {described(error)}{_hint(output, target)}"
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise InputError(f"loss must give a tensor with one element, got {_shape(value)}")
        return value


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    inside = tensors_in(value)
    return type(value).__name__ + (f" of {', '.join(map(_shape, inside[:3]))}" if inside else "")


def _hint(output: Any, target: Any) -> str:
    """What to do about it, where that can be told."""
    if target is None:
        return "; the batches hold no target: give (input, target) pairs"
    if not isinstance(output, Tensor):
        return "; the model gives more than a tensor: give loss=lambda output, target: ..., which takes its part of it"
    if isinstance(target, Tensor) and output.ndim > 2 and output.shape[:-1] == target.shape:
        return "; the classes stand last: give loss=lambda output, target: cross_entropy(output.movedim(-1, 1), target)"
    return ""
