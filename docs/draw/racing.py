"""The numbers of docs/racing.md: what races save."""

from __future__ import annotations

import json
from typing import Any

from draw import ROOT


def stored(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))["rows"]
    return rows


def measured() -> str:
    rows = stored("racing.json")
    third = [r for r in rows if r["steps_ratio"] <= 1 / 3 and r["same_advice"]]
    fresh = [r for r in rows if not r["at_hand"]]
    lines = [
        "| study | trials of the grid | grid advises | tied in it | race advises | tied in it | cost of the race |",
        "|---|---|---|---|---|---|---|",
        *(measured_row(r) for r in rows),
        "",
        f"The advice is the same in {count('same_advice', rows)} of {len(rows)}, at a third of the cost or less in "
        f"{len(third)} of these. The same methods are tied in {count('same_tied', rows)}. Of the {len(fresh)} studies",
        f"that were not at hand when the rules were made, {count('same_advice', fresh)} have the same advice, "
        f"{sum(r in third for r in fresh)} of them at a third or less.",
    ]
    return "\n".join(lines) + "\n"


def count(what: str, rows: list[dict[str, Any]]) -> int:
    return sum(r[what] for r in rows)


def measured_row(r: dict[str, Any]) -> str:
    grid, raced = r["grid"], r["race"]
    name = r["study"] + (" \\*" if r["at_hand"] else "")
    use = raced["use"] if r["same_advice"] else f"**{raced['use']}**"
    cells = (grid["trials"], grid["use"], ", ".join(grid["tied"]), use, ", ".join(raced["tied"]))
    return "| " + " | ".join(map(str, (name, *cells, f"{r['steps_ratio']:.0%}"))) + " |"


def simulated() -> str:
    rows = stored("racing-simulated.json")
    lines = [
        "| levels apart, scatter (points) | cost of the race | same advice as the grid | a second grid "
        "| lost by the race | by the second grid | true best stopped |",
        "|---|---|---|---|---|---|---|",
        *(simulated_row(r) for r in rows),
        "",
        f"{rows[0]['studies']} studies of each kind, of seven methods and ten seeds (`results/racing-simulated.json`).",
    ]
    return "\n".join(lines) + "\n"


def simulated_row(r: dict[str, Any]) -> str:
    lost = [f"{100 * r[key]:.2f}".replace("-", "−") for key in ("level_lost", "another_grid_level_lost")]
    shares = [f"{r[key]:.0%}" for key in ("cost", "same_advice", "another_grid_same_advice")]
    what = f"{100 * r['spread']:g}, {100 * r['scatter']:g} ({r['kind']})"
    return "| " + " | ".join([what, *shares, *lost, f"{r['stopped_the_best']:.1%}"]) + " |"


def parts() -> dict[str, str]:
    return {"measured": measured(), "simulated": simulated()}
