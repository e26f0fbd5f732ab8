"""What public functions say to arguments of the wrong kind: what came, what was expected, what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from normwise.errors import InputError


def model_given(model: object, caller: str) -> None:
    """Refuse what is no model, in the name of the function that was called."""
    if isinstance(model, torch.nn.Module):
        return
    what = came(model) + ", not an instance of it" * isinstance(model, type)
    raise InputError(f"{caller} expected a torch.nn.Module, got {what}: {_instead(model)}")


def batches_given(batches: object, caller: str, name: str) -> None:
    """Refuse what gives no batches one after the other."""
    if isinstance(batches, str | bytes | Mapping | type) or not _iterable(batches):
        raise InputError(
            f"{caller} expected {name} to give batches (a DataLoader, a list of batches), got {came(batches)}: a "
            "single batch goes in a list, [batch]"
        )


def callable_given(value: object, caller: str, name: str) -> None:
    """Refuse what is neither ``None`` nor a function."""
    if value is not None and not callable(value):
        raise InputError(f"{caller} expected {name} to be a function or None, got {came(value)}")


def number_given(value: Any, name: str, least: float = -math.inf, whole: bool = False) -> None:
    """Refuse what is no number, or below what is meant."""
    if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool):
        shown = repr(value) if isinstance(value, int | float) else came(value)
        raise InputError(f"{name} must be a {'whole ' * whole}number, got {shown}")
    if not value >= least:
        raise InputError(f"{name} must be at least {least:g}, got {value}")


def optimizer_given(optimizer: object, caller: str) -> None:
    """Refuse what is neither ``None`` nor an optimizer."""
    if optimizer is not None and not isinstance(getattr(optimizer, "param_groups", None), list):
        raise InputError(
            f"{caller} expected optimizer to be a torch.optim.Optimizer of this model, got {came(optimizer)}: give the "
            "optimizer itself, or leave it out"
        )


def one_line(error: BaseException) -> str:
    """An error's kind and text; of TorchScript's long ones the last line, which says what happened."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1 if any(x.startswith('Traceback') for x in lines) else 0]}"


def came(value: object) -> str:
    """A value in a few words."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} (keys {', '.join(map(str, list(value)[:3])) or 'none'})"
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def _instead(value: object) -> str:
    """What the user may have meant."""
    if isinstance(value, type):
        return f"give an instance, such as {value.__name__}(...)"
    if isinstance(value, str):
        return "build the model and load the file into it (model.load_state_dict); the command line takes files"
    if isinstance(value, Mapping):
        return "build the model and load a state_dict into it (model.load_state_dict)"
    if callable(value):
        return "give the model that it builds"
    return "give the model itself"


def _iterable(value: Any) -> bool:
    if isinstance(value, Iterable) and not isinstance(value, torch.nn.Module):
        return not (isinstance(value, torch.Tensor) and value.ndim == 0)
    return hasattr(value, "__getitem__") and hasattr(value, "__len__")  # the older way, which torch's loaders take too
