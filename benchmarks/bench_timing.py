"""Contenders take turns in one process: what disturbs the machine disturbs all of them, so only ratios are meant."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

MOST_ROUNDS = 101


def clock(run: Callable[[], object], times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - begin) / times


def take_turns(runs: Mapping[str, Callable[[], object]], seconds: float) -> list[dict[str, float]]:
    """Seconds a call of each, round by round, for about ``seconds`` but at least three rounds."""
    # Enough calls a turn to outweigh the clock; the first of them also warms up.
    calls = {name: max(1, int(0.004 / clock(run, 1)), int(0.004 / clock(run, 2))) for name, run in runs.items()}
    rounds: list[dict[str, float]] = []
    order, end = list(runs), time.perf_counter() + seconds
    while (time.perf_counter() < end or len(rounds) < 3) and len(rounds) < MOST_ROUNDS:
        taken = {}
        for name in order:
            runs[name]()  # not timed: it meets whatever the one before left in the caches
            taken[name] = clock(runs[name], calls[name])
        rounds.append({name: taken[name] for name in runs})
        order.reverse()
    return rounds


def times_ours(rounds: list[dict[str, float]], name: str) -> float:
    """How many times our time another takes: the median over the rounds."""
    return round(statistics.median(times[name] / times["ours"] for times in rounds), 3)


def microseconds(rounds: list[dict[str, float]], name: str) -> float:
    """The median."""
    return round(1e6 * statistics.median(times[name] for times in rounds), 1)
