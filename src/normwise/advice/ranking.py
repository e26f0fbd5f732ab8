"""From a situation to ranked methods, by what was learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import replace
from statistics import fmean

from normwise.advice.code import OF_TOKENS, code_for, options_for
from normwise.advice.learning import Prediction, learned
from normwise.advice.records import Advice, Cost, Exemption, Ranked, Reason
from normwise.advice.rules import ENOUGH_VALUES, METHODS, RULES, strengths, told
from normwise.advice.situation import Situation
from normwise.advice.vetoes import VETOES

AS_IS = "as_is"
# An effect below this is not worth a line.
_NOTHING = 0.1


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
    ranking = [_ranked(method, situation, predictions, (costs or {}).get(method)) for method in candidates(situation)]
    ranking = [replace(r, refused=(refused or {}).get(r.method, r.refused)) for r in ranking]
    possible = [r.method for r in ranking if r.refused is None]
    safe = safe_choice(situation, possible, [r.method for r in ranking])
    if safe == AS_IS:
        ranking.append(Ranked(AS_IS, None, []))
        chosen, why, sure = (
            AS_IS,
            f"no measured task compares {' and '.join(situation.current)} with other methods",
            None,
        )
    else:
        chosen, why = learned().choose(at, possible, safe)
        sure = None if learned().beyond(at) else round(learned().probability(at), 3)
    ranking = [_written(r, situation) for r in ranking]
    ranking.sort(key=lambda r: (r.method != chosen, r.refused is not None, -(r.points or 0.0)))
    near = predictions[chosen].points - learned().tolerance if chosen in predictions else 0.0
    close = [m for m in possible if m != chosen and predictions[m].points >= near]
    notes = [*_notes(situation), *_doubts(situation, chosen, why, close)]
    shown = "" if sure is None else _evidence(situation, chosen)
    return Advice(model, situation, ranking, notes, probability=sure, abstains=why, evidence=shown)


def candidates(situation: Situation) -> list[str]:
    """The methods that were measured on models like this one.

    Args:
        situation: the model's.

    Returns:
        Their names.

    Example:
        >>> "rms" in candidates(Situation("conv", ["conv"], 32))
        False
    """
    known = learned().known(strengths(situation))
    return [method for method in METHODS if method in known]


def safe_choice(s: Situation, possible: list[str], known: Container[str] = METHODS) -> str:
    """What to use where nothing is known: what the model has, else what papers use for its kind.

    Args:
        s: the situation.
        possible: the methods that are not refused.
        known: those that were measured on models like this one.

    Returns:
        A method, or ``"as_is"`` where the model has something else than one that is known.

    Example:
        >>> safe_choice(Situation("conv", ["conv"], 32), ["batch", "group"])
        'batch'
        >>> safe_choice(Situation("conv", ["conv"], 32, current=["rms"]), ["batch", "layer"], ["batch", "layer"])
        'as_is'
    """
    if s.current and (len(s.current) > 1 or s.current[0] not in known):
        return AS_IS
    # Wu & He 2018 (arXiv 1803.08494) find batch norm behind group norm from fewer than 16 images a step on.
    of_kind = (
        "instance" if s.task == "stylization"
        else "none" if s.task == "restoration"
        else "layer" if s.closed or {"attention", "recurrent"} & {*s.kinds} or any(p.per_token for p in s.places)
        else "batch" if s.few >= ENOUGH_VALUES
        else "group"
    )  # fmt: skip
    # Stylization is told by the user, and what it wants is known (Ulyanov et al. 2016, arXiv 1607.08022).
    current = [] if s.task == "stylization" else s.current
    return next(m for m in (*current, of_kind, "group", "layer", "none") if m in possible)


def _ranked(method: str, situation: Situation, predictions: Mapping[str, Prediction], cost: Cost | None) -> Ranked:
    predicted, reasons = predictions[method], []
    for rule in RULES:
        # What a rule takes from all methods alike decides nothing.
        effect = predicted.effects[rule.name] - fmean(p.effects[rule.name] for p in predictions.values())
        if effect * rule.sides.get(method, 0) >= _NOTHING:
            reasons.append(Reason(rule.name, round(effect, 2), told(rule, situation), rule.source))
    reasons.sort(key=lambda reason: -abs(reason.points))
    exemptions, refused = forbidden(method, situation)
    points = round(min(predicted.points, 0.0), 2)
    return Ranked(method, points, reasons, cost, exemptions, refused=refused, spread=round(predicted.spread, 2))


def forbidden(method: str, situation: Situation) -> tuple[list[Exemption], str | None]:
    """The places where a method has too little to go by; all of them refuse it."""
    closed = _closed(method, situation)
    if closed:
        return [], closed
    found: dict[str, Exemption] = {}
    if not situation.current and method not in {*OF_TOKENS, "none", "weight"}:
        by_token = [p for p in situation.places if p.per_token]
        if by_token and len(by_token) == len(situation.places):
            return (
                [],
                f"the channels are on the last axis, where {', '.join(OF_TOKENS)} can stand behind a layer as they are",
            )
        found = {p.name: Exemption(p.name, "layer", "its channels are on the last axis") for p in by_token}
    for veto in VETOES:
        if veto.method == method:
            places = [p for p in situation.places if not p.per_token and veto.forbids(situation, p)]
            if places and len(places) == len(situation.places):
                return [], f"{veto.text} ({veto.source})"
            for p in places:
                use = "layer" if p.values("layer") > 1 else "none"
                found.setdefault(p.name, Exemption(p.name, use, veto.text))
    return list(found.values()), None


def _closed(method: str, situation: Situation) -> str:
    """Why a method cannot be put into recurrent layers that loop inside, where all places are there."""
    if not situation.closed or situation.places:
        return ""
    kinds = set(situation.closed.values())
    normed = {kind for kind in kinds if kind.startswith("LayerNorm")}
    fits = kinds <= {"LSTM", "GRU", *normed} if method == "layer" else method in {"none", "weight"} and not normed
    return "" if fits else f"{', '.join(sorted(kinds))} loops inside: there is no place to put it"


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


def _doubts(s: Situation, chosen: str, why: str, close: list[str]) -> list[str]:
    """Say that the advice abstains, or which methods are close, and what would tell."""
    kept = "what the model has" if chosen in {AS_IS, *s.current} else "what is usual for such a model"
    if why:
        first = f"The advice abstains and names {kept}: {why}."
    elif close:
        expected = "is expected" if len(close) == 1 else "are expected"
        first = f"This is a close call: {' and '.join(close)} {expected} within a point of it."
    else:
        return []
    trial = "advise(..., data=(inputs, targets), verify=60)" if s.current else "normwise.compare(make_model, data)"
    return [f"{first} {trial} trains on your data and tells."]


def _evidence(situation: Situation, method: str) -> str:
    """How a method did on the measured tasks most like a situation."""
    tasks = [t for t in learned().nearest(strengths(situation)) if method in t["behind"]]
    good = sum(t["behind"][method] <= learned().tolerance for t in tasks)
    families = ", ".join(f"{n} × {family}" for family, n in Counter(t["family"] for t in tasks).most_common())
    return f"Of the {len(tasks)} measured tasks most like it ({families}) it was within a point of the best on {good}."
