"""From the runs of a claim to its outcome: every hypothesis judged, figures drawn, and what limits the answer said."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

import numpy as np

from normwise.claims.claim import Arm, Claim, Part, Runs, UnmeasuredError, looks_of
from normwise.claims.statistics import judge_look, seeds_needed, together
from normwise.errors import InputError
from normwise.outcomes import UNDECIDED, Answer, Outcome
from normwise.records import Interval, Trial
from normwise.study.tuning import ladder

T = TypeVar("T")


def outcome_of(claim: Claim, runs: Runs, quick: bool) -> Outcome:
    """Judge a claim by its runs."""
    answers = [answer_of(part, runs, quick) for part in claim.parts]
    figures, missing = _drawn(claim.figures, runs)
    galleries, more = _drawn(claim.galleries, runs)
    trials = [t for e in claim.experiments for t in runs.trials_of[e.name]]
    return Outcome(
        number=claim.number,
        name=claim.name,
        title=claim.title,
        claim=claim.claim,
        source=claim.source,
        verdict=together(a.verdict for a in answers if a.decides),
        answers=answers,
        figures=figures,
        galleries=galleries,
        experiments={e.name: runs.settings_of[e.name] for e in claim.experiments},
        trials=len(trials),
        lost=sum(t.state != "complete" for t in trials),
        seconds=sum(t.seconds for t in trials),
        code=_code(claim, quick),
        quick=quick,
        how=claim.how,
        looks=list(looks_of(quick)),
        notes=[*claim.notes, *limits_of(claim, runs), *missing, *more],
    )


def answer_of(part: Part, runs: Runs, quick: bool) -> Answer:
    """Measure one hypothesis and judge it; what is undecided says why, or what it would take."""
    values: list[float] = []
    interval: Interval | None = None
    verdict, note = UNDECIDED, ""
    bounds = part.ratio, part.at_least, part.at_most
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            measured, arms, _ = runs.at_look(lambda some: [float(v) for v in part.measure(some)])
        interval, verdict = judge_look(measured, *bounds, part.exact, looks_of(quick))
        values = measured
        if verdict == UNDECIDED:
            note = _lacking(values, seeds_needed(values, *bounds, looks=looks_of(quick)), runs.seconds(arms), quick)
    except (UnmeasuredError, InputError) as error:
        note = str(error)
    return Answer(
        statement=part.statement,
        verdict=verdict,
        values=values,
        estimate=interval,
        at_least=part.at_least,
        at_most=part.at_most,
        unit=part.unit.name,
        factor=part.unit.factor,
        ratio=part.ratio,
        published=part.published,
        decides=part.decides,
        note=note,
        brief=part.brief,
        exact=part.exact,
    )


def _lacking(values: Sequence[float], needed: int | None, seconds: float, quick: bool) -> str:
    """Say what it would take to decide."""
    have, last = len(values), looks_of(quick)[-1]
    said = f"{have} seeds do not decide"
    if np.ptp(values) == 0:
        return f"{said}: all values are equal, which more of them would have to confirm"
    if needed is None:
        return f"{said}: the mean lies so near to the bound that no number of seeds would"
    needed = max(needed, have + 1)
    minutes = max(round((needed - have) * seconds / 60), 1)
    end = "" if needed <= last else f", but the design ends at {last}"
    return f"{said}: with this mean and scatter it would take about {needed:,} ({minutes:,} min more){end}"


def limits_of(claim: Claim, runs: Runs) -> list[str]:
    """Say where training had not settled and where the best learning rate lay at an end of those tried."""
    arms = [arm for e in claim.experiments if not e.memory for arm in e.arms]
    rising = {arm: _gain(runs.finished(arm)) for arm in arms}
    rising = {arm: gain for arm, gain in rising.items() if gain > runs.settings_of[arm.experiment].tolerance}
    edge = [arm for arm in arms if _at_end(runs, arm)]
    said = []
    if rising:
        said.append(
            f"Training had not settled everywhere: over the last sixth of it the validation score still rose with "
            f"{_listed(rising, runs)}."
        )
    if edge:
        said.append(
            f"The best learning rate lay at an end of all that were tried with {_listed(edge, runs)}: others may suit "
            "better."
        )
    return said


def _gain(trials: Sequence[Trial]) -> float:
    """What the validation score rose by between the last two points of the curves, on average."""
    ends = [[p.valid_score for p in t.curve[-2:]] for t in trials if t.state == "complete"]
    gains = [end[1] - end[0] for end in ends if len(end) == 2 and None not in end]  # type: ignore[operator]
    return float(np.mean(gains)) if gains else 0.0


def _at_end(runs: Runs, arm: Arm) -> bool:
    """Whether the search for a learning rate ended at the last rate that it may come to."""
    settings, trials = runs.settings_of[arm.experiment], runs.finished(arm)
    rates = ladder(settings, arm.batch_size)
    return bool(trials and settings.tune_seeds) and trials[0].setup.lr in (rates[0], rates[-1])


def _listed(arms: Collection[Arm], runs: Runs) -> str:
    """Name arms by experiment and method, with their batch sizes where there are several."""
    methods: dict[tuple[str, str], list[int]] = {}
    for arm in arms:
        methods.setdefault((arm.experiment, arm.method), []).append(arm.batch_size)
    experiments: dict[str, list[str]] = {}
    for (experiment, method), sizes in methods.items():
        several = len(runs.settings_of[experiment].batch_sizes) > 1
        at = f" at batch size {', '.join(map(str, sorted(sizes)))}" if several else ""
        experiments.setdefault(experiment, []).append(method + at)
    return "; ".join(f"{', '.join(found)} ({experiment})" for experiment, found in experiments.items())


def _drawn(drawings: Iterable[Callable[[Runs], T]], runs: Runs) -> tuple[list[T], list[str]]:
    """Make what can be drawn, and say what cannot."""
    drawn, missing = [], []
    for draw in drawings:
        try:
            drawn.append(runs.at_look(draw)[0])
        except UnmeasuredError as error:
            missing.append(f"A figure is missing: {error}.")
    return drawn, missing


def _code(claim: Claim, quick: bool) -> str:
    options = ", quick=True" * quick
    return (
        "from normwise import claims\n\n"
        f'outcome = claims.run("{claim.name}"{options}, out="my-claims").outcomes[0]\n'
        "for answer in outcome.answers:\n"
        "    print(answer.verdict, answer.estimate, answer.statement)\n"
    )
