"""The rule by which one of several methods is advised that cannot be told apart, and what it reads of their runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from normwise.records import Interval, Standing, StepCost, Trial
from normwise.study.pairs import LEVEL, paired

# Costs nearer than this count as equal, and step times that differ by no more than their own noise: `same_cost`.
SAME_COST = 0.1
# A tied method is advised for its cost only if it comes within the tolerance of the highest in this share of resamples:
# with few seeds a method can be tied merely because it scatters, and what is cheap must more likely than not be good.
PLAUSIBLE = 0.5

Cost = tuple[float, float]


class Choice(NamedTuple):
    """The place of the chosen method, and those that were passed over, by reason; every place is in one of them.

    ``lost`` had runs that did not complete, ``far`` mostly stay behind the highest, ``slow`` take longer per step,
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
    chosen only if every one of them did, and one other than the best only if it is near the highest in at least half of
    the resamples.
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
    """The relative difference up to which the step times of several methods count as equal: see :func:`step_noise`."""
    return max(SAME_COST, math.expm1(step_noise(log_seconds) or 0.0))


def step_noise(log_seconds: Sequence[Sequence[float]]) -> float | None:
    """Half the 95 % interval of a difference of two methods' mean log step times; unknown with one method or time.

    The methods take turns, block by block or seed by seed, so what a busy machine adds to one turn falls on all of them
    and is taken out; what is left scatters.
    """
    times = np.array(log_seconds, dtype=float)
    if times.ndim < 2 or min(times.shape) < 2:
        return None
    rest = times - times.mean(axis=0) - times.mean(axis=1, keepdims=True) + times.mean()
    degrees = (times.shape[0] - 1) * (times.shape[1] - 1)
    deviation = math.sqrt(float((rest**2).sum()) / degrees * 2 / times.shape[1])
    return float(scipy.stats.t.ppf((1 + LEVEL) / 2, degrees)) * deviation


def trained_times(trials: Sequence[Trial], methods: Sequence[str]) -> list[list[float]]:
    """The logarithm of each method's step time in training, seed by seed; of methods that have one."""
    timed = [m for m in methods if any(t.step_seconds for t in trials if t.setup.method == m)]
    return paired(trials, timed, lambda t: math.log(t.step_seconds) if t.step_seconds else None)


def turn_times(costs: Sequence[StepCost], methods: Sequence[str]) -> list[list[float]]:
    """The logarithms of step times that were measured in turn, block by block; nothing unless all methods have them."""
    by_method = {c.method: [math.log(seconds) for seconds in c.seconds] for c in costs if len(c.seconds) > 1}
    return [by_method[m] for m in methods] if by_method.keys() >= set(methods) else []


def with_costs(standings: Sequence[Standing], costs: Sequence[StepCost]) -> list[Standing]:
    """Give standings the costs that were measured in turn, if those of all methods that came through were.

    A step's time is the geometric mean of its blocks; its interval is that of the differences, over √2. A method that
    was timed alone has its own.
    """
    through = [s.method for s in standings if s.diverged < s.runs]
    times = turn_times(costs, through)
    if not times:
        return list(standings)
    noise = step_noise(times)
    alone = scipy.stats.t.ppf((1 + LEVEL) / 2, len(times[0]) - 1) * scipy.stats.sem(times[0])
    factor = math.exp(alone if noise is None else noise / math.sqrt(2))
    seconds = {m: math.exp(sum(row) / len(row)) for m, row in zip(through, times, strict=True)}
    sizes = {c.method: c.peak_bytes for c in costs}
    return [
        dataclasses.replace(
            s,
            step_seconds=(mean := seconds.get(s.method)),
            step_interval=None if mean is None else Interval(mean, mean / factor, mean * factor, LEVEL),
            peak_bytes=sizes.get(s.method) if mean else s.peak_bytes,
        )
        for s in standings
    ]


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
