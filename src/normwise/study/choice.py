"""The rule by which one of several methods is advised that cannot be told apart, and what it reads of their runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from normwise.records import Trial

# Costs nearer than this count as equal, and step times that differ by no more than their own noise: `same_cost`.
SAME_COST = 0.1
# A tied method is advised only if it comes within the tolerance of the highest in this share of resamples: with few
# seeds a method can be tied merely because it scatters, far below the best.
PLAUSIBLE = 0.2

Cost = tuple[float, float]


class Choice(NamedTuple):
    """The place of the chosen method, and those that were passed over, by reason; every place is in one of them.

    ``lost`` had runs that did not complete, ``far`` rarely come near the highest, ``slow`` take longer per step,
    ``heavy`` hold more memory, ``lower`` cost as little and scored no higher.
    """

    place: int
    lost: list[int]
    far: list[int]
    slow: list[int]
    heavy: list[int]
    lower: list[int]


def choose(near: Sequence[float], lost: Sequence[bool], costs: Sequence[Cost], same: float = SAME_COST) -> Choice:
    """Choose among methods that cannot be told apart: the cheapest that may well be as good as the best.

    Cheapest is the shortest step, then the least memory, then the highest validation mean. A method that lost runs is
    chosen only if every one of them did, and one other than the best only if it is near the highest in at least a
    fifth of the resamples.
    """
    places = list(range(len(lost)))
    whole, broken = _parted(places, lambda k: not lost[k] or all(lost))
    candidates, far = _parted(whole, lambda k: k == whole[0] or near[k] >= PLAUSIBLE)
    candidates, slow = _cheapest(candidates, lambda k: costs[k][0], same)
    (first, *rest), heavy = _cheapest(candidates, lambda k: costs[k][1], SAME_COST)
    return Choice(first, broken, far, slow, heavy, rest)


def _parted(places: Sequence[int], keep: Callable[[int], bool]) -> tuple[list[int], list[int]]:
    return [k for k in places if keep(k)], [k for k in places if not keep(k)]


def _cheapest(places: Sequence[int], of: Callable[[int], float], same: float) -> tuple[list[int], list[int]]:
    limit = min(map(of, places)) * (1 + same)
    return _parted(places, lambda k: of(k) <= limit)


def same_cost(log_seconds: Sequence[Sequence[float]]) -> float:
    """The relative difference up to which the step times of several methods count as equal.

    The methods take turns, seed by seed, so what a busy machine adds to one seed falls on all of them and is taken out;
    what is left scatters. Half the 95 % interval of a difference of two methods' means is the noise.
    """
    times = np.array(log_seconds, dtype=float)
    if times.ndim < 2 or min(times.shape) < 2:
        return SAME_COST
    rest = times - times.mean(axis=0) - times.mean(axis=1, keepdims=True) + times.mean()
    degrees = (times.shape[0] - 1) * (times.shape[1] - 1)
    deviation = math.sqrt(float((rest**2).sum()) / degrees * 2 / times.shape[1])
    return max(SAME_COST, math.expm1(float(scipy.stats.t.ppf(0.975, degrees)) * deviation))


def step_seconds(runs: Sequence[Trial]) -> float | None:
    """The time of a method's training step: the lowest of the trials' medians.

    Whatever else ran on the machine only ever made a step slower.
    """
    return min((t.step_seconds for t in runs if t.step_seconds is not None), default=None)


def step_bytes(runs: Sequence[Trial]) -> int | None:
    """The memory of a method's training step: the most that any run held."""
    return max((t.peak_bytes for t in runs if t.peak_bytes is not None), default=None)


def cost(seconds: float | None, size: float | None) -> Cost:
    """Give costs for :func:`choose`: what is not known counts as infinite."""
    return tuple(float("inf") if value is None else float(value) for value in (seconds, size))  # type: ignore[return-value]
