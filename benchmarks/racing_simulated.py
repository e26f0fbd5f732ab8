"""Races against grids over simulated studies, whose true levels are known. Writes results/racing-simulated.json.

Run by ``make bench-racing``. For each study the levels of seven methods are drawn, and scores that scatter about them.
A grid on other seeds shows how much of a difference in advice is the seeds' and not the race's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

from races import Outcome, compete

from normwise.files import write_atomic

RESULTS = Path(__file__).parents[1] / "results" / "racing-simulated.json"
# How far apart the levels are, and how much scores scatter, both in standard deviations; a tolerance is 0.005.
KINDS = {
    "clear": (0.03, 0.01),
    "close": (0.01, 0.01),
    "close, little scatter": (0.01, 0.003),
    "much scatter": (0.02, 0.02),
    "all equal": (0.0, 0.01),
}


def summary(name: str, outcomes: list[Outcome]) -> dict[str, float | str | int]:
    spread, scatter = KINDS[name]
    return {
        "kind": name,
        "spread": spread,
        "scatter": scatter,
        "studies": len(outcomes),
        "cost": round(fmean(o.cost for o in outcomes), 3),
        "same_advice": round(fmean(o.same for o in outcomes), 3),
        "same_tied": round(fmean(o.same_tied for o in outcomes), 3),
        "another_grid_same_advice": round(fmean(o.another_grid_same for o in outcomes), 3),
        "level_lost": round(fmean(o.lost for o in outcomes), 5),
        "another_grid_level_lost": round(fmean(o.another_grid_lost for o in outcomes), 5),
        "stopped_the_best": round(fmean(o.stopped_the_best for o in outcomes), 3),
        # Of the methods whose true level is within the tolerance of the best.
        "stopped_as_good": round(sum(o.stopped_as_good for o in outcomes) / sum(o.as_good for o in outcomes), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200, help="of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = []
    for name, (spread, scatter) in KINDS.items():
        rows.append(summary(name, [compete(spread, scatter, seed) for seed in range(given.studies)]))
        print(rows[-1], flush=True)
    record = {"command": f"make bench-racing; {given.studies} studies of each kind", "seeds": 10, "rows": rows}
    write_atomic(given.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
