"""How far a run of claims is: a live line in a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console

from normwise.claims.claim import Claim, Experiment
from normwise.outcomes import Outcome
from normwise.records import Trial
from normwise.study.progress import Live, live_line


class Display(Live):
    """Shows which claim is being tested and each verdict as it falls; a context manager."""

    def __init__(self, total: int, claims: Sequence[Claim], stream: TextIO | None = None) -> None:
        self.total = total
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._order = [claim.name for claim in claims]
        self._done: dict[str, int] = {}
        self._said = ""
        if self._console.is_terminal:
            self._live = live_line(self._console, "{task.fields[claim]}")
            self._bar = self._live.add_task("", total=total, claim="", doing="")

    def watch(self, claim: Claim, experiment: Experiment) -> Callable[[list[Trial], str | None], None]:
        """Give what a store is to tell about an experiment."""
        place = f"claim {self._order.index(claim.name) + 1} of {len(self._order)}: {claim.name}"

        def update(trials: list[Trial], doing: str | None) -> None:
            self._done[experiment.name] = len(trials)
            if self._live:
                self._live.update(self._bar, completed=sum(self._done.values()), claim=place, doing=doing or "")
            elif self._said != (said := f"{place}, experiment {experiment.name}"):
                self._said = said
                self._console.print(said, markup=False)

        return update

    def judged(self, outcome: Outcome) -> None:
        """Say a verdict."""
        self._console.print(f"{outcome.number:>2} {outcome.title}: {outcome.verdict}", markup=False)
