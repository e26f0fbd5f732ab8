"""The table of docs/transformers.md: what is found in each architecture, drifts of conversions, findings and times."""

from __future__ import annotations

import json
from typing import Any

from draw import ROOT


def architectures() -> str:
    rows = json.loads((ROOT / "results" / "architectures.json").read_text(encoding="utf-8"))["rows"]
    head = (
        "architecture",
        "norms found",
        "what they are",
        "placement",
        "to rms",
        "exactly to rms",
        "to dyt",
        "findings",
        "seconds",
    )
    lines = [
        "| " + " | ".join(head) + " |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row(r) for r in rows),
    ]
    return "\n".join(lines) + "\n"


def row(r: dict[str, Any]) -> str:
    found = f"{r['found']} of {r['norms']}"
    seconds = f"{r['find_seconds']:.2f}, {r['diagnose_seconds']:.1f}"
    to_rms, to_dyt = (drift(r["drift"][to]) for to in ("rms", "dyt"))
    cells = [r["name"], found, "; ".join(r["kinds"]), r["placement"] or "", to_rms, exactly(r), to_dyt]
    return "| " + " | ".join([*cells, ", ".join(r["findings"]) or "none", seconds]) + " |"


def drift(d: dict[str, Any]) -> str:
    if "refused" in d:
        return "refused"
    if not d["layers"]:
        return "nothing to do"
    return f"{d['raw']:.2g} → {d['refitted']:.2g}"


def exactly(r: dict[str, Any]) -> str:
    if "refused" in r["exactly"]:
        return "none" if any("layer" in kind for kind in r["kinds"]) else ""
    return f"{r['exactly']['layers']} ({r['exactly']['error']:.0e})"


def parts() -> dict[str, str]:
    return {"architectures": architectures()}
