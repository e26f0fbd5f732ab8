"""From paired numbers to a verdict: an interval against the hypothesis that was stated beforehand.

One rule for every kind of hypothesis. The quantity is claimed to lie in a range: above a bound, below one, or between
two. Where the whole interval lies in the range the hypothesis holds, where all of it lies outside it does not, and
where the interval crosses a bound the runs cannot tell yet.

The design is sequential: seeds come in stages, ``LOOKS``, and the runs are judged after each. To judge four times at
95 % would err far more often than in 5 %, so each look gets a share of ``ERROR`` in proportion to the seeds that it
adds. The shares add up to ``ERROR``, hence the intervals of all looks together cover the truth in at least 95 % of the
cases, whatever was seen on the way (repeated confidence intervals, Jennison & Turnbull 1989, Journal of the Royal
Statistical Society B 51(3), with the union bound).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import scipy.stats

from normwise.errors import InputError
from normwise.outcomes import FAILS, HOLDS, IN_PART, UNDECIDED
from normwise.records import Interval

# Seeds after which the hypotheses are judged; a quick run is judged once.
LOOKS, QUICK_LOOKS = (4, 8, 12, 20), (3,)
ERROR = 0.05

# Differences below this are rounding, not results.
_ROUNDING = 1e-12


def look_at(seeds: int, looks: Sequence[int] = LOOKS) -> int:
    """The last look for which there are enough seeds; 0 before the first."""
    return max((look for look in looks if look <= seeds), default=0)


def error_at(look: int, looks: Sequence[int] = LOOKS) -> float:
    """The share of ``ERROR`` that one look may spend."""
    before = max((other for other in looks if other < look), default=0)
    return ERROR * (look - before) / looks[-1]


def estimate(values: Sequence[float] | np.ndarray, ratio: bool = False, error: float = ERROR) -> Interval:
    """The mean of paired numbers with Student's interval, which misses in ``error`` of the cases."""
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or len(numbers) < 2:
        raise InputError(f"an interval needs one number per seed and at least two seeds, got {numbers.tolist()}")
    if not np.isfinite(numbers).all() or (ratio and (numbers <= 0).any()):
        raise InputError(f"these cannot be averaged as {'ratios' if ratio else 'numbers'}: {numbers.tolist()}")
    if np.ptp(numbers) == 0:
        # Said exactly, without the rounding of logarithms and means.
        return Interval(float(numbers[0]), float(numbers[0]), float(numbers[0]), 1 - error)
    scale = np.log(numbers) if ratio else numbers
    half = scipy.stats.t.ppf(1 - error / 2, len(scale) - 1) * scale.std(ddof=1) / np.sqrt(len(scale))
    found = scale.mean() + np.array([0.0, -half, half])
    value, low, high = (np.exp(found) if ratio else found).tolist()
    return Interval(value, low, high, 1 - error)


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


def judge_look(
    values: Sequence[float],
    ratio: bool,
    at_least: float | None,
    at_most: float | None,
    exact: bool = False,
    looks: Sequence[int] = LOOKS,
) -> tuple[Interval, str]:
    """Estimate and judge the numbers of one look; ``exact`` ones are no matter of chance where they are equal."""
    error = error_at(look_at(len(values), looks), looks)
    interval = estimate(values, ratio, error)
    # Other equal numbers say nothing of their scatter. By a sign test, so many of them on one side decide.
    if interval.low == interval.high and not exact and 2 * 0.5 ** len(values) > error:
        return interval, UNDECIDED
    return interval, judge(interval, at_least, at_most)


def seeds_needed(
    values: Sequence[float], ratio: bool, at_least: float | None, at_most: float | None, looks: Sequence[int] = LOOKS
) -> int | None:
    """So many seeds decide, at the error of the last look, if mean and scatter stay; ``None`` where none do."""
    numbers = np.log(values) if ratio else np.asarray(values, dtype=float)
    bounds = [np.log(b) if ratio else b for b in (at_least, at_most) if b is not None]
    distance = min(abs(numbers.mean() - bound) for bound in bounds)
    if distance <= _ROUNDING:
        return None
    error, spread = error_at(looks[-1], looks), numbers.std(ddof=1)
    for n in range(len(numbers), 10_000):
        if scipy.stats.t.ppf(1 - error / 2, n - 1) * spread / np.sqrt(n) < distance:
            return n
    return None


def together(verdicts: Iterable[str]) -> str:
    """The verdict on a claim with several parts: it holds if all do, in part if some do and others do not."""
    found = set(verdicts)
    if {HOLDS, FAILS} <= found:
        return IN_PART  # whatever becomes of parts that are still undecided
    return found.pop() if len(found) == 1 else UNDECIDED
