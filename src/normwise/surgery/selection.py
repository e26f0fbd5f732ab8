"""Which layers of a model an operation is to touch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from torch import nn

from normwise.errors import InputError
from normwise.surgery.layers import Found, find

Where = str | Callable[[str, nn.Module], bool] | None


def chosen(model: nn.Module, where: Where = None) -> Iterator[Found]:
    """Find the normalization layers that are meant by ``where``, a shared one if any of its names is."""
    for found in find(model):
        if where is None or any(_matches(where, name, found.module) for name in found.names):
            yield found


def _matches(where: str | Callable[[str, nn.Module], bool], name: str, module: nn.Module) -> bool:
    if isinstance(where, str):
        return fnmatchcase(name, where)
    if not callable(where):
        raise InputError(f"where must be a name pattern or a predicate (name, layer) -> bool, got {where!r}")
    return where(name, module)
