"""How far methods are behind the leader when there are few pairs: intervals whose scatter is shared.

Two or three pairs say little about how much one difference scatters, but those of all methods together say a good
deal: each method's variance is drawn towards the median of all by an empirical Bayes estimate (the moderated t of Smyth
2004, "Linear Models and Empirical Bayes Methods", Statistical Applications in Genetics and Molecular Biology 3(1)). A
rank test on the pairs, such as Wilcoxon's, could stop nothing before the fifth: with n pairs its smallest p is 2⁻ⁿ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

from normwise.records import Interval, Trial

LEVEL = 0.95
# Degrees of freedom that the scatter common to all methods counts for.
PRIOR = 4
# Differences below this are rounding, not results.
ROUNDING = 1e-9


def paired(trials: Sequence[Trial], methods: Sequence[str], of: Callable[[Trial], float | None]) -> list[list[float]]:
    """A number of each method's trials, seed by seed, on the seeds at which all of them have it."""
    found = {(t.setup.method, t.setup.seed): of(t) for t in trials}
    seeds = sorted({seed for _, seed in found})
    rows = [[found.get((m, seed)) for m in methods] for seed in seeds]
    shared = [[value for value in row if value is not None] for row in rows if None not in row]
    return [list(row) for row in zip(*shared, strict=True)]


def behind_leader(scores: np.ndarray, level: float = LEVEL) -> list[Interval | None]:
    """How far each method is behind the one with the highest mean, with a moderated t interval over the pairs.

    Formula: d ± t((1 + level)/2, ν₀ + n − 1) · √((s̃² + s̃₁²) / n) with the mean difference d to the leader 1 and the
    variances s̃² of :func:`variances`.
    """
    n = scores.shape[1]
    means = scores.mean(axis=1)
    leader = int(means.argmax())
    scatter = variances(scores)
    reach = scipy.stats.t.ppf((1 + level) / 2, PRIOR + n - 1) * np.sqrt((scatter + scatter[leader]) / n)
    return [
        None if k == leader else Interval(float(gap), float(gap - reach[k]), float(gap + reach[k]), level)
        for k, gap in enumerate(means[leader] - means)
    ]


def variances(scores: np.ndarray) -> np.ndarray:
    """Estimate how much each method scatters, beyond the shift that a pair gives to all, with few pairs.

    Formula: s̃² = (ν₀ · s₀² + (n − 1) · s²) / (ν₀ + n − 1) averages a method's own s², after each column's common shift
    (its median over the methods) is taken off, and s₀², which is the median of all s² over that of χ²(n − 1)/(n − 1).
    ν₀ = 4.
    """
    count, n = scores.shape
    own = scores - scores.mean(axis=1, keepdims=True)
    own -= np.median(own, axis=0)
    # A shift estimated from K methods takes 1/K of the scatter with it.
    each = own.var(axis=1, ddof=1) * count / max(count - 1, 1)
    return moderated(each, n, float(np.median(each) / (scipy.stats.chi2.median(n - 1) / (n - 1))))


def moderated(variance: np.ndarray, n: int, common: float) -> np.ndarray:
    """Draw variances of n values towards a common one: (ν₀ · s₀² + (n − 1) · s²) / (ν₀ + n − 1), ν₀ = 4."""
    return (PRIOR * common + (n - 1) * variance) / (PRIOR + n - 1)


def above(scores: np.ndarray, row: int, floor: float, level: float = LEVEL) -> bool:
    """Whether a method's mean is above a fixed score, by a moderated t interval; see :func:`moderated`."""
    n = scores.shape[1]
    each = scores.var(axis=1, ddof=1)
    variance = moderated(each[row], n, float(np.median(each) / (scipy.stats.chi2.median(n - 1) / (n - 1))))
    reach = scipy.stats.t.ppf((1 + level) / 2, PRIOR + n - 1) * np.sqrt(variance / n)
    return bool(scores[row].mean() - reach > floor + ROUNDING)


def stretch(n: int, level: float = LEVEL) -> float:
    """How much wider than the percentile bootstrap an interval for the mean of n values has to be.

    Formula: t((1 + level)/2, n−1) / z((1 + level)/2) · √(n/(n−1)); it tends to 1.
    """
    upper = (1 + level) / 2
    return float(scipy.stats.t.ppf(upper, n - 1) / scipy.stats.norm.ppf(upper) * np.sqrt(n / (n - 1)))
