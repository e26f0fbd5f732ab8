"""The tables of docs/advice.md are drawn from the rules and the stored outcomes. Run as a script to draw them again."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from normwise.advice import RULES, VETOES, Situation, rank
from normwise.records import from_dict
from pages import redrawn

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "advice.md", ROOT / "results" / "advice.json"


def signed(points: float) -> str:
    digits = 1 if round(points, 1) == points else 2
    return f"{points:+.{digits}f}".replace("-", "−").replace("+0.0", "0")


def rules_table() -> str:
    lines = ["| rule | when | points | source |", "|---|---|---|---|"]
    for rule in RULES:
        effects = ", ".join(f"{method} {signed(points)}" for method, points in rule.effects.items())
        lines.append(f"| {rule.name} | {rule.when} | {effects} | {rule.source} |")
    lines += ["", "| refused or exempted | where | source |", "|---|---|---|"]
    lines += [f"| {veto.method} | {veto.text} | {veto.source} |" for veto in VETOES]
    return "\n".join(lines) + "\n"


def regret_table() -> str:
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = record["regret"]
    columns = [name for name in found["all"] if name != "tasks"]
    lines = [
        f"| mean regret, points | tasks | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
        *(f"| {t} | {r['tasks']} | {' | '.join(f'{r[c]:.2f}' for c in columns)} |" for t, r in found.items()),
        "",
        "*Chance* is about how much regret there would be anyway: the best of equally good methods is the luckiest.",
        "",
        "| task | kept out | best | advised | regret |",
        "|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        means = {spec: statistics.fmean(values) for spec, values in row["points"].items()}
        best = max(means, key=lambda spec: means[spec])
        kept = "yes" if row["held_out"] else ""
        lines.append(
            f"| {row['task']} | {kept} | {best} {means[best]:.1f} | {row['spec']} | {row['regret']:.2f} |".replace(
                "-0.0", "0.0"
            )
        )
    return "\n".join(lines) + "\n"


TABLES = {"rules": rules_table, "regret": regret_table}


@pytest.mark.parametrize("name", TABLES)
def test_the_pages_table_is_that_of_the_data(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == redrawn(text, **{name: TABLES[name]()}), "run: python tests/test_advice_page.py"


def test_stored_advice_is_that_of_the_rules_as_they_are() -> None:
    for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]:
        told = rank(row["task"], from_dict(Situation, row["situation"]))
        assert told.best.spec == row["spec"], "run: make advice-bench"


def test_stored_regrets_follow_from_the_stored_scores() -> None:
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    for row in record["rows"]:
        means = {spec: statistics.fmean(values) for spec, values in row["points"].items()}
        advised = row["spec"] if row["spec"] in means else None
        mean = means[advised or next(spec for spec in means if spec.partition("(")[0] == row["advised"])]
        assert row["regret"] == pytest.approx(max(means.values()) - mean, abs=2e-3)
    groups = {"written on": False, "kept out": True}
    for title, kept in ((title, groups[title]) for title in record["regret"] if title in groups):
        regrets = [row["regret"] for row in record["rows"] if row["held_out"] is kept]
        assert record["regret"][title]["advised"] == pytest.approx(statistics.fmean(regrets), abs=6e-3)


if __name__ == "__main__":
    tables = {name: table() for name, table in TABLES.items()}
    PAGE.write_text(redrawn(PAGE.read_text(encoding="utf-8"), **tables), encoding="utf-8")
