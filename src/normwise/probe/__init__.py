"""Probing: hooks and measurements on a running model, and what they say is wrong with its normalization.

Names are imported on first use, so that the command line's help does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normwise._lazy import offer

if TYPE_CHECKING:
    from normwise.probe.diagnosing import diagnose
    from normwise.probe.facts import survey
    from normwise.probe.shifts import measure_shifts
    from normwise.probe.watching import watch


__all__ = ["diagnose", "measure_shifts", "survey", "watch"]

offer(
    __name__,
    {
        "diagnosing": "diagnose",
        "facts": "survey",
        "shifts": "measure_shifts",
        "watching": "watch",
    },
)
