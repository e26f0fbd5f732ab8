"""From meters to a diagnosis: sum up, apply the rules, add what inspection finds without running anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from normwise import __version__
from normwise.findings import Diagnosis, Finding, Gap, ModelFacts, NormFacts, NormTrace, RunTrace
from normwise.probe import rules_statistics, rules_structure, rules_training
from normwise.probe.meters import NormMeter, WeightMeter
from normwise.probe.optimizers import Decays
from normwise.probe.rules import at, judge
from normwise.surgery.inspect import inspect

RULES = [*rules_statistics.RULES, *rules_structure.RULES, *rules_training.RULES]

# What inspection finds, its effect and its fix; ``{at}`` is the layer, ``{name}`` its name.
STATIC: dict[str, tuple[str, str]] = {
    "non-finite": (
        "Every output that passes the layer is NaN.",
        "for tensor in {at}.state_dict().values():\n    torch.nan_to_num_(tensor, 1.0, 1.0, 1.0)\n"
        'normwise.calibrate(model, loader, where="{name}")',
    ),
    "negative-variance": (
        "The root of a negative number makes evaluation NaN.",
        'normwise.calibrate(model, loader, where="{name}")',
    ),
    "near-eps": (
        "Whatever is not constant any more in evaluation is scaled up by up to 1/√eps.",
        'normwise.calibrate(model, loader, where="{name}")',
    ),
    "never-updated": (
        "Evaluation does not normalize at all.",
        'normwise.calibrate(model, loader, where="{name}")',
    ),
    "dead-weight": (
        "These channels pass nothing on, and no gradient back to what feeds them.",
        "with torch.no_grad():\n    {at}.weight[{at}.weight.abs() <= 1e-3 * {at}.weight.abs().max()] = 1.0",
    ),
    "momentum-0": (
        "Fine-tuning changes the weights and leaves the statistics: evaluation drifts away from training.",
        "{at}.momentum = 0.1",
    ),
}


def diagnosis_of(
    model: nn.Module,
    facts: ModelFacts,
    run: RunTrace,
    norms: Mapping[int, NormMeter],
    weights: Mapping[int, WeightMeter],
    decays: Decays,
    *,
    since: int = 0,
    gap: Gap | None = None,
    of_norms: Mapping[str, Mapping[str, Any]] | None = None,
    of_weights: Mapping[str, Mapping[str, Any]] | None = None,
) -> Diagnosis:
    """Sum up what meters hold and judge it.

    Args:
        model: the model.
        facts: of the model.
        run: how it was run.
        norms: meters by module id.
        weights: meters by module id.
        decays: the optimizers.
        since: the pass from which on running statistics are held against those of batches.
        gap: train against evaluation, where measured.
        of_norms: further fields of :class:`normwise.findings.NormTrace`, by layer.
        of_weights: further fields of :class:`normwise.findings.WeightTrace`, by layer.

    Returns:
        The diagnosis.

    Example:
        >>> from normwise.probe.facts import survey
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> facts = survey(model, torch.zeros(4, 2))
        >>> found = diagnosis_of(model, facts, RunTrace(), {}, {}, Decays(model))
        >>> [finding.code for finding in found.findings]
        ['never-updated']
    """
    meters = {meter.found.names[0]: meter for meter in norms.values()}
    named = {name: weights[id(module)] for name, module in model.named_modules() if id(module) in weights}
    known, found = of_norms or {}, of_weights or {}

    def norm_trace(f: NormFacts) -> NormTrace:
        meter = meters[f.name]
        return meter.trace(f, since, **decays.of(meter.found.module), **known.get(f.name, {}))

    seen = Diagnosis(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        facts=facts,
        run=run,
        norms=[norm_trace(f) for f in facts.norms if f.name in meters],
        weights=[named[f.name].trace(f, **found.get(f.name, {})) for f in facts.weights if f.name in named],
        gap=gap,
        versions={"normwise": __version__, "torch": str(torch.__version__)},
    )
    judged = judge(seen, RULES)
    still = _static(model, seen, judged)
    untouched = {finding.layer for finding in still if finding.code == "never-updated"}
    told = [f for f in judged if f.code != "statistics-disagree" or f.layer not in untouched]
    return dataclasses.replace(seen, findings=[*told, *still])


def _static(model: nn.Module, seen: Diagnosis, judged: list[Finding]) -> list[Finding]:
    known = {(finding.layer, finding.code) for finding in judged}
    moving = {norm.layer.name: norm.leftover for norm in seen.norms if norm.leftover is not None}
    found = []
    for finding in inspect(model).findings:
        if finding.code not in STATIC or (finding.layer, finding.code) in known:
            continue
        if finding.code == "near-eps" and (finding.layer, "constant-channels") in known:
            continue
        effect, fix = STATIC[finding.code]
        severity = finding.severity
        if finding.code == "dead-weight" and severity == "warning" and seen.facts.residual_adds:
            # The last norm of a residual block may start at 0, so that the block starts as the identity.
            severity = "info"
        if finding.code == "never-updated" and finding.layer in moving:
            continue
        fix = fix.format(at=at(finding.layer), name=finding.layer)
        found.append(dataclasses.replace(finding, severity=severity, effect=effect, fix=fix))
    return found
