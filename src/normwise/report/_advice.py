"""Advice for people, in the terminal and on the page."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from normwise.advice import Advice, Ranked, Reason
from normwise.records import to_dict
from normwise.report import _formats as formats
from normwise.report._palette import NAMES
from normwise.report._terminal import indented, table, told

# What a check by training may say.
HELD = {True: "The advice held", False: "The advice did not hold", None: "Not decided"}
# Reasons that are written out for the advised method.
_REASONS = 4


def render(advice: Advice) -> RenderableType:
    """Draw advice for a terminal; see :func:`normwise.report.advice_table`."""
    best = advice.best
    parts: list[RenderableType] = [
        Text.assemble(
            (f"{formats.printable(advice.model)}: ", "bold"), (f"use {_name(best)}", "bold green"), _chance(advice)
        ),
        Text(_facts(advice), "dim"),
    ]
    if advice.evidence:
        parts.append(_bullet(advice.evidence))
    parts += [_bullet(f"{reason.text} [{reason.source}]", reason.side) for reason in best.reasons[:_REASONS]]
    parts += [_bullet(f"At {formats.printable(e.place)} use {e.use}: {e.why}.") for e in best.exemptions]
    parts += [told("Note", note) for note in advice.notes]
    if best.code:
        parts.append(indented(Syntax(best.code, "python", background_color="default"), above=1))
    parts.append(_table(advice))
    if advice.check is not None:
        held, seconds = HELD[advice.check.held], formats.duration(advice.check.seconds)
        said = formats.printable(advice.check.headline)
        parts.append(Text.assemble((f"{held} ", "bold"), f"in {seconds} of training on your data. {said}"))
    return Group(*parts)


def html(advice: Advice) -> str:
    """Draw the page; see :func:`normwise.report.advice_html`."""
    from normwise.report import _charts
    from normwise.report import _frame as frame

    return frame.render(
        "advice",
        {"advice": to_dict(advice)},
        advice.versions,
        [r.method for r in advice.ranking],
        advice=advice,
        names=NAMES,
        held=HELD,
        others=_others(advice),
        chance=_chance(advice),
        facts=_facts(advice),
        timed=any(r.cost is not None for r in advice.ranking),
        charts=_charts.charts_of(advice),
    )


def _others(advice: Advice) -> list[Reason]:
    """The reasons of other methods than the advised one, each once."""
    told = {reason.rule for reason in advice.best.reasons}
    fired = {reason.rule: reason for ranked in advice.ranking for reason in ranked.reasons if reason.points}
    return [reason for rule, reason in fired.items() if rule not in told]


def _facts(advice: Advice) -> str:
    s = advice.situation
    told = [
        f"{' and '.join(s.kinds)} model",
        f"batch size {s.batch_size}" + (f" on {s.devices} devices" if s.devices > 1 else ""),
    ]
    if s.least_batch is not None:
        told.append(f"at least {s.least_batch:,} values behind a batch statistic")
    if s.task:
        told.append(s.task)
    if s.current:
        told.append(f"now {', '.join(s.current)}")
    return ", ".join(told)


def _table(advice: Advice) -> Table:
    timed = any(r.cost is not None for r in advice.ranking)
    numbers = ["points", *(["ms/step", "peak MiB"] if timed else [])]
    drawn = table(["method"], numbers, ["what speaks for or against it most"])
    for ranked in advice.ranking:
        row = [ranked.method, "–" if ranked.refused or ranked.points is None else f"{ranked.points:.1f}"]
        if timed:
            cost = ranked.cost
            row.append(formats.milliseconds(cost.step_seconds if cost else None))
            row.append(formats.mebibytes(cost.peak_bytes if cost else None))
        drawn.add_row(*row, _why(ranked), style="bold" if ranked is advice.best else "")
    return drawn


def _why(ranked: Ranked) -> str:
    if ranked.refused:
        return f"refused: {ranked.refused}"
    return ", ".join(f"{r.rule} {r.points:+.1f}" for r in ranked.reasons[:3] if r.points)


def _bullet(words: str, sign: str = "·") -> RenderableType:
    return indented(Text(f"{sign} {words}"))


def _chance(advice: Advice) -> str:
    return "" if advice.probability is None else f", {advice.probability:.0%} to be within a point of the best"


def _name(ranked: Ranked) -> str:
    return NAMES.get(ranked.method, ranked.method)
