"""The race against the full grid: cost and verdict side by side. ``make bench-racing`` writes results/racing.json.

Every task is compared twice, with the same methods, seeds and learning rates: once as the full grid, once as a race.
Cost is counted in training steps, which no busy machine disturbs; seconds are kept beside it. Each study is resumable:
they are kept in ``--work``, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import torch
from advice_nets import deep_mlp, plain, residual
from advice_tasks import DEEP
from sklearn.datasets import load_breast_cancer
from torch import nn

from normwise import compare
from normwise.files import write_atomic
from normwise.nn import NormFactory
from normwise.records import Study, Verdict
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
    splits = fashion_mnist(train=4000, valid=2000)
    fewer = splits._replace(test=splits.test.take(slice(2000)))
    return make_task(small_convnet, fewer, name="Fashion-MNIST, 4,000 images")


def deep_sigmoid() -> Task:
    return make_task(
        partial(deep_mlp, inputs=64, depth=6, activation="sigmoid"), digits(), name="digits, 6 sigmoid layers"
    )


def residual_digits() -> Task:
    return make_task(residual, digits(), name="digits, residual net")


def deep_tanh() -> Task:
    return make_task(partial(deep_mlp, inputs=64, depth=12, activation="tanh"), digits(), name="digits, 12 tanh layers")


def deep_plain() -> Task:
    return make_task(partial(plain, widths=DEEP), digits(), name="digits, 10 plain convolutions")


def novels() -> Task:
    """The character model, evaluated on half of the windows."""
    task = load_task("austen")
    splits = task.splits
    fewer = splits._replace(**{part: getattr(splits, part).take(slice(None, None, 2)) for part in ("valid", "test")})
    # The task's own rates were these when it was raced.
    return dataclasses.replace(task, splits=fewer, lrs=(0.001, 0.004, 0.016))


@dataclass(frozen=True)
class Setting:
    """A task at a batch size; ``None`` are the task's own length and methods."""

    make: Callable[[], Task]
    batch_size: int
    epochs: float | None = None
    methods: tuple[str, ...] | None = None


# Fixed before the cost of any was seen; each is reported. The rules were made with those that FIRST names at hand.
STUDIES = {
    "digits-2": Setting(lambda: load_task("digits"), 2),
    "digits-32": Setting(lambda: load_task("digits"), 32),
    "fashion-32": Setting(fashion, 32, 2.0),
    "sigmoid-32": Setting(deep_sigmoid, 32, 7.5, VECTORS),
    "tanh-8": Setting(deep_tanh, 8, 3.3, VECTORS),
    "residual-32": Setting(residual_digits, 32, 3.6),
    "plain-8": Setting(deep_plain, 8, 2.6),
    "vowels-4": Setting(lambda: load_task("japanese-vowels"), 4, 6.0),
    "vowels-16": Setting(lambda: load_task("japanese-vowels"), 16, 10.0),
    "cancer-16": Setting(cancer, 16, 15.0, VECTORS),
    "novels-8": Setting(novels, 8, 0.03),
    "gravel-2": Setting(lambda: load_task("textures:gravel"), 2, 1.0),
}
FIRST = ("digits-2", "digits-32", "sigmoid-32", "residual-32", "vowels-16", "cancer-16")
SEEDS = 10


def summary(study: Study, verdict: Verdict) -> dict[str, Any]:
    final = [t for t in study.trials if t.setup.stage == "final"]
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
    setting = STUDIES[name]
    task, told, methods = setting.make(), {}, []
    for kind in ("grid", "race"):
        study = compare(
            data=task, methods=setting.methods, batch_sizes=[setting.batch_size], seeds=SEEDS, epochs=setting.epochs,
            race=kind == "race", out=work / f"{name}-{kind}",
        )  # fmt: skip
        told[kind] = summary(study.record, study.verdicts[0])
        methods = study.record.settings.methods
    grid, raced = told["grid"], told["race"]
    return {
        "study": name,
        "task": task.name,
        "at_hand": name in FIRST,
        "batch_size": setting.batch_size,
        "methods": methods,
        "seeds": SEEDS,
        **told,
        "same_advice": grid["use"] == raced["use"],
        "same_tied": set(grid["tied"]) == set(raced["tied"]),
        # What following the race costs: test scores of the full grid, its advice minus the race's.
        "test_lost": round(grid["test"][grid["use"]] - grid["test"][raced["use"]], 4),
        "steps_ratio": round(raced["steps"] / grid["steps"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--studies", default=",".join(STUDIES), help="which, separated by commas; the others' rows stay"
    )
    parser.add_argument("--work", type=Path, default=Path("normwise-racing"), help="folder for the studies themselves")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    for name in given.studies.split(","):
        row = measure(name, given.work)
        advice = f"grid advises {row['grid']['use']}, race {row['race']['use']}"
        print(f"{name}: {advice}; {row['steps_ratio']:.0%} of the steps", flush=True)
        put(row, given.out)


def put(row: dict[str, Any], out: Path) -> None:
    """Write a study's row among those that are there, in the order of the studies."""
    with filelock.FileLock(f"{out}.lock"):
        there = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
        rows = {old["study"]: old for old in there} | {row["study"]: row}
        record = {
            "what": "one study as the full grid and as a race: verdicts, and the race's cost as a share of the grid's",
            "command": "make bench-racing",
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "rows": [rows[name] for name in STUDIES if name in rows],
        }
        write_atomic(out, json.dumps(record, indent=1) + "\n")
    Path(f"{out}.lock").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
