"""Probing: hooks and measurements on a running model, and what they say is wrong with its normalization.

Names are imported on first use, so that the command line's help does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normwise.probe.diagnosing import diagnose
    from normwise.probe.facts import survey
    from normwise.probe.shifts import measure_shifts
    from normwise.probe.watching import watch

_HOME = {"diagnose": "diagnosing", "measure_shifts": "shifts", "survey": "facts", "watch": "watching"}

__all__ = ["diagnose", "measure_shifts", "survey", "watch"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
