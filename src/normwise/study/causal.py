"""Methods that would let a causal model see what it is to predict: found by trying them out, before anything trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from normwise.errors import InputError
from normwise.records import Settings
from normwise.study.data import Part, run
from normwise.study.tasks.base import Task
from normwise.study.tasks.convert import AS_IS
from normwise.surgery.causality import At, Sight, leaks, sights

_SAMPLES = 4


def without_leaks(task: Task, settings: Settings, chosen: bool) -> Settings:
    """Leave out, or refuse, the methods with which a causal model's outputs depend on later positions.

    In evaluation that would score a model for what it is to predict. A method that does so in training alone, by the
    statistics of the batch, stays and is noted.
    """
    batch = task.splits.train.take(slice(_SAMPLES)).load()
    reference = AS_IS if task.converts else "none"
    before = _seen(task, reference, batch) if isinstance(batch, Part) else {}
    if not any(sight.causal for sight in before.values()):
        return settings
    moved = {m: leaks(before, before if m == reference else _seen(task, m, batch)) for m in settings.methods}
    ahead = {method: of["evaluation"] for method, of in moved.items() if "evaluation" in of}
    learned = [method for method, of in moved.items() if "training" in of and method not in ahead]
    notes = [
        f"The model is causal. In training {method} also sees later positions, through the statistics of the batch; in "
        "evaluation, where it is scored, it does not."
        for method in learned
    ]
    if ahead:
        told = _told(ahead)
        if chosen or len(ahead) == len(settings.methods):
            raise InputError(
                f"{told}. Leave them out, have the model normalize each token by itself (normwise.nn.LayerNorm, or "
                "layers that are given (N · L, C)), or allow it: allow_leak=True, --allow-leak"
            )
        notes.append(f"{told}. So it was left out: --allow-leak compares it all the same.")
    kept = [method for method in settings.methods if method not in ahead]
    return dataclasses.replace(settings, methods=kept, notes=[*settings.notes, *notes])


def _seen(task: Task, method: str, batch: Part) -> dict[At, Sight]:
    """What a fresh model under a method sees; nothing where it fails, which its trials will tell."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return sights(task.build(method), run, batch.inputs)
        except Exception:
            return {}


def _told(ahead: dict[str, float]) -> str:
    each: Sequence[str] = [f"{method} ({moved:.2g} of their size)" for method, moved in ahead.items()]
    return (
        f"The model is causal, and would see what it is to predict with {', '.join(each)}: outputs at earlier "
        "positions move when only the last one changes"
    )
