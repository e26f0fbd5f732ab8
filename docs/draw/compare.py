"""The verdicts in docs/compare.md: those of the stored studies."""

from __future__ import annotations

from draw import ROOT
from normwise.records import Interval, Standing, Study, Verdict, load_study

TASKS = ("digits", "fashion-mnist", "japanese-vowels", "austen", "austen-post", "textures")


def score(study: Study, interval: Interval) -> str:
    values = (interval.value, interval.low, interval.high)
    if study.settings.score_name == "accuracy":
        value, low, high = (f"{100 * v:.1f}" for v in values)
        return f"{value} % ({low} to {high})"
    value, low, high = (f"{v:.3f}".replace("-", "−") for v in values)
    return f"{value} ({low} to {high})"


def row(study: Study, verdict: Verdict) -> str:
    there = [s for s in study.standings if s.batch_size == verdict.batch_size]
    by_name = {s.method: s for s in there}
    others = ", ".join(m for m in verdict.tied if m != verdict.use) or "–"
    worst: Standing = min(there, key=lambda s: s.valid.value)
    cells = (
        f"`{study.command.removeprefix('normwise compare ')}`",
        str(verdict.batch_size),
        f"**{verdict.use}**",
        others,
        score(study, by_name[verdict.use].test),
        score(study, by_name["none"].test),
        f"{worst.method}, {score(study, worst.test)}",
    )
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    studies = [load_study(ROOT / "results" / f"compare-{task}.json") for task in TASKS]
    lines = [
        "| `normwise compare …` | batch size | use | tied with it | its test score (95 %) | without any | the last |",
        "|---|---|---|---|---|---|---|",
        *(row(study, verdict) for study in studies for verdict in study.verdicts),
        "",
    ]
    return "\n".join(lines)


def parts() -> dict[str, str]:
    return {"verdicts": table()}
