"""The search for learning rates: which trials it asks for, and the rate that each method enters the comparison with.

Every method gets the same budget. All try the grid on the first seed, and go on beyond it while the best rate of some
method lies at the end of what was tried. Where a method that may lead has two rates that are near each other, one seed
would choose between them by chance: then the two best rates of every method are run on another seed, and another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from normwise.errors import InputError
from normwise.records import Settings, Setup, Trial
from normwise.study.pairs import LEVEL, PRIOR, variances

# A single seed does not show how much scores scatter: on it, rates within so many tolerances are near each other.
NEAR = 10


@dataclass(frozen=True)
class Tuning:
    """The search at one batch size: the rates it has come to, the setups it asks for, and the rates chosen so far."""

    rates: list[float]
    setups: list[Setup]
    chosen: dict[str, float]


def ladder(settings: Settings, batch_size: int) -> list[float]:
    """Every rate that the search may come to: the grid and, in steps like its outermost, ``settings.search`` more."""
    grid = sorted(settings.lrs[str(batch_size)])
    if len(grid) < 2 or not settings.search:
        return grid
    steps = range(1, settings.search + 1)
    below = [grid[0] * (grid[0] / grid[1]) ** k for k in reversed(steps)]
    above = [grid[-1] * (grid[-1] / grid[-2]) ** k for k in steps]
    return [*(float(f"{lr:.3g}") for lr in below), *grid, *(float(f"{lr:.3g}") for lr in above)]


def chosen_lrs(settings: Settings, trials: Iterable[Trial]) -> dict[tuple[str, int], float]:
    """The learning rate of each method and batch size whose tuning is finished."""
    trials = list(trials)
    return {(m, b): lr for b in settings.batch_sizes for m, lr in tuning(settings, trials, b).chosen.items()}


def tuning(settings: Settings, trials: Iterable[Trial], batch_size: int) -> Tuning:
    """Replay the search at one batch size from the finished trials; without tuning seeds the first rate is taken."""
    rungs, grid = ladder(settings, batch_size), settings.lrs[str(batch_size)]
    if not settings.tune_seeds:
        return Tuning(rungs, [], dict.fromkeys(settings.methods, grid[0]))
    search = _Search(settings, trials, batch_size)
    low = rungs.index(min(grid))
    high = low + len(grid)

    def beyond(chosen: Mapping[str, float]) -> tuple[bool, bool]:
        """Whether the search goes on below and above, as a chosen rate has no other on that side."""
        best = set(chosen.values())
        return low > 0 and rungs[low] in best, high < len(rungs) and rungs[high - 1] in best

    while True:
        rates = rungs[low:high]
        # The grid first, as that is what is known from the start.
        chosen = search.on_first([*grid, *(lr for lr in rates if lr not in grid)])
        if len(chosen) < len(settings.methods):
            # Where the search cannot go on, no method waits for the others.
            return Tuning(rates, search.setups, {} if settings.search or settings.tune_ties else chosen)
        step = beyond(chosen)
        if not any(step):
            chosen = search.on_more()
            step = beyond(chosen)
            if not chosen or not any(step):
                return Tuning(rates, search.setups, chosen)
            # With as many more, those that were among the best stay so, and every method has run as many.
            search.best += sum(step)
        low, high = low - step[0], high + step[1]


class _Search:
    """Asks for trials, and chooses among those that are done."""

    def __init__(self, settings: Settings, trials: Iterable[Trial], batch_size: int) -> None:
        self.settings, self.batch_size = settings, batch_size
        self._done = {t.setup.key: t for t in trials if t.setup.stage == "tune" and t.setup.batch_size == batch_size}
        self._asked: dict[str, Setup] = {}
        self._leading: dict[str, list[float]] = {}
        self.best = 2
        first = len(settings.tune_seeds) - settings.tune_ties
        self._seeds, self._kept = settings.tune_seeds[:first], settings.tune_seeds[first:]

    @property
    def setups(self) -> list[Setup]:
        return list(self._asked.values())

    def on_first(self, rates: Sequence[float]) -> dict[str, float]:
        """Try rates with every method; give the best rate of each method that is done."""
        tried = self._tried(self._seeds, dict.fromkeys(self.settings.methods, rates))
        self._leading = {method: by_merit(of)[: self.best] for method, of in tried.items()}
        return {method: rates[0] for method, rates in self._leading.items()}

    def on_more(self) -> dict[str, float]:
        """Run each method's best rates on more seeds while some are near; give the choice, or nothing as yet."""
        for more in range(len(self._kept) + 1):
            tried = self._tried(self._seeds + self._kept[:more], self._leading)
            if len(tried) < len(self.settings.methods):
                return {}
            if not self._are_near(tried):
                break
        return {method: chosen_lr(of) for method, of in tried.items()}

    def _tried(self, seeds: Sequence[int], rates: Mapping[str, Sequence[float]]) -> dict[str, list[Trial]]:
        """Ask for each method's rates on each seed; give the trials of the methods that are done."""
        every = dict.fromkeys(lr for of_one in rates.values() for lr in of_one)
        setups = [
            Setup("tune", method, self.batch_size, lr, seed)
            for seed in seeds
            for lr in every
            for method in rates
            if lr in rates[method]
        ]
        self._asked.update((setup.key, setup) for setup in setups)
        asked = {method: [setup.key for setup in setups if setup.method == method] for method in rates}
        return {m: [self._done[k] for k in keys] for m, keys in asked.items() if all(k in self._done for k in keys)}

    def _are_near(self, tried: Mapping[str, Sequence[Trial]]) -> bool:
        """Whether a method that may lead has two rates between which chance would choose, to an effect that matters."""
        rates = {method: by_merit(of)[:2] for method, of in tried.items()}
        if min(map(len, rates.values())) < 2:
            return False
        scores = np.array([
            [[t.valid_score for t in of if t.setup.lr == lr] for lr in rates[method]] for method, of in tried.items()
        ])
        tolerance, (_, _, n) = self.settings.tolerance, scores.shape
        reach = np.full(len(scores), NEAR * tolerance)
        if n > 1:
            spread = variances(scores.reshape(-1, n)).reshape(-1, 2).sum(axis=1)
            reach = scipy.stats.t.ppf((1 + LEVEL) / 2, PRIOR + n - 1) * np.sqrt(spread / n)
        means = scores.mean(axis=2)
        apart, highest = np.abs(means[:, 0] - means[:, 1]), means.max(axis=1)
        may_lead = highest.max() - highest <= reach
        return bool((may_lead & (apart <= reach) & (apart + reach > tolerance)).any())


def by_merit(trials: Iterable[Trial]) -> list[float]:
    """Order the rates of one method's trials: highest mean validation score, then lowest loss, then smallest rate."""
    by_lr: dict[float, list[Trial]] = {}
    for trial in trials:
        by_lr.setdefault(trial.setup.lr, []).append(trial)

    def merit(lr: float) -> tuple[float, float, float]:
        same = by_lr[lr]
        losses = [math.inf if t.valid_loss is None else t.valid_loss for t in same]
        # Rounded: the mean of equal scores must not depend on the order of the sum.
        return round(sum(t.valid_score for t in same) / len(same), 12), -sum(losses) / len(same), -lr

    return sorted(by_lr, key=merit, reverse=True)


def chosen_lr(trials: Iterable[Trial]) -> float:
    """Choose among one method's tuning trials; see :func:`by_merit`."""
    rates = by_merit(trials)
    if not rates:
        raise InputError("no tuning trial to choose a learning rate from")
    return rates[0]
