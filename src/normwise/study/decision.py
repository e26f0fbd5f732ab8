"""What is decided at one batch size: the facts from which every sentence of a verdict is derived."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from normwise.records import DECIDED, Settings, Standing, Trial
from normwise.study.choice import Choice, choose, cost, same_cost
from normwise.study.pairs import ROUNDING
from normwise.study.standings import share_near_best


@dataclass(frozen=True)
class Decision:
    """The choice at one batch size and all that was asked to make it.

    ``near`` is each racing method's share of resamples in which it is within the tolerance of the highest; ``same`` the
    relative difference up to which two steps count as equally long. ``outcome`` is one of

    - ``"lost"``: no run of any method completed;
    - ``"unlearned"``: the best is not shown to score above ``settings.floor``, what no training scores;
    - ``"equal"``: several methods, with the same score in every run;
    - ``"alone"``, ``"clear"``, ``"tied"``: one was tried, one is ahead of all others, several lead.
    """

    settings: Settings
    standings: Sequence[Standing]
    near: dict[str, float]
    same: float
    outcome: str
    choice: Choice

    @property
    def decided(self) -> bool:
        """Whether a method is advised at all."""
        return self.outcome in DECIDED

    @property
    def best(self) -> Standing:
        """The highest validation mean."""
        return self.standings[0]

    @cached_property
    def tied(self) -> list[Standing]:
        """Those whose difference to the best has an interval that includes 0, the best first."""
        return [s for s in self.standings if s.tied]

    @property
    def use(self) -> Standing:
        """The one that is advised, if any is."""
        return self.tied[self.choice.place]

    def names(self, places: Sequence[int]) -> list[str]:
        """The methods at some places among the tied."""
        return [self.tied[k].method for k in places]


def decide(
    settings: Settings, trials: Sequence[Trial], standings: Sequence[Standing], resampled: np.ndarray
) -> Decision:
    """Decide at one batch size.

    Args:
        settings: of the study.
        trials: of the study.
        standings: of that batch size, best first; not empty.
        resampled: the resampled validation means of those that were not stopped, in the same order.

    Returns:
        The decision.
    """
    racers = [s for s in standings if not s.stopped]
    near = {s.method: share_near_best(resampled, k, settings.tolerance) for k, s in enumerate(racers)}
    tied = [s for s in standings if s.tied]
    same = same_cost(_finals(trials, standings[0].batch_size, [s.method for s in tied]))
    costs = [cost(s.step_seconds, s.peak_bytes) for s in tied]
    choice = choose([near[s.method] for s in tied], [s.diverged > 0 for s in tied], costs, same)
    return Decision(settings, standings, near, same, _outcome(settings, standings, len(tied)), choice)


def _outcome(settings: Settings, standings: Sequence[Standing], tied: int) -> str:
    best = standings[0]
    if all(s.diverged == s.runs for s in standings):
        return "lost"
    if settings.floor is not None and best.valid.low <= settings.floor + ROUNDING:
        return "unlearned"
    if len(standings) == 1:
        return "alone"
    gaps = [s.behind for s in standings[1:] if s.behind is not None]
    if all(max(abs(gap.low), abs(gap.high)) <= ROUNDING for gap in gaps):
        return "equal"
    return "clear" if tied == 1 else "tied"


def _finals(trials: Sequence[Trial], batch_size: int, methods: Sequence[str]) -> list[list[float]]:
    """Each method's step times, seed by seed, on the seeds at which all of them were timed."""
    seconds = {
        (t.cell.method, t.cell.seed): t.step_seconds
        for t in trials
        if t.cell.stage == "final" and t.cell.batch_size == batch_size and t.step_seconds
    }
    seeds = sorted({seed for _, seed in seconds})
    shared = [seed for seed in seeds if all((m, seed) in seconds for m in methods)]
    return [[math.log(seconds[m, seed]) for seed in shared] for m in methods]
