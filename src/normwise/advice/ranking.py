"""From a situation to ranked methods, by the rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from normwise.advice.code import code_for, options_for
from normwise.advice.records import Advice, Cost, Exemption, Ranked, Reason
from normwise.advice.rules import METHODS, RULES, VETOES
from normwise.advice.situation import Situation

# Methods this close in points are ordered by what a step costs.
CLOSE = 0.3
# Below this a reason is not worth a line.
_NOTHING = 0.05


def rank(
    model: str,
    situation: Situation,
    costs: Mapping[str, Cost] | None = None,
    refused: Mapping[str, str] | None = None,
) -> Advice:
    """Rank the methods for a situation.

    Every rule that applies adds its points; methods within 0.3 points of each other are ordered by the measured time of
    a step. A method that some place forbids gets an exemption there; one that every place forbids is refused.

    Args:
        model: its name.
        situation: what the choice depends on.
        costs: method → cost of a step, for those that were measured.
        refused: method → why it was seen not to do for this model, whatever the rules say.

    Returns:
        The advice.

    Example:
        >>> rank("Net", Situation("conv", ["conv"], batch_size=64, depth=5)).best.method
        'batch'
        >>> rank("Net", Situation("recurrent", ["recurrent"], batch_size=32, depth=2)).best.method
        'layer'
    """
    costs = costs or {}
    ranking = [_ranked(method, situation, costs.get(method)) for method in METHODS]
    ranking = [replace(r, refused=(refused or {}).get(r.method, r.refused)) for r in ranking]
    ranking = [_written(r, situation) for r in ranking]
    ranking.sort(key=lambda r: (r.refused is not None, -(r.points or 0.0)))
    return Advice(model, situation, _cheaper_first(ranking), _notes(situation))


def _ranked(method: str, situation: Situation, cost: Cost | None) -> Ranked:
    reasons = []
    for rule in RULES:
        strength = rule.strength(situation)
        points = strength * rule.effects.get(method, 0.0)
        if strength > 0 and method in rule.effects and (abs(points) >= _NOTHING or not rule.effects[method]):
            reasons.append(Reason(rule.name, round(points, 2), rule.text, rule.source))
    reasons.sort(key=lambda reason: -abs(reason.points))
    exemptions, refused = _forbidden(method, situation)
    return Ranked(method, round(sum(r.points for r in reasons), 2), reasons, cost, exemptions, refused=refused)


def _forbidden(method: str, situation: Situation) -> tuple[list[Exemption], str | None]:
    """The places where a method has too little to go by; all of them refuse it."""
    found: dict[str, Exemption] = {}
    for veto in VETOES:
        if veto.method == method:
            places = [p for p in situation.places if not p.per_token and veto.forbids(situation, p)]
            if places and len(places) == len(situation.places):
                return [], f"{veto.text} ({veto.source})"
            for p in places:
                use = "layer" if p.values("layer") > 1 else "none"
                found.setdefault(p.name, Exemption(p.name, use, veto.text))
    return list(found.values()), None


def _written(ranked: Ranked, situation: Situation) -> Ranked:
    """Add what the layers are to be told, and the code."""
    if ranked.refused:
        return ranked
    options = options_for(ranked.method, situation)
    return replace(ranked, options=options, code=code_for(ranked.method, options, ranked.exemptions, situation))


def _cheaper_first(ranking: list[Ranked]) -> list[Ranked]:
    """Among those as good as the first, put the one with the shortest step first."""
    close = [r for r in ranking if r.refused is None and (ranking[0].points or 0.0) - (r.points or 0.0) <= CLOSE]
    timed = [r for r in close if r.cost is not None and r.cost.step_seconds is not None]
    if len(timed) < 2 or len(timed) < len(close):
        return ranking
    first = min(timed, key=lambda r: r.cost.step_seconds)  # type: ignore[union-attr,arg-type,return-value]
    return [first, *(r for r in ranking if r is not first)]


def _notes(s: Situation) -> list[str]:
    """What to know whatever is chosen."""
    notes = []
    if s.devices > 1:
        notes.append(
            f"Batch statistics are counted over {s.devices} devices: share them with normwise.sync(model), or they "
            f"rest on {s.batch_size} samples."
        )
    if s.accumulate > 1:
        notes.append(
            f"Accumulation does not help batch statistics: each is of one batch of {s.batch_size}, whatever the "
            f"{s.accumulate} batches of a step add up to."
        )
    if s.has_few_features:
        numbers = "one number" if s.features == 1 else f"{s.features} numbers"
        notes.append(
            f"The first layer makes each output from {numbers}: statistics over one sample's outputs, as layer and "
            "group norm take them, measure these and divide by them. Standardize the inputs instead."
        )
    if s.variable_length and not s.masked:
        notes.append("Batches are padded: give the layers mask= or lengths=, so that padding enters no statistic.")
    return notes
