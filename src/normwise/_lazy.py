"""Names of a package that are imported at their first use, so that a command line's help does not load torch."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from typing import Any


class _Name:
    """A name of a package, looked up in its module at each use."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __get__(self, package: object, owner: type | None = None) -> Any:
        replaced = vars(package).get(self._name)
        return replaced or getattr(importlib.import_module(self._module), self._name)

    def __set__(self, package: object, value: object) -> None:
        # Importing a module binds it in its package: a function of the same name must stay what is found.
        if not isinstance(value, types.ModuleType):
            vars(package)[self._name] = value


def offer(package: str, homes: Mapping[str, str]) -> None:
    """Let a package offer names of its modules: ``{"freeze": "freeze unfreeze"}`` has two names of one module."""
    names = {name: _Name(f"{package}.{module}", name) for module, listed in homes.items() for name in listed.split()}

    def listing(module: types.ModuleType) -> list[str]:
        return sorted(names)

    sys.modules[package].__class__ = type("Package", (types.ModuleType,), {**names, "__dir__": listing})
