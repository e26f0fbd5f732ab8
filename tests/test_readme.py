"""The README's table is drawn from the stored study. Run as a script to draw it again after a new one."""

from __future__ import annotations

from pathlib import Path

from normwise.records import Interval, Standing, load_study
from pages import redrawn

ROOT = Path(__file__).parents[1]
PAGE, STUDY = ROOT / "README.md", ROOT / "results" / "compare-digits.json"


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


def drawn(text: str) -> str:
    return redrawn(text, table=table())


def test_the_readmes_table_is_that_of_the_stored_study() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == drawn(text), "run: python tests/test_readme.py"


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
