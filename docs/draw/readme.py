"""The README's tables: the stored study and the benchmark."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from draw import ROOT
from normwise.records import Interval, Standing, load_study

STUDY = ROOT / "results" / "compare-digits.json"
LAYERS, SPEED, ACCURACY = (ROOT / "results" / f"bench-{name}.json" for name in ("layers", "speed", "accuracy"))


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


def parts() -> dict[str, str]:
    return {"table": table(), "speed": speed()}
