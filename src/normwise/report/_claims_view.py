"""Numbers, bounds and verdicts of claims → words, the same on the page, in the terminal and in the docs."""

from __future__ import annotations

import math

from normwise.outcomes import FAILS, HOLDS, IN_PART, Answer, Figure, Outcome
from normwise.records import Interval
from normwise.report._formats import MISSING

MARKS = {HOLDS: "✓", IN_PART: "◐", FAILS: "✗"}
KINDS = {HOLDS: "holds", IN_PART: "part", FAILS: "fails"}
UNDECIDED_MARK = "?"


def mark(verdict: str) -> str:
    """Give the sign of a verdict."""
    return MARKS.get(verdict, UNDECIDED_MARK)


def kind(verdict: str) -> str:
    """Give a verdict's name for a style sheet."""
    return KINDS.get(verdict, "undecided")


def estimate(answer: Answer) -> tuple[str, str]:
    """Write an answer's number with its unit, and its interval where that has a width."""
    interval = answer.estimate
    if interval is None:
        return MISSING, ""
    decimals = _decimals(interval, answer.factor)
    number, low, high = (_number(v * answer.factor, decimals) for v in (interval.value, interval.low, interval.high))
    return _with_unit(number, answer.unit), f"{low} to {high}" if interval.low < interval.high else ""


def expected(answer: Answer) -> str:
    """Write a hypothesis' bounds, as "≥ 2 points"."""
    low, high = (
        None if b is None else f"{b * answer.factor:.4g}".replace("-", "−") for b in (answer.at_least, answer.at_most)
    )
    if low is None:
        return _with_unit(f"≤ {high}", answer.unit)
    return _with_unit(f"≥ {low}" if high is None else f"{low} to {high}", answer.unit)


def summary(outcome: Outcome) -> str:
    """Say in one sentence which parts of a claim hold, which do not and which are undecided."""
    parts = [a for a in outcome.answers if a.decides]
    of_kind: dict[str, list[str]] = {}
    for answer in parts:
        of_kind.setdefault(kind(answer.verdict), []).append(answer.brief or answer.statement)
    if len(of_kind) == 1:
        words = {"holds": "Holds in all", "fails": "Holds in none of", "undecided": "Undecided in all"}
        return f"{words[next(iter(of_kind))]} {len(parts)} part{'s' * (len(parts) > 1)}"
    held = of_kind.get("holds", [])
    said = [f"Holds in {len(held)} of {len(parts)} parts" + (f": {', '.join(held)}" if held else "")]
    said += [
        f"{word}: {', '.join(of_kind[k])}" for k, word in (("fails", "not"), ("undecided", "open")) if k in of_kind
    ]
    return "; ".join(said)


def described(figure: Figure) -> str:
    """Say all of a figure's numbers, for those who do not see it."""
    parts = []
    for series in figure.series:
        points = [
            f"{figure.ticks[int(x)] if figure.ticks else f'{x:g}'}: {short(y.value * figure.factor)}"
            for x, y in zip(series.x, series.y, strict=True)
        ]
        parts.append(f"{series.name}: {', '.join(points)}")
    return (
        f"{figure.title}, {figure.y_name}"
        + (f" over {figure.x_name}" if figure.x_name else "")
        + "; "
        + "; ".join(parts)
    )


def is_bars(figure: Figure) -> bool:
    """Whether a figure is one number per name."""
    return len(figure.series) == len(figure.ticks) and all(s.x == [float(k)] for k, s in enumerate(figure.series))


def short(value: float) -> str:
    """Write a number with three significant digits, very small and large ones with an exponent."""
    return f"{value:.3g}".replace("-", "−")


def _with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}".rstrip()


def _decimals(interval: Interval, factor: float) -> int:
    """As many as the interval's width has meaning for: two digits of it, and three of the value where it has none."""
    width = (interval.high - interval.low) * factor
    size = abs(interval.value * factor)
    least = max(width, size * 0.01) if width else size * 0.1
    return 0 if least <= 0 else 1 - math.floor(math.log10(least))


def _number(value: float, decimals: int) -> str:
    if value and decimals > 5:
        return f"{value:.1e}".replace("-", "−")
    text = f"{value:,.{max(decimals, 0)}f}"
    return (text.lstrip("-") if float(text.replace(",", "")) == 0 else text).replace("-", "−")
