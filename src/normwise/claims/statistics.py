"""From paired numbers to a verdict: an interval against the hypothesis that was stated beforehand.

One rule for every kind of hypothesis. The quantity is claimed to lie in a range: above a bound, below one, or between
two. Where the whole interval lies in the range the hypothesis holds, where all of it lies outside it does not, and
where the interval crosses a bound the runs cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from normwise.errors import InputError
from normwise.outcomes import FAILS, HOLDS, UNDECIDED
from normwise.records import Interval
from normwise.study.standings import interval_of, resampled_means

# Differences below this are rounding, not results.
_ROUNDING = 1e-12


def estimate(values: Sequence[float] | np.ndarray, ratio: bool = False) -> Interval:
    """The mean of paired numbers with its bootstrap interval, as in ``study.standings``."""
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or len(numbers) < 2:
        raise InputError(f"an interval needs one number per seed and at least two seeds, got {numbers.tolist()}")
    if not np.isfinite(numbers).all() or (ratio and (numbers <= 0).any()):
        raise InputError(f"these cannot be averaged as {'ratios' if ratio else 'numbers'}: {numbers.tolist()}")
    if np.ptp(numbers) == 0:
        # Said exactly, without the rounding of logarithms and means.
        return Interval(float(numbers[0]), float(numbers[0]), float(numbers[0]))
    scale = np.log(numbers) if ratio else numbers
    found = interval_of(float(scale.mean()), resampled_means(scale[None])[0])
    if not ratio:
        return found
    value, low, high = np.exp([found.value, found.low, found.high]).tolist()
    return Interval(value, low, high, found.level)


def judge(interval: Interval, at_least: float | None = None, at_most: float | None = None) -> str:
    """Hold an interval against a hypothesis."""
    if at_least is None and at_most is None:
        raise InputError("a hypothesis needs a bound: at_least, at_most or both")
    low = -np.inf if at_least is None else at_least - _ROUNDING
    high = np.inf if at_most is None else at_most + _ROUNDING
    if low <= interval.low and interval.high <= high:
        return HOLDS
    if interval.high < low or interval.low > high:
        return FAILS
    return UNDECIDED


def together(verdicts: Iterable[str]) -> str:
    """The verdict on a claim with several parts: it holds if all do, and fails if one does."""
    found = list(verdicts)
    if FAILS in found:
        return FAILS
    return HOLDS if found and set(found) == {HOLDS} else UNDECIDED
