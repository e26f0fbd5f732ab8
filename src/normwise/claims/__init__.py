"""What the literature says about normalization, put to the test.

A ``Claim`` is data: experiments for the study's engine, hypotheses with their measures, figures. :func:`run` runs and
judges them; ``CLAIMS`` are those there are. ``observers`` watch single trials, ``statistics`` turns paired numbers into
verdicts.

Names are imported on first use, so that the command line's help does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normwise.claims.claim import Claim, Experiment, Part, Runs
    from normwise.claims.engine import run
    from normwise.claims.library import CLAIMS

_HOME = {
    "CLAIMS": "library",
    "Claim": "claim",
    "Experiment": "claim",
    "Part": "claim",
    "Runs": "claim",
    "run": "engine",
}

__all__ = ["CLAIMS", "Claim", "Experiment", "Part", "Runs", "run"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"normwise.claims.{_HOME[name]}"), name)
    raise AttributeError(f"module 'normwise.claims' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
