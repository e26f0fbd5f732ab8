"""Verdicts over simulated studies, whose true levels are known. Writes results/verdict-simulated.json.

Run by ``make bench-verdict``. How often intervals hold what they were drawn from: scores, differences to the best, step
times; how often equal step times are called different; and what the search for learning rates costs two equal methods
that are tuned apart, with one seed and with more where rates are near each other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from statistics import fmean, quantiles

from simulated import cover, tune
from tiny_study import make_settings

from normwise.files import write_atomic

RESULTS = Path(__file__).parents[1] / "results" / "verdict-simulated.json"
# How far apart the levels are, and how much scores scatter, both in standard deviations; a tolerance is 0.005.
KINDS = {"clear": (0.03, 0.01), "close": (0.01, 0.01), "much scatter": (0.02, 0.03), "all equal": (0.0, 0.01)}
SEEDS = (3, 4, 5)
SCATTERS = (0.003, 0.01, 0.03)


def coverage(name: str, seeds: int, studies: int) -> dict[str, float | str | int]:
    found = [dataclasses.asdict(cover(seeds, *KINDS[name], seed)) for seed in range(studies)]
    shares = {field: round(fmean(f[field] for f in found), 3) for field in found[0]}
    return {"kind": name, "seeds": seeds, "studies": studies} | shares


def search(scatter: float, ties: int, studies: int) -> dict[str, float | int]:
    settings = make_settings(tune_seeds=list(range(1000, 1001 + ties)), tune_ties=ties, lrs={"2": [0.05, 0.1, 0.2]})
    found = [tune(settings, scatter, seed) for seed in range(studies)]
    apart = [f.apart for f in found]
    return {
        "scatter": scatter,
        "tune_seeds": 1 + ties,
        "studies": studies,
        "apart": round(fmean(apart), 5),
        "apart_in_one_of_twenty": round(quantiles(apart, n=20)[-1], 5),
        "regret": round(fmean(f.regret for f in found), 5),
        "trials": round(fmean(f.trials for f in found), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200, help="of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = [coverage(name, seeds, given.studies) for name in KINDS for seeds in SEEDS]
    searches = [search(scatter, ties, given.studies) for scatter in SCATTERS for ties in (0, 2)]
    for row in [*rows, *searches]:
        print(row, flush=True)
    command = f"make bench-verdict; {given.studies} studies of each kind"
    write_atomic(given.out, json.dumps({"command": command, "coverage": rows, "search": searches}, indent=1) + "\n")


if __name__ == "__main__":
    main()
