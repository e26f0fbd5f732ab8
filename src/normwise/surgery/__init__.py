"""Surgery: change the normalization of a model that exists.

Each operation acts in place and returns the model, or a copy with ``copy=True``; ``report=`` is called with its record
(``report=print`` shows it). ``convert`` returns its record, with ``.model``.

Names are imported on first use, so that the command line's help does not load torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normwise.surgery.average import average_states
    from normwise.surgery.calibrate import Calibration, calibrate
    from normwise.surgery.conversion import Conversion
    from normwise.surgery.convert import convert
    from normwise.surgery.fold import Folding, fold
    from normwise.surgery.freeze import audit_frozen, freeze, frozen_layers, is_frozen, unfreeze
    from normwise.surgery.harden import Hardening, harden
    from normwise.surgery.inspect import Inspection, inspect
    from normwise.surgery.layers import NormLayer, describe, find
    from normwise.surgery.pause import statistics_paused
    from normwise.surgery.to_torch import Returned, to_torch

_HOME = {
    "Calibration": "calibrate",
    "Conversion": "conversion",
    "Folding": "fold",
    "Hardening": "harden",
    "Inspection": "inspect",
    "NormLayer": "layers",
    "Returned": "to_torch",
    "audit_frozen": "freeze",
    "average_states": "average",
    "calibrate": "calibrate",
    "convert": "convert",
    "describe": "layers",
    "find": "layers",
    "fold": "fold",
    "freeze": "freeze",
    "frozen_layers": "freeze",
    "harden": "harden",
    "inspect": "inspect",
    "is_frozen": "freeze",
    "statistics_paused": "pause",
    "to_torch": "to_torch",
    "unfreeze": "freeze",
}

__all__ = [
    "Calibration",
    "Conversion",
    "Folding",
    "Hardening",
    "Inspection",
    "NormLayer",
    "Returned",
    "audit_frozen",
    "average_states",
    "calibrate",
    "convert",
    "describe",
    "find",
    "fold",
    "freeze",
    "frozen_layers",
    "harden",
    "inspect",
    "is_frozen",
    "statistics_paused",
    "to_torch",
    "unfreeze",
]


class _Name:
    """A public name, looked up in its submodule at each use."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, module: object, owner: type | None = None) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[self.name]}"), self.name)

    def __set__(self, module: object, value: object) -> None:
        # Importing the submodule ``convert`` binds it here; the function of that name must stay what is found.
        pass


class _Surgery(types.ModuleType):
    def __dir__(self) -> list[str]:
        return sorted(__all__)


for _name in _HOME:
    setattr(_Surgery, _name, _Name(_name))
sys.modules[__name__].__class__ = _Surgery
