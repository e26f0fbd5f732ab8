"""The race against the full grid: cost and verdict side by side. ``make bench-racing`` writes results/racing.json.

Every task is compared twice, with the same methods, seeds and learning rates: once as the full grid, once as a race.
Cost is counted in training steps, which no busy machine disturbs; seconds are kept beside it. Each study is resumable:
they are kept in ``--work``, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from advice_nets import deep_mlp, residual
from sklearn.datasets import load_breast_cancer
from torch import nn

from normwise import compare
from normwise.nn import NormFactory
from normwise.records import Study, Verdict, write_atomic
from normwise.study import load_task
from normwise.study.tasks import Task, make_task
from normwise.study.tasks.images import digits, fashion_mnist, small_convnet

RESULTS = Path(__file__).parents[1] / "results" / "racing.json"
SEVEN = ("none", "batch", "layer", "weight", "instance", "group", "switchable")
# For inputs (N, C), where an instance would be a single value.
VECTORS = ("none", "batch", "layer", "weight", "group", "switchable")


def small_mlp(norm: NormFactory) -> nn.Module:
    """Four narrow layers for the 30 measurements of the breast cancer data."""
    layers: list[nn.Module] = []
    width = 30
    for _ in range(4):
        layers += [nn.Linear(width, 32), norm(32, dim=1), nn.ReLU()]
        width = 32
    return nn.Sequential(*layers, nn.Linear(width, 2))


def cancer() -> Task:
    x, y = load_breast_cancer(return_X_y=True)
    return make_task(small_mlp, ((x - x.mean(0)) / x.std(0), y), name="breast cancer")


def fashion() -> Task:
    return make_task(small_convnet, fashion_mnist(train=4000, valid=2000), name="Fashion-MNIST, 4,000 images")


def deep_sigmoid() -> Task:
    return make_task(
        partial(deep_mlp, inputs=64, depth=6, activation="sigmoid"), digits(), name="digits, 6 sigmoid layers"
    )


def residual_digits() -> Task:
    return make_task(residual, digits(), name="digits, residual net")


# Name → task, batch size, epochs (None: the task's own), methods, seeds.
STUDIES: dict[str, tuple[Callable[[], Task], int, float | None, tuple[str, ...], int]] = {
    "digits-2": (lambda: load_task("digits"), 2, None, SEVEN, 10),
    "digits-32": (lambda: load_task("digits"), 32, None, SEVEN, 10),
    "sigmoid-32": (deep_sigmoid, 32, 7.5, VECTORS, 10),
    "residual-32": (residual_digits, 32, 3.6, SEVEN, 10),
    "fashion-32": (fashion, 32, 2.0, SEVEN, 8),
    "cancer-16": (cancer, 16, 15.0, VECTORS, 10),
    "vowels-16": (lambda: load_task("japanese-vowels"), 16, 10.0, SEVEN, 8),
}


def summary(study: Study, verdict: Verdict) -> dict[str, Any]:
    final = [t for t in study.trials if t.cell.stage == "final"]
    return {
        "use": verdict.use,
        "tied": verdict.tied,
        "confidence": round(verdict.confidence, 3),
        "test": {s.method: round(s.test.value, 4) for s in study.standings},
        "runs": {s.method: s.runs for s in study.standings},
        "trials": len(study.trials),
        "final_trials": len(final),
        "steps": sum(t.steps for t in study.trials),
        "seconds": round(study.seconds, 1),
    }


def measure(name: str, work: Path) -> dict[str, Any]:
    make, batch_size, epochs, methods, seeds = STUDIES[name]
    task = make()
    told = {}
    for race in (False, True):
        study = compare(
            data=task, methods=methods, batch_sizes=[batch_size], seeds=seeds, epochs=epochs, race=race,
            out=work / f"{name}-{'race' if race else 'grid'}",
        )  # fmt: skip
        told["race" if race else "grid"] = summary(study.record, study.verdicts[0])
    grid, raced = told["grid"], told["race"]
    shared = {m: grid["test"][m] for m in (grid["use"], raced["use"])}
    return {
        "study": name,
        "task": task.name,
        "batch_size": batch_size,
        "methods": list(methods),
        "seeds": seeds,
        **told,
        "same_advice": grid["use"] == raced["use"],
        # What following the race costs: test scores of the full grid, its advice minus the race's.
        "test_lost": round(shared[grid["use"]] - shared[raced["use"]], 4),
        "steps_ratio": round(raced["steps"] / grid["steps"], 3),
        "seconds_ratio": round(raced["seconds"] / grid["seconds"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", default=",".join(STUDIES), help="which, separated by commas")
    parser.add_argument("--work", type=Path, default=Path("normwise-racing"), help="folder for the studies themselves")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = []
    for name in given.studies.split(","):
        rows.append(measure(name, given.work))
        row = rows[-1]
        print(
            f"{name}: grid advises {row['grid']['use']}, race {row['race']['use']}; "
            f"{row['steps_ratio']:.0%} of the steps, {row['seconds_ratio']:.0%} of the time",
            flush=True,
        )
        record = {
            "what": "one study as the full grid and as a race: verdicts, and the race's cost as a share of the grid's",
            "command": shlex.join(["python", "benchmarks/racing.py", *sys.argv[1:]]),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "rows": rows,
        }
        write_atomic(given.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
