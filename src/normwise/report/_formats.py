"""Numbers → text, the same in the terminal and on the page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from normwise.records import Interval, Standing, Study, Verdict

MISSING = "–"
MIB = 2**20


@dataclass(frozen=True)
class Scale:
    """How a study's scores are written: ``factor`` times the score, with so many ``decimals``.

    Accuracies are written in percent; other scores as they are.
    """

    name: str
    factor: float
    unit: str
    points: str
    decimals: int

    def number(self, score: float) -> str:
        """Write one score without its unit, with a true minus sign."""
        text = f"{score * self.factor:.{self.decimals}f}"
        return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")

    def bounds(self, interval: Interval, between: str = ", ") -> str:
        """Write an interval's ends."""
        return f"{self.number(interval.low)}{between}{self.number(interval.high)}"


def scale_of(study: Study) -> Scale:
    """Choose how scores are written: percent for accuracies, about two significant digits of the intervals' width."""
    percent = "accuracy" in study.settings.score_name.lower()
    factor = 100.0 if percent else 1.0
    widths = [(s.test.high - s.test.low) * factor for s in study.standings]
    widths = [w for w in widths if w > 0]
    decimals = 1 if percent else 3
    if widths:
        decimals = min(max(1 - math.floor(math.log10(statistics.median(widths))), 1), 2 if percent else 4)
    return Scale(study.settings.score_name, factor, " %" if percent else "", "points" if percent else "", decimals)


def interval_level(study: Study) -> str:
    """Write the intervals' nominal coverage, as "95 %"."""
    level = study.standings[0].test.level if study.standings else 0.95
    return f"{level * 100:g} %"


def milliseconds(seconds: float | None) -> str:
    """Write a step's time in milliseconds with three significant digits."""
    return MISSING if seconds is None else significant(seconds * 1e3)


def step_time(standing: Standing, between: str = " ") -> str:
    """Write a step's time in milliseconds and, where it was timed in turn, half its interval."""
    text, interval = milliseconds(standing.step_seconds), standing.step_interval
    return text if interval is None else f"{text}{between}±{significant((interval.high - interval.low) / 2 * 1e3)}"


def mebibytes(count: int | None) -> str:
    """Write bytes as MiB with three significant digits."""
    return MISSING if count is None else significant(count / MIB)


def significant(value: float) -> str:
    """Write a number with three significant digits, never in exponent form, large ones whole."""
    if value == 0:
        return "0"
    decimals = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{min(decimals, 6)}f}"


def duration(seconds: float) -> str:
    """Write a duration for people, as "2 min 41 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(created: str) -> str:
    """Write a stored moment to the minute; what is none stays as it is."""
    try:
        return f"{datetime.fromisoformat(created):%Y-%m-%d %H:%M %Z}".rstrip()
    except ValueError:
        return created


def share(probability: float) -> str:
    """Write a probability as whole percent, never rounding up to certainty or down to none."""
    if 0.995 <= probability < 1:
        return "> 99 %"
    if 0 < probability < 0.005:
        return "< 1 %"
    return f"{probability * 100:.0f} %"


def sure_of(verdict: Verdict, study: Study) -> list[str]:
    """Say how sure it is that choosing the advised method costs little, and how sure that it is the best."""
    scale = scale_of(study)
    margin = f"{study.settings.tolerance * scale.factor:g} {scale.points}".rstrip()
    said = [f"{share(verdict.confidence)} sure that it costs at most {margin} to choose it"]
    if verdict.probability_best is not None:
        said.append(f"{share(verdict.probability_best)} sure that it is the best")
    return said


def lost(standing: Standing) -> str:
    """Write how many of a method's final runs diverged, as "1 of 3"."""
    return f"{standing.diverged} of {standing.runs}" if standing.diverged else "0"


def printable(text: str) -> str:
    """Replace control characters, which could steer a terminal, by a visible mark."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def unique(items: Iterable[str]) -> list[str]:
    """Keep the first of each, in order."""
    return list(dict.fromkeys(items))
