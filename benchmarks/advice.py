"""Collect what the advice learns from: ``make advice-bench`` goes on with results/advice-outcomes.json.

Each task of ``advice_tasks.py`` is a data set, a kind of network and a batch size. :func:`normwise.compare` trains it
under every method: a search for the learning rate that goes on until the best lies inside, then ``SEEDS`` seeds, in a
race that stops methods which are clearly behind. The studies in ``--work`` resume from trial to trial, the outcomes are
written after each task, and any run may be stopped or given ``--minutes``: the next one goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from advice_tasks import SETTINGS, Setting

from normwise import advise, compare
from normwise.files import write_atomic
from normwise.records import Study, to_dict
from normwise.study import Task
from normwise.study.tuning import chosen_lrs, ladder, tuning

OUTCOMES = Path(__file__).parents[1] / "results" / "advice-outcomes.json"
SEEDS = 2
Row = dict[str, Any]


def outcome(setting: Setting, task: Task, work: Path) -> Row:
    """Train a task under every method that has a meaning for it."""
    steps = round(setting.steps * (16 / setting.batch_size) ** (1 / 3))
    epochs = round(steps * setting.batch_size / task.splits.train.size, 4)
    study = compare(
        data=task, batch_sizes=[setting.batch_size], seeds=SEEDS, epochs=epochs, race=True, tune_seeds=1,
        out=work / setting.name.replace(" ", "-").replace(",", "").replace(":", ""), progress=False,
    ).record  # fmt: skip
    return {
        "task": setting.name,
        "family": setting.family,
        "data": setting.data,
        "net": setting.net,
        "written": setting.written,
        "batch_size": setting.batch_size,
        "score": task.score_name,
        "steps": steps,
        "points": scores(study),
        "left_out": [m for m in task.methods if m not in study.settings.methods],
        **rates(study),
        "settled": settled(study),
        "step_ms": step_ms(study),
    }


def finals(study: Study) -> dict[str, list[Any]]:
    """Method → its trials of full length."""
    found: dict[str, list[Any]] = {}
    for trial in study.trials:
        if trial.setup.stage == "final":
            found.setdefault(trial.setup.method, []).append(trial)
    return found


def scores(study: Study) -> dict[str, list[float]]:
    """Method → test score of each seed, in points."""
    unit = 100.0 / max(1.0, abs(study.settings.floor or 0.0))
    return {m: [round(unit * t.test_score, 3) for t in trials] for m, trials in finals(study).items()}


def rates(study: Study) -> Row:
    """Each method's learning rate, and those methods whose best one lies at an end of all that were tried."""
    (b,) = study.settings.batch_sizes
    tried = tuning(study.settings, study.trials, b).rates
    chosen = {m: lr for (m, _), lr in chosen_lrs(study.settings, study.trials).items()}
    ends = {min(tried), max(tried)}
    return {
        "lrs": chosen,
        "at_the_end": [m for m, lr in chosen.items() if lr in ends],
        "ladder": [min(ladder(study.settings, b)), max(ladder(study.settings, b))],
    }


def settled(study: Study) -> float:
    """What the last sixth of the training still brought the leading method, in points of the validation score."""
    best = max(finals(study).values(), key=lambda ts: statistics.fmean(t.valid_score for t in ts))
    gains = [t.curve[-1].valid_score - t.curve[-2].valid_score for t in best if len(t.curve) > 1]
    return round(100 * statistics.fmean(gains), 2) if gains else math.nan


def step_ms(study: Study) -> dict[str, float]:
    return {
        m: round(1000 * statistics.median(t.step_seconds or 0.0 for t in trials), 3)
        for m, trials in finals(study).items()
    }


def situation(setting: Setting, task: Task) -> Row:
    """What the advice is asked about: the model as it is usually written."""
    torch.manual_seed(0)
    inputs = task.splits.train.take(slice(min(setting.batch_size, 4))).load().inputs
    variable = isinstance(inputs, tuple)
    told = advise(
        task.build(setting.written), inputs, batch_size=setting.batch_size, task=setting.about,
        variable_length=variable, measure=False,
    )  # fmt: skip
    return to_dict(told.situation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further task after so many")
    parser.add_argument("--work", type=Path, default=Path("normwise-advice"), help="folder for the studies themselves")
    parser.add_argument("--out", type=Path, default=OUTCOMES)
    parser.add_argument("--only", default="", help="those tasks whose name has this in it")
    parser.add_argument("--situations", action="store_true", help="only look at the models of stored outcomes again")
    given = parser.parse_args()
    rows = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    known = {row["task"]: row for row in rows}
    end = time.monotonic() + 60 * given.minutes
    for name, setting in SETTINGS.items():
        if given.only not in name or given.situations != (name in known) or time.monotonic() > end:
            continue
        task = setting.make()
        task = Task(**{**vars(task), "methods": setting.methods, "quick_steps": 1})
        began = time.monotonic()
        row = known[name] if given.situations else outcome(setting, task, given.work)
        known[name] = row | {"written": setting.written, "situation": situation(setting, task)}
        write(given.out, known)
        if not given.situations:
            best = max(row["points"], key=lambda spec: statistics.fmean(row["points"][spec]))
            print(f"{name}: best {best}, {time.monotonic() - began:.0f} s", flush=True)


def write(out: Path, known: dict[str, Row]) -> None:
    """All outcomes in the order of the tasks, so that a file does not tell how it was collected."""
    record = {
        "what": "test scores in points of every method on every task, a seed each; learning rates; the situation",
        "command": "python benchmarks/advice.py",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "settings": {"seeds": SEEDS, "race": True, "tasks": f"{len(known)} of {len(SETTINGS)}"},
        "rows": [known[name] for name in SETTINGS if name in known],
    }
    write_atomic(out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
