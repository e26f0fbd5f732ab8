"""Measure the advice: ``make advice-bench`` trains a grid of tasks under every method and writes results/advice.json.

*Regret* is the test score of the best method of a task minus that of the advised one, both means over the seeds, in
points: hundredths of an accuracy, or of the way from guessing to the best for other scores. It is compared with the
regret of always taking one method. The outcomes are kept in ``--work`` and go on where they were; the advice is asked
again each time, so a change of the rules needs no training.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from advice_tasks import CASES, HELD_OUT, Case

from normwise import compare
from normwise.records import write_atomic

RESULTS = Path(__file__).parents[1] / "results" / "advice.json"
METHODS = ("none", "batch", "layer", "weight", "instance", "group", "switchable")
FIXED = ("batch", "group", "switchable", "layer")
LRS = (0.04, 0.2)
SEEDS = 3


def outcome(name: str, case: Case, work: Path) -> dict[str, Any]:
    """Train a task under every method."""
    task = case.make()
    epochs = case.steps * case.batch_size * task.accumulate / task.splits.train.size
    study = compare(
        data=task, methods=METHODS, batch_sizes=[case.batch_size], seeds=SEEDS, lrs=LRS, epochs=epochs, out=work / name
    )
    return {
        "score": task.score_name,
        "floor": task.floor,
        "test": {s.method: round(s.test.value, 4) for s in study.standings},
        "lost": {s.method: s.diverged for s in study.standings if s.diverged},
    }


def advised(case: Case) -> str:
    """Ask for advice as a user would, with the model as it is usually written."""
    from normwise import advise

    task = case.make()
    torch.manual_seed(0)
    model = task.make_model(task.norm("batch"))
    inputs = task.splits.train.take(slice(case.batch_size)).inputs
    return advise(model, inputs, batch_size=case.batch_size, measure=False, **case.told).best.method


def regrets(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean regret in points: of the advice, and of each fixed choice."""
    if not rows:
        return {}

    def regret(row: dict[str, Any], method: str) -> float:
        best = max(row["test"].values())
        unit = 1.0 if row["score"] == "accuracy" else best - row["floor"]
        return 100 * (best - row["test"][method]) / unit

    def mean(choose: Any) -> float:
        return round(statistics.fmean(regret(row, choose(row)) for row in rows), 2)

    return {"advised": mean(lambda r: r["advised"])} | {f"always {m}": mean(lambda r, m=m: m) for m in FIXED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(CASES), help="which, separated by commas")
    parser.add_argument("--work", type=Path, default=Path("normwise-advice"), help="folder for the studies themselves")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--train-only", action="store_true", help="collect outcomes, ask for no advice")
    given = parser.parse_args()
    rows = []
    for name in given.tasks.split(","):
        case = CASES[name]
        rows.append({
            "task": name,
            "batch_size": case.batch_size,
            "held_out": name in HELD_OUT,
            **outcome(name, case, given.work),
        })
        if given.train_only:
            continue
        rows[-1]["advised"] = advised(case)
        print(
            f"{name}: best {max(rows[-1]['test'], key=rows[-1]['test'].get)}, advised {rows[-1]['advised']}", flush=True
        )
    if given.train_only:
        return
    summary = {
        "all": regrets(rows),
        "tasks the rules were written on": regrets([r for r in rows if not r["held_out"]]),
        "tasks kept out": regrets([r for r in rows if r["held_out"]]),
    }
    record = {
        "what": "test scores of every method on every task, the advised method, and the mean regret in points",
        "command": shlex.join(["python", "benchmarks/advice.py", *sys.argv[1:]]),
        "settings": {"methods": METHODS, "lrs": LRS, "seeds": SEEDS, "steps": {n: CASES[n].steps for n in CASES}},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "regret": summary,
        "rows": rows,
    }
    write_atomic(given.out, json.dumps(record, indent=1) + "\n")
    for title, found in summary.items():
        print(f"{title}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
