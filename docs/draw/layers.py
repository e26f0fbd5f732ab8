"""docs/layers.md: how fast the layers are beside torch's, and what they are on a device."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from draw import ROOT

LAYERS, SPEED, ACCURACY = (ROOT / "results" / f"bench-{name}.json" for name in ("layers", "speed", "accuracy"))
DEVICE = ROOT / "results" / "device-layers.json"


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def mean_ratio(rows: list[dict[str, Any]], name: str) -> float:
    return math.exp(sum(math.log(row["times_ours"][name]) for row in rows) / len(rows))


def speed() -> str:
    layers, rows, accuracy = load(LAYERS), load(SPEED)["rows"], load(ACCURACY)["rows"]
    cells: dict[str, list[str]] = {}
    for r in layers["rows"]:
        if r["layer"] == r["torch"]:
            cells.setdefault(r["layer"], []).append(f"{r['times_ours']:.1f}")
    switchable = [row for row in rows if row["method"] == "switchable"]
    worse = sum(row["y"] > 1.001 * row["torch_y"] or row["dx"] > 1.001 * row["torch_dx"] for row in accuracy)
    formula, torchs = (mean_ratio(switchable, name) for name in ("formula", "torch"))
    processor = layers["environment"]["processor"]
    lines = [
        f"How many times as long torch's layers take (`make bench`: float32, one thread, {processor}).",
        "The small tensor has about a thousand elements, and its time is Python's; *tuning* is evaluation with",
        "gradients:",
        "",
        "| layer | small: training | evaluation | tuning | larger: training | evaluation | tuning |",
        "|---|---|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(values)} |" for name, values in cells.items()),
        "",
        f"Switchable norm trains {formula:.0f} times faster than its formula in eager torch, and {torchs:.1f} times",
        f"faster than torch's `BatchNorm2d` (geometric means over {len(switchable)} rows). Of {len(accuracy)} rows at",
        f"means from 0 to 1e6, {worse or 'none'} err{'s' if worse < 2 else ''} more than torch.",
        "",
    ]
    return "\n".join(lines)


def device() -> str:
    stored = load(DEVICE)
    lines = [
        "| layer | operators, forward + backward | torch's layer | errors at mean 0 | at 1e3 | at 1e6 |",
        "|---|---|---|---|---|---|",
    ]
    for row in stored["rows"]:
        ours, theirs = (_sum(row[name]) for name in ("operators", "torch_operators"))
        errors = (
            [" / ".join(f"{e:.0e}" for e in row["errors"][mean]) for mean in ("0", "1000", "1e+06")]
            if row["errors"]
            else ["-"] * 3
        )
        lines.append(f"| {row['layer']} | {ours} | {theirs} | {' | '.join(errors)} |")
    shape = " × ".join(map(str, stored["settings"]["shape"]))
    return "\n".join([*lines, "", f"(`{stored['settings']['command']}`: float32, {shape}.)", ""])


def _sum(operators: list[int] | None) -> str:
    return "-" if operators is None else " + ".join(map(str, operators))


def parts() -> dict[str, str]:
    return {"speed": speed(), "device": device()}
