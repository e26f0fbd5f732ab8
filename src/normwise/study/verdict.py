"""From standings to advice: which method, how sure, and why, in full sentences computed from the records."""

from __future__ import annotations

from collections.abc import Sequence

from normwise.records import Settings, Standing, StepCost, Trial, Verdict
from normwise.study.choice import with_costs
from normwise.study.decision import Decision, Swing, decide
from normwise.study.standings import standings_at

# Above this a task cannot tell good methods apart.
SATURATED = 0.995
FEW_SEEDS = 5
AS_IS = "as_is"


def judge(
    settings: Settings, trials: Sequence[Trial], costs: Sequence[StepCost] = ()
) -> tuple[list[Standing], list[Verdict]]:
    """Rank the methods and give a verdict at each batch size that has finished methods."""
    standings: list[Standing] = []
    verdicts = []
    for batch_size in settings.batch_sizes:
        here = [c for c in costs if c.batch_size == batch_size]
        ranked, resampled = standings_at(settings, trials, batch_size)
        found = with_costs(ranked, here)
        standings += found
        if found:
            verdicts.append(verdict_of(trials, decide(settings, trials, found, resampled, here)))
    return standings, verdicts


def verdict_of(trials: Sequence[Trial], decision: Decision) -> Verdict:
    """Put a decision into words."""
    use, decided = decision.use, decision.decided
    return Verdict(
        batch_size=use.batch_size,
        use=use.method,
        best=decision.best.method,
        clear=decision.outcome == "clear",
        tied=[s.method for s in decision.tied],
        confidence=decision.near[use.method] if decided else 0.0,
        headline=_headline(decision),
        why=_why(decision, trials),
        cautions=_cautions(decision),
        outcome=decision.outcome,
        probability_best=use.probability_best if decided else None,
        lr_decided=decision.swing is not None,
    )


def _headline(decision: Decision) -> str:
    use, write = decision.use, _Writer(decision.settings)
    at = f"At batch size {use.batch_size}"
    match decision.outcome:
        case "lost":
            return f"{at} no method trained: every run diverged or failed."
        case "unlearned":
            return (
                f"{at} no method is shown to have learned anything, so this decides nothing: the best "
                f"score, {write.score(decision.best.valid.value)}, is not reliably above "
                f"{write.score(decision.settings.floor or 0.0)}, which takes no training."
            )
        case "equal":
            return f"{at} every method scored the same in every run, so this decides nothing."
        case "alone":
            return f"{at} only {_said(use.method)} was tried."
        case "clear":
            return f"{at} use {_said(use.method)}: it is ahead of every other method."
    tied = decision.tied
    others = "all methods" if len(tied) == len(decision.standings) else _list([_said(s.method) for s in tied])
    return f"{at} there is no clear winner among {others}; use {_said(use.method)}: {_because(decision)}."


def _because(decision: Decision) -> str:
    """Why this one of the tied: each of the others was passed over for a reason of its own."""
    choice, said = decision.choice, []
    if decision.use.diverged:
        said.append("each of them lost runs")
    if decision.use is decision.best:
        said.append("it scored highest")
    if len(choice.slow) == len(decision.tied) - 1:
        return _list([*said, "it is the cheapest"])
    for places, one, more in (
        (choice.lost, "lost runs", "lost runs"),
        (choice.far, "mostly stays behind the highest", "mostly stay behind the highest"),
        (choice.slow, "takes longer per step", "take longer per step"),
        (choice.heavy, "holds more memory", "hold more memory"),
        (choice.lower, "costs as much and scored no higher", "cost as much and scored no higher"),
    ):
        if places:
            names = _list([_said(name) for name in decision.names(places)])
            said.append(f"{names} {more if len(places) > 1 else one}")
    return _list(said)


def _why(decision: Decision, trials: Sequence[Trial]) -> list[str]:
    standings, best, settings = decision.standings, decision.best, decision.settings
    write = _Writer(settings)
    if decision.outcome == "lost":
        return [_lost_sentence(s, trials) for s in standings]
    said = [
        f"{_name(best)} has the highest mean validation {settings.score_name} over {best.runs} seeds: "
        f"{write.score(best.valid.value)} (95 % interval {write.interval(best.valid)}); on test it reaches "
        f"{write.score(best.test.value)}."
    ]
    if decision.decided:
        said += _gap_sentences(decision, write) + _race_sentences(settings, standings)
        said += _cost_sentences(decision)
    said += _equal_sentences(settings, standings)
    said += [_lost_sentence(s, trials) for s in standings if s.diverged]
    if decision.decided:
        said += _method_sentences(standings, write)
    return said


