"""The README's table: the stored study."""

from __future__ import annotations

from draw import ROOT
from normwise.records import Interval, Standing, load_study

STUDY = ROOT / "results" / "compare-digits.json"


def percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def row(s: Standing, use: str) -> str:
    behind = "best" if s.behind is None else f"{100 * s.behind.value:.1f} points"
    name = f"**{s.method}**, advised" if s.method == use else s.method
    return f"| {s.batch_size} | {name} | {percent(s.test)} | {behind}{', tied' if s.tied and s.behind else ''} |"


def table() -> str:
    study = load_study(STUDY)
    use = {v.batch_size: v.use for v in study.verdicts}
    lines = [
        f"What `{study.command}` found ({len(study.settings.seeds)} seeds, {len(study.trials)} trials; stored in "
        "`results/compare-digits.json`):",
        "",
        "| batch size | method | test accuracy, % (95 % interval) | behind the best, validation |",
        "|---|---|---|---|",
        *(row(s, use[s.batch_size]) for s in study.standings),
        "",
        *(f"- {v.headline}" for v in study.verdicts),
        "",
    ]
    return "\n".join(lines)


def parts() -> dict[str, str]:
    return {"table": table()}
