"""Which normalization should this network use? The family of normalizers, and the evidence to choose.

Names are imported on first use, so that ``import normwise`` and the command line's help do not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normwise import errors, functional, methods, moments, nn, ops, parametrize, records, report, study
    from normwise.functional import normalize
    from normwise.methods import METHODS
    from normwise.nn import sync
    from normwise.parametrize import weight_norm
    from normwise.study import Splits, compare

__version__ = "0.1.0"

_HOME = {
    "METHODS": "normwise.methods",
    "Splits": "normwise.study",
    "compare": "normwise.study",
    "normalize": "normwise.functional",
    "sync": "normwise.nn",
    "weight_norm": "normwise.parametrize",
}
_MODULES = ("errors", "functional", "methods", "moments", "nn", "ops", "parametrize", "records", "report", "study")

__all__ = [
    "METHODS",
    "Splits",
    "compare",
    "errors",
    "functional",
    "methods",
    "moments",
    "nn",
    "normalize",
    "ops",
    "parametrize",
    "records",
    "report",
    "study",
    "sync",
    "weight_norm",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"normwise.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'normwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
