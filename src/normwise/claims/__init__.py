"""What the literature says about normalization, put to the test.

A ``Claim`` is data: experiments for the study's engine, hypotheses with their measures, figures. :func:`run` runs and
judges them; ``CLAIMS`` are those there are. ``observers`` watch single trials, ``statistics`` turns paired numbers into
verdicts.

Names are imported on first use, so that the command line's help does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normwise._lazy import offer

if TYPE_CHECKING:
    from normwise.claims.claim import Claim, Experiment, Part, Runs
    from normwise.claims.engine import run
    from normwise.claims.library import CLAIMS


__all__ = ["CLAIMS", "Claim", "Experiment", "Part", "Runs", "run"]

offer(
    __name__,
    {
        "claim": "Claim Experiment Part Runs",
        "engine": "run",
        "library": "CLAIMS",
    },
)
