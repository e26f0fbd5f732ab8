"""The rule by which one of several methods is advised that cannot be told apart, and what it reads of their runs."""

from __future__ import annotations

from collections.abc import Sequence

from normwise.records import Trial

# Costs nearer than this count as equal: step times vary by about as much from run to run.
SAME_COST = 0.1
# A tied method is advised only if it comes within the tolerance of the highest in this share of resamples: with few
# seeds a method can be tied merely because it scatters, far below the best.
PLAUSIBLE = 0.2

Cost = tuple[float, float]


def choose(near: Sequence[float], lost: Sequence[bool], costs: Sequence[Cost]) -> int:
    """Choose among methods that cannot be told apart: the cheapest that may well be as good as the best.

    Cheapest is the shortest step, then the least memory, then the highest validation mean; costs within 10 % count as
    equal. A method that lost runs is chosen only if every one of them did, and one other than the best only if it is
    near the highest in at least a fifth of the resamples.

    Args:
        near: for each method, best first, the share of resamples in which it is within the tolerance of the highest.
        lost: whether any of its runs diverged or failed.
        costs: the time and memory of a step, infinite where they are not known.

    Returns:
        The place of the chosen one.

    Example:
        >>> choose([0.9, 0.6, 0.1], [False, False, False], [(0.003, 9.0), (0.002, 9.0), (0.001, 9.0)])
        1
    """
    whole = [k for k, runs_lost in enumerate(lost) if not runs_lost] or list(range(len(lost)))
    candidates = [k for k in whole if k == whole[0] or near[k] >= PLAUSIBLE]
    for kind in (0, 1):
        lowest = min(costs[k][kind] for k in candidates)
        candidates = [k for k in candidates if costs[k][kind] <= lowest * (1 + SAME_COST)]
    return candidates[0]


def step_seconds(runs: Sequence[Trial]) -> float | None:
    """The time of a method's training step: the lowest of the trials' medians.

    Whatever else ran on the machine only ever made a step slower.

    Args:
        runs: of one method and batch size.

    Returns:
        Seconds; ``None`` where no run came so far.

    Example:
        >>> step_seconds([]) is None
        True
    """
    return min((t.step_seconds for t in runs if t.step_seconds is not None), default=None)


def step_bytes(runs: Sequence[Trial]) -> int | None:
    """The memory of a method's training step: the most that any run held.

    Args:
        runs: of one method and batch size.

    Returns:
        Bytes; ``None`` where it was not measured.

    Example:
        >>> step_bytes([]) is None
        True
    """
    return max((t.peak_bytes for t in runs if t.peak_bytes is not None), default=None)


def cost(seconds: float | None, size: float | None) -> Cost:
    """Give costs for :func:`choose`: what is not known counts as infinite.

    Args:
        seconds: of a step.
        size: its memory.

    Returns:
        Both.

    Example:
        >>> cost(0.5, None)
        (0.5, inf)
    """
    return tuple(float("inf") if value is None else float(value) for value in (seconds, size))  # type: ignore[return-value]