def _gap_sentences(decision: Decision, write: _Writer) -> list[str]:
    """How far behind the others are, and which of them the seeds do not tell apart."""
    said = []
    rest = [(s.behind, s.method) for s in decision.standings[1:] if s.behind is not None and not s.tied]
    if rest:
        gap, nearest = min(rest, key=lambda item: item[0].value)
        size = f"{write.gap(gap.value)} ({write.gaps(gap)}, paired by seed)"
        said.append(
            f"It leads the next, {_said(nearest)}, by {size}."
            if len(decision.tied) == 1
            else f"Of the methods that are clearly behind it, {_said(nearest)} is the nearest: {size}."
        )
    return said + [
        f"{_name(s)} is {write.gap(s.behind.value)} behind, but its 95 % interval, {write.interval(s.behind)}, "
        f"includes 0: {s.runs} seeds do not tell the two apart."
        for s in decision.tied[1:]
        if s.behind is not None
    ]


def _race_sentences(settings: Settings, standings: Sequence[Standing]) -> list[str]:
    """Who left the race, grouped by when, and when it ended."""
    left: dict[int, list[str]] = {}
    for s in standings:
        if s.stopped:
            left.setdefault(s.runs, []).append(_said(s.method))
    said = [
        f"Clearly behind after {runs} of {len(settings.seeds)} seeds, so stopped: {_list(names)}."
        for runs, names in sorted(left.items())
    ]
    ran = standings[0].runs
    if settings.race and ran < len(settings.seeds):
        said.append(f"The race ended after {ran} of {len(settings.seeds)} seeds: more would hardly change the advice.")
    return said


def _cost_sentences(decision: Decision) -> list[str]:
    """What a step of the advised method costs, beside the fastest or, where it is as fast, the slowest of the tied."""
    use = decision.use
    if use.step_seconds is None:
        return []
    how = "in training, other work on the machine included"
    if use.step_interval is not None:
        low, high = use.step_interval.low * 1e3, use.step_interval.high * 1e3
        how = f"95 % interval {low:.3g} to {high:.3g}, timed in turn after the training"
    text = f"A training step with {_said(use.method)} takes {use.step_seconds * 1e3:.3g} ms ({how})"
    if use.peak_bytes is not None:
        text += f" and holds at most {use.peak_bytes / 2**20:.3g} MiB"
    among = [s for s in (decision.tied if len(decision.tied) > 1 else decision.standings) if s.step_seconds]
    other = min(among, key=_step)
    if len(decision.tied) > 1 and _step(use) <= _step(other) * (1 + decision.same):
        other = max(among, key=_step)
    ratio = _step(other) / _step(use)
    if max(ratio, 1 / ratio) > 1 + decision.same:
        kind = "longest" if ratio > 1 else "shortest"
        text += f"; the {kind}, with {_said(other.method)}, takes {_step(other) * 1e3:.3g} ms"
    elif len(among) > 1:
        text += f"; differences of up to {decision.same * 100:.0f} % between step times count as none"
    return [text + "."]


def _equal_sentences(settings: Settings, standings: Sequence[Standing]) -> list[str]:
    """Which methods make the same network as one that was trained."""
    there = {s.method for s in standings}
    return [
        f"{'The model as it is written' if other == AS_IS else f'The network with {other}'} is the same as with "
        f"{_said(method)}, so it was trained once, as {method}."
        for other, method in settings.same_as.items()
        if method in there
    ]


def _lost_sentence(standing: Standing, trials: Sequence[Trial]) -> str:
    lost = [
        t
        for t in trials
        if t.setup.stage == "final"
        and (t.setup.method, t.setup.batch_size) == (standing.method, standing.batch_size)
        and t.state != "complete"
    ]
    kind = "failed" if any(t.state == "failed" for t in lost) else "diverged"
    reason = next((t.reason for t in lost if t.reason), "no reason was recorded")
    return f"{_name(standing)} {kind} in {standing.diverged} of {standing.runs} runs: {reason.rstrip('.')}."


