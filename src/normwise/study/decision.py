"""What is decided at one batch size: the facts from which every sentence of a verdict is derived."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from normwise.records import DECIDED, Settings, Standing, Trial
from normwise.study.choice import Choice, choose, cost, same_cost
from normwise.study.pairs import ROUNDING, above
from normwise.study.standings import share_near_best


@dataclass(frozen=True)
class Decision:
    """The choice at one batch size and all that was asked to make it.

    ``near`` is each racing method's share of resamples in which it is within the tolerance of the highest; ``same`` the
    relative difference up to which two steps count as equally long. ``rising`` are the methods whose mean score still
    rose by more than the tolerance between the last two points of the curves, and by how much. ``outcome`` is one of

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
    rising: dict[str, float]

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
    """Decide at one batch size, whose standings come best first; ``resampled`` as :func:`standings_at` gives them."""
    racers = [s for s in standings if not s.stopped]
    near = {s.method: share_near_best(resampled, k, settings.tolerance) for k, s in enumerate(racers)}
    tied = [s for s in standings if s.tied]
    finals = [t for t in trials if t.cell.stage == "final" and t.cell.batch_size == standings[0].batch_size]
    same = same_cost(_rows(finals, [s.method for s in tied], _log_seconds))
    costs = [cost(s.step_seconds, s.peak_bytes) for s in tied]
    choice = choose([near[s.method] for s in tied], [s.diverged > 0 for s in tied], costs, same)
    scores = np.array(_rows(finals, [s.method for s in racers], lambda t: t.valid_score))
    return Decision(
        settings, standings, near, same, _outcome(settings.floor, standings, scores), choice, _rising(settings, finals)
    )


def _outcome(floor: float | None, standings: Sequence[Standing], scores: np.ndarray) -> str:
    """See :class:`Decision`; ``scores`` are those of the methods that were not stopped, the best first."""
    if all(s.diverged == s.runs for s in standings):
        return "lost"
    if floor is not None and not above(scores, 0, floor):
        return "unlearned"
    if len(standings) == 1:
        return "alone"
    gaps = [s.behind for s in standings[1:] if s.behind is not None]
    if all(max(abs(gap.low), abs(gap.high)) <= ROUNDING for gap in gaps):
        return "equal"
    return "clear" if sum(s.tied for s in standings) == 1 else "tied"


def _rows(trials: Sequence[Trial], methods: Sequence[str], of: Callable[[Trial], float | None]) -> list[list[float]]:
    """A number of each method's trials, seed by seed, on the seeds at which all of them have it."""
    found = {(t.cell.method, t.cell.seed): of(t) for t in trials}
    seeds = sorted({seed for _, seed in found})
    rows = [[found.get((m, seed)) for m in methods] for seed in seeds]
    shared = [row for row in rows if None not in row]
    return [list(row) for row in zip(*shared, strict=True)]


def _rising(settings: Settings, finals: Sequence[Trial]) -> dict[str, float]:
    """What each method still gained on average from the last but one point of its whole curves to the last."""
    gains: dict[str, list[float]] = {}
    for trial in (t for t in finals if t.state == "complete"):
        ends = [point.valid_score for point in trial.curve[-2:]]
        if len(ends) == 2 and None not in ends:
            gains.setdefault(trial.cell.method, []).append(ends[1] - ends[0])  # type: ignore[operator]
    means = {method: sum(of) / len(of) for method, of in gains.items()}
    return {method: gain for method, gain in means.items() if gain > settings.tolerance}


def _log_seconds(trial: Trial) -> float | None:
    return math.log(trial.step_seconds) if trial.step_seconds else None
