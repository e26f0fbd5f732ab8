"""The tables of docs/diagnose.md are those of the rules and of the stored measurement. A script to draw them again."""

from __future__ import annotations

import json
from pathlib import Path

from normwise.probe.verdict import RULES, STATIC
from pages import redrawn

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "diagnose.md"
OVERHEAD = ROOT / "results" / "watch-overhead.json"


def findings() -> str:
    rows = ["| finding | severity | what it does to training |", "|---|---|---|"]
    rows += [f"| {rule.code} | {rule.severity} | {rule.effect} |" for rule in RULES]
    judged = {rule.code for rule in RULES}
    rows += [
        f"| {code} | as in [inspect](surgery.md#inspect) | {what} |"
        for code, (what, _) in STATIC.items()
        if code not in judged
    ]
    return "\n".join(rows) + "\n"


def overhead() -> str:
    rows = ["| | norms | a step, ms | watched |", "|---|---|---|---|"]
    for row in json.loads(OVERHEAD.read_text())["rows"]:
        case = f"{row['case']}, batch {row['batch_size']}"
        rows.append(f"| {case} | {row['norms']} | {row['plain_ms_per_step']:.1f} | {100 * row['overhead']:+.1f} % |")
    return "\n".join(rows) + "\n"


def drawn(text: str) -> str:
    return redrawn(text, findings=findings(), overhead=overhead())


def test_the_pages_tables_are_those_of_the_rules_and_the_measurement() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == drawn(text), "run: python tests/test_diagnose_page.py"


def test_watching_costs_less_than_15_percent_of_a_step() -> None:
    assert all(row["overhead"] < 0.15 for row in json.loads(OVERHEAD.read_text())["rows"])


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
