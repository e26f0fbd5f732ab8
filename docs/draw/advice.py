"""The tables of docs/advice.md: the rules, and what following them costs."""

from __future__ import annotations

import json
import statistics
from typing import Any

from draw import ROOT
from normwise.advice import RULES, VETOES

RESULTS = ROOT / "results" / "advice.json"


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


def parts() -> dict[str, str]:
    return {"rules": rules_table(), "regret": regret_table()}
