"""How far a run of claims is: a live line in a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.console import Console

from normwise.claims.schedule import Stage
from normwise.outcomes import UNDECIDED, Outcome
from normwise.records import Trial
from normwise.study.progress import Live, live_line


class Display(Live):
    """Shows what is trained next, how long the known stages take, and each verdict as it falls; a context manager."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._verdicts: dict[str, str] = {}
        if self._console.is_terminal:
            self._live = live_line(self._console, "{task.fields[stage]}")
            self._bar = self._live.add_task("", total=None, stage="", doing="")

    def stage(self, ahead: Sequence[Stage], outcomes: Sequence[Outcome], seconds: float) -> None:
        """Say the verdicts that are new, and what comes next."""
        for outcome in outcomes:
            if outcome.verdict != UNDECIDED and self._verdicts.get(outcome.name) != outcome.verdict:
                self._console.print(f"{outcome.number:>2} {outcome.title}: {outcome.verdict}", markup=False)
            self._verdicts[outcome.name] = outcome.verdict
        if not ahead:
            return
        now = ahead[0]
        seeds = max(now.seeds.values())
        minutes = max(round(seconds / 60), 1)
        said = f"{now.claim.name}: to {seeds} seeds; about {minutes} min to the next look at {len(ahead)} claim(s)"
        if self._live:
            self._live.update(self._bar, stage=said)
        else:
            self._console.print(said, markup=False)

    def trial(self, trials: Mapping[str, Sequence[Trial]], doing: str) -> None:
        """Learn of a change in the stores."""
        if self._live:
            self._live.update(self._bar, completed=sum(map(len, trials.values())), doing=doing)
