"""The verdicts in docs/compare.md are those of the stored studies. Run as a script to draw them again."""

from __future__ import annotations

from pathlib import Path

from normwise.records import Interval, Standing, Study, Verdict, load_study
from pages import redrawn

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compare.md"
TASKS = ("digits", "fashion-mnist", "japanese-vowels", "austen", "textures")


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


def drawn(text: str) -> str:
    return redrawn(text, verdicts=table())


def test_the_verdicts_are_those_of_the_stored_studies() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == drawn(text), "run: python tests/test_tasks_page.py"


def test_every_study_is_whole() -> None:
    for task in TASKS:
        study = load_study(ROOT / "results" / f"compare-{task}.json")
        assert study.finished
        assert study.settings.task.partition(" ")[0] == task


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