def _method_sentences(standings: Sequence[Standing], write: _Writer) -> list[str]:
    """What the ranking says about methods that use the batch, or none."""
    by_name = {s.method: s for s in standings}
    said = []
    batch = by_name.get("batch")
    if batch and batch.batch_size <= 8 and batch.behind and not batch.tied:
        said.append(
            f"With {batch.batch_size} samples per step batch normalization estimates its means and variances from few "
            f"samples; here it is {write.gap(batch.behind.value)} behind."
        )
    none = by_name.get("none")
    if none and none.behind and not none.tied:
        said.append(f"Without any normalization the model is {write.gap(none.behind.value)} behind.")
    return said


def _cautions(decision: Decision) -> list[str]:
    settings, standings, best, use = decision.settings, decision.standings, decision.best, decision.use
    write, said = _Writer(settings), []
    if settings.quick:
        said.append("This was a quick run: short training and few seeds. Repeat it without --quick to rely on it.")
    if decision.outcome == "tied" and best.runs < FEW_SEEDS:
        said.append(f"{best.runs} seeds give wide intervals: more of them may separate methods that are tied here.")
    edge = [s for s in standings if s.lr_at_edge]
    if edge and len(settings.lrs[str(best.batch_size)]) > 1:
        lrs = ", ".join(f"{_said(s.method)} ({s.lr:.3g})" for s in edge)
        said.append(f"The best learning rate lay at the edge of what was tried for {lrs}: others may favour them.")
    if decision.rising:
        gains = ", ".join(f"{_said(method)} ({write.gap(gain)})" for method, gain in decision.rising.items())
        said.append(
            f"Training has not settled: between the last two points of the curves the score still rose with {gains}. "
            "Longer runs may rank otherwise."
        )
    if decision.swing is not None:
        said.append(_swing_sentence(decision, decision.swing, write))
    if not decision.decided:
        return [*said, "Train longer, try other learning rates, and check loss and metric."]
    below, at_best = best.valid.value - use.valid.value, _said(best.method)
    if use is not best and below > settings.tolerance:
        said.append(
            f"{_name(use)} is {write.gap(below)} below {at_best} in mean validation "
            f"{settings.score_name}: that the seeds do not tell them apart does not show that they are equal."
        )
    top = max(standings, key=lambda s: s.test.value)
    if top is not best and top.test.value - best.test.value > settings.tolerance:
        said.append(
            f"On test {_said(top.method)} is {write.gap(top.test.value - best.test.value)} ahead of {at_best}: "
            "validation and test disagree about the best."
        )
    if settings.score_name == "accuracy" and best.valid.value >= SATURATED:
        said.append("The best scores are close to 100 %: this task hardly tells good methods apart.")
    lost = [s for s in standings if s.tune_diverged and not s.diverged]
    if lost:
        said.append(
            "During the search for a learning rate "
            + _list([f"{_said(s.method)} lost {s.tune_diverged}" for s in lost])
            + " trial(s) to divergence or errors."
        )
    return said


def _swing_sentence(decision: Decision, swing: Swing, write: _Writer) -> str:
    use, rival = decision.use, decision.rival
    assert rival is not None  # or there is no swing
    gap = abs(use.valid.value - rival.valid.value)
    return (
        f"The choice of the learning rate may have decided: {_said(use.method)} and {_said(rival.method)} are "
        f"{write.gap(gap)} apart, while the scores of {_said(swing.method)} at {swing.lr:.3g} and {swing.other:.3g}, "
        f"two rates that the search does not tell apart, differ by {write.gap(swing.apart)}."
    )


class _Writer:
    """Writes scores: accuracies in percent and points, others as they are."""

    def __init__(self, settings: Settings) -> None:
        self.percent = settings.score_name == "accuracy"

    def number(self, score: float) -> str:
        text = f"{score * 100:.1f}" if self.percent else f"{score:.3g}"
        return text.replace("-", "−") if float(text) else text.lstrip("-")

    def score(self, score: float) -> str:
        return self.number(score) + (" %" if self.percent else "")

    def gap(self, score: float) -> str:
        return self.number(score) + (" points" if self.percent else "")

    def interval(self, interval: object) -> str:
        return f"{self.number(interval.low)} to {self.number(interval.high)}"  # type: ignore[attr-defined]

    def gaps(self, interval: object) -> str:
        return "95 % interval " + self.interval(interval)


def _said(method: str) -> str:
    """A method's name within a sentence."""
    return "no normalization" if method == "none" else method


def _name(standing: Standing) -> str:
    """A method's name to begin a sentence with."""
    said = _said(standing.method)
    return said[:1].upper() + said[1:]


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _step(standing: Standing) -> float:
    return standing.step_seconds if standing.step_seconds is not None else float("inf")
