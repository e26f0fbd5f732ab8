"""From standings to advice: which method, how sure, and why, in full sentences computed from the records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normwise.records import Settings, Standing, Study, Trial, Verdict
from normwise.study.choice import SAME_COST, choose, cost
from normwise.study.standings import share_near_best, standings_at

# Above this a task cannot tell good methods apart.
SATURATED = 0.995
FEW_SEEDS = 5


def judge(settings: Settings, trials: Sequence[Trial]) -> tuple[list[Standing], list[Verdict]]:
    """Rank the methods and give a verdict at each batch size that has finished methods.

    Args:
        settings: of the study.
        trials: those finished so far.

    Returns:
        The standings (best first within a batch size) and the verdicts, in the order of the batch sizes.

    Example:
        >>> judge(Settings("t", ["none"], [2], [0, 1], [9], {"2": [0.1]}, {}, "", "", "", {}, ""), [])
        ([], [])
    """
    standings: list[Standing] = []
    verdicts = []
    for batch_size in settings.batch_sizes:
        found, resampled = standings_at(settings, trials, batch_size)
        standings += found
        if found:
            verdicts.append(verdict_of(settings, trials, found, resampled))
    return standings, verdicts


def verdict_of(
    settings: Settings, trials: Sequence[Trial], standings: Sequence[Standing], resampled: np.ndarray
) -> Verdict:
    """Give the verdict of one batch size.

    Args:
        settings: of the study.
        trials: of the study.
        standings: of that batch size, best first; not empty.
        resampled: the resampled validation means, in the same order.

    Returns:
        The verdict.

    Example:
        >>> callable(verdict_of)
        True
    """
    best, tied = standings[0], [s for s in standings if s.tied]
    racers = [s for s in standings if not s.stopped]
    near = {s.method: share_near_best(resampled, k, settings.tolerance) for k, s in enumerate(racers)}
    costs = [cost(s.step_seconds, s.peak_bytes) for s in tied]
    use = tied[choose([near[s.method] for s in tied], [s.diverged > 0 for s in tied], costs)]
    lost = all(s.diverged == s.runs for s in standings)
    return Verdict(
        batch_size=best.batch_size,
        use=use.method,
        best=best.method,
        clear=len(tied) == 1 and len(standings) > 1 and not lost,
        tied=[s.method for s in tied],
        confidence=0.0 if lost else near[use.method],
        headline=_headline(standings, tied, use, lost),
        why=_why(settings, trials, standings, tied, use, lost),
        cautions=_cautions(settings, trials, standings, tied, use),
    )


def progress_line(study: Study) -> str:
    """Say in one line what the study found.

    Args:
        study: finished or not.

    Returns:
        The headlines, joined.

    Example:
        >>> callable(progress_line)
        True
    """
    return " ".join(v.headline for v in study.verdicts) or "No method is finished yet."


def _headline(standings: Sequence[Standing], tied: Sequence[Standing], use: Standing, lost: bool) -> str:
    at = f"At batch size {use.batch_size}"
    if lost:
        return f"{at} no method trained: every run diverged or failed."
    if len(standings) == 1:
        return f"{at} only {use.method} was tried."
    if len(tied) == 1:
        return f"{at} use {use.method}: it is ahead of every other method."
    others = "all methods" if len(tied) == len(standings) else _list([s.method for s in tied])
    return f"{at} there is no clear winner among {others}; use {use.method}: {_because(tied, use)}."


def _because(tied: Sequence[Standing], use: Standing) -> str:
    if use.diverged:
        return "every one of them lost runs"
    passed_over = [s for s in tied if _step(s) * (1 + SAME_COST) < _step(use)]
    if use is tied[0] and passed_over:
        return "it scored highest, and the cheaper ones rarely come near it or lost runs"
    if passed_over:
        return "it is the cheapest of those that often come near the highest and lost no run"
    return "it scored highest and none costs less" if use is tied[0] else "it is the cheapest"


def _why(
    settings: Settings,
    trials: Sequence[Trial],
    standings: Sequence[Standing],
    tied: Sequence[Standing],
    use: Standing,
    lost: bool,
) -> list[str]:
    write = _Writer(settings)
    best = standings[0]
    if lost:
        return [_lost_sentence(s, trials) for s in standings]
    said = [
        f"{_name(best)} has the highest mean validation {settings.score_name} over {best.runs} seeds: "
        f"{write.score(best.valid.value)} (95 % interval {write.interval(best.valid)}); on test it reaches "
        f"{write.score(best.test.value)}."
    ]
    rest = [(s.behind, s.method) for s in standings[1:] if s.behind is not None and not s.tied]
    if rest:
        gap, nearest = min(rest, key=lambda item: item[0].value)
        size = f"{write.gap(gap.value)} ({write.gaps(gap)}, paired by seed)"
        said.append(
            f"It leads the next, {nearest}, by {size}."
            if len(tied) == 1
            else f"Of the methods that are clearly behind it, {nearest} is the nearest: {size}."
        )
    said += _race_sentences(settings, standings)
    said += [
        f"{_name(s)} is {write.gap(s.behind.value)} behind, but its 95 % interval, {write.interval(s.behind)}, "
        "includes 0: chance may explain it."
        for s in tied[1:]
        if s.behind is not None
    ]
    said += _cost_sentences(standings, tied, use)
    said += [_lost_sentence(s, trials) for s in standings if s.diverged]
    said += _method_sentences(standings, write)
    return said


def _race_sentences(settings: Settings, standings: Sequence[Standing]) -> list[str]:
    """Who left the race, grouped by when, and when it ended."""
    left: dict[int, list[str]] = {}
    for s in standings:
        if s.stopped:
            left.setdefault(s.runs, []).append(s.method)
    said = [
        f"Clearly behind after {runs} of {len(settings.seeds)} seeds, so stopped: {_list(names)}."
        for runs, names in sorted(left.items())
    ]
    ran = standings[0].runs
    if settings.race and ran < len(settings.seeds):
        said.append(f"The race ended after {ran} of {len(settings.seeds)} seeds: more would hardly change the advice.")
    return said


def _cost_sentences(standings: Sequence[Standing], tied: Sequence[Standing], use: Standing) -> list[str]:
    if use.step_seconds is None:
        return []
    text = f"A training step with {use.method} takes {use.step_seconds * 1e3:.3g} ms"
    if use.peak_bytes is not None:
        text += f" and holds at most {use.peak_bytes / 2**20:.3g} MiB"
    others = [s for s in tied if s is not use and s.step_seconds]
    if others:
        dearest = max(others, key=_step)
        text += f"; the dearest of the tied, {dearest.method}, takes {_step(dearest) * 1e3:.3g} ms"
        return [text + "."]
    fastest = min((s for s in standings if s.step_seconds), key=_step)
    if fastest is not use:
        text += f", {_step(use) / _step(fastest):.2g} times the fastest ({fastest.method})"
    return [text + "."]


def _lost_sentence(standing: Standing, trials: Sequence[Trial]) -> str:
    lost = [
        t
        for t in trials
        if t.cell.stage == "final"
        and (t.cell.method, t.cell.batch_size) == (standing.method, standing.batch_size)
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


def _cautions(
    settings: Settings,
    trials: Sequence[Trial],
    standings: Sequence[Standing],
    tied: Sequence[Standing],
    use: Standing,
) -> list[str]:
    write, best, said = _Writer(settings), standings[0], []
    if settings.quick:
        said.append("This was a quick run: short training and few seeds. Repeat it without --quick to rely on it.")
    if best.runs < FEW_SEEDS:
        said.append(f"{best.runs} seeds give wide intervals: more of them may separate methods that are tied here.")
    edge = [s for s in standings if s.lr_at_edge]
    if edge and len(settings.lrs[str(best.batch_size)]) > 1:
        lrs = ", ".join(f"{s.method} ({s.lr:.3g})" for s in edge)
        said.append(f"The best learning rate lay at the edge of the grid for {lrs}: a wider grid may favour them.")
    if use is not best and best.valid.value - use.valid.value > settings.tolerance:
        said.append(
            f"{_name(use)} is {write.gap(best.valid.value - use.valid.value)} below {best.method} in mean validation "
            f"{settings.score_name}: it is tied because the seeds scatter, not because it was shown to be equal."
        )
    top = max(standings, key=lambda s: s.test.value)
    if top is not best and top.test.value - best.test.value > settings.tolerance:
        said.append(
            f"On test {top.method} is {write.gap(top.test.value - best.test.value)} ahead of {best.method}: "
            "validation and test disagree about the best."
        )
    if settings.score_name == "accuracy" and best.valid.value >= SATURATED:
        said.append("The best scores are close to 100 %: this task hardly tells good methods apart.")
    lost = [s for s in standings if s.tune_diverged and not s.diverged]
    if lost:
        said.append(
            "During the search for a learning rate "
            + _list([f"{s.method} lost {s.tune_diverged}" for s in lost])
            + " trial(s) to divergence or errors."
        )
    return said


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


def _name(standing: Standing) -> str:
    """A method's name to begin a sentence with."""
    return "No normalization" if standing.method == "none" else standing.method[:1].upper() + standing.method[1:]


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _step(standing: Standing) -> float:
    return standing.step_seconds if standing.step_seconds is not None else float("inf")
