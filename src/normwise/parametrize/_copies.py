"""Copies and pickles of parametrized modules: they carry a ``__reduce_ex__`` that builds the class anew.

Torch refuses to pickle such modules, and its deep copies share one class, so that a change of one breaks the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normwise.errors import InputError


def make_copyable(module: torch.nn.Module) -> None:
    """Let a parametrized module be copied and pickled, by building its class anew."""
    cls: Any = type(module)
    cls.__reduce_ex__, cls.__setstate__ = _reduce, _restore
    # Torch's deepcopy shares the class: removing a parametrization from the copy breaks the original.
    if "__deepcopy__" in cls.__dict__:
        del cls.__deepcopy__


def _reduce(module: torch.nn.Module, protocol: int) -> tuple[Any, ...]:
    base = parametrize.type_before_parametrizations(module)
    state = dict(module.__dict__)
    for scratch in ("_flat_weights", "_flat_weight_refs"):
        # Computed weights, which belong to a graph and cannot be copied; gathered again in the copy.
        state.pop(scratch, None)
    return _rebuild, (base, tuple(module.parametrizations)), state  # type: ignore[arg-type]


def _rebuild(base: type[torch.nn.Module], names: tuple[str, ...]) -> torch.nn.Module:
    module = base.__new__(base)
    torch.nn.Module.__init__(module)
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    make_copyable(module)
    return module


def _restore(module: torch.nn.Module, state: dict[str, Any]) -> None:
    module.__dict__.update(state)
    refresh(module)


def refresh(module: torch.nn.Module) -> None:
    """Have torch's recurrent layers gather their weights anew: they keep a list, which still holds the old ones."""
    if isinstance(module, nn.RNNBase):
        with torch.no_grad():
            module._init_flat_weights()


def held_weight(module: torch.nn.Module, name: str, title: str | None = None) -> Tensor:
    """The module's weight; ``title`` is what errors call the module."""
    title = title or type(module).__name__
    weight = getattr(module, name, None)
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise InputError(f"{title} has no {name!r} before its first forward pass: run one first")
    if not isinstance(weight, Tensor):
        names = ", ".join(n for n, _ in module.named_parameters(recurse=False)) or "none"
        raise InputError(f"{title} has no parameter {name!r}; it has: {names}")
    return weight
