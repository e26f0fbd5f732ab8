"""From meters to a diagnosis: sum up, apply the rules, add what inspection finds without running anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from normwise._version import __version__
from normwise.findings import Diagnosis, Finding, Gap, ModelFacts, NormFacts, NormTrace, RunTrace, TokenTrace
from normwise.probe import rules_statistics, rules_structure, rules_tokens, rules_training
from normwise.probe.meters import NormMeter, WeightMeter
from normwise.probe.optimizers import Decays
from normwise.probe.rules import at, calibrate_command, judge
from normwise.surgery.inspect import inspect

RULES = [*rules_statistics.RULES, *rules_structure.RULES, *rules_training.RULES, *rules_tokens.RULES]

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
        "In evaluation these channels are scaled up by as much, whatever comes.",
        'normwise.calibrate(model, loader, where="{name}")',
    ),
    "never-updated": (
        "Until then evaluation normalizes by mean 0 and variance 1, whatever the data's are.",
        'normwise.calibrate(model, loader, where="{name}")',
    ),
    "dead-weight": (
        "These channels pass hardly anything on, and hardly any gradient back to what feeds them.",
        "from normwise.surgery.inspect import dead_below\n"
        "with torch.no_grad():\n    {at}.weight[{at}.weight.abs() <= dead_below({at}.weight)] = 0.0",
    ),
    "not-understood": ("Nothing of it is measured, and nothing here speaks for its health.", ""),
    "momentum-0": (
        "Should weights be trained further, the statistics stay, and evaluation drifts away from training.",
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
    tokens: TokenTrace | None = None,
    of_norms: Mapping[str, Mapping[str, Any]] | None = None,
    of_weights: Mapping[str, Mapping[str, Any]] | None = None,
) -> Diagnosis:
    """Sum up what meters hold and judge it."""
    meters = {meter.found.names[0]: meter for meter in norms.values()}
    modules = dict(model.named_modules(remove_duplicate=False))
    named = {name: weights[id(module)] for name, module in modules.items() if id(module) in weights}
    known, found = of_norms or {}, of_weights or {}

    def norm_trace(f: NormFacts) -> NormTrace:
        meter = meters[f.name]
        return meter.trace(f, since, **decays.of(meter.found.module), **known.get(f.name, {}))

    seen = Diagnosis(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        facts=facts,
        run=run,
        norms=[norm_trace(f) for f in facts.norms if f.name in meters],
        weights=[
            named[f.name].trace(f, decay=decays.on(modules[f.name]), **found.get(f.name, {}))
            for f in facts.weights
            if f.name in named
        ],
        gap=gap,
        tokens=tokens,
        versions={"normwise": __version__, "torch": str(torch.__version__)},
    )
    judged = judge(seen, RULES)
    still = _static(model, seen, judged)
    untouched = {finding.layer for finding in still if finding.code == "never-updated"}
    told = [f for f in judged if f.code != "statistics-disagree" or f.layer not in untouched]
    return dataclasses.replace(seen, findings=[*told, *still])


def _static(model: nn.Module, seen: Diagnosis, judged: list[Finding]) -> list[Finding]:
    known = {(finding.layer, finding.code) for finding in judged}
    norms = {norm.layer.name: norm for norm in seen.norms}
    found = []
    for finding in inspect(model).findings:
        if finding.code not in STATIC or (finding.layer, finding.code) in known:
            continue
        norm = norms.get(finding.layer)
        if norm is not None and _refuted(finding, norm, known):
            continue
        effect, fix = STATIC[finding.code]
        severity = finding.severity
        if finding.code == "never-updated" and rules_statistics.untrained(seen):
            # Nothing was trained: that the statistics are at their start, too, is no fault.
            severity = "info"
        if finding.code == "not-understood":
            severity = "info"  # of a layer that was not measured there is nothing to warn of
        if finding.code in ("momentum-0", "dead-weight", "not-understood"):
            command = ""
        else:
            command = calibrate_command(finding.layer)
        # Weights that come from elsewhere (weight norm) cannot be set in their place.
        fix = "" if norm is None and finding.code == "dead-weight" else fix
        fix = fix.format(at=at(finding.layer), name=finding.layer)
        found.append(dataclasses.replace(finding, severity=severity, effect=effect, fix=fix, command=command))
    return found


def _refuted(finding: Finding, norm: NormTrace, known: set[tuple[str, str]]) -> bool:
    """Whether what was measured says otherwise than the stored statistics alone."""
    if finding.code == "near-eps":
        as_data = norm.mean_gap is not None and not rules_statistics.disagrees(norm)
        return as_data or (finding.layer, "constant-channels") in known
    if finding.code == "dead-weight":
        # A layer without any weight left is judged by what was seen.
        return norm.weight_max is not None and norm.weight_max <= rules_training.GONE
    # Their start is on its way out, or nothing goes through them: then another finding tells.
    return finding.code == "never-updated" and (norm.leftover is not None or (finding.layer, "never-runs") in known)
