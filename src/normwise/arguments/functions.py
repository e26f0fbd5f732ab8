"""Losses and metrics are functions of (outputs, targets) or of (model, batch): which of the two one is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from normwise.arguments.lookup import resolved
from normwise.errors import InputError, described
from normwise.nn._checks import came

# What a function takes; "either" where its parameters' names do not tell.
Takes = Literal["outputs", "batch", "either"]

_MODEL = {"model", "module", "net", "network"}
_BATCH = {"batch", "batches", "loader", "dataloader", "data", "samples"}
_OUTPUT = {"input", "output", "out", "pred", "prediction", "predicted", "logit", "score", "y_pred", "y_hat", "yhat"}
_TARGET = {"target", "label", "truth", "y", "y_true", "gt"}


def function_of(value: Any, what: str, forms: str) -> Callable[..., Any]:
    """The function that a user means by a value or by a text that names one."""
    if isinstance(value, str):
        value = resolved(value)
    if isinstance(value, type) and "forward" in vars(value):
        raise InputError(f"{what} is the class {value.__name__}: give one of it, {value.__name__}()")
    if not callable(value) or isinstance(value, type):
        raise InputError(f"{what} must be {forms}, got {came(value)}")
    return value


def takes(function: Callable[..., Any], what: str) -> Takes:
    """Tell by the parameters' names whether a function takes outputs and targets or a model and a batch."""
    try:
        signature = inspect.signature(function)
        signature.bind(None, None)
    except ValueError:
        return "either"
    except TypeError as error:
        raise InputError(f"{what} must take (output, target) or (model, batch): {error}") from None
    first, second = ([p.name.lower() for p in signature.parameters.values()] + ["", ""])[:2]
    if first in _MODEL or second in _BATCH:
        return "batch"
    first, second = first.removesuffix("s"), second.removesuffix("s")
    if first in _TARGET and second not in _TARGET:
        raise InputError(f"{what} takes the target first: expected (output, target), the output first")
    return "outputs" if first in _OUTPUT or second in _TARGET else "either"


def tried(outputs: Callable[[], Any], batch: Callable[[], Any], what: str, expected: str = "(model, batch)") -> Takes:
    """Tell by trying what a function takes whose parameters' names do not tell."""
    try:
        outputs()
    except (Exception, SystemExit) as first:
        said = str(first) if isinstance(first, InputError) else f"{what} failed: {described(first)}"
        try:
            batch()
        except (Exception, SystemExit) as error:
            raise InputError(f"{said}; called as {expected}, too: {described(error)}") from first
        return "batch"
    return "outputs"
