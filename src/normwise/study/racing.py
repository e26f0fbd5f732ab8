"""Racing: seeds go where the question is open, and a method stops when it is clearly behind.

After every round (one more seed for each method that is still running) each method is compared with the leader, in
pairs: on the seeds that both have run and, as long as that is only one, on the shorter trials that chose their learning
rates. It stops when the 95 % interval of its difference lies above the study's tolerance. The race is over when one is
left, or when those that are left are surely so close that it does not matter: every interval ends below twice the
tolerance.

Two or three pairs say little about how much one difference scatters, but those of all methods together say a good
deal: each method's variance is drawn towards the median of all by an empirical Bayes estimate (the moderated t of Smyth
2004, "Linear Models and Empirical Bayes Methods", Statistical Applications in Genetics and Molecular Biology 3(1)). A
rank test on the pairs, such as Wilcoxon's, could stop nothing before the fifth: with n pairs its smallest p is 2⁻ⁿ.

What stops depends on complete rounds only, never on which worker finished first, so a race has the same outcome with
any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import scipy.stats

from normwise.records import Interval, Settings, Trial

LEVEL = 0.95
# Degrees of freedom that the scatter common to all methods counts for.
PRIOR = 4
# Methods that are left when the race is over go on to so many seeds, so that their scores are known.
ENOUGH = 5
# Methods this close, in tolerances, are as good as each other.
EQUAL = 2
# The length of a trial that only chooses the learning rate, as a share of a final one. Much shorter ones prefer low
# rates: at a fifth of the length layer norm on the digits chose a rate that cost it 3 points.
TUNE_SHARE = 1 / 3


@dataclass(frozen=True)
class Stopped:
    """A method that left the race: after how many seeds, and how far behind the leader it was then.

    Example:
        >>> Stopped(2, Interval(0.1, 0.05, 0.15)).runs
        2
    """

    runs: int
    behind: Interval


@dataclass
class Race:
    """The state of the race at one batch size: who is running, who has stopped.

    Those who are running may run ``rounds`` seeds now, and as things stand ``last`` in the end.

    Example:
        >>> Race(["batch", "layer"], 2, 5).stopped
        {}
    """

    running: list[str]
    rounds: int
    last: int
    stopped: dict[str, Stopped] = field(default_factory=dict)

    def runs(self, method: str) -> int:
        """How many seeds a method may run so far, or ran before it stopped.

        Args:
            method: one of the study.

        Returns:
            The number.

        Example:
            >>> Race(["batch"], 3, 5, {"none": Stopped(2, Interval(0.1, 0.05, 0.15))}).runs("none")
            2
        """
        return self.stopped[method].runs if method in self.stopped else self.rounds

    def most(self, method: str) -> int:
        """How many seeds a method runs at the most, or ran before it stopped.

        Args:
            method: one of the study.

        Returns:
            The number.

        Example:
            >>> Race(["batch"], 3, 5).most("batch")
            5
        """
        return self.stopped[method].runs if method in self.stopped else self.last


def race(settings: Settings, trials: Iterable[Trial], batch_size: int) -> Race:
    """Replay the race at one batch size from the finished trials.

    Args:
        settings: of the study; without ``settings.race`` every method runs every seed.
        trials: those finished so far, in any order.
        batch_size: which one.

    Returns:
        Where the race stands.

    Example:
        >>> settings = Settings("t", ["none", "batch"], [2], [0, 1, 2], [9], {"2": [0.1]}, {}, "", "", "", {}, "")
        >>> race(settings, [], 2).rounds
        3
    """
    seeds = settings.seeds
    state = Race(list(settings.methods), len(seeds), len(seeds))
    if not settings.race:
        return state
    tuned, final = _scores(trials, batch_size)
    state.rounds = 1
    while all((m, seed) in final for m in state.running for seed in seeds[: state.rounds]):
        rows = [[final[m, seed] for seed in seeds[: state.rounds]] for m in state.running]
        if state.rounds == 1:  # One pair has no scatter. Later on the short trials would only add to it.
            rows = [[tuned[m], *row] for m, row in zip(state.running, rows, strict=True)]
        gaps = dict(zip(state.running, behind_leader(np.array(rows)), strict=True))
        if state.rounds < len(seeds):
            _stop_those_behind(state, gaps, settings.tolerance)
        if all(_high(gaps[m]) <= EQUAL * settings.tolerance for m in state.running):
            state.last = min(state.last, max(state.rounds, ENOUGH))
        if state.rounds >= state.last:
            break
        state.rounds += 1
    return state


def behind_leader(scores: np.ndarray, level: float = LEVEL) -> list[Interval | None]:
    """How far each method is behind the one with the highest mean, with a moderated t interval over the pairs.

    Formula: d ± t((1 + level)/2, ν₀ + n − 1) · √((s̃² + s̃₁²) / n) with the mean difference d to the leader 1. A
    method's variance s̃² = (ν₀ · s₀² + (n − 1) · s²) / (ν₀ + n − 1) mixes its own s², after each column's common shift
    (its median over the methods) is taken off, with s₀², which is the median of all s² over that of χ²(n − 1)/(n − 1).
    ν₀ = 4.

    Args:
        scores: (K, n), one column per pair, n at least 2.
        level: nominal coverage.

    Returns:
        One interval per row, ``None`` for the leader's own.

    Example:
        >>> [leader, other] = behind_leader(np.array([[0.9, 0.8, 0.9], [0.6, 0.5, 0.5]]))
        >>> leader is None, round(other.value, 3), other.low > 0
        (True, 0.333, True)
    """
    count, n = scores.shape
    means = scores.mean(axis=1)
    leader = int(means.argmax())
    own = scores - means[:, None]
    own -= np.median(own, axis=0)
    # A shift estimated from K methods takes 1/K of the scatter with it.
    variances = own.var(axis=1, ddof=1) * count / max(count - 1, 1)
    variances = moderated(variances, n, np.median(variances) / (scipy.stats.chi2.median(n - 1) / (n - 1)))
    degrees = PRIOR + n - 1
    reach = scipy.stats.t.ppf((1 + level) / 2, degrees) * np.sqrt((variances + variances[leader]) / n)
    return [
        None if k == leader else Interval(float(gap), float(gap - reach[k]), float(gap + reach[k]), level)
        for k, gap in enumerate(means[leader] - means)
    ]


def moderated(variance: np.ndarray, n: int, common: float) -> np.ndarray:
    """Draw variances of n values towards a common one: (ν₀ · s₀² + (n − 1) · s²) / (ν₀ + n − 1), ν₀ = 4.

    Args:
        variance: s², with n − 1 in the denominator.
        n: values behind each.
        common: s₀².

    Returns:
        The moderated variances.

    Example:
        >>> moderated(np.array([0.0, 6.0]), 3, 1.0)
        array([0.666..., 2.666...])
    """
    return (PRIOR * common + (n - 1) * variance) / (PRIOR + n - 1)


def _stop_those_behind(state: Race, gaps: Mapping[str, Interval | None], tolerance: float) -> None:
    for method, gap in gaps.items():
        if gap is not None and gap.low > tolerance:
            state.running.remove(method)
            state.stopped[method] = Stopped(state.rounds, gap)


def _high(gap: Interval | None) -> float:
    """The most that a method may be behind; the leader is not."""
    return gap.high if gap is not None else 0.0


def _scores(trials: Iterable[Trial], batch_size: int) -> tuple[dict[str, float], dict[tuple[str, int], float]]:
    """Validation scores: method → its best in the search for the learning rate, and (method, seed) → its final one."""
    tuned: dict[str, float] = {}
    final = {}
    for t in trials:
        if t.cell.batch_size == batch_size:
            if t.cell.stage == "final":
                final[t.cell.method, t.cell.seed] = t.valid_score
            else:
                tuned[t.cell.method] = max(tuned.get(t.cell.method, t.valid_score), t.valid_score)
    return tuned, final
