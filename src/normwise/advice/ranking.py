"""From a situation to ranked methods, by what was learned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from normwise.advice.code import code_for, options_for
from normwise.advice.learned import Prediction, learned
from normwise.advice.records import Advice, Cost, Exemption, Ranked, Reason
from normwise.advice.rules import ENOUGH_VALUES, METHODS, RULES, VETOES, strengths, told
from normwise.advice.situation import Situation

AS_IS = "as_is"
# An effect below this is not worth a line.
_NOTHING = 0.1
# Advice that is less likely than this to be as good as the best is a close call.
_SURE = 0.8


def rank(
    model: str,
    situation: Situation,
    costs: Mapping[str, Cost] | None = None,
    refused: Mapping[str, str] | None = None,
) -> Advice:
    """Rank the methods for a situation.

    The method is advised that is expected to be least behind the best, if it is expected to be better than the safe
    choice by more than the deviation of their difference; else the safe choice: what the model has, or without norms
    what papers use for its kind. A method that some place forbids gets an exemption there; one that every place
    forbids is refused.

    Args:
        model: its name.
        situation: what the choice depends on.
        costs: method → cost of a step, for those that were measured.
        refused: method → why it was seen not to do for this model, whatever was learned.

    Returns:
        The advice.

    Example:
        >>> from normwise.advice.situation import Place
        >>> maps = [Place("bn", 32, [8, 8], 64, method="batch")]
        >>> rank("Net", Situation("conv", ["conv"], 64, depth=5, places=maps, current=["batch"])).best.method
        'batch'
    """
    at = strengths(situation)
    predictions = learned().predict(at)
    ranking = [_ranked(method, situation, predictions[method], (costs or {}).get(method)) for method in METHODS]
    ranking = [replace(r, refused=(refused or {}).get(r.method, r.refused)) for r in ranking]
    possible = [r.method for r in ranking if r.refused is None]
    safe = safe_choice(situation, possible)
    if safe == AS_IS:
        ranking.append(Ranked(AS_IS, None, []))
    chosen, why = _choice(situation, at, predictions, possible, safe)
    ranking = [_written(r, situation) for r in ranking]
    ranking.sort(key=lambda r: (r.method != chosen, r.refused is not None, -(r.points or 0.0)))
    sure = None if chosen == AS_IS or learned().beyond(at) else learned().probability(_lead(predictions, possible, chosen))
    return Advice(model, situation, ranking, [*_notes(situation), *_doubts(situation, why, sure)], probability=sure, abstains=why)


def safe_choice(s: Situation, possible: list[str]) -> str:
    """What to use where nothing is known: what the model has, else what papers use for its kind.

    Args:
        s: the situation.
        possible: the methods that are not refused.

    Returns:
        A method, or ``"as_is"`` where the model has something else than one of them.

    Example:
        >>> safe_choice(Situation("conv", ["conv"], 32), ["batch", "group"])
        'batch'
        >>> safe_choice(Situation("attention", ["attention"], 32, current=["rms"]), ["batch", "layer"])
        'as_is'
    """
    if s.current and (len(s.current) > 1 or s.current[0] not in METHODS):
        return AS_IS
    # Wu & He 2018 (arXiv 1803.08494) find batch norm behind group norm from fewer than 16 images a step on.
    of_kind = (
        "instance" if s.task == "stylization"
        else "none" if s.task == "restoration"
        else "layer" if s.closed or {"attention", "recurrent"} & {*s.kinds} or any(p.per_token for p in s.places)
        else "batch" if s.few >= ENOUGH_VALUES
        else "group"
    )  # fmt: skip
    return next(m for m in (*s.current, of_kind, "group", "layer", "none") if m in possible)


def _choice(
    s: Situation, at: list[float], predictions: Mapping[str, Prediction], possible: list[str], safe: str
) -> tuple[str, str]:
    """The method to advise; and, where it is the safe choice for want of evidence, why."""
    if safe == AS_IS:
        what = " and ".join(s.current)
        return safe, f"the model has {what}, and no measured task compares that with other methods"
    beyond = learned().beyond(at)
    if beyond:
        return safe, beyond
    best = max(possible, key=lambda m: predictions[m].points)
    gain, noise = predictions[best].points - predictions[safe].points, _noise(predictions[best], predictions[safe])
    if gain > learned().margin * noise or best == safe:
        return best, ""
    return safe, f"{best} is expected to be {gain:.1f} points better, which is within the error of ±{noise:.1f}"


def _noise(a: Prediction, b: Prediction) -> float:
    return math.hypot(a.spread, b.spread)


def _lead(predictions: Mapping[str, Prediction], possible: list[str], chosen: str) -> float:
    """How many deviations a method is expected to be ahead of the next best."""
    others = [predictions[m] for m in possible if m != chosen]
    if not others:
        return math.inf
    best, own = max(others, key=lambda p: p.points), predictions[chosen]
    return (own.points - best.points) / _noise(own, best)


def _ranked(method: str, situation: Situation, predicted: Prediction, cost: Cost | None) -> Ranked:
    reasons = [
        Reason(rule.name, round(effect, 2), told(rule, situation), rule.source)
        for rule in RULES
        if (effect := predicted.effects[rule.name]) * rule.sides.get(method, 0) >= _NOTHING
    ]
    reasons.sort(key=lambda reason: -abs(reason.points))
    exemptions, refused = _forbidden(method, situation)
    points = round(min(predicted.points, 0.0), 2)
    return Ranked(method, points, reasons, cost, exemptions, refused=refused, spread=round(predicted.spread, 2))


def _forbidden(method: str, situation: Situation) -> tuple[list[Exemption], str | None]:
    """The places where a method has too little to go by; all of them refuse it."""
    if method not in {"none", "weight", "layer"} and situation.closed and not situation.places:
        inside = ", ".join(dict.fromkeys(situation.closed.values()))
        return [], f"{inside} loops inside: there is no place to put it"
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


def _doubts(s: Situation, why: str, sure: float | None) -> list[str]:
    """Say that the advice abstains, or that it is close, and what would tell."""
    if not why and (sure is None or sure >= _SURE):
        return []
    kept = "what the model has" if s.current else "what is usual for such a model"
    first = f"This abstains and names {kept}: {why}." if why else "This is a close call."
    trial = "advise(..., data=(inputs, targets), verify=60)" if s.current else "normwise.compare(make_model, data)"
    return [f"{first} {trial} trains on your data and tells."]


def evidence(advice: Advice) -> str:
    """How the advised method did on the measured tasks most like this one.

    Args:
        advice: from :func:`rank`.

    Returns:
        A sentence; empty where no measured task has the method, or none is near.

    Example:
        >>> evidence(rank("Net", Situation("conv", ["conv"], 64, depth=5))).startswith("On ")
        True
    """
    at = strengths(advice.situation)
    tasks = [t for t in learned().nearest(at) if advice.best.method in t["behind"]]
    if not tasks or learned().beyond(at):
        return ""
    good = sum(t["behind"][advice.best.method] <= learned().tolerance for t in tasks)
    families = ", ".join(f"{n} × {family}" for family, n in Counter(t["family"] for t in tasks).most_common())
    return f"On {good} of the {len(tasks)} measured tasks most like it ({families}) {advice.best.method} was within a point of the best."
