"""What a fix does to a model's outputs, tried on a copy before anybody applies it."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from normwise import nn as layers
from normwise import parametrize, surgery
from normwise.findings import Finding
from normwise.surgery.running import Forward, deep_copy, drift, evaluating

# Findings that say that something has no effect, and how far the outputs may move without it.
_NO_EFFECT = {"cancelled-bias": 0.01, "cancelled-norm": 0.05}
# What fixes call normwise; the package itself imports this module.
_NORMWISE = SimpleNamespace(
    nn=layers,
    surgery=surgery,
    **{name: getattr(home, name) for home in (layers, parametrize, surgery) for name in home.__all__},
)
# Of findings of one kind so many are tried; all that claim to have no effect, within reason.
_EACH, _MOST = 3, 24


def tried(
    model: nn.Module, findings: Sequence[Finding], batches: Sequence[Any], forward: Forward, given: bool
) -> list[Finding]:
    """Run each finding's fix on a copy of the model and note how far the outputs in evaluation move.

    A finding that says that something has no effect is withdrawn where taking it out has one.
    """
    if given:
        call = re.compile(r"(normwise\.(?:calibrate|qk_norm)\(model, loader)")
        findings = [dataclasses.replace(f, fix=call.sub(r"\1, forward=forward", f.fix)) for f in findings]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # Processes may find different things, and calibrating waits for all of them.
        return list(findings)
    done: Counter[tuple[str, str]] = Counter()
    kept = []
    for finding in findings:
        done[finding.code, finding.severity] += 1
        few = done[finding.code, finding.severity] <= (_MOST if finding.code in _NO_EFFECT else _EACH)
        changes = _changes(model, finding.fix, batches, forward) if few and _acts_on_the_model(finding.fix) else None
        if changes is not None and changes > _NO_EFFECT.get(finding.code, float("inf")):
            continue
        kept.append(dataclasses.replace(finding, changes=changes))
    return kept


def _acts_on_the_model(fix: str) -> bool:
    return "model" in fix and "optimizer" not in fix and "torch.autograd" not in fix


def _changes(model: nn.Module, fix: str, batches: Sequence[Any], forward: Forward) -> float | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with evaluating(model):
                before = forward(model, batches[0])
            scope: dict[str, Any] = {"torch": torch, "normwise": _NORMWISE, "loader": batches, "forward": forward}
            scope["model"] = deep_copy(model)
            exec(fix, scope)  # what is printed is what is run: code of our own rules
            with evaluating(scope["model"]):
                moved = drift(before, forward(scope["model"], batches[0]))
    except Exception:  # whatever the model does not bear on a copy: then the change is not known
        return None
    return moved if moved is not None and moved < float("inf") else None
