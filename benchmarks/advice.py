"""Measure the advice: what following it costs. ``make advice-bench`` writes results/advice.json.

Every setting of ``advice_tasks.py`` and every one that ``advice_draw.py`` drew, to write rules on or to prove them, is
compared under all its methods by :func:`normwise.compare`, which is resumable: the studies are kept in ``--work``.
*Regret* is the best method's score minus that of the advised one, in points: test scores, mean over seeds; accuracies
count in percent, minus-losses as a share of the loss that guessing has, times 100. The best is chosen by the same
scores, so chance adds to every regret; ``chance`` says about how much: what the best of equally good methods gains by
luck, at this spread over seeds. The advice is asked anew each time, so that other rules need no training.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shlex
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from advice_draw import drawn
from advice_tasks import SETTINGS as CHOSEN

from normwise import advise, compare
from normwise.files import write_atomic
from normwise.records import Study, to_dict
from normwise.study import Task
from normwise.study.plan import default_epochs

RESULTS = Path(__file__).parents[1] / "results" / "advice.json"
FIXED = ("batch", "layer", "group", "switchable", "none")
SETTINGS = CHOSEN | drawn()
Row = dict[str, Any]


def outcome(name: str, task: Task, work: Path) -> Row:
    """Train a task under every method."""
    setting = SETTINGS[name]
    epochs = default_epochs(setting.steps, setting.batch_size, task.splits.train.size)
    study = compare(
        data=task, methods=setting.methods, batch_sizes=[setting.batch_size], seeds=setting.seeds, lrs=setting.lrs,
        tune_seeds=1, epochs=epochs, out=work / name, progress=False,
    ).record  # fmt: skip
    return {
        "task": name,
        "kind": setting.kind,
        "held_out": setting.held_out,
        "batch_size": setting.batch_size,
        "score": task.score_name,
        "epochs": epochs,
        "lrs": list(setting.lrs),
        "points": scores(task, study),
        "lost": lost(study),
    }


def scores(task: Task, study: Study) -> dict[str, list[float]]:
    """Method → test score of each seed, in points."""
    unit = 100.0 if task.score_name == "accuracy" else 100.0 / abs(task.floor)
    found: dict[str, list[float]] = {}
    for trial in study.trials:
        if trial.cell.stage == "final":
            found.setdefault(trial.cell.method, []).append(round(unit * trial.test_score, 3))
    return found


def lost(study: Study) -> dict[str, int]:
    """Method → seeds that diverged or failed, which score what guessing does."""
    failed = [t.cell.method for t in study.trials if t.cell.stage == "final" and t.state != "complete"]
    return {method: failed.count(method) for method in dict.fromkeys(failed)}


def advised(name: str, task: Task) -> Row:
    """Ask as a user would, with the model as it is usually written: with batch norm."""
    setting = SETTINGS[name]
    torch.manual_seed(0)
    model = task.build("batch")
    inputs = task.splits.train.take(slice(max(setting.batch_size, 2))).inputs
    told = advise(
        model, inputs, batch_size=setting.batch_size, task=setting.about, variable_length=setting.variable_length,
        measure=False,
    )  # fmt: skip
    reasons = [reason.rule for reason in told.best.reasons]
    found = {"advised": told.best.method, "spec": told.best.spec, "rules": reasons}
    return found | {"situation": to_dict(told.situation)}


def base(spec: str) -> str:
    return spec.partition("(")[0]


def mean_of(row: Row, method: str) -> float:
    """A method's mean; with options that the grid does not have, that of the method with the grid's options."""
    points: dict[str, list[float]] = row["points"]
    exact = row.get("spec") if method == row.get("advised") else None
    key = exact if exact in points else next(spec for spec in points if base(spec) == method)
    return statistics.fmean(points[key])


def regret(row: Row, method: str) -> float:
    return max(statistics.fmean(values) for values in row["points"].values()) - mean_of(row, method)


def chance(row: Row, draws: int = 2000) -> float:
    """What regret the advice would have if the methods near the best were all equally good: the luck of the best."""
    means = {spec: statistics.fmean(values) for spec, values in row["points"].items()}
    spreads = {spec: statistics.stdev(values) / len(values) ** 0.5 for spec, values in row["points"].items()}
    near = [spec for spec in means if max(means.values()) - means[spec] <= 2 * max(spreads[spec], 0.1)]
    generator = random.Random(0)
    lucky = (max(generator.gauss(0, spreads[spec]) for spec in near) for _ in range(draws))
    return statistics.fmean(lucky)


def summary(rows: Iterable[Row]) -> dict[str, Any]:
    rows = list(rows)

    def mean(choose: Callable[[Row], str]) -> float:
        return round(statistics.fmean(regret(row, choose(row)) for row in rows), 2)

    return {
        "tasks": len(rows),
        "advised": mean(lambda row: row["advised"]),
        **{f"always {method}": mean(lambda row, m=method: m) for method in FIXED},
        "chance": round(statistics.fmean(chance(row) for row in rows), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(SETTINGS), help="which, separated by commas")
    parser.add_argument("--work", type=Path, default=Path("normwise-advice"), help="folder for the studies themselves")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quietly", action="store_true", help="print no outcome of tasks that are kept out")
    given = parser.parse_args()
    rows = []
    for name in given.tasks.split(","):
        task = SETTINGS[name].make()
        row = outcome(name, task, given.work) | advised(name, task)
        rows.append(row | {"regret": round(regret(row, row["advised"]), 3)})
        if not (given.quietly and row["held_out"]):
            best = max(row["points"], key=lambda spec: statistics.fmean(row["points"][spec]))
            print(f"{name}: best {best}, advised {row['spec']}, regret {rows[-1]['regret']:.2f}", flush=True)
    record = {
        "what": "test scores in points of every method on every task, per seed; the advice; mean regret in points",
        # Where the studies are kept does not matter to them.
        "command": shlex.join(["python", "benchmarks/advice.py", "--tasks", given.tasks]),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "regret": {
            title: summary(row for row in rows if kept in {None, row["held_out"]})
            for title, kept in (("all", None), ("written on", False), ("kept out", True))
            if kept in {None, *(row["held_out"] for row in rows)}
        },
        "rows": rows,
    }
    write_atomic(given.out, json.dumps(record, indent=1) + "\n")
    for title, found in record["regret"].items():
        if not (given.quietly and title != "written on"):
            print(f"{title}: " + ", ".join(f"{name} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
