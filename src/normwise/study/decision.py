"""What is decided at one batch size: the facts from which every sentence of a verdict is derived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.stats

from normwise.records import DECIDED, Settings, Standing, StepCost, Trial
from normwise.study.choice import Choice, choose, cost, same_cost, trained_times, turn_times
from normwise.study.pairs import LEVEL, PRIOR, ROUNDING, above, paired, variances
from normwise.study.standings import share_near_best


@dataclass(frozen=True)
class Swing:
    """Two learning rates that the search does not tell apart, and how far apart a method's mean scores at them are."""

    method: str
    lr: float
    other: float
    apart: float


@dataclass(frozen=True)
class Decision:
    """The choice at one batch size and all that was asked to make it.

    ``near`` is each racing method's share of resamples in which it is within the tolerance of the highest; ``same`` the
    relative difference up to which two steps count as equally long. ``rising`` are the methods whose mean score still
    rose by more than the tolerance between the last two points of the curves, and by how much. ``swings`` are of the
    racing methods that have another rate as good as the one chosen. ``outcome`` is one of

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
    swings: dict[str, Swing]

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

    @cached_property
    def rival(self) -> Standing | None:
        """The best or, where that is advised, the next that was not stopped."""
        if self.use is not self.best:
            return self.best
        others = [s for s in self.standings if s is not self.use and not s.stopped]
        return others[0] if others else None

    @cached_property
    def swing(self) -> Swing | None:
        """The swing of the advised method or its rival that is larger than what is between them, if one is."""
        if not self.decided or self.rival is None:
            return None
        gap = abs(self.use.valid.value - self.rival.valid.value)
        found = [self.swings[s.method] for s in (self.use, self.rival) if s.method in self.swings]
        widest = max(found, key=lambda swing: swing.apart, default=None)
        return widest if widest is not None and widest.apart > max(gap, self.settings.tolerance) else None

    def names(self, places: Sequence[int]) -> list[str]:
        """The methods at some places among the tied."""
        return [self.tied[k].method for k in places]


def decide(
    settings: Settings,
    trials: Sequence[Trial],
    standings: Sequence[Standing],
    resampled: np.ndarray,
    costs: Sequence[StepCost] = (),
) -> Decision:
    """Decide at one batch size, whose standings come best first; ``resampled`` as :func:`standings_at` gives them."""
    racers = [s for s in standings if not s.stopped]
    names = [s.method for s in racers]
    near = {m: share_near_best(resampled, k, settings.tolerance) for k, m in enumerate(names)}
    tied = [s for s in standings if s.tied]
    here = [t for t in trials if t.setup.batch_size == standings[0].batch_size]
    finals = [t for t in here if t.setup.stage == "final"]
    through = [s.method for s in racers if s.diverged < s.runs]
    same = same_cost(turn_times(costs, through) or trained_times(finals, names))
    each = [cost(s.step_seconds, s.peak_bytes) for s in tied]
    choice = choose([near[s.method] for s in tied], [s.diverged > 0 for s in tied], each, same)
    scores = np.array(paired(finals, names, lambda t: t.valid_score))
    return Decision(
        settings,
        standings,
        near,
        same,
        _outcome(settings.floor, standings, scores),
        choice,
        _rising(settings, finals),
        _swings([t for t in here if t.setup.stage == "tune"], racers, scores),
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


def _rising(settings: Settings, finals: Sequence[Trial]) -> dict[str, float]:
    """What each method still gained on average from the last but one point of its whole curves to the last."""
    gains: dict[str, list[float]] = {}
    for trial in (t for t in finals if t.state == "complete"):
        ends = [point.valid_score for point in trial.curve[-2:]]
        if len(ends) == 2 and None not in ends:
            gains.setdefault(trial.setup.method, []).append(ends[1] - ends[0])  # type: ignore[operator]
    means = {method: sum(of) / len(of) for method, of in gains.items()}
    return {method: gain for method, gain in means.items() if gain > settings.tolerance}


def _swings(tuning: Sequence[Trial], racers: Sequence[Standing], scores: np.ndarray) -> dict[str, Swing]:
    """Compare each method's rates on the seeds of the search, with the scatter that its final scores have."""
    n = scores.shape[1]
    reach = scipy.stats.t.ppf((1 + LEVEL) / 2, PRIOR + n - 1) * np.sqrt(2 * variances(scores))
    found: dict[str, Swing] = {}
    for standing, within in zip(racers, reach, strict=True):
        by_rate: dict[float, dict[int, float]] = {}
        for t in tuning:
            if t.setup.method == standing.method and t.state == "complete":
                by_rate.setdefault(t.setup.lr, {})[t.setup.seed] = t.valid_score
        chosen = by_rate.pop(standing.lr, {})
        for lr, of_one in by_rate.items():
            shared = chosen.keys() & of_one.keys()
            gaps = [chosen[seed] - of_one[seed] for seed in sorted(shared)]
            apart = abs(sum(gaps)) / len(gaps) if gaps else 0.0
            as_good = gaps and apart <= within / len(gaps) ** 0.5
            if as_good and (standing.method not in found or apart > found[standing.method].apart):
                found[standing.method] = Swing(standing.method, standing.lr, lr, apart)
    return found
