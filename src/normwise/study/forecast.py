"""What the full grid would advise, predicted from the seeds that have run.

Futures are drawn from what is known: each method's level and scatter from their posterior, then the scores of the seeds
that are missing. For each future the advice is worked out as the verdict does it, and so is what it would gain over the
advice of today. This is the predictive probability of sequential trials (Spiegelhalter, Freedman and Blackburn 1986,
"Monitoring clinical trials: conditional or predictive power?", Controlled Clinical Trials 7(1)).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.stats

from normwise.study.choice import SAME_COST, Cost, choose
from normwise.study.pairs import LEVEL, PRIOR, ROUNDING, stretch, variances

FUTURES = 300
_RESAMPLES = 200


class Forecast(NamedTuple):
    """How likely the full grid's advice is that of today, and how much better its choice is expected to be."""

    same: float
    gain: float


# A race is replayed at every claim, with the same rounds each time.
@lru_cache(maxsize=1024)
def forecast(
    scores: tuple[tuple[float, ...], ...],
    total: int,
    lost: tuple[bool, ...],
    costs: tuple[Cost, ...],
    tolerance: float,
    same: float = SAME_COST,
) -> Forecast:
    """Foretell the advice of the full grid; ``same`` is as for ``choose``. The random numbers are always the same."""
    rng = np.random.default_rng(0)
    there = np.array(scores)
    count, n = there.shape
    degrees = PRIOR + n - 1
    scatter = np.sqrt(variances(there) * degrees / rng.chisquare(degrees, (FUTURES, count)))
    levels = there.mean(axis=1) + scatter * rng.standard_normal((FUTURES, count)) / np.sqrt(n)
    more = levels[..., None] + scatter[..., None] * rng.standard_normal((FUTURES, count, total - n))
    # What a seed gives to every method is of no account for differences, and unknown for the seeds to come.
    shared = np.median(there - there.mean(axis=1, keepdims=True), axis=0)
    whole = np.concatenate([np.broadcast_to(there - shared, (FUTURES, count, n)), more], axis=2)
    (now,), then = (advice(each, lost, costs, tolerance, same) for each in (there[None], whole))
    gain = levels[np.arange(FUTURES), then] - levels[:, now]
    return Forecast(float((then == now).mean()), float(gain.mean()))


def advice(
    scores: np.ndarray, lost: tuple[bool, ...], costs: tuple[Cost, ...], tolerance: float, same: float = SAME_COST
) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Work out the advice for many studies at once, as :func:`~normwise.study.verdict.judge` does for one.

    Who is tied is told by t intervals, whose bootstrapped counterparts the verdict has.
    """
    n = scores.shape[2]
    means = scores.mean(axis=2)
    order = np.argsort(-means, axis=1, kind="stable")
    leader = np.take_along_axis(scores, order[:, :1, None], axis=1)
    gaps = leader - scores
    reach = scipy.stats.t.ppf((1 + LEVEL) / 2, n - 1)
    tied = gaps.mean(axis=2) - reach * gaps.std(axis=2, ddof=1) / np.sqrt(n) <= ROUNDING
    near = _near(scores, means, tolerance)
    found = []
    for best_first, is_tied, is_near in zip(order.tolist(), tied.tolist(), near.tolist(), strict=True):
        among = [k for k in best_first if is_tied[k]]
        choice = choose([is_near[k] for k in among], [lost[k] for k in among], [costs[k] for k in among], same)
        found.append(among[choice.place])
    return np.array(found)


def _near(scores: np.ndarray, means: np.ndarray, tolerance: float) -> np.ndarray:
    """How often each is within the tolerance of the highest, over resampled means stretched as the verdict's are."""
    n = scores.shape[2]
    shares = np.random.default_rng(0).multinomial(n, [1 / n] * n, size=_RESAMPLES).T / n
    resampled = means[..., None] + stretch(n) * (scores @ shares - means[..., None])
    within = resampled >= resampled.max(axis=1, keepdims=True) - tolerance - ROUNDING
    share: np.ndarray = within.mean(axis=2)
    return share
