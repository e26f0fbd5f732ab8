"""The tables of docs/diagnose.md: the findings, and what watching costs."""

from __future__ import annotations

import json

from draw import ROOT
from normwise.probe.verdict import RULES, STATIC

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


def parts() -> dict[str, str]:
    return {"findings": findings(), "overhead": overhead()}
