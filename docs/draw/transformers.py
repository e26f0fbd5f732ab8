"""The table of docs/transformers.md: what is found in each architecture, how far conversions drift, and in which time."""

from __future__ import annotations

import json
from typing import Any

from draw import ROOT


def architectures() -> str:
    rows = json.loads((ROOT / "results" / "architectures.json").read_text(encoding="utf-8"))["rows"]
    lines = [
        "| architecture | norms found | what they are | placement | drift to rms | drift to dyt | findings | find, diagnose (s) |",
        "|---|---|---|---|---|---|---|---|",
        *(row(r) for r in rows),
    ]
    return "\n".join(lines) + "\n"


def row(r: dict[str, Any]) -> str:
    found = f"{r['found']} of {r['norms']}"
    seconds = f"{r['find_seconds']:.2f}, {r['diagnose_seconds']:.1f}"
    cells = [
        r["name"],
        found,
        "; ".join(r["kinds"]),
        r["placement"] or "",
        *(drift(r["drift"][to]) for to in ("rms", "dyt")),
    ]
    return "| " + " | ".join([*cells, ", ".join(r["findings"]) or "none", seconds]) + " |"


def drift(d: dict[str, Any]) -> str:
    if "refused" in d:
        return "refused"
    if not d["layers"]:
        return "nothing to do"
    return f"{d['raw']:.2g} → {d['refitted']:.2g}"


def parts() -> dict[str, str]:
    return {"architectures": architectures()}
