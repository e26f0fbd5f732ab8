"""docs/advice.md: the rules, and what following the advice costs, drawn from the judged outcomes."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from draw import ROOT
from normwise.advice import RULES, VETOES

RESULTS = ROOT / "results" / "advice.json"


@cache
def record() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def rules_table() -> str:
    lines = ["| rule | applies to | what papers say speaks for (+) or against (−) | source |", "|---|---|---|---|"]
    for rule in RULES:
        sides = ", ".join(f"{'+' if side > 0 else '−'} {method}" for method, side in rule.sides.items())
        lines.append(f"| {rule.name} | {rule.when} | {sides} | {rule.source} |")
    lines += ["", "| refused or exempted | where | source |", "|---|---|---|"]
    lines += [f"| {veto.method} | {veto.text} | {veto.source} |" for veto in VETOES]
    return "\n".join(lines) + "\n"


def regret_table() -> str:
    found = record()["regret"] | record()["families"]
    columns = list(dict.fromkeys(key for told in found.values() for key in told))
    lines = [f"| mean regret, points | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for title, told in found.items():
        shown = [_cell(key, told.get(key), _least(told)) for key in columns]
        lines.append(f"| {title} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _cell(key: str, value: float | None, least: float) -> str:
    if value is None or key in {"tasks", "abstained"}:
        return "" if value is None else str(value)
    return f"**{value:.2f}**" if key == "advised" and value <= least else f"{value:.2f}"


def calibration_table() -> str:
    told = record()["calibration"]
    lines = ["| told | so it was | tasks |", "|---|---|---|"]
    lines += [f"| {row['told']:.0%} | {row['seen']:.0%} | {row['tasks']} |" for row in told["reliability"]]
    lines += [
        "",
        f"Brier score {told['brier']:.3f}; always telling the mean would score {told['brier of the base rate']:.3f}.",
    ]
    return "\n".join(lines) + "\n"


def misses_table() -> str:
    """The tasks on which following the advice costs most."""
    rows = sorted(record()["rows"], key=lambda row: -row["regret"])[:12]
    lines = ["| family | task | best | advised | regret |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['family']} | {r['task']} | {r['best']} | {r['advised']}{', abstained' * r['abstains']} "
        f"| {r['regret']:.1f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def goal() -> str:
    """What was reached of the goal: below the best fixed choice in every family, and under a point in the mean."""
    whole, families = record()["regret"]["all tasks"], record()["families"]
    fixed = {key: value for key, value in whole.items() if key.startswith("always")}
    best = min(fixed, key=lambda key: fixed[key])
    misses = {name: told["advised"] - _least(told) for name, told in families.items()}
    missed = [f"{by:.2f} ({name})" for name, by in sorted(misses.items(), key=lambda m: -m[1]) if by > 0]
    mean = sum(told["advised"] for told in families.values()) / len(families)
    written, count = whole["written with"], len(families)
    kept = count - len(missed)
    lines = [
        f"Over all {whole['tasks']} tasks the advice has a regret of {whole['advised']:.2f} points;",
        f"{best}, the best fixed choice, has {fixed[best]:.2f}, what networks are written with {written:.2f}.",
        f"The mean of the families is {mean:.2f}. It abstained on {whole['abstained']} tasks.",
        f"In {kept} of {count} families it is no worse than the best fixed choice of the family itself.",
        f"It misses that by: {', '.join(missed) or 'nothing'}.",
    ]
    return "\n".join(lines) + "\n"


def _least(told: dict[str, Any]) -> float:
    return min(value for key, value in told.items() if key.startswith("always"))


def parts() -> dict[str, str]:
    return {
        "goal": goal(),
        "rules": rules_table(),
        "regret": regret_table(),
        "calibration": calibration_table(),
        "misses": misses_table(),
    }
